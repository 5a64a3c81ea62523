"""The faults. Each says what it does, when, and how it is undone; every one is tried in a promotion
and a rollback at the same time.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chaos import ChaosError
from chaos import treatments as t
from chaos.arena import NAMESPACE, REPLICAS, Arena, Subject
from chaos.recorder import GRPC, HTTP
from chaos.traffic import KILLED, ROUTELESS, Window
from chaos.truth import is_ready
from demo import DemoError
from modelrollout.api import names

Status = Mapping[str, Any]
PAUSED_SECONDS = 22.0  # beyond the Lease's 15, so that another one leads by then
STALL_SECONDS = 6.0
ENDPOINT_LAG_SECONDS = 2.0  # a killed pod leaves the gateway's list within this long
ROUTELESS_SECONDS = 2.0  # a deleted route must be back within this long
TAKE_UP_SECONDS = 0.5  # the gateway has a new route after this long


@dataclass(frozen=True)
class Act:
    """Done once for each subject that it concerns, as soon as its status says so. Acts of a fault
    come in their order.
    """

    when: Callable[[Status], bool]
    do: Callable[[Arena, Subject], None]
    on: tuple[str, ...] = ("up", "down")


def nothing(arena: Arena) -> None:
    """No beginning or end."""


@dataclass(frozen=True)
class Fault:
    """``begin`` comes before the versions are applied, ``undo`` when both rollouts have ended; with
    ``hold`` so many seconds after both canaries began to be observed. What is tried is counted by
    the rule of the proxy, where there is one, else by acts, else once for each rollout.
    """

    name: str
    about: str
    begin: Callable[[Arena], None] = nothing
    undo: Callable[[Arena], None] = nothing
    acts: tuple[Act, ...] = ()
    hold: float | None = None
    thorough: bool = False  # with a Job that resolves the digest, and golden data
    limit: float = 240.0  # seconds until both must have ended


# --- moments


def stage(name: str) -> Callable[[Status], bool]:
    return lambda status: (status.get("rollout") or {}).get("stage") == name


def observing(index: int) -> Callable[[Status], bool]:
    """The canary has its traffic at that step and is judged."""
    return _step(index, "Observing")


def shifting(index: int) -> Callable[[Status], bool]:
    return _step(index, "Shifting")


def in_step(index: int) -> Callable[[Status], bool]:
    """At that step, in whatever phase: for acts that follow one another, of which the last may come
    late on a busy machine.
    """
    at = (shifting(index), observing(index))
    return lambda status: any(when(status) for when in at)


def _step(index: int, phase: str) -> Callable[[Status], bool]:
    def is_at_step(status: Status) -> bool:
        rollout = status.get("rollout") or {}
        step = rollout.get("step") or {}
        return bool(
            rollout.get("stage") == "Canary" and step.get("index") == index and step.get("phase") == phase
        )

    return is_at_step


def over(status: Status) -> bool:
    return (status.get("rollout") or {}).get("stage") in ("Done", "Failed")


# --- through the proxies


def _rule(make: Callable[[Arena], t.Rule]) -> Callable[[Arena], None]:
    def begin(arena: Arena) -> None:
        arena.proxy.rule = make(arena)

    return begin


def _pass(arena: Arena) -> None:
    arena.proxy.rule = t.PassAll()


def _api(name: str, about: str, make: Callable[[Arena], t.Rule], **more: Any) -> Fault:
    return Fault(name, about, _rule(make), _pass, **more)


def _prometheus(name: str, about: str, treatment: t.Treatment) -> Fault:
    def begin(arena: Arena) -> None:
        arena.prometheus.rule = t.Always(treatment, t.any_call)

    def undo(arena: Arena) -> None:
        arena.prometheus.rule = t.PassAll()

    return Fault(name, about, begin, undo, hold=STALL_SECONDS)


# --- by hand


def _restart(part: str) -> Callable[[Arena, Subject], None]:
    def do(arena: Arena, subject: Subject) -> None:
        try:
            arena.stop_part(part)
        finally:  # also when the run is interrupted
            arena.start_part(part)

    return do


def _stall(part: str, seconds: float) -> Callable[[Arena, Subject], None]:
    def do(arena: Arena, subject: Subject) -> None:
        arena.signal_part(part, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            arena.signal_part(part, signal.SIGCONT)

    return do


def _delete(kind: str, name: Callable[[Arena, Subject], str], *more: str) -> Callable[[Arena, Subject], None]:
    def do(arena: Arena, subject: Subject) -> None:
        _there(lambda: arena.kubectl("delete", kind, name(arena, subject), "--wait=false", *more))

    return do


def _there(do: Callable[[], object], limit: float = 10) -> None:
    """Do it as soon as the object is there: the state that asks for it is written before it."""
    deadline = time.monotonic() + limit
    while True:
        try:
            do()
            return
        except DemoError as e:
            if "not found" not in str(e).lower() or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _delete_job(arena: Arena, subject: Subject) -> None:
    def do() -> None:
        revision = arena.candidate(subject)
        jobs = arena.cluster.jobs(
            NAMESPACE, f"{names.LABEL_NAME}={subject.name},{names.LABEL_COMPONENT}={names.COMPONENT_PREPARE}"
        )
        mine = [j["metadata"]["name"] for j in jobs if j["metadata"]["name"].startswith(revision)]
        if not mine:
            raise DemoError("Job not found yet")
        arena.kubectl("delete", "job", mine[0], "--wait=false")

    _there(do)


def _delete_route(arena: Arena, subject: Subject) -> None:
    """Requests have nowhere to go until it is back, and are counted apart for no longer than that
    may take.
    """
    before = {o["metadata"]["uid"] for o in arena.recorder.versions(HTTP, subject.name)}
    start = time.time()
    arena.kubectl("delete", HTTP, subject.name, "--wait=false")
    deadline = time.time() + ROUTELESS_SECONDS
    while time.time() < deadline and all(
        o["metadata"]["uid"] in before for o in arena.recorder.versions(HTTP, subject.name)
    ):
        arena.recorder.wait(0.05)
    subject.windows.append(Window(start, time.time() + TAKE_UP_SECONDS, ROUTELESS))


def _revert_weights(arena: Arena, subject: Subject) -> None:
    """As a Git revert or a person would: stable has everything again, in both routes."""
    split = [(arena.stable(subject), 100)]
    for kind, port in ((HTTP, names.PORT_HTTP), (GRPC, names.PORT_GRPC)):
        refs = [
            {"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight}
            for revision, weight in split
        ]
        patch = [{"op": "replace", "path": "/spec/rules/0/backendRefs", "value": refs}]
        written = arena.kubectl(
            "patch", kind, subject.name, "--type=json", "-p", json.dumps(patch), "-o", "json"
        )
        subject.own.add(json.loads(written)["metadata"]["resourceVersion"])


def _evict(whose: Callable[[Arena, Subject], str]) -> Callable[[Arena, Subject], None]:
    """One pod through the eviction API, as ``kubectl drain`` does it: the disruption budget may
    make it wait.
    """

    def do(arena: Arena, subject: Subject) -> None:
        revision = whose(arena, subject)
        deadline = time.monotonic() + 60
        while True:
            pod = arena.pods(revision)[-1]["metadata"]["name"]
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": NAMESPACE},
            }
            try:
                arena.kubectl(
                    "create",
                    "--raw",
                    f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction",
                    "-f",
                    "-",
                    stdin=json.dumps(body),
                )
                return
            except DemoError as e:
                if "disruption budget" not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    return do


def _kill_pod(whose: Callable[[Arena, Subject], str]) -> Callable[[Arena, Subject], None]:
    """One pod with no grace: what it was answering is lost, and is counted apart. Waits for both to
    be ready, so that one is left.
    """

    def do(arena: Arena, subject: Subject) -> None:
        revision = whose(arena, subject)
        ready = [p for p in arena.pods(revision) if is_ready(p)]
        if len(ready) < REPLICAS:
            raise ChaosError(f"{len(ready)} ready pods of {revision}: the fault would take the last one")
        start = time.time()
        arena.kubectl(
            "delete", "pod", ready[0]["metadata"]["name"], "--grace-period=0", "--force", "--wait=false"
        )
        subject.windows.append(Window(start, time.time() + ENDPOINT_LAG_SECONDS, KILLED))

    return do


def _candidate(arena: Arena, subject: Subject) -> str:
    return arena.candidate(subject)


def _stable(arena: Arena, subject: Subject) -> str:
    return arena.stable(subject)


def _name(arena: Arena, subject: Subject) -> str:
    return subject.name


def _new_spec(arena: Arena, subject: Subject) -> None:
    arena.next_version(subject)


def _write_status(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Arena, Subject], None]:
    """Replace the status as it is at this moment; again when the operator was quicker."""

    def do(arena: Arena, subject: Subject) -> None:
        deadline = time.monotonic() + 20
        while True:
            live = arena.cluster.deployment(NAMESPACE, subject.name)
            live["status"] = change(live.get("status") or {})
            path = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/modeldeployments/{subject.name}/status"
            try:
                written = arena.kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(live))
                subject.own.add(json.loads(written)["metadata"]["resourceVersion"])
                return
            except DemoError as e:
                if "the object has been modified" not in str(e) or time.monotonic() > deadline:
                    raise

    return do


def _emptied(status: dict[str, Any]) -> dict[str, Any]:
    return {}


def _nonsense(status: dict[str, Any]) -> dict[str, Any]:
    """Times that are none, and a stage without what it needs."""
    rollout = {key: value for key, value in status["rollout"].items() if key != "revision"} | {
        "since": "yesterday",
        "stage": "Promote",
    }
    return {
        **status,
        "rollout": rollout,
        "stable": {**status["stable"], "since": "soon"},
        "handledVerbs": ["x"],
        "lastNumber": 0,
    }


def _lost_rollout(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "rollout"}


def _second_starts(arena: Arena) -> None:
    arena.second.start()


def _second_ends(arena: Arena) -> None:
    arena.second.stop()


def _leader_dies(arena: Arena, subject: Subject) -> None:
    arena.operator.kill(away=PAUSED_SECONDS)


def _leader_pauses(arena: Arena, subject: Subject) -> None:
    arena.operator.pause()
    time.sleep(PAUSED_SECONDS)
    arena.operator.resume()


def _rival_starts(arena: Arena) -> None:
    arena.rival.start()


def _rival_ends(arena: Arena) -> None:
    arena.rival.stop()


def _stop_prometheus(arena: Arena) -> None:
    arena.stop_part("prometheus")


def _start_prometheus(arena: Arena) -> None:
    arena.start_part("prometheus")


UP = ("up",)
DOWN = ("down",)
ORPHAN = "--cascade=orphan"

CATALOGUE: tuple[Fault, ...] = (
    Fault(
        "status-emptied",
        "status is emptied, as after a restore from a backup",
        acts=(
            Act(stage("Provision"), _write_status(_emptied)),
            Act(shifting(0), _write_status(_emptied)),
            Act(observing(1), _write_status(_emptied), UP),
            Act(over, _write_status(_emptied)),
        ),
        limit=400,
    ),
    Fault(
        "status-edited",
        "status is edited into nonsense",
        acts=(
            Act(stage("Provision"), _write_status(_nonsense)),
            Act(observing(0), _write_status(_lost_rollout), UP),
            Act(shifting(0), _write_status(_lost_rollout), DOWN),
        ),
        limit=400,
    ),
    Fault(
        "leader-killed",
        "the leader is killed, and the standby takes over",
        _second_starts,
        _second_ends,
        (Act(shifting(0), _leader_dies, UP),),
    ),
    Fault(
        "leader-paused",
        "the leader is paused beyond its Lease, and goes on",
        _second_starts,
        _second_ends,
        (Act(shifting(0), _leader_pauses, UP),),
    ),
    Fault(
        "two-leaders", "two operators lead at once, each with a Lease of its own", _rival_starts, _rival_ends
    ),
    Fault(
        "gateway-stalls",
        "the gateway does not answer for 2 s",
        acts=(Act(observing(0), _stall("gateway", 2.0), UP),),
    ),
    _api(
        "kill-after-each-write",
        "the operator is killed (SIGKILL) after each of its API writes in turn, before it knows the answer",
        lambda arena: t.KillAfterWrites(arena.operator.kill),
        thorough=True,
        limit=900,
    ),
    Fault(
        "api-server-killed",
        "the API server is killed and started again",
        acts=(
            Act(stage("Provision"), _restart("apiserver"), UP),
            Act(observing(1), _restart("apiserver"), UP),
        ),
    ),
    Fault(
        "etcd-stalls",
        f"etcd does not answer for {STALL_SECONDS:.0f} s",
        acts=(Act(observing(0), _stall("etcd", STALL_SECONDS), UP),),
    ),
    _api(
        "api-409",
        "every other call of each kind of write is answered 409",
        lambda _: t.EveryOther(t.refused(409), t.writes),
    ),
    _api(
        "api-429",
        "every other call is answered 429 with Retry-After",
        lambda _: t.EveryOther(t.refused(429, retry_after=1), t.any_call),
    ),
    _api("api-500", "every other call is answered 500", lambda _: t.EveryOther(t.refused(500), t.any_call)),
    _api(
        "api-slow", "every call takes a second longer", lambda _: t.Always(t.Treatment(delay=1.0), t.any_call)
    ),
    _api(
        "api-cut",
        "every other write reaches the API server, but its answer is cut off",
        lambda _: t.EveryOther(t.Treatment(cut=True), t.writes_but_leases),
    ),
    _api(
        "watch-410",
        "every watch ends with 410 Gone after 2 s",
        lambda _: t.Always(t.Treatment(end_after=2.0, gone=True), t.watches),
    ),
    _api(
        "watch-ends", "every watch ends after 2 s", lambda _: t.Always(t.Treatment(end_after=2.0), t.watches)
    ),
    _api(
        "watch-stalls",
        "no watch brings anything, and none ends",
        lambda _: t.Always(t.Treatment(stall=True), t.watches),
        limit=400,
    ),
    Fault(
        "prometheus-stopped",
        "Prometheus is killed, and started again later",
        _stop_prometheus,
        _start_prometheus,
        hold=STALL_SECONDS,
    ),
    _prometheus("prometheus-nan", "Prometheus answers NaN", t.Treatment(rewrite=t.with_nan)),
    _prometheus("prometheus-empty", "Prometheus answers with nothing", t.Treatment(rewrite=t.empty)),
    _prometheus(
        "prometheus-several", "Prometheus answers with every series twice", t.Treatment(rewrite=t.several)
    ),
    _prometheus("prometheus-garbage", "Prometheus answers with garbage", t.Treatment(rewrite=t.garbage)),
    Fault(
        "children-deleted",
        "Job, Deployments, Services and PodDisruptionBudget are deleted by hand",
        acts=(
            Act(stage("Prepare"), _delete_job),
            Act(stage("Provision"), _delete("deployment", _candidate)),
            Act(stage("Provision"), _delete("service", _candidate)),
            Act(stage("Provision"), _delete("pdb", _name)),
            Act(shifting(0), _delete("deployment", _candidate, ORPHAN)),
            Act(in_step(0), _delete("deployment", _stable, ORPHAN)),
            Act(in_step(0), _delete("service", _name)),
        ),
    ),
    Fault(
        "revision-deleted",
        "the ModelRevision in flight is deleted by hand",
        acts=(Act(stage("Prepare"), _delete("mrev", _candidate)),),
    ),
    Fault("route-deleted", "the HTTPRoute is deleted by hand", acts=(Act(shifting(0), _delete_route),)),
    Fault(
        "weights-reverted",
        "the routes' weights are set back by hand",
        acts=(Act(shifting(0), _revert_weights), Act(observing(1), _revert_weights, UP)),
    ),
    Fault(
        "pods-evicted",
        "a pod of the canary and a pod of stable are evicted",
        acts=(Act(shifting(0), _evict(_candidate)), Act(shifting(0), _evict(_stable))),
    ),
    Fault(
        "pods-killed",
        "a pod of the canary and a pod of stable are deleted without grace",
        acts=(Act(shifting(0), _kill_pod(_candidate)), Act(shifting(0), _kill_pod(_stable))),
    ),
    Fault(
        "spec-changed",
        "another version is applied at each stage",
        acts=(
            Act(stage("Prepare"), _new_spec),
            Act(stage("Provision"), _new_spec),
            Act(shifting(0), _new_spec),
            Act(observing(0), _new_spec, UP),
            Act(observing(1), _new_spec, UP),
            Act(stage("Promote"), _new_spec, UP),
            Act(stage("Revert"), _new_spec, DOWN),
        ),
        limit=400,
    ),
)
