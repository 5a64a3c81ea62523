"""Keeps the GPU node's capacity: a kubelet that registers again sets extended resources it does not
know to zero.

One watch on one node, and a PATCH when the number is wrong; nothing is polled.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandbox.configs import GPU
from sandbox.kube import Api
from sandbox.paths import State


def wrong(node: dict[str, Any], count: int) -> bool:
    status = node.get("status", {})
    return any(status.get(kind, {}).get(GPU) != str(count) for kind in ("capacity", "allocatable"))


def patch(api: Api, name: str, count: int) -> None:
    amount = {GPU: str(count)}
    api.patch(f"/api/v1/nodes/{name}/status", {"status": {"capacity": amount, "allocatable": amount}})


def keep(api: Api, name: str, count: int) -> None:
    selector = quote(f"metadata.name={name}")
    for event in api.watch(f"/api/v1/nodes?watch=1&timeoutSeconds=240&fieldSelector={selector}"):
        if event["type"] in {"ADDED", "MODIFIED"} and wrong(event["object"], count):
            patch(api, name, count)
            sys.stderr.write(f"set {GPU} of {name} to {count}\n")
            sys.stderr.flush()


def main() -> None:
    state, name, count = State(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    while True:
        try:
            keep(Api.of(state.kubeconfig, state.pki, "sandbox"), name, count)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            time.sleep(0.5)


if __name__ == "__main__":
    main()
