"""From metrics to one verdict: who decides, who shares the budget."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET, alpha_of, combine, parts_of
from modelrollout.api.v1alpha1 import Metric, MetricStatus, Slice

ERRORS = Metric(name="errors", max_increase=0.005)
ACCURACY = Metric(name="accuracy", max_drop=0.01, min=0.9)
QUERY = Metric(name="memory", query="x", max=10)


def status(verdict: str, reason: str, **fields: Any) -> MetricStatus:
    return MetricStatus.model_validate(
        {"name": "m", "verdict": verdict, "reason": reason, "message": f"{reason} happened"} | fields
    )


def test_failed_wins_over_error_over_inconclusive_over_successful() -> None:
    every = [
        status("Successful", "A"),
        status("Inconclusive", "B"),
        status("Error", "C"),
        status("Failed", "D"),
    ]
    for retained, expected in ((4, "Failed"), (3, "Error"), (2, "Inconclusive"), (1, "Successful")):
        assert combine(every[:retained]).name == expected


def test_where_evidence_is_implausible_nothing_is_proven() -> None:
    forged = status("Error", "EvidenceImplausible")
    assert combine([status("Failed", "A"), status("Error", "B"), forged])[:2] == (
        "Error",
        "EvidenceImplausible",
    )
    assert (
        combine([status("Failed", "A"), status("Error", "EvidenceImplausible", dry_run=True)]).name
        == "Failed"
    )


def test_all_that_decide_are_told() -> None:
    verdict = combine([status("Successful", "A"), status("Failed", "B"), status("Failed", "C")])
    assert verdict == ("Failed", "B", "B happened; C happened")


def test_what_holds_of_several_is_said_once() -> None:
    assert combine([status("Error", "Slow"), status("Error", "Slow")]).message == "Slow happened"


def test_nothing_measured_is_no_evidence() -> None:
    assert combine([])[:2] == ("Inconclusive", "NoMetrics")


@pytest.mark.parametrize("verdict", ["Failed", "Error", "Inconclusive", "Successful"])
def test_a_dry_run_decides_nothing(verdict: str) -> None:
    dry = status(verdict, "X", dry_run=True)
    assert combine([status("Successful", "A"), dry]) == ("Successful", "A", "A happened")
    assert combine([dry])[:2] == ("Inconclusive", "NoMetrics"), "a good dry run is no ground to promote"


@pytest.mark.parametrize(
    ("verdict", "whole"), [("Failed", "Failed"), ("Error", "Successful"), ("Inconclusive", "Successful")]
)
def test_a_slice_decides_only_by_failing(verdict: str, whole: str) -> None:
    assert combine([status("Successful", "A"), status(verdict, "X", slice="night")]).name == whole


def test_slices_that_pass_are_no_ground_to_promote_without_the_whole() -> None:
    assert (
        combine([status("Inconclusive", "A"), status("Successful", "X", slice="night")]).name
        == "Inconclusive"
    )


def test_metrics_judged_by_counts_share_one_budget() -> None:
    assert alpha_of([ERRORS, ACCURACY, QUERY]) == FALSE_ALARM_BUDGET / 2
    assert alpha_of([QUERY]) == alpha_of([]) == FALSE_ALARM_BUDGET


def test_a_dry_run_spends_no_part_of_it() -> None:
    dry = ACCURACY.model_copy(update={"dry_run": True})
    assert alpha_of([ERRORS, dry]) == alpha_of([ERRORS]) == FALSE_ALARM_BUDGET


def test_the_parts_of_a_rollout_never_spend_more_than_the_budget() -> None:
    sliced = ACCURACY.model_copy(
        update={"slices": [Slice(name="night", max_drop=0.05), Slice(name="day"), Slice(name="dusk")]}
    )
    parts = parts_of([ERRORS, sliced, QUERY])
    assert [p.name for p in parts] == [
        "errors",
        "accuracy",
        "accuracy/night",
        "accuracy/day",
        "accuracy/dusk",
        "memory",
    ]
    assert sum(p.alpha for p in parts if p.metric.query is None) == pytest.approx(FALSE_ALARM_BUDGET)
    assert parts[1].alpha == pytest.approx(FALSE_ALARM_BUDGET / 4), "the whole is not drowned by its slices"


def test_a_slice_has_its_own_margin_or_that_of_the_metric_and_no_other_limit() -> None:
    sliced = ACCURACY.model_copy(update={"slices": [Slice(name="night", max_drop=0.05), Slice(name="day")]})
    night, day = parts_of([sliced])[1:]
    assert (night.metric.max_drop, day.metric.max_drop) == (0.05, 0.01)
    assert night.metric.min is None, "min is of the canary as a whole"
