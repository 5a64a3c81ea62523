"""Commands that a reader copies from a page exist: those of the command line with their options,
and the targets of make.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from hack import all_targets
from modelrollout.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# A fence with its language and text, or a line that is indented as code, or a span of code.
CODE = re.compile(
    r"^ *```(\w*)\n(.*?)^ *```|^ {4,}(\S(?:\\\n|[^\n])*)$|`([^`\n]+)`", re.MULTILINE | re.DOTALL
)


def lines() -> Iterator[tuple[str, str]]:
    """Each line of code on a page, continued lines as one: page, line."""
    for page in PAGES:
        for language, *texts in CODE.findall(page.read_text()):
            text = "".join(texts) if language in ("", "sh", "bash") else ""
            for line in text.replace("\\\n", " ").splitlines():
                yield str(page.relative_to(ROOT)), line.strip().removeprefix("$ ")


def commands() -> dict[str, set[str]]:
    """The options of each command."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {
        name: {"--help", *(option for p in command.params for option in p.opts)}
        for name, command in group.commands.items()
    }


def faults(line: str, known: dict[str, set[str]]) -> list[str]:
    """What the command line would not take of a line."""
    words = shlex.split(line, comments=True)
    if len(words) < 2 or words[0] != "modelrollout" or not re.fullmatch(r"[a-z]+", words[1]):
        return []
    if words[1] not in known:
        return [f"{line}: no command {words[1]}"]
    options = [w.partition("=")[0] for w in words[2:] if re.match(r"--?[a-z]", w)]
    return [f"{line}: no option {option}" for option in options if option not in known[words[1]]]


def test_the_command_line_takes_what_pages_say() -> None:
    known = commands()
    said = [(page, line) for page, line in lines() if line.startswith("modelrollout ")]
    assert {"README.md", "docs/tutorial/bad-model.md", "docs/reference/verbs.md"} <= {p for p, _ in said}
    assert [f"{page}: {fault}" for page, line in said for fault in faults(line, known)] == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("modelrollout promot digits", "no command promot"),
        ("modelrollout wait digits --until promoted", "no option --until"),
        ("modelrollout status digits -n demo --watch  # shows it", None),
    ],
)
def test_what_it_does_not_take_is_found(line: str, fault: str | None) -> None:
    found = faults(line, commands())
    assert [f.rpartition(": ")[2] for f in found] == ([fault] if fault else [])


def test_make_has_the_targets_that_pages_name() -> None:
    targets = set(all_targets.targets((ROOT / "Makefile").read_text()))
    named = {
        (page, found[1])
        for page, line in lines()
        if (found := re.match(r"(?:[A-Z]+=\S+ )*make ([a-z][a-z0-9-]*)", line))
    }
    assert {"demo", "test", "check", "docs"} <= {target for _, target in named}
    assert [f"{page}: make {target}" for page, target in sorted(named) if target not in targets] == []
