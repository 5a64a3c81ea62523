"""PURE: which of the models that a search made is taken, and which ones no other beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Objective = Literal["Size", "Latency"]
OBJECTIVES: tuple[Objective, ...] = ("Size", "Latency")

# of the source's size or latency: what gains less is not worth another model, and latencies differ
# by that much by chance
WORTH = 0.95


class Point(NamedTuple):
    """One model: bytes, CPU milliseconds of a request, loss of the gate's first metric against the
    original; ``within``: all budgets are kept.
    """

    name: str
    size: int
    milliseconds: float
    loss: float
    within: bool


def cost_of(objective: Objective) -> Callable[[Point], float]:
    """What is to be small."""
    return (lambda p: p.size) if objective == "Size" else (lambda p: p.milliseconds)


def enough(source: Point, objective: Objective) -> float:
    """The largest cost that is worth another model than ``source``. One that does not keep the
    budget itself (the steps before it lost too much) gives way to anything that does.
    """
    return WORTH * cost_of(objective)(source) if source.within else float("inf")


def choose(source: Point, made: Sequence[Point], objective: Objective) -> Point:
    """The cheapest within the budget, by the other cost and the order where equal; ``source`` where
    none is worth it.
    """
    cost, other = cost_of(objective), cost_of("Latency" if objective == "Size" else "Size")
    limit = enough(source, objective)
    return min(
        (p for p in made if p.within and cost(p) <= limit), key=lambda p: (cost(p), other(p)), default=source
    )


def frontier(points: Sequence[Point], objective: Objective) -> tuple[Point, ...]:
    """Those that no other is better than in loss and cost, cheapest first; of equals the first."""
    cost = cost_of(objective)
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (cost(p), p.loss)):  # stable: equals keep their order
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return tuple(found)
