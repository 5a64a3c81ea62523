"""What the containers of a prepare Job hand to one another: the fetched files in one folder, the
results in another.

The results are untrusted: a malicious source file that takes over its converter may leave anything
there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import ContainerStep, Step
from modelrollout.contract.tasks import HANDED_MODEL, IN_DIR
from modelrollout.optimizer.passthrough.servable import refused
from modelrollout.optimizer.steps.container import lay_out
from modelrollout.optimizer.steps.run import Applied, field_of
from modelrollout.optimizer.store.artifact import REPORT_LIMIT_BYTES, is_name
from modelrollout.optimizer.store.object_store import Fetched

SOURCE = "source.onnx"
_FETCHED, _PARTIAL, _MADE = "fetched.json", "done.json", "made.json"
_PLACE = re.compile(r"made-\d{1,4}")


class Inputs(BaseModel):
    """What was fetched: the source as SOURCE, and the n-th of the others, by their fields, as
    ``source-n``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    inputs: dict[str, Any]
    source: Fetched
    files: dict[str, Fetched]


class _Made(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # by the name under which it is served, where it lies; None: it is the source as it was fetched
    files: dict[str, str | None]
    config: str
    report: dict[str, Any]


def write_fetched(work: Path, inputs: Inputs) -> None:
    """Write the list of fetched files, after all of them were verified."""
    (work / _FETCHED).write_text(inputs.model_dump_json())


def read_fetched(work: Path) -> Inputs:
    """What the container that fetched wrote; no other container can write there."""
    return Inputs.model_validate_json((work / _FETCHED).read_text())


def write_partial(
    made: Path, recipe: Sequence[Step], applied: Applied, files: Mapping[str, Path]
) -> TaskResult:
    """For the user's container: the model and its data set. For ours after it: what was done so
    far.
    """
    index, step = next((i, s) for i, s in enumerate(recipe) if isinstance(s, ContainerStep))
    lay_out(applied.path, files.get(f"{field_of(index, step)}.data"))
    (made / _PARTIAL).write_text(json.dumps({"done": applied.done, "warnings": applied.warnings}))
    return TaskResult(message="handed over to the container of the step")


def read_partial(made: Path) -> Applied:
    """What was done before the user's container; only our own containers can write there."""
    partial = json.loads((made / _PARTIAL).read_text())
    return Applied(Path(IN_DIR) / HANDED_MODEL, partial["done"], partial["warnings"])


def write_made(
    work: Path, made: Path, files: dict[str, Path], config: str, report: dict[str, Any]
) -> TaskResult:
    """The files of the version, moved where they are out of what is cleared, its config.pbtxt and
    the report.
    """
    places: dict[str, str | None] = {}
    for number, (name, path) in enumerate(files.items()):
        if path == work / SOURCE:
            places[name] = None
            continue
        places[name] = place = f"made-{number}"
        if path.is_relative_to(made):
            path.replace(made / place)
        else:
            shutil.copyfile(path, made / place)
        (made / place).chmod(0o644)  # who publishes is another user
    (made / _MADE).write_text(_Made(files=places, config=config, report=report).model_dump_json())
    return TaskResult(message="made")


def read_made(work: Path, made: Path, limit: int) -> tuple[dict[str, Path], str, dict[str, Any]]:
    """(files, config.pbtxt, report), at most ``limit`` bytes of files; raises JobError
    (OutputRefused).
    """
    try:
        record = _Made.model_validate_json(_plain(made / _MADE, REPORT_LIMIT_BYTES).read_bytes())
    except ValidationError:
        raise refused("it does not say what was made") from None
    if not record.files or any(not is_name(name) for name in record.files):
        raise refused("it names no files, or files that cannot be served")
    if any(place is not None and not _PLACE.fullmatch(place) for place in record.files.values()):
        raise refused("it names files elsewhere")
    files = {
        name: work / SOURCE if place is None else _plain(made / place, limit)
        for name, place in record.files.items()
    }
    if sum(path.stat().st_size for path in files.values()) > limit:
        raise refused(f"its files have more than {limit} bytes")
    return files, record.config, record.report


def _plain(path: Path, limit: int) -> Path:
    """A plain file, and nothing that leads elsewhere: what wrote it has ended, so it stays what it
    is.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise refused(f"{path.name} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise refused(f"{path.name} is no plain file of at most {limit} bytes")
    return path
