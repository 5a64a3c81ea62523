"""Rules of the fault proxy, and what a broken Prometheus answers."""

from __future__ import annotations

import json

from chaos import treatments as t

PUT = t.Call("PUT", "/apis/modelrollout.dev/v1alpha1/namespaces/n/modeldeployments/a/status")
GET = t.Call("GET", "/api/v1/pods")
WATCH = t.Call("GET", "/api/v1/pods", "watch=true&resourceVersion=7")
LEASE = t.Call("PUT", "/apis/coordination.k8s.io/v1/namespaces/n/leases/modelrollout-operator")
VECTOR = {
    "status": "success",
    "data": {"resultType": "vector", "result": [{"metric": {"instance": "a"}, "value": [1.5, "7"]}]},
}


def test_kill_follows_every_write_but_only_the_first_of_the_lease() -> None:
    killed: list[int] = []
    rule = t.KillAfterWrites(lambda: killed.append(1))
    assert rule(GET) is t.PASS
    assert rule(WATCH) is t.PASS
    for call in (LEASE, PUT, PUT):
        treatment = rule(call)
        assert treatment.killed is not None
        treatment.killed()
    assert rule(LEASE) is t.PASS
    assert (rule.tried, len(killed)) == (3, 3)
    assert rule.seen[1] == f"PUT {PUT.path}"


def test_every_other_call_gets_through_and_each_path_is_counted_for_itself() -> None:
    rule = t.EveryOther(t.refused(500), t.any_call)
    other = t.Call("PUT", "/other")
    assert [rule(c).refusal is not None for c in (PUT, PUT, other, PUT, other, WATCH)] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert rule.tried == 3


def test_writes_are_told_from_reads() -> None:
    rule = t.EveryOther(t.Treatment(cut=True), t.writes)
    assert rule(GET) is t.PASS
    assert rule(PUT).cut


def test_a_refusal_is_what_the_api_server_would_say() -> None:
    refusal = t.refused(429, retry_after=3).refusal
    assert refusal is not None
    assert ("Retry-After", "3") in refusal.headers
    body = json.loads(refusal.body)
    assert (body["kind"], body["code"], body["reason"], body["details"]) == (
        "Status",
        429,
        "TooManyRequests",
        {"retryAfterSeconds": 3},
    )


def test_gone_is_one_line_of_a_watch() -> None:
    event = json.loads(t.GONE_EVENT)
    assert t.GONE_EVENT.endswith(b"\n") and t.GONE_EVENT.count(b"\n") == 1
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_what_prometheus_may_answer() -> None:
    body = json.dumps(VECTOR).encode()

    def results(changed: bytes) -> list[dict[str, object]]:
        report: list[dict[str, object]] = json.loads(changed)["data"]["result"]
        return report

    assert results(t.with_nan(body)) == [{"metric": {"instance": "a"}, "value": [1.5, "NaN"]}]
    assert results(t.empty(body)) == []
    assert [s["metric"] for s in results(t.several(body))] == [
        {"instance": "a"},
        {"instance": "a", "chaos": "second"},
    ]
    try:
        json.loads(t.garbage(body))
    except ValueError:
        pass
    else:
        raise AssertionError("garbage is JSON")


def test_an_answer_that_is_no_vector_stays_as_it_is() -> None:
    for body in (
        b"no JSON",
        b'{"status": "error"}',
        b'{"data": {"resultType": "scalar", "result": [1, "2"]}}',
    ):
        assert t.with_nan(body) == body or json.loads(t.with_nan(body)) == json.loads(body)
