"""Address slots: every sandbox on this machine gets its own ranges, so that two never collide."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox.paths import locked, state_root

SLOTS = 32
NODES = ("gpu", "cpu")


@dataclass(frozen=True)
class Slot:
    """The addresses of one sandbox, all derived from its number."""

    number: int

    @property
    def pods(self) -> str:
        return f"10.{100 + self.number}.0.0/16"

    @property
    def services(self) -> str:
        return f"10.{150 + self.number}.0.0/16"

    @property
    def link(self) -> str:
        """The veth's network: the host has .1, the sandbox .2, its nodes the addresses after
        that.
        """
        return f"10.200.{self.number}.0/28"

    def _link(self, host: int) -> str:
        return f"10.200.{self.number}.{host}"

    @property
    def host(self) -> str:
        return self._link(1)

    @property
    def infra(self) -> str:
        """The address of everything that is a process and not a pod: API server, gateway,
        Prometheus, object store, DNS.
        """
        return self._link(2)

    def node(self, name: str) -> str:
        return self._link(3 + NODES.index(name))

    def node_pods(self, name: str) -> str:
        return f"10.{100 + self.number}.{1 + NODES.index(name)}.0/24"

    @property
    def api_service(self) -> str:
        return f"10.{150 + self.number}.0.1"

    @property
    def dns_service(self) -> str:
        return f"10.{150 + self.number}.0.10"

    @property
    def veth(self) -> str:
        return f"mrsandbox{self.number}"

    @property
    def networks(self) -> tuple[str, ...]:
        return self.pods, self.services, self.link


def choose(taken: Iterable[int], routes: Iterable[str]) -> Slot:
    """The first free slot that no route of the host overlaps."""
    busy = set(taken)
    used = [ipaddress.ip_network(r, strict=False) for r in routes]
    for number in range(SLOTS):
        slot = Slot(number)
        if number in busy:
            continue
        if any(ipaddress.ip_network(n).overlaps(u) for n in slot.networks for u in used if u.version == 4):
            continue
        return slot
    raise RuntimeError(
        f"no free address slot: {len(busy)} of {SLOTS} are taken by other sandboxes, the rest overlap routes"
        " of this machine"
    )


@contextlib.contextmanager
def _locked() -> Iterator[dict[str, int]]:
    """The table sandbox id -> slot number; what the block leaves in it is written back in one
    step.
    """
    table = state_root() / "slots.json"
    state_root().mkdir(parents=True, exist_ok=True)
    with locked("slots"):
        taken: dict[str, int] = json.loads(table.read_text()) if table.exists() else {}
        before = dict(taken)
        yield taken
        if not taken:
            table.unlink(missing_ok=True)
        elif taken != before:
            temporary = table.with_suffix(".tmp")
            temporary.write_text(json.dumps(taken))
            temporary.rename(table)


def living(taken: Mapping[str, int], root: Path) -> dict[str, int]:
    """Slots whose sandbox still has a state folder: the rest was left by something that was removed
    by hand.
    """
    return {name: number for name, number in taken.items() if (root / name).is_dir()}


def acquire(name: str, routes: Iterable[str]) -> Slot:
    with _locked() as taken:
        if name in taken:
            return Slot(taken[name])
        alive = living(taken, state_root())
        for gone in set(taken) - set(alive):
            del taken[gone]
        slot = choose(alive.values(), routes)
        taken[name] = slot.number
        (state_root() / name).mkdir(exist_ok=True)
        return slot


def assigned_numbers() -> dict[str, int]:
    table = state_root() / "slots.json"
    assigned: dict[str, int] = json.loads(table.read_text()) if table.exists() else {}
    return assigned


def slot_of(name: str) -> Slot | None:
    number = assigned_numbers().get(name)
    return None if number is None else Slot(number)


def release(name: str) -> None:
    if not state_root().is_dir():
        return
    with _locked() as taken:
        taken.pop(name, None)
