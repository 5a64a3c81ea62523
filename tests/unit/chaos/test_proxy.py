"""The fault proxy between a real client and a real server, both in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from chaos import treatments as t
from chaos.proxy import FaultProxy

EVENT = b'{"type":"ADDED"}\n'


class Server:
    """Counts what reaches it; a watch sends an event and then stays silent until told to send
    another.
    """

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.more = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.reached.append(f"{request.method} {request.rel_url} {request.headers.get('Authorization')}")
        if request.query.get("watch") != "true":
            return web.json_response(
                {"got": (await request.read()).decode()}, status=201 if request.method == "POST" else 200
            )
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(EVENT)
        await self.more.wait()
        await response.write(EVENT)
        return response


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, FaultProxy]]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy = FaultProxy(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await proxy.start()
    yield made, proxy
    made.more.set()
    await proxy.stop()
    await runner.cleanup()


async def post(proxy: FaultProxy, path: str = "/x?a=b%2Fc") -> tuple[int, str]:
    headers = {"Authorization": "Bearer abc"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(proxy.url + path, data=b"body", headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def test_a_call_passes_as_it_is(server: tuple[Server, FaultProxy]) -> None:
    made, proxy = server
    assert await post(proxy) == (201, '{"got": "body"}')
    assert made.reached == ["POST /x?a=b/c Bearer abc"] or made.reached == ["POST /x?a=b%2Fc Bearer abc"]
    [(_, call, status)] = proxy.calls
    assert (str(call), status) == ("POST /x", 201)


async def test_a_refused_call_never_reaches_the_server(server: tuple[Server, FaultProxy]) -> None:
    made, proxy = server
    proxy.rule = t.Always(t.refused(409), t.writes)
    status, _ = await post(proxy)
    assert status == 409
    assert made.reached == []


@pytest.mark.parametrize("how", ["cut", "killed"])
async def test_a_cut_answer_comes_after_the_write_was_done(
    server: tuple[Server, FaultProxy], how: str
) -> None:
    made, proxy = server
    done_before_kill: list[int] = []

    def kill() -> None:
        done_before_kill.append(len(made.reached))

    proxy.rule = t.Always(t.Treatment(cut=True) if how == "cut" else t.Treatment(killed=kill), t.writes)
    with pytest.raises(aiohttp.ClientError):
        await post(proxy)
    assert len(made.reached) == 1
    assert done_before_kill == ([1] if how == "killed" else [])


async def test_an_answer_is_rewritten(server: tuple[Server, FaultProxy]) -> None:
    _, proxy = server
    proxy.rule = t.Always(t.Treatment(rewrite=lambda body: body.upper()), t.any_call)
    assert await post(proxy) == (201, '{"GOT": "BODY"}')


async def test_a_server_that_is_away_is_a_cut_connection() -> None:
    proxy = FaultProxy("http://127.0.0.1:9")
    await proxy.start()
    with pytest.raises(aiohttp.ClientError):
        await post(proxy)
    await proxy.stop()


async def watching(proxy: FaultProxy, during: Callable[[], Awaitable[None]]) -> bytes:
    """All that a watch brings until its end; ``during`` runs after its first event."""
    actual = b""
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.url}/pods?watch=true") as answer:
        actual += await answer.content.readline()
        await during()
        try:
            actual += await answer.content.read()
        except aiohttp.ClientError:
            actual += b"broken"
    return actual


async def test_an_open_watch_ends_and_says_gone(server: tuple[Server, FaultProxy]) -> None:
    _, proxy = server

    async def fault() -> None:
        proxy.rule = t.Always(t.Treatment(end_after=0.0, gone=True), t.watches)

    assert await watching(proxy, fault) == EVENT + t.GONE_EVENT
    assert proxy.rule.tried == 1


async def test_a_stalled_watch_loses_events_and_ends_with_the_stall(
    server: tuple[Server, FaultProxy],
) -> None:
    made, proxy = server

    async def fault() -> None:
        proxy.rule = t.Always(t.Treatment(stall=True), t.watches)
        await asyncio.sleep(0.5)
        made.more.set()
        await asyncio.sleep(0.5)
        proxy.rule = t.PassAll()

    assert await watching(proxy, fault) == EVENT
