"""``python -m fleet``: what N ModelDeployments cost the operator, and N Rollouts Argo Rollouts, as
lines ``fleet.WHO.N.PHASE.FIGURE: value``; lines that begin with # are remarks.

wall_s: until the last object was done (restart: until WHO rested); cpu_ms, requests, writes: of
WHO, for each object, until it rested; peak_mb, resident_mb: its memory. The machine is shared by
everything, so wall_s says little on a busy one; the others hold.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from fleet import FleetError
from fleet.controllers import CONTROLLERS
from fleet.run import PHASES, fleet


async def measure(who: str, count: int, phases: list[str], idle: float, folder: Path) -> None:
    """One run."""
    async with fleet(who, count, folder, _say) as run:
        actions = {
            "create": run.create,
            "idle": lambda: run.idle(idle),
            "canary": run.canary,
            "restart": run.restart,
        }
        for phase in phases:
            for line in (await actions[phase]()).lines(who, phase):
                _say(line)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="fleet", description=__doc__)
    parser.add_argument(
        "--objects", type=int, nargs="+", default=[300], help="N; several are measured in turn"
    )
    parser.add_argument("--who", nargs="+", choices=tuple(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--keep", type=Path, help="folder for logs and data, kept; left out: a temporary one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)  # what was started ends with this process
    try:
        for count, who in itertools.product(arguments.objects, arguments.who):
            with tempfile.TemporaryDirectory(prefix="fleet-") as temporary:
                folder = arguments.keep / f"{who}-{count}" if arguments.keep else Path(temporary)
                if arguments.keep and folder.exists():
                    raise FleetError(f"{folder} exists; name another folder, or remove it")
                folder.mkdir(parents=True, exist_ok=True)
                asyncio.run(measure(who, count, arguments.phases, arguments.idle_seconds, folder))
    except FleetError as e:
        sys.stderr.write(f"{e}\n{''.join(traceback.format_exception(e.__cause__)) if e.__cause__ else ''}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
