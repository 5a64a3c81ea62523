"""Makes the children match the written state: writes what differs, deletes what is no longer
desired. It decides nothing: what is desired comes from the Plan, objects from ``render``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelRevisionStatus
from modelrollout.config import OperatorConfig
from modelrollout.controller.apply.prune import no_longer_desired, queued_for_outdated_request
from modelrollout.controller.apply.render import (
    owner_of,
    render_children,
    render_job,
    render_network_policies,
    render_revision,
    render_traffic,
)
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.observe.pods import disruption
from modelrollout.controller.observe.validation import job_violation
from modelrollout.kube.cache import ObjectCache, revisions_of
from modelrollout.kube.client import Kube
from modelrollout.kube.diff import differing_fields, is_up_to_date
from modelrollout.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
    Unreadable,
)
from modelrollout.kube.field_ownership import editors_of
from modelrollout.kube.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CHILDREN,
    DEPLOYMENT,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Resource,
)
from modelrollout.kube.objects import (
    Object,
    annotations_of,
    controller_of,
    controller_reference,
    is_deleting,
    label,
    preconditions,
)
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources import network_policies
from modelrollout.resources.common import NotAllowedError
from modelrollout.resources.server import grace_once_proven_worse
from modelrollout.rollout.plan import Desired, Event
from modelrollout.rollout.snapshot import NAME_TAKEN, in_flight
from modelrollout.rollout.stages import STAGES
from modelrollout.traffic.registry import backends_of

log = logging.getLogger(__name__)

_UNWRITTEN = "until it is written, its pods are unprotected"
_UNREMOVED = "it stays in force; grant the right, or delete it by hand"


class ChildRefused(KubeError):
    """A child that cannot be written with this spec: quota, admission, a forbidden store, a name
    that is taken. The status shows it.
    """


class LookRefused(ChildRefused):
    """The Job of a look at a source that is followed: nothing that serves needs it."""


class NotLeading(KubeError):
    """Another replica took the lease since this pass began, so nothing more may be written."""


@dataclass(frozen=True)
class Actor:
    """Carries out ``Desired``."""

    kube: Kube
    cache: ObjectCache
    config: OperatorConfig
    may_write: Callable[[], bool]
    report: Callable[[Observation, Event], Awaitable[None]]

    async def narrow(self, observation: Observation) -> tuple[bool, Problem | None]:
        """Narrow the routes that open more of the servers than clients may request, before any
        write that may be refused. Returns whether something was written, and the first refusal (a
        route may contain what the operator must not write). A refusal blocks nothing: ``converge``
        rewrites the whole route.
        """
        wrote, first_refusal = False, None
        for obj in observation.open_routes:
            try:
                wrote |= await self._match(observation, obj)
            except ChildRefused as e:
                first_refusal = first_refusal or Problem(e.reason, e.message)
        return wrote, first_refusal

    async def isolate(self, observation: Observation) -> tuple[bool, Problem | None]:
        """Make the NetworkPolicies match, before the pods that they are for. Returns whether
        something was written, and the first refusal.

        A refusal blocks nothing: the cluster may not enforce policies at all, and a rollback must
        not wait for a policy that a webhook or a finalizer blocks.
        """
        if self.config.network_policies is None or observation.observed.spec is None:
            return False, None
        desired = render_network_policies(observation, self.config)
        expected = {o["metadata"]["name"] for o in desired}
        # Only our own: deleting another owner's policy would open what it closes.
        unwanted = [
            o
            for (kind, name), o in observation.children.items()
            if kind == NETWORK_POLICY.kind
            and name not in expected
            and controller_of(o) == observation.deployment["metadata"]["uid"]
        ]
        wrote, problems = False, []
        for obj in (*desired, *unwanted):
            is_desired = obj["metadata"]["name"] in expected
            try:
                if is_desired and await self._match(observation, obj):
                    self._expect_stored_unchanged(obj)
                    wrote = True
                elif not is_desired:
                    wrote |= await self._delete(NETWORK_POLICY, obj)
            except NotLeading:
                raise
            except KubeError as e:
                refusal = e if isinstance(e, ChildRefused) else _child_refused(NETWORK_POLICY, obj, e)
                problems.append(
                    Problem(refusal.reason, f"{refusal.message}; {_UNWRITTEN if is_desired else _UNREMOVED}")
                )
                # an unresponsive webhook would take its time for each of them
                if isinstance(e, Unavailable):
                    break
        return wrote, next(iter(problems), None)

    def _expect_stored_unchanged(self, policy: Object) -> None:
        """Raises ChildRefused if something altered the policy on write: every pass would write it
        again.
        """
        name = policy["metadata"]["name"]
        live = self.cache.get(NETWORK_POLICY, policy["metadata"]["namespace"], name)
        if live is not None and not network_policies.is_equivalent(live, policy):
            raise ChildRefused(
                0,
                Reason.CHILD_REFUSED,
                f"NetworkPolicy {name}: something alters it on write (an admission webhook?)",
            )

    async def adopt(self, observation: Observation) -> bool:
        """Add the ownerReference to children that are our own by record only
        (``controller.observe.revisions``), and change nothing else of them. Returns whether
        something was written. Raises ChildRefused when everything left to adopt is refused.
        """
        owner = owner_of(observation.deployment, MODEL_DEPLOYMENT.kind).reference()
        wrote, refused = False, None
        for (kind, name), live in observation.children.items():
            if kind == POD.kind or controller_of(live) is not None:
                continue
            resource, metadata = CHILDREN[kind], live["metadata"]
            guards = preconditions(live)
            patch = {
                "metadata": {"ownerReferences": [*(metadata.get("ownerReferences") or []), owner], **guards}
            }
            self._fence()
            try:
                answer = await self.kube.merge_patch(resource, metadata["namespace"], name, patch)
            except (Conflict, NotFound):
                await self._refresh(resource, live)
                raise
            except (Forbidden, Invalid) as e:
                refused = refused or _child_refused(resource, live, e)
                continue
            self.cache.record_write(resource, answer, guarded=True)
            log.info("adopted %s %s", kind, name)
            wrote = True
        if refused is not None and not wrote:
            raise refused
        return wrote

    async def converge(self, observation: Observation, desired: Desired) -> tuple[bool, Problem | None]:
        """Make the children match ``desired``. Returns whether something was written, and the first
        refusal that blocks nothing else (``ChildWriter``). Raises KubeError; the next pass goes on
        from what was written.
        """
        writer = ChildWriter(self, observation)
        if observation.observed.spec is None:
            for obj in render_traffic(observation, desired) if desired.split else []:
                await writer.add(obj)
            return writer.wrote, writer.refused
        if desired.new_revision is not None:
            await self._create(
                MODEL_REVISION, render_revision(observation, desired.new_revision, self.config)
            )
            return True, None  # its uid owns the rest
        rendered = render_children(observation, desired, self.config)
        unwanted = list(no_longer_desired(observation, desired, rendered))
        released = await self._release_from_budgets(unwanted, desired.budget)
        wrote = bool(released)
        for obj in rendered:
            await writer.add(obj)
        # Deletion comes after: a backend goes only once the route that named it has been rewritten.
        if not writer.routes_incomplete:
            for live in unwanted:
                if live["metadata"]["uid"] not in released:
                    wrote |= await self._delete(CHILDREN[live["kind"]], live)
        for name, status in desired.revision_status.items():
            wrote |= await self._record(observation, name, status)
        for name in desired.forget:
            wrote |= await self._delete(MODEL_REVISION, observation.children[(MODEL_REVISION.kind, name)])
        # last: a Job that cannot be created holds up nothing else
        try:
            wrote |= await self._work(observation, desired, writer)
        except ChildRefused as e:
            if desired.look:
                raise LookRefused(e.status, e.reason, e.message) from e
            raise
        await self._shorten_grace(observation, desired)
        await self._report_disruptions(observation)
        return wrote or writer.wrote, writer.refused

    async def _work(self, observation: Observation, desired: Desired, writer: ChildWriter) -> bool:
        if desired.work is None or (job := self._job(observation, *desired.work)) is None:
            return False
        live = observation.children.get((JOB.kind, desired.work[1]))
        if live is None:
            await writer.add(job)
        # immutable, and its name says what it is for
        elif desired.recreate_work or queued_for_outdated_request(live, job):
            return await self._delete(JOB, live)
        return False

    async def _report_disruptions(self, observation: Observation) -> None:
        """Say which pods are taken away in the middle of a trial: fewer pods answer for a while,
        and the reader of a verdict should know why.
        """
        rollout = observation.observed.status.rollout
        if rollout is None or not in_flight(rollout) or not STAGES[rollout.stage].carries_weight:
            return
        for pod in observation.ending:
            if problem := disruption(pod):
                revision = label(pod, names.LABEL_REVISION)
                text = (
                    f"{problem.message}; revision {revision} has one pod less until its successor is ready,"
                    " and its end counts as no failure of the version"
                )
                await self.report(observation, Event(problem.reason, text, "Warning"))

    async def _release_from_budgets(self, unwanted: Iterable[Object], revision: str | None) -> set[str]:
        """Delete the budget of a canary before stable's takes over the pods of this ``revision``:
        one with two budgets cannot be evicted. No rollback waits for it, and a refusal blocks
        nothing: pruning, after the traffic, meets it again. Returns uids of what is deleted.
        """
        released = set()
        for live in unwanted:
            if live["kind"] != POD_DISRUPTION_BUDGET.kind or _protects(live) != revision:
                continue
            try:
                await self._delete(POD_DISRUPTION_BUDGET, live)
            except NotLeading:
                raise
            except KubeError as e:
                log.info("PodDisruptionBudget %s stays for now: %s", live["metadata"]["name"], e)
            else:
                released.add(live["metadata"]["uid"])
        return released

    async def _shorten_grace(self, observation: Observation, desired: Desired) -> None:
        """Give pods that are being deleted less time where their version was proven worse.

        Their template cannot say so, since what becomes of a version is known later, and a changed
        template would replace the pods. The API server only ever shortens the time of a pod that
        is being deleted. A refusal is told and blocks nothing.
        """
        for pod in observation.ending:
            metadata, revision = pod["metadata"], label(pod, names.LABEL_REVISION) or ""
            live = observation.children.get((MODEL_REVISION.kind, revision))
            if revision not in desired.worse or live is None:
                continue
            before, grace = (
                metadata.get("deletionGracePeriodSeconds", 0),
                grace_once_proven_worse(live["spec"]["template"]),
            )
            if grace is None or before <= grace:
                continue
            self._fence()
            try:
                await self.kube.delete(
                    POD, metadata["namespace"], metadata["name"], uid=metadata["uid"], grace_seconds=grace
                )
            except (Conflict, NotFound):  # it has ended
                continue
            except KubeError as e:
                remedy = (
                    "grant the operator delete on pods, as the chart's Role does"
                    if isinstance(e, Forbidden)
                    else "the next pass asks again"
                )
                text = (
                    f"pods of revision {revision}, which was proven worse, keep their {before} s to end"
                    f" instead of {grace}, and with them their GPUs: {e.message}; {remedy}"
                )
                await self.report(observation, Event(Reason.GRACE_KEPT, text, "Warning"))
                continue
            log.info("pod %s of a version that was proven worse has %d s to end", metadata["name"], grace)

    def _job(self, observation: Observation, component: str, name: str) -> Object | None:
        s = observation.observed
        if (JOB.kind, name) not in observation.children and (
            problem := job_violation(s, component, self.config)
        ):
            raise ChildRefused(0, problem.reason, problem.message)
        try:
            return render_job(
                observation,
                component,
                name,
                self.config,
                of_same_source=lambda sha256: self.cache.find_marked(revisions_of(s.namespace, sha256)),
                salt=secrets.token_hex(8),
            )
        except NotAllowedError as e:
            raise ChildRefused(0, Reason.STORE_NOT_ALLOWED, str(e)) from e
        except ValidationError as e:
            text = (
                f"the revision was made by another version of the operator: {e.error_count()} of its fields"
                " cannot be read; change spec, or install that version again"
            )
            raise ChildRefused(0, Reason.REVISION_UNREADABLE, text) from e

    def _fence(self) -> None:
        """Raises NotLeading. A process that was paused in mid-pass (SIGSTOP, a frozen machine) may
        resume long after its lease ended.
        """
        if not self.may_write():
            raise NotLeading(0, "NotLeading", "another replica leads")

    async def _match(self, observation: Observation, obj: Object) -> bool:
        kind, name = obj["kind"], obj["metadata"]["name"]
        resource = CHILDREN[kind]
        live = observation.children.get((kind, name))
        if (
            live is not None
            and is_up_to_date(live, obj)
            and (kind != NETWORK_POLICY.kind or network_policies.is_equivalent(live, obj))
        ):
            return False
        if live is None:
            await self._create(resource, obj)
        else:
            await self._apply(resource, obj, live, guarded=resource.guarded)
            if edit := foreign_edit(live, obj):
                await self.report(observation, Event(Reason.CHILD_REVERTED, edit, "Warning"))
        return True

    async def _apply(self, resource: Resource, obj: Object, live: Object, *, guarded: bool) -> None:
        uid, version = live["metadata"]["uid"], live["metadata"]["resourceVersion"] if guarded else None
        self._fence()
        try:
            answer = await self._apply_owning_fields(resource, obj, uid, version)
        except Conflict:
            await self._refresh(resource, obj)
            raise
        except (Forbidden, Invalid) as e:
            raise _child_refused(resource, obj, e) from e
        self.cache.record_write(resource, answer, guarded=guarded)
        log.info("applied %s %s", resource.kind, obj["metadata"]["name"])

    async def _apply_owning_fields(
        self, resource: Resource, obj: Object, uid: str, version: str | None
    ) -> Object:
        """Apply, and if an object that was created rather than applied, or edited by hand, keeps
        fields that conflict with the desired ones, take over its fields first.
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
        """Only create: a forced apply would take over an unrelated object of that name, and undo
        what a newer leader has written.
        """
        name = obj["metadata"]["name"]
        known = self.cache.get(resource, obj["metadata"]["namespace"], name)
        self._fence()
        try:
            answer = await self.kube.create(resource, obj)
        except AlreadyExists as e:
            live = await self._refresh(resource, obj)
            if live is not None and not is_deleting(live):
                if controller_of(live) != controller_of(obj):
                    # otherwise its owner has changed, which the next pass observes
                    if known is None or controller_of(known) == controller_of(live):
                        raise ChildRefused(e.status, NAME_TAKEN, _name_conflict(live, obj)) from e
                elif resource == DEPLOYMENT:
                    # Its template was decided as if there were no pods (rollout.pod_restarts):
                    # restore no more than the watch needs.
                    guards = preconditions(live)
                    patch = {"metadata": {"labels": obj["metadata"]["labels"], **guards}}
                    self.cache.record_write(
                        resource,
                        await self.kube.merge_patch(resource, obj["metadata"]["namespace"], name, patch),
                        guarded=True,
                    )
                elif resource not in (JOB, MODEL_REVISION) and not is_up_to_date(live, obj):
                    # it lost our label, and thus the watch
                    await self._apply(resource, obj, live, guarded=True)
                    return
            raise Conflict(
                e.status, "StaleRead", f"{resource.kind} {name} was missing from the watch cache"
            ) from e
        except (Forbidden, Invalid) as e:
            raise _child_refused(resource, obj, e) from e
        self.cache.record_write(resource, answer, guarded=True)
        log.info("created %s %s", resource.kind, name)

    async def _refresh(self, resource: Resource, obj: Object) -> Object | None:
        """Read the object itself into the cache, which was stale."""
        metadata = obj["metadata"]
        try:
            live = await self.kube.get(resource, metadata["namespace"], metadata["name"])
        except NotFound:
            stored = self.cache.get(resource, metadata["namespace"], metadata["name"])
            if stored is not None:
                self.cache.record_deletion(
                    resource, metadata["namespace"], metadata["name"], stored["metadata"]["uid"]
                )
            return None
        except Unreadable as e:
            raise ChildRefused(
                e.status, Reason.CHILD_UNREADABLE, f"{e.message}; delete it, and it is recreated"
            ) from e
        self.cache.record_read(resource, live)
        return live

    async def _delete(self, resource: Resource, live: Object) -> bool:
        metadata = live["metadata"]
        self._fence()
        try:
            await self.kube.delete(resource, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        except NotFound:
            pass
        except Conflict:  # another object has that name by now
            await self._refresh(resource, live)
            return True
        self.cache.record_deletion(resource, metadata["namespace"], metadata["name"], metadata["uid"])
        log.info("deleted %s %s", resource.kind, metadata["name"])
        return True

    async def _record(self, observation: Observation, name: str, status: ModelRevisionStatus) -> bool:
        """Write a revision's status, and copy a final outcome into its annotations, because a
        backup restores no status.

        The copy comes first: if only that is written, the status still differs, and the next pass
        does both.
        """
        before = observation.children.get((MODEL_REVISION.kind, name))
        if before is None:
            return False
        live = before
        self._fence()
        try:
            copied = annotations_of(live).get(names.ANNOTATION_OUTCOME, "Pending")
            if status.outcome not in ("Pending", "Canary", copied):
                annotations = {
                    names.ANNOTATION_OUTCOME: status.outcome,
                    names.ANNOTATION_REASON: status.reason,
                }
                guards = preconditions(live)
                patch = {"metadata": {"annotations": annotations, **guards}}
                live = await self.kube.merge_patch(MODEL_REVISION, live["metadata"]["namespace"], name, patch)
                self.cache.record_write(MODEL_REVISION, live, guarded=True)
            answer = await self.kube.replace_status(MODEL_REVISION, {**live, "status": status.wire()})
        except (Conflict, NotFound):
            await self._refresh(MODEL_REVISION, before)
            raise
        self.cache.record_write(MODEL_REVISION, answer, guarded=True)
        return True


def foreign_edit(live: Object, desired: Object) -> str | None:
    """Who else has changed what the operator has just written, as far as the API server knows."""
    fields = list(differing_fields(live.get("spec"), desired.get("spec"), "spec"))
    editors = editors_of(live["metadata"].get("managedFields") or [], fields)
    if not editors:
        return None
    return (
        f"{live['kind']} {live['metadata']['name']}: {', '.join(editors)} changed"
        f" {', '.join('.'.join(path) for path in fields)}, which the operator has put back; change the"
        " ModelDeployment instead"
    )


def _child_refused(resource: Resource, obj: Object, e: KubeError) -> ChildRefused:
    return ChildRefused(
        e.status, Reason.CHILD_REFUSED, f"{resource.kind} {obj['metadata']['name']}: {e.message}"
    )


def _protects(budget: Object) -> str | None:
    """The revision whose pods a budget selects."""
    selector = ((budget.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
    revision: str | None = selector.get(names.LABEL_REVISION)
    return revision


def _name_conflict(live: Object, desired: Object) -> str:
    """What holds the name of a child, and the remedy. The object itself stays as it is."""
    holder = controller_reference(live)
    mine = controller_reference(desired)
    if not holder:
        ownership = "no controller owns it, and labels do not establish ownership"
    elif (holder.get("kind"), holder.get("name")) == (mine["kind"], mine["name"]):
        ownership = (
            f"an earlier {mine['kind']} of the name {mine['name']} controls it, and the garbage collector may"
            " be about to delete it"
        )
    else:
        ownership = f"{holder.get('kind')} {holder.get('name')} controls it"
    return (
        f"{desired['kind']} {desired['metadata']['name']} exists and is not this model's: {ownership}; delete"
        " it, and the operator makes its own, or choose another name for the ModelDeployment"
    )


@dataclass
class ChildWriter:
    """Writes children one after the other. A name that is taken, servers that cannot be changed, or
    a policy by which sessions stick that cannot be written, block only what needs that very object;
    a budget that cannot be written (a quota of the namespace) blocks nothing.
    """

    actor: Actor
    observation: Observation
    wrote: bool = False
    refused: Problem | None = None  # the first
    # what directs traffic is not as desired, so nothing that it may lead to may be deleted
    routes_incomplete: bool = False
    # (kind, name) of backends that are not ours
    _backends: set[tuple[str, str]] = field(default_factory=set)

    async def add(self, obj: Object) -> None:
        kind, name = obj["kind"], obj["metadata"]["name"]
        live = self.observation.children.get((kind, name))
        if self._backends & (backends_of(obj) - (backends_of(live) if live is not None else set())):
            self.routes_incomplete = True  # it would newly send clients to an unrelated object
            return
        # no backend: routes divide requests without it, sessions or not
        is_beside = kind in (BACKEND_TRAFFIC_POLICY.kind, POD_DISRUPTION_BUDGET.kind)
        try:
            self.wrote |= await self.actor._match(self.observation, obj)
        except ChildRefused as e:
            # Existing servers that cannot be changed keep running: weights follow the ready pods.
            is_running = kind == DEPLOYMENT.kind and live is not None
            if e.reason != NAME_TAKEN and not is_running and not is_beside:
                raise
            self.refused = self.refused or Problem(e.reason, e.message)
            if CHILDREN[kind].guarded and not is_beside:
                self._backends.add((kind, name))
                self.routes_incomplete |= kind != SERVICE.kind or (
                    name == self.observation.observed.name and not self.observation.observed.exact_weights
                )
