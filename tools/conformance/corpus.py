"""The models: what the pinned ``onnx`` package makes and ships for tests of backends."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

VERSION = "1.23.2"  # of onnx, whose tests these are: other versions have others
SETS = ("asis", "const")
SetName = Literal["asis", "const"]

_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


class CorpusError(Exception):
    """The installed package is not the one that figures are compared with."""


class Key(NamedTuple):
    """A case by its place; it is made again in the process that runs it."""

    set: SetName
    name: str


@dataclass(frozen=True)
class Case:
    """A model and inputs that it is known to answer. ``inputs`` None: the test has no arrays that
    could be sent (sequences, optional values), or there are none.
    """

    key: Key
    model: ModelProto
    inputs: dict[str, NDArray[Any]] | None


@cache
def _nodes() -> dict[str, Any]:
    """The package's test cases for single operators, by name."""
    module = importlib.import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return {case.name: case for case in module.collect_testcases()}


@cache
def _files() -> dict[str, Path]:
    """Its other models, by folder and name."""
    found = {}
    for path in sorted(_DATA.rglob("*.onnx")):
        name = path.parent.name if path.name == "model.onnx" else path.stem
        found[f"{path.relative_to(_DATA).parts[0]}/{name}"] = path
    return found


def keys() -> list[Key]:
    """All cases. Raises CorpusError for another version of the package."""
    if onnx.__version__ != VERSION:
        raise CorpusError(f"onnx {onnx.__version__} is installed; the figures are those of {VERSION}")
    made = [Key("const", name) for name, case in _nodes().items() if _has_constants(case)]
    return [*(Key("asis", name) for name in (*_nodes(), *_files())), *made]


def case_of(key: Key) -> Case:
    """The model and its inputs."""
    if key.name in _files():
        path = _files()[key.name]
        model = onnx.load(path)
        return Case(key, model, _inputs_beside(path, model))
    node = _nodes()[key.name]
    if key.set == "asis":
        return Case(key, node.model, _arrays(node.model, node.data_sets[0][0] if node.data_sets else ()))
    return _with_constants(key, node)


def _array(value: Any) -> NDArray[Any] | None:
    """One tensor of a test; None: it is a sequence, or left out."""
    if isinstance(value, TensorProto):  # of a type that numpy has not
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def _arrays(model: ModelProto, values: Sequence[Any]) -> dict[str, NDArray[Any]] | None:
    initializers = {t.name for t in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in initializers]
    if len(values) < len(names) or not names:
        return None
    found = {name: _array(value) for name, value in zip(names, values, strict=False)}
    arrays = {name: array for name, array in found.items() if array is not None}
    return arrays if len(arrays) == len(found) else None


def _inputs_beside(path: Path, model: ModelProto) -> dict[str, NDArray[Any]] | None:
    values = []
    for number in range(len(model.graph.input)):
        file = path.parent / "test_data_set_0" / f"input_{number}.pb"
        if not file.is_file():
            break
        tensor = TensorProto()
        tensor.ParseFromString(file.read_bytes())
        values.append(numpy_helper.to_array(tensor))
    return _arrays(model, values)


def _has_constants(case: Any) -> bool:
    inputs = case.model.graph.input
    return (
        len(inputs) > 1
        and bool(case.data_sets)
        and all(value.type.HasField("tensor_type") for value in inputs)
        and all(_array(value) is not None for value in case.data_sets[0][0])
    )


def _with_constants(key: Key, node: Any) -> Case:
    """The first input stays one; the others are weights, as in a model that was trained."""
    model = ModelProto()
    model.CopyFrom(node.model)
    first, *others = [value.name for value in model.graph.input]
    arrays = [np.asarray(_array(value)) for value in node.data_sets[0][0]]
    values = dict(zip((first, *others), arrays, strict=False))
    for name in others:
        if name not in values:  # an optional input that the test leaves out
            continue
        model.graph.initializer.append(numpy_helper.from_array(values[name], name))
    left = [value for value in model.graph.input if value.name not in values or value.name == first]
    del model.graph.input[:]
    model.graph.input.extend(left)
    return Case(key, model, {first: values[first]} if len(left) == 1 else None)
