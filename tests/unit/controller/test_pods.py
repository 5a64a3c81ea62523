"""What pods tell: why they do not get on, and what a finished one left behind."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.controller.observe.pods import (
    Ending,
    any_running,
    crashes,
    ending,
    newest_ready,
    pod_problem,
    server_down,
    starting_pods,
    starting_since,
    stuck_pod,
)
from modelrollout.resources.hardening import DIED
from modelrollout.rollout.snapshot import Server

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
    assert (
        reason(pod(phase="Running", containerStatuses=[container(ready=True, state={"running": {}})])) is None
    )
    assert reason(pod(phase="Pending")) is None and reason({"metadata": {"name": "new"}}) is None


def test_unschedulable_says_what_the_scheduler_says() -> None:
    said = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/2 nodes: insufficient nvidia.com/gpu",
        }
    ]
    problem = pod_problem([pod(phase="Pending", conditions=said)])
    assert (
        problem
        and problem.reason == "Unschedulable"
        and "insufficient nvidia.com/gpu" in problem.message
        and "pod p" in problem.message
    )


def test_a_sidecar_that_starts_anew_is_no_problem_while_the_program_beside_it_runs() -> None:
    crashed = [
        container(
            restartCount=1,
            ready=False,
            state={"waiting": {"reason": "CrashLoopBackOff"}},
            lastState={"terminated": OOM},
        )
    ]
    assert (
        reason(
            pod(
                phase="Running",
                initContainerStatuses=crashed,
                containerStatuses=[container(state={"running": {}})],
            )
        )
        is None
    )
    waits = [container(state={"waiting": {"reason": "PodInitializing"}})]
    assert (
        reason(pod(phase="Pending", initContainerStatuses=crashed, containerStatuses=waits)) == "OutOfMemory"
    )


def test_gated_pods_are_not_unschedulable() -> None:
    assert (
        reason(pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]))
        is None
    )


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
    assert (
        reason(pod(**{where: [container(state={"waiting": {"reason": waiting, "message": "m"}})]}))
        == expected
    )


def test_a_crash_is_told_by_the_programs_own_words_if_it_left_any() -> None:
    said = '{"reason": "DigestMismatch", "message": "the artifact is not the one that was prepared"}'
    crashed = container(
        restartCount=2,
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        lastState={"terminated": {"exitCode": 10, "message": said}},
    )
    problem = pod_problem([pod(initContainerStatuses=[crashed])])
    assert problem and problem.reason == "DigestMismatch" and "not the one" in problem.message


def test_a_crash_without_words() -> None:
    last = {"terminated": {"exitCode": 1}}
    assert (
        reason(pod(containerStatuses=[container(restartCount=1, state={"running": {}}, lastState=last)]))
        == "ServerCrashed"
    )
    assert (
        reason(
            pod(
                containerStatuses=[
                    container(restartCount=1, ready=True, state={"running": {}}, lastState=last)
                ]
            )
        )
        is None
    ), "it is over"
    assert (
        reason(
            pod(
                containerStatuses=[
                    container(
                        restartCount=1,
                        state={"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": OOM},
                    )
                ]
            )
        )
        == "OutOfMemory"
    )


# The end of tritonserver 2.51's log.
NOT_LOADED = """I1122 15:17:46.053269 28754 server.cc:345] "Timeout 5: Found 0 live models and 0 in-flight non-inference requests"
error: creating server: Invalid argument - load failed for model 'digits': version 7 is at UNAVAILABLE state: {};

"""  # noqa: E501
NO_BACKEND = (
    "Invalid argument: unable to find backend library for backend 'tensorrt', try specifying runtime on the"
    " model configuration."
)


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
    problem = pod_problem(
        [
            pod(
                containerStatuses=[
                    container(
                        restartCount=1, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=last
                    )
                ]
            )
        ]
    )
    assert problem and problem.reason == expected and says in problem.message and len(problem.message) < 600


def test_pods_that_end_or_go_are_no_trouble() -> None:
    bad = container(state={"waiting": {"reason": "ErrImagePull"}})
    going = pod(containerStatuses=[bad])
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert (
        reason(
            going,
            pod(phase="Failed", containerStatuses=[bad]),
            pod(phase="Succeeded", containerStatuses=[bad]),
        )
        is None
    )


# --- what is left behind


def ended(code: int, message: str = "", **more: Any) -> list[dict[str, Any]]:
    return [container(name="job", state={"terminated": {"exitCode": code, "message": message} | more})]


def disrupted(why: str, message: str = "by a person") -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": why, "message": message}]


def end(**status: Any) -> Ending:
    actual = ending([pod(phase="Failed", **status)])
    assert actual is not None
    return actual


def why(**status: Any) -> str | None:
    problem = end(**status).problem
    return problem.reason if problem else None


def test_the_newest_pod_that_ended_speaks() -> None:
    old = pod(
        "a",
        "2026-01-01T00:00:00Z",
        phase="Failed",
        containerStatuses=ended(1, '{"reason": "StoreUnreachable"}'),
    )
    new = pod(
        "b",
        "2026-01-01T00:01:00Z",
        phase="Succeeded",
        containerStatuses=ended(0, '{"sha256": "ab"}', finishedAt="2026-01-01T00:03:00Z"),
    )
    runs = pod(
        "c", "2026-01-01T00:02:00Z", phase="Running", containerStatuses=[container(state={"running": {}})]
    )
    for order in ((old, new, runs), (runs, new, old)):
        end = ending(order)
        assert end and end.exit_code == 0 and end.result and end.result.sha256 == "ab" and end.problem is None
        assert end.at == "2026-01-01T00:03:00Z"


def test_nothing_has_ended() -> None:
    assert ending([]) is None and ending([pod(phase="Running")]) is None


@pytest.mark.parametrize(
    ("limits", "told"), [({"memory": "2Gi"}, "its limit of 2Gi"), ({}, "the node's memory")]
)
def test_an_out_of_memory_kill_names_the_limit_and_its_field(limits: dict[str, str], told: str) -> None:
    killed = pod(phase="Failed", containerStatuses=ended(137, reason="OOMKilled"))
    killed["spec"] = {"nodeName": "n1", "containers": [{"name": "job", "resources": {"limits": limits}}]}
    end = ending([killed])
    assert end and end.exit_code == 137 and end.problem and end.problem.reason == "OutOfMemory"
    assert (
        told in end.problem.message
        and "spec.optimization.resources.limits.memory" in end.problem.message
        and "node n1" in end.problem.message
    )


def test_the_fields_of_prepare_are_not_told_of_another_job() -> None:
    killed = pod(phase="Failed", containerStatuses=ended(137, reason="OOMKilled"))
    killed["metadata"]["labels"] = {names.LABEL_COMPONENT: names.COMPONENT_EVALUATE}
    end = ending([killed])
    assert end and end.problem and "spec.optimization" not in end.problem.message


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("DeletionByTaintManager", "NodeLost"),
        ("DeletionByPodGC", "NodeLost"),
        ("EvictionByEvictionAPI", "Evicted"),
        ("TerminationByKubelet", "Evicted"),
    ],
)
@pytest.mark.parametrize("code", [1, 137, 143])
def test_who_takes_a_pod_away_is_the_reason_and_not_how_it_died(
    condition: str, expected: str, code: int
) -> None:
    """The program's own word, Terminated, says less; and a SIGKILL is not for memory here."""
    ending = end(conditions=disrupted(condition), containerStatuses=ended(code, '{"reason": "Terminated"}'))
    assert ending.problem and (ending.problem.reason, ending.result, ending.hopeless) == (
        expected,
        None,
        False,
    )
    assert "by a person" in ending.problem.message


def test_what_the_program_found_out_before_it_was_taken_away_holds() -> None:
    ending = end(
        conditions=disrupted("EvictionByEvictionAPI"), containerStatuses=ended(10, '{"reason": "NotOnnx"}')
    )
    assert ending.problem is None and ending.result and ending.result.reason == "NotOnnx"


@pytest.mark.parametrize(
    "message",
    [
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        'Container job exceeded its local ephemeral storage limit "1Gi". ',
        'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ',
    ],
)
def test_an_eviction_for_its_own_disk_is_bad_sizing(message: str) -> None:
    """The kubelet's words; it sets no DisruptionTarget then, so the Job controller would try it
    again.
    """
    ending = end(reason="Evicted", message=message, containerStatuses=ended(1, '{"reason": "Terminated"}'))
    assert ending.problem and ending.problem.reason == "OutOfDisk" and ending.hopeless
    assert "limits.ephemeral-storage" in ending.problem.message and "1Gi" in ending.problem.message


def test_an_eviction_for_the_nodes_sake_is_none() -> None:
    ending = end(
        reason="Evicted",
        message="The node was low on resource: ephemeral-storage.",
        conditions=disrupted("TerminationByKubelet"),
    )
    assert ending.problem and ending.problem.reason == "Evicted" and not ending.hopeless
    assert why(reason="Evicted", message="The node was low on resource: memory.") == "Evicted"


def test_a_pod_that_hung_is_not_tried_again() -> None:
    ending = end(
        reason="DeadlineExceeded", message="Pod was active on the node longer than the specified deadline"
    )
    assert (
        ending.problem
        and ending.problem.reason == "DeadlineExceeded"
        and ending.hopeless
        and "spec.optimization.timeout" in ending.problem.message
    )


def test_other_ends() -> None:
    assert why(reason="UnexpectedAdmissionError", message="no device") == "PodRefused"
    assert why(containerStatuses=ended(137, reason="Error")) == "Killed"
    assert why(containerStatuses=ended(139, reason="Error")) == "JobCrashed"
    assert why(containerStatuses=ended(1, "")) is None


def test_pods_that_start_run_and_hang() -> None:
    works = pod(phase="Running", containerStatuses=[container(state={"running": {}})])
    pulls = pod(
        "q",
        phase="Pending",
        containerStatuses=[container(state={"waiting": {"reason": "ContainerCreating"}})],
    )
    done = pod("r", phase="Failed")
    gone = pod("s", phase="Running", containerStatuses=[container(state={"running": {}})])
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:05:00Z"
    assert any_running([works, pulls]) and not any_running([pulls, done, gone]) and not any_running([])
    assert starting_pods([works, pulls, done, gone]) == [pulls]
    problem = stuck_pod([works, gone])
    assert (
        problem
        and problem[0] == "2026-01-01T00:05:00Z"
        and problem[1].reason == "NodeLost"
        and stuck_pod([works, pulls, done]) is None
    )


# --- a user's container between two of ours

DONE = {
    "terminated": {
        "exitCode": 0,
        "message": '{"message": "handed over"}',
        "finishedAt": "2026-01-01T00:10:00Z",
    }
}
NEVER: dict[str, Any] = {"waiting": {"reason": "PodInitializing"}}


def of_three(
    before: dict[str, Any], own: dict[str, Any], job: dict[str, Any], phase: str = "Failed", **status: Any
) -> dict[str, Any]:
    initial = [container(name="before", state=before), container(name="container-step", state=own)]
    made = pod(
        phase=phase,
        initContainerStatuses=initial,
        containerStatuses=[container(name="job", state=job)],
        **status,
    )
    limits = {
        name: {"resources": {"limits": {"memory": memory}}}
        for name, memory in (("before", "2Gi"), ("container-step", "8Gi"), ("job", "3Gi"))
    }
    *init, last = ({"name": name} | more for name, more in limits.items())
    return made | {"spec": {"nodeName": "n1", "initContainers": init, "containers": [last]}}


def end_of(made: dict[str, Any]) -> Ending:
    end = ending([made])
    assert end is not None
    return end


def test_the_users_container_failed_and_is_no_result_whatever_it_says() -> None:
    said = 'Epoch 1\n{"reason": "Completed", "artifact_digest": "sha256:00"}\nno GPU:\x1b[31m found\n\n'
    end = end_of(of_three(DONE, {"terminated": {"exitCode": 12, "message": said}}, NEVER))
    assert (end.exit_code, end.result, end.hopeless) == (None, None, True), "its code is not one of ours"
    assert end.problem and end.problem.reason == "ContainerFailed"
    assert "ended with code 12: no GPU:[31m found; " in end.problem.message


@pytest.mark.parametrize("code", [0, 10, 20])
def test_the_users_container_cannot_speak_for_ours(code: int) -> None:
    lied = {"terminated": {"exitCode": code, "message": '{"artifact_digest": "sha256:00", "reused": true}'}}
    assert end_of(of_three(DONE, lied, NEVER)).result is None


@pytest.mark.parametrize("code", [1, 137, 139, 143])
def test_the_users_container_that_says_nothing(code: int) -> None:
    """Also one that killed itself: no crash of ours that would be tried again."""
    end = end_of(of_three(DONE, {"terminated": {"exitCode": code, "reason": "Error"}}, NEVER))
    assert (
        end.problem
        and end.problem.reason == "ContainerFailed"
        and "it said nothing" in end.problem.message
        and end.hopeless
    )


@pytest.mark.parametrize(
    ("states", "limit", "field"),
    [
        ((DONE, {"terminated": OOM}, NEVER), "8Gi", "the step's container.resources.limits.memory"),
        (({"terminated": OOM}, NEVER, NEVER), "2Gi", "spec.optimization.resources.limits.memory"),
        ((DONE, DONE, {"terminated": OOM}), "3Gi", "spec.optimization.resources.limits.memory"),
    ],
)
def test_whose_memory_was_too_little(states: tuple[dict[str, Any], ...], limit: str, field: str) -> None:
    end = end_of(of_three(*states))
    assert end.problem and end.problem.reason == "OutOfMemory" and end.hopeless, (
        "with the same limit it would end the same way"
    )
    assert f"its limit of {limit}" in end.problem.message and f"raise {field}" in end.problem.message
    assert end.exit_code == (None if limit == "8Gi" else 137)


@pytest.mark.parametrize(
    "states",
    [
        (DONE, {"terminated": {"exitCode": 137, "message": "Epoch 3"}}, NEVER),
        ({"terminated": OOM}, NEVER, NEVER),
    ],
)
def test_who_takes_a_pod_of_three_away_is_the_reason(states: tuple[dict[str, Any], ...]) -> None:
    end = end_of(of_three(*states, conditions=disrupted("DeletionByTaintManager")))
    assert end.problem and (end.problem.reason, end.result, end.hopeless) == ("NodeLost", None, False)
    shut = end_of(
        of_three(
            *states,
            conditions=disrupted("TerminationByKubelet"),
            reason="Evicted",
            message="The node was low on resource: memory.",
        )
    )
    assert shut.problem and shut.problem.reason == "Evicted" and not shut.hopeless


def test_a_queue_that_takes_its_job_back_tells_the_pod_to_end_and_nothing_else() -> None:
    told = of_three(DONE, {"terminated": {"exitCode": 143, "reason": "Error"}}, NEVER)
    told["metadata"]["deletionTimestamp"] = "2026-01-01T00:20:00Z"
    end = end_of(told)
    assert end.problem and end.problem.reason == "Evicted" and not end.hopeless


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (
            'Container container-step exceeded its local ephemeral storage limit "1Gi". ',
            "the step's container.resources.limits.ephemeral-storage",
        ),
        (
            'Container job exceeded its local ephemeral storage limit "1Gi". ',
            "spec.optimization.resources.limits.ephemeral-storage",
        ),
    ],
)
def test_whose_disk_was_too_small(message: str, field: str) -> None:
    end = end_of(of_three(DONE, {"terminated": {"exitCode": 137}}, NEVER, reason="Evicted", message=message))
    assert (
        end.problem
        and end.problem.reason == "OutOfDisk"
        and end.hopeless
        and f"raise {field}" in end.problem.message
    )


def test_a_pod_that_took_too_long_in_the_users_container() -> None:
    end = end_of(
        of_three(
            DONE,
            {"terminated": {"exitCode": 143}},
            NEVER,
            reason="DeadlineExceeded",
            message="Pod was active too long",
        )
    )
    assert end.problem and end.problem.reason == "DeadlineExceeded" and end.hopeless


def test_of_containers_in_turn_the_one_that_ended_the_pod_speaks() -> None:
    told = {"terminated": {"exitCode": 10, "message": '{"reason": "NotOnnx"}'}}
    for made in (of_three(told, NEVER, NEVER), of_three(DONE, DONE, told)):
        end = end_of(made)
        assert (end.exit_code, end.problem) == (10, None) and end.result and end.result.reason == "NotOnnx"
    well = end_of(
        of_three(DONE, DONE, {"terminated": {"exitCode": 0, "message": '{"sha256": "ab"}'}}, "Succeeded")
    )
    assert well.exit_code == 0 and well.result and well.result.sha256 == "ab"


def test_what_was_found_done_holds_whoever_takes_the_pod_away_then() -> None:
    reused = {"terminated": {"exitCode": 20, "message": '{"reused": true}'}}
    end = end_of(of_three(reused, NEVER, NEVER, conditions=disrupted("EvictionByEvictionAPI")))
    assert end.exit_code == 20 and end.result and end.result.reused and end.problem is None


def test_a_pod_works_while_one_of_its_containers_does() -> None:
    works: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:11:00Z"}}
    assert any_running([of_three(works, NEVER, NEVER, "Pending")]) and any_running(
        [of_three(DONE, works, NEVER, "Pending")]
    )
    pulls = of_three(DONE, {"waiting": {"reason": "PodInitializing"}}, NEVER, "Pending")
    assert starting_pods([pulls]) == [pulls] and starting_since(pulls) == "2026-01-01T00:10:00Z", (
        "not since its creation: it has worked"
    )
    assert starting_since(pod(phase="Pending")) == "2026-01-01T00:00:00Z"


def test_an_init_container_that_failed_speaks_for_its_pod_and_a_sidecar_never_does() -> None:
    said = ended(10, '{"reason": "ArtifactCorrupt", "message": "retry"}')
    waits = [container(state={"waiting": {"reason": "PodInitializing"}})]
    ending = end(initContainerStatuses=said, containerStatuses=waits)
    assert ending.exit_code == 10 and ending.result and ending.result.reason == "ArtifactCorrupt"
    sidecar = pod(
        phase="Succeeded",
        initContainerStatuses=ended(143),
        containerStatuses=ended(0, '{"reason": "Completed"}'),
    )
    ending = end_of(sidecar)
    assert ending.exit_code == 0 and ending.result and ending.result.reason == "Completed"
    killed = end_of(
        pod(
            phase="Failed",
            initContainerStatuses=ended(137, reason="OOMKilled"),
            containerStatuses=ended(1, '{"reason": "NoAnswer"}'),
        )
    )
    assert killed.exit_code == 1 and killed.problem is None, "the server beside it may die under a candidate"


# --- servers that died

# The end of the log of tritonserver 2.51 with model control none and --log-info=false.
NONE_LOADED = """E1128 18:27:58.453570 18846 model_lifecycle.cc:642] "failed to load 'm' version 1: {}"
Error: Failed to initialize NVML
W1128 18:27:58.457021 18846 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
error: creating server: Internal - failed to load all models
"""
# The end of the help of tritonserver 2.39 (23.10), which is what a termination message has room
# for.
USAGE = """DEPRECATED:
  --strict-model-config <boolean>
	DEPRECATED: If true model configuration files must be
	provided and all required configuration settings must be specified.
  --trace-rate <integer>
	DEPRECATED: Please use --trace-config rate=<rate value>Set
	the trace sampling rate. Default is 1000.
"""


def crashed(message: str = "", code: int = 1, **more: Any) -> dict[str, Any]:
    last = {"exitCode": code, "message": message, "finishedAt": "2026-11-28T12:00:00Z"} | more
    return container(
        restartCount=1, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": last}
    )


@pytest.mark.parametrize(
    ("message", "expected", "says"),
    [
        (NONE_LOADED.format(NO_BACKEND), "BackendMissing", "no backend tensorrt"),
        (
            NONE_LOADED.format("Internal: ModuleNotFoundError: No module named 'numpy'\\n\\nAt:\\n  m.py(1)"),
            "ModelNotLoaded",
            "'numpy' At: m.py(1)",
        ),
        (
            (
                "E1128 model_repository_manager.cc:1460] \"Poll failed for model directory 'm': failed to"
                ' read text proto from /r/config.pbtxt"\n'
            ),
            "ModelNotLoaded",
            "failed to read text proto",
        ),
        (
            NONE_LOADED.format(
                "Invalid argument: failed to run warmup sample 'zeros-64': onnx runtime error 6: Failed to"
                " allocate memory for requested buffer of size 9; onnx runtime error 6: Failed to allocate; "
            ),
            "ModelNotLoaded",
            "size 9; onnx runtime error 6: Failed to allocate; its prepare Job got an answer",
        ),
        (NONE_LOADED[NONE_LOADED.index("Error:") :], "ModelNotLoaded", "kubectl logs --previous"),
        (USAGE, "TritonTooOld", "spec.serving.triton.image"),
        (f"{DIED}\n", "ServerCrashed", DIED),
    ],
    ids=["backend", "python", "config", "warm-up", "cut off", "help", "stub"],
)
def test_why_a_server_ended_is_told_from_its_last_words(message: str, expected: str, says: str) -> None:
    problem = pod_problem([pod(containerStatuses=[crashed(message)])])
    assert problem and problem.reason == expected and says in problem.message


def was_ready(since: str, *containers: dict[str, Any]) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "False", "lastTransitionTime": since}
    return pod(phase="Running", conditions=[condition], containerStatuses=list(containers))


def test_a_server_that_starts_for_the_first_time_is_not_down() -> None:
    starting_container = container(ready=False, state={"running": {"startedAt": "2026-11-28T12:00:05Z"}})
    assert server_down([was_ready("2026-11-28T12:00:01Z", starting_container)]) is None
    assert server_down([pod(phase="Pending")]) is None and server_down([]) is None


def test_a_server_that_was_ready_and_is_not_is_down() -> None:
    unready = container(ready=False, state={"running": {"startedAt": "2026-11-28T12:00:05Z"}})
    problem = server_down([was_ready("2026-11-28T12:05:00Z", unready)])
    assert problem and problem.reason == "ServerNotReady"
    problem = server_down([was_ready("2026-11-28T12:05:00Z", crashed(code=139))])
    assert problem and problem.reason == "ServerCrashed" and "139" in problem.message


def test_the_newest_ready_pod_is_the_one_that_is_cold() -> None:
    def ready(at: str, status: str = "True") -> dict[str, Any]:
        return pod(
            phase="Running", conditions=[{"type": "Ready", "status": status, "lastTransitionTime": at}]
        )

    pods = [
        ready("2026-11-28T12:00:01Z"),
        ready("2026-11-28T12:07:00Z"),
        ready("2026-11-28T12:09:00Z", "False"),
    ]
    assert newest_ready(pods) == "2026-11-28T12:07:00Z"
    assert newest_ready([ready("yesterday"), pod(phase="Pending")]) is None and newest_ready([]) is None


def test_the_last_crash_is_the_one_that_came_last_also_with_code_0_and_when_all_is_well_again() -> None:
    first = container(
        restartCount=1,
        ready=True,
        lastState={"terminated": {"exitCode": 0, "finishedAt": "2026-11-28T12:00:00Z"}},
    )
    last = container(
        restartCount=1,
        ready=True,
        lastState={
            "terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-11-28T12:09:00Z"}
        },
    )
    latest = Server(crashes=crashes([pod(containerStatuses=[first]), pod("q", containerStatuses=[last])]))
    assert latest.crash and (latest.crash.at, latest.crash.reason) == ("2026-11-28T12:09:00Z", "OutOfMemory")
    assert crashes([pod(containerStatuses=[container(ready=True)])]) == ()


def ended_server(code: int = 139, restarts: int = 1, **more: Any) -> dict[str, Any]:
    """A server that runs again after so many ends; the last one with that exit code."""
    last = {"exitCode": code, "reason": "Error", "finishedAt": "2026-11-28T12:00:00Z"}
    running = {"running": {"startedAt": "2026-11-28T12:00:02Z"}}
    return container(restartCount=restarts, ready=True, state=running, lastState={"terminated": last}) | more


@pytest.mark.parametrize(
    ("server", "count"),
    [
        (ended_server(), 1),
        (ended_server(restarts=3), 3),
        # the kubelet counts an end when it starts the next container
        (ended_server(state={"terminated": {"exitCode": 139, "finishedAt": "2026-11-28T12:01:00Z"}}), 2),
        (ended_server(restarts=0, state={"waiting": {"reason": "CrashLoopBackOff"}}), 1),
        (ended_server(restarts=2, state={"waiting": {"reason": "ContainerCreating"}}), 2),
    ],
    ids=["back", "three times", "just ended", "waits to start", "is being made"],
)
def test_how_often_the_server_of_a_pod_ended(server: dict[str, Any], count: int) -> None:
    (crash,) = crashes([pod(containerStatuses=[server])])
    assert (crash.count, crash.reason) == (count, "ServerCrashed")
    assert crash.created == "2026-01-01T00:00:00Z" and len(crash.pod) == 8


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        ({"exitCode": 139}, "was ended by SIGSEGV (exit code 139)"),
        ({"exitCode": 134}, "was ended by SIGABRT (exit code 134)"),
        ({"exitCode": 0, "signal": 11}, "was ended by SIGSEGV (exit code 0)"),
        ({"exitCode": 137}, "was ended by SIGKILL, by its liveness probe or by hand (exit code 137)"),
        ({"exitCode": 160}, "was ended by signal 32 (exit code 160)"),
        ({"exitCode": 255}, "ended with code 255"),
        ({"exitCode": 1}, "ended with code 1"),
        ({}, "ended with code 0"),
    ],
)
def test_a_signal_is_told_by_its_name(ended: dict[str, Any], says: str) -> None:
    last = {"finishedAt": "2026-11-28T12:00:00Z"} | ended
    (crash,) = crashes([pod(containerStatuses=[ended_server(lastState={"terminated": last})])])
    assert crash.message == f"pod p, container triton {says}; see kubectl logs --previous"


def test_what_others_ended_is_no_crash_of_the_server() -> None:
    deleted = pod(containerStatuses=[ended_server()])
    deleted["metadata"]["deletionTimestamp"] = "2026-11-28T12:00:30Z"
    low = {"reason": "Evicted", "message": "The node was low on resource: memory."}
    stopped = [container(state={"terminated": {"exitCode": 137, "finishedAt": "2026-11-28T12:00:00Z"}})]
    rebooted = {"exitCode": 255, "reason": "Unknown", "finishedAt": "2026-11-28T12:00:00Z"}
    for other in (
        deleted,
        pod(phase="Failed", containerStatuses=stopped, **low),
        pod(phase="Failed", containerStatuses=stopped, reason="NodeShutdown"),
        pod(phase="Succeeded", containerStatuses=stopped),
        pod(containerStatuses=[ended_server(lastState={"terminated": rebooted})]),
        pod(containerStatuses=[container(ready=True, restartCount=0, state={"running": {}})]),
        pod(containerStatuses=[ended_server() | {"name": "sidecar"}]),
        pod(phase="Pending"),
    ):
        assert crashes([other]) == ()


def test_a_pod_evicted_for_a_limit_of_its_own_has_ended_by_itself() -> None:
    status = {"reason": "Evicted", "message": 'Usage of EmptyDir volume "shm" exceeds the limit "1Gi". '}
    stopped = {"terminated": {"exitCode": 137, "finishedAt": "2026-11-28T12:00:00Z"}}
    (crash,) = crashes([pod(phase="Failed", containerStatuses=[container(state=stopped)], **status)])
    assert (crash.reason, crash.count) == ("ServerCrashed", 1)
    assert crash.message == 'pod p was evicted: Usage of EmptyDir volume "shm" exceeds the limit "1Gi".'
