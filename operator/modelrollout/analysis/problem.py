"""Why a metric has no reading. Each cause has a reason of its own; none is a regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelrollout.problem import Problem

MeasurementReason = Literal[
    "ProviderUnreachable",  # no connection: refused, unknown host, TLS
    "ProviderTimeout",
    "ProviderDenied",  # 401, 403, or credentials that cannot be read
    "ProviderError",  # 5xx, 429 and other faults of the provider
    "QueryRejected",  # 400, 422: the query is wrong or too expensive
    "BadAnswer",  # 200, but not the provider's own format
    "NoData",
    "NoSource",  # nothing here measures this metric
    "NoStableData",
    "SeveralSeries",
    "NotANumber",
    # impossible counts: they say that someone else counts, not how the model performs
    "EvidenceImplausible",
    "NotABucketBound",
    "QueryNotAllowed",  # a namespace's own query: no such query here, or not this one
    "QueryPending",  # a namespace's own query has no answer yet; built-in metrics do not wait for it
    "QueriesPaused",  # a namespace's own queries took too long
    "UnknownPlaceholder",
    "UnknownTemplate",
    "TooManyMetrics",
]


@dataclass(frozen=True)
class MeasurementProblem(Problem):
    """Why there is no reading. The message holds no secret: it is published in status."""

    reason: MeasurementReason
