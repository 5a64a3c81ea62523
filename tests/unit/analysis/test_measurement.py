"""A look after the provider has answered: slices, trouble that lasts, evidence of earlier steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from modelrollout.analysis.counters import Cold, Raw, Sample
from modelrollout.analysis.measurement import Counts, Measurement, carried_of, counts_of, fold_in, judge_all
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.verdict import combine, parts_of
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import Counter, Metric, MetricStatus, Slice, StepEvidence, StepStatus

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SLICED = Metric(name="accuracy", max_drop=0.02, slices=[Slice(name="night"), Slice(name="rare")])
SPIKE = Metric(name="memory", query="x", max=10, for_="30s")
DOWN = MeasurementProblem("ProviderUnreachable", "gone")


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def raw(total: float, bad: float, scraped: float) -> Raw:
    return Raw({"f1": Sample(total, bad, scraped)})


def judged(
    metric: Metric, before: list[MetricStatus], now: datetime, **readings: Reading
) -> list[MetricStatus]:
    folded = fold_in(
        {name.replace("__", "/"): r for name, r in readings.items()}, counts_of(before), stable=True
    )
    return judge_all(parts_of([metric]), folded, before, {}, 5, 25, now)


def test_an_overall_gain_does_not_hide_a_loss_on_a_slice() -> None:
    zero = CounterReading(raw(0, 0, 1), raw(0, 0, 1))
    first = judged(SLICED, [], NOW, accuracy=zero, accuracy__night=zero, accuracy__rare=zero)
    verdicts = judged(
        SLICED,
        first,
        at(60),
        accuracy=CounterReading(raw(4000, 200, 2), raw(40_000, 4000, 2)),  # half of stable's wrong answers
        accuracy__night=CounterReading(raw(300, 120, 2), raw(3000, 300, 2)),
        accuracy__rare=CounterReading(raw(3, 1, 2), raw(30, 1, 2)),
    )
    assert [(m.name, m.slice) for m in verdicts] == [
        ("accuracy", None),
        ("accuracy/night", "night"),
        ("accuracy/rare", "rare"),
    ]
    assert [m.verdict for m in verdicts] == ["Successful", "Failed", "Inconclusive"]
    whole = combine(verdicts)
    assert (whole.name, whole.reason) == ("Failed", "SliceAccuracyLow") and "slice night" in whole.message
    assert verdicts[2].interval, "what is not proven is shown all the same"


def test_a_slice_with_too_little_data_does_not_hold_the_step() -> None:
    before = [
        MetricStatus(name=n, verdict="Inconclusive", reason="NoData", canary=Counter(), stable=Counter())
        for n in ("accuracy", "accuracy/night")
    ]
    metric = SLICED.model_copy(update={"slices": [Slice(name="night")]})
    good = CounterReading(raw(4000, 20, 2), raw(40_000, 200, 2))
    verdicts = judged(
        metric, before, NOW, accuracy=good, accuracy__night=CounterReading(raw(0, 0, 2), raw(0, 0, 2))
    )
    assert combine(verdicts).name == "Successful"


def test_an_error_remembers_since_when_and_keeps_the_counts() -> None:
    look = CounterReading(raw(100, 1, 1), raw(100, 1, 1))
    metric = Metric(name="accuracy", max_drop=0.02)
    first = judged(metric, [], NOW, accuracy=look)
    assert first[0].since is None
    down = judged(metric, first, at(5), accuracy=DOWN)
    assert (down[0].verdict, down[0].since, down[0].canary) == ("Error", stamp(at(5)), first[0].canary)
    still = judged(metric, down, at(50), accuracy=MeasurementProblem("ProviderTimeout", "slow"))
    assert still[0].since == stamp(at(5)), "trouble of another kind is the same trouble"
    assert judged(metric, still, at(60), accuracy=look)[0].since is None


@pytest.mark.parametrize("value", [11.0, 1e9])
def test_one_spike_of_a_query_is_no_failure(value: float) -> None:
    [spike] = judged(SPIKE, [], NOW, memory=value)
    assert (spike.verdict, spike.reason, spike.since) == ("Inconclusive", "BeyondLimits", stamp(NOW))
    [over] = judged(SPIKE, [spike], at(29), memory=5.0)
    assert (over.verdict, over.since) == ("Successful", None)
    [again] = judged(SPIKE, [over], at(31), memory=value)
    assert (again.verdict, again.since) == ("Inconclusive", stamp(at(31)))


def test_a_query_that_stays_beyond_its_limits_fails_after_for() -> None:
    [spike] = judged(SPIKE, [], NOW, memory=11.0)
    [verdicts] = judged(SPIKE, [spike], at(29), memory=12.0)
    assert verdicts.verdict == "Inconclusive" and verdicts.since == stamp(NOW)
    [failed] = judged(SPIKE, [verdicts], at(30), memory=11.0)
    assert (failed.verdict, failed.reason) == ("Failed", "ValueTooHigh")
    assert judged(SPIKE, [failed], at(35), memory=11.0)[0].verdict == "Failed"


def test_an_outage_in_between_is_no_proof_that_it_stayed_beyond() -> None:
    [spike] = judged(SPIKE, [], NOW, memory=11.0)
    [down] = judged(SPIKE, [spike], at(10), memory=DOWN)
    assert down.since == stamp(at(10))
    [after] = judged(SPIKE, [down], at(40), memory=11.0)
    assert (after.verdict, after.since) == ("Inconclusive", stamp(at(40)))


def test_without_for_one_look_is_enough() -> None:
    assert judged(SPIKE.model_copy(update={"for_": None}), [], NOW, memory=11.0)[0].verdict == "Failed"


def test_a_dry_run_is_judged_and_marked() -> None:
    [verdicts] = judged(SPIKE.model_copy(update={"for_": None, "dry_run": True}), [], NOW, memory=11.0)
    assert (verdicts.verdict, verdicts.dry_run) == ("Failed", True)
    assert combine([verdicts]).name == "Inconclusive"


def test_without_stable_nothing_is_counted_of_it() -> None:
    folded = fold_in({"accuracy": CounterReading(raw(1, 0, 1), raw(1, 0, 1))}, {}, stable=False)
    assert folded["accuracy"] == Measurement(
        canary=Counter(last={"f1": [1, 0, 1]}, scraped=1, began=1), stable=None
    )


def evidence(index: int, weight: int, **logs: float) -> StepEvidence:
    metrics = [
        MetricStatus(name=n, verdict="Successful", reason="x", log_evidence=v) for n, v in logs.items()
    ]
    return StepEvidence(
        index=index, weight=weight, verdict="Successful", reason="x", seconds=1, metrics=metrics
    )


def step(index: int, weight: int) -> StepStatus:
    return StepStatus(index=index, weight=weight, phase="Observing", since=stamp(NOW))


def test_the_evidence_of_earlier_steps_is_carried_in_order() -> None:
    history = [evidence(0, 5, errors=0.5, accuracy=-1.0), evidence(1, 25, errors=-0.2)]
    assert carried_of(history, step(2, 50)) == {"errors": [0.5, -0.2], "accuracy": [-1.0]}


def test_no_evidence_is_carried_twice() -> None:
    """A step that paused for want of a verdict is recorded, judged on, and recorded again when
    a person promotes.
    """
    history = [evidence(0, 5, errors=0.5), evidence(1, 25, errors=1.0), evidence(1, 25, errors=2.0)]
    assert carried_of(history, step(1, 25)) == {"errors": [0.5]}
    assert carried_of(history, step(2, 50)) == {"errors": [0.5, 2.0]}


def test_a_side_whose_first_reading_was_late_counts_no_longer_than_the_other() -> None:
    """Prometheus was away when the step began: what it shows of stable is 20 s old, and of the
    canary nothing. When it is back, stable gets a new baseline, since its pods were cold at the old
    one; without one of its own the canary would have 195 requests, and stable none.
    """
    cold = Cold(90, 130)

    def reading(at: float, canary: float | None, stable: float) -> dict[str, Reading]:
        ours = Raw({"a": Sample(canary, 0, at)} if canary is not None else {})
        return {"errors": CounterReading(ours, Raw({"a": Sample(stable, 0, at)}))}

    def counts(made: dict[str, Measurement]) -> dict[str, Counts]:
        return {name: Counts(m.canary, m.stable) for name, m in made.items()}

    first = fold_in(reading(100, None, 9438), {}, stable=True, cold=cold)
    back = fold_in(reading(140, 195, 9900), counts(first), stable=True, cold=cold)
    both = back["errors"].canary, back["errors"].stable
    assert [(c.total, c.began) for c in both if c] == [(0, 140), (0, 140)]
    later = fold_in(reading(150, 225, 9970), counts(back), stable=True, cold=cold)["errors"]
    assert later.canary and later.stable
    assert (later.canary.total, later.stable.total) == (30, 70)
