"""Leader election by a coordination.k8s.io/v1 Lease.

As client-go does it: another candidate's clock is never trusted; its lease counts from when a
change of it was last *observed*. A leader counts from when its last successful renewal was *sent*,
so it stops renew_deadline after that: strictly before another replica may take over.

Several processes may hold one lease together, under one holder (``members``): a candidate under
another waits until the last of them has stopped. They never release it, because one cannot know
that no other still counts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from modelrollout.api import names
from modelrollout.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from modelrollout.kube.kinds import LEASE, Resource
from modelrollout.kube.members import Members
from modelrollout.kube.objects import Object, annotations_of, microtime

log = logging.getLogger(__name__)
JITTER = 1.2
TRIES = 4  # writes in one attempt, of a lease that is held together
BEAT = 2  # retry periods after which each of those that hold a lease together writes it


class LeaseApi(Protocol):
    """What the elector needs of ``Kube``."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...
    async def create(self, resource: Resource, obj: Object) -> Object: ...
    async def replace(self, resource: Resource, obj: Object) -> Object: ...


def identity() -> str:
    """A name that no other process has, not even this one's next life: it begins with the host (the
    pod).
    """
    return f"{socket.gethostname()}_{uuid.uuid4()}"


class LeaderElector:
    """One candidate. All times are seconds; ``clock`` must run as the event loop's does, ``wall``
    is only shown to people.

    ``started`` runs as a task when the lease is won, and is cancelled when it is lost; if it
    raises, the lease is given back. ``stopped`` is awaited when leading ends; until it returns, a
    lease that is still ours is renewed, so no other replica takes over while work drains.

    ``wanted``: whether to take the lease when it is free, and to keep it; one that is held and not
    wanted any more is given up as by ``close``, and contended for again. ``members``: the processes
    that hold it together with this one, under the same ``holder``.
    """

    def __init__(
        self,
        kube: LeaseApi,
        namespace: str,
        name: str,
        holder: str,
        *,
        started: Callable[[], Awaitable[None]],
        stopped: Callable[[], Awaitable[None]],
        lease_duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        uniform: Callable[[], float] = random.random,
        wanted: Callable[[], bool] = lambda: True,
        members: Members | None = None,
    ) -> None:
        if not retry_period * JITTER < renew_deadline < lease_duration:
            raise ValueError(f"needs {JITTER} * retry_period < renew_deadline < lease_duration")
        self._kube, self._namespace, self._name, self._holder = kube, namespace, name, holder
        self._started, self._stopped = started, stopped
        self._duration, self._deadline, self._retry = lease_duration, renew_deadline, retry_period
        self._clock, self._wall, self._uniform = clock, wall, uniform
        self._wanted, self._members = wanted, members
        self._lease: Object | None = None  # as last seen
        self._observed = 0.0  # when its spec was last seen to change
        # when the look was sent that saw it so, and the last successful write
        self._looked = self._wrote = 0.0
        # when the last successful renewal was sent; None: not ours
        self._renewed: float | None = None
        self._closing = asyncio.Event()

    def is_leader(self) -> bool:
        """Whether the lease is surely ours at this moment, whatever else is stuck: check before
        each write.
        """
        return self._renewed is not None and self._clock() < self._renewed + self._deadline

    @property
    def has_won(self) -> bool:
        """Whether it leads, or did until a moment ago and has not stopped yet."""
        return self._renewed is not None

    @property
    def is_free(self) -> bool:
        """Whether the lease, as last seen, may be taken: it has no holder, or has expired."""
        return self._may_take()

    @property
    def leader(self) -> str:
        """Holder as last observed; empty without a leader."""
        return _spec(self._lease).get("holderIdentity") or ""

    def close(self) -> None:
        """Ask ``run`` to end: stopped() is awaited, then the lease is released."""
        self._closing.set()

    async def run(self) -> None:
        """Contend for the lease, lead, and contend again when it is lost, until ``close``.
        Cancelling it ends leading too, with release.
        """
        try:
            while not self._closing.is_set():
                if await self._attempt():
                    await self._lead()
                await self._pause(self._retry * (1 + (JITTER - 1) * self._uniform()))
        finally:
            await self._release()

    async def _lead(self) -> None:
        log.info("leading as %s, by Lease %s", self._holder, self._name)
        started = asyncio.ensure_future(self._started())
        renewing = asyncio.create_task(self._renew())
        ends: set[asyncio.Future[Any]] = {
            renewing,
            asyncio.create_task(self._closing.wait()),
            asyncio.create_task(self._until_unwanted()),
        }
        try:
            waiting = {*ends, started}
            while waiting >= ends:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if started in done and not started.cancelled() and started.exception():
                    log.error("could not start leading, giving the lease back", exc_info=started.exception())
                    break
        finally:
            log.info("no longer leading, by Lease %s", self._name)
            await _cancel(started)
            try:
                await self._stopped()
            finally:
                for task in ends:
                    await _cancel(task)
                await self._release()

    async def _renew(self) -> None:
        """Renew until the lease is lost: taken by another, or not renewed within the deadline."""
        while self.is_leader():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._left()):
                    await asyncio.sleep(self._retry)
                    await self._attempt()
        self._renewed = None

    async def _until_unwanted(self) -> None:
        while True:
            if not self._wanted():
                return
            await asyncio.sleep(self._retry)

    def _left(self) -> float:
        return 0.0 if self._renewed is None else self._renewed + self._deadline - self._clock()

    async def _attempt(self) -> bool:
        """Take or renew the lease if that is allowed; False when it is not or the API server does
        not answer.
        """
        leading = self._renewed is not None
        try:
            if self._members is not None:
                return await self._attempt_together()
            if leading:
                # from the last observed state: saves a read, and the guard detects a stale one
                if await self._write():
                    return True
            else:
                await self._read_lease()
            if leading and self._renewed is None:
                return False  # another may have led meanwhile: stop first, contend later
            return self._may_take() and (leading or self._wanted()) and await self._write()
        except KubeError as e:
            log.warning("lease %s/%s: %s", self._namespace, self._name, e)
            return False

    async def _attempt_together(self) -> bool:
        """``_attempt``, of a lease that others hold under the same holder. Their renewals count as
        one's own would that was sent with the look before the one that saw it: it came later than
        that. So few of them have to write, and seldom at the same time.
        """
        leading, looked, before = self._renewed is not None, self._looked, _spec(self._lease)
        await self._read_lease()
        if leading and not self.is_leader():
            return False  # lost, or another may have had it meanwhile: stop first, contend later
        if self._renewed is not None and _spec(self._lease) != before:
            self._renewed = max(self._renewed, looked)
            if self._clock() - self._wrote < BEAT * self._retry:
                return True
        for _ in range(TRIES):  # another one may write at the same time
            if (leading and self._renewed is None) or not self._may_take():
                return False
            if await self._write():
                return True
        return False

    async def _read_lease(self) -> None:
        sent = self._clock()
        try:
            lease: Object | None = await self._kube.get(LEASE, self._namespace, self._name)
        except NotFound:
            lease = None
        if self._lease is None or _spec(lease) != _spec(self._lease):
            self._observed = self._clock()
        self._saw(lease)
        self._looked = sent
        if self.leader != self._holder:
            self._renewed = None  # another replica has it, or none

    def _may_take(self) -> bool:
        if self.leader in ("", self._holder):
            return True
        duration = _spec(self._lease).get("leaseDurationSeconds") or self._duration
        return bool(self._clock() >= self._observed + duration)

    async def _write(self, holder: str | None = None) -> bool:
        """Write us (or ``holder``) into the lease as last seen; False when it is not at that state
        any more.

        Where a kept-alive connection breaks, the HTTP client sends the request again by itself: a
        write that was done then meets a conflict.
        """
        holder = self._holder if holder is None else holder
        sent, now = self._clock(), microtime(self._wall())
        old = _spec(self._lease)
        taken = bool(holder) and old.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": round(self._duration) if holder else 1,
            "acquireTime": now if taken or not holder else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": (old.get("leaseTransitions") or 0) + (1 if taken and self._lease else 0),
        }
        metadata = (
            self._lease["metadata"] if self._lease else {"namespace": self._namespace, "name": self._name}
        )
        if self._members is not None:
            replicas = {names.ANNOTATION_REPLICAS: self._members.beat()}
            metadata = {**metadata, "annotations": {**annotations_of({"metadata": metadata}), **replicas}}
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": metadata,
            "spec": {**old, **spec},
        }
        try:
            self._saw(
                await (self._kube.replace(LEASE, body) if self._lease else self._kube.create(LEASE, body))
            )
        except (AlreadyExists, Conflict, NotFound):
            await self._read_lease()
            written = _spec(self._lease)
            # of a lease that is held together it may be another one's, and older than ``sent``
            ours = (written.get("holderIdentity"), written.get("renewTime")) == (holder, now)
            if not ours or self._members is not None:
                return False
        self._observed = self._clock()
        self._looked = self._wrote = sent
        self._renewed = sent if holder else None
        return True

    def _saw(self, lease: Object | None) -> None:
        self._lease = lease
        if self._members is not None:
            self._members.saw(annotations_of(lease or {"metadata": {}}).get(names.ANNOTATION_REPLICAS))

    async def _release(self) -> None:
        if not self.is_leader():
            self._renewed = None
            return
        with contextlib.suppress(KubeError, TimeoutError):
            async with asyncio.timeout(self._left()):
                if self._members is not None:  # says that this one has left
                    if not await self._write() and self._renewed is not None:
                        await self._write()
                elif not await self._write(holder=""):
                    await self._read_lease()  # a renewal that was cut off may have been done
                    if self.is_leader():
                        await self._write(holder="")
        self._renewed = None

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


def _spec(lease: Object | None) -> dict[str, Any]:
    return (lease or {}).get("spec") or {}


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
