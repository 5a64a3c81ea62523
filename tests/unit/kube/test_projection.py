"""What is kept of an object is all that anybody reads, and no more."""

from __future__ import annotations

import json
from typing import Any

from modelrollout.api import names
from modelrollout.contract.common import TASK_ENV
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, JOB, MODEL_DEPLOYMENT, POD, SERVICE
from modelrollout.kube.projection import MESSAGE, node_for_capacity, pod_for_capacity, project

FILLER = "x" * 1000


def metadata(**more: Any) -> dict[str, Any]:
    return {
        "name": "a", "namespace": "ml", "uid": "u", "resourceVersion": "1", "labels": {names.LABEL_NAME: "a"},
        "ownerReferences": [{"uid": "o"}],
        "managedFields": [FILLER], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": FILLER,
            f"{names.GROUP}/promote": "1"}, **more,
    }  # fmt: skip


CONTAINER = {"name": "c", "image": "i", "command": ["x"],
    "env": [{"name": "E", "value": FILLER}, {"name": TASK_ENV, "value": "{}"}],
             "resources": {"limits": {"memory": "1Gi"}}, "volumeMounts": [FILLER]}  # fmt: skip
STATUS = {
    "name": "c",
    "state": {"terminated": {"exitCode": 1, "message": "m" * 100_000}},
    "ready": False,
    "imageID": FILLER,
}


def pod() -> dict[str, Any]:
    spec = {
        "containers": [CONTAINER],
        "initContainers": [CONTAINER],
        "nodeName": "n",
        "volumes": [FILLER],
        "affinity": {"a": FILLER},
    }
    status = {
        "phase": "Failed",
        "containerStatuses": [STATUS],
        "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": FILLER}],
        "podIPs": [FILLER],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(), "spec": spec, "status": status}


def test_a_pod_without_what_fills_it() -> None:
    projected = project(POD, pod())
    assert FILLER not in json.dumps(projected)
    assert projected["spec"]["containers"][0] == {
        "name": "c", "image": "i", "command": ["x"], "resources": {"limits": {"memory": "1Gi"}},
        "env": [{"name": TASK_ENV, "value": "{}"}],
    }  # fmt: skip
    assert projected["spec"]["nodeName"] == "n" and projected["metadata"]["ownerReferences"] == [{"uid": "o"}]
    ended = projected["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended == {"exitCode": 1, "message": "m" * MESSAGE}, (
        "a kubelet writes no more, whoever writes a pod's status may"
    )


def test_a_job_keeps_what_was_asked_and_how_it_stands() -> None:
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(),
        "spec": {"suspend": True, "template": pod()},
        "status": {"conditions": []},
    }
    projected = project(JOB, body)
    assert "affinity" not in json.dumps(projected) and "managedFields" not in json.dumps(projected)
    assert projected["spec"]["template"]["spec"]["containers"] == [CONTAINER], "by it its pods are compared"
    assert (
        projected["spec"]["suspend"] is True
        and projected["metadata"]["annotations"] == {f"{names.GROUP}/promote": "1"}
        and projected["status"] == {"conditions": []}
    )


def test_of_others_everything_that_is_compared_stays() -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(),
        "spec": {"ports": [FILLER]},
        "status": {"a": 1},
    }
    for resource in (SERVICE, MODEL_DEPLOYMENT):
        projected = project(resource, body)
        assert (projected["spec"], projected["status"]) == (body["spec"], body["status"])
        assert (
            projected["metadata"]["annotations"] == {f"{names.GROUP}/promote": "1"}
            and "managedFields" not in projected["metadata"]
        )
    assert "managedFields" in body["metadata"], "the object itself is not touched"


def test_objects_without_parts_have_none() -> None:
    for resource in (POD, JOB, SERVICE):
        assert project(resource, {"metadata": {"name": "a"}})["metadata"]["name"] == "a"
        project(resource, {"metadata": {"name": "a", "annotations": None}, "spec": None, "status": None})


def test_for_capacity_only_what_is_counted() -> None:
    projected = pod_for_capacity(pod())
    assert FILLER not in json.dumps(projected) and projected["spec"]["containers"] == [
        {"resources": {"limits": {"memory": "1Gi"}}}
    ]
    node = {
        "metadata": metadata(),
        "spec": {"taints": []},
        "status": {"allocatable": {"cpu": "1"}, "images": [FILLER], "conditions": []},
    }
    projected = node_for_capacity(node)
    assert (
        FILLER not in json.dumps(projected)
        and projected["status"] == {"allocatable": {"cpu": "1"}, "conditions": []}
        and projected["spec"] == {"taints": []}
    )


def test_of_managed_fields_only_foreign_edits_of_a_childs_spec_are_kept() -> None:
    """Who edited a child is named when that is put back."""
    entries = [
        {"manager": names.FIELD_MANAGER, "fieldsV1": {"f:spec": {"f:ports": {}}}},
        {
            "manager": "kubectl-edit",
            "time": FILLER,
            "fieldsV1": {"f:spec": {"f:selector": {}}, "f:x": FILLER},
        },
    ]
    service = {"kind": "Service", "metadata": metadata(managedFields=entries), "spec": {"selector": {}}}
    projected = project(SERVICE, service)
    assert projected["metadata"]["managedFields"] == [
        {"manager": "kubectl-edit", "fieldsV1": {"f:spec": {"f:selector": {}}}}
    ]
    assert project(SERVICE, projected) == projected
    for kind in (MODEL_DEPLOYMENT, POD, JOB):
        assert "managedFields" not in project(kind, service)["metadata"]


def test_of_a_gateway_what_says_which_routes_it_carries_is_kept() -> None:
    condition = {
        "type": "Programmed",
        "status": "True",
        "reason": "R",
        "message": "m",
        "observedGeneration": 1,
    }
    timed = condition | {"lastTransitionTime": FILLER}
    listener = {"name": "http", "hostname": "*.x", "protocol": "HTTP", "allowedRoutes": {"namespaces": {}}}
    gateway = {
        "kind": "Gateway",
        "metadata": metadata(),
        "spec": {"gatewayClassName": "c", "addresses": [FILLER], "listeners": [listener | {"tls": FILLER}]},
        "status": {
            "addresses": [FILLER],
            "conditions": [timed],
            "listeners": [{"name": "http", "attachedRoutes": 7, "conditions": [timed]}, FILLER],
        },
    }
    projected = project(GATEWAY, gateway)
    assert projected["spec"] == {"gatewayClassName": "c", "listeners": [listener]}
    assert projected["status"] == {
        "conditions": [condition],
        "listeners": [{"name": "http", "conditions": [condition]}],
    }
    assert FILLER not in json.dumps(projected)
    of_class = {
        "kind": "GatewayClass",
        "metadata": metadata(),
        "spec": {"controllerName": "x/y", "description": FILLER},
        "status": {"conditions": [timed], "supportedFeatures": ["A"]},
    }
    projected = project(GATEWAY_CLASS, of_class)
    assert projected["spec"] == {"controllerName": "x/y"} and FILLER not in json.dumps(projected)
    assert projected["status"] == {"conditions": [condition], "supportedFeatures": ["A"]}
