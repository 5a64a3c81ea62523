"""Looking into ONNX graphs, and rewriting them, with the graphs inside of them: what every step
needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs of an If, Loop or Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all inside of it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def uses(graph: GraphProto) -> Counter[str]:
    """How often each tensor is read: by nodes, also of bodies, and as an output."""
    return Counter(
        name
        for inner in graphs(graph)
        for name in (*(n for node in inner.node for n in node.input if n), *(o.name for o in inner.output))
    )


def attributes(node: NodeProto) -> dict[str, Any]:
    """By name, as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class Names:
    """Names that nothing in the model has."""

    def __init__(self, model: ModelProto) -> None:
        self._taken = {
            name
            for graph in graphs(model.graph)
            for name in (
                *(t.name for t in graph.initializer),
                *(s.values.name for s in graph.sparse_initializer),
                *(v.name for values in (graph.input, graph.output, graph.value_info) for v in values),
                *(name for node in graph.node for name in (node.name, *node.input, *node.output)),
            )
        }

    def new(self, wish: str) -> str:
        """``wish``, or with a number where that is taken."""
        name, number = wish, 1
        while name in self._taken:
            name, number = f"{wish}_{number}", number + 1
        self._taken.add(name)
        return name


def name_nodes(model: ModelProto) -> None:
    """A name for every node that has none, or shares one: nodes are chosen by name."""
    names, seen = Names(model), set[str]()
    for graph in graphs(model.graph):
        for index, node in enumerate(graph.node):
            if not node.name or node.name in seen:
                node.name = names.new(f"{node.op_type}_{index}")
            seen.add(node.name)


def rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Read other tensors, in nodes and bodies; a body's own tensors hide those of the same name."""
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in names:
                node.input[at] = names[name]
        for body in bodies(node):
            own = {
                *(v.name for v in body.input),
                *(t.name for t in body.initializer),
                *(name for inner in body.node for name in inner.output),
            }
            rename(body, {old: new for old, new in names.items() if old not in own})


def constant_of(node: NodeProto) -> TensorProto | None:
    """The dense numbers of a Constant node; None: it is another operator, or holds something
    else.
    """
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    match attribute.name:
        case "value" if attribute.t.data_type != TensorProto.STRING:
            tensor: TensorProto = attribute.t
            return tensor
        case "value_float":
            return numpy_helper.from_array(np.array(attribute.f, np.float32))
        case "value_floats":
            return numpy_helper.from_array(np.array(attribute.floats, np.float32))
        case "value_int":
            return numpy_helper.from_array(np.array(attribute.i, np.int64))
        case "value_ints":
            return numpy_helper.from_array(np.array(attribute.ints, np.int64))
    return None


def hoist_constants(model: ModelProto) -> int:
    """Make initializers of the graph of all Constant nodes, and of the initializers of bodies:
    where steps look for weights. Returns how many.
    """
    names = Names(model)
    return _hoist(model.graph, model.graph, names)


def _hoist(graph: GraphProto, top: GraphProto, names: Names) -> int:
    outputs, count = {output.name for output in graph.output}, 0
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        constant = constant_of(node)
        if constant is None or node.output[0] in outputs:
            kept.append(node)
            continue
        old = node.output[0]
        new = old if graph is top else names.new(old)
        top.initializer.add().CopyFrom(constant)
        top.initializer[-1].name = new
        renamed[old] = new
        count += 1
    if count:
        del graph.node[:]
        graph.node.extend(kept)
    if graph is not top:
        inputs = {value.name for value in graph.input}
        own = [t for t in graph.initializer if t.name not in outputs | inputs]
        for tensor in own:
            renamed[tensor.name] = names.new(tensor.name)
            top.initializer.add().CopyFrom(tensor)
            top.initializer[-1].name = renamed[tensor.name]
            graph.initializer.remove(tensor)
        count += len(own)
    rename(graph, {old: new for old, new in renamed.items() if old != new})
    for node in graph.node:
        for body in bodies(node):
            count += _hoist(body, top, names)
    return count


def drop_unused(graph: GraphProto) -> None:
    """Remove the initializers that nothing reads."""
    used = uses(graph)
    for at in range(len(graph.initializer) - 1, -1, -1):  # one by one: large ones are not copied
        if not used[graph.initializer[at].name]:
            del graph.initializer[at]


def forget_shapes(model: ModelProto) -> None:
    """Drop what the file says of tensors within: it may be stale, and rewriting makes it so."""
    for graph in graphs(model.graph):
        del graph.value_info[:]


def element_types(model: ModelProto) -> dict[str, int]:
    """Element types of the graph's tensors, as far as shape inference of ONNX knows them."""
    bare = helper.make_model(GraphProto(name="g"), opset_imports=model.opset_import)
    bare.ir_version = model.ir_version
    bare.graph.node.extend(model.graph.node)
    bare.graph.output.extend(model.graph.output)
    # types alone: the weights may fill half of the memory
    given = {value.name for value in model.graph.input}
    bare.graph.input.extend(model.graph.input)
    bare.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in model.graph.initializer
        if t.name not in given
    )
    bare.functions.extend(model.functions)
    forget_shapes(bare)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = bare
    return {t.name: t.data_type for t in model.graph.initializer} | {
        v.name: v.type.tensor_type.elem_type
        for graph in graphs(inferred.graph)
        for v in (*graph.input, *graph.value_info, *graph.output)
        if v.type.HasField("tensor_type")
    }


def float_weights(model: ModelProto) -> dict[str, TensorProto]:
    """The float32 initializers by name."""
    return {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def elements(tensor: TensorProto) -> int:
    """How many numbers it has."""
    return math.prod(tensor.dims)


def values(tensor: TensorProto) -> NDArray[Any]:
    """Its numbers."""
    return np.asarray(numpy_helper.to_array(tensor))


def put_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Replace the graph's nodes."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's default operators; 0: none is imported."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def import_domain(model: ModelProto, domain: str, version: int) -> None:
    """Import a set of operators, once."""
    if not any(o.domain == domain for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))


def tidy_imports(model: ModelProto, before: Sequence[onnx.OperatorSetIdProto]) -> None:
    """Drop the imports that no node uses and the model did not have: other runtimes need not know
    them.
    """
    used = {node.domain for graph in graphs(model.graph) for node in graph.node} | {
        domain for f in model.functions for domain in (f.domain, *(node.domain for node in f.node))
    }
    known = {o.domain for o in before} | used | {"", "ai.onnx"}
    kept = [o for o in model.opset_import if o.domain in known]
    del model.opset_import[:]
    model.opset_import.extend(kept)
