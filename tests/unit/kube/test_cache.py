"""The store: the newest version wins, nothing that is gone comes back, our own echoes wake no key,
others' changes always do.
"""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.kube import cache
from modelrollout.kube.cache import TOMBSTONES, Key, ObjectCache
from modelrollout.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_REVISION, POD, Resource
from modelrollout.kube.objects import Object

KEY = ("ns", "m")


def obj(name: str, version: int | str, uid: str = "u", owner: str | None = "m", **rest: Any) -> Object:
    metadata = {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)}
    if owner:
        metadata |= {"labels": {names.LABEL_NAME: owner}}  # type: ignore[dict-item]
    return {"metadata": metadata, **rest}


def event(type_: str | None, value: Object) -> dict[str, Any]:
    return {"type": type_, "object": value}


def resync(
    store: ObjectCache, resource: Resource, items: list[Object], version: str, namespace: str | None = None
) -> set[Key]:
    """Take in a whole list, as the intake does."""
    changed: set[Key] = set()
    for o in items:
        changed |= store.concerned(resource, o) if store.observe(resource, event(None, o)) else set()
    listed = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in items}
    return changed | store.forget_unlisted(resource, listed, version, namespace)


@pytest.fixture(params=["unpacked", "packed"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectCache:
    """Children are unpacked, or all but the last one that was touched are packed."""
    if request.param == "packed":
        monkeypatch.setattr(cache, "UNPACKED_BYTES", 0)
    return ObjectCache()


def test_newer_wins_and_older_or_equal_changes_nothing(store: ObjectCache) -> None:
    assert store.observe(POD, event("ADDED", obj("p", 5, spec={"nodeName": "1"})))
    assert not store.observe(POD, event("MODIFIED", obj("p", 4, spec={"nodeName": "0"})))
    assert not store.observe(POD, event(None, obj("p", 5, spec={"nodeName": "1"})))
    # as numbers: 10 > 5
    assert store.observe(POD, event("MODIFIED", obj("p", 10, spec={"nodeName": "2"})))
    assert store.get(POD, "ns", "p") == obj("p", 10, spec={"nodeName": "2"})


def test_noise_is_stored_but_wakes_no_key(store: ObjectCache) -> None:
    conditions = [{"type": "Progressing", "status": "True", "lastUpdateTime": "1"}]
    store.observe(DEPLOYMENT, event("ADDED", obj("d", 5, status={"conditions": conditions})))
    later = [{"type": "Progressing", "status": "True", "lastUpdateTime": "2"}]
    assert not store.observe(DEPLOYMENT, event("MODIFIED", obj("d", 6, status={"conditions": later})))
    assert (store.get(DEPLOYMENT, "ns", "d") or {})["metadata"]["resourceVersion"] == "6"
    later = [{"type": "Progressing", "status": "False", "lastUpdateTime": "2"}]
    assert store.observe(DEPLOYMENT, event("MODIFIED", obj("d", 7, status={"conditions": later})))
    assert store.observe(DEPLOYMENT, event("MODIFIED", obj("d", 8, status={})))


def test_managed_fields_are_not_kept_and_the_events_object_is_not_touched(store: ObjectCache) -> None:
    value = obj("p", 5)
    value["metadata"]["managedFields"] = [{"manager": "x"}]
    store.observe(POD, event("ADDED", value))
    assert "managedFields" not in (store.get(POD, "ns", "p") or {})["metadata"]
    assert "managedFields" in value["metadata"]


def test_the_echo_of_a_guarded_write_wakes_no_key(store: ObjectCache) -> None:
    store.observe(MODEL_DEPLOYMENT, event("ADDED", obj("m", 5, owner=None)))
    store.record_write(MODEL_DEPLOYMENT, obj("m", 6, owner=None, status=1), guarded=True)
    assert (store.get(MODEL_DEPLOYMENT, "ns", "m") or {})["status"] == 1
    assert not store.observe(MODEL_DEPLOYMENT, event("MODIFIED", obj("m", 6, owner=None, status=1)))
    assert store.observe(MODEL_DEPLOYMENT, event("MODIFIED", obj("m", 7, owner=None, status=1, spec=2)))


def test_an_unguarded_write_may_hold_another_clients_change_so_its_event_counts_once(
    store: ObjectCache,
) -> None:
    store.observe(MODEL_REVISION, event("ADDED", obj("r", 5)))
    # version 6 was a person's verb
    store.record_write(MODEL_REVISION, obj("r", 7, verb="promote", outcome=1), guarded=False)
    assert not store.observe(MODEL_REVISION, event("MODIFIED", obj("r", 6, verb="promote")))
    assert store.observe(MODEL_REVISION, event("MODIFIED", obj("r", 7, verb="promote", outcome=1)))
    assert not store.observe(MODEL_REVISION, event(None, obj("r", 7, verb="promote", outcome=1)))


def test_an_unguarded_write_that_is_passed_over_by_a_newer_event_counts_even_if_that_is_noise(
    store: ObjectCache,
) -> None:
    store.observe(MODEL_REVISION, event("ADDED", obj("r", 5)))
    store.record_write(MODEL_REVISION, obj("r", 7, verb="promote"), guarded=False)
    store.record_write(MODEL_REVISION, obj("r", 8, verb="promote"), guarded=True)
    assert store.observe(MODEL_REVISION, event("MODIFIED", obj("r", 9, verb="promote")))


def test_an_unguarded_write_that_changed_nothing_counts_not(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 5)))
    store.record_write(POD, obj("p", 5), guarded=False)
    assert not store.observe(POD, event("MODIFIED", obj("p", 5)))


def test_a_late_answer_does_not_replace_what_the_watch_brought(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 9, spec={"nodeName": "2"})))
    store.record_write(POD, obj("p", 8, spec={"nodeName": "1"}), guarded=True)
    assert not store.record_read(POD, obj("p", 7))
    assert (store.get(POD, "ns", "p") or {})["spec"] == {"nodeName": "2"}


def test_nothing_deleted_comes_back_by_a_late_answer_or_event(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 5)))
    assert store.observe(POD, event("DELETED", obj("p", 8)))
    store.record_write(POD, obj("p", 7), guarded=True)
    assert not store.observe(POD, event("MODIFIED", obj("p", 6)))
    assert store.get(POD, "ns", "p") is None
    assert store.children(KEY) == []
    assert store.observe(POD, event("ADDED", obj("p", 9, uid="v")))


def test_a_deletion_of_the_former_object_leaves_the_present_one(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 5, uid="old")))
    store.record_write(POD, obj("p", 9, uid="new"), guarded=True)
    assert not store.observe(POD, event("DELETED", obj("p", 8, uid="old")))
    assert store.get(POD, "ns", "p") is not None
    assert store.observe(POD, event("DELETED", obj("p", 12, uid="new")))


def test_an_object_that_loses_the_label_and_gets_it_again_is_seen_again(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 5)))
    assert store.observe(POD, event("DELETED", obj("p", 6)))  # what a watch with a selector says
    assert store.observe(POD, event("ADDED", obj("p", 7)))


def test_gone_removes_that_very_object_for_good(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 5)))
    assert not store.record_deletion(POD, "ns", "p", "another")
    assert store.record_deletion(POD, "ns", "p", "u")
    assert not store.observe(POD, event("MODIFIED", obj("p", 50)))
    assert not store.observe(POD, event("DELETED", obj("p", 51)))


def test_children_are_found_by_label_and_follow_a_changed_one(store: ObjectCache) -> None:
    store.observe(MODEL_DEPLOYMENT, event("ADDED", obj("m", 1, owner=None)))
    store.observe(POD, event("ADDED", obj("p", 2)))
    store.observe(DEPLOYMENT, event("ADDED", obj("d", 3)))
    store.observe(POD, event("ADDED", obj("q", 4, owner="other")))
    store.observe(POD, event("ADDED", obj("stray", 5, owner=None)))
    assert {o["metadata"]["name"] for o in store.children(KEY)} == {"p", "d"}
    assert [o["metadata"]["name"] for o in store.children(KEY, POD)] == ["p"]
    store.observe(POD, event("MODIFIED", obj("p", 6, owner="other")))
    assert store.children(KEY, POD) == []
    assert {o["metadata"]["name"] for o in store.children(("ns", "other"))} == {"p", "q"}
    assert len(store.all(POD)) == 3


def test_resync_drops_what_vanished_and_reports_whom_that_concerns(store: ObjectCache) -> None:
    for name, version, owner in (
        ("kept", 1, "a"),
        ("changed", 2, "b"),
        ("vanished", 3, "c"),
        ("younger", 30, "d"),
    ):
        store.observe(POD, event("ADDED", obj(name, version, uid=name, owner=owner)))
    store.observe(DEPLOYMENT, event("ADDED", obj("other-kind", 4, uid="k")))
    listed = [
        obj("kept", 1, uid="kept", owner="a"),
        obj("changed", 9, uid="changed", owner="b", spec={"nodeName": "1"}),
        obj("new", 8, uid="n", owner="e"),
    ]
    assert resync(store, POD, listed, "20") == {("ns", "b"), ("ns", "c"), ("ns", "e")}
    assert {o["metadata"]["name"] for o in store.all(POD)} == {"kept", "changed", "younger", "new"}
    assert len(store.all(DEPLOYMENT)) == 1
    assert resync(store, POD, listed, "20") == set()
    assert not store.observe(POD, event("MODIFIED", obj("vanished", 19, uid="vanished", owner="c")))


def test_resync_of_one_namespace_leaves_the_others(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", 1)))
    assert resync(store, POD, [], "9", namespace="elsewhere") == set()
    assert resync(store, POD, [], "9", namespace="ns") == {KEY}


def test_versions_of_unknown_form_are_taken_from_the_watch_only(store: ObjectCache) -> None:
    store.observe(POD, event("ADDED", obj("p", "abc", spec={"nodeName": "1"})))
    store.record_write(POD, obj("p", "abd", spec={"nodeName": "2"}), guarded=True)
    assert (store.get(POD, "ns", "p") or {})["spec"] == {"nodeName": "1"}
    assert store.observe(POD, event("MODIFIED", obj("p", "aaa", spec={"nodeName": "3"})))
    assert not store.observe(POD, event("MODIFIED", obj("p", "aaa", spec={"nodeName": "3"})))
    assert store.observe(POD, event("DELETED", obj("p", "zzz", spec={"nodeName": "3"})))
    assert store.get(POD, "ns", "p") is None


def test_memory_of_the_deleted_is_bounded(store: ObjectCache) -> None:
    for n in range(TOMBSTONES + 10):
        store.observe(POD, event("DELETED", obj("p", n, uid=str(n))))
    assert len(store._tombstones) == TOMBSTONES


@pytest.mark.parametrize("seed", range(200))
def test_in_any_order_of_events_and_answers_no_foreign_change_is_slept_through(seed: int) -> None:
    """A pass looks at the store when it is woken. At the end of every history the last look must
    have shown all that others wrote.
    """
    rng = random.Random(seed)
    store = ObjectCache()
    live = obj("r", 1, foreign=0, ours=0)
    watch: list[Object] = [live]  # not delivered yet
    looked = -1

    def write(**change: Any) -> Object:
        nonlocal live
        live = {
            **live,
            **change,
            "metadata": {
                **live["metadata"],
                "resourceVersion": str(int(live["metadata"]["resourceVersion"]) + 1),
            },
        }
        watch.append(live)
        return live

    def look() -> None:
        nonlocal looked
        seen = store.get(MODEL_REVISION, "ns", "r")
        looked = seen["foreign"] if seen else -1

    def deliver() -> None:
        # a watch may skip versions (after a relist), never reorder them
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            if len(watch) > 1:
                watch.pop(0)
        if store.observe(MODEL_REVISION, event(rng.choice(["MODIFIED", None]), watch.pop(0))):
            look()

    for _ in range(rng.randrange(1, 30)):
        action = rng.random()
        seen = store.get(MODEL_REVISION, "ns", "r")
        if action < 0.3:
            write(foreign=live["foreign"] + 1)
        elif action < 0.6 and watch:
            deliver()
        elif action < 0.7 and seen:
            store.record_write(MODEL_REVISION, write(ours=live["ours"] + 1), guarded=False)
        elif (
            action < 0.9
            and seen
            and seen["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
        ):
            store.record_write(MODEL_REVISION, write(ours=live["ours"] + 1), guarded=True)
        elif action > 0.97 and resync(store, MODEL_REVISION, [live], live["metadata"]["resourceVersion"]):
            look()
    while watch:
        deliver()
    assert looked == live["foreign"]
    assert store.get(MODEL_REVISION, "ns", "r") == live


def test_children_at_rest_take_a_fraction_of_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, and not as the weight says."""

    def taken(limit: int) -> tuple[int, list[Object]]:
        monkeypatch.setattr(cache, "UNPACKED_BYTES", limit)
        store = ObjectCache()
        tracemalloc.start()
        for n in range(300):
            env = [{"name": f"VARIABLE_{i}", "value": f"{n}-{i}", "x": None} for i in range(40)]
            raw = json.dumps(obj(f"d{n}", n + 1, uid=f"u{n}", spec={"replicas": 2, "env": env}))
            assert store.observe(DEPLOYMENT, event("ADDED", json.loads(raw)))
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return memory, store.children(KEY)

    (loose, before), (packed, after) = taken(1 << 40), taken(0)
    assert before == after and len(after) == 300
    assert packed < loose / 5
