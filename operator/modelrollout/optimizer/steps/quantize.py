"""Quantization to 8 bit with ONNX Runtime. The result is again an ONNX file with the same inputs
and outputs, in float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime.quantization
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Arrays, batch_rows, batches
from modelrollout.optimizer.model.inspect import ModelInfo, parse, sort_nodes
from modelrollout.optimizer.model.runtime import BATCH_ROWS, ORT_ERRORS, ort, refused, session_options
from modelrollout.reasons import Reason
from modelrollout.triton.layout import DATA_FILE, MODEL_FILE

q: Any = onnxruntime.quantization  # it has no types

# QuantizeLinear and DequantizeLinear know an axis, which per-channel scales need, from this opset
# on.
PER_CHANNEL_OPSET = 13

# ONNX Runtime's dynamic quantization would also turn Conv into ConvInteger, which it cannot run
# with signed weights on the CPU.
DYNAMIC_OPS = ("MatMul", "Gemm", "Gather", "Attention", "LSTM", "EmbedLayerNormalization")

# Operators with weights: they decide the size and most of the time.
WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Signed weights in 7 of their 8 bits. On a CPU without VNNI, ONNX Runtime adds pairs of products of
# activations (0 to 255) and weights in 16 bits (VPMADDUBSW), which saturate: 2 * 255 * 127 does not
# fit, 2 * 255 * 64 does. With all 8 bits a model would answer one way where the gate measures it
# and another way where it is served.
_WEIGHTS: dict[str, Any] = {"weight_type": q.QuantType.QInt8, "reduce_range": True}

# What the quantizer raises for models that it cannot handle.
_SHAPE_ERROR: type[Exception] = onnx.shape_inference.InferenceError
_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, _SHAPE_ERROR, ValueError, RuntimeError, AssertionError)


class _Reader(CalibrationDataReader):
    """Calibration inputs in batches, once."""

    def __init__(self, inputs: Arrays, rows: int, fill: bool) -> None:
        self._parts: Iterator[tuple[int, Arrays]] = batches(inputs, rows, fill)

    def get_next(self) -> Any:  # None ends it, which the base class does not say
        return next(self._parts, (0, None))[1]


def _tidy(path: Path) -> Counter[str]:
    """Drop the imports of operator sets that no node uses (ONNX Runtime adds its own, which other
    runtimes need not know); returns the operators.
    """
    model = parse(path)
    used = {
        node.domain for nodes in (model.graph.node, *(f.node for f in model.functions)) for node in nodes
    } | {f.domain for f in model.functions}
    imports = [o for o in model.opset_import if o.domain in used | {"", "ai.onnx"} or _has_subgraph(model)]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    sort_nodes(model.graph)
    files.save_graph(model, path)
    return Counter(node.op_type for node in model.graph.node)


def _has_subgraph(model: onnx.ModelProto) -> bool:
    """Whether nodes may hide in an If, Loop or Scan: then no import is dropped."""
    return any(
        attribute.HasField("g") or attribute.graphs
        for node in model.graph.node
        for attribute in node.attribute
    )


@dataclass(frozen=True)
class Options:
    """How to quantize. ``symmetric``: activations without a zero point, which TensorRT demands;
    elsewhere a zero point keeps more accuracy.
    """

    symmetric: bool = False
    calibration_method: Literal["MinMax", "Entropy", "Percentile"] = "MinMax"
    per_channel: bool = True


class Quantizer:
    """A model made ready for quantization; one measurement of its activations serves any choice of
    nodes. Close it (``with``).
    """

    def __init__(
        self, source: Path, info: ModelInfo, calibration: Arrays | None, options: Options, field: str
    ) -> None:
        """Static (QDQ) with calibration inputs, Dynamic without.

        Raises JobError: AlreadyQuantized, NothingToQuantize, OpsetTooOld, QuantizationFailed.
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
        self._per_channel = options.per_channel
        if info.opset < PER_CHANNEL_OPSET and self._per_channel:
            if calibration is not None:
                raise bad_input(
                    Reason.OPSET_TOO_OLD,
                    f"{field}: opset {info.opset}, static quantization per channel needs {PER_CHANNEL_OPSET}"
                    " or later; export with opset_version=17",
                )
            self._per_channel = False
        self._info, self._calibration, self._options, self._field = info, calibration, options, field
        self._folder = tempfile.TemporaryDirectory()
        self.prepared = Path(self._folder.name) / MODEL_FILE
        with self._refusals():
            # Symbolic inference is for transformers and needs sympy.
            if files.is_split(source):
                quant_pre_process(
                    source,
                    self.prepared,
                    skip_symbolic_shape=True,
                    save_as_external_data=True,
                    all_tensors_to_one_file=True,
                    external_data_location=DATA_FILE,
                    external_data_size_threshold=files.SMALL_BYTES,
                )
            else:
                quant_pre_process(source, self.prepared, skip_symbolic_shape=True)
        model = parse(self.prepared)
        name_nodes(model)
        files.save_graph(model, self.prepared)
        # The static quantizer does not see what the body of a Loop, If or Scan takes from outside,
        # and folds a ReLU before it away.
        self.captured = feeding_bodies(model) if calibration is not None else ()

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            with _bounded_sessions():
                yield
        except _ERRORS as error:
            raise refused(
                Reason.QUANTIZATION_FAILED,
                self._field,
                error,
                "remove the step, use the other method, or export with a newer opset",
            ) from None

    def candidates(self) -> list[str]:
        """Names of the nodes with weights that Static quantizes, in the graph's order."""
        return [
            n.name
            for n in parse(self.prepared).graph.node
            if n.op_type in WEIGHTED_OPS and n.name not in self.captured
        ]

    def write(
        self, target: Path, *, left_out: Collection[str] = (), only: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Write the int8 model without the nodes ``left_out``, or with ``only`` some. Returns what
        was done, for the report.

        Raises JobError: NothingToQuantize, QuantizationFailed.
        """
        files.remove(target)  # the quantizer would add to data that is there
        # then its result is, too, under the name that ours has
        split = files.is_split(self.prepared)
        with self._refusals():
            if self._calibration is None:
                q.quantize_dynamic(
                    self.prepared,
                    target,
                    op_types_to_quantize=list(DYNAMIC_OPS),
                    **_WEIGHTS,
                    per_channel=self._per_channel,
                    use_external_data_format=split,
                )
            else:
                q.quantize_static(
                    self.prepared,
                    target,
                    _Reader(self._calibration, *batch_rows(self._info.inputs, BATCH_ROWS, self._field)),
                    quant_format=q.QuantFormat.QDQ,
                    per_channel=self._per_channel,
                    activation_type=q.QuantType.QInt8,
                    **_WEIGHTS,
                    calibrate_method=q.CalibrationMethod[self._options.calibration_method],
                    nodes_to_quantize=list(only) if only is not None else None,
                    nodes_to_exclude=sorted({*left_out, *self.captured}),
                    use_external_data_format=split,
                    extra_options={"ActivationSymmetric": self._options.symmetric},
                    calibration_cache_path=self.prepared.with_name("ranges.json"),
                )
        operators = _tidy(target)
        done = {
            name: count
            for name, count in sorted(operators.items())
            if name in {"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "DynamicQuantizeLSTM"}
        }
        if not done:
            remedy = (
                "use method Static with calibration data" if self._calibration is None else "remove the step"
            )
            raise bad_input(
                Reason.NOTHING_TO_QUANTIZE,
                f"{self._field}: the model has no operator that this method quantizes ({sorted(operators)});"
                f" {remedy}",
            )
        return {"operators": done}


@contextmanager
def _bounded_sessions() -> Iterator[None]:
    """Limits the threads of the sessions that the quantizer opens: it takes default options, and
    has no parameter for them.
    """
    default = ort.SessionOptions
    ort.SessionOptions = session_options
    try:
        yield
    finally:
        ort.SessionOptions = default


def name_nodes(model: onnx.ModelProto) -> None:
    """A name for every node of the graph that has none, or shares one: nodes are left out by
    name.
    """
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def feeding_bodies(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes whose outputs the bodies of Loop, If and Scan take from outside."""
    taken: set[str] = set()

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            taken.update(node.input)
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    visit(body)

    for node in model.graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                visit(body)
    return tuple(node.name for node in model.graph.node if taken.intersection(node.output))


def quantize(
    source: Path, target: Path, info: ModelInfo, calibration: Arrays | None, *, symmetric: bool, field: str
) -> dict[str, Any]:
    """Write the int8 model with every node that can be quantized; returns what was done. Raises as
    ``Quantizer`` and its ``write``.
    """
    with Quantizer(source, info, calibration, Options(symmetric=symmetric), field) as quantizer:
        return quantizer.write(target)
