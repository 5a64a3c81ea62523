"""The adapter, the leases, the Events and the store against a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelrollout.kube.cache import ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, Invalid, NotFound
from modelrollout.kube.events import Events
from modelrollout.kube.kinds import DEPLOYMENT, EVENT, GRPC_ROUTE, JOB, LEASE, Resource
from modelrollout.kube.leader_election import LeaderElector
from modelrollout.kube.objects import Object

pytestmark = pytest.mark.sandbox

NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)


@pytest_asyncio.fixture
async def namespace(kube: Kube) -> AsyncIterator[str]:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    await kube.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await kube.delete(NAMESPACE, None, name)


@pytest_asyncio.fixture
async def widget(kube: Kube) -> AsyncIterator[Resource]:
    """A kind of its own with a status, like ours."""
    group = f"t{uuid.uuid4().hex[:8]}.modelrollout.dev"
    resource = Resource(group, "v1", "widgets", "Widget")
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer"}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    crd = {
        "apiVersion": CRD.api_version,
        "kind": CRD.kind,
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }
    assert not await kube.has_kind(resource)
    await kube.create(CRD, crd)
    for _ in range(100):
        if await kube.has_kind(resource, ttl=0):
            break
        await asyncio.sleep(0.1)
    yield resource
    await kube.delete(CRD, None, f"widgets.{group}")


def config_map(namespace: str, name: str, value: str = "v", **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "data": {"k": value},
    }


async def test_apply_is_idempotent_and_guards_hold(kube: Kube, namespace: str) -> None:
    first = await kube.apply(CONFIG_MAP, config_map(namespace, "a"))
    again = await kube.apply(CONFIG_MAP, config_map(namespace, "a"))
    uid, version = first["metadata"]["uid"], first["metadata"]["resourceVersion"]
    assert again["metadata"]["resourceVersion"] == version
    changed = await kube.apply(CONFIG_MAP, config_map(namespace, "a", "w"), uid=uid, resource_version=version)
    assert changed["data"] == {"k": "w"}
    with pytest.raises(Conflict):
        await kube.apply(CONFIG_MAP, config_map(namespace, "a", "x"), uid=uid, resource_version=version)
    with pytest.raises(Conflict):
        await kube.apply(CONFIG_MAP, config_map(namespace, "a", "x"), uid=str(uuid.uuid4()))
    await kube.delete(CONFIG_MAP, namespace, "a", uid=uid)
    with pytest.raises(Conflict):  # a paused former leader does not bring it back
        await kube.apply(CONFIG_MAP, config_map(namespace, "a", "x"), uid=uid, resource_version=version)
    with pytest.raises(NotFound):
        await kube.get(CONFIG_MAP, namespace, "a")


async def test_create_patch_and_delete_guard(kube: Kube, namespace: str) -> None:
    made = await kube.create(CONFIG_MAP, config_map(namespace, "a"))
    with pytest.raises(AlreadyExists):
        await kube.create(CONFIG_MAP, config_map(namespace, "a"))
    with pytest.raises(Invalid, match=r"metadata\.name"):
        await kube.create(CONFIG_MAP, config_map(namespace, "A"))
    version = made["metadata"]["resourceVersion"]
    patched = await kube.merge_patch(
        CONFIG_MAP, namespace, "a", {"metadata": {"annotations": {"x": "1"}, "resourceVersion": version}}
    )
    assert patched["metadata"]["annotations"] == {"x": "1"}
    with pytest.raises(Conflict):
        await kube.merge_patch(
            CONFIG_MAP, namespace, "a", {"metadata": {"annotations": {"x": "2"}, "resourceVersion": version}}
        )
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAP, namespace, "a", uid=str(uuid.uuid4()))
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAP, namespace, "a", resource_version=version)
    await kube.delete(CONFIG_MAP, namespace, "a")
    with pytest.raises(NotFound):
        await kube.delete(CONFIG_MAP, namespace, "a")


async def test_lists_come_page_by_page(kube: Kube, namespace: str) -> None:
    for n in range(7):
        await kube.apply(CONFIG_MAP, config_map(namespace, f"l{n}", tier="a" if n else "b"))
    listing = await kube.list(CONFIG_MAP, namespace, label_selector="tier in (a,b),tier!=b", limit=2)
    assert [item["metadata"]["name"] for item in listing.items] == [f"l{n}" for n in range(1, 7)]
    assert {item["kind"] for item in listing.items} == {"ConfigMap"}
    assert int(listing.resource_version) >= max(
        int(item["metadata"]["resourceVersion"]) for item in listing.items
    )
    assert len((await kube.list(CONFIG_MAP, label_selector="tier=a", limit=2)).items) >= 6


async def test_kinds_are_discovered(kube: Kube) -> None:
    assert await kube.has_kind(JOB)
    assert await kube.has_kind(GRPC_ROUTE)
    assert not await kube.has_kind(Resource("batch", "v1", "cronjobjobs", "X"))
    assert not await kube.has_kind(Resource("absent.example.com", "v1", "xs", "X"))


async def test_status_is_written_only_to_the_state_that_was_seen(
    kube: Kube, namespace: str, widget: Resource
) -> None:
    body = {
        "apiVersion": widget.api_version,
        "kind": "Widget",
        "metadata": {"namespace": namespace, "name": "w"},
        "spec": {"size": 1},
    }
    seen = await kube.create(widget, body)
    written = await kube.replace_status(widget, {**seen, "status": {"phase": "Canary"}})
    assert written["status"] == {"phase": "Canary"}
    assert written["spec"] == {"size": 1}
    assert written["metadata"]["generation"] == 1
    with pytest.raises(Conflict):
        await kube.replace_status(widget, {**seen, "status": {"phase": "Failed"}})
    with pytest.raises(Conflict):
        await kube.replace_status(
            widget, {**written, "metadata": {**written["metadata"], "uid": str(uuid.uuid4())}}
        )
    store = ObjectCache()
    store.record_read(widget, written)
    cached = store.get(widget, namespace, "w")
    assert cached is not None
    assert "managedFields" not in cached["metadata"]
    again = await kube.replace_status(widget, {**cached, "status": {"phase": "Stable"}})
    assert again["metadata"]["managedFields"], "the API server keeps its own"


async def test_the_store_follows_real_versions(kube: Kube, namespace: str) -> None:
    store = ObjectCache()
    first = await kube.create(CONFIG_MAP, config_map(namespace, "a"))
    store.record_write(CONFIG_MAP, first, guarded=True)
    assert not store.observe(CONFIG_MAP, {"type": "ADDED", "object": first})
    second = await kube.apply(CONFIG_MAP, config_map(namespace, "a", "w"))
    assert store.observe(CONFIG_MAP, {"type": "MODIFIED", "object": second})
    listing = await kube.list(CONFIG_MAP, namespace)
    for o in listing.items:
        store.observe(CONFIG_MAP, {"type": None, "object": o})
    assert (store.get(CONFIG_MAP, namespace, "a") or {})["data"] == {"k": "w"}
    await kube.delete(CONFIG_MAP, namespace, "a")
    listing = await kube.list(CONFIG_MAP, namespace)
    listed = {(namespace, o["metadata"]["name"]) for o in listing.items}
    store.forget_unlisted(CONFIG_MAP, listed, listing.resource_version)
    assert store.get(CONFIG_MAP, namespace, "a") is None


async def test_two_candidates_one_leader_and_a_hand_over(kube: Kube, namespace: str) -> None:
    log: list[str] = []

    def candidate(name: str) -> LeaderElector:
        async def started() -> None:
            log.append(f"{name} started")

        async def stopped() -> None:
            log.append(f"{name} stopped")

        return LeaderElector(
            kube,
            namespace,
            "lock",
            name,
            started=started,
            stopped=stopped,
            lease_duration=3,
            renew_deadline=2,
            retry_period=0.3,
        )

    a, b = candidate("a"), candidate("b")
    running = asyncio.create_task(a.run())
    await asyncio.sleep(0.5)
    standby = asyncio.create_task(b.run())
    for _ in range(20):
        await asyncio.sleep(0.2)
        assert (a.is_leader(), b.is_leader()) == (True, False)
    a.close()
    await running
    assert not a.is_leader()
    await asyncio.sleep(1)
    assert b.is_leader()
    assert log == ["a started", "a stopped", "b started"]
    lease = await kube.get(LEASE, namespace, "lock")
    assert lease["spec"]["holderIdentity"] == "b"
    assert lease["spec"]["leaseTransitions"] == 1

    standby.cancel()
    with pytest.raises(asyncio.CancelledError):
        await standby
    assert (await kube.get(LEASE, namespace, "lock"))["spec"]["holderIdentity"] == ""


async def test_an_event_is_posted_once_and_counted_when_it_comes_again(kube: Kube, namespace: str) -> None:
    about = await kube.create(CONFIG_MAP, config_map(namespace, "a"))
    about = {"apiVersion": "v1", "kind": "ConfigMap", **about}
    for life in ("one", "two"):
        await Events(kube, instance=life).post(about, "Warning", "RolledBack", "accuracy fell")
    listing = await kube.list(EVENT, namespace)
    [event] = [e for e in listing.items if e["reason"] == "RolledBack"]
    assert event["involvedObject"]["uid"] == about["metadata"]["uid"]
    assert event["type"] == "Warning"


async def test_an_applied_deployment_equal_to_the_last_changes_nothing(kube: Kube, namespace: str) -> None:
    """Defaults that the API server fills in are not ours and make no new version."""
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": "d"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "localhost/pause:1"}]},
            },
        },
    }
    first = await kube.apply(DEPLOYMENT, body)
    second = await kube.apply(DEPLOYMENT, body)
    assert second["metadata"]["generation"] == first["metadata"]["generation"] == 1


async def test_fields_of_a_create_and_of_other_people_do_not_stand_in_the_way_of_an_apply(
    kube: Kube, namespace: str
) -> None:
    """A probe has one kind of question: the one that is wanted and the one that was set do not go
    together.
    """

    def deployment(probe: Object) -> Object:
        labels = {"app": "x"}
        pod = {"containers": [{"name": "x", "image": "example/x:1", "livenessProbe": probe}]}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "x", "namespace": namespace, "labels": labels},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }

    async def taken_over() -> None:
        while True:
            # the Deployment's own controller writes its status meanwhile
            with contextlib.suppress(Conflict):
                assert await kube.own_by_apply(DEPLOYMENT, namespace, "x", uid=uid)
                return

    by_http, by_program = {"httpGet": {"path": "/a", "port": 80}}, {"exec": {"command": ["true"]}}
    uid = (await kube.create(DEPLOYMENT, deployment(by_http)))["metadata"]["uid"]
    with pytest.raises(Invalid):
        await kube.apply(DEPLOYMENT, deployment(by_program), uid=uid)
    assert not await kube.own_by_apply(DEPLOYMENT, namespace, "x", uid="another")
    await taken_over()
    live = await kube.apply(DEPLOYMENT, deployment(by_program), uid=uid)
    assert "httpGet" not in live["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    async with await Kube.connect(os.environ["MODELROLLOUT_KUBECONFIG"], None, component="another") as other:
        container = live["spec"]["template"]["spec"]["containers"][0] | {"livenessProbe": by_http}
        patch = {
            "metadata": {"annotations": {"note": "mine"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        }
        other._field_manager = "another"
        await other.merge_patch(DEPLOYMENT, namespace, "x", patch)
    with pytest.raises(Invalid):
        await kube.apply(DEPLOYMENT, deployment(by_program), uid=uid)
    await taken_over()
    live = await kube.apply(DEPLOYMENT, deployment(by_program), uid=uid)
    assert "httpGet" not in live["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    assert live["metadata"]["annotations"]["note"] == "mine", "what is theirs outside of spec stays"


async def test_reviews_are_answered_though_they_have_no_name(kube: Kube) -> None:
    """What feedback asks for each of its senders."""
    token = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": {"token": "nobody's"},
    }
    review = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
    assert not (await kube.create(review, token))["status"].get("authenticated")
    access = {
        "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"},
        "user": "nobody",
    }
    asked = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": access,
    }
    review = Resource(
        "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
    )
    assert (await kube.create(review, asked))["status"]["allowed"] is False
