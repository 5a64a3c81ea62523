"""What a spec asks of its routes beyond backends: timeouts and filters.

Timeouts are written only where the class of the Gateway lists the feature: no condition of a route
shows whether its gateway carries one, and one that does not is silent. A filter that a gateway
lacks makes it refuse the route, so none is written that the class is known to lack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from modelrollout.api.v1alpha1 import Filters, Traffic
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object
from modelrollout.resources.endpoints import STREAM
from modelrollout.traffic.gateway_api.features import (
    BACKEND_TIMEOUT,
    CORS,
    REQUEST_TIMEOUT,
    RESPONSE_HEADERS,
    feature_missing,
    missing_features,
)
from modelrollout.traffic.gateway_facts import GatewayFacts

_UNLIMITED = "0s"
# Types of filters that a spec may have. Others rewrite, redirect or mirror.
FILTERS = frozenset({"CORS", "RequestHeaderModifier", "ResponseHeaderModifier", "ExtensionRef"})
# Of a GRPCRoute too. Whether a gateway changes headers of answers there, no feature says, and
# Traefik does not.
_OF_GRPC = frozenset({"RequestHeaderModifier", "ExtensionRef"})


@dataclass(frozen=True)
class Extras:
    """``streamed``: timeouts of the paths that answer by a stream, in rules of their own; empty: in
    one rule with the others. ``filters``: of every rule.
    """

    timeouts: Mapping[str, str] = field(default_factory=dict)
    streamed: Mapping[str, str] = field(default_factory=dict)
    filters: tuple[Object, ...] = ()

    @property
    def opens_options(self) -> bool:
        """Whether browsers ask first which pages may call."""
        return any(f["type"] == "CORS" for f in self.filters)

    def parts(self, kind: str) -> Iterator[tuple[bool | None, Object]]:
        """The rules that one rule becomes: which paths (``streamed`` of
        ``endpoints.http_endpoints``), and further fields.
        """
        if kind != "HTTPRoute":
            yield None, self._fields({}, [f for f in self.filters if f["type"] in _OF_GRPC])
        elif not self.streamed:
            yield None, self._fields(self.timeouts, self.filters)
        else:
            yield False, self._fields(self.timeouts, self.filters)
            yield True, self._fields(self.streamed, self.filters)

    @staticmethod
    def _fields(timeouts: Mapping[str, str], filters: Iterable[Object]) -> Object:
        fields = {"timeouts": dict(timeouts), "filters": list(filters)}
        return {name: value for name, value in fields.items() if value}


NO_EXTRAS = Extras()


def extras_of(traffic: Traffic, facts: GatewayFacts | None) -> Extras:
    """What the spec asks for and the gateway is known to carry. Streams end when they end, unless
    spec says otherwise: some gateways cut all answers at some seconds of their own.
    """
    features = (facts and facts.features) or frozenset()
    asked = traffic.timeouts.wire() if traffic.timeouts else {}
    by_feature = {"request": REQUEST_TIMEOUT, "backendRequest": BACKEND_TIMEOUT}
    return Extras(
        {name: asked[name] for name, feature in by_feature.items() if name in asked and feature in features},
        {"request": asked.get("stream", _UNLIMITED)} if REQUEST_TIMEOUT in features else {},
        tuple(_rendered(traffic.filters)) if traffic.filters else (),
    )


def _rendered(filters: Filters) -> Iterator[Object]:
    if filters.cors is not None:
        yield {"type": "CORS", "cors": filters.cors.wire() | {"allowMethods": ["GET", "POST"]}}
    for type_, name, modifier in (
        ("RequestHeaderModifier", "requestHeaderModifier", filters.request_header_modifier),
        ("ResponseHeaderModifier", "responseHeaderModifier", filters.response_header_modifier),
    ):
        if modifier is not None and (body := modifier.wire()):
            yield {"type": type_, name: body}
    for ref in filters.extension_refs or ():
        yield {"type": "ExtensionRef", "extensionRef": ref.wire()}


def extras_in(route: Object) -> Extras:
    """What a route carries, a mirror aside. All of its rules have the same filters."""
    timeouts: dict[str, str] = {}
    streamed: dict[str, str] = {}
    rules = (route.get("spec") or {}).get("rules") or []
    for rule in rules:
        into = streamed if _is_streamed(rule) else timeouts
        into.update(rule.get("timeouts") or {})
    filters = (f for rule in rules[:1] for f in rule.get("filters") or [] if f.get("type") in FILTERS)
    return Extras(timeouts, streamed, tuple(filters))


def _is_streamed(rule: Object) -> bool:
    paths = [str((m.get("path") or {}).get("value")) for m in rule.get("matches") or []]
    return bool(paths) and all(path.endswith(STREAM) for path in paths)


def extras_problem(traffic: Traffic, facts: GatewayFacts | None) -> Problem | None:
    """Why the gateway would not carry what the spec asks for."""
    return _timeout_problem(traffic, facts) or _filter_problem(traffic, facts)


def _needed(part: str, *fields: tuple[str, str, object]) -> dict[str, str]:
    """Features that a part of spec.traffic needs, with the field that needs each; ``fields``: name,
    feature, value.
    """
    return {feature: f"spec.traffic.{part}.{name}" for name, feature, value in fields if value is not None}


def _timeout_problem(traffic: Traffic, facts: GatewayFacts | None) -> Problem | None:
    asked = traffic.timeouts
    if asked is None:
        return None
    needed = _needed(
        "timeouts",
        ("stream", REQUEST_TIMEOUT, asked.stream),
        ("request", REQUEST_TIMEOUT, asked.request),
        ("backendRequest", BACKEND_TIMEOUT, asked.backend_request),
    )
    if not needed:
        return None
    if facts is None or facts.controller is None:
        text = (
            f"{next(iter(needed.values()))}: whether the gateway supports it is unknown, because the operator"
            " cannot read the Gateway or its GatewayClass; ask the platform team"
        )
        return Problem(Reason.TIMEOUTS_UNSUPPORTED, text)
    missing = tuple(needed) if facts.features is None else missing_features(needed, facts.features)
    if not missing:
        return None
    fields = " and ".join(needed[name] for name in missing)
    remedy = "leave it out, and set it in the gateway's own configuration"
    return Problem(Reason.TIMEOUTS_UNSUPPORTED, feature_missing(fields, facts, missing, remedy).message)


def _filter_problem(traffic: Traffic, facts: GatewayFacts | None) -> Problem | None:
    filters = traffic.filters
    if filters is None:
        return None
    needed = _needed(
        "filters",
        ("responseHeaderModifier", RESPONSE_HEADERS, filters.response_header_modifier),
        ("cors", CORS, filters.cors),
    )
    missing = missing_features(needed, facts.features) if facts is not None else ()
    if not missing or facts is None:
        return None
    fields = " and ".join(needed[name] for name in missing)
    text = feature_missing(fields, facts, missing, "take another gateway, or leave it out").message
    return Problem(Reason.FILTER_UNSUPPORTED, text)
