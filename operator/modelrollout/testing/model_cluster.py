"""A cluster in plain Python, driven by ``decide`` exactly as ``controller.reconciler`` does it. It
is no API server (docs/design/0012-the-tree.md), and takes its router from ``traffic.router`` as the
controller does.

Public methods are what happens outside of the operator (Jobs, pods, gateway, data plane, users);
``reconcile`` is the operator. ``check`` asserts the invariants of docs/explanation/invariants.md
after every write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from modelrollout.api import names
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Counter,
    HeaderMatch,
    MetricStatus,
    MirrorMethod,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    RolloutStatus,
    TuningEvidence,
    VerdictName,
    seconds,
)
from modelrollout.config import OperatorConfig
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.jobs import asks_made_up, is_look, stage_job
from modelrollout.rollout.desired.pods import has_pods_for, stable_floor
from modelrollout.rollout.desired.traffic import needs_measurement, split
from modelrollout.rollout.plan import Converge, Desired, Plan, Wait, Write
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.policy.rules import NO_RULES, Rules, active_freeze
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.snapshot import (
    QUARANTINED,
    TRAFFIC_REFUSALS,
    Assessment,
    Crash,
    JobState,
    MirrorState,
    Revision,
    Server,
    Slot,
    Snapshot,
    Split,
    Verb,
    active_in_place,
    in_flight,
    serving_revision,
    still_draining,
)
from modelrollout.rollout.stages.waiting import GRACE_SECONDS
from modelrollout.rollout.views import Specified
from modelrollout.testing import builders
from modelrollout.traffic.base import LiveObjects
from modelrollout.traffic.gateway_api.mirror import MirrorTarget, mirror_of
from modelrollout.traffic.gateway_api.routes import (
    Rule,
    client_rules,
    preview_rules,
    rendered_rules,
    with_rules,
)
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.registry import kind_for, live_split, router_for

SETTLE = 3.0
CONFIG = OperatorConfig.model_construct()  # type: ignore[call-arg]
GATEWAY = GatewayFacts(f"{builders.NAMESPACE}/public", "simple", builders.CONTROLLER)
LIVELOCK = 40  # more writes than this without any change outside is going in circles
STATUS_LIMIT = 32 * 1024
VERSION: Any = {
    "model": True,
    "optimization": True,
    "serving": {"triton", "resources", "batching", "node_selector"},
}
Matched = tuple[tuple[HeaderMatch, ...], str]


class Refused(Exception):
    """The API server refuses a write: the object is no longer what the writer has seen."""


@dataclass
class Pods:
    """Deployment and Service of a revision."""

    asked: int
    ready: int = 0
    problem: Problem | None = None
    restarted: str | None = None
    tuning: TuningEvidence | None = None
    crashes: tuple[Crash, ...] = ()


@dataclass
class ModelCluster:
    """``spec`` and ``verbs`` are the user's, ``status`` is the operator's, and the rest is what
    exists in the cluster.
    """

    spec: ModelDeploymentSpec | None
    now: datetime = builders.START
    generation: int = 1
    status: ModelDeploymentStatus = field(default_factory=ModelDeploymentStatus)
    version: int = 1  # resourceVersion of the ModelDeployment
    revisions: dict[str, Revision] = field(default_factory=dict)
    mirrors: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)
    servers: dict[str, Pods] = field(default_factory=dict)
    route: Split | None = None
    route_version: int = 0
    # requests with these headers go to that revision
    matched: Matched | None = None
    accepted: bool = False
    # the Gateway; while it is gone, or refuses, its proxies go on with what they have
    gateway: GatewayFacts = GATEWAY
    gateway_refuses: bool = False
    # accepted by the gateway, not yet in all its proxies
    arriving: tuple[datetime, Split] | None = None
    # what the gateway's proxies do now; a revision with header matches is in it with weight 0
    plane: Split = ()
    way: MirrorMethod | None = "TraefikService"  # how this gateway mirrors
    mirror: str | None = None  # revision for which comparer and TraefikService exist
    mirror_known: bool = False  # the data plane has had time to learn of what the mirror names
    tried: bool = False  # the gateway has accepted the route that tries the mirror
    # the revision that the route mirrors to; likewise for the next two
    route_mirror: str | None = None
    arriving_mirror: str | None = None
    plane_mirror: str | None = None
    comparer: bool = False  # its pod is ready
    preview: str | None = None  # the preview's route and Service lead there
    preview_version: int = 0
    preview_accepted: bool = False
    leading_since: datetime | None = None
    service: str | None = None
    verbs: dict[tuple[str, str], Verb] = field(default_factory=dict)
    verdict: VerdictName | None = None
    golden_verdict: VerdictName = "Successful"
    refusal: Problem | None = None
    # digest of what lies at the URI now; None: of the version that the URI names, and it stays
    source: str | None = None
    store: Problem | None = None  # why looks at the source fail
    rules: Rules = NO_RULES
    wrong: set[str] = field(default_factory=set)  # revisions of a wrong model
    # percent of the requests that a wrong model may ever have; None: no bound
    most: int | None = None
    names_since: datetime | None = None  # when it took over a host name
    slot: bool = True  # whether a queued rollout gets its slot
    gpus: int | None = None  # pods that find a GPU; None: all
    dead: set[str] = field(default_factory=set)  # revisions whose pods never get ready
    # what the checks remember
    history: list[RolloutStatus] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    quarantined: set[str] = field(default_factory=set)
    # children or status were removed from outside: invariant 2 holds again once they are back
    damaged: bool = False
    # the version in spec when a person rolled back
    pinned_against: dict[str, Any] = field(default_factory=dict)
    known_stable: str | None = None  # served when status was lost
    deciding: Snapshot | None = None
    # when a revision had a ready pod, as far as a look could see
    last_ready: dict[str, datetime] = field(default_factory=dict)
    seen_ready: set[str] = field(default_factory=set)  # at the last look

    @property
    def in_effect(self) -> ModelDeploymentSpec | None:
        """The spec with the digest that it follows."""
        return self.spec.following(self.status.follow) if self.spec else None

    # --- the operator

    def snapshot(self) -> Snapshot:
        """The snapshot, as ``controller.observe.observation`` builds it."""
        live = self._live()
        s = Snapshot(
            name=builders.NAME,
            namespace=builders.NAMESPACE,
            generation=self.generation,
            spec=self.in_effect,
            parse_error=None if self.spec else "spec.rollout: not valid; correct these fields",
            status=self.status,
            revisions=tuple(sorted(self.revisions.values(), key=lambda r: r.number)),
            servers={
                name: Server(
                    p.asked, p.ready, p.problem, p.asked, p.restarted, updated=p.asked, crashes=p.crashes
                )
                for name, p in self.servers.items()
            }
            | (
                {names.shadow_name(self.mirror): Server(1, int(self.comparer), None, 1)}
                if self.mirror
                else {}
            ),
            verbs=tuple(v for v in self.verbs.values() if not v.revision or v.revision in self.revisions),
            settle_seconds=SETTLE,
            exact_weights=self.spec is not None and kind_for(self.spec.traffic).exact,
            spec_problem=self.refusal,
            names_since=self.names_since,
            leading_since=self.leading_since,
            rules=self.rules,
            slots=tuple(
                Slot(limit.policy, self.slot, False, 2, 3, ("ns/other",)) for limit in self.rules.limits
            ),
            live_split=live_split(builders.NAME, live) if self.spec is not None else (),
        )
        if self.spec is None:
            router = router_for(s, live, CONFIG, gateway=self.gateway)
            return replace(s, traffic=router.programmed(split(s), live, s.servers))
        job = stage_job(s)
        s = replace(s, work=self.jobs.get(job[1], JobState()) if job else JobState())
        if (
            s.status.rollout
            and s.status.rollout.stage == "Evaluate"
            and s.work.state == "Succeeded"
            and s.work.result
        ):
            s = replace(s, evaluation=builders.evaluation(self.golden_verdict))
        granted = self.refusal is None or self.refusal.reason not in TRAFFIC_REFUSALS
        router, mirror = router_for(s, live, CONFIG, granted=granted, gateway=self.gateway), MirrorState()
        if self.spec.rollout.shadow:
            cannot = None if self.way else Problem("GatewayFeatureMissing", "it cannot mirror")
            mirror = MirrorState(self.way, cannot)
        s = replace(
            s,
            mirror=replace(mirror, tried=router.mirror_accepted(live)),
            spec_problem=s.spec_problem or mirror.problem,
            traffic=router.programmed(split(s), live, s.servers),
        )
        found = self._assessment() if needs_measurement(s, s.traffic) else None
        if found is not None and s.status.rollout and s.status.rollout.stage == "Shadow":
            agreement = MetricStatus(
                name="agreement", verdict=found.verdict, reason=found.reason, canary=Counter(total=100)
            )
            found = replace(found, metrics=(agreement,))
        return replace(s, assessment=found) if found else s

    def _assessment(self) -> Assessment | None:
        """The assessment of a measurement. A wrong model never proves itself, whatever the spec's
        own metrics say.
        """
        if not self.verdict:
            return None
        rollout = self.status.rollout
        of_wrong = rollout is not None and rollout.revision in self.wrong and self.verdict == "Successful"
        verdict: VerdictName = "Inconclusive" if of_wrong else self.verdict
        demanded = tuple(
            MetricStatus(name=m.name, verdict=verdict, reason="AsMeasured") for m in self.rules.mandatory
        )
        return replace(builders.judged(verdict), metrics=demanded)

    def _live(self) -> LiveObjects:
        """The routes and the Service, as far as routers look at them."""
        live: dict[tuple[str, str], dict[str, Any]] = {}

        def route(name: str, rules: list[Rule], generation: int, accepted: bool) -> dict[str, Any]:
            host = "preview.example.com" if name.endswith("-preview") else "digits.example.com"
            made = {
                "kind": "HTTPRoute",
                "metadata": {"name": name, "namespace": builders.NAMESPACE, "generation": generation},
                "spec": {
                    "parentRefs": [{"name": "public"}],
                    "hostnames": [host],
                    "rules": rendered_rules("HTTPRoute", builders.NAME, rules),
                },
            }
            return made | {"status": self._answers(made, accepted)}

        if self.route is not None:
            rules = client_rules(self.route, *self.matched or ())
            made = route(builders.NAME, rules, self.route_version, self.accepted)
            if self.route_mirror:
                made = with_rules(made, lambda rule: rule | {"filters": [{"type": "RequestMirror"}]})
            live["HTTPRoute", builders.NAME] = made
        if self.mirror is not None:
            name = names.shadow_name(self.mirror)
            live["HTTPRoute", name] = route(name, [], 1, self.tried)
        if self.preview is not None:
            name, rules = names.preview_name(builders.NAME), preview_rules(self.preview)
            live["HTTPRoute", name] = route(name, rules, self.preview_version, self.preview_accepted)
        if self.service is not None:
            selector = {} if self.service == "*" else {names.LABEL_REVISION: self.service}
            live["Service", builders.NAME] = {"spec": {"selector": selector}}
        return live

    def _answers(self, route: dict[str, Any], accepted: bool) -> dict[str, Any]:
        """The gateway's answer to a route, beside the opposite of another controller."""
        no = {"Accepted": "False", "ResolvedRefs": "False"}
        own = builders.answered(route, builders.ACCEPTED if accepted else no if self.gateway_refuses else {})
        foreign = builders.answered(route, no if accepted else builders.ACCEPTED, "example.org/foreign")
        return {"parents": foreign["parents"] + own["parents"]}

    def one_pass(self, *, crash_after: int | None = None) -> tuple[bool, Plan]:
        """One pass; True when it wrote something. ``crash_after``: the process dies after so many
        writes to children.
        """
        s = self.snapshot()
        self.seen_ready = {name for name, p in self.servers.items() if p.ready}
        self.last_ready |= dict.fromkeys(self.seen_ready, self.now)
        plan = decide(s, self.now)
        if isinstance(plan, Write):
            self.deciding = s
            self.write_status(plan.status, self.version)
            return True, plan
        if not isinstance(plan, Converge):
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
        assert ModelDeploymentStatus.model_validate(json.loads(wire)) == status, (
            "status does not survive the API server"
        )
        before, self.status = self.status, status
        self.version += 1
        self._check_transition(before, status)
        self.check()

    def writes(self, s: Snapshot, desired: Desired) -> Iterator[Callable[[], None]]:
        """The writes of ``controller.apply.actor`` in its order; each may be the last one."""
        if desired.new_revision is not None:
            yield lambda: self._create_revision(s, desired)
            return
        aside = self.aside(s, desired)
        if s.spec is None:
            if not desired.split:
                return  # stable is not known either: what is there stays
            if self.service != desired.selector:
                yield lambda: self._select(desired.selector)
            if self.route is not None and (self.route, self.matched, self.route_mirror) != (
                desired.split,
                aside,
                None,
            ):
                yield lambda: self._apply_route(desired.split, aside, None)
            return
        for name, count in desired.servers.items():
            restart = desired.restarts.get(name)
            pods = self.servers.get(name)
            if self._renders(s, name) and (
                pods is None or pods.asked != count or restart not in (None, pods.restarted)
            ):
                yield lambda name=name, count=count, restart=restart: self._apply_server(name, count, restart)  # type: ignore[misc]
        if desired.preview is not None and self.preview != desired.preview:
            yield lambda: self._show(desired.preview)
        if desired.selector is not None and self.service != desired.selector:
            yield lambda: self._select(desired.selector)
        wanted = self.wanted_mirror(s)
        revision = wanted.canary.revision if wanted else None
        routed = revision if wanted and wanted.routed else None
        if revision is not None and self.mirror != revision:
            yield lambda: self._make_mirror(revision)
        if (
            s.exact_weights
            and desired.split
            and (self.route, self.matched, self.route_mirror) != (desired.split, aside, routed)
        ):
            yield lambda: self._apply_route(desired.split, aside, routed)
        if self.preview is not None and desired.preview is None:
            yield lambda: self._show(None)
        if self.route is not None and (not s.exact_weights or not desired.split):
            yield self._delete_route
        for name in [n for n in self.servers if n not in desired.servers]:
            yield lambda name=name: self._delete_server(name)  # type: ignore[misc]
        gone = self.route is None or (self.route_mirror is None and self.accepted)
        if self.mirror is not None and revision is None and gone and self.mirror not in desired.draining:
            yield self._delete_mirror
        if self.service is not None and desired.selector is None:
            yield lambda: self._select(None)
        for name in [
            n
            for n, w in self.jobs.items()
            if w.state == "Running" and (desired.work is None or n != desired.work[1])
        ]:
            yield lambda name=name: self._delete_job(name)  # type: ignore[misc]
        for name, status in desired.revision_status.items():
            if status.outcome not in ("Pending", "Canary", self.mirrors.get(name)):
                yield lambda name=name, status=status: self.mirrors.update({name: status.outcome})  # type: ignore[misc]
            yield lambda name=name, status=status: self._record(name, status)  # type: ignore[misc]
        for name in desired.forget:
            yield lambda name=name: self.delete_revision(name)  # type: ignore[misc]
        if desired.work is not None and desired.work[1] not in self.jobs:
            yield lambda: self.jobs.update({desired.work[1]: JobState("Running")} if desired.work else {})

    def wanted_mirror(self, s: Snapshot) -> MirrorTarget | None:
        return mirror_of(s) if s.exact_weights else None

    def aside(self, s: Snapshot, desired: Desired) -> Matched | None:
        if desired.matched is None or s.spec is None or s.spec.rollout.ab_test is None or not s.exact_weights:
            return None
        return tuple(s.spec.rollout.ab_test.headers), desired.matched

    def reconcile(self) -> Converge | Wait:
        """Passes until nothing is written any more; the plan of the last one. Fails on a livelock
        and on a wait for nothing.
        """
        for _ in range(LIVELOCK):
            wrote, plan = self.one_pass()
            if not isinstance(plan, Write) and not wrote and plan.requeue_after != 0:
                self._check_waits(plan)
                return plan
        raise AssertionError(f"no end of writes without a change outside: {self.status.rollout}")

    # --- the world

    def tick(self, seconds: float) -> None:
        """Time passes; the data plane takes up what the gateway accepted within the settle time."""
        self.now += timedelta(seconds=seconds)
        # what was ready between two looks and is not any more, no pass has seen
        self.last_ready |= {
            name: self.now for name, p in self.servers.items() if p.ready and name in self.seen_ready
        }
        if self.arriving and (self.now - self.arriving[0]).total_seconds() >= SETTLE * 0.9:
            self.plane, self.plane_mirror, self.arriving = self.arriving[1], self.arriving_mirror, None
        # a RequestMirror names a Service, which a gateway knows whatever it says of routes
        told = self.tried or (self.mirror is not None and self.way == "RequestMirror")
        if told and seconds >= SETTLE * 0.9:
            self.mirror_known = True

    def accept(self) -> None:
        """The gateway accepts the route, if it is there and does not refuse it; its processes may
        lag.
        """
        if self.gateway.problem is not None or self.gateway_refuses:
            return
        if self.route is not None and not self.accepted:
            carried = (*self.route, *((r, 0) for _, r in filter(None, [self.matched])))
            if self.arriving and (self.arriving[1], self.arriving_mirror) != (carried, self.route_mirror):
                self.plane, self.plane_mirror = self.arriving[1], self.arriving_mirror  # in order
            self.accepted, self.arriving, self.arriving_mirror = True, (self.now, carried), self.route_mirror
        self.tried = self.mirror is not None
        self.preview_accepted = self.preview is not None

    def pods(self, name: str, ready: int, problem: Problem | None = None) -> None:
        """The state of a revision's pods."""
        if name in self.servers:
            self.servers[name].ready = min(ready, self.servers[name].asked)
            self.servers[name].problem = problem

    def kill(self, name: str) -> None:
        """The pods of a revision die for good."""
        self.dead.add(name)
        self.pods(name, 0, Problem("ServerCrashed", "it crashes at its start"))

    def end_server(self, name: str) -> None:
        """The server of a revision's first pod crashes, and is back at once."""
        if name in self.servers:
            before = sum(crash.count for crash in self.servers[name].crashes)
            crash = Crash(stamp(self.now), "ServerCrashed", "SIGSEGV", pod=name, count=before + 1)
            self.servers[name].crashes = (crash,)

    def schedule(self) -> None:
        """Every pod starts that finds a GPU."""
        for name, pods in self.servers.items():
            if name in self.dead:
                self.pods(name, 0, Problem("ServerCrashed", "it crashes at its start"))
                continue
            others = sum(other.ready for o, other in self.servers.items() if o != name)
            ready = pods.asked if self.gpus is None else max(pods.ready, min(pods.asked, self.gpus - others))
            self.pods(
                name, ready, None if ready == pods.asked else Problem("Unschedulable", "no GPU is free")
            )

    def end_job(self, how: str) -> None:
        """The running Job ends: ok, lost, bad (input), gate, or oom."""
        name = next((n for n, w in self.jobs.items() if w.state == "Running"), None)
        rollout = self.status.rollout
        if name is not None and is_look(self.snapshot()):
            self.jobs[name] = self._look(how)
            return
        if name is None or rollout is None:
            return
        if how == "ok" and rollout.stage == "Prepare" and self.source not in (None, rollout.sha256):
            moved = TaskResult(reason=Reason.DIGEST_MISMATCH, message="the source has other bytes again")
            self.jobs[name] = JobState("Failed", 10, moved)
            return
        source = self._digest() if rollout.stage == "Resolve" else None
        uri = f"s3://artifacts/{rollout.revision}"
        result = builders.job_result(rollout.stage.lower(), source or rollout.sha256, uri)
        self.jobs[name] = {
            "ok": JobState("Succeeded", 0, result),
            "lost": JobState("Succeeded"),
            "bad": JobState("Failed", 10, TaskResult(reason="NotOnnx", message="not an ONNX file")),
            "gate": JobState(
                "Failed", 12, TaskResult(reason="AccuracyDrop", message="the loss exceeds the budget")
            ),
            "oom": JobState("Failed", 137, None, Problem("OutOfMemory", "raise the limit")),
        }[how]

    def _digest(self) -> str | None:
        return self.source or (builders.sha_of(self.spec.model.uri) if self.spec else None)

    def _look(self, how: str) -> JobState:
        if self.store is not None and how == "ok":
            return JobState("Failed", 1, None, self.store)
        digest = self._digest()
        found = TaskResult(sha256=digest, etag=f'"{digest}"')
        return {"ok": JobState("Succeeded", 0, found), "lost": JobState("Succeeded")}.get(
            how, JobState("Failed", 137, None, Problem("OutOfMemory", "raise the limit"))
        )

    def serve(self) -> None:
        """All goes well for a while: pods start, Jobs end, the gateway accepts, and the
        verdict is good.
        """
        self.verdict = "Successful"
        for _ in range(150):  # longer than the hold after a crash, and a bake
            before = (self.version, self.route_version)
            self.kindly()
            self.reconcile()
            if (
                not in_flight(self.status.rollout)
                and before == (self.version, self.route_version)
                and not still_draining(self.snapshot(), self.now)
            ):
                return

    def kindly(self) -> None:
        """One round without failures."""
        self.schedule()
        self.end_job("ok")
        self.comparer = self.mirror is not None
        self.accept()
        self.tick(SETTLE + 1)

    # --- users and accidents

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
        """Delete a revision; the garbage collector removes its children."""
        self.revisions.pop(name)
        self.servers.pop(name, None)
        self.mirrors.pop(name, None)
        self.outcomes.pop(name, None)
        self.quarantined.discard(name)
        for job in [j for j in self.jobs if j.startswith(name)]:
            del self.jobs[job]

    def away(self, seconds: float) -> None:
        """There is no leader for a while; then another one takes over."""
        self.tick(seconds)
        self.leading_since = self.now

    def change_route(self, split: Split, aside: Matched | None = None, mirror: str | None = None) -> None:
        """Another writer than the leader changes the route."""
        self.route, self.matched, self.route_mirror, self.accepted, self.damaged = (
            split,
            aside,
            mirror,
            False,
            True,
        )
        self.route_version += 1

    def lose_status(self, *, all_of_it: bool = True) -> None:
        """Status is emptied, or loses the part that names stable; the annotations on revisions
        stay.
        """
        carries = dict(self.route or ())
        stable = self.status.stable.revision if self.status.stable else ""
        self.known_stable = stable if carries.get(stable) == 100 and stable in self.servers else None
        self.status = (
            ModelDeploymentStatus()
            if all_of_it
            else sanitize(self.status.model_copy(update={"stable": None}))
        )
        self.damaged = True
        self.version += 1

    # --- single writes

    def _create_revision(self, s: Snapshot, desired: Desired) -> None:
        new = desired.new_revision
        assert new is not None and s.spec is not None and new.name not in self.revisions
        assert all(r.number < new.number for r in self.revisions.values()), "a number is used again"
        self.revisions[new.name] = Revision(
            new.name, new.number, new.sha256, s.spec.user_input(), ModelRevisionStatus()
        )

    def _renders(self, s: Snapshot, name: str) -> bool:
        revision, rollout = s.revision(name), s.status.rollout
        artifact = revision.status.artifact if revision else None
        if rollout and rollout.revision == name and rollout.artifact:
            artifact = rollout.artifact
        return revision is not None and artifact is not None and bool(artifact.digest)

    def _apply_server(self, name: str, count: int, restart: str | None) -> None:
        kept, flying = self.revisions[name].status.tuning, self.status.rollout
        tuning = (flying.tuning if flying and flying.revision == name else None) or kept
        assert name not in self.servers or self.servers[name].tuning == tuning, (
            "another template: pods that were not asked for"
        )
        rollout = self.status.rollout
        waits = rollout is not None and rollout.revision == name and rollout.queue is not None
        drains = name in still_draining(self.snapshot(), self.now)
        assert name in self.servers or drains or not waits, "pods of a rollout that is queued"
        pods = self.servers.setdefault(name, Pods(count, restarted=restart, tuning=tuning))
        stable = self.status.stable.revision if self.status.stable else None
        if (
            name == stable
            and rollout is not None
            and rollout.stage in ("Provision", "Canary", "Promote", "Bake", "Revert")
        ):
            shared = active_in_place(self.status)
            assert shared is None or self.spec is None or count >= stable_floor(self.spec), (
                "less than the floor of surge InPlace"
            )
            least = pods.asked if shared is None else min(pods.asked, shared.stable_replicas)
            assert rollout.stage == "Provision" or count >= least, (
                "stable is scaled down while it may have to carry everything again"
            )
        if restart != pods.restarted:
            assert restart is not None and restart == self.status.restarts[name].at, (
                "new pods that were not asked for"
            )
        pods.asked, pods.ready, pods.restarted = count, min(pods.ready, count), restart

    def _show(self, name: str | None) -> None:
        self.preview, self.preview_accepted = name, False
        self.preview_version += 1

    def _delete_server(self, name: str) -> None:
        assert self.damaged or name not in dict(self.route or ()), (
            "a backend goes before the route that names it"
        )
        assert self.damaged or name not in (self.preview, *(r for _, r in filter(None, [self.matched]))), (
            "likewise"
        )
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

    def _apply_route(self, wanted: Split, aside: Matched | None, mirror: str | None) -> None:
        self._check_route(wanted, aside)
        if mirror is not None and not self.damaged:
            assert self.mirror == mirror and self.mirror_known, (
                "the data plane does not know what the route is about to name"
            )
        self.route, self.matched, self.route_mirror, self.accepted = wanted, aside, mirror, False
        self.route_version += 1

    def _delete_route(self) -> None:
        self.route, self.matched, self.accepted, self.arriving, self.plane = None, None, False, None, ()
        self.route_mirror = self.arriving_mirror = self.plane_mirror = None

    def _record(self, name: str, status: ModelRevisionStatus) -> None:
        assert len(json.dumps(status.wire())) < STATUS_LIMIT
        self.revisions[name] = replace(
            self.revisions[name],
            status=ModelRevisionStatus.model_validate(json.loads(json.dumps(status.wire()))),
        )
        assert self.revisions[name].status == status
        if self.outcomes.get(name) != status.outcome:
            self.outcomes[name] = status.outcome
            if status.outcome in QUARANTINED and not (
                self.source is not None and status.reason == Reason.DIGEST_MISMATCH
            ):
                self.quarantined.add(name)  # until a person retries it

    # --- invariants

    def weight(self, status: ModelDeploymentStatus) -> int:
        """Percent that the state gives to the revision in flight."""
        rollout = status.rollout
        if rollout is None or not in_flight(rollout) or rollout.revision is None:
            return 0
        return (
            100
            if rollout.stage in ("Promote", "Bake")
            else rollout.step.weight
            if rollout.stage == "Canary" and rollout.step
            else 0
        )

    def _check_transition(self, before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> None:
        old, new = before.rollout, after.rollout
        assert after.last_number - before.last_number in (0, 1) or self.damaged, "numbers grow by one"
        for done in set(after.handled_verbs) - set(before.handled_verbs):
            verb, revision, _ = done.split(":", 2)
            if verb == "retry" and ":refused" not in done:
                self.quarantined -= {revision} if revision else set(self.quarantined)
            if verb in ("promote", "promote-full") and ":refused" not in done and not self.damaged:
                assert self.verbs[verb, revision].step == before.step, "it was meant for another step"
        known = {(name, record.at) for name, record in before.restarts.items()}
        if {(name, record.at) for name, record in after.restarts.items()} - known and not self.damaged:
            asked = [
                v
                for v in set(after.handled_verbs) - set(before.handled_verbs)
                if v.startswith(("restart:", "restart-allow-downtime:"))
            ]
            assert asked, "a restart that was not asked for"
        if new is not None and (old is None or new.started != old.started) and not self.damaged:
            self._check_begin(before, after)
        if new is not None and (old is None or new.started != old.started or new.stage != old.stage):
            self.history.append(new)
        if after.pinned is not None and after.pinned != before.pinned and self.spec is not None:
            self.pinned_against = self._version()
        same = old is not None and new is not None and old.started == new.started
        if new is not None and self.weight(after) > (self.weight(before) if same else 0):
            self._check_raise(before, after, old if same else None, new)
            self._check_ends(after, old if same else None, new)
        if (
            new is not None
            and old is not None
            and (new.message or "") != (old.message or "")
            and " within progressDeadline " in (new.message or "")
        ):
            self._check_deadline()
        if (
            old is not None
            and same
            and new is not None
            and old.stage == "Promote"
            and self._is_proven_worse()
        ):
            assert new.stage in ("Canary", "Revert") or self._serves_alone(before, after), (
                "what is proven worse waits for no more pods"
            )
        if old is not None and same and new is not None and new.stage == "Revert" != old.stage:
            self._check_revert(before, new)
        if after.stable is not None and before.stable is not None and not self.damaged:
            self._check_succession(before.stable.revision, after.stable.revision)
        if old is not None and same and new is not None and old.stage == "Revert":
            assert new.stage in ("Revert", "Failed"), "a rollback does not turn round"
        assert len({c.type for c in after.conditions}) == len(after.conditions)
        truth = {c.type: c.status for c in after.conditions}
        assert sum(truth[kind] == "True" for kind in ("Ready", "Reconciling", "Stalled")) == 1, (
            f"kstatus: exactly one of {truth}"
        )
        if truth["Ready"] == "True" and self.deciding and self.spec:
            stable = self.deciding.revision(after.stable.revision if after.stable else None)
            assert self.in_effect is not None
            assert stable is not None and stable.is_version(self.in_effect), (
                "Ready speaks of the present spec"
            )

    def _version(self) -> dict[str, Any]:
        """What spec asks for, with the digest that it follows."""
        assert self.in_effect is not None
        return self.in_effect.model_dump(include=VERSION)

    def _serves_alone(self, before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> bool:
        """Whether the transition gives what it does because stable has no ready pod."""
        new = after.rollout
        recorded = new is not None and new.history and new.history[-1].reason == "StableDead"
        return bool(recorded and before.stable and not self._ready(before.stable.revision))

    def _starts_over(self, before: ModelDeploymentStatus, old: RolloutStatus, new: RolloutStatus) -> bool:
        """Whether the trial begins over since stable, which was dead, is ready again."""
        return bool(
            old.uncompared_since
            and not new.uncompared_since
            and not old.paused_by_user
            and before.stable
            and self._ready(before.stable.revision)
            and (new.stage == "Promote" or (new.step and new.step.index == 0))
        )

    def _ready(self, revision: str | None) -> int:
        return self.deciding.server(revision).ready if self.deciding else 0

    def _check_takeover(self, before: ModelDeploymentStatus) -> None:
        """Only the traffic of a stable that has had no ready pod for a minute is taken over."""
        assert before.stable is not None and not self._ready(before.stable.revision)
        last = self.last_ready.get(before.stable.revision)
        assert last is None or (self.now - last).total_seconds() >= 50, "stable is not dead"
        assert not any(gates.dead_stable == "Forbid" for _, gates in self.rules.gates), "it is forbidden"

    def _check_revert(self, before: ModelDeploymentStatus, new: RolloutStatus) -> None:
        """Invariant 2: only a person takes weight from ready pods for a stable without any."""
        assert before.stable is not None and self.deciding is not None
        stable = self.deciding.server(before.stable.revision)
        serves_alone = self.weight(before) and self._ready(new.revision) and not stable.ready
        by_a_person = new.outcome in ("Aborted", "Superseded") or new.reason == "SlotHeldTooLong"
        assert by_a_person or not (serves_alone and stable.desired_replicas), "the weight goes to no pod"

    def _check_succession(self, former: str, stable: str) -> None:
        """Invariant 2: stable changes once the data plane sends all traffic to its successor."""
        if former != stable and self.spec is not None and self.spec.traffic.gateway is not None:
            assert dict(self.plane) | {former: 0} == {former: 0, stable: 100}, f"{self.plane}"

    def _is_proven_worse(self) -> bool:
        s = self.deciding
        return s is not None and s.assessment is not None and s.assessment.verdict == "Failed"

    def _check_deadline(self) -> None:
        """No deadline counts the time without a leader."""
        since = self.deciding.leading_since if self.deciding else None
        if since is not None and self.spec is not None:
            looked = (self.now - since).total_seconds()
            assert looked >= min(GRACE_SECONDS, seconds(self.spec.rollout.progress_deadline)) - 1, (
                f"given up after {looked} s"
            )

    def _check_begin(self, before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> None:
        """A new rollout: the old one's evidence is kept, and nothing climbs against a rollback by
        hand.
        """
        old, asked = before.rollout, set(after.handled_verbs) - set(before.handled_verbs)
        kept = self.revisions.get(old.revision or "") if old else None
        if old is not None and kept is not None and old.mode == "Update" and old.reason != "Quarantined":
            again = kept.status.retired is not None and old.outcome == "Superseded"
            assert kept.status.outcome == ("Retired" if again else old.outcome), "the outcome is lost"
            assert kept.status.steps == (old.history or kept.status.steps), "evidence is lost"
        assert active_freeze(self.rules, self.now) is None or (
            after.rollout and after.rollout.mode == "Rollback"
        ), "a rollout begins in a freeze"
        if before.pinned is not None and self.spec is not None and self.pinned_against == self._version():
            assert any(v.startswith(("retry:", "rollback:")) for v in asked), (
                "a person rolled back, and has said nothing since"
            )

    def _check_raise(
        self,
        before: ModelDeploymentStatus,
        after: ModelDeploymentStatus,
        old: RolloutStatus | None,
        new: RolloutStatus,
    ) -> None:
        """Invariant 1: a Successful verdict for the step before, or an override that is
        recorded.
        """
        s = self.deciding
        assert s is not None and old is not None, "a rollout begins with no traffic"
        by_hand = len(after.handled_verbs) >= 1 and after.handled_verbs != before.handled_verbs
        by_hand |= old.shadow is not None and old.stage == "Shadow" and old.shadow.promoted is not None
        assert by_hand or new.mode == "Rollback" or active_freeze(self.rules, self.now) is None, (
            "a weight rises in a freeze"
        )
        if old.stage == "Canary":
            assert old.step is not None and self.spec is not None
            steps = steps_of(Specified.of(s))
            verb = (
                after.handled_verbs[-1].split(":")[0]
                if set(after.handled_verbs) - set(before.handled_verbs)
                else None
            )
            # edited: the trial starts over
            if old.step.strategy != strategy.strategy_of(self.spec.rollout):
                assert (
                    old.step.phase != "Paused"
                    or old.reason == "PauseStep"
                    or verb in ("promote", "promote-full")
                )
                assert (
                    (new.step and (new.step.index, new.step.weight) == (0, steps[0].weight or 0))
                    or steps[0].weight == 100
                    or verb == "promote-full"
                )
                return
            waited = old.step.phase == "Paused" and old.reason == "PauseStep" and old.paused_by_user is None
            proven = (
                s.assessment is not None
                and s.assessment.verdict == "Successful"
                and old.step.phase == "Observing"
                and old.paused_by_user is None
            )
            told = new.history[-1].reason if new.history else ""
            override = verb in ("promote", "promote-full") and told == "PromotedByUser"
            soaked = (
                told == "PreviewEnded"
                and s.assessment is not None
                and s.assessment.verdict == "Inconclusive"
                and old.paused_by_user is None
            )
            policy = (
                told == "PromotedByPolicy"
                and self.spec.rollout.on_inconclusive == "Promote"
                and old.paused_by_user is None
            )
            alone = self._serves_alone(before, after) and not proven
            if alone:
                self._check_takeover(before)
            over = self._starts_over(before, old, new)
            assert waited or proven or override or soaked or policy or alone or over, (
                f"{old.step} -> {new.step}: nothing proved it"
            )
            if not waited and not over:
                assert new.history[-1].weight == old.step.weight, "the verdict is of the step before"
            asked = [step.weight for step in steps if step.weight is not None]
            nearest = min((w for w in asked if w > old.step.weight), default=100)
            assert self.weight(after) == nearest or verb == "promote-full" or new.uncompared_since, (
                "a step was left out"
            )
        elif old.stage == "Shadow":
            assert old.shadow is not None and old.shadow.phase == "Leaving"
            assert self.plane_mirror is None or self.damaged, "the data plane still mirrors"
            assert old.shadow.override or (old.shadow.metric and old.shadow.metric.verdict == "Successful"), (
                "nothing proved that they agree"
            )
            assert self.spec is not None
            first = steps_of(Specified.of(s))[0].weight or 0
            assert old.shadow.promoted == "Full" or self.weight(after) == first, "a step was left out"
        elif new.mode == "Update" or not new.proven:
            assert old.stage in ("Provision", "Evaluate")
            assert old.stage == "Evaluate" or self._ready(new.revision), "what nothing asks is at least ready"
            assert self.spec is not None and (
                self.spec.rollout.shadow is None
                or before.stable is None
                or before.stable.revision == new.revision
                or new.uncompared_since
            )
            golden = self.spec is not None and self.spec.rollout.analysis.golden is not None
            assert not golden or (s.evaluation is not None and s.evaluation.verdict == "Successful"), (
                "golden data comes before traffic"
            )
            assert not asks_made_up(s) or (s.work.state == "Succeeded" and s.work.result is not None), (
                "what a backend serves has answered before it gets traffic"
            )
        else:
            assert old.stage == "Provision", "what is proven goes back at once"
        assert (new.revision or "") not in self.quarantined, (
            f"{new.revision} was refused and no person said retry"
        )

    def _check_ends(
        self, after: ModelDeploymentStatus, old: RolloutStatus | None, new: RolloutStatus
    ) -> None:
        """No weight rises within five minutes after a server of the candidate ended in its trial
        while stable's lived: unless a person promoted it or edited spec, onInconclusive says so, or
        the trial starts over.
        """
        s, stable = self.deciding, after.stable.revision if after.stable else None
        assert s is not None and s.spec is not None
        ended = s.server(new.revision).crash
        if (
            (ended is None or stable is None or s.server(stable).crashes)
            or (old is None or new.restarts is None or new.restarts.accepted)
            or (old.shadow is not None and old.shadow.override is not None)
            or (old.step is not None and old.step.strategy != strategy.strategy_of(s.spec.rollout))
            or (new.history and new.history[-1].reason == "PromotedByPolicy")
            or old.stage in ("Provision", "Evaluate")
        ):
            return
        in_trial = new.restarts.canary.at == ended.at
        assert not in_trial or since(ended.at, self.now) >= 300, "a server that ends gets more traffic"

    def check(self) -> None:
        """What holds after every write, also if it was the last one before a crash (invariant
        2).
        """
        self.check_wrong()
        stable = self.status.stable
        if stable is None or self.damaged or stable.revision not in self.revisions:
            return
        assert stable.revision in self.servers, "the pods of stable are gone"
        if self.plane_mirror is not None:
            assert self.mirror == self.plane_mirror, "the data plane still mirrors to what is gone"
            assert self.plane_mirror in self.servers or self.plane_mirror not in self.revisions, (
                "the comparer still asks a canary that is gone"
            )
        for revision, _ in self.plane:
            assert revision in self.servers or revision not in self.revisions, (
                f"the data plane still sends requests to {revision}"
            )

    def check_wrong(self) -> None:
        """By what the routes give and the pods that a Service selects, never by what the operator
        thinks of it.
        """
        if self.most is None or not self.wrong:
            return
        for shares in (self.route or (), self.plane):
            for revision, weight in shares:
                assert revision not in self.wrong or weight <= self.most, (
                    f"{weight} % of the requests for the wrong model {revision}"
                )
        assert self.matched is None or self.matched[1] not in self.wrong, (
            "requests with a header that anybody may send go to a wrong model"
        )

    def check_selected(self) -> None:
        """The same without a gateway, where pods are the weight: they come and go by themselves, so
        that it is looked at once all is settled.
        """
        if self.most is not None and self.spec is not None and self.spec.traffic.gateway is None:
            ready = {name: p.ready for name, p in self.servers.items() if self.service in ("*", name)}
            share = 100 * sum(n for name, n in ready.items() if name in self.wrong)
            assert share <= self.most * sum(ready.values()), f"the Service selects a wrong model: {ready}"

    def _check_route(self, wanted: Split, aside: Matched | None) -> None:
        """The route never gives more than the state and the pods allow."""
        stable, rollout, s = self.status.stable, self.status.rollout, self.snapshot()
        assert sum(weight for _, weight in wanted) == 100 and len({r for r, _ in wanted}) == len(wanted)
        if aside is not None:
            assert (
                rollout is not None
                and rollout.stage == "Canary"
                and rollout.revision == aside[1]
                and self.servers[aside[1]].ready > 0
            )
            assert rollout.step is not None and rollout.step.strategy == "ABTest"
        for revision, weight in wanted:
            if stable is not None and revision == stable.revision:
                continue
            assert rollout is not None and revision == rollout.revision and revision not in self.quarantined
            ready, more = (
                self.servers[revision].ready if revision in self.servers else 0,
                weight > dict(self.route or ()).get(revision, 0),
            )
            if stable is None:
                assert rollout.stage == "Promote"
                continue
            assert ready > 0, "traffic to a revision without pods"
            if rollout.stage in ("Promote", "Bake"):
                full = (
                    stable_floor(self.spec)
                    if self.spec and active_in_place(self.status)
                    else self.spec.serving.replicas
                    if self.spec
                    else 1
                )
                assert weight < 100 or not more or ready >= full, "all traffic to a part of the pods"
                assert weight == 100 or (rollout.step is not None and weight <= rollout.step.weight)
            else:
                assert rollout.stage == "Canary" and rollout.step and weight <= rollout.step.weight
                # A weight that was reached stays as long as there are pods at all; a new one waits
                # for those that it needs.
                new_one = rollout.step.phase == "Shifting" and weight > rollout.step.previous_weight
                assert not new_one or has_pods_for(Specified.of(s), rollout.step), "more traffic than pods"

    def _check_waits(self, plan: Converge | Wait) -> None:
        """Invariant 5 and what holds once the children match the state."""
        rollout = self.status.rollout
        assert plan.status == self.status
        if self.spec is None:
            return
        if self.known_stable in self.revisions:
            assert self.status.stable is not None and self.status.stable.revision == self.known_stable, (
                "what serves is stable, whatever status says"
            )
        self.known_stable = None
        if in_flight(rollout):
            assert plan.requeue_after is not None and plan.requeue_after <= 60, f"{rollout} waits for nothing"
        if still_draining(self.snapshot(), self.now):
            assert plan.requeue_after is not None
        self.check_selected()
        self._check_settled()

    def _check_settled(self) -> None:
        status, rollout, spec = self.status, self.status.rollout, self.spec
        assert spec is not None
        stable = status.stable.revision if status.stable else None
        if stable is None or stable not in self.revisions or not self._renders(self.snapshot(), stable):
            return
        behind = self.plane != self.route or (self.arriving is not None and self.arriving[1] != self.route)
        behind |= self.plane_mirror != self.route_mirror or (
            self.arriving is not None and self.arriving_mirror != self.route_mirror
        )
        self.damaged = self.damaged and spec.traffic.gateway is not None and behind
        asked = {n: p.asked for n, p in self.servers.items()}
        shared = active_in_place(status)
        assert asked[stable] >= (
            spec.serving.replicas if shared is None else min(spec.serving.replicas, shared.stable_replicas)
        )
        if spec.serving.replicas == 0 and rollout is not None and in_flight(rollout):
            at = rollout.step if rollout.stage == "Canary" else rollout.shadow
            decides = at is not None and at.phase == "Paused" and rollout.reason != "PauseStep"
            assert (
                decides
                or rollout.paused_by_user
                or rollout.stage in ("Promote", "Bake", "Revert")
                or still_draining(self.snapshot(), self.now)
                or not any(asked.get(name or "") for name in (stable, rollout.revision))
            ), "pods that spec does not ask for"
        loaded = serving_revision(status)
        assert loaded is not None
        if loaded.revision in asked and loaded.revision != stable:
            assert asked[loaded.revision] >= spec.serving.replicas
        assert f"={loaded.revision}" in status.selector, (
            "an autoscaler looks at the pods that have the traffic"
        )
        gateway = spec.traffic.gateway is not None
        shares = dict(self.route or ()) if gateway else {}
        trial = rollout is not None and rollout.stage == "Canary"
        if rollout is None or rollout.stage not in ("Canary", "Promote", "Bake"):
            if gateway:
                assert shares == {stable: 100}, "stable has all traffic"
            assert self.service == stable
        elif rollout.stage == "Bake":
            if gateway:
                assert shares in ({stable: 100}, {rollout.revision: 100})
            assert self.service in (stable, rollout.revision)
        elif trial and gateway and rollout.step:
            others = {n: w for n, w in shares.items() if n != stable}
            assert set(others) <= {rollout.revision} and all(
                w <= rollout.step.weight for w in others.values()
            )
            alone = rollout.uncompared_since is not None and rollout.step.weight == 100
            assert shares.get(stable, 0) > 0 or alone, "stable stays in the route unless it is dead"
            assert self.service == max(shares, key=lambda name: (name == stable, shares[name]))
        if rollout is None or rollout.stage != "Shadow":
            assert self.route_mirror is None, "only the shadow mirrors"
        if self.mirror is not None and self.accepted:
            s = self.snapshot()
            assert self.wanted_mirror(s) is not None or self.mirror in still_draining(s, self.now), (
                "a mirror that is not needed"
            )
        if gateway and not (trial and rollout and rollout.step and rollout.step.strategy == "ABTest"):
            assert self.matched is None, "only a test looks at headers"
        assert (self.preview is not None) == (spec.rollout.blue_green is not None)
        assert self.preview in (None, stable, rollout.revision if rollout and in_flight(rollout) else None)
        expected = {
            stable,
            rollout.revision if in_flight(rollout) and rollout else None,
            *still_draining(self.snapshot(), self.now),
        }
        assert set(self.servers) <= expected, "pods that are not needed"
        if rollout is not None and rollout.stage == "Failed":
            assert rollout.outcome is not None and rollout.reason
        assert len(self.revisions) <= 2 * spec.revision_history_limit + 4
