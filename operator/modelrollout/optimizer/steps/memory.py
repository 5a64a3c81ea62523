"""What a step takes of the Job's memory, told before the work and not by the kernel after hours of
it.
"""

from __future__ import annotations

import math

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.steps import DistillStep, HalfPrecisionStep, Int4Step, Int8Step, PruneStep, Step
from modelrollout.jobs.errors import JobError

_FIELD = "spec.optimization.resources.limits.memory"
_GIB = 1 << 30
_ROOM = 1.25  # of the memory that is advised, for large single weights and for data


def times_of(step: Step) -> float:
    """Memory that the step takes at least, in sizes of the model: what ``python -m bench.large``
    measured, rounded down. Zero: it reads weights from the file as it needs them.
    """
    match step:
        case HalfPrecisionStep():
            return 1.5
        case Int8Step(method="Static"):
            return 2.0
        case Int8Step():
            return 2.5
        case Int4Step():
            return 1.1
        case PruneStep():
            return 5.0 if step.training else 3.5
        case DistillStep(size=float()):
            return 2.5
        case _:
            return 0.0


def expect_memory(step: Step, field: str, size: int, limit: int | None) -> None:
    """Raise MemoryLimitTooLow where ``step`` cannot do its work on a model of ``size`` bytes within
    the ``limit`` of the Job.
    """
    need = times_of(step) * size
    if limit is not None and need > limit:
        raise JobError(
            ExitCode.OUT_OF_RESOURCES,
            "MemoryLimitTooLow",
            f"{_FIELD}: {limit / _GIB:.1f} GiB, but {field} takes {times_of(step):g} times the model's"
            f" {size / _GIB:.1f} GiB or more; set {math.ceil(_ROOM * need / _GIB + 1)}Gi, then say retry",
        )
