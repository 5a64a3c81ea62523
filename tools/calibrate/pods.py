"""What happens to pods: they fail for a while by themselves, and they are cold after a start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CANARY, PODS = 1, 5  # pods of the canary, and of both sides together


@dataclass(frozen=True)
class Failing:
    """Every pod fails all its requests for ``seconds``, ``every`` so many on average, by itself."""

    seconds: float = 30.0
    every: float = 1200.0


@dataclass(frozen=True)
class Cold:
    """In its first ``seconds`` a pod of the canary is slow for a ``share`` of its requests; a new
    one comes ``every`` so many seconds, and one with the step.
    """

    seconds: float = 20.0
    share: float = 0.3
    every: float = 1200.0

    def since(self, second: float) -> float:
        """Seconds since the latest pod became ready, at a time of the step."""
        return second % self.every


class Episodes:
    """When the pods of simulated rollouts fail, from ``begin`` to ``end`` in seconds."""

    def __init__(
        self, rng: np.random.Generator, failing: Failing, rollouts: int, begin: float, end: float
    ) -> None:
        self._length = failing.seconds
        most = 2 * round((end - begin) / failing.every) + 12  # more come with a chance of 1e-5
        gaps = rng.exponential(failing.every, (rollouts, PODS, most))
        gaps[:, :, 1:] += failing.seconds
        self._onsets = np.cumsum(gaps, axis=2) + begin - failing.seconds

    def shares(self, begin: float, end: float) -> tuple[Floats, Floats]:
        """The share of the canary's and of stable's pods that fails between these times, rollout by
        rollout.
        """
        overlap = np.minimum(self._onsets + self._length, end) - np.maximum(self._onsets, begin)
        failed = np.maximum(overlap, 0.0).sum(axis=2) / (end - begin)
        return failed[:, :CANARY].mean(axis=1), failed[:, CANARY:].mean(axis=1)
