"""The state of a stage's Job, from its own status and its pods'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelrollout.analysis.golden import judge_golden
from modelrollout.api import names
from modelrollout.api.uris import lies_below
from modelrollout.api.v1alpha1 import EvaluationEvidence
from modelrollout.contract.exit_codes import ExitCode
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
from modelrollout.kube.diff import foreign_changes
from modelrollout.kube.objects import Object, condition, is_true, label
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.jobs.common import FINAL, LABEL_QUEUE, RETRIES
from modelrollout.resources.jobs.prepare import prepare_task
from modelrollout.rollout.snapshot import JobState, Observed, baseline
from modelrollout.telemetry.redaction import mask_uris


def job_state(job: Object, candidates: Iterable[Object], folder: str) -> JobState:
    """``candidates``: any pods. ``folder``: where artifacts of this namespace lie.

    A result counts only from a pod that the Job controls and that runs what the Job's template
    says, and only together with the Job's own condition.
    """
    own = pods_of_job(candidates, job)
    template = ((job.get("spec") or {}).get("template") or {}).get("spec") or {}
    changed = [(pod, why) for pod in own if (why := foreign_changes(pod.get("spec") or {}, template))]
    pods = [pod for pod in own if all(pod is not other for other, _ in changed)]
    work = _work_of(job, pods)
    if (
        changed
        and work.result is None
        and (work.state != "Running" or not (any_running(pods) or starting_pods(pods)))
    ):
        # The only result, or the only pod to wait for, is of a pod that may have run something
        # else.
        problem = _changed_pod(job, changed)
        return (
            JobState("Running", problem=problem, idle_since=work.idle_since)
            if work.state == "Running"
            else JobState("Failed", problem=problem)
        )
    uri = work.result.artifact_uri if work.result else None
    if uri is None or label(job, names.LABEL_COMPONENT) != names.COMPONENT_PREPARE:
        return work
    task = prepare_task(job)
    # A Job of another operator version might have reused anything, and an artifact in a store that
    # was replaced is not served: the Job is recreated.
    if task is None or task.artifacts.uri != folder:
        return JobState()
    if work.result and not (
        lies_below(uri, folder) and task.may_answer(uri, work.result.artifact_digest or "")
    ):
        text = (
            f"the prepare Job answered with {mask_uris(uri)}: neither a folder of its own nor what a"
            " revision of this namespace records"
        )
        return JobState(
            "Failed",
            problem=Problem(
                Reason.ARTIFACT_FOREIGN,
                f"{text}; nothing of it is served: see who may write pods in this namespace",
            ),
        )
    return work


def _changed_pod(job: Object, changed: Sequence[tuple[Object, str]]) -> Problem:
    """Names what changed a pod. Pods that the Job controller creates are named after the Job;
    others it adopts by their labels. Faking either only chooses between a Job that fails and one
    that is recreated.
    """
    name = job["metadata"]["name"]
    foreign = [s for s in changed if s[0]["metadata"].get("generateName") != f"{name}-"]
    pod, why = (foreign or changed)[0]
    text = (
        f"pod {pod['metadata']['name']} is not as its Job's template says: {why}; what it says does not count"
    )
    if foreign:
        return Problem(
            Reason.POD_FOREIGN,
            f"{text}. It was passed off as a pod of Job {name}, which is therefore recreated",
        )
    return Problem(Reason.POD_CHANGED, f"{text}. Have what changes pods here leave those of the Jobs alone")


def _work_of(job: Object, pods: Sequence[Object]) -> JobState:
    end = _shown(ending(pods) or Ending(None, None))
    if is_true(job, "Complete"):
        # The successful pod may be gone while one that failed earlier still exists: that one's
        # result is not the Job's.
        return JobState("Succeeded", end.exit_code, end.result if end.exit_code == 0 else None, end.problem)
    failed = condition(job, "Failed") if is_true(job, "Failed") else None
    if failed and end.exit_code == ExitCode.REUSED and end.result:
        if end.result.artifact_digest is None:  # from a container that opens untrusted files
            text = (
                "the container that reads the model claimed an existing artifact; the file may have taken"
                " that container over: see where it comes from"
            )
            return JobState("Failed", problem=Problem(Reason.OUTPUT_REFUSED, text))
        # for Kubernetes a failure: the containers that would follow must not run
        return JobState("Succeeded", int(ExitCode.OK), end.result)
    if _taken_back(job, failed, end):
        return JobState()  # as if it had never been created, so that it is recreated
    if failed or end.hopeless:
        failed = failed or {}
        why = f"{failed.get('reason')}: {failed.get('message')}; its pods left no word"
        return JobState("Failed", end.exit_code, end.result, end.problem or Problem(Reason.JOB_FAILED, why))
    # Admission resets startTime and this condition together; until then startTime refers to the run
    # before suspension.
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
    """The end of a pod with its texts masked for status: an earlier version may have written
    them.
    """
    result = end.result and end.result.model_copy(update={"message": mask_uris(end.result.message)})
    return replace(
        end,
        result=result,
        problem=end.problem and replace(end.problem, message=mask_uris(end.problem.message)),
    )


def _taken_back(job: Object, failed: Mapping[str, Any] | None, end: Ending) -> bool:
    """Whether a Job failed only because its queue suspended it while it ran, and its pod did not
    end in time.

    The failure rule on SIGKILL also matches pods that the Job controller itself terminates. This is
    rare: usually the kubelet removes the killed pod before the Job controller looks at it.
    """
    killed = failed is not None and failed.get("reason") == "PodFailurePolicy"
    no_result = end == Ending(None, None) or (end.problem is not None and end.problem.reason == Reason.KILLED)
    return bool(job["spec"].get("suspend")) and killed and no_result


def _queued(job: Object) -> Problem:
    name, queue = job["metadata"]["name"], label(job, LABEL_QUEUE)
    if queue is None:
        return Problem(
            Reason.QUEUED, f"Job {name} is suspended: its spec.suspend was set; it has no time limit"
        )
    return Problem(
        Reason.QUEUED, f"Job {name} waits in Kueue's LocalQueue {queue} to be admitted, without time limit"
    )


def _retried(end: Ending) -> Problem | None:
    """Why the Job is retrying; None where it has done its work, or is about to fail for good."""
    if end.exit_code == ExitCode.OK or end.exit_code in FINAL:
        return None
    problem = end.problem or (Problem(end.result.reason, end.result.message) if end.result else None)
    if problem is None:
        return (
            Problem(
                Reason.JOB_FAILED,
                f"a pod ended with code {end.exit_code} and left no word; it is tried again",
            )
            if end.exit_code
            else None
        )
    return replace(problem, message=f"{problem.message}; it is tried again, at most {RETRIES} times")


def _idle_since(job: Object, pods: Sequence[Object], end: Ending) -> str | None:
    """Since when no pod of the Job has been running: the newest is still starting, or there is
    none.
    """
    if any_running(pods):
        return None
    if waiting := starting_pods(pods):
        return max(starting_since(p) or "" for p in waiting) or None
    times = (job["metadata"].get("creationTimestamp"), (job.get("status") or {}).get("startTime"), end.at)
    return max((t for t in times if t), default=None)


def golden_evaluation(s: Observed, work: JobState) -> EvaluationEvidence | None:
    """The verdict on golden data, once its Job has a result that counts."""
    rollout, golden = s.status.rollout, s.spec.rollout.analysis.golden if s.spec else None
    if rollout is None or rollout.stage != "Evaluate" or golden is None:
        return None
    if work.state != "Succeeded" or work.result is None:
        return None
    stable = baseline(s)
    return judge_golden(golden, work.result, stable.revision if stable else None)
