"""The faults. Each says what it does, when, and how it is undone; every one is tried in a promotion
and a rollback at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chaos import by_hand as hand
from chaos import clock, gateway, nodes, versions
from chaos import treatments as t
from chaos.arena import Arena
from chaos.moments import Act, Fault, in_step, observing, over, says, shifting, stage

STALL_SECONDS = 6.0


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


UP = ("up",)
DOWN = ("down",)
ORPHAN = "--cascade=orphan"

CATALOGUE: tuple[Fault, ...] = (
    Fault(
        "status-emptied",
        "status is emptied, as after a restore from a backup",
        acts=(
            Act(stage("Provision"), hand.write_status(hand.emptied)),
            Act(shifting(0), hand.write_status(hand.emptied)),
            Act(observing(1), hand.write_status(hand.emptied), UP),
            Act(over, hand.write_status(hand.emptied)),
        ),
        limit=400,
    ),
    Fault(
        "status-edited",
        "status is edited into nonsense",
        acts=(
            Act(stage("Provision"), hand.write_status(hand.nonsense)),
            Act(observing(0), hand.write_status(hand.lost_rollout), UP),
            Act(shifting(0), hand.write_status(hand.lost_rollout), DOWN),
        ),
        limit=400,
    ),
    Fault(
        "leader-killed",
        "the leader is killed, and the standby takes over",
        hand.second_starts,
        hand.second_ends,
        (Act(shifting(0), hand.leader_dies, UP),),
    ),
    Fault(
        "leader-paused",
        "the leader is paused beyond its Lease, and goes on",
        hand.second_starts,
        hand.second_ends,
        (Act(shifting(0), hand.leader_pauses, UP),),
    ),
    Fault(
        "two-leaders",
        "two operators lead at once, each with a Lease of its own",
        hand.rival_starts,
        hand.rival_ends,
    ),
    Fault(
        "gateway-stalls",
        "the gateway does not answer for 2 s",
        acts=(Act(observing(0), hand.stall("gateway", 2.0), UP),),
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
            Act(stage("Provision"), hand.restart("apiserver"), UP),
            Act(observing(1), hand.restart("apiserver"), UP),
        ),
    ),
    Fault(
        "etcd-stalls",
        f"etcd does not answer for {STALL_SECONDS:.0f} s",
        acts=(Act(observing(0), hand.stall("etcd", STALL_SECONDS), UP),),
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
        hand.stop_prometheus,
        hand.start_prometheus,
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
            Act(stage("Prepare"), hand.delete_job),
            Act(stage("Provision"), hand.delete("deployment", hand.candidate)),
            Act(stage("Provision"), hand.delete("service", hand.candidate)),
            Act(stage("Provision"), hand.delete("pdb", hand.own_name)),
            Act(shifting(0), hand.delete("deployment", hand.candidate, ORPHAN)),
            Act(in_step(0), hand.delete("deployment", hand.stable, ORPHAN)),
            Act(in_step(0), hand.delete("service", hand.own_name)),
        ),
    ),
    Fault(
        "revision-deleted",
        "the ModelRevision in flight is deleted by hand",
        acts=(Act(stage("Prepare"), hand.delete("mrev", hand.candidate)),),
    ),
    Fault("route-deleted", "the HTTPRoute is deleted by hand", acts=(Act(shifting(0), hand.delete_route),)),
    Fault(
        "weights-reverted",
        "the routes' weights are set back by hand",
        acts=(Act(shifting(0), hand.revert_weights), Act(observing(1), hand.revert_weights, UP)),
    ),
    Fault(
        "pods-evicted",
        "a pod of the canary and a pod of stable are evicted",
        acts=(Act(shifting(0), hand.evict(hand.candidate)), Act(shifting(0), hand.evict(hand.stable))),
    ),
    Fault(
        "pods-killed",
        "a pod of the canary and a pod of stable are deleted without grace",
        acts=(Act(shifting(0), hand.kill_pod(hand.candidate)), Act(shifting(0), hand.kill_pod(hand.stable))),
    ),
    Fault(
        "spec-changed",
        "another version is applied at each stage",
        acts=(
            Act(stage("Prepare"), hand.new_spec),
            Act(stage("Provision"), hand.new_spec),
            Act(shifting(0), hand.new_spec),
            Act(observing(0), hand.new_spec, UP),
            Act(observing(1), hand.new_spec, UP),
            Act(stage("Promote"), hand.new_spec, UP),
            Act(stage("Revert"), hand.new_spec, DOWN),
        ),
        limit=400,
    ),
    Fault(
        "stable-dies",
        "all pods of stable are deleted without grace in each stage",
        acts=(
            Act(stage("Prepare"), hand.kill_side(hand.stable), UP),
            Act(stage("Provision"), hand.kill_side(hand.stable), DOWN),
            Act(shifting(0), hand.kill_side(hand.stable)),
            Act(observing(1), hand.kill_side(hand.stable), UP),
            Act(stage("Promote"), hand.kill_side(hand.stable), UP),
            Act(stage("Revert"), hand.kill_side(hand.stable), DOWN),
        ),
        limit=400,
    ),
    Fault(
        "zero-replicas",
        f"replicas are scaled to 0 in the middle of a trial, and back {hand.ZERO_SECONDS:.0f} s later",
        undo=hand.scale_all_back,
        acts=(
            Act(observing(0), hand.scale_to_zero, UP),
            Act(shifting(0), hand.scale_to_zero, DOWN),
            Act(says("ScaledToZero"), hand.scale_back),
        ),
        limit=400,
    ),
    Fault(
        "gateway-deleted",
        f"the Gateway is deleted, and made again {gateway.AWAY_SECONDS:.0f} s later",
        acts=(
            Act(stage("Provision"), gateway.recreate_gateway, UP),
            Act(observing(0), gateway.recreate_gateway, UP),
        ),
    ),
    Fault(
        "foreign-parents",
        "another controller, and another Gateway's answer, refuse the routes in their status",
        undo=gateway.remove_foreign_parents,
        acts=(
            Act(stage("Provision"), gateway.add_foreign_parents),
            Act(shifting(0), gateway.add_foreign_parents),
        ),
    ),
    Fault(
        "model-control",
        "load, unload and list are tried on each server from inside the cluster",
        acts=(
            Act(shifting(0), hand.try_model_control),
            Act(observing(1), hand.try_model_control, UP),
        ),
    ),
    Fault(
        "admission-refuses",
        "an admission policy refuses the canary's Deployment, or its pods, until the status says so",
        hand.begin_refusing,
        hand.end_refusing_all,
        (
            Act(says("ChildRefused"), hand.end_refusing, UP),
            Act(says("PodRefused"), hand.end_refusing, DOWN),
        ),
        limit=400,
    ),
    Fault(
        "older-definition",
        "the ModelDeployment's definition lacks a field, as an older one does, and is applied anew later",
        *versions.lacking("modeldeployments", "ModelDeployment", "rollout", "rollbackWindow"),
        held="DefinitionOutdated",
    ),
    Fault(
        "older-policy-definition",
        "the RolloutPolicy's definition lacks a field, as an older one does, and is applied anew later",
        *versions.lacking("rolloutpolicies", "RolloutPolicy", "gates", "bake"),
        held="PolicyInvalid",
    ),
    Fault(
        "clock-jumps",
        "the operator's clock is set behind the true time, two minutes forward, and right again",
        clock.begin,
        clock.undo,
        (
            Act(stage("Provision"), clock.jump(clock.BACK), UP),
            Act(shifting(0), clock.jump(clock.FORWARD), UP),
            Act(observing(1), clock.jump(0), UP),
        ),
        limit=400,
    ),
    Fault(
        "canary-node-rebooted",
        "the canaries' node reboots: kubelet, containerd and all processes of its pods are killed",
        nodes.send_canaries_away,
        nodes.as_before,
        (Act(observing(0), nodes.reboot, UP),),
        limit=400,
    ),
    Fault(
        "nodes-drained",
        "both nodes are drained, one after the other",
        nodes.let_run_anywhere,
        nodes.as_before,
        (Act(observing(0), nodes.consolidate, UP),),
        limit=700,
    ),
    Fault(
        "operator-upgraded",
        "chart and operator of an earlier commit are replaced by the present ones in mid-canary",
        versions.install_earlier,
        versions.end_upgrade,
        (Act(observing(0), versions.upgrade, UP),),
        limit=400,
    ),
)
