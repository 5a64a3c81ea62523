"""What keeps a measurement from being a number, each cause by its own name: none of them is ever a
regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ProblemKind = Literal[
    "ProviderUnreachable",  # no connection: refused, no such host, TLS
    "ProviderTimeout",
    "ProviderDenied",  # 401, 403, or credentials that cannot be read
    "ProviderError",  # 5xx, 429 and whatever else is the server's
    "QueryRejected",  # 400, 422: the query is wrong or too dear
    "BadAnswer",  # 200, but not an instant vector or a scalar
    "NoData",
    "NoSource",  # nothing measures this here
    "NoStableData",
    "SeveralSeries",
    "NotANumber",
    # counts that cannot be: whose they are is the question, not how the model does
    "EvidenceImplausible",
    "NotABucketBound",
    "QueryNotAllowed",  # PromQL of a namespace's own: not at all here, or not this
    "QueryPending",  # such a query has not been answered yet; built-in metrics do not wait for it
    "QueriesPaused",  # such queries of this namespace took too long
    "UnknownPlaceholder",
    "UnknownTemplate",
    "TooManyMetrics",
]


@dataclass(frozen=True, slots=True)
class MeasurementProblem:
    """Why there is no number. ``message`` is for people and holds no secret."""

    kind: ProblemKind
    message: str


@dataclass(frozen=True, slots=True)
class Series:
    """One element of an instant vector; ``timestamp`` is the evaluation's, in Unix seconds."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider said to one query; no series is an answer too."""

    series: tuple[Series, ...] = ()
