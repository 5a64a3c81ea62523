"""However many processes there are: status stays small, and no request is counted twice."""

from __future__ import annotations

import json
import random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.analysis import process_groups
from modelrollout.analysis.counters import Cold, Raw, Sample, fold
from modelrollout.analysis.process_groups import FOLLOWED, GROUPS, fold_all
from modelrollout.api.v1alpha1 import Counter


def look(scraped: float, **true: tuple[int, int]) -> Raw:
    return Raw({p: Sample(t, b, scraped) for p, (t, b) in true.items()})


def fleet(count: int, total: int, bad: int, scraped: float) -> Raw:
    return Raw({f"10.42.{i // 250}.{i % 250}:9100/http": Sample(total, bad, scraped) for i in range(count)})


def test_few_processes_are_counted_as_ever() -> None:
    counter: Counter | None = None
    other: Counter | None = None
    for turn in range(1, 5):
        raw = fleet(FOLLOWED, 10 * turn, turn, turn)
        counter, other = fold_all(counter, raw), fold(other, raw)
        assert counter == other


def test_a_thousand_gateways_are_all_counted_and_take_little_room() -> None:
    first = fold_all(None, fleet(1000, 500, 5, 1))
    assert (first.total, len(first.last)) == (0, FOLLOWED + GROUPS)
    second = fold_all(first, fleet(1000, 510, 6, 2))
    assert (second.total, second.bad, second.scraped) == (10_000, 1000, 2)
    assert fold_all(second, fleet(1000, 510, 6, 2)) is second
    assert len(json.dumps(second.wire())) < 5 * 1024


def test_a_group_counts_only_between_two_looks_at_the_same_members() -> None:
    first = fold_all(None, fleet(1000, 500, 5, 1))
    more = fold_all(first, fleet(1001, 600, 5, 2))
    assert FOLLOWED * 100 <= more.total < 1000 * 100, "the group of the newcomer begins anew"
    after = fold_all(more, fleet(1001, 601, 5, 3))
    assert after.total - more.total == 1001


def test_a_restart_within_a_group_counts_nothing_of_it_again() -> None:
    first = fold_all(None, fleet(1000, 500, 5, 1))
    restarted = dict(fleet(1000, 501, 5, 2).processes)
    for process in list(restarted)[FOLLOWED + 1 :]:
        restarted[process] = Sample(0, 0, 2)
    assert fold_all(first, Raw(restarted)).total <= 1000


def test_a_group_waits_until_every_member_was_scraped_anew() -> None:
    """Behind two Prometheus servers older scrapes of some members arrive with newer ones of
    others.
    """
    first = fold_all(None, fleet(1000, 500, 5, 10))
    mixed = {
        p: s if i % 2 else Sample(510, 5, 20)
        for i, (p, s) in enumerate(fleet(1000, 500, 5, 10).processes.items())
    }
    halfway = fold_all(first, Raw(mixed))
    assert 0 < halfway.total <= 10 * FOLLOWED, "only of those that are followed one by one"
    assert fold_all(halfway, fleet(1000, 510, 5, 21)).total == 10_000


event = st.tuples(
    st.sampled_from(["serve", "restart", "vanish", "appear", "scrape", "stale"]),
    st.integers(0, 11),
    st.integers(1, 9),
)


@pytest.mark.heavy
@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(event, max_size=8), max_size=12), st.randoms(use_true_random=False))
def test_no_request_is_ever_counted_twice(
    turns: list[list[tuple[str, int, int]]], rng: random.Random
) -> None:
    """The true number of requests since the first look is never exceeded, whatever processes do and
    however old a scrape is.
    """
    served = bad = 0
    true: dict[str, tuple[int, int]] = {f"p{i}": (10 * i, i) for i in range(9)}
    seen: dict[str, list[Sample]] = {}
    counter: Counter | None = None
    with patch.object(process_groups, "FOLLOWED", 3), patch.object(process_groups, "GROUPS", 2):
        for now, turn in enumerate([[], *turns], start=1):
            stale = False
            for what, index, amount in turn:
                name = f"p{index}"
                if what == "serve" and name in true:
                    total, wrong = true[name]
                    true[name] = (total + amount, wrong + amount // 3)
                    served, bad = served + amount, bad + amount // 3
                elif what == "restart" and name in true:
                    true[name] = (0, 0)
                elif what == "vanish":
                    true.pop(name, None)
                    seen.pop(name, None)
                elif what == "appear":
                    true.setdefault(name, (0, 0))
                elif what == "stale":
                    stale = True
            for name, (total, wrong) in true.items():
                seen.setdefault(name, []).append(Sample(total, wrong, now))
            raw = {name: rng.choice(samples[-2:]) if stale else samples[-1] for name, samples in seen.items()}
            counter = fold_all(counter, Raw(raw))
            assert counter.total <= served and counter.bad <= bad
            assert len(counter.last) <= 5


def test_while_pods_are_cold_nothing_is_counted_and_afterwards_the_rest_is() -> None:
    """A pod becomes ready at 100 and is cold until 130."""
    cold, counter = Cold(100, 130), fold_all(None, look(90, a=(1000, 10), b=(50, 5)))
    before = fold_all(counter, look(99, a=(1100, 11), b=(50, 5)), cold)
    assert (before.total, before.bad, before.began) == (100, 1, 90), "what came before the pod counts"
    assert fold_all(before, look(115, a=(1500, 400)), cold) is before
    again = fold_all(before, look(131, a=(2000, 800), c=(70, 7)), cold)
    assert (again.total, again.bad, again.began, again.scraped) == (100, 1, 131, 131)
    after = fold_all(again, look(140, a=(2200, 802), c=(80, 7), b=(60, 5)), cold)
    assert (after.total, after.bad) == (320, 3), "b was away, and had counted 50 before"


def test_counting_that_began_when_all_were_warm_goes_on() -> None:
    counter = fold_all(None, look(200, a=(10, 1)), Cold(100, 130))
    assert fold_all(counter, look(205, a=(20, 1), b=(5, 0)), Cold(100, 130)).total == 15


def test_a_look_that_shows_no_process_ends_no_cold_time() -> None:
    counter = fold_all(None, look(90, a=(1000, 10)))
    cold = Cold(100, 130)
    assert fold_all(counter, Raw(), cold) is counter
    assert fold_all(fold_all(counter, Raw(), cold), look(120, a=(1500, 400)), cold).total == 0


def test_a_side_without_requests_so_far_counts_from_its_first() -> None:
    counter = fold_all(None, Raw(), Cold(100, 130))
    assert fold_all(counter, look(140, a=(7, 2)), Cold(100, 130)).total == 7


def test_a_fleet_that_was_cold_takes_no_more_room() -> None:
    first = fold_all(None, fleet(1000, 500, 5, 90))
    again = fold_all(first, fleet(990, 700, 5, 140), Cold(100, 130))
    assert (again.total, len(again.last)) == (0, FOLLOWED + GROUPS)
    assert fold_all(again, fleet(990, 710, 5, 150), Cold(100, 130)).total == 9900
