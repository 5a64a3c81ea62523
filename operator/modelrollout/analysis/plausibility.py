"""Impossible counts: they show that another party writes the counters, not how the model performs,
so no verdict rests on them.

This is the second line of defence; the first is the rule of who may count
(docs/design/0010-who-may-count.md). The limits are so wide that honest traffic never exceeds them,
whether a gateway splits requests by turns or by chance, with one proxy or many. Too few requests of
the canary are no sign: a canary that crashes has none, and must be rolled back. (Where its pods are
well they are a sign of the gateway, ``weight_ignored``: no verdict is withheld for that.)
"""

from __future__ import annotations

from math import log

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api.v1alpha1 import Counter
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.statistics.sequential import share_log_evidence
from modelrollout.statistics.split import ENOUGH, LEAST, MOST, split_log_evidence

TIMES = 4.0  # the canary's odds may be this many times those of its weight
# times the rows that were counted: pods that were never scraped have answered too
LABELLED = 2.0
FEW = 10  # labels
_ALPHA = 1e-6  # over all looks at a step
REMEDY = "gatewayMetrics.selector says who may count (docs/how-to/install.md)"


def impossible_counts(what: str) -> MeasurementProblem:
    """The problem of a counter that no process can have."""
    return MeasurementProblem(
        Reason.EVIDENCE_IMPLAUSIBLE,
        f"{what}: no process counts like that, so no verdict rests on it; {REMEDY}",
    )


def share_off_weight(
    canary: Counter | None, stable: Counter | None, weight: int
) -> MeasurementProblem | None:
    """The problem of a canary whose share of the requests is proven to be far above its weight.
    Only for a gateway that splits requests one by one.
    """
    if canary is None or stable is None or not 0 < weight < 100:
        return None
    if stable.total == 0:  # counts cannot be taken away: it is the gateway (``weight_ignored``)
        return None
    total, odds = canary.total + stable.total, TIMES * weight / (100 - weight)
    if share_log_evidence(canary.total, total, odds / (1 + odds)) < -log(_ALPHA):
        return None
    counted = (
        f"{canary.total:.0f} of {total:.0f} requests ({100 * canary.total / total:.1f} %) were counted on the"
        f" canary at weight {weight}"
    )
    return MeasurementProblem(
        Reason.EVIDENCE_IMPLAUSIBLE,
        f"{counted}: the gateway does not keep to the weight, or others write these counters; {REMEDY}",
    )


def weight_ignored(canary: Counter | None, stable: Counter | None, weight: int) -> Problem | None:
    """The problem of a gateway that is proven not to split requests by the weight: all go to one
    side, or nearly all. Only where requests are split one by one, and no client sticks to a
    revision, and pods of both sides were ready all the time: without a pod a side gets none.
    """
    if canary is None or stable is None or not LEAST <= weight <= MOST:
        return None
    began = min((c.began for c in (canary, stable) if c.began is not None), default=0.0)
    seconds = max((c.scraped for c in (canary, stable) if c.scraped is not None), default=0.0) - began
    if split_log_evidence(canary.total, stable.total, weight, seconds) < ENOUGH:
        return None
    total = canary.total + stable.total
    return Problem(
        Reason.WEIGHT_IGNORED,
        f"{canary.total:.0f} of {total:.0f} requests ({100 * canary.total / total:.1f} %) went to the canary"
        f" at weight {weight}: the gateway does not split them by weight, or something before it keeps"
        " clients on a revision, so this step shows nothing of that share; see that the gateway takes up"
        " weights (docs/reference/gateways.md), then the step goes on, or abort",
    )


def more_labels_than_rows(
    labels: Counter | None, rows: float, scraped: float, per_row: float
) -> MeasurementProblem | None:
    """The problem of a version with more labels than its servers had answered rows at ``scraped``,
    which is no earlier than the count of the labels.
    """
    if labels is None or labels.scraped is None or not scraped >= labels.scraped:
        return None
    if not labels.total > LABELLED * per_row * rows + FEW:  # in this form NaN is no problem
        return None
    counted = (
        f"{labels.total:.0f} labels have come for answers of the canary, whose servers have answered"
        f" {rows:.0f} rows at most"
    )
    remedy = (
        "feedback.selector says who may count, feedback.labelsPerRow how many labels a row may get"
        " (docs/how-to/install.md)"
    )
    return MeasurementProblem(
        Reason.EVIDENCE_IMPLAUSIBLE, f"{counted}: others send labels, too, or a row has several; {remedy}"
    )
