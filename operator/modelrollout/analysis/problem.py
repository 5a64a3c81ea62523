"""Why a metric has no reading. Each cause has a reason of its own; none is a regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelrollout.problem import Problem
from modelrollout.reasons import Reason

MeasurementReason = Literal[
    Reason.PROVIDER_UNREACHABLE,  # no connection: refused, unknown host, TLS
    Reason.PROVIDER_TIMEOUT,
    Reason.PROVIDER_DENIED,  # 401, 403, or credentials that cannot be read
    Reason.PROVIDER_ERROR,  # 5xx, 429 and other faults of the provider
    Reason.QUERY_REJECTED,  # 400, 422: the query is wrong or too expensive
    Reason.BAD_ANSWER,  # 200, but not the provider's own format
    Reason.NO_DATA,
    Reason.NO_SOURCE,  # nothing here measures this metric
    Reason.NO_STABLE_DATA,
    Reason.STALE_DATA,  # scraped before the step began
    Reason.SEVERAL_SERIES,
    Reason.NOT_A_NUMBER,
    # impossible counts: another program writes the counters; they say nothing about the model
    Reason.EVIDENCE_IMPLAUSIBLE,
    Reason.NOT_A_BUCKET_BOUND,
    Reason.QUERY_NOT_ALLOWED,  # a namespace's own query: no such query here, or not this one
    Reason.QUERY_PENDING,  # a namespace's own query has no answer yet; built-in metrics do not wait for it
    Reason.QUERIES_PAUSED,  # a namespace's own queries took too long
    Reason.UNKNOWN_PLACEHOLDER,
    Reason.UNKNOWN_TEMPLATE,
    Reason.TOO_MANY_METRICS,
]


@dataclass(frozen=True)
class MeasurementProblem(Problem):
    """Why there is no reading. The message holds no secret: it is published in status."""

    reason: MeasurementReason
