"""TensorFlow Lite (LiteRT), run by LiteRT's own interpreter: it has no operators of TensorFlow,
which could do anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats.source_model import FIELD, Format, SourceModel
from modelrollout.optimizer.formats.tf_graph import OPSET, arranged, no_inputs, operator_refused, served_type
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.runtime import cpu_limit
from modelrollout.reasons import Reason

_CUSTOM = 32  # BuiltinOperator.CUSTOM of the schema: TensorFlow's operators (Flex...) and custom ones


def load(path: Path, folder: Path, _: Declared) -> SourceModel:
    """Raises JobError: OperatorRefused, ServingSignatureMissing, TypeUnsupported."""
    from ai_edge_litert.interpreter import Interpreter
    from tf2onnx.tflite.Model import Model

    content = path.read_bytes()
    model = Model.GetRootAsModel(content, 0)
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        if code.CustomCode() is not None or code.BuiltinCode() == _CUSTOM:
            raise operator_refused((code.CustomCode() or b"CUSTOM").decode(errors="replace"))
    interpreter = Interpreter(model_content=content, num_threads=cpu_limit())
    interpreter.allocate_tensors()
    inputs, outputs = _tensors(interpreter)
    if not inputs:
        raise no_inputs()

    def predict(arrays: Arrays) -> list[NDArray[Any]]:
        for name, detail in inputs.items():
            if detail["shape_signature"].size and detail["shape_signature"][0] < 0:
                interpreter.resize_tensor_input(detail["index"], arrays[name].shape)
        interpreter.allocate_tensors()
        for name, detail in inputs.items():
            interpreter.set_tensor(detail["index"], arrays[name].astype(detail["dtype"]))
        interpreter.invoke()
        return [np.array(interpreter.get_tensor(detail["index"])) for detail in outputs.values()]

    def convert() -> ModelProto:
        import tensorflow as tf
        import tf2onnx

        for name, detail in (inputs | outputs).items():
            served_type(name, tf.as_dtype(detail["dtype"]))
        converted: ModelProto = tf2onnx.convert.from_tflite(str(path), opset=OPSET)[0]
        _rename(converted, {detail["name"]: name for name, detail in (inputs | outputs).items()})
        return arranged(converted, list(inputs), list(outputs))

    return SourceModel(convert, predict)


def _tensors(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs by the names of the model's signature, or by their own where it has
    none.
    """
    signatures = interpreter.get_signature_list()
    if len(signatures) > 1:
        raise bad_input(
            Reason.SERVING_SIGNATURE_MISSING,
            f"{FIELD}.uri: the model has the signatures {sorted(signatures)[:8]}; convert it with the one"
            " that is to be served",
        )
    if signatures:
        runner = interpreter.get_signature_runner()
        return runner.get_input_details(), runner.get_output_details()
    inputs, outputs = (
        {d["name"]: d for d in details}
        for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    return inputs, outputs


def _rename(model: ModelProto, names: dict[str, str]) -> None:
    """Tensors of the main graph; TFLite's graphs inside of others take theirs as inputs."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]


FORMAT = Format(
    "TFLite",
    ("tensorflow", "ai_edge_litert", "tf2onnx"),
    "a .tflite file",
    lambda start: start.head[4:8] == b"TFL3",
    load,
)
