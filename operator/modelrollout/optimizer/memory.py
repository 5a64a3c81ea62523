"""What a model takes of the Job's memory, told before the work and not by the kernel after hours of it."""

from __future__ import annotations

import math

from modelrollout.api.tasks import ExitCode
from modelrollout.jobs.errors import JobError

FIELD = "spec.optimization.resources.limits.memory"
LOADED = 1.1  # times its size, of a model that runs
_GIB = 1 << 30


def expect_memory(what: str, times: float, size: int, limit: int | None) -> None:
    """Raise MemoryLimitTooLow where ``what`` takes ``times`` the ``size`` of the model in bytes, and the ``limit`` of the Job is less."""
    need = times * size
    if limit is not None and need > limit:
        raise JobError(
            ExitCode.OUT_OF_RESOURCES,
            "MemoryLimitTooLow",
            f"{FIELD}: {limit / _GIB:.1f} GiB, but {what} takes about {times:g} times the model's {size / _GIB:.1f} GiB; set at least "
            f"{math.ceil(need / _GIB) + 1}Gi, then say retry",
        )
