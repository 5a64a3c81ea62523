"""Replays a trial over recorded readings: the same state machine, without Prometheus.

A recording has two limits: its requests were split by the weights of its time, so with other
weights the numbers of samples differ from those that the rollout would have had; and all pods count
as ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.measurement import counts_of
from modelrollout.analysis.metrics import effective_metrics
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.verdict import parts_of
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Canary,
    MetricStatus,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    RevisionRef,
    RolloutStatus,
)
from modelrollout.config import Profile
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.assessment import assess, metrics_due
from modelrollout.rollout.snapshot import (
    Assessment,
    Observed,
    Server,
    Traffic,
    is_paused_for_cause,
    rollout_of,
    step_of,
)
from modelrollout.rollout.stages.canary import canary
from modelrollout.rollout.stages.judging import UNREACHABLE
from modelrollout.rollout.transitions import at_step
from modelrollout.rollout.views import AtStep
from modelrollout.statistics.dispersion import Spread

STILL_KNOWN_SECONDS = 600.0  # as promql.BASELINE_WINDOW
_PASSES = 4  # per moment: the end of a step and the begin of the next one need two
Outcome = Literal["Promoted", "RolledBack", "Paused", "Unfinished"]


@dataclass(frozen=True)
class Moment:
    """The readings of one measurement, by metric (and METRIC/SLICE)."""

    at: datetime
    readings: Mapping[str, Reading]


@dataclass(frozen=True)
class Entry:
    """An event, ``seconds`` after the first moment, with the metrics at that time."""

    at: datetime
    seconds: float
    step: str
    weight: int
    what: str
    message: str
    metrics: tuple[MetricStatus, ...] = ()


@dataclass(frozen=True)
class Replayed:
    """How the rollout would have ended, and its timeline."""

    outcome: Outcome
    reason: str
    message: str
    timeline: tuple[Entry, ...] = ()


@dataclass
class _Known:
    """State needed for a step's baseline: recently seen processes (even if their last scrape
    failed) and stable's usual variation.
    """

    usual: dict[str, Spread[float]] = field(default_factory=dict)
    last_samples: dict[tuple[str, str, str], tuple[datetime, Sample]] = field(default_factory=dict)

    def add(self, moment: Moment) -> None:
        for name, reading in moment.readings.items():
            if isinstance(reading, CounterReading):
                if reading.usual is not None:
                    self.usual[name] = reading.usual
                for side, raw in (("canary", reading.canary), ("stable", reading.stable)):
                    for process, sample in raw.processes.items():
                        self.last_samples[name, side, process] = (moment.at, sample)

    def completed(self, name: str, look: CounterReading, now: datetime) -> CounterReading:
        def side(which: str, raw: Raw) -> Raw:
            gone = {
                p: sample
                for (metric, s, p), (at, sample) in self.last_samples.items()
                if metric == name
                and s == which
                and p not in raw.processes
                and (now - at).total_seconds() <= STILL_KNOWN_SECONDS
            }
            return Raw({**gone, **raw.processes})

        return CounterReading(side("canary", look.canary), side("stable", look.stable), self.usual.get(name))


def replay(
    spec: ModelDeploymentSpec, moments: Iterable[Moment], *, stable: bool = True, settle_seconds: float = 3.0
) -> Replayed:
    """Step through the moments as the operator would, without pauses that wait for a promote.
    ``stable``: whether there is a baseline.

    Raises ValueError for what cannot be judged at all: unknown templates, a canary without a
    weight.
    """
    spec = _unattended(spec)
    metrics = effective_metrics(spec.rollout.analysis, {}, (), _profile(spec))
    if isinstance(metrics, MeasurementProblem):
        raise ValueError(metrics.message)
    if strategy.strategy_of(spec.rollout) == "Canary" and not any(
        s.weight for s in strategy.steps_of(spec.rollout)
    ):
        raise ValueError("spec.rollout.canary.steps: a canary needs at least one weight")
    run = _Run(spec, [p.name for p in parts_of(metrics)], stable, settle_seconds)
    for moment in moments:
        ended = run.at(moment)
        if ended is not None:
            return ended
    return run.unfinished()


def _profile(spec: ModelDeploymentSpec) -> Profile:
    return "none" if spec.traffic.gateway is None else "traefik"


def _unattended(spec: ModelDeploymentSpec) -> ModelDeploymentSpec:
    """The spec without the pauses that only a promote ends."""
    rollout = spec.rollout
    if trial := rollout.blue_green or rollout.ab_test:
        field = "blue_green" if rollout.blue_green else "ab_test"
        return spec.model_copy(
            update={
                "rollout": rollout.model_copy(update={field: trial.model_copy(update={"auto_promote": True})})
            }
        )
    steps = [s for s in strategy.steps_of(rollout) if s.pause is None or s.pause.duration]
    canary = (rollout.canary or Canary()).model_copy(update={"steps": steps})
    return spec.model_copy(update={"rollout": rollout.model_copy(update={"canary": canary})})


class _Run:
    def __init__(
        self, spec: ModelDeploymentSpec, names: Sequence[str], stable: bool, settle_seconds: float
    ) -> None:
        self._spec, self._names, self._stable, self._settle = spec, names, stable, settle_seconds
        self._known = _Known()
        self._status: ModelDeploymentStatus | None = None
        self._timeline: list[Entry] = []
        self._began: datetime | None = None
        self._last: tuple[Moment, Assessment | None] | None = None

    def at(self, moment: Moment) -> Replayed | None:
        """One measurement with all transitions at that time; the result if the rollout ended."""
        if self._status is None:
            self._status, self._began = self._start(moment.at), moment.at
        self._known.add(moment)
        for _ in range(_PASSES):
            before = self._status
            observed = self._observed(before)
            assessment = self._assess(observed, moment)
            self._last = (moment, assessment)
            s = AtStep(**vars(observed), traffic=Traffic(True), assessment=assessment)
            transition = canary(s, moment.at)
            after, self._status = transition.status, transition.status
            metrics = assessment.metrics if assessment else ()
            happened = [(e.reason, e.message) for e in transition.events]
            if not happened and step_of(after).phase == "Observing" and step_of(before).phase == "Shifting":
                happened = [("Counting", f"the step begins at weight {step_of(after).weight} %")]
            rollout, was = rollout_of(after), rollout_of(before).reason
            if not happened and rollout.reason != was:
                over = (
                    ("OnTime", "at the present rate the deadline can be met")
                    if was == UNREACHABLE
                    else ("Recovered", "it is over")
                )
                happened = [(rollout.reason, rollout.message or "") if rollout.reason else over]
            for what, message in happened:
                self._record(before, moment.at, what, message, metrics)
            ended = self._ended(after)
            if ended is not None or after == before:
                return ended
        return None

    def unfinished(self) -> Replayed:
        """The result if the recording ends before the rollout."""
        if self._status is None or self._last is None:
            return Replayed("Unfinished", Reason.NO_DATA, "there is no reading at all in this time")
        moment, assessment = self._last
        latest = assessment or Assessment("Inconclusive", Reason.NO_DATA, "a weight was being taken up")
        self._record(self._status, moment.at, "Unfinished", latest.message, latest.metrics)
        return Replayed(
            "Unfinished",
            latest.reason,
            f"the recording ends before a verdict: {latest.message}",
            tuple(self._timeline),
        )

    def _start(self, now: datetime) -> ModelDeploymentStatus:
        rollout = RolloutStatus(
            stage="Canary",
            since=stamp(now),
            started=stamp(now),
            generation=1,
            input_hash="",
            revision="canary",
            number=2,
            sha256="0" * 64,
        )
        # A first revision has nothing to compare with, which the state machine knows as the
        # revision in flight being stable itself.
        stable = RevisionRef(revision="stable" if self._stable else "canary", number=1, since=stamp(now))
        first = strategy.steps_of(self._spec.rollout)[0]
        status = ModelDeploymentStatus(stable=stable, rollout=rollout)
        return at_step(
            status,
            0,
            first.weight or 0,
            now,
            strategy=strategy.strategy_of(self._spec.rollout),
            pause=first.pause,
        )

    def _observed(self, status: ModelDeploymentStatus) -> Observed:
        return Observed(
            name="replay",
            namespace="replay",
            generation=1,
            spec=self._spec,
            status=status,
            servers={"canary": Server(1, 1, None, 1), "stable": Server(1, 1, None, 1)},
            settle_seconds=self._settle,
        )

    def _assess(self, s: Observed, moment: Moment) -> Assessment | None:
        step = step_of(s.status)
        if step.phase == "Shifting" and since(step.since, moment.at) < self._settle:
            return None
        metrics = metrics_due(s, moment.at, _profile(self._spec))
        if isinstance(metrics, Assessment):
            return metrics
        counts, readings = counts_of(step.metrics), {}
        for name in self._names:
            reading = moment.readings.get(
                name,
                MeasurementProblem(
                    Reason.NO_DATA, f"{name}: the recording has no reading of it at this time"
                ),
            )
            fresh = name not in counts or counts[name].canary is None
            readings[name] = (
                self._known.completed(name, reading, moment.at)
                if fresh and isinstance(reading, CounterReading)
                else reading
            )
        return assess(s, metrics, readings, moment.at)

    def _record(
        self,
        status: ModelDeploymentStatus,
        now: datetime,
        what: str,
        message: str,
        metrics: tuple[MetricStatus, ...],
    ) -> None:
        assert self._began is not None
        steps, step = strategy.steps_of(self._spec.rollout), step_of(status)
        label = strategy.step_position(steps, strategy.locate(steps, step))
        self._timeline.append(
            Entry(now, (now - self._began).total_seconds(), label, step.weight, what, message, metrics)
        )

    def _ended(self, status: ModelDeploymentStatus) -> Replayed | None:
        rollout = rollout_of(status)
        timeline = tuple(self._timeline)
        if rollout.stage == "Promote":
            return Replayed("Promoted", "Promoted", "it would have climbed all steps", timeline)
        if rollout.stage == "Revert":
            return Replayed("RolledBack", rollout.reason or Reason.FAILED, rollout.message or "", timeline)
        if is_paused_for_cause(rollout):
            return Replayed("Paused", rollout.reason or Reason.PAUSED, rollout.message or "", timeline)
        return None
