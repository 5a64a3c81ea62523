"""``spec.traffic``: how requests come to the model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from modelrollout.api.v1alpha1.schema import ApiModel, Name, Rule


class GatewayRef(ApiModel):
    """A Gateway that carries the traffic."""

    name: Name = Field(description="Name of the Gateway.")
    namespace: Name | None = Field(None, description="Namespace of the Gateway; left out: this one.")


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
    http: Hostnames | None = Field(None, description="Host names for HTTP.")
    grpc: Hostnames | None = Field(
        None,
        description=(
            "Host names for gRPC; they differ from those of HTTP, or some gateways drop one of the routes."
        ),
    )
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
            "!(has(self.http) && has(self.grpc)) || self.http.hostnames.all(h, !(h in self.grpc.hostnames))",
            "HTTP and gRPC need different host names: one name in both kinds of route is not portable between"
            " gateways",
        ),
    )
