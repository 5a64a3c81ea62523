"""The commands for pipelines: ``set``, ``validate`` and ``diff`` on manifests, and ``wait``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.cli import verbs
from modelrollout.cli.cluster import Cluster, Rollout
from modelrollout.cli.command import Timeout, Work, cluster_command, exit_with
from modelrollout.cli.errors import NoSuchObject, Refused, Unanswered
from modelrollout.cli.manifests.diff import consequences
from modelrollout.cli.manifests.documents import read
from modelrollout.cli.manifests.edit import Change, edit
from modelrollout.cli.manifests.files import rewrite
from modelrollout.cli.manifests.judged import checked
from modelrollout.cli.screen import print_line
from modelrollout.kube.kinds import MODEL_DEPLOYMENT
from modelrollout.rollout.policy.rules import spec_in_force

POLL_SECONDS = 1.0
_MISSING = "install the command line with what it needs: pip install 'model-rollout-operator[cli]'"

Files = Annotated[
    list[Path],
    typer.Argument(help="Files or folders with manifests; - is standard input.", metavar="FILE..."),
]


class Goal(StrEnum):
    """What to wait for."""

    promoted = "promoted"
    ended = "ended"


def set_model(
    file: Annotated[Path, typer.Argument(help="File with the ModelDeployment.", dir_okay=False, exists=True)],
    uri: Annotated[str | None, typer.Option("--uri", help="The model's new place.")] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="Digest of its bytes.")] = None,
    signature: Annotated[
        str | None, typer.Option("--signature", help="The new place of its signature, if the file has one.")
    ] = None,
    lineage: Annotated[
        list[str] | None,
        typer.Option("--lineage", help="KEY=VALUE of where it comes from; may be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the ModelDeployment, if the file has several.")
    ] = None,
) -> None:
    """Edit a manifest: another model, with comments and order kept. Prints each field that changed;
    nothing changed is no error.
    """
    try:
        pairs = dict(_pair(text) for text in lineage or ())
        change = Change(uri, sha256, signature, pairs)
        lines = rewrite(file, lambda text: edit(text, change, name))
    except (Refused, OSError, UnicodeDecodeError) as e:
        raise exit_with(Refused(f"{file}: {e}")) from e
    for line in lines or [f"{file}: nothing to change"]:
        print_line(line)


def _pair(text: str) -> tuple[str, str]:
    key, sep, value = text.partition("=")
    if not sep or not key:
        raise Refused(f"--lineage {text}: write KEY=VALUE")
    return key, value


def validate(files: Files) -> None:
    """Check manifests without a cluster: fields, values and rules as the API server does, and what
    RolloutPolicies among the files demand of the ModelDeployments.

    Stores and gateways are not checked: only the operator knows them.
    """
    try:
        from modelrollout.cli.manifests.validate import findings
    except ImportError as e:
        raise exit_with(Refused(f"{_MISSING} ({e.name})")) from e
    try:
        documents, others = read(files)
    except Refused as e:
        raise exit_with(e) from e
    if not documents:
        raise exit_with(Refused(f"the files have no object of {names.GROUP}"))
    lines = findings(documents, others)
    for line in lines:
        print_line(line)
    if lines:
        raise exit_with(Refused(f"{len(lines)} faults in {len(documents)} objects"))
    print_line(f"{len(documents)} objects are valid")


@cluster_command
def diff(files: Files) -> Work:
    """Say what applying manifests would start in the cluster: a rollout, other weights, more pods,
    or nothing, and which fields differ. Changes nothing.
    """

    async def show(cluster: Cluster) -> None:
        documents, _ = read(files)
        deployments = [d for d in documents if d.kind == MODEL_DEPLOYMENT.kind]
        if not deployments:
            raise Refused("the files have no ModelDeployment")
        for document in deployments:
            if not document.name:
                raise Refused(f"{document.where}: metadata.name is missing")
            there = cluster.within(str(document.metadata.get("namespace") or cluster.namespace))
            try:
                live: Rollout | None = await there.rollout(document.name)
            except NoSuchObject:
                live = None
            raw = document.raw.get("spec")
            if isinstance(raw, dict) and live is not None:
                raw = spec_in_force(raw, live.status.defaults or {})
            spec = checked(ModelDeploymentSpec, raw, f"{document.where}: spec")
            print_line(f"{document.where}, namespace {there.namespace}:")
            for line in consequences(spec, live, datetime.now(UTC)):
                print_line(f"  {line}")

    return show


@cluster_command
def wait(
    name: Annotated[str, typer.Argument(help="Name of the ModelDeployment.")],
    goal: Annotated[
        Goal,
        typer.Option(
            "--for",
            help="promoted: the version in spec is stable and serves. ended: its rollout is over, however.",
        ),
    ] = Goal.promoted,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri", help="First wait until spec asks for this model, which a GitOps tool may apply later."
        ),
    ] = None,
    timeout: Timeout = 3600.0,
) -> Work:
    """Wait for a rollout, and say what happens. Exit code 0: the goal is reached; 1: the version
    was not promoted, or waits for a person; 2: not within the time, or no answer at the beginning.
    """

    async def follow(cluster: Cluster) -> None:
        deadline, said, answered = time.monotonic() + timeout, "", False
        while True:
            try:
                state = progress(await cluster.rollout(name), uri, goal)
                answered = True
            except NoSuchObject as e:
                if uri is None:
                    raise
                state = Progress(f"{e}, yet")  # a GitOps tool may create it
            except Unanswered as e:  # a wait outlives a restart of the API server
                if not answered:
                    raise
                state = Progress(str(e))
            if state.text != said:
                print_line(state.text)
                said = state.text
            if state.reached is not None:
                if not state.reached:
                    raise Refused(state.text)
                return
            if time.monotonic() >= deadline:
                raise Unanswered(f"not {goal.value} within {timeout:g} s: {state.text}")
            await asyncio.sleep(POLL_SECONDS)

    return follow


@dataclass(frozen=True)
class Progress:
    """``reached``: whether the goal is; None while it may yet be."""

    text: str
    reached: bool | None = None


def progress(rollout: Rollout, uri: str | None, goal: Goal) -> Progress:
    """How far the rollout of what spec asks for is."""
    if uri is not None and (rollout.spec is None or rollout.spec.model.uri != uri):
        present = rollout.spec.model.uri if rollout.spec else "(not readable)"
        return Progress(f"spec asks for {present} yet")
    conditions = {c.type: c for c in rollout.status.conditions}
    ready, stalled, reconciling = (conditions.get(k) for k in ("Ready", "Stalled", "Reconciling"))
    if rollout.status.observed_generation != rollout.generation or not (ready and stalled and reconciling):
        return Progress("the operator has not seen this spec yet")
    if ready.status == "True":
        return Progress(f"{rollout.name}: {ready.message}", True)
    where = f"{rollout.status.phase}: "
    if rollout.status.canary:
        step = f" at step {rollout.status.step}" if rollout.status.step else ""
        where = f"{rollout.status.canary}{step}: "
    if stalled.status == "True":
        over = verbs.in_flight(rollout) is None
        return Progress(f"{where}{stalled.reason}: {stalled.message}", over and goal is Goal.ended)
    return Progress(f"{where}{reconciling.reason}: {reconciling.message}")
