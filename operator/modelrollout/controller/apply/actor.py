"""Make the children match the written state: render what is desired, write what differs, remove
what is not named.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    Data,
    Model,
    ModelDeploymentSpec,
    ModelRevisionStatus,
    Optimization,
    Serving,
)
from modelrollout.config import OperatorConfig
from modelrollout.controller.apply.diff import is_up_to_date
from modelrollout.controller.observe.observation import Observation, record
from modelrollout.controller.observe.pods import has_ended, pods_of_job
from modelrollout.kube.cache import ObjectCache, revisions_of
from modelrollout.kube.client import (
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    TRAEFIK_SERVICE,
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    Kube,
    KubeError,
    NotFound,
    Object,
    Resource,
    Unavailable,
    Unreadable,
)
from modelrollout.resources import jobs, network_policies, server
from modelrollout.resources.common import NotAllowedError, Owner, controller_of, tenant_uri
from modelrollout.resources.hardening import VERSION, harden, is_known
from modelrollout.rollout.desired import ALL_REVISIONS
from modelrollout.rollout.plan import Desired
from modelrollout.rollout.policy.allowances import allowance_violation
from modelrollout.rollout.policy.requirements import source_violation
from modelrollout.rollout.shared_preparation import recorded
from modelrollout.rollout.snapshot import NAME_TAKEN, Problem, baseline
from modelrollout.rollout.stages.tune import serving_of
from modelrollout.traffic.gateway_api.mirror import is_mirrored
from modelrollout.traffic.gateway_api.router import accepted, overly_open_routes
from modelrollout.traffic.gateway_api.routes import backends_of, is_of_clients

log = logging.getLogger(__name__)

RESOURCES: Mapping[str, Resource] = {
    r.kind: r
    for r in (
        MODEL_REVISION,
        NETWORK_POLICY,
        JOB,
        DEPLOYMENT,
        SERVICE,
        POD_DISRUPTION_BUDGET,
        HTTP_ROUTE,
        GRPC_ROUTE,
        TRAEFIK_SERVICE,
    )
}
# What is removed when it is no longer desired. Jobs that have ended go by their time to live.
_PRUNED = (
    JOB.kind,
    DEPLOYMENT.kind,
    SERVICE.kind,
    POD_DISRUPTION_BUDGET.kind,
    HTTP_ROUTE.kind,
    GRPC_ROUTE.kind,
    TRAEFIK_SERVICE.kind,
)
# An older leader that wakes up late must not undo a step: these are written only in the state that
# the pass has seen.
_GUARDED = (HTTP_ROUTE.kind, GRPC_ROUTE.kind, SERVICE.kind, TRAEFIK_SERVICE.kind)
_UNWRITTEN = "until it is written its pods can be reached as if it were not wanted"
_UNREMOVED = "it stays in force; grant the right, or delete it by hand"


class ChildRefused(KubeError):
    """A child that cannot be written as the spec is: quota, admission, a store that is not allowed,
    a name that is taken. It is told in status.
    """


class NotLeading(KubeError):
    """The lease went to another replica since this pass began: nothing that it has decided may be
    written any more.
    """


@dataclass(frozen=True)
class Actor:
    """Carries out ``Desired``."""

    kube: Kube
    store: ObjectCache
    config: OperatorConfig
    may_write: Callable[[], bool]

    async def narrow(self, seen: Observation) -> tuple[bool, Problem | None]:
        """Make narrow what opens more of the servers than clients may ask, before anything that may
        be refused. True when something was written; and what was refused: somebody has written what
        the operator may not into such a route. It holds nothing up, for ``act`` writes the whole
        anew.
        """
        wrote, kept = False, None
        for obj in overly_open_routes(seen.children, seen.snapshot.name):
            try:
                wrote |= await self._match(seen, obj)
            except ChildRefused as e:
                kept = kept or Problem(e.reason, e.message)
        return wrote, kept

    async def isolate(self, seen: Observation) -> tuple[bool, Problem | None]:
        """Make the NetworkPolicies match, before the pods that they are for. True when something
        was written; and what the API server refuses.

        That is told and holds nothing up: nobody knows whether policies are enforced here at all,
        and a rollback must not wait for one that a webhook or somebody's finalizer keeps from being
        written.
        """
        s, config = seen.snapshot, self.config.network_policies
        if config is None or s.spec is None:
            return False, None
        owner = _owner(seen.deployment, MODEL_DEPLOYMENT.kind)
        clients = s.spec.traffic.clients.namespaces if s.spec.traffic.clients else ()
        wanted = network_policies.policies(owner, clients, config) if config.written_in(s.namespace) else []
        expected = {o["metadata"]["name"] for o in wanted}
        # Only our own: to delete somebody else's, whatever its labels say, opens what he has shut.
        left = [
            o
            for (kind, name), o in seen.children.items()
            if kind == NETWORK_POLICY.kind and name not in expected and controller_of(o) == owner.uid
        ]
        wrote, problems = False, []
        for obj in (*wanted, *left):
            is_wanted = obj["metadata"]["name"] in expected
            try:
                if is_wanted and await self._match(seen, obj):
                    self._is_as_written(obj)
                    wrote = True
                elif not is_wanted:
                    wrote |= await self._delete(NETWORK_POLICY, obj)
            except NotLeading:
                raise
            except KubeError as e:
                told = e if isinstance(e, ChildRefused) else _refused(NETWORK_POLICY, obj, e)
                problems.append(
                    Problem(told.reason, f"{told.message}; {_UNWRITTEN if is_wanted else _UNREMOVED}")
                )
                # a webhook that does not answer takes its time each time
                if isinstance(e, Unavailable):
                    break
        return wrote, next(iter(problems), None)

    def _is_as_written(self, policy: Object) -> None:
        """What is compared word by word would be written again and again."""
        name = policy["metadata"]["name"]
        live = self.store.get(NETWORK_POLICY, policy["metadata"]["namespace"], name)
        if live is not None and not network_policies.is_equivalent(live, policy):
            raise ChildRefused(
                0,
                "ChildRefused",
                f"NetworkPolicy {name}: something changes it as it is written (an admission webhook?)",
            )

    async def adopt(self, seen: Observation) -> bool:
        """Own by reference what is our own by record only (``controller.observe.own``); True when
        something was written. Raises ChildRefused where nothing else is left than what is refused.

        Nothing else of it is changed, so that nothing of what serves ends or is made anew.
        """
        owner, wrote, refused = _owner(seen.deployment, MODEL_DEPLOYMENT.kind).reference(), False, None
        for (kind, name), live in seen.children.items():
            if kind == POD.kind or controller_of(live) is not None:
                continue
            resource, metadata = RESOURCES[kind], live["metadata"]
            guards = {key: metadata[key] for key in ("uid", "resourceVersion")}
            patch = {
                "metadata": {"ownerReferences": [*(metadata.get("ownerReferences") or []), owner], **guards}
            }
            self._fence()
            try:
                answer = await self.kube.merge_patch(resource, metadata["namespace"], name, patch)
            except (Conflict, NotFound):
                await self._look_again(resource, live)
                raise
            except (Forbidden, Invalid) as e:
                refused = refused or _refused(resource, live, e)
                continue
            self.store.written(resource, answer, guarded=True)
            log.info("adopted %s %s", kind, name)
            wrote = True
        if refused is not None and not wrote:
            raise refused
        return wrote

    async def act(self, seen: Observation, desired: Desired) -> tuple[bool, Problem | None]:
        """Whether something was written, and what was refused and holds up nothing that can do
        without: a name that is taken, a change of servers that are there. Rollouts and rollbacks go
        on beside it. Raises KubeError; what was written stays, the next pass goes on from there.
        """
        matched = _Matched(self, seen)
        if seen.snapshot.spec is None:
            for obj in self._traffic(seen, desired) if desired.split else []:
                await matched.add(obj)
            return matched.wrote, matched.refused
        if desired.new_revision is not None:
            await self._create(MODEL_REVISION, _revision(seen, desired, self.config))
            return True, None  # its uid owns the rest
        wanted = self._render(seen, desired)
        for obj in wanted:
            await matched.add(obj)
        wrote = False
        # Removal comes after: a backend goes only once the route that named it was written anew.
        # What is to serve is kept even if its revision's evidence was lost, so that it cannot be
        # rendered.
        keep = {(o["kind"], o["metadata"]["name"]) for o in wanted}
        keep |= {(kind, name) for name in desired.servers for kind in (DEPLOYMENT.kind, SERVICE.kind)}
        if desired.work is not None:
            keep.add((JOB.kind, desired.work[1]))
        if not matched.unrouted:
            wrote |= await self._prune(seen, desired, keep)
        for name, status in desired.revision_status.items():
            wrote |= await self._record(seen, name, status)
        for name in desired.forget:
            wrote |= await self._delete(MODEL_REVISION, seen.children[(MODEL_REVISION.kind, name)])
        if desired.work is not None:  # last: a Job that cannot be made holds up nothing else
            for obj in self._job(seen, *desired.work):
                await matched.add(obj)
        return wrote or matched.wrote, matched.refused

    def _render(self, seen: Observation, desired: Desired) -> list[Object]:
        """Objects in the order in which they are written: what carries traffic before what sends it
        there.
        """
        s, spec = seen.snapshot, seen.snapshot.spec
        assert spec is not None and seen.router is not None
        owner = _owner(seen.deployment, MODEL_DEPLOYMENT.kind)
        found: list[Object] = []
        for name, replicas in desired.servers.items():
            revision, live = s.revision(name), seen.children.get((MODEL_REVISION.kind, name))
            artifact = revision.status.artifact if revision else None
            tuning = revision.status.tuning if revision else None
            if s.status.rollout and s.status.rollout.revision == name:
                artifact, tuning = s.status.rollout.artifact or artifact, s.status.rollout.tuning or tuning
            if revision is None or live is None or artifact is None or not artifact.digest:
                continue
            mine = _owner(live, MODEL_REVISION.kind)
            frozen = live["spec"]["template"]
            if name in desired.hardened:
                frozen = harden(frozen, s.name, desired.hardened[name] or VERSION)
            wanted = server.server_deployment(
                mine,
                s.name,
                revision.number,
                frozen,
                artifact.uri,
                artifact.digest,
                replicas,
                self.config,
                desired.restarts.get(name),
                serving_of(tuning),
                ends_first=name in desired.ends_first,
            )
            running = seen.children.get((DEPLOYMENT.kind, name))
            # a newer operator has hardened it: its pods stay
            if running is not None and not is_known(desired.hardened.get(name)):
                wanted["spec"]["template"] = running["spec"]["template"]
            found.append(wanted)
            found.append(server.revision_service(mine, s.name, revision.number))
        if desired.preview is not None:
            found.append(server.preview_service(owner, desired.preview))
        if desired.budget is not None:
            found.append(server.disruption_budget(owner, desired.budget))
        return found + self._traffic(seen, desired)

    def _traffic(self, seen: Observation, desired: Desired) -> list[Object]:
        """The stable Service and the routes."""
        assert seen.router is not None
        owner = _owner(seen.deployment, MODEL_DEPLOYMENT.kind)
        selector = None if desired.selector == ALL_REVISIONS else desired.selector
        service = [server.stable_service(owner, selector)] if desired.selector is not None else []
        return service + seen.router.children(owner, desired.split)

    def _job(self, seen: Observation, component: str, name: str) -> list[Object]:
        if (JOB.kind, name) not in seen.children and (problem := self._no_more_lent(seen, component)):
            raise ChildRefused(0, problem.reason, problem.message)
        try:
            return self._rendered_job(seen, component, name)
        except NotAllowedError as e:
            raise ChildRefused(0, "StoreNotAllowed", str(e)) from e
        except ValidationError as e:
            text = (
                f"the revision was made by another version of the operator: {e.error_count()} fields cannot"
                " be read; change spec, or go back to it"
            )
            raise ChildRefused(0, "RevisionUnreadable", text) from e

    def _no_more_lent(self, seen: Observation, component: str) -> Problem | None:
        """What this Job would take and may not. A spec is looked at before its rollout begins; but
        what is no part of a version (golden data, data to tune with) can be changed while one is in
        flight, and so can policies. A return to a version that was prepared is held up by neither.
        """
        s = seen.snapshot
        assert s.spec is not None and s.status.rollout is not None
        if s.status.rollout.mode == "Rollback" and component != names.COMPONENT_EVALUATE:
            return None
        found = {names.COMPONENT_TUNE: _inputs(s.spec), names.COMPONENT_EVALUATE: _golden(s.spec)}.get(
            component
        )
        return source_violation(
            s.rules, [(f"{found[0]}.uri", found[1].uri)] if found else []
        ) or allowance_violation(s.rules, s.spec, s.namespace, self.config)

    def _rendered_job(self, seen: Observation, component: str, name: str) -> list[Object]:
        s, spec = seen.snapshot, seen.snapshot.spec
        assert spec is not None and s.status.rollout is not None
        if component == names.COMPONENT_RESOLVE:
            return [
                jobs.resolve_job(
                    _owner(seen.deployment, MODEL_DEPLOYMENT.kind),
                    name,
                    spec.model,
                    spec.serving,
                    self.config,
                )
            ]
        live = seen.children.get((MODEL_REVISION.kind, s.status.rollout.revision or ""))
        if live is None:
            return []
        owner, kept, number = _owner(live, MODEL_REVISION.kind), live["spec"]["input"], live["spec"]["number"]
        model, serving = Model.model_validate(kept["model"]), Serving.model_validate(kept["serving"])
        if component == names.COMPONENT_PREPARE:
            # Resources, time limit and queue of the Job are no part of the version: the present
            # ones hold.
            optimization = Optimization.model_validate(kept["optimization"]).carried_out_as(spec.optimization)
            sha256, folder = live["spec"]["sha256"], tenant_uri(self.config, s.namespace)
            known = recorded(
                map(record, self.store.marked(revisions_of(s.namespace, sha256))),
                sha256,
                kept["model"],
                folder,
            )
            # The salt stands in the Job, which is made once: it holds for all of its pods, whatever
            # becomes of this process.
            salt = secrets.token_hex(8)
            return [
                jobs.prepare_job(
                    owner,
                    s.name,
                    number,
                    name,
                    model,
                    sha256,
                    optimization,
                    serving,
                    salt,
                    known,
                    self.config,
                )
            ]
        if component == names.COMPONENT_TUNE:
            tune, artifact = spec.serving.tune, s.status.rollout.artifact
            assert tune is not None and artifact is not None
            where, frozen = (artifact.uri, artifact.digest), live["spec"]["template"]
            return [
                jobs.tune_job(
                    owner,
                    s.name,
                    number,
                    name,
                    tune,
                    _inputs(spec),
                    frozen,
                    where,
                    model,
                    serving,
                    self.config,
                )
            ]
        golden, stable = spec.rollout.analysis.golden, baseline(s)
        assert golden is not None
        against = (stable.revision, stable.number) if stable else None
        return [jobs.evaluate_job(owner, s.name, number, name, golden, against, model, serving, self.config)]

    def _fence(self) -> None:
        """A process that was stopped in mid-pass (SIGSTOP, a frozen machine) goes on where it was,
        perhaps long after its lease ended.
        """
        if not self.may_write():
            raise NotLeading(0, "NotLeading", "another replica leads")

    async def _match(self, seen: Observation, obj: Object) -> bool:
        kind, name = obj["kind"], obj["metadata"]["name"]
        resource = RESOURCES[kind]
        live = seen.children.get((kind, name))
        if live is not None and kind == JOB.kind:  # it is immutable, its name says what it is for
            # it is there, and counts for nothing (controller.observe.job_state)
            taken_back = seen.snapshot.work.state == "Absent"
            return (
                await self._delete(resource, live)
                if taken_back or _waits_with_another_wish(live, obj)
                else False
            )
        if (
            live is not None
            and is_up_to_date(live, obj)
            and (kind != NETWORK_POLICY.kind or network_policies.is_equivalent(live, obj))
        ):
            return False
        if live is None:
            await self._create(resource, obj)
        else:
            await self._apply(resource, obj, live, guarded=kind in _GUARDED)
        return True

    async def _apply(self, resource: Resource, obj: Object, live: Object, *, guarded: bool) -> None:
        uid, version = live["metadata"]["uid"], live["metadata"]["resourceVersion"] if guarded else None
        self._fence()
        try:
            answer = await self._applied(resource, obj, uid, version)
        except Conflict:
            await self._look_again(resource, obj)
            raise
        except (Forbidden, Invalid) as e:
            raise _refused(resource, obj, e) from e
        self.store.written(resource, answer, guarded=guarded)
        log.info("applied %s %s", resource.kind, obj["metadata"]["name"])

    async def _applied(self, resource: Resource, obj: Object, uid: str, version: str | None) -> Object:
        """What was created and not applied, or edited by somebody, keeps fields that may not go
        together with those that are wanted.
        """
        try:
            return await self.kube.apply(resource, obj, uid=uid, resource_version=version)
        except Invalid:
            if not await self.kube.own_by_apply(
                resource, obj["metadata"]["namespace"], obj["metadata"]["name"], uid=uid
            ):
                raise
        if version is not None:
            raise Conflict(
                409, "StaleRead", f"{resource.kind} {obj['metadata']['name']} has another resourceVersion now"
            )
        self._fence()
        return await self.kube.apply(resource, obj, uid=uid)

    async def _create(self, resource: Resource, obj: Object) -> None:
        """Create, and nothing else: a forced apply would take over a stranger's object of that
        name, and undo what a newer leader has written.
        """
        name = obj["metadata"]["name"]
        known = self.store.get(resource, obj["metadata"]["namespace"], name)
        self._fence()
        try:
            answer = await self.kube.create(resource, obj)
        except AlreadyExists as e:
            live = await self._look_again(resource, obj)
            if live is not None and not live["metadata"].get("deletionTimestamp"):
                if controller_of(live) != controller_of(obj):
                    # else it is news whose it is: the next pass looks at that
                    if known is None or controller_of(known) == controller_of(live):
                        raise ChildRefused(e.status, NAME_TAKEN, _taken(live, obj)) from e
                elif resource == DEPLOYMENT:
                    # Its template was decided on as if there were no pods (rollout.pod_restarts):
                    # no more than the watch needs is put back.
                    guards = {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
                    patch = {"metadata": {"labels": obj["metadata"]["labels"], **guards}}
                    self.store.written(
                        resource,
                        await self.kube.merge_patch(resource, obj["metadata"]["namespace"], name, patch),
                        guarded=True,
                    )
                elif resource not in (JOB, MODEL_REVISION) and not is_up_to_date(live, obj):
                    # it lost our label, so the watch lost it
                    await self._apply(resource, obj, live, guarded=True)
                    return
            raise Conflict(e.status, "StaleRead", f"{resource.kind} {name} was not in the store") from e
        except (Forbidden, Invalid) as e:
            raise _refused(resource, obj, e) from e
        self.store.written(resource, answer, guarded=True)
        log.info("created %s %s", resource.kind, name)

    async def _look_again(self, resource: Resource, obj: Object) -> Object | None:
        """The store was behind: read the object itself."""
        metadata = obj["metadata"]
        try:
            live = await self.kube.get(resource, metadata["namespace"], metadata["name"])
        except NotFound:
            stored = self.store.get(resource, metadata["namespace"], metadata["name"])
            if stored is not None:
                self.store.gone(resource, metadata["namespace"], metadata["name"], stored["metadata"]["uid"])
            return None
        except Unreadable as e:
            raise ChildRefused(
                e.status, "ChildUnreadable", f"{e.message}; delete it, and it is made anew"
            ) from e
        self.store.read(resource, live)
        return live

    async def _prune(self, seen: Observation, desired: Desired, wanted: set[tuple[str, str]]) -> bool:
        wrote = False
        for (kind, name), live in seen.children.items():
            if kind not in _PRUNED or (kind, name) in wanted:
                continue
            if (kind == JOB.kind and _ended(live, seen)) or _still_mirrored(seen, desired, live):
                continue
            wrote |= await self._delete(RESOURCES[kind], live)
        return wrote

    async def _delete(self, resource: Resource, live: Object) -> bool:
        metadata = live["metadata"]
        self._fence()
        try:
            await self.kube.delete(resource, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        except NotFound:
            pass
        except Conflict:  # another object has that name by now
            await self._look_again(resource, live)
            return True
        self.store.gone(resource, metadata["namespace"], metadata["name"], metadata["uid"])
        log.info("deleted %s %s", resource.kind, metadata["name"])
        return True

    async def _record(self, seen: Observation, name: str, status: ModelRevisionStatus) -> bool:
        """Write a revision's status, and mirror an outcome that is final in its annotations: a
        backup brings no status.

        The mirror comes first: if only one of the two gets written, the status still differs, and
        the next pass does both.
        """
        before = seen.children.get((MODEL_REVISION.kind, name))
        if before is None:
            return False
        live = before
        self._fence()
        try:
            mirrored = (live["metadata"].get("annotations") or {}).get(names.ANNOTATION_OUTCOME, "Pending")
            if status.outcome not in ("Pending", "Canary") and mirrored != status.outcome:
                annotations = {
                    names.ANNOTATION_OUTCOME: status.outcome,
                    names.ANNOTATION_REASON: status.reason,
                }
                guards = {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
                patch = {"metadata": {"annotations": annotations, **guards}}
                live = await self.kube.merge_patch(MODEL_REVISION, live["metadata"]["namespace"], name, patch)
                self.store.written(MODEL_REVISION, live, guarded=True)
            answer = await self.kube.replace_status(MODEL_REVISION, {**live, "status": status.wire()})
        except (Conflict, NotFound):
            await self._look_again(MODEL_REVISION, before)
            raise
        self.store.written(MODEL_REVISION, answer, guarded=True)
        return True


def _golden(spec: ModelDeploymentSpec) -> tuple[str, Data] | None:
    golden = spec.rollout.analysis.golden
    return ("spec.rollout.analysis.golden", golden) if golden is not None else None


def _inputs(spec: ModelDeploymentSpec) -> tuple[str, Data] | None:
    """What tuning sends, and the field that names it."""
    gate = spec.optimization.gate
    if spec.serving.tune is not None and spec.serving.tune.data is not None:
        return "spec.serving.tune.data", spec.serving.tune.data
    if golden := _golden(spec):
        return golden
    return ("spec.optimization.gate.data", gate.data) if gate is not None else None


def _still_mirrored(seen: Observation, desired: Desired, live: Object) -> bool:
    """Whether ``live`` is of a mirror that the gateway may still have in the clients' route, say
    because status was lost in the midst of it.

    It goes once the gateway has accepted the route without it (the route's status wakes the pass
    that does so) and its canary has drained.
    """
    labels = live["metadata"].get("labels") or {}
    if labels.get(names.LABEL_COMPONENT) != names.COMPONENT_SHADOW:
        return False
    if labels.get(names.LABEL_REVISION) in desired.draining:
        return True
    routes = [
        o
        for (kind, name), o in seen.children.items()
        if kind == HTTP_ROUTE.kind and is_of_clients(name, seen.snapshot.name)
    ]
    return live not in routes and any(is_mirrored(o) or not accepted(o) for o in routes)


def _refused(resource: Resource, obj: Object, e: KubeError) -> ChildRefused:
    return ChildRefused(e.status, "ChildRefused", f"{resource.kind} {obj['metadata']['name']}: {e.message}")


def _owner(o: Object, kind: str) -> Owner:
    m = o["metadata"]
    return Owner(kind, m["name"], m["namespace"], m["uid"])


def _taken(live: Object, wanted: Object) -> str:
    """What has the name of a child, and what can be done. The object itself is left as it is."""
    who = next(
        (
            f"{r.get('kind')} {r.get('name')} controls it"
            for r in live["metadata"].get("ownerReferences") or []
            if r.get("controller")
        ),
        None,
    )
    mine = wanted["metadata"]["ownerReferences"][0]
    if who == f"{mine['kind']} {mine['name']} controls it":
        who = (
            f"an earlier {mine['kind']} of the name {mine['name']} controls it, and the garbage collector may"
            " be about to take it away"
        )
    told = (
        f"{wanted['kind']} {wanted['metadata']['name']} exists and is not this model's:"
        f" {who or 'nothing controls it, and labels do not count'}"
    )
    return (
        f"{told}; delete it, and the operator makes its own, or choose another name for the ModelDeployment"
    )


@dataclass
class _Matched:
    """Children that are made to match one after the other, where a name that is taken, or servers
    that cannot be changed, hold up only what needs that very object.
    """

    actor: Actor
    seen: Observation
    wrote: bool = False
    refused: Problem | None = None  # the first
    # what sends traffic is not as it is wanted: nothing may go that it leads to
    unrouted: bool = False
    # kind and name of what requests would be sent to, and is not ours
    _backends: set[tuple[str, str]] = field(default_factory=set)

    async def add(self, obj: Object) -> None:
        kind, name = obj["kind"], obj["metadata"]["name"]
        live = self.seen.children.get((kind, name))
        if self._backends & (backends_of(obj) - (backends_of(live) if live is not None else set())):
            self.unrouted = True  # it would newly lead clients to a stranger
            return
        try:
            self.wrote |= await self.actor._match(self.seen, obj)
        except ChildRefused as e:
            # Servers that are there and cannot be changed go on as they are: weights follow the
            # pods that are ready.
            if e.reason != NAME_TAKEN and not (kind == DEPLOYMENT.kind and live is not None):
                raise
            self.refused = self.refused or Problem(e.reason, e.message)
            if kind in _GUARDED:
                self._backends.add((kind, name))
                self.unrouted |= kind != SERVICE.kind or (
                    name == self.seen.snapshot.name and not self.seen.snapshot.gateway
                )


def _ended(job: Object, seen: Observation) -> bool:
    """It stays, with its pods and their logs, until its own time is over. What a pod said decides
    before the Job controller has drawn its conclusion; should that be another try, the new pod is
    seen, and the Job goes.
    """
    if any(
        c["type"] in ("Complete", "Failed") and c["status"] == "True"
        for c in (job.get("status") or {}).get("conditions") or []
    ):
        return True
    pods = pods_of_job((o for (kind, _), o in seen.children.items() if kind == POD.kind), job)
    return bool(pods) and all(has_ended(p) for p in pods)


def _waits_with_another_wish(live: Object, wanted: Object) -> bool:
    """Whether a Job is held back in a queue, while spec meanwhile names another queue, or other
    resources: it might wait for ever, and is made anew.

    What was asked is compared, not the Job: a webhook that changes Jobs would have each made anew.
    """
    before, now = (
        (o["metadata"].get("annotations") or {}).get(names.ANNOTATION_ASKED) for o in (live, wanted)
    )
    queued = live["spec"].get("suspend") and jobs.LABEL_QUEUE in (live["metadata"].get("labels") or {})
    return bool(queued) and None not in (before, now) and before != now


def _revision(seen: Observation, desired: Desired, config: OperatorConfig) -> Object:
    s, spec, new = seen.snapshot, seen.snapshot.spec, desired.new_revision
    assert spec is not None and new is not None
    owner = _owner(seen.deployment, MODEL_DEPLOYMENT.kind)
    body: dict[str, Any] = {
        "number": new.number,
        "deployment": s.name,
        "sha256": new.sha256,
        "input": spec.user_input(),
        "builder": server.BUILDER,
        "template": server.template(s.name, new.name, new.number, s.namespace, spec.serving, config),
    }
    if spec.model.lineage:
        body["lineage"] = dict(spec.model.lineage)
    return {
        "apiVersion": names.API_VERSION,
        "kind": MODEL_REVISION.kind,
        "metadata": {
            "name": new.name,
            "namespace": s.namespace,
            "labels": {
                names.LABEL_NAME: s.name,
                names.LABEL_NUMBER: str(new.number),
                names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
            },
            "ownerReferences": [owner.reference()],
        },
        "spec": body,
    }
