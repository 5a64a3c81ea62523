"""Weights of 16 bit. The model takes and gives what it did before: clients notice nothing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers import float16  # the maintained copy of onnxconverter-common's

from modelrollout.contract.steps import HalfPrecisionStep
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.inspect import sort_nodes
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.reasons import Reason

to_float16: Any = float16.convert_float_to_float16  # it has no types

BFLOAT16_OPSET = 13  # Cast knows bfloat16 from here on
_SMALL = 16  # numbers; what is smaller is not worth a Cast


def half_precision(step: HalfPrecisionStep, work: StepContext) -> dict[str, Any]:
    """Write the model with weights of 16 bit; raises JobError: AlreadyQuantized, OpsetTooOld,
    OutOfRange, NothingToConvert.
    """
    if work.info.quantized:
        raise bad_input(
            Reason.ALREADY_QUANTIZED, f"{work.field}: the model is quantized already; remove one of the steps"
        )
    model = files.inferred(work.source) if files.is_split(work.source) else onnx.load(work.source)
    weights = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    if not weights:
        raise bad_input(
            Reason.NOTHING_TO_CONVERT, f"{work.field}: the model has no float32 weights; remove the step"
        )
    if step.type == "BFloat16":
        if work.info.opset < BFLOAT16_OPSET:
            raise bad_input(
                Reason.OPSET_TOO_OLD,
                f"{work.field}: opset {work.info.opset}, BFloat16 needs {BFLOAT16_OPSET} or later; export"
                " with opset 17",
            )
        converted = _bfloat16(model)
    else:
        largest = max(float(np.abs(numpy_helper.to_array(t)).max(initial=0)) for t in weights)
        if largest > float(np.finfo(np.float16).max):
            raise bad_input(
                Reason.OUT_OF_RANGE,
                f"{work.field}: a weight of {largest:.3g} is beyond float16's range; use type: BFloat16",
            )
        # it could not
        model = to_float16(model, keep_io_types=True, disable_shape_infer=files.is_split(work.source))
        sort_nodes(model.graph)  # it adds its casts at the end
        converted = sum(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
    files.save(model, work.target, work.one_file)
    return {"type": step.type, "weights": converted}


def _bfloat16(model: ModelProto) -> int:
    """Store weights as bfloat16 and cast them back before use, which ONNX Runtime folds when it
    loads the model. Returns how many.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        name, stored = tensor.name, f"{tensor.name}_bfloat16"
        values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(
            helper.make_tensor(stored, TensorProto.BFLOAT16, values.shape, values.tobytes(), raw=True)
        )
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{stored}_cast", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return len(casts)


STEP = StepDefinition(half_precision, memory_factor=lambda _: 1.5)
