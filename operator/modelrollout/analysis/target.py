"""What a metrics provider measures: two revisions of one ModelDeployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modelrollout.api.v1alpha1 import REQUEST_METRICS, Metric, RevisionRef
from modelrollout.api.v1alpha1.policy import Queries
from modelrollout.config import Profile
from modelrollout.problem import Problem


@dataclass(frozen=True, slots=True)
class Counting:
    """Who counts the requests of a ModelDeployment.

    ``unknown``: why that is not known, so that nothing may be counted yet. ``uncounted``: why the
    gateway's own counters are not used, although there is a gateway. ``routes``: names of its
    present routes.
    """

    profile: Profile = "none"
    unknown: Problem | None = None
    uncounted: Problem | None = None
    routes: tuple[str, ...] = ()


NOT_BY_GATEWAY = Counting()
ERRORS = "errors"  # the metric that servers count beside the gateway
TRITON = "triton"  # who counts, where it is the servers


def counted_by(metric: Metric, profile: Profile) -> str | None:
    """Who counts for a built-in metric, as status records it; None for any other metric. A gateway
    sees when an answer ends, and only Triton when it begins.
    """
    if metric.name == "accuracy":
        return "feedback"
    if metric.name not in REQUEST_METRICS:
        return None
    return TRITON if profile == "none" or metric.of == "FirstResponse" else profile


def sources_of(metrics: Iterable[Metric], profile: Profile) -> dict[str, str | None]:
    """Who counts for each metric."""
    return {m.name: counted_by(m, profile) for m in metrics}


@dataclass(frozen=True, slots=True)
class Target:
    """The revisions to compare, and who counts their requests.

    ``profile``: of the gateway that carries the traffic; ``none`` without a gateway, where Triton's
    own counters count. ``window_seconds``: how far a custom query may look back, best the time
    since the step began to be observed. ``promql``: the queries that policies contain; ``queries``
    says whether any other may run.
    """

    namespace: str
    name: str
    canary: RevisionRef
    stable: RevisionRef | None
    profile: Profile
    window_seconds: float = 60.0
    weight: int = 0  # of the canary, percent
    # how long ago the canary answered the oldest row that may be labelled now; 0: unknown
    rows_seconds: float = 0.0
    pods: int = 0  # servers of the canary
    # Unix seconds since when stable's version has had servers. Earlier series of its number are of
    # a ModelDeployment of this name that was deleted.
    stable_since: float = 0.0
    # For a gateway that counts by route and by a backend's position in its rules: names of the
    # routes, and the revisions in their order.
    routes: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    promql: frozenset[str] = frozenset()
    queries: Queries = "Templates"
    decoupled: bool = False  # the canary streams its answers
    # of Triton, by revision, where a server has reported it
    triton_versions: Mapping[str, str] = field(default_factory=dict)
