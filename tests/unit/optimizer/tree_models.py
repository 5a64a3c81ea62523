"""``python -m tests.unit.optimizer.tree_models FOLDER``: small models of scikit-learn, XGBoost and
LightGBM, one file each.

They are made in a process of their own: three libraries that bring an OpenMP each, beside JAX and
ONNX Runtime, are too many for the tests' process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

N, FEATURES = 1500, 5
X = np.random.default_rng(0).normal(size=(N, FEATURES)).astype(np.float32)
LABELS: dict[str, Any] = {
    "two": (X[:, 0] > 0).astype(int),
    "three": (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5),
    "value": X[:, 0] * 2 + X[:, 1],
}
# By name: format, and what it predicts.
MODELS: dict[str, tuple[str, str]] = {
    "xgboost json, two classes": ("XGBoost", "two"),
    "xgboost ubj, three classes": ("XGBoost", "three"),
    "xgboost ubj, regression": ("XGBoost", "value"),
    "lightgbm, two classes": ("LightGBM", "two"),
    "lightgbm, three classes": ("LightGBM", "three"),
    "lightgbm, regression": ("LightGBM", "value"),
    "skops, a pipeline": ("SKLearn", "three"),
    "skops, a forest": ("SKLearn", "three"),
    "skops, a regression": ("SKLearn", "value"),
}
# To be refused.
PICKLE, UNTRUSTED, ASTRAY = "pickle", "skops, a step that is code", "skops, a tree that leads out of itself"


def _xgboost(form: str, what: str) -> bytes:
    import xgboost

    settings: dict[str, Any] = {
        "two": {"objective": "binary:logistic"},
        "three": {"objective": "multi:softprob", "num_class": 3},
        "value": {},
    }[what]
    return bytes(
        xgboost.train(
            {"max_depth": 3, "nthread": 1, **settings}, xgboost.DMatrix(X, LABELS[what]), 8
        ).save_raw(form)
    )


def _lightgbm(what: str) -> bytes:
    import lightgbm

    settings: dict[str, Any] = {
        "two": {"objective": "binary"},
        "three": {"objective": "multiclass", "num_class": 3},
        "value": {},
    }[what]
    told = {"verbose": -1, "num_threads": 1, **settings}
    return bytes(lightgbm.train(told, lightgbm.Dataset(X, LABELS[what]), 8).model_to_string().encode())


def _own(x: Any) -> Any:
    """A step of a pipeline that is code."""
    return x


def _sklearn() -> dict[str, bytes]:
    import pickle

    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    line = LinearRegression().fit(X, LABELS["value"])
    astray = RandomForestClassifier(2, random_state=0).fit(X, LABELS["two"])
    astray.estimators_[1].tree_.children_left[0] = 10**6
    models = {
        "skops, a pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS["three"]),
        "skops, a forest": RandomForestClassifier(5, random_state=0).fit(X, LABELS["three"]),
        "skops, a regression": line,
        UNTRUSTED: make_pipeline(FunctionTransformer(_own), LinearRegression()).fit(X, LABELS["value"]),
        ASTRAY: astray,
    }
    return {name: skops.io.dumps(model) for name, model in models.items()} | {PICKLE: pickle.dumps(line)}


def main(folder: Path) -> None:
    made = _sklearn()
    for name, (kind, what) in MODELS.items():
        if kind == "XGBoost":
            made[name] = _xgboost("json" if "json" in name else "ubj", what)
        elif kind == "LightGBM":
            made[name] = _lightgbm(what)
    for name, content in made.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
