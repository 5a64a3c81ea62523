"""What ``modelrollout report`` says, in all its forms."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from typer.testing import Result

from modelrollout.cli.report.model import Judged
from modelrollout.cli.report.text import bar
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION
from tests.unit.cli.cli_fakes import STABLE, FakeKube, deployment, revision, rollout

Cli = Callable[..., Result]

HOSTILE = "<script>alert(1)</script> | `x` [a](http://evil) & \"q\" 'p'"
ARTIFACT: dict[str, Any] = {
    "uri": "s3://a/k", "digest": "sha256:" + "e" * 64, "sizeBefore": 1_600_000, "sizeAfter": 408_000,
    "accuracyBefore": 0.988, "accuracyAfter": 0.986,
    "samples": 10_000,
    "metrics": [
        {"name": "accuracy", "verdict": "Successful", "reason": "WithinBudget", "samples": 10_000,
            "before": 0.988, "after": 0.986,
         "interval": [0.0005, 0.0036], "allowed": 0.005},
        {"name": "f1", "verdict": "Failed", "reason": "MetricDrop", "samples": 400, "before": 0.91,
            "after": 0.85, "interval": [0.02, 0.1],
         "allowed": 0.01, "slice": "writer=7"},
        {"name": "recall", "verdict": "Inconclusive", "reason": "TooFewSamples", "samples": 40, "before": 0.9,
            "after": 0.9, "interval": [-0.1, 0.1]},
    ],
}  # fmt: skip
SEARCH: dict[str, Any] = {
    "objective": "Size", "metric": "accuracy", "before": 0.991, "allowed": 0.01, "chosen": "prune-0.7+int8",
    "tried": 21, "ended": "TimeLimit",
    "points": [
        {"name": "prune-0.7+int8", "size": 294_000, "milliseconds": 0.061, "value": 0.9905,
            "highestLoss": 0.0035, "within": True},
        {"name": "source", "size": 4_544_972, "milliseconds": 0.282, "value": 0.991, "highestLoss": 0.001,
            "within": True},
        {"name": "prune-0.95+int8", "size": 71_000, "milliseconds": 0.031, "value": 0.961,
            "highestLoss": 0.038, "within": False},
        {"name": "distill-0.1+int8", "size": 152_000, "milliseconds": 0.04, "value": 0.982,
            "highestLoss": 0.013, "within": False},
        {"name": "int8", "size": 1_149_665, "milliseconds": 0.117, "value": 0.9912, "highestLoss": 0.0012,
            "within": True},
        {"name": HOSTILE, "size": 600_000, "milliseconds": 0.1, "value": 0.9908, "highestLoss": 0.003,
            "within": True},
    ],
}  # fmt: skip
METRICS: list[dict[str, Any]] = [
    {"name": "errors", "verdict": "Successful", "reason": "RegressionRuledOut", "message": HOSTILE,
        "canary": {"total": 1204, "bad": 3},
     "stable": {"total": 3590, "bad": 9}, "interval": [-0.0031, 0.0044]},
    {"name": "gpu-memory", "verdict": "Successful", "reason": "WithinLimits", "value": 6.1e10},
]  # fmt: skip
SPENT = {"Prepare": 34.0, "Canary": 191.0}
STEPS: list[dict[str, Any]] = [
    {
        "index": 0,
        "weight": 5,
        "verdict": "Successful",
        "reason": "RegressionRuledOut",
        "seconds": 61.0,
        "metrics": METRICS,
    },
    {
        "index": 1,
        "weight": 25,
        "verdict": "Failed",
        "reason": "ErrorsHigh",
        "seconds": 130.0,
        "metrics": METRICS[:1],
    },
]


@pytest.fixture
def ended(kube: FakeKube) -> FakeKube:
    """digits-8d1b was rolled back."""
    kube.add(
        MODEL_REVISION,
        revision(
            "digits-8d1b", 3, "RolledBack", reason="ErrorsHigh", message=HOSTILE, artifact=ARTIFACT,
            steps=STEPS, stages=SPENT,
            evaluation={"verdict": "Successful", "reason": "ProvenNotWorse", "samples": 10_000,
                "accuracy": 0.986, "stableAccuracy": 0.983,
                        "stable": "digits-6c9f", "onlyCandidateRight": 60, "onlyStableRight": 30,
                        "latencyP99Ms": 2.9},
        ),
    )  # fmt: skip
    failed = rollout("Failed", outcome="RolledBack", reason="ErrorsHigh", message=HOSTILE)
    del failed["stages"]
    kube.add(
        MODEL_DEPLOYMENT,
        deployment(phase="Failed", stable=STABLE, rollout={**failed, "history": STEPS, "stages": SPENT}),
    )
    return kube


def ran(cli: Cli, *args: str) -> str:
    result = cli("report", *args)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_was_asked_without_golden_data_is_a_note(cli: Cli, kube: FakeKube) -> None:
    message = "candidate: it was not asked, because nothing can be made up for BF16"
    kube.add(
        MODEL_REVISION,
        revision(
            "digits-8d1b", 3, "Promoted",
            evaluation={"verdict": "Inconclusive", "reason": "AnswersUnknown", "message": message},
        ),
    )  # fmt: skip
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    assert message in " ".join(ran(cli, "digits/digits-8d1b").split())
    assert json.loads(ran(cli, "digits/digits-8d1b", "-o", "json"))["golden"] is None


def test_the_terminal_shows_all_the_evidence(cli: Cli, ended: FakeKube) -> None:
    text = ran(cli, "digits")
    for words in (
        ("digits-8d1b", "#3", "RolledBack"), ("ErrorsHigh: <script>",), ("source sha256", "a" * 64),
        ("artifact digest", "sha256:eeee"),
        ("size as served", "398.4 KiB (408000 B), -74.5%"),
        ("f1, writer=7", "0.8500 of 400", "+0.0200 to +0.1000, allowed 0.01", "Failed"),
        ("recall", "0.9000 of 40", "Inconclusive"), ("accuracy", "0.9860 of 10000", "0.9830 (digits-6c9f)",
            "-0.0049 to -0.0011", "Successful"),
        ("Canary step 1, 5 %", "1m1s", "Successful", "RegressionRuledOut"),
        ("errors", "3 bad of 1204 (0.25%)", "9 bad of 3590"),
        ("gpu-memory", "6.1e+10"), ("Canary step 2, 25 %", "Failed", "ErrorsHigh"), ("Prepare", "34s", "█"),
        ("Canary", "3m11s"),
    ):  # fmt: skip
        assert any(all(w in line for w in words) for line in text.splitlines()), f"{words}\n{text}"


def test_a_version_that_was_not_compared_says_why(cli: Cli, kube: FakeKube) -> None:
    alone = {"index": 0, "weight": 100, "verdict": "Inconclusive", "reason": "StableDead", "seconds": 9.0}
    kube.add(MODEL_REVISION, revision("digits-8d1b", 3, "Promoted", artifact=ARTIFACT, steps=[alone]))
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    [note] = json.loads(ran(cli, "digits/3", "-o", "json"))["notes"]
    assert "StableDead" in note and "nothing was compared" in note
    assert "StableDead" in ran(cli, "digits/3")


def test_it_says_who_counted_the_requests(cli: Cli, kube: FakeKube) -> None:
    def step(index: int, source: str | None) -> dict[str, Any]:
        return STEPS[0] | {"index": index, "metrics": [METRICS[0] | ({"source": source} if source else {})]}

    steps = [step(0, None), step(1, "istio"), step(2, "triton"), step(3, "triton")]
    kube.add(MODEL_REVISION, revision("digits-8d1b", 3, "Promoted", artifact=ARTIFACT, steps=steps))
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    notes = json.loads(ran(cli, "digits/3", "-o", "json"))["notes"]
    assert "Requests were counted by istio, then by triton." in notes


def test_what_gateway_and_servers_counted_stands_side_by_side(cli: Cli, kube: FakeKube) -> None:
    counted = {
        "name": "errors", "verdict": "Successful", "reason": "RegressionRuledOut", "source": "envoy-gateway",
        "canary": {"total": 500, "bad": 2}, "stable": {"total": 9500, "bad": 10},
        "servers": {"canary": {"total": 490, "bad": 1}, "stable": {"total": 9400, "bad": 4}},
    }  # fmt: skip
    steps = [STEPS[0] | {"metrics": [counted]}]
    kube.add(MODEL_REVISION, revision("digits-8d1b", 3, "Promoted", artifact=ARTIFACT, steps=steps))
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    [step] = json.loads(ran(cli, "digits/3", "-o", "json"))["steps"]
    judged, beside = step["metrics"]
    assert (judged["candidate"], judged["verdict"]) == ("2 bad of 500 (0.40%)", "Successful")
    assert (beside["name"], beside["verdict"], beside["interval"]) == ("errors, by triton", "-", None)
    assert (beside["candidate"], beside["reference"]) == ("1 bad of 490 (0.20%)", "4 bad of 9400 (0.04%)")
    for form in ("text", "markdown", "html"):
        shown = " ".join(ran(cli, "digits/3", "-o", form).split())
        assert "where envoy-gateway decides" in shown
    assert "<span class='tag wait'>-</span>" not in ran(cli, "digits/3", "-o", "html")


def test_servers_that_ended_are_told(cli: Cli, kube: FakeKube) -> None:
    canary = {"counts": {"ServerCrashed": 1, "OutOfMemory": 2}, "at": "2026-11-22T12:00:00Z"}
    restarts = {"canary": canary | {"message": "pod p was killed"}, "stable": {"counts": {"OutOfMemory": 1}}}
    kube.add(MODEL_REVISION, revision("digits-8d1b", 3, "Aborted", restarts=restarts))
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    facts = json.loads(ran(cli, "digits/3", "-o", "json"))["facts"]
    assert facts["server restarts"] == (
        "the revision's servers ended 3 times (2 for memory) during its trial, stable's once (1 for memory);"
        " last: pod p was killed"
    )


def test_what_tuning_found_is_told(cli: Cli, kube: FakeKube) -> None:
    trial = {"instances": 2, "batch": 16, "queueDelayMicroseconds": 500, "throughput": 900, "latencyMs": 40}
    tuning = {
        "objective": "50ms", "share": 0.99,
        "message": "2 instances, batches of 16 within 500 us: 900/s at 40.0 ms", "chosen": trial,
        "candidates": 9,
        "failed": 1, "trials": [{**trial, "instances": 4, "problem": "Unreachable: socket closed"},
            {"throughput": 400, "latencyMs": 44.5}],
    }  # fmt: skip
    kube.add(MODEL_REVISION, revision("digits-8d1b", 3, "Stable", artifact=ARTIFACT, tuning=tuning))
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    facts = json.loads(ran(cli, "digits/3", "-o", "json"))["facts"]
    assert facts["tuned"] == tuning["message"]
    assert (
        facts["tuned for"]
        == "99 % of the requests within 50ms; 9 configurations were measured, the server failed under 1"
    )
    assert (
        facts["tried too"]
        == "4 instances, batches of 16 within 500 us: Unreachable: socket closed; 1 instance, requests one by"
        " one: 400/s at 44.5 ms"
    )


def test_markdown_is_tables_and_nothing_else(cli: Cli, ended: FakeKube) -> None:
    text = ran(cli, "digits", "-o", "markdown")
    assert (
        "| f1, writer=7 | 0.8500 | 0.9100 | 400 | +0.0600 | +0.0200 to +0.1000 | 0.01 | Failed | MetricDrop |"
        in text
    )
    assert "### Step 2: 25 % of the requests, 2m10s" in text
    assert "<script>" not in text
    assert "[a](" not in text
    widths = {
        line.replace("\\|", "").count("|")
        for line in text.splitlines()
        if line.startswith(("| errors", "| accuracy"))
    }
    assert widths == {10}


@pytest.fixture
def searched(kube: FakeKube) -> FakeKube:
    """digits-6c9f, which is stable, was found by a search."""
    kube.add(MODEL_REVISION, revision("digits-6c9f", 2, "Stable", artifact={**ARTIFACT, "search": SEARCH}))
    return kube


def test_a_search_shows_what_no_other_model_beats(cli: Cli, searched: FakeKube) -> None:
    text = ran(cli, "digits/2")
    for words in (
        ("MODEL", "SMALLER", "FASTER", "ACCURACY"), ("prune-0.95+int8", "0.9610", "+0.0300", "not kept"),
        ("prune-0.7+int8", "287.1 KiB", "15.46 x", "0.061 ms", "4.62 x", "0.9905", "+0.0005, +0.0035", "kept",
            "taken"),
        ("objective Size", "prune-0.7+int8 of 21 candidates"), ("the time limit ended the search",),
    ):  # fmt: skip
        assert any(all(w in line for w in words) for line in text.splitlines()) or all(
            w in " ".join(text.split()) for w in words
        ), f"{words}\n{text}"
    names = [line.split()[0] for line in text.splitlines() if " kept" in line and " x " in line]
    assert names[0] == "prune-0.95+int8" and names[-1] == "source"  # the smallest first
    marked = ran(cli, "digits/2", "-o", "markdown")
    assert (
        "| prune-0.7+int8 | 287.1 KiB | 15.46 x | 0.061 ms | 4.62 x | 0.9905 | +0.0005, +0.0035 | kept |"
        " taken |" in marked
    )
    assert "<script>" not in marked


def test_no_name_of_a_search_is_cut_in_a_narrow_terminal(
    cli: Cli, searched: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    words = ran(cli, "digits/2").split()
    assert {"prune-0.95+int8", "prune-0.7+int8"} <= set(words)


def test_a_search_is_drawn_against_size_and_against_latency(cli: Cli, searched: FakeKube) -> None:
    text = ran(cli, "digits/2", "-o", "html")
    page = Page(text)
    assert page.open == [] and "script" not in page.tags and HOSTILE in page.words
    pictures = [part.split("</svg>")[0] for part in text.split("<svg")[1:]]
    for picture in pictures:
        ElementTree.fromstring("<svg" + picture + "</svg>")
    size, latency = (
        next(p for p in pictures if f"accuracy against {what}" in p) for what in ("size", "latency")
    )
    for picture in (size, latency):
        assert (
            picture.count('class="ring"') == 1
            and picture.count('class="front"') == 1
            and picture.count('class="limit"') == 1
        )
        # one far below: an arrow
        assert (
            picture.count("dot good") == 4
            and picture.count("dot bad") == 1
            and picture.count('class="cross"') == 1
        )
    # int8 is smaller than the source, and its accuracy is higher: the source is not on the line
    assert len(size.split('class="front" d="')[1].split('"')[0].split("L")) == 5
    assert json.loads(ran(cli, "digits/2", "-o", "json"))["search"]["points"][0]["name"] == "prune-0.95+int8"


@pytest.mark.parametrize(
    "changes", [{"points": []}, {"points": SEARCH["points"][:1]}, {"metric": "mae", "allowed": None}]
)
@pytest.mark.parametrize("form", ["text", "markdown", "html", "json"])
def test_a_search_of_which_little_is_known(
    cli: Cli, kube: FakeKube, form: str, changes: dict[str, Any]
) -> None:
    kube.add(
        MODEL_REVISION,
        revision("digits-6c9f", 2, "Stable", artifact={**ARTIFACT, "search": SEARCH | changes}),
    )
    assert "prune-0.7" in ran(cli, "digits/2", "-o", form)


class Page(HTMLParser):
    """Tags that a page opens and does not close, and where it would load something from."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_html_is_one_sound_file_with_pictures(cli: Cli, ended: FakeKube) -> None:
    text = ran(cli, "digits", "-o", "html")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.loads == []
    assert HOSTILE in page.words
    pictures = [part.split("</svg>")[0] for part in text.split("<svg")[1:]]
    assert len(pictures) == 6  # gate, golden, steps, two steps' intervals, times
    for picture in pictures:
        assert "aria-label" in picture
    assert "prefers-color-scheme:dark" in text
    assert "url(" not in text
    assert "@import" not in text


# to rich a style, an end without a beginning, an emoji
ODD = "shape [n, 64], [/red] :bomb: [bold]x"
UNSEEN = "\x1b]0;owned\x07\x1b[2J\u202eevil\x9b"


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_what_a_message_carries_is_text_and_nothing_else(cli: Cli, kube: FakeKube, form: str) -> None:
    """Names of slices are values of the user's data, messages quote what a file says."""
    metric = {**ARTIFACT["metrics"][0], "slice": f"writer={ODD}{UNSEEN}"}
    kube.add(
        MODEL_REVISION,
        revision(
            "digits-8d1b", 3, "Rejected", message=ODD + UNSEEN, artifact={**ARTIFACT, "metrics": [metric]}
        ),
    )
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable=STABLE))
    text = ran(cli, "digits/3", "-o", form)
    if form != "markdown":  # which has backslashes before brackets
        told = " ".join((Page(text).words if form == "html" else text).split())
        assert told.count("shape [n, 64], [/red] :bomb: [bold]x") >= (2 if form == "html" else 1), text
    assert not any(character in text for character in UNSEEN if not character.isprintable())


def test_a_model_that_is_served_as_it_is_says_by_what(cli: Cli, kube: FakeKube) -> None:
    python = revision("digits-8d1b", 3, "Stable", artifact=ARTIFACT)
    python["spec"]["input"]["serving"]["triton"] = {"backend": "Python", "code": "Allowed"}
    kube.add(MODEL_REVISION, python)
    kube.add(MODEL_DEPLOYMENT, deployment(phase="Stable", stable={**STABLE, "revision": "digits-8d1b"}))
    assert (
        json.loads(ran(cli, "digits/digits-8d1b", "-o", "json"))["facts"]["backend"]
        == "Python, with code of its own"
    )


def test_what_only_was_shown_and_what_was_not_counted_are_told(cli: Cli, ended: FakeKube) -> None:
    shown = {
        "name": "refusedRequests", "verdict": "Failed", "reason": "RefusedRequestsHigh", "dryRun": True,
        "message": "more 401", "canary": {"total": 50, "bad": 9}, "stable": {"total": 90, "bad": 0},
    }  # fmt: skip
    judged = [{**STEPS[0], "metrics": [*METRICS, shown]}]
    digits = deployment(phase="Stable", stable=STABLE)
    ended.add(MODEL_REVISION, revision("digits-8d1b", 3, "Stable", steps=judged, artifact=ARTIFACT))
    ended.add(MODEL_DEPLOYMENT, digits)
    for form in ("text", "markdown", "html", "json"):
        report = ran(cli, "digits/3", "-o", form)
        assert "decides nothing (dryRun): more 401" in " ".join(report.split())
        assert "lient errors are not judged" not in report
    del digits["spec"]["traffic"]
    ended.add(MODEL_DEPLOYMENT, digits)
    report = " ".join(ran(cli, "digits/3").split())
    assert "decides nothing (dryRun): more 401" in report
    assert "Client errors are not judged: without a gateway (spec.traffic.gateway)" in report


def test_json_has_numbers(cli: Cli, ended: FakeKube) -> None:
    report = json.loads(ran(cli, "digits", "-o", "json"))
    assert report["outcome"] == "RolledBack"
    assert report["facts"]["artifact digest"] == ARTIFACT["digest"]
    assert [(m["verdict"], m["interval"], m["margin"]) for m in report["gate"]] == [
        ("Successful", [0.0005, 0.0036], 0.005),
        ("Failed", [0.02, 0.1], 0.01),
        ("Inconclusive", [-0.1, 0.1], None),
    ]
    assert report["steps"][0]["metrics"][0]["margin"] == 0.005  # of spec
    assert report["stages"] == {"Prepare": 34.0, "Canary": 191.0}


def test_the_one_in_flight_comes_with_its_present_step(cli: Cli) -> None:
    report = json.loads(ran(cli, "digits", "-o", "json"))
    assert (report["revision"], report["outcome"], report["reason"]) == ("digits-8d1b", "in flight", "Canary")
    assert [(s["number"], s["weight"], s["ended"]) for s in report["steps"]] == [(1, 5, True), (2, 25, False)]
    for form in ("text", "markdown", "html"):
        assert "in progress" in ran(cli, "digits", "-o", form)


@pytest.mark.parametrize("desired", ["digits-6c9f", "2"])
def test_a_revision_by_name_or_number(cli: Cli, desired: str) -> None:
    assert json.loads(ran(cli, f"digits/{desired}", "-o", "json"))["revision"] == "digits-6c9f"


@pytest.mark.parametrize("form", ["text", "markdown", "html", "json"])
def test_a_revision_without_evidence(cli: Cli, form: str) -> None:
    assert "digits-5aaa" in ran(cli, "digits/1", "-o", form)


def test_what_is_not_there(cli: Cli, kube: FakeKube) -> None:
    result = cli("report", "digits/17")
    assert result.exit_code == 1
    assert "digits-8d1b" in result.stderr
    kube.objects = {key: value for key, value in kube.objects.items() if key[0] != MODEL_REVISION.plural}
    result = cli("report", "digits")
    assert result.exit_code == 1
    assert "no revision yet" in result.stderr


def row(**fields: Any) -> Judged:
    return Judged(
        **({"name": "m", "verdict": "Successful", "reason": "r", "candidate": "1", "reference": "1"} | fields)
    )


def test_the_picture_in_the_terminal() -> None:
    inside = bar(row(interval=(-0.005, 0.005), margin=0.01, harm=0.0), 41)
    assert inside.index("!") == 30  # what is allowed is half-way between the middle and the end
    assert (inside.index("─"), inside.rindex("─"), inside[20]) == (15, 25, "●")
    beyond = bar(row(interval=(-1.0, 1.0), margin=0.01), 41)
    assert (beyond[0], beyond[-1], beyond[20], beyond[30]) == ("<", ">", "┼", "╫")
    assert bar(row()) == ""
    assert len(bar(row(interval=(0.0, 0.0)))) == 33


def test_pictures_are_well_formed(cli: Cli, ended: FakeKube) -> None:
    text = ran(cli, "digits", "-o", "html")
    for part in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
