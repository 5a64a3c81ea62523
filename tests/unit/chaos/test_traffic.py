"""Which failed requests the fault itself is to blame for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from chaos.traffic import GATEWAYLESS, KILLED, PODLESS, ROUTELESS, Failure, Outage, Window, is_apart

WINDOW = Window(100.0, 102.0, KILLED)


@pytest.mark.parametrize(
    ("at", "seconds", "error", "excused"),
    [
        # on its way when the pod died
        (99.9, 0.2, "BadAnswerError: HTTP 502: b'Bad Gateway'", True),
        (101.0, 0.0, "gRPC UNAVAILABLE: connection refused", True),
        (99.0, 0.5, "BadAnswerError: HTTP 502: b'Bad Gateway'", False),  # over before
        (102.1, 0.1, "BadAnswerError: HTTP 502: b'Bad Gateway'", False),  # sent after
        (101.0, 0.1, "BadAnswerError: HTTP 404: b'404 page not found'", False),
        (101.0, 0.1, "BadAnswerError: HTTP 503: b'no available server'", False),
        (101.0, 10.0, "TimeoutError: ", False),
    ],
)
def test_only_a_broken_connection_in_the_window_is_excused(
    at: float, seconds: float, error: str, excused: bool
) -> None:
    assert is_apart(Failure(at, seconds, "http", error), [WINDOW]) is excused
    assert not is_apart(Failure(at, seconds, "http", error), [])


def test_a_missing_route_excuses_only_what_a_missing_route_causes() -> None:
    window = Window(100.0, 101.0, ROUTELESS)
    missing = "BadAnswerError: HTTP 404: b'404 page not found'"
    assert is_apart(Failure(100.5, 0.01, "http", missing), [window])
    assert not is_apart(Failure(101.1, 0.01, "http", missing), [window])
    assert not is_apart(Failure(100.5, 0.01, "http", "BadAnswerError: HTTP 502: b'Bad Gateway'"), [window])


def test_a_missing_gateway_excuses_http_and_grpc_without_a_route_alone() -> None:
    window = Window(100.0, 101.0, GATEWAYLESS)
    for error, excused in (
        ("BadAnswerError: HTTP 404: b'404 page not found'", True),
        ("gRPC UNIMPLEMENTED: Received http2 header with status: 404", True),
        ("gRPC UNIMPLEMENTED: unknown method", False),
        ("BadAnswerError: HTTP 503: b'no available server'", False),
    ):
        assert is_apart(Failure(100.5, 0.01, "http", error), [window]) is excused, error


def pod(name: str, revision: str, ready: str, at: float) -> dict[str, Any]:
    since = datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z")
    return {
        "metadata": {"name": name, "labels": {"modelrollout.dev/revision": revision}},
        "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
    }


def test_an_outage_lasts_until_the_first_pod_is_ready_again() -> None:
    outage = Outage(1000.4, "m-1", True, 1000.4, lag=2, limit=45)
    pods = [
        pod("old", "m-1", "True", 900),  # was ready when it was killed
        pod("other", "m-2", "True", 1003),
        pod("new-b", "m-1", "False", 1004),
        pod("new-b", "m-1", "True", 1012.9),
        pod("new-a", "m-1", "True", 1011.2),
    ]
    assert outage.window(pods) == Window(1000.4, 1014.0, PODLESS)  # whole seconds, and the lag
    assert outage.window(pods[:3]) == Window(1000.4, 1045.4, PODLESS)
    assert outage.window([pod("new", "m-1", "True", 1044)]).end == 1045.4  # the limit holds


def test_after_zero_replicas_only_pods_count_that_were_ready_later() -> None:
    outage = Outage(1000.0, "m-1", True, since=1010.5, lag=2, limit=55)
    pods = [pod("late", "m-1", "True", 1001), pod("new", "m-1", "True", 1018)]
    assert outage.window(pods).end == 1021.0


def test_a_lost_node_excuses_until_all_its_pods_are_known_not_to_be_ready() -> None:
    outage = Outage(1000.6, "m-1", False, 1000.6, lag=5, limit=60)
    pods = [
        pod("a", "m-1", "False", 990),
        pod("a", "m-1", "True", 995),
        pod("b", "m-1", "True", 996),
        pod("a", "m-1", "False", 1008),
        pod("a", "m-1", "True", 1015),
        pod("b", "m-1", "False", 1009),
    ]
    assert outage.window(pods).end == 1015.0
    assert outage.window(pods[:3]).end == 1060.6
    # the kubelet may write it within the second of the kill
    assert outage.window([pod("a", "m-1", "False", 1000.7)]).end == 1006.0
