"""The example of docs/contributing/adding-an-optimizer-step.md: a step that rounds weights, written
against nothing but what every step may use.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from modelrollout.contract.steps import StepBase
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition


class RoundStep(StepBase):
    """Weights rounded to ``decimals`` places. A real step stands in contract/steps.py."""

    kind: Literal["round"] = "round"
    decimals: int = 2


def round_weights(step: RoundStep, work: StepContext) -> dict[str, Any]:
    """Write the model with rounded weights. Raises JobError: NothingToRound."""
    model = onnx.load(work.source)
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    if not weights:
        raise bad_input("NothingToRound", f"{work.field}: the model has no float32 weights; remove the step")
    for number, tensor in enumerate(weights, 1):
        rounded = np.round(numpy_helper.to_array(tensor), step.decimals)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        work.advance(number, len(weights))
    files.save(model, work.target, work.one_file)
    return {"decimals": step.decimals, "tensors": len(weights)}


STEP = StepDefinition(round_weights, distributions=lambda _: ("ml-dtypes",), memory_factor=lambda _: 1.0)
