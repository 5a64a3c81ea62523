"""Recovers a lost or damaged status from its valid parts, the revisions and the live route.

A restore from Git or a backup brings no status, and people edit it. An empty status would roll the
present version out again, treat a refused version as new, and remove the pods of stable.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from modelrollout.analysis.process_groups import GROUP, GROUP_FIELDS
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import (
    FollowStatus,
    MetricStatus,
    ModelDeploymentStatus,
    RestartEvidence,
    RevisionRef,
    RolloutStatus,
)
from modelrollout.rollout.snapshot import SERVED, Observed, Revision
from modelrollout.rollout.stages import STAGES
from modelrollout.rollout.stages.resolve import RESOLVE
from modelrollout.rollout.transitions import begin, pinned
from modelrollout.rollout.views import AtStep, InShadow, Specified

_MOST = 1e18  # no counter of requests gets there, and arithmetic on it stays finite
_LAST_YEAR = 9000  # later timestamps overflow when a duration is added


def sanitize(status: ModelDeploymentStatus) -> ModelDeploymentStatus:
    """The status without invalid or contradictory parts, so that all other code may rely on it."""
    changes: dict[str, Any] = {}
    if status.stable is not None and not _is_time(status.stable.since):
        changes["stable"] = status.stable.model_copy(update={"since": None})
    drains = [d for d in status.draining if _is_time(d.until)]
    if drains != status.draining:
        changes["draining"] = drains
    if status.stable_down_since is not None and not _is_time(status.stable_down_since):
        changes["stable_down_since"] = None
    if status.follow is not None and not _is_followable(status.follow):
        changes["follow"] = None
    rollout = status.rollout
    if rollout is not None and not all(_is_usable(m) for e in rollout.history for m in e.metrics):
        history = [
            e if all(map(_is_usable, e.metrics)) else e.model_copy(update={"metrics": []})
            for e in rollout.history
        ]
        changes["rollout"] = rollout = rollout.model_copy(update={"history": history})
    if rollout is not None and not _is_consistent(status, rollout):
        changes["rollout"] = None
    elif rollout is not None and rollout.step is not None and not all(map(_is_usable, rollout.step.metrics)):
        # Counting starts again: that costs time and cannot prove anything wrong.
        changes["rollout"] = rollout.model_copy(
            update={"step": rollout.step.model_copy(update={"metrics": []})}
        )
    elif (
        rollout is not None
        and rollout.shadow is not None
        and rollout.shadow.metric is not None
        and not _is_usable(rollout.shadow.metric)
    ):
        changes["rollout"] = rollout.model_copy(
            update={"shadow": rollout.shadow.model_copy(update={"metric": None})}
        )
    rollout = changes.get("rollout", rollout)
    if rollout is not None and rollout.restarts is not None and not _is_countable(rollout.restarts):
        changes["rollout"] = rollout.model_copy(update={"restarts": None})
    if status.crash is not None and not _is_time(status.crash.at):
        changes["crash"] = None
    verbs = [entry for entry in status.handled_verbs if entry.count(":") >= 2]
    if verbs != status.handled_verbs:
        changes["handled_verbs"] = verbs
    return status.model_copy(update=changes) if changes else status


def _is_consistent(status: ModelDeploymentStatus, rollout: RolloutStatus) -> bool:
    step = rollout.step
    if step is not None and not (0 <= step.weight <= 100 and 0 <= step.previous_weight <= 100):
        return False
    times = [rollout.since, rollout.started]
    if step is not None:
        times += [step.since, *(t for t in (step.observed_since, step.measured) if t is not None)]
    if rollout.shadow is not None:
        times += [
            rollout.shadow.since,
            *(t for t in (rollout.shadow.observed_since, rollout.shadow.measured) if t is not None),
        ]
    if rollout.paused_by_user is not None:
        times.append(rollout.paused_by_user.since)
    if rollout.queue is not None:
        times += [
            rollout.queue.since,
            *([rollout.queue.gpu_shortage_since] if rollout.queue.gpu_shortage_since else []),
        ]
    if rollout.slot is not None:
        times.append(rollout.slot.since)
    if rollout.uncompared_since is not None:
        times.append(rollout.uncompared_since)
    if not all(map(_is_time, times)):
        return False
    if rollout.stage == "Failed":
        return rollout.outcome is not None and rollout.queue is None
    if rollout.stage == "Done":
        return status.stable is not None and rollout.queue is None
    stage = STAGES[rollout.stage]
    named = bool(rollout.revision and rollout.sha256) and rollout.number is not None
    return (
        (named or stage is RESOLVE)
        and (status.stable is not None or not stage.needs_stable)
        and (rollout.queue is None or stage.may_queue)
        and (step is not None or stage.view is not AtStep)
        and (rollout.shadow is not None or stage.view is not InShadow)
    )


def _is_followable(follow: FollowStatus) -> bool:
    """Whether what was seen of a source is usable: it names the version that is rolled out."""
    times = [t for t in (follow.seen, follow.checked, follow.looking) if t is not None]
    digest = follow.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", follow.sha256) is not None
    return digest and all(map(_is_time, times))


def _is_usable(metric: MetricStatus) -> bool:
    """Whether a stored measurement is usable: its timestamp, counts and per-process counters are
    all valid.
    """
    sides = (metric, metric.servers) if metric.servers is not None else (metric,)
    counters = [c for side in sides for c in (side.canary, side.stable) if c is not None]
    raw = [(name, numbers) for c in counters for name, numbers in c.last.items()]
    shaped = all(len(numbers) == (GROUP_FIELDS if name.startswith(GROUP) else 3) for name, numbers in raw)
    counts = all(0 <= c.bad <= c.total <= _MOST and all(0 <= v <= _MOST for v in c.spread) for c in counters)
    return shaped and counts and (metric.since is None or _is_time(metric.since))


def _is_countable(restarts: RestartEvidence) -> bool:
    """Whether stored ends of servers are usable: no number is negative, and the times are times."""
    sides = (restarts.canary, restarts.stable)
    numbers = [n for side in sides for n in (*side.counts.values(), *side.pods.values())]
    timed = all(side.at is None or _is_time(side.at) for side in sides)
    return timed and min([restarts.accepted, *numbers]) >= 0


def _is_time(text: str | None) -> bool:
    try:
        return (
            text is not None
            and (at := datetime.fromisoformat(text)).tzinfo is not None
            and at.year < _LAST_YEAR
        )
    except ValueError:
        return False


def recover(s: Specified, now: datetime) -> ModelDeploymentStatus | None:
    """The state that revisions and the live route show, if status names no existing stable revision
    although one has served; None if there is nothing to recover. A rollout in flight is dropped:
    its baseline is unknown.

    Stable is the revision with the highest weight in the route, preferring those known to have
    served; without a route the newest one whose outcome says so (read from its annotations if its
    own status is gone, too). Verbs on the objects count as handled.
    """
    if not s.revisions or not _is_lost(s):
        return None
    recovered = s.status.model_copy(
        update={
            "stable": None,
            "rollout": None,
            "last_number": max(s.status.last_number, *(r.number for r in s.revisions)),
            "handled_verbs": list(dict.fromkeys([*s.status.handled_verbs, *(v.key for v in s.verbs)])),
        }
    )
    stable = _serving(s) or _recorded(s)
    if stable is None:
        return recovered if recovered != s.status else None
    if stable.prepared is None:
        # Its evidence is gone and it has no pods: preparing it again finds the artifact in the
        # store, and it then takes all traffic.
        made = begin(
            s,
            now,
            "Prepare",
            mode="Rollback",
            sha256=stable.sha256,
            revision=stable.name,
            number=stable.number,
        )
        return recovered.model_copy(update={"rollout": made.rollout})
    update: dict[str, object] = {
        "stable": RevisionRef(revision=stable.name, number=stable.number, since=stamp(now))
    }
    if any(v.verb == "rollback" and v.revision == stable.name for v in s.verbs):
        update["pinned"] = pinned(s, stable.name)  # a person rolled back to it, so spec must not roll forward
    return recovered.model_copy(update=update)


def _is_lost(s: Observed) -> bool:
    """Whether status is not what the operator wrote last: a revision is recorded as stable only
    after status has named it.
    """
    stable, rollout = s.status.stable, s.status.rollout
    # a name that never existed; for a removed revision the route shows no other one
    if stable is not None:
        serving = _serving(s)
        return (
            s.revision(stable.revision) is None and serving is not None and serving.status.outcome in SERVED
        )
    if rollout is None:
        return True
    recorded = _recorded(s)
    if recorded is None:
        return False
    # ``recover`` itself begins a rollback to it
    return rollout.mode != "Rollback" or rollout.revision != (_serving(s) or recorded).name


def _serving(s: Observed) -> Revision | None:
    shares = [
        (revision, weight) for name, weight in s.live_split if weight > 0 and (revision := s.revision(name))
    ]
    return max(
        shares,
        key=lambda share: (share[0].status.outcome in SERVED, share[1], -share[0].number),
        default=(None, 0),
    )[0]


def _recorded(s: Observed) -> Revision | None:
    return max(
        (r for r in s.revisions if r.status.outcome in ("Stable", "Promoted")),
        key=lambda r: r.number,
        default=None,
    )
