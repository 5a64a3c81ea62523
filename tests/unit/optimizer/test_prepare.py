"""Prepare and the server's fetch, whole, against a store that speaks S3."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelrollout.contract.common import RESULT_LIMIT_BYTES, Location, ModelFile, ServingConfig
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import DistillStep, Int8Step, PruneStep, Training
from modelrollout.contract.tasks import Batching, FetchTask, PrepareTask, Recorded
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import encode
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.pipeline.key import inputs_of, key_of
from modelrollout.optimizer.pipeline.report import interface_of
from modelrollout.optimizer.store import artifact
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import (
    SALT,
    ObjectStore,
    classifier,
    dataset,
    known,
    labelled,
    npz,
    object_store,
    samples,
)
from modelrollout.triton.config import parse, serving_of

MODEL = classifier(hidden=1024).SerializeToString()


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/models/m.onnx"] = MODEL
        server.objects["/data/heldout.npz"] = labelled(2000, writer=np.arange(2000) % 2)
        server.objects["/data/calibration.npz"] = npz(x=samples(200, 5)[0])
        yield server


def task_for(store: ObjectStore, **changes: Any) -> PrepareTask:
    """int8 Static with a gate, as a user would write it."""
    fields: dict[str, Any] = {
        "source": store.s3("models/m.onnx"),
        "sha256": hashlib.sha256(store.objects["/models/m.onnx"]).hexdigest(),
        "steps": (Int8Step(method="Static", calibration=dataset(store.s3("data/calibration.npz"))),),
        "gate": Gate(
            data=dataset(store.s3("data/heldout.npz"), slices=("writer",)),
            metrics=(GateMetric(max_drop=0.02, min=0.8),),
        ),
        "batching": Batching(max_batch_size=16, max_queue_delay_us=500),
        "artifacts": store.s3("artifacts/team-a/"),
        "salt": SALT,
    }
    return PrepareTask(**(fields | changes))


def gate_for(
    store: ObjectStore, *metrics: GateMetric, slices: tuple[str, ...] = ("writer",), **changes: Any
) -> Gate:
    return Gate(data=dataset(store.s3("data/heldout.npz"), slices=slices, **changes), metrics=metrics)


def prepared(task: PrepareTask) -> TaskResult:
    return run(task, Progress())


def refusal(task: PrepareTask | FetchTask) -> JobError:
    with pytest.raises(JobError) as error:
        run(task, Progress())
    return error.value


def artifact_objects(store: ObjectStore) -> dict[str, bytes]:
    """Without claims and marks of use, which speak of Jobs and not of artifacts."""
    return {
        path: body
        for path, body in store.objects.items()
        if path.startswith("/artifacts/") and "/claim-" not in path and "/used." not in path
    }


def fetch_task(store: ObjectStore, result: TaskResult, target: Path) -> FetchTask:
    assert result.artifact_uri
    assert result.artifact_digest
    location = store.s3(result.artifact_uri.removeprefix("s3://"))
    return FetchTask(
        artifact=location, digest=result.artifact_digest, model="digits", number=7, target=str(target)
    )


def test_prepared_model_is_small_right_and_described(store: ObjectStore) -> None:
    result = prepared(task_for(store))
    assert result.reason == "Completed"
    assert result.size_bytes == len(MODEL)
    assert result.artifact_size_bytes is not None
    assert result.artifact_size_bytes < 0.6 * len(MODEL)
    assert result.accuracy_before is not None
    assert result.accuracy_after is not None
    assert abs(result.accuracy_before - result.accuracy_after) < 0.02
    assert result.paired is not None
    assert result.paired.n == 2000
    assert len(encode(result)) < 2048

    objects = artifact_objects(store)
    folder = "/" + str(result.artifact_uri).removeprefix("s3://") + "/"
    manifest = objects[folder + "manifest.json"]
    assert result.artifact_digest == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    files = json.loads(manifest)["files"]
    assert set(files) == {"model.onnx", "config.pbtxt", "report.json"}
    for entry in files.values():
        body = objects[folder + entry["path"]]
        assert (entry["sha256"], entry["size"]) == (hashlib.sha256(body).hexdigest(), len(body))
    config = parse(objects[folder + files["config.pbtxt"]["path"]].decode())
    assert (config.name, config.max_batch_size) == ("", 16)
    report = json.loads(objects[folder + files["report.json"]["path"]])
    assert (
        sum(
            report["gate"]["slices"]["writer"]["0"][k]
            for k in ("both_right", "only_candidate_right", "only_baseline_right", "both_wrong")
        )
        == 1000
    )
    assert "127.0.0.1" not in json.dumps(report)
    assert [path for verb, path in store.requests if verb == "PUT"][-1].endswith("manifest.json")


def test_what_a_revision_records_is_taken_again_and_nothing_is_fetched_for_it(store: ObjectStore) -> None:
    first = prepared(task_for(store))
    task = task_for(
        store, recorded=(Recorded(uri=f"s3://artifacts/team-a/{'0' * 64}", digest="sha256:00"), *known(first))
    )
    del store.objects["/models/m.onnx"]
    before = artifact_objects(store)
    second = prepared(task)
    assert second.reused and not first.reused
    assert second.model_copy(update={"reused": False, "seconds": {}}) == first.model_copy(
        update={"seconds": {}}
    )
    assert artifact_objects(store) == before


def forged(store: ObjectStore, folder: str, key: str) -> str:
    """A whole artifact with code of a stranger's in it, as who can write to the store lays it down;
    returns its digest.
    """
    report = json.dumps(
        {
            "gate": None,
            "steps": [],
            "warnings": [],
            "sizeBefore": 1,
            "sizeAfter": 1,
            "model": {"inputs": [], "outputs": []},
        }
    ).encode()
    files = {"model.py": b"import os", "config.pbtxt": b'backend: "python"', "report.json": report}
    entries = {
        name: artifact.entry_for(name, hashlib.sha256(body).hexdigest(), len(body))
        for name, body in files.items()
    }
    manifest = artifact.Manifest(key=key, files=entries).encoded()
    store.objects |= {f"/{folder}/{entry.path}": files[name] for name, entry in entries.items()} | {
        f"/{folder}/manifest.json": manifest
    }
    return artifact.digest_of(manifest)


def test_what_a_stranger_laid_under_the_key_is_never_taken(store: ObjectStore) -> None:
    """The audit's attack: the key of the work can be computed, and who can write to the store
    writes there what he likes.
    """
    task = task_for(store)
    key = key_of(inputs_of(task, data_digests(store)))
    digest = forged(store, f"artifacts/team-a/{key}", key)
    gone = task.model_copy(update={"sha256": "0" * 64})
    forged(store, f"artifacts/team-a/{key_of(inputs_of(gone, data_digests(store)))}", key)
    result = prepared(task)
    assert (result.reused, result.artifact_digest == digest, result.metrics[0].verdict) == (
        False,
        False,
        "Successful",
    )
    assert str(result.artifact_uri).startswith(f"s3://artifacts/team-a/{key}-{SALT}-")
    assert refusal(gone).reason == "DigestMismatch", (
        "the source is fetched and compared, whatever lies in the store"
    )


@pytest.mark.parametrize("how", ["another manifest", "no manifest", "a file of another size"])
def test_what_is_recorded_and_no_longer_there_is_made_anew(
    store: ObjectStore, tmp_path: Path, how: str
) -> None:
    first = prepared(task_for(store))
    folder = str(first.artifact_uri).removeprefix("s3://")
    if how == "another manifest":
        forged(store, folder, "k")
    elif how == "no manifest":
        del store.objects[f"/{folder}/manifest.json"]
    else:
        store.objects[next(path for path in store.objects if "/model-" in path)] = b"short"
    again = prepared(task_for(store, recorded=known(first)))
    assert (
        not again.reused
        and again.artifact_uri != first.artifact_uri
        and again.artifact_digest == first.artifact_digest
    )
    run(fetch_task(store, again, tmp_path), Progress())


def test_what_lies_in_the_way_fails_the_job(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who guesses even the part of the name that is random gains nothing."""
    monkeypatch.setattr(artifact, "folder_of", lambda key, salt: f"{key}-{salt}-00000000")
    task = task_for(store)
    key = key_of(inputs_of(task, data_digests(store)))
    forged(store, f"artifacts/team-a/{key}-{SALT}-00000000", key)
    error = refusal(task)
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "ArtifactInTheWay")
    assert "none of it is taken" in error.message and "retry the revision" in error.message


def test_a_write_that_is_repeated_finds_its_own(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first was lost."""
    real = Store.write

    def twice(self: Store, name: str, *args: Any) -> bool:
        real(self, name, *args)
        return real(self, name, *args)

    monkeypatch.setattr(Store, "write", twice)
    assert prepared(task_for(store)).artifact_digest


def test_a_try_is_not_in_the_way_of_the_next(store: ObjectStore) -> None:
    """A pod that had published before its node was lost, and the next one of the same Job."""
    first, second = prepared(task_for(store)), prepared(task_for(store))
    assert first.artifact_uri != second.artifact_uri and first.artifact_digest == second.artifact_digest
    assert all(
        task_for(store).may_answer(str(r.artifact_uri), str(r.artifact_digest)) for r in (first, second)
    )


def test_a_job_answers_for_its_own_folders_and_for_what_it_was_told_of() -> None:
    record = Recorded(uri="s3://a/ml/" + "1" * 64, digest="sha256:1")
    task = PrepareTask(
        source=Location(uri="s3://m/m"),
        sha256="0" * 64,
        artifacts=Location(uri="s3://a/ml"),
        salt=SALT,
        recorded=(record,),
    )
    own = f"s3://a/ml/{'2' * 64}-{SALT}-0123abcd"
    assert task.may_answer(own, "sha256:2") and task.may_answer(record.uri, record.digest)
    others = [
        own.replace("/ml/", "/other/"),
        own.replace(SALT, "0" * 16),
        own + "/..",
        f"s3://a/ml/{'2' * 64}",
        own.replace("2" * 64, "x"),
        "",
    ]
    assert not any(task.may_answer(uri, "sha256:2") for uri in others) and not task.may_answer(
        record.uri, "sha256:2"
    )


def test_key_holds_what_matters_and_no_places(store: ObjectStore) -> None:
    digests = {"spec.optimization.gate.data": "a", "spec.optimization.steps[0].int8.calibration": "b"}
    task = task_for(store)
    base = key_of(inputs_of(task, digests))
    elsewhere = task_for(store, source=store.http("x"), artifacts=store.s3("other"), max_bytes=5)
    assert key_of(inputs_of(elsewhere, digests)) == base
    different = [
        inputs_of(task, digests | {"spec.optimization.gate.data": "c"}),
        inputs_of(task, digests | {"spec.optimization.steps[0].int8.calibration": "c"}),
        *(
            inputs_of(task.model_copy(update=change), digests)
            for change in (
                {"sha256": "0" * 64},
                {"steps": ()},
                {"steps": (Int8Step(),)},
                {"gate": None},
                {"batching": Batching()},
                {"instance_kind": "KIND_CPU"},
                {"target_hardware": "H100"},
            )
        ),
    ]
    assert len({base, *map(key_of, different)}) == len(different) + 1


def test_without_steps_the_model_is_served_as_it_is(store: ObjectStore) -> None:
    result = prepared(task_for(store, steps=(), gate=None))
    assert result.artifact_size_bytes == len(MODEL)
    assert MODEL in artifact_objects(store).values()
    assert (result.paired, result.message) == (None, "")


def test_without_steps_a_gate_needs_no_thousands_of_samples(store: ObjectStore) -> None:
    store.objects["/data/heldout.npz"] = labelled(20, writer=np.arange(20))
    result = prepared(task_for(store, steps=(), gate=gate_for(store, GateMetric(max_drop=0.02, min=0.5))))
    assert result.paired is not None
    assert result.accuracy_before == result.accuracy_after
    error = refusal(task_for(store, steps=()))  # but 20 samples do not prove 80 %
    assert (error.code, error.reason) == (ExitCode.GATE_INCONCLUSIVE, "TooFewSamples")


def test_optimized_without_gate_is_said(store: ObjectStore) -> None:
    assert "without a gate" in prepared(task_for(store, gate=None)).message


def test_gate_refuses_a_proven_loss(store: ObjectStore) -> None:
    # calibrated on values a thousand times too small, so that everything saturates
    store.objects["/data/calibration.npz"] = npz(x=samples(200, 5)[0] / 1000)
    error = refusal(task_for(store))
    assert (error.code, error.reason) == (ExitCode.GATE_FAILED, "AccuracyLow")
    error = refusal(
        task_for(
            store, gate=Gate(data=dataset(store.s3("data/heldout.npz")), metrics=(GateMetric(max_drop=0.02),))
        )
    )
    assert (error.code, error.reason) == (ExitCode.GATE_FAILED, "AccuracyDrop")
    evidence = error.result()
    assert evidence.drop_interval is not None
    assert evidence.drop_interval[0] > 0
    assert evidence.accuracy_after is not None
    assert evidence.accuracy_before is not None
    assert evidence.accuracy_after < evidence.accuracy_before - 0.02
    assert evidence.artifact_digest is None
    assert not artifact_objects(store)


@pytest.mark.parametrize(("hardware", "symmetric"), [("any", False), ("gpu", True)])
def test_activations_are_symmetric_where_a_gpu_is_asked_for(
    store: ObjectStore, hardware: str, symmetric: bool
) -> None:
    """TensorRT takes no zero point."""
    prepared(task_for(store, target_hardware=hardware))
    reports = [json.loads(body) for body in artifact_objects(store).values() if b'"symmetric"' in body]
    assert [report["steps"][0]["symmetric"] for report in reports] == [symmetric]


def test_too_few_samples_are_no_pass(store: ObjectStore) -> None:
    store.objects["/data/heldout.npz"] = labelled(50, writer=np.arange(50))
    error = refusal(task_for(store))
    assert (error.code, error.reason) == (ExitCode.GATE_INCONCLUSIVE, "TooFewSamples")
    assert "about" in error.message
    assert not artifact_objects(store)


def test_same_file_for_calibration_and_gate_is_said(store: ObjectStore) -> None:
    step = Int8Step(method="Static", calibration=dataset(store.s3("data/heldout.npz"), slices=("writer",)))
    assert "same file" in prepared(task_for(store, steps=(step,))).message


X, Y = samples(100)


@pytest.mark.parametrize(
    ("path", "content", "code", "reason", "field"),
    [
        ("/models/m.onnx", None, ExitCode.BAD_INPUT, "ObjectMissing", "spec.model.uri"),
        ("/models/m.onnx", MODEL[:-1], ExitCode.BAD_INPUT, "DigestMismatch", "spec.model.uri"),
        ("/data/heldout.npz", None, ExitCode.BAD_INPUT, "ObjectMissing", "spec.optimization.gate.data.uri"),
        (
            "/data/heldout.npz",
            labelled(50)[:-40],
            ExitCode.BAD_INPUT,
            "DataNotNpz",
            "spec.optimization.gate.data.uri",
        ),
        (
            "/data/heldout.npz",
            npz(x=X),
            ExitCode.BAD_INPUT,
            "LabelsMissing",
            "spec.optimization.gate.data.labels",
        ),
        (
            "/data/heldout.npz",
            npz(x=X, labels=Y),
            ExitCode.BAD_INPUT,
            "SliceInvalid",
            "spec.optimization.gate.data.slices",
        ),
        (
            "/data/heldout.npz",
            npz(x=X[:, :3], labels=Y, writer=Y),
            ExitCode.BAD_INPUT,
            "DataShapeMismatch",
            "spec.optimization.gate.data.uri",
        ),
        (
            "/data/heldout.npz",
            npz(x=X, labels=Y + 1, writer=Y),
            ExitCode.BAD_INPUT,
            "LabelsOutOfRange",
            "spec.optimization.gate.data.labels",
        ),
        (
            "/data/heldout.npz",
            npz(x=X * np.nan, labels=Y, writer=Y),
            ExitCode.BAD_INPUT,
            "DataNotFinite",
            "spec.optimization.gate.data.uri",
        ),
        (
            "/data/calibration.npz",
            None,
            ExitCode.BAD_INPUT,
            "ObjectMissing",
            "spec.optimization.steps[0].int8.calibration.uri",
        ),
        (
            "/data/calibration.npz",
            npz(labels=Y),
            ExitCode.BAD_INPUT,
            "DataInputMissing",
            "spec.optimization.steps[0].int8.calibration.uri",
        ),
        (
            "/data/calibration.npz",
            npz(x=X * np.inf),
            ExitCode.BAD_INPUT,
            "DataNotFinite",
            "spec.optimization.steps[0].int8.calibration.uri",
        ),
    ],
)
def test_bad_input_names_the_field(
    store: ObjectStore, path: str, content: bytes | None, code: ExitCode, reason: str, field: str
) -> None:
    task = task_for(store)
    if content is None:
        del store.objects[path]
    else:
        store.objects[path] = content
    error = refusal(task)
    assert (error.code, error.reason) == (code, reason)
    assert error.message.startswith(field + ":")
    assert not artifact_objects(store)


def test_truncated_file_that_was_pinned_so(store: ObjectStore) -> None:
    store.objects["/models/m.onnx"] = MODEL[:-1]
    assert refusal(task_for(store)).reason == "ModelTruncated"


def test_static_without_calibration(store: ObjectStore) -> None:
    assert refusal(task_for(store, steps=(Int8Step(method="Static"),))).reason == "CalibrationMissing"


def test_batching_of_a_fixed_batch(store: ObjectStore) -> None:
    store.objects["/models/m.onnx"] = classifier(1).SerializeToString()
    error = refusal(task_for(store))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "BatchingImpossible")
    assert error.message.startswith("spec.serving.batching.maxBatchSize")
    prepared(task_for(store, batching=Batching()))


def test_store_that_refuses_writes(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_for(store)
    monkeypatch.setattr(artifact, "folder_of", lambda key, salt: "here")
    store.statuses["/artifacts/team-a/here/manifest.json"] = (403, b"")
    error = refusal(task)
    assert (error.code, error.message.split(":")[0]) == (ExitCode.DENIED, "artifacts")


def data_digests(store: ObjectStore) -> dict[str, str]:
    return {
        "spec.optimization.gate.data": hashlib.sha256(store.objects["/data/heldout.npz"]).hexdigest(),
        "spec.optimization.steps[0].int8.calibration": (
            hashlib.sha256(store.objects["/data/calibration.npz"]).hexdigest()
        ),
    }


def test_fetch_places_a_repository_that_triton_reads(store: ObjectStore, tmp_path: Path) -> None:
    result = prepared(task_for(store))
    (tmp_path / ".fetch-of-a-killed-run").mkdir()
    first = run(fetch_task(store, result, tmp_path), Progress())
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "digits",
        "digits/7",
        "digits/7/model.onnx",
        "digits/config.pbtxt",
    ]
    assert oct((tmp_path / "digits").stat().st_mode)[-3:] == "755"
    assert not first.reused
    assert not (tmp_path / "digits" / "config.pbtxt").read_text().startswith("name:")

    before = len(store.requests)
    again = run(fetch_task(store, result, tmp_path), Progress())
    assert again.reused
    assert [path for _, path in store.requests[before:]] == [
        f"/{str(result.artifact_uri).removeprefix('s3://')}/manifest.json"
    ]


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_fetch_repairs_what_an_earlier_run_left(store: ObjectStore, tmp_path: Path, damage: str) -> None:
    result = prepared(task_for(store))
    run(fetch_task(store, result, tmp_path), Progress())
    model = tmp_path / "digits" / "7" / "model.onnx"
    good = model.read_bytes()
    if damage == "cut":
        os.truncate(model, 10)
    else:
        shutil.rmtree(model.parent)
    run(fetch_task(store, result, tmp_path), Progress())
    assert model.read_bytes() == good


def test_fetch_writes_what_tuning_chose_into_the_checked_config(store: ObjectStore, tmp_path: Path) -> None:
    result = prepared(task_for(store, batching=Batching(max_batch_size=32)))
    plain = fetch_task(store, result, tmp_path)
    tuned = plain.model_copy(update={"serving": ServingConfig(instances=2, batch=8, queue_delay_us=300)})
    path = tmp_path / "digits" / "config.pbtxt"
    run(plain, Progress())
    stored = path.read_text()
    assert not run(tuned, Progress()).reused, "another configuration lies there"
    assert (
        serving_of(parse(path.read_text())) == tuned.serving and parse(path.read_text()).max_batch_size == 32
    )
    assert run(tuned, Progress()).reused, "a second run finds what it would write"
    run(plain, Progress())
    assert path.read_text() == stored


def test_fetch_changes_no_config_that_is_not_the_proven_one(store: ObjectStore, tmp_path: Path) -> None:
    result = prepared(task_for(store))
    name = next(path for path in store.objects if "/config-" in path)
    store.objects[name] = bytes(len(store.objects[name]))
    tuned = fetch_task(store, result, tmp_path).model_copy(update={"serving": ServingConfig(instances=2)})
    assert refusal(tuned).reason == "ArtifactCorrupt" and not (tmp_path / "digits").exists()


def _swap_model(store: ObjectStore, folder: str) -> None:
    path = next(path for path in store.objects if "/model-" in path)
    store.objects[path] = bytes(len(store.objects[path]))


def _swap_manifest(store: ObjectStore, folder: str) -> None:
    store.objects[folder + "manifest.json"] += b" "


def _lose_manifest(store: ObjectStore, folder: str) -> None:
    del store.objects[folder + "manifest.json"]


def _lose_model(store: ObjectStore, folder: str) -> None:
    del store.objects[next(path for path in store.objects if "/model-" in path)]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_swap_model, "ArtifactCorrupt"),
        (_swap_manifest, "ArtifactDigestMismatch"),
        (_lose_manifest, "ArtifactMissing"),
        (_lose_model, "ObjectMissing"),
    ],
)
def test_fetch_serves_nothing_that_was_not_proven(
    store: ObjectStore, tmp_path: Path, damage: Any, reason: str
) -> None:
    result = prepared(task_for(store))
    task = fetch_task(store, result, tmp_path)
    damage(store, "/" + str(result.artifact_uri).removeprefix("s3://") + "/")
    error = refusal(task)
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, reason)
    assert not (tmp_path / "digits").exists()


def test_manifest_cannot_leave_its_folder(store: ObjectStore, tmp_path: Path) -> None:
    entry = {"sha256": "0" * 64, "size": 1, "path": "../../secret"}
    content = json.dumps(
        {"format": 1, "key": "k", "files": {"model.onnx": entry, "config.pbtxt": entry, "report.json": entry}}
    ).encode()
    store.objects["/artifacts/k/manifest.json"] = content
    task = FetchTask(
        artifact=store.s3("artifacts/k"),
        digest=hashlib.sha256(content).hexdigest(),
        model="m",
        number=1,
        target=str(tmp_path),
    )
    assert refusal(task).reason == "ArtifactCorrupt"
    assert refusal(task.model_copy(update={"model": "../m"})).reason == "TaskInvalid"


def test_the_interface_has_no_order_and_a_dimension_that_becomes_fixed_is_another() -> None:
    inputs = ["x: FP32 [n, 64]", "mask: BOOL [n]"]
    one = interface_of(inputs, ["y: FP32 [n, 10]"])
    assert one.inputs == {"x": "FP32 [n, 64]", "mask": "BOOL [n]"} and one.outputs == {"y": "FP32 [n, 10]"}
    assert interface_of(inputs[::-1], ["y: FP32 [n, 10]"]) == one
    assert interface_of(["x: FP32 [8, 64]", "mask: BOOL [n]"], ["y: FP32 [n, 10]"]).digest != one.digest


def test_a_large_interface_leaves_room_in_the_termination_message() -> None:
    large = interface_of([f"feature_{i}: FP32 [n, 1]" for i in range(300)], ["y: FP32 [n]"])
    assert (large.inputs, large.outputs, large.counts) == (None, None, (300, 1))
    listed = interface_of([f"feature_{i}: FP32 [n, 1]" for i in range(15)], ["y: FP32 [n]"])
    assert listed.inputs is not None and len(listed.model_dump_json()) < RESULT_LIMIT_BYTES / 2


def test_a_pruned_model_is_trained_gated_and_published(store: ObjectStore) -> None:
    store.objects["/data/training.npz"] = labelled(1500, seed=8)
    training = Training(
        data=dataset(store.s3("data/training.npz")), epochs=1, learning_rate=0.01, batch_size=64
    )
    int8 = Int8Step(method="Static", calibration=dataset(store.s3("data/calibration.npz")))
    # one short epoch
    gate = Gate(data=dataset(store.s3("data/heldout.npz")), metrics=(GateMetric(max_drop=0.06),))
    task = task_for(store, steps=(PruneStep(sparsity=0.5, training=training), int8), gate=gate)
    result = prepared(task)
    assert result.artifact_size_bytes is not None and result.artifact_size_bytes < 0.4 * len(MODEL)
    report = json.loads(next(body for path, body in artifact_objects(store).items() if "/report-" in path))
    assert [step["kind"] for step in report["steps"]] == ["prune", "int8"]
    assert {"jax", "jaxlib", "optax"} <= set(report["inputs"]["tools"])
    assert "127.0.0.1" not in json.dumps(report), "sources are told by their digests, never by their places"
    assert prepared(task.model_copy(update={"recorded": known(result)})).reused


def custom() -> bytes:
    model = classifier(hidden=8)
    model.graph.node[0].domain = "mine"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "sha256", "reason", "says"),
    [
        (
            classifier(hidden=8).SerializeToString(),
            "0" * 64,
            "DigestMismatch",
            "correct spec.optimization.steps[0].distill.student.sha256",
        ),
        (pickle.dumps([1]), None, "PickleRefused", "any code"),
        (custom(), None, "CustomOperator", "'mine'"),
        (classifier(hidden=8).SerializeToString()[:-20], None, "ModelTruncated", "upload it again"),
    ],
)
def test_a_student_is_checked_like_the_model_before_anything_is_trained(
    store: ObjectStore, content: bytes, sha256: str | None, reason: str, says: str
) -> None:
    store.objects["/data/training.npz"] = labelled(100, seed=8)
    store.objects["/models/student.onnx"] = content
    training = Training(data=dataset(store.s3("data/training.npz")))
    student = ModelFile(location=store.s3("models/student.onnx"), sha256=sha256)
    error = refusal(task_for(store, steps=(DistillStep(student=student, training=training),)))
    assert error.reason == reason and says in error.message
    assert error.message.startswith("spec.optimization.steps[0].distill.student.uri: ")


def test_the_key_holds_every_option_of_a_step(store: ObjectStore) -> None:
    training = Training(data=dataset(store.s3("data/training.npz")))
    where = "spec.optimization.steps[0].prune.training.data"
    one = PruneStep(sparsity=0.5, training=training)
    changes: list[dict[str, Any]] = [
        {"sparsity": 0.6},
        {"granularity": "Unstructured"},
        {"importance": "Activation"},
        {"training": training.model_copy(update={"epochs": 4})},
    ]
    digests = {"spec.optimization.gate.data": "a", where: "b"}
    keys = [
        key_of(inputs_of(task_for(store, steps=(step,)), digests))
        for step in (one, *(one.model_copy(update=c) for c in changes))
    ]
    keys.append(key_of(inputs_of(task_for(store, steps=(one,)), digests | {where: "c"})))
    assert len(set(keys)) == len(changes) + 2
    moved = one.model_copy(
        update={"training": training.model_copy(update={"data": dataset(store.s3("elsewhere/t.npz"))})}
    )
    assert key_of(inputs_of(task_for(store, steps=(moved,)), digests)) == keys[0]
