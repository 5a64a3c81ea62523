"""Distillation: the source model, which knows more than the labels say, teaches a smaller one
(Hinton et al. 2015).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.steps import DistillStep
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data, batch_rows, batches, expect_rows
from modelrollout.optimizer.model.inspect import ModelInfo, check
from modelrollout.optimizer.model.runtime import BATCH_ROWS, open_session, score_output
from modelrollout.optimizer.steps.channels import Channels
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.distributions import TRAINING
from modelrollout.optimizer.steps.prune import narrowed
from modelrollout.reasons import Reason

_LEAST = 1e-30  # of a probability, before its logarithm


def distill(step: DistillStep, work: StepContext) -> dict[str, Any]:
    """Train the student; the teacher is the source model.

    Raises JobError: StudentMismatch, NothingToPrune, SparsityTooHigh, OutputNotClasses, and those
    of training.
    """
    from modelrollout.optimizer.training.fit import Recipe, Soft, fit
    from modelrollout.optimizer.training.network import Network

    data, where = work.data["training.data"], f"{work.field}.training"
    if work.source != work.original:
        work.warn(
            f"{work.field}: it begins from the source model, so what the steps before it made is thrown away;"
            " leave them out, or put them after it"
        )
    teacher = check(work.original)
    done: dict[str, Any]
    if "student" in work.models:
        student, done = work.models["student"], {"student": "given"}
        _expect_same_face(check(student), teacher, work.field)
    else:
        assert step.size is not None  # the API server's rule
        if teacher.quantized:
            raise bad_input(
                Reason.ALREADY_QUANTIZED,
                f"{work.field}.size: a quantized model cannot be narrowed; give a student, or the model in"
                " float",
            )
        model, done = narrowed(Channels(files.inferred(work.original)), 1 - step.size, work.field, {})
        student = work.target
        files.save(model, student, work.one_file)
    network = Network(student, data.inputs, work.field, work.output)
    soft = Soft(teacher_scores(work.original, teacher, data, work), step.temperature, step.hard_labels)
    training = step.training
    recipe = Recipe(training.epochs, training.learning_rate, training.batch_size)
    weights, losses = fit(network, data, recipe, where, work.advance, soft)
    network.save(weights, work.target, work.one_file)
    return done | {"temperature": step.temperature, "hardLabels": step.hard_labels, "losses": losses}


def teacher_scores(path: Path, info: ModelInfo, data: Data, work: StepContext) -> NDArray[np.float32]:
    """[n, classes] logits of the teacher; where it gives probabilities, their logarithms, which are
    the logits but for a constant.
    """
    session = open_session(path, work.field)
    names = [output.name for output in session.get_outputs()]
    expect_rows(data.inputs, info.inputs, f"{work.field}.training.data")
    rows, fill = batch_rows(info.inputs, BATCH_ROWS, work.field)
    parts = []
    for count, part in batches(data.inputs, rows, fill):
        outputs = session.run(None, part)
        parts.append(
            outputs[score_output(outputs, names, count, work.field, work.output)][:count].reshape(count, -1)
        )
        work.advance(sum(map(len, parts)), data.n)
    scores = np.concatenate(parts).astype(np.float32)
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        scores = np.log(np.maximum(scores, np.float32(_LEAST)))
    return scores


def _expect_same_face(student: ModelInfo, teacher: ModelInfo, field: str) -> None:
    """Raise StudentMismatch unless clients can send and read the same."""

    def face(info: ModelInfo) -> list[tuple[str, str, tuple[int, ...]]]:
        return [(t.name, t.datatype, t.shape[1:]) for t in (*info.inputs, *info.outputs)]

    if face(student) != face(teacher):
        raise bad_input(
            Reason.STUDENT_MISMATCH,
            f"{field}.student: it takes and gives {[str(t) for t in (*student.inputs, *student.outputs)]},"
            f" the source model {[str(t) for t in (*teacher.inputs, *teacher.outputs)]}; give the student the"
            " same inputs and outputs",
        )


STEP = StepDefinition(
    distill,
    distributions=lambda _: TRAINING,
    memory_factor=lambda step: 0.0 if step.size is None else 2.5,
    uses_labels=lambda step, _data, _present: step.hard_labels > 0,
)
