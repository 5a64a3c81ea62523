"""The feedback service: labels for answers come in, counters of right and wrong go out.

``POST /v1/feedback`` takes one object or ``{"items": [...]}``::

    {"namespace": "team-a", "name": "digits", "version": 7, "id": "order-4711", "correct": true, "slice": "writer-3"}

or ``prediction`` and ``label`` in place of ``correct``. Sent again with the same id, it does not count again (``Limits.ids``, in this process).
A request is counted whole or not at all. State is counters only: after a restart they start at 0, which the analysis knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from modelrollout.evaluator.feedback_auth import AUDIENCE, Authorizer, UnavailableError
from modelrollout.evaluator.feedback_items import BadRequestError, Item, parse
from modelrollout.evaluator.feedback_ledger import Ledger, Limits

MAX_BODY_BYTES = 1 << 20
DRAIN_SECONDS = 5.0  # not ready but still answering: until then the Service has stopped sending requests

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FeedbackService:
    """Handlers of the service. ``draining`` makes it not ready."""

    def __init__(self, authorizer: Authorizer, limits: Limits | None = None) -> None:
        self._authorizer = authorizer
        self._ledger = Ledger(limits)
        self._registry = CollectorRegistry()
        self._registry.register(self._ledger)
        ProcessCollector(registry=self._registry)
        self.draining = False

    def app(self) -> web.Application:
        """The application, to be run by ``serve`` or by a test."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
        app.add_routes(
            [
                web.post("/v1/feedback", self.feedback),
                web.get("/metrics", self.metrics),
                web.get("/healthz", self.healthy),
                web.get("/readyz", self.ready),
            ]
        )
        return app

    async def feedback(self, request: web.Request) -> web.Response:
        """Authenticate, read, authorize for each model, count."""
        token = _token(request)
        identity = await self._authorizer.authenticate(token) if token else None
        if identity is None:
            text = f"send Authorization: Bearer with a service account token for the audience {AUDIENCE}"
            return _error(401, text, headers={"WWW-Authenticate": "Bearer"})
        items = parse(await request.read())
        models = sorted({item.model for item in items})
        allowed = await asyncio.gather(*(self._authorizer.allowed(identity, *model) for model in models))
        for (namespace, name), may in zip(models, allowed, strict=True):
            if not may:
                text = f"{identity.user} may not send feedback for {namespace}/{name}: it needs create on modeldeployments/feedback there"
                return _error(403, text)
        return self._count(items)

    def _count(self, items: list[Item]) -> web.Response:
        duplicates = self._ledger.record(items)
        return web.json_response({"accepted": len(items) - duplicates, "duplicates": duplicates})

    async def metrics(self, _: web.Request) -> web.Response:
        """The counters, in Prometheus's text format."""
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def healthy(self, _: web.Request) -> web.Response:
        """Alive as long as it answers."""
        return web.Response(text="ok")

    async def ready(self, _: web.Request) -> web.Response:
        """Ready until it is told to stop. An API server that is down does not count: callers get 503 and come back."""
        return web.Response(status=503, text="stopping") if self.draining else web.Response(text="ok")


async def serve(
    host: str,
    port: int,
    authorizer: Authorizer,
    *,
    limits: Limits | None = None,
    drain_seconds: float = DRAIN_SECONDS,
    stop: asyncio.Event | None = None,
    started: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``; then answer on for ``drain_seconds``, not ready, and end with no request cut off.

    ``started`` is told the port (of interest when ``port`` is 0). Raises OSError when the address is taken.
    """
    service, stop = FeedbackService(authorizer, limits), stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # not the main thread
                loop.add_signal_handler(number, stop.set)
                signals.callback(loop.remove_signal_handler, number)
        # aiohttp logs a header that it cannot read, which may be the token; what the handlers do wrong is logged by _errors
        silent = logging.getLogger(f"{__name__}.protocol")
        silent.disabled = True
        runner = web.AppRunner(service.app(), access_log=None, logger=silent, shutdown_timeout=10.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            bound = runner.addresses[0][1]
            log.info("feedback service listens", extra={"host": host, "port": bound})
            if started:
                started(bound)
            await stop.wait()
            service.draining = True
            await asyncio.sleep(drain_seconds)
        finally:
            await runner.cleanup()
    log.info("feedback service ended")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as JSON that says what to do; what nobody expected is logged without headers and body."""
    try:
        return await handler(request)
    except BadRequestError as e:
        return _error(400, str(e), field=e.field)
    except UnavailableError as e:
        return _error(503, f"{e}: try again", headers={"Retry-After": str(max(1, round(e.retry_after)))})
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB: send fewer items")
    except web.HTTPException as e:
        return _error(e.status, e.reason, headers={"Allow": e.headers["Allow"]} if "Allow" in e.headers else None)
    except Exception:
        log.exception("request failed", extra={"path": request.path})
        return _error(500, "internal error; the service's log has more")


def _token(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _error(status: int, message: str, *, field: str = "", headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": message} | ({"field": field} if field else {})
    return web.json_response(body, status=status, headers=headers)
