"""scikit-learn (skops), XGBoost (JSON, UBJ) and LightGBM (txt) to ONNX, and the proof that the converted model answers like the original.

Needs the image flavour ``trees``; the libraries are imported where they are used. None of these formats runs code when it is read; pickles of the
same libraries do, and are refused before anything comes here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from modelrollout.api.tasks import SourceFormat
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.predict import ORT_ERRORS, open_session, refused

FIELD = "spec.model"
INPUT = "x"  # the converted model's one input: float32 [n, features]
OPSET = 15  # onnxmltools knows trees up to ai.onnx.ml 3, which goes with it
PARITY_SAMPLES = 2000
PROBE_SECONDS = 300.0
MAX_FEATURES = 100_000
# Thresholds of trees and sums of leaves are float32 in ONNX and float64 in LightGBM and scikit-learn: a few samples right at a threshold take the
# other branch. More than that is a wrong conversion.
PARITY_TOLERANCE = 1e-4  # absolute and relative
PARITY_SHARE = 0.001

_LIBRARIES: dict[SourceFormat, tuple[str, ...]] = {
    "SKLearn": ("sklearn", "skops", "skl2onnx"),
    "XGBoost": ("xgboost", "onnxmltools"),
    "LightGBM": ("lightgbm", "onnxmltools"),
}
_REMEDY = "export the model to ONNX where it was trained"
_TREE = "sklearn.tree._tree.Tree"

Predictor = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Original:
    """A model in its own library: its predictions (scores [n, k], the score of class 1 [n], or numbers [n]) and how many features it takes."""

    model: Any
    predict: Predictor
    features: int


def sniff(path: Path) -> SourceFormat | None:
    """The format by the file's first bytes; None: none of these."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"tree\nversion="):
        return "LightGBM"
    if head.startswith(b"{") and b"learner" in head:
        return "XGBoost"
    if head.startswith(b"PK\x03\x04"):
        names = _tail(path)
        return "SKLearn" if b"schema.json" in names and b".onnx" not in names else None
    return None


def _tail(path: Path) -> bytes:
    """The end of the file, where a zip lists its names."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return file.read()


def expect_format(path: Path, wanted: SourceFormat | None) -> SourceFormat:
    """The format of the file; raises JobError: FormatNotSet (the image of the Job was chosen without knowing it), FormatMismatch."""
    found = sniff(path) or "ONNX"
    if wanted is None and found != "ONNX":
        raise bad_input("FormatNotSet", f"{FIELD}.format: the file is a model of {found}: set spec.model.format: {found}, which chooses the image")
    if wanted is not None and wanted != found:
        what = f"is a model of {found}" if found != "ONNX" else "is none that its safe formats write (skops, XGBoost JSON or UBJ, LightGBM txt)"
        if wanted != "ONNX" or found != "ONNX":
            raise bad_input("FormatMismatch", f"{FIELD}.format: {wanted}, but the file {what}; correct the format, or export the model again")
    return found


def versions(kind: SourceFormat) -> dict[str, str]:
    """Of the libraries that shape the result; raises JobError (FlavourMissing)."""
    found = {}
    for name in _LIBRARIES.get(kind, ()):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            raise bad_input(
                "FlavourMissing",
                f"{FIELD}.format: {kind} needs the image flavour trees; set images.trees in the operator's configuration",
            ) from None
    return found


def probe(path: Path, kind: SourceFormat) -> None:
    """Read the file and predict with it in a process of its own; raises JobError (ModelInvalid, ModelTimeout) where that process does not survive:
    these libraries follow what a file says without looking, and a crash of the Job itself would leave no reason."""
    run = f"import sys; from pathlib import Path; from modelrollout.optimizer.convert import try_out; try_out(Path(sys.argv[1]), {kind!r})"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", run, str(path)]
        kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
        environment = kept | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "HOME": folder, "TMPDIR": folder}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise bad_input("ModelTimeout", f"{FIELD}.uri: {kind} does not get done with the file in {PROBE_SECONDS:g} s; {_REMEDY}") from None
    if done.returncode < 0:
        raise bad_input(
            "ModelInvalid", f"{FIELD}.uri: the file crashes {kind} (signal {-done.returncode}): it is damaged, or made to harm; {_REMEDY}"
        )


def try_out(path: Path, kind: SourceFormat) -> None:
    """What ``probe`` runs; an error that is told is the business of ``load``."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(JobError):
        original = load(path, kind, Path(folder))
        if 0 < original.features <= MAX_FEATURES:
            original.predict(_generated(original.features)[:64])


def load(path: Path, kind: SourceFormat, folder: Path) -> Original:
    """The model in its own library; raises JobError: ModelInvalid, SkopsUntrusted."""
    reader = {"SKLearn": _load_sklearn, "XGBoost": _load_xgboost, "LightGBM": _load_lightgbm}[kind]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader(path, folder)
    except JobError:
        raise
    except Exception as error:  # three libraries, each with errors of its own, on a file that somebody made
        raise bad_input("ModelInvalid", _said(kind, "does not read it", error, "save it again with the library's present version")) from None

    if not 0 < found.features <= MAX_FEATURES:
        raise bad_input("ModelInvalid", f"{FIELD}.uri: {kind} says that the model takes {found.features} features; 1 to {MAX_FEATURES} are possible")
    return found


def _said(kind: str, what: str, error: Exception, remedy: str) -> str:
    """A library's refusal as a message: the first line of its text."""
    if isinstance(error, MemoryError):
        raise error
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return f"{FIELD}.uri: {kind} {what}: {line}; {remedy}"


def _load_xgboost(path: Path, folder: Path) -> Original:
    import xgboost

    with path.open("rb") as file:
        named = folder / ("source.json" if file.read(2)[1:] in (b'"', b" ", b"\n") else "source.ubj")
    named.symlink_to(path)  # XGBoost tells its formats by the name's end
    booster = xgboost.Booster()
    booster.load_model(named)
    return Original(booster, lambda x: np.asarray(booster.predict(xgboost.DMatrix(x))), booster.num_features())


def _load_lightgbm(path: Path, _: Path) -> Original:
    import lightgbm

    booster = lightgbm.Booster(model_file=path)
    return Original(booster, lambda x: np.asarray(booster.predict(x)), booster.num_feature())


def _load_sklearn(path: Path, _: Path) -> Original:
    import skops.io

    unknown = [name for name in skops.io.get_untrusted_types(file=path) if name != _TREE]
    if unknown:
        raise bad_input(
            "SkopsUntrusted",
            f"{FIELD}.uri: the file holds types that skops does not trust ({', '.join(unknown)[:200]}); export it to ONNX instead",
        )
    model = skops.io.load(path, trusted=[_TREE])
    for tree in _trees(model, set()):
        _check_tree(tree)
    features = int(model.n_features_in_)
    return Original(model, model.predict_proba if hasattr(model, "predict_proba") else model.predict, features)


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
    """scikit-learn follows the node numbers of a tree without looking: one that leads out of it, or back, would read foreign memory or never end."""
    nodes = np.arange(tree.node_count)
    left, right = tree.children_left, tree.children_right
    inner = left != -1
    sound = bool(
        ((left[inner] > nodes[inner]) & (left[inner] < tree.node_count) & (right[inner] > nodes[inner]) & (right[inner] < tree.node_count)).all()
        and (right[~inner] == -1).all()
        and ((tree.feature[inner] >= 0) & (tree.feature[inner] < tree.n_features)).all()
    )
    if not sound:
        raise bad_input("ModelInvalid", f"{FIELD}.uri: a decision tree in the file has nodes that lead out of it; save the model again")


def convert(original: Original, kind: SourceFormat, target: Path) -> None:
    """Write the ONNX model: input ``x`` float32 [n, features], outputs as skl2onnx names them; raises JobError (ConversionFailed)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _converted(original, kind)
    except Exception as error:  # as in load
        raise bad_input("ConversionFailed", _said(kind, "is not converted", error, _REMEDY)) from None
    for output in model.graph.output:  # onnxmltools says [1] of LightGBM's labels
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].ClearField("dim_value")
    onnx.save(model, target)


def _converted(original: Original, kind: SourceFormat) -> Any:
    if kind == "SKLearn":
        skl2onnx, types = (importlib.import_module(name) for name in ("skl2onnx", "skl2onnx.common.data_types"))
        options = {"zipmap": False} if hasattr(original.model, "predict_proba") else None
        inputs = [(INPUT, types.FloatTensorType([None, original.features]))]
        return skl2onnx.to_onnx(original.model, initial_types=inputs, options=options, target_opset=OPSET)
    tools, types = (importlib.import_module(name) for name in ("onnxmltools", "onnxmltools.convert.common.data_types"))
    inputs = [(INPUT, types.FloatTensorType([None, original.features]))]
    if kind == "XGBoost":
        return tools.convert_xgboost(original.model, initial_types=inputs, target_opset=OPSET)
    return tools.convert_lightgbm(original.model, initial_types=inputs, zipmap=False, target_opset=OPSET)


def parity(original: Original, kind: SourceFormat, converted: Path, inputs: NDArray[np.float32] | None) -> dict[str, Any]:
    """Compare both on ``inputs`` [n, features], at most PARITY_SAMPLES of them, or on generated ones; raises JobError (ConversionUnfaithful)."""
    generated = inputs is None
    x = _generated(original.features) if inputs is None else inputs[:PARITY_SAMPLES]
    want = np.asarray(original.predict(x), np.float64)
    try:
        outputs = open_session(converted, "the converted model").run(None, {INPUT: x})
    except ORT_ERRORS as error:
        raise refused("ConversionUnfaithful", "the converted model", error, _REMEDY) from None
    got = np.asarray(outputs[-1], np.float64).reshape(len(x), -1)
    want = want.reshape(len(x), -1)
    if got.shape[1] == 2 and want.shape[1] == 1:  # the probability of class 1 alone
        got = got[:, 1:]
    if got.shape != want.shape:
        raise bad_input(
            "ConversionUnfaithful",
            f"{FIELD}.uri: the converted model gives {list(got.shape)}, the original {list(want.shape)}; {_REMEDY}",
        )
    apart = ~np.isclose(got, want, rtol=PARITY_TOLERANCE, atol=PARITY_TOLERANCE, equal_nan=True).all(axis=1)
    if apart.mean() > PARITY_SHARE:
        raise bad_input(
            "ConversionUnfaithful",
            f"{FIELD}.uri: the converted model answers otherwise on {int(apart.sum())} of {len(x)} {'generated ' if generated else ''}samples, by "
            "up to "
            f"{float(np.nanmax(np.abs(got - want))):.3g}; {_REMEDY}",
        )
    return {
        "from": kind,
        "samples": len(x),
        "generated": generated,
        "apart": int(apart.sum()),
        "largestDifference": float(np.nanmax(np.abs(got - want), initial=0.0)),
    }


def _generated(features: int) -> NDArray[np.float32]:
    """Inputs where nobody gave any: normal numbers of several scales, so that thresholds far from 0 are met too."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-1, 3, (PARITY_SAMPLES, 1))
    found: NDArray[np.float32] = (rng.normal(size=(PARITY_SAMPLES, features)) * scales).astype(np.float32)
    return found
