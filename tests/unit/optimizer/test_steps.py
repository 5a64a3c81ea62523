"""int8 and what it leaves out, 16 bit, 4 bit, graph optimization; all steps in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import (
    DistillStep,
    GraphStep,
    HalfPrecisionStep,
    Int4Step,
    Int8Step,
    PruneStep,
    Step,
    Training,
)
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.graph import opset_of
from modelrollout.optimizer.model.inspect import check, sort_nodes
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.optimizer.steps import distributions
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.distributions import versions_of
from modelrollout.optimizer.steps.graph import graph
from modelrollout.optimizer.steps.half_precision import half_precision
from modelrollout.optimizer.steps.int4 import int4
from modelrollout.optimizer.steps.int8 import int8
from modelrollout.optimizer.steps.run import Applied, field_of, run_steps
from modelrollout.testing.object_store import classifier, samples, save
from tests.unit.optimizer.network_fakes import Builder, depthwise, images, plain, residual, work

CALIBRATION = DataSet(location=Location(uri="s3://data/x"))


def scores(path: Path, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(path).run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("method", ["MinMax", "Entropy", "Percentile"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_calibration_methods(
    tmp_path: Path, method: Literal["MinMax", "Entropy", "Percentile"], per_channel: bool
) -> None:
    data = images(64)
    w = work(save(plain(), tmp_path), data={"calibration": data})
    done = int8(
        Int8Step(
            method="Static", calibration=CALIBRATION, calibration_method=method, per_channel=per_channel
        ),
        w,
    )
    assert (done["calibrationMethod"], done["perChannel"]) == (method, per_channel)
    scales = [
        t
        for t in onnx.load(w.target).graph.initializer
        if t.name.endswith("_scale") and t.dims and t.dims[0] > 1
    ]
    assert bool(scales) == per_channel
    assert (
        scores(w.target, data.inputs["x"]).argmax(1) == scores(w.source, data.inputs["x"]).argmax(1)
    ).mean() > 0.8


def fragile() -> onnx.ModelProto:
    """Two branches are added before the scores: one does not survive 8 bit, because a huge value
    that cancels out shares its range.
    """
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4, 16)).astype(np.float32)
    huge = np.concatenate([first * 1, np.full((4, 1), 1e6, np.float32)], axis=1)
    back = np.concatenate([np.linalg.pinv(first), np.zeros((1, 4), np.float32)]).astype(np.float32)
    b = Builder()
    x = b.node("MatMul", "x", b.constant(value=huge))
    x = b.node("MatMul", x, b.constant(value=back))
    x = b.node("MatMul", x, b.constant(value=rng.normal(size=(4, 32)).astype(np.float32)))
    b.node("MatMul", x, b.constant(value=rng.normal(size=(32, 4)).astype(np.float32)))
    return b.model(["n", 4])


@pytest.mark.parametrize("labelled", [True, False])
def test_what_does_not_survive_stays_in_float(tmp_path: Path, labelled: bool) -> None:
    source = save(fragile(), tmp_path)
    x = samples(200, 3)[0]
    answers = scores(source, x).argmax(1)
    data = Data({"x": x}, answers if labelled else None, {})
    step = Int8Step(method="Static", calibration=CALIBRATION, leave_out="BySensitivity")
    plain_loss = int8(
        step.model_copy(update={"leave_out": "Never"}),
        work(source, data={"calibration": data}, max_drop=0.05),
    )
    assert "leftOut" not in plain_loss
    w = work(source, data={"calibration": data}, max_drop=0.05)
    done = int8(step, w)
    assert done["lossWithAll"] > 0.2
    assert 1 <= len(done["leftOut"]) <= 3
    assert list(done["sensitivity"])[: len(done["leftOut"])] == done["leftOut"]
    assert done["calibrationLoss"] <= 0.05
    assert (scores(w.target, x).argmax(1) == answers).mean() >= 0.95
    assert done["operators"]["QuantizeLinear"]


def test_a_model_of_classes_alone_is_ranked_by_them(tmp_path: Path) -> None:
    model = fragile()
    (scored,) = model.graph.output
    model.graph.node.append(helper.make_node("ArgMax", [scored.name], ["class"], axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["n"]))
    model.graph.output.remove(scored)
    data = Data({"x": samples(200, 3)[0]}, None, {})
    step = Int8Step(method="Static", calibration=CALIBRATION, leave_out="BySensitivity")
    done = int8(step, work(save(model, tmp_path), data={"calibration": data}, max_drop=0.05))
    assert done["leftOut"] and done["calibrationLoss"] <= 0.05 < done["lossWithAll"]


def test_the_smallest_of_the_gates_budgets_counts(tmp_path: Path) -> None:
    data = {"calibration": Data({"x": samples(200, 3)[0]}, None, {})}
    source = save(fragile(), tmp_path)
    step = Int8Step(method="Static", calibration=CALIBRATION, leave_out="BySensitivity")
    wide, narrow = GateMetric(max_drop=0.9), GateMetric(name="f1", max_drop=0.05)
    loose = int8(step, work(source, data=data, gate=Gate(data=CALIBRATION, metrics=(wide,))))
    assert loose["leftOut"] == []
    strict = int8(step, work(source, data=data, gate=Gate(data=CALIBRATION, metrics=(wide, narrow))))
    assert strict["leftOut"] and strict["calibrationLoss"] <= 0.05 < strict["lossWithAll"]
    # a drop relative to a value that only the gate's data gives is no budget here
    warnings: list[str] = []
    relative = (GateMetric(name="f1", max_drop_relative=0.1),)
    gate = Gate(data=CALIBRATION, metrics=relative)
    int8(step, work(source, data=data, gate=gate, warnings=warnings))
    assert any("no maxDrop" in text for text in warnings)


def test_nothing_is_left_out_within_the_budget(tmp_path: Path) -> None:
    step = Int8Step(method="Static", calibration=CALIBRATION, leave_out="BySensitivity")
    data = Data({"x": samples(200, 3)[0]}, None, {})
    done = int8(step, work(save(classifier(), tmp_path), data={"calibration": data}, max_drop=0.1))
    assert done["leftOut"] == [] and "sensitivity" not in done
    warnings: list[str] = []
    int8(step, work(save(classifier(), tmp_path), data={"calibration": data}, warnings=warnings))
    assert any("no maxDrop" in text for text in warnings)


def looping() -> onnx.ModelProto:
    """A ReLU whose output only the body of a Loop takes, from outside: x -> relu(x w) summed three
    times -> scores.
    """
    rng = np.random.default_rng(0)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["sum_in", "hidden"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, ["n", 16]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, ["n", 16]),
        ],
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("Sub", ["hidden", "hidden"], ["zero"]),
        helper.make_node("Loop", ["three", "go", "zero"], ["sum"], body=body),
        helper.make_node("Gemm", ["sum", "w2"], ["scores"]),
    ]
    constants = {
        "w1": rng.normal(size=(4, 16)).astype(np.float32),
        "w2": rng.normal(size=(16, 4)).astype(np.float32),
        "three": np.array(3, np.int64),
        "go": np.array(True),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_a_loops_body_takes_is_not_folded_away(tmp_path: Path) -> None:
    x = samples(200, 3)[0]
    warnings: list[str] = []
    w = work(save(looping(), tmp_path), data={"calibration": Data({"x": x}, None, {})}, warnings=warnings)
    done = int8(Int8Step(method="Static", calibration=CALIBRATION), w)
    assert done["operators"]["QuantizeLinear"] and not warnings
    assert (scores(w.target, x).argmax(1) == scores(w.source, x).argmax(1)).mean() > 0.9


@pytest.mark.parametrize("kind", ["Float16", "BFloat16"])
@pytest.mark.parametrize("network", [plain, residual, depthwise])
def test_half_the_size_and_the_same_face(
    tmp_path: Path, kind: Literal["Float16", "BFloat16"], network: Any
) -> None:
    w = work(save(network(), tmp_path))
    half_precision(HalfPrecisionStep(type=kind), w)
    assert w.target.stat().st_size < 0.62 * w.source.stat().st_size or network is depthwise
    before, after = check(w.source), check(w.target)
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    x = images(32).inputs["x"]
    one, two = scores(w.source, x), scores(w.target, x)
    assert np.abs(one - two).max() < 0.03 * np.abs(one).max()


def test_what_16_bit_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(JobError) as error:
        half_precision(HalfPrecisionStep(), work(save(fragile(), tmp_path)))
    assert error.value.reason == "OutOfRange"
    w = work(save(fragile(), tmp_path))
    half_precision(HalfPrecisionStep(type="BFloat16"), w)


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    """Where ONNX's converter keeps the answers: what is needed knows no axis, or no bfloat16."""
    for step in (STATIC, Int8Step(), HalfPrecisionStep(type="BFloat16")):
        made = applied(two_products(opset=9), tmp_path, step)
        assert opset_of(onnx.load(made.path)) == 13
        x = rows().inputs["x"]
        expected = scores(save(two_products(opset=9), tmp_path), x)
        assert np.abs(scores(made.path, x) - expected).max() < 0.1 * np.abs(expected).max()


def test_four_bits(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Relu", b.node("Gemm", "x", b.constant(512, 4), b.constant(512), transB=1))
    x = b.node("Relu", b.node("Gemm", x, b.constant(512, 512), b.constant(512), transB=1))
    b.node("MatMul", x, b.constant(512, 4))
    w = work(save(b.model(["n", 4]), tmp_path))
    done = int4(Int4Step(block_size=32), w)
    assert done["operators"] == {"MatMulNBits": 1}
    assert w.target.stat().st_size < 0.2 * w.source.stat().st_size
    x = samples(300)[0]
    assert (scores(w.target, x).argmax(1) == scores(w.source, x).argmax(1)).mean() > 0.9
    assert check(w.target).quantized
    with pytest.raises(JobError) as error:
        int4(Int4Step(), work(w.target, target=tmp_path / "again.onnx"))
    assert error.value.reason == "AlreadyQuantized"
    with pytest.raises(JobError) as error:
        int4(Int4Step(min_weights=10**6), work(w.source))
    assert error.value.reason == "NothingToQuantize" and "minWeights" in error.value.message


def test_the_graph_gets_simpler_and_says_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        w = work(save(residual(), tmp_path), target=tmp_path / name)
        done = graph(GraphStep(), w)
    assert done["nodesAfter"] < done["nodesBefore"]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    x = images(16).inputs["x"]
    assert np.allclose(scores(w.target, x), scores(w.source, x), atol=1e-4)
    assert {o.domain for o in onnx.load(w.target).opset_import} == {""}


def test_steps_in_order(tmp_path: Path) -> None:
    source = save(residual(), tmp_path)
    recipe = (GraphStep(), Int8Step(method="Static", calibration=CALIBRATION))
    field = "spec.optimization.steps[1].int8.calibration"
    applied = run_steps(
        recipe,
        source,
        tmp_path,
        {field: images(32)},
        {},
        gate=None,
        symmetric=False,
        hardware="any",
        advance=lambda *_: None,
    )
    assert [done["kind"] for done in applied.done] == ["graph", "int8"]
    assert applied.done[1]["sizeBefore"] == applied.done[0]["sizeAfter"]
    assert applied.path.stat().st_size == applied.done[1]["sizeAfter"] < source.stat().st_size


def test_a_step_names_the_tools_that_shape_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelrollout.contract.steps import PruneStep, Training

    training = Training(data=CALIBRATION)
    assert versions_of(PruneStep(sparsity=0.5), "f") == {}
    assert set(versions_of(PruneStep(sparsity=0.5, training=training), "f")) == {"jax", "jaxlib", "optax"}

    def missing(name: str) -> str:
        raise distributions.PackageNotFoundError(name)

    monkeypatch.setattr(distributions, "version", missing)
    with pytest.raises(JobError) as error:
        versions_of(PruneStep(sparsity=0.5, training=training), "f")
    assert error.value.reason == "ToolMissing" and "jax" in error.value.message


# --- graphs that tools do not foresee


def rows(n: int = 40) -> Data:
    rng = np.random.default_rng(6)
    return Data({"x": rng.normal(size=(n, 16)).astype(np.float32)}, rng.integers(0, 3, n), {})


def weights(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) / 4).astype(np.float32)


def two_products(*more: Any, outputs: tuple[str, ...] = (), opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """x [n, 16] -> y [n, 3] by two products and what ``more`` makes of r, the features between
    them. ``outputs``: constants that are outputs, too.
    """
    constants = {"w1": weights(16, 64), "w2": weights(64, 3), "w3": weights(64, 3), "zero": np.float32(0)}
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes += more or [helper.make_node("MatMul", ["r", "w2"], ["y"])]
    used = {name for node in nodes for name in node.input} | {
        n for node in nodes for a in node.attribute for b in a.g.node for n in b.input
    }
    specified = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    made += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, constants[name].shape) for name in outputs
    ]
    inside = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "g", specified, made, inside)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def branching() -> onnx.ModelProto:
    """One of two products, chosen by the sum of the inputs; both take r from outside."""

    def branch(weight: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["r", weight], [f"{weight}_y"])
        return helper.make_graph(
            [node], weight, [], [helper.make_tensor_value_info(f"{weight}_y", TensorProto.FLOAT, ["n", 3])]
        )

    return two_products(
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("w2"), else_branch=branch("w3")),
    )


def old_style(ir: int) -> onnx.ModelProto:
    """Constants are listed as inputs."""
    model = two_products(opset=7 if ir < 4 else 17, ir=ir)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )
    return model


GATE = Gate(data=CALIBRATION, metrics=(GateMetric(max_drop=0.5),))


def applied(
    model: onnx.ModelProto, folder: Path, *recipe: Step, gate: Gate | None = GATE, **more: Any
) -> Applied:
    data = {f"{field_of(i, step)}.{name}": rows() for i, step in enumerate(recipe) for name in step.sources()}
    return run_steps(
        recipe,
        save(model, folder),
        folder,
        data,
        {},
        gate=gate,
        symmetric=False,
        hardware="any",
        advance=lambda *_: None,
        **more,
    )


def refused(model: onnx.ModelProto, folder: Path, *recipe: Step, gate: Gate | None = GATE) -> JobError:
    with pytest.raises(JobError) as error:
        applied(model, folder, *recipe, gate=gate)
    return error.value


TRAINED = PruneStep(sparsity=0.4, training=Training(data=CALIBRATION, epochs=1))
STATIC = Int8Step(method="Static", calibration=CALIBRATION)


@pytest.mark.parametrize("ir", [3, 8])
@pytest.mark.parametrize(
    "step",
    [
        GraphStep(),
        Int8Step(),
        Int4Step(min_weights=64),
        HalfPrecisionStep(),
        PruneStep(sparsity=0.4),
        TRAINED,
    ],
)
def test_constants_that_are_inputs_too(tmp_path: Path, ir: int, step: Step) -> None:
    """As all models of IR version 3 are, and what PyTorch exports with
    keep_initializers_as_inputs.
    """
    model = old_style(ir)
    made = applied(model, tmp_path, step)
    before, after = check(save(model, tmp_path)), check(made.path)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert np.isfinite(scores(made.path, rows().inputs["x"])).all()


@pytest.mark.parametrize("step", [Int8Step(), STATIC, HalfPrecisionStep()])
def test_what_a_branch_takes_from_outside_is_made_before_it(tmp_path: Path, step: Step) -> None:
    model = branching()
    made = applied(model, tmp_path, step)
    x_all = rows().inputs["x"]
    for x in (x_all[x_all.sum(1) > 0], x_all[x_all.sum(1) < 0]):
        expected = scores(save(model, tmp_path), x)
        assert np.abs(scores(made.path, x) - expected).max() < 0.05 * np.abs(expected).max()


def test_nodes_are_sorted_and_a_circle_stays() -> None:
    graph = branching().graph
    nodes = [node.SerializeToString() for node in graph.node]
    mixed = onnx.GraphProto()
    mixed.CopyFrom(graph)
    del mixed.node[:]
    mixed.node.extend(reversed(graph.node))
    sort_nodes(mixed)
    place = {name: at for at, node in enumerate(mixed.node) for name in node.output}
    assert place["h"] < place["r"] < place["y"] > place["c"] > place["s"]
    sort_nodes(graph)
    assert [node.SerializeToString() for node in graph.node] == nodes
    circle = helper.make_graph(
        [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], "g", [], []
    )
    sort_nodes(circle)
    assert [node.output[0] for node in circle.node] == ["a", "b"]


@pytest.mark.parametrize(
    "step", [PruneStep(sparsity=0.4), DistillStep(size=0.5, training=Training(data=CALIBRATION, epochs=1))]
)
def test_a_constant_that_is_an_output_keeps_its_shape(tmp_path: Path, step: Step) -> None:
    assert refused(two_products(outputs=("w2",)), tmp_path, step).reason == "NothingToPrune"


@pytest.mark.parametrize(
    "step", [HalfPrecisionStep(), HalfPrecisionStep(type="BFloat16"), Int8Step(), STATIC]
)
def test_a_constant_that_is_an_output_stays_what_it_is(tmp_path: Path, step: Step) -> None:
    model = two_products(outputs=("w2",))
    made = applied(model, tmp_path, step)
    given = open_session(made.path, "f").run(["w2"], {"x": rows().inputs["x"]})[0]
    assert np.array_equal(given, numpy_helper.to_array(model.graph.initializer[1]))


@pytest.mark.parametrize("batched", [False, True])
def test_one_weight_in_two_layouts(tmp_path: Path, batched: bool) -> None:
    model = two_products(
        helper.make_node("MatMul", ["r", "w2"], ["a"]),
        helper.make_node("Gemm", ["a", "w2"], ["b"], transB=1),
        helper.make_node("Gemm", ["b", "w2"], ["y"]),
    )
    made = applied(model, tmp_path, GraphStep(), Int8Step(), batched=batched)
    x = rows().inputs["x"]
    expected = scores(save(model, tmp_path), x)
    assert np.abs(scores(made.path, x) - expected).max() < 0.1 * np.abs(expected).max()


def test_what_a_step_made_and_cannot_be_run_names_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Step, work: StepContext) -> dict[str, Any]:
        model = onnx.load(work.source)
        model.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(model, work.target)
        return {}

    monkeypatch.setattr("modelrollout.optimizer.steps.half_precision.STEP", StepDefinition(breaks))
    error = refused(two_products(), tmp_path, GraphStep(), HalfPrecisionStep())
    assert error.reason == "StepFailed"
    assert error.message.startswith("spec.optimization.steps[1].halfPrecision: ")


def test_a_library_that_gives_up_is_the_recipes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an InternalError, which would be tried again five times, and would end a whole search."""

    def gives_up(*_: object) -> dict[str, Any]:
        raise AssertionError("Graph is not a DAG\nand more")

    monkeypatch.setattr("modelrollout.optimizer.steps.half_precision.STEP", StepDefinition(gives_up))
    error = refused(two_products(), tmp_path, HalfPrecisionStep())
    assert error.reason == "StepFailed"
    assert (
        "halfPrecision: its library does not handle this model (AssertionError: Graph is not a DAG);"
        in error.message
    )


@pytest.mark.heavy
def test_a_student_of_the_source_model_says_what_it_throws_away(tmp_path: Path) -> None:
    training = Training(data=CALIBRATION, epochs=1)
    made = applied(two_products(), tmp_path, GraphStep(), DistillStep(size=0.5, training=training))
    assert any("steps[1].distill: it begins from the source model" in text for text in made.warnings)
    assert applied(two_products(), tmp_path, DistillStep(size=0.5, training=training)).warnings == []


def recurrent() -> onnx.ModelProto:
    """x [5, n, 16] -> y [1, n, 32]: an LSTM and nothing else."""
    constants = {"w": weights(1, 128, 16), "r": weights(1, 128, 32), "b": weights(1, 256)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "y"], hidden_size=32)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n", 32])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("step", [Int8Step(), Int4Step(), HalfPrecisionStep(), PruneStep(sparsity=0.4)])
def test_a_quantized_lstm_is_quantized_already(tmp_path: Path, step: Step) -> None:
    """A second round of int8 made it five times as wrong, and no word was said."""
    error = refused(recurrent(), tmp_path, Int8Step(), step)
    assert (error.reason, error.message.startswith("spec.optimization.steps[1].")) == (
        "AlreadyQuantized",
        True,
    )
