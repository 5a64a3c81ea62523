"""What applying a manifest would start: a rollout, other weights, more pods, nothing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import ModelDeploymentSpec, seconds
from modelrollout.cli.cluster import Revision, Rollout
from modelrollout.cli.verbs import in_flight, is_version
from modelrollout.rollout.snapshot import QUARANTINED, SERVED
from modelrollout.rollout.strategy import steps_of, strategy_of


def consequences(spec: ModelDeploymentSpec, live: Rollout | None, now: datetime) -> list[str]:
    """Lines: the fields that differ from the cluster's, and then what follows and why. ``live``:
    None where the cluster has no such object.
    """
    if live is None:
        return [
            "it is not in the cluster: the first version is prepared and gets all requests once its pods are"
            " ready"
        ]
    if live.spec is None:
        return ["the cluster's spec was written by another version of the operator and cannot be compared"]
    changed = list(_changes(live.spec, spec))
    return [*changed, *_what_follows(spec, live, bool(changed), now)]


def _what_follows(spec: ModelDeploymentSpec, live: Rollout, changed: bool, now: datetime) -> Iterable[str]:
    stable = live.revision(live.status.stable.revision if live.status.stable else None)
    flying = in_flight(live)
    on_trial = live.revision(flying.revision if flying else None)
    asked = spec.following(live.status.follow)
    known = next((r for r in live.revisions if is_version(r, asked)), None)
    if known is not None and on_trial is not None and known.name == on_trial.name:
        yield f"no new version: {known.name} is being rolled out" + ("; it goes on" if changed else "")
        return
    if flying is not None:
        name = flying.revision or "the version that is being resolved"
        yield f"the rollout of {name} ends as Superseded: stable gets all requests back"
    if known is not None and stable is not None and known.name == stable.name:
        yield f"no new version: {known.name} is stable"
        if live.spec is not None and spec.serving.replicas != live.spec.serving.replicas:
            yield f"stable gets {spec.serving.replicas} replicas"
        return
    if known is not None and known.status.outcome in QUARANTINED:
        yield (
            f"no rollout: {known.name} is this version and ended as {known.status.outcome}"
            f" ({known.status.reason}), so it is refused as Quarantined until a person says: modelrollout"
            f" retry {live.name} --revision {known.name}"
        )
        return
    if known is not None and _in_window(known, spec, now):
        yield f"goes back to {known.name} within rollbackWindow: nothing is analysed again"
        return
    what = f"{known.name}, which is kept," if known is not None else "a new version"
    if stable is None:
        yield f"{what} gets all requests once its pods are ready, since nothing is stable yet"
        return
    weights = ", ".join(str(s.weight) for s in steps_of(spec.rollout) if s.weight)
    strategy = strategy_of(spec.rollout)
    how = f"canary of {weights} %" if strategy == "Canary" else strategy
    shadow = "shadow, then " if spec.rollout.shadow else ""
    yield f"{what} is rolled out: {shadow}{how}, compared with {stable.name}"


def _in_window(known: Revision, spec: ModelDeploymentSpec, now: datetime) -> bool:
    window, last = spec.rollout.rollback_window, known.status.retired
    if window is None or last is None or known.status.outcome not in SERVED:
        return False
    try:
        return since(last, now) <= seconds(window)
    except ValueError:  # no time, whoever wrote it
        return False


def _changes(old: ModelDeploymentSpec, new: ModelDeploymentSpec) -> Iterable[str]:
    """A line for each field that differs, with whether it makes another version."""
    version = [
        "spec.model.sha256",
        *(at for at, *_ in _differing(old.user_input(), new.user_input(), "spec")),
    ]
    for path, before, after in _differing(old.wire(), new.wire(), "spec"):
        is_part = any(f"{path}.".startswith(f"{at}.") or f"{at}.".startswith(f"{path}.") for at in version)
        yield f"{path}: {_short(before)} -> {_short(after)}{' (part of the version)' if is_part else ''}"


def _differing(old: Any, new: Any, path: str) -> Iterable[tuple[str, Any, Any]]:
    """(path, old value, new value) of each leaf that differs; a list is a leaf."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _differing(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
