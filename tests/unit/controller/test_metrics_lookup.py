"""The operator's look at a canary step: who is asked what, for how long, and what becomes of
trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.analysis.counters import Raw
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import Doubt
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.provider import PrometheusProvider
from modelrollout.analysis.providers.prometheus.scrape_rights import Scrape, ScrapeTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.analysis.target import NOT_BY_GATEWAY, Counting
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import (
    Counter,
    Metric,
    MetricStatus,
    ShadowStatus,
    StepEvidence,
    Traffic,
    Triton,
)
from modelrollout.config import OperatorConfig, PrometheusConfig, ProviderConfig
from modelrollout.controller.lookups import metrics as assess
from modelrollout.controller.lookups.metrics import MetricsAssessor
from modelrollout.problem import Problem
from modelrollout.rollout import assessment
from modelrollout.rollout.decide import decide
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Assessment, Crash, Server, Snapshot, rollout_of
from modelrollout.rollout.transitions import record
from modelrollout.testing import builders as b
from modelrollout.testing.provider_check import check_provider

V1, V2 = b.revision_name(1), b.revision_name(2)
BEGAN = b.START.timestamp()


class Prometheus(PrometheusReader):
    """Answers with counters by side that a test sets; ``said`` overrides everything."""

    def __init__(self, provider: PrometheusConfig) -> None:
        super().__init__(provider)
        self.asked: list[str] = []
        self.own: list[str] = []
        self.said: MeasurementProblem | None = None
        self.hangs = False
        self.scraped = 0.0  # seconds after BEGAN
        self.requests = {V1: (0, 0), V2: (0, 0)}  # total, bad
        self.servers: dict[str, tuple[int, int]] = {}  # as Triton counts
        self.bad = "500"  # status code
        self.labels: dict[tuple[int, str], tuple[int, int]] = {}  # by version and slice
        self.value = 1.0
        self.closed = False
        self.scraped_now: Scrape | MeasurementProblem = Scrape((), frozenset())

    @property
    def decisive(self) -> list[str]:
        """What was asked but for what the servers counted beside a gateway."""
        return [q for q in self.asked if "nv_inference_request" not in q]

    async def scrape(self) -> Scrape | MeasurementProblem:
        return self.scraped_now

    async def query(self, queries: Sequence[str]) -> list[Answer | MeasurementProblem]:
        self.asked += queries
        if self.hangs:
            await asyncio.sleep(3600)
        return [self.said or self._answer(q) for q in queries]

    async def query_own(
        self, namespace: str, queries: Mapping[str, str]
    ) -> dict[str, Answer | MeasurementProblem]:
        self.own += queries.values()
        return {key: self._answer(q) for key, q in queries.items()}

    async def history(self, query: str, times: Sequence[int]) -> dict[int, Answer] | MeasurementProblem:
        return {}

    async def close(self) -> None:
        self.closed = True
        await super().close()

    def _answer(self, query: str) -> Answer:
        if "modelrollout_feedback_total" in query:
            return Answer(tuple(self._feedback()))
        if "nv_inference_first_response" in query:
            lacking = "unless on (revision, instance) nv" in query
            return Answer((Series({"revision": V2}, 1, 0),) if lacking else ())
        if "nv_inference_request_success" in query and self.servers:
            return Answer(tuple(self._servers()))
        if "traefik" not in query:
            return Answer((Series({}, self.value, 0),))
        actual = []
        for revision, (total, bad) in self.requests.items():
            service = {"service": f"ml-{revision}-http-8000@kubernetesgateway", "instance": "g"}
            actual += [
                Series({**service, "code": c, "reading": "count"}, n, 0)
                for c, n in (("200", total - bad), (self.bad, bad))
            ]
            actual.append(Series({**service, "reading": "scraped"}, BEGAN + self.scraped, 0))
        return Answer(tuple(actual))

    def _servers(self) -> list[Series]:
        actual = []
        for revision, (total, bad) in self.servers.items():
            labels = {"revision": revision, "instance": f"{revision}-pod"}
            actual += [
                Series({**labels, "reading": r}, n, 0) for r, n in (("good", total - bad), ("bad", bad))
            ]
            actual.append(Series({**labels, "reading": "scraped"}, BEGAN + self.scraped, 0))
        return actual

    def _feedback(self) -> list[Series]:
        actual = [
            Series({"version": v, "instance": "f", "reading": "scraped"}, BEGAN + self.scraped, 0)
            for v in ("1", "2")
        ]
        for (version, part), (total, bad) in self.labels.items():
            labels = {"version": str(version), "slice": part, "instance": "f", "reading": "count"}
            actual += [
                Series({**labels, "result": r}, n, 0) for r, n in (("right", total - bad), ("wrong", bad))
            ]
        return actual


class Bench:
    """An assessor with fake providers, and a clock."""

    def __init__(self, **config: Any) -> None:
        fields = {
            "stores": [{"name": "s", "uri": "s3://models/"}],
            "artifacts": {"name": "a", "uri": "s3://artifacts/"},
            "images": {"optimizer": "o", "triton": "t"},
            "prometheus": [{"name": "main", "url": "http://main"}, {"name": "edge", "url": "http://edge"}],
        } | config
        self.now = b.START
        self.providers: dict[str, Prometheus] = {}
        self.assessor = MetricsAssessor(
            OperatorConfig.model_validate(fields), lambda: self.now, self._connect
        )
        for name in ("main", "edge"):
            self.providers[name] = Prometheus(PrometheusConfig(name=name, url=f"http://{name}"))

    def _connect(self, provider: ProviderConfig, config: OperatorConfig) -> PrometheusProvider:
        return PrometheusProvider(self.providers[provider.name], config)

    @property
    def main(self) -> Prometheus:
        return self.providers["main"]

    async def look(self, s: Snapshot) -> Assessment:
        assessment = await self.assessor.assess(s)
        assert assessment is not None
        return assessment


def canary(
    analysis: dict[str, Any] | None = None, *, metrics: tuple[MetricStatus, ...] = (), **facts: Any
) -> Snapshot:
    step = facts.pop("at_step", b.step(0, 5, metrics=list(metrics)))
    return b.in_canary(
        wanted=b.spec(2, steps=b.STEPS, rollout={"analysis": analysis or {}}), at_step=step, **facts
    )


def ruled(**spec: Any) -> dict[str, Any]:
    """What a policy says, as facts of a snapshot."""
    rules = combine([read({"metadata": {"name": "p"}, "spec": spec})])
    return {"rules": rules, "templates": rules.templates, "mandatory": rules.mandatory}


def names(actual: Assessment) -> list[str]:
    return [m.name for m in actual.metrics]


def after_an_hour(metrics: Sequence[MetricStatus]) -> tuple[MetricStatus, ...]:
    """As if stable had been seen for an hour, with independent failures."""
    spread = {"spread": [10_000, 10, 59, 0.06, 600_000, 600]}
    return tuple(
        m.model_copy(update={"stable": m.stable and m.stable.model_copy(update=spread)}) for m in metrics
    )


async def test_the_first_look_is_a_baseline_and_the_next_counts_and_judges() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {V1: (10_000, 10), V2: (500, 400)}, 1.0
    first = await bench.look(canary())
    assert (first.verdict, first.reason) == ("Inconclusive", "NoData"), (
        "what came before this weight is no verdict on it"
    )
    bench.main.requests, bench.main.scraped = {V1: (20_000, 20), V2: (1000, 400)}, 2.0
    second = await bench.look(canary(metrics=first.metrics))
    counted = second.metrics[0].canary
    assert counted and (counted.total, counted.bad, counted.last, counted.scraped) == (
        500,
        0,
        {"g/http": [1000, 400, BEGAN + 2]},
        BEGAN + 2,
    )
    bench.main.requests, bench.main.scraped = {V1: (30_000, 30), V2: (1500, 700)}, 3.0
    unknown = await bench.look(canary(metrics=second.metrics))
    assert unknown.reason == "NotYetProven" and "of the 30 minutes" in unknown.message
    assert (await bench.look(canary(metrics=after_an_hour(second.metrics)))).reason == "ErrorsHigh"


async def test_a_step_waits_for_a_scrape_that_is_later_than_its_beginning() -> None:
    """Behind a provider that lags, its first counters are of the weight before."""
    bench = Bench()
    bench.now = b.at(40)  # the step began to count 40 s ago
    s = canary(at_step=b.step(0, 5, observed_since=b.ago(0)))
    bench.main.requests, bench.main.scraped = {V1: (10_000, 10), V2: (500, 400)}, -55.0
    late = await bench.look(s)
    assert (late.verdict, late.reason) == ("Inconclusive", "StaleData")
    assert "Prometheus main" in late.message and "scraped 95 s ago" in late.message
    assert "began 40 s ago" in late.message and "progressDeadline" in late.message
    assert all(m.canary is None for m in late.metrics), "no baseline"
    bench.main.scraped = 2.0
    fresh = await bench.look(canary(at_step=b.step(0, 5, observed_since=b.ago(0), metrics=late.metrics)))
    assert fresh.reason == "NoData" and fresh.metrics[0].canary is not None


async def test_what_is_counted_is_said_to_be_old_where_the_provider_lags() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {V1: (10_000, 10), V2: (500, 0)}, 1.0
    first = await bench.look(canary())
    bench.main.requests, bench.main.scraped = {V1: (10_100, 10), V2: (510, 0)}, 60.0
    for seconds, said in ((120, None), (151, "counted until 90 s ago"), (267, "counted until 210 s ago")):
        bench.now = b.at(seconds)
        message = (await bench.look(canary(metrics=first.metrics))).metrics[0].message
        assert (said or "counted until") in message if said else "counted until" not in message


async def test_a_canary_that_refuses_every_request_as_wrong_is_taken_back() -> None:
    """By 400 it once was promoted: no answer was a 5xx."""
    bench = Bench()
    bench.main.bad = "400"
    first = await bench.look(canary())
    bench.main.requests, bench.main.scraped = {V1: (380, 4), V2: (20, 20)}, 1.0
    s = canary(metrics=first.metrics)
    judged = await bench.look(s)
    assert (judged.verdict, judged.reason) == ("Failed", "ClientErrorsHigh")
    assert "20 of 20 (100.00 %) client errors on the canary" in judged.message
    of_errors = next(m for m in judged.metrics if m.name == "errors")
    assert of_errors.canary is not None and of_errors.canary.bad == 0, "an answer counts in one metric"
    to = b.moved(decide(replace(s, assessment=judged), b.START))
    assert (to.stage, to.outcome, to.reason) == ("Revert", "RolledBack", "ClientErrorsHigh")


@pytest.mark.parametrize("code", ["401", "429", "499"])
async def test_what_callers_and_gateways_decide_is_shown_and_decides_nothing(code: str) -> None:
    bench = Bench()
    bench.main.bad = code
    first = await bench.look(canary())
    bench.main.requests, bench.main.scraped = {V1: (95_000, 0), V2: (5000, 5000)}, 1.0
    judged = await bench.look(canary(metrics=first.metrics))
    assert judged.verdict == "Successful", judged.message
    shown = next(m for m in judged.metrics if m.name == "refusedRequests")
    assert shown.dry_run and shown.canary is not None and shown.canary.bad == 5000


async def test_without_a_gateway_client_errors_are_no_default_and_naming_them_says_the_remedy() -> None:
    bench = Bench()
    judged = await bench.look(replace(canary(), counting=NOT_BY_GATEWAY))
    assert names(judged) == ["errors"]
    asked = {"metrics": [{"name": "clientErrors", "maxIncrease": 0.01}]}
    judged = await bench.look(replace(canary(asked), counting=NOT_BY_GATEWAY))
    assert (judged.verdict, judged.reason) == ("Error", "NoSource")
    assert "spec.traffic.gateway" in judged.message


async def test_counts_of_two_sources_are_never_added_up_when_the_class_changes_in_a_step() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {V1: (9_500, 9), V2: (500, 0)}, 1.0
    first = await bench.look(canary())
    assert {m.source for m in first.metrics} == {"traefik"}
    bench.main.requests, bench.main.scraped = {V1: (19_000, 18), V2: (1000, 0)}, 2.0
    second = await bench.look(canary(metrics=first.metrics))
    errors = second.metrics[0]
    assert errors.canary is not None and errors.canary.total == 500
    to_triton = replace(canary(metrics=second.metrics), counting=NOT_BY_GATEWAY)
    third = await bench.look(to_triton)
    [errors] = third.metrics
    assert (errors.source, errors.canary, errors.stable) == ("triton", None, None)
    bench.main.requests, bench.main.scraped = {V1: (28_500, 27), V2: (1500, 0)}, 3.0
    back = (await bench.look(canary(metrics=third.metrics))).metrics[0]
    assert back.source == "traefik" and back.canary is not None and back.canary.total == 0, "a new baseline"


SLOW = {"metrics": [{"name": "latency", "objective": "50ms", "maxIncrease": 0.01, "of": "FirstResponse"}]}


async def test_the_first_response_is_asked_of_who_scrapes_the_servers_and_not_the_gateway() -> None:
    bench = Bench(gatewayMetrics={"provider": "edge"})
    await bench.look(canary({"metrics": [*SLOW["metrics"], {"name": "errors", "max": 0.1}]}))
    assert any("nv_inference_first_response" in q for q in bench.main.asked)
    assert not any("traefik" in q for q in bench.main.asked)
    assert all("traefik" in q for q in bench.providers["edge"].asked) and bench.providers["edge"].asked


async def test_who_may_write_the_servers_counters_is_asked_where_they_count_latency() -> None:
    bench = Bench()
    bench.assessor.doubts = {"pods": Doubt("Unverified", "anyone in the namespace")}
    doubted = await bench.look(canary(SLOW))
    assert doubted.doubt == Problem("Unverified", "anyone in the namespace")
    assert (await bench.look(canary({"metrics": [{"name": "errors", "max": 0.1}]}))).doubt is None


async def test_the_first_response_needs_no_gateway_that_is_known() -> None:
    unread = Counting(unknown=Problem("GatewayUnknown", "no rights"))
    judged = await Bench().look(replace(canary(SLOW), counting=unread))
    assert judged.reason == "NoSource", "asked, and the servers have none"


async def test_of_a_model_that_streams_the_first_response_is_judged_by_default() -> None:
    whole = {"metrics": [{k: v for k, v in SLOW["metrics"][0].items() if k != "of"}]}

    def streams(decoupled: bool | None) -> Snapshot:
        made = b.artifact(2).model_copy(update={"decoupled": decoupled})
        s = canary(whole)
        assert s.status.rollout is not None
        changed = s.status.rollout.model_copy(update={"artifact": made})
        return replace(s, status=s.status.model_copy(update={"rollout": changed}))

    for decoupled, word in ((True, "nv_inference_first_response"), (None, "traefik"), (False, "traefik")):
        bench = Bench()
        await bench.look(streams(decoupled))
        assert bench.main.asked and all(word in q for q in bench.main.asked), decoupled
    bench, s = Bench(), canary(whole)
    assert s.spec is not None
    triton = Triton(backend="VLLM", code="Allowed")
    serving = s.spec.serving.model_copy(update={"triton": triton})
    await bench.look(replace(s, spec=s.spec.model_copy(update={"serving": serving})))
    assert all("nv_inference_first_response" in q for q in bench.main.asked), "vLLM always does"


async def test_servers_that_count_latency_say_nothing_about_weights() -> None:
    """Clients inside the cluster may go past the gateway, to stable alone."""
    assert (await held_by_weight(Bench(), lambda m: at_25(m))).reason == "WeightIgnored"
    canary_none = Counter(total=0, scraped=160.0, began=100.0)
    stable_all = Counter(total=600, scraped=160.0, began=100.0)
    reading = CounterReading(Raw(), Raw())
    kept = MetricStatus(
        name="latency",
        verdict="Inconclusive",
        reason="NoData",
        canary=canary_none,
        stable=stable_all,
        source="triton",
    )
    s = at_25((kept,))
    metric = Metric.model_validate(SLOW["metrics"][0])
    verdict = assessment.assess(s, [metric], {"latency": reading}, b.START, profile="traefik")
    assert verdict.reason != "WeightIgnored" and verdict.metrics[0].source == "triton"
    by_gateway = [metric.model_copy(update={"of": "WholeAnswer"})]
    kept = kept.model_copy(update={"source": "traefik"})
    verdict = assessment.assess(at_25((kept,)), by_gateway, {"latency": reading}, b.START, profile="traefik")
    assert verdict.reason == "WeightIgnored"


async def test_in_a_bake_the_former_counts_of_another_source_are_no_reference() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {V2: (500, 0)}, 1.0
    spec = b.spec(2, steps=b.STEPS, rollout={"bake": "1m"})

    def state(source: str | None, metrics: Sequence[MetricStatus] = ()) -> Snapshot:
        reference = MetricStatus(
            name="errors",
            verdict="Inconclusive",
            reason="NoData",
            stable=Counter(total=9000, bad=9),
            source=source,
        )
        step = b.step(3, 100).model_copy(update={"metrics": list(metrics) or [reference], "since": b.ago(30)})
        return b.second("Bake", wanted=spec, changes={"step": step})

    for source, expected in (("traefik", 9000), (None, 9000), ("istio", None)):
        [errors, *_] = (await bench.look(state(source))).metrics
        assert (errors.stable and errors.stable.total) == expected, source


async def test_while_it_is_unknown_who_counts_nothing_is_counted() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {V1: (9_500, 9), V2: (500, 0)}, 1.0
    first = await bench.look(canary())
    bench.main.asked.clear()
    unread = Counting(unknown=Problem("GatewayUnknown", "no rights"))
    held = await bench.look(replace(canary(metrics=first.metrics), counting=unread))
    assert (held.verdict, held.reason, held.metrics) == ("Error", "GatewayUnknown", first.metrics)
    assert bench.main.asked == []
    own = {"metrics": [{"name": "load", "query": "x", "max": 2.0}]}
    rules = ruled(gates={"queries": "Own"})
    judged = await bench.look(replace(canary(own, **rules), counting=unread))
    assert judged.reason == "WithinLimits", "what needs no gateway goes on"


@pytest.mark.parametrize("stage", ["Canary", "Bake"])
async def test_a_step_that_an_earlier_operator_began_with_errors_alone_goes_on(stage: str) -> None:
    """Its status knows errors only. The further metrics get their baseline, and then count."""
    bench = Bench()
    rollout = {"bake": "1m"} if stage == "Bake" else {}
    spec = b.spec(2, steps=b.STEPS, rollout=rollout)

    def state(metrics: Sequence[MetricStatus]) -> Snapshot:
        step = b.step(3, 100) if stage == "Bake" else b.step(0, 5)
        step = step.model_copy(update={"metrics": list(metrics), "since": b.ago(30)})
        return b.second(stage, wanted=spec, changes={"step": step})

    bench.main.requests, bench.main.scraped = {V1: (9_500, 9), V2: (500, 0)}, 1.0
    [errors, *_] = (await bench.look(state(()))).metrics
    bench.main.requests, bench.main.scraped = {V1: (19_000, 18), V2: (1000, 0)}, 2.0
    s = state([errors])
    upgraded = await bench.look(s)
    totals = {m.name: m.canary.total for m in upgraded.metrics if m.canary is not None}
    assert totals == {"errors": 500, "clientErrors": 0, "refusedRequests": 0}
    assert upgraded.verdict == "Inconclusive"
    to = b.moved(decide(replace(s, assessment=upgraded), b.START))
    assert to.step is not None and len(to.step.metrics) == 3, "a baseline is written"
    bench.main.requests, bench.main.scraped = {V1: (28_500, 27), V2: (1500, 0)}, 3.0
    s, now = state(upgraded.metrics), b.at(60)
    to = b.moved(decide(replace(s, assessment=await bench.look(s)), now))
    if stage == "Bake":
        assert (to.stage, to.outcome) == ("Done", "Promoted")
    else:
        assert to.step is not None and to.step.weight == 25


HTTP_ONLY = {"gateway": {"name": "public", "namespace": "gateways"}, "http": {"hostnames": ["digits.x"]}}


async def held_by_weight(bench: Bench, s: Callable[[Sequence[MetricStatus]], Snapshot]) -> Assessment:
    """The verdict after a minute in which nothing went to the canary at weight 25."""
    bench.main.requests, bench.main.scraped = {V1: (10_000, 10), V2: (0, 0)}, 100.0
    first = await bench.look(s(()))
    bench.main.requests, bench.main.scraped = {V1: (10_600, 11), V2: (0, 0)}, 160.0
    return await bench.look(s(first.metrics))


def at_25(metrics: Sequence[MetricStatus], *, traffic: Any = None, **server: Any) -> Snapshot:
    wanted = b.spec(2, steps=b.STEPS)
    traffic = HTTP_ONLY | (traffic or {})
    wanted = wanted.model_copy(update={"traffic": Traffic.model_validate(traffic)})
    s = b.in_canary(wanted=wanted, at_step=b.step(1, 25, metrics=list(metrics)))
    return replace(s, servers={name: replace(x, **server) for name, x in s.servers.items()})


async def test_a_gateway_that_ignores_the_weight_holds_the_step_and_rolls_nothing_back() -> None:
    held = await held_by_weight(Bench(), at_25)
    assert (held.verdict, held.reason) == ("Error", "WeightIgnored") and "0 of 600" in held.message
    s = replace(at_25(held.metrics), assessment=held)
    to = b.moved(decide(s, b.START))
    assert (to.stage, to.step and to.step.weight, to.outcome) == ("Canary", 25, None)


@pytest.mark.parametrize(
    "facts",
    [
        {"traffic": {"grpc": {"hostnames": ["grpc.x"]}}},
        {"traffic": {"sessionAffinity": {"header": "x-session"}}},
        {"newest_ready": b.ago(1)},
        {"crashes": (Crash(b.ago(1), "Crashed", "exit code 1"),)},
        {"ready": 0},
    ],
    ids=["connections may be split", "sessions are split", "a pod that came", "a pod that crashed", "no pod"],
)
async def test_a_share_that_pods_or_connections_explain_is_no_ground(facts: dict[str, Any]) -> None:
    found = await held_by_weight(Bench(), lambda metrics: at_25(metrics, **facts))
    assert found.reason != "WeightIgnored"


async def test_what_is_proven_worse_is_taken_back_although_the_weight_is_ignored() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {V1: (10_000, 10), V2: (0, 0)}, 100.0
    first = await bench.look(at_25(()))
    bench.main.requests, bench.main.scraped = {V1: (14_000, 14), V2: (60, 60)}, 160.0
    judged = await bench.look(at_25(after_an_hour(first.metrics)))
    assert judged.verdict == "Failed", judged.message


async def test_sessions_that_ask_for_much_are_counted() -> None:
    """A few of them may have most of the requests."""
    bench, sticks = Bench(), {"sessionAffinity": {"header": "x-session"}}
    bench.main.requests, bench.main.scraped = {V1: (10_000, 10), V2: (0, 0)}, 100.0
    first = await bench.look(at_25((), traffic=sticks))
    bench.main.requests, bench.main.scraped = {V1: (10_060, 10), V2: (600, 0)}, 160.0
    assert (await bench.look(at_25(first.metrics))).reason == "EvidenceImplausible"
    seen = await bench.look(at_25(first.metrics, traffic=sticks))
    assert seen.reason != "EvidenceImplausible"
    assert seen.metrics[0].canary is not None and seen.metrics[0].canary.total == 600


async def test_more_requests_than_the_weight_gives_are_no_ground_to_roll_back() -> None:
    bench = Bench()
    first = await bench.look(canary())
    bench.main.requests, bench.main.scraped = {V1: (13, 0), V2: (97, 87)}, 1.0
    reading = await bench.look(canary(metrics=first.metrics))
    assert (reading.verdict, reading.reason) == (
        "Error",
        "EvidenceImplausible",
    ) and "97 of 110 requests" in reading.message
    bench.main.requests, bench.main.scraped = {V1: (950, 1), V2: (50, 0)}, 2.0
    after = (await bench.look(canary(metrics=reading.metrics))).metrics[0].canary
    assert after and (after.total, after.bad) == (50, 0), "what another model had counted has left no trace"
    bench.main.requests, bench.main.scraped = {V1: (13, 0), V2: (97, 87)}, 3.0
    step = b.step(0, 0, strategy="ABTest", metrics=list(after_an_hour(first.metrics)))
    by_headers = await bench.look(canary(at_step=step))
    assert by_headers.reason == "ErrorsHigh", "a test by headers has no weight"


async def test_status_says_how_many_samples_are_missing_and_how_long_they_take() -> None:
    bench = Bench()
    first = await bench.look(canary())
    # twenty in twenty seconds
    bench.main.requests, bench.main.scraped, bench.now = {V1: (400, 0), V2: (20, 0)}, 1.0, b.at(15)
    errors = (await bench.look(canary(metrics=first.metrics))).metrics[0]
    assert (errors.reason, errors.needed, errors.needed_seconds, errors.next_weight) == (
        "TooFewSamples",
        30,
        30,
        None,
    )
    bench.main.requests, bench.main.scraped = {V1: (95000, 0), V2: (5000, 0)}, 2.0
    errors = (await bench.look(canary(metrics=first.metrics))).metrics[0]
    assert (errors.verdict, errors.next_weight) == ("Successful", 25), (
        "for no more than the weight that follows"
    )


async def test_what_is_asked_names_the_revisions_and_the_weight_of_this_step() -> None:
    bench = Bench()
    query = "x{r='{{revision}}',v='{{version}}',s='{{stable}}',w='{{weight}}'}[{{window}}]"
    memory = {"name": "memory", "query": query, "max": 5}
    await bench.look(
        canary({"templates": ["web"]}, **ruled(analysisTemplates=[{"name": "web", "metrics": [memory]}]))
    )
    assert bench.main.asked == [f"x{{r='{V2}',v='2',s='{V1}',w='5'}}[10s]"]


async def test_own_queries_are_asked_apart_where_they_are_allowed_and_are_an_error_where_not() -> None:
    """Also of a rollout that began before a policy forbade them: it holds, and says why."""
    analysis = {
        "metrics": [{"name": "errors", "maxIncrease": 0.1}, {"name": "memory", "query": "max(x)", "max": 5}]
    }
    bench = Bench()
    reading = await bench.look(canary(analysis))
    assert (reading.verdict, reading.reason) == (
        "Error",
        "QueryNotAllowed",
    ) and "use a template" in reading.message
    assert len(bench.main.decisive) == 1 and not bench.main.own, "the others are measured"
    allowed = await bench.look(canary(analysis, **ruled(gates={"queries": "Own"})))
    assert bench.main.own == ['max(x{namespace="ml"})'] and allowed.verdict == "Inconclusive"
    by_default = Bench(queries="Own")
    await by_default.look(canary(analysis))
    assert by_default.main.own
    forbidden = await by_default.look(canary(analysis, **ruled(gates={"queries": "Templates"})))
    assert forbidden.reason == "QueryNotAllowed" and len(by_default.main.own) == 1


async def test_the_spec_does_not_choose_who_answers_what_a_policy_demands() -> None:
    gates = {"metrics": [{"name": "accuracy", "maxDrop": 0.01}, {"name": "gpu", "query": "gpu", "max": 1}]}
    analysis = {
        "prometheus": "edge",
        "metrics": [{"name": "errors", "maxIncrease": 0.1}, {"name": "accuracy", "maxDrop": 0.005}],
    }
    bench = Bench()
    await bench.look(canary(analysis, **ruled(gates=gates)))
    assert sorted(q == "gpu" for q in bench.main.decisive) == [False, True] and not any(
        "traefik" in q for q in bench.main.asked
    )
    assert [("traefik" in q) for q in bench.providers["edge"].decisive] == [True]
    named = Bench()
    await named.look(
        canary(
            analysis | {"prometheus": "main"},
            **ruled(gates=gates, defaults={"analysis": {"prometheus": "edge"}}),
        )
    )
    assert len(named.providers["edge"].asked) == 2 and len(named.main.decisive) == 1


async def test_the_gateways_counters_come_from_the_prometheus_that_scrapes_it() -> None:
    analysis = {"metrics": [{"name": "errors", "maxIncrease": 0.1}, {"name": "accuracy", "maxDrop": 0.1}]}
    bench = Bench(gatewayMetrics={"provider": "edge"})
    await bench.look(canary(analysis))
    assert [("traefik" in q) for q in bench.providers["edge"].asked] == [True]
    assert [("feedback" in q) for q in bench.main.decisive] == [True]
    named = Bench(gatewayMetrics={"provider": "edge"})
    await named.look(canary(analysis | {"prometheus": "main"}))
    assert len(named.main.decisive) == 2 and not named.providers["edge"].asked


async def test_what_the_servers_counted_stands_beside_the_gateways_counts_and_decides_nothing() -> None:
    analysis = {"metrics": [{"name": "errors", "maxIncrease": 0.1}]}
    bench = Bench()
    bench.main.requests, bench.main.servers = {V1: (10_000, 10), V2: (0, 0)}, {V1: (9_000, 5), V2: (3, 3)}
    first = await bench.look(canary(analysis))
    bench.main.requests, bench.main.scraped = {V1: (19_500, 20), V2: (500, 1)}, 1.0
    bench.main.servers = {V1: (18_400, 9), V2: (493, 493)}
    [errors] = (await bench.look(canary(analysis, metrics=first.metrics))).metrics
    assert errors.verdict != "Failed" and errors.canary is not None and errors.canary.total == 500
    assert errors.source == "traefik" and errors.servers is not None
    assert [(c and c.total, c and c.bad) for c in (errors.servers.canary, errors.servers.stable)] == [
        (490, 490),
        (9400, 4),
    ]
    bench.main.servers = {}
    [later] = (await bench.look(canary(analysis, metrics=(errors,)))).metrics
    assert later.verdict == errors.verdict and later.servers == errors.servers, (
        "what cannot be read changes nothing"
    )
    to_triton = replace(canary(analysis, metrics=(errors,)), counting=NOT_BY_GATEWAY)
    [by_servers] = (await bench.look(to_triton)).metrics
    assert by_servers.servers is None, "they decide themselves"


async def test_of_a_step_that_has_ended_the_counts_of_the_servers_are_kept_without_raw_counters() -> None:
    bench = Bench()
    analysis = {"metrics": [{"name": "errors", "maxIncrease": 0.1}]}
    bench.main.servers = {V1: (9_000, 5), V2: (3, 3)}
    first = await bench.look(canary(analysis))
    s = canary(analysis, metrics=first.metrics)
    assert s.status.rollout is not None and s.status.rollout.step is not None
    [kept] = rollout_of(record(s.status, "Successful", "RegressionRuledOut", b.START)).history[-1].metrics
    assert kept.servers is not None and kept.servers.canary is not None
    assert (kept.servers.canary.last, kept.servers.canary.spread) == ({}, [])
    [raw] = s.status.rollout.step.metrics
    assert raw.servers is not None and raw.servers.canary is not None and raw.servers.canary.last


GATEWAY = {"provider": "edge", "selector": 'job="traefik"', "namespaces": ["gateways"]}


async def test_who_else_may_count_is_told_of_the_sources_that_judge(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(gatewayMetrics=GATEWAY)
    assert (await bench.look(canary())).doubt is None, "no look yet"
    tenant = ScrapeTarget(
        "traefik", {"job": "traefik", "namespace": "tenant"}, {"__meta_kubernetes_namespace": "tenant"}
    )
    bench.providers["edge"].scraped_now = Scrape((tenant,), frozenset())
    await bench.assessor.verify()
    told = (await bench.look(canary())).doubt
    assert told is not None and told.reason == "ForeignTargets" and "tenant" not in told.message
    assert "tenant/" in caplog.text
    labels = (await bench.look(canary({"metrics": [{"name": "accuracy", "maxDrop": 0.1}]}))).doubt
    assert labels is not None and "feedback.selector is not set" in labels.message
    of_a_query = await bench.look(canary({"metrics": [{"name": "memory", "query": "x", "max": 5}]}))
    assert of_a_query.doubt is None

    own = ScrapeTarget(
        "traefik", {"job": "traefik", "namespace": "gateways"}, {"__meta_kubernetes_namespace": "gateways"}
    )
    bench.providers["edge"].scraped_now = Scrape((own,), frozenset())
    await bench.assessor.verify()
    assert (await bench.look(canary())).doubt is None and set(bench.assessor.doubts) == {"feedback"}


async def test_no_prometheus_is_an_error_that_names_the_remedy() -> None:
    reading = await Bench(prometheus=[]).look(canary())
    assert (reading.verdict, reading.reason) == ("Error", "NoSource") and "configuration" in reading.message


async def test_an_outage_keeps_the_counts_and_is_timed() -> None:
    bench = Bench()
    first = await bench.look(canary())
    bench.main.said, bench.now = MeasurementProblem("ProviderUnreachable", "gone"), b.at(60)
    down = await bench.look(canary(metrics=first.metrics))
    assert (down.verdict, down.reason) == ("Error", "ProviderUnreachable")
    assert (down.metrics[0].canary, down.metrics[0].since) == (first.metrics[0].canary, stamp(b.at(60)))


async def test_a_prometheus_that_hangs_is_given_up_and_the_other_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assess, "MORE_SECONDS", 0.0)
    hanging = [
        {"name": "main", "url": "http://main", "timeoutSeconds": 0.05},
        {"name": "edge", "url": "http://edge"},
    ]
    bench = Bench(prometheus=hanging, gatewayMetrics={"provider": "edge"})
    bench.main.hangs = True
    sliced = {"name": "accuracy", "maxDrop": 0.1, "slices": [{"name": "night"}]}
    reading = await bench.look(canary({"metrics": [{"name": "errors", "maxIncrease": 0.1}, sliced]}))
    assert [(m.name, m.reason) for m in reading.metrics] == [
        ("errors", "NoData"),
        ("accuracy", "ProviderTimeout"),
        ("accuracy/night", "ProviderTimeout"),
    ]
    assert reading.verdict == "Error"


async def test_counting_begins_after_the_initial_delay() -> None:
    bench, analysis = Bench(), {"initialDelay": "30s"}
    shifting = canary(analysis, at_step=b.step(0, 5, "Shifting", observed_since=None))
    assert (await bench.look(shifting)).reason == "InitialDelay"
    bench.now = b.at(24.9)  # the step is observed since five seconds before START
    early = await bench.look(canary(analysis))
    assert (early.verdict, early.reason, early.metrics) == (
        "Inconclusive",
        "InitialDelay",
        (),
    ) and "30s" in early.message
    assert not bench.main.asked, "what is not counted is not asked either"
    bench.now = b.at(25.1)
    begun = await bench.look(canary(analysis))
    assert begun.reason == "NoData" and begun.metrics[0].canary is not None, "the baseline"


@pytest.mark.parametrize("stage", ["Canary", "Bake"])
async def test_what_a_prometheus_that_lost_its_data_sees_first_is_no_traffic_of_the_step(stage: str) -> None:
    """It has scraped nothing at the first look; the counters that it knows at the second hold weeks
    of stable, and an outage.
    """
    bench = Bench()

    def state(metrics: Sequence[MetricStatus]) -> Snapshot:
        step = (
            b.step(0, 5, metrics=list(metrics))
            if stage == "Canary"
            else b.step(3, 100, metrics=list(metrics))
        )
        return b.second(stage, wanted=canary().spec, changes={"step": step})

    known, bench.main.requests = {V1: (1_000_000, 900_000), V2: (5000, 60)}, {}
    nothing = await bench.look(state(()))
    assert (nothing.verdict, nothing.reason, nothing.metrics[0].canary) == ("Inconclusive", "NoData", None)
    bench.main.requests, bench.main.scraped = known, 1.0
    baseline = await bench.look(state(nothing.metrics))
    bench.main.requests, bench.main.scraped = {V1: (1_000_190, 900_000), V2: (5010, 60)}, 2.0
    for counted in (await bench.look(state(baseline.metrics))).metrics:
        assert counted.canary and (counted.canary.total, counted.canary.bad) == (10, 0), counted.name
        if stage == "Canary":
            assert counted.stable and (counted.stable.total, counted.stable.bad) == (190, 0), counted.name


async def test_a_pause_shifts_no_weight_and_has_no_delay() -> None:
    paused = canary(
        {"initialDelay": "30s"}, at_step=b.step(1, 5, "Paused", observed_since=None), reason="PauseStep"
    )
    assert (await Bench().look(paused)).reason == "NoData"


@pytest.mark.parametrize("side", [V1, V2])
async def test_counting_begins_again_after_a_pod_of_either_side_has_started(side: str) -> None:
    """One becomes ready 39.5 seconds after START: both sides wait for half a minute. What was
    scraped before that counts.
    """
    bench = Bench()

    async def look(at: float, requests: int, metrics: Sequence[MetricStatus]) -> Assessment:
        ready = {V1: b.at(-600), V2: b.at(-600)} | ({side: b.at(39.5)} if at > 39.5 else {})
        bench.now, bench.main.scraped = b.at(at), at - 1
        bench.main.requests = {V1: (19 * requests, 0), V2: (requests, 0)}
        servers = {r: Server(2, 2, None, 2, newest_ready=stamp(t)) for r, t in ready.items()}
        return await bench.look(canary({"initialDelay": "30s"}, metrics=tuple(metrics), servers=servers))

    def counted(seen: Assessment) -> tuple[float, float]:
        m = seen.metrics[0]
        assert m.canary and m.stable
        return m.canary.total, m.stable.total

    early = await look(41, 100, ())
    assert (early.reason, early.metrics) == ("InitialDelay", ()), "no baseline while a pod is cold"
    baseline = await look(26, 100, ())
    until = await look(40, 140, baseline.metrics)
    assert counted(until) == (40, 760) and until.reason == "InitialDelay"
    assert "counting begins again in 30 s" in until.message and "pods have become ready" in until.message
    assert counted(await look(45, 200, until.metrics)) == (40, 760)
    again = await look(75, 300, until.metrics)
    assert counted(again) == (40, 760) and again.reason != "InitialDelay"
    assert counted(await look(80, 310, again.metrics)) == (50, 950)


async def test_slices_are_asked_for_in_one_query_and_each_is_compared() -> None:
    bench = Bench()
    analysis = {"metrics": [{"name": "accuracy", "maxDrop": 0.02, "slices": [{"name": "night"}]}]}
    first = await bench.look(canary(analysis))
    bench.main.scraped = 1.0
    bench.main.labels = {
        (1, "day"): (9000, 900),
        (2, "day"): (900, 20),
        (1, "night"): (900, 45),
        (2, "night"): (100, 60),
    }
    second = await bench.look(canary(analysis, metrics=first.metrics))
    assert len(bench.main.asked) == 2 and "slice" in bench.main.asked[-1]
    assert names(second) == ["accuracy", "accuracy/night"]
    counted = [(m.canary.total, m.canary.bad) for m in second.metrics if m.canary]
    assert counted == [(1000, 80), (100, 60)]
    assert (second.verdict, second.reason) == ("Failed", "SliceAccuracyLow")


async def test_metrics_of_templates_and_policies_are_measured_too() -> None:
    memory = Metric(name="memory", query="memory", max=5)
    s = canary(
        {"templates": ["web"]},
        templates={"web": (memory,)},
        mandatory=(Metric(name="errors", max_increase=0.001),),
    )
    assert names(await Bench().look(s)) == ["memory", "errors"]


async def test_an_unknown_template_holds_the_step_and_loses_no_counts() -> None:
    status = MetricStatus(
        name="errors", verdict="Inconclusive", reason="TooFewSamples", canary=Counter(total=7)
    )
    reading = await Bench().look(canary({"templates": ["oops"]}, metrics=(status,)))
    assert (reading.verdict, reading.reason, reading.metrics) == ("Error", "UnknownTemplate", (status,))


async def test_the_evidence_of_earlier_steps_goes_into_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    specified: list[list[float]] = []
    real = assessment.judge_all

    def spy(parts: Any, actual: Any, before: Any, carried: Any, *more: Any, **named: Any) -> Any:
        specified.append(list(carried.get("errors", ())))
        return real(parts, actual, before, carried, *more, **named)

    monkeypatch.setattr(assessment, "judge_all", spy)
    past = StepEvidence(
        index=0, weight=5, verdict="Successful", reason="x", seconds=1,
        metrics=[MetricStatus(name="errors", verdict="Successful", reason="x", log_evidence=-0.7)],
    )  # fmt: skip
    s = b.second(
        "Canary", wanted=b.spec(2, steps=b.STEPS), changes={"step": b.step(1, 25), "history": [past]}
    )
    await Bench().look(s)
    assert specified == [[-0.7]]


async def test_without_a_rollout_there_is_nothing_to_look_at() -> None:
    assert await Bench().assessor.assess(b.snapshot(b.spec(1), b.status(1))) is None
    assert await Bench().assessor.assess(b.second("Provision")) is None


async def test_the_readers_are_made_once_and_closed() -> None:
    bench = Bench()
    await bench.look(canary())
    bench.now += timedelta(seconds=5)
    await bench.look(canary())
    await bench.assessor.close()
    assert bench.main.closed and not bench.providers["edge"].closed


@pytest.mark.parametrize(
    ("written_in", "told"),
    [(None, "Unprotected"), ([], None), (["elsewhere"], "Unprotected"), ([b.NAMESPACE], None)],
)
async def test_a_comparer_that_may_be_open_to_all_is_told(
    written_in: list[str] | None, told: str | None
) -> None:
    peer = {"namespaces": ["x"]}
    policies = {
        "mode": "Write",
        "proxies": peer,
        "prometheus": peer,
        "stores": [peer],
        "namespaces": written_in,
    }
    bench = Bench(**({} if written_in is None else {"networkPolicies": policies}))
    shadow = {"phase": "Observing", "mirror": "RequestMirror", "since": b.ago(10)}
    s = b.second(
        "Shadow",
        wanted=b.spec(2, rollout={"shadow": {"minAgreement": 0.99}}),
        changes={"shadow": ShadowStatus.model_validate(shadow)},
    )
    reading = await bench.look(s)
    assert (reading.doubt.reason if reading.doubt else None) == told


async def test_prometheus_keeps_the_protocol_of_providers() -> None:
    bench = Bench()
    bench.main.requests, bench.main.scraped = {}, 1.0

    def count(revision: str, total: int, bad: int) -> None:
        bench.main.requests[revision] = (total, bad)

    def fail() -> None:
        bench.main.said = MeasurementProblem("ProviderUnreachable", "gone")

    await check_provider(PrometheusProvider(bench.main), count, fail)
    assert bench.main.closed
