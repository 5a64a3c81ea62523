"""The step auto on small real models: what it finds, keeps, leaves out, and says; whole Jobs with
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.gate import Gate, GateBudget, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import AutoStep, GraphStep, Training
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import encode
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import open_session, predict
from modelrollout.optimizer.steps import distributions
from modelrollout.optimizer.steps.auto import auto as module
from modelrollout.optimizer.steps.auto.auto import auto
from modelrollout.optimizer.steps.distributions import installed, versions_of
from modelrollout.optimizer.steps.run import run_step
from modelrollout.optimizer.training.fit import Recipe, fit
from modelrollout.optimizer.training.network import Network
from modelrollout.testing.object_store import (
    SALT,
    ObjectStore,
    classifier,
    dataset,
    known,
    labelled,
    object_store,
    samples,
    save,
)
from tests.unit.optimizer.network_fakes import images, plain, work

pytestmark = pytest.mark.slow

PLACE = DataSet(location=Location(uri="s3://data/x"))
FIELD = "spec.optimization.steps[0].auto"


def points(n: int, seed: int = 2, **slices: np.ndarray) -> Data:
    x, y = samples(n, seed)
    return Data({"x": x}, y, slices)


def gate(**budget: Any) -> Gate:
    return Gate(data=PLACE, metrics=(GateMetric(**(budget or {"max_drop": 0.02})),))


def stump() -> onnx.ModelProto:
    """A tree of one question: is the first feature above 0?"""
    tree = onnx.helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0, 0],
        class_nodeids=[1, 2],
        class_ids=[0, 1],
        class_weights=[1.0, 1.0],
        classlabels_int64s=[0, 1],
        post_transform="NONE",
    )
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])
    outputs = [
        onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
        onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["n", 2]),
    ]
    graph = onnx.helper.make_graph([tree], "g", [x], outputs)
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=8,
    )


@pytest.fixture
def without_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the usual image."""
    monkeypatch.setattr(module, "installed", lambda *_: False)


@pytest.mark.usefixtures("without_trainer")
class TestWithoutTraining:
    def test_the_smallest_within_the_budget_is_written(self, tmp_path: Path) -> None:
        warnings: list[str] = []
        w = work(
            save(classifier(hidden=512), tmp_path),
            data={"data": points(1600)},
            gate=gate(),
            warnings=warnings,
        )
        result = auto(AutoStep(data=PLACE), w)
        search = result["search"]
        assert (search["objective"], search["metric"], search["allowed"], search["ended"]) == (
            "Size",
            "accuracy",
            0.02,
            "Complete",
        )
        by_name = {point["name"]: point for point in result["candidates"]}
        within = [p for p in by_name.values() if p["within"] and p["name"] != "source"]
        chosen = by_name[search["chosen"]]
        assert (
            chosen["within"]
            and chosen["size"]
            == min(p["size"] for p in within)
            == w.target.stat().st_size
            < 0.6 * by_name["source"]["size"]
        )
        assert by_name["source"]["loss"] == 0 and by_name["source"]["within"]
        assert {"graph", "int8", "int8-dynamic", "float16"} <= {*by_name, *result["refused"]}
        assert [by_name[name]["steps"][0]["method"] for name in ("int8", "int8-dynamic")] == [
            "Static",
            "Dynamic",
        ]
        assert search["tried"] == len(by_name) - 1
        assert [s["kind"] for s in result["steps"]] == [s["kind"] for s in chosen["steps"]] and result[
            "steps"
        ]
        # calibration samples judge nothing
        assert (result["calibrationSamples"], result["samples"]) == (256, 1600 - 256)
        assert [p[0] for p in search["points"]][:2] == [search["chosen"], "source"]
        assert all(p["milliseconds"] > 0 for p in by_name.values())
        assert not list(tmp_path.glob("candidate-*")) or w.target.exists()
        held_out = points(2000, seed=9)
        answers = predict(
            open_session(w.target, "f"), check(w.target).inputs, held_out.inputs, "f", lambda *_: None
        )[0]
        assert (answers == held_out.labels).mean() > 0.9

    def test_the_fastest_is_a_different_question(self, tmp_path: Path) -> None:
        """Latency itself is chance here: what is held is that the choice follows what was
        measured.
        """
        warnings: list[str] = []
        w = work(
            save(classifier(hidden=512), tmp_path),
            data={"data": points(1600)},
            gate=gate(),
            warnings=warnings,
            hardware="gpu",
        )
        search = auto(AutoStep(data=PLACE, objective="Latency"), w)
        within = {p["name"]: p["milliseconds"] for p in search["candidates"] if p["within"]}
        worth = {name: ms for name, ms in within.items() if ms <= 0.95 * within["source"]}
        assert search["search"]["chosen"] == (min(worth, key=lambda name: worth[name]) if worth else "source")
        assert any("measured on the Job's CPU" in text and "Size" in text for text in warnings)

    def test_nothing_within_the_budget_leaves_the_model_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = module._Judge.made

        def spoiled(judge: Any, name: str, *more: Any) -> Any:
            made = real(judge, name, *more)
            within = made.point.within and name == "source"
            return module.replace(made, point=made.point._replace(within=within))

        monkeypatch.setattr(module._Judge, "made", spoiled)
        warnings: list[str] = []
        source = save(classifier(hidden=512), tmp_path)
        w = work(source, data={"data": points(1600)}, gate=gate(), warnings=warnings)
        search = auto(AutoStep(data=PLACE), w)
        assert (
            search["search"]["chosen"] == "source"
            and search["steps"] == []
            and not w.target.exists()
            and source.exists()
        )
        assert any(
            "nothing that keeps the budget is at least 5 % smaller" in text and "came closest" in text
            for text in warnings
        )

    def test_a_real_loss_is_not_chosen(self, tmp_path: Path) -> None:
        """A weight beyond 16 bit, and one channel that drowns the others in 8 bit: whatever was
        tried, what is taken keeps the budget.
        """
        from tests.unit.optimizer.test_steps import fragile

        source = save(fragile(), tmp_path)
        x = samples(1200, 3)[0]
        answers = predict(open_session(source, "f"), check(source).inputs, {"x": x}, "f", lambda *_: None)[0]
        search = auto(
            AutoStep(data=PLACE), work(source, data={"data": Data({"x": x}, answers, {})}, gate=gate())
        )
        by_name = {p["name"]: p for p in search["candidates"]}
        assert not by_name["int8"]["within"] and by_name["int8"]["loss"] > 0.02
        assert search["refused"]["float16"].startswith("OutOfRange: ") and "bfloat16" in by_name
        assert {"int8-percentile", "int8-entropy", "int8-sensitivity"} <= {*by_name, *search["refused"]}
        assert by_name[search["search"]["chosen"]]["within"]

    def test_nothing_can_be_made_of_it(self, tmp_path: Path) -> None:
        """Trees have no matrices."""
        x = np.random.default_rng(0).normal(size=(800, 2)).astype(np.float32)
        warnings: list[str] = []
        data = Data({"x": x}, (x[:, 0] > 0).astype(np.int64), {})
        search = auto(
            AutoStep(data=PLACE),
            work(save(stump(), tmp_path), data={"data": data}, gate=gate(), warnings=warnings),
        )
        assert search["search"]["chosen"] == "source" and set(search["refused"]) >= {
            "int8",
            "int8-dynamic",
            "float16",
            "prune-0.1",
        }
        assert any("so the model stays as it was" in text and "int8 (" in text for text in warnings)

    @pytest.mark.parametrize("after", [0, 2])
    def test_the_time_limit_keeps_what_was_found_by_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        """The clock stands still until ``after`` candidates are there."""
        now = [0.0]
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
        tried = list[str]()

        def counted(step: Any, inner: Any) -> dict[str, Any]:
            if len(tried) == after:
                now[0] = 61.0
                inner.advance(1, 2)
                raise AssertionError("the limit was not seen in the middle of a step")
            tried.append(step.kind)
            return run_step(step, inner)

        warnings: list[str] = []
        w = work(
            save(classifier(hidden=512), tmp_path),
            data={"data": points(1600)},
            gate=gate(),
            run_step=counted,
            warnings=warnings,
        )
        search = auto(AutoStep(data=PLACE, time_limit="1m"), w)
        assert (search["search"]["ended"], search["search"]["tried"]) == ("TimeLimit", after)
        assert search["cut"] == ["graph", "int8", "int8-dynamic"][after]
        assert any("the time limit of 1m ended the search" in text for text in warnings)
        assert search["search"]["chosen"] == ("source" if after == 0 else "int8")
        assert w.target.exists() == (after > 0)

    def test_training_that_the_image_cannot_do_is_named(self, tmp_path: Path) -> None:
        warnings: list[str] = []
        data = {"data": points(1600), "training.data": points(200, 7)}
        search = auto(
            AutoStep(data=PLACE, training=Training(data=PLACE)),
            work(save(classifier(), tmp_path), data=data, gate=gate(), warnings=warnings),
        )
        assert any(
            text.startswith(f"{FIELD[:-5].replace('spec.optimization.', '')}") or "no JAX" in text
            for text in warnings
        )
        assert not any("losses" in s for p in search["candidates"] for s in p["steps"])

    def test_calibration_of_its_own_leaves_all_samples_to_judge(self, tmp_path: Path) -> None:
        data = {"data": points(1600), "calibration": points(100, 8)}
        search = auto(
            AutoStep(data=PLACE, calibration=PLACE),
            work(save(classifier(), tmp_path), data=data, gate=gate()),
        )
        assert (search["calibrationSamples"], search["samples"]) == (100, 1600)

    def test_slices_count_where_the_data_names_them(self, tmp_path: Path) -> None:
        sliced = Gate(data=PLACE, metrics=(GateMetric(max_drop=0.02, slices=GateBudget(max_drop=0.1)),))
        warnings: list[str] = []
        source = save(classifier(), tmp_path)
        auto(AutoStep(data=PLACE), work(source, data={"data": points(1600)}, gate=sliced, warnings=warnings))
        assert any("names no slices" in text for text in warnings)
        warnings.clear()
        # three samples of one kind can prove nothing about it: then not even the model itself
        # passes
        rare = np.where(np.arange(1600) < 3, "rare", "common")
        with pytest.raises(JobError) as error:
            auto(
                AutoStep(data=PLACE),
                work(source, data={"data": points(1600, writer=rare)}, gate=sliced, warnings=warnings),
            )
        assert error.value.reason == "SelectionUnfit" and "writer=rare" in error.value.message

    @pytest.mark.parametrize(
        ("data", "budget", "says"),
        [
            (points(60), {"max_drop": 0.001}, "about"),
            (points(3), {"max_drop": 0.02}, "too few"),
            (points(400), {"min": 0.9999}, "below the minimum"),
        ],
    )
    def test_data_on_which_nothing_can_pass_is_refused_before_anything_is_tried(
        self, tmp_path: Path, data: Data, budget: dict[str, float], says: str
    ) -> None:
        with pytest.raises(JobError) as error:
            auto(
                AutoStep(data=PLACE),
                work(save(classifier(), tmp_path), data={"data": data}, gate=gate(**budget)),
            )
        assert error.value.reason == "SelectionUnfit" and says in error.value.message
        assert error.value.message.startswith("steps[0].data: ")

    def test_labels_of_another_model_name_the_data_of_the_search(self, tmp_path: Path) -> None:
        x, y = samples(400)
        with pytest.raises(JobError) as error:
            auto(
                AutoStep(data=PLACE),
                work(save(classifier(), tmp_path), data={"data": Data({"x": x}, y + 7, {})}, gate=gate()),
            )
        assert error.value.reason == "LabelsOutOfRange" and error.value.message.startswith(
            "steps[0].data.labels: "
        )

    def test_numbers_are_searched_by_their_errors(self, tmp_path: Path) -> None:
        model = classifier(hidden=512)
        scores = onnx.helper.make_node("Gemm", ["scores", "column"], ["value"])
        model.graph.node.append(scores)
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array([[1.0], [0.5], [-0.5]], np.float32), "column")
        )
        del model.graph.output[:]
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, ["n", 1])
        )
        source = save(model, tmp_path)
        x = samples(2000, 3)[0]
        truth = open_session(source, "f").run(None, {"x": x})[0][:, 0].astype(
            np.float64
        ) + np.random.default_rng(0).normal(0, 1, 2000)
        search = auto(
            AutoStep(data=PLACE),
            work(
                source,
                data={"data": Data({"x": x}, None, {}, truth)},
                gate=gate(name="mae", max_increase=0.2),
            ),
        )
        assert search["search"]["metric"] == "mae" and search["search"]["chosen"] != "source"
        int8 = next(p for p in search["candidates"] if p["name"] == "int8")
        assert int8["loss"] == pytest.approx(int8["value"] - search["search"]["before"], abs=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network that has learned its task."""
    path = save(plain(), tmp_path_factory.mktemp("trained"))
    data = images(1500)
    network = Network(path, data.inputs, "f")
    weights, _ = fit(network, data, Recipe(2, 3e-3, 64), "f", lambda *_: None)
    network.save(weights, path)
    return path


def test_training_makes_the_smallest_models(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prune and quantize together beat either; one rung of each ladder keeps the test short."""
    from modelrollout.optimizer.steps.auto import plan

    monkeypatch.setattr(plan, "SPARSITIES", (0.5,))
    monkeypatch.setattr(plan, "SIZES", (0.25,))
    source = tmp_path / "m.onnx"
    source.write_bytes(trained.read_bytes())
    training = Training(data=PLACE, epochs=3, learning_rate=0.003, batch_size=64)
    w = work(
        source, data={"data": images(2000, 8), "training.data": images(1500, 9)}, gate=gate(max_drop=0.05)
    )
    search = auto(AutoStep(data=PLACE, training=training), w)
    by_name = {p["name"]: p for p in search["candidates"]}
    assert {"prune-0.5", "prune-0.5+int8", "distill-0.25"} <= set(by_name)
    assert by_name["prune-0.5+int8"]["size"] < min(by_name["prune-0.5"]["size"], by_name["int8"]["size"])
    assert "+" in search["search"]["chosen"] and len(search["steps"]) == 2
    assert [s["kind"] for s in by_name["prune-0.5+int8"]["steps"]] == ["prune", "int8"] and by_name[
        "prune-0.5"
    ]["steps"][0]["losses"]
    assert (
        set(search["frontier"]) == {"Size", "Latency"}
        and search["search"]["chosen"] in search["frontier"]["Size"]
    )


# --- whole Jobs

MODEL = classifier(hidden=1024).SerializeToString()


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/models/m.onnx"] = MODEL
        server.objects["/data/heldout.npz"] = labelled(2000, 3)
        server.objects["/data/selection.npz"] = labelled(1600, 4)
        server.objects["/data/training.npz"] = labelled(300, 6)
        yield server


def task(store: ObjectStore, step: AutoStep | None = None, **changes: Any) -> PrepareTask:
    fields: dict[str, Any] = {
        "source": store.s3("models/m.onnx"),
        "sha256": hashlib.sha256(MODEL).hexdigest(),
        "steps": (step or AutoStep(data=dataset(store.s3("data/selection.npz"))),),
        "gate": Gate(data=dataset(store.s3("data/heldout.npz")), metrics=(GateMetric(max_drop=0.02),)),
        "artifacts": store.s3("artifacts/team-a/"),
        "salt": SALT,
    }
    return PrepareTask(**(fields | changes))


def prepared(desired: PrepareTask) -> TaskResult:
    return run(desired, Progress())


def refusal(desired: PrepareTask) -> JobError:
    with pytest.raises(JobError) as error:
        prepared(desired)
    return error.value


@pytest.mark.usefixtures("without_trainer")
class TestJob:
    def test_the_choice_is_gated_and_published_with_the_frontier(self, store: ObjectStore) -> None:
        result = prepared(task(store))
        assert (
            result.search and result.search.chosen != "source" and result.metrics[0].verdict == "Successful"
        )
        assert result.artifact_size_bytes == result.search.points[0].size < 0.6 * len(MODEL)
        assert len(encode(result)) <= 2048 and TaskResult.model_validate_json(encode(result)).search
        report = json.loads(next(body for path, body in store.objects.items() if "/report-" in path))
        assert (
            report["steps"][0]["kind"] == "auto"
            and len(report["steps"][0]["candidates"]) == result.search.tried + 1
        )
        assert "127.0.0.1" not in json.dumps(report)
        # the search is not done twice, whatever it would find now
        again = prepared(task(store, recorded=known(result)))
        assert (
            again.reused and again.search == result.search and again.artifact_digest == result.artifact_digest
        )

    def test_a_model_that_stays_as_it_was_has_lost_nothing(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Too few held-out samples for any budget are enough for it, by identity; that nothing was
        found is said.
        """
        clock = iter([0.0])
        monkeypatch.setattr(module, "monotonic", lambda: next(clock, 1e9))
        store.objects["/data/heldout.npz"] = labelled(20, 3)
        result = prepared(task(store))
        assert result.search and (result.search.chosen, result.search.ended) == ("source", "TimeLimit")
        assert result.artifact_size_bytes == len(MODEL)
        assert (
            "nothing that keeps the budget is at least 5 % smaller" in result.message
            and "its weights are few" not in result.message
        )

    def test_what_came_before_is_where_the_search_begins(self, store: ObjectStore) -> None:
        step = AutoStep(data=dataset(store.s3("data/selection.npz")))
        result = prepared(task(store, steps=(GraphStep(), step)))
        assert result.search and result.search.chosen != "source"

    def test_the_gates_own_file_is_refused(self, store: ObjectStore) -> None:
        store.objects["/data/copy.npz"] = store.objects["/data/heldout.npz"]
        error = refusal(task(store, AutoStep(data=dataset(store.s3("data/copy.npz")))))
        assert error.reason == "SelectionIsHeldOut" and error.message.startswith(f"{FIELD}.data.uri: ")
        # before the model is fetched
        assert not any(path.endswith("m.onnx") for _, path in store.requests)

    def test_samples_that_the_gate_has_too_are_counted(self, store: ObjectStore) -> None:
        x, y = samples(1600, 4)
        old, labels = samples(2000, 3)
        x[:40], y[:40] = old[:40], labels[:40]
        from modelrollout.testing.object_store import npz

        store.objects["/data/selection.npz"] = npz(x=x, labels=y)
        assert (
            f"{FIELD}.data: 40 different samples of it are among the held-out ones"
            in prepared(task(store)).message
        )

    @pytest.mark.parametrize(
        ("damage", "reason", "field"),
        [
            (lambda s: s.objects.pop("/data/selection.npz"), "ObjectMissing", f"{FIELD}.data.uri"),
            (
                lambda s: s.objects.update({"/data/selection.npz": b"PK\x03\x04 no"}),
                "DataNotNpz",
                f"{FIELD}.data.uri",
            ),
            (
                lambda s: s.objects.update({"/data/training.npz": b"no"}),
                "DataNotNpz",
                f"{FIELD}.training.data.uri",
            ),
        ],
    )
    def test_wrong_data_names_its_field(
        self, store: ObjectStore, damage: Callable[[ObjectStore], Any], reason: str, field: str
    ) -> None:
        damage(store)
        step = AutoStep(
            data=dataset(store.s3("data/selection.npz")),
            training=Training(data=dataset(store.s3("data/training.npz"))),
        )
        error = refusal(task(store, step))
        assert error.reason == reason and error.message.startswith(field)


def test_the_key_tells_what_the_image_could_try(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    step = AutoStep(
        data=dataset(store.s3("data/selection.npz")),
        training=Training(data=dataset(store.s3("data/training.npz"))),
    )
    whole = versions_of(step, FIELD)
    assert set(whole) == {"jax", "jaxlib", "optax", "onnx_ir"}
    assert set(versions_of(step.model_copy(update={"training": None}), FIELD)) == {"onnx_ir"}
    real = distributions.version

    def missing(name: str) -> str:
        if name.startswith("jax"):
            raise distributions.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(distributions, "version", missing)
    assert set(versions_of(step, FIELD)) == {"optax", "onnx_ir"} and not installed("jax")
