"""Clients who ask nonsense: a request that is not well formed is a 500 of Triton's, and takes no
version back (docs/explanation/analysis.md).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import Stage
from tests.e2e.models import FEATURES

pytestmark = pytest.mark.sandbox

NAME, HOST, GRPC_HOST = "asked", "asked.e2e.example", "asked-grpc.e2e.example"
INPUT = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32"}
SENSE, NONSENSE = {"inputs": [INPUT | {"data": [0.5] * FEATURES}]}, {"inputs": [INPUT | {"data": [[1]]}]}
BETA = {"x-group": "beta"}
ANALYSIS = {
    "interval": "1s",
    "initialDelay": "0s",
    "metrics": [{"name": "errors", "maxIncrease": 0.02, "minSamples": 20}],
}


def deployment(stage: Stage, file: str, **rollout: Any) -> dict[str, Any]:
    traffic = stage.traffic(HOST, grpc=GRPC_HOST)
    return stage.deployment(
        NAME, file, traffic=traffic, rollout={"progressDeadline": "3m", "analysis": ANALYSIS, **rollout}
    )


def answer(stage: Stage, body: dict[str, Any], **headers: str) -> requests.Response:
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"
    return requests.post(url, json=body, headers={"Host": HOST, **headers}, timeout=10)


def sent(stage: Stage, count: int, body: dict[str, Any], **headers: str) -> list[int]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: answer(stage, body, **headers).status_code, range(count)))


def phase(stage: Stage) -> str:
    return str(stage.get(NAME)["status"].get("phase"))


def test_a_version_that_a_grpc_message_names_is_not_found_and_never_judged(stage: Stage) -> None:
    """No gateway sees the version in a message of gRPC: a client that names stable's gets NotFound
    from the canary.
    """
    stage.apply(deployment(stage, "good.onnx"))
    stage.until_ready(NAME)
    stage.until("the gateway serves", lambda: sent(stage, 1, SENSE) == [200])
    stage.apply(deployment(stage, "wide.onnx", canary={"steps": [{"weight": 50}]}))
    stage.until("it is a canary", lambda: sent(stage, 4, SENSE) and phase(stage) == "Canary")
    number = str(stage.get(NAME)["status"]["stable"]["number"])
    tensor = triton_grpc.InferInput("x", [1, FEATURES], "FP32")  # type: ignore[no-untyped-call]
    tensor.set_data_from_numpy(np.full((1, FEATURES), 0.5, dtype=np.float32))  # type: ignore[no-untyped-call]
    options = [("grpc.default_authority", GRPC_HOST)]
    codes: dict[str, int] = {}

    def passed() -> bool:
        for _ in range(20):
            client = triton_grpc.InferenceServerClient(
                stage.cluster.target.gateway.grpc, channel_args=options
            )  # type: ignore[no-untyped-call]
            try:
                client.infer(NAME, [tensor], model_version=number, client_timeout=10)  # type: ignore[no-untyped-call]
                code = "OK"
            except InferenceServerException as e:
                code = str(e.status())  # type: ignore[no-untyped-call]
            finally:
                client.close()  # type: ignore[no-untyped-call]
            codes[code] = codes.get(code, 0) + 1
        stage.served(NAME, lambda: answer(stage, SENSE), 20)
        return phase(stage) == "Stable"

    stage.until("the canary is promoted", passed, 90)
    assert codes["StatusCode.NOT_FOUND"] > 5, codes
    assert not {"StatusCode.UNAVAILABLE", "StatusCode.INTERNAL"} & set(codes), codes


def test_where_a_header_chooses_the_version_errors_pause_and_a_person_decides(stage: Stage) -> None:
    stage.apply(
        deployment(
            stage,
            "better.onnx",
            abTest={"headers": [{"name": "x-group", "value": "beta"}], "autoPromote": False},
        )
    )
    stage.until("it is tested", lambda: sent(stage, 4, SENSE) and phase(stage) == "Testing")
    stage.until("the gateway has the rule", lambda: set(sent(stage, 5, NONSENSE, **BETA)) == {500})

    def paused() -> bool:
        sent(stage, 10, NONSENSE, **BETA)
        stage.served(NAME, lambda: answer(stage, SENSE), 20)
        return phase(stage) == "Paused" and stage.condition(NAME, "Stalled")["reason"] == "ErrorsHigh"

    stage.until("it is paused", paused)
    message = stage.condition(NAME, "Stalled")["message"]
    assert (
        "where clients choose the revision, errors alone revert nothing" in message
        and "promote or abort" in message
    )
    stage.until("an event says so", lambda: "ErrorsHigh" in stage.events(NAME), 20)
    assert stage.served(NAME, lambda: answer(stage, SENSE, **BETA), 20), "those who ask properly are served"
    stage.cluster.modelrollout("promote", NAME, "--full", "-n", stage.namespace)
    stage.until_ready(NAME)


def test_where_a_weight_divides_requests_nonsense_fails_on_both_sides_and_a_limit_alone_pauses(
    stage: Stage,
) -> None:
    metrics = [{"name": "errors", "max": 0.1, "minSamples": 20}]
    stage.apply(
        deployment(
            stage, "third.onnx", canary={"steps": [{"weight": 40}]}, analysis=ANALYSIS | {"metrics": metrics}
        )
    )
    stage.until("it is a canary", lambda: sent(stage, 4, SENSE) and phase(stage) == "Canary")

    def paused() -> bool:
        sent(stage, 40, NONSENSE)
        return phase(stage) == "Paused"

    stage.until("it is paused", paused)
    stalled = stage.condition(NAME, "Stalled")
    assert stalled["reason"] == "LimitExceeded" and "which stable exceeds too" in stalled["message"]
    stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
    stage.until("stable has all", lambda: stage.get(NAME)["status"]["rollout"]["stage"] == "Failed")
