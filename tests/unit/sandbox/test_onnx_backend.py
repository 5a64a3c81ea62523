"""The sandbox's own ONNX backend takes what NVIDIA's takes. Triton's utilities are the few that it
uses; ONNX Runtime is real, and so are the configurations.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from modelrollout.contract.tasks import Batching
from modelrollout.optimizer.model.inspect import check
from modelrollout.testing.object_store import save
from modelrollout.triton.config import parse, render

MODEL_PY = Path(__file__).parents[3] / "tools" / "sandbox" / "images" / "triton" / "model.py"


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    utilities: Any = ModuleType("triton_python_backend_utils")
    utilities.get_model_dir = lambda: str(tmp_path)
    utilities.get_input_tensor_by_name = lambda request, name: request.inputs[name]
    utilities.Tensor, utilities.TritonError = Tensor, Exception
    utilities.InferenceResponse = SimpleNamespace
    utilities.TritonModelException = type("TritonModelException", (Exception,), {})
    monkeypatch.setitem(sys.modules, utilities.__name__, utilities)
    spec = importlib.util.spec_from_file_location("sandbox_onnx_backend", MODEL_PY)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adding(shape: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loaded(backend: ModuleType, model: onnx.ModelProto, batch: int, folder: Path, **changes: Any) -> Any:
    """The model under the configuration that is published, as Triton hands it over."""
    info = check(save(model, folder, "model.onnx"))
    text = render(info.inputs, info.outputs, Batching(max_batch_size=batch), "KIND_CPU")
    config = json_format.MessageToDict(
        parse(text), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for tensor in (*config["input"], *config["output"]):
        tensor |= {"dims": [int(d) for d in tensor["dims"]]} | changes
    instance = backend.TritonPythonModel()
    instance.initialize({"model_config": json.dumps(config)})
    return instance


def answers(instance: Any, *arrays: Any) -> list[np.ndarray]:
    requests = [
        SimpleNamespace(inputs={"x": Tensor("x", array)}, requested_output_names=lambda: ["y"])
        for array in arrays
    ]
    return [response.output_tensors[0].array for response in instance.execute(requests)]


def test_one_number_a_row_is_served_with_an_empty_reshape(backend: ModuleType, tmp_path: Path) -> None:
    """Triton reshapes [n, 1] to [n] before it asks the backend, and back after."""
    instance = loaded(backend, adding(["n"]), 8, tmp_path)
    one, two = answers(instance, np.float32([1]), np.float32([2, 3]))
    assert (one.tolist(), two.tolist()) == ([2], [4, 6])


def test_a_scalar_is_served_as_one_number(backend: ModuleType, tmp_path: Path) -> None:
    (answer,) = answers(loaded(backend, adding([]), 0, tmp_path), np.float32([16000]))
    assert (answer.shape, answer.tolist()) == ((1,), [32000])


def test_other_shapes_are_refused_at_load(backend: ModuleType, tmp_path: Path) -> None:
    for shape, batch, changes in (
        (["n"], 8, {"reshape": {"shape": [2]}}),
        ([], 0, {"dims": [2]}),
        ([4], 0, {"dims": [3]}),
    ):
        with pytest.raises(Exception, match="in the model"):
            loaded(backend, adding(shape), batch, tmp_path, **changes)
