"""What ``modelrollout status`` and ``history`` say. Assertions are on meaning, not on layout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from modelrollout.cli import view
from modelrollout.cli.cluster import Cluster
from modelrollout.kube.errors import Forbidden, Unavailable
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.rollout.stages import STAGES
from tests.unit.cli.cli_fakes import NOW, STABLE, FakeKube, ago, canary_status, deployment, revision, rollout

Cli = Callable[..., Result]


def line(text: str, *words: str) -> str:
    """The one line that has all these words."""
    actual = [x for x in text.splitlines() if all(w in x for w in words)]
    assert len(actual) == 1, f"{words}: {actual}\n{text}"
    return actual[0]


def show(cli: Cli, kube: FakeKube, **status: Any) -> str:
    kube.add(MODEL_DEPLOYMENT, deployment(**status))
    result = cli("status", "digits")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_canary_in_flight(cli: Cli) -> None:
    result = cli("status", "digits")
    assert result.exit_code == 0, result.output
    text = result.stdout
    line(text, "Ready", "False", "Canary: judged on live traffic")
    line(text, "Stable", "digits-6c9f", "#2", "75 %", "2 of 2 pods ready", "since 9d")
    line(text, "Canary", "digits-8d1b", "#3", "25 %", "1 of 2 pods ready")
    line(text, "Prepare", "34s", "1.5Mi to 398Ki (-74%)", "0.986 (-0.002)", "10000 samples")
    line(text, "Evaluate", "3s", "Successful", "0.986 against 0.983 of digits-6c9f")
    line(text, "▶", "Canary", "2m11s")
    line(text, "✔", "1/4", "5 %", "Successful", "1m1s")
    line(text, "▶", "2/4", "25 %", "Observing", "1m5s")
    line(text, "·", "3/4", "pause until promoted")
    line(text, "·", "4/4", "50 % for 10m")


def test_metrics_have_counts_interval_verdict_and_why(cli: Cli) -> None:
    text = cli("status", "digits").stdout
    line(text, "accuracy", "1 of 31 (3.23%)", "2 of 96 (2.08%)", "-6.20 to +8.10 points", "Inconclusive")
    line(text, "accuracy", "TooFewSamples: 31 of 50 labels")
    line(text, "errors", "3 of 1204 (0.25%)", "-0.31 to +0.44 points", "Successful")
    line(text, "gpu-memory", "6.1e+10", "Successful")


def test_events_of_the_deployment_and_its_revisions_oldest_first(cli: Cli) -> None:
    text = cli("status", "digits").stdout
    assert text.index("CanaryStarted") < text.index("StepPassed")
    assert "not ours" not in text


def test_plain_output_has_no_trailing_blanks_and_no_colour(cli: Cli) -> None:
    text = cli("status", "digits").stdout
    assert "\x1b" not in text
    assert all(x == x.rstrip() for x in text.splitlines())


def test_what_comes_next_in_a_canary(cli: Cli) -> None:
    text = cli("status", "digits").stdout
    line(text, "as soon as the evidence allows comes a pause")
    line(text, "58m50s (progressDeadline)", "the rollout pauses")
    line(text, "modelrollout promote digits")
    line(text, "modelrollout abort digits")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"observedGeneration": 1, "phase": "Stable", "stable": STABLE}, ["has yet to see generation 2"]),
        ({"phase": "Pending"}, ["begins the first rollout"]),
        (
            {"phase": "Stable", "stable": STABLE, "rollout": rollout("Done", "digits-6c9f")},
            ["nothing: digits-6c9f is stable"],
        ),
        (
            {"phase": "Resolving", "rollout": rollout("Resolve", None, stages={})},
            ["digest of the source is being pinned", "57m49s", "the rollout fails"],
        ),
        (
            {"phase": "Promoting", "stable": STABLE, "rollout": rollout("Promote")},
            ["the revision is getting all traffic"],
        ),
        (canary_status("Shifting"), ["the gateway is taking weight 25 % up"]),
        (
            canary_status("Paused", reason="ProgressDeadline", message="no data"),
            ["waits for a person: no data", "go on: modelrollout promote digits"],
        ),
        (
            {
                "phase": "Stable",
                "stable": STABLE,
                "rollout": rollout("Done"),
                "pinned": {"revision": "digits-6c9f", "generation": 2},
            },
            ["a user rolled back to digits-6c9f", "modelrollout retry digits"],
        ),
    ],
    ids=["unseen", "new", "stable", "resolve", "promote", "shifting", "paused", "pinned"],
)
def test_what_comes_next(cli: Cli, kube: FakeKube, status: dict[str, Any], words: list[str]) -> None:
    text = show(cli, kube, **status)
    said = text[text.index("\nNext") :]
    for word in words:
        assert word in said


def test_a_pause_with_a_duration_says_when_it_ends(cli: Cli, kube: FakeKube) -> None:
    status = canary_status("Paused", reason="PauseStep")
    status["rollout"]["step"] |= {"index": 2}
    mdep = deployment(**status)
    mdep["spec"]["rollout"]["canary"]["steps"][2] = {"pause": {"duration": "10m"}}
    kube.add(MODEL_DEPLOYMENT, mdep)
    line(cli("status", "digits").stdout, "the pause ends in 8m50s", "then comes weight 50 %")


def test_a_failed_rollout_names_the_stage_the_reason_and_the_way_out(cli: Cli, kube: FakeKube) -> None:
    failed = rollout(
        "Failed",
        stages={"Resolve": 1.0, "Prepare": 20.0},
        reason="AccuracyLow",
        message="drop 0.031, allowed 0.005",
        outcome="Rejected",
    )
    stalled = {
        "type": "Stalled",
        "status": "True",
        "reason": "AccuracyLow",
        "message": "drop 0.031",
        "lastTransitionTime": ago(minutes=1),
    }
    text = show(cli, kube, phase="Failed", stable=STABLE, rollout=failed, conditions=[stalled])
    line(text, "✘", "Prepare", "20s", "AccuracyLow: drop 0.031, allowed 0.005")
    line(text, "digits-8d1b has failed and is not tried again until spec changes", "digits-6c9f serves on")
    line(text, "modelrollout retry digits")
    assert "promote" not in text[text.index("\nNext") :]


def test_without_the_right_to_see_pods_and_events_the_rest_is_shown(cli: Cli, kube: FakeKube) -> None:
    kube.errors = {
        ("list", "pods"): Forbidden(403, "Forbidden", "no"),
        ("list", "events"): Forbidden(403, "Forbidden", "no"),
    }
    text = cli("status", "digits").stdout
    line(text, "Stable", "digits-6c9f", "2 of 2 pods ready")
    line(text, "not allowed to list events")


def test_json_is_complete_and_without_managed_fields(cli: Cli) -> None:
    report = json.loads(cli("status", "digits", "-o", "json").stdout)
    assert report["deployment"]["status"]["step"] == "2/4"
    assert "managedFields" not in report["deployment"]["metadata"]
    assert report["pods"]["digits-8d1b"] == {"ready": 1, "total": 2}
    assert [r["number"] for r in report["revisions"]] == [3, 2, 1]
    assert report["events"][-1]["reason"] == "StepPassed"
    assert any("promote" in x for x in report["next"])


def test_a_live_view_has_what_comes_next_where_it_is_not_cut_off(kube: FakeKube) -> None:
    rollout = asyncio.run(Cluster(kube, "default").rollout("digits"))
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        console.print(view.status(rollout, NOW, live=True))
    text = captured.get()
    assert text.index("Next") < text.index("Stages") < text.index("Conditions")


def test_history_is_newest_first(cli: Cli) -> None:
    result = cli("history", "digits")
    assert result.exit_code == 0
    rows = result.stdout.splitlines()
    assert rows[0].split() == [
        "NUMBER",
        "REVISION",
        "OUTCOME",
        "REASON",
        "ACCURACY",
        "SIZE",
        "P99",
        "AGE",
        "VERB",
    ]
    assert [row.split()[0] for row in rows[1:]] == ["3", "2", "1"]
    assert rows[2].split() == [
        "2",
        "digits-6c9f",
        "Stable",
        "-",
        "0.983",
        "(-0.001)",
        "412Ki",
        "(-74",
        "%)",
        "3.1ms",
        "8d",
        "-",
    ]


def test_history_as_json_and_without_revisions(cli: Cli, kube: FakeKube) -> None:
    assert [r["spec"]["number"] for r in json.loads(cli("history", "digits", "-o", "json").stdout)] == [
        3,
        2,
        1,
    ]
    kube.objects = {k: v for k, v in kube.objects.items() if k[0] != MODEL_REVISION.plural}
    kube.add(MODEL_DEPLOYMENT, deployment())
    assert "has no revision yet" in cli("history", "digits").stdout


def test_a_revision_that_cannot_be_read_is_named_and_hides_no_other(cli: Cli, kube: FakeKube) -> None:
    broken = revision("digits-9zzz", 4, "Transcended")
    kube.add(MODEL_REVISION, broken)
    result = cli("history", "digits")
    assert result.exit_code == 0
    assert "digits-6c9f" in result.stdout
    line(result.stdout, "digits-9zzz", "another version of the operator")


def test_a_revision_of_another_deployment_is_not_ours(cli: Cli, kube: FakeKube) -> None:
    other = revision("faces-1111", 9, "Stable")
    other["metadata"]["labels"]["modelrollout.dev/name"] = "faces"
    kube.add(MODEL_REVISION, other)
    assert "faces" not in cli("history", "digits").stdout


def test_a_status_of_a_newer_operator_is_an_error_that_says_so(cli: Cli, kube: FakeKube) -> None:
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Teleporting"))
    result = cli("status", "digits")
    assert result.exit_code == 2
    assert "another version of the operator" in result.stderr
    assert "phase" in result.stderr


def test_a_spec_of_a_newer_operator_is_shown_as_far_as_possible(cli: Cli, kube: FakeKube) -> None:
    mdep = deployment(**canary_status())
    mdep["spec"]["serving"]["newField"] = 1
    kube.add(MODEL_DEPLOYMENT, mdep)
    result = cli("status", "digits")
    assert result.exit_code == 0
    assert "digits-8d1b" in result.stdout


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_has_its_words_where_spec_cannot_be_read(cli: Cli, kube: FakeKube, stage: str) -> None:
    obj = deployment(stable=STABLE, rollout=rollout(stage))
    obj["spec"]["serving"]["newField"] = 1
    kube.add(MODEL_DEPLOYMENT, obj)
    shown = cli("status", "digits").stdout
    assert STAGES[stage].doing in shown and "then \n" not in shown and "; then\n" not in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.42, "0.4s"),
        (9.96, "10s"),
        (59.7, "1m"),
        (200, "3m20s"),
        (7500, "2h5m"),
        (7200, "2h"),
        (90000, "1d1h"),
        (777600, "9d"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert view.duration(value) == text


def test_ages_come_from_timestamps_of_any_form() -> None:
    assert view.age("2026-11-22T08:59:00Z", NOW) == "1m"
    assert view.age("2026-11-22T08:59:00.500Z", NOW) == "1m"
    assert view.age(None, NOW) == "-"


class TestErrors:
    def test_not_found_lists_what_is_there(self, cli: Cli) -> None:
        result = cli("status", "digitz")
        assert result.exit_code == 1
        assert "no ModelDeployment 'digitz' in namespace default" in result.stderr
        assert "there are: digits" in result.stderr

    def test_nothing_in_the_namespace(self, cli: Cli) -> None:
        result = cli("status", "digits", "-n", "empty")
        assert result.exit_code == 1
        assert "there is none" in result.stderr
        assert "-n" in result.stderr

    def test_forbidden_names_the_role(self, cli: Cli, kube: FakeKube) -> None:
        kube.errors["get", "modeldeployments"] = Forbidden(403, "Forbidden", "user x cannot get")
        result = cli("status", "digits")
        assert result.exit_code == 2
        assert "bind the ClusterRole modelrollout-view" in result.stderr
        assert "get modeldeployments.modelrollout.dev in namespace default" in result.stderr

    def test_unreachable(self, cli: Cli, kube: FakeKube) -> None:
        kube.errors["get", "modeldeployments"] = Unavailable(0, "ConnectionError", "connection refused")
        result = cli("history", "digits")
        assert result.exit_code == 2
        assert "connection refused" in result.stderr

    def test_no_crds(self, cli: Cli, kube: FakeKube) -> None:
        from modelrollout.kube.errors import NotFound

        kube.errors["get", "modeldeployments"] = kube.errors["list", "modeldeployments"] = NotFound(
            404, "NotFound", "404 page not found"
        )
        result = cli("status", "digits")
        assert result.exit_code == 2
        assert "install the chart" in result.stderr

    def test_a_wrong_command_line(self, cli: Cli) -> None:
        assert cli("status").exit_code == 2
        assert cli("status", "digits", "-o", "yaml").exit_code == 2

    def test_connections_are_closed(self, cli: Cli, kube: FakeKube) -> None:
        cli("status", "digitz")
        assert kube.closed


def step_status(**fields: Any) -> dict[str, Any]:
    """In the second step, with a metric that waits for samples."""
    status = canary_status()
    status["rollout"]["step"]["metrics"][0]["needed"] = 19
    status["rollout"]["step"] |= fields
    return status


def test_low_traffic_is_told_in_samples_and_time(cli: Cli, kube: FakeKube) -> None:
    text = show(cli, kube, **step_status(measured=ago(seconds=3)))  # 31 labels in 62 s
    line(text, "accuracy needs about 19 more samples, 20 s at the present rate of 1.0 a second")


def test_nothing_measured_yet_is_told_too(cli: Cli, kube: FakeKube) -> None:
    line(show(cli, kube, **step_status(metrics=[])), "nothing has been counted yet")


def test_what_comes_without_proof_when_the_policy_says_so(cli: Cli, kube: FakeKube) -> None:
    mdep = deployment(**canary_status())
    mdep["spec"]["rollout"]["onInconclusive"] = "Promote"
    kube.add(MODEL_DEPLOYMENT, mdep)
    line(cli("status", "digits").stdout, "58m50s (progressDeadline)", "comes a pause without proof")


def test_slices_and_dry_runs_are_shown_as_such(cli: Cli, kube: FakeKube) -> None:
    status = canary_status()
    status["rollout"]["step"]["metrics"] += [
        {
            "name": "accuracy/night",
            "slice": "night",
            "verdict": "Inconclusive",
            "reason": "TooFewSamples",
            "canary": {"total": 3, "bad": 1},
        },
        {"name": "try", "dryRun": True, "verdict": "Failed", "reason": "ValueTooHigh", "value": 3},
    ]
    text = show(cli, kube, **status)
    line(text, "accuracy/night", "1 of 3", "Inconclusive")
    line(text, "try", "Failed (dry run)")


def test_the_slice_of_the_golden_data_that_lost_most_is_named(cli: Cli, kube: FakeKube) -> None:
    status = canary_status()
    status["rollout"]["evaluation"]["slices"] = [
        {"name": "writer=3", "samples": 90, "drop": 0.031, "interval": [-0.01, 0.07]},
        {"name": "writer=4", "samples": 80, "drop": -0.01, "interval": [-0.04, 0.02]},
    ]
    line(show(cli, kube, **status), "Evaluate", "worst slice writer=3: -0.031 on 90")


def test_messages_are_shown_as_they_are(cli: Cli, kube: FakeKube) -> None:
    """To rich [n, 64] is a style that it does not know, and left out, and [/x] an error."""
    told = "wants [n, 64], [/x] :bomb:"
    conditions = [
        {
            "type": "Ready",
            "status": "False",
            "reason": "DataShapeMismatch",
            "message": f"{told}\x1b[2J",
            "lastTransitionTime": ago(minutes=1),
        }
    ]
    text = show(cli, kube, phase="Failed", stable=STABLE, conditions=conditions)
    assert told in " ".join(text.split()) and "\x1b" not in text


def test_servers_that_ended_are_told(cli: Cli, kube: FakeKube) -> None:
    said = "pod digits-8d1b-x, container triton was ended by SIGSEGV (exit code 139)"
    ended = {"canary": {"counts": {"ServerCrashed": 2}, "at": ago(seconds=9), "message": said}}
    text = show(cli, kube, **canary_status(restarts=ended))
    line(text, "Restarts", "the revision's servers ended 2 times during its trial, stable's never", "SIGSEGV")


def test_a_time_that_is_none_and_a_name_that_is_none_end_in_no_traceback(cli: Cli, kube: FakeKube) -> None:
    odd = deployment(**canary_status())
    odd["status"]["stable"]["since"] = odd["status"]["rollout"]["step"]["since"] = "yesterday"
    odd["status"]["rollout"]["since"] = ""
    kube.add(MODEL_DEPLOYMENT, odd)
    for command in (["status", "digits"], ["status", "digits", "-o", "json"], ["history", "digits"]):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.exception)
    for name in ("", "..", "a/b"):
        assert f"no ModelDeployment {name!r}" in cli("status", name).stderr
