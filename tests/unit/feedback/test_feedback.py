"""The feedback service: who may send what, what is counted once, and what does no harm."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from modelrollout.feedback import service as feedback
from modelrollout.feedback.auth import Identity, KubernetesAuthorizer, UnavailableError
from modelrollout.feedback.items import Item
from modelrollout.feedback.ledger import Ledger, Limits
from modelrollout.feedback.rates import BodyBudget, TooManyError
from modelrollout.feedback.service import FeedbackService, serve
from modelrollout.feedback.settings import SETTINGS_ENV, FeedbackLimits, FeedbackSettings, SettingsError
from modelrollout.kube.errors import KubeError, Unavailable
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object

GOOD: dict[str, Any] = {"namespace": "team-a", "name": "digits", "version": 7, "id": "one", "correct": True}
TOKEN = "t0ken-of-a-client"


class Rules:
    """An authorizer that knows one token, and what it may do; ``down`` makes the API server
    unreachable.
    """

    def __init__(self) -> None:
        self.down = False
        self.models = {("team-a", "digits")}

    async def authenticate(self, token: str, source: str) -> Identity | None:
        if self.down:
            raise UnavailableError("the API server cannot be asked", 7)
        return Identity("client", "k", {}) if token == TOKEN else None

    async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
        return (namespace, name) in self.models


class Caller:
    """A client with a token."""

    def __init__(self, client: TestClient[Any, Any], status: TestClient[Any, Any], rules: Rules) -> None:
        self.client, self.status, self.rules = client, status, rules

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
        async with self.status.get("/metrics") as response:
            lines = [
                line
                for line in (await response.text()).splitlines()
                if line.startswith("modelrollout_feedback_total{")
            ]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if all(f'{k}="{v}"' in line for k, v in labels.items())
        )


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    rules = Rules()
    service = FeedbackService(rules)
    async with (
        TestClient(TestServer(service.app())) as client,
        TestClient(TestServer(service.status_app())) as status,
    ):
        yield Caller(client, status, rules)


async def test_right_and_wrong_are_counted_by_version_and_slice(caller: Caller) -> None:
    assert await caller.post(GOOD) == {"accepted": 1, "duplicates": 0}
    await caller.post({**GOOD, "id": "two", "correct": False, "slice": "writer-3"})
    assert (
        await caller.counted(model_namespace="team-a", name="digits", version="7", slice="", result="right")
        == 1
    )
    assert await caller.counted(slice="writer-3", result="wrong") == 1
    assert await caller.counted() == 2


@pytest.mark.parametrize(
    ("prediction", "label", "result"),
    [
        (3, 3, "right"),
        ("cat", "dog", "wrong"),
        (True, True, "right"),
        (1, 1.0, "right"),
        (0.5, 0.25, "wrong"),
    ],
)
async def test_prediction_and_label_are_compared(
    caller: Caller, prediction: object, label: object, result: str
) -> None:
    item = {k: v for k, v in GOOD.items() if k != "correct"}
    await caller.post({**item, "prediction": prediction, "label": label})
    assert await caller.counted(result=result) == 1 == await caller.counted()


async def test_the_same_id_counts_once_for_a_version(caller: Caller) -> None:
    await caller.post(GOOD)
    assert await caller.post({**GOOD, "correct": False}) == {"accepted": 0, "duplicates": 1}
    assert await caller.post({"items": [GOOD, {**GOOD, "version": 8}, {**GOOD, "version": 8}]}) == {
        "accepted": 1,
        "duplicates": 2,
    }
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
async def test_what_is_wrong_is_named_and_nothing_is_counted(
    caller: Caller, body: object, field: str, says: str
) -> None:
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
    assert caller.headers["Connection"] == "close", "each try costs a new connection, which has a rate"
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
    async with caller.status.get("/readyz") as response:
        assert response.status == 200
    async with caller.status.get("/healthz") as response:
        assert response.status == 200


async def test_other_methods_and_paths_answer_in_json(caller: Caller) -> None:
    async with caller.client.get("/v1/feedback") as response:
        assert response.status == 405 and (await response.json())["error"] and response.headers["Allow"]
    for path in ("/nothing", "/metrics", "/healthz"):
        async with caller.client.get(path) as response:
            assert response.status == 404 and (await response.json())["error"]


async def test_what_is_unexpected_is_logged_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Rules):
        async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
            raise RuntimeError("bug")

    async with TestClient(TestServer(FeedbackService(Broken()).app())) as client:
        with caplog.at_level(logging.DEBUG):
            await Caller(client, client, Rules()).post(GOOD, status=500)
    assert "bug" in caplog.text and TOKEN not in caplog.text


# --- bounds


def item(i: int = 0, **changes: Any) -> Item:
    values: dict[str, Any] = {
        "namespace": "a",
        "name": "digits",
        "version": 1,
        "id": f"id{i}",
        "right": True,
    } | changes
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
    assert len({(x["model_namespace"], x["name"]) for x in labels}) <= 10
    assert len({x["name"] for x in labels if x["model_namespace"] == "a"}) <= 3
    assert len({x["version"] for x in labels if x["name"] == "digits" and x["model_namespace"] == "a"}) <= 4
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
        self.user: dict[str, Any] | None = {
            "username": "system:serviceaccount:team-a:client",
            "uid": "u",
            "groups": ["g"],
            "extra": {"e": ["1"]},
        }
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
            return {
                "status": {
                    "authenticated": self.user is not None,
                    "audiences": self.audiences,
                    "user": self.user or {},
                }
            }
        attributes = obj["spec"]["resourceAttributes"]
        return {"status": {"allowed": (attributes["namespace"], attributes["name"]) in self.rights}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_api_server_is_asked_for_our_audience_and_our_verb() -> None:
    api = FakeApi()
    authorizer = KubernetesAuthorizer(api)
    identity = await authorizer.authenticate(TOKEN, "10.0.0.1")
    assert identity and identity.user == "system:serviceaccount:team-a:client"
    assert TOKEN not in repr(identity)
    assert await authorizer.allowed(identity, "team-a", "digits")
    assert not await authorizer.allowed(identity, "team-a", "letters")
    assert api.asked[0] == ("TokenReview", {"token": TOKEN, "audiences": ["modelrollout-feedback"]})
    review = api.asked[1][1]
    assert (review["user"], review["groups"], review["uid"], review["extra"]) == (
        identity.user,
        ["g"],
        "u",
        {"e": ["1"]},
    )
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
    assert await KubernetesAuthorizer(api).authenticate(TOKEN, "10.0.0.1") is None


async def test_answers_are_remembered_for_a_minute_and_refusals_shorter() -> None:
    api, clock = FakeApi(), Clock()
    authorizer = KubernetesAuthorizer(api, clock=clock)

    async def asks(name: str) -> int:
        before = len(api.asked)
        identity = await authorizer.authenticate(TOKEN, "10.0.0.1")
        assert identity
        await authorizer.allowed(identity, "team-a", name)
        return len(api.asked) - before

    assert [await asks("digits"), await asks("digits"), await asks("letters"), await asks("letters")] == [
        2,
        0,
        1,
        0,
    ]
    clock.now = 30
    assert [await asks("digits"), await asks("letters")] == [0, 1]
    clock.now = 61
    assert await asks("digits") == 2


async def test_many_who_ask_at_once_cost_one_review() -> None:
    api = FakeApi()
    api.gate = asyncio.Event()
    authorizer = KubernetesAuthorizer(api)
    waiting = [asyncio.create_task(authorizer.authenticate(TOKEN, "10.0.0.1")) for _ in range(20)]
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
        await authorizer.authenticate(TOKEN, "10.0.0.1")
    assert failed.value.retry_after == 9
    assert TOKEN not in caplog.text + str(failed.value)
    api.error = None
    assert await authorizer.authenticate(TOKEN, "10.0.0.1")


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelrollout.feedback.auth.REMEMBER_ENTRIES", 5)
    authorizer = KubernetesAuthorizer(FakeApi())
    for i in range(20):
        await authorizer.authenticate(f"token {i}", "10.0.0.1")
    assert len(authorizer._identities._known) == 5


async def test_a_source_may_have_few_tokens_refused() -> None:
    api, clock = FakeApi(), Clock()
    api.user = None
    authorizer = KubernetesAuthorizer(api, refused_per_minute=6, clock=clock)
    for i in range(6):
        assert await authorizer.authenticate(f"bad {i}", "10.0.0.1") is None
    assert await authorizer.authenticate("bad 0", "10.0.0.1") is None, (
        "an answer that is remembered costs nothing"
    )
    for i in range(6, 100):
        with pytest.raises(TooManyError) as refused:
            await authorizer.authenticate(f"bad {i}", "10.0.0.1")
    assert refused.value.retry_after == 10
    assert len(api.asked) == 6
    assert await authorizer.authenticate("bad of another", "10.0.0.2") is None
    clock.now = 10
    assert await authorizer.authenticate("bad 100", "10.0.0.1") is None
    assert len(api.asked) == 8


async def test_good_tokens_of_a_source_cost_it_nothing_and_bad_ones_lock_out_no_known_sender() -> None:
    api, clock = FakeApi(), Clock()
    authorizer = KubernetesAuthorizer(api, refused_per_minute=5, clock=clock)
    for i in range(50):
        assert await authorizer.authenticate(f"good {i}", "10.0.0.1"), "many senders behind one gateway"
    known, api.user = api.user, None
    for i in range(5):
        await authorizer.authenticate(f"bad {i}", "10.0.0.1")
    with pytest.raises(TooManyError):
        await authorizer.authenticate("bad 5", "10.0.0.1")
    api.user, clock.now = known, 61.0
    for i in range(5, 11):
        api.user = None
        with suppress(TooManyError):
            await authorizer.authenticate(f"bad {i}", "10.0.0.1")
    api.user = known
    assert await authorizer.authenticate("good 7", "10.0.0.1"), "its answer is too old, but it was good"


async def test_an_api_server_that_answers_nothing_is_not_asked_again_and_again_for_strangers() -> None:
    api = FakeApi()
    api.error = Unavailable(503, "ServiceUnavailable", "", retry_after=1)
    authorizer = KubernetesAuthorizer(api, refused_per_minute=5)
    for i in range(50):
        with pytest.raises((UnavailableError, TooManyError)):
            await authorizer.authenticate(f"token {i}", "10.0.0.1")
    assert len(api.asked) == 5


async def test_questions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelrollout.feedback.auth.REVIEWS_WAITING", 10)
    api = FakeApi()
    api.gate = asyncio.Event()
    authorizer = KubernetesAuthorizer(api)
    waiting = [asyncio.create_task(authorizer.authenticate(f"token {i}", f"10.0.0.{i}")) for i in range(10)]
    await api.first.wait()
    with pytest.raises(UnavailableError):
        await authorizer.authenticate("one more", "10.0.1.1")
    again = asyncio.create_task(authorizer.authenticate("token 3", "10.0.1.1"))
    api.gate.set()
    assert all(await asyncio.gather(*waiting, again))


async def test_a_namespace_may_have_few_names_asked_about_whatever_accounts_it_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelrollout.feedback.auth.RIGHTS_BURST", 5.0)
    api, clock = FakeApi(), Clock()
    authorizer = KubernetesAuthorizer(api, clock=clock)

    def account(namespace: str, name: str) -> Identity:
        user = f"system:serviceaccount:{namespace}:{name}"
        return Identity(user, user, {"user": user, "uid": "", "groups": [], "extra": {}})

    for i in range(5):
        await authorizer.allowed(account("team-a", f"account-{i}"), "team-a", "no-such-model")
    with pytest.raises(TooManyError) as refused:
        await authorizer.allowed(account("team-a", "another"), "team-a", "no-such-model")
    assert "namespace team-a" in str(refused.value) and len(api.asked) == 5
    assert await authorizer.allowed(account("team-b", "client"), "team-a", "digits")


@pytest.mark.parametrize(
    ("user", "tenant"),
    [
        ("system:serviceaccount:team-a:client", "namespace team-a"),
        ("ann@example.com", "ann@example.com"),
        ("x:system:serviceaccount:team-a:client", "x:system:serviceaccount:team-a:client"),
    ],
)
def test_who_answers_for_a_sender(user: str, tenant: str) -> None:
    assert Identity(user, "k", {}).tenant == tenant


# --- how much a sender may send


class Accounts(Rules):
    """Every token is a service account: ``NAMESPACE:NAME``."""

    async def authenticate(self, token: str, source: str) -> Identity | None:
        return Identity(f"system:serviceaccount:{token}", token, {})


@pytest.fixture
async def limited() -> AsyncIterator[tuple[Caller, Clock]]:
    clock, rules = Clock(), Accounts()
    service = FeedbackService(
        rules, rates=FeedbackLimits(requests_per_second=5, requests_per_second_namespace=10), clock=clock
    )
    async with (
        TestClient(TestServer(service.app())) as client,
        TestClient(TestServer(service.status_app())) as status,
    ):
        yield Caller(client, status, rules), clock


async def test_a_sender_has_a_rate_and_is_told_when_to_come_back(limited: tuple[Caller, Clock]) -> None:
    caller, clock = limited
    for i in range(10):
        await caller.post({**GOOD, "id": str(i)}, token="team-a:loud")
    answer = await caller.post({**GOOD, "id": "late"}, token="team-a:loud", status=429)
    assert (
        "system:serviceaccount:team-a:loud sends more than it may" in answer["error"]
        and caller.headers["Retry-After"] == "1"
    )
    await caller.post({**GOOD, "id": "other"}, token="team-b:quiet")
    clock.now += 0.2
    await caller.post({**GOOD, "id": "late"}, token="team-a:loud")
    assert await caller.counted() == 12
    async with caller.status.get("/metrics") as response:
        assert 'modelrollout_feedback_refused_total{status="429"} 1.0' in await response.text()


async def test_the_accounts_of_a_namespace_share_a_rate(limited: tuple[Caller, Clock]) -> None:
    caller, _ = limited
    for i in range(20):
        await caller.post({**GOOD, "id": str(i)}, token=f"team-a:account-{i}")
    answer = await caller.post({**GOOD, "id": "late"}, token="team-a:another", status=429)
    assert "namespace team-a" in answer["error"]
    await caller.post({**GOOD, "id": "other"}, token="team-b:quiet")


async def test_a_large_body_counts_for_more(limited: tuple[Caller, Clock]) -> None:
    caller, clock = limited
    await caller.post(b" " * (feedback.BODY_UNIT * 24) + json.dumps(GOOD).encode(), token="team-a:loud")
    await caller.post(GOOD, token="team-a:loud", status=429)
    assert caller.headers["Retry-After"] == "4", "25 of 10, and then 5 in a second"
    clock.now += 3.2
    await caller.post(GOOD, token="team-a:loud")


async def test_bodies_on_their_way_have_room_for_each_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "BODIES_BYTES_TENANT", 3 << 20)
    monkeypatch.setattr(feedback, "BODIES_BYTES", 4 << 20)
    service, release = FeedbackService(Accounts()), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b" "
        await release.wait()
        yield json.dumps(GOOD).encode()

    async with TestClient(TestServer(service.app())) as client:
        caller = Caller(client, client, Rules())

        def sends(token: str) -> asyncio.Task[aiohttp.ClientResponse]:
            return asyncio.create_task(
                client.post("/v1/feedback", data=slow(), headers={"Authorization": f"Bearer {token}"})
            )

        sending = [sends(f"team-a:account-{i}") for i in range(3)]
        while service._bodies._reserved_bytes["namespace team-a"] < 3 << 20:  # noqa: ASYNC110  no event tells of it
            await asyncio.sleep(0)
        answer = await caller.post(GOOD, token="team-a:another", status=429)
        assert "namespace team-a" in answer["error"]
        await caller.post(GOOD, token="team-b:quiet")
        sending.append(sends("team-b:slow"))
        while service._bodies._reserved_bytes.total() < 4 << 20:  # noqa: ASYNC110  no event tells of it
            await asyncio.sleep(0)
        await caller.post(GOOD, token="team-c:quiet", status=429)
        release.set()
        assert [(await task).status for task in sending] == [200] * 4
        assert not service._bodies._reserved_bytes


async def test_a_small_body_that_unpacks_to_a_large_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pending: list[int] = []

    class Seen(BodyBudget):
        @contextmanager
        def room(self, tenant: str, size: int) -> Iterator[None]:
            pending.append(size)
            with super().room(tenant, size):
                yield

    monkeypatch.setattr(feedback, "BodyBudget", Seen)
    async with TestClient(TestServer(FeedbackService(Rules()).app())) as client:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
        async with client.post(
            "/v1/feedback", data=gzip.compress(b" " * (64 << 20)), headers=headers
        ) as response:
            assert response.status == 413
        async with client.post(
            "/v1/feedback", data=gzip.compress(json.dumps(GOOD).encode()), headers=headers
        ) as response:
            assert response.status == 200
    assert pending == [feedback.MAX_BODY_BYTES] * 2, "its length says nothing of the room that it takes"


async def test_a_body_that_breaks_off_is_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (senders, _):
        for body in (b"", b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"):
            _reader, writer = await asyncio.open_connection("127.0.0.1", senders)
            head = f"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
            writer.write(head + (body or b"Content-Length: 1000\r\n\r\n{"))
            await writer.drain()
            if body:
                await _reader.read()
            writer.close()
            await writer.wait_closed()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_series_are_bounded_and_the_namespace_with_most_gives() -> None:
    ledger = Ledger(Limits(series=200))
    quiet = [item(i, namespace="quiet", slice=f"s{i}") for i in range(10)]
    ledger.record(quiet)
    for m in range(30):
        ledger.record(
            [
                item(i, namespace="loud", name=f"m{m}", version=1 + i // 32, slice=f"s{i % 32}")
                for i in range(100)
            ]
        )
    labels = [labels for labels, _ in exported(ledger)]
    assert len(labels) / 2 <= 200
    assert sum(x["model_namespace"] == "quiet" for x in labels) == 20
    assert ledger.record(quiet) == 10, "its ids are known as well"
    assert ledger._series_of.total() == len(labels) / 2
    assert ledger._ids == sum(len(m.ids) for m in ledger._models.values())


def test_one_model_with_all_series_gives_its_oldest_version_only() -> None:
    ledger = Ledger(Limits(series=40, versions=3, slices=50))
    for version in range(1, 6):
        ledger.record([item(i, version=version, slice=f"s{i}") for i in range(20)])
    assert {x["version"] for x, _ in exported(ledger)} == {"3", "4", "5"}
    assert ledger._series_of == {"a": 60}


def test_settings_come_from_the_environment_and_a_mistake_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTINGS_ENV, raising=False)
    assert FeedbackSettings.from_environment() == FeedbackSettings()
    monkeypatch.setenv(
        SETTINGS_ENV, '{"metricsPort": 9000, "limits": {"connectionsPerSource": 8, "headSeconds": 2.5}}'
    )
    settings = FeedbackSettings.from_environment()
    assert (
        settings.metrics_port,
        settings.limits.http().connections_per_source,
        settings.limits.http().head_seconds,
    ) == (9000, 8, 2.5)
    monkeypatch.setenv(SETTINGS_ENV, '{"limits": {"connections": 0, "conections": 5}}')
    with pytest.raises(
        SettingsError, match=r"MODELROLLOUT_FEEDBACK: limits.connections: .*limits.conections"
    ):
        FeedbackSettings.from_environment()


# --- the process


@asynccontextmanager
async def running(rules: Rules | None = None, **limits: float) -> AsyncIterator[tuple[int, int]]:
    """The service as it runs; its ports."""
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    stop, settings = asyncio.Event(), FeedbackSettings.model_validate({"metrics_port": 0, "limits": limits})
    server = asyncio.create_task(
        serve(
            "127.0.0.1",
            0,
            rules or Rules(),
            settings=settings,
            drain_seconds=0,
            stop=stop,
            started=lambda *both: ports.set_result(both),
        )
    )
    try:
        yield await ports
    finally:
        stop.set()
        await asyncio.wait_for(server, 10)


async def test_strangers_with_half_a_head_keep_neither_senders_nor_prometheus_out() -> None:
    half = b"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
    async with running(connections=64, connections_per_source=16) as (senders, status):
        strangers = []
        async with aiohttp.ClientSession() as retained, aiohttp.ClientSession() as new:
            for i in range(400):
                for port in (senders, status):
                    opened = await asyncio.open_connection(
                        "127.0.0.1", port, local_addr=(f"127.0.0.{2 + i % 8}", 0)
                    )
                    opened[1].write(half)
                    strangers.append(opened)
                if i % 40 == 0:
                    for session in (retained, new):
                        headers = {
                            "Authorization": f"Bearer {TOKEN}",
                            "Connection": "keep-alive" if session is retained else "close",
                        }
                        async with session.post(
                            f"http://127.0.0.1:{senders}/v1/feedback",
                            json={**GOOD, "id": f"{i} {id(session)}"},
                            headers=headers,
                        ) as r:
                            assert r.status == 200
            async with new.get(f"http://127.0.0.1:{status}/readyz") as r:
                assert r.status == 200
            async with new.get(f"http://127.0.0.1:{status}/metrics") as r:
                text = await r.text()
        for _, writer in strangers:
            writer.transport.abort()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    assert (
        values[
            'modelrollout_feedback_total{model_namespace="team-a",name="digits",result="right",slice="",version="7"}'
        ]
        == 20
    )
    assert 0 < values['modelrollout_http_connections{server="feedback"}'] <= 64
    closed = sum(
        values[f'modelrollout_http_connections_closed_total{{reason="{why}",server="feedback"}}']
        for why in ("rate", "source", "total")
    )
    assert closed >= 400 - 64


async def test_it_serves_until_told_to_stop_and_finishes_what_it_began() -> None:
    release, began = asyncio.Event(), asyncio.Event()

    class Slow(Rules):
        async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
            began.set()
            await release.wait()
            return True

    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(
        serve(
            "127.0.0.1",
            0,
            Slow(),
            settings=FeedbackSettings(metrics_port=0),
            drain_seconds=0.3,
            started=lambda *both: ports.set_result(both),
        )
    )
    url, status = (f"http://127.0.0.1:{port}" for port in await ports)
    async with aiohttp.ClientSession() as session:
        request = asyncio.create_task(
            session.post(f"{url}/v1/feedback", json=GOOD, headers={"Authorization": f"Bearer {TOKEN}"})
        )
        await began.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            async with session.get(f"{status}/readyz") as response:
                if response.status == 503:
                    break
        async with session.get(f"{status}/healthz") as response:
            assert response.status == 200
        release.set()
        answer = await request
        assert answer.status == 200
    await asyncio.wait_for(server, 10)


async def test_a_header_that_cannot_be_read_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (port, _), aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {TOKEN}{'x' * 10_000}"}
        async with session.post(
            f"http://127.0.0.1:{port}/v1/feedback", json=GOOD, headers=headers
        ) as response:
            assert response.status == 400
    assert TOKEN not in caplog.text
