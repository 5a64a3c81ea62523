"""Preparation that ModelDeployments of a namespace share: what exists already, and which of them
prepares for all that need the same now.

Nothing is read from the store: people who can write there must not decide what is served. A rollout
that begins while another one does the same work waits and reuses the result (``outcome``). A later
one runs its own Job, which reads the data, since another file may be there by then, and reuses a
recorded artifact if its key is the same (``recorded``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ArtifactEvidence
from modelrollout.problem import Problem
from modelrollout.rollout.snapshot import SharedPreparation

MOST_RECORDS = 16  # given to a Job: of one source, with other steps, data or hardware
# Earlier operators named folders by the key alone.
_FOLDER = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16}-[0-9a-f]{8})?")
# The same bytes are another source if their place differs (policies allow places), their signer, or
# the format they are read as.
_SOURCE = ("uri", "signature", "format")
# Fields of serving that affect the work, or where and as which account its pod runs.
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
    """A ModelRevision's preparation. ``model``: from its input."""

    sha256: str
    model: Mapping[str, Any]
    artifact: ArtifactEvidence | None
    lost: bool = False  # its servers could not load it


def may_be_taken(record: Record, sha256: str, model: Mapping[str, Any], folder: str) -> bool:
    """Whether a Job may reuse that artifact if its own work has the same key: it has a digest, is
    of the same source and signature, and lies in the namespace's folder. The key covers steps,
    data, tools and hardware; only the Job knows it, since it reads the data.
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
    """(URI, digest) of the artifacts that a Job may reuse, in a stable order."""
    known = list(records)
    spoilt = {r.artifact.uri for r in known if r.artifact and r.lost}
    artifacts = {
        (r.artifact.uri, r.artifact.digest)
        for r in known
        if r.artifact and r.artifact.uri not in spoilt and may_be_taken(r, sha256, model, folder)
    }
    return tuple(sorted(artifacts)[:MOST_RECORDS])


@dataclass(frozen=True)
class Member:
    """A ModelDeployment of the namespace that needs the same work: it is in Prepare (``waits``), or
    was recently.
    """

    name: str
    began: str  # start of its rollout
    waits: bool = True
    works: bool = False  # its Job runs
    artifact: ArtifactEvidence | None = None  # result of its Job
    refused: Problem | None = None  # why its gate refused the result


def work_key(
    sha256: str, version: Mapping[str, Any], optimization: Mapping[str, Any], *, warmup: bool
) -> str:
    """A key that is equal for two ModelDeployments of a namespace with the same version input and
    the same execution settings. Places and Secrets count by name. ``warmup``: as of PrepareTask.
    """
    serving = version.get("serving") or {}
    words = [
        sha256,
        version.get("model"),
        version.get("optimization"),
        {field: serving.get(field) for field in _SERVING},
        optimization,
        warmup,
    ]
    return names.short_hash(words, 32)


def preparer(members: Iterable[Member], before: str | None = None, *, idle: bool = False) -> str | None:
    """The member that works for all that wait: the one whose Job runs, else the one chosen
    ``before``, else the one that waits longest.

    ``idle``: the chosen one has created no Job for long, or not taken its result (a quota, a spec
    that cannot be read), so the next one is chosen.
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
    """The latest result of the same work since the rollout of ``mine`` began."""
    begun = datetime.fromisoformat(mine.began)
    results = [(m.artifact, m) for m in others if not m.waits and m.artifact and m.artifact.prepared]
    fresh = [
        (a, m)
        for a, m in results
        if datetime.fromisoformat(a.prepared or "") >= begun and (a.digest or m.refused)
    ]
    if not fresh:
        return SharedPreparation()
    artifact, by = max(fresh, key=lambda x: (x[0].prepared or "", x[1].name))
    return SharedPreparation(by=by.name, artifact=artifact, refused=None if artifact.digest else by.refused)
