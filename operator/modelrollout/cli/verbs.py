"""PURE: which annotation requests a verb, or why it cannot be requested.

docs/reference/verbs.md lists the verbs.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ModelDeploymentSpec,
    RevisionRef,
    RolloutStatus,
    VerbRecord,
    same_version,
)
from modelrollout.cli.cluster import Revision, Rollout
from modelrollout.cli.errors import Refused
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION, Resource

SERVED = ("Stable", "Promoted", "Retired")  # outcomes of revisions that can be rolled back to
_ENDED = ("Failed", "Done")


@dataclass(frozen=True)
class Request:
    """One annotation to set, and how status will name it once it is handled."""

    verb: str
    resource: Resource
    object_name: str
    value: str
    handled_key: str
    meaning: str

    def annotations(self, reason: str | None = None) -> dict[str, str | None]:
        """What to set; None removes the reason of an earlier request."""
        return {
            names.verb_annotation(self.verb): self.value,
            names.reason_annotation(self.verb): reason,
        }


def nonce() -> str:
    """Makes a request distinct from an earlier one of the same verb."""
    return secrets.token_hex(4)


def in_flight(rollout: Rollout) -> RolloutStatus | None:
    """The rollout that is under way, if any."""
    current = rollout.status.rollout
    return current if current is not None and current.stage not in _ENDED else None


def promote(rollout: Rollout, revision: str | None, token: str, *, full: bool = False) -> Request:
    """Move the rollout past the current step, or past the shadow, without its verdict; ``full``:
    past all steps, to all traffic.
    """
    flying, step = _on_trial(rollout, revision, "promote")
    if full and flying.stage == "Bake":
        raise Refused(
            f"nothing to promote in full: {flying.revision} has all traffic already; promote ends its bake"
        )
    assert flying.revision is not None
    if full:
        return _on_revision(
            "promote-full",
            flying.revision,
            token,
            step,
            f"promote {flying.revision} from step {step} to all traffic",
        )
    return _on_revision(
        "promote", flying.revision, token, step, f"promote {flying.revision} past step {step}"
    )


def pause(rollout: Rollout, revision: str | None, token: str) -> Request:
    """Pause the rollout at the weight that it has when the operator reads the request, whatever
    step that is.
    """
    flying, _ = _on_trial(rollout, revision, "pause")
    if flying.paused_by_user is not None:
        raise Refused(f"nothing to pause: {flying.revision} is paused already")
    assert flying.revision is not None
    return _on_revision("pause", flying.revision, token, None, f"pause {flying.revision}")


def resume(rollout: Rollout, revision: str | None, token: str) -> Request:
    """Resume a paused rollout."""
    flying, _ = _on_trial(rollout, revision, "resume")
    if flying.paused_by_user is None:
        raise Refused(f"nothing to resume: {flying.revision} is not paused")
    assert flying.revision is not None
    return _on_revision("resume", flying.revision, token, None, f"resume {flying.revision}")


def restart(rollout: Rollout, revision: str | None, token: str, *, allow_downtime: bool = False) -> Request:
    """Replace the pods of a revision, by default stable's, one after the other; ``allow_downtime``:
    each ends before its successor is created.
    """
    stable = rollout.status.stable
    if revision is None and stable is None:
        raise Refused("nothing to restart: no revision has become stable yet")
    name = (
        find_revision(rollout, revision).name if revision is not None else stable.revision if stable else ""
    )
    verb = "restart-allow-downtime" if allow_downtime else "restart"
    return _on_revision(verb, name, token, None, f"restart the pods of {name}")


def _on_trial(rollout: Rollout, revision: str | None, verb: str) -> tuple[RolloutStatus, str]:
    """The rollout in flight and the name of its step."""
    flying = in_flight(rollout)
    if flying is None:
        raise Refused(f"nothing to {verb}: {idle(rollout)}")
    if revision is not None and revision not in (flying.revision, str(flying.number)):
        raise Refused(
            f"nothing to {verb}: the revision in flight is {flying.revision or '(not resolved yet)'}, not"
            f" {revision}"
        )
    step = rollout.status.step
    if flying.stage == "Shadow" and verb != "promote":
        raise Refused(
            f"cannot {verb}: {flying.revision} is in stage Shadow, where clients get no answers from it;"
            " promote or abort it"
        )
    if flying.stage not in ("Shadow", "Canary", "Bake") or flying.revision is None or step is None:
        raise Refused(
            f"cannot {verb}: {flying.revision or rollout.name} is in stage {flying.stage};"
            f" {verb} needs a step of the stage Canary or Bake{', or Shadow' if verb == 'promote' else ''}"
        )
    return flying, step


def abort(rollout: Rollout, token: str) -> Request:
    """End the rollout in flight; stable gets all traffic back."""
    flying = in_flight(rollout)
    if flying is None:
        raise Refused(f"nothing to abort: {idle(rollout)}")
    if flying.stage == "Revert":
        raise Refused(f"nothing to abort: {flying.revision} is already going back to stable")
    return _on_either(
        "abort", rollout, flying.revision, token, f"abort the rollout of {flying.revision or rollout.name}"
    )


def retry(rollout: Rollout, revision: str | None, token: str) -> Request:
    """Retry a failed version, or the spec's version after a manual rollback."""
    flying = in_flight(rollout)
    if flying is not None:
        raise Refused(
            f"nothing to retry: {flying.revision or rollout.name} is in flight (stage {flying.stage}); abort"
            " it first"
        )
    target = find_revision(rollout, revision).name if revision is not None else _desired_revision(rollout)
    if target is None and (rollout.status.rollout is None or rollout.status.rollout.stage != "Failed"):
        raise Refused(f"nothing to retry: {idle(rollout)}")
    if target is not None and rollout.status.stable is not None and target == rollout.status.stable.revision:
        raise Refused(f"nothing to retry: {target} is stable")
    return _on_either("retry", rollout, target, token, f"try {target or rollout.name} again")


def rollback(rollout: Rollout, to: str | None, token: str) -> Request:
    """Return to an existing revision. Without ``to``, abort the rollout in flight; if there is
    none, return to the revision before stable.
    """
    stable = rollout.status.stable
    if to is None and in_flight(rollout) is not None:
        return abort(rollout, token)
    target = _target(rollout, to)
    if stable and target.name == stable.revision:
        if in_flight(rollout) is not None:
            return abort(rollout, token)
        raise Refused(f"nothing to roll back: {target.name} is stable already")
    return _on_revision(
        "rollback", target.name, token, None, f"roll back to {target.name} (number {target.spec.number})"
    )


def follow(rollout: Rollout, token: str) -> Request:
    """Look at the source again now, also where following has stopped."""
    if rollout.spec is not None and rollout.spec.model.follow is None:
        raise Refused("nothing to follow: spec.model.follow is not set")
    flying = in_flight(rollout)
    if flying is not None:
        raise Refused(
            f"cannot follow: {flying.revision or rollout.name} is in flight (stage {flying.stage}); it ends"
            " first"
        )
    # the request is about the source; it stands on a revision, which Git does not manage
    on = rollout.status.stable or max(
        (RevisionRef(revision=r.name, number=r.spec.number) for r in rollout.revisions),
        key=lambda ref: ref.number,
        default=None,
    )
    if on is None:
        raise Refused(f"nothing to follow yet: {idle(rollout)}; retry it")
    return _on_revision("follow", on.revision, token, None, f"look at the source of {rollout.name} again")


def _target(rollout: Rollout, to: str | None) -> Revision:
    """Stable itself, or a revision that was stable once."""
    stable = rollout.status.stable
    candidates = [
        r
        for r in rollout.revisions
        if r.status.outcome in SERVED and not (stable and r.name == stable.revision)
    ]
    if to is not None:
        target = find_revision(rollout, to)
        if target in candidates or (stable and target.name == stable.revision):
            return target
        raise Refused(
            f"{target.name} never served as stable (outcome {target.status.outcome}); {_choices(candidates)}"
        )
    if stable is None:
        raise Refused("nothing to roll back: no revision has become stable yet")
    if not candidates:
        raise Refused(
            f"nothing to roll back to: no other revision that has served exists; {_choices(candidates)}"
        )
    return max(candidates, key=_served_last)


def _served_last(revision: Revision) -> tuple[bool, str, int]:
    """Sorts by when it was last stable: numbers only say when a version was made. One that a person
    or a revert in Git went back from, which has no such time, comes after all others.
    """
    status = revision.status
    return status.retired is not None, status.retired or status.finished or "", revision.spec.number


def answer(handled: Sequence[str], request: Request) -> tuple[bool, str | None]:
    """Whether the operator has handled the request, and why it refused if it did."""
    for entry in handled:
        if entry == request.handled_key:
            return True, None
        if entry.startswith(f"{request.handled_key}:"):
            return True, entry[len(request.handled_key) + 1 :].removeprefix("refused ")
    return False, None


def by_hand(verb: VerbRecord) -> str:
    """``promote 2/4 by alice: the labels were wrong``, as far as it is known."""
    said = " ".join(filter(None, (verb.verb, verb.step, verb.by and f"by {verb.by}")))
    return f"{said}: {verb.reason}" if verb.reason else said


def idle(rollout: Rollout) -> str:
    """Why no rollout is in flight, in a few words."""
    last, stable = rollout.status.rollout, rollout.status.stable
    if last is not None and last.stage == "Failed":
        return (
            f"the rollout of {last.revision or rollout.name} has ended"
            f" ({last.reason or last.outcome or 'Failed'})"
        )
    if stable is not None:
        return f"{stable.revision} is stable and no rollout is in flight"
    return "the operator has not begun a rollout yet"


def _desired_revision(rollout: Rollout) -> str | None:
    """The revision of the version that spec asks for; None when there is none, as after a failure
    in Resolve.
    """
    last = rollout.status.rollout
    if last is not None and last.stage == "Failed" and last.mode == "Update":
        return last.revision
    if rollout.spec is None:
        return None
    asked = rollout.spec.following(rollout.status.follow)
    return next((r.name for r in rollout.revisions if is_version(r, asked)), None)


def is_version(revision: Revision, spec: ModelDeploymentSpec) -> bool:
    """Whether the spec asks for the version of that revision."""
    if spec.model.sha256 not in (None, revision.spec.sha256):
        return False
    try:
        return same_version(dict(revision.spec.input), spec.user_input())
    except (ValidationError, KeyError):  # a version of the API that this command line cannot read
        return False


def find_revision(rollout: Rollout, name_or_number: str) -> Revision:
    """By name or by number."""
    revision = next((r for r in rollout.revisions if name_or_number in (r.name, str(r.spec.number))), None)
    if revision is None:
        existing = ", ".join(r.name for r in rollout.revisions) or "none"
        raise Refused(f"{rollout.name} has no revision {name_or_number!r}; existing revisions: {existing}")
    return revision


def _choices(candidates: Sequence[Revision]) -> str:
    return (
        f"possible: {', '.join(r.name for r in candidates)}" if candidates else "no other revision has served"
    )


def _on_revision(verb: str, revision: str, token: str, step: str | None, meaning: str) -> Request:
    value = f"{step} {token}" if step else token
    return Request(verb, MODEL_REVISION, revision, value, f"{verb}:{revision}:{token}", meaning)


def _on_either(verb: str, rollout: Rollout, revision: str | None, token: str, meaning: str) -> Request:
    """On the ModelDeployment only where there is no revision yet: Git manages that object, and may
    take the annotation away.
    """
    if revision is not None:
        return _on_revision(verb, revision, token, None, meaning)
    return Request(verb, MODEL_DEPLOYMENT, rollout.name, token, f"{verb}::{token}", meaning)
