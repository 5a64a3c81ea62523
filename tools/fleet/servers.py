"""What models are measured by, over HTTP: a Prometheus that counts a steady stream of good requests
for whatever service is asked about, and a Triton that says its version at every pod's address.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from fleet import FleetError
from fleet.objects import OBJECTIVE_SECONDS
from modelrollout.api import names

REQUESTS_PER_SECOND = 200.0
TRITON_VERSION = "2.74.0"  # of the chart's image; one with known flaws is a write and an event more
_SERVICES = re.compile(r'service=~"([^"]*)"')


@asynccontextmanager
async def prometheus(now: Callable[[], float] = time.time) -> AsyncIterator[str]:
    """The URL of a Prometheus whose counters begin now."""
    began = now()

    def counters(promql: str, at: float) -> list[tuple[dict[str, str], float]]:
        return answer(promql, REQUESTS_PER_SECOND * max(0.0, at - began), at)

    async def instant(request: web.Request) -> web.Response:
        at = now()
        found = counters((await _parameters(request))["query"], at)
        return _data("vector", [{"metric": labels, "value": [at, str(value)]} for labels, value in found])

    async def over_time(request: web.Request) -> web.Response:
        asked = await _parameters(request)
        at, end, step = float(asked["start"]), float(asked["end"]), float(asked["step"].rstrip("s"))
        rows: dict[tuple[tuple[str, str], ...], list[Any]] = {}
        while at <= end:
            for labels, value in counters(asked["query"], at):
                rows.setdefault(tuple(sorted(labels.items())), []).append([at, str(value)])
            at += step
        return _data("matrix", [{"metric": dict(labels), "values": row} for labels, row in rows.items()])

    async def targets(_: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": {"activeTargets": [], "droppedTargets": []}})

    async def loaded(_: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": {"yaml": ""}})

    app = web.Application()
    for path, handler in (("query", instant), ("query_range", over_time)):
        app.router.add_route("*", f"/api/v1/{path}", handler)
    app.router.add_get("/api/v1/targets", targets)
    app.router.add_get("/api/v1/status/config", loaded)
    async with _served(app, "127.0.0.1", 0) as url:
        yield url


@asynccontextmanager
async def triton() -> AsyncIterator[str]:
    """The address of a server: every pod has this one, of the loopback network, which nothing else
    listens at.
    """

    async def metadata(_: web.Request) -> web.Response:
        return web.json_response({"name": "triton", "version": TRITON_VERSION})

    app = web.Application()
    app.router.add_get("/v2", metadata)
    address = f"127.86.{os.getpid() % 256}.1"  # of each run its own
    async with _served(app, address, names.PORT_HTTP):
        yield address


def answer(promql: str, requests: float, at: float) -> list[tuple[dict[str, str], float]]:
    """The series of a query for Traefik's counters, as (labels, value): for each HTTP service that
    it names so many ``requests``, all fast and good, scraped at ``at``.
    """
    asked = _SERVICES.search(promql)
    services = [s for s in asked[1].split("|") if "-http-" in s] if asked else []
    kinds = [{"le": repr(OBJECTIVE_SECONDS)}, {"le": "+Inf"}] if "_bucket{" in promql else [{"code": "200"}]
    series: list[tuple[dict[str, str], float]] = []
    for service in services:
        process = {"service": service, "instance": "gateway:8080"}
        series += [({**process, **kind, "reading": "count"}, requests) for kind in kinds]
        series.append(({**process, "reading": "scraped"}, at))
    return series


async def _parameters(request: web.Request) -> dict[str, str]:
    return {**request.query, **{k: str(v) for k, v in (await request.post()).items()}}


def _data(kind: str, result: list[Any]) -> web.Response:
    return web.json_response({"status": "success", "data": {"resultType": kind, "result": result}})


@asynccontextmanager
async def _served(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as e:
            raise FleetError(f"{host}:{port} cannot be listened at: {e.strerror}; end what does so") from e
        yield f"http://{runner.addresses[0][0]}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
