"""Probes: alive is about this process, ready about what it needs to be of use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from modelrollout.telemetry.health import HealthServer, Heartbeat, check_age, check_flag
from modelrollout.telemetry.metrics import Metrics


class World:
    def __init__(self) -> None:
        self.time = 0.0
        self.worker = Heartbeat(lambda: self.time)
        self.api = Heartbeat(lambda: self.time)
        self.synced = False
        self.url = ""

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.text()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    server = HealthServer(
        Metrics().registry,
        alive={"workers": check_age(world.worker.age, 120, "no worker moved")},
        ready={
            "watch": check_flag(lambda: world.synced, "not synced yet"),
            "api": check_age(world.api.age, 60, "the API server is silent"),
        },
        clock=lambda: world.time,
    )
    world.url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    yield world
    await server.stop()


async def test_ready_follows_the_watch_and_the_api_server_and_alive_does_not(world: World) -> None:
    assert await world.get("/healthz") == (200, "ok\n")
    assert await world.get("/readyz") == (503, "watch: not synced yet\n")
    world.synced = True
    assert await world.get("/readyz") == (200, "ok\n")
    world.time = 61
    world.worker.beat()
    await asyncio.sleep(1.1)  # the event loop beats for itself
    assert await world.get("/readyz") == (503, "api: the API server is silent: 61 s, limit 60 s\n")
    assert (await world.get("/healthz"))[0] == 200
    world.api.beat()
    assert (await world.get("/readyz"))[0] == 200


async def test_stuck_workers_are_not_alive_although_http_answers(world: World) -> None:
    world.time = 121
    await asyncio.sleep(1.1)
    assert await world.get("/healthz") == (503, "workers: no worker moved: 121 s, limit 120 s\n")


async def test_an_event_loop_that_does_not_turn_is_not_alive(world: World) -> None:
    world.time = 11  # and it did not come round to beat since
    status, text = await world.get("/healthz")
    assert status == 503
    assert "event loop: last turn: 11 s" in text


async def test_a_broken_check_is_a_failed_check() -> None:
    def broken() -> str | None:
        raise KeyError("secret")

    server = HealthServer(Metrics().registry, alive={"x": broken}, ready={})
    world = World()
    world.url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    assert await world.get("/healthz") == (503, "x: KeyError\n")
    await server.stop()


async def test_strangers_keep_no_probe_out(world: World) -> None:
    """A probe that fails restarts the operator."""
    port, strangers = int(world.url.rpartition(":")[2]), []
    for i in range(300):
        _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.0.{2 + i % 10}", 0))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
        strangers.append(writer)
        if i % 30 == 0:
            assert (await world.get("/healthz"))[0] == 200
    _, text = await world.get("/metrics")
    assert 'modelrollout_http_connections_closed_total{reason="total",server="status"} 0.0' not in text
    for writer in strangers:
        writer.transport.abort()


async def test_metrics_are_served(world: World) -> None:
    status, text = await world.get("/metrics")
    assert status == 200
    assert "modelrollout_queue_depth 0.0" in text
    assert (await world.get("/other"))[0] == 404
