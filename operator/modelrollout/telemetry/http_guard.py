"""HTTP for untrusted clients: aiohttp behind limits on connections, time and memory.

aiohttp bounds neither the number of open connections nor the time for a request's head (its
``keepalive_timeout`` is an hour); it reads up to 256 KiB at a time, accepts heads of a megabyte and
queues 32 requests of one connection. 2,000 connections with half a head took 3 GB that way. Two
things protect it here. Excess connections are closed as they are accepted, which costs a few
microseconds. And a thin protocol in front of aiohttp's own reads all connections through one small
buffer (asyncio's ``BufferedProtocol``) and closes those that are too large or too slow.

When all connections are taken, the server closes the one that has waited longest **of the source
that holds most**. So a source with few connections always gets in, and idle connections are closed
before those that have been served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from aiohttp import StreamReader, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modelrollout.telemetry.rate import Rate

CHUNK_BYTES = 4 << 10  # read at a time from one connection
# how long the rest of a refused body is read and dropped, so that its sender can read the answer
LINGER_SECONDS = 2.0
RESERVED_FILES = 128  # descriptors beside the connections: the API server, logs, libraries
# connections that the kernel queues; beyond them a client waits a second and tries again
BACKLOG = 1024
ACCEPTS = 64  # at a time, before other tasks run
ACCEPT_AGAIN_SECONDS = 1.0
TURN_SECONDS = 1.0  # how long a connection keeps its place against sources with as many connections
WARN_SECONDS = 60.0
WRITE_BYTES = 64 << 10
EXPOSITIONS = 8  # answers of /metrics in memory at a time

Why = Literal["rate", "source", "total", "head_time", "head_size", "idle"]
REASONS: dict[Why, str] = {
    "rate": "its source opens too many connections in a second",
    "source": "its source had as many connections as one may have",
    "total": "all connections were taken, and its source held most",
    "head_time": "the head of a request was not complete in time",
    "head_size": "the head of a request was too large",
    "idle": "no request for too long",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one port. A source is an address: clients behind one gateway or NAT are one source.

    ``idle_seconds`` is longer than clients and proxies keep a connection (Go and Traefik 90 s), or
    they would send on closed ones. ``request_seconds`` lasts from the complete head to the answer,
    the body included.
    """

    connections: int = 1024
    connections_per_source: int = 256
    connections_per_second: float = 100.0  # new ones, of one source
    head_seconds: float = 10.0
    head_bytes: int = 16 << 10
    idle_seconds: float = 95.0
    request_seconds: float = 30.0


# Probes and scrapes: few clients with small requests, but no client may lock the kubelet out.
STATUS = HttpLimits(
    connections=128,
    connections_per_source=16,
    connections_per_second=20.0,
    head_seconds=5.0,
    request_seconds=10.0,
)


def room_for(*limits: HttpLimits) -> tuple[HttpLimits, ...]:
    """Raise this process's limit on open files to what all ``limits`` need together. Where that is
    not allowed, returns smaller limits and logs it.
    """
    needed = sum(each.connections for each in limits) + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed >= needed:
        return limits
    share = max(0, allowed - RESERVED_FILES) / (needed - RESERVED_FILES)
    log.warning(
        "fewer connections than configured: the limit on open files is too low",
        extra={"files": allowed, "needed": needed},
    )
    return tuple(replace(each, connections=max(1, int(each.connections * share))) for each in limits)


class GuardedServer(Collector):
    """One aiohttp application on one port, within ``limits``. Its metrics count open connections,
    and closed ones by cause.

    ``name`` is the metrics' label ``server``; ``runner`` are arguments of aiohttp's AppRunner.
    """

    def __init__(self, name: str, app: web.Application, limits: HttpLimits, **runner: Any) -> None:
        self.name, self.limits = name, limits
        self.buffer = memoryview(bytearray(CHUNK_BYTES))
        self.closed: Counter[Why] = Counter(dict.fromkeys(REASONS, 0))
        self._sources: dict[str, _Source] = {}
        self._open = 0
        self._warned: dict[Why, float] = {}
        self._connections: dict[asyncio.BaseProtocol, _Connection] = {}
        burst = max(2 * limits.connections_per_second, float(limits.connections_per_source))
        self._rate = Rate(limits.connections_per_second, burst)
        app.middlewares.insert(0, self._bounded())
        bounds: dict[str, Any] = {
            "lingering_time": LINGER_SECONDS,
            "read_bufsize": CHUNK_BYTES,
            "max_headers": 64,
        }
        self._runner = web.AppRunner(app, access_log=None, **bounds, **runner)
        self._socket: socket.socket | None = None
        self._accepting: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """Connections that are open, or whose request is still worked on."""
        return self._open

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (that was chosen when ``port`` is 0). OSError when it is
        taken.
        """
        await self._runner.setup()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server(
            (host, port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
        self._socket.setblocking(False)
        self._listen()
        return int(self._socket.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening; requests that have begun are answered within the runner's
        ``shutdown_timeout``.
        """
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        await asyncio.gather(*self._accepting)
        await self._runner.cleanup()

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        now = GaugeMetricFamily(
            "modelrollout_http_connections", "Connections that are open.", labels=["server"]
        )
        now.add_metric([self.name], self._open)
        yield now
        ended = CounterMetricFamily(
            "modelrollout_http_connections_closed",
            "Connections that a limit closed.",
            labels=["server", "reason"],
        )
        for why, count in self.closed.items():
            ended.add_metric([self.name, why], count)
        yield ended

    def protocol(self, connection: _Connection) -> asyncio.Protocol:
        """aiohttp's own protocol for an admitted connection."""
        assert self._runner.server is not None
        made = self._runner.server()
        self._connections[made] = connection
        return made

    def _listen(self) -> None:
        if self._socket:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """Admit or refuse the connections that wait."""
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTS):
            if self._socket is None:
                return
            try:
                accepted, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                # no descriptors or memory: it would fail again at once, so wait a while
                log.warning(
                    "no connection can be accepted: %s", e, extra={"server": self.name, "open": self._open}
                )
                loop.remove_reader(self._socket)
                loop.call_later(ACCEPT_AGAIN_SECONDS, self._listen)
                return
            connection = _Connection(self, str(address[0]).removeprefix("::ffff:"), loop.time())
            if why := self._refuses(connection):
                self.count_closed(why, connection.source)
                with accepted, contextlib.suppress(OSError):
                    accepted.send(_REFUSAL)
                continue
            task = loop.create_task(self._take(connection, accepted))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _take(self, connection: _Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # the client has gone
            accepted.close()
            connection.leave()

    def _refuses(self, new: _Connection) -> Why | None:
        """Give ``new`` a place, if need be another connection's. Returns why it is refused."""
        if self._rate.wait(new.source):
            return "rate"
        self._rate.take(new.source)
        own = self._sources.get(new.source) or _Source()
        why: Why | None = None
        crowded = own
        if own.open >= self.limits.connections_per_source:
            why = "source"
        elif self._open >= self.limits.connections:
            why = "total"
            largest = max((s for s in self._sources.values() if s.waiting), key=lambda s: s.open, default=own)
            crowded = largest if largest.open > own.open else own
        if why:
            victim = crowded.longest_waiting()
            # Without TURN_SECONDS, sources of equal size would keep evicting each other, which
            # costs more than everything else here.
            fairer = crowded.open - own.open >= 2
            if victim is None or (not fairer and new.since - victim.since < TURN_SECONDS):
                return why
            victim.end(why)
        own = self._sources.setdefault(new.source, _Source())
        own.open += 1
        self._open += 1
        own.new[new] = None
        new.open = True
        return None

    def release(self, connection: _Connection) -> None:
        """Free the place of a connection."""
        source = self._sources[connection.source]
        source.new.pop(connection, None)
        source.idle.pop(connection, None)
        source.open -= 1
        self._open -= 1
        if source.open == 0:
            del self._sources[connection.source]

    def gone(self, protocol: asyncio.BaseProtocol) -> None:
        """The connection of this one of aiohttp's protocols was closed."""
        self._connections.pop(protocol, None)

    def busy(self, connection: _Connection) -> None:
        """Mark the connection as busy with a request: no other may take its place."""
        source = self._sources[connection.source]
        source.new.pop(connection, None)
        source.idle.pop(connection, None)

    def idle(self, connection: _Connection) -> None:
        """Mark the connection as waiting for its next request."""
        self._sources[connection.source].idle[connection] = None

    def count_closed(self, why: Why, source: str) -> None:
        """A limit closes a connection of ``source``."""
        self.closed[why] += 1
        now = time.monotonic()
        if why != "idle" and now - self._warned.get(why, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned[why] = now
            fields = {"server": self.name, "open": self._open, "closed": self.closed[why]}
            log.warning("a connection from %s was closed: %s", source, REASONS[why], extra=fields)

    def _bounded(self) -> Middleware:
        @web.middleware
        async def bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._connections.get(request.protocol)
            if connection is None or not connection.begin(request):
                return web.Response(status=408)  # never read: the client is gone
            time_limit = asyncio.timeout(self.limits.request_seconds)
            try:
                async with time_limit:
                    return await handler(request)
            except TimeoutError:
                if not time_limit.expired():
                    raise
                text = f"the request was not read and answered within {self.limits.request_seconds:g} s"
                late = web.json_response({"error": text}, status=408)
                late.force_close()
                return late
            finally:
                connection.finish()

        return bounded


@dataclass(slots=True)
class _Source:
    """Connections of one address, in the order in which they began to wait."""

    open: int = 0
    new: dict[_Connection, None] = field(default_factory=dict)  # never had a whole request
    idle: dict[_Connection, None] = field(default_factory=dict)

    @property
    def waiting(self) -> bool:
        return bool(self.new or self.idle)

    def longest_waiting(self) -> _Connection | None:
        return next(iter(self.new), None) or next(iter(self.idle), None)


def _refusal() -> bytes:
    body = json.dumps({"error": "too many connections: try again"}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type:"
        " application/json\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


_REFUSAL = _refusal()


class _Connection(asyncio.BufferedProtocol):
    """Between the socket and aiohttp's protocol. Holds its place until it is closed and its request
    is done.
    """

    __slots__ = (
        "_busy",
        "_content",
        "_head",
        "_inner",
        "_server",
        "_timer",
        "_transport",
        "_unclaimed",
        "open",
        "since",
        "source",
    )

    def __init__(self, server: GuardedServer, source: str, now: float) -> None:
        self._server, self.source = server, source
        self.since = now  # it waits for a request, in seconds of the event loop
        self.open = False  # it has a place
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._content: StreamReader | None = None  # body of the last request
        self._busy = False  # that request is worked on
        self._timer: asyncio.TimerHandle | None = None
        # bytes since a request was last taken up: those of a head, and at most two reads of what
        # follows it
        self._unclaimed = 0
        self._head = True  # a head is awaited, or has begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self.open:  # its place was given away before it came here
            self._transport.abort()
            return
        self._wait(self._server.limits.head_seconds, "head_time")
        self._inner = self._server.protocol(self)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        inner, self._inner, self._transport = self._inner, None, None
        if inner is None:
            return
        self._stop_timer()
        inner.connection_lost(exc)
        self._server.gone(inner)
        if not self._busy:
            self.leave()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._inner is None:
            return
        # else it is that body's, which aiohttp reads no faster than its handler
        if self._content is None or self._content.is_eof():
            if self._busy:
                # The next request before this one is answered: what arrived in the same read is
                # served, but a client that continues so gets nothing queued.
                cast(web.RequestHandler, self._inner).close()
            elif not self._of_head(nbytes):
                return
        self._inner.data_received(bytes(self._server.buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner else None

    def pause_writing(self) -> None:
        if self._inner:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner:
            self._inner.resume_writing()

    def _of_head(self, nbytes: int) -> bool:
        if not self._head:
            self._head = True
            self._wait(self._server.limits.head_seconds, "head_time")
        self._unclaimed += nbytes
        if self._unclaimed <= self._server.limits.head_bytes + 2 * CHUNK_BYTES:
            return True
        self.end("head_size")
        return False

    def begin(self, request: web.Request) -> bool:
        """A request of this connection is taken up; False when the connection was closed
        meanwhile.
        """
        if self._inner is None or not self.open:
            return False
        self._content, self._busy, self._unclaimed, self._head = request.content, True, 0, False
        self._stop_timer()
        self._server.busy(self)
        return True

    def finish(self) -> None:
        """The request has its answer, which aiohttp writes now."""
        self._busy = False
        if self._inner is None:
            self.leave()
        elif self.open:
            self.since = asyncio.get_running_loop().time()
            self._server.idle(self)
            self._wait(self._server.limits.idle_seconds, "idle")

    def end(self, why: Why) -> None:
        """Close it at once, for a limit."""
        self._server.count_closed(why, self.source)
        self._stop_timer()
        self.leave()
        if self._transport:
            self._transport.abort()

    def leave(self) -> None:
        """Give its place back."""
        if self.open:
            self.open = False
            self._server.release(self)

    def _wait(self, seconds: float, why: Why) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end, why)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class _Taken(Collector):
    """The rendered metrics of a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families = list(registry.collect())

    def collect(self) -> Iterable[Metric]:
        return self._families


class Exposition:
    """``/metrics`` of a registry: read in the event loop, put into words by a thread (40,000 lines
    take a second), once for all waiting callers.

    A few answers at most are in memory: where one more is asked for, the one longest on its way is
    cut off.
    """

    def __init__(self, registry: CollectorRegistry, content_type: str = CONTENT_TYPE_PLAIN_0_0_4) -> None:
        self._registry, self._content_type = registry, content_type
        self._writing: dict[asyncio.Transport, None] = {}
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The handler."""
        transport = request.transport
        if transport is None:
            return web.Response(status=408)  # never read: the client is gone
        while len(self._writing) >= EXPOSITIONS:
            slowest = next(iter(self._writing))
            del self._writing[slowest]
            slowest.abort()
        self._writing[transport] = None
        try:
            body = await self._text()
            response = web.StreamResponse(headers={"Content-Type": self._content_type})
            response.content_length = len(body)
            await response.prepare(request)
            for at in range(0, len(body), WRITE_BYTES):
                await response.write(body[at : at + WRITE_BYTES])  # waits for its reader
            await response.write_eof()
            return response
        finally:
            self._writing.pop(transport, None)

    async def _text(self) -> bytes:
        if self._next is None:
            self._next = asyncio.ensure_future(self._render())
        return await asyncio.shield(self._next)

    async def _render(self) -> bytes:
        async with self._one_at_a_time:
            self._next = None  # later callers want a newer one
            return await asyncio.to_thread(generate_latest, _Taken(self._registry))
