"""Facts and snapshots of which more is known by type, so that what needs a spec, a rollout or a
step says so in its signature. ``run_stage`` makes them once; ``dataclasses.replace`` keeps the
type.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from modelrollout.api.v1alpha1 import ModelDeploymentSpec, RolloutStatus, ShadowStatus, StepStatus
from modelrollout.rollout.snapshot import Observed, Snapshot, rollout_of, shadow_of, step_of


@dataclass(frozen=True)
class Specified(Observed):
    """Observed facts whose spec can be read."""

    spec: ModelDeploymentSpec

    @staticmethod
    def of(s: Observed) -> Specified:
        """The same facts by their narrower type."""
        if isinstance(s, Specified):
            return s
        return Specified(**{f.name: getattr(s, f.name) for f in fields(Specified)})


@dataclass(frozen=True)
class SpecifiedSnapshot(Specified, Snapshot):
    """A snapshot whose spec can be read."""

    @classmethod
    def narrowed(cls, s: Snapshot) -> Self:
        """The same snapshot by its narrower type."""
        return cls(**vars(s))


@dataclass(frozen=True)
class InFlight(SpecifiedSnapshot):
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
