"""What every stage says of itself, in its own file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from modelrollout.api.v1alpha1 import ModelDeploymentSpec, Phase, Stage
from modelrollout.rollout.plan import Transition
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.rollout.views import InFlight

S = TypeVar("S", bound=InFlight)


@dataclass(frozen=True)
class StageSpec(Generic[S]):
    """A stage: what it decides, and how status shows it."""

    name: Stage
    decide: Callable[[S, datetime], Transition]
    view: type[S]  # what ``decide`` takes
    phase: Phase  # status.phase while it lasts
    doing: str  # for people: what is happening
    then: str = ""  # ... and what follows
    condition: str | None = None  # type of the condition that it sets
    is_configured: Callable[[ModelDeploymentSpec], bool] | None = None  # None: part of every rollout
    may_queue: bool = False  # it may wait for GPUs
    needs_stable: bool = False  # there is none without a stable revision
    watched: bool = False  # the servers of the revision in flight should stay up
    carries_weight: bool = False  # requests may reach the revision, so its end is a revert

    def run(self, s: Snapshot, now: datetime) -> Transition:
        """The transition from this stage, or its wait."""
        return self.decide(self.view.narrowed(s), now)
