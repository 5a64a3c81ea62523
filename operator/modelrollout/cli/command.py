"""What the commands share: the options that choose a cluster, and how errors end a command."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, TypeVar

import typer

from modelrollout.api.v1alpha1 import seconds
from modelrollout.cli import cluster as clusters
from modelrollout.cli.cluster import Cluster
from modelrollout.cli.errors import Refused, Unanswered
from modelrollout.cli.screen import print_line
from modelrollout.kube.errors import KubeError

INTERRUPTED = 130  # of a shell: a wait that was broken off has reached nothing

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; default: that of the context.")
]
Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", help="kubeconfig file; default: $KUBECONFIG, or ~/.kube/config.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]


def _seconds(text: str | float) -> float:
    """A duration such as 90s or 2m, or a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        try:
            value = seconds(str(text))
        except ValueError as e:
            raise typer.BadParameter(str(e)) from None
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text} is no time to wait; write for example 90s or 2m")
    return value


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        help="How long to wait at most, for example 90s or 2m; a number alone is seconds.",
        parser=_seconds,
        metavar="DURATION",
    ),
]

T = TypeVar("T")
Work = Callable[[Cluster], Awaitable[None]]


def cluster_command(command: Callable[..., Work]) -> Callable[..., None]:
    """A command that returns its work on a cluster; adds the options that choose the cluster."""

    def run(
        *,
        namespace: Namespace = None,
        kubeconfig: Kubeconfig = None,
        context: Context = None,
        **own: Any,
    ) -> None:
        run_on_cluster(command(**own), namespace, kubeconfig, context)

    return add_options(command, run)


def add_options(command: Callable[..., Any], run: Callable[..., T]) -> Callable[..., T]:
    """Give ``run`` the name, the help and the options of ``command``, before its own options."""
    own, added = (inspect.signature(function, eval_str=True).parameters for function in (command, run))
    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in (*own.values(), *added.values())
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    functools.update_wrapper(run, command)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def run_on_cluster(work: Work, namespace: str | None, kubeconfig: str | None, context: str | None) -> None:
    """Connect to the API server and do the work."""

    async def connect_and_work() -> None:
        try:
            api = await clusters.connect(kubeconfig, context)
        except KubeError as e:
            raise Unanswered(f"no access to a cluster: {e.message}") from e
        cluster = Cluster(api, namespace or clusters.default_namespace(kubeconfig, context))
        try:
            await work(cluster)
        finally:
            await cluster.close()

    run_locally(connect_and_work())


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C is how a user ends what shows something for ever: no error."""
    with suppress(asyncio.CancelledError):  # so asyncio.run tells the work of Ctrl-C
        yield


def run_locally(work: Coroutine[Any, Any, None]) -> None:
    """Do the work; an error becomes one message and an exit code."""
    try:
        asyncio.run(work)
    except (Refused, Unanswered) as e:
        raise exit_with(e) from e
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def exit_with(error: Refused | Unanswered) -> typer.Exit:
    """Print the error; returns what to raise."""
    print_line(f"modelrollout: {error}", err=True)
    return typer.Exit(error.exit_code)
