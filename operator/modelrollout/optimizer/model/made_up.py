"""Inputs for a model without data, made from its own structure: indices that its tables have,
categories that its encoders know, numbers near the thresholds of its trees and in the range that it
normalizes from.

They show that a model answers, and whether two models answer alike. They say nothing of accuracy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from modelrollout.optimizer.model import files, graph
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.inspect import parse
from modelrollout.optimizer.model.runtime import answer

# Sizes that dynamic dimensions are tried with: most models take any, some want an image or a chunk.
SIZES = (8, 16, 32, 1, 64, 4, 128, 224, 256, 512, 2, 3)
_LARGEST = 1 << 26  # elements of an input
_PASSING = frozenset(
    {
        "Cast",
        "Identity",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Flatten",
        "Transpose",
        "Concat",
        "Clip",
        "Slice",
        "Expand",
    }
)
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_NUMPY = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64, "tensor(bool)": np.bool_, "tensor(string)": np.object_,
}  # fmt: skip


@dataclass
class _Hints:
    """What the graph says of one input."""

    below: int | None = None  # an index must be less
    equal: list[int] = field(default_factory=list)  # what it is compared with
    words: list[str] = field(default_factory=list)
    thresholds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # by column
    center: NDArray[Any] | float = 0.0
    spread: NDArray[Any] | float = 1.0


def _hints(model: ModelProto) -> dict[str, _Hints]:
    """By input. Follows a tensor through operators that only reshape it."""
    small = {t.name: t for t in model.graph.initializer if not files.is_external(t)}
    dims = {t.name: list(t.dims) for t in model.graph.initializer}
    origin = {value.name: value.name for value in model.graph.input}
    found: dict[str, _Hints] = defaultdict(_Hints)
    for node in model.graph.node:
        if (constant := graph.constant_of(node)) is not None:
            small[node.output[0]], dims[node.output[0]] = constant, list(constant.dims)
        for at, name in enumerate(node.input):
            if name in origin:
                _note(node, at, found[origin[name]], small, dims)
        source = next((name for name in node.input if name in origin), None)
        if (source is not None and node.op_type in _PASSING and node.output) or (
            source is not None and node.op_type in ("Sub", "Add") and node.output
        ):
            origin[node.output[0]] = origin[source]
    return found


def _note(
    node: NodeProto, at: int, hint: _Hints, small: Mapping[str, TensorProto], dims: Mapping[str, list[int]]
) -> None:
    own = graph.attributes(node)
    other = small.get(node.input[1]) if len(node.input) > 1 and at == 0 else None
    match node.op_type:
        case "Gather" | "GatherElements" | "GatherND" if at == 1 and node.input[0] in dims:
            sizes = dims[node.input[0]]
            axis = int(own.get("axis", 0)) if node.op_type != "GatherND" else 0
            if sizes:
                hint.below = min(hint.below or sizes[axis], sizes[axis])
        case "OneHot" if at == 0 and other is not None:
            hint.below = max(1, int(graph.values(other).ravel()[0]))
        case "Equal" if other is not None and other.data_type in _WHOLE:
            known = [int(v) for v in graph.values(other).ravel()]
            hint.equal += known[:8]
            if len(known) > 8:  # one of these: an index, written out
                hint.below = max(hint.below or 0, *known) + 1
        case "LabelEncoder":
            hint.words += [word.decode() for word in own.get("keys_strings", ())]
        case "OneHotEncoder":
            hint.words += [word.decode() for word in own.get("cats_strings", ())]
        case "CategoryMapper":
            hint.words += [word.decode() for word in own.get("cats_strings", ())]
        case kind if kind in _TREES:
            modes = own.get("nodes_modes", ())
            for mode, column, value in zip(
                modes, own.get("nodes_featureids", ()), own.get("nodes_values", ()), strict=False
            ):
                if mode != b"LEAF":
                    hint.thresholds[int(column)].append(float(value))
        case "Scaler":
            hint.center = np.array(own.get("offset", [0.0]))
            hint.spread = 1 / np.where(scale := np.array(own.get("scale", [1.0])), scale, 1)
        case "Sub" if other is not None and other.data_type == TensorProto.FLOAT:
            hint.center = graph.values(other)
        case "Div" if other is not None and other.data_type == TensorProto.FLOAT:
            hint.spread = np.abs(graph.values(other))


def _values(
    rng: np.random.Generator, shape: Sequence[int], kind: str, name: str, hint: _Hints, plain: int | None
) -> NDArray[Any]:
    """``plain``: 0 or 1 for all whole numbers, where random ones were not answered."""
    dtype = np.dtype(_NUMPY[kind])
    if dtype.kind == "O":
        words = [*hint.words[:64], "a"] if hint.words else ["a", "b"]
        return np.array(rng.choice(np.array(words, np.object_), shape), np.object_).reshape(shape)
    if dtype.kind == "b":
        return np.ones(shape, np.bool_)
    if dtype.kind in "iu":
        if plain is not None:
            return np.full(shape, plain, dtype)
        if hint.equal and not shape:  # a sample rate, a mode
            return np.array(hint.equal[0], dtype)
        if hint.below is None and ("mask" in name.lower() or "len" in name.lower()):
            return np.ones(shape, dtype)
        largest = hint.below if hint.below is not None else (256 if dtype == np.uint8 else 2)
        return rng.integers(0, max(1, min(largest, int(np.iinfo(dtype.name).max))), shape).astype(dtype)
    values = rng.normal(0, 1, shape)
    if len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)):
        values = _image(rng, shape)
    if hint.thresholds and len(shape) == 2:
        for column, cuts in hint.thresholds.items():
            if column < shape[1]:
                chosen = rng.choice(np.array(cuts), shape[0])
                values[:, column] = chosen + rng.choice([-1e-3, 0.0, 1e-3], shape[0]) * (
                    np.abs(chosen) + 1e-3
                )
        return values.astype(dtype)
    try:
        scaled = values * hint.spread + hint.center
        values = scaled if scaled.shape == values.shape else values
    except ValueError:
        pass
    return np.asarray(values).astype(dtype).reshape(shape)


def _image(rng: np.random.Generator, shape: Sequence[int]) -> NDArray[Any]:
    """Spots of some pixels' size, normalized: noise of single pixels says nothing to a model of
    images.
    """
    axes = (2, 3) if shape[1] in (1, 3) else (1, 2)
    coarse = [-(-size // 8) if axis in axes else size for axis, size in enumerate(shape)]
    values = rng.normal(0, 1, coarse)
    for axis in axes:
        values = np.repeat(values, 8, axis=axis).take(range(shape[axis]), axis=axis)
    return values + rng.normal(0, 0.1, shape)


def _shapes(session: Any, rows: int, size: int) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the inputs; a dynamic first dimension is that of the rows, and what has its name
    elsewhere, too.
    """
    named: dict[str, int] = {}
    for value in session.get_inputs():
        if value.shape and isinstance(value.shape[0], str):
            named.setdefault(value.shape[0], rows)
    shapes = {}
    for value in session.get_inputs():
        shapes[value.name] = tuple(
            d if isinstance(d, int) and d >= 0 else _dimension(value.shape, at, named, rows, size)
            for at, d in enumerate(value.shape)
        )
        if value.type not in _NUMPY or np.prod(shapes[value.name], dtype=np.float64) > _LARGEST:
            return None
    return shapes


def _dimension(shape: Sequence[Any], at: int, named: dict[str, int], rows: int, size: int) -> int:
    """The size of a dynamic dimension."""
    if at == 0:
        return rows
    # the state of a recurrent network is [layers, batch, hidden]
    state = at == 1 and len(shape) == 3 and isinstance(shape[0], int) and isinstance(shape[2], int)
    return named.get(str(shape[at]), rows if state else size)


def has_rows(session: Any) -> bool:
    """Whether every input's first dimension is dynamic."""
    return all(value.shape and not isinstance(value.shape[0], int) for value in session.get_inputs())


def made_up(session: Any, path: Path, rows: int, seed: int = 0) -> Arrays | None:
    """One request that the model answers; None: none of those that were tried."""
    return next(made_up_requests(session, path, rows=rows, seeds=(seed,)), None)


def made_up_requests(
    session: Any, path: Path, *, rows: int = 3, seeds: Sequence[int] = (0, 1)
) -> Iterator[Arrays]:
    """Requests that the model answers, one for each seed."""
    hints = _hints(parse(path))
    inputs = session.get_inputs()
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for size in SIZES:
        shapes = _shapes(session, rows, size)
        if shapes is None:
            return
        if (form := tuple(shapes.values())) in seen:
            continue
        seen.add(form)
        for plain in (None, 0, 1):
            requests = [
                {
                    value.name: _values(
                        np.random.default_rng((seed, at)),
                        shapes[value.name],
                        value.type,
                        value.name,
                        hints.get(value.name, _Hints()),
                        plain,
                    )
                    for at, value in enumerate(inputs)
                }
                for seed in seeds
            ]
            if answer(session, requests[0]) is not None:
                yield requests[0]
                yield from (r for r in requests[1:] if answer(session, r) is not None)
                return
            if not any(np.dtype(_NUMPY[value.type]).kind in "iu" for value in inputs):
                break
