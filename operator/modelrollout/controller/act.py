"""Make the children match the written state: render what is desired, write what differs, remove what is not named."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from modelrollout.api import names
from modelrollout.api.config import OperatorConfig
from modelrollout.api.v1alpha1 import Model, ModelRevisionStatus, Optimization, Serving
from modelrollout.controller.observe import Seen
from modelrollout.kube.cache import Store
from modelrollout.kube.client import (
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    AlreadyExists,
    Conflict,
    Kube,
    NotFound,
    Object,
    Resource,
)
from modelrollout.resources import jobs, server
from modelrollout.resources.common import Owner
from modelrollout.rollout.desired import ALL_REVISIONS
from modelrollout.rollout.facts import Desired

log = logging.getLogger(__name__)

RESOURCES: Mapping[str, Resource] = {r.kind: r for r in (MODEL_REVISION, JOB, DEPLOYMENT, SERVICE, POD_DISRUPTION_BUDGET, HTTP_ROUTE, GRPC_ROUTE)}
# What is removed when it is no longer desired. Jobs that have ended go by their time to live.
_PRUNED = (JOB.kind, DEPLOYMENT.kind, SERVICE.kind, POD_DISRUPTION_BUDGET.kind, HTTP_ROUTE.kind, GRPC_ROUTE.kind)
# An older leader that wakes up late must not undo a step: these are written only in the state that the pass has seen.
_GUARDED = (HTTP_ROUTE.kind, GRPC_ROUTE.kind, SERVICE.kind)


@dataclass(frozen=True)
class Actor:
    """Carries out ``Desired``."""

    kube: Kube
    store: Store
    config: OperatorConfig

    async def act(self, seen: Seen, desired: Desired) -> bool:
        """True when something was written. Raises KubeError; what was written stays, the next pass goes on from there."""
        wrote = False
        if desired.new_revision is not None:
            await self._create(MODEL_REVISION, _revision(seen, desired, self.config))
            return True  # its uid owns the rest
        wanted = self._render(seen, desired)
        for obj in wanted:
            wrote |= await self._match(seen, obj)
        # Removal comes last: a backend goes only after the route that named it was written anew.
        wrote |= await self._prune(seen, {(o["kind"], o["metadata"]["name"]) for o in wanted})
        for name, status in desired.revision_status.items():
            wrote |= await self._record(seen, name, status)
        for name in desired.forget:
            wrote |= await self._delete(MODEL_REVISION, seen.children[(MODEL_REVISION.kind, name)])
        return wrote

    def _render(self, seen: Seen, desired: Desired) -> list[Object]:
        """Objects in the order in which they are written: what carries traffic before what sends it there."""
        s, spec = seen.snapshot, seen.snapshot.spec
        assert spec is not None and seen.router is not None
        owner = _owner(seen.deployment, MODEL_DEPLOYMENT.kind)
        found: list[Object] = []
        if desired.work is not None:
            found += self._job(seen, *desired.work)
        for name, replicas in desired.servers.items():
            revision, live = s.revision(name), seen.children.get((MODEL_REVISION.kind, name))
            artifact = revision.status.artifact if revision else None
            if s.status.rollout and s.status.rollout.revision == name and s.status.rollout.artifact:
                artifact = s.status.rollout.artifact
            if revision is None or live is None or artifact is None or not artifact.digest:
                continue
            mine = _owner(live, MODEL_REVISION.kind)
            frozen = live["spec"]["template"]
            found.append(server.server_deployment(mine, s.name, revision.number, frozen, artifact.uri, artifact.digest, replicas, self.config))
            found.append(server.revision_service(mine, s.name, revision.number))
        if desired.selector is not None:
            found.append(server.stable_service(owner, None if desired.selector == ALL_REVISIONS else desired.selector))
        if desired.budget is not None:
            found.append(server.disruption_budget(owner, desired.budget))
        return found + seen.router.children(owner, desired.split)

    def _job(self, seen: Seen, component: str, name: str) -> list[Object]:
        s, spec = seen.snapshot, seen.snapshot.spec
        assert spec is not None and s.status.rollout is not None
        if component == names.COMPONENT_RESOLVE:
            return [jobs.resolve_job(_owner(seen.deployment, MODEL_DEPLOYMENT.kind), name, spec.model, spec.serving, self.config)]
        live = seen.children.get((MODEL_REVISION.kind, s.status.rollout.revision or ""))
        if live is None:
            return []
        owner, kept, number = _owner(live, MODEL_REVISION.kind), live["spec"]["input"], live["spec"]["number"]
        model, serving = Model.model_validate(kept["model"]), Serving.model_validate(kept["serving"])
        if component == names.COMPONENT_PREPARE:
            # Resources and time limit of the Job are no part of the version: the present ones hold.
            optimization = Optimization.model_validate(kept["optimization"]).model_copy(
                update={"resources": spec.optimization.resources, "timeout": spec.optimization.timeout}
            )
            return [jobs.prepare_job(owner, s.name, number, name, model, live["spec"]["sha256"], optimization, serving, self.config)]
        golden = spec.rollout.analysis.golden
        assert golden is not None
        stable = (s.status.stable.revision, s.status.stable.number) if s.status.stable else None
        return [jobs.evaluate_job(owner, s.name, number, name, golden, stable, model, serving, self.config)]

    async def _match(self, seen: Seen, obj: Object) -> bool:
        kind, name = obj["kind"], obj["metadata"]["name"]
        resource = RESOURCES[kind]
        live = seen.children.get((kind, name))
        if live is not None and (kind == JOB.kind or covers(live, obj)):
            return False  # a Job is immutable, its name says what it is for
        if kind == JOB.kind:
            await self._create(resource, obj)
            return True
        guarded = kind in _GUARDED and live is not None
        version = live["metadata"]["resourceVersion"] if guarded and live else None
        uid = live["metadata"]["uid"] if live else None
        try:
            answer = await self.kube.apply(resource, obj, uid=uid, resource_version=version)
        except Conflict:
            await self._look_again(resource, obj)
            raise
        self.store.written(resource, answer, guarded=guarded)
        log.info("applied %s %s", kind, name)
        return True

    async def _create(self, resource: Resource, obj: Object) -> None:
        try:
            answer = await self.kube.create(resource, obj)
        except AlreadyExists:
            await self._look_again(resource, obj)
            return
        self.store.written(resource, answer, guarded=True)
        log.info("created %s %s", resource.kind, obj["metadata"]["name"])

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
        self.store.read(resource, live)
        return live

    async def _prune(self, seen: Seen, wanted: set[tuple[str, str]]) -> bool:
        wrote = False
        for (kind, name), live in seen.children.items():
            if kind not in _PRUNED or (kind, name) in wanted or not _ours(live):
                continue
            if kind == JOB.kind and _ended(live):
                continue
            wrote |= await self._delete(RESOURCES[kind], live)
        return wrote

    async def _delete(self, resource: Resource, live: Object) -> bool:
        metadata = live["metadata"]
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

    async def _record(self, seen: Seen, name: str, status: ModelRevisionStatus) -> bool:
        """Write a revision's status, and mirror an outcome that is final in its annotations: a backup brings no status."""
        live = seen.children.get((MODEL_REVISION.kind, name))
        if live is None:
            return False
        try:
            answer = await self.kube.replace_status(MODEL_REVISION, {**live, "status": status.wire()})
        except (Conflict, NotFound):
            await self._look_again(MODEL_REVISION, live)
            raise
        self.store.written(MODEL_REVISION, answer, guarded=True)
        mirrored = (live["metadata"].get("annotations") or {}).get(names.ANNOTATION_OUTCOME, "Pending")
        if status.outcome not in ("Pending", "Canary") and mirrored != status.outcome:
            annotations = {names.ANNOTATION_OUTCOME: status.outcome, names.ANNOTATION_REASON: status.reason}
            patch = {"metadata": {"annotations": annotations, "uid": live["metadata"]["uid"]}}
            answer = await self.kube.merge_patch(MODEL_REVISION, live["metadata"]["namespace"], name, patch)
            self.store.written(MODEL_REVISION, answer, guarded=False)
        return True


def _owner(o: Object, kind: str) -> Owner:
    m = o["metadata"]
    return Owner(kind, m["name"], m["namespace"], m["uid"])


def _ours(o: Object) -> bool:
    return (o["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER


def _ended(job: Object) -> bool:
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in (job.get("status") or {}).get("conditions") or [])


def _revision(seen: Seen, desired: Desired, config: OperatorConfig) -> Object:
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
            "labels": {names.LABEL_NAME: s.name, names.LABEL_NUMBER: str(new.number), names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
            "ownerReferences": [owner.reference()],
        },
        "spec": body,
    }


def covers(live: Any, wanted: Any) -> bool:
    """Whether the live object has everything that is wanted; what the API server added by default does not count.

    An empty map or list is covered by its absence, quantities compare by value.
    """
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        return all(covers(live.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return not wanted and live is None
        return len(live) == len(wanted) and all(covers(a, b) for a, b in zip(live, wanted, strict=True))
    if live == wanted:
        return True
    if isinstance(wanted, int | str) and isinstance(live, int | str) and not isinstance(wanted, bool):
        try:
            return bool(parse_quantity(live) == parse_quantity(wanted))  # type: ignore[no-untyped-call]
        except ValueError:
            return False
    return False
