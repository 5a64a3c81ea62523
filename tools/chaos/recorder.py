"""What really happened: every version of the ModelDeployments, routes and pods of a namespace, and
of what else is asked for, straight from the API server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

from modelrollout.api import names
from sandbox.kube import Api

Object = dict[str, Any]
MDEP, HTTP, GRPC, POD = "ModelDeployment", "HTTPRoute", "GRPCRoute", "Pod"


class Recorder:
    """Watches of its own in threads. ``versions`` of a kind come in the order of their
    resourceVersion, one count for all objects.
    """

    def __init__(
        self, connect: Callable[[], Api], namespace: str, more: Mapping[str, str] | None = None
    ) -> None:
        """``more``: paths of other lists, by their kind."""
        self._connect = connect
        self._paths = {
            MDEP: f"/apis/{names.API_VERSION}/namespaces/{namespace}/modeldeployments",
            HTTP: f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
            GRPC: f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/grpcroutes",
            POD: f"/api/v1/namespaces/{namespace}/pods",
            **(more or {}),
        }
        self._versions: dict[str, dict[int, Object]] = {kind: {} for kind in self._paths}
        self._seen: dict[int, float] = {}  # resourceVersion -> Unix time
        self._changed = threading.Condition()
        self._stop = False

    def start(self) -> None:
        for kind, path in self._paths.items():
            threading.Thread(
                target=self._follow, args=(kind, path), name=f"watch-{kind}", daemon=True
            ).start()

    def stop(self) -> None:
        self._stop = True

    def versions(self, kind: str, name: str, since: int = 0) -> list[Object]:
        """All versions of that object beyond that resourceVersion."""
        with self._changed:
            matching = [
                (v, o) for v, o in self._versions[kind].items() if v > since and o["metadata"]["name"] == name
            ]
        return [o for _, o in sorted(matching, key=lambda f: f[0])]

    def forget(self, kind: str, until: int) -> None:
        """What that kind was up to that resourceVersion, but for the newest version of each object:
        a run of hours writes very many.
        """
        with self._changed:
            newest = {o["metadata"]["name"]: v for v, o in sorted(self._versions[kind].items())}
            kept = set(newest.values())
            for version in [v for v in self._versions[kind] if v <= until and v not in kept]:
                del self._versions[kind][version], self._seen[version]

    def latest(self, name: str) -> Object:
        """The ModelDeployment as last seen; empty before it is."""
        versions = self.versions(MDEP, name)
        return versions[-1] if versions else {}

    def seen(self, version: Object) -> float:
        """When it was seen first, Unix time."""
        with self._changed:
            return self._seen[int(version["metadata"]["resourceVersion"])]

    def pods(self, since: int = 0) -> list[Object]:
        """All versions of pods beyond that resourceVersion."""
        with self._changed:
            return [o for version, o in sorted(self._versions[POD].items()) if version > since]

    def crashes(self, since: int) -> list[str]:
        """Server containers that failed after that resourceVersion, in pods not deleted."""
        pods = [o for o in self.pods(since) if not o["metadata"].get("deletionTimestamp")]
        crashes: dict[str, None] = {}  # in order, each once
        for pod in pods:
            for container in (pod.get("status") or {}).get("containerStatuses") or []:
                ended = (container.get("state") or {}).get("terminated") or {}
                if ended.get("exitCode"):
                    crashes[
                        f"{container['name']} of {pod['metadata']['name']} ended at {ended['finishedAt']}"
                        f" with exit code {ended['exitCode']}"
                    ] = None
        return list(crashes)

    def position(self) -> int:
        """The newest resourceVersion seen."""
        with self._changed:
            return max((v for kind in self._versions.values() for v in kind), default=0)

    def wait(self, seconds: float) -> None:
        """Until something changes, or so long."""
        with self._changed:
            self._changed.wait(seconds)

    def _follow(self, kind: str, path: str) -> None:
        since: str | None = None
        while not self._stop:
            try:
                api = self._connect()
                if since is None:
                    listing = api.get(path)
                    since = listing["metadata"]["resourceVersion"]
                    for item in listing["items"]:
                        self._take(kind, item)
                for event in api.watch(
                    f"{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds=240&resourceVersion={since}"
                ):
                    if event["type"] == "ERROR":
                        since = None
                        break
                    since = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self._take(kind, event["object"])
            except (OSError, ValueError, HTTPException):
                # the API server is away: that is one of the faults
                time.sleep(0.2)

    def _take(self, kind: str, o: Object) -> None:
        with self._changed:
            version = int(o["metadata"]["resourceVersion"])
            self._versions[kind][version] = o
            self._seen.setdefault(version, time.time())
            self._changed.notify_all()
