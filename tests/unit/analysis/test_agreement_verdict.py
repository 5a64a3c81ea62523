"""Agreement in the shadow: from what the comparer counted to a verdict."""

from __future__ import annotations

import random

import pytest

from modelrollout.analysis.problem import MeasurementProblem, MeasurementReason
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.provider import measure_agreement
from modelrollout.analysis.providers.prometheus.sources.comparer import agreement_query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.shadow import judge_agreement
from modelrollout.api.v1alpha1 import Counter, RevisionRef, Shadow

ALPHA = 0.01
SHADOW = Shadow(min_samples=100, min_agreement=0.95)
TARGET = ScrapedTarget(
    "ml",
    "digits",
    RevisionRef(revision="digits-2", number=7),
    RevisionRef(revision="digits-1", number=6),
    "none",
)


def judged(total: float, bad: float, shadow: Shadow = SHADOW) -> tuple[str, str]:
    verdict = judge_agreement(shadow, Counter(total=total, bad=bad), None, ALPHA)
    return verdict.verdict, verdict.reason


def test_verdicts() -> None:
    assert judged(0, 0) == ("Inconclusive", "NoData")
    assert judged(99, 0) == ("Inconclusive", "TooFewSamples"), "however well it looks"
    assert judged(300, 0) == ("Successful", "ShadowAgrees")
    assert judged(300, 12) == ("Inconclusive", "NotYetProven")
    assert judged(40, 20) == ("Failed", "ShadowDisagrees"), "what is proven needs no minimum"


def test_the_status_says_what_was_seen_and_how_much_is_missing() -> None:
    verdict = judge_agreement(SHADOW, Counter(total=300, bad=6), None, ALPHA)
    assert verdict.value == 0.98 and verdict.interval and verdict.interval[0] < 0.02 < verdict.interval[1]
    assert verdict.needed and judged(300 + verdict.needed, 6 + 0.02 * verdict.needed)[0] == "Successful"
    assert "6 of 300" in verdict.message and "allows 5.00 %" in verdict.message
    assert judge_agreement(SHADOW, Counter(total=300, bad=15), None, ALPHA).needed is None, (
        "at the limit itself nothing is ever proven"
    )


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("NoData", "Inconclusive"), ("ProviderUnreachable", "Error"), ("NotANumber", "Error")],
)
def test_what_keeps_a_number_away_is_no_disagreement(kind: MeasurementReason, verdict: str) -> None:
    judgement = judge_agreement(
        SHADOW, Counter(total=300, bad=200), MeasurementProblem(kind, "as it is"), ALPHA
    )
    assert (judgement.verdict, judgement.reason) == (verdict, kind) and judgement.canary, (
        "what was counted stays"
    )


@pytest.mark.heavy
def test_looking_often_rejects_no_model_that_agrees_often_enough() -> None:
    """At the limit itself, where a test of fixed size that looks so often would be wrong most of
    the time.
    """
    wrong = 0
    for seed in range(100):
        draw, bad = random.Random(seed), 0
        for n in range(1, 301):
            bad += draw.random() < 0.05
            if n % 6 == 0 and judged(n, bad)[0] == "Failed":
                wrong += 1
                break
    assert wrong <= 4, "1 % is promised"


class Prometheus:
    """Answers with these series."""

    def __init__(self, *series: Series) -> None:
        self.series, self.asked = series, [""]

    async def query(self, queries: object) -> list[Answer | MeasurementProblem]:
        self.asked = list(queries)  # type: ignore[call-overload]
        return [Answer(self.series)]

    async def query_own(self, namespace: str, queries: object) -> dict[str, Answer | MeasurementProblem]:
        raise AssertionError("agreement is no query of a user")

    async def history(self, query: str, times: object) -> dict[int, Answer] | MeasurementProblem:
        raise AssertionError("agreement has no stable to ask about")


def counted(result: str, value: float, scraped: float, instance: str = "a:8002") -> list[Series]:
    labels = {"canary": "7", "instance": instance}
    return [
        Series(labels | {"reading": "count", "result": result}, value, scraped),
        Series(labels | {"reading": "scraped"}, scraped, scraped),
    ]


async def test_counts_since_the_first_look_over_a_comparer_that_was_replaced() -> None:
    first = await measure_agreement(
        Prometheus(*counted("agree", 100, 10), *counted("disagree", 5, 10)), TARGET, None
    )
    assert first.canary and (first.canary.total, first.canary.bad) == (0, 0), "the baseline"
    both = [
        *counted("agree", 150, 20),
        *counted("canary_error", 2, 20),
        *counted("disagree", 6, 20),
        *counted("agree", 30, 20, "b:8002"),
    ]
    second = await measure_agreement(Prometheus(*both), TARGET, first.canary)
    assert second.canary and (second.canary.total, second.canary.bad) == (50 + 1 + 2 + 30, 1 + 2)


def test_the_query_names_both_numbers_and_only_what_is_judged() -> None:
    promql = agreement_query(TARGET, baseline=False).promql
    for part in (
        'name="digits"',
        'canary="7"',
        'stable="6"',
        'namespace="ml"',
        'result=~"agree|disagree|canary_error"',
    ):
        assert part in promql
    assert "stable_error" not in promql
