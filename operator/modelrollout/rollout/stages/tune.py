"""tune: measures instances and batch sizes on a Triton of its own, before a version has pods."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import Tune, TuningEvidence, TuningTrial
from modelrollout.contract.common import ServingConfig
from modelrollout.contract.results import TaskResult, TrialResult, TuneResult
from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import SERVED
from modelrollout.rollout.stages.job import RESULT_LOST, failed_job, job_in_progress, retry_job
from modelrollout.rollout.stages.provision import wait_in_queue
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.transitions import enter
from modelrollout.rollout.views import InFlight


def needs_tuning(s: InFlight) -> bool:
    """Whether to tune the version in flight first: once, and never after it has served or has pods,
    whose template must not change.
    """
    rollout = s.rollout
    revision = s.revision(rollout.revision)
    if s.spec.serving.tune is None or rollout.mode == "Rollback" or revision is None:
        return False
    return (
        revision.status.tuning is None
        and revision.status.outcome not in SERVED
        and s.server(revision.name).desired_replicas == 0
    )


def tune(s: InFlight, now: datetime) -> Transition:
    """Provision with the Job's result. If no configuration meets the objective, an event reports
    it, and the canary's evidence decides.
    """
    rollout, work = s.rollout, s.work
    if rollout.queue is not None:
        return wait_in_queue(s, rollout.queue, now)
    requested = s.spec.serving.tune
    if requested is None:  # removed from spec meanwhile
        return Transition(enter(s.status, "Provision", now))
    if work.state == "Failed":
        return failed_job(s, work, now)
    if work.state != "Succeeded":
        return job_in_progress(s, now, "the tune Job")
    if work.result is None or work.result.tuned is None:
        return retry_job(s, now, RESULT_LOST)
    evidence = _evidence(requested, work.result, work.result.tuned)
    unmet = evidence.configured is not None and evidence.chosen is None and not evidence.configured.within
    event = Event(
        Reason.OBJECTIVE_UNMET if unmet else Reason.SERVING_TUNED,
        evidence.message,
        "Warning" if unmet else "Normal",
    )
    return Transition(enter(s.status, "Provision", now, tuning=evidence), (event,))


def serving_of(tuning: TuningEvidence | None) -> ServingConfig | None:
    """The settings that pods of a revision serve with; None: those of its artifact."""
    if tuning is None or tuning.chosen is None:
        return None
    chosen = tuning.chosen
    return ServingConfig(
        instances=chosen.instances, batch=chosen.batch, queue_delay_us=chosen.queue_delay_microseconds
    )


def trial_serving(serving: ServingConfig) -> TuningTrial:
    """A trial with these settings and no measurement."""
    return TuningTrial(
        instances=serving.instances, batch=serving.batch, queue_delay_microseconds=serving.queue_delay_us
    )


def _evidence(requested: Tune, result: TaskResult, tuned: TuneResult) -> TuningEvidence:
    configured, chosen = _trial(tuned.configured), _trial(tuned.chosen) if tuned.chosen else None
    return TuningEvidence(
        objective=requested.objective,
        share=requested.share,
        configured=configured,
        chosen=chosen,
        candidates=tuned.candidates,
        failed=tuned.failed,
        trials=[_trial(t) for t in tuned.trials],
        message="; ".join(part for part in (_summary(configured, chosen), result.message) if part),
    )


def _trial(measured: TrialResult) -> TuningTrial:
    numbers = measured.model_dump(exclude={"serving"})
    return trial_serving(measured.serving).model_copy(update=numbers)


def _summary(configured: TuningTrial, chosen: TuningTrial | None) -> str:
    if chosen is None:
        return f"the configured settings stay: {_performance(configured)}"
    return f"{settings(chosen)}: {_performance(chosen)}; as configured {_performance(configured)}"


def _performance(t: TuningTrial) -> str:
    return f"{t.throughput:.0f}/s at {t.latency_ms:.1f} ms" if t.problem is None else t.problem


def settings(t: TuningTrial) -> str:
    """``2 instances, batches of 16 within 500 us``."""
    instances = f"{t.instances} instance{'s' if t.instances != 1 else ''}"
    return (
        f"{instances}, batches of {t.batch} within {t.queue_delay_microseconds} us"
        if t.batch
        else f"{instances}, requests one by one"
    )


TUNE = StageSpec(
    "Tune",
    tune,
    InFlight,
    phase="Tuning",
    doing="serving configurations are being measured on a Triton of its own",
    then="its servers start",
    condition="Tuned",
    is_configured=lambda spec: spec.serving.tune is not None,
    may_queue=True,
)
