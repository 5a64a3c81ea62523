"""What is accepted as a model, and why the rest is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model.inspect import all_tensors, check, ending
from modelrollout.testing.object_store import classifier, save
from modelrollout.triton.tensors import TensorSpec

WHOLE = classifier().SerializeToString()


def refusal(path: Path) -> JobError:
    with pytest.raises(JobError) as error:
        check(path)
    assert error.value.code == ExitCode.BAD_INPUT
    assert error.value.message.startswith("spec.model.uri")
    return error.value


def zipped(**names: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return buffer.getvalue()


def test_inputs_and_outputs(tmp_path: Path) -> None:
    info = check(save(classifier(extra_labels=True), tmp_path))
    assert info.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert info.outputs == (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 3)))
    assert (info.opset, info.quantized) == (17, False)


def test_initializers_are_no_inputs(tmp_path: Path) -> None:
    model = classifier()
    model.graph.input.extend([helper.make_tensor_value_info("w1", TensorProto.FLOAT, [4, 64])])
    assert [t.name for t in check(save(model, tmp_path)).inputs] == ["x"]


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        (b"", "ModelTruncated", "empty"),
        (WHOLE[: len(WHOLE) // 2], "ModelTruncated", "upload"),
        (WHOLE[:-1], "ModelTruncated", "upload"),
        (WHOLE[:3], "ModelTruncated", "upload"),
        (pickle.dumps({"weights": [1.0]}), "PickleRefused", "export"),
        (pickle.dumps({"weights": [1.0]}, protocol=2), "PickleRefused", "export"),
        (zipped(archive__data_pkl=b"x"), "PickleRefused", "PyTorch"),
        (zipped(config_json=b"{}", model_weights_h5=b"x"), "NotOnnx", "Keras"),
        (zipped(readme_txt=WHOLE), "NotOnnx", "without an .onnx file"),
        (b"PK\x03\x04broken", "NotOnnx", "zip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "NotOnnx", "HDF5"),
        (b"\x08\x01\x12\x04abcd", "NotOnnx", "SavedModel"),
        (bytes(4) + b"TFL3" + bytes(100), "NotOnnx", "Lite"),
        (b"<!DOCTYPE html><html>login</html>", "NotOnnx", "page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "NotOnnx", "LFS"),
        (b"hello, this is a text", "NotOnnx", "export"),
        (bytes(range(1, 256)) * 20, "NotOnnx", "export"),
        (b"\x08\x08\x12\x04test", "NotOnnx", "no graph"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, reason: str, says: str) -> None:
    (tmp_path / "m").write_bytes(content)
    error = refusal(tmp_path / "m")
    assert error.reason == reason
    assert says in error.message


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    (tmp_path / "m").write_bytes(pickle.dumps(Bomb()))
    assert refusal(tmp_path / "m").reason == "PickleRefused"
    assert not (tmp_path / "ran").exists()


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _external_in_subgraph(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)],
        "b",
        [],
        [helper.make_tensor_value_info("c", 1, [1])],
    )
    model.graph.node.append(helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch))


def _no_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _map_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(
        helper.make_value_info(
            "scores",
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(
                    TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
                )
            ),
        )
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_external, "ExternalData"),
        (_external_in_subgraph, "ExternalData"),
        (lambda m: m.graph.node[0].input.append("nowhere"), "ModelInvalid"),
        (lambda m: m.ClearField("opset_import"), "ModelInvalid"),
        (_no_shape, "ShapeUnknown"),
        (_map_output, "TypeUnsupported"),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.COMPLEX64),
            "TypeUnsupported",
        ),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 29), "TypeUnsupported"),
    ],
)
def test_models_that_cannot_be_served(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    model = classifier()
    change(model)
    assert refusal(save(model, tmp_path)).reason == reason


def test_output_shape_is_inferred_where_it_is_left_out(tmp_path: Path) -> None:
    model = classifier()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert check(save(model, tmp_path)).outputs[0].shape == (-1, 3)


@given(st.integers(0, len(WHOLE)))
@settings(max_examples=200, deadline=None)
def test_every_cut_is_known_as_one(at: int) -> None:
    assert ending(WHOLE[:at]) in ("cut", "whole")
    assert ending(WHOLE) == "whole"


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_end_in_a_reason(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    with pytest.raises(JobError):
        check(path)


def _ways_to_tensors() -> list[tuple[str, ...]]:
    """Fields that lead from a model to a tensor, as the installed ONNX defines its messages; each
    kind of message at most twice on a way.
    """
    actual: list[tuple[str, ...]] = []

    def walk(kind: Any, way: tuple[str, ...], above: tuple[str, ...]) -> None:
        for field in kind.fields:
            name = field.message_type.name if field.message_type else None
            if name == "TensorProto":
                actual.append((*way, field.name))
            elif name is not None and above.count(name) < 2:
                walk(field.message_type, (*way, field.name), (*above, name))

    walk(onnx.ModelProto.DESCRIPTOR, (), ())
    return actual


def test_no_place_for_a_tensor_is_overlooked() -> None:
    """A place that another version of ONNX adds fails here, too."""
    ways = _ways_to_tensors()
    assert ("functions", "attribute_proto", "t") in ways and (
        "graph",
        "node",
        "attribute",
        "g",
        "initializer",
    ) in ways
    for way in ways:
        model = onnx.ModelProto()
        at: Any = model
        for field in way:
            value = getattr(at, field)
            at = value.add() if hasattr(value, "add") else value
        at.name = "hidden"
        assert [t.name for t in all_tensors(model) if t.name] == ["hidden"], ".".join(way)
