"""XGBoost: JSON and UBJ. Nothing in them is run when they are read.

The structure is read from what the library writes itself (``save_raw``, the schema of its
doc/model.schema), so whatever it reads has one form. Comparisons and sums are in float32, as in its
own predictor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.formats import Declared
from modelrollout.optimizer.formats.boosted import (
    CATEGORY_CODES,
    Boosted,
    Linear,
    Objective,
    link_function,
    of_class_one,
    to_onnx,
    unsupported,
)
from modelrollout.optimizer.formats.forest import Forest, Members, Tree
from modelrollout.optimizer.formats.source_model import (
    INPUT,
    FileStart,
    Format,
    SourceModel,
    expect_features,
    invalid,
)
from modelrollout.optimizer.model.data import Arrays

_NUMBERS = Objective("Numbers", "Identity")
_POSITIVE = Objective("Numbers", "Exp")
_CLASSES = Objective("Probabilities", "Softmax")
_SIDE = Objective("Scores", "Identity")
_OBJECTIVES: dict[str, Objective] = {
    **dict.fromkeys(
        (
            "reg:squarederror", "reg:linear", "reg:squaredlogerror", "reg:absoluteerror",
            "reg:pseudohubererror", "reg:quantileerror", "rank:pairwise", "rank:ndcg", "rank:map",
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(
        ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), _POSITIVE
    ),
    "binary:logistic": Objective("Probabilities", "Sigmoid"),
    "reg:logistic": Objective("Numbers", "Sigmoid"),
    "binary:logitraw": _SIDE,
    "binary:hinge": _SIDE,
    "multi:softprob": _CLASSES,
    "multi:softmax": _CLASSES,
}  # fmt: skip
# Whose base_score is a probability, and whose is the exponential of a sum.
_LOGITS = frozenset({"binary:logistic", "reg:logistic"})


def load(path: Path, folder: Path, declared: Declared) -> SourceModel:
    """Raises JobError: ObjectiveUnsupported, ModelInvalid."""
    import xgboost

    # XGBoost recognizes its formats by the suffix
    named = folder / ("source.json" if is_json(FileStart.read(path)) else "source.ubj")
    named.symlink_to(path)
    booster = xgboost.Booster()
    booster.load_model(named)
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    kept = rounds_of(learner) if declared.rounds == "Best" else 0
    model = read(learner, kept, declared.missing)
    return SourceModel(
        lambda: to_onnx(model),
        lambda arrays: _predict(booster, learner, model, kept, arrays[INPUT]),
        lambda: _probes(model),
        {**_notes(learner, kept), "missing": declared.missing},
        (*_category_codes(learner), *_other_rounds(learner, kept)),
    )


def is_json(start: FileStart) -> bool:
    """Of the library's two forms, which both begin with a brace."""
    return start.head[1:2] in (b'"', b" ", b"\n")


def rounds_of(learner: Mapping[str, Any]) -> int:
    """How many rounds count: those up to the best one where the file says it. 0: all."""
    best = _best_of(learner)
    if best is None or learner["gradient_booster"]["name"] == "gblinear":
        return 0
    return min(best + 1, _all_rounds(learner))


def _best_of(learner: Mapping[str, Any]) -> int | None:
    best = str(learner["attributes"].get("best_iteration", ""))
    return int(best) if re.fullmatch("[0-9]{1,9}", best) else None


def _trees_of(learner: Mapping[str, Any]) -> Mapping[str, Any]:
    booster = learner["gradient_booster"]
    return booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]  # type: ignore[no-any-return]


def _all_rounds(learner: Mapping[str, Any]) -> int:
    if learner["gradient_booster"]["name"] == "gblinear":
        return int(_trees_of(learner)["boosted_rounds"])
    return len(_trees_of(learner)["iteration_indptr"]) - 1


def _notes(learner: Mapping[str, Any], kept: int) -> dict[str, Any]:
    total = _all_rounds(learner)
    best = _best_of(learner)
    return {
        "objective": learner["objective"]["name"],
        "features": learner.get("feature_names") or None,
        "rounds": {
            "served": kept or total,
            "trained": total,
            "best": best + 1 if best is not None else None,
        },
    }


def _other_rounds(learner: Mapping[str, Any], kept: int) -> tuple[str, ...]:
    best, total = rounds_of(learner), _all_rounds(learner)
    if not best or best == total:
        return ()
    served = f"rounds 1 to {kept} are served" if kept else "all are served"
    other = "All serves every one" if kept else "Best serves rounds 1 to that one"
    return (
        f"of {total} rounds, {best} is the best one of early stopping: {served}; spec.model.rounds: {other}",
    )


def _category_codes(learner: Mapping[str, Any]) -> tuple[str, ...]:
    known = _trees_of(learner).get("cats") or {}
    return (CATEGORY_CODES,) if known.get("enc") else ()


def read(learner: Mapping[str, Any], kept: int, missing: float | None) -> Boosted:
    """The model's parts; ``kept``: rounds that count, 0: all. Raises JobError."""
    parameters, booster = learner["learner_model_param"], learner["gradient_booster"]["name"]
    features = int(parameters["num_feature"])
    expect_features("XGBoost", features)
    name = learner["objective"]["name"]
    objective = _OBJECTIVES.get(name)
    if objective is None:
        raise unsupported("XGBoost", f"the objective {name}")
    targets = max(1, int(parameters["num_class"]), int(parameters.get("num_target", 1)))
    if objective.answer == "Probabilities" and objective.link == "Sigmoid" and targets > 1:
        objective = Objective("Labels", "Sigmoid")
    base = _margins(name, parameters["base_score"], targets)
    model = _trees_of(learner)
    if booster == "gblinear":
        weights = np.array(model["weights"], np.float32).reshape(features + 1, targets)
        # its predictor adds the first base score to every output
        body: Forest | Linear = Linear(weights[:-1], weights[-1] + np.float32(base[0]))
    else:
        drops = learner["gradient_booster"].get("weight_drop")
        until = model["iteration_indptr"][kept] if kept else len(model["trees"])
        trees = tuple(
            _tree(tree, target, 1.0 if drops is None else float(drops[number]), targets)
            for number, (tree, target) in enumerate(
                zip(model["trees"][:until], model["tree_info"][:until], strict=True)
            )
        )
        body = Forest(trees, features, base, "BRANCH_LT", np.zeros(features, np.bool_), "Floor")
    return Boosted(body, features, objective, missing=missing)


def _margins(objective: str, base_score: Any, targets: int) -> tuple[float, ...]:
    """The sums to begin with, from base_score: a number, or since 3.1 a list, as text."""
    scores = [float(part) for part in str(base_score).strip("[]").split(",")]
    if len(scores) == 1:
        scores *= targets
    if len(scores) != targets:
        raise invalid(f"base_score has {len(scores)} values for {targets} outputs")
    if objective in _LOGITS:
        scores = [math.log(p / (1 - p)) for p in scores]
    elif _OBJECTIVES[objective].link == "Exp":
        scores = [math.log(p) for p in scores]
    return tuple(float(np.float32(s)) for s in scores)


def _tree(tree: Mapping[str, Any], target: int, weight: float, targets: int) -> Tree:
    left = np.array(tree["left_children"], np.int64)
    right = np.array(tree["right_children"], np.int64)
    conditions = np.array(tree["split_conditions"], np.float32)
    leaves = left < 0
    size = int(tree["tree_param"].get("size_leaf_vector") or 1)
    if size > 1:  # a leaf's right child is its place among the vectors
        vectors = np.array(tree["leaf_weights"], np.float32).reshape(-1, size)
        values = np.zeros((len(left), size), np.float32)
        values[leaves] = vectors[right[leaves]]
        reached = tuple(range(targets))
    else:
        values, reached = conditions[:, None], (int(target),)
    sizes = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    return Tree(
        feature=np.array(tree["split_indices"], np.int64),
        threshold=conditions.astype(np.float64),
        left=left,
        right=right,
        missing_left=np.array(tree["default_left"], np.bool_),
        values=values.astype(np.float64) * weight,
        targets=reached,
        members={
            int(node): Members(np.array(tree["categories"][start : start + count], np.int64), left=False)
            for node, start, count in sizes
        },
    )


def _probes(model: Boosted) -> Arrays:
    if isinstance(model.body, Linear):
        rows = np.random.default_rng(0).normal(size=(500, model.features)).astype(np.float32)
        rows[np.random.default_rng(1).random(rows.shape) < 0.05] = np.nan
    else:
        rows = model.body.probes(double=False)
    if model.missing is not None:
        rows[np.random.default_rng(2).random(rows.shape) < 0.05] = model.missing
    return {INPUT: rows}


def _predict(
    booster: Any, learner: Mapping[str, Any], model: Boosted, kept: int, x: NDArray[Any]
) -> list[NDArray[Any]]:
    """Answers as the converted model gives them, by the library."""
    import xgboost

    matrix = xgboost.DMatrix(
        x,
        missing=np.nan if model.missing is None else model.missing,
        feature_types=booster.feature_types,
        enable_categorical=True,
    )
    # what multi:softmax, logitraw and hinge predict is a class: their sums say more
    raw = model.objective.link == "Softmax" or model.objective.answer == "Scores"
    answers = np.asarray(
        booster.predict(
            matrix,
            output_margin=raw,
            iteration_range=(0, kept),
            validate_features=False,
            strict_shape=True,
        )
    ).reshape(len(x), -1)
    if raw:
        return link_function(model.objective)(answers)
    return of_class_one(answers[:, 0]) if model.objective.answer == "Probabilities" else [answers]


FORMAT = Format(
    "XGBoost",
    ("xgboost",),
    "XGBoost's JSON or UBJ",
    lambda start: start.head.startswith(b"{") and b"learner" in start.head,
    load,
)
