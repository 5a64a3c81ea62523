"""A gRPC stream that is open when its version goes: it has answers until its pod gets its signal,
ends in time, and the next stream goes to the version that serves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from modelrollout.config import DrainConfig, GatewayMetrics
from tests.e2e.conftest import Stage
from tests.e2e.models import FEATURES

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME, HOST, GRPC_HOST = "streamed", "streamed.e2e.example", "streamed-grpc.e2e.example"
EXIT_TIMEOUT = 5  # as the release of these tests has it
SLACK = 10.0  # until the operator and the kubelet have acted
# of a stream whose pod was killed: behind Traefik, and where nothing is between
ENDS = ("INTERNAL", "UNAVAILABLE")


class Event(NamedTuple):
    """What a stream was answered, and when: a version, an error in the stream, or its end."""

    at: float
    version: str = ""
    error: str = ""
    status: str = ""


class Stream:
    """Requests on one stream, five a second, until it ends. ``polite``: it closes its side at the
    first error.
    """

    def __init__(self, address: str, *, polite: bool) -> None:
        self._polite = polite
        self.events: list[Event] = []
        self._closed = threading.Event()
        options = [("grpc.default_authority", GRPC_HOST)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _ask(self) -> Iterator[Any]:
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="x", datatype="FP32", shape=[1, FEATURES]
        )
        tensor.contents.fp32_contents.extend([0.5] * FEATURES)
        while not self._closed.wait(0.2):
            yield service_pb2.ModelInferRequest(model_name=NAME, inputs=[tensor])

    def _read(self) -> None:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            for answer in stub.ModelStreamInfer(self._ask()):
                version = answer.infer_response.model_version
                self.events.append(Event(time.monotonic(), version, answer.error_message))
                if answer.error_message and self._polite:
                    self._closed.set()
            self.events.append(Event(time.monotonic(), status="OK"))
        except grpc.RpcError as e:
            failed: Any = e
            self.events.append(Event(time.monotonic(), status=failed.code().name))

    def first(self) -> Event:
        end = time.monotonic() + 20
        while not self.events and time.monotonic() < end:
            time.sleep(0.05)
        return self.events[0]

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=10)
        self._channel.close()


def opened(stage: Stage, number: int | None = None, *, polite: bool = False) -> Stream:
    """A stream, on that version if one is named."""
    for _ in range(40):
        stream = Stream(stage.cluster.target.gateway.grpc, polite=polite)
        if number is None or stream.first().version == str(number):
            return stream
        stream.close()
    raise AssertionError(f"no stream of 40 went to version {number}")


@pytest.mark.long
def test_a_stream_on_an_aborted_canary_ends_in_time_and_the_next_one_is_stables(stage: Stage) -> None:
    def deployment(file: str) -> dict[str, Any]:
        rollout = {"canary": {"steps": [{"weight": 50}, {"pause": {}}]}, "progressDeadline": "10m"}
        traffic = stage.traffic(HOST, grpc=GRPC_HOST)
        errors = {"name": "errors", "maxIncrease": 0.5, "minSamples": 1_000_000}
        return stage.deployment(
            NAME, file, traffic=traffic, rollout={**rollout, "analysis": {"metrics": [errors]}}
        )

    stage.apply(deployment("good.onnx"))
    stage.until_ready(NAME)
    stage.apply(deployment("better.onnx"))
    stage.until(
        "the canary has its weight",
        lambda: ((stage.get(NAME)["status"].get("rollout") or {}).get("step") or {}).get("weight") == 50,
    )
    streams = [opened(stage, 2, polite=polite) for polite in (False, True)]
    try:
        begun = time.monotonic()
        stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
        stage.until("it is aborted", lambda: stage.get(NAME)["status"]["rollout"]["outcome"] == "Aborted")
        drain, settle = DrainConfig(exit_timeout_seconds=EXIT_TIMEOUT), GatewayMetrics().settle_seconds
        time.sleep(settle)
        for _ in range(10):
            other = opened(stage)
            assert other.first().version == "1" and not other.first().error
            other.close()
        grace = drain.pre_stop_seconds + drain.exit_timeout_seconds + drain.margin_seconds
        stage.until(
            "both have ended", lambda: all(s.events[-1].status for s in streams), settle + grace + SLACK
        )
    finally:
        for stream in streams:
            stream.close()
    stubborn, polite = streams
    assert stubborn.events[-1].status in ENDS and polite.events[-1].status == "OK"
    for stream in streams:
        failed = next(e for e in stream.events if e.error or e.status)
        assert failed.error, "the stream says so before it ends"
        assert {e.version for e in stream.events if e.at < failed.at} == {"2"}
        assert failed.at - begun >= drain.pre_stop_seconds, "it has answers until its pod gets its signal"
