"""NetworkPolicies as the real API server takes and keeps them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from modelrollout.kube.client import Kube
from modelrollout.kube.kinds import NETWORK_POLICY, Resource
from modelrollout.kube.objects import Object
from modelrollout.resources.network_policies import is_equivalent, policies
from tests.network_policies import allowed
from tests.unit.resources import objects as o
from tests.unit.resources.test_network import CONFIG, ENDS, INSIDE, POLICIES, PORTS

pytestmark = pytest.mark.sandbox

NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)


@pytest_asyncio.fixture
async def namespace(kube: Kube) -> AsyncIterator[str]:
    name = f"network-{uuid.uuid4().hex[:8]}"
    await kube.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    try:
        yield name
    finally:
        await kube.delete(NAMESPACE, None, name)


def made_for(namespace: str) -> list[Object]:
    """Those with every kind of peer; without an owner, whom the garbage collector would not
    find.
    """
    return [
        {**p, "metadata": {**p["metadata"], "namespace": namespace, "ownerReferences": []}}
        for p in policies(o.DEPLOYMENT, ["shop"], CONFIG)
    ]


async def test_they_are_taken_word_by_word_and_mean_the_same(kube: Kube, namespace: str) -> None:
    retained = []
    for desired in made_for(namespace):
        answer = await kube.create(NETWORK_POLICY, desired)
        assert is_equivalent(answer, desired), answer["spec"]
        again = await kube.apply(NETWORK_POLICY, desired, uid=answer["metadata"]["uid"])
        assert is_equivalent(again, desired)
        retained.append({**again, "metadata": {**again["metadata"], "namespace": "ml"}})
    for who in ENDS:
        for to in ENDS:
            if who in INSIDE or to in INSIDE:
                for port in PORTS:
                    assert allowed(retained, ENDS[who], ENDS[to], port) == allowed(
                        POLICIES, ENDS[who], ENDS[to], port
                    )


@pytest.mark.parametrize(
    "change",
    [
        {"ingress": [{}]},
        {"egress": [{}]},
        {"policyTypes": ["Ingress"]},
        {"podSelector": {"matchLabels": {"one": "more"}}},
        {"podSelector": {"matchExpressions": None}},
    ],
    ids=["rule where none is", "all out", "type", "label", "components"],
)
async def test_what_another_client_changes_is_put_back_by_one_apply(
    kube: Kube, namespace: str, change: dict[str, Any]
) -> None:
    """Each list and selector is one field to server-side apply, and all of them are always written:
    also the empty ones.
    """
    for desired in made_for(namespace):
        name = desired["metadata"]["name"]
        uid = (await kube.create(NETWORK_POLICY, desired))["metadata"]["uid"]
        another = await kube.merge_patch(NETWORK_POLICY, namespace, name, {"metadata": {}, "spec": change})
        back = await kube.apply(NETWORK_POLICY, desired, uid=uid)
        assert is_equivalent(back, desired), (another["spec"], back["spec"])
