"""Which failed requests the fault itself is to blame for."""

from __future__ import annotations

import pytest

from chaos.traffic import KILLED, ROUTELESS, Failure, Window, is_apart

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
