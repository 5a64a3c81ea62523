"""The comparer of shadow traffic and its Service.

The comparer runs in the model's own namespace while its rollout is in shadow. So payloads stay with
the tenant, one tenant's traffic cannot crowd out another's, and no reference crosses namespaces.
What it compares is in the pod's task, which only the operator writes.
"""

from __future__ import annotations

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


def shadow_labels(owner: Owner, canary: RevisionRef) -> dict[str, str]:
    """Labels of the objects of a shadow."""
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
    """The comparer's Deployment of one pod. A second pod during its replacement is harmless: every
    process has counters of its own.
    """
    name, own = names.shadow_name(canary.revision), shadow_labels(owner, canary)
    probe = {"httpGet": {"path": "/healthz", "port": "metrics"}, "timeoutSeconds": 5}
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": pod_security(config),
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
                # A comparer that hangs keeps requests in the gateway's memory until it restarts.
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
    """The Service to which the gateway mirrors."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, names.shadow_name(canary.revision), shadow_labels(owner, canary)),
        "spec": {
            "selector": _selector(owner, canary),
            "ports": [{"name": "http", "port": names.PORT_COMPARER, "targetPort": "http", "protocol": "TCP"}],
        },
    }
