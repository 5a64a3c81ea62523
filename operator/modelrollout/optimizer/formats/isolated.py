"""Models of other formats than ONNX: recognized, converted in a process of their own (``worker``),
and compared with the original.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Declared, Flavour, SourceFormat, Tensors
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats import (
    CONVERTED,
    DECLARED,
    INPUTS,
    NOTES,
    OUT_OF_MEMORY,
    OUTPUTS,
    PROBES,
    REFUSAL,
)
from modelrollout.optimizer.formats.fil import FACTS, SERVED, Facts
from modelrollout.optimizer.formats.registry import BY_NAME, sniff
from modelrollout.optimizer.formats.source_model import FIELD, REMEDY
from modelrollout.optimizer.model import inspect
from modelrollout.optimizer.model.child import bare_environment
from modelrollout.optimizer.model.data import Arrays, batch_rows, batches, plain, words_as_objects
from modelrollout.optimizer.model.runtime import BATCH_ROWS, open_session, outputs_of
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import NUMPY, TensorSpec

PARITY_SAMPLES = 2000
PARITY_ELEMENTS = 1 << 25  # of an input: large images are compared on fewer samples
UNKNOWN_DIMENSION = 32  # of generated inputs
SECONDS = 600.0
_FEW = 8  # rows for whoever asks the model later
# Thresholds of trees and sums of leaves are float32 in ONNX and float64 in LightGBM and
# scikit-learn: a few samples right at a threshold take the other branch. More than that is a wrong
# conversion. Networks add up float32 in another order.
PARITY_TOLERANCE = 1e-4  # absolute and relative
PARITY_SHARE = 0.001


def expect_format(path: Path, declared: SourceFormat | None) -> SourceFormat:
    """The format of the file; raises JobError: FormatNotSet (the image of the Job was chosen
    without knowing it), FormatMismatch.
    """
    detected = sniff(path) or "ONNX"
    if declared is None and detected != "ONNX":
        raise bad_input(
            Reason.FORMAT_NOT_SET,
            f"{FIELD}.format: the file is a model of {detected}: set spec.model.format: {detected}, which"
            " chooses the image",
        )
    if (
        declared == "PyTorch"
        and detected == "ONNX"
        and (refusal := inspect.sniff(path, f"{FIELD}.uri"))
        and refusal.reason == Reason.PICKLE_REFUSED
    ):
        raise refusal  # a checkpoint: PyTorch's, but no program
    if declared is not None and declared != detected:
        what = (
            f"is a model of {detected}"
            if detected != "ONNX"
            else f"is not what is read of it ({BY_NAME[declared].saved_as})"
        )
        raise bad_input(
            Reason.FORMAT_MISMATCH,
            f"{FIELD}.format: {declared}, but the file {what}; correct the format, or export the model again",
        )
    return detected


def versions(kind: SourceFormat) -> dict[str, str]:
    """Of the libraries that shape the result; raises JobError (FlavourMissing)."""
    if kind == "ONNX":
        return {}
    return _installed(BY_NAME[kind].libraries, BY_NAME[kind].flavour, f"{FIELD}.format: {kind}")


def _installed(libraries: Sequence[str], flavour: Flavour, what: str) -> dict[str, str]:
    installed = packages_distributions()
    if any(name not in installed for name in libraries):
        raise bad_input(
            Reason.FLAVOUR_MISSING,
            f"{what} needs the image flavour {flavour}; set images.{flavour} in the operator's configuration",
        )
    return {name: version(installed[name][0]) for name in libraries}


FIL_LIBRARIES = ("treelite", "xgboost", "lightgbm")


def fil_facts(path: Path, folder: Path, declared: Declared) -> tuple[Facts, Path]:
    """(what FIL's configuration needs, the file to serve). Raises JobError: FlavourMissing,
    ConversionUnfaithful, and those of ``run_isolated`` and ``fil.describe``.
    """
    (folder / DECLARED).write_text(declared.model_dump_json())
    run_isolated("fil", path, "XGBoost", folder)
    facts = Facts(**json.loads((folder / FACTS).read_text()))
    if facts.wrong > PARITY_SHARE * facts.rows:
        raise bad_input(
            Reason.CONVERSION_UNFAITHFUL,
            f"{FIELD}.uri: FIL, which takes float32 and knows no zero as missing, answers otherwise on"
            f" {facts.wrong} of {facts.rows} generated samples (by Treelite's reference); set"
            " spec.model.format instead of backend: FIL, which converts the model to ONNX",
        )
    served = folder / SERVED
    return facts, served if served.exists() else path


def fil_versions() -> dict[str, str]:
    """Of the libraries that read trees for FIL; raises JobError (FlavourMissing)."""
    return _installed(FIL_LIBRARIES, "trees", "spec.serving.triton.backend: FIL")


_name = attrgetter("name")


def expect_tensors(declared: Tensors, info: inspect.ModelInfo) -> None:
    """Raise TensorMismatch unless the converted model has the inputs and outputs that its owner
    declared. A size may be dynamic where a fixed one was declared.
    """
    for field, required, tensors in (
        ("inputs", declared.inputs, info.inputs),
        ("outputs", declared.outputs, info.outputs),
    ):
        specs = [TensorSpec(t.name, t.data_type, t.shape) for t in required]
        fits = len(specs) == len(tensors) and all(
            (s.name, s.datatype, len(s.shape)) == (f.name, f.datatype, len(f.shape))
            and all(a == b or b < 0 for a, b in zip(s.shape, f.shape, strict=True))
            for s, f in zip(sorted(specs, key=_name), sorted(tensors, key=_name), strict=True)
        )
        if not fits:
            raise bad_input(
                Reason.TENSOR_MISMATCH,
                f"spec.serving.triton.{field}: {'; '.join(map(str, specs))[:400]}, but the model has "
                f"{'; '.join(map(str, tensors))[:400]}; correct the field",
            )


def run_isolated(task: str, path: Path, kind: SourceFormat, folder: Path) -> None:
    """Run ``worker`` in a process of its own. Raises JobError: what it refuses, ModelInvalid where
    the file crashes it, ModelTimeout.
    """
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-m",
            "modelrollout.optimizer.formats.worker",
            task,
            kind,
            str(path),
            str(folder),
        ]
        environment = bare_environment(home) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            done = subprocess.run(
                command, cwd=home, env=environment, capture_output=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise bad_input(
                Reason.MODEL_TIMEOUT,
                f"{FIELD}.uri: {kind} does not get done with the file in {SECONDS:g} s; {REMEDY}",
            ) from None
    if done.returncode == ExitCode.BAD_INPUT:
        reason, message = json.loads((folder / REFUSAL).read_text())
        raise bad_input(reason, message)
    if done.returncode in (OUT_OF_MEMORY, -9):  # only the kernel, out of memory, kills so
        raise MemoryError
    if done.returncode < 0:
        raise bad_input(
            Reason.MODEL_INVALID,
            f"{FIELD}.uri: the file crashes {kind} (signal {-done.returncode}): it is damaged, or made to"
            f" harm; {REMEDY}",
        )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1])


@dataclass(frozen=True)
class Converted:
    """The converted model at ``path``. ``compared``: with the original, on inputs that meet the
    model's own branches, None where nothing was known of them. ``notes``: of the original for the
    report; ``warnings``: for its owner. ``nan``: a missing value is data for it. ``rows``: a few
    of those inputs, which both answer.
    """

    path: Path
    compared: Mapping[str, Any] | None
    notes: Mapping[str, Any]
    warnings: tuple[str, ...]
    nan: bool = False
    rows: Arrays | None = None


def convert(path: Path, kind: SourceFormat, folder: Path, declared: Declared) -> Converted:
    """The ONNX model in ``folder``, in float64 where in float32 it does not answer as the original.

    Raises JobError: ConversionFailed, ConversionUnfaithful, and those of ``run_isolated`` and
    ``worker.load``.
    """
    (folder / DECLARED).write_text(declared.model_dump_json())
    run_isolated("convert", path, kind, folder)
    notes, warnings, wider = json.loads((folder / NOTES).read_text())

    def in_float64() -> Converted | None:
        """None where that is not possible: then the files are those of float32 again."""
        with suppress(JobError):
            return convert(path, kind, folder, declared.model_copy(update={"double": True}))
        (folder / DECLARED).write_text(declared.model_dump_json())
        run_isolated("convert", path, kind, folder)
        return None

    if wider == "First" and (better := in_float64()):
        return better
    converted = folder / CONVERTED
    if not (folder / PROBES).exists():
        return Converted(converted, None, notes, tuple(warnings))
    with np.load(folder / PROBES) as arrays:
        probes = words_as_objects({name: arrays[name] for name in arrays.files})
    inputs = inspect.check(converted, FIELD).inputs

    def compared(rows: Arrays) -> dict[str, Any]:
        return _compare(path, kind, folder, converted, inputs, rows, generated=True)

    gaps = _with_gaps(probes)
    takes_gaps = bool(gaps.any())
    try:
        figures = compared(probes)
    except JobError as error:
        if error.reason != Reason.CONVERSION_UNFAITHFUL:
            raise
        if wider == "IfUnfaithful" and (better := in_float64()):
            return better
        if not gaps.any() or gaps.all():
            raise
        try:
            figures = compared({name: array[~gaps] for name, array in probes.items()})
        except JobError:
            raise error from None
        takes_gaps = False
        warnings = [
            *warnings,
            "missing values (NaN) are answered otherwise than by the original: fill them before the request",
        ]
    rows = {spec.name: probes[spec.name][~gaps][:_FEW].astype(NUMPY[spec.datatype]) for spec in inputs}
    return Converted(converted, figures, notes, tuple(warnings), nan=takes_gaps, rows=rows)


def _with_gaps(inputs: Arrays) -> NDArray[np.bool_]:
    """Which rows [n] have a missing value, NaN."""
    numbers = [array for array in inputs.values() if array.dtype.kind == "f"]
    gaps = np.zeros(len(next(iter(inputs.values()))), np.bool_)
    for array in numbers:
        gaps |= np.isnan(array).reshape(len(array), -1).any(axis=1)
    return gaps


def parity(
    path: Path,
    kind: SourceFormat,
    folder: Path,
    converted: Converted,
    specs: Sequence[TensorSpec],
    samples: Arrays | None,
) -> tuple[dict[str, Any], list[str]]:
    """Compare the original with the converted model on ``samples``, at most PARITY_SAMPLES of them,
    or on generated ones; returns the figures for the report, and warnings.

    Raises JobError: ConversionUnfaithful, NoBatchDimension, InferenceFailed, InferenceTimeout, and
    those of ``run_isolated``.
    """
    compared = converted.compared
    if samples is not None or compared is None:
        inputs = _generated(specs) if samples is None else samples
        compared = _compare(path, kind, folder, converted.path, specs, inputs, generated=samples is None)
    warnings = []
    if kind == "XGBoost" and converted.notes.get("missing") is None:
        warnings = (
            [
                "zeros are values: if the model was trained with missing=0, which XGBoost's file does not"
                " hold, set spec.model.missing: 0"
            ]
            if samples is None
            else _zeros_could_be_missing(converted.path, specs, samples)
        )
    return {"from": kind, **converted.notes, **compared, "generated": samples is None}, warnings


def _zeros_could_be_missing(path: Path, specs: Sequence[TensorSpec], samples: Arrays) -> list[str]:
    """A warning if XGBoost's ``missing=0``, which its file does not hold, would change answers."""
    session = open_session(path, "the converted model")
    rows = {spec.name: samples[spec.name][:PARITY_SAMPLES] for spec in specs}
    gaps = {name: np.where(array == 0, np.nan, array).astype(array.dtype) for name, array in rows.items()}
    n = len(next(iter(rows.values())))
    apart = 0
    pairs = (
        outputs_of(session, specs, inputs, "the converted model", lambda done, total: None)
        for inputs in (rows, gaps)
    )
    for as_it_is, missing in zip(*pairs, strict=True):
        want, got = (_rows(np.asarray(batch.outputs[-1]), batch.rows) for batch in (as_it_is, missing))
        apart += int((~np.isclose(want, got, rtol=PARITY_TOLERANCE, equal_nan=True)).any(axis=1).sum())
    if not apart:
        return []
    return [
        f"{apart} of {n} samples have zeros, and would be answered otherwise if the model was trained with"
        " missing=0, which XGBoost's file does not hold: if it was, set spec.model.missing: 0"
    ]


def _compare(
    path: Path,
    kind: SourceFormat,
    folder: Path,
    converted: Path,
    specs: Sequence[TensorSpec],
    inputs: Arrays,
    *,
    generated: bool,
) -> dict[str, Any]:
    largest = max(math.prod(array.shape[1:]) for array in inputs.values())
    inputs = {
        name: array[: max(1, min(PARITY_SAMPLES, PARITY_ELEMENTS // max(1, largest)))]
        for name, array in inputs.items()
    }
    n = len(next(iter(inputs.values())))
    rows, fill = batch_rows(specs, BATCH_ROWS, FIELD)
    parts = list(batches(inputs, rows, fill))
    np.savez(
        folder / INPUTS,
        **plain({f"{i}/{name}": array for i, (_, part) in enumerate(parts) for name, array in part.items()}),  # type: ignore[arg-type]
    )
    run_isolated("predict", path, kind, folder)
    wanted: list[list[NDArray[Any]]] = []
    given: list[list[NDArray[Any]]] = []
    with np.load(folder / OUTPUTS) as answers:
        output_count = len({name.split("/")[1] for name in answers.files})
        answered = outputs_of(
            open_session(converted, "the converted model"),
            specs,
            {spec.name: inputs[spec.name].astype(NUMPY[spec.datatype]) for spec in specs},
            "the converted model",
            lambda done, total: None,
        )
        for i, batch in enumerate(answered):
            original = [_rows(answers[f"{i}/{position}"], batch.rows) for position in range(output_count)]
            of_classes = original[0].dtype.kind != "f"
            ours = batch.outputs[:output_count] if of_classes else batch.outputs[-output_count:]
            wanted.append(original)
            given.append([_rows(np.asarray(output), batch.rows) for output in ours])
    want, got = ([np.concatenate(output) for output in zip(*side, strict=True)] for side in (wanted, given))
    apart, largest_difference = _differences(want, got)
    wrong = int(apart.sum())
    if wrong > PARITY_SHARE * n:
        raise bad_input(
            Reason.CONVERSION_UNFAITHFUL,
            f"{FIELD}.uri: the converted model answers otherwise on {wrong} of {n}"
            f" {'generated ' if generated else ''}samples, by up to {largest_difference:.3g}; {REMEDY}",
        )
    return {"samples": n, "apart": wrong, "largestDifference": largest_difference}


def _differences(
    want: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.bool_], float]:
    """(which rows [n] differ, the largest difference of numbers). Numbers are compared relative to
    the output's scale, classes and words exactly, except where their scores tie.
    """
    apart = np.zeros(len(want[0]), np.bool_)
    largest = 0.0
    for position, (w, g) in enumerate(zip(want, got, strict=True)):
        if g.shape != w.shape:
            raise bad_input(
                Reason.CONVERSION_UNFAITHFUL,
                f"{FIELD}.uri: the converted model gives {list(g.shape)}, the original {list(w.shape)};"
                f" {REMEDY}",
            )
        if w.dtype.kind != "f":
            differ = (w != g).any(axis=1)
            if position + 1 < len(want) and want[position + 1].dtype.kind == "f" and w.shape[1] == 1:
                differ &= ~_tied(want[position + 1])
            apart |= differ
            continue
        finite = w[np.isfinite(w)]
        scale = float(finite.std()) if finite.size else 0.0
        close = np.isclose(g, w, rtol=PARITY_TOLERANCE, atol=PARITY_TOLERANCE * scale, equal_nan=True)
        apart |= ~close.all(axis=1)
        with np.errstate(invalid="ignore"):  # Inf minus Inf
            largest = max(largest, float(np.nanmax(np.abs(g - w), initial=0.0)))
    return apart, largest


def _tied(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows [n] whose two best classes score alike; of one score, those at the border."""
    if scores.shape[1] == 1:
        return np.abs(scores[:, 0]) <= PARITY_TOLERANCE
    best = np.sort(scores, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] <= PARITY_TOLERANCE * np.maximum(1.0, np.abs(best[:, 1])))


def _rows(output: NDArray[Any], rows: int) -> NDArray[Any]:
    """[rows, k], numbers as float64, words as such, integers as int64; an output without a batch
    dimension belongs to every row.
    """
    flat = np.asarray(output)
    if flat.dtype == np.object_:
        flat = flat.astype(np.str_)
    if flat.dtype.kind in "fc":
        flat = flat.astype(np.float64)
    elif flat.dtype.kind in "biu":
        flat = flat.astype(np.int64)
    if flat.ndim == 0 or len(flat) < rows:
        return np.broadcast_to(flat.reshape(1, -1), (rows, flat.size))
    return flat[:rows].reshape(rows, -1)


def _generated(specs: Sequence[TensorSpec]) -> Arrays:
    """Generated inputs, at most PARITY_SAMPLES: normal numbers, and whole numbers 0 and 1, which
    are indices of every table.
    """
    rng = np.random.default_rng(0)
    shapes = {spec.name: tuple(UNKNOWN_DIMENSION if d < 0 else d for d in spec.shape[1:]) for spec in specs}
    n = max(
        1, min(PARITY_SAMPLES, PARITY_ELEMENTS // max(1, *(math.prod(shape) for shape in shapes.values())))
    )
    inputs: Arrays = {}
    for spec in specs:
        dtype, shape = NUMPY[spec.datatype], (n, *shapes[spec.name])
        if dtype.kind == "f":
            inputs[spec.name] = rng.normal(size=shape).astype(dtype)
        else:
            inputs[spec.name] = rng.integers(0, 2, shape).astype(dtype)
    return inputs
