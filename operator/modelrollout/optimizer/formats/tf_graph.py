"""Graphs of TensorFlow: which operators one may contain, and how it becomes ONNX.

A graph of TensorFlow is a program: it may read and write files, call Python, listen on the network.
So TensorFlow gets only operators of a file that only compute (the list below, not what an installed
version happens to know), and no text that could name a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats.source_model import FIELD, REMEDY, invalid
from modelrollout.optimizer.model.files import PROTOBUF_LIMIT
from modelrollout.optimizer.model.inspect import ELEMENTS_LIMIT
from modelrollout.reasons import Reason

OPSET = 18

# Those that tf2onnx converts and that ONNX has; then what holds graphs together and what brings
# variables their values.
_COMPUTING = """
    Abs Acos Acosh Add AddN AddV2 All Any ArgMax ArgMin Asin Asinh Atan Atan2 Atanh AvgPool
    AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BiasAddV1 BitwiseAnd
    BitwiseOr BitwiseXor BroadcastArgs BroadcastTo Cast Ceil CheckNumerics ClipByValue
    CombinedNonMaxSuppression Concat ConcatV2 Const Conv2D Conv2DBackpropInput Conv3D
    Conv3DBackpropInputV2 Cos Cosh CropAndResize Cumprod Cumsum DepthToSpace DepthwiseConv2dNative
    Div DivNoNan DynamicPartition DynamicStitch Einsum Elu EnsureShape Equal Erf Erfc Exp ExpandDims
    Expm1 ExtractImagePatches FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars Fill Floor FloorDiv
    FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2 Greater
    GreaterEqual GRUBlockCell Identity IdentityN Invert InvertPermutation IsFinite IsInf IsNan
    L2Loss LRN LSTMBlockCell LeakyRelu LeftShift Less LessEqual LinSpace Log Log1p LogSoftmax
    LogicalAnd LogicalNot LogicalOr MatMul MatrixBandPart MatrixDeterminant MatrixDiag
    MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse
    MatrixSetDiagV3 Max MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax Maximum Mean Min Minimum
    MirrorPad Mul Neg NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4
    NonMaxSuppressionV5 NotEqual OneHot OnesLike Pack Pad PadV2 ParallelDynamicStitch Pow Prod
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 Range Rank RealDiv
    Reciprocal Relu Relu6 Reshape ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor
    ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt ScatterNd SegmentMax SegmentMean
    SegmentMin SegmentProd SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign SpaceToBatchND SpaceToDepth SparseToDense Split SplitV Sqrt
    Square SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tan Tanh TensorScatterAdd
    TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate Tile TopKV2 Transpose
    TruncateDiv Unique Unpack UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
    UnsortedSegmentSum Where ZerosLike Assert Enter Exit If LoopCond Merge NextIteration NoOp
    PartitionedCall Placeholder PlaceholderWithDefault StatefulPartitionedCall StatelessIf
    StatelessWhile Switch TensorArrayGatherV3 TensorArrayReadV3 TensorArrayScatterV3
    TensorArraySizeV3 TensorArrayV3 TensorArrayWriteV3 TensorListFromTensor TensorListGetItem
    TensorListLength TensorListReserve TensorListResize TensorListSetItem TensorListStack While
    Assign AssignVariableOp DisableCopyOnRead ReadVariableOp ResourceGather ResourceGatherNd
    RestoreV2 VarHandleOp VarIsInitializedOp VariableV2
"""
COMPUTING = frozenset(_COMPUTING.split())


def nodes(graph: Any) -> Iterator[Any]:
    """Those of a GraphDef and of its functions."""
    return chain(graph.node, *(function.node_def for function in graph.library.function))


def functions_of(node: Any) -> Iterator[str]:
    """Names of the functions that a node calls."""
    yield node.op
    for attribute in node.attr.values():
        yield attribute.func.name
        for function in attribute.list.func:
            yield function.name


def check_graph(graph: Any) -> None:
    """Raise JobError: OperatorRefused for what does more than compute, TensorTooLarge for constants
    that unfold beyond 2 GiB.
    """
    from tensorflow.core.framework.types_pb2 import DT_STRING

    functions = {function.signature.name for function in graph.library.function}
    foreign = next(
        (node.op for node in nodes(graph) if node.op not in COMPUTING and node.op not in functions), None
    )
    if foreign is not None:
        raise operator_refused(foreign)
    total = 0
    for node in nodes(graph):
        for attribute in node.attr.values():
            tensors = [attribute.tensor] if attribute.HasField("tensor") else attribute.list.tensor
            for tensor in tensors:
                total += _elements(tensor.tensor_shape)
                if total > ELEMENTS_LIMIT:
                    raise bad_input(
                        Reason.TENSOR_TOO_LARGE,
                        f"{FIELD}.uri: its constants say that they have {total} elements; at most"
                        f" {ELEMENTS_LIMIT}",
                    )
                # A variable's values come from the archive's own folder alone.
                if tensor.dtype == DT_STRING and any(
                    b"://" in text or b"../" in text or text.startswith(b"/") for text in _texts(tensor)
                ):
                    raise bad_input(
                        Reason.OPERATOR_REFUSED,
                        f"{FIELD}.uri: node {node.name!r} of the graph holds the name of a file; export the"
                        " model without it",
                    )


def _texts(tensor: Any) -> Sequence[bytes]:
    """A DT_STRING tensor's values."""
    return [*tensor.string_val, *([tensor.tensor_content] if tensor.tensor_content else [])]


def _elements(shape: Any) -> int:
    return math.prod(max(d.size, 1) for d in shape.dim)


def operator_refused(operator: str) -> JobError:
    """The refusal of an operator that is not on the list."""
    return bad_input(
        Reason.OPERATOR_REFUSED,
        f"{FIELD}.uri: operator {operator!r} is not one of those that are converted; only those that compute"
        " are, none that reads files, calls code, or has no match in ONNX: export the model without it, with"
        " its preprocessing outside",
    )


def to_onnx(
    function: Callable[..., Mapping[str, Any]], signature: Sequence[Any], outputs: Sequence[str]
) -> ModelProto:
    """The ONNX model of a function that gives tensors by name; ``signature``: a TensorSpec with a
    name for each input, ``outputs``: their order.
    """
    import tensorflow as tf
    import tf2onnx

    traced = tf.function(function, input_signature=list(signature), autograph=False)
    check_graph(traced.get_concrete_function().graph.as_graph_def())
    handlers: dict[str, Any] = {"Erfc": (_erfc, [])}
    model: ModelProto = tf2onnx.convert.from_function(
        traced, input_signature=list(signature), opset=OPSET, custom_op_handlers=handlers
    )[0]
    return arranged(model, [spec.name for spec in signature], outputs)


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """1 - erf(x), for gelu: tf2onnx has no such operator."""
    erf = graph.insert_new_node_on_input(node, "Erf", node.input[0])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(graph.get_dtype(node.input[0]))
    one = graph.make_const(f"{name}__one", np.ones((), dtype))
    node.type = "Sub"
    graph.replace_inputs(node, [one.output[0], erf.output[0]])


def arranged(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The model with its inputs and outputs in this order; raises JobError: ConversionFailed,
    ModelTooLarge.
    """
    left = next((n.op_type for n in _onnx_nodes(model.graph) if not onnx.defs.has(n.op_type, n.domain)), None)
    if left is not None:
        raise bad_input(
            Reason.CONVERSION_FAILED, f"{FIELD}.uri: tf2onnx does not convert operator {left!r}; {REMEDY}"
        )
    for values, names in ((model.graph.input, inputs), (model.graph.output, outputs)):
        by_name = {value.name: value for value in values}
        if set(by_name) != set(names):
            raise bad_input(
                Reason.CONVERSION_FAILED,
                f"{FIELD}.uri: of the tensors {sorted(names)} tf2onnx keeps {sorted(by_name)}; export the"
                " model without the others",
            )
        ordered = [by_name[name] for name in names]
        del values[:]
        values.extend(ordered)
    if model.ByteSize() > PROTOBUF_LIMIT:
        raise bad_input(
            Reason.MODEL_TOO_LARGE,
            f"{FIELD}.uri: {model.ByteSize()} bytes as ONNX; an ONNX file ends at 2 GiB: use a smaller model",
        )
    return model


def _onnx_nodes(graph: GraphProto) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _onnx_nodes(inner)


def served_type(name: str, dtype: Any) -> Any:
    """numpy's type of an input or output; raises JobError (TypeUnsupported) for text and for what
    numpy does not have.
    """
    if (
        not (dtype.is_floating or dtype.is_integer or dtype.is_bool)
        or dtype.name == "bfloat16"
        or dtype.is_quantized
    ):
        raise bad_input(
            Reason.TYPE_UNSUPPORTED,
            f"{FIELD}.uri: tensor {name!r} is {dtype.name}, which cannot be served; export the model with"
            " numbers there",
        )
    return dtype.as_numpy_dtype


def no_inputs() -> JobError:
    return invalid("the model takes no inputs")
