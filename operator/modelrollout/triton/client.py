# mypy: disallow_untyped_calls=False
"""A served model over HTTP and over gRPC: its metadata, its answers, and the version that answered.

The version is never requested but read from the answer: that is what a client of the address would
get.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPConnectionClosed, HTTPProtocolViolationError
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from modelrollout.triton.config import MISSING_VALUES, NAN
from modelrollout.triton.tensors import TensorSpec

Kind = Literal["Unreachable", "Timeout", "NotServed", "Invalid", "Failed"]
_AWAY = ("502", "503", "504", "StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")
_INVALID = ("400", "StatusCode.INVALID_ARGUMENT")
_NOT_SERVED = ("unknown model", "is not found", "is not ready", "is not available")


class TritonError(Exception):
    """A request without an answer. ``kind``: no server there, too slow, the model is not loaded,
    the request was called invalid, or it failed. Old servers call every failure over HTTP invalid,
    and give no status to one in a stream, which counts as invalid then, too.
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Served:
    """A model's metadata. ``max_batch`` 0: the first dimension of the shapes is the only limit.
    ``nan``: a missing value (NaN) is data for it. ``decoupled``: it answers with a stream.
    """

    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    max_batch: int
    nan: bool = False
    decoupled: bool = False


@dataclass(frozen=True)
class Answer:
    """Outputs in the requested order, and the version that computed them."""

    version: str
    outputs: tuple[NDArray[Any], ...]


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate the errors of the client libraries to TritonError."""
    try:
        yield
    except InferenceServerException as error:
        status, text = str(error.status()), str(error.message())[:300]
        if status == "StatusCode.DEADLINE_EXCEEDED":
            raise TritonError("Timeout", text) from None
        if status in _AWAY:
            raise TritonError("Unreachable", text) from None
        if any(words in text for words in _NOT_SERVED):
            raise TritonError("NotServed", text) from None
        if status in _INVALID or error.status() is None:
            raise TritonError("Invalid", text) from None
        raise TritonError("Failed", text) from None
    except socket.gaierror:
        raise TritonError("Unreachable", "the host name does not resolve") from None
    except TimeoutError:
        raise TritonError("Timeout", "no answer in time") from None
    except (OSError, HTTPConnectionClosed, HTTPProtocolViolationError) as error:
        raise TritonError("Unreachable", f"{type(error).__name__}") from None


class Server(Protocol):
    """What both protocols offer."""

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        specs: Sequence[TensorSpec],
        outputs: Sequence[str],
    ) -> Answer:
        """One request; raises TritonError."""
        ...


class HttpServer:
    """Triton at ``host:port`` over HTTP. Used by one thread only (gevent)."""

    def __init__(self, address: str, timeout_seconds: float) -> None:
        self._client = triton_http.InferenceServerClient(
            address, connection_timeout=min(5.0, timeout_seconds), network_timeout=timeout_seconds
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def served(self, model: str) -> Served:
        """The model's metadata; raises TritonError."""
        with translated_errors():
            metadata = self._client.get_model_metadata(model)
            config = self._client.get_model_config(model)
        return Served(
            versions=tuple(metadata.get("versions", ())),
            inputs=tuple(
                TensorSpec(i["name"], i["datatype"], tuple(int(d) for d in i["shape"]))
                for i in metadata["inputs"]
            ),
            outputs=tuple(o["name"] for o in metadata["outputs"]),
            max_batch=int(config.get("max_batch_size", 0)),
            nan=config.get("parameters", {}).get(MISSING_VALUES, {}).get("string_value") == NAN,
            decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
        )

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        specs: Sequence[TensorSpec],
        outputs: Sequence[str],
    ) -> Answer:
        """One request; raises TritonError."""
        tensors = [_fill(triton_http.InferInput, spec, inputs[spec.name]) for spec in specs]
        with translated_errors():
            result = self._client.infer(
                model, tensors, outputs=[triton_http.InferRequestedOutput(name) for name in outputs]
            )
            return Answer(
                str(result.get_response().get("model_version", "")),
                tuple(result.as_numpy(name) for name in outputs),
            )


class GrpcServer:
    """Triton at ``host:port`` over gRPC."""

    def __init__(self, address: str, timeout_seconds: float) -> None:
        self._client = triton_grpc.InferenceServerClient(address)
        self._timeout = timeout_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        specs: Sequence[TensorSpec],
        outputs: Sequence[str],
    ) -> Answer:
        """One request; raises TritonError."""
        tensors = [_fill(triton_grpc.InferInput, spec, inputs[spec.name]) for spec in specs]
        requested = [triton_grpc.InferRequestedOutput(name) for name in outputs]
        with translated_errors():
            result = self._client.infer(model, tensors, outputs=requested, client_timeout=self._timeout)
            return Answer(
                result.get_response().model_version, tuple(result.as_numpy(name) for name in outputs)
            )

    def first_of_stream(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        specs: Sequence[TensorSpec],
        outputs: Sequence[str],
    ) -> str | None:
        """Version of the first response to one request of a decoupled model, which answers with a
        stream of them; None where it ends the stream without any. Raises TritonError.
        """
        tensors = [_fill(triton_grpc.InferInput, spec, inputs[spec.name]) for spec in specs]
        requested = [triton_grpc.InferRequestedOutput(name) for name in outputs]
        responses: SimpleQueue[tuple[Any, InferenceServerException | None]] = SimpleQueue()
        with translated_errors():
            self._client.start_stream(
                lambda result, error: responses.put((result, error)),
                stream_timeout=self._timeout,
                # without it an error has no status (server docs, protocol/extension_grpc.md)
                headers={"triton_grpc_error": "true"},
            )
            try:
                self._client.async_stream_infer(
                    model, tensors, outputs=requested, enable_empty_final_response=True
                )
                result, error = responses.get()
            finally:
                self._client.stop_stream(cancel_requests=True)
            if error is not None:
                raise error
        response = result.get_response()
        return response.model_version if response.outputs else None


def _fill(kind: Any, spec: TensorSpec, array: NDArray[Any]) -> Any:
    tensor = kind(spec.name, list(array.shape), spec.datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor
