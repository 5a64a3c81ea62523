"""A step that is the user's own image: the files that it reads, and the model that it wrote. Its
output is untrusted.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

from modelrollout.contract.common import MAX_MODEL_BYTES
from modelrollout.contract.steps import ContainerStep
from modelrollout.contract.tasks import HANDED_DATA, HANDED_MODEL, IN_DIR, OUT_DIR
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.inspect import ModelInfo, check
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.reasons import Reason
from modelrollout.triton.layout import DATA_FILE


def lay_out(model: Path, data: Path | None) -> None:
    """Write the files that the user's container reads: copies, since it shares no other folder."""
    files.copy(model, Path(IN_DIR) / HANDED_MODEL)
    if data:
        shutil.copyfile(data, Path(IN_DIR) / HANDED_DATA)


def container(step: ContainerStep, work: StepContext) -> dict[str, Any]:
    """Take the model that the container wrote, if it can replace the source model.

    Raises JobError: ContainerOutputMissing, ContainerOutputInvalid, ContainerOutputMismatch, and
    those of ``check``.
    """
    made = Path(OUT_DIR) / HANDED_MODEL
    what = f"{work.field}: {made}"
    _take(made, work.target, what, files.PROTOBUF_LIMIT)
    if os.path.lexists(data := files.data_of(made)):
        _take(data, files.data_of(work.target), f"{work.field}: {data}", MAX_MODEL_BYTES)
    info, before = check(work.target, what), check(work.original)
    if _interface(info) != _interface(before):
        raise bad_input(
            Reason.CONTAINER_OUTPUT_MISMATCH,
            f"{what} takes and gives {_describe(info)}, the source model {_describe(before)}; clients rely"
            " on them: keep names, types and shapes",
        )
    open_session(work.target, what)
    return {"image": step.image}


def _take(path: Path, target: Path, what: str, limit: int) -> None:
    with _opened(path, what, limit) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _opened(path: Path, what: str, limit: int) -> BinaryIO:
    """A plain file and nothing that leads elsewhere: the container may have left a link to what
    only we can read, or a pipe without an end.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise bad_input(
            Reason.CONTAINER_OUTPUT_MISSING,
            f"{what} is not there; the container has to write the model there before it ends with code 0",
        ) from None
    except OSError as error:
        raise bad_input(
            Reason.CONTAINER_OUTPUT_INVALID,
            f"{what} cannot be read ({error.strerror}); write a plain file that its owner can read",
        ) from None
    status = os.fstat(opened)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(opened)
        raise bad_input(
            Reason.CONTAINER_OUTPUT_INVALID,
            f"{what} is no plain file of at most {limit} bytes; write the ONNX model there, its weights in"
            f" {DATA_FILE} beside it where it is larger",
        )
    return os.fdopen(opened, "rb")


def _interface(info: ModelInfo) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted((t.name, t.datatype, t.shape) for t in (*info.inputs, *info.outputs))


def _describe(info: ModelInfo) -> list[str]:
    return [str(t) for t in (*info.inputs, *info.outputs)]


STEP = StepDefinition(container, uses_labels=lambda _step, _data, present: present)
