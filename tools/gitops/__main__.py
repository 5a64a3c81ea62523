"""python -m gitops: a real Argo CD syncs models from Git on the sandbox of this checkout."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from demo import DemoError, target
from demo.cluster import Cluster
from demo.narrator import Narrator, heed_signals
from gitops import GitopsError
from gitops.player import Player, Told
from sandbox import pins
from sandbox.cluster import Sandbox, SandboxError
from sandbox.shell import CommandError, WaitError

CHECKOUT = Path(__file__).resolve().parents[2]
REPORT = "report.json"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    fleet: Annotated[bool, typer.Option(help="The two commits of forty models at the end, too.")] = True,
    out: Annotated[
        Path, typer.Option(help="Folder of report.json, logs and diagnostics; emptied.")
    ] = CHECKOUT / ".cache" / "gitops",
) -> None:
    """The story by commits. Exit code 1 when the operator and Argo CD undid each other's writes,
    Argo CD showed a wrong state, or a request failed.
    """
    heed_signals()
    narrator = Narrator()
    console, say = narrator.console, narrator.say
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    player: Player | None = None
    finished = False
    try:
        with Player(Cluster(target.sandbox(None, None)), out, say) as player:
            player.play(fleet=fleet)
            finished = True
    except KeyboardInterrupt:  # what happened until then is counted
        say("interrupted")
    except (GitopsError, DemoError, SandboxError, CommandError, WaitError) as e:
        typer.echo(f"gitops: {e}", err=True)
    if player is None:
        raise typer.Exit(1)
    (out / REPORT).write_text(json.dumps(_report(player, narrator.seconds), indent=1))
    console.print(_table(player.told))
    for line in (
        *player.remarks,
        *(f"FIGHT: {text}" for text in player.tally.fights),
        *(f"WRONG: {text}" for text in player.tally.wrong),
    ):
        console.print(Text(line), soft_wrap=True)
    say(f"the whole took {narrator.seconds / 60:.1f} minutes; {out / REPORT}")
    console.print(Text(str(player.tally)))
    if not finished or not player.tally.is_right:
        raise typer.Exit(1)


def _table(told: list[Told]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("commit", "synced after", "health over time", "over after", "syncs"):
        table.add_column(column, overflow="fold")
    for row in told:
        path = " → ".join(f"{health} {seconds:.0f} s" for seconds, health in row.path)
        paths = "; ".join(f"{path} ({n})" for path, n in row.paths.items())
        table.add_row(
            row.commit, f"{row.seconds_to_sync:.1f} s", path or paths, f"{row.seconds:.0f} s", str(row.syncs)
        )
    return table


def _report(player: Player, seconds: float) -> dict[str, Any]:
    return {
        "summary": str(player.tally),
        "minutes": round(seconds / 60, 1),
        "versions": {"Argo CD": pins.ARGO_CD, **Sandbox().status()["versions"]},
        "commits": [asdict(told) for told in player.told],
        "fights": player.tally.fights,
        "wrong": player.tally.wrong,
        "counted apart and failed": player.remarks,
    }


if __name__ == "__main__":
    app()
