"""What the container leaves that opened a stranger's file is looked at before it is published, and
again where it is placed for a server.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelrollout.contract.common import SERVES_ENV
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Backend, Served
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import GraphStep
from modelrollout.contract.tasks import FetchTask, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.passthrough.servable import expect_servable
from modelrollout.optimizer.pipeline import prepare
from modelrollout.optimizer.store import artifact
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import SALT, ObjectStore, classifier, dataset, labelled, object_store

MODEL = classifier(hidden=64).SerializeToString()


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects |= {"/m": MODEL, "/held.npz": labelled(600, seed=9)}
        yield server


class Pod:
    """The containers of one prepare Job, each with its own folders."""

    def __init__(self, store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.work, self.made = store, folder / "work", folder / "made"
        for path in (self.work, self.made):
            path.mkdir()
        monkeypatch.setattr(prepare, "WORK_DIR", str(self.work))
        monkeypatch.setattr(prepare, "MADE_DIR", str(self.made))
        self.task = PrepareTask(
            source=store.http("m"),
            sha256=hashlib.sha256(MODEL).hexdigest(),
            steps=(GraphStep(),),
            gate=Gate(data=dataset(store.http("held.npz")), metrics=(GateMetric(max_drop=0.05),)),
            artifacts=store.s3("artifacts/a"),
            salt=SALT,
        )

    def run(self, part: str, **changes: Any) -> Any:
        return run(self.task.model_copy(update={"part": part, **changes}), Progress())

    def left(self) -> dict[str, Any]:
        return dict(json.loads((self.made / "made.json").read_text()))

    def forge(self, **changes: Any) -> None:
        (self.made / "made.json").write_text(json.dumps(self.left() | changes))

    def published(self) -> list[str]:
        return [path for path in self.store.objects if path.startswith("/artifacts")]


@pytest.fixture
def pod(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(store, tmp_path, monkeypatch)


def test_each_container_does_its_part_and_what_opens_the_file_asks_no_store(pod: Pod) -> None:
    pod.run("Fetch")
    assert (pod.work / "source.onnx").read_bytes() == MODEL and not pod.published()
    before = len(pod.store.requests)
    for path in pod.work.iterdir():
        path.chmod(0o444)
    pod.work.chmod(0o555)  # as it is mounted there
    pod.run("Convert")
    assert len(pod.store.requests) == before, "without a Secret it would be refused"
    result = pod.run("Publish")
    assert (
        result.metrics[0].verdict == "Successful"
        and result.artifact_digest
        and pod.task.may_answer(result.artifact_uri, result.artifact_digest)
    )
    assert not [path for path in pod.made.iterdir() if path.is_dir()], "what is not published is not kept"


def test_a_gate_that_is_not_kept_ends_before_anything_is_published(pod: Pod) -> None:
    pod.run("Fetch")
    strict = Gate(data=pod.task.gate.data, metrics=(GateMetric(min=0.9999),))  # type: ignore[union-attr]
    with pytest.raises(JobError) as error:
        pod.run("Convert", gate=strict)
    assert (
        error.value.code in (ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE)
        and not pod.published()
        and not (pod.made / "made.json").exists()
    )


def test_what_was_fetched_and_is_served_as_it_is_is_not_copied(pod: Pod) -> None:
    bare = {"steps": (), "gate": None}
    pod.run("Fetch", **bare)
    pod.run("Convert", **bare)
    assert pod.left()["files"] == {"model.onnx": None} and [path.name for path in pod.made.iterdir()] == [
        "made.json"
    ]
    assert pod.run("Publish", **bare).artifact_size_bytes == len(MODEL)


def _leads_elsewhere(pod: Pod) -> None:
    (pod.made / "made-0").unlink()
    (pod.made / "made-0").symlink_to("/etc/passwd")


def _pipe(pod: Pod) -> None:
    (pod.made / "made-0").unlink()
    os.mkfifo(pod.made / "made-0")


FORGED: dict[str, Callable[[Pod], object]] = {
    "another backend": lambda pod: pod.forge(config=pod.left()["config"].replace("onnxruntime", "python")),
    "a platform": lambda pod: pod.forge(config=pod.left()["config"] + '\nplatform: "ensemble"'),
    "an ensemble": lambda pod: pod.forge(config=pod.left()["config"] + "\nensemble_scheduling {}"),
    "parameters": lambda pod: pod.forge(
        config=pod.left()["config"] + '\nparameters { key: "x" value { string_value: "/models/lib.so" } }'
    ),
    "no configuration": lambda pod: pod.forge(config="what"),
    "a program": lambda pod: pod.forge(files=pod.left()["files"] | {"model.py": "made-0"}),
    "a library": lambda pod: pod.forge(files=pod.left()["files"] | {"libtriton_onnxruntime.so": "made-0"}),
    "a name that leads out": lambda pod: pod.forge(files={"../../x": "made-0"}),
    "a file elsewhere": lambda pod: pod.forge(files={"model.onnx": "../work/fetched.json"}),
    "a link": _leads_elsewhere,
    "a pipe without an end": _pipe,
    "a file that is not there": lambda pod: (pod.made / "made-0").unlink(),
    "no file": lambda pod: pod.forge(files={}),
    "no gate": lambda pod: pod.forge(report=pod.left()["report"] | {"gate": None}),
    "half a report": lambda pod: pod.forge(report={"gate": {"paired": 1}}),
    "no report": lambda pod: (pod.made / "made.json").write_text("[]"),
    "nothing": lambda pod: (pod.made / "made.json").unlink(),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_converter_leaves_that_was_taken_over_is_not_published(pod: Pod, what: str) -> None:
    pod.run("Fetch")
    pod.run("Convert")
    FORGED[what](pod)
    with pytest.raises(JobError) as error:
        pod.run("Publish")
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "OutputRefused"), (
        error.value.message
    )
    assert "see where it comes from" in error.value.message and not pod.published()


def test_the_key_and_its_inputs_are_those_of_who_fetched(pod: Pod) -> None:
    pod.run("Fetch")
    pod.run("Convert")
    pod.forge(report=pod.left()["report"] | {"key": "0" * 64, "inputs": {"source": "another"}})
    result = pod.run("Publish")
    assert "0" * 64 not in result.artifact_uri
    report = json.loads(next(body for path, body in pod.store.objects.items() if "/report-" in path))
    assert report["inputs"]["source"] == pod.task.sha256


def config(backend: str, file: str, platform: str = "") -> str:
    return f'backend: "{backend}" default_model_filename: "{file}"' + (
        f' platform: "{platform}"' if platform else ""
    )


PYTHON = config("python", "model.py")
PLAN = config("tensorrt", "model.plan", "tensorrt_plan")
SAVED = config("tensorflow", "model.savedmodel", "tensorflow_savedmodel")
IR = config("openvino", "model.xml")


@pytest.mark.parametrize(
    ("backend", "names", "said", "fine"),
    [
        ("Python", ("model.py", "helper.py"), PYTHON, True),
        ("Python", ("helper.py",), PYTHON, False),
        ("TensorRT", ("model.plan",), PLAN, True),
        ("TensorRT", ("model.plan",), PLAN.replace("tensorrt", "python", 1), False),
        ("TensorRT", ("model.plan", "libtriton_tensorrt.so"), PLAN, False),
        ("SavedModel", ("model.savedmodel/saved_model.pb",), SAVED, True),
        ("OpenVINO", ("model.xml", "model.bin"), IR, True),
        ("OpenVINO", ("model.xml", "model.py"), IR, False),
    ],
)
def test_a_backend_gets_its_own_files_alone(
    backend: Backend, names: tuple[str, ...], said: str, fine: bool
) -> None:
    asked = Served(backend=backend, code=backend == "Python")
    if fine:
        expect_servable(asked, names, said)
        return
    with pytest.raises(JobError) as error:
        expect_servable(asked, names, said)
    assert error.value.reason == "OutputRefused"


def test_where_it_is_placed_for_a_server_it_is_looked_at_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that records an artifact of another backend, whoever wrote that, gets no server
    that loads it.
    """
    program = {
        "model.py": b"class TritonPythonModel: pass",
        "config.pbtxt": PYTHON.encode(),
        "report.json": b"{}",
    }
    entries = {name: (body, hashlib.sha256(body).hexdigest(), len(body)) for name, body in program.items()}
    location = store.s3("artifacts/a/x")
    digest = artifact.publish(Store(location, "artifacts"), "x", entries)

    def placed(asked: str) -> Any:
        monkeypatch.setenv(SERVES_ENV, asked)
        return run(
            FetchTask(artifact=location, digest=digest, model="m", number=1, target=str(tmp_path)), Progress()
        )

    for asked in ("{}", '{"backend": "TensorRT"}', "odd"):
        with pytest.raises(JobError) as error:
            placed(asked)
        assert error.value.reason in ("OutputRefused", "TaskInvalid") and not list(tmp_path.iterdir())
    placed('{"backend": "Python", "code": true}')
    assert (tmp_path / "m" / "1" / "model.py").exists()
