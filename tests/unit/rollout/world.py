"""A cluster in plain Python, driven by ``decide`` exactly as ``controller.reconciler`` does: a transition, or children made to match.

What the world does (Jobs, pods, gateway, data plane, users) is in its public methods; ``reconcile`` is the operator. ``check`` holds the
invariants of DESIGN.md after every single write. Shared by the scenarios in tests/unit and the state machine in tests/property.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from modelrollout.api import names
from modelrollout.api.config import OperatorConfig
from modelrollout.api.tasks import TaskResult
from modelrollout.api.v1alpha1 import (
    Counter,
    MetricStatus,
    MirrorWay,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    RolloutStatus,
    VerdictName,
)
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired import replicas, service_selector, split, stage_job
from modelrollout.rollout.facts import (
    QUARANTINED,
    Assessment,
    Desired,
    MirrorFacts,
    Plan,
    Problem,
    Revision,
    Server,
    Snapshot,
    Split,
    Verb,
    Work,
    in_flight,
)
from modelrollout.traffic.mirror import MirrorRouter, mirror_of
from modelrollout.traffic.router import GatewayRouter, Router, ServiceRouter
from tests.unit.rollout import builders

SETTLE = 3.0
LIVELOCK = 40  # more writes than this without any change outside is going in circles
STATUS_LIMIT = 32 * 1024
VERSION = {"model": True, "optimization": True, "serving": {"triton", "resources", "batching", "node_selector"}}


class Refused(Exception):
    """The API server refuses a write: the object is no longer what the writer has seen."""


@dataclass
class Pods:
    """Deployment and Service of a revision."""

    asked: int
    ready: int = 0
    problem: Problem | None = None


@dataclass
class World:
    """``spec`` and ``verbs`` are the user's, ``status`` is the operator's, the rest is what exists."""

    spec: ModelDeploymentSpec | None
    now: datetime = builders.START
    generation: int = 1
    status: ModelDeploymentStatus = field(default_factory=ModelDeploymentStatus)
    version: int = 1  # resourceVersion of the ModelDeployment
    revisions: dict[str, Revision] = field(default_factory=dict)
    mirrors: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Work] = field(default_factory=dict)
    servers: dict[str, Pods] = field(default_factory=dict)
    route: Split | None = None
    route_version: int = 0
    accepted: bool = False
    arriving: tuple[datetime, Split] | None = None  # accepted by the gateway, not yet in all its processes
    plane: Split = ()  # what the gateway's processes do now
    way: MirrorWay | None = "TraefikService"  # how this gateway mirrors
    mirror: str | None = None  # revision for which comparer and TraefikService exist
    mirror_known: bool = False  # the data plane has had time to take the TraefikService up
    tried: bool = False  # the gateway has accepted the route that tries the mirror out
    route_mirror: str | None = None  # the revision for which the route mirrors; likewise the next two
    arriving_mirror: str | None = None
    plane_mirror: str | None = None
    comparer: bool = False  # its pod is ready
    service: str | None = None
    verbs: dict[tuple[str, str], Verb] = field(default_factory=dict)
    verdict: VerdictName | None = None
    golden_verdict: VerdictName = "Successful"
    refusal: Problem | None = None
    # what the checks remember
    history: list[RolloutStatus] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    quarantined: set[str] = field(default_factory=set)
    damaged: bool = False  # somebody took children or status away: invariant 2 holds again once they are back
    pinned_against: dict[str, Any] = field(default_factory=dict)  # what spec asked for when somebody rolled back
    known_stable: str | None = None  # served when status was lost
    deciding: Snapshot | None = None

    # --- the operator -------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """As ``controller.observe`` makes it."""
        s = Snapshot(
            name=builders.NAME,
            namespace=builders.NAMESPACE,
            generation=self.generation,
            spec=self.spec,
            spec_error=None if self.spec else "spec.rollout: not valid; correct these fields",
            status=self.status,
            revisions=tuple(sorted(self.revisions.values(), key=lambda r: r.number)),
            servers={name: Server(p.asked, p.ready, p.problem, p.asked) for name, p in self.servers.items()}
            | ({names.shadow_name(self.mirror): Server(1, int(self.comparer), None, 1)} if self.mirror else {}),
            verbs=tuple(v for v in self.verbs.values() if not v.revision or v.revision in self.revisions),
            settle_seconds=SETTLE,
            gateway=self.spec is not None and self.spec.traffic.gateway is not None,
            refusal=self.refusal,
            live_split=self.route or (((self.service, 100),) if self.service not in (None, "*") else ()),
        )
        if self.spec is None:
            return s
        job = stage_job(s.status, s)
        s = replace(s, work=self.jobs.get(job[1], Work()) if job else Work())
        if s.status.rollout and s.status.rollout.stage == "Evaluate" and s.work.state == "Succeeded" and s.work.result:
            s = replace(s, evaluation=builders.evaluation(self.golden_verdict))
        router: Router = GatewayRouter(self.spec.traffic) if s.gateway else ServiceRouter(s.name, replicas(s), service_selector(s))
        if s.gateway:
            router = mirroring = MirrorRouter(router, s.name, self.spec, mirror_of(s), OperatorConfig.model_construct())
            missing = Problem("GatewayFeatureMissing", "it cannot mirror") if self.spec.rollout.shadow and self.way is None else None
            s = replace(s, mirror=MirrorFacts(self.way, missing, mirroring.tried(self._objects())), refusal=s.refusal or missing)
        s = replace(s, traffic=router.taken_up(split(s), self._objects(), s.servers))
        rollout = s.status.rollout
        at = rollout.shadow.phase if rollout is not None and rollout.stage == "Shadow" and rollout.shadow is not None else None
        if (at == "Observing" or (at == "Mirroring" and s.traffic.taken_up)) and (found := self._assessment()):
            agreement = MetricStatus(name="agreement", verdict=found.verdict, reason=found.reason, canary=Counter(total=100))
            s = replace(s, assessment=replace(found, metrics=(agreement,)))
        if rollout is not None and rollout.stage == "Canary" and rollout.step and (rollout.step.phase != "Shifting" or s.traffic.taken_up):
            s = replace(s, assessment=self._assessment())
        return s

    def _assessment(self) -> Assessment | None:
        return builders.judged(self.verdict) if self.verdict else None

    def _objects(self) -> dict[tuple[str, str], dict[str, Any]]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        if self.route is not None:
            conditions = [{"type": t, "status": "True", "observedGeneration": self.route_version} for t in ("Accepted", "ResolvedRefs")]
            found["HTTPRoute", builders.NAME] = {
                "metadata": {"generation": self.route_version},
                "spec": {
                    "rules": [
                        {
                            "backendRefs": [{"name": r, "weight": w} for r, w in self.route],
                            "filters": [{"type": "RequestMirror"}] if self.route_mirror else [],
                        }
                    ]
                },
                "status": {"parents": [{"conditions": conditions if self.accepted else []}]},
            }
        if self.mirror is not None:
            told = [{"type": t, "status": "True", "observedGeneration": 1} for t in ("Accepted", "ResolvedRefs")]
            found["HTTPRoute", names.shadow_name(self.mirror)] = {
                "metadata": {"generation": 1},
                "spec": {"rules": []},
                "status": {"parents": [{"conditions": told if self.tried else []}]},
            }
        if self.service is not None:
            selector = {} if self.service == "*" else {names.LABEL_REVISION: self.service}
            found["Service", builders.NAME] = {"spec": {"selector": selector}}
        return found

    def one_pass(self, *, crash_after: int | None = None) -> tuple[bool, Plan]:
        """One pass; True when it wrote something. ``crash_after``: the process dies after so many writes to children."""
        s = self.snapshot()
        plan = decide(s, self.now)
        if plan.status != s.status:
            self.deciding = s
            self.write_status(plan.status, self.version)
            return True, plan
        if plan.desired is None:
            return False, plan
        wrote = False
        for count, write in enumerate(self.writes(s, plan.desired)):
            if count == crash_after:
                break
            write()
            wrote = True
            self.check()
        return wrote, plan

    def write_status(self, status: ModelDeploymentStatus, seen: int) -> None:
        """The guarded write of a transition; ``seen``: resourceVersion that the pass has read."""
        if seen != self.version:
            raise Refused
        wire = json.dumps(status.wire())
        assert len(wire) < STATUS_LIMIT
        assert ModelDeploymentStatus.model_validate(json.loads(wire)) == status, "status does not survive the API server"
        before, self.status = self.status, status
        self.version += 1
        self._check_transition(before, status)
        self.check()

    def writes(self, s: Snapshot, desired: Desired) -> Iterator[Callable[[], None]]:
        """The writes of ``controller.act`` in its order; each may be the last one."""
        if desired.new_revision is not None:
            yield lambda: self._create_revision(s, desired)
            return
        for name, count in desired.servers.items():
            if self._renders(s, name) and (name not in self.servers or self.servers[name].asked != count):
                yield lambda name=name, count=count: self._apply_server(name, count)  # type: ignore[misc]
        if desired.selector is not None and self.service != desired.selector:
            yield lambda: self._select(desired.selector)
        wanted = mirror_of(s) if s.gateway else None
        revision = wanted.canary.revision if wanted else None
        routed = revision if wanted and wanted.routed else None
        if revision is not None and self.mirror != revision:
            yield lambda: self._make_mirror(revision)
        if s.gateway and desired.split and (self.route != desired.split or self.route_mirror != routed):
            yield lambda: self._apply_route(desired.split, routed)
        if self.route is not None and (not s.gateway or not desired.split):
            yield self._delete_route
        for name in [n for n in self.servers if n not in desired.servers]:
            yield lambda name=name: self._delete_server(name)  # type: ignore[misc]
        if self.mirror is not None and revision is None and (self.route is None or (self.route_mirror is None and self.accepted)):
            yield self._delete_mirror
        if self.service is not None and desired.selector is None:
            yield lambda: self._select(None)
        for name in [n for n, w in self.jobs.items() if w.state == "Running" and (desired.work is None or n != desired.work[1])]:
            yield lambda name=name: self._delete_job(name)  # type: ignore[misc]
        for name, status in desired.revision_status.items():
            if status.outcome not in ("Pending", "Canary") and self.mirrors.get(name) != status.outcome:
                yield lambda name=name, status=status: self.mirrors.update({name: status.outcome})  # type: ignore[misc]
            yield lambda name=name, status=status: self._record(name, status)  # type: ignore[misc]
        for name in desired.forget:
            yield lambda name=name: self.delete_revision(name)  # type: ignore[misc]
        if desired.work is not None and desired.work[1] not in self.jobs:
            yield lambda: self.jobs.update({desired.work[1]: Work("Running")} if desired.work else {})

    def reconcile(self) -> Plan:
        """Passes until nothing is written any more; the plan of the last one. Fails on a livelock and on a wait for nothing."""
        for _ in range(LIVELOCK):
            wrote, plan = self.one_pass()
            if not wrote and plan.requeue_after != 0:
                self._check_waits(plan)
                return plan
        raise AssertionError(f"no end of writes without a change outside: {self.status.rollout}")

    # --- the world ----------------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Time passes; the data plane takes up what the gateway accepted within the settle time."""
        self.now += timedelta(seconds=seconds)
        if self.arriving and (self.now - self.arriving[0]).total_seconds() >= SETTLE * 0.9:
            self.plane, self.plane_mirror, self.arriving = self.arriving[1], self.arriving_mirror, None
        if self.tried and seconds >= SETTLE * 0.9:
            self.mirror_known = True

    def accept(self) -> None:
        """The gateway accepts the route; its processes may lag."""
        if self.route is not None and not self.accepted:
            if self.arriving and (self.arriving[1], self.arriving_mirror) != (self.route, self.route_mirror):
                self.plane, self.plane_mirror = self.arriving[1], self.arriving_mirror  # in order
            self.accepted, self.arriving, self.arriving_mirror = True, (self.now, self.route), self.route_mirror
        self.tried = self.mirror is not None

    def pods(self, name: str, ready: int, problem: Problem | None = None) -> None:
        """The state of a revision's pods."""
        if name in self.servers:
            self.servers[name].ready = min(ready, self.servers[name].asked)
            self.servers[name].problem = problem

    def end_job(self, how: str) -> None:
        """The running Job ends: ok, lost, bad (input), gate, or oom."""
        name = next((n for n, w in self.jobs.items() if w.state == "Running"), None)
        rollout = self.status.rollout
        if name is None or rollout is None:
            return
        result = TaskResult(reason="Completed", sha256=self._source(), size_bytes=1000, samples=1000, accuracy=0.97)
        result = result.model_copy(update={"artifact_uri": f"s3://artifacts/{rollout.revision}", "artifact_digest": f"sha256:{rollout.sha256}"})
        self.jobs[name] = {
            "ok": Work("Succeeded", 0, result),
            "lost": Work("Succeeded"),
            "bad": Work("Failed", 10, TaskResult(reason="NotOnnx", message="not an ONNX file")),
            "gate": Work("Failed", 12, TaskResult(reason="AccuracyDrop", message="the loss exceeds the budget")),
            "oom": Work("Failed", 137, None, Problem("OutOfMemory", "raise the limit")),
        }[how]

    def _source(self) -> str | None:
        if self.spec is None:
            return None
        return next((builders.sha(v) for v in range(10) if self.spec.model.uri == builders.uri(v)), None)

    def serve(self) -> None:
        """Everything goes well for a while: pods start, Jobs end, the gateway accepts, and the verdict is good."""
        self.verdict = "Successful"
        for _ in range(60):
            before = (self.version, self.route_version)
            self.kindly()
            self.reconcile()
            if not in_flight(self.status.rollout) and before == (self.version, self.route_version) and self.status.retiring is None:
                return

    def kindly(self) -> None:
        """One round in which nothing goes wrong."""
        for name, pods in self.servers.items():
            self.pods(name, pods.asked)
        self.end_job("ok")
        self.comparer = self.mirror is not None
        self.accept()
        self.tick(SETTLE + 1)

    # --- users and accidents ------------------------------------------------------------------------------------------

    def edit(self, wanted: ModelDeploymentSpec | None) -> None:
        """Apply another spec."""
        if wanted != self.spec:
            self.spec, self.generation = wanted, self.generation + 1
            self.version += 1

    def say(self, verb: str, revision: str, nonce: str, step: str | None = None) -> None:
        """Annotate a revision (or, with an empty name, the ModelDeployment)."""
        self.verbs[verb, revision] = Verb(verb, revision, nonce, step)
        self.version += not revision

    def delete_revision(self, name: str) -> None:
        """The garbage collector takes what belongs to it."""
        self.revisions.pop(name)
        self.servers.pop(name, None)
        self.mirrors.pop(name, None)
        self.outcomes.pop(name, None)
        self.quarantined.discard(name)
        for job in [j for j in self.jobs if j.startswith(name)]:
            del self.jobs[job]

    def change_route(self, split: Split) -> None:
        """Somebody else than the leader writes the route."""
        self.route, self.accepted, self.damaged = split, False, True
        self.route_version += 1

    def lose_status(self) -> None:
        """Somebody empties status, or a backup brings none; the mirrors stay."""
        carries = dict(self.route or ())
        stable = self.status.stable.revision if self.status.stable else ""
        self.known_stable = stable if carries.get(stable) == 100 and stable in self.servers else None
        self.status, self.damaged = ModelDeploymentStatus(), True
        self.version += 1

    # --- single writes ------------------------------------------------------------------------------------------------

    def _create_revision(self, s: Snapshot, desired: Desired) -> None:
        new = desired.new_revision
        assert new is not None and s.spec is not None and new.name not in self.revisions
        assert all(r.number < new.number for r in self.revisions.values()), "a number is used again"
        self.revisions[new.name] = Revision(new.name, new.number, new.sha256, s.spec.user_input(), ModelRevisionStatus())

    def _renders(self, s: Snapshot, name: str) -> bool:
        revision, rollout = s.revision(name), s.status.rollout
        artifact = revision.status.artifact if revision else None
        if rollout and rollout.revision == name and rollout.artifact:
            artifact = rollout.artifact
        return revision is not None and artifact is not None and bool(artifact.digest)

    def _apply_server(self, name: str, count: int) -> None:
        pods = self.servers.setdefault(name, Pods(count))
        pods.asked, pods.ready = count, min(pods.ready, count)

    def _delete_server(self, name: str) -> None:
        assert self.damaged or name not in dict(self.route or ()), "a backend goes before the route that names it"
        del self.servers[name]

    def _delete_job(self, name: str) -> None:
        del self.jobs[name]

    def _select(self, selector: str | None) -> None:
        self.service = selector

    def _make_mirror(self, revision: str) -> None:
        self.mirror, self.mirror_known, self.tried, self.comparer = revision, False, False, False

    def _delete_mirror(self) -> None:
        assert self.route_mirror is None, "a mirror goes before the route that names it"
        self.mirror, self.mirror_known, self.tried, self.comparer = None, False, False, False

    def _apply_route(self, wanted: Split, mirror: str | None = None) -> None:
        self._check_route(wanted)
        if mirror is not None and not self.damaged:
            assert self.mirror == mirror and self.mirror_known, "the data plane does not know what the route is about to name"
        self.route, self.route_mirror, self.accepted = wanted, mirror, False
        self.route_version += 1

    def _delete_route(self) -> None:
        self.route, self.accepted, self.arriving, self.plane = None, False, None, ()
        self.route_mirror = self.arriving_mirror = self.plane_mirror = None

    def _record(self, name: str, status: ModelRevisionStatus) -> None:
        assert len(json.dumps(status.wire())) < STATUS_LIMIT
        self.revisions[name] = replace(self.revisions[name], status=ModelRevisionStatus.model_validate(json.loads(json.dumps(status.wire()))))
        assert self.revisions[name].status == status
        if self.outcomes.get(name) != status.outcome:
            self.outcomes[name] = status.outcome
            if status.outcome in QUARANTINED:
                self.quarantined.add(name)  # until somebody says retry

    # --- invariants ---------------------------------------------------------------------------------------------------

    def weight(self, status: ModelDeploymentStatus) -> int:
        """Percent that the state gives to the revision in flight."""
        rollout = status.rollout
        if rollout is None or not in_flight(rollout) or rollout.revision is None:
            return 0
        return 100 if rollout.stage == "Promote" else rollout.step.weight if rollout.stage == "Canary" and rollout.step else 0

    def _check_transition(self, before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> None:
        old, new = before.rollout, after.rollout
        assert after.last_number - before.last_number in (0, 1) or self.damaged, "numbers grow by one"
        for done in set(after.handled_verbs) - set(before.handled_verbs):
            verb, revision, _ = done.split(":", 2)
            if verb == "retry" and ":refused" not in done:
                self.quarantined -= {revision} if revision else set(self.quarantined)
            if verb == "promote" and ":refused" not in done and not self.damaged:
                assert self.verbs[verb, revision].step == before.step, "it was meant for another step"
        if new is not None and (old is None or new.started != old.started) and not self.damaged:
            self._check_begin(before, after)
        if new is not None and (old is None or new.started != old.started or new.stage != old.stage):
            self.history.append(new)
        if after.pinned is not None and after.pinned != before.pinned and self.spec is not None:
            self.pinned_against = self.spec.model_dump(include=VERSION)
        same = old is not None and new is not None and old.started == new.started
        if new is not None and self.weight(after) > (self.weight(before) if same else 0):
            self._check_raise(before, after, old if same else None, new)
        if old is not None and same and new is not None and old.stage == "Revert":
            assert new.stage in ("Revert", "Failed"), "a rollback does not turn round"
        assert len({c.type for c in after.conditions}) == len(after.conditions)
        truth = {c.type: c.status for c in after.conditions}
        assert not (truth["Reconciling"] == "True" and truth["Ready"] == "True"), "kstatus: never both"
        if truth["Ready"] == "True" and self.deciding and self.spec:
            stable = self.deciding.revision(after.stable.revision if after.stable else None)
            assert stable is not None and stable.is_version(self.spec), "Ready speaks of the present spec"

    def _check_begin(self, before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> None:
        """A new rollout: the old one's evidence is kept, and nothing climbs against a rollback by hand."""
        old, asked = before.rollout, set(after.handled_verbs) - set(before.handled_verbs)
        kept = self.revisions.get(old.revision or "") if old else None
        if old is not None and kept is not None and old.mode == "Update" and old.reason != "Quarantined":
            assert kept.status.outcome == old.outcome and kept.status.steps == (old.history or kept.status.steps), "evidence is lost"
        if before.pinned is not None and self.spec is not None and self.pinned_against == self.spec.model_dump(include=VERSION):
            assert any(v.startswith(("retry:", "rollback:")) for v in asked), "somebody rolled back, and nobody has said anything since"

    def _check_raise(self, before: ModelDeploymentStatus, after: ModelDeploymentStatus, old: RolloutStatus | None, new: RolloutStatus) -> None:
        """Invariant 1: a Successful verdict for the step before, or an override that is recorded."""
        s = self.deciding
        assert s is not None and old is not None, "a rollout begins with no traffic"
        if old.stage == "Canary":
            assert old.step is not None
            waited = old.step.phase == "Paused" and old.reason == "PauseStep"
            proven = s.assessment is not None and s.assessment.verdict == "Successful" and old.step.phase == "Observing"
            override = len(after.handled_verbs) >= 1 and after.handled_verbs[-1].startswith(f"promote:{new.revision}:")
            told = new.history[-1].reason if new.history else ""
            assert waited or proven or (override and told == "PromotedByUser"), f"{old.step} -> {new.step}: nobody proved it"
            if not waited:
                assert new.history[-1].weight == old.step.weight, "the verdict is of the step before"
            assert self.spec is not None
            asked = [step.weight for step in self.spec.rollout.canary.steps if step.weight is not None]
            nearest = min((w for w in asked if w > old.step.weight), default=100)
            assert self.weight(after) == nearest, "a step was left out"
        elif old.stage == "Shadow":
            assert old.shadow is not None and old.shadow.phase == "Leaving"
            assert self.plane_mirror is None or self.damaged, "the data plane still mirrors"
            assert old.shadow.override or (old.shadow.metric and old.shadow.metric.verdict == "Successful"), "nobody proved that they agree"
        elif new.mode == "Update":
            assert old.stage == "Evaluate"
            assert self.spec is not None and (self.spec.rollout.shadow is None or before.stable is None or before.stable.revision == new.revision)
            golden = self.spec is not None and self.spec.rollout.analysis.golden is not None
            assert not golden or (s.evaluation is not None and s.evaluation.verdict == "Successful"), "golden data comes before traffic"
        else:
            assert old.stage == "Provision", "what is proven goes back at once"
        assert (new.revision or "") not in self.quarantined, f"{new.revision} was refused and nobody said retry"

    def check(self) -> None:
        """What holds after every write, also if it was the last one before a crash (invariant 2)."""
        stable = self.status.stable
        if stable is None or self.damaged or stable.revision not in self.revisions:
            return
        assert stable.revision in self.servers, "the pods of stable are gone"
        if self.plane_mirror is not None:
            assert self.mirror == self.plane_mirror, "the data plane still mirrors to what is gone"
            assert self.plane_mirror in self.servers or self.plane_mirror not in self.revisions, "the comparer still asks a canary that is gone"
        for revision, _ in self.plane:
            assert revision in self.servers or revision not in self.revisions, f"the data plane still sends requests to {revision}"

    def _check_route(self, wanted: Split) -> None:
        """The route never gives more than the state allows."""
        stable, rollout = self.status.stable, self.status.rollout
        assert sum(weight for _, weight in wanted) == 100 and len({r for r, _ in wanted}) == len(wanted)
        for revision, weight in wanted:
            if stable is not None and revision == stable.revision:
                continue
            assert rollout is not None and revision == rollout.revision and revision not in self.quarantined
            if rollout.stage == "Promote":
                assert stable is None or self.servers[revision].ready > 0, "all traffic to a revision without pods"
            else:
                assert rollout.stage == "Canary" and rollout.step and weight <= rollout.step.weight and self.servers[revision].ready > 0

    def _check_waits(self, plan: Plan) -> None:
        """Invariant 5 and what holds once the children match the state."""
        rollout = self.status.rollout
        assert plan.status == self.status
        if self.spec is None:
            return
        if self.known_stable in self.revisions:
            assert self.status.stable is not None and self.status.stable.revision == self.known_stable, "what serves is stable, whatever status says"
        self.known_stable = None
        if in_flight(rollout):
            assert plan.requeue_after is not None and plan.requeue_after <= 60, f"{rollout} waits for nothing"
        if self.status.retiring is not None:
            assert plan.requeue_after is not None
        self._check_settled()

    def _check_settled(self) -> None:
        status, rollout, spec = self.status, self.status.rollout, self.spec
        assert spec is not None
        stable = status.stable.revision if status.stable else None
        if stable is None or stable not in self.revisions or not self._renders(self.snapshot(), stable):
            return
        behind = self.plane != self.route or (self.arriving is not None and self.arriving[1] != self.route)
        self.damaged = self.damaged and spec.traffic.gateway is not None and behind
        asked = {n: p.asked for n, p in self.servers.items()}
        assert asked[stable] >= spec.serving.replicas
        gateway = spec.traffic.gateway is not None
        shares = dict(self.route or ()) if gateway else {}
        if rollout is None or rollout.stage not in ("Canary", "Promote"):
            if gateway:
                assert shares == {stable: 100}, "stable has all traffic"
            assert self.service == stable
        elif rollout.stage == "Canary" and gateway and rollout.step:
            others = {n: w for n, w in shares.items() if n != stable}
            assert set(others) <= {rollout.revision} and all(w <= rollout.step.weight for w in others.values())
            assert shares[stable] > 0 and self.service == stable
        if rollout is None or rollout.stage != "Shadow":
            assert self.route_mirror is None, "only the shadow mirrors"
        if self.mirror is not None and self.accepted:
            known = rollout is not None and rollout.shadow is not None and rollout.revision == self.mirror
            assert known and rollout and (rollout.stage in ("Shadow", "Revert") or status.retiring is not None), "a mirror that nobody needs"
        expected = {stable, rollout.revision if in_flight(rollout) and rollout else None, status.retiring.revision if status.retiring else None}
        assert set(self.servers) <= expected, "pods that nobody needs"
        if rollout is not None and rollout.stage == "Failed":
            assert rollout.outcome is not None and rollout.reason
        assert len(self.revisions) <= 2 * spec.revision_history_limit + 4
