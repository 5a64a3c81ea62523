"""What a server's init container adds to config.pbtxt, on the real Triton, without a GPU."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import triton
from modelrollout.contract.common import ServingConfig
from modelrollout.contract.tasks import Batching
from modelrollout.triton.config import parse, render, with_serving, with_tensorrt, with_threads
from modelrollout.triton.repository import Repository
from modelrollout.triton.tensors import TensorSpec
from tests.e2e.models import CLASSES, FEATURES, WEIGHTS, classifier

pytestmark = pytest.mark.sandbox
PORT, NAME = 18601, "digits"
LIMIT_SECONDS = 30.0
X, LOGITS = TensorSpec("x", "FP32", (-1, FEATURES)), TensorSpec("logits", "FP32", (-1, CLASSES))
STORED = parse(render([X], [LOGITS], Batching(max_batch_size=8), "KIND_AUTO"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.Server]:
    folder = tmp_path_factory.mktemp("models")
    (folder / NAME / "1").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / NAME / "1" / "model.onnx").write_bytes(classifier(WEIGHTS, "good"))
    with triton.serving(folder, PORT) as server:
        yield server


def load(server: triton.Server, config: Any) -> dict[str, Any]:
    """The configuration that Triton says it serves with, once the model has answered."""
    with Repository(server.address) as repository:
        repository.load(NAME, config)
    url = f"http://{server.address}/v2/models/{NAME}"
    x = {"name": "x", "datatype": "FP32", "shape": [2, FEATURES], "data": [0.5] * (2 * FEATURES)}
    with urllib.request.urlopen(f"{url}/infer", json.dumps({"inputs": [x]}).encode(), timeout=30) as answer:
        assert json.load(answer)["outputs"][0]["shape"] == [2, CLASSES]
    with urllib.request.urlopen(f"{url}/config", timeout=10) as answer:
        return dict(json.load(answer))


def threads_of_instances(server: triton.Server) -> list[int]:
    """Of each process that has an instance of the model."""
    counts = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        mine = int(fields["PPid"]) == server.pid and fields["State"].split()[0] != "Z"
        if mine and fields["Name"].strip() == "triton_python_b":
            counts.append(int(fields["Threads"]))
    return counts


def until_threads_are(server: triton.Server, expected: list[int]) -> None:
    """Once instances of the configuration before have ended."""
    end = time.monotonic() + LIMIT_SECONDS
    while (found := threads_of_instances(server)) != expected:
        assert time.monotonic() < end, f"{found}, and not {expected}"
        time.sleep(0.1)


def test_each_instance_has_the_threads_that_its_parameters_say(server: triton.Server) -> None:
    """A session has one thread less of its own: the one that asks computes, too."""
    load(server, with_threads(STORED, 1))
    [alone] = threads_of_instances(server)
    load(server, with_threads(STORED, 6))
    until_threads_are(server, [alone + 5])
    load(server, with_serving(with_threads(STORED, 6), ServingConfig(instances=2)))
    until_threads_are(server, [alone + 2] * 2)


def test_triton_takes_tensorrt_and_serves_without_a_gpu(server: triton.Server) -> None:
    config = load(server, with_tensorrt(STORED, 1 << 30, "/tmp/engines/ab-0"))
    [accelerator] = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator == {
        "name": "tensorrt",
        "parameters": {
            "max_workspace_size_bytes": str(1 << 30),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/tmp/engines/ab-0",
        },
    }
