"""Reasons are one enumeration: the code gives no other, and on the wire they are plain strings."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from modelrollout.analysis.problem import MeasurementReason
from modelrollout.api.v1alpha1 import Condition
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.reasons import Place, Reason
from modelrollout.reasonsgen.__main__ import PAGES, TemplateError, main, render

PACKAGE = Path(__file__).resolve().parents[2] / "operator" / "modelrollout"
OWN = {"reasons.py", "reasonsgen", "testing"}
JOB_FOLDERS = ("jobs", "optimizer", "evaluator", "comparer")
VERDICT_MODULES = (
    *(f"analysis/{name}.py" for name in ("shadow", "golden", "judge", "measurement", "verdict")),
    "rollout/assessment.py",
)
# the function's name, and the position of the reason among its arguments
PLACES = {"Problem": 0, "MeasurementProblem": 0, "Event": 0, "JobError": 1, "GateDecision": 1}
EXIT_CODES = {
    "bad_input": ExitCode.BAD_INPUT,
    "denied": ExitCode.DENIED,
    "retryable": ExitCode.RETRYABLE,
    "refused": ExitCode.BAD_INPUT,
}
LOOKS_LIKE_A_REASON = re.compile(r"[A-Z][a-z]+([A-Z]+[a-z]*)*")
CASES = {reason.name: str(reason) for reason in Reason}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] not in OWN:
            yield relative.as_posix(), ast.parse(path.read_text())


MODULES = dict(modules())


def reasons_in(node: ast.AST) -> set[str]:
    """Reasons in an expression, both sides of a choice: members, or words that look like one."""
    words = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "Reason":
            words.add(CASES[part.attr])
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            words.add(part.value)
    return {word for word in words if LOOKS_LIKE_A_REASON.fullmatch(word)}


def calls(*folders: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls by the name of what is called."""
    for module, tree in MODULES.items():
        if folders and module.split("/")[0] not in folders:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield node.func.id, node


def used_reasons() -> set[str]:
    """Reasons at the places of reasons."""
    return {
        word
        for name, call in calls()
        for position in [{**PLACES, **dict.fromkeys(EXIT_CODES, 0)}.get(name)]
        if position is not None and position < len(call.args)
        for word in reasons_in(call.args[position])
    }


def test_every_reason_that_the_code_gives_is_a_member() -> None:
    assert len(used_reasons()) > 150
    assert used_reasons() - set(Reason) == set()


def test_every_member_is_given() -> None:
    words = {word for tree in MODULES.values() for word in reasons_in(tree)}
    assert set(Reason) - words == set()


def test_the_exit_code_of_a_reason_is_the_one_that_its_jobs_end_with() -> None:
    ends = set()
    for name, call in calls(*JOB_FOLDERS):
        if name in EXIT_CODES and call.args:
            ends |= {(word, int(EXIT_CODES[name])) for word in reasons_in(call.args[0])}
        elif name == "JobError" and isinstance(call.args[0], ast.Attribute):
            ends |= {(word, int(ExitCode[call.args[0].attr])) for word in reasons_in(call.args[1])}
    assert len(ends) > 60
    assert [(word, code) for word, code in ends if Reason(word).exit_code != code] == []  # type: ignore[call-arg]


def test_reasons_of_jobs_have_an_exit_code_and_others_have_none() -> None:
    assert [r for r in Reason if (r.exit_code is not None) != (Place.JOB in r.places)] == []
    assert {r.exit_code for r in Reason} <= {None, *map(int, ExitCode)}


def test_reasons_of_verdicts_are_said_to_be_such() -> None:
    words = {word for module in VERDICT_MODULES for word in reasons_in(MODULES[module])}
    verdicts = {r for r in Reason if Place.VERDICT in r.places}
    assert set(map(str, get_args(MeasurementReason))) <= set(verdicts)
    # the gate's words, which golden data replaces by its own
    assert (words & set(Reason)) - verdicts <= {"AccuracyDrop", "WithinBudget", "Inconclusive", "Failed"}


def test_a_page_without_one_of_its_reasons_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAGES, "reasons-analysis.md", Place.JOB)
    with pytest.raises(TemplateError, match="TaskInvalid"):
        render("reasons-analysis.md")


def test_pages_hold_what_the_enumeration_says(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    assert main(["--out", str(tmp_path), "--check"]) == 0
    page = (tmp_path / "reasons.md").read_text()
    assert f"| `ObjectMissing` | 10 | {Reason.OBJECT_MISSING.help} |" in page
    assert "{help}" not in page and "{code}" not in page
    (tmp_path / "reasons.md").write_text("by hand")
    assert main(["--out", str(tmp_path), "--check"]) == 1


def test_on_the_wire_reasons_are_plain_strings() -> None:
    condition = Condition(
        type="Ready",
        status="True",
        reason=Reason.STABLE,
        message="",
        last_transition_time="2026-01-01T00:00:00Z",
        observed_generation=1,
    )
    changed = condition.model_copy(update={"reason": Reason.IDLE})  # not validated
    for model, reason in ((condition, "Stable"), (changed, "Idle")):
        dumped = model.model_dump(mode="json")
        assert type(dumped["reason"]) is str and dumped["reason"] == reason
        assert yaml.safe_load(yaml.safe_dump(dumped))["reason"] == reason
        assert json.loads(model.model_dump_json())["reason"] == reason
    result = TaskResult(message="").model_copy(update={"reason": Reason.TOO_LARGE})
    assert json.loads(result.model_dump_json())["reason"] == "TooLarge"
    assert f"{Reason.TOO_LARGE}: text" == "TooLarge: text"
