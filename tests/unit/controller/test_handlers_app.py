"""Watch events become keys, and what a pass answers becomes the key's next turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.controller.app import Operator
from modelrollout.controller.handlers import _handler
from modelrollout.kube.cache import Key, Store
from modelrollout.kube.client import DEPLOYMENT, MODEL_DEPLOYMENT, Conflict, Resource, TooManyRequests
from modelrollout.telemetry.metrics import Metrics
from tests.unit.controller.fakecluster import CONFIG, KEY, Cluster


def event(kind: str | None, version: int, *, labels: dict[str, str] | None = None, name: str = "x", **body: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": KEY[0], "uid": name, "resourceVersion": str(version), "labels": labels or {}}
    return {"type": kind, "object": {"metadata": metadata, **body}}


def woken(resource: Resource, *events: dict[str, Any], store: Store | None = None) -> list[Key]:
    found: list[Key] = []
    handler = _handler(Store() if store is None else store, resource, found.append)

    async def main() -> None:
        for e in events:
            await handler(event=e, logger=None, memo=None)

    asyncio.run(main())
    return found


OURS = {names.LABEL_NAME: KEY[1]}


def test_a_model_deployment_wakes_itself_and_a_child_its_owner() -> None:
    assert woken(MODEL_DEPLOYMENT, event("ADDED", 1, name=KEY[1])) == [KEY]
    assert woken(DEPLOYMENT, event("ADDED", 1, labels=OURS), event("DELETED", 2, labels=OURS)) == [KEY, KEY]


def test_strangers_wake_nobody() -> None:
    assert woken(DEPLOYMENT, event("ADDED", 1, labels={"app": "other"})) == []


def test_an_old_event_and_noise_wake_nobody() -> None:
    assert woken(
        DEPLOYMENT, event("ADDED", 5, labels=OURS), event("MODIFIED", 4, labels=OURS, spec={"replicas": 3}), event("MODIFIED", 6, labels=OURS)
    ) == [KEY]


def test_objects_of_a_listing_say_what_they_are() -> None:
    """Items of a list have neither apiVersion nor kind."""
    store = Store()
    woken(DEPLOYMENT, event(None, 1, labels=OURS), store=store)
    stored = store.get(DEPLOYMENT, KEY[0], "x")
    assert stored and (stored["apiVersion"], stored["kind"]) == ("apps/v1", "Deployment")


# --- what a pass answers


class Answers:
    """A reconciler that answers, or raises, the next of these."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)

    async def reconcile(self, key: Key) -> float | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def work(*answers: float | Exception | None) -> Operator:
    """One turn of the key for each answer."""
    operator = Operator(CONFIG, Cluster(), Metrics(), "ml", "me")  # type: ignore[arg-type]
    operator._reconciler = Answers(*answers)  # type: ignore[assignment]

    async def main() -> None:
        for _ in answers:
            await operator._work(KEY)

    asyncio.run(main())
    return operator


def test_again_at_once() -> None:
    assert len(work(0.0)._queue) == 1


@pytest.mark.parametrize("answer", [None, 30.0])
def test_later_or_when_something_happens(answer: float | None) -> None:
    operator = work(answer)
    assert len(operator._queue) == 0 and (KEY in operator._queue._due) is (answer is not None)


@pytest.mark.parametrize("error", [Conflict(409, "Conflict", "x"), TooManyRequests(429, "TooMany", "x", 7.0)])
def test_a_failed_pass_is_tried_again_later_and_later(error: Exception) -> None:
    operator = work(error, error)
    assert operator._queue.failures(KEY) == 2 and KEY in operator._queue._due
    assert len(operator._queue) == 0


def test_a_pass_that_succeeds_forgets_the_failures() -> None:
    assert work(Conflict(409, "Conflict", "x"), None)._queue.failures(KEY) == 0


def test_an_error_that_nobody_foresaw_is_left_to_the_worker() -> None:
    with pytest.raises(ZeroDivisionError):
        work(ZeroDivisionError())


def test_until_it_leads_the_queue_hands_nothing_out() -> None:
    operator = work(0.0)
    assert operator._queue.paused and operator._queue.get_nowait() is None
