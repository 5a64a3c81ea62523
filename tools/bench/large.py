"""``python -m bench.large --gib 2.5 --folder DIR``: what each step takes with a model of many GiB,
as lines ``large.STEP.FIGURE: value``.

The model is a chain of large matrices whose weights are a block of random numbers, repeated:
written in seconds, and every step has real work. Each step runs in a process of its own.
``memory_ratio`` is the largest resident set in sizes of the model, without mapped files, which the
kernel may drop; ``resident_ratio`` is with them, ``disk_ratio`` the most that the step has on disk
at a time, in the same sizes. ``--one-file`` lowers the size from which on a model is split, so that
a small one shows what a large one will do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.measure import say
from modelrollout.contract.common import ONE_FILE_BYTES, DataSet, Location
from modelrollout.contract.steps import (
    DistillStep,
    GraphStep,
    HalfPrecisionStep,
    Int4Step,
    Int8Step,
    PruneStep,
    Step,
    Training,
)
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.optimizer.steps.run import field_of, run_steps
from modelrollout.triton.layout import DATA_FILE, MODEL_FILE

FEATURES, WIDTH, CLASSES = 64, 8192, 10
SAMPLES = 32
LAYER_BYTES = 4 * WIDTH * WIDTH
_DATA = DataSet(location=Location(uri="https://here.invalid/"))
_TRAINING = Training(data=_DATA, epochs=1, learning_rate=1e-5, batch_size=8)

STEPS: dict[str, tuple[Step, ...]] = {
    "none": (),
    "graph": (GraphStep(),),
    "float16": (HalfPrecisionStep(),),
    "bfloat16": (HalfPrecisionStep(type="BFloat16"),),
    "int8_dynamic": (Int8Step(method="Dynamic"),),
    "int8_static": (Int8Step(method="Static", calibration=_DATA),),
    "int8_entropy": (Int8Step(method="Static", calibration=_DATA, calibration_method="Entropy"),),
    "int4": (Int4Step(),),
    "prune_unstructured": (PruneStep(granularity="Unstructured", sparsity=0.5),),
    "prune_structured": (PruneStep(sparsity=0.5),),
    "prune_activation": (PruneStep(sparsity=0.5, importance="Activation", training=_TRAINING),),
    "distill": (DistillStep(size=0.1, training=_TRAINING),),
}


def write_model(folder: Path, layers: int) -> Path:
    """A perceptron of that many matrices of WIDTH x WIDTH in float32, split."""
    rng = np.random.default_rng(0)
    block = (rng.normal(size=1 << 20) / np.sqrt(WIDTH)).astype(np.float32).tobytes()
    shapes = (
        {"first": (FEATURES, WIDTH)}
        | {f"w{i}": (WIDTH, WIDTH) for i in range(layers)}
        | {"last": (WIDTH, CLASSES)}
    )
    weights, nodes, at, value = [], [], 0, "x"
    with (folder / DATA_FILE).open("wb") as file:
        for name, (rows, columns) in shapes.items():
            size = 4 * rows * columns
            tensor = TensorProto(
                name=name,
                data_type=TensorProto.FLOAT,
                dims=[rows, columns],
                data_location=TensorProto.EXTERNAL,
            )
            for key, text in (("location", DATA_FILE), ("offset", str(at)), ("length", str(size))):
                tensor.external_data.add(key=key, value=text)
            weights.append(tensor)
            for _ in range(size // len(block)):
                file.write(block)
            file.write(block[: size % len(block)])
            at += size
            nodes.append(helper.make_node("MatMul", [value, name], [f"{name}_product"]))
            nodes.append(helper.make_node("Relu", [f"{name}_product"], [f"{name}_out"]))
            value = f"{name}_out"
    nodes[-1] = helper.make_node("Identity", ["last_product"], [value])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", CLASSES])]
    model = helper.make_model(
        helper.make_graph(nodes, "large", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.save(model, folder / MODEL_FILE)
    return folder / MODEL_FILE


class Peak(threading.Thread):
    """The largest of this process's anonymous memory, and of all that is resident, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.resident = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.sample()

    def sample(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.anonymous = max(self.anonymous, int(status["RssAnon"].split()[0]) << 10)
        self.resident = max(self.resident, int(status["VmRSS"].split()[0]) << 10)

    def end(self) -> None:
        self._ended.set()
        self.join()


def _run(name: str, source: Path, folder: Path, one_file: int, answer: Any) -> None:
    """In a process of its own: the steps, and the result loaded and asked once."""
    tempfile.tempdir = str(folder)
    rng = np.random.default_rng(1)
    data = Data(
        {"x": rng.normal(size=(SAMPLES, FEATURES)).astype(np.float32)}, rng.integers(0, CLASSES, SAMPLES), {}
    )
    recipe = STEPS[name]
    data_sets = {
        f"{field_of(i, step)}.{inner}": data for i, step in enumerate(recipe) for inner in step.sources()
    }
    peak, begun = Peak(), time.monotonic()
    peak.start()
    figures: dict[str, Any] = {}
    try:
        applied = run_steps(
            recipe,
            source,
            folder,
            data_sets,
            {},
            gate=None,
            symmetric=False,
            hardware="any",
            advance=lambda *_: None,
            one_file=one_file,
        )
        check(applied.path)
        open_session(applied.path, "it").run(None, {"x": data.inputs["x"]})
        figures = {"bytes_after": files.size_of(applied.path), "files": len(files.files_of(applied.path))}
    except JobError as error:
        figures = {"refused": f"{error.reason}: {error.message}"}
    except MemoryError:
        figures = {"refused": "OutOfMemory"}
    peak.end()
    size = files.size_of(source)
    ratios = {"memory_ratio": f"{peak.anonymous / size:.2f}", "resident_ratio": f"{peak.resident / size:.2f}"}
    answer.send(figures | ratios | {"seconds": f"{time.monotonic() - begun:.0f}"})


def measure(name: str, source: Path, folder: Path, one_file: int) -> None:
    """Print a step's figures; a process that is killed has none."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        process = context.Process(target=_run, args=(name, source, work, one_file, theirs))
        process.start()
        theirs.close()
        most = 0
        while process.is_alive():
            most = max(
                most,
                sum(
                    path.stat().st_size for path in list(work.rglob("*")) if path.is_file() and path.exists()
                ),
            )
            process.join(0.2)
        try:
            figures = ours.recv()
        except EOFError:
            figures = {"refused": f"the process ended with {process.exitcode}"}
        for figure, value in (figures | {"disk_ratio": f"{most / files.size_of(source):.2f}"}).items():
            say(f"large.{name}.{figure}: {value}")
    finally:
        shutil.rmtree(work)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.large", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--gib", type=float, default=2.5, help="size of the model")
    parser.add_argument("--folder", type=Path, required=True, help="with room for four times the model")
    parser.add_argument(
        "--one-file", type=int, default=ONE_FILE_BYTES, help="bytes from which on a model is split"
    )
    parser.add_argument(
        "--only", nargs="*", choices=sorted(STEPS), default=list(STEPS), help="steps; left out: all"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = write_model(Path(folder), max(1, round(options.gib * (1 << 30) / LAYER_BYTES)))
        say(f"# {files.size_of(source)} bytes")
        for name in options.only:
            measure(name, source, options.folder, options.one_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
