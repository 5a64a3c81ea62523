"""A step that is the user's own image: what it is given, what is taken from it, and that its answer
is treated as a stranger's file.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import ContainerStep, GraphStep, Int8Step, PruneStep
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.pipeline import hand_over, prepare
from modelrollout.optimizer.pipeline.key import inputs_of, key_of
from modelrollout.optimizer.steps import container
from modelrollout.testing.object_store import (
    SALT,
    ObjectStore,
    centres,
    classifier,
    dataset,
    known,
    labelled,
    object_store,
)

IMAGE = "registry.example.com/team/trainer@sha256:" + "a" * 64
MODEL = classifier(hidden=96).SerializeToString()


class Pod:
    """The folders of one pod, and its two containers of ours."""

    def __init__(self, store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.folder = store, folder
        for name in ("in", "out", "work", "made"):
            (folder / name).mkdir(parents=True)
        for module in (prepare, hand_over, container):
            for name in ("IN_DIR", "OUT_DIR", "WORK_DIR", "MADE_DIR"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, str(folder / name.partition("_")[0].lower()))

    @property
    def made(self) -> Path:
        return self.folder / "out" / "model.onnx"

    def run(self, part: str, **changes: Any) -> TaskResult:
        self.store.objects |= {"/m": MODEL, "/train.npz": labelled(200), "/held.npz": labelled(600, seed=9)}
        step = ContainerStep(image=IMAGE, args=("--epochs", "3"), data=dataset(self.store.http("train.npz")))
        task = PrepareTask(
            source=self.store.http("m"),
            sha256=hashlib.sha256(MODEL).hexdigest(),
            steps=(GraphStep(), step, Int8Step()),
            gate=Gate(data=dataset(self.store.http("held.npz")), metrics=(GateMetric(max_drop=0.05),)),
            artifacts=self.store.s3("artifacts/a"),
            salt=SALT,
            part=part,  # type: ignore[arg-type]
        )
        task = task.model_copy(update=changes)
        if part == "BeforeContainer":
            run(task.model_copy(update={"part": "Fetch"}), Progress())
        result = run(task, Progress())
        return (
            run(task.model_copy(update={"part": "Publish"}), Progress())
            if part == "AfterContainer"
            else result
        )

    def refusal(self) -> JobError:
        with pytest.raises(JobError) as error:
            self.run("AfterContainer")
        return error.value


def published(pod: Pod) -> list[str]:
    return [path for path in pod.store.objects if path.startswith("/artifacts")]


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture
def pod(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(store, tmp_path / "first", monkeypatch)


def test_the_container_reads_what_the_steps_before_it_made_and_those_after_it_take_what_it_wrote(
    pod: Pod,
) -> None:
    pod.run("BeforeContainer")
    specified = pod.folder / "in" / "model.onnx"
    onnx.checker.check_model(onnx.load(specified))
    assert sorted(np.load(pod.folder / "in" / "data.npz")) == ["labels", "x"]
    assert published(pod) == [], "nothing is published before the gate"
    pod.made.write_bytes(classifier(hidden=24).SerializeToString())
    before = len(pod.store.requests)
    result = pod.run("AfterContainer")
    asked = [path for _, path in pod.store.requests[before:]]
    assert not {"/m", "/train.npz", "/held.npz"} & set(asked), (
        "what the first container has fetched is not fetched again"
    )
    assert result.metrics[0].verdict == "Successful"
    assert result.artifact_size_bytes is not None and result.artifact_size_bytes < specified.stat().st_size
    report = next(body.decode() for path, body in pod.store.objects.items() if "/report-" in path)
    assert [report.index(f'"kind": "{kind}"') > 0 for kind in ("graph", "container", "int8")] == [True] * 3
    assert IMAGE in report


def test_a_model_too_large_for_one_file_goes_through_the_container_with_its_data(pod: Pod) -> None:
    recipe = (PruneStep(granularity="Unstructured", sparsity=0.01), ContainerStep(image=IMAGE))
    pod.run("BeforeContainer", steps=recipe, one_file_bytes=512)
    specified = pod.folder / "in" / "model.onnx"
    assert specified.with_name("model.onnx.data").stat().st_size > 1024
    check(specified)
    model = onnx.load(specified)
    onnx.save(model, pod.made, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert pod.run("AfterContainer", steps=recipe, one_file_bytes=512).metrics[0].verdict == "Successful"
    assert [path.rsplit("/", 1)[1][:10] for path in published(pod) if "model.onnx-" in path] == ["model.onnx"]


def test_data_that_leads_elsewhere_is_no_data(pod: Pod) -> None:
    pod.run("BeforeContainer")
    onnx.save(classifier(hidden=512), pod.made, save_as_external_data=True, location="model.onnx.data")
    data = pod.made.with_name("model.onnx.data")
    data.rename(pod.folder / "work" / "elsewhere")
    data.symlink_to(pod.folder / "work" / "elsewhere")
    assert pod.refusal().reason == "ContainerOutputInvalid"


def test_what_was_done_before_is_not_trained_again(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.run("BeforeContainer")
    pod.made.write_bytes(classifier(hidden=24).SerializeToString())
    first = pod.run("AfterContainer")
    second = Pod(pod.store, tmp_path / "second", monkeypatch)
    with pytest.raises(JobError) as error:
        second.run("BeforeContainer", recorded=known(first))
    told = error.value.result()
    assert error.value.code == ExitCode.REUSED
    assert (told.reason, told.reused, told.artifact_digest) == ("Completed", True, first.artifact_digest)
    assert not (second.folder / "in" / "model.onnx").exists()


def test_image_and_arguments_are_part_of_what_is_kept(pod: Pod) -> None:
    def key(**changes: Any) -> str:
        task = PrepareTask(
            source=pod.store.http("m"),
            sha256="0" * 64,
            steps=(ContainerStep.model_validate({"image": IMAGE, **changes}),),
            artifacts=pod.store.s3("artifacts/a"),
            salt=SALT,
        )
        return key_of(inputs_of(task, {}))

    keys = {
        key(),
        key(image=IMAGE.replace("a" * 64, "b" * 64)),
        key(args=["--epochs", "4"]),
        key(command=["python"]),
    }
    assert len(keys) == 4


def _other_output() -> bytes:
    model = classifier(weights=np.concatenate([centres(), centres()[:1]]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4]))
    return model.SerializeToString()


def _external() -> bytes:
    model = classifier()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(
        key="location", value="../../var/run/modelrollout/credentials/source/AWS_SECRET_ACCESS_KEY"
    )
    return model.SerializeToString()


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(MODEL)
    path.symlink_to(path.parent / "elsewhere")


LEFT: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "ContainerOutputMissing"),
    "a link to what is ours": (_link, "ContainerOutputInvalid"),
    "a folder": (lambda path: path.mkdir(), "ContainerOutputInvalid"),
    "a pipe without an end": (lambda path: os.mkfifo(path), "ContainerOutputInvalid"),
    "more than ONNX can be": (
        lambda path: (path.touch(), os.truncate(path, 3 << 30)),
        "ContainerOutputInvalid",
    ),
    "an empty file": (lambda path: path.touch(), "ModelTruncated"),
    "half a model": (lambda path: path.write_bytes(MODEL[: len(MODEL) // 2]), "ModelTruncated"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps([1])), "PickleRefused"),
    "text": (lambda path: path.write_text("accuracy: 0.99\n" * 9), "NotOnnx"),
    "tensors elsewhere": (lambda path: path.write_bytes(_external()), "ExternalData"),
    "another number of classes": (lambda path: path.write_bytes(_other_output()), "ContainerOutputMismatch"),
    "a fixed batch": (
        lambda path: path.write_bytes(classifier(batch=1).SerializeToString()),
        "ContainerOutputMismatch",
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_the_container_leaves_is_a_strangers_file(pod: Pod, what: str) -> None:
    leave, reason = LEFT[what]
    pod.run("BeforeContainer")
    leave(pod.made)
    error = pod.refusal()
    assert (error.reason, error.code) == (reason, ExitCode.BAD_INPUT), error.message
    assert error.message.startswith("spec.optimization.steps[1].container: "), error.message
    assert published(pod) == []


def test_a_worse_model_does_not_pass_the_gate(pod: Pod) -> None:
    pod.run("BeforeContainer")
    pod.made.write_bytes(classifier(weights=-centres()).SerializeToString())
    assert pod.refusal().code == ExitCode.GATE_FAILED
