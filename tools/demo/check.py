"""Measures the models before they go anywhere: float32 and int8 accuracy on held-out, golden and
live data, sizes and time of one inference.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.table import Table

from demo.data import INPUT, Split
from demo.train import VERSIONS, Models
from modelrollout.optimizer.model import inspect
from modelrollout.optimizer.steps import quantize as optimizer

ort: Any = onnxruntime  # it has no types
SETS = ("heldout", "golden", "live")


@dataclass(frozen=True)
class Measured:
    """One file: accuracy by set, size and median milliseconds of one inference on one thread."""

    accuracy: dict[str, float]
    size: int
    milliseconds: float


@dataclass(frozen=True)
class Row:
    version: str
    float32: Measured
    int8: Measured


def check(models: Models, folder: Path) -> list[Row]:
    """Quantize every model as the operator's Job does and measure both forms."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: Split.load(models.data(name)) for name in SETS}
    calibration = Split.load(models.data("calibration"))
    rows = []
    for version in VERSIONS:
        small = folder / f"{version}.int8.onnx"
        quantize(models.model(version), small, calibration)
        rows.append(Row(version, measure(models.model(version), sets), measure(small, sets)))
    return rows


def quantize(source: Path, target: Path, calibration: Split) -> None:
    """The operator's own optimizer, static int8, as in the ModelDeployment of the story."""
    info = inspect.check(source)
    optimizer.quantize(source, target, info, {INPUT: calibration.images}, symmetric=False, field="check")


def measure(path: Path, sets: dict[str, Split]) -> Measured:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def right(split: Split) -> float:
        answers = [
            session.run(None, {INPUT: split.images[i : i + 250]})[0].argmax(axis=1)
            for i in range(0, len(split), 250)
        ]
        return float(np.mean(np.concatenate(answers) == split.labels))

    image = sets["golden"].images[:1]
    times = []
    for _ in range(15):
        started = time.perf_counter()
        session.run(None, {INPUT: image})
        times.append(time.perf_counter() - started)
    return Measured(
        {name: right(split) for name, split in sets.items()},
        path.stat().st_size,
        1e3 * statistics.median(times),
    )


def table(rows: list[Row]) -> Table:
    out = Table(title="accuracy in float32 and int8", header_style="dim")
    out.add_column("version")
    for name in SETS:
        out.add_column(name, justify="right")
    out.add_column("KiB", justify="right")
    out.add_column("ms", justify="right")
    out.add_column("what it is")
    for row in rows:
        a, b = row.float32, row.int8
        sets = [f"{a.accuracy[s]:.4f} {b.accuracy[s]:.4f}" for s in SETS]
        out.add_row(
            row.version,
            *sets,
            f"{a.size / 1024:.0f} {b.size / 1024:.0f}",
            f"{a.milliseconds:.2f} {b.milliseconds:.2f}",
            VERSIONS[row.version],
        )
    return out


def judge(rows: list[Row]) -> list[str]:
    """What the story needs of the models and does not find."""
    by = {row.version: row for row in rows}
    int8 = {version: row.int8.accuracy for version, row in by.items()}
    v2, v3, v6 = by["v2"].int8, by["v3"].int8, by["v6"]
    wrong = []
    for version in ("v1", "v2", "v3", "v4", "v5"):
        if (drop := by[version].float32.accuracy["heldout"] - int8[version]["heldout"]) > 0.008:
            wrong.append(f"{version} loses {drop:.4f} by int8: close to the gate's budget")
    if not (
        int8["v1"]["golden"] > 0.93
        and int8["v1"]["live"] < v2.accuracy["live"]
        and int8["v1"]["golden"] <= v2.accuracy["golden"] + 0.005
    ):
        wrong.append("v1 must be good, and v2 better")
    if (
        v3.accuracy["golden"] < v2.accuracy["golden"] - 0.008
        or v3.accuracy["live"] > v2.accuracy["live"] - 0.08
    ):
        wrong.append("v3 must be as good as v2 on golden and clearly worse on live data")
    if abs(int8["v4"]["live"] - v2.accuracy["live"]) > 0.01 or by["v4"].int8.milliseconds < 55:
        wrong.append("v4 must answer like v2, and take more than the latency objective")
    if int8["v5"]["golden"] > 0.5:
        wrong.append("v5 must be plainly wrong")
    if (
        v6.float32.accuracy["heldout"] < 0.95
        or v6.float32.accuracy["heldout"] - v6.int8.accuracy["heldout"] < 0.05
    ):
        wrong.append("v6 must be accurate in float32 and lose clearly more than the budget by int8")
    return wrong
