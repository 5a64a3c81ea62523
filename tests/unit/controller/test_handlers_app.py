"""What a pass answers becomes the key's next turn, and what is unforeseen is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from modelrollout.controller.intake import Intake
from modelrollout.controller.process import Operator, counted_conditions
from modelrollout.controller.shards import shard_lease, shard_of
from modelrollout.kube.cache import Key
from modelrollout.kube.errors import Conflict, Forbidden, TooManyRequests
from modelrollout.kube.kinds import DEPLOYMENT, GATEWAY, GATEWAY_CLASS, HTTP_ROUTE, MODEL_DEPLOYMENT, Resource
from modelrollout.telemetry.metrics import Metrics
from modelrollout.testing import builders as b
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


# --- shards


def names_of(shard: int) -> list[Key]:
    return [key for n in range(20) if shard_of(key := ("ml", f"m{n}"), 2) == shard]


async def sharded(cluster: Cluster, name: str) -> tuple[Operator, asyncio.Task[None]]:
    operator = Operator(CONFIG.model_copy(update={"shards": 2}), cluster, Metrics(), "ml", name)  # type: ignore[arg-type]
    watched = await operator._choose_kinds()
    operator._intake = Intake(cluster, operator._cache, operator._unread, watched, operator._wake)  # type: ignore[arg-type]
    return operator, asyncio.create_task(operator._shards.run())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never")


async def test_a_replica_queues_and_passes_over_the_keys_of_its_own_shards_alone() -> None:
    cluster = Cluster()
    for n in range(20):
        wire = b.spec(1, pinned=True, gateway=False).wire()
        cluster.put(MODEL_DEPLOYMENT, {"metadata": {"name": f"m{n}", "namespace": "ml"}, "spec": wire})
    operator, contending = await sharded(cluster, "me")
    passed: list[tuple[Key, bool]] = []

    class Seen:
        async def reconcile(self, key: Key) -> float | None:
            passed.append((key, operator._shards.may_write()))
            return None

        def let_go(self, of: Callable[[Key], bool]) -> None:
            gone.extend(key for shard in (0, 1) for key in names_of(shard) if of(key))

    gone: list[Key] = []
    operator._reconciler = Seen()  # type: ignore[assignment]
    await until(lambda: all(operator._shards.concerns(names_of(shard)[0]) for shard in (0, 1)))
    while (key := operator._queue.get_nowait()) is not None:
        await operator._work(key)
        operator._queue.done(key)
    assert sorted(passed) == sorted((("ml", f"m{n}"), True) for n in range(20)), "all were woken once"

    await operator._shards._stop(1)
    assert gone == names_of(1) and not operator._queue.paused
    passed.clear()
    mine, other = names_of(0)[0], names_of(1)[0]
    operator._queue.add(other)  # it was queued before its shard was given up
    for key in (mine, other, ("", "policy")):
        operator._wake(key)
        operator._wake_after(key, 1.0)
    while (key := operator._queue.get_nowait()) is not None:
        await operator._work(key)
        operator._queue.done(key)
    assert {key for key, _ in passed} == {mine, ("", "policy")}
    assert other not in operator._queue._due and mine in operator._queue._due

    await operator._shards._stop(0)
    assert operator._queue.paused
    operator._shards.close()
    await contending


async def test_before_the_first_pass_of_a_shard_everything_is_read_that_its_former_holder_wrote() -> None:
    """Claims of host names, which no watch shows, and states, which a watch may show late; once for
    shards that are won together.
    """
    cluster = Cluster()
    operator, contending = await sharded(cluster, "me")
    until_then: dict[int, list[str]] = {}
    working = operator._shards._working

    def begins(shard: int) -> None:
        until_then[shard] = list(cluster.requests)
        working(shard)

    operator._shards._working = begins
    await until(lambda: len(until_then) == 2)
    for shard, requests in until_then.items():
        won = requests.index(f"create Lease {shard_lease(shard)}")
        assert {"list Lease", "list ModelDeployment"} <= {*requests[won:]}
    listed = Counter(r for r in cluster.requests if r.startswith("list"))
    assert listed["list Deployment"] == 1
    assert max(listed["list ModelDeployment"], listed["list Lease"]) <= 3
    operator._shards.close()
    await contending


async def test_a_shard_is_given_up_when_no_pass_over_its_objects_is_under_way() -> None:
    operator, contending = await sharded(Cluster(), "me")
    await until(lambda: all(operator._shards.concerns(names_of(shard)[0]) for shard in (0, 1)))
    mine, other = names_of(0)[0], names_of(1)[0]
    for key in (mine, other):
        operator._queue.add(key)
    assert {operator._queue.get_nowait(), operator._queue.get_nowait()} == {mine, other}
    stopping = asyncio.create_task(operator._shards._stop(1))
    operator._queue.done(mine)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stopping.done()
    operator._queue.done(other)
    await stopping
    operator._shards.close()
    await contending


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
