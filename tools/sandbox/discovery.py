"""Tells Prometheus which pods to scrape: Debian's build has no Kubernetes discovery, so this writes
a file that it watches.

The labels are those of Prometheus's own pod discovery, so that the relabelling rules are the ones
of a real cluster.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from sandbox.kube import Api
from sandbox.paths import State

PODS = "/api/v1/pods"
_ANNOTATION = "prometheus.io/scrape"


def _label(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def target(pod: dict[str, Any]) -> dict[str, Any] | None:
    """One pod as a target group, or nothing when it does not ask to be scraped or cannot be."""
    meta, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    annotations, address = meta.get("annotations", {}), status.get("podIP")
    if annotations.get(_ANNOTATION) != "true" or not address:
        return None
    ready = next(
        (c["status"].lower() for c in status.get("conditions", []) if c["type"] == "Ready"), "unknown"
    )
    ports = [p["containerPort"] for c in spec.get("containers", []) for p in c.get("ports", [])]
    labels = {
        "namespace": meta["namespace"],
        "pod_name": meta["name"],
        "pod_uid": meta["uid"],
        "pod_ip": address,
        "pod_phase": status.get("phase", ""),
        "pod_ready": ready,
        "pod_node_name": spec.get("nodeName", ""),
        **{f"pod_label_{_label(k)}": v for k, v in meta.get("labels", {}).items()},
        **{
            f"pod_annotation_{_label(k)}": v for k, v in annotations.items() if k.startswith("prometheus.io/")
        },
    }
    where = f"{address}:{ports[0]}" if ports else address
    return {"targets": [where], "labels": {f"__meta_kubernetes_{k}": v for k, v in labels.items()}}


class Targets:
    """The pods that are scraped, and the file that says so."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.pods: dict[str, dict[str, Any]] = {}
        self.written: str | None = None

    def update(self, kind: str, pod: dict[str, Any]) -> None:
        entry = target(pod) if kind != "DELETED" else None
        if entry:
            self.pods[pod["metadata"]["uid"]] = entry
        else:
            self.pods.pop(pod["metadata"]["uid"], None)

    def write(self) -> None:
        text = json.dumps([self.pods[uid] for uid in sorted(self.pods)], indent=1)
        if text != self.written:
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.rename(self.file)
            self.written = text


def follow(api: Api, targets: Targets) -> None:
    """A list, then a watch from there, until the server ends it."""
    listed = api.get(PODS)
    targets.pods.clear()
    for pod in listed["items"]:
        targets.update("ADDED", pod)
    targets.write()
    version = listed["metadata"]["resourceVersion"]
    for event in api.watch(
        f"{PODS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=240&resourceVersion={version}"
    ):
        if event["type"] == "ERROR":
            return
        if event["type"] != "BOOKMARK":
            targets.update(event["type"], event["object"])
            targets.write()


def main() -> None:
    state = State(Path(sys.argv[1]))
    targets = Targets(Path(sys.argv[2]))
    targets.file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                follow(Api.of(state.kubeconfig, state.pki, "prometheus"), targets)
            except (OSError, ValueError) as error:
                # the file keeps what was last known, as Prometheus's own discovery does
                sys.stderr.write(f"{error}\n")
                sys.stderr.flush()
                time.sleep(0.5)


if __name__ == "__main__":
    main()
