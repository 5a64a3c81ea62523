"""Weight-only quantization of large matrices to 4 bit, as ONNX Runtime's MatMulNBits: less memory
to read, computed in float.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from modelrollout.contract.steps import Int4Step
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.graph import name_nodes
from modelrollout.optimizer.model.runtime import ORT_ERRORS, refused
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.distributions import INT4
from modelrollout.reasons import Reason

OPERATOR = "MatMulNBits"
_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError, RuntimeError, AssertionError)


def int4(step: Int4Step, work: StepContext) -> dict[str, Any]:
    """Write the model with its large matrices in blocks of 4 bit; raises JobError:
    AlreadyQuantized, NothingToQuantize, QuantizationFailed.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # it says two lines for every node, wherever logging was not set up before its import
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)
    if work.info.quantized:
        raise bad_input(
            Reason.ALREADY_QUANTIZED, f"{work.field}: the model is quantized already; remove one of the steps"
        )
    model = onnx.load(work.source)
    name_nodes(model)
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) == 2}
    _products_of(model, {name for name, size in sizes.items() if size >= step.min_weights})
    small = [
        n.name
        for n in model.graph.node
        if n.op_type == "MatMul" and sizes.get(n.input[1], 0) < step.min_weights
    ]
    try:
        quantizer: Any = MatMulNBitsQuantizer(
            model,
            bits=4,
            block_size=step.block_size,
            is_symmetric=True,
            nodes_to_exclude=small,
            op_types_to_quantize=("MatMul",),
        )
        quantizer.process()
    except _ERRORS as error:
        raise refused(Reason.QUANTIZATION_FAILED, work.field, error, "remove the step, or use int8") from None
    quantized: ModelProto = quantizer.model.model
    done = sum(node.op_type == OPERATOR for node in quantized.graph.node)
    if not done:
        raise bad_input(
            Reason.NOTHING_TO_QUANTIZE,
            f"{work.field}: the model has no matrix of {step.min_weights} weights or more in a MatMul; lower"
            " minWeights or use int8",
        )
    files.save(quantized, work.target, work.one_file)
    return {"blockSize": step.block_size, "operators": {OPERATOR: done}}


def _products_of(model: ModelProto, large: set[str]) -> None:
    """Turn each Gemm with a large constant into a MatMul and an Add: the quantizer knows no
    Gemm.
    """
    constants = {t.name: t for t in model.graph.initializer}
    uses = [name for node in model.graph.node for name in node.input]
    nodes = []
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = (
            not attributes.get("transA")
            and attributes.get("alpha", 1.0) == 1.0
            and attributes.get("beta", 1.0) == 1.0
        )
        if (
            node.op_type != "Gemm"
            or node.input[1] not in large
            or not plain
            or uses.count(node.input[1]) != 1
        ):
            nodes.append(node)
            continue
        weight = constants[node.input[1]]
        if attributes.get("transB"):
            weight.CopyFrom(
                numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weight).T), weight.name)
            )
        bias = [name for name in node.input[2:] if name]
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(
            helper.make_node("MatMul", [node.input[0], weight.name], [product], name=f"{node.name}_product")
        )
        if bias:
            nodes.append(
                helper.make_node("Add", [product, bias[0]], [node.output[0]], name=f"{node.name}_bias")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


STEP = StepDefinition(int4, distributions=lambda _: INT4, memory_factor=lambda _: 1.1)
