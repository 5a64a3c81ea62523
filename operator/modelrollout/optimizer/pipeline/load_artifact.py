"""The init container of a server: places an artifact as ``<target>/<model>/``, with every digest
checked before the server can load anything.

The manifest must have the digest that the ModelRevision records (``_read_manifest``), and every
file the digest that the manifest lists (``_download``). The folder gets its name last, in one
rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from modelrollout.contract.common import (
    CPUS_ENV,
    ENGINES,
    OBJECTIVES_ENV,
    SERVES_ENV,
    TENSORRT_ENV,
    ServingConfig,
    TensorRT,
)
from modelrollout.contract.formats import Served
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import FetchTask
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.store import artifact
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason
from modelrollout.triton.layout import BESIDE, CONFIG_FILE, MODEL_FILE, VERSION_LINK

_FIELD = "artifact"
_SCRATCH = ".fetch-"
_MODEL_NAME = re.compile(r"^[a-zA-Z0-9]([a-zA-Z0-9._-]*)$")


def fetch_repository(task: FetchTask, progress: Progress) -> TaskResult:
    """Place config.pbtxt and the files of the version; a second run finds them and ends.

    Raises JobError: ArtifactMissing, ArtifactDigestMismatch, ArtifactCorrupt, OutputRefused, and
    those of the store.
    """
    if not _MODEL_NAME.match(task.model):
        raise bad_input(Reason.TASK_INVALID, f"model: {task.model!r} is no folder name")
    store = ObjectStore(task.artifact, _FIELD)
    with progress.stage("manifest"):
        manifest = _read_manifest(store, task.digest)
    config, version = _split(manifest, store)
    served = None
    if (serves := os.environ.get(SERVES_ENV)) is not None:
        with progress.stage("check"):
            served = _expect_served(serves, _read_config(store, config), version)
    root, number = Path(task.target), str(task.number)
    if MODEL_FILE not in version:
        link = root / VERSION_LINK
        link.unlink(missing_ok=True)
        link.symlink_to(f"{task.model}/{number}")
    changes = _Changes(
        task.serving,
        _cpus(),
        _objectives(),
        reports=served is not None and served.backend == "VLLM",
        tensorrt=_tensorrt(),
    )
    changed = _changed_config(store, config, changes, task.digest) if any(changes) else None
    files = {CONFIG_FILE: config} | {
        name.removeprefix(BESIDE) if name.startswith(BESIDE) else f"{number}/{name}": entry
        for name, entry in version.items()
    }
    result = TaskResult(
        artifact_digest=task.digest, artifact_size_bytes=sum(entry.size for entry in version.values())
    )
    with progress.stage("verify"):
        if _is_in_place(root / task.model, files, changed):
            return result.model_copy(update={"message": "already in place", "reused": True})
    for left in root.glob(f"{_SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
    with progress.stage("fetch"):
        _download(store, files, scratch, progress)
    if changed is not None:
        (scratch / CONFIG_FILE).write_bytes(changed)
    _rename(scratch, root / task.model)
    return result


def _read_manifest(store: ObjectStore, digest: str) -> artifact.Manifest:
    """The manifest, if its digest is the recorded one."""
    content = store.read(artifact.MANIFEST, max_bytes=artifact.MANIFEST_LIMIT_BYTES)
    if content is None:
        raise bad_input(
            Reason.ARTIFACT_MISSING,
            f"{store.uri}: there is no manifest.json; retry the revision, and the model is prepared again",
        )
    if artifact.digest_of(content).removeprefix("sha256:") != digest.removeprefix("sha256:"):
        raise bad_input(
            Reason.ARTIFACT_DIGEST_MISMATCH,
            f"{store.uri}: manifest.json is not the one that the revision was proven with: it was replaced;"
            " retry the revision to prove it again",
        )
    return artifact.parse_manifest(content, store.uri)


def _split(
    manifest: artifact.Manifest, store: ObjectStore
) -> tuple[artifact.Entry, dict[str, artifact.Entry]]:
    """(config.pbtxt, the files of the version)."""
    config = manifest.files.get(CONFIG_FILE)
    version = {
        name: entry for name, entry in manifest.files.items() if name not in (CONFIG_FILE, artifact.REPORT)
    }
    if config is None or not version:
        raise bad_input(
            Reason.ARTIFACT_CORRUPT,
            f"{store.uri}: manifest.json lists no model or no {CONFIG_FILE}; delete the folder and retry the"
            " revision",
        )
    return config, version


def _download(
    store: ObjectStore, files: Mapping[str, artifact.Entry], folder: Path, progress: Progress
) -> None:
    """Each file, if its digest is the listed one."""
    for name, entry in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fetched = store.download(path, max_bytes=entry.size, advance=progress.update, name=entry.path)
        if fetched.sha256 != entry.sha256:
            raise _corrupt(store, entry)


def _read_config(store: ObjectStore, entry: artifact.Entry) -> bytes:
    """The stored config.pbtxt, if its digest is the listed one."""
    content = store.read(entry.path, max_bytes=entry.size)
    if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise _corrupt(store, entry)
    return content


def _objectives() -> tuple[int, ...]:
    """Milliseconds that the server's histogram of latencies is to tell; raises JobError."""
    text = os.environ.get(OBJECTIVES_ENV, "[]")
    try:
        objectives = tuple(json.loads(text))
    except (ValueError, TypeError):
        objectives = (text,)
    if not all(type(o) is int and o > 0 for o in objectives):
        raise bad_input(
            Reason.TASK_INVALID,
            f"{OBJECTIVES_ENV}: {text[:100]!r} is no list of milliseconds; are operator and image of one"
            " version?",
        )
    return objectives


def _cpus() -> int:
    """How many CPUs the server may use, of those that the node has; 0: all. Raises JobError."""
    text = os.environ.get(CPUS_ENV, "0")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise bad_input(
            Reason.TASK_INVALID,
            f"{CPUS_ENV}: {text[:100]!r} is no number of CPUs; are operator and image of one version?",
        )
    return min(int(text), os.cpu_count() or 1)


class _Changes(NamedTuple):
    """What a server's config.pbtxt has that the stored one has not: what is different from server
    to server is no part of an artifact.
    """

    serving: ServingConfig | None  # the settings that tuning chose
    cpus: int
    objectives: tuple[int, ...]
    reports: bool  # of vLLM
    tensorrt: TensorRT | None


def _tensorrt() -> TensorRT | None:
    """Whether TensorRT computes the model, and how; raises JobError."""
    text = os.environ.get(TENSORRT_ENV)
    if text is None:
        return None
    try:
        return TensorRT.model_validate_json(text)
    except ValidationError:
        raise bad_input(
            Reason.TASK_INVALID,
            f"{TENSORRT_ENV}: {text[:100]!r} is not understood; are operator and image of one version?",
        ) from None


def _engines(digest: str, tensorrt: TensorRT) -> str:
    """The folder of engines of this artifact with these settings: an engine has weights and
    settings inside, and its file's name tells neither.
    """
    return f"{ENGINES}/{digest.removeprefix('sha256:')}-{tensorrt.workspace_bytes or 0}"


def _changed_config(store: ObjectStore, entry: artifact.Entry, changes: _Changes, digest: str) -> bytes:
    """config.pbtxt with these changes; equal inputs give equal bytes."""
    # not needed by a fetch without them
    from modelrollout.triton.config import (
        parse,
        printed,
        with_objectives,
        with_serving,
        with_tensorrt,
        with_threads,
        with_vllm_reports,
    )

    config = parse(_read_config(store, entry).decode())
    if changes.serving is not None:
        config = with_serving(config, changes.serving)
    if changes.cpus:
        config = with_threads(config, changes.cpus)
    if changes.objectives:
        config = with_objectives(config, changes.objectives)
    if changes.tensorrt is not None:
        config = with_tensorrt(config, changes.tensorrt.workspace_bytes, _engines(digest, changes.tensorrt))
    return printed(with_vllm_reports(config) if changes.reports else config).encode()


def _expect_served(serves: str, config: bytes, files: Collection[str]) -> Served | None:
    """What this server was made for; None: ONNX Runtime. Raises OutputRefused for what it was not
    made for, whatever the revision records. ``serves``: JSON of Served.
    """
    from modelrollout.optimizer.passthrough.servable import expect_servable

    try:
        served = None if serves == "{}" else Served.model_validate_json(serves)
    except ValidationError:
        raise bad_input(
            Reason.TASK_INVALID,
            f"{SERVES_ENV}: {serves[:100]!r} is not understood; are operator and image of one version?",
        ) from None
    expect_servable(served, files, config.decode(errors="replace"))
    return served


def _is_in_place(folder: Path, files: Mapping[str, artifact.Entry], changed: bytes | None) -> bool:
    """Whether an earlier run has placed exactly these files."""
    config = folder / CONFIG_FILE
    return all(
        config.is_file() and config.read_bytes() == changed
        if name == CONFIG_FILE and changed is not None
        else _has_content(folder / name, entry)
        for name, entry in files.items()
    )


def _has_content(path: Path, entry: artifact.Entry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _rename(scratch: Path, final: Path) -> None:
    for folder in (scratch, *(path for path in scratch.rglob("*") if path.is_dir())):
        folder.chmod(0o755)  # mkdtemp's 0700 would lock out the server, whose user may be another
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)


def _corrupt(store: ObjectStore, entry: artifact.Entry) -> JobError:
    return bad_input(
        Reason.ARTIFACT_CORRUPT,
        f"{store.uri}/{entry.path}: sha256 differs from the manifest; delete the folder and retry the"
        " revision",
    )
