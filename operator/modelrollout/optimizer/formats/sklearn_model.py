"""scikit-learn, saved by skops. Reading such a file runs no code of it; pickles are refused before
anything comes here.

skl2onnx converts it, with two differences: boosted models of XGBoost and LightGBM inside it are
converted as their own files are, and float64 is used where float32 would move values over the
thresholds of its trees.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.shape_inference import infer_shapes

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats import sklearn_trees
from modelrollout.optimizer.formats.boosted import ML_OPSET, OPSET
from modelrollout.optimizer.formats.forest import ROWS, is_coarse, rounded_down
from modelrollout.optimizer.formats.sklearn_columns import (
    HISTOGRAM_TREE,
    MISSING,
    TREE,
    Column,
    Table,
    computes_before_trees,
    estimators_in,
    read_table,
    tree_thresholds,
    trees_in,
)
from modelrollout.optimizer.formats.source_model import (
    FIELD,
    INPUT,
    MAX_FEATURES,
    Format,
    SourceModel,
    expect_features,
    invalid,
)
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.runtime import LOCALE
from modelrollout.reasons import Reason

# Types that skops does not trust by itself, and why they are read here: the trees are checked, the
# others hold numbers, or a model in the library's own format.
_TRUSTED = frozenset(
    {
        TREE,
        HISTOGRAM_TREE,
        "numpy.dtype",
        "functools.partial",  # of a function that is trusted too
        "sklearn.utils.validation.check_array",
        # how columns were chosen in training
        "sklearn.compose._column_transformer.make_column_selector",
        "builtins.object",
        "builtins.str",
        "numpy.number",
        "numpy.object_",
        "collections.OrderedDict",
        "collections.defaultdict",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.calibration._TemperatureScaling",
        "sklearn.utils._bunch.Bunch",
        *sklearn_trees.TYPES,
    }
)
# What a search of hyper-parameters keeps, beside the model that it found.
_OF_SEARCHES = ("sklearn.model_selection._split.", "sklearn.metrics._scorer.")
_DENSE_AFTER = 10_000_000  # elements of the rows that are made up


def load(path: Path, _folder: Path, declared: Declared) -> SourceModel:
    """Raises JobError: SkopsUntrusted, ModelInvalid, ObjectiveUnsupported."""
    import skops.io

    untrusted = skops.io.get_untrusted_types(file=path)
    if unknown := [n for n in untrusted if n not in _TRUSTED and not n.startswith(_OF_SEARCHES)]:
        raise bad_input(
            Reason.SKOPS_UNTRUSTED,
            f"{FIELD}.uri: the file holds types that skops does not trust ({', '.join(unknown)[:200]});"
            " export it to ONNX instead",
        )
    model = skops.io.load(path, trusted=untrusted)
    model = getattr(model, "best_estimator_", model)  # of a search of hyper-parameters
    if not hasattr(model, "predict"):
        raise invalid(f"{type(model).__name__} predicts nothing", "save the whole pipeline, with its model")
    for tree in trees_in(model, set()):
        _check_tree(tree)
        if not hasattr(tree, "nodes"):
            # scikit-learn compares float32 with them, so this changes no answer of the original;
            # skl2onnx would round some of them up
            tree.threshold[:] = rounded_down(tree.threshold)
    # a pipeline that begins with texts counts no features
    texts = not hasattr(model, "n_features_in_")
    features = 1 if texts else int(model.n_features_in_)
    expect_features("scikit-learn", features)
    table = read_table(model, features, texts=texts)
    double = declared.double or any(is_coarse(values) for values in tree_thresholds(model).values())
    original = _Original(model, table, double=double)
    return SourceModel(
        original.convert,
        original.predict,
        original.probes,
        {
            "features": list(map(str, getattr(model, "feature_names_in_", ()))) or None,
            "float64": double,
        },
        wider="No" if double else "First" if computes_before_trees(model) else "IfUnfaithful",
    )


class _Original:
    def __init__(self, model: Any, table: Table, *, double: bool) -> None:
        self._model, self._table, self._double = model, table, double
        self._scores = hasattr(model, "predict_proba")

    def predict(self, arrays: Arrays) -> list[NDArray[Any]]:
        """As the outputs of the converted model: labels, with probabilities where it has some, or
        numbers.
        """
        rows = self._table.joined(arrays) if self._table.apart else arrays[INPUT]
        answers = [np.asarray(self._model.predict(rows))]
        if hasattr(self._model, "offset_"):  # finds outliers
            answers.append(np.asarray(self._model.decision_function(rows)))
        if self._scores:
            scores = self._model.predict_proba(rows)
            # of several outputs a list of [n, 2]: here [n, outputs, 2]
            answers.append(
                np.stack([np.asarray(s) for s in scores], axis=1)
                if isinstance(scores, list)
                else np.asarray(scores)
            )
        return answers

    def convert(self) -> ModelProto:
        """In float32, or in float64."""
        return _to_onnx(self._model, self._table, double=self._double)

    def probes(self) -> Arrays:
        """Rows of values that the model distinguishes, with gaps and unknown words where it takes
        them; numbers as float64, as in a table.
        """
        rng = np.random.default_rng(0)
        count = max(1, min(ROWS, _DENSE_AFTER // len(self._table.columns)))
        for gaps in (True, False):
            columns = {column.name: _values(column, rng, count, gaps=gaps) for column in self._table.inputs}
            arrays = (
                columns
                if self._table.apart
                else {INPUT: np.hstack([columns[column.name] for column in self._table.columns])}
            )
            if not gaps:
                return arrays
            try:
                answers = self.predict(arrays)
            except ValueError:  # scikit-learn refuses NaN where the model takes none
                rng = np.random.default_rng(0)
                continue
            if all(np.isfinite(a).all() for a in answers if a.dtype.kind == "f"):
                return arrays
        raise AssertionError("unreachable")


def _values(column: Column, rng: np.random.Generator, count: int, *, gaps: bool) -> NDArray[Any]:
    """[count, 1] of the column's type."""
    if column.kind == "Text":
        words = [str(value) for value in column.values] or ["word"]
        if column.unknown and gaps:
            words += ["a word that is in no vocabulary"]
        if column.gaps:
            words.append(MISSING)
        return np.array(words, np.object_)[rng.integers(0, len(words), (count, 1))]
    if column.kind == "Whole":
        numbers = np.array(column.values or [0, 1], np.float64)
        if column.unknown and gaps:
            numbers = np.append(numbers, numbers.max() + 1)
        return rng.choice(numbers, (count, 1)).astype(np.int64)
    categorical = "Whole" in column.kinds or (column.values and not column.unknown)
    values = (
        np.array(column.values, np.float64)
        if column.values
        else rng.normal(size=count) * 10.0 ** rng.uniform(-1, 2, count)
    )
    chosen = rng.choice(values, (count, 1))
    if gaps and (column.gaps or not categorical):
        chosen[rng.random(chosen.shape) < 0.05] = np.nan
    return chosen


def _check_tree(tree: Any) -> None:
    """scikit-learn follows the node numbers of a tree without looking: one that leads out of it, or
    back, would read foreign memory or never end.
    """
    if hasattr(tree, "nodes"):
        nodes = tree.nodes
        inner = nodes["is_leaf"] == 0
        left, right, feature = (nodes[name].astype(np.int64) for name in ("left", "right", "feature_idx"))
        categorical = inner & (nodes["is_categorical"] != 0)
        sets = min(len(tree.raw_left_cat_bitsets), len(tree.binned_left_cat_bitsets))
        sound = bool((nodes["bitset_idx"][categorical] < sets).all()) and len(nodes) > 0
        features = MAX_FEATURES
    else:
        left, right, feature = tree.children_left, tree.children_right, tree.feature
        inner = left != -1
        sound = bool((right[~inner] == -1).all())
        features = tree.n_features
    numbers = np.arange(len(left))
    for children in (left, right):
        sound = sound and bool(((children[inner] > numbers[inner]) & (children[inner] < len(left))).all())
    if not (sound and ((feature[inner] >= 0) & (feature[inner] < features)).all()):
        raise invalid("a decision tree in the file has nodes that lead out of it", "save the model again")


def _to_onnx(model: Any, table: Table, *, double: bool) -> ModelProto:
    """Input ``x`` [n, features], or one [n, 1] for each column; outputs as skl2onnx names them."""
    skl2onnx, types = (importlib.import_module(name) for name in ("skl2onnx", "skl2onnx.common.data_types"))
    if table.apart and type(model).__name__ != "Pipeline":
        raise bad_input(
            Reason.CONVERSION_FAILED,
            f"{FIELD}.uri: {type(model).__name__} around columns of several types is not converted; put it"
            " into the pipeline, behind the ColumnTransformer, and train it there",
        )
    sklearn_trees.register()
    number = types.DoubleTensorType if double else types.FloatTensorType
    kinds = {"Text": types.StringTensorType, "Whole": types.Int64TensorType, "Number": number}
    inputs = (
        [(column.name, kinds[column.kind]([None, 1])) for column in table.columns]
        if table.apart
        else [(INPUT, number([None, len(table.columns)]))]
    )
    options: dict[Any, dict[str, Any]] = {}
    if hasattr(model, "predict_proba"):
        options[id(model)] = {"zipmap": False}
    for part in estimators_in(model, set()):
        match type(part).__name__:
            case "TfidfVectorizer" | "CountVectorizer":
                options[id(part)] = LOCALE
            case "VotingClassifier":
                part.flatten_transform = False  # skl2onnx refuses the other; only transform asks for it
    converted: ModelProto = skl2onnx.to_onnx(
        model, initial_types=inputs, options=options, target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET}
    )
    _tidy(converted, {column.name for column in table.inputs} if table.apart else {INPUT})
    return converted


def _tidy(converted: ModelProto, used: set[str]) -> None:
    """Without inputs that nothing reads, for any number of samples, and with outputs of the types
    that the nodes give: skl2onnx declares float64 for some that are float32, and the other way.
    """
    for value in list(converted.graph.input):
        if value.name not in used:
            converted.graph.input.remove(value)
    bare = ModelProto()
    bare.CopyFrom(converted)
    for output in bare.graph.output:
        output.ClearField("type")
    del bare.graph.value_info[:]
    inferred = {value.name: value.type.tensor_type for value in infer_shapes(bare).graph.output}
    for output in converted.graph.output:
        tensor = output.type.tensor_type
        tensor.elem_type = inferred[output.name].elem_type or tensor.elem_type
        if tensor.shape.dim:
            tensor.shape.dim[0].ClearField("dim_value")


FORMAT = Format(
    "SKLearn",
    ("sklearn", "skops", "skl2onnx"),
    "a file of skops",
    lambda start: b"schema.json" in start.zip_names,
    load,
)
