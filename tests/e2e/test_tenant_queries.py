"""PromQL of one team: refused, or bound to its namespace, with the words that it reads; another
team's canary is judged in its usual time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster, secret
from demo.setup import SECRET
from tests.e2e.conftest import Stage
from tests.e2e.models import FEATURES

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]
log = logging.getLogger(__name__)

TENANT = "e2e-tenant-queries-tenant"
HOST = "victim.e2e.example"
# a canary that nothing decides about
QUIET = {"name": "errors", "maxIncrease": 0.3, "minSamples": 100_000}
SPYING = {  # what each gives where it is bound to a namespace, or its reason
    "namespaces": ("count(count by (namespace) (up{}))", 1),
    "gateway": ("sum(traefik_service_requests_total)", "NoData"),
    "labels": ("sum(modelrollout_feedback_total)", "NoData"),
    "strings": ('count(count by (namespace) (up{job!=`"} or up{job="`}))', 1),
}
DEAR = "sum(sum_over_time(deriv(nv_inference_request_success[1m])[20m:1s]))"


@pytest.fixture(scope="module")
def tenant(stage: Stage) -> Iterator[Stage]:
    """Another namespace, and no policy for it at the end."""
    cluster, store = stage.cluster, stage.cluster.target.store
    cluster.fresh_namespace(TENANT)
    cluster.apply(
        secret(
            TENANT, SECRET, {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
        )
    )
    yield Stage(cluster, TENANT)
    cluster.kubectl("delete", "rpol", TENANT, "--ignore-not-found")
    cluster.kubectl("delete", "namespace", TENANT, "--wait=false")


def policy(tenant: Stage, queries: str) -> None:
    everything = {"name": "everything", "query": "count(count by (namespace) (up))", "min": 1, "dryRun": True}
    spec = {
        "selector": {"namespaces": [TENANT]},
        "gates": {"queries": queries},
        "analysisTemplates": [{"name": "platform", "metrics": [everything]}],
    }
    tenant.apply(
        {
            "apiVersion": "modelrollout.dev/v1alpha1",
            "kind": "RolloutPolicy",
            "metadata": {"name": TENANT},
            "spec": spec,
        }
    )


def own(*queries: str) -> list[dict[str, Any]]:
    return [
        {"name": f"own-{i}", "query": query, "max": 1e12, "dryRun": True} for i, query in enumerate(queries)
    ]


def analysed(*metrics: dict[str, Any], **analysis: Any) -> dict[str, Any]:
    return {
        "canary": {"steps": [{"weight": 50}]},
        "analysis": {"interval": "1s", "initialDelay": "0s", "metrics": [QUIET, *metrics], **analysis},
        "progressDeadline": "20m",
    }


def measured(stage: Stage, name: str) -> dict[str, dict[str, Any]]:
    """The metrics of the step in flight, by name."""
    step = ((stage.get(name)["status"].get("rollout") or {}).get("step")) or {}
    return {m["name"]: m for m in step.get("metrics", [])}


def restarts(cluster: Cluster) -> dict[str, int]:
    pods = cluster.pods(
        SYSTEM_NAMESPACE, f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"
    )
    return {p["metadata"]["name"]: c["restartCount"] for p in pods for c in p["status"]["containerStatuses"]}


@contextlib.contextmanager
def load(stage: Stage) -> Iterator[None]:
    """Some twenty requests a second for the victim."""
    body = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(requests.RequestException):
                requests.post(
                    f"http://{stage.cluster.target.gateway.http}/v2/models/victim/infer",
                    json=body,
                    headers={"Host": HOST},
                    timeout=10,
                )

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Victim:
    """Gets a new version again and again, and is judged by errors at the gateway."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.version = stage, 0

    def rolled_out(self) -> float:
        """Seconds from the change until the new version has all traffic."""
        self.version += 1
        made = self.stage.deployment("victim", traffic=self.stage.traffic(HOST))
        # other pods, from the same file
        made["spec"]["serving"]["startupTimeout"] = f"{600 + self.version}s"
        analysis = {
            "interval": "1s",
            "initialDelay": "0s",
            "metrics": [{"name": "errors", "maxIncrease": 0.3, "minSamples": 30}],
        }
        made["spec"]["rollout"] = {
            "canary": {"steps": [{"weight": 50}]},
            "analysis": analysis,
            "progressDeadline": "5m",
        }
        begun = time.monotonic()
        self.stage.apply(made)
        self.stage.until_ready("victim", 300)
        return time.monotonic() - begun


@pytest.fixture(scope="module")
def victim(stage: Stage) -> Victim:
    made = Victim(stage)
    made.rolled_out()
    return made


def test_without_a_policy_there_is_no_promql_of_ones_own(tenant: Stage) -> None:
    tenant.apply(tenant.deployment("refused", rollout=analysed(*own("count(up)"))))
    message = tenant.until_stalled("refused", "QueryNotAllowed")
    assert (
        "spec.rollout.analysis.metrics[own-0].query" in message
        and "use a template" in message
        and "gates.queries: Own" in message
    )
    tenant.until("it has an event", lambda: "QueryNotAllowed" in tenant.events("refused"), 20)
    tenant.cluster.kubectl("delete", "mdep", "refused", "-n", TENANT)


@pytest.mark.parametrize(
    ("name", "query", "word"),
    [
        ("nothing", "vector(1)", "selects no series"),
        ("history", 'sum(count_over_time({__name__=~".+"}[600m:1s]))', "name of a metric"),
        ("long", "sum(count_over_time(up[600m:1s]))", "of each series"),
        ("other", 'sum(up{namespace=~".+"})', f"always {TENANT}"),
        ("then", "sum(up @ 0)", "@ is not for own queries"),
    ],
)
def test_where_it_is_allowed_what_reaches_too_far_is_refused_all_the_same(
    tenant: Stage, name: str, query: str, word: str
) -> None:
    policy(tenant, "Own")
    tenant.apply(tenant.deployment(name, rollout=analysed(*own(query))))
    tenant.until("it is told why", lambda: word in tenant.condition(name, "Stalled")["message"], 30)
    assert tenant.condition(name, "Stalled")["reason"] == "QueryNotAllowed"
    tenant.cluster.kubectl("delete", "mdep", name, "-n", TENANT)


@pytest.fixture(scope="module")
def curious(tenant: Stage) -> Stage:
    """A canary of the tenant that nothing decides about, with queries of its own and one of the
    platform.
    """
    policy(tenant, "Own")
    routed = tenant.traffic("curious.e2e.example")
    tenant.apply(tenant.deployment("curious", traffic=routed))
    tenant.until_ready("curious")
    metrics = [
        {"name": name, "query": query, "max": 1e12, "dryRun": True} for name, (query, _) in SPYING.items()
    ]
    tenant.apply(
        tenant.deployment(
            "curious", "better.onnx", traffic=routed, rollout=analysed(*metrics, templates=["platform"])
        )
    )
    tenant.until("it is judged", lambda: len(measured(tenant, "curious")) == len(SPYING) + 2, 240)
    return tenant


def test_own_queries_see_their_own_namespace_and_the_platforms_see_all(curious: Stage) -> None:
    def seen() -> bool:
        actual = measured(curious, "curious")
        told = {name: actual[name].get("value", actual[name]["reason"]) for name in SPYING}
        return (
            told == {name: expected for name, (_, expected) in SPYING.items()}
            and actual["everything"].get("value", 0) > 1
        )

    curious.until("each has what its namespace has", seen, 60)


def test_dear_queries_delay_no_other_model(curious: Stage, victim: Victim) -> None:
    cluster = curious.cluster
    before = restarts(cluster)
    with load(victim.stage):
        quiet = victim.rolled_out()
        curious.set_rollout("curious", {"analysis": {"metrics": [QUIET, *own(*[DEAR] * 14)]}})
        curious.until("they are asked", lambda: "own-13" in measured(curious, "curious"), 60)
        busy = victim.rolled_out()
    log.info("the victim's rollout took %.1f s, and %.1f s beside dear queries", quiet, busy)
    assert busy < 1.5 * quiet + 10
    assert restarts(cluster) == before


def test_what_a_policy_forbids_later_holds_the_step_and_says_so(curious: Stage) -> None:
    before = curious.get("curious")["status"]
    policy(curious, "Templates")
    curious.until(
        "it is told", lambda: measured(curious, "curious")["own-0"]["reason"] == "QueryNotAllowed", 60
    )
    now = curious.get("curious")["status"]
    assert now["phase"] == before["phase"] == "Canary" and now["stable"] == before["stable"]
    assert measured(curious, "curious")["everything"].get("value", 0) > 1, "the platform's own goes on"
    curious.cluster.modelrollout("abort", "curious", "-n", TENANT)
    curious.until(
        "stable has everything", lambda: curious.get("curious")["status"]["rollout"]["stage"] == "Failed"
    )
