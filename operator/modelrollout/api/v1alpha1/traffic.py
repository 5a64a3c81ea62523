"""``spec.traffic``: how requests come to the model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from modelrollout.api.v1alpha1.schema import ApiModel, ListMapKey, Name, Rule


class GatewayRef(ApiModel):
    """A Gateway that carries the traffic."""

    name: Name = Field(description="Name of the Gateway.")
    namespace: Name | None = Field(None, description="Namespace of the Gateway; left out: this one.")
    section_name: Name | None = Field(
        None, description="Name of the one listener that carries the routes; left out: all that take them."
    )


class Hostnames(ApiModel):
    """Host names of one protocol."""

    hostnames: Annotated[
        list[
            Annotated[
                str, StringConstraints(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
            ]
        ],
        Field(min_length=1, max_length=16),
    ] = Field(description="Names that clients call, for example digits.models.example.com.")


RouteDuration = Annotated[
    str, StringConstraints(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$", max_length=32)
]  # as the Gateway API writes it


class Timeouts(ApiModel):
    """How long the gateway waits for answers over HTTP, where its GatewayClass lists the feature. A
    GRPCRoute has no such field: the gateway's own timeouts apply there.
    """

    request: RouteDuration | None = Field(
        None,
        description=(
            "From a client's request to the end of the answer; 0s: no limit. Left out: the gateway's own."
        ),
    )
    backend_request: RouteDuration | None = Field(
        None,
        description=(
            "From the gateway's request to a server to the end of its answer; not longer than request. Left"
            " out: the gateway's own."
        ),
    )
    stream: RouteDuration | None = Field(
        None,
        description=(
            "In place of both for generate_stream: the whole stream. Left out: no limit, where the"
            " GatewayClass lists HTTPRouteRequestTimeout."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') ||"
            " duration(self.backendRequest) <= duration(self.request)",
            "backendRequest is part of request: make it no longer",
        ),
    )


HeaderName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$", min_length=1, max_length=256)
]


class Header(ApiModel):
    """A header and its value."""

    name: HeaderName = Field(description="Name of the header.")
    value: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        description="Its value; no secret, for everyone who may read routes can read it."
    )


class HeaderModifier(ApiModel):
    """Headers that the gateway sets, adds and removes, in this order."""

    set_: Annotated[list[Header], Field(max_length=16), ListMapKey("name")] | None = Field(
        None, alias="set", description="Headers that replace those of their names."
    )
    add: Annotated[list[Header], Field(max_length=16), ListMapKey("name")] | None = Field(
        None, description="Headers that come beside those of their names."
    )
    remove: Annotated[list[HeaderName], Field(max_length=16)] | None = Field(
        None, description="Names of headers that go."
    )


class ExtensionRef(ApiModel):
    """An object of the gateway's own, in the ModelDeployment's namespace, that changes requests."""

    group: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)] = (
        Field(description="Its API group, for example traefik.io.")
    )
    kind: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=63)] = Field(
        description="Its kind, one that the operator's configuration names."
    )
    name: Name = Field(description="Its name.")


Origin = Annotated[
    str,
    StringConstraints(
        pattern=r"^(\*|[a-z][-+.a-z0-9]*://([-*A-Za-z0-9.]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?)$",
        max_length=253,
    ),
]


class Cors(ApiModel):
    """Which web pages may call the model, over HTTP. The gateway answers OPTIONS for them."""

    allow_origins: Annotated[list[Origin], Field(min_length=1, max_length=64)] = Field(
        description="Origins such as https://app.example.com; * alone: all."
    )
    allow_credentials: bool = Field(False, description="Whether pages may send cookies and the like.")
    allow_headers: Annotated[list[HeaderName], Field(max_length=64)] | None = Field(
        None, description="Headers that pages may send; * alone: all."
    )
    expose_headers: Annotated[list[HeaderName], Field(max_length=64)] | None = Field(
        None, description="Headers of answers that pages may read; * alone: all."
    )
    max_age: int = Field(5, ge=1, le=86400, description="Seconds for which a browser keeps the answer.")
    rules: ClassVar[tuple[Rule, ...]] = tuple(
        Rule(
            f"!has(self.{name}) || !('*' in self.{name}) || size(self.{name}) == 1",
            f"{name}: * stands alone",
        )
        for name in ("allowOrigins", "allowHeaders")
    )


class Filters(ApiModel):
    """What the gateway does with requests and answers of all revisions alike. It takes effect at
    once, not with a rollout.
    """

    request_header_modifier: HeaderModifier | None = None
    response_header_modifier: HeaderModifier | None = Field(
        None, description="Of answers over HTTP; not every gateway can change those of gRPC."
    )
    extension_refs: Annotated[list[ExtensionRef], Field(max_length=8)] | None = Field(
        None,
        description=(
            "Objects of the gateway's own. One that does not exist makes the gateway answer every request"
            " with an error."
        ),
    )
    cors: Cors | None = None


class SessionAffinity(ApiModel):
    """Requests of a session go to the same revision, however traffic is split: those with the same
    value of a header or of a cookie. A session changes its revision when weights say so, at most
    once on the way from 0 to 100. Requests without it are split one by one.
    """

    header: HeaderName | None = Field(
        None, description="Name of the header whose value names the session, over HTTP and gRPC."
    )
    cookie: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$", max_length=256)] | None
    ) = Field(
        None,
        description=(
            "Name of the cookie whose value names the session. Clients bring it: the gateway makes none."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.header) != has(self.cookie)",
            "a session is named by a header or by a cookie: set exactly one",
        ),
    )


class Clients(ApiModel):
    """Clients that call the servers without the gateway."""

    namespaces: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]],
        Field(min_length=1, max_length=32),
    ] = Field(description="Namespaces of pods that call the model's Services; this one needs no mention.")


class Traffic(ApiModel):
    """How requests reach the model. Without a gateway the weights are approximated by replica
    counts behind one Service.
    """

    gateway: GatewayRef | None = None
    further_gateways: Annotated[list[GatewayRef], Field(max_length=7)] | None = Field(
        None, description="Gateways of the same GatewayClass that carry the routes as well."
    )
    http: Hostnames | None = Field(None, description="Host names for HTTP.")
    grpc: Hostnames | None = Field(
        None,
        description=(
            "Host names for gRPC; they differ from those of HTTP, or some gateways drop one of the routes."
        ),
    )
    timeouts: Timeouts | None = None
    filters: Filters | None = None
    session_affinity: SessionAffinity | None = None
    clients: Clients | None = Field(
        None, description="Further clients that the operator's NetworkPolicies let in, where it writes them."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.gateway) || has(self.http) || has(self.grpc)",
            "a gateway needs http: {hostnames: [...]} or grpc: {hostnames: [...]}",
        ),
        Rule(
            "has(self.gateway) || !(has(self.http) || has(self.grpc))",
            "host names need gateway: {name: ..., namespace: ...}",
        ),
        Rule(
            "!has(self.furtherGateways) || has(self.gateway)",
            "furtherGateways come beside gateway: set it, too",
        ),
        Rule(
            "!has(self.timeouts) || has(self.http)",
            "timeouts are of HTTP: a GRPCRoute has no field for them, so the operator cannot know how long"
            " the gateway lets a call last; set them in the gateway's own policy",
        ),
        Rule(
            "!has(self.filters) || has(self.gateway)",
            "filters are the gateway's: set gateway, or leave them out",
        ),
        Rule(
            "!has(self.sessionAffinity) || has(self.gateway)",
            "sessionAffinity is the gateway's: set gateway, or leave it out",
        ),
        *(
            Rule(
                f"!has(self.filters) || !has(self.filters.{name}) || has(self.http)",
                f"filters.{name} is of HTTP: set http, or leave it out",
            )
            for name in ("responseHeaderModifier", "cors")
        ),
        Rule(
            "!(has(self.http) && has(self.grpc)) || self.http.hostnames.all(h, !(h in self.grpc.hostnames))",
            "HTTP and gRPC need different host names: one name in both kinds of route is not portable between"
            " gateways",
        ),
    )

    @property
    def gateways(self) -> list[GatewayRef]:
        """All that carry the routes."""
        return [self.gateway, *(self.further_gateways or ())] if self.gateway else []
