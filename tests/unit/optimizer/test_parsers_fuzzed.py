"""What others wrote and we read: any bytes end in a value or in the error that the reader
promises.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.config import ConfigError, OperatorConfig, load_config
from modelrollout.contract.formats import Served
from modelrollout.contract.tasks import Batching
from modelrollout.controller.observe.pods import ending
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.runner import parse_task
from modelrollout.optimizer.model import archive, data
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.passthrough import config, openvino, vllm
from modelrollout.optimizer.store import artifact, signature
from modelrollout.testing.object_store import classifier, labelled
from modelrollout.triton.tensors import TensorSpec
from tests.unit.optimizer.backend_files import CONFIG as PBTXT
from tests.unit.optimizer.backend_files import ENGINE, IR, engine
from tests.unit.optimizer.hostile import SIGNER, entry, npy, tarred, zipped
from tests.unit.optimizer.hostile import signature as signed_for

FUZZ = settings(max_examples=150, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
CONFIG = {
    "stores": [{"name": "m", "uri": "s3://m"}],
    "artifacts": {"name": "a", "uri": "s3://a"},
    "images": {"optimizer": "o", "triton": "t"},
}
MANIFEST = {"format": 1, "key": "k", "files": {"model.onnx": {"sha256": "0" * 64, "size": 1, "path": "m"}}}
RESULT = {
    "reason": "Completed",
    "paired": {"n": 1, "both_right": 1, "only_candidate_right": 0, "only_baseline_right": 0, "both_wrong": 0},
    "metrics": [],
}


def bent(whole: bytes) -> st.SearchStrategy[bytes]:
    """A good file with some bytes changed, cut off or put in."""

    def change(edits: list[tuple[int, bytes, bool]]) -> bytes:
        out = bytearray(whole)
        for at, content, insert in edits:
            where = at % (len(out) + 1)
            out[where : where if insert else where + len(content)] = content
        return bytes(out)

    return st.lists(
        st.tuples(st.integers(0, 1 << 20), st.binary(max_size=6), st.booleans()), min_size=1, max_size=4
    ).map(change)


def grafted(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good document with one value replaced by anything."""
    return st.tuples(st.sampled_from(sorted(whole)), JSON).map(lambda edit: whole | {edit[0]: edit[1]})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file"


@FUZZ
@given(
    st.binary(max_size=200)
    | bent(yaml.safe_dump(CONFIG).encode())
    | (JSON | grafted(CONFIG)).map(lambda v: json.dumps(v).encode())
)
def test_configuration(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(path), OperatorConfig)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"[" * 5000, b"a: &a [*a]", b"!!python/object/apply:os.system [true]", b"\x00"],
)
def test_configuration_made_to_harm(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path)


@FUZZ
@given(
    st.binary(max_size=200)
    | bent(json.dumps(MANIFEST).encode())
    | (JSON | grafted(MANIFEST)).map(lambda v: json.dumps(v).encode())
)
def test_manifest(content: bytes) -> None:
    try:
        manifest = artifact.parse_manifest(content, "s3://a/k")
    except JobError as error:
        assert error.reason == "ArtifactCorrupt"
    else:
        assert all(
            "/" not in file.path and ".." not in file.path.split("/") for file in manifest.files.values()
        )


@FUZZ
@given(
    st.binary(max_size=200)
    | JSON.map(lambda v: json.dumps(v).encode())
    | st.integers(1, 200_000).map(lambda n: b"[" * n)
)
def test_report(content: bytes) -> None:
    try:
        assert isinstance(artifact.parse_report(content, "s3://a/k"), dict)
    except JobError as error:
        assert error.reason == "ArtifactCorrupt"


@FUZZ
@given(
    st.text(max_size=200)
    | bent(json.dumps(RESULT).encode()).map(lambda b: b.decode(errors="replace"))
    | (JSON | grafted(RESULT)).map(json.dumps)
)
def test_termination_message(message: str) -> None:
    pod = {
        "metadata": {"name": "p"},
        "status": {
            "phase": "Failed",
            "containerStatuses": [{"state": {"terminated": {"exitCode": 10, "message": message}}}],
        },
    }
    end = ending([pod])
    assert end is not None and (end.exit_code, end.problem) == (10, None)
    assert end.result is None or isinstance(end.result.reason, str)


@FUZZ
@given(
    st.none()
    | st.text(max_size=200)
    | JSON.map(json.dumps)
    | grafted({"task": "resolve", "source": {"uri": "s3://b/k"}}).map(json.dumps)
)
def test_task(text: str | None) -> None:
    try:
        parse_task(text)
    except JobError as error:
        assert error.reason == "TaskInvalid"


@FUZZ
@given(
    st.binary(max_size=200)
    | bent(labelled(8))
    | st.text(max_size=200).map(lambda text: zipped(("x.npy", npy(text, bytes(64)))))
    | bent(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4)}", bytes(64))).map(
        lambda content: zipped(("x.npy", content))
    )
)
def test_data_sets(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        arrays = data.read_archive(path, "spec.optimization.gate.data")
    except JobError as error:
        assert error.reason in ("DataNotNpz", "DataPickleRefused", "TooLarge")
    else:
        assert sum(array.nbytes for array in arrays.values()) <= len(content)
        assert not any(array.dtype.hasobject for array in arrays.values())


@FUZZ
@given(
    bent(zipped(("a/m.onnx", b"model"), ("a/w.bin", b"weights")))
    | bent(tarred((entry("a/m.onnx"), b"model"), (entry("a/w.bin"), b"weights")))
)
def test_archives(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("unpacked")
    (folder / "in").mkdir()
    path = folder / "source"
    path.write_bytes(content)
    if archive.is_archive(path):
        with contextlib.suppress(JobError):
            archive.unpack(path, folder / "in", 1 << 20)
    assert {p.name for p in folder.iterdir()} == {"in", "source"}


@FUZZ
@given(bent(classifier(hidden=2).SerializeToString()))
def test_models(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(JobError):
        check(path)


@FUZZ
@given(
    st.binary(max_size=200)
    | bent(
        PBTXT
        + b"max_batch_size: 4 parameters { key: 'a' value { string_value: 'b' } } instance_group { count: 2 }"
    )
)
def test_configurations_of_others(content: bytes) -> None:
    with contextlib.suppress(JobError):
        rendered = config.written(Served(backend="TensorRT"), content, Batching(), "KIND_AUTO")
        assert rendered.inputs and rendered.outputs
        assert (
            config.written(Served(backend="TensorRT"), rendered.text.encode(), Batching(), "KIND_AUTO")
            == rendered
        ), "what is written is read"


@FUZZ
@given(st.binary(max_size=200) | bent(IR))
def test_networks_of_openvino(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(JobError):
        openvino.check(path, 48, (TensorSpec("x", "FP32", (-1, 4)),), ())


@FUZZ
@given(st.binary(max_size=200) | bent(engine()) | grafted(ENGINE).map(lambda v: json.dumps(v).encode()))
def test_engines_of_vllm(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    target = path.with_name("engine")
    with contextlib.suppress(JobError):
        report = json.loads(vllm.resolved(path, ["weights/config.json"], target, code=False).read_bytes())
        assert report["model"].startswith("/models/.version/")


@FUZZ
@given(
    st.binary(max_size=200)
    | bent(signed_for("0" * 64))
    | JSON.map(lambda v: json.dumps({"dsseEnvelope": v}).encode())
)
def test_signatures(content: bytes) -> None:
    with pytest.raises(JobError) as error:
        signature.check(content, SIGNER.public_key(), "1" * 64)
    assert error.value.reason in ("SignatureMalformed", "SignatureInvalid")
