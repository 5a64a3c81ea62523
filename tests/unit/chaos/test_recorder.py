"""What the recorder keeps, from an API of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

from chaos.recorder import MDEP, POD, Recorder
from sandbox.kube import Api

Object = dict[str, Any]


def thing(name: str, version: int, **more: Any) -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, **more}


class FakeApi:
    """One connection breaks after an event; the next goes on from there."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over = threading.Event()

    def get(self, path: str) -> Object:
        if not path.endswith("modeldeployments"):
            return {"metadata": {"resourceVersion": "5"}, "items": []}
        return {"metadata": {"resourceVersion": "5"}, "items": [thing("a", 3)]}

    def watch(self, path: str) -> Iterator[Object]:
        if "modeldeployments" not in path:
            self.over.wait(10)
            return
        self.asked.append(path.rpartition("resourceVersion=")[2])
        if len(self.asked) == 1:
            yield {"type": "MODIFIED", "object": thing("a", 6)}
            yield {"type": "MODIFIED", "object": thing("b", 7)}
            raise OSError("the API server is away")
        if len(self.asked) == 2:
            yield {"type": "ERROR", "object": {"code": 410}}
        elif len(self.asked) == 3:
            yield {"type": "BOOKMARK", "object": thing("", 8)}
            yield {"type": "MODIFIED", "object": thing("a", 9)}
        self.over.wait(10)


def test_versions_survive_a_broken_watch_and_a_410() -> None:
    api = FakeApi()
    recorder = Recorder(lambda: cast(Api, api), "n")
    recorder.start()
    for _ in range(100):
        if len(recorder.versions(MDEP, "a")) == 3:
            break
        recorder.wait(0.1)
    recorder.stop()
    api.over.set()
    assert [o["metadata"]["resourceVersion"] for o in recorder.versions(MDEP, "a")] == ["3", "6", "9"]
    assert [o["metadata"]["resourceVersion"] for o in recorder.versions(MDEP, "a", since=3)] == ["6", "9"]
    assert recorder.latest("b")["metadata"]["resourceVersion"] == "7"
    assert recorder.latest("nobody") == {}
    assert recorder.position() == 9
    assert api.asked[:3] == ["5", "7", "5"]  # from where it broke; after a 410 from a new list


def test_a_crash_is_told_from_a_pod_that_was_deleted() -> None:
    recorder = Recorder(lambda: cast(Api, FakeApi()), "n")

    def pod(name: str, version: int, code: int, **metadata: str) -> Object:
        made = thing(
            name,
            version,
            status={
                "containerStatuses": [
                    {"name": "triton", "state": {"terminated": {"exitCode": code, "finishedAt": "t"}}}
                ]
            },
        )
        made["metadata"] |= metadata
        return made

    for o in (
        pod("old", 1, 139),
        pod("x", 2, 139),
        pod("x", 3, 139),
        pod("fine", 4, 0),
        pod("deleted", 5, 137, deletionTimestamp="t"),
    ):
        recorder._take(POD, o)
    assert recorder.crashes(since=1) == ["triton of x ended at t with exit code 139"]


def test_what_is_forgotten_leaves_the_newest_of_each_object() -> None:
    recorder = Recorder(lambda: cast(Api, None), "n")
    for name, version in (("a", 3), ("b", 4), ("a", 6), ("a", 7), ("a", 9)):
        recorder._take(MDEP, thing(name, version))
    recorder._take(POD, thing("a", 2))
    recorder.forget(MDEP, 7)
    left = [o["metadata"]["resourceVersion"] for n in ("a", "b") for o in recorder.versions(MDEP, n)]
    assert left == ["9", "4"]
    assert len(recorder.pods()) == 1
    assert recorder.latest("b")["metadata"]["resourceVersion"] == "4"
