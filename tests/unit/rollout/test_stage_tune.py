"""tune: a serving configuration is measured once for a version, before its first pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import QueueStatus, TuningEvidence, TuningTrial
from modelrollout.contract.common import ServingConfig
from modelrollout.contract.results import TaskResult, TrialResult, TuneResult
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired import desired
from modelrollout.rollout.desired.jobs import stage_job
from modelrollout.rollout.snapshot import JobState, Server, Snapshot
from modelrollout.rollout.stages.tune import serving_of
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

SPEC = b.spec(2, steps=b.STEPS, tune={"objective": "50ms"})
BEST = ServingConfig(instances=2, batch=16, queue_delay_us=500)
CONFIGURED = TrialResult(
    serving=ServingConfig(batch=32), throughput=400, latency_ms=45, in_flight=8, within=True
)
CHOSEN = TrialResult(serving=BEST, throughput=900, latency_ms=40, in_flight=24, within=True)
TUNED = JobState(
    "Succeeded",
    0,
    TaskResult(
        tuned=TuneResult(configured=CONFIGURED, chosen=CHOSEN, candidates=9, failed=1),
        message="inputs were made up",
    ),
)
EVIDENCE = TuningEvidence(objective="50ms", share=0.99, chosen=TuningTrial(instances=2, batch=16))


def prepared(**changes: Any) -> Snapshot:
    """At the end of Prepare, with an artifact that is there already; no pods of the new version."""
    s = b.second("Prepare", wanted=SPEC)
    second = b.revision(2)
    if "status" in changes:
        second = replace(second, status=second.status.model_copy(update=changes.pop("status")))
    return replace(
        s,
        **{
            "revisions": (b.revision(1, "Stable"), second),
            "servers": {b.revision_name(1): b.ready()},
            **changes,
        },
    )


def test_a_version_is_tuned_between_prepare_and_its_first_pods() -> None:
    to = b.moved(decide(prepared(), b.START))
    assert to.stage == "Tune" and to.artifact is not None
    s = b.second("Tune", wanted=SPEC)
    component, name = stage_job(s) or ("", "")
    assert component == "tune" and name.startswith(f"{b.revision_name(2)}-tune-")
    assert b.revision_name(2) not in b.children(s).servers, "its pods come afterwards"


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": b.spec(2, steps=b.STEPS)},
        {"status": {"tuning": EVIDENCE}},
        {"status": {"outcome": "Retired"}},
        {"servers": {b.revision_name(2): Server(2, 2, None, 2)}},
    ],
)
def test_it_is_passed_over_when_not_wanted_done_before_or_when_pods_would_change(
    changes: dict[str, Any],
) -> None:
    assert b.moved(decide(prepared(**changes), b.START)).stage == "Provision"


def test_what_was_found_is_kept_with_the_revision_and_served() -> None:
    plan = decide(b.second("Tune", wanted=SPEC, work=TUNED), b.START)
    to = b.moved(plan)
    assert to.stage == "Provision" and to.tuning is not None and serving_of(to.tuning) == BEST
    assert (to.tuning.candidates, to.tuning.failed, to.tuning.objective) == (9, 1, "50ms")
    assert (
        to.tuning.message
        == "2 instances, batches of 16 within 500 us: 900/s at 40.0 ms; as configured 400/s at 45.0 ms;"
        " inputs were made up"
    )
    assert [e.reason for e in plan.events] == ["ServingTuned"] and b.condition(
        plan, "Tuned"
    ).message == to.tuning.message
    s = b.second("Tune", wanted=SPEC, work=TUNED)
    written = desired(replace(s, status=plan.status), b.START).revision_status[b.revision_name(2)]
    assert written.tuning == to.tuning


def test_an_objective_that_nothing_keeps_to_is_told_and_no_failure() -> None:
    worst = CONFIGURED.model_copy(update={"within": False})
    plan = decide(
        b.second(
            "Tune",
            wanted=SPEC,
            work=JobState("Succeeded", 0, TaskResult(tuned=TuneResult(configured=worst))),
        ),
        b.START,
    )
    to = b.moved(plan)
    assert to.stage == "Provision" and serving_of(to.tuning) is None and to.tuning is not None
    assert [(e.reason, e.type) for e in plan.events] == [("ObjectiveUnmet", "Warning")]


def test_settings_that_nothing_beats_stay() -> None:
    plan = decide(
        b.second(
            "Tune",
            wanted=SPEC,
            work=JobState("Succeeded", 0, TaskResult(tuned=TuneResult(configured=CONFIGURED))),
        ),
        b.START,
    )
    assert serving_of(b.moved(plan).tuning) is None and [e.reason for e in plan.events] == ["ServingTuned"]


def test_a_lost_result_runs_again_and_in_the_end_fails() -> None:
    assert b.moved(decide(b.second("Tune", wanted=SPEC, work=JobState("Succeeded")), b.START)).attempt == 1
    last = b.second("Tune", wanted=SPEC, work=JobState("Succeeded"), changes={"attempt": 3})
    assert b.moved(decide(last, b.START)).reason == "ResultLost"


def test_a_job_that_failed_ends_the_rollout_with_its_reason() -> None:
    work = JobState("Failed", 10, TaskResult(reason="DataNeeded", message="give spec.serving.tune.data"))
    to = b.moved(decide(b.second("Tune", wanted=SPEC, work=work), b.START))
    assert (to.stage, to.outcome, to.reason) == ("Failed", "Failed", "DataNeeded")


def test_a_job_that_finds_no_gpu_waits_and_ends_at_the_deadline() -> None:
    spec = b.spec(2, tune={"objective": "50ms"}, rollout={"progressDeadline": "10m"})
    s = b.second(
        "Tune", wanted=spec, work=JobState("Running", problem=Problem("Unschedulable", "no GPU is free"))
    )
    assert b.moved(decide(s, b.START)).stage == "Tune"
    assert b.moved(decide(s, b.at(700))).reason == "Unschedulable"


def test_a_running_job_has_a_deadline_of_its_own() -> None:
    plan = decide(
        b.second("Tune", wanted=b.spec(2, tune={"objective": "50ms"}), work=JobState("Running")), b.at(7200)
    )
    assert plan.status.rollout is not None and plan.status.rollout.stage == "Tune"


def test_tuning_taken_out_under_way_goes_on_without() -> None:
    assert (
        b.moved(
            decide(b.second("Tune", wanted=b.spec(2, steps=b.STEPS), work=JobState("Running")), b.START)
        ).stage
        == "Provision"
    )


def test_another_objective_is_other_work_and_starts_no_canary() -> None:
    s = b.second("Tune", wanted=SPEC)
    t = b.second("Tune", wanted=b.spec(2, steps=b.STEPS, tune={"objective": "20ms"}))
    assert stage_job(s) != stage_job(t)
    stable = b.snapshot(
        b.spec(1, tune={"objective": "20ms"}),
        b.status(1),
        revisions=(b.revision(1, "Stable"),),
        servers={b.revision_name(1): b.ready()},
    )
    assert decide(stable, b.START).status.rollout is None


def test_a_rollout_that_waits_for_its_slot_uses_no_gpu_for_tuning() -> None:
    s = b.second("Tune", wanted=SPEC, changes={"queue": QueueStatus(since=b.ago(10), gpus=2)})
    assert stage_job(s) is None
    to = b.moved(decide(s, b.START))
    assert to.stage == "Tune" and to.queue is None, "nothing limits it any more"


def test_the_world_tunes_once_and_rolls_back_to_what_was_found() -> None:
    """Version 1 and 2 are tuned, going back to 1 measures nothing, and status lost in between
    changes no template.
    """
    world = ModelCluster(b.spec(1, tune={"objective": "50ms"}))
    world.serve()
    assert {name.rsplit("-", 2)[1] for name in world.jobs} >= {"tune"}
    world.edit(b.spec(2, tune={"objective": "50ms"}))
    world.serve()
    first = world.revisions[b.revision_name(1)]
    assert first.status.tuning is not None and first.status.tuning.chosen is not None
    before = len(world.jobs)
    world.say("rollback", first.name, "n1")
    world.serve()
    assert world.status.stable and world.status.stable.revision == first.name and len(world.jobs) == before
    assert world.servers[first.name].tuning == first.status.tuning
    world.lose_status()
    world.serve()
    assert world.servers[first.name].tuning == first.status.tuning
