"""Several replicas as processes on an API server of their own: they share the models, one is
killed in mid-canary, and then they are replaced by replicas with another number of shards.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from fleet import objects
from fleet.run import Stage, stage
from modelrollout.controller.shards import LEASE_NAME, shard_lease, shard_of, together
from modelrollout.kube.cache import Key
from modelrollout.kube.kinds import LEASE, MODEL_DEPLOYMENT

pytestmark = pytest.mark.sandbox

COUNT, SHARDS = 8, 4
PATIENCE_SECONDS = 240.0


async def test_replicas_share_the_models_and_none_has_two_workers(tmp_path: Path) -> None:
    async with stage("ours", tmp_path, print) as on:
        replicas = {f"r{n}": on.process(tmp_path, f"r{n}", shards=SHARDS) for n in range(3)}
        after = on.process(tmp_path, "after")
        try:
            for process in replicas.values():
                process.start()
            await until(lambda: shared_by(on, set(replicas)))
            for i in range(COUNT):
                await on.api.create(MODEL_DEPLOYMENT, objects.model(i))
            await until(lambda: all_done(on, 1))

            await upgrade(on, 2)
            await until(lambda: any_in(on, "Canary"))
            killed = (await holders(on))[shard_lease(0)]
            replicas.pop(killed).kill()
            await until(lambda: shared_by(on, set(replicas)))
            await until(lambda: all_done(on, 2))

            after.start()
            await upgrade(on, 3)
            await until(lambda: any_in(on, "Canary"))
            assert (await holders(on))[LEASE_NAME] == together(SHARDS)
            for process in replicas.values():
                process.stop()
            await until(lambda: all_done(on, 3))
            assert (await holders(on))[LEASE_NAME] == "after"
        finally:
            for process in (*replicas.values(), after):
                process.stop()
    order, wins = read_logs(tmp_path)
    assert len(order) == COUNT
    assert all(names[-1] == "after" for names in order.values())
    for key, names in order.items():
        # two that work at one time take turns in the logs, more often than the shard was won
        assert len(names) <= wins[shard_lease(shard_of(key, SHARDS))] + wins[LEASE_NAME], (key, names)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, "it does not come to that"
        await asyncio.sleep(0.5)


async def holders(on: Stage) -> dict[str, str]:
    """Of the operators' Leases."""
    listed = (await on.api.get(LEASE.path(objects.OPERATORS)))["items"]
    return {
        o["metadata"]["name"]: str(o["spec"].get("holderIdentity") or "")
        for o in listed
        if o["metadata"]["name"].startswith(LEASE_NAME)
    }


async def shared_by(on: Stage, replicas: set[str]) -> bool:
    """Whether these, and no others, hold all shards, none more than one more than another."""
    found = await holders(on)
    held = [found.get(shard_lease(shard)) for shard in range(SHARDS)]
    parts = [held.count(name) for name in replicas]
    return sum(parts) == SHARDS and max(parts) - min(parts) <= 1


async def all_done(on: Stage, version: int) -> bool:
    live = (await on.api.get(MODEL_DEPLOYMENT.path(None)))["items"]
    return len(live) == COUNT and all(objects.is_done(o, version) for o in live)


async def any_in(on: Stage, phase: str) -> bool:
    live = (await on.api.get(MODEL_DEPLOYMENT.path(None)))["items"]
    return any((o.get("status") or {}).get("phase") == phase for o in live)


async def upgrade(on: Stage, version: int) -> None:
    for i in range(COUNT):
        await on.api.patch(MODEL_DEPLOYMENT, objects.model(i), {"spec": objects.source(i, version)})


def read_logs(folder: Path) -> tuple[dict[Key, list[str]], Counter[str]]:
    """Of the operators: who logged a write about each model, in order, and how often each Lease was
    won; that of all by those who hold it alone.
    """
    lines: defaultdict[Key, list[tuple[str, str]]] = defaultdict(list)
    wins: Counter[str] = Counter()
    for file in folder.glob("*.log"):
        for line in file.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("name", "").startswith("model-") and entry["level"] == "info":
                lines[entry["namespace"], entry["name"]].append((entry["ts"], file.stem))
            won = re.fullmatch(f"leading as {file.stem}, by Lease (.+)", entry.get("message", ""))
            wins.update(won.groups() if won else ())
    found = {}
    for key, logged in lines.items():
        names = [name for _, name in sorted(logged)]
        found[key] = [names[0], *(b for a, b in pairwise(names) if a != b)]
    return found, wins
