"""Where requests go: weights, header matches, the preview and the stable Service."""

from __future__ import annotations

from modelrollout.rollout import strategy
from modelrollout.rollout.desired.pods import (
    candidate_revision,
    has_all_pods,
    has_pods_for,
    pods_for_everything,
)
from modelrollout.rollout.policy.mandatory_metrics import first_weight, too_coarse
from modelrollout.rollout.snapshot import (
    Observed,
    Snapshot,
    Split,
    Traffic,
    rollout_of,
)
from modelrollout.rollout.transitions import reached
from modelrollout.rollout.views import Specified

ALL_REVISIONS = "*"


def needs_measurement(s: Observed, traffic: Traffic) -> bool:
    """Whether to measure the revision in flight in this pass, on its traffic or on mirrored
    requests.
    """
    rollout = s.status.rollout
    if rollout is not None and rollout.stage == "Shadow" and rollout.shadow is not None:
        return rollout.shadow.phase == "Observing" or (
            rollout.shadow.phase == "Mirroring" and traffic.programmed
        )
    if rollout is None or rollout.step is None or s.spec is None:
        return False
    # while it waits for pods it keeps the weight of the last step
    if rollout.stage == "Promote":
        return s.status.stable is not None and rollout.step.phase != "Shifting" and not has_all_pods(s)
    return rollout.stage == "Bake" or (
        rollout.stage == "Canary"
        and (strategy.with_traffic(rollout.step).phase != "Shifting" or traffic.programmed)
    )


def split(s: Observed) -> Split:
    """Weights of the route's backends in percent.

    A revision gets no more than its ready pods can carry: nothing while there are none, and the
    previous weight until those for the next are ready. Stable stays in the route until promotion
    (docs/explanation/invariants.md, 2).
    """
    status, rollout = s.status, s.status.rollout
    stable = status.stable.revision if status.stable else None
    new = rollout.revision if rollout else None
    if stable is None:
        return ((new, 100),) if new and rollout and rollout.stage == "Promote" else ()
    weight = _granted(s) if new and new != stable else 0
    if not new or weight == 0:
        return ((stable, 100),)
    return ((new, 100),) if weight == 100 else ((stable, 100 - weight), (new, weight))


def positions(s: Observed) -> tuple[str, ...]:
    """Stable, then the revision on trial, whatever their weights: the order of backends for a
    gateway that counts by position. The trial ends with the rollout, and the promoted revision then
    is the first.
    """
    stable, rollout = s.status.stable, s.status.rollout
    first = (stable.revision,) if stable else ()
    if rollout is None or rollout.revision is None or rollout.revision in first:
        return first
    return (*first, rollout.revision) if rollout.stage in ("Canary", "Promote", "Bake") else first


def is_confirmed(s: Snapshot) -> bool:
    """Whether the data plane carries the split, so that nothing is sent elsewhere any more. Of a
    Service its selector says so, whether or not all pods of stable are ready.
    """
    return s.traffic.programmed or (
        s.spec is not None and not s.exact_weights and s.live_split == split(s) != ()
    )


def _granted(s: Observed) -> int:
    """Percent of the requests for the revision in flight."""
    rollout = rollout_of(s.status)
    if s.candidate_server.ready == 0:
        return 0
    # after it lost all pods, traffic returns when all are ready again, not with the first one
    if rollout.stage == "Bake":
        return 100 if has_all_pods(s) or dict(s.live_split).get(rollout.revision or "", 0) > 0 else 0
    if rollout.stage == "Promote":
        return 100 if has_all_pods(s) else reached(rollout.step) if rollout.step else 0
    if rollout.stage != "Canary" or rollout.step is None:
        return 0
    step = rollout.step
    if too_coarse(s):
        return 0
    return (
        step.previous_weight
        if step.phase == "Shifting" and s.spec is not None and not has_pods_for(Specified.of(s), step)
        else step.weight
    )


def header_revision(s: Observed) -> str | None:
    """The revision for requests with the headers of an A/B test, if one runs and has ready pods."""
    rollout = s.status.rollout
    tested = (
        rollout is not None
        and rollout.stage == "Canary"
        and rollout.step is not None
        and rollout.step.strategy == "ABTest"
    )
    if (
        not tested
        or s.spec is None
        or s.spec.rollout.ab_test is None
        or rollout is None
        or s.server(rollout.revision).ready == 0
    ):
        return None
    if first_weight(s) is not None:  # a header that all requests carry would send all of them
        return None
    return rollout.revision


def preview_revision(s: Observed) -> str | None:
    """The revision behind the preview's names: the one on trial, else stable, so that the names
    always resolve to a server.
    """
    rollout, stable = s.status.rollout, s.status.stable
    if s.spec is None or s.spec.rollout.blue_green is None or stable is None:
        return None
    shown = (
        rollout is not None
        and rollout.revision is not None
        and rollout.stage in ("Canary", "Promote", "Bake")
    )
    return rollout.revision if shown and rollout and s.server(rollout.revision).ready > 0 else stable.revision


def preview_host_revision(s: Observed) -> str | None:
    """The revision behind the preview's host names. None while a share of all requests has to prove
    the revision to a policy: a gateway counts by revision, so requests that a client sends to the
    preview would count, too.
    """
    rollout = s.status.rollout
    proves = (
        rollout is not None
        and rollout.stage == "Canary"
        and rollout.step is not None
        and rollout.step.weight > 0
    )
    return None if proves and first_weight(s) is not None else preview_revision(s)


def service_selector(s: Specified) -> str | None:
    """The revision behind the stable Service. Without a gateway both, until the new one can carry
    all traffic.
    """
    weights = split(s)
    if not weights:
        return None
    if s.exact_weights:
        return weights[0][0]
    arriving = (
        s.status.rollout is not None and s.status.rollout.stage == "Promote" and s.status.stable is not None
    )
    if len(weights) > 1 or (
        arriving
        and weights[0][0] == candidate_revision(s.status.rollout)
        and s.server(weights[0][0]).ready < pods_for_everything(s)
    ):
        return ALL_REVISIONS
    return weights[0][0]
