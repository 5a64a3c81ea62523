"""Series for each ModelDeployment, made at scrape time from what the operator holds in memory: so
no series of an object that is gone stays behind.

One ModelDeployment has some fifteen series, so a limit bounds them: beyond it objects are left out,
by namespace and name, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_PREFIX = "modelrollout_deployment"
_MOST_CONDITIONS = 32  # that are looked at: there are some fifteen
_LARGEST = 1 << 63  # of a number of the API server's
# not "namespace": Prometheus gives that label to the operator's own, and would rename ours
NAMESPACE = "model_namespace"
_OF_OBJECT = (NAMESPACE, "name")


@dataclass(frozen=True)
class Fact:
    """One sample of one object. ``metric``: without the prefix; ``labels``: beside those of
    the object.
    """

    metric: str
    value: float
    labels: tuple[str, ...] = ()


_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "phase": ("1 for the phase that the ModelDeployment is in.", ("phase",)),
    "ready": ("1 if the present spec is the stable revision, and serves.", ()),
    "available": ("1 if clients get answers, 0 if not or unknown.", ()),
    "stalled": ("1 while it waits for a person, or clients get no answers, and why.", ("reason",)),
    "revision": (
        "1 for each revision that serves or is on trial. version: of the model in Triton.",
        ("role", "revision", "version"),
    ),
    "weight_percent": ("Share of the requests that the revision on trial gets.", ()),
    "step": ("1 for the step of the trial.", ("step",)),
    "step_started_seconds": ("Unix time at which the step began.", ()),
    "stage": ("1 for the stage of the rollout in flight.", ("stage",)),
    "stage_started_seconds": ("Unix time at which the stage began.", ()),
    "replicas": ("Pods of the serving revision that are asked for.", ()),
    "ready_replicas": ("Pods of the serving revision that are ready.", ()),
    "waiting": ("1 while its rollout waits for GPUs or a slot, and why.", ("reason",)),
}


class FleetCollector(Collector):
    """``objects``: asked at each scrape, raw ModelDeployments; ``most``: of how many there are
    series.
    """

    def __init__(self, objects: Callable[[], Iterable[dict[str, Any]]], most: int) -> None:
        self._objects, self._most = objects, most

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            name: GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=(*_OF_OBJECT, *labels))
            for name, (text, labels) in _FAMILIES.items()
        }
        ordered = sorted(self._objects(), key=_key)
        for obj in islice(ordered, self._most):
            for fact in facts(obj):
                families[fact.metric].add_metric((*_key(obj), *fact.labels), fact.value)
        yield from families.values()
        left_out = GaugeMetricFamily(
            "modelrollout_deployments_without_series",
            "ModelDeployments beyond the limit of metrics.objects.",
        )
        left_out.add_metric((), max(0, len(ordered) - self._most))
        yield left_out


def _key(obj: dict[str, Any]) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def facts(obj: dict[str, Any]) -> Iterator[Fact]:
    """The samples of a ModelDeployment. A status may be of another version, or forged: what is
    not of the expected form gives none.
    """
    status = _dict(obj.get("status"))
    yield Fact("phase", 1, (_text(status.get("phase")) or "Pending",))
    listed = status.get("conditions")
    listed = listed[:_MOST_CONDITIONS] if isinstance(listed, list) else []
    conditions = {_text(c.get("type")): c for c in listed if isinstance(c, dict)}
    for metric, kind in (("ready", "Ready"), ("available", "Available")):
        yield Fact(metric, float(_dict(conditions.get(kind)).get("status") == "True"))
    stalled = _dict(conditions.get("Stalled"))
    if stalled.get("status") == "True":
        yield Fact("stalled", 1, (_text(stalled.get("reason")),))
    for metric, field in (("replicas", "replicas"), ("ready_replicas", "readyReplicas")):
        if (number := _number(status.get(field))) is not None:
            yield Fact(metric, number)
    stable, rollout = _dict(status.get("stable")), _dict(status.get("rollout"))
    if stable:
        yield Fact("revision", 1, ("stable", _text(stable.get("revision")), _text(stable.get("number"))))
    if rollout.get("stage") in (None, "Done", "Failed"):
        return
    yield Fact("stage", 1, (_text(rollout.get("stage")),))
    yield from _since("stage_started_seconds", rollout.get("since"))
    if queue := _dict(rollout.get("queue")):
        yield Fact("waiting", 1, (_text(rollout.get("reason")) or _text(queue.get("reason")),))
    if status.get("canary"):
        yield Fact("revision", 1, ("canary", _text(status["canary"]), _text(rollout.get("number"))))
    if (weight := _number(status.get("weight"))) is not None:
        yield Fact("weight_percent", weight)
    if status.get("step"):
        yield Fact("step", 1, (_text(status["step"]),))
        step = _dict(rollout.get("step")) or _dict(rollout.get("shadow"))
        yield from _since("step_started_seconds", step.get("since"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    if isinstance(value, int) and abs(value) > _LARGEST:
        return ""
    text = str(value)[:128] if isinstance(value, (str, int)) else ""
    return text.encode(errors="replace").decode()  # half a character would break the whole scrape


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= _LARGEST else None


def _since(metric: str, value: Any) -> Iterator[Fact]:
    try:
        yield Fact(metric, datetime.fromisoformat(value).timestamp())
    except (TypeError, ValueError):
        return
