"""Where a policy demands metrics, nothing that a spec says gives a wrong model more than the first
weight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.policy.requirements import first_violation
from modelrollout.rollout.policy.rules import Rules, combine, read
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster
from tests.unit.rollout.test_scenarios import serving, until

V1, V2, V3 = (b.revision_name(v) for v in (1, 2, 3))
DEMANDED: dict[str, Any] = {
    "metrics": [{"name": "accuracy", "maxDrop": 0.02}, {"name": "errors", "maxIncrease": 0.01}]
}
# What the audit got a wrong model all traffic with, and what else a spec can say.
WAYS: dict[str, dict[str, Any]] = {
    "one step of all": {"canary": {"steps": [{"weight": 100}]}},
    "a large first step": {"canary": {"steps": [{"weight": 90}]}},
    "a pause and nothing else": {"canary": {"steps": [{"pause": {"duration": "1s"}}]}},
    "a pause, then most": {"canary": {"steps": [{"pause": {"duration": "1s"}}, {"weight": 95}]}},
    "a preview of a second": {"blueGreen": {"for": "1s"}},
    "a preview that is to prove itself": {"blueGreen": {}},
    "a short deadline": {
        "canary": {"steps": [{"weight": 5}, {"weight": 50}]},
        "onInconclusive": "Promote",
        "progressDeadline": "15s",
    },
    "a short errorLimit": {"onInconclusive": "Promote", "analysis": {"errorLimit": "1s"}},
    "a shadow that ends unproven": {
        "shadow": {},
        "onInconclusive": "Promote",
        "progressDeadline": "15s",
        "canary": {"steps": [{"weight": 100}]},
    },
    "a dry run": {
        "canary": {"steps": [{"weight": 100}]},
        "analysis": {
            "metrics": [
                {"name": "accuracy", "maxDrop": 1, "dryRun": True},
                {"name": "errors", "maxIncrease": 1, "dryRun": True},
            ]
        },
    },
}


def rules(**gates: Any) -> Rules:
    return combine([read({"metadata": {"name": "production"}, "spec": {"gates": DEMANDED | gates}})])


def under(demands: Rules, **settings: Any) -> ModelCluster:
    """A right version is stable; version 2 is a wrong one."""
    world = serving(**settings)
    world.rules, world.wrong, world.most = demands, {V2}, demands.first_weight
    return world


def most_of(world: ModelCluster, revision: str) -> int:
    return max(dict(split).get(revision, 0) for split in (world.route or (), world.plane))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("says", ["Successful", "Inconclusive", "Error", None])
def test_whatever_a_spec_says_a_wrong_model_stays_at_the_first_weight(way: dict[str, Any], says: Any) -> None:
    world = under(rules())
    world.edit(b.spec(2, rollout=way))
    for _ in range(60):
        world.verdict = says
        world.kindly()
        world.tick(20)
        world.reconcile()  # holds ``most`` after every write
    assert world.status.stable is not None and world.status.stable.revision == V1
    assert most_of(world, V2) <= 5


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_right_model_climbs_all_the_same(way: dict[str, Any]) -> None:
    world = under(rules())
    world.edit(b.spec(3, rollout=way))
    world.serve()
    assert world.status.stable is not None and world.status.stable.revision == V3
    proven = [(e.weight, e.verdict) for e in world.revisions[V3].status.steps]
    assert (5, "Successful") in proven and proven[-1][1] == "Successful"


def test_without_demands_a_spec_says_it_all() -> None:
    world = serving()
    world.edit(b.spec(2, rollout=WAYS["one step of all"]))
    world.serve()
    assert world.status.stable is not None and world.status.stable.revision == V2


def test_on_inconclusive_promote_pauses_and_says_who_demands_what() -> None:
    world = under(rules())
    world.edit(b.spec(2, rollout=WAYS["a short deadline"]))
    until(world, "Canary", "Inconclusive")
    for _ in range(8):
        world.kindly()
        world.reconcile()
    assert world.status.phase == "Paused" and most_of(world, V2) == 5
    message = next(c.message for c in world.status.conditions if c.type == "Stalled")
    assert (
        "RolloutPolicy production (gates.metrics) gives no more than 5 % without a verdict of accuracy,"
        " errors; promote by hand, or abort" in message
    )


@pytest.mark.parametrize("verb", ["promote", "promote-full"])
def test_a_person_may_override_and_it_is_recorded(verb: str) -> None:
    world = under(rules())
    world.most = None  # a person says so
    world.edit(b.spec(2, rollout=WAYS["one step of all"]))
    until(world, "Canary", "Inconclusive")
    world.kindly()
    world.reconcile()
    world.say(verb, V2, "n1", world.status.step)
    events = [e for _ in range(3) for e in b.events(world.one_pass()[1])]
    assert [e.reason for e in events][:2] == [
        "PromotedByUser",
        "MetricsOverridden",
    ] and "by hand: RolloutPolicy production" in events[1].message
    world.kindly()
    world.reconcile()
    assert world.revisions[V2].status.steps[-1].reason == "PromotedByUser"
    assert world.status.stable is not None and most_of(world, V2) == 100


@pytest.mark.parametrize(("edited", "most"), [(20, 20), (100, 5)])
def test_what_a_person_gave_it_is_what_the_steps_said_then(edited: int, most: int) -> None:
    """He promoted into a pause; in it the author made the step after it one of all requests."""
    pause, endless = {"pause": {"duration": "10m"}}, {"progressDeadline": "24h"}
    world = under(rules())
    world.most = None  # a person says so
    world.edit(b.spec(2, steps=[{"weight": 5}, pause, {"weight": 20}], rollout=endless))
    until(world, "Canary", "Inconclusive")
    world.kindly()
    world.reconcile()
    world.say("promote", V2, "n1", world.status.step)
    for _ in range(3):
        world.kindly()
        world.reconcile()
    assert world.status.rollout is not None and world.status.rollout.reason == "PauseStep"
    world.edit(b.spec(2, steps=[{"weight": 5}, pause, {"weight": edited}], rollout=endless))
    for _ in range(8):
        world.kindly()
        world.tick(300)
        world.reconcile()
    assert most_of(world, V2) == most


def test_abort_and_what_is_proven_worse_go_back_at_once() -> None:
    for verdict, verb in (("Failed", None), ("Inconclusive", "abort")):
        world = under(rules())
        world.edit(b.spec(2, rollout={"onFailure": "Rollback"}))
        until(world, "Canary", "Inconclusive")
        if verb:
            world.say(verb, V2, "n1")
        world.verdict = verdict  # type: ignore[assignment]
        for _ in range(6):
            world.kindly()
            world.reconcile()
        assert world.plane == ((V1, 100),)


def test_a_revert_in_git_goes_as_the_spec_says_within_its_window() -> None:
    world = under(rules())
    world.edit(b.spec(3))
    world.serve()
    assert world.status.stable is not None and world.status.stable.revision == V3
    world.edit(b.spec(1, rollout=WAYS["one step of all"] | {"rollbackWindow": "1h"}))
    world.serve()
    assert world.status.stable.revision == V1
    late = under(rules())
    late.edit(b.spec(3))
    late.serve()
    late.tick(7200)
    late.edit(b.spec(1, rollout=WAYS["one step of all"] | {"rollbackWindow": "1h"}))
    until(late, "Canary", "Inconclusive")
    assert (
        late.status.rollout is not None
        and late.status.rollout.step is not None
        and late.status.rollout.step.weight == 5
    )


def test_a_rollback_by_hand_waits_for_nothing() -> None:
    world = under(rules())
    world.edit(b.spec(3))
    world.serve()
    world.say("rollback", V1, "n1")
    world.verdict = None
    for _ in range(8):
        world.kindly()
        world.reconcile()
    assert world.status.stable is not None and world.status.stable.revision == V1


def test_demands_that_come_in_a_pause_are_judged_before_more_is_given() -> None:
    world = serving()
    steps = [{"weight": 5}, {"pause": {"duration": "10m"}}, {"weight": 50}]
    world.edit(b.spec(2, steps=steps))
    until(world, "Canary", "Successful")
    for _ in range(4):
        world.kindly()
        world.reconcile()
    assert world.status.rollout is not None and world.status.rollout.reason == "PauseStep"
    world.rules, world.wrong, world.most = rules(), {V2}, 5
    for _ in range(20):
        world.verdict = "Successful"
        world.kindly()
        world.tick(60)
        world.reconcile()
    assert most_of(world, V2) == 5


class TestFirstWeight:
    def test_the_least_of_all_policies_holds_and_five_where_none_says(self) -> None:
        def of(*gates: dict[str, Any]) -> int | None:
            return combine(
                read({"metadata": {"name": f"p{i}"}, "spec": {"gates": g}}) for i, g in enumerate(gates)
            ).first_weight

        assert of(DEMANDED) == 5 and of(DEMANDED | {"maxFirstWeight": 20}) == 20
        assert of(DEMANDED | {"maxFirstWeight": 20}, {"maxFirstWeight": 2}) == 2
        assert of({"maxFirstWeight": 20}) is None, "nothing is demanded"
        assert of({"metrics": [{"name": "errors", "max": 0.1, "dryRun": True}]}) is None, (
            "a dry run demands nothing"
        )

    def test_status_shows_it_and_steps_are_named_by_it(self) -> None:
        world = under(rules(maxFirstWeight=10))
        world.edit(b.spec(2, steps=[{"weight": 50}]))
        until(world, "Canary", "Inconclusive")
        world.reconcile()
        assert world.status.step == "1/2" and world.status.defaults == {"maxFirstWeight": 10}


class TestWithoutAWeight:
    @pytest.mark.parametrize(
        ("spec", "told"),
        [
            (
                b.spec(
                    1,
                    rollout={
                        "abTest": {
                            "headers": [{"name": "accept", "value": ".*", "type": "RegularExpression"}]
                        }
                    },
                ),
                "spec.rollout.abTest",
            ),
            (b.spec(1, gateway=False, replicas=18), "at least 19 replicas"),
            (
                b.spec(1, gateway=False, replicas=40, rollout={"blueGreen": {"for": "1s"}}),
                "spec.traffic.gateway",
            ),
        ],
    )
    def test_it_is_refused_where_the_first_weight_cannot_be_kept(
        self, spec: ModelDeploymentSpec, told: str
    ) -> None:
        problem = first_violation(rules(), spec, (), 0)
        assert problem is not None and problem.reason == "GateRequired" and told in problem.message

    def test_many_pods_are_a_weight(self) -> None:
        assert first_violation(rules(), b.spec(1, gateway=False, replicas=19), (), 0) is None

    def test_a_strategy_that_is_edited_under_way_gives_no_more(self) -> None:
        world = under(rules())
        world.edit(b.spec(2))
        until(world, "Canary", "Inconclusive")
        world.edit(
            b.spec(
                2,
                rollout={
                    "abTest": {"headers": [{"name": "accept", "value": ".*", "type": "RegularExpression"}]}
                },
            )
        )
        for _ in range(10):
            world.kindly()
            world.reconcile()
        assert world.matched is None and most_of(world, V2) <= 5


def test_what_was_stable_before_a_host_name_was_taken_over_is_no_version_to_return_to() -> None:
    """A wrong first version under a name of its own, then the right one, then production's name:
    the wrong one had served, but not its clients.
    """
    world = under(rules())
    world.most = None
    world.edit(b.spec(3))
    world.serve()
    world.tick(60)
    world.names_since = world.now
    world.edit(b.spec(1, rollout=WAYS["one step of all"]))
    until(world, "Canary", "Inconclusive")
    for _ in range(8):
        world.kindly()
        world.reconcile()
    assert most_of(world, V1) == 5 and world.status.stable is not None and world.status.stable.revision == V3


def test_a_verdict_for_a_small_next_step_gives_no_large_one() -> None:
    """For 6 % a sixteenth of the margin is ruled out. Then its author waited in a pause, edited the
    steps, and had all requests on that verdict.
    """

    def with_next(world: ModelCluster, weight: int) -> None:
        plain = ModelCluster._assessment

        def assessed() -> Any:
            actual = plain(world)
            return actual and replace(
                actual, metrics=tuple(m.model_copy(update={"next_weight": weight}) for m in actual.metrics)
            )

        world._assessment = assessed  # type: ignore[method-assign]

    world = under(rules())
    world.wrong = set()
    with_next(world, 6)
    pause = {"pause": {"duration": "10m"}}
    endless = {"progressDeadline": "24h"}
    world.edit(b.spec(2, steps=[{"weight": 5}, pause, {"weight": 6}], rollout=endless))
    until(world, "Canary", "Successful")
    for _ in range(4):
        world.kindly()
        world.reconcile()
    assert world.status.rollout is not None and world.status.rollout.reason == "PauseStep"
    world.edit(b.spec(2, steps=[{"weight": 5}, pause, {"weight": 100}], rollout=endless))
    for _ in range(12):
        world.verdict = "Inconclusive"
        world.kindly()
        world.tick(300)
        world.reconcile()
    assert most_of(world, V2) == 5, "proven for 6 % only"
    with_next(world, 100)
    for _ in range(12):
        world.verdict = "Successful"
        world.kindly()
        world.tick(300)
        world.reconcile()
    assert world.status.stable is not None and world.status.stable.revision == V2


def test_what_a_person_has_rolled_back_from_is_no_version_to_return_to() -> None:
    """Its author said retry, or edited spec there and back, and the version had all requests at
    once, for it had been stable.
    """
    for back in ("retry", "edit"):
        world = under(rules())
        world.wrong, at_once = set(), WAYS["one step of all"]
        world.edit(b.spec(2, rollout=at_once))
        world.serve()
        assert world.status.stable is not None and world.status.stable.revision == V2
        world.say("rollback", V1, "n1")
        for _ in range(8):
            world.kindly()
            world.reconcile()
        assert world.status.stable.revision == V1
        world.tick(60)
        world.wrong = {V2}
        if back == "retry":
            world.say("retry", "", "n2")
        else:
            world.edit(b.spec(3, rollout=at_once))
            world.reconcile()
            world.edit(b.spec(2, rollout=at_once))
        for _ in range(12):
            world.verdict = "Inconclusive"
            world.kindly()
            world.reconcile()
        assert world.status.phase == "Canary" and most_of(world, V2) == 5


@pytest.mark.parametrize(
    ("reason", "returns"),
    [("ArtifactMissing", False), ("ArtifactDigestMismatch", False), ("Unschedulable", True)],
)
def test_a_version_whose_artifact_is_made_anew_is_no_version_to_return_to(reason: str, returns: bool) -> None:
    """Whoever can write to the store takes the artifact away, exchanges the data that it is made
    from, and says retry: it is another model.
    """
    s = b.second("Failed", wanted=b.spec(2), changes={"outcome": "Failed", "reason": reason, "message": "x"})
    retained = tuple(
        replace(r, status=r.status.model_copy(update={"retired": b.ago(600)})) if r.name == V2 else r
        for r in s.revisions
    )
    assert (revision_status(replace(s, revisions=retained))[V2].retired is not None) is returns
