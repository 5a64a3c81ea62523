"""Predictions of a model, by ONNX Runtime on the CPU.

Convention for classifiers, the same for files and for served models: if the first output is of
integers and has shape [n] or [n, 1], those are the classes (scikit-learn's ``label``). Otherwise
an output of floats (or of bytes) with shape [n, k], k at least 2, holds the scores of the k
classes, and the largest wins; or floats [n] or [n, 1] between 0 and 1 are the probability of
class 1. Of several that fit the one that counts is named, never guessed. Dimensions of size 1 after
the first do not count. A row with a score that is NaN has no class (-1): it is never right.
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
from modelrollout.optimizer.model.data import Arrays, Request, requests
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import TensorSpec

ort: Any = onnxruntime  # it has no types

BATCH_ROWS = 32
LOCALE = {"locale": "C.UTF-8"}  # an option of skl2onnx: that of its default is in no image
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


Fits = Callable[[NDArray[Any]], bool]


def expect_output(names: Sequence[str], name: str, field: str) -> int:
    """The place of an output; raises JobError: OutputUnknown."""
    if name in names:
        return list(names).index(name)
    raise bad_input(
        Reason.OUTPUT_UNKNOWN, f"{field}: the model has no output {name!r}; name one of {sorted(names)[:20]}"
    )


def _one_of(
    outputs: Sequence[NDArray[Any]],
    names: Sequence[str],
    fits: Fits,
    output: str | None,
    field: str,
) -> int | None:
    """The place of the output that fits, of those or of the one that is named; None: there is
    none. Raises JobError: OutputUnknown, OutputAmbiguous.
    """
    places: Sequence[int] = range(len(outputs))
    if output is not None:
        places = [expect_output(names, output, field)]
    found = [at for at in places if fits(outputs[at])]
    if len(found) > 1:
        raise bad_input(
            Reason.OUTPUT_AMBIGUOUS,
            f"{field}: {len(found)} outputs could be meant: {[names[at] for at in found][:10]}; name the one"
            " to judge with output, in golden data or in the gate's metrics",
        )
    return found[0] if found else None


def _scores(n: int) -> Fits:
    """[n, k] floats, or the bytes that a quantized model gives."""
    return lambda a: (
        (a.dtype.kind == "f" or (a.dtype.itemsize == 1 and a.dtype.kind in "iu"))
        and (a.ndim == 2 and len(a) == n)
    )


def _line(n: int) -> Fits:
    return lambda a: a.dtype.kind == "f" and a.shape == (n,)


def _scores_or_line(n: int) -> Fits:
    """Scores, or one number of each row: heads of two and of several classes are alike to choose
    from.
    """
    return lambda a: _scores(n)(a) or _line(n)(a)


def _classes(n: int) -> Fits:
    return lambda a: a.dtype.kind in "iu" and a.shape == (n,)


def score_output(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str, output: str | None = None
) -> int:
    """Which output holds the class scores of the first ``n`` rows; raises JobError
    (OutputNotClasses, OutputUnknown, OutputAmbiguous).
    """
    at = _one_of(_squeezed(outputs, n), names, _scores(n), output, field)
    if at is None:
        raise _no_classes(outputs, names, field)
    return at


def _no_classes(outputs: Sequence[NDArray[Any]], names: Sequence[str], field: str) -> JobError:
    return bad_input(
        Reason.OUTPUT_NOT_CLASSES,
        f"{field}: accuracy needs a classifier: an output of class scores [n, k] with k at least 2, of"
        " probabilities of class 1 [n, 1] between 0 and 1, or a first output of integer classes [n]; the"
        f" model gives {_describe(outputs, names)}; for other models use relativeError, cosine, closeness or"
        " boxIou",
    )


def scores_of(
    outputs: Sequence[NDArray[Any]],
    names: Sequence[str],
    n: int,
    field: str,
    *,
    least: int,
    output: str | None = None,
) -> NDArray[np.float64]:
    """[n, k] class scores of the first ``n`` rows, or with ``least`` 1 also [n, 1] of class 1 where
    that is all that the model gives; raises JobError (OutputNotScores, OutputUnknown,
    OutputAmbiguous).
    """
    shaped = _squeezed(outputs, n)
    at = _one_of(shaped, names, _scores_or_line(n) if least == 1 else _scores(n), output, field)
    if at is not None:
        return shaped[at].astype(np.float64).reshape(n, -1)
    raise bad_input(
        Reason.OUTPUT_NOT_SCORES,
        f"{field}: auc and topK need scores: an output of floats [n, k], or [n] for auc; the model gives"
        f" {_describe(outputs, names)}",
    )


def values_of(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str, output: str | None = None
) -> NDArray[np.float64]:
    """[n] numbers of a regression: the output of floats with shape [n] or [n, 1]; raises JobError:
    OutputNotNumbers, OutputNotFinite, OutputUnknown, OutputAmbiguous.
    """
    shaped = _squeezed(outputs, n)
    at = _one_of(shaped, names, _line(n), output, field)
    if at is None:
        raise bad_input(
            Reason.OUTPUT_NOT_NUMBERS,
            f"{field}: mae and mse need a regression: an output of floats [n] or [n, 1]; the model gives"
            f" {_describe(outputs, names)}",
        )
    array = shaped[at]
    if not np.isfinite(array).all():
        raise bad_input(
            Reason.OUTPUT_NOT_FINITE,
            f"{field}: the model answers {int((~np.isfinite(array)).sum())} of {n} samples with NaN or Inf;"
            " use a wider type",
        )
    return array.astype(np.float64)


def scores_or_classes(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], n: int, field: str, output: str | None = None
) -> tuple[NDArray[np.int64], int | None]:
    """([n] classes, number of classes if scores tell it) of the first ``n`` rows; raises JobError
    (OutputNotClasses, OutputUnknown, OutputAmbiguous).
    """
    shaped = _squeezed(outputs, n)
    first = 0 if output is None else expect_output(names, output, field)
    if _classes(n)(shaped[first]):
        _one_of(shaped, names, _classes(n), output, field)  # no other is as good
        return shaped[first].astype(np.int64), None
    at = _one_of(shaped, names, _scores_or_line(n), output, field)
    if at is None:
        raise _no_classes(outputs, names, field)
    array = shaped[at]
    if array.ndim == 1:
        if not _probabilities(array):
            raise _no_classes(outputs, names, field)
        classes = (array >= 0.5).astype(np.int64)
        classes[np.isnan(array)] = -1
        return classes, 2
    classes = array.argmax(axis=1).astype(np.int64)
    classes[np.isnan(array).any(axis=1)] = -1
    return classes, array.shape[1]


def _probabilities(array: NDArray[Any]) -> bool:
    with np.errstate(invalid="ignore"):
        return bool((np.isnan(array) | ((array >= 0) & (array <= 1))).all())


def signed(labels: NDArray[np.int64]) -> bool:
    """Whether two classes are called -1 and 1."""
    return bool((labels == -1).any() and np.isin(labels, (-1, 1)).all())


def check_label_range(labels: NDArray[np.int64], classes: int | None, field: str) -> None:
    """Raise LabelsOutOfRange for labels that the model cannot predict. A model of integer classes
    may call them -1 and 1.
    """
    low, high = int(labels.min()), int(labels.max())
    if classes is None and signed(labels):
        return
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
        remedy = f"use operators and an opset that ONNX Runtime {ort.__version__} supports"
        if "locale" in str(error).lower():
            remedy = f"that locale is in no image: export with another (skl2onnx: options={{...: {LOCALE}}})"
        raise refused(Reason.MODEL_REFUSED, what, error, remedy) from None


def tell_memory(error: Exception) -> None:
    """Raise MemoryError where ONNX Runtime or JAX means that."""
    if any(words in str(error) for words in ("bad alloc", "Failed to allocate", "RESOURCE_EXHAUSTED")):
        raise MemoryError from None


def refused(reason: str, what: str, error: Exception, remedy: str) -> JobError:
    """ONNX Runtime's refusal as a reason: the first line of its text."""
    return bad_input(
        reason, f"{what}: ONNX Runtime says: {str(error).strip().splitlines()[0][:300]}; {remedy}"
    )


def ask(session: Any, names: Sequence[str] | None, request: Arrays, field: str) -> list[NDArray[Any]]:
    """Those outputs, or all; raises JobError: InferenceFailed, InferenceTimeout."""
    try:
        return _bounded(session, names, request, field, ort.RunOptions())
    except ORT_ERRORS as error:
        raise refused(
            Reason.INFERENCE_FAILED, field, error, "run the model on this data where it was trained"
        ) from None


def answer(session: Any, request: Arrays) -> list[NDArray[Any]] | None:
    """The model's outputs; None where ONNX Runtime says that it does not take these inputs. Raises
    JobError: InferenceTimeout, for what takes so long once is not tried again.
    """
    options = ort.RunOptions()
    options.log_severity_level = 4  # what is tried may fail
    try:
        return _bounded(session, None, request, "spec.model.uri", options)
    except ORT_ERRORS:
        return None


def _bounded(
    session: Any, names: Sequence[str] | None, request: Arrays, field: str, options: Any
) -> list[NDArray[Any]]:
    watchdog = threading.Timer(BATCH_LIMIT_SECONDS, setattr, (options, "terminate", True))
    watchdog.start()
    try:
        outputs: list[NDArray[Any]] = session.run(names, request, options)
    except ORT_ERRORS as error:
        if options.terminate:
            raise bad_input(
                Reason.INFERENCE_TIMEOUT,
                f"{field}: the model took more than {BATCH_LIMIT_SECONDS:g} s for one request of at most"
                f" {BATCH_ROWS} samples; does a loop in it ever end?",
            ) from None
        tell_memory(error)
        raise
    finally:
        watchdog.cancel()
    return outputs


def outputs_of(
    session: Any, specs: Sequence[TensorSpec], inputs: Arrays, field: str, advance: Advance
) -> Iterator[Batch]:
    """The model's outputs on all samples, batch by batch; raises JobError: InferenceFailed,
    InferenceTimeout, NoBatchDimension.
    """
    n = len(next(iter(inputs.values())))
    names = [output.name for output in session.get_outputs()]
    done = 0
    for request in requests(inputs, specs, BATCH_ROWS, field):
        outputs = ask(session, None, request.arrays, field)
        yield Batch(done, request.samples, request.rows(outputs), names)
        done += request.samples
        advance(done, n)


def expect_numbers(request: Request, outputs: Sequence[NDArray[Any]], start: int, field: str) -> None:
    """Raise DataNotFinite where a sample with infinity among its inputs is answered with NaN or
    +Inf: there it is no mask, but what a division by zero has left. -Inf is an ordinary answer, the
    logarithm of nothing. ``start``: the number of the first sample; ``outputs``: with the samples
    in front.
    """
    n = request.samples
    infinite = np.zeros(n, np.bool_)
    for array in request.arrays.values():
        if array.dtype.kind == "f":
            infinite |= np.isinf(array[None] if request.whole else array[:n]).reshape(n, -1).any(axis=1)
    if not infinite.any():
        return
    for values in outputs:
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            continue
        if not values.ndim or len(values) < n:
            continue
        lost = (np.isnan(values[:n]) | np.isposinf(values[:n])).reshape(n, -1).any(axis=1) & infinite
        if lost.any():
            raise bad_input(
                Reason.DATA_NOT_FINITE,
                f"{field}: sample {start + int(lost.argmax())} has Inf, and the model answers it with NaN or"
                " Inf; remove or fill such samples",
            )


def predict(
    session: Any,
    specs: Sequence[TensorSpec],
    inputs: Arrays,
    field: str,
    advance: Advance,
    output: str | None = None,
) -> tuple[NDArray[np.int64], int | None]:
    """([n] classes, number of classes or None) for all samples; raises JobError: OutputNotClasses,
    OutputUnknown, OutputAmbiguous, InferenceFailed, NoBatchDimension.
    """
    parts: list[NDArray[np.int64]] = []
    classes: int | None = None
    for _, count, outputs, names in outputs_of(session, specs, inputs, field, advance):
        part_classes, classes = scores_or_classes(outputs, names, count, field, output)
        parts.append(part_classes)
    return np.concatenate(parts), classes
