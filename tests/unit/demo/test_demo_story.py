from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo.chapters import CHAPTERS
from demo.cluster import DemoError
from demo.load import ClientEndedError
from demo.story import Options, Story
from demo.train import Models
from demo.view import View
from tests.unit.demo.demo_operator import NOW, SERVED, ScriptedCluster, ScriptedLoad


class Telling:
    """A story on a scripted cluster."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.cluster = ScriptedCluster()
        self.folder = folder
        self.loads: list[ScriptedLoad] = []
        self.failed = 0
        self.options = Options(folder, poll_seconds=0.001, **options)

    def tell(self) -> list[str]:
        """What was wrong."""
        cluster: Any = self.cluster
        self.story = Story(
            cluster,
            Models(self.folder, 1.0, cached=False),
            self.options,
            View(CHAPTERS),
            make_load=self._load,
        )
        self.counts = self.story.tell()
        return self.story.wrong

    def _load(self, settings: Any, token: Any) -> Any:
        self.loads.append(ScriptedLoad(self.cluster, settings))
        self.loads[-1].failed = self.failed
        return self.loads[-1]

    @property
    def report(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return parsed


@pytest.fixture
def telling(tmp_path: Path) -> Telling:
    return Telling(tmp_path)


def test_the_story_as_it_should_go(telling: Telling) -> None:
    assert telling.tell() == []
    assert telling.cluster.done == [
        "helm",
        "namespace",
        "upload models 6",
        "upload data 3",
        "rollback digits-v1",
    ]
    assert [(v["name"], v["outcome"], v["reason"]) for v in telling.report["versions"]] == [
        ("v1", "Stable", "-"),
        ("v2", "Promoted", "-"),
        ("v3", "RolledBack", "AccuracyLow"),
        ("v4", "RolledBack", "LatencyHigh"),
        ("v5", "Rejected", "AccuracyLow"),
        ("v6", "Rejected", "AccuracyDrop"),
        ("v1-again", "Stable", "-"),
    ]


def test_the_report_has_the_agreed_fields(telling: Telling) -> None:
    telling.tell()
    assert set(telling.report) == {"requests", "failed", "versions"}
    assert (telling.report["requests"], telling.report["failed"]) == (1000, 0)
    again = telling.report["versions"][-1]
    assert set(again) == {"name", "outcome", "reason", "stages", "size_bytes", "accuracy"}
    assert again["size_bytes"] == {"before": 900_000, "after": 240_000} and again["accuracy"] == {
        "before": 0.98,
        "after": 0.979,
    }
    assert again["stages"] == {"Provision": 2.0, "Promote": 2.0}


def test_the_details_tell_how_long_a_bad_version_had_traffic(telling: Telling) -> None:
    telling.tell()
    details = json.loads((telling.folder / "details.json").read_text())
    assert details["seconds_to_rollback"] == {"v3": 20.0, "v4": 20.0}


def test_one_client_runs_from_the_first_version_to_the_end(telling: Telling) -> None:
    telling.tell()
    assert len(telling.loads) == 1 and not telling.loads[0].runs
    assert telling.loads[0].settings.feedback_url == "http://192.0.2.3:8080"
    assert telling.loads[0].settings.http_host != telling.loads[0].settings.grpc_authority


def test_another_outcome_ends_the_story(telling: Telling) -> None:
    telling.cluster.script["v3"] = (SERVED, "Promoted", "-")
    wrong = telling.tell()
    assert len(wrong) == 1 and "v3: outcome Promoted" in wrong[0]
    assert [v["name"] for v in telling.report["versions"]] == ["v1", "v2", "v3"], "what there is, is reported"
    assert (telling.folder / "diagnostics").is_dir() and not telling.loads[0].runs


def test_the_right_outcome_for_another_reason_differs(telling: Telling) -> None:
    telling.cluster.script["v3"] = (telling.cluster.script["v3"][0], "RolledBack", "LatencyHigh")
    assert "reason LatencyHigh" in telling.tell()[0]


def test_traffic_to_a_version_that_must_not_have_it_differs(telling: Telling) -> None:
    telling.cluster.script["v5"] = ([*SERVED[:4], "Canary"], "Rejected", "AccuracyLow")
    assert "answered 100 of the client's requests" in telling.tell()[0]


def test_preparing_again_for_the_way_back_differs(telling: Telling) -> None:
    telling.cluster.prepare_again = True
    assert "prepared again: digits-v1-prepare-again" in telling.tell()[0]


def test_a_failed_request_spoils_the_story(telling: Telling) -> None:
    telling.failed = 2
    wrong = telling.tell()
    assert len(wrong) == 1 and "2 of 1000 requests failed" in wrong[0] and "HTTP 503" in wrong[0]
    assert telling.report["failed"] == 2 and len(telling.report["versions"]) == 7


def test_what_a_recorded_crash_of_triton_failed_is_counted_apart_and_named(
    telling: Telling, capsys: pytest.CaptureFixture[str]
) -> None:
    telling.failed = 2
    ended = {"exitCode": 139, "finishedAt": NOW.isoformat()}
    server = {"name": "triton", "restartCount": 1, "lastState": {"terminated": ended}}
    telling.cluster.crashed = {"containerStatuses": [server]}
    assert telling.tell() == []
    assert telling.report["failed"] == 2, "the number stays what it was"
    details = json.loads((telling.folder / "details.json").read_text())
    assert details["failed_by_crashes"] == 2 and details["crashes"][0]["how"] == "SIGSEGV"
    said = " ".join(capsys.readouterr().out.split())
    assert "2 requests failed by a crash of Triton: pod digits-" in said and "SIGSEGV at" in said


def test_a_rollout_that_waits_for_a_person_is_not_waited_for(telling: Telling) -> None:
    telling.cluster.script["v2"] = ([*SERVED[:5], "Paused", "Never"], "Promoted", "-")
    telling.cluster.reads_until_next_stage = 3
    assert "v2 does not go on: NotYetProven" in telling.tell()[0]


def test_what_does_not_come_in_time_is_said(tmp_path: Path) -> None:
    telling = Telling(tmp_path, chapter_seconds=0.05)
    telling.cluster.reads_until_next_stage = 10**6
    assert "the end of v1 has not come within 0 s; it is at: Resolve" in telling.tell()[0]
    assert telling.counts is None and not (tmp_path / "report.json").exists()


def test_an_api_server_that_is_away_for_a_moment_is_waited_for(
    telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = telling.cluster.deployment, iter(range(10**6))

    def flaky(namespace: str, name: str) -> Any:
        if 3 <= next(calls) % 10 <= 6:
            raise DemoError("connection refused")
        return read(namespace, name)

    monkeypatch.setattr(telling.cluster, "deployment", flaky)
    assert telling.tell() == []


def test_a_client_that_died_ends_the_story_at_once(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(self: ScriptedLoad) -> Any:
        raise ClientEndedError("the client has ended with exit code -9")

    monkeypatch.setattr(ScriptedLoad, "counts", dead)
    wrong = telling.tell()
    assert "exit code -9" in wrong[0] and telling.counts is None


def test_an_old_report_does_not_pass_for_a_new_one(telling: Telling) -> None:
    (telling.folder / "report.json").write_text("{}")
    telling.cluster.script["v1"] = (["Resolve"], "Failed", "NotFound")
    assert "v1: outcome Failed" in telling.tell()[0]
    assert not telling.loads and not (telling.folder / "report.json").exists()
