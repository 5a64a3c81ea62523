"""The feedback service: who may send what, what is counted once, and what can blow up nobody."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from modelrollout.evaluator import feedback
from modelrollout.evaluator.feedback import FeedbackService, serve
from modelrollout.evaluator.feedback_auth import Identity, KubernetesAuthorizer, UnavailableError
from modelrollout.evaluator.feedback_items import Item
from modelrollout.evaluator.feedback_ledger import Ledger, Limits
from modelrollout.kube.client import KubeError, Object, Resource, Unavailable

GOOD: dict[str, Any] = {"namespace": "team-a", "name": "digits", "version": 7, "id": "one", "correct": True}
TOKEN = "t0ken-of-a-client"


class Rules:
    """An authorizer that knows one token, and what it may do; ``down`` makes the API server unreachable."""

    def __init__(self) -> None:
        self.down = False
        self.models = {("team-a", "digits")}

    async def authenticate(self, token: str) -> Identity | None:
        if self.down:
            raise UnavailableError("the API server cannot be asked", 7)
        return Identity("client", "k", {}) if token == TOKEN else None

    async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
        return (namespace, name) in self.models


class Caller:
    """A client with a token."""

    def __init__(self, client: TestClient[Any, Any], rules: Rules) -> None:
        self.client, self.rules = client, rules

    async def post(self, body: object, *, token: str | None = TOKEN, status: int = 200) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post("/v1/feedback", data=data, headers=headers) as response:
            assert response.status == status, await response.text()
            self.headers: Mapping[str, str] = response.headers
            answer: dict[str, Any] = await response.json()
            return answer

    async def counted(self, **labels: str) -> float:
        """Sum of the exported counters with these labels."""
        async with self.client.get("/metrics") as response:
            lines = [line for line in (await response.text()).splitlines() if line.startswith("modelrollout_feedback_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(f'{k}="{v}"' in line for k, v in labels.items()))


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    rules = Rules()
    async with TestClient(TestServer(FeedbackService(rules).app())) as client:
        yield Caller(client, rules)


async def test_right_and_wrong_are_counted_by_version_and_slice(caller: Caller) -> None:
    assert await caller.post(GOOD) == {"accepted": 1, "duplicates": 0}
    await caller.post({**GOOD, "id": "two", "correct": False, "slice": "writer-3"})
    assert await caller.counted(namespace="team-a", name="digits", version="7", slice="", result="right") == 1
    assert await caller.counted(slice="writer-3", result="wrong") == 1
    assert await caller.counted() == 2


@pytest.mark.parametrize(
    ("prediction", "label", "result"), [(3, 3, "right"), ("cat", "dog", "wrong"), (True, True, "right"), (1, 1.0, "right"), (0.5, 0.25, "wrong")]
)
async def test_prediction_and_label_are_compared(caller: Caller, prediction: object, label: object, result: str) -> None:
    item = {k: v for k, v in GOOD.items() if k != "correct"}
    await caller.post({**item, "prediction": prediction, "label": label})
    assert await caller.counted(result=result) == 1 == await caller.counted()


async def test_the_same_id_counts_once_for_a_version(caller: Caller) -> None:
    await caller.post(GOOD)
    assert await caller.post({**GOOD, "correct": False}) == {"accepted": 0, "duplicates": 1}
    assert await caller.post({"items": [GOOD, {**GOOD, "version": 8}, {**GOOD, "version": 8}]}) == {"accepted": 1, "duplicates": 2}
    assert await caller.counted(result="right") == 2
    assert await caller.counted(result="wrong") == 0


async def test_the_version_may_be_text_as_in_tritons_answer(caller: Caller) -> None:
    await caller.post({**GOOD, "version": "7"})
    assert await caller.counted(version="7") == 1


def without(field: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != field}


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        (b"{", "", "not JSON"),
        (b'{"a": NaN}', "", "NaN"),
        (b"[" * 100_000, "", "not JSON"),
        (b"\xff\xfe", "", "not JSON"),
        ([GOOD], "", "one JSON object"),
        ({"items": []}, "items", "1 to 1000"),
        ({"items": [GOOD] * 1001}, "items", "1001"),
        ({"items": {}, "id": "x"}, "items", "list"),
        ({"items": [{**GOOD, "name": f"m{i}"} for i in range(17)]}, "items", "16 models"),
        ({"items": [GOOD, 5]}, "items[1]", "object"),
        ({"items": [GOOD, {**GOOD, "version": 0}]}, "items[1].version", "model_version"),
        ({**GOOD, "version": True}, "version", "model_version"),
        ({**GOOD, "version": 1.5}, "version", "model_version"),
        ({**GOOD, "version": "7a"}, "version", "model_version"),
        (without("version"), "version", "model_version"),
        ({**GOOD, "namespace": "Team A"}, "namespace", "ModelDeployment"),
        (without("name"), "name", "ModelDeployment"),
        (without("id"), "id", "1 to 128"),
        ({**GOOD, "id": "x" * 129}, "id", "1 to 128"),
        ({**GOOD, "id": 5}, "id", "string"),
        ({**GOOD, "slice": 'a"\n'}, "slice", "letters"),
        ({**GOOD, "correct": "yes"}, "correct", "true or false"),
        ({**GOOD, "label": 1}, "correct", "either"),
        (without("correct"), "correct", "prediction and label"),
        ({**without("correct"), "prediction": 1}, "label", "missing"),
        ({**without("correct"), "label": 1}, "prediction", "missing"),
        ({**without("correct"), "prediction": "7", "label": 7}, "label", "kind"),
        ({**without("correct"), "prediction": [1], "label": [1]}, "prediction", "string"),
        ({**GOOD, "verison": 7}, "verison", "known are"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_counted(caller: Caller, body: object, field: str, says: str) -> None:
    answer = await caller.post(body, status=400)
    assert answer.get("field", "") == field
    assert says in answer["error"]
    assert await caller.counted() == 0


async def test_a_body_beyond_the_limit_is_refused(caller: Caller) -> None:
    answer = await caller.post(b'{"id": "' + b"x" * feedback.MAX_BODY_BYTES + b'"}', status=413)
    assert "1 MiB" in answer["error"]


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 8000])
async def test_without_a_valid_token_nothing_is_read(caller: Caller, token: str | None) -> None:
    answer = await caller.post(b"{ not even JSON", token=token, status=401)
    assert caller.headers["WWW-Authenticate"] == "Bearer" and "modelrollout-feedback" in answer["error"]
    assert await caller.counted() == 0


async def test_one_model_that_is_not_allowed_refuses_the_whole_request(caller: Caller) -> None:
    answer = await caller.post({"items": [GOOD, {**GOOD, "name": "letters"}]}, status=403)
    assert "team-a/letters" in answer["error"] and "modeldeployments/feedback" in answer["error"]
    assert await caller.counted() == 0


async def test_an_api_server_that_is_down_asks_to_come_back(caller: Caller) -> None:
    caller.rules.down = True
    await caller.post(GOOD, status=503)
    assert caller.headers["Retry-After"] == "7"
    async with caller.client.get("/readyz") as response:
        assert response.status == 200
    async with caller.client.get("/healthz") as response:
        assert response.status == 200


async def test_other_methods_and_paths_answer_in_json(caller: Caller) -> None:
    async with caller.client.get("/v1/feedback") as response:
        assert response.status == 405 and (await response.json())["error"] and response.headers["Allow"]
    async with caller.client.get("/nothing") as response:
        assert response.status == 404 and (await response.json())["error"]


async def test_what_nobody_expected_is_logged_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Rules):
        async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
            raise RuntimeError("bug")

    async with TestClient(TestServer(FeedbackService(Broken()).app())) as client:
        with caplog.at_level(logging.DEBUG):
            await Caller(client, Rules()).post(GOOD, status=500)
    assert "bug" in caplog.text and TOKEN not in caplog.text


# --- bounds


def item(i: int = 0, **changes: Any) -> Item:
    values: dict[str, Any] = {"namespace": "a", "name": "digits", "version": 1, "id": f"id{i}", "right": True} | changes
    return Item(**values)


def exported(ledger: Ledger) -> list[tuple[dict[str, str], float]]:
    return [(s.labels, s.value) for family in ledger.collect() for s in family.samples]


def test_slices_beyond_the_limit_are_counted_as_other() -> None:
    ledger = Ledger(Limits(slices=3))
    ledger.record([item(i, slice=f"s{i}") for i in range(10)])
    ledger.record([item(100, slice="s0"), item(101)])
    by_slice = {labels["slice"]: value for labels, value in exported(ledger) if labels["result"] == "right"}
    assert by_slice == {"s0": 2, "s1": 1, "s2": 1, "other": 7, "": 1}


def test_versions_models_and_ids_are_bounded() -> None:
    ledger = Ledger(Limits(versions=4, models=10, models_per_namespace=3, ids=50))
    for i in range(100):
        ledger.record([item(i, version=i + 1), item(i, name=f"m{i}"), item(i, namespace=f"n{i}")])
    labels = [labels for labels, _ in exported(ledger)]
    assert len({(x["namespace"], x["name"]) for x in labels}) <= 10
    assert len({x["name"] for x in labels if x["namespace"] == "a"}) <= 3
    assert len({x["version"] for x in labels if x["name"] == "digits" and x["namespace"] == "a"}) <= 4
    assert ledger._ids == sum(len(m.ids) for m in ledger._models.values()) <= 50


def test_who_sends_much_forgets_his_own() -> None:
    ledger = Ledger(Limits(ids=100))
    quiet = [item(i, namespace="quiet") for i in range(20)]
    ledger.record(quiet)
    ledger.record([item(i, namespace="loud") for i in range(1000)])
    assert ledger.record(quiet) == 20, "all of them are still known as duplicates"


def test_a_quiet_model_gets_room_from_a_loud_one() -> None:
    ledger = Ledger(Limits(ids=100))
    ledger.record([item(i, namespace="loud") for i in range(100)])
    quiet = [item(i, namespace="quiet") for i in range(40)]
    ledger.record(quiet)
    assert ledger.record(quiet) == 40


# --- the API server


class FakeApi:
    """Answers TokenReview and SubjectAccessReview."""

    def __init__(self) -> None:
        self.user: dict[str, Any] | None = {"username": "system:serviceaccount:team-a:client", "uid": "u", "groups": ["g"], "extra": {"e": ["1"]}}
        self.audiences = ["modelrollout-feedback"]
        self.rights = {("team-a", "digits")}
        self.error: KubeError | None = None
        self.gate: asyncio.Event | None = None
        self.first = asyncio.Event()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def create(self, resource: Resource, obj: Object) -> Object:
        self.asked.append((resource.kind, obj["spec"]))
        self.first.set()
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        if resource.kind == "TokenReview":
            return {"status": {"authenticated": self.user is not None, "audiences": self.audiences, "user": self.user or {}}}
        attributes = obj["spec"]["resourceAttributes"]
        return {"status": {"allowed": (attributes["namespace"], attributes["name"]) in self.rights}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_api_server_is_asked_for_our_audience_and_our_verb() -> None:
    api = FakeApi()
    authorizer = KubernetesAuthorizer(api)
    identity = await authorizer.authenticate(TOKEN)
    assert identity and identity.user == "system:serviceaccount:team-a:client"
    assert TOKEN not in repr(identity)
    assert await authorizer.allowed(identity, "team-a", "digits")
    assert not await authorizer.allowed(identity, "team-a", "letters")
    assert api.asked[0] == ("TokenReview", {"token": TOKEN, "audiences": ["modelrollout-feedback"]})
    review = api.asked[1][1]
    assert (review["user"], review["groups"], review["uid"], review["extra"]) == (identity.user, ["g"], "u", {"e": ["1"]})
    assert review["resourceAttributes"] == {
        "verb": "create",
        "group": "modelrollout.dev",
        "resource": "modeldeployments",
        "subresource": "feedback",
        "namespace": "team-a",
        "name": "digits",
    }


@pytest.mark.parametrize("audiences", [[], ["https://kubernetes.default.svc"], None])
async def test_a_token_made_for_others_is_refused(audiences: Any) -> None:
    api = FakeApi()
    api.audiences = audiences
    assert await KubernetesAuthorizer(api).authenticate(TOKEN) is None


async def test_answers_are_remembered_for_a_minute_and_refusals_shorter() -> None:
    api, clock = FakeApi(), Clock()
    authorizer = KubernetesAuthorizer(api, clock=clock)

    async def asks(name: str) -> int:
        before = len(api.asked)
        identity = await authorizer.authenticate(TOKEN)
        assert identity
        await authorizer.allowed(identity, "team-a", name)
        return len(api.asked) - before

    assert [await asks("digits"), await asks("digits"), await asks("letters"), await asks("letters")] == [2, 0, 1, 0]
    clock.now = 30
    assert [await asks("digits"), await asks("letters")] == [0, 1]
    clock.now = 61
    assert await asks("digits") == 2


async def test_many_who_ask_at_once_cost_one_review() -> None:
    api = FakeApi()
    api.gate = asyncio.Event()
    authorizer = KubernetesAuthorizer(api)
    waiting = [asyncio.create_task(authorizer.authenticate(TOKEN)) for _ in range(20)]
    await api.first.wait()
    waiting[0].cancel()
    api.gate.set()
    assert all(await asyncio.gather(*waiting[1:]))
    assert len(api.asked) == 1


async def test_a_failure_is_not_remembered_and_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    api = FakeApi()
    api.error = Unavailable(503, "ServiceUnavailable", f"said {TOKEN}", retry_after=9)
    authorizer = KubernetesAuthorizer(api)
    with pytest.raises(UnavailableError) as failed:
        await authorizer.authenticate(TOKEN)
    assert failed.value.retry_after == 9
    assert TOKEN not in caplog.text + str(failed.value)
    api.error = None
    assert await authorizer.authenticate(TOKEN)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelrollout.evaluator.feedback_auth.REMEMBER_ENTRIES", 5)
    authorizer = KubernetesAuthorizer(FakeApi())
    for i in range(20):
        await authorizer.authenticate(f"token {i}")
    assert len(authorizer._identities._known) == 5


# --- the process


async def test_it_serves_until_told_to_stop_and_finishes_what_it_began() -> None:
    release, began = asyncio.Event(), asyncio.Event()

    class Slow(Rules):
        async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
            began.set()
            await release.wait()
            return True

    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve("127.0.0.1", 0, Slow(), drain_seconds=0.3, started=port.set_result))
    url = f"http://127.0.0.1:{await port}"
    async with aiohttp.ClientSession() as session:
        request = asyncio.create_task(session.post(f"{url}/v1/feedback", json=GOOD, headers={"Authorization": f"Bearer {TOKEN}"}))
        await began.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            async with session.get(f"{url}/readyz") as response:
                if response.status == 503:
                    break
        async with session.get(f"{url}/healthz") as response:
            assert response.status == 200
        release.set()
        answer = await request
        assert answer.status == 200
    await asyncio.wait_for(server, 10)


async def test_a_header_that_cannot_be_read_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    server = asyncio.create_task(serve("127.0.0.1", 0, Rules(), drain_seconds=0, stop=stop, started=port.set_result))
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{await port}/v1/feedback"
        async with session.post(url, json=GOOD, headers={"Authorization": f"Bearer {TOKEN}{'x' * 20_000}"}) as response:
            assert response.status == 400
    stop.set()
    await asyncio.wait_for(server, 10)
    assert TOKEN not in caplog.text
