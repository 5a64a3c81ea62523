"""What holds for every object that the operator makes."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import TypeAdapter

from modelrollout.api import names
from modelrollout.contract.common import CREDENTIALS_DIR
from modelrollout.contract.tasks import Task
from modelrollout.resources.common import Object
from tests.unit.resources import objects as o

EVERYTHING = o.everything()
RUNNING = [obj for obj in EVERYTHING if obj["kind"] in ("Job", "Deployment")]


def name_of(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['name'][-14:]}"


@pytest.mark.parametrize("obj", EVERYTHING, ids=name_of)
def test_names_and_labels_fit_for_the_longest_name(obj: Object) -> None:
    assert len(obj["metadata"]["name"]) <= 63
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", obj["metadata"]["name"]), (
        "also where a Service is named so"
    )
    for value in obj["metadata"]["labels"].values():
        assert len(value) <= 63 and re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value)


@pytest.mark.parametrize("obj", EVERYTHING, ids=name_of)
def test_labels_are_ours_alone(obj: Object) -> None:
    """A tracking label of Argo CD or Helm would make that tool claim the child and prune it."""
    actual = set(obj["metadata"]["labels"]) | set(
        obj["spec"].get("template", {}).get("metadata", {}).get("labels", {})
    )
    assert all(key.startswith(f"{names.GROUP}/") or key == names.LABEL_MANAGED_BY for key in actual)
    assert obj["metadata"]["labels"][names.LABEL_NAME] == o.NAME


@pytest.mark.parametrize("obj", EVERYTHING, ids=name_of)
def test_the_garbage_collector_knows_the_owner(obj: Object) -> None:
    (owner,) = obj["metadata"]["ownerReferences"]
    assert owner["controller"] is True and "blockOwnerDeletion" not in owner, (
        "that would need a permission on finalizers"
    )
    mine = names.LABEL_NUMBER in obj["metadata"]["labels"]
    assert (owner["kind"], owner["uid"]) == (
        ("ModelRevision", "uid-rev") if mine else ("ModelDeployment", "uid-md")
    )


@pytest.mark.parametrize("obj", EVERYTHING, ids=name_of)
def test_the_same_input_gives_the_same_object_and_it_is_json(obj: Object) -> None:
    again = {name_of(x): x for x in o.everything()}
    assert json.loads(json.dumps(obj)) == again[name_of(obj)]


@pytest.mark.parametrize("obj", RUNNING, ids=name_of)
def test_pods_keep_to_the_restricted_pod_security_standard(obj: Object) -> None:
    security = o.pod(obj)["securityContext"]
    assert (
        security["runAsNonRoot"] is True
        and security["runAsUser"] > 0
        and security["seccompProfile"] == {"type": "RuntimeDefault"}
    )
    for container in o.containers(obj):
        own = container["securityContext"]
        assert (
            own["allowPrivilegeEscalation"] is False
            and own["capabilities"] == {"drop": ["ALL"]}
            and own["readOnlyRootFilesystem"] is True
        )
    assert {next(iter(set(v) - {"name"})) for v in o.pod(obj)["volumes"]} <= {"emptyDir", "secret"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(o.pod(obj))


@pytest.mark.parametrize("obj", RUNNING, ids=name_of)
def test_pods_have_no_access_to_the_api(obj: Object) -> None:
    assert o.pod(obj)["automountServiceAccountToken"] is False and o.pod(obj)["enableServiceLinks"] is False


@pytest.mark.parametrize("obj", RUNNING, ids=name_of)
def test_every_container_has_a_scratch_and_limits(obj: Object) -> None:
    for container in o.containers(obj):
        assert "/tmp" in {m["mountPath"] for m in container["volumeMounts"]}, "the root is read-only"
        assert container["resources"].get("limits")
        assert container["imagePullPolicy"] == "Always"
        assert (
            container["resources"]["limits"]["ephemeral-storage"]
            and container["resources"]["requests"]["ephemeral-storage"] == "0"
        )
    assert all(v["emptyDir"].get("sizeLimit") for v in o.pod(obj)["volumes"] if "emptyDir" in v), (
        "a stranger's container must not fill the node"
    )
    volumes = [v["name"] for v in o.pod(obj)["volumes"]]
    assert len(set(volumes)) == len(volumes)
    assert {m["name"] for c in o.containers(obj) for m in c["volumeMounts"]} <= set(volumes)


@pytest.mark.parametrize("obj", RUNNING, ids=name_of)
def test_tasks_are_what_the_programs_read(obj: Object) -> None:
    task = o.task(obj)
    assert TypeAdapter(Task).validate_python(task).task == task["task"]


@pytest.mark.parametrize("obj", RUNNING, ids=name_of)
def test_credentials_are_mounted_and_never_required_or_passed(obj: Object) -> None:
    """A missing Secret is told by the program with a reason, and not by a pod that hangs."""
    text = json.dumps(obj)
    assert "secretKeyRef" not in text and "envFrom" not in text
    for volume in o.pod(obj)["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["optional"] is True
    named = set(re.findall(r'\\"credentials\\": ?\\"([^\\]+)', text))
    mounted = {
        m["mountPath"].removeprefix(f"{CREDENTIALS_DIR}/")
        for c in o.containers(obj)
        for m in c["volumeMounts"]
        if CREDENTIALS_DIR in m["mountPath"]
    }
    assert named == mounted
    assert all(
        m["readOnly"]
        for c in o.containers(obj)
        for m in c["volumeMounts"]
        if CREDENTIALS_DIR in m["mountPath"]
    )
