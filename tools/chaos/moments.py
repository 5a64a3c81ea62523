"""What a fault is, and the moments of a rollout at which it acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chaos.arena import Arena, Subject

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Act:
    """Done once for each subject that it concerns, as soon as its status says so. Acts of a fault
    come in their order.
    """

    when: Callable[[Status], bool]
    do: Callable[[Arena, Subject], None]
    on: tuple[str, ...] = ("up", "down")


def nothing(arena: Arena) -> None:
    """No beginning or end."""


@dataclass(frozen=True)
class Fault:
    """``begin`` comes before the versions are applied, ``undo`` when both rollouts have ended; with
    ``hold`` so many seconds after both canaries began to be observed. What is tried is counted by
    the rule of the proxy, where there is one, else by acts, else once for each rollout.
    """

    name: str
    about: str
    begin: Callable[[Arena], None] = nothing
    undo: Callable[[Arena], None] = nothing
    acts: tuple[Act, ...] = ()
    hold: float | None = None
    thorough: bool = False  # with a Job that resolves the digest, and golden data
    # the reason for which no rollout may begin until the fault is undone, a while after it is said
    held: str | None = None
    limit: float = 240.0  # seconds until both must have ended


# --- moments


def stage(name: str) -> Callable[[Status], bool]:
    return lambda status: (status.get("rollout") or {}).get("stage") == name


def observing(index: int) -> Callable[[Status], bool]:
    """The canary has its traffic at that step and is judged."""
    return _step(index, "Observing")


def shifting(index: int) -> Callable[[Status], bool]:
    return _step(index, "Shifting")


def in_step(index: int) -> Callable[[Status], bool]:
    """At that step, in whatever phase: for acts that follow one another, of which the last may come
    late on a busy machine.
    """
    at = (shifting(index), observing(index))
    return lambda status: any(when(status) for when in at)


def _step(index: int, phase: str) -> Callable[[Status], bool]:
    def is_at_step(status: Status) -> bool:
        rollout = status.get("rollout") or {}
        step = rollout.get("step") or {}
        return bool(
            rollout.get("stage") == "Canary" and step.get("index") == index and step.get("phase") == phase
        )

    return is_at_step


def over(status: Status) -> bool:
    return (status.get("rollout") or {}).get("stage") in ("Done", "Failed")


def says(reason: str) -> Callable[[Status], bool]:
    """One of the conditions has that reason."""
    return lambda status: any(c.get("reason") == reason for c in status.get("conditions") or [])
