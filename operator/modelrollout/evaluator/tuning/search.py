"""Which serving configuration of a model is best for a latency objective: the search, with the
measuring handed in.

A configuration is measured by requests of one sample each, a number of them always in flight (a
closed loop, as perf_analyzer does), at numbers that double until latency breaks the objective or
throughput no longer grows. What counts is the highest throughput within the objective. The search
climbs from the configured settings, one change at a time, for a full grid would take hours; a
challenger must beat the present best by a margin, in turns with it, so that noise does not choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from modelrollout.contract.common import ServingConfig

MARGIN = 0.05  # share of throughput by which a challenger must be better
GROWTH = 0.03  # more requests in flight that bring less than this bring nothing but latency
PATIENCE = 2  # so many such steps end the sweep; one may be noise
MAX_IN_FLIGHT = 1024
ROUNDS = 3  # of a comparison in turns
DELAYS_US = (0, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
# of the objective: a request that waits longer than that has no time left to be computed
DELAY_SHARE = 0.5


@dataclass(frozen=True)
class Load:
    """One measurement. ``latency_ms``: the latency within which the requested share of the requests
    was answered; it is compared with the objective.
    """

    in_flight: int
    throughput: float  # samples a second
    latency_ms: float


@dataclass(frozen=True)
class Trial:
    """A configuration at its best number of requests in flight; ``problem``: why it has none."""

    serving: ServingConfig
    load: Load | None
    within: bool = False
    problem: str | None = None

    @property
    def worth(self) -> tuple[bool, float]:
        """What trials are ranked by: throughput within the objective; where none is within it, low
        latency.
        """
        if self.load is None:
            return False, float("-inf")
        return (True, self.load.throughput) if self.within else (False, -self.load.latency_ms)


# with so many requests in flight; raises CandidateFailed
Measure = Callable[[ServingConfig, int], Load]
TimeLeft = Callable[[], bool]


class CandidateFailed(Exception):
    """The server does not load the configuration, or fails its requests: out of memory, say."""


@dataclass(frozen=True)
class Space:
    """The settings that may be chosen, each in order; ``batches`` of (0,) where requests cannot be
    joined.
    """

    instances: tuple[int, ...]
    batches: tuple[int, ...]
    delays_us: tuple[int, ...]

    def neighbours(self, at: ServingConfig) -> Iterator[ServingConfig]:
        """One setting changed by one place, batches also to their ends: the smallest gain little
        where the largest gain most. A delay means something only where requests are joined.
        """
        for batch in dict.fromkeys([*_ends(self.batches, at.batch), *_beside(self.batches, at.batch)]):
            yield at.model_copy(update={"batch": batch} if batch else {"batch": 0, "queue_delay_us": 0})
        for count in _beside(self.instances, at.instances):
            yield at.model_copy(update={"instances": count})
        if at.batch:
            for delay in _beside(self.delays_us, at.queue_delay_us):
                yield at.model_copy(update={"queue_delay_us": delay})


def _beside(values: Sequence[int], at: int) -> list[int]:
    higher, lower = [v for v in values if v > at], [v for v in values if v < at]
    return [*higher[:1], *lower[-1:]]


def _ends(values: Sequence[int], at: int) -> list[int]:
    return [v for v in (values[-1], values[0]) if v != at]


def space(instances: Sequence[int], max_batch: int, objective_ms: float) -> Space:
    """Batches are powers of two up to ``max_batch`` (the most rows that a request may have; 0:
    requests are never joined).
    """
    batches = (
        [0, *(2**k for k in range(1, max_batch.bit_length()) if 2**k < max_batch), max_batch]
        if max_batch > 1
        else [0]
    )
    delays = tuple(us for us in DELAYS_US if us <= 1000 * objective_ms * DELAY_SHARE)
    return Space(tuple(sorted(set(instances))), tuple(batches), delays)


def sweep(
    serving: ServingConfig, measure: Measure, objective_ms: float, start: int, time_left: TimeLeft
) -> Trial:
    """The configuration at its best number of requests in flight, searched from ``start``."""
    seen: dict[int, Load] = {}

    def keeps_objective(in_flight: int) -> bool:
        """Whether the latency meets the objective. A measurement beyond it is repeated: other load
        on the machine may have caused it.
        """
        if in_flight not in seen:
            seen[in_flight] = measure(serving, in_flight)
            if seen[in_flight].latency_ms > objective_ms:
                seen[in_flight] = min(
                    seen[in_flight], measure(serving, in_flight), key=lambda load: load.latency_ms
                )
        return seen[in_flight].latency_ms <= objective_ms

    level = max(1, start)
    try:
        while not keeps_objective(level) and level > 1:
            level //= 2
        idle = 0
        while keeps_objective(level) and level < MAX_IN_FLIGHT and idle < PATIENCE and time_left():
            good = max(load.throughput for load in seen.values())
            level *= 2
            if not keeps_objective(level):
                _between(keeps_objective, level // 2, level)
                break
            idle = idle + 1 if seen[level].throughput < good * (1 + GROWTH) else 0
    except CandidateFailed as failed:
        return Trial(serving, None, problem=str(failed))
    within = [load for load in seen.values() if load.latency_ms <= objective_ms]
    if within:
        return Trial(serving, max(within, key=lambda load: load.throughput), True)
    return Trial(serving, min(seen.values(), key=lambda load: load.latency_ms))


def _between(keeps_objective: Callable[[int], bool], good: int, bad: int) -> None:
    """Measure at most twice more, between a number within the objective and one beyond it."""
    for _ in range(2):
        middle = (good + bad) // 2
        if middle in (good, bad):
            return
        good, bad = (middle, bad) if keeps_objective(middle) else (good, middle)


def compare(
    a: Trial, b: Trial, measure: Measure, objective_ms: float, time_left: TimeLeft, rounds: int = ROUNDS
) -> tuple[Trial, Trial]:
    """Measure both again, in turns, each at its best number of requests in flight: medians of the
    rounds that there is time for (one at least).
    """
    loads: dict[ServingConfig, list[Load]] = {a.serving: [], b.serving: []}
    failed: dict[ServingConfig, str] = {}
    for turn in range(rounds):
        if turn and not time_left():
            break
        for trial in (a, b):
            if trial.load is None or trial.serving in failed:
                continue
            try:
                loads[trial.serving].append(measure(trial.serving, trial.load.in_flight))
            except CandidateFailed as problem:
                failed[trial.serving] = str(problem)
    return tuple(_median(t, loads[t.serving], failed.get(t.serving), objective_ms) for t in (a, b))  # type: ignore[return-value]


def _median(trial: Trial, loads: Sequence[Load], problem: str | None, objective_ms: float) -> Trial:
    if problem is not None or not loads:
        return Trial(trial.serving, None, problem=problem or trial.problem)
    latency = median(load.latency_ms for load in loads)
    load = Load(loads[0].in_flight, median(load.throughput for load in loads), latency)
    return Trial(trial.serving, load, latency <= objective_ms)


def beats(challenger: Trial, best: Trial) -> bool:
    """Whether it is better by more than the margin. A trial within the objective beats every other
    throughput.
    """
    if challenger.load is None or not challenger.within:
        return False
    if best.load is None or not best.within:
        return True
    return challenger.load.throughput > best.load.throughput * (1 + MARGIN)


def climb(
    start: ServingConfig,
    settings: Space,
    measure: Measure,
    objective_ms: float,
    time_left: TimeLeft,
    on_trial: Callable[[Trial], None],
) -> tuple[Trial, Trial]:
    """(the configured trial, the best one; the same if nothing beats it). Calls ``on_trial`` with
    every trial that ends.
    """
    first = sweep(start, measure, objective_ms, 1, time_left)
    on_trial(first)
    best, configured, tried = first, first, {start}
    while time_left():
        challenger = next((c for c in settings.neighbours(best.serving) if c not in tried), None)
        if challenger is None:
            break
        tried.add(challenger)
        around = best.load.in_flight if best.load is not None and best.within else 1
        trial = sweep(challenger, measure, objective_ms, around, time_left)
        on_trial(trial)
        if not beats(trial, best):
            continue
        again, before = compare(trial, best, measure, objective_ms, time_left)
        if beats(again, before):
            best = again
    if best.serving == start:
        return configured, configured
    chosen, configured = compare(best, first, measure, objective_ms, lambda: True)
    return (configured, chosen) if beats(chosen, configured) else (configured, configured)
