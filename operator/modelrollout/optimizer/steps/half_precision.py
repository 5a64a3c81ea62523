"""Weights of 16 bit. The model takes and gives what it did before: clients notice nothing.

Float16 is also what operators compute in, so each is looked at: whether ONNX has it in float16,
whether ONNX Runtime runs it, and whether its numbers fit (activations are measured against 65,504).
What does not fit stays in float32, between casts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from modelrollout.contract.steps import HalfPrecisionStep
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model import files, graph
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.inspect import parse, sort_nodes
from modelrollout.optimizer.model.runtime import ORT_ERRORS, open_session
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.opset import raised
from modelrollout.optimizer.steps.ranges import extremes_of
from modelrollout.reasons import Reason
from modelrollout.triton.layout import MODEL_FILE

BFLOAT16_OPSET = 13  # Cast knows bfloat16 from here on
_SMALL = 16  # numbers; beside larger weights, what is smaller is not worth a Cast
_MOST = float(np.finfo(np.float16).max)
_ROOM = 2  # activations may be so many times larger than what was measured
_TRIES = 20  # operators that ONNX Runtime does not run in float16, found one by one

# Sensitive, or not in float16 in ONNX Runtime's CUDA provider (after its own converter's list).
_LEFT = frozenset(
    {
        "Cast", "CastLike", "Constant", "ConstantOfShape", "CumSum", "EyeLike", "Max", "Min", "Multinomial",
        "NonMaxSuppression", "Range", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike", "Bernoulli", "RoiAlign", "TopK", "Upsample", "QuantizeLinear",
        "DequantizeLinear", "DynamicQuantizeLinear",
    }
)  # fmt: skip
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def half_precision(step: HalfPrecisionStep, work: StepContext) -> dict[str, Any]:
    """Write the model with weights of 16 bit; raises JobError: AlreadyQuantized, OpsetTooOld,
    OutOfRange, NothingToConvert.
    """
    if work.info.quantized:
        raise bad_input(
            Reason.ALREADY_QUANTIZED, f"{work.field}: the model is quantized already; remove one of the steps"
        )
    model = onnx.load(work.source)
    graph.hoist_constants(model)
    weights = graph.float_weights(model)
    if not weights:
        raise bad_input(
            Reason.NOTHING_TO_CONVERT, f"{work.field}: the model has no float32 weights; remove the step"
        )
    if step.type == "BFloat16":
        if work.info.opset and work.info.opset < BFLOAT16_OPSET:
            raised(work.source, work.target, BFLOAT16_OPSET, None, work.info, work.field)
            model = onnx.load(work.target)
            graph.hoist_constants(model)
        converted = _bfloat16(model)
        if not converted:
            raise _nothing(work.field)
        files.save(model, work.target, work.one_file)
        return {"type": step.type, "weights": converted}
    _check_products(model, work.field)
    graph.name_nodes(model)
    with tempfile.TemporaryDirectory(dir=work.target.parent) as folder:
        prepared = Path(folder) / MODEL_FILE
        files.save(model, prepared, work.one_file)
        del model, weights
        too_large = _too_large(prepared, work)
        converted, left = _float16(prepared, work, too_large)
    return {"type": step.type, "weights": converted} | ({"leftFloat": left} if left else {})


def _nothing(field: str) -> JobError:
    return bad_input(
        Reason.NOTHING_TO_CONVERT,
        f"{field}: the model has no float32 weights in operators that compute in 16 bit; remove the step",
    )


def _check_products(model: ModelProto, field: str) -> None:
    """Raise OutOfRange for a matrix that float16 cannot hold: left in float32 nothing would be
    gained.
    """
    weights = graph.float_weights(model)
    for inner in graph.graphs(model.graph):
        for node in inner.node:
            for name in node.input[1:2] if node.op_type in _PRODUCTS else ():
                if name in weights:
                    values = np.abs(graph.values(weights[name]))
                    largest = float(values[np.isfinite(values)].max(initial=0))
                    if largest > _MOST:
                        raise bad_input(
                            Reason.OUT_OF_RANGE,
                            f"{field}: a weight of {largest:.3g} is beyond float16's range; use type:"
                            " BFloat16",
                        )


def _too_large(prepared: Path, work: StepContext) -> set[str]:
    """Tensors whose numbers float16 would not hold, on the inputs that the model is asked with."""
    model = parse(prepared)
    types = graph.element_types(model)
    names = [
        name
        for name in dict.fromkeys(
            (*(v.name for v in model.graph.input), *(n for node in model.graph.node for n in node.output))
        )
        if name and types.get(name) == TensorProto.FLOAT
    ]
    if not work.probe:
        return set()
    try:
        seen = extremes_of(prepared, names, work.probe, work.field)
    except JobError:  # a tensor that cannot be looked at: then the result is what is judged
        return set()
    return {
        name
        for name, r in seen.items()
        if r.elements and _ROOM * max((abs(v) for v in (r.low, r.high) if np.isfinite(v)), default=0) > _MOST
    }


class _Parameter(NamedTuple):
    type: str
    variadic: bool


class _Schema(NamedTuple):
    inputs: tuple[_Parameter, ...]
    outputs: tuple[_Parameter, ...]
    allowed: dict[str, frozenset[str]]


@cache
def _contrib() -> dict[str, Any]:
    return {s.name: s for s in ort_state.get_all_operator_schema() if s.domain == "com.microsoft"}


@cache
def _schema(kind: str, domain: str, opset: int) -> _Schema | None:
    try:
        if domain == "com.microsoft":
            raw = _contrib()[kind]
            inputs, outputs = (
                tuple(_Parameter(p.typeStr, "Variadic" in str(p.option)) for p in some)
                for some in (raw.inputs, raw.outputs)
            )
        elif domain in ("", "ai.onnx"):
            raw = onnx.defs.get_schema(kind, opset, "")
            inputs, outputs = (
                tuple(_Parameter(p.type_str, "Variadic" in str(p.option)) for p in some)
                for some in (raw.inputs, raw.outputs)
            )
        else:
            return None
    except (KeyError, onnx.defs.SchemaError):
        return None
    return _Schema(
        inputs,
        outputs,
        {t.type_param_str: frozenset(t.allowed_type_strs) for t in raw.type_constraints},
    )


def _takes_half(schema: _Schema, parameters: tuple[_Parameter, ...], at: int) -> bool:
    if not parameters:
        return False
    parameter = parameters[min(at, len(parameters) - 1)]
    return "tensor(float16)" in schema.allowed.get(parameter.type, ())


def _float16(prepared: Path, work: StepContext, too_large: Collection[str]) -> tuple[int, dict[str, str]]:
    """Write the model; what ONNX Runtime then does not run stays in float32. Returns (weights, what
    was left, with its reason).
    """
    left: dict[str, str] = {}
    for _ in range(_TRIES):
        model = onnx.load(prepared)
        rewriting = _Rewriting(model, too_large, left)
        converted = rewriting.run()
        if not converted:
            raise _nothing(work.field)
        files.save(model, work.target, work.one_file)
        del model
        trouble = _trouble(work.target, work.probe)
        if trouble is None or trouble not in rewriting.halves:
            break
        left[trouble] = "ONNX Runtime does not run it in float16"
    return converted, left | rewriting.left


def _trouble(path: Path, probe: Collection[Arrays]) -> str | None:
    """The node that ONNX Runtime names when it refuses the model, or to answer."""
    try:
        session = open_session(path, "it")
        for request in probe:
            session.run(None, request)
    except (JobError, *ORT_ERRORS) as error:  # type: ignore[misc]
        named = re.search(r"[Nn]ame: ?'([^']+)'|[Nn]ode:? ?\(([^)]+)\)|node '([^']+)'", str(error))
        return next((part for part in named.groups() if part), None) if named else None
    return None


class _Rewriting:
    """One model to float16. A tensor keeps its name in float32; its copy in float16 has one of its
    own, and each is made where it is first needed.
    """

    def __init__(self, model: ModelProto, too_large: Collection[str], left: Collection[str]) -> None:
        self.halves: set[str] = set()  # nodes that compute in float16
        self.left: dict[str, str] = {}
        self._model, self._too_large, self._by_name = model, too_large, left
        self._types = graph.element_types(model)
        self._names = graph.Names(model)
        self._weights = graph.float_weights(model)
        self._opset = graph.opset_of(model)
        self._stored: dict[str, str] = {}  # weight -> its name in float16

    def run(self) -> int:
        """Returns how many weights are in float16 now."""
        graph.forget_shapes(self._model)
        self._visit(self._model.graph)
        graph.drop_unused(self._model.graph)
        self._store_others()
        for inner in graph.graphs(self._model.graph):
            sort_nodes(inner)  # casts were added at the end
        return len(self._stored)

    def _store_others(self) -> None:
        """Weights that float32 computes with are stored in 16 bit, too: the large ones, or all
        where there are no others.
        """
        outputs = {output.name for output in self._model.graph.output}
        others = [
            t
            for t in graph.float_weights(self._model).values()
            if t.name not in outputs and self._holds(t.name)
        ]
        large = [t for t in others if graph.elements(t) >= _SMALL]
        casts = []
        for tensor in large or ([] if self._stored else others):
            name, stored = tensor.name, self._names.new(f"{tensor.name}_half")
            tensor.CopyFrom(numpy_helper.from_array(graph.values(tensor).astype(np.float16), stored))
            casts.append(self._cast(stored, name, TensorProto.FLOAT))
            self._stored[name] = stored
        self._model.graph.node.extend(casts)

    def _visit(self, g: GraphProto) -> None:
        for node in g.node:
            for body in graph.bodies(node):
                self._visit(body)
        fitting = [node for node in g.node if self._fits(node)]
        made = {name for node in fitting for name in node.output if self._is_float(name)}
        halves: dict[str, str] = {}
        casts: list[NodeProto] = []
        for node in fitting:
            schema = _schema(node.op_type, node.domain, self._opset)
            assert schema is not None
            self.halves.add(node.name)
            for at, name in enumerate(node.input):
                if self._is_float(name) and _takes_half(schema, schema.inputs, at):
                    node.input[at] = self._half(name, name in made, halves, casts)
            for at, name in enumerate(node.output):
                if name in made:
                    node.output[at] = halves.setdefault(name, self._names.new(f"{name}_half"))
        # in float32 where something else reads it
        used = graph.uses(g)
        for name in sorted(made):
            if used[name]:
                casts.append(self._cast(halves[name], name, TensorProto.FLOAT))
        g.node.extend(casts)

    def _cast(self, name: str, to: str, kind: int) -> NodeProto:
        return helper.make_node("Cast", [name], [to], name=self._names.new(f"{to}_cast"), to=kind)

    def _half(self, name: str, made: bool, halves: dict[str, str], casts: list[NodeProto]) -> str:
        if name in self._weights:
            if name not in self._stored:
                self._stored[name] = self._names.new(f"{name}_half")
                with np.errstate(over="ignore", under="ignore"):
                    values = graph.values(self._weights[name]).astype(np.float16)
                self._model.graph.initializer.append(numpy_helper.from_array(values, self._stored[name]))
            return self._stored[name]
        if name not in halves:
            halves[name] = self._names.new(f"{name}_half")
            if not made:
                casts.append(self._cast(name, halves[name], TensorProto.FLOAT16))
        return halves[name]

    def _is_float(self, name: str) -> bool:
        return bool(name) and self._types.get(name) == TensorProto.FLOAT

    def _fits(self, node: NodeProto) -> bool:
        """Whether the node can compute in float16."""
        if node.op_type in _LEFT or node.name in self._by_name or any(True for _ in graph.bodies(node)):
            return False
        if node.op_type == "Dropout" and len(node.input) > 2:  # it draws other numbers in float16
            return False
        schema = _schema(node.op_type, node.domain, self._opset)
        if schema is None or any("seq(" in t or "optional(" in t for t in _kinds(schema)):
            return False
        floats = [*node.input, *node.output]
        if not any(self._is_float(name) for name in floats):
            return False
        if any(not self._takes(schema, node, at) for at in range(len(node.output))):
            return False
        if not any(
            self._is_float(n) and _takes_half(schema, schema.inputs, i) for i, n in enumerate(node.input)
        ):
            return False
        for name in floats:
            if name in self._too_large or (name in self._weights and not self._holds(name)):
                self.left[node.name] = f"{name!r} has numbers beyond float16's range"
                return False
        return True

    def _takes(self, schema: _Schema, node: NodeProto, at: int) -> bool:
        return not self._is_float(node.output[at]) or _takes_half(schema, schema.outputs, at)

    def _holds(self, name: str) -> bool:
        values = np.abs(graph.values(self._weights[name]))
        return float(values[np.isfinite(values)].max(initial=0)) <= _MOST


def _kinds(schema: _Schema) -> Iterator[str]:
    for parameter in (*schema.inputs, *schema.outputs):
        yield parameter.type
        allowed = schema.allowed.get(parameter.type, frozenset())
        if allowed and all("tensor(" not in kind.replace("seq(tensor(", "") for kind in allowed):
            yield from allowed


def _bfloat16(model: ModelProto) -> int:
    """Store weights as bfloat16 and cast them back before use, which ONNX Runtime folds when it
    loads the model. Returns how many.
    """
    casts = []
    outputs = {output.name for output in model.graph.output}
    names = graph.Names(model)
    weights = [
        t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.name not in outputs
    ]
    large = [t for t in weights if graph.elements(t) >= _SMALL]
    for tensor in large or weights:
        name, stored = tensor.name, names.new(f"{tensor.name}_bfloat16")
        values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(
            helper.make_tensor(stored, TensorProto.BFLOAT16, values.shape, values.tobytes(), raw=True)
        )
        casts.append(
            helper.make_node("Cast", [stored], [name], name=names.new(f"{stored}_cast"), to=TensorProto.FLOAT)
        )
    graph.put_nodes(model.graph, [*casts, *model.graph.node])
    return len(casts)


STEP = StepDefinition(half_precision, memory_factor=lambda _: 1.5)
