"""The gateway's counters where the gateway is Traefik: requests by status code, and a histogram of
their durations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.promql import any_of, counters, join_matchers
from modelrollout.analysis.providers.prometheus.sources.base import NoBoundError, Query, Sides, sum_sample
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Side
from modelrollout.api import names
from modelrollout.api.v1alpha1 import Metric, seconds

_REQUESTS = "traefik_service_requests_total"
_BUCKETS = "traefik_service_request_duration_seconds_bucket"
_LABELS = ("service", "code", "method", "protocol")
# By gRPC status the metric that calls it bad. UNKNOWN (2) is left out. Traefik 3.6 looks for the
# status in the headers only: a success, whose status comes in the trailers, is counted as 2, and so
# is a refused connection. Errors of Triton come without a message, hence in the headers, and are
# counted right (docs/reference/reasons-analysis.md, Blind spots).
_GRPC = {
    "1": "refusedRequests",  # CANCELLED
    "3": "clientErrors",  # INVALID_ARGUMENT
    "4": "errors",  # DEADLINE_EXCEEDED
    # NOT_FOUND: a client that names another version than the one that answers
    "5": "refusedRequests",
    "6": "clientErrors",  # ALREADY_EXISTS
    "7": "refusedRequests",  # PERMISSION_DENIED
    "8": "errors",  # RESOURCE_EXHAUSTED
    "9": "clientErrors",  # FAILED_PRECONDITION
    "10": "clientErrors",  # ABORTED
    "11": "clientErrors",  # OUT_OF_RANGE
    "12": "clientErrors",  # UNIMPLEMENTED
    "13": "errors",  # INTERNAL
    "14": "errors",  # UNAVAILABLE
    "15": "errors",  # DATA_LOSS
    "16": "refusedRequests",  # UNAUTHENTICATED
}
# What a gateway decides (credentials, payment, quotas, connections, laws) or the caller (who gives
# up), whatever model answers. Every other 4xx is the model server's word on the request.
_HTTP_REFUSED = frozenset({"401", "402", "403", "407", "408", "421", "425", "429", "451", "499"})


class Traefik:
    """``EvidenceSource`` of what a Traefik gateway sees of requests: their answers and latency."""

    side_label = "service"

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
        """Status codes for answers, buckets for latency."""
        services = _services(target)
        if metric.name != "latency":
            promql = counters(_REQUESTS, _LABELS, services, self.side_label, ("code",), baseline)
            return Query(metric.name, promql, self)
        objective = round(seconds(metric.objective or "0s"), 9)
        selector = f'{services},le=~"{"|".join(_bound_forms(objective))}|\\\\+Inf"'
        promql = counters(_BUCKETS, (*_LABELS, "le"), selector, self.side_label, ("le",), baseline)
        return Query(metric.name, promql, self, objective, bounds=bounds_query(target))

    def sides(self, target: ScrapedTarget) -> Sides:
        """HTTP and gRPC are counters of their own: Traefik may drop and create one of them while
        the other goes on.
        """
        sides: dict[str, tuple[Side, str]] = {}
        revisions: list[tuple[Side, str]] = [("canary", target.canary.revision)]
        if target.stable:
            revisions.append(("stable", target.stable.revision))
        for side, revision in revisions:
            labels = service_labels(target.namespace, revision)
            sides |= {label: (side, protocol) for label, protocol in labels.items()}
        return sides

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """Slow requests for latency, else those whose answer is bad in this metric."""
        if query.objective is None:
            return sum_sample(counts, scraped, lambda s: metric_of(s) == query.metric)
        total = sum(s.value for s in counts if s.labels.get("le") == "+Inf")
        fast = [s.value for s in counts if _number(s.labels.get("le", "")) == query.objective]
        if total and not fast:
            raise NoBoundError
        return Sample(total, total - sum(fast), scraped)

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Neither side has a counter. Traefik has none of a canary before its first request."""
        return not reading.canary.processes and not reading.stable.processes


TRAEFIK = Traefik()


def bounds_query(target: ScrapedTarget) -> str:
    """The bucket bounds of the histogram."""
    return f"count by (le) ({_BUCKETS}{{{_services(target)}}})"


def name_bounds(problem: MeasurementProblem, bounds: Answer) -> MeasurementProblem:
    """``problem`` with the bounds that exist."""
    known = sorted({b for s in bounds.series if math.isfinite(b := _number(s.labels.get("le", "")))})
    listed = ", ".join(f"{b * 1000:g}ms" if b < 1 else f"{b:g}s" for b in known) or "none"
    return MeasurementProblem(
        problem.reason,
        f"{problem.message}; its bounds are {listed}: choose one of them, or configure the gateway's buckets",
    )


def service_labels(namespace: str, revision: str) -> dict[str, str]:
    """Traefik's ``service`` labels of a revision's Service, each with its protocol.

    The two kinds of route name it in different ways, and characters other than letters and digits
    become one dash (Traefik 3.6).
    """

    def label(*parts: str) -> str:
        return "-".join(re.findall(r"[^\W_]+", "-".join(parts))) + "@kubernetesgateway"

    return {
        label(namespace, revision, "http", str(names.PORT_HTTP)): "http",
        label(namespace, revision, str(names.PORT_GRPC), "grpc"): "grpc",
    }


def _services(target: ScrapedTarget) -> str:
    sides = [r for r in (target.canary, target.stable) if r]
    services = any_of([label for r in sides for label in service_labels(target.namespace, r.revision)])
    return join_matchers(f'service=~"{services}"', target.matchers.gateway)


def metric_of(series: Series) -> str | None:
    """The one metric in which answers of this status code are bad; None for good ones."""
    code = series.labels.get("code", "")
    if series.labels.get("service", "").endswith("-grpc@kubernetesgateway"):
        return _GRPC.get(code)
    if code in _HTTP_REFUSED:
        return "refusedRequests"
    return {"4": "clientErrors", "5": "errors"}.get(code[:1])


def _bound_forms(objective: float) -> list[str]:
    """How ``le`` may write a bound: Prometheus 3 writes whole numbers as 1.0, those before as 1."""
    text = repr(objective)
    forms = [text, text.removesuffix(".0")] if text.endswith(".0") else [text]
    return [f.replace(".", "\\\\.") for f in forms]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
