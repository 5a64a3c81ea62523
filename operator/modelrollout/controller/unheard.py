"""A Job that has ended without a word: its pod says how, and the watch of pods may be behind the one of Jobs, or bring nothing at all."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.controller.observe import Seen
from modelrollout.controller.work import work_of
from modelrollout.kube.cache import Store
from modelrollout.kube.client import JOB, POD, Kube
from modelrollout.rollout.desired import stage_job
from modelrollout.rollout.facts import Work


async def asked(kube: Kube, store: Store, seen: Seen) -> Work:
    """The work with its pods as they are now, where nothing but their word is missing. What cannot be asked is no loss yet: raises KubeError."""
    s = seen.snapshot
    wordless = s.work.result is None and (s.work.state == "Succeeded" or (s.work.problem is not None and s.work.problem.reason == "JobFailed"))
    found = stage_job(s.status, s) if wordless else None
    job = seen.children.get((JOB.kind, found[1])) if found else None
    if job is None:
        return s.work
    pods = (await kube.list(POD, s.namespace, label_selector=f"{names.LABEL_JOB}={job['metadata']['name']}")).items
    for pod in pods:
        store.read(POD, pod)
    return work_of(job, pods)
