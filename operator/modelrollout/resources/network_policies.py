"""NetworkPolicies of a ModelDeployment's pods: what may reach its servers, comparer and Jobs, and
what those may reach (docs/how-to/network.md).

Policies are additive, so each kind of pod has a single policy. They select by component and not by
revision: they exist before the first pod, and stay the same from rollout to rollout.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from modelrollout.api import names
from modelrollout.api.addresses import LINK, METADATA
from modelrollout.config import NetworkPoliciesConfig, Peers
from modelrollout.resources.common import Object, Owner, labels, metadata

NEAR = (*LINK, *METADATA)  # what a wide range does not mean
# Those that ask no server but one in their own pod. Containers of a pod share its network: with a
# step of the user's own image in it, what the pod reaches that image does.
_JOBS = (names.COMPONENT_RESOLVE, names.COMPONENT_PREPARE, names.COMPONENT_TUNE)
# a label of every namespace, which only the API server writes
_NAMESPACE = "kubernetes.io/metadata.name"
_MODEL = (names.PORT_HTTP, names.PORT_GRPC)


def policies(owner: Owner, clients: Sequence[str], config: NetworkPoliciesConfig) -> list[Object]:
    """Those of a ModelDeployment (their owner); ``clients``: the namespaces that it names."""
    callers = _peers(
        config.proxies.model_copy(update={"namespaces": sorted({*config.proxies.namespaces, *clients})})
    )
    scraped = _rules("from", _peers(config.prometheus), (names.PORT_METRICS,))
    dns = _rules("to", _peers(config.dns), config.dns.ports, ("TCP", "UDP"))
    stores = [rule for store in config.stores for rule in _rules("to", _peers(store), store.ports)]
    servers = _rules("to", [{"podSelector": _selecting(owner, names.COMPONENT_SERVER)}], _MODEL)
    called = _rules("from", [{"podSelector": {}}, *callers], _MODEL)
    versions = (
        _rules("from", _peers(Peers(namespaces=[config.operator_namespace])), _MODEL[:1])
        if config.operator_namespace
        else []
    )
    mirrored = _rules("from", _peers(config.proxies), (names.PORT_COMPARER,))
    return [
        _policy(owner, "servers", [names.COMPONENT_SERVER], [*called, *versions, *scraped], [*dns, *stores]),
        _policy(owner, "comparer", [names.COMPONENT_SHADOW], [*mirrored, *scraped], [*dns, *servers]),
        _policy(owner, "jobs", _JOBS, [], [*dns, *stores]),
        _policy(owner, "evaluate", [names.COMPONENT_EVALUATE], [], [*dns, *servers, *stores]),
    ]


def is_equivalent(live: Object, desired: Object) -> bool:
    """Whether a live policy is exactly the desired one: any addition would open something."""
    return bool({"ingress": [], "egress": [], **(live.get("spec") or {})} == desired["spec"])


def _policy(
    owner: Owner, part: str, components: Sequence[str], ingress: list[Object], egress: list[Object]
) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, f"{owner.name}-{part}", labels(owner.name, components[0])),
        "spec": {
            "podSelector": _selecting(owner, *components),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _selecting(owner: Owner, *components: str) -> Object:
    if len(components) == 1:
        return {"matchLabels": {names.LABEL_NAME: owner.name, names.LABEL_COMPONENT: components[0]}}
    some = {"key": names.LABEL_COMPONENT, "operator": "In", "values": list(components)}
    return {"matchLabels": {names.LABEL_NAME: owner.name}, "matchExpressions": [some]}


def _rules(
    side: str, peers: list[Object], ports: Iterable[int], protocols: Sequence[str] = ("TCP",)
) -> list[Object]:
    """One rule; none without peers, because Kubernetes reads an empty list of peers as everyone."""
    return (
        [
            {
                side: peers,
                "ports": [{"port": port, "protocol": protocol} for port in ports for protocol in protocols],
            }
        ]
        if peers
        else []
    )


def _peers(peers: Peers) -> list[Object]:
    selectors: list[Object] = []
    if peers.namespaces:
        some = {"key": _NAMESPACE, "operator": "In", "values": list(peers.namespaces)}
        selectors.append({"namespaceSelector": {"matchExpressions": [some]}})
    return [*selectors, *({"ipBlock": _block(address)} for address in peers.addresses)]


def _block(address: str) -> Object:
    """Of two ranges one holds the other, or they are apart: what is near is left out where it is a
    part, and stays where it is named.
    """
    whole: Any = ipaddress.ip_network(address)
    near = [
        str(part)
        for part in NEAR
        if part.version == whole.version and part != whole and part.subnet_of(whole)
    ]
    return {"cidr": address} | ({"except": near} if near else {})
