"""A model on disk: ``model.onnx`` alone, or *split*: the graph there, its large weights in
``model.onnx.data`` beside it.

A protobuf message cannot exceed 2 GiB, and to write one takes several times its size in memory. So
what exceeds ONE_FILE_BYTES is split. A split model has a folder to itself, in which its data always
has the same name: it can be copied, published and served without being rewritten.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, numpy_helper

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.reasons import Reason
from modelrollout.triton.layout import DATA_FILE, MODEL_FILE

PROTOBUF_LIMIT = (2 << 30) - 1  # of a message; ONNX goes beyond it only with external data
# what is no larger stays in the graph: shape inference wants to know the constants that are shapes
SMALL_BYTES = 1024
_ALIGNED = 4096  # ONNX Runtime maps weights into memory page by page
_CHUNK = 16 << 20


class Part(NamedTuple):
    """A tensor's bytes in a file."""

    file: Path
    offset: int
    length: int


Origin = Callable[[TensorProto], Part]  # where a tensor lies whose bytes are in another file


def data_of(model: Path) -> Path:
    """Where the large weights of a split model are."""
    return model.with_name(DATA_FILE)


def is_split(model: Path) -> bool:
    """Whether the model's weights lie beside it."""
    return data_of(model).is_file()


def files_of(model: Path) -> dict[str, Path]:
    """The model's files by the names under which they are served."""
    return {MODEL_FILE: model} | ({DATA_FILE: data_of(model)} if is_split(model) else {})


def size_of(model: Path) -> int:
    """Bytes of all of the model's files."""
    return sum(path.stat().st_size for path in files_of(model).values())


def remove(model: Path) -> None:
    """Delete the model; one that is mapped into memory stays readable there."""
    for path in (model, data_of(model)):
        path.unlink(missing_ok=True)


def copy(model: Path, target: Path) -> None:
    """Write the model's files as ``target``."""
    remove(target)
    shutil.copyfile(model, target)
    copy_data(model, target)


def copy_data(model: Path, target: Path) -> None:
    """Put the weights that lie beside the model beside ``target``, too."""
    if is_split(model):
        shutil.copyfile(data_of(model), data_of(target))


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def beside(tensor: TensorProto, model: Path) -> Part:
    """Where an external tensor of a model lies that is already split; raises ValueError for numbers
    that are none.
    """
    where = {entry.key: entry.value for entry in tensor.external_data}
    return Part(
        model.with_name(where.get("location", "")),
        int(where.get("offset", "0")),
        int(where.get("length", "-1")),
    )


def save(model: ModelProto, path: Path, one_file: int = ONE_FILE_BYTES, origin: Origin | None = None) -> None:
    """Write the model: split if one file would have more than ``one_file`` bytes; then ``model`` is
    left without its large weights.

    Weights that are in other files are copied from their ``origin``. Equal models give equal bytes.
    Raises JobError: ModelTooLarge.
    """
    remove(path)
    if (
        not any(map(is_external, model.graph.initializer))
        and sum(len(t.raw_data) for t in model.graph.initializer) <= one_file
    ):
        content = _encoded(model)
        if len(content) <= one_file:
            path.write_bytes(content)
            return
    with data_of(path).open("xb") as file:
        for tensor in model.graph.initializer:
            _move(tensor, file, origin)
        split = file.tell() > 0
    if not split:  # nothing was large enough: the size is in the nodes
        data_of(path).unlink()
    save_graph(model, path)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write the graph alone; weights that lie beside it stay there. Raises JobError:
    ModelTooLarge.
    """
    path.write_bytes(_encoded(model))


def _encoded(model: ModelProto) -> bytes:
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except EncodeError:
        raise graph_too_large() from None
    if len(content) > PROTOBUF_LIMIT:
        raise graph_too_large()
    return content


def graph_too_large() -> JobError:
    """More than protobuf takes, and not in the weights, which can lie outside."""
    return bad_input(
        Reason.MODEL_TOO_LARGE,
        "spec.model.uri: the graph has more than 2 GiB outside of its initializers, in constants of its nodes"
        " or of their bodies; export it with the weights as initializers, which can lie in a file of"
        " their own",
    )


def _move(tensor: TensorProto, file: BinaryIO, origin: Origin | None) -> None:
    """The bytes of a large tensor to the end of the file."""
    if is_external(tensor):
        assert origin is not None
        part = origin(tensor)
        if part.length <= SMALL_BYTES:
            put_inside(tensor, part)
            return
        start, length = _begin(file), part.length
        with part.file.open("rb") as opened:
            opened.seek(part.offset)
            left = length
            while left and (chunk := opened.read(min(left, _CHUNK))):
                left -= file.write(chunk)
    else:
        if tensor.data_type == TensorProto.STRING or not tensor.dims:
            return
        if not tensor.HasField("raw_data"):
            if math.prod(tensor.dims) <= SMALL_BYTES // 8:
                return
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        length = len(tensor.raw_data)
        if length <= SMALL_BYTES:
            return
        start = _begin(file)
        file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", DATA_FILE), ("offset", str(start)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def put_inside(tensor: TensorProto, part: Part) -> None:
    """The tensor's bytes into the message."""
    with part.file.open("rb") as opened:
        opened.seek(part.offset)
        tensor.raw_data = opened.read(part.length)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


def _begin(file: BinaryIO) -> int:
    """The place of the next tensor."""
    start = -(-file.seek(0, os.SEEK_END) // _ALIGNED) * _ALIGNED
    file.seek(start)
    return start


def fold(model: Path, one_file: int = ONE_FILE_BYTES) -> None:
    """Put a split model back into one file where it is small enough for that."""
    if is_split(model) and size_of(model) <= one_file:
        save(onnx.load(model), model, one_file)


def inferred(model: Path) -> ModelProto:
    """The whole model with the shapes of its tensors, also where it is too large for shape
    inference to be given it whole.
    """
    if not is_split(model):
        return onnx.shape_inference.infer_shapes(onnx.load(model))
    with_shapes = onnx.shape_inference.infer_shapes(onnx.load(model, load_external_data=False))
    onnx.load_external_data_for_model(with_shapes, str(model.parent))
    return with_shapes
