"""Token buckets, one for each key."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

KEYS = 20_000


class Rate:
    """Each key has ``burst`` at first and gets ``rate`` a second, up to ``burst``. The longest
    unused keys beyond ``KEYS`` are forgotten.
    """

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        # tokens left, and when that was
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        """Seconds until the key may take one; 0 when it may now."""
        return max(0.0, (1.0 - self._level(key)) / self._rate)

    def take(self, key: str, amount: float = 1.0) -> None:
        """Take tokens, also more than are left: the next ``wait`` includes the debt. A negative
        amount gives tokens back.
        """
        self._buckets[key] = (min(self._burst, self._level(key) - amount), self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > KEYS:
            self._buckets.popitem(last=False)

    def _level(self, key: str) -> float:
        left, at = self._buckets.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._rate)
