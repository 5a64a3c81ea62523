"""How far the answers of two models are apart, in numbers that need no labels. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAR = float("inf")  # other shapes or types, or a number that is none where the first has one
_NOTHING = 1e-3  # of a probability
_NOISE = 1e-6  # where the first is all zeros


def relative_error(before: Any, after: Any, least: float = 0.0) -> float:
    """Of one output: the norm of the difference by the norm of ``before`` (or ``least``), over what
    is finite there; of everything but floats the share of elements that differ.
    """
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return 0.0 if repr(before) == repr(after) else FAR
    if before.shape != after.shape or before.dtype != after.dtype:
        return FAR
    if not before.size:
        return 0.0
    if before.dtype.kind != "f":
        return float(np.mean(before != after))
    finite = np.isfinite(before)
    x, y = before[finite].astype(np.float64), after[finite].astype(np.float64)
    if not np.isfinite(y).all():
        return FAR
    norm, off = max(least, float(np.linalg.norm(x))), float(np.linalg.norm(x - y))
    return off / norm if norm else (0.0 if off <= _NOISE else FAR)


def _least(before: Any) -> float:
    """The norm that an output of probabilities has at least: errors of less mean nothing."""
    if not isinstance(before, np.ndarray) or before.dtype.kind != "f" or not before.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        probabilities = bool(((before >= 0) & (before <= 1)).all())
    return _NOTHING * math.sqrt(before.size) if probabilities else 0.0


def far_from(before: Sequence[Any], after: Sequence[Any]) -> float:
    """The relative error of the output that is farthest off. Probabilities of less than a
    thousandth count as that much.
    """
    if len(before) != len(after):
        return FAR
    return max((relative_error(a, b, _least(a)) for a, b in zip(before, after, strict=True)), default=0.0)


def joined(parts: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]] | None:
    """The outputs of several requests one after the other, by their first dimension; None where an
    output has none, or they do not fit together.
    """
    try:
        return [np.concatenate([part[at] for part in parts]) for at in range(len(parts[0]))]
    except ValueError:
        return None
