"""The adapter against a small HTTP server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import web

from modelrollout.kube import client, decoding
from modelrollout.kube.client import Kube
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    TooManyRequests,
    Unavailable,
    Unreadable,
    error_of,
)
from modelrollout.kube.kinds import GRPC_ROUTE, HTTP_ROUTE, JOB, MODEL_DEPLOYMENT, POD, SERVICE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECRET = "s3cr3t-token-value"


def status(
    code: int, reason: str, message: str = "m", headers: dict[str, str] | None = None, **details: Any
) -> web.Response:
    body = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }
    return web.json_response(body, status=code, headers=headers)


class Server:
    """Answers with ``answer``; keeps the requests."""

    def __init__(self) -> None:
        self.answer: Handler = self.ok
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    @staticmethod
    async def ok(_: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"name": "x"}})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json(loads=yaml.safe_load) if request.can_read_body else None
        self.requests.append((request.method, request.path, dict(request.query), body))
        self.headers.append(dict(request.headers))
        return await self.answer(request)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> str:
    (tmp_path / "token").write_text(SECRET)
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "main",
                "contexts": [
                    {"name": "main", "context": {"cluster": "main", "user": "file"}},
                    {"name": "dead", "context": {"cluster": "dead", "user": "file"}},
                ],
                "clusters": [
                    {"name": "main", "cluster": {"server": server.url}},
                    {"name": "dead", "cluster": {"server": "http://127.0.0.1:1"}},
                ],
                "users": [{"name": "file", "user": {"tokenFile": "token"}}],
            }
        )
    )
    return str(path)


@pytest_asyncio.fixture
async def kube(kubeconfig: str) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig, request_timeout=0.5, component="test") as kube:
        yield kube


async def test_requests_are_what_the_api_server_expects(server: Server, kube: Kube) -> None:
    obj = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "a"}, "spec": {}}
    await kube.get(POD, "ns", "a")
    await kube.create(SERVICE, obj)
    await kube.apply(SERVICE, obj)
    await kube.apply(SERVICE, obj, uid="u", resource_version="7")
    await kube.replace_status(
        MODEL_DEPLOYMENT,
        {
            "metadata": {"namespace": "ns", "name": "a", "uid": "u", "resourceVersion": "7", "labels": {}},
            "spec": {"big": 1},
            "status": {"phase": "Stable"},
        },
    )
    await kube.merge_patch(MODEL_DEPLOYMENT, "ns", "a", {"metadata": {"annotations": {"k": None}}})
    await kube.delete(JOB, "ns", "a", uid="u", propagation="Foreground")
    await kube.delete(POD, "ns", "a", uid="u", grace_seconds=45)
    manager = {"fieldManager": "modelrollout-operator"}
    assert server.requests == [
        ("GET", "/api/v1/namespaces/ns/pods/a", {}, None),
        ("POST", "/api/v1/namespaces/ns/services", manager, obj),
        ("PATCH", "/api/v1/namespaces/ns/services/a", {**manager, "force": "true"}, obj),
        (
            "PATCH",
            "/api/v1/namespaces/ns/services/a",
            {**manager, "force": "true"},
            {**obj, "metadata": {"namespace": "ns", "name": "a", "uid": "u", "resourceVersion": "7"}},
        ),
        (
            "PUT",
            "/apis/modelrollout.dev/v1alpha1/namespaces/ns/modeldeployments/a/status",
            manager,
            {
                "apiVersion": "modelrollout.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"namespace": "ns", "name": "a", "uid": "u", "resourceVersion": "7"},
                "status": {"phase": "Stable"},
            },
        ),
        (
            "PATCH",
            "/apis/modelrollout.dev/v1alpha1/namespaces/ns/modeldeployments/a",
            manager,
            {"metadata": {"annotations": {"k": None}}},
        ),
        (
            "DELETE",
            "/apis/batch/v1/namespaces/ns/jobs/a",
            {},
            {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "propagationPolicy": "Foreground",
                "preconditions": {"uid": "u"},
            },
        ),
        (
            "DELETE",
            "/api/v1/namespaces/ns/pods/a",
            {},
            {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "propagationPolicy": "Background",
                "preconditions": {"uid": "u"},
                "gracePeriodSeconds": 45,
            },
        ),
    ]
    types = [h.get("Content-Type") for h in server.headers if "Content-Type" in h]
    assert types[1:3] + types[-3:-2] == [
        "application/json",
        "application/apply-patch+yaml",
        "application/merge-patch+json",
    ]
    assert {h["Authorization"] for h in server.headers} == {f"Bearer {SECRET}"}
    assert {h["User-Agent"].split("/")[0] for h in server.headers} == {"modelrollout"}
    assert all(h["User-Agent"].endswith(" (test)") for h in server.headers)
    assert obj["metadata"] == {"namespace": "ns", "name": "a"}


async def test_names_cannot_leave_their_place_in_the_path(server: Server, kube: Kube) -> None:
    await kube.get(POD, "ns", "../../secrets/x")
    assert server.requests[0][1].startswith("/api/v1/namespaces/ns/pods/")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (status(404, "NotFound"), NotFound),
        (status(409, "AlreadyExists"), AlreadyExists),
        (status(409, "Conflict"), Conflict),
        (status(410, "Expired"), Gone),
        (status(403, "Forbidden"), Forbidden),
        (status(422, "Invalid"), Invalid),
        (status(429, "TooManyRequests"), TooManyRequests),
        (status(500, "InternalError"), Unavailable),
        (status(503, "ServiceUnavailable"), Unavailable),
        (web.Response(status=502, text="<html>"), Unavailable),
        (web.Response(status=200, text="<html>"), Unavailable),
        (status(400, "BadRequest"), KubeError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value.status),
)
async def test_every_failure_has_its_name(
    server: Server, kube: Kube, answer: web.Response, error: type[KubeError]
) -> None:
    async def respond(_: web.Request) -> web.StreamResponse:
        return answer

    server.answer = respond
    with pytest.raises(KubeError) as caught:
        await kube.get(POD, "ns", "a")
    assert type(caught.value) is error
    assert caught.value.status == answer.status
    assert SECRET not in f"{caught.value!r} {caught.value}"
    assert len(server.requests) == 1  # the caller decides on retries


async def test_retry_after_of_header_and_of_details(server: Server, kube: Kube) -> None:
    answers = [
        status(429, "TooManyRequests", headers={"Retry-After": "7"}),
        status(503, "ServiceUnavailable", retryAfterSeconds=3),
    ]

    async def respond(_: web.Request) -> web.StreamResponse:
        return answers.pop(0)

    server.answer = respond
    with pytest.raises(TooManyRequests) as first:
        await kube.get(POD, "ns", "a")
    with pytest.raises(Unavailable) as second:
        await kube.get(POD, "ns", "a")
    assert (first.value.retry_after, second.value.retry_after) == (7.0, 3.0)


@pytest.mark.parametrize("header", ["²", "-1", "soon", "9" * 5000, "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number_says_nothing(header: str) -> None:
    assert error_of(429, header, {}).retry_after is None
    assert error_of(429, header, {"details": {"retryAfterSeconds": 3}}).retry_after == 3.0


async def test_slow_headers_and_a_slow_body_are_cut_off(server: Server, kube: Kube) -> None:
    async def slow_headers(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.json_response({})

    async def slow_body(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(50):
            await response.write(b" ")
            await asyncio.sleep(0.1)
        return response

    for answer in (slow_headers, slow_body):
        server.answer = answer
        start = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match=r"0\.5 s"):
            await kube.get(POD, "ns", "a")
        assert asyncio.get_running_loop().time() - start < 2


async def test_a_reset_connection_and_a_refused_one(server: Server, kube: Kube, kubeconfig: str) -> None:
    async def reset(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.answer = reset
    with pytest.raises(Unavailable) as caught:
        await kube.apply(SERVICE, {"metadata": {"namespace": "ns", "name": "a"}})
    assert caught.value.status == 0
    async with await Kube.connect(kubeconfig, "dead") as dead:
        with pytest.raises(Unavailable):
            await dead.get(POD, "ns", "a")


async def test_every_request_is_counted_and_answers_are_remembered(server: Server, kubeconfig: str) -> None:
    counted: list[tuple[str, str, str]] = []
    time = 0.0
    async with await Kube.connect(
        kubeconfig,
        request_timeout=0.3,
        clock=lambda: time,
        on_request=lambda verb, resource, result: counted.append((verb, resource, result)),
    ) as kube:
        time = 50.0
        assert kube.silent_for() == 50
        await kube.list(POD)
        assert kube.silent_for() == 0

        async def broken(request: web.Request) -> web.StreamResponse:
            if request.method == "PATCH":
                await asyncio.sleep(2)
            return status(500, "InternalError")

        server.answer = broken
        time = 60.0
        with pytest.raises(Unavailable):
            await kube.get(POD, "ns", "a")
        with pytest.raises(Unavailable):
            await kube.merge_patch(POD, "ns", "a", {})
        assert kube.silent_for() == 10
    assert counted == [("list", "pods", "200"), ("get", "pods", "500"), ("patch", "pods", "timeout")]


async def test_a_list_is_read_to_its_end_and_begun_anew_when_it_grew_too_old(
    server: Server, kube: Kube
) -> None:
    pages: list[web.Response] = [
        web.json_response(
            {
                "metadata": {"continue": "a=b&c", "resourceVersion": "9"},
                "items": [{"metadata": {"name": "1"}}],
            }
        ),
        status(410, "Expired"),
        web.json_response(
            {
                "metadata": {"resourceVersion": "12"},
                "items": [{"metadata": {"name": "1"}}, {"metadata": {"name": "2"}}],
            }
        ),
    ]

    async def respond(_: web.Request) -> web.StreamResponse:
        return pages.pop(0)

    server.answer = respond
    listing = await kube.list(POD, "ns", label_selector="a.b/c=d,e in (f,g)", limit=1)
    assert [i["metadata"]["name"] for i in listing.items] == ["1", "2"]
    assert listing.items[0]["kind"] == "Pod"
    assert listing.resource_version == "12"
    queries = [query for _, _, query, _ in server.requests]
    assert queries == [
        {"labelSelector": "a.b/c=d,e in (f,g)", "limit": "1"},
        {"labelSelector": "a.b/c=d,e in (f,g)", "limit": "1", "continue": "a=b&c"},
        {"labelSelector": "a.b/c=d,e in (f,g)", "limit": "1"},
    ]


async def answering(server: Server, raw: bytes) -> None:
    async def respond(_: web.Request) -> web.StreamResponse:
        return web.Response(body=raw, content_type="application/json")

    server.answer = respond


DEEP = (
    b'{"apiVersion":"v1","kind":"X","metadata":{"name":"culprit","namespace":"ns","uid":"u"},"spec":'
    + b'{"a":' * 5000
    + b"{}"
    + b"}" * 5001
)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (DEEP, "Pod culprit is nested more than 64 deep"),
        (
            b'{"metadata":{"name":"culprit"},"spec":"' + b"x" * 300_000 + b'"}',
            "Pod culprit has 29. KiB of JSON, more than 256",
        ),
        (b'{"metadata":{"name":"culprit"},"spec":[]}', "Pod culprit has a spec that is no map"),
    ],
)
async def test_an_object_that_cannot_be_read_is_an_error_with_its_name(
    server: Server, kube: Kube, raw: bytes, why: str
) -> None:
    await answering(server, raw)
    for request in (
        kube.get(POD, "ns", "culprit"),
        kube.merge_patch(POD, "ns", "culprit", {}),
        kube.create(POD, {"metadata": {"name": "culprit"}}),
    ):
        with pytest.raises(Unreadable, match=why):
            await request
    await kube.delete(POD, "ns", "culprit")  # what it was need not be known


async def test_a_page_that_is_put_off_waits_and_the_list_goes_on_from_there(
    server: Server, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    def put_off(seconds: int) -> web.Response:
        return status(429, "TooManyRequests", headers={"Retry-After": str(seconds)})

    first = {"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "1"}}]}
    last = {"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "2"}}]}
    pages = [put_off(7), web.json_response(first), put_off(2), put_off(3), web.json_response(last)]
    pages += [put_off(10), web.json_response(first), put_off(8), put_off(8)]
    pages += [put_off(30), put_off(31), status(429, "TooManyRequests")]

    async def respond(_: web.Request) -> web.StreamResponse:
        return pages.pop(0)

    server.answer = respond
    monkeypatch.setattr(asyncio, "sleep", at_once)
    listing = await kube.list(POD, "ns", limit=1)
    assert [i["metadata"]["name"] for i in listing.items] == ["1", "2"]
    assert waits == [7.0, 2.0, 3.0]
    waits.clear()
    with pytest.raises(TooManyRequests):
        await kube.list(POD, "ns", limit=1)
    assert waits == [10.0, 8.0], "its pages have one patience together"
    waits.clear()
    for _ in ("put off for too long", "put off without an end"):
        with pytest.raises(TooManyRequests):
            await kube.list(POD, "ns", patience=60)
    assert waits == [30.0] and not pages


async def test_a_list_tells_what_it_leaves_out(server: Server, kube: Kube) -> None:
    told: list[tuple[Any, UnreadableObject]] = []
    kube.on_unread = lambda resource, unread: told.append((resource, unread))
    await answering(
        server,
        b'{"apiVersion":"v1","items":[' + DEEP + b'],"kind":"List","metadata":{"resourceVersion":"7"}}',
    )
    listing = await kube.list(POD)
    assert (listing.items, listing.resource_version) == ([], "7")
    assert [(r, u.namespace, u.name, u.uid) for r, u in told] == [(POD, "ns", "culprit", "u")]
    assert listing.unread == (told[0][1],)
    await answering(server, b"<html>")
    with pytest.raises(Unavailable, match="the list of pods is no list"):
        await kube.list(POD)


async def test_a_list_has_a_limit_for_each_namespace(
    server: Server, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "NAMESPACE_BYTES", 15_000)
    items = [
        {"metadata": {"name": f"{ns}{i}", "namespace": ns, "managedFields": "x" * 9000}}
        for i in range(20)
        for ns in ("a", "b")
    ]
    items += [{"metadata": {"name": "small", "namespace": "c"}}]
    await answering(server, json.dumps({"metadata": {}, "items": items}).encode())
    listing = await kube.list(POD)
    assert [o["metadata"]["name"] for o in listing.items] == ["a0", "b0", "small"]
    assert (
        len(listing.unread) == 38
        and "MiB of memory for the objects of its namespace" in listing.unread[0].why
    )
    assert (
        len((await kube.list(POD, keep=lambda o: {"metadata": {"name": o["metadata"]["name"]}})).items) == 41
    )


async def test_kinds_are_discovered_once_in_a_while(server: Server, kubeconfig: str) -> None:
    time = 0.0
    async with await Kube.connect(kubeconfig, clock=lambda: time) as kube:

        async def absent(_: web.Request) -> web.StreamResponse:
            return status(404, "NotFound")

        server.answer = absent
        assert not await kube.has_kind(HTTP_ROUTE)
        assert not await kube.has_kind(HTTP_ROUTE)
        assert len(server.requests) == 1

        async def present(_: web.Request) -> web.StreamResponse:
            return web.json_response({"resources": [{"name": "httproutes"}, {"name": "httproutes/status"}]})

        server.answer = present
        time = 61.0
        assert await kube.has_kind(HTTP_ROUTE)
        assert not await kube.has_kind(GRPC_ROUTE)
        assert [path for _, path, _, _ in server.requests] == ["/apis/gateway.networking.k8s.io/v1"] * 2


async def test_a_rotated_token_file_is_read_again_when_the_old_one_is_refused(
    server: Server, kubeconfig: str
) -> None:
    valid = "new-token"

    async def check(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] != f"Bearer {valid}":
            return status(401, "Unauthorized")
        return web.json_response({"metadata": {"name": "a"}})

    server.answer = check
    time = 0.0
    async with await Kube.connect(kubeconfig, clock=lambda: time) as kube:
        (Path(kubeconfig).parent / "token").write_text(valid)
        time = 60.0
        await asyncio.gather(*(kube.get(POD, "ns", "a") for _ in range(5)))
        valid = "revoked"
        time = 65.0
        before = len(server.requests)
        with pytest.raises(KubeError, match="Unauthorized"):
            await kube.get(POD, "ns", "a")
        assert len(server.requests) == before + 1  # just read: not read again for every request


async def test_in_a_pod_the_projected_token_is_followed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incluster_config: Any = importlib.import_module("kubernetes.aio.config.incluster_config")

    token = tmp_path / "token"
    token.write_text("first")
    (tmp_path / "ca.crt").write_text("x")
    host, port = server.url.removeprefix("http://").split(":")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(
        incluster_config.InClusterConfigLoader,
        "_set_config",
        _plain(incluster_config.InClusterConfigLoader._set_config, server.url),
    )
    async with await Kube.connect() as kube:
        await kube.get(POD, "ns", "a")
        token.write_text("second")
        later = incluster_config.datetime.datetime.now() + incluster_config.datetime.timedelta(minutes=2)

        class Clock(incluster_config.datetime.datetime):  # type: ignore[misc]
            @classmethod
            def now(cls) -> Any:
                return later

        monkeypatch.setattr(incluster_config.datetime, "datetime", Clock)
        await kube.get(POD, "ns", "a")
        token.write_text("")
        later += incluster_config.datetime.timedelta(minutes=2)
        with pytest.raises(Unavailable, match="CredentialsError"):
            await kube.get(POD, "ns", "a")
    assert [h["Authorization"] for h in server.headers] == ["bearer first", "bearer second"]


def _plain(set_config: Any, url: str) -> Any:
    """The loader always speaks TLS; the test server does not."""

    def patched(self: Any, configuration: Any) -> None:
        set_config(self, configuration)
        configuration.host, configuration.ssl_ca_cert = url, None

    return patched


async def test_a_token_that_is_no_header_is_not_shown(kubeconfig: str) -> None:
    (Path(kubeconfig).parent / "token").write_text(f"{SECRET}\nx")
    async with await Kube.connect(kubeconfig) as kube:
        with pytest.raises(Unavailable) as caught:
            await kube.get(POD, "ns", "a")
    assert SECRET not in str(caught.value)


async def test_without_credentials_the_message_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(KubeError, match="absent, and this process does not run in a pod"):
        await Kube.connect()
    (tmp_path / "broken").write_text("[]")
    with pytest.raises(KubeError):
        await Kube.connect(str(tmp_path / "broken"))


async def test_a_proxy_of_the_environment_is_used_but_never_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", ".svc,10.0.0.1")
    assert client._proxy("https://api.example.com:6443") == "http://proxy:3128"
    assert client._proxy("https://10.0.0.1:443") is None
    assert client._proxy("https://127.0.0.1:6443") is None


async def test_replacing_needs_a_guard(kube: Kube) -> None:
    with pytest.raises(ValueError, match="resourceVersion"):
        await kube.replace_status(
            MODEL_DEPLOYMENT, {"metadata": {"namespace": "ns", "name": "a"}, "status": {}}
        )
    with pytest.raises(ValueError, match="uid"):
        await kube.apply(SERVICE, {"metadata": {"namespace": "ns", "name": "a"}}, resource_version="1")


async def test_another_uid_is_a_conflict(server: Server, kube: Kube) -> None:
    async def immutable(_: web.Request) -> web.StreamResponse:
        return status(
            422, "Invalid", 'Service "a" is invalid: metadata.uid: Invalid value: "u": field is immutable'
        )

    server.answer = immutable
    with pytest.raises(Conflict):
        await kube.apply(SERVICE, {"metadata": {"namespace": "ns", "name": "a"}}, uid="u")


async def test_connections_are_bounded(server: Server, kubeconfig: str) -> None:
    at_once = most = 0

    async def count(_: web.Request) -> web.StreamResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        return web.json_response({"metadata": {"name": "a"}})

    server.answer = count
    async with await Kube.connect(kubeconfig, max_connections=3) as kube:
        await asyncio.gather(*(kube.get(POD, "ns", "a") for _ in range(20)))
    assert most == 3


async def test_nothing_secret_is_logged(server: Server, kube: Kube, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await kube.create(SERVICE, {"metadata": {"namespace": "ns", "name": "a"}, "data": "body-text"})
    assert SECRET not in caplog.text
    assert "body-text" not in caplog.text
