"""PUBLISH: put the version into the store, once its form is verified."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from modelrollout.contract.results import TaskResult
from modelrollout.optimizer.passthrough.servable import expect_servable, refused
from modelrollout.optimizer.pipeline import hand_over
from modelrollout.optimizer.pipeline.report import summary_of
from modelrollout.optimizer.pipeline.state import (
    Phase,
    PrepareState,
    store_of,
)
from modelrollout.optimizer.store import artifact
from modelrollout.triton.layout import CONFIG_FILE


def verify_made(s: PrepareState) -> None:
    """Check that the version has the form that the task requests: the container that made it has
    opened an untrusted file.

    Checks names, configuration and sizes. The gate's numbers cannot be checked; they are taken on
    trust from the container that measured them.
    """
    with s.progress.stage("verify"):
        fetched = hand_over.read_fetched(s.work)
        s.key = fetched.key
        s.version, s.config, s.report = hand_over.read_made(s.work, s.made, s.task.max_bytes)
        expect_servable(s.task.served, s.version.keys(), s.config)
        if s.task.gate and not s.report.get("gate"):
            raise refused("it has no gate's numbers")
        size = sum(path.stat().st_size for path in s.version.values())
        s.report |= {"format": 1, "key": fetched.key, "inputs": fetched.inputs, "sizeAfter": size}
        uri = f"{s.task.artifacts.uri.rstrip('/')}/{artifact.folder_of(fetched.key, s.task.salt)}"
        try:
            s.result = summary_of(s.task, s.report, uri, None)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise refused("its report has an unknown form") from None


def publish(s: PrepareState) -> TaskResult:
    """The version, its configuration and its report; the manifest last."""
    uri = str(s.result.artifact_uri)
    with s.progress.stage("publish"):
        entries = {name: _file_entry(path) for name, path in s.version.items()} | {
            CONFIG_FILE: _file_entry(s.config.encode()),
            artifact.REPORT: _file_entry(json.dumps(s.report, indent=1, sort_keys=True).encode()),
        }
        digest = artifact.publish(store_of(s.task, uri), s.key, entries)
    return s.result.model_copy(update={"artifact_digest": digest})


PUBLISH: tuple[Phase, ...] = (verify_made, publish)


def _file_entry(content: bytes | Path) -> tuple[bytes | Path, str, int]:
    if isinstance(content, bytes):
        return content, hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        return content, hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size
