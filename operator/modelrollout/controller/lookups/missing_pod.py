"""Why a Job has no pod: a ResourceQuota, a LimitRange, an admission webhook. The Job controller
says so in an Event, not in the Job's status.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import EVENT
from modelrollout.kube.projection import event_for_message
from modelrollout.rollout.snapshot import JobState, Problem, since

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0  # a pod is made within milliseconds; what would it cost to ask each time


async def explain_missing_pod(kube: Kube, seen: Observation, now: datetime) -> JobState:
    """The work, with what was in the way of its pod."""
    s, job = seen.snapshot, seen.job
    if (
        job is None
        or not s.work.no_pod_created
        or s.work.idle_since is None
        or since(s.work.idle_since, now) < PATIENCE_SECONDS
    ):
        return s.work
    selector = f"involvedObject.uid={job['metadata']['uid']},reason=FailedCreate"
    try:
        events = (await kube.list(EVENT, s.namespace, field_selector=selector, keep=event_for_message)).items
    except KubeError as e:  # it only explains
        log.warning("cannot read the Events of Job %s: %s", job["metadata"]["name"], e)
        return s.work
    if not events:
        return s.work
    last = max(events, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
    told = (
        f"Job {job['metadata']['name']} gets no pod: {last.get('message', '')}; change"
        " spec.optimization.resources, or what the namespace allows"
    )
    return replace(s.work, problem=Problem("PodRefused", told))
