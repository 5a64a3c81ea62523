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
from modelrollout.optimizer.passthrough.config import CONFIG_LIMIT_BYTES, expect_author_fields, label_files
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS, ONNX
from modelrollout.triton.config import parse
from modelrollout.triton.layout import BESIDE, DATA_FILE, MODEL_FILE


def expect_servable(served: Served | None, names: Collection[str], config: str) -> None:
    """``served`` None: it goes to ONNX Runtime. Raises JobError (OutputRefused)."""
    if len(config.encode()) > CONFIG_LIMIT_BYTES:
        raise refused("its config.pbtxt is too large")
    try:
        message = parse(config)
    except (ParseError, RecursionError):
        raise refused("Triton does not read its config.pbtxt") from None
    kind = ONNX if served is None else KINDS[served.backend]
    if (message.backend, message.platform, message.default_model_filename) != (
        kind.backend,
        kind.platform,
        kind.file,
    ):
        declared = (
            f"{message.backend or message.platform or 'no backend'!r} and {message.default_model_filename!r}"
        )
        raise refused(f"its config.pbtxt is for {declared}, not for {kind.backend} and {kind.file}")
    if served is None and any(
        tensor.input_data_file for sample in message.model_warmup for tensor in sample.inputs.values()
    ):
        raise refused("its config.pbtxt has a warm-up request from a file")
    # not needed by a server's fetch of ONNX
    beside = {name: Path(name) for name in names if name.startswith(BESIDE)}
    version = {name: Path(name) for name in names if name not in beside}
    try:
        expect_author_fields(message, served)
        if beside or label_files(message):
            from modelrollout.optimizer.passthrough.repository import servable_beside

            chosen = servable_beside(beside, served, message)
            if chosen.keys() != beside.keys():
                raise refused("files lie beside the version that nothing reads")
        if served is None:
            if MODEL_FILE not in version or not set(version) <= {MODEL_FILE, DATA_FILE}:
                raise refused(f"its files are {', '.join(sorted(names)[:5])}, not {MODEL_FILE}")
            return
        from modelrollout.optimizer.passthrough.repository import servable

        read = servable(version, served)
    except JobError as error:
        raise error if error.reason == Reason.OUTPUT_REFUSED else refused(error.message) from None
    if read.keys() != set(version) or not any(
        name == kind.file or name.startswith(f"{kind.file}/") for name in version
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
