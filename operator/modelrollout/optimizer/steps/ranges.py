"""Ranges of activations, measured on calibration data."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import calibrate

from modelrollout.optimizer.model import files, graph
from modelrollout.optimizer.model.data import Arrays, requests
from modelrollout.optimizer.model.inspect import parse
from modelrollout.optimizer.model.runtime import BATCH_ROWS, ask, open_session
from modelrollout.triton.tensors import TensorSpec

_collector: Any = calibrate.HistogramCollector  # it has no types

Method = Literal["MinMax", "Entropy", "Percentile"]

_HELD_ELEMENTS = 1 << 25  # of activations that are held at once for a histogram
_OBSERVING = "observing.onnx"  # beside the model, whose weights it shares
_BINS = {"Entropy": 128, "Percentile": 2048}  # ONNX Runtime's own defaults
_PERCENTILE = 99.999
_WIDEST = float(np.finfo(np.float32).max) / 4


@dataclass(frozen=True)
class Range:
    """What was seen of a tensor. ``finite``: no NaN and no infinity; ``elements``: the most in one
    request.
    """

    low: float
    high: float
    finite: bool
    elements: int

    @property
    def usable(self) -> bool:
        """Whether a scale can be made of it."""
        return self.finite and self.elements > 0 and self.low > -_WIDEST and self.high < _WIDEST

    @property
    def problem(self) -> str:
        """Why not."""
        if not self.elements:
            return "which was empty"
        return "which is too large for a scale" if self.finite else "which is not finite (NaN or Inf)"


def ranges_of(
    model: Path,
    names: Sequence[str],
    inputs: Arrays,
    specs: Sequence[TensorSpec],
    method: Method,
    field: str,
) -> dict[str, Range]:
    """The range of each tensor of ``model`` that ``names`` lists; raises JobError: those of
    ``extremes_of``, NoBatchDimension.
    """
    asked = [r.arrays for r in requests(inputs, specs, BATCH_ROWS, f"{field}.calibration")]
    seen = extremes_of(model, names, asked, field)
    if method == "MinMax":
        return seen
    usable = [name for name in names if seen[name].usable and seen[name].high > seen[name].low]
    for part in _parts(usable, seen):
        collector = _collector(
            method=method.lower(),
            symmetric=False,
            num_bins=_BINS[method],
            num_quantized_bins=128,
            percentile=_PERCENTILE,
            scenario="same",
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
            for values in _values(model, part, asked, field):
                collector.collect({name: [array.ravel()] for name, array in values.items() if array.size})
            result = collector.compute_collection_result()
        for name, found in result.items():
            low, high = (float(np.asarray(value)) for value in found[:2])
            if np.isfinite((low, high)).all() and high > low:
                seen[name] = Range(max(low, seen[name].low), min(high, seen[name].high), True, 1)
    return seen


def _parts(names: Sequence[str], seen: dict[str, Range]) -> Iterator[list[str]]:
    """As many tensors at once as can be held."""
    part: list[str] = []
    for name in names:
        if part and sum(seen[n].elements for n in (*part, name)) > _HELD_ELEMENTS:
            yield part
            part = []
        part.append(name)
    if part:
        yield part


def extremes_of(model: Path, names: Sequence[str], asked: Sequence[Arrays], field: str) -> dict[str, Range]:
    """The range of each tensor when the model is asked this. It is computed in the graph: the
    activations of a whole batch would fill the memory. Raises JobError: InferenceFailed,
    ModelRefused.
    """
    within = [name for name in names if name not in asked[0]]
    low, high = (dict.fromkeys(names, edge) for edge in (np.inf, -np.inf))
    finite, elements = dict.fromkeys(names, True), dict.fromkeys(names, 0)

    def note(name: str, size: int, ends: tuple[float, float], whole: bool) -> None:
        elements[name] = max(elements[name], size)
        if size:
            low[name], high[name] = min(low[name], ends[0]), max(high[name], ends[1])
            finite[name] &= whole and bool(np.isfinite(ends).all())

    for request in asked:
        for name in set(names) & request.keys():
            values = request[name]
            edges = (float(values.min(initial=np.inf)), float(values.max(initial=-np.inf)))
            note(name, values.size, edges, bool(np.isfinite(values).all()))
    if within:
        for found in _observe(model, within, asked, field):
            for name in within:
                size, least, most, odd = (value.item() for value in found[name])
                note(name, int(size), (float(least), float(most)), not odd)
    return {
        name: Range(
            *((low[name], high[name]) if elements[name] else (0.0, 0.0)), finite[name], elements[name]
        )
        for name in names
    }


def _observe(
    model: Path, names: Sequence[str], asked: Sequence[Arrays], field: str
) -> Iterator[dict[str, list[NDArray[Any]]]]:
    """(elements, least, largest, whether one is no number) of each tensor, request by request. One
    zero is put before the values: a tensor may be empty.
    """
    observing = parse(model)
    free = graph.Names(observing)
    zero, flat = free.new("observed_zero"), free.new("observed_flat")
    observing.graph.initializer.extend(
        [
            helper.make_tensor(zero, TensorProto.FLOAT, [1], [0.0]),
            helper.make_tensor(flat, TensorProto.INT64, [1], [-1]),
        ]
    )
    made: dict[str, list[str]] = {}
    for name in names:
        parts = [
            free.new(f"{name}_{part}")
            for part in ("flat", "padded", "size", "low", "high", "nan", "f", "odd")
        ]
        line, padded, size, low, high, nan, as_float, odd = parts
        observing.graph.node.extend(
            [
                helper.make_node("Reshape", [name, flat], [line]),
                helper.make_node("Concat", [line, zero], [padded], axis=0),
                helper.make_node("Size", [line], [size]),
                helper.make_node("ReduceMin", [padded], [low], keepdims=0),
                helper.make_node("ReduceMax", [padded], [high], keepdims=0),
                helper.make_node("IsNaN", [padded], [nan]),
                helper.make_node("Cast", [nan], [as_float], to=TensorProto.FLOAT),
                helper.make_node("ReduceMax", [as_float], [odd], keepdims=0),
            ]
        )
        made[name] = [size, low, high, odd]
        kinds = (TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)
        observing.graph.output.extend(
            helper.make_tensor_value_info(part, kind, [])
            for part, kind in zip(made[name], kinds, strict=True)
        )
    wanted = [part for name in names for part in made[name]]
    for outputs in _run(model, observing, wanted, asked, field):
        yield {name: [outputs[part] for part in made[name]] for name in names}


def _values(
    model: Path, names: Sequence[str], asked: Sequence[Arrays], field: str
) -> Iterator[dict[str, NDArray[Any]]]:
    """The tensors themselves, request by request."""
    observing = parse(model)
    present = {output.name for output in observing.graph.output}
    within = [name for name in names if name not in asked[0]]
    observing.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in within if name not in present
    )
    if within:
        yield from _run(model, observing, within, asked, field)
    for request in asked:
        if given := {name: request[name] for name in names if name in request}:
            yield given


def _run(
    model: Path, observing: Any, wanted: Sequence[str], asked: Sequence[Arrays], field: str
) -> Iterator[dict[str, NDArray[Any]]]:
    path = model.with_name(_OBSERVING)
    files.save_graph(observing, path)
    session = open_session(path, field)
    path.unlink()
    for request in asked:
        outputs = ask(session, wanted, request, f"{field}.calibration")
        yield dict(zip(wanted, outputs, strict=True))
