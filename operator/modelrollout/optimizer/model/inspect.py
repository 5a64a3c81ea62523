"""Checks that a file is an ONNX model that can be served, and reads its inputs and outputs.

Nothing in a file is ever executed to find out what it is: formats are recognized by their first
bytes, pickles are refused unread.
"""

from __future__ import annotations

import heapq
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.inliner import inline_local_functions

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.graph import hoist_constants
from modelrollout.reasons import Reason
from modelrollout.triton.layout import DATA_FILE
from modelrollout.triton.tensors import TensorSpec

FIELD = "spec.model.uri"

_CONSTANTS_IR = 4  # the first version of the format in which a constant need not be an input

ELEMENTS_LIMIT = 1 << 31  # of one tensor: what a file says beyond it is a mistake or a trap

# Operators that every ONNX Runtime has. Anything else is a library that would have to be loaded,
# that is, code.
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
# Of com.microsoft, those that read other files or run what they carry.
_REFUSED_OPS = frozenset({"EPContext", "PyOp"})

save_as_external = "save it with onnx.save(model, path, save_as_external_data=True), and pack the folder"

_EXPORT = (
    "export it to ONNX: torch.onnx.export for PyTorch, skl2onnx for scikit-learn, tf2onnx for TensorFlow and"
    " Keras, jax2onnx for JAX"
)

# (offset, bytes, what it is)
_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"GGUF", "a GGUF file"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (8, b'{"', "a safetensors file"),
    (257, b"ustar", "a tar archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file that it points to"),
    (0, b"<", "an HTML or XML page: the store answered with a page instead of the file"),
    (0, b"{", "a JSON file"),
    (0, b"\x93NUMPY", "a numpy array"),
)

_ONNX_TYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}

# Field numbers of ModelProto with their wire types (onnx.proto): 0 varint, 2 length-delimited.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


# What gives an answer to a missing value (NaN): trees, and what looks for it.
_MISSING_OPS = frozenset(
    {"Imputer", "IsNaN", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
)


@dataclass(frozen=True)
class ModelInfo:
    """The inputs and outputs of a checked model, its default opset, and whether it is quantized
    already. ``nan``: a missing value (NaN) is data for it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    quantized: bool
    nan: bool = False


def _pickle(head: bytes) -> bool:
    """Protocols 2 to 5 begin with PROTO and their number; joblib and torch's old format are such
    pickles.
    """
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def sniff(path: Path, field: str) -> JobError | None:
    """Why this is not an ONNX file, if its first bytes show it; else None."""
    with path.open("rb") as file:
        head = file.read(512)
    refused = f"loading it could run any code, so it is never opened here; {_EXPORT}"
    if not head:
        return bad_input(Reason.MODEL_TRUNCATED, f"{field}: the file is empty; upload it again")
    if _pickle(head):
        return bad_input(Reason.PICKLE_REFUSED, f"{field}: the file is a Python pickle; {refused}")
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError):
            names = []
        if any(name.endswith(".pkl") for name in names):
            return bad_input(
                Reason.PICKLE_REFUSED,
                f"{field}: the file is a PyTorch checkpoint, a pickle in a zip archive; {refused}",
            )
        return bad_input(
            Reason.NOT_ONNX,
            f"{field}: the file is a zip archive (Keras, or a packed model) without an .onnx file; {_EXPORT}",
        )
    for offset, magic, what in _FORMATS:
        if head[offset : offset + len(magic)] == magic:
            return bad_input(Reason.NOT_ONNX, f"{field}: the file is {what}, not an ONNX file; {_EXPORT}")
    return None


def _varint(data: memoryview, at: int) -> tuple[int, int] | None:
    """(value, next offset) of a protobuf varint; None when the data ends inside it."""
    value = 0
    for shift in range(10):
        if at + shift >= len(data):
            return None
        byte = data[at + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    return value, at + 10


def ending(data: bytes) -> Literal["whole", "cut", "foreign"]:
    """How a serialized ModelProto ends: at the end of a field, inside one, or it is no such message
    at all.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        tag = _varint(view, at)
        if tag is None:
            return "cut"
        number, wire = tag[0] >> 3, tag[0] & 7
        if _MODEL_FIELDS.get(number) != wire:
            return "foreign"
        value = _varint(view, tag[1])
        if value is None:
            return "cut"
        at = value[1] + (value[0] if wire == 2 else 0)
    return "whole" if at == len(view) else "cut"


def parse(path: Path, field: str = FIELD) -> ModelProto:
    """The message in the file: weights that lie beside it are not read. Raises JobError:
    ModelTooLarge, ModelTruncated, NotOnnx.
    """
    size = path.stat().st_size
    if size > files.PROTOBUF_LIMIT:
        raise bad_input(
            Reason.MODEL_TOO_LARGE,
            f"{field}: {size} bytes in one file, but one of ONNX ends at 2 GiB, as protobuf does;"
            f" {save_as_external}",
        )
    data = path.read_bytes()
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        if ending(data) == "cut":
            raise bad_input(
                Reason.MODEL_TRUNCATED,
                f"{field}: the file ends in the middle (after {size} bytes); upload it again",
            ) from None
        deep = " or nests its graphs deeper than protobuf allows" if ending(data) == "whole" else ""
        raise bad_input(Reason.NOT_ONNX, f"{field}: the file is not an ONNX file{deep}; {_EXPORT}") from None
    if not model.HasField("graph"):
        # A SavedModel is a protobuf too: schema version 1, then graphs in the field that ONNX uses
        # for the producer's name.
        what = (
            "a TensorFlow SavedModel"
            if data.startswith(b"\x08\x01\x12")
            else "not an ONNX file (it holds no graph)"
        )
        raise bad_input(Reason.NOT_ONNX, f"{field}: the file is {what}; {_EXPORT}")
    return model


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(a for node in graph.node for a in node.attribute)


def _node_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the file holds, wherever ONNX lets one lie; one that is overlooked may name
    a file of ours as its data.
    """
    yield from _graph_tensors(model.graph)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)
    for function in model.functions:
        # what a call takes where it says nothing
        yield from _node_tensors(function.attribute_proto)
        yield from _node_tensors(a for node in function.node for a in node.attribute)


def _spec(value: ValueInfoProto, what: str, field: str) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise bad_input(
            Reason.TYPE_UNSUPPORTED,
            f"{field}: {what} {value.name!r} is a {kind or 'thing of no type'}, not a tensor; "
            "export without it (skl2onnx: options={'zipmap': False})",
        )
    tensor = value.type.tensor_type
    datatype = _ONNX_TYPES.get(tensor.elem_type)
    if datatype is None:
        known = TensorProto.DataType.items()
        name = next(
            (name for name, number in known if number == tensor.elem_type),
            f"{tensor.elem_type}, which ONNX does not know",
        )
        raise bad_input(
            Reason.TYPE_UNSUPPORTED,
            f"{field}: {what} {value.name!r} has type {name}; it cannot be served: cast it, for example to"
            " FLOAT",
        )
    if not tensor.HasField("shape"):
        raise bad_input(
            Reason.SHAPE_UNKNOWN,
            f"{field}: {what} {value.name!r} has no shape; declare it at export (dynamic dimensions are"
            " fine)",
        )
    fixed = math.prod(
        d.dim_value for d in tensor.shape.dim if d.WhichOneof("value") == "dim_value" and d.dim_value > 0
    )
    # some exporters write -1 for a dynamic dimension
    if fixed > ELEMENTS_LIMIT or any(d.dim_value < -1 for d in tensor.shape.dim):
        raise bad_input(
            Reason.TENSOR_TOO_LARGE,
            f"{field}: {what} {value.name!r} has shape {[d.dim_value for d in tensor.shape.dim][:8]}; at most"
            f" {ELEMENTS_LIMIT} elements",
        )
    if any(d.WhichOneof("value") == "dim_value" and not d.dim_value for d in tensor.shape.dim):
        raise bad_input(
            Reason.MODEL_INVALID,
            f"{field}: {what} {value.name!r} has a dimension of size 0, which no request fills; name a"
            " dynamic one instead",
        )
    return TensorSpec(
        value.name,
        datatype,
        tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else -1 for d in tensor.shape.dim),
    )


def check(path: Path, field: str = FIELD) -> ModelInfo:
    """Check the file; ``field`` names it in messages.

    Raises JobError: ModelTruncated, PickleRefused, NotOnnx, ModelTooLarge, ExternalData,
    ExternalDataMissing, CustomOperator, TensorTooLarge, ModelInvalid, TypeUnsupported,
    ShapeUnknown.
    """
    refusal = sniff(path, field)
    if refusal:
        raise refusal
    model = parse(path, field)
    external = [t for t in all_tensors(model) if files.is_external(t)]
    for tensor in external:
        _check_external(tensor, path, field)
    _check_operators(model, field)
    for tensor in all_tensors(model):
        _check_size(tensor, field)
    if any(not output.type.tensor_type.HasField("shape") for output in model.graph.output):
        try:
            model = onnx.shape_inference.infer_shapes(model)
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
        ) as error:
            raise _invalid(error, field) from None
    initializers = {t.name for t in model.graph.initializer} | {
        s.values.name for s in model.graph.sparse_initializer
    }
    info = ModelInfo(
        # Up to IR version 3 initializers were listed as inputs too.
        inputs=tuple(
            _spec(value, "input", field) for value in model.graph.input if value.name not in initializers
        ),
        outputs=tuple(_spec(value, "output", field) for value in model.graph.output),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        quantized=any(node.op_type in _QUANTIZED_OPS for node in model.graph.node),
        nan=any(node.op_type in _MISSING_OPS for node in model.graph.node),
    )
    if not info.inputs or not info.outputs:
        missing = "outputs" if info.inputs else "inputs"
        raise bad_input(
            Reason.MODEL_INVALID,
            f"{field}: the model has no {missing}, so no request can be made; export it with what it"
            " takes and gives",
        )
    if 0 < model.ir_version < _CONSTANTS_IR:
        model.ir_version = (
            _CONSTANTS_IR  # ONNX Runtime reads old files by the new rule: constants are no inputs
        )
    try:
        # only with a path does it find what lies beside
        onnx.checker.check_model(str(path) if external else model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise _invalid(error, field) from None
    return info


def _invalid(error: Exception, field: str) -> JobError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return bad_input(
        Reason.MODEL_INVALID,
        f"{field}: the ONNX checker says: {line}; export the model again, with a released opset",
    )


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes with those of the graphs inside them; protobuf itself bounds the depth."""
    for node in nodes:
        yield node
        yield from _inside(node.attribute)


def _inside(attributes: Iterable[AttributeProto]) -> Iterator[NodeProto]:
    for attribute in attributes:
        for graph in (attribute.g, *attribute.graphs):
            yield from _nodes(graph.node)


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from _nodes(model.graph.node)
    for training in model.training_info:
        yield from _nodes([*training.initialization.node, *training.algorithm.node])
    for function in model.functions:
        yield from _of_function(function)


def _of_function(function: FunctionProto) -> Iterator[NodeProto]:
    yield from _nodes(function.node)
    yield from _inside(function.attribute_proto)


def sort_nodes(graph: GraphProto) -> None:
    """Put each node after those that it depends on, also through the body of an If, Loop or Scan,
    which the tools that rewrite graphs do not see.

    ONNX wants that order. A graph with a circle is left as it is.
    """
    nodes = list(graph.node)
    maker = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    waits = [
        {maker[name] for inner in _nodes([node]) for name in inner.input if name in maker} - {at}
        for at, node in enumerate(nodes)
    ]
    followers: dict[int, list[int]] = {}
    for at, before in enumerate(waits):
        for other in before:
            followers.setdefault(other, []).append(at)
    # sorted, so a heap: equal graphs give equal files
    ready = [at for at, before in enumerate(waits) if not before]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for at in followers.get(order[-1], ()):
            waits[at].discard(order[-1])
            if not waits[at]:
                heapq.heappush(ready, at)
    if len(order) == len(nodes) and order != sorted(order):
        del graph.node[:]
        graph.node.extend(nodes[at] for at in order)


def constants_inside(path: Path, target: Path) -> Path:
    """Write the model with its constants where steps look for them to ``target``: initializers of
    the graph, that are no inputs. Returns ``path`` if they are.

    Up to IR version 3 every constant was an input, too, and an option of exporters still does so
    (``keep_initializers_as_inputs``). Steps rewrite constants: the shapes of those inputs would no
    longer fit, and new constants would lack theirs. Other exporters write weights as Constant
    nodes, or in the body of an If, or put the model into functions.
    """
    model = parse(path)
    inlined = bool(model.functions)
    if inlined:
        model = inline_local_functions(model)
    hoisted = hoist_constants(model)
    names = {t.name for t in model.graph.initializer} | {
        s.values.name for s in model.graph.sparse_initializer
    }
    inputs = [value for value in model.graph.input if value.name not in names]
    if (
        len(inputs) == len(model.graph.input)
        and model.ir_version >= _CONSTANTS_IR
        and not hoisted
        and not inlined
    ):
        return path
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _CONSTANTS_IR)
    files.remove(target)
    files.save_graph(model, target)
    files.copy_data(path, target)
    return target


def _check_external(tensor: TensorProto, path: Path, field: str) -> None:
    """Raise ExternalData for a tensor in another file than a split model has, ExternalDataMissing
    for one that is not there whole.
    """
    if not files.is_split(path) or [e.value for e in tensor.external_data if e.key == "location"] != [
        DATA_FILE
    ]:
        raise bad_input(
            Reason.EXTERNAL_DATA,
            f"{field}: tensor {tensor.name!r} lies in another file; save all in one: onnx.save(model, path,"
            " save_as_external_data=False), or pack model and data into one .zip or .tar",
        )
    size = files.data_of(path).stat().st_size
    try:
        part = files.beside(tensor, path)
    except ValueError:
        part = files.Part(path, -1, -1)
    bits = _BITS.get(tensor.data_type)
    expected = None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8
    if part.offset < 0 or part.offset + part.length > size or part.length != expected:
        raise bad_input(
            Reason.EXTERNAL_DATA_MISSING,
            f"{field}: tensor {tensor.name!r} has shape {list(tensor.dims)[:8]}, and says that it is"
            f" {part.length} bytes of {DATA_FILE!r} from {part.offset} on, which has {size}; export it again",
        )


def _check_operators(model: ModelProto, field: str) -> None:
    """Raise CustomOperator for an operator that ONNX Runtime alone does not have, ModelInvalid for
    functions that call themselves: it would inline them without end.
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    for node in _all_nodes(model):
        if (
            node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in functions
        ) or node.op_type in _REFUSED_OPS:
            raise bad_input(
                Reason.CUSTOM_OPERATOR,
                f"{field}: operator {node.op_type!r} of domain {node.domain or 'ai.onnx'!r} is not one of"
                " ONNX; custom operators are code, which is never loaded: export the model without it",
            )
    calls = {
        key: {(n.domain, n.op_type) for n in _of_function(f)} & functions.keys()
        for key, f in functions.items()
    }
    while calls:
        leaves = {key for key, called in calls.items() if not called & calls.keys()}
        if not leaves:
            raise bad_input(
                Reason.MODEL_INVALID,
                f"{field}: function {sorted(calls)[0][1]!r} calls itself; export the model without local"
                " functions",
            )
        calls = {key: called for key, called in calls.items() if key not in leaves}


def _check_size(tensor: TensorProto, field: str) -> None:
    """Raise TensorTooLarge or ModelInvalid for a tensor whose data contradicts its declaration."""
    if not tensor.dims:
        return
    elements = math.prod(tensor.dims)
    if min(tensor.dims) < 0 or elements > ELEMENTS_LIMIT:
        raise bad_input(
            Reason.TENSOR_TOO_LARGE,
            f"{field}: tensor {tensor.name!r} says that it has shape {list(tensor.dims)[:8]}; at most"
            f" {ELEMENTS_LIMIT} elements",
        )
    if tensor.HasField("raw_data"):
        bits = _BITS.get(tensor.data_type)
        if bits is not None and (elements * bits + 7) // 8 != len(tensor.raw_data):
            raise bad_input(
                Reason.MODEL_INVALID,
                f"{field}: tensor {tensor.name!r} has shape {list(tensor.dims)[:8]}, but"
                f" {len(tensor.raw_data)} bytes; export it again",
            )


def _element_bits() -> dict[int, int]:
    bits_by_type = {}
    for kind in TensorProto.DataType.values():
        try:
            bits_by_type[kind] = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
        except (KeyError, TypeError):
            continue
    known = set(TensorProto.DataType.keys())
    half = ("UINT4", "INT4", "FLOAT4E2M1")
    quarter = ("UINT2", "INT2")
    for names, bits in ((half, 4), (quarter, 2)):
        bits_by_type |= {TensorProto.DataType.Value(name): bits for name in names if name in known}
    bits_by_type.pop(TensorProto.STRING, None)
    return bits_by_type


_BITS = _element_bits()
