"""Deep, wide, huge and odd objects on a real API server: the watch, the lists and the memory of the
operator stand them, and name each.

The definition has no schema here, and a group of this test's own, so that an operator that runs in
the cluster has nothing to do with these objects. What the real definitions do with objects that
were stored before they had their bounds is here, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource as system
import ssl
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from modelrollout.api import names
from modelrollout.controller import watch
from modelrollout.controller.intake import Intake
from modelrollout.controller.unreadable import UnreadableObjects
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Invalid, NotFound
from modelrollout.kube.events import Events
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION, POD, Resource
from modelrollout.kube.objects import Object
from tests.odd_objects import model_deployments, nested

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parents[2]
CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
COUNT = 120


@dataclass
class Place:
    """A group and a namespace of the test's own, and the API server without a client between, for
    what no JSON writer writes.
    """

    group: str
    namespace: str
    kube: Kube
    http: aiohttp.ClientSession
    host: str

    def of(self, resource: Resource) -> Resource:
        return replace(resource, group=self.group)

    async def post(self, resource: Resource, body: str) -> int:
        async with self.http.post(
            self.host + resource.path(self.namespace), data=body, headers={"Content-Type": "application/json"}
        ) as answer:
            await answer.read()
            return answer.status

    async def patch(self, resource: Resource, name: str, suffix: str, body: Any) -> int:
        headers = {"Content-Type": "application/merge-patch+json"}
        async with self.http.patch(
            self.host + resource.path(self.namespace, name) + suffix, json=body, headers=headers
        ) as answer:
            await answer.read()
            return answer.status

    async def define(self, resource: Resource, schema: Any = None) -> None:
        """The committed definition, or one with this schema; it holds once this returns."""
        definition = yaml.safe_load((ROOT / f"crds/{names.GROUP}_{resource.plural}.yaml").read_text())
        definition["spec"]["group"], definition["metadata"] = (
            self.group,
            {"name": f"{resource.plural}.{self.group}"},
        )
        version = definition["spec"]["versions"][0]
        if schema is not None:
            version["schema"]["openAPIV3Schema"] = schema
            version.pop("additionalPrinterColumns")
        path = CRD.path(None, definition["metadata"]["name"])
        headers = {"Content-Type": "application/apply-patch+yaml"}
        query = {"fieldManager": "test", "force": "true"}
        async with self.http.patch(
            self.host + path, data=json.dumps(definition), headers=headers, params=query
        ) as answer:
            assert answer.status in (200, 201), await answer.text()
        for _ in range(200):
            async with self.http.get(self.host + self.of(resource).path(self.namespace)) as answer:
                if answer.status == 200:
                    break
            await asyncio.sleep(0.1)
        # the API server takes a changed schema up within a second, and says nowhere when
        await asyncio.sleep(1.5)


@pytest_asyncio.fixture
async def place(kube: Kube) -> AsyncIterator[Place]:
    mark = uuid.uuid4().hex[:8]
    info = watch.connection(os.environ["MODELROLLOUT_KUBECONFIG"], None)
    connector = aiohttp.TCPConnector(ssl=info.as_ssl_context() or ssl.create_default_context())
    async with aiohttp.ClientSession(connector=connector, headers=info.as_http_headers()) as http:
        made = Place(f"odd-{mark}.example.com", f"odd-{mark}", kube, http, info.server)
        await kube.create(
            NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.namespace}}
        )
        yield made
        for resource in (MODEL_DEPLOYMENT, MODEL_REVISION):
            await kube.merge_patch(NAMESPACE, None, made.namespace, {"metadata": {"labels": {"done": "1"}}})
            async with http.delete(made.host + CRD.path(None, f"{resource.plural}.{made.group}")) as answer:
                await answer.read()
        await kube.delete(NAMESPACE, None, made.namespace)


def honest(place: Place, name: str) -> str:
    metadata = {"name": name, "namespace": place.namespace, "labels": {names.LABEL_NAME: name}}
    spec = {"model": {"uri": "s3://models/a.onnx"}, "serving": {"resources": {"limits": {"cpu": 1}}}}
    return json.dumps(
        {
            "apiVersion": f"{place.group}/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": metadata,
            "spec": spec,
        }
    )


async def test_the_watch_stands_everything_that_the_api_server_takes(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.define(MODEL_DEPLOYMENT, OPEN)
    mine = place.of(MODEL_DEPLOYMENT)
    woken: list[Key] = []
    unread = UnreadableObjects(Events(place.kube, instance="test"), lambda: False)
    store = ObjectCache(unread.note)
    place.kube.on_unread = unread.note
    intake = Intake(place.kube, store, unread, [mine, POD], woken.append)
    registry = watch.registry(intake, [mine, POD], os.environ["MODELROLLOUT_KUBECONFIG"], None)
    ready = asyncio.Event()
    watching = asyncio.create_task(watch.run(registry, [place.namespace], ready, "test"))
    await asyncio.wait_for(ready.wait(), 20)
    before = system.getrusage(system.RUSAGE_SELF).ru_maxrss

    async def until_woken(name: str) -> None:
        for _ in range(200):
            if (place.namespace, name) in woken:
                return
            assert not watching.done(), "the watch has ended"
            await asyncio.sleep(0.05)
        raise AssertionError(f"{name} was not seen")

    codes: dict[str, int] = {}
    for n, (name, body) in enumerate(model_deployments(place.namespace, COUNT, 1, mine.api_version)):
        codes[name] = await place.post(mine, body)
        if n % 50 == 0:
            assert await place.post(mine, honest(place, f"honest-{n}")) == 201
            await until_woken(f"honest-{n}")
    assert sum(code == 201 for code in codes.values()) > COUNT // 2
    await place.post(mine, honest(place, "last"))
    await until_woken("last")

    there = {name for name, code in codes.items() if code == 201}
    read = {o["metadata"]["name"] for o in store.all(mine)}
    left_out = there - read
    assert unread.count() == {("ModelDeployment", place.namespace): len(left_out)} and len(left_out) > 20
    for name in left_out:
        assert f"{place.namespace}/{name} is left out" in caplog.text
    await intake.list(mine, None)  # the resync comes to the same
    assert {o["metadata"]["name"] for o in store.all(mine)} == read
    assert unread.count() == {("ModelDeployment", place.namespace): len(left_out)}
    assert (system.getrusage(system.RUSAGE_SELF).ru_maxrss - before) >> 10 < 150, "MiB more at most"
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize(
    ("why", "spec"),
    [
        ("deep", '"affinity":' + nested(1200)),
        ("of a wrong type", '"affinity":{"nodeAffinity":5}'),
        ("null", '"affinity":{"nodeAffinity":null}'),
        ("unknown", '"affinity":{"nodeAffinity":{},"unknown":{"a":1}}'),
        ("too long", '"tolerations":[{"key":"' + "k" * 1000 + '"}]'),
        ("too many", '"nodeSelector":{' + ",".join(f'"k{i}":"v"' for i in range(100)) + "}"),
        ("too long keys", '"nodeSelector":{"' + "k" * 1000 + '":"v"}'),
    ],
)
async def test_what_was_stored_before_the_bounds_keeps_its_status_and_goes(
    place: Place, why: str, spec: str
) -> None:
    mine = place.of(MODEL_DEPLOYMENT)
    await place.define(MODEL_DEPLOYMENT, OPEN)
    about = json.dumps({"name": "old", "namespace": place.namespace, "finalizers": ["example.com/wait"]})
    serving = f'{{"resources":{{"limits":{{"cpu":1}}}},{spec}}}'
    head = f'"apiVersion":"{mine.api_version}","kind":"ModelDeployment"'
    body = (
        f'{{{head},"metadata":{about},"spec":{{"model":{{"uri":"s3://models/a.onnx"}},"serving":{serving}}}}}'
    )
    assert await place.post(mine, body) == 201
    await place.define(MODEL_DEPLOYMENT)
    for suffix, patch in (
        ("/status", {"status": {"phase": "Stable", "lastNumber": 1}}),
        ("", {"metadata": {"annotations": {"a": "b"}}}),
        ("", {"spec": {"serving": {"replicas": 3}}}),
    ):
        assert await place.patch(mine, "old", suffix, patch) == 200
    await place.kube.delete(mine, place.namespace, "old")
    assert await place.patch(mine, "old", "", {"metadata": {"finalizers": None}}) == 200
    with pytest.raises(NotFound):
        await place.kube.get(mine, place.namespace, "old")


@pytest.mark.parametrize("resource", [MODEL_DEPLOYMENT, MODEL_REVISION], ids=lambda r: r.kind)
async def test_with_the_definitions_nothing_deep_is_stored(place: Place, resource: Resource) -> None:
    await place.define(resource)
    mine = place.of(resource)
    for n, value in enumerate((nested(1200), nested(5000), '{"nodeAffinity":' + nested(900) + "}")):
        about = json.dumps({"name": f"deep-{n}", "namespace": place.namespace})
        spec = f'{{"model":{{"uri":"s3://models/a.onnx"}},"serving":{{"resources":{{"limits":{{"cpu":1}}}},"affinity":{value}}}}}'
        if resource == MODEL_REVISION:
            sha256 = "a" * 64
            spec = f'{{"number":1,"deployment":"a","sha256":"{sha256}","builder":"2","input":{spec},"template":{{"spec":{{"affinity":{value}}}}}}}'  # noqa: E501
        await place.post(
            mine,
            f'{{"apiVersion":"{mine.api_version}","kind":"{mine.kind}","metadata":{about},"spec":{spec}}}',
        )
    listing = await place.kube.list(mine, place.namespace)
    assert listing.unread == () and len(listing.items) == 3
    for o in listing.items:
        assert len(json.dumps(o)) < 3000


BOUNDS: list[tuple[str, Any]] = [
    ("tolerations", [{"key": "k" * 318}]),
    ("tolerations", [{}] * 33),
    ("nodeSelector", {f"k{i}": "v" for i in range(65)}),
    ("nodeSelector", {"k" * 318: "v"}),
    ("affinity", {"nodeAffinity": 5}),
    ("affinity", {"nodeAffinity": {"unknown": {}}}),
    ("affinity", {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}),
    ("resources", {"limits": {f"k{i}": 1 for i in range(33)}}),
]


@pytest.mark.parametrize(("field", "value"), BOUNDS, ids=lambda v: v if isinstance(v, str) else "")
async def test_what_goes_beyond_the_bounds_is_refused(place: Place, field: str, value: Any) -> None:
    await place.define(MODEL_DEPLOYMENT)
    mine = place.of(MODEL_DEPLOYMENT)
    body: Object = json.loads(honest(place, "large"))
    body["spec"]["serving"] |= {field: value}
    path = f"{place.host}{mine.path(place.namespace)}?fieldValidation=Strict"
    async with place.http.post(path, json=body) as answer:
        told = await answer.text()
        assert answer.status in (400, 422) and f"spec.serving.{field}" in told, told


async def test_a_revision_of_a_wrong_type_is_refused(place: Place) -> None:
    await place.define(MODEL_REVISION)
    mine = place.of(MODEL_REVISION)
    spec = {
        "number": 1,
        "deployment": "a",
        "sha256": "a" * 64,
        "builder": "2",
        "input": {"model": 3},
        "template": {},
    }
    with pytest.raises(Invalid, match=r"spec.input.model"):
        await place.kube.create(
            mine,
            {
                "apiVersion": mine.api_version,
                "kind": mine.kind,
                "metadata": {"name": "a", "namespace": place.namespace},
                "spec": spec,
            },
        )
