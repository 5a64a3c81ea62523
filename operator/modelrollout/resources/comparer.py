"""Objects of shadow traffic: the comparer and its Service, and what puts a mirror into the
HTTPRoute.

The comparer runs in the model's own namespace and lives as long as its rollout is in shadow. So
payloads stay with the tenant, one tenant's traffic cannot crowd out another's, no reference crosses
namespaces, and what is compared stands in the pod's task, which only the operator writes.
"""

from __future__ import annotations

from collections.abc import Callable

from modelrollout.api import names
from modelrollout.api.v1alpha1 import RevisionRef, Serving, Shadow
from modelrollout.config import OperatorConfig
from modelrollout.contract.common import TASK_ENV
from modelrollout.contract.tasks import CompareTask, OutputTolerance
from modelrollout.resources.common import (
    Object,
    Owner,
    container_security,
    labels,
    metadata,
    on_disk,
    pod_security,
)

TRAEFIK_API = "traefik.io/v1alpha1"


def _labels(owner: Owner, canary: RevisionRef) -> dict[str, str]:
    return labels(owner.name, names.COMPONENT_SHADOW, canary.revision, canary.number)


def _task(
    owner: Owner, canary: RevisionRef, stable: RevisionRef, shadow: Shadow, config: OperatorConfig
) -> str:
    def address(revision: RevisionRef) -> str:
        return f"{revision.revision}.{owner.namespace}.svc:{names.PORT_HTTP}"

    outputs = tuple(
        OutputTolerance.model_validate(o.model_dump(exclude_none=True)) for o in shadow.outputs or ()
    )
    task = CompareTask(
        namespace=owner.namespace,
        model=owner.name,
        candidate_http=address(canary),
        candidate_number=canary.number,
        stable_http=address(stable),
        stable_number=stable.number,
        outputs=outputs,
        port=names.PORT_COMPARER,
        max_body_bytes=config.shadow.max_body_bytes,
        concurrency=config.shadow.concurrency,
    )
    return names.canonical_json(task.model_dump(mode="json", exclude_defaults=True))


def comparer(
    owner: Owner,
    canary: RevisionRef,
    stable: RevisionRef,
    shadow: Shadow,
    serving: Serving,
    config: OperatorConfig,
) -> Object:
    """Deployment of the comparer, one pod: its counters are taken by process, so a second one while
    it is replaced does no harm.
    """
    name, own = names.shadow_name(canary.revision), _labels(owner, canary)
    probe = {"httpGet": {"path": "/healthz", "port": "metrics"}, "timeoutSeconds": 5}
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "comparer",
                "image": config.images.optimizer,
                "imagePullPolicy": config.images.pull_policy,
                "command": ["python", "-m", "modelrollout.comparer.server"],
                "env": [
                    {"name": TASK_ENV, "value": _task(owner, canary, stable, shadow, config)},
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                ],
                "ports": [
                    {"name": "http", "containerPort": names.PORT_COMPARER, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": names.PORT_METRICS, "protocol": "TCP"},
                ],
                "resources": on_disk(
                    {
                        "requests": {"cpu": "50m", "memory": "128Mi"},
                        "limits": {"cpu": "1", "memory": "512Mi"},
                    },
                    "128Mi",
                ),
                "securityContext": container_security(),
                "readinessProbe": probe | {"periodSeconds": 2},
                # A comparer that hangs holds requests in the gateway's memory until it is
                # restarted.
                "livenessProbe": probe | {"periodSeconds": 5, "failureThreshold": 3},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}}],
    }
    if serving.image_pull_secrets:
        spec["imagePullSecrets"] = [s.wire() for s in serving.image_pull_secrets]
    scrape = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(names.PORT_METRICS),
        "prometheus.io/path": "/metrics",
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, name, own),
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": _selector(owner, canary)},
            "template": {"metadata": {"labels": own, "annotations": scrape}, "spec": spec},
        },
    }


def _selector(owner: Owner, canary: RevisionRef) -> dict[str, str]:
    return {
        names.LABEL_NAME: owner.name,
        names.LABEL_COMPONENT: names.COMPONENT_SHADOW,
        names.LABEL_REVISION: canary.revision,
    }


def comparer_service(owner: Owner, canary: RevisionRef) -> Object:
    """Where the gateway mirrors to."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, names.shadow_name(canary.revision), _labels(owner, canary)),
        "spec": {
            "selector": _selector(owner, canary),
            "ports": [{"name": "http", "port": names.PORT_COMPARER, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def traefik_mirror(
    owner: Owner, canary: RevisionRef, stable: RevisionRef, percent: int, max_body_bytes: int
) -> Object:
    """Traefik's mirroring of stable's requests. It has stable's name, so that whoever reads the
    route sees who answers.
    """
    return {
        "apiVersion": TRAEFIK_API,
        "kind": "TraefikService",
        "metadata": metadata(owner, stable.revision, _labels(owner, canary)),
        "spec": {
            "mirroring": {
                "kind": "Service",
                "name": stable.revision,
                "port": names.PORT_HTTP,
                "mirrorBody": True,
                "maxBodySize": max_body_bytes,
                "mirrors": [
                    {
                        "kind": "Service",
                        "name": names.shadow_name(canary.revision),
                        "port": names.PORT_COMPARER,
                        "percent": percent,
                        # By the cluster IP: Traefik drops a TraefikService one of whose Services
                        # has no endpoints, and the clients' requests with it. So a comparer that is
                        # gone is no more than a refused connection.
                        "nativeLB": True,
                    }
                ],
            }
        },
    }


def trial_route(owner: Owner, of_clients: Object, canary: RevisionRef, stable: RevisionRef) -> Object:
    """A route like the clients', for a path without clients: shows whether the gateway would accept
    the mirror in theirs.
    """
    path = {"type": "Exact", "value": f"/.modelrollout/{owner.uid}/{canary.revision}"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata(owner, names.shadow_name(canary.revision), _labels(owner, canary)),
        "spec": {
            "parentRefs": of_clients["spec"]["parentRefs"],
            "hostnames": of_clients["spec"]["hostnames"],
            "rules": [{"matches": [{"path": path}], "backendRefs": [_traefik_backend(stable)]}],
        },
    }


def _traefik_backend(stable: RevisionRef) -> Object:
    return {"group": "traefik.io", "kind": "TraefikService", "name": stable.revision, "weight": 100}


def with_traefik_mirror(route: Object, stable: RevisionRef) -> Object:
    """The HTTPRoute with the TraefikService in the place of stable's Service."""

    def backend(ref: Object) -> Object:
        return _traefik_backend(stable) | {"weight": ref["weight"]} if ref["name"] == stable.revision else ref

    return _with_rules(
        route, lambda rule: rule | {"backendRefs": [backend(ref) for ref in rule["backendRefs"]]}
    )


def with_request_mirror(route: Object, canary: RevisionRef, percent: int) -> Object:
    """The HTTPRoute with Gateway API's own filter."""
    mirror: Object = {
        "backendRef": {
            "group": "",
            "kind": "Service",
            "name": names.shadow_name(canary.revision),
            "port": names.PORT_COMPARER,
        }
    }
    if percent < 100:
        mirror["percent"] = percent
    added = {"type": "RequestMirror", "requestMirror": mirror}
    return _with_rules(route, lambda rule: rule | {"filters": [*rule.get("filters", []), added]})


def without_mirror(route: Object) -> Object:
    """The HTTPRoute that says that it has no filters beyond its own: one that was left in it
    differs, and is taken out.
    """
    return _with_rules(route, lambda rule: rule | {"filters": rule.get("filters", [])})


def _with_rules(route: Object, change: Callable[[Object], Object]) -> Object:
    return route | {"spec": route["spec"] | {"rules": [change(rule) for rule in route["spec"]["rules"]]}}


def is_mirrored(route: Object) -> bool:
    """Whether a rule of the route mirrors, by either way."""
    rules = route["spec"].get("rules", [])
    filters = [f.get("type") for rule in rules for f in rule.get("filters") or []]
    return "RequestMirror" in filters or any(
        ref.get("kind") == "TraefikService" for rule in rules for ref in rule.get("backendRefs") or []
    )
