"""Golden data: judged once, in pairs."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.golden import judge_golden
from modelrollout.api.v1alpha1 import EvaluationEvidence, Golden
from modelrollout.contract.results import Paired, TaskResult

GOLDEN = Golden(uri="s3://data/golden.npz", max_drop=0.01, min=0.9)


def result(
    both: int = 0, candidate: int = 0, stable: int = 0, neither: int = 0, **changes: Any
) -> TaskResult:
    n = both + candidate + stable + neither
    values = {
        "samples": n,
        "accuracy": (both + candidate) / n,
        "stable_accuracy": (both + stable) / n,
        "paired": Paired(
            n=n,
            both_right=both,
            only_candidate_right=candidate,
            only_baseline_right=stable,
            both_wrong=neither,
        ),
        "protocols_agree": True,
        "latency_p99_ms": 2.5,
    }
    return TaskResult.model_validate(values | changes)


def verdict(actual: EvaluationEvidence) -> tuple[str, str]:
    return actual.verdict, actual.reason


def test_a_model_as_good_passes_with_its_numbers() -> None:
    judgement = judge_golden(GOLDEN, result(both=1900, candidate=20, stable=20, neither=60), "digits-old")
    assert verdict(judgement) == ("Successful", "ProvenNotWorse")
    assert (
        judgement.samples,
        judgement.accuracy,
        judgement.stable,
        judgement.only_candidate_right,
        judgement.latency_p99_ms,
    ) == (2000, 0.96, "digits-old", 20, 2.5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # a drop of seven points
        ({"both": 1800, "candidate": 10, "stable": 150, "neither": 40}, ("Failed", "AccuracyLow")),
        # as good as stable, below min
        ({"both": 1700, "candidate": 20, "stable": 20, "neither": 260}, ("Failed", "AccuracyLow")),
        ({"both": 28, "candidate": 0, "stable": 1, "neither": 1}, ("Inconclusive", "TooFewSamples")),
    ],
)
def test_a_loss_and_too_little_data_are_told_apart(counts: dict[str, int], expected: tuple[str, str]) -> None:
    assert verdict(judge_golden(GOLDEN, result(**counts), "digits-old")) == expected


def test_without_stable_only_min_decides() -> None:
    assert verdict(judge_golden(GOLDEN, result(both=95, neither=5, paired=None), None)) == (
        "Successful",
        "WithinLimits",
    )
    assert verdict(judge_golden(GOLDEN, result(both=85, neither=15, paired=None), None)) == (
        "Failed",
        "AccuracyLow",
    )
    without_min = GOLDEN.model_copy(update={"min": None})
    assert verdict(judge_golden(without_min, result(both=1, neither=99, paired=None), None)) == (
        "Successful",
        "WithinLimits",
    )


@pytest.mark.parametrize(
    ("changes", "stable", "expected"),
    [
        ({"protocols_agree": False}, "digits-old", ("Failed", "ProtocolsDisagree")),
        ({"accuracy": None}, None, ("Error", "NoResult")),
        ({"samples": 0}, None, ("Error", "NoResult")),
        ({"paired": None}, "digits-old", ("Error", "NotPaired")),
        (
            {
                "paired": Paired(
                    n=5, both_right=9, only_candidate_right=0, only_baseline_right=0, both_wrong=0
                )
            },
            "digits-old",
            ("Error", "NoResult"),
        ),
    ],
)
def test_no_result_is_an_error_and_not_a_regression(
    changes: dict[str, Any], stable: str | None, expected: tuple[str, str]
) -> None:
    assert verdict(judge_golden(GOLDEN, result(both=95, neither=5, **changes), stable)) == expected


def sliced(*slices: tuple[str, int, int, int], compared: int | None = None) -> TaskResult:
    """As good as stable on the whole."""
    return result(
        both=1800, candidate=70, stable=60, neither=70, slices=slices, slices_compared=compared or len(slices)
    )


def test_a_gain_of_the_whole_hides_no_loss_on_a_slice() -> None:
    judgement = judge_golden(
        GOLDEN, sliced(("writer=3", 200, 0, 40), ("writer=4", 1800, 70, 20)), "digits-old"
    )
    assert verdict(judgement) == ("Failed", "SliceAccuracyLow")
    assert "writer=3 lost 0.2000" in judgement.message and "1 of 2 slices" in judgement.message
    assert judgement.slices and [s.name for s in judgement.slices] == ["writer=3", "writer=4"]
    assert judgement.slices[0].drop == 0.2 and judgement.slices[0].interval[0] > 0.01


def test_a_slice_too_small_to_prove_anything_holds_nothing_up() -> None:
    assert verdict(judge_golden(GOLDEN, sliced(("writer=3", 12, 0, 2)), "digits-old")) == (
        "Successful",
        "ProvenNotWorse",
    )


def test_a_loss_within_the_budget_is_none() -> None:
    """Proven to be above 0, and not above maxDrop."""
    judgement = judge_golden(
        GOLDEN.model_copy(update={"max_drop": 0.05}), sliced(("writer=3", 1000, 5, 40)), "digits-old"
    )
    assert verdict(judgement) == ("Successful", "ProvenNotWorse")
    assert judgement.slices and 0 < judgement.slices[0].interval[0] < 0.05


def test_the_more_slices_are_compared_the_more_it_takes_to_prove_one() -> None:
    """Among a thousand slices some look bad by chance."""
    one = ("writer=3", 100, 0, 8)
    assert judge_golden(GOLDEN, sliced(one), "digits-old").reason == "SliceAccuracyLow"
    assert judge_golden(GOLDEN, sliced(one, compared=1000), "digits-old").reason == "ProvenNotWorse"


def test_what_the_whole_has_lost_is_told_first() -> None:
    bad = result(
        both=1800,
        candidate=10,
        stable=150,
        neither=40,
        slices=(("writer=3", 200, 0, 100),),
        slices_compared=1,
    )
    verdict = judge_golden(GOLDEN, bad, "digits-old")
    assert verdict.reason == "AccuracyLow" and verdict.slices


def test_without_stable_there_is_nothing_to_compare_a_slice_with() -> None:
    assert judge_golden(GOLDEN, result(both=95, neither=5, paired=None), None).slices is None
