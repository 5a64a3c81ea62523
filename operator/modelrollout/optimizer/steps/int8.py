"""int8, and which operators stay in float.

The choice is made on the calibration data alone: to choose by the gate's held-out data would bend
the gate's verdict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from modelrollout.contract.steps import Int8Step
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data, batch_rows, batches
from modelrollout.optimizer.model.runtime import BATCH_ROWS, open_session, predict
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.quantize import Options, Quantizer
from modelrollout.reasons import Reason

SENSITIVITY_SAMPLES = 128  # enough to rank nodes by the error that they bring


def int8(step: Int8Step, work: StepContext) -> dict[str, Any]:
    """Quantize; by sensitivity leave the worst nodes out, one by one, until the calibration data
    shows no larger loss than allowed.

    Raises JobError: AlreadyQuantized, OpsetTooOld, NothingToQuantize, QuantizationFailed.
    """
    calibration = work.data.get("calibration")
    options = Options(work.symmetric, step.calibration_method, step.per_channel)
    with Quantizer(
        work.source, work.info, calibration.inputs if calibration else None, options, work.field
    ) as quantizer:
        done = quantizer.write(work.target)
        if quantizer.captured:
            work.warn(
                f"{work.field}: left in float, because the body of a Loop, If or Scan takes their outputs:"
                f" {', '.join(quantizer.captured)}"
            )
        report: dict[str, Any] = {
            "method": step.method,
            "symmetric": work.symmetric and calibration is not None,
        }
        if calibration is not None:
            report |= {
                "calibrationMethod": step.calibration_method,
                "perChannel": step.per_channel,
                "captured": list(quantizer.captured),
            }
            if step.leave_out == "BySensitivity" and work.max_drop is None:
                work.warn(
                    f"{work.field}.leaveOut: the gate has no maxDrop, so there is no budget to keep: every"
                    " operator is quantized"
                )
            elif step.leave_out == "BySensitivity" and work.max_drop is not None:
                report |= _leave_out(quantizer, work, calibration, work.max_drop)
                done = report.pop("done", done)
    return report | done


def _leave_out(quantizer: Quantizer, work: StepContext, calibration: Data, allowed: float) -> dict[str, Any]:
    answers = _classes(work.source, work, calibration)

    def loss() -> float:
        """Of accuracy on the calibration data; without labels there, the share of answers that
        changed, which is never less.
        """
        now = _classes(work.target, work, calibration)
        if calibration.labels is None:
            return float(np.mean(now != answers))
        return float(np.mean(answers == calibration.labels) - np.mean(now == calibration.labels))

    before = now = loss()
    if now <= allowed:
        return {"calibrationLoss": before, "leftOut": []}
    errors = _sensitivity(quantizer, work, calibration)
    ranked = sorted(errors, key=lambda name: -errors[name])
    left: list[str] = []
    done: dict[str, Any] = {}
    for name in ranked[:-1]:  # all but one: with none left there is nothing to quantize
        left.append(name)
        done = quantizer.write(work.target, left_out=left)
        now = loss()
        if now <= allowed:
            break
    else:
        work.warn(
            f"{work.field}: with {len(left)} operators in float the calibration data still shows a loss of"
            f" {now:.4f}; the gate decides"
        )
    return {
        "done": done,
        "calibrationLoss": now,
        "lossWithAll": before,
        "leftOut": left,
        "sensitivity": {n: float(f"{errors[n]:.4g}") for n in ranked},
    }


def _classes(path: Path, work: StepContext, calibration: Data) -> np.ndarray[Any, np.dtype[np.int64]]:
    return predict(
        open_session(path, work.field),
        work.info.inputs,
        calibration.inputs,
        f"{work.field}.calibration",
        work.advance,
    )[0]


def _sensitivity(quantizer: Quantizer, work: StepContext, calibration: Data) -> dict[str, float]:
    """Each node's error: the outputs' relative squared change when it alone is quantized."""
    rows, fill = batch_rows(work.info.inputs, BATCH_ROWS, work.field)
    sample = {name: array[:SENSITIVITY_SAMPLES] for name, array in calibration.inputs.items()}

    def outputs(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        session = open_session(path, work.field)
        parts = []
        for count, part in batches(sample, rows, fill):
            parts += [
                a[:count].astype(np.float64).ravel()
                for a in session.run(None, part)
                if a.dtype.kind == "f" and a.ndim
            ]
        return np.concatenate(parts)

    float_outputs = outputs(quantizer.prepared)
    power = float(np.mean(float_outputs**2)) or 1.0
    errors: dict[str, float] = {}
    alone = work.target.parent / "alone" / work.target.name
    alone.parent.mkdir(exist_ok=True)
    names = quantizer.candidates()
    for index, name in enumerate(names):
        quantizer.write(alone, only=[name])
        errors[name] = float(np.mean((outputs(alone) - float_outputs) ** 2)) / power
        work.advance(index + 1, len(names))
    files.remove(alone)
    return errors


def _check_options(step: Int8Step, field: str) -> None:
    if step.method == "Static" and step.calibration is None:
        raise bad_input(
            Reason.CALIBRATION_MISSING,
            f"{field}: method Static needs calibration: {{uri: ...}}; or use method Dynamic",
        )


def _memory_factor(step: Int8Step) -> float:
    return 2.0 if step.method == "Static" else 2.5


def _uses_labels(step: Int8Step, _: str, present: bool) -> bool:
    # without labels the answers are compared with the float model's
    return step.leave_out == "BySensitivity" and present


STEP = StepDefinition(
    int8, check_options=_check_options, memory_factor=_memory_factor, uses_labels=_uses_labels
)
