"""Runs steps: one by itself, or all of a recipe in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Error as ProtobufError  # type: ignore[import-untyped]

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.contract.gate import Gate
from modelrollout.contract.steps import StepBase
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import LOGGER
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import check, constants_inside
from modelrollout.optimizer.model.limits import memory_limit
from modelrollout.optimizer.model.runtime import ORT_ERRORS, Advance, open_session, tell_memory
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.memory import expect_memory
from modelrollout.optimizer.steps.proof import Probe, expect_answers, probe_of
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.reasons import Reason
from modelrollout.triton.layout import MODEL_FILE

# What the field's libraries raise for graphs that they do not foresee, besides their own errors.
_UNFORESEEN: tuple[type[Exception], ...] = (
    *ORT_ERRORS, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ProtobufError, ValueError,
    RuntimeError, AssertionError,
    LookupError, TypeError, AttributeError, ArithmeticError,
)  # fmt: skip


def field_of(index: int, step: StepBase) -> str:
    """The field of spec that messages name for a step."""
    return f"spec.optimization.steps[{index}].{step.kind}"


def run_step(step: StepBase, work: StepContext) -> dict[str, Any]:
    """Run one step, and check that the model it wrote can be run. Returns what the step did.

    Raises JobError: MemoryLimitTooLow, StepFailed, and those of the step.
    """
    expect_memory(step, work.field, files.size_of(work.source), memory_limit())
    try:
        done = definition_of(step).run(step, work)
    except _UNFORESEEN as error:
        tell_memory(error)
        LOGGER.exception("the step failed", extra={"fields": {"step": work.field}})
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise _step_failed(
            work.field, f"its library does not handle this model ({type(error).__name__}: {line})"
        ) from None
    if work.target.exists():
        files.fold(work.target, work.one_file)
        try:
            check(work.target, "it")
            open_session(work.target, "it")
            trained = getattr(step, "training", None) is not None
            done = done | expect_answers(step.kind, work, trained=trained)
        except JobError as error:
            if error.reason == Reason.ANSWERS_DIFFER:
                raise
            raise _step_failed(work.field, f"what it made cannot be run ({error.message[:300]})") from None
    return done


def _step_failed(where: str, why: str) -> JobError:
    return bad_input(
        Reason.STEP_FAILED, f"{where}: {why}; leave the step out, put it elsewhere, or use another one"
    )


@dataclass(frozen=True)
class Applied:
    """The model after steps. ``done``: one entry a step, for the report."""

    path: Path
    done: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def run_steps(
    steps: Sequence[StepBase],
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
    batched: bool = False,
) -> Applied:
    """Run all steps in order. ``data`` and ``models`` go by their whole field
    (``spec.optimization.steps[0].int8.calibration``). Raises JobError.

    ``earlier``: what another container made of the first steps; those are not run again.
    """
    applied = earlier or Applied(source, [])
    path = applied.path
    original = _prepare_source(source, folder / "original", one_file) if steps else source
    probe = probe_of(original, check(original).inputs, data, "spec.model.uri") if steps else Probe((), True)
    for index, step in enumerate(steps[len(applied.done) :], len(applied.done)):
        where, target = field_of(index, step), _place_in(folder / f"step-{index}")
        inner = tuple(step.sources())
        prepared = (
            original if path == source else _prepare_source(path, folder / f"prepared-{index}", one_file)
        )
        work = StepContext(
            field=where,
            source=prepared,
            target=target,
            info=check(prepared),
            original=original,
            data={name: data[f"{where}.{name}"] for name in inner if f"{where}.{name}" in data},
            models={name: models[f"{where}.{name}"] for name in inner if f"{where}.{name}" in models},
            gate=gate,
            symmetric=symmetric,
            hardware=hardware,
            one_file=one_file,
            batched=batched,
            probe=probe.requests,
            made_up=probe.made_up,
            advance=advance,
            warn=applied.warnings.append,
            run_step=run_step,
        )
        before = files.size_of(path)
        done = run_step(step, work)
        if target.exists():
            for left in {path, prepared} - {source, original}:  # large models fill the disk
                if left.is_relative_to(folder):
                    files.remove(left)
            path = target
        applied.done.append(
            {"kind": step.kind} | done | {"sizeBefore": before, "sizeAfter": files.size_of(path)}
        )
    return replace(applied, path=path)


def _prepare_source(model: Path, folder: Path, one_file: int) -> Path:
    """The model in the form that steps read, rewritten into ``folder`` where it has another one.

    No graph input repeats a constant, and a model beyond ``one_file`` bytes is split into graph and
    weights: a library that adds to a message of nearly 2 GiB would exceed protobuf's limit.
    """
    prepared = constants_inside(model, _place_in(folder))
    if files.is_split(prepared) or files.size_of(prepared) <= one_file:
        return prepared
    files.save(onnx.load(prepared), _place_in(folder), one_file)
    return _place_in(folder)


def _place_in(folder: Path) -> Path:
    """The path of a model in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return folder / MODEL_FILE
