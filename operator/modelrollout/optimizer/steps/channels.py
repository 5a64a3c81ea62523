"""Which channels of a graph can be removed, and what must be cut with each.

The output channels of a Conv, Gemm or MatMul are a *space*. It passes through what works on each
channel by itself; tensors that are added share one space; a Flatten makes a channel a block of
features. A space is fixed where something depends on it that is not understood here: then its
channels stay, which is safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

Keep = Mapping[int, NDArray[np.intp]]  # by space: the channels that stay, in order

_EACH_BY_ITSELF = frozenset(
    {
        "Abs",
        "Cast",
        "Ceil",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tanh",
        "ThresholdedRelu",
    }
)
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"})


@dataclass(frozen=True)
class _Layout:
    """The channels along ``axis`` of a tensor, from first to last: (space, features that each of
    its channels takes).
    """

    axis: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Cut:
    """An initializer that loses what belongs to removed channels along ``axis``."""

    initializer: str
    axis: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Product:
    """A Conv, Gemm or MatMul with constant weights. ``inputs_axis`` of the weight meets
    ``tensor_axis`` of the tensor that comes in.
    """

    weight: str
    inputs_axis: int
    outputs_axis: int
    tensor: str
    tensor_axis: int
    space: int | None  # of its output channels; None: they are not understood
    parts: tuple[tuple[int, int], ...]  # spaces of its input channels


class Channels:
    """The spaces of a model and their products."""

    def __init__(self, model: ModelProto) -> None:
        """``model``: whole, with the shapes of its tensors (``files.inferred``)."""
        self.model = model
        graph = self.model.graph
        self.weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.products: list[Product] = []
        self._sizes: list[int] = []
        self._same: list[int] = []
        self._fixed: set[int] = set()
        self._cuts: list[_Cut] = []
        self._depthwise: list[tuple[str, tuple[tuple[int, int], ...]]] = []
        self._reshapes: set[str] = set()
        self._layouts: dict[str, _Layout] = {}
        self._shapes = {
            v.name: v.type.tensor_type.shape for v in (*graph.input, *graph.value_info, *graph.output)
        }
        taken = set(_taken_by_bodies(graph))
        others = [*taken, *(output.name for output in graph.output)]  # use a constant, too
        self._uses = Counter([*(name for node in graph.node for name in node.input), *others])
        for node in graph.node:
            self._visit(node)
            for name in node.output:
                if name in taken:
                    self._fix(name)
        for output in graph.output:
            self._fix(output.name)

    # -- spaces

    def _new(self, size: int) -> int:
        self._sizes.append(size)
        self._same.append(len(self._same))
        return len(self._sizes) - 1

    def _root(self, space: int) -> int:
        while self._same[space] != space:
            space = self._same[space]
        return space

    def _merge(self, a: int, b: int) -> None:
        first, second = sorted((self._root(a), self._root(b)))
        self._same[second] = first

    def _fix(self, *tensors: str) -> None:
        for name in tensors:
            if name in self._layouts:
                self._fixed.update(self._root(space) for space, _ in self._layouts[name].parts)

    def free(self) -> dict[int, int]:
        """Size of each space whose channels can be removed."""
        fixed = {self._root(space) for space in self._fixed}
        return {
            space: size
            for space, size in enumerate(self._sizes)
            if self._root(space) == space and space not in fixed
        }

    def size(self, space: int) -> int:
        """How many channels it has."""
        return self._sizes[space]

    def root(self, space: int | None) -> int | None:
        """The space that stands for all that share its channels."""
        return None if space is None else self._root(space)

    # -- shapes

    def _rank(self, name: str) -> int | None:
        if name in self.weights:
            return int(self.weights[name].ndim)
        return len(self._shapes[name].dim) if name in self._shapes else None

    def _width(self, name: str, axis: int) -> int | None:
        if name not in self._shapes or axis >= len(self._shapes[name].dim):
            return None
        return int(self._shapes[name].dim[axis].dim_value) or None

    # -- nodes

    def _visit(self, node: NodeProto) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kind, known = node.op_type, node.domain in ("", "ai.onnx")
        x = node.input[0] if node.input else ""
        layout = self._layouts.get(x)
        result: _Layout | None = None
        understood = known
        if known and kind in ("Conv", "Gemm", "MatMul"):
            understood, result = self._product(node, attributes)
        elif kind in _EACH_BY_ITSELF or (kind in _POOLS and layout and layout.axis == 1):
            result = layout
        elif (
            kind == "BatchNormalization"
            and layout
            and layout.axis == 1
            and all(self._own(name) for name in node.input[1:])
        ):
            self._cuts += [_Cut(name, 0, layout.parts) for name in node.input[1:]]
            result = layout
        elif kind in _ELEMENTWISE:
            understood, result = self._elementwise(node)
        elif kind == "Concat":
            understood, result = self._concat(node, attributes["axis"])
        elif kind == "ReduceMean":
            result = self._reduced(node, layout, attributes)
            understood = result is not None
        elif (kind == "Flatten" and attributes.get("axis", 1) == 1) or (
            kind == "Reshape" and self._flattens(node)
        ):
            result = self._flattened(x, layout)
            understood = result is not None
        elif kind == "Transpose" and layout and "perm" in attributes:
            result = replace(layout, axis=list(attributes["perm"]).index(layout.axis))
        else:
            understood = False
        if not understood:
            self._fix(*node.input)
        elif result is not None:
            self._layouts[node.output[0]] = result

    def _own(self, name: str) -> bool:
        """A constant that only this node uses."""
        return name in self.weights and self._uses[name] == 1

    def _product(self, node: NodeProto, attributes: dict[str, Any]) -> tuple[bool, _Layout | None]:
        x, w, *bias = node.input
        if not self._own(w) or (bias and bias[0] and not self._own(bias[0])) or attributes.get("transA"):
            return False, None
        weight, layout = self.weights[w], self._layouts.get(x)
        if node.op_type == "Conv":
            inputs_axis, outputs_axis, tensor_axis, out_axis = 1, 0, 1, 1
            if attributes.get("group", 1) != 1:
                return self._grouped(node, attributes["group"])
        else:
            rank = self._rank(x)
            if weight.ndim != 2 or rank is None:
                return False, None
            outputs_axis = 0 if attributes.get("transB") else 1
            inputs_axis, tensor_axis, out_axis = 1 - outputs_axis, rank - 1, rank - 1
        if layout and (
            layout.axis != tensor_axis
            or sum(self._sizes[s] * b for s, b in layout.parts) != weight.shape[inputs_axis]
        ):
            return False, None
        space = self._new(weight.shape[outputs_axis])
        parts = ((space, 1),)
        self._cuts.append(_Cut(w, outputs_axis, parts))
        if layout:
            self._cuts.append(_Cut(w, inputs_axis, layout.parts))
        self.products.append(
            Product(w, inputs_axis, outputs_axis, x, tensor_axis, space, layout.parts if layout else ())
        )
        if bias and bias[0]:
            shape = self.weights[bias[0]].shape
            if shape and shape[-1] == self._sizes[space] and self.weights[bias[0]].size == self._sizes[space]:
                self._cuts.append(_Cut(bias[0], len(shape) - 1, parts))
            elif self.weights[bias[0]].size != 1:
                self._fixed.add(space)
        return True, _Layout(out_axis, parts)

    def _grouped(self, node: NodeProto, groups: int) -> tuple[bool, _Layout | None]:
        """Depthwise convolutions keep their channels apart; other groups are not understood."""
        x, w, *bias = node.input
        layout = self._layouts.get(x)
        if (
            layout is None
            or layout.axis != 1
            or self.weights[w].shape[0] != groups
            or sum(self._sizes[s] * b for s, b in layout.parts) != groups
        ):
            return False, None
        self._cuts += [_Cut(name, 0, layout.parts) for name in (w, *bias) if name]
        self._depthwise.append((w, layout.parts))
        return True, layout

    def _elementwise(self, node: NodeProto) -> tuple[bool, _Layout | None]:
        constants = [name for name in node.input if name in self.weights]
        tensors = [name for name in node.input if name not in self.weights]
        layouts = [self._layouts.get(name) for name in tensors]
        if not any(layouts):
            return True, None
        first, ranks = layouts[0], {self._rank(name) for name in tensors}
        if (
            first is None
            or len(ranks) != 1
            or None in ranks
            or any(other is None or not self._alike(first, other) for other in layouts)
        ):
            return False, None
        rank = ranks.pop() or 0
        cuts = []
        for name in constants:
            if self.weights[name].ndim > rank:
                return False, None
            at = first.axis - (rank - self.weights[name].ndim)  # shapes are aligned at their ends
            if at < 0 or self.weights[name].shape[at] == 1:
                continue
            if not self._own(name):
                return False, None
            cuts.append(_Cut(name, at, first.parts))
        for other in layouts[1:]:
            assert other is not None
            for (a, _), (b, _) in zip(first.parts, other.parts, strict=True):
                self._merge(a, b)
        self._cuts += cuts
        return True, first

    def _alike(self, a: _Layout, b: _Layout) -> bool:
        return a.axis == b.axis and [(self._sizes[s], n) for s, n in a.parts] == [
            (self._sizes[s], n) for s, n in b.parts
        ]

    def _concat(self, node: NodeProto, axis: int) -> tuple[bool, _Layout | None]:
        layouts = [self._layouts.get(name) for name in node.input]
        if not any(layouts):
            return True, None
        rank = self._rank(node.input[0])
        if rank is None:
            return False, None
        parts: list[tuple[int, int]] = []
        for name, layout in zip(node.input, layouts, strict=True):
            if layout is None:
                width = self._width(name, axis % rank)
                if width is None:
                    return False, None
                parts.append((self._new(width), 1))
                self._fixed.add(parts[-1][0])
            elif layout.axis != axis % rank:
                return False, None
            else:
                parts += layout.parts
        return True, _Layout(axis % rank, tuple(parts))

    def _flattens(self, node: NodeProto) -> bool:
        """Whether a Reshape is a Flatten: [n, a, b, ...] to [n, features]."""
        shape, x = self.weights.get(node.input[1]), node.input[0]
        if (
            shape is None
            or shape.shape != (2,)
            or (self._rank(x) or 0) < 3
            or (shape[0] > 0 and shape[0] != self._width(x, 0))
        ):
            return False
        features = [self._width(x, axis) for axis in range(1, self._rank(x) or 0)]
        if None in features or (shape[1] != -1 and shape[1] != np.prod([f for f in features if f])):
            return False
        if shape[1] != -1:
            if not self._own(node.input[1]):
                return False
            self._reshapes.add(node.input[1])
        return True

    def _reduced(self, node: NodeProto, layout: _Layout | None, attributes: dict[str, Any]) -> _Layout | None:
        """A mean over axes that are not the channels'."""
        rank = self._rank(node.input[0])
        raw_axes = attributes.get("axes") if len(node.input) < 2 else self.weights.get(node.input[1])
        if layout is None or rank is None or raw_axes is None:
            return None
        axes = {int(a) % rank for a in raw_axes}
        if layout.axis in axes:
            return None
        return (
            layout
            if attributes.get("keepdims", 1)
            else replace(layout, axis=layout.axis - sum(a < layout.axis for a in axes))
        )

    def _flattened(self, x: str, layout: _Layout | None) -> _Layout | None:
        rank = self._rank(x)
        if layout is None or layout.axis != 1 or rank is None:
            return None
        inner = [self._width(x, axis) for axis in range(2, rank)]
        if None in inner:
            return None
        block = int(np.prod([i for i in inner if i], dtype=np.int64))
        return _Layout(1, tuple((space, b * block) for space, b in layout.parts))

    # -- cutting

    def _features(self, parts: Sequence[tuple[int, int]], keep: Keep) -> NDArray[np.intp]:
        features, offset = [], 0
        for space, block in parts:
            channels = keep.get(self._root(space), np.arange(self._sizes[space]))
            features.append((offset + channels[:, None] * block + np.arange(block)).ravel())
            offset += self._sizes[space] * block
        return np.concatenate(features)

    def weights_left(self, counts: Mapping[int, int]) -> int:
        """Numbers in all float constants when each space keeps so many channels."""
        shapes = {name: list(value.shape) for name, value in self.weights.items() if value.dtype.kind == "f"}
        for cut in self._cuts:
            shapes[cut.initializer][cut.axis] = sum(
                counts.get(self._root(s), self._sizes[s]) * block for s, block in cut.parts
            )
        return int(sum(np.prod(shape, dtype=np.int64) for shape in shapes.values()))

    def cut(self, keep: Keep) -> ModelProto:
        """The model with only these channels."""
        weights = dict(self.weights)
        for cut in self._cuts:
            weights[cut.initializer] = np.take(
                weights[cut.initializer], self._features(cut.parts, keep), axis=cut.axis
            )
        for name in self._reshapes:
            weights[name] = np.array([0, -1], np.int64)
        model = ModelProto()
        model.CopyFrom(self.model)
        del model.graph.value_info[:]  # shapes that are no longer true
        for tensor in model.graph.initializer:
            if weights[tensor.name] is not self.weights[tensor.name]:
                tensor.CopyFrom(
                    numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name)
                )
        groups = {w: len(self._features(parts, keep)) for w, parts in self._depthwise}
        for node in model.graph.node:
            if len(node.input) > 1 and node.input[1] in groups:
                next(a for a in node.attribute if a.name == "group").i = groups[node.input[1]]
        return model


def _taken_by_bodies(graph: GraphProto) -> Iterator[str]:
    """Names that the bodies of Loop, If and Scan use."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                for inner in body.node:
                    yield from inner.input
                yield from _taken_by_bodies(body)
