"""The peer: Argo Rollouts, whose Rollouts ask for as much as our ModelDeployments: as many pods, a
canary of one weight through Traefik, two queries, and a pause.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fleet.api import Api
from fleet.launch import Launch
from fleet.objects import NAMESPACES, an_object, namespace_of
from fleet.player import Key, Player
from modelrollout.kube.kinds import NAMESPACE, SERVICE, TRAEFIK_SERVICE, Resource
from modelrollout.kube.objects import Object
from sandbox import build_parts, pins
from sandbox.paths import cache_root
from sandbox.shell import free_ports

ROLLOUT = Resource("argoproj.io", "v1alpha1", "rollouts", "Rollout")
TEMPLATE = Resource(
    "argoproj.io", "v1alpha1", "clusteranalysistemplates", "ClusterAnalysisTemplate", namespaced=False
)
REPLICA_SET = Resource("apps", "v1", "replicasets", "ReplicaSet")
LEASE = "argo-rollouts-controller-lock"
INSTALLED = "argo-rollouts"
_METRICS = ("errors", "latency")


class ReplicaSets(Player):
    """Their controller and the kubelets: all pods that are asked for are ready. None exists, since
    Argo Rollouts watches none. ``seen`` are the Rollouts.
    """

    def __init__(self, api: Api) -> None:
        super().__init__(api, ROLLOUT, {REPLICA_SET: self._scale})

    async def _scale(self, _: Key, replica_set: Object) -> None:
        wanted, status = replica_set["spec"]["replicas"], replica_set.get("status") or {}
        counts = ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas")
        full = {
            "observedGeneration": replica_set["metadata"]["generation"],
            **dict.fromkeys(counts, wanted),
        }
        if {k: status.get(k, 0) for k in full} != full:
            await self.say(REPLICA_SET, replica_set, full)


@asynccontextmanager
async def world(api: Api) -> AsyncIterator[Player]:
    yield ReplicaSets(api)


def definitions() -> list[Path]:
    log = cache_root() / "logs" / "crds.log"
    return [*build_parts.crds(log)[1:], build_parts.rollouts_crds(log)]


def platform(prometheus: str) -> list[tuple[Resource, Object]]:
    """Namespaces, and the two queries."""
    metrics = [
        {
            "name": name,
            "count": 1,
            "successCondition": "len(result) > 0 && result[0] >= 0",
            "provider": {
                "prometheus": {
                    "address": prometheus,
                    "query": f'{name}{{service=~"{{{{args.service}}}}-http-canary"}}',
                }
            },
        }
        for name in _METRICS
    ]
    return [
        *((NAMESPACE, an_object(NAMESPACE, n)) for n in (INSTALLED, *map(namespace_of, range(NAMESPACES)))),
        (TEMPLATE, an_object(TEMPLATE, "judged", spec={"args": [{"name": "service"}], "metrics": metrics})),
    ]


def created(i: int) -> Iterable[tuple[Resource, Object]]:
    """The i-th Rollout, after what it refers to."""
    name, namespace = f"model-{i}", namespace_of(i)
    sides = [f"{name}-stable", f"{name}-canary"]
    port = {"port": 8000, "name": "http"}
    for side in sides:
        yield (
            SERVICE,
            an_object(SERVICE, side, namespace, spec={"selector": {"app": name}, "ports": [port]}),
        )
    weighted = [{"name": side, "port": 8000, "weight": w} for side, w in zip(sides, (100, 0), strict=True)]
    yield (
        TRAEFIK_SERVICE,
        an_object(TRAEFIK_SERVICE, name, namespace, spec={"weighted": {"services": weighted}}),
    )
    yield ROLLOUT, an_object(ROLLOUT, name, namespace, spec=_spec(name, sides))


def change(i: int, version: int) -> Object:
    """The spec of another version: an image, as Argo Rollouts knows versions."""
    name = f"model-{i}"
    return {"spec": {"template": _template(name, version)}}


def is_done(rollout: Object, version: int) -> bool:
    """Whether the version is stable, and nothing is left to do for the spec."""
    status = rollout.get("status") or {}
    return (
        rollout["spec"]["template"] == _template(rollout["metadata"]["name"], version)
        and status.get("phase") == "Healthy"
        and status.get("observedGeneration") == str(rollout["metadata"]["generation"])
        and status.get("stableRS") == status.get("currentPodHash")
    )


def command(launch: Launch) -> list[str]:
    """Its defaults, limits of requests included. Without a Lease, so that a second life need not
    wait for the first one's, as ours need not.
    """
    metrics, health = free_ports(2)
    return [
        str(build_parts.home(pins.ROLLOUTS_PART) / pins.ROLLOUTS_PART.name),
        *("--kubeconfig", str(launch.kubeconfig), "--leader-elect=false"),
        *("--metricsPort", str(metrics), "--healthzPort", str(health)),
        *("--traefik-api-group", TRAEFIK_SERVICE.group),
        *("--traefik-api-version", TRAEFIK_SERVICE.api_version),
    ]


def _template(name: str, version: int) -> dict[str, Any]:
    container = {"name": "server", "image": f"example/model:{version}", "resources": {}}
    return {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}


def _spec(name: str, sides: list[str]) -> dict[str, Any]:
    analysis = {
        "templates": [{"templateName": "judged", "clusterScope": True}],
        "args": [{"name": "service", "value": name}],
    }
    return {
        "replicas": 2,
        "selector": {"matchLabels": {"app": name}},
        "template": _template(name, 1),
        "strategy": {
            "canary": {
                "stableService": sides[0],
                "canaryService": sides[1],
                "scaleDownDelaySeconds": 3,
                "trafficRouting": {"traefik": {"weightedTraefikServiceName": name}},
                "steps": [{"setWeight": 50}, {"analysis": analysis}, {"pause": {"duration": "5s"}}],
            }
        },
    }
