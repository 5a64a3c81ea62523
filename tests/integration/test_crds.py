"""A real API server takes the CRDs and the examples, and refuses each mistake in words that a
person understands.

The committed definitions are installed under a group of this test's own: an operator that runs in
the cluster neither sees nor changes these objects, and what is installed there stays as it is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.own_group import Kubectl

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parents[2]


def deployment(
    change: Callable[[dict[str, Any]], None] | None = None, example: str = "canary-with-golden.yaml"
) -> dict[str, Any]:
    """An example, changed."""
    actual: dict[str, Any] = yaml.safe_load((ROOT / "examples" / example).read_text())
    actual["metadata"].pop("namespace", None)
    if change is not None:
        change(actual)
    return actual


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets what is at a dotted path; ``DELETE`` takes it away."""

    def change(target: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = target
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value is DELETE:
            del node[last]
        elif isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value

    return change


DELETE = object()
METRICS = "spec.rollout.analysis.metrics"
STEPS = "spec.rollout.canary.steps"
GATE_METRICS = "spec.optimization.gate.metrics"


def strategy(
    also: Callable[[dict[str, Any]], None] = lambda _: None, **rollout: Any
) -> Callable[[dict[str, Any]], None]:
    """Another strategy than the example's canary, and one more change."""

    def change(target: dict[str, Any]) -> None:
        del target["spec"]["rollout"]["canary"]
        target["spec"]["rollout"] |= rollout
        also(target)

    return change


TEST = {"headers": [{"name": "x-group", "value": "b"}]}
PREVIEW = {"preview": {"http": {"hostnames": ["digits.models.example.com"]}}}


def metric(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return put(METRICS, [fields])


TENSOR = {"name": "x", "dataType": "FP32", "shape": [-1, 4]}


def backend(
    also: Callable[[dict[str, Any]], None] = lambda _: None, **triton: Any
) -> Callable[[dict[str, Any]], None]:
    """The example, served as it is by a backend of Triton, and one more change."""

    def change(target: dict[str, Any]) -> None:
        target["spec"].pop("optimization", None)
        target["spec"]["serving"]["triton"] = triton
        also(target)

    return change


TRAINING = {"data": {"uri": "s3://models/t.npz"}}
IMAGE = "example/own@sha256:" + "a" * 64
SELECTION = {"uri": "s3://models/selection.npz"}

BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown field": (put("spec.serving.replica", 3), 'unknown field "spec.serving.replica"'),
    "unknown field deep inside": (put(f"{STEPS}.0.wieght", 3), "wieght"),
    "no model": (put("spec.model", DELETE), "spec.model: Required value"),
    "no resources": (put("spec.serving.resources", DELETE), "spec.serving.resources: Required value"),
    "scheme": (
        put("spec.model.uri", "ftp://models/digits/model.onnx"),
        "unsupported URI: write s3://BUCKET/KEY or gs://BUCKET/KEY or az://CONTAINER/KEY or ",
    ),
    "a branch of a repository": (
        put("spec.model.uri", "hf://org/model@main/model.onnx"),
        "unsupported URI",
    ),
    "a tag in a registry": (
        put("spec.model.uri", "oci://registry.example.com/models/digits:v1"),
        "unsupported URI",
    ),
    "scheme of golden data": (
        put("spec.rollout.analysis.golden.uri", "file:///etc/passwd"),
        "unsupported URI",
    ),
    "scheme of held-out data": (put("spec.optimization.gate.data.uri", "/data/x.npz"), "unsupported URI"),
    "password in a URI": (
        put("spec.model.uri", "https://me:secret@models.example.com/m.onnx"),
        "spec.model.uri: Invalid value",
    ),
    "what to use instead": (
        put("spec.model.uri", "https://me:secret@models.example.com/m.onnx"),
        "credentials: {secretRef: {name: ...}}",
    ),
    "signed link of golden data": (
        put("spec.rollout.analysis.golden.uri", "https://h.example.com/x.npz?sig=secret"),
        "must not carry a user name",
    ),
    "fragment of held-out data": (
        put("spec.optimization.gate.data.uri", "s3://data/x.npz#part"),
        "must not carry a user name",
    ),
    "key in a bucket's name": (
        put("spec.model.uri", "s3://AKIA:se/cret@models/m.onnx"),
        "must not carry a user name",
    ),
    "digest": (put("spec.model.sha256", "sha256:abc"), "spec.model.sha256"),
    "follow beside a digest": (
        put("spec.model", {"uri": "s3://models/m.onnx", "sha256": "0" * 64, "follow": {"every": "10m"}}),
        "and model.sha256 one file alone: leave one of them out",
    ),
    "follow of what a URI pins": (
        put("spec.model", {"uri": f"hf://org/model@{'0' * 40}/m.onnx", "follow": {"every": "10m"}}),
        "hf:// and oci:// URIs name a commit or a digest, behind which nothing changes",
    ),
    "follow too often": (
        put("spec.model", {"uri": "s3://models/m.onnx", "follow": {"every": "4m"}}),
        "follow.every must be at least 5m",
    ),
    "static without calibration": (
        put("spec.optimization.steps.0.int8", {"method": "Static"}),
        "int8 with method Static needs calibration",
    ),
    "empty optimization step": (put("spec.optimization.steps.0", {}), "name exactly one step"),
    "two steps in one": (
        put("spec.optimization.steps.0", {"graph": {}, "int4": {}}),
        "name exactly one step",
    ),
    "calibration method of Dynamic": (
        put("spec.optimization.steps.0.int8", {"calibrationMethod": "Entropy"}),
        "belongs to method Static",
    ),
    "left out of Dynamic": (
        put("spec.optimization.steps.0.int8", {"leaveOut": "BySensitivity"}),
        "belongs to method Static",
    ),
    "activations of nothing": (
        put("spec.optimization.steps.0", {"prune": {"sparsity": 0.5, "importance": "Activation"}}),
        "give training",
    ),
    "sparsity of everything": (
        put("spec.optimization.steps.0", {"prune": {"sparsity": 1}}),
        "should be less than 1",
    ),
    "no student": (
        put("spec.optimization.steps.0", {"distill": {"training": TRAINING}}),
        "distill needs either student",
    ),
    "student and size": (
        put(
            "spec.optimization.steps.0",
            {"distill": {"training": TRAINING, "size": 0.1, "student": TRAINING["data"]}},
        ),
        "distill needs either student",
    ),
    "search without a gate": (
        put("spec.optimization", {"steps": [{"auto": {"data": SELECTION}}]}),
        "auto needs gate",
    ),
    "search by the held-out data": (
        put("spec.optimization.steps", [{"auto": {"data": {"uri": "s3://data/digits/heldout.npz"}}}]),
        "auto.data must not be the gate's data",
    ),
    "search before others": (
        put("spec.optimization.steps", [{"auto": {"data": SELECTION}}, {"graph": {}}]),
        "auto is the last step",
    ),
    "two searches": (
        put("spec.optimization.steps", [{"auto": {"data": SELECTION}}] * 2),
        "auto is the last step",
    ),
    "search longer than the Job": (
        put("spec.optimization.steps", [{"auto": {"data": SELECTION, "timeLimit": "60m"}}]),
        "auto.timeLimit must be less than timeout",
    ),
    "odd block": (put("spec.optimization.steps.0", {"int4": {"blockSize": 33}}), "Unsupported value: 33"),
    "container by a tag": (
        put("spec.optimization.steps.0", {"container": {"image": "example/own:1"}}),
        "must be named by its digest",
    ),
    "two containers": (
        put("spec.optimization.steps", [{"container": {"image": IMAGE}}] * 2),
        "one container at most",
    ),
    "gate metric without a budget": (
        put(GATE_METRICS, [{"name": "accuracy"}]),
        "a gate metric needs maxDrop",
    ),
    "gate metric without k": (put(GATE_METRICS, [{"name": "topK", "min": 0.9}]), "topK needs k"),
    "k of another metric": (put(GATE_METRICS, [{"name": "f1", "k": 3, "min": 0.9}]), "topK needs k"),
    "average of accuracy": (
        put(GATE_METRICS, [{"name": "accuracy", "average": "Macro", "min": 0.9}]),
        "average belongs to precision, recall and f1",
    ),
    "errors with maxDrop": (
        put(GATE_METRICS, [{"name": "mae", "maxDrop": 0.1}]),
        "do not belong to mae, mse and relativeError",
    ),
    "accuracy with maxIncrease": (
        put(GATE_METRICS, [{"name": "accuracy", "maxIncrease": 0.1}]),
        "belong to mae, mse and relativeError",
    ),
    "slices of errors with min": (
        put(GATE_METRICS, [{"name": "mae", "max": 1, "slices": {"min": 0.1}}]),
        "slices: maxDrop",
    ),
    "slices without a budget": (
        put(GATE_METRICS, [{"name": "f1", "min": 0.9, "slices": {}}]),
        "name a budget",
    ),
    "slices that data does not name": (
        put(
            "spec.optimization.gate",
            {
                "data": {"uri": "s3://d/x.npz"},
                "metrics": [{"name": "f1", "min": 0.9, "slices": {"min": 0.9}}],
            },
        ),
        "a metric with slices needs data: {slices: [...]}",
    ),
    "errors beside accuracy": (
        put(GATE_METRICS, [{"name": "mae", "max": 1}, {"name": "f1", "min": 0.9}]),
        "a gate has one or the other",
    ),
    "gate without metrics": (put(GATE_METRICS, []), "should have at least 1 items"),
    "negative replicas": (
        put("spec.serving.replicas", -1),
        "spec.serving.replicas in body should be greater than or equal to 0",
    ),
    "quantity": (
        put("spec.serving.resources.limits", {"memory": "lots"}),
        "spec.serving.resources.limits.memory",
    ),
    "TensorRT without a GPU": (
        lambda o: o["spec"]["serving"].update(resources={"limits": {"cpu": 1}}, accelerator={"tensorRT": {}}),
        "accelerator.tensorRT needs a GPU of NVIDIA",
    ),
    "TensorRT for another backend": (
        backend(put("spec.serving.accelerator", {"tensorRT": {}}), backend="OpenVINO"),
        "leave triton.backend or accelerator out",
    ),
    "TensorRT for int4": (
        lambda o: (
            put("spec.optimization.steps", [{"int4": {}}])(o),
            put("spec.serving.accelerator", {"tensorRT": {}})(o),
        ),
        "no operators for int4",
    ),
    "no workspace": (
        put("spec.serving.accelerator", {"tensorRT": {"workspace": "0Gi"}}),
        "spec.serving.accelerator.tensorRT.workspace",
    ),
    "negative quantity": (
        put("spec.serving.resources.limits", {"cpu": -1}),
        "spec.serving.resources.limits.cpu",
    ),
    "duration": (put("spec.rollout.progressDeadline", "one hour"), "spec.rollout.progressDeadline"),
    "weights out of order": (
        put(STEPS, [{"weight": 25}, {"weight": 5}]),
        "weights must grow from step to step",
    ),
    "weights repeated": (
        put(STEPS, [{"weight": 25}, {"pause": {}}, {"weight": 25}]),
        "weights must grow from step to step",
    ),
    "weight over 100": (put(STEPS, [{"weight": 101}]), "should be less than or equal to 100"),
    "weight 0": (put(STEPS, [{"weight": 0}]), "should be greater than or equal to 1"),
    "no weight at all": (put(STEPS, [{"pause": {}}]), "a canary needs at least one weight"),
    "no steps": (put(STEPS, []), "should have at least 1 items"),
    "weight and pause in one step": (
        put(STEPS, [{"weight": 5, "pause": {}}]),
        "a step is either weight: N or pause: {}",
    ),
    "neither weight nor pause": (put(STEPS, [{"weight": 5}, {}]), "a step is either weight: N or pause: {}"),
    "for beside a pause": (
        put(STEPS, [{"weight": 5}, {"pause": {}, "for": "1m"}]),
        "for: belongs to a weight",
    ),
    "replicas beside a pause": (
        put(STEPS, [{"weight": 5}, {"pause": {}, "replicas": 1}]),
        "replicas: belongs to a weight",
    ),
    "two strategies": (put("spec.rollout.blueGreen", {}), "canary, blueGreen and abTest exclude each other"),
    "a test without a gateway": (
        strategy(put("spec.traffic", {}), abTest=TEST),
        "rollout.abTest needs traffic.gateway",
    ),
    "a test without headers": (strategy(abTest={"headers": []}), "should have at least 1 items"),
    "a header twice": (strategy(abTest={"headers": [*TEST["headers"], *TEST["headers"]]}), "Duplicate value"),
    "a preview without a gateway": (
        strategy(put("spec.traffic", {}), blueGreen=PREVIEW),
        "leave it out: the Service NAME-preview",
    ),
    "a preview of nothing": (strategy(blueGreen={"preview": {}}), "a preview needs http: {hostnames: [...]}"),
    "a preview on the model's own host": (
        strategy(blueGreen=PREVIEW),
        "its host names must differ from those of traffic.http",
    ),
    "latency without objective": (
        metric(name="latency", maxIncrease=0.005),
        "latency needs objective, for example 50ms",
    ),
    "latency without a margin": (
        metric(name="latency", objective="50ms"),
        "latency needs maxIncrease or share",
    ),
    "objective of another metric": (
        metric(name="errors", objective="50ms", maxIncrease=0.1),
        "objective, share and of belong to latency",
    ),
    "built in, with a query": (
        metric(name="errors", query="up", max=1, maxIncrease=0.1),
        "accuracy, errors, clientErrors, refusedRequests, latency are built in",
    ),
    "client errors, with a query": (metric(name="clientErrors", query="up", max=1), "are built in"),
    "capitals in another name": (metric(name="gpuMemory", query="up", max=1), "metrics[0].name"),
    "unknown without a query": (metric(name="f1", min=0.9), "needs query: PROMQL"),
    "query without a limit": (metric(name="gpu", query="up"), "a query needs min or max"),
    "maxDrop of errors": (metric(name="errors", maxDrop=0.1, maxIncrease=0.1), "maxDrop belongs to accuracy"),
    "maxIncrease of accuracy": (
        metric(name="accuracy", maxDrop=0.1, maxIncrease=0.1),
        "maxIncrease belongs to errors, clientErrors, refusedRequests, latency",
    ),
    "accuracy without a margin": (metric(name="accuracy"), "accuracy needs maxDrop or min"),
    "errors without a margin": (
        metric(name="errors"),
        "each of errors, clientErrors, refusedRequests needs maxIncrease or max",
    ),
    "client errors without a margin": (metric(name="clientErrors"), "needs maxIncrease or max"),
    "min in percent": (
        metric(name="accuracy", min=95),
        "min is a share of accuracy, from 0 to below 1 (0.95, not 95)",
    ),
    "min of latency": (
        metric(name="latency", objective="50ms", share=0.9, min=0.1),
        "min is a share of accuracy",
    ),
    "max in percent": (
        metric(name="errors", max=2),
        "max is a share of errors, clientErrors, refusedRequests, above 0 and at most 1 (0.02, not 2)",
    ),
    "no error at all": (metric(name="errors", max=0), "max is a share of errors"),
    "max of accuracy": (metric(name="accuracy", maxDrop=0.1, max=0.1), "max is a share of errors"),
    "for of what is no query": (
        metric(name="errors", maxIncrease=0.1, **{"for": "1m"}),
        "for belongs to a query",
    ),
    "slices of errors": (
        metric(name="errors", maxIncrease=0.1, slices=[{"name": "night"}]),
        "slices belong to accuracy",
    ),
    "slice without a margin": (
        metric(name="accuracy", min=0.9, slices=[{"name": "night"}]),
        "a slice needs maxDrop, its own or that of the metric",
    ),
    "one slice twice": (
        metric(name="accuracy", maxDrop=0.1, slices=[{"name": "a"}, {"name": "a"}]),
        "Duplicate value",
    ),
    "name of a slice": (metric(name="accuracy", maxDrop=0.1, slices=[{"name": "-"}]), "slices[0].name"),
    "delay beyond the deadline": (
        put("spec.rollout", {"analysis": {"initialDelay": "61m"}, "progressDeadline": "1h"}),
        "analysis.initialDelay must be shorter than progressDeadline",
    ),
    "on no verdict": (
        put("spec.rollout.onInconclusive", "Hope"),
        'supported values: "Pause", "Rollback", "Promote"',
    ),
    "one metric twice": (
        put(METRICS, [{"name": "errors", "max": 0.1}, {"name": "errors", "max": 0.2}]),
        "Duplicate value",
    ),
    "margin of nothing": (metric(name="errors", maxIncrease=0), "should be greater than 0"),
    "same host for HTTP and gRPC": (
        put("spec.traffic.grpc", {"hostnames": ["other.example.com", "digits.models.example.com"]}),
        "HTTP and gRPC need different host names",
    ),
    "gateway without hosts": (
        put("spec.traffic.http", DELETE),
        "a gateway needs http: {hostnames: [...]} or grpc: {hostnames: [...]}",
    ),
    "hosts without a gateway": (put("spec.traffic.gateway", DELETE), "host names need gateway"),
    "backendRequest longer than request": (
        put("spec.traffic.timeouts", {"request": "10s", "backendRequest": "11s"}),
        "backendRequest is part of request",
    ),
    "a session by two names": (
        put("spec.traffic.sessionAffinity", {"header": "x-session", "cookie": "sid"}),
        "by a header or by a cookie: set exactly one",
    ),
    "timeout in fractions": (
        put("spec.traffic.timeouts", {"request": "1.5s"}),
        "spec.traffic.timeouts.request",
    ),
    "host name": (
        put("spec.traffic.http.hostnames", ["https://digits.example.com"]),
        "spec.traffic.http.hostnames[0]",
    ),
    "name too long": (put("metadata.name", "d" * 41), "metadata.name must be at most 40 characters"),
    "name with a dot": (
        put("metadata.name", "digits.v2"),
        "metadata.name must be at most 40 characters: a lower-case letter first",
    ),
    "name that begins with a digit": (put("metadata.name", "2digits"), "a lower-case letter first"),
    "no history": (put("spec.revisionHistoryLimit", 0), "spec.revisionHistoryLimit"),
    "on failure": (put("spec.rollout.onFailure", "Explode"), 'supported values: "Rollback", "Pause"'),
    "surge": (put("spec.serving.surge", "Never"), 'supported values: "Auto", "Wait"'),
    "unknown backend": (backend(backend="ONNX"), 'Unsupported value: "ONNX"'),
    "backend and format": (
        backend(put("spec.model.format", "ONNX"), backend="TensorRT"),
        "leave one of them out",
    ),
    "backend and steps": (
        backend(put("spec.optimization", {"steps": [{"graph": {}}]}), backend="TensorRT"),
        "leave optimization.steps and gate out; rollout.analysis.golden judges the served model",
    ),
    "backend and gate": (
        backend(
            put(
                "spec.optimization.gate",
                {"data": {"uri": "s3://d/x.npz"}, "metrics": [{"name": "accuracy", "maxDrop": 0.1}]},
            ),
            backend="TensorRT",
        ),
        "rollout.analysis.golden judges the served model",
    ),
    "inputs without outputs": (
        backend(backend="TensorRT", inputs=[TENSOR]),
        "give inputs and outputs, or neither",
    ),
    "inputs of an ONNX file": (
        backend(inputs=[TENSOR], outputs=[TENSOR]),
        "belong to a backend or to model.format: PyTorch",
    ),
    "code without a backend": (
        backend(code="Allowed"),
        "code belongs to a backend; ONNX Runtime runs none from a model",
    ),
    "Python without permission": (
        backend(backend="Python"),
        "backend: Python runs the model's own code: set code: Allowed",
    ),
    "code of a plan": (
        backend(backend="TensorRT", code="Allowed"),
        "code belongs to the backends Python and VLLM",
    ),
    "one tensor twice": (
        backend(backend="TensorRT", inputs=[TENSOR, TENSOR], outputs=[TENSOR]),
        "Duplicate value",
    ),
    "no dimensions": (
        backend(backend="TensorRT", inputs=[TENSOR | {"shape": []}], outputs=[TENSOR]),
        "should have at least 1 items",
    ),
    "data type": (
        backend(backend="TensorRT", inputs=[TENSOR | {"dataType": "float"}], outputs=[TENSOR]),
        'Unsupported value: "float"',
    ),
    "inputs of vLLM": (
        backend(put("spec.rollout", {}), backend="VLLM", inputs=[TENSOR], outputs=[TENSOR]),
        "inputs and outputs of their own",
    ),
    "golden data for vLLM": (backend(backend="VLLM"), "golden data and shadow compare tensors"),
    "batches of vLLM": (
        backend(
            lambda t: (put("spec.rollout", {})(t), put("spec.serving.batching", {"maxBatchSize": 4})(t))[0],
            backend="VLLM",
        ),
        "backend: VLLM batches by itself",
    ),
    "interface change": (put("spec.model.interfaceChange", True), "spec.model.interfaceChange"),
}

WINDOWS = "spec.freezeWindows"
BAD_POLICY: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown field": (put("spec.gates.gold", True), 'unknown field "spec.gates.gold"'),
    "namespace pattern": (put("spec.selector.namespaces", ["Team_A"]), "spec.selector.namespaces[0]"),
    "window of both kinds": (
        put(
            WINDOWS,
            [
                {
                    "schedule": "0 0 * * *",
                    "duration": "1h",
                    "start": "2026-12-20T00:00:00Z",
                    "end": "2026-12-21T00:00:00Z",
                }
            ],
        ),
        "a freeze window is either schedule and duration, or start and end",
    ),
    "empty window": (
        put(WINDOWS, [{"reason": "why not"}]),
        "a freeze window is either schedule and duration, or start and end",
    ),
    "schedule without duration": (put(WINDOWS, [{"schedule": "0 0 * * *"}]), "schedule needs duration"),
    "start without end": (put(WINDOWS, [{"start": "2026-12-20T00:00:00Z"}]), "start needs end"),
    "start without time zone": (
        put(WINDOWS, [{"start": "2026-12-20T00:00:00", "end": "2026-12-21T00:00:00Z"}]),
        "spec.freezeWindows[0].start",
    ),
    "no slot at all": (put("spec.limits.concurrentRollouts", 0), "should be greater than or equal to 1"),
    "default weights out of order": (
        put("spec.defaults.canary.steps", [{"weight": 25}, {"weight": 5}]),
        "weights must grow from step to step",
    ),
    "mandatory metric without a margin": (
        put("spec.gates.metrics", [{"name": "errors"}]),
        "each of errors, clientErrors, refusedRequests needs maxIncrease or max",
    ),
    "template twice": (
        put("spec.analysisTemplates", [{"name": "a", "metrics": [{"name": "errors", "max": 0.1}]}] * 2),
        "Duplicate value",
    ),
    "source that is no URI": (
        put("spec.allowedSources.models", ["/models"]),
        "spec.allowedSources.models[0]",
    ),
    "place of code that is no URI": (
        put("spec.allowedSources.code", ["/models"]),
        "spec.allowedSources.code[0]",
    ),
    "place to follow that is no URI": (
        put("spec.allowedSources.followUnsigned", ["/models"]),
        "spec.allowedSources.followUnsigned[0]",
    ),
    "account that is no name": (
        put("spec.allowedServiceAccounts", ["Model_Server"]),
        "spec.allowedServiceAccounts[0]",
    ),
    "no account to run as": (put("spec.allowedServiceAccounts", []), "should have at least 1 items"),
    "long name": (put("metadata.name", "p" * 64), "metadata.name must be at most 63 characters"),
}


@pytest.mark.parametrize("mistake", BAD_POLICY)
def test_mistake_in_a_policy_is_refused_with_its_message(kubectl: Kubectl, mistake: str) -> None:
    change, message = BAD_POLICY[mistake]
    assert message in kubectl.refused(deployment(change, "policy.yaml"))


def test_a_policy_shows_what_it_is_for(kubectl: Kubectl) -> None:
    kubectl.ok("create", "-f", "-", body=deployment(example="policy.yaml"))
    try:
        status = {"accepted": "True", "matches": 7, "frozenUntil": "2026-12-21T00:00:00Z"}
        kubectl.ok(
            "patch",
            kubectl.rpol,
            "production",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
        )
        header, row = kubectl.ok("get", kubectl.rpol, "production").splitlines()
        assert header.split() == ["NAME", "ACCEPTED", "MATCHES", "ROLLOUTS", "GPUS", "FROZEN", "UNTIL", "AGE"]
        assert row.split()[:6] == ["production", "True", "7", "3", "16", "2026-12-21T00:00:00Z"]
    finally:
        kubectl("delete", kubectl.rpol, "production")


def test_fields_that_a_policy_may_fill_in_have_no_default_in_the_schema(kubectl: Kubectl) -> None:
    body = deployment(example="smallest.yaml")
    stored = json.loads(
        kubectl.ok("create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "json", body=body)
    )
    assert not {"onFailure", "onInconclusive", "progressDeadline"} & set(stored["spec"]["rollout"])
    assert "canary" not in stored["spec"]["rollout"]
    assert stored["spec"]["rollout"]["analysis"]["interval"] == "5s"


@pytest.mark.parametrize("mistake", BAD)
def test_mistake_is_refused_with_its_message(kubectl: Kubectl, mistake: str) -> None:
    change, message = BAD[mistake]
    assert message in kubectl.refused(deployment(change))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_example_is_accepted(kubectl: Kubectl, example: Path) -> None:
    kubectl.ok(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", body=deployment(example=example.name)
    )


def test_the_longest_name_is_accepted(kubectl: Kubectl) -> None:
    kubectl.ok(
        "create",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
        body=deployment(put("metadata.name", "d" * 40)),
    )


def test_what_kubernetes_defines_is_carried_through(kubectl: Kubectl) -> None:
    full = deployment(example="full.yaml")
    stored = json.loads(
        kubectl.ok("create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "json", body=full)
    )
    assert stored["spec"]["serving"]["affinity"] == full["spec"]["serving"]["affinity"]
    assert stored["spec"]["serving"]["tolerations"] == full["spec"]["serving"]["tolerations"]


def test_scale_get_and_status(kubectl: Kubectl) -> None:
    kubectl.ok("create", "-f", "-", body=deployment(example="smallest.yaml"))
    kubectl.ok("scale", f"{kubectl.mdep}/digits", "--replicas=3")
    assert (
        json.loads(kubectl.ok("get", kubectl.mdep, "digits", "-o", "json"))["spec"]["serving"]["replicas"]
        == 3
    )

    status = {
        "phase": "Canary", "canary": "digits-8d1b", "weight": 25, "step": "2/4", "verdict": "in progress",
        "replicas": 3, "selector": "a=b",
        "stable": {"revision": "digits-6c9f", "number": 1},
        "conditions": [{"type": "Ready", "status": "False", "reason": "Canary", "message": "at 25 %",
            "lastTransitionTime": "2026-11-22T08:00:00Z"}],
    }  # fmt: skip
    kubectl.ok(
        "patch",
        kubectl.mdep,
        "digits",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    header, row = kubectl.ok("get", kubectl.mdep, "digits").splitlines()
    assert header.split() == [
        "NAME",
        "READY",
        "PHASE",
        "STABLE",
        "CANARY",
        "WEIGHT",
        "STEP",
        "VERDICT",
        "AGE",
    ]
    assert row.split()[:9] == [
        "digits",
        "False",
        "Canary",
        "digits-6c9f",
        "digits-8d1b",
        "25",
        "2/4",
        "in",
        "progress",
    ]
    scale = json.loads(
        kubectl.ok(
            "get",
            "--raw",
            f"/apis/{kubectl.group}/v1alpha1/namespaces/{kubectl.namespace}/modeldeployments/digits/scale",
        )
    )
    assert scale["status"] == {"replicas": 3, "selector": "a=b"}
    assert "digits" in kubectl.ok("get", "modelrollout"), "the category lists both kinds"


def test_a_revision_cannot_be_changed(kubectl: Kubectl) -> None:
    revision = {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelRevision",
        "metadata": {"name": "digits-8d1b"},
        "spec": {
            "number": 1, "deployment": "digits", "sha256": "a" * 64, "builder": "0.1.0",
            "input": {"model": {"uri": "s3://models/a"}},
            "template": {"spec": {"containers": [{"name": "server"}]}},
        },
    }  # fmt: skip
    kubectl.ok("create", "-f", "-", body=revision)
    kubectl.ok("annotate", kubectl.mrev, "digits-8d1b", "modelrollout.dev/promote=2/4 7f3a")
    shallow, deep = copy.deepcopy(revision), copy.deepcopy(revision)
    put("spec.number", 2)(shallow)
    put("spec.template.spec.containers.0.name", "other")(deep)
    for changed in (shallow, deep):
        done = kubectl("replace", "-f", "-", body=changed)
        assert done.returncode != 0
        assert "a ModelRevision is immutable; change the ModelDeployment instead" in done.stderr
    header, row = kubectl.ok("get", kubectl.mrev).splitlines()
    assert header.split() == ["NAME", "OUTCOME", "REASON", "ACCURACY", "SIZE", "P99", "AGE"]
    assert row.split()[0] == "digits-8d1b"


@pytest.mark.parametrize(
    "path",
    [
        "modeldeployment.spec.rollout.canary.steps",
        "modeldeployment.spec.serving",
        "modelrevision.spec",
        "modelrevision.status",
        "rolloutpolicy.spec.freezeWindows",
        "rolloutpolicy.spec.gates",
    ],
)
def test_explain_has_words(kubectl: Kubectl, path: str) -> None:
    text = kubectl.ok("explain", path, f"--api-version={kubectl.group}/v1alpha1")
    assert "<empty>" not in text.split("FIELDS:")[0]


def test_definitions_are_structural(kubectl: Kubectl) -> None:
    for name in (kubectl.mdep, kubectl.mrev, kubectl.rpol):
        conditions = json.loads(kubectl.ok("get", "crd", name, "-o", "json"))["status"]["conditions"]
        assert not [c for c in conditions if c["type"] == "NonStructuralSchema"]
