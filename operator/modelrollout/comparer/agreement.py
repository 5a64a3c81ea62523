# mypy: disallow_untyped_calls=False
"""Do two answers of a model agree? KServe v2 over HTTP, JSON or with the binary tensor
extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.http import InferResult

from modelrollout.contract.tasks import OutputTolerance

Outputs = Mapping[str, NDArray[Any]]


class UnreadableError(ValueError):
    """Not an answer to an inference request. The text never quotes the body."""


def decode(body: bytes, header_length: int | None) -> Outputs:
    """Outputs by name; ``header_length`` is that of the JSON part where tensors follow it as bytes.
    Raises UnreadableError.
    """
    try:
        result = InferResult.from_response_body(body, header_length=header_length)
        outputs = {str(o["name"]): result.as_numpy(o["name"]) for o in result.get_response()["outputs"]}
    except Exception as e:  # the library raises whatever a broken body leads it to
        raise UnreadableError(f"not an inference response: {type(e).__name__}") from None
    if not outputs or any(a is None for a in outputs.values()):
        raise UnreadableError("an inference response without outputs")
    return outputs


def agree(candidate: Outputs, stable: Outputs, tolerances: Mapping[str, OutputTolerance]) -> bool:
    """The same outputs, of the same shapes, each within its tolerance. A tolerance for an output
    that does not exist is ignored.
    """
    return candidate.keys() == stable.keys() and all(
        _agree(candidate[name], stable[name], tolerances.get(name) or OutputTolerance(name=name))
        for name in stable
    )


def _agree(candidate: NDArray[Any], stable: NDArray[Any], tolerance: OutputTolerance) -> bool:
    if candidate.shape != stable.shape:
        return False
    floats = candidate.dtype.kind == stable.dtype.kind == "f"
    numbers = candidate.dtype.kind in "fiub" and stable.dtype.kind in "fiub"
    if tolerance.argmax and numbers and stable.ndim and stable.size:
        return bool(np.array_equal(np.argmax(candidate, axis=-1), np.argmax(stable, axis=-1)))
    if floats:
        # In double precision: a half-precision tolerance of 0.001 near 60000 is no tolerance.
        a, b = candidate.astype(np.float64), stable.astype(np.float64)
        return bool(
            np.all(
                np.isclose(a, b, rtol=tolerance.rel_tolerance, atol=tolerance.abs_tolerance, equal_nan=True)
            )
        )
    return candidate.dtype.kind == stable.dtype.kind and bool(np.array_equal(candidate, stable))
