"""The feedback service: clients send labels for answers, Prometheus reads counters of right and
wrong ones.

``POST /v1/feedback`` takes one object or ``{"items": [...]}``::

    {"namespace": "team-a", "name": "digits", "version": 7, "id": "order-4711", "correct": true,
    "slice": "writer-3"}

or ``prediction`` and ``label`` in place of ``correct``. Sent again with the same id, it does not
count again (``Limits.ids``, in this process). A request is counted whole or not at all. State is
counters only: after a restart they start at 0, which the analysis knows.

Any pod may reach this service, so connections, time and memory are bounded
(``telemetry.http_guard``, ``feedback.rates``): when the process dies, its counters are lost.
``/metrics`` and the probes have a port of their own, which senders cannot block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.registry import Collector

from modelrollout.feedback.auth import AUDIENCE, Authorizer, Identity, UnavailableError
from modelrollout.feedback.items import BadRequestError, Item, parse
from modelrollout.feedback.ledger import Ledger, Limits
from modelrollout.feedback.rates import BodyBudget, TooManyError
from modelrollout.feedback.settings import FeedbackLimits, FeedbackSettings
from modelrollout.telemetry.http_guard import STATUS, Exposition, GuardedServer, room_for
from modelrollout.telemetry.rate import Rate

MAX_BODY_BYTES = 1 << 20
BODIES_BYTES = 16 << 20  # of all bodies that are being read
BODIES_BYTES_TENANT = 4 << 20  # of those of one tenant
BODY_UNIT = 16 << 10  # each such part of a body counts as one request of its sender
BURST_SECONDS = 2.0
# not ready but still answering, until the Service has stopped sending requests
DRAIN_SECONDS = 5.0

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FeedbackService:
    """Handlers of the service. ``draining`` makes it not ready."""

    def __init__(
        self,
        authorizer: Authorizer,
        limits: Limits | None = None,
        *,
        rates: FeedbackLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authorizer = authorizer
        self._ledger = Ledger(limits)
        rates = rates or FeedbackLimits()
        self._senders, self._tenants = (
            Rate(rate, max(1.0, rate * BURST_SECONDS), clock=clock)
            for rate in (rates.requests_per_second, rates.requests_per_second_namespace)
        )
        self._bodies = BodyBudget(BODIES_BYTES, BODIES_BYTES_TENANT)
        self._registry = CollectorRegistry()
        self._registry.register(self._ledger)
        self._refused = Counter(
            "modelrollout_feedback_refused",
            "Requests refused, by HTTP status.",
            ["status"],
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self.draining = False

    def app(self) -> web.Application:
        """The application for senders; ``serve`` and tests run it."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._errors])
        app.add_routes([web.post("/v1/feedback", self.feedback)])
        return app

    def status_app(self) -> web.Application:
        """Counters and probes."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", Exposition(self._registry).answer),
                web.get("/healthz", self.healthy),
                web.get("/readyz", self.ready),
            ]
        )
        return app

    def watch(self, *others: Collector) -> None:
        """Publish the metrics of other collectors too."""
        for other in others:
            self._registry.register(other)

    async def feedback(self, request: web.Request) -> web.Response:
        """Authenticate, read, authorize for each model, count."""
        token = _token(request)
        identity = await self._authorizer.authenticate(token, request.remote or "") if token else None
        if identity is None:
            text = f"send Authorization: Bearer with a service account token for the audience {AUDIENCE}"
            refused = _error(401, text, headers={"WWW-Authenticate": "Bearer"})
            refused.force_close()
            return refused
        items = parse(await self._read(request, identity))
        models = sorted({item.model for item in items})
        allowed = await asyncio.gather(*(self._authorizer.allowed(identity, *model) for model in models))
        for (namespace, name), may in zip(models, allowed, strict=True):
            if not may:
                text = (
                    f"{identity.user} may not send feedback for {namespace}/{name}: it needs create on"
                    " modeldeployments/feedback there"
                )
                return _error(403, text)
        return self._count(items)

    async def _read(self, request: web.Request, identity: Identity) -> bytes:
        """The body, within the sender's rate and the memory for bodies."""
        rates = ((self._senders, identity.user), (self._tenants, identity.tenant))
        for rate, key in rates:
            if wait := rate.wait(key):
                raise TooManyError(
                    f"{key} sends more than it may: send fewer requests, with up to 1000 items each", wait
                )
        for rate, key in rates:
            rate.take(key)
        length = None if "Content-Encoding" in request.headers else request.content_length
        size = MAX_BODY_BYTES if length is None else min(length, MAX_BODY_BYTES)
        with self._bodies.room(identity.tenant, size):
            try:
                body = await request.read()
                size = len(body)
            finally:
                for rate, key in rates:
                    rate.take(key, size // BODY_UNIT)
        return body

    def _count(self, items: list[Item]) -> web.Response:
        duplicates = self._ledger.record(items)
        return web.json_response({"accepted": len(items) - duplicates, "duplicates": duplicates})

    async def healthy(self, _: web.Request) -> web.Response:
        """Alive as long as it answers."""
        return web.Response(text="ok")

    async def ready(self, _: web.Request) -> web.Response:
        """Ready until it has to stop. An API server that is down does not count: callers get
        503 and come back.
        """
        return web.Response(status=503, text="stopping") if self.draining else web.Response(text="ok")

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await _answered(request, handler)
        if answer.status >= 400:
            self._refused.labels(str(answer.status)).inc()
        return answer


async def serve(
    host: str,
    port: int,
    authorizer: Authorizer,
    *,
    settings: FeedbackSettings | None = None,
    limits: Limits | None = None,
    drain_seconds: float = DRAIN_SECONDS,
    stop: asyncio.Event | None = None,
    started: Callable[[int, int], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``; then answer on for ``drain_seconds``, not ready, and
    end with no request cut off.

    ``settings``: None takes those of the environment. Calls ``started`` with the ports of senders
    and of metrics (useful when they are 0). Raises OSError when an address is taken, and
    SettingsError.
    """
    settings = settings or FeedbackSettings.from_environment()
    service, stop = FeedbackService(authorizer, limits, rates=settings.limits), stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            # not the main thread
            with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, stop.set)
                signals.callback(loop.remove_signal_handler, number)
        # aiohttp logs a header that it cannot read, which may be the token; what the handlers do
        # wrong is logged by _answered
        silent = logging.getLogger(f"{__name__}.protocol")
        silent.disabled = True
        for_senders, for_status = room_for(settings.limits.http(), STATUS)
        senders = GuardedServer("feedback", service.app(), for_senders, logger=silent, shutdown_timeout=10.0)
        status = GuardedServer(
            "status", service.status_app(), for_status, logger=silent, shutdown_timeout=1.0
        )
        service.watch(senders, status)
        try:
            ports = await senders.start(host, port), await status.start(host, settings.metrics_port)
            log.info(
                "feedback service listens", extra={"host": host, "port": ports[0], "metrics_port": ports[1]}
            )
            if started:
                started(*ports)
            await stop.wait()
            service.draining = True
            await asyncio.sleep(drain_seconds)
        finally:
            await senders.stop()
            await status.stop()
    log.info("feedback service ended")


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as JSON that says what to do; unexpected errors are logged without headers and
    body.
    """
    try:
        return await handler(request)
    except BadRequestError as e:
        return _error(400, str(e), field=e.field)
    except TooManyError as e:
        return _later(429, e, e.retry_after)
    except UnavailableError as e:
        return _later(503, e, e.retry_after)
    except (ConnectionError, web.RequestPayloadError):
        return _error(400, "the body could not be read to its end")
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB: send fewer items")
    except web.HTTPException as e:
        return _error(
            e.status, e.reason, headers={"Allow": e.headers["Allow"]} if "Allow" in e.headers else None
        )
    except Exception:
        log.exception("request failed", extra={"path": request.path})
        return _error(500, "internal error; the service's log has more")


def _later(status: int, why: Exception, seconds: float) -> web.Response:
    return _error(status, f"{why}: try again", headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def _token(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _error(
    status: int, message: str, *, field: str = "", headers: dict[str, str] | None = None
) -> web.Response:
    body = {"error": message} | ({"field": field} if field else {})
    return web.json_response(body, status=status, headers=headers)
