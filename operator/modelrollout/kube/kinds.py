"""The kinds that the operator reads and writes, one row each; its lists of kinds, and its rights,
follow from this table. The feedback endpoint has the kinds of its reviews in ``feedback.auth``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from modelrollout.api import names
from modelrollout.config import OperatorConfig


@dataclass(frozen=True)
class Resource:
    """A kind as the API server's paths name it (``group`` is empty for the core group), and how
    the operator treats its objects.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    # what the operator's roles in the chart allow
    verbs: str = field(default="", compare=False)
    watched: bool = field(default=False, compare=False)
    # not every cluster serves it
    optional: bool = field(default=False, compare=False)
    # watched whole; of other kinds only objects that carry our label
    watch_all: bool = field(default=False, compare=False)
    # belongs to a ModelDeployment, and the operator writes it
    child: bool = field(default=False, compare=False)
    # deleted once it is no longer desired
    pruned: bool = field(default=False, compare=False)
    # Directs traffic. Applied only in the state that the pass has observed: an older leader that
    # resumes late must not undo a step.
    guarded: bool = field(default=False, compare=False)
    # whether the configuration asks for it
    configured: Callable[[OperatorConfig], bool] = field(default=lambda _: True, compare=False)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group's version, e.g. ``/apis/apps/v1``."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Path of the collection or of one object; without namespace the collection over all
        namespaces.
        """
        inside = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace else ""
        return f"{self.root}{inside}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


_READ = "get list watch"
_WRITE = "get list watch create patch delete"
_GATEWAY_API = ("gateway.networking.k8s.io", "v1")

ROLLOUT_POLICY = Resource(
    names.GROUP,
    names.VERSION,
    "rolloutpolicies",
    "RolloutPolicy",
    namespaced=False,
    verbs=_READ,
    watched=True,
    optional=True,
    watch_all=True,
)
MODEL_DEPLOYMENT = Resource(
    names.GROUP,
    names.VERSION,
    "modeldeployments",
    "ModelDeployment",
    verbs=_READ,
    watched=True,
    watch_all=True,
)
MODEL_REVISION = Resource(
    names.GROUP,
    names.VERSION,
    "modelrevisions",
    "ModelRevision",
    verbs=_WRITE,
    watched=True,
    watch_all=True,
    child=True,
)
# Jobs that have ended stay until their time to live is over.
JOB = Resource("batch", "v1", "jobs", "Job", verbs=_WRITE, watched=True, child=True, pruned=True)
# get is left out: one pod is never read by name. delete shortens the grace period of a pod that is
# being deleted (``controller.apply.actor``).
POD = Resource("", "v1", "pods", "Pod", verbs="list watch delete", watched=True)
DEPLOYMENT = Resource(
    "apps", "v1", "deployments", "Deployment", verbs=_WRITE, watched=True, child=True, pruned=True
)
SERVICE = Resource(
    "", "v1", "services", "Service", verbs=_WRITE, watched=True, child=True, pruned=True, guarded=True
)
POD_DISRUPTION_BUDGET = Resource(
    "policy",
    "v1",
    "poddisruptionbudgets",
    "PodDisruptionBudget",
    verbs=_WRITE,
    watched=True,
    child=True,
    pruned=True,
)
HTTP_ROUTE = Resource(
    *_GATEWAY_API,
    "httproutes",
    "HTTPRoute",
    verbs=_WRITE,
    watched=True,
    optional=True,
    child=True,
    pruned=True,
    guarded=True,
)
GRPC_ROUTE = Resource(
    *_GATEWAY_API,
    "grpcroutes",
    "GRPCRoute",
    verbs=_WRITE,
    watched=True,
    optional=True,
    child=True,
    pruned=True,
    guarded=True,
)
TRAEFIK_SERVICE = Resource(
    "traefik.io",
    "v1alpha1",
    "traefikservices",
    "TraefikService",
    verbs=_WRITE,
    watched=True,
    optional=True,
    child=True,
    pruned=True,
    guarded=True,
    configured=lambda config: config.shadow.traefik,
)
# Not pruned with the rest: they are written and removed before the pods that they are for.
NETWORK_POLICY = Resource(
    "networking.k8s.io",
    "v1",
    "networkpolicies",
    "NetworkPolicy",
    verbs=_WRITE,
    watched=True,
    child=True,
    configured=lambda config: config.network_policies is not None,
)
# Where they may not be watched, those that specs name are read by name
# (controller.lookups.gateways).
GATEWAY = Resource(
    *_GATEWAY_API, "gateways", "Gateway", verbs=_READ, watched=True, optional=True, watch_all=True
)
GATEWAY_CLASS = Resource(
    *_GATEWAY_API,
    "gatewayclasses",
    "GatewayClass",
    namespaced=False,
    verbs=_READ,
    watched=True,
    optional=True,
    watch_all=True,
)
# What Kueue makes for a Job that it manages; the second before Kueue 0.15.
WORKLOAD = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload", verbs="list")
WORKLOAD_BEFORE = Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload", verbs="list")
LEASE = Resource(
    "coordination.k8s.io", "v1", "leases", "Lease", verbs="get list create update delete"
)  # in the operator's own namespace only
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False, verbs="get")
NODE = Resource("", "v1", "nodes", "Node", namespaced=False, verbs="list")
EVENT = Resource("", "v1", "events", "Event", verbs="create patch list")

KINDS = (
    ROLLOUT_POLICY, MODEL_DEPLOYMENT, MODEL_REVISION, JOB, POD, DEPLOYMENT, SERVICE, POD_DISRUPTION_BUDGET,
    HTTP_ROUTE, GRPC_ROUTE, TRAEFIK_SERVICE, NETWORK_POLICY,
    GATEWAY, GATEWAY_CLASS, WORKLOAD, WORKLOAD_BEFORE, LEASE, NAMESPACE, NODE, EVENT,
)  # fmt: skip
WATCHED = tuple(r for r in KINDS if r.watched)
CHILDREN: Mapping[str, Resource] = {r.kind: r for r in KINDS if r.child}


def namespaces_to_list(resource: Resource, namespaces: Sequence[str]) -> list[str | None]:
    """Where to list the resource when the operator watches these ``namespaces``, none meaning all;
    None stands for one list over all namespaces.
    """
    return [*namespaces] if resource.namespaced and namespaces else [None]
