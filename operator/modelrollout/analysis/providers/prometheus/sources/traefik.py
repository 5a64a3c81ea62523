"""The gateway's counters where the gateway is Traefik: requests by status code, and a histogram of
their durations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Series
from modelrollout.analysis.providers.prometheus.promql import any_of, counters, join_matchers
from modelrollout.analysis.providers.prometheus.sources.base import Query, Sides, sum_sample
from modelrollout.analysis.providers.prometheus.sources.gateway import (
    GRPC_STATUS,
    Histogram,
    metric_of_http,
)
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Side
from modelrollout.api import names
from modelrollout.api.v1alpha1 import Metric, seconds

_REQUESTS = "traefik_service_requests_total"
_BUCKETS = "traefik_service_request_duration_seconds_bucket"
_LABELS = ("service", "code", "method", "protocol")
_DURATIONS = Histogram(_BUCKETS, _LABELS, 1.0)
# UNKNOWN (2) is left out. Traefik 3.6 looks for the status in the headers only: a success, whose
# status comes in the trailers, is counted as 2, and so is a refused connection. Errors of Triton
# come without a message, hence in the headers, and are counted right
# (docs/reference/reasons-analysis.md, Blind spots).
_UNKNOWN = "2"


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
        selector = f"{services},{_DURATIONS.matcher(objective)}"
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
        return _DURATIONS.sample(query.objective, counts, scraped)

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Neither side has a counter. Traefik has none of a canary before its first request."""
        return not reading.canary.processes and not reading.stable.processes


TRAEFIK = Traefik()


def bounds_query(target: ScrapedTarget) -> str:
    """The bucket bounds of the histogram."""
    return _DURATIONS.bounds(_services(target))


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
        return None if code == _UNKNOWN else GRPC_STATUS.get(code)
    return metric_of_http(code)
