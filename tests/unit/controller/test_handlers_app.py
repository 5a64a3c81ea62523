"""What a pass answers becomes the key's next turn, and what is unforeseen is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from modelrollout.controller.intake import Intake
from modelrollout.controller.process import Operator, counted_conditions
from modelrollout.kube.cache import Key
from modelrollout.kube.errors import Conflict, Forbidden, TooManyRequests
from modelrollout.kube.kinds import DEPLOYMENT, GATEWAY, GATEWAY_CLASS, HTTP_ROUTE, MODEL_DEPLOYMENT, Resource
from modelrollout.telemetry.metrics import Metrics
from modelrollout.testing import virtual_clock
from modelrollout.testing.fake_cluster import CONFIG, KEY, Cluster

# --- what is done again and again


def test_no_failure_of_what_is_repeated_ends_the_process() -> None:
    failures: list[Exception] = [Forbidden(403, "Forbidden", "no"), ValueError("a bug")]
    done: list[float] = []

    async def action() -> None:
        if failures:
            raise failures.pop(0)
        done.append(asyncio.get_running_loop().time())

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(Operator._repeat("it", lambda: 10.0, action), 100)

    virtual_clock.run(main())
    assert not failures
    assert len(done) >= 5


# --- which kinds are watched


@pytest.mark.parametrize("forbidden", [True, False])
async def test_gateways_are_watched_where_that_is_allowed(forbidden: bool) -> None:
    """kopf would end the process for a watch that is forbidden, and a resync would fail."""
    cluster = Cluster()
    operator = Operator(CONFIG, cluster, Metrics(), "ml", "me")  # type: ignore[arg-type]

    def before(verb: str, resource: Resource, name: str) -> None:
        if forbidden and (verb, resource) == ("list", GATEWAY):
            raise Forbidden(403, "Forbidden", "may not list gateways")

    cluster.before = before
    watched = await operator._choose_kinds()
    assert (GATEWAY in watched, GATEWAY in operator._resources) == (not forbidden, not forbidden)
    assert GATEWAY_CLASS in watched and HTTP_ROUTE in watched


async def test_a_cluster_without_the_gateway_api_is_asked_for_no_gateways() -> None:
    cluster = Cluster()
    cluster.kinds = set()
    operator = Operator(CONFIG, cluster, Metrics(), "ml", "me")  # type: ignore[arg-type]
    assert not {GATEWAY, GATEWAY_CLASS, HTTP_ROUTE} & set(await operator._choose_kinds())


async def test_what_the_watches_have_just_listed_is_not_listed_again_to_lead() -> None:
    """Of thousands of models each list takes seconds, and most of the memory of a start."""
    cluster = Cluster()
    operator = Operator(CONFIG, cluster, Metrics(), "ml", "me")  # type: ignore[arg-type]
    watched = await operator._choose_kinds()
    operator._intake = Intake(cluster, operator._cache, operator._unread, watched, operator._queue.add)  # type: ignore[arg-type]
    listed: list[str] = []

    def before(verb: str, resource: Resource, name: str) -> None:
        if verb == "list" and resource in (MODEL_DEPLOYMENT, DEPLOYMENT):
            listed.append(resource.kind)

    cluster.before = before
    cluster.latency = 0.01  # the watch's list is under way when the process begins to lead
    await asyncio.gather(operator._intake.list(MODEL_DEPLOYMENT, None), operator._resync(unless_within=60))
    assert listed == ["ModelDeployment", "Deployment"], "nothing else was listed before"
    await operator._resync()
    assert listed[2:] == ["ModelDeployment", "Deployment"], "a resync trusts no watch"


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


def test_three_thousand_broken_specs_of_a_namespace_hold_up_another_by_one() -> None:
    operator = Operator(CONFIG, Cluster(), Metrics(), "ml", "me")  # type: ignore[arg-type]
    for n in range(3000):
        operator._queue.add(("broken", f"m{n}"))
    operator._queue.add(("fine", "m"))
    operator._queue.resume()
    assert [operator._queue.get_nowait() for _ in range(2)] == [("broken", "m0"), ("fine", "m")]


def test_an_unforeseen_error_is_left_to_the_worker() -> None:
    with pytest.raises(ZeroDivisionError):
        work(ZeroDivisionError())


@pytest.mark.parametrize("error", [RecursionError(), KeyError("x"), MemoryError()])
def test_an_unforeseen_error_is_told_on_the_object(error: Exception) -> None:
    operator = Operator(CONFIG, Cluster(), Metrics(), "ml", "me")  # type: ignore[arg-type]
    operator._reconciler = Answers(error)  # type: ignore[assignment]
    told: list[tuple[Any, ...]] = []

    async def post(*words: Any) -> None:
        told.append(words)

    operator._events.post = post  # type: ignore[method-assign]
    body = {
        "apiVersion": "x/v1",
        "kind": "ModelDeployment",
        "metadata": {"namespace": KEY[0], "name": KEY[1], "uid": "u", "resourceVersion": "1"},
    }
    operator._cache.observe(MODEL_DEPLOYMENT, {"type": "ADDED", "object": body})
    with pytest.raises(type(error)):
        asyncio.run(operator._work(KEY))
    ((about, kind, reason, text),) = told
    assert (about["metadata"]["uid"], kind, reason) == ("u", "Warning", "PassFailed") and type(
        error
    ).__name__ in text


def test_until_it_leads_the_queue_hands_nothing_out() -> None:
    operator = work(0.0)
    assert operator._queue.paused and operator._queue.get_nowait() is None


def test_conditions_that_a_stranger_wrote_cost_the_metrics_nothing() -> None:
    def of(conditions: Any) -> list[tuple[str, str, str]]:
        return counted_conditions({"metadata": {"namespace": "ml"}, "status": {"conditions": conditions}})

    good = {"type": "Hardened", "status": "False"}
    assert of(
        [
            good,
            {"type": "Mine", "status": "True"},
            {"status": "True"},
            {"type": ["x"], "status": {}},
            "text",
            None,
        ]
    ) == [("ml", "Hardened", "False")]
    assert of(None) == [] and of([{"type": "Mine"}] * 10_000 + [good]) == [], (
        "no more than a few are looked at"
    )
