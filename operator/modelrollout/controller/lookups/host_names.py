"""Claims of host names as Leases in the operator's namespace: one for each name, named after its
hash.

A ModelDeployment holds a name for as long as its spec requests it or its routes carry it. The
Leases alone make this safe, whatever any process remembers:
- a leader creates the Lease, and then checks for overlapping claims: of two leaders that claim
  overlapping names at the same time, at least one sees the other's claim and gives its own up;
- a leader gives a claim up only after a live read of the ModelDeployment, made after it read the
  Lease, shows that the ModelDeployment no longer needs the name;
- a leader releases a reserved claim instead of giving it up: the Lease records when, and is deleted
  once the time is over.
If a Lease is deleted, the ModelDeployment that serves the name claims it again: no other gets a
name that one of our routes carries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from modelrollout.api import names
from modelrollout.api.hostnames import WILDCARD, overlap, wildcards_over
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import seconds
from modelrollout.config import OperatorConfig
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound, Unreadable
from modelrollout.kube.kinds import LEASE, MODEL_DEPLOYMENT, namespaces_to_list
from modelrollout.kube.objects import Object, annotations_of, controller_of, label, microtime, parse_time
from modelrollout.kube.projection import route_for_hostnames
from modelrollout.traffic.hostnames import (
    Claim,
    Claims,
    ForeignRoutes,
    Known,
    holder_of,
    stored_requested_hosts,
)
from modelrollout.traffic.registry import ROUTES, foreign_route, hosts_of

log = logging.getLogger(__name__)
_SAME_TIME = timedelta(seconds=2)  # the API server writes whole seconds
_SELECTOR = f"{names.LABEL_CLAIM}=hostname"


class HostClaims:
    """A pass reads ``known``. Leases are read again with every resync and before every write."""

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        config: OperatorConfig,
        namespace: str,
        may_write: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._kube, self._cache, self._config, self._namespace = kube, cache, config, namespace
        self._may_write, self._now = may_write, now
        self._claims, self._foreign = Claims(), ForeignRoutes()
        # foreign routes that take a host name, as logged, by holder
        self._takers: dict[str, str] = {}
        self._blind = ""  # where foreign routes cannot be looked at, as logged

    def known(self) -> Known:
        """As of now."""
        return Known(self._claims, self._foreign, self._served, self._config.hostnames.only_by_policy)

    async def refresh(self) -> None:
        """Read all claims and all foreign routes, and give up the claims of ModelDeployments that
        are gone: what a crash has left.
        """
        listed = (await self._kube.list(LEASE, self._namespace, label_selector=_SELECTOR)).items
        self._claims = Claims(claim for lease in listed if (claim := claim_of(lease)))
        await self._look_at_foreign()
        for claim in self._claims.all():
            if claim.until is not None and claim.until > self._now():
                continue
            live = self._cache.get(MODEL_DEPLOYMENT, *claim.key)
            if live is None or holder_of(live) != claim.holder or claim.released:
                await self._give_up_if_unneeded(claim)

    async def settle(self, observation: Observation) -> bool:
        """Claim free names, give up unneeded ones, and read again the claims that block a name.
        True when any claim differs from what was known.
        """
        stands, holder, changed = observation.hostnames, holder_of(observation.deployment), False
        self._log_taker(holder, stands.taker)
        former = {claim.host: claim for claim in stands.former}
        for host in stands.free:
            changed |= await self._take(
                Claim(host, holder), served=host in stands.live, former=former.get(host)
            )
        for claim in stands.rewrite:
            changed |= await self._rewrite(claim)
        for claim in (*(c for host in stands.stale if (c := self._claims.get(host))), *stands.in_the_way):
            changed |= await self._give_up_if_unneeded(claim)
        return changed

    async def gone(self, key: Key) -> None:
        """Give up the names of a ModelDeployment that is gone."""
        for claim in self._claims.of(key):
            self._log_taker(claim.holder, None)
            await self._give_up_if_unneeded(claim)

    # --- the Leases

    async def _take(self, mine: Claim, *, served: bool, former: Claim | None) -> bool:
        """``former``: a reservation for the same version, which stays in force."""
        if not self._may_write():
            return False
        if former is not None:
            mine = replace(mine, reserved=former.reserved, version=former.version)
        try:
            lease = await self._write(mine, former)
        except (AlreadyExists, Conflict, NotFound):
            self._remember(mine.host, await self._read(mine.host))
            return True
        self._claims.put(mine)
        if not served and (other := await self._overlapping(mine)):
            log.info(
                "%s overlaps %s, which %s claimed at the same time: given back",
                mine.host,
                other.host,
                other.holder,
            )
            await self._give_up(mine, lease)
            self._claims.put(other)
            return True
        log.info("claimed the host name %s", mine.host)
        return True

    async def _write(self, mine: Claim, former: Claim | None) -> Object:
        """Create the Lease, or take over one that has no holder (it was emptied) or is
        ``former``.
        """
        metadata = {"name": names.host_lease(mine.host), "namespace": self._namespace}
        lease = self._lease(mine, {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata})
        try:
            return await self._kube.create(LEASE, lease)
        except AlreadyExists:
            live = await self._read(mine.host)
            if live is None or claim_of(live) not in (None, former):
                raise
            return await self._kube.replace(LEASE, self._lease(mine, live))

    def _lease(self, claim: Claim, live: Object) -> Object:
        """``live`` with what the claim says."""
        labels = {names.LABEL_CLAIM: "hostname", names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
        values = {
            names.ANNOTATION_RESERVED: claim.reserved,
            names.ANNOTATION_VERSION: claim.version,
            names.ANNOTATION_RELEASED: claim.released,
        }
        annotations = {names.ANNOTATION_HOSTNAME: claim.host} | {k: v for k, v in values.items() if v}
        since = (live.get("spec") or {}).get("acquireTime") if _holder(live) == claim.holder else None
        spec = {
            "holderIdentity": claim.holder,
            "acquireTime": since or microtime(self._now()),
        }
        return {
            **live,
            "metadata": {**live["metadata"], "labels": labels, "annotations": annotations},
            "spec": spec,
        }

    async def _rewrite(self, claim: Claim) -> bool:
        """Write into the Lease what outlives its holder, if the holder still has it."""
        lease = await self._read(claim.host)
        if (
            lease is None
            or _holder(lease) != claim.holder
            or claim_of(lease) == claim
            or not self._may_write()
        ):
            return self._remember(claim.host, lease)
        try:
            await self._kube.replace(LEASE, self._lease(claim, lease))
        except (Conflict, NotFound):
            return self._remember(claim.host, await self._read(claim.host))
        self._claims.put(claim)
        return True

    async def _overlapping(self, mine: Claim) -> Claim | None:
        """Another holder's claim that overlaps this one, as the API server has it now."""
        if mine.host.startswith(WILDCARD):
            leases = (await self._kube.list(LEASE, self._namespace, label_selector=_SELECTOR)).items
        else:
            leases = [lease for w in wildcards_over(mine.host) if (lease := await self._read(w))]
        claims = (claim for lease in leases if (claim := claim_of(lease)))
        return next(
            (
                c
                for c in claims
                if c.host != mine.host and c.holder != mine.holder and overlap(c.host, mine.host)
            ),
            None,
        )

    async def _give_up_if_unneeded(self, claim: Claim) -> bool:
        """Give up a claim that is no longer needed. True when the claim has changed, or has no
        holder now.
        """
        lease = await self._read(claim.host)
        if lease is None or claim_of(lease) != claim:
            return self._remember(claim.host, lease)
        if await self._is_needed(claim) or not await self._give_up(claim, lease):
            return False
        log.info("%s does not need the name %s any more", claim.holder, claim.host)
        return True

    async def _is_needed(self, claim: Claim) -> bool:
        """Decided by a live read made after that of the Lease: what this process remembers may be
        older than the claim.
        """
        try:
            live = await self._kube.get(MODEL_DEPLOYMENT, *claim.key)
        except NotFound:
            return False
        except Unreadable:  # it may be serving
            return True
        if holder_of(live) != claim.holder:
            return False
        if claim.host == names.own_name(*claim.key):
            return True
        routes = (o for r in ROUTES for o in self._cache.children(claim.key, r))
        return claim.host in stored_requested_hosts(live.get("spec")) or claim.host in hosts_of(
            o for o in routes if controller_of(o) == live["metadata"]["uid"]
        )

    async def _give_up(self, claim: Claim, lease: Object) -> bool:
        """Delete the Lease, if it is unchanged since the read. A reserved one records the release
        instead, until its time is over.
        """
        if not self._may_write() or (claim.until is not None and claim.until > self._now()):
            return False
        metadata = lease["metadata"]
        if claim.reserved and claim.version and claim.until is None:
            return await self._rewrite(replace(claim, released=stamp(self._now())))
        try:
            await self._kube.delete(
                LEASE,
                self._namespace,
                metadata["name"],
                uid=metadata["uid"],
                resource_version=metadata["resourceVersion"],
            )
        except (Conflict, NotFound):
            return self._remember(claim.host, await self._read(claim.host))
        self._claims.drop(claim.host)
        return True

    def _remember(self, host: str, lease: Object | None) -> bool:
        claim, before = claim_of(lease) if lease else None, self._claims.get(host)
        if claim:
            self._claims.put(claim)
        else:
            self._claims.drop(host)
        return claim != before

    async def _read(self, host: str) -> Object | None:
        try:
            return await self._kube.get(LEASE, self._namespace, names.host_lease(host))
        except NotFound:
            return None

    # --- routes

    def _log_taker(self, holder: str, taker: str | None) -> None:
        """A status does not tell a tenant what another namespace has; the log does, once."""
        if taker == self._takers.get(holder):
            return
        if taker is None:
            del self._takers[holder]
            return
        log.warning("%s takes a host name of ModelDeployment %s", taker, holder.rpartition("/")[0])
        self._takers[holder] = taker

    def _routes(self) -> Iterable[Object]:
        return (o for r in ROUTES for o in self._cache.all(r))

    def _served(self) -> Iterator[tuple[str, str]]:
        """Namespace/name of every ModelDeployment with each host name that its routes carry."""
        for route in filter(self._is_ours, self._routes()):
            model = f"{route['metadata'].get('namespace')}/{label(route, names.LABEL_NAME)}"
            yield from ((model, host) for host in sorted(hosts_of([route])))

    async def _look_at_foreign(self) -> None:
        """Routes without our label, and those that carry it and that no ModelDeployment
        controls.
        """
        foreign = [o for o in self._routes() if not self._is_ours(o)]
        unseen = (
            f"namespaces other than {', '.join(self._config.namespaces)}" if self._config.namespaces else ""
        )
        for resource in ROUTES:
            if not await self._kube.has_kind(resource):
                continue
            for namespace in namespaces_to_list(resource, self._config.namespaces):
                try:
                    listed = await self._kube.list(
                        resource, namespace, label_selector=f"!{names.LABEL_NAME}", keep=route_for_hostnames
                    )
                    foreign += listed.items
                except Forbidden as e:
                    unseen = f"{resource.plural}: {e.message}"
        if unseen and unseen != self._blind:
            log.warning(
                "whether a foreign route takes the host name of a ModelDeployment is not seen in %s", unseen
            )
        self._blind = unseen
        self._foreign = ForeignRoutes(route for o in foreign if (route := foreign_route(o)))

    def _is_ours(self, route: Object) -> bool:
        owner = self._cache.get(
            MODEL_DEPLOYMENT, route["metadata"].get("namespace"), label(route, names.LABEL_NAME) or ""
        )
        return owner is not None and controller_of(route) == owner["metadata"]["uid"]


def claim_of(lease: Object) -> Claim | None:
    """The claim in a Lease; None without a readable one."""
    annotations = annotations_of(lease)
    host = str(annotations.get(names.ANNOTATION_HOSTNAME, ""))
    holder = _holder(lease)
    if holder.count("/") != 2 or lease["metadata"]["name"] != names.host_lease(host):
        return None
    keys = (names.ANNOTATION_RESERVED, names.ANNOTATION_VERSION, names.ANNOTATION_RELEASED)
    reserved, version, released = (str(annotations.get(key, "")) for key in keys)
    since = _taken_over(lease)
    claim = Claim(host, holder, reserved, version, released, since)
    try:
        seconds(claim.reserved or "0s")
        is_time = claim.until is None or claim.until.tzinfo is not None
    except (ValueError, OverflowError):
        is_time = False
    return claim if is_time else Claim(host, holder, since=since)


def _taken_over(lease: Object) -> datetime | None:
    """When its holder took it over from another; None for the first holder."""
    try:
        since = parse_time(lease["spec"]["acquireTime"])
        made = parse_time(lease["metadata"]["creationTimestamp"])
    except (KeyError, TypeError, ValueError):
        return None
    return since if since - made > _SAME_TIME else None


def _holder(lease: Object) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")
