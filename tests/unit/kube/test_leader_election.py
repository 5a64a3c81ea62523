"""Leader election: at most one leader at any time, whatever is slow, paused, away or wrong about
the time of day.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from modelrollout.kube.client import Kube
from modelrollout.kube.kinds import LEASE
from modelrollout.kube.leader_election import LeaderElector, LeaseApi, identity
from modelrollout.testing.fake_api import FakeApi
from modelrollout.testing.virtual_clock import jump, now, run

LEASE_KEY = (LEASE, "ns", "lock")


class Candidate:
    def __init__(
        self, api: FakeApi, name: str, skew: float = 0.0, drain: float = 0.0, fail_starts: int = 0
    ) -> None:
        self.name = name
        self.log: list[tuple[float, str]] = []
        self.drain = drain
        self.fail_starts = fail_starts
        self.elector = LeaderElector(
            api,
            "ns",
            "lock",
            name,
            started=self._started,
            stopped=self._stopped,
            clock=now,
            wall=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=now() + skew),
            uniform=lambda: 0.5,
        )
        self.task = asyncio.create_task(self.elector.run())

    async def _started(self) -> None:
        self.log.append((now(), "started"))
        if self.fail_starts:
            self.fail_starts -= 1
            raise RuntimeError("cannot start")

    async def _stopped(self) -> None:
        await asyncio.sleep(self.drain)
        self.log.append((now(), "stopped"))

    @property
    def leads(self) -> bool:
        return self.elector.is_leader()

    async def close(self) -> None:
        self.elector.close()
        await self.task


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never")


async def until_leader(*candidates: Candidate, limit: float = 60.0) -> Candidate:
    end = now() + limit
    while now() < end:
        if leaders := [c for c in candidates if c.leads]:
            assert len(leaders) == 1
            return leaders[0]
        await asyncio.sleep(0.1)
    raise AssertionError("no leader")


def test_the_real_adapter_fits() -> None:
    api: type[LeaseApi] = Kube
    assert api


def test_one_of_two_leads_and_goes_on_leading() -> None:
    async def main() -> None:
        api = FakeApi()
        a, b = Candidate(api, "a"), Candidate(api, "b")
        leader = await until_leader(a, b)
        for _ in range(1000):
            await asyncio.sleep(0.3)
            assert [c for c in (a, b) if c.leads] == [leader]
        assert leader.elector.leader == leader.name
        assert [what for _, what in leader.log] == ["started"]
        lease = api.objects[LEASE_KEY]["spec"]
        assert lease["holderIdentity"] == leader.name
        assert lease["leaseDurationSeconds"] == 15
        assert lease["leaseTransitions"] == 0
        await a.close()
        await b.close()

    run(main())


def test_renewing_costs_one_write_and_no_read() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        api.requests.clear()
        await asyncio.sleep(100)
        assert set(api.requests) == {"replace Lease lock"}
        assert 45 <= len(api.requests) <= 51
        await a.close()

    run(main())


def test_release_on_close_lets_the_other_lead_at_once() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a", drain=30)
        await until_leader(a)
        b = Candidate(api, "b")
        a.elector.close()
        for _ in range(290):  # while a drains, its lease is kept
            await asyncio.sleep(0.1)
            assert not b.leads
            assert a.leads
        await a.task
        assert not a.leads
        assert api.objects[LEASE_KEY]["spec"]["holderIdentity"] == ""
        assert a.log[-1][1] == "stopped"
        start = now()
        await until_leader(b)
        assert now() - start < 3
        assert api.objects[LEASE_KEY]["spec"]["leaseTransitions"] == 1
        await b.close()

    run(main())


def test_a_cancelled_leader_stops_and_releases_too() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        a.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await a.task
        assert a.log[-1][1] == "stopped"
        assert api.objects[LEASE_KEY]["spec"]["holderIdentity"] == ""

    run(main())


def test_a_dead_leader_is_replaced_after_the_lease_and_not_before() -> None:
    async def main() -> None:
        api = FakeApi()
        spec = {
            "holderIdentity": "dead",
            "leaseDurationSeconds": 15,
            "renewTime": "2001-01-01T00:00:00.000000Z",
            "leaseTransitions": 3,
        }
        api.put(LEASE, {"metadata": {"namespace": "ns", "name": "lock"}, "spec": spec})
        start = now()
        a = Candidate(api, "a")
        await until_leader(a)
        assert 15 <= now() - start <= 15 + 2.4 + 0.2  # its renewTime, long ago, is not believed
        assert api.objects[LEASE_KEY]["spec"]["leaseTransitions"] == 4
        await a.close()

    run(main())


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_clocks_that_disagree_by_a_day_change_nothing(skew: float) -> None:
    async def main() -> None:
        api = FakeApi()
        a, b = Candidate(api, "a"), Candidate(api, "b", skew=skew)
        leader = await until_leader(a, b)
        for _ in range(300):
            await asyncio.sleep(0.5)
            assert [c for c in (a, b) if c.leads] == [leader]
        await a.close()
        await b.close()

    run(main())


def test_a_leader_stops_before_another_may_start_when_the_api_server_is_away_and_leads_again_when_it_is_back() -> (  # noqa: E501
    None
):
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        b = Candidate(api, "b")
        await asyncio.sleep(20)
        api.down = True
        start = now()
        await until(lambda: not a.leads)
        assert now() - start <= 10.05
        await asyncio.sleep(0.1)
        assert a.log[-1][1] == "stopped"
        await asyncio.sleep(60)
        assert not a.leads
        assert not b.leads
        api.down = False
        leader = await until_leader(a, b)
        assert leader.log[-1][1] == "started"
        await a.close()
        await b.close()

    run(main())


def test_a_slow_answer_does_not_lengthen_the_lead() -> None:
    """Others saw the renewal when the API server took it, not when its answer came."""

    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        api.requests.clear()
        api.answer_latency = 7
        await until(lambda: bool(api.requests))
        sent = now()
        api.down = True
        await asyncio.sleep(9.5)
        assert a.leads
        await asyncio.sleep(0.6)
        assert not a.leads, now() - sent
        a.task.cancel()

    run(main())


def test_a_hanging_api_server_is_an_absent_one() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        api.latency = 1000
        start = now()
        await until(lambda: a.log[-1][1] == "stopped")
        assert now() - start <= 10.1
        api.latency = 0
        a.task.cancel()

    run(main())


def test_a_stopped_process_knows_at_once_that_it_leads_no_more() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        jump(11)  # SIGSTOP, a long garbage collection, a blocked event loop
        assert not a.leads
        await asyncio.sleep(5)
        assert [what for _, what in a.log[:3]] == ["started", "stopped", "started"]
        await a.close()

    run(main())


def test_a_renewal_whose_answer_was_lost_is_recognized_as_our_own() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        api.lose_answers = True
        await asyncio.sleep(5)
        api.lose_answers = False
        for _ in range(60):
            await asyncio.sleep(0.5)
            assert a.leads
        assert [what for _, what in a.log] == ["started"]
        await a.close()
        assert api.objects[LEASE_KEY]["spec"]["holderIdentity"] == ""

    run(main())


def test_a_write_that_was_done_and_sent_again_is_recognized_as_our_own() -> None:
    async def main() -> None:
        api = FakeApi()
        api.repeats = True
        a, b = Candidate(api, "a"), Candidate(api, "b")
        leader = await until_leader(a, b)
        for _ in range(200):
            await asyncio.sleep(0.3)
            assert [c for c in (a, b) if c.leads] == [leader]
        assert [what for _, what in leader.log] == ["started"]
        await a.close()
        await b.close()

    run(main())


def test_a_lease_taken_by_force_ends_leading_at_the_next_renewal() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        api.change(LEASE, "lock", lambda o: o["spec"].update(holderIdentity="thief"), "ns")
        await asyncio.sleep(2.1)
        assert not a.leads
        assert a.log[-1][1] == "stopped"
        await asyncio.sleep(5)
        assert a.elector.leader == "thief"
        a.task.cancel()

    run(main())


def test_a_deleted_lease_is_contended_for_anew() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a")
        await until_leader(a)
        api.remove(LEASE, "lock", "ns")
        await asyncio.sleep(6)
        assert [what for _, what in a.log] == ["started", "stopped", "started"]
        assert a.leads
        await a.close()

    run(main())


def test_who_cannot_start_leading_gives_the_lease_back() -> None:
    async def main() -> None:
        api = FakeApi()
        a = Candidate(api, "a", fail_starts=1)
        await asyncio.sleep(0.1)
        assert not a.leads
        assert api.objects[LEASE_KEY]["spec"]["holderIdentity"] == ""
        await until_leader(a)
        await a.close()

    run(main())


@pytest.mark.parametrize("seed", range(30))
def test_never_two_leaders_in_any_weather(seed: int) -> None:
    """Three candidates, an API server that comes, goes, lags and loses answers; a leader's own
    belief is what counts.
    """

    async def main() -> None:
        import random

        rng = random.Random(seed)
        api = FakeApi()
        names = (f"c{i}" for i in itertools.count())
        candidates = [Candidate(api, next(names), skew=rng.uniform(-1e5, 1e5)) for _ in range(3)]
        led = 0
        for _ in range(600):
            await asyncio.sleep(rng.uniform(0, 1.5))
            leaders = [c.name for c in candidates if c.leads]
            assert len(leaders) <= 1, leaders
            led += len(leaders)
            draw = rng.random()
            if draw < 0.05:
                api.down = not api.down
            elif draw < 0.1:
                api.lose_answers = not api.lose_answers
            elif draw < 0.15:
                api.latency = rng.choice([0, 0, 0.5, 2, 8])
            elif draw < 0.17:
                jump(rng.uniform(0, 40))
            elif draw < 0.19:
                gone = candidates.pop(rng.randrange(len(candidates)))
                gone.task.cancel() if rng.random() < 0.5 else gone.elector.close()
                await asyncio.wait([gone.task])
                candidates.append(Candidate(api, next(names)))
        assert led > 0
        for c in candidates:
            c.task.cancel()

    run(main())


def test_every_life_has_a_name_of_its_own() -> None:
    assert identity() != identity()


def test_impossible_times_are_refused() -> None:
    async def nothing() -> None: ...

    with pytest.raises(ValueError, match="renew_deadline"):
        LeaderElector(
            FakeApi(),
            "ns",
            "lock",
            "a",
            started=nothing,
            stopped=nothing,
            lease_duration=10,
            renew_deadline=10,
        )
