"""``python -m tests.unit.optimizer.trained_models FOLDER``: models as people train them, with the
answers of the library that trained each.

For each name FOLDER/NAME is the file, and FOLDER/NAME.npz has its inputs (``in/NAME``) and the
answers that users of the library get (``out/NAME``). They are made in a process of its own, as
those of ``tree_models``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 600
KINDS = {"xgboost": "XGBoost", "lightgbm": "LightGBM", "sklearn": "SKLearn"}
Answers = dict[str, Any]
Made = tuple[bytes, Answers, Answers]

_RNG = np.random.default_rng(5)
X = _RNG.normal(size=(ROWS, 4)).astype(np.float32)
X[_RNG.random(X.shape) < 0.1] = 0
CATEGORY = _RNG.integers(0, 9, ROWS)
GAPS = X.copy()
GAPS[_RNG.random(X.shape) < 0.1] = np.nan
TABLE = np.column_stack([X[:, :3], CATEGORY]).astype(np.float32)  # the last one is a category
VALUE = X[:, 0] + X[:, 1] * X[:, 2] + CATEGORY % 3
TWO = (VALUE > 1).astype(int)
THREE = np.digitize(VALUE, [0, 2])
WORDS = np.array(["no", "maybe", "yes"])[THREE]
TIMES = 1.7e9 + _RNG.integers(0, 2000, (ROWS, 1)).astype(np.float64)
CITY = np.array(["Berlin", "Paris", "Rome"])[_RNG.integers(0, 3, ROWS)]
NOTES = np.array(["a good day", "Bad Day", "good night, all"])[_RNG.integers(0, 3, ROWS)]
PLAN = _RNG.integers(1, 4, ROWS)

# By name: what ``declared`` says of the file.
DECLARED: dict[str, dict[str, Any]] = {
    "xgboost, early stopping, all rounds": {"rounds": "All"},
    "xgboost, missing=0": {"missing": 0.0},
}


def _xgboost(
    objective: str, label: Any, outputs: Callable[[Any, Any], Answers], x: Any = X, **more: Any
) -> Made:
    import xgboost

    data = {
        name: more.pop(name)
        for name in ("feature_names", "feature_types", "enable_categorical", "missing", "group")
        if name in more
    }
    matrix = xgboost.DMatrix(x, label, **data)
    booster = xgboost.train(
        {"objective": objective, "max_depth": 3, "nthread": 1, "verbosity": 0, **more}, matrix, 6
    )
    return bytes(booster.save_raw("ubj")), {"x": x}, outputs(booster, matrix)


def _numbers(booster: Any, matrix: Any) -> Answers:
    answers = booster.predict(matrix)
    return {"variable": answers.reshape(len(answers), -1)}


def _two(booster: Any, matrix: Any) -> Answers:
    p = booster.predict(matrix)
    return {"probabilities": np.stack([1 - p, p], 1), "label": (p > 0.5).astype(int)}


def _early_stopping(best: bool) -> Made:
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=2, n_jobs=1, learning_rate=0.9)
    noisy = np.where(_RNG.random(ROWS) < 0.3, 1 - TWO, TWO)
    model.fit(X[:300], noisy[:300], eval_set=[(X[300:], noisy[300:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    everything = model.predict_proba(X, iteration_range=(0, model.get_booster().num_boosted_rounds()))
    proba = model.predict_proba(X) if best else everything
    return bytes(model.get_booster().save_raw("json")), {"x": X}, {"probabilities": proba}


def _boosters() -> dict[str, Made]:
    two_values = np.stack([VALUE, -VALUE], 1)
    categorical = {"feature_types": ["float"] * 3 + ["c"], "enable_categorical": True, "x": TABLE}

    def scores(booster: Any, matrix: Any) -> Answers:
        sums = booster.predict(matrix, output_margin=True)
        return {"scores": sums[:, None], "label": (sums > 0).astype(int)}

    return {
        "xgboost, early stopping": _early_stopping(best=True),
        "xgboost, early stopping, all rounds": _early_stopping(best=False),
        "xgboost, names of features": _xgboost(
            "binary:logistic", TWO, _two, feature_names=["age", "sp.ent", "a b", "meanfreq"]
        ),
        "xgboost, multi:softmax": _xgboost(
            "multi:softmax", THREE, lambda b, m: {"label": b.predict(m).astype(int)}, num_class=3
        ),
        "xgboost, logitraw": _xgboost("binary:logitraw", TWO, scores),
        "xgboost, hinge": _xgboost("binary:hinge", TWO, scores),
        "xgboost, ranking": _xgboost("rank:ndcg", TWO, _numbers, group=[300, 300]),
        "xgboost, cox": _xgboost("survival:cox", np.exp(VALUE), _numbers),
        "xgboost, poisson": _xgboost("count:poisson", np.exp(VALUE), _numbers),
        "xgboost, quantiles": _xgboost("reg:quantileerror", VALUE, _numbers, quantile_alpha=[0.1, 0.9]),
        "xgboost, dart": _xgboost("reg:squarederror", VALUE, _numbers, booster="dart", rate_drop=0.5),
        "xgboost, gblinear": _xgboost(
            "multi:softprob", THREE, lambda b, m: {"probabilities": b.predict(m)},
            booster="gblinear", num_class=3, x=GAPS,
        ),
        "xgboost, two targets": _xgboost("reg:squarederror", two_values, _numbers),
        "xgboost, trees of two targets": _xgboost(
            "reg:squarederror", two_values, _numbers, multi_strategy="multi_output_tree"
        ),
        "xgboost, categories": _xgboost("binary:logistic", TWO, _two, max_cat_to_onehot=1, **categorical),
        "xgboost, one category each": _xgboost(
            "binary:logistic", TWO, _two, max_cat_to_onehot=99, **categorical
        ),
        "xgboost, gaps": _xgboost("binary:logistic", TWO, _two, x=GAPS),
        "xgboost, missing=0": _xgboost("binary:logistic", TWO, _two, missing=0.0),
    }  # fmt: skip


def _lightgbm(label: Any, outputs: Callable[[Any], Answers], x: Any = X, **more: Any) -> Made:
    import lightgbm

    data = {name: more.pop(name) for name in ("categorical_feature", "group") if name in more}
    told = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, **more}
    booster = lightgbm.train(told, lightgbm.Dataset(x, label, **data), 6)
    return booster.model_to_string().encode(), {"x": x}, outputs(booster.predict(x))


def _light() -> dict[str, Made]:
    def numbers(answers: Any) -> Answers:
        return {"variable": answers.reshape(len(answers), -1)}

    def classes(answers: Any) -> Answers:
        return {"probabilities": answers if answers.ndim > 1 else np.stack([1 - answers, answers], 1)}

    every = CATEGORY % 2
    return {
        "lightgbm, zero as missing": _lightgbm(TWO, classes, objective="binary", zero_as_missing=True),
        "lightgbm, nothing missing": _lightgbm(TWO, classes, GAPS, objective="binary", use_missing=False),
        "lightgbm, gaps": _lightgbm(TWO, classes, GAPS, objective="binary"),
        "lightgbm, times": _lightgbm(
            (TIMES[:, 0] // 250 % 2).astype(int), classes, TIMES, objective="binary"
        ),
        "lightgbm, categories": _lightgbm(
            every, classes, TABLE, objective="binary", categorical_feature=[3], max_cat_to_onehot=1,
            min_data_per_group=5, cat_smooth=1,
        ),
        "lightgbm, random forest": _lightgbm(
            TWO, classes, objective="binary", boosting="rf", bagging_fraction=0.5, bagging_freq=1
        ),
        "lightgbm, one against all": _lightgbm(THREE, classes, objective="multiclassova", num_class=3),
        "lightgbm, tweedie": _lightgbm(np.exp(VALUE), numbers, objective="tweedie"),
        "lightgbm, root": _lightgbm(VALUE, numbers, reg_sqrt=True),
        "lightgbm, ranking": _lightgbm(TWO, numbers, objective="lambdarank", group=[300, 300]),
        "lightgbm, linear trees": _lightgbm(VALUE, numbers, linear_tree=True),
    }  # fmt: skip


def _dumped(model: Any, rows: Any, inputs: Answers) -> Made:
    import skops.io

    answers: Answers = {}
    if hasattr(model, "predict_proba"):
        scores = model.predict_proba(rows)
        answers = {
            "label": model.predict(rows),
            "probabilities": np.stack(scores, 1) if isinstance(scores, list) else scores,
        }
    else:
        answers["variable"] = model.predict(rows).reshape(len(rows), -1)
    return skops.io.dumps(model), inputs, answers


def objects(*columns: Any) -> Any:
    """A table of columns of several types, as a data frame gives it."""
    table = np.empty((ROWS, len(columns)), object)
    for at, column in enumerate(columns):
        table[:, at] = column.tolist()
    return table


def named(model: Any, names: list[str]) -> Any:
    """The pipeline as if it was trained on a data frame of these columns, chosen by name."""
    columns = model[0]
    for part in (model, columns):
        part.__dict__["feature_names_in_"] = np.array(names, dtype=object)
    columns.transformers_ = [
        (name, part, [names[at] for at in places]) for name, part, places in columns.transformers_
    ]
    return model


def _learned() -> dict[str, Made]:
    import skops.io
    from lightgbm import LGBMClassifier
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
    from xgboost import XGBClassifier

    def on_x(model: Any, label: Any, x: Any = X) -> Made:
        return _dumped(model.fit(x, label), x, {"x": x})

    def columns(*parts: Any) -> Any:
        return ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [0, 3]),
                ("words", OneHotEncoder(handle_unknown="ignore"), [1]),
                *parts,
            ],
            sparse_threshold=0,
        )

    age = np.where(_RNG.random(ROWS) < 0.1, np.nan, X[:, 0] * 10 + 40)
    rows = objects(age, CITY, PLAN, X[:, 1])
    inputs = {
        "age": age[:, None],
        "city": CITY[:, None],
        "plan": PLAN.astype(np.int64)[:, None],
        "income": X[:, 1:2],
    }
    label = ((X[:, 0] > 0) ^ (CITY == "Rome") ^ (PLAN == 2)).astype(int)
    plan = ("plan", OneHotEncoder(), [2])

    def on_columns(model: Any, y: Any = label) -> Made:
        fitted = make_pipeline(columns(plan), model).fit(rows, y)
        answers = _dumped(fitted, rows, inputs)[2]
        return skops.io.dumps(named(fitted, ["age", "city", "plan", "income"])), inputs, answers

    def unnamed() -> Made:
        table = objects(CITY, X[:, 0])
        pipeline = make_pipeline(
            ColumnTransformer([("c", OneHotEncoder(), [0]), ("n", StandardScaler(), [1])]),
            LogisticRegression(),
        ).fit(table, label)
        return _dumped(pipeline, table, {"x0": CITY[:, None], "x1": X[:, :1]})

    def gaps_of_words() -> Made:
        words = np.where(CITY == "Rome", np.nan, CITY.astype(object))
        table = objects(words, words)
        fill = make_pipeline(SimpleImputer(strategy="most_frequent"), OrdinalEncoder())
        pipeline = make_pipeline(
            ColumnTransformer([("known", OneHotEncoder(), [0]), ("filled", fill, [1])]), LogisticRegression()
        ).fit(table, label)
        given = np.where(CITY == "Rome", "", CITY)[:, None]  # a missing word is the empty one
        return _dumped(pipeline, table, {"x0": given, "x1": given})

    jumps = np.column_stack([TIMES[:, 0], X[:, 0]])
    search = GridSearchCV(RandomForestClassifier(3, random_state=0), {"max_depth": [2]}, cv=2)
    return {
        "sklearn, forest of two labels": on_x(
            RandomForestClassifier(3, random_state=0), np.stack([TWO, THREE > 1], 1).astype(int)
        ),
        "sklearn, forest of two values": on_x(RandomForestRegressor(3), np.stack([VALUE, -VALUE], 1)),
        "sklearn, forest with gaps": on_x(RandomForestClassifier(3, random_state=0), TWO, GAPS),
        "sklearn, histograms": on_x(HistGradientBoostingClassifier(max_iter=4), WORDS, GAPS),
        "sklearn, histograms of categories": on_x(
            HistGradientBoostingClassifier(max_iter=4, categorical_features=[3]), TWO, TABLE
        ),
        "sklearn, histograms of times": on_x(
            HistGradientBoostingRegressor(max_iter=4), TIMES[:, 0] // 250 % 2, TIMES
        ),
        "sklearn, gradient boosting": on_x(
            GradientBoostingClassifier(n_estimators=4, loss="exponential"), TWO
        ),
        "sklearn, scaled times": on_x(
            make_pipeline(StandardScaler(), LogisticRegression()), TIMES[:, 0] > 1.7e9 + 1000, jumps
        ),
        "sklearn, calibrated": on_x(CalibratedClassifierCV(RandomForestClassifier(3), cv=2), WORDS),
        "sklearn, calibrated by steps": on_x(
            CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2), TWO
        ),
        "sklearn, search": on_x(search, TWO),
        "sklearn, xgboost inside": on_x(XGBClassifier(n_estimators=4, n_jobs=1, missing=0.0), TWO),
        "sklearn, columns": on_columns(LogisticRegression(), np.array(["no", "yes"])[label]),
        "sklearn, columns of a forest": on_columns(RandomForestClassifier(3, random_state=0)),
        "sklearn, columns of xgboost": on_columns(XGBClassifier(n_estimators=4, n_jobs=1)),
        "sklearn, columns of lightgbm": on_columns(
            LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1), np.array(["no", "yes"])[label]
        ),
        "sklearn, columns of histograms": on_columns(HistGradientBoostingClassifier(max_iter=4)),
        "sklearn, columns without names": unnamed(),
        "sklearn, texts": _dumped(
            make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(NOTES, label),
            NOTES,
            {"text": NOTES[:, None]},
        ),
        "sklearn, calibrated columns": (
            skops.io.dumps(
                CalibratedClassifierCV(
                    make_pipeline(columns(plan), LogisticRegression()), cv=2, ensemble=False
                ).fit(rows, label)
            ),
            {},
            {},
        ),
        "sklearn, gaps of words": gaps_of_words(),
    }


def main(folder: Path) -> None:
    for name, (file, inputs, outputs) in (_boosters() | _light() | _learned()).items():
        (folder / name).write_bytes(file)
        arrays = {f"in/{n}": a for n, a in inputs.items()} | {f"out/{n}": a for n, a in outputs.items()}
        np.savez(folder / name, **{n: a.astype(str) if a.dtype == object else a for n, a in arrays.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
