"""Whether a version's files and config.pbtxt are what was asked for: nothing that another backend
would load, and no code that was not allowed.

Asked twice of what a stranger's file may have made: before it is published, and where it is placed
for a server.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from google.protobuf.text_format import ParseError  # type: ignore[import-untyped]

from modelrollout.contract.formats import Served
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.passthrough.config import CONFIG_LIMIT_BYTES, kept
from modelrollout.optimizer.pipeline.hand_over import refused
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
        found = parse(config)
    except (ParseError, RecursionError):
        raise refused("Triton does not read its config.pbtxt") from None
    kind = _ONNX if served is None else KINDS[served.backend]
    if (found.backend, found.platform, found.default_model_filename) != (
        kind.backend,
        kind.platform,
        kind.file,
    ):
        said = f"{found.backend or found.platform or 'no backend'!r} and {found.default_model_filename!r}"
        raise refused(f"its config.pbtxt is for {said}, not for {kind.backend} and {kind.file}")
    if served is None:
        if extra := sorted({field.name for field, _ in found.ListFields()} - _OURS):
            raise refused(f"its config.pbtxt says {extra[0]}")
        if MODEL_FILE not in names or not set(names) <= {MODEL_FILE, DATA_FILE}:
            raise refused(f"its files are {', '.join(sorted(names)[:5])}, not {MODEL_FILE}")
        return
    # not needed by a server's fetch of ONNX
    from modelrollout.optimizer.passthrough.repository import servable

    try:
        kept(found, served)
        read = servable({name: Path(name) for name in names}, served)
    except JobError as error:
        raise refused(error.message) from None
    if read.keys() != set(names) or not any(
        name == kind.file or name.startswith(f"{kind.file}/") for name in names
    ):
        raise refused(f"its files are not those that {kind.backend} reads")
