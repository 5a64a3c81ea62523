"""``python -m bench``: every step on every model, as lines ``MODEL.STEP.FIGURE: value``; lines that
begin with # are remarks.

Ratios are before / after, or after / before, so that more is better. ``speedup`` is that of the
median latency of one image, ``throughput_ratio`` that of batches of 32, both on one thread.
Accuracy is that on MNIST's 10,000 test images, which no training and no step sees; auto chooses by
the first half of them, and its accuracy is that on the second.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import baseline, batching, measure, networks
from bench.measure import say
from bench.triton import TritonMissing
from demo import DemoError
from demo import data as digits
from modelrollout.api.names import canonical_json
from modelrollout.contract.common import DataSet, Location, ModelFile
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import (
    AutoStep,
    DistillStep,
    HalfPrecisionStep,
    Int4Step,
    Int8Step,
    PruneStep,
    Step,
    Training,
)
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import LOGGER
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.pipeline.key import RECIPE_VERSION
from modelrollout.optimizer.steps.distributions import versions_of
from modelrollout.optimizer.steps.run import field_of, run_steps
from modelrollout.triton.client import TritonError

HERE = Location(uri="https://here.invalid/")  # the data is in memory: nothing is fetched
DATA = DataSet(location=HERE)
INT8 = Int8Step(method="Static", calibration=DATA)
DYNAMIC = Int8Step(method="Dynamic")


def _training(epochs: int, rate: float) -> Training:
    return Training(data=DATA, epochs=epochs, learning_rate=rate, batch_size=128)


PRUNE = PruneStep(sparsity=0.7, training=_training(1, 1e-3))
AUTO = AutoStep(data=DATA, training=_training(2, 1e-3), time_limit="20m")
RECIPES: dict[str, dict[str, tuple[Step, ...]]] = {
    "cnn": {
        "int8_static": (INT8,),
        "prune_structured": (PRUNE,),
        "prune_int8": (PRUNE, INT8),
        "distill": (DistillStep(size=0.1, training=_training(2, 2e-3)),),
        "float16": (HalfPrecisionStep(),),
        "int4": (Int4Step(),),
        "auto": (AUTO,),
    },
    "mlp": {
        "int8_dynamic": (DYNAMIC,),
        "int8_static": (INT8,),
        "prune_structured": (PRUNE,),
        "prune_int8": (PRUNE, INT8),
        "distill": (DistillStep(size=0.1, training=_training(3, 2e-3)),),
        "float16": (HalfPrecisionStep(),),
        "int4": (Int4Step(),),
        "auto": (AUTO,),
    },
    "trees": {
        "int8_static": (INT8,),
        "prune_structured": (PRUNE,),
        "float16": (HalfPrecisionStep(),),
        "distill": (DistillStep(student=ModelFile(location=HERE), training=_training(15, 2e-3)),),
    },
}
ALLOWED = {"int8_static": 0.005, "int8_dynamic": 0.005}  # points of accuracy / 100; all others:
ALLOWED_ELSE = 0.01
BATCHED = {"cnn": "prune_int8", "mlp": "int8_static"}  # served as this recipe leaves them
GATE = Gate(data=DATA, metrics=(GateMetric(max_drop=ALLOWED_ELSE),))  # what the search keeps
TARGETS = {
    ("cnn", "batching"): {"throughput_ratio": 2.0},
    ("cnn", "int8_static"): {"size_ratio": 3.7, "speedup": 2.2},
    ("cnn", "prune_structured"): {"size_ratio": 2.0, "speedup": 1.6},
    ("cnn", "prune_int8"): {"size_ratio": 7.0, "speedup": 4.0},
    ("cnn", "distill"): {"parameter_ratio": 10.0},
}


def optimize(model: str, recipe: tuple[Step, ...], source: Path, data: dict[str, Data]) -> Path:
    """The model after the steps, made by the optimizer's own code or taken from the cache. Raises
    JobError.
    """
    path = source
    for step in recipe:
        path = _apply_step(model, step, path, data)
    return path


def _apply_step(model: str, step: Step, source: Path, data: dict[str, Data]) -> Path:
    inputs = {
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "step": step.model_dump(),
        "tools": versions_of(step, model),
        "recipeVersion": RECIPE_VERSION,
    }
    cached = (
        baseline.cache()
        / f"{model}-{step.kind}-{hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:12]}.onnx"
    )
    if cached.exists():
        return cached
    with tempfile.TemporaryDirectory(dir=baseline.cache()) as folder:
        fields = {f"{field_of(0, step)}.{name}": name for name in step.sources()}
        student = Path(folder) / "student.onnx"
        if "student" in fields.values():
            networks.student_of_trees(student, data["training.data"].inputs[networks.INPUT].shape[1])
        applied = run_steps(
            [step],
            source,
            Path(folder),
            {field: data[name] for field, name in fields.items() if name in data},
            {field: student for field, name in fields.items() if name == "student"},
            gate=GATE,
            symmetric=False,
            hardware="any",
            advance=lambda done, total: None,
        )
        for warning in applied.warnings:
            say(f"# {warning}")
        for done in applied.done:
            for candidate in done.get("candidates", ()):
                say(f"# {model}.{step.kind} found {_describe(candidate)}")
        partial = cached.with_suffix(f".{os.getpid()}")
        shutil.copyfile(applied.path, partial)
        partial.rename(cached)
    return cached


def _describe(candidate: dict[str, Any]) -> str:
    """A candidate of a search."""
    c = candidate
    return (
        f"{c['name']}: {c['size']} bytes, {c['milliseconds']} ms, loss {c['loss']:.4f}, up to"
        f" {c['interval'][1]:.4f}, {'within' if c['within'] else 'beyond'} the budget"
    )


def bench(model: str, training: digits.Split, test: digits.Split, only: str | None) -> None:
    """All steps of one model."""
    train = training.part(0, len(training) - 1000)
    source = baseline.trained(model, train, say)
    calibration = baseline.samples(training.part(len(training) - baseline.CALIBRATION, len(training)), model)
    half = len(test) // 2
    held_out = baseline.samples(test, model)
    data = {
        "calibration": calibration,
        "training.data": baseline.samples(train, model),
        "data": baseline.samples(test.part(0, half), model),
    }
    before = measure.classes(source, held_out)
    right = float((before == test.labels).mean())
    say(f"{model}.float32.accuracy: {right:.4f}")
    say(f"{model}.float32.size_bytes: {source.stat().st_size}")
    say(f"{model}.float32.parameters: {measure.parameters(source)}")
    for name, recipe in RECIPES[model].items():
        if only in (None, name):
            started = time.monotonic()
            try:
                path = optimize(model, recipe, source, data)
            except JobError as error:
                say(f"# {model}.{name} does not apply: {error.reason}: {error.message}")
                continue
            say(f"# {model}.{name}: {time.monotonic() - started:.0f} s")
            unseen = held_out.rows(np.arange(half, held_out.n)) if name == "auto" else held_out
            _report_step(model, name, source, path, unseen, before[-unseen.n :])
    if only in (None, "batching") and model in BATCHED:
        _report_batching(model, optimize(model, RECIPES[model][BATCHED[model]], source, data))


def _report_batching(model: str, path: Path) -> None:
    try:
        alone, joined = batching.measure_batching(path)
    except (TritonMissing, TritonError, JobError) as error:
        say(f"# {model}.batching was not measured: {error}")
        return
    ratio = (
        joined.requests_per_second / alone.requests_per_second if alone.requests_per_second else float("nan")
    )
    say(f"{model}.batching.throughput_ratio: {ratio:.3f}")
    say(
        f"{model}.batching.requests_per_second: {alone.requests_per_second:.0f} ->"
        f" {joined.requests_per_second:.0f}"
    )
    say(f"{model}.batching.p99_ms: {alone.p99_ms:.1f} -> {joined.p99_ms:.1f}")
    settings = (
        f"batches of {joined.serving.batch} within {joined.serving.queue_delay_us} us, {joined.in_flight} in"
        " flight"
    )
    objective = f"p99 within {batching.OBJECTIVE_MS:g} ms; {BATCHED[model]}, one instance on the real Triton"
    say(f"# {model}.batching: {settings} (alone {alone.in_flight}); {objective}")
    for figure, least in TARGETS.get((model, "batching"), {}).items():
        say(f"# target {model}.batching.{figure} >= {least}: {'reached' if ratio >= least else 'MISSED'}")


def _report_step(
    model: str, name: str, source: Path, path: Path, held_out: Data, before: NDArray[np.int64]
) -> None:
    assert held_out.labels is not None
    after = measure.classes(path, held_out)
    old, new = measure.speeds([source, path], held_out)
    allowed = ALLOWED.get(name, ALLOWED_ELSE)
    verdict, (low, high) = measure.gate(held_out.labels, before, after, allowed)
    figures = {
        "size_ratio": source.stat().st_size / path.stat().st_size,
        "parameter_ratio": measure.parameters(source) / measure.parameters(path),
        "speedup": old.p50_ms / new.p50_ms,
        "p99_ratio": old.p99_ms / new.p99_ms,
        "throughput_ratio": new.images_per_second / old.images_per_second,
        "accuracy_drop_points": (
            100 * float((before == held_out.labels).mean() - (after == held_out.labels).mean())
        ),
    }
    for figure, value in figures.items():
        say(f"{model}.{name}.{figure}: {value:.3f}")
    say(f"{model}.{name}.p50_ms: {old.p50_ms:.4f} -> {new.p50_ms:.4f}")
    say(f"{model}.{name}.p99_ms: {old.p99_ms:.4f} -> {new.p99_ms:.4f}")
    say(f"{model}.{name}.images_per_second: {old.images_per_second:.0f} -> {new.images_per_second:.0f}")
    say(
        f"{model}.{name}.gate: {verdict} at {100 * allowed:.1f} points, 95 % interval of the loss"
        f" [{100 * low:.2f}, {100 * high:.2f}] points"
    )
    for figure, least in TARGETS.get((model, name), {}).items():
        reached = figures[figure] >= least and figures["accuracy_drop_points"] <= 100 * allowed
        say(
            f"# target {model}.{name}.{figure} >= {least} at <= {100 * allowed:.1f} points:"
            f" {'reached' if reached else 'MISSED'}"
        )


def main() -> None:
    """Measure what the arguments name, by default everything."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--model", choices=sorted(RECIPES))
    parser.add_argument(
        "--step", choices=sorted({"batching", *(step for recipes in RECIPES.values() for step in recipes)})
    )
    arguments = parser.parse_args()
    # `say` below prints what a Job logs in JSON
    LOGGER.setLevel(logging.WARNING)
    flags = set(Path("/proc/cpuinfo").read_text().split())
    vector = "AVX512-VNNI" if "avx512_vnni" in flags else "no AVX512-VNNI"
    say(f"# {platform.machine()}, {os.cpu_count()} cores, {vector}; load average {os.getloadavg()[0]:.1f}")
    say(
        "# "
        + ", ".join(
            f"{name} {version(name)}"
            for name in ("onnxruntime", "onnx", "jax", "scikit-learn", "skl2onnx", "numpy")
        )
    )
    try:
        training, test = digits.whole()
        for model in [arguments.model] if arguments.model else RECIPES:
            bench(model, training, test, arguments.step)
    except (DemoError, JobError, OSError) as error:
        raise SystemExit(f"bench: {error}") from error


if __name__ == "__main__":
    main()
