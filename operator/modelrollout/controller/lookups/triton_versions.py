"""The Triton version of each revision, from ``GET /v2`` of one ready pod. No pass waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

import aiohttp

from modelrollout import nesting
from modelrollout.api import names
from modelrollout.kube.cache import Key
from modelrollout.kube.objects import Object, is_deleting, is_true, label

log = logging.getLogger(__name__)
SECONDS = 3.0  # for an answer
# until the next request to a pod that did not answer: a network policy may block it for good
AGAIN_SECONDS = 60.0
AT_ONCE = 4
MOST_BYTES = 64 << 10
_MOST_KNOWN = 20_000

Ask = Callable[[str], Awaitable[str | None]]


async def ask_version(host: str) -> str | None:
    """The version that the server at ``host`` reports; None without a valid answer of Triton's."""
    try:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=SECONDS), trust_env=False
        ) as session:
            url = f"http://{f'[{host}]' if ':' in host else host}:{names.PORT_HTTP}/v2"
            async with session.get(url, allow_redirects=False) as answer:
                metadata = (
                    nesting.parse(await answer.content.read(MOST_BYTES)) if answer.status == 200 else None
                )
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    version = metadata.get("version") if isinstance(metadata, dict) else None
    return version[:32] if isinstance(version, str) else None


class ServerVersions:
    """``wake`` is called once a version is known."""

    def __init__(
        self, wake: Callable[[Key, float], None], clock: Callable[[], float], ask: Ask = ask_version
    ) -> None:
        self._wake, self._clock, self._ask = wake, clock, ask
        self._known: dict[str, str] = {}  # by the pod's uid
        self._later: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._few = asyncio.Semaphore(AT_ONCE)

    def look_up(self, key: Key, revisions: Collection[str], pods: Iterable[Object]) -> dict[str, str]:
        """The known versions of these revisions; starts a request to one ready pod of each of the
        others, for a later pass.
        """
        by_revision: dict[str, list[Object]] = {}
        for pod in pods:
            if label(pod, names.LABEL_COMPONENT) == names.COMPONENT_SERVER and _is_ready(pod):
                by_revision.setdefault(label(pod, names.LABEL_REVISION) or "", []).append(pod)
        versions: dict[str, str] = {}
        for revision, ready in by_revision.items():
            if revision not in revisions:
                continue
            version = next((v for p in ready if (v := self._known.get(p["metadata"]["uid"]))), None)
            if version is None:
                self._begin(key, min(ready, key=lambda p: str(p["metadata"]["name"])))
            else:
                versions[revision] = version
        return versions

    def _begin(self, key: Key, pod: Object) -> None:
        uid, host = pod["metadata"]["uid"], str(pod["status"]["podIP"])
        if uid in self._asking or self._clock() < self._later.get(uid, 0.0):
            return
        self._asking[uid] = asyncio.create_task(self._find_out(key, uid, host))

    async def _find_out(self, key: Key, uid: str, host: str) -> None:
        try:
            async with self._few:
                version = await self._ask(host)
        finally:
            del self._asking[uid]
        for memory in (self._known, self._later):
            if len(memory) >= _MOST_KNOWN:
                memory.clear()
        if version is None:
            self._later[uid] = self._clock() + AGAIN_SECONDS
            log.debug("the server at %s does not report its version", host)
            return
        self._known[uid] = version
        self._wake(key, 0.0)


def _is_ready(pod: Object) -> bool:
    return is_true(pod, "Ready") and bool(pod["status"].get("podIP")) and not is_deleting(pod)
