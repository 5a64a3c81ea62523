"""From the metrics of a step to one verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelrollout.api.v1alpha1 import Metric, MetricStatus, VerdictName
from modelrollout.reasons import Reason

# of one rollout: the chance of proving something false, over all its steps, metrics and readings
FALSE_ALARM_BUDGET = 0.01
_ORDER: tuple[VerdictName, ...] = ("Failed", "Error", "Inconclusive", "Successful")


class Verdict(NamedTuple):
    """The verdict on a step. ``reason``: of the first metric that decides; ``message``: of all that
    do.
    """

    name: VerdictName
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to judge: a metric, or one slice of it. ``name`` is its name in status, ``alpha``
    its share of the rollout's budget.
    """

    name: str
    metric: Metric
    alpha: float
    slice: str | None = None


def combine(metrics: Sequence[MetricStatus]) -> Verdict:
    """Failed wins over Error over Inconclusive over Successful. Without metrics: Inconclusive.

    Implausible evidence wins over all: if another program writes the counters, they prove nothing.
    A slice decides only by failing: one with few samples would block every rollout. A dry run
    decides nothing.
    """
    voting = [m for m in metrics if not m.dry_run and (m.slice is None or m.verdict == "Failed")]
    if implausible := [m for m in voting if m.verdict == "Error" and m.reason == Reason.EVIDENCE_IMPLAUSIBLE]:
        return Verdict("Error", Reason.EVIDENCE_IMPLAUSIBLE, _messages(implausible))
    for name in _ORDER:
        deciding = [m for m in voting if m.verdict == name]
        if deciding:
            return Verdict(name, deciding[0].reason, _messages(deciding))
    return Verdict(
        "Inconclusive",
        Reason.NO_METRICS,
        "no metric decides: leave spec.rollout.analysis.metrics out for the default, or name one that is no"
        " dryRun",
    )


def _messages(metrics: Sequence[MetricStatus]) -> str:
    """The messages of the metrics. One that several share, such as a provider's time-out, is given
    once.
    """
    return "; ".join(dict.fromkeys(m.message for m in metrics))


def alpha_of(metrics: Sequence[Metric]) -> float:
    """The share of the budget for each metric that is judged by counts. A query is a plain
    threshold and a dry run decides nothing, so they take none.
    """
    return FALSE_ALARM_BUDGET / max(1, sum(1 for m in metrics if m.query is None and not m.dry_run))


def parts_of(metrics: Sequence[Metric]) -> list[Part]:
    """The parts to judge. A metric with slices keeps half of its share for all answers together;
    its slices divide the other half equally.
    """
    share = alpha_of(metrics)
    parts: list[Part] = []
    for metric in metrics:
        slices = metric.slices or []
        parts.append(Part(metric.name, metric, share / 2 if slices else share))
        for part in slices:
            of_slice = metric.model_copy(
                update={"max_drop": part.max_drop or metric.max_drop, "min": None, "slices": None}
            )
            parts.append(Part(f"{metric.name}/{part.name}", of_slice, share / 2 / len(slices), part.name))
    return parts
