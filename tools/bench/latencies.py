"""``python -m bench.latencies``: what counting latencies costs the server, as lines
``latencies.FLAGS.FIGURE: value``; lines that begin with # are remarks.

Tritons of the sandbox's image run side by side, one without and one with each set of flags, and get
the same requests in turns, so other load on the machine meets all of them. A ratio is the median
over the rounds of with / without: requests a second (higher is better), and processor time a
request (lower is better). The smallest model shows most: one that answers what it was asked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import triton
from bench.measure import say
from modelrollout.triton.config import parse
from modelrollout.triton.histogram import FAMILY, FLAG
from modelrollout.triton.load import encoded, window
from modelrollout.triton.repository import Repository
from modelrollout.triton.tensors import TensorSpec

NAME = "echo"
FLAGS = {
    "without": (),
    "histogram": (FLAG,),
    "summaries": ("--metrics-config=summary_latencies=true",),
}
PORT = 18571
IN_FLIGHT = 4
X = TensorSpec("x", "FP32", (1,))
CONFIG = (
    'backend: "python" input { name: "x" data_type: TYPE_FP32 dims: [1] }'
    ' output { name: "y" data_type: TYPE_FP32 dims: [1] } instance_group { count: 1 kind: KIND_CPU }'
)
MODEL = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in given]
"""


@dataclass(frozen=True)
class Turn:
    """One window of one server."""

    rate: float  # requests a second
    cpu_ms: float  # of the server's processes, a request


def main() -> None:
    """Measure, and print each ratio with the spread of its rounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.latencies", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a window")
    arguments = parser.parse_args()
    try:
        turns = measure(arguments.rounds, arguments.seconds)
    except triton.TritonMissing as error:
        raise SystemExit(f"bench: {error}") from error
    for flags, measured in turns.items():
        rate, cpu = (statistics.median(getattr(t, f) for t in measured) for f in ("rate", "cpu_ms"))
        say(f"latencies.{flags}.requests_per_second: {rate:.0f}")
        say(f"latencies.{flags}.cpu_ms_per_request: {cpu:.4f}")
        if flags == "without":
            continue
        for figure, field in (("requests_ratio", "rate"), ("cpu_ratio", "cpu_ms")):
            ratios = sorted(
                getattr(a, field) / getattr(b, field) for a, b in zip(measured, turns["without"], strict=True)
            )
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            say(f"latencies.{flags}.{figure}: {statistics.median(ratios):.3f}")
            say(f"# latencies.{flags}.{figure}: half of the rounds {low:.3f} to {high:.3f}")


def measure(rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """The windows of each server, in rounds; raises TritonMissing and TritonError."""
    turns: dict[str, list[Turn]] = {name: [] for name in FLAGS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        models = Path(folder)
        models.chmod(0o755)
        (models / NAME / "1").mkdir(parents=True)
        (models / NAME / "1" / "model.py").write_text(MODEL)
        servers = {}
        for number, (name, flags) in enumerate(FLAGS.items()):
            server = stack.enter_context(triton.serving(models, PORT + 2 * number, flags))
            with Repository(server.address) as repository:
                repository.load(NAME, parse(CONFIG))
            servers[name] = server
        requests = [encoded(NAME, {"x": np.array([i], np.float32)}, (X,)) for i in range(8)]
        for number in range(rounds):
            names = list(servers)
            for name in names if number % 2 else reversed(names):
                turns[name].append(_turn(servers[name], requests, seconds))
        shown = urllib.request.urlopen(servers["histogram"].metrics, timeout=5).read().decode()
        if FAMILY not in shown:
            say("# this Triton has no histogram and ignores its flag: the ratio shows the noise of the rest")
    return turns


def _turn(server: triton.Server, requests: Sequence[bytes], seconds: float) -> Turn:
    before = _cpu_seconds(server.pid)
    seen = window(server.address, requests, IN_FLIGHT, seconds, 100)
    spent = _cpu_seconds(server.pid) - before
    # the window's warm-up has spent some, too: as much a second as the rest
    return Turn(seen.rate, 1000 * spent / (seen.rate * seconds * 1.25))


def _cpu_seconds(pid: int) -> float:
    """Of a process, and of its children."""
    ticks, children = 0, {pid}
    stats = [_stat(p) for p in Path("/proc").glob("[0-9]*/stat")]
    for number, parent, spent in sorted(s for s in stats if s is not None):
        if number in children or parent in children:
            children.add(number)
            ticks += spent
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(path: Path) -> tuple[int, int, int] | None:
    """(number, parent, ticks of the processor) of a process; None: it has ended."""
    try:
        fields = path.read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return int(path.parent.name), int(fields[1]), int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    main()
