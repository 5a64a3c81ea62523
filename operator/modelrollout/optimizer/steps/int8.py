"""int8, and which operators stay in float.

The choice is made on the calibration data alone: to choose by the gate's held-out data would bend
the gate's verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.gate import GateMetric
from modelrollout.contract.steps import Int8Step
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.gate.gate import numbers_of
from modelrollout.optimizer.gate.numbers import NUMBERS, Numbers, numeric_estimate
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.agreement import relative_error
from modelrollout.optimizer.model.data import Data, requests
from modelrollout.optimizer.model.runtime import BATCH_ROWS, open_session, predict
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.quantize import Options, Quantizer
from modelrollout.reasons import Reason

_NAMED = 5  # operators in a warning
_MOST = 1e9  # of an error in the report
SENSITIVITY_SAMPLES = 128  # enough to rank nodes by the error that they bring


def int8(step: Int8Step, work: StepContext) -> dict[str, Any]:
    """Quantize; by sensitivity leave the worst nodes out, one by one, until the calibration data
    shows no larger loss than allowed.

    Raises JobError: AlreadyQuantized, OpsetTooOld, NothingToQuantize, QuantizationFailed.
    """
    calibration = work.data.get("calibration")
    options = Options(work.symmetric, step.calibration_method, step.per_channel, work.batched)
    with Quantizer(
        work.source, work.info, calibration.inputs if calibration else None, options, work.field
    ) as quantizer:
        done = quantizer.write(work.target)
        if left := done.get("leftFloat"):
            work.warn(
                f"{work.field}: left in float: "
                + "; ".join(f"{name} {why}" for name, why in list(left.items())[:_NAMED])
            )
        report: dict[str, Any] = {
            "method": step.method,
            "symmetric": work.symmetric and calibration is not None,
        }
        if calibration is not None:
            report |= {
                "calibrationMethod": step.calibration_method,
                "perChannel": step.per_channel,
            }
            if step.leave_out == "BySensitivity" and not work.budgets:
                work.warn(
                    f"{work.field}.leaveOut: the gate has no maxDrop, so there is no budget to keep: every"
                    " operator is quantized"
                )
            elif step.leave_out == "BySensitivity":
                report |= _leave_out(quantizer, work, calibration)
                done = report.pop("done", done)
    return report | done


class _Loss(NamedTuple):
    """On the calibration data, of the budget that is farthest from being kept."""

    loss: float
    allowed: float

    @property
    def is_within(self) -> bool:
        return self.loss <= self.allowed


def _losses(work: StepContext, calibration: Data) -> Callable[[], _Loss]:
    """Measures the result by the gate's budgets: those of numbers by their metric, all others by
    classes.
    """
    numbers = [metric for metric in work.budgets if metric.name in NUMBERS]
    others = [metric for metric in work.budgets if metric.name not in NUMBERS]
    named = {metric.output for metric in others}
    output = named.pop() if len(named) == 1 else None
    before = _numbers(work.source, numbers, work, calibration)
    classes = _classes(work.source, work, calibration, output) if others else None

    def measured() -> _Loss:
        after = _numbers(work.target, numbers, work, calibration)
        losses = [
            _Loss(numeric_estimate(metric, a, b).loss, metric.max_drop or 0.0)
            for metric, a, b in zip(numbers, before, after, strict=True)
        ]
        if classes is not None:
            now = _classes(work.target, work, calibration, output)
            lost = _lost(classes, now, calibration.labels)
            losses.append(_Loss(lost, min(metric.max_drop or 0.0 for metric in others)))
        return max(losses, key=lambda found: found.loss - found.allowed)

    return measured


def _lost(before: NDArray[np.int64], now: NDArray[np.int64], labels: NDArray[np.generic] | None) -> float:
    """Of accuracy; without labels the share of answers that changed, which is never less."""
    if labels is None:
        return float(np.mean(now != before))
    return float(np.mean(before == labels) - np.mean(now == labels))


def _leave_out(quantizer: Quantizer, work: StepContext, calibration: Data) -> dict[str, Any]:
    measured = _losses(work, calibration)
    before = now = measured()
    if now.is_within:
        return {"calibrationLoss": before.loss, "leftOut": []}
    errors = _sensitivity(quantizer, work, calibration)
    ranked = sorted(errors, key=lambda name: -errors[name])
    left: list[str] = []
    done: dict[str, Any] = {}
    for name in ranked[:-1]:  # all but one: with none left there is nothing to quantize
        left.append(name)
        done = quantizer.write(work.target, left_out=left)
        now = measured()
        if now.is_within:
            break
    else:
        work.warn(
            f"{work.field}: with {len(left)} operators in float the calibration data still shows a loss of"
            f" {now.loss:.4f}; the gate decides"
        )
    return {
        "done": done,
        "calibrationLoss": now.loss,
        "lossWithAll": before.loss,
        "leftOut": left,
        "sensitivity": {n: float(f"{min(errors[n], _MOST):.4g}") for n in ranked},
    }


def _numbers(
    path: Path, metrics: Sequence[GateMetric], work: StepContext, calibration: Data
) -> list[Numbers]:
    """What each of the metrics of numbers compares."""
    field = f"{work.field}.calibration"
    return [
        numbers_of(open_session(path, work.field), metric, work.info, calibration.inputs, field, work.advance)
        for metric in metrics
    ]


def _classes(path: Path, work: StepContext, calibration: Data, output: str | None) -> NDArray[np.int64]:
    return predict(
        open_session(path, work.field),
        work.info.inputs,
        calibration.inputs,
        f"{work.field}.calibration",
        work.advance,
        output,
    )[0]


def _sensitivity(quantizer: Quantizer, work: StepContext, calibration: Data) -> dict[str, float]:
    """Each node's error: the outputs' relative change when it alone is quantized."""
    sample = {name: array[:SENSITIVITY_SAMPLES] for name, array in calibration.inputs.items()}

    def outputs(path: Path) -> NDArray[np.float64]:
        session = open_session(path, work.field)
        parts = []
        for request in requests(sample, work.info.inputs, BATCH_ROWS, work.field):
            parts += [
                a[: request.samples].astype(np.float64).ravel()
                for a in request.rows(session.run(None, request.arrays))
                if a.dtype.kind in "fiub" and a.ndim
            ]
        return np.concatenate(parts)

    float_outputs = outputs(quantizer.prepared)
    errors: dict[str, float] = {}
    alone = work.target.parent / "alone" / work.target.name
    alone.parent.mkdir(exist_ok=True)
    names = quantizer.candidates()
    for index, name in enumerate(names):
        quantizer.write(alone, only=[name])
        errors[name] = relative_error(float_outputs, outputs(alone))
        work.advance(index + 1, len(names))
    files.remove(alone)
    return errors


def _check_options(step: Int8Step, field: str) -> None:
    if step.method == "Static" and step.calibration is None:
        raise bad_input(
            Reason.CALIBRATION_MISSING,
            f"{field}: method Static needs calibration: {{uri: ...}}; or use method Dynamic",
        )


def _uses_labels(step: Int8Step, _: str, present: bool) -> bool:
    # without labels the answers are compared with the float model's
    return step.leave_out == "BySensitivity" and present


STEP = StepDefinition(
    int8, check_options=_check_options, memory_factor=lambda _: 2.5, uses_labels=_uses_labels
)
