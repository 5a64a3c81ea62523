"""/metrics, /healthz and /readyz.

Liveness is about this process only: the event loop turns and the workers move. An API server that
is away is no reason to restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from modelrollout.telemetry.http_guard import STATUS, Exposition, GuardedServer
from modelrollout.telemetry.redaction import redact

Check = Callable[[], str | None]  # None when well, else the reason
BEAT_SECONDS = 1.0


class Heartbeat:
    """Proof of life: somebody beats, somebody else looks how long ago that was (seconds)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """I am alive."""
        self._last = self._clock()

    def age(self) -> float:
        """Seconds since the last beat, or since the start."""
        return self._clock() - self._last


def check_age(age: Callable[[], float], limit: float, what: str) -> Check:
    """Fails while ``age()`` is above ``limit`` seconds."""

    def check() -> str | None:
        seconds = age()
        return f"{what}: {seconds:.0f} s, limit {limit:.0f} s" if seconds > limit else None

    return check


def check_flag(done: Callable[[], bool], what: str) -> Check:
    """Fails while ``done()`` is false."""
    return lambda: None if done() else what


class HealthServer:
    """Serves the three paths from the event loop whose life it reports, which it beats for itself.

    Use e.g. ``alive={"workers": within(queue.stalled_for, 120, "no worker moved")}`` and
    ``ready={"watch": once(synced, "not synced yet"), "api": within(kube.silent_for, 60, "the API
    server is silent")}``.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        alive: Mapping[str, Check],
        ready: Mapping[str, Check],
        loop_limit: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._loop = Heartbeat(clock)
        self._alive = {"event loop": check_age(self._loop.age, loop_limit, "last turn"), **alive}
        self._ready = {**self._alive, **ready}
        self._server: GuardedServer | None = None
        self._beating: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """The three paths."""
        app = web.Application()
        app.router.add_get("/healthz", self._answer(self._alive))
        app.router.add_get("/readyz", self._answer(self._ready))
        app.router.add_get("/metrics", Exposition(self._registry, CONTENT_TYPE_LATEST).answer)
        return app

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (that was chosen when ``port`` is 0)."""
        self._beating = asyncio.create_task(self._beat())
        self._server = GuardedServer("status", self.application(), STATUS)
        self._registry.register(self._server)
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Listen no more."""
        if self._beating:
            self._beating.cancel()
        if self._server:
            await self._server.stop()
            self._registry.unregister(self._server)

    async def _beat(self) -> None:
        while True:
            self._loop.beat()
            await asyncio.sleep(BEAT_SECONDS)

    @staticmethod
    def _answer(checks: Mapping[str, Check]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            failed = [f"{name}: {reason}" for name, check in checks.items() if (reason := _run(check))]
            return web.Response(status=503 if failed else 200, text=redact("\n".join(failed) or "ok") + "\n")

        return answer


def _run(check: Check) -> str | None:
    try:
        return check()
    except Exception as e:  # a broken check is a failed check, not a broken page
        return type(e).__name__
