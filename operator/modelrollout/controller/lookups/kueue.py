"""Why Kueue holds a Job back: Kueue writes it into the Job's Workload, not into the Job.

Follows the sources of Kueue 0.14 to 0.19. Messages are passed on, never parsed. Only reasons that
waiting cannot resolve are interpreted.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from modelrollout.api import names
from modelrollout.api.times import since
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import WORKLOAD, WORKLOAD_BEFORE, Resource
from modelrollout.kube.objects import Object, condition, controller_of, label, labels_of
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.jobs.common import LABEL_PRIORITY, LABEL_QUEUE
from modelrollout.rollout.snapshot import JobState

log = logging.getLogger(__name__)

LABEL_JOB_UID = "kueue.x-k8s.io/job-uid"  # on the Workload
# a Workload is created within a second, and mostly says at once why its Job waits; behind other
# Jobs perhaps never
PATIENCE_SECONDS = 10.0
# Reasons of the condition QuotaReserved: the queue is missing or stopped (by default all of this is
# Inadmissible), or no quota is ever enough.
_UNFIT = frozenset({"Inadmissible", "Misconfigured", "Suspended", "NoMatchingFlavor", "ExceedsMaxQuota"})


async def with_queue_reason(kube: Kube, observation: Observation, work: JobState, now: datetime) -> JobState:
    """The state of the Job, with Kueue's message on why it waits."""
    job = observation.job
    if job is None or work.queued is None:
        return work
    try:
        kind = await _served(kube)
        if kind is None:
            return work
        uid = job["metadata"]["uid"]
        listed = (
            await kube.list(kind, observation.observed.namespace, label_selector=f"{LABEL_JOB_UID}={uid}")
        ).items
        workloads = [w for w in listed if controller_of(w) == uid]
    except KubeError as e:  # it only explains
        log.warning("cannot read the Workload of Job %s: %s", job["metadata"]["name"], e)
        return work
    newest = max(workloads, key=lambda w: w["metadata"].get("creationTimestamp") or "", default=None)
    new = since(_queued_since(job), now) < PATIENCE_SECONDS
    if newest is None:
        return (
            replace(work, result_pending=True)
            if new
            else replace(work, queued=_without_workload(job, work.queued))
        )
    return replace(
        work,
        queued=queue_reason(job, newest),
        result_pending=new and not (newest.get("status") or {}).get("conditions"),
    )


async def _served(kube: Kube) -> Resource | None:
    for kind in (WORKLOAD, WORKLOAD_BEFORE):
        if await kube.has_kind(kind):
            return kind
    return None


def _queued_since(job: Object) -> str:
    suspended = condition(job, "Suspended")
    waits_again = suspended.get("lastTransitionTime") if suspended.get("status") == "True" else None
    return str(waits_again or job["metadata"]["creationTimestamp"])


def queue_reason(job: Object, workload: Object) -> Problem:
    """Why the Job waits, from its Workload."""
    spec = workload.get("spec") or {}
    queue = spec.get("queueName")
    where = f"LocalQueue {queue}" if queue else "hands without a LocalQueue"
    who = f"Job {job['metadata']['name']} in Kueue's {where} (Workload {workload['metadata']['name']})"
    finished, evicted, reserved = (
        condition(workload, kind) for kind in ("Finished", "Evicted", "QuotaReserved")
    )
    if finished.get("status") == "True":
        text = (
            f"{who} was given up before it ran: {finished.get('message')}; correct that and delete the Job:"
            " it is recreated"
        )
        return Problem(Reason.NOT_ADMISSIBLE, text)
    if spec.get("active") is False:
        why = f": {evicted.get('message')}" if evicted.get("status") == "True" else ""
        return Problem(
            Reason.NOT_ADMISSIBLE,
            f"{who} is deactivated{why}; set spec.active of the Workload to true, or delete the Job: it is"
            " recreated",
        )
    why = reserved.get("message", "")
    if reserved.get("status") == "False" and reserved.get("reason") in _UNFIT:
        return Problem(Reason.NOT_ADMISSIBLE, f"{who} cannot be admitted: {why}; {_remedy(job, queue)}")
    if reserved.get("status") == "True":
        checks = (workload.get("status") or {}).get("admissionChecks") or []
        not_ready = "; ".join(
            f"{c['name']} is {c['state']} {c.get('message') or ''}".strip()
            for c in checks
            if c.get("state") != "Ready"
        )
        why = f"it has its quota{f', and admission checks are open: {not_ready}' if not_ready else ''}"
    return Problem(
        Reason.QUEUED, f"{who} waits to be admitted, without time limit{f': {why}' if why else ''}"
    )


def _remedy(job: Object, queue: str | None) -> str:
    if label(job, names.LABEL_COMPONENT) == names.COMPONENT_PREPARE:
        return (
            "correct spec.optimization.queueName or spec.optimization.resources, or have the queue corrected"
        )
    if queue:
        return "have the queue corrected"
    return (
        "Kueue takes Jobs without a queue name here: have it leave this namespace out, or make a LocalQueue"
        " called default"
    )


def _without_workload(job: Object, queued: Problem) -> Problem:
    """Kueue may be down, or refuse to create a Workload: see its log, or with newer versions an
    Event of the Job.
    """
    labels = labels_of(job)
    if LABEL_QUEUE not in labels:
        return queued  # suspended by hand
    priority = labels.get(LABEL_PRIORITY)
    named = (
        f", and is there a WorkloadPriorityClass {priority} (spec.optimization.queuePriorityClass)"
        if priority
        else ""
    )
    text = f"Kueue has made no Workload for it: does its manager run, does it manage this namespace{named}?"
    return replace(
        queued, message=f"{queued.message}; {text} See kubectl describe job {job['metadata']['name']}"
    )
