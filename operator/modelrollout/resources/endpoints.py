"""The requests that clients may send to a model, as matches of Gateway API routes: exact paths with
their method, exact methods of gRPC, and nothing else.

Triton's other endpoints manage the server (docs of Triton, "Secure Deployment Considerations"), and
a prefix would open whatever a later version puts under it. Paths with a version's number are
closed: stable and canary have different ones, so a client that names one fails on the other.
``docs/reference/endpoints.md`` has the whole table, and a test compares it with the server's own
list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelrollout.resources.common import Object

STREAM = "/generate_stream"
# (method, path below /v2/models/NAME); generate is the extension for language models
# (docs/protocol/extension_generate.md).
_OF_MODEL = (
    ("POST", "/infer"),
    ("POST", "/generate"),
    ("POST", STREAM),
    ("GET", ""),
    ("GET", "/ready"),
    ("GET", "/config"),
    ("GET", "/stats"),
)
_OF_SERVER = (("GET", "/v2"), ("GET", "/v2/health/live"), ("GET", "/v2/health/ready"))
_INFERENCE, _HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
GRPC_METHODS = (
    (_INFERENCE, "ModelInfer"),
    (_INFERENCE, "ModelStreamInfer"),
    (_INFERENCE, "ServerLive"),
    (_INFERENCE, "ServerReady"),
    (_INFERENCE, "ServerMetadata"),
    (_INFERENCE, "ModelReady"),
    (_INFERENCE, "ModelMetadata"),
    (_INFERENCE, "ModelConfig"),
    (_INFERENCE, "ModelStatistics"),
    (_HEALTH, "Check"),
)

Headers = Iterable[Mapping[str, str]]  # of Gateway API: type, name, value


def http_endpoints(
    model: str, *, server: bool = True, streamed: bool | None = None
) -> tuple[tuple[str, str], ...]:
    """(method, path) of everything that clients may ask over HTTP. ``server``: also those that name
    no model, which only one of the models of a host name has. ``streamed``: only those that answer
    by a stream, or only the others.
    """
    of_model = tuple(
        (method, f"/v2/models/{model}{path}")
        for method, path in _OF_MODEL
        if streamed in (None, path == STREAM)
    )
    return of_model + (_OF_SERVER if server and not streamed else ())


def matches(
    kind: str,
    model: str,
    headers: Headers = (),
    *,
    server: bool = True,
    streamed: bool | None = None,
    cors: bool = False,
) -> list[Object]:
    """Matches of a rule of an HTTPRoute or GRPCRoute, each with all of ``headers``; ``server`` and
    ``streamed`` as of ``http_endpoints``. ``cors``: browsers ask by OPTIONS, too, which has none of
    the headers that a page sends. Gateway API allows 64 in a rule.
    """
    with_headers: Object = {"headers": copies} if (copies := [dict(h) for h in headers]) else {}
    if kind == "HTTPRoute":
        asked = list(http_endpoints(model, server=server, streamed=streamed))
        asked += [("OPTIONS", path) for _, path in asked] if cors else []
        return [
            {"path": {"type": "Exact", "value": path}, "method": method} | with_headers
            for method, path in asked
        ]
    return [
        {"method": {"type": "Exact", "service": service, "method": method}} | with_headers
        for service, method in GRPC_METHODS
    ]


def narrowed(route: Object, model: str) -> Object:
    """A route with the same backends, filters and headers, and no more than what clients may ask. A
    rule that opens a part of it stays as it is.
    """
    kind = route["kind"]

    def rule(live: Object) -> Object:
        present = live.get("matches") or []
        headers = next((m["headers"] for m in present if m.get("headers")), ())
        cors = any(f.get("type") == "CORS" for f in live.get("filters") or [])
        allowed = matches(kind, model, headers, cors=cors)
        within = [conditions(kind, m) for m in allowed]
        if present and all(any(few <= conditions(kind, m) for few in within) for m in present):
            return live
        return live | {"matches": allowed}

    spec = route.get("spec") or {}
    return route | {"spec": spec | {"rules": [rule(r) for r in spec.get("rules") or []]}}


def conditions(kind: str, match: Object) -> frozenset[tuple[str, str, str, str]]:
    """What a match asks of a request, as (field, type, name, value), with the API's defaults. A
    match with all conditions of another lets through no more than that.
    """
    asked = {
        (field, c.get("type", "Exact"), c["name"], c["value"])
        for field in ("headers", "queryParams")
        for c in match.get(field) or []
    }
    if kind == "HTTPRoute":
        path = match.get("path") or {}
        asked.add(("path", path.get("type", "PathPrefix"), "", path.get("value", "/")))
        if method := match.get("method"):
            asked.add(("method", "Exact", "", method))
    elif call := match.get("method"):
        asked.add(("call", call.get("type", "Exact"), call.get("service") or "", call.get("method") or ""))
    return frozenset(asked)
