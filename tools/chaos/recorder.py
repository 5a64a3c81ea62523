"""What really happened: every version of the ModelDeployments, routes and pods of a namespace,
straight from the API server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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

    def __init__(self, connect: Callable[[], Api], namespace: str) -> None:
        self._connect = connect
        self._paths = {
            MDEP: f"/apis/{names.API_VERSION}/namespaces/{namespace}/modeldeployments",
            HTTP: f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
            GRPC: f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/grpcroutes",
            POD: f"/api/v1/namespaces/{namespace}/pods",
        }
        self._versions: dict[str, dict[int, Object]] = {kind: {} for kind in self._paths}
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

    def latest(self, name: str) -> Object:
        """The ModelDeployment as last seen; empty before it is."""
        versions = self.versions(MDEP, name)
        return versions[-1] if versions else {}

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
            self._versions[kind][int(o["metadata"]["resourceVersion"])] = o
            self._changed.notify_all()
