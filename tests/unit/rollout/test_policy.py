"""RolloutPolicies: what they match, what they say together, when they freeze, and what they demand
of a spec.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Metric, ModelDeploymentSpec
from modelrollout.api.v1alpha1.policy import Queries
from modelrollout.gpus import GpuTable
from modelrollout.rollout.policy.allowances import allowance_violation
from modelrollout.rollout.policy.requirements import first_violation, gpus_of_spec, query_violation
from modelrollout.rollout.policy.rules import (
    NO_RULES,
    Policy,
    active_freeze,
    combine,
    effective,
    read,
    with_defaults,
)
from modelrollout.testing import builders as b
from tests.unit.resources.objects import CONFIG


def policy(name: str = "p", **spec: Any) -> Policy:
    return read({"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec})


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class TestMatching:
    @pytest.mark.parametrize(
        ("selector", "namespace", "labels", "matches"),
        [
            ({}, "any", {}, True),
            ({"namespaces": ["models", "team-*"]}, "team-a", {}, True),
            ({"namespaces": ["models", "team-*"]}, "models-2", {}, False),
            ({"matchLabels": {"tier": "production"}}, "any", {"tier": "production", "x": "y"}, True),
            ({"matchLabels": {"tier": "production"}}, "any", {"tier": "test"}, False),
            (
                {"namespaces": ["models"], "matchLabels": {"tier": "production"}},
                "other",
                {"tier": "production"},
                False,
            ),
        ],
    )
    def test_namespace_and_labels_must_both_hold(
        self, selector: Any, namespace: str, labels: Any, matches: bool
    ) -> None:
        assert policy(selector=selector).matches(namespace, labels, {}) is matches

    def test_one_that_cannot_be_read_still_knows_whom_it_is_for(self) -> None:
        broken = policy(selector={"namespaces": ["models"]}, gates={"gold": True})
        assert broken.error is not None and "spec.gates.gold" in broken.error
        assert broken.matches("models", {}, {}) and not broken.matches("other", {}, {})

    def test_labels_of_a_namespace_choose_it_and_where_they_are_not_known_the_policy_holds(self) -> None:
        rule = policy(selector={"namespaceLabels": {"tier": "production"}, "namespaces": ["team-*"]})
        assert rule.matches("team-a", {}, {"tier": "production", "x": "y"}) and rule.matches(
            "team-a", {}, None
        )
        assert not rule.matches("team-a", {"tier": "production"}, {"tier": "test"}), (
            "what a ModelDeployment says of itself is no matter"
        )
        assert not rule.matches("other", {}, {"tier": "production"})

    def test_with_a_selector_that_cannot_be_read_it_is_for_everybody(self) -> None:
        assert policy(selector={"namespace": "models"}).matches("other", {}, {})


class TestCombining:
    ALL = (
        policy(
            "a",
            defaults={"onFailure": "Pause", "canary": {"steps": [{"weight": 1}]}},
            limits={"gpus": 4},
            gates={"golden": True},
        ),
        policy(
            "b",
            defaults={"onFailure": "Rollback", "progressDeadline": "2h"},
            gates={"metrics": [{"name": "errors", "max": 0.1}]},
        ),
        policy(
            "c",
            limits={"concurrentRollouts": 2},
            analysisTemplates=[{"name": "t", "metrics": [{"name": "errors", "max": 0.3}]}],
        ),
        policy(
            "d",
            analysisTemplates=[{"name": "t", "metrics": [{"name": "errors", "max": 0.4}]}],
            gates={"metrics": [{"name": "errors", "max": 0.2}]},
        ),
    )

    def test_the_order_in_which_they_are_seen_is_no_matter(self) -> None:
        assert len({repr(combine(order)) for order in itertools.permutations(self.ALL)}) == 1

    def test_defaults_and_templates_are_those_of_the_first_by_name(self) -> None:
        rules = combine(reversed(self.ALL))
        assert rules.defaults == {
            "onFailure": "Pause",
            "canary": {"steps": [{"weight": 1}]},
            "progressDeadline": "2h",
            "maxFirstWeight": 5,
        }
        assert [m.max for m in rules.templates["t"]] == [0.3]

    def test_gates_and_limits_all_hold(self) -> None:
        rules = combine(self.ALL)
        assert rules.mandatory == (Metric(name="errors", max=0.1), Metric(name="errors", max=0.2))
        assert [(x.policy, x.rollouts, x.gpus) for x in rules.limits] == [("a", None, 4), ("c", 2, None)]
        assert [name for name, _ in rules.gates] == ["a", "b", "d"]

    def test_none_is_nothing(self) -> None:
        assert combine([]) is NO_RULES


class TestDefaults:
    def test_what_the_spec_says_wins(self) -> None:
        specified = {"canary": {}, "analysis": {"interval": "5s"}, "onFailure": "Rollback"}
        defaults = {
            "onFailure": "Pause",
            "onInconclusive": "Rollback",
            "canary": {"steps": [{"weight": 1}]},
            "analysis": {"prometheus": "x"},
        }
        assert with_defaults(specified, defaults) == {
            "canary": {"steps": [{"weight": 1}]}, "analysis": {"interval": "5s", "prometheus": "x"},
            "onFailure": "Rollback",
            "onInconclusive": "Rollback",
        }  # fmt: skip

    def test_lists_are_taken_whole(self) -> None:
        assert with_defaults(
            {"canary": {"steps": [{"weight": 50}]}}, {"canary": {"steps": [{"weight": 1}, {"weight": 2}]}}
        ) == {"canary": {"steps": [{"weight": 50}]}}


def ends(now: str, *windows: dict[str, Any]) -> str | None:
    freeze = active_freeze(combine([policy(freezeWindows=list(windows))]), utc(now))
    return freeze.until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M") if freeze and freeze.until else None


WEEKEND = {"schedule": "0 16 * * FRI", "timezone": "Europe/Berlin", "duration": "63h"}


class TestFreeze:
    @pytest.mark.parametrize(
        ("now", "end"),
        [
            ("2026-11-20T14:59:59", None),  # Friday 15:59:59 in Berlin
            ("2026-11-20T15:00:00", "2026-11-23T06:00"),
            ("2026-11-23T05:59:59", "2026-11-23T06:00"),
            ("2026-11-23T06:00:00", None),
            ("2026-07-03T13:59:59", None),  # in summer an hour earlier
            ("2026-07-03T14:00:00", "2026-07-06T05:00"),
        ],
    )
    def test_a_weekend(self, now: str, end: str | None) -> None:
        assert ends(now, WEEKEND) == end

    @pytest.mark.parametrize(("day", "begins"), [("2026-03-29", "01:00"), ("2026-10-25", "00:30")])
    def test_on_the_days_when_the_clock_changes_it_comes_once_and_lasts_its_time(
        self, day: str, begins: str
    ) -> None:
        """02:30 does not exist in March, and comes twice in October."""
        start = utc(f"{day}T00:00:00")
        minutes = [start + timedelta(minutes=m) for m in range(24 * 60)]
        pending = [
            m
            for m in minutes
            if ends(
                m.strftime("%Y-%m-%dT%H:%M:%S"),
                {"schedule": "30 2 * * *", "timezone": "Europe/Berlin", "duration": "45m"},
            )
        ]
        first = utc(f"{day}T{begins}:00")
        assert pending == [first + timedelta(minutes=m) for m in range(45)]

    def test_windows_that_follow_one_another_end_together(self) -> None:
        end_of_year = {"start": "2026-11-23T05:00:00Z", "end": "2026-12-01T00:00:00+01:00"}
        assert ends("2026-11-21T00:00:00", WEEKEND, end_of_year) == "2026-11-30T23:00"

    def test_longer_than_its_period_it_never_ends_but_says_so_step_by_step(self) -> None:
        end = ends("2026-11-21T12:00:00", {"schedule": "0 0 * * *", "duration": "25h"})
        assert end is not None and end > "2027-01-01"

    @pytest.mark.parametrize(
        "window",
        [
            {"schedule": "0 0 * * *", "duration": "99999999999999999h"},
            {"start": "2026-01-01T00:00:00Z", "end": "9999-12-31T23:59:59-14:00"},
            {"start": "0001-01-01T00:00:00+14:00", "end": "9999-12-31T23:59:59Z"},
        ],
    )
    def test_for_ever_is_very_long_and_nothing_else(self, window: dict[str, Any]) -> None:
        """A time that no clock reaches would crash each pass of all that the policy matches,
        rollbacks too.
        """
        end = ends("2026-11-21T00:00:00", WEEKEND, window)
        assert end is not None and end > "2900"

    def test_of_several_policies_the_longest(self) -> None:
        two = [
            policy("a", freezeWindows=[{"start": "2026-11-21T00:00:00Z", "end": "2026-11-22T00:00:00Z"}]),
            policy(
                "b",
                freezeWindows=[
                    {"start": "2026-11-21T00:00:00Z", "end": "2026-11-23T00:00:00Z", "reason": "audit"}
                ],
            ),
        ]
        freeze = active_freeze(combine(two), utc("2026-11-21T12:00:00"))
        assert freeze is not None
        assert (
            freeze.message
            == "RolloutPolicy b freezes rollouts until 2026-11-23 00:00 UTC (audit); rollbacks and aborts"
            " work"
        )
        assert (
            freeze.left(utc("2026-11-21T12:00:00")) == 600.0
            and freeze.left(utc("2026-11-22T23:59:00")) == 60.0
        )

    @pytest.mark.parametrize(
        ("window", "told"),
        [
            (
                {"schedule": "0 16 * * FRY", "duration": "1h"},
                "spec.freezeWindows[0].schedule: '0 16 * * FRY': Bad day-of-week",
            ),
            ({"schedule": "@daily", "duration": "1h"}, "write minute hour day month weekday"),
            ({"schedule": "0 0 * * * *", "duration": "1h"}, "it needs five parts"),
            ({"schedule": "0 0 30 2 *", "duration": "1h"}, "spec.freezeWindows[0].schedule: '0 0 30 2 *'"),
            (
                {"schedule": "0 0 * * *", "duration": "0s"},
                "spec.freezeWindows[0].duration: say how long it lasts",
            ),
            (
                {"schedule": "0 0 * * *", "duration": "1h", "timezone": "Mars/Base"},
                "there is no time zone 'Mars/Base'",
            ),
            (
                {"schedule": "0 0 * * *", "duration": "1h", "timezone": "../etc/passwd"},
                "there is no time zone",
            ),
            ({"start": "2026-12-20T00:00:00Z", "end": "2026-12-19T00:00:00Z"}, "it lies before start"),
            (
                {"start": "2026-13-20T00:00:00Z", "end": "2026-12-19T00:00:00Z"},
                "write for example 2026-12-20T00:00:00Z",
            ),
        ],
    )
    def test_a_window_that_means_nothing_is_told_and_fails_closed(
        self, window: dict[str, Any], told: str
    ) -> None:
        broken = policy(freezeWindows=[window])
        assert broken.error is not None and told in broken.error
        freeze = active_freeze(combine([broken]), utc("2026-11-21T12:00:00"))
        assert (
            freeze is not None and freeze.until is None and freeze.left(utc("2026-11-21T12:00:00")) == 600.0
        )


def demand(spec: ModelDeploymentSpec, *policies: Policy) -> str | None:
    uris = [("spec.model.uri", spec.model.uri)] + (
        [("spec.rollout.analysis.golden.uri", spec.rollout.analysis.golden.uri)]
        if spec.rollout.analysis.golden
        else []
    )
    rules = combine(policies)
    actual = first_violation(rules, spec, uris, gpus_of_spec(spec, GpuTable())) or allowance_violation(
        rules, spec, "ml", CONFIG
    )
    return f"{actual.reason}: {actual.message}" if actual else None


GATED = {
    "optimization": {
        "steps": [{"int8": {}}],
        "gate": {"data": {"uri": "s3://data/x.npz"}, "metrics": [{"name": "accuracy", "maxDrop": 0.05}]},
    }
}


def own_image(repository: str) -> ModelDeploymentSpec:
    return b.spec(1, optimization={"steps": [{"container": {"image": f"{repository}@sha256:{'0' * 64}"}}]})


def triton(image: str) -> ModelDeploymentSpec:
    return b.spec(1, serving={"triton": {"image": image}, "resources": {}})


class TestDemands:
    @pytest.mark.parametrize(
        ("rules", "spec", "told"),
        [
            (
                {"gates": {"golden": True}},
                b.spec(1),
                "GateRequired: spec.rollout.analysis.golden: give golden data; RolloutPolicy p demands it",
            ),
            ({"gates": {"golden": True}}, b.spec(1, golden=True), None),
            ({"gates": {"digest": True}}, b.spec(1), "GateRequired: spec.model.sha256"),
            ({"gates": {"digest": True}}, b.spec(1, pinned=True), None),
            (
                {"gates": {"heldOut": True}},
                b.spec(1, optimization={"steps": [{"int8": {}}]}),
                "GateRequired: spec.optimization.gate: give held-out data",
            ),
            ({"gates": {"heldOut": True}}, b.spec(1), None),
            (
                {"gates": {"maxDrop": 0.02}},
                b.spec(1, **GATED),
                "GateRequired: spec.optimization.gate.metrics[accuracy].maxDrop: at most 0.02, 0.05",
            ),
            ({"gates": {"maxDrop": 0.05}}, b.spec(1, **GATED), None),
            (
                {"gates": {"maxDrop": 0.001}},
                b.spec(1, golden=True),
                "GateRequired: spec.rollout.analysis.golden.maxDrop: 0.01 is more than 0.001",
            ),
            (
                {"allowedSources": {"models": ["s3://models/approved"]}},
                b.spec(1),
                "SourceNotAllowed: spec.model.uri: s3://models/digits/v1/model.onnx",
            ),
            # a prefix ends at a separator
            ({"allowedSources": {"models": ["s3://models/dig"]}}, b.spec(1), "SourceNotAllowed"),
            ({"allowedSources": {"models": ["s3://models/digits/"]}}, b.spec(1, golden=True), None),
            (
                {"allowedSources": {"data": ["s3://data/"]}},
                b.spec(1, golden=True),
                "SourceNotAllowed: spec.rollout.analysis.golden.uri",
            ),
            ({"allowedSources": {"images": ["example.com/ok/"]}}, own_image("example.com/ok/x"), None),
            ({"allowedSources": {"images": ["example.com/ok/x"]}}, own_image("example.com/ok/x"), None),
            ({"allowedSources": {"images": ["example.com"]}}, own_image("example.com/ok/x"), None),
            (
                {"allowedSources": {"images": ["example.com/ok"]}},
                own_image("example.com/okay/x"),
                "ImageNotAllowed: spec.optimization.steps[0].container.image: example.com/okay/x@sha256:",
            ),
            (
                {"allowedSources": {"images": ["example.com"]}},
                own_image("example.com:5000/x"),
                "ImageNotAllowed",
            ),
            (
                {"allowedSources": {"images": ["example.com"]}},
                own_image("example.com.evil.org/x"),
                "ImageNotAllowed",
            ),
            ({"allowedSources": {"images": ["docker.io"]}}, own_image("x"), "ImageNotAllowed"),
            (
                {"allowedSources": {"images": ["example.com/triton"]}},
                triton("example.com/triton:26.10"),
                None,
            ),
            (
                {"allowedSources": {"images": ["example.com/triton"]}},
                triton("example.com/other:1"),
                "ImageNotAllowed: spec.serving.triton.image",
            ),
            ({"allowedSources": {"images": ["example.com/triton"]}}, b.spec(1), None),
            (
                {"limits": {"gpus": 1}},
                b.spec(1),
                "LimitTooSmall: spec.serving: the pods of a new revision ask for 2 GPUs",
            ),
            ({"limits": {"gpus": 2}}, b.spec(1), None),
            ({"gates": {"nonsense": 1}}, b.spec(1), "PolicyInvalid: RolloutPolicy p cannot be read"),
        ],
    )
    def test_each(self, rules: dict[str, Any], spec: ModelDeploymentSpec, told: str | None) -> None:
        violation = demand(spec, policy(**rules))
        assert (
            (violation is None) if told is None else (violation is not None and violation.startswith(told))
        ), violation

    @pytest.mark.parametrize(
        ("policies", "told"),
        [
            (
                [],
                (
                    "CodeNotAllowed: spec.serving.triton.code: s3://models/digits/v1/model.onnx may run its"
                    " own code, which no RolloutPolicy allows"
                ),
            ),
            # a place for models is none for code
            ([{"allowedSources": {"models": ["s3://models/"]}}], "CodeNotAllowed"),
            ([{"allowedSources": {"code": ["s3://models/digits/"]}}], None),
            ([{"allowedSources": {"code": ["s3://models/dig"]}}], "CodeNotAllowed"),
            (
                [
                    {"allowedSources": {"code": ["s3://models/"]}},
                    {"allowedSources": {"data": ["s3://data/"]}},
                ],
                None,
            ),
            (
                [{"allowedSources": {"code": ["s3://models/"]}}, {"allowedSources": {"code": ["s3://x/"]}}],
                "RolloutPolicy p1 allows only in s3://x/",
            ),
            ([{"allowedSources": {"code": ["s3://models/"], "models": ["s3://x/"]}}], "SourceNotAllowed"),
        ],
    )
    @pytest.mark.parametrize(
        "triton",
        [
            {"backend": "Python", "code": "Allowed"},
            {"backend": "VLLM", "code": "Allowed"},
            {"backend": "Python"},
        ],
    )
    def test_code_runs_only_where_a_policy_says_so(
        self, policies: list[dict[str, Any]], told: str | None, triton: dict[str, Any]
    ) -> None:
        spec = b.spec(1, serving={"resources": {}, "triton": triton})
        violation = demand(spec, *(policy(f"p{i}", **rules) for i, rules in enumerate(policies)))
        assert (violation is None) if told is None else (violation is not None and told in violation), (
            violation
        )

    @pytest.mark.parametrize("backend", ["TensorRT", "TorchScript", "SavedModel", "OpenVINO", "VLLM"])
    def test_what_runs_no_code_needs_no_policy(self, backend: str) -> None:
        assert demand(b.spec(1, serving={"resources": {}, "triton": {"backend": backend}})) is None

    def test_a_source_must_be_allowed_by_every_policy(self) -> None:
        wide, narrow = (
            policy("a", allowedSources={"models": ["s3://models/"]}),
            policy("b", allowedSources={"models": ["s3://other/"]}),
        )
        assert demand(b.spec(1), wide) is None
        assert (demand(b.spec(1), wide, narrow) or "").startswith("SourceNotAllowed")


QUERY = {"name": "gpu", "query": "max(nv_gpu_memory_used_bytes)", "max": 1}


class TestQueries:
    def refused(self, text: str, *policies: Policy, unless_said: Queries = "Templates") -> str | None:
        spec = b.spec(
            1, rollout={"analysis": {"metrics": [{**QUERY, "query": text}, {"name": "errors", "max": 0.1}]}}
        )
        violation = query_violation(combine(policies), spec, "ml", "digits", unless_said, "namespace")
        assert violation is None or violation.reason == "QueryNotAllowed"
        return violation.message if violation else None

    @pytest.mark.parametrize(
        ("said", "unless_said", "allowed"),
        [
            ([], "Templates", False),
            ([], "Own", True),
            ([None], "Templates", False),
            (["Own"], "Templates", True),
            (["Own", None], "Templates", True),
            (["Own", "Templates"], "Own", False),
            (["Templates"], "Own", False),
        ],
    )
    def test_every_policy_that_says_it_must_allow_it(
        self, said: list[str | None], unless_said: Queries, allowed: bool
    ) -> None:
        policies = [policy(f"p{i}", gates={"queries": word} if word else {}) for i, word in enumerate(said)]
        assert (self.refused("max(x)", *policies, unless_said=unless_said) is None) is allowed

    def test_one_that_cannot_be_read_allows_nothing(self) -> None:
        assert (
            combine([policy("a", gates={"queries": "Own"}), policy("b", gates={"queries": "All"})]).queries(
                "Own"
            )
            == "Templates"
        )

    def test_the_message_names_field_policy_and_the_templates_that_there_are(self) -> None:
        templates = [{"name": name, "metrics": [{**QUERY, "query": name}]} for name in ("web", "gpu")]
        told = self.refused(
            "max(x)", policy("strict", gates={"queries": "Templates"}, analysisTemplates=templates)
        )
        assert told is not None and told.startswith("spec.rollout.analysis.metrics[gpu].query: ")
        assert "RolloutPolicy strict says gates.queries: Templates" in told and "there are: gpu, web" in told
        assert "no RolloutPolicy says gates.queries: Own" in (self.refused("max(x)") or "")

    @pytest.mark.parametrize(
        "spec",
        [
            {"analysisTemplates": [{"name": "t", "metrics": [QUERY]}]},
            {"gates": {"queries": "Templates", "metrics": [QUERY]}},
            {"defaults": {"analysis": {"metrics": [QUERY]}}},
        ],
    )
    def test_a_query_of_a_policy_is_the_platforms_wherever_it_stands(self, spec: dict[str, Any]) -> None:
        """Defaults are filled in before anybody looks; and thresholds of a template's metric may be
        one's own.
        """
        assert self.refused(QUERY["query"], policy(**spec)) is None
        assert self.refused(f"{QUERY['query']} ", policy(**spec)) is not None

    def test_one_that_cannot_be_confined_is_told_before_anything_begins(self) -> None:
        told = self.refused("vector(1)", policy(gates={"queries": "Own"}))
        assert (
            told is not None
            and "spec.rollout.analysis.metrics[gpu].query" in told
            and "use a template" in told
        )


@pytest.mark.parametrize(
    ("own", "holds"), [(None, "30m"), ("5m", "30m"), ("1h", "1h"), ("half an hour", "half an hour")]
)
def test_every_rollout_bakes_as_long_as_the_strictest_policy_says(own: str | None, holds: str) -> None:
    rules = combine(
        [
            read({"metadata": {"name": n}, "spec": {"gates": {"bake": bake}}})
            for n, bake in (("a", "10m"), ("b", "30m"))
        ]
    )
    assert effective({} if own is None else {"bake": own}, rules.defaults)["bake"] == holds


@pytest.mark.parametrize(
    ("own", "holds"), [(None, "1h"), ("15s", "30m"), ("2h", "2h"), ("an hour", "an hour")]
)
def test_no_deadline_is_shorter_than_the_least(own: str | None, holds: str) -> None:
    rules = combine(
        [policy("a", gates={"minProgressDeadline": "10m"}), policy("b", gates={"minProgressDeadline": "30m"})]
    )
    spec = effective({} if own is None else {"progressDeadline": own}, rules.defaults)
    assert spec.get("progressDeadline", "1h") == holds
    assert "minProgressDeadline" not in spec and "maxFirstWeight" not in spec, "they are no fields of a spec"


def test_the_least_deadline_holds_for_those_who_say_nothing() -> None:
    rules = combine(
        [
            policy(
                "a",
                gates={"minProgressDeadline": "3h", "metrics": [{"name": "errors", "max": 0.1}]},
                defaults={"progressDeadline": "2h"},
            )
        ]
    )
    assert effective({}, rules.defaults)["progressDeadline"] == "3h"
    assert (
        effective({}, combine([policy("a", gates={"minProgressDeadline": "3h"})]).defaults)[
            "progressDeadline"
        ]
        == "3h"
    )
    assert rules.defaults["maxFirstWeight"] == 5


class TestGolden:
    RULES = combine([policy("a", gates={"minGolden": 0.9})])

    @pytest.mark.parametrize(
        ("minimum", "told"),
        [(None, "at least 0.9, there is none"), (0.5, "at least 0.9, 0.5 is less than that"), (0.95, None)],
    )
    def test_a_policy_says_what_golden_data_must_show(self, minimum: float | None, told: str | None) -> None:
        golden: dict[str, Any] = {"uri": "s3://models/golden.npz"} | (
            {} if minimum is None else {"min": minimum}
        )
        problem = first_violation(self.RULES, b.spec(1, rollout={"analysis": {"golden": golden}}), (), 0)
        assert (problem is None) == (told is None)
        assert problem is None or (
            problem.reason == "GateRequired" and told is not None and told in problem.message
        )

    def test_without_golden_data_it_is_asked_for(self) -> None:
        problem = first_violation(self.RULES, b.spec(1), (), 0)
        assert problem is not None and "spec.rollout.analysis.golden: give golden data" in problem.message
