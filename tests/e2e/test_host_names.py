"""Another team's host name: every way in which one patch of a tenant's own spec.traffic took all of
its requests (docs/reference/policies.md, Host names).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import requests

from demo.cluster import SYSTEM_NAMESPACE
from tests.e2e import models
from tests.e2e.conftest import Stage, made_stage

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME = "vhost"  # of both: routes let only their own model's name through
HOST, GRPC_HOST, OWN = "vhost.e2e.example", "vhost-grpc.e2e.example", "attacker.e2e.example"
LONG = f"{'x' * 60}.{'y' * 60}.e2e.example"
X = np.full((1, models.FEATURES), 0.5, dtype=np.float32)


def who(stage: Stage, host: str, name: str = NAME) -> str:
    """Whose model answers."""
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{name}/infer"
    body = {"inputs": [{"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}]}
    answer = requests.post(url, json=body, headers={"Host": host}, timeout=10)
    if answer.status_code != 200:
        return str(answer.status_code)
    logits = np.array(answer.json()["outputs"][0]["data"])
    return "victim" if np.allclose(logits, X @ models.WEIGHTS, atol=1e-4) else "attacker"


def asked(stage: Stage, host: str, count: int = 40, name: str = NAME) -> set[str]:
    return {who(stage, host, name) for _ in range(count)}


def health(stage: Stage, host: str) -> int:
    """The status of a path that names no model."""
    url = f"http://{stage.cluster.target.gateway.http}/v2/health/ready"
    return requests.get(url, headers={"Host": host}, timeout=10).status_code


@pytest.fixture(scope="module")
def attacker(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The older ModelDeployment, of another namespace and of the same name, which answers the
    contrary.
    """
    made = made_stage(stage.cluster, f"{stage.namespace}-attacker", tmp_path_factory.mktemp("attacker"))
    theirs = next(made)
    theirs.apply(theirs.deployment(NAME, "wrong.onnx", traffic=theirs.traffic(OWN)))
    theirs.until_ready(NAME)
    stage.apply(stage.deployment(NAME, traffic=stage.traffic(HOST, "second.e2e.example", grpc=GRPC_HOST)))
    stage.until_ready(NAME)
    stage.until(
        "both are served",
        lambda: asked(stage, HOST, 5) == {"victim"} and asked(stage, OWN, 5) == {"attacker"},
    )
    yield theirs
    next(made, None)


@pytest.mark.parametrize(
    ("http", "grpc", "reason", "words"),
    [
        ([HOST], None, "HostnameTaken", f"{HOST} belongs to a ModelDeployment of another namespace"),
        ([OWN], HOST, "HostnameTaken", "spec.traffic.grpc.hostnames[0]"),
        ([GRPC_HOST], None, "HostnameTaken", GRPC_HOST),
        (["*.e2e.example", LONG], None, "HostnameNotAllowed", "a wildcard needs a RolloutPolicy"),
    ],
    ids=["the very name", "as a name for gRPC", "a name for gRPC", "a wildcard beside a long name"],
)
def test_a_patch_of_his_own_spec_takes_nothing(
    stage: Stage, attacker: Stage, http: list[str], grpc: str | None, reason: str, words: str
) -> None:
    attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(*http, grpc=grpc)))
    message = attacker.until_stalled(NAME, reason)
    assert words in message and stage.namespace not in message
    assert asked(stage, HOST) == {"victim"} and stage.condition(NAME, "Ready")["status"] == "True"
    assert asked(stage, OWN, 10) == {"attacker"}, "he keeps what he had"
    attacker.until("it is told by an event", lambda: reason in attacker.events(NAME), 30)
    attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN)))
    attacker.until_ready(NAME)


def test_a_wildcard_that_a_policy_allows_takes_nothing_from_names_that_are_held(
    stage: Stage, attacker: Stage
) -> None:
    pattern = "*.{{namespace}}.e2e.example"
    policy = {
        "apiVersion": "modelrollout.dev/v1alpha1", "kind": "RolloutPolicy",
        "metadata": {"name": "e2e-host-names"},
        "spec": {"selector": {"namespaces": [attacker.namespace]}, "allowedHostnames": [pattern]},
    }  # fmt: skip
    stage.apply(policy)
    try:
        mine = f"*.{attacker.namespace}.e2e.example"
        attacker.apply(
            attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN, "third.e2e.example"))
        )
        assert pattern in attacker.until_stalled(NAME, "HostnameNotAllowed")
        attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN, mine)))
        attacker.until_ready(NAME)
        attacker.until(
            "the wildcard is served",
            lambda: who(attacker, f"any.{attacker.namespace}.e2e.example") == "attacker",
            20,
        )
        policy["spec"]["allowedHostnames"] = ["*"]  # type: ignore[index]
        stage.apply(policy)
        attacker.apply(
            attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN, "*.e2e.example", LONG))
        )
        assert "overlaps" in attacker.until_stalled(NAME, "HostnameTaken")
        assert asked(stage, HOST) == {"victim"} and stage.condition(NAME, "Ready")["status"] == "True"
    finally:
        stage.cluster.kubectl("delete", "rolloutpolicy", "e2e-host-names")
        attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN)))
    attacker.until_ready(NAME)


def test_what_is_refused_keeps_no_name_from_others(stage: Stage, attacker: Stage) -> None:
    squatted = "squatted.e2e.example"
    attacker.apply(
        attacker.deployment(
            "squatter", traffic=attacker.traffic(squatted), model={"uri": "s3://elsewhere/model.onnx"}
        )
    )
    attacker.until_stalled("squatter", "StoreNotAllowed")
    stage.apply(stage.deployment(NAME, traffic=stage.traffic(HOST, squatted, grpc=GRPC_HOST)))
    stage.until_ready(NAME)
    stage.until("it is served", lambda: who(stage, squatted) == "victim", 20)


def test_names_come_and_go_without_a_lost_request(stage: Stage, attacker: Stage) -> None:
    """Another name becomes the first: each has a route of its own, and the one that stays is served
    all the while.
    """
    others = ["first.e2e.example", "zeroth.e2e.example"]
    for names in ([others[0], HOST], [HOST, *others], [others[1], others[0], HOST], [HOST]):
        stage.apply(stage.deployment(NAME, traffic=stage.traffic(*names, grpc=GRPC_HOST)))

        def seen(names: list[str] = names) -> bool:
            assert asked(stage, HOST, 5) == {"victim"}
            routes = json.loads(
                stage.cluster.kubectl("get", "httproutes", "-n", stage.namespace, "-o", "json")
            )["items"]
            return sorted(h for r in routes for h in r["spec"]["hostnames"]) == sorted(names)

        stage.until(f"there are routes for {names}", seen, 30)
    stage.until_ready(NAME)
    leases = json.loads(
        stage.cluster.kubectl(
            "get", "leases", "-n", SYSTEM_NAMESPACE, "-l", "modelrollout.dev/claim=hostname", "-o", "json"
        )
    )["items"]
    mine = [o for o in leases if o["spec"]["holderIdentity"].startswith(f"{stage.namespace}/{NAME}/")]
    assert sorted(o["metadata"]["annotations"]["modelrollout.dev/hostname"] for o in mine) == sorted(
        [HOST, GRPC_HOST]
    )


def test_a_route_that_is_not_the_operators_is_told_and_claims_outlive_the_operator(
    stage: Stage, attacker: Stage
) -> None:
    gateway = stage.cluster.target.gateway
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "theirs", "namespace": attacker.namespace},
        "spec": {
            "parentRefs": [{"name": gateway.name, "namespace": gateway.namespace}], "hostnames": [HOST],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/v2/models"}}],
                "backendRefs": [{"name": NAME, "port": 8000}]}],
        },
    }  # fmt: skip
    stage.apply(route)
    operators = (
        "delete",
        "pods",
        "-n",
        SYSTEM_NAMESPACE,
        "-l",
        "app.kubernetes.io/component=operator",
        "--force",
        "--grace-period=0",
    )
    # a new leader looks at all routes at once; the present one within minutes
    stage.cluster.kubectl(*operators)
    stage.until("it is told", lambda: stage.condition(NAME, "Ready")["reason"] == "HostnameTaken", 90)
    assert "a route of another namespace" in stage.condition(NAME, "Ready")["message"]
    stage.cluster.kubectl("delete", "httproute", "theirs", "-n", attacker.namespace)
    stage.cluster.kubectl(*operators)
    stage.until_ready(NAME)
    assert asked(stage, HOST, 20) == {"victim"}
    attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(HOST)))
    attacker.until_stalled(NAME, "HostnameTaken")


def test_models_share_a_host_name_and_take_nothing_from_each_other(stage: Stage, attacker: Stage) -> None:
    """Within a namespace, and with another one where a policy allows it: each answers under its own
    paths, whoever asks for more.
    """
    beside, theirs = "beside", "theirs"
    stage.apply(stage.deployment(beside, "wrong.onnx", traffic=stage.traffic(HOST)))
    stage.until_ready(beside)
    stage.until("both answer", lambda: who(stage, HOST, beside) == "attacker", 20)
    assert asked(stage, HOST) == {"victim"} and health(stage, HOST) == 200
    policy = {
        "apiVersion": "modelrollout.dev/v1alpha1", "kind": "RolloutPolicy",
        "metadata": {"name": "e2e-shared-host-names"},
        "spec": {"selector": {"namespaces": [attacker.namespace]}, "sharedHostnames": [HOST]},
    }  # fmt: skip
    attacker.apply(attacker.deployment(theirs, "wrong.onnx", traffic=attacker.traffic(HOST)))
    assert "sharedHostnames" in attacker.until_stalled(theirs, "HostnameTaken")
    stage.apply(policy)
    try:
        attacker.until_ready(theirs)
        attacker.until("it answers", lambda: who(attacker, HOST, theirs) == "attacker", 20)
        attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN, HOST)))
        assert f"whose model is called {NAME}, too" in attacker.until_stalled(NAME, "HostnameTaken")
        assert asked(stage, HOST) == {"victim"}
        # it would have the name, which the policy lets it share, as soon as the victim leaves it
        attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(OWN)))
        attacker.until_ready(NAME)
        for name, model, others in ((NAME, (), beside), (beside, ("wrong.onnx",), NAME)):
            # whichever goes, the others and the paths that name no model stay
            alone = stage.traffic(f"{name}-alone.e2e.example")
            stage.apply(stage.deployment(name, *model, traffic=alone))
            stage.until(f"{name} has left", lambda name=name: who(stage, HOST, name) == "404", 30)
            stage.until("the next has the paths of the server", lambda: health(stage, HOST) == 200, 30)
            assert who(stage, HOST, others) != "404" and asked(attacker, HOST, 5, theirs) == {"attacker"}
            stage.apply(stage.deployment(name, *model, traffic=stage.traffic(HOST)))
            stage.until_ready(name)
            stage.until(f"{name} is back", lambda name=name: who(stage, HOST, name) != "404", 30)
    finally:
        stage.cluster.kubectl("delete", "rolloutpolicy", "e2e-shared-host-names")
        for name, space in ((beside, stage), (theirs, attacker)):
            space.cluster.kubectl("delete", "mdep", name, "-n", space.namespace)
        attacker.apply(attacker.deployment(NAME, "wrong.onnx", traffic=attacker.traffic(HOST)))
        stage.apply(stage.deployment(NAME, traffic=stage.traffic(HOST, grpc=GRPC_HOST)))
    stage.until_ready(NAME)
    attacker.until_stalled(NAME, "HostnameTaken")


def test_a_name_is_free_once_its_model_is_gone(stage: Stage, attacker: Stage) -> None:
    stage.cluster.kubectl("delete", "mdep", NAME, "-n", stage.namespace)
    attacker.until_ready(NAME)  # he has asked for it since the test before
    attacker.until("it is his now", lambda: who(attacker, HOST) == "attacker", 20)
