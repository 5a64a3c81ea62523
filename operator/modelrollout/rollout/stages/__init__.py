"""One file for each stage: a function from a snapshot to the next state, or to waiting for
something named, and a ``StageSpec`` with everything else that differs between stages.
"""

from __future__ import annotations

from typing import Any

from modelrollout.api.v1alpha1 import Stage
from modelrollout.rollout.stages.bake import BAKE
from modelrollout.rollout.stages.canary import CANARY
from modelrollout.rollout.stages.evaluate import EVALUATE
from modelrollout.rollout.stages.prepare import PREPARE
from modelrollout.rollout.stages.promote import PROMOTE, REVERT
from modelrollout.rollout.stages.provision import PROVISION
from modelrollout.rollout.stages.resolve import RESOLVE
from modelrollout.rollout.stages.shadow import SHADOW
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.tune import TUNE

# In the order of a rollout; Revert instead of what is left.
_SPECS: tuple[StageSpec[Any], ...] = (
    RESOLVE,
    PREPARE,
    TUNE,
    PROVISION,
    EVALUATE,
    SHADOW,
    CANARY,
    PROMOTE,
    BAKE,
    REVERT,
)
STAGES: dict[Stage, StageSpec[Any]] = {spec.name: spec for spec in _SPECS}
