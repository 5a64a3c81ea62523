"""What people and tools read in status: phase, conditions (kstatus) and columns. All of it is
derived from the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Literal

from modelrollout.api import names
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Address,
    Condition,
    CrashStatus,
    ModelDeploymentStatus,
    Phase,
    RolloutStatus,
    Stage,
    Strategy,
    seconds,
)
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.dead_stable import down_since, seconds_until_outage
from modelrollout.rollout.desired.pods import real_share
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.follow import following
from modelrollout.rollout.plan import Event
from modelrollout.rollout.pod_restarts import (
    TOO_OLD,
    TOO_OLD_WHY,
    mark_finished,
    unhardened_revisions,
    waiting_restart,
)
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.policy.rules import Freeze, active_freeze
from modelrollout.rollout.policy.slot_limits import waiting_replicas
from modelrollout.rollout.security_bulletins import known_flaws
from modelrollout.rollout.snapshot import (
    NAME_TAKEN,
    TRAFFIC_REFUSALS,
    UNCARRIED,
    Snapshot,
    in_flight,
    is_paused_for_cause,
    serving_revision,
)
from modelrollout.rollout.stages import STAGES
from modelrollout.rollout.stages.waiting import data_plane_problem
from modelrollout.rollout.transitions import (
    SHADOW_STEP,
    cut,
    has_failed_for_spec,
    is_pinned,
    is_still_requested,
)
from modelrollout.rollout.views import Specified

_PHASE_OF_TRIAL: dict[Strategy, Phase] = {"Canary": "Canary", "BlueGreen": "Previewing", "ABTest": "Testing"}
HEALTHY, HARDENED, ISOLATED = "ServersHealthy", "Hardened", "Isolated"
RESTARTED, PATCHED, VERIFIED, DRAINED = "Restarted", "Patched", "EvidenceVerified", "Drained"
COUNTED = "CountedByGateway"
FOLLOWING = "Following"
DRAIN = "DrainCurrent"
_WELL = {
    HEALTHY: "all servers answer again",
    HARDENED: "the servers accept management requests from the kubelet only",
    ISOLATED: "the NetworkPolicies match the operator's configuration",
    RESTARTED: "all pods of the revision were replaced",
    PATCHED: "the servers' version has no known flaws",
    DRAINED: "the data plane carries the present routes, and the pods of the last rollout go",
}
# a gateway that is only about to answer is no news for clients
SILENCE_SECONDS = 60.0
_UNAVAILABLE = {*UNCARRIED, Reason.TRAFFIC_UNCONFIRMED}  # of a stable revision with ready pods
_NEWS_SECONDS = 600.0  # older crashes post no event: the operator has only just started
_ZERO = "spec.serving.replicas is 0, so no pod serves"
_PAUSED = "paused by hand; resume, promote or abort"
_CLIMBING = {"Shadow", "Canary"}  # what a freeze holds in a rollout that has begun
_Truth = Literal["True", "False", "Unknown"]
_Row = tuple[str, _Truth, str, str]


def derive_status(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """The status with all derived fields filled in; the observed one if nothing changed."""
    status = mark_finished(s, status)
    rollout = status.rollout
    loaded = serving_revision(status)  # what an autoscaler scales
    server = s.server(loaded.revision) if loaded else None
    flying = in_flight(rollout)
    address = f"{s.name}.{s.namespace}.svc"
    selector = {names.LABEL_NAME: s.name, names.LABEL_COMPONENT: names.COMPONENT_SERVER}
    step = rollout.step if rollout else None
    verdict: str | None = None
    label: str | None = None
    weight: int | None = None
    if rollout and rollout.stage in ("Canary", "Bake") and step and s.spec:
        label = strategy.step_label(rollout.stage, step, steps_of(Specified.of(s)))
        weight = step.weight
        verdict = rollout.reason or "in progress"
    elif rollout and rollout.stage == "Shadow":
        label, weight = SHADOW_STEP, 0
        verdict = rollout.reason or "in progress"
    elif rollout and rollout.stage == "Revert":
        verdict = rollout.reason
    phase = _phase(s, status)
    if phase == "Failed":  # of an earlier rollout nothing is shown once spec is the stable revision
        verdict = problem.reason if (problem := _problem(s, status)) else None
    return status.model_copy(
        update={
            "observed_generation": s.generation,
            "phase": phase,
            "conditions": _conditions(s, status, now),
            "crash": _crash(s, status),
            "address": (
                Address(url=f"http://{address}:{names.PORT_HTTP}", grpc=f"{address}:{names.PORT_GRPC}")
                if status.stable
                else None
            ),
            "replicas": server.replicas if server else 0,
            "ready_replicas": server.ready if server else 0,
            "stable_down_since": down_since(s, status, now),
            "selector": (
                ",".join(f"{k}={v}" for k, v in (selector | {names.LABEL_REVISION: loaded.revision}).items())
                if loaded
                else ""
            ),
            "policies": list(s.rules.names) or None,
            "defaults": dict(s.rules.defaults) or None,
            "canary": rollout.revision if rollout and flying else None,
            "weight": weight,
            "share": real_share(replace(s, status=status)),
            "step": label,
            "verdict": verdict,
        }
    )


def _phase(s: Snapshot, status: ModelDeploymentStatus) -> Phase:
    rollout = status.rollout
    if rollout is None:
        return "Failed" if s.parse_error or s.spec_problem else "Stable" if status.stable else "Pending"
    if (
        rollout.stage in ("Canary", "Bake")
        and rollout.step
        and (rollout.step.phase == "Paused" or rollout.paused_by_user)
    ):
        return "Paused"
    if rollout.stage == "Shadow" and rollout.shadow and rollout.shadow.phase == "Paused":
        return "Paused"
    if rollout.stage == "Canary" and rollout.step:
        return _PHASE_OF_TRIAL[rollout.step.strategy]
    if rollout.stage == "Failed" and _is_current(s, status):
        return "Stable"
    if rollout.stage == "Failed":  # what made way for another version is no failure of that one
        return "Failed" if _problem(s, status) else "Pending"
    return "Stable" if rollout.stage == "Done" else STAGES[rollout.stage].phase


def _is_current(s: Snapshot, status: ModelDeploymentStatus) -> bool:
    stable = s.revision(status.stable.revision) if status.stable else None
    return s.spec is not None and stable is not None and stable.is_version(s.spec)


def _conditions(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> list[Condition]:
    freeze = (
        active_freeze(s.rules, now)
        if s.spec and (in_flight(status.rollout) or not _is_current(s, status))
        else None
    )
    rows = [*_summary(s, status, freeze, now), *_stages(s, status), *_servers(s, status)]
    if unconfirmed := [d.revision for d in status.draining if d.unconfirmed]:
        why = s.traffic.problem or Problem(Reason.TRAFFIC_UNCONFIRMED, s.traffic.message)
        text = "the data plane has not confirmed that it sends nothing there, so its pods stay"
        rows.append(
            (DRAINED, "False", why.reason, f"revision {', '.join(unconfirmed)}: {text}: {why.message}")
        )
    if (follows := following(s, status)) is not None:
        rows.append((FOLLOWING, *follows))
    if freeze:
        rows.append(
            (
                "Frozen",
                "True",
                Reason.POLICY_INVALID if freeze.until is None else Reason.FREEZE_WINDOW,
                freeze.message,
            )
        )
    if late := waiting_replicas(replace(s, status=status)):
        rows.append(("Limited", "True", late.reason, late.message))
    if s.definition_problem:
        rows.append(("DefinitionCurrent", "False", s.definition_problem.reason, s.definition_problem.message))
    goes_on = s.status.rollout and status.rollout and s.status.rollout.stage == status.rollout.stage
    if goes_on and s.assessment and (doubt := s.assessment.doubt):  # the next stage measures for itself
        rows.append((VERIFIED, "False", doubt.reason, doubt.message))
    if status.rollout and in_flight(status.rollout) and (uncounted := s.counting.uncounted):
        rows.append((COUNTED, "False", uncounted.reason, uncounted.message))
    old = {c.type: c for c in s.status.conditions}
    made: list[Condition] = []
    for kind, truth, reason, message in rows:
        before = old.get(kind)
        since = before.last_transition_time if before and before.status == truth else stamp(now)
        made.append(
            Condition(
                type=kind,
                status=truth,
                reason=reason,
                message=message[:1024],
                last_transition_time=since,
                observed_generation=s.generation,
            )
        )
    return made


def _summary(s: Snapshot, status: ModelDeploymentStatus, freeze: Freeze | None, now: datetime) -> list[_Row]:
    """Ready, Reconciling and Stalled as kstatus reads them; and Available, since stable may serve
    while a new revision fails.
    """
    rollout, stable = status.rollout, serving_revision(status)
    uncarried = _uncarried(s, now)
    available = _available(s, status, uncarried)
    serving = available[1] == "True" or available[2] == Reason.SCALED_TO_ZERO
    problem = _problem(s, status)
    if problem is None and _is_current(s, status):
        problem = uncarried[1] if uncarried else _outage(s, now)
    # a spec that cannot be read stops the rollout
    if rollout is not None and in_flight(rollout) and s.spec is not None:
        return [available, *_under_way(s, status, rollout, freeze, now)]
    current = _is_current(s, status)
    if problem:
        return [
            available,
            ("Ready", "False", problem.reason, problem.message),
            _IDLE,
            ("Stalled", "True", problem.reason, problem.message),
        ]
    if current and serving and stable:
        return [available, _ready(s, stable.revision), _IDLE, ("Stalled", "False", Reason.IDLE, "")]
    if freeze and not current:
        waits = Problem(Reason.FROZEN, freeze.message)
    else:
        waits = Problem(
            Reason.PENDING,
            "waiting for pods of the stable revision" if stable and current else "the rollout has not begun",
        )
    return [available, *_goes_on(waits, waits)]


_IDLE: _Row = ("Reconciling", "False", Reason.IDLE, "nothing is under way")


def _goes_on(ready: Problem, reconciling: Problem) -> list[_Row]:
    """Something is under way and goes on by itself, or as spec or a person has arranged it."""
    return [
        ("Ready", "False", ready.reason, ready.message),
        ("Reconciling", "True", reconciling.reason, reconciling.message),
        ("Stalled", "False", Reason.PROGRESSING, ""),
    ]


def _under_way(
    s: Snapshot, status: ModelDeploymentStatus, rollout: RolloutStatus, freeze: Freeze | None, now: datetime
) -> list[_Row]:
    """A rollout in flight. It is Stalled where it waits for a person for a cause, unless it makes
    way for what spec asks for meanwhile; a pause that spec or a person arranged, and a freeze, are
    Reconciling.
    """
    text = rollout.message or (_PAUSED if rollout.paused_by_user else STAGES[rollout.stage].doing)
    if rollout.stage == "Revert" and (obstacle := data_plane_problem(s, rollout.since, now)):
        text = f"{STAGES[rollout.stage].doing}: {obstacle.message}"
    requested = is_still_requested(Specified.of(replace(s, status=status)), rollout)
    if is_paused_for_cause(rollout) and requested:
        why = rollout.reason or Reason.PAUSED
        return [
            ("Ready", "False", rollout.stage, text),
            ("Reconciling", "False", why, text),
            ("Stalled", "True", why, rollout.message or "waiting for promote or abort"),
        ]
    why = rollout.reason or rollout.stage
    if rollout.paused_by_user:
        why = Reason.PAUSED_BY_USER
    elif freeze and rollout.stage in _CLIMBING and rollout.mode == "Update" and rollout.reason is None:
        return _goes_on(Problem(rollout.stage, text), Problem(Reason.FROZEN, freeze.message))
    return _goes_on(Problem(rollout.stage, text), Problem(why, text))


def _available(s: Snapshot, status: ModelDeploymentStatus, uncarried: tuple[_Truth, Problem] | None) -> _Row:
    """Whether the revision that has all traffic, or else stable, has a ready pod, and the data
    plane carries the routes.
    """
    stable = serving_revision(status)
    if stable is None:
        return ("Available", "False", Reason.NO_STABLE, "no revision has become stable yet")
    shares = split(replace(s, status=status))
    name = shares[0][0] if len(shares) == 1 else stable.revision
    if s.server(name).ready > 0 and uncarried is not None:
        return ("Available", uncarried[0], uncarried[1].reason, uncarried[1].message)
    if s.server(name).ready > 0:
        return ("Available", "True", Reason.SERVING, f"revision {name} serves")
    if s.spec is not None and s.spec.serving.replicas == 0:
        return ("Available", "False", Reason.SCALED_TO_ZERO, _ZERO)
    return ("Available", "False", Reason.NO_READY_PODS, f"no pod of revision {name} is ready")


def _outage(s: Snapshot, now: datetime) -> Problem | None:
    """Stable is what spec asks for, and has had no ready pod for long. It ends by itself when one
    is ready; until then nothing that waits for this object should go on waiting.
    """
    left = seconds_until_outage(s, now, s.leading_since)
    if left is None or s.status.stable is None:
        return None
    # what a former leader has seen stands
    known = any(c.type == "Stalled" and c.reason == Reason.NO_READY_PODS for c in s.status.conditions)
    if left > 0 and not known:
        return None
    server = s.server(s.status.stable.revision)
    cause = server.problem or server.down
    why = f": {cause.message}" if cause else ""
    text = f"no pod of revision {s.status.stable.revision} is ready since {s.status.stable_down_since}{why}"
    return Problem(Reason.NO_READY_PODS, text)


def _ready(s: Snapshot, stable: str) -> _Row:
    """Ready is True: stable is the present spec, and serves as far as spec asks for it."""
    ready, asked = s.server(stable).ready, s.spec.serving.replicas if s.spec is not None else 0
    text = f"revision {stable} is the present spec"
    if asked == 0 and ready == 0:
        return ("Ready", "True", Reason.SCALED_TO_ZERO, f"{text}; {_ZERO}")
    pods = f", with {ready} of {asked} pods ready" if ready < asked else ""
    return ("Ready", "True", Reason.STABLE, f"{text} and serves all traffic{pods}")


def _uncarried(s: Snapshot, now: datetime) -> tuple[_Truth, Problem] | None:
    """Why the data plane does not carry stable's routes; None if it does. False: it said so of the
    present routes or Gateway. Unknown: it has been silent for SILENCE_SECONDS.
    """
    if s.traffic.programmed:
        return None
    if s.traffic.problem is not None:
        return ("False", s.traffic.problem) if s.traffic.problem.reason in UNCARRIED else None
    # what a former leader has seen stands
    known = any(c.type == "Available" and c.reason == Reason.TRAFFIC_UNCONFIRMED for c in s.status.conditions)
    left = silence_left(s, now)
    if left is None or (left > 0 and not known):
        return None
    return "Unknown", Problem(Reason.TRAFFIC_UNCONFIRMED, s.traffic.message)


def silence_left(s: Snapshot, now: datetime) -> float | None:
    """Seconds until the silence of the data plane counts; None if it is not silent."""
    if s.silent_since is None or not s.exact_weights or s.traffic.programmed or s.traffic.problem is not None:
        return None
    return SILENCE_SECONDS - since(stamp(s.silent_since), now)


def _watched(status: ModelDeploymentStatus) -> list[str]:
    """Revisions whose servers should stay up: stable, and the one on trial once its servers were
    ready.
    """
    rollout, stable = status.rollout, status.stable
    revisions = [stable.revision] if stable else []
    if (
        rollout
        and rollout.revision
        and rollout.revision not in revisions
        and in_flight(rollout)
        and STAGES[rollout.stage].watched
    ):
        revisions.append(rollout.revision)
    return revisions


def _crash(s: Snapshot, status: ModelDeploymentStatus) -> CrashStatus | None:
    """The latest known crash: pods take theirs along when they are deleted."""
    rollout = status.rollout
    # crashes during its start belong to the stage before
    tried = (rollout.revision, rollout.since) if rollout and in_flight(rollout) else ("", "")
    crashes = [
        (name, crash)
        for name in _watched(status)
        if (crash := s.server(name).crash) and not (name == tried[0] and crash.at < tried[1])
    ]
    name, last = max(crashes, key=lambda crash: crash[1].at, default=("", None))
    if last is None or (status.crash is not None and last.at <= status.crash.at):
        return status.crash
    return CrashStatus(revision=name, at=last.at, reason=last.reason, message=cut(last.message))


def _servers(s: Snapshot, status: ModelDeploymentStatus) -> list[_Row]:
    """Health and protection of the servers. Not part of Ready, since other pods may serve."""
    rows: list[_Row] = []
    alive = [name for name in _watched(status) if name in s.servers]
    fallen = next(((name, down) for name in alive if (down := s.server(name).down)), None)
    if fallen:
        rows.append((HEALTHY, "False", fallen[1].reason, f"revision {fallen[0]}: {fallen[1].message}"))
    elif alive:
        rows.append((HEALTHY, "True", Reason.HEALTHY, ""))
    if left := unhardened_revisions(s, status):
        old = [name for name in left if (record := status.restarts.get(name)) and record.triton_too_old]
        text = f"anyone who reaches the pods of {', '.join(left)} in the cluster can manage their servers"
        if old:
            rows.append((HARDENED, "False", TOO_OLD, f"{text}; {', '.join(old)}: {TOO_OLD_WHY}"))
        else:
            rows.append(
                (
                    HARDENED,
                    "False",
                    Reason.UNHARDENED,
                    (
                        f"{text}; an earlier operator rendered them: run modelrollout restart"
                        " (docs/reference/endpoints.md)"
                    ),
                )
            )
    if s.network_policy_problem:
        rows.append((ISOLATED, "False", s.network_policy_problem.reason, s.network_policy_problem.message))
    if flawed := next(
        ((name, flaws) for name in alive if (v := s.triton_versions.get(name)) and (flaws := known_flaws(v))),
        None,
    ):
        rows.append((PATCHED, "False", flawed[1].reason, f"revision {flawed[0]}: {flawed[1].message}"))
    elif kept := _recorded_flaws(s, alive):
        rows.append((PATCHED, "False", kept.reason, kept.message))
    if kept_drain := _kept_drain(s, alive):
        rows.append((DRAIN, "False", Reason.DRAIN_FROZEN, kept_drain))
    if late := waiting_restart(s, status):
        name, problem = late
        # in these stages s.gpus counts for other pods
        gpus_count = status.rollout is None or status.rollout.stage not in ("Tune", "Provision")
        if (
            problem is not None
            and problem.reason == Reason.UNSCHEDULABLE
            and gpus_count
            and s.gpus is not None
            and s.gpus.free < s.gpus.needed
        ):
            numbers = (
                f"{s.gpus.needed} {s.gpus.resource} is needed, {s.gpus.free} of {s.gpus.total} are free on"
                f" the {s.gpus.nodes} nodes that fit"
            )
            problem = Problem(
                Reason.INSUFFICIENT_GPU,
                f"{numbers}; it continues when one is free, or run modelrollout restart --allow-downtime",
            )
        reason, text = (
            (problem.reason, problem.message)
            if problem
            else ("InProgress", "its pods are replaced one after the other")
        )
        rows.append((RESTARTED, "False", reason, f"{name}: {text}"))
    return rows


def _kept_drain(s: Snapshot, alive: Iterable[str]) -> str | None:
    """What a running revision keeps although spec has another drain now."""
    wanted = s.spec.serving.drain if s.spec is not None else None
    if wanted is None:
        return None
    asked = {"preStop": wanted.pre_stop, "exitTimeout": wanted.exit_timeout}
    for name in alive:
        live = dict(zip(asked, s.server(name).drain or (), strict=False))
        differing = [
            f"{field} {live[field]}s instead of {text}"
            for field, text in asked.items()
            if text is not None and field in live and live[field] != math.ceil(seconds(text))
        ]
        if differing:
            return (
                f"revision {name} keeps {' and '.join(differing)}, with which its pods were rendered;"
                " spec.serving.drain holds for the next revision"
            )
    return None


def _recorded_flaws(s: Snapshot, alive: Iterable[str]) -> Condition | None:
    """What status says of the version of a revision that has not been asked yet: a new leader knows
    of none at first, which is no news.
    """
    unknown = tuple(f"revision {name}: " for name in alive if name not in s.triton_versions)
    return next((c for c in s.status.conditions if c.type == PATCHED and c.message.startswith(unknown)), None)


def recorded_network_policy_problem(status: ModelDeploymentStatus) -> Problem | None:
    """The NetworkPolicy problem in status, for a new leader that has not written them yet."""
    return next(
        (
            Problem(c.reason, c.message)
            for c in status.conditions
            if c.type == ISOLATED and c.status == "False"
        ),
        None,
    )


def changed_condition_events(s: Snapshot, after: ModelDeploymentStatus, now: datetime) -> tuple[Event, ...]:
    """Events about conditions of the servers that changed from one status to the next."""
    before, serves = s.status, any(name in s.servers for name in _watched(after))
    events: list[Event] = []
    old, new = ({c.type: c for c in status.conditions} for status in (before, after))
    if after.crash is not None and after.crash != before.crash and since(after.crash.at, now) < _NEWS_SECONDS:
        events.append(
            Event(after.crash.reason, f"revision {after.crash.revision}: {after.crash.message}", "Warning")
        )
    ready, was_ready = new.get("Ready"), old.get("Ready")
    if (
        ready
        and ready.reason in {*TRAFFIC_REFUSALS, NAME_TAKEN}
        and (was_ready is None or was_ready.reason != ready.reason)
    ):
        events.append(Event(ready.reason, ready.message, "Warning"))
    if begun := _pause_for_a_person(s, after):
        events.append(Event(Reason.PAUSE_STEP, begun))
    here, was_here = new.get("Available"), old.get("Available")
    unavailable = here is not None and here.reason in _UNAVAILABLE
    if here is not None and unavailable and (was_here is None or was_here.reason != here.reason):
        events.append(Event(here.reason, here.message, "Warning"))
    elif here is not None and here.status == "True" and was_here and was_here.reason in _UNAVAILABLE:
        events.append(Event(Reason.SERVING, f"{here.message}: the data plane carries its routes again"))
    for kind in (HEALTHY, HARDENED, ISOLATED, RESTARTED, PATCHED, DRAINED):
        was, now_is = old.get(kind), new.get(kind)
        is_bad = now_is is not None and now_is.status == "False" and now_is.reason != Reason.IN_PROGRESS
        if (
            is_bad
            and now_is is not None
            and (was is None or (was.status, was.reason) != ("False", now_is.reason))
        ):
            if not (kind == HEALTHY and events):  # the crash event covers it
                events.append(Event(now_is.reason, now_is.message, "Warning"))
        elif (
            was is not None
            and was.status == "False"
            and (now_is.status == "True" if now_is else serves and kind != HEALTHY)
        ):
            events.append(Event(kind, _WELL[kind]))
    return tuple(events)


def _pause_for_a_person(s: Snapshot, after: ModelDeploymentStatus) -> str | None:
    """What status says of a pause step that has just begun, and that only a person ends."""
    earlier, rollout = s.status.rollout, after.rollout
    if s.spec is None or rollout is None or rollout.reason != Reason.PAUSE_STEP or rollout.step is None:
        return None
    steps = steps_of(Specified.of(s))
    pause = strategy.pause_at(steps, strategy.locate(steps, rollout.step))
    same = earlier is not None and earlier.step is not None and earlier.step.since == rollout.step.since
    return None if same or (pause is not None and pause.duration) else rollout.message


def _problem(s: Snapshot, status: ModelDeploymentStatus) -> Problem | None:
    rollout = status.rollout
    if s.parse_error:
        return Problem(Reason.INVALID_SPEC, s.parse_error)
    if (
        s.spec_problem
        and not in_flight(rollout)
        and (s.spec_problem.reason in TRAFFIC_REFUSALS or not _is_current(s, status))
    ):
        return s.spec_problem
    if s.write_problem and not in_flight(rollout):
        return s.write_problem
    if s.definition_problem and not in_flight(rollout) and not _is_current(s, status):
        return s.definition_problem
    if status.pinned and is_pinned(replace(s, status=status)) and not _is_current(s, status):
        pinned = status.stable.revision if status.stable else "none"
        return Problem(
            Reason.ROLLED_BACK_BY_USER,
            f"pinned at revision {pinned}; change the version in spec, or retry the revision that spec"
            " requests",
        )
    if (
        rollout
        and s.spec is not None
        and has_failed_for_spec(Specified.of(replace(s, status=status)))
        and not _is_current(s, status)
    ):
        return Problem(rollout.reason or Reason.FAILED, rollout.message or "")
    return s.taken if _is_current(s, status) else None


def _stages(s: Snapshot, status: ModelDeploymentStatus) -> list[_Row]:
    """One condition for each stage of the latest rollout; those of shadow and tuning only where
    spec configures them, or the rollout has been there.
    """
    rollout = status.rollout
    if rollout is None:
        return []
    rows: list[_Row] = []
    reached, passed = _reached(rollout), True
    been_at = {
        "Shadow": rollout.shadow is not None,
        "Tune": rollout.stage == "Tune" or rollout.tuning is not None,
    }
    for stage in STAGES.values():
        passed = passed and stage.name != reached
        configured = stage.is_configured is None or (s.spec is not None and stage.is_configured(s.spec))
        if stage.condition is None or not (configured or been_at.get(stage.name)):
            continue
        if passed:
            skipped = stage.name not in rollout.stages
            text = rollout.tuning.message if stage.name == "Tune" and rollout.tuning else ""
            why = "not needed or proven before" if skipped else text
            rows.append((stage.condition, "True", Reason.SKIPPED if skipped else Reason.PASSED, why))
        elif stage.name == reached:
            reason = Reason.FAILED if rollout.stage in ("Failed", "Revert") else Reason.IN_PROGRESS
            text = rollout.message or _doing(rollout)
            rows.append((stage.condition, "False", rollout.reason or reason, text))
        else:
            rows.append((stage.condition, "Unknown", Reason.NOT_REACHED, ""))
    return rows


def _doing(rollout: RolloutStatus) -> str:
    if not in_flight(rollout):
        return ""
    metric = rollout.shadow.metric if rollout.stage == "Shadow" and rollout.shadow else None
    return metric.message if metric and metric.message else STAGES[rollout.stage].doing


def _reached(rollout: RolloutStatus) -> Stage:
    """The stage at which the rollout is, or at which it ended."""
    if rollout.stage not in ("Failed", "Revert"):
        return rollout.stage
    been = [spec.name for spec in STAGES.values() if spec.condition and spec.name in rollout.stages]
    return been[-1] if been else "Resolve"
