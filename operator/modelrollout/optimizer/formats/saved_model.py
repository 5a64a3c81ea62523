"""TensorFlow SavedModel, as an archive of its folder.

saved_model.pb is read as the message that it is. Of its graph only what the serving signature, its
variables and their initialization need is kept, and all of that is checked
(``tf_graph.check_graph``) before TensorFlow reads it. Objects, other functions and the operators
that save variables are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats.source_model import FIELD, Format, SourceModel, invalid
from modelrollout.optimizer.formats.tf_graph import check_graph, functions_of, no_inputs, served_type, to_onnx
from modelrollout.optimizer.model.archive import holds, is_archive, unpack_folder
from modelrollout.optimizer.model.data import Arrays
from modelrollout.reasons import Reason

MARKER = "saved_model.pb"
SIGNATURE = "serving_default"
TAG = "serve"
_RESAVE = "save it again with tf.saved_model.save or model.export"


def load(path: Path, folder: Path, _: Declared) -> SourceModel:
    """Raises JobError: those of ``unpack_folder`` and ``check_graph``, ModelInvalid,
    ServingSignatureMissing, TypeUnsupported.
    """
    root = unpack_folder(path, folder, MARKER)
    meta_graph, signature = _signature(root / MARKER)
    import tensorflow as tf

    inputs, outputs = (
        {name: tensors[name].name for name in sorted(tensors)}
        for tensors in (signature.inputs, signature.outputs)
    )
    if not inputs:
        raise no_inputs()
    saver, start = meta_graph.saver_def, meta_graph.signature_def.get("__saved_model_init_op")
    first = [tensor.name for tensor in start.outputs.values()] if start else []
    restore = [saver.restore_op_name, saver.filename_tensor_name] if saver.restore_op_name else []
    graph_def = _needed(meta_graph.graph_def, [*inputs.values(), *outputs.values(), *restore, *first])
    check_graph(graph_def)

    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
        if restore:
            session.run(restore[0], {restore[1]: str(root / "variables" / "variables")})
        session.run(first)
    specs = {name: graph.get_tensor_by_name(tensor) for name, tensor in inputs.items()}
    types = {name: served_type(name, tensor.dtype) for name, tensor in specs.items()}
    for name, tensor in outputs.items():
        served_type(name, graph.get_tensor_by_name(tensor).dtype)

    def predict(arrays: Arrays) -> list[NDArray[Any]]:
        fed = {inputs[name]: arrays[name].astype(types[name]) for name in inputs}
        return [np.asarray(a) for a in session.run(list(outputs.values()), fed)]

    def convert() -> Any:
        import tf2onnx

        with graph.as_default():
            frozen = tf2onnx.tf_loader.freeze_session(
                session, input_names=list(inputs.values()), output_names=list(outputs.values())
            )

        def served(*tensors: Any) -> dict[str, Any]:
            feeds = {inputs[name]: tensor for name, tensor in zip(inputs, tensors, strict=True)}
            results = tf.graph_util.import_graph_def(
                frozen, input_map=feeds, return_elements=list(outputs.values()), name=""
            )
            return {
                name: tf.identity(tensor, name=name) for name, tensor in zip(outputs, results, strict=True)
            }

        return to_onnx(
            served,
            [tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in specs.items()],
            list(outputs),
        )

    return SourceModel(convert, predict)


def _signature(path: Path) -> tuple[Any, Any]:
    """(MetaGraphDef for serving, its SignatureDef)."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    message = SavedModel()
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError:
        raise invalid(f"{MARKER} in the archive is damaged, or not of TensorFlow", _RESAVE) from None
    graphs = [graph for graph in message.meta_graphs if TAG in graph.meta_info_def.tags]
    if not graphs:
        raise invalid(f"{MARKER} holds no graph for serving (tag {TAG!r})", _RESAVE)
    signatures = {
        name: signature for name, signature in graphs[0].signature_def.items() if not name.startswith("__")
    }
    chosen = signatures.get(SIGNATURE) or (next(iter(signatures.values())) if len(signatures) == 1 else None)
    if chosen is None:
        raise bad_input(
            Reason.SERVING_SIGNATURE_MISSING,
            f"{FIELD}.uri: the SavedModel has the signatures {sorted(signatures)[:8]}, and none is called"
            f" {SIGNATURE}: {_RESAVE}, with signatures={{{SIGNATURE!r}: ...}}",
        )
    if any(not tensor.name for tensor in (*chosen.inputs.values(), *chosen.outputs.values())):
        raise bad_input(
            Reason.TYPE_UNSUPPORTED,
            f"{FIELD}.uri: the signature takes or gives sparse or composite tensors; use dense ones",
        )
    return graphs[0], chosen


def _needed(graph: Any, tensors: Iterable[str]) -> Any:
    """The part of a GraphDef that the tensors and operations of these names depend on, with the
    functions that it calls.
    """
    by_name = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    reachable: set[str] = set()
    waiting = [_node_of(name) for name in tensors]
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise invalid(f"the graph in {MARKER} lacks node {name!r}", _RESAVE)
        if name not in reachable:
            reachable.add(name)
            waiting += [_node_of(tensor) for tensor in by_name[name].input]
    called: set[str] = set()
    calls = [name for node in reachable for name in functions_of(by_name[node])]
    while calls:
        name = calls.pop()
        if name in functions and name not in called:
            called.add(name)
            calls += [inner for node in functions[name].node_def for inner in functions_of(node)]
    needed = type(graph)(versions=graph.versions)
    needed.node.extend(node for node in graph.node if node.name in reachable)
    needed.library.function.extend(functions[name] for name in sorted(called))
    # freezing reads a variable by the node of this name
    for variable in [node for node in needed.node if node.op == "VarHandleOp"]:
        read = f"{variable.name}/Read/ReadVariableOp"
        if read not in reachable:
            added = needed.node.add(name=read, op="ReadVariableOp", input=[variable.name])
            added.attr["dtype"].CopyFrom(variable.attr["dtype"])
    return needed


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


FORMAT = Format(
    "TensorFlow",
    ("tensorflow", "tf2onnx"),
    "a SavedModel's folder as .zip or .tar",
    lambda start: is_archive(start.path) and holds(start.path, MARKER),
    load,
)
