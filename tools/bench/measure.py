"""Sizes, accuracy, latency and throughput of two models side by side, in turns
(``modelrollout.optimizer.model.timing``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from modelrollout.optimizer.gate.metrics import count_pairs
from modelrollout.optimizer.model.data import Arrays, Data, batches
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import open_session, predict
from modelrollout.optimizer.model.timing import in_turns, open_single
from modelrollout.statistics.paired import decide

LATENCY_RUNS = 2000  # of one image
THROUGHPUT_BATCH = 32
THROUGHPUT_RUNS = 200


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Speed:
    """Of one image: p50 and p99 in milliseconds; of batches: images in a second."""

    p50_ms: float
    p99_ms: float
    images_per_second: float


def speeds(paths: list[Path], data: Data) -> list[Speed]:
    """Of each model, measured in turns."""
    sessions = [open_single(path) for path in paths]
    one = in_turns(sessions, _requests(data, 1), LATENCY_RUNS)
    many = in_turns(sessions, _requests(data, THROUGHPUT_BATCH), THROUGHPUT_RUNS)
    return [
        Speed(
            float(np.median(a)) * 1e3,
            float(np.quantile(a, 0.99)) * 1e3,
            THROUGHPUT_BATCH / float(np.median(b)),
        )
        for a, b in zip(one, many, strict=True)
    ]


def _requests(data: Data, rows: int) -> list[Arrays]:
    return [part for count, part in batches(data.inputs, rows, fill=False) if count == rows]


def classes(path: Path, data: Data) -> NDArray[np.int64]:
    """What the model answers, read as the gate reads it."""
    return predict(
        open_session(path, str(path)), check(path).inputs, data.inputs, str(path), lambda done, total: None
    )[0]


def gate(
    labels: NDArray[np.int64], before: NDArray[np.int64], after: NDArray[np.int64], allowed: float
) -> tuple[str, tuple[float, float]]:
    """(the verdict of the optimizer's gate, 95 % interval of the loss)."""
    decision = decide(count_pairs(labels, before, after), max_drop=allowed, minimum=None)
    return decision.verdict, decision.interval


def parameters(path: Path) -> int:
    """Numbers in the model's constants; zero points and scales are few and count too. Trees keep
    theirs in attributes.
    """
    model = onnx.load(path)
    inside = [
        len(a.floats) + len(a.ints)
        for node in model.graph.node
        if node.domain == "ai.onnx.ml"
        for a in node.attribute
    ]
    return int(sum(np.prod(t.dims, dtype=np.int64) for t in model.graph.initializer) + sum(inside))
