"""python -m demo: the story; python -m demo models: train and measure the models only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from demo import DemoError, chapters, report, target, train
from demo.cluster import Cluster
from demo.story import DETAILS, REPORT, Options, Story
from demo.view import View

CHECKOUT = Path(__file__).resolve().parents[2]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def play(
    ctx: typer.Context,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="kubeconfig file; default: the sandbox's, with --context the usual one."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context of a cluster of your own; needs --target.")
    ] = None,
    target_file: Annotated[
        Path | None,
        typer.Option("--target", help="Addresses in a cluster of your own (docs/how-to/demo.md)."),
    ] = None,
    registry: Annotated[
        str | None, typer.Option(help="Where the images are; default: those that the sandbox has loaded.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of report.json and everything else.")] = CHECKOUT
    / "build"
    / "demo",
    http_rate: Annotated[float, typer.Option(help="Requests per second over HTTP.", min=0)] = 60.0,
    grpc_rate: Annotated[float, typer.Option(help="Requests per second over gRPC.", min=0)] = 20.0,
    timeout: Annotated[float, typer.Option(help="Seconds that one version may take.", min=1)] = 600.0,
    until: Annotated[str | None, typer.Option(help="Stop after this version, for example v2.")] = None,
    install: Annotated[bool, typer.Option(help="Install or upgrade the operator by its chart first.")] = True,
    retrain: Annotated[bool, typer.Option(help="Train the models even if they are in the cache.")] = False,
) -> None:
    """Roll out seven versions of a model under load, go back to the first, and compare what
    happens with the story.
    """
    if ctx.invoked_subcommand:
        return
    played = _played(until)
    view = View(played)
    try:
        where = _target(kubeconfig, context, target_file, registry)
        cluster = Cluster(where)
        for tool in ("kubectl", *(("helm",) if install else ())):
            where.tool(tool)
        models = train.models(say=view.say, again=retrain)
    except DemoError as e:
        raise _fail(e) from e
    view.say(
        "models are there"
        f" ({'from the cache' if models.cached else f'trained in {models.trained_seconds:.0f} s'})"
    )
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    story = Story(cluster, models, Options(out, timeout, http_rate, grpc_rate, install), view, played)
    with view:
        counts = story.tell()
    if counts:
        view.console.print(report.table(story.endings, counts))
        for ending in story.endings:
            if (seconds := report.seconds_to_rollback(ending, counts)) is not None:
                view.say(
                    f"{ending.name}: {seconds:.0f} s from its first answer until stable had all traffic again"
                )
        view.say(f"{out / REPORT}, {out / DETAILS}")
    view.say(f"the story took {time.monotonic() - started:.0f} s")
    if story.wrong or counts is None:
        raise _fail(DemoError("\n".join(["the story went differently:", *story.wrong])))


@app.command("models")
def measure(
    retrain: Annotated[bool, typer.Option(help="Train even if they are in the cache.")] = False,
) -> None:
    """Train the models and measure them, in float32 and as the operator's optimizer quantizes
    them.
    """
    from demo import check  # heavy

    console = Console(highlight=False)
    try:
        models = train.models(say=console.print, again=retrain)
        rows = check.check(models, CHECKOUT / "build" / "demo" / "models")
    except DemoError as e:
        raise _fail(e) from e
    console.print(check.table(rows))
    if wrong := check.judge(rows):
        raise _fail(DemoError("; ".join(wrong)))


def _target(
    kubeconfig: Path | None, context: str | None, file: Path | None, registry: str | None
) -> target.Target:
    if file is not None:
        return target.from_file(file, kubeconfig, context, registry)
    if context is not None:
        raise DemoError(
            f"context {context}: the demo must be told where the gateway, the store and Prometheus are:"
            " --target FILE (docs/how-to/demo.md)"
        )
    return target.sandbox(kubeconfig, registry)


def _played(until: str | None) -> tuple[chapters.Chapter, ...]:
    known = [c.name for c in chapters.CHAPTERS]
    if until is None:
        return chapters.CHAPTERS
    if until not in known:
        raise typer.BadParameter(f"there are: {', '.join(known)}", param_hint="--until")
    return chapters.CHAPTERS[: known.index(until) + 1]


def _fail(error: DemoError) -> typer.Exit:
    typer.echo(f"demo: {error}", err=True)
    return typer.Exit(1)


if __name__ == "__main__":
    app()
