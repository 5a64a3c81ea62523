"""Kubernetes Events: few and meaningful. A lost Event does no harm, so posting never raises."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from modelrollout.api import names
from modelrollout.kube.errors import AlreadyExists, KubeError
from modelrollout.kube.kinds import EVENT, Resource
from modelrollout.kube.objects import Object
from modelrollout.telemetry.redaction import mask_uris

log = logging.getLogger(__name__)

COMPONENT = "modelrollout-operator"
MESSAGE_LIMIT = 1024  # of the API
REPEAT_SECONDS = 600.0  # an equal Event within this time adds nothing
REMEMBERED = 2048


class EventApi(Protocol):
    """What posting needs of ``Kube``."""

    async def create(self, resource: Resource, obj: Object) -> Object: ...
    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object: ...


class Events:
    """Posts Events of one process. The name follows from (uid, reason, message), so a restarted
    operator makes no second Event of it.
    """

    def __init__(
        self,
        kube: EventApi,
        *,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube, self._instance, self._clock, self._wall = kube, instance, clock, wall
        self._posted: OrderedDict[str, tuple[float, int]] = OrderedDict()  # name -> when, how often

    async def post(
        self, obj: Mapping[str, Any], type_: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Post ``message`` about ``obj`` (a dict with apiVersion, kind and metadata); ``reason`` is
        one word in CamelCase.
        """
        metadata = obj["metadata"]
        message = mask_uris(message)
        message = message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"
        # 8 hexadecimal digits, as Event names have them by custom, would collide after some ten
        # thousand
        name = f"{metadata['name'][:200]}.{names.short_hash([metadata.get('uid'), reason, message], 16)}"
        at, count = self._posted.get(name, (float("-inf"), 0))
        if self._clock() - at < REPEAT_SECONDS:
            return
        self._remember(name, count + 1)  # also when it fails: no Event is worth a second try
        now = self._wall().strftime("%Y-%m-%dT%H:%M:%SZ")
        # where Events of cluster-scoped objects live
        namespace = metadata.get("namespace") or "default"
        event: Object = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"namespace": namespace, "name": name},
            "involvedObject": (
                {"apiVersion": obj["apiVersion"], "kind": obj["kind"]}
                | {k: metadata[k] for k in ("namespace", "name", "uid", "resourceVersion") if k in metadata}
            ),
            "type": type_,
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance[:128],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            try:
                await self._kube.create(EVENT, event)
            except AlreadyExists:
                await self._kube.merge_patch(
                    EVENT, namespace, name, {"lastTimestamp": now, "count": count + 1}
                )
        except KubeError as e:
            log.warning("event %s not posted: %s", reason, e)

    def _remember(self, name: str, count: int) -> None:
        self._posted[name] = (self._clock(), count)
        self._posted.move_to_end(name)
        if len(self._posted) > REMEMBERED:
            self._posted.popitem(last=False)
