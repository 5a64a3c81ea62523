"""An ONNX classifier as a JAX function of its weights, and back. No maintained library does this
and installs beside today's onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Arrays, batch_rows, batches, expect_rows
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import BATCH_ROWS, open_session, score_output
from modelrollout.optimizer.training.operators import OPERATORS, UnsupportedError
from modelrollout.reasons import Reason

Parameters = dict[str, Any]

OLDEST_OPSET = 13
CONVERTED_OPSET = 17
PARITY = 1e-3  # largest difference to ONNX Runtime's scores, relative to the largest score

# Where a float constant is a weight that training may change: operator and positions of its inputs.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
}
# what may come after the logits: none changes which is the largest
_TO_SCORES = ("Softmax", "LogSoftmax", "Sigmoid", "Identity")


class Network:
    """The part of a graph that leads to its class scores. ``weights``: float32 arrays by the
    initializer's name.
    """

    def __init__(self, path: Path, sample: Arrays, field: str, output: str | None = None) -> None:
        """``sample``: a few inputs, to find the scores and to compare with ONNX Runtime.
        ``output``: that holds the scores; None: the only one that can.

        Raises JobError: AlreadyQuantized, TrainingUnsupported, OutputNotClasses, OutputUnknown,
        OutputAmbiguous.
        """
        self._field = field
        info = check(path)
        if info.quantized:
            raise bad_input(
                Reason.ALREADY_QUANTIZED,
                f"{field}: a quantized model cannot be trained; put this step before int8 and int4",
            )
        expect_rows(sample, info.inputs, f"{field}.data")
        rows, fill = batch_rows(info.inputs, BATCH_ROWS, field)
        self.fixed_rows = rows if fill else None
        self.model = _modern(onnx.load(path), field)
        count, part = next(batches(sample, rows, fill))
        session = open_session(path, field)
        outputs = session.run(None, part)
        index = score_output(outputs, [o.name for o in session.get_outputs()], count, field, output)
        self.classes = int(outputs[index].size // rows) if fill else int(outputs[index].size // count)
        self.scores = self.model.graph.output[index].name
        graph = self.model.graph
        self._made = {name: node for node in graph.node for name in node.output}
        self.logits = self._logits()
        self._nodes = self._needed()
        known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        trained = {
            node.input[i]
            for node in self._nodes
            for i in _WEIGHTS.get(node.op_type, ())
            if i < len(node.input) and node.input[i] in known
        }
        self.weights = {name: known[name] for name in sorted(trained) if known[name].dtype == np.float32}
        self._constants = {name: value for name, value in known.items() if name not in self.weights}
        if not self.weights:
            raise bad_input(
                Reason.TRAINING_UNSUPPORTED,
                f"{field}: the model has no float32 weights to train; give it in float32",
            )
        self._compare(part, outputs[index])

    def _logits(self) -> str:
        name: str = self.scores
        while (node := self._made.get(name)) is not None and node.op_type in _TO_SCORES:
            name = node.input[0]
        return name

    def _needed(self) -> list[onnx.NodeProto]:
        """Nodes that the scores depend on, in order; raises TrainingUnsupported for one that is not
        known.
        """
        tensors, nodes = {self.scores}, []
        for node in reversed(self.model.graph.node):
            if tensors.intersection(node.output):
                nodes.append(node)
                tensors.update(node.input)
        unknown = sorted(
            {
                n.op_type
                for n in nodes
                if n.op_type not in {*OPERATORS, "Constant"} or n.domain not in ("", "ai.onnx")
            }
        )
        if unknown:
            raise bad_input(
                Reason.TRAINING_UNSUPPORTED,
                f"{self._field}: this operator cannot train through {', '.join(unknown)}; train the model"
                " where it was made, or leave the step out",
            )
        return nodes[::-1]

    def run(self, weights: Parameters, inputs: Mapping[str, Any], tensor: str | None = None) -> Any:
        """The logits [n, classes] (or the values of ``tensor``) for inputs of one batch."""
        values: dict[str, Any] = {"": None, **self._constants, **weights, **inputs}
        target = tensor or self.logits
        for node in self._nodes:
            if target in values:
                break
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                values[node.output[0]] = _constant(attributes)
            else:
                values[node.output[0]] = OPERATORS[node.op_type](
                    attributes, *(values[name] for name in node.input)
                )
        value = values[target]
        return value.reshape((value.shape[0], -1)) if tensor is None else value

    def _compare(self, inputs: Arrays, expected: NDArray[Any]) -> None:
        """Compare the scores with ONNX Runtime's: an operator implemented differently would be
        trained wrongly without an error.
        """
        try:
            scores = np.asarray(
                jax.jit(partial(self.run, tensor=self.scores))(
                    self.weights, {k: jnp.asarray(v) for k, v in inputs.items()}
                )
            )
        except (UnsupportedError, TypeError, ValueError, KeyError, IndexError, NotImplementedError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise bad_input(
                Reason.TRAINING_UNSUPPORTED,
                f"{self._field}: {line}; train the model where it was made, or leave the step out",
            ) from None
        scale = float(np.abs(expected).max()) or 1.0
        if scores.shape != expected.shape or float(np.abs(scores - expected).max()) > PARITY * scale:
            raise bad_input(
                Reason.TRAINING_UNSUPPORTED,
                f"{self._field}: the training framework and ONNX Runtime give different scores for this"
                " model; train it where it was made",
            )

    def save(self, weights: Mapping[str, Any], path: Path, one_file: int = ONE_FILE_BYTES) -> None:
        """Write the model with these weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(
                    numpy_helper.from_array(np.asarray(weights[tensor.name], np.float32), tensor.name)
                )
        files.save(model, path, one_file)


def _constant(attributes: dict[str, Any]) -> NDArray[Any]:
    name, value = next(iter(attributes.items()))
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value, np.float32 if "float" in name else np.int64)


def _modern(model: onnx.ModelProto, field: str) -> onnx.ModelProto:
    """With an opset whose operators are the ones here; raises JobError (TrainingUnsupported)."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, CONVERTED_OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        line = (str(error).splitlines() or [""])[0][:200]
        raise bad_input(
            Reason.TRAINING_UNSUPPORTED,
            f"{field}: opset {opset} is too old, and cannot be converted: {line}; export with opset 17",
        ) from None
