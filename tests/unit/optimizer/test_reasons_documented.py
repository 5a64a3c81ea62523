"""docs/reference/reasons.md lists every reason of the Jobs with its exit code, and none that no
code gives.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from modelrollout.contract.exit_codes import ExitCode

ROOT = Path(__file__).parents[3]
SOURCES = [
    f
    for folder in ("jobs", "optimizer", "evaluator", "comparer")
    for f in sorted((ROOT / "operator" / "modelrollout" / folder).rglob("*.py"))
]
HELPERS = {
    "bad_input": ExitCode.BAD_INPUT,
    "denied": ExitCode.DENIED,
    "retryable": ExitCode.RETRYABLE,
    "refused": ExitCode.BAD_INPUT,
}
# named by data: the gate's decisions, and results that are no errors
OTHERS = {
    ("Completed", 0),
    ("Terminated", 1),
    ("DeadlineExceeded", 15),
    ("AccuracyDrop", 12),
    ("AccuracyLow", 12),
    ("MetricDrop", 12),
    ("MetricLow", 12),
    ("TooFewSamples", 13),
}


def words(node: ast.expr) -> list[str]:
    """Reasons in an expression, both sides of a choice."""
    found = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [word for word in found if re.fullmatch(r"([A-Z][a-z]+)+", word)]


def given() -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for call in (
        n for f in SOURCES for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.Call) and n.args
    ):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name in HELPERS:
            found |= {(word, int(HELPERS[name])) for word in words(call.args[0])}
        elif name == "JobError" and isinstance(call.args[0], ast.Attribute):
            found |= {(word, int(ExitCode[call.args[0].attr])) for word in words(call.args[1])}
    return found


def documented() -> set[tuple[str, int]]:
    text = (ROOT / "docs" / "reference" / "reasons.md").read_text()
    jobs = text[text.index("## Jobs:") :]
    end = re.search(r"^## (?!Jobs)", jobs, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", jobs[: end.start() if end else None], re.MULTILINE)
    return {(reason, int(code)) for reason, code in rows}


def test_page_and_code_agree() -> None:
    code = given() | OTHERS
    assert len(code) > 60
    assert documented() - code == set()
    assert code - documented() == set()
