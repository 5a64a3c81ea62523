"""The commits of the story: what each changes, what the operator makes of it, and which healths
Argo CD may show meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from chaos import models
from chaos.arena import METRICS, TEMPLATE
from chaos.models import ModelFile
from demo.cluster import Object
from demo.target import Target
from modelrollout.api import names

NAMESPACE = "modelrollout-gitops"
ARGO_NAMESPACE = "modelrollout-gitops-argo-cd"
NAME = "digits"
HOST = "digits.gitops.example"
MODELS, FLEET = "models", "fleet"  # folders of the repository; also the Application of the first one
FLEET_SIZE = 40
AT_ONCE = 3  # rollouts that the policy allows at one time
ARGO_API = "argoproj.io/v1alpha1"
SERVER = "https://kubernetes.default.svc"
FIRST_WEIGHT = 30


@dataclass(frozen=True)
class Files:
    """The state of the folder ``models``. Of ``version`` v3 is bad; ``held``: its first step lasts
    a while.
    """

    version: str
    replicas: int = 2
    held: bool = False
    pause: bool = False
    pinned: bool = True
    misspelt: bool = False
    policy: Literal["Open", "Frozen"] | None = None


@dataclass(frozen=True)
class Settled:
    """What ends the wait after a commit: a condition of the ModelDeployment that is True, for that
    reason where there is one, or a weight; ``refused``: the API server refuses the manifest.
    """

    condition: str = "Ready"
    reason: str | None = None
    weight: int | None = None
    refused: str | None = None  # what the API server's message names


@dataclass(frozen=True)
class Step:
    """One commit. ``files`` None: `git revert` of the one before. ``path``: a regular expression
    over the healths from the commit on, the one before it first. ``stable``: the version that
    serves in the end.
    """

    commit: str
    files: Files | None
    settled: Settled
    path: str
    health: str
    stable: str

    @property
    def synced(self) -> bool:
        return self.settled.refused is None


READY = Settled()
BAD = frozenset({"v3"})
STORY: tuple[Step, ...] = (
    Step("digits v1", Files("v1"), READY, "(Missing )?Progressing Healthy", "Healthy", "v1"),
    Step("three replicas", Files("v1", 3), READY, "Healthy( Progressing Healthy)?", "Healthy", "v1"),
    Step("revert the replicas", None, READY, "Healthy( Progressing Healthy)?", "Healthy", "v1"),
    Step("digits v2", Files("v2"), READY, "Healthy Progressing Healthy", "Healthy", "v2"),
    Step("revert when idle", None, READY, "Healthy Progressing Healthy", "Healthy", "v1"),
    Step(
        "digits v3, a bad one",
        Files("v3"),
        Settled("Stalled"),
        "Healthy Progressing Degraded",
        "Degraded",
        "v1",
    ),
    Step("revert the bad one", None, READY, "Degraded( Progressing)? Healthy", "Healthy", "v1"),
    Step(
        "digits v4",
        Files("v4", held=True),
        Settled("Reconciling", weight=FIRST_WEIGHT),
        "Healthy Progressing",
        "Progressing",
        "v1",
    ),
    Step("revert in mid-canary", None, READY, "Progressing Healthy", "Healthy", "v1"),
    Step(
        "digits v5, with a pause",
        Files("v5", pause=True),
        Settled("Reconciling", "PauseStep"),
        "Healthy Progressing Suspended",
        "Suspended",
        "v1",
    ),
    Step("hotfix v6 while v5 pauses", Files("v6"), READY, "Suspended Progressing Healthy", "Healthy", "v6"),
    Step(
        "a manifest that the API server refuses",
        Files("v6", misspelt=True),
        Settled(refused="replica"),
        "Healthy",
        "Healthy",
        "v6",
    ),
    Step("revert what was refused", None, READY, "Healthy", "Healthy", "v6"),
    Step("a policy", Files("v6", policy="Open"), READY, "Healthy( Progressing Healthy)?", "Healthy", "v6"),
    Step(
        "v7 without the digest that the policy demands",
        Files("v7", pinned=False, policy="Open"),
        Settled("Stalled", "GateRequired"),
        "Healthy( Progressing)? Degraded",
        "Degraded",
        "v6",
    ),
    Step(
        "v7 with its digest",
        Files("v7", policy="Open"),
        READY,
        "Degraded Progressing Healthy",
        "Healthy",
        "v7",
    ),
    Step(
        "the policy freezes rollouts",
        Files("v7", policy="Frozen"),
        READY,
        "Healthy( Progressing Healthy)?",
        "Healthy",
        "v7",
    ),
    Step(
        "digits v8 in the freeze",
        Files("v8", policy="Frozen"),
        Settled("Reconciling", "Frozen"),
        "Healthy( Progressing)? Suspended",
        "Suspended",
        "v7",
    ),
    Step(
        "the freeze is over",
        Files("v8", policy="Open"),
        READY,
        "Suspended Progressing Healthy",
        "Healthy",
        "v8",
    ),
)
FIRST_OF_FLEET = "(Missing )?Progressing Healthy"
NEXT_OF_FLEET = "Healthy Progressing Healthy"


def models_folder(target: Target, files: Files, model: ModelFile) -> dict[str, str]:
    """The files of the folder ``models``, by path."""
    objects = {NAME: _digits(target, files, model)}
    if files.policy is not None:
        objects["policy"] = policy(frozen=files.policy == "Frozen")
    return {f"{MODELS}/{name}.yaml": _text(o) for name, o in objects.items()}


def fleet_folder(target: Target, model: ModelFile) -> dict[str, str]:
    """The files of the folder ``fleet``, by path: one folder for each model."""
    return {
        f"{FLEET}/{name}/model.yaml": _text(
            _deployment(
                name,
                {
                    "model": _model(target, model, pinned=True),
                    "serving": {
                        "replicas": 1,
                        "resources": {
                            "limits": {"cpu": "1", "memory": "512Mi"},
                            "requests": {"cpu": "10m", "memory": "64Mi"},
                        },
                    },
                    "rollout": {
                        "canary": {"steps": [{"weight": 50}]},
                        "analysis": {"interval": "2s", "initialDelay": "1s", "templates": [TEMPLATE]},
                        "progressDeadline": "10m",
                    },
                },
            )
        )
        for name in fleet_names()
    }


def fleet_names() -> list[str]:
    return [f"fleet-{number:02}" for number in range(FLEET_SIZE)]


def _digits(target: Target, files: Files, model: ModelFile) -> Object:
    steps: list[dict[str, Any]] = [{"weight": FIRST_WEIGHT}, {"weight": 60}]
    if files.held:
        steps[0]["for"] = "60s"
    if files.pause:
        steps.insert(1, {"pause": {}})
    return _deployment(
        NAME,
        {
            "model": _model(target, model, pinned=files.pinned),
            "serving": {
                "replica" if files.misspelt else "replicas": files.replicas,
                "resources": {
                    "limits": {"cpu": "2", "memory": "512Mi"},
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                },
            },
            "traffic": {
                "gateway": {"name": target.gateway.name, "namespace": target.gateway.namespace},
                "http": {"hostnames": [HOST]},
                "grpc": {"hostnames": [f"grpc-{HOST}"]},
            },
            "rollout": {
                "canary": {"steps": steps},
                "analysis": {"interval": "1s", "initialDelay": "2s", "metrics": list(METRICS.values())},
                "progressDeadline": "10m",
            },
        },
    )


def _model(target: Target, model: ModelFile, *, pinned: bool) -> dict[str, str]:
    return {
        "uri": f"s3://{target.store.models}/{model.key}",
        **({"sha256": model.sha256} if pinned else {}),
    }


def _deployment(name: str, spec: Object) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": spec,
    }


def policy(*, frozen: bool = False) -> Object:
    """What the platform demands in the namespace of the story."""
    window = {"start": "2020-01-01T00:00:00Z", "end": "2100-01-01T00:00:00Z", "reason": "end of the year"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "RolloutPolicy",
        "metadata": {"name": NAMESPACE, "annotations": {"argocd.argoproj.io/sync-wave": "-1"}},
        "spec": {
            "selector": {"namespaces": [NAMESPACE]},
            "gates": {"digest": True},
            "limits": {"concurrentRollouts": AT_ONCE},
            # The fleet gets no requests: it is judged by what needs none.
            "analysisTemplates": [
                {
                    "name": TEMPLATE,
                    "metrics": [{"name": TEMPLATE, "query": 'count(up{job=~".+"} == 1)', "min": 1}],
                }
            ],
            **({"freezeWindows": [window]} if frozen else {}),
        },
    }


def _text(o: Object) -> str:
    # JSON's types only: an alias of YAML would be a surprise to whoever reads the repository.
    return yaml.dump(o, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_model(folder: Path, version: str) -> ModelFile:
    """The file of that version; its key in the store is its own."""
    return models.write(folder, "gitops", int(version.removeprefix("v")), good=version not in BAD)


# --- objects of Argo CD


def project(repository: str) -> Object:
    """What teams may apply: these kinds, into that namespace, from that repository."""
    return {
        "apiVersion": ARGO_API,
        "kind": "AppProject",
        "metadata": {"name": MODELS, "namespace": ARGO_NAMESPACE},
        "spec": {
            "sourceRepos": [repository],
            "destinations": [{"server": SERVER, "namespace": NAMESPACE}],
            "clusterResourceWhitelist": [{"group": names.GROUP, "kind": "RolloutPolicy"}],
            "namespaceResourceWhitelist": [{"group": names.GROUP, "kind": "ModelDeployment"}],
        },
    }


def application(repository: str) -> Object:
    return {
        "apiVersion": ARGO_API,
        "kind": "Application",
        "metadata": {"name": MODELS, "namespace": ARGO_NAMESPACE, **_server_side()},
        "spec": _application_spec(repository, MODELS),
    }


def application_set(repository: str) -> Object:
    """An Application for each folder below ``fleet``."""
    return {
        "apiVersion": ARGO_API,
        "kind": "ApplicationSet",
        "metadata": {"name": FLEET, "namespace": ARGO_NAMESPACE},
        "spec": {
            "goTemplate": True,
            "generators": [
                {
                    "git": {
                        "repoURL": repository,
                        "revision": "main",
                        "directories": [{"path": f"{FLEET}/*"}],
                        "requeueAfterSeconds": 10,
                    }
                }
            ],
            "template": {
                "metadata": {"name": "{{.path.basename}}", **_server_side()},
                "spec": _application_spec(repository, "{{.path.path}}"),
            },
        },
    }


def _server_side() -> Object:
    return {"annotations": {"argocd.argoproj.io/compare-options": "ServerSideDiff=true"}}


def _application_spec(repository: str, path: str) -> Object:
    return {
        "project": MODELS,
        "source": {"repoURL": repository, "path": path, "targetRevision": "main"},
        "destination": {"server": SERVER, "namespace": NAMESPACE},
        "syncPolicy": {
            "automated": {"prune": True, "selfHeal": True},
            "syncOptions": ["ServerSideApply=true"],
            "retry": {"limit": 2, "refresh": True, "backoff": {"duration": "2s", "maxDuration": "10s"}},
        },
        "revisionHistoryLimit": 100,
    }
