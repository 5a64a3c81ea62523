"""Sessions stick by a policy of Envoy Gateway and by weights whose sum never changes; where the
gateway cannot do it, the spec is refused by name.
"""

from __future__ import annotations

import copy
import zlib
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import SessionAffinity, Traffic
from modelrollout.cli.manifests.rules import broken_rules, schema_of
from modelrollout.config import OperatorConfig
from modelrollout.resources.common import Owner
from modelrollout.rollout.snapshot import Split
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG
from modelrollout.traffic.gateway_api.features import ENVOY_GATEWAY_CONTROLLER
from modelrollout.traffic.gateway_api.router import FrozenRoutes, GatewayRouter
from modelrollout.traffic.gateway_api.sessions import SessionRoutes, session_problem, session_refusal
from modelrollout.traffic.gateway_api.staging import WHOLE, next_stage
from modelrollout.traffic.gateway_facts import GatewayFacts

Object = dict[str, Any]
OWNER = Owner("uid", "digits", "ml", "digits")
MAY = CONFIG.model_copy(
    update={"routes": CONFIG.routes.model_copy(update={"backend_traffic_policies": True})}
)
ENVOY = GatewayFacts("ml/public", "envoy", ENVOY_GATEWAY_CONTROLLER)
HEADER = SessionAffinity(header="x-session")
AT = ("v1", "v2")
POLICY = ("BackendTrafficPolicy", "digits")


def traffic(**affinity: str) -> Traffic:
    wire = {
        "gateway": {"name": "public"},
        "http": {"hostnames": ["a.x", "b.x"]},
        "grpc": {"hostnames": ["g.x"]},
    }
    return Traffic.model_validate(wire | ({"sessionAffinity": affinity} if affinity else {}))


def writer(affinity: SessionAffinity | None = HEADER, live: Any = None) -> SessionRoutes:
    router = GatewayRouter("digits", traffic(), positions=AT, whole=WHOLE)
    return SessionRoutes(router, "digits", affinity, live or {})


def written(split: Split = (("v1", 95), ("v2", 5)), **more: Any) -> tuple[list[Object], Object]:
    *routes, policy = writer(**more).children(OWNER, split)
    return routes, policy


@pytest.mark.parametrize(
    ("value", "broken"),
    [
        ({"gateway": {"name": "a"}, "http": {"hostnames": ["a.x"]}, "sessionAffinity": {"header": "x"}}, []),
        ({"sessionAffinity": {"cookie": "x"}}, ["sessionAffinity is the gateway's: set gateway, or leave"]),
        (
            {"gateway": {"name": "a"}, "grpc": {"hostnames": ["a.x"]}, "sessionAffinity": {}},
            ["a session is named by a header or by a cookie: set exactly one"],
        ),
    ],
)
def test_a_session_has_one_name_at_a_gateway(value: Object, broken: list[str]) -> None:
    schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["traffic"]
    found = [message for _, message in broken_rules(schema, value)]
    assert len(found) == len(broken) and all(map(str.startswith, found, broken))


@pytest.mark.parametrize(
    ("asked", "hashed"),
    [
        ({"header": "x-session"}, {"type": "Headers", "headers": [{"name": "x-session"}]}),
        ({"cookie": "sid"}, {"type": "Cookie", "cookie": {"name": "sid"}}),
    ],
)
def test_the_gateway_hashes_what_names_the_session(asked: dict[str, str], hashed: Object) -> None:
    _, policy = written(affinity=SessionAffinity.model_validate(asked))
    assert policy["spec"]["loadBalancer"] == {"type": "ConsistentHash", "consistentHash": hashed}


def test_one_policy_is_about_all_routes_of_clients_and_leaves_the_platforms_in_force() -> None:
    routes, policy = written()
    assert (policy["kind"], policy["metadata"]["name"]) == POLICY
    assert [(t["kind"], t["name"]) for t in policy["spec"]["targetRefs"]] == sorted(
        (r["kind"], r["metadata"]["name"]) for r in routes
    )
    assert len(routes) == 3 and policy["spec"]["mergeType"] == "StrategicMerge"
    assert policy["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid


def side(route: Object, session: str) -> str:
    """As Envoy chooses (router/weighted_cluster_specifier.cc): the hash modulo the sum of weights;
    any hash will do.
    """
    refs = [ref for ref in route["spec"]["rules"][0]["backendRefs"] if ref["weight"]]
    at = zlib.crc32(session.encode()) % sum(ref["weight"] for ref in refs)
    for ref in refs:
        if at < ref["weight"]:
            return str(ref["name"])
        at -= ref["weight"]
    raise AssertionError


def test_a_session_changes_its_side_once_on_the_way_up_stages_included() -> None:
    sessions = [f"user-{i}" for i in range(1000)]
    live = written((("v1", 100),))[0][0]
    before, changes = {s: side(live, s) for s in sessions}, dict.fromkeys(sessions, 0)
    for weight in (5, 25, 50, 75, 100):
        desired = written((("v1", 100 - weight), ("v2", weight)))[0][0]
        while live != desired:
            live = next_stage(desired, live, accepted=True)
            now = {s: side(live, s) for s in sessions}
            for s in sessions:
                changes[s] += now[s] != before[s]
            before = now
        assert abs(sum(x == "v2" for x in before.values()) / len(sessions) - weight / 100) < 0.05
    assert set(changes.values()) == {1}


def test_weights_of_another_sum_would_deal_all_sessions_again() -> None:
    """Why they are parts of a million, whatever the step."""
    sessions = [f"user-{i}" for i in range(1000)]
    percent = GatewayRouter("digits", traffic(), positions=AT).children(OWNER, (("v1", 50), ("v2", 50)))[0]
    exact = written((("v1", 50), ("v2", 50)))[0][0]
    assert sum(side(percent, s) != side(exact, s) for s in sessions) > 300


@pytest.mark.parametrize(
    ("known", "config", "words"),
    [
        (
            GatewayFacts("ml/public", "t", "traefik.io/gateway-controller"),
            MAY,
            "is not known to keep a session",
        ),
        (ENVOY, CONFIG, "routes.backendTrafficPolicies in the operator's chart"),
        (None, MAY, "is unknown, because the operator cannot read"),
        (GatewayFacts("ml/public"), MAY, "is unknown, because the operator cannot read"),
    ],
)
def test_a_gateway_that_would_not_keep_sessions_is_named(
    known: GatewayFacts | None, config: OperatorConfig, words: str
) -> None:
    problem = session_problem(traffic(header="x-session"), known, config)
    assert problem is not None and problem.reason == "SessionAffinityUnsupported"
    assert problem.message.startswith("spec.traffic.sessionAffinity: ") and words in problem.message
    assert session_problem(traffic(), known, config) is None
    assert session_problem(traffic(header="x-session"), ENVOY, MAY) is None


def answered(policy: Object, status: str, reason: str = "Accepted", generation: int = 3) -> Object:
    condition = {"type": "Accepted", "status": status, "reason": reason, "message": "as it is"}
    ancestor = {
        "ancestorRef": {"name": "public"},
        "controllerName": ENVOY_GATEWAY_CONTROLLER,
        "conditions": [condition | {"observedGeneration": generation}],
    }
    metadata = policy["metadata"] | {"generation": 3}
    return policy | {"metadata": metadata, "status": {"ancestors": [ancestor]}}


def carried(policy: Object | None) -> Any:
    split: Split = (("v1", 95), ("v2", 5))
    live: dict[tuple[str, str], Object] = {}
    for route in written(split)[0]:
        live[route["kind"], route["metadata"]["name"]] = route | {"status": b.answered(route)}
    if policy is not None:
        live[POLICY] = policy
    return writer(live=live).programmed(split, live, {}), session_refusal(
        traffic(header="x-session"), "digits", live
    )


def test_routes_count_once_the_gateway_has_accepted_the_policy_as_it_is() -> None:
    _, policy = written()
    assert carried(answered(policy, "True")) == (carried(answered(policy, "True"))[0], None)
    assert carried(answered(policy, "True"))[0].programmed
    as_stored = copy.deepcopy(policy)  # with a default of Envoy Gateway's definition
    as_stored["spec"]["loadBalancer"]["consistentHash"]["tableSize"] = 65537
    assert carried(answered(as_stored, "True"))[0].programmed
    for missing in (
        None,
        policy,
        answered(policy, "True", generation=2),
        answered(written(affinity=SessionAffinity(cookie="c"))[1], "True"),
    ):
        traffic_now, refused = carried(missing)
        assert not traffic_now.programmed and traffic_now.problem is None and refused is None


def test_a_policy_that_the_gateway_refuses_is_quoted() -> None:
    """Such as where the routes have another one: the older of the two holds."""
    traffic_now, refused = carried(answered(written()[1], "False", "Conflicted"))
    assert not traffic_now.programmed
    assert refused is not None and refused.reason == "SessionAffinityRefused"
    assert "refuses BackendTrafficPolicy digits: Conflicted: as it is" in refused.message
    assert carried(answered(written()[1], "False", "Conflicted", generation=2))[1] is None, "of an older one"


def test_a_refusal_counts_while_the_policy_is_as_spec_asks() -> None:
    refused = answered(written()[1], "False", "Conflicted")
    asked = traffic(header="x-session")
    assert session_refusal(asked, "digits", {POLICY: refused}) is not None
    for other in (
        traffic(header="x-user"),
        traffic(cookie="sid"),
        asked.model_copy(update={"grpc": None}),
        Traffic.model_validate(asked.wire() | {"http": {"hostnames": ["a.x", "c.x"]}}),
    ):
        assert session_refusal(other, "digits", {POLICY: refused}) is None, (
            "what is to be written may be taken"
        )


def test_the_order_in_which_routes_are_read_makes_no_other_policy() -> None:
    """Or a frozen policy would be written again, its refusal forgotten, and so on without end."""
    split: Split = (("v1", 100),)
    made = writer().children(OWNER, split)
    live = {(o["kind"], o["metadata"]["name"]): o for o in reversed(made)}
    frozen = SessionRoutes(FrozenRoutes("digits", live, whole=WHOLE), "digits", None, live)
    assert frozen.children(OWNER, split)[-1]["spec"] == live[POLICY]["spec"]


def test_where_spec_is_not_granted_the_policy_stays_as_it_is() -> None:
    _, live = written()
    routes, kept = written(affinity=None, live={POLICY: live})
    assert kept["spec"] == live["spec"]
    assert [o["kind"] for o in writer(None).children(OWNER, (("v1", 100),))] == [r["kind"] for r in routes]
