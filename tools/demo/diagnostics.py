"""When the story went wrong: everything that helps to find out why, in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from demo import DemoError
from demo.cluster import SYSTEM_NAMESPACE, Cluster
from demo.setup import NAMESPACE

_KINDS = "modeldeployments.modelrollout.dev,modelrevisions.modelrollout.dev,jobs,pods,deployments,services,endpointslices,poddisruptionbudgets"  # noqa: E501
_ROUTES = "httproutes.gateway.networking.k8s.io,grpcroutes.gateway.networking.k8s.io"


def _commands(namespace: str) -> dict[str, tuple[str, ...]]:
    return {
        "overview.txt": ("get", f"{_KINDS},{_ROUTES}", "-n", namespace, "-o", "wide"),
        "objects.yaml": ("get", f"{_KINDS},{_ROUTES}", "-n", namespace, "-o", "yaml"),
        "events.txt": ("get", "events", "-n", namespace, "--sort-by=.lastTimestamp", "-o", "wide"),
        "describe-pods.txt": ("describe", "pods", "-n", namespace),
        "system.txt": ("get", "pods,deployments,leases", "-n", SYSTEM_NAMESPACE, "-o", "wide"),
        "system-events.txt": ("get", "events", "-n", SYSTEM_NAMESPACE, "--sort-by=.lastTimestamp"),
        "nodes.txt": ("describe", "nodes"),
    }


def dump(cluster: Cluster, folder: Path, say: Callable[[str], None], story: str = NAMESPACE) -> None:
    """Write what kubectl says of the system and of that namespace; an error goes to the file of
    its command. Secrets are not read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in _commands(story).items():
        (folder / name).write_text(_answer(cluster, *command))
    for namespace in (SYSTEM_NAMESPACE, story):
        for pod in _answer(cluster, "get", "pods", "-n", namespace, "-o", "name").split():
            if pod.startswith("pod/"):
                stem = f"{namespace}-{pod.removeprefix('pod/')}"
                (folder / f"{stem}.log").write_text(
                    _answer(cluster, "logs", pod, "-n", namespace, "--all-containers", "--tail=5000")
                )
                before = _answer(
                    cluster, "logs", pod, "-n", namespace, "--all-containers", "--previous", "--tail=2000"
                )
                if "previous terminated container" not in before:
                    (folder / f"{stem}.previous.log").write_text(before)
    say(f"how things stood is in {folder}")


def _answer(cluster: Cluster, *command: str) -> str:
    try:
        return cluster.kubectl(*command, timeout=60)
    except DemoError as e:
        return f"{e}\n"
