"""What all Jobs share: the pod, retries, how a task and its data are handed over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Credentials, Data, Model, Resources, Serving
from modelrollout.config import OperatorConfig
from modelrollout.contract.common import TASK_ENV, TIMEOUT_ENV, DataSet
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.resources.common import (
    DISK,
    Located,
    Object,
    Owner,
    bounded,
    container_security,
    labels,
    locate,
    metadata,
    on_disk,
    pod_security,
    store_for_field,
)
from modelrollout.resources.server import FETCH, Version

FINAL = frozenset(int(code) for code in ExitCode) - {int(ExitCode.OK), int(ExitCode.RETRYABLE)}
KILLED = 137  # SIGKILL, by the kernel for lack of memory, or by another process; the pod's status says which
# SIGTERM, and SIGKILL for a process that ignores it. Our programs then exit with a code of their
# own, a user's container need not.
TERMINATED = frozenset({143, KILLED})
# SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: native code and this file
CRASHED = frozenset({132, 134, 135, 136, 139})
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY = "kueue.x-k8s.io/priority-class"
RETRIES = 5  # after an unreachable store or an evicted pod
# Containers of a Job. The prepare Job has several; in it this one publishes.
JOB_CONTAINER = "job"
# These open no untrusted file, so the artifact location in their result counts.
TRUSTED_CONTAINERS = frozenset({FETCH, JOB_CONTAINER})
DISK_DATA = "10Gi"  # a data set
SMALL_RESOURCES = Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "1Gi"})


@dataclass(frozen=True)
class JobContext:
    """What every Job is made from. ``number`` is that of the revision, None before there is one;
    then the ModelDeployment owns the Job, otherwise the revision does.
    """

    owner: Owner
    deployment: str
    number: int | None
    name: str  # of the Job
    model: Model
    serving: Serving
    config: OperatorConfig

    @property
    def version(self) -> Version:
        """The revision that the Job is for."""
        assert self.number is not None
        return Version(self.deployment, self.owner.name, self.number, self.owner.namespace)

    def labels(self, component: str) -> dict[str, str]:
        """Labels of the Job and its pods."""
        if self.number is None:
            return labels(self.deployment, component)
        return labels(self.deployment, component, self.owner.name, self.number)


def build_job(
    context: JobContext,
    component: str,
    module: str,
    task: BaseModel,
    *,
    located: list[Located],
    resources: Resources,
    timeout: float,
    image: str | None = None,
    disk: str = DISK_DATA,
    queued: bool = False,
) -> Object:
    """A Job with one container that runs the Python ``module`` on ``task``. ``timeout`` is in
    seconds. A ``queued`` Job requests nothing that its queue may have no quota of.
    """
    serving, config, own_labels = context.serving, context.config, context.labels(component)
    bound = on_disk(resources.wire(), disk)
    most = bound["limits"][DISK]
    limit = max(1, math.ceil(timeout))
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        # Each program enforces its own time limit; this one ends a program that hangs, and a user's
        # container. A deadline on the Job would also count earlier tries and time without a pod.
        "activeDeadlineSeconds": 2 * limit + 300,
        "securityContext": pod_security(config),
        "containers": [
            {
                "name": JOB_CONTAINER,
                "image": image or config.images.optimizer,
                "imagePullPolicy": config.images.pull_policy,
                "command": ["python", "-m", module],
                "env": [
                    {"name": TASK_ENV, "value": task_json(task)},
                    {"name": TIMEOUT_ENV, "value": str(limit)},
                    # Libraries size their pools by the node's cores, not by the container's limit.
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                    # XLA's name for it; rounded up
                    {"name": "NPROC", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                ],
                # A queue never admits a Job that requests a resource it has no quota of; the
                # volumes are bounded all the same.
                "resources": resources.wire() if queued else bound,
                "securityContext": container_security(),
                "volumeMounts": [
                    {"name": "tmp", "mountPath": "/tmp"},
                    *(m for x in located for m in x.mounts()),
                ],
            }
        ],
        "volumes": bounded(
            [{"name": "tmp", "emptyDir": {}}, *(v for x in located for v in x.volumes())], most
        ),
    }
    if serving.service_account_name:  # workload identity
        spec["serviceAccountName"] = serving.service_account_name
    if serving.image_pull_secrets:
        spec["imagePullSecrets"] = [s.wire() for s in serving.image_pull_secrets]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(context.owner, context.name, own_labels),
        "spec": {
            "backoffLimit": RETRIES,
            "ttlSecondsAfterFinished": config.job_ttl_seconds,
            "podFailurePolicy": {
                "rules": [  # the first match wins
                    fail_on(JOB_CONTAINER, FINAL),
                    # Counts against the backoff limit, which bounds evictions. Before the exit
                    # codes, because an eviction ends with SIGKILL.
                    {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    fail_on(JOB_CONTAINER, CRASHED | {KILLED}),
                ]
            },
            "template": {"metadata": {"labels": own_labels}, "spec": spec},
        },
    }


def fail_on(container: str, codes: frozenset[int], operator: Literal["In", "NotIn"] = "In") -> Object:
    """A rule of podFailurePolicy: these exit codes of the container fail the Job for good."""
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": container, "operator": operator, "values": sorted(codes)},
    }


def task_json(task: BaseModel) -> str:
    """The task as the program finds it in its environment."""
    return names.canonical_json(task.model_dump(mode="json", exclude_none=True))


def mount(name: str, path: str, **more: bool) -> Object:
    """A volumeMount."""
    return {"name": name, "mountPath": path, **more}


def locate_data(
    field: str, data: Data, fallback: Credentials | None, config: OperatorConfig, folder: str
) -> tuple[DataSet, Located]:
    """A data set of the spec as tasks name it, and its mounts. Raises NotAllowedError."""
    located = locate(
        data.uri, store_for_field(f"{field}.uri", data.uri, config), data.credentials or fallback, folder
    )
    return DataSet(location=located.location, labels=data.labels, slices=tuple(data.slices or ())), located
