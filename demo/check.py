"""Measures the models before they go anywhere: float32 and int8 accuracy on held-out, golden and live data, sizes and time of one inference."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.table import Table

from demo.data import INPUT, Split
from demo.train import VERSIONS, Models

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
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.starts = iter(range(0, len(calibration), 32))

        def get_next(self) -> dict[str, object] | None:
            start = next(self.starts, None)
            return None if start is None else {INPUT: calibration.images[start : start + 32]}

    prepared = target.with_suffix(".prepared")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
    )
    prepared.unlink()


def measure(path: Path, sets: dict[str, Split]) -> Measured:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def right(split: Split) -> float:
        answers = [session.run(None, {INPUT: split.images[i : i + 250]})[0].argmax(axis=1) for i in range(0, len(split), 250)]
        return float(np.mean(np.concatenate(answers) == split.labels))

    image = sets["golden"].images[:1]
    times = []
    for _ in range(15):
        started = time.perf_counter()
        session.run(None, {INPUT: image})
        times.append(time.perf_counter() - started)
    return Measured({name: right(split) for name, split in sets.items()}, path.stat().st_size, 1e3 * statistics.median(times))


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
            row.version, *sets, f"{a.size / 1024:.0f} {b.size / 1024:.0f}", f"{a.milliseconds:.2f} {b.milliseconds:.2f}", VERSIONS[row.version]
        )
    return out
