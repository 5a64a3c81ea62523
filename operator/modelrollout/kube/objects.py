"""How parts that all objects of Kubernetes have are read and written: labels, annotations,
conditions, owners, times.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from modelrollout.api import names

Object = dict[str, Any]


def labels_of(o: Mapping[str, Any]) -> dict[str, str]:
    """The object's labels; empty when it has none."""
    return o["metadata"].get("labels") or {}


def label(o: Mapping[str, Any], name: str) -> str | None:
    """One of the object's labels."""
    return labels_of(o).get(name)


def annotations_of(o: Mapping[str, Any]) -> dict[str, str]:
    """The object's annotations; empty when it has none."""
    return o["metadata"].get("annotations") or {}


def own_annotations(o: Mapping[str, Any]) -> dict[str, str]:
    """Those of the operator's own group."""
    return {k: v for k, v in annotations_of(o).items() if k.startswith(names.GROUP)}


def condition(o: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    """The condition of that type in the object's status; empty when it has none."""
    conditions = (o.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == type_), {})


def is_true(o: Mapping[str, Any], type_: str) -> bool:
    """Whether the condition of that type is there and True."""
    return condition(o, type_).get("status") == "True"


def is_deleting(o: Mapping[str, Any]) -> bool:
    """Whether its deletion has begun."""
    return bool(o["metadata"].get("deletionTimestamp"))


def is_over(job: Mapping[str, Any]) -> bool:
    """Whether the Job has finished or is being deleted. One whose owner never collects its result
    (say its spec cannot be read) must not keep others waiting.
    """
    return is_deleting(job) or is_true(job, "Complete") or is_true(job, "Failed")


def controller_reference(o: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ownerReference of the object's controller, of which the API server allows one; empty
    without.
    """
    return next((r for r in o["metadata"].get("ownerReferences") or [] if r.get("controller")), {})


def controller_of(o: Mapping[str, Any]) -> str | None:
    """The uid of the object's controller."""
    return controller_reference(o).get("uid")


def preconditions(o: Mapping[str, Any]) -> dict[str, str]:
    """Metadata that makes a patch fail unless the object is still in this state."""
    return {key: o["metadata"][key] for key in ("uid", "resourceVersion")}


def microtime(at: datetime) -> str:
    """A time as Leases write acquireTime and renewTime: UTC, microseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """A time of the API server, with or without fractions, in UTC. Raises TypeError, ValueError."""
    return datetime.fromisoformat(text).astimezone(UTC)
