"""A step that the project does not have goes through a whole preparation with one line in the
table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import onnx
import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.pipeline.prepare import prepare
from modelrollout.optimizer.steps import registry
from modelrollout.optimizer.steps import run as run_module
from modelrollout.optimizer.store.artifact import key_in
from modelrollout.testing.object_store import SALT, ObjectStore, classifier, dataset, labelled, object_store
from tests.unit.optimizer.round_step import RoundStep

FIELD = "spec.optimization.steps[0].round"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODULES, "round", "tests.unit.optimizer.round_step")


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/models/m.onnx"] = classifier(hidden=1024).SerializeToString()
        server.objects["/data/heldout.npz"] = labelled(2000)
        yield server


def task_with(store: ObjectStore, step: RoundStep) -> PrepareTask:
    task = PrepareTask(
        source=store.s3("models/m.onnx"),
        sha256=hashlib.sha256(store.objects["/models/m.onnx"]).hexdigest(),
        gate=Gate(data=dataset(store.s3("data/heldout.npz")), metrics=(GateMetric(max_drop=0.02),)),
        artifacts=store.s3("artifacts/team-a/"),
        salt=SALT,
    )
    return task.model_copy(update={"steps": (step,)})  # not checked: the contract does not list it


def refusal(store: ObjectStore, step: RoundStep) -> JobError:
    with pytest.raises(JobError) as error:
        prepare(task_with(store, step), Progress())
    return error.value


def published(store: ObjectStore, name: str) -> Any:
    return next(
        body for path, body in store.objects.items() if path.startswith("/artifacts/") and f"/{name}-" in path
    )


def test_its_model_is_gated_published_and_reported(store: ObjectStore) -> None:
    result = prepare(task_with(store, RoundStep(decimals=3)), Progress())
    assert (result.reason, result.metrics[0].verdict) == ("Completed", "Successful")
    assert published(store, "model") != store.objects["/models/m.onnx"]
    report = json.loads(published(store, "report"))
    (done,) = report["steps"]
    assert (done["kind"], done["decimals"], done["tensors"]) == ("round", 3, 3)
    assert report["inputs"]["steps"] == [{"kind": "round", "decimals": 3}]
    assert "ml-dtypes" in report["inputs"]["tools"]


def test_its_options_are_part_of_the_key(store: ObjectStore) -> None:
    results = [prepare(task_with(store, RoundStep(decimals=n)), Progress()) for n in (3, 4)]
    assert len({key_in(str(result.artifact_uri)) for result in results}) == 2


def test_the_gate_judges_what_it_made(store: ObjectStore) -> None:
    error = refusal(store, RoundStep(decimals=-1))
    assert (error.code, error.reason) == (ExitCode.GATE_FAILED, "AccuracyDrop")
    assert not any(path.startswith("/artifacts/") for path in store.objects)


def test_its_refusal_names_its_field(store: ObjectStore) -> None:
    model = onnx.load_model_from_string(store.objects["/models/m.onnx"])
    for tensor in model.graph.initializer:
        wide = onnx.numpy_helper.to_array(tensor).astype("float64")
        cast = onnx.helper.make_node("Cast", [f"{tensor.name}_wide"], [tensor.name], to=1)
        model.graph.node.insert(0, cast)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wide, f"{tensor.name}_wide"))
    store.objects["/models/m.onnx"] = model.SerializeToString()
    error = refusal(store, RoundStep())
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "NothingToRound")
    assert error.message.startswith(FIELD)


def test_its_memory_is_checked_before_it_runs(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "memory_limit", lambda: 1000)
    error = refusal(store, RoundStep())
    assert error.reason == "MemoryLimitTooLow"
    assert FIELD in error.message


def test_every_step_of_the_contract_is_in_the_table() -> None:
    kinds = PrepareTask.model_json_schema()["properties"]["steps"]["items"]["discriminator"]["mapping"]
    assert set(kinds) == set(registry.MODULES) - {"round"}
