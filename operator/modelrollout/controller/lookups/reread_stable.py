"""A stable without a ready pod, as of a watch that may lag: it is read live before a new version
takes over from it.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import NotFound
from modelrollout.kube.kinds import DEPLOYMENT
from modelrollout.rollout.dead_stable import is_newly_dead


async def reread_dead_stable(kube: Kube, cache: ObjectCache, observation: Observation, now: datetime) -> bool:
    """Whether the Deployment of a stable that is about to count as dead has changed since it was
    observed. Raises KubeError: a failed read does not mean that it is dead.
    """
    s = observation.observed
    if s.status.stable is None or not is_newly_dead(s, now):
        return False
    name = s.status.stable.revision
    observed = observation.children.get((DEPLOYMENT.kind, name))
    try:
        return cache.record_read(DEPLOYMENT, await kube.get(DEPLOYMENT, s.namespace, name))
    except NotFound:
        return observed is not None and cache.record_deletion(
            DEPLOYMENT, s.namespace, name, observed["metadata"]["uid"]
        )
