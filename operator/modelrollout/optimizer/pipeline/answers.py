"""What is published has answered: one row, several rows, and the same rows joined.

The tensors of the configuration are those that the session gives, not those that the file says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model import files, graph
from modelrollout.optimizer.model.agreement import far_from, joined, relative_error
from modelrollout.optimizer.model.data import Arrays, Data, are_whole, requests
from modelrollout.optimizer.model.inspect import ModelInfo, parse
from modelrollout.optimizer.model.made_up import has_rows, made_up_requests
from modelrollout.optimizer.model.runtime import ORT_ERRORS, answer, ask, open_session
from modelrollout.reasons import Reason
from modelrollout.triton.layout import MODEL_FILE
from modelrollout.triton.tensors import NUMPY, TensorSpec

FIELD = "spec.serving.batching.maxBatchSize"
_ROWS = 3
# Another order of sums, which a badly conditioned model enlarges, and an activation of 8 bit that
# it moves to the next number. What mixes rows is far beyond it.
_SAME = 0.05
# One row beside others a thousand times as large: whoever takes one range for all loses it.
_LARGE = 1000.0


@dataclass(frozen=True)
class Asked:
    """What came of asking: the outputs as they are, and remarks for the owner."""

    outputs: tuple[TensorSpec, ...]
    warnings: tuple[str, ...] = ()


def expect_answers(model: Path, info: ModelInfo, data: Sequence[Data], batch: int, field: str) -> Asked:
    """Ask the model as its server will be asked. ``batch``: the largest batch that is to be formed;
    0: none. ``field`` names the model.

    Raises JobError: InferenceFailed for a model that cannot answer, BatchingImpossible for one
    whose answers to a row depend on what it is joined with.
    """
    session = open_session(model, field)
    several, alone = _questions(session, model, info, data)
    if several is None and alone is None:
        if not data and all(
            min(spec.shape, default=1) > 0 and spec.datatype[0] == "F" for spec in info.inputs
        ):
            made = {s.name: np.zeros(s.shape, NUMPY[s.datatype]) for s in info.inputs}
            ask(session, None, made, field)  # says why not
        return Asked(
            info.outputs,
            (
                f"{field}: no made-up inputs were found that the model answers; give golden data"
                " (spec.rollout.analysis.golden) or a gate, so that it is asked before it serves",
            ),
        )
    answers = [(request, answer(session, request)) for request in (several, alone) if request is not None]
    outputs = _real(info.outputs, session, [outputs for _, outputs in answers if outputs is not None])
    if batch and has_rows(session):  # else the configuration has been refused
        if several is None:
            assert alone is not None
            many = {name: np.repeat(array, _ROWS, axis=0) for name, array in alone.items()}
            raise _impossible(batch, f"{_ROWS} rows are refused", model, many)
        _expect_rows(session, model, several, batch)
    return Asked(outputs)


def _questions(
    session: Any, model: Path, info: ModelInfo, data: Sequence[Data]
) -> tuple[Arrays | None, Arrays | None]:
    """(several rows, one row) that the model answers."""
    for one in data:
        if are_whole(one.inputs, info.inputs):
            first = next(requests(one.inputs, info.inputs, 1, "")).arrays
            if answer(session, first) is not None:
                return None, first
            continue
        several, alone = (next(requests(one.inputs, info.inputs, rows, "")).arrays for rows in (_ROWS, 1))
        if len(next(iter(several.values()))) < _ROWS:
            several = {name: np.repeat(array, _ROWS, axis=0) for name, array in several.items()}
        found = [r if answer(session, r) is not None else None for r in (several, alone)]
        if any(r is not None for r in found):
            return found[0], found[1]
    made = [next(made_up_requests(session, model, rows=rows, seeds=(0,)), None) for rows in (_ROWS, 1)]
    return made[0], made[1]


def _real(
    said: Sequence[TensorSpec], session: Any, answers: Sequence[Sequence[Any]]
) -> tuple[TensorSpec, ...]:
    """Outputs with the rank and the fixed dimensions that they really have."""
    specs = []
    for at, spec in enumerate(said):
        shapes = [np.shape(outputs[at]) for outputs in answers if isinstance(outputs[at], np.ndarray)]
        shape = spec.shape
        if shapes and len(set(map(len, shapes))) == 1:
            if len(shapes[0]) != len(shape):
                shape = (-1,) * len(shapes[0])
            shape = tuple(d if all(real[i] == d for real in shapes) else -1 for i, d in enumerate(shape))
        specs.append(TensorSpec(spec.name, spec.datatype, shape))
    return tuple(specs)


def _expect_rows(session: Any, model: Path, several: Arrays, batch: int) -> None:
    """Raise BatchingImpossible where joined rows do not get the answers that each gets alone."""
    for request in (several, _with_a_large_row(several)):
        whole = answer(session, request)
        rows = [{name: array[i : i + 1] for name, array in request.items()} for i in range(_ROWS)]
        alone = [answer(session, row) for row in rows]
        if whole is None or any(outputs is None for outputs in alone):
            if request is several:
                raise _impossible(batch, f"only {_ROWS} rows are taken, not one", model, request)
            continue
        again = answer(session, request)
        if again is None or far_from(whole, again) > 0:
            return  # it draws random numbers
        parts = [outputs for outputs in alone if outputs is not None]
        together = joined(parts)
        for at, value in enumerate(session.get_outputs()):
            if together is None or _apart(together[at], whole[at]) > _SAME:
                raise _impossible(
                    batch,
                    f"output {value.name!r} gives a row another answer when it is joined with others",
                    model,
                    request,
                )


def _with_a_large_row(request: Arrays) -> Arrays:
    return {
        name: (
            np.concatenate([array[:-1], array[-1:] * np.asarray(_LARGE, array.dtype)])
            if array.dtype.kind == "f"
            else array
        )
        for name, array in request.items()
    }


def _apart(alone: NDArray[Any], together: NDArray[Any]) -> float:
    """The relative error of the row that is farthest off."""
    if np.shape(alone) != np.shape(together) or not np.ndim(alone):
        return float("inf")
    return (
        max((relative_error(a, b) for a, b in zip(alone, together, strict=True)), default=0.0)
        if np.ndim(alone) > 1
        else _apart(alone[:, None], together[:, None])
    )


def _impossible(batch: int, what: str, model: Path, request: Arrays) -> JobError:
    node = first_mixing_node(model, request)
    where = f", from node {node} on" if node else ""
    return bad_input(
        Reason.BATCHING_IMPOSSIBLE,
        f"{FIELD}: {batch}, but {what}{where}: its first dimension is no batch; set maxBatchSize: 0, or"
        " export the model with a batch dimension in front that nothing mixes",
    )


def first_mixing_node(model: Path, request: Arrays) -> str | None:
    """The first operator whose output for joined rows is not that of the rows alone, along any
    axis, as text; None: it cannot be said.
    """
    watched = parse(model)
    known = {output.name for output in watched.graph.output}
    types = graph.element_types(watched)
    names = [n for node in watched.graph.node for n in node.output if n and types.get(n)]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, types[name], None) for name in names if name not in known
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        try:
            files.save_graph(watched, path)
            if files.is_split(model):
                files.data_of(path).symlink_to(files.data_of(model).resolve())
            session = open_session(path, "")
        except (JobError, OSError):
            return None
        rows = len(next(iter(request.values())))
        for node in watched.graph.node:
            wanted = [name for name in node.output if name in names]
            if not wanted:
                continue
            try:
                whole = session.run(wanted, request)
                parts = [
                    session.run(wanted, {name: a[i : i + 1] for name, a in request.items()})
                    for i in range(rows)
                ]
            except ORT_ERRORS:
                return f"{node.op_type} {node.name or node.output[0]!r}"
            for at, value in enumerate(whole):
                if not _follows([part[at] for part in parts], value):
                    return f"{node.op_type} {node.name or node.output[0]!r}"
    return None


def _follows(parts: Sequence[Any], whole: Any) -> bool:
    """Whether the whole is the parts side by side, or the same as each of them."""
    # what is computed from shapes is no row
    if not isinstance(whole, np.ndarray) or (whole.dtype.kind in "iu" and whole.ndim <= 1):
        return True
    if all(np.shape(part) == whole.shape for part in parts):
        return all(relative_error(part, whole) <= _SAME for part in parts)
    for axis in range(whole.ndim):
        try:
            together = np.concatenate(parts, axis=axis)
        except ValueError:
            return False
        if together.shape == whole.shape and relative_error(together, whole) <= _SAME:
            return True
    return False
