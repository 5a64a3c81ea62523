"""From readings to the verdict on the present canary step, for the operator and for replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from modelrollout.analysis.counters import Cold
from modelrollout.analysis.eta import counted_seconds, delay_seconds, initial_delay, paces
from modelrollout.analysis.judge import has_own_limit
from modelrollout.analysis.measurement import (
    Counts,
    Measurement,
    carried_of,
    counted_by_servers,
    counts_of,
    fold_in,
    is_counted_by,
    judge_all,
)
from modelrollout.analysis.metrics import effective_metrics, with_latency_of
from modelrollout.analysis.plausibility import share_off_weight, weight_ignored
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import Reading
from modelrollout.analysis.target import ERRORS, TRITON, sources_of
from modelrollout.analysis.verdict import combine, parts_of
from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import REQUEST_METRICS, Metric, MetricStatus, ServerCounts, StepStatus
from modelrollout.config import Profile
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.policy.mandatory_metrics import first_weight, steps_of
from modelrollout.rollout.snapshot import Assessment, Observed, baseline, rollout_of, step_of
from modelrollout.rollout.views import Specified

OLD_SECONDS = 90.0  # more than a scrape interval of a minute


def metrics_due(s: Observed, now: datetime, profile: Profile) -> list[Metric] | Assessment:
    """The metrics to read; or the assessment if nothing is to be read: during the initial delay, or
    if a template is missing. ``profile``: who counts the requests.
    """
    step, rollout = strategy.with_traffic(step_of(s.status)), Specified.of(s).spec.rollout
    effective = effective_metrics(rollout.analysis, s.templates, s.mandatory, profile)
    if isinstance(effective, MeasurementProblem):
        return Assessment("Error", effective.reason, effective.message, tuple(step.metrics))
    metrics = with_latency_of(effective, decoupled=is_decoupled(s))
    if rollout_of(s.status).uncompared_since is not None:
        metrics = [m for m in metrics if has_own_limit(m)]
        if not metrics:
            return Assessment("Inconclusive", Reason.NO_METRICS, "no metric has a limit without stable")
    delay = delay_seconds(step, rollout)
    if delay and counted_seconds(step, rollout, now) <= 0:
        waited = since(step.observed_since, now) if step.observed_since else 0.0
        text = f"counting begins in {delay - waited:.0f} s (initialDelay {delay:g}s)"
        # a bake begins with stable's counts of the last step
        return Assessment("Inconclusive", Reason.INITIAL_DELAY, text, tuple(step.metrics))
    cold = cold_of(s)
    if not step.metrics and cold is not None and (left := cold.until - now.timestamp()) > 0:
        text = f"pods have become ready: counting begins in {left:.0f} s"
        return Assessment("Inconclusive", Reason.INITIAL_DELAY, text)
    return metrics


def is_decoupled(s: Observed) -> bool:
    """Whether the version on trial streams its answers: as preparing it found, and vLLM always."""
    rollout = rollout_of(s.status)
    revision = s.revision(rollout.revision)
    if Specified.of(s).spec.serving.triton.backend == "VLLM":
        return True
    artifact = rollout.artifact or (revision.status.artifact if revision is not None else None)
    return artifact is not None and artifact.decoupled is True


def assess(
    s: Observed,
    metrics: Sequence[Metric],
    readings: Mapping[str, Reading],
    now: datetime,
    *,
    profile: Profile | None = None,
    beside: Reading | None = None,
) -> Assessment:
    """The verdict after adding these readings to the counts in the step's status.

    ``profile``: who counts the requests; None: unknown, as for a replay. ``beside``: what the
    servers counted of the errors that a gateway counts.
    """
    sources = sources_of(metrics, profile) if profile is not None else None
    trial, rollout = Specified.of(s), rollout_of(s.status)
    # Those of the gateway, which splits what it counts by the weight. Sessions differ in how much
    # they ask.
    one_by_one = trial.spec.traffic.session_affinity is None
    split = [n for n, by in (sources or {}).items() if one_by_one and n in REQUEST_METRICS and by != TRITON]
    step, steps = strategy.with_traffic(step_of(s.status)), steps_of(trial)
    bakes = rollout.stage == "Bake"
    counted, cold = counts_of(step.metrics, sources), cold_of(s)
    measured = fold_in(readings, counted, stable=baseline(s) is not None and not bakes, cold=cold)
    # Clients choose the requests to a preview: where policies require metrics they prove nothing
    # about all requests.
    carried = carried_of([e for e in rollout.history if e.weight > 0 or first_weight(s) is None], step)
    if bakes:
        # The former stable has no traffic, so its counts of the last step stand for it. They
        # contain that step's evidence, so nothing is carried over.
        before = {m.name: m.stable for m in step.metrics if is_counted_by(m, sources)}
        measured, carried = {name: replace(m, stable=before.get(name)) for name, m in measured.items()}, {}
    elif split:
        measured = {
            name: (_by_weight(m, counted.get(name, Counts()), step.weight) if name in split else m)
            for name, m in measured.items()
        }
    alone = rollout.uncompared_since is not None
    onward = 100 if alone else strategy.next_weight(steps, strategy.locate(steps, step))
    statuses = judge_all(
        parts_of(metrics), measured, step.metrics, carried, step.weight, onward, now, simultaneous=not bakes
    )
    verdict = combine(statuses)
    ignored = _weight_ignored(s, [m for name, m in measured.items() if name in split], step)
    statuses = [_with_age(m, now) for m in statuses]
    if beside is not None:
        compared = baseline(s) is not None and not bakes
        counts = _of_servers(counted_by_servers(step.metrics, sources), beside, cold, stable=compared)
        statuses = [m.model_copy(update={"servers": counts}) if m.name == ERRORS else m for m in statuses]
    waits = {
        p.metric: round(p.seconds) for p in paces(statuses, counted_seconds(step, trial.spec.rollout, now))
    }
    reason, message = verdict.reason, verdict.message
    if verdict.name == "Inconclusive" and cold is not None and (left := cold.until - now.timestamp()) > 0:
        reason = Reason.INITIAL_DELAY
        message = f"pods have become ready: counting begins again in {left:.0f} s; until then {message}"
    name = verdict.name
    if ignored is not None and name != "Failed":  # what is proven worse is taken back all the same
        name, reason, message = "Error", ignored.reason, ignored.message
    return Assessment(
        name,
        reason,
        message,
        tuple(_annotated(m, waits.get(m.name), onward, sources) for m in statuses),
    )


def _of_servers(before: Counts, reading: Reading, cold: Cold | None, *, stable: bool) -> ServerCounts:
    """The counts with the reading; a problem of it changes nothing, since nothing rests on them."""
    m = fold_in({ERRORS: reading}, {ERRORS: before}, stable=stable, cold=cold)[ERRORS]
    canary, of_stable = (c and c.model_copy(update={"spread": []}) for c in (m.canary, m.stable))
    return ServerCounts(canary=canary, stable=of_stable)


def _weight_ignored(s: Observed, measured: Sequence[Measurement], step: StepStatus) -> Problem | None:
    """Why the weight of a gateway's step is proven to be ignored; ``measured``: what it counted.
    Not asked where connections may be split instead of requests (gRPC), where clients choose
    (previews, tests), nor where a pod of either side came or ended since the step began to be
    observed.
    """
    trial, stable = Specified.of(s), baseline(s)
    if (
        rollout_of(s.status).stage != "Canary"
        or step.strategy != "Canary"
        or trial.spec.traffic.grpc is not None
        or stable is None
        or step.observed_since is None
    ):
        return None
    since_then = step.observed_since
    for server in (s.server(rollout_of(s.status).revision), s.server(stable.revision)):
        latest = [*([server.newest_ready] if server.newest_ready else []), *(c.at for c in server.crashes)]
        if server.ready == 0 or any(since(since_then, datetime.fromisoformat(at)) > 0 for at in latest):
            return None
    both = next(
        (m for m in measured if m.problem is None and m.canary is not None and m.stable is not None),
        None,
    )
    return None if both is None else weight_ignored(both.canary, both.stable, step.weight)


def cold_of(s: Observed) -> Cold | None:
    """When a pod of either side last became ready, and until when it is cold. Behind a gateway
    requests are counted by revision and not by pod, so the counts of the whole revision wait.
    """
    rollout = rollout_of(s.status)
    stable = None if rollout.stage == "Bake" else baseline(s)
    sides = (rollout.revision, *((stable.revision,) if stable else ()))
    changes = [datetime.fromisoformat(at).timestamp() for r in sides if (at := s.server(r).newest_ready)]
    delay = initial_delay(Specified.of(s).spec.rollout)
    return Cold(max(changes), max(changes) + delay) if changes and delay else None


def _annotated(
    m: MetricStatus, seconds_left: int | None, onward: int, sources: Mapping[str, str | None] | None
) -> MetricStatus:
    """The metric with the time it still needs, with who counted, and with the weight that it was
    proven for: steps can be edited before that weight begins.
    """
    proven_for = onward if m.verdict == "Successful" and m.canary is not None else None
    source = sources.get(m.name.partition("/")[0]) if sources is not None else None
    return m.model_copy(update={"needed_seconds": seconds_left, "next_weight": proven_for, "source": source})


def _with_age(m: MetricStatus, now: datetime) -> MetricStatus:
    """The metric; its message says how old the counts are, where that is not the usual wait for a
    scrape.
    """
    newest = max((c.scraped for c in (m.canary, m.stable) if c is not None and c.scraped), default=None)
    if newest is None or (age := now.timestamp() - newest) < OLD_SECONDS:
        return m
    return m.model_copy(update={"message": f"{m.message}; counted until {round(age, -1):.0f} s ago"})


def _by_weight(m: Measurement, before: Counts, weight: int) -> Measurement:
    """The measurement; without this reading if that made the counts implausible, since the cause
    may be temporary.
    """
    problem = None if m.problem else share_off_weight(m.canary, m.stable, weight)
    return m if problem is None else Measurement(before.canary, before.stable, problem=problem)
