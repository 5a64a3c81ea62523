"""How the Job of a stage stands, from its status and that of its pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelrollout.api import names
from modelrollout.api.uris import lies_below, masked_text
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.controller.apply.diff import foreign_changes
from modelrollout.controller.observe.pods import (
    Ending,
    any_running,
    ending,
    pod_problem,
    pods_of_job,
    starting_pods,
    starting_since,
    stuck_pod,
)
from modelrollout.kube.objects import Object, condition, is_true, label
from modelrollout.resources.jobs.common import LABEL_QUEUE, RETRIES
from modelrollout.resources.jobs.prepare import prepare_task
from modelrollout.rollout.snapshot import JobState, Problem


def job_state(job: Object, candidates: Iterable[Object], folder: str) -> JobState:
    """``candidates``: pods, whosesoever they are. ``folder``: where artifacts of this namespace
    lie.

    A result is the Job's: only pods count that the Job controls and that run what its template
    says, and only with the Job's own condition.
    """
    own = pods_of_job(candidates, job)
    template = ((job.get("spec") or {}).get("template") or {}).get("spec") or {}
    strayed = [(pod, why) for pod in own if (why := foreign_changes(pod.get("spec") or {}, template))]
    pods = [pod for pod in own if all(pod is not other for other, _ in strayed)]
    work = _work_of(job, pods)
    if (
        strayed
        and work.result is None
        and (work.state != "Running" or not (any_running(pods) or starting_pods(pods)))
    ):
        # The word of a pod that may have run something else is missing, or it is such a one that is
        # waited for.
        problem = _strayed(job, strayed)
        return (
            JobState("Running", problem=problem, idle_since=work.idle_since)
            if work.state == "Running"
            else JobState("Failed", problem=problem)
        )
    uri = work.result.artifact_uri if work.result else None
    if uri is None or label(job, names.LABEL_COMPONENT) != names.COMPONENT_PREPARE:
        return work
    task = prepare_task(job)
    # Made by another version of the operator it might have taken anything; and what was published
    # where the store no longer is, is not served from there: it is made anew.
    if task is None or task.artifacts.uri != folder:
        return JobState()
    if work.result and not (
        lies_below(uri, folder) and task.may_answer(uri, work.result.artifact_digest or "")
    ):
        text = (
            f"the prepare Job answered with {masked_text(uri)}: neither a folder of its own nor what a"
            " revision of this namespace records"
        )
        return JobState(
            "Failed",
            problem=Problem(
                "ArtifactForeign",
                f"{text}; nothing of it is served: see who may write pods in this namespace",
            ),
        )
    return work


def _strayed(job: Object, strayed: Sequence[tuple[Object, str]]) -> Problem:
    """Pods that the Job controller has made are named after the Job, and something has changed
    them; others it adopts by their labels. Who can fake the one or the other has only the choice
    between a Job that fails and one that is made anew.
    """
    name = job["metadata"]["name"]
    foreign = [s for s in strayed if s[0]["metadata"].get("generateName") != f"{name}-"]
    pod, why = (foreign or strayed)[0]
    told = (
        f"pod {pod['metadata']['name']} is not as its Job's template says: {why}; what it says does not count"
    )
    if foreign:
        return Problem(
            "PodForeign", f"{told}. Somebody passed it off as one of Job {name}, which is made anew for it"
        )
    return Problem("PodChanged", f"{told}. Have what changes pods here leave those of the Jobs alone")


def _work_of(job: Object, pods: Sequence[Object]) -> JobState:
    end = _shown(ending(pods) or Ending(None, None))
    if is_true(job, "Complete"):
        # The pod that did it may be gone while one that failed before it is still there: that one's
        # answer is not the Job's.
        return JobState("Succeeded", end.exit_code, end.result if end.exit_code == 0 else None, end.problem)
    failed = condition(job, "Failed") if is_true(job, "Failed") else None
    if failed and end.exit_code == ExitCode.REUSED and end.result:
        if end.result.artifact_digest is None:  # said by one that opens files of strangers
            text = (
                "who reads the model said that an artifact was there already; the file may have taken that"
                " container over: see where it comes from"
            )
            return JobState("Failed", problem=Problem("OutputRefused", text))
        # for Kubernetes a failure: the containers that would follow must not run
        return JobState("Succeeded", int(ExitCode.OK), end.result)
    if _taken_back(job, failed, end):
        return JobState()  # as if it had never been made, and it is made anew
    if failed or end.hopeless:
        failed = failed or {}
        why = f"{failed.get('reason')}: {failed.get('message')}; its pods left no word"
        return JobState("Failed", end.exit_code, end.result, end.problem or Problem("JobFailed", why))
    # When it is admitted its start is set anew together with this condition: until then only the
    # time before the queue is known.
    if job["spec"].get("suspend") or is_true(job, "Suspended"):
        return JobState("Running", queued=_queued(job))
    return JobState(
        "Running",
        problem=pod_problem(pods),
        retried=_retried(end),
        idle_since=_idle_since(job, pods, end),
        no_pod_created=not pods,
        stuck=stuck_pod(pods),
    )


def _shown(end: Ending) -> Ending:
    """The last word of a pod, which may be one of an earlier version's, as it may stand in
    status.
    """
    result = end.result and end.result.model_copy(update={"message": masked_text(end.result.message)})
    return replace(
        end,
        result=result,
        problem=end.problem and replace(end.problem, message=masked_text(end.problem.message)),
    )


def _taken_back(job: Object, failed: Mapping[str, Any] | None, end: Ending) -> bool:
    """Whether a Job failed only because its queue suspended it while it ran, and its pod did not
    end in time: that is no try that failed.

    The rule on SIGKILL is applied to pods that the Job controller ends itself, too, and cannot ask
    who did. It seldom comes to that: a kubelet mostly removes the killed pod before the Job
    controller looks at it.
    """
    killed = failed is not None and failed.get("reason") == "PodFailurePolicy"
    wordless = end == Ending(None, None) or (end.problem is not None and end.problem.reason == "Killed")
    return bool(job["spec"].get("suspend")) and killed and wordless


def _queued(job: Object) -> Problem:
    name, queue = job["metadata"]["name"], label(job, LABEL_QUEUE)
    if queue is None:
        return Problem(
            "Queued", f"Job {name} is suspended: somebody set its spec.suspend; it has no time limit"
        )
    return Problem(
        "Queued", f"Job {name} waits in Kueue's LocalQueue {queue} to be admitted, without time limit"
    )


def _retried(end: Ending) -> Problem | None:
    """Why the Job is at another try."""
    problem = end.problem or (Problem(end.result.reason, end.result.message) if end.result else None)
    if problem is None:
        return (
            Problem("JobFailed", f"a pod ended with code {end.exit_code} and left no word; it is tried again")
            if end.exit_code
            else None
        )
    return replace(problem, message=f"{problem.message}; it is tried again, at most {RETRIES} times")


def _idle_since(job: Object, pods: Sequence[Object], end: Ending) -> str | None:
    """Since when no pod of it works: the newest one does not start yet, or the Job controller has
    made none.
    """
    if any_running(pods):
        return None
    if waiting := starting_pods(pods):
        return max(starting_since(p) or "" for p in waiting) or None
    times = (job["metadata"].get("creationTimestamp"), (job.get("status") or {}).get("startTime"), end.at)
    return max((t for t in times if t), default=None)
