"""Counts that cannot be: something is wrong with those who count, and not with the model, so nobody
is judged by them.

The second line: the first is who may count (queries.Sources). It has to be so wide that honest
traffic never meets it: requests in turns or by chance, many proxies that each begin their turns
anew. Too few requests of the canary are no sign: one that crashes has none, and must be rolled
back.
"""

from __future__ import annotations

from math import log

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api.v1alpha1 import Counter
from modelrollout.statistics.sequential import share_log_evidence

TIMES = 4.0  # the odds of the canary may be so many times those of its weight
# times what was served: a pod that was not scraped before it went, or not yet, has answered too
LABELLED = 2.0
FEW = 10  # labels
_ALPHA = 1e-6  # over all looks at a step
REMEDY = "gatewayMetrics.selector says who may count (docs/how-to/install.md)"


def impossible_counts(what: str) -> MeasurementProblem:
    """Of a counter that no process has."""
    return MeasurementProblem(
        "EvidenceImplausible", f"{what}: nobody counts like that, and nothing is judged by it; {REMEDY}"
    )


def share_off_weight(
    canary: Counter | None, stable: Counter | None, weight: int
) -> MeasurementProblem | None:
    """The canary's share of the requests is far above the weight that the gateway was given,
    proven. Only for requests that it splits one by one.
    """
    if canary is None or stable is None or not 0 < weight < 100:
        return None
    seen, odds = canary.total + stable.total, TIMES * weight / (100 - weight)
    if share_log_evidence(canary.total, seen, odds / (1 + odds)) < -log(_ALPHA):
        return None
    counted = (
        f"{canary.total:.0f} of {seen:.0f} requests ({100 * canary.total / seen:.1f} %) were counted on the"
        f" canary at weight {weight}"
    )
    return MeasurementProblem(
        "EvidenceImplausible",
        f"{counted}: the gateway does not keep to the weight, or somebody else counts; {REMEDY}",
    )


def more_labels_than_rows(
    labels: Counter | None, rows: float, scraped: float, per_row: float
) -> MeasurementProblem | None:
    """More labels of the version had come, when they were last looked at, than its servers had
    answered rows at ``scraped``, no earlier.
    """
    if labels is None or labels.scraped is None or not scraped >= labels.scraped:
        return None
    if not labels.total > LABELLED * per_row * rows + FEW:  # so written, NaN accuses nobody
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
        "EvidenceImplausible", f"{counted}: somebody else counts, or a row has several labels; {remedy}"
    )
