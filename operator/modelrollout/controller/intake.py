"""Takes objects from watches and lists into the cache and onto the queue. Objects that cannot be
read are skipped and reported. Only KubeError leaves this module: one object must not end the watch
of all others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from modelrollout.api import names
from modelrollout.controller.unreadable import UnreadableObjects
from modelrollout.kube import decoding
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.decoding import UnreadableError, UnreadableObject
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION, Resource
from modelrollout.kube.objects import Object

log = logging.getLogger(__name__)

# children carry this label; the watch asks the API server for nothing else
OURS = f"{names.LABEL_NAME}"
# of a watch event that are held: in a custom resource managed fields as large as itself come before
# its name
LINE_BYTES = 2 << 20
# how long a list of everything waits in all for an API server that puts its pages off; no pass
# waits for it
PATIENCE_SECONDS = 600.0
_TYPE = re.compile(rb'\s*\{"type":"([A-Z]+)"')
_TAKEN = ("ADDED", "MODIFIED", "DELETED")


class Intake:
    """Takes in events and whole lists of the watched resources."""

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        unread: UnreadableObjects,
        resources: Iterable[Resource],
        wake: Callable[[Key], None],
    ) -> None:
        self._kube, self._cache, self._unread, self._wake = kube, cache, unread, wake
        self._resources = {r.path(None): r for r in resources}
        self._listed: dict[tuple[Resource, str | None], float] = {}  # when each list was complete
        self._turns: defaultdict[tuple[Resource, str | None], asyncio.Lock] = defaultdict(asyncio.Lock)

    def watched(self, path: str) -> tuple[Resource, str | None] | None:
        """The watched resource whose collection has this URL path, and the collection's namespace;
        None for all other paths.
        """
        root, _, rest = path.partition("/namespaces/")
        namespace, _, plural = rest.partition("/")
        resource = self._resources.get(f"{root}/{plural}" if rest else path)
        if resource is None or (rest and not resource.namespaced):
            return None
        return resource, namespace if rest else None

    def line(self, resource: Resource, line: bytes, cut: bool) -> bytes | None:
        """Take in a line of a watch. What is left of it for the watch itself: errors and bookmarks
        as they are, of an event how far it came.

        ``cut``: it was too long, and this is its beginning.
        """
        try:
            if cut:
                raise UnreadableError(f"has more than {LINE_BYTES >> 10} KiB of JSON")
            if len(line) > 2 * decoding.MAX_BYTES:  # not to be parsed at all
                decoding.object_of({}, len(line))
            event = decoding.parse(line)
            if not isinstance(event, dict) or event.get("type") not in _TAKEN:
                return line
            obj = decoding.object_of(event.get("object"), len(line))
            self.event(resource, event["type"], obj)
            version = str(obj["metadata"].get("resourceVersion") or "")
        except UnreadableError as e:
            unread = decoding.identify(line, ("object", "metadata"), str(e))
            type_ = _TYPE.match(line)
            self._unreadable(resource, unread, gone=type_ is not None and type_[1] == b"DELETED")
            version = unread.version
        return _bookmark(resource, version) if version else None

    def event(self, resource: Resource, type_: str | None, obj: Object) -> None:
        """Take in an object as it is now, or was when it went (DELETED)."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        metadata = body["metadata"]
        namespace, name = metadata.get("namespace") or "", metadata["name"]
        try:
            if type_ != "DELETED" and (problem := unfit(resource, body)):
                raise UnreadableError(problem)
            due = self._cache.observe(resource, {"type": type_, "object": body})
            keys = self._cache.concerned(resource, body)
        except Exception as e:  # whatever it is: all others go on
            if not isinstance(e, UnreadableError):
                log.exception("%s %s/%s was not understood", resource.kind, namespace, name)
            why = str(e) if isinstance(e, UnreadableError) else f"is not understood ({type(e).__name__})"
            self._unreadable(resource, decoding.unreadable_object(body, why), gone=False)
            return
        # otherwise the cache has reported why not
        if type_ == "DELETED" or self._cache.get(resource, namespace, name) is not None:
            self._unread.clear(resource, namespace, name, metadata.get("resourceVersion") or "")
        for key in keys if due else ():
            self._wake(key)

    async def list(self, resource: Resource, namespace: str | None) -> str:
        """Read everything of a resource: the watch never reports what was deleted while it was
        away, and no event may be missed for ever.

        The resourceVersion of the list. Raises KubeError.
        """
        async with self._turns[resource, namespace]:
            return await self._list(resource, namespace)

    async def list_unless(self, resource: Resource, namespace: str | None, within: float) -> None:
        """``list``, but where the last so many seconds have seen such a list; one that is under way
        is waited for. Raises KubeError.
        """
        async with self._turns[resource, namespace]:
            at = self._listed.get((resource, namespace))
            if at is None or self._unread.now() - at >= within:
                await self._list(resource, namespace)

    async def _list(self, resource: Resource, namespace: str | None) -> str:
        listed_at = self._unread.now()
        unread: set[tuple[str, str]] = set()

        def take(o: Object) -> Object:
            """Into the cache, page by page: the whole list is never held. Leaves its identity."""
            metadata = o["metadata"]
            place = (metadata.get("namespace") or "", metadata["name"])
            if problem := unfit(resource, o):
                self._unread.note(resource, decoding.unreadable_object(o, problem))
                unread.add(place)
            elif self._cache.observe(resource, {"type": None, "object": o}):
                for key in self._cache.concerned(resource, o):
                    self._wake(key)
            return {"metadata": {"namespace": place[0], "name": place[1]}}

        selector = "" if resource.watch_all else OURS
        listing = await self._kube.list(
            resource, namespace, label_selector=selector, keep=take, patience=PATIENCE_SECONDS
        )
        unread |= {(u.namespace, u.name) for u in listing.unread}
        listed = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in listing.items} - unread
        for key in self._cache.forget_unlisted(resource, listed, listing.resource_version, namespace):
            self._wake(key)
        # for want of memory; or it went meanwhile
        left_out = {place for place in listed if self._cache.get(resource, *place) is None}
        self._unread.listed(resource, namespace, unread | left_out, listed_at, listing.resource_version)
        self._listed[resource, namespace] = self._unread.now()
        return listing.resource_version

    def _unreadable(self, resource: Resource, unread: UnreadableObject, *, gone: bool) -> None:
        """What was last seen of it goes too, or it would be acted on for ever."""
        if gone:
            self._unread.clear(resource, unread.namespace, unread.name, unread.version)
        else:
            self._unread.note(resource, unread)
        for key in self._cache.forget(resource, unread.namespace, unread.name):
            self._wake(key)


def unfit(resource: Resource, obj: Object) -> str | None:
    """What makes one of our objects unusable, should its definition have no schema: a pass over
    another object must not run into it.
    """
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if resource == MODEL_REVISION:
        right = {"number": int, "sha256": str, "input": dict, "template": dict}
        if wrong := [field for field, of in right.items() if not isinstance(spec.get(field), of)]:
            return f"has a spec without {', '.join(wrong)} of the right type"
    if resource == MODEL_DEPLOYMENT:
        conditions = status.get("conditions") or []
        if not isinstance(conditions, list) or not all(isinstance(c, dict) for c in conditions):
            return "has status.conditions that are no list of maps"
        if not isinstance(status.get("phase"), str | None):
            return "has a status.phase that is no text"
    return None


def _bookmark(resource: Resource, version: str) -> bytes:
    about: dict[str, Any] = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"resourceVersion": version},
    }
    return json.dumps({"type": "BOOKMARK", "object": about}).encode()
