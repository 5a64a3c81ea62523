"""The comparer of shadow traffic: it sends each mirrored request to both revisions, and counts how
often they agree.

``python -m modelrollout.comparer.server`` with a CompareTask in MODELROLLOUT_TASK; one for each
rollout, in the model's own namespace. Its task, which the operator wrote, says what it compares;
nothing in a request (host, header, path) changes that. One body counts a few times at most: a
thousand equal requests prove nothing. It has no API access, and gives out counters only: no payload
is logged, kept or shown.

The gateway forgets the answer to a mirrored request, so every one gets 202 as soon as it is read,
and what is too much is shed, not queued. Any pod may reach its port, so that connections, time and
memory are bounded (``telemetry.http_guard``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.comparer.agreement import UnreadableError, agree, decode
from modelrollout.contract.common import TASK_ENV
from modelrollout.contract.tasks import CompareTask
from modelrollout.jobs import log
from modelrollout.telemetry.http_guard import STATUS, Exposition, GuardedServer, HttpLimits, room_for

Result = Literal[
    "agree",
    "disagree",
    # stable answered, the canary failed, hung up or was too slow: counts as a disagreement
    "canary_error",
    "stable_error",  # nothing to compare with; also a request that is wrong by itself
    # no connection to the canary: there is no pod, which says nothing about the model
    "unreachable",
    "repeated",  # the same body has been counted MOST_EQUAL times
    "unreadable",  # stable's answer is none that can be compared
    "shed",  # more than can be compared at a time
    "ignored",  # no inference request of this model
]
RESULTS: tuple[Result, ...] = (
    "agree",
    "disagree",
    "canary_error",
    "stable_error",
    "unreachable",
    "repeated",
    "unreadable",
    "shed",
    "ignored",
)
PAIRS: frozenset[Result] = frozenset(("agree", "disagree", "canary_error"))
MOST_EQUAL = 5  # times that one body counts: on a thousand of the same, any two models may agree
REMEMBERED = 1 << 16  # bodies, some 10 MB of digests
MAX_ANSWER_BYTES = 16 << 20
# The gateway's proxies are few addresses with many connections: one source may have all of them,
# but gives way to others when all are taken.
LIMITS = HttpLimits(
    connections=1024, connections_per_source=1024, connections_per_second=1000.0, request_seconds=10.0
)
# What the meaning of the body depends on; credentials and cookies of the client go no further.
_FORWARDED = ("Content-Type", "Content-Encoding", "Inference-Header-Content-Length")
_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Request:
    """A mirrored request as it goes to both revisions."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """A revision's answer with status 200."""

    body: bytes
    header_length: int | None


class BodyQueue:
    """How often each of the latest bodies has counted. It stores digests only."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._times: OrderedDict[bytes, int] = OrderedDict()

    @staticmethod
    def digest(body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=16).digest()

    def enough(self, digest: bytes) -> bool:
        """Whether it counts no more."""
        return self._times.get(digest, 0) >= MOST_EQUAL

    def count(self, digest: bytes) -> None:
        self._times[digest] = self._times.get(digest, 0) + 1
        self._times.move_to_end(digest)
        if len(self._times) > self._remembered:
            self._times.popitem(last=False)


Failure = Literal["Failed", "Unreachable"]


class InferenceClient(Protocol):
    """Asks a revision at ``host:port``; never raises for what the revision does."""

    async def infer(self, address: str, request: Request) -> ServerAnswer | Failure: ...


class HttpInferenceClient:
    """One connection for each request: a Service balances connections, and none is left to be
    closed by a pod that goes away.
    """

    def __init__(self, task: CompareTask) -> None:
        self._path = f"/v2/models/{task.model}/infer"
        timeout = aiohttp.ClientTimeout(
            total=task.timeout_seconds, sock_connect=min(3.0, task.timeout_seconds)
        )
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(force_close=True, limit=0)
        )

    async def infer(self, address: str, request: Request) -> ServerAnswer | Failure:
        try:
            async with self._session.post(
                f"http://{address}{self._path}", data=request.body, headers=request.headers
            ) as response:
                if response.status != 200:
                    return "Failed"
                body = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        return "Failed"
                length = response.headers.get(_HEADER_LENGTH)
                return ServerAnswer(bytes(body), int(length) if length is not None else None)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return "Unreachable"
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return "Failed"

    async def close(self) -> None:
        await self._session.close()


class AgreementCounters(Collector):
    """``modelrollout_shadow_total`` by result; every result exists from the start, so that its
    first count is seen.
    """

    def __init__(self, task: CompareTask) -> None:
        self._labels = [task.namespace, task.model, str(task.candidate_number), str(task.stable_number)]
        self._counts: dict[Result, int] = dict.fromkeys(RESULTS, 0)

    def __getitem__(self, result: Result) -> int:
        return self._counts[result]

    def add(self, result: Result) -> None:
        self._counts[result] += 1

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "modelrollout_shadow",
            "Mirrored requests by whether canary and stable gave the same answer.",
            labels=["namespace", "name", "canary", "stable", "result"],
        )
        for result, count in self._counts.items():
            family.add_metric([*self._labels, result], count)
        yield family


class Comparer:
    """The queue between the gateway and the revisions. Bounded: ``queue`` bodies wait, and
    ``concurrency`` are compared.
    """

    def __init__(self, task: CompareTask, client: InferenceClient) -> None:
        self._task, self._client = task, client
        self._tolerances = {o.name: o for o in task.outputs}
        self._infer = re.compile(rf"/v2/models/{re.escape(task.model)}(/versions/[^/]+)?/infer")
        self._waiting: asyncio.Queue[Request] = asyncio.Queue(task.queue)
        self._bodies = BodyQueue()
        self._reading = 0
        self.counts = AgreementCounters(task)

    def app(self) -> web.Application:
        """What the gateway mirrors to: any path and method."""
        app = web.Application(client_max_size=self._task.max_body_bytes)
        app.router.add_route("*", "/{path:.*}", self.take)
        return app

    async def take(self, request: web.Request) -> web.Response:
        """Read the request and let it wait its turn, or shed it before it costs memory."""
        if request.method != "POST" or not self._infer.fullmatch(request.path):
            self.counts.add("ignored")
        elif self._waiting.full() or self._reading >= self._task.queue:
            self.counts.add("shed")
        else:
            self._reading += 1
            try:
                body = await request.read()
                if self._bodies.enough(BodyQueue.digest(body)):
                    self.counts.add("repeated")
                    return web.Response(status=202)
                self._waiting.put_nowait(
                    Request(body, {h: request.headers[h] for h in _FORWARDED if h in request.headers})
                )
            except (asyncio.QueueFull, web.HTTPRequestEntityTooLarge):
                self.counts.add("shed")
            finally:
                self._reading -= 1
        return web.Response(status=202)

    async def work(self) -> None:
        """Compare until cancelled; run ``concurrency`` of these."""
        while True:
            request = await self._waiting.get()
            try:
                self.counts.add(self._counted(request, await self.compare(request)))
            except Exception:
                log.LOGGER.exception("a comparison failed")
                self.counts.add("unreadable")

    def _counted(self, request: Request, result: Result) -> Result:
        if result in PAIRS:
            digest = BodyQueue.digest(request.body)
            if self._bodies.enough(digest):  # others with this body were compared meanwhile
                return "repeated"
            self._bodies.count(digest)
        return result

    async def compare(self, request: Request) -> Result:
        """Send the same body to both."""
        stable, canary = await asyncio.gather(
            self._client.infer(self._task.stable_http, request),
            self._client.infer(self._task.candidate_http, request),
        )
        if not isinstance(stable, ServerAnswer):
            return "stable_error"
        if not isinstance(canary, ServerAnswer):
            return "unreachable" if canary == "Unreachable" else "canary_error"
        return await asyncio.to_thread(self._judge, canary, stable)

    def _judge(self, canary: ServerAnswer, stable: ServerAnswer) -> Result:
        try:
            expected = decode(stable.body, stable.header_length)
        except UnreadableError:
            return "unreadable"
        try:
            return (
                "agree"
                if agree(decode(canary.body, canary.header_length), expected, self._tolerances)
                else "disagree"
            )
        except UnreadableError:
            return "canary_error"


def status_app(registry: CollectorRegistry) -> web.Application:
    """Probes and counters, on a port that the gateway does not mirror to."""

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.get("/metrics", Exposition(registry).answer), web.get("/healthz", healthy)])
    return app


async def serve(
    task: CompareTask,
    host: str = "0.0.0.0",
    *,
    status_port: int = names.PORT_METRICS,
    stop: asyncio.Event | None = None,
) -> None:
    """Until SIGTERM, SIGINT or ``stop``. Raises OSError when a port is taken."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # not the main thread
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, stop.set)
    client = HttpInferenceClient(task)
    comparer = Comparer(task, client)
    workers = [asyncio.create_task(comparer.work()) for _ in range(task.concurrency)]
    # A body goes on as it came, compressed or not; access logs would name paths and addresses of
    # clients.
    registry = CollectorRegistry()
    for_gateway, for_status = room_for(LIMITS, STATUS)
    mirrored = GuardedServer(
        "comparer", comparer.app(), for_gateway, auto_decompress=False, shutdown_timeout=1.0
    )
    status = GuardedServer("status", status_app(registry), for_status, shutdown_timeout=1.0)
    for collector in (comparer.counts, mirrored, status):
        registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        await mirrored.start(host, task.port)
        await status.start(host, status_port)
        log.say(
            "the comparer listens", model=task.model, canary=task.candidate_number, stable=task.stable_number
        )
        await stop.wait()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await mirrored.stop()
        await status.stop()
        await client.close()


def main() -> int:
    """The task of this process's environment; 1 when there is none that can be read."""
    log.setup()
    try:
        task = CompareTask.model_validate_json(os.environ.get(TASK_ENV, ""))
    except ValidationError as e:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc']))}: {p['msg']}"
            for p in e.errors(include_input=False, include_url=False)
        )
        log.LOGGER.error("%s: %s; are the operator and this image of the same version?", TASK_ENV, problems)
        return 1
    asyncio.run(serve(task))
    return 0


if __name__ == "__main__":
    sys.exit(main())
