"""Who owns a host name: a ModelDeployment's routes carry a name only while it holds a claim of it.
``controller.lookups.host_names`` keeps the claims as Leases.

Over HTTP the path names the model, so a claim there is one of host name and served name, and
several ModelDeployments may share the host name: those of one namespace, and others where policies
allow it. The first claim has the paths that name no model. Over gRPC only the message names the
model, so a host name of gRPC is shared with none.

The first claim wins, and not the older object, because a spec can add any name at any time. A name
that a route of the operator has served since before there were claims is claimed whatever overlaps
it. Routes never carry a name that they may not share with those who hold it.

Where policies demand metrics a name outlives its holder: for some weeks it stays reserved for the
version that served last under it. Otherwise a wrong model could reach clients as the first version
of another ModelDeployment, which has nothing to be compared with. The ModelDeployment's own name is
such a name too.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.hostnames import WILDCARD, allowed, overlap, wildcards_over
from modelrollout.api.v1alpha1 import ModelDeploymentSpec, as_today, seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object
from modelrollout.resources.endpoints import GRPC_METHODS, http_endpoints
from modelrollout.rollout.policy.rules import Rules

MAX_SHARING = 256  # models of one host name: a Lease takes 256 KiB


@dataclass(frozen=True)
class RequestedHost:
    """A host name in a spec; ``kind`` is http or grpc."""

    field: str
    kind: str
    host: str


@dataclass(frozen=True)
class Claim:
    """Who holds a host name: ``holder`` is namespace/name/uid of a ModelDeployment.

    ``over_http``: for the paths of its model only, so that others may share the name. ``reserved``:
    how long the name stays with ``version`` (a hash; empty: none has served) after its release.
    ``released``: when that was. ``since``: when the holder took it over from another.
    """

    host: str
    holder: str
    reserved: str = ""
    version: str = ""
    released: str = ""
    over_http: bool = False
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
        return key_of(self.holder)

    @property
    def model(self) -> str:
        """The name that its model is served under."""
        return self.key[1]


class Claims:
    """All claims, by host name, by holder, and by overlap."""

    def __init__(self, claims: Iterable[Claim] = ()) -> None:
        self._by_host: dict[str, tuple[Claim, ...]] = {}
        self._by_key: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        by_host: defaultdict[str, list[Claim]] = defaultdict(list)
        for claim in claims:
            by_host[claim.host].append(claim)
        for host, listed in by_host.items():
            self.put(host, listed)

    def put(self, host: str, claims: Iterable[Claim]) -> None:
        """The claims of this name from now on, the first one first."""
        for claim in self._by_host.pop(host, ()):
            self._by_key[claim.key].discard(host)
            if not self._by_key[claim.key]:
                del self._by_key[claim.key]
        if listed := tuple(claims):
            self._by_host[host] = listed
            for claim in listed:
                self._by_key[claim.key].add(host)

    def at(self, host: str) -> tuple[Claim, ...]:
        """The claims of exactly this name, the first one first."""
        return self._by_host.get(host, ())

    def first(self, host: str) -> Claim | None:
        """The one that has the paths that name no model."""
        return next((c for c in self.at(host) if not c.released), None)

    def hosts(self) -> list[str]:
        """Every name that is claimed."""
        return list(self._by_host)

    def all(self) -> list[Claim]:
        """Every claim."""
        return [claim for listed in self._by_host.values() for claim in listed]

    def of(self, key: tuple[str, str]) -> list[Claim]:
        """The claims of ModelDeployments, past and present, of that namespace and name."""
        return [c for host in sorted(self._by_key.get(key, ())) for c in self.at(host) if c.key == key]

    def against(self, host: str, holder: str) -> Claim | None:
        """Another holder's claim of another name that overlaps this one. Only for a wildcard the
        cost grows with the number of claims.
        """
        over = (c for w in wildcards_over(host) for c in self.at(w))
        below = (c for c in self.all() if overlap(host, c.host)) if host.startswith(WILDCARD) else iter(())
        return next(
            (c for claims in (over, below) for c in claims if c.host != host and c.holder != holder), None
        )


def obstacles(claim: Claim, others: Iterable[Claim], rules: Rules) -> list[Claim]:
    """Those of ``others``, claims of the same name, first one first, that keep its holder from it:
    those of the same served name, those that are not over HTTP, and where ``rules`` of the holder
    do not allow it those of other namespaces. A namespace that has the name already needs no rule:
    the others came as its guests.
    """
    namespace, model = claim.key
    others = list(others)
    host = next((c.key[0] for c in others if not c.released and c.holder != claim.holder), None)
    across = host == namespace or (
        bool(rules.shared_hostnames)
        and all(allowed(patterns, namespace, claim.host) for _, patterns in rules.shared_hostnames)
    )
    return [
        c
        for c in others
        if c.holder != claim.holder
        and not (claim.over_http and c.over_http and c.model != model and (across or c.key[0] == namespace))
    ]


@dataclass(frozen=True)
class ForeignRoute:
    """A route that belongs to no ModelDeployment. ``opens``: types and values of its matches, as
    paths of HTTP.
    """

    title: str  # for messages
    namespace: str
    gateways: frozenset[tuple[str, str]]
    hosts: tuple[str, ...]
    opens: tuple[tuple[str, str], ...]

    def takes(self, host: str, gateway: tuple[str, str], paths: Iterable[str]) -> bool:
        """Whether requests for ``host`` may go there. By the Gateway API an exact name wins over a
        wildcard; Traefik ranks a route by the longest of its names, so a wildcard may win there.
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
            self._add(route)

    def _add(self, route: ForeignRoute) -> None:
        for host in route.hosts:
            self._by_host[host].append(route)

    def replace(self, title: str, route: ForeignRoute | None) -> bool:
        """Know the route of this title as ``route``, None: as gone. True when that changes it."""
        former = {r for routes in self._by_host.values() for r in routes if r.title == title}
        if former == ({route} if route else set()):
            return False
        for routes in self._by_host.values():
            routes[:] = [r for r in routes if r.title != title]
        if route is not None:
            self._add(route)
        return True

    def taker(
        self, host: str, gateway: tuple[str, str], paths: Iterable[str], own: frozenset[str] = frozenset()
    ) -> ForeignRoute | None:
        """A route that takes requests for ``host`` with one of these paths. ``own``: titles of
        routes that are not foreign any more.
        """
        listed = list(paths)
        routes = (r for name in (host, *wildcards_over(host)) for r in self._by_host.get(name, ()))
        return next((r for r in routes if r.title not in own and r.takes(host, gateway, listed)), None)


NO_FOREIGN = ForeignRoutes()


@dataclass(frozen=True)
class Known:
    """Everything known outside of the ModelDeployment itself. ``served``: for a host name
    namespace/name of every ModelDeployment whose routes carry one that overlaps it, with that name
    and perhaps others; read only where a name is not held.
    """

    claims: Claims
    foreign: ForeignRoutes
    served: Callable[[str], Iterable[tuple[str, str]]]
    only_by_policy: bool  # a name may be claimed only if a RolloutPolicy allows it


@dataclass(frozen=True)
class Standing:
    """The state of the host names of a ModelDeployment's spec and routes."""

    live: frozenset[str] = frozenset()  # names that its routes carry
    # those of ``live`` that others hold, who do not share them with it
    lost: frozenset[str] = frozenset()
    # those of which another ModelDeployment has the paths that name no model
    guest_at: frozenset[str] = frozenset()
    over_http: frozenset[str] = frozenset()  # requested for HTTP
    free: tuple[str, ...] = ()  # to claim
    stale: tuple[str, ...] = ()  # held, but no longer needed
    # reserved for this very version, so that it may take over those that are released
    former: tuple[Claim, ...] = ()
    # held, but their Leases do not yet say for which version they stay reserved
    rewrite: tuple[Claim, ...] = ()
    in_the_way: tuple[Claim, ...] = ()
    taker: str | None = None  # the foreign route of ``problem`` or ``taken``
    problem: Problem | None = None
    # when it took over the latest of the reserved names that its clients use
    since: datetime | None = None
    # A foreign route takes requests for a name that it holds. Only reported: people who may write a
    # route must not be able to stop rollouts.
    taken: Problem | None = None

    @property
    def settled(self) -> bool:
        """Whether it holds every name of its spec."""
        return self.problem is None and not self.free


NO_NAMES = Standing()


def holder_of(deployment: Object) -> str:
    """namespace/name/uid."""
    metadata = deployment["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}/{metadata['uid']}"


def key_of(holder: str) -> tuple[str, str]:
    """Namespace and name of namespace/name/uid."""
    namespace, name, _ = holder.split("/")
    return namespace, name


def version_of(user_input: Mapping[str, Any], sha256: str, artifact: str = "") -> str:
    """Names a version, the same in every ModelDeployment. ``artifact``: its digest, part of the
    name where the input does not determine it.
    """
    model_input = dict(user_input)
    # an input of a newer operator is taken as it is
    with contextlib.suppress(ValidationError, KeyError):
        model_input = as_today(model_input)  # an older one did not write every field that there is now
    return names.short_hash([model_input, sha256, *([artifact] if _reads_data(user_input) else [])], 16)


def _reads_data(user_input: Mapping[str, Any]) -> bool:
    """Whether steps read data. No digest pins data: if it changes, the same input makes another
    model.
    """
    return any("uri" in mapping for mapping in _maps((user_input.get("optimization") or {}).get("steps")))


def _maps(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for v in inner:
        yield from _maps(v)


def _known_before_it_is_made(spec: ModelDeploymentSpec) -> str | None:
    """The version of the spec, where spec determines it."""
    user_input = spec.user_input()
    if spec.model.sha256 is None or _reads_data(user_input):
        return None
    return version_of(user_input, spec.model.sha256)


def requested_hosts(spec: ModelDeploymentSpec) -> list[RequestedHost]:
    """Every host name of the spec with its field, also those of a preview."""
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
    return {host for hosts in listed if isinstance(hosts, list) for host in hosts if isinstance(host, str)}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def standing(
    holder: str,
    spec: ModelDeploymentSpec | None,
    live: frozenset[str],
    known: Known,
    rules: Rules,
    serves: str | None = None,
    running: str | None = None,
    routes: frozenset[str] = frozenset(),
) -> Standing:
    """The state of the host names of ``holder`` (namespace/name/uid).

    ``live``: names that its own routes carry; ``routes``: titles of those routes. ``serves``: the
    version (``version_of``) that is stable, if any. ``running``: the version of the present
    rollout, which may be about to serve, whatever spec says by now.

    An unreadable spec claims nothing, and releases nothing.
    """
    namespace, model, _ = holder.split("/")
    lost = frozenset(h for h in live if _is_lost(h, holder, known.claims.at(h), rules))
    gateways = spec.traffic.gateways if spec else []
    requested = requested_hosts(spec) if spec and gateways else []
    guest_at = frozenset(
        h
        for h in {*live, *(n.host for n in requested)}
        if (first := known.claims.first(h)) and first.holder != holder
    )
    if spec is None:
        return Standing(live, lost, guest_at)
    over_http = frozenset(n.host for n in requested if n.kind == "http")
    own = names.own_name(namespace, model)
    if rules.reserve_names or known.claims.at(own):
        requested = [RequestedHost("metadata.name", "", own), *requested]
    at = [(g.namespace or namespace, g.name) for g in gateways]
    wants = _known_before_it_is_made(spec)
    comes = {serves} if serves else {wants, running or wants}
    free: list[str] = []
    former: list[Claim] = []
    rewrite: list[Claim] = []
    in_the_way: list[Claim] = []
    problems: list[Problem] = []
    taken: Problem | None = None
    taken_by: str | None = None
    since: datetime | None = None
    for name in requested:
        here = known.claims.at(name.host)
        claim = next((c for c in here if c.holder == holder), None)
        wanted = Claim(name.host, holder, over_http=name.kind == "http")
        # those in force first: what is only reserved may be taken over
        others = sorted(obstacles(wanted, here, rules), key=lambda c: bool(c.released))
        # since before there were claims, or its Lease was deleted
        served = name.host in live and name.host not in lost and not others
        if problem := next(
            (
                p
                for c in ([claim] if claim else others)
                if (p := _reservation_problem(name, c, rules, mine=c is claim, serves=serves, comes=comes))
            ),
            None,
        ):
            problems.append(problem)
            in_the_way += [] if claim else others
            continue
        if claim is None and not served:
            if name.kind and (problem := _policy_problem(name, namespace, known, rules)):
                problems.append(problem)
                continue
            if others and others[0].released:
                former.append(others.pop(0))
            other = next(iter(others), None) or known.claims.against(name.host, holder)
            if problem := _conflict_problem(name, holder, other, known) or _crowd_problem(name, here):
                problems.append(problem)
                in_the_way += [other] if other else []
                continue
        elif claim is not None and not wanted.over_http and len(here) > 1:
            problems.append(_held(name, next(c for c in here if c is not claim), holder))
            in_the_way += [c for c in here if c is not claim]
            continue
        paths = _paths(name.kind, model, first=name.host not in guest_at)
        takers = (known.foreign.taker(name.host, gateway, paths, routes) for gateway in at)
        if name.kind and (taker := next(filter(None, takers), None)):
            taken_by = taker.title
            where = (
                taker.title
                if taker.namespace == namespace
                else "a route of another namespace, which the operator's log names,"
            )
            problem = Problem(
                Reason.HOSTNAME_TAKEN,
                f"{name.field}: {where} takes requests for {name.host}; choose another name, or have it"
                " changed",
            )
            if claim is None and not served:
                problems.append(problem)
                continue
            taken = taken or problem
        if claim is None:
            free.append(name.host)
            continue
        reserved = claim.reserved if _is_preview(name) else rules.reserve_names or claim.reserved
        renewed = replace(wanted, reserved=reserved, version=(serves or claim.version) if reserved else "")
        rewrite += [renewed] if renewed != claim else []
        if name.kind and claim.since and renewed.reserved and not _is_preview(name):
            since = max(since or claim.since, claim.since)
    needed = {n.host for n in requested} | live | {own}
    stale = tuple(
        c.host
        for c in known.claims.of((namespace, model))
        if c.holder == holder and c.host not in needed and not c.released
    )
    firsts = tuple(dict.fromkeys(free))
    return Standing(
        live,
        lost,
        guest_at,
        over_http,
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


def _is_lost(host: str, holder: str, here: Collection[Claim], rules: Rules) -> bool:
    """Whether a name that its routes carry belongs to others. Without a claim of its own it may
    stay beside those that would share the name over HTTP.
    """
    claimed = any(c.holder == holder for c in here)
    return not claimed and bool(obstacles(Claim(host, holder, over_http=True), here, rules))


def _is_preview(name: RequestedHost) -> bool:
    return name.field.startswith("spec.rollout.")


def _reservation_problem(
    name: RequestedHost,
    claim: Claim,
    rules: Rules,
    *,
    mine: bool,
    serves: str | None,
    comes: Collection[str | None],
) -> Problem | None:
    """Why this version may not serve the clients of a name: another version served them last, and
    nothing compares the two.
    """
    if mine and _is_preview(name) and claim.reserved and rules.reserve_names:
        text = (
            f"{name.field}: {name.host} has served all clients, who would be given what is on trial; choose"
            " another name for the preview"
        )
        return Problem(Reason.HOSTNAME_NOT_ALLOWED, text)
    of_another = not mine and bool(claim.released)
    unproven = mine and serves is None and bool(claim.version)
    if not (of_another or unproven) or (claim.version and comes == {claim.version}):
        return None
    until = f" until {claim.until.astimezone(UTC).strftime('%Y-%m-%d %H:%M UTC')}" if claim.until else ""
    remedy = "serve that version, with its spec.model.sha256, and then roll this one out"
    lease = f"or choose another name, or have the platform team delete Lease {names.host_lease(name.host)}"
    return Problem(
        Reason.NAME_RESERVED,
        f"{name.field}: {name.host} stays with the version that served last under it{until}: {remedy};"
        f" {lease}",
    )


def _policy_problem(name: RequestedHost, namespace: str, known: Known, rules: Rules) -> Problem | None:
    """Why policies do not allow a new claim: every policy with host names has to."""
    for policy, patterns in rules.hostnames:
        if not allowed(patterns, namespace, name.host):
            return Problem(
                Reason.HOSTNAME_NOT_ALLOWED,
                f"{name.field}: {name.host}: RolloutPolicy {policy} allows only {', '.join(patterns)}; choose"
                " a name among them",
            )
    if rules.hostnames:
        return None
    remedy = "have the platform team allow it by allowedHostnames of a RolloutPolicy"
    if known.only_by_policy:
        return Problem(
            Reason.HOSTNAME_NOT_ALLOWED,
            f"{name.field}: {name.host}: no RolloutPolicy allows this namespace host names; {remedy}",
        )
    if name.host.startswith(WILDCARD):
        return Problem(
            Reason.HOSTNAME_NOT_ALLOWED,
            f"{name.field}: {name.host}: a wildcard needs a RolloutPolicy; {remedy}, or list the names one"
            " by one",
        )
    return None


def _conflict_problem(name: RequestedHost, holder: str, claim: Claim | None, known: Known) -> Problem | None:
    """Another holder's claim, or a route of one that has yet to claim what it serves."""
    if claim is None:
        me = holder.rpartition("/")[0]
        claim = next(
            (
                Claim(host, f"{model}/")
                for model, host in known.served(name.host)
                if model != me
                and overlap(host, name.host)
                and not any("/".join(c.key) == model for c in known.claims.at(host))
            ),
            None,
        )
    return _held(name, claim, holder) if claim else None


def _held(name: RequestedHost, claim: Claim, holder: str) -> Problem:
    """A name that another ModelDeployment has, and what to do about it."""
    namespace, model, _ = holder.split("/")
    theirs, served = claim.key
    who = (
        f"ModelDeployment {theirs}/{served}"
        if theirs == namespace
        else f"a ModelDeployment of another namespace (Lease {names.host_lease(claim.host)})"
    )
    other = claim.host if theirs == namespace else "a name"
    why = f"belongs to {who}" if claim.host == name.host else f"overlaps {other}, which belongs to {who}"
    remedy = "choose another name, or have its holder release it first"
    if claim.host == name.host and claim.over_http:
        if name.kind != "http":
            why += "; over gRPC only the message names the model, so such a name is shared with none"
        elif served == model:
            why += f", whose model is called {model}, too"
        else:
            remedy += (
                ", or have the platform team let namespaces share it by sharedHostnames of a RolloutPolicy"
            )
    return Problem(Reason.HOSTNAME_TAKEN, f"{name.field}: {name.host} {why}; {remedy}")


def _crowd_problem(name: RequestedHost, here: Collection[Claim]) -> Problem | None:
    """Bounds the size of a Lease."""
    if len(here) < MAX_SHARING:
        return None
    text = f"{name.field}: {name.host}: {len(here)} models share it, and no more may; choose another name"
    return Problem(Reason.HOSTNAME_TAKEN, text)


def route_name(route: Object) -> str:
    """The title of a route in messages."""
    metadata = route["metadata"]
    return f"{route['kind']} {metadata.get('namespace') or ''}/{metadata['name']}"


def _opened(match: tuple[str, str], path: str) -> bool:
    kind, value = match
    if kind == "Exact":
        return path == value
    return kind != "PathPrefix" or path == value or path.startswith(f"{value.rstrip('/')}/")


def _paths(kind: str, model: str, *, first: bool) -> list[str]:
    """The paths that clients may call; methods of gRPC are paths of HTTP too. ``first``: also those
    that name no model.
    """
    return (
        [path for _, path in http_endpoints(model, server=first)]
        if kind == "http"
        else [f"/{service}/{method}" for service, method in GRPC_METHODS]
    )
