"""Warm-up requests: what a model answers in the Job is what its servers begin with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import (
    CPUS_ENV,
    OBJECTIVES_ENV,
    SERVES_ENV,
    TENSORRT_ENV,
    ServingConfig,
)
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Batching, FetchTask, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.model import warmup
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.warmup import WarmupImpossibleError, find_warmup
from modelrollout.optimizer.passthrough.servable import expect_servable
from modelrollout.optimizer.pipeline import convert
from modelrollout.testing.object_store import SALT, ObjectStore, classifier, dataset, labelled, object_store
from modelrollout.triton.config import Warmup, parse, printed, render, with_warmup
from modelrollout.triton.tensors import TensorSpec

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
Shape = Sequence[str | int]


def model(
    folder: Path, shape: Shape, *nodes: onnx.NodeProto, kind: int = FLOAT, **constants: np.ndarray
) -> Path:
    """A file of nodes from ``x`` to ``y``; without any, ``y`` is ``x``."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    )
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def found(path: Path, most: int = 0, **samples: np.ndarray) -> Warmup:
    return find_warmup(path, check(path).inputs, most, samples or None)


def node(kind: str, *inputs: str, to: str = "y") -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [to])


def far_rows(folder: Path) -> Path:
    """Rows of a table by number, from 100 on: there is no row for 0."""
    return model(
        folder,
        ["n", 1],
        node("Sub", "x", "first", to="row"),
        node("Gather", "table", "row"),
        kind=INT64,
        first=np.array(100),
        table=np.ones((8, 2), np.float32),
    )


def wide(folder: Path, megabytes: int) -> Path:
    """Each sample takes so much memory while it is computed."""
    repeats = np.array([1, megabytes << 18], np.int64)
    return model(
        folder,
        ["n", 1],
        node("Tile", "x", "repeats", to="many"),
        node("ReduceMax", "many"),
        repeats=repeats,
    )


@pytest.mark.parametrize(
    ("shape", "most", "samples", "expected"),
    [
        (["n", 4], 16, {}, Warmup({"x": (1, 4)}, (1, 16))),
        (["n", 4], 1, {}, Warmup({"x": (1, 4)}, (1,))),
        (["n", 4], 0, {}, Warmup({"x": (1, 4)}, (1,))),
        ([8, 4], 0, {}, Warmup({"x": (8, 4)}, (1,))),
        (["n"], 4, {}, Warmup({"x": (1,)}, (1, 4))),
        (["n", "words"], 2, {}, Warmup({"x": (1, 64)}, (1, 2))),
        (["n", "words"], 2, {"x": np.ones((9, 12), np.float32)}, Warmup({"x": (1, 12)}, (1, 2))),
    ],
)
def test_one_sample_and_the_largest_batch_in_the_size_of_the_data(
    tmp_path: Path, shape: Shape, most: int, samples: dict[str, np.ndarray], expected: Warmup
) -> None:
    assert found(model(tmp_path, shape), most, **samples) == expected


def test_a_size_that_the_model_refuses_gives_way_to_the_smallest(tmp_path: Path) -> None:
    path = model(tmp_path, ["n", "words"], node("Add", "x", "places"), places=np.ones((1, 8), np.float32))
    assert found(path, 4) == Warmup({"x": (1, 1)}, (1, 4))


def test_text_is_empty_words(tmp_path: Path) -> None:
    assert found(model(tmp_path, ["n", 2], kind=STRING), 4) == Warmup({"x": (1, 2)}, (1, 4))


def test_a_model_that_refuses_zeros_gets_none_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(WarmupImpossibleError, match=r"does not answer zeros; ONNX Runtime says: .*Gather"):
        found(far_rows(tmp_path), 4)


def test_a_batch_beyond_the_memory_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "memory_limit", lambda: 2 << 30)
    assert found(wide(tmp_path, 100), 64) == Warmup({"x": (1, 1)}, (1,))
    monkeypatch.setattr(warmup, "memory_limit", lambda: 1 << 20)
    with pytest.raises(WarmupImpossibleError, match="too little memory"):
        found(wide(tmp_path, 100), 64)


def test_inputs_are_no_larger_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "LIMIT_BYTES", 64)
    path = model(tmp_path, ["n", 4])
    assert found(path, 4) == Warmup({"x": (1, 4)}, (1, 4))
    assert found(path, 5) == Warmup({"x": (1, 4)}, (1,))
    with pytest.raises(WarmupImpossibleError, match="more than 64 bytes"):
        found(model(tmp_path, ["n", 17]))


def test_a_slow_model_is_not_asked_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wide(tmp_path, 1)
    monkeypatch.setattr(warmup, "LIMIT_SECONDS", 0.0)
    with pytest.raises(WarmupImpossibleError, match="one sample takes 0 s here, more than 0"):
        found(path, 4)
    monkeypatch.setattr(warmup, "TRIAL_SECONDS", 0.1)
    with pytest.raises(WarmupImpossibleError, match=r"cannot be asked within 0\.1 s"):
        found(path, 4)


# with prepare


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/models/m.onnx"] = classifier(hidden=8).SerializeToString()
        server.objects["/data/heldout.npz"] = labelled(200)
        yield server


def task(store: ObjectStore, **changes: Any) -> PrepareTask:
    fields: dict[str, Any] = {
        "source": store.s3("models/m.onnx"),
        "sha256": hashlib.sha256(store.objects["/models/m.onnx"]).hexdigest(),
        "gate": Gate(data=dataset(store.s3("data/heldout.npz")), metrics=(GateMetric(min=0.5),)),
        "batching": Batching(max_batch_size=16),
        "artifacts": store.s3("artifacts/team-a/"),
        "salt": SALT,
        "warmup": True,
    }
    return PrepareTask(**(fields | changes))


def artifact(store: ObjectStore, result: TaskResult) -> dict[str, bytes]:
    folder = "/" + str(result.artifact_uri).removeprefix("s3://") + "/"
    files = json.loads(store.objects[folder + "manifest.json"])["files"]
    return {name: store.objects[folder + entry["path"]] for name, entry in files.items()}


def sizes(config: bytes | str) -> list[int]:
    text = config if isinstance(config, str) else config.decode()
    return [sample.batch_size for sample in parse(text).model_warmup]


def test_servers_warm_up_with_what_the_job_has_asked(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(task(store), Progress())
    files = artifact(store, result)
    assert result.message == "" and set(files) == {"model.onnx", "config.pbtxt", "report.json"}
    assert sizes(files["config.pbtxt"]) == [1, 16]
    assert json.loads(files["report.json"])["warmup"] == {"batchSizes": [1, 16], "shapes": {"x": [1, 4]}}

    monkeypatch.setenv(SERVES_ENV, "{}")
    location = store.s3(str(result.artifact_uri).removeprefix("s3://"))
    fetch = FetchTask(
        artifact=location,
        digest=str(result.artifact_digest),
        model="digits",
        number=7,
        target=str(tmp_path),
        serving=ServingConfig(batch=4),
    )
    run(fetch, Progress())
    assert sizes((tmp_path / "digits" / "config.pbtxt").read_text()) == [1, 16, 4]


def test_servers_count_what_their_revision_is_to_tell_of_latencies(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(task(store), Progress())
    location = store.s3(str(result.artifact_uri).removeprefix("s3://"))
    fetch = FetchTask(
        artifact=location, digest=str(result.artifact_digest), model="digits", number=7, target=str(tmp_path)
    )

    def served() -> list[list[float]]:
        run(fetch, Progress())
        config = parse((tmp_path / "digits" / "config.pbtxt").read_text())
        assert sizes((tmp_path / "digits" / "config.pbtxt").read_text()) == [1, 16], "as it was stored"
        return [list(c.histogram_options.buckets) for c in config.model_metrics.metric_control]

    monkeypatch.setenv(SERVES_ENV, "{}")
    assert served() == []
    monkeypatch.setenv(OBJECTIVES_ENV, "[50,200]")
    assert served() == [[49, 199]]
    assert run(fetch, Progress()).reused, "a restarted container finds it in place"
    for odd in ("50", "[true]", "[0]", "[1.5]", "{", '["50"]'):
        monkeypatch.setenv(OBJECTIVES_ENV, odd)
        with pytest.raises(JobError) as failed:
            run(fetch, Progress())
        assert failed.value.reason == "TaskInvalid" and "one version" in failed.value.message


def test_servers_have_as_many_threads_as_they_may_use_cpus(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(task(store), Progress())
    fetch = FetchTask(
        artifact=store.s3(str(result.artifact_uri).removeprefix("s3://")),
        digest=str(result.artifact_digest),
        model="digits",
        number=7,
        target=str(tmp_path),
    )

    def threads(serving: ServingConfig | None = None) -> str | None:
        run(fetch.model_copy(update={"serving": serving}), Progress())
        written = parse((tmp_path / "digits" / "config.pbtxt").read_text()).parameters
        return written["intra_op_thread_count"].string_value if "intra_op_thread_count" in written else None

    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert threads() is None, "the artifact says nothing of a server's threads"
    for cpus, expected in (("0", None), ("1", "1"), ("6", "6"), ("64", "8"), ("999999999", "8")):
        monkeypatch.setenv(CPUS_ENV, cpus)
        assert threads() == expected
    assert threads(ServingConfig(instances=4)) == "2"
    assert run(fetch.model_copy(update={"serving": ServingConfig(instances=4)}), Progress()).reused
    for odd in ("", "-1", "1.5", "many", "1" * 10):
        monkeypatch.setenv(CPUS_ENV, odd)
        with pytest.raises(JobError) as failed:
            run(fetch, Progress())
        assert failed.value.reason == "TaskInvalid" and "one version" in failed.value.message


def test_a_servers_engines_lie_by_artifact_and_settings(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(task(store), Progress())
    digest = str(result.artifact_digest)
    fetch = FetchTask(
        artifact=store.s3(str(result.artifact_uri).removeprefix("s3://")),
        digest=digest,
        model="digits",
        number=7,
        target=str(tmp_path),
    )

    def accelerators() -> list[dict[str, str]]:
        run(fetch, Progress())
        optimization = parse((tmp_path / "digits" / "config.pbtxt").read_text()).optimization
        return [dict(a.parameters) for a in optimization.execution_accelerators.gpu_execution_accelerator]

    assert accelerators() == []
    for told, workspace in (("{}", "0"), ('{"workspace_bytes":1024}', "1024")):
        monkeypatch.setenv(TENSORRT_ENV, told)
        [parameters] = accelerators()
        path = f"/tmp/engines/{digest.removeprefix('sha256:')}-{workspace}"
        assert parameters["trt_engine_cache_path"] == path
        assert parameters.get("max_workspace_size_bytes", "0") == workspace
    assert run(fetch, Progress()).reused
    for odd in ("", "[]", '{"workspace_bytes":0}', '{"precision":"FP16"}'):
        monkeypatch.setenv(TENSORRT_ENV, odd)
        with pytest.raises(JobError) as failed:
            run(fetch, Progress())
        assert failed.value.reason == "TaskInvalid" and "one version" in failed.value.message


def test_a_loader_that_knows_no_warmup_gets_the_artifact_of_before(store: ObjectStore) -> None:
    before, after = run(task(store, warmup=False), Progress()), run(task(store), Progress())
    assert sizes(artifact(store, before)["config.pbtxt"]) == []
    keys = {
        json.loads(artifact(store, result)["report.json"])["key"]
        for result in (before, after, run(task(store, salt="0" * 16), Progress()))
    }
    assert len(keys) == 2


def test_without_an_answer_the_model_is_served_as_before_and_the_result_says_so(
    store: ObjectStore, tmp_path: Path
) -> None:
    store.objects["/models/m.onnx"] = far_rows(tmp_path).read_bytes()
    result = run(task(store, gate=None), Progress())
    assert "servers are ready without a warm-up: the model does not answer zeros" in result.message
    files = artifact(store, result)
    assert sizes(files["config.pbtxt"]) == []
    assert json.loads(files["report.json"])["warmup"] is None


def test_a_warm_up_for_very_many_inputs_does_not_cost_the_model(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "CONFIG_LIMIT_BYTES", 400)
    result = run(task(store), Progress())
    assert result.message == "servers are ready without a warm-up: for 1 inputs config.pbtxt is too large"
    assert sizes(artifact(store, result)["config.pbtxt"]) == []


def test_a_warm_up_that_reads_a_file_is_refused() -> None:
    x = [TensorSpec("x", "FP32", (-1, 4))]
    config = with_warmup(parse(render(x, x, Batching(), "KIND_AUTO")), Warmup({"x": (1, 4)}, (1,)))
    expect_servable(None, {"model.onnx"}, printed(config))
    config.model_warmup[0].inputs["x"].input_data_file = "../../secret"
    with pytest.raises(JobError, match="from a file"):
        expect_servable(None, {"model.onnx"}, printed(config))
