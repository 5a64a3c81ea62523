"""The transitions of the state machine, each a function from state to state. Only these write
``status.rollout``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from modelrollout.api import names
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Draining,
    FollowStatus,
    MetricStatus,
    ModelDeploymentStatus,
    Outcome,
    Pause,
    Pinned,
    RevisionRef,
    RolloutStatus,
    ServerCounts,
    Stage,
    StepEvidence,
    StepStatus,
    Strategy,
    VerdictName,
    seconds,
)
from modelrollout.reasons import Reason
from modelrollout.rollout.snapshot import Observed, Revision, active_in_place, rollout_of, step_of
from modelrollout.rollout.views import Specified

SHADOW_STEP = "shadow"  # how status and verbs name the shadow where they name a step
MAX_HISTORY = 32
MAX_HISTORY_BYTES = 8 * 1024  # status as a whole stays below 32 KiB
MAX_CARRIED_BYTES = 4 * 1024  # of log evidence beyond that, which later steps build on
MAX_MESSAGE = 1024
MAX_VERBS = 8  # records of verbs that a rollout and a revision keep


def input_hash(s: Specified) -> str:
    """Hash of the version that spec requests, before a revision exists."""
    return _hash_with(s, s.spec.user_input())


def is_requested(s: Specified, recorded: str) -> bool:
    """Whether spec requests the version of that ``input_hash``, perhaps an earlier operator's."""
    return recorded == input_hash(s) or recorded == _hash_with(s, s.spec.user_input_as_written())


def _hash_with(s: Specified, user_input: dict[str, Any]) -> str:
    return names.short_hash([user_input, s.spec.model.sha256])


def cut(text: str, limit: int = MAX_MESSAGE) -> str:
    """A message of bounded length: those of pods, gateways and Jobs are not."""
    limit = min(limit, MAX_MESSAGE)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bounded(changes: dict[str, Any]) -> dict[str, Any]:
    return changes | {"message": cut(changes["message"])} if changes.get("message") else changes


def pinned(s: Specified, revision: str) -> Pinned:
    """A pin at ``revision`` that blocks the version in spec."""
    against = known_version(s)
    return Pinned(
        revision=revision,
        generation=s.generation,
        rolled_back_from=against.name if against else None,
        input_hash=input_hash(s),
    )


def is_pinned(s: Observed) -> bool:
    """Whether a pin is in force: spec still requests the version that a person rolled back from.
    Replicas set by an autoscaler do not release it.
    """
    pinned = s.status.pinned
    if pinned is None or s.spec is None:
        return False
    against = s.revision(pinned.rolled_back_from)
    return against.is_version(s.spec) if against else is_requested(Specified.of(s), pinned.input_hash)


def is_still_requested(s: Specified, rollout: RolloutStatus) -> bool:
    """Whether spec asks for what the rollout in flight brings."""
    revision = s.revision(rollout.revision)
    if rollout.mode == "Rollback":
        if s.status.pinned:
            return is_pinned(s)
        return rollout.generation == s.generation or (revision is not None and revision.is_version(s.spec))
    if revision is not None:
        return revision.is_version(s.spec)
    return is_requested(s, rollout.input_hash)


def has_failed_for_spec(s: Specified) -> bool:
    """Whether the last rollout failed with the version that spec still asks for, so that no other
    begins by itself. One that made way for another version has not failed.
    """
    rollout = s.status.rollout
    if rollout is None or rollout.stage != "Failed" or rollout.outcome == "Superseded":
        return False
    if rollout.revision is None:
        return is_requested(s, rollout.input_hash)
    known = known_version(s)
    return known is not None and rollout.revision == known.name


def enter(
    status: ModelDeploymentStatus, stage: Stage, now: datetime, **changes: Any
) -> ModelDeploymentStatus:
    """Go to a stage, and add up the time that the previous one took."""
    rollout = rollout_of(status)
    spent = dict(rollout.stages)
    spent[rollout.stage] = round(spent.get(rollout.stage, 0.0) + since(rollout.since, now), 3)
    moved = rollout.model_copy(
        update={
            "stage": stage,
            "since": stamp(now),
            "stages": spent,
            "queue": None,
            "reason": None,
            "message": None,
            **_bounded(changes),
        }
    )
    return status.model_copy(update={"rollout": moved})


def change(status: ModelDeploymentStatus, **changes: Any) -> ModelDeploymentStatus:
    """Change the rollout within its stage."""
    rollout = rollout_of(status).model_copy(update=_bounded(changes))
    return status.model_copy(update={"rollout": rollout})


def begin(s: Specified, now: datetime, stage: Stage, **changes: Any) -> ModelDeploymentStatus:
    """A new rollout."""
    rollout = RolloutStatus(
        stage=stage,
        since=stamp(now),
        started=stamp(now),
        generation=s.generation,
        input_hash=input_hash(s),
        **changes,
    )
    return s.status.model_copy(update={"rollout": rollout, "pinned": None})


def begin_rollback(s: Specified, target: Revision, now: datetime, *, proven: bool) -> ModelDeploymentStatus:
    """A new rollout back to a revision that is prepared and has served. ``proven``: its evidence
    still counts, so that nothing is analysed again.
    """
    status = begin(
        s,
        now,
        "Provision",
        mode="Rollback",
        proven=proven,
        sha256=target.sha256,
        revision=target.name,
        number=target.number,
        artifact=target.status.artifact,
        evaluation=target.status.evaluation,
    )
    # its pods are created again
    restarts = {name: record for name, record in status.restarts.items() if name != target.name}
    return status.model_copy(update={"restarts": restarts})


def allocate(
    s: Specified, status: ModelDeploymentStatus, sha256: str, now: datetime
) -> ModelDeploymentStatus:
    """Go to Prepare with the version's revision: the known one, or a new name and number."""
    name = names.revision_name(s.namespace, s.name, s.spec.user_input(), sha256)
    known = s.revision(name) or next(
        (r for r in s.revisions if r.sha256 == sha256 and r.is_version(s.spec)), None
    )
    if known is not None:
        return enter(status, "Prepare", now, sha256=sha256, revision=known.name, number=known.number)
    number = max([status.last_number, *(r.number for r in s.revisions)]) + 1
    return enter(
        status.model_copy(update={"last_number": number}),
        "Prepare",
        now,
        sha256=sha256,
        revision=name,
        number=number,
    )


def fail(
    status: ModelDeploymentStatus, now: datetime, outcome: Outcome, reason: str, message: str
) -> ModelDeploymentStatus:
    """End the rollout. Only for stages without traffic (else ``revert``)."""
    return enter(
        status, "Failed", now, outcome=outcome, reason=reason, message=message, step=None, paused_by_user=None
    )


def revert(
    status: ModelDeploymentStatus, now: datetime, outcome: Outcome, reason: str, message: str
) -> ModelDeploymentStatus:
    """Give all traffic back to stable; the rollout ends as Failed once the data plane has taken
    that up.
    """
    return enter(status, "Revert", now, outcome=outcome, reason=reason, message=message, paused_by_user=None)


def fail_first(
    s: Observed, now: datetime, outcome: Outcome, reason: str, message: str
) -> ModelDeploymentStatus:
    """End the rollout of a first version in Promote: there is no stable revision to give the
    traffic to, so its route goes, and its pods stay until the data plane has had time to forget
    them.
    """
    rollout = rollout_of(s.status)
    failed = fail(s.status, now, outcome, reason, message)
    return retire(failed, rollout.revision, rollout.number, now, s.settle_seconds)


def retire(
    status: ModelDeploymentStatus,
    revision: str | None,
    number: int | None,
    now: datetime,
    keep: float,
    *,
    unconfirmed: bool = False,
) -> ModelDeploymentStatus:
    """Keep the pods of a revision that has just lost its traffic for ``keep`` seconds, so that
    connections drain and proxies learn of it; if ``unconfirmed``, until the data plane confirms it
    (``decide.confirm_drained``).
    """
    if revision is None or number is None:
        return status
    others = [
        d
        for d in status.draining
        if (d.unconfirmed or datetime.fromisoformat(d.until) > now) and d.revision != revision
    ]
    until = stamp(now + timedelta(seconds=keep))
    gone = Draining(revision=revision, number=number, until=until, unconfirmed=unconfirmed or None)
    return status.model_copy(update={"draining": [*others, gone]})


def scale_down_delay(s: Observed) -> float:
    """Seconds that a former stable keeps its pods after it has lost its traffic."""
    delay = s.spec.rollout.scale_down_delay if s.spec else None
    return max(s.settle_seconds, seconds(delay) if delay else 0.0)


def succeed(
    s: Observed, status: ModelDeploymentStatus, now: datetime, outcome: Outcome
) -> ModelDeploymentStatus:
    """The revision is stable; the former stable one retires."""
    rollout, former = rollout_of(status), status.stable
    assert rollout.revision is not None and rollout.number is not None
    done = enter(status, "Done", now, outcome=outcome, step=None, paused_by_user=None)
    done = done.model_copy(
        update={
            "stable": RevisionRef(revision=rollout.revision, number=rollout.number, since=stamp(now)),
            "draining": [d for d in status.draining if d.revision != rollout.revision],
        }
    )
    if former is None or former.revision == rollout.revision:
        return done
    # In place the new revision waits for the GPUs of the former one.
    keep = scale_down_delay(s) if active_in_place(status) is None else s.settle_seconds
    return retire(done, former.revision, former.number, now, keep)


def reached(step: StepStatus) -> int:
    """The last weight backed by ready pods: the previous step's while this one is still
    shifting.
    """
    return step.previous_weight if step.phase == "Shifting" else step.weight


def weight(status: ModelDeploymentStatus) -> int:
    """Percent of the requests that the state gives to the revision in flight."""
    rollout = status.rollout
    if rollout is None or rollout.stage in ("Failed", "Done"):
        return 0
    if rollout.stage in ("Promote", "Bake"):
        return 100
    if rollout.stage != "Canary" or rollout.step is None:
        return 0
    return rollout.step.weight or (1 if rollout.step.strategy == "ABTest" else 0)


def at_step(
    status: ModelDeploymentStatus,
    index: int,
    weight: int,
    now: datetime,
    *,
    strategy: Strategy,
    pause: Pause | None = None,
    override: str | None = None,
) -> ModelDeploymentStatus:
    """Go to a step of the strategy. ``pause``: of a pause step, which says in status how it
    ends.
    """
    before = rollout_of(status).step
    step = StepStatus(
        index=index,
        weight=weight,
        strategy=strategy,
        previous_weight=min(reached(before), weight) if before else 0,
        phase="Paused" if pause else "Shifting",
        since=stamp(now),
        override=override,
    )
    reason, message = None, None
    if pause is not None:
        how = f"it goes on after {pause.duration}" if pause.duration else "it waits for promote"
        reason, message = Reason.PAUSE_STEP, f"a pause step: {how}"
    return change(status, step=step, reason=reason, message=message, paused_by_user=None)


def record(
    status: ModelDeploymentStatus,
    verdict: VerdictName,
    reason: str,
    now: datetime,
    next_weight: int | None = None,
) -> ModelDeploymentStatus:
    """Add the verdict on the present step to the rollout's history, without the raw counters.
    ``next_weight``: the weight that a person approved with it.
    """
    rollout, step = rollout_of(status), step_of(status)
    without_counters: dict[str, Any] = {"last": {}, "scraped": None}
    without_any = without_counters | {"spread": []}

    def of_servers(counts: ServerCounts) -> ServerCounts:
        sides = ((name, getattr(counts, name)) for name in ("canary", "stable"))
        return counts.model_copy(update={n: c and c.model_copy(update=without_any) for n, c in sides})

    metrics = [
        m.model_copy(
            update={
                "canary": m.canary.model_copy(update=without_any) if m.canary else None,
                "stable": m.stable.model_copy(update=without_counters) if m.stable else None,
                "servers": of_servers(m.servers) if m.servers else None,
            }
        )
        for m in step.metrics
    ]
    evidence = StepEvidence(
        index=step.index,
        weight=step.weight,
        verdict=verdict,
        reason=reason,
        seconds=round(since(step.since, now), 3),
        next_weight=next_weight,
        metrics=metrics,
    )
    return change(status, history=_within_bounds([*rollout.history, evidence][-MAX_HISTORY:]))


def _within_bounds(history: list[StepEvidence]) -> list[StepEvidence]:
    """Keeps all verdicts, and drops the numbers behind older ones if there are too many; the log
    evidence that later steps build on is dropped last.
    """
    bounded: list[StepEvidence] = []
    room, more = MAX_HISTORY_BYTES, MAX_CARRIED_BYTES
    for evidence in reversed(history):
        room -= _size(evidence)
        if room < 0 and bounded:
            evidence = evidence.model_copy(update={"metrics": _evidence_only(evidence.metrics)})
            more -= _size(evidence)
        bounded.append(evidence if more >= 0 else evidence.model_copy(update={"metrics": []}))
    return bounded[::-1]


def _size(evidence: StepEvidence) -> int:
    return len(evidence.model_dump_json(by_alias=True, exclude_none=True))


def _evidence_only(metrics: list[MetricStatus]) -> list[MetricStatus]:
    return [
        MetricStatus(name=m.name, verdict=m.verdict, reason=m.reason, log_evidence=m.log_evidence)
        for m in metrics
        if m.log_evidence is not None
    ]


def known_version(s: Specified) -> Revision | None:
    """The newest kept revision of the version that spec requests."""
    return max((r for r in s.revisions if r.is_version(s.spec)), key=lambda r: r.number, default=None)


def seen_at(follow: FollowStatus, sha256: str, etag: str | None, at: str) -> FollowStatus:
    """What is known of a source that is followed after a look that began at that time."""
    return follow.model_copy(
        update={
            "sha256": sha256,
            "etag": etag,
            "seen": follow.seen if follow.sha256 == sha256 and follow.seen else at,
            "checked": at,
            "looking": None,
            "reason": None,
            "message": None,
        }
    )
