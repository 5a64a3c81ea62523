"""The training image of the documentation does what its page says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.e2e import models

PATH = Path(__file__).resolve().parents[2] / "examples" / "training-image" / "train.py"
SPEC = importlib.util.spec_from_file_location("train", PATH)
assert SPEC and SPEC.loader
train = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(train)


def test_a_perceptron_loses_half_its_units_and_keeps_its_answers(capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load_from_string(models.perceptron(hidden=64))
    before = model.ByteSize()
    train.shrink(model, models.inputs(500, 1)[0], 0.5)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < 0.6 * before
    assert "32 of 64" in capsys.readouterr().out
    x, labels = models.inputs(500, 2)
    [answers] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert np.mean(answers.argmax(1) == labels) > 0.97


def test_another_graph_is_refused_by_name() -> None:
    model = onnx.load_from_string(
        models.classifier(np.ones((models.FEATURES, models.CLASSES), np.float32), "no")
    )
    with pytest.raises(SystemExit, match="knows MatMul, Relu, MatMul"):
        train.shrink(model, models.inputs(10, 1)[0], 0.5)
