"""Checks a step's memory needs before it starts, so that it is not OOM-killed hours later."""

from __future__ import annotations

import math

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.steps import StepBase
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.reasons import Reason

_FIELD = "spec.optimization.resources.limits.memory"
_GIB = 1 << 30
_ROOM = 1.25  # of the memory that is advised, for large single weights and for data


def expect_memory(step: StepBase, field: str, size: int, limit: int | None) -> None:
    """Raise MemoryLimitTooLow where ``step`` needs more than ``limit`` bytes for a model of
    ``size`` bytes.
    """
    factor = definition_of(step).memory_factor(step)
    need = factor * size
    if limit is not None and need > limit:
        raise JobError(
            ExitCode.OUT_OF_RESOURCES,
            Reason.MEMORY_LIMIT_TOO_LOW,
            f"{_FIELD}: {limit / _GIB:.1f} GiB, but {field} takes {factor:g} times the model's"
            f" {size / _GIB:.1f} GiB or more; set {math.ceil(_ROOM * need / _GIB + 1)}Gi, then say retry",
        )
