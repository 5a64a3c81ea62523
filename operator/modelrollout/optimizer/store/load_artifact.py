"""The init container of a server: a prepared repository from the artifact store into
``<target>/<model>/``, every byte checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from modelrollout.contract.common import SERVES_ENV, ServingConfig
from modelrollout.contract.formats import Served
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import FetchTask
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.store import artifact
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.triton.layout import CONFIG_FILE, MODEL_FILE, VERSION_LINK

_FIELD = "artifact"
_SCRATCH = ".fetch-"
_MODEL_NAME = re.compile(r"^[a-zA-Z0-9]([a-zA-Z0-9._-]*)$")


def _holds(path: Path, entry: artifact.Entry) -> bool:
    """Whether the file is there with the right bytes."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _tuned(store: ObjectStore, entry: artifact.Entry, serving: ServingConfig) -> bytes:
    """The stored config.pbtxt, once its digest is checked, with the settings that tuning chose;
    equal inputs give equal bytes.
    """
    # not needed by a fetch without them
    from modelrollout.triton.config import parse, printed, with_serving

    return printed(with_serving(parse(_stored(store, entry).decode()), serving)).encode()


def _stored(store: ObjectStore, entry: artifact.Entry) -> bytes:
    stored = store.read(entry.path, max_bytes=entry.size)
    if stored is None or hashlib.sha256(stored).hexdigest() != entry.sha256:
        raise _corrupt(store, entry)
    return stored


def _expect(asked: str, config: bytes, files: Collection[str]) -> None:
    """Raise OutputRefused for what this server was not made for, whatever the revision records."""
    from modelrollout.optimizer.pipeline.servable import expect_servable

    try:
        served = None if asked == "{}" else Served.model_validate_json(asked)
    except ValidationError:
        raise bad_input(
            "TaskInvalid",
            f"{SERVES_ENV}: {asked[:100]!r} is not understood; are operator and image of one version?",
        ) from None
    expect_servable(served, files, config.decode(errors="replace"))


def _corrupt(store: ObjectStore, entry: artifact.Entry) -> JobError:
    return bad_input(
        "ArtifactCorrupt",
        f"{store.uri}/{entry.path}: sha256 differs from the manifest; delete the folder and retry the"
        " revision",
    )


def fetch_repository(task: FetchTask, progress: Progress) -> TaskResult:
    """Place ``<target>/<model>/config.pbtxt`` and the files in ``<target>/<model>/<number>/`` in
    one rename; a second run finds them and ends.

    Raises JobError: ArtifactMissing, DigestMismatch, ArtifactCorrupt, OutputRefused, and those of
    the store.
    """
    if not _MODEL_NAME.match(task.model):
        raise bad_input("TaskInvalid", f"model: {task.model!r} is no folder name")
    store = ObjectStore(task.artifact, _FIELD)
    with progress.stage("manifest"):
        content = store.read(artifact.MANIFEST, max_bytes=artifact.MANIFEST_LIMIT_BYTES)
        if content is None:
            raise bad_input(
                "ArtifactMissing",
                f"{store.uri}: there is no manifest.json; retry the revision, and the model is prepared"
                " again",
            )
        if artifact.digest_of(content).removeprefix("sha256:") != task.digest.removeprefix("sha256:"):
            raise bad_input(
                "ArtifactDigestMismatch",
                f"{store.uri}: manifest.json is not the one that the revision was proven with: it was"
                " replaced; retry the revision to prove it anew",
            )
        manifest = artifact.parse_manifest(content, store.uri)
    config = manifest.files.get(CONFIG_FILE)
    version = {
        name: entry for name, entry in manifest.files.items() if name not in (CONFIG_FILE, artifact.REPORT)
    }
    if config is None or not version:
        raise bad_input(
            "ArtifactCorrupt",
            f"{store.uri}: manifest.json lists no model or no {CONFIG_FILE}; delete the folder and retry the"
            " revision",
        )
    if (asked := os.environ.get(SERVES_ENV)) is not None:
        with progress.stage("check"):
            _expect(asked, _stored(store, config), version)
    root = Path(task.target)
    number = str(task.number)
    if MODEL_FILE not in version:
        link = root / VERSION_LINK
        link.unlink(missing_ok=True)
        link.symlink_to(f"{task.model}/{number}")
    final = root / task.model
    tuned = _tuned(store, config, task.serving) if task.serving else None
    wanted = {CONFIG_FILE: config} | {f"{number}/{name}": entry for name, entry in version.items()}
    size = sum(entry.size for entry in version.values())
    with progress.stage("verify"):
        there = final / CONFIG_FILE
        configured = (
            _holds(there, config) if tuned is None else there.is_file() and there.read_bytes() == tuned
        )
        if configured and all(
            _holds(final / name, entry) for name, entry in wanted.items() if name != CONFIG_FILE
        ):
            return TaskResult(
                message="already in place", artifact_digest=task.digest, artifact_size_bytes=size, reused=True
            )
    for left in root.glob(f"{_SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
    with progress.stage("fetch"):
        for name, entry in wanted.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched = store.download(path, max_bytes=entry.size, advance=progress.update, name=entry.path)
            if fetched.sha256 != entry.sha256:
                raise _corrupt(store, entry)
    if tuned is not None:
        (scratch / CONFIG_FILE).write_bytes(tuned)
    for folder in (scratch, *(path for path in scratch.rglob("*") if path.is_dir())):
        folder.chmod(0o755)  # mkdtemp's 0700 would lock out the server, whose user may be another
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    return TaskResult(artifact_digest=task.digest, artifact_size_bytes=size)
