"""What pods tell: why they do not get on, and what a finished one left behind."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.controller.pods import pod_problem, termination

OOM = {"reason": "OOMKilled", "exitCode": 137}


def pod(name: str = "p", created: str = "2026-01-01T00:00:00Z", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": created}, "status": status}


def container(**state: Any) -> dict[str, Any]:
    return {"name": "triton", "image": "example/triton:1"} | state


def reason(*pods: dict[str, Any]) -> str | None:
    problem = pod_problem(pods)
    return problem.reason if problem else None


def test_nothing_is_wrong_with_no_pods_and_with_running_ones() -> None:
    assert reason() is None
    assert reason(pod(phase="Running", containerStatuses=[container(ready=True, state={"running": {}})])) is None
    assert reason(pod(phase="Pending")) is None and reason({"metadata": {"name": "new"}}) is None


def test_unschedulable_says_what_the_scheduler_says() -> None:
    said = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: insufficient nvidia.com/gpu"}]
    problem = pod_problem([pod(phase="Pending", conditions=said)])
    assert problem and problem.reason == "Unschedulable" and "insufficient nvidia.com/gpu" in problem.message and "pod p" in problem.message


def test_a_sidecar_that_starts_anew_is_no_problem_while_the_program_beside_it_runs() -> None:
    crashed = [container(restartCount=1, ready=False, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": OOM})]
    assert reason(pod(phase="Running", initContainerStatuses=crashed, containerStatuses=[container(state={"running": {}})])) is None
    waits = [container(state={"waiting": {"reason": "PodInitializing"}})]
    assert reason(pod(phase="Pending", initContainerStatuses=crashed, containerStatuses=waits)) == "OutOfMemory"


def test_gated_pods_are_not_unschedulable() -> None:
    assert reason(pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])) is None


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ("ErrImagePull", "ImagePullFailed"),
        ("ImagePullBackOff", "ImagePullFailed"),
        ("InvalidImageName", "ImagePullFailed"),
        ("CreateContainerConfigError", "ContainerConfigError"),
        ("ContainerCreating", None),
        ("PodInitializing", None),
    ],
)
@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_containers_that_wait(waiting: str, expected: str | None, where: str) -> None:
    assert reason(pod(**{where: [container(state={"waiting": {"reason": waiting, "message": "m"}})]})) == expected


def test_a_crash_is_told_by_the_programs_own_words_if_it_left_any() -> None:
    said = '{"reason": "DigestMismatch", "message": "the artifact is not the one that was prepared"}'
    crashed = container(
        restartCount=2, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": {"exitCode": 10, "message": said}}
    )
    problem = pod_problem([pod(initContainerStatuses=[crashed])])
    assert problem and problem.reason == "DigestMismatch" and "not the one" in problem.message


def test_a_crash_without_words() -> None:
    last = {"terminated": {"exitCode": 1}}
    assert reason(pod(containerStatuses=[container(restartCount=1, state={"running": {}}, lastState=last)])) == "ServerCrashed"
    assert reason(pod(containerStatuses=[container(restartCount=1, ready=True, state={"running": {}}, lastState=last)])) is None, "it is over"
    assert (
        reason(pod(containerStatuses=[container(restartCount=1, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": OOM})]))
        == "OutOfMemory"
    )


# The end of tritonserver 2.51's log.
NOT_LOADED = """I1122 15:17:46.053269 28754 server.cc:345] "Timeout 5: Found 0 live models and 0 in-flight non-inference requests"
error: creating server: Invalid argument - load failed for model 'digits': version 7 is at UNAVAILABLE state: {};

"""
NO_BACKEND = "Invalid argument: unable to find backend library for backend 'tensorrt', try specifying runtime on the model configuration."


@pytest.mark.parametrize(
    ("why", "expected", "says"),
    [
        (NO_BACKEND, "BackendMissing", "no backend tensorrt: set spec.serving.triton.image"),
        (
            "Internal: ModuleNotFoundError: No module named 'numpy'\n\nAt:\n  utils.py(30)\n",
            "ModelNotLoaded",
            "No module named 'numpy' At:",
        ),
        ("x" * 5000, "ModelNotLoaded", "x" * 400),
    ],
)
def test_a_model_that_triton_does_not_load_is_told_from_its_log(why: str, expected: str, says: str) -> None:
    last = {"terminated": {"exitCode": 1, "message": NOT_LOADED.format(why)}}
    problem = pod_problem([pod(containerStatuses=[container(restartCount=1, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=last)])])
    assert problem and problem.reason == expected and says in problem.message and len(problem.message) < 600


def test_pods_that_end_or_go_are_no_trouble() -> None:
    bad = container(state={"waiting": {"reason": "ErrImagePull"}})
    going = pod(containerStatuses=[bad])
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert reason(going, pod(phase="Failed", containerStatuses=[bad]), pod(phase="Succeeded", containerStatuses=[bad])) is None


# --- what is left behind


def ended(code: int, message: str = "", **more: Any) -> list[dict[str, Any]]:
    return [container(state={"terminated": {"exitCode": code, "message": message} | more})]


def test_the_newest_pod_that_ended_speaks() -> None:
    old = pod("a", "2026-01-01T00:00:00Z", phase="Failed", containerStatuses=ended(1, '{"reason": "StoreUnreachable"}'))
    new = pod("b", "2026-01-01T00:01:00Z", phase="Succeeded", containerStatuses=ended(0, '{"sha256": "ab"}'))
    runs = pod("c", "2026-01-01T00:02:00Z", phase="Running", containerStatuses=[container(state={"running": {}})])
    for order in ((old, new, runs), (runs, new, old)):
        code, result, problem = termination(order)
        assert code == 0 and result and result.sha256 == "ab" and problem is None


def test_an_out_of_memory_kill_leaves_no_message() -> None:
    code, result, problem = termination([pod(phase="Failed", containerStatuses=ended(137, reason="OOMKilled"))])
    assert (code, result) == (137, None) and problem and problem.reason == "OutOfMemory" and "limits.memory" in problem.message


def test_a_pod_that_was_evicted_has_a_reason_of_its_own() -> None:
    code, result, problem = termination([pod(phase="Failed", reason="Evicted", message="the node was low on memory")])
    assert (code, result) == (None, None) and problem and (problem.reason, problem.message) == ("Evicted", "the node was low on memory")


DONE = {"terminated": {"exitCode": 0, "message": '{"message": "handed over"}'}}


def of_three(before: dict[str, Any], own: dict[str, Any], job: dict[str, Any], phase: str) -> dict[str, Any]:
    initial = [container(name="before", state=before), container(name="container-step", state=own)]
    return pod(phase=phase, initContainerStatuses=initial, containerStatuses=[container(name="job", state=job)])


def test_the_users_container_failed_and_is_no_result_whatever_it_says() -> None:
    said = 'Epoch 1\n{"reason": "Completed", "artifact_digest": "sha256:00"}\nno GPU:\x1b[31m found\n\n'
    found = termination([of_three(DONE, {"terminated": {"exitCode": 12, "message": said}}, {"waiting": {}}, "Failed")])
    assert found[:2] == (None, None), "its code is not one of ours"
    assert found[2] and found[2].reason == "ContainerFailed"
    assert "ended with code 12: no GPU:[31m found; " in found[2].message


def test_the_users_container_ran_out_of_memory() -> None:
    found = termination([of_three(DONE, {"terminated": OOM}, {"waiting": {}}, "Failed")])
    assert found[2] and found[2].reason == "OutOfMemory" and "container.resources.limits.memory" in found[2].message


def test_the_users_container_that_says_nothing() -> None:
    found = termination([of_three(DONE, {"terminated": {"exitCode": 1}}, {"waiting": {}}, "Failed")])
    assert found[2] and "it said nothing" in found[2].message


def test_of_containers_in_turn_the_one_that_ended_the_pod_speaks() -> None:
    told = {"terminated": {"exitCode": 10, "message": '{"reason": "NotOnnx"}'}}
    first, last = of_three(told, {"waiting": {}}, {"waiting": {}}, "Failed"), of_three(DONE, DONE, told, "Failed")
    for ended_pod in (first, last):
        code, result, problem = termination([ended_pod])
        assert (code, problem) == (10, None) and result and result.reason == "NotOnnx"
    code, result, _ = termination([of_three(DONE, DONE, {"terminated": {"exitCode": 0, "message": '{"sha256": "ab"}'}}, "Succeeded")])
    assert code == 0 and result and result.sha256 == "ab"


def test_an_init_container_that_failed_speaks_for_its_pod_and_a_sidecar_never_does() -> None:
    said = ended(10, '{"reason": "ArtifactCorrupt", "message": "retry"}')
    waits = [container(state={"waiting": {"reason": "PodInitializing"}})]
    code, result, _ = termination([pod(phase="Failed", initContainerStatuses=said, containerStatuses=waits)])
    assert code == 10 and result and result.reason == "ArtifactCorrupt"
    code, result, _ = termination([pod(phase="Succeeded", initContainerStatuses=ended(143), containerStatuses=ended(0, '{"reason": "Completed"}'))])
    assert code == 0 and result and result.reason == "Completed"


def test_nothing_has_ended() -> None:
    assert termination([]) == (None, None, None) == termination([pod(phase="Running")])
