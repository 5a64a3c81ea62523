"""Why a Job has no pod: a ResourceQuota, a LimitRange, an admission webhook. The Job controller
reports it in an Event, not in the Job's status.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from modelrollout.api.times import since
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.observe.refused_pods import refused_pod
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import EVENT
from modelrollout.kube.projection import event_for_message
from modelrollout.rollout.snapshot import JobState

log = logging.getLogger(__name__)

# a pod is created within milliseconds; asking at once would cost a request each time
PATIENCE_SECONDS = 5.0


async def explain_missing_pod(
    kube: Kube, observation: Observation, work: JobState, now: datetime
) -> JobState:
    """The state of the Job, with what kept its pod from being created."""
    job = observation.job
    if (
        job is None
        or not work.no_pod_created
        or work.idle_since is None
        or since(work.idle_since, now) < PATIENCE_SECONDS
    ):
        return work
    selector = f"involvedObject.uid={job['metadata']['uid']},reason=FailedCreate"
    try:
        events = (
            await kube.list(
                EVENT, observation.observed.namespace, field_selector=selector, keep=event_for_message
            )
        ).items
    except KubeError as e:  # it only explains
        log.warning("cannot read the Events of Job %s: %s", job["metadata"]["name"], e)
        return work
    if not events:
        return work
    last = max(events, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
    problem = refused_pod(
        f"Job {job['metadata']['name']}", last.get("message", ""), "spec.optimization.resources"
    )
    return replace(work, problem=problem)
