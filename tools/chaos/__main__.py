"""python -m chaos: tries the faults on the sandbox of this checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from chaos import ChaosError, report, versions
from chaos.arena import Arena
from chaos.catalogue import CATALOGUE
from chaos.moments import Fault
from chaos.runner import Runner, Trial
from demo import DemoError, target
from demo.cluster import Cluster
from demo.narrator import Narrator, heed_signals
from sandbox.cluster import SandboxError

CHECKOUT = Path(__file__).resolve().parents[2]
REPORT = "report.json"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Try this fault; may be given several times.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the faults and end.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of report.json, logs and diagnostics.")] = CHECKOUT
    / ".cache"
    / "chaos",
    rate: Annotated[
        float, typer.Option(help="Requests per second to each of the two ModelDeployments.", min=1)
    ] = 35.0,
    earlier: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="COMMIT",
            help="Where operator-upgraded begins: a commit or tag. Default: the newest tag before this"
            f" commit, else {versions.EARLIER}.",
        ),
    ] = None,
) -> None:
    """Try each fault during a promotion and a rollback, under load. Exit code 1 when an outcome was
    wrong or a request failed.
    """
    narrator = Narrator()
    console, say = narrator.console, narrator.say
    if show:
        for fault in CATALOGUE:
            console.print(Text(f"{fault.name:24} {fault.about}"))
        return
    faults = _chosen(only)
    heed_signals()
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).unlink(missing_ok=True)
    trials: list[Trial] = []
    versions: dict[str, str] = {}
    try:
        where = target.sandbox(None, None)
        with Arena(Cluster(where), out, say, rate, earlier=earlier) as arena:
            runner = Runner(arena)
            versions = runner.versions()
            for trial in runner.run(faults):
                trials.append(trial)
    except KeyboardInterrupt:  # the report covers what was tried until then
        say("interrupted")
    except (ChaosError, DemoError, SandboxError) as e:
        typer.echo(f"chaos: {e}", err=True)
        raise typer.Exit(1) from e
    seconds = narrator.seconds
    (out / REPORT).write_text(json.dumps(report.as_json(trials, seconds, versions), indent=1))
    console.print(report.table(trials))
    for line in report.apart(trials):
        console.print(Text(line))
    say(f"the whole took {seconds / 60:.1f} minutes; {out / REPORT}")
    console.print(Text(report.summary(trials)))
    if not report.is_right(trials) or len(trials) < len(faults):
        raise typer.Exit(1)


def _chosen(only: list[str] | None) -> tuple[Fault, ...]:
    known = {fault.name: fault for fault in CATALOGUE}
    for name in only or ():
        if name not in known:
            raise typer.BadParameter(f"{name}: there are {', '.join(known)}", param_hint="--only")
    return tuple(known[name] for name in only) if only else CATALOGUE


if __name__ == "__main__":
    app()
