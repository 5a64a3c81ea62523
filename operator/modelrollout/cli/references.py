"""Which artifacts are in use: those of revisions, of rollouts in flight, and of pods that run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelrollout.api import names
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Unreadable
from modelrollout.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_REVISION, Resource
from modelrollout.kube.objects import Object
from modelrollout.resources.server import fetch_task


@dataclass(frozen=True)
class InUse:
    """``untouched``: namespaces with an object that cannot be read, so other artifacts may be in
    use there.
    """

    artifacts: tuple[str, ...]  # URIs
    untouched: tuple[str, ...] = ()


async def in_use(kube: Kube, namespaces: Sequence[str | None]) -> InUse:
    """What something in these namespaces (None: in all) refers to. Raises KubeError."""
    uris: set[str] = set()
    untouched: set[str] = set()

    async def read(resource: Resource, namespace: str | None, label_selector: str = "") -> list[Object]:
        listing = await kube.list(resource, namespace, label_selector=label_selector, keep=_needed_parts)
        for unread in listing.unread:
            if not unread.namespace:  # its namespace is unknown, so anything may be in use
                raise Unreadable(
                    200, "Unreadable", f"{resource.kind} {unread.name or '(without a name)'} {unread.why}"
                )
            untouched.add(unread.namespace)
        return listing.items

    for namespace in namespaces:
        # in this order: an artifact that moves from a rollout to its revision is in one of them
        for resource in (MODEL_DEPLOYMENT, MODEL_REVISION):
            for o in await read(resource, namespace):
                uris.update(_uris(o.get("status")))
        for o in await read(DEPLOYMENT, namespace, names.LABEL_NAME):
            uris.update(_fetched(o))
    return InUse(tuple(sorted(uris)), tuple(sorted(untouched)))


def _needed_parts(o: Object) -> Object:
    """The parts that ``in_use`` reads: the others are large."""
    reduced: Object = {"metadata": {k: o["metadata"].get(k) for k in ("name", "namespace")}}
    return reduced | (
        {"spec": o["spec"]} if o.get("kind") == DEPLOYMENT.kind else {"status": o.get("status")}
    )


def _uris(status: Any) -> Iterator[str]:
    """Of the status itself and of its rollout, as raw JSON: whatever an operator of another version
    wrote there, it is in use.
    """
    for part in (status, status.get("rollout") if isinstance(status, Mapping) else None):
        artifact = part.get("artifact") if isinstance(part, Mapping) else None
        uri = artifact.get("uri") if isinstance(artifact, Mapping) else None
        if isinstance(uri, str) and uri:
            yield uri


def _fetched(server: Object) -> Iterator[str]:
    task = fetch_task(server)
    if task is not None:
        yield task.artifact.uri
