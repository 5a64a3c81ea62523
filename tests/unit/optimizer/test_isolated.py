"""Conversion and comparison by themselves, on a format of the test's own: a linear function that is
as right or wrong as the test wants it. No library of models is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.formats import DECLARED, INPUTS, OUT_OF_MEMORY, REFUSAL, isolated, worker
from modelrollout.optimizer.formats.registry import BY_NAME
from modelrollout.optimizer.formats.source_model import Format, SourceModel, Wider
from modelrollout.optimizer.model import inspect
from modelrollout.optimizer.model.data import Arrays

WEIGHTS = np.array([[2.0], [-3.0]])
ROWS = np.random.default_rng(0).normal(size=(40, 2))
GAPS = np.where(np.arange(40)[:, None] == 7, np.nan, ROWS)  # one row of 40


@dataclass
class Linear:
    """A model in "its own library": ``x @ WEIGHTS``, where a gap is ``gap``.

    ``off``: what the converted model adds, by its type of numbers. ``converted_gap``: what it takes
    for a gap. ``batch``: its first dimension. ``fails``: what its conversion to float64 raises.
    """

    probes: Arrays | None = field(default_factory=lambda: {"x": ROWS})
    gap: float = 0.0
    converted_gap: float = 0.0
    off: dict[str, float] = field(default_factory=dict)
    wider: Wider = "No"
    batch: str | int = "n"
    fails: Exception | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def load(self, declared: Declared) -> SourceModel:
        kind = "FP64" if declared.double else "FP32"
        probes = self.probes
        return SourceModel(
            lambda: self._converted(kind),
            lambda arrays: [np.where(np.isnan(arrays["x"]), self.gap, arrays["x"]) @ WEIGHTS],
            (lambda: probes) if probes is not None else None,
            {"precision": kind, **self.notes},
            ("rounded",),
            "No" if declared.double else self.wider,
        )

    def _converted(self, kind: str) -> onnx.ModelProto:
        if kind == "FP64" and self.fails:
            raise self.fails
        dtype = np.float64 if kind == "FP64" else np.float32
        constants = {"gap": self.converted_gap, "weights": WEIGHTS, "off": self.off.get(kind, 0.0)}
        nodes = [
            helper.make_node("IsNaN", ["x"], ["missing"]),
            helper.make_node("Where", ["missing", "gap", "x"], ["filled"]),
            helper.make_node("MatMul", ["filled", "weights"], ["product"]),
            helper.make_node("Add", ["product", "off"], ["y"]),
        ]
        number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("x", number, [self.batch, 2])],
            [helper.make_tensor_value_info("y", number, [self.batch, 1])],
            [numpy_helper.from_array(np.array(value, dtype), name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


Register = Callable[[Callable[[Declared], SourceModel]], None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> Register:
    """Makes a model what XGBoost's loader reads."""

    def use(load: Callable[[Declared], SourceModel]) -> None:
        monkeypatch.setitem(
            BY_NAME,
            "XGBoost",
            Format("XGBoost", (), "a file", lambda start: False, lambda path, folder, said: load(said)),
        )

    return use


def converted(folder: Path) -> isolated.Converted:
    return isolated.convert(folder / "m", "XGBoost", folder, Declared())


def refusal(folder: Path) -> JobError:
    with pytest.raises(JobError) as error:
        converted(folder)
    return error.value


def input_type(made: isolated.Converted) -> str:
    return inspect.check(made.path, "m").inputs[0].datatype


def test_a_right_conversion_says_what_was_compared(tmp_path: Path, register: Register) -> None:
    register(Linear(probes={"x": GAPS}).load)
    made = converted(tmp_path)
    assert made.compared is not None and made.rows is not None
    assert (made.compared["samples"], made.compared["apart"], made.nan) == (40, 0, True)
    assert 0 < made.compared["largestDifference"] < 1e-5  # float32 against float64
    assert (made.notes, made.warnings) == ({"precision": "FP32"}, ("rounded",))
    # a few rows for whoever asks later, none of them with a gap
    assert made.rows["x"].tolist() == ROWS[[0, 1, 2, 3, 4, 5, 6, 8]].astype(np.float32).tolist()


def test_a_wrong_conversion_is_refused_with_its_figures(tmp_path: Path, register: Register) -> None:
    register(Linear(off={"FP32": 0.25}).load)
    error = refusal(tmp_path)
    assert error.reason == "ConversionUnfaithful"
    assert "on 40 of 40 generated samples, by up to 0.25" in error.message


@pytest.mark.parametrize(("wider", "type_of_input"), [("IfUnfaithful", "FP32"), ("First", "FP64")])
def test_float64_is_used_first_or_not_at_all_where_float32_is_right(
    tmp_path: Path, register: Register, wider: Wider, type_of_input: str
) -> None:
    register(Linear(wider=wider).load)
    made = converted(tmp_path)
    assert (input_type(made), made.notes["precision"]) == (type_of_input, type_of_input)


def test_float64_is_used_where_float32_answers_otherwise(tmp_path: Path, register: Register) -> None:
    register(Linear(off={"FP32": 1.0}, wider="IfUnfaithful").load)
    assert input_type(converted(tmp_path)) == "FP64"
    register(Linear(off={"FP32": 1.0}, wider="No").load)
    assert refusal(tmp_path).reason == "ConversionUnfaithful"


@pytest.mark.parametrize("converts", [True, False])
@pytest.mark.parametrize("wider", ["IfUnfaithful", "First"])
def test_where_float64_is_no_better_float32_decides(
    tmp_path: Path, register: Register, wider: Wider, converts: bool
) -> None:
    def model(off: float) -> Callable[[Declared], SourceModel]:
        fails = None if converts else ValueError("no float64 here")
        return Linear(wider=wider, off={"FP32": off, "FP64": 2.0}, fails=fails).load

    register(model(0.0))
    made = converted(tmp_path)
    assert (input_type(made), made.notes["precision"]) == ("FP32", "FP32")
    assert made.compared is not None and made.compared["apart"] == 0
    assert not Declared.model_validate_json((tmp_path / DECLARED).read_bytes()).double
    register(model(1.0))
    error = refusal(tmp_path)
    assert (error.reason, "by up to 1" in error.message) == ("ConversionUnfaithful", True)


def test_gaps_that_are_answered_otherwise_are_a_warning(tmp_path: Path, register: Register) -> None:
    register(Linear(probes={"x": GAPS}, gap=0.0, converted_gap=9.0).load)
    made = converted(tmp_path)
    assert made.compared is not None
    assert (made.compared["samples"], made.compared["apart"], made.nan) == (39, 0, False)
    assert [warning.split(":")[0] for warning in made.warnings] == [
        "rounded",
        "missing values (NaN) are answered otherwise than by the original",
    ]
    register(Linear(probes={"x": GAPS}, converted_gap=9.0, off={"FP32": 1.0}).load)
    assert "on 40 of 40" in refusal(tmp_path).message  # wrong without gaps too: said of all rows


def test_without_known_branches_the_comparison_is_on_generated_rows(
    tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "PARITY_SAMPLES", 50)
    register(Linear(probes=None).load)
    made = converted(tmp_path)
    assert (made.compared, made.rows) == (None, None)
    specs = inspect.check(made.path, "m").inputs
    figures, _ = isolated.parity(tmp_path / "m", "XGBoost", tmp_path, made, specs, None)
    assert (figures["from"], figures["samples"], figures["generated"]) == ("XGBoost", 50, True)
    assert figures["apart"] == 0


@pytest.mark.parametrize("batch", ["n", 16])
def test_the_owners_rows_are_compared_in_batches_that_the_model_takes(
    tmp_path: Path, register: Register, batch: str | int
) -> None:
    register(Linear(probes=None, batch=batch).load)
    made = converted(tmp_path)
    specs = inspect.check(made.path, "m").inputs
    figures, _ = isolated.parity(
        tmp_path / "m", "XGBoost", tmp_path, made, specs, {"x": ROWS.astype(np.float32)}
    )
    with np.load(tmp_path / INPUTS) as parts:
        sizes = [len(parts[name]) for name in parts.files]
    assert sizes == ([16, 16, 16] if batch == 16 else [32, 8])
    assert (figures["samples"], figures["generated"], figures["apart"]) == (40, False, 0)


@pytest.mark.parametrize(
    ("missing", "zeros", "says"),
    [
        (None, True, "2 of 40 samples have zeros"),
        (None, False, None),
        (0.0, True, None),
    ],
)
def test_zeros_that_may_have_been_missing_are_counted(
    tmp_path: Path, register: Register, missing: float | None, zeros: bool, says: str | None
) -> None:
    register(Linear(probes=None, gap=5.0, converted_gap=5.0, notes={"missing": missing}).load)
    made = converted(tmp_path)
    rows = ROWS.astype(np.float32)
    if zeros:
        rows[[3, 5], 0] = 0
    specs = inspect.check(made.path, "m").inputs
    _, warnings = isolated.parity(tmp_path / "m", "XGBoost", tmp_path, made, specs, {"x": rows})
    assert [says in warning for warning in warnings] == ([True] if says else [])


def worker_refusal(folder: Path, task: str, x: NDArray[Any] | None = None) -> tuple[str, str]:
    if x is not None:
        np.savez(folder / INPUTS, **{"0/x": x})  # type: ignore[arg-type]
    assert worker.main([task, "XGBoost", str(folder / "m"), str(folder)]) == ExitCode.BAD_INPUT
    reason, message = json.loads((folder / REFUSAL).read_text())
    return reason, message


def failing(error: Exception, at: str) -> Callable[[Declared], SourceModel]:
    """A model that raises this when it is read, converted or asked."""

    def fail(*_: Any) -> Any:
        raise error

    if at == "load":
        return fail
    good = Linear().load(Declared())
    return lambda _: SourceModel(
        fail if at == "convert" else good.convert, fail if at == "predict" else good.predict
    )


@pytest.mark.parametrize(
    ("at", "task", "reason", "says"),
    [
        ("load", "convert", "ModelInvalid", "XGBoost does not read it: bad magic; save it again"),
        ("load", "predict", "ModelInvalid", "XGBoost does not read it: bad magic; save it again"),
        ("convert", "convert", "ConversionFailed", "XGBoost is not converted: bad magic; export"),
        ("predict", "predict", "ModelInvalid", "XGBoost does not run the model: bad magic; export"),
    ],
)
def test_what_a_library_raises_becomes_a_reason_with_its_first_fact(
    tmp_path: Path, register: Register, at: str, task: str, reason: str, says: str
) -> None:
    register(failing(ValueError("Errors:\n  bad magic\n  at 7"), at))
    refused, message = worker_refusal(tmp_path, task, np.ones((3, 2)))
    assert refused == reason
    assert message.startswith("spec.model.uri: ") and says in message


def test_a_refusal_of_infinities_is_about_the_data(tmp_path: Path, register: Register) -> None:
    register(failing(ValueError("input contains inf"), "predict"))
    reason, message = worker_refusal(tmp_path, "predict", np.array([[1.0, np.inf]]))
    assert (reason, "remove or fill such samples" in message) == ("DataNotFinite", True)


@pytest.mark.parametrize("at", ["load", "convert"])
def test_a_model_that_exhausts_memory_is_not_called_damaged(
    tmp_path: Path, register: Register, at: str
) -> None:
    register(failing(MemoryError(), at))
    assert worker.main(["convert", "XGBoost", str(tmp_path / "m"), str(tmp_path)]) == OUT_OF_MEMORY


def test_an_image_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isolated.versions("ONNX") == {}
    monkeypatch.setattr(isolated, "packages_distributions", lambda: {"xgboost": ["numpy"]})
    assert isolated.versions("XGBoost") == {"xgboost": np.__version__}
    for missing, flavour in (
        (lambda: isolated.versions("Keras"), "tensorflow"),
        (isolated.fil_versions, "trees"),
    ):
        with pytest.raises(JobError) as error:
            missing()
        assert (error.value.reason, f"images.{flavour}" in error.value.message) == ("FlavourMissing", True)


@pytest.mark.parametrize(
    ("ends", "reason", "says"),
    [
        ("kill -SEGV $$", "ModelInvalid", "signal 11"),
        ("exec sleep 20", "ModelTimeout", "does not get done"),
        ("kill -KILL $$", None, ""),
        ("exit 137", None, ""),
    ],
)
def test_a_process_that_does_not_survive_the_file_leaves_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, reason: str | None, says: str
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, ends))
    monkeypatch.setattr(isolated, "SECONDS", 0.1 if reason == "ModelTimeout" else 60.0)
    with pytest.raises(JobError if reason else MemoryError) as error:
        isolated.run_isolated("convert", tmp_path / "m", "LightGBM", tmp_path)
    if isinstance(error.value, JobError):
        assert (error.value.reason, says in error.value.message) == (reason, True)


def test_a_process_gets_the_task_and_nothing_of_the_jobs_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    said = tmp_path / "said"
    monkeypatch.setattr(sys, "executable", program(tmp_path, f'echo "$@" > {said}; env >> {said}'))
    isolated.run_isolated("predict", tmp_path / "m", "LightGBM", tmp_path)
    arguments, *environment = said.read_text().splitlines()
    assert arguments.split()[1:] == [worker.__name__, "predict", "LightGBM", f"{tmp_path}/m", str(tmp_path)]
    names = {line.partition("=")[0] for line in environment}
    assert {"OMP_NUM_THREADS", "PYTHONPATH"} <= names
    assert "AWS_SECRET_ACCESS_KEY" not in names


def test_a_refusal_and_a_fault_of_the_process_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / REFUSAL).write_text(json.dumps(["KerasUntrusted", "spec.model.uri: a Lambda"]))
    monkeypatch.setattr(sys, "executable", program(tmp_path, f"exit {int(ExitCode.BAD_INPUT)}"))
    with pytest.raises(JobError) as refused:
        isolated.run_isolated("convert", tmp_path / "m", "Keras", tmp_path)
    assert (refused.value.reason, refused.value.message) == ("KerasUntrusted", "spec.model.uri: a Lambda")
    monkeypatch.setattr(
        sys, "executable", program(tmp_path, "echo Traceback >&2; echo 'KeyError: 7' >&2; exit 1")
    )
    with pytest.raises(RuntimeError, match=r"^KeyError: 7$"):
        isolated.run_isolated("convert", tmp_path / "m", "Keras", tmp_path)


def program(folder: Path, script: str) -> str:
    """What runs instead of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
