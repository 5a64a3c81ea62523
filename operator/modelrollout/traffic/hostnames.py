"""Whose host names are: a ModelDeployment's routes carry a name only while it holds the name's
claim. The Leases are ``controller.lookups.host_names``'s.

The first claim wins, and not the older object, because a spec can take up any name at any time. A
name that a route of ours has served since before there were claims is claimed whatever overlaps it;
a name that is another's is never carried.

Where policies demand metrics a name outlives its holder: for some weeks it stays with the version
that served last under it. Otherwise a wrong model would come to clients as the first version of
another ModelDeployment, which has nothing to be compared with. The ModelDeployment's own name is
one.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.hostnames import WILDCARD, allowed, overlap, wildcards_over
from modelrollout.api.v1alpha1 import ModelDeploymentSpec, as_today, seconds
from modelrollout.problem import Problem
from modelrollout.resources.common import Object
from modelrollout.resources.endpoints import GRPC_METHODS, http_endpoints
from modelrollout.rollout.policy.rules import Rules


@dataclass(frozen=True)
class RequestedHost:
    """A host name that a spec asks for; ``kind`` is http or grpc."""

    field: str
    kind: str
    host: str


@dataclass(frozen=True)
class Claim:
    """Who holds a host name: ``holder`` is namespace/name/uid of a ModelDeployment.

    ``reserved``: how long it stays with ``version`` (a hash; empty: none has served), once it is
    given up. ``released``: when it was. ``since``: when the holder took it over from another.
    """

    host: str
    holder: str
    reserved: str = ""
    version: str = ""
    released: str = ""
    since: datetime | None = field(default=None, compare=False)

    @property
    def until(self) -> datetime | None:
        """The end of the reservation; None while it is held."""
        return (
            datetime.fromisoformat(self.released) + timedelta(seconds=seconds(self.reserved))
            if self.released
            else None
        )

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name of the holder."""
        namespace, name, _ = self.holder.split("/")
        return namespace, name


class Claims:
    """The claims that are known, by host name, by holder, and by what they overlap."""

    def __init__(self, claims: Iterable[Claim] = ()) -> None:
        self._by_host: dict[str, Claim] = {}
        self._by_key: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for claim in claims:
            self.put(claim)

    def put(self, claim: Claim) -> None:
        """Know it, in the place of what was known of this name."""
        self.drop(claim.host)
        self._by_host[claim.host] = claim
        self._by_key[claim.key].add(claim.host)

    def drop(self, host: str) -> None:
        """The name is nobody's."""
        if (claim := self._by_host.pop(host, None)) is None:
            return
        self._by_key[claim.key].discard(host)
        if not self._by_key[claim.key]:
            del self._by_key[claim.key]

    def get(self, host: str) -> Claim | None:
        """The claim of exactly this name."""
        return self._by_host.get(host)

    def all(self) -> list[Claim]:
        """Every claim."""
        return list(self._by_host.values())

    def of(self, key: tuple[str, str]) -> list[Claim]:
        """Those of the ModelDeployments, past and present, of that namespace and name."""
        return [self._by_host[host] for host in sorted(self._by_key.get(key, ()))]

    def against(self, host: str, holder: str) -> Claim | None:
        """A claim of somebody else for another name that overlaps this one. Costs as many steps as
        there are claims only for a wildcard.
        """
        over = (self._by_host[w] for w in wildcards_over(host) if w in self._by_host)
        below = (
            (c for c in self._by_host.values() if overlap(host, c.host))
            if host.startswith(WILDCARD)
            else iter(())
        )
        return next(
            (c for found in (over, below) for c in found if c.host != host and c.holder != holder), None
        )


@dataclass(frozen=True)
class ForeignRoute:
    """A route that no ModelDeployment has. ``opens``: types and values of its matches, as paths of
    HTTP.
    """

    told: str
    namespace: str
    gateways: frozenset[tuple[str, str]]
    hosts: tuple[str, ...]
    opens: tuple[tuple[str, str], ...]

    def takes(self, host: str, gateway: tuple[str, str], paths: Iterable[str]) -> bool:
        """Whether requests for ``host`` may go there. A wildcard takes them from an exact name only
        where a gateway ranks a route by the longest of its names (Traefik): by the Gateway API the
        exact name wins.
        """
        if gateway not in self.gateways or not any(
            _opened(match, path) for path in paths for match in self.opens
        ):
            return False
        return host in self.hosts or (
            any(h in self.hosts for h in wildcards_over(host)) and max(map(len, self.hosts)) >= len(host)
        )


class ForeignRoutes:
    """Foreign routes by host name."""

    def __init__(self, routes: Iterable[ForeignRoute] = ()) -> None:
        self._by_host: defaultdict[str, list[ForeignRoute]] = defaultdict(list)
        for route in routes:
            for host in route.hosts:
                self._by_host[host].append(route)

    def taker(
        self, host: str, gateway: tuple[str, str], paths: Iterable[str], own: frozenset[str] = frozenset()
    ) -> ForeignRoute | None:
        """A route that takes requests for ``host`` with one of these paths. ``own``: those that are
        not foreign any more, as they are told.
        """
        listed = list(paths)
        found = (r for name in (host, *wildcards_over(host)) for r in self._by_host.get(name, ()))
        return next((r for r in found if r.told not in own and r.takes(host, gateway, listed)), None)


NO_FOREIGN = ForeignRoutes()


@dataclass(frozen=True)
class Known:
    """What is known besides the ModelDeployment itself. ``routes``: those that ModelDeployments
    control, looked at only where a name is not held.
    """

    claims: Claims
    foreign: ForeignRoutes
    routes: Callable[[], Iterable[Object]]
    only_by_policy: bool  # no name may be claimed that no RolloutPolicy allows


@dataclass(frozen=True)
class Standing:
    """How a ModelDeployment stands with the host names of its spec and of its routes."""

    live: frozenset[str] = frozenset()  # names that its routes carry
    lost: frozenset[str] = frozenset()  # those of them that are another's
    free: tuple[str, ...] = ()  # to be claimed
    stale: tuple[str, ...] = ()  # held, and not needed any more
    # reserved for the very version, so that those of them that are free may be taken over
    former: tuple[Claim, ...] = ()
    # held, and their Leases do not say yet what is to outlive the holder
    rewrite: tuple[Claim, ...] = ()
    in_the_way: tuple[Claim, ...] = ()
    taker: str | None = None  # the foreign route of ``problem`` or ``taken``
    problem: Problem | None = None
    # when it took over the latest of the reserved names that its clients use
    since: datetime | None = None
    # a foreign route takes a name that it has: told, for whoever may write a route must not be able
    # to stop rollouts
    taken: Problem | None = None

    @property
    def settled(self) -> bool:
        """Whether it holds every name that it asks for."""
        return self.problem is None and not self.free


NO_NAMES = Standing()


def holder_of(deployment: Object) -> str:
    """namespace/name/uid."""
    metadata = deployment["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}/{metadata['uid']}"


def version_of(user_input: Mapping[str, Any], sha256: str, artifact: str = "") -> str:
    """Names a version whatever ModelDeployment has it. ``artifact``: its digest, part of the name
    where the input does not say what comes of it.
    """
    found = dict(user_input)
    # of a newer operator: then it is what it says
    with contextlib.suppress(ValidationError, KeyError):
        found = as_today(found)  # an older one did not write every field that there is now
    return names.short_hash([found, sha256, *([artifact] if _reads_data(user_input) else [])], 16)


def _reads_data(user_input: Mapping[str, Any]) -> bool:
    """Whether steps read data, which no digest pins: exchanged in its place it makes another model
    of the very same input.
    """
    return any("uri" in found for found in _maps((user_input.get("optimization") or {}).get("steps")))


def _maps(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for v in inner:
        yield from _maps(v)


def _known_before_it_is_made(spec: ModelDeploymentSpec) -> str | None:
    """The version that the spec asks for, where it says all of it."""
    found = spec.user_input()
    return version_of(found, spec.model.sha256) if spec.model.sha256 and not _reads_data(found) else None


def requested_hosts(spec: ModelDeploymentSpec) -> list[RequestedHost]:
    """Every host name of the spec, for a preview too, with its field."""
    preview = spec.rollout.blue_green.preview if spec.rollout.blue_green else None
    parts = (("spec.traffic", spec.traffic), ("spec.rollout.blueGreen.preview", preview))
    return [
        RequestedHost(f"{where}.{kind}.hostnames[{i}]", kind, host)
        for where, part in parts
        for kind, listed in (("http", part.http if part else None), ("grpc", part.grpc if part else None))
        for i, host in enumerate(listed.hostnames if listed else ())
    ]


def stored_requested_hosts(spec: Any) -> set[str]:
    """The same of a spec as it is stored, whatever it holds."""
    parts = [_field(spec, "traffic"), _field(_field(_field(spec, "rollout"), "blueGreen"), "preview")]
    listed = (_field(_field(part, kind), "hostnames") for part in parts for kind in ("http", "grpc"))
    return {host for found in listed if isinstance(found, list) for host in found if isinstance(host, str)}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def hosts_of_routes(routes: Iterable[Object]) -> frozenset[str]:
    """Host names of routes."""
    return frozenset(host for route in routes for host in (route.get("spec") or {}).get("hostnames") or [])


def standing(
    holder: str,
    spec: ModelDeploymentSpec | None,
    live: frozenset[str],
    known: Known,
    rules: Rules,
    serves: str | None = None,
    flies: str | None = None,
    routes: frozenset[str] = frozenset(),
) -> Standing:
    """``holder``: namespace/name/uid. ``live``: names that its own routes carry; ``routes``: those
    routes, as they are told. ``serves``: the version (``version_of``) that is stable, if one is.
    ``flies``: that of the rollout in flight, which may be about to serve whatever spec asks for by
    now.

    A spec that cannot be read asks for nothing, and gives nothing back.
    """
    namespace, model, _ = holder.split("/")
    lost = frozenset(h for h in live if (c := known.claims.get(h)) and c.holder != holder)
    if spec is None:
        return Standing(live, lost)
    gateway = spec.traffic.gateway
    wanted = requested_hosts(spec) if gateway else []
    own = names.own_name(namespace, model)
    if rules.reserve_names or known.claims.get(own):
        wanted = [RequestedHost("metadata.name", "", own), *wanted]
    at = (gateway.namespace or namespace, gateway.name) if gateway else ("", "")
    wants = _known_before_it_is_made(spec)
    comes = {serves} if serves else {wants, flies or wants}
    free: list[str] = []
    former: list[Claim] = []
    rewrite: list[Claim] = []
    in_the_way: list[Claim] = []
    problems: list[Problem] = []
    taken: Problem | None = None
    taken_by: str | None = None
    since: datetime | None = None
    for name in wanted:
        claim = known.claims.get(name.host)
        mine = claim is not None and claim.holder == holder
        # since before there were claims, or its Lease was deleted
        served = name.host in live and name.host not in lost
        if claim is not None and (
            problem := _reserved(name, claim, rules, mine=mine, serves=serves, comes=comes)
        ):
            problems.append(problem)
            in_the_way += [] if mine else [claim]
            continue
        if not mine and not served:
            if name.kind and (problem := _not_allowed(name, namespace, known, rules)):
                problems.append(problem)
                continue
            if claim is not None and claim.released:
                former.append(claim)
                claim = None
            other = claim or known.claims.against(name.host, holder)
            if problem := _taken(name, namespace, holder, other, known):
                problems.append(problem)
                in_the_way += [other] if other else []
                continue
        if name.kind and (taker := known.foreign.taker(name.host, at, _paths(name.kind, model), routes)):
            taken_by = taker.told
            where = (
                taker.told
                if taker.namespace == namespace
                else "a route of another namespace, which the operator's log names,"
            )
            problem = Problem(
                "HostnameTaken",
                f"{name.field}: {where} takes requests for {name.host}; choose another name, or have it"
                " changed",
            )
            if not mine and not served:
                problems.append(problem)
                continue
            taken = taken or problem
        if claim is None or not mine:
            free.append(name.host)
            continue
        reserved = claim.reserved if _is_preview(name) else rules.reserve_names or claim.reserved
        kept = Claim(name.host, holder, reserved, (serves or claim.version) if reserved else "")
        rewrite += [kept] if kept != claim else []
        if name.kind and claim.since and kept.reserved and not _is_preview(name):
            since = max(since or claim.since, claim.since)
    needed = {n.host for n in wanted} | live | {own}
    stale = tuple(
        c.host
        for c in known.claims.of((namespace, model))
        if c.holder == holder and c.host not in needed and not c.released
    )
    firsts = tuple(dict.fromkeys(free))
    return Standing(
        live,
        lost,
        firsts,
        stale,
        tuple(former),
        tuple(rewrite),
        tuple(in_the_way),
        taken_by,
        next(iter(problems), None),
        since,
        taken,
    )


def _is_preview(name: RequestedHost) -> bool:
    return name.field.startswith("spec.rollout.")


def _reserved(
    name: RequestedHost,
    claim: Claim,
    rules: Rules,
    *,
    mine: bool,
    serves: str | None,
    comes: Collection[str | None],
) -> Problem | None:
    """Why this version may not come to the clients of a name: another served them last, and nothing
    compares the two.
    """
    if mine and _is_preview(name) and claim.reserved and rules.reserve_names:
        text = (
            f"{name.field}: {name.host} has served all clients, who would be given what is on trial; choose"
            " another name for the preview"
        )
        return Problem("HostnameNotAllowed", text)
    of_another = not mine and bool(claim.released)
    unproven = mine and serves is None and bool(claim.version)
    if not (of_another or unproven) or (claim.version and comes == {claim.version}):
        return None
    until = f" until {claim.until.astimezone(UTC).strftime('%Y-%m-%d %H:%M UTC')}" if claim.until else ""
    remedy = "serve that version, with its spec.model.sha256, and then roll this one out"
    lease = f"or choose another name, or have the platform team delete Lease {names.host_lease(name.host)}"
    return Problem(
        "NameReserved",
        f"{name.field}: {name.host} stays with the version that served last under it{until}: {remedy};"
        f" {lease}",
    )


def _not_allowed(name: RequestedHost, namespace: str, known: Known, rules: Rules) -> Problem | None:
    """A new claim must lie in what every policy that speaks of host names allows."""
    for policy, patterns in rules.hostnames:
        if not allowed(patterns, namespace, name.host):
            told = ", ".join(patterns)
            return Problem(
                "HostnameNotAllowed",
                f"{name.field}: {name.host}: RolloutPolicy {policy} allows only {told}; choose a name among"
                " them",
            )
    if rules.hostnames:
        return None
    remedy = "have the platform team allow it by allowedHostnames of a RolloutPolicy"
    if known.only_by_policy:
        return Problem(
            "HostnameNotAllowed",
            f"{name.field}: {name.host}: no RolloutPolicy allows this namespace host names; {remedy}",
        )
    if name.host.startswith(WILDCARD):
        return Problem(
            "HostnameNotAllowed",
            f"{name.field}: {name.host}: a wildcard needs a RolloutPolicy; {remedy}, or list the names one"
            " by one",
        )
    return None


def _taken(
    name: RequestedHost, namespace: str, holder: str, claim: Claim | None, known: Known
) -> Problem | None:
    """Somebody else's claim, or a route of somebody else who has yet to claim what he serves."""
    if claim is None:
        routes = (route for route in known.routes() if _of(route) != holder.rpartition("/")[0])
        claim = next(
            (
                Claim(host, f"{_of(route)}/")
                for route in routes
                for host in sorted(hosts_of_routes([route]))
                if overlap(host, name.host)
            ),
            None,
        )
    if claim is None:
        return None
    theirs, model = claim.key
    who = (
        f"ModelDeployment {theirs}/{model}"
        if theirs == namespace
        else f"a ModelDeployment of another namespace (Lease {names.host_lease(claim.host)})"
    )
    other = claim.host if theirs == namespace else "a name"
    why = f"belongs to {who}" if claim.host == name.host else f"overlaps {other}, which belongs to {who}"
    return Problem(
        "HostnameTaken",
        f"{name.field}: {name.host} {why}; choose another name, or have that one given up first",
    )


def _of(route: Object) -> str:
    """Namespace and name of the ModelDeployment whose label a route carries."""
    metadata = route["metadata"]
    return f"{metadata.get('namespace')}/{(metadata.get('labels') or {}).get(names.LABEL_NAME)}"


def foreign_route(route: Object) -> ForeignRoute | None:
    """What a route that is not ours takes; None where it takes nothing: without host names, refused
    by its gateways, or only a redirect.
    """
    metadata, spec = route["metadata"], route.get("spec") or {}
    namespace = metadata.get("namespace") or ""
    refused = {
        _gateway(p.get("parentRef") or {}, namespace)
        for p in (route.get("status") or {}).get("parents") or []
        if any(c.get("type") == "Accepted" and c.get("status") == "False" for c in p.get("conditions") or [])
    }
    parents = [p for p in spec.get("parentRefs") or [] if p.get("kind", "Gateway") == "Gateway"]
    gateways = frozenset(_gateway(p, namespace) for p in parents) - refused
    opens = tuple(
        m for rule in spec.get("rules") or [] if not _redirects(rule) for m in _matches(route["kind"], rule)
    )
    hosts = tuple(spec.get("hostnames") or ())
    return (
        ForeignRoute(route_name(route), namespace, gateways, hosts, opens)
        if hosts and gateways and opens
        else None
    )


def route_name(route: Object) -> str:
    """How messages name a route."""
    metadata = route["metadata"]
    return f"{route['kind']} {metadata.get('namespace') or ''}/{metadata['name']}"


def _gateway(parent: Mapping[str, Any], namespace: str) -> tuple[str, str]:
    return str(parent.get("namespace") or namespace), str(parent.get("name"))


def _redirects(rule: Object) -> bool:
    return any(f.get("type") == "RequestRedirect" for f in rule.get("filters") or [])


def _matches(kind: str, rule: Object) -> Iterator[tuple[str, str]]:
    for match in rule.get("matches") or [{}]:
        if kind == "HTTPRoute":
            path = match.get("path") or {}
            yield path.get("type", "PathPrefix"), path.get("value", "/")
            continue
        called = match.get("method") or {}
        service, method = called.get("service"), called.get("method")
        if called.get("type", "Exact") != "Exact" or (method and not service):
            yield "RegularExpression", ""
        else:
            yield ("Exact", f"/{service}/{method}") if method else ("PathPrefix", f"/{service or ''}")


def _opened(match: tuple[str, str], path: str) -> bool:
    kind, value = match
    if kind == "Exact":
        return path == value
    return kind != "PathPrefix" or path == value or path.startswith(f"{value.rstrip('/')}/")


def _paths(kind: str, model: str) -> list[str]:
    """Of what clients may ask, as paths of HTTP, which those of gRPC are too."""
    return (
        [path for _, path in http_endpoints(model)]
        if kind == "http"
        else [f"/{service}/{method}" for service, method in GRPC_METHODS]
    )
