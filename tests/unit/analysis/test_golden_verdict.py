"""Golden data: judged once, in pairs."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.golden import judge_golden
from modelrollout.api.tasks import Paired, TaskResult
from modelrollout.api.v1alpha1 import EvaluationEvidence, Golden

GOLDEN = Golden(uri="s3://data/golden.npz", max_drop=0.01, min=0.9)


def result(both: int = 0, candidate: int = 0, stable: int = 0, neither: int = 0, **changes: Any) -> TaskResult:
    n = both + candidate + stable + neither
    values = {
        "samples": n,
        "accuracy": (both + candidate) / n,
        "stable_accuracy": (both + stable) / n,
        "paired": Paired(n=n, both_right=both, only_candidate_right=candidate, only_baseline_right=stable, both_wrong=neither),
        "protocols_agree": True,
        "latency_p99_ms": 2.5,
    }
    return TaskResult.model_validate(values | changes)


def verdict(found: EvaluationEvidence) -> tuple[str, str]:
    return found.verdict, found.reason


def test_a_model_as_good_passes_with_its_numbers() -> None:
    found = judge_golden(GOLDEN, result(both=1900, candidate=20, stable=20, neither=60), "digits-old")
    assert verdict(found) == ("Successful", "ProvenNotWorse")
    assert (found.samples, found.accuracy, found.stable, found.only_candidate_right, found.latency_p99_ms) == (2000, 0.96, "digits-old", 20, 2.5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"both": 1800, "candidate": 10, "stable": 150, "neither": 40}, ("Failed", "AccuracyLow")),  # a drop of seven points
        ({"both": 1700, "candidate": 20, "stable": 20, "neither": 260}, ("Failed", "AccuracyLow")),  # as good as stable, below min
        ({"both": 28, "candidate": 0, "stable": 1, "neither": 1}, ("Inconclusive", "TooFewSamples")),
    ],
)
def test_a_loss_and_too_little_data_are_told_apart(counts: dict[str, int], expected: tuple[str, str]) -> None:
    assert verdict(judge_golden(GOLDEN, result(**counts), "digits-old")) == expected


def test_without_stable_only_min_decides() -> None:
    assert verdict(judge_golden(GOLDEN, result(both=95, neither=5, paired=None), None)) == ("Successful", "WithinLimits")
    assert verdict(judge_golden(GOLDEN, result(both=85, neither=15, paired=None), None)) == ("Failed", "AccuracyLow")
    without_min = GOLDEN.model_copy(update={"min": None})
    assert verdict(judge_golden(without_min, result(both=1, neither=99, paired=None), None)) == ("Successful", "WithinLimits")


@pytest.mark.parametrize(
    ("changes", "stable", "expected"),
    [
        ({"protocols_agree": False}, "digits-old", ("Failed", "ProtocolsDisagree")),
        ({"accuracy": None}, None, ("Error", "NoResult")),
        ({"samples": 0}, None, ("Error", "NoResult")),
        ({"paired": None}, "digits-old", ("Error", "NotPaired")),
        ({"paired": Paired(n=5, both_right=9, only_candidate_right=0, only_baseline_right=0, both_wrong=0)}, "digits-old", ("Error", "NoResult")),
    ],
)
def test_no_result_is_an_error_and_not_a_regression(changes: dict[str, Any], stable: str | None, expected: tuple[str, str]) -> None:
    assert verdict(judge_golden(GOLDEN, result(both=95, neither=5, **changes), stable)) == expected
