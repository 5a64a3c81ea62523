"""The optimization steps: one file for each family, one entry here. A step's function is imported
when it is asked for: most need no JAX.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Error as ProtobufError  # type: ignore[import-untyped]

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.contract.gate import Gate
from modelrollout.contract.steps import (
    AutoStep,
    ContainerStep,
    DistillStep,
    GraphStep,
    HalfPrecisionStep,
    Int4Step,
    Int8Step,
    PruneStep,
    Step,
)
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import LOGGER
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import check, constants_inside
from modelrollout.optimizer.model.limits import memory_limit
from modelrollout.optimizer.model.runtime import ORT_ERRORS, Advance, open_session, tell_memory
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.memory import expect_memory
from modelrollout.triton.layout import MODEL_FILE

_TRAINING = ("jax", "jaxlib", "optax")
_INT4 = ("onnx_ir",)


def field_of(index: int, step: Step) -> str:
    """What messages call a step."""
    return f"spec.optimization.steps[{index}].{step.kind}"


# What the field's libraries raise for graphs that they do not foresee, besides their own errors.
_UNFORESEEN: tuple[type[Exception], ...] = (
    *ORT_ERRORS, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ProtobufError, ValueError,
    RuntimeError, AssertionError,
    LookupError, TypeError, AttributeError, ArithmeticError,
)  # fmt: skip


def run(step: Step, work: StepContext) -> dict[str, Any]:
    """Do one step, and see that what it made can be run; returns what it did.

    Raises JobError: MemoryLimitTooLow, StepFailed, and those of the step.
    """
    expect_memory(step, work.field, files.size_of(work.source), memory_limit())
    try:
        done = _run(step, work)
    except _UNFORESEEN as error:
        tell_memory(error)
        LOGGER.exception("the step failed", extra={"fields": {"step": work.field}})
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise _failed(
            work.field, f"its library does not handle this model ({type(error).__name__}: {line})"
        ) from None
    if work.target.exists():
        files.fold(work.target, work.one_file)
        try:
            check(work.target, "it")
            open_session(work.target, "it")
        except JobError as error:
            raise _failed(work.field, f"what it made cannot be run ({error.message[:300]})") from None
    return done


def _failed(where: str, why: str) -> JobError:
    return bad_input(
        "StepFailed", f"{where}: {why}; leave the step out, put it elsewhere, or use another one"
    )


def _run(step: Step, work: StepContext) -> dict[str, Any]:
    match step:
        case Int8Step():
            from modelrollout.optimizer.steps.int8 import int8

            return int8(step, work)
        case PruneStep():
            from modelrollout.optimizer.steps.prune import prune

            return prune(step, work)
        case DistillStep():
            from modelrollout.optimizer.steps.distill import distill

            return distill(step, work)
        case HalfPrecisionStep():
            from modelrollout.optimizer.steps.half_precision import half_precision

            return half_precision(step, work)
        case Int4Step():
            from modelrollout.optimizer.steps.int4 import int4

            return int4(step, work)
        case GraphStep():
            from modelrollout.optimizer.steps.graph import graph

            return graph(step, work)
        case ContainerStep():
            from modelrollout.optimizer.steps.container import container

            return container(step, work)
        case AutoStep():
            from modelrollout.optimizer.steps.auto.auto import auto

            return auto(step, work)


def tools(step: Step, where: str) -> dict[str, str]:
    """Versions of the distributions that shape this step's result, besides those of every Job.
    Raises JobError (ToolMissing).
    """
    match step:
        case PruneStep(training=None):
            names: tuple[str, ...] = ()
        case PruneStep() | DistillStep():
            names = _TRAINING
        case Int4Step():
            names = _INT4
        case AutoStep():  # searches with what the image has
            return {
                name: version(name)
                for name in (*_INT4, *(_TRAINING if step.training else ()))
                if installed(name)
            }
        case _:
            names = ()
    try:
        return {name: version(name) for name in names}
    except PackageNotFoundError as error:
        raise bad_input(
            "ToolMissing",
            f"{where}: this image has no {error.name}; the step needs the image that trains (trainer.image in"
            " the chart's values)",
        ) from None


def installed(distribution: str) -> bool:
    """Whether this image has it."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def can_train() -> bool:
    """Whether this image has what trains."""
    return all(map(installed, _TRAINING))


def can_int4() -> bool:
    """Whether this image has what the 4 bit quantizer stands on."""
    return all(map(installed, _INT4))


def labels_in(step: Step, name: str, arrays: Container[str], labels: str) -> bool:
    """Whether the labels of the step's data set ``name`` are used."""
    match step:
        case AutoStep() if name == "calibration":
            return False
        case Int8Step():
            # without labels the answers are compared with the float model's
            return step.leave_out == "BySensitivity" and labels in arrays
        case DistillStep():
            return step.hard_labels > 0
        case ContainerStep():
            return labels in arrays
        case _:
            return True


@dataclass(frozen=True)
class Applied:
    """What the steps made. ``done``: one entry a step, for the report."""

    path: Path
    done: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def apply(
    steps: Sequence[Step],
    source: Path,
    folder: Path,
    data: Mapping[str, Data],
    models: Mapping[str, Path],
    *,
    gate: Gate | None,
    symmetric: bool,
    hardware: str,
    advance: Advance,
    one_file: int = ONE_FILE_BYTES,
    earlier: Applied | None = None,
) -> Applied:
    """All steps in order; ``data`` and ``models`` by their whole field
    (``spec.optimization.steps[0].int8.calibration``). Raises JobError.

    ``earlier``: what was made of the first steps in another container; it goes on after them.
    """
    applied = earlier or Applied(source, [])
    path = applied.path
    original = _ready(source, folder / "original", one_file) if steps else source
    for index, step in enumerate(steps[len(applied.done) :], len(applied.done)):
        where, target = field_of(index, step), _placed(folder / f"step-{index}")
        inner = tuple(step.sources())
        given = original if path == source else _ready(path, folder / f"given-{index}", one_file)
        work = StepContext(
            field=where,
            source=given,
            target=target,
            info=check(given),
            original=original,
            data={name: data[f"{where}.{name}"] for name in inner if f"{where}.{name}" in data},
            models={name: models[f"{where}.{name}"] for name in inner if f"{where}.{name}" in models},
            gate=gate,
            symmetric=symmetric,
            hardware=hardware,
            one_file=one_file,
            advance=advance,
            warn=applied.warnings.append,
        )
        before = files.size_of(path)
        done = run(step, work)
        if target.exists():
            for left in {path, given} - {source, original}:  # large models fill the disk
                if left.is_relative_to(folder):
                    files.remove(left)
            path = target
        applied.done.append(
            {"kind": step.kind} | done | {"sizeBefore": before, "sizeAfter": files.size_of(path)}
        )
    return replace(applied, path=path)


def _ready(model: Path, folder: Path, one_file: int) -> Path:
    """The model as steps want it, in ``folder`` where it has to be written anew: no input repeats a
    constant, and what is too large for one file is split, also if it came in one: what the
    libraries add to a message that is nearly 2 GiB would be too much for it.
    """
    found = constants_inside(model, _placed(folder))
    if files.is_split(found) or files.size_of(found) <= one_file:
        return found
    files.save(onnx.load(found), _placed(folder), one_file)
    return _placed(folder)


def _placed(folder: Path) -> Path:
    """A place for a model of which nothing else is beside it."""
    folder.mkdir(exist_ok=True)
    return folder / MODEL_FILE
