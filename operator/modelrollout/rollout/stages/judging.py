"""What the stages that judge a revision share (shadow, canary, promote, bake): measurements in
status, and what follows from a verdict (``analysis.judge`` gives it) or from the lack of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from modelrollout.analysis.eta import counted_seconds, paces
from modelrollout.analysis.judge import LIMIT_EXCEEDED
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    ANSWER_METRICS,
    MetricStatus,
    ModelDeploymentStatus,
    StepStatus,
    seconds,
)
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.dead_stable import is_all_that_serves
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import first_weight, steps_of, unproven_weight
from modelrollout.rollout.server_crashes import (
    assess_ends,
    clients_may_have_ended_them,
    hold_after_end,
)
from modelrollout.rollout.snapshot import NOT_READY, Assessment, step_of
from modelrollout.rollout.stages.next_stage import advance
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, remaining
from modelrollout.rollout.transitions import change, cut, record, revert
from modelrollout.rollout.views import AtStep, InFlight

# An unchanged measurement is written to status at most this often.
REWRITE_SECONDS = 60.0
FIRST_SECONDS, FIRST_INTERVAL = 15.0, 1.0
UNREACHABLE = Reason.DEADLINE_UNREACHABLE
# The rate of samples is trusted after this time, and this share of progressDeadline.
PLAN_AFTER_SECONDS, PLAN_AFTER_SHARE = 60.0, 0.05
PLAN_SLACK = 1.25  # a deadline counts as out of reach once the estimate exceeds it by this factor
_NO_STABLE = "no pod of stable is ready, so the weight stays where it is"
MESSAGES_BYTES = 6 * 1024  # of all metrics of a step together


def interval(s: InFlight) -> float:
    """Seconds between two measurements."""
    return max(1.0, seconds(s.spec.rollout.analysis.interval))


def next_look(s: AtStep, assessment: Assessment, now: datetime) -> float:
    """Seconds until the next measurement: sooner when the step has just begun to count, because
    what is grossly wrong shows then, and looks cost no false alarms.
    """
    just_begun = 0 < counted_seconds(s.step, s.spec.rollout, now) < FIRST_SECONDS
    often = just_begun and assessment.verdict != "Error"
    return min(FIRST_INTERVAL, interval(s)) if often else interval(s)


def assessment_of(s: InFlight, metrics: Iterable[MetricStatus]) -> Assessment:
    """The assessment of this pass; an Error that keeps ``metrics`` if nothing was measured."""
    return s.assessment or Assessment("Error", Reason.NO_DATA, "nothing was measured", tuple(metrics))


def error_without_servers(s: InFlight, assessment: Assessment, now: datetime) -> Assessment:
    """The assessment, as an Error while no pod is ready, or for a while after a server ended:
    earlier measurements do not justify giving it traffic.
    """
    server = s.server(s.rollout.revision)
    if server.ready > 0:
        return hold_after_end(s, assessment, now)
    problem = server.problem or NOT_READY
    return replace(assessment, verdict="Error", reason=problem.reason, message=problem.message)


def no_verdict(s: InFlight, message: str) -> str:
    """``message``, after the deadline that has passed."""
    return f"no verdict within progressDeadline {s.spec.rollout.progress_deadline}: {message}"


def warning(assessment: Assessment) -> Event:
    """The event of an assessment that speaks against the revision."""
    return Event(assessment.reason, assessment.message, "Warning")


def error_of(assessment: Assessment) -> Problem | None:
    """What keeps evidence from coming. Too little evidence is how every step begins, and no
    problem.
    """
    if assessment.verdict != "Error":
        return None
    return Problem(assessment.reason, cut(assessment.message))


# --- verdicts


def servers_ended(s: AtStep, now: datetime) -> Transition | None:
    """What follows if the servers of the revision ended too often. None: they did not, or it is
    paused for that already, and is still measured.
    """
    assessment = assess_ends(s, s.assessment.metrics if s.assessment else s.step.metrics)
    if assessment is None or (s.rollout.reason == assessment.reason and _pause_cause(s, assessment)):
        return None
    return proven_worse(s, assessment, now)


def proven_worse(s: AtStep, assessment: Assessment, now: datetime) -> Transition:
    """All traffic back to stable; or pause for a person, if spec says so, if stable has no ready
    pod, or if clients may have caused the failure.
    """
    status = record(with_metrics(s.status, assessment, now), "Failed", assessment.reason, now)
    cause = _pause_cause(s, assessment)
    if cause is None:
        reverted = revert(status, now, "RolledBack", assessment.reason, assessment.message)
        return Transition(reverted, (warning(assessment),))
    if s.rollout.reason == assessment.reason:
        return Transition(s.status, requeue_after=CHECK_SECONDS)
    text = f"{assessment.message}; {cause}: promote or abort"
    return Transition(_pause(status, s.step, assessment.reason, text), (warning(assessment),))


def _pause_cause(s: AtStep, assessment: Assessment) -> str | None:
    if s.spec.rollout.on_failure == "Pause":
        return "onFailure is Pause"
    return _NO_STABLE if is_all_that_serves(s) else _caused_by_clients(s, assessment)


def _caused_by_clients(s: AtStep, assessment: Assessment) -> str | None:
    """Why clients rather than the revision may have caused the failure: Triton answers malformed
    requests with 400 or 500, and a request can end a server.

    Where a weight divides the requests, they fail on both sides. Where clients choose the revision,
    also by the name of a session, or all requests go there, any client could end the rollout.
    """
    if assessment.reason == Reason.REPEATED_CRASHES:
        caused = clients_may_have_ended_them(s, assessment.metrics)
        return "a request may have ended them, so this alone reverts nothing" if caused else None
    stage = s.rollout.stage
    failed = [m for m in assessment.metrics if m.verdict == "Failed" and not m.dry_run]
    sticks = s.spec.traffic.session_affinity is not None
    chosen = stage == "Bake" or s.step.strategy in ("ABTest", "BlueGreen") or sticks
    if not failed or not all(
        m.reason == LIMIT_EXCEEDED or (chosen and m.name in ANSWER_METRICS) for m in failed
    ):
        return None
    if any(m.reason == LIMIT_EXCEEDED for m in failed):
        return "exceeding a limit reverts nothing unless stable keeps within it"
    which = "with all requests on this revision" if stage == "Bake" else "where clients choose the revision"
    return f"{which}, errors alone revert nothing, since malformed requests fail too"


def handle_inconclusive(
    s: AtStep, step: StepStatus, reason: str, text: str, now: datetime, *, may_promote: bool = True
) -> Transition:
    """No verdict within the limit: pause, roll back, or go on unproven, as spec says.

    ``may_promote``: False where something other than evidence is missing.
    """
    choice, server = s.spec.rollout.on_inconclusive, s.server(s.rollout.revision)
    status = with_metrics(s.status, s.assessment, now) if s.assessment else s.status
    event = Event(Reason.INCONCLUSIVE, text, "Warning")
    if choice == "Promote" and may_promote and step.phase == "Observing" and server.ready > 0:
        steps = steps_of(s)
        position = strategy.locate(steps, step)
        label = strategy.step_position(steps, position)
        onward = advance(
            s,
            record(status, "Inconclusive", Reason.PROMOTED_BY_POLICY, now),
            position,
            now,
            f"onInconclusive Promote at {label}",
        )
        why = unproven_weight(s, onward)
        if why is None:
            unproven = f"step {label} continues unproven, as onInconclusive says: {reason}: {text}"
            return Transition(onward, (Event(Reason.PROMOTED_BY_POLICY, unproven, "Warning"),))
        text = f"{text}; {why}"
        paused = _pause(record(status, "Inconclusive", reason, now), step, "Inconclusive", text)
        return Transition(paused, (Event(Reason.INCONCLUSIVE, text, "Warning"),))
    status = record(status, "Inconclusive", reason, now)
    if choice == "Rollback" and not is_all_that_serves(s):
        return Transition(revert(status, now, "RolledBack", reason, text), (event,))
    if choice == "Rollback":
        text = f"{text}; {_NO_STABLE}"
    return Transition(_pause(status, step, "Inconclusive", f"{text}; promote or abort"), (event,))


def _pause(
    status: ModelDeploymentStatus, step: StepStatus, reason: str, message: str
) -> ModelDeploymentStatus:
    now = step_of(status)
    paused = step.model_copy(update={"phase": "Paused", "metrics": now.metrics, "measured": now.measured})
    return change(status, step=paused, reason=reason, message=message)


# --- measurements in status


def stay_at_step(
    s: AtStep,
    step: StepStatus,
    assessment: Assessment,
    now: datetime,
    requeue: float,
    *,
    ignore_deadline: bool = False,
) -> Transition:
    """Stay at the step, and write the measurement if it is news; otherwise a pass costs no write.

    ``ignore_deadline``: none applies, or the time itself decides.
    """
    problem = error_of(assessment) or (None if ignore_deadline else _unreachable(s, step, assessment, now))
    reason = problem.reason if problem else None
    if s.rollout.reason == reason and not _is_news(step, assessment, now):
        return Transition(s.status, requeue_after=requeue)
    status = change(
        with_metrics(s.status, assessment, now), reason=reason, message=problem.message if problem else None
    )
    events: tuple[Event, ...] = ()
    if problem is not None and problem.reason == UNREACHABLE != s.rollout.reason:
        events = (Event(problem.reason, problem.message, "Warning"),)
    return Transition(status, events, requeue)


def _unreachable(s: AtStep, step: StepStatus, assessment: Assessment, now: datetime) -> Problem | None:
    """The deadline ends before the evidence suffices, at the rate of samples so far."""
    counted = counted_seconds(step, s.spec.rollout, now)
    limit = s.spec.rollout.progress_deadline
    if assessment.verdict != "Inconclusive" or counted < max(
        PLAN_AFTER_SECONDS, PLAN_AFTER_SHARE * seconds(limit)
    ):
        return None
    if _pods_are_missing(s):
        return None  # such as during a drain: the rate of samples is not the usual one
    left = remaining(s, now)
    slowest = next(iter(paces(assessment.metrics, counted)), None)
    # Hysteresis: once reported it stands until the rate suffices, or an estimate near the limit
    # would post an event at every pass.
    slack = 1 if s.rollout.reason == UNREACHABLE else PLAN_SLACK
    if slowest is None or slowest.seconds <= left * slack:
        return None
    configured = s.spec.rollout.on_inconclusive
    applies = "Pause" if configured == "Promote" and first_weight(s) is not None else configured
    then = f"then onInconclusive: {applies} applies"
    remedy = "send more traffic, or give more weight, a larger margin or a longer progressDeadline"
    return Problem(
        UNREACHABLE,
        f"{slowest.describe()}, but progressDeadline {limit} ends in {left:.0f} s, {then}: {remedy}",
    )


def _pods_are_missing(s: AtStep) -> bool:
    stable = s.status.stable.revision if s.status.stable else None
    servers = (s.server(s.rollout.revision), s.server(stable))
    return any(server.ready < server.desired_replicas for server in servers)


def with_fresh_measurement(
    s: AtStep, step: StepStatus, assessment: Assessment | None, now: datetime
) -> ModelDeploymentStatus:
    """The status with the measurement of this pass, if it is news: counts need a baseline in
    status, or a regression during a pause would never show. A pause keeps its reason.
    """
    if assessment is None or not _is_news(step, assessment, now):
        return s.status
    return with_metrics(s.status, assessment, now)


def _is_news(step: StepStatus, assessment: Assessment, now: datetime) -> bool:
    """Whether a measurement is worth a write: a new baseline, the last counts before pods changed,
    an error that came or went (status alone keeps its time), or ``REWRITE_SECONDS`` since the last
    one.

    One metric of several with enough evidence is no news: the step's verdict is written when it
    moves the rollout.
    """

    def significant_fields(metrics: Iterable[MetricStatus]) -> dict[str, tuple[object, ...]]:
        return {
            m.name: (
                m.reason if m.verdict == "Error" else None,
                m.since is not None,
                *((c is not None, c and c.began, c and changed and c.scraped) for c in (m.canary, m.stable)),
            )
            for m in metrics
        }

    changed = assessment.reason == Reason.INITIAL_DELAY
    return significant_fields(step.metrics) != significant_fields(assessment.metrics) or is_outdated(
        step.measured, now
    )


def is_outdated(measured: str | None, now: datetime) -> bool:
    """Whether a measurement of that time is old enough to be written again."""
    return measured is None or since(measured, now) >= REWRITE_SECONDS


def with_metrics(
    status: ModelDeploymentStatus, assessment: Assessment, now: datetime
) -> ModelDeploymentStatus:
    """The status with this measurement."""
    measurement = {"metrics": with_truncated_messages(assessment.metrics), "measured": stamp(now)}
    return change(status, step=step_of(status).model_copy(update=measurement))


def with_truncated_messages(metrics: Iterable[MetricStatus]) -> list[MetricStatus]:
    """The metrics, with messages cut to the room that status has."""
    statuses = list(metrics)
    room = max(128, MESSAGES_BYTES // max(1, len(statuses)))
    return [m.model_copy(update={"message": cut(m.message, room)}) for m in statuses]
