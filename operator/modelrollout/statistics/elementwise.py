"""Elementary functions for a number or, element by element, for an array: one text serves one
rollout and thousands of simulated ones.

The operator judges single numbers, so it needs no array library (numpy would add its weight to
every operator for nothing). An array brings its own functions along, by the array API standard
(``__array_namespace__``), so ``make calibrate`` runs the operator's own code on numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

N = TypeVar("N", float, "NDArray[np.float64]")
T = TypeVar("T")


class Functions(Protocol[T]):
    """What is used of the array API standard."""

    def exp(self, x: T, /) -> T: ...
    def log(self, x: T, /) -> T: ...
    def log1p(self, x: T, /) -> T: ...
    def sqrt(self, x: T, /) -> T: ...
    def maximum(self, x: T, y: T | float, /) -> T: ...
    def minimum(self, x: T, y: T | float, /) -> T: ...
    def where(self, condition: Any, x: T | float, y: T | float, /) -> T: ...


class _Numbers:
    exp, log, log1p, sqrt = map(staticmethod, (math.exp, math.log, math.log1p, math.sqrt))

    @staticmethod
    def maximum(x: float, y: float) -> float:
        return x if x >= y else y

    @staticmethod
    def minimum(x: float, y: float) -> float:
        return x if x <= y else y

    @staticmethod
    def where(condition: bool, x: float, y: float) -> float:
        return x if condition else y


_NUMBERS = _Numbers()


def functions_of(x: T) -> Functions[T]:
    """The functions for what ``x`` is. ``where`` evaluates both of its values."""
    of_array = getattr(x, "__array_namespace__", None)
    return cast("Functions[T]", of_array() if of_array else _NUMBERS)


def log_sum_exp(parts: Sequence[N]) -> N:
    """Natural logarithm of the sum of the exponentials."""
    xp = functions_of(parts[0])
    top = parts[0]
    for part in parts[1:]:
        top = xp.maximum(top, part)
    total = top * 0.0
    for part in parts:
        total = total + xp.exp(part - top)
    return top + xp.log(total)
