"""Whose host names are."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.resources.common import Object
from modelrollout.rollout.policy.rules import NO_RULES, Rules
from modelrollout.testing import builders as b
from modelrollout.traffic.hostnames import (
    MAX_SHARING,
    Claim,
    Claims,
    ForeignRoutes,
    Known,
    Standing,
    requested_hosts,
    stored_requested_hosts,
    version_of,
)
from modelrollout.traffic.hostnames import standing as stand
from modelrollout.traffic.registry import foreign_route

ME, THEM = "ml/digits/u-1", "audit/digits/u-2"
GATEWAY = {"name": "public", "namespace": "gateways"}
HOST = "digits.example.com"
NOTHING = ForeignRoutes()


def spec(
    http: list[str] | None = None, grpc: list[str] | None = None, preview: list[str] | None = None
) -> ModelDeploymentSpec:
    traffic: dict[str, Any] = {"gateway": GATEWAY, "http": {"hostnames": http or [HOST]}}
    if grpc:
        traffic["grpc"] = {"hostnames": grpc}
    rollout = {"blueGreen": {"preview": {"http": {"hostnames": preview}}}} if preview else None
    return b.spec(1, traffic=traffic, rollout=rollout)


def stands(
    desired: ModelDeploymentSpec | None = None,
    *claims: Claim,
    live: tuple[str, ...] = (),
    served: tuple[tuple[str, str], ...] = (),
    foreign: ForeignRoutes = NOTHING,
    rules: Rules = NO_RULES,
    only_by_policy: bool = False,
) -> Standing:
    known = Known(Claims(claims), foreign, lambda _: served, only_by_policy)
    return stand(ME, desired or spec(), frozenset(live), known, rules)


def told(standing: Standing) -> tuple[str, str]:
    assert standing.problem is not None and not standing.settled
    return standing.problem.reason, standing.problem.message


def route(*hosts: str, kind: str = "HTTPRoute", **body: Any) -> Object:
    rules = body.pop("rules", [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}])
    return {
        "kind": kind,
        "metadata": {"name": "theirs", "namespace": "audit"},
        "spec": {"parentRefs": [GATEWAY], "hostnames": list(hosts), "rules": rules},
        **body,
    }


def foreign(*routes: Object) -> ForeignRoutes:
    return ForeignRoutes(r for o in routes if (r := foreign_route(o)))


def test_a_name_that_is_free_is_claimed_and_one_that_is_held_is_settled() -> None:
    free = stands()
    assert free.free == (HOST,) and not free.settled and free.problem is None
    assert stands(None, Claim(HOST, ME)).settled


@pytest.mark.parametrize(
    ("desired", "theirs"),
    [
        (spec([HOST]), HOST),  # the very name
        # as a name for gRPC of what is HTTP there: a claim has no kind
        (spec(grpc=["g.example.com"]), "g.example.com"),
        (spec(preview=["p.example.com"]), "p.example.com"),
        (spec([HOST]), "*.example.com"),
        (spec(["b.a.example.com"]), "*.example.com"),
    ],
)
def test_the_first_claim_wins_across_kinds_previews_and_wildcards(
    desired: ModelDeploymentSpec, theirs: str
) -> None:
    claims = stands(desired, Claim(theirs, THEM))
    reason, message = told(claims)
    assert reason == "HostnameTaken" and "hostnames[0]" in message and "choose another name" in message
    assert claims.in_the_way == (Claim(theirs, THEM),) and claims.lost == frozenset()


def test_a_wildcard_takes_nothing_from_those_below_it() -> None:
    rules = Rules(hostnames=(("p", ("*",)),))
    assert told(stands(spec(["*.example.com"]), Claim(HOST, THEM), rules=rules))[0] == "HostnameTaken"
    assert stands(spec(["*.example.com"]), Claim("a.example.org", THEM), rules=rules).free == (
        "*.example.com",
    )
    assert stands(spec(["*.example.com"]), Claim(HOST, ME), rules=rules).free == ("*.example.com",), (
        "its own are no obstacle"
    )


def test_who_has_it_is_told_within_a_namespace_only() -> None:
    assert "ModelDeployment ml/other" in told(stands(None, Claim(HOST, "ml/other/u-3")))[1]
    message = told(stands(None, Claim(HOST, THEM)))[1]
    assert "audit" not in message and names.host_lease(HOST) in message
    wide = told(stands(spec(["*.example.com"]), Claim(HOST, THEM), rules=Rules(hostnames=(("p", ("*",)),))))[
        1
    ]
    assert "overlaps a name" in wide and HOST not in wide, "a wildcard asks for no list of others' names"


def test_what_it_serves_since_before_there_were_claims_is_claimed_whatever_overlaps() -> None:
    claims = stands(spec(["*.example.com"]), Claim(HOST, THEM), live=("*.example.com",), only_by_policy=True)
    assert claims.free == ("*.example.com",) and claims.problem is None and not claims.lost


def test_a_name_that_it_serves_and_that_is_anothers_is_lost() -> None:
    claims = stands(None, Claim(HOST, THEM), live=(HOST,))
    assert claims.lost == {HOST} and told(claims)[0] == "HostnameTaken"
    unreadable = stand(
        ME,
        None,
        frozenset({HOST}),
        Known(Claims([Claim(HOST, THEM)]), NOTHING, lambda _: (), only_by_policy=False),
        NO_RULES,
    )
    assert unreadable.lost == {HOST} and not unreadable.stale


def test_a_name_that_a_route_of_another_carries_is_left_to_him() -> None:
    """Leases that were deleted, or an operator that has only just been upgraded: who serves a name
    claims it in his next pass.
    """
    for host in (HOST, "*.example.com"):
        assert told(stands(served=(("audit/digits", host),)))[0] == "HostnameTaken"
    assert stands(served=(("ml/digits", HOST),)).free == (HOST,), "of an earlier object of its own name"


def test_what_is_not_asked_for_and_not_served_is_given_back() -> None:
    former = Claim("former.example.com", ME)
    assert stands(None, Claim(HOST, ME), former).stale == ("former.example.com",)
    assert stands(None, Claim(HOST, ME), former, live=("former.example.com",)).stale == ()
    without = stands(b.spec(1, gateway=False), Claim(HOST, ME))
    assert without.stale == (HOST,) and without.settled


def test_policies_bind_new_claims() -> None:
    rules = Rules(hostnames=(("all", ("*.example.com",)), ("vision", ("*.vision.example.com",))))
    reason, message = told(stands(rules=rules))
    assert (
        reason == "HostnameNotAllowed" and "RolloutPolicy vision allows only *.vision.example.com" in message
    )
    assert stands(spec(["a.vision.example.com"]), rules=rules).free == ("a.vision.example.com",)
    assert stands(None, Claim(HOST, ME), rules=rules).settled, "what is held stays"
    assert told(stands(only_by_policy=True))[0] == "HostnameNotAllowed"
    reason, message = told(stands(spec(["*.example.com"])))
    assert reason == "HostnameNotAllowed" and "a wildcard needs a RolloutPolicy" in message


def test_a_foreign_route_that_takes_a_name_is_told_also_of_a_name_that_is_held() -> None:
    theirs = foreign(route(HOST))
    asks, holds, serves = (
        stands(foreign=theirs),
        stands(None, Claim(HOST, ME), foreign=theirs),
        stands(live=(HOST,), foreign=theirs),
    )
    for actual, problem in ((asks, asks.problem), (holds, holds.taken), (serves, serves.taken)):
        assert (
            problem is not None
            and problem.reason == "HostnameTaken"
            and "a route of another namespace" in problem.message
        )
        assert actual.taker == "HTTPRoute audit/theirs"
    assert not asks.free and asks.taken is None
    assert holds.settled and serves.free == (HOST,) and serves.problem is None, (
        "whoever may write a route must not be able to stop rollouts"
    )


def test_a_foreign_refusal_hides_no_foreign_route() -> None:
    """Whoever may write a route's status would keep it from being reported."""
    refusal = {"parentRef": GATEWAY, "conditions": [{"type": "Accepted", "status": "False"}]}
    acceptance = {"parentRef": GATEWAY, "conditions": [{"type": "Accepted", "status": "True"}]}
    for entries in ([refusal, acceptance], [acceptance, refusal]):
        taking = route(HOST) | {"status": {"parents": entries}}
        assert stands(foreign=foreign(taking)).free == ()


@pytest.mark.parametrize(
    "harmless",
    [
        # cert-manager's solver
        route(
            HOST, rules=[{"matches": [{"path": {"type": "Exact", "value": "/.well-known/acme-challenge/x"}}]}]
        ),
        route(HOST, rules=[{"filters": [{"type": "RequestRedirect"}]}]),
        route("other.example.com"),
        # shorter than the name: by any gateway's ranking the exact name wins
        route("*.example.com"),
        route(),
        route(HOST)
        | {
            "status": {
                "parents": [{"parentRef": GATEWAY, "conditions": [{"type": "Accepted", "status": "False"}]}]
            }
        },
        route(HOST, kind="GRPCRoute", rules=[{"matches": [{"method": {"service": "helloworld.Greeter"}}]}]),
    ],
)
def test_a_foreign_route_that_takes_nothing_is_no_obstacle(harmless: Object) -> None:
    assert stands(foreign=foreign(harmless)).free == (HOST,)


@pytest.mark.parametrize(
    ("taking", "desired"),
    [
        # Traefik ranks it by the longer name
        (route("*.example.com", "x" * 60 + ".example.org"), spec()),
        (route(HOST, rules=[{"matches": [{"path": {"type": "PathPrefix", "value": "/v2/models"}}]}]), spec()),
        (route(HOST, rules=[{"matches": [{"path": {"type": "RegularExpression", "value": ".*"}}]}]), spec()),
        (route(HOST, rules=[{}]), spec()),
        (route("g.example.com"), spec(grpc=["g.example.com"])),  # an HTTPRoute takes what is gRPC
        (
            route(
                "g.example.com",
                kind="GRPCRoute",
                rules=[{"matches": [{"method": {"service": "inference.GRPCInferenceService"}}]}],
            ),
            spec(grpc=["g.example.com"]),
        ),
        (
            route(
                "g.example.com", kind="GRPCRoute", rules=[{"matches": [{"method": {"method": "ModelInfer"}}]}]
            ),
            spec(grpc=["g.example.com"]),
        ),
    ],
)
def test_a_foreign_route_takes_what_its_matches_open(taking: Object, desired: ModelDeploymentSpec) -> None:
    assert told(stands(desired, foreign=foreign(taking)))[0] == "HostnameTaken"


def test_a_route_of_another_gateway_takes_nothing() -> None:
    other = route(HOST)
    other["spec"]["parentRefs"] = [{"name": "public"}]  # of its own namespace
    assert stands(foreign=foreign(other)).free == (HOST,)


def test_a_foreign_route_of_any_gateway_of_the_spec_takes_a_name() -> None:
    traffic = {"gateway": {"name": "first"}, "furtherGateways": [GATEWAY], "http": {"hostnames": [HOST]}}
    assert told(stands(b.spec(1, traffic=traffic), foreign=foreign(route(HOST))))[0] == "HostnameTaken"
    del traffic["furtherGateways"]
    assert stands(b.spec(1, traffic=traffic), foreign=foreign(route(HOST))).free == (HOST,)


def test_names_of_a_spec_have_fields_and_one_that_is_odd_has_what_can_be_read() -> None:
    hosts = requested_hosts(spec(["a.x", "b.x"], ["c.x"], ["d.x"]))
    assert [(n.field, n.host) for n in hosts] == [
        ("spec.traffic.http.hostnames[0]", "a.x"),
        ("spec.traffic.http.hostnames[1]", "b.x"),
        ("spec.traffic.grpc.hostnames[0]", "c.x"),
        ("spec.rollout.blueGreen.preview.http.hostnames[0]", "d.x"),
    ]
    assert stored_requested_hosts(spec(["a.x"], ["c.x"], ["d.x"]).wire()) == {"a.x", "c.x", "d.x"}
    for odd in (None, {}, {"traffic": None}, {"traffic": {"http": {"hostnames": [1, "a.x"]}, "grpc": []}}):
        assert stored_requested_hosts(odd) <= {"a.x"}


def test_a_version_is_the_same_whichever_operator_wrote_its_input_down() -> None:
    """Else whoever creates a ModelDeployment anew after an upgrade of the operator is kept from its
    names, with the very version.
    """
    now = b.spec(1).user_input()
    older = {**now, "serving": {k: v for k, v in now["serving"].items() if k != "triton"}}
    assert older != now and version_of(older, b.sha(1)) == version_of(now, b.sha(1))
    newer = {**now, "serving": {**now["serving"], "unheardOf": 1}}
    assert version_of(newer, b.sha(1)) not in (version_of(now, b.sha(1)), "")


BESIDE, ELSEWHERE = "ml/embeddings/u-3", "audit/embeddings/u-4"


def http(holder: str, host: str = HOST, **more: Any) -> Claim:
    return Claim(host, holder, over_http=True, **more)


def test_models_of_a_namespace_share_a_host_name_over_http() -> None:
    joins = stands(None, http(BESIDE))
    assert joins.free == (HOST,) and joins.over_http == {HOST} and joins.guest_at == {HOST}
    assert stands(None, http(BESIDE), http(ME)).guest_at == {HOST}
    assert stands(None, http(ME), http(BESIDE)).guest_at == frozenset()
    released = http(BESIDE, reserved="720h", version="v", released="2026-11-22T12:00:00+00:00")
    assert stands(None, released, http(ME)).guest_at == frozenset(), "the first of those in force"


def test_a_host_name_is_shared_with_other_namespaces_only_where_every_such_policy_says_so() -> None:
    reason, message = told(stands(None, http(ELSEWHERE)))
    assert reason == "HostnameTaken" and "sharedHostnames of a RolloutPolicy" in message
    assert "audit" not in message
    shared = Rules(shared_hostnames=(("p", (HOST,)),))
    assert stands(None, http(ELSEWHERE), rules=shared).free == (HOST,)
    both = Rules(shared_hostnames=(("p", (HOST,)), ("q", ("*.example.org",))))
    assert told(stands(None, http(ELSEWHERE), rules=both))[0] == "HostnameTaken"
    assert stands(None, http(ELSEWHERE), http(ME)).settled, "what is held stays"


def test_guests_do_not_keep_the_namespace_that_has_the_name_from_it() -> None:
    assert stands(None, http(BESIDE), http(ELSEWHERE)).free == (HOST,)
    assert told(stands(None, http(ELSEWHERE), http(BESIDE)))[0] == "HostnameTaken"
    # a served name has one model all the same
    assert told(stands(None, http(BESIDE), http(THEM)))[0] == "HostnameTaken"


@pytest.mark.parametrize("live", [(), (HOST,)])
def test_the_paths_of_a_model_belong_to_the_first_whoever_may_share_the_host_name(
    live: tuple[str, ...],
) -> None:
    everything = Rules(hostnames=(("p", ("*",)),), shared_hostnames=(("p", ("*",)),))
    taken = stands(None, http(BESIDE), http(THEM), live=live, rules=everything)
    reason, message = told(taken)
    assert reason == "HostnameTaken" and not taken.free and taken.lost == set(live)
    assert "whose model is called digits, too" in message and "audit" not in message


def test_a_wildcard_is_shared_and_no_name_below_it_is() -> None:
    rules = Rules(hostnames=(("p", ("*",)),))
    wildcard = http(BESIDE, "*.example.com")
    assert stands(spec(["*.example.com"]), wildcard, rules=rules).free == ("*.example.com",)
    beside = stands(spec([HOST]), wildcard, http(ME, "*.example.com"), rules=rules)
    assert told(beside)[0] == "HostnameTaken", "a gateway sends all of that name to its own routes"


def test_a_name_of_grpc_is_shared_with_none() -> None:
    grpc = spec(grpc=["g.example.com"])
    problem = told(stands(grpc, http(ME), http(BESIDE, "g.example.com")))
    assert problem[0] == "HostnameTaken" and "over gRPC only the message names the model" in problem[1]
    own = stands(grpc, http(ME), http(ME, "g.example.com"), http(BESIDE, "g.example.com"))
    assert "only the message names the model" in told(own)[1], "nor one that it has over HTTP"
    assert own.in_the_way == (http(BESIDE, "g.example.com"),)
    changes = stands(grpc, http(ME), http(ME, "g.example.com"))
    assert changes.settled and changes.rewrite == (Claim("g.example.com", ME),)
    assert stands(None, Claim(HOST, ME)).rewrite == (http(ME),), "an earlier operator did not say so"


def test_a_reservation_is_of_the_host_name_and_the_served_name() -> None:
    former = {"reserved": "720h", "version": "v", "released": "2026-11-22T12:00:00+00:00"}
    assert stands(None, http(BESIDE, **former)).free == (HOST,)
    assert told(stands(None, http(BESIDE), http("audit/digits/u-0", **former)))[0] == "NameReserved"
    assert told(stands(None, http(ELSEWHERE, **former)))[0] == "NameReserved", "he has it back at once"


def test_a_route_of_another_that_has_yet_to_claim_the_name_is_no_claim_to_share() -> None:
    served = (("ml/embeddings", HOST), ("ml/late", HOST))
    assert "ml/late" in told(stands(None, http(BESIDE), served=served))[1]
    assert stands(None, http(BESIDE), served=served[:1]).free == (HOST,)


def test_so_many_models_share_a_name_and_no_more() -> None:
    crowd = [http(f"ml/m-{i}/u-{i}") for i in range(MAX_SHARING)]
    assert "256 models share it, and no more may" in told(stands(None, *crowd))[1]
    assert stands(None, *crowd[1:], http(ME)).settled


def test_a_foreign_route_of_the_servers_paths_takes_nothing_from_a_guest() -> None:
    health = foreign(
        route(HOST, rules=[{"matches": [{"path": {"type": "Exact", "value": "/v2/health/ready"}}]}])
    )
    assert stands(None, http(BESIDE), foreign=health).free == (HOST,)
    assert told(stands(foreign=health))[0] == "HostnameTaken"
