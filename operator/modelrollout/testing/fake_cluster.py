"""A cluster in memory: an API server with resourceVersion, server-side apply (approximated),
defaults and garbage collection, and the controllers around it as methods of ``Cluster``.
``Operator`` is one operator process on it: cache, look-ups, reconciler, and the requeueing of
``controller.process``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from functools import reduce
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.config import ArtifactStoreConfig, ImagesConfig, OperatorConfig, StoreConfig
from modelrollout.contract.common import TASK_ENV
from modelrollout.contract.results import TaskResult
from modelrollout.controller.lookups.lookups import Lookups
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.reconciler import Reconciler
from modelrollout.kube import cache
from modelrollout.kube.client import Listing
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    LEASE,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
    ROLLOUT_POLICY,
    WATCHED,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.rollout.plan import Event
from modelrollout.rollout.snapshot import Assessment, Observed
from modelrollout.testing import builders as b

KEY = (b.NAMESPACE, b.NAME)
CONFIG = OperatorConfig(
    stores=[
        StoreConfig(name="models", uri="s3://models", endpoint="http://s3:9000", secret_name="s3-reader")
    ],
    artifacts=ArtifactStoreConfig(name="artifacts", uri="s3://artifacts", secret_name="s3-writer"),
    images=ImagesConfig(optimizer="example/optimizer:1", triton="example/triton:1"),
)
_Id = tuple[Resource, str, str]


class Cluster:
    """Objects by resource, namespace and name. ``requests`` names every request in order,
    ``before`` may fail them.
    """

    def __init__(self) -> None:
        self.objects: dict[_Id, Object] = {}
        self.requests: list[str] = []
        self.now = b.START
        self.round = 0
        self.died_at = ""
        self.before: Callable[[str, Resource, str], None] = lambda verb, resource, name: None
        self.kinds: set[str] = {HTTP_ROUTE.kind, GRPC_ROUTE.kind}
        self.unread: list[UnreadableObject] = []  # what every list leaves out
        self._applied: dict[_Id, Object] = {}
        self._version = 0
        self._watchers: list[Callable[[Resource, str, Object], None]] = []

    def copy(self) -> Cluster:
        """A copy of the cluster, as it is before the request under way; without watchers."""
        made = Cluster()
        # values are never changed, only replaced
        made.objects, made._applied = dict(self.objects), dict(self._applied)
        made.kinds, made.now, made.round, made._version = set(self.kinds), self.now, self.round, self._version
        made.died_at = self.requests[-1]
        return made

    # --- what kube.client.Kube offers

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return self._answer(self._begin("get", resource, namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 200,
        keep: Callable[[Object], Object] = lambda o: o,
    ) -> Listing:
        self.requests.append(f"list {resource.kind}")
        self.before("list", resource, "")
        key, equals, value = label_selector.partition("=")

        def selected(labels: dict[str, str]) -> bool:
            if key.startswith("!"):
                return key[1:] not in labels
            return not key or (labels.get(key) == value if equals else key in labels)

        found = [
            o
            for i, o in self.objects.items()
            if i[0] == resource and namespace in (None, i[1]) and selected(o["metadata"].get("labels") or {})
        ]
        for term in filter(None, field_selector.split(",")):
            path, wanted = term.split("=")
            found = [
                o
                for o in found
                if reduce(lambda inside, name: inside.get(name) or {}, path.split("."), o) == wanted  # type: ignore[comparison-overlap]
            ]
        return Listing([keep(o) for o in found], str(self._version), tuple(self.unread))

    async def replace(self, resource: Resource, obj: Object) -> Object:
        i = self._begin("replace", resource, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        if self.objects[i]["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", f"resourceVersion of {i[2]}")
        return self._answer(self._put(i, copy.deepcopy(obj)))

    async def has_kind(self, resource: Resource, ttl: float = 60.0) -> bool:
        return resource.kind in self.kinds

    async def create(self, resource: Resource, obj: Object) -> Object:
        i = self._begin(
            "create", resource, obj["metadata"]["namespace"], obj["metadata"]["name"], exists=False
        )
        if i in self.objects:
            raise AlreadyExists(409, "AlreadyExists", i[2])
        return self._answer(self._create(i, obj))

    async def apply(
        self, resource: Resource, obj: Object, *, uid: str | None = None, resource_version: str | None = None
    ) -> Object:
        assert uid or not resource_version, "resourceVersion alone would create an absent object"
        i = self._begin(
            "apply", resource, obj["metadata"]["namespace"], obj["metadata"]["name"], exists=False
        )
        live = self.objects.get(i)
        if uid and (live is None or live["metadata"]["uid"] != uid):
            raise Conflict(409, "Conflict", f"uid of {i[2]}")
        if live is None:
            self._applied[i] = copy.deepcopy(obj)
            return self._answer(self._create(i, obj))
        if resource_version and live["metadata"]["resourceVersion"] != resource_version:
            raise Conflict(409, "Conflict", f"resourceVersion of {i[2]}")
        merged = _without_status(_merge(copy.deepcopy(live), self._applied.get(i, {}), obj))
        self._applied[i] = copy.deepcopy(obj)
        return self._answer(
            self._put(i, _defaulted(merged) | ({"status": live["status"]} if "status" in live else {}))
        )

    async def own_by_apply(self, resource: Resource, namespace: str | None, name: str, *, uid: str) -> bool:
        return False

    async def replace_status(self, resource: Resource, obj: Object) -> Object:
        i = self._begin("status", resource, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        live = self.objects[i]
        if live["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", f"resourceVersion of {i[2]}")
        return self._answer(self._put(i, live | {"status": copy.deepcopy(obj["status"])}))

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object:
        i = self._begin("patch", resource, namespace, name)
        live = copy.deepcopy(self.objects[i])
        guards = patch["metadata"]
        if any(guards.get(k, live["metadata"][k]) != live["metadata"][k] for k in ("uid", "resourceVersion")):
            raise Conflict(409, "Conflict", name)
        for part in ("annotations", "labels"):
            if given := guards.get(part):
                live["metadata"].setdefault(part, {}).update(given)
        if "ownerReferences" in guards:
            live["metadata"]["ownerReferences"] = copy.deepcopy(guards["ownerReferences"])
        return self._answer(self._put(i, live))

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        i = self._begin("delete", resource, namespace, name)
        metadata = self.objects[i]["metadata"]
        if (uid or metadata["uid"]) != metadata["uid"] or (
            resource_version or metadata["resourceVersion"]
        ) != metadata["resourceVersion"]:
            raise Conflict(409, "Conflict", name)
        if resource == LEASE:  # of the operator's namespace, and watched by nobody
            del self.objects[i]
            return
        self.remove(resource, name)

    # --- the API server

    def _begin(
        self, verb: str, resource: Resource, namespace: str | None, name: str, *, exists: bool = True
    ) -> _Id:
        i = (resource, namespace or "", name)
        self.requests.append(f"{verb} {resource.kind} {name}")
        self.before(verb, resource, name)
        if exists and i not in self.objects:
            raise NotFound(404, "NotFound", name)
        return i

    def _answer(self, found: _Id | Object) -> Object:
        # shared: nobody may change what was answered
        return self.objects[found] if isinstance(found, tuple) else found

    def _create(self, i: _Id, obj: Object) -> Object:
        made = _defaulted(_without_status(copy.deepcopy(obj)))
        created = (
            (self.now + timedelta(microseconds=self._version))
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z")
        )
        made["metadata"] |= {"uid": f"uid-{self._version}", "generation": 1, "creationTimestamp": created}
        return self._put(i, made)

    def _put(self, i: _Id, obj: Object) -> Object:
        old = self.objects.get(i)
        metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
        if old is not None:
            if {**old, "metadata": metadata | {"resourceVersion": old["metadata"]["resourceVersion"]}} == {
                **obj,
                "metadata": old["metadata"],
            }:
                return old
            metadata["generation"] = old["metadata"]["generation"] + (old.get("spec") != obj.get("spec"))
        self._version += 1
        obj = {**obj, "metadata": metadata | {"resourceVersion": str(self._version)}}
        self.objects[i] = obj
        self._tell(i[0], "MODIFIED" if old else "ADDED", obj)
        return obj

    def _tell(self, resource: Resource, event: str, obj: Object) -> None:
        for watcher in self._watchers:
            watcher(resource, event, obj)

    def watch(self, watcher: Callable[[Resource, str, Object], None]) -> None:
        """Tell of every change from now on."""
        self._watchers.append(watcher)

    def deaf_to(self, resource: Resource) -> None:
        """Whoever watches now hears nothing more of these."""

        def but(watcher: Callable[[Resource, str, Object], None]) -> Callable[[Resource, str, Object], None]:
            return lambda of, event, obj: None if of == resource else watcher(of, event, obj)

        self._watchers = [but(watcher) for watcher in self._watchers]

    # --- users, controllers, the data plane

    def user(self, spec: Any, **metadata: Any) -> Object:
        """Create or edit the ModelDeployment."""
        i = (MODEL_DEPLOYMENT, *KEY)
        live = self.objects.get(i)
        wire = spec if isinstance(spec, dict) else spec.wire()
        if live is None:
            made = {"apiVersion": names.API_VERSION, "kind": "ModelDeployment", "spec": wire}
            return self._create(i, made | {"metadata": {"name": KEY[1], "namespace": KEY[0], **metadata}})
        return self._put(i, copy.deepcopy(live) | {"spec": wire})

    def change(self, resource: Resource, name: str, edit: Callable[[Object], Any]) -> Object:
        """Somebody changes an object."""
        i = (resource, KEY[0], name)
        changed = copy.deepcopy(self.objects[i])
        edit(changed)
        return self._put(i, changed)

    def put(self, resource: Resource, obj: Object) -> Object:
        """Somebody else's object."""
        metadata = {"namespace": KEY[0]} | obj["metadata"]
        obj = {"apiVersion": resource.api_version, "kind": resource.kind} | obj | {"metadata": metadata}
        return self._create((resource, obj["metadata"]["namespace"], obj["metadata"]["name"]), obj)

    def policy(self, name: str, **spec: Any) -> Object:
        """A platform team applies a RolloutPolicy."""
        i = (ROLLOUT_POLICY, "", name)
        if i in self.objects:
            return self._put(i, copy.deepcopy(self.objects[i]) | {"spec": spec})
        return self._create(
            i,
            {
                "apiVersion": names.API_VERSION,
                "kind": "RolloutPolicy",
                "metadata": {"name": name},
                "spec": spec,
            },
        )

    def remove_policy(self, name: str) -> None:
        """It is deleted."""
        gone = copy.deepcopy(self.objects.pop((ROLLOUT_POLICY, "", name)))
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell(ROLLOUT_POLICY, "DELETED", gone)

    def remove(self, resource: Resource, name: str) -> None:
        """Delete an object; the garbage collector follows."""
        gone = copy.deepcopy(self.objects.pop((resource, KEY[0], name)))
        self._applied.pop((resource, KEY[0], name), None)
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell(resource, "DELETED", gone)
        for i, o in list(self.objects.items()):
            owners = {r["uid"] for r in o["metadata"].get("ownerReferences", [])}
            if gone["metadata"]["uid"] in owners and i in self.objects:
                self.remove(i[0], i[2])

    def orphan(self, resource: Resource, name: str) -> None:
        """Delete an object with --cascade=orphan: what it owned stays, and is owned no more."""
        uid = self.objects[resource, KEY[0], name]["metadata"]["uid"]
        for i, o in list(self.objects.items()):
            left = [r for r in o["metadata"].get("ownerReferences", []) if r["uid"] != uid]
            if len(left) < len(o["metadata"].get("ownerReferences", [])):
                self._put(
                    i,
                    o
                    | {
                        "metadata": (
                            {k: v for k, v in o["metadata"].items() if k != "ownerReferences"}
                            | ({"ownerReferences": left} if left else {})
                        )
                    },
                )
        self.remove(resource, name)

    def find(self, resource: Resource, name: str = KEY[1]) -> Object | None:
        return self.objects.get((resource, KEY[0], name))

    def all(self, resource: Resource) -> dict[str, Object]:
        return {i[2]: o for i, o in self.objects.items() if i[0] == resource}

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
                self.put(
                    POD,
                    {
                        "metadata": {"name": pod, **of_job(job)},
                        "spec": copy.deepcopy(job["spec"]["template"]["spec"]),
                        "status": {
                            "phase": "Failed" if code else "Succeeded",
                            "containerStatuses": [{"name": "job", "state": ended}],
                        },
                    },
                )
                self.change(
                    POD,
                    pod,
                    lambda o, c=code, e=ended: o.update(  # type: ignore[misc]
                        status={
                            "phase": "Failed" if c else "Succeeded",
                            "containerStatuses": [{"name": "job", "state": e}],
                        }
                    ),
                )
            kind = "Failed" if code else "Complete"
            self.change(
                JOB,
                name,
                lambda o, k=kind: o.update(  # type: ignore[misc]
                    status={"conditions": [{"type": k, "status": "True", "reason": k}]}
                ),
            )

    def start_pods(self) -> None:
        """Every Deployment has all its replicas available."""
        for i, o in list(self.objects.items()):
            if i[0] == DEPLOYMENT:
                count = o["spec"]["replicas"]
                self._put(
                    i,
                    o
                    | {
                        "status": {
                            "replicas": count,
                            "availableReplicas": count,
                            "observedGeneration": o["metadata"]["generation"],
                        }
                    },
                )

    def accept_routes(self) -> None:
        """The gateway accepts every route as it is."""
        for i, o in list(self.objects.items()):
            if i[0] in (HTTP_ROUTE, GRPC_ROUTE):
                seen = {"status": "True", "reason": "Yes", "observedGeneration": o["metadata"]["generation"]}
                self._put(
                    i,
                    o
                    | {
                        "status": {
                            "parents": [
                                {"conditions": [{"type": t, **seen} for t in ("Accepted", "ResolvedRefs")]}
                            ]
                        }
                    },
                )

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
    import json

    container = job["spec"]["template"]["spec"]["containers"][0]
    task = json.loads(next(e["value"] for e in container["env"] if e["name"] == TASK_ENV))
    result = TaskResult(size_bytes=1000)
    if task["task"] == "resolve":
        result = result.model_copy(
            update={"sha256": next(b.sha(v) for v in range(10) if b.uri(v) == task["source"]["uri"])}
        )
    elif task["task"] == "prepare":
        update = {
            "artifact_uri": f"{task['artifacts']['uri']}/{task['sha256']}-{task['salt']}-00000000",
            "artifact_digest": f"sha256:{task['sha256']}",
            "artifact_size_bytes": 260,
        }
        result = result.model_copy(update=update)
    elif task["task"] == "tune":
        chosen = {
            "serving": {"instances": 2, "batch": 8, "queue_delay_us": 500},
            "throughput": 900,
            "latency_ms": 40,
            "within": True,
        }
        result = TaskResult.model_validate(
            {"tuned": {"configured": {"serving": {}, "throughput": 400, "within": True}, "chosen": chosen}}
        )
    else:
        paired = {
            "n": 1000,
            "both_right": 970,
            "only_candidate_right": 0,
            "only_baseline_right": 0,
            "both_wrong": 30,
        }
        result = TaskResult.model_validate(
            {"samples": 1000, "accuracy": 0.97, "stable_accuracy": 0.97, "paired": paired}
        )
    return 0, result.model_dump_json(exclude_none=True)


def _without_status(obj: Object) -> Object:
    return {k: v for k, v in obj.items() if k != "status" or obj["kind"] == "Pod"}


_ATOMIC = ("selector", "podSelector", "rules", "hostnames", "parentRefs", "ownerReferences")


def _merge(live: Any, before: Any, wanted: Any) -> Any:
    """Server-side apply, roughly: ours replaces, what we no longer name goes, what is others'
    stays; lists are replaced.
    """
    if not (isinstance(live, dict) and isinstance(wanted, dict)):
        return copy.deepcopy(wanted)
    before = before if isinstance(before, dict) else {}
    kept = {k: v for k, v in live.items() if k in wanted or k not in before}
    return kept | {
        k: copy.deepcopy(v) if k in _ATOMIC else _merge(kept.get(k), before.get(k), v)
        for k, v in wanted.items()
    }


def _defaulted(obj: Object) -> Object:
    """What the API server adds and rewrites, as far as it is typical."""
    if obj["kind"] == "Service":
        obj["spec"] = {"type": "ClusterIP", "clusterIP": "10.0.0.7", "sessionAffinity": "None"} | obj["spec"]
    if obj["kind"] in ("Deployment", "Job"):
        if obj["kind"] == "Deployment":
            obj["spec"] = {"progressDeadlineSeconds": 600} | obj["spec"]
        pod = obj["spec"]["template"]["spec"]
        obj["spec"]["template"]["metadata"] = {"creationTimestamp": None} | obj["spec"]["template"][
            "metadata"
        ]
        pod.setdefault("dnsPolicy", "ClusterFirst")
        pod.setdefault("schedulerName", "default-scheduler")
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            container.setdefault("terminationMessagePath", "/dev/termination-log")
            container.setdefault("terminationMessagePolicy", "File")
            resources = container.get("resources") or {}
            for part in ("limits", "requests"):
                if part in resources:
                    resources[part] = {k: str(v) for k, v in resources[part].items()}
            if "limits" in resources:
                resources.setdefault("requests", {})
                resources["requests"] = resources["limits"] | resources["requests"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container:
                    container[probe].setdefault("successThreshold", 1)
                    container[probe].get("httpGet", {}).setdefault("scheme", "HTTP")
        for volume in pod.get("volumes", []):
            if volume.get("emptyDir") == {}:
                volume["emptyDir"] = {}
    if obj["kind"] == "NetworkPolicy":
        obj["spec"] = {k: v for k, v in obj["spec"].items() if v != []}
    if obj["kind"] in ("HTTPRoute", "GRPCRoute"):
        for rule in obj["spec"].get("rules", []):
            rule.setdefault("matches", [{"path": {"type": "PathPrefix", "value": "/"}}])
    return obj
