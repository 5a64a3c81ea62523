"""Many streams at once, which last, through all that takes pods away: a promotion, a scale-down, a
drained node, and a rollout whose operator is killed. None is cut.

Times are a tenth of those of production: streams of 18 s instead of 3 minutes. The environment
variable STREAMS says how many are open at any time: 200 by default, for two cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from demo.cluster import SYSTEM_NAMESPACE
from modelrollout.api import names
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway, pytest.mark.long, pytest.mark.alone]

NAME, HOST, GRPC_HOST, POLICY = "ticker", "ticker.e2e.example", "ticker-grpc.e2e.example", "e2e-ticker"
STREAMS = int(os.environ.get("STREAMS", "200"))
ANSWERS, EVERY = 9, 2.0  # a stream's, and the seconds between them
LASTS = ANSWERS * EVERY
PER_CHANNEL = 50  # gRPC streams; proxies allow a hundred or more on a connection
DRAIN_SECONDS = 180
SERVERS = f"{names.LABEL_NAME}={NAME},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
STEPS = {
    "canary": {"steps": [{"weight": 50}, {"pause": {}}]},
    # some six streams begin on each side in a second: 0.5 % more errors would take them ten minutes
    "analysis": {"initialDelay": "5s", "metrics": [{"name": "errors", "maxIncrease": 0.1}]},
    "progressDeadline": "10m",
    "scaleDownDelay": "0s",
}


class Crowd:
    """So many streams at any time, half of them over HTTP and half over gRPC; each that has ended
    makes way for another.

    ``cut``: streams that ended before their last answer, by the event of that time and how.
    ``refused``: those without any answer. ``whole``: the others, by event.
    """

    def __init__(self, stage: Stage, size: int) -> None:
        gateway = stage.cluster.target.gateway
        self._http, self._grpc, self._size = gateway.http, gateway.grpc, size
        self.event = "rest"
        self.cut: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.whole: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for event in sorted({*self.whole, *(e for e, _ in (*self.cut, *self.refused))}):
            kinds = [
                f"{n} {what} ({how})"
                for what, counter in (("cut", self.cut), ("refused", self.refused))
                for (e, how), n in sorted(counter.items())
                if e == event
            ]
            print(f"{event}: {self.whole[event]} streams whole, {', '.join(kinds) or 'none cut'}")  # noqa: T201

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
            )
            channels = [
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(
                        self._grpc,
                        # else equal channels share a connection
                        options=[
                            ("grpc.default_authority", GRPC_HOST),
                            ("grpc.use_local_subchannel_pool", 1),
                        ],
                    )
                )
                for _ in range(0, self._size // 2, PER_CHANNEL)
            ]
            kinds = [self._kind(i, session, channels) for i in range(self._size)]
            await asyncio.gather(*(self._one_after_the_other(kind) for kind in kinds))

    def _kind(
        self, index: int, session: aiohttp.ClientSession, channels: list[grpc.aio.Channel]
    ) -> Callable[[], AsyncIterator[int]]:
        if index % 2:
            return lambda: self._over_http(session)
        return lambda: self._over_grpc(channels[index // 2 // PER_CHANNEL])

    async def _one_after_the_other(self, kind: Callable[[], AsyncIterator[int]]) -> None:
        await asyncio.sleep(random.uniform(0, LASTS))  # they do not all end at once
        while not self._over.is_set():
            answers, how = 0, "the stream ended"
            try:
                async for _ in kind():
                    answers += 1
            except (aiohttp.ClientError, grpc.RpcError, RuntimeError) as error:
                code = getattr(error, "code", None)
                how = code().name if callable(code) else f"{type(error).__name__}: {error}"[:100]
            if answers == ANSWERS:
                self.whole[self.event] += 1
            elif answers:
                self.cut[self.event, how] += 1
            else:
                self.refused[self.event, how] += 1
                await asyncio.sleep(0.5)

    async def _over_http(self, session: aiohttp.ClientSession) -> AsyncIterator[int]:
        url = f"http://{self._http}/v2/models/{NAME}/generate_stream"
        headers = {"Host": HOST, "Content-Type": "application/json"}
        body = json.dumps({"x": [ANSWERS, EVERY]}).encode()
        # not with its length: Traefik cuts such a stream now and then, whatever pods do
        # (docs/reference/endpoints.md)
        async with session.post(url, data=body, headers=headers, chunked=True) as answer:
            if answer.status != 200:
                raise RuntimeError(f"HTTP {answer.status}")
            async for line in answer.content:
                if line.startswith(b"data:"):
                    response = json.loads(line.removeprefix(b"data:"))
                    if "error" in response:
                        raise RuntimeError(response["error"])
                    yield 1

    async def _over_grpc(self, channel: grpc.aio.Channel) -> AsyncIterator[int]:
        tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2])
        tensor.contents.fp32_contents.extend([ANSWERS, EVERY])
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await call.write(service_pb2.ModelInferRequest(model_name=NAME, inputs=[tensor]))
        await call.done_writing()
        async for answer in call:
            if answer.error_message:
                raise RuntimeError(answer.error_message)
            if answer.infer_response.outputs:
                yield 1


@pytest.fixture(scope="module", autouse=True)
def allowed(stage: Stage) -> Iterator[None]:
    """Its code may run, and where the gateway limits calls over gRPC, these streams last longer."""
    spec = {
        "selector": {"namespaces": [stage.namespace]},
        "allowedSources": {"code": [stage.uri("")]},
    }
    meta = {"metadata": {"name": POLICY}}
    stage.apply({"apiVersion": names.API_VERSION, "kind": "RolloutPolicy", **meta, "spec": spec})
    if os.environ.get("GATEWAY") == "envoy":
        target = {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": NAME}
        stage.apply(
            {
                "apiVersion": "gateway.envoyproxy.io/v1alpha1",
                "kind": "BackendTrafficPolicy",
                "metadata": {"name": NAME, "namespace": stage.namespace},
                "spec": {"targetRefs": [target], "timeout": {"http": {"requestTimeout": "0s"}}},
            }
        )
    yield
    stage.cluster.kubectl("delete", "rpol", POLICY, "--ignore-not-found")


def deployment(stage: Stage, version: int) -> dict[str, Any]:
    """Its pods may be on every node of the sandbox, and have a minute to end their streams in."""
    serving = {
        "replicas": 2,
        "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m"}},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "triton": {"backend": "Python", "code": "Allowed"},
        "drain": {"exitTimeout": "60s"},
    }
    traffic = stage.traffic(HOST, grpc=GRPC_HOST)
    file = f"ticker-{version}.zip"
    return stage.deployment(NAME, file, serving=serving, traffic=traffic, rollout=STEPS)


def rolled_out(stage: Stage, version: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Promoted by hand after a weight of 50; ``meanwhile``: at that weight."""
    stage.apply(deployment(stage, version))

    def waits() -> bool:
        step = (stage.get(NAME)["status"].get("rollout") or {}).get("step") or {}
        return step.get("weight") == 50 and step.get("phase") == "Paused"

    stage.until("half of the new streams go to the new version", waits, 180)
    time.sleep(LASTS)  # so that they do
    meanwhile()
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    stage.until_ready(NAME)


def pods(stage: Stage) -> list[dict[str, Any]]:
    return stage.cluster.pods(stage.namespace, SERVERS)


def at_rest(stage: Stage, replicas: int) -> None:
    """Until there are so many pods and no more, and each is ready: what had to end has ended."""

    def ready(pod: dict[str, Any]) -> bool:
        return any(c.get("ready") for c in pod["status"].get("containerStatuses") or [])

    stage.until(
        f"{replicas} pods, all ready",
        lambda: len(now := pods(stage)) == replicas and all(map(ready, now)),
        DRAIN_SECONDS,
    )


def promotion(stage: Stage) -> None:
    rolled_out(stage, 2)
    at_rest(stage, 2)


def scale_down(stage: Stage) -> None:
    stage.cluster.kubectl("scale", "mdep", NAME, "-n", stage.namespace, "--replicas=1")
    at_rest(stage, 1)
    stage.cluster.kubectl("scale", "mdep", NAME, "-n", stage.namespace, "--replicas=2")
    at_rest(stage, 2)


def drained_node(stage: Stage) -> None:
    node = pods(stage)[0]["spec"]["nodeName"]
    about = (f"--pod-selector={SERVERS}", "--delete-emptydir-data", f"--timeout={DRAIN_SECONDS}s")
    try:
        stage.cluster.kubectl("drain", node, *about, timeout=DRAIN_SECONDS + 20)
    finally:
        stage.cluster.kubectl("uncordon", node)
    at_rest(stage, 2)


def killed_operator(stage: Stage) -> None:
    def kill() -> None:
        stage.cluster.kubectl(
            "delete", "pods", "-n", SYSTEM_NAMESPACE, "--all", "--force", "--grace-period=0"
        )

    rolled_out(stage, 3, kill)
    at_rest(stage, 2)


def test_no_stream_is_cut_by_what_takes_pods_away(stage: Stage) -> None:
    stage.apply(deployment(stage, 1))
    stage.until_ready(NAME)
    at_rest(stage, 2)
    with Crowd(stage, STREAMS) as crowd:
        time.sleep(LASTS)
        for event in (promotion, scale_down, drained_node, killed_operator):
            crowd.event = event.__name__
            event(stage)
            time.sleep(LASTS)  # until the streams that had begun before its end have ended
        crowd.event = "rest"
    assert not crowd.cut, crowd.cut
    assert all(crowd.whole[event.__name__] >= STREAMS for event in (promotion, scale_down, drained_node))
