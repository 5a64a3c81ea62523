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
from tritonclient.utils import deserialize_bytes_tensor

Model = Callable[[np.ndarray], np.ndarray]
_PB: Any = service_pb2  # its classes are made when it is imported


class Failure(Exception):
    """What a model raises to fail a request: Triton's status over HTTP and gRPC."""

    def __init__(self, text: str, http: int = 500, code: Any = grpc.StatusCode.INTERNAL) -> None:
        super().__init__(text)
        self.http, self.code = http, code

    @classmethod
    def invalid(cls, text: str) -> Failure:
        """As a model that refuses the values of its inputs."""
        return cls(text, 400, grpc.StatusCode.INVALID_ARGUMENT)


@dataclass
class FakeTriton:
    """One model with input x: FP32 or BYTES [shape] and output scores. Counts its requests.

    ``others``: further outputs, behind it.
    """

    model: Model
    others: dict[str, Model] = field(default_factory=dict)
    version: str = "3"
    name: str = "digits"
    datatype: str = "FP32"
    shape: tuple[int, ...] = (-1, 4)
    max_batch: int = 0
    decoupled: bool = False
    stream_statuses: bool = True  # old servers give errors in a stream as text alone
    parameters: dict[str, str] = field(default_factory=dict)  # of its configuration
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
            "inputs": [{"name": "x", "datatype": self.datatype, "shape": list(self.shape)}],
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [-1, -1]} for name in ("scores", *self.others)
            ],
        }

    def read(self, raw: bytes, shape: list[int]) -> np.ndarray:
        """The input x."""
        if self.datatype == "BYTES":
            texts: np.ndarray = deserialize_bytes_tensor(raw)  # type: ignore[no-untyped-call]
            return texts.reshape(shape)
        return np.frombuffer(raw, np.float32).reshape(shape)

    def answer(self, x: np.ndarray, first: Model) -> dict[str, np.ndarray]:
        """By output; ``first`` computes the scores."""
        models = {"scores": first} | self.others
        return {name: model(x).astype(np.float32) for name, model in models.items()}


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
                parameters = {name: {"string_value": value} for name, value in fake.parameters.items()}
                config = {"name": fake.name, "max_batch_size": fake.max_batch, "parameters": parameters}
                self.answer(200, config | {"model_transaction_policy": {"decoupled": fake.decoupled}})
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
            x = fake.read(body[length:], request["inputs"][0]["shape"])
            fake.http_rows.append(len(x))
            try:
                arrays = fake.answer(x, fake.model)
            except Failure as failure:
                self.answer(failure.http, {"error": str(failure)})
                return
            header = {
                "model_name": fake.name,
                "model_version": fake.answering_version or fake.version,
                "outputs": [
                    {
                        "name": name,
                        "datatype": "FP32",
                        "shape": list(array.shape),
                        "parameters": {"binary_data_size": array.nbytes},
                    }
                    for name, array in arrays.items()
                ],
            }
            self.answer(200, header, b"".join(array.tobytes() for array in arrays.values()))

    return Handler


def _servicer(fake: FakeTriton) -> service_pb2_grpc.GRPCInferenceServiceServicer:
    def infer(request: Any) -> Any:
        x = fake.read(request.raw_input_contents[0], list(request.inputs[0].shape))
        fake.grpc_rows.append(len(x))
        answer = _PB.ModelInferResponse(model_name=fake.name, model_version=fake.grpc_version or fake.version)
        for name, array in fake.answer(x, fake.grpc_model or fake.model).items():
            answer.outputs.add(name=name, datatype="FP32", shape=list(array.shape))
            answer.raw_output_contents.append(array.tobytes())
        return answer

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            try:
                return infer(request)
            except Failure as failure:
                context.abort(failure.code, str(failure))

        def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
            """A response to each request, then the empty final one; the latter alone where the
            model answers with no row.
            """
            for request in requests:
                try:
                    answer = infer(request)
                except Failure as failure:
                    if fake.stream_statuses:
                        context.abort(failure.code, str(failure))
                    yield _PB.ModelStreamInferResponse(error_message=str(failure))
                    continue
                if answer.raw_output_contents[0]:
                    yield _PB.ModelStreamInferResponse(infer_response=answer)
                final = _PB.ModelInferResponse(model_version=answer.model_version)
                final.parameters["triton_final_response"].bool_param = True
                yield _PB.ModelStreamInferResponse(infer_response=final)

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
