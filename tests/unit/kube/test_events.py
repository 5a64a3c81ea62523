"""Events: few, never raising, one for each (uid, reason, message)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from modelrollout.kube import events
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.events import EventApi, Events
from modelrollout.kube.kinds import EVENT
from modelrollout.testing.fake_api import FakeApi

MDEP: dict[str, Any] = {
    "apiVersion": "modelrollout.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"namespace": "ns", "name": "m", "uid": "u", "resourceVersion": "1", "labels": {"a": "b"}},
}


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def poster(api: FakeApi, time: Time) -> Events:
    return Events(
        api,
        instance="pod-1",
        clock=time,
        wall=lambda: datetime(2026, 1, 2, 3, 4, int(time.now) % 60, tzinfo=UTC),
    )


def stored(api: FakeApi) -> list[dict[str, Any]]:
    return list(api.all(EVENT).values())


def verbs(api: FakeApi) -> list[str]:
    return [request.split()[0] for request in api.requests]


def test_the_real_adapter_fits() -> None:
    api: type[EventApi] = Kube
    assert api


async def test_an_event_says_what_about_whom(api: FakeApi, poster: Events) -> None:
    await poster.post(MDEP, "Warning", "RolledBack", "accuracy fell by 3 points")
    [event] = stored(api)
    assert event["metadata"]["namespace"] == "ns"
    assert event["metadata"]["name"].startswith("m.")
    assert event["involvedObject"] == {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelDeployment",
        "namespace": "ns",
        "name": "m",
        "uid": "u",
        "resourceVersion": "1",
    }
    assert (event["type"], event["reason"], event["message"]) == (
        "Warning",
        "RolledBack",
        "accuracy fell by 3 points",
    )
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-01-02T03:04:00Z"


async def test_the_same_again_costs_no_request_for_a_while_and_then_counts(
    api: FakeApi, poster: Events, time: Time
) -> None:
    for _ in range(3):
        await poster.post(MDEP, "Normal", "Promoted", "x")
    assert verbs(api) == ["create"]
    time.now = 601
    await poster.post(MDEP, "Normal", "Promoted", "x")
    assert verbs(api) == ["create", "create", "patch"]
    [event] = stored(api)
    assert (event["count"], event["lastTimestamp"]) == (2, "2026-01-02T03:04:01Z")
    await poster.post(MDEP, "Normal", "Promoted", "y")
    assert len(stored(api)) == 2


async def test_a_restarted_operator_makes_no_second_event(api: FakeApi, poster: Events) -> None:
    await poster.post(MDEP, "Normal", "Promoted", "x")
    await Events(api, instance="pod-2").post(MDEP, "Normal", "Promoted", "x")
    assert len(stored(api)) == 1


@pytest.mark.parametrize("trouble", ["down", "forbidden"])
async def test_trouble_is_no_trouble(
    api: FakeApi, poster: Events, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbidden(*_: Any) -> Any:
        raise Forbidden(403, "Forbidden", "namespace is being terminated")

    if trouble == "down":
        api.down = True
    else:
        monkeypatch.setattr(api, "create", forbidden)
    await poster.post(MDEP, "Normal", "Promoted", "x")
    assert stored(api) == []


async def test_long_messages_are_cut_and_memory_is_bounded(
    api: FakeApi, poster: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "REMEMBERED", 10)
    for n in range(30):
        await poster.post(MDEP, "Normal", "Promoted", f"{n}" + "x" * 5000)
    assert {len(e["message"]) for e in stored(api)} == {1024}
    assert len(poster._posted) == 10


async def test_events_of_cluster_scoped_objects_live_in_default(api: FakeApi, poster: Events) -> None:
    await poster.post(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n" * 253, "uid": "u"}}, "Normal", "R", "m"
    )
    [event] = stored(api)
    assert event["metadata"]["namespace"] == "default"
    assert len(event["metadata"]["name"]) <= 253
    assert "namespace" not in event["involvedObject"]
