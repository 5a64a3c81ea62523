"""Shadow through the real gateway: a model that agrees goes on, one that does not is rejected, and
clients only ever get stable's answers.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from demo.cluster import NotThereError
from demo.crashes import Failed
from modelrollout.traffic.gateway_api.mirror import is_mirrored
from tests.e2e.conftest import Stage
from tests.e2e.models import FEATURES, inputs

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME, HOST = "shadowed", "shadowed.e2e.example"
TRAEFIK = "/apis/traefik.io/v1alpha1/namespaces/{}/traefikservices"


class BadStatusError(http.client.HTTPException):
    """The gateway or the server answered, but not with 200."""


class Client(threading.Thread):
    """About 60 requests a second; every answer is compared with what the good model says. Every
    other one asks for bytes, not JSON.
    """

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address, self._over = address, threading.Event()
        self.seen: Counter[str] = Counter()
        self.failures: list[Failed] = []
        self.versions: Counter[str] = Counter()
        self._x, self._classes = inputs(256, 11)

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        i = 0
        while not self._over.is_set():
            at = time.time()
            try:
                self.seen[self._ask(connection, i)] += 1
            except (OSError, http.client.HTTPException) as e:
                error = str(e) if isinstance(e, BadStatusError) else type(e).__name__
                self.failures.append(Failed(at, time.time() - at, error))
                connection.close()
            i += 1
            time.sleep(1 / 60)

    def _ask(self, connection: http.client.HTTPConnection, i: int) -> str:
        k, binary = i % len(self._x), bool(i % 2)
        body = {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": self._x[k].tolist()}
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": binary}}],
        }
        connection.request(
            "POST",
            f"/v2/models/{NAME}/infer",
            json.dumps(body),
            {"Host": HOST, "Content-Type": "application/json"},
        )
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise BadStatusError(f"HTTP {response.status}")
        if binary:
            length = int(response.headers["Inference-Header-Content-Length"])
            answer, logits = json.loads(content[:length]), np.frombuffer(content[length:], np.float32)
        else:
            answer = json.loads(content)
            logits = np.array(answer["outputs"][0]["data"])
        self.versions[answer["model_version"]] += 1
        return "right" if int(np.argmax(logits)) == self._classes[k] else "wrong"

    def end(self) -> None:
        self._over.set()
        self.join(15)


@contextmanager
def traffic(stage: Stage) -> Iterator[Client]:
    client, log = Client(stage.cluster.target.gateway.http), stage.crash_log(NAME)
    with log.following():
        client.start()
        try:
            yield client
        finally:
            client.end()
    client.seen.update(f.error for f in stage.unexplained(client.failures, log))


def deployment(stage: Stage, file: str, **shadow: object) -> dict[str, object]:
    return stage.deployment(
        NAME,
        file,
        traffic=stage.traffic(HOST),
        rollout={
            "shadow": {"minSamples": 100, "minAgreement": 0.95, **shadow},
            "canary": {"steps": [{"weight": 100}]},
            "analysis": {"interval": "1s", "initialDelay": "0s"},
            "progressDeadline": "2m",
        },
    )


def nothing_left(stage: Stage, revision: str) -> bool:
    mirrors = stage.cluster.get(TRAEFIK.format(stage.namespace))["items"]
    try:
        stage.cluster.get(f"/apis/apps/v1/namespaces/{stage.namespace}/deployments/{revision}-shadow")
    except NotThereError:
        return not mirrors
    return False


def mirrors(stage: Stage) -> bool:
    """Whether the clients' route does, in the way of the gateway."""
    routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{stage.namespace}/httproutes"
    return is_mirrored(stage.cluster.get(f"{routes}/{NAME}"))


def test_a_model_that_agrees_goes_on_and_its_comparer_may_die(stage: Stage) -> None:
    stage.apply(deployment(stage, "good.onnx"))
    stage.until_ready(NAME)
    assert stage.condition(NAME, "Shadowed")["reason"] == "Skipped", "there was nothing to compare with"
    routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{stage.namespace}/httproutes"
    before = stage.cluster.get(f"{routes}/{NAME}")["spec"]["rules"]
    with traffic(stage) as client:
        stage.apply(deployment(stage, "better.onnx", minSamples=300))
        stage.until("the gateway mirrors", lambda: mirrors(stage))
        revision = stage.get(NAME)["status"]["rollout"]["revision"]
        assert stage.get(NAME)["status"]["phase"] == "Shadowing"
        selector = f"modelrollout.dev/revision={revision},modelrollout.dev/component=shadow"
        # A person reverts the route by hand, and the comparer's pod dies. The rules are those from
        # before: backends without the filter of the operator's have a cluster of another name
        # behind Envoy Gateway, which answers 500 while it comes.
        patch = json.dumps({"spec": {"rules": before}})
        stage.cluster.kubectl("patch", "httproute", NAME, "-n", stage.namespace, "--type=merge", "-p", patch)
        stage.until("it is written again", lambda: mirrors(stage))
        stage.cluster.kubectl(
            "delete",
            "pods",
            "-n",
            stage.namespace,
            "-l",
            selector,
            "--force",
            "--grace-period=0",
            "--wait=false",
        )
        stage.until(
            "the canary has the traffic", lambda: stage.get(NAME)["status"]["stable"]["revision"] == revision
        )
    assert set(client.seen) == {"right"}, f"requests failed: {client.seen}"
    shadow = stage.cluster.revision(stage.namespace, revision)["status"]["shadow"]
    assert (
        shadow["verdict"] == "Successful"
        and shadow["canary"]["total"] >= 300
        and shadow["canary"]["bad"] == 0
    )
    stage.until("the mirror and its comparer are gone", lambda: nothing_left(stage, revision))
    stage.until_ready(NAME)


def test_a_model_that_disagrees_is_rejected_and_no_client_gets_its_answers(stage: Stage) -> None:
    stable = stage.get(NAME)["status"]["stable"]
    with traffic(stage) as client:
        stage.apply(deployment(stage, "wrong.onnx"))
        message = stage.until_stalled(NAME, "ShadowDisagrees")
    assert "mirrored requests were answered differently" in message
    assert set(client.seen) == {"right"}, f"requests failed or were changed: {client.seen}"
    assert set(client.versions) == {str(stable["number"])}, "only stable answered"
    status = stage.get(NAME)["status"]
    assert status["stable"]["revision"] == stable["revision"]
    rejected = status["rollout"]["revision"]
    stage.until_outcome(rejected, "Rejected")
    assert not mirrors(stage)
    stage.until("the mirror and its comparer are gone", lambda: nothing_left(stage, rejected))
