"""Which artifacts are in use: those of revisions, of rollouts in flight, and of pods that run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelrollout.api import names
from modelrollout.kube.client import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_REVISION, Kube, Object
from modelrollout.resources.server import fetched


async def in_use(kube: Kube, namespaces: Sequence[str | None]) -> list[str]:
    """URIs of artifacts that something in these namespaces (None: in all) refers to. Raises KubeError."""
    found: set[str] = set()
    for namespace in namespaces:
        for resource in (MODEL_DEPLOYMENT, MODEL_REVISION):  # in this order: what moves from a rollout to its revision is seen in one of them
            for o in (await kube.list(resource, namespace)).items:
                found.update(_uris(o.get("status")))
        for o in (await kube.list(DEPLOYMENT, namespace, label_selector=names.LABEL_NAME)).items:
            found.update(_fetched(o))
    return sorted(found)


def _uris(status: Any) -> Iterator[str]:
    """Of the status itself and of its rollout, as raw JSON: whatever an operator of another version wrote there, it is in use."""
    for part in (status, status.get("rollout") if isinstance(status, Mapping) else None):
        artifact = part.get("artifact") if isinstance(part, Mapping) else None
        uri = artifact.get("uri") if isinstance(artifact, Mapping) else None
        if isinstance(uri, str) and uri:
            yield uri


def _fetched(server: Object) -> Iterator[str]:
    task = fetched(server)
    if task is not None:
        yield task.artifact.uri
