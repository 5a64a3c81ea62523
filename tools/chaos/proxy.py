"""A proxy that does to each call what a rule says: in front of the API server for one operator, and
in front of Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from chaos.treatments import GONE_EVENT, PASS, Call, PassAll, Rule, Treatment

T = TypeVar("T")
LOOK_SECONDS = 0.2  # how soon an open stream feels a new rule
LOGGED = 20_000
_HOP = frozenset(
    {"host", "connection", "transfer-encoding", "content-length", "accept-encoding", "keep-alive", "upgrade"}
)


class FaultProxy:
    """Listens on loopback in plain HTTP and passes calls on to ``upstream``; credentials are the
    caller's own.

    ``rule`` may be replaced at any time from any thread. ``calls`` is the list of (Unix time, call,
    status), 0 where no answer was given.
    """

    def __init__(self, upstream: str, trust: ssl.SSLContext | None = None) -> None:
        self.rule: Rule = PassAll()
        self.calls: list[tuple[float, Call, int]] = []
        self.port = 0
        self._upstream, self._trust = upstream.rstrip("/"), trust
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(
            ssl=self._trust if self._trust is not None else True, limit=0, force_close=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None, connect=10)
        )
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
        if self._session:
            await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call = Call(request.method, request.rel_url.raw_path, request.rel_url.raw_query_string)
        if call.is_watch:
            return await self._stream(request, call)
        treatment = self.rule(call)
        if treatment.delay:
            await asyncio.sleep(treatment.delay)
        if treatment.refusal:
            self._log(call, treatment.refusal.status)
            return web.Response(
                status=treatment.refusal.status,
                body=treatment.refusal.body,
                headers=dict(treatment.refusal.headers),
            )
        try:
            status, headers, body = await self._forward(request)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return self._hang_up(request, call)
        if treatment.killed:
            treatment.killed()
        if treatment.killed or treatment.cut:
            return self._hang_up(request, call)
        self._log(call, status)
        return web.Response(
            status=status, headers=headers, body=treatment.rewrite(body) if treatment.rewrite else body
        )

    async def _forward(self, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        assert self._session is not None
        data = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        async with self._session.request(
            request.method,
            self._upstream + str(request.rel_url),
            headers=headers,
            data=data or None,
            allow_redirects=False,
        ) as answer:
            return answer.status, _headers(answer), await answer.read()

    async def _stream(self, request: web.Request, call: Call) -> web.StreamResponse:
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        started, stalled, rest = time.monotonic(), False, b""
        counted: Rule | None = None
        treatment = PASS
        try:
            async with self._session.get(self._upstream + str(request.rel_url), headers=headers) as answer:
                response = web.StreamResponse(status=answer.status, headers=_headers(answer))
                await response.prepare(request)
                while request.transport is not None and not request.transport.is_closing():
                    # once for each stream and rule: a stream that goes on is one call
                    if self.rule is not counted:
                        counted = self.rule
                        treatment = counted(call)
                    if stalled and not treatment.stall:
                        return response
                    stalled |= treatment.stall
                    try:
                        chunk = await asyncio.wait_for(answer.content.readany(), LOOK_SECONDS)
                    except TimeoutError:
                        chunk = None
                    if chunk == b"":
                        return response
                    if chunk and not stalled:
                        whole, _, rest = (rest + chunk).rpartition(b"\n")
                        if whole:
                            await response.write(whole + b"\n")
                    if treatment.end_after is not None and time.monotonic() - started >= treatment.end_after:
                        if treatment.gone:
                            await response.write(GONE_EVENT)
                        return response
                return response
        except (aiohttp.ClientError, TimeoutError, OSError):
            return self._hang_up(request, call)
        finally:
            self._log(call, 0)

    def _hang_up(self, request: web.Request, call: Call) -> web.Response:
        """The caller sees a connection that ends without an answer."""
        self._log(call, 0)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)

    def _log(self, call: Call, status: int) -> None:
        if len(self.calls) < LOGGED:
            self.calls.append((time.time(), call, status))


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}


class Proxies:
    """Several proxies on one event loop in a thread of its own. A context manager."""

    def __init__(self, *proxies: FaultProxy) -> None:
        self._proxies = proxies
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> Proxies:
        self._thread.start()
        for proxy in self._proxies:
            self._do(proxy.start())
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            with contextlib.suppress(Exception):
                self._do(proxy.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


__all__ = ["FaultProxy", "Proxies", "Treatment"]
