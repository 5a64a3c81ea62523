"""Made-up inputs to a served model that no Job has run: whether it answers at all.

Triton's metadata knows names, types and shapes, so several kinds of values and sizes are tried, and
one answer is enough. The model fails if it fails on all of them; with two exceptions, in which it
is only said that it gave no answer. It may call a request invalid (Triton's INVALID_ARG): a model
that checks its inputs is right to refuse what was made up. And strings cannot be made up, nor the
sizes of a free dimension that it takes; then it fails only if its words are the same on all of
them, so that neither content nor size is what it fails on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import AskTask
from modelrollout.evaluator.request import blame, request_with_retries, sent, wrong_version
from modelrollout.jobs.errors import bad_input
from modelrollout.jobs.log import say
from modelrollout.optimizer.model.data import Arrays
from modelrollout.reasons import Reason
from modelrollout.triton.client import GrpcServer, HttpServer, Served, Server, TritonError
from modelrollout.triton.tensors import NUMPY, TensorSpec

WHO = "candidate"
GOLDEN = "give golden data (spec.rollout.analysis.golden)"
# of every dimension that is not fixed: a convolution refuses an image of one pixel
SIZES = (1, 32, 224, 640)
MOST_ELEMENTS = 1 << 22  # of a request, where a smaller one does as well
LIMIT_ELEMENTS = 1 << 24  # of a request: the Job has 1Gi of memory
ROWS = 3
TEXTS = (b"1", b"", b"text")


def ask(task: AskTask) -> TaskResult:
    """Whether the candidate answers; ``message`` where that could not be found out.

    Raises JobError: InferenceFailed, BatchingImpossible, or that no server answers.
    """
    with (
        HttpServer(task.http, task.timeout_seconds) as http,
        GrpcServer(task.grpc, task.timeout_seconds) as grpc,
    ):
        served = request_with_retries(lambda: http.served(task.model), WHO)
        if str(task.number) not in served.versions:
            raise wrong_version(WHO, task.number, *served.versions)
        if reason := _cannot_be_asked(served):
            return TaskResult(message=f"{reason}; send it requests of your own before you promote it")
        errors: list[TritonError] = []
        first = partial(_streamed if served.decoupled else _answered, grpc, task.model, served)
        for request in made_up(served):
            error = _error(task, partial(first, request))
            if error is None:
                say("answered", inputs=[str(spec) for spec in served.inputs])
                if not served.decoupled:  # that answers over gRPC alone
                    _expect_the_same(http, grpc, task, served, request)
                return TaskResult()
            errors.append(error)
    said = f"{WHO}: it answers none of {len(errors)} requests with made-up inputs; Triton said:"
    said += f" {_line(errors[0])}"
    in_other_words = len({_words(error) for error in errors}) > 1
    if any(error.kind == "Invalid" for error in errors) or (_is_vague(served) and in_other_words):
        return TaskResult(message=f"{said}; {GOLDEN} with inputs that it takes")
    raise bad_input(
        Reason.INFERENCE_FAILED,
        f"{said}; see the log of its pods, or {GOLDEN} with inputs that it takes; a model that refuses"
        " values is to say INVALID_ARG",
    )


def made_up(served: Served) -> Iterator[Arrays]:
    """Requests with one row: random numbers, zeros, ones, in several sizes of what is not fixed."""
    for size in SIZES if any(map(_has_free, served.inputs)) else SIZES[:1]:
        shapes = {spec.name: _shape(spec, size) for spec in served.inputs}
        if size > SIZES[0] and _elements(shapes.values()) > MOST_ELEMENTS:
            return
        for kind in range(len(TEXTS)):
            yield {spec.name: _values(spec, shapes[spec.name], kind) for spec in served.inputs}


def _elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes))


def _has_free(spec: TensorSpec) -> bool:
    return any(size < 0 for size in spec.shape[1:])


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The first dimension is that of rows wherever it is free."""
    return tuple(given if given >= 0 else size if at else 1 for at, given in enumerate(spec.shape))


def _values(spec: TensorSpec, shape: tuple[int, ...], kind: int) -> NDArray[np.generic]:
    """``kind`` 0: random, of integers 0 and 1, which may be indices; 1: zeros; 2: ones."""
    if spec.datatype == "BYTES":
        return np.full(shape, TEXTS[kind], np.object_)
    dtype = NUMPY[spec.datatype]
    if kind:
        return np.full(shape, kind - 1, dtype)
    values = np.random.default_rng(0).random(shape, np.float32)
    return (values if dtype.kind == "f" else values.round()).astype(dtype)


def _is_vague(served: Served) -> bool:
    """Whether the metadata leaves open what the model takes."""
    return any(spec.datatype == "BYTES" or _has_free(spec) for spec in served.inputs)


def _line(error: TritonError) -> str:
    """Python models fail with a traceback of several lines."""
    return " ".join(str(error).split())


def _words(error: TritonError) -> str:
    """What the model said, without the name of the instance that said it."""
    text = str(error)
    return text.partition("message: ")[2] or text


def _cannot_be_asked(served: Served) -> str | None:
    if unknown := sorted({spec.datatype for spec in served.inputs} - set(NUMPY)):
        return f"{WHO}: it was not asked, because nothing can be made up for {unknown[0]}"
    elements = _elements(_shape(spec, SIZES[0]) for spec in served.inputs)
    if elements > LIMIT_ELEMENTS:
        return f"{WHO}: it was not asked, because one request has {elements} elements"
    return None


def _answered(server: Server, model: str, served: Served, request: Arrays) -> str:
    return server.infer(model, request, served.inputs, served.outputs).version


def _streamed(server: GrpcServer, model: str, served: Served, request: Arrays) -> str:
    version = server.first_of_stream(model, request, served.inputs, served.outputs)
    if version is None:  # as a decoupled model may, of a request that gives nothing to say
        raise TritonError("Invalid", "it ended its stream without a response")
    return version


def _error(task: AskTask, request: Callable[[], str]) -> TritonError | None:
    """Why the model did not answer; raises JobError if it is not the cause. ``request`` returns the
    version that did.
    """
    try:
        version = sent(request)
    except TritonError as error:
        if error.kind in ("Invalid", "Failed"):
            return error
        raise blame(error, WHO) from None
    if version != str(task.number):
        raise wrong_version(WHO, task.number, version)
    return None


def _expect_the_same(
    http: HttpServer, grpc: GrpcServer, task: AskTask, served: Served, request: Arrays
) -> None:
    """What the model answers over gRPC it answers over HTTP, and joined with its like."""
    if error := _error(task, partial(_answered, http, task.model, served, request)):
        raise bad_input(
            Reason.INFERENCE_FAILED,
            f"{WHO}: it answers a request over gRPC but not over HTTP: {_line(error)}; see the log of its"
            " pods",
        )
    rows = min(ROWS, served.max_batch)
    if rows < 2 or rows * _elements(array.shape for array in request.values()) > LIMIT_ELEMENTS:
        return
    several = {name: np.repeat(array, rows, axis=0) for name, array in request.items()}
    if error := _error(task, partial(_answered, grpc, task.model, served, several)):
        raise bad_input(
            Reason.BATCHING_IMPOSSIBLE,
            f"spec.serving.batching.maxBatchSize: {served.max_batch} by its configuration, but the model"
            f" fails on {rows} rows though it answers each alone: {_line(error)}; set it to 0, also in its"
            " own config.pbtxt, or mend the model",
        )
