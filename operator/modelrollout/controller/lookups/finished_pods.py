"""A Job that finished without a result: its pods have it, but the watch of pods may lag behind that
of Jobs.
"""

from __future__ import annotations

from functools import partial

from modelrollout.api import names
from modelrollout.controller.observe.job_state import job_state
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.kinds import POD
from modelrollout.kube.projection import project
from modelrollout.reasons import Reason
from modelrollout.rollout.snapshot import JobState


async def reread_finished_job(kube: Kube, cache: ObjectCache, observation: Observation) -> JobState:
    """Re-reads the pods of a Job that finished without a result. Raises KubeError: a failed read
    does not mean that the result is lost.
    """
    work, job = observation.work, observation.job
    no_result = work.result is None and (
        work.state == "Succeeded" or (work.problem is not None and work.problem.reason == Reason.JOB_FAILED)
    )
    if job is None or not no_result:
        return work
    pods = (
        await kube.list(
            POD,
            observation.observed.namespace,
            label_selector=f"{names.LABEL_JOB}={job['metadata']['name']}",
            keep=partial(project, POD),
        )
    ).items
    for pod in pods:
        cache.record_read(POD, pod)
    return job_state(job, pods, observation.folder)
