"""Nets to ONNX: input ``image`` [batch, 784], output ``logits`` [batch, 10]. The operators are old
and plain, so that any runtime loads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from demo.data import CLASSES, INPUT, PIXELS
from demo.net import Array, Net

OUTPUT = "logits"
OPSET = 17
IR_VERSION = 8


class Graph:
    """Nodes and weights of a graph as it grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, value: npt.NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_{kind}", **attributes))
        return output

    def dense(self, x: str, weights: Array, bias: Array, output: str) -> str:
        return self.node(
            "Gemm", [x, self.weight(f"{output}_w", weights), self.weight(f"{output}_b", bias)], output
        )

    def perceptron(self, net: Net, x: str, output: str | None) -> str:
        """All of ``net``; with ``output`` None only its hidden layers."""
        for i, (weights, bias) in enumerate(net.layers[:-1]):
            x = self.node("Relu", [self.dense(x, weights, bias, f"dense{i}")], f"hidden{i}")
        return x if output is None else self.dense(x, *net.layers[-1], output)

    def save(self, path: Path) -> None:
        graph = helper.make_graph(
            self.nodes,
            "digits",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", PIXELS])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="demo"
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def plain(net: Net, path: Path) -> None:
    """The net as it is."""
    graph = Graph()
    graph.perceptron(net, INPUT, OUTPUT)
    graph.save(path)


def with_features(net: Net, features: Array, path: Path) -> None:
    """The net on the pixels and, beside them, linear ``features`` [784, n] of them in their own
    scale, in one tensor.
    """
    graph = Graph()
    extra = graph.node("MatMul", [INPUT, graph.weight("moments_w", features)], "moments")
    graph.perceptron(net, graph.node("Concat", [INPUT, extra], "described", axis=1), OUTPUT)
    graph.save(path)


def with_monte_carlo_dropout(net: Net, masks: Array, passes: int, path: Path) -> None:
    """The mean logits of one run of the last layer and of ``passes`` more, each under another row
    of dropout ``masks`` [n, hidden].

    The masks are balanced (each column's mean is 1), so the mean over whole rounds of them is what
    the net answers without dropout: the same answers, at many times the work. The passes come one
    after the other, so a batch costs little more than one image.
    """
    if passes % len(masks) or not np.allclose(masks.mean(axis=0), 1):
        raise ValueError("passes must be whole rounds of balanced masks")
    weights, bias = net.layers[-1]
    width = len(weights)
    graph = Graph()
    hidden = graph.perceptron(net, INPUT, None)
    first = graph.dense(hidden, weights, bias, "first")
    graph.weight("masks", masks)
    graph.weight("round", np.array(len(masks), np.int64))
    graph.weight("head_w", weights)
    graph.weight("head_b", bias)

    body = Graph()
    mask = body.node("Gather", ["masks", body.node("Mod", ["pass", "round"], "row")], "mask", axis=0)
    sample = body.node("Gemm", [body.node("Mul", ["hidden_in", mask], "kept"), "head_w", "head_b"], "sample")
    body.node("Identity", ["go_in"], "go_out")
    # ``hidden`` is handed over as an input of the loop and not captured: onnxruntime's quantizer
    # does not see what a body captures, and would fold the ReLU before it away.
    body.node("Identity", ["hidden_in"], "hidden_out")
    body.node("Add", ["sum_in", sample], "sum_out")
    state: list[tuple[str, int, list[str | int]]] = [
        ("go", TensorProto.BOOL, []),
        ("hidden", TensorProto.FLOAT, ["batch", width]),
        ("sum", TensorProto.FLOAT, ["batch", CLASSES]),
    ]
    one_pass = helper.make_graph(
        body.nodes,
        "one_pass",
        [
            helper.make_tensor_value_info("pass", TensorProto.INT64, []),
            *(helper.make_tensor_value_info(f"{n}_in", t, s) for n, t, s in state),
        ],
        [helper.make_tensor_value_info(f"{n}_out", t, s) for n, t, s in state],
    )
    counts = [graph.weight("passes", np.array(passes, np.int64)), graph.weight("go", np.array(True))]
    graph.nodes.append(
        helper.make_node(
            "Loop", [*counts, hidden, first], ["hidden_last", "sum"], name="passes_Loop", body=one_pass
        )
    )
    graph.node("Div", ["sum", graph.weight("runs", np.array(passes + 1, np.float32))], OUTPUT)
    graph.save(path)
