"""Who can be measured: the operator, and a peer for comparison."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from fleet import argo, objects, world
from fleet.api import Api
from fleet.launch import Launch
from fleet.player import Player
from modelrollout.controller.shards import LEASE_NAME
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, Resource
from modelrollout.kube.objects import Object
from sandbox import build_parts, pins
from sandbox.paths import CHECKOUT, cache_root
from sandbox.shell import free_ports


@dataclass(frozen=True)
class Controller:
    """A program that is measured, and what surrounds it."""

    kind: Resource  # what users create, and change for a new version
    lease: str  # how the names of its leaders' Leases begin
    part: pins.Part | None  # what has to be built
    definitions: Callable[[], Iterable[Path]]
    # by the URL of a Prometheus, what the platform team creates
    platform: Callable[[str], Iterable[tuple[Resource, Object]]]
    world: Callable[[Api], AbstractAsyncContextManager[Player]]
    command: Callable[[Launch], list[str]]
    # by number, what a user creates; the last one is of ``kind``
    created: Callable[[int], Iterable[tuple[Resource, Object]]]
    # (number, version) -> a merge patch
    change: Callable[[int, int], Object]
    # whether an object of ``kind`` has come to that version, and nothing is left to do
    is_done: Callable[[Object, int], bool]


def _definitions() -> list[Path]:
    return [
        *sorted((CHECKOUT / "crds").glob("*.yaml")),
        build_parts.crds(cache_root() / "logs" / "crds.log")[0],
    ]


def _command(launch: Launch) -> list[str]:
    """A second life has the same identity, and so need not wait for the Lease."""
    config = launch.folder / f"{launch.name}.json"
    config.write_text(json.dumps(objects.configuration(launch.prometheus) | dict(launch.config)))
    return [
        *(sys.executable, "-m", "modelrollout.cli.main", "run"),
        *("--config", str(config), "--kubeconfig", str(launch.kubeconfig)),
        *("--health-port", str(free_ports(1)[0]), "--identity", launch.name),
        *("--lease-namespace", objects.OPERATORS),
    ]


CONTROLLERS = {
    "ours": Controller(
        kind=MODEL_DEPLOYMENT,
        lease=LEASE_NAME,
        part=None,
        definitions=_definitions,
        platform=lambda _: objects.platform(),
        world=world.world,
        command=_command,
        created=lambda i: [(MODEL_DEPLOYMENT, objects.model(i))],
        change=lambda i, version: {"spec": objects.source(i, version)},
        is_done=objects.is_done,
    ),
    "argo": Controller(
        kind=argo.ROLLOUT,
        lease=argo.LEASE,
        part=pins.ROLLOUTS_PART,
        definitions=argo.definitions,
        platform=argo.platform,
        world=argo.world,
        command=argo.command,
        created=argo.created,
        change=argo.change,
        is_done=argo.is_done,
    ),
}
