"""A boosted model of XGBoost or LightGBM as an ONNX model: the trees (or a linear function), and
what the objective makes of their sums.

Input ``x`` [n, features]. Outputs of a classifier: ``label`` int64 [n] and ``probabilities``
[n, classes], or ``scores`` [n, 1] where the objective gives no probabilities; of everything else
``variable`` [n, targets].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats.forest import Forest
from modelrollout.optimizer.formats.source_model import INPUT
from modelrollout.reasons import Reason

OPSET, IR_VERSION = 15, 8
ML_OPSET = 3  # of ai.onnx.ml: the first with float64, and what every Triton in use knows
ZERO = 1e-35  # LightGBM's kZeroThreshold: what is no larger is 0
# A served model has no data frame: it gets what the library numbered them by.
CATEGORY_CODES = (
    "features that were categories of a data frame take their numbers, in the order of the data frame's"
    " categories in training"
)

Answer = Literal["Probabilities", "Labels", "Scores", "Numbers"]
Link = Literal["Identity", "Sigmoid", "Exp", "Softmax", "Log1pExp", "SignedSquare"]


class Objective(NamedTuple):
    """What an objective makes of the sums, and what that is. ``scale``: the sums are multiplied
    first.

    Probabilities: of the classes, with their label. Labels: independent yes and no, each with the
    probability of yes. Scores: of class 1, which it is above 0.
    """

    answer: Answer
    link: Link
    scale: float = 1.0


@dataclass(frozen=True)
class Linear:
    """``x @ weights + bias`` ([features, targets], [targets]); a missing value counts as 0."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class Boosted:
    """A model's parts. ``missing``: a value of inputs that is read as missing, besides NaN.
    ``double``: inputs are float64.
    """

    body: Forest | Linear
    features: int
    objective: Objective
    double: bool = False
    missing: float | None = None

    @property
    def targets(self) -> int:
        """Number of sums."""
        return len(self.body.base) if isinstance(self.body, Forest) else len(self.body.bias)


def unsupported(kind: str, what: str) -> JobError:
    """A kind of model that is refused by its name."""
    return bad_input(
        Reason.OBJECTIVE_UNSUPPORTED,
        f"spec.model.uri: {kind} model with {what[:100]}, which is not converted; train it otherwise, or"
        " export the model to ONNX where it was trained",
    )


def link_function(objective: Objective) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
    """The model's outputs from raw sums [n, targets], by numpy: for a library that does not give
    them itself.
    """

    def softmax(sums: NDArray[Any]) -> list[NDArray[Any]]:
        powers = np.exp(sums - sums.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return [probabilities.argmax(axis=1), probabilities]

    def scores(sums: NDArray[Any]) -> list[NDArray[Any]]:
        return [(sums[:, 0] > 0).astype(np.int64), sums]

    return softmax if objective.link == "Softmax" else scores


def of_class_one(probability: NDArray[Any]) -> list[NDArray[Any]]:
    """Labels and probabilities of both classes from those of class 1, [n]."""
    return [(probability > 0.5).astype(np.int64), np.stack([1 - probability, probability], axis=1)]


class Nodes:
    """Nodes and constants of a graph, under names that begin with ``prefix``."""

    def __init__(self, prefix: str, *, double: bool) -> None:
        self.prefix, self.dtype = prefix, np.dtype(np.float64 if double else np.float32)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a new constant."""
        name = f"{self.prefix}constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype or self.dtype), name))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The name of the output of a new node."""
        number = len(self.nodes)
        output = output or f"{self.prefix}{op.lower()}{number}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"{self.prefix}{op}{number}", **attributes))
        return output


def sums_of(model: Boosted, nodes: Nodes, x: str) -> str:
    """The name of the sums, float32 [n, targets], of the inputs ``x``."""
    if model.missing is not None and not np.isnan(model.missing):
        missing = nodes.add("Equal", x, nodes.constant(model.missing))
        x = nodes.add("Where", missing, nodes.constant(np.nan), x)
    if isinstance(model.body, Linear):
        present = nodes.add("Where", nodes.add("IsNaN", x), nodes.constant(0), x)
        product = nodes.add("MatMul", present, nodes.constant(model.body.weights))
        return nodes.add("Add", product, nodes.constant(model.body.bias))
    forest = model.body
    if forest.whole != "Exact" and (categorical := forest.categorical()):
        mask = np.zeros(model.features, np.bool_)
        mask[categorical] = True
        if forest.whole == "CutOff":
            whole = nodes.add("Mul", nodes.add("Sign", x), nodes.add("Floor", nodes.add("Abs", x)))
        else:
            whole = nodes.add("Floor", x)
        x = nodes.add("Where", nodes.constant(mask, np.bool_), whole, x)
    if forest.zero_missing.any():
        zero = nodes.add("LessOrEqual", nodes.add("Abs", x), nodes.constant(ZERO))
        if not forest.zero_missing.all():
            zero = nodes.add("And", zero, nodes.constant(forest.zero_missing, np.bool_))
        x = nodes.add("Where", zero, nodes.constant(np.nan), x)
    sums = f"{nodes.prefix}sums"
    nodes.nodes.append(forest.node(f"{nodes.prefix}trees", [x], [sums], double=model.double))
    return sums


def finish(model: Boosted, nodes: Nodes, sums: str, label: str, scores: str) -> None:
    """The outputs of the model, under these names."""
    objective = model.objective

    def constant(value: float) -> str:
        return nodes.constant(value, np.float32)

    if objective.scale != 1.0:
        sums = nodes.add("Mul", sums, constant(objective.scale))
    values = sums
    match objective.link:
        case "Sigmoid":
            values = nodes.add("Sigmoid", sums)
        case "Exp":
            values = nodes.add("Exp", sums)
        case "Softmax":
            values = nodes.add("Softmax", sums, axis=-1)
        case "Log1pExp":
            values = nodes.add("Softplus", sums)
        case "SignedSquare":
            values = nodes.add("Mul", sums, nodes.add("Abs", sums))
    if objective.answer == "Scores":
        above = nodes.add("Cast", nodes.add("Greater", values, constant(0.0)), to=TensorProto.INT64)
        nodes.add("Squeeze", above, nodes.constant([1], np.int64), output=label)
    if objective.answer == "Probabilities":
        if model.targets == 1:
            values = nodes.add("Concat", nodes.add("Sub", constant(1.0), values), values, axis=1)
        nodes.add("ArgMax", values, output=label, axis=1, keepdims=0)
    nodes.add("Identity", values, output=scores)


def to_onnx(model: Boosted) -> ModelProto:
    """The whole model; raises JobError (ModelInvalid)."""
    nodes = Nodes("", double=model.double)
    classes = max(2, model.targets)
    name, width = {
        "Probabilities": ("probabilities", classes),
        "Labels": ("probabilities", model.targets),
        "Scores": ("scores", model.targets),
        "Numbers": ("variable", model.targets),
    }[model.objective.answer]
    finish(model, nodes, sums_of(model, nodes, INPUT), "label", name)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])]
    if model.objective.answer in ("Probabilities", "Scores"):
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    kind = TensorProto.DOUBLE if model.double else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes.nodes,
        "boosted",
        [helper.make_tensor_value_info(INPUT, kind, ["n", model.features])],
        outputs,
        nodes.constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
