"""What each gateway must do for a canary: keep the weights, count each side of every step, and tell
a gRPC call that failed from one that succeeded (docs/reference/gateways.md). `make test-gateways`
runs it behind Envoy Gateway.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import requests
from tritonclient.grpc import service_pb2, service_pb2_grpc

from demo.crashes import Failed
from tests.e2e.conftest import Stage, answer_to
from tests.e2e.models import FEATURES

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME, HOST, GRPC_HOST = "counted", "counted.e2e.example", "counted-grpc.e2e.example"
BODY = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}
WEIGHTS = (5, 25, 50, 75, 95)
REQUESTS = 300  # at each weight, half of them over gRPC
# of an honest split, at each weight one in a hundred million
STANDARD_ERRORS = 5.7


class Clients:
    """Requests by turns over HTTP and gRPC, by version that answered; none may fail but by a crash
    of Triton. ``refused``: over gRPC alone, where a version may refuse them.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage, self.refused = stage, False
        self._http = requests.Session()
        self._url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"
        options = [("grpc.default_authority", GRPC_HOST)]
        self._channel = grpc.insecure_channel(stage.cluster.target.gateway.grpc, options=options)
        self.versions: Counter[str] = Counter()
        self._failures: list[Failed] = []

    def send(self, count: int) -> Counter[str]:
        """So many, a hundred a second at most; versions of these."""
        before = Counter(self.versions)
        ways = itertools.cycle((self._over_grpc,) if self.refused else (self._over_http, self._over_grpc))
        for way in itertools.islice(ways, count):
            at = time.time()
            version, error = way()
            if error is None:
                self.versions[version] += 1
            else:
                self._failures.append(Failed(at, time.time() - at, error))
            time.sleep(0.01)
        return self.versions - before

    def until(self, what: str, look: Callable[[], Any], limit: float = 120) -> None:
        """Send a few again and again until ``look`` finds something."""
        self._stage.until(what, lambda: self.send(10) and look(), limit)

    def close(self) -> None:
        self._http.close()
        self._channel.close()
        left = self._stage.unexplained(self._failures, self._stage.crash_log(NAME))
        assert not left, f"{len(left)} requests failed: {left[:3]}"

    def _over_http(self) -> tuple[str, str | None]:
        answer, error = answer_to(
            lambda: self._http.post(self._url, json=BODY, headers={"Host": HOST}, timeout=10)
        )
        return (str(answer.json()["model_version"]) if answer is not None and error is None else ""), error

    def _over_grpc(self) -> tuple[str, str | None]:
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="x", datatype="FP32", shape=[1, FEATURES]
        )
        tensor.contents.fp32_contents.extend([0.5] * FEATURES)
        try:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer(
                service_pb2.ModelInferRequest(model_name=NAME, inputs=[tensor]), timeout=10
            )
        except grpc.RpcError as e:
            failed: Any = e
            if failed.code() == grpc.StatusCode.INVALID_ARGUMENT and self.refused:
                return "refused", None
            return "", f"{failed.code().name}: {failed.details()}"
        return str(answer.model_version), None


@pytest.fixture
def clients(stage: Stage) -> Iterator[Clients]:
    made = Clients(stage)
    yield made
    made.close()


def deployment(stage: Stage, file: str, *steps: dict[str, Any], **analysis: Any) -> dict[str, Any]:
    return stage.deployment(
        NAME,
        model={"uri": stage.uri(file), "interfaceChange": "Allowed"},
        traffic=stage.traffic(HOST, grpc=GRPC_HOST),
        rollout={
            "canary": {"steps": steps or [{"weight": 50}]},
            "analysis": {"interval": "1s", "initialDelay": "0s", **analysis},
            "progressDeadline": "5m",
        },
    )


def rollout(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = stage.get(NAME)["status"].get("rollout") or {}
    return found


def weight(stage: Stage) -> int | None:
    """Of the step, once the gateway carries it."""
    step = rollout(stage).get("step") or {}
    return step.get("weight") if step.get("phase") not in (None, "Shifting") else None


def metrics(step: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in step.get("metrics") or []}


def present(stage: Stage, name: str) -> dict[str, Any]:
    """The metric of the present step; empty before its first measurement."""
    return metrics(rollout(stage).get("step") or {}).get(name) or {}


def test_weights_are_kept_and_each_side_is_counted(stage: Stage, clients: Clients) -> None:
    """By clients at each weight, and at the last one by the gateway's counters, which a status
    shows once a minute.
    """
    stage.apply(deployment(stage, "good.onnx"))
    stage.until_ready(NAME)
    stage.until("the gateway serves", lambda: answers(stage))
    errors = {"name": "errors", "maxIncrease": 0.5, "minSamples": 1_000_000}
    steps = [{"weight": w} for w in WEIGHTS]
    stage.apply(deployment(stage, "better.onnx", *steps, metrics=[errors]))
    for w in WEIGHTS:
        clients.until(f"weight {w}", lambda w=w: weight(stage) == w)  # type: ignore[misc]
        # the first look with a scrape of this step is the baseline
        stage.until("counting has begun", lambda: present(stage, "errors").get("canary"))
        seen = clients.send(REQUESTS)
        allowed = STANDARD_ERRORS * (w * (100 - w) / 1e4 / REQUESTS) ** 0.5
        assert abs(seen["2"] / REQUESTS - w / 100) < allowed, seen
        if w != WEIGHTS[-1]:
            stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)

    def counted() -> bool:
        sides = {side: present(stage, "errors")[side]["total"] for side in ("canary", "stable")}
        return sides["canary"] >= seen["2"] and sides["stable"] >= seen["1"]

    stage.until("the gateway's counters have them", counted)
    judged = present(stage, "errors")
    assert judged["source"] == profile(stage) and not judged["canary"]["bad"], judged
    share = judged["canary"]["total"] / (judged["canary"]["total"] + judged["stable"]["total"])
    assert abs(share - WEIGHTS[-1] / 100) < 0.1, judged
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    clients.until("it is promoted", lambda: stage.get(NAME)["status"]["stable"]["number"] == 2)


def test_a_canary_that_refused_its_grpc_calls_is_rolled_back_by_their_status(
    stage: Stage, clients: Clients
) -> None:
    """For HTTP each of these calls is a 200."""
    clients.refused = True
    stage.apply(deployment(stage, "renamed.onnx", {"weight": 20}))
    clients.until("it is over", lambda: rollout(stage).get("stage") == "Failed")
    ended = rollout(stage)
    assert (ended["outcome"], ended["reason"]) == ("RolledBack", "ClientErrorsHigh"), ended
    judged = metrics(ended["history"][-1])["clientErrors"]
    assert judged["source"] == profile(stage), judged
    assert 0 < judged["canary"]["bad"] <= clients.versions["refused"], (judged, clients.versions)
    clients.until("stable has all", lambda: set(clients.send(20)) == {"2"}, 20)


def test_the_next_canary_is_not_judged_by_the_counts_of_the_last_one(stage: Stage, clients: Clients) -> None:
    """Where a gateway counts by position, it has that of the one that was refused."""
    errors = {"name": "errors", "maxIncrease": 0.2}
    client_errors = {"name": "clientErrors", "maxIncrease": 0.2}
    stage.apply(deployment(stage, "third.onnx", {"weight": 50}, metrics=[errors, client_errors]))
    clients.until("it is promoted", lambda: stage.get(NAME)["status"]["stable"]["number"] == 4)
    for metric in metrics(rollout(stage)["history"][0]).values():
        assert metric["verdict"] == "Successful" and not metric["canary"]["bad"], metric


def test_timeouts_of_spec_are_kept_or_refused(stage: Stage) -> None:
    """A gateway that ignores them says nothing of it, so its class decides."""
    timed = deployment(stage, "good.onnx")
    timed["metadata"]["name"] = "timed"
    timed["spec"]["traffic"] = stage.traffic("timed.e2e.example") | {"timeouts": {"request": "1ms"}}
    stage.apply(timed)
    if profile(stage) == "traefik":
        message = stage.until_stalled("timed", "TimeoutsUnsupported")
        assert "spec.traffic.timeouts.request" in message and "HTTPRouteRequestTimeout" in message
        return
    stage.until_ready("timed")
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/timed"

    def status(path: str) -> int:
        headers = {"Host": "timed.e2e.example"}
        return requests.post(f"{url}/{path}", json=BODY, headers=headers, timeout=10).status_code

    stage.until("no answer is in time", lambda: status("infer") == 504, 30)
    assert status("generate_stream") != 504, "a stream has no limit"
    timed["spec"]["traffic"]["timeouts"] = {"request": "30s"}
    stage.apply(timed)
    stage.until("there is time again", lambda: status("infer") == 200, 30)


def test_pages_of_an_origin_may_call_and_others_may_not(stage: Stage) -> None:
    """The gateway answers the browser's question: no server knows OPTIONS."""
    host, page = "paged.e2e.example", "https://app.e2e.example"
    open_to = stage.traffic(host) | {"filters": {"cors": {"allowOrigins": [page]}}}
    stage.apply(stage.deployment("paged", traffic=open_to))
    if profile(stage) == "traefik":
        assert "HTTPRouteCORS" in stage.until_stalled("paged", "FilterUnsupported")
        return
    stage.until_ready("paged")
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/paged/infer"

    def allowed(origin: str) -> str | None:
        asked = {"Host": host, "Origin": origin, "Access-Control-Request-Method": "POST"}
        return requests.options(url, headers=asked, timeout=10).headers.get("access-control-allow-origin")

    stage.until("its pages may", lambda: allowed(page) == page, 30)
    assert allowed("https://elsewhere.example") is None
    answer = requests.post(url, json=BODY, headers={"Host": host, "Origin": page}, timeout=10)
    assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (200, page)


class Sessions:
    """Sessions of five requests, one after the other, by the versions that answered each."""

    def __init__(self, stage: Stage, name: str, host: str) -> None:
        self._stage, self._name, self._http = stage, name, requests.Session()
        self._http.headers["Host"] = host
        self._url = f"http://{stage.cluster.target.gateway.http}/v2/models/{name}/infer"
        self.seen: list[set[str]] = []
        self._failures: list[Failed] = []

    def send(self, count: int) -> list[set[str]]:
        """So many new ones."""
        for _ in range(count):
            self.seen.append(versions := set())
            headers = {"X-Session": f"user-{len(self.seen)}"}
            for _ in range(5):
                at = time.time()
                answer, error = answer_to(
                    lambda headers=headers: self._http.post(  # type: ignore[misc]
                        self._url, json=BODY, headers=headers, timeout=10
                    )
                )
                if answer is not None and error is None:
                    versions.add(answer.json()["model_version"])
                else:
                    self._failures.append(Failed(at, time.time() - at, str(error)))
        return self.seen[-count:]

    def close(self) -> None:
        self._http.close()
        left = self._stage.unexplained(self._failures, self._stage.crash_log(self._name))
        assert not left, f"{len(left)} requests failed: {left[:3]}"


def test_sessions_stay_at_their_revision_through_a_canary(stage: Stage) -> None:
    """A thousand of five requests each; only one that goes on while the weight rises may change."""
    name, host = "sticky", "sticky.e2e.example"

    def wanted(file: str) -> dict[str, Any]:
        errors = {"name": "errors", "maxIncrease": 0.5, "minSamples": 1_000_000}
        made = deployment(stage, file, *({"weight": w} for w in WEIGHTS), metrics=[errors])
        made["metadata"]["name"] = name
        made["spec"]["traffic"] = stage.traffic(host) | {"sessionAffinity": {"header": "x-session"}}
        return made

    stage.apply(wanted("good.onnx"))
    if profile(stage) == "traefik":
        message = stage.until_stalled(name, "SessionAffinityUnsupported")
        assert "spec.traffic.sessionAffinity" in message and "traefik.io/gateway-controller" in message
        return
    stage.until_ready(name)
    sessions = Sessions(stage, name, host)

    def at(weight: int) -> bool:
        step = (stage.get(name)["status"].get("rollout") or {}).get("step") or {}
        return step.get("weight") == weight and step.get("phase") not in (None, "Shifting")

    stage.apply(wanted("better.onnx"))
    for w in WEIGHTS:
        stage.until(f"weight {w}", lambda w=w: sessions.send(2) and at(w))  # type: ignore[misc]
        seen = sessions.send(200)
        share = sum(versions == {"2"} for versions in seen) / len(seen)
        assert abs(share - w / 100) < STANDARD_ERRORS * (w * (100 - w) / 1e4 / len(seen)) ** 0.5, (w, share)
        stage.cluster.modelrollout("promote", name, "-n", stage.namespace)
    stage.until(
        "it is promoted", lambda: sessions.send(2) and stage.get(name)["status"]["stable"]["number"] == 2
    )
    sessions.close()
    changed = sum(len(versions) > 1 for versions in sessions.seen)
    assert len(sessions.seen) >= 1000 and changed <= len(sessions.seen) / 100, (changed, len(sessions.seen))


def test_one_listener_carries_the_routes_where_spec_names_it(stage: Stage) -> None:
    gateway = stage.cluster.target.gateway
    live = json.loads(
        stage.cluster.kubectl("get", "gateway", gateway.name, "-n", gateway.namespace, "-o", "json")
    )

    def traffic(listener: str) -> dict[str, Any]:
        usual = stage.traffic("section.e2e.example")
        return usual | {"gateway": usual["gateway"] | {"sectionName": listener}}

    stage.apply(stage.deployment("section", traffic=traffic(live["spec"]["listeners"][0]["name"])))
    stage.until_ready("section")
    assert stage.condition("section", "Available")["status"] == "True"
    stage.apply(stage.deployment("section", traffic=traffic("elsewhere")))
    stage.until(
        "no such listener takes them",
        lambda: (
            stage.condition("section", "Available")["reason"] in ("NoMatchingListener", "RouteNotAccepted")
        ),
        30,
    )
    # a gateway that answers before the operator has looked says it in its own words
    said = stage.condition("section", "Available")["message"]
    assert "no listener elsewhere of Gateway" in said or "NoMatchingParent" in said


@pytest.fixture
def further(stage: Stage) -> Iterator[tuple[str, str]]:
    """Name of a second Gateway like the target's, and where it takes requests. Envoy Gateway gives
    it proxies of its own; with Traefik one process serves both.
    """
    gateway, name = stage.cluster.target.gateway, f"{stage.namespace}-further"
    get = ("get", "gateway", "-n", gateway.namespace, "-o", "json")
    spec = json.loads(stage.cluster.kubectl(*get, gateway.name))["spec"]
    made = {k: spec[k] for k in ("gatewayClassName", "listeners")}
    stage.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": gateway.namespace},
            "spec": made,
        }
    )
    try:
        if profile(stage) == "traefik":
            yield name, gateway.http
            return

        def address() -> str | None:
            status = json.loads(stage.cluster.kubectl(*get, name)).get("status") or {}
            programmed = any(
                (c["type"], c["status"]) == ("Programmed", "True") for c in status.get("conditions") or []
            )
            addresses = status.get("addresses") if programmed else None
            return f"{addresses[0]['value']}:{made['listeners'][0]['port']}" if addresses else None

        yield name, stage.until("the further Gateway has a proxy", address)
    finally:
        stage.cluster.kubectl("delete", "gateway", name, "-n", gateway.namespace, "--ignore-not-found")


def test_further_gateways_carry_the_routes_and_their_counts_are_summed(
    stage: Stage, further: tuple[str, str]
) -> None:
    name, host, each = "twice", "twice.e2e.example", 100
    gateway = stage.cluster.target.gateway
    errors = {"name": "errors", "maxIncrease": 0.5, "minSamples": 1_000_000}

    def wanted(file: str) -> dict[str, Any]:
        made = deployment(stage, file, {"weight": 50}, metrics=[errors])
        made["metadata"]["name"] = name
        more = {"furtherGateways": [{"name": further[0], "namespace": gateway.namespace}]}
        made["spec"]["traffic"] = stage.traffic(host) | more
        return made

    def versions(at: str, count: int) -> Counter[str]:
        """That answered through the gateway at that address; without an answer its error."""
        seen: Counter[str] = Counter()
        for _ in range(count):
            answer, error = answer_to(
                lambda: requests.post(
                    f"http://{at}/v2/models/{name}/infer", json=BODY, headers={"Host": host}, timeout=10
                )
            )
            seen[
                str(answer.json()["model_version"]) if answer is not None and error is None else str(error)
            ] += 1
        return seen

    def step() -> dict[str, Any]:
        return (stage.get(name)["status"].get("rollout") or {}).get("step") or {}

    def total() -> float:
        measured = metrics(step()).get("errors") or {}
        return sum((measured.get(side) or {}).get("total", 0) for side in ("canary", "stable"))

    stage.apply(wanted("good.onnx"))
    stage.until_ready(name)
    for at in (gateway.http, further[1]):
        stage.until(f"{at} serves", lambda at=at: set(versions(at, 5)) == {"1"}, 30)  # type: ignore[misc]
    stage.apply(wanted("better.onnx"))
    stage.until("weight 50", lambda: step().get("weight") == 50 and step().get("phase") == "Observing")
    stage.until("counting has begun", lambda: (metrics(step()).get("errors") or {}).get("canary"))
    sent = {at: versions(at, each) for at in (gateway.http, further[1])}
    for at, seen in sent.items():
        assert set(seen) == {"1", "2"}, (at, seen)
        assert abs(seen["2"] / each - 0.5) < STANDARD_ERRORS * (0.25 / each) ** 0.5, (at, seen)
    stage.until("both gateways' counters have them", lambda: total() >= 2 * each)
    assert metrics(step())["errors"]["source"] == profile(stage)
    stage.cluster.kubectl("delete", "gateway", further[0], "-n", gateway.namespace)
    stage.until(
        "a Gateway that is gone is said",
        lambda: stage.condition(name, "Available")["reason"] == "GatewayMissing",
        60,
    )
    assert (
        f"furtherGateways[0]: Gateway {gateway.namespace}/{further[0]}"
        in (stage.condition(name, "Available")["message"])
    )
    assert set(versions(gateway.http, 20)) == {"1", "2"}, "the first one goes on"


def profile(stage: Stage) -> str:
    """Who counts, as status names it."""
    return "traefik" if stage.cluster.target.gateway.traefik_services else "envoy-gateway"


def answers(stage: Stage) -> bool:
    answer = requests.post(
        f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer",
        json=BODY,
        headers={"Host": HOST},
        timeout=10,
    )
    return answer.status_code == 200
