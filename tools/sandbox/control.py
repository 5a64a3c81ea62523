"""Talking to a sandbox's supervisor."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any

from sandbox.paths import State


class ControlError(RuntimeError):
    """The supervisor refused, or does not answer."""


def ask(state: State, **request: Any) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(15)
            s.connect(str(state.socket))
            s.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(s.makefile().readline())
    except (OSError, ValueError) as error:
        raise ControlError(f"the supervisor does not answer: {error}") from error
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return answer


def parts(state: State) -> dict[str, dict[str, Any]]:
    """Every part that was ever started, and how it is."""
    states: dict[str, dict[str, Any]] = ask(state, op="status")["parts"]
    return states


def running(state: State, part: str) -> bool:
    return bool(parts(state).get(part, {}).get("running"))


def start(state: State, part: str) -> None:
    ask(state, op="start", part=part)


def stop(state: State, part: str, number: int = signal.SIGTERM, timeout: float = 45) -> None:
    """Returns once the part has ended."""
    ask(state, op="stop", part=part, signal=number)
    deadline = time.monotonic() + timeout
    while running(state, part):
        if time.monotonic() > deadline:
            raise ControlError(f"{part} does not end")
        time.sleep(0.05)
