"""The load on one ModelDeployment (demo's client), and whose fault a failed request was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from demo.client import REQUESTS, Settings
from demo.cluster import FEEDBACK_AUDIENCE, RELEASE, SYSTEM_NAMESPACE, Cluster
from demo.data import Split
from demo.load import TOKEN_SECONDS, Load
from demo.setup import CLIENT_ACCOUNT
from modelrollout.api import names

FEEDBACK_PORT = 8080
HTTP_SHARE = 0.7
KILLED = ("HTTP 502", "HTTP 504", "ServerDisconnected", "ClientOSError", "ConnectionReset", "UNAVAILABLE")
"""How a broken connection to a pod looks to a client."""
ROUTELESS = ("HTTP 404",)
"""How a host name without a route looks to a client."""
GATEWAYLESS = (*ROUTELESS, "http2 header with status: 404")
"""The same of HTTP and gRPC."""
EMPTIED = ("HTTP 503", "UNAVAILABLE")
"""How a side of which all pods are on their way out looks to a client."""
PODLESS = (*KILLED, *EMPTIED)
"""How a side whose pods all were killed looks to a client."""


@dataclass(frozen=True)
class Window:
    """While the fault itself makes requests fail with one of these errors, whatever an operator
    does; Unix times.

    From the kill of a Triton pod until the gateway can no longer send anything to it; from the
    deletion of a route until there is one again.
    """

    start: float
    end: float
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Outage:
    """A side of a model of which no pod can answer, by the fault itself. When that is over only its
    pods tell, and only later; all times are Unix times or seconds.
    """

    start: float
    revision: str
    # True: until the first of its pods is ready (again). False: until all of its pods that were
    # ready are known not to be, so that the operator can take their traffic away.
    until_ready: bool
    since: float  # what the pods said before does not count
    lag: float  # until gateway and operator have acted upon it
    limit: float  # seconds after the start; later failures are not the fault's
    errors: tuple[str, ...] = PODLESS

    def window(self, pods: Iterable[Mapping[str, Any]]) -> Window:
        """What it excuses. ``pods``: all versions of all pods, in order."""
        # times are written in whole seconds
        earliest = self.since if self.until_ready else self.since - 1
        turned: dict[str, float] = {}  # pod -> when it first became so
        for pod in pods:
            about = pod["metadata"]
            if (about.get("labels") or {}).get(names.LABEL_REVISION) != self.revision:
                continue
            at = _ready_at(pod, "True" if self.until_ready else "False")
            if at is not None and at >= earliest:
                turned.setdefault(about["name"], at + 1)
        most = self.start + self.limit
        if not turned:
            return Window(self.start, most, self.errors)
        end = min(turned.values()) if self.until_ready else max(turned.values())
        return Window(self.start, min(end + self.lag, most), self.errors)


def _ready_at(pod: Mapping[str, Any], status: Literal["True", "False"]) -> float | None:
    """Since when the pod's condition Ready is so; None where it is not."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == status:
            return datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
    return None


@dataclass(frozen=True)
class Failure:
    """A failed request: when it was sent, how long it took, the error."""

    at: float
    seconds: float
    protocol: str
    error: str


def is_apart(failure: Failure, windows: Sequence[Window]) -> bool:
    """Whether the fault itself failed the request: it was on its way within a window, and its error
    is one of that window's.
    """
    return any(
        failure.at <= w.end
        and failure.at + failure.seconds >= w.start
        and any(word in failure.error for word in w.errors)
        for w in windows
    )


class Traffic:
    """One client process."""

    def __init__(
        self, cluster: Cluster, folder: Path, namespace: str, name: str, host: str, rate: float, live: Split
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        live.save(folder / "live.npz")
        gateway = cluster.target.gateway
        self._folder = folder
        self._load = Load(
            Settings(
                folder=str(folder),
                live=str(folder / "live.npz"),
                namespace=namespace,
                name=name,
                model=name,
                http_url=f"http://{gateway.http}",
                http_host=host,
                grpc_target=gateway.grpc,
                grpc_authority=f"grpc-{host}",
                http_rate=HTTP_SHARE * rate,
                grpc_rate=(1 - HTTP_SHARE) * rate,
                feedback_url=(
                    f"http://{cluster.service_address(SYSTEM_NAMESPACE, f'{RELEASE}-feedback', FEEDBACK_PORT)}"  # noqa: E501
                ),
                feedback_token=str(folder / "feedback-token"),
                run=f"chaos-{int(time.time())}",
            ),
            _token(cluster, namespace),
        )

    def start(self) -> None:
        self._load.start()

    def stop(self) -> dict[str, Any] | None:
        """Stops it once; the final counts."""
        return self._load.stop() if self._load.runs else None

    def sent(self) -> int:
        """Requests sent so far, by its last report (one each second)."""
        counts = self._load.counts()
        return int(counts["sent"]) if counts else 0

    def failures(self) -> list[Failure]:
        """All so far."""
        failures = []
        with (self._folder / REQUESTS).open() as lines:
            for line in lines:
                if '"error"' in line and line.endswith("\n"):
                    entry = json.loads(line)
                    failures.append(
                        Failure(entry["at"], entry["ms"] / 1e3, entry["protocol"], entry["error"])
                    )
        return failures


def _token(cluster: Cluster, namespace: str) -> Callable[[], str]:
    return lambda: cluster.token(namespace, CLIENT_ACCOUNT, FEEDBACK_AUDIENCE, TOKEN_SECONDS)
