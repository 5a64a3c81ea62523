"""Trees and pipelines as people train them, through the prepare Job: what is served answers as the
library that trained it.
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

import arro3.core as arro3
import numpy as np
import onnxruntime
import pytest
import treelite
from arro3.io import write_parquet

from modelrollout.contract.formats import Served
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Batching, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.testing.object_store import SALT, ObjectStore, dataset, npz, object_store
from modelrollout.triton.config import parse
from tests.unit.optimizer.hostile import zipped
from tests.unit.optimizer.trained_models import CATEGORY, DECLARED, GAPS, KINDS, TWO

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("together")]

ROOT = Path(__file__).parents[3]
BATCH = 16
REFUSED = {
    "lightgbm, linear trees": ("ObjectiveUnsupported", "linear_tree"),
    "sklearn, calibrated columns": ("ConversionFailed", "behind the ColumnTransformer"),
}
# Whose inputs are float64: times, and trees that compare what a scaler has computed.
DOUBLE = (
    "lightgbm, times",
    "sklearn, histograms of times",
    "sklearn, scaled times",
    "sklearn, columns of a forest",
    "sklearn, columns of xgboost",
    "sklearn, columns of lightgbm",
    "sklearn, columns of histograms",
)
NAMES = (
    "xgboost, early stopping",
    "xgboost, early stopping, all rounds",
    "xgboost, names of features",
    "xgboost, multi:softmax",
    "xgboost, logitraw",
    "xgboost, hinge",
    "xgboost, ranking",
    "xgboost, cox",
    "xgboost, poisson",
    "xgboost, quantiles",
    "xgboost, dart",
    "xgboost, gblinear",
    "xgboost, two targets",
    "xgboost, trees of two targets",
    "xgboost, categories",
    "xgboost, one category each",
    "xgboost, gaps",
    "xgboost, missing=0",
    "lightgbm, zero as missing",
    "lightgbm, nothing missing",
    "lightgbm, gaps",
    "lightgbm, times",
    "lightgbm, categories",
    "lightgbm, random forest",
    "lightgbm, one against all",
    "lightgbm, tweedie",
    "lightgbm, root",
    "lightgbm, ranking",
    "sklearn, forest of two labels",
    "sklearn, forest of two values",
    "sklearn, forest with gaps",
    "sklearn, histograms",
    "sklearn, histograms of categories",
    "sklearn, histograms of times",
    "sklearn, gradient boosting",
    "sklearn, scaled times",
    "sklearn, calibrated",
    "sklearn, calibrated by steps",
    "sklearn, search",
    "sklearn, xgboost inside",
    "sklearn, columns",
    "sklearn, columns of a forest",
    "sklearn, columns of xgboost",
    "sklearn, columns of lightgbm",
    "sklearn, columns of histograms",
    "sklearn, columns without names",
    "sklearn, gaps of words",
    "sklearn, texts",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trained")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.optimizer.trained_models", str(made)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return made


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


def prepared(
    store: ObjectStore, folder: Path, name: str, gate: Gate | None = None, **told: Any
) -> TaskResult:
    store.objects["/m"] = model = (folder / name).read_bytes()
    told = DECLARED.get(name, {}) | told
    task = PrepareTask(
        source=store.http("m"), sha256=hashlib.sha256(model).hexdigest(), format=KINDS[name.split(",")[0]],
        gate=gate, artifacts=store.s3("artifacts/a"), salt=SALT, batching=Batching(max_batch_size=BATCH),
        **told,
    )  # type: ignore[arg-type]  # fmt: skip
    return run(task, Progress())


def made(store: ObjectStore, part: str) -> bytes:
    return next(body for path, body in store.objects.items() if f"/{part}" in path)


def trained(folder: Path, name: str, what: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as arrays:
        return {n.removeprefix(f"{what}/"): arrays[n] for n in arrays.files if n.startswith(f"{what}/")}


def answers(session: onnxruntime.InferenceSession, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    types = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(int64)": "i8", "tensor(string)": object}
    feeds = {i.name: rows[i.name].astype(types[i.type]) for i in session.get_inputs()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_served_model_answers_as_the_library_that_trained_it(
    store: ObjectStore, folder: Path, name: str
) -> None:
    prepared(store, folder, name)
    session = onnxruntime.InferenceSession(made(store, "model-"))
    rows, want = trained(folder, name, "in"), trained(folder, name, "out")
    got = answers(session, rows)
    for output, expected in want.items():
        served = got[output]
        if expected.dtype.kind in "US":
            assert (served.astype(str) == expected).all()
        else:
            assert served.astype(float) == pytest.approx(expected.astype(float), rel=1e-4, abs=2e-6)
    assert {i.name for i in session.get_inputs()} == rows.keys()
    assert (session.get_inputs()[0].type == "tensor(double)") is (name in DOUBLE)
    # what the configuration says is what requests of one row, and joined ones, get
    config = parse(made(store, "config-").decode())
    for tensor in config.output:
        dims = [] if tensor.reshape.ByteSize() or "reshape" in str(tensor) else list(tensor.dims)
        real = got[tensor.name].shape[1:]
        assert len(dims) == len(real)
        assert all(d in (-1, r) for d, r in zip(dims, real, strict=True))
    one = answers(session, {n: a[:1] for n, a in rows.items()})
    for output, first in one.items():
        assert len(first) == 1
        if first.dtype.kind == "f":
            assert first[0] == pytest.approx(got[output][0], rel=1e-5)
        else:
            assert np.array_equal(first[0], got[output][0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_converted_is_refused_by_its_name(store: ObjectStore, folder: Path, name: str) -> None:
    with pytest.raises(JobError) as error:
        prepared(store, folder, name)
    reason, word = REFUSED[name]
    assert (error.value.reason, word in error.value.message) == (reason, True)


def test_the_report_says_which_rounds_are_served(store: ObjectStore, folder: Path) -> None:
    message = prepared(store, folder, "xgboost, early stopping").message
    rounds = json.loads(made(store, "report-"))["conversion"]["rounds"]
    assert rounds["served"] == rounds["best"] < rounds["trained"]
    assert "spec.model.rounds" in message


def test_zeros_that_may_have_been_missing_are_said(store: ObjectStore, folder: Path) -> None:
    name = "xgboost, missing=0"
    x = trained(folder, name, "in")["x"]
    assert "spec.model.missing" in prepared(store, folder, name, missing=None).message
    for rows, said in ((x, True), (np.where(x == 0, 1, x), False)):
        store.objects = {"/d.npz": npz(x=rows, labels=TWO)}
        gate = Gate(data=dataset(store.http("d.npz")), metrics=(GateMetric(min=0.1),))
        assert ("missing=0" in prepared(store, folder, name, gate, missing=None).message) is said
        assert "missing=0" not in prepared(store, folder, name, gate).message


@pytest.mark.parametrize("name", ["xgboost, gaps", "lightgbm, gaps", "sklearn, histograms"])
def test_gaps_are_data_for_trees(store: ObjectStore, folder: Path, name: str) -> None:
    labels = TWO if "sklearn" not in name else CATEGORY % 3
    store.objects["/d.npz"] = npz(x=GAPS, labels=labels)
    gate = Gate(data=dataset(store.http("d.npz")), metrics=(GateMetric(min=0.1),))
    assert prepared(store, folder, name, gate).samples == len(GAPS)
    assert parse(made(store, "config-").decode()).parameters["missing_values"].string_value == "NaN"


def test_gaps_are_no_data_where_nothing_fills_them(store: ObjectStore, folder: Path) -> None:
    store.objects["/d.npz"] = npz(
        x=np.column_stack([GAPS[:, 0] * 1e3 + 1.7e9, GAPS[:, 1]]).astype(np.float64), labels=TWO
    )
    gate = Gate(data=dataset(store.http("d.npz")), metrics=(GateMetric(min=0.1),))
    with pytest.raises(JobError) as error:
        prepared(store, folder, "sklearn, scaled times", gate)
    assert error.value.reason == "DataNotFinite"


def test_infinity_is_data_where_the_library_takes_it(store: ObjectStore, folder: Path) -> None:
    """XGBoost refuses it; its trees as ONNX would not."""
    x = GAPS.copy()
    x[5, 0] = np.inf
    gate = Gate(data=dataset(store.http("d.npz")), metrics=(GateMetric(min=0.1),))
    store.objects["/d.npz"] = npz(x=x, labels=CATEGORY % 3)
    assert prepared(store, folder, "sklearn, histograms", gate).samples == len(x)
    store.objects["/d.npz"] = npz(x=x, labels=TWO)
    with pytest.raises(JobError) as error:
        prepared(store, folder, "xgboost, gaps", gate)
    assert error.value.reason == "DataNotFinite" and "remove or fill" in error.value.message


@pytest.mark.parametrize("form", ["parquet", "csv", "npz"])
def test_a_gate_on_columns_of_several_types(
    store: ObjectStore, folder: Path, tmp_path: Path, form: str
) -> None:
    rows = trained(folder, "sklearn, columns of a forest", "in")
    labels = trained(folder, "sklearn, columns of a forest", "out")["label"]
    columns = {name: array[:, 0] for name, array in rows.items()} | {"labels": labels}
    if form == "csv":
        cells = zip(
            *(["" if c != c else str(c) for c in array.tolist()] for array in columns.values()), strict=True
        )
        store.objects["/d"] = "\n".join([",".join(columns), *map(",".join, cells)]).encode()
    elif form == "parquet":
        arrays = {
            name: arro3.Array(array.tolist(), arro3.DataType.utf8()) if array.dtype.kind == "U" else array
            for name, array in columns.items()
        }
        write_parquet(arro3.Table.from_pydict(arrays), str(tmp_path / "d"))
        store.objects["/d"] = (tmp_path / "d").read_bytes()
    else:
        store.objects["/d"] = npz(**columns)
    gate = Gate(data=dataset(store.http("d")), metrics=(GateMetric(min=0.9),))
    result = prepared(store, folder, "sklearn, columns of a forest", gate)
    assert result.metrics[0].before == 1.0


def served_by_fil(store: ObjectStore, model: bytes, **told: Any) -> TaskResult:
    store.objects["/m"] = model
    task = PrepareTask(
        source=store.http("m"), sha256=hashlib.sha256(model).hexdigest(), served=Served(backend="FIL"),
        artifacts=store.s3("artifacts/a"), salt=SALT, **told,
    )  # fmt: skip
    return run(task, Progress())


@pytest.mark.parametrize(
    ("name", "kind", "features", "outputs"),
    [
        ("xgboost, gaps", "xgboost_ubj", 4, 1),
        ("xgboost, categories", "xgboost_ubj", 4, 1),
        ("xgboost, multi:softmax", "xgboost_ubj", 4, 3),
        ("xgboost, dart", "xgboost_ubj", 4, 1),
        ("xgboost, hinge", "xgboost_ubj", 4, 1),
        ("xgboost, poisson", "xgboost_ubj", 4, 1),
        ("lightgbm, gaps", "lightgbm", 4, 1),
        ("lightgbm, categories", "lightgbm", 4, 1),
        ("lightgbm, one against all", "lightgbm", 4, 3),
    ],
)
def test_fil_gets_the_file_and_a_configuration(
    store: ObjectStore, folder: Path, name: str, kind: str, features: int, outputs: int
) -> None:
    model = (folder / name).read_bytes()
    result = served_by_fil(store, model)
    assert made(store, "model-") == model
    config = parse(made(store, "config-").decode())
    assert (config.backend, config.default_model_filename) == ("fil", "model.trees")
    assert [(t.name, list(t.dims)) for t in config.input] == [("input__0", [features])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("output__0", [outputs])]
    told = {key: value.string_value for key, value in config.parameters.items()}
    assert told["model_type"] == kind
    assert (told["output_class"], told.get("predict_proba")) == (
        ("true", "true") if outputs > 1 else ("false", None)
    )
    assert config.max_batch_size > 0
    report = json.loads(made(store, "report-"))["conversion"]
    assert (report["samples"], report["apart"]) == (1000, 0)
    assert "Treelite" in result.message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lightgbm, zero as missing", "ConversionUnfaithful"),
        ("lightgbm, times", "ConversionUnfaithful"),
        ("xgboost, gblinear", "BackendFileInvalid"),
        ("xgboost, two targets", "ObjectiveUnsupported"),
        ("lightgbm, linear trees", "ObjectiveUnsupported"),
        ("sklearn, search", "BackendFileInvalid"),
    ],
)
def test_what_fil_would_answer_otherwise_is_refused(
    store: ObjectStore, folder: Path, name: str, reason: str
) -> None:
    content = (folder / name).read_bytes()
    # a zip file is taken for an archive that holds the model
    model = content if not content.startswith(b"PK") else zipped(("m/model.txt", content))
    with pytest.raises(JobError) as error:
        served_by_fil(store, model)
    assert error.value.reason == reason


def test_fil_serves_the_best_rounds_or_all(store: ObjectStore, folder: Path) -> None:
    model = (folder / "xgboost, early stopping").read_bytes()
    served_by_fil(store, model, rounds="All")
    assert made(store, "model-") == model
    store.objects.clear()
    assert "spec.model.rounds" in served_by_fil(store, model).message
    cut, whole = (json.loads(m)["learner"]["gradient_booster"] for m in (made(store, "model-"), model))
    rounds = json.loads(made(store, "report-"))["conversion"]["rounds"]
    assert len(cut["model"]["trees"]) == rounds["served"] < len(whole["model"]["trees"])


def test_the_authors_configuration_of_fil_is_checked(store: ObjectStore, folder: Path) -> None:
    model = (folder / "xgboost, gaps").read_bytes()
    config = b"""max_batch_size: 64
input [{name: "input__0" data_type: TYPE_FP32 dims: [4]}]
output [{name: "output__0" data_type: TYPE_FP32 dims: [1]}]
instance_group [{kind: KIND_GPU}]
parameters {key: "model_type" value {string_value: "xgboost_ubj"}}
parameters {key: "output_class" value {string_value: "true"}}
parameters {key: "threshold" value {string_value: "0.3"}}
"""

    def archive(text: bytes) -> bytes:
        return zipped(("m/config.pbtxt", text), ("m/1/xgboost.ubj", model))

    served_by_fil(store, archive(config), target_hardware="gpu")
    written = parse(made(store, "config-").decode())
    assert (written.max_batch_size, written.parameters["threshold"].string_value) == (64, "0.3")
    assert made(store, "model-") == model
    for told in (
        config.replace(b"dims: [4]", b"dims: [5]"),
        config.replace(b"xgboost_ubj", b"lightgbm"),
        config.replace(b"output__0", b"y"),
        config.replace(b"max_batch_size: 64", b""),
    ):
        with pytest.raises(JobError) as error:
            served_by_fil(store, archive(told), target_hardware="gpu")
        assert error.value.reason == "ConfigMismatch"
    with pytest.raises(JobError) as error:
        served_by_fil(store, archive(config))
    assert "KIND_GPU" in error.value.message


def test_a_checkpoint_of_treelite(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes((folder / "lightgbm, one against all").read_bytes())
    treelite.frontend.load_lightgbm_model(tmp_path / "m.txt").serialize(tmp_path / "m.tl")
    served_by_fil(store, (tmp_path / "m.tl").read_bytes())
    config = parse(made(store, "config-").decode())
    assert config.parameters["model_type"].string_value == "treelite_checkpoint"
    assert [list(t.dims) for t in (*config.input, *config.output)] == [[4], [3]]
    with pytest.raises(JobError) as error:
        served_by_fil(store, (tmp_path / "m.tl").read_bytes()[:200])
    assert error.value.reason in ("BackendFileInvalid", "ModelInvalid")
