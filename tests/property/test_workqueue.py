"""The work queue against a model of it: never twice at once, nothing lost, nothing double, delays
and back-off within bounds, and lanes in turn.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelrollout.controller.workqueue import WorkQueue

pytestmark = pytest.mark.heavy

ALL = ("a1", "a2", "a3", "b1", "b2", "c1")  # the lane is the letter
KEYS = st.sampled_from(ALL)
SECONDS = st.floats(0.01, 100)


class QueueMachine(RuleBasedStateMachine):
    """``ready``: has to come out (again); ``due``: has to come out at that time; ``working``:
    handed out and not done; ``passed``: how often each lane was served while another one waited.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.draw = 0.0
        self.queue: WorkQueue[str] = WorkQueue(
            clock=lambda: self.now, uniform=lambda: self.draw, lane=lambda key: key[0]
        )
        self.passed: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.ready: list[str] = []
        self.due: dict[str, float] = {}
        self.working: list[str] = []
        self.failures: dict[str, int] = {}

    def _ripen(self) -> None:
        for key, when in sorted(self.due.items(), key=lambda item: item[1]):
            if when <= self.now:
                del self.due[key]
                if key not in self.ready:
                    self.ready.append(key)

    def _delay(self, key: str, seconds: float) -> None:
        self._ripen()
        self.due[key] = min(self.now + seconds, self.due.get(key, float("inf")))

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self._ripen()
        self.queue.add(key)
        if key not in self.ready:
            self.ready.append(key)

    @rule(key=KEYS, seconds=SECONDS)
    def add_after(self, key: str, seconds: float) -> None:
        self.queue.add_after(key, seconds)
        self._delay(key, seconds)

    @rule(key=KEYS, draw=st.floats(0, 1, exclude_max=True))
    def fail(self, key: str, draw: float) -> None:
        self.draw = draw
        delay = self.queue.add_rate_limited(key)
        failures = self.failures.get(key, 0)
        ceiling = min(60.0, 0.5 * 2**failures)
        assert ceiling / 2 <= delay <= ceiling
        self.failures[key] = failures + 1
        self._delay(key, delay)

    @rule(key=KEYS)
    def succeed(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def get(self) -> None:
        self._ripen()
        free = [key for key in self.ready if key not in self.working]
        key = self.queue.get_nowait()
        if self.queue.paused or not free:
            assert key is None
            return
        assert key is not None, "a key that is wanted was not handed out"
        assert key not in self.working, "handed out twice at once"
        assert key in self.ready, "handed out though it was not ready"
        self.ready.remove(key)
        self.working.append(key)
        waiting = {k[0] for k in free} - {key[0]}
        self.passed = defaultdict(Counter, {lane: self.passed[lane] for lane in waiting})
        for lane in waiting:
            self.passed[lane][key[0]] += 1
            assert self.passed[lane][key[0]] == 1, f"{lane} waits for two keys of {key[0]}"

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.working))
        self.working.remove(key)
        self.queue.done(key)

    @rule()
    def pause(self) -> None:
        self.queue.pause()

    @rule()
    def resume(self) -> None:
        self.queue.resume()

    @invariant()
    def counts_agree(self) -> None:
        for key in ALL:
            assert self.queue.failures(key) == self.failures.get(key, 0)
        assert len(self.queue) <= len(set(ALL) - set(self.working))

    def teardown(self) -> None:
        """Nothing is lost: everything wanted or delayed comes out in the end, once."""
        self.queue.resume()
        for key in self.working:
            self.queue.done(key)
        self.now += 1000
        self._ripen()
        rest = []
        while (left := self.queue.get_nowait()) is not None:
            rest.append(left)
            self.queue.done(left)
        assert sorted(rest) == sorted(self.ready)


TestQueue = QueueMachine.TestCase


@given(st.lists(st.tuples(KEYS, SECONDS), min_size=1))
def test_delayed_keys_come_in_the_order_of_their_earliest_times(delays: list[tuple[str, float]]) -> None:
    now = 0.0
    queue: WorkQueue[str] = WorkQueue(clock=lambda: now)
    earliest: dict[str, float] = {}
    for key, seconds in delays:
        queue.add_after(key, seconds)
        earliest[key] = min(seconds, earliest.get(key, seconds))
    for key, seconds in sorted(earliest.items(), key=lambda item: item[1]):
        now = max(now, seconds * (1 - 1e-9))
        early = queue.get_nowait()
        assert early is None or earliest[early] <= now
        now = seconds
        ready = early or queue.get_nowait()
        assert ready is not None
        assert earliest[ready] == earliest[key]


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_any_number_of_keys_of_one_lane_holds_up_another_by_one(count: int, before: int) -> None:
    queue: WorkQueue[tuple[str, int]] = WorkQueue(lane=lambda key: key[0])
    for n in range(count):
        queue.add(("broken", n))
    for _ in range(min(before, count)):
        queue.get_nowait()
    queue.add(("fine", 0))
    assert ("fine", 0) in (queue.get_nowait(), queue.get_nowait())


@given(st.integers(0, 5000))
def test_back_off_survives_any_number_of_failures(failures: int) -> None:
    queue: WorkQueue[str] = WorkQueue(uniform=lambda: 0.5)
    queue._failures["a"] = failures
    assert 0.25 < queue.add_rate_limited("a") <= 60
