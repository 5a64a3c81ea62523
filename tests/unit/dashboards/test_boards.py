"""The dashboards: the committed files are current, every query can be parsed and names metrics that
exist.
"""

from __future__ import annotations

import re

import promql_parser
import pytest

from dashboards.__main__ import FOLDER, built
from dashboards.boards import BOARDS, Board, Panel
from tests.unit.test_alerts import known

QUERIES = [
    (board, panel, query)
    for board in BOARDS
    for _, panels in board.rows
    for panel in panels
    for query in panel.queries.values()
]


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.uid)
def test_the_committed_file_is_current(board: Board) -> None:
    assert (FOLDER / f"{board.uid}.json").read_text() == built(board), "run: python -m dashboards"


@pytest.mark.parametrize(
    ("board", "panel", "query"), QUERIES, ids=[f"{b.uid}: {p.title}" for b, p, _ in QUERIES]
)
def test_a_query_can_be_parsed_and_names_metrics_that_exist(board: Board, panel: Panel, query: str) -> None:
    promql_parser.parse(query)
    assert set(re.findall(r"\$(\w+)", query)) <= set(board.variables), panel.title
    named = set(re.findall(r"\bmodelrollout_[a-z_]+", query))
    assert named <= known(), named - known()


def test_no_file_is_left_of_a_dashboard_that_is_gone() -> None:
    assert {f.stem for f in FOLDER.glob("*.json")} == {b.uid for b in BOARDS}
