"""Every endpoint of a model server, from outside and from inside: only the kubelet manages it
(docs/reference/endpoints.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from modelrollout.resources.endpoints import GRPC_METHODS, http_endpoints
from tests.e2e import endpoints
from tests.e2e.conftest import Stage
from tests.e2e.endpoints import Endpoint, called, raw

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME = "doors"
HOST, GRPC_HOST = "doors.e2e.example", "doors-grpc.e2e.example"
TABLE = endpoints.table()
ROWS = [pytest.param(e, id=f"{e.method} {e.path}".strip()) for e in TABLE]


@pytest.fixture(scope="module")
def pod(stage: Stage) -> dict[str, Any]:
    """A server of a model behind the gateway."""
    gateway = {
        "gateway": {
            "name": stage.cluster.target.gateway.name,
            "namespace": stage.cluster.target.gateway.namespace,
        }
    }
    filters = {
        "requestHeaderModifier": {"set": [{"name": "x-tenant", "value": "e2e"}], "remove": ["x-debug"]},
        "responseHeaderModifier": {"add": [{"name": "x-served-by", "value": "models"}]},
    }
    traffic = {**gateway, "http": {"hostnames": [HOST]}, "grpc": {"hostnames": [GRPC_HOST]}}
    stage.apply(stage.deployment(NAME, traffic=traffic | {"filters": filters}))
    stage.until_ready(NAME)
    gate = Endpoint("GET", "/v2/health/ready", True, "free")
    stage.until(
        "the gateway has the route",
        lambda: called(gate, NAME, 1, stage.cluster.target.gateway.http, HOST).code == "200",
    )
    (actual,) = serving(stage)
    return actual


def serving(stage: Stage) -> list[dict[str, Any]]:
    pods = stage.cluster.pods(
        stage.namespace, f"modelrollout.dev/name={NAME},modelrollout.dev/component=server"
    )
    return [p for p in pods if not p["metadata"].get("deletionTimestamp")]


def outside(stage: Stage, endpoint: Endpoint) -> endpoints.Answer:
    address = stage.cluster.target.gateway.http if endpoint.method else stage.cluster.target.gateway.grpc
    return called(endpoint, NAME, 1, address, HOST if endpoint.method else GRPC_HOST)


def inside(pod: dict[str, Any], endpoint: Endpoint, key: str | None = None) -> endpoints.Answer:
    return called(endpoint, NAME, 1, f"{pod['status']['podIP']}:{8000 if endpoint.method else 8001}", key=key)


def test_filters_change_answers_and_take_no_headers_of_the_operators(
    stage: Stage, pod: dict[str, Any]
) -> None:
    """The table below is called with them on."""
    url = f"http://{stage.cluster.target.gateway.http}/v2/health/ready"
    answer = requests.get(url, headers={"Host": HOST}, timeout=10)
    assert (answer.status_code, answer.headers.get("x-served-by")) == (200, "models")
    spec = stage.get(NAME)["spec"]["traffic"]
    key = {"set": [{"name": "x-modelrollout-key", "value": pod["metadata"]["uid"]}]}
    opened = spec["filters"] | {"requestHeaderModifier": key}
    stage.apply(stage.deployment(NAME, traffic=spec | {"filters": opened}))
    assert "x-modelrollout-key" in stage.until_stalled(NAME, "FilterNotAllowed")
    answer = requests.get(url, headers={"Host": HOST}, timeout=10)
    assert (answer.status_code, answer.headers.get("x-served-by")) == (200, "models"), "it stays as it was"
    stage.apply(stage.deployment(NAME, traffic=spec))
    stage.until_ready(NAME)


def test_a_triton_with_known_flaws_is_told_by_its_version(stage: Stage, pod: dict[str, Any]) -> None:
    """The sandbox's is 2.51, which one POST ends
    (``test_a_server_that_dies_is_told_and_comes_back_by_itself``).
    """
    stage.until(
        "its version is known", lambda: stage.condition(NAME, "Patched")["reason"] == "TritonVulnerable", 30
    )
    assert "Triton 2.51.0 has 53 known flaws" in stage.condition(NAME, "Patched")["message"]
    stage.until("an event says so", lambda: "TritonVulnerable" in stage.events(NAME), 20)
    assert stage.condition(NAME, "Ready")["status"] == "True"


def test_the_table_has_every_endpoint_of_the_documents_the_program_and_the_proto(
    stage: Stage, pod: dict[str, Any]
) -> None:
    http = {(e.method, e.path) for e in TABLE if e.method}
    assert endpoints.of_documents() <= http
    assert {e.path for e in TABLE if not e.method} == endpoints.of_proto()
    find = "grep -a -o -E '/v2[][a-z/|()?:^+0-9_-]*' $(command -v tritonserver) | sort -u"
    strings = stage.cluster.kubectl(
        "exec", "-n", stage.namespace, pod["metadata"]["name"], "-c", "triton", "--", "sh", "-c", find
    )
    known = endpoints.of_program(strings)
    assert len(known) > 20 and known <= {path for _, path in http}


def test_routes_open_what_the_table_says_and_nothing_else() -> None:
    assert {(m, p.replace(NAME, "NAME")) for m, p in http_endpoints(NAME)} == {
        (e.method, e.path) for e in TABLE if e.method and e.open
    }
    assert {f"{service}/{method}" for service, method in GRPC_METHODS} == {
        e.path for e in TABLE if not e.method and e.open
    }


@pytest.mark.parametrize("endpoint", ROWS)
def test_an_endpoint(stage: Stage, pod: dict[str, Any], endpoint: Endpoint) -> None:
    """Open ones answer; closed ones reach Triton without the gateway and not through it; what
    manages the server wants the key of the pod.
    """
    through = outside(stage, endpoint)
    ok = ("200", "OK")
    if endpoint.open:
        assert through.code in ok, str(through)
    else:
        assert through.by_gateway and through.code in ("404", "UNIMPLEMENTED"), str(through)
    refused = ("403", "UNAVAILABLE")
    without = inside(pod, endpoint)
    assert not without.by_gateway, "Triton knows it"
    if endpoint.inside == "free":
        assert without.code in ok, str(without)
    elif endpoint.inside == "key":
        assert without.code in refused and "restricted" in without.text, str(without)
        wrong = inside(pod, endpoint, key="00000000-0000-0000-0000-000000000000")
        assert wrong.code in refused and "restricted" in wrong.text, str(wrong)
        with_key = inside(pod, endpoint, key=pod["metadata"]["uid"])
        assert "restricted" not in with_key.text, str(with_key)
    else:
        assert without.code == "404", str(without)


def test_with_the_key_nothing_is_loaded_or_unloaded(stage: Stage, pod: dict[str, Any]) -> None:
    """Model control is none: the key opens settings of the log, not the model."""
    key = pod["metadata"]["uid"]
    for path in ("load", "unload"):
        answer = inside(pod, Endpoint("POST", f"/v2/repository/models/NAME/{path}", False, "key"), key)
        assert answer.code == "503" and "not allowed" in answer.text, str(answer)
    assert outside(stage, Endpoint("GET", "/v2/models/NAME/ready", True, "free")).code == "200"


# What a client library would put in order, and a proxy may, or not.
ODD = [
    ("POST", "//v2/repository/index"),
    ("POST", "/v2//repository/index"),
    ("POST", "/v2/./repository/index"),
    ("POST", "/v2/models/../repository/index"),
    ("POST", f"/v2/models/{NAME}/../../repository/index"),
    ("POST", f"/v2/models/{NAME}/infer/../../../repository/index"),
    ("POST", "/v2/%72epository/index"),
    ("POST", "/v2%2Frepository%2Findex"),
    ("POST", "/v2/repository%2findex"),
    ("POST", f"/v2/models/{NAME}/%2e%2e/%2e%2e/repository/index"),
    ("POST", f"/v2/models/{NAME}/infer/%2e%2e/%2e%2e/%2e%2e/repository/index"),
    ("POST", "/V2/repository/index"),
    ("POST", "/v2/Repository/Index"),
    ("POST", "/v2/repository/index/"),
    ("POST", "/v2/repository/index?x=/v2"),
    ("POST", "/v2;/repository/index"),
    ("POST", "/v2/repository/index%00"),
    ("POST", "/v2\\repository\\index"),
    ("GET", "/v2/logging/"),
    ("GET", "//v2/logging"),
    ("GET", "/v2/health/../logging"),
    ("GET", "/v2/health/ready/../../logging"),
    ("GET", f"/v2/models/{NAME}/versions/1/ready"),
    ("GET", f"/v2/models/{NAME}/"),
    ("GET", f"/v2/models/{NAME}/ready/"),
    ("PUT", "/v2/logging"),
    ("PATCH", "/v2/trace/setting"),
    ("DELETE", f"/v2/models/{NAME}"),
    ("PUT", f"/v2/models/{NAME}/infer"),
    ("GET", f"/v2/models/{NAME}/infer"),
    ("POST", f"/v2/models/{NAME}/config"),
    ("OPTIONS", f"/v2/models/{NAME}/infer"),
    ("HEAD", "/v2/logging"),
    ("CONNECT", "/v2/logging"),
    ("TRACE", "/v2/logging"),
    ("POST", f"/v2/models/{NAME}.evil/infer"),
    ("POST", "/metrics"),
    ("GET", "/metrics"),
    ("GET", "/"),
]


@pytest.mark.parametrize(("method", "target"), ODD, ids=[f"{m} {t}" for m, t in ODD])
def test_an_odd_way_of_asking_opens_nothing(
    stage: Stage, pod: dict[str, Any], method: str, target: str
) -> None:
    """The gateway refuses it, or sends the client elsewhere; no server answers it, neither as it
    stands nor after what the gateway redirects to.
    """
    answer = raw(stage.cluster.target.gateway.http, method, target, HOST)
    assert answer.code[:1] in ("3", "4") or (answer.code == "501" and method == "TRACE"), str(answer)
    assert '"state"' not in answer.text and "log_" not in answer.text and "error" not in answer.text, (
        "no server answered"
    )


def test_the_real_clients_work_through_the_gateway(stage: Stage, pod: dict[str, Any]) -> None:
    """What tritonclient offers on a model and a server, with its defaults; and what perf_analyzer
    asks before it begins.
    """
    x = np.full((2, 16), 0.1, np.float32)
    with triton_http.InferenceServerClient(stage.cluster.target.gateway.http) as client:
        headers = {"Host": HOST}
        assert (
            client.is_server_live(headers)
            and client.is_server_ready(headers)
            and client.is_model_ready(NAME, headers=headers)
        )
        assert client.get_server_metadata(headers)["name"] == "triton"
        assert client.get_model_metadata(NAME, headers=headers)["versions"] == ["1"]
        assert client.get_model_config(NAME, headers=headers)["name"] == NAME
        specified = triton_http.InferInput("x", [2, 16], "FP32").set_data_from_numpy(x)
        assert client.infer(NAME, [specified], headers=headers).as_numpy("logits").shape == (2, 4)
        assert client.get_inference_statistics(NAME, headers=headers)["model_stats"][0]["version"] == "1"
        for closed in (
            client.get_model_repository_index,
            client.get_log_settings,
            client.get_trace_settings,
            client.get_system_shared_memory_status,
        ):
            with pytest.raises(InferenceServerException):
                closed(headers=headers)
        with pytest.raises(InferenceServerException):
            client.load_model(NAME, headers=headers)
    options = [("grpc.default_authority", GRPC_HOST)]
    with triton_grpc.InferenceServerClient(stage.cluster.target.gateway.grpc, channel_args=options) as rpc:
        assert rpc.is_server_live() and rpc.is_server_ready() and rpc.is_model_ready(NAME)
        assert rpc.get_server_metadata().name == "triton" and rpc.get_model_metadata(NAME).name == NAME
        assert rpc.get_model_config(NAME).config.name == NAME
        tensor = triton_grpc.InferInput("x", [2, 16], "FP32")
        tensor.set_data_from_numpy(x)
        assert rpc.infer(NAME, [tensor]).as_numpy("logits").shape == (2, 4)
        assert rpc.get_inference_statistics(NAME).model_stats[0].version == "1"
        for shut in (
            rpc.get_model_repository_index,
            rpc.get_log_settings,
            rpc.get_trace_settings,
            rpc.get_system_shared_memory_status,
        ):
            with pytest.raises(InferenceServerException):
                shut()
        with pytest.raises(InferenceServerException):
            rpc.unload_model(NAME)


# --- routes that a user opens


def test_a_route_that_is_opened_by_hand_is_shut_again(stage: Stage, pod: dict[str, Any]) -> None:
    gate = Endpoint("POST", "/v2/repository/index", False, "key")
    wide = json.dumps(
        [
            {
                "op": "replace",
                "path": "/spec/rules/0/matches",
                "value": [{"path": {"type": "PathPrefix", "value": "/"}}],
            }
        ]
    )

    def opened() -> None:
        stage.cluster.kubectl("patch", "httproute", NAME, "-n", stage.namespace, "--type=json", "-p", wide)

    def let_through() -> set[tuple[str, str]]:
        route = json.loads(
            stage.cluster.kubectl("get", "httproute", NAME, "-n", stage.namespace, "-o", "json")
        )
        return {
            (match.get("method", "*"), match["path"]["value"])
            for rule in route["spec"]["rules"]
            for match in rule["matches"]
        }

    def shut() -> bool:
        return let_through() == set(http_endpoints(NAME)) and outside(stage, gate).by_gateway

    assert shut()
    opened()
    stage.until("it is shut", shut, 30)
    assert "RoutesNarrowed" in stage.events(NAME)
    assert stage.condition(NAME, "Ready")["status"] == "True"


# --- servers that die


@pytest.fixture
def asking(stage: Stage, pod: dict[str, Any]) -> Iterator[list[str]]:
    """Requests all the while, ten a second; the codes of the answers."""
    codes: list[str] = []
    going = True
    body = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.1] * 16}]}

    def ask() -> None:
        while going:
            try:
                url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"
                codes.append(
                    str(requests.post(url, json=body, headers={"Host": HOST}, timeout=5).status_code)
                )
            except requests.RequestException as e:
                codes.append(type(e).__name__)
            time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask)
        yield codes
        going = False


def container(stage: Stage) -> dict[str, Any]:
    (actual,) = serving(stage)
    status: dict[str, Any] = actual["status"]["containerStatuses"][0]
    return status


@pytest.mark.parametrize("what", ["its Python process", "the server itself"])
def test_a_server_that_dies_is_told_and_comes_back_by_itself(
    stage: Stage, pod: dict[str, Any], asking: list[str], what: str
) -> None:
    before, crash = container(stage)["restartCount"], stage.get(NAME)["status"].get("crash")
    # The first process of a container ignores signals from within that it does not handle: it is
    # told to end.
    kill = (
        "kill -9 $(cat /tmp/.stubs-of-* | tr -d ' ' | cut -d/ -f3)"
        if what == "its Python process"
        else "kill -TERM 1"
    )
    stage.until("the probe has looked once", lambda: kill.startswith("kill -T") or listed(stage))
    (now,) = serving(stage)
    stage.cluster.kubectl(
        "exec", "-n", stage.namespace, now["metadata"]["name"], "-c", "triton", "--", "sh", "-c", kill
    )
    stage.until("it is started anew", lambda: container(stage)["restartCount"] == before + 1, 60)
    stage.until(
        "the operator says so", lambda: (stage.get(NAME)["status"].get("crash") or {}) != (crash or {}), 30
    )
    stage.until(
        "all is well again",
        lambda: stage.condition(NAME, "ServersHealthy")["status"] == "True" and container(stage)["ready"],
        60,
    )
    last = stage.get(NAME)["status"]["crash"]
    assert last["reason"] == "ServerCrashed" and ("Python process" in last["message"]) == (
        what == "its Python process"
    ), last
    assert {"ServerCrashed"} <= set(stage.events(NAME))
    seen = len(asking)
    stage.until("it answers", lambda: "200" in asking[seen:], 30)


def listed(stage: Stage) -> bool:
    (actual,) = serving(stage)
    command = (
        "exec",
        "-n",
        stage.namespace,
        actual["metadata"]["name"],
        "-c",
        "triton",
        "--",
        "sh",
        "-c",
        "cat /tmp/.stubs-of-* 2>/dev/null || true",
    )
    return "/proc/" in stage.cluster.kubectl(*command)
