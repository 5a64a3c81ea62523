"""Queries of namespaces' own: one at a time for each, in the background, and not at all for a while
after one that took too long.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.backoff import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    Pause,
    after_trouble,
)
from modelrollout.analysis.providers.prometheus.namespace_queries import (
    FRESH_SECONDS,
    MAX_SERIES,
    MOST_WAITING,
    RETENTION_SECONDS,
    OwnQueries,
)

SLOW = MeasurementProblem("ProviderTimeout", "slow")


def test_pauses_double_up_to_a_bound_and_are_forgotten_after_as_long_without_trouble() -> None:
    pause, now, lengths = None, 1000.0, []
    for _ in range(6):
        pause = after_trouble(pause, now)
        lengths.append(pause.seconds)
        assert pause.holds(now) and not pause.holds(pause.until)
        now = pause.until
    assert lengths == [30, 60, 120, 240, 300, 300] and lengths[-1] == LONGEST_SECONDS
    assert pause is not None and after_trouble(pause, pause.until + pause.seconds).seconds == FIRST_SECONDS


def test_a_clock_that_is_set_back_lengthens_no_pause() -> None:
    pause = Pause(1030.0, 30.0)
    assert pause.holds(1001) and not pause.holds(900) and pause.forgotten(900)


class Prometheus:
    """Answers a query when its ``gate`` is open; says how many are asked at a time."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.answers: dict[str, Answer | MeasurementProblem] = {}
        self.asked: list[str] = []
        self.now_asked, self.most_asked = 0, 0
        self._lock = threading.Lock()

    def hang(self, query: str) -> None:
        self.gates[query] = threading.Event()

    def query(self, query: str) -> Answer | MeasurementProblem:
        with self._lock:
            self.asked.append(query)
            self.now_asked += 1
            self.most_asked = max(self.most_asked, self.now_asked)
        if query in self.gates:
            self.gates[query].wait(20)
        with self._lock:
            self.now_asked -= 1
        return self.answers.get(query, Answer((Series({}, 1.0, 0),)))


@pytest.fixture
def prometheus() -> Prometheus:
    return Prometheus()


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def own(prometheus: Prometheus) -> AsyncIterator[OwnQueries]:
    made = OwnQueries("main", prometheus.query, patience=0.2, now=Clock())
    yield made
    for gate in prometheus.gates.values():
        gate.set()
    made.close()


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if look():
                return
            await asyncio.sleep(0.01)


async def test_a_quick_answer_is_there_at_once(own: OwnQueries, prometheus: Prometheus) -> None:
    prometheus.answers["b"] = MeasurementProblem("QueryRejected", "no")
    answers = await own.query("ours", {"1": "a", "2": "b"})
    assert answers == {"1": Answer((Series({}, 1.0, 0),)), "2": MeasurementProblem("QueryRejected", "no")}
    assert await own.query("ours", {}) == {}


async def test_a_slow_answer_is_for_the_next_look_and_no_pass_waits_for_it(
    own: OwnQueries, prometheus: Prometheus
) -> None:
    prometheus.hang("slow")
    began = time.monotonic()
    answers = await own.query("ours", {"1": "slow"})
    assert isinstance(answers["1"], MeasurementProblem) and answers["1"].reason == "QueryPending"
    assert time.monotonic() - began < 1
    again = time.monotonic()
    assert isinstance((await own.query("ours", {"1": "slow", "2": "quick"}))["2"], MeasurementProblem), (
        "behind the slow one"
    )
    assert time.monotonic() - again < 0.1, "a namespace that is busy holds up no second look"
    prometheus.gates["slow"].set()
    await until(lambda: not own._tasks["ours"])
    assert prometheus.asked == ["slow", "quick"], "asked once"
    prometheus.hang("slow")
    assert isinstance((await own.query("ours", {"1": "slow"}))["1"], Answer), "what came since the last look"


async def test_one_at_a_time_for_a_namespace_and_two_in_all(own: OwnQueries, prometheus: Prometheus) -> None:
    for query in "abcdef":
        prometheus.hang(query)
    await asyncio.gather(
        own.query("one", {"1": "a", "2": "b", "3": "c"}),
        own.query("two", {"1": "d"}),
        own.query("three", {"1": "e"}),
    )
    assert sorted(prometheus.asked) == ["a", "d"] and prometheus.most_asked == 2
    prometheus.gates["d"].set()
    await until(lambda: "e" in prometheus.asked)
    assert "b" not in prometheus.asked, "the first of its namespace is not done"


async def test_what_takes_too_long_pauses_its_namespace_and_no_other(
    own: OwnQueries, prometheus: Prometheus
) -> None:
    clock = own._now
    assert isinstance(clock, Clock)
    prometheus.answers["slow"] = SLOW
    answers = await own.query("ours", {"1": "slow", "2": "x"})
    assert answers["1"] == SLOW
    paused = answers["2"]
    assert isinstance(paused, MeasurementProblem) and paused.reason == "QueriesPaused"
    assert (
        "namespace ours" in paused.message
        and "until 08:00:30 UTC" in paused.message
        and "cheaper" in paused.message
    )
    assert prometheus.asked == ["slow"]
    assert isinstance((await own.query("others", {"1": "x"}))["1"], Answer)
    clock.now += 30
    prometheus.answers["slow"] = MeasurementProblem("ProviderError", "it died")
    assert (await own.query("ours", {"1": "slow"}))["1"] == MeasurementProblem("ProviderError", "it died")
    clock.now += 59
    assert (
        isinstance((again := (await own.query("ours", {"2": "x"}))["2"]), MeasurementProblem)
        and again.reason == "QueriesPaused"
    ), "for twice as long"
    clock.now += 1
    assert isinstance((await own.query("ours", {"2": "x"}))["2"], Answer)


async def test_a_wrong_query_pauses_nothing(own: OwnQueries, prometheus: Prometheus) -> None:
    prometheus.answers["wrong"] = MeasurementProblem("QueryRejected", "no")
    assert isinstance((await own.query("ours", {"1": "wrong", "2": "x"}))["2"], Answer)


async def test_an_answer_that_is_old_serves_once(own: OwnQueries, prometheus: Prometheus) -> None:
    clock = own._now
    assert isinstance(clock, Clock)
    await own.query("ours", {"1": "x"})
    prometheus.hang("x")
    for _ in range(2):
        assert isinstance((await own.query("ours", {"1": "x"}))["1"], Answer), "a second look within moments"
    clock.now += FRESH_SECONDS + 1
    assert isinstance((await own.query("ours", {"1": "x"}))["1"], Answer)
    assert isinstance((await own.query("ours", {"1": "x"}))["1"], MeasurementProblem)


async def test_memory_is_bounded(own: OwnQueries, prometheus: Prometheus) -> None:
    clock = own._now
    assert isinstance(clock, Clock)
    prometheus.answers["many"] = Answer(tuple(Series({"i": str(i)}, 1.0, 0) for i in range(1000)))
    answer = (await own.query("ours", {"1": "many"}))["1"]
    assert isinstance(answer, Answer) and len(answer.series) == MAX_SERIES
    prometheus.hang("stuck")
    await own.query("busy", {str(i): "stuck" for i in range(2 * MOST_WAITING)})
    assert len(own._tasks["busy"]) == MOST_WAITING
    clock.now += RETENTION_SECONDS + 1
    await own.query("others", {"1": "x"})
    assert "ours" not in own._answers and "busy" in own._tasks
