"""`python -m bench.crashes` in a small form: the same code on a server and a cluster of this
process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from bench import crashes
from bench.crashes import NAME, Load, Senders, figures, measure, objects
from demo.crashes import Object, crashes_in

SMALL = Load(0.01, 1, 2, 3, "20m", ("--log-error=false",))


@pytest.fixture
def served() -> Iterator[tuple[str, Counter[str]]]:
    """HOST:PORT of a server that fails every tenth request, and the paths that were asked."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked[self.path] += 1
            self.send_response(500 if asked.total() % 10 == 0 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def pod(restarts: int = 1) -> Object:
    ended = {"exitCode": 139, "finishedAt": "2026-11-28T12:00:00Z"}
    server = {
        "name": "triton",
        "ready": True,
        "restartCount": restarts,
        "lastState": {"terminated": ended},
    }
    return {
        "metadata": {"name": "p", "uid": "p", "resourceVersion": "1"},
        "status": {"podIP": "127.0.0.1", "containerStatuses": [server]},
    }


def test_requests_are_counted_by_what_came_of_them(served: tuple[str, Counter[str]]) -> None:
    address, asked = served
    with Senders([address], 3) as senders:
        while senders.counts["500"] < 2:
            threading.Event().wait(0.01)
    assert senders.counts.total() == asked.total() and set(senders.counts) == {"200", "500"}
    assert set(asked) == {f"/v2/models/{NAME}/infer"}


def test_a_server_that_is_down_is_a_failed_request() -> None:
    with Senders(["127.0.0.1:9"], 1) as senders:
        while not senders.counts:
            threading.Event().wait(0.01)
    assert set(senders.counts) == {"ConnectionRefusedError"}


def test_the_rates_are_those_of_requests_and_of_server_hours() -> None:
    counts = Counter({"200": 1_999_990, "502": 10})
    lines = figures(counts, crashes_in([pod(), pod()]), 3, 4.0)
    assert lines[:5] == [
        "crashes.requests: 2000000",
        "crashes.failed: 10",
        "crashes.server_hours: 4.00",
        "crashes.crashes: 1",
        "crashes.other_ends: 2",
    ]
    assert "crashes.per_million_requests: 0.5" in lines and "crashes.per_hour_of_overload: 0.25" in lines
    assert "# failed with 502: 10" in lines and "SIGSEGV" in lines[-1]


def test_without_a_crash_the_rates_are_bounds() -> None:
    lines = figures(Counter({"200": 3_000_000}), [], 0, 2.0)
    assert "crashes.per_million_requests: < 1" in lines and "crashes.per_hour_of_overload: < 1.5" in lines
    assert figures(Counter(), [], 0, 0.0)[-1] == "crashes.other_ends: 0"


def test_the_servers_are_those_that_the_operator_renders() -> None:
    config_map, servers, hogs = objects(SMALL, "triton:1", "optimizer:1")
    spec = servers["spec"]["template"]["spec"]
    (triton,) = spec["containers"]
    assert "initContainers" not in spec and triton["image"] == "triton:1" and "livenessProbe" in triton
    assert triton["args"][-1] == "--log-error=false" and triton["resources"]["requests"]["cpu"] == "20m"
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert set(volumes) >= {m["name"] for m in triton["volumeMounts"]}
    paths = [item["path"] for item in volumes["models"]["configMap"]["items"]]
    assert paths == [f"{NAME}/config.pbtxt", f"{NAME}/1/model.onnx"]
    assert "max_batch_size: 64" in config_map["data"]["config"] and config_map["binaryData"]["model"]
    assert hogs["spec"]["replicas"] == 3


def test_the_whole(served: tuple[str, Counter[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, port = served[0].rpartition(":")
    monkeypatch.setattr(crashes, "_PORT", int(port))
    monkeypatch.setattr(crashes, "say", lambda line: None)
    done: list[str] = []
    cluster: Any = SimpleNamespace(
        target=SimpleNamespace(images=SimpleNamespace(triton="t", optimizer="o")),
        fresh_namespace=done.append,
        apply=lambda *made: done.append(" ".join(o["kind"] for o in made)),
        pods=lambda namespace, selector: [pod()],
        kubectl=lambda *words, **_: done.append(" ".join(words[:3])),
    )
    lines = measure(cluster, SMALL)
    assert host == "127.0.0.1" and "crashes.crashes: 1" in lines
    namespace = "modelrollout-bench-crashes"
    assert done == [namespace, "ConfigMap Deployment Deployment", f"delete namespace {namespace}"]
