"""TensorFlow, Keras and TFLite through the prepare Job: converted with their own names and shapes,
compared with the original, gated, published.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Batching, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.formats import isolated
from modelrollout.testing.object_store import SALT, ObjectStore, dataset, npz, object_store
from modelrollout.triton.config import parse
from tests.unit.optimizer.network_models import CLASSES, HOSTILE, IMAGES, MODELS, WRITTEN, N

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Read in a process of its own, as in the Job: that costs seconds each time.
APART = ("image.keras", "reads a file.zip")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.unit.optimizer.network_models", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture(autouse=True)
def mostly_together(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params.get("name") not in APART if hasattr(request.node, "callspec") else True:
        request.getfixturevalue("together")


def prepared(
    store: ObjectStore,
    model: bytes,
    kind: str | None,
    gate: Gate | None = None,
    batching: Batching | None = None,
) -> TaskResult:
    store.objects["/m"] = model
    task = PrepareTask(
        source=store.http("m"),
        sha256=hashlib.sha256(model).hexdigest(),
        format=kind,  # type: ignore[arg-type]
        gate=gate,
        batching=batching or Batching(),
        artifacts=store.s3("artifacts/a"),
        salt=SALT,
    )
    return run(task, Progress())


def published(store: ObjectStore, name: str) -> bytes:
    return next(body for path, body in store.objects.items() if f"/{name}" in path)


@pytest.mark.parametrize("name", MODELS)
def test_is_converted_with_its_own_names_and_answers_as_before(
    store: ObjectStore, models: dict[str, bytes], name: str
) -> None:
    kind, inputs, outputs = MODELS[name]
    fixed = name == "fixed.tflite"
    result = prepared(store, models[name], kind, batching=Batching(max_batch_size=0 if fixed else 8))
    assert "generated" in result.message
    session = onnxruntime.InferenceSession(published(store, "model-"))
    taken = {i.name: i.shape for i in session.get_inputs()}
    assert set(taken) == set(inputs)
    for specified in session.get_inputs():
        assert specified.shape[1:] == list(inputs[specified.name].shape[1:])
        assert isinstance(specified.shape[0], str) != fixed
        assert {"tensor(float)": np.float32, "tensor(int32)": np.int32}[specified.type] == inputs[
            specified.name
        ].dtype
    assert [output.name for output in session.get_outputs()] == outputs
    report = json.loads(published(store, "report-"))
    assert (
        report["conversion"]["from"],
        report["conversion"]["apart"],
        report["conversion"]["generated"],
    ) == (kind, 0, True)
    assert set(isolated.versions(kind)) <= set(report["inputs"]["tools"])  # type: ignore[arg-type]
    assert parse(published(store, "config-").decode()).max_batch_size == (0 if fixed else 8)


@pytest.mark.parametrize("file", ["image.keras", "image.saved_model.zip", "image.tflite"])
def test_is_compared_and_gated_on_the_data_that_is_given(
    store: ObjectStore, models: dict[str, bytes], file: str
) -> None:
    store.objects["/d.npz"] = npz(image=IMAGES, labels=CLASSES)
    gate = Gate(data=dataset(store.http("d.npz")), metrics=(GateMetric(min=0.8),))
    result = prepared(store, models[file], MODELS[file][0], gate)
    assert result.metrics[0].verdict == "Successful"
    conversion = json.loads(published(store, "report-"))["conversion"]
    assert (conversion["samples"], conversion["generated"], conversion["apart"]) == (N, False, 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files_have_reasons(
    store: ObjectStore, models: dict[str, bytes], name: str
) -> None:
    kind, reason, says = HOSTILE[name]
    with pytest.raises(JobError) as error:
        prepared(store, models[name], kind)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, reason), error.value.message
    assert error.value.message.startswith("spec.model.")
    assert says in error.value.message
    assert not Path(WRITTEN).exists()


@pytest.mark.parametrize(
    "file",
    ["image.keras", "image.h5", "function.saved_model.zip", "two-inputs.saved_model.tar.gz", "image.tflite"],
)
def test_a_format_that_was_not_said_names_itself(
    store: ObjectStore, models: dict[str, bytes], file: str
) -> None:
    kind = MODELS[file][0]
    for said, reason in (
        (None, "FormatNotSet"),
        ("ONNX", "FormatMismatch"),
        ("TFLite" if kind != "TFLite" else "Keras", "FormatMismatch"),
    ):
        with pytest.raises(JobError) as error:
            prepared(store, models[file], said)
        assert error.value.reason == reason
        assert kind in error.value.message


def test_an_image_without_the_libraries(
    store: ObjectStore, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "packages_distributions", lambda: {"tf2onnx": ["tf2onnx"]})
    with pytest.raises(JobError) as error:
        prepared(store, models["image.tflite"], "TFLite")
    assert (error.value.reason, "images.tensorflow" in error.value.message) == ("FlavourMissing", True)
