"""``auto``: candidates are made with the other steps, judged on data of the search's own, timed,
and the best one within the budget is taken.

A candidate is within the budget if every metric of the gate passes on that data, and the 95 %
interval of every loss lies within its budget: stricter than the gate, because the best of many is
partly the luckiest of many.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from modelrollout.api.v1alpha1 import seconds
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate
from modelrollout.contract.results import Search, SearchPoint
from modelrollout.contract.steps import AutoStep
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import say
from modelrollout.optimizer.gate.gate import ByOutput, Measured, compare_answers, fitting_labels, judge_gate
from modelrollout.optimizer.gate.metrics import SMALLER
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data, requests
from modelrollout.optimizer.model.half import open_judged
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import Advance
from modelrollout.optimizer.model.timing import in_turns, open_single
from modelrollout.optimizer.steps.auto.plan import SOURCE, Candidate, Means, Outcome, next_candidate
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.distributions import INT4, TRAINING, installed
from modelrollout.reasons import Reason
from modelrollout.statistics.frontier import OBJECTIVES, Point, choose, cost_of, enough, frontier

# set aside of the data where no calibration data is given, at most a quarter of it
CALIBRATION_SAMPLES = 256
REQUESTS = 64  # different ones that latency is measured with
# of one latency: as many as fit into that time
MOST_RUNS, LEAST_RUNS, TIMING_SECONDS = 400, 15, 1.5
MOST_POINTS = 12  # in the summary; the report has all


class _TimeIsUpError(Exception):
    """The time limit came in the middle of a candidate."""


@dataclass(frozen=True)
class _Made:
    """A model that was made and judged. ``done`` and ``warnings``: those of its steps, from the
    source on.
    """

    point: Point
    path: Path
    value: float
    interval: tuple[float, float]
    done: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def entry(self) -> dict[str, Any]:
        """Its entry in the report."""
        return {
            **self.point._asdict(),
            "value": self.value,
            "interval": list(self.interval),
            "steps": self.done,
        }

    def summary(self) -> SearchPoint:
        """Its entry in the termination message."""
        p = self.point
        return SearchPoint(
            p.name,
            p.size,
            p.milliseconds,
            float(f"{self.value:.6g}"),
            float(f"{self.interval[1]:.4g}"),
            p.within,
        )


class _Judge:
    """Accuracy against the original model, and latency against the source of the search.

    ``metric``, its value ``before`` and what is ``allowed`` of a loss: of the gate's first metric,
    on this data.
    """

    def __init__(self, gate: Gate, data: Data, work: StepContext) -> None:
        """Raises JobError: SelectionUnfit, and those of reading answers."""
        self._gate, self._data, self._work, self._field = gate, data, work, f"{work.field}.data"
        self._before = compare_answers(
            gate, data, open_judged(work.original, self._field), work.info, self._field, work.advance
        )
        self._data = data = fitting_labels(data, self._before, self._field)
        untouched = self._judged(self._before)
        if untouched.decision.verdict != "Successful":
            raise bad_input(
                Reason.SELECTION_UNFIT,
                f"{self._field}: on this data not even the model as it was given passes:"
                f" {untouched.decision.message}",
            )
        first = untouched.report["metrics"][0]
        self.metric, self.before, self.allowed = (
            first["name"],
            first["judged"][0]["before"],
            first["judged"][0]["allowed"],
        )
        asked = requests(data.inputs, work.info.inputs, 1, self._field)
        self._requests = [request.arrays for request in islice(asked, REQUESTS)]
        self._session = open_single(work.source)
        once = float(np.median(in_turns([self._session], self._requests, LEAST_RUNS)))
        self._runs = max(LEAST_RUNS, min(MOST_RUNS, int(TIMING_SECONDS / max(2 * once, 1e-6))))
        self._milliseconds = 1e3 * float(np.median(in_turns([self._session], self._requests, self._runs)))

    def _judged(self, after: ByOutput) -> Measured:
        return judge_gate(self._gate, self._data, self._before, after, self._field, same=False)

    def made(
        self, name: str, path: Path, done: list[dict[str, Any]], warnings: list[str], advance: Advance
    ) -> _Made:
        """Judge and time it; raises JobError for a model that does not run or does not answer."""
        after = self._before
        if path != self._work.original:
            after = compare_answers(
                self._gate, self._data, open_judged(path, self._field), self._work.info, self._field, advance
            )
        measured = self._judged(after)
        # the whole of the data, by the gate's first metric
        first = measured.report["metrics"][0]["judged"][0]
        before, value = first["before"], first["after"]
        within = measured.decision.verdict == "Successful" and all(
            m.allowed is None or m.interval[1] <= m.allowed for m in measured.metrics
        )
        seconds_of = np.median(
            in_turns([self._session, open_single(path)], self._requests, self._runs), axis=1
        )
        # by the ratio: the machine may be busier than it was
        milliseconds = self._milliseconds * float(seconds_of[1] / seconds_of[0])
        point = Point(
            name=name,
            size=files.size_of(path),
            milliseconds=float(f"{milliseconds:.4g}"),
            loss=value - before if self.metric in SMALLER else before - value,
            within=within,
        )
        return _Made(point, path, value, tuple(first["interval"]), done, warnings)


def auto(step: AutoStep, work: StepContext) -> dict[str, Any]:
    """Search, and write the chosen model; nothing where no candidate is worth it.

    Raises JobError: SelectionUnfit, and those of reading the model's answers.
    """
    assert work.gate is not None  # the API server's rule
    ends = monotonic() + seconds(step.time_limit)
    calibration, data = _divided(work)
    judge = _Judge(_gate_for(work.gate, data, work), data, work)
    source = judge.made(SOURCE, work.source, [], [], work.advance)
    means = _means(step, work)
    context = replace(
        work,
        data={"calibration": calibration}
        | {name: d for name, d in work.data.items() if name == "training.data"},
    )

    made, best = {SOURCE: source}, source
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    cut: str | None = None
    while (candidate := next_candidate(means, outcomes)) is not None:
        say("try", candidate=candidate.name)
        target = work.target.parent / f"candidate-{len(outcomes)}" / work.target.name
        target.parent.mkdir()
        try:
            trial = _make(candidate, made[candidate.base], target, context, judge, ends)
        except _TimeIsUpError:
            cut = candidate.name
            break
        except (JobError, MemoryError) as error:
            if isinstance(error, JobError) and error.code not in (
                ExitCode.BAD_INPUT,
                ExitCode.OUT_OF_RESOURCES,
            ):
                raise
            files.remove(target)
            outcomes[candidate.name] = "Refused"
            refused[candidate.name] = (
                f"{error.reason}: {error.message}" if isinstance(error, JobError) else Reason.OUT_OF_MEMORY
            )
        else:
            made[candidate.name] = trial
            outcomes[candidate.name] = "Within" if trial.point.within else "Beyond"
            best = made[
                choose(source.point, [m.point for m in made.values() if m is not source], step.objective).name
            ]
        in_use = {source.path, best.path, made[candidate.base].path, target}
        for path in {m.path for m in made.values()} - in_use:
            files.remove(path)
        say(
            "tried",
            candidate=candidate.name,
            outcome=outcomes[candidate.name],
            best=best.point.name,
            bestSize=best.point.size,
        )

    if best is not source:
        files.copy(best.path, work.target)
    for text in (*_findings(step, work, list(made.values()), best, cut, refused), *best.warnings):
        work.warn(text)
    frontiers = {o: [p.name for p in frontier([m.point for m in made.values()], o)] for o in OBJECTIVES}
    shown = dict.fromkeys(
        [best.point.name, SOURCE, *(name for names in frontiers.values() for name in names)]
    )
    search = Search(
        objective=step.objective,
        metric=judge.metric,
        before=judge.before,
        allowed=judge.allowed,
        chosen=best.point.name,
        tried=len(made) - 1,
        ended="TimeLimit" if cut else "Complete",
        points=tuple(made[name].summary() for name in list(shown)[:MOST_POINTS]),
    )
    return {
        "search": search.model_dump(),
        "steps": best.done,
        "candidates": [m.entry() for m in made.values()],
        "frontier": frontiers,
        "refused": refused,
        "cut": cut,
        "samples": data.n,
        "calibrationSamples": calibration.n,
    }


def _make(
    candidate: Candidate, base: _Made, target: Path, work: StepContext, judge: _Judge, ends: float
) -> _Made:
    """Make and judge a candidate. Raises _TimeIsUpError, also in the middle, since training may
    take long; an unfinished file goes with the Job's folder.
    """

    def advance(done: int, total: int | None) -> None:
        if monotonic() >= ends:
            raise _TimeIsUpError
        work.advance(done, total)

    advance(0, None)
    warnings: list[str] = []
    data = {name: work.data[name] for name in candidate.step.sources()}
    inner = replace(
        work,
        source=base.path,
        target=target,
        info=check(base.path),
        data=data,
        advance=advance,
        warn=warnings.append,
    )
    done = {"kind": candidate.step.kind} | work.run_step(candidate.step, inner)
    return judge.made(candidate.name, target, [*base.done, done], [*base.warnings, *warnings], advance)


def _divided(work: StepContext) -> tuple[Data, Data]:
    """(calibration data, what candidates are judged on): samples of one are not in the other."""
    data = work.data["data"]
    if "calibration" in work.data:
        return work.data["calibration"], data
    count = min(CALIBRATION_SAMPLES, data.n // 4)
    if not count:
        raise bad_input(
            Reason.SELECTION_UNFIT,
            f"{work.field}.data: {data.n} samples are too few to search with; give hundreds, better"
            " thousands",
        )
    # from all over the data: it may be sorted
    aside = np.linspace(0, data.n - 1, count).astype(np.int64)
    return replace(data.rows(aside), labels=None, targets=None), data.rows(
        np.setdiff1d(np.arange(data.n), aside)
    )


def _gate_for(gate: Gate, data: Data, work: StepContext) -> Gate:
    """The gate's metrics, without the budgets of slices that this data does not have."""
    if data.slices or not any(metric.slices for metric in gate.metrics):
        return gate
    work.warn(
        f"{work.field}.data: it names no slices, so the search did not look at the budgets that the gate has"
        " for them"
    )
    return gate.model_copy(
        update={"metrics": tuple(metric.model_copy(update={"slices": None}) for metric in gate.metrics)}
    )


def _means(step: AutoStep, work: StepContext) -> Means:
    trains = step.training is not None and installed(*TRAINING)
    if step.training is not None and not trains:
        work.warn(
            f"{work.field}.training: nothing that trains was tried, because this image has no JAX; set"
            " trainer.image in the chart's values (models that are converted to ONNX take the image of their"
            " format, which does not train)"
        )
    return Means(
        calibration=step.calibration or step.data,
        training=step.training if trains else None,
        int4=installed(*INT4),
        sensitivity=bool(work.budgets),
    )


def _findings(
    step: AutoStep,
    work: StepContext,
    made: list[_Made],
    best: _Made,
    cut: str | None,
    refused: dict[str, str],
) -> list[str]:
    """Warnings about the search."""
    source, others = made[0], made[1:]
    warnings = []
    if best is source:
        better = [
            m for m in others if cost_of(step.objective)(m.point) <= enough(source.point, step.objective)
        ]
        closest = min(better, key=lambda m: m.interval[1], default=None)
        word = "smaller" if step.objective == "Size" else "faster"
        if closest:
            why = (
                f"{closest.point.name} came closest, with a loss of {closest.point.loss:.4g} (95 % interval"
                f" up to {closest.interval[1]:.4g})"
            )
        else:
            reasons = [f"{name} ({text.split(':')[0]})" for name, text in refused.items()]
            why = f"{len(others)} candidates could be made, not: {', '.join(reasons) or 'none'}"
        warnings.append(
            f"{work.field}: nothing that keeps the budget is at least 5 % {word}, so the model stays as it"
            f" was: {why}"
        )
    if cut:
        warnings.append(
            f"{work.field}: the time limit of {step.time_limit} ended the search at {cut}, after"
            f" {len(others)} candidates; a longer timeLimit may find a better one"
        )
    if step.objective == "Latency" and work.hardware != "any":
        warnings.append(
            f"{work.field}.objective: latency was measured on the Job's CPU, which is no proof for the GPU"
            " that will serve the model; Size says more"
        )
    return warnings


STEP = StepDefinition(
    auto,
    optional_distributions=lambda step: (*INT4, *(TRAINING if step.training else ())),
    uses_labels=lambda _step, data, _present: data != "calibration",
    selects_on=("data",),
)
