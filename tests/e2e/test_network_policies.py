"""NetworkPolicies switched on, used and taken away by the chart's values, on models that run
(docs/how-to/network.md).

The sandbox's network enforces none: what they let through is tested in
tests/unit/resources/test_network.py. The ranges here are wide, so that a network that does enforce
them lets the tests through wherever gateway, Prometheus and store are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from demo.cluster import RELEASE, SYSTEM_NAMESPACE
from demo.setup import CHART
from tests.e2e.conftest import Stage
from tests.e2e.models import inputs

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]

NAME, HOST = "fenced", "fenced.e2e.example"
ANYWHERE = ["0.0.0.0/0", "::/0"]
ALL = {f"{NAME}-{part}" for part in ("servers", "comparer", "jobs", "evaluate")}


def policies(stage: Stage) -> dict[str, dict[str, Any]]:
    actual = stage.cluster.get(f"/apis/networking.k8s.io/v1/namespaces/{stage.namespace}/networkpolicies")[
        "items"
    ]
    return {p["metadata"]["name"]: p for p in actual}


def selected(stage: Stage, policy: dict[str, Any]) -> set[str]:
    """Names of the pods that the API server finds by the policy's selector."""
    selector = policy["spec"]["podSelector"]
    terms = [f"{k}={v}" for k, v in selector["matchLabels"].items()]
    terms += [f"{e['key']} in ({','.join(e['values'])})" for e in selector.get("matchExpressions", [])]
    return {
        line.removeprefix("pod/")
        for line in stage.cluster.kubectl(
            "get", "pods", "-n", stage.namespace, "-l", ",".join(terms), "-o", "name"
        ).split()
    }


def answers(stage: Stage) -> None:
    """From inside and through the gateway."""
    x, _ = inputs(2, 5)
    assert stage.answers(NAME, x)["logits"].shape == (2, 4)
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/ready"
    stage.until(
        "the gateway leads to it",
        lambda: requests.get(url, headers={"Host": HOST}, timeout=10).status_code == 200,
        30,
    )


@pytest.fixture(scope="module")
def switched(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """Sets the mode, for this namespace alone; in the end the operator knows nothing of policies
    again.
    """
    target = stage.cluster.target
    store = urlsplit(target.store.endpoint_in_cluster)
    everybody = {"namespaces": [target.gateway.namespace], "addresses": ANYWHERE}
    at = {"namespaces": ["kube-system"], "addresses": ANYWHERE}
    models = {
        "namespaces": [stage.namespace],
        "proxies": everybody,
        "prometheus": {"addresses": ANYWHERE},
        "dns": at,
        "stores": [at | {"ports": [store.port or 443]}],
    }
    path = tmp_path_factory.mktemp("network") / "values.yaml"
    now = "Ignore"

    def switch(mode: str) -> None:
        nonlocal now
        if mode == now:  # each is an upgrade of half a minute
            return
        now = mode
        path.write_text(yaml.safe_dump({"networkPolicy": {"models": {"mode": mode} | models}}))
        where = [
            "--namespace",
            SYSTEM_NAMESPACE,
            "--reuse-values",
            "--values",
            str(path),
            "--wait",
            "--timeout",
            "5m",
        ]
        stage.cluster.helm("upgrade", RELEASE, str(CHART), *where)

    yield switch
    switch("Ignore")


def test_policies_come_to_what_runs_select_its_pods_and_go(
    stage: Stage, switched: Callable[[str], None]
) -> None:
    gateway = {"name": stage.cluster.target.gateway.name, "namespace": stage.cluster.target.gateway.namespace}
    traffic = {"gateway": gateway, "http": {"hostnames": [HOST]}, "clients": {"namespaces": ["e2e-shop"]}}
    stage.apply(stage.deployment(NAME, traffic=traffic))
    stage.until_ready(NAME)
    assert not policies(stage)
    servers = f"modelrollout.dev/name={NAME},modelrollout.dev/component=server"
    before = {p["metadata"]["name"] for p in stage.cluster.pods(stage.namespace, servers)}

    switched("Write")
    stage.until("all policies are there", lambda: set(policies(stage)) == ALL, 60)
    live = policies(stage)
    assert selected(stage, live[f"{NAME}-servers"]) == before, "the very pods, and none of them is new"
    jobs = {
        p["metadata"]["name"] for p in stage.cluster.pods(stage.namespace, "batch.kubernetes.io/job-name")
    }
    assert jobs and selected(stage, live[f"{NAME}-jobs"]) == jobs
    assert "e2e-shop" in json.dumps(
        live[f"{NAME}-servers"]["spec"]["ingress"]
    ) and "e2e-shop" not in json.dumps(live[f"{NAME}-comparer"])
    assert "ingress" not in live[f"{NAME}-jobs"]["spec"]
    answers(stage)

    # another version comes under them: its Jobs reach the store, its servers fetch
    stage.apply(stage.deployment(NAME, "better.onnx", traffic=traffic, rollout={"blueGreen": {"for": "2s"}}))
    stage.until_ready(NAME, 240)
    assert selected(stage, live[f"{NAME}-servers"]) - before and set(policies(stage)) == ALL
    answers(stage)

    # what a user opens is shut again
    stage.cluster.kubectl(
        "patch",
        "networkpolicy",
        f"{NAME}-jobs",
        "-n",
        stage.namespace,
        "--type=merge",
        "-p",
        '{"spec": {"ingress": [{}]}}',
    )
    stage.until("it is shut", lambda: "ingress" not in policies(stage)[f"{NAME}-jobs"]["spec"], 30)
    stage.cluster.kubectl("delete", "networkpolicy", f"{NAME}-servers", "-n", stage.namespace)
    stage.until("it is back", lambda: set(policies(stage)) == ALL, 30)
    assert "Isolated" not in {c["type"] for c in stage.get(NAME)["status"]["conditions"]}


def test_without_the_right_it_is_told_and_the_model_goes_on(
    stage: Stage, switched: Callable[[str], None]
) -> None:
    """The right is taken away by hand, as if it were forgotten in roles of a platform's own."""
    switched("Write")
    role = f"clusterrole/{RELEASE}"
    rules = json.loads(stage.cluster.kubectl("get", role, "-o", "json"))["rules"]
    (index,) = [i for i, r in enumerate(rules) if "networkpolicies" in r["resources"]]
    less = [{"op": "replace", "path": f"/rules/{index}/verbs", "value": ["get", "list", "watch", "delete"]}]
    stage.cluster.kubectl("patch", role, "--type=json", "-p", json.dumps(less))
    name = "unfenced"
    stage.apply(stage.deployment(name))
    stage.until_ready(name)
    told = stage.until(
        "it is told",
        lambda: next((c for c in stage.get(name)["status"]["conditions"] if c["type"] == "Isolated"), None),
        30,
    )
    assert (
        told["status"] == "False" and told["reason"] == "ChildRefused" and "forbidden" in told["message"]
    ), told
    again = [{"op": "replace", "path": f"/rules/{index}/verbs", "value": rules[index]["verbs"]}]
    stage.cluster.kubectl("patch", role, "--type=json", "-p", json.dumps(again))
    stage.until("they are written by themselves", lambda: f"{name}-servers" in policies(stage), 150)
    stage.until(
        "it is well",
        lambda: all(c["type"] != "Isolated" for c in stage.get(name)["status"]["conditions"]),
        30,
    )
    assert "Isolated" in stage.events(name)
    stage.cluster.kubectl("delete", "mdep", name, "-n", stage.namespace)
    stage.until("its policies went with it", lambda: f"{name}-servers" not in policies(stage), 60)


def test_switched_off_they_are_taken_away(stage: Stage, switched: Callable[[str], None]) -> None:
    assert set(policies(stage)) == ALL
    switched("Remove")
    stage.until("they are gone", lambda: not policies(stage), 60)
    answers(stage)
