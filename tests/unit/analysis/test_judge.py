"""The rule of docs/explanation/analysis.md in counts; and everything that is no verdict by its
own name.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest

from modelrollout.analysis.judge import judge
from modelrollout.analysis.problem import MeasurementProblem, MeasurementReason
from modelrollout.api.v1alpha1 import Counter, Metric, MetricStatus
from modelrollout.statistics.sequential import difference_interval, log_evidence, share_log_evidence

ERRORS = Metric(name="errors", max_increase=0.005)
ACCURACY = Metric(name="accuracy", max_drop=0.01)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.005)
QUERY = Metric(name="memory", query="x", min=1, max=10)


def counter(bad: float, total: float) -> Counter:
    """With looks that vary as those of independent requests do, a thousand of them."""
    share = bad / total if total else 0.0
    return Counter(
        bad=bad, total=total, spread=[total / 1000, bad / 1000, 1000.0, 1000 * share * (1 - share)]
    )


def judged(
    metric: Metric, canary: Counter | None, stable: Counter | None, weight: int = 5, next_weight: int = 25
) -> MetricStatus:
    return judge(metric, canary, stable, None, None, weight, next_weight, 0.01)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (ERRORS, "ErrorsHigh"),
        (Metric(name="clientErrors", max_increase=0.02), "ClientErrorsHigh"),
        (Metric(name="refusedRequests", max_increase=0.02), "RefusedRequestsHigh"),
        (ACCURACY, "AccuracyLow"),
        (LATENCY, "LatencyHigh"),
    ],
)
def test_a_regression_is_named_by_what_got_worse(metric: Metric, reason: str) -> None:
    status = judged(metric, counter(60, 300), counter(20, 2000))
    assert (status.verdict, status.reason) == ("Failed", reason)
    assert status.interval and status.interval[0] > 0
    assert "60 of 300" in status.message and "20 of 2000" in status.message
    assert status.value == (0.8 if metric is ACCURACY else 0.2)


def test_fail_needs_no_minimum_when_everything_fails() -> None:
    assert judged(ERRORS, counter(8, 8), counter(0, 150)).verdict == "Failed"


def test_two_failures_prove_nothing() -> None:
    status = judged(ERRORS, counter(2, 20), counter(0, 400))
    assert (status.verdict, status.reason, status.needed) == ("Inconclusive", "TooFewSamples", 30)


def test_worse_within_the_tolerance_is_no_regression() -> None:
    """A difference of 0.0004 is proven with this many samples, and lies below a tenth of the
    margin.
    """
    canary, stable = counter(14_000, 10_000_000), counter(10_000, 10_000_000)
    lower = difference_interval(canary.bad, canary.total, stable.bad, stable.total, 0.01).lower
    assert 0 < lower < 0.0005
    assert judged(ERRORS, canary, stable, 50, 100).verdict == "Successful"


def test_the_same_evidence_passes_a_low_weight_and_not_a_high_one() -> None:
    canary, stable = counter(10, 1000), counter(190, 19_000)
    assert judged(ERRORS, canary, stable, 5, 25).reason == "ProvenNotWorse"
    verdicts = judged(ERRORS, canary, stable, 5, 100)
    assert (verdicts.verdict, verdicts.reason) == ("Inconclusive", "NotYetProven")
    assert verdicts.needed and verdicts.needed > 5000


def test_the_plan_is_about_right() -> None:
    """With so many more samples in the same proportions it passes, and with half as many it does
    not.
    """
    verdicts = judged(ERRORS, counter(10, 1000), counter(190, 19_000), 5, 100)
    assert verdicts.needed
    for share, verdict in ((1.05, "Successful"), (0.5, "Inconclusive")):
        factor = 1 + share * verdicts.needed / 1000
        assert (
            judged(
                ERRORS, counter(10 * factor, 1000 * factor), counter(190 * factor, 19_000 * factor), 5, 100
            ).verdict
            == verdict
        )


def test_a_plan_that_leads_nowhere_says_so() -> None:
    verdicts = judged(ERRORS, counter(30, 2000), counter(190, 19_000), 5, 100)
    assert (verdicts.reason, verdicts.needed) == ("NotYetProven", None)
    assert "however many samples" in verdicts.message


def test_fail_wins_over_pass_where_the_next_weight_allows_more() -> None:
    canary, stable = counter(4000, 100_000), counter(19_000, 1_900_000)
    assert (
        difference_interval(canary.bad, canary.total, stable.bad, stable.total, 0.01).upper < 0.005 * 100 / 5
    )
    assert judged(ERRORS, canary, stable, 5, 5).verdict == "Failed"


@pytest.mark.parametrize("metric", [ERRORS, ACCURACY, LATENCY])
@pytest.mark.parametrize("canary", [None, counter(0, 0)])
def test_no_request_is_no_data(metric: Metric, canary: Counter | None) -> None:
    status = judged(metric, canary, counter(0, 1000))
    assert (status.verdict, status.reason, status.value, status.interval) == (
        "Inconclusive",
        "NoData",
        None,
        None,
    )


@pytest.mark.parametrize("stable", [None, counter(0, 0)])
def test_no_stable_to_compare_with_is_no_pass(stable: Counter | None) -> None:
    assert judged(ERRORS, counter(0, 1000), stable).reason == "NoStableData"


def test_an_absolute_limit_judges_alone_where_stable_has_nothing() -> None:
    metric = Metric(name="errors", max_increase=0.005, max=0.05)
    assert judged(metric, counter(0, 1000), None).reason == "ProvenWithinLimit"
    assert judged(metric, counter(300, 1000), None).reason == "LimitExceeded"


def test_a_limit_that_stable_does_not_keep_at_the_same_time_is_no_proof() -> None:
    metric = Metric(name="errors", max=0.05)
    verdicts = judged(metric, counter(300, 1000), counter(60, 1000))
    assert (verdicts.verdict, verdicts.reason) == (
        "Failed",
        "LimitExceeded",
    ) and "which stable exceeds too" in verdicts.message
    assert judged(metric, counter(300, 1000), counter(50, 1000)).reason == "ErrorsHigh"
    assert judged(metric, counter(300, 1000), counter(0, 0)).reason == "LimitExceeded"
    before = judge(
        metric, counter(300, 1000), counter(0, 1000), None, None, 100, 100, 0.01, simultaneous=False
    )
    assert (
        before.reason == "LimitExceeded"
        and "nothing of stable was counted at the same time" in before.message
    )
    both = Metric(name="errors", max_increase=0.01, max=0.05)
    assert judged(both, counter(600, 1000), counter(100, 1000)).reason == "ErrorsHigh", (
        "the comparison is a proof of its own"
    )


@pytest.mark.parametrize(
    "metric",
    [
        Metric(name="accuracy", min=0.9),
        Metric(name="errors", max=0.1),
        Metric(name="latency", objective="50ms", share=0.9),
    ],
)
def test_absolute_limits_are_of_the_canary_whatever_stable_does(metric: Metric) -> None:
    stable = counter(900, 1000)
    assert judged(metric, counter(200, 1000), stable, 50, 100).verdict == "Failed"
    assert judged(metric, counter(50, 1000), stable, 50, 100).verdict == "Successful"
    assert judged(metric, counter(95, 1000), stable, 50, 100).reason == "NotYetProven"


def test_a_limit_fails_although_the_comparison_passes() -> None:
    metric = Metric(name="accuracy", max_drop=0.5, min=0.9)
    assert judged(metric, counter(300, 1000), counter(900, 10_000)).reason == "AccuracyLow"


@pytest.mark.parametrize("kind", get_args(MeasurementReason))
def test_a_problem_is_never_a_pass_nor_a_regression_and_keeps_the_counts(kind: MeasurementReason) -> None:
    """An outage or an empty answer rolls a healthy canary back elsewhere."""
    status = judge(
        ERRORS, counter(0, 10_000), counter(0, 10_000), MeasurementProblem(kind, "why"), None, 5, 25, 0.01
    )
    assert status.verdict == (
        "Inconclusive" if kind in ("NoData", "NoStableData", "StaleData", "QueryPending") else "Error"
    )
    assert (status.reason, status.message) == (kind, "why")
    assert status.canary == counter(0, 10_000) and status.stable == counter(0, 10_000)


@pytest.mark.parametrize(
    ("value", "verdict", "reason"),
    [
        (5.0, "Successful", "WithinLimits"),
        (11.0, "Failed", "ValueTooHigh"),
        (0.5, "Failed", "ValueTooLow"),
        (math.nan, "Error", "NotANumber"),
        (None, "Inconclusive", "NoData"),
    ],
)
def test_a_query_is_a_plain_threshold(value: float | None, verdict: str, reason: str) -> None:
    status = judge(QUERY, None, None, None, value, 5, 25, 0.01)
    assert (status.verdict, status.reason) == (verdict, reason)


def test_the_status_holds_what_the_next_look_needs() -> None:
    canary, stable = counter(1, 100), counter(1, 1000)
    status = judged(ERRORS, canary, stable)
    assert MetricStatus.model_validate(status.wire()).canary == canary


def test_two_criteria_of_one_metric_share_its_budget() -> None:
    canary, stable = counter(20, 500), counter(100, 5000)
    both = judged(Metric(name="errors", max_increase=0.005, max=0.2), canary, stable)
    expected = difference_interval(canary.bad, canary.total, stable.bad, stable.total, 0.005)
    assert both.interval == [round(v, 6) for v in expected]


# --- the evidence of a rollout


def test_evidence_of_earlier_steps_completes_a_proof() -> None:
    """Neither step proves it alone."""
    canary, stable = counter(32, 1500), counter(60, 6000)
    first = judged(ERRORS, canary, stable, 20, 50)
    assert first.verdict == "Inconclusive" and first.log_evidence and 2 < first.log_evidence < 4.6
    both = judge(ERRORS, canary, stable, None, None, 50, 100, 0.01, [first.log_evidence])
    assert (both.verdict, both.log_evidence) == ("Failed", first.log_evidence)
    assert "with the evidence of earlier steps" in both.message


def test_good_steps_before_do_not_shield_a_bad_one() -> None:
    assert (
        judge(ERRORS, counter(60, 300), counter(20, 2000), None, None, 50, 100, 0.01, [-80.0, -80.0]).verdict
        == "Failed"
    )


def test_the_evidence_is_that_of_the_step_and_of_the_tolerance() -> None:
    canary, stable = counter(20, 1000), counter(40, 4000)
    assert judged(ERRORS, canary, stable).log_evidence == pytest.approx(
        log_evidence(20, 1000, 40, 4000, 0.0005), abs=0.05
    )
    assert judged(Metric(name="errors", max=0.05), canary, stable).log_evidence == pytest.approx(
        share_log_evidence(20, 1000, 0.05), abs=0.05
    )
    assert judged(ERRORS, None, stable).log_evidence is None
    assert judged(ERRORS, canary, None).log_evidence is None


def test_what_fails_together_counts_less() -> None:
    canary, alone = counter(60, 2000), counter(80, 8000)
    together = alone.model_copy(update={"spread": [80.0, 0.0, 100.0, 6 * 100 * 0.01 * 0.99]})
    assert judged(ERRORS, canary, alone).verdict == "Failed"
    assert judged(ERRORS, canary, together).verdict == "Inconclusive"


def test_a_canary_that_fails_from_some_moment_on_is_no_cluster() -> None:
    """Nothing failed in ten looks, then every second request of it."""
    canary = counter(60, 2120).model_copy(update={"spread": [120.0, 60.0, 10.0, 0.25 * 200 * 120 / 320]})
    assert judged(ERRORS, canary, counter(80, 8000)).verdict == "Failed"
