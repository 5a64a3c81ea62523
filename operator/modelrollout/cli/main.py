"""The command line: ``modelrollout``, also as ``kubectl modelrollout``."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from modelrollout.cli import analyze as analysis
from modelrollout.cli import overview, pipelines, providers, verbs, view
from modelrollout.cli.cluster import Cluster, Rollout
from modelrollout.cli.command import (
    Context,
    Kubeconfig,
    Namespace,
    Timeout,
    Work,
    add_options,
    cluster_command,
    exit_with,
    run_locally,
    run_on_cluster,
    until_interrupted,
)
from modelrollout.cli.errors import Refused, Unanswered
from modelrollout.cli.report import html as report_html
from modelrollout.cli.report import model as reports
from modelrollout.cli.report import text as report_text
from modelrollout.cli.screen import Output, console, print_json, print_line
from modelrollout.cli.screen import show as show_body
from modelrollout.config import ConfigError, Profile
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import KubeError

POLL_SECONDS = 1.0
EVENTS_EVERY = 5  # polls

app = typer.Typer(
    name="modelrollout",
    help=(
        "Roll out machine-learning models: watch, promote, pause, abort, retry, roll back, follow, restart. "
        "Exit code 0: done; 1: refused; 2: no answer from the cluster or the operator."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class ReportOutput(StrEnum):
    """Forms of a report."""

    text = "text"
    markdown = "markdown"
    html = "html"
    json = "json"


Name = Annotated[str, typer.Argument(help="Name of the ModelDeployment.")]
Form = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait until the operator has carried out or refused the request.")
]


WhyOption = Annotated[
    str | None, typer.Option("--reason", help="Why, in your words; history and report show it.")
]
InFlight = Annotated[
    str | None,
    typer.Option("--revision", help="Only if this revision (name or number) is the one in flight."),
]
# Returns a verb's request; the second argument makes it distinct from earlier ones.
Choice = Callable[[Rollout, str], verbs.Request]


def verb_command(command: Callable[..., Choice]) -> Callable[..., None]:
    """A command that requests a verb of the operator and, with --wait, waits for it."""

    def request_verb(
        *, reason: WhyOption = None, wait: Wait = False, timeout: Timeout = 60.0, **own: Any
    ) -> Work:
        choose, name = command(**own), own["name"]

        async def send(cluster: Cluster) -> None:
            request = choose(await cluster.rollout(name), verbs.nonce())
            await cluster.annotate(request.resource, request.object_name, request.annotations(reason))
            if wait:
                await _wait_until_handled(cluster, name, request, timeout)
                print_line(f"done: {request.meaning}")
            else:
                print_line(
                    f"requested: {request.meaning} (request {request.value}); see: modelrollout status"
                    f" {name} -n {cluster.namespace}"
                )

        return send

    return cluster_command(add_options(command, request_verb))


@app.command()
@cluster_command
def status(
    name: Name,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep showing changes until Ctrl-C. Only on a terminal.")
    ] = False,
    output: Form = Output.text,
) -> Work:
    """Show a rollout: stages, weights, pods, each metric with its verdict, conditions, events, and
    what happens next.
    """

    async def show(cluster: Cluster) -> None:
        rollout = await cluster.rollout(name, pods=True, events=True)
        if output is Output.json:
            print_json(_as_json(rollout))
        elif watch and console().is_terminal:
            await _watch(cluster, rollout)
        else:
            show_body(view.status(rollout, _now()))

    return show


@app.command()
@cluster_command
def history(
    name: Name,
    output: Form = Output.text,
) -> Work:
    """List the kept revisions: number, outcome, reason, accuracy, size, latency, age."""

    async def show(cluster: Cluster) -> None:
        rollout = await cluster.rollout(name)
        if output is Output.json:
            print_json([r.raw for r in rollout.revisions])
        elif rollout.revisions:
            show_body(
                view.history(
                    rollout.revisions,
                    rollout.status.stable.revision if rollout.status.stable else None,
                    _now(),
                )
            )
        else:
            print_line(f"{name} has no revision yet: {verbs.idle(rollout)}")
        if rollout.unread and output is Output.text:
            print_line(f"not shown, written by another version of the operator: {', '.join(rollout.unread)}")

    return show


@app.command()
@cluster_command
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
) -> Work:
    """Show the evidence on a version: digests, sizes, the gate, golden data and each canary step
    with intervals and verdicts, times by stage.
    """
    deployment, _, revision = name.partition("/")

    async def show(cluster: Cluster) -> None:
        rollout = await cluster.rollout(deployment)
        shown = reports.of(rollout, reports.revision_to_report(rollout, revision or None))
        match output:
            case ReportOutput.json:
                print_json(shown.as_json())
            case ReportOutput.markdown:
                typer.echo(report_text.markdown(shown), nl=False)
            case ReportOutput.html:
                typer.echo(report_html.html(shown), nl=False)
            case ReportOutput.text:
                show_body(report_text.text(shown))

    return show


@app.command()
@verb_command
def promote(
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Past all remaining steps, to all traffic.")] = False,
    revision: InFlight = None,
) -> Choice:
    """Promote past the current step: end a pause, a preview or a bake, or continue without a
    verdict (recorded as an override).
    """
    return lambda rollout, token: verbs.promote(rollout, revision, token, full=full)


@app.command()
@verb_command
def pause(
    name: Name,
    revision: InFlight = None,
) -> Choice:
    """Hold the rollout at its current weight. Analysis continues: a version that is proven worse
    is still rolled back.
    """
    return lambda rollout, token: verbs.pause(rollout, revision, token)


@app.command()
@verb_command
def resume(
    name: Name,
    revision: InFlight = None,
) -> Choice:
    """Resume a paused rollout; the pause does not count towards any deadline."""
    return lambda rollout, token: verbs.resume(rollout, revision, token)


@app.command()
@verb_command
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
            help="End each pod before its successor starts, for when no GPU is free for one more.",
        ),
    ] = False,
) -> Choice:
    """Replace the pods of a revision one after the other, each when the next one is ready.

    Pods that an earlier operator rendered come back hardened: only the kubelet can manage their
    servers (docs/reference/endpoints.md).
    """
    return lambda rollout, token: verbs.restart(rollout, revision, token, allow_downtime=allow_downtime)


@app.command()
@verb_command
def abort(
    name: Name,
) -> Choice:
    """End the rollout in flight; stable gets all traffic back, and the version is not tried again
    until spec changes or you retry it.
    """
    return verbs.abort


@app.command()
@verb_command
def retry(
    name: Name,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Revision (name or number); default: the one that failed."),
    ] = None,
) -> Choice:
    """Try a failed version again, or the spec's version after a manual rollback.

    The request is an annotation on the failed ModelRevision. If the rollout failed before it had a
    revision (stage Resolve), the annotation goes on the ModelDeployment, which needs the right to
    patch modeldeployments; a GitOps tool may remove it later without harm.
    """
    return lambda rollout, token: verbs.retry(rollout, revision, token)


@app.command()
@verb_command
def follow(
    name: Name,
) -> Choice:
    """Look at the source now (spec.model.follow), also where a rollback, an abort or a failed
    version has stopped that. A version that failed, or was rolled back, is not tried again: see
    retry.
    """
    return verbs.follow


@app.command()
@verb_command
def rollback(
    name: Name,
    to: Annotated[
        str | None, typer.Option("--to", help="Kept revision (name or number) that has served before.")
    ] = None,
) -> Choice:
    """Go back to a kept revision. Without --to: abort the rollout in flight, or else take the
    newest revision that served before stable.
    """
    return lambda rollout, token: verbs.rollback(rollout, to, token)


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
        Path | None, typer.Option("--replay", help="Judge a recording (docs/explanation/analysis.md).")
    ] = None,
    prometheus: providers.PrometheusUrl = None,
    token_file: providers.TokenFile = None,
    header_files: providers.HeaderFiles = None,
    ca_file: providers.CaFile = None,
    profile: Annotated[
        Profile | None,
        typer.Option(
            "--profile",
            help=(
                "How the gateway's metrics name a backend; default: as the operator counts the step in"
                " flight, else traefik."
            ),
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Judge past metrics from this time: RFC 3339, or how long ago (2h)."),
    ] = None,
    end: Annotated[str | None, typer.Option("--end", help="End of that history; default: now.")] = None,
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
        typer.Option("--set", help="METRIC.FIELD=VALUE or a field of spec.rollout; may be repeated."),
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

    Writes nothing to the cluster. For past data it steps the operator's own state machine through
    time and prints what it would have done: when each step passes, fails or has no verdict, with
    the intervals; --set and --steps try other thresholds.
    """

    options = analysis.Options(
        name,
        filename,
        recording,
        providers.chosen(prometheus, token_file, header_files or (), ca_file),
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

    def show_result(text: RenderableType, raw: dict[str, Any]) -> None:
        if output is Output.json:
            print_json(raw)
        else:
            show_body(text)

    if options.needs_cluster:
        run_on_cluster(
            lambda cluster: analysis.analyze(options, cluster, _now(), show_result),
            namespace,
            kubeconfig,
            context,
        )
    else:
        run_locally(analysis.analyze(options, None, _now(), show_result))


app.command("get")(overview.get)
app.command("top")(overview.top)
app.command("wait")(pipelines.wait)
app.command("validate")(pipelines.validate)
app.command("diff")(pipelines.diff)
app.command("set")(pipelines.set_model)


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            help="Configuration file of the operator (docs/how-to/install.md).",
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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
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
        raise exit_with(Unanswered(f"the operator cannot start: {e}")) from e


@app.command()
def feedback(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="Port of /v1/feedback.", min=0, max=65535)] = 8080,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
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
        raise exit_with(Unanswered(f"the feedback service cannot start: {e}")) from e


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
        typer.Option(
            "--namespace", "-n", help="Only this namespace; may be repeated. Default: all namespaces."
        ),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Write which artifacts are in use, for the clean-up of the artifact store. Writes nothing if
    the cluster cannot be read.
    """
    from modelrollout.cli.references import InUse, in_use

    async def go() -> InUse:
        async with await Kube.connect(kubeconfig, context, component="references") as kube:
            return await in_use(kube, namespaces or [None])

    try:
        usage = asyncio.run(go())
        output.write_text(json.dumps({"artifacts": usage.artifacts, "untouched": usage.untouched}))
    except (KubeError, OSError) as e:
        raise exit_with(Unanswered(f"the references cannot be read: {e}")) from e
    print_line(f"{len(usage.artifacts)} artifacts are in use")
    if usage.untouched:
        print_line(
            f"the clean-up deletes nothing in {', '.join(usage.untouched)}: an object there cannot be read;"
            " the operator's log names it"
        )


async def _wait_until_handled(cluster: Cluster, name: str, request: verbs.Request, limit: float) -> None:
    """Wait for the operator to carry the request out. Raises Refused, and Unanswered after
    ``limit`` seconds.
    """
    deadline = time.monotonic() + limit
    while True:
        rollout = await cluster.rollout(name)
        done, refusal = verbs.answer(rollout.status.handled_verbs, request)
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


async def _watch(cluster: Cluster, rollout: Rollout) -> None:
    first = view.status(rollout, _now(), live=True)
    with until_interrupted(), Live(first, console=console(), screen=True, auto_refresh=False) as live:
        for turn in itertools.count(1):
            await asyncio.sleep(POLL_SECONDS)
            trouble: list[Text] = []
            look = turn % EVENTS_EVERY == 0  # events can only be listed for the whole namespace
            try:
                fresh = await cluster.rollout(rollout.name, pods=True, events=look)
                rollout = fresh if look else replace(fresh, events=rollout.events)
            except Unanswered as e:  # a watch outlives a restart of the API server
                trouble = [Text(f"{e}; showing the last known state\n", "red")]
            live.update(Group(*trouble, view.status(rollout, _now(), live=True)), refresh=True)


def _as_json(rollout: Rollout) -> dict[str, Any]:
    raw = dict(rollout.raw or {})
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
            for r in rollout.revisions
        ],
        "pods": (
            None
            if rollout.replicas is None
            else {name: {"ready": c.ready, "total": c.total} for name, c in rollout.replicas.items()}
        ),
        "events": None if rollout.events is None else [e.__dict__ for e in rollout.events],
        "next": view.what_next(rollout, _now()),
    }


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
