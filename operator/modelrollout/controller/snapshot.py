"""The Snapshot of a pass, built once from what the pass has gathered. PURE."""

from __future__ import annotations

from datetime import datetime

from modelrollout.controller.lookups.lookups import LookedUp
from modelrollout.controller.observe.job_state import golden_evaluation
from modelrollout.controller.observe.observation import Observation
from modelrollout.problem import Problem
from modelrollout.rollout.snapshot import Assessment, Snapshot


def build_snapshot(
    observation: Observation,
    looked_up: LookedUp,
    assessment: Assessment | None,
    *,
    write_problem: Problem | None,
    look_problem: Problem | None,
    network_policy_problem: Problem | None,
    definition_problem: Problem | None,
    silent_since: datetime | None,
    leading_since: datetime | None,
) -> Snapshot:
    """The input of the decision. The last six are what the process remembers."""
    return Snapshot(
        **(vars(observation.observed) | {"triton_versions": looked_up.triton_versions}),
        spec_problem=observation.spec_problem,
        taken=observation.hostnames.taken,
        traffic=observation.traffic,
        mirror=observation.mirror,
        work=looked_up.work,
        evaluation=golden_evaluation(observation.observed, looked_up.work),
        shared=looked_up.shared,
        slots=looked_up.slots,
        gpus=looked_up.gpus,
        assessment=assessment,
        write_problem=write_problem,
        look_problem=look_problem,
        network_policy_problem=network_policy_problem,
        definition_problem=definition_problem,
        silent_since=silent_since,
        leading_since=leading_since,
    )
