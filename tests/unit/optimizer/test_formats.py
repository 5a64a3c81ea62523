"""scikit-learn, XGBoost and LightGBM through the prepare Job: converted, compared with the original, gated, published."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
import pytest
import skops.io
import xgboost
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from modelrollout.api.tasks import ExitCode, Gate, GateMetric, PrepareTask, TaskResult
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.jobs.programs import run
from modelrollout.optimizer import convert, fetch
from tests.unit.optimizer.job_fakes import ObjectStore, dataset, npz, object_store

N, F = 1500, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, F)).astype(np.float32)
TWO, THREE, VALUE = (X[:, 0] > 0).astype(int), (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5), X[:, 0] * 2 + X[:, 1]
LABELS = {"two": TWO, "three": THREE, "value": VALUE}


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY", {"max_retries": 0})


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


def xgb(form: str, what: str) -> bytes:
    settings: dict[str, Any] = {"two": {"objective": "binary:logistic"}, "three": {"objective": "multi:softprob", "num_class": 3}, "value": {}}[what]
    return bytes(xgboost.train({"max_depth": 3, "nthread": 1, **settings}, xgboost.DMatrix(X, LABELS[what]), 8).save_raw(form))


def lgb(what: str) -> bytes:
    settings: dict[str, Any] = {"two": {"objective": "binary"}, "three": {"objective": "multiclass", "num_class": 3}, "value": {}}[what]
    told = {"verbose": -1, "num_threads": 1, **settings}
    return lightgbm.train(told, lightgbm.Dataset(X, LABELS[what]), 8).model_to_string().encode()


def skl(model: Any, what: str) -> bytes:
    return bytes(skops.io.dumps(model.fit(X, LABELS[what])))


MODELS: dict[str, tuple[str, bytes, str]] = {
    "xgboost json, two classes": ("XGBoost", xgb("json", "two"), "two"),
    "xgboost ubj, three classes": ("XGBoost", xgb("ubj", "three"), "three"),
    "xgboost ubj, regression": ("XGBoost", xgb("ubj", "value"), "value"),
    "lightgbm, two classes": ("LightGBM", lgb("two"), "two"),
    "lightgbm, three classes": ("LightGBM", lgb("three"), "three"),
    "lightgbm, regression": ("LightGBM", lgb("value"), "value"),
    "skops, a pipeline": ("SKLearn", skl(make_pipeline(StandardScaler(), LogisticRegression()), "three"), "three"),
    "skops, a forest": ("SKLearn", skl(RandomForestClassifier(5, random_state=0), "three"), "three"),
    "skops, a regression": ("SKLearn", skl(LinearRegression(), "value"), "value"),
}


def prepared(store: ObjectStore, model: bytes, kind: str | None, what: str | None = None) -> TaskResult:
    store.objects["/m"] = model
    gate = None
    if what:
        store.objects["/d.npz"] = npz(features=X, labels=LABELS[what])
        metric = GateMetric(name="mae", max_increase=0.1) if what == "value" else GateMetric(max_drop=0.02)
        gate = Gate(data=dataset(store.http("d.npz")), metrics=(metric,))
    task = PrepareTask(source=store.http("m"), sha256=hashlib.sha256(model).hexdigest(), format=kind, gate=gate, artifacts=store.s3("artifacts/a"))  # type: ignore[arg-type]
    return run(task, Progress())


def refusal(store: ObjectStore, model: bytes, kind: str | None) -> JobError:
    with pytest.raises(JobError) as error:
        prepared(store, model, kind)
    assert error.value.code == ExitCode.BAD_INPUT
    assert error.value.message.startswith("spec.model.")
    return error.value


@pytest.mark.parametrize("name", MODELS)
def test_is_converted_and_answers_as_before(store: ObjectStore, name: str) -> None:
    kind, model, what = MODELS[name]
    result = prepared(store, model, kind, what)
    assert result.metrics[0].verdict == "Successful"
    served = next(body for path, body in store.objects.items() if "/model-" in path)
    session = onnxruntime.InferenceSession(served)
    assert [(i.name, i.shape[1]) for i in session.get_inputs()] == [("x", F)]
    answers = session.run(None, {"x": X})
    if what == "value":
        assert np.abs(answers[0].ravel() - VALUE).mean() < 1
    else:
        assert (answers[0] == LABELS[what]).mean() > 0.7
    report = json.loads(next(body for path, body in store.objects.items() if "/report-" in path))
    conversion = report["conversion"]
    assert (conversion["from"], conversion["samples"], conversion["generated"], conversion["apart"]) == (kind, N, False, 0)
    assert set(convert.versions(kind)) <= set(report["inputs"]["tools"])  # type: ignore[arg-type]


def test_without_data_the_comparison_is_on_generated_inputs_and_says_so(store: ObjectStore) -> None:
    assert "generated" in prepared(store, MODELS["xgboost json, two classes"][1], "XGBoost").message


@pytest.mark.parametrize("name", ["xgboost json, two classes", "xgboost ubj, regression", "lightgbm, two classes", "skops, a pipeline"])
def test_a_format_that_was_not_said_names_itself(store: ObjectStore, name: str) -> None:
    kind, model, _ = MODELS[name]
    error = refusal(store, model, None)
    assert error.reason == "FormatNotSet"
    assert f"spec.model.format: {kind}" in error.message
    other = "LightGBM" if kind == "XGBoost" else "XGBoost"
    assert refusal(store, model, other).reason == "FormatMismatch"
    assert refusal(store, model, "ONNX").reason == "FormatMismatch"


def test_pickles_are_refused_whatever_the_format_says(store: ObjectStore) -> None:
    model = pickle.dumps(LinearRegression().fit(X, VALUE))
    assert refusal(store, model, None).reason == "PickleRefused"
    assert refusal(store, model, "SKLearn").reason == "FormatMismatch"


@pytest.mark.parametrize("kind", ["XGBoost", "LightGBM", "SKLearn"])
def test_damaged_models(store: ObjectStore, kind: str) -> None:
    model = next(model for k, model, _ in MODELS.values() if k == kind)
    cut = model[: len(model) // 2] if kind != "SKLearn" else model[:60] + bytes(60) + model[120:]
    assert refusal(store, cut, kind).reason in ("ModelInvalid", "FormatMismatch")


def _own(x: Any) -> Any:
    """A step of a pipeline that is code."""
    return x


def test_types_that_skops_does_not_trust(store: ObjectStore) -> None:
    error = refusal(store, skl(make_pipeline(FunctionTransformer(_own), LinearRegression()), "value"), "SKLearn")
    assert (error.reason, "_own" in error.message) == ("SkopsUntrusted", True)


def test_a_tree_that_leads_out_of_itself(store: ObjectStore) -> None:
    forest = RandomForestClassifier(2, random_state=0).fit(X, TWO)
    forest.estimators_[1].tree_.children_left[0] = 10**6
    error = refusal(store, bytes(skops.io.dumps(forest)), "SKLearn")
    assert (error.reason, "lead out" in error.message) == ("ModelInvalid", True)


def test_an_unfaithful_conversion_is_refused(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = convert.load

    def otherwise(path: Path, kind: Any, folder: Path) -> convert.Original:
        found = real(path, kind, folder)
        return convert.Original(found.model, lambda x: found.predict(x) + 0.01, found.features)

    monkeypatch.setattr("modelrollout.optimizer.prepare.load", otherwise)
    error = refusal(store, MODELS["lightgbm, regression"][1], "LightGBM")
    assert error.reason == "ConversionUnfaithful"
    assert "2000 of 2000 generated samples" in error.message


def test_an_image_without_the_libraries(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    error = refusal(store, MODELS["lightgbm, regression"][1], "LightGBM")
    assert (error.reason, "images.trees" in error.message) == ("FlavourMissing", True)
