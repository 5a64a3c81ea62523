"""Exported programs of PyTorch (``torch.export.save``, .pt2): a graph of operators as JSON, weights
as PyTorch's files, in a zip.

torch.export.load trusts the JSON: it looks up anything below ``torch`` that a node names and calls
it, evaluates the text of sizes as Python, imports modules for containers, and unpickles weights
with pickle proper. So this module checks the JSON first, drops what only people read, and reads
weights with PyTorch's restricted unpickler, which makes tensors and nothing else.
"""

from __future__ import annotations

import ast
import json
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx.inliner
from numpy.typing import NDArray
from onnx import ModelProto

from modelrollout import nesting
from modelrollout.contract.formats import Tensors
from modelrollout.optimizer.formats import pt2_archive
from modelrollout.optimizer.formats.source_model import SourceModel, code_refused, invalid
from modelrollout.optimizer.formats.torch_operators import check_target
from modelrollout.optimizer.formats.torch_script import flat, in_order
from modelrollout.optimizer.model.archive import UNPACKED_LIMIT_BYTES, extract
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.runtime import cpu_limit

_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_SYMBOL = re.compile(r"[su]\d{1,9}")
_FUNCTIONS = frozenset(
    {
        "Add",
        "CeilDiv",
        "CleanDiv",
        "FloorDiv",
        "IntTrueDiv",
        "Integer",
        "Max",
        "Min",
        "Mod",
        "ModularIndexing",
        "Mul",
        "Pow",
        "PythonMod",
        "Symbol",
    }
)
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv,
    ast.Mod, ast.Pow, ast.USub, ast.keyword,
)  # fmt: skip
_LATER = frozenset(
    {
        "as_complex",
        "as_float_lists",
        "as_int_lists",
        "as_nested_tensors",
        "as_optional_tensor",
        "as_string_to_argument",
        "parameter_mutation",
    }
)
_NOT_FINITE = ("Infinity", "-Infinity", "NaN")
_EXPRESSION_LIMIT = 2000  # characters


def load(path: Path, folder: Path, tensors: Tensors | None) -> SourceModel:
    """Raises JobError: OperatorRefused, CodeRefused, TensorUnknown, ModelInvalid, those of
    ``archive.extract``.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torch.export.load asks for the other reader
    # by default named after the user, and the Job's has no name
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    copied = checked_copy(path, folder)
    import torch
    from torch._dispatch.python import enable_python_dispatcher
    from torch.utils import _pytree

    torch.set_num_threads(cpu_limit())
    program = torch.export.load(copied)
    module = program.module()
    own = list(program.graph_signature.user_inputs)
    values = {
        node.name: node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in own
    }
    types = {name: value.dtype for name, value in values.items() if isinstance(value, torch.Tensor)}
    if not own or len(types) < len(own):
        raise invalid(
            "the program takes no inputs, or other ones than tensors",
            "export it with tensors as inputs, and the rest fixed",
        )
    names = [tensor.name for tensor in in_order(own, own, tensors.inputs)] if tensors else own

    def predict(arrays: Arrays) -> list[NDArray[Any]]:
        arguments = [
            torch.from_numpy(arrays[name]).to(types[origin]) for name, origin in zip(names, own, strict=True)
        ]
        positional, named = _pytree.tree_unflatten(arguments, program.call_spec.in_spec)
        with torch.no_grad():
            return [tensor.numpy() for tensor in flat(_pytree.tree_leaves(module(*positional, **named)))]

    def convert() -> ModelProto:
        outputs = [tensor.name for tensor in tensors.outputs] if tensors else None
        # Without the dispatcher PyTorch 2.6 takes no linear layer apart whose input has three
        # dimensions, one of them dynamic.
        with torch.no_grad(), enable_python_dispatcher():
            try:
                exported = torch.onnx.export(
                    program,
                    dynamo=True,
                    input_names=names,
                    output_names=outputs,
                    external_data=False,
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                # a page of advice around the actual cause
                raise error.__cause__ or error from None
        model: ModelProto = onnx.inliner.inline_local_functions(exported.model_proto)
        return model

    return SourceModel(convert, predict)


def checked_copy(path: Path, folder: Path) -> Path:
    """The program as torch.export.load may have it, in a file of ours; raises JobError:
    OperatorRefused, those of ``pt2_archive.parts`` and ``archive.extract``.
    """
    root = folder / "archive"
    parts = pt2_archive.parts(root, extract(path, root, UNPACKED_LIMIT_BYTES))
    copied = folder / "source.pt2"
    with zipfile.ZipFile(copied, "w") as archive:
        archive.writestr(pt2_archive.PROGRAM, json.dumps(checked_program(parts.program.read_bytes())))
        archive.writestr(pt2_archive.VERSION, f"{pt2_archive.MAJOR}.0")
        for name, tensors in ((pt2_archive.WEIGHTS, parts.weights), (pt2_archive.CONSTANTS, parts.constants)):
            if isinstance(tensors, Path):
                archive.write(tensors, name)
            else:
                with archive.open(name, "w", force_zip64=True) as file:
                    pt2_archive.save(tensors, file)
        archive.writestr(pt2_archive.SAMPLES, b"")  # which is none
    return copied


def checked_program(content: bytes) -> Any:
    """The JSON as PyTorch 2.6 has it; raises JobError: ModelInvalid, OperatorRefused,
    CodeRefused.
    """
    try:
        return _checked(pt2_archive.in_first_terms(nesting.parse(content)), "")
    except ValueError as error:
        raise invalid(f"the program is no JSON ({str(error)[:100]})", pt2_archive.RESAVE) from None


def _checked(value: Any, key: str) -> Any:
    """A value of the JSON, below this key."""
    if isinstance(value, list):
        return [_checked(part, key) for part in value]
    if isinstance(value, dict):
        if foreign := next(
            (name for name in ("class_fqn", "as_custom_obj", "as_graph") if value.get(name)), None
        ):
            raise code_refused(
                f"an object of a class of its own, or a program inside of the program ({foreign})"
            )
        if unknown := next((name for name in value if name in _LATER), None):
            raise invalid(
                f"PyTorch 2.6 has no arguments of the kind {unknown}",
                "export the model to ONNX where it was trained",
            )
        return {name: _checked(part, name) for name, part in value.items()}
    if key in ("target", "as_operator"):
        check_target(str(value))
    elif key in ("as_float", "as_floats") and value in _NOT_FINITE:
        return float(value)  # text from 2.7 on
    elif key == "expr_str":
        _check_expression(str(value))
    elif key in ("in_spec", "out_spec") and value:
        _check_containers(nesting.parse(str(value)))
    return value


def _check_containers(value: Any) -> None:
    if isinstance(value, list):
        for part in value:
            _check_containers(part)
    elif isinstance(value, dict):
        if value.get("type") not in _CONTAINERS:
            raise code_refused(f"a container of type {str(value.get('type'))[:100]}")
        _check_containers(value.get("children_spec"))


def _check_expression(text: str) -> None:
    """Sizes: numbers, symbols (s0, u1), arithmetic and functions of PyTorch on them; it is
    evaluated as Python.
    """
    nodes: list[ast.AST | None] = [None]
    if len(text) <= _EXPRESSION_LIMIT:
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            nodes = list(ast.walk(ast.parse(text, mode="eval")))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        match node:
            case ast.Name():
                known = (
                    node.id in _FUNCTIONS if id(node) in called else _SYMBOL.fullmatch(node.id) is not None
                )
            case ast.Constant():
                known = (
                    _SYMBOL.fullmatch(node.value) is not None
                    if isinstance(node.value, str)
                    else isinstance(node.value, (bool, int, float))
                )
            case ast.Call():
                known = isinstance(node.func, ast.Name)
            case _:
                known = isinstance(node, _ARITHMETIC)
        if not known:
            raise code_refused(f"a size that is more than arithmetic ({text[:100]!r})")
