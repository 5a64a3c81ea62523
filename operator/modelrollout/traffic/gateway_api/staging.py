"""Writes in stages, for a gateway that has a cluster for each backend of each rule (positions).

Envoy applies a new route at once, but a new cluster only when it knows its endpoints, and drops a
cluster before the route that no longer names it. Requests in between are answered with 500. So a
backend that is to get requests first gets a share that keeps its cluster and is worth no request,
and one that has requests keeps such a share when it loses them. A rule appears and leaves with a
header that no client sends. A cluster that gets another Service is a new one under an old name: it
leaves before it comes back. Each stage waits until the gateway has accepted the one before.

A rule whose backends have no filter has one cluster for all of them, of another name. Such a rule,
which a person wrote or an operator that did not know the gateway, takes a detour: its requests go
to a copy further down that has clusters by position, while the rule itself changes.

A mirror's cluster needs no stage: Envoy skips a mirror whose cluster is not there
(router/shadow_writer_impl.cc), and Envoy Gateway leaves one out whose Service has no endpoints. It
answers 500 only while the Service is missing (internal/gatewayapi/filters.go), so that comes before
the route that mirrors and goes after it (``mirror``, ``controller.apply.prune``).

What is live says which stage comes next, so nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, zip_longest
from typing import Any

from modelrollout.resources.common import Object, Owner
from modelrollout.rollout.snapshot import Server, Split, Traffic
from modelrollout.traffic.base import LiveObjects, SplitWriter
from modelrollout.traffic.gateway_api.answers import carried
from modelrollout.traffic.gateway_api.extras import FILTERS
from modelrollout.traffic.gateway_api.routes import NO_CHANGE, ROUTE_KINDS
from modelrollout.traffic.gateway_facts import GatewayFacts

# of a route, and of a rule, as the Gateway API allows
MAX_RULES, MAX_MATCHES, MAX_BACKENDS = 16, 128, 16
WHOLE = 1_000_000  # weights of a rule in a stage, and the most that the Gateway API allows for one
_KEPT = 1  # of WHOLE: the share that keeps a cluster
# A match that no request fits: its value is long, and named nowhere else.
_NO_REQUEST: Object = {
    "type": "Exact",
    "name": "x-modelrollout-counted-apart",
    "value": "a rule that is not in use",
}


class StagedRoutes:
    """Routes on their way from what is live to what ``inner`` wants."""

    def __init__(self, inner: SplitWriter, live: LiveObjects, gateway: GatewayFacts | None) -> None:
        self._inner, self._live, self._gateway = inner, live, gateway

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The next stage of each."""
        return [self._next(o) for o in self._inner.children(owner, split)]

    def _next(self, desired: Object) -> Object:
        live = self._live.get((desired["kind"], desired["metadata"]["name"]))
        if desired["kind"] not in ROUTE_KINDS or live is None:
            return desired
        answer = carried(live, self._gateway)
        return next_stage(desired, live, accepted=answer.programmed, refused=answer.problem is not None)

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """As ``inner`` says: once the last stage is carried."""
        return self._inner.programmed(split, live, servers)


def next_stage(desired: Object, live: Object, *, accepted: bool, refused: bool = False) -> Object:
    """The route to write now; ``desired`` itself where no request can be lost by it. ``accepted``:
    the gateway carries what is live; ``refused``: it says that it does not.
    """
    wanted, present = desired["spec"]["rules"], (live.get("spec") or {}).get("rules") or []
    if not all(map(_is_apart, present)):
        detour = None if refused else _detour(wanted, present, accepted)
        return desired if detour is None else desired | {"spec": desired["spec"] | {"rules": detour}}
    rules = [
        _of_other_clients(rule, present, i) or _stage(rule, _at(present, i), accepted, accepted or refused)
        for i, rule in enumerate(wanted)
    ]
    if any(map(_is_hidden, rules)):
        # requests of a rule that is not in use yet stay where they are
        rules = [_as_before(rule, _at(present, i)) for i, rule in enumerate(rules)]
    leaving = present[len(wanted) :]
    if rules != wanted:  # requests that fit a rule that leaves are not moved twice
        rules += map(_only, leaving)
    else:
        while accepted and leaving and _is_hidden(leaving[-1]):  # one before it would shift it
            leaving.pop()
        rules += map(_hidden, leaving)
    return desired | {"spec": desired["spec"] | {"rules": rules}}


def _is_apart(rule: Object) -> bool:
    """Whether each of its backends has a cluster of its own, or none has any."""
    refs = [ref for ref in rule.get("backendRefs") or [] if ref.get("weight", 1) > 0]
    return not refs or any(ref.get("filters") for ref in refs)


def _detour(wanted: list[Object], present: list[Object], accepted: bool) -> list[Object] | None:
    """The next stage where rules that are not apart have to become so; None where there is none.

    First copies that are not in use come after all rules, then requests go to the copies, then the
    rules themselves become what is wanted, not in use yet. What follows is ``next_stage``.
    """
    stay = [_only(rule) for rule in present]
    in_use = [rule for rule in stay if not _is_hidden(rule)]
    if not in_use or not all(map(_is_ours, stay)):
        return None
    if all(map(_is_apart, in_use)):  # the copies
        ends = [*wanted, *(_copy(rule, wanted) for rule in stay[len(wanted) :])]
        last = [
            _unused(end, rule, settled=True) if _is_hidden(rule) else rule
            for rule, end in zip(stay, ends, strict=False)
        ]
        return last if accepted else stay
    copies = [_copy(rule, wanted) for rule in in_use]
    kept = stay[: -len(in_use)]
    if len(kept) >= len(wanted) and stay == [*kept, *map(_hidden, copies)]:
        return (
            [*(rule if _is_hidden(rule) else _hidden(rule) for rule in kept), *copies] if accepted else stay
        )
    first = [*stay, *map(_hidden, wanted[len(stay) :]), *map(_hidden, copies)]
    fits = len(first) <= MAX_RULES and sum(len(rule["matches"]) for rule in first) <= MAX_MATCHES
    return first if fits else None


def _is_ours(rule: Object) -> bool:
    """Whether the operator may write its backends: Services of the route's own namespace."""
    return all(
        _is_service(ref) and ref.get("filters") in (None, [], [NO_CHANGE]) for ref in rule["backendRefs"]
    )


def _is_service(ref: Object) -> bool:
    return not ref.get("group") and ref.get("kind", "Service") == "Service" and not ref.get("namespace")


def _copy(rule: Object, wanted: list[Object]) -> Object:
    """The rule with clusters by position, and with the filters of all rules that are wanted."""
    refs = [ref | {"filters": [NO_CHANGE]} for ref in rule["backendRefs"]]
    return _only(rule | {"backendRefs": refs, "filters": wanted[0].get("filters")})


def _at(rules: list[Object], i: int) -> Object | None:
    return rules[i] if i < len(rules) else None


def _of_other_clients(wanted: Object, present: list[Object], i: int) -> Object | None:
    """The next stage of a rule that is to be for a test and was for all clients, or the other way
    round: none of the others goes to the test's revision meanwhile. None: it is for the same ones.
    """
    if not 0 < i < len(present) or _is_hidden(present[i]):
        return None
    tests = _is_of_a_test(present[i]), _is_of_a_test(wanted)
    if tests == (True, False):
        return _hidden(present[i])
    # a copy of the detour, until the rule before it is in use again
    return _only(present[i]) if tests == (False, True) and _is_hidden(present[0]) else None


def _stage(wanted: Object, present: Object | None, accepted: bool, settled: bool) -> Object:
    if present is None:
        return _hidden(wanted)
    if not _is_hidden(present):
        return _shifted(wanted, present, accepted, settled)
    if accepted and _backends(present) == _backends(wanted):
        return wanted
    return _unused(wanted, present, settled=settled)


def _unused(wanted: Object, present: Object, *, settled: bool) -> Object:
    """The next stage of a rule that is not in use. Until it is ``settled`` that no request goes
    there any more, the backends that the rule has keep their clusters.
    """
    if not _is_apart(present):
        return _hidden(wanted)
    old, new = present.get("backendRefs") or [], wanted["backendRefs"]
    taken, refs = _taken(old, new), []
    for m, (o, n) in _pairs(old, new):
        stays = o is not None and (
            n is None or m in taken or (o.get("weight", 1) > 0 and n.get("weight", 1) == 0)
        )
        if stays and not settled:
            refs.append(o)
        elif n is not None:
            refs.append(o | {"weight": 0} if m in taken else n)
    return _hidden(wanted | {"backendRefs": refs})


def _as_before(rule: Object, present: Object | None) -> Object:
    """The rule for the requests that fit it now."""
    in_use = present is not None and not _is_hidden(rule) and not _is_hidden(present)
    return rule | {"matches": present.get("matches") or [{}]} if present and in_use else rule


def _shifted(wanted: Object, present: Object, accepted: bool, settled: bool) -> Object:
    """One rule from its present weights to those that are wanted.

    A position that has a cluster keeps its Service until its weight is 0. If it is to have another
    one, a further position at the end stands in for it meanwhile.
    """
    old, new, weights = present.get("backendRefs") or [], wanted["backendRefs"], _weights(present)
    kept = {m for m, w in enumerate(weights) if w == _KEPT and sum(weights) == WHOLE}
    loaded = {m for m, w in enumerate(weights) if w > 0} - kept
    needed = {m for m, ref in enumerate(new) if ref["weight"] > 0}
    if not loaded or not needed or not all(map(_is_service, old)):
        return wanted
    ready, taken = loaded | (kept if accepted else set()), _taken(old, new)
    if not settled:  # clusters of some may not have gone yet
        taken |= {m for m in needed if m < len(old) and not _is_same(old[m], new[m])}
    refs = [o if n is None or m in taken else n for m, (o, n) in _pairs(old, new)]
    carriers: dict[int, int] = {}  # of each that is needed, where its requests go
    for m in sorted(needed):
        further = (x for x in range(len(new), len(old)) if weights[x] > 0 and _is_same(old[x], new[m]))
        stands_in = next(further, None)
        if m not in taken and (m in ready or stands_in not in ready):
            carriers[m] = m
        elif stands_in is not None:
            carriers[m] = stands_in
        elif m in loaded:
            free = (x for x in count(len(new)) if x not in loaded | kept and x not in carriers.values())
            carriers[m] = next(free)
            refs[carriers[m] : carriers[m] + 1] = [new[m]]
    if len(refs) > MAX_BACKENDS:
        return wanted
    announced = (needed - taken | set(carriers.values())) - ready
    if carriers.keys() == needed and ready.issuperset(carriers.values()):
        shares: dict[int, int] = {}
        for m, x in carriers.items():
            shares[x] = shares.get(x, 0) + new[m]["weight"]
        staying = (loaded if settled else loaded | kept) - shares.keys()
    else:
        shares = {m: weights[m] for m in loaded}
        staying = kept - taken if settled else kept
        shares[max(shares)] += _KEPT * len(kept - staying)  # the sum stays
    made = _with_shares(wanted, refs, shares, announced | staying)["backendRefs"]
    while len(made) > len(new) and made[-1]["weight"] == 0:
        made.pop()
    return wanted | {"backendRefs": made}


def _taken(old: list[Object], new: list[Object]) -> set[int]:
    """Positions that have a cluster of another Service than is wanted there."""
    both = enumerate(zip(old, new, strict=False))
    return {m for m, (o, n) in both if o.get("weight", 1) > 0 and not _is_same(o, n)}


def _is_same(ref: Object, other: Object) -> bool:
    return (ref["name"], ref.get("port")) == (other["name"], other.get("port"))


def _pairs(old: list[Object], new: list[Object]) -> Iterator[tuple[int, tuple[Any, Any]]]:
    return enumerate(zip_longest(old, new))


def _with_shares(rule: Object, refs: list[Object], weights: dict[int, int], kept: set[int]) -> Object:
    """The rule with these backends: ``weights`` of nearly all requests, and of none worth speaking
    of those ``kept``.
    """
    shares = dict(weights)
    if kept:
        rest, total = WHOLE - _KEPT * len(kept), sum(weights.values())
        shares = {m: rest * w // total for m, w in weights.items()}
        largest = max(shares, key=lambda m: shares[m])
        shares[largest] += rest - sum(shares.values())
        shares |= dict.fromkeys(kept, _KEPT)
    return rule | {"backendRefs": [ref | {"weight": shares.get(m, 0)} for m, ref in enumerate(refs)]}


def _weights(rule: Object) -> list[int]:
    return [ref.get("weight", 1) for ref in rule.get("backendRefs") or []]


def _backends(rule: Object) -> list[tuple[str, int]]:
    return [(ref["name"], ref.get("weight", 1)) for ref in rule.get("backendRefs") or []]


def _hidden(rule: Object) -> Object:
    """The rule, which no request fits."""
    matches = [
        m if _NO_REQUEST in m.get("headers", []) else m | {"headers": [*m.get("headers", []), _NO_REQUEST]}
        for m in rule.get("matches") or [{}]
    ]
    return _only(rule | {"matches": matches})


def _only(rule: Object) -> Object:
    """A live rule without what others add to it, a mirror included."""
    filters = [f for f in rule.get("filters") or [] if f.get("type") in FILTERS]
    beside = {"filters": filters, "timeouts": rule.get("timeouts")}
    return {
        "matches": rule.get("matches") or [{}],
        **{k: v for k, v in beside.items() if v},
        "backendRefs": rule.get("backendRefs") or [],
    }


def _is_hidden(rule: Object) -> bool:
    return all(_NO_REQUEST in (m.get("headers") or []) for m in rule.get("matches") or [{}])


def _is_of_a_test(rule: Object) -> bool:
    """Whether only requests with certain headers fit it; the others fit a rule before it."""
    return all(m.get("headers") for m in rule.get("matches") or [{}])


def split_of(rule: Object) -> dict[str, int]:
    """Weights above 0 by Service, those that are parts of WHOLE in percent."""
    weights = _weights(rule)
    staged = sum(weights) == WHOLE
    split: dict[str, int] = {}
    for ref, weight in zip(rule.get("backendRefs") or [], weights, strict=True):
        share = round(100 * weight / WHOLE) if staged else weight
        if share:
            split[ref["name"]] = split.get(ref["name"], 0) + share
    return split
