"""Trees inside scikit-learn: its own, and models of XGBoost and LightGBM. skl2onnx converts them by
``forest``: its own converters lose missing values, categories, and the last bit of thresholds, and
do not know the libraries.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from modelrollout.optimizer.formats import lightgbm_model, xgboost_model
from modelrollout.optimizer.formats.boosted import (
    ML_OPSET,
    Boosted,
    Nodes,
    Objective,
    finish,
    sums_of,
    unsupported,
)
from modelrollout.optimizer.formats.forest import Forest, Members, Tree, bits_of
from modelrollout.optimizer.formats.sklearn_columns import tree_features

_XGBOOST = ("XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor")
_LIGHTGBM = ("LGBMClassifier", "LGBMRegressor", "LGBMRanker")
_TREES = ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
_FORESTS = (
    "RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor",
)  # fmt: skip
_BOOSTED = ("GradientBoostingClassifier", "GradientBoostingRegressor")
_HISTOGRAMS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
TYPES = (
    "xgboost.core.Booster",
    "lightgbm.basic.Booster",
    *(f"xgboost.sklearn.{name}" for name in _XGBOOST),
    *(f"lightgbm.sklearn.{name}" for name in _LIGHTGBM),
)
_OWN_OPTIONS = ("decision_path", "decision_leaf", "raw_scores", "output_class_labels")


def read(model: Any, *, double: bool) -> Boosted:
    """The parts of a fitted estimator, with the rounds that its predict uses. ``double``: its
    inputs are float64. Raises JobError.
    """
    kind = type(model).__name__
    if kind in _XGBOOST:
        learner = json.loads(bytes(model.get_booster().save_raw("json")))["learner"]
        missing = model.missing
        given = None if missing is None or np.isnan(missing) else float(missing)
        return xgboost_model.read(learner, xgboost_model.rounds_of(learner), given)
    if kind in _LIGHTGBM:
        booster = model.booster_
        best = booster.best_iteration
        text = booster.model_to_string(num_iteration=best if best and best > 0 else -1)
        return lightgbm_model.read(text, double=double)
    if kind in _BOOSTED:
        return _gradient_boosting(model)
    return _histograms(model, double=double) if kind in _HISTOGRAMS else _forest(model)


def _forest(model: Any) -> Boosted:
    """Trees of scikit-learn compare in float32, and answer with the mean of their leaves: numbers
    of each output, or shares of each output's classes.
    """
    members = [model] if hasattr(model, "tree_") else list(model.estimators_)
    width = int(np.prod(members[0].tree_.value.shape[1:]))
    trees = tuple(_tree(member.tree_, 1 / len(members), width) for member in members)
    forest = Forest(
        trees,
        int(model.n_features_in_),
        (0.0,) * width,
        "BRANCH_LEQ",
        np.zeros(int(model.n_features_in_), np.bool_),
    )
    return Boosted(forest, forest.features, Objective("Labels", "Identity"))


def _tree(tree: Any, weight: float, width: int) -> Tree:
    return Tree(
        feature=tree.feature.astype(np.int64),
        threshold=tree.threshold.astype(np.float64),
        left=tree.children_left.astype(np.int64),
        right=tree.children_right.astype(np.int64),
        missing_left=tree.missing_go_to_left.astype(np.bool_),
        values=tree.value.reshape(len(tree.value), width) * weight,
        targets=tuple(range(width)),
    )


def _histograms(model: Any, *, double: bool) -> Boosted:
    """Trees of histograms compare in float64, and add up. Categories are numbered."""
    features = int(model.n_features_in_)
    order, learned = tree_features(model, features)
    if any(values.dtype.kind not in "fiu" for values in learned.values()):
        raise unsupported("scikit-learn", f"{type(model).__name__} of categories that are words")
    categories = {place: np.asarray(learned[int(order[place])], np.float64) for place in range(len(learned))}
    base = tuple(np.ravel(model._baseline_prediction).astype(np.float64).tolist())
    trees = tuple(
        _histogram_tree(predictor, target, order, categories)
        for predictors in model._predictors
        for target, predictor in enumerate(predictors)
    )
    forest = Forest(trees, features, base, "BRANCH_LEQ", np.zeros(features, np.bool_))
    if hasattr(model, "classes_"):
        objective = Objective("Probabilities", "Sigmoid" if len(base) == 1 else "Softmax")
    else:
        logarithmic = type(model._loss.link).__name__ == "LogLink"
        objective = Objective("Numbers", "Exp" if logarithmic else "Identity")
    return Boosted(forest, features, objective, double=double)


def _histogram_tree(
    predictor: Any, target: int, order: NDArray[np.int64], categories: Mapping[int, NDArray[np.float64]]
) -> Tree:
    """``categories``: the values behind the numbers, by the tree's feature."""
    nodes = predictor.nodes
    leaves = nodes["is_leaf"] != 0
    left, right = (np.where(leaves, -1, nodes[name].astype(np.int64)) for name in ("left", "right"))
    missing_left = nodes["missing_go_to_left"] != 0
    members: dict[int, Members] = {}
    for node in np.flatnonzero(~leaves & (nodes["is_categorical"] != 0)):
        known = categories[int(nodes["feature_idx"][node])]
        numbers = bits_of(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]].tolist())
        to_left = np.isin(np.arange(len(known)), numbers)
        # unknown values go where missing ones go, so it is the known ones that are listed
        values = known[~to_left if missing_left[node] else to_left]
        members[int(node)] = Members(values[np.isfinite(values)], left=not missing_left[node])
    return Tree(
        feature=order[nodes["feature_idx"].astype(np.int64)],
        threshold=nodes["num_threshold"].astype(np.float64),
        left=left,
        right=right,
        missing_left=missing_left,
        values=nodes["value"].astype(np.float64)[:, None],
        targets=(target,),
        members=members,
    )


def _gradient_boosting(model: Any) -> Boosted:
    """Its trees, weighted by the learning rate."""
    if model.init_ != "zero" and not type(model.init_).__name__.startswith("Dummy"):
        raise unsupported(
            "scikit-learn", f"{type(model).__name__} that begins with a model of its own (init)"
        )
    features = int(model.n_features_in_)
    base = np.ravel(model._raw_predict_init(np.zeros((1, features), np.float32))).astype(np.float64)
    trees = tuple(
        replace(_tree(member.tree_, float(model.learning_rate), 1), targets=(target,))
        for row in model.estimators_
        for target, member in enumerate(row)
    )
    zero = np.zeros(features, np.bool_)
    forest = Forest(trees, features, tuple(base.tolist()), "BRANCH_LEQ", zero)
    if not hasattr(model, "classes_"):
        return Boosted(forest, features, Objective("Numbers", "Identity"))
    if len(base) > 1:
        return Boosted(forest, features, Objective("Probabilities", "Softmax"))
    scale = 2.0 if model.loss == "exponential" else 1.0
    return Boosted(forest, features, Objective("Probabilities", "Sigmoid", scale))


def register() -> None:
    """Replace skl2onnx's converters; those of other libraries where a model in the file has loaded
    them.
    """
    for module, names in (
        ("sklearn.tree", _TREES),
        ("sklearn.ensemble", (*_FORESTS, *_HISTOGRAMS, *_BOOSTED)),
        ("xgboost.sklearn", _XGBOOST),
        ("lightgbm.sklearn", _LIGHTGBM),
    ):
        if module in sys.modules:
            for name in names:
                _register(getattr(sys.modules[module], name), name)
    _register_imputer()
    calibrated = importlib.import_module("skl2onnx.operator_converters.calibrated_classifier_cv")
    vars(calibrated)["_transform_isotonic"] = _isotonic


def _register(cls: Any, name: str) -> None:
    skl2onnx = importlib.import_module("skl2onnx")
    pools = importlib.import_module("skl2onnx.common._registration")
    types = importlib.import_module("skl2onnx.common.data_types")
    classifies = name.endswith("Classifier")
    alias, replaced, options = f"Sklearn{name}", None, None
    if alias in pools._converter_pool:
        present = pools._converter_pool[alias]
        replaced, options = getattr(present._fct, "replaced", present._fct), present.get_allowed_options()
    elif classifies:
        options = {"zipmap": [False, True], "nocl": [False, True]}

    def shapes(operator: Any) -> None:
        model = operator.raw_operator
        kind = types.guess_tensor_type(operator.inputs[0].type)
        if not classifies:
            columns = model.n_outputs_ if name in (*_TREES, *_FORESTS) else read(model, double=False).targets
            operator.outputs[0].type = kind.__class__([None, columns])
            return
        classes, outputs = _classes_of(model)
        words = np.asarray(classes[0]).dtype.kind in "OUS"
        label = types.StringTensorType if words else types.Int64TensorType
        operator.outputs[0].type = label([None] if outputs == 1 else [None, outputs])
        operator.outputs[1].type = kind.__class__(
            [None, len(classes[0])] if outputs == 1 else [None, outputs, len(classes[0])]
        )

    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        known = {option: None for option in _OWN_OPTIONS if option in (options or {})}
        asked = container.get_options(model, known) if known else {}
        wide = isinstance(operator.inputs[0].type, types.DoubleTensorType)
        if replaced is not None and any(asked.get(option) for option in known):
            replaced(scope, operator, container)
        else:
            _convert(read(model, double=wide), scope, operator, container)

    convert.replaced = replaced  # type: ignore[attr-defined]
    skl2onnx.update_registered_converter(cls, alias, shapes, convert, options=options)


def _register_imputer() -> None:
    """ONNX Runtime's Imputer takes no float64; here gaps of numbers are filled by simpler nodes."""
    pools = importlib.import_module("skl2onnx.common._registration")
    types = importlib.import_module("skl2onnx.common.data_types")
    known = pools._converter_pool["SklearnSimpleImputer"]
    replaced = getattr(known._fct, "replaced", known._fct)

    def convert(scope: Any, operator: Any, container: Any) -> None:
        imputer = operator.raw_operator
        double = isinstance(operator.outputs[0].type, types.DoubleTensorType)
        if not double or imputer.add_indicator or not isinstance(imputer.missing_values, float):
            replaced(scope, operator, container)
            return
        nodes = Nodes(scope.get_unique_variable_name("imputer") + "_", double=True)
        x = nodes.add("Concat", *(value.full_name for value in operator.inputs), axis=1)
        gaps = (
            nodes.add("IsNaN", x)
            if np.isnan(imputer.missing_values)
            else nodes.add("Equal", x, nodes.constant(imputer.missing_values))
        )
        filled = nodes.constant(np.asarray(imputer.statistics_, np.float64))
        nodes.add("Where", gaps, filled, x, output=operator.outputs[0].full_name)
        _append(nodes, container)

    convert.replaced = replaced  # type: ignore[attr-defined]
    pools.register_converter(
        "SklearnSimpleImputer", convert, overwrite=True, options=known.get_allowed_options()
    )


def _isotonic(scope: Any, container: Any, model: Any, scores: str, k: int, dtype: Any, _: int) -> str:
    """Isotonic calibration of [n, 1] scores; skl2onnx takes the nearest point where scikit-learn
    interpolates, and of one row only.
    """
    calibrator = model.calibrators[k]
    x, y = (np.asarray(v, np.float64) for v in (calibrator.X_thresholds_, calibrator.y_thresholds_))
    nodes = Nodes(scope.get_unique_variable_name("isotonic") + "_", double=dtype == np.float64)
    if len(x) == 1:
        flat = nodes.add("Mul", scores, nodes.constant(0.0))
        result = nodes.add("Add", flat, nodes.constant(y[0]))
    else:
        # a sum of ramps, each from one point to the next
        start, width = x[:-1], np.maximum(np.diff(x), np.finfo(np.float64).tiny)
        above = nodes.add("Div", nodes.add("Sub", scores, nodes.constant(start)), nodes.constant(width))
        ramps = nodes.add("Min", nodes.add("Max", above, nodes.constant(0.0)), nodes.constant(1.0))
        sums = nodes.add("MatMul", ramps, nodes.constant(np.diff(y)[:, None]))
        result = nodes.add("Add", sums, nodes.constant(y[0]))
    _append(nodes, container)
    return result


def _append(nodes: Nodes, container: Any) -> None:
    container.initializers.extend(nodes.constants)
    for node in nodes.nodes:
        container.nodes.append(node)
        version = ML_OPSET if node.domain else container.target_opset_any_domain("")
        container.node_domain_version_pair_sets.add((node.domain, version))


def _classes_of(model: Any) -> tuple[list[NDArray[Any]], int]:
    """(the classes of each output, number of outputs); raises JobError for outputs with different
    numbers of classes.
    """
    classes = model.classes_ if isinstance(model.classes_, list) else [model.classes_]
    if len({len(c) for c in classes}) > 1:
        raise unsupported("scikit-learn", "outputs of different numbers of classes")
    return [np.asarray(c) for c in classes], len(classes)


def _convert(model: Boosted, scope: Any, operator: Any, container: Any) -> None:
    """The nodes of ``boosted``, and for a classifier the classes behind the numbers."""
    types = importlib.import_module("skl2onnx.common.data_types")
    estimator = operator.raw_operator
    prefix = scope.get_unique_variable_name("trees") + "_"
    nodes = Nodes(prefix, double=model.double)
    names = [value.full_name for value in operator.inputs]
    x = names[0] if len(names) == 1 else nodes.add("Concat", *names, axis=1)
    x = nodes.add("Cast", x, to=TensorProto.DOUBLE if model.double else TensorProto.FLOAT)
    sums, number, scores = sums_of(model, nodes, x), f"{prefix}number", f"{prefix}scores"

    def deliver(name: str, value: Any) -> None:
        kind = types.guess_proto_type(value.type)
        nodes.add("Cast", name, output=value.full_name, to=kind)

    if len(operator.outputs) == 1:
        finish(model, nodes, sums, number, scores)
        deliver(scores, operator.outputs[0])
    else:
        classes, outputs = _classes_of(estimator)
        label, probabilities = operator.outputs[:2]
        finish(model, nodes, sums, number, scores)
        if model.objective.answer == "Labels":  # shares of the classes of each output
            shape = [-1, len(classes[0])] if outputs == 1 else [-1, outputs, len(classes[0])]
            scores = nodes.add("Reshape", scores, nodes.constant(shape, np.int64))
            nodes.add("ArgMax", scores, output=number, axis=len(shape) - 1, keepdims=0)
        nodes.add("Identity", _named(nodes, number, classes), output=label.full_name)
        deliver(scores, probabilities)
    _append(nodes, container)


def _named(nodes: Nodes, number: str, classes: Sequence[NDArray[Any]]) -> str:
    """The classes at these places: of one output [n], of several [n, outputs]."""

    def table(of: NDArray[Any]) -> str:
        name = f"{nodes.prefix}classes{len(nodes.constants)}"
        words = of.dtype.kind in "OUS"
        nodes.constants.append(
            numpy_helper.from_array(of.astype(np.object_) if words else of.astype(np.int64), name)
        )
        return name

    if len(classes) == 1:
        return nodes.add("Gather", table(classes[0]), number)
    columns = []
    for place, of in enumerate(classes):
        column = nodes.add("Gather", number, nodes.constant([place], np.int64), axis=1)
        columns.append(nodes.add("Gather", table(of), column))
    return nodes.add("Concat", *columns, axis=1)
