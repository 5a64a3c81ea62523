"""Pruning: what is cut belongs together, what goes is what matters least, and nothing else
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.shape_inference import infer_shapes

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.steps import PruneStep, Training
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.steps.channels import Channels
from modelrollout.optimizer.steps.prune import narrowed, prune
from modelrollout.testing.object_store import classifier, save
from tests.unit.optimizer.network_fakes import dense, depthwise, images, plain, residual, work

pytestmark = pytest.mark.slow

NETWORKS = (plain, residual, depthwise, dense)
SOME = Training(
    data=DataSet(location=Location(uri="s3://data/training.npz")), epochs=2, learning_rate=0.01, batch_size=32
)


def scores(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return result


def silenced(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return changed


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_that_nothing_listens_to_can_go(network: Callable[[], onnx.ModelProto]) -> None:
    """Removing channels whose outgoing weights are all zero changes no answer, whatever lies on the
    way.
    """
    model = network()
    channels = Channels(infer_shapes(model))
    rng = np.random.default_rng(0)
    free = channels.free()
    assert free
    keep = {space: np.sort(rng.permutation(size)[: size // 2]) for space, size in free.items()}
    weights = {name: value.copy() for name, value in channels.weights.items()}
    for product in channels.products:
        at = 0
        view = np.moveaxis(weights[product.weight], product.inputs_axis, 0)
        for space, block in product.parts:
            root, size = channels.root(space), channels.size(space)
            assert root is not None
            for channel in set(range(size)) - set(keep.get(root, np.arange(size)).tolist()):
                view[at + channel * block : at + (channel + 1) * block] = 0
            at += size * block
    deaf = silenced(channels.model, weights)
    cut = Channels(infer_shapes(deaf)).cut(keep)
    onnx.checker.check_model(cut, full_check=True)
    x = images(16).inputs["x"]
    assert np.allclose(scores(cut, x), scores(deaf, x), atol=1e-5)
    assert len(cut.SerializeToString()) < 0.7 * len(model.SerializeToString())
    left = sum(
        numpy_helper.to_array(t).size for t in cut.graph.initializer if t.data_type == onnx.TensorProto.FLOAT
    )
    assert left == channels.weights_left({space: len(retained) for space, retained in keep.items()})


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_as_much_goes_as_is_asked_for(network: Callable[[], onnx.ModelProto], sparsity: float) -> None:
    cut, done = narrowed(Channels(infer_shapes(network())), sparsity, "f", {})
    left = done["weightsAfter"] / done["weightsBefore"]
    assert 1 - sparsity - 0.25 < left <= 1 - sparsity
    assert all(after >= 1 for _, after in done["channels"].values())
    scores(cut, images(3).inputs["x"])


def test_shared_channels_go_together_and_outputs_stay() -> None:
    channels = Channels(infer_shapes(residual()))
    # the two branches of the sum are one space, the classes none
    assert sorted(channels.free().values()) == [32, 48]


def test_what_is_not_understood_keeps_its_channels() -> None:
    model = plain()
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    # over the last axis by default, but no operator that works channel by channel
    relu.op_type = "Softmax"
    assert len(Channels(infer_shapes(model)).free()) == len(Channels(infer_shapes(plain())).free()) - 1
    shared = plain()
    convs = [n for n in shared.graph.node if n.op_type == "Gemm"]
    # another reader of the weight
    shared.graph.node.append(helper.make_node("Identity", [convs[0].input[1]], ["spy"]))
    assert len(Channels(infer_shapes(shared)).free()) < len(Channels(infer_shapes(plain())).free())


def test_the_least_important_goes_first() -> None:
    model = plain()
    channels = Channels(infer_shapes(model))
    first = next(p for p in channels.products if p.tensor == "x")
    weight = channels.weights[first.weight].copy()
    weight[::2] *= 0.01
    cut, _ = narrowed(Channels(infer_shapes(silenced(model, {first.weight: weight}))), 0.3, "f", {})
    weights = numpy_helper.to_array(next(t for t in cut.graph.initializer if t.name == first.weight))
    loud = {w.tobytes() for w in weight[1::2]}
    assert loud <= {w.tobytes() for w in weights}


@pytest.mark.parametrize("importance", ["Magnitude", "Activation"])
def test_what_was_pruned_is_learned_again(tmp_path: Path, importance: str) -> None:
    source = save(plain(), tmp_path)
    data = {"training.data": images(512)}
    step = PruneStep.model_validate({"sparsity": 0.5, "importance": importance, "training": SOME})
    w = work(source, data=data)
    done = prune(step, w)
    assert done["weightsAfter"] <= 0.5 * done["weightsBefore"]
    assert w.target.stat().st_size < 0.55 * source.stat().st_size
    assert done["losses"][-1] < done["losses"][0]
    test = images(400, seed=6)
    right = scores(onnx.load(w.target), test.inputs["x"]).argmax(1) == test.labels
    assert right.mean() > 0.7  # untrained: a quarter
    # which takes all that Magnitude does; every training is compiled anew
    if importance == "Activation":
        again = prune(step, work(source, data=data, target=tmp_path / "again.onnx"))
        assert again == done
        assert (tmp_path / "again.onnx").read_bytes() == w.target.read_bytes()


def test_zeros_stay_zeros_when_trained(tmp_path: Path) -> None:
    warnings: list[str] = []
    w = work(save(plain(), tmp_path), data={"training.data": images(256)}, warnings=warnings)
    done = prune(
        PruneStep(sparsity=0.8, granularity="Unstructured", importance="Activation", training=SOME), w
    )
    model = onnx.load(w.target)
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1]
    zeros, total = sum(int((v == 0).sum()) for v in weights), sum(v.size for v in weights)
    assert zeros / total == pytest.approx(0.8, abs=0.01)
    assert done["weightsAfter"] == total - zeros
    assert any("no faster" in text for text in warnings)


def test_without_training_it_is_said(tmp_path: Path) -> None:
    warnings: list[str] = []
    prune(PruneStep(sparsity=0.3), work(save(plain(), tmp_path), warnings=warnings))
    assert any("no training data" in text for text in warnings)


def test_what_cannot_be_pruned(tmp_path: Path) -> None:
    with pytest.raises(JobError) as error:
        prune(PruneStep(sparsity=0.999), work(save(plain(), tmp_path)))
    assert error.value.reason == "SparsityTooHigh"
    bare = classifier(hidden=8)
    del bare.graph.node[0]
    bare.graph.node[0].input[0] = "x"
    weight = next(t for t in bare.graph.initializer if t.name == "w2")
    weight.CopyFrom(numpy_helper.from_array(np.ones((4, 3), np.float32), "w2"))
    with pytest.raises(JobError) as error:
        prune(PruneStep(sparsity=0.5), work(save(bare, tmp_path, "bare.onnx")))
    assert error.value.reason == "NothingToPrune"
