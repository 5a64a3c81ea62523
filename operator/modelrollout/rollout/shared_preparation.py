"""What a namespace has prepared already, and who prepares for all that ask for the same at once.

The store is asked for nothing: who may write there must not say what is served. Two ways lead to
what others of the namespace have made. Whose rollout begins while somebody does the very same work
waits, and takes what comes of it (``outcome``). Who comes later has a Job that reads the data, for
another file may lie at its place by then, and takes what is recorded where its key is the same
(``recorded``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ArtifactEvidence
from modelrollout.rollout.snapshot import Problem, SharedPreparation

MOST_RECORDS = 16  # that a Job is told of: those of one source with other steps, data or hardware
# An earlier operator named folders after the key alone.
_FOLDER = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16}-[0-9a-f]{8})?")
# What makes another source of the same bytes: where it lies, for policies allow places; who vouches
# for it; what it is taken for.
_SOURCE = ("uri", "signature", "format")
# Of serving, what takes part in the work or decides where and as whom its pod runs.
_SERVING = (
    "triton",
    "batching",
    "resources",
    "nodeSelector",
    "tolerations",
    "serviceAccountName",
    "imagePullSecrets",
)


@dataclass(frozen=True)
class Record:
    """What a ModelRevision says of its preparation. ``model``: as its input has it."""

    sha256: str
    model: Mapping[str, Any]
    artifact: ArtifactEvidence | None
    lost: bool = False  # its servers could not load it


def may_be_taken(record: Record, sha256: str, model: Mapping[str, Any], folder: str) -> bool:
    """Whether a Job may take that artifact again, should its own work have the same key: it is
    proven, of the same source, signed alike, and lies in the namespace's folder. Steps, data, tools
    and hardware are in the key, which only the Job can tell: it reads the data.
    """
    artifact = record.artifact
    if artifact is None or not artifact.digest or record.sha256 != sha256:
        return False
    if any(record.model.get(field) != model.get(field) for field in _SOURCE):
        return False
    base, _, name = artifact.uri.rpartition("/")
    return base == folder.rstrip("/") and _FOLDER.fullmatch(name) is not None


def recorded(
    records: Iterable[Record], sha256: str, model: Mapping[str, Any], folder: str
) -> tuple[tuple[str, str], ...]:
    """(URI, digest) of the artifacts that a Job may take again, in a steady order."""
    known = list(records)
    spoilt = {r.artifact.uri for r in known if r.artifact and r.lost}
    found = {
        (r.artifact.uri, r.artifact.digest)
        for r in known
        if r.artifact and r.artifact.uri not in spoilt and may_be_taken(r, sha256, model, folder)
    }
    return tuple(sorted(found)[:MOST_RECORDS])


@dataclass(frozen=True)
class Member:
    """A ModelDeployment of the namespace that asks for the same work: it is in Prepare (``waits``),
    or has lately been.
    """

    name: str
    began: str  # its rollout
    waits: bool = True
    works: bool = False  # its Job is under way
    artifact: ArtifactEvidence | None = None  # what its Job found or made
    refused: Problem | None = None  # by its gate


def work_key(sha256: str, version: Mapping[str, Any], optimization: Mapping[str, Any]) -> str:
    """Equal where two ModelDeployments of a namespace ask for the same work by the same words: the
    version's input, and how its Job is carried out.

    Places and Secrets by their names: they are the same within a namespace at one time.
    """
    serving = version.get("serving") or {}
    words = [
        sha256,
        version.get("model"),
        version.get("optimization"),
        {field: serving.get(field) for field in _SERVING},
        optimization,
    ]
    return names.short_hash(words, 32)


def preparer(members: Iterable[Member], before: str | None = None, *, idle: bool = False) -> str | None:
    """Who works for all that wait: whose Job is under way, else who was chosen ``before``, else who
    came first.

    ``idle``: who was chosen has made no Job for long, or not taken its result (a quota, a spec that
    cannot be read): the next one is.
    """
    waiting = sorted((m for m in members if m.waits), key=lambda m: (not m.works, m.began, m.name))
    if not waiting:
        return None
    order = [m.name for m in waiting]
    if waiting[0].works or before not in order:
        return order[0]
    assert before is not None
    return order[(order.index(before) + 1) % len(order)] if idle else before


def outcome(mine: Member, others: Iterable[Member]) -> SharedPreparation:
    """What came of the same work since the rollout of this one began; the last word of several."""
    begun = datetime.fromisoformat(mine.began)
    told = [(m.artifact, m) for m in others if not m.waits and m.artifact and m.artifact.prepared]
    fresh = [
        (a, m)
        for a, m in told
        if datetime.fromisoformat(a.prepared or "") >= begun and (a.digest or m.refused)
    ]
    if not fresh:
        return SharedPreparation()
    artifact, by = max(fresh, key=lambda x: (x[0].prepared or "", x[1].name))
    return SharedPreparation(by=by.name, artifact=artifact, refused=None if artifact.digest else by.refused)
