"""Whatever the API server sends, the watch and the lists of all other objects go on, and what is
left out is named.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import kopf
import pytest
from aiohttp import web
from kopf._cogs.clients.api import iter_jsonlines

from modelrollout.api import names
from modelrollout.controller import watch
from modelrollout.controller.intake import LINE_BYTES, Intake
from modelrollout.controller.unreadable import REPORT_SECONDS, STALE_SECONDS, UnreadableObjects
from modelrollout.kube import decoding
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Listing
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.errors import Unavailable
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    GATEWAY,
    GATEWAY_CLASS,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
    ROLLOUT_POLICY,
    WATCHED,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.testing.fake_cluster import KEY

OURS = {names.LABEL_NAME: KEY[1]}


class Posted:
    """Takes events as ``Events`` does."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, str, str]] = []

    async def post(self, obj: Any, kind: str, reason: str, text: str) -> None:
        self.posted.append((obj["metadata"]["name"], reason, text))


class Lists:
    """Answers lists as ``Kube`` does."""

    def __init__(self) -> None:
        self.items: list[Object] = []
        self.unread: tuple[UnreadableObject, ...] = ()
        self.asked: list[tuple[Resource, str | None, str]] = []
        self.error: Exception | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.on_unread: Callable[[Resource, UnreadableObject], None] = lambda resource, unread: None

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str,
        keep: Callable[[Object], Object],
        patience: float,
    ) -> Listing:
        assert patience, "a list that is put off goes on from the page that was"
        self.asked.append((resource, namespace, label_selector))
        if self.error:
            raise self.error
        self.meanwhile()
        for u in self.unread:
            self.on_unread(resource, u)
        return Listing([keep(o) for o in self.items], "99", self.unread)


class Bench:
    """An intake with what is around it."""

    def __init__(self) -> None:
        self.now, self.leads = 0.0, True
        self.events, self.kube, self.woken = Posted(), Lists(), list[Key]()
        self.unread = UnreadableObjects(self.events, lambda: self.leads, lambda: self.now)  # type: ignore[arg-type]
        self.kube.on_unread = self.unread.note
        self.store = ObjectCache(self.unread.note)
        self.intake = Intake(self.kube, self.store, self.unread, WATCHED, self.woken.append)  # type: ignore[arg-type]


@pytest.fixture
async def bench() -> Bench:
    return Bench()


def obj(version: int, *, name: str = "x", labels: dict[str, str] | None = None, **body: Any) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": KEY[0],
            "uid": name,
            "resourceVersion": str(version),
            "labels": labels or {},
        },
        **body,
    }


def line(kind: str, value: Any) -> bytes:
    return json.dumps({"type": kind, "object": value}, separators=(",", ":")).encode()


def raw(kind: str, spec: str, name: str = KEY[1], version: int = 5) -> bytes:
    about = json.dumps(obj(version, name=name)["metadata"])
    return f'{{"type":"{kind}","object":{{"apiVersion":"v1","kind":"X","metadata":{about},"spec":{spec}}}}}'.encode()  # noqa: E501


DEEP = '{"a":' * 1200 + "{}" + "}" * 1200
ODD: list[tuple[Resource, str]] = [
    *(
        (MODEL_DEPLOYMENT, spec)
        for spec in (
            DEEP,
            '{"a":' * 100 + "{}" + "}" * 100,
            "[" * 500 + "]" * 500,
            '"' + "x" * LINE_BYTES + '"',
        )
    ),
    *((MODEL_DEPLOYMENT, spec) for spec in ("[]", "3", '"spec"', '{},"status":[]')),
    *(
        (MODEL_DEPLOYMENT, '{},"status":' + status)
        for status in ('{"conditions":{"a":1}}', '{"conditions":[3]}', '{"phase":{}}')
    ),
    *(
        (MODEL_REVISION, spec)
        for spec in ("{}", "null", '{"number":"1","sha256":1,"input":[],"template":[]}')
    ),
    (POD, DEEP),
    (ROLLOUT_POLICY, "[]"),
]


def test_a_model_deployment_wakes_itself_and_a_child_its_owner(bench: Bench) -> None:
    bench.intake.line(MODEL_DEPLOYMENT, line("ADDED", obj(1, name=KEY[1])), False)
    bench.intake.line(DEPLOYMENT, line("ADDED", obj(1, labels=OURS)), False)
    bench.intake.line(DEPLOYMENT, line("DELETED", obj(2, labels=OURS)), False)
    assert bench.woken == [KEY] * 3


def test_a_gateway_wakes_those_that_name_it(bench: Bench) -> None:
    """Its label names no model, and noise of other tenants is none."""
    for name, gateway in (
        ("by-default", {"name": "public"}),
        ("by-name", {"name": "public", "namespace": KEY[0]}),
        ("elsewhere", {"name": "public", "namespace": "gateways"}),
        ("without", None),
    ):
        spec = {"traffic": {"gateway": gateway}} if gateway else {}
        bench.intake.line(MODEL_DEPLOYMENT, line("ADDED", obj(1, name=name, spec=spec)), False)
    bench.woken.clear()
    named = {(KEY[0], "by-default"), (KEY[0], "by-name")}

    def woken_by(type_: str, version: int, routes: int, **status: Any) -> set[Key]:
        bench.woken.clear()
        status["listeners"] = [{"name": "http", "attachedRoutes": routes}]
        value = obj(version, name="public", labels=OURS, status=status)
        bench.intake.line(GATEWAY, line(type_, value), False)
        return set(bench.woken)

    assert woken_by("ADDED", 1, 0) == named
    assert woken_by("MODIFIED", 2, 500) == set(), "routes of any tenant"
    assert woken_by("MODIFIED", 3, 500, conditions=[{"type": "Programmed", "status": "False"}]) == named
    assert woken_by("DELETED", 4, 500) == named
    assert bench.store.children(KEY) == []


async def test_a_list_without_a_gateway_wakes_those_that_name_it(bench: Bench) -> None:
    routed = obj(1, name="m", spec={"traffic": {"gateway": {"name": "public"}}})
    bench.intake.line(MODEL_DEPLOYMENT, line("ADDED", routed), False)
    bench.intake.line(GATEWAY, line("ADDED", obj(2, name="public")), False)
    bench.woken.clear()
    await bench.intake.list(GATEWAY, None)
    assert bench.woken == [(KEY[0], "m")] and bench.store.get(GATEWAY, KEY[0], "public") is None


def test_a_gateway_class_wakes_all_that_name_a_gateway(bench: Bench) -> None:
    for name, spec in (("a", {"traffic": {"gateway": {"name": "x"}}}), ("b", {})):
        bench.intake.line(MODEL_DEPLOYMENT, line("ADDED", obj(1, name=name, spec=spec)), False)
    bench.woken.clear()
    metadata = {"name": "shiny", "uid": "c", "resourceVersion": "1"}
    bench.intake.line(GATEWAY_CLASS, line("ADDED", {"metadata": metadata, "spec": {}}), False)
    assert bench.woken == [(KEY[0], "a")]


def test_strangers_old_events_and_noise_wake_no_key(bench: Bench) -> None:
    for value in (
        obj(1, labels={"app": "other"}),
        obj(5, labels=OURS),
        obj(4, labels=OURS, spec={"replicas": 3}),
        obj(6, labels=OURS),
    ):
        bench.intake.line(DEPLOYMENT, line("MODIFIED", value), False)
    assert bench.woken == [KEY]


def test_objects_say_what_they_are(bench: Bench) -> None:
    """Items of a list have neither apiVersion nor kind."""
    bench.intake.event(DEPLOYMENT, None, obj(1, labels=OURS))
    stored = bench.store.get(DEPLOYMENT, KEY[0], "x")
    assert stored and (stored["apiVersion"], stored["kind"]) == ("apps/v1", "Deployment")


def test_kopf_gets_how_far_the_watch_came_and_errors_as_they_are(bench: Bench) -> None:
    left = json.loads(bench.intake.line(POD, line("ADDED", obj(7, labels=OURS)), False) or b"")
    assert left == {
        "type": "BOOKMARK",
        "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": "7"}},
    }
    for other in (
        line("ERROR", {"code": 410}),
        line("BOOKMARK", {"metadata": {"resourceVersion": "9"}}),
        b"3",
        b"[]",
    ):
        assert bench.intake.line(POD, other, False) == other


@pytest.mark.parametrize(
    ("resource", "spec"), ODD, ids=lambda v: v.kind if isinstance(v, Resource) else v[:40]
)
async def test_what_cannot_be_read_is_left_out_and_named(
    bench: Bench, resource: Resource, spec: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store.observe(resource, {"type": "ADDED", "object": obj(3, name=KEY[1])})
    left = bench.intake.line(resource, raw("MODIFIED", spec)[:LINE_BYTES], len(spec) > LINE_BYTES)
    assert json.loads(left or b"")["object"]["metadata"]["resourceVersion"] == "5", (
        "the watch goes on from there"
    )
    assert bench.store.get(resource, KEY[0], KEY[1]) is None, "what it was before is nothing to act on"
    assert bench.unread.count() == {(resource.kind, KEY[0]): 1}
    assert len(caplog.records) == 1 and f"{resource.kind} {KEY[0]}/{KEY[1]} is left out" in caplog.text
    await asyncio.sleep(0)
    assert [(name, reason) for name, reason, _ in bench.events.posted] == [(KEY[1], "Unreadable")]
    bench.intake.line(DEPLOYMENT, line("ADDED", obj(6, labels=OURS)), False)
    assert bench.woken[-1] == KEY, "all others go on"


async def test_when_it_can_be_read_again_it_is_there_again(bench: Bench) -> None:
    bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", DEEP), False)
    bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", "{}", version=6), False)
    assert bench.unread.count() == {} and bench.woken[-1] == KEY
    assert bench.store.get(MODEL_DEPLOYMENT, *KEY) is not None


async def test_when_it_is_deleted_nothing_is_left_of_it(bench: Bench) -> None:
    bench.intake.line(MODEL_DEPLOYMENT, raw("ADDED", DEEP), False)
    bench.intake.line(MODEL_DEPLOYMENT, raw("DELETED", DEEP), False)
    assert bench.unread.count() == {}


async def test_many_changes_of_it_are_one_line_in_ten_minutes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for version in range(100):
        bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", DEEP, version=version), False)
    assert len(caplog.records) == 1
    bench.now += REPORT_SECONDS
    bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", DEEP, version=200), False)
    assert len(caplog.records) == 2
    bench.now += STALE_SECONDS
    assert bench.unread.count() == {}


async def test_only_the_leader_posts_events(bench: Bench) -> None:
    bench.leads = False
    bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", DEEP), False)
    await asyncio.sleep(0)
    assert bench.events.posted == [] and len(bench.unread.count()) == 1


async def test_a_namespace_has_a_share_of_the_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoding, "NAMESPACE_BYTES", 50_000)
    for n in range(20):
        bench.intake.line(MODEL_DEPLOYMENT, raw("ADDED", json.dumps({"x": "y" * 9000}), name=f"m{n}"), False)
    assert len(bench.store) == 4 and bench.unread.count() == {("ModelDeployment", KEY[0]): 16}
    assert (
        "m19 is left out" in caplog.text and "MiB of memory for the objects of its namespace" in caplog.text
    )
    other = obj(1, name="other") | {
        "metadata": {"name": "other", "namespace": "elsewhere", "resourceVersion": "1"}
    }
    bench.intake.line(MODEL_DEPLOYMENT, line("ADDED", other), False)
    assert bench.store.get(MODEL_DEPLOYMENT, "elsewhere", "other"), "another namespace has its own"
    bench.intake.line(MODEL_DEPLOYMENT, raw("DELETED", "{}", name="m0", version=9), False)
    bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", "{}", name="m19", version=9), False)
    assert (
        bench.store.get(MODEL_DEPLOYMENT, KEY[0], "m19")
        and bench.unread.count()[("ModelDeployment", KEY[0])] == 15
    )
    bench.intake.line(
        MODEL_DEPLOYMENT, raw("MODIFIED", json.dumps({"x": "y" * 30_000}), name="m1", version=9), False
    )
    assert bench.store.get(MODEL_DEPLOYMENT, KEY[0], "m1") is None, "one that outgrows the share goes"


async def test_a_list_takes_everything_in_and_forgets_what_is_gone(bench: Bench) -> None:
    bench.intake.line(MODEL_DEPLOYMENT, raw("ADDED", "{}", name="gone", version=1), False)
    bench.intake.line(MODEL_DEPLOYMENT, raw("ADDED", DEEP, name="was-deep", version=1), False)
    bench.now += 1
    bench.kube.items = [obj(2, name="a"), obj(2, name="odd", status={"phase": 3}), obj(2, name="was-deep")]
    bench.kube.unread = (UnreadableObject(KEY[0], "deep", "u", "2", "is nested too deep"),)
    assert await bench.intake.list(MODEL_DEPLOYMENT, None) == "99"
    assert {o["metadata"]["name"] for o in bench.store.all(MODEL_DEPLOYMENT)} == {"a", "was-deep"}
    assert bench.unread.count() == {("ModelDeployment", KEY[0]): 2}
    bench.now += 1
    bench.kube.items, bench.kube.unread = [obj(2, name="a")], ()
    # met after the list was asked for
    bench.intake.line(MODEL_DEPLOYMENT, raw("ADDED", DEEP, name="younger", version=100), False)
    await bench.intake.list(MODEL_DEPLOYMENT, KEY[0])
    assert bench.unread.count() == {("ModelDeployment", KEY[0]): 1}
    bench.now += 1
    await bench.intake.list(MODEL_DEPLOYMENT, KEY[0])
    assert bench.unread.count() == {}
    await bench.intake.list(POD, None)
    assert bench.kube.asked[-1] == (POD, None, names.LABEL_NAME)


@pytest.mark.parametrize("kind", ["DELETED", "MODIFIED"])
async def test_a_list_on_its_way_does_not_bring_back_what_went_meanwhile(bench: Bench, kind: str) -> None:
    """Of hundreds of such objects a list takes many seconds, and tells at its end of all that it
    met.
    """
    bench.intake.line(MODEL_DEPLOYMENT, raw("ADDED", DEEP, version=5), False)
    bench.kube.unread = (UnreadableObject(*KEY, "u", "5", "is nested too deep"),)
    bench.kube.meanwhile = lambda: bench.intake.line(
        MODEL_DEPLOYMENT, raw(kind, "{}" if kind == "MODIFIED" else DEEP, version=6), False
    )
    await bench.intake.list(MODEL_DEPLOYMENT, None)
    assert bench.unread.count() == {}
    bench.intake.line(MODEL_DEPLOYMENT, raw("MODIFIED", DEEP, version=7), False)
    assert bench.unread.count() == {("ModelDeployment", KEY[0]): 1}, "what comes later counts"


async def test_random_lines_end_nothing(bench: Bench) -> None:
    rng = random.Random(3)
    value = obj(
        5,
        name=KEY[1],
        labels=OURS,
        spec={"traffic": {"http": {"hostnames": ["a.example"]}}, "a": [1, {"b": None}]},
        status={"rollout": {}},
    )
    good = line("MODIFIED", value)
    for n in range(5000):
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            raw[rng.randrange(len(raw))] = rng.choice(b'{}[]",:0aZ\\\xff') if n % 2 else rng.randrange(256)
        bench.intake.line(rng.choice(WATCHED), bytes(raw), False)


@pytest.mark.parametrize("hosts", [None, 3, "text", {}, [3], [[]], [{}], [None], {"a": 1}])
def test_odd_host_names_mark_nothing(bench: Bench, hosts: Any) -> None:
    bench.intake.event(
        MODEL_DEPLOYMENT,
        "ADDED",
        obj(1, spec={"traffic": {"http": {"hostnames": hosts}, "grpc": hosts}, "rollout": hosts}),
    )
    assert len(bench.store) == 1


@pytest.mark.parametrize(
    ("path", "actual"),
    [
        ("/api/v1/pods", (POD, None)), ("/api/v1/namespaces/ml/pods", (POD, "ml")),
        ("/apis/apps/v1/namespaces/ml/deployments", (DEPLOYMENT, "ml")),
        ("/api/v1/namespaces/ml/pods/x", None), ("/api/v1/namespaces/ml/pods/x/log", None), ("/api/v1", None),
        ("/api/v1/namespaces", None),
        ("/api/v1/secrets", None), ("/api/v1/namespaces/pods", None),
        ("/apis/modelrollout.dev/v1alpha1/rolloutpolicies", (ROLLOUT_POLICY, None)),
        ("/apis/modelrollout.dev/v1alpha1/namespaces/ml/rolloutpolicies", None),
    ],
)  # fmt: skip
def test_which_paths_are_watched(bench: Bench, path: str, actual: tuple[Resource, str | None] | None) -> None:
    assert bench.intake.watched(path) == actual


# --- kopf's session


@pytest.fixture
async def serve() -> AsyncIterator[
    Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]
]:
    runners: list[web.AppRunner] = []

    async def start(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runners.append(web.AppRunner(app, access_log=None, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runners[-1].addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def through(bench: Bench, url: str, path: str) -> Any:
    """What kopf reads at the path: JSON, or of a watch the lines."""
    session = watch.session(kopf.ConnectionInfo(server=f"{url}/prefix"), bench.intake).aiohttp_session
    async with session, session.get(f"{url}/prefix{path}") as response:
        if "watch" in path:
            return [json.loads(line) async for line in iter_jsonlines(response.content)]
        return await response.json()


@pytest.mark.parametrize("size", [7, 1000, 1 << 20])
async def test_a_watch_goes_on_whatever_comes(bench: Bench, serve: Any, size: int) -> None:
    lines = [raw("ADDED", "{}", "a", 1), raw("ADDED", DEEP, "deep", 2), b"", b"\xff\xfe",
        raw("ADDED", '"' + "x" * 3_000_000 + '"', "huge", 3),
             raw("ADDED", "{}", "b", 4), line("ERROR", {"code": 410})]  # fmt: skip
    body = b"\n".join(lines if size > 7 else [*lines[:4], *lines[5:]]) + b"\n"

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(body), size):
            await response.write(body[at : at + size])
        return response

    left = await through(
        bench, await serve(answer), "/apis/modelrollout.dev/v1alpha1/modeldeployments?watch=true"
    )
    versions = [e["object"]["metadata"]["resourceVersion"] for e in left[:-1]]
    assert versions == (["1", "2", "3", "4"] if size > 7 else ["1", "2", "4"]) and left[-1]["type"] == "ERROR"
    assert {o["metadata"]["name"] for o in bench.store.all(MODEL_DEPLOYMENT)} == {"a", "b"}
    assert bench.unread.count()[("ModelDeployment", KEY[0])] == (2 if size > 7 else 1)


async def test_kopfs_list_is_the_intakes(bench: Bench, serve: Any) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"items": ["never read"]})

    url = await serve(answer)
    bench.kube.items = [obj(2, name=KEY[1])]
    result = await through(
        bench, url, "/apis/modelrollout.dev/v1alpha1/namespaces/ml/modeldeployments?limit=1"
    )
    assert (
        result["items"] == []
        and result["metadata"] == {"resourceVersion": "99"}
        and bench.woken == [(KEY[0], KEY[1])]
    )
    assert bench.kube.asked == [(MODEL_DEPLOYMENT, "ml", "")]
    assert await through(bench, url, "/api/v1") == {"items": ["never read"]}


@pytest.mark.parametrize("error", [Unavailable(503, "Away", "away"), RecursionError("x"), KeyError("x")])
async def test_a_list_that_fails_is_for_kopf_a_broken_connection(
    bench: Bench, serve: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RELIST_SECONDS", 0.0)
    bench.kube.error = error

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    with pytest.raises(aiohttp.ClientPayloadError):
        await through(bench, await serve(answer), "/api/v1/pods")
