"""docs/reasons-analysis.md names every reason that a verdict may have, and none that no code
gives.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

from modelrollout.analysis.problem import MeasurementReason

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "operator" / "modelrollout"
SOURCES = [
    *(PACKAGE / "analysis" / f"{m}.py" for m in ("shadow", "golden", "judge", "measurement", "verdict")),
    PACKAGE / "rollout" / "assessment.py",
]
REASON = re.compile(r"[A-Z][a-z]+([A-Z]+[a-z]+)+")
VERDICTS = ("Successful", "Failed", "Inconclusive", "Error")


def given() -> set[str]:
    nodes = (n for source in SOURCES for n in ast.walk(ast.parse(source.read_text())))
    words = {
        n.value
        for n in nodes
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and REASON.fullmatch(n.value)
    }
    # the gate's words, which golden data says otherwise
    return (words | set(get_args(MeasurementReason))) - {"AccuracyDrop", "WithinBudget"}


def told() -> set[str]:
    text = (ROOT / "docs" / "reasons-analysis.md").read_text()
    rows = re.findall(rf"^\| (`.*?) \| (?:{'|'.join(VERDICTS)}) \|", text, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`(\w+)`", row)}


def test_page_and_code_agree() -> None:
    assert len(given()) > 25
    assert given() - told() == set()
    assert told() - given() == set()
