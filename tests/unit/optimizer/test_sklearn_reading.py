"""scikit-learn's models of two trees and of a few columns, as skops stores them: what they take is
read right, and the ONNX model answers as ``predict``. The slow tests take such models through the
whole Job.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import pytest
import skops.io
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from xgboost import XGBClassifier

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.formats import sklearn_columns, sklearn_model
from modelrollout.optimizer.formats.registry import sniff
from modelrollout.optimizer.formats.source_model import SourceModel
from tests.unit.optimizer.trained_models import named

pytestmark = pytest.mark.usefixtures("one_thread")

N = 24
_RNG = np.random.default_rng(7)
X = _RNG.normal(size=(N, 3)).astype(np.float32)
GAPS = np.where(_RNG.random(X.shape) < 0.15, np.nan, X).astype(np.float32)
CATEGORY = np.arange(N) % 5
TABLE = np.column_stack([X[:, :2], CATEGORY]).astype(np.float32)
VALUE = X[:, 0] + X[:, 1] + CATEGORY % 3
TWO = (VALUE > 1).astype(int)
THREE = np.digitize(VALUE, [0.0, 1.5])
WORDS = np.array(["no", "maybe", "yes"])[THREE]
BOTH = np.stack([TWO, (VALUE > 0).astype(int)], 1)
TIMES = 1.7e9 + 40.0 * np.arange(N)[:, None]
CITY = np.array(["Berlin", "Paris", "Rome"])[np.arange(N) % 3]
NOTES = np.array(["a good day", "Bad Day", "good night, all"])[np.arange(N) % 3]
FOREST: dict[str, Any] = {"n_estimators": 2, "max_depth": 2, "random_state": 0}
HISTOGRAMS: dict[str, Any] = {"max_iter": 2, "max_leaf_nodes": 4, "min_samples_leaf": 2}


@pytest.fixture(autouse=True, scope="module")
def as_before() -> Iterator[None]:
    """What a Job changes in skl2onnx, in a process of its own, is taken back here."""
    pools, calibrated, operators = (
        importlib.import_module(f"skl2onnx.{name}")
        for name in (
            "common._registration",
            "operator_converters.calibrated_classifier_cv",
            "_supported_operators",
        )
    )
    with (
        patch.dict(pools._converter_pool),
        patch.dict(pools._shape_calculator_pool),
        patch.dict(operators.sklearn_operator_name_map),
        patch.dict(vars(calibrated)),
    ):
        yield


def loaded(model: Any, folder: Path, declared: Declared | None = None) -> SourceModel:
    (folder / "m").write_bytes(skops.io.dumps(model))
    assert sniff(folder / "m") == "SKLearn"
    return sklearn_model.load(folder / "m", folder, declared or Declared())


def session_of(source: SourceModel) -> Any:
    return onnxruntime.InferenceSession(source.convert().SerializeToString())


def answers(session: Any, arrays: dict[str, NDArray[Any]]) -> list[Any]:
    types = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(int64)": "i8", "tensor(string)": object}
    feeds = {i.name: arrays[i.name].astype(types[i.type]) for i in session.get_inputs()}
    return list(session.run(None, feeds))


def users(model: Any, rows: Any) -> list[NDArray[Any]]:
    """What who trained the model gets: labels and probabilities, or numbers [n, k]."""
    if not hasattr(model, "predict_proba"):
        return [model.predict(rows).reshape(len(rows), -1)]
    scores = model.predict_proba(rows)
    return [model.predict(rows), np.stack(scores, axis=1) if isinstance(scores, list) else scores]


def expect_equal(given: list[Any], want: list[NDArray[Any]]) -> None:
    assert len(given) == len(want)
    for got, expected in zip(given, want, strict=True):
        if expected.dtype.kind in "OU":
            assert got.astype(str).tolist() == expected.tolist()
        else:
            assert got.shape == expected.shape
            assert got == pytest.approx(expected.astype(float), rel=1e-4, abs=1e-6)
    assert np.unique(want[-1]).size > 1  # the model tells rows apart


@pytest.mark.parametrize(
    ("model", "x", "label"),
    [
        (DecisionTreeClassifier(max_depth=2), X, WORDS),
        (DecisionTreeRegressor(max_depth=2), GAPS, VALUE),
        (RandomForestClassifier(**FOREST), X, BOTH),
        (RandomForestRegressor(**FOREST), X, np.stack([VALUE, -VALUE], 1)),
        (ExtraTreesClassifier(**FOREST), X, TWO),
        (GradientBoostingClassifier(n_estimators=2), X, WORDS),
        (GradientBoostingClassifier(n_estimators=2, loss="exponential"), X, TWO),
        (GradientBoostingRegressor(n_estimators=2), X, VALUE),
        (HistGradientBoostingClassifier(**HISTOGRAMS), GAPS, WORDS),
        (HistGradientBoostingRegressor(**HISTOGRAMS, loss="poisson"), X, np.exp(VALUE)),
        (XGBClassifier(n_estimators=2, n_jobs=1), TABLE, TWO),
        (CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2), X, TWO),
        (CalibratedClassifierCV(DecisionTreeClassifier(max_depth=2), cv=2), X, WORDS),
        (VotingClassifier([("t", DecisionTreeClassifier(max_depth=2))], voting="soft"), X, TWO),
        (GridSearchCV(DecisionTreeClassifier(), {"max_depth": [2]}, cv=2), X, TWO),
        (make_pipeline(SimpleImputer(), MinMaxScaler(), LogisticRegression()), GAPS, TWO),
        (make_pipeline(FeatureUnion([("scaled", MinMaxScaler())]), LinearRegression()), X, VALUE),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
@pytest.mark.parametrize("double", [False, True])
def test_a_table_of_numbers_is_answered_as_by_predict(
    tmp_path: Path, model: Any, x: NDArray[Any], label: NDArray[Any], double: bool
) -> None:
    model.fit(x, label)
    want = users(model, x)
    source = loaded(model, tmp_path, Declared(double=double))
    session = session_of(source)
    kind = "tensor(double)" if double else "tensor(float)"
    assert [(i.name, i.type) for i in session.get_inputs()] == [("x", kind)]
    expect_equal(answers(session, {"x": x}), want)
    original = source.predict({"x": x})
    expect_equal([o.reshape(w.shape) for o, w in zip(original, want, strict=True)], want)


def test_categories_of_histograms_lead_where_predict_sends_them(tmp_path: Path) -> None:
    """Known ones, missing ones and unknown ones, to either side."""
    table = np.repeat(TABLE, 12, axis=0)  # scikit-learn ignores rare categories
    table[::7, 2] = np.nan
    label = np.isin(table[:, 2], [1, 2]) ^ (np.isnan(table[:, 2]) & (table[:, 0] > 0))
    fitted = HistGradientBoostingClassifier(
        max_iter=4, max_leaf_nodes=6, categorical_features=[2], random_state=0
    ).fit(table, label.astype(int))
    nodes = np.concatenate([predictor.nodes for row in fitted._predictors for predictor in row])
    assert set(nodes["missing_go_to_left"][nodes["is_categorical"] != 0]) == {0, 1}
    asked = np.array([[a, 0.0, c] for a in (-1, 1) for c in (0, 1, 2, 3, 4, 77, np.nan)], np.float32)
    source = loaded(fitted, tmp_path)
    expect_equal(answers(session_of(source), {"x": asked}), users(fitted, asked))
    assert source.probes is not None
    probes = source.probes()["x"]
    assert {0, 1, 2, 3, 4, 5} <= set(probes[:, 2])  # 5 is unknown
    assert sorted(set(source.predict({"x": probes})[0])) == [0, 1]
    compares = nodes[(nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)]
    assert len(compares)
    for node in compares:  # trees number the category first
        column = probes[:, node["feature_idx"] - 1]
        assert np.float32(node["num_threshold"]) in column


def test_xgboost_inside_keeps_its_own_missing_value(tmp_path: Path) -> None:
    x = np.where(np.abs(X) < 0.5, 0, X)
    fitted = XGBClassifier(n_estimators=2, n_jobs=1, max_depth=2, missing=0.0).fit(
        x, (x[:, 0] == 0).astype(int)
    )
    want = users(fitted, x)
    source = loaded(fitted, tmp_path)
    fitted.missing = np.nan
    assert not np.allclose(want[1], users(fitted, x)[1])
    expect_equal(answers(session_of(source), {"x": x}), want)


# --- columns of several types


def objects(*columns: Any) -> Any:
    """A table of columns of several types, as a data frame gives it."""
    table = np.empty((N, len(columns)), object)
    for at, column in enumerate(columns):
        table[:, at] = column.tolist()
    return table


AGE = np.where(np.arange(N) % 8 == 3, np.nan, 40 + 10 * X[:, 0])
PLAN = 1 + np.arange(N) % 4
PEOPLE = objects(AGE, CITY, PLAN, X[:, 1])
LABEL = ((X[:, 0] > 0) ^ (CITY == "Rome")).astype(int)
NAMES = ["age", "city", "plan", "income"]
BY_NAME = {
    "age": AGE[:, None],
    "city": CITY[:, None].astype(object),
    "plan": PLAN[:, None],
    "income": X[:, 1:2].astype(np.float64),
}


def of_people(model: Any, numbers: Any = (0, 3)) -> Any:
    """A pipeline on the table's columns, trained."""
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            ("words", OneHotEncoder(handle_unknown="ignore"), [1]),
            ("plan", OneHotEncoder(), [2]),
        ],
        sparse_threshold=0,
    )
    return make_pipeline(columns, model).fit(PEOPLE, LABEL)


@pytest.mark.parametrize(
    ("model", "wider"),
    [
        (LogisticRegression(), "IfUnfaithful"),
        (RandomForestClassifier(**FOREST), "First"),  # trees that compare what a scaler computed
        (XGBClassifier(n_estimators=2, n_jobs=1), "First"),
    ],
)
def test_columns_of_a_data_frame_become_inputs_of_their_names_and_types(
    tmp_path: Path, model: Any, wider: str
) -> None:
    fitted = of_people(model)
    want = users(fitted, PEOPLE)
    source = loaded(named(fitted, NAMES), tmp_path)
    assert (source.wider, source.notes["features"]) == (wider, NAMES)
    if wider == "First":
        source = loaded(fitted, tmp_path, Declared(double=True))
    session = session_of(source)
    number = "tensor(double)" if wider == "First" else "tensor(float)"
    assert {i.name: (i.type, i.shape[1]) for i in session.get_inputs()} == {
        "age": (number, 1),
        "city": ("tensor(string)", 1),
        "plan": ("tensor(int64)", 1),
        "income": (number, 1),
    }
    expect_equal(answers(session, BY_NAME), want)
    expect_equal(source.predict(BY_NAME), want)


@pytest.mark.parametrize(
    ("numbers", "inputs"),
    [
        ([0, 3], "x0 x1 x2 x3"),
        ([-1], "x1 x2 x3"),
        (slice(0, 1), "x0 x1 x2"),
        ([True, False, False, False], "x0 x1 x2"),
    ],
)
def test_columns_without_names_are_numbered_and_those_that_nothing_reads_left_out(
    tmp_path: Path, numbers: Any, inputs: str
) -> None:
    fitted = of_people(LogisticRegression(), numbers)
    want = users(fitted, PEOPLE)
    source = loaded(fitted, tmp_path)
    by_number = dict(zip(["x0", "x1", "x2", "x3"], BY_NAME.values(), strict=True))
    session = session_of(source)
    assert [i.name for i in session.get_inputs()] == inputs.split()
    expect_equal(answers(session, by_number), want)
    assert source.probes is not None
    assert list(source.probes()) == inputs.split()


@pytest.mark.parametrize("chosen", [slice("age", "city"), ["age", "city"], [True, True, False]])
def test_a_slice_of_names_includes_its_end(chosen: Any) -> None:
    fitted = make_pipeline(ColumnTransformer([("some", StandardScaler(), [0, 1])]), LogisticRegression()).fit(
        X, TWO
    )
    named(fitted, ["age", "city", "plan"])
    name, part, _ = fitted[0].transformers_[0]
    fitted[0].transformers_[0] = (name, part, chosen)
    table = sklearn_columns.read_table(fitted, 3)
    assert [column.name for column in table.inputs] == ["age", "city"]
    assert fitted[0].transformers_[0][2] == [0, 1]


def test_texts_are_one_input(tmp_path: Path) -> None:
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(NOTES, LABEL)
    want = users(fitted, NOTES)
    source = loaded(fitted, tmp_path)
    session = session_of(source)
    assert [(i.name, i.type) for i in session.get_inputs()] == [("text", "tensor(string)")]
    given = {"text": NOTES[:, None].astype(object)}
    expect_equal(answers(session, given), want)
    expect_equal(source.predict(given), want)
    assert source.probes is not None
    words = {word for text in source.probes()["text"].ravel() for word in text.split()}
    assert {"good", "day", "night", "vocabulary"} <= words  # known and unknown ones


def test_probes_have_of_each_column_what_it_takes(tmp_path: Path) -> None:
    source = loaded(named(of_people(LogisticRegression()), NAMES), tmp_path)
    assert source.probes is not None
    rows = source.probes()
    assert set(rows["city"].ravel()) - {"Berlin", "Paris", "Rome"}  # unknown words are ignored
    assert set(rows["plan"].ravel()) == {1, 2, 3, 4}  # others are refused
    assert np.isnan(rows["age"]).any()
    known = AGE[np.isfinite(AGE)]
    assert np.nanmin(rows["age"]) < known.min() and np.nanmax(rows["age"]) > known.max()


def test_a_missing_word_is_the_empty_one(tmp_path: Path) -> None:
    words = np.where(CITY == "Rome", np.nan, CITY.astype(object))
    fill = make_pipeline(SimpleImputer(strategy="most_frequent"), OrdinalEncoder())
    table = objects(words, words)
    fitted = make_pipeline(
        ColumnTransformer([("known", OneHotEncoder(), [0]), ("filled", fill, [1])]), LogisticRegression()
    ).fit(table, LABEL)
    want = users(fitted, table)
    source = loaded(fitted, tmp_path)
    given = np.where(CITY == "Rome", "", CITY)[:, None].astype(object)
    expect_equal(answers(session_of(source), {"x0": given, "x1": given}), want)
    assert source.probes is not None
    assert set(source.probes()["x0"].ravel()) == {"", "Berlin", "Paris"}  # OneHotEncoder refuses others


# --- numbers


@pytest.mark.parametrize("where", ["the file", "its owner"])
def test_float64_is_used_where_float32_is_too_coarse_or_the_owner_asks(tmp_path: Path, where: str) -> None:
    x = TIMES if where == "the file" else X
    fitted = HistGradientBoostingRegressor(**HISTOGRAMS).fit(x, VALUE)
    source = loaded(fitted, tmp_path, Declared(double=where == "its owner"))
    assert (source.notes["float64"], source.wider) == (True, "No")
    expect_equal(answers(session_of(source), {"x": x}), users(fitted, x))


@pytest.mark.parametrize(
    ("model", "before"),
    [
        (make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=2)), True),
        (make_pipeline(StandardScaler(), XGBClassifier(n_estimators=1, n_jobs=1)), True),
        (make_pipeline(SimpleImputer(), DecisionTreeClassifier(max_depth=2)), False),
        (make_pipeline(StandardScaler(), LogisticRegression()), False),
        (HistGradientBoostingClassifier(**HISTOGRAMS), False),
    ],
)
def test_whether_trees_compare_what_was_computed_before(model: Any, before: bool) -> None:
    assert sklearn_columns.computes_before_trees(model.fit(X, TWO)) is before


@pytest.mark.parametrize(
    ("model", "takes"),
    [(DecisionTreeClassifier(max_depth=2), True), (LogisticRegression(), False)],
)
def test_probes_have_gaps_where_the_model_takes_them(tmp_path: Path, model: Any, takes: bool) -> None:
    source = loaded(model.fit(X, TWO), tmp_path)
    assert source.probes is not None
    rows = source.probes()["x"]
    assert rows.shape[1] == 3
    assert bool(np.isnan(rows).any()) is takes


def test_probes_reach_every_leaf(tmp_path: Path) -> None:
    fitted = DecisionTreeRegressor(max_depth=3).fit(X, VALUE)
    source = loaded(fitted, tmp_path)
    assert source.probes is not None
    leaves = fitted.tree_.value[fitted.tree_.children_left < 0].ravel()
    assert len(leaves) == 8
    assert sorted(set(source.predict(source.probes())[0].tolist())) == sorted(leaves.tolist())


def test_a_finder_of_outliers_gives_its_decision_too(tmp_path: Path) -> None:
    fitted = IsolationForest(n_estimators=2, random_state=0).fit(X)
    source = loaded(fitted, tmp_path)
    label, score = source.predict({"x": X})
    assert label.tolist() == fitted.predict(X).tolist()
    assert score == pytest.approx(fitted.decision_function(X))
    expect_equal([o.ravel() for o in answers(session_of(source), {"x": X})], [label, score])


# --- what is refused


def own(x: Any) -> Any:
    return x


def astray(model: Any) -> Any:
    """With a node that leads back."""
    trees = list(sklearn_columns.trees_in(model, set()))
    if hasattr(trees[0], "nodes"):
        trees[0].nodes["left"][0] = 0
    else:
        trees[-1].children_left[0] = 0
    return model


def wide(model: Any) -> Any:
    model.n_features_in_ = 100_001
    return model


def mixed() -> Any:
    """Categories that are words and numbers."""
    encoder = OneHotEncoder()
    fitted = make_pipeline(encoder, LogisticRegression()).fit(objects(CITY), LABEL)
    encoder.categories_[0] = np.array(["Berlin", "Paris", 3], object)
    return fitted


def begins(cls: Any, label: Any) -> Any:
    """Boosting on top of a model of its own."""
    first = LogisticRegression() if cls is GradientBoostingClassifier else LinearRegression()
    return cls(n_estimators=2, init=first).fit(X, label)


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "code": (
        lambda: make_pipeline(FunctionTransformer(own), LinearRegression()).fit(X, VALUE),
        "SkopsUntrusted",
        "own",
    ),
    "no model": (lambda: StandardScaler().fit(X), "ModelInvalid", "StandardScaler predicts nothing"),
    "a tree that leads back": (
        lambda: astray(RandomForestClassifier(**FOREST).fit(X, TWO)),
        "ModelInvalid",
        "lead out",
    ),
    "a tree of histograms that leads back": (
        lambda: astray(HistGradientBoostingRegressor(**HISTOGRAMS).fit(X, VALUE)),
        "ModelInvalid",
        "lead out",
    ),
    "too many features": (lambda: wide(LinearRegression().fit(X, VALUE)), "ModelInvalid", "100001 features"),
    "categories of several types": (mixed, "ModelInvalid", "column 'x0' has categories of several types"),
}
NOT_CONVERTED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "outputs of different classes": (
        lambda: RandomForestClassifier(**FOREST).fit(X, np.stack([TWO, THREE], 1)),
        "ObjectiveUnsupported",
        "different numbers of classes",
    ),
    "calibration around columns": (
        lambda: CalibratedClassifierCV(of_people(LogisticRegression()), cv=2, ensemble=False).fit(
            PEOPLE, LABEL
        ),
        "ConversionFailed",
        "behind the ColumnTransformer",
    ),
    "a classifier on top of another": (
        lambda: begins(GradientBoostingClassifier, TWO),
        "ObjectiveUnsupported",
        "begins with a model of its own (init)",
    ),
    "a regressor on top of another": (
        lambda: begins(GradientBoostingRegressor, VALUE),
        "ObjectiveUnsupported",
        "begins with a model of its own (init)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_safely_is_refused(tmp_path: Path, name: str) -> None:
    make, reason, says = REFUSED[name]
    with pytest.raises(JobError) as error:
        loaded(make(), tmp_path)
    assert (error.value.reason, says in error.value.message) == (reason, True)
    assert error.value.message.startswith("spec.model.uri: ")


@pytest.mark.parametrize("name", NOT_CONVERTED)
def test_what_is_not_converted_says_why(tmp_path: Path, name: str) -> None:
    make, reason, says = NOT_CONVERTED[name]
    source = loaded(make(), tmp_path)
    with pytest.raises(JobError) as error:
        source.convert()
    assert (error.value.reason, says in error.value.message) == (reason, True)
