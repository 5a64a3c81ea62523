"""get and top: what needs a person comes first, everywhere or in one namespace."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from modelrollout.cli.overview import ordered, standing, summary
from modelrollout.kube.client import Row
from modelrollout.kube.errors import Forbidden, KubeError, NotFound
from tests.unit.cli.cli_fakes import FakeKube

Cli = Callable[..., Result]


def row(
    name: str, phase: str, ready: str = "False", verdict: str | None = None, namespace: str = "ml"
) -> Row:
    cells: dict[str, object] = {
        "Ready": ready,
        "Phase": phase,
        "Verdict": verdict,
        "Message": f"about {name}",
    }
    return Row(namespace, name, cells)


ROWS = [
    row("calm", "Stable", "True"),
    row("down", "Stable", "False"),
    row("held", "Paused", verdict="PauseStep"),
    row("judged", "Canary", verdict="in progress"),
    row("stuck", "Paused", verdict="Inconclusive"),
    row("worse", "Failed", verdict="AccuracyLow"),
    row("other", "Stable", "True", namespace="else"),
]


def test_what_needs_a_person_comes_first() -> None:
    assert [(r.name, standing(r)) for r in ordered(ROWS)] == [
        ("down", "needs a person"),
        ("stuck", "needs a person"),
        ("worse", "needs a person"),
        ("judged", "under way"),
        ("held", "paused"),
        ("other", "at rest"),
        ("calm", "at rest"),
    ]
    assert summary(ROWS) == "7 models: 3 needs a person, 1 under way, 1 paused, 2 at rest"


def test_get_lists_a_namespace_or_all(cli: Cli, kube: FakeKube) -> None:
    kube.rows = ROWS
    here = cli("get", "-n", "ml")
    assert here.exit_code == 0, here.output
    lines = here.stdout.splitlines()
    assert lines[0].split()[:3] == ["NAME", "READY", "PHASE"] and lines[1].split()[0] == "down"
    assert "other" not in here.stdout and "about worse" in here.stdout
    everywhere = cli("get", "-A").stdout
    assert everywhere.splitlines()[0].split()[0] == "NAMESPACE" and "other" in everywhere


def test_get_as_json_and_of_nothing(cli: Cli, kube: FakeKube) -> None:
    assert cli("get").stdout == "0 models\n"
    kube.rows = ROWS
    first = json.loads(cli("get", "-A", "-o", "json").stdout)[0]
    assert (first["name"], first["standing"], first["phase"]) == ("down", "needs a person", "Stable")


def test_top_without_a_terminal_shows_once_what_is_not_at_rest(cli: Cli, kube: FakeKube) -> None:
    kube.rows = ROWS
    text = cli("top", "-A").stdout
    assert text.startswith("7 models: ") and "judged" in text and "calm" not in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotFound(404, "NotFound", "no"), "install the chart"),
        (Forbidden(403, "Forbidden", "no"), "bind the ClusterRole"),
    ],
)
def test_no_access_is_said_with_the_remedy(cli: Cli, kube: FakeKube, error: KubeError, words: str) -> None:
    kube.errors["list", "modeldeployments"] = error
    result = cli("get")
    assert result.exit_code == 2 and words in result.stderr


def test_what_others_wrote_takes_one_line_and_no_terminal_obeys_it(cli: Cli, kube: FakeKube) -> None:
    odd: dict[str, object] = {"Phase": ["x"], "Ready": {}, "Verdict": None, "Message": "a\nb\x1b[2J\u202e"}
    kube.rows = [Row("ml", "\x1b]0;x\x07d", odd), Row("ml", "bare", {})]
    for command in (["get"], ["get", "-o", "json"], ["top"]):
        result = cli(*command, "-A")
        assert result.exit_code == 0 and not set("\x1b\x07\u202e") & set(result.stdout), result.output
    assert len(cli("get", "-A").stdout.splitlines()) == 4
