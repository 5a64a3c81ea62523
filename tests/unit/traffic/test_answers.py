"""Whose answer to a route counts: that of the Gateway in its spec, by its class's controller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.problem import Problem
from modelrollout.testing import builders as b
from modelrollout.traffic.gateway_api.answers import carried
from modelrollout.traffic.gateway_api.gateway import unread_gateway
from modelrollout.traffic.gateway_facts import GatewayFacts, Listener, Statement

OWN = {"name": "public", "namespace": "gateways"}
REFUSED = {"Accepted": "False", "ResolvedRefs": "True"}
FACTS = GatewayFacts("gateways/public", "shiny", b.CONTROLLER, None, (Listener("http"),))
UNREAD = unread_gateway("gateways", "public")


def answer(conditions: dict[str, str], parent: dict[str, Any] = OWN, controller: str = b.CONTROLLER) -> Any:
    return b.answered(bare([parent]), conditions, controller)["parents"][0]


def bare(parents: list[Any]) -> dict[str, Any]:
    metadata = {"name": "digits", "namespace": "ml", "generation": 4}
    return {
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {"parentRefs": parents, "hostnames": ["a.x"]},
    }


def route(*answers: Any, parents: list[Any] | None = None) -> dict[str, Any]:
    """Generation 4 of a route with these entries in ``status.parents``."""
    return bare(parents or [OWN]) | {"status": {"parents": list(answers)}}


FOREIGN = [
    {"parent": {"name": "former", "namespace": "gateways"}},
    {"parent": {"name": "public", "namespace": "ml"}},
    {"parent": {"name": "public"}},
    {"parent": OWN | {"kind": "Service", "group": ""}},
    {"parent": OWN | {"sectionName": "https"}},
    {"parent": OWN | {"port": 8443}},
    {"controller": "example.org/another"},
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_the_answer_of_a_foreign_or_former_parent_counts_for_nothing(foreign: dict[str, Any]) -> None:
    """A foreign False stopped a canary, and a foreign True was Ready with 404."""
    no, yes = answer(REFUSED, **foreign), answer(b.ACCEPTED, **foreign)
    for entries in ([answer(b.ACCEPTED), no], [no, answer(b.ACCEPTED)]):
        assert carried(route(*entries), FACTS).programmed
    for entries in ([answer(REFUSED), yes], [yes, answer(REFUSED)]):
        refused = carried(route(*entries), FACTS)
        assert refused.problem is not None and refused.problem.reason == "RouteNotAccepted"
    for entry in (no, yes):
        silent = carried(route(entry), FACTS)
        assert not silent.programmed and silent.problem is None


def test_defaults_of_a_parent_are_filled_in() -> None:
    written_out = {"group": "gateway.networking.k8s.io", "kind": "Gateway"} | OWN
    assert carried(route(answer(b.ACCEPTED, written_out)), FACTS).programmed
    own = GatewayFacts("ml/public", "shiny", b.CONTROLLER)
    assert carried(
        route(answer(b.ACCEPTED, {"name": "public", "namespace": "ml"}), parents=[{"name": "public"}]), own
    ).programmed


@pytest.mark.parametrize("facts", [None, UNREAD])
def test_where_the_controller_is_unknown_all_that_answer_have_to_agree(facts: GatewayFacts | None) -> None:
    another = "example.org/another"
    assert carried(route(answer(b.ACCEPTED)), facts).programmed
    refused = carried(route(answer(REFUSED), answer(REFUSED, controller=another)), facts)
    assert refused.problem is not None
    disputed = carried(route(answer(b.ACCEPTED), answer(REFUSED, controller=another)), facts)
    assert not disputed.programmed and disputed.problem is None
    assert "several controllers answer" in disputed.message and "gatewayclasses" in disputed.message


def test_all_parents_of_a_route_have_to_carry_it() -> None:
    second = {"name": "second", "namespace": "gateways"}
    both = [OWN, second]
    assert not carried(route(answer(b.ACCEPTED), parents=both), FACTS).programmed
    assert carried(route(answer(b.ACCEPTED), answer(b.ACCEPTED, second), parents=both), FACTS).programmed


def test_a_refusal_names_gateway_route_and_host_name() -> None:
    refused = carried(route(answer(REFUSED)), FACTS)
    assert refused.message == "Gateway gateways/public refuses HTTPRoute digits (a.x): Stated: as it is"


def test_a_gateway_that_is_gone_carries_nothing_whatever_it_once_answered() -> None:
    gone = replace(FACTS, problem=Problem("GatewayMissing", "it does not exist"))
    assert carried(route(answer(b.ACCEPTED)), gone).problem == gone.problem
    elsewhere = route(answer(b.ACCEPTED, {"name": "x"}), parents=[{"name": "x"}])
    assert carried(elsewhere, gone).programmed, "the route has another parent"


def test_a_route_that_no_listener_takes_is_named_before_anyone_answers() -> None:
    others = replace(FACTS, listeners=(Listener("theirs", "theirs.example.com"),))
    traffic = carried(route(), others)
    assert traffic.problem is not None and traffic.problem.reason == "NoMatchingListener"
    assert "HTTPRoute digits (a.x) of namespace ml" in traffic.message and "theirs" not in traffic.message
    assert carried(route(answer(b.ACCEPTED)), others).programmed, "the controller knows better"
    assert carried(route(), UNREAD).problem is None, "nothing is known of its listeners"


def test_the_listener_has_to_be_programmed_too() -> None:
    no, later = Statement("False", "Invalid", "of team-b"), Statement("Unknown", "Pending", "")
    accepted = route(answer(b.ACCEPTED))
    broken = carried(accepted, replace(FACTS, listeners=(Listener("http", programmed=no),)))
    assert broken.problem is not None and broken.problem.reason == "GatewayNotProgrammed"
    assert "listener http of Gateway gateways/public is not programmed: Invalid" in broken.message
    assert "team-b" not in broken.message
    waiting = carried(accepted, replace(FACTS, listeners=(Listener("http", programmed=later),)))
    assert not waiting.programmed and waiting.problem is None
    one_of_two = (Listener("http", programmed=no), Listener("two", programmed=Statement("True", "", "")))
    assert carried(accepted, replace(FACTS, listeners=one_of_two)).programmed


def test_what_is_not_known_yet_is_no_problem() -> None:
    waiting = carried(route(answer(b.ACCEPTED)), replace(FACTS, pending="not programmed yet"))
    assert (waiting.programmed, waiting.problem, waiting.message) == (False, None, "not programmed yet")
    assert "has not accepted generation 4" in carried(route(), FACTS).message


def test_a_listener_that_spec_names_is_the_one_that_has_to_take_the_route() -> None:
    section = OWN | {"sectionName": "https"}
    no = Statement("False", "Invalid", "")
    listeners = (Listener("http"), Listener("https", programmed=no))
    facts = replace(FACTS, listeners=listeners)
    broken = carried(route(answer(b.ACCEPTED, section), parents=[section]), facts)
    assert broken.problem is not None and "listener https of Gateway gateways/public" in broken.message
    other = OWN | {"sectionName": "elsewhere"}
    unknown = carried(route(parents=[other]), facts)
    assert unknown.problem is not None and unknown.problem.reason == "NoMatchingListener"
    assert unknown.message.startswith("no listener elsewhere of Gateway gateways/public takes HTTPRoute")


def test_of_several_gateways_each_answers_by_its_own_controller_and_listeners() -> None:
    second = {"name": "second", "namespace": "gateways"}
    gone = Problem(
        "GatewayMissing", "spec.traffic.furtherGateways[0]: Gateway gateways/second does not exist"
    )
    both = route(answer(b.ACCEPTED), answer(b.ACCEPTED, second), parents=[OWN, second])
    further = GatewayFacts("gateways/second", "shiny", b.CONTROLLER, None, (Listener("http"),))
    assert carried(both, replace(FACTS, further=(further,))).programmed
    missing = carried(both, replace(FACTS, further=(replace(further, problem=gone),)))
    assert missing.problem == gone
    foreign = replace(further, controller="example.org/another")
    assert not carried(both, replace(FACTS, further=(foreign,))).programmed
