"""The command line: ``modelrollout``, also as ``kubectl modelrollout``."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from modelrollout.cli import analyze as analysis
from modelrollout.cli import cluster as clusters
from modelrollout.cli import verbs, view
from modelrollout.cli.cluster import Cluster, Rollout
from modelrollout.cli.errors import Refused, Unanswered
from modelrollout.cli.report import html as report_html
from modelrollout.cli.report import model as reports
from modelrollout.cli.report import text as report_text
from modelrollout.config import ConfigError
from modelrollout.kube.client import Kube, KubeError

PLAIN_WIDTH = 220  # where there is no terminal, lines are not folded to 80 columns
POLL_SECONDS = 1.0
EVENTS_EVERY = 5  # polls

app = typer.Typer(
    name="modelrollout",
    help=(
        "Roll out machine-learning models: watch, promote, pause, abort, retry, roll back, restart. "
        "Exit code 0: done; 1: the answer is no; 2: could not be asked."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Output(StrEnum):
    """Forms of output."""

    text = "text"
    json = "json"


class ReportOutput(StrEnum):
    """Forms of a report."""

    text = "text"
    markdown = "markdown"
    html = "html"
    json = "json"


class Profile(StrEnum):
    """Gateways whose metrics are known."""

    traefik = "traefik"
    none = "none"


Name = Annotated[str, typer.Argument(help="Name of the ModelDeployment.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; default: that of the context.")
]
Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", help="kubeconfig file; default: $KUBECONFIG, or ~/.kube/config.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Form = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait until the operator has carried it out or refused it.")
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=0.1)]

InFlight = Annotated[
    str | None,
    typer.Option("--revision", help="Only if this revision (name or number) is the one in flight."),
]


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay and show changes, until Ctrl-C. Only on a terminal.")
    ] = False,
    output: Form = Output.text,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show a rollout: stages, weights, pods, each metric with its verdict, conditions, events, and
    what happens next.
    """

    async def show(cluster: Cluster) -> None:
        found = await cluster.rollout(name, pods=True, events=True)
        if output is Output.json:
            _print_json(_as_json(found))
        elif watch and _console().is_terminal:
            await _watch(cluster, found)
        else:
            _show(view.status(found, _now()))

    _run(show, namespace, kubeconfig, context)


@app.command()
def history(
    name: Name,
    output: Form = Output.text,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List the kept revisions: number, outcome, reason, accuracy, size, latency, age."""

    async def show(cluster: Cluster) -> None:
        found = await cluster.rollout(name)
        if output is Output.json:
            _print_json([r.raw for r in found.revisions])
        elif found.revisions:
            _show(
                view.history(
                    found.revisions, found.status.stable.revision if found.status.stable else None, _now()
                )
            )
        else:
            _say(f"{name} has no revision yet: {verbs.idle(found)}")
        if found.unread and output is Output.text:
            _say(f"not shown, written by another version of the operator: {', '.join(found.unread)}")

    _run(show, namespace, kubeconfig, context)


@app.command()
def report(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[/REVISION]",
            help="ModelDeployment, and a revision (name or number); default: of the last rollout.",
        ),
    ],
    output: Annotated[
        ReportOutput,
        typer.Option("--output", "-o", help="text, markdown, html (one file, with pictures) or json."),
    ] = ReportOutput.text,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show the evidence on a version: digests, sizes, the gate, golden data and each canary step
    with intervals and verdicts, times by stage.
    """
    deployment, _, wanted = name.partition("/")

    async def show(cluster: Cluster) -> None:
        found = await cluster.rollout(deployment)
        told = reports.of(found, reports.which(found, wanted or None))
        match output:
            case ReportOutput.json:
                _print_json(told.as_json())
            case ReportOutput.markdown:
                typer.echo(report_text.markdown(told), nl=False)
            case ReportOutput.html:
                typer.echo(report_html.html(told), nl=False)
            case ReportOutput.text:
                _show(report_text.text(told))

    _run(show, namespace, kubeconfig, context)


@app.command()
def promote(
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Past all remaining steps, to all traffic.")] = False,
    revision: InFlight = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Let the present step go on: end a pause, a preview or a bake, or go on without a verdict
    (recorded as an override).
    """
    _ask(
        name,
        lambda found, token: verbs.promote(found, revision, token, full=full),
        wait,
        timeout,
        namespace,
        kubeconfig,
        context,
    )


@app.command()
def pause(
    name: Name,
    revision: InFlight = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Hold the rollout at its present weight. It is judged all the same: what is proven worse still
    goes back.
    """
    _ask(
        name,
        lambda found, token: verbs.pause(found, revision, token),
        wait,
        timeout,
        namespace,
        kubeconfig,
        context,
    )


@app.command()
def resume(
    name: Name,
    revision: InFlight = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Let a paused rollout go on; the time of the pause counts for no deadline."""
    _ask(
        name,
        lambda found, token: verbs.resume(found, revision, token),
        wait,
        timeout,
        namespace,
        kubeconfig,
        context,
    )


@app.command()
def restart(
    name: Name,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="Revision (name or number) with pods: stable (default), on trial, or bake's former stable.",
        ),
    ] = None,
    allow_downtime: Annotated[
        bool,
        typer.Option(
            "--allow-downtime",
            help="End each pod before its successor is there: where no GPU is free for one more.",
        ),
    ] = False,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Replace the pods of a revision one after the other, each when the next one is ready.

    Pods that an earlier operator rendered come back hardened: nobody but the kubelet manages their
    servers (docs/endpoints.md).
    """
    _ask(
        name,
        lambda found, token: verbs.restart(found, revision, token, allow_downtime=allow_downtime),
        wait,
        timeout,
        namespace,
        kubeconfig,
        context,
    )


@app.command()
def abort(
    name: Name,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """End the rollout in flight; stable gets all traffic back, and the version is not tried again
    until spec changes or somebody says retry.
    """
    _ask(name, verbs.abort, wait, timeout, namespace, kubeconfig, context)


@app.command()
def retry(
    name: Name,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Revision (name or number); default: the one that failed."),
    ] = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Try a failed version again, or the spec's version after a rollback by hand.

    The request is an annotation on the failed ModelRevision. When the failure came before there was
    a revision (stage Resolve), it is one on the ModelDeployment instead, which needs the right to
    patch modeldeployments; Git may take that annotation away again, harmlessly.
    """
    _ask(
        name,
        lambda found, token: verbs.retry(found, revision, token),
        wait,
        timeout,
        namespace,
        kubeconfig,
        context,
    )


@app.command()
def rollback(
    name: Name,
    to: Annotated[
        str | None, typer.Option("--to", help="Kept revision (name or number) that has served before.")
    ] = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Go back to a kept revision. Without --to: abort the rollout in flight, or else take the
    newest revision that served before stable.
    """
    _ask(
        name,
        lambda found, token: verbs.rollback(found, to, token),
        wait,
        timeout,
        namespace,
        kubeconfig,
        context,
    )


@app.command()
def analyze(
    name: Annotated[
        str | None, typer.Argument(help="Name of a ModelDeployment in a canary; left out with --filename.")
    ] = None,
    filename: Annotated[
        Path | None,
        typer.Option(
            "--filename",
            "-f",
            help="File with the ModelDeployment (and RolloutPolicies), instead of one in the cluster.",
        ),
    ] = None,
    recording: Annotated[
        Path | None, typer.Option("--replay", help="Judge a recording (docs/analysis.md).")
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option("--prometheus", help="URL of a Prometheus, for example http://localhost:9090."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with a bearer token for it.")
    ] = None,
    profile: Annotated[
        Profile, typer.Option("--profile", help="How the gateway's metrics name a backend.")
    ] = Profile.traefik,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="Judge Prometheus history from then on: RFC 3339, or how long ago (2h)."
        ),
    ] = None,
    end: Annotated[str | None, typer.Option("--end", help="Until then; default: now.")] = None,
    canary: Annotated[
        str | None,
        typer.Option("--canary", help="NAME:NUMBER of the revision to judge; default: the one in flight."),
    ] = None,
    stable: Annotated[
        str | None,
        typer.Option(
            "--stable", help="NAME:NUMBER of the one to compare with; default: stable; 'none' for none."
        ),
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", help="Write the readings to this file, for --replay.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="METRIC.FIELD=VALUE or a field of spec.rollout, as often as you like."),
    ] = None,
    steps: Annotated[str | None, typer.Option("--steps", help="Other weights, for example 5,25,50.")] = None,
    window: Annotated[
        float, typer.Option("--window", help="Seconds for {{window}} in queries over history.", min=1)
    ] = 60.0,
    output: Form = Output.text,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Run a rollout's gates: now (NAME --prometheus URL), over history (with --start) or over a
    recording (--replay FILE -f model.yaml).

    Nothing is written to the cluster. Over the past the operator's own state machine is stepped
    through time, and what it would have done is printed: when each step passes, fails or has no
    verdict, with the intervals; --set and --steps try other thresholds.
    """

    wanted = analysis.Options(
        name,
        filename,
        recording,
        prometheus,
        token_file,
        profile,
        start,
        end,
        canary,
        stable,
        record,
        changes or [],
        steps,
        window,
    )

    def tell(text: RenderableType, raw: dict[str, Any]) -> None:
        if output is Output.json:
            _print_json(raw)
        else:
            _show(text)

    if wanted.needs_cluster:
        _run(lambda cluster: analysis.analyze(wanted, cluster, _now(), tell), namespace, kubeconfig, context)
    else:
        _local(analysis.analyze(wanted, None, _now(), tell))


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            help="Configuration file of the operator (docs/install.md).",
            exists=True,
            dir_okay=False,
        ),
    ],
    health_port: Annotated[
        int, typer.Option("--health-port", help="Port of /healthz, /readyz and /metrics.", min=1, max=65535)
    ] = 8081,
    identity: Annotated[
        str | None,
        typer.Option("--identity", help="Name in the Lease; default: host name and a random part."),
    ] = None,
    lease_namespace: Annotated[
        str | None,
        typer.Option(
            "--lease-namespace", envvar="POD_NAMESPACE", help="Namespace of the Lease of the leader election."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done in detail.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Run the operator."""
    from modelrollout.controller.process import run as start  # heavy: kopf, and only needed here

    try:
        start(
            config=config,
            kubeconfig=kubeconfig,
            context=context,
            health_port=health_port,
            identity=identity,
            lease_namespace=lease_namespace,
            verbose=verbose,
        )
    except (ConfigError, KubeError) as e:
        raise _fail(Unanswered(f"the operator cannot start: {e}")) from e


@app.command()
def feedback(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="Port of /v1/feedback.", min=0, max=65535)] = 8080,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done in detail.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Run the feedback service, which counts labelled answers."""
    from modelrollout.feedback.auth import KubernetesAuthorizer
    from modelrollout.feedback.service import serve  # only needed here
    from modelrollout.telemetry import logs

    logs.setup("DEBUG" if verbose else "INFO")

    async def go() -> None:
        async with await Kube.connect(kubeconfig, context, component="feedback") as kube:
            await serve(host, port, KubernetesAuthorizer(kube))

    try:
        asyncio.run(go())
    except (KubeError, OSError) as e:
        raise _fail(Unanswered(f"the feedback service cannot start: {e}")) from e


@app.command()
def references(
    output: Annotated[
        Path,
        typer.Option(
            "--output", help="File to write: URIs of artifacts in use, namespaces to leave untouched."
        ),
    ],
    namespaces: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="Only there; may be repeated. Default: all namespaces."),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Write which artifacts are in use, for the clean-up of the artifact store. When the cluster
    cannot be asked, nothing is written.
    """
    from modelrollout.cli.references import InUse, in_use

    async def go() -> InUse:
        async with await Kube.connect(kubeconfig, context, component="references") as kube:
            return await in_use(kube, namespaces or [None])

    try:
        found = asyncio.run(go())
        output.write_text(json.dumps({"artifacts": found.artifacts, "untouched": found.untouched}))
    except (KubeError, OSError) as e:
        raise _fail(Unanswered(f"the references cannot be read: {e}")) from e
    _say(f"{len(found.artifacts)} artifacts are in use")
    if found.untouched:
        _say(
            f"nothing is to be deleted in {', '.join(found.untouched)}: an object there cannot be read; the"
            " operator's log names it"
        )


def _ask(
    name: str,
    choose: Callable[[Rollout, str], verbs.Request],
    wait: bool,
    timeout: float,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    async def ask(cluster: Cluster) -> None:
        request = choose(await cluster.rollout(name), verbs.nonce())
        await cluster.annotate(request.resource, request.object_name, request.annotation, request.value)
        if wait:
            await _handled(cluster, name, request, timeout)
            _say(f"done: {request.meaning}")
        else:
            _say(
                f"asked to {request.meaning} (request {request.value}); see: modelrollout status {name} -n"
                f" {cluster.namespace}"
            )

    _run(ask, namespace, kubeconfig, context)


async def _handled(cluster: Cluster, name: str, request: verbs.Request, limit: float) -> None:
    """Return when the operator has carried the request out; raise when it refused or did not answer
    in time.
    """
    deadline = time.monotonic() + limit
    while True:
        found = await cluster.rollout(name)
        done, refusal = verbs.answer(found.status.handled_verbs, request)
        if refusal is not None:
            raise Refused(f"the operator refused to {request.meaning}: {refusal}")
        if done:
            return
        if time.monotonic() >= deadline:
            raise Unanswered(
                f"the operator has not answered within {limit:g} s; the request stands. Is the operator"
                " running?"
            )
        await asyncio.sleep(POLL_SECONDS)


async def _watch(cluster: Cluster, found: Rollout) -> None:
    with Live(
        view.status(found, _now(), live=True), console=_console(), screen=True, auto_refresh=False
    ) as live:
        for turn in itertools.count(1):
            await asyncio.sleep(POLL_SECONDS)
            trouble: list[Text] = []
            look = turn % EVENTS_EVERY == 0  # they can only be listed for the whole namespace
            try:
                fresh = await cluster.rollout(found.name, pods=True, events=look)
                found = fresh if look else replace(fresh, events=found.events)
            except Unanswered as e:  # a watch outlives a restart of the API server
                trouble = [Text(f"{e}; shown is what was last seen\n", "red")]
            live.update(Group(*trouble, view.status(found, _now(), live=True)), refresh=True)


def _as_json(found: Rollout) -> dict[str, Any]:
    raw = dict(found.raw or {})
    raw["metadata"] = {k: v for k, v in raw.get("metadata", {}).items() if k != "managedFields"}
    return {
        "deployment": raw,
        "revisions": [
            {
                "name": r.name,
                "number": r.spec.number,
                "outcome": r.status.outcome,
                "reason": r.status.reason,
                "created": r.created,
            }
            for r in found.revisions
        ],
        "pods": (
            None
            if found.replicas is None
            else {name: {"ready": c.ready, "total": c.total} for name, c in found.replicas.items()}
        ),
        "events": None if found.events is None else [e.__dict__ for e in found.events],
        "next": view.what_next(found, _now()),
    }


def _run(
    work: Callable[[Cluster], Awaitable[None]],
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Do the work against the API server."""

    async def go() -> None:
        try:
            api = await clusters.connect(kubeconfig, context)
        except KubeError as e:
            raise Unanswered(f"no access to a cluster: {e.message}") from e
        cluster = Cluster(api, namespace or clusters.default_namespace(kubeconfig, context))
        try:
            await work(cluster)
        finally:
            await cluster.close()

    _local(go())


def _local(work: Coroutine[Any, Any, None]) -> None:
    """Do the work; what goes wrong becomes one message and an exit code."""
    try:
        asyncio.run(work)
    except (Refused, Unanswered) as e:
        raise _fail(e) from e
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _fail(error: Refused | Unanswered) -> typer.Exit:
    typer.echo(f"modelrollout: {error}", err=True)
    return typer.Exit(error.exit_code)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    # No markup and no emoji: what is shown is made of other people's texts, and [n, 64] is a shape.
    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        width=None if terminal else int(os.environ.get("COLUMNS", PLAIN_WIDTH)),
    )


def _show(body: RenderableType) -> None:
    console = _console()
    if console.is_terminal:
        console.print(body)
        return
    with console.capture() as captured:
        console.print(body)
    for line in captured.get().splitlines():  # columns are padded to their width
        typer.echo(line.rstrip())


def _say(text: str) -> None:
    typer.echo(text)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
