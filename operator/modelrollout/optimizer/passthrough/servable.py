"""Checks that a version's files and config.pbtxt are of the kind that the task names: nothing that
another backend would load, and no code that was not allowed.

An untrusted file may have made them, so they are checked twice: before they are published, and
before a server gets them. The second check must not import ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from google.protobuf.text_format import ParseError  # type: ignore[import-untyped]

from modelrollout.contract.formats import Served
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.passthrough.config import CONFIG_LIMIT_BYTES, expect_author_fields
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS, Kind
from modelrollout.triton.config import parse
from modelrollout.triton.layout import DATA_FILE, MODEL_FILE

_ONNX = Kind("onnxruntime", MODEL_FILE)
_OURS = frozenset(
    {
        "backend",
        "default_model_filename",
        "max_batch_size",
        "input",
        "output",
        "dynamic_batching",
        "instance_group",
    }
)


def expect_servable(served: Served | None, names: Collection[str], config: str) -> None:
    """``served`` None: it goes to ONNX Runtime. Raises JobError (OutputRefused)."""
    if len(config.encode()) > CONFIG_LIMIT_BYTES:
        raise refused("its config.pbtxt is too large")
    try:
        message = parse(config)
    except (ParseError, RecursionError):
        raise refused("Triton does not read its config.pbtxt") from None
    kind = _ONNX if served is None else KINDS[served.backend]
    if (message.backend, message.platform, message.default_model_filename) != (
        kind.backend,
        kind.platform,
        kind.file,
    ):
        declared = (
            f"{message.backend or message.platform or 'no backend'!r} and {message.default_model_filename!r}"
        )
        raise refused(f"its config.pbtxt is for {declared}, not for {kind.backend} and {kind.file}")
    if served is None:
        if extra := sorted({field.name for field, _ in message.ListFields()} - _OURS):
            raise refused(f"its config.pbtxt says {extra[0]}")
        if MODEL_FILE not in names or not set(names) <= {MODEL_FILE, DATA_FILE}:
            raise refused(f"its files are {', '.join(sorted(names)[:5])}, not {MODEL_FILE}")
        return
    # not needed by a server's fetch of ONNX
    from modelrollout.optimizer.passthrough.repository import servable

    try:
        expect_author_fields(message, served)
        read = servable({name: Path(name) for name in names}, served)
    except JobError as error:
        raise refused(error.message) from None
    if read.keys() != set(names) or not any(
        name == kind.file or name.startswith(f"{kind.file}/") for name in names
    ):
        raise refused(f"its files are not those that {kind.backend} reads")


def refused(why: str) -> JobError:
    """What was made must not be served."""
    return bad_input(
        Reason.OUTPUT_REFUSED,
        f"the container that reads the model produced something that the task does not specify: {why}; the"
        " file may"
        " have taken that container over: see where it comes from",
    )
