"""What is simulated: requests that come at random, dealt to canary and stable, bad with a
probability that the scenario names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from calibrate.pods import Cold, Failing, Floats
from modelrollout.analysis.eta import INITIAL_DELAY_SECONDS
from modelrollout.rollout.stages.judging import FIRST_INTERVAL, FIRST_SECONDS

LOOK = 5  # seconds between two looks
HOUR = 3600
IN_TIME = 900  # seconds within which a regression is to be caught
RATES = (1, 10, 100)  # requests per second, both sides together


@dataclass(frozen=True)
class Stream:
    """One metric: bad shares of both sides, and the largest bad share that the rivals' fixed
    threshold accepts. ``episodic``: whether it is something that a pod does for a while by itself.
    """

    stable: float
    canary: float
    threshold: float
    episodic: bool = True


class Step(NamedTuple):
    """A weight in percent, and how long it lasts, in seconds."""

    weight: int
    seconds: int


@dataclass(frozen=True)
class Scenario:
    """``onset``: when the canary's own shares begin, in seconds; before it is as good as stable.
    ``bursts``: mean size of clusters.

    ``Dealt``: the gateway deals each request of a cluster by itself; ``Sticky``: a cluster stays on
    one side, as on one gRPC connection.
    """

    name: str
    streams: tuple[Stream, ...]
    steps: tuple[Step, ...] = (Step(20, HOUR),)
    onset: int = 0
    bursts: float = 1.0
    cluster: Literal["Dealt", "Sticky"] = "Dealt"
    # minutes in which stable had all traffic before; 0: it has only just begun to serve
    history: int = 60
    failing: Failing | None = None
    cold: Cold | None = None
    # seconds for which the operator counts nothing after a start
    delay: int = 0

    @property
    def plain(self) -> bool:
        """One regression and nothing else, which tests that know it can be compared on."""
        others = self.onset or self.failing or self.cold or self.bursts != 1 or not self.history
        return not (others or self.harmless) and len(self.streams) == len(self.steps) == 1

    @property
    def harmless(self) -> bool:
        return all(s.canary == s.stable for s in self.streams)


class Counts(NamedTuple):
    """Requests since the last look, for each rollout."""

    bad: Floats
    total: Floats
    stable_bad: Floats
    stable_total: Floats


def _errors(stable: float, canary: float) -> Stream:
    return Stream(stable, canary, 0.01)


def _accuracy(canary: float) -> Stream:
    """Stable is right in 90 %; success of at least 99 % is taken as 99 % of that, or the rivals
    would reject every model.
    """
    return Stream(0.10, canary, 1 - 0.99 * 0.90, episodic=False)


_EQUAL = (_errors(0.01, 0.01), _accuracy(0.10), _errors(0.01, 0.01))
_CLIMB = (Step(5, 1200), Step(25, 1200), Step(50, 1200))
SCENARIOS = (
    Scenario("no_difference", _EQUAL),
    Scenario("errors_1_to_2", (_errors(0.01, 0.02),)),
    Scenario("errors_x10", (_errors(0.01, 0.10),)),
    Scenario("accuracy_2_points", (_accuracy(0.12),)),
    Scenario("accuracy_half", (_accuracy(0.50),)),
    Scenario("tail_20_percent", (_errors(0.01, 0.025),)),
    # of our own
    Scenario("stable_half_of_threshold", (_errors(0.005, 0.005),)),
    Scenario("stable_near_threshold", (_errors(0.009, 0.009),)),
    Scenario("clustered_dealt", (_errors(0.01, 0.01),), bursts=5.0),
    Scenario("clustered_sticky", (_errors(0.01, 0.01),), bursts=3.0, cluster="Sticky"),
    Scenario("clustered_sticky_new", (_errors(0.01, 0.01),), bursts=3.0, cluster="Sticky", history=0),
    Scenario("failing_pods", (_errors(0.01, 0.01),), failing=Failing()),
    Scenario("failing_pods_new", (_errors(0.01, 0.01),), history=0, failing=Failing()),
    Scenario("failing_pods_x10", (_errors(0.01, 0.10),), failing=Failing()),
    Scenario("errors_1_to_2_new", (_errors(0.01, 0.02),), history=0),
    Scenario("errors_x10_new", (_errors(0.01, 0.10),), history=0),
    Scenario("errors_all_new", (_errors(0.01, 1.0),), history=0),
    Scenario("cold_pods", (_errors(0.01, 0.01),), cold=Cold(), delay=round(INITIAL_DELAY_SECONDS)),
    Scenario("cold_pods_no_delay", (_errors(0.01, 0.01),), cold=Cold()),
    Scenario("cold_pods_x10", (_errors(0.01, 0.10),), cold=Cold(), delay=round(INITIAL_DELAY_SECONDS)),
    Scenario("three_steps", _EQUAL, _CLIMB),
    Scenario("third_step_1_to_2", (_errors(0.01, 0.02),), _CLIMB, onset=2400),
    # 4xx, which rules of the usual kind do not count; here they do
    Scenario("client_errors_5_percent", (Stream(0.05, 0.05, 0.01, episodic=False),)),
    Scenario("client_errors_all", (Stream(0.05, 1.0, 0.01, episodic=False),)),
)
RESETS = "resets_and_gaps"  # drawn in resets.py, through the operator's own counting


def looks(seconds: int) -> list[int]:
    """When a step that begins to count at 0 and lasts so long is looked at."""
    first, often = round(FIRST_SECONDS), round(FIRST_INTERVAL)
    return [*range(often, min(first, seconds) + 1, often), *range(first + LOOK, seconds + 1, LOOK)]


def draw(
    rng: np.random.Generator,
    stream: Stream,
    s: Scenario,
    second: int,
    weight: float,
    requests: float,
    rollouts: int,
    failed: tuple[Floats | float, Floats | float] = (0.0, 0.0),
) -> Counts:
    """The requests of one look that ends at ``second``; ``weight`` as a share, ``requests``
    expected on both sides together; ``failed``: the share of each side's pods that fails.
    """
    share = stream.canary if second > s.onset else stream.stable
    if s.cold is not None and second > 0 and s.cold.since(second - 1) < s.cold.seconds:
        share += (1 - share) * s.cold.share
    canary, stable = share + (1 - share) * failed[0], stream.stable + (1 - stream.stable) * failed[1]
    good, stable_good = (
        _poisson(rng, requests * weight * (1 - canary), rollouts),
        _poisson(rng, requests * (1 - weight) * (1 - stable), rollouts),
    )
    if s.bursts == 1:
        bad, stable_bad = (
            _poisson(rng, requests * weight * canary, rollouts),
            _poisson(rng, requests * (1 - weight) * stable, rollouts),
        )
    elif s.cluster == "Sticky":
        bad = _bursts(rng, requests * weight * share, s.bursts, rollouts)
        stable_bad = _bursts(rng, requests * (1 - weight) * stream.stable, s.bursts, rollouts)
    else:
        both = _bursts(rng, requests * stream.stable, s.bursts, rollouts)
        bad = rng.binomial(both.astype(np.int64), weight).astype(np.float64)
        stable_bad = both - bad
    return Counts(bad, good + bad, stable_bad, stable_good + stable_bad)


def _poisson(rng: np.random.Generator, mean: Floats | float, size: int) -> Floats:
    return rng.poisson(np.maximum(mean, 0.0), size).astype(np.float64)


def _bursts(rng: np.random.Generator, mean: float, size_of_one: float, size: int) -> Floats:
    """As many bad requests on average, in clusters of 1 + Poisson."""
    clusters = rng.poisson(mean / size_of_one, size)
    return (clusters + rng.poisson(clusters * (size_of_one - 1))).astype(np.float64)
