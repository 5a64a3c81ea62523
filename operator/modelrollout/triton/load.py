# mypy: disallow_untyped_calls=False
"""Single-sample requests at a served model, a number of them always in flight, over gRPC: a closed loop.

Requests are encoded once and sent as they are, answers are not decoded: what one client can send decides from where on its own processor is measured
and not the server (about 3,000 requests a second of a core).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from modelrollout.triton.client import TritonError
from modelrollout.triton.tensors import TensorSpec

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_WARM_UP = 0.25  # share of a window before it, in which nothing is counted
_LONGEST = 4.0  # a window is prolonged to at most so many times its length, until enough requests were answered
_REQUEST_SECONDS = 60.0

pb: Any = service_pb2  # generated, without types


def encoded(model: str, inputs: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> bytes:
    """One request as it goes over the wire."""
    request = pb.ModelInferRequest(model_name=model)
    for spec in specs:
        array = np.ascontiguousarray(inputs[spec.name])
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=list(array.shape))
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if spec.datatype == "BYTES" else array.tobytes())
    return bytes(request.SerializeToString())


@dataclass(frozen=True)
class Window:
    """What was answered in a window of ``seconds``; latencies in seconds, sorted."""

    seconds: float
    latencies: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def latency(self, share: float) -> float:
        """What this share of the requests kept to (nearest rank), in seconds; infinite where nothing was answered."""
        return self.latencies[math.ceil(share * len(self.latencies)) - 1] if self.latencies else math.inf


class Generator:
    """Sends requests to Triton at ``host:port``."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)])
        self._infer = self._channel.unary_unary(_METHOD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def window(self, requests: Sequence[bytes], in_flight: int, seconds: float, enough: int) -> Window:
        """``requests`` again and again for ``seconds``, longer until ``enough`` of them were answered; raises TritonError when one fails."""
        return _Loop(self._infer, requests, in_flight, seconds, enough).run()


class _Loop:
    """State of one window. Answers come on gRPC's own thread, each sends the next request."""

    def __init__(self, infer: Any, requests: Sequence[bytes], in_flight: int, seconds: float, enough: int) -> None:
        self._infer, self._requests, self._in_flight, self._seconds, self._enough = infer, requests, in_flight, seconds, enough
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._sent = self._open = 0
        self._latencies: list[float] = []
        self._failure: TritonError | None = None
        self._closing = False
        self._begin = self._end = math.inf

    def run(self) -> Window:
        self._begin = time.perf_counter() + self._seconds * _WARM_UP
        for _ in range(self._in_flight):
            self._send()
        self._idle.wait()
        if self._failure is not None:
            raise self._failure
        return Window(self._end - self._begin, tuple(sorted(self._latencies)))

    def _send(self) -> None:
        with self._lock:
            request = self._requests[self._sent % len(self._requests)]
            self._sent += 1
            self._open += 1
        started = time.perf_counter()
        call = self._infer.future(request, timeout=_REQUEST_SECONDS)
        call.add_done_callback(lambda done: self._answered(done, started))

    def _answered(self, call: Any, started: float) -> None:
        now = time.perf_counter()
        with self._lock:
            self._open -= 1
            if call.code() is not grpc.StatusCode.OK:
                self._failure = self._failure or _failure(call)
                self._closing = True
            if not self._closing and now >= self._begin:
                self._latencies.append(now - started)
                spent = now - self._begin
                self._closing = spent >= self._seconds * _LONGEST or (spent >= self._seconds and len(self._latencies) >= self._enough)
                self._end = now
            if self._closing and self._open == 0:
                self._idle.set()
            again = not self._closing
        if again:
            self._send()


def _failure(call: Any) -> TritonError:
    text = str(call.details())[:300]
    if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TritonError("Timeout", f"no answer within {_REQUEST_SECONDS:g} s")
    return TritonError("Unreachable" if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) else "Failed", text)
