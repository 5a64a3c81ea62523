"""Triton's own counters, above all its histogram of latencies, against a real Prometheus.

The series are those of Triton 2.65, as its repository documents and tests them (the user guide's
page on metrics, qa/L0_metrics/histogram_metrics_test.py): the sandbox's is older.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bench import triton
from modelrollout.analysis.measurement import Counts, Measurement, fold_in
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.provider import read_metrics
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.api.v1alpha1 import Metric, RevisionRef
from modelrollout.config import PrometheusConfig
from modelrollout.triton.config import parse
from modelrollout.triton.histogram import FLAG
from modelrollout.triton.repository import Repository
from tests.integration.prometheus import LIMIT_SECONDS, Exporter, new_series_shown, running

STABLE, CANARY = "digits-old", "digits-new"
PORT = 18581
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.01, of="FirstResponse")
TARGET = ScrapedTarget(
    "ml", "digits", RevisionRef(revision=CANARY, number=2), RevisionRef(revision=STABLE, number=1), "none"
)
BOUNDS = (49, 99, 1999)


def export(exporter: Exporter, fast: int, total: int, bounds: tuple[int, ...] = BOUNDS) -> None:
    """A server that answered ``fast`` of ``total`` requests in less than 50 ms, the others in
    50 ms.
    """
    model, name = 'model="digits",version="2"', "nv_inference_first_response_histogram_ms"
    exporter.lines |= {
        f"nv_inference_request_success{{{model}}}": total,
        # of the execution on a GPU: Triton counts first responses without that label
        f'{name}_bucket{{gpu_uuid="GPU-1",{model},le="+Inf"}}': 0,
    }
    if bounds:
        buckets = {str(b): fast if b < 50 else total for b in bounds} | {"+Inf": total}
        exporter.lines |= {f'{name}_bucket{{{model},le="{le}"}}': n for le, n in buckets.items()}
        exporter.lines |= {f"{name}_count{{{model}}}": total, f"{name}_sum{{{model}}}": 50 * total}


@pytest.fixture
def servers() -> dict[str, Exporter]:
    return {STABLE: Exporter(), CANARY: Exporter()}


@pytest.fixture
def url(servers: dict[str, Exporter], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ExitStack() as stack:
        jobs = [
            {
                "job_name": revision,
                "scrape_interval": "200ms",
                "scrape_timeout": "200ms",
                "static_configs": [
                    {
                        "targets": [stack.enter_context(exporter.listening())],
                        "labels": {
                            "namespace": "ml",
                            "revision": revision,
                            "pod": f"{revision}-6d9f8b7c5d-x2x4z",
                        },
                    }
                ],
            }
            for revision, exporter in servers.items()
        ]
        yield stack.enter_context(running(tmp_path_factory.mktemp("prometheus"), jobs))


@pytest.fixture
async def reader(url: str) -> AsyncIterator[PrometheusReader]:
    reader = PrometheusReader(PrometheusConfig(name="main", url=url))
    yield reader
    await reader.close()


async def look(
    reader: PrometheusReader,
    before: Measurement | None = None,
    target: ScrapedTarget = TARGET,
    targets: int = 2,
    metric: Metric = LATENCY,
) -> Measurement:
    """After a scrape of all that began after this call."""
    await new_series_shown()
    now = time.time()
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            [answer] = await reader.query([f"count((timestamp(up) > {now}) and (up == 1)) == {targets}"])
            if isinstance(answer, Answer) and answer.series:
                break
            await asyncio.sleep(0.05)
    known = {metric.name: Counts(before.canary, before.stable)} if before else {}
    readings = await read_metrics(reader, target, [metric], known, time.time())
    return fold_in(readings, known, stable=True)[metric.name]


def counted(m: Measurement) -> tuple[float, ...]:
    assert m.problem is None and m.canary is not None and m.stable is not None, m.problem
    return m.canary.total, m.canary.bad, m.stable.total, m.stable.bad


async def test_requests_are_counted_from_the_baseline_on_and_across_a_restart(
    servers: dict[str, Exporter], reader: PrometheusReader
) -> None:
    export(servers[STABLE], 9000, 10_000)
    export(servers[CANARY], 8, 8)
    first = await look(reader)
    assert counted(first) == (0, 0, 0, 0)
    export(servers[STABLE], 9990, 11_000)
    export(servers[CANARY], 88, 108)
    second = await look(reader, first)
    assert counted(second) == (100, 20, 1000, 10)
    export(servers[CANARY], 5, 8)  # restarted: what it counted by then may be its warm-up
    third = await look(reader, second)
    assert counted(third) == (100, 20, 1000, 10)
    export(servers[CANARY], 15, 28)
    assert counted(await look(reader, third)) == (120, 30, 1000, 10)


async def test_bounds_that_only_one_side_has_are_not_named(
    servers: dict[str, Exporter], reader: PrometheusReader
) -> None:
    export(servers[STABLE], 9000, 10_000, (99, 1999))
    export(servers[CANARY], 10, 10)
    problem = (await look(reader)).problem
    assert problem is not None and problem.reason == "NotABucketBound"
    assert "its bounds are 100ms, 2s:" in problem.message


async def test_a_server_without_the_histogram_is_told_from_one_that_was_not_scraped(
    servers: dict[str, Exporter], reader: PrometheusReader
) -> None:
    export(servers[CANARY], 10, 10)
    problem = (await look(reader)).problem
    assert problem is not None and problem.reason == "NoData", "stable shows nothing at all"
    export(servers[STABLE], 9000, 10_000, ())
    servers[STABLE].lines.pop(
        'nv_inference_first_response_histogram_ms_bucket{gpu_uuid="GPU-1",model="digits",version="2",le="+Inf"}'
    )
    problem = (await look(reader, target=replace(TARGET, triton_versions={STABLE: "2.51.0"}))).problem
    assert problem is not None and problem.reason == "NoSource"
    assert f"the servers of {STABLE} (Triton 2.51.0)" in problem.message


async def test_requests_of_all_gpus_of_a_server_are_counted(
    servers: dict[str, Exporter], reader: PrometheusReader
) -> None:
    """A model with an instance on each GPU: the larger counter alone was taken."""
    errors = Metric(name="errors", max_increase=0.01)

    def answered(exporter: Exporter, **by_gpu: tuple[int, int]) -> None:
        for gpu, (good, bad) in by_gpu.items():
            labels = f'gpu_uuid="GPU-{gpu}",model="digits",version="2"'
            exporter.lines[f"nv_inference_request_success{{{labels}}}"] = good
            exporter.lines[f'nv_inference_request_failure{{{labels},reason="BACKEND"}}'] = bad

    for exporter in servers.values():
        answered(exporter, a=(1000, 5), b=(800, 0))
    first = await look(reader, metric=errors)
    answered(servers[CANARY], a=(1040, 5), b=(860, 7))
    second = await look(reader, first, metric=errors)
    assert counted(second) == (107, 7, 0, 0)


# --- the real Triton, with a model that registers the family itself

STREAM = """\
import time

import numpy as np
import triton_python_backend_utils as pb_utils

NAME = "nv_inference_first_response_histogram_ms"


class TritonPythonModel:
    def initialize(self, args):
        kind = pb_utils.MetricFamily.HISTOGRAM
        self.family = pb_utils.MetricFamily(name=NAME, description="until the first response", kind=kind)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.first = self.family.Metric(labels=labels, buckets=[49, 99])

    def execute(self, requests):
        for request in requests:
            began, sender = time.monotonic(), request.get_response_sender()
            time.sleep(float(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0]))
            self.first.observe(int(1000 * (time.monotonic() - began)))
            for number in range(3):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([number], np.int32))]))
                time.sleep(0.1)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
STREAM_CONFIG = (
    'backend: "python" input { name: "x" data_type: TYPE_FP32 dims: [1] }'
    ' output { name: "y" data_type: TYPE_INT32 dims: [1] } model_transaction_policy { decoupled: true }'
    " instance_group { count: 1 kind: KIND_CPU }"
)


@pytest.fixture
def streaming(tmp_path: Path) -> Path:
    """A folder with the model."""
    (tmp_path / "digits" / "1").mkdir(parents=True)
    tmp_path.chmod(0o755)
    (tmp_path / "digits" / "1" / "model.py").write_text(STREAM)
    return tmp_path


@pytest.mark.sandbox
async def test_a_model_that_streams_is_judged_by_its_first_responses_on_the_real_triton(
    streaming: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The Triton of the sandbox ignores the flag; its Python backend has histograms."""
    with ExitStack() as stack:
        server = stack.enter_context(triton.serving(streaming, PORT, (FLAG,)))
        with Repository(server.address) as repository:
            repository.load("digits", parse(STREAM_CONFIG))
        place = {"namespace": "ml", "revision": CANARY, "pod": f"{CANARY}-6d9f8b7c5d-x2x4z"}
        scraped = {
            "job_name": "servers",
            "scrape_interval": "200ms",
            "scrape_timeout": "200ms",
            "static_configs": [{"targets": [server.metrics.split("/")[2]], "labels": place}],
        }
        url = stack.enter_context(running(tmp_path_factory.mktemp("prometheus"), [scraped]))
        reader = PrometheusReader(PrometheusConfig(name="main", url=url))
        alone = replace(TARGET, stable=None, decoupled=True)
        ask(server.address, 0.0)  # Triton shows the family's series from the first observation on
        first = await look(reader, target=alone, targets=1)
        for seconds in (0.0, 0.0, 0.08, 0.0, 0.08):
            assert ask(server.address, seconds) == 3, "a stream of answers"
        second = await look(reader, first, alone, targets=1)
        await reader.close()
    assert second.problem is None and second.canary is not None, second.problem
    assert (second.canary.total, second.canary.bad) == (5, 2), "whole answers take 300 ms"


def ask(address: str, seconds: float) -> int:
    """How many responses come."""
    request = urllib.request.Request(
        f"http://{address}/v2/models/digits/generate_stream", json.dumps({"x": seconds}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return sum(line.startswith(b"data:") for line in answer)
