"""surge InPlace: where the pods of a new revision find no GPU, stable releases some of its own,
down to the floor in spec.

Stable releases nothing on a guess: only after the scheduler reported that a pod of the new revision
fits on no node.
"""

from __future__ import annotations

from modelrollout.api.v1alpha1 import InPlaceStatus
from modelrollout.reasons import Reason
from modelrollout.rollout.desired.pods import canary_room, replicas_with_traffic, stable_floor
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import predecessor
from modelrollout.rollout.stages.waiting import CHECK_SECONDS
from modelrollout.rollout.transitions import change
from modelrollout.rollout.views import InFlight

UNSCHEDULABLE = frozenset({Reason.UNSCHEDULABLE, Reason.INSUFFICIENT_GPU})


def release_stable_pods(s: InFlight) -> Transition | None:
    """Take turns on the GPUs; None if no GPU is missing, or if stable has no more to release.

    Two steps: first the new revision is reduced to what it needs, and only if that does not fit
    either does stable release as many pods.
    """
    rollout, stable = s.rollout, predecessor(s)
    server, progress = s.server(rollout.revision), rollout.in_place
    if (
        s.spec.serving.surge != "InPlace"
        or stable is None
        or server.problem is None
        or server.problem.reason not in UNSCHEDULABLE
    ):
        return None
    floor = stable_floor(s.spec)
    if progress is None:
        previous = max(s.server(stable.revision).desired_replicas, s.spec.serving.replicas)
        if floor >= previous:
            return None
        text = (
            f"no node has room for all pods of {rollout.revision}: it makes do with"
            f" {canary_room(s.spec)}, stable keeps at least {floor} of {previous}"
        )
        return Transition(
            change(
                s.status, in_place=InPlaceStatus(previous_stable_replicas=previous, stable_replicas=previous)
            ),
            (Event(Reason.IN_PLACE, text),),
            CHECK_SECONDS,
        )
    needed = replicas_with_traffic(s)[rollout.revision or ""]
    remaining = max(floor, progress.previous_stable_replicas - needed)
    if server.desired_replicas != needed or remaining >= progress.stable_replicas:
        return None
    text = (
        f"stable {stable.revision} keeps {remaining} of {progress.previous_stable_replicas} pods and releases"
        f" the others for {rollout.revision}"
    )
    return Transition(
        change(s.status, in_place=progress.model_copy(update={"stable_replicas": remaining})),
        (Event(Reason.IN_PLACE, text),),
        CHECK_SECONDS,
    )
