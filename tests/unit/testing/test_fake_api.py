"""The API server in memory answers as the real one does, as far as the operator can notice."""

from __future__ import annotations

import contextlib
import inspect
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, Unavailable
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    JOB,
    LEASE,
    MODEL_DEPLOYMENT,
    ROLLOUT_POLICY,
    SERVICE,
)
from modelrollout.testing import builders as b
from modelrollout.testing.fake_api import FakeApi
from modelrollout.testing.fake_cluster import Cluster, Operator
from modelrollout.testing.virtual_clock import now, run

LOCK: dict[str, Any] = {"metadata": {"namespace": "ns", "name": "lock"}, "spec": {"holderIdentity": "a"}}


def test_every_request_is_one_of_the_client() -> None:
    requests = {
        name for name, f in vars(FakeApi).items() if inspect.iscoroutinefunction(f) and name[0] != "_"
    }
    assert {
        "get",
        "list",
        "create",
        "replace",
        "replace_status",
        "apply",
        "merge_patch",
        "delete",
    } <= requests
    for name in requests:
        fake = inspect.signature(getattr(FakeApi, name)).parameters
        real = inspect.signature(getattr(Kube, name)).parameters
        assert list(fake) == [p for p in real if p in fake], name
        assert {p: fake[p].kind for p in fake} == {p: real[p].kind for p in fake}, name


async def test_a_write_to_an_object_that_has_changed_is_refused_whatever_its_verb() -> None:
    api = FakeApi()
    old = await api.create(LEASE, LOCK)
    api.change(LEASE, "lock", lambda o: o["spec"].update(holderIdentity="b"), "ns")
    uid, version = old["metadata"]["uid"], old["metadata"]["resourceVersion"]
    writes = (
        lambda: api.replace(LEASE, old | {"spec": {}}),
        lambda: api.replace_status(LEASE, old | {"status": {}}),
        lambda: api.apply(LEASE, LOCK, uid=uid, resource_version=version),
        lambda: api.apply(LEASE, LOCK, uid="another"),
        lambda: api.merge_patch(LEASE, "ns", "lock", {"metadata": {"resourceVersion": version}}),
        lambda: api.merge_patch(LEASE, "ns", "lock", {"metadata": {"uid": "another"}}),
        lambda: api.delete(LEASE, "ns", "lock", resource_version=version),
        lambda: api.delete(LEASE, "ns", "lock", uid="another"),
    )
    for write in writes:
        with pytest.raises(Conflict):
            await write()
    live = await api.get(LEASE, "ns", "lock")
    assert live["spec"] == {"holderIdentity": "b"}
    with pytest.raises(AlreadyExists):
        await api.create(LEASE, LOCK)
    with pytest.raises(Conflict):
        await api.apply(LEASE, {"metadata": {"namespace": "ns", "name": "absent"}}, uid=uid)


async def test_only_a_change_moves_the_resource_version_and_only_one_of_spec_the_generation() -> None:
    api = FakeApi()
    made = await api.create(LEASE, LOCK | {"status": {"a": 1}})
    assert "status" not in made and made["metadata"]["generation"] == 1
    assert await api.replace(LEASE, made) == made
    told = await api.replace_status(LEASE, made | {"spec": {}, "status": {"a": 1}})
    assert (told["spec"], told["status"], told["metadata"]["generation"]) == (LOCK["spec"], {"a": 1}, 1)
    assert told["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    moved = await api.replace(LEASE, told | {"spec": {"holderIdentity": "b"}, "status": {}})
    assert (moved["status"], moved["metadata"]["generation"]) == ({"a": 1}, 2)


async def test_apply_takes_back_what_it_no_longer_names_and_leaves_what_others_wrote() -> None:
    api = FakeApi()
    metadata = {"namespace": b.NAMESPACE, "name": "s"}
    await api.apply(SERVICE, {"metadata": metadata | {"labels": {"a": "1", "b": "1"}}, "spec": {}})
    await api.merge_patch(SERVICE, b.NAMESPACE, "s", {"metadata": {"labels": {"theirs": "1"}}})
    live = await api.apply(SERVICE, {"metadata": metadata | {"labels": {"a": "2"}}, "spec": {}})
    assert live["metadata"]["labels"] == {"a": "2", "theirs": "1"} and live["spec"]["type"] == "ClusterIP"
    live = await api.merge_patch(SERVICE, b.NAMESPACE, "s", {"metadata": {"labels": {"theirs": None}}})
    assert live["metadata"]["labels"] == {"a": "2"}


async def test_a_list_is_selected_by_namespace_labels_and_fields() -> None:
    api = FakeApi()
    for name, namespace, labels, phase in (
        ("a", "x", {"app": "1", "of": "p"}, "Failed"),
        ("b", "x", {"app": "1"}, "Running"),
        ("c", "y", {}, "Failed"),
    ):
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        api.put(JOB, {"metadata": metadata, "spec": {"template": JOB_TEMPLATE}, "status": {"phase": phase}})

    async def listed(*where: Any, **selectors: str) -> list[str]:
        return [o["metadata"]["name"] for o in (await api.list(JOB, *where, **selectors)).items]

    assert await listed() == ["a", "b", "c"] and await listed("y") == ["c"]
    assert await listed(label_selector="app=1,of") == ["a"]
    assert await listed(label_selector="!app") == ["c"]
    assert await listed("x", field_selector="status.phase=Failed") == ["a"]


JOB_TEMPLATE: dict[str, Any] = {"metadata": {}, "spec": {"containers": []}}


async def test_the_garbage_collector_takes_what_is_owned_by_what_is_gone() -> None:
    api = FakeApi()
    owner = api.set_spec(MODEL_DEPLOYMENT, b.NAME, {})
    api.set_spec(ROLLOUT_POLICY, "p", {})
    for name, of in (("a", owner["metadata"]["uid"]), ("b", "uid-of-another")):
        metadata = {"name": name, "ownerReferences": [{"uid": of}]}
        api.put(SERVICE, {"metadata": metadata, "spec": {}})
    events: list[tuple[str, str]] = []
    api.watch(lambda resource, event, obj: events.append((event, obj["metadata"]["name"])))
    await api.delete(MODEL_DEPLOYMENT, b.NAMESPACE, b.NAME)
    assert list(api.all(SERVICE)) == ["b"] and events == [("DELETED", b.NAME), ("DELETED", "a")]
    api.orphan(SERVICE, "b")
    await api.delete(ROLLOUT_POLICY, None, "p")
    assert api.objects == {}


def test_latency_and_absence_take_virtual_time_and_a_lost_answer_is_of_a_write_that_was_done() -> None:
    async def main() -> None:
        api, start = FakeApi(), now()
        api.latency, api.answer_latency = 2, 5
        await api.create(LEASE, LOCK)
        assert now() - start == 9
        api.lose_answers = True
        with pytest.raises(Unavailable):
            await api.merge_patch(LEASE, "ns", "lock", {"spec": {"holderIdentity": "b"}})
        api.lose_answers = False
        lease = await api.get(LEASE, "ns", "lock")
        assert lease["spec"]["holderIdentity"] == "b"
        api.down = True
        with pytest.raises(Unavailable):
            await api.delete(LEASE, "ns", "lock")
        assert api.find(LEASE, "lock", "ns") == lease
        api.down, api.repeats = False, True
        with pytest.raises(NotFound):
            await api.delete(LEASE, "ns", "lock")
        assert api.objects == {} and api.requests[-1] == "delete Lease lock"

    run(main())


class KilledError(BaseException):
    """The operator dies."""


def test_before_kills_the_operator_between_any_two_requests_also_of_a_slow_server() -> None:
    """The first lives for no request, the next for one, and so on: what each has written stays, and
    the request that it died in is not done.
    """

    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        cluster.latency = 0.5
        lives = 0
        while cluster.status.stable is None:
            left, before = lives, {}

            def die(*_: object) -> None:
                nonlocal left, before
                left, before = left - 1, dict(cluster.objects)
                if left < 0:
                    raise KilledError

            cluster.before = die
            with contextlib.suppress(KilledError):
                await Operator(cluster).settle()
            assert left >= 0 or cluster.objects == before
            cluster.end_jobs()
            cluster.start_pods()
            cluster.accept_routes()
            cluster.now += timedelta(seconds=4)
            lives += 1
            assert lives < 100
        assert lives > 5 and cluster.weights() == {b.revision_name(1): 100}

    run(main())


async def test_a_copy_goes_its_own_way() -> None:
    cluster = Cluster()
    cluster.set_spec(MODEL_DEPLOYMENT, b.NAME, {})
    cluster.watch(lambda *_: pytest.fail("the copy is another cluster"))
    copied = cluster.copy()
    copied.remove(MODEL_DEPLOYMENT, b.NAME)
    copied.kinds.clear()
    assert copied.find(MODEL_DEPLOYMENT) is None and copied.objects != cluster.objects
    assert cluster.find(MODEL_DEPLOYMENT) is not None and cluster.kinds
    with pytest.raises(KubeError):
        await copied.get(DEPLOYMENT, b.NAMESPACE, "absent")
    assert cluster.requests == []
