"""follow: what lies at the URI is looked at again, and new bytes are a version like any other."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import (
    FollowStatus,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ShadowStatus,
    StepEvidence,
    UserPause,
)
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.jobs import known_source, stage_job, work_since
from modelrollout.rollout.follow import makes_way, next_look
from modelrollout.rollout.plan import Converge, Write
from modelrollout.rollout.policy.requirements import first_violation, sources
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.snapshot import JobState, Snapshot, Verb
from modelrollout.rollout.views import Specified
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster, Refused

A, B, C, D = (b.sha(number) for number in (1, 2, 3, 4))
WAITING = [{"pause": {}}, {"weight": 50}]
AWAY = Problem("StoreUnreachable", "the store does not answer")


def followed(**more: Any) -> ModelDeploymentSpec:
    follow = {"every": "10m"} | more.pop("follow", {})
    return b.spec(1, model={"uri": b.uri(1), "follow": follow}, **more)


class World(ModelCluster):
    """A cluster whose model follows its source; at first A lies there, and serves."""

    @classmethod
    def serving(cls, **more: Any) -> World:
        world = cls(followed(**more), source=A)
        world.serve()
        assert world.digest == A
        return world

    @property
    def digest(self) -> str:
        """Of the version that serves."""
        assert self.status.stable is not None
        return self.revisions[self.status.stable.revision].sha256

    @property
    def revision(self) -> str:
        """The revision of the last rollout."""
        assert self.status.rollout is not None and self.status.rollout.revision is not None
        return self.status.rollout.revision

    @property
    def follow(self) -> FollowStatus:
        assert self.status.follow is not None
        return self.status.follow

    def condition(self, kind: str = "Following") -> tuple[str, str]:
        row = next(c for c in self.status.conditions if c.type == kind)
        return row.status, row.reason

    def wait(self, minutes: float = 16) -> None:
        """Nothing else happens for so long; then all goes well for a while."""
        self.reconcile()
        self.tick(minutes * 60)
        self.reconcile()
        self.serve()

    def begin_look(self) -> str:
        """Time passes until a look is under way; the name of its Job."""
        self.tick(16 * 60)
        self.reconcile()
        assert self.follow.looking is not None
        (name,) = [n for n, job in self.jobs.items() if job.state == "Running"]
        return name

    def until(self, stage: str) -> None:
        """The rollout goes on, with good verdicts, until it is in that stage."""
        self.verdict = "Successful"
        for _ in range(60):
            self.reconcile()
            if self.status.rollout is not None and self.status.rollout.stage == stage:
                return
            self.kindly()
        raise AssertionError(f"it never came to {stage}: {self.status.rollout}")

    def fail(self) -> None:
        """What is in its canary is judged and found worse."""
        self.until("Canary")
        for _ in range(40):
            self.verdict = "Failed"
            self.schedule()
            self.accept()
            self.tick(5)
            self.reconcile()
            if self.status.rollout is not None and self.status.rollout.stage == "Failed":
                return
        raise AssertionError(f"it does not fail: {self.status.rollout}")


class TestLooks:
    def test_the_first_rollout_pins_what_lies_there_and_needs_no_look(self) -> None:
        world = World.serving()
        assert (world.follow.uri, world.follow.sha256, world.follow.etag) == (b.uri(1), A, None)
        assert world.condition() == ("True", "Following")
        assert [r.stage for r in world.history] == ["Resolve", "Prepare", "Provision", "Promote", "Done"]

    def test_what_has_not_changed_changes_nothing(self) -> None:
        world = World.serving()
        before = world.status.rollout
        world.wait()
        assert world.status.rollout == before and world.condition("Ready")[0] == "True"
        assert world.follow.etag == f'"{A}"' and world.follow.looking is None

    def test_new_bytes_are_a_version_like_any_other(self) -> None:
        world = World.serving(steps=b.STEPS)
        world.source = B
        world.wait()
        assert world.digest == B and world.generation == 1
        visited = [(r.stage, r.sha256) for r in world.history if r.sha256 == B]
        assert [stage for stage, _ in visited] == [
            "Prepare", "Provision", "Canary", "Promote", "Done",
        ]  # fmt: skip

    def test_ready_speaks_of_the_new_digest_in_the_very_write_that_names_it(self) -> None:
        world = World.serving()
        world.begin_look()
        world.source = B
        world.end_job("ok")
        wrote, plan = world.one_pass()
        assert wrote and plan.status.follow and plan.status.follow.sha256 == B
        assert b.condition(plan, "Ready").status == "False"
        assert b.condition(plan, "Reconciling").status == "True"
        assert plan.status.observed_generation == 1
        assert [e.reason for e in b.events(plan)] == ["SourceChanged"]

    def test_a_look_serves_as_before_and_ready_stays_true(self) -> None:
        world = World.serving()
        world.begin_look()
        assert world.condition("Ready") == ("True", "Stable") and world.condition("Stalled")[0] == "False"
        assert world.status.phase == "Stable"

    def test_a_look_names_what_is_known_so_that_nothing_is_fetched(self) -> None:
        world = World.serving()
        world.wait()
        world.begin_look()
        known = known_source(world.snapshot())
        assert known is not None and (known.etag, known.sha256) == (f'"{A}"', A)

    def test_without_a_strong_etag_there_is_nothing_to_compare_with(self) -> None:
        world = World.serving()
        world.begin_look()
        assert known_source(world.snapshot()) is None

    def test_what_is_known_of_another_uri_does_not_count(self) -> None:
        elsewhere = FollowStatus(uri=b.uri(2), sha256=B)
        assert followed().following(elsewhere).model.sha256 is None
        assert b.spec(2).following(elsewhere).model.sha256 is None, "it does not follow"
        assert followed().following(FollowStatus(uri=b.uri(1), sha256=B)).model.sha256 == B

    def test_another_uri_is_read_again_and_nothing_of_the_old_one_holds(self) -> None:
        world = World.serving()
        world.source = B
        elsewhere = {"uri": b.uri(2), "follow": {"every": "10m"}}
        world.edit(b.spec(1, model=elsewhere))
        world.reconcile()
        assert world.status.rollout is not None and world.status.rollout.stage == "Resolve"
        world.serve()
        assert (world.follow.uri, world.follow.sha256, world.digest) == (b.uri(2), B, B)

    def test_without_follow_nothing_is_kept_of_it(self) -> None:
        world = World.serving()
        world.edit(b.spec(1))
        world.source = B
        world.wait()
        assert world.status.follow is None and world.digest == A
        assert not any(c.type == "Following" for c in world.status.conditions)

    def test_follow_in_a_spec_that_serves_already_starts_no_rollout(self) -> None:
        world = World(b.spec(1), source=A)
        world.serve()
        first = world.status.rollout
        world.edit(followed())
        world.wait(0)
        assert world.status.rollout == first and world.follow.sha256 == A

    def test_a_spec_that_must_not_be_rolled_out_is_not_looked_at(self) -> None:
        world = World.serving()
        world.refusal = Problem(Reason.FOLLOW_UNSIGNED, "sign it")
        world.source = B
        world.wait()
        assert world.digest == A and world.condition() == ("False", "FollowUnsigned")
        assert world.condition("Ready")[0] == "True"

    def test_a_freeze_holds_the_version_and_the_newest_is_taken_afterwards(self) -> None:
        world = World.serving()
        window = {"start": "2026-11-22T12:00:00Z", "end": "2026-11-22T13:00:00Z"}
        world.rules = combine([read({"metadata": {"name": "p"}, "spec": {"freezeWindows": [window]}})])
        world.source = B
        world.wait()
        assert (world.follow.sha256, world.digest) == (B, A)
        assert world.condition("Frozen")[0] == "True" and world.condition("Stalled")[0] == "False"
        world.source = C
        world.wait()
        assert (world.follow.sha256, world.digest) == (C, A)
        world.wait(60)
        assert world.digest == C and B not in {r.sha256 for r in world.revisions.values()}


class TestTimes:
    def moments(self, name: str, every: str = "10m") -> list[float]:
        """Seconds between looks that take two seconds each."""
        s = Specified.of(replace(b.snapshot(followed(follow={"every": every})), name=name))
        checked, found = b.START, []
        for _ in range(5):
            due = next_look(s, FollowStatus(uri="", checked=stamp(checked)))
            found.append((due - checked).total_seconds())
            checked = due + timedelta(seconds=2)
        return found

    def test_looks_are_spread_by_name_and_evenly_spaced(self) -> None:
        first = [self.moments(f"m{n}")[0] for n in range(200)]
        assert all(300 <= seconds <= 900 for seconds in first)
        assert len({int(seconds // 60) for seconds in first}) == 10, "each minute has its share"
        assert {round(gap) for n in range(20) for gap in self.moments(f"m{n}")[1:]} == {598}

    def test_never_more_often_than_every_five_minutes(self) -> None:
        assert {round(gap) for gap in self.moments("m", "1m")[1:]} == {298}

    def test_a_look_from_the_future_is_not_waited_for(self) -> None:
        """A clock was wrong: it would not be looked at for years, and Following be True."""
        world = World.serving()
        ahead = world.follow.model_copy(update={"checked": "2099-01-01T00:00:00Z"})
        world.status = world.status.model_copy(update={"follow": ahead})
        world.source = B
        world.wait()
        assert world.digest == B and world.follow.checked is not None and world.follow.checked < "2027"

    def test_the_pass_wakes_for_the_next_look(self) -> None:
        world = World.serving()
        plan = world.reconcile()
        due = next_look(Specified.of(world.snapshot()), world.follow)
        assert plan.requeue_after == pytest.approx((due - world.now).total_seconds())

    def test_an_operator_that_was_away_looks_once(self) -> None:
        world = World.serving()
        world.away(86400)
        world.reconcile()
        assert sum(job.state == "Running" for job in world.jobs.values()) == 1
        world.end_job("ok")
        assert world.reconcile().requeue_after or 0 >= 290


class TestTheStore:
    def test_a_store_that_is_away_changes_nothing_that_serves(self) -> None:
        world = World.serving()
        world.store = AWAY
        before = (world.status.rollout, world.route, dict(world.servers))
        for _ in range(5):
            world.wait()
        assert (world.status.rollout, world.route, dict(world.servers)) == before
        assert world.condition() == ("Unknown", "StoreUnreachable")
        assert [world.condition(k)[0] for k in ("Ready", "Reconciling", "Stalled", "Available")] == [
            "True", "False", "False", "True",
        ]  # fmt: skip
        world.store, world.source = None, B
        world.wait()
        assert world.digest == B and world.condition() == ("True", "Following")

    def test_it_is_reported_once(self) -> None:
        world = World.serving()
        world.store, posted = AWAY, []
        for _ in range(3):
            world.begin_look()
            world.end_job("ok")
            _, plan = world.one_pass()
            posted += [e.reason for e in b.events(plan)]
        assert posted == ["StoreUnreachable"]

    @pytest.mark.parametrize("how", ["lost", "oom"])
    def test_a_look_without_a_result_is_only_a_failed_look(self, how: str) -> None:
        world = World.serving()
        world.begin_look()
        world.end_job(how)
        world.reconcile()
        assert world.condition()[0] == "Unknown" and world.condition("Ready")[0] == "True"
        assert world.follow.looking is None

    def look(self, work: JobState, **facts: Any) -> Snapshot:
        world = World.serving()
        world.begin_look()
        return replace(world.snapshot(), work=work, **facts)

    def test_a_job_that_may_not_be_created_does_not_stall_the_model(self) -> None:
        s = self.look(JobState(), look_problem=Problem("ChildRefused", "Job: exceeded quota"))
        plan = decide(s, b.at(3600))
        assert b.condition(plan, "Ready").status == "True" and b.condition(plan, "Stalled").status == "False"
        following = b.condition(plan, "Following")
        assert (following.status, following.reason) == ("Unknown", "ChildRefused")
        after = replace(s, status=plan.status)
        assert stage_job(after) is None, "the next pass does not try again at once"

    def test_another_child_that_is_refused_comes_first(self) -> None:
        world = World.serving()
        world.tick(16 * 60)
        s = replace(world.snapshot(), write_problem=Problem("ChildRefused", "Deployment: exceeded quota"))
        plan = decide(s, world.now)
        assert plan.status.follow and plan.status.follow.looking is None
        assert b.condition(plan, "Stalled").reason == "ChildRefused"

    def test_a_queued_look_waits_and_a_pod_that_never_starts_ends_it(self) -> None:
        queued = self.look(JobState(queued=Problem("WaitingForJob", "3 run")))
        now = datetime.fromisoformat(work_since(queued) or "") + timedelta(hours=3)
        waiting = decide(queued, now)
        assert isinstance(waiting, Converge) and waiting.desired.work is None
        idle = JobState("Running", problem=Problem("ImagePullFailed", "no image"), idle_since=stamp(now))
        s = replace(queued, work=idle)
        assert isinstance(decide(s, now + timedelta(seconds=299)), Converge)
        ended = decide(s, now + timedelta(seconds=301))
        assert b.condition(ended, "Following").reason == "ImagePullFailed"

    def test_a_result_that_is_no_digest_is_not_taken(self) -> None:
        s = self.look(JobState("Succeeded", 0, TaskResult(sha256="../x")))
        plan = decide(s, b.at(3600))
        assert plan.status.follow and plan.status.follow.sha256 == A
        assert b.condition(plan, "Following").status == "Unknown"

    def test_bytes_that_are_gone_before_they_are_fetched_stop_nothing(self) -> None:
        """The path is written again between look and fetch."""
        world = World.serving()
        world.begin_look()
        world.source = B
        world.end_job("ok")
        world.reconcile()
        world.source = C
        world.end_job("ok")
        world.reconcile()
        assert world.status.rollout and world.status.rollout.reason == "DigestMismatch"
        assert world.condition() == ("True", "Following")
        world.wait()
        assert world.digest == C
        world.source = B
        world.wait()
        assert world.digest == B, "nothing was judged of it, so it may come back"


class TestStops:
    def stays(self, world: World, reason: str) -> None:
        """It looks no more, whatever lies there, also with another operator."""
        assert world.condition() == ("False", reason)
        world.source, before = C, dict(world.jobs)
        for _ in range(3):
            world.wait()
            world.away(10)
        assert world.jobs == before and world.digest == A
        world.edit(followed(replicas=3, steps=b.STEPS))
        world.wait()
        assert world.condition() == ("False", reason), "an autoscaler changes spec, and lets nothing go on"

    def goes_on(self, world: World) -> None:
        world.say("follow", world.revision, "f0110")
        world.wait()
        assert world.digest == C and world.condition() == ("True", "Following")

    def rolled_back(self) -> World:
        world = World.serving(steps=b.STEPS)
        world.source = B
        world.tick(16 * 60)
        world.fail()
        return world

    def test_a_version_that_is_proven_worse(self) -> None:
        world = self.rolled_back()
        assert world.digest == A and world.condition("Stalled")[0] == "True"
        self.stays(world, "AccuracyLow")
        self.goes_on(world)

    def test_an_abort(self) -> None:
        world = World.serving(steps=b.STEPS)
        world.source = B
        world.tick(16 * 60)
        world.until("Canary")
        world.say("abort", world.revision, "ab0a")
        world.serve()
        self.stays(world, "AbortedByUser")
        self.goes_on(world)

    def by_hand(self) -> World:
        world = World.serving(steps=b.STEPS)
        first = world.revision
        world.source = B
        world.wait()
        assert world.digest == B
        world.say("rollback", first, "4011")
        world.serve()
        assert world.digest == A
        return world

    def test_a_rollback_by_hand(self) -> None:
        world = self.by_hand()
        self.stays(world, "RolledBackByUser")
        self.goes_on(world)

    @pytest.mark.parametrize("how", ["by hand", "proven worse"])
    def test_to_follow_again_tries_nothing_that_was_left(self, how: str) -> None:
        """Who says follow has not said that the version is good."""
        world = self.by_hand() if how == "by hand" else self.rolled_back()
        world.say("follow", world.revision, "f0110")
        world.wait()
        assert world.digest == A and world.condition("Following")[0] == "True"
        assert world.follow.sha256 == B and world.condition("Ready")[0] == "False"

    def test_retry_tries_it(self) -> None:
        world = self.rolled_back()
        world.say("retry", world.revision, "4e74")
        world.serve()
        assert world.digest == B and world.condition() == ("True", "Following")

    @pytest.mark.parametrize("change", ["every", "version"])
    def test_a_change_of_spec_lets_it_go_on(self, change: str) -> None:
        world = self.rolled_back()
        world.source = C
        if change == "every":
            world.edit(followed(steps=b.STEPS, follow={"every": "15m"}))
        else:
            world.edit(followed(steps=b.STEPS, serving={
                "replicas": 2, "resources": {"limits": {"nvidia.com/gpu": 1}}, "batching": {"maxBatchSize": 4}
            }))  # fmt: skip
        world.wait(16)
        world.wait(16)
        assert world.digest == C and world.condition() == ("True", "Following")

    def test_a_new_version_of_the_operator_lets_nothing_go_on(self) -> None:
        """Which knows of fields that the revisions were made without."""
        world = self.rolled_back()
        for name, made in world.revisions.items():
            older = dict(made.input) | {
                "serving": {k: v for k, v in made.input["serving"].items() if k != "triton"}
            }
            assert older != made.input
            world.revisions[name] = replace(made, input=older)
        self.stays(world, "AccuracyLow")

    def test_a_change_of_the_version_goes_on_looking_in_a_freeze(self) -> None:
        world = self.rolled_back()
        world.source = C
        window = {"start": "2026-11-22T12:00:00Z", "end": "2026-11-22T20:00:00Z"}
        world.rules = combine([read({"metadata": {"name": "p"}, "spec": {"freezeWindows": [window]}})])
        batching = {
            "replicas": 2,
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "batching": {"maxBatchSize": 4},
        }
        world.edit(followed(steps=b.STEPS, serving=batching))
        world.wait()
        assert (world.follow.sha256, world.digest) == (C, A)

    def test_flapping_comes_back_to_what_was_refused_and_stops_again(self) -> None:
        """A, B (refused), A, C, B."""
        world = self.rolled_back()
        world.say("follow", world.revision, "f0110")
        world.source = A
        world.wait()
        assert world.digest == A and world.condition("Ready")[0] == "True"
        world.source = B
        world.wait()
        assert world.digest == A, "it was refused, and no person said retry"
        world.source = C
        world.wait()
        assert world.digest == C
        world.source = B
        world.wait()
        assert world.digest == C and world.condition() == ("False", "Quarantined")
        world.source = A
        world.wait()
        assert world.digest == C, "it stays stopped"

    def test_what_served_before_may_come_back(self) -> None:
        """A, B, A: nothing is against either."""
        world = World.serving()
        for digest in (B, A, B):
            world.source = digest
            world.wait()
            assert world.digest == digest
        assert len(world.revisions) == 2

    def test_older_bytes_are_judged_again_and_held_by_a_freeze(self) -> None:
        """A revert in Git within rollbackWindow is not; but a path has other writers."""
        window = {"start": "2026-11-22T12:40:00Z", "end": "2026-11-22T13:30:00Z"}
        world = World.serving(rollout={"rollbackWindow": "24h", "canary": {"steps": b.STEPS}})
        world.source = B
        world.wait()
        assert world.digest == B
        world.rules = combine([read({"metadata": {"name": "p"}, "spec": {"freezeWindows": [window]}})])
        world.source = A
        world.wait(30)
        assert (world.follow.sha256, world.digest) == (A, B), "the freeze holds it"
        del world.history[:]
        world.wait(60)
        assert world.digest == A and "Canary" in {r.stage for r in world.history}

    def test_a_lost_status_does_not_let_go_on_what_a_person_stopped(self) -> None:
        world = self.by_hand()
        world.source = C
        world.lose_status()
        world.wait()
        assert world.digest == A and world.condition() == ("False", "RolledBackByUser")

    def test_a_lost_status_does_not_let_go_on_after_a_version_was_refused(self) -> None:
        world = self.rolled_back()
        world.source = C
        world.lose_status()
        world.wait()
        world.wait()
        assert world.digest == A and world.condition() == ("False", "Quarantined")

    @pytest.mark.parametrize("left", ["served", "refused"])
    def test_spec_goes_back_to_a_path_and_takes_what_lies_there_now(self, left: str) -> None:
        """Not what lay there when it was left, which may be gone."""
        world = self.rolled_back() if left == "refused" else World.serving(steps=b.STEPS)
        world.source = C
        elsewhere = b.spec(1, model={"uri": b.uri(2), "follow": {"every": "10m"}}, steps=b.STEPS)
        world.edit(elsewhere)
        world.serve()
        assert (world.follow.uri, world.digest) == (b.uri(2), C)
        del world.history[:]
        world.source, world.store = D, AWAY
        world.edit(followed(steps=b.STEPS))
        world.reconcile()
        world.end_job("ok")
        world.reconcile()
        assert world.digest == C and world.condition() == ("Unknown", "StoreUnreachable")
        assert world.condition("Ready")[0] == "False" and world.condition("Reconciling")[0] == "True"
        world.store = None
        world.wait()
        assert world.digest == D and {r.sha256 for r in world.history} == {D}

    def test_what_is_known_is_lost_and_lets_nothing_go_on(self) -> None:
        """Without the rest of status: by an edit, or since a part of it was damaged."""
        world = World.serving(steps=b.STEPS)
        world.source = B
        world.tick(16 * 60)
        world.until("Canary")
        world.say("abort", world.revision, "ab0a")
        world.serve()
        world.status = world.status.model_copy(update={"follow": None})
        self.stays(world, "AbortedByUser")
        self.goes_on(world)

    def test_a_revert_of_spec_in_a_freeze_returns_to_the_bytes_that_serve(self) -> None:
        """Who reverts a commit is not who writes the path: rollbackWindow holds for the former."""
        window = {"start": "2026-11-22T12:20:00Z", "end": "2026-11-23T12:00:00Z"}
        rollout = {"rollbackWindow": "24h", "canary": {"steps": b.STEPS}}
        world = World.serving(rollout=rollout)
        first = world.revision
        serving = {"replicas": 2, "resources": {"limits": {"nvidia.com/gpu": 1}}}
        world.edit(followed(rollout=rollout, serving=serving | {"batching": {"maxBatchSize": 4}}))
        world.serve()
        assert world.revision != first and world.digest == A
        world.rules = combine([read({"metadata": {"name": "p"}, "spec": {"freezeWindows": [window]}})])
        world.tick(30 * 60)
        del world.history[:]
        world.edit(followed(rollout=rollout))
        world.serve()
        assert world.status.stable is not None and world.status.stable.revision == first
        assert "Canary" not in {r.stage for r in world.history}

    def test_the_verb_is_refused_where_there_is_nothing_to_follow(self) -> None:
        world = World(b.spec(1))
        world.serve()
        world.say("follow", world.revision, "f0110")
        world.reconcile()
        assert "spec.model.follow is not set" in world.status.handled_verbs[-1]

    def test_what_was_never_resolved_takes_retry(self) -> None:
        """To follow again would look at nothing: the first rollout finds what lies there."""
        world = World(followed(steps=b.STEPS), source=A)
        world.reconcile()
        world.end_job("bad")
        world.reconcile()
        row = next(c for c in world.status.conditions if c.type == "Following")
        assert (row.status, row.reason) == ("False", "NotOnnx")
        assert "run modelrollout retry digits" in row.message
        plan = decide(
            replace(world.snapshot(), verbs=(Verb("follow", b.revision_name(9), "f0110"),)), world.now
        )
        assert "retry it" in plan.status.handled_verbs[-1]

    def test_the_verb_is_refused_while_a_rollout_is_in_flight(self) -> None:
        world = World.serving(steps=b.STEPS)
        world.source = B
        world.tick(16 * 60)
        world.until("Canary")
        world.say("follow", world.revision, "f0110")
        world.reconcile()
        assert "it ends first" in world.status.handled_verbs[-1]

    def test_the_verb_also_looks_before_its_time(self) -> None:
        world = World.serving()
        world.source = B
        world.say("follow", world.revision, "f0110")
        world.serve()
        assert world.digest == B


class TestInFlight:
    def canary(self, **more: Any) -> World:
        world = World.serving(**({"steps": b.STEPS} | more))
        world.source = B
        world.tick(16 * 60)
        world.until("Canary")
        return world

    def looks(self, world: World) -> bool:
        world.source = C
        world.verdict = None
        for _ in range(4):
            world.schedule()
            world.accept()
            world.tick(16 * 60)
            world.reconcile()
            if world.follow.looking is not None:
                return True
        return False

    def test_it_ends_first_and_then_the_newest_is_taken(self) -> None:
        world = self.canary()
        world.source = C
        served = {world.digest}
        for _ in range(80):
            world.kindly()
            world.reconcile()
            served.add(world.digest)
            if world.digest == C:
                break
            world.tick(60)
        assert served == {A, B, C}

    @pytest.mark.parametrize("supersede", ["Never", "Paused"])
    def test_a_pause_step_is_superseded_only_where_that_is_allowed(self, supersede: str) -> None:
        world = self.canary(steps=WAITING, follow={"supersede": supersede})
        assert world.status.rollout and world.status.rollout.reason == "PauseStep"
        assert self.looks(world) == (supersede == "Paused")
        world.end_job("ok")
        world.reconcile()
        if supersede == "Never":
            assert world.status.rollout.sha256 == B and world.status.rollout.stage == "Canary"
            return
        world.until("Canary")
        assert world.status.rollout and world.status.rollout.sha256 == C
        assert {r.outcome for r in world.history if r.sha256 == B and r.stage == "Failed"} == {"Superseded"}

    def test_a_pause_by_hand_is_never_superseded(self) -> None:
        world = self.canary(steps=WAITING, follow={"supersede": "Paused"})
        paused = UserPause(since=stamp(world.now), by="0a05")
        assert world.status.rollout is not None
        world.status = world.status.model_copy(
            update={"rollout": world.status.rollout.model_copy(update={"paused_by_user": paused})}
        )
        assert not self.looks(world)

    def test_a_timed_pause_goes_on_by_itself(self) -> None:
        steps = [{"pause": {"duration": "3h"}}, {"weight": 50}]
        assert not self.looks(self.canary(steps=steps, follow={"supersede": "Paused"}))

    @pytest.mark.parametrize(("verdict", "makes_way"), [("Inconclusive", True), ("Failed", False)])
    def test_what_was_proven_worse_waits_for_the_person(self, verdict: Any, makes_way: bool) -> None:
        world = self.canary(
            rollout={"onFailure": "Pause", "progressDeadline": "5m", "canary": {"steps": b.STEPS}},
            follow={"supersede": "Paused"},
        )
        for _ in range(90):
            world.verdict = verdict
            world.schedule()
            world.accept()
            world.tick(5)
            world.reconcile()
            if (
                world.status.rollout
                and world.status.rollout.step
                and world.status.rollout.step.phase == "Paused"
            ):
                break
        assert world.status.rollout is not None
        last: StepEvidence = world.status.rollout.history[-1]
        assert last.verdict == verdict and world.condition("Stalled")[0] == "True"
        assert self.looks(world) == makes_way

    @pytest.mark.parametrize(
        ("phase", "reason", "expected"),
        [
            ("Paused", "Inconclusive", True),
            ("Paused", "AgreementLow", False),
            ("Observing", None, False),
            ("Leaving", "Inconclusive", False),
        ],
    )
    def test_a_shadow_makes_way_only_where_it_waits_without_evidence(
        self, phase: Any, reason: str | None, expected: bool
    ) -> None:
        wanted = followed(rollout={"shadow": {"minSamples": 10}}, follow={"supersede": "Paused"})
        shadow = ShadowStatus(phase=phase, since=b.ago(10))
        s = b.second("Shadow", wanted=wanted, changes={"shadow": shadow, "reason": reason})
        assert s.status.rollout is not None
        assert makes_way(Specified.of(s), s.status.rollout) == expected

    def test_a_look_is_dropped_when_the_pause_ends(self) -> None:
        world = self.canary(steps=WAITING, follow={"supersede": "Paused"})
        assert self.looks(world)
        world.say("promote", world.revision, "9406", step=world.status.step)
        world.reconcile()
        assert world.follow.looking is None
        assert not any(job.state == "Running" for job in world.jobs.values())

    def test_a_change_of_spec_drops_a_look(self) -> None:
        world = World.serving()
        name = world.begin_look()
        world.edit(b.spec(2))
        world.reconcile()
        assert name not in world.jobs and world.status.rollout and world.status.rollout.stage == "Resolve"


class TestOneWriter:
    def test_no_look_takes_the_result_of_an_earlier_one(self) -> None:
        """Finished Jobs stay for a while, and in a fleet there are many looks."""
        world = World.serving()
        names = set()
        for _ in range(3):
            names.add(world.begin_look())
            world.end_job("ok")
            world.reconcile()
        assert len(names) == 3
        assert all(re.fullmatch("digits-resolve-[0-9a-f]{12}", name) for name in names)

    def test_an_operator_that_restarts_finds_its_look(self) -> None:
        world = World.serving()
        name = world.begin_look()
        world.away(30)
        world.reconcile()
        assert [n for n, job in world.jobs.items() if job.state == "Running"] == [name]

    def test_of_two_replicas_one_writes(self) -> None:
        """Both see that a look is due, the second one later: what it has read is old by then."""
        world = World.serving()
        world.tick(16 * 60)
        seen, old = world.version, decide(world.snapshot(), world.now)
        assert isinstance(old, Write)
        world.reconcile()
        with pytest.raises(Refused):
            world.write_status(old.status, seen)
        assert sum(job.state == "Running" for job in world.jobs.values()) == 1

    def test_an_old_read_after_the_look_takes_no_old_digest(self) -> None:
        world = World.serving()
        name = world.begin_look()
        seen, before = world.version, world.snapshot()
        world.source = B
        world.end_job("ok")
        world.reconcile()
        stale = decide(replace(before, work=JobState("Succeeded", 0, TaskResult(sha256=A))), world.now)
        with pytest.raises(Refused):
            world.write_status(stale.status, seen)
        assert world.follow.sha256 == B and name in world.jobs

    def test_a_deleted_job_is_made_again(self) -> None:
        world = World.serving()
        name = world.begin_look()
        del world.jobs[name]
        world.reconcile()
        assert world.jobs[name].state == "Running"

    @pytest.mark.parametrize(
        "damage",
        [{"sha256": "x"}, {"checked": "yesterday"}, {"looking": ""}, {"seen": "9999-01-01T00:00:00Z"}],
    )
    def test_a_damaged_record_is_dropped(self, damage: dict[str, str]) -> None:
        whole = FollowStatus(uri=b.uri(1), sha256=A, checked=b.ago(10), seen=b.ago(10))
        status = ModelDeploymentStatus(follow=whole)
        assert sanitize(status).follow == whole
        assert sanitize(ModelDeploymentStatus(follow=whole.model_copy(update=damage))).follow is None


class TestWhoMay:
    def violation(self, spec: ModelDeploymentSpec, *policies: dict[str, Any]) -> str | None:
        rules = combine([read({"metadata": {"name": f"p{i}"}, "spec": p}) for i, p in enumerate(policies)])
        problem = first_violation(rules, spec, sources(spec), 1)
        return f"{problem.reason}: {problem.message}" if problem else None

    @pytest.mark.parametrize(
        ("policies", "expected"),
        [
            (
                [],
                "FollowUnsigned: spec.model.follow: whoever may write s3://models/digits/v1/model.onnx",
            ),
            ([{"allowedSources": {"models": ["s3://models/"]}}], "no RolloutPolicy allows"),
            ([{"allowedSources": {"followUnsigned": ["s3://models/digits/"]}}], None),
            (
                [{"allowedSources": {"followUnsigned": ["s3://models/dig"]}}],
                "p0 allows only in s3://models/dig;",
            ),
            (
                [
                    {"allowedSources": {"followUnsigned": ["s3://models/"]}},
                    {"allowedSources": {"followUnsigned": ["s3://x/"]}},
                ],
                "p1 allows only in s3://x/",
            ),
            (
                [{"allowedSources": {"followUnsigned": ["s3://models/"]}, "gates": {"digest": True}}],
                "GateRequired: spec.model.follow: leave it out",
            ),
        ],
        ids=["no-policy", "place-for-models", "allowed", "half-a-name", "two-policies", "digest-demanded"],
    )
    def test_unsigned_takes_a_policy(self, policies: list[dict[str, Any]], expected: str | None) -> None:
        found = self.violation(followed(), *policies)
        assert found is None if expected is None else found is not None and expected in found

    def test_a_signature_takes_none(self) -> None:
        model = followed().model.wire() | {"signature": {"keySecretRef": {"name": "signer", "key": "pub"}}}
        assert self.violation(b.spec(1, model=model)) is None

    def test_follow_is_no_part_of_the_version(self) -> None:
        assert followed().user_input() == b.spec(1).user_input()
