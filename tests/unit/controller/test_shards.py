"""Shards by Lease: each is worked by one replica at most, whatever is slow, paused, away or
configured otherwise; they spread evenly, and change hands in order.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from modelrollout.controller.shards import (
    CHORES,
    LEASE_NAME,
    Shards,
    shard_lease,
    shard_of,
    together,
)
from modelrollout.kube.cache import Key
from modelrollout.kube.errors import Forbidden, KubeError
from modelrollout.kube.kinds import LEASE, Resource
from modelrollout.kube.leader_election import LeaderElector
from modelrollout.kube.objects import Object
from modelrollout.testing.fake_api import FakeApi
from modelrollout.testing.virtual_clock import jump, now, run

KEYS: list[Key] = [("team", f"m{n}") for n in range(40)]


class Line:
    """A replica's own way to the API server; ``cut`` holds up its requests and their answers, as
    for a process that stands still or a network that is away.
    """

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self._open = asyncio.Event()
        self._open.set()

    def cut(self, cut: bool) -> None:
        self._open.clear() if cut else self._open.set()

    async def _through(self, request: Callable[..., Any], *args: Any) -> Any:
        await self._open.wait()
        try:
            answer = await request(*args)
        except KubeError:
            await self._open.wait()
            raise
        await self._open.wait()
        return answer

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return await self._through(self._api.get, resource, namespace, name)

    async def create(self, resource: Resource, obj: Object) -> Object:
        return await self._through(self._api.create, resource, obj)

    async def replace(self, resource: Resource, obj: Object) -> Object:
        return await self._through(self._api.replace, resource, obj)


class Replica:
    def __init__(self, api: FakeApi, name: str, count: int, drain: float = 0.0, seed: int = 0) -> None:
        self.name, self.line, self.drain = name, Line(api), drain
        self.log: list[tuple[float, str, int]] = []
        self.prepared = True
        self.shards = Shards(
            self.line,
            "ns",
            name,
            count,
            started=self._started,
            working=lambda shard: self.log.append((now(), "works", shard)),
            stopped=self._stopped,
            prepared=self._prepare,
            clock=now,
            uniform=random.Random(seed).random,
        )
        self.task = asyncio.create_task(self.shards.run())

    async def _prepare(self) -> None:
        if not self.prepared:
            raise Forbidden(403, "Forbidden", "may not list")

    async def _started(self, shard: int) -> None:
        await asyncio.sleep(0.1)

    async def _stopped(self, shard: int) -> None:
        await asyncio.sleep(self.drain)
        self.log.append((now(), "stopped", shard))

    @property
    def held(self) -> set[int]:
        return {shard for shard in range(self.shards.count) if self.shards.holds(shard)}

    async def close(self) -> None:
        self.shards.close()
        await self.task

    async def kill(self) -> None:
        """It dies: whatever it would still send does not arrive."""
        self.line.cut(True)
        self.task.cancel()
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], limit: float = 120.0) -> float:
    """Seconds until it holds."""
    start = now()
    while now() < start + limit:
        if condition():
            return now() - start
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {limit} s")


def workers(replicas: list[Replica]) -> dict[Key, list[str]]:
    """Who could write each object at this moment."""
    return {key: [r.name for r in replicas if r.shards.holds(shard_of(key, r.shards.count))] for key in KEYS}


def assert_one_at_most(replicas: list[Replica]) -> None:
    twice = {key: who for key, who in workers(replicas).items() if len(who) > 1}
    assert not twice, twice


def spread(replicas: list[Replica]) -> list[int]:
    return sorted(len(r.held) for r in replicas)


# --- which shard


def test_the_map_is_the_same_in_every_life_and_spreads_names() -> None:
    assert [shard_of(("team", f"m{n}"), 4) for n in range(8)] == [0, 3, 0, 3, 0, 2, 1, 1]
    sizes = Counter(shard_of(("team", f"model-{n}"), 8) for n in range(8000))
    assert len(sizes) == 8 and min(sizes.values()) > 850


def test_the_names_of_leases() -> None:
    assert LEASE_NAME == "modelrollout-operator", "older operators know no other"
    assert shard_lease(3) == "modelrollout-operator-shard-3"


# --- one shard


def test_one_shard_is_the_leadership_that_it_was() -> None:
    async def main() -> None:
        api = FakeApi()
        a, b = Replica(api, "a", 1), Replica(api, "b", 1)
        await until(lambda: bool(a.held or b.held))
        for _ in range(100):
            await asyncio.sleep(0.3)
            assert spread([a, b]) == [0, 1]
        leader, other = (a, b) if a.held else (b, a)
        assert list(api.all(LEASE)) == [LEASE_NAME]
        lease = api.objects[LEASE, "ns", LEASE_NAME]
        assert lease["spec"]["holderIdentity"] == leader.name
        assert not lease["metadata"].get("annotations")
        assert leader.shards.held() == {}
        await leader.close()
        assert await until(lambda: bool(other.held)) < 3
        await other.close()

    run(main())


# --- several


@pytest.mark.parametrize(("replicas", "even"), [(1, [4]), (2, [2, 2]), (3, [1, 1, 2]), (5, [0, 1, 1, 1, 1])])
def test_shards_spread_evenly(replicas: int, even: list[int]) -> None:
    async def main() -> None:
        api = FakeApi()
        all_of_them = [Replica(api, f"r{n}", 4, seed=n) for n in range(replicas)]
        await until(lambda: spread(all_of_them) == even)
        for _ in range(200):
            await asyncio.sleep(0.3)
            assert spread(all_of_them) == even, "it does not stay so"
        assert set().union(*(r.held for r in all_of_them)) == {0, 1, 2, 3}
        for replica in all_of_them:
            await replica.close()

    run(main())


def test_a_new_replica_gets_its_part_and_nothing_is_cut_off() -> None:
    """Its predecessor drains, and holds the shard until it has."""

    async def main() -> None:
        api = FakeApi()
        a = Replica(api, "a", 4, drain=3.0)
        await until(lambda: len(a.held) == 4)
        b = Replica(api, "b", 4)
        for _ in range(600):
            assert_one_at_most([a, b])
            await asyncio.sleep(0.05)
        assert spread([a, b]) == [2, 2]
        await asyncio.sleep(1)
        stopped = {shard: at for at, what, shard in a.log if what == "stopped"}
        began = {shard: at for at, what, shard in b.log if what == "works"}
        assert set(stopped) == set(began) == b.held
        assert all(0 <= began[shard] - stopped[shard] < 3 for shard in began)
        await a.close()
        await b.close()

    run(main())


def test_what_a_dead_replica_held_is_taken_over_within_the_lease() -> None:
    async def main() -> None:
        api = FakeApi()
        a, b, c = (Replica(api, name, 6, seed=n) for n, name in enumerate("abc"))
        await until(lambda: spread([a, b, c]) == [2, 2, 2])
        await b.kill()
        took = await until(lambda: spread([a, c]) == [3, 3])
        assert 12 < took < 15 + 2 * 2.4 + 0.2
        await a.close()
        assert await until(lambda: len(c.held) == 6) < 5, "one that ends gives them back at once"
        await c.close()

    run(main())


def test_a_replica_that_cannot_read_the_cluster_gets_no_shard() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Replica(api, "a", 2)
        a.prepared = False
        b = Replica(api, "b", 2)
        await until(lambda: len(b.held) == 2)
        await asyncio.sleep(60)
        assert (a.held, len(b.held)) == (set(), 2)
        a.prepared = True
        await until(lambda: spread([a, b]) == [1, 1])
        await a.close()
        await b.close()

    run(main())


def test_a_replica_without_the_api_server_stops_before_others_may_begin() -> None:
    async def main() -> None:
        api = FakeApi()
        a, b = Replica(api, "a", 2), Replica(api, "b", 2)
        await until(lambda: spread([a, b]) == [1, 1])
        a.line.cut(True)
        assert await until(lambda: not a.held) <= 10.1
        assert len(b.held) == 1
        await until(lambda: len(b.held) == 2)
        a.line.cut(False)
        await until(lambda: spread([a, b]) == [1, 1])
        await a.close()
        await b.close()

    run(main())


def test_a_slow_api_server_costs_no_replica_its_shard() -> None:
    """They do not keep each other from renewing the Lease that they hold together."""

    async def main() -> None:
        api = FakeApi()
        replicas = [Replica(api, f"r{n}", 5, seed=n) for n in range(5)]
        await until(lambda: spread(replicas) == [1] * 5)
        await asyncio.sleep(20)
        api.latency = 0.3
        for _ in range(600):
            await asyncio.sleep(0.5)
            assert spread(replicas) == [1] * 5
        api.latency = 0
        for replica in replicas:
            await replica.close()

    run(main())


def test_a_damaged_list_of_replicas_costs_no_more_than_evenness() -> None:
    async def main() -> None:
        api = FakeApi()
        a, b = Replica(api, "a", 2), Replica(api, "b", 2)
        await until(lambda: spread([a, b]) == [1, 1])
        for damage in ("{", "[]", '{"a": "x", "b": null}', '{"ghost": 1}', "[" * 100_000):

            def edit(lease: Object, damage: str = damage) -> None:
                lease["metadata"]["annotations"]["modelrollout.dev/replicas"] = damage

            api.change(LEASE, LEASE_NAME, edit, "ns")
            await asyncio.sleep(45)
            assert_one_at_most([a, b])
            assert spread([a, b]) == [1, 1]
        await a.close()
        await b.close()

    run(main())


# --- another number


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5), (5, 2)])
def test_with_another_number_nothing_is_worked_until_the_last_of_the_others_has_stopped(
    before: int, after: int
) -> None:
    async def main() -> None:
        api = FakeApi()
        old = [Replica(api, f"old{n}", before, drain=2.0, seed=n) for n in range(2)]
        await until(lambda: sum(spread(old)) == before)
        new = [Replica(api, f"new{n}", after, seed=n) for n in range(2)]
        for _ in range(600):
            await asyncio.sleep(0.1)
            assert_one_at_most([*old, *new])
            assert sum(spread(new)) == 0
        for replica in old:
            replica.shards.close()
        for _ in range(600):
            assert_one_at_most([*old, *new])
            assert sum(spread(old)) == 0 or sum(spread(new)) == 0
            await asyncio.sleep(0.1)
        assert sum(spread(new)) == after
        for replica in new:
            await replica.close()

    run(main())


def test_an_older_operator_and_shards_exclude_each_other() -> None:
    """A roll-back to a release without shards: it knows the one Lease only."""

    async def main() -> None:
        api = FakeApi()
        shards = [Replica(api, f"r{n}", 3, seed=n) for n in range(2)]
        await until(lambda: sum(spread(shards)) == 3)

        async def nothing() -> None: ...

        older = LeaderElector(
            api, "ns", LEASE_NAME, "old", started=nothing, stopped=nothing, clock=now, uniform=lambda: 0.5
        )
        contending = asyncio.create_task(older.run())
        await shards[0].close()
        for _ in range(300):
            await asyncio.sleep(0.1)
            assert not older.is_leader(), "the other one works its shards"
        assert api.objects[LEASE, "ns", LEASE_NAME]["spec"]["holderIdentity"] == together(3)
        await shards[1].close()
        assert await until(older.is_leader) < 15 + 2 * 2.4 + 0.2
        back = Replica(api, "back", 3)
        await asyncio.sleep(60)
        assert not back.held and older.is_leader()
        older.close()
        await contending
        assert await until(lambda: len(back.held) == 3) < 5
        await back.close()

    run(main())


@pytest.mark.parametrize("seed", range(30))
def test_never_two_work_one_object_in_any_weather(seed: int) -> None:
    """Replicas with different numbers of shards come, go, die, stand still and lose their network;
    the API server lags and loses answers. A replica's own belief is what counts.
    """

    async def main() -> None:
        rng = random.Random(seed)
        api = FakeApi()
        names = (f"r{n}" for n in itertools.count())
        counts = [rng.choice([1, 2, 4])] * 3 + [rng.choice([1, 2, 3, 4])] * 2

        def another() -> Replica:
            return Replica(api, next(names), rng.choice(counts), rng.uniform(0, 5), rng.randrange(1 << 30))

        replicas = [another() for _ in range(3)]
        worked = 0
        for _ in range(600):
            await asyncio.sleep(rng.uniform(0, 1.5))
            assert_one_at_most(replicas)
            worked += sum(spread(replicas))
            draw = rng.random()
            if draw < 0.03:
                api.down = not api.down
            elif draw < 0.06:
                api.lose_answers = not api.lose_answers
            elif draw < 0.10:
                api.latency = rng.choice([0, 0, 0.5, 2, 8])
            elif draw < 0.12:
                jump(rng.uniform(0, 40))
            elif draw < 0.20:
                rng.choice(replicas).line.cut(rng.random() < 0.4)
            elif draw < 0.23:
                gone = replicas.pop(rng.randrange(len(replicas)))
                if rng.random() < 0.5:
                    await gone.kill()
                else:
                    gone.line.cut(False)
                    gone.shards.close()
                    while not gone.task.done():
                        await asyncio.sleep(0.5)
                        assert_one_at_most([*replicas, gone])
                replicas.append(another())
        assert worked > 0
        for replica in replicas:
            replica.task.cancel()

    run(main())


@pytest.mark.parametrize("seed", range(10))
def test_after_the_weather_all_shards_are_worked_and_evenly(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        api = FakeApi()
        replicas = [Replica(api, f"r{n}", 5, rng.uniform(0, 4), n) for n in range(3)]
        for _ in range(60):
            await asyncio.sleep(rng.uniform(0, 5))
            rng.choice(replicas).line.cut(rng.random() < 0.5)
            api.lose_answers = rng.random() < 0.2
            assert_one_at_most(replicas)
        api.lose_answers = False
        for replica in replicas:
            replica.line.cut(False)
        await until(lambda: spread(replicas) == [1, 2, 2])
        await asyncio.sleep(60)
        assert spread(replicas) == [1, 2, 2]
        for replica in replicas:
            await replica.close()

    run(main())


# --- a pass


def test_a_pass_may_write_while_its_own_shard_is_held_and_chores_go_by_the_first() -> None:
    async def main() -> None:
        api = FakeApi()
        a, b = Replica(api, "a", 2), Replica(api, "b", 2)
        await until(lambda: spread([a, b]) == [1, 1])
        await asyncio.sleep(1)
        for replica in (a, b):
            (mine,) = replica.held
            assert replica.shards.held() == {(str(s),): int(s == mine) for s in range(2)}
            assert replica.shards.may_write() is (mine == CHORES)
            for key in KEYS:
                own = shard_of(key, 2) == mine
                assert replica.shards.concerns(key) is own
                with replica.shards.passing(key):
                    assert replica.shards.may_write() is own
                    assert not own or isinstance(replica.shards.since(), datetime)
            assert replica.shards.concerns(("", "policy"))
        jump(11)
        for key in KEYS:
            with a.shards.passing(key):
                assert not a.shards.may_write(), "it stood still for longer than its Lease"
        await a.close()
        await b.close()

    run(main())


@pytest.mark.parametrize("count", [1, 3])
def test_a_pass_that_ends_while_its_shard_is_given_up_knows_since_when_it_was_worked(count: int) -> None:
    """It may still write: without that time a stable that has no pod would count as dead since
    before this replica looked.
    """

    async def main() -> None:
        a = Replica(FakeApi(), "a", count, drain=3.0)
        await until(lambda: len(a.held) == count)
        await asyncio.sleep(1)
        with a.shards.passing(KEYS[0]):
            won = a.shards.since()
            closing = asyncio.create_task(a.close())
            await asyncio.sleep(2)
            assert a.shards.works_none() and a.shards.may_write()
            assert won is not None and a.shards.since() == won
        await closing

    run(main())
