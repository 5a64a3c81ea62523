"""shadow: the gateway mirrors requests to a comparer, which asks both revisions; clients get
stable's answers and notice nothing.

The clients' route has the mirror in Mirroring and Observing only. Before that the comparer starts
and the gateway shows that it would take the mirror up; after that (Leaving, or Revert) the data
plane gets time to forget it, and only then does anything that it names go away.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, ShadowStatus, seconds
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import NOT_READY, Assessment, Problem, Snapshot, since, stamp
from modelrollout.rollout.stages.canary import REWRITE_SECONDS
from modelrollout.rollout.stages.next_stage import after_shadow, in_shadow, outputs_of
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, remaining, wait
from modelrollout.rollout.transitions import SHADOW_STEP, change, cut, revert

_NO_COMPARER = Problem("ComparerNotReady", "the comparer's pod is not ready yet")


def shadow(s: Snapshot, now: datetime) -> Transition:
    """One phase after the other; an edited spec begins anew, one that asks for no shadow any more
    leaves.
    """
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.shadow is not None
    at, wanted = s.status.rollout.shadow, s.spec.rollout.shadow
    if at.phase == "Leaving":
        return _leaving(s, at, now)
    if wanted is None:
        return Transition(in_shadow(s.status, "Leaving", now, override="spec asks for no shadow any more"))
    if at.outputs_hash != outputs_of(wanted):
        return Transition(
            in_shadow(
                s.status,
                "Starting",
                now,
                outputs_hash=outputs_of(wanted),
                metric=None,
                measured=None,
                observed_since=None,
            )
        )
    if at.phase == "Paused":
        # for a cause: only somebody who says promote or abort ends it
        return Transition(s.status, requeue_after=CHECK_SECONDS)
    # clients may see it: the mirror goes at once
    if at.phase in ("Mirroring", "Observing") and s.traffic.problem is not None:
        return _inconclusive(s, s.traffic.problem.reason, s.traffic.problem.message, now)
    if at.phase == "Observing":
        return _observing(s, at, now)
    if remaining(s, now) <= 0:
        problem = _in_the_way(s, at) or Problem(
            "MirrorNotTakenUp", s.traffic.message or "the gateway has not taken the mirror up"
        )
        return _inconclusive(s, problem.reason, _late(s, problem.message), now)
    return {"Starting": _starting, "Accepted": _accepted, "Mirroring": _mirroring}[at.phase](s, at, now)


def _in_the_way(s: Snapshot, at: ShadowStatus) -> Problem | None:
    if at.mirror is None:
        return s.mirror.problem
    comparer = s.server(names.shadow_name((s.status.rollout.revision if s.status.rollout else None) or ""))
    if comparer.ready == 0:
        return comparer.problem or _NO_COMPARER
    return s.mirror.tried.problem or s.traffic.problem


def _starting(s: Snapshot, at: ShadowStatus, now: datetime) -> Transition:
    """The comparer is ready, and the gateway takes a mirror in a route that nobody calls."""
    if at.mirror is None and s.mirror.way is not None:
        return Transition(in_shadow(s.status, "Starting", now, mirror=s.mirror.way))
    problem = _in_the_way(s, at)
    if at.mirror is None or problem is not None or not s.mirror.tried.programmed:
        return wait(s, problem, 5.0)
    return Transition(in_shadow(s.status, "Accepted", now))


def _accepted(s: Snapshot, at: ShadowStatus, now: datetime) -> Transition:
    """What the route is about to name is known to the data plane once it has had time."""
    if not s.mirror.tried.programmed:
        return Transition(in_shadow(s.status, "Starting", now))
    left = s.settle_seconds - since(at.since, now)
    return Transition(in_shadow(s.status, "Mirroring", now)) if left <= 0 else wait(s, None, max(0.2, left))


def _mirroring(s: Snapshot, at: ShadowStatus, now: datetime) -> Transition:
    left = s.settle_seconds - since(at.since, now)
    if not s.traffic.programmed:
        return wait(s, s.traffic.problem, 5.0)
    if left > 0:
        return wait(s, None, max(0.2, left))
    # The first look is the baseline.
    observing = in_shadow(s.status, "Observing", now, observed_since=stamp(now))
    return Transition(_measured(observing, s.assessment, now) if s.assessment else observing)


def _observing(s: Snapshot, at: ShadowStatus, now: datetime) -> Transition:
    assert s.spec is not None and s.spec.rollout.shadow is not None and s.status.rollout is not None
    found = s.assessment or Assessment(
        "Error", "NoData", "nothing was measured", (at.metric,) if at.metric else ()
    )
    if found.verdict == "Failed":
        return _disagrees(s, found, now)
    server = s.server(s.status.rollout.revision)
    if server.ready == 0:  # what it answered before it went away is no ground to give it traffic
        problem = server.problem or NOT_READY
        found = replace(found, verdict="Error", reason=problem.reason, message=problem.message)
    wanted = s.spec.rollout.shadow
    stay = seconds(wanted.for_) - since(at.observed_since or at.since, now) if wanted.for_ else 0.0
    if found.verdict == "Successful" and stay <= 0:
        return Transition(
            in_shadow(_measured(s.status, found, now), "Leaving", now),
            (Event("ShadowPassed", found.message),),
        )
    if found.verdict != "Successful" and remaining(s, now) <= 0:
        return _inconclusive(s, found.reason, _late(s, found.message), now, may_promote=server.ready > 0)
    interval = max(1.0, seconds(s.spec.rollout.analysis.interval))
    return Transition(
        _rewritten(s, at, found, now), requeue_after=max(0.2, min(interval, stay)) if stay > 0 else interval
    )


def _leaving(s: Snapshot, at: ShadowStatus, now: datetime) -> Transition:
    """The mirror is out of the route; the stage ends once the data plane has taken that up."""
    left = s.settle_seconds - since(at.since, now)
    if not s.traffic.programmed:
        return wait(s, s.traffic.problem, 5.0)
    return Transition(after_shadow(s, s.status, now)) if left <= 0 else wait(s, None, max(0.2, left))


def _disagrees(s: Snapshot, found: Assessment, now: datetime) -> Transition:
    assert s.spec is not None
    status, event = _measured(s.status, found, now), Event(found.reason, found.message, "Warning")
    if s.spec.rollout.on_failure == "Pause":
        return Transition(
            _paused(status, found.reason, f"{found.message}; onFailure is Pause: promote or abort", now),
            (event,),
        )
    return Transition(revert(status, now, "Rejected", found.reason, found.message), (event,))


def _late(s: Snapshot, message: str) -> str:
    assert s.spec is not None
    return f"no verdict within progressDeadline {s.spec.rollout.progress_deadline}: {message}"


def _inconclusive(
    s: Snapshot, reason: str, text: str, now: datetime, *, may_promote: bool = False
) -> Transition:
    """As spec says. ``may_promote``: requests were mirrored, and it is evidence alone that
    lacks.
    """
    assert s.spec is not None
    status = _measured(s.status, s.assessment, now) if s.assessment else s.status
    if s.spec.rollout.on_inconclusive == "Promote" and may_promote:
        event = Event(
            "PromotedByPolicy",
            f"the shadow ends unproven, as onInconclusive says: {reason}: {text}",
            "Warning",
        )
        return Transition(
            in_shadow(status, "Leaving", now, override=f"onInconclusive Promote at {SHADOW_STEP}"), (event,)
        )
    event = Event("Inconclusive", text, "Warning")
    if s.spec.rollout.on_inconclusive == "Rollback":
        return Transition(revert(status, now, "Rejected", reason, text), (event,))
    return Transition(_paused(status, "Inconclusive", f"{text}; promote or abort", now), (event,))


def _paused(status: ModelDeploymentStatus, reason: str, message: str, now: datetime) -> ModelDeploymentStatus:
    """Nothing is mirrored while somebody is waited for."""
    return change(in_shadow(status, "Paused", now), reason=reason, message=message)


def _measured(status: ModelDeploymentStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    assert status.rollout is not None and status.rollout.shadow is not None
    if not found.metrics:
        return status
    metric = found.metrics[0].model_copy(update={"message": cut(found.metrics[0].message)})
    return change(
        status, shadow=status.rollout.shadow.model_copy(update={"metric": metric, "measured": stamp(now)})
    )


def _rewritten(s: Snapshot, at: ShadowStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    """The status with the new measurement if that is news: trouble that came or went, the baseline,
    or much later.
    """
    assert s.status.rollout is not None
    problem = Problem(found.reason, cut(found.message)) if found.verdict == "Error" else None
    reason = problem.reason if problem else None
    metric = found.metrics[0] if found.metrics else None
    baseline = (
        (at.metric is None or at.metric.canary is None) and metric is not None and metric.canary is not None
    )
    if (
        s.status.rollout.reason == reason
        and not baseline
        and at.measured is not None
        and since(at.measured, now) < REWRITE_SECONDS
    ):
        return s.status
    return change(
        _measured(s.status, found, now), reason=reason, message=problem.message if problem else None
    )
