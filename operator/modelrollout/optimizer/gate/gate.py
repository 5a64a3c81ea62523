"""The gate of prepare: the original and the optimized model on held-out data, and a verdict on
every metric, in all and in each slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Average, Gate, GateBudget, GateMetric
from modelrollout.contract.results import MetricResult, Paired, TaskResult
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.gate.metrics import ERRORS, Answers, average_of, count_pairs, estimate
from modelrollout.optimizer.gate.numbers import NUMBERS, Numbers
from modelrollout.optimizer.gate.numbers import joined as joined_numbers
from modelrollout.optimizer.model.data import Arrays, Data
from modelrollout.optimizer.model.half import open_judged
from modelrollout.optimizer.model.inspect import ModelInfo
from modelrollout.optimizer.model.runtime import (
    Advance,
    check_label_range,
    expect_output,
    outputs_of,
    scores_of,
    scores_or_classes,
    signed,
    values_of,
)
from modelrollout.reasons import Reason
from modelrollout.statistics.paired import Z_95, Estimate, GateDecision, accuracies, allowed_loss, judge, z_of

FIELD = "spec.optimization.gate.data"
MAX_SLICE_VALUES = 64  # reported of a slice; a budget wants all of them
_SLICE_CHARACTERS = 48  # of a slice's name and value in the summary, which is small

_ORDER = ("Successful", "Inconclusive", "Failed")


def field_metric(index: int) -> str:
    """The field of spec that messages name for a metric."""
    return f"spec.optimization.gate.metrics[{index}]"


def required_labels(gate: Gate) -> str | None:
    """``numbers``, ``classes``, or None: agreement, and what compares numbers, need no labels."""
    names = {metric.name for metric in gate.metrics}
    return "numbers" if names & ERRORS else "classes" if names - {"agreement"} - NUMBERS else None


@dataclass(frozen=True)
class Measured:
    """The verdicts: ``metrics`` in the order of the spec, the decision on the worst one, and the
    data for the report.
    """

    metrics: tuple[MetricResult, ...]
    decision: GateDecision
    field: str  # of the metric that decided
    paired: Paired | None  # accuracy, where there are labels of classes
    report: dict[str, Any]


def run_gate(
    gate: Gate, held_out: Data, original: Path, optimized: Path, info: ModelInfo, progress: Progress
) -> Measured:
    """Both models on the held-out data, and the verdict. An untouched model has lost nothing, by
    identity: only limits of the value count for it.

    Raises JobError: OutputNotClasses, OutputNotNumbers, OutputNotScores, OutputNotFinite,
    OutputUnknown, OutputAmbiguous, OutputNotBoxes, LabelsOutOfRange, InferenceFailed,
    AverageImpossible, TopCountTooLarge, AucUndefined, SliceInvalid.
    """
    same = optimized == original
    with progress.stage("gate"):
        before = compare_answers(
            gate, held_out, open_judged(original, "spec.model.uri"), info, FIELD, progress.update
        )
        held_out = fitting_labels(held_out, before, FIELD)
        after = (
            before
            if same
            else compare_answers(
                gate, held_out, open_judged(optimized, "the optimized model"), info, FIELD, progress.update
            )
        )
    return judge_gate(gate, held_out, before, after, FIELD, same=same)


class Answered(NamedTuple):
    """A model's answers, and the number of classes where scores tell it."""

    answers: Answers
    classes: int | None


# by what the metrics judge: (kind of metric, output that they name)
ByOutput = dict[tuple[str, str | None], Answered]


def _key(metric: GateMetric) -> tuple[str, str | None]:
    if metric.name in ERRORS:
        return "values", metric.output
    return ("numbers" if metric.name in NUMBERS else "classes"), metric.output


def fitting_labels(held_out: Data, before: ByOutput, field: str) -> Data:
    """The data, whose labels -1 and 1 are classes 0 and 1 where scores are judged; raises JobError
    (LabelsOutOfRange).
    """
    labels = held_out.labels
    if labels is None:
        return held_out
    known = [answered.classes for (kind, _), answered in before.items() if kind == "classes"]
    if signed(labels) and known and all(count == 2 for count in known):
        labels = (labels + 1) // 2
    for count in known or [None]:
        check_label_range(labels, count, field)
    return replace(held_out, labels=labels)


def compare_answers(
    gate: Gate, held_out: Data, session: Any, info: ModelInfo, field: str, advance: Advance
) -> ByOutput:
    """What each metric judges; only what the metrics need is kept. ``field`` names the data in
    messages.
    """
    wanted: dict[tuple[str, str | None], set[str]] = {}
    for metric in gate.metrics:
        wanted.setdefault(_key(metric), set()).add(metric.name)
    parts: dict[tuple[str, str | None], list[Answers]] = {key: [] for key in wanted}
    known: dict[tuple[str, str | None], int | None] = dict.fromkeys(wanted)
    for start, count, outputs, named in outputs_of(session, info.inputs, held_out.inputs, field, advance):
        for key, names in wanted.items():
            kind, output = key
            if kind == "values":
                parts[key].append(Answers(values=values_of(outputs, named, count, field, output)))
                continue
            if kind == "numbers":
                numbers = _numbers(outputs, named, count, names, output, field)
                parts[key].append(Answers(numbers=numbers))
                continue
            classes = ranks = scores = None
            if names - {"auc", "topK"}:
                classes, known[key] = scores_or_classes(outputs, named, count, field, output)
            if names & {"auc", "topK"}:
                class_scores = scores_of(
                    outputs, named, count, field, least=2 if "topK" in names else 1, output=output
                )
                known[key] = max(2, class_scores.shape[1])
                scores = class_scores if "auc" in names else None
                if "topK" in names:
                    assert held_out.labels is not None
                    ranks = _ranks(class_scores, held_out.labels[start : start + count])
            parts[key].append(Answers(classes, ranks, scores))
    return {
        key: Answered(
            Answers(
                classes=_joined([part.classes for part in some]),
                ranks=_joined([part.ranks for part in some]),
                scores=_joined([part.scores for part in some]),
                values=_joined([part.values for part in some]),
                numbers=joined_numbers([part.numbers for part in some if part.numbers is not None]),
            ),
            known[key],
        )
        for key, some in parts.items()
    }


def numbers_of(
    session: Any, metric: GateMetric, info: ModelInfo, inputs: Arrays, field: str, advance: Advance
) -> Numbers:
    """What a metric of numbers compares of a model's answers; raises JobError as ``run_gate``."""
    parts = [
        _numbers(outputs, named, count, {metric.name}, metric.output, field)
        for _, count, outputs, named in outputs_of(session, info.inputs, inputs, field, advance)
    ]
    return joined_numbers(parts) or {}


def _numbers(
    outputs: Sequence[NDArray[Any]],
    named: Sequence[str],
    count: int,
    metrics: set[str],
    output: str | None,
    field: str,
) -> Numbers:
    """The outputs of floats (and bytes) sample by sample, or the one that is named. Raises
    JobError: OutputUnknown, OutputNotNumbers, OutputNotBoxes.
    """
    places: Sequence[int] = range(len(outputs))
    if output is not None:
        places = [expect_output(named, output, field)]
    found = {}
    for at in places:
        array = outputs[at]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "f" + ("iu" if output else ""):
            continue
        if not array.ndim or len(array) < count:
            raise bad_input(
                Reason.OUTPUT_NOT_NUMBERS,
                f"{field}: output {named[at]!r} has shape {list(array.shape)} for {count} samples, so it does"
                " not say which is whose; give samples as whole requests (one dimension more in front), or"
                " name another output",
            )
        values = array[:count].astype(np.float64) if array.dtype.kind != "f" else array[:count]
        if "boxIou" in metrics and (values.ndim < 2 or values.shape[-1] != 4):
            raise bad_input(
                Reason.OUTPUT_NOT_BOXES,
                f"{field}: output {named[at]!r} has shape {list(array.shape)}, and boxIou needs boxes of four"
                " numbers [..., 4]; name the output of boxes",
            )
        found[named[at]] = tuple(values)
    if not found:
        raise bad_input(
            Reason.OUTPUT_NOT_NUMBERS,
            f"{field}: {', '.join(sorted(metrics))} compare numbers, and the model gives none"
            f" ({', '.join(named)}); use agreement",
        )
    return found


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)


def _ranks(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many other classes score as high as the label's or higher: [n]. NaN counts as higher;
    labels out of range are reported later.
    """
    own = scores[np.arange(len(labels)), np.clip(labels, 0, scores.shape[1] - 1)][:, None]
    ranks: NDArray[np.int64] = (~(scores < own)).sum(axis=1) - 1
    return ranks


def judge_gate(
    gate: Gate,
    held_out: Data,
    before: ByOutput,
    after: ByOutput,
    data_field: str,
    *,
    same: bool,
) -> Measured:
    """The verdicts on both models' answers to the held-out data, which ``data_field`` names in
    messages.
    """
    results: list[MetricResult] = []
    decisions: list[tuple[GateDecision, str]] = []
    entries: list[dict[str, Any]] = []
    labels = held_out.targets if held_out.targets is not None else held_out.labels
    for index, metric in enumerate(gate.metrics):
        field = field_metric(index)
        classes = before[_key(metric)].classes
        if metric.name == "topK" and classes is not None and (metric.k or 1) >= classes:
            raise bad_input(
                Reason.TOP_COUNT_TOO_LARGE,
                f"{field}.k: {metric.k}, but the model has {classes} classes: every answer would be right;"
                " lower k",
            )
        average = (
            average_of(metric, held_out.labels, classes, field)
            if metric.name in ("precision", "recall", "f1") and held_out.labels is not None
            else None
        )
        both = before[_key(metric)].answers, after[_key(metric)].answers
        judged = list(_judged_parts(metric, average, field, data_field, labels, held_out, *both, same))
        # the whole comes first, so it wins among equals
        worst = max(judged, key=lambda part: _ORDER.index(part.decision.verdict))
        results.append(worst.result(metric.name))
        decisions.append((worst.decision, f"{field}.slices" if worst.slice else field))
        entries.append(
            {
                "name": metric.name,
                "average": average,
                "k": metric.k,
                **({"output": metric.output} if metric.output else {}),
                "judged": [part.report() for part in judged],
            }
        )
    decision, field = max(decisions, key=lambda d: _ORDER.index(d[0].verdict))
    paired, slices = None, {}
    first = next((key for key, a in before.items() if a.answers.classes is not None), None)
    if held_out.labels is not None and first is not None:
        one, two = before[first].answers.classes, after[first].answers.classes
        assert one is not None and two is not None
        paired = count_pairs(held_out.labels, one, two)
        slices = by_slice(held_out, held_out.labels, one, two)
    before_after = accuracies(paired) if paired else (None, None)
    report = {
        "accuracyBefore": before_after[0],
        "accuracyAfter": before_after[1],
        "paired": paired.model_dump() if paired else None,
        "metrics": entries,
        "summary": [result.model_dump() for result in results],
        "verdict": decision.verdict,
        "reason": decision.reason,
        "slices": slices,
        "samples": held_out.n,
        "duplicates": held_out.duplicates(),
    }
    return Measured(tuple(results), decision, field, paired, report)


@dataclass(frozen=True)
class _Part:
    """The whole of the data (``slice`` None) or one value of a slice."""

    slice: str | None
    estimate: Estimate
    decision: GateDecision
    allowed: float | None

    def result(self, name: str) -> MetricResult:
        e = self.estimate
        low, high = self.decision.interval
        return MetricResult(
            name=name,
            n=e.n,
            before=_short(e.before),
            after=_short(e.after),
            interval=(_short(low), _short(high)),
            allowed=None if self.allowed is None else _short(self.allowed),
            verdict=self.decision.verdict,
            reason=self.decision.reason,
            slice=self.slice[:_SLICE_CHARACTERS] if self.slice else None,
        )

    def report(self) -> dict[str, Any]:
        return {
            **self.result(self.estimate.name).model_dump(exclude={"name", "slice"}),
            "slice": self.slice,
            "message": self.decision.message,
        }


def _short(value: float) -> float:
    """Seven digits: the summary is small."""
    return float(f"{value:.7g}")


def _judged_parts(
    metric: GateMetric,
    average: Average | None,
    field: str,
    data_field: str,
    labels: NDArray[Any] | None,
    held_out: Data,
    before: Answers,
    after: Answers,
    same: bool,
) -> Iterator[_Part]:
    def part(name: str | None, budget: GateBudget, mask: NDArray[np.bool_], z: float) -> _Part:
        e = estimate(
            metric,
            average,
            None if labels is None else labels[mask],
            before.rows(mask),
            after.rows(mask),
            data_field,
        )
        counted = GateBudget(min=budget.min, max=budget.max) if same else budget
        decision = judge(e, counted, z)
        if name:
            decision = replace(decision, message=f"slice {name}: {decision.message}")
        return _Part(name, e, decision, allowed_loss(counted, e.before))

    yield part(None, metric, np.ones(held_out.n, np.bool_), Z_95)
    if metric.slices is None:
        return
    values = [(name, value) for name, array in held_out.slices.items() for value in np.unique(array)]
    if not values or len(values) > MAX_SLICE_VALUES:
        raise bad_input(
            Reason.SLICE_INVALID,
            f"{field}.slices: the slices {sorted(held_out.slices)} of {data_field} have {len(values)} values"
            f" in all; a budget needs 1 to {MAX_SLICE_VALUES} of them: group rare ones together",
        )
    for name, value in values:
        yield part(f"{name}={value}", metric.slices, held_out.slices[name] == value, z_of(len(values)))


def by_slice(
    data: Data, labels: NDArray[np.int64], baseline: NDArray[np.int64], candidate: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Paired counts of each value of each slice; the largest MAX_SLICE_VALUES of a slice with very
    many.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, values in data.slices.items():
        kinds, counts = np.unique(values, return_counts=True)
        largest = kinds[np.argsort(-counts, kind="stable")[:MAX_SLICE_VALUES]]
        report[name] = {
            str(v): count_pairs(labels[m], baseline[m], candidate[m]).model_dump()
            for v in sorted(largest)
            for m in (values == v,)
        }
    return report


def raise_failure(measured: Measured, evidence: TaskResult) -> None:
    """Raise JobError with the evidence unless the verdict is a pass; the message names every
    metric that did not.
    """
    if measured.decision.verdict == "Successful":
        return
    code = ExitCode.GATE_FAILED if measured.decision.verdict == "Failed" else ExitCode.GATE_INCONCLUSIVE
    others = [f"{m.name}: {m.reason}" for m in measured.metrics if m.verdict != "Successful"]
    more = f" (all that did not pass: {', '.join(others)})" if len(others) > 1 else ""
    raise JobError(
        code, measured.decision.reason, f"{measured.field}: {measured.decision.message}{more}", evidence
    )
