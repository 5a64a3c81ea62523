"""What a namespace has prepared already. The store is asked for nothing else: who may write there must not say what is served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.api.v1alpha1 import ArtifactEvidence

MOST_RECORDS = 16  # that a Job is told of: those of one source with other steps, data or hardware
# An earlier operator named folders after the key alone.
_FOLDER = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16}-[0-9a-f]{8})?")
# What makes another source of the same bytes: where it lies, for policies allow places; who vouches for it; what it is taken for.
_SOURCE = ("uri", "signature", "format")


@dataclass(frozen=True)
class Record:
    """What a ModelRevision says of its preparation. ``model``: as its input has it."""

    sha256: str
    model: Mapping[str, Any]
    artifact: ArtifactEvidence | None


def may_be_taken(record: Record, sha256: str, model: Mapping[str, Any], folder: str) -> bool:
    """Whether a Job may take that artifact again, should its own work have the same key: it is proven, of the same source, signed alike, and lies in
    the namespace's folder. Steps, data, tools and hardware are in the key, which only the Job can tell: it reads the data."""
    artifact = record.artifact
    if artifact is None or not artifact.digest or record.sha256 != sha256:
        return False
    if any(record.model.get(field) != model.get(field) for field in _SOURCE):
        return False
    base, _, name = artifact.uri.rpartition("/")
    return base == folder.rstrip("/") and _FOLDER.fullmatch(name) is not None


def recorded(records: Iterable[Record], sha256: str, model: Mapping[str, Any], folder: str) -> tuple[tuple[str, str], ...]:
    """(URI, digest) of the artifacts that a Job may take again, in a steady order."""
    found = {(r.artifact.uri, r.artifact.digest) for r in records if r.artifact and may_be_taken(r, sha256, model, folder)}
    return tuple(sorted(found)[:MOST_RECORDS])
