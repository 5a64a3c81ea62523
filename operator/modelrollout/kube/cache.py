"""The last observed state of the objects that the operator watches: from watch events, lists, and
the answers to its own writes.

It can be stale, never wrong about the past: writes that depend on it are guarded by
resourceVersion. Stored objects are shared and must not be changed. Not thread-safe; one event loop.

Only what some decision reads is kept (``kube.projection``), and no more than NAMESPACE_BYTES for
each namespace: objects beyond that are left out and reported. Children that no pass has touched for
a while are kept packed, a tenth of their size, for nearly all models are at rest.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.api import names
from modelrollout.kube import decoding
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.kinds import (
    GATEWAY,
    GATEWAY_CLASS,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    ROLLOUT_POLICY,
    Resource,
)
from modelrollout.kube.objects import Object, is_over, label
from modelrollout.kube.projection import project

Key = tuple[str, str]  # namespace and name of the ModelDeployment; a RolloutPolicy has no namespace
_Id = tuple[Resource, str, str]

# uids of deleted objects that are remembered, so that a late answer does not bring one back
TOMBSTONES = 20_000
# of the children that are kept unpacked: those of some 70 models in the middle of a rollout
UNPACKED_BYTES = 32 << 20
_NOISE = frozenset(
    {"resourceVersion", "managedFields", "lastUpdateTime", "lastProbeTime", "lastHeartbeatTime"}
)


@dataclass(slots=True)
class _Entry:
    """``obj`` or ``packed``, its JSON compressed, is there; both where it was unpacked again."""

    obj: Object | None
    key: Key | None
    uid: str
    version: int | None
    # A write without guard brought this version: it may hold others' changes that no pass has read,
    # so its event still counts.
    unseen: bool
    weight: int  # bytes of memory, unpacked
    marks: tuple[Hashable, ...] = ()  # values by which ``find_marked`` finds it
    packed: bytes | None = None

    def pack(self) -> None:
        if self.packed is None:
            self.packed = zlib.compress(json.dumps(self.obj, separators=(",", ":")).encode(), 1)
        self.obj = None

    def unpacked(self) -> Object:
        if self.obj is None:
            assert self.packed is not None
            self.obj = json.loads(zlib.decompress(self.packed))
        return self.obj


def _marks(obj: Object) -> tuple[Hashable, ...]:
    rollout = _field(_field(obj, "status"), "rollout")  # users may have written there
    gateways = gateways_of(obj)
    return (
        *((QUEUED,) if _field(rollout, "queue") else ()),
        *_sources(obj, "rollout", _field(rollout, "sha256")),
        *((ROUTED, *(routed_by(*at) for at in gateways)) if gateways else ()),
    )


def _revision_marks(obj: Object) -> tuple[Hashable, ...]:
    return _sources(obj, "revision", _field(_field(obj, "spec"), "sha256"))


def _sources(obj: Object, what: str, sha256: Any) -> tuple[Hashable, ...]:
    return ((what, obj["metadata"].get("namespace") or "", sha256),) if isinstance(sha256, str) else ()


def _route_marks(obj: Object) -> tuple[Hashable, ...]:
    hosts = _field(_field(obj, "spec"), "hostnames")
    return tuple(carrying(host) for host in hosts if isinstance(host, str)) if isinstance(hosts, list) else ()


def _job_marks(obj: Object) -> tuple[Hashable, ...]:
    return () if is_over(obj) else (UNFINISHED,)


def carrying(host: str) -> Hashable:
    """Mark of the routes that carry exactly this host name."""
    return ("host", host)


def revisions_of(namespace: str, sha256: str) -> Hashable:
    """Mark of the ModelRevisions of a namespace that are made of this source."""
    return ("revision", namespace, sha256)


def rollouts_of(namespace: str, sha256: str) -> Hashable:
    """Mark of the ModelDeployments of a namespace whose last rollout is of this source."""
    return ("rollout", namespace, sha256)


def routed_by(namespace: str, name: str) -> Hashable:
    """Mark of the ModelDeployments whose spec names this Gateway."""
    return ("gateway", namespace, name)


def gateways_of(deployment: Object) -> list[tuple[str, str]]:
    """Namespace and name of the Gateways that a spec, as it is stored, names, its first one first;
    none where it has no first one.
    """
    traffic, own = _field(_field(deployment, "spec"), "traffic"), deployment["metadata"].get("namespace")
    further = _field(traffic, "furtherGateways")
    listed = [_field(traffic, "gateway"), *(further if isinstance(further, list) else [])]
    places = [(_field(x, "namespace"), _field(x, "name")) for x in listed]
    if not isinstance(places[0][1], str):
        return []
    return [
        (namespace or own or "", name)
        for namespace, name in places
        if isinstance(name, str) and isinstance(namespace, str | None)
    ]


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


QUEUED = "queued"  # mark of ModelDeployments whose rollout waits for GPUs
ROUTED = "routed"  # mark of ModelDeployments whose spec names a Gateway
UNFINISHED = "unfinished"  # mark of Jobs that have not ended
# Marks by which ``find_marked`` finds objects without a search through all of them.
_MARKS: Mapping[Resource, Callable[[Object], tuple[Hashable, ...]]] = {
    MODEL_DEPLOYMENT: _marks,
    MODEL_REVISION: _revision_marks,
    JOB: _job_marks,
    HTTP_ROUTE: _route_marks,
    GRPC_ROUTE: _route_marks,
}


# Read all at once: for metrics, by policies, for a Gateway's routes.
_NEVER_PACKED = frozenset({MODEL_DEPLOYMENT, ROLLOUT_POLICY, GATEWAY, GATEWAY_CLASS})


class ObjectCache:
    """The objects by (resource, namespace, name), and by the ModelDeployment they belong to.

    ``on_unread`` is called for objects that are left out for lack of memory.
    """

    def __init__(
        self, on_unread: Callable[[Resource, UnreadableObject], None] = lambda resource, unread: None
    ) -> None:
        self._on_unread = on_unread
        self._namespace_bytes: Counter[str] = Counter()  # bytes by namespace
        # children that are unpacked, the longest untouched first
        self._touched: OrderedDict[_Id, None] = OrderedDict()
        self._unpacked_bytes = 0
        self._entries: dict[_Id, _Entry] = {}
        self._ids: defaultdict[Resource, dict[_Id, None]] = defaultdict(dict)
        self._children: defaultdict[Key, dict[_Id, None]] = defaultdict(dict)
        self._marked: defaultdict[Hashable, dict[_Id, None]] = defaultdict(dict)
        # uid -> version at which it went; None: for good. A version, because an object that loses
        # the watched label is reported as deleted and may come back under its uid.
        self._tombstones: OrderedDict[str, int | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object as last observed."""
        i = (resource, namespace or "", name)
        return self._read(i) if i in self._entries else None

    def children(self, key: Key, resource: Resource | None = None) -> list[Object]:
        """What belongs to the ModelDeployment, without itself; of one resource or of all. Costs as
        many steps as it has children.
        """
        return [
            self._read(i)
            for i in self._children.get(key, ())
            if (resource is None or i[0] == resource) and i[0] != MODEL_DEPLOYMENT
        ]

    def all(self, resource: Resource) -> list[Object]:
        """Every stored object of the resource; costs as many steps as there are, and much of them
        for children, which are unpacked.
        """
        return [self._read(i) for i in self._ids.get(resource, ())]

    def find_marked(self, mark: Hashable) -> list[Object]:
        """Objects with a mark: QUEUED, ROUTED, UNFINISHED, ``revisions_of``, ``rollouts_of``,
        ``routed_by``, ``carrying``; costs as many steps as there are.
        """
        return [self._read(i) for i in self._marked.get(mark, ())]

    def concerned(self, resource: Resource, obj: Mapping[str, Any]) -> set[Key]:
        """Keys whose passes read the object: that of its owner; of a Gateway the ModelDeployments
        that name it, of a GatewayClass, which seldom changes, all that name any.
        """
        if resource in (GATEWAY, GATEWAY_CLASS):
            metadata = obj["metadata"]
            mark = (
                ROUTED
                if resource == GATEWAY_CLASS
                else routed_by(metadata.get("namespace") or "", metadata["name"])
            )
            return {(i[1], i[2]) for i in self._marked.get(mark, ())}
        key = owner(resource, obj)
        return {key} if key else set()

    def observe(self, resource: Resource, event: Mapping[str, Any]) -> bool:
        """Take in a watch event (type ADDED, MODIFIED, DELETED or, from lists, None).

        True when a pass is due; False when it is older than what is stored, the echo of our own
        guarded write, or noise.
        """
        obj = event["object"]
        if event["type"] == "DELETED":
            return self._remove(_id(resource, obj), obj)
        return self._take(_id(resource, obj), obj, from_watch=True)

    def record_write(self, resource: Resource, answer: Object, *, guarded: bool) -> None:
        """Take in the answer to our own write. ``guarded``: it was a create, or carried the
        resourceVersion that the pass had seen.

        The echo of a guarded write causes no pass. That of another write may carry a foreign
        change, so it does.
        """
        i = _id(resource, answer)
        if self._take(i, answer, from_watch=False) and not guarded and i in self._entries:
            self._entries[i].unseen = True

    def record_read(self, resource: Resource, answer: Object) -> bool:
        """Take in a live read; True when it brought something new (the caller has it then, its
        event will cause no pass).
        """
        return self._take(_id(resource, answer), answer, from_watch=False)

    def record_deletion(self, resource: Resource, namespace: str | None, name: str, uid: str) -> bool:
        """Take in that the object with that uid does not exist; True when it was stored."""
        i = (resource, namespace or "", name)
        entry = self._entries.get(i)
        self._bury(uid, None)
        if entry is None or entry.uid != uid:
            return False
        self._drop(i)
        return True

    def forget(self, resource: Resource, namespace: str, name: str) -> set[Key]:
        """Drop an object that cannot be read any more, or passes would act on its last state for
        ever. Returns the keys that it concerned, if it was stored; it may come back.
        """
        i = (resource, namespace, name)
        entry = self._entries.get(i)
        if entry is None:
            return set()
        self._drop(i)
        return self.concerned(resource, entry.unpacked())

    def forget_unlisted(
        self,
        resource: Resource,
        listed: Collection[tuple[str, str]],
        resource_version: str,
        namespace: str | None = None,
    ) -> set[Key]:
        """Drop what a full list (of one namespace, or of all) lacks, unless it was stored at a
        newer version than the list's; returns the keys that it concerned. A watch never reports
        what was deleted while it was away.

        ``listed``: namespace and name of each object in the list.
        """
        changed: set[Key] = set()
        limit = number(resource_version)
        for i in list(self._ids.get(resource, ())):
            if i[1:] in listed or (namespace is not None and i[1] != namespace):
                continue
            entry = self._entries[i]
            if limit is not None and entry.version is not None and entry.version > limit:
                continue
            if limit is not None:
                self._bury(entry.uid, limit)
            self._drop(i)
            changed |= self.concerned(resource, entry.unpacked())
        return changed

    def _take(self, i: _Id, obj: Object, *, from_watch: bool) -> bool:
        """Store if it is newer; True when that, or what an unguarded write brought before, is worth
        a pass.
        """
        if self._is_buried(obj, from_watch):
            return False
        entry = self._entries.get(i)
        if entry is None:
            return self._put(i, project(i[0], obj))
        old, new = entry.version, _version(obj)
        if old is None or new is None:  # not comparable: the order of events counts
            stored = self._read(i)["metadata"].get("resourceVersion")
            if not from_watch or obj["metadata"].get("resourceVersion") == stored:
                return False
        elif new <= old:
            due = entry.unseen and from_watch and new == old
            entry.unseen = entry.unseen and not due
            return due
        obj = project(i[0], obj)
        due = entry.unseen or not _same(self._read(i), obj)
        if not self._put(i, obj):
            return True
        if not from_watch and entry.unseen:
            self._entries[i].unseen = True
        return due

    def _remove(self, i: _Id, obj: Object) -> bool:
        went = _version(obj)
        if went is not None:
            self._bury(obj["metadata"].get("uid", ""), went)
        entry = self._entries.get(i)
        if entry is None:
            return False
        if went is not None and entry.version is not None and went < entry.version:
            return False  # the object that is stored came after the one that went
        self._drop(i)
        return True

    def _put(self, i: _Id, obj: Object) -> bool:
        """Store what was projected; False when there is no memory for it, and then nothing of it is
        stored any more.
        """
        key = owner(i[0], obj)
        entry = self._entries.get(i)
        weight = decoding.weigh(obj)
        if self._namespace_bytes[i[1]] + weight - (entry.weight if entry else 0) > decoding.NAMESPACE_BYTES:
            if entry:
                self._drop(i)
            self._on_unread(i[0], decoding.omitted(obj))
            return False
        if entry and entry.key and entry.key != key:
            self._unlink(entry.key, i)
        marks = _MARKS[i[0]](obj) if i[0] in _MARKS else ()
        if entry and entry.marks != marks:
            self._unmark(entry.marks, i)
        self._namespace_bytes[i[1]] += weight - (entry.weight if entry else 0)
        self._untouch(i)
        uid, version = obj["metadata"].get("uid", ""), _version(obj)
        self._entries[i] = _Entry(obj, key, uid, version, unseen=False, weight=weight, marks=marks)
        self._touch(i)
        self._ids[i[0]][i] = None
        for mark in marks:
            self._marked[mark][i] = None
        if key:
            self._children[key][i] = None
        return True

    def _read(self, i: _Id) -> Object:
        obj = self._entries[i].unpacked()
        self._touch(i)
        return obj

    def _touch(self, i: _Id) -> None:
        """It is unpacked, and others that are not needed any more are packed for it."""
        if i[0] in _NEVER_PACKED:
            return
        if i in self._touched:
            self._touched.move_to_end(i)
            return
        self._touched[i] = None
        self._unpacked_bytes += self._entries[i].weight
        while self._unpacked_bytes > UNPACKED_BYTES and len(self._touched) > 1:
            oldest = next(iter(self._touched))
            self._untouch(oldest)
            self._entries[oldest].pack()

    def _untouch(self, i: _Id) -> None:
        if i in self._touched:
            del self._touched[i]
            self._unpacked_bytes -= self._entries[i].weight

    def _drop(self, i: _Id) -> None:
        self._untouch(i)
        entry = self._entries.pop(i)
        self._namespace_bytes[i[1]] -= entry.weight
        if not self._namespace_bytes[i[1]]:
            del self._namespace_bytes[i[1]]
        del self._ids[i[0]][i]
        self._unmark(entry.marks, i)
        if entry.key:
            self._unlink(entry.key, i)

    def _unmark(self, marks: Iterable[Hashable], i: _Id) -> None:
        for mark in marks:
            self._marked[mark].pop(i, None)
            if not self._marked[mark]:
                del self._marked[mark]

    def _unlink(self, key: Key, i: _Id) -> None:
        self._children[key].pop(i, None)
        if not self._children[key]:
            del self._children[key]

    def _bury(self, uid: str, version: int | None) -> None:
        if uid:
            self._tombstones[uid] = version
        if len(self._tombstones) > TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _is_buried(self, obj: Object, from_watch: bool) -> bool:
        uid = obj["metadata"].get("uid")
        if uid not in self._tombstones:
            return False
        went, version = self._tombstones[uid], _version(obj)
        if went is None:
            return True
        return not from_watch if version is None else version <= went


def owner(resource: Resource, obj: Mapping[str, Any]) -> Key | None:
    """Key of the ModelDeployment that the object is or belongs to (by label), or of the
    RolloutPolicy itself; None for unrelated objects, such as Gateways, whatever their labels are.
    """
    metadata = obj["metadata"]
    if resource in (GATEWAY, GATEWAY_CLASS):
        return None
    name = (
        metadata["name"] if resource in (MODEL_DEPLOYMENT, ROLLOUT_POLICY) else label(obj, names.LABEL_NAME)
    )
    return (metadata.get("namespace") or "", name) if name else None


def _id(resource: Resource, obj: Mapping[str, Any]) -> _Id:
    return (resource, obj["metadata"].get("namespace") or "", obj["metadata"]["name"])


def number(version: str | None) -> int | None:
    """A resourceVersion that can be compared with others of the same kind, or None."""
    return int(version) if version and version.isascii() and version.isdigit() else None


def _version(obj: Mapping[str, Any]) -> int | None:
    return number(obj["metadata"].get("resourceVersion"))


def _same(a: Any, b: Any) -> bool:
    """Equal but for versions, bookkeeping, and times that move by themselves. By recursion: nothing
    that is read is deep (``kube.decoding``).
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return all(
            k in _NOISE or (k in a and k in b and (a[k] == b[k] or _same(a[k], b[k])))
            for k in a.keys() | b.keys()
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
