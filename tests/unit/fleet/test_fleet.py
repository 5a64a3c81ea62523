"""The harness of `make bench-fleet`, without an API server. The whole is in
tests/integration/test_fleet.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fleet import FleetError, objects, servers
from fleet.control_plane import OPERATOR
from fleet.controllers import CONTROLLERS
from fleet.process import MeasuredProcess, Rest
from fleet.requests import Requests, writes
from fleet.run import Figures
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.parse import read
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.sources.traefik import TRAEFIK
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.analysis.reading import CounterReading
from modelrollout.analysis.target import Target
from modelrollout.api.v1alpha1 import Metric, ModelDeploymentSpec, RevisionRef
from modelrollout.config import OperatorConfig
from modelrollout.controller.shards import LEASE_NAME


def test_what_a_run_creates_is_valid() -> None:
    spec = ModelDeploymentSpec.model_validate(objects.model(3, version=2)["spec"])
    assert spec.model.uri == objects.source(3, 2)["model"]["uri"] != objects.source(3, 1)["model"]["uri"]
    assert OperatorConfig.model_validate(objects.configuration("http://prometheus")).store_for(spec.model.uri)
    assert (
        len({(o["metadata"]["namespace"], o["metadata"]["name"]) for o in map(objects.model, range(30))})
        == 30
    )


@pytest.mark.parametrize("name", ["errors", "latency"])
def test_the_played_prometheus_answers_the_operators_own_queries(name: str) -> None:
    metrics = objects.model(0)["spec"]["rollout"]["analysis"]["metrics"]
    metric = Metric.model_validate(next(m for m in metrics if m["name"] == name))
    target = ScrapedTarget.of(
        Target(
            namespace="team-0",
            name="model-0",
            canary=RevisionRef(revision="model-0-b", number=2),
            stable=RevisionRef(revision="model-0-a", number=1),
            profile="traefik",
        ),
        ScrapeMatchers(),
    )
    query = TRAEFIK.query(metric, target, baseline=True)
    assert isinstance(query, Query)
    series = servers.answer(query.promql, 400.0, 12.0)
    reading = read(query, Answer(tuple(Series(labels, value, 12.0) for labels, value in series)), target)[
        name
    ]
    assert isinstance(reading, CounterReading)
    for side in (reading.canary, reading.stable):
        [sample] = side.processes.values()
        assert (sample.total, sample.bad, sample.scraped) == (400.0, 0.0, 12.0)


@pytest.mark.parametrize("who", CONTROLLERS)
def test_users_create_what_an_object_refers_to_and_change_its_version(who: str) -> None:
    controller = CONTROLLERS[who]
    *_, (resource, obj) = controller.created(3)
    assert resource == controller.kind and not controller.is_done(obj, 1)
    assert controller.change(3, 1)["spec"].items() <= obj["spec"].items()
    assert controller.change(3, 2)["spec"].keys() <= obj["spec"].keys()


def test_a_rollout_is_done_with_its_version_alone() -> None:
    argo = CONTROLLERS["argo"]
    *_, (_, rollout) = argo.created(0)
    rollout["metadata"]["generation"] = 1
    rollout["status"] = {
        "phase": "Healthy",
        "observedGeneration": "1",
        "stableRS": "a",
        "currentPodHash": "a",
    }
    assert argo.is_done(rollout, 1) and not argo.is_done(rollout, 2)
    rollout["spec"] |= argo.change(0, 2)["spec"]
    assert argo.is_done(rollout, 2)
    for behind in ({"phase": "Progressing"}, {"observedGeneration": "0"}, {"stableRS": "b"}):
        assert not argo.is_done({**rollout, "status": rollout["status"] | behind}, 2)


def test_requests_are_counted_from_one_look_to_the_next(tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"

    def write(verb: str, resource: str, name: str = "x", subresource: str = "", user: str = OPERATOR) -> None:
        about = {"resource": resource, "name": name, "subresource": subresource}
        event = {"stage": "ResponseComplete", "verb": verb, "user": {"username": user}, "objectRef": about}
        with audit.open("a") as file:
            file.write(json.dumps(event) + "\n")

    audit.touch()
    requests = Requests(audit, LEASE_NAME)
    write("create", "jobs")
    write("update", "modeldeployments", subresource="status")
    write("watch", "jobs")
    write("update", "leases", name="modelrollout-operator")
    write("create", "leases", name="host-1")
    first = requests.since_last()
    assert first == {"create jobs": 1, "update modeldeployments/status": 1, "create leases": 1}
    write("list", "jobs")
    assert requests.since_last() == {"list jobs": 1}
    assert writes(first | {"list jobs": 1}) == first


def test_figures_are_for_each_object() -> None:
    kinds = Counter({"create jobs": 20, "get jobs": 5})
    lines = list(Figures(10, 12.34, 0.5, kinds, 130.4, 120.6).lines("ours", "create"))
    assert lines[:-1] == [
        "fleet.ours.10.create.wall_s: 12.3",
        "fleet.ours.10.create.cpu_ms: 50.0",
        "fleet.ours.10.create.requests: 2.50",
        "fleet.ours.10.create.writes: 2.00",
        "fleet.ours.10.create.peak_mb: 130",
        "fleet.ours.10.create.resident_mb: 121",
    ]
    assert lines[-1].startswith("# ") and "2.00 create jobs" in lines[-1]


def test_a_process_is_measured_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rest, "SECONDS", 0.3)
    program = (
        "import time; b = bytearray(80_000_000); [i * i for i in range(3_000_000)]; del b; time.sleep(60)"
    )
    process = MeasuredProcess([sys.executable, "-c", program], tmp_path / "log")
    process.start()
    try:
        rest, deadline = Rest(process), time.monotonic() + 60
        while rest.since() is None or not process.peak_mb() > 80 > process.resident_mb():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.cpu_seconds() > 0.05 and process.resident_mb() > 1
        process.forget_peak()
        assert process.peak_mb() < 80
    finally:
        process.stop()
    with pytest.raises(FleetError, match="ended with code -15"):
        process.cpu_seconds()
