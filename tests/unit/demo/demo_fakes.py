"""A KServe v2 server, HTTP and gRPC, and a feedback service, all in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from demo.data import CLASSES, PIXELS

Choose = Callable[[int], str]
"""Version that answers the n-th request; raises to refuse it."""


class RefusedError(Exception):
    """The fake answers with an error."""


@dataclass
class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The class of an image is the index of its brightest pixel among the first ten."""

    choose: Choose = lambda _: "1"
    delay: float = 0.0
    seen: int = 0
    hosts: set[str] = field(default_factory=set)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    feedback_refusals: int = 0

    async def _answer(self, image: bytes) -> tuple[str, list[float]]:
        self.seen += 1
        version = self.choose(self.seen)
        await asyncio.sleep(self.delay)
        pixels = np.frombuffer(image, "<f4")
        assert len(pixels) == PIXELS
        return version, [float(p) for p in pixels[:CLASSES]]

    async def infer(self, request: web.Request) -> web.Response:
        self.hosts.add(request.headers["Host"])
        body = await request.read()
        length = int(request.headers["Inference-Header-Content-Length"])
        head = json.loads(body[:length])
        try:
            version, logits = await self._answer(body[length:])
        except RefusedError as e:
            return web.Response(status=503, text=str(e))
        output = {"name": "logits", "datatype": "FP32", "shape": [1, CLASSES], "data": logits}
        return web.json_response(
            {"id": head["id"], "model_name": "digits", "model_version": version, "outputs": [output]}
        )

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            version, logits = await self._answer(request.raw_input_contents[0])
        except RefusedError as e:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        raw = np.array(logits, "<f4").tobytes()
        return service_pb2.ModelInferResponse(
            model_name="digits", model_version=version, id=request.id, raw_output_contents=[raw]
        )

    async def take_feedback(self, request: web.Request) -> web.Response:
        if self.feedback_refusals:
            self.feedback_refusals -= 1
            return web.Response(status=503, text="not now")
        self.tokens.add(request.headers.get("Authorization", ""))
        self.feedback += (await request.json())["items"]
        return web.json_response({})

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[int, int]]:
        """Ports for HTTP and gRPC, on loopback."""
        app = web.Application()
        app.router.add_post("/v2/models/digits/infer", self.infer)
        app.router.add_post("/v1/feedback", self.take_feedback)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        http_port = runner.addresses[0][1]
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        grpc_port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield http_port, grpc_port
        finally:
            await server.stop(None)
            await runner.cleanup()
