"""``modelrollout analyze``: over a recording, over what a Prometheus answers, and over the present
moment.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from typer.testing import Result

from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY
from tests.unit.cli.cli_fakes import NOW, FakeKube, ago, canary_status, deployment

Cli = Callable[..., Result]
START = NOW.timestamp() - 3600
SERVICE = {
    "canary": "default-digits-8d1b-http-8000@kubernetesgateway",
    "stable": "default-digits-6c9f-http-8000@kubernetesgateway",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``digits`` with two steps and errors and latency as metrics."""
    mdep = deployment()
    mdep["spec"]["rollout"] = {
        "canary": {"steps": [{"weight": 25}, {"weight": 50}]},
        "analysis": {"metrics": [{"name": "errors", "maxIncrease": 0.01}]},
    }
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump_all([{"kind": "Namespace"}, mdep]))
    return path


def counters(t: float, share: float) -> tuple[int, int]:
    """(total, bad) of twenty requests a second."""
    total = round(20 * (t - START)) + 1000
    return total, round(total * share)


class Prometheus:
    """Answers in Prometheus's own format, from counters whose bad shares a test sets."""

    def __init__(self) -> None:
        self.shares = {"canary": 0.01, "stable": 0.01}
        self.status = 200
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def _series(self, query: str, t: float) -> Iterator[tuple[dict[str, str], float]]:
        if "traefik_service_requests_total" not in query:
            return
        for side, share in self.shares.items():
            total, bad = counters(t, share)
            labels = {"service": SERVICE[side], "instance": "10.0.0.1:9100"}
            yield {**labels, "code": "200", "reading": "count"}, total - bad
            yield {**labels, "code": "500", "reading": "count"}, bad
            yield {**labels, "reading": "scraped"}, t - 1

    async def instant(self, request: web.Request) -> web.Response:
        self.asked.append(("query", dict(request.query)))
        rows = [
            {"metric": m, "value": [NOW.timestamp(), str(v)]}
            for m, v in self._series(request.query["query"], NOW.timestamp())
        ]
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": rows}})

    async def range(self, request: web.Request) -> web.Response:
        self.asked.append(("query_range", dict(request.query)))
        if self.status != 200:
            return web.json_response(
                {"status": "error", "errorType": "bad_data", "error": "parse error"}, status=self.status
            )
        start, end, step = (
            float(request.query["start"]),
            float(request.query["end"]),
            float(request.query["step"].rstrip("s")),
        )
        rows: dict[str, dict[str, Any]] = {}
        t = start
        while t <= end:
            for metric, value in self._series(request.query["query"], t):
                rows.setdefault(json.dumps(metric), {"metric": metric, "values": []})["values"].append(
                    [t, str(value)]
                )
            t += step
        return web.json_response(
            {"status": "success", "data": {"resultType": "matrix", "result": list(rows.values())}}
        )


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    """Listens in a thread of its own: the command has the main one."""
    fake, loop = Prometheus(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_get("/api/v1/query", fake.instant)
    app.router.add_get("/api/v1/query_range", fake.range)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


@pytest.fixture
def over(cli: Cli, model: Path, prometheus: Prometheus) -> Cli:
    """The command over the last hour of that Prometheus."""

    def run(*args: str) -> Result:
        sides = ("--canary", "digits-8d1b:3", "--stable", "digits-6c9f:2")
        return cli(
            "analyze", "-f", str(model), "--prometheus", prometheus.url, "--start", "1h", *sides, *args
        )

    return run


def outcome(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_history_is_judged_step_by_step(over: Cli, prometheus: Prometheus) -> None:
    result = outcome(over("-o", "json"))
    assert result["outcome"] == "Promoted"
    passed = [e for e in result["timeline"] if e["what"] == "StepPassed"]
    assert [e["weight"] for e in passed] == [25, 50]
    assert len(passed[0]["metrics"][0]["interval"]) == 2
    assert passed[0]["metrics"][0]["canary"].keys() == {"total", "bad"}
    points = [
        (float(q["end"]) - float(q["start"])) / 5 + 1
        for kind, q in prometheus.asked
        if kind == "query_range" and q["step"] == "5s"
    ]
    assert sum(points) == 721 and max(points) <= 300, "an hour of looks, in parts"
    assert [q["step"] for kind, q in prometheus.asked if kind == "query_range"].count("60s") == 1, (
        "and what was usual before it"
    )


def test_the_default_is_what_can_be_counted_and_what_cannot_is_said(
    over: Cli, model: Path, prometheus: Prometheus
) -> None:
    *_, digits = yaml.safe_load_all(model.read_text())
    del digits["spec"]["rollout"]["analysis"]
    model.write_text(yaml.safe_dump(digits))
    behind_gateway = outcome(over("-o", "json", "--set", "clientErrors.maxIncrease=0.1"))
    assert behind_gateway["outcome"] == "Promoted" and behind_gateway["notes"] == []
    judged = {m["name"]: m.get("dryRun", False) for m in behind_gateway["timeline"][1]["metrics"]}
    assert judged == {"errors": False, "clientErrors": False, "refusedRequests": True}
    ranges = [q["query"] for kind, q in prometheus.asked if kind == "query_range"]
    assert len(set(ranges)) == 2, "the default metrics share a query; that of the hour before has stable only"
    assert len(ranges) == len({(q["query"], q["start"]) for kind, q in prometheus.asked if "start" in q})
    del digits["spec"]["traffic"]
    model.write_text(yaml.safe_dump(digits))
    without = outcome(over("-o", "json"))
    assert {m["name"] for e in without["timeline"] for m in e["metrics"]} == {"errors"}
    assert any("client errors are not judged" in n and "spec.traffic.gateway" in n for n in without["notes"])


def test_a_regression_in_history_is_found(over: Cli, prometheus: Prometheus) -> None:
    prometheus.shares["canary"] = 0.2
    result = over()
    assert result.exit_code == 0, "that a regression is found is an answer"
    assert "RolledBack: " in result.stdout and "ErrorsHigh" in result.stdout
    line = next(x for x in result.stdout.splitlines() if "ErrorsHigh" in x and "1/2" in x)
    assert "25 %" in line and "points" in line


def test_other_thresholds_and_steps_can_be_tried(over: Cli, prometheus: Prometheus) -> None:
    prometheus.shares["canary"] = 0.03
    assert outcome(over("-o", "json"))["outcome"] == "RolledBack"
    loose = outcome(over("-o", "json", "--set", "errors.maxIncrease=0.5", "--steps", "10,20,30"))
    assert loose["outcome"] == "Promoted"
    assert [e["weight"] for e in loose["timeline"] if e["what"] == "StepPassed"] == [10, 20, 30]
    late = outcome(over("-o", "json", "--set", "errors.maxIncrease=0.5", "--set", "analysis.initialDelay=5m"))
    assert late["timeline"][1]["seconds"] > 300


def test_what_was_recorded_gives_the_same_again_without_prometheus(
    over: Cli, cli: Cli, model: Path, tmp_path: Path, prometheus: Prometheus
) -> None:
    file = tmp_path / "looks.jsonl"
    first = outcome(over("-o", "json", "--record", str(file)))
    asked = len(prometheus.asked)
    again = outcome(cli("analyze", "-f", str(model), "--replay", str(file), "-o", "json"))
    assert again == first and len(prometheus.asked) == asked
    header = json.loads(file.read_text().splitlines()[0])
    assert (header["canary"], header["stable"]) == ("digits-8d1b", "digits-6c9f")


def test_now_is_one_look_on_top_of_status(cli: Cli, kube: FakeKube, prometheus: Prometheus) -> None:
    status = canary_status()
    last = {"10.0.0.1:9100/http": [1000.0, 10.0, START]}
    status["rollout"]["step"]["metrics"] = [
        {
            "name": "errors",
            "verdict": "Inconclusive",
            "reason": "NoData",
            **{s: {"total": 0, "bad": 0, "last": last} for s in ("canary", "stable")},
        }
    ]
    mdep = deployment(**status)
    mdep["spec"]["rollout"]["analysis"] = {"metrics": [{"name": "errors", "maxIncrease": 0.01}]}
    kube.add(MODEL_DEPLOYMENT, mdep)
    result = outcome(cli("analyze", "digits", "--prometheus", prometheus.url, "-o", "json"))
    assert result["metrics"][0]["canary"] == {"total": 72_000, "bad": 720}
    assert result["verdict"] == "Successful"
    assert "Successful" in cli("analyze", "digits", "--prometheus", prometheus.url).stdout
    assert kube.patches == []


def test_a_rollout_in_the_cluster_knows_its_revisions(
    cli: Cli, kube: FakeKube, prometheus: Prometheus
) -> None:
    mdep = deployment(**canary_status())
    mdep["spec"]["rollout"]["analysis"] = {"metrics": [{"name": "errors", "maxIncrease": 0.01}]}
    kube.add(MODEL_DEPLOYMENT, mdep)
    assert (
        outcome(cli("analyze", "digits", "--prometheus", prometheus.url, "--start", "1h", "-o", "json"))[
            "outcome"
        ]
        == "Promoted"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--prometheus URL"),
        (("--prometheus", "http://x", "--replay", "FILE"), "not both"),
        (("--replay", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--replay", "MODEL"), "line 1"),
        (("--prometheus", "http://me:hunter2@x", "--start", "1h"), "--token-file"),
        (("--prometheus", "http://x"), "--start"),
        (("--prometheus", "http://x", "--start", "1h", "--header-file", "X-Team"), "NAME=FILE"),
        (("--prometheus", "http://x", "--start", "1h", "--header-file", "Host=f"), "host is written by"),
        (("--prometheus", "http://x", "--start", "1h", "--ca-file", "f"), "no https://"),
        (("--prometheus", "http://x", "--start", "1h"), "--canary"),
        (("--prometheus", "http://x", "--start", "1h", "--canary", "digits"), "digits-8d1b:3"),
        (("--prometheus", "http://x", "--start", "1h", "--canary", "a:1"), "--stable"),
        (
            ("--prometheus", "http://x", "--start", "soon", "--canary", "a:1", "--stable", "none"),
            "--start soon",
        ),
        (("--prometheus", "http://x", "--start", "400d", "--canary", "a:1", "--stable", "none"), "--start"),
        (("--prometheus", "http://x", "--start", "4000h", "--canary", "a:1", "--stable", "none"), "looks"),
        (("--replay", "FILE", "--set", "errors.oops=1"), "oops"),
        (("--replay", "FILE", "--set", "errors"), "METRIC.FIELD=VALUE"),
        (("--replay", "FILE", "--steps", "a,b"), "5,25,50"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    cli: Cli, model: Path, tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text('{"recording": 1, "namespace": "a", "name": "b", "canary": "c", "stable": "d"}\n')
    words = [str(file) if a == "FILE" else str(model) if a == "MODEL" else a for a in args]
    result = cli("analyze", "-f", str(model), *words)
    assert result.exit_code == 1 and said in result.stderr, result.output
    assert "hunter2" not in result.output


POLICY: dict[str, Any] = {
    "apiVersion": "modelrollout.dev/v1alpha1",
    "kind": "RolloutPolicy",
    "metadata": {"name": "house"},
    "spec": {
        "selector": {"namespaces": ["default"]},
        "analysisTemplates": [{"name": "house", "metrics": [{"name": "errors", "maxIncrease": 0.01}]}],
    },
}
ELSEWHERE = {"selector": {"namespaces": ["x"]}, "gates": {"metrics": [{"name": "a", "min": 9, "query": "q"}]}}
OTHER: dict[str, Any] = {**POLICY, "metadata": {"name": "elsewhere"}, "spec": ELSEWHERE}


def test_policies_in_the_file_hold_where_they_match(
    cli: Cli, over: Cli, model: Path, prometheus: Prometheus
) -> None:
    _, actual = yaml.safe_load_all(model.read_text())
    actual["spec"]["rollout"]["analysis"] = {"templates": ["house"]}
    model.write_text(yaml.safe_dump(actual))
    refused = over()
    assert refused.exit_code == 1 and "templates" in refused.stderr and "with -f" in refused.stderr
    model.write_text(yaml.safe_dump_all([OTHER, POLICY, actual]))
    assert outcome(over("-o", "json"))["outcome"] == "Promoted"
    prometheus.shares["canary"] = 0.2
    assert outcome(over("-o", "json"))["outcome"] == "RolledBack"
    assert outcome(over("-o", "json", "--set", "errors.maxIncrease=0.5"))["outcome"] == "Promoted"
    demanded = {"gates": {"metrics": [{"name": "errors", "maxIncrease": 0.01}]}}
    actual["spec"]["rollout"]["analysis"] = {"metrics": [{"name": "errors", "maxIncrease": 0.5}]}
    model.write_text(yaml.safe_dump_all([actual, {**POLICY, "spec": demanded}]))
    assert outcome(over("-o", "json"))["outcome"] == "RolledBack", "the spec cannot weaken it"
    broken = {**POLICY, "spec": {"freezeWindows": [{"schedule": "often", "duration": "1h"}]}}
    model.write_text(yaml.safe_dump_all([actual, broken]))
    result = over()
    assert result.exit_code == 1 and "RolloutPolicy house" in result.stderr and "schedule" in result.stderr


@pytest.mark.heavy
def test_own_queries_are_asked_as_the_operator_would_and_it_is_said_that_it_may_not(
    over: Cli, model: Path, prometheus: Prometheus
) -> None:
    _, actual = yaml.safe_load_all(model.read_text())
    actual["spec"]["rollout"]["analysis"]["metrics"].append({"name": "memory", "query": "max(x)", "max": 1})
    model.write_text(yaml.safe_dump(actual))
    assert "memory" in outcome(over("-o", "json"))["notes"][0] and "queries: Own" in over().stdout
    assert 'max(x{namespace="default"})' in {query["query"] for _, query in prometheus.asked}
    model.write_text(yaml.safe_dump_all([{**POLICY, "spec": {"gates": {"queries": "Own"}}}, actual]))
    assert outcome(over("-o", "json"))["notes"] == []
    prometheus.asked.clear()
    model.write_text(yaml.safe_dump_all([{**POLICY, "spec": {"gates": {"queries": "Templates"}}}, actual]))
    assert "PromQL of a spec's own is not allowed here" in outcome(over("-o", "json"))["message"]
    assert not any("max(x" in query["query"] for _, query in prometheus.asked)


def test_policies_of_the_cluster_are_asked_for_where_one_may(
    cli: Cli, kube: FakeKube, prometheus: Prometheus
) -> None:
    mdep = deployment(**canary_status())
    mdep["spec"]["rollout"]["analysis"] = {"templates": ["house"]}
    kube.add(MODEL_DEPLOYMENT, mdep)
    asked = ("analyze", "digits", "--prometheus", prometheus.url, "--start", "1h", "-o", "json")
    kube.cluster_wide(ROLLOUT_POLICY, POLICY)
    assert outcome(cli(*asked))["outcome"] == "Promoted"
    kube.errors["list", "rolloutpolicies"] = Forbidden(403, "Forbidden", "no")
    refused = cli(*asked)
    assert refused.exit_code == 1 and "ClusterRoleBinding" in refused.stderr
    mdep["spec"]["rollout"]["analysis"] = {"metrics": [{"name": "errors", "maxIncrease": 0.01}]}
    assert outcome(cli(*asked))["outcome"] == "Promoted"
    assert "policies are not known" in cli(*asked[:-2]).stdout


def test_neither_a_name_nor_a_file_is_said(cli: Cli) -> None:
    assert "-f" in cli("analyze", "--prometheus", "http://x").stderr


def test_a_file_without_a_deployment_is_refused(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("kind: Service\n")
    assert "ModelDeployment" in cli("analyze", "-f", str(path), "--prometheus", "http://x").stderr


def test_a_prometheus_that_cannot_be_asked_is_no_verdict(over: Cli, prometheus: Prometheus) -> None:
    prometheus.status = 400
    result = over()
    assert result.exit_code == 2 and "rejects the query" in result.stderr and "parse error" in result.stderr


def test_no_canary_is_nothing_to_judge(cli: Cli, kube: FakeKube, prometheus: Prometheus) -> None:
    kube.add(
        MODEL_DEPLOYMENT,
        deployment(phase="Stable", stable={"revision": "digits-6c9f", "number": 2, "since": ago(days=1)}),
    )
    result = cli("analyze", "digits", "--prometheus", prometheus.url)
    assert result.exit_code == 1 and "no canary step" in result.stderr
