"""A model's folder as Triton knows it: config.pbtxt beside an ONNX file, and files beside the
folder of the version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from modelrollout.contract.formats import Served
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Batching, FetchTask, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.testing.object_store import SALT, ObjectStore, classifier, object_store
from modelrollout.triton.config import parse
from tests.unit.optimizer.backend_files import MODEL_PY
from tests.unit.optimizer.hostile import zipped

ONNX = classifier().SerializeToString()
CONFIG = b"""name: "m"
backend: "onnxruntime"
max_batch_size: 64
input [{name: "x" data_type: TYPE_FP32 dims: [4]}]
output [{name: "scores" data_type: TYPE_FP32 dims: [3] label_filename: "classes.txt"}]
dynamic_batching { preferred_batch_size: [8, 32] max_queue_delay_microseconds: 5000 }
instance_group [{count: 2 kind: KIND_GPU}]
optimization { execution_accelerators { gpu_execution_accelerator: [{name: "tensorrt"
  parameters {key: "precision_mode" value: "FP16"}}] } }
parameters {key: "intra_op_thread_count" value {string_value: "2"}}
model_warmup [{name: "one" batch_size: 1
  inputs {key: "x" value {data_type: TYPE_FP32 dims: [4] random_data: true}}}]
"""
LABELS = b"cat\ndog\nfox\n"
PYTHON = b"""backend: "python"
max_batch_size: 8
input [{name: "x" data_type: TYPE_FP32 dims: [4]}]
output [{name: "y" data_type: TYPE_FP32 dims: [4]}]
parameters: {key: "EXECUTION_ENV_PATH" value: {string_value: "$$TRITON_MODEL_DIRECTORY/%s"}}
"""


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


def prepared(store: ObjectStore, model: bytes, **changes: Any) -> TaskResult:
    store.objects["/m"] = model
    task = PrepareTask(
        source=store.http("m"),
        sha256=hashlib.sha256(model).hexdigest(),
        artifacts=store.s3("artifacts/a"),
        salt=SALT,
        **changes,
    )
    return run(task, Progress())


def refusal(store: ObjectStore, model: bytes, **changes: Any) -> JobError:
    with pytest.raises(JobError) as error:
        prepared(store, model, **changes)
    return error.value


def placed(store: ObjectStore, result: TaskResult, target: Path) -> dict[str, bytes]:
    """What the server of version 7 finds in the model's folder."""
    location = store.s3(str(result.artifact_uri).removeprefix("s3://"))
    digest = str(result.artifact_digest)
    run(FetchTask(artifact=location, digest=digest, model="m", number=7, target=str(target)), Progress())
    folder = target / "m"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def onnx(config: bytes = CONFIG, *more: tuple[str, bytes]) -> bytes:
    return zipped(("m/config.pbtxt", config), ("m/1/net.onnx", ONNX), ("m/classes.txt", LABELS), *more)


def test_the_configuration_beside_an_onnx_file_is_the_authors(store: ObjectStore, tmp_path: Path) -> None:
    files = placed(store, prepared(store, onnx(), target_hardware="gpu"), tmp_path)
    assert (files["7/model.onnx"], files["classes.txt"]) == (ONNX, LABELS)
    config, author = parse(files["config.pbtxt"].decode()), parse(CONFIG.decode())
    for field in ("dynamic_batching", "instance_group", "optimization", "model_warmup", "max_batch_size"):
        assert getattr(config, field) == getattr(author, field)
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert [(t.name, list(t.dims), t.label_filename) for t in config.output] == [
        ("scores", [3], "classes.txt")
    ]


def test_batching_in_spec_goes_before_that_of_the_file(store: ObjectStore, tmp_path: Path) -> None:
    batching = Batching(max_batch_size=16, max_queue_delay_us=100)
    files = placed(store, prepared(store, onnx(), target_hardware="gpu", batching=batching), tmp_path)
    config = parse(files["config.pbtxt"].decode())
    assert config.max_batch_size == 16
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert list(config.dynamic_batching.preferred_batch_size) == []
    error = refusal(store, onnx(), target_hardware="gpu", batching=Batching(max_batch_size=128))
    assert (error.reason, "at most 64" in error.message) == ("BatchingImpossible", True)


def test_one_number_a_row_may_be_written_as_triton_wants_it(store: ObjectStore, tmp_path: Path) -> None:
    """[n] is served as [n, 1]; the author's configuration says so with an empty reshape."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = (
        b'max_batch_size: 8 input [{name: "x" data_type: TYPE_FP32 dims: [4]}]'
        b' output [{name: "y" data_type: TYPE_FP32 dims: [1] reshape {}}]'
    )
    archive = zipped(("m/config.pbtxt", config), ("m/1/model.onnx", model.SerializeToString()))
    (output,) = parse(placed(store, prepared(store, archive), tmp_path)["config.pbtxt"].decode()).output
    assert (list(output.dims), output.HasField("reshape"), list(output.reshape.shape)) == ([1], True, [])
    other = config.replace(b"reshape {}", b"reshape {shape: [1, 1]}")
    archive = zipped(("m/config.pbtxt", other), ("m/1/model.onnx", model.SerializeToString()))
    assert refusal(store, archive).reason == "ConfigUnsupported"


@pytest.mark.parametrize(
    ("changed", "reason", "says"),
    [
        ((b"", b""), "ConfigMismatch", "KIND_GPU"),
        ((b"KIND_GPU", b"KIND_CPU gpus: [0]"), "ConfigUnsupported", "gpus"),
        ((b'"x" data_type', b'"z" data_type'), "ConfigMismatch", "'z'"),
        ((b"classes.txt", b"other.txt"), "ConfigMismatch", "other.txt"),
        ((b"classes.txt", b"../l.txt"), "ConfigUnsupported", "label_filename"),
        ((b'"FP16"', b'"/tmp/x.so"'), "ConfigUnsupported", "optimization"),
        ((b'string_value: "2"', b'string_value: "/x"'), "ConfigUnsupported", "path"),
        ((b'backend: "onnxruntime"', b'backend: "python"'), "ConfigMismatch", "python"),
        ((b"max_batch_size: 64", b"max_batch_size: -1"), "ConfigInvalid", "negative"),
        ((b"instance_group", b"model_operations {} instance_group"), "ConfigUnsupported", "library"),
        ((b"name:", b"nam:"), "ConfigInvalid", "Triton does not read it"),
    ],
)
def test_what_cannot_be_served_is_refused(
    store: ObjectStore, changed: tuple[bytes, bytes], reason: str, says: str
) -> None:
    config = CONFIG.replace(*changed) if changed[0] else CONFIG
    hardware = "gpu" if changed[0] and b"KIND_GPU" not in changed[0] else "any"
    error = refusal(store, onnx(config), target_hardware=hardware)
    assert (error.reason, says in error.message) == (reason, True)


def test_what_lies_beside_a_python_model_is_there_in_the_server(store: ObjectStore, tmp_path: Path) -> None:
    archive = zipped(
        ("m/config.pbtxt", PYTHON % b"env.tar.gz"), ("m/env.tar.gz", b"packed"),
        ("m/helpers/__init__.py", b""), ("m/1/model.py", MODEL_PY), ("README.md", b""),
    )  # fmt: skip
    result = prepared(store, archive, served=Served(backend="Python", code=True))
    assert "README.md" in result.message and "env" not in result.message
    files = placed(store, result, tmp_path)
    assert sorted(files) == ["7/model.py", "config.pbtxt", "env.tar.gz", "helpers/__init__.py"]
    path = parse(files["config.pbtxt"].decode()).parameters["EXECUTION_ENV_PATH"].string_value
    assert path == "$$TRITON_MODEL_DIRECTORY/env.tar.gz"
    assert placed(store, result, tmp_path) == files  # a second run finds them


def test_a_path_that_names_the_version_is_right_in_every_version(store: ObjectStore, tmp_path: Path) -> None:
    archive = zipped(
        ("m/config.pbtxt", PYTHON % b"1/env.tar.gz"),
        ("m/1/env.tar.gz", b"packed"),
        ("m/1/model.py", MODEL_PY),
    )
    files = placed(store, prepared(store, archive, served=Served(backend="Python", code=True)), tmp_path)
    path = parse(files["config.pbtxt"].decode()).parameters["EXECUTION_ENV_PATH"].string_value
    assert path == "/models/.version/env.tar.gz"
    assert (tmp_path / ".version/env.tar.gz").read_bytes() == b"packed"


def test_code_that_names_a_version_is_said(store: ObjectStore) -> None:
    archive = zipped(
        ("m/config.pbtxt", PYTHON % b"e"), ("m/e", b""), ("m/1/model.py", MODEL_PY + b"W = '/models/m/1/w'\n")
    )
    assert "/1/" in prepared(store, archive, served=Served(backend="Python", code=True)).message


def test_a_path_to_nothing_is_refused(store: ObjectStore) -> None:
    archive = zipped(("m/config.pbtxt", PYTHON % b"env.tar.gz"), ("m/1/model.py", MODEL_PY))
    error = refusal(store, archive, served=Served(backend="Python", code=True))
    assert (error.reason, "env.tar.gz" in error.message) == ("ConfigMismatch", True)


@pytest.mark.parametrize("kind", ["KIND_GPU", "KIND_CPU"])
def test_instances_on_gpus_need_a_gpu(store: ObjectStore, kind: str) -> None:
    config = PYTHON % b"e" + f"instance_group [{{kind: {kind}}}]".encode()
    archive = zipped(("m/config.pbtxt", config), ("m/e", b""), ("m/1/model.py", MODEL_PY))
    served = Served(backend="Python", code=True)
    if kind == "KIND_GPU":
        error = refusal(store, archive, served=served)
        assert (error.reason, "spec.serving.resources" in error.message) == ("ConfigMismatch", True)
    assert prepared(store, archive, served=served, target_hardware="gpu").reason == "Completed"


@pytest.mark.parametrize("name", ["@model/2/model.py", "@model/config.pbtxt", "@model/../x", "@model/"])
def test_beside_a_version_lies_no_other_one(name: str) -> None:
    from modelrollout.optimizer.store.artifact import is_name

    assert not is_name(name)
    assert is_name("@model/env.tar.gz") and is_name("@model/helpers/2.py")
