"""The work queue: what client-go's rate-limited queue promises, for asyncio.

A key waits at most once, is never handed out twice at once, and a key that is added while it is
worked on is handed out again after ``done``: so one pass after the last event is certain, and
events that come together cost one pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
log = logging.getLogger(__name__)


class QueueClosed(Exception):
    """The queue hands out no more keys."""


class WorkQueue(Generic[K]):
    """De-duplicating, delaying, rate-limiting queue of keys; one event loop only, not thread-safe.
    All times are seconds.

    ``clock`` must run as the event loop's does (it decides how long ``get`` sleeps); ``uniform``
    gives numbers in [0, 1). A back-off lies in [d/2, d], d = min(cap, base * 2**failures).
    ``on_add`` and ``on_retry`` are for counters. ``lane``: whose key it is. Lanes take turns, so
    that the keys of one, however many, hold up another's by one key at most.
    """

    def __init__(
        self,
        *,
        base: float = 0.5,
        cap: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
        on_add: Callable[[], None] = lambda: None,
        on_retry: Callable[[], None] = lambda: None,
        lane: Callable[[K], Hashable] = lambda key: None,
    ) -> None:
        self._base, self._cap = base, cap
        self._clock, self._uniform = clock, uniform
        self._on_add, self._on_retry = on_add, on_retry
        self._lane = lane
        # by lane, the one whose turn it is first; none is empty
        self._ready: OrderedDict[Hashable, deque[K]] = OrderedDict()
        # to be handed out: in _ready, or in _processing and wanted again
        self._dirty: set[K] = set()
        self._processing: dict[K, float] = {}  # key -> when it was handed out
        self._due: dict[K, float] = {}
        # entries that _due does not confirm are stale and skipped
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = itertools.count()
        self._failures: dict[K, int] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._ended = asyncio.Event()  # set when some key is done
        self._progress = clock()
        self._paused = False
        self._closed = False

    def __len__(self) -> int:
        """Keys that could be handed out now; delayed ones and those in work are not counted."""
        return sum(map(len, self._ready.values()))

    @property
    def paused(self) -> bool:
        return self._paused

    def add(self, key: K) -> None:
        """Hand the key out as soon as possible; no effect if it waits already."""
        self._add(key, self._clock())

    def add_after(self, key: K, seconds: float) -> None:
        """Add the key in ``seconds``; of several delayed adds of one key the earliest counts. An
        ``add`` leaves it in place.
        """
        if self._closed:
            return
        if seconds <= 0:
            self.add(key)
            return
        self._promote()
        when = self._clock() + seconds
        if when >= self._due.get(key, float("inf")):
            return
        self._due[key] = when
        heapq.heappush(self._heap, (when, next(self._sequence), key))
        if self._heap[0][2] == key:
            self._wake()  # a worker has to wake earlier

    def add_rate_limited(self, key: K, at_least: float = 0.0) -> float:
        """Add the key after its back-off, or ``at_least`` if that is longer (Retry-After); counts a
        failure. Returns the delay.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        ceiling: float = min(self._cap, self._base * 2.0 ** min(failures, 64))
        delay = max(ceiling * (1 - self._uniform() / 2), at_least)
        self._on_retry()
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key succeeded: its back-off is reset."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """Failures since the last ``forget``."""
        return self._failures.get(key, 0)

    def get_nowait(self) -> K | None:
        """The next key, marked as in work until ``done``; None when there is none or the queue is
        paused or closed.
        """
        self._promote()
        if self._paused or self._closed or not self._ready:
            return None
        lane, keys = self._ready.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._ready[lane] = keys  # behind all others
        self._dirty.discard(key)
        self._progress = self._processing[key] = self._clock()
        return key

    async def get(self) -> K:
        """Wait for the next key; raises QueueClosed."""
        while True:
            if self._closed:
                raise QueueClosed
            if (key := self.get_nowait()) is not None:
                return key
            timeout = None if self._paused or not self._heap else self._heap[0][0] - self._clock()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout(timeout):
                    await waiter
            except TimeoutError:
                pass
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # pass the wake-up on to a worker that still runs
                raise
            finally:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)

    def done(self, key: K) -> None:
        """The work on the key ended, well or not; if it was added meanwhile, it waits again.
        KeyError if it was not in work.
        """
        del self._processing[key]
        if key in self._dirty:
            self._enqueue(key, self._clock())
        self._ended.set()

    def pause(self) -> None:
        """Hand out no more keys, but accept adds. Keys in work are finished (see ``drain``)."""
        self._paused = True

    def resume(self) -> None:
        """Hand out again."""
        self._paused = False
        self._progress = self._clock()
        self._wake(len(self._waiters))

    def close(self) -> None:
        """Every ``get`` raises QueueClosed, adds are ignored."""
        self._closed = True
        self._wake(len(self._waiters))

    async def drain(self, limit: float, of: Callable[[K], bool] = lambda key: True) -> bool:
        """Wait until none of these keys is in work; see to it first that none of them is handed
        out. False when ``limit`` seconds were not enough.
        """
        try:
            async with asyncio.timeout(limit):
                while any(map(of, self._processing)):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def stalled_for(self) -> float:
        """How long the workers show no life: the age of the oldest key in work, or since a key
        could have been taken and none was.
        """
        now = self._clock()
        self._promote()
        ages = [now - since for since in self._processing.values()]
        if self._ready and not self._paused:
            ages.append(now - self._progress)
        return max(ages, default=0.0)

    def _add(self, key: K, since: float) -> None:
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        self._on_add()
        if key not in self._processing:
            self._enqueue(key, since)

    def _enqueue(self, key: K, since: float) -> None:
        if not self._ready:
            self._progress = since
        self._ready.setdefault(self._lane(key), deque()).append(key)
        self._wake()

    def _promote(self) -> None:
        now = self._clock()
        while self._heap and (self._heap[0][0] <= now or self._due.get(self._heap[0][2]) != self._heap[0][0]):
            when, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == when:
                del self._due[key]
                self._add(key, when)

    def _wake(self, count: int = 1) -> None:
        while self._waiters and count > 0:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1


async def run_workers(queue: WorkQueue[K], count: int, process: Callable[[K], Awaitable[None]]) -> None:
    """Work the queue with ``count`` workers until it is closed. ``process`` requeues and forgets;
    what it raises is logged and retried.
    """

    async def worker() -> None:
        while True:
            try:
                key = await queue.get()
            except QueueClosed:
                return
            try:
                await process(key)
            except Exception:
                log.exception("the pass over %s failed unexpectedly", key)
                queue.add_rate_limited(key)
            finally:
                queue.done(key)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(worker())
