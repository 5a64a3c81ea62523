"""The past through the same gates: what the operator would have done, and when."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.rollout.replay import Moment, Replayed, replay
from modelrollout.rollout.strategy import strategy_of
from modelrollout.testing import builders as b


def moments(
    canary: float,
    stable: float = 0.01,
    *,
    seconds: int = 1800,
    per_second: float = 100,
    past: float = 0,
    broken: Any = None,
) -> list[Moment]:
    """A look every 5 s at counters of one gateway; bad shares of the canary and of stable.
    ``broken``: (from, to, Problem).
    """
    actual = []
    for t in range(0, seconds + 1, 5):
        total = past + per_second * t
        reading: Reading = CounterReading(
            *(Raw({"g/http": Sample(total, round(total * share), 1e9 + t)}) for share in (canary, stable))
        )
        if broken and broken[0] <= t < broken[1]:
            reading = broken[2]
        actual.append(Moment(b.at(t), {"errors": reading}))
    return actual


ERRORS = {"metrics": [{"name": "errors", "maxIncrease": 0.005}]}


def run(looks: list[Moment], *, steps: Any = None, **rollout: Any) -> Replayed:
    analysis = ERRORS | rollout.pop("analysis", {})
    return replay(b.spec(2, steps=steps or b.STEPS, rollout={"analysis": analysis, **rollout}), looks)


def told(actual: Replayed) -> list[tuple[str, str]]:
    return [(e.step, e.what) for e in actual.timeline]


def test_a_healthy_version_climbs_all_steps_and_each_says_when_with_its_interval() -> None:
    result = run(moments(0.01))
    assert result.outcome == "Promoted"
    assert told(result) == [(f"{i}/3", what) for i in (1, 2, 3) for what in ("Counting", "StepPassed")]
    passed = [e for e in result.timeline if e.what == "StepPassed"]
    assert [e.weight for e in passed] == [5, 25, 50]
    times = [e.seconds for e in passed]
    assert times == sorted(times) and times[0] >= 5
    interval = passed[0].metrics[0].interval
    assert interval and interval[0] < 0 < interval[1]


def test_a_regression_is_taken_back_when_it_is_proven() -> None:
    result = run(moments(0.2))
    assert (result.outcome, result.reason) == ("RolledBack", "ErrorsHigh")
    last = result.timeline[-1]
    assert (last.step, last.what) == ("1/3", "ErrorsHigh") and last.seconds < 300
    assert last.metrics[0].interval and last.metrics[0].interval[0] > 0


def test_thresholds_can_be_tuned_offline() -> None:
    looks = moments(0.02)
    strict = run(looks, analysis={"metrics": [{"name": "errors", "maxIncrease": 0.005}]})
    loose = run(looks, analysis={"metrics": [{"name": "errors", "maxIncrease": 0.2}]})
    assert (strict.outcome, loose.outcome) == ("RolledBack", "Promoted")


def test_what_was_counted_before_the_recording_is_no_evidence() -> None:
    assert run(moments(0.01, past=1e6)).outcome == "Promoted"
    bad_past = [Moment(m.at, {"errors": _more_bad(m)}) for m in moments(0.01, past=1e6)]
    assert run(bad_past).outcome == "Promoted"


def _more_bad(m: Moment) -> CounterReading:
    look = m.readings["errors"]
    assert isinstance(look, CounterReading)
    worse = {p: Sample(s.total, s.bad + 500_000, s.scraped) for p, s in look.canary.processes.items()}
    return CounterReading(Raw(worse), look.stable)


def test_a_process_whose_scrape_fails_when_a_step_begins_does_not_bring_its_past_with_it() -> None:
    looks = []
    for m in moments(0.01, past=1e5):
        both = m.readings["errors"]
        assert isinstance(both, CounterReading)
        second = {
            p.replace("g", "h"): Sample(s.total, s.total / 2, s.scraped)
            for p, s in both.canary.processes.items()
        }
        t = (m.at - b.START).total_seconds()
        # Half of what it counted long ago was bad. It is not scraped from the first look of the
        # second step on for a while.
        there = {} if 20 <= t < 400 else {p: Sample(1e6, 5e5, s.scraped) for p, s in second.items()}
        looks.append(
            Moment(m.at, {"errors": CounterReading(Raw({**both.canary.processes, **there}), both.stable)})
        )
    assert run(looks).outcome == "Promoted"


def test_an_outage_holds_and_is_told_and_over() -> None:
    down = MeasurementProblem("ProviderTimeout", "slow")
    result = run(moments(0.01, broken=(10, 600, down)))
    assert result.outcome == "Promoted"
    assert told(result)[:3] == [("1/3", "Counting"), ("1/3", "ProviderTimeout"), ("1/3", "StepPassed")]
    assert min(e.seconds for e in result.timeline if e.what == "StepPassed") >= 600


@pytest.mark.parametrize(
    ("policy", "outcome"), [("Pause", "Paused"), ("Rollback", "RolledBack"), ("Promote", "Promoted")]
)
def test_no_verdict_ends_as_the_spec_says(policy: str, outcome: str) -> None:
    down = MeasurementProblem("ProviderTimeout", "slow")
    result = run(moments(0.01, broken=(0, 1e9, down)), onInconclusive=policy, progressDeadline="10m")
    assert result.outcome == outcome
    assert next(e.seconds for e in result.timeline if e.what in ("Inconclusive", "PromotedByPolicy")) == 600


def test_low_traffic_says_that_the_deadline_cannot_be_met() -> None:
    result = run(moments(0.01, per_second=0.05), progressDeadline="30m")
    assert result.outcome == "Paused"
    assert "DeadlineUnreachable" in [e.what for e in result.timeline]


def test_a_recording_that_ends_early_says_what_was_missing() -> None:
    result = run(moments(0.01, seconds=20))
    assert result.outcome == "Unfinished" and result.timeline[-1].what == "Unfinished"
    assert run([]).outcome == "Unfinished"


def test_pauses_are_timed_or_left_out() -> None:
    steps = [{"weight": 5}, {"pause": {}}, {"pause": {"duration": "10m"}}, {"weight": 50}]
    result = run(moments(0.01), steps=steps)
    assert result.outcome == "Promoted"
    passed, then = (e.seconds for e in result.timeline if e.what == "StepPassed")
    assert then - passed >= 600


def test_the_initial_delay_is_kept() -> None:
    result = run(moments(0.01), analysis={"initialDelay": "2m"})
    assert min(e.seconds for e in result.timeline if e.what == "StepPassed") > 120


def test_a_metric_that_was_not_recorded_is_no_pass() -> None:
    result = run(
        moments(0.01),
        analysis={
            "metrics": [{"name": "errors", "maxIncrease": 0.005}, {"name": "accuracy", "maxDrop": 0.1}]
        },
    )
    assert result.outcome != "Promoted" and "no reading" in result.message


def test_a_first_revision_is_judged_by_its_own_limits() -> None:
    metrics = {"analysis": {"metrics": [{"name": "errors", "max": 0.05}]}}
    spec = b.spec(2, steps=b.STEPS, rollout=metrics)
    assert replay(spec, moments(0.01), stable=False).outcome == "Promoted"
    replayed = replay(spec, moments(0.2), stable=False)
    assert (replayed.outcome, replayed.reason) == ("Paused", "LimitExceeded"), (
        "what clients send may exceed a limit"
    )


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="oops"):
        replay(b.spec(2, rollout={"analysis": {"templates": ["oops"]}}), [])


AB = {"abTest": {"headers": [{"name": "x-user-group", "value": "beta"}]}}


@pytest.mark.parametrize("trial", [AB, {"blueGreen": {}}])
def test_a_preview_and_a_test_by_headers_are_one_step_beside_stable(trial: dict[str, Any]) -> None:
    spec = ModelDeploymentSpec.model_validate({**b.spec(2).wire(), "rollout": trial | {"analysis": ERRORS}})
    assert strategy_of(spec.rollout) != "Canary"
    good, bad = replay(spec, moments(0.01)), replay(spec, moments(0.2))
    assert (good.outcome, bad.outcome, bad.reason) == ("Promoted", "Paused", "ErrorsHigh"), (
        "clients choose who is asked"
    )
    assert [(e.weight, e.what) for e in good.timeline] == [(0, "Counting"), (0, "StepPassed")], (
        "and waits for nothing"
    )


def test_a_preview_with_few_requests_ends_when_its_time_is_over() -> None:
    spec = ModelDeploymentSpec.model_validate({**b.spec(2).wire(), "rollout": {"blueGreen": {"for": "10m"}}})
    replayed = replay(spec, moments(0.0, per_second=0.01))
    assert replayed.outcome == "Promoted"
    assert [(e.what, e.seconds) for e in replayed.timeline][-1] == ("PreviewEnded", 605)
