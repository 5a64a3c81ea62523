"""Which ModelDeployments this replica works: those of the shards that it holds by Lease.

With one shard its Lease is the operator's (``LEASE_NAME``), held by one replica, as ever. With
N > 1 the replicas of this N hold that Lease together, under a name that says N, and each shard has
a Lease of its own. So no two replicas with different N (another configuration, an older operator)
work at one time: those under the other name wait until the last of these has stopped. And of the
replicas with the same N one holds a shard. A replica writes only while both Leases are surely its
own (docs/design/0014-shards.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial

from modelrollout.kube.cache import Key
from modelrollout.kube.leader_election import LeaderElector, LeaseApi
from modelrollout.kube.members import Members

LEASE_NAME = "modelrollout-operator"
LEASE_SECONDS = 15.0
CHORES = 0  # the shard whose holder does what belongs to no ModelDeployment

# the shard of the pass that runs; what runs outside of a pass is a chore
_shard: ContextVar[int] = ContextVar("shard", default=CHORES)


def shard_of(key: Key, count: int) -> int:
    """The shard of an object. By name, not by uid: what is deleted and made again under its name
    has the same worker, and a child's label tells the shard even if its owner is gone.
    """
    return int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:8]) % count


def shard_lease(shard: int) -> str:
    """Name of the Lease of one of several shards."""
    return f"{LEASE_NAME}-shard-{shard}"


def together(count: int) -> str:
    """The name under which the replicas of so many shards hold the operator's Lease."""
    return f"{LEASE_NAME}-shards-{count}"


class Shards:
    """The shards of one replica. ``started`` runs when it has won one, before any pass over its
    objects, ``working`` when passes may begin, ``stopped`` when it gives the shard up or has lost
    it, as of ``LeaderElector``. ``prepared`` runs before the first of several shards is taken: a
    replica that fails there gets none.
    """

    def __init__(
        self,
        kube: LeaseApi,
        namespace: str,
        identity: str,
        count: int,
        *,
        started: Callable[[int], Awaitable[None]],
        working: Callable[[int], None],
        stopped: Callable[[int], Awaitable[None]],
        prepared: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.count = count
        self._started, self._working, self._stopped = started, working, stopped
        self._prepared = prepared
        self._worked: set[int] = set()
        # when each was won last; passes that end while it is given up count from then too
        self._since: dict[int, datetime] = {}
        elector = partial(
            LeaderElector, kube, namespace, lease_duration=LEASE_SECONDS, clock=clock, uniform=uniform
        )
        if count == 1:
            self._first = elector(
                LEASE_NAME, identity, started=partial(self._start, 0), stopped=partial(self._stop, 0)
            )
            self._electors = [self._first]
            return
        self._members = Members(identity, LEASE_SECONDS, clock)
        self._first = elector(
            LEASE_NAME,
            together(count),
            started=self._contend,
            stopped=self._leave,
            members=self._members,
        )
        self._electors = [
            elector(
                shard_lease(shard),
                identity,
                started=partial(self._start, shard),
                stopped=partial(self._stop, shard),
                wanted=partial(self._wants, shard),
            )
            for shard in range(count)
        ]

    async def run(self) -> None:
        """Contend for shards and work them, until ``close``."""
        await self._first.run()

    def close(self) -> None:
        """Ask ``run`` to end: all shards are given up."""
        self._first.close()

    # --- what is this replica's

    def holds(self, shard: int) -> bool:
        """Whether the shard is surely this replica's at this moment: check before each write."""
        return self._first.is_leader() and self._electors[shard].is_leader()

    def held(self) -> dict[tuple[str], int]:
        """For the metric: 1 for each shard that is this replica's, 0 for the others; empty where
        there is one.
        """
        several = range(self.count) if self.count > 1 else ()
        return {(str(shard),): int(self.holds(shard)) for shard in several}

    def works_any(self) -> bool:
        """Whether some shard is surely this replica's."""
        return any(map(self.holds, range(self.count)))

    def works_none(self) -> bool:
        """Whether passes may begin over no ModelDeployment."""
        return not self._worked

    def concerns(self, key: Key) -> bool:
        """Whether passes over it may begin here. All replicas pass over RolloutPolicies, to wake
        what a change affects; with one shard it is the queue that waits.
        """
        return self.count == 1 or not key[0] or shard_of(key, self.count) in self._worked

    def is_of(self, shard: int, key: Key) -> bool:
        """Whether the key is of this shard."""
        return shard_of(key, self.count) == shard

    # --- of the pass that runs

    @contextmanager
    def passing(self, key: Key) -> Iterator[None]:
        """Within it ``may_write`` and ``since`` speak of the shard of this key."""
        token = _shard.set(shard_of(key, self.count))
        try:
            yield
        finally:
            _shard.reset(token)

    def may_write(self) -> bool:
        """Whether the shard of this pass is surely this replica's; outside of a pass that of the
        chores.
        """
        return self.holds(_shard.get())

    def since(self) -> datetime | None:
        """When this replica has won the shard of this pass (last)."""
        return self._since.get(_shard.get())

    # --- contending

    async def _contend(self) -> None:
        await self._prepared()
        self._members.join()
        async with asyncio.TaskGroup() as group:
            for elector in self._electors:
                group.create_task(elector.run())

    async def _leave(self) -> None:
        self._members.leave()

    def _wants(self, shard: int) -> bool:
        """Whether to take the shard, or to keep it: as many as its share, and no more. Of several
        free ones each replica begins with others, so that they do not all want the first.
        """
        share = self._members.share(self.count)
        mine = [s for s, elector in enumerate(self._electors) if elector.has_won]
        free = [s for s, elector in enumerate(self._electors) if not elector.has_won and elector.is_free]
        free.sort(key=lambda s: s not in share)
        return shard in mine[: len(share)] + free[: max(0, len(share) - len(mine))]

    async def _start(self, shard: int) -> None:
        self._since[shard] = datetime.now(UTC)
        await self._started(shard)
        self._worked.add(shard)
        self._working(shard)

    async def _stop(self, shard: int) -> None:
        self._worked.discard(shard)
        await self._stopped(shard)
