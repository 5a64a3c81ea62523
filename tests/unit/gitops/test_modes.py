"""What is said of each manifest by each mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gitops.modes import MODES, application, examples, outcome, synced_at_once
from gitops.story import NAMESPACE

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_each_example_has_a_name_of_its_own_and_its_spec_as_it_stands() -> None:
    made = examples(EXAMPLES)
    assert set(made) == {path.stem for path in EXAMPLES.glob("*.yaml")}
    for name, text in made.items():
        [changed] = yaml.safe_load_all(text)
        [original] = yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text())
        assert changed["metadata"].pop("name") == name and original["metadata"].pop("name")
        assert changed["metadata"].pop("namespace", NAMESPACE) == NAMESPACE
        original["metadata"].pop("namespace", None)
        assert changed == original


def test_modes_are_all_four_ways() -> None:
    made = [application("a", {"path": "examples/a"}, "models", mode) for mode in MODES]
    ways = {
        (
            tuple(a["spec"]["syncPolicy"]["syncOptions"]),
            a["metadata"]["annotations"].get("argocd.argoproj.io/compare-options"),
        )
        for a in made
    }
    assert ways == {
        (options, compare)
        for options in ((), ("ServerSideApply=true",))
        for compare in (None, "ServerSideDiff=true")
    }


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_sync_of_its_own_is_one_of_its_mode(mode: Any) -> None:
    """An operation takes no options from the Application."""
    made = synced_at_once(application("a", {"path": "chart"}, "models", mode))
    assert made["operation"]["sync"]["syncOptions"] == made["spec"]["syncPolicy"]["syncOptions"]


def shown(sync: str, phase: str, resource: str = "Synced", message: str = "") -> dict[str, Any]:
    return {
        "metadata": {"name": "a"},
        "status": {
            "sync": {"status": sync},
            "operationState": {"phase": phase, "message": message},
            "resources": [{"kind": "ModelDeployment", "name": "a", "status": resource}],
        },
    }


@pytest.mark.parametrize(
    ("application", "syncs", "words"),
    [
        (shown("Synced", "Succeeded"), 1, "Synced"),
        (shown("Synced", "Succeeded"), 3, "Synced 3 times"),
        (
            shown("OutOfSync", "Succeeded", "OutOfSync"),
            1,
            "OutOfSync, Succeeded: ModelDeployment a",
        ),
        (
            shown("OutOfSync", "Failed", "OutOfSync", "spec.x is\n unknown"),
            1,
            "OutOfSync, Failed: ModelDeployment a: spec.x is unknown",
        ),
        ({"metadata": {"name": "a"}}, 0, "None, None"),
    ],
)
def test_only_one_sync_that_lasts_is_right(application: dict[str, Any], syncs: int, words: str) -> None:
    assert outcome(application, syncs) == words
