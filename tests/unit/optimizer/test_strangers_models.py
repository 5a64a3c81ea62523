"""Models as strangers write them: right, or refused in words. Each is a kind of fault that was
once served in silence, passed and then failed every request, or was refused for no reason that
fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import HalfPrecisionStep, Int4Step, Int8Step, PruneStep, Step
from modelrollout.contract.tasks import Batching
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model.agreement import far_from
from modelrollout.optimizer.model.data import Arrays, Data
from modelrollout.optimizer.model.half import open_judged
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.made_up import made_up
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.optimizer.pipeline.answers import expect_answers
from modelrollout.optimizer.steps.run import run_steps
from modelrollout.testing.object_store import save
from modelrollout.triton.config import parse, render

DATA = DataSet(location=Location(uri="s3://data/x"))
STATIC = Int8Step(method="Static", calibration=DATA)
DYNAMIC = Int8Step()
FLOAT16 = HalfPrecisionStep()
GATE = Gate(data=DATA, metrics=(GateMetric(max_drop=0.5),))
FIELD = "spec.model.uri"

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str]
node = helper.make_node


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, Shape],
    constants: Mapping[str, NDArray[Any]] | None = None,
    opset: int = 17,
    shapes: Mapping[str, Shape] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        value_info=[helper.make_tensor_value_info(n, FLOAT, s) for n, s in (shapes or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def rows(*shape: int) -> dict[str, tuple[int, Shape]]:
    return {"x": (FLOAT, ("n", *shape))}


def applied(
    model: onnx.ModelProto, step: Step, folder: Path, inputs: Arrays | None, *, batched: bool = False,
    gate: Gate | None = None,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """The model after the step, and the step's entry in the report."""
    source = save(model, folder)
    data = {}
    if inputs is not None:
        field = f"spec.optimization.steps[0].{step.kind}.calibration"
        data[field] = Data(inputs, None, {})
    done = run_steps(
        [step], source, folder, data, {}, gate=gate, symmetric=False, hardware="any",
        advance=lambda *_: None, batched=batched,
    )  # fmt: skip
    return done.path, done.done[0]


def answers(path: Path, inputs: Arrays) -> list[Any]:
    outputs: list[Any] = open_session(path, "f").run(None, inputs)
    return outputs


def two_gemms_and_one_bias() -> onnx.ModelProto:
    """A quantizer that copies the bias calls it b0, which is a tensor's name already."""
    return model_of(
        [
            node("Gemm", ["x", "w1", "b"], ["b0"]),
            node("Gemm", ["x", "w2", "b"], ["t"]),
            node("Sigmoid", ["b0"], ["s"]),
            node("Mul", ["s", "t"], ["y"]),
        ],
        rows(8),
        {"y": ("n", 4)},
        {"w1": numbers(8, 4), "w2": numbers(8, 4, seed=1), "b": numbers(4)},
    )


MASK = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
MODELS: dict[str, onnx.ModelProto] = {
    "weight of rank 3": model_of(
        [node("MatMul", ["x", "w"], ["y"])], rows(4, 1, 8), {"y": ("n", 4, 1, 6)}, {"w": numbers(4, 8, 6)}
    ),
    "bias of 1 x N": model_of(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])],
        rows(8), {"y": ("n", 6)}, {"w": numbers(8, 6), "b": numbers(1, 6)}, 15,
    ),
    "bias of one number": model_of(
        [node("Gemm", ["x", "w", "b"], ["y"])], rows(8), {"y": ("n", 6)},
        {"w": numbers(8, 6), "b": numbers(1)}, 15,
    ),
    "groups in ConvTranspose": model_of(
        [node("ConvTranspose", ["x", "w", "b"], ["y"], group=2, strides=[2, 2])],
        rows(4, 6, 6), {"y": ("n", 6, "h", "w2")}, {"w": numbers(4, 3, 3, 3), "b": numbers(6)},
    ),
    "shape of a weight that is turned": model_of(
        [node("Gemm", ["x", "w"], ["y"], transB=1)], rows(8), {"y": ("n", 6)}, {"w": numbers(6, 8)},
        shapes={"w": (6, 8)},
    ),
    "one bias for two": two_gemms_and_one_bias(),
    "mask of -inf": model_of(
        [
            node("MatMul", ["x", "w"], ["q"]),
            node("Add", ["q", "mask"], ["s"]),
            node("Softmax", ["s"], ["y"], axis=-1),
        ],
        rows(8, 8), {"y": ("n", 8, 8)}, {"w": numbers(8, 8), "mask": MASK},
    ),
    "output before an activation": model_of(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])],
        rows(8), {"h": ("n", 6), "y": ("n", 6)}, {"w": numbers(8, 6)},
    ),
    "weights in Constant nodes": model_of(
        [
            node("Constant", [], ["w"], value=numpy_helper.from_array(numbers(64, 64))),
            node("MatMul", ["x", "w"], ["y"]),
        ],
        rows(64), {"y": ("n", 64)},
    ),
    "values that are added": model_of(
        [node("ScatterND", ["x", "i", "u"], ["s"], reduction="add"), node("MatMul", ["s", "w"], ["y"])],
        rows(4), {"y": ("n", 4)},
        {"i": np.array([[0]]), "u": numbers(1, 4), "w": numbers(4, 4)}, 18,
    ),
}  # fmt: skip


@pytest.mark.parametrize("step", [STATIC, DYNAMIC, FLOAT16], ids=lambda step: f"{step.kind}")
@pytest.mark.parametrize("name", MODELS)
def test_an_ordinary_model_answers_as_before(name: str, step: Step, tmp_path: Path) -> None:
    model = MODELS[name]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    inputs = {"x": numbers(40, *shape, seed=7)}
    if name == "groups in ConvTranspose" and step is DYNAMIC:
        with pytest.raises(JobError, match=r"NothingToQuantize.*Static"):
            applied(model, step, tmp_path, inputs)
        return
    path, report = applied(model, step, tmp_path, inputs)
    before, after = answers(save(model, tmp_path), inputs), answers(path, inputs)
    assert far_from(before, after) < 0.03, report
    assert report["relativeError"] < 0.03
    assert report.get("operators") or report["weights"]


def masked_by_the_caller() -> onnx.ModelProto:
    return model_of(
        [
            node("MatMul", ["x", "w"], ["q"]),
            node("Add", ["q", "mask"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["y"]),
        ],
        {"x": (FLOAT, ("n", 8, 8)), "mask": (FLOAT, ("n", 8, 8))},
        {"s": ("n", 8, 8), "y": ("n", 8, 4)},
        {"w": numbers(8, 8), "v": numbers(8, 4)},
    )


@pytest.mark.parametrize("step", [STATIC, DYNAMIC, FLOAT16], ids=lambda step: f"{step.kind}")
def test_a_mask_of_minus_infinity_is_an_input(step: Step, tmp_path: Path) -> None:
    """What is infinite before is so after, also where it is an output."""
    inputs = {"x": numbers(40, 8, 8), "mask": np.repeat(MASK[None], 40, axis=0)}
    path, report = applied(masked_by_the_caller(), step, tmp_path, inputs)
    before, after = answers(save(masked_by_the_caller(), tmp_path), inputs), answers(path, inputs)
    assert report["relativeError"] < 0.03 and far_from(before, after) < 0.03
    assert np.array_equal(np.isneginf(before[0]), np.isneginf(after[0]))
    assert report.get("operators") or report["weights"]


def test_weights_in_constant_nodes_are_weights_for_every_step(tmp_path: Path) -> None:
    model, x = MODELS["weights in Constant nodes"], {"x": numbers(8, 64)}
    before = answers(save(model, tmp_path), x)
    path, _ = applied(model, Int4Step(block_size=16, min_weights=64), tmp_path, None, gate=GATE)
    assert far_from(before, answers(path, x)) < 0.2
    prune = PruneStep(granularity="Unstructured", sparsity=0.1)
    assert far_from(before, answers(applied(model, prune, tmp_path, None)[0], x)) < 0.2


def test_an_old_file_need_not_list_its_weights_as_inputs(tmp_path: Path) -> None:
    """IR version 3 demands it, ONNX Runtime does not, and so do files that people have."""
    model = model_of([node("MatMul", ["x", "w"], ["y"])], rows(8), {"y": ("n", 6)}, {"w": numbers(8, 6)}, 7)
    model.ir_version = 3
    x = {"x": numbers(4, 8)}
    assert [spec.name for spec in check(save(model, tmp_path)).inputs] == ["x"]
    before = answers(save(model, tmp_path), x)
    path, _ = applied(model, DYNAMIC, tmp_path, None)
    assert far_from(before, answers(path, x)) < 0.03


def test_weights_in_the_body_of_an_if_are_weights(tmp_path: Path) -> None:
    def body(name: str, seed: int) -> onnx.GraphProto:
        return helper.make_graph(
            [node("MatMul", ["x", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, ["n", 8])],
            [numpy_helper.from_array(numbers(8, 8, seed=seed), "w")],
        )

    model = model_of(
        [
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Greater", ["sum", "zero"], ["c"]),
            node("If", ["c"], ["y"], then_branch=body("a", 1), else_branch=body("b", 2)),
        ],
        rows(8),
        {"y": ("n", 8)},
        {"zero": np.array(0, np.float32)},
    )
    x = numbers(4, 8)
    for step in (DYNAMIC, FLOAT16, HalfPrecisionStep(type="BFloat16")):
        path, report = applied(model, step, tmp_path, None)
        assert report.get("operators") == {"MatMulInteger": 2} or report["weights"] >= 2
        for inputs in (np.abs(x), -np.abs(x)):
            before = answers(save(model, tmp_path), {"x": inputs})
            assert far_from(before, answers(path, {"x": inputs})) < 0.03


@pytest.mark.parametrize("step", [STATIC, DYNAMIC])
def test_a_table_is_not_quantized(step: Step, tmp_path: Path) -> None:
    """Its small entries would become 0."""
    table = np.geomspace(0.001, 1000, 64).astype(np.float32)
    model = model_of(
        [node("Gather", ["e", "ids"], ["y"])], {"ids": (INT64, ("n", 1))}, {"y": ("n", 1)}, {"e": table}
    )
    with pytest.raises(JobError) as error:
        applied(model, step, tmp_path, {"ids": np.arange(64)[:, None]})
    assert error.value.reason == "NothingToQuantize" and "remove the step" in error.value.message


@pytest.mark.parametrize("step", [STATIC, DYNAMIC, FLOAT16])
def test_a_table_that_is_a_weight_too_keeps_its_entries(step: Step, tmp_path: Path) -> None:
    model = model_of(
        [
            node("Gather", ["e", "ids"], ["h"]),
            node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=0),
            node("Gemm", ["m", "e"], ["y"], transB=1),
        ],
        {"ids": (INT64, ("n", 5))},
        {"y": ("n", 20)},
        {"e": numbers(20, 8)},
    )
    ids = {"ids": np.random.default_rng(0).integers(0, 20, (30, 5))}
    path, _ = applied(model, step, tmp_path, ids)
    assert far_from(answers(save(model, tmp_path), ids), answers(path, ids)) < 0.03


def test_only_the_named_operators_are_quantized(tmp_path: Path) -> None:
    """Boxes in pixels and scores below 1 in one tensor: one scale for both leaves no score."""
    model = model_of(
        [
            node("MatMul", ["x", "w1"], ["boxes"]),
            node("MatMul", ["x", "w2"], ["z"]),
            node("Sigmoid", ["z"], ["scores"]),
            node("Mul", ["boxes", "size"], ["pixels"]),
            node("Concat", ["pixels", "scores"], ["y"], axis=-1),
        ],
        rows(8),
        {"y": ("n", 6)},
        {"w1": numbers(8, 4), "w2": numbers(8, 2), "size": np.array(640, np.float32)},
    )
    x = {"x": numbers(64, 8)}
    path, _ = applied(model, STATIC, tmp_path, x)
    before, after = (answers(p, x)[0][:, 4:].ravel() for p in (save(model, tmp_path), path))
    assert np.corrcoef(before, after)[0, 1] > 0.99
    kinds = [n.op_type for n in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == 1, "the input that both products read"


@pytest.mark.parametrize("batched", [True, False])
def test_a_large_request_does_not_silence_its_neighbours(batched: bool, tmp_path: Path) -> None:
    model = model_of([node("MatMul", ["x", "w"], ["y"])], rows(32), {"y": ("n", 5)}, {"w": numbers(32, 5)})
    path, _ = applied(model, DYNAMIC, tmp_path, None, batched=batched)
    x = numbers(3, 32)
    joined = np.concatenate([x, 1000 * x[:1]])
    expected = answers(save(model, tmp_path), {"x": joined})[0]
    errors = np.linalg.norm(answers(path, {"x": joined})[0] - expected, axis=1)
    relative = errors / np.linalg.norm(expected, axis=1)
    assert (relative.max() < 0.03) == batched
    if not batched:
        with pytest.raises(JobError, match=r"BatchingImpossible.*from node DynamicQuantizeLinear"):
            expect_answers(path, check(path), [], 8, FIELD)


@pytest.mark.parametrize("method", ["Percentile", "Entropy"])
@pytest.mark.parametrize("samples", [1, 50, 100])
def test_the_last_batch_may_be_short(method: Any, samples: int, tmp_path: Path) -> None:
    model = model_of(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], rows(8), {"y": ("n", 6)},
        {"w": numbers(8, 6)},
    )  # fmt: skip
    x = {"x": numbers(samples, 8)}
    step = Int8Step(method="Static", calibration=DATA, calibration_method=method)
    path, _ = applied(model, step, tmp_path, x)
    assert far_from(answers(save(model, tmp_path), x), answers(path, x)) < 0.1


def normalizing() -> onnx.ModelProto:
    """Features near 60,000 with a spread of 40,000, as incomes and distances are."""
    return model_of(
        [
            node("Sub", ["x", "mean"], ["c"]),
            node("Div", ["c", "std"], ["s"]),
            node("MatMul", ["s", "w"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "w2"], ["z"]),
            node("Sigmoid", ["z"], ["y"]),
        ],
        rows(2),
        {"y": ("n", 1)},
        {
            "mean": np.array([6e4, 50], np.float32), "std": np.array([4e4, 20], np.float32),
            "w": numbers(2, 16), "w2": numbers(16, 1),
        },
    )  # fmt: skip


def test_what_16_bit_cannot_hold_stays_in_32(tmp_path: Path) -> None:
    """Without data: the inputs are made up from what the model normalizes with."""
    path, report = applied(normalizing(), FLOAT16, tmp_path, None)
    x = {"x": numbers(200, 2) * np.array([4e4, 20], np.float32) + np.array([6e4, 50], np.float32)}
    before, after = answers(save(normalizing(), tmp_path), x), open_judged(path, "f").run(None, x)
    assert far_from(before, after) < 0.01
    assert len(report["leftFloat"]) == 2 and report["weights"] >= 2


def test_float16_is_judged_as_float16(tmp_path: Path) -> None:
    """ONNX Runtime's CPU computes it in float32, where nothing is too large."""
    half = model_of(
        [
            node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
            node("Mul", ["a", "a"], ["b"]),
            node("Div", ["b", "a"], ["c"]),
            node("Cast", ["c"], ["y"], to=FLOAT),
        ],
        rows(1),
        {"y": ("n", 1)},
    )
    path = save(half, tmp_path)
    x = {"x": np.array([[3.0], [1000.0]], np.float32)}
    assert np.isfinite(answers(path, x)[0]).all()
    judged = open_judged(path, "f").run(None, x)[0]
    assert judged[0, 0] == 3 and np.isinf(judged[1, 0])


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (
            model_of([node("CumSum", ["x", "a"], ["y"])], {"x": (FLOAT, ("time", "batch", 4))},
                     {"y": ("time", "batch", 4)}, {"a": np.array(0)}),
            "CumSum 'y'",
        ),
        (
            model_of([node("Reshape", ["x", "s"], ["y"])], rows(2, 2), {"y": ("n", 4)},
                     {"s": np.array([1, 4])}),
            "Reshape 'y'",
        ),
        (
            model_of([node("Relu", ["x"], ["r"]), node("Softmax", ["r"], ["y"], axis=0)], rows(4),
                     {"y": ("n", 4)}),
            "Softmax 'y'",
        ),
    ],
)  # fmt: skip
def test_a_first_dimension_that_is_no_batch_is_named(
    model: onnx.ModelProto, named: str, tmp_path: Path
) -> None:
    path = save(model, tmp_path)
    expect_answers(path, check(path), [], 0, FIELD)
    with pytest.raises(JobError) as error:
        expect_answers(path, check(path), [], 8, FIELD)
    assert error.value.reason == "BatchingImpossible"
    assert error.value.message.startswith("spec.serving.batching.maxBatchSize: 8, but ")
    assert f"from node {named} on" in error.value.message and "maxBatchSize: 0" in error.value.message


def test_declared_shapes_are_those_that_the_model_gives(tmp_path: Path) -> None:
    """A forest of several labels says [n, 2] and gives [labels, n, 2]."""
    model = model_of(
        [node("Unsqueeze", ["x", "first"], ["u"]), node("Concat", ["u", "u"], ["y"], axis=0)],
        rows(2),
        {"y": ("n", 2)},
        {"first": np.array([0])},
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", FLOAT, ["labels", "n", 2]))
    path = save(model, tmp_path)
    assert expect_answers(path, check(path), [], 0, FIELD).outputs[0].shape == (-1, -1, 2)
    with pytest.raises(JobError, match="BatchingImpossible"):
        expect_answers(path, check(path), [], 4, FIELD)


def test_minus_one_is_a_dynamic_dimension(tmp_path: Path) -> None:
    path = save(model_of([node("Relu", ["x"], ["y"])], {"x": (FLOAT, (-1, 4))}, {"y": (-1, 4)}), tmp_path)
    info = check(path)
    assert info.inputs[0].shape == (-1, 4)
    assert expect_answers(path, info, [], 8, FIELD).outputs == info.outputs


def test_a_scalar_is_served_as_one_number(tmp_path: Path) -> None:
    """As every speech model has one, its sample rate."""
    model = model_of([node("Mul", ["x", "rate"], ["y"])], rows(4) | {"rate": (FLOAT, ())}, {"y": ("n", 4)})
    path = save(model, tmp_path)
    info = check(path)
    assert expect_answers(path, info, [], 0, FIELD).outputs == info.outputs
    rate = parse(render(info.inputs, info.outputs, Batching(), "KIND_AUTO")).input[1]
    assert list(rate.dims) == [1] and not rate.HasField("reshape")


def test_whole_requests_calibrate_a_model_without_a_batch_dimension(tmp_path: Path) -> None:
    model = model_of(
        [node("Mul", ["x", "rate"], ["m"]), node("MatMul", ["m", "w"], ["y"])],
        {"x": (FLOAT, (5, 8)), "rate": (FLOAT, ())},
        {"y": (5, 3)},
        {"w": numbers(8, 3)},
    )
    inputs = {"x": numbers(20, 5, 8), "rate": np.linspace(1, 2, 20).astype(np.float32)}
    path, _ = applied(model, STATIC, tmp_path, inputs)
    one = {"x": inputs["x"][3], "rate": np.asarray(inputs["rate"][3])}
    assert far_from(answers(save(model, tmp_path), one), answers(path, one)) < 0.03


def test_what_changes_answers_without_data_says_which_data_to_give(tmp_path: Path) -> None:
    wide = model_of(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])],
        rows(16), {"y": ("n", 4)}, {"w": numbers(16, 64), "v": numbers(64, 4)},
    )  # fmt: skip
    step = PruneStep(sparsity=0.7)
    with pytest.raises(JobError) as error:
        applied(wide, step, tmp_path, None)
    assert error.value.reason == "AnswersDiffer"
    assert "spec.optimization.steps[0].prune: on made-up inputs" in error.value.message
    assert "spec.optimization.gate" in error.value.message
    assert applied(wide, step, tmp_path, None, gate=GATE)[1]["relativeError"] > 0.2


def test_inputs_are_made_up_from_the_models_own_structure(tmp_path: Path) -> None:
    model = model_of(
        [node("Gather", ["e", "ids"], ["h"]), node("Mul", ["h", "mask"], ["y"])],
        {"ids": (INT64, ("n", 5)), "mask": (FLOAT, ("n", 5))},
        {"y": ("n", 5)},
        {"e": np.arange(3, dtype=np.float32)},
    )
    path = save(model, tmp_path)
    request = made_up(open_session(path, "f"), path, 50)
    assert request is not None
    assert request["ids"].shape == (50, 5) and set(np.unique(request["ids"])) == {0, 1, 2}
    forest = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[1.7e9, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    trees = model_of([forest], rows(2), {"y": ("n", 1)})
    trees.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    path = save(trees, tmp_path)
    request = made_up(open_session(path, "f"), path, 20)
    assert request is not None and (abs(request["x"][:, 1] - 1.7e9) < 1e7).all()
    assert set(answers(path, request)[0].ravel()) == {1.0, 2.0}


def test_a_speech_models_state_and_sample_rate_are_made_up_as_it_compares_them(tmp_path: Path) -> None:
    """[layers, batch, hidden], and a scalar that only one value is right for."""
    model = model_of(
        [
            node("Equal", ["rate", "known"], ["right"]),
            node("Cast", ["right"], ["factor"], to=FLOAT),
            node("Transpose", ["state"], ["rows"], perm=[1, 0, 2]),
            node("ReduceSum", ["rows", "axes"], ["sums"], keepdims=0),
            node("Reshape", ["sums", "form"], ["column"]),
            node("Add", ["x", "column"], ["both"]),
            node("Mul", ["both", "factor"], ["y"]),
        ],
        rows(1) | {"state": (FLOAT, (2, "m", 4)), "rate": (INT64, ())},
        {"y": ("n", 1)},
        {"known": np.array(16000), "axes": np.array([1, 2]), "form": np.array([-1, 1])},
    )
    path = save(model, tmp_path)
    request = made_up(open_session(path, "f"), path, 3)
    assert request is not None
    assert request["state"].shape == (2, 3, 4) and request["rate"].item() == 16000


def test_bytes_that_a_model_compares_with_all_of_theirs_are_such(tmp_path: Path) -> None:
    model = model_of(
        [
            node("Unsqueeze", ["bytes", "last"], ["u"]),
            node("Equal", ["u", "all"], ["e"]),
            node("Cast", ["e"], ["f"], to=FLOAT),
            node("MatMul", ["f", "w"], ["y"]),
        ],
        {"bytes": (INT64, ("n", 50))},
        {"y": ("n", 50, 3)},
        {"last": np.array([2]), "all": np.arange(257), "w": numbers(257, 3)},
    )
    path = save(model, tmp_path)
    request = made_up(open_session(path, "f"), path, 4)
    assert request is not None and 200 < request["bytes"].max() <= 256


def test_probabilities_of_nothing_do_not_count() -> None:
    nothing = np.full((4, 10), 1e-9, np.float32)
    assert far_from([nothing], [nothing * 2]) < 1e-5
    assert far_from([nothing - 1], [nothing - 2]) > 0.9
    assert far_from([np.full(3, 0.5, np.float32)], [np.full(3, 0.4, np.float32)]) == pytest.approx(0.2)
