"""From readings to the verdict on the present canary step. The operator's looks and a replay of the
past share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from modelrollout.analysis.eta import counted_seconds, delay_seconds, paces
from modelrollout.analysis.measurement import Counts, Measurement, carried_of, counts_of, fold_in, judge_all
from modelrollout.analysis.metrics import effective_metrics
from modelrollout.analysis.plausibility import share_off_weight
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import Reading
from modelrollout.analysis.verdict import combine, parts_of
from modelrollout.api.v1alpha1 import Metric, MetricStatus
from modelrollout.rollout import strategy as stepping
from modelrollout.rollout.policy.mandatory_metrics import first_weight, steps_of
from modelrollout.rollout.snapshot import Assessment, Snapshot, baseline, since


def metrics_due(s: Snapshot, now: datetime) -> list[Metric] | Assessment:
    """The metrics to look at, or the assessment that stands without a look: the initial delay, a
    template that is not there.
    """
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    step, analysis = stepping.with_traffic(s.status.rollout.step), s.spec.rollout.analysis
    metrics = effective_metrics(analysis, s.templates, s.mandatory)
    if isinstance(metrics, MeasurementProblem):
        return Assessment("Error", metrics.reason, metrics.message, tuple(step.metrics))
    delay = delay_seconds(step, analysis)
    if delay and counted_seconds(step, analysis, now) <= 0:
        waited = since(step.observed_since, now) if step.observed_since else 0.0
        text = f"counting begins in {delay - waited:.0f} s (initialDelay {analysis.initial_delay})"
        # a bake begins with what stable has shown
        return Assessment("Inconclusive", "InitialDelay", text, tuple(step.metrics))
    return metrics


def assess(
    s: Snapshot,
    metrics: Sequence[Metric],
    readings: Mapping[str, Reading],
    now: datetime,
    *,
    split: bool = False,
) -> Assessment:
    """The verdict with this look added to what the step's status holds.

    ``split``: errors and latency are counted by a gateway that splits requests by the step's
    weight; of a replay nobody knows.
    """
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    rollout, step, steps = s.status.rollout, stepping.with_traffic(s.status.rollout.step), steps_of(s)
    bakes = rollout.stage == "Bake"
    counted = counts_of(step.metrics)
    found = fold_in(readings, counted, stable=baseline(s) is not None and not bakes)
    # What a preview was asked somebody has chosen: where policies demand metrics it proves nothing
    # of everybody's requests.
    carried = carried_of([e for e in rollout.history if e.weight > 0 or first_weight(s) is None], step)
    if bakes:
        # The former stable has no traffic: its counts of the last step stand for it. That step's
        # evidence has them in it, so nothing is carried over.
        before = {m.name: m.stable for m in step.metrics}
        found, carried = {name: replace(m, stable=before.get(name)) for name, m in found.items()}, {}
    elif split:
        found = {
            name: (
                _by_weight(m, counted.get(name, Counts()), step.weight)
                if name in ("errors", "latency")
                else m
            )
            for name, m in found.items()
        }
    onward = stepping.next_weight(steps, stepping.locate(steps, step))
    statuses = judge_all(
        parts_of(metrics), found, step.metrics, carried, step.weight, onward, now, at_once=not bakes
    )
    verdict = combine(statuses)
    waits = {
        p.metric: round(p.seconds)
        for p in paces(statuses, counted_seconds(step, s.spec.rollout.analysis, now))
    }
    return Assessment(
        verdict.name,
        verdict.reason,
        verdict.message,
        tuple(_told(m, waits.get(m.name), onward) for m in statuses),
    )


def _told(m: MetricStatus, seconds_left: int | None, onward: int) -> MetricStatus:
    """With how long it takes; and with what it was proven for: steps can be edited before the
    weight is given.
    """
    proven_for = onward if m.verdict == "Successful" and m.canary is not None else None
    return m.model_copy(update={"needed_seconds": seconds_left, "next_weight": proven_for})


def _by_weight(m: Measurement, before: Counts, weight: int) -> Measurement:
    """Without the look that made the counts implausible: what is wrong with it may pass, and then
    nothing is lost.
    """
    problem = None if m.problem else share_off_weight(m.canary, m.stable, weight)
    return m if problem is None else Measurement(before.canary, before.stable, problem=problem)
