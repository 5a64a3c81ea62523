"""What NetworkPolicies allow, by the words of the API (networking.k8s.io/v1) and not by ours.

A pod that no policy selects is open; one that is selected is reached by what some rule lets in, and
reaches what some rule lets out; both ends have to agree.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or with no namespace something that is none (also a pod with
    the network of its node).
    """

    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def allowed(policies: Iterable[Object], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection may be made."""
    known = list(policies)
    return _lets(known, "Egress", source, target, port, protocol) and _lets(
        known, "Ingress", target, source, port, protocol
    )


def _lets(policies: list[Object], side: str, pod: End, other: End, port: int, protocol: str) -> bool:
    of_pod = [
        p
        for p in policies
        if pod.namespace
        and pod.namespace == p["metadata"]["namespace"]
        and _selects(p["spec"]["podSelector"], pod.labels)
    ]
    isolating = [p for p in of_pod if side in p["spec"].get("policyTypes", ["Ingress"])]
    if not isolating:
        return True
    rules, peers = side.lower(), "from" if side == "Ingress" else "to"
    return any(
        (not rule.get("ports") or any(_at(p, port, protocol) for p in rule["ports"]))
        and (
            not rule.get(peers)
            or any(_is(peer, other, policy["metadata"]["namespace"]) for peer in rule[peers])
        )
        for policy in isolating
        for rule in policy["spec"].get(rules) or []
    )


def _at(desired: Object, port: int, protocol: str) -> bool:
    assert isinstance(desired.get("port", 0), int), "names of ports are the pod's, and not known here"
    first = desired.get("port")
    return desired.get("protocol", "TCP") == protocol and (
        first is None or first <= port <= desired.get("endPort", first)
    )


def _is(peer: Object, other: End, home: str) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(e) for e in block.get("except") or []
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != home:
        return False
    return _selects(peer.get("podSelector") or {}, other.labels)


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    tests = {
        "In": lambda e: labels.get(e["key"]) in e["values"],
        "NotIn": lambda e: labels.get(e["key"]) not in e["values"],
        "Exists": lambda e: e["key"] in labels,
        "DoesNotExist": lambda e: e["key"] not in labels,
    }
    exact = all(labels.get(k) == v for k, v in (selector.get("matchLabels") or {}).items())
    return exact and all(tests[e["operator"]](e) for e in selector.get("matchExpressions") or [])
