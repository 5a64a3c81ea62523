"""``python -m conformance``: the models of the ONNX project's own tests through every step, as
lines ``conformance.SET.STEP.OUTCOME: n``; lines that begin with # are remarks.

SET is asis, the models as they are, or const, the tests of single operators with all inputs but the
first as weights. Exit code 1 where something is wrong, cannot be run, or failed for no reason that
fits, unless it is among the exceptions.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from conformance.corpus import SETS, Key, case_of, keys
from conformance.exceptions import EXCEPTIONS
from conformance.judge import FAULTS, OUTCOMES, STEPS, Result, judge

_CHUNK = 25  # cases that a process takes at once


def run_cases(cases: Sequence[Key]) -> list[Result]:
    """In this process."""
    return [result for key in cases for result in judge(case_of(key))]


def run_all(cases: Sequence[Key], processes: int) -> Iterator[Result]:
    """In a pool of processes, in the order of the cases."""
    parts = [cases[start : start + _CHUNK] for start in range(0, len(cases), _CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        for results in pool.map(run_cases, parts):
            yield from results


def table(results: Iterable[Result]) -> Iterator[str]:
    """The lines; zeros are left out, except of faults."""
    counts: Counter[tuple[str, str, str]] = Counter(
        (r.key.set, r.step, r.outcome) for r in results if not excused(r)
    )
    for set_name in SETS:
        for step in STEPS:
            if not any(counts[set_name, step, outcome] for outcome in OUTCOMES):
                continue
            for outcome in OUTCOMES:
                if (n := counts[set_name, step, outcome]) or outcome in FAULTS:
                    yield f"conformance.{set_name}.{step}.{outcome}: {n}"


def excused(result: Result) -> bool:
    """Whether a fault is a known exception."""
    return result.outcome in FAULTS and (*result.key, result.step) in EXCEPTIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--every", type=int, default=1, help="only every n-th case")
    parser.add_argument("--only", help="only cases whose name has this in it")
    parser.add_argument("--details", help="file for one line a result, separated by tabs")
    arguments = parser.parse_args()
    cases = [key for key in keys() if arguments.only is None or arguments.only in key.name]
    started = time.monotonic()
    results = list(run_all(cases[:: arguments.every], arguments.processes))
    if arguments.details:
        with Path(arguments.details).open("w") as file:
            file.writelines("\t".join((*r.key, *r[1:])) + "\n" for r in results)
    for line in table(results):
        sys.stdout.write(line + "\n")
    faults = [r for r in results if r.outcome in FAULTS and not excused(r)]
    for fault in faults[:50]:
        sys.stdout.write(
            f"# {'.'.join((*fault.key, fault.step, fault.outcome))}: {fault.reason} {fault.message}\n"
        )
    sys.stdout.write(f"# {len(results)} results in {time.monotonic() - started:.0f} s\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
