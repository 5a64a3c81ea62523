"""python -m dashboards: writes the dashboards of the chart; ``--check`` says whether they are
current.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos, VariableRefresh, VariableSort
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.boards import BOARDS, Board, Panel

FOLDER = Path(__file__).resolve().parents[2] / "charts/model-rollout-operator/files/dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_PANELS: dict[str, Any] = {
    "stat": stat.Panel,
    "graph": timeseries.Panel,
    "table": table.Panel,
    "states": statetimeline.Panel,
}
HEIGHTS = {"stat": 4, "graph": 8, "table": 8, "states": 8}


def built(board: Board) -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["modelrollout"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name, query in board.variables.items():
        variable = (
            dashboard.QueryVariable(name)
            .label(name.replace("_", " "))
            .query(query)
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
        )
        made = made.with_variable(
            variable.multi(True).include_all(True) if name == "model_namespace" else variable
        )
    y = 0
    for title, panels in board.rows:
        made = made.with_row(dashboard.Row(title))
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            made = made.with_panel(
                _panel(panel).grid_pos(GridPos(h=HEIGHTS[panel.kind], w=panel.width, x=x, y=y))
            )
            x, tallest = x + panel.width, max(tallest, HEIGHTS[panel.kind])
        y += tallest
    text: str = JSONEncoder(sort_keys=True, indent=2).encode(made.build())
    return text + "\n"


def _panel(panel: Panel) -> Any:
    made = _PANELS[panel.kind]().title(panel.title).unit(panel.unit).datasource(SOURCE)
    if panel.about:
        made = made.description(panel.about)
    for number, (legend, query) in enumerate(panel.queries.items()):
        target = prometheus.Dataquery().expr(query).ref_id(chr(ord("A") + number))
        if legend:
            target = target.legend_format(legend)
        if panel.kind == "table":
            target = target.instant().format(PromQueryFormat.TABLE)
        made = made.with_target(target)
    return made


def main() -> None:
    outdated = []
    for board in BOARDS:
        file, text = FOLDER / f"{board.uid}.json", built(board)
        json.loads(text)
        if file.exists() and file.read_text() == text:
            continue
        outdated.append(file.name)
        if "--check" not in sys.argv:
            FOLDER.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    if "--check" in sys.argv and outdated:
        sys.exit(f"not current: {', '.join(outdated)}; run: python -m dashboards")
    sys.stdout.write(
        f"{len(BOARDS)} dashboards, {len(outdated)} written\n" if "--check" not in sys.argv else ""
    )


if __name__ == "__main__":
    main()
