"""Behind Envoy no request is lost while clusters come and go: every write changes either which
clusters there are or where requests go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modelrollout.api.v1alpha1 import Rollout, Traffic
from modelrollout.resources.common import Owner
from modelrollout.rollout.snapshot import Split
from modelrollout.testing import builders as b
from modelrollout.traffic.gateway_api.extras import Extras
from modelrollout.traffic.gateway_api.router import GatewayRouter, weights
from modelrollout.traffic.gateway_api.routes import NO_CHANGE
from modelrollout.traffic.gateway_api.staging import WHOLE, StagedRoutes, next_stage

Object = dict[str, Any]
OWNER = Owner("uid", "digits", "ml", "digits")
SPEC = Traffic.model_validate(
    {"gateway": {"name": "public", "namespace": "gateways"}, "http": {"hostnames": ["digits.x"]}}
)
TEST = Rollout.model_validate({"abTest": {"headers": [{"name": "x-beta", "value": "1"}]}})
STABLE: Split = (("v1", 100),)


def route(split: Split, *positions: str, matched: str | None = None) -> Object:
    router = GatewayRouter("digits", SPEC, TEST if matched else None, matched, positions=positions)
    [made] = router.children(OWNER, split)
    return made


def backends(made: Object, rule: int = 0) -> list[tuple[str, int]]:
    return [(ref["name"], ref["weight"]) for ref in made["spec"]["rules"][rule]["backendRefs"]]


def stages(live: Object, desired: Object) -> list[Object]:
    """All that is written, where the gateway accepts each at once."""
    written: list[Object] = []
    while (following := next_stage(desired, live, accepted=True)) != live:
        written.append(following)
        live = following
        assert len(written) < 9, "it never ends"
    assert live == desired
    return written


def clusters(made: Object) -> set[tuple[int, int]]:
    """Positions of backends that Envoy Gateway makes a cluster for."""
    return {
        (i, m)
        for i, rule in enumerate(made["spec"]["rules"])
        for m, ref in enumerate(rule["backendRefs"])
        if ref["weight"] > 0
    }


def loaded(made: Object) -> set[tuple[int, int]]:
    """Those that get requests."""
    return {
        (i, m)
        for i, rule in enumerate(made["spec"]["rules"])
        for m, ref in enumerate(rule["backendRefs"])
        if ref["weight"] > 1
        and not all("is not in use" in str(match.get("headers")) for match in rule["matches"])
    }


AT = ("v1", "v2")
CHANGES = {
    "a canary begins": (route(STABLE, *AT), route((("v1", 95), ("v2", 5)), *AT)),
    "a canary goes on": (route((("v1", 95), ("v2", 5)), *AT), route((("v1", 50), ("v2", 50)), *AT)),
    "a canary is rolled back": (route((("v1", 50), ("v2", 50)), *AT), route(STABLE, *AT)),
    "all at once": (route(STABLE, *AT), route((("v2", 100),), *AT)),
    "the promoted one moves to the first position": (
        route((("v2", 100),), *AT),
        route((("v2", 100),), "v2"),
    ),
    "another revision takes the only position": (route(STABLE, "v1"), route((("v2", 100),), "v2")),
    "another canary follows at once": (
        route((("v1", 95), ("v2", 5)), *AT),
        route((("v1", 95), ("v3", 5)), "v1", "v3"),
    ),
    "a canary of the promoted one begins before that has moved": (
        route((("v2", 100),), *AT),
        route((("v2", 95), ("v3", 5)), "v2", "v3"),
    ),
    "a test begins": (route(STABLE, *AT), route(STABLE, *AT, matched="v2")),
    "a test ends": (route(STABLE, *AT, matched="v2"), route(STABLE, *AT)),
    "a test is promoted": (route(STABLE, *AT, matched="v2"), route((("v2", 100),), *AT)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_cluster_comes_or_goes_while_it_has_requests(change: str) -> None:
    live, desired = CHANGES[change]
    for following in stages(live, desired):
        came, went = clusters(following) - clusters(live), clusters(live) - clusters(following)
        assert not came & loaded(following), f"{backends(live)} -> {backends(following)}"
        assert not went & loaded(live), f"{backends(live)} -> {backends(following)}"
        assert_none_changes(live, following)
        live = following


def test_a_canary_is_first_announced_by_a_share_that_is_worth_no_request() -> None:
    live, desired = CHANGES["a canary begins"]
    [announced, final] = stages(live, desired)
    assert backends(announced) == [("v1", WHOLE - 1), ("v2", 1)] and final == desired


def test_a_change_of_weights_alone_is_one_write() -> None:
    assert len(stages(*CHANGES["a canary goes on"])) == 1


def test_the_promoted_revision_has_both_positions_for_a_moment() -> None:
    moved = stages(*CHANGES["the promoted one moves to the first position"])
    assert [backends(r) for r in moved] == [
        [("v2", 1), ("v2", WHOLE - 1)],
        [("v2", WHOLE - 1), ("v2", 1)],
        [("v2", 100)],
    ]


def test_a_further_position_stands_in_for_one_that_gets_another_service() -> None:
    """Under requests its cluster would have the endpoints of the one before for a moment."""
    assert [backends(r) for r in stages(*CHANGES["another revision takes the only position"])] == [
        [("v1", WHOLE - 1), ("v2", 1)],
        [("v1", 1), ("v2", WHOLE - 1)],
        [("v1", 0), ("v2", 100)],
        [("v2", 1), ("v2", WHOLE - 1)],
        [("v2", WHOLE - 1), ("v2", 1)],
        [("v2", 100)],
    ]


def test_a_position_that_was_only_announced_is_free_for_another_without_a_detour() -> None:
    live, begun = CHANGES["a canary begins"]
    announced = next_stage(begun, live, accepted=True)
    assert [backends(r) for r in stages(announced, CHANGES["another canary follows at once"][1])] == [
        [("v1", WHOLE), ("v2", 0)],
        [("v1", WHOLE - 1), ("v3", 1)],
        [("v1", 95), ("v3", 5)],
    ]


def test_a_share_that_the_gateway_refuses_is_waited_for_no_longer() -> None:
    """Its Service is gone, and so the gateway never accepts the route that names it."""
    live, begun = CHANGES["a canary begins"]
    announced = next_stage(begun, live, accepted=True)
    assert next_stage(live, announced, accepted=False, refused=True) == live
    at_once = next_stage(begun, announced, accepted=False, refused=True)
    assert at_once == announced, "what is wanted is not there yet"


@pytest.mark.parametrize("change", CHANGES)
def test_a_stage_waits_until_the_gateway_has_accepted_the_one_before(change: str) -> None:
    live, desired = CHANGES[change]
    for following in stages(live, desired)[:-1]:
        assert next_stage(desired, following, accepted=False) == following
        live = following


def test_a_rollback_does_not_wait_for_the_announcement_of_a_canary() -> None:
    live, begun = CHANGES["a canary begins"]
    announced = next_stage(begun, live, accepted=True)
    back = next_stage(live, announced, accepted=False)
    assert backends(back) == [("v1", WHOLE - 1), ("v2", 1)], "it may have been taken up meanwhile"
    assert next_stage(live, announced, accepted=True) == live


def test_whose_test_is_promoted_is_not_sent_back_meanwhile() -> None:
    live, desired = CHANGES["a test is promoted"]
    for following in stages(live, desired):
        test = following["spec"]["rules"][1:]
        moved = backends(following) == [("v1", 0), ("v2", 100)]
        assert moved or test == live["spec"]["rules"][1:], following


def test_the_rule_for_headers_comes_after_the_one_that_is_always_there() -> None:
    [_, test] = route(STABLE, *AT, matched="v2")["spec"]["rules"]
    assert all(match["headers"] for match in test["matches"])


def plain(split: Split = STABLE, *rules: Object) -> Object:
    """A route whose rules have one cluster each, as a person writes them."""
    [made] = GatewayRouter("digits", SPEC).children(OWNER, split)
    return made | {"spec": made["spec"] | {"rules": [*made["spec"]["rules"], *rules]}}


def of_envoy(made: Object) -> dict[str, bool]:
    """Names of clusters that Envoy Gateway makes (ir.RouteDestination.NeedsClusterPerSetting), and
    whether they get requests.
    """
    named: dict[str, bool] = {}
    for i, rule in enumerate(made["spec"]["rules"]):
        refs = {m: ref for m, ref in enumerate(rule["backendRefs"]) if ref["weight"] > 0}
        used = not all("is not in use" in str(match.get("headers")) for match in rule["matches"])
        if any(ref.get("filters") for ref in refs.values()):
            named |= {f"rule/{i}/backend/{m}": used and ref["weight"] > 1 for m, ref in refs.items()}
        elif refs:
            named[f"rule/{i}"] = used
    return named


FURTHER = {
    "matches": [{"path": {"type": "Exact", "value": "/v2/models/digits"}}],
    "backendRefs": [{"group": "", "kind": "Service", "name": "v1", "port": 8000, "weight": 100}],
}


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        (plain(), route((("v1", 95), ("v2", 5)), *AT)),
        (plain((("v1", 50), ("v2", 50))), route(STABLE, *AT)),
        (plain(STABLE, FURTHER), route((("v1", 50), ("v2", 50)), *AT)),
        (plain(), route(STABLE, *AT, matched="v2")),
    ],
    ids=["edited in a canary", "written for another gateway", "with more rules", "with fewer"],
)
def test_rules_that_get_clusters_by_position_take_a_detour(live: Object, desired: Object) -> None:
    for following in stages(live, desired):
        before, after = of_envoy(live), of_envoy(following)
        in_use = [before[n] for n in before.keys() - after.keys()] + [
            after[n] for n in after.keys() - before.keys()
        ]
        assert not any(in_use), f"{before} -> {after}"
        assert any(after.values())
        live = following


def test_a_stage_of_the_detour_waits_too_and_a_mirror_comes_once() -> None:
    """Every rule that is written gets the mirror, so what is live must not bring one along."""
    live, desired = plain(), route(STABLE, *AT)
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "x", "port": 1}}}
    for following in stages(live, desired)[:-1]:
        rules = [rule | {"filters": [mirror]} for rule in following["spec"]["rules"]]
        mirrored = following | {"spec": following["spec"] | {"rules": rules}}
        again = next_stage(desired, mirrored, accepted=False)
        assert of_envoy(again) == of_envoy(following) and "RequestMirror" not in str(again)


@pytest.mark.parametrize(
    "backend",
    [
        {"kind": "TraefikService", "group": "traefik.io"},
        {"namespace": "shop"},
        {"name": "v1", "filters": [{"type": "URLRewrite"}], "weight": 0},
    ],
)
def test_what_the_operator_may_not_write_is_replaced_at_once(backend: Object) -> None:
    refs = [*FURTHER["backendRefs"], {"name": "s", "weight": 1} | backend]
    desired = route(STABLE, *AT)
    assert next_stage(desired, plain(STABLE, FURTHER | {"backendRefs": refs}), accepted=True) == desired


@pytest.mark.parametrize(
    "change",
    [
        lambda refs: [refs[0] | {"kind": "TraefikService", "group": "traefik.io"}, refs[1]],
        lambda refs: [refs[0] | {"namespace": "shop"}, refs[1]],
        lambda refs: [refs[0] | {"name": f"x{m}"} for m in range(16)],
    ],
    ids=["another kind", "another namespace", "too many"],
)
def test_positions_that_cannot_stand_beside_another_are_replaced_at_once(
    change: Callable[[list[Object]], list[Object]],
) -> None:
    live, desired = route(STABLE, *AT), route((("v3", 100),), "v3")
    [rule] = live["spec"]["rules"]
    rule["backendRefs"] = change(rule["backendRefs"])
    assert next_stage(desired, live, accepted=True) == desired


def test_what_the_gateway_refuses_or_would_not_fit_is_replaced_at_once() -> None:
    desired = route(STABLE, *AT)
    assert next_stage(desired, plain(), accepted=False, refused=True) == desired
    assert next_stage(desired, plain(STABLE, *[FURTHER] * 8), accepted=True) == desired


def test_the_live_split_of_a_stage_is_that_of_the_requests() -> None:
    announced = next_stage(route((("v1", 5), ("v2", 95)), *AT), route(STABLE, *AT), accepted=True)
    assert weights(announced) == {"v1": 100}
    live, moved = CHANGES["the promoted one moves to the first position"]
    assert weights(next_stage(moved, live, accepted=True)) == {"v2": 100}
    assert weights(route(STABLE, *AT, matched="v2")) == {"v1": 100}, "without the test's headers"


def test_only_the_last_stage_counts_as_programmed() -> None:
    inner = GatewayRouter("digits", SPEC, positions=AT)
    live: dict[tuple[str, str], Object] = {}
    for split in (STABLE, (("v1", 95), ("v2", 5))):
        for last in range(5):
            router = StagedRoutes(inner, live, None)
            [following] = router.children(OWNER, split)
            if router.programmed(split, live, {}).programmed:
                break
            following["metadata"]["generation"] = last
            following["status"] = b.answered(following, b.ACCEPTED)
            live = {("HTTPRoute", "digits"): following}
        assert last == (1 if split == STABLE else 2)
    assert backends(live["HTTPRoute", "digits"]) == [("v1", 95), ("v2", 5)]


def test_a_rule_that_leaves_keeps_its_filters_and_no_mirror() -> None:
    """Without the login in front of them its requests would be let in for one stage."""
    with_test = route(STABLE, "v1", "v2", matched="v2")
    login = {
        "type": "ExtensionRef",
        "extensionRef": {"group": "traefik.io", "kind": "Middleware", "name": "x"},
    }
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "x", "port": 1}}}
    for rule in with_test["spec"]["rules"]:
        rule |= {"filters": [login, mirror], "timeouts": {"request": "30s"}}
    desired = route((("v1", 50), ("v2", 50)), "v1", "v2")
    leaving = next_stage(desired, with_test, accepted=True)["spec"]["rules"][1]
    assert (leaving["filters"], leaving["timeouts"]) == ([login], {"request": "30s"})


def test_paths_that_get_a_rule_of_their_own_are_always_in_use() -> None:
    """Those of streams, which have timeouts of their own (``extras``)."""
    live = route(STABLE, "v1", "v2")
    timed = GatewayRouter("digits", SPEC, positions=("v1", "v2"), extras=Extras({}, {"request": "0s"}))
    [desired] = timed.children(OWNER, STABLE)
    written = stages(live, desired)
    assert len(written) == 2
    for made in (live, *written):
        in_use = [
            m["path"]["value"]
            for rule in made["spec"]["rules"]
            for m in rule["matches"]
            if not m.get("headers")
        ]
        assert "/v2/models/digits/generate_stream" in in_use and "/v2/models/digits/infer" in in_use


Wish = tuple[list[str], Split, str | None, bool]


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    """What the router may want: positions, weights, the revision of a test, and whether streams
    have a rule of their own. Three positions are one more than it ever has.
    """
    at = draw(st.lists(st.sampled_from(["v1", "v2", "v3", "v4"]), min_size=1, max_size=3, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(at) - 1, max_size=len(at) - 1)))
    parts = [upper - lower for lower, upper in zip([0, *cuts], [*cuts, 100], strict=True)]
    split = tuple((name, weight) for name, weight in zip(at, parts, strict=True) if weight)
    return at, split, draw(st.none() | st.sampled_from(at)), draw(st.booleans())


def wished(wish: Wish) -> Object:
    at, split, matched, streamed = wish
    extras = Extras({}, {"request": "0s"} if streamed else {})
    rollout = TEST if matched else None
    [made] = GatewayRouter("digits", SPEC, rollout, matched, positions=at, extras=extras).children(
        OWNER, split
    )
    return made


def of_all_clients(made: Object, path: str) -> set[str]:
    """Services that get requests for this path without a test's headers."""
    first = next(
        rule
        for rule in made["spec"]["rules"]
        for m in rule["matches"]
        if m["path"]["value"] == path and not m.get("headers")
    )
    return {ref["name"] for ref in first["backendRefs"] if ref["weight"] > 1}


INFER, STREAM = "/v2/models/digits/infer", "/v2/models/digits/generate_stream"


def test_streams_that_get_the_place_of_a_tests_rule_never_go_to_its_revision() -> None:
    """Timeouts that come in the same edit as another model end the test and give streams a rule."""
    live, desired = wished((["v1", "v2"], STABLE, "v2", False)), wished((["v1"], STABLE, None, True))
    written = stages(live, desired)
    assert [of_all_clients(made, STREAM) for made in written] == [{"v1"}] * len(written)
    tested = [made["spec"]["rules"][1] for made in written]
    assert "is not in use" in str(tested[0]["matches"]), "its requests go to stable at once"


@pytest.mark.parametrize("written_before", range(5))
def test_a_test_that_begins_in_a_detour_gets_no_requests_without_its_headers(written_before: int) -> None:
    live, canary = plain(), route((("v1", 50), ("v3", 50)), "v1", "v3")
    for _ in range(written_before):
        live = next_stage(canary, live, accepted=True)
    written = stages(live, route(STABLE, *AT, matched="v2"))
    assert not any("v2" in of_all_clients(made, INFER) for made in written)


def test_a_backend_without_a_weight_has_that_of_the_gateway_api() -> None:
    backend = {"name": "v1", "port": 8000, "filters": [NO_CHANGE]}
    stages(plain(STABLE, FURTHER | {"backendRefs": [backend]}), route(STABLE, *AT))


def services(made: Object) -> dict[tuple[int, int], tuple[str, int]]:
    """By position: the Service and its weight, of rules that have clusters by position."""
    return {
        (i, m): (ref["name"], ref["weight"])
        for i, rule in enumerate(made["spec"]["rules"])
        if any(ref.get("filters") for ref in rule["backendRefs"])
        for m, ref in enumerate(rule["backendRefs"])
    }


@given(
    st.one_of(wishes().map(wished), st.sampled_from([plain(), plain((("v1", 50), ("v2", 50)))])),
    st.lists(st.tuples(wishes(), st.lists(st.booleans(), max_size=6)), min_size=1, max_size=4),
)
def test_whatever_is_wanted_meanwhile_no_cluster_in_use_comes_goes_or_changes(
    live: Object, changes: list[tuple[Wish, list[bool]]]
) -> None:
    """Each answer says whether the gateway has accepted what was written by then. If not, it may
    carry any route since the last one that it has accepted. In the end it accepts all.
    """
    desired, carried, accepted = live, [live], True
    for n, (change, answers) in enumerate(changes, 1):
        desired = wished(change)
        for answer in answers + [True] * (18 if n == len(changes) else 0):
            following = next_stage(desired, live, accepted=accepted)
            if following != live:
                assert_none_changes(live, following)
                for rule in following["spec"]["rules"]:
                    weights_of_it = sum(ref["weight"] for ref in rule["backendRefs"])
                    assert weights_of_it in (100, WHOLE) or "is not in use" in str(rule["matches"])
                for before in map(of_envoy, carried):
                    after = of_envoy(following)
                    assert not any(after[name] for name in after.keys() - before.keys()), (before, after)
                    assert not any(before[name] for name in before.keys() - after.keys()), (before, after)
                live, accepted = following, False
                carried.append(live)
            if answer:
                carried, accepted = [live], True
    assert live == desired


def assert_none_changes(live: Object, following: Object) -> None:
    """No position that has a cluster gets another Service, not even together with the weight 0."""
    before, after = services(live), services(following)
    changed = [at for at in before.keys() & after.keys() if before[at][0] != after[at][0]]
    assert not any(before[at][1] for at in changed), f"{before} -> {after}"
