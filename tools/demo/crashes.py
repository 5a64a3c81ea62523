"""Failed requests that a crash of the real Triton explains, and only where the record of its
container shows the crash.

Triton's Python backend, through which the sandbox serves, crashes now and then under load (its
issue 8882 reports the same from production). Programs that promise that no request fails leave out
those that such a crash fails, count them apart and name them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from demo import DemoError
from modelrollout.resources.hardening import DIED, TRITON
from modelrollout.resources.jobs.common import CRASHED

Object = dict[str, Any]
# A Python process of Triton dies before the container: the liveness probe notices it within two
# looks, three seconds apart.
BEFORE_SECONDS = 10.0
AFTER_SECONDS = 2.0  # the gateway knows after this long that the server is ready again
DOWN_SECONDS = 30.0  # a server that takes longer to come back explains no more
LOOK_SECONDS = 1.0
# How a server that crashes or is down looks to a client: of HTTP, gRPC, and connections.
ERRORS = (
    "HTTP 500", "HTTP 502", "HTTP 503", "HTTP 504", "INTERNAL", "UNAVAILABLE",
    "ServerDisconnected", "RemoteDisconnected", "ClientOSError", "ConnectionReset", "ConnectionError",
)  # fmt: skip


@dataclass(frozen=True)
class Failed:
    """A failed request: when it was sent (Unix time), how long it took, and the error."""

    at: float
    seconds: float
    error: str


class Failure(Protocol):
    """A failed request: when it was sent (Unix time), how long it took, and the error."""

    @property
    def at(self) -> float: ...

    @property
    def seconds(self) -> float: ...

    @property
    def error(self) -> str: ...


F = TypeVar("F", bound=Failure)


@dataclass(frozen=True, order=True)
class ServerCrash:
    """A crash of a model server by a signal, and until when requests may fail by it; Unix times."""

    at: float
    until: float
    model: str  # name of the ModelDeployment
    pod: str
    how: str
    restarts: int  # of the container, in the life of its pod

    def explains(self, failure: Failure) -> bool:
        """Whether the request was on its way while the server was down, and failed like it."""
        return (
            failure.at <= self.until
            and failure.at + failure.seconds >= self.at - BEFORE_SECONDS
            and any(error in failure.error for error in ERRORS)
        )

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at).astimezone().isoformat(timespec="seconds")
        return f"pod {self.pod}: {self.how} at {when}, restarts {self.restarts}"


def crashes_in(pods: Iterable[Object]) -> list[ServerCrash]:
    """The crashes that these pods (or versions of them) record, by time."""
    by_id: dict[tuple[str, float], ServerCrash] = {}
    for pod in pods:
        if not pod["metadata"].get("deletionTimestamp"):
            for crash in _recorded(pod):
                known = by_id.get((crash.pod, crash.at))
                by_id[crash.pod, crash.at] = crash if known is None else min(known, crash)
    return sorted(by_id.values())


def _recorded(pod: Object) -> Iterator[ServerCrash]:
    status = pod.get("status") or {}
    ready: Object = next((c for c in status.get("conditions") or [] if c["type"] == "Ready"), {})
    for server in status.get("containerStatuses") or []:
        for state in (server.get("state") or {}, server.get("lastState") or {}):
            ended = state.get("terminated") or {}
            how = _signal(ended)
            if server["name"] != TRITON or how is None or not ended.get("finishedAt"):
                continue
            at = _seconds(ended["finishedAt"])
            back = _seconds(ready["lastTransitionTime"]) if ready.get("status") == "True" else at
            until = back + 1 + AFTER_SECONDS if back > at else at + DOWN_SECONDS
            yield ServerCrash(
                at=at,
                until=min(until, at + DOWN_SECONDS),
                model=(pod["metadata"].get("labels") or {}).get("modelrollout.dev/name", ""),
                pod=pod["metadata"]["name"],
                how=how,
                restarts=server.get("restartCount", 0),
            )


def _signal(ended: Object) -> str | None:
    """How a container crashed; None: it ended otherwise, for example was killed for its memory."""
    if DIED in (ended.get("message") or ""):
        return DIED
    code = ended.get("exitCode", 0)
    return signal.Signals(code - 128).name if code in CRASHED else None


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class CrashLog:
    """The crashes of some model servers. Pods take their records along when they are deleted, and
    a record tells only the last crash, so it looks again and again.
    """

    def __init__(self, pods: Callable[[], Sequence[Object]]) -> None:
        self._pods = pods
        self._seen: dict[str, Object] = {}  # versions of pods, by uid and resourceVersion
        self._lock = threading.Lock()

    def look(self) -> None:
        """Read the pods; an API server that is away for a moment is no reason to end."""
        try:
            pods = self._pods()
        except DemoError:
            return
        with self._lock:
            for pod in pods:
                if list(_recorded(pod)):
                    key = f"{pod['metadata'].get('uid')} {pod['metadata'].get('resourceVersion')}"
                    self._seen[key] = pod

    @contextmanager
    def following(self) -> Iterator[CrashLog]:
        """Look every second, in a thread."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(LOOK_SECONDS):
                self.look()

        thread = threading.Thread(target=follow, name="crash-log", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self.look()

    @property
    def crashes(self) -> list[ServerCrash]:
        """All so far."""
        with self._lock:
            return crashes_in(self._seen.values())


def split(failures: Iterable[F], crashes: Sequence[ServerCrash]) -> tuple[list[F], list[F]]:
    """(those that no crash explains, those that one does)."""
    left: list[F] = []
    excused: list[F] = []
    for failure in failures:
        (excused if any(crash.explains(failure) for crash in crashes) else left).append(failure)
    return left, excused


def remarks(excused: Sequence[Failure], crashes: Sequence[ServerCrash]) -> list[str]:
    """A line for each crash that failed requests, with how many were on their way."""
    counts = {crash: sum(crash.explains(failure) for failure in excused) for crash in crashes}
    return [f"counted apart: {n} requests failed by a crash of Triton: {c}" for c, n in counts.items() if n]
