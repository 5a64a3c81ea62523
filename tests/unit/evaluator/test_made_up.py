"""A served model is asked made-up inputs, with Triton's real clients against a server in this
process: what counts as a failure of the model, and what does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import AskTask
from modelrollout.evaluator import request
from modelrollout.evaluator.__main__ import run
from modelrollout.evaluator.made_up import ROWS, SIZES, made_up
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.testing.fake_triton import Failure, FakeTriton, Model, serving
from modelrollout.triton.client import Served
from modelrollout.triton.tensors import NUMPY, TensorSpec


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "_PAUSE_SECONDS", 0.01)


def asked(model: Model, **fields: Any) -> tuple[TaskResult | JobError, FakeTriton]:
    with serving(FakeTriton(model, **fields)) as fake:
        task = AskTask(model="digits", http=fake.http, grpc=fake.grpc, number=3, timeout_seconds=60.0)
        try:
            return run(task, Progress()), fake
        except JobError as error:
            return error, fake


def summed(x: np.ndarray) -> np.ndarray:
    total: np.ndarray = x.reshape(len(x), -1).sum(1, keepdims=True)
    return total


def fails(text: str = "no module named 'torch'") -> Model:
    def model(_: np.ndarray) -> np.ndarray:
        raise Failure(text)

    return model


def refusal(model: Model, **fields: Any) -> JobError:
    error, _ = asked(model, **fields)
    assert isinstance(error, JobError), error
    return error


@pytest.mark.parametrize("max_batch", [0, 1, 2, 8])
def test_a_model_that_answers_is_asked_over_both_protocols_and_joined(max_batch: int) -> None:
    result, fake = asked(summed, max_batch=max_batch)
    assert result == TaskResult()
    several = min(ROWS, max_batch)
    assert (fake.http_rows, fake.grpc_rows) == ([1], [1, several] if several > 1 else [1])


def test_one_answer_is_enough() -> None:
    def only_ones(x: np.ndarray) -> np.ndarray:
        if (x != 1).any():
            raise Failure("not these")
        return summed(x)

    assert asked(only_ones)[0] == TaskResult()


@pytest.mark.parametrize("shape", [(-1, 4), (2, 4), (-1, -1)])
def test_a_model_that_fails_every_request_gets_no_traffic(shape: tuple[int, ...]) -> None:
    error = refusal(fails(), shape=shape)
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "InferenceFailed")
    for words in ("no module named 'torch'", "spec.rollout.analysis.golden", "INVALID_ARG"):
        assert words in error.message


def test_the_instance_that_failed_is_not_what_it_says() -> None:
    instances = iter(range(100))

    def model(_: np.ndarray) -> np.ndarray:
        raise Failure(
            f"Failed to process the request(s) for model 'm_0_{next(instances)}', message: no\n\n GPU"
        )

    error = refusal(model, shape=(-1, -1))
    assert error.reason == "InferenceFailed" and "message: no GPU; see" in error.message


def test_who_calls_made_up_inputs_invalid_does_not_fail() -> None:
    def checks(_: np.ndarray) -> np.ndarray:
        raise Failure.invalid("x is not a spectrum")

    result, _ = asked(checks)
    assert isinstance(result, TaskResult) and "x is not a spectrum" in result.message
    assert "spec.rollout.analysis.golden" in result.message


def test_it_is_unknown_which_sizes_a_free_dimension_takes() -> None:
    def of_seven(x: np.ndarray) -> np.ndarray:
        if x.shape[1] != 7:
            raise Failure(f"7 columns expected, not {x.shape[1]}")
        return summed(x)

    result, _ = asked(of_seven, shape=(-1, -1))
    assert isinstance(result, TaskResult) and "7 columns expected" in result.message
    assert refusal(of_seven, shape=(-1, 4)).reason == "InferenceFailed"


def test_a_convolution_gets_an_image_that_it_takes() -> None:
    def pools(x: np.ndarray) -> np.ndarray:
        if min(x.shape[2:]) < 200:
            raise Failure("the kernel is larger than the image")
        return summed(x)

    assert asked(pools, shape=(-1, 3, -1, -1))[0] == TaskResult()


def test_texts_cannot_be_made_up() -> None:
    def parses(x: np.ndarray) -> np.ndarray:
        raise Failure(f"no record: {x.ravel()[0]!r}")

    result, _ = asked(parses, datatype="BYTES", shape=(-1, 1))
    assert isinstance(result, TaskResult) and "no record" in result.message
    assert refusal(fails(), datatype="BYTES", shape=(-1, 1)).reason == "InferenceFailed"


def test_a_model_that_fails_on_joined_rows_cannot_be_batched() -> None:
    def one_row(x: np.ndarray) -> np.ndarray:
        if len(x) > 1:
            raise Failure("shape '[1, 4]' is invalid for input of size 12")
        return summed(x)

    error = refusal(one_row, max_batch=8)
    assert error.reason == "BatchingImpossible" and "3 rows" in error.message
    assert asked(one_row)[0] == TaskResult()


def test_it_answers_over_http_what_it_answers_over_grpc() -> None:
    error = refusal(fails("no HTTP"), grpc_model=summed)
    assert error.reason == "InferenceFailed" and "no HTTP" in error.message


def test_what_streams_is_asked_over_grpc_for_its_first_response() -> None:
    result, fake = asked(summed, decoupled=True, max_batch=8)
    assert result == TaskResult() and (fake.grpc_rows, fake.http_rows) == ([1], [])
    error = refusal(fails(), decoupled=True)
    assert error.reason == "InferenceFailed" and "torch" in error.message
    assert refusal(summed, decoupled=True, grpc_version="2").reason == "WrongVersion"


def test_a_stream_without_a_response_or_a_status_shows_nothing() -> None:
    def silent(x: np.ndarray) -> np.ndarray:
        return summed(x)[:0]

    result, fake = asked(silent, decoupled=True)
    assert isinstance(result, TaskResult) and "without a response" in result.message
    assert len(fake.grpc_rows) == 3, "every kind of values was tried"
    result, _ = asked(fails(), decoupled=True, stream_statuses=False)
    assert isinstance(result, TaskResult) and "torch" in result.message


def test_what_cannot_be_made_up_is_not_asked_and_that_is_said() -> None:
    result, _ = asked(summed, datatype="BF16")
    assert isinstance(result, TaskResult) and "BF16" in result.message
    result, _ = asked(summed, shape=(-1, 5000, 5000))
    assert isinstance(result, TaskResult) and "25000000 elements" in result.message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": "2"}, "WrongVersion"),
        ({"grpc_version": "2"}, "WrongVersion"),
        ({"answering_version": "2"}, "WrongVersion"),
        ({"metadata_error": (503, "starting")}, "ServerUnreachable"),
    ],
)
def test_no_answer_of_this_model_is_tried_again(fields: dict[str, Any], reason: str) -> None:
    error = refusal(summed, **fields)
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, reason)


def test_a_server_that_goes_away_is_tried_again() -> None:
    def gone(_: np.ndarray) -> np.ndarray:
        raise Failure("shutting down", 503, grpc.StatusCode.UNAVAILABLE)

    assert refusal(gone).reason == "ServerUnreachable"


@pytest.fixture(params=sorted(NUMPY))
def datatype(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_inputs_have_the_types_and_shapes_of_the_metadata(datatype: str) -> None:
    specs = (
        TensorSpec("a", datatype, (-1, 3)),
        TensorSpec("b", "FP32", (2, -1)),
        TensorSpec("c", "FP32", (-1,)),
    )
    requests = list(made_up(Served(("1",), specs, ("y",), 0)))
    assert len(requests) == 3 * len(SIZES)
    for arrays, size in zip(requests, np.repeat(SIZES, 3), strict=True):
        assert arrays["a"].dtype == NUMPY[datatype] and arrays["a"].shape == (1, 3)
        assert (arrays["b"].shape, arrays["c"].shape) == ((2, size), (1,))
    huge = (TensorSpec("a", "FP32", (-1, 64, -1, -1)),)
    assert len(list(made_up(Served(("1",), huge, ("y",), 0)))) == 3 * 3
