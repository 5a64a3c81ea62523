"""Gateways and edited routes on a real API server; the test is the controller of its own class."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from modelrollout.api import names
from modelrollout.controller.apply.actor import foreign_edit
from modelrollout.controller.intake import Intake
from modelrollout.controller.lookups.gateways import Gateways
from modelrollout.controller.unreadable import UnreadableObjects
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.events import Events
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, HTTP_ROUTE, MODEL_DEPLOYMENT, Resource
from modelrollout.kube.objects import Object
from modelrollout.kube.projection import project
from modelrollout.traffic.gateway_facts import GatewayFacts

pytestmark = pytest.mark.sandbox

NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)


@pytest_asyncio.fixture
async def place(kube: Kube) -> AsyncIterator[str]:
    """A namespace and a GatewayClass of one name."""
    name = f"gateways-{uuid.uuid4().hex[:8]}"
    await kube.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    of_class = {
        "apiVersion": GATEWAY_CLASS.api_version,
        "kind": GATEWAY_CLASS.kind,
        "metadata": {"name": name},
        "spec": {"controllerName": f"example.com/{name}"},
    }
    await kube.create(GATEWAY_CLASS, of_class)
    yield name
    await kube.delete(GATEWAY_CLASS, None, name)
    await kube.delete(NAMESPACE, None, name)


class Bench:
    """What the operator knows of the Gateway ``public`` of the namespace, by lists or by name."""

    def __init__(self, kube: Kube, place: str) -> None:
        self.kube, self.place, self.woken = kube, place, list[Key]()
        metadata = {"name": "m", "namespace": place, "uid": "u", "resourceVersion": "1"}
        self.deployment: Object = {
            "apiVersion": names.API_VERSION,
            "kind": MODEL_DEPLOYMENT.kind,
            "metadata": metadata,
            "spec": {"traffic": {"gateway": {"name": "public"}}},
        }
        self.cache = ObjectCache()
        self.cache.observe(MODEL_DEPLOYMENT, {"type": "ADDED", "object": self.deployment})
        self.gateways = Gateways(kube, self.cache, lambda key, _: self.woken.append(key))
        unread = UnreadableObjects(Events(kube, instance="test"), lambda: False)
        watched = [GATEWAY, GATEWAY_CLASS]
        self.intake = Intake(kube, self.cache, unread, watched, self.woken.append)

    async def listed(self) -> tuple[GatewayFacts, bool]:
        """The facts after another list, and whether that woke the ModelDeployment."""
        self.woken.clear()
        await self.intake.list(GATEWAY, None)
        await self.intake.list(GATEWAY_CLASS, None)
        facts = await self.gateways.of(self.deployment)
        assert facts is not None
        return facts, (self.place, "m") in self.woken

    async def create(self) -> Object:
        allowed = {"namespaces": {"from": "Same"}}
        listener = {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": allowed}
        return await self.kube.create(
            GATEWAY,
            {
                "apiVersion": GATEWAY.api_version,
                "kind": GATEWAY.kind,
                "metadata": {"name": "public", "namespace": self.place},
                "spec": {"gatewayClassName": self.place, "listeners": [listener]},
            },
        )

    async def state(self, truth: str) -> None:
        """The controller states it of the Gateway and its listener, for the present generation."""
        live = await self.kube.get(GATEWAY, self.place, "public")
        condition = {
            "type": "Programmed",
            "status": truth,
            "reason": "Stated",
            "message": "by the test",
            "observedGeneration": live["metadata"]["generation"],
            "lastTransitionTime": "2026-11-22T12:00:00Z",
        }
        listener = {"name": "http", "attachedRoutes": 3, "supportedKinds": [], "conditions": [condition]}
        status = {"conditions": [condition], "listeners": [listener]}
        await self.kube.replace_status(GATEWAY, {**live, "status": status})


async def test_a_gateway_from_its_creation_to_its_end(kube: Kube, place: str) -> None:
    bench = Bench(kube, place)
    facts, _ = await bench.listed()
    assert facts.problem is not None and facts.problem.reason == "GatewayMissing"
    made = await bench.create()
    facts, woken = await bench.listed()
    assert woken and facts.problem is None and facts.controller == f"example.com/{place}"
    assert facts.pending is not None, "by default the API server says that it waits for its controller"
    await bench.state("True")
    facts, woken = await bench.listed()
    assert woken and (facts.problem, facts.pending) == (None, None)
    assert facts.listeners is not None and facts.listeners[0].takes("HTTPRoute", ["a.example.com"])
    await kube.merge_patch(GATEWAY, place, "public", {"metadata": {"annotations": {"note": "x"}}})
    assert not (await bench.listed())[1], "noise"
    listeners = [dict(made["spec"]["listeners"][0], hostname="*.example.com")]
    await kube.merge_patch(GATEWAY, place, "public", {"spec": {"listeners": listeners}, "metadata": {}})
    facts, woken = await bench.listed()
    assert woken and facts.pending is not None and facts.problem is None, "of the former generation"
    await bench.state("False")
    facts, _ = await bench.listed()
    assert facts.problem is not None and "Stated: by the test" in facts.problem.message
    await kube.delete(GATEWAY, place, "public")
    facts, woken = await bench.listed()
    assert woken and facts.problem is not None and facts.problem.reason == "GatewayMissing"


async def test_without_a_watch_it_is_read_by_name(kube: Kube, place: str) -> None:
    bench = Bench(kube, place)
    await bench.create()
    await bench.state("True")
    facts = await bench.gateways.of(bench.deployment)
    assert facts is not None and (facts.problem, facts.pending) == (None, None)
    assert facts.controller == f"example.com/{place}"
    await bench.gateways.refresh()
    assert bench.woken == []
    await bench.state("False")
    await bench.gateways.refresh()
    assert bench.woken == [(place, "m")]
    facts = await bench.gateways.of(bench.deployment)
    assert facts is not None and facts.problem is not None
    assert facts.problem.reason == "GatewayNotProgrammed"


async def test_who_edited_a_route_is_known_until_it_is_put_back(kube: Kube, place: str) -> None:
    def route(weight: int) -> dict[str, Any]:
        refs = [
            {"name": "a", "port": 80, "weight": weight},
            {"name": "b", "port": 80, "weight": 100 - weight},
        ]
        return {
            "apiVersion": HTTP_ROUTE.api_version,
            "kind": HTTP_ROUTE.kind,
            "metadata": {"name": "r", "namespace": place, "labels": {names.LABEL_NAME: "m"}},
            "spec": {
                "parentRefs": [{"name": "public"}],
                "hostnames": ["a.example.com"],
                "rules": [{"backendRefs": refs}],
            },
        }

    async def edit_of(desired: Mapping[str, Any]) -> str | None:
        return foreign_edit(project(HTTP_ROUTE, await kube.get(HTTP_ROUTE, place, "r")), dict(desired))

    made = await kube.create(HTTP_ROUTE, route(100))
    uid = made["metadata"]["uid"]
    assert await edit_of(route(50)) is None, "a step of our own, after a create"
    await kube.apply(HTTP_ROUTE, route(50), uid=uid)
    assert await edit_of(route(25)) is None, "and after an apply"
    async with await Kube.connect(os.environ["MODELROLLOUT_KUBECONFIG"], None, component="x") as another:
        another._field_manager = "kubectl-edit"
        await another.merge_patch(
            HTTP_ROUTE, place, "r", {"metadata": {"annotations": {"note": "x"}}, "spec": route(90)["spec"]}
        )
    edit = await edit_of(route(50))
    assert edit is not None and edit.startswith("HTTPRoute r: kubectl-edit changed spec.rules, which")
    await kube.apply(HTTP_ROUTE, route(50), uid=uid)
    assert await edit_of(route(50)) is None and await edit_of(route(25)) is None
