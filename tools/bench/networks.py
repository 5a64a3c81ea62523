"""Untrained classifiers of a size where compression means something, as ONNX files. The optimizer's
own training trains them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from demo.data import CLASSES, PIXELS, SIDE

INPUT = "image"
SCORES = "logits"
OPSET = 17
IR_VERSION = 8


class _Graph:
    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _weights(self, name: str, shape: tuple[int, ...], inputs: int) -> list[str]:
        """A weight and its bias, after He et al. 2015."""
        weight = self._rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / inputs) ** 0.5)
        self.weights += [
            numpy_helper.from_array(weight, f"{name}_w"),
            numpy_helper.from_array(np.zeros(shape[0], np.float32), f"{name}_b"),
        ]
        return [f"{name}_w", f"{name}_b"]

    def convolution(self, x: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        weights = self._weights(
            f"conv{len(self.nodes)}", (channels[1], channels[0], kernel, kernel), channels[0] * kernel**2
        )
        return self.node(
            "Relu",
            [
                self.node(
                    "Conv",
                    [x, *weights],
                    pads=[kernel // 2] * 4,
                    kernel_shape=[kernel] * 2,
                    strides=[stride] * 2,
                )
            ],
        )

    def dense(self, x: str, sizes: tuple[int, int]) -> str:
        return self.node(
            "Gemm", [x, *self._weights(f"dense{len(self.nodes)}", (sizes[1], sizes[0]), sizes[0])], transB=1
        )

    def save(self, shape: list[str | int], path: Path) -> None:
        self.nodes[-1].output[0] = SCORES
        graph = helper.make_graph(
            self.nodes,
            "digits",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", CLASSES])],
            self.weights,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="bench",
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def cnn(path: Path) -> None:
    """Three convolutions, two of them strided, and two dense layers: 1.1 million weights."""
    graph = _Graph(seed=1)
    x, side = INPUT, SIDE
    for channels, stride in (((1, 32), 2), ((32, 128), 2), ((128, 256), 1)):
        x = graph.convolution(x, channels, kernel=3, stride=stride)
        side = -(-side // stride)
    x = graph.node("Flatten", [x])
    x = graph.node("Relu", [graph.dense(x, (256 * side * side, 64))])
    graph.dense(x, (64, CLASSES))
    graph.save(["batch", 1, SIDE, SIDE], path)


def mlp(path: Path) -> None:
    """Three dense layers: 1.9 million weights."""
    graph = _Graph(seed=2)
    x = INPUT
    for sizes in ((PIXELS, 1024), (1024, 1024)):
        x = graph.node("Relu", [graph.dense(x, sizes)])
    graph.dense(x, (1024, CLASSES))
    graph.save(["batch", PIXELS], path)


def tree_inputs(features: int) -> list[tuple[str, Any]]:
    """What skl2onnx wants to know of the trees' input."""
    from skl2onnx.common import data_types

    kinds: Any = data_types  # it has no types
    return [(INPUT, kinds.FloatTensorType([None, features]))]


def student_of_trees(path: Path, features: int) -> None:
    """A small perceptron with the face of a scikit-learn classifier: classes and probabilities."""
    graph = _Graph(seed=3)
    x = graph.node("Relu", [graph.dense(INPUT, (features, 64))])
    scores = graph.node("Softmax", [graph.dense(x, (64, CLASSES))])
    graph.nodes[-1].output[0] = scores = "probabilities"
    graph.nodes.append(helper.make_node("ArgMax", [scores], ["label"], axis=1, keepdims=0))
    made = helper.make_graph(
        graph.nodes,
        "student",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", features])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
        ],
        graph.weights,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="bench"
    )
    path.write_bytes(model.SerializeToString(deterministic=True))
