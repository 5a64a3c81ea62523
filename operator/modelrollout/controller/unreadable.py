"""Reports objects that cannot be read: one log line each, a metric, and an Event on the object."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from modelrollout.kube.cache import number
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.events import Events
from modelrollout.kube.kinds import Resource
from modelrollout.reasons import Reason

log = logging.getLogger(__name__)

# objects; the oldest are forgotten first, and reported again if they still exist
REMEMBERED = 10_000
REPORT_SECONDS = 600.0  # a log line for each change of such an object would be a flood
STALE_SECONDS = 1800.0  # an object that nothing has reported for so long is gone
POSTING = 20  # events under way at one time
_Id = tuple[Resource, str, str]


@dataclass(slots=True)
class _Entry:
    why: str
    met: float
    reported: float


class UnreadableObjects:
    """What cannot be read now. ``may_post``: whether this process posts events, which only the
    leader does.
    """

    def __init__(
        self, events: Events, may_post: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events, self._may_post, self._clock = events, may_post, clock
        self._known: OrderedDict[_Id, _Entry] = OrderedDict()
        # by resourceVersion: a list that was under way is older, and still reports the object
        self._cleared: OrderedDict[_Id, int] = OrderedDict()
        self._posting: set[asyncio.Task[None]] = set()

    def note(self, resource: Resource, unread: UnreadableObject) -> None:
        """Report an object that cannot be read."""
        i, now = (resource, unread.namespace, unread.name), self._clock()
        version = number(unread.version)
        if version is not None and version <= self._cleared.get(i, -1):
            return
        entry = self._known.pop(i, None)
        if entry is None or now - entry.reported >= REPORT_SECONDS:
            self._report(resource, unread)
            entry = _Entry(unread.why, now, now)
        entry.met, entry.why = now, unread.why
        self._known[i] = entry
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def clear(self, resource: Resource, namespace: str, name: str, version: str = "") -> None:
        """It can be read (again), or it is gone, since this resourceVersion."""
        i = (resource, namespace, name)
        if (since := number(version)) is not None:
            self._cleared.pop(i, None)
            self._cleared[i] = since
            if len(self._cleared) > REMEMBERED:
                self._cleared.popitem(last=False)
        if self._known.pop(i, None):
            log.info("%s %s can be read again, or is gone", resource.kind, _called(namespace, name))

    def now(self) -> float:
        """For ``listed``."""
        return self._clock()

    def listed(
        self,
        resource: Resource,
        namespace: str | None,
        unread: set[tuple[str, str]],
        since: float,
        version: str,
    ) -> None:
        """A list at this resourceVersion, of one namespace or of all, met only these that it could
        not read. What the watch met after ``since``, when the list was asked for, may be younger
        than the list.
        """
        for i, entry in list(self._known.items()):
            if (
                i[0] == resource
                and namespace in (None, i[1])
                and (i[1], i[2]) not in unread
                and entry.met < since
            ):
                self.clear(*i, version)

    def count(self) -> dict[tuple[str, str], int]:
        """Objects by kind and namespace."""
        for i in [i for i, entry in self._known.items() if self._clock() - entry.met >= STALE_SECONDS]:
            del self._known[i]
        return dict(Counter((resource.kind, namespace) for resource, namespace, _ in self._known))

    def _report(self, resource: Resource, unread: UnreadableObject) -> None:
        called = _called(unread.namespace, unread.name)
        log.warning(
            "%s %s is left out, as if it were not there: it %s; correct it or delete it",
            resource.kind,
            called,
            unread.why,
        )
        if not unread.name or not unread.uid or not self._may_post() or len(self._posting) >= POSTING:
            return
        about = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": unread.name, "namespace": unread.namespace, "uid": unread.uid},
        }
        text = (
            f"the operator leaves this object out, as if it were not there: it {unread.why}; correct it or"
            " delete it"
        )
        task = asyncio.get_running_loop().create_task(
            self._events.post(about, "Warning", Reason.UNREADABLE, text)
        )
        self._posting.add(task)
        task.add_done_callback(self._posting.discard)


def _called(namespace: str, name: str) -> str:
    return (
        f"{namespace}/{name or '(its name cannot be read either)'}"
        if namespace
        else name or "(its name cannot be read either)"
    )
