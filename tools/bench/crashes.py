"""``python -m bench.crashes --minutes 10``: how often the sandbox's Triton crashes under overload,
as lines ``crashes.FIGURE: value``; lines that begin with # are remarks.

Server pods as the operator renders them (without the loader: the model is a ConfigMap) get more
requests than they can answer, from a bounded number of connections, while hogs take the rest of the
processors. What each container's record says of its end is counted. The sandbox must be up.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.measure import say
from demo import DemoError
from demo import target as targets
from demo.cluster import Cluster, Object
from demo.crashes import CrashLog, ServerCrash
from modelrollout.api.v1alpha1 import Serving
from modelrollout.config import ArtifactStoreConfig, ImagesConfig, OperatorConfig, StoreConfig
from modelrollout.contract.tasks import Batching
from modelrollout.resources import server
from modelrollout.resources.hardening import MODELS, TRITON
from modelrollout.triton.config import render
from modelrollout.triton.layout import MODEL_FILE
from modelrollout.triton.tensors import TensorSpec

NAMESPACE, NAME = "modelrollout-bench-crashes", "overloaded"
FEATURES, CLASSES, BATCH = 64, 10, 64
SELECTOR = "app=overloaded"
REPORT_SECONDS = 60.0
START_SECONDS = 180.0
_PORT = 8000
_RETRY_SECONDS = 0.2  # after a failed request, so that a server that is down is not flooded


@dataclass(frozen=True)
class Load:
    """How the servers are overloaded."""

    minutes: float
    pods: int
    connections: int  # of each pod; each has one request in flight
    hogs: int
    cpu: str  # that the servers request; they may use 500m
    flags: tuple[str, ...] = ()  # of tritonserver, in addition


# --- what is made


def objects(load: Load, image: str, hog_image: str) -> list[Object]:
    """The ConfigMap with the model, the servers and the hogs."""
    return [_model(), _deployment(NAME, load.pods, _server_pod(load, image)), _hogs(load.hogs, hog_image)]


def _model() -> Object:
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    inputs, outputs = TensorSpec("x", "FP32", (-1, FEATURES)), TensorSpec("logits", "FP32", (-1, CLASSES))
    config = render([inputs], [outputs], Batching(max_batch_size=BATCH), "KIND_CPU")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "data": {"config": config},
        "binaryData": {"model": base64.b64encode(model.SerializeToString()).decode()},
    }


def _server_pod(load: Load, image: str) -> Object:
    """As the operator renders it, with the model from the ConfigMap."""
    resources = {
        "limits": {"cpu": "500m", "memory": "512Mi"},
        "requests": {"cpu": load.cpu, "memory": "128Mi"},
    }
    store = StoreConfig(name="models", uri="s3://models")
    config = OperatorConfig(
        stores=[store],
        artifacts=ArtifactStoreConfig(name="artifacts", uri="s3://artifacts"),
        images=ImagesConfig(optimizer="none", triton=image),
    )
    version = server.Version(NAME, NAME, 1, NAMESPACE)
    serving = Serving.model_validate({"resources": resources})
    spec: Object = server.template(version, serving, config, owner_uid="")["spec"]
    del spec["initContainers"]
    (triton,) = spec["containers"]
    triton["args"] = [*triton["args"], *load.flags]
    items = [
        {"key": "config", "path": f"{NAME}/config.pbtxt"},
        {"key": "model", "path": f"{NAME}/1/{MODEL_FILE}"},
    ]
    volume = {"name": MODELS, "configMap": {"name": NAME, "items": items}}
    spec["volumes"] = [volume, *(v for v in spec["volumes"] if v["name"] != MODELS)]
    return spec


def _hogs(count: int, image: str) -> Object:
    """Pods that take what the processors have."""
    busy = {
        "name": "hog",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "while True: pass"],
        "resources": {"requests": {"cpu": "100m"}},
    }
    return _deployment("hogs", count, {"terminationGracePeriodSeconds": 0, "containers": [busy]})


def _deployment(name: str, replicas: int, spec: Object) -> Object:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


# --- what is sent


class Senders:
    """Connections to servers, each with one request in flight; what came of the requests."""

    def __init__(self, addresses: Sequence[str], connections: int) -> None:
        self.counts: Counter[str] = Counter()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(address, number), daemon=True)
            for address in addresses
            for number in range(connections)
        ]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(15)

    def _send(self, address: str, number: int) -> None:
        rows = 1 + number % 4
        tensor = {"name": "x", "shape": [rows, FEATURES], "datatype": "FP32", "data": [0.5] * rows * FEATURES}
        body = json.dumps({"inputs": [tensor]})
        connection = http.client.HTTPConnection(address, timeout=10)
        while not self._over.is_set():
            try:
                connection.request("POST", f"/v2/models/{NAME}/infer", body)
                answer = connection.getresponse()
                answer.read()
                what = str(answer.status)
            except (OSError, http.client.HTTPException) as e:
                connection.close()
                what = type(e).__name__
            with self._lock:
                self.counts[what] += 1
            if what != "200":
                self._over.wait(_RETRY_SECONDS)


# --- what is said


def figures(counts: Counter[str], crashes: Sequence[ServerCrash], ends: int, hours: float) -> list[str]:
    """The lines. ``hours`` of all servers together; ``ends`` of containers, however they ended."""
    requests = counts.total()
    lines = [
        f"crashes.requests: {requests}",
        f"crashes.failed: {requests - counts['200']}",
        f"crashes.server_hours: {hours:.2f}",
        f"crashes.crashes: {len(crashes)}",
        f"crashes.other_ends: {ends - len(crashes)}",
    ]
    # with none in n, up to 3 / n are within a 95 % interval
    seen, sign = (len(crashes), "") if crashes else (3, "< ")
    if requests and hours:
        lines += [
            f"crashes.per_million_requests: {sign}{1e6 * seen / requests:.3g}",
            f"crashes.per_hour_of_overload: {sign}{seen / hours:.3g}",
        ]
    others = {what: n for what, n in counts.items() if what != "200"}
    lines += [f"# failed with {what}: {n}" for what, n in sorted(others.items())]
    return lines + [f"# {crash}" for crash in crashes]


# --- how it goes


def ready_pods(cluster: Cluster, pods: int) -> list[Object]:
    """The servers, once all are ready. Raises DemoError."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        listed = cluster.pods(NAMESPACE, SELECTOR)
        servers = [_server(pod) for pod in listed]
        if len(listed) == pods and all(s.get("ready") for s in servers):
            return listed
        if time.monotonic() > deadline:
            raise DemoError(f"the servers are not ready within {START_SECONDS:.0f} s: {servers}")
        time.sleep(1)


def _server(pod: Object) -> dict[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((s for s in statuses if s["name"] == TRITON), {})


def measure(cluster: Cluster, load: Load) -> list[str]:
    """Overload servers for that time; the lines."""
    images = cluster.target.images
    cluster.fresh_namespace(NAMESPACE)
    try:
        cluster.apply(*objects(load, images.triton, images.optimizer))
        pods = ready_pods(cluster, load.pods)
        addresses = [f"{pod['status']['podIP']}:{_PORT}" for pod in pods]
        log = CrashLog(lambda: cluster.pods(NAMESPACE, SELECTOR))
        began = time.monotonic()
        with log.following(), Senders(addresses, load.connections) as senders:
            while (lasted := time.monotonic() - began) < 60 * load.minutes:
                time.sleep(min(REPORT_SECONDS, 60 * load.minutes - lasted))
                say(f"# {lasted / 60:.0f} min: {dict(senders.counts)}, crashes {len(log.crashes)}")
        hours = load.pods * (time.monotonic() - began) / 3600
        ends = sum(_server(p).get("restartCount", 0) for p in cluster.pods(NAMESPACE, SELECTOR))
        return figures(senders.counts, log.crashes, ends, hours)
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


def main() -> None:
    """Measure on the sandbox of this checkout."""
    parser = argparse.ArgumentParser(prog="python -m bench.crashes", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pods", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16, help="to each pod, one request in flight each")
    parser.add_argument("--hogs", type=int, default=4, help="pods that take the rest of the processors")
    parser.add_argument("--cpu", default="20m", help="CPU that the servers request")
    parser.add_argument("--flag", action="append", default=[], help="of tritonserver; may be repeated")
    asked = parser.parse_args()
    load = Load(asked.minutes, asked.pods, asked.connections, asked.hogs, asked.cpu, tuple(asked.flag))
    say(f"# {load}")
    try:
        for line in measure(Cluster(targets.sandbox(None, None)), load):
            say(line)
    except DemoError as error:
        raise SystemExit(f"bench.crashes: {error}") from error


if __name__ == "__main__":
    main()
