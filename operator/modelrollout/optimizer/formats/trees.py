"""scikit-learn (skops), XGBoost (JSON, UBJ) and LightGBM (txt). None of these formats runs code
when it is read; pickles of the same libraries do, and are refused before anything comes here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from modelrollout.contract.formats import SourceFormat, Tensors
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats.source_model import FIELD, Format, SourceModel, invalid
from modelrollout.reasons import Reason

INPUT = "x"  # the converted model's one input: float32 [n, features]
OPSET = 15  # onnxmltools knows trees up to ai.onnx.ml 3, which goes with it
MAX_FEATURES = 100_000

_TREE = "sklearn.tree._tree.Tree"

Predictor = Callable[[NDArray[np.float32]], NDArray[Any]]


def _original(kind: SourceFormat, model: Any, predict: Predictor, features: int) -> SourceModel:
    """``predict``: scores [n, k], the score of class 1 [n], or numbers [n]."""
    if not 0 < features <= MAX_FEATURES:
        raise invalid(
            f"{kind} says that the model takes {features} features; 1 to {MAX_FEATURES} are possible"
        )
    return SourceModel(
        lambda: _converted(kind, model, features), lambda arrays: [np.asarray(predict(arrays[INPUT]))]
    )


def load_xgboost(path: Path, folder: Path, _: Tensors | None) -> SourceModel:
    import xgboost

    with path.open("rb") as file:
        named = folder / ("source.json" if file.read(2)[1:] in (b'"', b" ", b"\n") else "source.ubj")
    named.symlink_to(path)  # XGBoost recognizes its formats by the suffix
    booster = xgboost.Booster()
    booster.load_model(named)
    return _original(
        "XGBoost", booster, lambda x: booster.predict(xgboost.DMatrix(x)), booster.num_features()
    )


def load_lightgbm(path: Path, _folder: Path, _: Tensors | None) -> SourceModel:
    import lightgbm

    booster = lightgbm.Booster(model_file=path)
    return _original("LightGBM", booster, lambda x: np.asarray(booster.predict(x)), booster.num_feature())


def load_sklearn(path: Path, _folder: Path, _: Tensors | None) -> SourceModel:
    import skops.io

    unknown = [name for name in skops.io.get_untrusted_types(file=path) if name != _TREE]
    if unknown:
        raise bad_input(
            Reason.SKOPS_UNTRUSTED,
            f"{FIELD}.uri: the file holds types that skops does not trust ({', '.join(unknown)[:200]});"
            " export it to ONNX instead",
        )
    model = skops.io.load(path, trusted=[_TREE])
    for tree in _trees(model, set()):
        _check_tree(tree)
    return _original(
        "SKLearn",
        model,
        model.predict_proba if hasattr(model, "predict_proba") else model.predict,
        int(model.n_features_in_),
    )


def _trees(value: Any, seen: set[int]) -> Iterator[Any]:
    """Every Tree that an estimator holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if f"{type(value).__module__}.{type(value).__qualname__}" == _TREE:
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, np.ndarray) and value.dtype == np.object_:
        parts = list(value.ravel())
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    for part in parts:
        yield from _trees(part, seen)


def _check_tree(tree: Any) -> None:
    """scikit-learn follows the node numbers of a tree without looking: one that leads out of it, or
    back, would read foreign memory or never end.
    """
    nodes = np.arange(tree.node_count)
    left, right = tree.children_left, tree.children_right
    inner = left != -1
    sound = bool(
        (
            (left[inner] > nodes[inner])
            & (left[inner] < tree.node_count)
            & (right[inner] > nodes[inner])
            & (right[inner] < tree.node_count)
        ).all()
        and (right[~inner] == -1).all()
        and ((tree.feature[inner] >= 0) & (tree.feature[inner] < tree.n_features)).all()
    )
    if not sound:
        raise invalid("a decision tree in the file has nodes that lead out of it", "save the model again")


def _converted(kind: SourceFormat, model: Any, features: int) -> ModelProto:
    """Input ``x`` float32 [n, features], outputs as skl2onnx names them."""
    if kind == "SKLearn":
        skl2onnx, types = (
            importlib.import_module(name) for name in ("skl2onnx", "skl2onnx.common.data_types")
        )
        options = {"zipmap": False} if hasattr(model, "predict_proba") else None
        inputs = [(INPUT, types.FloatTensorType([None, features]))]
        converted: ModelProto = skl2onnx.to_onnx(
            model, initial_types=inputs, options=options, target_opset=OPSET
        )
    else:
        tools, types = (
            importlib.import_module(name) for name in ("onnxmltools", "onnxmltools.convert.common.data_types")
        )
        inputs = [(INPUT, types.FloatTensorType([None, features]))]
        if kind == "XGBoost":
            converted = tools.convert_xgboost(model, initial_types=inputs, target_opset=OPSET)
        else:
            converted = tools.convert_lightgbm(model, initial_types=inputs, zipmap=False, target_opset=OPSET)
    for output in converted.graph.output:  # onnxmltools says [1] of LightGBM's labels
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].ClearField("dim_value")
    return converted


LIGHTGBM = Format(
    "LightGBM",
    ("lightgbm", "onnxmltools"),
    "LightGBM's text",
    lambda start: start.head.startswith(b"tree\nversion="),
    load_lightgbm,
)
XGBOOST = Format(
    "XGBoost",
    ("xgboost", "onnxmltools"),
    "XGBoost's JSON or UBJ",
    lambda start: start.head.startswith(b"{") and b"learner" in start.head,
    load_xgboost,
)
SKLEARN = Format(
    "SKLearn",
    ("sklearn", "skops", "skl2onnx"),
    "a file of skops",
    lambda start: b"schema.json" in start.zip_names,
    load_sklearn,
)
