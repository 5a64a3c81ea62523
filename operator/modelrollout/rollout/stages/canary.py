"""canary: a revision on trial, in the steps of its strategy, each judged before the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from modelrollout.analysis.eta import counted_seconds, paces
from modelrollout.analysis.judge import LIMIT_EXCEEDED
from modelrollout.api.v1alpha1 import MetricStatus, ModelDeploymentStatus, Stage, Step, StepStatus, seconds
from modelrollout.rollout import strategy as stepping
from modelrollout.rollout.desired import has_pods_for, scaling_problem
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import first_weight, steps_of, unproven_weight
from modelrollout.rollout.snapshot import NOT_READY, Assessment, Problem, Snapshot, baseline, since, stamp
from modelrollout.rollout.stages.in_place import release_stable_pods
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, remaining, wait
from modelrollout.rollout.transitions import at_step, change, cut, enter, record, revert

REWRITE_SECONDS = 60.0  # measurements without news are written to status this often at most
UNREACHABLE = "DeadlineUnreachable"
# of progressDeadline; before that a rate is hardly known
PLAN_AFTER_SECONDS, PLAN_AFTER_SHARE = 60.0, 0.05
PLAN_SLACK = 1.25  # how much too long it must take at the present rate before that is said
MESSAGES_BYTES = 6 * 1024  # of all metrics of a step together


def canary(s: Snapshot, now: datetime) -> Transition:
    """First what ends the canary, then what keeps it where it is, then the next step."""
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    step = s.status.rollout.step
    waits_for_a_person = s.status.rollout.held or (
        step.phase == "Paused" and s.status.rollout.reason != "PauseStep"
    )
    if step.strategy != stepping.strategy_of(s.spec.rollout) and not waits_for_a_person:
        # spec was edited: what was counted under the other strategy says nothing about this one
        return Transition(begin_trial(s, s.status, now))
    position = stepping.locate(steps_of(s), step)
    found, given = s.assessment, stepping.with_traffic(step)
    if found and found.verdict == "Failed" and given.phase != "Shifting":
        return proven_worse(_at(s, given), found, now)
    if step.phase == "Shifting":
        return _shifting(s, step, found, now)
    if step.phase == "Paused":
        return _paused(s, step, position, found, now)
    return _observing(s, step, position, found, now)


def begin_trial(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """The first step of the strategy; promotion where there is nothing to compare with, or nothing
    is to be tried.
    """
    assert s.spec is not None
    first = steps_of(s)[0]
    if baseline(s) is None or first.weight == 100:
        return enter(status, "Promote", now, held=None)
    entered = status if status.rollout and status.rollout.stage == "Canary" else enter(status, "Canary", now)
    return at_step(
        entered,
        0,
        first.weight or 0,
        now,
        strategy=stepping.strategy_of(s.spec.rollout),
        pause=first.pause is not None,
    )


def proven_worse(s: Snapshot, found: Assessment, now: datetime) -> Transition:
    """Everything back to stable; or hold for a person, if spec says so or clients may have caused
    it.
    """
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    status = record(with_metrics(s.status, found, now), "Failed", found.reason, now)
    step = s.status.rollout.step
    holds = (
        "onFailure is Pause"
        if s.spec.rollout.on_failure == "Pause"
        else _of_clients(s.status.rollout.stage, step, found)
    )
    if holds:
        if s.status.rollout.reason == found.reason:
            return Transition(s.status, requeue_after=CHECK_SECONDS)
        return Transition(
            _pause(status, step, found.reason, f"{found.message}; {holds}: promote or abort"),
            (_event(found),),
        )
    return Transition(revert(status, now, "RolledBack", found.reason, found.message), (_event(found),))


def _of_clients(stage: Stage, step: StepStatus, found: Assessment) -> str | None:
    """Why what failed may be the doing of clients and no fault of the revision: Triton answers 500
    to what is asked wrongly, too.

    Where a weight divides the requests, they fail on both sides. Where clients choose the revision,
    or all requests go there, anybody could end it.
    """
    failed = [m for m in found.metrics if m.verdict == "Failed" and not m.dry_run]
    chosen = stage == "Bake" or step.strategy in ("ABTest", "BlueGreen")
    if not failed or not all(m.reason == LIMIT_EXCEEDED or (chosen and m.name == "errors") for m in failed):
        return None
    if any(m.reason == LIMIT_EXCEEDED for m in failed):
        return "a limit alone takes nothing back unless stable keeps it"
    which = "with all requests on this revision" if stage == "Bake" else "where clients choose the revision"
    return f"{which}, errors alone take nothing back, since what is asked wrongly fails too"


def _event(found: Assessment) -> Event:
    return Event(found.reason, found.message, "Warning")


def _pause(
    status: ModelDeploymentStatus, step: StepStatus, reason: str, message: str
) -> ModelDeploymentStatus:
    metrics = status.rollout.step.metrics if status.rollout and status.rollout.step else step.metrics
    return change(
        status,
        step=step.model_copy(update={"phase": "Paused", "metrics": metrics}),
        reason=reason,
        message=message,
    )


def _at(s: Snapshot, step: StepStatus) -> Snapshot:
    return replace(s, status=change(s.status, step=step))


def _shifting(s: Snapshot, step: StepStatus, found: Assessment | None, now: datetime) -> Transition:
    assert s.status.rollout is not None
    waited = since(step.since, now)
    there = has_pods_for(s, step)
    if there and step.metrics:  # what was counted meanwhile belongs to the weight before
        return Transition(
            change(
                s.status,
                step=step.model_copy(update={"metrics": [], "measured": None, "observed_since": None}),
            )
        )
    if s.traffic.programmed and there and waited >= s.settle_seconds:
        # The first measurement is the baseline; what came before belongs to another weight.
        metrics = _brief(s.assessment.metrics) if s.assessment else []
        observing = step.model_copy(
            update={"phase": "Observing", "observed_since": stamp(now), "metrics": metrics}
        )
        return Transition(change(s.status, step=observing, reason=None, message=None))
    if remaining(s, now) <= 0:
        message = (
            f"the gateway has not taken up weight {step.weight}:"
            f" {s.traffic.message or 'too few pods of the canary are ready for it'}"
        )
        # a pause gives no weight that there are no pods for
        step = step if there else stepping.previous_step(step)
        return handle_inconclusive(
            _at(s, step), step, "TrafficNotShifted", f"{_deadline(s)}: {message}", now, may_promote=False
        )
    if not there and (given := release_stable_pods(s)):
        return given
    if not there:  # the split does not have this weight yet
        told = replace(s, status=with_metric_events(s, step, found, now)) if step.metrics else s
        return wait(told, scaling_problem(s), min(5.0, interval(s)))
    return wait(s, s.traffic.problem, max(0.2, s.settle_seconds - waited) if s.traffic.programmed else 5.0)


def _paused(
    s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime
) -> Transition:
    """Wait for promote, or for the end of a pause step. The canary has its traffic meanwhile and is
    judged all the same.
    """
    assert s.spec is not None and s.status.rollout is not None
    status = with_metric_events(s, step, found, now)
    if s.status.rollout.reason != "PauseStep":
        # for a cause: only somebody who says promote may raise the weight now
        return Transition(status, requeue_after=interval(s))
    if s.status.rollout.held:
        return Transition(status, requeue_after=interval(s))
    pause = steps_of(s)[position.index].pause if position.exact else None
    left = seconds(pause.duration) - since(step.since, now) if pause and pause.duration else None
    if pause is None or (left is not None and left <= 0):  # edited away, or over
        return Transition(advance(s, s.status, position, now))
    return Transition(status, requeue_after=interval(s) if left is None else min(interval(s), left))


def _observing(
    s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime
) -> Transition:
    assert s.spec is not None and s.status.rollout is not None
    if found is None:
        found = Assessment("Error", "NoData", "nothing was measured", tuple(step.metrics))
    server = s.server(s.status.rollout.revision)
    if server.ready == 0:  # it has no traffic now: what it did before is no ground to give it more
        problem = server.problem or NOT_READY
        found = replace(found, verdict="Error", reason=problem.reason, message=problem.message)
    steps = steps_of(s)
    present = steps[position.index] if position.exact else None
    stay = (
        seconds(present.for_) - since(step.observed_since or step.since, now)
        if present and present.for_
        else 0.0
    )
    soaks, held = _soaks(step, present), s.status.rollout.held is not None
    if (
        (found.verdict == "Successful" or (soaks and found.verdict == "Inconclusive"))
        and stay <= 0
        and not held
    ):
        proven = found.verdict == "Successful"
        status = record(
            with_metrics(s.status, found, now), found.verdict, found.reason if proven else "PreviewEnded", now
        )
        message = f"step {stepping.step_position(steps, position)} at {step.weight} %: {found.message}"
        override = None if proven else "spec.rollout.blueGreen.for"
        return Transition(
            advance(s, status, position, now, override),
            (Event("StepPassed" if proven else "PreviewEnded", message),),
        )
    if found.verdict != "Successful" and remaining(s, now) <= 0 and not (soaks and stay > 0):
        return handle_inconclusive(s, step, found.reason, f"{_deadline(s)}: {found.message}", now)
    if found.verdict == "Error" and not held and (limit := _errors_too_long(s, found, now)):
        return handle_inconclusive(
            s, step, found.reason, f"errors for longer than errorLimit {limit}: {found.message}", now
        )
    requeue = min(interval(s), stay) if stay > 0 else interval(s)
    return step_rewritten(s, step, found, now, max(0.2, requeue), on_time=soaks or held)


def _soaks(step: StepStatus, present: Step | None) -> bool:
    """Few requests come to a preview, so nothing may ever be proven of it: its time is the
    criterion, unless something speaks against it.
    """
    return bool(step.strategy == "BlueGreen" and present and present.for_)


def step_rewritten(
    s: Snapshot, step: StepStatus, found: Assessment, now: datetime, requeue: float, *, on_time: bool = False
) -> Transition:
    """The status with the new measurement if that is news, else as it is: an idle look costs no
    write.

    ``on_time``: no deadline is coming nearer, or it is the time that decides.
    """
    assert s.status.rollout is not None
    # Still too little evidence is how every step begins and no trouble; what keeps evidence from
    # coming (in time) is.
    problem = (
        Problem(found.reason, found.message)
        if found.verdict == "Error"
        else None
        if on_time
        else _unreachable(s, step, found, now)
    )
    reason = problem.reason if problem else None
    if s.status.rollout.reason == reason and not _is_news(step, found, now):
        return Transition(s.status, requeue_after=requeue)
    status = change(
        with_metrics(s.status, found, now), reason=reason, message=problem.message if problem else None
    )
    told = problem is None or problem.reason != UNREACHABLE or s.status.rollout.reason == UNREACHABLE
    return Transition(
        status,
        () if told or problem is None else (Event(problem.reason, problem.message, "Warning"),),
        requeue,
    )


def _unreachable(s: Snapshot, step: StepStatus, found: Assessment, now: datetime) -> Problem | None:
    """The deadline comes before the evidence, at the rate at which samples have come so far."""
    assert s.spec is not None and s.status.rollout is not None
    counted = counted_seconds(step, s.spec.rollout.analysis, now)
    limit = s.spec.rollout.progress_deadline
    if found.verdict != "Inconclusive" or counted < max(
        PLAN_AFTER_SECONDS, PLAN_AFTER_SHARE * seconds(limit)
    ):
        return None
    left = remaining(s, now)
    slowest = next(iter(paces(found.metrics, counted)), None)
    # Once said it stands until the rate suffices: an estimate that wavers about the limit must not
    # be told again and again.
    if slowest is None or slowest.seconds <= left * (
        1 if s.status.rollout.reason == UNREACHABLE else PLAN_SLACK
    ):
        return None
    says = s.spec.rollout.on_inconclusive
    then = (
        f"then onInconclusive {'Pause' if says == 'Promote' and first_weight(s) is not None else says} holds"
    )
    remedy = "send more traffic, or give more weight, a larger margin or a longer progressDeadline"
    return Problem(
        UNREACHABLE,
        f"{slowest.describe()}, but progressDeadline {limit} ends in {left:.0f} s, {then}: {remedy}",
    )


def _errors_too_long(s: Snapshot, found: Assessment, now: datetime) -> str | None:
    """The errorLimit, if a metric that decides has been in Error for longer."""
    assert s.spec is not None
    limit = s.spec.rollout.analysis.error_limit
    lasting = [
        since(m.since, now)
        for m in found.metrics
        if m.verdict == "Error" and m.since and not m.dry_run and m.slice is None
    ]
    return limit if limit is not None and lasting and max(lasting) >= seconds(limit) else None


def with_metric_events(
    s: Snapshot, step: StepStatus, found: Assessment | None, now: datetime
) -> ModelDeploymentStatus:
    """Measurements of a pause: a count needs a baseline in status, or a regression would never be
    seen during it. The reason of the pause stands.
    """
    return with_metrics(s.status, found, now) if found and _is_news(step, found, now) else s.status


def _is_news(step: StepStatus, found: Assessment, now: datetime) -> bool:
    """Whether a measurement is worth a write: a baseline, trouble that came or went (its time is
    kept only there), or much later.

    That one metric of several has enough is no news: the step's verdict is written when it moves
    the rollout.
    """

    def gist(metrics: Iterable[MetricStatus]) -> dict[str, tuple[str | None, bool, bool, bool]]:
        return {
            m.name: (
                m.reason if m.verdict == "Error" else None,
                m.canary is not None,
                m.stable is not None,
                m.since is not None,
            )
            for m in metrics
        }

    return (
        gist(step.metrics) != gist(found.metrics)
        or step.measured is None
        or since(step.measured, now) >= REWRITE_SECONDS
    )


def with_metrics(status: ModelDeploymentStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    """The status with this measurement."""
    assert status.rollout is not None and status.rollout.step is not None
    return change(
        status,
        step=status.rollout.step.model_copy(
            update={"metrics": _brief(found.metrics), "measured": stamp(now)}
        ),
    )


def _brief(metrics: Iterable[MetricStatus]) -> list[MetricStatus]:
    """The metrics with messages for which status has room."""
    kept = list(metrics)
    room = max(128, MESSAGES_BYTES // max(1, len(kept)))
    return [m.model_copy(update={"message": cut(m.message, room)}) for m in kept]


def _deadline(s: Snapshot) -> str:
    assert s.spec is not None
    return f"no verdict within progressDeadline {s.spec.rollout.progress_deadline}"


def handle_inconclusive(
    s: Snapshot, step: StepStatus, reason: str, text: str, now: datetime, *, may_promote: bool = True
) -> Transition:
    """No verdict within the limit: pause, roll back, or go on unproven, as spec says.
    ``may_promote``: False where it is not evidence that lacks.
    """
    assert s.spec is not None and s.status.rollout is not None
    then, server = s.spec.rollout.on_inconclusive, s.server(s.status.rollout.revision)
    status = with_metrics(s.status, s.assessment, now) if s.assessment else s.status
    if then == "Promote" and may_promote and step.phase == "Observing" and server.ready > 0:
        steps = steps_of(s)
        position = stepping.locate(steps, step)
        label = stepping.step_position(steps, position)
        onward = advance(
            s,
            record(status, "Inconclusive", "PromotedByPolicy", now),
            position,
            now,
            f"onInconclusive Promote at {label}",
        )
        why = unproven_weight(s, onward)
        if why is None:
            return Transition(
                onward,
                (
                    Event(
                        "PromotedByPolicy",
                        f"step {label} goes on unproven, as onInconclusive says: {reason}: {text}",
                        "Warning",
                    ),
                ),
            )
        status, text = record(status, "Inconclusive", reason, now), f"{text}; {why}"
        return Transition(
            _pause(status, step, "Inconclusive", text), (Event("Inconclusive", text, "Warning"),)
        )
    status = record(status, "Inconclusive", reason, now)
    event = Event("Inconclusive", text, "Warning")
    if then == "Rollback":
        return Transition(revert(status, now, "RolledBack", reason, text), (event,))
    return Transition(_pause(status, step, "Inconclusive", f"{text}; promote or abort"), (event,))


def advance(
    s: Snapshot,
    status: ModelDeploymentStatus,
    position: stepping.Position,
    now: datetime,
    override: str | None = None,
) -> ModelDeploymentStatus:
    """The step after this one, or promotion after the last. Callers hold a Successful verdict or an
    override (invariant 1).
    """
    assert s.spec is not None and status.rollout is not None and status.rollout.step is not None
    steps = steps_of(s)
    if status.rollout.step.strategy != stepping.strategy_of(s.spec.rollout):
        return begin_trial(s, status, now)
    index = stepping.next_index(steps, position)
    if index is None:
        return enter(status, "Promote", now, held=None)
    step, before = steps[index], status.rollout.step
    moved = at_step(
        status,
        index,
        step.weight or before.weight,
        now,
        strategy=before.strategy,
        pause=step.pause is not None,
        override=override,
    )
    return moved if override else _judged_meanwhile(s, moved, before)


def _judged_meanwhile(
    s: Snapshot, status: ModelDeploymentStatus, before: StepStatus
) -> ModelDeploymentStatus:
    """With the counts of the step before, if the pods for the next weight are still to come: they
    may take hours, and the requests go on.
    """
    assert status.rollout is not None and status.rollout.step is not None
    step = status.rollout.step
    if step.phase != "Shifting" or step.former == 0 or has_pods_for(replace(s, status=status), step):
        return status
    kept = {"metrics": before.metrics, "measured": before.measured, "observed_since": before.observed_since}
    return change(status, step=step.model_copy(update=kept))


def interval(s: Snapshot) -> float:
    """Seconds between two looks."""
    assert s.spec is not None
    return max(1.0, seconds(s.spec.rollout.analysis.interval))
