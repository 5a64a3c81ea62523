# mypy: disallow_untyped_calls=False
"""Requests at a served model, a number of them always in flight, over HTTP: a closed loop.

Requests are encoded once and sent as they are, answers are not decoded, and one thread waits for
all connections: what a client can send decides from where on its own processor is measured and not
the server. The usual clients spend more on a request than a small model does.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.http as triton_http
from numpy.typing import NDArray

from modelrollout.triton.client import TritonError
from modelrollout.triton.tensors import TensorSpec

_WARM_UP = 0.25  # share of a window before it, in which nothing is counted
# a window is prolonged to at most so many times its length, until enough requests were answered
_LONGEST = 4.0
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_READ_BYTES = 1 << 18
_END = b"\r\n\r\n"


def encoded(model: str, inputs: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> bytes:
    """One request as it goes over the wire."""
    tensors = []
    for spec in specs:
        array = np.ascontiguousarray(inputs[spec.name])
        tensor = triton_http.InferInput(spec.name, list(array.shape), spec.datatype)
        tensors.append(tensor.set_data_from_numpy(array))
    body, header_length = triton_http.InferenceServerClient.generate_request_body(tensors)
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: triton\r\nContent-Length: {len(body)}\r\n"
    if header_length is not None:
        head += f"Inference-Header-Content-Length: {header_length}\r\n"
    return head.encode() + b"\r\n" + bytes(body)


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
        """What this share of the requests kept to (nearest rank), in seconds; infinite where
        nothing was answered.
        """
        return self.latencies[math.ceil(share * len(self.latencies)) - 1] if self.latencies else math.inf


def window(address: str, requests: Sequence[bytes], in_flight: int, seconds: float, enough: int) -> Window:
    """``requests`` again and again to ``host:port`` for ``seconds``, longer until ``enough`` were
    answered; raises TritonError when one fails.
    """
    connections: list[_Connection] = []
    try:
        with selectors.DefaultSelector() as selector:
            for _ in range(in_flight):
                connections.append(_Connection(address))
                selector.register(connections[-1].socket, selectors.EVENT_READ, connections[-1])
            return _loop(selector, connections, requests, seconds, enough)
    except TimeoutError:
        raise TritonError("Timeout", f"no answer within {_ANSWER_SECONDS:g} s") from None
    except OSError as error:
        raise TritonError("Unreachable", type(error).__name__) from None
    finally:
        for connection in connections:
            connection.socket.close()


def _loop(
    selector: selectors.BaseSelector,
    connections: Sequence[_Connection],
    requests: Sequence[bytes],
    seconds: float,
    enough: int,
) -> Window:
    latencies: list[float] = []
    begin = time.perf_counter() + seconds * _WARM_UP
    for sent, connection in enumerate(connections):
        connection.send(requests[sent % len(requests)])
    sent = len(connections)
    while True:
        ready = selector.select(_ANSWER_SECONDS)
        if not ready:
            raise TimeoutError
        for key, _ in ready:
            if not key.data.received():
                continue
            now = time.perf_counter()
            if now >= begin:
                latencies.append(now - key.data.sent)
                if now - begin >= seconds * (1.0 if len(latencies) >= enough else _LONGEST):
                    return Window(now - begin, tuple(sorted(latencies)))
            key.data.send(requests[sent % len(requests)])
            sent += 1


class _Connection:
    """One request at a time."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(_ANSWER_SECONDS)
        self.sent = 0.0
        self._buffer = b""
        self._length: int | None = None  # bytes of the answer, once its head is there

    def send(self, request: bytes) -> None:
        self._buffer, self._length = b"", None
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def received(self) -> bool:
        """Take what is there; True when the answer is whole. Raises TritonError for one that is no
        success, OSError when the server is gone.
        """
        part = self.socket.recv(_READ_BYTES)
        if not part:
            raise ConnectionResetError
        self._buffer += part
        if self._length is None:
            head, separator, _ = self._buffer.partition(_END)
            if not separator:
                return False
            fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
            self._length = len(head) + len(_END) + int(fields.get(b"content-length", 0))
        if len(self._buffer) < self._length:
            return False
        status = self._buffer[9:12]
        if status != b"200":
            raise TritonError(
                "Failed",
                f"{status.decode()}: {self._buffer.partition(_END)[2][:300].decode(errors='replace')}",
            )
        return True
