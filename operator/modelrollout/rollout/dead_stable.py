"""Stable is dead: pods of it are asked for, and none has been ready for a minute.

A comparison with it is impossible, and every request to it fails. Status keeps since when no pod is
ready, so the time survives a restart of the operator.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, RolloutStatus
from modelrollout.reasons import Reason
from modelrollout.rollout.snapshot import Observed, in_flight, predecessor
from modelrollout.rollout.transitions import weight

DEAD_SECONDS = 60.0
# stages in which the revision in flight is compared with stable, and has not yet replaced it
COMPARING_STAGES = ("Evaluate", "Shadow", "Canary")


def down_since(s: Observed, status: ModelDeploymentStatus, now: datetime) -> str | None:
    """Since when no pod of stable is ready although some are asked for, for status.

    The pods of a stable that had none are starting: they are down once the time that they
    may take to start is over.
    """
    if status.stable is None or not _has_no_ready_pod(s, status.stable.revision):
        return None
    before = s.status
    if before.stable_down_since and before.stable and before.stable.revision == status.stable.revision:
        return before.stable_down_since
    started = any(c.type == "Available" and c.reason == Reason.SCALED_TO_ZERO for c in before.conditions)
    grace = s.spec.serving.startup_seconds() if started and s.spec is not None else 0.0
    return stamp(now + timedelta(seconds=grace))


def _has_no_ready_pod(s: Observed, revision: str) -> bool:
    """Whether pods of the revision are asked for and none is ready. A Deployment that is missing is
    about to be created.
    """
    server = s.server(revision)
    asked = server.desired_replicas > 0 or (s.spec is not None and s.spec.serving.replicas > 0)
    return asked and server.ready == 0


def is_down(s: Observed) -> bool:
    """Whether the stable that the revision in flight is to replace has no ready pod now."""
    stable = predecessor(s)
    return stable is not None and _has_no_ready_pod(s, stable.revision)


def seconds_until_dead(s: Observed, now: datetime, leading_since: datetime | None = None) -> float | None:
    """Seconds until stable counts as dead, negative if it does; None while it has a ready pod.

    A new leader waits as long itself, since stable may have been ready while there was none.
    """
    return _seconds_left(s, now, leading_since) if is_down(s) else None


def seconds_until_outage(s: Observed, now: datetime, leading_since: datetime | None = None) -> float | None:
    """The same outside of a rollout: seconds until it is said that stable serves no request."""
    stable = s.status.stable
    if stable is None or in_flight(s.status.rollout) or not _has_no_ready_pod(s, stable.revision):
        return None
    return _seconds_left(s, now, leading_since)


def _seconds_left(s: Observed, now: datetime, leading_since: datetime | None) -> float | None:
    if s.status.stable_down_since is None:
        return None
    counted = since(s.status.stable_down_since, now)
    if leading_since is not None:
        counted = min(counted, (now - leading_since).total_seconds())
    return DEAD_SECONDS - counted


def is_newly_dead(s: Observed, now: datetime, leading_since: datetime | None = None) -> bool:
    """Whether stable is dead, and the revision in flight was to be compared with it until now."""
    rollout = s.status.rollout
    if rollout is None or rollout.stage not in COMPARING_STAGES or rollout.uncompared_since is not None:
        return False
    left = seconds_until_dead(s, now, leading_since)
    return left is not None and left <= 0


def is_back(s: Observed) -> bool:
    """Whether all pods of stable are ready, so that it can carry its weight again."""
    stable = predecessor(s)
    server = s.server(stable.revision if stable else None)
    return server.ready >= max(1, server.desired_replicas)


def is_all_that_serves(s: Observed) -> bool:
    """Whether the revision in flight has a weight and a ready pod, and stable has none: to take its
    weight away would leave clients without any answer.
    """
    return weight(s.status) > 0 and s.candidate_server.ready > 0 and is_down(s)


def has_taken_over(rollout: RolloutStatus) -> bool:
    """Whether the present step is that of a revision whose stable is dead."""
    step = rollout.step
    return step is not None and (step.override or "").startswith(Reason.STABLE_DEAD)


def describe(s: Observed) -> str:
    """``stable digits-1a2b has had no ready pod since 2026-11-22T12:00:00Z``."""
    stable, at = s.status.stable, s.status.stable_down_since
    name = stable.revision if stable else "(none)"
    return f"stable {name} has had no ready pod since {at}" if at else f"stable {name} has too few ready pods"
