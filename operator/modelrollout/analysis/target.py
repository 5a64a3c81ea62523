"""What a metrics provider measures: two revisions of one ModelDeployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelrollout.api.v1alpha1 import RevisionRef
from modelrollout.api.v1alpha1.policy import Queries

Profile = Literal["traefik", "none"]


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
    promql: frozenset[str] = frozenset()
    queries: Queries = "Templates"
