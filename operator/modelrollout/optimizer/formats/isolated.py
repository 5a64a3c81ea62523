"""Models of other formats than ONNX: recognized, converted in a process of their own (``worker``),
and compared with the original.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import SourceFormat, Tensors
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats import CONVERTED, INPUTS, OUT_OF_MEMORY, OUTPUTS, REFUSAL, TENSORS
from modelrollout.optimizer.formats.registry import BY_NAME, sniff
from modelrollout.optimizer.formats.source_model import FIELD, REMEDY
from modelrollout.optimizer.model import inspect
from modelrollout.optimizer.model.data import Arrays, batch_rows, batches
from modelrollout.optimizer.model.runtime import BATCH_ROWS, open_session, outputs_of
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import NUMPY, TensorSpec

PARITY_SAMPLES = 2000
PARITY_ELEMENTS = 1 << 25  # of an input: large images are compared on fewer samples
UNKNOWN_DIMENSION = 32  # of generated inputs
SECONDS = 600.0
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
    libraries, flavour = BY_NAME[kind].libraries, BY_NAME[kind].flavour
    installed = packages_distributions()
    if any(name not in installed for name in libraries):
        raise bad_input(
            Reason.FLAVOUR_MISSING,
            f"{FIELD}.format: {kind} needs the image flavour {flavour}; set images.{flavour} in the"
            " operator's configuration",
        )
    return {name: version(installed[name][0]) for name in libraries}


def convert(path: Path, kind: SourceFormat, folder: Path, tensors: Tensors | None = None) -> Path:
    """The ONNX model in ``folder``; raises JobError: ConversionFailed, and those of
    ``run_isolated`` and ``worker.load``.
    """
    if tensors:
        (folder / TENSORS).write_text(tensors.model_dump_json())
    run_isolated("convert", path, kind, folder)
    return folder / CONVERTED


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
        inherited = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
        environment = inherited | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "HOME": home,
            "TMPDIR": home,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
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


def parity(
    path: Path,
    kind: SourceFormat,
    folder: Path,
    converted: Path,
    specs: Sequence[TensorSpec],
    samples: Arrays | None,
) -> dict[str, Any]:
    """Compare the original with the converted model on ``samples``, at most PARITY_SAMPLES of them,
    or on generated ones.

    Raises JobError: ConversionUnfaithful, NoBatchDimension, InferenceFailed, InferenceTimeout, and
    those of ``run_isolated``.
    """
    inputs = _generated(specs, trees=BY_NAME[kind].flavour == "trees") if samples is None else samples
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
        **{f"{i}/{name}": array for i, (_, part) in enumerate(parts) for name, array in part.items()},  # type: ignore[arg-type]
    )
    run_isolated("predict", path, kind, folder)
    differences: list[NDArray[np.float64]] = []
    wrong = 0
    with np.load(folder / OUTPUTS) as answers:
        output_count = len({name.split("/")[1] for name in answers.files})
        answered = outputs_of(
            open_session(converted, "the converted model"),
            specs,
            inputs,
            "the converted model",
            lambda done, total: None,
        )
        for i, batch in enumerate(answered):
            original = [_rows(answers[f"{i}/{position}"], batch.rows) for position in range(output_count)]
            ours = [_rows(np.asarray(output), batch.rows) for output in batch.outputs[-output_count:]]
            close = np.ones(batch.rows, bool)
            for want, got in zip(original, ours, strict=True):
                if got.shape[1] == 2 and want.shape[1] == 1:  # the probability of class 1 alone
                    got = got[:, 1:]
                if got.shape != want.shape:
                    raise bad_input(
                        Reason.CONVERSION_UNFAITHFUL,
                        f"{FIELD}.uri: the converted model gives {list(got.shape)}, the original"
                        f" {list(want.shape)}; {REMEDY}",
                    )
                close &= np.isclose(
                    got, want, rtol=PARITY_TOLERANCE, atol=PARITY_TOLERANCE, equal_nan=True
                ).all(axis=1)
                differences.append(np.abs(got - want).ravel())
            wrong += int((~close).sum())
    largest_difference = float(np.nanmax(np.concatenate(differences), initial=0.0))
    if wrong > PARITY_SHARE * n:
        raise bad_input(
            Reason.CONVERSION_UNFAITHFUL,
            f"{FIELD}.uri: the converted model answers otherwise on {wrong} of {n}"
            f" {'generated ' if samples is None else ''}samples, by up to {largest_difference:.3g}; {REMEDY}",
        )
    return {
        "from": kind,
        "samples": n,
        "generated": samples is None,
        "apart": wrong,
        "largestDifference": largest_difference,
    }


def _rows(output: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """[rows, k]; an output without a batch dimension belongs to every row."""
    flat = np.asarray(output, np.float64)
    if flat.ndim == 0 or len(flat) < rows:
        return np.broadcast_to(flat.reshape(1, -1), (rows, flat.size))
    return flat[:rows].reshape(rows, -1)


def _generated(specs: Sequence[TensorSpec], *, trees: bool) -> Arrays:
    """Generated inputs, at most PARITY_SAMPLES: normal numbers (for trees of several scales, so
    that thresholds far from 0 are met too), whole numbers 0 and 1, which are indices of every
    table.
    """
    rng = np.random.default_rng(0)
    shapes = {spec.name: tuple(UNKNOWN_DIMENSION if d < 0 else d for d in spec.shape[1:]) for spec in specs}
    n = max(
        1, min(PARITY_SAMPLES, PARITY_ELEMENTS // max(1, *(math.prod(shape) for shape in shapes.values())))
    )
    inputs: Arrays = {}
    for spec in specs:
        dtype, shape = NUMPY[spec.datatype], (n, *shapes[spec.name])
        if dtype.kind != "f":
            inputs[spec.name] = rng.integers(0, 2, shape).astype(dtype)
            continue
        scales = 10.0 ** rng.uniform(-1, 3, (n, *(1 for _ in shape[1:]))) if trees else 1.0
        inputs[spec.name] = (rng.normal(size=shape) * scales).astype(dtype)
    return inputs
