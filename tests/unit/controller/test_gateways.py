"""What is known of Gateways: from the watch, else read by name; a failure is no statement."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.controller.lookups.gateways import Gateways
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.errors import Forbidden, KubeError, NotFound, Unavailable
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, MODEL_DEPLOYMENT, Resource
from modelrollout.kube.objects import Object
from modelrollout.traffic.gateway_api.gateway import missing_gateway, unread_gateway
from modelrollout.traffic.gateway_facts import GatewayFacts

NOT_THERE = NotFound(404, "NotFound", "no")
FORBIDDEN = Forbidden(403, "Forbidden", "may not get")


def of_gateway(gateway: Any, name: str = "digits") -> Object:
    return {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"namespace": "ml", "name": name, "uid": name, "resourceVersion": "1"},
        "spec": {"traffic": {"gateway": gateway}},
    }


HERE = of_gateway({"name": "public"}, "here")
THERE = of_gateway({"name": "public", "namespace": "gateways"})


def gateway(namespace: str = "gateways", version: int = 1, takes: str = "All", **status: Any) -> Object:
    allowed = {"namespaces": {"from": takes}}
    return {
        "apiVersion": GATEWAY.api_version,
        "kind": "Gateway",
        "metadata": {"namespace": namespace, "name": "public", "uid": "g", "resourceVersion": str(version)},
        "spec": {
            "gatewayClassName": "shiny",
            "listeners": [{"name": "http", "protocol": "HTTP", "allowedRoutes": allowed}],
        },
        "status": status,
    }


CLASS = {
    "apiVersion": GATEWAY_CLASS.api_version,
    "kind": "GatewayClass",
    "metadata": {"name": "shiny", "uid": "c", "resourceVersion": "1"},
    "spec": {"controllerName": "example.com/gateway"},
    "status": {"supportedFeatures": [{"name": "HTTPRouteRequestMirror"}, "GRPCRoute"]},
}


class Bench:
    """The look-up, its cache, and an API server of two objects."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.answers: dict[str, Object | KubeError] = {"Gateway": gateway(), "GatewayClass": CLASS}
        self.kinds = True
        self.woken: list[Key] = []
        self.cache = ObjectCache()
        for deployment in (HERE, THERE):
            self.cache.observe(MODEL_DEPLOYMENT, {"type": "ADDED", "object": deployment})
        self.gateways = Gateways(self, self.cache, lambda key, _: self.woken.append(key))

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        self.reads.append(f"{resource.kind} {namespace} {name}")
        answer = self.answers[resource.kind]
        if isinstance(answer, KubeError):
            raise answer
        return answer

    async def has_kind(self, resource: Resource) -> bool:
        return self.kinds

    def watch(self, resource: Resource, type_: str, obj: Object) -> None:
        self.cache.observe(resource, {"type": type_, "object": obj})


async def test_what_is_watched_is_not_read() -> None:
    bench = Bench()
    bench.watch(GATEWAY, "ADDED", gateway())
    bench.watch(GATEWAY_CLASS, "ADDED", CLASS)
    facts = await bench.gateways.of(THERE)
    assert facts is not None and bench.reads == []
    assert (facts.gateway, facts.gateway_class, facts.controller, facts.features) == (
        "gateways/public",
        "shiny",
        "example.com/gateway",
        frozenset({"HTTPRouteRequestMirror", "GRPCRoute"}),
    )


async def test_what_is_not_watched_is_read_by_name_and_read_again() -> None:
    bench = Bench()
    first = await bench.gateways.of(THERE)
    assert await bench.gateways.of(THERE) == first and first is not None
    assert bench.reads == ["Gateway gateways public", "GatewayClass None shiny"]
    await bench.gateways.refresh()
    assert bench.woken == [] and len(bench.reads) == 4, "nothing has changed"
    no = [{"type": "Programmed", "status": "False", "reason": "Why"}]
    bench.answers["Gateway"] = gateway(version=2, conditions=no)
    await bench.gateways.refresh()
    assert bench.woken == [("ml", "digits")], "only those whose spec names it"
    facts = await bench.gateways.of(THERE)
    assert facts is not None and facts.problem is not None
    assert facts.problem.reason == "GatewayNotProgrammed"


async def test_a_class_concerns_all_that_name_a_gateway() -> None:
    bench = Bench()
    await bench.gateways.of(THERE)
    bench.answers["GatewayClass"] = NOT_THERE
    await bench.gateways.refresh()
    assert sorted(bench.woken) == [("ml", "digits"), ("ml", "here")]
    facts = await bench.gateways.of(THERE)
    assert facts is not None and facts.problem is not None and "does not exist" in facts.problem.message


async def test_only_the_api_server_says_that_a_gateway_does_not_exist() -> None:
    bench = Bench()
    bench.answers["Gateway"] = NOT_THERE
    assert await bench.gateways.of(THERE) == missing_gateway("gateways", "public", own=False)
    own = await bench.gateways.of(HERE)
    assert own is not None and own.problem is not None
    assert own.problem.message.startswith("spec.traffic.gateway: Gateway ml/public does not exist;")
    bench.watch(GATEWAY, "ADDED", gateway())
    facts = await bench.gateways.of(THERE)
    assert facts is not None and facts.problem is None, "the watch is faster than the next read"


async def test_a_cluster_without_the_gateway_api_has_no_missing_gateways() -> None:
    bench = Bench()
    bench.answers["Gateway"], bench.kinds = NOT_THERE, False
    assert await bench.gateways.of(HERE) == unread_gateway("ml", "public")


@pytest.mark.parametrize("error", [FORBIDDEN, Unavailable(0, "Timeout", "no answer")])
async def test_what_cannot_be_read_says_nothing(error: KubeError) -> None:
    bench = Bench()
    bench.answers["Gateway"] = error
    assert await bench.gateways.of(THERE) == unread_gateway("gateways", "public")
    bench.answers["Gateway"] = gateway()
    await bench.gateways.refresh()
    assert bench.woken == [("ml", "digits")]
    bench.answers["GatewayClass"] = error
    facts = await bench.gateways.of(THERE)
    assert facts is not None and facts.listeners and (facts.controller, facts.problem) == (None, None)


async def test_an_api_server_that_does_not_answer_changes_nothing_and_a_right_that_is_gone_does() -> None:
    bench = Bench()
    known = await bench.gateways.of(THERE)
    bench.answers["Gateway"] = Unavailable(0, "Timeout", "no answer")
    await bench.gateways.refresh()
    assert await bench.gateways.of(THERE) == known and bench.woken == []
    bench.answers["Gateway"] = FORBIDDEN
    await bench.gateways.refresh()
    assert await bench.gateways.of(THERE) == unread_gateway("gateways", "public")
    assert bench.woken == [("ml", "digits")]


async def test_what_no_spec_names_any_more_is_read_no_more() -> None:
    bench = Bench()
    await bench.gateways.of(THERE)
    for deployment in (HERE, THERE):
        bench.watch(MODEL_DEPLOYMENT, "DELETED", deployment)
    bench.reads.clear()
    for _ in range(2):
        await bench.gateways.refresh()
    assert bench.reads == []


async def test_what_no_spec_names_any_more_is_forgotten() -> None:
    """Or each Gateway that ever was would stay in memory."""
    bench = Bench()
    no = [{"type": "Programmed", "status": "False", "reason": "Why"}]
    for namespace in ("ml", "gateways"):
        bench.watch(GATEWAY, "ADDED", gateway(namespace, conditions=no))
    for deployment in (HERE, THERE):
        await bench.gateways.of(deployment)

    def places() -> set[str]:
        return {at[0] for at in (*bench.gateways._seen, *bench.gateways._logged)}

    await bench.gateways.refresh()
    assert places() == {"ml", "gateways"}, "both are named"
    bench.watch(MODEL_DEPLOYMENT, "DELETED", THERE)
    await bench.gateways.refresh()
    assert places() == {"ml"}
    bench.watch(MODEL_DEPLOYMENT, "DELETED", HERE)
    await bench.gateways.refresh()
    assert places() == set()


async def test_without_a_gateway_nothing_is_asked() -> None:
    bench = Bench()
    for deployment in (None, {"metadata": {"namespace": "ml"}, "spec": {}}, of_gateway("odd")):
        assert await bench.gateways.of(deployment) is None
    assert bench.reads == []


async def test_a_gateway_that_is_not_for_him_is_as_one_that_is_not_there() -> None:
    same, missing = Bench(), Bench()
    same.answers["Gateway"], missing.answers["Gateway"] = gateway(takes="Same"), NOT_THERE
    theirs, none = await same.gateways.of(THERE), await missing.gateways.of(THERE)
    assert isinstance(theirs, GatewayFacts) and isinstance(none, GatewayFacts)
    assert theirs.problem == none.problem is not None
    same.answers["Gateway"] = gateway("ml", takes="Same")
    own = await same.gateways.of(HERE)
    assert own is not None and own.problem is None, "its own namespace's"


async def test_the_log_says_once_what_a_tenant_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    no = [{"type": "Programmed", "status": "False", "reason": "Why", "message": "Secret team-b/tls"}]
    bench.answers["Gateway"] = gateway(conditions=no)
    for _ in range(3):
        facts = await bench.gateways.of(THERE)
        assert facts is not None and facts.problem is not None and "team-b" not in facts.problem.message
    assert [r.getMessage() for r in caplog.records if "team-b" in r.getMessage()] == [
        "Gateway gateways/public is not programmed: Why: Secret team-b/tls; ask who runs the gateway"
    ]


async def test_every_gateway_of_a_spec_is_known_and_wakes_who_names_it() -> None:
    bench, two = Bench(), of_gateway({"name": "public", "namespace": "gateways"}, "two")
    two["spec"]["traffic"]["furtherGateways"] = [{"name": "public", "sectionName": "https"}]
    bench.watch(MODEL_DEPLOYMENT, "ADDED", two)
    bench.watch(GATEWAY, "ADDED", gateway("ml"))
    facts = await bench.gateways.of(two)
    assert facts is not None and [f.gateway for f in (facts, *facts.further)] == [
        "gateways/public",
        "ml/public",
    ]
    assert facts.further[0].controller == "example.com/gateway"
    assert bench.cache.concerned(GATEWAY, gateway("ml")) == {("ml", "here"), ("ml", "two")}
    bench.answers["Gateway"] = NOT_THERE
    bench.watch(GATEWAY, "DELETED", gateway("ml"))
    gone = await bench.gateways.of(two)
    assert gone is not None and gone.further[0].problem is not None
    assert gone.further[0].problem.message.startswith("spec.traffic.furtherGateways[0]: Gateway ml/public")


@pytest.mark.parametrize("odd", [None, 1, "x", [None, 1, {"name": 1}, {"name": "a", "namespace": 1}]])
async def test_further_gateways_that_are_none_are_left_out(odd: Any) -> None:
    deployment = of_gateway({"name": "public"})
    deployment["spec"]["traffic"]["furtherGateways"] = odd
    facts = await Bench().gateways.of(deployment)
    assert facts is not None and facts.further == ()
