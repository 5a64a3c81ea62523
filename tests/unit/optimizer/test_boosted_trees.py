"""XGBoost's models of two trees: what is made of the file answers as the library itself, as ONNX
and as FIL reads it. The slow tests take such models through the whole Job.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import treelite
import xgboost
from numpy.typing import NDArray

from modelrollout.contract.formats import Declared, Rounds
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.formats import fil, xgboost_model
from modelrollout.optimizer.formats.registry import sniff

pytestmark = pytest.mark.usefixtures("one_thread")

N = 24
_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(N, 3)).astype(np.float32)
X[::5, 1] = 0
GAPS = np.where(_RNG.random(X.shape) < 0.15, np.nan, X).astype(np.float32)
CATEGORY = np.arange(N) % 6
TABLE = np.column_stack([X[:, :2], CATEGORY]).astype(np.float32)
VALUE = X[:, 0] + X[:, 1] + CATEGORY % 3
TWO = (VALUE > 1).astype(int)
THREE = np.digitize(VALUE, [0.0, 1.5])
BOTH = np.stack([VALUE, -VALUE], 1)
CATEGORICAL = {"feature_types": ["float", "float", "c"], "enable_categorical": True}


def trained(objective: str, label: Any, x: Any = X, rounds: int = 2, **more: Any) -> Any:
    data = {
        name: more.pop(name) for name in ("feature_types", "enable_categorical", "missing") if name in more
    }
    settings = {"objective": objective, "max_depth": 2, "nthread": 1, "verbosity": 0, **more}
    return xgboost.train(settings, xgboost.DMatrix(x, label, **data), rounds)


def saved(booster: Any, folder: Path, form: str = "ubj") -> Path:
    (folder / "m").write_bytes(bytes(booster.save_raw(form)))
    return folder / "m"


def answers(path: Path, folder: Path, x: NDArray[Any], declared: Declared) -> tuple[list[Any], list[Any]]:
    """(those of the library as the comparison takes them, those of the ONNX model)."""
    scratch = folder / "scratch"
    scratch.mkdir()
    source = xgboost_model.load(path, scratch, declared)
    session = onnxruntime.InferenceSession(source.convert().SerializeToString())
    return source.predict({"x": x}), session.run(None, {"x": x})


def two(booster: Any, matrix: Any) -> list[Any]:
    p = booster.predict(matrix)
    return [p > 0.5, np.stack([1 - p, p], 1)]


def scores(booster: Any, matrix: Any) -> list[Any]:
    sums = booster.predict(matrix, output_margin=True)
    return [sums > 0, sums[:, None]]


def classes(booster: Any, matrix: Any) -> list[Any]:
    p = booster.predict(matrix)
    return [p.argmax(axis=1), p]


def numbers(booster: Any, matrix: Any) -> list[Any]:
    p = booster.predict(matrix)
    return [p.reshape(len(p), -1)]


@pytest.mark.parametrize(
    ("objective", "label", "users", "x", "more"),
    [
        ("binary:logistic", TWO, two, X, {}),
        ("binary:logistic", TWO, two, GAPS, {}),
        ("binary:logistic", TWO, two, TABLE, {"max_cat_to_onehot": 1, **CATEGORICAL}),
        ("binary:logistic", TWO, two, TABLE, {"max_cat_to_onehot": 99, **CATEGORICAL}),
        ("binary:logitraw", TWO, scores, X, {}),
        ("binary:hinge", TWO, scores, X, {}),
        ("multi:softprob", THREE, classes, X, {"num_class": 3}),
        ("multi:softprob", THREE, classes, GAPS, {"num_class": 3, "booster": "gblinear"}),
        ("reg:squarederror", VALUE, numbers, X, {}),
        ("reg:squarederror", VALUE, numbers, X, {"booster": "dart", "rate_drop": 0.9, "rounds": 4}),
        ("reg:squarederror", BOTH, numbers, X, {}),
        ("reg:squarederror", BOTH, numbers, X, {"multi_strategy": "multi_output_tree"}),
        ("reg:logistic", TWO, numbers, X, {}),
        ("count:poisson", np.exp(VALUE), numbers, X, {}),
        ("reg:quantileerror", VALUE, numbers, X, {"quantile_alpha": [0.1, 0.9]}),
    ],
)
def test_both_readings_of_the_file_answer_as_the_library(
    tmp_path: Path, objective: str, label: Any, users: Callable[..., list[Any]], x: Any, more: dict[str, Any]
) -> None:
    booster = trained(objective, label, x, **more)
    data = {name: value for name, value in more.items() if name in CATEGORICAL}
    want = users(booster, xgboost.DMatrix(x, **data))
    original, onnx = answers(saved(booster, tmp_path), tmp_path, x, Declared())
    assert len(want[-1]) == N and np.unique(want[-1]).size > 1  # the trees tell rows apart
    for read in (original, onnx):
        assert len(read) == len(want)
        for given, expected in zip(read, want, strict=True):
            assert given.shape == expected.shape
            assert given == pytest.approx(expected.astype(float), rel=1e-5, abs=1e-6)


def test_zeros_are_missing_where_the_owner_says_so(tmp_path: Path) -> None:
    booster = trained("binary:logistic", TWO, missing=0.0)
    path = saved(booster, tmp_path)
    want = booster.predict(xgboost.DMatrix(X, missing=0.0))
    assert not np.allclose(want, booster.predict(xgboost.DMatrix(X)))
    original, onnx = answers(path, tmp_path, X, Declared(missing=0.0))
    for read in (original, onnx):
        assert read[1][:, 1] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("rounds", "served"), [("Best", 2), ("All", 4)])
def test_rounds_after_the_best_one_are_served_if_the_owner_wants_all(
    tmp_path: Path, rounds: Rounds, served: int
) -> None:
    booster = trained("binary:logistic", TWO, rounds=4)
    booster.set_attr(best_iteration="1")
    path = saved(booster, tmp_path, "json")
    want = booster.predict(xgboost.DMatrix(X), iteration_range=(0, served))
    (tmp_path / "source").mkdir()
    source = xgboost_model.load(path, tmp_path / "source", Declared(rounds=rounds))
    assert source.notes["rounds"] == {"served": served, "trained": 4, "best": 2}
    assert "of 4 rounds, 2 is the best one" in source.warnings[0]
    for read in answers(path, tmp_path, X, Declared(rounds=rounds)):
        assert read[1][:, 1] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("best", ["", "-1", "1.0", "²", "٣", "9" * 5000])
def test_a_best_round_that_is_no_number_counts_for_nothing(best: str) -> None:
    body = {"model": {"iteration_indptr": [0, 1, 2]}, "name": "gbtree"}
    learner = {"attributes": {"best_iteration": best}, "gradient_booster": body}
    assert xgboost_model.rounds_of(learner) == 0
    learner["attributes"] = {"best_iteration": "0"}
    assert xgboost_model.rounds_of(learner) == 1


def test_probes_meet_thresholds_gaps_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = saved(trained("binary:logistic", TWO), tmp_path)
    source = xgboost_model.load(path, tmp_path / "source", Declared(missing=-7.0))
    assert source.probes is not None
    rows = source.probes()["x"]
    assert (rows == -7).any() and np.isnan(rows).any()
    want, got = source.predict({"x": rows}), source.convert()
    session = onnxruntime.InferenceSession(got.SerializeToString())
    assert session.run(None, {"x": rows})[1] == pytest.approx(want[1], rel=1e-5)


@pytest.mark.parametrize(
    ("part", "change", "reason", "says"),
    [
        ("objective", {"name": "reg:own"}, "ObjectiveUnsupported", "the objective reg:own"),
        ("learner_model_param", {"num_feature": "100001"}, "ModelInvalid", "100001 features"),
        ("learner_model_param", {"base_score": "[0.5,0.5]"}, "ModelInvalid", "2 values for 1"),
    ],
)
def test_what_the_file_says_of_itself_is_checked(
    part: str, change: dict[str, str], reason: str, says: str
) -> None:
    learner = json.loads(bytes(trained("binary:logistic", TWO).save_raw("json")))["learner"]
    learner[part] |= change
    with pytest.raises(JobError) as error:
        xgboost_model.read(learner, 0, None)
    assert (error.value.reason, says in error.value.message) == (reason, True)


def facts(path: Path, declared: Declared | None = None) -> fil.Facts:
    folder = path.parent
    scratch = folder / "fil"
    scratch.mkdir()
    fil.write(path, folder, scratch, declared or Declared())
    return fil.Facts(**json.loads((folder / fil.FACTS).read_text()))


@pytest.mark.parametrize(
    ("form", "objective", "label", "more", "outputs"),
    [
        ("json", "binary:logistic", TWO, {}, (2, 1)),
        ("ubj", "multi:softprob", THREE, {"num_class": 3}, (3, 3)),
        ("ubj", "reg:squarederror", VALUE, {}, (0, 1)),
        ("ubj", "binary:hinge", TWO, {}, (0, 1)),
    ],
)
def test_fil_answers_as_the_library(
    tmp_path: Path, form: str, objective: str, label: Any, more: dict[str, Any], outputs: tuple[int, int]
) -> None:
    path = saved(trained(objective, label, **more), tmp_path, form)
    assert sniff(path) == "XGBoost"
    found = facts(path)
    assert (found.model_type, found.features) == (f"xgboost_{form}", 3)
    assert (found.classes, found.outputs) == outputs
    assert (found.rows, found.wrong) == (1000, 0)
    assert found.notes["objective"] == objective
    assert not (tmp_path / fil.SERVED).exists()  # the file itself


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_fil_gets_a_file_without_the_rounds_after_the_best_one(tmp_path: Path, form: str) -> None:
    booster = trained("binary:logistic", TWO, rounds=4)
    booster.set_attr(best_iteration="0")
    found = facts(saved(booster, tmp_path, form))
    assert (found.wrong, found.notes["rounds"]["served"]) == (0, 1)
    served = treelite.frontend.load_xgboost_model(
        tmp_path / fil.SERVED, format_choice="json" if form == "json" else "ubjson"
    )
    assert served.num_tree == 1


def test_a_checkpoint_of_treelite_has_no_original(tmp_path: Path) -> None:
    path = saved(trained("multi:softprob", THREE, num_class=3), tmp_path)
    model = treelite.frontend.load_xgboost_model(path, format_choice="ubjson")
    path.unlink()
    model.serialize(path)
    found = facts(path)
    assert (found.model_type, found.features, found.classes, found.outputs) == (
        "treelite_checkpoint",
        3,
        3,
        3,
    )
    assert (found.rows, found.notes) == (0, {})


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        (lambda path: b"PK\x03\x04 and so on", "BackendFileInvalid", "none of them"),
        (lambda path: path.read_bytes()[:200], "BackendFileInvalid", "Treelite, which says"),
    ],
)
def test_what_fil_cannot_read_is_refused(
    tmp_path: Path, content: Callable[[Path], bytes], reason: str, says: str
) -> None:
    path = saved(trained("binary:logistic", TWO), tmp_path)
    treelite.frontend.load_xgboost_model(path, format_choice="ubjson").serialize(tmp_path / "checkpoint")
    path.write_bytes(content(tmp_path / "checkpoint"))
    with pytest.raises(JobError) as error:
        facts(path)
    assert (error.value.reason, says in error.value.message) == (reason, True)


def test_fil_serves_no_model_of_several_targets(tmp_path: Path) -> None:
    with pytest.raises(JobError) as error:
        facts(saved(trained("reg:squarederror", BOTH), tmp_path))
    assert (error.value.reason, "several targets" in error.value.message) == ("ObjectiveUnsupported", True)
