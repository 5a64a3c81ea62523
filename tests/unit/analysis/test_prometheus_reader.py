"""Every way in which Prometheus fails has its own name, and no name is a
regression.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus import client, namespace_queries
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.scrape_rights import Scrape
from modelrollout.config import PrometheusConfig

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECRET = "s3cr3t-t0ken"


def vector(*values: tuple[dict[str, str], str]) -> web.Response:
    rows = [{"metric": labels, "value": [1700000000.5, value]} for labels, value in values]
    return web.json_response({"status": "success", "data": {"resultType": "vector", "result": rows}})


@asynccontextmanager
async def reading(handler: Handler, *, threads: int = 4, **provider: Any) -> AsyncIterator[PrometheusReader]:
    """A reader of a Prometheus that answers with ``handler``."""
    app = web.Application()
    app.router.add_get("/prefix/api/v1/query", handler)
    async with TestServer(app) as server:
        settings = {
            "name": "main",
            "url": f"http://127.0.0.1:{server.port}/prefix/",
            "timeout_seconds": 5.0,
        } | provider
        reader = PrometheusReader(PrometheusConfig.model_validate(settings), threads=threads)
        try:
            yield reader
        finally:
            await reader.close()


async def one(reader: PrometheusReader, query: str = "up") -> Answer | MeasurementProblem:
    [answer] = await reader.query([query])
    return answer


async def problem(reader: PrometheusReader) -> MeasurementProblem:
    answer = await one(reader)
    assert isinstance(answer, MeasurementProblem), answer
    assert SECRET not in answer.message and "main" in answer.message
    return answer


@asynccontextmanager
async def listing(
    targets: Any, configuration: Any = "scrape_configs:\n- job_name: pods\n"
) -> AsyncIterator[PrometheusReader]:
    """A Prometheus that tells who is scraped; what is a response already, is given as it is."""

    def answered(data: Any) -> Handler:
        async def handler(_: web.Request) -> web.StreamResponse:
            return (
                data
                if isinstance(data, web.Response)
                else web.json_response({"status": "success", "data": data})
            )

        return handler

    app = web.Application()
    app.router.add_get("/api/v1/targets", answered(targets))
    app.router.add_get(
        "/api/v1/status/config",
        answered(configuration if isinstance(configuration, web.Response) else {"yaml": configuration}),
    )
    async with TestServer(app) as server:
        reader = PrometheusReader(PrometheusConfig(name="main", url=f"http://127.0.0.1:{server.port}"))
        try:
            yield reader
        finally:
            await reader.close()


TARGETS = {
    "activeTargets": [
        {"scrapePool": p, "labels": {"job": p}, "discoveredLabels": {"__address__": "x"}}
        for p in ("pods", "theirs")
    ]
}


async def test_who_is_scraped_and_who_may_overwrite_labels() -> None:
    async with listing(TARGETS) as reader:
        scraped = await reader.scrape()
    assert isinstance(scraped, Scrape) and [t.labels["job"] for t in scraped.targets] == ["pods", "theirs"]
    assert scraped.honoring == {"theirs"}, "a job that the configuration does not show may do anything"


@pytest.mark.parametrize(
    ("targets", "configuration", "kind"),
    [
        (web.Response(status=404), "", "BadAnswer"),
        (web.Response(status=403), "", "ProviderDenied"),
        (TARGETS, web.Response(status=403), "ProviderDenied"),
        (TARGETS, web.Response(text="<html>"), "BadAnswer"),
        ({"targets": []}, "", "BadAnswer"),
        ({"activeTargets": [{"labels": {}}]}, "", "BadAnswer"),
        ({"activeTargets": [7]}, "", "BadAnswer"),
        (web.Response(body=b" " * ((16 << 20) + 1)), "", "QueryRejected"),
    ],
)
async def test_who_is_scraped_cannot_be_asked(targets: Any, configuration: Any, kind: str) -> None:
    async with listing(targets, configuration) as reader:
        scraped = await reader.scrape()
    assert isinstance(scraped, MeasurementProblem) and scraped.reason == kind, scraped


async def test_answers_come_in_the_order_of_the_queries() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.query["query"] == "none":
            return vector()
        return vector(({"pod": request.query["query"]}, "2.5"), ({}, "NaN"))

    async with reading(handler) as reader:
        answers = await reader.query(["a", "none", "b"])
    assert isinstance(answers[0], Answer) and isinstance(answers[2], Answer)
    assert answers[0].series[0] == Series({"pod": "a"}, 2.5, 1700000000.5)
    assert answers[0].series[1].value != answers[0].series[1].value
    assert answers[1] == Answer(())
    assert answers[2].series[0].labels == {"pod": "b"}


async def test_a_scalar_is_one_series() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(
            {"status": "success", "data": {"resultType": "scalar", "result": [1.0, "+Inf"]}}
        )

    async with reading(handler) as reader:
        assert await one(reader) == Answer((Series({}, float("inf"), 1.0),))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "QueryRejected"),
        (422, "QueryRejected"),
        (401, "ProviderDenied"),
        (403, "ProviderDenied"),
        (404, "BadAnswer"),
        (429, "ProviderError"),
        (500, "ProviderError"),
        (503, "ProviderError"),
    ],
)
async def test_statuses_are_told_apart(status: int, kind: str) -> None:
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.Response(status=status, text=f"Bearer {SECRET} is not known")

    async with reading(handler) as reader:
        assert (await problem(reader)).reason == kind
    assert calls == 1, "the next look is the retry"


async def test_what_prometheus_says_of_a_bad_query_is_passed_on() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(
            {"status": "error", "errorType": "bad_data", "error": '1:5: parse error: it\'s "up{"'}, status=400
        )

    async with reading(handler) as reader:
        assert 'parse error: it\'s "up{"' in (await problem(reader)).message


@pytest.mark.parametrize(
    "body",
    [
        "<html>Please log in</html>",
        "",
        "[]",
        '{"status": "success"}',
        '{"data": {"result": null}}',
        '{"data": {"result": {"a": 1}}}',
        '{"data": {"result": [{"metric": {}, "values": [[1, "2"]]}]}}',
        '{"data": {"result": [{"metric": {}, "value": [1, "many"]}]}}',
    ],
)
async def test_an_answer_in_another_format_is_named(body: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    async with reading(handler) as reader:
        assert (await problem(reader)).reason == "BadAnswer"


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 100_000)

    async def handler(_: web.Request) -> web.Response:
        return web.Response(
            text=json.dumps({"data": {"result": [{"metric": {"x": "y" * 1000}, "value": [1, "1"]}] * 1000}})
        )

    async with reading(handler) as reader:
        assert (await problem(reader)).reason == "QueryRejected"


async def test_more_series_than_anybody_needs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_SERIES", 3)

    async def handler(_: web.Request) -> web.Response:
        return vector(*[({"i": str(i)}, "1") for i in range(4)])

    async with reading(handler) as reader:
        assert (await problem(reader)).reason == "QueryRejected"


async def test_a_server_that_hangs_is_a_timeout() -> None:
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return vector()

    async with reading(handler, timeout_seconds=0.2) as reader:
        assert (await problem(reader)).reason == "ProviderTimeout"
        release.set()


async def test_a_body_that_trickles_is_a_timeout_and_gives_its_thread_back() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.query["query"] == "fast":
            return vector(({}, "1"))
        response = web.StreamResponse()
        await response.prepare(request)
        while request.transport and not request.transport.is_closing():
            await response.write(b" " * 1000)
            await asyncio.sleep(0.01)
        return response

    async with reading(handler, threads=1, timeout_seconds=0.3) as reader:
        assert (await problem(reader)).reason == "ProviderTimeout"
        async with asyncio.timeout(10):
            while not isinstance(await one(reader, "fast"), Answer):
                pass


async def test_more_questions_than_threads_wait_no_longer_than_the_limit() -> None:
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return vector()

    async with reading(handler, timeout_seconds=0.3) as reader:
        loop = asyncio.get_running_loop()
        start = loop.time()
        answers = await reader.query(["up"] * 12)
        assert loop.time() - start < 2
        assert {a.reason for a in answers if isinstance(a, MeasurementProblem)} == {
            "ProviderTimeout"
        } and len(answers) == 12
        release.set()


async def test_a_closed_port_is_unreachable() -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        reader = PrometheusReader(PrometheusConfig(name="main", url=url))
        failure = await problem(reader)
        await reader.close()
    assert failure.reason == "ProviderUnreachable" and "refused" in failure.message


async def test_a_connection_that_breaks_is_unreachable() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.close()
        return web.Response()

    async with reading(handler) as reader:
        assert (await problem(reader)).reason == "ProviderUnreachable"


async def test_credentials_are_read_anew_when_the_secret_changes(tmp_path: Path) -> None:
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return vector()

    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    async with reading(handler, token_file=str(token)) as reader:
        await one(reader)
        token.write_text("another")
        await one(reader)
        token.unlink()
        failure = await problem(reader)
    assert seen == [f"Bearer {SECRET}", "Bearer another"]
    assert failure.reason == "ProviderDenied"


async def test_user_and_password_come_from_files(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return vector(({}, "1" if request.headers.get("Authorization") == "Basic dXNlcjpwYXNz" else "0"))

    for name, text in (("user", "user"), ("password", "pass\n")):
        (tmp_path / name).write_text(text)
    async with reading(
        handler, username_file=str(tmp_path / "user"), password_file=str(tmp_path / "password")
    ) as reader:
        answer = await one(reader)
    assert isinstance(answer, Answer) and answer.series[0].value == 1


async def test_headers_come_from_files_and_are_read_again_when_the_secret_changes(tmp_path: Path) -> None:
    seen: list[tuple[str | None, ...]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(tuple(request.headers.get(h) for h in ("X-Scope-OrgID", "X-Team", "Authorization")))
        return vector()

    tenant, team, token = tmp_path / "tenant", tmp_path / "team", tmp_path / "token"
    for file, text in ((tenant, "ml\n"), (team, "models"), (token, SECRET)):
        file.write_text(text)
    files = {"X-Scope-OrgID": str(tenant), "X-Team": str(team)}
    async with reading(handler, header_files=files, token_file=str(token)) as reader:
        await one(reader)
        tenant.write_text("other")
        await one(reader)
    assert seen == [(t, "models", f"Bearer {SECRET}") for t in ("ml", "other")]


@pytest.mark.parametrize("value", ["", " \n", f"{SECRET}\nX-Other: 1", f"{SECRET}\0", f"{SECRET}é"])
async def test_a_header_that_cannot_be_sent_is_named_without_its_value(tmp_path: Path, value: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return vector()

    file = tmp_path / "tenant"
    file.write_text(value)
    async with reading(handler, header_files={"X-Scope-OrgID": str(file)}) as reader:
        refused = await problem(reader)
        assert refused.reason == "ProviderDenied"
        assert "X-Scope-OrgID" in refused.message and "correct it in the Secret" in refused.message
        file.unlink()
        assert (await problem(reader)).reason == "ProviderDenied"


@pytest.mark.parametrize("field", ["token_file", "username_file", "password_file"])
@pytest.mark.parametrize(
    "value", [f"{SECRET}\nX-Other: 1", f"{SECRET}\0", f"{SECRET}\N{GREEK SMALL LETTER ALPHA}", b"\xff"]
)
async def test_credentials_that_cannot_be_sent_are_named_without_their_value(
    tmp_path: Path, field: str, value: str | bytes
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return vector()

    good, odd = tmp_path / "good", tmp_path / "odd"
    good.write_text("good")
    odd.write_bytes(value if isinstance(value, bytes) else value.encode())
    files = {"username_file": str(good), "password_file": str(good)} if field != "token_file" else {}
    async with reading(handler, **{**files, field: str(odd)}) as reader:
        refused = await problem(reader)
    assert refused.reason == "ProviderDenied" and SECRET not in refused.message
    assert str(odd) in refused.message and "correct it in the Secret" in refused.message


@pytest.mark.parametrize(
    ("headers", "token", "sent"),
    [
        ((), False, "no header that says who asks"),
        (("X-Scope-OrgID",), False, "X-Scope-OrgID"),
        (("X-Scope-OrgID",), True, "Authorization and X-Scope-OrgID"),
    ],
)
async def test_who_refuses_a_tenant_is_told_with_what_was_sent(
    tmp_path: Path, headers: tuple[str, ...], token: bool, sent: str
) -> None:
    """As Mimir and Cortex answer to a query without a tenant."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=401, text="no org id")

    file = tmp_path / "secret"
    file.write_text(SECRET)
    files: dict[str, Any] = {"header_files": dict.fromkeys(headers, str(file))}
    async with reading(handler, **files | ({"token_file": str(file)} if token else {})) as reader:
        refused = await problem(reader)
    assert refused.reason == "ProviderDenied" and f"it was sent {sent};" in refused.message
    assert "headerSecrets" in refused.message


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of a private authority for 127.0.0.1, and a server's side of it."""
    folder = tmp_path_factory.mktemp("authority")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = "-subj /CN=company -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out ca.crt"
    subprocess.run([*command.split(), *names.split()], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    return folder / "ca.crt", context


@asynccontextmanager
async def reading_tls(context: ssl.SSLContext, **provider: Any) -> AsyncIterator[PrometheusReader]:
    async def handler(_: web.Request) -> web.Response:
        return vector(({}, "1"))

    app = web.Application()
    app.router.add_get("/api/v1/query", handler)
    server = TestServer(app)
    await server.start_server(ssl=context)
    url = f"https://127.0.0.1:{server.port}"
    reader = PrometheusReader(PrometheusConfig(name="main", url=url, **provider))
    try:
        yield reader
    finally:
        await reader.close()
        await server.close()


async def test_a_private_authority_is_trusted_where_it_is_named_and_nowhere_else(
    authority: tuple[Path, ssl.SSLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = authority
    async with reading_tls(context) as reader:
        refused = await problem(reader)
    assert refused.reason == "ProviderUnreachable" and "is not trusted" in refused.message
    assert "caSecret or caConfigMap" in refused.message
    # an image's own setting does not take its place
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    file = tmp_path / "ca.crt"
    file.write_bytes(trusted.read_bytes())
    async with reading_tls(context, ca_file=str(file)) as reader:
        answer = await one(reader)
        assert isinstance(answer, Answer) and answer.series[0].value == 1
        file.write_text("-----BEGIN NOTHING-----\n")
        odd = await problem(reader)
        assert odd.reason == "ProviderDenied" and "has no certificates in the form PEM" in odd.message
        file.unlink()
        assert (await problem(reader)).reason == "ProviderDenied"


async def test_threads_end_with_the_reader() -> None:
    async def handler(_: web.Request) -> web.Response:
        return vector()

    async with reading(handler, name="mine") as reader:
        await one(reader)
        workers = [t for t in threading.enumerate() if t.name.startswith("prometheus-mine")]
        assert workers
    for worker in workers:
        worker.join(5)
        assert not worker.is_alive()


async def test_who_cannot_be_connected_to_is_not_waited_for_again_by_everybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred rollouts and four workers: each look would wait for the same nothing."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        reader = PrometheusReader(
            PrometheusConfig(
                name="main", url=f"http://127.0.0.1:{closed.getsockname()[1]}", timeout_seconds=5.0
            )
        )
        tried: list[str] = []
        real = reader._query_now

        def spy(query: str) -> Answer | MeasurementProblem:
            tried.append(query)
            return real(query)

        monkeypatch.setattr(reader, "_query_now", spy)
        for query in ("a", "b", "c"):
            assert (await problem(reader)).reason == "ProviderUnreachable", query
        assert len(tried) == 1
        later = asyncio.get_running_loop().time() + 5.1
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: later)
        assert (await problem(reader)).reason == "ProviderUnreachable"
        assert len(tried) == 2
        await reader.close()


async def test_a_slow_query_is_its_authors_alone() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.query["query"] == "slow":
            await asyncio.sleep(30)
        return vector(({}, "1"))

    async with reading(handler, timeout_seconds=0.3) as reader:
        assert (await problem_of(reader, "slow")).reason == "ProviderTimeout"
        assert isinstance(await one(reader, "quick"), Answer)


async def test_own_queries_that_hang_hold_up_no_other() -> None:
    """As many as there may be, of a dozen namespaces, against a Prometheus that answers none of
    them.
    """
    told: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        if request.query["query"].startswith("slow"):
            told.append(request.query.get("timeout"))
            await asyncio.sleep(30)
        return vector(({}, "1"))

    async with reading(handler) as reader:
        looks = [
            asyncio.create_task(reader.query_own(f"n{n}", {f"{i}": f"slow{i}" for i in range(16)}))
            for n in range(12)
        ]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert all(isinstance(a, Answer) for a in await reader.query(["up"] * 16))
        assert time.monotonic() - began < 1
        for look in looks:
            assert {a.reason for a in (await look).values() if isinstance(a, MeasurementProblem)} == {
                "QueryPending"
            }
        assert time.monotonic() - began < 1.5
        assert told == ["2s", "2s"], "Prometheus is told, and has two at a time"


@pytest.mark.parametrize("how", ["hangs", "ends it", "dies"])
async def test_an_own_query_that_harms_prometheus_is_followed_by_a_pause(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace_queries, "LIMIT_SECONDS", 0.2)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.query["query"] == "quick":
            return vector(({}, "1"))
        if how == "ends it":
            text = "query timed out in expression evaluation"
            return web.json_response({"status": "error", "errorType": "timeout", "error": text}, status=503)
        if how == "dies":
            assert request.transport
            request.transport.close()
            return web.Response()
        await asyncio.sleep(30)
        return web.Response()

    async with reading(handler) as reader:
        reader._own._patience = 5.0
        answers = await reader.query_own("ours", {"1": "bad"})
        assert isinstance(answers["1"], MeasurementProblem) and answers["1"].reason == (
            "ProviderError" if how == "dies" else "ProviderTimeout"
        )
        again = await reader.query_own("ours", {"2": "quick"})
        assert isinstance(again["2"], MeasurementProblem) and again["2"].reason == "QueriesPaused"
        assert isinstance((await reader.query_own("theirs", {"1": "quick"}))["1"], Answer)
        assert isinstance(await one(reader, "quick"), Answer)


async def problem_of(reader: PrometheusReader, query: str) -> MeasurementProblem:
    answer = await one(reader, query)
    assert isinstance(answer, MeasurementProblem), answer
    return answer
