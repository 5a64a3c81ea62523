"""Which failed requests a crash of Triton explains: only those near a crash that a container's
record shows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from demo import DemoError
from demo.crashes import CrashLog, Failed, Object, crashes_in, remarks, split
from modelrollout.resources.hardening import DIED

AT = datetime(2026, 11, 28, 12, 0, tzinfo=UTC).timestamp()
BACK = "2026-11-28T12:00:07Z"
BAD_GATEWAY = "BadAnswerError: HTTP 502: b'Bad Gateway'"


def pod(name: str = "p", code: int = 139, ready: str | None = BACK, **ended: Any) -> Object:
    """A pod whose server ended and is ready again since."""
    last = {"exitCode": code, "reason": "Error", "finishedAt": "2026-11-28T12:00:00Z"} | ended
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": ready}] if ready else []
    server = {"name": "triton", "restartCount": 3, "lastState": {"terminated": last}}
    labels = {"modelrollout.dev/name": "digits"}
    return {
        "metadata": {"name": name, "uid": name, "resourceVersion": "7", "labels": labels},
        "status": {"conditions": conditions, "containerStatuses": [server]},
    }


def test_a_crash_is_read_from_the_containers_record() -> None:
    (crash,) = crashes_in([pod()])
    assert (crash.at, crash.until, crash.model) == (AT, AT + 10, "digits")
    assert (crash.pod, crash.how, crash.restarts) == ("p", "SIGSEGV", 3) and "SIGSEGV" in str(crash)
    (stub,) = crashes_in([pod(code=137, message=f"{DIED}\n")])
    assert stub.how == DIED
    (down,) = crashes_in([pod(ready=None)])
    assert down.until == AT + 30, "it is not back yet"
    now = pod(ready="2026-11-28T11:00:00Z")
    (server,) = now["status"]["containerStatuses"]
    server["state"] = {"terminated": server.pop("lastState")["terminated"]}
    assert [(c.at, c.until) for c in crashes_in([now])] == [(AT, AT + 30)]


@pytest.mark.parametrize(
    "other",
    [
        pod(code=137, reason="OOMKilled"),
        pod(code=137),
        pod(code=143),
        pod(code=1),
        pod(code=0),
        {**pod(), "metadata": {**pod()["metadata"], "deletionTimestamp": "2026-11-28T12:00:00Z"}},
        {"metadata": {"name": "starting"}},
    ],
    ids=["memory", "killed", "told to end", "exit code", "ended well", "deleted", "new"],
)
def test_what_ended_otherwise_excuses_nothing(other: Object) -> None:
    assert crashes_in([other]) == []


def test_versions_of_a_pod_are_one_crash_with_the_best_known_end() -> None:
    down, back = pod(ready=None), pod()
    later = pod(ready="2026-11-28T13:00:00Z")
    assert [c.until for c in crashes_in([down, back, later])] == [AT + 10]


@pytest.mark.parametrize(
    ("at", "seconds", "error", "excused"),
    [
        (AT - 0.1, 0.2, BAD_GATEWAY, True),
        (AT - 9, 0.1, "BadAnswerError: HTTP 500: b'Stub process is not healthy'", True),
        (AT + 9.9, 0.1, "gRPC UNAVAILABLE: connection refused", True),
        (AT - 11, 0.5, BAD_GATEWAY, False),
        (AT + 10.1, 0.1, BAD_GATEWAY, False),
        (AT + 1, 0.1, "BadAnswerError: HTTP 404: b'404 page not found'", False),
        (AT + 1, 0.1, "BadAnswerError: 9 logits, expected 10", False),
        (AT - 1, 10.0, "TimeoutError: ", False),
    ],
)
def test_only_what_such_a_crash_causes_in_its_window_is_excused(
    at: float, seconds: float, error: str, excused: bool
) -> None:
    failure = Failed(at, seconds, error)
    assert split([failure], crashes_in([pod()])) == (([], [failure]) if excused else ([failure], []))
    assert split([failure], []) == ([failure], [])


def test_each_crash_is_named_with_what_it_failed() -> None:
    crashes = crashes_in([pod(), pod("q", finishedAt="2026-11-28T13:00:00Z", ready="2026-11-28T13:00:05Z")])
    excused = [Failed(AT, 0.1, BAD_GATEWAY), Failed(AT + 1, 0.1, BAD_GATEWAY)]
    (remark,) = remarks(excused, crashes)
    assert "2 requests failed by a crash of Triton: pod p: SIGSEGV at" in remark and "restarts 3" in remark


def test_the_log_keeps_what_pods_take_along() -> None:
    listed: list[list[Object]] = [[pod()], []]

    def pods() -> list[Object]:
        if not listed:
            raise DemoError("the API server is away")
        return listed.pop(0)

    log = CrashLog(pods)
    for _ in range(3):
        log.look()
    assert [c.pod for c in log.crashes] == ["p"]
    with CrashLog(lambda: [pod("q")]).following() as other:
        pass
    assert [c.pod for c in other.crashes] == ["q"], "it looks once more at the end"
