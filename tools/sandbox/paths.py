"""Where things lie: a cache shared by all checkouts, and one state folder for each checkout."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = "modelrollout-sandbox"
SOURCE = Path(__file__).resolve().parent
CHECKOUT = SOURCE.parents[1]


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    base = Path(value) if value.startswith("/") else Path.home() / default
    return base / NAME


def cache_root() -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_root() -> Path:
    return _xdg("XDG_STATE_HOME", ".local/state")


def sandbox_id(checkout: Path = CHECKOUT) -> str:
    return hashlib.sha256(str(checkout).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class State:
    """The state folder of one sandbox. `down` removes it as a whole."""

    root: Path

    @classmethod
    def of(cls, checkout: Path = CHECKOUT) -> State:
        return cls(state_root() / sandbox_id(checkout))

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "sandbox.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def objectstore(self) -> Path:
        return self.root / "objectstore.json"

    @property
    def images(self) -> Path:
        return self.root / "images.json"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def audit(self) -> Path:
        return self.logs / "audit.log"

    @property
    def socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def parts(self) -> Path:
        return self.etc / "parts.json"

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    def containerd(self, node: str) -> Path:
        return self.root / f"{node}.sock"

    @property
    def cgroup(self) -> str:
        return f"modelrollout-{self.id}"

    def folders(self) -> tuple[Path, ...]:
        return self.root, self.pki, self.etc, self.logs, self.data


@contextlib.contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of this machine. Locks lie in the cache, so that nothing a `down` removes can
    take a lock with it.
    """
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
