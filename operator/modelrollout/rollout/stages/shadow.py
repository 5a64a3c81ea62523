"""shadow: the gateway mirrors requests to a comparer, which sends them to both revisions; clients
get stable's answers and notice nothing.

The clients' route has the mirror in Mirroring and Observing only. Before that the comparer starts
and the gateway shows that it would take the mirror up; after that (Leaving, or Revert) the data
plane gets time to forget it, and only then does anything that it names go away.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.api import names
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.dead_stable import describe
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.server_crashes import assess_ends
from modelrollout.rollout.snapshot import Assessment, shadow_of
from modelrollout.rollout.stages.judging import (
    assessment_of,
    error_of,
    error_without_servers,
    interval,
    is_outdated,
    no_verdict,
    warning,
)
from modelrollout.rollout.stages.next_stage import after_shadow, in_shadow, outputs_of
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, data_plane_problem, remaining, wait
from modelrollout.rollout.transitions import SHADOW_STEP, change, cut, revert
from modelrollout.rollout.views import InShadow

_NO_COMPARER = Problem(Reason.COMPARER_NOT_READY, "the comparer's pod is not ready yet")
_PASSED = Assessment("Successful", Reason.SHADOW_PASSED, "")


def shadow(s: InShadow, now: datetime) -> Transition:
    """One phase after the other. Edited tolerances start the comparison again; a spec without a
    shadow leaves it.
    """
    at, spec = s.shadow, s.spec.rollout.shadow
    judged = at.phase != "Paused" and (at.phase != "Leaving" or at.override is None)
    if judged and (ended := assess_ends(s, (at.metric,) if at.metric else ())):
        return _end_proven_worse(s, ended, now)
    if at.phase == "Leaving":
        return _leaving(s, now)
    if spec is None:
        return Transition(in_shadow(s.status, "Leaving", now, override="spec no longer requests a shadow"))
    if at.outputs_hash != outputs_of(spec):
        restarted = in_shadow(
            s.status,
            "Starting",
            now,
            outputs_hash=outputs_of(spec),
            metric=None,
            measured=None,
            observed_since=None,
        )
        return Transition(restarted)
    if at.phase == "Paused":  # for a cause: only a person ends it, with promote or abort
        return Transition(s.status, requeue_after=CHECK_SECONDS)
    if s.rollout.uncompared_since is not None:
        return Transition(
            in_shadow(s.status, "Leaving", now, override=f"{Reason.STABLE_DEAD}: {describe(s)}")
        )
    # clients may notice: the mirror goes at once
    refused = s.traffic.problem
    if (
        at.phase in ("Mirroring", "Observing")
        and refused is not None
        and refused.reason == Reason.ROUTE_NOT_ACCEPTED
    ):
        return _inconclusive(s, refused.reason, refused.message, now)
    if at.phase == "Observing":
        return _observing(s, now)
    if remaining(s, now) <= 0:
        problem = _obstacle(s) or Problem(
            Reason.MIRROR_NOT_TAKEN_UP, s.traffic.message or "the gateway has not taken the mirror up"
        )
        return _inconclusive(s, problem.reason, no_verdict(s, problem.message), now)
    return {"Starting": _starting, "Accepted": _accepted, "Mirroring": _mirroring}[at.phase](s, now)


def _obstacle(s: InShadow) -> Problem | None:
    """What keeps requests from being mirrored."""
    if s.shadow.mirror is None:
        return s.mirror.problem
    comparer = s.server(names.shadow_name(s.rollout.revision or ""))
    if comparer.ready == 0:
        return comparer.problem or _NO_COMPARER
    return s.mirror.tried.problem or s.traffic.problem


def _starting(s: InShadow, now: datetime) -> Transition:
    """Until the comparer is ready and the gateway has accepted a mirror in a route that no client
    uses.
    """
    if s.shadow.mirror is None and s.mirror.way is not None:
        return Transition(in_shadow(s.status, "Starting", now, mirror=s.mirror.way))
    problem = _obstacle(s)
    if s.shadow.mirror is None or problem is not None or not s.mirror.tried.programmed:
        return wait(s, problem, 5.0)
    return Transition(in_shadow(s.status, "Accepted", now))


def _accepted(s: InShadow, now: datetime) -> Transition:
    """Gives the data plane time to learn of the backends that the route is about to name."""
    if not s.mirror.tried.programmed:
        return Transition(in_shadow(s.status, "Starting", now))
    left = s.settle_seconds - since(s.shadow.since, now)
    return Transition(in_shadow(s.status, "Mirroring", now)) if left <= 0 else wait(s, None, max(0.2, left))


def _mirroring(s: InShadow, now: datetime) -> Transition:
    left = s.settle_seconds - since(s.shadow.since, now)
    if not s.traffic.programmed:
        return wait(s, data_plane_problem(s, s.shadow.since, now), 5.0)
    if left > 0:
        return wait(s, None, max(0.2, left))
    # The first measurement is the baseline.
    observing = in_shadow(s.status, "Observing", now, observed_since=stamp(now))
    return Transition(_with_metric(observing, s.assessment, now))


def _observing(s: InShadow, now: datetime) -> Transition:
    at, spec = s.shadow, s.spec.rollout.shadow
    assessment = assessment_of(s, (at.metric,) if at.metric else ())
    if assessment.verdict == "Failed":
        return _end_proven_worse(s, assessment, now)
    assessment = error_without_servers(s, assessment, now)
    stay = seconds(spec.for_) - since(at.observed_since or at.since, now) if spec and spec.for_ else 0.0
    if assessment.verdict == "Successful" and stay <= 0:
        return Transition(
            in_shadow(_with_metric(s.status, assessment, now), "Leaving", now),
            (Event(Reason.SHADOW_PASSED, assessment.message),),
        )
    if assessment.verdict != "Successful" and remaining(s, now) <= 0:
        ready = s.server(s.rollout.revision).ready > 0
        text = no_verdict(s, assessment.message)
        return _inconclusive(s, assessment.reason, text, now, may_promote=ready)
    requeue = max(0.2, min(interval(s), stay)) if stay > 0 else interval(s)
    return Transition(_with_fresh_measurement(s, assessment, now), requeue_after=requeue)


def _leaving(s: InShadow, now: datetime) -> Transition:
    """The mirror is out of the route; the stage ends once the data plane has taken that up."""
    left = s.settle_seconds - since(s.shadow.since, now)
    if not s.traffic.programmed:
        problem = data_plane_problem(s, s.shadow.since, now)
        if remaining(s, now, s.shadow.since) > 0:
            return wait(s, problem, 5.0)
        why = problem or Problem(Reason.TRAFFIC_UNCONFIRMED, s.traffic.message)
        text = (
            f"the mirror is not out of the route within progressDeadline {s.spec.rollout.progress_deadline}:"
            f" {why.message}"
        )
        return _inconclusive(s, why.reason, text, now)
    if left > 0:
        return wait(s, None, max(0.2, left))
    # the gateway may have been away for long since the shadow has passed
    on_hold = error_without_servers(s, _PASSED, now)
    if s.shadow.override is None and on_hold.reason == Reason.SERVER_RESTARTED:
        return wait(s, Problem(on_hold.reason, on_hold.message), 5.0)
    return Transition(after_shadow(s, s.status, now))


def _end_proven_worse(s: InShadow, assessment: Assessment, now: datetime) -> Transition:
    """Rejected; or pause for a person, if spec says so or if requests end stable's servers, too."""
    status, event = _with_metric(s.status, assessment, now), warning(assessment)
    cause = "onFailure is Pause" if s.spec.rollout.on_failure == "Pause" else None
    if cause is None and assessment.reason == Reason.REPEATED_CRASHES and s.rollout.restarts is not None:
        alike = bool(s.rollout.restarts.stable.counts)
        cause = "the same requests may have ended both, so this alone rejects nothing" if alike else None
    if cause is not None:
        text = f"{assessment.message}; {cause}: promote or abort"
        return Transition(_paused(status, assessment.reason, text, now), (event,))
    return Transition(revert(status, now, "Rejected", assessment.reason, assessment.message), (event,))


def _inconclusive(
    s: InShadow, reason: str, text: str, now: datetime, *, may_promote: bool = False
) -> Transition:
    """What spec says. ``may_promote``: requests were mirrored, and only evidence is missing."""
    status = _with_metric(s.status, s.assessment, now)
    if s.spec.rollout.on_inconclusive == "Promote" and may_promote:
        event = Event(
            Reason.PROMOTED_BY_POLICY,
            f"the shadow ends unproven, as onInconclusive says: {reason}: {text}",
            "Warning",
        )
        return Transition(
            in_shadow(status, "Leaving", now, override=f"onInconclusive Promote at {SHADOW_STEP}"), (event,)
        )
    event = Event(Reason.INCONCLUSIVE, text, "Warning")
    if s.spec.rollout.on_inconclusive == "Rollback":
        return Transition(revert(status, now, "Rejected", reason, text), (event,))
    return Transition(_paused(status, "Inconclusive", f"{text}; promote or abort", now), (event,))


def _paused(status: ModelDeploymentStatus, reason: str, message: str, now: datetime) -> ModelDeploymentStatus:
    """Nothing is mirrored while the rollout waits for a person."""
    return change(in_shadow(status, "Paused", now), reason=reason, message=message)


def _with_metric(
    status: ModelDeploymentStatus, assessment: Assessment | None, now: datetime
) -> ModelDeploymentStatus:
    """The status with this measurement, if there is one."""
    if assessment is None or not assessment.metrics:
        return status
    metric = assessment.metrics[0].model_copy(update={"message": cut(assessment.metrics[0].message)})
    measurement = {"metric": metric, "measured": stamp(now)}
    return change(status, shadow=shadow_of(status).model_copy(update=measurement))


def _with_fresh_measurement(s: InShadow, assessment: Assessment, now: datetime) -> ModelDeploymentStatus:
    """The status with the measurement if it is news: an error that came or went, the baseline, or
    the last one is outdated.
    """
    problem = error_of(assessment)
    reason = problem.reason if problem else None
    before, metric = s.shadow.metric, assessment.metrics[0] if assessment.metrics else None
    is_baseline = (
        (before is None or before.canary is None) and metric is not None and metric.canary is not None
    )
    if s.rollout.reason == reason and not is_baseline and not is_outdated(s.shadow.measured, now):
        return s.status
    return change(
        _with_metric(s.status, assessment, now), reason=reason, message=problem.message if problem else None
    )


SHADOW = StageSpec(
    "Shadow",
    shadow,
    InShadow,
    phase="Shadowing",
    doing="the revision's answers are being compared with stable's on mirrored requests",
    condition="Shadowed",
    is_configured=lambda spec: spec.rollout.shadow is not None,
    needs_stable=True,
    watched=True,
    carries_weight=True,
)
