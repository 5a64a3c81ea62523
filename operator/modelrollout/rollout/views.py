"""Snapshots of which more is known by type, so that what needs a spec, a rollout or a step says so
in its signature. ``run_stage`` makes them once; ``dataclasses.replace`` keeps the type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from modelrollout.api.v1alpha1 import ModelDeploymentSpec, RolloutStatus, ShadowStatus, StepStatus
from modelrollout.rollout.snapshot import Snapshot, rollout_of, shadow_of, step_of


@dataclass(frozen=True)
class Specified(Snapshot):
    """A snapshot whose spec can be read."""

    spec: ModelDeploymentSpec

    @classmethod
    def of(cls, s: Snapshot) -> Self:
        """The same snapshot by its narrower type."""
        return cls(**vars(s))


@dataclass(frozen=True)
class InFlight(Specified):
    """... and a rollout is under way."""

    @property
    def rollout(self) -> RolloutStatus:
        """The rollout in flight."""
        return rollout_of(self.status)


@dataclass(frozen=True)
class AtStep(InFlight):
    """... that is at a step: in Canary and Bake."""

    @property
    def step(self) -> StepStatus:
        """The present step."""
        return step_of(self.status)


@dataclass(frozen=True)
class InShadow(InFlight):
    """... that is in Shadow."""

    @property
    def shadow(self) -> ShadowStatus:
        """The present phase."""
        return shadow_of(self.status)
