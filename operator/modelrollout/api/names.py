"""The words that every part shares: API group, labels, annotations, and the names of children."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

GROUP = "modelrollout.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "modelrollout-operator"

# Labels of children. They are our own: tracking labels of other tools (Argo CD, Helm) are never
# copied, or those tools would claim the children and prune them.
LABEL_NAME = f"{GROUP}/name"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_NUMBER = f"{GROUP}/number"
LABEL_COMPONENT = f"{GROUP}/component"
LABEL_JOB = "batch.kubernetes.io/job-name"  # of Kubernetes, on the pods of a Job
LABEL_POLICY = f"{GROUP}/policy"  # on the Leases of a RolloutPolicy's slots
LABEL_CLAIM = f"{GROUP}/claim"  # on the Lease of a host name: "hostname"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"

COMPONENT_SERVER = "server"
COMPONENT_RESOLVE = "resolve"
COMPONENT_PREPARE = "prepare"
COMPONENT_TUNE = "tune"
COMPONENT_EVALUATE = "evaluate"
COMPONENT_SHADOW = "shadow"

# Annotations on the object that they speak of.
# mirror of status.outcome: a restore from Git or a backup brings no status
ANNOTATION_OUTCOME = f"{GROUP}/outcome"
ANNOTATION_REASON = f"{GROUP}/reason"
ANNOTATION_RESTARTED = f"{GROUP}/restarted-at"  # on the pod template: another value means new pods
# on the pod template: version of the hardening that keeps clients from managing the server
ANNOTATION_HARDENED = f"{GROUP}/hardened"
# on the pod template: that its time to end is the default one. "default" where it was frozen and it
# is not known yet whether the model streams; "streams" in that of a server whose model does
ANNOTATION_EXIT = f"{GROUP}/exit-timeout"
# on the prepare Job: hash of the resources, time limit and queue in spec
ANNOTATION_EXECUTION = f"{GROUP}/execution-hash"
# on the Lease of a slot: start of the rollout that holds it
ANNOTATION_ROLLOUT = f"{GROUP}/rollout"
ANNOTATION_GPUS = f"{GROUP}/gpus"  # on the Lease of a slot: GPUs that the rollout requests, rounded up
ANNOTATION_EXACT_GPUS = f"{GROUP}/exact-gpus"  # the same where it is no whole number, as 10/7
ANNOTATION_HOSTNAME = f"{GROUP}/hostname"  # on the Lease of a host name: the name itself
# on the same: how long the name stays reserved for the version that served last
ANNOTATION_RESERVED = f"{GROUP}/reserved"
ANNOTATION_VERSION = f"{GROUP}/version"  # on the same: hash of that version
ANNOTATION_RELEASED = f"{GROUP}/released"  # on the same: when it was released
ANNOTATION_PROTOCOL = f"{GROUP}/protocol"  # on the same: http where models may share the name
# on the operator's Lease, of several shards: JSON of the replicas that work them
ANNOTATION_REPLICAS = f"{GROUP}/replicas"
# on the Lease of a limit of Jobs, of several shards: JSON of the Jobs that count
ANNOTATION_JOBS = f"{GROUP}/jobs"
# on the Lease of a host name: JSON of the claims after the first, which is the Lease's holder
ANNOTATION_SHARED_WITH = f"{GROUP}/shared-with"

# Verbs: annotations on the ModelRevision that they mean; the value is "[STEP ]NONCE", see
# docs/reference/verbs.md.
VERBS = (
    "promote",
    "promote-full",
    "pause",
    "resume",
    "abort",
    "retry",
    "rollback",
    "follow",
    "restart",
    "restart-allow-downtime",
)

PORT_HTTP = 8000
PORT_GRPC = 8001
PORT_METRICS = 8002
PORT_COMPARER = 8080


def verb_annotation(verb: str) -> str:
    """Annotation key of a verb, e.g. ``modelrollout.dev/promote``."""
    return f"{GROUP}/{verb}"


def reason_annotation(verb: str) -> str:
    """Why a person requests the verb, in his words."""
    return f"{GROUP}/{verb}-reason"


def author_annotation(verb: str) -> str:
    """Who requested the verb, where the API server stamps it (the chart's admission policy)."""
    return f"{GROUP}/{verb}-by"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def short_hash(value: Any, length: int = 8) -> str:
    """First ``length`` hexadecimal digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def revision_name(namespace: str, deployment: str, user_input: Mapping[str, Any], source_sha256: str) -> str:
    """Name of the revision: the same input and the same bytes give the same name.

    The namespace is part of the hash because gateways join it and the name with a dash: otherwise
    ``ml``/``prod-x`` and ``ml-prod``/``x`` would be one backend.
    """
    return (
        f"{deployment}-{short_hash({'namespace': namespace, 'input': user_input, 'sha256': source_sha256})}"
    )


def resolve_job_name(deployment: str, rollout_id: str) -> str:
    """Name of the Job that pins the digest of the source."""
    return f"{deployment}-resolve-{rollout_id}"


def preview_name(deployment: str) -> str:
    """Name of the Service and the routes that lead to the revision on trial in a blue-green
    rollout.
    """
    return f"{deployment}-preview"


def slot_name(policy: str, index: int) -> str:
    """Name of the Lease of a slot of a RolloutPolicy, from 0."""
    return f"modelrollout-slot-{policy}-{index}"


def jobs_lease(policy: str) -> str:
    """Name of the Lease that lists the Jobs that count for a limit; empty: that of the
    configuration.
    """
    return f"modelrollout-jobs-{policy}" if policy else "modelrollout-jobs"


def own_name(namespace: str, name: str) -> str:
    """A ModelDeployment's own entry among the claims of host names; no host name has a slash."""
    return f"modeldeployment/{namespace}/{name}"


def host_lease(host: str) -> str:
    """Name of the Lease that records the owner of a host name: a hash, because a wildcard is not a
    valid object name.
    """
    return f"modelrollout-host-{short_hash(host, 32)}"


def stage_job_name(revision: str, component: str, rollout_id: str) -> str:
    """Name of a revision's prepare, tune or evaluate Job; another rollout or attempt gets another
    name. At most 63 characters.
    """
    return f"{revision}-{component}-{rollout_id}"


def shadow_name(revision: str) -> str:
    """Name of a shadow's objects: the comparer's Deployment and Service, and the route that tests
    the mirror.
    """
    return f"{revision}-shadow"
