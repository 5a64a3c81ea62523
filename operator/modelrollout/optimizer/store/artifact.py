"""A prepared repository in the artifact store: ``<artifacts>/<key>-<salt>-<try>/manifest.json`` and
the files that it lists.

The manifest maps Triton's file names to SHA-256, size and path below the folder. A folder belongs
to one run of one Job: the key says what was made, the salt is the operator's for the Job, and the
try is the run's own. So nothing can be written there beforehand, and a killed run does not block
its successor. Only the digest that a ModelRevision records makes an artifact trusted.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from modelrollout import nesting
from modelrollout.api.names import canonical_json
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason
from modelrollout.triton.layout import BESIDE

MANIFEST = "manifest.json"
REPORT = "report.json"
MANIFEST_LIMIT_BYTES = 1 << 20
REPORT_LIMIT_BYTES = 16 << 20

_PATH = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"  # no hidden file, and no way out of the folder
# Beside the version's folder no other version may lie, and no second configuration.
_NAME = re.compile(rf"^({BESIDE}(?!\d+(/|$)|config\.pbtxt$))?{_PART}(/{_PART})*$")
NAME_LIMIT = 200


class Entry(BaseModel):
    """One file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    size: int
    path: str


class Manifest(BaseModel):
    """What a prepared repository consists of. ``key`` is the hash of its inputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    key: str
    files: dict[str, Entry]

    def encoded(self) -> bytes:
        """Canonical bytes; the artifact's digest is their SHA-256."""
        return canonical_json(self.model_dump()).encode()


def digest_of(manifest: bytes) -> str:
    """The artifact's digest."""
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def parse_manifest(content: bytes, what: str) -> Manifest:
    """The manifest; raises JobError (ArtifactCorrupt) for another form or a path that leaves the
    folder.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        raise bad_input(
            Reason.ARTIFACT_CORRUPT,
            f"{what}: manifest.json has an unknown form; delete the folder, and it is prepared again",
        ) from None
    if any(not is_name(name) or not _PATH.fullmatch(entry.path) for name, entry in manifest.files.items()):
        raise bad_input(
            Reason.ARTIFACT_CORRUPT,
            f"{what}: manifest.json names files outside its folder; delete the folder, and it is prepared"
            " again",
        )
    return manifest


def parse_report(content: bytes, what: str) -> dict[str, Any]:
    """The report; raises JobError (ArtifactCorrupt) unless it is a JSON object."""
    try:
        report = nesting.parse(content)
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise bad_input(
            Reason.ARTIFACT_CORRUPT,
            f"{what}: report.json is no JSON object; delete the folder, and it is prepared again",
        )
    return report


def is_name(name: str) -> bool:
    """Whether a file may have this name, relative to its folder."""
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None


def entry_for(name: str, sha256: str, size: int) -> Entry:
    """Where a file with these bytes is stored."""
    if not _PATH.fullmatch(name):  # in a folder
        return Entry(sha256=sha256, size=size, path=f"file-{sha256[:32]}")
    suffix = PurePosixPath(name).suffix
    return Entry(sha256=sha256, size=size, path=f"{name.removesuffix(suffix)}-{sha256[:16]}{suffix}")


def folder_of(key: str, salt: str) -> str:
    """Name of the folder of this run."""
    return f"{key}-{salt}-{secrets.token_hex(4)}"


def key_in(uri: str) -> str:
    """The key of what lies there, as the name of the folder says; an earlier operator's folders
    have nothing else in their names.
    """
    return uri.rstrip("/").rpartition("/")[2].partition("-")[0]


def find(store: ObjectStore, digest: str) -> dict[str, Any] | None:
    """The report of the whole artifact whose manifest has this digest; None where it is gone,
    replaced or damaged, so that it has to be made again.

    The model file is not read again, only its size is looked at; servers check its digest anyway.
    """
    content = store.read(MANIFEST, max_bytes=MANIFEST_LIMIT_BYTES)
    if content is None or digest_of(content) != digest:
        return None
    manifest = parse_manifest(content, store.uri)
    if REPORT not in manifest.files or any(
        store.size(entry.path) != entry.size for entry in manifest.files.values()
    ):
        return None
    report = store.read(manifest.files[REPORT].path, max_bytes=REPORT_LIMIT_BYTES)
    if report is None or hashlib.sha256(report).hexdigest() != manifest.files[REPORT].sha256:
        return None
    return parse_report(report, store.uri)


def publish(store: ObjectStore, key: str, files: dict[str, tuple[bytes | Path, str, int]]) -> str:
    """Put the files (content, sha256, size), and last the manifest; returns the artifact's digest,
    which is never read back from the store.

    Raises JobError (ArtifactInTheWay) where another manifest lies there.
    """
    manifest = Manifest(
        key=key,
        files={name: entry_for(name, sha256, size) for name, (_, sha256, size) in sorted(files.items())},
    )
    for name, entry in manifest.files.items():
        store.write(entry.path, files[name][0])
    content = manifest.encoded()
    # A write that was repeated after a lost answer finds its own.
    if (
        not store.write(MANIFEST, content, "create")
        and store.read(MANIFEST, max_bytes=MANIFEST_LIMIT_BYTES) != content
    ):
        raise bad_input(
            Reason.ARTIFACT_IN_THE_WAY,
            f"{store.uri}: another manifest.json lies where this Job was to write, and none of it is taken;"
            " only the operator's Jobs may write to the artifact store: see who has its keys, then"
            " retry the revision",
        )
    return digest_of(content)
