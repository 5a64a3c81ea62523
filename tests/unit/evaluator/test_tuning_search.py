"""The search for a serving configuration, on a server that is a formula."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from modelrollout.contract.common import ServingConfig
from modelrollout.evaluator.tuning.search import (
    MARGIN,
    CandidateFailed,
    Load,
    Space,
    Trial,
    beats,
    climb,
    compare,
    space,
    sweep,
)

OBJECTIVE = 50.0
BATCHED = space((1, 2, 4), 32, OBJECTIVE)


def always() -> bool:
    return True


@dataclass
class Formula:
    """Computing n rows takes ``call + n * row`` milliseconds; instances share ``cores``. ``noise``:
    share by which a measurement may be wrong.
    """

    call: float = 4.0
    row: float = 0.1
    cores: int = 2
    noise: float = 0.0
    breaks: Callable[[ServingConfig], bool] = lambda serving: False
    asked: list[tuple[ServingConfig, int]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def __call__(self, serving: ServingConfig, in_flight: int) -> Load:
        self.asked.append((serving, in_flight))
        if self.breaks(serving):
            raise CandidateFailed("Failed: out of memory")
        busy = min(serving.instances, self.cores)
        rows = max(1, min(serving.batch or 1, in_flight // serving.instances))
        each = (self.call + rows * self.row) * max(1.0, serving.instances / self.cores)
        rate = (
            busy * rows / each * 1e3
            if serving.instances <= self.cores
            else self.cores * rows / (self.call + rows * self.row) * 1e3
        )
        latency = max(each, in_flight / rate * 1e3) + serving.queue_delay_us / 1e3
        wrong = self.rng.uniform(1 - self.noise, 1 + self.noise)
        return Load(in_flight, min(rate, in_flight / latency * 1e3) * wrong, latency * 1.2)


def searched(
    server: Formula, start: ServingConfig | None = None, settings: Space = BATCHED
) -> tuple[Trial, Trial, list[Trial]]:
    told: list[Trial] = []
    configured, best = climb(start or ServingConfig(), settings, server, OBJECTIVE, always, told.append)
    return configured, best, told


def test_a_server_that_gains_by_joining_requests_gets_batches_and_instances() -> None:
    configured, best, told = searched(Formula())
    assert configured.serving == ServingConfig() and best.serving.batch == 32 and best.serving.instances == 2
    assert best.load and configured.load and best.load.throughput > 10 * configured.load.throughput
    assert best.within and best.load.latency_ms <= OBJECTIVE
    assert len(told) == len({t.serving for t in told}) < 40, "each candidate once"


def test_the_best_is_that_of_the_whole_grid() -> None:
    _, best, _ = searched(Formula(call=1.0, row=0.5, cores=2))
    grid = [
        ServingConfig(instances=i, batch=b, queue_delay_us=d)
        for i in BATCHED.instances
        for b in BATCHED.batches
        for d in BATCHED.delays_us
    ]
    loads = [sweep(s, Formula(call=1.0, row=0.5, cores=2), OBJECTIVE, 1, always).load for s in grid]
    assert best.load and best.load.throughput >= max(load.throughput for load in loads if load) * (
        1 - 2 * MARGIN
    )


def test_noise_does_not_choose() -> None:
    """Where nothing matters, what is configured stays, however often the search is repeated."""

    class Flat(Formula):
        def __call__(self, serving: ServingConfig, in_flight: int) -> Load:
            return Load(in_flight, 100 * self.rng.uniform(0.98, 1.02), 20.0)

    for seed in range(20):
        configured, best, _ = searched(Flat(rng=random.Random(seed)))
        assert best is configured


def test_a_candidate_under_which_the_server_dies_is_failed_and_the_rest_goes_on() -> None:
    server = Formula(breaks=lambda s: s.instances == 2)
    configured, best, told = searched(server)
    assert best.serving.batch == 32 and best.serving.instances == 1
    failed = [t for t in told if t.load is None]
    assert failed and all(t.serving.instances == 2 and t.problem == "Failed: out of memory" for t in failed)
    assert configured.load is not None


def test_a_configuration_that_fails_is_beaten_by_one_that_does_not() -> None:
    _, best, _ = searched(Formula(breaks=lambda s: s.batch == 0))
    assert best.load is not None and best.serving.batch > 0


def test_an_objective_that_nothing_keeps_to_leaves_what_is_configured() -> None:
    configured, best, told = searched(Formula(call=80.0))
    assert best is configured and not best.within and best.load is not None
    assert len(told) > 1, "others were tried"


def test_the_time_limit_ends_the_search_and_what_was_found_counts() -> None:
    server, left = Formula(), iter([True] * 30)
    told: list[Trial] = []
    configured, best = climb(
        ServingConfig(), BATCHED, server, OBJECTIVE, lambda: next(left, False), told.append
    )
    whole = searched(Formula())[2]
    assert 1 <= len(told) < len(whole)
    assert configured.load is not None and best.load is not None


def test_without_batches_only_instances_are_tried() -> None:
    settings = space((1, 2, 4), 0, OBJECTIVE)
    assert settings.batches == (0,)
    _, best, told = searched(Formula(), settings=settings)
    assert {t.serving.batch for t in told} == {0} and best.serving.instances == 2


def test_the_space_keeps_to_the_largest_request_and_to_the_objective() -> None:
    assert space((4, 1, 1), 24, 2.0) == Space((1, 4), (0, 2, 4, 8, 16, 24), (0, 200, 500, 1000))
    assert space((1,), 1, 50.0).batches == (0,)


def test_a_delay_goes_with_the_batches() -> None:
    """Joining nothing and waiting for others is one configuration, not ten."""
    at = ServingConfig(instances=1, batch=2, queue_delay_us=500)
    settings = list(BATCHED.neighbours(at))
    assert ServingConfig() in settings and all(s.queue_delay_us == 0 for s in settings if s.batch == 0)


@pytest.mark.parametrize("start", [1, 4, 64, 512])
def test_a_sweep_finds_the_same_load_from_wherever_it_starts(start: int) -> None:
    trial = sweep(ServingConfig(batch=32), Formula(call=10, row=1), OBJECTIVE, start, always)
    assert trial.within and trial.load and 20 <= trial.load.in_flight <= 48


def test_one_burst_of_something_else_does_not_end_a_sweep() -> None:
    server = Formula()
    calls = iter(range(10**6))

    def measure(serving: ServingConfig, in_flight: int) -> Load:
        load = server(serving, in_flight)
        return Load(in_flight, load.throughput, 1e4) if next(calls) == 2 else load

    assert sweep(ServingConfig(batch=32), measure, OBJECTIVE, 1, always) == sweep(
        ServingConfig(batch=32), Formula(), OBJECTIVE, 1, always
    )


def test_a_comparison_takes_turns_and_medians() -> None:
    a, b = (Trial(ServingConfig(instances=n), Load(4, 100, 10), True) for n in (1, 2))
    rates = iter([100, 110, 500, 111, 101, 10])
    order: list[int] = []

    def measure(serving: ServingConfig, in_flight: int) -> Load:
        order.append(serving.instances)
        return Load(in_flight, next(rates), 10)

    first, second = compare(a, b, measure, OBJECTIVE, always)
    assert order == [1, 2] * 3
    assert first.load and second.load and (first.load.throughput, second.load.throughput) == (101, 110)


@pytest.mark.parametrize(
    ("challenger", "best", "wins"),
    [
        (
            Trial(ServingConfig(), Load(1, 104, 10), True),
            Trial(ServingConfig(), Load(1, 100, 10), True),
            False,
        ),
        (
            Trial(ServingConfig(), Load(1, 106, 10), True),
            Trial(ServingConfig(), Load(1, 100, 10), True),
            True,
        ),
        (Trial(ServingConfig(), Load(1, 900, 60)), Trial(ServingConfig(), Load(1, 100, 10), True), False),
        (Trial(ServingConfig(), Load(1, 10, 10), True), Trial(ServingConfig(), Load(1, 900, 60)), True),
        (Trial(ServingConfig(), Load(1, 10, 10), True), Trial(ServingConfig(), None, problem="x"), True),
        (Trial(ServingConfig(), None, problem="x"), Trial(ServingConfig(), None, problem="x"), False),
    ],
)
def test_who_wins(challenger: Trial, best: Trial, wins: bool) -> None:
    assert beats(challenger, best) is wins
