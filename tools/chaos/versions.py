"""Definitions that are older than the operator, and an operator that is replaced by a later one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from chaos import ChaosError
from chaos.arena import Arena, Subject
from demo.setup import CHART
from modelrollout.api import names
from modelrollout.crdgen.served import pruned_fields

CHECKOUT = Path(__file__).resolve().parents[2]
SERVED_SECONDS = 20.0  # the API server describes a changed definition within this long
EARLIER = "HEAD~50"  # where the clone has no tag
BUILD_SECONDS = 1200


# --- definitions


def lacking(resource: str, kind: str, *path: str) -> tuple[Callable[[Arena], None], Callable[[Arena], None]]:
    """(begin, undo): the definition lacks that field of spec, as an older one does, and the
    operator begins anew, as it does in an upgrade.
    """
    steps = "/properties/".join(("spec", *path))
    at = f"/spec/versions/0/schema/openAPIV3Schema/properties/{steps}"
    patch = json.dumps([{"op": "remove", "path": at}])

    def begin(arena: Arena) -> None:
        undo(arena)  # a run that was killed may have left it so
        arena.cluster.kubectl("patch", "crd", f"{resource}.{names.GROUP}", "--type=json", "-p", patch)
        end = time.monotonic() + SERVED_SECONDS
        while not pruned_fields(_openapi(arena)).get(kind):
            if time.monotonic() > end:
                raise ChaosError(f"the API server still describes {kind} with spec.{'.'.join(path)}")
            time.sleep(0.5)
        arena.operator.restart()

    def undo(arena: Arena) -> None:
        crd = CHECKOUT / "crds" / f"{names.GROUP}_{resource}.yaml"
        arena.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd))

    return begin, undo


def _openapi(arena: Arena) -> dict[str, object]:
    return arena.cluster.get(f"/openapi/v3/apis/{names.API_VERSION}")


# --- an upgrade in mid-canary


def install_earlier(arena: Arena) -> None:
    """Chart, images and operator of an earlier commit: definitions, rights and configuration are
    those of its chart, and the operator under test is a process of its source.
    """
    folder = _folder(arena)
    _remove(folder)
    commit = arena.earlier or _earlier()
    arena.say(f"    building chart and images of {commit}")
    ran = subprocess.run(
        [str(CHECKOUT / "hack" / "at-commit.sh"), commit, str(folder)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if ran.returncode:
        raise ChaosError(f"no chart and images of {commit}: {ran.stderr.strip()[-500:]}")
    made = dict(line.split(" ", 1) for line in ran.stdout.splitlines() if " " in line)
    images = {"image": image(made["operator"]), "optimizer": {"image": image(made["optimizer"])}}
    arena.install(Path(made["chart"]), images)
    arena.write_config()
    arena.operator.environment["PYTHONPATH"] = str(folder / "operator")
    arena.operator.restart()


def upgrade(arena: Arena, subject: Subject) -> None:
    """To the chart and the operator of this checkout."""
    arena.install(CHART)
    arena.write_config()
    arena.operator.environment.pop("PYTHONPATH", None)
    arena.operator.restart()


def end_upgrade(arena: Arena) -> None:
    """Also where it was interrupted before the upgrade."""
    if "PYTHONPATH" in arena.operator.environment:
        upgrade(arena, arena.subjects[0])
    _remove(_folder(arena))


def image(name: str) -> dict[str, str]:
    """``REPOSITORY@DIGEST`` or ``REPOSITORY:TAG`` as the chart's values have it."""
    repository, at, digest = name.partition("@")
    if at:
        return {"repository": repository, "digest": digest}
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}


def _folder(arena: Arena) -> Path:
    return arena.folder / "earlier"


def _remove(folder: Path) -> None:
    """A worktree of an earlier run."""
    if folder.exists():
        _git("worktree", "remove", "--force", str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _earlier() -> str:
    """The newest tag before this commit; without tags, some fifty commits ago."""
    return _git("describe", "--tags", "--abbrev=0", "HEAD~1") or EARLIER


def _git(*arguments: str) -> str:
    ran = subprocess.run(
        ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False
    )
    return ran.stdout.strip() if ran.returncode == 0 else ""
