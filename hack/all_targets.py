"""Run every target of `make help` from a fresh clone with an empty cache, and print a table of
their seconds and results.

    python3 hack/all_targets.py --folder DIR [--rootless] [--only TARGET ...]

All of them take hours and need root. It clones HEAD: what is not committed is not tried. DIR keeps
the clone, the cache and one log for each target.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOT_NEEDED = frozenset(
    {
        "demo",
        "chaos",
        "soak",
        "gitops",
        "test",
        "test-integration",
        "test-e2e",
        "test-gateways",
        "bench-optimizer",  # for its part on Triton
        "bench-fleet",  # for etcd
        "sandbox-up",
        "sandbox-down",
        "sandbox-status",
    }
)
# `pins` changes what the environment is made from, and `clean` removes it
LAST = ("sandbox-status", "sandbox-down", "pins", "clean")


def targets(makefile: str) -> list[str]:
    """Those that `make help` lists, in an order in which they can follow each other."""
    names = re.findall(r"^([a-z0-9-]+):.*?## ", makefile, re.MULTILINE)
    return [name for name in names if name not in LAST] + [name for name in LAST if name in names]


def clone(folder: Path) -> Path:
    checkout = folder / "checkout"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(checkout)], check=True)
    return checkout


def run_target(name: str, checkout: Path, folder: Path) -> tuple[float, str]:
    """(seconds, result) of one target. pip, Go and this project all keep to the cache folder."""
    log = folder / f"{name}.log"
    cache = folder / "cache"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS")
    } | {"XDG_CACHE_HOME": str(cache), "GOMODCACHE": str(cache / "go-modules")}
    started = time.monotonic()
    with log.open("wb") as out:
        code = subprocess.run(
            ["make", name],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    return time.monotonic() - started, "ok" if code == 0 else f"FAILED ({code}): {log}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="empty or not there yet")
    parser.add_argument("--rootless", action="store_true", help="only targets that need no root")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="only these")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    names = [
        name
        for name in targets((ROOT / "Makefile").read_text())
        if (not arguments.only or name in arguments.only) and not (arguments.rootless and name in ROOT_NEEDED)
    ]
    if unknown := set(arguments.only or ()) - set(names):
        parser.error(f"no such target here: {', '.join(sorted(unknown))}")
    checkout = clone(folder)
    results: dict[str, tuple[float, str]] = {}
    try:
        for name in names:
            sys.stdout.write(f"{name} ...\n")
            sys.stdout.flush()
            results[name] = run_target(name, checkout, folder)
    finally:
        if ROOT_NEEDED & set(results) and "sandbox-down" not in results:
            run_target("sandbox-down", checkout, folder)
        sys.stdout.write(f"\n{'target':20}{'seconds':>8}   result\n")
        for name, (seconds, result) in results.items():
            sys.stdout.write(f"{name:20}{seconds:8.0f}   {result}\n")
    return 0 if all(result == "ok" for _, result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
