"""A thousand deep, wide, huge and odd objects, while another ModelDeployment rolls out: no restart,
its times as ever, and each is named.

First with the definitions as they are, then with their schema taken away, and as pods, Services and
routes with our labels.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from kubernetes import config

from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster
from tests.e2e.conftest import Stage
from tests.odd_objects import children, model_deployments

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]
log = logging.getLogger(__name__)

ATTACKER = "e2e-odd-attacker"
DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.modelrollout.dev"
MDEPS = f"/apis/modelrollout.dev/v1alpha1/namespaces/{ATTACKER}/modeldeployments"
OPERATORS = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"


class Raw:
    """The API server without a client between: no JSON writer of Python's writes the deep ones."""

    def __init__(self, cluster: Cluster) -> None:
        target = cluster.target
        client: Any = config.new_client_from_config(  # type: ignore[no-untyped-call]
            config_file=str(target.kubeconfig) if target.kubeconfig else None, context=target.context
        )
        actual = client.configuration
        self.host, self.session = actual.host, requests.Session()
        # a bundle of certificates of the environment would take the place of the cluster's
        self.session.trust_env = False
        self.session.verify = actual.ssl_ca_cert or actual.verify_ssl
        self.session.cert = (actual.cert_file, actual.key_file) if actual.cert_file else None
        if token := actual.get_api_key_with_prefix("BearerToken"):
            self.session.headers["Authorization"] = token

    def send(
        self, method: str, path: str, body: str | None = None, content_type: str = "application/json"
    ) -> requests.Response:
        data = None if body is None else body.encode()
        return self.session.request(
            method, self.host + path, data=data, headers={"Content-Type": content_type}, timeout=60
        )


@pytest.fixture(scope="module")
def raw(operator: Cluster) -> Iterator[Raw]:
    """With a namespace for the attacker; the definition is as it was afterwards, and what is odd is
    gone.
    """
    operator.fresh_namespace(ATTACKER)
    made = Raw(operator)
    before = made.send("GET", DEFINITION).json()["spec"]
    try:
        yield made
    finally:
        made.send("DELETE", MDEPS)
        made.send("PATCH", DEFINITION, json.dumps({"spec": before}), "application/merge-patch+json")
        operator.kubectl("delete", "namespace", ATTACKER, "--wait=false")


def restarts(cluster: Cluster) -> dict[str, int]:
    """Of the operator's containers, by pod."""
    labels = f"app.kubernetes.io/instance={RELEASE}"
    pods = [
        p
        for p in cluster.pods(SYSTEM_NAMESPACE, labels)
        if p["metadata"]["name"].startswith(RELEASE) and "feedback" not in p["metadata"]["name"]
    ]
    return {p["metadata"]["name"]: c["restartCount"] for p in pods for c in p["status"]["containerStatuses"]}


class Victim:
    """A ModelDeployment that gets a new version again and again: other pods each time, from the
    same file.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.version = stage, 0

    def rolled_out(self) -> float:
        """Seconds from the change until the new version has all traffic."""
        self.version += 1
        resources = {
            "limits": {"nvidia.com/gpu": 1, "cpu": "500m", "memory": "512Mi"},
            "requests": {"cpu": "20m", "memory": "128Mi"},
        }
        serving = {"replicas": 1, "resources": resources, "startupTimeout": f"{600 + self.version}s"}
        begun = time.monotonic()
        self.stage.apply(
            self.stage.deployment("victim", serving=serving, rollout={"blueGreen": {"for": "2s"}})
        )
        self.stage.until_ready("victim", 240)
        return time.monotonic() - begun


def unreadable(cluster: Cluster) -> float:
    """The attacker's ModelDeployments that the operator leaves out, by its metric."""
    total = 0.0
    for pod in cluster.pods(SYSTEM_NAMESPACE, OPERATORS):
        text = requests.get(f"http://{pod['status']['podIP']}:8081/metrics", timeout=20).text
        counts = [
            line.rpartition(" ")
            for line in text.splitlines()
            if line.startswith("modelrollout_objects_unreadable{")
        ]
        total = max(
            total,
            sum(
                float(value)
                for labels, _, value in counts
                if ATTACKER in labels and "ModelDeployment" in labels
            ),
        )
    return total


def test_a_thousand_odd_objects_disturb_no_model(stage: Stage, raw: Raw) -> None:
    cluster = stage.cluster
    victim = Victim(stage)
    victim.rolled_out()  # the first version prepares the model
    quiet = victim.rolled_out()
    before = restarts(cluster)
    assert len(before) == 2, before

    def write(path: str, body: str) -> int:
        return raw.send("POST", path, body).status_code

    def flood(seed: int, count: int) -> list[int]:
        return [write(MDEPS, body) for _, body in model_deployments(ATTACKER, count, seed)]

    with ThreadPoolExecutor(2) as pool:
        # the definitions as they are: most is refused, the rest is cut to what the schema knows
        codes = pool.submit(flood, 1, 250)
        took = [victim.rolled_out()]
        assert set(codes.result()) <= {201, 400, 413, 422, 500, 504}, set(codes.result())
        assert unreadable(cluster) == 0

        # without a schema
        opened = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        versions = raw.send("GET", DEFINITION).json()["spec"]["versions"]
        versions[0]["schema"]["openAPIV3Schema"] = opened
        assert (
            raw.send(
                "PATCH",
                DEFINITION,
                json.dumps({"spec": {"versions": versions}}),
                "application/merge-patch+json",
            ).status_code
            == 200
        )
        probe = {
            "apiVersion": "modelrollout.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "probe"},
            "spec": {"odd": True},
        }

        def programmed() -> bool:
            """The API server says nowhere when it goes by the new definition."""
            retained = raw.send("POST", f"{MDEPS}?dryRun=All", json.dumps(probe))
            return retained.status_code == 201 and "odd" in retained.json()["spec"]

        stage.until("the schema is gone", programmed, 30)
        codes = pool.submit(flood, 2, 350)
        took.append(victim.rolled_out())
        stored = codes.result().count(201)
        assert stored > 200
        stage.until("what cannot be read is counted", lambda: unreadable(cluster) > 50, 60)

        # pods, Services and routes with our labels: with a name that no model has, and beside the
        # victim with its own
        where = [(ATTACKER, "no-model"), (stage.namespace, "victim")]
        parts = [
            pool.submit(lambda n=n, of=of, s=s: [write(*o) for o in children(n, of, 200, s)])
            for s, (n, of) in enumerate(where, 3)
        ]  # type: ignore[misc]
        took.append(victim.rolled_out())
        for part in parts:
            assert part.result().count(201) > 100

    after = victim.rolled_out()
    log.info(
        "rollouts took %s s while they came, %.1f s after, %.1f s before; %.0f are left out",
        took,
        after,
        quiet,
        unreadable(cluster),
    )
    assert restarts(cluster) == before
    events = cluster.get(f"/api/v1/namespaces/{ATTACKER}/events")["items"]
    assert any(e["reason"] == "Unreadable" and "correct it or delete it" in e["message"] for e in events)


def test_they_are_named_until_they_are_gone(stage: Stage, raw: Raw) -> None:
    assert raw.send("DELETE", MDEPS).status_code == 200
    stage.until("nothing is left out any more", lambda: unreadable(stage.cluster) == 0, 120)
