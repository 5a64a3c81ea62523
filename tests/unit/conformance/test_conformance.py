"""The permanent check of strangers' models, in a minute, and that it finds what it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance import judge as judging
from conformance.__main__ import excused, run_cases, table
from conformance.corpus import Case, Key, case_of, keys
from conformance.exceptions import EXCEPTIONS
from conformance.judge import FAULTS, Result, error_of, judge
from modelrollout.optimizer.steps.definition import StepDefinition

EVERY = 60  # of the cases; a minute


@pytest.mark.heavy
def test_nothing_is_wrong_unrunnable_or_failed() -> None:
    results = run_cases(keys()[::EVERY])
    assert {r.step for r in results} == set(judging.STEPS)
    assert [r for r in results if r.outcome in FAULTS and not excused(r)] == []
    assert sum(r.outcome == "ok" for r in results) > 150


@pytest.mark.heavy
def test_exceptions_name_cases_that_exist_and_say_why() -> None:
    known = {tuple(key) for key in keys()}
    for (*key, step), why in EXCEPTIONS.items():
        assert tuple(key) in known and step in judging.STEPS and len(why) > 20


@pytest.mark.heavy
def test_constants_are_weights_in_one_set_and_inputs_in_the_other() -> None:
    asis, const = (case_of(Key(kind, "test_matmul_2d")) for kind in ("asis", "const"))
    assert asis.inputs is not None and const.inputs is not None
    assert sorted(asis.inputs) == ["a", "b"] and sorted(const.inputs) == ["a"]
    assert [t.name for t in const.model.graph.initializer] == ["b"]
    file = case_of(Key("asis", "pytorch-converted/test_Conv1d"))
    assert file.inputs is not None and file.model.graph.initializer


def product() -> Case:
    weights = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Case(Key("asis", "product"), model, {"x": np.ones((2, 8), np.float32)})


def outcomes(results: Iterator[Result]) -> dict[str, str]:
    return {r.step: r.outcome for r in results}


def test_every_step_has_an_outcome() -> None:
    assert outcomes(judge(product())) == dict.fromkeys(judging.STEPS, "ok")


def test_a_step_that_harms_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(*_: Any) -> dict[str, Any]:
        raise AssertionError("unforeseen")

    def nothing(*_: Any) -> dict[str, Any]:
        return {}

    for run, outcome in ((crashes, "failed"), (nothing, "nothing")):
        monkeypatch.setattr("modelrollout.optimizer.steps.graph.STEP", StepDefinition(run))
        assert outcomes(judge(product()))["graph"] == outcome
    monkeypatch.setitem(judging.LIMITS, "int8_static", 1e-9)
    assert outcomes(judge(product()))["int8_static"] == "wrong"


def test_errors_are_relative_and_infinite_where_nothing_fits() -> None:
    one = np.array([3.0, 4.0], np.float32)
    assert error_of([one], [one * np.float32(1.1)]) == pytest.approx(0.1, rel=1e-3)
    assert error_of([one], [one.astype(np.float64)]) == np.inf
    assert error_of([one], [np.array([3.0, np.nan], np.float32)]) == np.inf
    assert error_of([np.array([1, 2])], [np.array([1, 3])]) == 0.5
    assert error_of([np.zeros(2, np.float32)], [np.zeros(2, np.float32)]) == 0
    assert error_of([["a"]], [["b"]]) == np.inf  # type: ignore[list-item]


def test_the_table_has_every_fault_and_no_empty_step() -> None:
    key = Key("asis", "m")
    lines = list(table([Result(key, "graph", "ok", "", ""), Result(key, "graph", "wrong", "", "")]))
    assert lines == [
        "conformance.asis.graph.ok: 1",
        "conformance.asis.graph.wrong: 1",
        "conformance.asis.graph.unrunnable: 0",
        "conformance.asis.graph.failed: 0",
    ]
