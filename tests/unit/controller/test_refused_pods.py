"""A pod that is refused is explained with the remedy for what refused it."""

from __future__ import annotations

import pytest

from modelrollout.controller.observe.refused_pods import refused_pod, refused_server
from modelrollout.controller.observe.servers import servers
from modelrollout.testing import builders as b

QUOTA = 'pods "x-1" is forbidden: exceeded quota: small, requested: cpu=4, used: cpu=2, limited: cpu=4'
POLICY = (
    "pods \"x-1\" is forbidden: ValidatingAdmissionPolicy 'owners' with binding 'owners' denied request: no"
    " label owner"
)
WEBHOOK = 'admission webhook "validate.example.com" denied the request: no label owner'
ACCOUNT = (
    'pods "x-" is forbidden: error looking up service account team/robot: serviceaccount "robot" not found'
)


@pytest.mark.parametrize(
    ("quoted", "remedy"),
    [
        (QUOTA, "change spec.serving.resources, or what the namespace allows"),
        (POLICY, "do what it demands, or have it changed for this namespace"),
        (WEBHOOK, "do what it demands, or have it changed for this namespace"),
        (ACCOUNT, "create that ServiceAccount, or correct spec.serving.serviceAccountName"),
    ],
)
def test_the_remedy_is_for_what_refused_it(quoted: str, remedy: str) -> None:
    problem = refused_pod("Deployment x", quoted, "spec.serving.resources")
    assert problem.reason == "PodRefused"
    assert problem.message == f"Deployment x gets no pod: {quoted}; {remedy}"


def test_a_servers_refusal_is_read_from_its_deployment() -> None:
    """The Deployment controller copies it from the ReplicaSet, which is not watched."""
    name = b.revision_name(2)
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": name, "generation": 1},
        "spec": {"replicas": 2, "template": {"metadata": {}, "spec": {"containers": []}}},
        "status": {
            "observedGeneration": 1,
            "conditions": [
                {"type": "Progressing", "status": "True"},
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA},
            ],
        },
    }
    observed = servers({("Deployment", name): deployment}, ())[name]
    assert observed.problem is not None
    assert QUOTA in observed.problem.message
    deployment["status"]["conditions"][1]["status"] = "False"  # type: ignore[index]
    assert refused_server(deployment) is None
