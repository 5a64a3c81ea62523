"""Quantization to 8 bit with ONNX Runtime. The result is again an ONNX file with the same inputs and outputs, in float."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime.quantization
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.data import Arrays, batch_rows, batches
from modelrollout.optimizer.model import ModelInfo
from modelrollout.optimizer.predict import BATCH_ROWS, ORT_ERRORS, refused

q: Any = onnxruntime.quantization  # it has no types

# QuantizeLinear and DequantizeLinear know an axis, which per-channel scales need, from this opset on.
PER_CHANNEL_OPSET = 13

# ONNX Runtime's dynamic quantization would also turn Conv into ConvInteger, which it cannot run with signed weights on the CPU.
DYNAMIC_OPS = ("MatMul", "Gemm", "Gather", "Attention", "LSTM", "EmbedLayerNormalization")

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
    """Drop the imports of operator sets that no node uses (ONNX Runtime adds its own, which other runtimes need not know); returns the operators."""
    model = onnx.load(path)
    used = {node.domain for nodes in (model.graph.node, *(f.node for f in model.functions)) for node in nodes} | {f.domain for f in model.functions}
    kept = [o for o in model.opset_import if o.domain in used | {"", "ai.onnx"} or _has_subgraph(model)]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, path)
    return Counter(node.op_type for node in model.graph.node)


def _has_subgraph(model: onnx.ModelProto) -> bool:
    """Whether nodes may hide in an If, Loop or Scan: then no import is dropped."""
    return any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute)


def quantize(source: Path, target: Path, info: ModelInfo, calibration: Arrays | None, *, symmetric: bool, field: str) -> dict[str, Any]:
    """Write the int8 model: Static (QDQ, per channel) with calibration inputs, Dynamic without. Returns what was done, for the report.

    ``symmetric``: activations without a zero point, which TensorRT demands; elsewhere a zero point keeps more accuracy. Raises JobError:
    AlreadyQuantized, OpsetTooOld, NothingToQuantize, QuantizationFailed.
    """
    if info.quantized:
        raise bad_input("AlreadyQuantized", f"{field}: the model is quantized already; remove the step, or give the model in float")
    if calibration is not None and info.opset < PER_CHANNEL_OPSET:
        raise bad_input(
            "OpsetTooOld",
            f"{field}: opset {info.opset}, static quantization per channel needs {PER_CHANNEL_OPSET} or later; export with opset_version=17",
        )
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)  # symbolic inference is for transformers and needs sympy
            if calibration is None:
                q.quantize_dynamic(
                    prepared,
                    target,
                    op_types_to_quantize=list(DYNAMIC_OPS),
                    weight_type=q.QuantType.QInt8,
                    per_channel=info.opset >= PER_CHANNEL_OPSET,
                )
            else:
                q.quantize_static(
                    prepared,
                    target,
                    _Reader(calibration, *batch_rows(info.inputs, BATCH_ROWS, field)),
                    quant_format=q.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=q.QuantType.QInt8,
                    weight_type=q.QuantType.QInt8,
                    calibrate_method=q.CalibrationMethod.MinMax,
                    extra_options={"ActivationSymmetric": symmetric},
                )
        except _ERRORS as error:
            raise refused("QuantizationFailed", field, error, "remove the step, use the other method, or export with a newer opset") from None
    operators = _tidy(target)
    done = {
        name: count
        for name, count in sorted(operators.items())
        if name in {"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "DynamicQuantizeLSTM"}
    }
    if not done:
        remedy = "use method Static with calibration data" if calibration is None else "remove the step"
        raise bad_input("NothingToQuantize", f"{field}: the model has no operator that this method quantizes ({sorted(operators)}); {remedy}")
    return {"method": "Dynamic" if calibration is None else "Static", "operators": done, "symmetric": symmetric if calibration is not None else False}
