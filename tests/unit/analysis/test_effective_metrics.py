"""Templates, and what a policy demands."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.judge import judge
from modelrollout.analysis.metrics import MAX_METRICS, effective_metrics
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET, parts_of
from modelrollout.api.v1alpha1 import Analysis, Counter, Metric, Slice

ERRORS = Metric(name="errors", max_increase=0.005)
ACCURACY = Metric(name="accuracy", max_drop=0.01)
MEMORY = Metric(name="memory", query="x", max=10)


def metrics(analysis: Analysis, *mandatory: Metric, **templates: list[Metric]) -> list[Metric]:
    effective = effective_metrics(analysis, templates, mandatory, "traefik")
    assert not isinstance(effective, MeasurementProblem), effective
    return effective


def test_the_default_is_what_can_be_measured_and_an_empty_list_is_nothing() -> None:
    assert [(m.name, m.max_increase, m.dry_run) for m in metrics(Analysis())] == [
        ("errors", 0.005, False),
        ("clientErrors", 0.02, False),
        ("refusedRequests", 0.02, True),
    ]
    assert metrics(Analysis(metrics=[])) == []
    without_gateway = effective_metrics(Analysis(), {}, (), "none")
    assert without_gateway == [ERRORS], "Triton does not count what it refuses"


def test_the_default_metrics_share_the_budget_and_those_that_are_only_shown_take_none() -> None:
    shares = {part.name: part.alpha for part in parts_of(metrics(Analysis())) if not part.metric.dry_run}
    assert shares == {"errors": FALSE_ALARM_BUDGET / 2, "clientErrors": FALSE_ALARM_BUDGET / 2}


@pytest.mark.parametrize(("base", "most"), [(0.0, 1_000), (0.03, 4_000), (0.05, 7_000)])
def test_a_usual_share_of_client_errors_does_not_keep_a_version_for_ever(base: float, most: int) -> None:
    """At the last of the default steps, with the most samples that a margin ever needs."""
    metric = next(m for m in metrics(Analysis()) if m.name == "clientErrors")
    both = Counter(total=most, bad=base * most)
    status = judge(metric, both, both, None, None, 50, 100, FALSE_ALARM_BUDGET / 2)
    assert (status.verdict, status.reason) == ("Successful", "ProvenNotWorse"), status.message


def test_templates_take_the_place_of_the_default_and_join_what_is_given() -> None:
    assert metrics(Analysis(templates=["web"]), web=[ACCURACY]) == [ACCURACY]
    assert metrics(Analysis(templates=["web"], metrics=[ERRORS]), web=[ACCURACY]) == [ERRORS, ACCURACY]


def test_the_own_metric_wins_and_then_the_earlier_template() -> None:
    own = Metric(name="errors", max_increase=0.5)
    later = Metric(name="accuracy", max_drop=0.9)
    effective = metrics(
        Analysis(templates=["a", "b"], metrics=[own]), a=[ERRORS, ACCURACY], b=[later, MEMORY]
    )
    assert effective == [own, ACCURACY, MEMORY]


def test_an_unknown_template_is_named_with_those_that_are_known() -> None:
    analysis = Analysis(templates=["web", "oops"])
    effective = effective_metrics(analysis, {"web": [], "batch": []}, (), "traefik")
    assert isinstance(effective, MeasurementProblem) and effective.reason == "UnknownTemplate"
    assert "'oops'" in effective.message and "batch, web" in effective.message
    nothing = effective_metrics(Analysis(templates=["oops"]), {}, (), "traefik")
    assert isinstance(nothing, MeasurementProblem) and "none" in nothing.message


def test_a_mandatory_metric_is_added_to_whatever_there_is() -> None:
    assert metrics(Analysis(metrics=[]), ACCURACY) == [ACCURACY]
    assert [m.name for m in metrics(Analysis(), ACCURACY)][-2:] == ["refusedRequests", "accuracy"]


def test_a_policy_may_make_client_errors_mandatory_and_a_spec_only_stricter() -> None:
    demanded = Metric(name="clientErrors", max_increase=0.01)
    loose = Analysis(metrics=[Metric(name="clientErrors", max_increase=0.3, dry_run=True)])
    for analysis in (Analysis(), loose, Analysis(metrics=[])):
        [effective] = [m for m in metrics(analysis, demanded) if m.name == "clientErrors"]
        assert (effective.max_increase, effective.dry_run) == (0.01, False)


@pytest.mark.parametrize(
    ("own", "mandatory", "field", "expected"),
    [
        (Metric(name="errors", max_increase=0.1), ERRORS, "max_increase", 0.005),
        (Metric(name="errors", max_increase=0.001), ERRORS, "max_increase", 0.001),
        (Metric(name="errors", max=0.5), ERRORS, "max_increase", 0.005),
        (Metric(name="errors", max=0.02), Metric(name="errors", max=0.05), "max", 0.02),
        (Metric(name="accuracy", min=0.5), Metric(name="accuracy", min=0.9), "min", 0.9),
        (Metric(name="accuracy", min=0.95), Metric(name="accuracy", min=0.9), "min", 0.95),
        (ACCURACY, Metric(name="accuracy", max_drop=0.01, min_samples=500), "min_samples", 500),
        (ACCURACY.model_copy(update={"dry_run": True}), ACCURACY, "dry_run", False),
        (MEMORY.model_copy(update={"for_": "1h"}), MEMORY, "for_", None),
        (MEMORY, MEMORY.model_copy(update={"for_": "1m"}), "for_", "0s"),
        (MEMORY.model_copy(update={"query": "0", "max": 1}), MEMORY, "query", "x"),
    ],
)
def test_a_mandatory_metric_cannot_be_weakened(
    own: Metric, mandatory: Metric, field: str, expected: Any
) -> None:
    [effective] = metrics(Analysis(metrics=[own]), mandatory)
    assert getattr(effective, field) == expected


def test_another_objective_measures_something_else_so_the_mandatory_one_stands() -> None:
    mandatory = Metric(name="latency", objective="50ms", max_increase=0.005)
    [effective] = metrics(
        Analysis(metrics=[Metric(name="latency", objective="10s", max_increase=0.001)]), mandatory
    )
    assert effective == mandatory
    [same] = metrics(
        Analysis(metrics=[Metric(name="latency", objective="0.05s", max_increase=0.001)]), mandatory
    )
    assert same.max_increase == 0.001


def test_slices_of_both_are_watched_each_within_the_smaller_margin() -> None:
    own = Metric(
        name="accuracy", max_drop=0.02, slices=[Slice(name="night", max_drop=0.1), Slice(name="own")]
    )
    mandatory = Metric(name="accuracy", max_drop=0.03, slices=[Slice(name="night"), Slice(name="theirs")])
    [effective] = metrics(Analysis(metrics=[own]), mandatory)
    assert {s.name: s.max_drop for s in effective.slices or ()} == {
        "night": 0.03,
        "theirs": 0.03,
        "own": 0.02,
    }


def test_there_is_an_end_to_what_templates_may_add() -> None:
    many = [Metric(name=f"m{i}", query="x", max=1) for i in range(MAX_METRICS + 1)]
    effective = effective_metrics(Analysis(templates=["web"]), {"web": many}, (), "traefik")
    assert isinstance(effective, MeasurementProblem) and effective.reason == "TooManyMetrics"
