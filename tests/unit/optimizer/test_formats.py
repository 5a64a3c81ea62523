"""scikit-learn, XGBoost and LightGBM through the prepare Job: converted, compared with the
original, gated, published.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.formats import OUTPUTS, isolated
from modelrollout.testing.object_store import SALT, ObjectStore, dataset, npz, object_store
from tests.unit.optimizer.tree_models import ASTRAY, FEATURES, LABELS, MODELS, PICKLE, UNTRUSTED, N, X

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# One of each library is read in a process of its own, as in the Job: that costs seconds each time.
APART = ("xgboost json, two classes", "lightgbm, three classes", "skops, a forest")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "tests.unit.optimizer.tree_models", str(folder)],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


def prepared(store: ObjectStore, model: bytes, kind: str | None, what: str | None = None) -> TaskResult:
    store.objects["/m"] = model
    gate = None
    if what:
        store.objects["/d.npz"] = npz(features=X, labels=LABELS[what])
        metric = GateMetric(name="mae", max_increase=0.1) if what == "value" else GateMetric(max_drop=0.02)
        gate = Gate(data=dataset(store.http("d.npz")), metrics=(metric,))
    task = PrepareTask(
        source=store.http("m"),
        sha256=hashlib.sha256(model).hexdigest(),
        format=kind,
        gate=gate,
        artifacts=store.s3("artifacts/a"),
        salt=SALT,
    )  # type: ignore[arg-type]
    return run(task, Progress())


def refusal(store: ObjectStore, model: bytes, kind: str | None) -> JobError:
    with pytest.raises(JobError) as error:
        prepared(store, model, kind)
    assert error.value.code == ExitCode.BAD_INPUT
    assert error.value.message.startswith("spec.model.")
    return error.value


@pytest.mark.parametrize("name", MODELS)
def test_is_converted_and_answers_as_before(
    store: ObjectStore, models: dict[str, bytes], name: str, request: pytest.FixtureRequest
) -> None:
    kind, what = MODELS[name]
    if name not in APART:
        request.getfixturevalue("together")
    result = prepared(store, models[name], kind, what)
    assert result.metrics[0].verdict == "Successful"
    served = next(body for path, body in store.objects.items() if "/model-" in path)
    session = onnxruntime.InferenceSession(served)
    assert [(i.name, i.shape[1]) for i in session.get_inputs()] == [("x", FEATURES)]
    answers = session.run(None, {"x": X})
    if what == "value":
        assert np.abs(answers[0].ravel() - LABELS[what]).mean() < 1
    else:
        assert (answers[0] == LABELS[what]).mean() > 0.7
    report = json.loads(next(body for path, body in store.objects.items() if "/report-" in path))
    conversion = report["conversion"]
    assert (conversion["from"], conversion["samples"], conversion["generated"], conversion["apart"]) == (
        kind,
        N,
        False,
        0,
    )
    assert set(isolated.versions(kind)) <= set(report["inputs"]["tools"])  # type: ignore[arg-type]


@pytest.mark.usefixtures("together")
def test_without_data_the_comparison_is_on_generated_inputs_and_says_so(
    store: ObjectStore, models: dict[str, bytes]
) -> None:
    assert "generated" in prepared(store, models["xgboost json, two classes"], "XGBoost").message


@pytest.mark.parametrize(
    "name",
    ["xgboost json, two classes", "xgboost ubj, regression", "lightgbm, two classes", "skops, a pipeline"],
)
def test_a_format_that_was_not_said_names_itself(
    store: ObjectStore, models: dict[str, bytes], name: str
) -> None:
    kind, model = MODELS[name][0], models[name]
    error = refusal(store, model, None)
    assert error.reason == "FormatNotSet"
    assert f"spec.model.format: {kind}" in error.message
    other = "LightGBM" if kind == "XGBoost" else "XGBoost"
    assert refusal(store, model, other).reason == "FormatMismatch"
    assert refusal(store, model, "ONNX").reason == "FormatMismatch"


def test_pickles_are_refused_whatever_the_format_says(store: ObjectStore, models: dict[str, bytes]) -> None:
    assert refusal(store, models[PICKLE], None).reason == "PickleRefused"
    assert refusal(store, models[PICKLE], "SKLearn").reason == "FormatMismatch"


@pytest.mark.parametrize("kind", ["XGBoost", "LightGBM", "SKLearn"])
def test_damaged_models(store: ObjectStore, models: dict[str, bytes], kind: str) -> None:
    model = next(models[name] for name, (k, _) in MODELS.items() if k == kind)
    cut = model[: len(model) // 2] if kind != "SKLearn" else model[:60] + bytes(60) + model[120:]
    assert refusal(store, cut, kind).reason in ("ModelInvalid", "FormatMismatch")


@pytest.mark.usefixtures("together")
def test_types_that_skops_does_not_trust(store: ObjectStore, models: dict[str, bytes]) -> None:
    error = refusal(store, models[UNTRUSTED], "SKLearn")
    assert (error.reason, "_own" in error.message) == ("SkopsUntrusted", True)


def test_a_tree_that_leads_out_of_itself(store: ObjectStore, models: dict[str, bytes]) -> None:
    error = refusal(store, models[ASTRAY], "SKLearn")
    assert (error.reason, "lead out" in error.message) == ("ModelInvalid", True)


@pytest.mark.usefixtures("together")
def test_an_unfaithful_conversion_is_refused(
    store: ObjectStore, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = isolated.run_isolated

    def otherwise(task: str, path: Path, kind: Any, folder: Path) -> None:
        real(task, path, kind, folder)
        if task == "predict":
            with np.load(folder / OUTPUTS) as answers:
                changed = {name: answers[name] + 0.01 for name in answers.files}
            np.savez(folder / OUTPUTS, **changed)

    monkeypatch.setattr(isolated, "run_isolated", otherwise)
    error = refusal(store, models["lightgbm, regression"], "LightGBM")
    assert error.reason == "ConversionUnfaithful"
    assert "2000 of 2000 generated samples" in error.message


def test_an_image_without_the_libraries(
    store: ObjectStore, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "packages_distributions", lambda: {"onnxmltools": ["onnxmltools"]})
    error = refusal(store, models["lightgbm, regression"], "LightGBM")
    assert (error.reason, "images.trees" in error.message) == ("FlavourMissing", True)
