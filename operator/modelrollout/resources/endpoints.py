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

# (method, path below /v2/models/NAME); generate is the extension for language models
# (docs/protocol/extension_generate.md).
_OF_MODEL = (
    ("POST", "/infer"),
    ("POST", "/generate"),
    ("POST", "/generate_stream"),
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


def http_endpoints(model: str) -> tuple[tuple[str, str], ...]:
    """(method, path) of everything that clients may ask over HTTP."""
    return tuple((method, f"/v2/models/{model}{path}") for method, path in _OF_MODEL) + _OF_SERVER


def matches(kind: str, model: str, headers: Headers = ()) -> list[Object]:
    """Matches of a rule of an HTTPRoute or GRPCRoute, each with all of ``headers``. Gateway API
    allows 64 in a rule.
    """
    with_headers: Object = {"headers": copies} if (copies := [dict(h) for h in headers]) else {}
    if kind == "HTTPRoute":
        return [
            {"path": {"type": "Exact", "value": path}, "method": method} | with_headers
            for method, path in http_endpoints(model)
        ]
    return [
        {"method": {"type": "Exact", "service": service, "method": method}} | with_headers
        for service, method in GRPC_METHODS
    ]


def narrowed(route: Object, model: str) -> Object:
    """A route with the same backends, filters and headers, and no more than what clients may
    ask.
    """

    def rule(live: Object) -> Object:
        headers = next((m["headers"] for m in live.get("matches") or [] if m.get("headers")), ())
        return live | {"matches": matches(route["kind"], model, headers)}

    spec = route.get("spec") or {}
    return route | {"spec": spec | {"rules": [rule(r) for r in spec.get("rules") or []]}}
