"""A newer opset for steps that need one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import onnx

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.agreement import far_from
from modelrollout.optimizer.model.data import Arrays, requests
from modelrollout.optimizer.model.inspect import ModelInfo, check
from modelrollout.optimizer.model.made_up import made_up_requests
from modelrollout.optimizer.model.runtime import BATCH_ROWS, ORT_ERRORS, answer, open_session
from modelrollout.reasons import Reason

_ERRORS: tuple[type[Exception], ...] = (
    *ORT_ERRORS, JobError, RuntimeError, ValueError, LookupError, TypeError,
)  # fmt: skip
_SAME = 1e-4  # relative error of an output: another order of sums


def raised(
    source: Path, target: Path, opset: int, inputs: Arrays | None, info: ModelInfo, field: str
) -> None:
    """Write the model with ``opset``; raises JobError (OpsetTooOld) where ONNX's converter cannot
    do that, or the model then answers otherwise: to ``inputs``, or to made-up ones.
    """
    refusal = bad_input(
        Reason.OPSET_TOO_OLD,
        f"{field}: opset {info.opset}, the step needs {opset} or later, and ONNX's version converter does not"
        " get this model there; export with opset_version=17",
    )
    try:
        files.save(onnx.version_converter.convert_version(onnx.load(source), opset), target)
        check(target, field)
        before, after = open_session(source, field), open_session(target, field)
        asked = (
            list(made_up_requests(before, source))
            if inputs is None
            else [r.arrays for r in islice(requests(inputs, info.inputs, BATCH_ROWS, field), 4)]
        )
    except _ERRORS:
        raise refusal from None
    pairs = [(answer(before, request), answer(after, request)) for request in asked]
    if not pairs or any(a is None or b is None or far_from(a, b) > _SAME for a, b in pairs):
        raise refusal
