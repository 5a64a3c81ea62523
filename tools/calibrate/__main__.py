"""``python -m calibrate``: lines ``RULE.SCENARIO.RPS.FIGURE: value`` and which targets are
reached on standard output, progress on standard error, a picture where asked.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import defaultdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from calibrate import picture, targets
from calibrate.scenarios import RATES, RESETS, SCENARIOS
from calibrate.simulate import Outcome, Task, figures, labelled

PART = 2_500  # rollouts a process simulates at once: their arrays stay in its cache


def main() -> None:
    parser = argparse.ArgumentParser(prog="calibrate", description=__doc__)
    parser.add_argument(
        "--rollouts",
        type=int,
        default=10_000,
        help="simulated rollouts for each scenario and rate (default 10,000)",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one scenario")
    parser.add_argument("--picture", type=Path, metavar="FOLDER", help="write calibration.svg there")
    options = parser.parse_args()
    if options.picture and options.only:
        parser.error("the picture needs every scenario: leave --only out")
    began = time.monotonic()
    print(
        f"# {_machine()}; {options.rollouts} rollouts for each scenario and rate, seed {options.seed},"
        f" {options.processes} processes",
        flush=True,
    )
    tasks = _tasks(options.rollouts, options.seed, options.only)
    parts: dict[tuple[str, int], list[Any]] = defaultdict(list)
    expected = {
        key: sum(1 for t in tasks if (t.scenario, t.rate) == key)
        for key in {(t.scenario, t.rate) for t in tasks}
    }
    values: dict[str, float] = {}
    with get_context("spawn").Pool(options.processes) as pool:
        for done, (task, result) in enumerate(pool.imap_unordered(labelled, tasks), 1):
            key = (task.scenario, task.rate)
            parts[key].append(result)
            if len(parts[key]) == expected[key]:
                for name, value in _figures(*key, parts.pop(key), options.seed):
                    values[name] = value
                    print(f"{name}: {value:g}", flush=True)
            print(
                f"\r{done} of {len(tasks)} parts, {time.monotonic() - began:.0f} s",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print("\n".join(targets.lines(values)))
    print(f"\n# {time.monotonic() - began:.0f} s; load {os.getloadavg()[2]:.1f}", file=sys.stderr)
    if options.picture:
        (options.picture / "calibration.svg").write_text(picture.draw(values, options.rollouts))


def _tasks(rollouts: int, seed: int, only: str | None) -> list[Task]:
    every = [*(s.name for s in SCENARIOS), RESETS]
    names = [n for n in every if only in (None, n)]
    if not names:
        sys.exit(f"no scenario {only}: choose one of {', '.join(every)}")
    return [
        Task(name, rate, min(PART, rollouts - start), (seed, every.index(name), rate, start))
        for name in names
        for rate in RATES
        for start in range(0, rollouts, PART)
    ]


def _figures(scenario: str, rate: int, results: list[Any], seed: int) -> list[tuple[str, float]]:
    if scenario == RESETS:
        return [(f"ours.{RESETS}.{rate}.false_rollback_rate", float(np.mean(results)))]
    joined = {
        rule: Outcome(
            *(
                np.concatenate([getattr(r[rule], field) for r in results])
                for field in ("seconds", "bad", "samples")
            )
        )
        for rule in results[0]
    }
    return figures(
        next(s for s in SCENARIOS if s.name == scenario), rate, joined, np.random.default_rng((seed, rate))
    )


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    known = Path("/proc/cpuinfo")
    if known.exists():
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in known.read_text().splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    return f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}, {versions}"


if __name__ == "__main__":
    main()
