"""Models too large for one file, in kilobytes: the size from which on a model is split is
lowered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import MAX_MODEL_BYTES
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import (
    AutoStep,
    DistillStep,
    GraphStep,
    HalfPrecisionStep,
    Int4Step,
    Int8Step,
    PruneStep,
    Step,
    Training,
)
from modelrollout.contract.tasks import FetchTask, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.archive import gather
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import check, constants_inside
from modelrollout.optimizer.steps import run as run_module
from modelrollout.optimizer.steps.memory import expect_memory
from modelrollout.optimizer.steps.run import Applied, field_of, run_steps
from modelrollout.testing.object_store import (
    SALT,
    ObjectStore,
    classifier,
    dataset,
    labelled,
    npz,
    object_store,
    samples,
)
from modelrollout.triton.layout import DATA_FILE, MODEL_FILE
from tests.unit.optimizer.hostile import changed, external, zipped

ONE_FILE = 4096
DATA = dataset(ObjectStore().http("data.npz"))
TRAINING = Training(data=DATA, epochs=1, learning_rate=0.001, batch_size=32)


def split(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir()
    files.save(model, folder / MODEL_FILE, ONE_FILE)
    assert files.is_split(folder / MODEL_FILE)
    return folder / MODEL_FILE


def wide() -> onnx.ModelProto:
    """A network whose hidden layers are matrices of some KiB, the channels of which can be
    removed.
    """
    model = classifier(hidden=1024)
    model.graph.node.insert(1, helper.make_node("Relu", ["h"], ["r"]))
    model.graph.node[2].input[0] = "r"
    return model


def applied(recipe: Sequence[Step], source: Path, folder: Path, one_file: int) -> Applied:
    folder.mkdir()
    x, labels = samples(300, 5)
    data = Data({"x": x}, labels, {})
    specified = {
        f"{field_of(i, step)}.{name}": data for i, step in enumerate(recipe) for name in step.sources()
    }
    return run_steps(
        recipe, source, folder, specified, {}, gate=Gate(data=DATA, metrics=(GateMetric(max_drop=0.5),)),
        symmetric=False, hardware="any",
        advance=lambda *_: None, one_file=one_file,
    )  # fmt: skip


RECIPES: dict[str, tuple[Step, ...]] = {
    "graph": (GraphStep(),),
    "float16": (HalfPrecisionStep(),),
    "bfloat16": (HalfPrecisionStep(type="BFloat16"),),
    "int8 dynamic": (Int8Step(method="Dynamic"),),
    "int8 static": (Int8Step(method="Static", calibration=DATA),),
    "int8 by sensitivity": (Int8Step(method="Static", calibration=DATA, leave_out="BySensitivity"),),
    "int4": (Int4Step(min_weights=64),),
    "single weights": (PruneStep(granularity="Unstructured", sparsity=0.5),),
    "channels": (PruneStep(sparsity=0.5),),
    "channels by activation": (PruneStep(sparsity=0.5, importance="Activation", training=TRAINING),),
    "a student": (DistillStep(size=0.5, training=TRAINING),),
    "one after the other": (GraphStep(), PruneStep(sparsity=0.25), HalfPrecisionStep()),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_makes_the_same_of_a_split_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / MODEL_FILE
    files.save(wide(), whole)
    result = applied(RECIPES[name], whole, tmp_path / "one", files.ONE_FILE_BYTES)
    assert not files.is_split(result.path)

    optimized = applied(RECIPES[name], split(wide(), tmp_path / "split"), tmp_path / "two", 1024)
    assert files.is_split(optimized.path)
    check(optimized.path)
    x, _ = samples(50, 6)
    answers = [ort.InferenceSession(path).run(None, {"x": x})[0] for path in (result.path, optimized.path)]
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5, atol=1e-5)
    weights = [
        {t.name: (t.data_type, list(t.dims), t.raw_data) for t in onnx.load(p).graph.initializer}
        for p in (result.path, optimized.path)
    ]
    assert weights[1].keys() == weights[0].keys()
    assert [
        left.relative_to(tmp_path / "two").parts[0]
        for left in (tmp_path / "two").rglob("*")
        if left.is_file()
    ] == [f"step-{len(RECIPES[name]) - 1}"] * 2


def test_what_becomes_small_enough_is_one_file(tmp_path: Path) -> None:
    result = applied((HalfPrecisionStep(),), split(wide(), tmp_path / "split"), tmp_path / "two", 20000)
    assert not files.is_split(result.path)
    assert result.done[0]["sizeBefore"] > 20000 > result.done[0]["sizeAfter"] == result.path.stat().st_size


def test_a_step_splits_what_came_in_one_file_and_is_too_large_for_it(tmp_path: Path) -> None:
    whole = tmp_path / "m.onnx"
    whole.write_bytes(wide().SerializeToString())
    result = applied((GraphStep(),), whole, tmp_path / "two", 1024)
    assert files.is_split(result.path)
    assert whole.exists()


def test_auto_searches_a_split_model(tmp_path: Path) -> None:
    step = AutoStep(data=DATA, time_limit="1m")
    result = applied((step,), split(wide(), tmp_path / "split"), tmp_path / "two", 1024)
    chosen = result.done[0]["search"]["chosen"]
    assert chosen != "source", result.warnings
    assert result.done[0]["sizeAfter"] == files.size_of(result.path) < result.done[0]["sizeBefore"]


def test_equal_models_give_equal_bytes_and_small_constants_stay_in_the_graph(tmp_path: Path) -> None:
    first, second = split(wide(), tmp_path / "a"), split(wide(), tmp_path / "b")
    assert [path.read_bytes() for path in files.files_of(first).values()] == [
        path.read_bytes() for path in files.files_of(second).values()
    ]
    outside = {
        t.name for t in onnx.load(first, load_external_data=False).graph.initializer if files.is_external(t)
    }
    assert outside == {"w1", "w2"}
    assert [(t.name, list(t.dims), t.raw_data) for t in onnx.load(first).graph.initializer] == [
        (t.name, list(t.dims), t.raw_data) for t in wide().graph.initializer
    ]


def test_numbers_that_are_no_bytes_yet_are_moved_too(tmp_path: Path) -> None:
    model = wide()
    values = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor("w1", TensorProto.FLOAT, values.shape, values.ravel().tolist())
    )
    model.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [1000], [b"name"] * 1000))
    path = split(model, tmp_path / "a")
    actual = {t.name: t for t in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(actual["w1"]), values)
    assert actual["names"].string_data[999] == b"name"


def test_constants_among_the_inputs_of_a_split_model(tmp_path: Path) -> None:
    model = wide()
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    (tmp_path / "b").mkdir()
    cleaned = constants_inside(split(model, tmp_path / "a"), tmp_path / "b" / MODEL_FILE)
    assert [spec.name for spec in check(cleaned).inputs] == ["x"]
    ort.InferenceSession(cleaned)


def _said(path: Path, key: str, value: str) -> None:
    model = onnx.load(path, load_external_data=False)
    next(e for e in model.graph.initializer[0].external_data if e.key == key).value = value
    files.save_graph(model, path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("location", "../other/model.onnx.data", "ExternalData"),
        ("location", "/etc/passwd", "ExternalData"),
        ("offset", "1000000", "ExternalDataMissing"),
        ("offset", "-1", "ExternalDataMissing"),
        ("length", "5", "ExternalDataMissing"),
        ("length", "many", "ExternalDataMissing"),
    ],
)
def test_a_split_model_that_says_something_else_is_refused(
    key: str, value: str, reason: str, tmp_path: Path
) -> None:
    path = split(wide(), tmp_path / "a")
    _said(path, key, value)
    with pytest.raises(JobError) as error:
        check(path)
    assert error.value.reason == reason


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects |= {"/heldout.npz": labelled(2000), "/calibration.npz": npz(x=samples(200, 5)[0])}
        yield server


def packed(model: onnx.ModelProto) -> bytes:
    """As ``onnx.save`` does it by default for all tensors, the smallest too, in files of their own
    names.
    """
    entries = []
    for number, tensor in enumerate(model.graph.initializer):
        entries.append((f"export/weights/{number}.bin", tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"weights/{number}.bin")
    return zipped(("export/large.onnx", model.SerializeToString()), *entries)


def task_for(store: ObjectStore, recipe: tuple[Step, ...], **changes: Any) -> PrepareTask:
    content = packed(wide())
    store.objects["/large.zip"] = content
    fields: dict[str, Any] = {
        "source": store.http("large.zip"),
        "sha256": hashlib.sha256(content).hexdigest(),
        "steps": recipe,
        "gate": Gate(data=dataset(store.http("heldout.npz")), metrics=(GateMetric(max_drop=0.05),)),
        "artifacts": store.s3("artifacts/a"),
        "salt": SALT,
        "one_file_bytes": ONE_FILE,
    }
    return PrepareTask(**(fields | changes))


def served(store: ObjectStore, result: TaskResult, target: Path) -> Path:
    """What the server's loader makes of the artifact."""
    assert result.artifact_uri and result.artifact_digest
    location = store.s3(result.artifact_uri.removeprefix("s3://"))
    run(
        FetchTask(
            artifact=location, digest=result.artifact_digest, model="large", number=3, target=str(target)
        ),
        Progress(),
    )
    return target / "large" / "3" / MODEL_FILE


@pytest.mark.parametrize(
    "recipe", [(), (Int8Step(),), (GraphStep(), HalfPrecisionStep())], ids=["as it is", "int8", "two steps"]
)
def test_from_the_archive_to_the_servers_folder(
    store: ObjectStore, recipe: tuple[Step, ...], tmp_path: Path
) -> None:
    result = run(task_for(store, recipe, one_file_bytes=1024), Progress())
    assert (result.reason, result.metrics[0].verdict) == ("Completed", "Successful"), result.message
    path = served(store, result, tmp_path)
    assert sorted(p.name for p in path.parent.iterdir()) == [MODEL_FILE, DATA_FILE]
    assert result.artifact_size_bytes == files.size_of(path)
    x, _ = samples(300, 8)
    desired = ort.InferenceSession(wide().SerializeToString()).run(None, {"x": x})[0].argmax(axis=1)
    actual = ort.InferenceSession(path).run(None, {"x": x})[0].argmax(axis=1)
    assert np.mean(actual == desired) > 0.98
    manifest = json.loads(
        next(body for name, body in store.objects.items() if name.endswith("/manifest.json"))
    )
    assert (
        manifest["files"][DATA_FILE]["sha256"]
        == hashlib.sha256((tmp_path / "large" / "3" / DATA_FILE).read_bytes()).hexdigest()
    )


def test_what_is_small_with_its_data_is_one_file(store: ObjectStore, tmp_path: Path) -> None:
    path = served(store, run(task_for(store, (), one_file_bytes=1 << 20), Progress()), tmp_path)
    assert [p.name for p in path.parent.iterdir()] == [MODEL_FILE]


def test_tensors_that_share_their_bytes_are_held_to_the_limit(store: ObjectStore) -> None:
    model = wide()
    model.graph.initializer.extend(
        TensorProto(name=f"again{i}", data_type=TensorProto.FLOAT, dims=[4, 256]) for i in range(100)
    )
    shared = model.graph.initializer[0].raw_data
    for tensor in model.graph.initializer[3:]:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w")
    content = zipped(("m.onnx", model.SerializeToString()), ("w", shared))
    store.objects["/large.zip"] = content
    task = task_for(store, ()).model_copy(
        update={"sha256": hashlib.sha256(content).hexdigest(), "max_bytes": 100_000}
    )
    store.objects["/large.zip"] = content
    with pytest.raises(JobError) as error:
        run(task, Progress())
    assert error.value.reason == "TooLarge"


def test_constants_of_nodes_beyond_what_protobuf_takes_are_refused_unread(tmp_path: Path) -> None:
    model = wide()
    value = TensorProto(
        name="c", data_type=TensorProto.UINT8, dims=[3 << 30], data_location=TensorProto.EXTERNAL
    )
    value.external_data.add(key="location", value="c.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["constant"], value=value))
    with (tmp_path / "c.bin").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(JobError) as error:
        gather(model, tmp_path, tmp_path, tmp_path / MODEL_FILE, MAX_MODEL_BYTES)
    assert error.value.reason == "ModelTooLarge"


def test_weights_beside_a_file_that_came_alone_are_refused(store: ObjectStore) -> None:
    content = changed(external(DATA_FILE))
    task = task_for(store, ()).model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    store.objects["/large.zip"] = content
    with pytest.raises(JobError) as error:
        run(task, Progress())
    assert error.value.reason == "ExternalData"


def test_a_step_that_cannot_have_its_memory_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "memory_limit", lambda: 10_000)
    with pytest.raises(JobError) as error:
        applied((GraphStep(), Int8Step()), split(wide(), tmp_path / "a"), tmp_path / "two", 1024)
    assert (error.value.reason, "steps[1].int8" in error.value.message) == ("MemoryLimitTooLow", True)
    auto = AutoStep(data=DATA, time_limit="1m")
    refused = applied((auto,), split(wide(), tmp_path / "b"), tmp_path / "three", 1024).done[0]["refused"]
    assert refused["int8"].startswith("MemoryLimitTooLow: ")


def test_memory_that_cannot_be_enough_is_told_before_the_work() -> None:
    expect_memory(Int8Step(), "the step", 1 << 30, limit=4 << 30)
    expect_memory(GraphStep(), "the step", 9 << 30, limit=1 << 30)
    expect_memory(Int8Step(), "the step", 100 << 30, limit=None)
    with pytest.raises(JobError) as error:
        expect_memory(Int8Step(), "spec.optimization.steps[0].int8", 2 << 30, limit=4 << 30)
    assert (error.value.reason, error.value.code) == ("MemoryLimitTooLow", ExitCode.OUT_OF_RESOURCES)
    assert error.value.message.startswith("spec.optimization.resources.limits.memory: 4.0 GiB")
    assert "set 8Gi" in error.value.message  # 2.5 times 2 GiB, and room
