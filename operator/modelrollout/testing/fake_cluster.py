"""A cluster in memory: the API server of ``fake_api``, and the controllers around it as methods of
``Cluster``. ``Operator`` is one operator process on it: cache, look-ups, reconciler, and the
requeueing of ``controller.process``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.config import ArtifactStoreConfig, ImagesConfig, OperatorConfig, StoreConfig
from modelrollout.contract.common import TASK_ENV
from modelrollout.controller.lookups.lookups import Lookups
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.reconciler import Reconciler
from modelrollout.kube import cache
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    GATEWAY,
    GATEWAY_CLASS,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
    ROLLOUT_POLICY,
    WATCHED,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.rollout.milestones import Milestones
from modelrollout.rollout.plan import Event
from modelrollout.rollout.snapshot import Assessment, Observed
from modelrollout.testing import builders as b
from modelrollout.testing.fake_api import FakeApi

KEY = (b.NAMESPACE, b.NAME)
CONFIG = OperatorConfig(
    stores=[
        StoreConfig(name="models", uri="s3://models", endpoint="http://s3:9000", secret_name="s3-reader")
    ],
    artifacts=ArtifactStoreConfig(name="artifacts", uri="s3://artifacts", secret_name="s3-writer"),
    images=ImagesConfig(optimizer="example/optimizer:1", triton="example/triton:1"),
)


class Cluster(FakeApi):
    """A ``FakeApi`` with the controllers around it."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds |= {GATEWAY.kind, GATEWAY_CLASS.kind}
        self.open_gateway()

    def user(self, spec: Any, **metadata: Any) -> Object:
        """Create or edit the ModelDeployment."""
        wire = spec if isinstance(spec, dict) else spec.wire()
        return self.set_spec(MODEL_DEPLOYMENT, KEY[1], wire, **metadata)

    def policy(self, name: str, **spec: Any) -> Object:
        """A platform team applies a RolloutPolicy."""
        return self.set_spec(ROLLOUT_POLICY, name, spec)

    def open_gateway(self, name: str = "public", **spec: Any) -> None:
        """A platform team creates or edits a Gateway, and its controller programs it."""
        self.set_spec(GATEWAY_CLASS, "simple", {"controllerName": b.CONTROLLER})
        listener = {"name": "http", "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
        usual = {"gatewayClassName": "simple", "listeners": [listener]}
        made = self.set_spec(GATEWAY, name, usual | spec)
        stated = {"status": "True", "reason": "Stated", "observedGeneration": made["metadata"]["generation"]}
        conditions = [{"type": kind, **stated} for kind in ("Accepted", "Programmed")]
        self.set_status(GATEWAY, name, {"conditions": conditions})

    def annotate(self, revision: str, verb: str, value: str) -> None:
        """Say a verb."""
        self.change(
            MODEL_REVISION,
            revision,
            lambda o: (
                o["metadata"].setdefault("annotations", {}).update({names.verb_annotation(verb): value})
            ),
        )

    def end_jobs(self, result: Callable[[Object], tuple[int, str]] | None = None) -> None:
        """Every Job that runs ends: a pod with exit code and termination message, and the Job's
        condition.
        """
        for name, job in self.all(JOB).items():
            if (job.get("status") or {}).get("conditions"):
                continue
            code, message = (result or _good)(job)
            pod = f"{name}-x"
            if self.find(POD, pod) is None:
                ended = {"terminated": {"exitCode": code, "message": message}}
                status = {
                    "phase": "Failed" if code else "Succeeded",
                    "containerStatuses": [{"name": "job", "state": ended}],
                }
                spec = job["spec"]["template"]["spec"]
                self.put(POD, {"metadata": {"name": pod, **of_job(job)}, "spec": spec, "status": status})
            kind = "Failed" if code else "Complete"
            self.set_status(JOB, name, {"conditions": [{"type": kind, "status": "True", "reason": kind}]})

    def start_pods(self) -> None:
        """Every Deployment has all its replicas available."""
        for (resource, namespace, name), o in list(self.objects.items()):
            if resource == DEPLOYMENT:
                count, generation = o["spec"]["replicas"], o["metadata"]["generation"]
                status = {"replicas": count, "availableReplicas": count, "observedGeneration": generation}
                self.set_status(resource, name, status, namespace)

    def accept_routes(self) -> None:
        """The gateway accepts every route as it is."""
        for (resource, namespace, name), o in list(self.objects.items()):
            if resource in (HTTP_ROUTE, GRPC_ROUTE):
                self.set_status(resource, name, b.answered(o), namespace)

    @property
    def status(self) -> ModelDeploymentStatus:
        found = self.find(MODEL_DEPLOYMENT)
        assert found is not None
        return ModelDeploymentStatus.model_validate(found.get("status") or {})

    def weights(self, resource: Resource = HTTP_ROUTE) -> dict[str, int]:
        route = self.find(resource)
        return (
            {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]} if route else {}
        )


def of_job(job: Object) -> Object:
    """Metadata of a pod that the Job controls."""
    metadata = job["metadata"]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    labels = metadata["labels"] | {names.LABEL_JOB: metadata["name"]}
    return {"generateName": f"{metadata['name']}-", "labels": labels, "ownerReferences": [owner]}


class Operator:
    """One operator process, with a cache of its own."""

    def __init__(self, cluster: Cluster, config: OperatorConfig = CONFIG) -> None:
        self.cluster = cluster
        self.store = cache.ObjectCache()
        self.assessment: Assessment | None = None
        self.events: list[Event] = []
        self.happened: list[Milestones] = []
        self.leads = True
        self.deaf = False
        self._missed: list[tuple[Resource, str, Object]] = []
        for resource in WATCHED:
            for o in cluster.all(resource).values():
                self._watch(resource, "ADDED", o)
        cluster.watch(self._watch)
        self.woken: list[tuple[str, str]] = []
        self.retries: list[float] = []  # seconds after which failed passes are to be repeated
        self.lookups = Lookups(
            cluster,  # type: ignore[arg-type]
            self.store,
            config,
            "operators",
            lambda key, _: self.woken.append(key),
            lambda: cluster.now,
            lambda: self.leads,
            lambda: cluster.now.timestamp(),
        )
        self.reconciler = Reconciler(
            kube=cluster,  # type: ignore[arg-type]
            cache=self.store,
            config=config,
            assessor=self,
            reporter=self,
            lookups=self.lookups,
            now=lambda: cluster.now,
            may_write=lambda: self.leads,
            wake=lambda key, seconds: self.retries.append(seconds),
        )

    def _watch(self, resource: Resource, event: str, obj: Object) -> None:
        if resource not in WATCHED:
            return
        if self.deaf:
            self._missed.append((resource, event, obj))
            return
        unlabelled = names.LABEL_NAME not in (obj["metadata"].get("labels") or {})
        if not resource.watch_all and unlabelled:
            if self.store.get(resource, obj["metadata"]["namespace"], obj["metadata"]["name"]) is None:
                return
            event = "DELETED"  # what loses the label leaves the watch
        self.store.observe(resource, {"type": event, "object": obj})

    def hear(self) -> None:
        """The watch catches up."""
        self.deaf, missed = False, self._missed
        self._missed = []
        for event in missed:
            self._watch(*event)

    async def assess(self, s: Observed) -> Assessment | None:
        return self.assessment

    async def post(self, observation: Observation, event: Event) -> None:
        self.events.append(event)

    def count(self, namespace: str, happened: Milestones) -> None:
        self.happened.append(happened)

    async def once(self) -> float | None:
        """One pass, as a worker does it: a failure is a failure of this pass only."""
        return await self.reconciler.reconcile(KEY)

    async def settle(self, limit: int = 60) -> float | None:
        """Passes until nothing is left to do now; errors are tried again."""
        for _ in range(limit):
            try:
                again = await self.once()
            except KubeError as e:
                self.last_error = e
                continue
            if again != 0:
                return again
        return 0.0

    async def live(self, rounds: int = 12) -> None:
        """Time passes and everything goes well."""
        for _ in range(rounds):
            await self.settle()
            self.cluster.end_jobs()
            self.cluster.start_pods()
            self.cluster.accept_routes()
            self.cluster.now += timedelta(seconds=4)
        await self.settle()


def _good(job: Object) -> tuple[int, str]:
    container = job["spec"]["template"]["spec"]["containers"][0]
    task = json.loads(next(e["value"] for e in container["env"] if e["name"] == TASK_ENV))
    sha256, uri = None, None
    if task["task"] == "resolve":
        sha256 = b.sha_of(task["source"]["uri"])
    elif task["task"] == "prepare":
        sha256 = task["sha256"]
        uri = f"{task['artifacts']['uri']}/{sha256}-{task['salt']}-00000000"
    return 0, b.job_result(task["task"], sha256, uri).model_dump_json(exclude_none=True)
