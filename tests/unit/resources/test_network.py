"""Who reaches which pod of a ModelDeployment, and whom it reaches, by the policies as they are
written.
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.addresses import METADATA
from modelrollout.api.v1alpha1 import RevisionRef, Shadow
from modelrollout.config import NetworkPoliciesConfig
from modelrollout.resources import comparer, network_policies
from modelrollout.resources.common import Object, Owner
from tests.network_policies import End, allowed
from tests.unit.resources import objects as o

CONFIG = NetworkPoliciesConfig.model_validate(
    {
        "mode": "Write",
        "proxies": {"namespaces": ["envoy-gateway-system"], "addresses": ["10.9.0.7"]},
        "prometheus": {"namespaces": ["monitoring"], "addresses": ["fd00:9::1"]},
        "operatorNamespace": "modelrollout",
        "dns": {"namespaces": ["kube-system"], "addresses": ["169.254.20.10"], "ports": [53]},
        "stores": [
            {"addresses": ["10.20.0.0/24", "fd00:20::/64"], "ports": [443, 9000]},
            {"namespaces": ["minio"], "ports": [9000]},
            {"addresses": ["0.0.0.0/0", "::/0"], "ports": [8443]},
        ],
    }
)
POLICIES = network_policies.policies(o.DEPLOYMENT, ["shop"], CONFIG)
OTHER = network_policies.policies(Owner("ModelDeployment", "other", "ml", "uid-other"), [], CONFIG)
SHADOW = Shadow.model_validate({"minAgreement": 0.99})


def labelled(obj: Object, address: str) -> End:
    """A pod of a Job or Deployment as the operator renders it."""
    return End(address, obj["metadata"]["namespace"], obj["spec"]["template"]["metadata"]["labels"])


COMPARER = comparer.comparer(
    o.DEPLOYMENT,
    RevisionRef(revision=o.REVISION, number=7),
    RevisionRef(revision="digits-1", number=6),
    SHADOW,
    o.SERVING,
    o.CONFIG,
)
ENDS = {
    "server": labelled(o.deployment(), "10.1.0.1"),
    "comparer": labelled(COMPARER, "10.1.0.2"),
    "resolve": labelled(o.resolve(), "10.1.0.3"),
    "prepare": labelled(o.prepare(), "10.1.0.3"),
    "tune": labelled(o.tune(), "10.1.0.3"),
    "evaluate": labelled(o.evaluate(), "10.1.0.3"),
    "other server": End(
        "10.1.0.4", "ml", {names.LABEL_NAME: "other", names.LABEL_COMPONENT: names.COMPONENT_SERVER}
    ),
    "neighbour": End("10.1.0.5", "ml", {"app": "web"}),
    "client": End("10.1.0.6", "shop", {"app": "checkout"}),
    "stranger": End(
        "10.1.0.7", "attacker", {names.LABEL_NAME: o.NAME, names.LABEL_COMPONENT: names.COMPONENT_SERVER}
    ),
    "proxy": End("10.1.0.8", "envoy-gateway-system", {"app": "envoy"}),
    "proxy of the node": End("10.9.0.7"),
    "the Gateway's namespace": End("10.1.0.9", "gateways", {"app": "something"}),
    "prometheus": End("10.1.0.10", "monitoring", {"app": "prometheus"}),
    "prometheus outside": End("fd00:9::1"),
    "operator": End("10.1.0.13", "modelrollout", {"app.kubernetes.io/component": "operator"}),
    "dns": End("10.1.0.11", "kube-system", {"k8s-app": "kube-dns"}),
    "node-local dns": End("169.254.20.10"),
    "store": End("10.20.0.9"),
    "store v6": End("fd00:20::9"),
    "store in the cluster": End("10.1.0.12", "minio"),
    "internet": End("93.184.216.34"),
    "internet v6": End("2606:2800::1"),
    "api server": End("10.96.0.1"),
    "metadata": End("169.254.169.254"),
    "metadata v6": End("fd00:ec2::254"),
    "metadata v6, identity of pods": End("fd00:ec2::23"),
    "metadata of Alibaba": End("100.100.100.200"),
    "metadata of Azure": End("168.63.129.16"),
    "metadata of Google v6": End("fd20:ce::254"),
    "link v6": End("fe80::1"),
}
JOBS = ("resolve", "prepare", "tune", "evaluate")
MODEL = (names.PORT_HTTP, names.PORT_GRPC)
# from, to and port of all that may be, with what ``wide_open`` adds; everything else between these
# ends and at these ports may not
MAY = {
    *(
        (who, "server", port)
        for who in ("evaluate", "comparer", "neighbour", "client", "proxy", "proxy of the node")
        for port in MODEL
    ),
    ("operator", "server", names.PORT_HTTP),  # the version of Triton
    *((who, "comparer", names.PORT_COMPARER) for who in ("proxy", "proxy of the node")),
    *(
        (who, pod, names.PORT_METRICS)
        for who in ("prometheus", "prometheus outside")
        for pod in ("server", "comparer")
    ),
    *((who, dns, 53) for who in ("server", "comparer", *JOBS) for dns in ("dns", "node-local dns")),
    *(
        (who, store, port)
        for who in ("server", *JOBS)
        for store in ("store", "store v6")
        for port in (443, 9000)
    ),
    *((who, "store in the cluster", 9000) for who in ("server", *JOBS)),
}
INSIDE = ("server", "comparer", *JOBS)
PORTS = (53, 80, 443, 8000, 8001, 8002, 8080, 8443, 9000, 22)


def wide_open(who: str, to: str, port: int) -> bool:
    """At 8443 all of IPv4 and IPv6 but what is near is a store; who is reached there has his own
    word.
    """
    return (
        port == 8443
        and who in ("server", *JOBS)
        and to not in INSIDE
        and "metadata" not in to
        and to not in ("link v6", "node-local dns", "other server")
    )


@pytest.mark.parametrize("to", ENDS)
@pytest.mark.parametrize("who", ENDS)
def test_who_reaches_whom(who: str, to: str) -> None:
    if who not in INSIDE and to not in INSIDE:
        return  # theirs
    for port in PORTS:
        desired = (who, to, port) in MAY or wide_open(who, to, port)
        assert allowed([*POLICIES, *OTHER], ENDS[who], ENDS[to], port) is desired, f"{who} to {to}:{port}"
        udp = port == 53 and to in ("dns", "node-local dns") and who in INSIDE
        assert allowed([*POLICIES, *OTHER], ENDS[who], ENDS[to], port, "UDP") is udp, (
            f"{who} to {to}:{port}/UDP"
        )


def test_a_tenants_own_policy_can_open_more_and_close_nothing() -> None:
    def of(spec: dict[str, Any]) -> Object:
        return {"metadata": {"namespace": "ml"}, "spec": spec}

    more = of({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]})
    none = of({"podSelector": {}, "policyTypes": ["Ingress"]})
    assert not allowed(POLICIES, ENDS["stranger"], ENDS["server"], 8000)
    assert allowed([*POLICIES, more], ENDS["stranger"], ENDS["server"], 8000)
    assert allowed([*POLICIES, none], ENDS["proxy"], ENDS["server"], 8000)


@pytest.mark.parametrize("part", ["proxies", "prometheus"])
def test_a_rule_without_peers_is_left_out_and_is_none_for_all(part: str) -> None:
    """Kubernetes takes an empty list of peers for all of them."""
    config = CONFIG.model_copy(update={part: type(CONFIG.proxies)(), "stores": []})
    made = network_policies.policies(o.DEPLOYMENT, [], config)
    for policy in made:
        for side, peers in (("ingress", "from"), ("egress", "to")):
            assert all(rule[peers] and rule["ports"] for rule in policy["spec"][side])
    for who in ("stranger", "internet", "proxy" if part == "proxies" else "prometheus"):
        assert not any(allowed(made, ENDS[who], ENDS[pod], port) for pod in INSIDE for port in PORTS)


def test_a_wide_range_leaves_out_what_is_near_and_a_named_one_means_it() -> None:
    def block(address: str) -> Object:
        return network_policies._block(address)

    services = [str(network) for network in METADATA]
    v4, v6 = ([x for x in services if (":" in x) is v6] for v6 in (False, True))
    assert block("0.0.0.0/0") == {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16", *v4]}
    assert block("::/0") == {"cidr": "::/0", "except": ["fe80::/10", *v6]}
    assert block("168.0.0.0/7") == {"cidr": "168.0.0.0/7", "except": ["169.254.0.0/16", "168.63.129.16/32"]}
    assert block("fd00::/8") == {"cidr": "fd00::/8", "except": v6}
    for named in ("169.254.0.0/16", "169.254.170.23/32", "fe80::/10", "fd00:ec2::254/128", "10.0.0.0/8"):
        assert block(named) == {"cidr": named}


def test_two_models_of_a_namespace_have_no_name_in_common() -> None:
    """digits and digits-jobs, say: each name ends with what it is for."""
    both = [
        p["metadata"]["name"]
        for name in ("digits", "digits-jobs")
        for p in network_policies.policies(Owner("ModelDeployment", name, "ml", "u"), [], CONFIG)
    ]
    assert len(set(both)) == 8


def test_one_word_more_is_another_policy() -> None:
    servers, _, jobs, _ = POLICIES
    retained = {k: v for k, v in jobs["spec"].items() if v}  # the API server keeps no empty list
    assert jobs["spec"]["ingress"] == [] and network_policies.is_equivalent({"spec": retained}, jobs)
    assert not network_policies.is_equivalent({"spec": retained | {"ingress": [{}]}}, jobs)
    assert not network_policies.is_equivalent(
        {"spec": servers["spec"] | {"egress": [*servers["spec"]["egress"], {}]}}, servers
    )
    assert not network_policies.is_equivalent(
        {"spec": servers["spec"] | {"policyTypes": ["Egress"]}}, servers
    )
    assert not network_policies.is_equivalent({}, servers)
