"""Quantization to 8 bit. The result is again an ONNX file with the same inputs and outputs, in
float.

Only the operators with weights are quantized (Conv, ConvTranspose, Gemm, MatMul; Dynamic: Gemm,
MatMul, LSTM): they decide the size and most of the time. Everything between them stays in float,
which keeps apart what one scale would mix (boxes and scores in a Concat), and tables. The graph is
rewritten here and not with ONNX Runtime's quantizer, which quantizes all it knows, takes ranges
that are not finite, and chooses names that the model may have.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model import files, graph
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.inspect import ModelInfo, parse, sort_nodes
from modelrollout.optimizer.model.runtime import ORT_ERRORS, ort, refused, session_options, tell_memory
from modelrollout.optimizer.steps.opset import raised
from modelrollout.optimizer.steps.ranges import Range, ranges_of
from modelrollout.reasons import Reason
from modelrollout.triton.layout import DATA_FILE, MODEL_FILE

# QuantizeLinear and DequantizeLinear know an axis, which per-channel scales need, from this opset
# on.
OPSET = 13

# Operators with weights.
WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
DYNAMIC_OPS = frozenset({"Gemm", "LSTM", "MatMul"})
_ACTIVATIONS = frozenset({"Relu", "Clip"})  # what ONNX Runtime joins with the Conv before

# Weights in 7 of their 8 bits. On a CPU without VNNI, ONNX Runtime adds pairs of products of
# activations (0 to 255) and weights in 16 bits (VPMADDUBSW), which saturate: 2 * 255 * 127 does not
# fit, 2 * 255 * 64 does. With all 8 bits a model would answer one way where the gate measures it
# and another way where it is served. What else stands right in a product has 7 bits, too.
_LARGEST = 64
_BIAS_LIMIT = float(1 << 30)
_LEAST_SCALE = float(np.finfo(np.float32).tiny)

_SHAPE_ERROR: type[Exception] = onnx.shape_inference.InferenceError
_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, _SHAPE_ERROR, ValueError, RuntimeError, AssertionError)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How to quantize. ``symmetric``: activations without a zero point, which TensorRT demands;
    elsewhere a zero point keeps more accuracy. ``batched``: Dynamic measures every row by itself,
    because rows of several requests stand in one tensor.
    """

    symmetric: bool = False
    calibration_method: Literal["MinMax", "Entropy", "Percentile"] = "MinMax"
    per_channel: bool = True
    batched: bool = False


@dataclass(frozen=True)
class _Weight:
    """A weight in 8 bit. ``axis``: that of its channels; None: one scale."""

    numbers: NDArray[np.int8]
    scale: Floats  # [channels], or []
    axis: int | None


def quantized(weight: NDArray[Any], axis: int | None, least: NDArray[Any] | None = None) -> _Weight:
    """A weight in 7 bits and sign, by channel of ``axis`` or whole; ``least``: scales that are not
    to be undercut.
    """
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, initial=0).astype(np.float64)
    scale = np.maximum(largest / _LARGEST, _LEAST_SCALE if least is None else least)
    scale = np.where(largest == 0, 1.0 if least is None else np.maximum(least, _LEAST_SCALE), scale)
    stored = scale.astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)] if axis is not None else []
    numbers = np.clip(np.round(weight / stored.reshape(shape)), -_LARGEST, _LARGEST).astype(np.int8)
    return _Weight(numbers, stored, axis)


class Quantizer:
    """A model made ready for quantization; one measurement of its activations serves any choice of
    nodes. Close it (``with``).
    """

    def __init__(
        self, source: Path, info: ModelInfo, calibration: Arrays | None, options: Options, field: str
    ) -> None:
        """Static (QDQ) with calibration inputs, Dynamic without.

        Raises JobError: AlreadyQuantized, NothingToQuantize, OpsetTooOld, QuantizationFailed,
        InferenceFailed.
        """
        if info.quantized:
            raise bad_input(
                Reason.ALREADY_QUANTIZED,
                f"{field}: the model is quantized already; remove the step, or give the model in float",
            )
        if not info.opset:  # trees, of the operators in ai.onnx.ml alone
            raise bad_input(
                Reason.NOTHING_TO_QUANTIZE,
                f"{field}: the model uses no operator of ONNX's default domain, so none with weights to"
                " quantize; remove the step",
            )
        self._info, self._static, self._options, self._field = info, calibration is not None, options, field
        self._folder = tempfile.TemporaryDirectory()
        self._split = files.is_split(source)
        self.prepared = Path(self._folder.name) / MODEL_FILE
        self._imports = parse(source).opset_import
        self.opset_before = info.opset
        with self._refusals():
            self._prepare(source, calibration)
        self._ranges: dict[str, Range] = {}
        if calibration is not None and (names := self._observed()):
            self._ranges = ranges_of(
                self.prepared, names, calibration, info.inputs, options.calibration_method, field
            )

    def _prepare(self, source: Path, calibration: Arrays | None) -> None:
        """Constants folded, BatchNormalization in the Conv before it, an opset with axes, a name
        for every node; unless the model has nothing to quantize, which is said of it later.
        """
        if self._info.opset < OPSET and self._quantizable(parse(source)):
            raised(source, self.prepared, OPSET, calibration, self._info, self._field)
            source = self.prepared
        folded = self.prepared.with_name("folded") / MODEL_FILE
        folded.parent.mkdir()
        try:
            _fold_constants(source, folded)
        except ORT_ERRORS as error:
            tell_memory(error)
            files.copy(source, folded)
        model = parse(folded)
        graph.hoist_constants(model)
        graph.forget_shapes(model)
        graph.name_nodes(model)
        files.remove(self.prepared)
        files.save_graph(model, self.prepared)
        if files.is_split(folded):
            files.data_of(folded).rename(files.data_of(self.prepared))

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except JobError:
            raise
        except _ERRORS as error:
            tell_memory(error)
            raise refused(
                Reason.QUANTIZATION_FAILED,
                self._field,
                error,
                "remove the step, use the other method, or export with a newer opset",
            ) from None

    def _quantizable(self, model: ModelProto) -> bool:
        wanted = WEIGHTED_OPS if self._static else DYNAMIC_OPS
        return any(node.op_type in wanted for g in graph.graphs(model.graph) for node in g.node)

    def _nodes(self, model: ModelProto) -> list[NodeProto]:
        """The graph's nodes that Static can quantize: in float32, and with weights that are
        finite.
        """
        types = graph.element_types(model)
        return [
            node
            for node in model.graph.node
            if node.op_type in WEIGHTED_OPS
            and node.domain in ("", "ai.onnx")
            and any(types.get(name) == TensorProto.FLOAT for name in (*node.input[:2], node.output[0]))
        ]

    def _observed(self) -> list[str]:
        """Tensors whose ranges Static needs."""
        model = parse(self.prepared)
        constants = {t.name for t in model.graph.initializer}
        names: dict[str, None] = {}
        used = graph.uses(model.graph)
        for node in self._nodes(model):
            names |= {name: None for name in node.input[:2] if name not in constants}
            if (output := _joined_output(node, model.graph, used)) is not None:
                names[output] = None
        return list(names)

    def candidates(self) -> list[str]:
        """Names of the nodes that Static quantizes, in the graph's order."""
        model = parse(self.prepared)
        constants = {t.name for t in model.graph.initializer}
        return [
            n.name
            for n in self._nodes(model)
            if all(name in constants or self._ranges[name].usable for name in n.input[:2])
        ]

    def write(
        self, target: Path, *, left_out: Collection[str] = (), only: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Write the int8 model without the nodes ``left_out``, or with ``only`` some. Returns what
        was done, for the report.

        Raises JobError: NothingToQuantize, QuantizationFailed.
        """
        files.remove(target)
        with self._refusals():
            model = onnx.load(self.prepared)
            if self._static:
                rewriting = _Static(model, self._ranges, self._options)
                for node in self._nodes(model):
                    if node.name not in left_out and (only is None or node.name in only):
                        rewriting.quantize(node)
                rewriting.finish()
                left = rewriting.left
            else:
                dynamic = _Dynamic(model, self._options)
                dynamic.visit(model.graph)
                left = dynamic.left
            graph.drop_unused(model.graph)
            graph.tidy_imports(model, self._imports)
            for inner in graph.graphs(model.graph):
                sort_nodes(inner)
            operators = Counter(node.op_type for inner in graph.graphs(model.graph) for node in inner.node)
            files.save(model, target, 0 if self._split else ONE_FILE_BYTES)
        done = {
            name: count
            for name, count in sorted(operators.items())
            if name in {"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "DynamicQuantizeLSTM"}
        }
        if not done:
            raise self._nothing(operators, left)
        opset = {"opset": OPSET} if self.opset_before < OPSET else {}
        return {"operators": done} | ({"leftFloat": left} if left else {}) | opset

    def _nothing(self, operators: Counter[str], left: dict[str, str]) -> JobError:
        weighted = not self._static and operators.keys() & WEIGHTED_OPS
        remedy = "use method Static with calibration data" if weighted else "remove the step"
        if left:
            why = "; ".join(f"{name} {reason}" for name, reason in list(left.items())[:5])
            return bad_input(
                Reason.NOTHING_TO_QUANTIZE, f"{self._field}: no operator can be quantized: {why}; {remedy}"
            )
        return bad_input(
            Reason.NOTHING_TO_QUANTIZE,
            f"{self._field}: the model has no operator that this method quantizes"
            f" ({sorted(WEIGHTED_OPS if self._static else DYNAMIC_OPS)}, in float32), only"
            f" {sorted(operators)[:40]}; {remedy}",
        )


def _fold_constants(source: Path, target: Path) -> None:
    """ONNX Runtime's basic optimizations, which only leave standard operators; raises its
    errors.
    """
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    if files.is_split(source):
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA_FILE)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(files.SMALL_BYTES)
        )
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _joined_output(node: NodeProto, g: GraphProto, used: Counter[str]) -> str | None:
    """The tensor after a Conv, or after the Relu or Clip that alone reads it: quantized too, a Conv
    is computed in 8 bit. Outputs of the model keep all their digits.
    """
    if node.op_type != "Conv":
        return None
    name, outputs = node.output[0], {output.name for output in g.output}
    if used[name] == 1 and name not in outputs:
        after = next(
            (n for n in g.node if n.input and n.input[0] == name and n.op_type in _ACTIVATIONS), None
        )
        name = after.output[0] if after is not None else name
    return None if name in outputs or not used[name] else name


class _Static:
    """QuantizeLinear and DequantizeLinear around the chosen nodes of one model."""

    def __init__(self, model: ModelProto, ranges: dict[str, Range], options: Options) -> None:
        self.left: dict[str, str] = {}  # nodes that stay in float, and why
        self._model, self._graph, self._options, self._ranges = model, model.graph, options, ranges
        self._constants = {t.name: t for t in model.graph.initializer}
        self._names = graph.Names(model)
        self._used = graph.uses(model.graph)
        self._nodes: list[NodeProto] = []
        self._pairs: dict[tuple[str, int], str] = {}  # (tensor, bits) -> what is read instead
        self._outputs: dict[str, str] = {}

    def quantize(self, node: NodeProto) -> None:
        """The node's inputs and weights; its output where ONNX Runtime wants that."""
        left, right = node.input[0], node.input[1]
        for name in (left, right):
            why = self._why_not(name)
            if why:
                self.left[node.name] = why
                return
        bias = self._bias_of(node)
        # before the weights: their scales must be able to hold the bias
        scale = self._scale(left)
        axis = self._axis(node)
        if left in self._constants:
            node.input[0] = self._weight(left, None, None)[0]
        else:
            node.input[0] = self._pair(left, 8)
        if right not in self._constants:
            node.input[1] = self._pair(right, 7)
        else:
            least = None
            if bias is not None and scale is not None:
                least = self._least(bias, scale, node, axis)
            name, weight = self._weight(right, axis, least)
            node.input[1] = name
            if bias is not None and scale is not None:
                node.input[2] = self._add_bias(node.input[2], bias, scale, weight, node)
        output = _joined_output(node, self._graph, self._used)
        if output is not None and self._ranges[output].usable:
            self._outputs[output] = self._pair(output, 8)

    def _why_not(self, name: str) -> str:
        if name in self._constants:
            weight = self._constants[name]
            if weight.data_type != TensorProto.FLOAT or not graph.elements(weight):
                return f"multiplies with {name!r}, which is not of float32"
            if not np.isfinite(graph.values(weight)).all():
                return f"has weights that are not finite ({name!r})"
            return ""
        seen = self._ranges.get(name)
        if seen is None:
            return f"reads {name!r}, which was not measured"
        return "" if seen.usable else f"reads {name!r}, {seen.problem}"

    def _scale(self, name: str) -> float | None:
        """Of an activation that is read."""
        if name in self._constants:
            return None
        return float(self._numbers(name, 8)[0])

    def _axis(self, node: NodeProto) -> int | None:
        """The axis of a weight's output channels; None: one scale for all."""
        weight = self._constants.get(node.input[1])
        if weight is None or not self._options.per_channel:
            return None
        match node.op_type:
            case "Conv":
                return 0
            case "ConvTranspose":
                return 1
            case "Gemm":
                return 0 if graph.attributes(node).get("transB") else 1
        # ONNX Runtime's product of 8 bit knows channels of plain matrices only
        return 1 if len(weight.dims) == 2 else None

    def _numbers(self, name: str, bits: int) -> tuple[np.float32, np.int8]:
        """(scale, zero point) of an activation."""
        seen = self._ranges[name]
        low, high = min(0.0, seen.low), max(0.0, seen.high)
        steps = 1 << bits
        if self._options.symmetric:
            scale = np.float32(max(max(-low, high) / (steps / 2 - 1), _LEAST_SCALE))
            return (scale if high > low else np.float32(1)), np.int8(0)
        scale = np.float32(max((high - low) / (steps - 1), _LEAST_SCALE))
        if high == low:
            return np.float32(1), np.int8(0)
        return scale, np.int8(np.clip(round(-steps / 2 - low / float(scale)), -steps // 2, steps // 2 - 1))

    def _pair(self, name: str, bits: int) -> str:
        """What to read instead of an activation."""
        if (name, bits) not in self._pairs:
            scale, zero = self._numbers(name, bits)
            given = [
                self._add(np.asarray(scale), f"{name}_scale"),
                self._add(np.asarray(zero), f"{name}_zero_point"),
            ]
            stored, read = self._names.new(f"{name}_quantized"), self._names.new(f"{name}_dequantized")
            self._add_node("QuantizeLinear", [name, *given], stored)
            self._add_node("DequantizeLinear", [stored, *given], read)
            self._pairs[name, bits] = read
        return self._pairs[name, bits]

    def _weight(self, name: str, axis: int | None, least: NDArray[Any] | None) -> tuple[str, _Weight]:
        weight = quantized(graph.values(self._constants[name]), axis, least)
        given = [
            self._add(weight.numbers, f"{name}_quantized"),
            self._add(weight.scale, f"{name}_scale"),
            self._add(np.zeros_like(weight.scale, np.int8), f"{name}_zero_point"),
        ]
        read = self._names.new(f"{name}_dequantized")
        self._add_node("DequantizeLinear", given, read, **({} if axis is None else {"axis": axis}))
        return read, weight

    def _bias_of(self, node: NodeProto) -> Floats | None:
        """[channels] a constant bias that can be of 32 bit; None: there is none, or it stays as it
        is.
        """
        if (
            len(node.input) < 3
            or node.input[2] not in self._constants
            or node.input[1] not in self._constants
        ):
            return None
        own = graph.attributes(node)
        if own.get("alpha", 1.0) != 1.0 or own.get("beta", 1.0) != 1.0:
            return None
        values, weight = graph.values(self._constants[node.input[2]]), self._constants[node.input[1]]
        if values.dtype != np.float32 or not np.isfinite(values).all():
            return None
        match node.op_type:
            case "Conv":
                channels = weight.dims[0]
            case "ConvTranspose":
                channels = weight.dims[1] * int(own.get("group", 1))
            case _:
                channels = weight.dims[0 if own.get("transB") else 1]
        if values.size not in (1, channels) or (values.ndim > 1 and values.shape[-1] != values.size):
            return None
        return np.broadcast_to(values.reshape(-1), (channels,))

    def _least(self, bias: Floats, scale: float, node: NodeProto, axis: int | None) -> NDArray[Any]:
        """Scales of the weight with which the bias fits into 32 bit."""
        least = np.abs(bias.astype(np.float64)) / (_BIAS_LIMIT * scale)
        if axis is None:
            return np.asarray(least.max(initial=0))
        channels = self._constants[node.input[1]].dims[axis]
        return np.asarray(least.reshape(-1, channels).max(axis=0))

    def _add_bias(self, name: str, bias: Floats, scale: float, weight: _Weight, node: NodeProto) -> str:
        scales = np.float64(scale) * weight.scale.astype(np.float64)
        if weight.axis is not None and len(scales) != len(bias):  # groups of a ConvTranspose
            scales = np.tile(scales, len(bias) // len(scales))
        stored = np.maximum(scales, _LEAST_SCALE).astype(np.float32)
        numbers = np.clip(np.round(bias / stored), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        given = [
            self._add(numbers, f"{name}_quantized"),
            self._add(stored, f"{name}_scale"),
            self._add(np.zeros_like(stored, np.int32), f"{name}_zero_point"),
        ]
        read = self._names.new(f"{name}_dequantized")
        self._add_node("DequantizeLinear", given, read, **({} if weight.axis is None else {"axis": 0}))
        return read

    def _add(self, values: NDArray[Any], name: str) -> str:
        new = self._names.new(name)
        self._graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), new)
        )
        return new

    def _add_node(self, kind: str, inputs: Sequence[str], output: str, **more: Any) -> None:
        self._nodes.append(
            helper.make_node(kind, inputs, [output], name=self._names.new(f"{output}_node"), **more)
        )

    def finish(self) -> None:
        """Let the nodes that read a Conv's output read it in 8 bit, and add what was made."""
        for node in self._graph.node:
            for at, name in enumerate(node.input):
                if name in self._outputs:
                    node.input[at] = self._outputs[name]
        self._graph.node.extend(self._nodes)


class _Dynamic:
    """Products of 8 bit whose activations are measured as they come."""

    def __init__(self, model: ModelProto, options: Options) -> None:
        self.left: dict[str, str] = {}
        self._model, self._options = model, options
        self._constants = {t.name: t for t in model.graph.initializer}
        self._names = graph.Names(model)

    def visit(self, g: GraphProto) -> None:
        """Quantize the graph's nodes, and those of its bodies."""
        nodes: list[NodeProto] = []
        # an activation that several products read is measured once
        measured: dict[str, tuple[str, str, str]] = {}
        for node in g.node:
            for body in graph.bodies(node):
                self.visit(body)
            made = None
            if node.domain in ("", "ai.onnx") and node.op_type in DYNAMIC_OPS:
                made = self._lstm(node) if node.op_type == "LSTM" else self._product(node, measured)
            nodes += made if made is not None else [node]
        graph.put_nodes(g, nodes)

    def _weight(self, node: NodeProto, name: str, least: int = 2) -> NDArray[Any] | None:
        """A weight that can be quantized."""
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < least:
            return None
        if not graph.elements(tensor):
            return None
        values = graph.values(tensor)
        if np.isfinite(values).all():
            return values
        self.left[node.name] = f"has weights that are not finite ({name!r})"
        return None

    def _product(self, node: NodeProto, measured: dict[str, tuple[str, str, str]]) -> list[NodeProto] | None:
        own = graph.attributes(node)
        weight = self._weight(node, node.input[1])
        if weight is None or own.get("transA") or node.input[0] in self._constants:
            return None
        if own.get("transB"):
            weight = weight.T
        per_channel = self._options.per_channel and weight.ndim == 2
        stored = quantized(weight, weight.ndim - 1 if per_channel else None)
        nodes: list[NodeProto] = []
        if node.input[0] not in measured:
            measured[node.input[0]] = self._measure(node.input[0], nodes)
        activation, scale, zero = measured[node.input[0]]
        # float32 like all scales; alpha of a Gemm is one more factor
        factor = stored.scale.astype(np.float64) * float(own.get("alpha", 1.0))
        weights = self._add(stored.numbers, f"{node.input[1]}_quantized")
        factors = self._add(factor.astype(np.float32), f"{node.input[1]}_scale")
        inputs = [activation, weights, zero]
        whole = self._node(nodes, "MatMulInteger", inputs, f"{node.output[0]}_int32")
        numbers = self._node(nodes, "Cast", [whole], f"{node.output[0]}_cast", to=TensorProto.FLOAT)
        if not self._options.batched:  # the form that ONNX Runtime computes at once
            both = self._node(nodes, "Mul", [scale, factors], f"{node.output[0]}_scales")
        else:
            numbers = self._node(nodes, "Mul", [numbers, scale], f"{node.output[0]}_by_row")
            both = factors
        bias = node.input[2] if len(node.input) > 2 and node.input[2] and own.get("beta", 1.0) else ""
        if not bias:
            nodes.append(helper.make_node("Mul", [numbers, both], [node.output[0]], name=node.name))
            return nodes
        product = self._node(nodes, "Mul", [numbers, both], f"{node.output[0]}_product")
        if own.get("beta", 1.0) != 1.0:
            beta = self._add(np.array(own["beta"], np.float32), f"{node.output[0]}_beta")
            bias = self._node(nodes, "Mul", [bias, beta], f"{node.output[0]}_bias")
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], name=node.name))
        return nodes

    def _measure(self, name: str, nodes: list[NodeProto]) -> tuple[str, str, str]:
        """(numbers of 8 bit, their scale, their zero point) of an activation: of the whole tensor,
        or, batched, with a scale for every row.
        """
        if not self._options.batched:
            made = [self._names.new(f"{name}_{part}") for part in ("quantized", "scale", "zero_point")]
            nodes.append(
                helper.make_node(
                    "DynamicQuantizeLinear", [name], made, name=self._names.new(f"{made[0]}_node")
                )
            )
            return made[0], made[1], made[2]
        size = self._node(nodes, "Abs", [name], f"{name}_abs")
        if graph.opset_of(self._model) >= 18:
            axes = self._add(np.array([-1], np.int64), f"{name}_axes")
            largest = self._node(nodes, "ReduceMax", [size, axes], f"{name}_largest", keepdims=1)
        else:
            largest = self._node(nodes, "ReduceMax", [size], f"{name}_largest", axes=[-1], keepdims=1)
        steps = self._add(np.array(1 / 127, np.float32), f"{name}_step")
        least = self._add(np.array(_LEAST_SCALE, np.float32), f"{name}_least")
        scale = self._node(nodes, "Mul", [largest, steps], f"{name}_row_scale")
        scale = self._node(nodes, "Max", [scale, least], f"{name}_scale")
        divided = self._node(nodes, "Div", [name, scale], f"{name}_divided")
        rounded = self._node(nodes, "Round", [divided], f"{name}_rounded")
        # unsigned: with signed activations ONNX Runtime multiplies ten times as slowly
        middle = self._add(np.array(128, np.float32), f"{name}_middle")
        moved = self._node(nodes, "Add", [rounded, middle], f"{name}_moved")
        zero = self._add(np.array(128, np.uint8), f"{name}_zero_point")
        return self._node(nodes, "Cast", [moved], f"{name}_quantized", to=TensorProto.UINT8), scale, zero

    def _lstm(self, node: NodeProto) -> list[NodeProto] | None:
        """ONNX Runtime's LSTM of 8 bit. It takes one range for a whole batch."""
        weights = [self._weight(node, name, 3) for name in node.input[1:3]]
        if weights[0] is None or weights[1] is None:
            return None
        own = graph.attributes(node)
        if own.get("layout"):
            self.left[node.name] = "has the batch first (layout 1), which ONNX Runtime has not in 8 bit"
            return None
        if self._options.batched:
            self.left[node.name] = "would take one range for all rows of a batch (LSTM)"
            return None
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        for at, values in ((1, weights[0]), (2, weights[1])):
            turned = np.ascontiguousarray(values.transpose(0, 2, 1))  # [directions, in, 4 * hidden]
            parts = [quantized(one, 1 if self._options.per_channel else None) for one in turned]
            name = node.input[at]
            inputs[at] = self._add(np.stack([part.numbers for part in parts]), f"{name}_quantized")
            scale = np.stack([part.scale for part in parts])
            inputs += [
                self._add(scale, f"{name}_scale"),
                self._add(np.zeros(scale.shape, np.int8), f"{name}_zero_point"),
            ]
        made = helper.make_node(
            "DynamicQuantizeLSTM", inputs, node.output, name=node.name, domain="com.microsoft"
        )
        made.attribute.extend(a for a in node.attribute if a.name != "layout")
        graph.import_domain(self._model, "com.microsoft", 1)
        return [made]

    def _add(self, values: NDArray[Any], name: str) -> str:
        new = self._names.new(name)
        array = np.ascontiguousarray(values).reshape(values.shape)  # it makes [1] of []
        self._model.graph.initializer.append(numpy_helper.from_array(array, new))
        return new

    def _node(
        self, nodes: list[NodeProto], kind: str, inputs: Sequence[str], output: str, **more: Any
    ) -> str:
        name = self._names.new(output)
        nodes.append(helper.make_node(kind, inputs, [name], name=self._names.new(f"{name}_node"), **more))
        return name


def quantize(
    source: Path,
    target: Path,
    info: ModelInfo,
    calibration: Arrays | None,
    *,
    symmetric: bool,
    field: str,
    batched: bool = False,
) -> dict[str, Any]:
    """Write the int8 model with every node that can be quantized; returns what was done. Raises as
    ``Quantizer`` and its ``write``.
    """
    options = Options(symmetric=symmetric, batched=batched)
    with Quantizer(source, info, calibration, options, field) as quantizer:
        return quantizer.write(target)
