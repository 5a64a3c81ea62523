"""What every metrics provider has to do, as a check that its author runs against a fake of the
system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from modelrollout.analysis.problem import MeasurementProblem, MeasurementReason
from modelrollout.analysis.providers.base import COUNTED_BY, MetricsProvider
from modelrollout.analysis.reading import CounterReading
from modelrollout.analysis.target import Target
from modelrollout.api.v1alpha1 import Metric, RevisionRef

NOW = 1_800_000_000.0
TARGET = Target(
    "ml",
    "digits",
    RevisionRef(revision="digits-new", number=2),
    RevisionRef(revision="digits-old", number=1),
    "traefik",
)
_ERRORS = Metric(name="errors", max_increase=0.01)


async def check_provider(
    provider: MetricsProvider, count: Callable[[str, int, int], None], fail: Callable[[], None]
) -> None:
    """Raises AssertionError where ``provider`` breaks the protocol; closes it at the end.

    ``count(revision, total, bad)`` sets the counters of requests of a revision in the fake.
    ``fail()`` makes the fake unreachable from then on.
    """
    count(TARGET.canary.revision, 40, 4)
    count("digits-old", 900, 9)
    reading = (await provider.read(TARGET, [_ERRORS], {}, NOW))["errors"]
    assert isinstance(reading, CounterReading), reading
    for side, expected in ((reading.canary, (40, 4)), (reading.stable, (900, 9))):
        samples = side.processes.values()
        assert (sum(s.total for s in samples), sum(s.bad for s in samples)) == expected, side
        assert all(s.scraped > 0 for s in samples), "a sample without its time is never newer than another"

    unknown = Metric(name="unknown", query="a query that this system does not know", max=1)
    readings = await provider.read(TARGET, [_ERRORS, unknown], {}, NOW)
    assert isinstance(readings["errors"], CounterReading), "one metric's problem is no other's"
    assert isinstance(readings["unknown"], MeasurementProblem), readings["unknown"]

    times = [int(NOW) - 60, int(NOW)]
    past = await provider.read_past(TARGET, [_ERRORS], times)
    assert isinstance(past, MeasurementProblem) or list(past) == times
    assert set(await provider.doubts(("gateway",))) <= {"gateway"}

    fail()
    problem = (await provider.read(TARGET, [_ERRORS], {}, NOW))["errors"]
    assert isinstance(problem, MeasurementProblem), "a system that is down is a problem, not an exception"
    assert problem.reason in get_args(MeasurementReason)
    assert (await provider.read_agreement(TARGET, None)).problem is not None
    await provider.doubts(COUNTED_BY)
    await provider.close()
