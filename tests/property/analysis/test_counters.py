"""Whatever processes do (restart, vanish, come back, appear) and however scrapes arrive, no request
is invented, and none lost that could be seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.analysis.counters import Raw, Sample, fold
from modelrollout.api.v1alpha1 import Counter

PROCESSES = ("a", "b", "c", "d")


@dataclass
class World:
    """Processes with their true counters, and what a Prometheus that scrapes when told has of
    them.
    """

    now: float = 1000.0
    true: dict[str, tuple[int, int]] = field(default_factory=dict)
    scraped: dict[str, Sample] = field(default_factory=dict)
    history: list[Raw] = field(default_factory=list)

    def serve(self, process: str, good: int, bad: int) -> None:
        total, wrong = self.true.get(process, (0, 0))
        self.true[process] = (total + good + bad, wrong + bad)

    def restart(self, process: str) -> None:
        if process in self.true:
            self.true[process] = (0, 0)

    def scrape(self, process: str) -> None:
        self.now += 1
        if process in self.true:
            self.scraped[process] = Sample(*self.true[process], self.now)

    def vanish(self, process: str) -> None:
        self.scraped.pop(process, None)

    def look(self) -> Raw:
        raw = Raw(dict(self.scraped))
        self.history.append(raw)
        return raw


process = st.sampled_from(PROCESSES)
few = st.integers(0, 50)
step = st.one_of(
    st.tuples(st.just("serve"), process, few, few),
    st.tuples(st.just("restart"), process),
    st.tuples(st.just("scrape"), process),
    st.tuples(st.just("vanish"), process),
    st.tuples(st.just("look")),
    st.tuples(st.just("old"), st.integers(1, 5)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(step, max_size=60))
def test_never_more_than_was_served_since_the_baseline(steps: list[tuple[object, ...]]) -> None:
    world, counter = World(), fold(None, Raw())
    served = wrong = 0
    for name, *arguments in steps:
        if name == "look":
            counter = fold(counter, world.look())
        elif name == "old":  # an earlier look arrives again, as from a second Prometheus
            index = int(str(arguments[0]))
            if len(world.history) >= index:
                counter = fold(counter, world.history[-index])
        else:
            getattr(world, str(name))(*arguments)
            if name == "serve":
                served += int(str(arguments[1])) + int(str(arguments[2]))
                wrong += int(str(arguments[2]))
        assert 0 <= counter.bad <= counter.total <= served
        assert counter.bad <= wrong
        assert counter.total - counter.bad <= served - wrong


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.tuples(st.just("serve"), process, few, few), st.tuples(st.just("restart"), process)),
        max_size=40,
    ),
    st.data(),
)
def test_everything_is_counted_when_each_scrape_is_seen(
    steps: list[tuple[object, ...]], data: st.DataObject
) -> None:
    world = World()
    for p in data.draw(st.sets(process)):  # these were there before the baseline, with a past
        world.serve(p, 1000, 10)
        world.scrape(p)
    counter = fold(None, world.look())
    assert counter.total == 0
    served = wrong = 0
    for name, *arguments in steps:
        if name == "restart":
            world.restart(str(arguments[0]))
            # at 0: a restart is seen even where the new counters would pass the old
            world.scrape(str(arguments[0]))
        else:
            p, good, bad = str(arguments[0]), int(str(arguments[1])), int(str(arguments[2]))
            world.serve(p, good, bad)
            served, wrong = served + good + bad, wrong + bad
            world.scrape(p)
        counter = fold(counter, world.look())
    assert (counter.total, counter.bad) == (served, wrong)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(process, st.tuples(few, few, st.integers(1, 9)), max_size=4),
    st.dictionaries(process, st.tuples(few, few, st.integers(1, 9)), max_size=4),
)
def test_the_same_look_twice_is_one_look(
    first: dict[str, tuple[int, int, int]], second: dict[str, tuple[int, int, int]]
) -> None:
    def raw(values: dict[str, tuple[int, int, int]]) -> Raw:
        return Raw({p: Sample(good + bad, bad, time) for p, (good, bad, time) in values.items()})

    once = fold(fold(None, raw(first)), raw(second))
    again = fold(once, raw(second))
    assert again is once
    assert Counter.model_validate_json(once.model_dump_json()) == once  # it lives in status


@given(st.sampled_from([math.nan, -1.0, math.inf]), st.booleans())
def test_what_no_counter_can_be_is_refused(value: float, as_bad: bool) -> None:
    with pytest.raises(ValueError, match="counter"):
        Sample(100.0 if as_bad else value, value if as_bad else 0.0, 1.0)


def test_counters_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        Sample(5, 6, 1.0)


def test_no_series_at_the_baseline_is_a_baseline_of_nothing() -> None:
    baseline = fold(None, Raw())
    assert fold(baseline, Raw({"new": Sample(7, 2, 5.0)})).total == 7


def test_a_process_of_before_the_baseline_counts_from_there() -> None:
    baseline = fold(None, Raw({"old": Sample(1_000_000, 40_000, 5.0)}))
    after = fold(baseline, Raw({"old": Sample(1_000_010, 40_001, 7.0)}))
    assert (after.total, after.bad, after.scraped) == (10, 1, 7.0)


def test_an_older_scrape_of_one_process_beside_a_newer_of_another_is_no_restart() -> None:
    counter = fold(fold(None, Raw()), Raw({"a": Sample(500, 0, 20.0), "b": Sample(10, 0, 15.0)}))
    other_server = Raw({"a": Sample(480, 0, 18.0), "b": Sample(12, 0, 22.0)})
    assert fold(counter, other_server).total == 512


def test_a_vanished_process_keeps_its_counts_and_its_place() -> None:
    counter = fold(fold(None, Raw()), Raw({"a": Sample(100, 3, 1.0)}))
    gone = fold(counter, Raw({"b": Sample(1, 0, 2.0)}))
    assert (gone.total, gone.bad) == (101, 3)
    assert fold(gone, Raw({"a": Sample(105, 3, 3.0)})).total == 106


def test_a_restart_shows_in_any_of_the_counters() -> None:
    counter = fold(fold(None, Raw()), Raw({"a": Sample(100, 90, 1.0)}))
    assert fold(counter, Raw({"a": Sample(120, 0, 2.0)})).total == 220
    counter = fold(fold(None, Raw()), Raw({"a": Sample(100, 10, 1.0)}))
    assert fold(counter, Raw({"a": Sample(120, 100, 2.0)})).total == 220


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.booleans()), min_size=2, max_size=40),
    st.floats(-4.0, 4.0),
    st.integers(1000, 5000),
)
def test_two_servers_that_answer_in_turns_count_every_request_once(
    seconds: list[tuple[int, int, bool]], skew: float, past: int
) -> None:
    """Each second some requests, and an answer of one of two servers: what it scraped up to three
    seconds ago, dated by its clock, which is wrong for the second one.
    """
    totals, now, counter = [past] * 4, 1000.0, fold(None, Raw({"a": Sample(past, 10, 1000.0)}))
    for requests, ago, by_second in seconds:
        now = now + 1
        totals.append(totals[-1] + requests)
        counter = fold(counter, Raw({"a": Sample(totals[-1 - ago], 10, now - ago + skew * by_second)}))
        assert counter.total <= totals[-1] - past and counter.bad == 0
    counter = fold(counter, Raw({"a": Sample(totals[-1], 10, now + 10)}))
    assert counter.total == totals[-1] - past


@pytest.mark.parametrize(
    ("sample", "counted"),
    [
        (Sample(960, 4, 104.0), 0),  # the other server's
        (Sample(960, 4, 106.0), 960),  # as late as this it is a restart
        (Sample(890, 4, 104.0), 890),  # and so is less than nine tenths
        (Sample(1010, 4, 104.0), 10),
    ],
)
def test_a_step_back_is_told_from_a_restart(sample: Sample, counted: int) -> None:
    counter = fold(None, Raw({"a": Sample(1000, 4, 100.0)}))
    assert fold(counter, Raw({"a": sample})).total == counted
