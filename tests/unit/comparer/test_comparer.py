"""The comparer: mirrored requests in, both revisions asked, counters out; whatever the revisions
do, the gateway gets its 202.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, unused_port
from prometheus_client import CollectorRegistry, generate_latest

from modelrollout.comparer import server as module
from modelrollout.comparer.server import (
    MOST_EQUAL,
    RESULTS,
    AgreementCounters,
    BodyQueue,
    Comparer,
    Failure,
    HttpInferenceClient,
    Request,
    ServerAnswer,
    serve,
)
from modelrollout.contract.tasks import CompareTask

INFER = "/v2/models/digits/infer"


def body(value: float = 1.0) -> bytes:
    return json.dumps(
        {"model_version": "1", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [value]}]}
    ).encode()


def task(stable: str = "stable:1", canary: str = "canary:1", **changes: object) -> CompareTask:
    fields = {
        "namespace": "ml",
        "model": "digits",
        "candidate_http": canary,
        "candidate_number": 2,
        "stable_http": stable,
        "stable_number": 1,
    }
    return CompareTask.model_validate(fields | changes)


SAME = ServerAnswer(body(), None)


class Said:
    """Revisions that answer what they are told to; ``gate`` holds them."""

    def __init__(self, stable: ServerAnswer | Failure = SAME, canary: ServerAnswer | Failure = SAME) -> None:
        self.answers = {"stable:1": stable, "canary:1": canary}
        self.asked: list[tuple[str, Request]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def infer(self, address: str, request: Request) -> ServerAnswer | Failure:
        self.asked.append((address, request))
        await self.gate.wait()
        return self.answers[address]


@asynccontextmanager
async def running(
    client: Said, **changes: object
) -> AsyncIterator[tuple[Comparer, TestClient[web.Request, web.Application]]]:
    made = Comparer(task(**changes), client)  # type: ignore[arg-type]
    workers = [asyncio.create_task(made.work()) for _ in range(2)]
    async with TestClient(TestServer(made.app())) as client:
        yield made, client
    for worker in workers:
        worker.cancel()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not seen in time")


async def test_both_are_asked_with_the_same_body_and_none_of_the_clients_secrets() -> None:
    said = Said()
    async with running(said) as (comparer, client):
        headers = {
            "Authorization": "Bearer secret",
            "Cookie": "a=b",
            "Inference-Header-Content-Length": "7",
            "X-Model": "other",
        }
        response = await client.post(INFER, data=b'{"x":1}bytes', headers=headers)
        assert response.status == 202
        await until(lambda: comparer.counts["agree"] == 1)
    assert {address for address, _ in said.asked} == {"stable:1", "canary:1"}
    for _, request in said.asked:
        assert request.body == b'{"x":1}bytes'
        assert set(request.headers) == {"Content-Type", "Inference-Header-Content-Length"}


@pytest.mark.parametrize(
    ("stable", "canary", "result"),
    [
        (ServerAnswer(body(), None), ServerAnswer(body(1.0001), None), "agree"),
        (ServerAnswer(body(), None), ServerAnswer(body(2.0), None), "disagree"),
        (ServerAnswer(body(), None), "Failed", "canary_error"),
        (ServerAnswer(body(), None), ServerAnswer(b"<html>", None), "canary_error"),
        (ServerAnswer(body(), None), "Unreachable", "unreachable"),
        ("Failed", ServerAnswer(body(), None), "stable_error"),
        ("Unreachable", "Failed", "stable_error"),
        (ServerAnswer(b"<html>", None), ServerAnswer(body(), None), "unreadable"),
    ],
)
async def test_how_a_pair_counts(
    stable: ServerAnswer | Failure, canary: ServerAnswer | Failure, result: str
) -> None:
    assert await Comparer(task(), Said(stable, canary)).compare(Request(b"{}", {})) == result


async def test_what_is_no_inference_request_of_this_model_is_not_asked() -> None:
    said = Said()
    async with running(said) as (comparer, client):
        for method, path in (
            ("GET", INFER),
            ("POST", "/v2/models/other/infer"),
            ("GET", "/metrics"),
            ("POST", "/v2/models/digits/generate"),
        ):
            assert (await client.request(method, path)).status == 202
        assert (comparer.counts["ignored"], said.asked) == (4, [])
        # a client that names stable's version
        await client.post("/v2/models/digits/versions/1/infer", data=b"{}")
        await until(lambda: comparer.counts["agree"] == 1)


async def test_what_is_too_much_is_shed_and_counted() -> None:
    said = Said()
    said.gate.clear()
    async with running(said, queue=3) as (comparer, client):
        for _ in range(20):
            assert (await client.post(INFER, data=b"{}")).status == 202
        assert comparer.counts["shed"] == 20 - 3 - 2, "two are being asked, three wait"
        said.gate.set()
        await until(lambda: comparer.counts["agree"] == 5)


async def test_one_body_counts_a_few_times_and_is_not_asked_again() -> None:
    said = Said()
    said.gate.clear()
    async with running(said) as (comparer, client):
        for _ in range(MOST_EQUAL + 2):  # all before the first is answered
            await client.post(INFER, data=b'{"same": 0}')
        said.gate.set()
        await until(lambda: comparer.counts["agree"] + comparer.counts["repeated"] == MOST_EQUAL + 2)
        asked = len(said.asked)
        for _ in range(20):
            await client.post(INFER, data=b'{"same": 0}')
        await client.post(INFER, data=b'{"other": 0}')
        await until(lambda: comparer.counts["agree"] == MOST_EQUAL + 1)
        assert (comparer.counts["repeated"], len(said.asked)) == (22, asked + 2)


async def test_what_does_not_count_does_not_use_a_body_up() -> None:
    said = Said(canary="Unreachable")
    async with running(said) as (comparer, client):
        for _ in range(MOST_EQUAL + 1):
            await client.post(INFER, data=b"{}")
        await until(lambda: comparer.counts["unreachable"] == MOST_EQUAL + 1)
        said.answers["canary:1"] = SAME
        await client.post(INFER, data=b"{}")
        await until(lambda: comparer.counts["agree"] == 1)


def test_the_memory_of_bodies_is_bounded() -> None:
    bodies = BodyQueue(remembered=3)
    for _ in range(MOST_EQUAL):
        bodies.count(b"old")
    assert bodies.enough(b"old")
    for digest in (b"a", b"b", b"c"):
        bodies.count(digest)
    assert not bodies.enough(b"old") and len(bodies._times) == 3


async def test_a_body_that_is_too_large_is_shed() -> None:
    async with running(Said(), max_body_bytes=2048) as (comparer, client):
        assert (await client.post(INFER, data=b"x" * 5000)).status == 202
        assert comparer.counts["shed"] == 1


async def test_every_result_is_there_from_the_start_and_names_both_numbers() -> None:
    registry = CollectorRegistry()
    registry.register(AgreementCounters(task()))
    lines = [
        line
        for line in generate_latest(registry).decode().splitlines()
        if line.startswith("modelrollout_shadow_total")
    ]
    assert len(lines) == len(RESULTS)
    assert (
        'modelrollout_shadow_total{canary="2",name="digits",namespace="ml",result="agree",stable="1"} 0.0'
        in lines
    )


async def test_a_comparison_that_breaks_ends_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bool:
        raise RuntimeError("unforeseen")

    async with running(Said()) as (comparer, client):
        monkeypatch.setattr(module, "agree", broken)
        for _ in range(4):
            await client.post(INFER, data=b'{"secret": 1}')
        await until(lambda: comparer.counts["unreadable"] == 4)
    assert "secret" not in caplog.text


# --- over real connections


@asynccontextmanager
async def revision(
    handler: Callable[[web.Request], web.StreamResponse] | None = None, delay: float = 0
) -> AsyncIterator[str]:
    async def infer(request: web.Request) -> web.StreamResponse:
        content = await request.read()
        await asyncio.sleep(delay)
        return handler(request) if handler else web.Response(body=body(float(len(content))))

    app = web.Application()
    app.router.add_post(INFER, infer)
    runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.1)
    await runner.setup()
    port = unused_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"127.0.0.1:{port}"
    await runner.cleanup()


async def asked(address: str, **changes: object) -> ServerAnswer | Failure:
    client = HttpInferenceClient(task(**changes))  # type: ignore[arg-type]
    try:
        return await client.infer(address, Request(b"{}", {}))
    finally:
        await client.close()


async def test_failures_are_told_from_pods_that_are_not_there() -> None:
    assert await asked(f"127.0.0.1:{unused_port()}") == "Unreachable"
    assert await asked("no-such-host.invalid:8000") == "Unreachable"
    async with revision(lambda _: web.Response(status=500)) as address:
        assert await asked(address) == "Failed"
    async with revision(delay=5) as address:
        assert await asked(address, timeout_seconds=0.2) == "Failed"

    def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with revision(hang_up) as address:
        assert await asked(address) == "Failed", "it took the request and died of it"


async def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    async with revision(lambda _: web.Response(body=b"x" * 5000)) as address:
        assert await asked(address) == "Failed"


async def test_the_process_as_it_runs() -> None:
    """Compressed bodies go on as they came; probes and counters are on the other port; it ends when
    it is told to.
    """
    logging.getLogger("modelrollout.job").setLevel(logging.INFO)
    packed, port, status_port, stop = (
        gzip.compress(b'{"inputs": []}'),
        unused_port(),
        unused_port(),
        asyncio.Event(),
    )
    async with revision() as stable, revision() as canary, aiohttp.ClientSession() as session:
        running = asyncio.create_task(
            serve(task(stable, canary, port=port), "127.0.0.1", status_port=status_port, stop=stop)
        )

        async def get(path: str) -> str:
            async with session.get(f"http://127.0.0.1:{status_port}{path}") as response:
                return await response.text()

        for _ in range(200):
            try:
                assert await get("/healthz") == "ok"
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)
        for _ in range(3):
            async with session.post(
                f"http://127.0.0.1:{port}{INFER}", data=packed, headers={"Content-Encoding": "gzip"}
            ) as response:
                assert response.status == 202
        for _ in range(300):
            text = await get("/metrics")
            if 'result="agree",stable="1"} 3.0' in text:
                break
            await asyncio.sleep(0.02)
        assert 'result="agree",stable="1"} 3.0' in text
        stop.set()
        await asyncio.wait_for(running, 10)


async def test_strangers_keep_neither_the_gateway_nor_a_probe_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half heads, and bodies that do not end: what the gateway mirrors is taken and compared
    meanwhile.
    """
    monkeypatch.setattr(
        module,
        "LIMITS",
        replace(module.LIMITS, connections=40, connections_per_source=40, request_seconds=0.3),
    )
    port, status_port, stop = unused_port(), unused_port(), asyncio.Event()
    begun = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
    strangers = []
    async with revision() as stable, revision() as canary, aiohttp.ClientSession() as gateway:
        running = asyncio.create_task(
            serve(task(stable, canary, port=port, queue=8), "127.0.0.1", status_port=status_port, stop=stop)
        )
        for i in range(200):
            for at, sent in ((port, begun if i % 4 == 0 else b"POST /"), (status_port, b"GET /hea")):
                while True:
                    try:
                        _, writer = await asyncio.open_connection(
                            "127.0.0.1", at, local_addr=(f"127.0.0.{2 + i % 5}", 0)
                        )
                        break
                    except ConnectionRefusedError:  # it does not listen yet
                        await asyncio.sleep(0.02)
                writer.write(sent)
                strangers.append(writer)
        agreed = 0
        for _ in range(500):
            async with gateway.post(f"http://127.0.0.1:{port}{INFER}", data=b"{}") as response:
                assert response.status == 202
            async with gateway.get(f"http://127.0.0.1:{status_port}/metrics") as response:
                text = await response.text()
            agreed = int(
                float(next(line for line in text.splitlines() if 'result="agree"' in line).rpartition(" ")[2])
            )
            if agreed >= 3:
                break
            await asyncio.sleep(0.02)
        assert agreed >= 3
        assert 'modelrollout_http_connections_closed_total{reason="total",server="comparer"} 0.0' not in text
        stop.set()
        await asyncio.wait_for(running, 10)
    for writer in strangers:
        writer.transport.abort()


def test_a_task_that_cannot_be_read_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELROLLOUT_TASK", '{"task": "compare"}')
    assert module.main() == 1
