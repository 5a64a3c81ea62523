"""PyTorch's models as far as they are told apart, looked at and described without PyTorch; conversion itself is in tests/e2e/test_flavours.py."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from modelrollout.api.tasks import ExitCode, PrepareTask, TaskResult, Tensor, Tensors
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.jobs.programs import run
from modelrollout.optimizer import convert
from modelrollout.optimizer.model import ModelInfo
from modelrollout.optimizer.originals import exported_program, torch_script
from modelrollout.optimizer.originals.torch_operators import check_kind, check_target
from modelrollout.triton.tensors import TensorSpec
from tests.unit.optimizer.hostile import zipped
from tests.unit.optimizer.job_fakes import ObjectStore, object_store
from tests.unit.optimizer.torch_files import DATA, HOSTILE, WEIGHT, exported, program, torchscript

X, MASK, SCORES = (
    Tensor(name=n, data_type=t, shape=s) for n, t, s in (("x", "FP32", (-1, 4)), ("mask", "BOOL", (-1, -1)), ("scores", "FP32", (-1, 3)))
)
TENSORS = Tensors(inputs=(X,), outputs=(SCORES,))


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture
def flavour(together: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch were there; what is refused before it is asked never finds out."""
    monkeypatch.setattr(convert, "packages_distributions", lambda: {"torch": ["numpy"], "onnxscript": ["numpy"]})


def prepared(store: ObjectStore, model: bytes, kind: str | None = "PyTorch", tensors: Tensors | None = TENSORS) -> TaskResult:
    store.objects["/m"] = model
    task = PrepareTask(
        source=store.http("m"), sha256=hashlib.sha256(model).hexdigest(), format=kind, tensors=tensors, artifacts=store.s3("artifacts/a"),  # type: ignore[arg-type]
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
@pytest.mark.parametrize("model", [torchscript(), exported(), zipped(("m/archive_format", b"pt2"))], ids=["TorchScript", "exported", "a later one"])
def test_a_format_that_was_not_said_names_itself(store: ObjectStore, model: bytes) -> None:
    for said, reason in ((None, "FormatNotSet"), ("ONNX", "FormatMismatch")):
        with pytest.raises(JobError) as error:
            prepared(store, model, said, None)
        assert (error.value.reason, "PyTorch" in error.value.message) == (reason, True)


@pytest.mark.usefixtures("flavour")
@pytest.mark.parametrize(("model", "reason"), [(zipped(("m/data.pkl", DATA)), "PickleRefused"), (DATA, "PickleRefused"), (b"text", "FormatMismatch")])
def test_a_checkpoint_is_no_program(store: ObjectStore, model: bytes, reason: str) -> None:
    with pytest.raises(JobError) as error:
        prepared(store, model)
    assert (error.value.reason, "export" in error.value.message) == (reason, True)


def test_of_torchscript_only_what_is_needed_is_handed_on(tmp_path: Path) -> None:
    more = (("m/extra/run.py", b"x"), ("m/code/__torch__.py.debug_pkl", b"x"), ("m/bytecode.pkl", b"x"), ("m/data/0", b"w"))
    (tmp_path / "m").write_bytes(torchscript(*more, data=WEIGHT))
    with zipfile.ZipFile(torch_script.checked_copy(tmp_path / "m", tmp_path)) as archive:
        assert sorted(archive.namelist()) == [f"model/{name}" for name in ("code/__torch__.py", "constants.pkl", "data.pkl", "data/0", "version")]
        assert archive.read("model/data.pkl") == WEIGHT


def test_of_an_exported_program_metadata_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(exported())
    with zipfile.ZipFile(exported_program.checked_copy(tmp_path / "m", tmp_path)) as archive:
        found = json.loads(archive.read(exported_program.PROGRAM))
    wanted = program()
    wanted["graph_module"]["graph"]["nodes"][0] |= {"metadata": {}}
    assert found == wanted


@pytest.mark.parametrize("size", ["2*s0", "Mul(Integer(48), Symbol('s0', positive=True, integer=True))", "Max(1, s0 + u12)", "FloorDiv(s0 - 1, 2)"])
def test_sizes_are_arithmetic(size: str) -> None:
    content = json.dumps(program(batch=size)).encode()
    assert exported_program.checked_program(content)["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] == size


@pytest.mark.parametrize("kind", ["aten::relu", "aten::relu_", "aten::__getitem__", "aten::_convolution", "prim::If", "prim::Constant"])
def test_operators_that_compute(kind: str) -> None:
    check_kind(kind)


@pytest.mark.parametrize("target", ["torch.ops.aten.add.Tensor", "torch.ops.aten.relu_.default", "_operator.mul", "torch.sym_max"])
def test_targets_that_compute(target: str) -> None:
    check_target(target)


REACHING = [
    "aten::save", "aten::from_file", "aten::rand", "aten::set_", "aten::_convolution_", "prim::PythonOp", "prim::CallMethod", "prim::rpc_sync",
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
    for arguments, required in ((["x", "b"], ["x", "b"]), (["a"], ["a"]), (["a", "b", "c"], ["a", "b", "c"]), (["a", "x", "mask"], ["a"])):
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
        convert.expect_tensors(TENSORS, info)
        return
    with pytest.raises(JobError) as error:
        convert.expect_tensors(TENSORS, info)
    assert error.value.reason == "TensorMismatch"
    assert error.value.message.startswith("spec.serving.triton.outputs: ")
    assert says in error.value.message
