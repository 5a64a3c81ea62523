"""Metrics that policies require: up to ``maxFirstWeight`` the spec decides, beyond it the policies.

Whatever strategy, steps and ``onInconclusive`` say: no weight rises beyond it, and nothing is
promoted, without a Successful verdict of every mandatory metric at the previous weight. Lowering a
weight, returning to a version within its window, and a person's verbs are not blocked.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, Step, seconds
from modelrollout.rollout import strategy
from modelrollout.rollout.snapshot import Observed, Revision, in_flight, predecessor
from modelrollout.rollout.transitions import weight
from modelrollout.rollout.views import Specified


def first_weight(s: Observed) -> int | None:
    """Percent that a revision may have before the mandatory metrics have proven it; None if the one
    in flight needs no proof, since it has served within the rollback window.
    """
    rollout = s.status.rollout
    if s.rules.first_weight is None or rollout is None or not in_flight(rollout):
        return s.rules.first_weight
    goes_back = is_return(s, s.revision(rollout.revision), datetime.fromisoformat(rollout.started))
    return None if rollout.mode == "Rollback" or goes_back else s.rules.first_weight


def is_return(s: Observed, target: Revision | None, now: datetime) -> bool:
    """Whether it was stable within the rollback window, for the clients of the present host
    names. Not with other bytes where spec follows its source: whoever writes there is not the one
    who reverts a commit, so older bytes are judged like any others.
    """
    last = target.status.retired if target is not None else None
    if target is None or last is None or not within_window(s, target, now):
        return False
    if s.spec is not None and s.spec.model.follow is not None and not _has_bytes_of_stable(s, target):
        return False
    return s.names_since is None or datetime.fromisoformat(last) >= s.names_since


def _has_bytes_of_stable(s: Observed, target: Revision) -> bool:
    stable = s.revision(s.status.stable.revision) if s.status.stable else None
    return stable is not None and stable.sha256 == target.sha256


def within_window(s: Observed, target: Revision, now: datetime) -> bool:
    """Whether the revision's evidence still counts: always without a window, and never if it is
    unknown when the revision was last stable.
    """
    window, last = (
        (s.spec.rollout.rollback_window if s.spec else None),
        target.status.retired or target.status.finished,
    )
    return window is None or (last is not None and since(last, now) <= seconds(window))


def steps_of(s: Specified) -> list[Step]:
    """The steps of the strategy, with one of the first weight before any larger one."""
    return strategy.steps_of(s.spec.rollout, first_weight(s))


def unproven_weight(s: Observed, status: ModelDeploymentStatus) -> str | None:
    """Why the weight in ``status`` is not allowed yet, for a message; None if it is."""
    rollout, most = status.rollout, first_weight(s)
    if (
        rollout is None
        or most is None
        or predecessor(s) is None
        or weight(status) <= max(most, weight(s.status))
    ):
        return None
    last = rollout.history[-1] if rollout.history else None
    # requests to a preview prove nothing about all requests
    shared = last is not None and last.weight > 0
    requested = weight(status)
    proven = (
        {
            m.name
            for m in last.metrics
            if m.verdict == "Successful" and (m.next_weight or requested) >= requested
        }
        if last and shared
        else set()
    )
    missing = sorted({m.name for m in s.rules.mandatory if not m.dry_run} - proven)
    if not missing:
        return None
    policies = ", ".join(
        name for name, gates in s.rules.gates if any(m.name in missing for m in gates.metrics or ())
    )
    cap = (
        f"RolloutPolicy {policies} (gates.metrics) gives no more than {most} % without a verdict of"
        f" {', '.join(missing)}"
    )
    return f"{cap}; promote by hand, or abort"


def too_coarse(s: Observed) -> bool:
    """Without a gateway: whether the share of ready pods would exceed the first weight."""
    rollout, stable, most = s.status.rollout, s.status.stable, first_weight(s)
    if (
        s.exact_weights
        or most is None
        or stable is None
        or rollout is None
        or rollout.step is None
        or rollout.step.weight > most
    ):
        return False
    old, new = s.server(stable.revision).ready, s.server(rollout.revision).ready
    return 100 * new > most * (old + new)
