"""What a server's init container adds to config.pbtxt, as the real Triton reads it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import requests

from modelrollout.api import names
from tests.e2e.conftest import Stage
from tests.e2e.models import CLASSES, FEATURES

pytestmark = pytest.mark.sandbox


def served(stage: Stage, name: str) -> tuple[dict[str, Any], str]:
    """The configuration that Triton says it serves the stable revision with, and the digest of the
    artifact.
    """
    revision = stage.until_ready(name)["status"]["stable"]["revision"]
    address = stage.cluster.service_address(stage.namespace, revision, names.PORT_HTTP)
    answer = requests.get(f"http://{address}/v2/models/{name}/config", timeout=10)
    assert answer.status_code == 200, answer.text
    digest = stage.cluster.revision(stage.namespace, revision)["status"]["artifact"]["digest"]
    return dict(answer.json()), str(digest)


def threads(config: dict[str, Any]) -> str | None:
    parameter = config.get("parameters", {}).get("intra_op_thread_count")
    return None if parameter is None else str(parameter["string_value"])


def test_a_server_has_as_many_threads_as_its_limit_and_the_artifact_stays_the_same(stage: Stage) -> None:
    node = os.cpu_count() or 1
    digests = set()
    for name, cpu, expected in (
        ("part-of-a-cpu", "500m", "1"),
        ("two-cpus", "2500m", str(min(2, node))),
        ("any-cpus", None, None),
    ):
        made = stage.deployment(name)
        limits = made["spec"]["serving"]["resources"]["limits"]
        del limits["cpu"]
        limits |= {} if cpu is None else {"cpu": cpu}
        stage.apply(made)
        config, digest = served(stage, name)
        assert threads(config) == expected, name
        digests.add(digest)
        stage.cluster.kubectl("delete", "mdep", name, "-n", stage.namespace, "--wait=false")
    assert len(digests) == 1, "what depends on the server is no part of the artifact"


def test_triton_takes_the_settings_of_tensorrt_and_serves(stage: Stage) -> None:
    """Its core reads them; nothing here has a GPU, so that ONNX Runtime's own kernels answer."""
    made = stage.deployment("accelerated")
    made["spec"]["serving"]["accelerator"] = {"tensorRT": {"workspace": "1Gi"}}
    stage.apply(made)
    config, digest = served(stage, "accelerated")
    [accelerator] = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    engines = f"/tmp/engines/{digest.removeprefix('sha256:')}-{1 << 30}"
    assert accelerator == {
        "name": "tensorrt",
        "parameters": {
            "max_workspace_size_bytes": str(1 << 30),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": engines,
        },
    }
    assert stage.answers("accelerated", np.ones((1, FEATURES), np.float32))["logits"].shape == (1, CLASSES)
    revision = stage.get("accelerated")["status"]["stable"]["revision"]
    servers = f"{names.LABEL_REVISION}={revision},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
    [pod] = stage.cluster.pods(stage.namespace, servers)

    def own() -> list[str]:
        pod_name, command = pod["metadata"]["name"], ("-c", "triton", "--", "ls", "-A", engines)
        return stage.cluster.kubectl("exec", "-n", stage.namespace, pod_name, *command).split()

    stage.until("what starts the server has seen that the model is ready", lambda: own() == [".whole"])
    stage.cluster.kubectl("delete", "mdep", "accelerated", "-n", stage.namespace, "--wait=false")
