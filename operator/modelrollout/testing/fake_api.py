"""An API server in memory: guards by resourceVersion and uid, server-side apply (approximated),
status, merge patch, selectors, defaults, garbage collection and watches. Slow or away on demand, in
virtual time.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import reduce
from typing import Any, Self, TypeVar

from modelrollout.kube.client import Listing
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from modelrollout.kube.kinds import GRPC_ROUTE, HTTP_ROUTE, Resource
from modelrollout.kube.objects import Object, labels_of, microtime
from modelrollout.testing import builders as b

T = TypeVar("T")
_Id = tuple[Resource, str, str]
_Watcher = Callable[[Resource, str, Object], None]


class FakeApi:
    """Objects by resource, namespace and name; a write replaces a value and never changes it, so
    answers and copies share them. Coroutines are the requests of ``kube.client.Kube``; the other
    methods are users and controllers, who always get through.

    ``requests`` names every request in order. ``before`` is called when one arrives; if it raises,
    the request does nothing. ``latency`` in seconds for each way of a request, ``answer_latency``
    more for the way back; ``down`` fails every request; ``lose_answers`` does it and fails
    nevertheless; ``repeats`` does it twice, as a client whose connection broke.
    """

    def __init__(self) -> None:
        self.objects: dict[_Id, Object] = {}
        self.now = b.START
        self.requests: list[str] = []
        self.before: Callable[[str, Resource, str], None] = lambda verb, resource, name: None
        self.latency = 0.0
        self.answer_latency = 0.0
        self.down = False
        self.lose_answers = False
        self.repeats = False
        self.kinds: set[str] = {HTTP_ROUTE.kind, GRPC_ROUTE.kind}  # served, of those not served everywhere
        self.unread: list[UnreadableObject] = []  # what every list leaves out
        self._applied: dict[_Id, Object] = {}
        self._version = 0
        self._watchers: list[_Watcher] = []

    def copy(self) -> Self:
        """A server with the same objects, without watchers and without recorded requests."""
        made = copy.copy(self)
        made.objects, made._applied, made.kinds = dict(self.objects), dict(self._applied), set(self.kinds)
        made.unread, made.requests, made._watchers = list(self.unread), [], []
        made.before = lambda verb, resource, name: None
        return made

    # --- requests

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return await self._request("get", resource, name, lambda: self._live(_id(resource, namespace, name)))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 200,
        keep: Callable[[Object], Object] = lambda o: o,
        patience: float = 20.0,
    ) -> Listing:
        def act() -> Listing:
            items = [
                keep(o)
                for i, o in self.objects.items()
                if i[0] == resource
                and namespace in (None, i[1])
                and _has_labels(labels_of(o), label_selector)
                and _has_fields(o, field_selector)
            ]
            return Listing(items, str(self._version), tuple(self.unread))

        return await self._request("list", resource, "", act)

    async def has_kind(self, resource: Resource, ttl: float = 60.0) -> bool:
        return resource.kind in self.kinds

    async def create(self, resource: Resource, obj: Object) -> Object:
        def act() -> Object:
            return self._create(resource, _with_status_of({}, obj))

        return await self._request("create", resource, obj["metadata"]["name"], act)

    async def replace(self, resource: Resource, obj: Object) -> Object:
        assert obj["metadata"]["resourceVersion"], "it would overwrite what others wrote"

        def act() -> Object:
            i = _id_of(resource, obj)
            return self._store(i, _with_status_of(self._guarded(i, obj["metadata"]), copy.deepcopy(obj)))

        return await self._request("replace", resource, obj["metadata"]["name"], act)

    async def replace_status(self, resource: Resource, obj: Object) -> Object:
        assert obj["metadata"]["resourceVersion"], "it would overwrite what others wrote"

        def act() -> Object:
            i = _id_of(resource, obj)
            return self._store(
                i, self._guarded(i, obj["metadata"]) | {"status": copy.deepcopy(obj["status"])}
            )

        return await self._request("status", resource, obj["metadata"]["name"], act)

    async def apply(
        self, resource: Resource, obj: Object, *, uid: str | None = None, resource_version: str | None = None
    ) -> Object:
        assert uid or not resource_version, "resourceVersion alone would create an absent object"

        def act() -> Object:
            i = _id_of(resource, obj)
            if i not in self.objects:
                if uid:
                    raise Conflict(409, "Conflict", f"uid of {i[2]}")
                applied = self._create(resource, _with_status_of({}, obj))
            else:
                live = self._guarded(i, {"uid": uid, "resourceVersion": resource_version})
                merged = _defaulted(_merge(copy.deepcopy(live), self._applied.get(i, {}), obj))
                applied = self._store(i, _with_status_of(live, merged))
            self._applied[i] = copy.deepcopy(obj)
            return applied

        return await self._request("apply", resource, obj["metadata"]["name"], act)

    async def own_by_apply(self, resource: Resource, namespace: str | None, name: str, *, uid: str) -> bool:
        return False

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object:
        def act() -> Object:
            i = _id(resource, namespace, name)
            return self._store(i, _patched(self._guarded(i, patch.get("metadata") or {}), patch))

        return await self._request("patch", resource, name, act)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        def act() -> None:
            i = _id(resource, namespace, name)
            live = self._guarded(i, {"uid": uid, "resourceVersion": resource_version})
            if grace_seconds is None:
                self._remove(i)
            elif grace_seconds < live["metadata"]["deletionGracePeriodSeconds"]:
                self._store(i, _patched(live, {"metadata": {"deletionGracePeriodSeconds": grace_seconds}}))

        grace = "" if grace_seconds is None else f" within {grace_seconds} s"
        await self._request("delete", resource, f"{name}{grace}", act)

    async def _request(self, verb: str, resource: Resource, name: str, act: Callable[[], T]) -> T:
        """The way there, what the request does, and the way back."""
        self.requests.append(f"{verb} {resource.kind} {name}".rstrip())
        await _pass(self.latency)
        _fail(self.down)
        self.before(verb, resource, name)
        try:
            answer = act()
            if self.repeats:
                answer = act()
        finally:  # a refusal is an answer too
            await _pass(self.latency + self.answer_latency)
            _fail(self.lose_answers)
        return answer

    # --- users and controllers

    def find(self, resource: Resource, name: str = b.NAME, namespace: str = b.NAMESPACE) -> Object | None:
        return self.objects.get(_id(resource, namespace, name))

    def all(self, resource: Resource) -> dict[str, Object]:
        """By name."""
        return {i[2]: o for i, o in self.objects.items() if i[0] == resource}

    def put(self, resource: Resource, obj: Object) -> Object:
        """Create the object, by default in the namespace of the builders."""
        metadata = ({"namespace": b.NAMESPACE} if resource.namespaced else {}) | obj["metadata"]
        return self._create(resource, obj | {"metadata": metadata})

    def set_spec(self, resource: Resource, name: str, spec: Any, **metadata: Any) -> Object:
        """Create the object with this spec, or edit its spec."""
        live = self.find(resource, name, metadata.get("namespace", b.NAMESPACE))
        if live is None:
            return self.put(resource, {"metadata": {"name": name, **metadata}, "spec": spec})
        return self._store(_id_of(resource, live), live | {"spec": copy.deepcopy(spec)})

    def set_status(
        self, resource: Resource, name: str, status: Object, namespace: str = b.NAMESPACE
    ) -> Object:
        """The object's controller writes its status."""
        i = _id(resource, namespace, name)
        return self._store(i, self._live(i) | {"status": copy.deepcopy(status)})

    def change(
        self, resource: Resource, name: str, edit: Callable[[Object], Any], namespace: str = b.NAMESPACE
    ) -> Object:
        """Any other change: ``edit`` gets a copy of the object to change."""
        i = _id(resource, namespace, name)
        changed = copy.deepcopy(self._live(i))
        edit(changed)
        return self._store(i, changed)

    def remove(self, resource: Resource, name: str, namespace: str = b.NAMESPACE) -> None:
        """Delete an object; the garbage collector follows."""
        self._remove(_id(resource, namespace, name))

    def orphan(self, resource: Resource, name: str) -> None:
        """Delete an object with --cascade=orphan: what it owned stays, and is owned no more."""
        i = _id(resource, b.NAMESPACE, name)
        uid = self._live(i)["metadata"]["uid"]
        for child, o in list(self.objects.items()):
            owners = o["metadata"].get("ownerReferences", [])
            left = [r for r in owners if r["uid"] != uid]
            if len(left) < len(owners):
                self._store(child, _patched(o, {"metadata": {"ownerReferences": left or None}}))
        self._remove(i)

    def watch(self, watcher: _Watcher) -> None:
        """Tell of every change from now on."""
        self._watchers.append(watcher)

    def deaf_to(self, resource: Resource) -> None:
        """Whoever watches now hears nothing more of these."""

        def but(watcher: _Watcher) -> _Watcher:
            return lambda of, event, obj: None if of == resource else watcher(of, event, obj)

        self._watchers = [but(watcher) for watcher in self._watchers]

    # --- the objects

    def _live(self, i: _Id) -> Object:
        try:
            return self.objects[i]
        except KeyError:
            raise NotFound(404, "NotFound", i[2]) from None

    def _guarded(self, i: _Id, metadata: Mapping[str, Any]) -> Object:
        """The live object, if it still has the uid and the resourceVersion of ``metadata``."""
        live = self._live(i)
        for guard in ("uid", "resourceVersion"):
            if metadata.get(guard) not in (None, live["metadata"][guard]):
                raise Conflict(409, "Conflict", f"{guard} of {i[2]}")
        return live

    def _create(self, resource: Resource, obj: Object) -> Object:
        i = _id_of(resource, obj)
        if i in self.objects:
            raise AlreadyExists(409, "AlreadyExists", i[2])
        kind: Object = {"apiVersion": resource.api_version, "kind": resource.kind}
        made = copy.deepcopy(kind | obj)
        made["metadata"] |= {
            "uid": f"uid-{self._version}",
            "generation": 1,
            "creationTimestamp": microtime(self.now + timedelta(microseconds=self._version)),
        }
        return self._store(i, _defaulted(made))

    def _store(self, i: _Id, obj: Object) -> Object:
        """The object as it is stored: one that does not change keeps its resourceVersion."""
        old, metadata = self.objects.get(i), dict(obj["metadata"])
        if old is not None:
            metadata |= {k: old["metadata"][k] for k in ("uid", "resourceVersion")}
            if obj | {"metadata": metadata} == old:
                return old
            metadata["generation"] = old["metadata"]["generation"] + (old.get("spec") != obj.get("spec"))
        self._version += 1
        stored = obj | {"metadata": metadata | {"resourceVersion": str(self._version)}}
        self.objects[i] = stored
        self._tell(i[0], "MODIFIED" if old else "ADDED", stored)
        return stored

    def _remove(self, i: _Id) -> None:
        live = self._live(i)
        del self.objects[i]
        self._applied.pop(i, None)
        self._version += 1
        metadata = live["metadata"] | {"resourceVersion": str(self._version)}
        self._tell(i[0], "DELETED", live | {"metadata": metadata})
        for child, o in list(self.objects.items()):
            owners = {r["uid"] for r in o["metadata"].get("ownerReferences", [])}
            if metadata["uid"] in owners and child in self.objects:
                self._remove(child)

    def _tell(self, resource: Resource, event: str, obj: Object) -> None:
        for watcher in self._watchers:
            watcher(resource, event, obj)


def _id(resource: Resource, namespace: str | None, name: str) -> _Id:
    return resource, (namespace or "") if resource.namespaced else "", name


def _id_of(resource: Resource, obj: Object) -> _Id:
    metadata = obj["metadata"]
    return _id(resource, metadata["namespace"] if resource.namespaced else "", metadata["name"])


async def _pass(seconds: float) -> None:
    # not even sleep(0): without latency nothing else runs between two requests
    if seconds:
        await asyncio.sleep(seconds)


def _fail(fail: bool) -> None:
    if fail:
        raise Unavailable(503, "ServiceUnavailable", "away")


def _has_labels(labels: Mapping[str, str], selector: str) -> bool:
    def has(term: str) -> bool:
        key, equals, value = term.partition("=")
        if key.startswith("!"):
            return key[1:] not in labels
        return labels.get(key) == value if equals else key in labels

    return all(has(term) for term in selector.split(",") if term)


def _has_fields(obj: Object, selector: str) -> bool:
    def field(path: str) -> Any:
        return reduce(lambda inside, name: inside.get(name) or {}, path.split("."), obj)

    terms = (term.split("=") for term in selector.split(",") if term)
    return all(field(path) == value for path, value in terms)


def _with_status_of(live: Object, obj: Object) -> Object:
    """``obj`` with the status of ``live``, which only a write of status changes."""
    rest = {k: v for k, v in obj.items() if k != "status"}
    return rest | ({"status": live["status"]} if "status" in live else {})


def _patched(live: Any, patch: Any) -> Any:
    """JSON merge patch."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    patched = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            patched.pop(key, None)
        else:
            patched[key] = _patched(patched.get(key), value)
    return patched


_ATOMIC = ("selector", "podSelector", "rules", "hostnames", "parentRefs", "ownerReferences")


def _merge(live: Any, before: Any, desired: Any) -> Any:
    """Server-side apply, roughly: ours replaces, what we no longer name goes, what is others'
    stays; lists are replaced.
    """
    if not (isinstance(live, dict) and isinstance(desired, dict)):
        return copy.deepcopy(desired)
    before = before if isinstance(before, dict) else {}
    left = {k: v for k, v in live.items() if k in desired or k not in before}
    return left | {
        k: copy.deepcopy(v) if k in _ATOMIC else _merge(left.get(k), before.get(k), v)
        for k, v in desired.items()
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
