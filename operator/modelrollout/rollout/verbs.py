"""promote, abort, retry, rollback: what a person asked, carried out once or refused with a reason (docs/verbs.md)."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.rollout import steps as stepping
from modelrollout.rollout.facts import Event, Snapshot, Verb, in_flight
from modelrollout.rollout.stages.canary import advance
from modelrollout.rollout.stages.move import Move
from modelrollout.rollout.stages.onward import in_shadow
from modelrollout.rollout.transitions import SHADOW_STEP, allocate, begin, fail, pin, record, revert

_TELL = 32  # refusals that are kept with their reason; of older ones only the key stays
_MAX_REFUSAL = 200


def unhandled(s: Snapshot) -> Verb | None:
    """The first verb that status does not know yet."""
    known = {":".join(entry.split(":", 3)[:3]) for entry in s.status.handled_verbs}
    return next((v for v in s.verbs if v.key not in known), None)


def carry_out(s: Snapshot, verb: Verb, now: datetime) -> Move | None:
    """The move that the verb asks for; None while it has to wait for a rollout that ends first."""
    if s.spec is None:
        return None
    refusal, move = _ACTIONS[verb.verb](s, verb, now)
    if refusal:
        refusal = refusal[:_MAX_REFUSAL]
        return Move(_handled(s, s.status, f"{verb.key}:refused {refusal}"), (Event("VerbRefused", f"{verb.verb}: {refusal}", "Warning"),))
    if move is None:
        return None
    if in_flight(s.status.rollout) and verb.verb == "rollback":
        return move  # first the rollout in flight ends; the verb stays and is carried out then
    return Move(_handled(s, move.status, verb.key), move.events, move.requeue_after)


def _handled(s: Snapshot, status: ModelDeploymentStatus, entry: str) -> ModelDeploymentStatus:
    """Remember the verb as long as its revision exists: the annotation stays on it."""
    alive = {r.name for r in s.revisions} | {""}
    slot = entry.split(":", 2)[:2]
    kept = [e for e in status.handled_verbs if e.split(":", 2)[1] in alive and e.split(":", 2)[:2] != slot]
    # None is dropped: the verb would be carried out again. There is one for each verb and revision that exists.
    older = [":".join(e.split(":", 3)[:3]) for e in kept[: -(_TELL - 1)]]
    return status.model_copy(update={"handled_verbs": [*older, *kept[-(_TELL - 1) :], entry]})


_Answer = tuple[str | None, Move | None]


def _promote(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    rollout = s.status.rollout
    if rollout is not None and rollout.stage == "Shadow" and rollout.revision == verb.revision:
        return _past_shadow(s, verb, now)
    if rollout is None or rollout.stage != "Canary" or rollout.step is None or rollout.revision != verb.revision:
        return f"{verb.revision} is not in a canary step", None
    assert s.spec is not None
    steps = s.spec.rollout.canary.steps
    position = stepping.locate(steps, rollout.step)
    present = stepping.label(steps, position)
    if verb.step != present:
        return f"it means step {verb.step or '(none)'}, the rollout is at step {present}", None
    override = f"promote {verb.nonce[:64]} at {present}"
    status = record(s.status, "Inconclusive", "PromotedByUser", now)
    return None, Move(
        advance(s, status, position, now, override), (Event("PromotedByUser", f"step {present} of {verb.revision} was promoted by hand"),)
    )


def _past_shadow(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    rollout = s.status.rollout
    assert rollout is not None and rollout.shadow is not None
    if verb.step != SHADOW_STEP:
        return f"it means step {verb.step or '(none)'}, the rollout is in {SHADOW_STEP}", None
    if rollout.shadow.phase == "Leaving":
        return "the shadow has ended already", None
    left = in_shadow(s.status, "Leaving", now, override=f"promote {verb.nonce[:64]} at {SHADOW_STEP}")
    return None, Move(left, (Event("PromotedByUser", f"{verb.revision} was promoted past its shadow by hand"),))


def _abort(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    rollout = s.status.rollout
    if rollout is None or not in_flight(rollout) or (verb.revision and rollout.revision != verb.revision):
        return f"no rollout of {verb.revision} is in flight", None
    if rollout.stage == "Revert":
        return "the rollout is being taken back already", None
    return None, _end(s, now, "AbortedByUser", "aborted by hand")


def _end(s: Snapshot, now: datetime, reason: str, message: str) -> Move:
    rollout = s.status.rollout
    assert rollout is not None
    end = revert if rollout.stage in ("Shadow", "Canary", "Promote") and s.status.stable else fail
    return Move(end(s.status, now, "Aborted", reason, message), (Event(reason, message),))


def _retry(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    assert s.spec is not None
    if in_flight(s.status.rollout):
        return "a rollout is in flight; abort it first", None
    if s.refusal:
        return s.refusal.message, None
    if not verb.revision:
        stable, sha256 = s.revision(s.status.stable.revision if s.status.stable else None), s.spec.model.sha256
        if sha256 and stable is not None and stable.is_version(s.spec):
            return f"{stable.name} is stable", None
        begun = begin(s, now, "Resolve")
        again = allocate(s, begun, sha256, now) if sha256 else begun
        return None, Move(again, (Event("RetriedByUser", "the source is resolved again"),))
    revision = s.revision(verb.revision)
    if revision is None or not revision.is_version(s.spec):
        return f"spec asks for another version than {verb.revision}", None
    if s.status.stable and s.status.stable.revision == verb.revision:
        return f"{verb.revision} is stable", None
    status = begin(s, now, "Prepare", sha256=revision.sha256, revision=revision.name, number=revision.number)
    return None, Move(status, (Event("RetriedByUser", f"revision {verb.revision} is tried again"),))


def _rollback(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    target = s.revision(verb.revision)
    if target is None:
        return f"there is no revision {verb.revision}", None
    if s.status.stable and s.status.stable.revision == verb.revision and not in_flight(s.status.rollout):
        return f"{verb.revision} is stable already", None
    if target.prepared is None:
        return f"{verb.revision} was never prepared; apply its version as spec instead", None
    if target.status.outcome not in ("Stable", "Promoted", "Retired"):
        return f"{verb.revision} never served as stable (outcome {target.status.outcome})", None
    rollout = s.status.rollout
    if in_flight(rollout):
        assert rollout is not None
        if rollout.stage == "Revert":
            return None, None
        if rollout.mode == "Rollback" and rollout.revision == verb.revision:
            return f"a rollback to {verb.revision} is in flight already", None
        return None, _end(s, now, "RolledBackByUser", f"ended in favour of a rollback to {verb.revision}")
    status = begin(
        s,
        now,
        "Provision",
        mode="Rollback",
        sha256=target.sha256,
        revision=target.name,
        number=target.number,
        artifact=target.status.artifact,
        evaluation=target.status.evaluation,
    )
    status = status.model_copy(update={"pinned": pin(s, target.name)})
    return None, Move(status, (Event("RolledBackByUser", f"going back to revision {verb.revision}"),))


_ACTIONS = {"promote": _promote, "abort": _abort, "retry": _retry, "rollback": _rollback}
