"""`make test`: every phase, and at the end a table of what each of them took.

The unit tests run beside the tests on the sandbox, which mostly wait. A failed phase ends the run
only where the next ones need it: the sandbox.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
PYTEST = (sys.executable, "-m", "pytest")
SANDBOX = (sys.executable, "-m", "sandbox")
NICE = "10"
# Two end-to-end tests of different files run at once, for they mostly wait.
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
ON_SANDBOX = (
    ("integration", "tests/integration"),
    ("end to end, two at once", "-m", "not long and not alone", *SIDE_BY_SIDE, "tests/e2e"),
    ("end to end, one at a time", "-m", "not long and alone", "tests/e2e"),
)


@dataclass
class Phase:
    """``parts``: the seconds of each step within; steps overlap."""

    name: str
    seconds: float
    ok: bool
    parts: list[tuple[str, float]] = field(default_factory=list)


def run_phase(name: str, action: Callable[[], int]) -> Phase:
    """Run `action`, which returns an exit code, and time it."""
    started = time.monotonic()
    code = action()
    return Phase(name, time.monotonic() - started, code == 0)


def table(phases: list[Phase], cache: str, total: float) -> str:
    """One line a phase, its parts below it."""
    lines = [f"{'phase':44}{'minutes':>8}   result", f"(the sandbox's cache was {cache})"]
    for phase in phases:
        lines.append(f"{phase.name:44}{phase.seconds / 60:8.1f}   {'ok' if phase.ok else 'FAILED'}")
        lines += [f"    {name:40}{seconds / 60:8.1f}" for name, seconds in phase.parts if seconds >= 3]
    return "\n".join([*lines, f"{'in all':44}{total / 60:8.1f}"]) + "\n"


def cache_state() -> str:
    """Whether the sandbox finds its parts and images in the cache."""
    from sandbox import build_images, build_parts, pins

    cached = [build_parts.cached(part) for part in pins.PARTS]
    cached.append(build_images.find(build_images.TRITON, build_images.triton_key()) is not None)
    return "warm" if all(cached) else "partly warm" if any(cached) else "cold"


def call(*command: str, **environment: str) -> int:
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def start_sandbox() -> Phase:
    steps = BUILD / "sandbox-steps.json"
    steps.unlink(missing_ok=True)
    phase = run_phase("sandbox up", lambda: call(*SANDBOX, "up", "--steps", str(steps)))
    if steps.exists():
        phase.parts = [(step["name"], step["seconds"]) for step in json.loads(steps.read_text())]
    return phase


def run_on_sandbox(phases: list[Phase]) -> None:
    """The tests on the sandbox, with the unit tests beside them."""
    log = BUILD / "test-unit.log"
    started = time.monotonic()
    with log.open("wb") as out:
        # a Triton that gets no processor for a second gives its Python backend up
        unit = subprocess.Popen(
            ("nice", "-n", NICE, *PYTEST, "-q", "-n", "1", "tests/unit", "tests/property"),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # sched(7): a kernel that weighs sessions as groups heeds a nice value only within one
        group = Path(f"/proc/{unit.pid}/autogroup")
        if group.exists():
            group.write_text(NICE)
    try:
        environment = {
            "MODELROLLOUT_KUBECONFIG": output(*SANDBOX, "kubeconfig"),
            "HELM": output(*SANDBOX, "exec", "--", "which", "helm"),
        }
        for name, *chosen in ON_SANDBOX:
            command = (*PYTEST, "--durations=40", "--durations-min=10", *chosen)
            phases.append(run_phase(name, lambda command=command: call(*command, **environment)))
        code = unit.wait()
    finally:
        unit.kill()
    beside = time.monotonic() - started - sum(p.seconds for p in phases[-len(ON_SANDBOX) :])
    phases.append(Phase("unit and property, after those beside them", max(0.0, beside), code == 0))
    text = log.read_text(errors="replace")
    sys.stdout.write(text if code else text.rstrip().rpartition("\n")[2] + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--began", type=float, required=True, help="Unix time at which `make test` began")
    began = parser.parse_args().began
    BUILD.mkdir(exist_ok=True)
    cache = cache_state()
    phases = [Phase("Python environment", time.time() - began, True)]
    try:
        phases.append(run_phase("static checks", lambda: call("make", "--no-print-directory", "lint")))
        if phases[-1].ok:
            phases.append(start_sandbox())
        if phases[-1].ok:
            run_on_sandbox(phases)
    finally:
        sys.stdout.write("\n" + table(phases, cache, time.time() - began))
    return 0 if all(phase.ok for phase in phases) else 1


if __name__ == "__main__":
    sys.exit(main())
