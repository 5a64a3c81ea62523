"""Real servers of stores on the loopback interface, where `make test-stores` has installed them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

HOME = Path(os.environ.get("MODELROLLOUT_STORES", Path(__file__).parents[2] / ".cache/stores"))
AZURITE = HOME / "node_modules/azurite/dist/src/blob/main.js"
START_SECONDS = 120.0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(program: str, *arguments: str, port: int, log: Path, **environment: str) -> Iterator[str]:
    """The URL of a server that answers at the port."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [program, *arguments], env={**os.environ, **environment}, stdout=output, stderr=output
        ) as process,
    ):
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def installed(path: Path) -> str:
    """The program; skips the test where it is not there."""
    if not path.exists():
        pytest.skip(f"no {path.name}: make test-stores installs it")
    return str(path)


def node() -> str:
    """Node.js; skips the test where it is not there."""
    return shutil.which("node") or pytest.skip("no node")


def secret(root: Path, name: str, keys: Mapping[str, str]) -> str:
    """A Secret as the kubelet mounts it."""
    (root / name).mkdir()
    for key, value in keys.items():
        (root / name / key).write_text(value)
    return name
