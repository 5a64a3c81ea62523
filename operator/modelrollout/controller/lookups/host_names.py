"""Claims of host names as Leases in the operator's namespace: one for each name, named after its
hash. Models that share a name have their claims in one Lease, so that no two writers can claim the
same paths: the holder is the first, and an annotation lists the others.

A ModelDeployment holds a name for as long as its spec requests it or its routes carry it. The
Leases alone make this safe, whatever any process remembers:
- a leader adds a claim to a Lease only as it has read it: the write fails if it has changed;
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from modelrollout import nesting
from modelrollout.api import names
from modelrollout.api.hostnames import WILDCARD, overlap, wildcards_over
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import seconds
from modelrollout.config import OperatorConfig
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import Key, ObjectCache, carrying
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound, Unreadable
from modelrollout.kube.kinds import LEASE, MODEL_DEPLOYMENT, namespaces_to_list
from modelrollout.kube.objects import Object, annotations_of, controller_of, label, microtime, parse_time
from modelrollout.kube.projection import route_for_hostnames
from modelrollout.rollout.policy.rules import Rules
from modelrollout.traffic.hostnames import (
    MAX_SHARING,
    Claim,
    Claims,
    ForeignRoutes,
    Known,
    holder_of,
    key_of,
    obstacles,
    stored_requested_hosts,
)
from modelrollout.traffic.registry import ROUTES, foreign_route, hosts_of

log = logging.getLogger(__name__)
_SAME_TIME = timedelta(seconds=2)  # the API server writes whole seconds
_SELECTOR = f"{names.LABEL_CLAIM}=hostname"
# what a Lease keeps of a claim, beside its holder
_KEPT = {
    "reserved": names.ANNOTATION_RESERVED,
    "version": names.ANNOTATION_VERSION,
    "released": names.ANNOTATION_RELEASED,
}


class HostClaims:
    """A pass reads ``known``. Leases are read again with every resync and before every write."""

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        config: OperatorConfig,
        namespace: str,
        wake: Callable[[Key, float], None],
        may_write: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._wake = wake
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
        before, self._claims = self._claims, Claims(claim for lease in listed for claim in claims_of(lease))
        for host in before.hosts():
            self._wake_if_first_differs(host, before.first(host))
        await self._look_at_foreign()
        for claim in self._claims.all():
            if claim.until is not None and claim.until > self._now():
                continue
            live = self._cache.get(MODEL_DEPLOYMENT, *claim.key)
            if live is None or holder_of(live) != claim.holder or claim.released:
                await self._give_up_if_unneeded(claim)

    async def settle(self, observation: Observation) -> bool:
        """Claim free names, give up unneeded ones, and read again what blocks a name, claims and
        foreign routes. True when any of it differs from what was known.
        """
        stands, holder, changed = observation.hostnames, holder_of(observation.deployment), False
        self._log_taker(holder, stands.taker)
        former = {claim.host: claim for claim in stands.former}
        for host in stands.free:
            mine = Claim(host, holder, over_http=host in stands.over_http)
            changed |= await self._take(
                mine, observation.observed.rules, served=host in stands.live, former=former.get(host)
            )
        for claim in stands.rewrite:
            changed |= await self._rewrite(claim)
        for claim in (
            *(c for c in self._claims.of(key_of(holder)) if c.host in stands.stale),
            *stands.in_the_way,
        ):
            changed |= await self._give_up_if_unneeded(claim)
        if stands.taker is not None:
            changed |= await self._look_again(stands.taker)
        return changed

    async def gone(self, key: Key) -> None:
        """Give up the names of a ModelDeployment that is gone."""
        for claim in self._claims.of(key):
            self._log_taker(claim.holder, None)
            await self._give_up_if_unneeded(claim)

    # --- the Leases

    async def _take(self, mine: Claim, rules: Rules, *, served: bool, former: Claim | None) -> bool:
        """``former``: a reservation for the same version, which stays in force."""
        if not self._may_write():
            return False
        if former is not None:
            mine = replace(mine, reserved=former.reserved, version=former.version, since=self._now())
        try:
            lease = await self._write(mine, rules, former)
        except (AlreadyExists, Conflict, NotFound):
            self._remember(mine.host, await self._read(mine.host))
            return True
        self._remember(mine.host, lease)
        if not served and (other := await self._overlapping(mine)):
            log.info(
                "%s overlaps %s, which %s claimed at the same time: given back",
                mine.host,
                other.host,
                other.holder,
            )
            await self._give_up(mine, lease)
            self._remember(other.host, await self._read(other.host))
            return True
        log.info("claimed the host name %s", mine.host)
        return True

    async def _write(self, mine: Claim, rules: Rules, former: Claim | None) -> Object:
        """Create the Lease, or add the claim to it, in place of ``former``. Raises AlreadyExists if
        others keep it from the name.
        """
        metadata = {"name": names.host_lease(mine.host), "namespace": self._namespace}
        lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata}
        try:
            return await self._kube.create(LEASE, self._lease([mine], lease))
        except AlreadyExists:
            live = await self._read(mine.host)
            if live is None:
                raise
            there = claims_of(live)
            others = [c for c in there if c != former]
            if obstacles(mine, others, rules) or len(others) >= MAX_SHARING:
                raise
            if not there:  # it was emptied
                mine = replace(mine, since=self._now())
            listed = [mine if c == former else c for c in there]
            return await self._kube.replace(
                LEASE, self._lease(listed if mine in listed else [*listed, mine], live)
            )

    def _lease(self, claims: Sequence[Claim], live: Object) -> Object:
        """``live`` with these claims, which it keeps in their order: those in force first, and of
        them those of the namespace that has the name, so that a guest is first only after the last.
        """
        host = next((c.key[0] for c in claims_of(live)), "")
        first, *further = sorted(claims, key=lambda c: (bool(c.released), c.key[0] != host))
        labels = {names.LABEL_CLAIM: "hostname", names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
        values = {
            names.ANNOTATION_PROTOCOL: "http" if first.over_http else "",
            names.ANNOTATION_SHARED_WITH: names.canonical_json(list(map(_entry, further))) if further else "",
        } | {key: getattr(first, part) for part, key in _KEPT.items()}
        annotations = {names.ANNOTATION_HOSTNAME: first.host} | {k: v for k, v in values.items() if v}
        spec = {
            "holderIdentity": first.holder,
            "acquireTime": microtime(first.since or _made(live) or self._now()),
        }
        return {
            **live,
            "metadata": {**live["metadata"], "labels": labels, "annotations": annotations},
            "spec": spec,
        }

    async def _rewrite(self, claim: Claim) -> bool:
        """Write into the Lease what outlives its holder, if the holder still has it."""
        lease = await self._read(claim.host)
        there = claims_of(lease) if lease else []
        own = next((c for c in there if c.holder == claim.holder), None)
        alone = claim.over_http or len(there) == 1
        if lease is None or own is None or own == claim or not alone or not self._may_write():
            return self._remember(claim.host, lease)
        written = [replace(claim, since=c.since) if c is own else c for c in there]
        try:
            lease = await self._kube.replace(LEASE, self._lease(written, lease))
        except (Conflict, NotFound):
            return self._remember(claim.host, await self._read(claim.host))
        return self._remember(claim.host, lease)

    async def _overlapping(self, mine: Claim) -> Claim | None:
        """Another holder's claim that overlaps this one, as the API server has it now."""
        if mine.host.startswith(WILDCARD):
            leases = (await self._kube.list(LEASE, self._namespace, label_selector=_SELECTOR)).items
        else:
            leases = [lease for w in wildcards_over(mine.host) if (lease := await self._read(w))]
        claims = (claim for lease in leases for claim in claims_of(lease))
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
        if lease is None or claim not in claims_of(lease):
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
        """Delete the claim, and the Lease with the last one, if it is unchanged since the read. A
        reserved one records the release instead, until its time is over.
        """
        if not self._may_write() or (claim.until is not None and claim.until > self._now()):
            return False
        metadata = lease["metadata"]
        if claim.reserved and claim.version and claim.until is None:
            return await self._rewrite(replace(claim, released=stamp(self._now())))
        rest = [c for c in claims_of(lease) if c != claim]
        try:
            if rest:
                return self._remember(claim.host, await self._kube.replace(LEASE, self._lease(rest, lease)))
            await self._kube.delete(
                LEASE,
                self._namespace,
                metadata["name"],
                uid=metadata["uid"],
                resource_version=metadata["resourceVersion"],
            )
        except (Conflict, NotFound):
            return self._remember(claim.host, await self._read(claim.host))
        self._remember(claim.host, None)
        return True

    def _remember(self, host: str, lease: Object | None) -> bool:
        before, first = self._claims.at(host), self._claims.first(host)
        self._claims.put(host, claims_of(lease) if lease else ())
        self._wake_if_first_differs(host, first)
        return self._claims.at(host) != before

    def _wake_if_first_differs(self, host: str, former: Claim | None) -> None:
        """Another ModelDeployment has the paths now that name no model."""
        first = self._claims.first(host)
        if former is None or (first is not None and first.holder == former.holder):
            return
        for claim in self._claims.at(host):
            self._wake(claim.key, 0.0)

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

    def _served(self, host: str) -> Iterator[tuple[str, str]]:
        """Namespace/name of every ModelDeployment with each host name that its routes carry, where
        they carry one that overlaps ``host``. Only for a wildcard all routes are looked at.
        """
        over = (carrying(h) for h in (host, *wildcards_over(host)))
        routes = (
            self._routes()
            if host.startswith(WILDCARD)
            else (route for mark in over for route in self._cache.find_marked(mark))
        )
        for route in filter(self._is_ours, routes):
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

    async def _look_again(self, title: str) -> bool:
        """Read a foreign route that takes a name. It may be gone long before the next refresh, as
        that of a ModelDeployment which was deleted and is made again.
        """
        kind, _, key = title.partition(" ")
        namespace, _, name = key.partition("/")
        try:
            live = await self._kube.get(next(r for r in ROUTES if r.kind == kind), namespace, name)
        except NotFound:
            return self._foreign.replace(title, None)
        except (Forbidden, Unreadable):
            return False
        return self._foreign.replace(title, None if self._is_ours(live) else foreign_route(live))

    def _is_ours(self, route: Object) -> bool:
        owner = self._cache.get(
            MODEL_DEPLOYMENT, route["metadata"].get("namespace"), label(route, names.LABEL_NAME) or ""
        )
        return owner is not None and controller_of(route) == owner["metadata"]["uid"]


def claims_of(lease: Object) -> list[Claim]:
    """The claims in a Lease that can be read, the first one first; one for each served name."""
    annotations = annotations_of(lease)
    host = str(annotations.get(names.ANNOTATION_HOSTNAME, ""))
    if lease["metadata"]["name"] != names.host_lease(host):
        return []
    first = {part: annotations.get(key) for part, key in _KEPT.items()} | {
        "holder": _holder(lease),
        "since": _taken_over(lease),
    }
    try:
        further = nesting.parse(annotations.get(names.ANNOTATION_SHARED_WITH) or "[]")
    except (TypeError, ValueError):
        further = []
    entries = [first, *(further if isinstance(further, list) else [])]
    over_http = annotations.get(names.ANNOTATION_PROTOCOL) == "http"
    claims: dict[str, Claim] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and str(entry.get("holder")).count("/") == 2:
            claim = _claim(host, entry, over_http)
            claims.setdefault(claim.model, claim)
    return list(claims.values())


def _claim(host: str, entry: Mapping[str, Any], over_http: bool) -> Claim:
    """One claim; without its reservation where that is damaged."""
    since = entry.get("since")
    try:
        since = parse_time(since) if isinstance(since, str) else since
    except ValueError:
        since = None
    values = {part: str(entry.get(part) or "") for part in _KEPT}
    claim = Claim(host, str(entry["holder"]), **values, over_http=over_http, since=since)
    try:
        seconds(claim.reserved or "0s")
        is_time = claim.until is None or claim.until.tzinfo is not None
    except (ValueError, OverflowError):
        is_time = False
    return claim if is_time else Claim(host, claim.holder, over_http=over_http, since=since)


def _entry(claim: Claim) -> Object:
    """A claim after the first, as the Lease lists it."""
    kept = {"holder": claim.holder} | {part: getattr(claim, part) for part in _KEPT}
    return {k: v for k, v in kept.items() if v} | ({"since": microtime(claim.since)} if claim.since else {})


def _taken_over(lease: Object) -> datetime | None:
    """When its holder took it over from another; None for the first holder."""
    made = _made(lease)
    try:
        since = parse_time(lease["spec"]["acquireTime"])
    except (KeyError, TypeError, ValueError):
        return None
    return since if made is not None and since - made > _SAME_TIME else None


def _made(lease: Object) -> datetime | None:
    try:
        return parse_time(lease["metadata"]["creationTimestamp"])
    except (KeyError, TypeError, ValueError):
        return None


def _holder(lease: Object) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")
