"""Chooses among the models that a search made, and finds those that no other beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Objective = Literal["Size", "Latency"]
OBJECTIVES: tuple[Objective, ...] = ("Size", "Latency")

# of the source's size or latency: a smaller gain is not worth another model, and may be chance
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
    """The cost to minimise."""
    return (lambda p: p.size) if objective == "Size" else (lambda p: p.milliseconds)


def enough(source: Point, objective: Objective) -> float:
    """The largest cost at which another model is worth more than ``source``. Any cost where
    ``source`` itself exceeds the budget, because the steps before it lost too much.
    """
    return WORTH * cost_of(objective)(source) if source.within else float("inf")


def choose(source: Point, made: Sequence[Point], objective: Objective) -> Point:
    """The cheapest within the budget, then by the other cost and the order; ``source`` where none
    is worth it.
    """
    cost, other = cost_of(objective), cost_of("Latency" if objective == "Size" else "Size")
    limit = enough(source, objective)
    return min(
        (p for p in made if p.within and cost(p) <= limit), key=lambda p: (cost(p), other(p)), default=source
    )


def frontier(points: Sequence[Point], objective: Objective) -> tuple[Point, ...]:
    """The points that no other beats in both loss and cost, cheapest first; of equals the first."""
    cost = cost_of(objective)
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (cost(p), p.loss)):  # stable: equals keep their order
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return tuple(best)
