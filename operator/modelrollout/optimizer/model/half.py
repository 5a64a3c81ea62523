"""Arithmetic in float16, on a CPU.

ONNX Runtime has few kernels of float16 on the CPU: it casts to float32, and leaves out the casts
between two operators. So a sum of 100,000 stays finite there, and is infinite on the GPU that
serves. What is judged here is rounded to float16 after every operator that gives float16.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from modelrollout.optimizer.model import files, graph
from modelrollout.optimizer.model.inspect import parse, sort_nodes
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.triton.layout import MODEL_FILE

_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def open_judged(path: Path, what: str) -> Any:
    """A session on the CPU that answers as the model will where it is served; raises JobError
    (ModelRefused).
    """
    if not _has_half(parse(path)):
        return open_session(path, what)
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / MODEL_FILE
        files.save(emulated(path), rounded)
        return open_session(rounded, what)  # weights stay mapped


def _has_half(model: ModelProto) -> bool:
    return any(t.data_type == _HALF for t in model.graph.initializer) or any(
        attribute.i == _HALF
        for inner in graph.graphs(model.graph)
        for node in inner.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    )


def emulated(path: Path) -> ModelProto:
    """The model in float32, rounded wherever it has float16."""
    model = parse(path)
    types = graph.element_types(model)
    if files.is_split(path):
        from onnx import load_external_data_for_model

        load_external_data_for_model(model, str(path.parent))
    names = graph.Names(model)
    graph.forget_shapes(model)
    _widen(model.graph, types, names, top=True)
    for inner in graph.graphs(model.graph):
        sort_nodes(inner)
    return model


def _wide(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen(g: GraphProto, types: dict[str, int], names: graph.Names, *, top: bool) -> None:
    nodes = []
    for tensor in g.initializer:
        if tensor.data_type == _HALF:
            tensor.CopyFrom(_wide(tensor))
    if top:  # what clients send and get stays as it is
        for value in g.input:
            if value.type.tensor_type.elem_type == _HALF:
                wide = names.new(f"{value.name}_wide")
                nodes.append(helper.make_node("Cast", [value.name], [wide], to=_FULL))
                graph.rename(g, {value.name: wide})
        for value in g.output:
            if value.type.tensor_type.elem_type == _HALF:
                wide = names.new(f"{value.name}_wide")
                types[wide] = _HALF
                for node in g.node:
                    for at, name in enumerate(node.output):
                        if name == value.name:
                            node.output[at] = wide
                for tensor in g.initializer:  # a constant may be an output
                    tensor.name = wide if tensor.name == value.name else tensor.name
                graph.rename(g, {value.name: wide})
                nodes.append(helper.make_node("Cast", [wide], [value.name], to=_HALF))
    else:
        for value in (*g.input, *g.output):
            if value.type.tensor_type.elem_type == _HALF:
                value.type.tensor_type.elem_type = _FULL
    for node in g.node:
        for body in graph.bodies(node):
            _widen(body, types, names, top=False)
        for attribute in node.attribute:
            _widen_attribute(node.op_type, attribute)
        nodes.append(node)
        if any(True for _ in graph.bodies(node)):
            continue  # rounded within
        for at, name in enumerate(node.output):
            if name and types.get(name) == _HALF:
                exact, half = names.new(f"{name}_exact"), names.new(f"{name}_half")
                node.output[at] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], to=_HALF))
                nodes.append(helper.make_node("Cast", [half], [name], to=_FULL))
    graph.put_nodes(g, nodes)


def _widen_attribute(kind: str, attribute: AttributeProto) -> None:
    if attribute.name in ("to", "dtype") and attribute.i == _HALF and kind != "Loop":
        attribute.i = _FULL
    if attribute.t.data_type == _HALF:
        attribute.t.CopyFrom(_wide(attribute.t))
