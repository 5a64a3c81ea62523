"""HTTP for strangers: whatever they send or leave out, others are answered, and what they hold is
bounded.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modelrollout.telemetry import http_guard
from modelrollout.telemetry.http_guard import Exposition, GuardedServer, HttpLimits, room_for
from modelrollout.telemetry.rate import Rate

LIMITS = HttpLimits(
    connections=64,
    connections_per_source=32,
    connections_per_second=10_000,
    head_seconds=30,
    idle_seconds=60,
    request_seconds=30,
)
HALF = b"POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
PATIENCE = 20.0  # seconds that a test waits for what must happen


class App:
    """``/echo`` answers with the length of the body, ``/held`` when ``gate`` opens, without
    reading.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began = 0

    def made(self) -> web.Application:
        app = web.Application(client_max_size=1 << 16)
        app.add_routes([web.post("/echo", self.echo), web.post("/held", self.held)])
        return app

    async def echo(self, request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def held(self, _: web.Request) -> web.Response:
        self.began += 1
        await self.gate.wait()
        return web.Response(text="done")


class Client:
    """A raw connection from an address of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ended(self) -> bytes:
        """What the server said until it closed the connection."""
        said = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                while chunk := await self.reader.read(1 << 16):
                    said += chunk
        except ConnectionError:
            pass
        return bytes(said)

    async def status(self) -> int:
        async with asyncio.timeout(PATIENCE):
            line = await self.reader.readline()
        return int(line.split()[1])

    async def ask(self, path: str = "/echo", body: bytes = b"hello") -> int:
        self.writer.write(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
        )
        status = await self.status()
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(
                next(
                    line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                ).split(b":")[1]
            )
            await self.reader.readexactly(length)
        return status


class World:
    def __init__(self, server: GuardedServer, port: int, app: App) -> None:
        self.server, self.port, self.app = server, port, app
        self.clients: list[Client] = []

    async def connect(self, source: str = "127.0.0.1", send: bytes = b"") -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0)))
        self.clients.append(client)
        if send:
            client.writer.write(send)
        return client


@asynccontextmanager
async def world(limits: HttpLimits = LIMITS, **changes: float) -> AsyncIterator[World]:
    app = App()
    server = GuardedServer("test", app.made(), replace(limits, **changes), shutdown_timeout=0.1)
    made = World(server, await server.start("127.0.0.1", 0), app)
    try:
        yield made
    finally:
        app.gate.set()
        for client in made.clients:
            client.writer.transport.abort()
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  the server has no event for it
            await asyncio.sleep(0.005)


async def test_a_real_client_is_answered_while_strangers_hold_all_that_they_can() -> None:
    async with world() as w:
        sources = [f"127.0.0.{i}" for i in range(2, 12)]
        friend = await w.connect("127.0.0.99")
        assert await friend.ask() == 200
        for i in range(500):
            await w.connect(sources[i % len(sources)], HALF)
            if i % 100 == 0:
                assert await friend.ask() == 200, "on its connection"
        assert await (await w.connect("127.0.0.98")).ask() == 200, "on a new one"
        assert await friend.ask() == 200
        await until(lambda: sum(w.server.closed.values()) >= 502 - LIMITS.connections)
        assert w.server.open <= LIMITS.connections
        assert w.server.closed["total"] + w.server.closed["source"] >= 502 - LIMITS.connections


async def test_one_source_cannot_have_more_than_its_share_and_is_told() -> None:
    async with world() as w:
        for _ in range(LIMITS.connections_per_source):
            await w.connect("127.0.0.2", HALF)
        await until(lambda: w.server.open == LIMITS.connections_per_source)
        refused = await w.connect("127.0.0.2")
        said = await refused.ended()
        assert (
            said.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in said and b"too many connections" in said
        )
        assert w.server.closed["source"] == 1 and w.server.open == LIMITS.connections_per_source


async def test_behind_one_address_the_newest_takes_the_place_of_who_has_long_asked_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_guard, "TURN_SECONDS", 0.0)
    async with world(connections_per_source=3) as w:
        served = await w.connect("127.0.0.2")
        assert await served.ask() == 200
        silent = [await w.connect("127.0.0.2", HALF) for _ in range(2)]
        await until(lambda: w.server.open == 3)
        assert await (await w.connect("127.0.0.2")).ask() == 200
        assert await silent[0].ended() == b"", "the one that never asked anything, and the oldest of these"
        assert await served.ask() == 200


async def test_a_request_that_is_worked_on_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "TURN_SECONDS", 0.0)
    async with world(connections_per_source=2, connections=2) as w:
        working = [asyncio.create_task((await w.connect("127.0.0.2")).ask("/held")) for _ in range(2)]
        await until(lambda: w.app.began == 2)
        assert (await (await w.connect("127.0.0.2")).ended()).startswith(b"HTTP/1.1 503")
        assert (await (await w.connect("127.0.0.3")).ended()).startswith(b"HTTP/1.1 503")
        w.app.gate.set()
        assert await asyncio.gather(*working) == [200, 200]


async def test_who_leaves_holds_the_place_until_the_request_is_done() -> None:
    """Else one would open, ask and go, and the work of thousands would be going on."""
    async with world(connections_per_source=4) as w:
        for _ in range(4):
            client = await w.connect(
                "127.0.0.2", b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            )
            began = w.app.began
            await until(lambda began=began: w.app.began > began)  # type: ignore[misc]
            client.writer.transport.abort()
        assert (await (await w.connect("127.0.0.2")).ended()).startswith(b"HTTP/1.1 503")
        w.app.gate.set()
        await until(lambda: w.server.open == 0)
        assert await (await w.connect("127.0.0.2")).ask() == 200


async def test_new_connections_of_a_source_have_a_rate() -> None:
    async with world(connections_per_source=5, connections_per_second=0.001) as w:
        for _ in range(5):
            assert await (await w.connect("127.0.0.2")).ask() == 200
        assert (await (await w.connect("127.0.0.2")).ended()).startswith(b"HTTP/1.1 503")
        assert w.server.closed["rate"] == 1
        assert await (await w.connect("127.0.0.3")).ask() == 200


@pytest.mark.parametrize("sent", [b"", b"POST", HALF, b"\r\n\r\n", HALF + b"x" * 5000])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async with world(head_seconds=0.2) as w:
        client = await w.connect(send=sent)
        await client.ended()
        await until(lambda: w.server.open == 0)
        assert w.server.closed["head_time"] == 1


async def test_a_head_that_drips_gets_no_more_time() -> None:
    async with world(head_seconds=0.3) as w:
        client = await w.connect(send=HALF)
        ended = asyncio.create_task(client.ended())
        began = asyncio.get_running_loop().time()
        while not ended.done():
            client.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began < PATIENCE / 2
        assert w.server.closed["head_time"] == 1


async def test_the_second_head_of_a_connection_has_the_same_limit() -> None:
    async with world(head_seconds=0.3) as w:
        client = await w.connect()
        assert await client.ask() == 200
        client.writer.write(HALF)
        await client.ended()
        assert w.server.closed == {**dict.fromkeys(http_guard.REASONS, 0), "head_time": 1}


async def test_between_requests_there_is_another_limit() -> None:
    async with world(head_seconds=0.2, idle_seconds=0.8) as w:
        client, loop = await w.connect(), asyncio.get_running_loop()
        assert await client.ask() == 200
        began = loop.time()
        await client.ended()
        assert loop.time() - began > 0.5, "not the limit on heads"
        assert w.server.closed["idle"] == 1


async def test_a_head_as_large_as_real_ones_passes_and_a_larger_one_is_cut() -> None:
    async with world() as w:
        token = b"x" * 7900
        client = await w.connect(
            send=(
                b"POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nX-More: %s\r\nContent-Length:"
                b" 0\r\n\r\n"
            )
            % (token, token)
        )
        assert await client.status() == 200
        huge = await w.connect(
            send=b"POST /echo HTTP/1.1\r\nHost: x\r\n"
            + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 7900) for i in range(60))
        )
        await huge.ended()
        assert w.server.closed["head_size"] == 1
        many = await w.connect(
            send=b"POST /echo HTTP/1.1\r\nHost: x\r\n"
            + b"".join(b"X-%d: 1\r\n" % i for i in range(500))
            + b"\r\n"
        )
        assert (await many.ended()).startswith(b"HTTP/1.0 400")


async def test_a_slow_body_ends_with_408() -> None:
    async with world(request_seconds=0.3) as w:
        client = await w.connect(send=b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        status = asyncio.create_task(client.status())
        while not status.done():
            client.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert await status == 408
        assert b"within 0.3 s" in await client.ended()
        await until(lambda: w.server.open == 0)


async def test_a_time_limit_of_the_handlers_own_is_not_taken_for_ours() -> None:
    async def fails(_: web.Request) -> web.Response:
        raise TimeoutError

    app = web.Application()
    app.add_routes([web.get("/", fails)])
    server = GuardedServer("test", app, LIMITS)
    port = await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
        assert response.status == 504
    await server.stop()


@pytest.mark.parametrize("path", ["/echo", "/nothing"])
async def test_a_chunked_body_without_end_is_cut(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is read by the limit on bodies, where it is read no more after a while in which the
    sender may read the answer.
    """
    monkeypatch.setattr(http_guard, "LINGER_SECONDS", 0.3)
    async with world() as w:
        client = await w.connect(
            send=b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
        )
        status = asyncio.create_task(client.status())
        ended = asyncio.create_task(flood(client, b"4000\r\n" + b"x" * 0x4000 + b"\r\n"))
        assert await status == (413 if path == "/echo" else 404)
        async with asyncio.timeout(PATIENCE):
            await ended
        await until(lambda: w.server.open == 0)


async def flood(client: Client, chunk: bytes) -> int:
    """Send until the server has enough; returns how many bytes went."""
    sent = 0
    try:
        while not client.writer.transport.is_closing():
            client.writer.write(chunk)
            await client.writer.drain()
            sent += len(chunk)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    return sent


async def test_a_body_that_is_not_read_takes_little_memory() -> None:
    async with world() as w:
        client = await w.connect(send=b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        await until(lambda: w.app.began == 1)
        (protocol,) = w.server._connections
        sending = asyncio.create_task(flood(client, b"x" * 65536))
        await until(lambda: not protocol.transport.is_reading())  # type: ignore[attr-defined]
        pending = protocol._current_request.content.total_raw_bytes  # type: ignore[attr-defined]
        assert pending <= 5 * http_guard.CHUNK_BYTES
        client.writer.transport.abort()
        await sending


async def test_pipelined_requests_are_not_queued() -> None:
    one = b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000
    async with world() as w:
        client = await w.connect(send=one)
        await until(lambda: w.app.began == 1)
        (protocol,) = w.server._connections
        sending = asyncio.create_task(flood(client, one))
        await until(lambda: protocol._close)  # type: ignore[attr-defined]
        w.app.gate.set()
        assert (await client.ended()).count(b"HTTP/1.1 200") == 1, (
            "what it asked first is answered, and then the connection ends"
        )
        await sending
        assert w.app.began == 1


async def test_a_few_requests_in_one_packet_are_answered() -> None:
    async with world() as w:
        client = await w.connect(send=b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi" * 3)
        for _ in range(3):
            assert await client.status() == 200
            async with asyncio.timeout(PATIENCE):
                await client.reader.readuntil(b"\r\n\r\n")
                await client.reader.readexactly(1)


async def test_what_was_closed_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    async with world(connections_per_source=2) as w:
        registry.register(w.server)
        for _ in range(2):
            await w.connect("127.0.0.2", HALF)
        await until(lambda: w.server.open == 2)
        for _ in range(5):
            await (await w.connect("127.0.0.2")).ended()
        text = generate_latest(registry).decode()
    assert 'modelrollout_http_connections{server="test"} 2.0' in text
    assert 'modelrollout_http_connections_closed_total{reason="source",server="test"} 5.0' in text
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said == [
        "a connection from 127.0.0.2 was closed: its source had as many connections as one may have"
    ]


async def test_slow_readers_of_metrics_are_cut_off_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("large", "Much.", ["x"], registry=registry)
    for i in range(20_000):
        gauge.labels("y" * 300 + str(i)).set(1)
    app = web.Application()
    app.add_routes([web.get("/metrics", Exposition(registry).answer)])
    server = GuardedServer("test", app, LIMITS, shutdown_timeout=0.1)
    w = World(server, await server.start("127.0.0.1", 0), App())
    monkeypatch.setattr(http_guard, "EXPOSITIONS", 2)
    slow = [await w.connect(send=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(4)]
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{w.port}/metrics") as response,
    ):
        assert len(await response.read()) > 5_000_000
    cut = sorted([len(await client.ended()) for client in slow[:3]])
    assert cut[0] < 5_000_000, "the first were cut off"
    for client in slow:
        client.writer.transport.abort()
    await server.stop()


async def test_many_who_scrape_at_once_share_what_is_read() -> None:
    class Counted(Collector):
        read = 0

        def collect(self) -> list[Metric]:
            self.read += 1
            return []

    registry, counted = CollectorRegistry(), Counted()
    registry.register(counted)
    counted.read = 0
    exposition = Exposition(registry)
    assert await asyncio.gather(*(exposition._text() for _ in range(50))) == [b""] * 50
    assert counted.read == 1
    await exposition._text()
    assert counted.read == 2, "but no reader gets an old one"


async def test_the_event_loop_turns_while_metrics_are_put_into_words(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, turned = asyncio.get_running_loop(), threading.Event()

    def words(_: Collector) -> bytes:
        loop.call_soon_threadsafe(turned.set)
        return b"turned" if turned.wait(PATIENCE) else b"stood still"

    monkeypatch.setattr(http_guard, "generate_latest", words)
    assert await Exposition(CollectorRegistry())._text() == b"turned"


def test_open_files_are_raised_to_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = (256, 4096)
    monkeypatch.setattr(resource, "getrlimit", lambda _: now)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: asked.append(both))
    large, small = replace(LIMITS, connections=1000), replace(LIMITS, connections=100)
    assert room_for(large, small) == (large, small)
    assert asked == [(1228, 4096)] and not caplog.records
    now = (256, 678)
    assert [each.connections for each in room_for(large, small)] == [500, 50]
    assert asked[-1] == (678, 678) and "limit on open files" in caplog.text
    now = (4096, 4096)
    assert room_for(large, small) == (large, small) and len(asked) == 2


def test_a_rate_is_owed_and_given_back_and_forgets_the_longest_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = 0.0
    rate = Rate(2.0, 4.0, clock=lambda: time)
    for _ in range(4):
        assert rate.wait("a") == 0
        rate.take("a")
    assert rate.wait("a") == 0.5 and rate.wait("b") == 0
    rate.take("a", -1)
    assert rate.wait("a") == 0
    rate.take("a", 5)
    assert rate.wait("a") == 2.5
    time = 100.0
    for _ in range(4):
        rate.take("a")
    assert rate.wait("a") > 0, "no more than the burst is saved"
    monkeypatch.setattr("modelrollout.telemetry.rate.KEYS", 2)
    rate.take("b")
    rate.take("c")
    assert rate.wait("a") == 0 and set(rate._buckets) == {"b", "c"}
