"""The load on one ModelDeployment (demo's client), and whose fault a failed request was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.client import REQUESTS, Settings
from demo.cluster import FEEDBACK_AUDIENCE, RELEASE, SYSTEM_NAMESPACE, Cluster
from demo.data import Split
from demo.load import TOKEN_SECONDS, Load
from demo.setup import CLIENT_ACCOUNT

FEEDBACK_PORT = 8080
HTTP_SHARE = 0.7
KILLED = ("HTTP 502", "HTTP 504", "ServerDisconnected", "ClientOSError", "ConnectionReset", "UNAVAILABLE")
"""How a broken connection to a pod looks to a client."""
ROUTELESS = ("HTTP 404",)
"""How a host name without a route looks to a client."""


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
