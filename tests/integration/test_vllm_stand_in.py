"""What vLLM's backend reports, and that a dead engine is noticed: a stand-in on the real Triton.

vLLM's backend is Triton's Python backend with a model.py of its own. The model below does what that
one does (read in its releases 24.12 to 25.12): it reads the same two parameters, registers the same
families, and unloads itself once its engine has died.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import triton
from modelrollout.triton.config import parse, with_vllm_reports
from modelrollout.triton.repository import Repository

pytestmark = pytest.mark.sandbox

PORT = 18591
LIMIT_SECONDS = 15.0
MODEL = """\
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name, self.dead = args["model_name"], False
        parameters = json.loads(args["model_config"])["parameters"]
        reports, self.checks = (
            parameters.get(name, {}).get("string_value", "").lower() == "true"
            for name in ("REPORT_CUSTOM_METRICS", "ENABLE_VLLM_HEALTH_CHECK")
        )
        self.first = self.tokens = None
        if reports:
            labels = {"model": args["model_name"], "version": args["model_version"]}
            self.histogram = pb_utils.MetricFamily(
                name="vllm:time_to_first_token_seconds",
                description="Histogram of time to first token in seconds.",
                kind=pb_utils.MetricFamily.HISTOGRAM,
            )
            self.first = self.histogram.Metric(labels=labels, buckets=[0.001, 0.1, 10.0])
            self.counter = pb_utils.MetricFamily(
                name="vllm:generation_tokens_total",
                description="Number of generation tokens processed.",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self.tokens = self.counter.Metric(labels=labels)

    def execute(self, requests):
        for request in requests:
            began, sender = time.monotonic(), request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            self.dead = self.dead or text == "die"
            if self.dead:
                if self.checks:
                    pb_utils.unload_model(self.name)
                error = pb_utils.TritonError("Model is unavailable due to unhealthy vLLM engine")
                sender.send(
                    pb_utils.InferenceResponse(error=error), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                )
                continue
            for number in range(3):
                answer = pb_utils.Tensor("text_output", np.array([str(number)], object))
                sender.send(pb_utils.InferenceResponse([answer]))
                if self.first and number == 0:
                    self.first.observe(time.monotonic() - began)
            if self.tokens:
                self.tokens.increment(3)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CONFIG = (
    'backend: "python" input { name: "text_input" data_type: TYPE_STRING dims: [1] }'
    ' output { name: "text_output" data_type: TYPE_STRING dims: [-1] }'
    " model_transaction_policy { decoupled: true } instance_group { count: 1 kind: KIND_CPU }"
)
OFF = 'parameters { key: "%s" value { string_value: "false" } }'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "llm" / "1").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "llm" / "1" / "model.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[triton.Server]:
    with triton.serving(models, PORT) as server:
        yield server


def load(server: triton.Server, config: Any) -> None:
    with Repository(server.address) as repository:
        repository.load("llm", config)


def ask(server: triton.Server, text: str) -> str:
    """The whole answer, also of an error, which comes in the stream or with a status of its own."""
    request = urllib.request.Request(
        f"http://{server.address}/v2/models/llm/generate_stream", json.dumps({"text_input": text}).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def status(server: triton.Server, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.address}/v2/{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def series(server: triton.Server) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for line in lines
        if line.startswith("vllm:")
        for name, _, value in [line.rpartition(" ")]
    }


def stubs(server: triton.Server) -> list[str]:
    """The Python processes of its models: what the liveness probe looks at."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    names = {pid: Path(f"/proc/{pid}/stat").read_text() for pid in children if Path(f"/proc/{pid}").exists()}
    return [pid for pid, stat in names.items() if "python" in stat and ") Z " not in stat]


def test_a_dead_engine_is_not_ready_and_its_process_is_gone_for_the_probe(server: triton.Server) -> None:
    load(server, with_vllm_reports(parse(CONFIG)))
    assert ask(server, "hello").count("data:") == 3 and status(server, "models/llm/versions/1/ready") == 200
    assert len(stubs(server)) == 1
    assert "unhealthy vLLM engine" in ask(server, "die")
    end = time.monotonic() + LIMIT_SECONDS
    while (status(server, "models/llm/versions/1/ready") == 200 or stubs(server)) and time.monotonic() < end:
        time.sleep(0.1)
    assert status(server, "models/llm/versions/1/ready") == 400 and not stubs(server)
    assert status(server, "health/live") == 200, "which is why the server itself says nothing"


def test_its_families_are_on_the_page_of_metrics(server: triton.Server) -> None:
    load(server, with_vllm_reports(parse(CONFIG)))
    before = series(server)
    ask(server, "hello")
    after = series(server)
    labels = 'model="llm",version="1"'
    for name, more in (
        (f"vllm:time_to_first_token_seconds_count{{{labels}}}", 1),
        (f'vllm:time_to_first_token_seconds_bucket{{{labels},le="10"}}', 1),
        (f"vllm:generation_tokens_total{{{labels}}}", 3),
    ):
        assert after[name] - before.get(name, 0) == more, name


def test_an_author_who_wants_neither_has_neither(server: triton.Server) -> None:
    off = "".join(OFF % name for name in ("REPORT_CUSTOM_METRICS", "ENABLE_VLLM_HEALTH_CHECK"))
    load(server, with_vllm_reports(parse(CONFIG + off)))
    before = series(server)
    ask(server, "hello")
    assert series(server) == before
    assert "unhealthy vLLM engine" in ask(server, "die")
    assert status(server, "models/llm/versions/1/ready") == 200 and stubs(server)
