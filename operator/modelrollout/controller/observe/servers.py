"""The pods that serve each revision, counted and diagnosed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelrollout.api import names
from modelrollout.controller.observe.pods import (
    crashes,
    newest_ready,
    pod_problem,
    pods_of_server,
    server_down,
)
from modelrollout.controller.observe.refused_pods import refused_server
from modelrollout.kube.kinds import DEPLOYMENT
from modelrollout.kube.objects import Object, label
from modelrollout.resources.hardening import hardening_version, overlay_of
from modelrollout.resources.server import drain_of, restarted_at
from modelrollout.rollout.snapshot import Server


def servers(by_name: Mapping[tuple[str, str], Object], pods: Iterable[Object]) -> dict[str, Server]:
    """Servers by the name of their Deployment. A Deployment's counts are trusted only if its
    controller has observed the current generation.
    """
    observed: dict[str, Server] = {}
    for (kind, name), o in by_name.items():
        if kind != DEPLOYMENT.kind:
            continue
        status = o.get("status") or {}
        fresh = status.get("observedGeneration", 0) >= o["metadata"].get("generation", 1)
        ready = (
            status.get("availableReplicas", 0)
            if fresh
            else min(status.get("availableReplicas", 0), o["spec"].get("replicas", 1))
        )
        # a revision's servers, or the comparer of its shadow
        part, revision = (
            label(o, names.LABEL_COMPONENT) or names.COMPONENT_SERVER,
            label(o, names.LABEL_REVISION) or name,
        )
        labelled = (
            p
            for p in pods
            if label(p, names.LABEL_REVISION) == revision and label(p, names.LABEL_COMPONENT) == part
        )
        server_pods = pods_of_server(labelled, o)
        observed[name] = Server(
            status.get("replicas", 0),
            ready,
            pod_problem(server_pods) or refused_server(o),
            o["spec"].get("replicas", 1),
            restarted_at(o),
            hardened=hardening_version(o["spec"]["template"], label(o, names.LABEL_NAME) or ""),
            overlay=overlay_of(o["spec"]["template"]),
            updated=status.get("updatedReplicas", 0) if fresh else None,
            down=server_down(server_pods),
            crashes=crashes(server_pods),
            newest_ready=newest_ready(server_pods),
            drain=drain_of(o["spec"]["template"]),
        )
    return observed
