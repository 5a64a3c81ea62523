"""A Job that has ended without a word: its pod says how, and the watch of pods may be behind the
one of Jobs, or bring nothing at all.
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
from modelrollout.rollout.snapshot import JobState


async def reread_finished_job(kube: Kube, store: ObjectCache, seen: Observation) -> JobState:
    """The work with its pods as they are now, where nothing but their word is missing. What cannot
    be asked is no loss yet: raises KubeError.
    """
    s, job = seen.snapshot, seen.job
    wordless = s.work.result is None and (
        s.work.state == "Succeeded" or (s.work.problem is not None and s.work.problem.reason == "JobFailed")
    )
    if job is None or not wordless:
        return s.work
    pods = (
        await kube.list(
            POD,
            s.namespace,
            label_selector=f"{names.LABEL_JOB}={job['metadata']['name']}",
            keep=partial(project, POD),
        )
    ).items
    for pod in pods:
        store.read(POD, pod)
    return job_state(job, pods, seen.folder)
