"""One case through every step, and what came of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from conformance.corpus import Case, Key
from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.steps import GraphStep, HalfPrecisionStep, Int4Step, Int8Step, StepBase
from modelrollout.contract.tasks import Batching
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model.data import Data, match
from modelrollout.optimizer.model.inspect import ModelInfo, check
from modelrollout.optimizer.model.runtime import ORT_ERRORS, open_session
from modelrollout.optimizer.steps.run import run_steps
from modelrollout.reasons import Reason
from modelrollout.triton.config import parse, render

Outcome = Literal["ok", "wrong", "unrunnable", "failed", "refused", "nothing"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "wrong", "unrunnable", "failed", "refused", "nothing")
FAULTS: frozenset[Outcome] = frozenset({"wrong", "unrunnable", "failed"})

DATA = DataSet(location=Location(uri="https://here.invalid/"))  # nothing is fetched
FIELD = "spec.optimization.steps[0]"

_REFUSED: tuple[type[Exception], ...] = (*ORT_ERRORS, JobError)

# Largest relative error of an output, on the inputs that ranges were measured on.
LIMITS = {
    "graph": 1e-5,
    "float16": 0.02,
    "bfloat16": 0.2,
    "int8_dynamic": 0.2,
    "int8_static": 0.2,
    "int4": 0.2,
}
RECIPES: dict[str, StepBase] = {
    "graph": GraphStep(),
    "int8_dynamic": Int8Step(method="Dynamic"),
    "int8_static": Int8Step(method="Static", calibration=DATA),
    "float16": HalfPrecisionStep(type="Float16"),
    "bfloat16": HalfPrecisionStep(type="BFloat16"),
    # every matrix, however small: the tests have no large ones
    "int4": Int4Step(block_size=16, min_weights=1),
}
STEPS = ("check", "session", "render", *RECIPES)

# What a step says of a model that it has nothing to do for.
_NOTHING = frozenset({Reason.NOTHING_TO_QUANTIZE, Reason.NOTHING_TO_CONVERT, Reason.NOTHING_TO_PRUNE})
# What says no more than that a library tripped: no reason that fits.
_UNFIT = frozenset({Reason.STEP_FAILED, Reason.QUANTIZATION_FAILED, Reason.GRAPH_OPTIMIZATION_FAILED})


class Result(NamedTuple):
    """What came of one step."""

    key: Key
    step: str
    outcome: Outcome
    reason: str
    message: str


@dataclass
class _Judge:
    case: Case
    folder: Path

    def __post_init__(self) -> None:
        self.source = self.folder / "source" / "model.onnx"
        self.source.parent.mkdir()
        onnx.save(self.case.model, self.source)
        self.info: ModelInfo | None = None
        self.session: Any = None
        self.answers: list[NDArray[Any]] | None = None
        self.random = False

    def result(self, step: str, outcome: Outcome, reason: str = "", message: str = "") -> Result:
        return Result(self.case.key, step, outcome, reason, " ".join(message.split())[:400])

    def guarded(self, step: str, action: Callable[[], Result]) -> Result:
        """The outcome of ``action``, or of what it raised."""
        try:
            return action()
        except JobError as error:
            outcome: Outcome = "refused"
            if error.reason in _NOTHING:
                outcome = "nothing"
            elif error.reason in _UNFIT:
                outcome = "failed"
            return self.result(step, outcome, error.reason, error.message)
        except Exception as error:  # a Job would end with InternalError
            return self.result(step, "failed", type(error).__name__, str(error))

    def check(self) -> Result:
        self.info = check(self.source)
        return self.result("check", "ok")

    def open(self) -> Result:
        self.session = open_session(self.source, "spec.model.uri")
        return self.result("session", "ok")

    def render(self) -> Result:
        """The configuration says what the session says."""
        assert self.info is not None
        config = parse(render(self.info.inputs, self.info.outputs, Batching(), "KIND_CPU"))
        for tensors, named in (
            (config.input, self.session.get_inputs()),
            (config.output, self.session.get_outputs()),
        ):
            if [t.name for t in tensors] != [t.name for t in named]:
                return self.result("render", "wrong", "", "other names than the session has")
            for tensor, real in zip(tensors, named, strict=True):
                if tensor.HasField("reshape"):
                    return self.result("render", "unrunnable", "", f"{tensor.name}: reshape without batching")
                shape = [d if isinstance(d, int) and d >= 0 else -1 for d in real.shape] or [1]
                if len(tensor.dims) != len(shape) or any(
                    said >= 0 and said != is_ for said, is_ in zip(tensor.dims, shape, strict=True)
                ):
                    return self.result(
                        "render", "wrong", "", f"{tensor.name}: {list(tensor.dims)} is {list(real.shape)}"
                    )
        return self.result("render", "ok")

    def ask(self) -> None:
        """The original's answers, and whether it gives the same ones twice."""
        assert self.case.inputs is not None
        self.answers = self.session.run(None, self.case.inputs)
        again = self.session.run(None, self.case.inputs)
        self.random = error_of(self.answers, again) > 0

    def apply(self, name: str) -> Result:
        assert self.info is not None and self.case.inputs is not None and self.answers is not None
        step = RECIPES[name]
        folder = self.folder / name
        folder.mkdir()
        # One sample, which is a whole request: few of these models have a batch dimension. int8
        # calibrates with it, and every step is measured on it.
        archive = {
            name: (array.astype(np.str_) if array.dtype.kind == "O" else array)[None]
            for name, array in self.case.inputs.items()
        }
        field = f"{FIELD}.int8.calibration"
        data: dict[str, Data] = {}
        try:
            data[field] = match(archive, DATA, self.info.inputs, field, labelled=False)
        except JobError:
            if name == "int8_static":
                raise
        applied = run_steps(
            [step],
            self.source,
            folder,
            data,
            {},
            gate=None,
            symmetric=False,
            hardware="any",
            advance=lambda *_: None,
        )
        target = applied.path
        if target == self.source:
            return self.result(name, "nothing")
        try:
            after = open_session(target, "the result").run(None, self.case.inputs)
        except _REFUSED as error:
            return self.result(name, "unrunnable", type(error).__name__, str(error))
        error_ = 0.0 if self.random else error_of(self.answers, after)
        if not error_ <= LIMITS[name]:
            return self.result(name, "wrong", "", f"relative error {error_:.3g}")
        return self.result(name, "ok", "", f"relative error {error_:.3g}")


def error_of(before: list[NDArray[Any]], after: list[NDArray[Any]]) -> float:
    """The largest relative error of an output: of numbers the norm of the difference by the norm,
    of everything else the share that differs. What is not finite must be the same; infinite where
    types or shapes differ.
    """
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            worst = max(worst, 0.0 if repr(a) == repr(b) else np.inf)
        elif a.shape != b.shape or a.dtype != b.dtype:
            return np.inf
        elif not a.size:
            continue
        elif a.dtype.kind == "f":
            x, y = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(x)
            if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
                return np.inf
            norm = float(np.linalg.norm(x[finite]))
            off = float(np.linalg.norm(x[finite] - y[finite]))
            worst = max(worst, off / norm if norm else float(off > 1e-6))
        else:
            worst = max(worst, float(np.mean(a != b)))
    return worst


def judge(case: Case) -> Iterator[Result]:
    """What came of every step that can be tried."""
    with tempfile.TemporaryDirectory() as folder:
        one = _Judge(case, Path(folder))
        for name, action in (("check", one.check), ("session", one.open), ("render", one.render)):
            result = one.guarded(name, action)
            yield result
            if result.outcome not in ("ok", "wrong", "unrunnable"):
                return
        if case.inputs is None:
            return
        try:
            one.ask()
        except ORT_ERRORS:
            return  # ONNX Runtime does not answer its own question: nothing to compare with
        for name in RECIPES:
            yield one.guarded(name, lambda name=name: one.apply(name))  # type: ignore[misc]
