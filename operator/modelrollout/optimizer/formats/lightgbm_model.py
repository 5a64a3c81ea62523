"""LightGBM's text. Nothing in it is run when it is read.

The structure is read from the text that the library writes itself, so whatever it reads has one
form. Sums are in float32; comparisons are exact, in float32 where that can carry inputs, else in
float64 (its include/LightGBM/tree.h: NumericalDecision, CategoricalDecision).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.formats import Declared
from modelrollout.optimizer.formats.boosted import (
    CATEGORY_CODES,
    Boosted,
    Objective,
    of_class_one,
    to_onnx,
    unsupported,
)
from modelrollout.optimizer.formats.forest import Forest, Members, Tree, bits_of
from modelrollout.optimizer.formats.source_model import INPUT, Format, SourceModel, expect_features

_NUMBERS = Objective("Numbers", "Identity")
_POSITIVE = Objective("Numbers", "Exp")
_OBJECTIVES: dict[str, Objective] = {
    **dict.fromkeys(
        (
            "regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg",
            "custom", "none",
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), _POSITIVE),
    "binary": Objective("Probabilities", "Sigmoid"),
    "multiclassova": Objective("Probabilities", "Sigmoid"),
    "multiclass": Objective("Probabilities", "Softmax"),
    "cross_entropy": Objective("Numbers", "Sigmoid"),
    "cross_entropy_lambda": Objective("Numbers", "Log1pExp"),
}  # fmt: skip
# decision_type: a bit for categories, one for where missing values go, two for what is missing
_CATEGORY, _MISSING_LEFT, _MISSING_SHIFT = 1, 2, 2
_NOTHING, _ZERO, _NAN = 0, 1, 2  # what is missing


def load(path: Path, _folder: Path, _: Declared) -> SourceModel:
    """Raises JobError: ObjectiveUnsupported, ModelInvalid."""
    import lightgbm

    booster = lightgbm.Booster(model_file=path)
    # -1: all that the file holds, as predict does where the file does not say a best one
    model = read(booster.model_to_string(num_iteration=-1))
    warnings = (CATEGORY_CODES,) if booster.pandas_categorical else ()
    return SourceModel(
        lambda: to_onnx(model),
        lambda arrays: _predict(booster, model, arrays[INPUT]),
        lambda: {INPUT: _probes(model)},
        {
            "objective": booster.dump_model(num_iteration=1).get("objective"),
            "features": booster.feature_name(),
        },
        warnings,
    )


def _probes(model: Boosted) -> NDArray[Any]:
    assert isinstance(model.body, Forest)
    return model.body.probes(double=model.double)


def _predict(booster: Any, model: Boosted, x: NDArray[Any]) -> list[NDArray[Any]]:
    answers = np.asarray(booster.predict(x, num_iteration=-1, validate_features=False))
    if model.objective.answer != "Probabilities":
        return [answers.reshape(len(x), -1)]
    return of_class_one(answers) if answers.ndim == 1 else [answers.argmax(axis=1), answers]


def read(text: str, *, double: bool = False) -> Boosted:
    """The model's parts; ``double``: inputs are float64 whether or not that is needed. Raises
    JobError.
    """
    head, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
    header = _fields(head)
    features = int(header["max_feature_idx"]) + 1
    expect_features("LightGBM", features)
    objective = _objective(header.get("objective", "none"))
    targets = int(header["num_tree_per_iteration"])
    average = "average_output" in head.splitlines()
    rounds = max(1, len(blocks) // targets)
    zero, nan = np.zeros(features, np.bool_), np.zeros(features, np.bool_)
    trees = tuple(
        _tree(_fields(block), number % targets, 1 / rounds if average else 1.0, zero, nan)
        for number, block in enumerate(blocks)
    )
    if (zero & nan).any():
        raise unsupported("LightGBM", "a feature of which zero is missing in some trees, and in others not")
    forest = Forest(trees, features, (0.0,) * targets, "BRANCH_LEQ", zero, "CutOff")
    return Boosted(forest, features, objective, double=double or forest.needs_double())


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _objective(text: str) -> Objective:
    """``binary sigmoid:1`` and the like."""
    name, *options = text.split()
    objective = _OBJECTIVES.get(name)
    if objective is None:
        raise unsupported("LightGBM", f"the objective {name}")
    for option in options:
        key, _, value = option.partition(":")
        if key == "sigmoid" and objective.link == "Sigmoid":
            objective = objective._replace(scale=float(value))
        if key == "sqrt":
            objective = objective._replace(link="SignedSquare")
    return objective


def _tree(
    fields: Mapping[str, str],
    target: int,
    weight: float,
    zero: NDArray[np.bool_],
    nan: NDArray[np.bool_],
) -> Tree:
    """One tree. ``zero`` and ``nan`` [features] are set where a node takes 0, or NaN, as missing.

    The text numbers inner nodes and leaves apart: here leaves follow the nodes.
    """
    if int(fields.get("is_linear", 0)):
        raise unsupported("LightGBM", "linear_tree, whose leaves are linear functions")
    leaves = np.array(fields["leaf_value"].split(), np.float64)
    inner = int(fields["num_leaves"]) - 1
    total = inner + len(leaves)
    values = np.zeros((total, 1))
    values[inner:, 0] = leaves * weight
    left, right, feature = (np.full(total, -1, np.int64) for _ in range(3))
    threshold, missing_left = np.zeros(total), np.zeros(total, np.bool_)
    members: dict[int, Members] = {}
    if inner:

        def numbers(name: str, dtype: Any) -> NDArray[Any]:
            return np.array(fields[name].split(), np.float64).astype(dtype)

        for children, name in ((left, "left_child"), (right, "right_child")):
            child = numbers(name, np.int64)
            children[:inner] = np.where(child < 0, inner + ~child, child)
        feature[:inner] = numbers("split_feature", np.int64)
        threshold[:inner] = numbers("threshold", np.float64)
        decision = numbers("decision_type", np.int64)
        missing = decision >> _MISSING_SHIFT & 3
        category = decision & _CATEGORY != 0
        number = ~category
        # NaN counts as 0 where nothing is missing; as a category it is in no set
        missing_left[:inner] = number & np.where(
            missing == _NOTHING, threshold[:inner] >= 0, decision & _MISSING_LEFT != 0
        )
        zero[feature[:inner][number & (missing == _ZERO)]] = True
        nan[feature[:inner][number & (missing == _NAN)]] = True
        bounds = [int(b) for b in fields.get("cat_boundaries", "0").split()]
        words = [int(w) for w in fields.get("cat_threshold", "").split()]
        for node in np.flatnonzero(category):
            start, end = bounds[int(threshold[node])], bounds[int(threshold[node]) + 1]
            members[int(node)] = Members(bits_of(words[start:end]), left=True)
    return Tree(feature, threshold, left, right, missing_left, values, (target,), members)


FORMAT = Format(
    "LightGBM",
    ("lightgbm",),
    "LightGBM's text",
    lambda start: start.head.startswith(b"tree\nversion="),
    load,
)
