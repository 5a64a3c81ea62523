"""Predictions of a model, by ONNX Runtime on the CPU.

Convention for classifiers, the same for files and for served models: if the first output is of
integers and has shape [n] or [n, 1], those are the classes (scikit-learn's ``label``). Otherwise
the first output of floats with shape [n, k], k at least 2, holds the scores of the k classes, and
the largest wins; dimensions of size 1 after the first do not count. A row with a score that is NaN
has no class (-1): it is never right.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model.data import Arrays, batch_rows, batches
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import TensorSpec

ort: Any = onnxruntime  # it has no types

BATCH_ROWS = 32
BATCH_LIMIT_SECONDS = 300.0  # a model may loop for ever
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

Advance = Callable[[int, int | None], None]


class Batch(NamedTuple):
    """Outputs of the samples from ``start`` on; only the first ``rows`` rows are answers, the rest
    fills a fixed batch.
    """

    start: int
    rows: int
    outputs: Sequence[NDArray[Any]]
    names: Sequence[str]


def _squeezed(outputs: Sequence[NDArray[Any]], n: int) -> list[NDArray[Any]]:
    """The first ``n`` rows, without dimensions of size 1 after the first."""
    return [
        (a[:n].reshape(a[:n].shape[:1] + tuple(d for d in a.shape[1:] if d != 1)) if a.ndim else a)
        for a in outputs
    ]


def _describe(outputs: Sequence[NDArray[Any]], names: Sequence[str]) -> str:
    return ", ".join(f"{name}: {a.dtype} {list(a.shape)}" for name, a in zip(names, outputs, strict=True))


def score_output(outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str) -> int:
    """Which output holds the class scores of the first ``n`` rows; raises JobError
    (OutputNotClasses).
    """
    for index, array in enumerate(_squeezed(outputs, n)):
        if array.dtype.kind == "f" and array.ndim == 2 and len(array) == n:
            return index
    raise bad_input(
        Reason.OUTPUT_NOT_CLASSES,
        f"{field}: accuracy needs a classifier: an output of class scores [n, k] with k at least 2, or a"
        f" first output of integer classes [n]; the model gives {_describe(outputs, names)}",
    )


def scores_of(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str, *, least: int
) -> NDArray[np.float64]:
    """[n, k] class scores of the first ``n`` rows, or with ``least`` 1 also [n, 1] of class 1 where
    that is all that the model gives; raises JobError (OutputNotScores).
    """
    shaped = _squeezed(outputs, n)
    for array in shaped:
        if array.dtype.kind == "f" and array.ndim == 2 and len(array) == n:
            return array.astype(np.float64)
    for array in shaped:
        if least == 1 and array.dtype.kind == "f" and array.shape == (n,):
            return array.astype(np.float64)[:, None]
    raise bad_input(
        Reason.OUTPUT_NOT_SCORES,
        f"{field}: auc and topK need scores: an output of floats [n, k], or [n] for auc; the model gives"
        f" {_describe(outputs, names)}",
    )


def values_of(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str
) -> NDArray[np.float64]:
    """[n] numbers of a regression: the first output of floats with shape [n] or [n, 1]; raises
    JobError: OutputNotNumbers, OutputNotFinite.
    """
    for array in _squeezed(outputs, n):
        if array.dtype.kind == "f" and array.shape == (n,):
            if not np.isfinite(array).all():
                raise bad_input(
                    Reason.OUTPUT_NOT_FINITE,
                    f"{field}: the model answers {int((~np.isfinite(array)).sum())} of {n} samples with NaN"
                    " or Inf; use a wider type",
                )
            return array.astype(np.float64)
    raise bad_input(
        Reason.OUTPUT_NOT_NUMBERS,
        f"{field}: mae and mse need a regression: an output of floats [n] or [n, 1]; the model gives"
        f" {_describe(outputs, names)}",
    )


def scores_or_classes(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str
) -> tuple[NDArray[np.int64], int | None]:
    """([n] classes, number of classes if scores tell it) of the first ``n`` rows; raises JobError
    (OutputNotClasses).
    """
    shaped = _squeezed(outputs, n)
    if shaped[0].dtype.kind in "iu" and shaped[0].shape == (n,):
        return shaped[0].astype(np.int64), None
    array = shaped[score_output(outputs, names, n, field)]
    classes = array.argmax(axis=1).astype(np.int64)
    classes[np.isnan(array).any(axis=1)] = -1
    return classes, array.shape[1]


def check_label_range(labels: NDArray[np.int64], classes: int | None, field: str) -> None:
    """Raise LabelsOutOfRange for labels that the model cannot predict."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        known = "from 0" if classes is None else f"from 0 to {classes - 1}"
        raise bad_input(
            Reason.LABELS_OUT_OF_RANGE,
            f"{field}.labels: labels run from {low} to {high}, the model's classes {known}; renumber them",
        )


def cpu_limit() -> int:
    """CPUs that this process may use: those of its affinity, and no more than the container's quota
    (cgroup v2, then v1).
    """
    cpus = len(os.sched_getaffinity(0))
    for quota, period in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            numbers = Path(quota).read_text().split() + (Path(period).read_text().split() if period else [])
        except OSError:
            continue
        if numbers[0].isdigit():
            return max(1, min(cpus, -(-int(numbers[0]) // int(numbers[1]))))
    return cpus


_Options = ort.SessionOptions  # the quantizer's are replaced by ours for a while (``quantize``)


def session_options() -> Any:
    """ONNX Runtime's options with as many threads as the container may use; by itself it takes a
    thread for every core of the node.
    """
    options = _Options()
    options.intra_op_num_threads = cpu_limit()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def open_session(path: Path, what: str) -> Any:
    """A session on the CPU; raises JobError (ModelRefused): valid ONNX that ONNX Runtime does not
    run.
    """
    try:
        return ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        tell_memory(error)
        raise refused(
            Reason.MODEL_REFUSED,
            what,
            error,
            f"use operators and an opset that ONNX Runtime {ort.__version__} supports",
        ) from None


def tell_memory(error: Exception) -> None:
    """Raise MemoryError where ONNX Runtime or JAX means that."""
    if any(words in str(error) for words in ("bad alloc", "Failed to allocate", "RESOURCE_EXHAUSTED")):
        raise MemoryError from None


def refused(reason: str, what: str, error: Exception, remedy: str) -> JobError:
    """ONNX Runtime's refusal as a reason: the first line of its text."""
    return bad_input(
        reason, f"{what}: ONNX Runtime says: {str(error).strip().splitlines()[0][:300]}; {remedy}"
    )


def outputs_of(
    session: Any, specs: Sequence[TensorSpec], inputs: Arrays, field: str, advance: Advance
) -> Iterator[Batch]:
    """The model's outputs on all samples, batch by batch; raises JobError: InferenceFailed,
    InferenceTimeout, NoBatchDimension.
    """
    rows, fill = batch_rows(specs, BATCH_ROWS, field)
    n = len(next(iter(inputs.values())))
    names = [output.name for output in session.get_outputs()]
    done = 0
    for count, part in batches(inputs, rows, fill):
        options = ort.RunOptions()
        watchdog = threading.Timer(BATCH_LIMIT_SECONDS, setattr, (options, "terminate", True))
        watchdog.start()
        try:
            outputs = session.run(None, part, options)
        except ORT_ERRORS as error:
            if options.terminate:
                raise bad_input(
                    Reason.INFERENCE_TIMEOUT,
                    f"{field}: the model took more than {BATCH_LIMIT_SECONDS:g} s for {rows} samples; does a"
                    " loop in it ever end?",
                ) from None
            tell_memory(error)
            raise refused(
                Reason.INFERENCE_FAILED, field, error, "run the model on this data where it was trained"
            ) from None
        finally:
            watchdog.cancel()
        yield Batch(done, count, outputs, names)
        done += count
        advance(done, n)


def predict(
    session: Any, specs: Sequence[TensorSpec], inputs: Arrays, field: str, advance: Advance
) -> tuple[NDArray[np.int64], int | None]:
    """([n] classes, number of classes or None) for all samples; raises JobError: OutputNotClasses,
    InferenceFailed, NoBatchDimension.
    """
    parts: list[NDArray[np.int64]] = []
    classes: int | None = None
    for _, count, outputs, names in outputs_of(session, specs, inputs, field, advance):
        part_classes, classes = scores_or_classes(outputs, names, count, field)
        parts.append(part_classes)
    return np.concatenate(parts), classes
