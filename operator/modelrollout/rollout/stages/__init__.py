"""One file for each stage: a function from a snapshot to the next state, or to waiting for
something named.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from modelrollout.api.v1alpha1 import Stage
from modelrollout.rollout.plan import Transition
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.rollout.stages.bake import bake
from modelrollout.rollout.stages.canary import canary
from modelrollout.rollout.stages.evaluate import evaluate
from modelrollout.rollout.stages.prepare import prepare
from modelrollout.rollout.stages.promote import promote, revert
from modelrollout.rollout.stages.provision import provision
from modelrollout.rollout.stages.resolve import resolve
from modelrollout.rollout.stages.shadow import shadow
from modelrollout.rollout.stages.tune import tune

STAGES: dict[Stage, Callable[[Snapshot, datetime], Transition]] = {
    "Resolve": resolve,
    "Prepare": prepare,
    "Tune": tune,
    "Provision": provision,
    "Evaluate": evaluate,
    "Shadow": shadow,
    "Canary": canary,
    "Promote": promote,
    "Bake": bake,
    "Revert": revert,
}
