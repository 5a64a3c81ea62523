"""Sources that other backends of Triton serve as they are: through the Job, into the store, and to
where Triton reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelrollout.contract.common import SERVES_ENV
from modelrollout.contract.formats import Served, Tensor
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Batching, FetchTask, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.pipeline.report import interface_of
from modelrollout.optimizer.store import artifact
from modelrollout.testing.object_store import SALT, ObjectStore, known, object_store
from modelrollout.triton.config import parse, pb
from tests.unit.optimizer.backend_files import (
    CONFIG,
    IR,
    MODEL_PY,
    OPENVINO,
    PLAN,
    SAVED_MODEL,
    TORCHSCRIPT,
    engine,
    packed,
    vllm,
)
from tests.unit.optimizer.hostile import tarred, zipped
from tests.unit.optimizer.hostile_backends import X, Y

INTERFACE = interface_of(["x: FP32 [n, 4]"], ["scores: FP32 [n, 3]"])


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


def prepared(
    store: ObjectStore, model: bytes, backend: str, told: bool = False, code: bool = False, **changes: Any
) -> TaskResult:
    store.objects["/m"] = model
    tensors: dict[str, Any] = {"inputs": (X,), "outputs": (Y,)} if told else {}
    served = Served(backend=backend, code=code, **tensors)
    fields: dict[str, Any] = {
        "source": store.http("m"),
        "sha256": hashlib.sha256(model).hexdigest(),
        "artifacts": store.s3("artifacts/a"),
        "salt": SALT,
    }
    return run(PrepareTask(served=served, **(fields | changes)), Progress())


def placed(store: ObjectStore, result: TaskResult, target: Path) -> dict[str, bytes]:
    """What the server finds, by its path below the repository."""
    target.mkdir(exist_ok=True)
    location = store.s3(str(result.artifact_uri).removeprefix("s3://"))
    run(
        FetchTask(
            artifact=location,
            digest=str(result.artifact_digest),
            model="digits",
            number=7,
            target=str(target),
        ),
        Progress(),
    )
    return {
        str(p.relative_to(target)): p.read_bytes()
        for p in target.rglob("*")
        if p.is_file() and not p.is_relative_to(target / ".version")
    }


def config_of(files: dict[str, bytes]) -> Any:
    return parse(files["digits/config.pbtxt"].decode())


@pytest.mark.parametrize(
    ("backend", "model", "told", "words", "names"),
    [
        ("TensorRT", PLAN, True, ("tensorrt", "tensorrt_plan", "model.plan"), ["model.plan"]),
        ("TensorRT", packed("model.plan", PLAN), False, ("tensorrt", "tensorrt_plan", "model.plan"),
            ["model.plan"]),
        ("TorchScript", TORCHSCRIPT, True, ("pytorch", "pytorch_libtorch", "model.pt"), ["model.pt"]),
        ("TorchScript", packed("model.pt", TORCHSCRIPT), False, ("pytorch", "pytorch_libtorch", "model.pt"),
            ["model.pt"]),
        (
            "SavedModel",
            SAVED_MODEL,
            False,
            ("tensorflow", "tensorflow_savedmodel", "model.savedmodel"),
            ["model.savedmodel/saved_model.pb", "model.savedmodel/variables/variables.data-00000-of-00001"],
        ),
        ("OpenVINO", OPENVINO, False, ("openvino", "", "model.xml"), ["model.bin", "model.xml"]),
        ("OpenVINO", zipped(("model.xml", IR), ("model.bin", bytes(48))), True, ("openvino", "", "model.xml"),
            ["model.bin", "model.xml"]),
        ("Python", MODEL_PY, True, ("python", "", "model.py"), ["model.py"]),
        ("Python", packed("model.py", MODEL_PY, ("m/1/pre/__init__.py", b""), ("m/1/w.npz", b"w")), False,
            ("python", "", "model.py"), None),
    ],
)  # fmt: skip
def test_is_served_as_it_is(
    store: ObjectStore,
    tmp_path: Path,
    backend: str,
    model: bytes,
    told: bool,
    words: tuple[str, ...],
    names: list[str] | None,
) -> None:
    result = prepared(store, model, backend, told, code=backend == "Python")
    assert result.interface == INTERFACE and result.message == ""
    files = placed(store, result, tmp_path / "r")
    names = ["model.py", "pre/__init__.py", "w.npz"] if names is None else names
    assert sorted(files) == sorted(["digits/config.pbtxt", *(f"digits/7/{n}" for n in names)])
    config = config_of(files)
    assert (config.backend, config.platform, config.default_model_filename) == words
    assert (
        [g.count for g in config.instance_group] == [1]
        and not config.name
        and not config.HasField("version_policy")
    )
    assert result.artifact_size_bytes == sum(len(body) for name, body in files.items() if "/7/" in name)
    assert (tmp_path / "r" / ".version").resolve() == tmp_path / "r" / "digits" / "7"


def test_the_bytes_are_those_of_the_source_and_a_second_fetch_finds_them(
    store: ObjectStore, tmp_path: Path
) -> None:
    result = prepared(store, OPENVINO, "OpenVINO")
    assert placed(store, result, tmp_path)["digits/7/model.xml"] == IR
    before = len(store.requests)
    placed(store, result, tmp_path)
    assert len(store.requests) == before + 1, "only the manifest"
    (tmp_path / "digits" / "7" / "model.bin").write_bytes(b"damaged")
    assert placed(store, result, tmp_path)["digits/7/model.bin"] == bytes(48)


def test_equal_work_is_found_and_other_work_is_other(store: ObjectStore) -> None:
    first = prepared(store, PLAN, "TensorRT", told=True)
    again = prepared(store, PLAN, "TensorRT", told=True, recorded=known(first))
    assert (
        again.reused and again.artifact_digest == first.artifact_digest and again.interface == first.interface
    )
    others = [
        prepared(
            store, PLAN, "TensorRT", told=True, recorded=known(first), batching=Batching(max_batch_size=8)
        ),
        prepared(store, PLAN, "TensorRT", told=True, recorded=known(first), target_hardware="H100"),
    ]
    assert not any(r.reused for r in others)
    # What was found to fit two GPUs is checked again for one.
    fitting = prepared(store, vllm(engine(tensor_parallel_size=2)), "VLLM", gpus=2)
    assert prepared(
        store, vllm(engine(tensor_parallel_size=2)), "VLLM", recorded=known(fitting), gpus=2
    ).reused
    with pytest.raises(JobError, match="divides the model over 2; request 2 in limits"):
        prepared(store, vllm(engine(tensor_parallel_size=2)), "VLLM", recorded=known(fitting), gpus=1)
    # What was prepared with the right to run code is not taken for a model without it.
    allowed = prepared(store, vllm(), "VLLM", code=True)
    assert not prepared(store, vllm(), "VLLM", recorded=known(allowed)).reused


def test_an_archive_of_any_shape(store: ObjectStore, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:  # as tar czf x.tgz . does, on a Mac
        for name, content in (
            ("./model.xml", IR),
            ("./model.bin", bytes(48)),
            ("./._model.xml", b"mac"),
            ("./config.pbtxt", CONFIG),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    files = placed(store, prepared(store, buffer.getvalue(), "OpenVINO"), tmp_path)
    assert sorted(files) == ["digits/7/model.bin", "digits/7/model.xml", "digits/config.pbtxt"]


def test_what_the_backend_does_not_read_is_left_and_told(store: ObjectStore, tmp_path: Path) -> None:
    result = prepared(
        store, packed("model.plan", PLAN, ("m/labels.txt", b"a"), ("m/1/notes.md", b"b")), "TensorRT"
    )
    assert "m/labels.txt" in result.message and "notes.md" in result.message
    assert sorted(placed(store, result, tmp_path)) == ["digits/7/model.plan", "digits/config.pbtxt"]


def test_the_authors_config_is_kept_where_only_the_author_knows(store: ObjectStore, tmp_path: Path) -> None:
    text = b"""name: "theirs" version_policy { specific { versions: 1 } } platform: "tensorrt_plan" max_batch_size: 32
    input { name: "x" data_type: TYPE_FP32 dims: [4] } output { name: "scores" data_type: TYPE_FP32 dims: [3] }
    instance_group { count: 2 profile: "1" } optimization { cuda { graphs: true } } parameters { key: "a" value { string_value: "b" } }
    dynamic_batching { preferred_batch_size: [8] max_queue_delay_microseconds: 9 }
    """  # noqa: E501
    model = packed("model.plan", PLAN, config=text)
    result = prepared(store, model, "TensorRT")
    config = config_of(placed(store, result, tmp_path / "a"))
    assert result.interface == INTERFACE, "the batch is a dimension for clients"
    assert not config.name and not config.HasField("version_policy")
    assert config.max_batch_size == 32 and list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.instance_group[0].count == 2 and list(config.instance_group[0].profile) == ["1"]
    assert config.optimization.cuda.graphs and config.parameters["a"].string_value == "b"
    asked = prepared(store, model, "TensorRT", batching=Batching(max_batch_size=8, max_queue_delay_us=500))
    config = config_of(placed(store, asked, tmp_path / "b"))
    assert config.max_batch_size == 8 and config.dynamic_batching.max_queue_delay_microseconds == 500
    assert not config.dynamic_batching.preferred_batch_size


def test_the_authors_warm_up_is_kept_up_to_the_largest_batch_and_none_is_added(
    store: ObjectStore, tmp_path: Path
) -> None:
    own = b"""max_batch_size: 32
    input { name: "x" data_type: TYPE_FP32 dims: [4] } output { name: "scores" data_type: TYPE_FP32 dims: [3] }
    model_warmup { name: "mine" batch_size: 32 count: 3 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 random_data: true } } }
    """  # noqa: E501
    model = packed("model.plan", PLAN, config=own)
    for most, expected in ((0, 32), (8, 8)):
        batching = Batching(max_batch_size=most)
        result = prepared(store, model, "TensorRT", batching=batching, warmup=True)
        [sample] = config_of(placed(store, result, tmp_path / str(most))).model_warmup
        assert (sample.name, sample.batch_size, sample.count) == ("mine", expected, 3)
        assert sample.inputs["x"].random_data
    result = prepared(store, PLAN, "TensorRT", told=True, warmup=True)
    assert not config_of(placed(store, result, tmp_path / "told")).model_warmup and result.message == ""


def test_tensors_of_spec_with_batches(store: ObjectStore, tmp_path: Path) -> None:
    result = prepared(
        store, PLAN, "TensorRT", told=True, batching=Batching(max_batch_size=8), instance_kind="KIND_GPU"
    )
    config = config_of(placed(store, result, tmp_path))
    assert config.max_batch_size == 8 and [list(t.dims) for t in (*config.input, *config.output)] == [
        [4],
        [3],
    ]
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU and result.interface == INTERFACE


@pytest.mark.parametrize("folder", ["weights", ".", "./weights/"])
def test_vllm_has_its_weights_from_the_archive_alone(store: ObjectStore, tmp_path: Path, folder: str) -> None:
    result = prepared(store, vllm(engine(model=folder, tokenizer="weights"), ("config.json", b"{}")), "VLLM")
    files = placed(store, result, tmp_path)
    assert result.decoupled is True
    told = json.loads(files["digits/7/model.json"])
    assert told["model"] == ("/models/.version/." if folder == "." else "/models/.version/weights")
    assert told["tokenizer"] == "/models/.version/weights" and told["max_model_len"] == 512
    assert (tmp_path / ".version" / "weights" / "model.safetensors").read_bytes() == b"w"
    config = config_of(files)
    assert config.model_transaction_policy.decoupled and config.max_batch_size == 0
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_MODEL
    assert {"text_input", "sampling_parameters"} <= {t.name for t in config.input} and "text_output" in {
        t.name for t in config.output
    }


def test_with_code_allowed_vllm_may_have_any_files_and_arguments(store: ObjectStore, tmp_path: Path) -> None:
    model = vllm(
        engine(trust_remote_code=True, worker_cls="a.B"),
        ("weights/pytorch_model.bin", b"x"),
        ("weights/modeling.py", b"y"),
    )
    files = placed(store, prepared(store, model, "VLLM", code=True), tmp_path)
    assert {"digits/7/weights/pytorch_model.bin", "digits/7/weights/modeling.py"} <= files.keys()
    assert json.loads(files["digits/7/model.json"])["worker_cls"] == "a.B"


def test_a_config_beside_vllms_model_is_completed(store: ObjectStore, tmp_path: Path) -> None:
    text = (
        b'parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "yes" } } input { name:'
        b' "text_input" data_type: TYPE_STRING dims: [2] }'
    )
    config = config_of(placed(store, prepared(store, vllm(None, ("config.pbtxt", text)), "VLLM"), tmp_path))
    assert config.parameters["REPORT_CUSTOM_METRICS"].string_value == "yes"
    assert [list(t.dims) for t in config.input if t.name == "text_input"] == [[2]]


def test_vllm_reports_its_metrics_and_its_health_unless_its_author_says_otherwise(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = b'parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "false" } }'
    result, chosen = (prepared(store, vllm(None, *more), "VLLM") for more in ((), (("config.pbtxt", own),)))

    def parameters(result: TaskResult, folder: str) -> dict[str, str]:
        config = config_of(placed(store, result, tmp_path / folder))
        return {name: parameter.string_value for name, parameter in config.parameters.items()}

    assert parameters(result, "earlier") == {}, "the artifact itself says nothing, so no version changes"
    monkeypatch.setenv(SERVES_ENV, '{"backend":"VLLM","code":false}')
    both = {"REPORT_CUSTOM_METRICS": "true", "ENABLE_VLLM_HEALTH_CHECK": "true"}
    assert parameters(result, "new") == both
    assert parameters(result, "new") == both, "a restarted container finds it in place"
    assert parameters(chosen, "chosen") == both | {"REPORT_CUSTOM_METRICS": "false"}
    monkeypatch.setenv(SERVES_ENV, '{"backend":"TensorRT","code":false}')
    plan = prepared(store, PLAN, "TensorRT", told=True)
    assert parameters(plan, "plan") == {}


def test_what_was_prepared_without_permission_runs_no_code_later(store: ObjectStore, tmp_path: Path) -> None:
    """The name that Triton looks for first is never placed, whatever folder of the archive it lies
    in.
    """
    result = prepared(store, packed("model.plan", PLAN, ("m/libtriton_tensorrt.so", b"x")), "TensorRT")
    assert "libtriton_tensorrt.so" in result.message
    assert not [name for name in placed(store, result, tmp_path) if name.endswith(".so")]


def test_strings_and_brain_floats_have_names(store: ObjectStore) -> None:
    store.objects["/m"] = PLAN
    tensors = (
        Tensor(name="a", data_type="BYTES", shape=(-1,)),
        Tensor(name="b", data_type="BF16", shape=(2, 2)),
    )
    task = PrepareTask(
        source=store.http("m"),
        sha256=hashlib.sha256(PLAN).hexdigest(),
        artifacts=store.s3("artifacts/a"),
        salt=SALT,
        served=Served(backend="TensorRT", inputs=tensors, outputs=(Y,)),
    )
    assert run(task, Progress()).interface == interface_of(
        ["a: BYTES [n]", "b: BF16 [2, 2]"], ["scores: FP32 [n, 3]"]
    )


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("model.plan", True), ("a/b/__init__.py", True), ("variables.data-00000-of-00001", True),
        ("../x", False), ("a/../x", False), ("/x", False),
        ("a//x", False), ("a/", False), (".hidden", False), ("a/.hidden", False), ("a b", False),
        ("a\nb", False), ("", False), ("x\n", False),
        ("a" * 201, False),
    ],
)  # fmt: skip
def test_names_in_a_manifest(name: str, good: bool) -> None:
    entry = {"sha256": "0" * 64, "size": 1, "path": "p"}
    manifest = json.dumps({"format": 1, "key": "k", "files": {name: entry}}).encode()
    if good:
        assert set(artifact.parse_manifest(manifest, "m").files) == {name}
        return
    with pytest.raises(JobError) as error:
        artifact.parse_manifest(manifest, "m")
    assert error.value.reason == "ArtifactCorrupt"


def test_a_tar_is_limited_by_what_may_be_fetched(store: ObjectStore) -> None:
    """An ONNX archive ends at 3 GiB unpacked; weights of a language model may be larger, up to the
    limit of what is fetched.
    """
    info = tarfile.TarInfo("model.plan")
    assert prepared(
        store, tarred((info, PLAN)), "TensorRT", told=True, max_bytes=20_000
    ).artifact_size_bytes == len(PLAN)
