"""Every panel of the dashboards has data while a canary is under way, on the real Prometheus."""

from __future__ import annotations

import time

import pytest

from dashboards.boards import BOARDS, Board
from tests.e2e.conftest import Asking, Stage

pytestmark = pytest.mark.sandbox

NAME, HOST = "watched", "watched.e2e.example"


def without_data(stage: Stage, board: Board) -> list[str]:
    """Titles of the board's panels that show nothing for this model."""
    variables = {"$model_namespace": stage.namespace, "$name": NAME}

    def filled(query: str) -> str:
        for name, value in variables.items():
            query = query.replace(name, value)
        return query

    return [
        panel.title
        for _, panels in board.rows
        for panel in panels
        if not panel.optional and not all(stage.query(filled(q)) for q in panel.queries.values())
    ]


def test_every_panel_has_data_while_a_canary_is_under_way(stage: Stage) -> None:
    """What only a failure, a GPU or feedback would show is marked as optional."""

    def deployment(file: str) -> dict[str, object]:
        return stage.deployment(
            NAME,
            file,
            traffic=stage.traffic(HOST),
            rollout={
                "analysis": {
                    "interval": "1s",
                    "initialDelay": "0s",
                    "metrics": [{"name": "errors", "maxIncrease": 0.2}],
                },
                "canary": {"steps": [{"weight": 30}, {"pause": {}}]},
            },
        )

    stage.apply(deployment("good.onnx"))
    stage.until_ready(NAME)
    with Asking(stage, NAME):
        stage.apply(deployment("better.onnx"))
        stage.until(
            "it is paused after its step", lambda: stage.get(NAME)["status"]["phase"] == "Paused", 180
        )
        end = time.monotonic() + 150  # rates need two scrapes, and the look at them two minutes at most
        while missing := {b.uid: titles for b in BOARDS if (titles := without_data(stage, b))}:
            assert time.monotonic() < end, missing
            time.sleep(5)
