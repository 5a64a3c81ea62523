"""TorchScript: a program of PyTorch's own language and its weights, in a zip (``torch.jit.save``).

libtorch reads it in C++, with an unpickler that calls nothing of Python. Two things in a file would
run or be looked up while it is loaded: classes with ``__setstate__``, whose code runs, and pickles
that name classes of libtorch itself. This module refuses both from the text of the file, and drops
what libtorch does not need. Then it compiles the program without running it, and checks every
operator that ``forward`` can reach.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from modelrollout.contract.formats import Tensor, Tensors
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats.source_model import FIELD, SourceModel, invalid
from modelrollout.optimizer.formats.torch_operators import check_kind
from modelrollout.optimizer.model.archive import UNPACKED_LIMIT_BYTES, extract
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.runtime import cpu_limit
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import NUMPY

OPSET = 18
# of the example that export follows the program with: its dynamic dimensions
BATCH, ANY_SIZE = 2, 32

_READ = re.compile(
    r"version|byteorder|\.data/version|data\.pkl|constants\.pkl|code/.+\.py|(data|constants)/[A-Za-z0-9_.-]+"
)
_PICKLED = ("data.pkl", "constants.pkl")
_RUNS = (b"__setstate__", b"__forward_hooks__", b"__forward_pre_hooks__", b"torch.classes")
_STORAGE = re.compile(
    r"torch ([A-Za-z0-9]+Storage|device)|torch\._utils _rebuild_\w+|torch\.jit\._pickle \w+|collections"
    r" OrderedDict"
)
_RESAVE = "save it again with torch.jit.save(torch.jit.script(model), path)"


def load(path: Path, folder: Path, tensors: Tensors | None) -> SourceModel:
    """Raises JobError: ConfigMissing, CodeRefused, OperatorRefused, TensorUnknown, TypeUnsupported,
    ModelInvalid, those of ``archive.extract``.

    ``convert`` raises TensorMismatch.
    """
    if tensors is None:
        raise bad_input(
            Reason.CONFIG_MISSING,
            "spec.serving.triton.inputs: TorchScript does not say what it takes: give inputs and outputs with"
            " name, dataType and shape, the batch first",
        )
    copied = checked_copy(path, folder)
    import torch

    torch.set_num_threads(cpu_limit())
    module = torch.jit.load(str(copied), map_location="cpu").eval()
    if not hasattr(module, "forward"):
        raise invalid("the program has no method forward", _RESAVE)
    for kind in _kinds(module.inlined_graph):
        check_kind(kind)
    arguments = module.forward.schema.arguments[1:]
    inputs = in_order(
        [a.name for a in arguments], [a.name for a in arguments if not a.has_default_value()], tensors.inputs
    )
    types = {tensor.name: numpy_type(tensor) for tensor in (*inputs, *tensors.outputs)}
    names = [tensor.name for tensor in inputs]

    def predict(arrays: Arrays) -> list[NDArray[Any]]:
        with torch.no_grad():
            answer = module(*(torch.from_numpy(arrays[name].astype(types[name])) for name in names))
        return [tensor.numpy() for tensor in flat(answer)]

    def convert() -> ModelProto:
        file = io.BytesIO()
        examples = tuple(torch.from_numpy(example(tensor)) for tensor in inputs)
        with torch.no_grad():
            try:
                count = len(flat(module(*examples)))
            except RuntimeError as error:
                # the interpreter's: a traceback of the program, what is wrong at its end
                line = str(error).strip().rpartition("\n")[2][:300]
                raise _mismatch("inputs", f"the program does not run on such tensors ({line})") from None
            if count != len(tensors.outputs):
                raise _mismatch(
                    "outputs",
                    f"{len(tensors.outputs)} tensors, and the program gives {count}, which have to stand"
                    " there in its order",
                )
            torch.onnx.export(
                module,
                examples,
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=[tensor.name for tensor in tensors.outputs],
                dynamic_axes={tensor.name: dynamic(tensor) for tensor in (*inputs, *tensors.outputs)},
            )
        return onnx.load_from_string(file.getvalue())

    return SourceModel(convert, predict)


def checked_copy(path: Path, folder: Path) -> Path:
    """What libtorch reads of the file, in a file of ours; raises JobError: ModelInvalid,
    CodeRefused and those of ``archive.extract``.
    """
    root = folder / "archive"
    names = {name.partition("/")[2]: root / name for name in extract(path, root, UNPACKED_LIMIT_BYTES)}
    members = {name: file for name, file in names.items() if _READ.fullmatch(name)}
    if not {*_PICKLED, "version"} <= members.keys():
        raise invalid("the archive holds no whole program of TorchScript", _RESAVE)
    copied = folder / "source.pt"
    with zipfile.ZipFile(copied, "w") as archive:
        for name, file in members.items():
            if name.startswith("code/"):
                _check_code(file.read_bytes(), name)
            elif name in _PICKLED:
                _check_pickle(file.read_bytes(), name)
            archive.write(file, f"model/{name}")
    return copied


def _check_code(code: bytes, name: str) -> None:
    forbidden = next((word for word in _RUNS if word in code), None)
    if forbidden is not None:
        raise _code_refused(f"{name} has {forbidden.decode()}")


def _check_pickle(content: bytes, name: str) -> None:
    """Every class that it names is a part of tensors, or of the program itself. Nothing is
    unpickled here.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if not isinstance(argument, str):
                continue
            own = argument.startswith("__torch__") or opcode.name != "GLOBAL" or _STORAGE.fullmatch(argument)
            if "torch.classes" in argument.replace(" ", ".") or not own:
                raise _code_refused(f"{name} names {argument.replace(' ', '.')[:100]}")
    except JobError:
        raise
    except Exception as error:  # pickletools on anything
        raise invalid(f"{name} is damaged ({str(error)[:100]})", _RESAVE) from None


def _code_refused(what: str) -> JobError:
    return bad_input(
        Reason.CODE_REFUSED,
        f"{FIELD}.uri: {what}: code that would run while the file is read, as in models that PyTorch has"
        " quantized; give the float model, and let a step of spec.optimization quantize it, or export the"
        " model to ONNX where it was trained",
    )


def _kinds(graph: Any) -> Iterator[str]:
    """The kinds of all nodes, including those of branches, loops and forked code."""
    for node in graph.nodes():
        yield node.kind()
        for block in node.blocks():
            yield from _kinds(block)
        for name in node.attributeNames():
            kind = node.kindOf(name)
            for inner in [node.g(name)] if kind == "g" else node.gs(name) if kind == "gs" else []:
                yield from _kinds(inner)


def _mismatch(field: str, what: str) -> JobError:
    return bad_input(Reason.TENSOR_MISMATCH, f"spec.serving.triton.{field}: {what}; correct the field")


def in_order(arguments: Sequence[str], required: Sequence[str], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Inputs in the order of the program's arguments: by their names, or, where no name is one of
    them, as they stand.

    Raises JobError: TensorUnknown.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if by_name.keys().isdisjoint(arguments):
        ordered = list(tensors)
        whole = len(required) <= len(tensors) <= len(arguments)
    else:
        ordered = [by_name[name] for name in arguments[: len(tensors)] if name in by_name]
        whole = len(ordered) == len(tensors) and by_name.keys() >= set(required)
    if not whole:
        raise bad_input(
            Reason.TENSOR_UNKNOWN,
            f"spec.serving.triton.inputs: the program takes {list(arguments)[:16]}, and the inputs are"
            f" {list(by_name)[:16]}; name all that it takes",
        )
    return ordered


def numpy_type(tensor: Tensor) -> Any:
    """Raises JobError: TypeUnsupported."""
    dtype = NUMPY.get(tensor.data_type)
    if dtype is None or dtype.kind == "O":
        raise bad_input(
            Reason.TYPE_UNSUPPORTED,
            f"spec.serving.triton: tensor {tensor.name!r} is {tensor.data_type}, which is not converted; take"
            " numbers, and cast",
        )
    return dtype


def dynamic(tensor: Tensor) -> dict[int, str]:
    """Names of dynamic dimensions, the batch the same in all tensors."""
    return {
        axis: f"{tensor.name}_{axis}" if axis else "n" for axis, size in enumerate(tensor.shape) if size < 0
    }


def example(tensor: Tensor) -> NDArray[Any]:
    """Numbers of the tensor's type; whole ones are 0, which is an index of every table."""
    shape = [(ANY_SIZE if axis else BATCH) if size < 0 else size for axis, size in enumerate(tensor.shape)]
    dtype = numpy_type(tensor)
    return (
        np.random.default_rng(0).normal(size=shape).astype(dtype)
        if dtype.kind == "f"
        else np.zeros(shape, dtype)
    )


def flat(answer: Any) -> list[Any]:
    """Tensors of an answer, as export counts them; raises JobError: TypeUnsupported."""
    if isinstance(answer, (tuple, list)):
        return [tensor for part in answer for tensor in flat(part)]
    if not hasattr(answer, "numpy"):
        raise bad_input(
            Reason.TYPE_UNSUPPORTED,
            f"{FIELD}.uri: the model gives a {type(answer).__name__}; let it give a tensor, or a tuple of"
            " tensors",
        )
    return [answer]
