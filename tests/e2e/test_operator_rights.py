"""What the operator's own token is good for, in anybody's hands: everything is tried as its service
account, as a dry run.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from demo.cluster import RELEASE, SYSTEM_NAMESPACE
from modelrollout.api import names
from modelrollout.api.v1alpha1 import RevisionRef, Shadow, Tune
from modelrollout.kube.client import MERGE_PATCH
from modelrollout.kube.kinds import (
    BACKEND_TRAFFIC_POLICY,
    DEPLOYMENT,
    EVENT,
    GATEWAY,
    GATEWAY_CLASS,
    JOB,
    LEASE,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Resource,
)
from modelrollout.resources import comparer, server
from modelrollout.resources.common import Owner
from modelrollout.resources.jobs.tune import tune_job
from modelrollout.traffic.gateway_api import mirror, traefik
from tests.e2e.conftest import Stage
from tests.unit.resources import objects as o

pytestmark = pytest.mark.sandbox

Object = dict[str, Any]
Change = Callable[[Object], object]
SECRET = Resource("", "v1", "secrets", "Secret")
BINDING = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False
)
BOUND = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
    namespaced=False,
)
KEEPS = "modelrollout.dev/e2e"  # a finalizer
LABELLED = {names.LABEL_NAME: "theirs", names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
BY_KIND = {
    **{r.kind: r for r in (JOB, DEPLOYMENT, SERVICE, MODEL_REVISION, BACKEND_TRAFFIC_POLICY)},
    "PodDisruptionBudget": Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    "HTTPRoute": Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    "GRPCRoute": Resource("gateway.networking.k8s.io", "v1", "grpcroutes", "GRPCRoute"),
    "TraefikService": Resource("traefik.io", "v1alpha1", "traefikservices", "TraefikService"),
}


VOLUMES = [
    {"name": "a", "secret": {"name": "s"}},
    {"name": "b", "configMap": {"name": "c"}},
    {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
]


class Thief:
    """Whoever has got the token. Nothing that he does is kept."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        kubectl = stage.cluster.kubectl
        (actual,) = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "yaml"))[
            "clusters"
        ]
        (folder / "ca.pem").write_bytes(base64.b64decode(actual["cluster"]["certificate-authority-data"]))
        self._server = actual["cluster"]["server"]
        self._session = requests.Session()
        self._session.verify = str(folder / "ca.pem")
        self._session.trust_env = False
        self._session.headers["Authorization"] = (
            f"Bearer {kubectl('create', 'token', RELEASE, '-n', SYSTEM_NAMESPACE).strip()}"
        )

    def asks(
        self, method: str, path: str, body: Object | None = None, content: str = "application/json"
    ) -> str:
        """Why it is refused; empty where it is not."""
        url, kind = f"{self._server}{path}?dryRun=All", {"Content-Type": content}
        answer = self._session.request(
            method, url, data=None if body is None else json.dumps(body), headers=kind, timeout=20
        )
        return "" if answer.ok else f"{answer.status_code}: {answer.json()['message']}"

    def creates(self, obj: Object, resource: Resource | None = None) -> str:
        return self.asks(
            "POST", (resource or BY_KIND[obj["kind"]]).path(obj["metadata"].get("namespace")), obj
        )

    def patches(self, obj: Object, patch: Object) -> str:
        return self.asks(
            "PATCH",
            BY_KIND[obj["kind"]].path(obj["metadata"]["namespace"], obj["metadata"]["name"]),
            patch,
            MERGE_PATCH,
        )

    def deletes(self, obj: Object) -> str:
        return self.asks(
            "DELETE", BY_KIND[obj["kind"]].path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        )


@pytest.fixture(scope="module")
def thief(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Thief:
    return Thief(stage, tmp_path_factory.mktemp("thief"))


def put(stage: Stage, obj: Object, **metadata: Any) -> Object:
    """The object as the test's own user makes it."""
    made = copy.deepcopy(obj)
    made["metadata"] |= {"namespace": stage.namespace} | metadata
    report: Object = json.loads(
        stage.cluster.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(made))
    )
    return report


def revision(namespace: str, name: str = "owner", deployment: str = "gone") -> Object:
    spec = {
        "number": 1,
        "deployment": deployment,
        "sha256": "0" * 64,
        "input": {},
        "builder": server.BUILDER,
        "template": o.template(),
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelRevision",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def owner(stage: Stage) -> Owner:
    """A revision that no ModelDeployment has: the operator does nothing with it."""
    return Owner(
        "ModelRevision", "owner", stage.namespace, put(stage, revision(stage.namespace))["metadata"]["uid"]
    )


def owned(obj: Object, owner: Owner) -> Object:
    """The object as the operator makes it, in the owner's namespace and of that owner."""
    made = copy.deepcopy(obj)
    made["metadata"] |= {"namespace": owner.namespace, "ownerReferences": [owner.reference()]}
    return made


def shadowing(owner: Owner) -> list[Object]:
    canary, stable = RevisionRef(revision="m-2", number=2), RevisionRef(revision="m-1", number=1)
    route = next(x for x in o.everything() if x["kind"] == "HTTPRoute")
    return [
        comparer.comparer(owner, canary, stable, Shadow(), o.SERVING, o.CONFIG),
        comparer.comparer_service(owner, canary),
        traefik.traefik_mirror(owner, canary, stable, 10, 1 << 20),
        traefik.trial_route(owner, route, canary, stable),
        mirror.with_request_mirror(route, canary, 10),
        traefik.with_traefik_mirror(route, stable),
    ]


def with_engines() -> tuple[Object, Object]:
    """A server that keeps TensorRT's engines in a claim, and the Job that tunes one."""
    cache = {"persistentVolumeClaim": {"claimName": "data"}}
    accelerator = {"accelerator": {"tensorRT": {"cache": cache}}}
    frozen = o.template(o.SERVING.model_validate(o.SERVING.wire() | accelerator))
    tuned = tune_job(o.context("t"), Tune(objective="50ms"), None, frozen, o.ARTIFACT)
    return o.deployment(frozen), tuned


def test_what_the_operator_makes_it_may_make(thief: Thief, owner: Owner) -> None:
    container = {"name": "train", "image": f"example/train@sha256:{'0' * 64}"}
    step = o.OPTIMIZATION.model_validate({"steps": [{"container": {"image": container["image"]}}]})
    secret = {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    serving = o.SERVING.model_validate(o.SERVING.wire() | {"pod": {"env": [secret], "volumes": VOLUMES}})
    more = (o.prepare(optimization=step), o.deployment(o.template(serving)), *with_engines())
    for obj in (*o.everything(), *more, *shadowing(owner)):
        resource = BY_KIND.get(obj["kind"], NETWORK_POLICY)
        refused = thief.creates(owned(obj, owner), resource)
        # A right that the chart gives with a switch that is off here is no matter: the policies are
        # asked after the rights.
        assert not refused or (resource == NETWORK_POLICY and "ValidatingAdmissionPolicy" not in refused), (
            f"{obj['kind']}: {refused}"
        )


def pod(change: Change) -> Change:
    return lambda obj: change(obj["spec"]["template"]["spec"])


def first(change: Change) -> Change:
    return pod(lambda spec: change(spec["containers"][0]))


def engines(name: str = "triton", **mount: str) -> Change:
    """A claim to write, mounted as the folder of engines but for these fields. ``name``: of the
    server's container; of a Job's none has another.
    """
    usual = {"name": "engines", "mountPath": "/engines", "subPath": o.OWNER_UID}

    def change(spec: Object) -> None:
        spec["volumes"].append({"name": "engines", "persistentVolumeClaim": {"claimName": "data"}})
        first = spec["containers"][0]
        first["name"] = first["name"].replace("triton", name)
        first["volumeMounts"].append(usual | mount)

    return pod(change)


PODS: dict[str, Change] = {
    "privileged": first(lambda c: c.update(securityContext={"privileged": True})),
    "escalation": first(lambda c: c["securityContext"].pop("allowPrivilegeEscalation")),
    "no security context": first(lambda c: c.pop("securityContext")),
    "a capability": first(lambda c: c["securityContext"]["capabilities"].update(add=["NET_BIND_SERVICE"])),
    "capabilities kept": first(lambda c: c["securityContext"].pop("capabilities")),
    "unmasked /proc": pod(
        lambda s: (
            s.update(hostUsers=False),
            s["containers"][0]["securityContext"].update(procMount="Unmasked"),
        )
    ),
    "root in a container": first(lambda c: c["securityContext"].update(runAsUser=0)),
    "an open init container": pod(lambda s: s.update(initContainers=[{"name": "i", "image": "example/i"}])),
    "root": pod(lambda s: s["securityContext"].update(runAsUser=0)),
    "perhaps root": pod(lambda s: s["securityContext"].pop("runAsNonRoot")),
    "seccomp unconfined": pod(lambda s: s["securityContext"].update(seccompProfile={"type": "Unconfined"})),
    "seccomp unconfined in a container": first(
        lambda c: c["securityContext"].update(seccompProfile={"type": "Unconfined"})
    ),
    "a sysctl": pod(
        lambda s: s["securityContext"].update(
            sysctls=[{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
        )
    ),
    "the node's network": pod(lambda s: s.update(hostNetwork=True)),
    "the node's processes": pod(lambda s: s.update(hostPID=True)),
    "the node's memory": pod(lambda s: s.update(hostIPC=True)),
    "a port of the node": first(lambda c: c.update(ports=[{"containerPort": 80, "hostPort": 80}])),
    "a folder of the node": pod(lambda s: s["volumes"].append({"name": "root", "hostPath": {"path": "/"}})),
    "a claim of the namespace to write": pod(
        lambda s: s["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
    ),
    "a claim to write in another folder": engines(mountPath="/data"),
    "the whole claim of engines": engines(subPath=""),
    "a folder of the claim of engines that is no uid": engines(subPath="all"),
    "engines in what is no server": engines("other"),
    "a token": pod(
        lambda s: s["volumes"].append(
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
        )
    ),
    "the account's token": pod(
        lambda s: s.update(automountServiceAccountToken=True, serviceAccountName="default")
    ),
    "the account's token by default": pod(lambda s: s.pop("automountServiceAccountToken")),
    "a Secret as environment of what is no server": first(
        lambda c: (
            c.update(name=c["name"].replace("triton", "other")),
            c["env"].append({"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
        )
    ),
    "all of a Secret as environment": first(lambda c: c.update(envFrom=[{"secretRef": {"name": "s"}}])),
    "a node of one's choice": pod(lambda s: s.update(nodeName="node-1")),
    "a priority that displaces": pod(lambda s: s.update(priorityClassName="system-node-critical")),
    "a probe of another host": first(
        lambda c: c.update(lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 80}}})
    ),
    "what a Service of strangers selects": (
        lambda obj: obj["spec"]["template"]["metadata"]["labels"].update(app="shop")
    ),
}


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
def test_no_pod_is_more_than_restricted(thief: Thief, owner: Owner, kind: str) -> None:
    honest = owned(o.resolve() if kind == "Job" else o.deployment(), owner)
    assert thief.creates(honest) == ""
    for what, change in PODS.items():
        asked = copy.deepcopy(honest)
        change(asked)
        assert f"ValidatingAdmissionPolicy '{RELEASE}-pods'" in (refused := thief.creates(asked)), (
            f"{what}: {refused}"
        )


def rules(change: Change) -> Change:
    return lambda obj: change(obj["spec"]["rules"][0])


REDIRECT = {"type": "RequestRedirect", "requestRedirect": {"hostname": "x.example"}}
TRAFFIC: dict[str, tuple[str, Change]] = {
    "a port of every node": ("Service", lambda obj: obj["spec"].update(type="NodePort")),
    "an address of others": ("Service", lambda obj: obj["spec"].update(externalIPs=["10.0.0.1"])),
    "another host by name": (
        "Service",
        lambda obj: obj["spec"].update(type="ExternalName", externalName="metadata.internal", selector={}),
    ),
    "pods of strangers": ("Service", lambda obj: obj["spec"].update(selector={"app": "shop"})),
    "any endpoint": ("Service", lambda obj: obj["spec"].pop("selector")),
    "budget of strangers": (
        "PodDisruptionBudget",
        lambda obj: obj["spec"].update(selector={"matchLabels": {"app": "shop"}}),
    ),
    "another namespace": ("HTTPRoute", rules(lambda r: r["backendRefs"][0].update(namespace="shop"))),
    "another namespace by gRPC": ("GRPCRoute", rules(lambda r: r["backendRefs"][0].update(namespace="shop"))),
    "a redirect": ("HTTPRoute", rules(lambda r: (r.pop("backendRefs"), r.update(filters=[REDIRECT])))),
    "a rewrite": (
        "HTTPRoute",
        rules(lambda r: r.update(filters=[{"type": "URLRewrite", "urlRewrite": {"hostname": "x.example"}}])),
    ),
    "an object of a kind that is not listed": (
        "GRPCRoute",
        rules(
            lambda r: r.update(
                filters=[
                    {
                        "type": "ExtensionRef",
                        "extensionRef": {"group": "traefik.io", "kind": "Middleware", "name": "x"},
                    }
                ]
            )
        ),
    ),
    "a filter of one backend": (
        "HTTPRoute",
        rules(
            lambda r: r["backendRefs"][0].update(
                filters=[{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}}]
            )
        ),
    ),
    "a mirror elsewhere": (
        "HTTPRoute",
        rules(
            lambda r: r.update(
                filters=[
                    {
                        "type": "RequestMirror",
                        "requestMirror": {"backendRef": {"name": "s", "namespace": "shop", "port": 80}},
                    }
                ]
            )
        ),
    ),
    "every host": ("HTTPRoute", lambda obj: obj["spec"].pop("hostnames")),
    "no Gateway": ("HTTPRoute", lambda obj: obj["spec"]["parentRefs"][0].update(kind="Service", group="")),
    "Traefik elsewhere": (
        "TraefikService",
        lambda obj: obj["spec"]["mirroring"]["mirrors"][0].update(namespace="shop"),
    ),
    "Traefik's own weights": (
        "TraefikService",
        lambda obj: obj.update(spec={"weighted": {"services": [{"name": "s", "port": 80}]}}),
    ),
}


APART = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"remove": ["x-modelrollout-counted-apart"]},
}
SETS = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"set": [{"name": "x-tenant", "value": "a"}]},
}


def test_no_service_and_no_route_leads_elsewhere(thief: Thief, owner: Owner) -> None:
    honest = {obj["kind"]: owned(obj, owner) for obj in (*shadowing(owner), *reversed(o.everything()))}
    for kind in ("HTTPRoute", "GRPCRoute"):
        shaped = copy.deepcopy(honest[kind])
        for rule in shaped["spec"]["rules"]:
            rule["filters"] = [SETS]
            for backend in rule["backendRefs"]:
                backend["filters"] = [APART]
        assert thief.creates(shaped) == "", "headers change, and Envoy Gateway counts backends apart"
    for what, (kind, change) in TRAFFIC.items():
        asked = copy.deepcopy(honest[kind])
        change(asked)
        assert f"ValidatingAdmissionPolicy '{RELEASE}-traffic'" in (refused := thief.creates(asked)), (
            f"{what}: {refused}"
        )


@pytest.mark.gateway
def test_a_policy_of_envoy_gateway_says_how_sessions_stick_and_nothing_else(
    stage: Stage, thief: Thief, owner: Owner
) -> None:
    spec: dict[str, Any] = {
        "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "m"}],
        "mergeType": "StrategicMerge",
        "loadBalancer": {
            "type": "ConsistentHash",
            "consistentHash": {"type": "Headers", "headers": [{"name": "x-session"}]},
        },
    }
    made = owned(
        {
            "apiVersion": BACKEND_TRAFFIC_POLICY.api_version,
            "kind": BACKEND_TRAFFIC_POLICY.kind,
            "metadata": {"name": "m", "namespace": owner.namespace},
            "spec": spec,
        },
        owner,
    )
    if not stage.cluster.target.gateway.envoy_gateway:
        assert "cannot create resource" in thief.creates(made), "it has no right to them behind another"
        return
    assert thief.creates(made) == ""
    gateway = [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"}]
    # without mergeType, which the definition itself refuses there
    of_a_gateway = {"targetRefs": gateway, "loadBalancer": spec["loadBalancer"]}
    for other in (spec | {"retry": {"numRetries": 3}}, of_a_gateway):
        refused = thief.creates(made | {"spec": other})
        assert f"ValidatingAdmissionPolicy '{RELEASE}-traffic'" in refused, f"{other}: {refused}"


def test_nothing_is_made_without_an_owner_nor_where_the_cluster_runs(thief: Thief, owner: Owner) -> None:
    strangers: list[list[Object]] = [
        [],
        [owner.reference() | {"controller": False}],
        [owner.reference() | {"apiVersion": "apps/v1", "kind": "Deployment"}],
        [owner.reference() | {"apiVersion": "modelrollout.dev.example.com/v1"}],
        [owner.reference() | {"kind": "RolloutPolicy"}],
    ]
    for obj in (*o.everything(), *shadowing(owner), revision(owner.namespace, "m-1", "m")):
        if obj["kind"] == "NetworkPolicy":
            continue  # it has no right to them here
        made = owned(obj, owner)
        for place in ("kube-system", "kube-public", SYSTEM_NAMESPACE):
            there = made | {"metadata": made["metadata"] | {"namespace": place}}
            assert "-owner'" in (refused := thief.creates(there)) and "namespace of their own" in refused, (
                f"{obj['kind']} in {place}: {refused}"
            )
        for references in strangers:
            asked = made | {"metadata": made["metadata"] | {"ownerReferences": references}}
            assert "-owner'" in (refused := thief.creates(asked)), f"{obj['kind']} of {references}: {refused}"


def test_what_is_anothers_is_neither_changed_nor_taken_nor_deleted(
    stage: Stage, thief: Thief, owner: Owner
) -> None:
    theirs = o.deployment(replicas=0)
    theirs["metadata"] = {"name": "shop", "labels": {names.LABEL_NAME: "theirs"}}
    stranger = put(stage, theirs)
    relabelled = {"metadata": {"labels": LABELLED}}
    for patch in (
        {"spec": {"replicas": 3}},
        relabelled,
        {"metadata": {"ownerReferences": [owner.reference()]}},
    ):
        assert "-owner'" in (refused := thief.patches(stranger, patch)), refused
    assert "is not the operator's" in thief.deletes(stranger)
    service = put(
        stage,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "shop"},
            "spec": {"ports": [{"port": 80}]},
        },
    )
    assert "-owner'" in thief.patches(
        service, {"spec": {"selector": {names.LABEL_NAME: "m"}}}
    ) and "is not the operator's" in thief.deletes(service)


def test_of_pods_only_servers_that_are_being_deleted_get_less_time(stage: Stage, thief: Thief) -> None:
    less = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 1}
    spec = o.template()["spec"] | {"initContainers": []}
    servers = {names.LABEL_COMPONENT: names.COMPONENT_SERVER}
    kubectl, there = stage.cluster.kubectl, ("-n", stage.namespace)

    def made(name: str, labels: dict[str, str]) -> str:
        """A pod that does not go, however often it is deleted; its path."""
        replica_set = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "m", "uid": "none", "controller": True
        }  # fmt: skip
        about = {"name": name, "labels": labels, "ownerReferences": [replica_set]}
        put(stage, {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}, finalizers=[KEEPS])
        return POD.path(stage.namespace, name)

    alone = put(
        stage,
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone", "labels": servers}, "spec": spec},
    )
    kept = {"server": made("server", servers), "other": made("other", {"app": "shop"})}
    try:
        refused = thief.asks("DELETE", POD.path(stage.namespace, alone["metadata"]["name"]), less)
        assert "-ends'" in refused and "deletes no pod" in refused, refused
        for name in kept:
            kubectl("delete", "pod", name, *there, "--wait=false")
        assert thief.asks("DELETE", kept["server"], less) == ""
        assert "deletes no pod" in thief.asks("DELETE", kept["other"], less)
        assert "403: " in thief.asks("DELETE", POD.path(stage.namespace)), "not many at once"
    finally:
        for name in kept:
            kubectl("patch", "pod", name, *there, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def test_what_is_its_own_is_changed_and_deleted_and_never_given_away(
    stage: Stage, thief: Thief, owner: Owner
) -> None:
    mine = put(stage, owned(o.deployment(replicas=0), owner))
    assert thief.patches(mine, {"spec": {"replicas": 1}}) == ""
    assert "-owner'" in thief.patches(mine, {"metadata": {"ownerReferences": None}})
    assert "-owner'" in thief.patches(
        mine,
        {"metadata": {"ownerReferences": [owner.reference() | {"apiVersion": "v1", "kind": "ConfigMap"}]}},
    )
    more = {"spec": {"template": {"spec": {"hostPID": True}}}}
    assert "-pods'" in thief.patches(mine, more)
    assert thief.deletes(mine) == ""
    # Whatever a user with rights of his own has written into it, it may be scaled down.
    stage.cluster.kubectl(
        "patch", "deployment", mine["metadata"]["name"], "-n", stage.namespace, "-p", json.dumps(more)
    )
    assert thief.patches(mine, {"spec": {"replicas": 0}}) == ""
    assert "-pods'" in thief.patches(mine, {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}})
    orphan = put(stage, owned(o.deployment(replicas=0), owner), name="orphan", ownerReferences=[])
    assert thief.patches(orphan, {"metadata": {"ownerReferences": [owner.reference()]}}) == ""
    assert "-owner'" in thief.patches(orphan, {"spec": {"replicas": 1}})
    brought_back = put(stage, revision(stage.namespace), name="brought-back", labels=LABELLED)
    assert (
        thief.patches(brought_back, {"metadata": {"annotations": {names.ANNOTATION_OUTCOME: "Stable"}}}) == ""
    )
    opened = put(stage, owned(server.stable_service(o.DEPLOYMENT, "m-1"), owner))
    stage.cluster.kubectl(
        "patch",
        "service",
        opened["metadata"]["name"],
        "-n",
        stage.namespace,
        "-p",
        '{"spec": {"type": "NodePort"}}',
    )
    assert thief.patches(opened, {"spec": {"selector": {names.LABEL_REVISION: "m-2"}}}) == ""
    assert "-traffic'" in thief.patches(opened, {"spec": {"type": "LoadBalancer"}})


def test_leases_and_events_are_in_its_own_name(stage: Stage, thief: Thief) -> None:
    def lease(name: str, namespace: str = SYSTEM_NAMESPACE) -> str:
        return thief.creates(
            {
                "apiVersion": LEASE.api_version,
                "kind": "Lease",
                "metadata": {"name": name, "namespace": namespace},
            },
            LEASE,
        )

    def event(component: str) -> str:
        about = {"kind": "ModelDeployment", "namespace": stage.namespace, "name": "m"}
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "m.1", "namespace": stage.namespace},
            "involvedObject": about,
        }
        return thief.creates(
            {**body, "reason": "A", "message": "b", "type": "Normal", "source": {"component": component}},
            EVENT,
        )

    assert (
        lease(names.slot_name("trial", 0))
        == lease(names.host_lease("trial.example.com"))
        == event("modelrollout-operator")
        == ""
    )
    assert "-records'" in lease("cert-manager-controller") and "cannot create" in lease(
        "kube-scheduler", "kube-system"
    )
    assert "-records'" in event("kubelet")


def test_the_rights_end_where_the_code_does(stage: Stage, thief: Thief, owner: Owner) -> None:
    place = {"metadata": {"name": "x", "namespace": stage.namespace}}
    tried = {
        "a pod": thief.asks(
            "POST",
            POD.path(stage.namespace),
            {"apiVersion": "v1", "kind": "Pod", **place, "spec": o.pod(o.resolve())},
        ),
        "a Secret": thief.asks("GET", SECRET.path(stage.namespace, "s3")),
        "all Secrets": thief.asks("GET", SECRET.path(None)),
        "one pod": thief.asks("GET", POD.path(stage.namespace, "x")),
        "a shell": thief.asks("POST", POD.path(stage.namespace, "x") + "/exec"),
        "a token": thief.asks(
            "POST", f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts/default/token", {"spec": {}}
        ),
        "a ModelDeployment": thief.asks(
            "PATCH", MODEL_DEPLOYMENT.path(stage.namespace, "x"), {"spec": {}}, MERGE_PATCH
        ),
        "a Gateway": thief.asks("PATCH", GATEWAY.path(stage.namespace, "x"), {"spec": {}}, MERGE_PATCH),
        "a GatewayClass": thief.asks("DELETE", GATEWAY_CLASS.path(None, "x")),
        "a whole ModelRevision": thief.asks(
            "PUT", MODEL_REVISION.path(stage.namespace, "owner"), revision(stage.namespace)
        ),
        "status by patch": thief.asks(
            "PATCH", MODEL_REVISION.path(stage.namespace, "owner") + "/status", {"status": {}}, MERGE_PATCH
        ),
        "more rights": thief.asks(
            "POST", BINDING.path(None), {"apiVersion": BINDING.api_version, "kind": BINDING.kind, **place}
        ),
        "no policy": thief.asks("DELETE", BOUND.path(None, f"{RELEASE}-owner")),
        "many at once": thief.asks("DELETE", DEPLOYMENT.path(stage.namespace)),
    }
    for what, refused in tried.items():
        assert refused.startswith("403: ") and "cannot" in refused, f"{what}: {refused}"
