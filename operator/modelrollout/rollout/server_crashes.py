"""Crashes of servers during a trial: ends by a signal, by an exit code, or for their memory. A
server is back within seconds, so no other metric need show them.

The record of a crash is gone with its pod, and a pod records only the last one, so status keeps the
counts (``status.rollout.restarts``). They are taken up by every pass, before it decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    REQUEST_METRICS,
    MetricStatus,
    ModelDeploymentStatus,
    RestartEvidence,
    RolloutStatus,
    ServerEnds,
    Stage,
    seconds,
)
from modelrollout.reasons import Reason
from modelrollout.rollout.snapshot import Assessment, Crash, Snapshot, baseline, in_flight
from modelrollout.rollout.transitions import change, cut
from modelrollout.rollout.views import AtStep, InFlight

_TRIAL: tuple[Stage, ...] = ("Shadow", "Canary", "Promote", "Bake")
# Ends are alike if the candidate has no more than so many for each of stable's: with equal chances
# for both, two in a row on one side are nothing unusual.
_ALIKE = 2
_TOO_MANY = 2  # beyond stable's
_QUIET_SECONDS = 300.0  # without another end, at least, before the step may pass after all
_MAX_PODS = 32  # of a revision that are followed, for the size of status
_MAX_MESSAGE = 256
_REASONS = (Reason.SERVER_CRASHED, Reason.OUT_OF_MEMORY)


# --- counting


def count_ends(s: Snapshot, now: datetime) -> ModelDeploymentStatus:
    """The status with the ends of servers that this pass sees for the first time."""
    rollout, stable = s.status.rollout, baseline(s)
    if rollout is None or not in_flight(rollout) or rollout.stage not in _TRIAL or stable is None:
        return s.status
    lasted = _trial_seconds(rollout, now)
    before = rollout.restarts or RestartEvidence()
    after = before.model_copy(
        update={
            "canary": _counted(before.canary, s.server(rollout.revision).crashes, lasted, now),
            "stable": _counted(before.stable, s.server(stable.revision).crashes, lasted, now),
        }
    )
    return change(s.status, restarts=after) if after != before else s.status


def _trial_seconds(rollout: RolloutStatus, now: datetime) -> float:
    """How long the trial has lasted: its stages follow one another without a break."""
    return since(rollout.since, now) + sum(rollout.stages.get(stage, 0.0) for stage in _TRIAL)


def _counted(ends: ServerEnds, crashes: Iterable[Crash], lasted: float, now: datetime) -> ServerEnds:
    """``ends`` with those of the last ``lasted`` seconds. Counting twice changes nothing, and an
    old record of a pod takes nothing back.
    """
    counts, pods, last = dict(ends.counts), dict(ends.pods), (ends.at or "", ends.message)
    for crash in sorted(crashes, key=lambda c: c.at):
        known = pods.get(crash.pod)
        if known is None and (since(crash.at, now) > lasted or len(pods) >= _MAX_PODS):
            continue
        if known is None:
            # an older pod may have ended before the trial, too
            is_new = bool(crash.created) and since(crash.created, now) <= lasted
            known = 0 if is_new else crash.count - 1
        if crash.count > known:
            reason = Reason.OUT_OF_MEMORY if crash.reason == Reason.OUT_OF_MEMORY else Reason.SERVER_CRASHED
            counts[reason] = counts.get(reason, 0) + crash.count - known
            pods[crash.pod] = crash.count
            last = max(last, (crash.at, cut(crash.message, _MAX_MESSAGE)), key=lambda entry: entry[0])
    if counts == ends.counts:
        return ends
    return ServerEnds(counts=counts, at=last[0], message=last[1], pods=pods)


# --- judging


def assess_ends(s: InFlight, metrics: Iterable[MetricStatus]) -> Assessment | None:
    """The assessment that speaks against the revision if its servers ended too often."""
    restarts = s.rollout.restarts
    if restarts is None or _unaccepted(restarts) < _TOO_MANY:
        return None
    return Assessment("Failed", Reason.REPEATED_CRASHES, describe(restarts), tuple(metrics))


def hold_after_end(s: InFlight, assessment: Assessment, now: datetime) -> Assessment:
    """The assessment, as an Error for a while after an end that stable's servers did not have: as
    long again as the trial had lasted by then, at most progressDeadline, at least
    ``_QUIET_SECONDS``.
    """
    restarts = s.rollout.restarts
    if restarts is None or restarts.canary.at is None or _unaccepted(restarts) < 1:
        return assessment
    age = since(restarts.canary.at, now)
    lasted = _trial_seconds(s.rollout, now) - age
    quiet = max(_QUIET_SECONDS, min(lasted, seconds(s.spec.rollout.progress_deadline)))
    if age >= quiet:
        return assessment
    until = stamp(datetime.fromisoformat(restarts.canary.at) + timedelta(seconds=round(quiet)))
    text = f"{describe(restarts)}; the step does not pass before {until}, and another end pauses it"
    return Assessment("Error", Reason.SERVER_RESTARTED, text, assessment.metrics, assessment.doubt)


def clients_may_have_ended_them(s: AtStep, metrics: Iterable[MetricStatus]) -> bool:
    """Whether a request may have ended the candidate's servers.

    Only the gateway's counters can rule it out: it has none of a revision that it has sent nothing
    to. Triton loses what it has counted.
    """
    rollout, restarts = s.rollout, s.rollout.restarts
    if restarts is None or restarts.canary.at is None:
        return True
    if rollout.stage != "Canary" or s.step.strategy != "Canary" or rollout.shadow is not None:
        return True
    ended = datetime.fromisoformat(restarts.canary.at).timestamp()
    uncalled = any(
        m.name in REQUEST_METRICS
        and m.canary is not None
        and m.stable is not None
        and m.canary.total == 0
        and not m.canary.last
        and min((process[2] for process in m.stable.last.values()), default=0.0) > ended
        for m in metrics
    )
    return not uncalled or any(e.reason != Reason.REPEATED_CRASHES for e in rollout.history)


def accept_ends(status: ModelDeploymentStatus) -> ModelDeploymentStatus:
    """The status after a person has promoted the revision in spite of them: only further ends count
    against it.
    """
    restarts = status.rollout.restarts if status.rollout else None
    if restarts is None:
        return status
    accepted = max(restarts.accepted, _beyond_stable(restarts))
    return change(status, restarts=restarts.model_copy(update={"accepted": accepted}))


def _beyond_stable(restarts: RestartEvidence) -> int:
    canary, stable = restarts.canary.counts, restarts.stable.counts
    return sum(max(0, canary.get(reason, 0) - _ALIKE * stable.get(reason, 0)) for reason in _REASONS)


def _unaccepted(restarts: RestartEvidence) -> int:
    return _beyond_stable(restarts) - restarts.accepted


# --- telling


def describe(restarts: RestartEvidence) -> str:
    """How often servers of both sides ended, and how the last one of the canary did."""
    return (
        f"the revision's servers ended {_times(restarts.canary)} during its trial, stable's"
        f" {_times(restarts.stable)}" + (f"; last: {restarts.canary.message}" if restarts.canary.at else "")
    )


def _times(ends: ServerEnds) -> str:
    total, killed = sum(ends.counts.values()), ends.counts.get(Reason.OUT_OF_MEMORY, 0)
    words = {0: "never", 1: "once"}.get(total, f"{total} times")
    return f"{words} ({killed} for memory)" if killed else words


def without_pods(restarts: RestartEvidence) -> RestartEvidence:
    """What a revision keeps of it."""
    sides = {side: getattr(restarts, side).model_copy(update={"pods": {}}) for side in ("canary", "stable")}
    return restarts.model_copy(update=sides)
