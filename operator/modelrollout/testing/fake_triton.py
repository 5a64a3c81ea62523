"""A server in this process that speaks enough of Triton's two protocols (KServe v2, binary tensors)
to be asked by the real clients.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

Model = Callable[[np.ndarray], np.ndarray]


@dataclass
class FakeTriton:
    """One model with input x: FP32 [shape] and output scores. Counts its requests."""

    model: Model
    version: str = "3"
    name: str = "digits"
    shape: tuple[int, ...] = (-1, 4)
    max_batch: int = 0
    grpc_model: Model | None = None
    answering_version: str | None = None
    grpc_version: str | None = None
    error: tuple[int, str] | None = None  # of infer
    failures: int = 10**9  # how often ``error`` is answered
    metadata_error: tuple[int, str] | None = None
    delay: float = 0.0
    http_rows: list[int] = field(default_factory=list)
    grpc_rows: list[int] = field(default_factory=list)
    http: str = ""
    grpc: str = ""

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": list(self.shape)}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
        }


def _handler(fake: FakeTriton) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, header: Any, tail: bytes = b"") -> None:
            head = json.dumps(header).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(head) + len(tail)))
            if tail:
                self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.end_headers()
            self.wfile.write(head + tail)

        def do_GET(self) -> None:
            if fake.metadata_error:
                self.answer(fake.metadata_error[0], {"error": fake.metadata_error[1]})
            elif self.path == f"/v2/models/{fake.name}":
                self.answer(200, fake.metadata())
            elif self.path == f"/v2/models/{fake.name}/config":
                self.answer(200, {"name": fake.name, "max_batch_size": fake.max_batch})
            else:
                self.answer(404, {"error": f"Request for unknown model: '{self.path}' is not found"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            request = json.loads(body[:length])
            time.sleep(fake.delay)
            if fake.error and fake.failures > 0:
                fake.failures -= 1
                self.answer(fake.error[0], {"error": fake.error[1]})
                return
            x = np.frombuffer(body[length:], np.float32).reshape(request["inputs"][0]["shape"])
            fake.http_rows.append(len(x))
            scores = fake.model(x).astype(np.float32)
            output = {
                "name": "scores",
                "datatype": "FP32",
                "shape": list(scores.shape),
                "parameters": {"binary_data_size": scores.nbytes},
            }
            header = {
                "model_name": fake.name,
                "model_version": fake.answering_version or fake.version,
                "outputs": [output],
            }
            self.answer(200, header, scores.tobytes())

    return Handler


def _servicer(fake: FakeTriton) -> service_pb2_grpc.GRPCInferenceServiceServicer:
    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(
                list(request.inputs[0].shape)
            )
            fake.grpc_rows.append(len(x))
            scores = (fake.grpc_model or fake.model)(x).astype(np.float32)
            answer = service_pb2.ModelInferResponse(  # type: ignore[attr-defined]
                model_name=fake.name, model_version=fake.grpc_version or fake.version
            )
            answer.outputs.add(name="scores", datatype="FP32", shape=list(scores.shape))
            answer.raw_output_contents.append(scores.tobytes())
            return answer

    return Servicer()


@contextmanager
def serving(fake: FakeTriton) -> Iterator[FakeTriton]:
    """The server on two free ports of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    rpc = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_servicer(fake), rpc)  # type: ignore[no-untyped-call]
    fake.http = f"127.0.0.1:{server.server_port}"
    fake.grpc = f"127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}"
    rpc.start()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        rpc.stop(None)
