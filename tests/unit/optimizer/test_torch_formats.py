"""PyTorch's models as far as they are told apart, looked at and described without PyTorch;
conversion itself is in tests/e2e/test_flavours.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Tensor, Tensors
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.formats import exported_program, isolated, pt2_archive, torch_script
from modelrollout.optimizer.formats.torch_operators import check_kind, check_target
from modelrollout.optimizer.model.archive import extract
from modelrollout.optimizer.model.inspect import ModelInfo
from modelrollout.testing.object_store import SALT, ObjectStore, object_store
from modelrollout.triton.tensors import TensorSpec
from tests.unit.optimizer.hostile import zipped
from tests.unit.optimizer.torch_files import (
    DATA,
    HOSTILE,
    RELU,
    WEIGHT,
    exported,
    later,
    node,
    packaged,
    program,
    tensor,
    torchscript,
    weighing,
)

X, MASK, SCORES = (
    Tensor(name=n, data_type=t, shape=s)
    for n, t, s in (("x", "FP32", (-1, 4)), ("mask", "BOOL", (-1, -1)), ("scores", "FP32", (-1, 3)))
)
TENSORS = Tensors(inputs=(X,), outputs=(SCORES,))


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture
def flavour(together: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch were there; what is refused before it is asked never finds out."""
    monkeypatch.setattr(
        isolated, "packages_distributions", lambda: {"torch": ["numpy"], "onnxscript": ["numpy"]}
    )


def prepared(
    store: ObjectStore, model: bytes, kind: str | None = "PyTorch", tensors: Tensors | None = TENSORS
) -> TaskResult:
    store.objects["/m"] = model
    task = PrepareTask(
        source=store.http("m"), sha256=hashlib.sha256(model).hexdigest(), format=kind, tensors=tensors,
        artifacts=store.s3("artifacts/a"), salt=SALT,  # type: ignore[arg-type]
    )  # fmt: skip
    return run(task, Progress())


@pytest.mark.usefixtures("flavour")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files_have_reasons(store: ObjectStore, name: str) -> None:
    model, reason, says = HOSTILE[name]
    with pytest.raises(JobError) as error:
        prepared(store, model)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, reason), error.value.message
    assert error.value.message.startswith("spec.model.uri: ")
    assert says in error.value.message


@pytest.mark.usefixtures("flavour")
def test_torchscript_needs_to_be_told_what_it_takes(store: ObjectStore) -> None:
    with pytest.raises(JobError) as error:
        prepared(store, torchscript(), tensors=None)
    assert error.value.reason == "ConfigMissing"
    assert error.value.message.startswith("spec.serving.triton.inputs: ")


def test_an_image_without_pytorch(store: ObjectStore) -> None:
    with pytest.raises(JobError) as error:
        prepared(store, torchscript())
    assert (error.value.reason, "images.pytorch" in error.value.message) == ("FlavourMissing", True)


@pytest.mark.usefixtures("flavour")
@pytest.mark.parametrize(
    "model", [torchscript(), exported(), packaged()], ids=["TorchScript", "exported", "a later one"]
)
def test_a_format_that_was_not_said_names_itself(store: ObjectStore, model: bytes) -> None:
    for said, reason in ((None, "FormatNotSet"), ("ONNX", "FormatMismatch")):
        with pytest.raises(JobError) as error:
            prepared(store, model, said, None)
        assert (error.value.reason, "PyTorch" in error.value.message) == (reason, True)


@pytest.mark.usefixtures("flavour")
@pytest.mark.parametrize(
    ("model", "reason"),
    [(zipped(("m/data.pkl", DATA)), "PickleRefused"), (DATA, "PickleRefused"), (b"text", "FormatMismatch")],
)
def test_a_checkpoint_is_no_program(store: ObjectStore, model: bytes, reason: str) -> None:
    with pytest.raises(JobError) as error:
        prepared(store, model)
    assert (error.value.reason, "export" in error.value.message) == (reason, True)


def test_of_torchscript_only_what_is_needed_is_handed_on(tmp_path: Path) -> None:
    more = (
        ("m/extra/run.py", b"x"),
        ("m/code/__torch__.py.debug_pkl", b"x"),
        ("m/bytecode.pkl", b"x"),
        ("m/data/0", b"w"),
    )
    (tmp_path / "m").write_bytes(torchscript(*more, data=WEIGHT))
    with zipfile.ZipFile(torch_script.checked_copy(tmp_path / "m", tmp_path)) as archive:
        assert sorted(archive.namelist()) == [
            f"model/{name}"
            for name in ("code/__torch__.py", "constants.pkl", "data.pkl", "data/0", "version")
        ]
        assert archive.read("model/data.pkl") == WEIGHT


def copied(tmp_path: Path, model: bytes) -> dict[str, bytes]:
    """What PyTorch is given of it."""
    (tmp_path / "m").write_bytes(model)
    with zipfile.ZipFile(exported_program.checked_copy(tmp_path / "m", tmp_path)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def first_layout(version: dict[str, int]) -> dict[str, Any]:
    """``program()`` without what is there for people."""
    desired = program()
    desired["graph_module"]["graph"]["nodes"][0] |= {"metadata": {}}
    return desired | {"schema_version": version}


SAVED = zipped(("archive/data.pkl", WEIGHT), ("archive/data/0", b"w"))


def test_of_an_exported_program_metadata_and_samples_are_left_behind(tmp_path: Path) -> None:
    copy = copied(tmp_path, exported(weights=SAVED))
    assert json.loads(copy[pt2_archive.PROGRAM]) == first_layout({"major": 8, "minor": 2})
    assert copy[pt2_archive.VERSION].startswith(b"8.")
    assert (copy[pt2_archive.WEIGHTS], copy[pt2_archive.CONSTANTS], copy[pt2_archive.SAMPLES]) == (
        SAVED,
        SAVED,
        b"",
    )


def test_a_later_program_is_told_in_terms_of_the_first_layout(tmp_path: Path) -> None:
    """As PyTorch 2.8 lays it out, with files of torch.save."""
    copy = copied(
        tmp_path,
        packaged(None, ("data/weights/m.pt", SAVED), ("data/constants/m.pt", b""), ("extra/notes.txt", b"x")),
    )
    assert json.loads(copy.pop(pt2_archive.PROGRAM)) == first_layout({"major": 8, "minor": 20})
    assert copy == {
        pt2_archive.VERSION: b"8.0",
        pt2_archive.WEIGHTS: SAVED,
        pt2_archive.CONSTANTS: b"",
        pt2_archive.SAMPLES: b"",
    }


def test_numbers_that_are_not_finite_are_text_in_later_programs() -> None:
    fill = node(
        "torch.ops.aten.full_like.default",
        {"as_float": "-Infinity"},
        {"as_floats": [1.5, "Infinity"]},
        {"as_string": "Infinity"},
    )
    checked = exported_program.checked_program(json.dumps(later(fill)).encode())
    arguments = [specified["arg"] for specified in checked["graph_module"]["graph"]["nodes"][0]["inputs"]]
    assert arguments == [{"as_float": -math.inf}, {"as_floats": [1.5, math.inf]}, {"as_string": "Infinity"}]


def test_checks_of_tensors_are_left_behind() -> None:
    check = node("torch.ops.aten._assert_tensor_metadata.default", {"as_tensor": {"name": "x"}})
    checked = exported_program.checked_program(json.dumps(later(check, RELU)).encode())
    assert [one["target"] for one in checked["graph_module"]["graph"]["nodes"]] == [
        "torch.ops.aten.relu.default"
    ]


def test_a_tensor_may_have_any_name() -> None:
    content = later()
    tensors = content["graph_module"]["graph"]["tensor_values"]
    tensors |= {name: dict(tensors["x"]) for name in ("metadata", "kind", "name", "guards_code")}
    checked = exported_program.checked_program(json.dumps(content).encode())
    assert checked["graph_module"]["graph"]["tensor_values"] == tensors


def stored(tmp_path: Path, model: bytes) -> pt2_archive.Parts:
    (tmp_path / "m").write_bytes(model)
    return pt2_archive.parts(tmp_path / "a", extract(tmp_path / "m", tmp_path / "a", 1 << 20))


def test_tensors_lie_in_their_files_as_it_is_said(tmp_path: Path) -> None:
    said = {
        "w": tensor(3, 4),
        "tied": tensor(4, 3, strides=[1, 4]),
        "part": tensor(2, storage_offset={"as_int": 10}, parameter=False),
        "wide": tensor(6, dtype=8),
        "none": tensor(0, 1 << 40, path="weight_1"),
        "one": tensor(path="weight_2", dtype=12, parameter=False),
    }
    files = [(f"data/weights/weight_{number}", b"\0" * size) for number, size in enumerate((48, 0, 1))]
    archive = stored(tmp_path, packaged(None, *files, weights=said))
    at = tmp_path / "a" / "m" / "data" / "weights"
    assert archive.constants == {}
    assert archive.weights == {
        "w": pt2_archive.Stored(at / "weight_0", "float32", 4, (3, 4), (4, 1), 0, True, True),
        "tied": pt2_archive.Stored(at / "weight_0", "float32", 4, (4, 3), (1, 4), 0, True, True),
        "part": pt2_archive.Stored(at / "weight_0", "float32", 4, (2,), (1,), 10, False, False),
        "wide": pt2_archive.Stored(at / "weight_0", "float64", 8, (6,), (1,), 0, True, True),
        "none": pt2_archive.Stored(at / "weight_1", "float32", 4, (0, 1 << 40), (1 << 40, 1), 0, True, True),
        "one": pt2_archive.Stored(at / "weight_2", "bool", 1, (), (), 0, False, False),
    }


def test_no_tensor_reaches_beyond_its_file(tmp_path: Path) -> None:
    """Every small shape, against the elements that it names, one by one."""
    taken = 0
    for number, (rows, columns, down, across, offset) in enumerate(
        product((1, 2, 4), (1, 3), (0, 1, 3, 5), (0, 1, 4), (0, 3, 11))
    ):
        last = max(offset + row * down + column * across for row in range(rows) for column in range(columns))
        model = weighing(tensor(rows, columns, strides=[down, across], storage_offset={"as_int": offset}))
        (tmp_path / str(number)).mkdir()
        try:
            stored(tmp_path / str(number), model)
            assert last < 12
            taken += 1
        except JobError as error:
            assert (error.reason, last >= 12) == ("ModelInvalid", True)
    assert 0 < taken < number


def test_json_that_would_take_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt2_archive, "JSON_LIMIT_BYTES", 1000)
    for model in (packaged(weights={"w" * 2000: tensor(3)}), packaged(b" " * 2000), exported(b" " * 2000)):
        with pytest.raises(JobError) as error:
            stored(tmp_path, model)
        assert (error.value.reason, "more than 1000" in error.value.message) == ("TooLarge", True)
        shutil.rmtree(tmp_path / "a")


@pytest.mark.parametrize(
    "size",
    [
        "2*s0",
        "Mul(Integer(48), Symbol('s0', positive=True, integer=True))",
        "Max(1, s0 + u12)",
        "FloorDiv(s0 - 1, 2)",
    ],
)
def test_sizes_are_arithmetic(size: str) -> None:
    content = json.dumps(program(batch=size)).encode()
    assert (
        exported_program.checked_program(content)["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0][
            "as_expr"
        ]["expr_str"]
        == size
    )


@pytest.mark.parametrize(
    "kind",
    ["aten::relu", "aten::relu_", "aten::__getitem__", "aten::_convolution", "prim::If", "prim::Constant"],
)
def test_operators_that_compute(kind: str) -> None:
    check_kind(kind)


@pytest.mark.parametrize(
    "target", ["torch.ops.aten.add.Tensor", "torch.ops.aten.relu_.default", "_operator.mul", "torch.sym_max"]
)
def test_targets_that_compute(target: str) -> None:
    check_target(target)


REACHING = [
    "aten::save", "aten::from_file", "aten::rand", "aten::set_", "aten::_convolution_", "prim::PythonOp",
    "prim::CallMethod", "prim::rpc_sync",
    "inductor::_reinterpret_tensor", "quantized::linear", "c10d::send", "mine::relu", "relu", "",
]  # fmt: skip


@pytest.mark.parametrize("kind", REACHING)
def test_operators_that_may_do_more(kind: str) -> None:
    for name, check in ((kind, check_kind), (f"torch.ops.{kind.replace('::', '.')}.default", check_target)):
        with pytest.raises(JobError) as error:
            check(name)
        assert error.value.reason == "OperatorRefused"


def test_inputs_are_in_the_order_of_the_program() -> None:
    ordered = torch_script.in_order
    assert ordered(["mask", "x"], ["mask", "x"], [X, MASK]) == [MASK, X]
    assert ordered(["a", "b"], ["a", "b"], [X, MASK]) == [X, MASK]
    assert ordered(["a", "b"], ["a"], [X]) == [X]
    for arguments, required in (
        (["x", "b"], ["x", "b"]),
        (["a"], ["a"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (["a", "x", "mask"], ["a"]),
    ):
        with pytest.raises(JobError) as error:
            ordered(arguments, required, [X, MASK])
        assert error.value.reason == "TensorUnknown"


def test_examples_have_the_sizes_that_are_said() -> None:
    assert torch_script.example(X).shape == (torch_script.BATCH, 4)
    assert torch_script.example(MASK).shape == (torch_script.BATCH, torch_script.ANY_SIZE)
    assert torch_script.example(MASK).dtype == np.bool_
    assert torch_script.dynamic(MASK) == {0: "n", 1: "mask_1"}
    with pytest.raises(JobError) as error:
        torch_script.example(X.model_copy(update={"data_type": "BYTES"}))
    assert error.value.reason == "TypeUnsupported"


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ((TensorSpec("scores", "FP32", (-1, 3)),), None),
        ((TensorSpec("scores", "FP32", (-1, 5)),), "scores: FP32 [n, 5]"),
        ((TensorSpec("scores", "FP32", (7, 3)),), "scores: FP32 [7, 3]"),
        ((TensorSpec("scores", "FP32", (-1, -1)),), None),
        ((TensorSpec("scores", "FP64", (-1, 3)),), "FP64"),
        ((TensorSpec("scores", "FP32", (-1, 3)), TensorSpec("more", "FP32", (-1,))), "more"),
    ],
)
def test_the_converted_model_is_what_was_said(outputs: tuple[TensorSpec, ...], says: str | None) -> None:
    info = ModelInfo((TensorSpec("x", "FP32", (-1, 4)),), outputs, 18, False)
    if says is None:
        isolated.expect_tensors(TENSORS, info)
        return
    with pytest.raises(JobError) as error:
        isolated.expect_tensors(TENSORS, info)
    assert error.value.reason == "TensorMismatch"
    assert error.value.message.startswith("spec.serving.triton.outputs: ")
    assert says in error.value.message
