"""Files as PyTorch 2.6 writes them, made here byte by byte: good ones as far as they are looked at before PyTorch is given them, and hostile ones."""

from __future__ import annotations

import json
import pickle
from typing import Any

from tests.unit.optimizer.hostile import lying, zipped

CODE = b"class Net(Module):\n  def forward(self: __torch__.Net,\n    x: Tensor) -> Tensor:\n    return torch.relu(x)\n"
DATA = b"\x80\x02c__torch__\nNet\nq\x00)\x81}(X\x08\x00\x00\x00trainingq\x01\x89ub."
WEIGHT = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nctorch\nFloatStorage\nccollections\nOrderedDict\n."
CUSTOM = b"\x80\x02c__torch__.torch\nclasses.quantized.LinearPackedParamsBase\n."
SYSTEM = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."


def torchscript(*more: tuple[str, bytes], code: bytes = CODE, data: bytes = DATA) -> bytes:
    constants = pickle.dumps((), 2)
    return zipped(("m/data.pkl", data), ("m/code/__torch__.py", code), ("m/constants.pkl", constants), ("m/version", b"3\n"), *more)


def node(target: str, *arguments: Any, **more: Any) -> dict[str, Any]:
    return {"target": target, "inputs": [{"name": "self", "arg": a} for a in arguments], "outputs": [{"as_tensor": {"name": "y"}}], **more}


RELU = node("torch.ops.aten.relu.default", {"as_tensor": {"name": "x"}}, metadata={"torch_fn": "os.system"})
TUPLE = '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": null, "context": null, "children_spec": []}]}]'


def size(expression: str) -> dict[str, Any]:
    return {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}


def program(*nodes: dict[str, Any], batch: str = "Symbol('s0', positive=True, integer=True)", container: str = TUPLE, **more: Any) -> dict[str, Any]:
    tensors = {name: {"dtype": 7, "sizes": [size(batch), {"as_int": 4}]} for name in ("x", "y")}
    signature = {"inputs": [], "outputs": [], "in_spec": container, "out_spec": "", "forward_arg_names": ["x"]}
    return {
        "graph_module": {
            "graph": {"inputs": [], "outputs": [], "nodes": list(nodes or (RELU,)), "tensor_values": tensors, **more},
            "module_call_graph": [{"fqn": "", "signature": signature}],
        },
        "schema_version": {"major": 8, "minor": 2},
    }


def exported(content: Any = None, weights: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content or program()).encode()
    named = ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt")
    return zipped(("serialized_exported_program.json", text), *((name, weights) for name in named), ("version", b"8.2"))


# What each ends with: reason, and what the message names.
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "code when it is read": (torchscript(code=CODE + b"  def __setstate__(self, state: int) -> None:\n    pass\n"), "CodeRefused", "__setstate__"),
    "code before forward": (torchscript(code=CODE + b'  __forward_pre_hooks__ = ["f", ]\n'), "CodeRefused", "__forward_pre_hooks__"),
    "a class of libtorch in the code": (torchscript(code=b"  w : __torch__.torch.classes.xnnpack.LinearOpContext\n"), "CodeRefused", "torch.classes"),
    "an object of libtorch": (torchscript(data=CUSTOM), "CodeRefused", "torch.classes.quantized.LinearPackedParamsBase"),
    "a pickle that calls": (torchscript(data=SYSTEM), "CodeRefused", "os.system"),
    "a pickle cut off": (torchscript(data=DATA[:20]), "ModelInvalid", "data.pkl is damaged"),
    "a program without its weights": (zipped(("m/constants.pkl", b"N."), ("m/version", b"3")), "ModelInvalid", "no whole program"),
    "TorchScript cut off": (torchscript()[:-9], "ArchiveBroken", "pack it anew"),
    "TorchScript that leads out": (torchscript(("m/../../escaped", b"x")), "ArchiveUnsafe", "escaped"),
    "TorchScript as a bomb": (lying(torchscript(), 0xFFFFFFF0), "TooLarge", "unpacked"),
    "a later layout": (zipped(("m/archive_format", b"pt2"), ("m/models/model.json", b"{}")), "ModelInvalid", "not laid out as PyTorch 2.6"),
    "no JSON": (exported(b"{"), "ModelInvalid", "no JSON"),
    "JSON without end": (exported(b"[" * 100_000), "ModelInvalid", "no JSON"),
    "a function of torch": (exported(program(node("torch.load"))), "OperatorRefused", "torch.load"),
    "a function of Python": (exported(program(node("_operator.methodcaller"))), "OperatorRefused", "methodcaller"),
    "an operator that reads files": (exported(program(node("torch.ops.aten.from_file.default"))), "OperatorRefused", "from_file"),
    "an operator of one's own": (exported(program(node("torch.ops.mine.relu.default"))), "OperatorRefused", "mine"),
    "a way around the operators": (exported(program(node("torch.ops.aten.relu.__class__"))), "OperatorRefused", "__class__"),
    "an operator as an argument": (exported(program(node("torch.ops.aten.relu.default", {"as_operator": "torch.load"}))), "OperatorRefused", "load"),
    "a program inside": (exported(program(node("torch.ops.aten.relu.default", {"as_graph": {"name": "g"}}))), "CodeRefused", "inside of"),
    "an object of its own": (exported(program(custom_obj_values={"o": {"name": "o", "class_fqn": "a.B"}})), "CodeRefused", "class of its own"),
    "a size that calls": (exported(program(batch="__import__('os').system('true')")), "CodeRefused", "more than arithmetic"),
    "a size that looks around": (exported(program(batch="s0.__class__")), "CodeRefused", "more than arithmetic"),
    "a symbol that is text": (exported(program(batch="Symbol('open')")), "CodeRefused", "more than arithmetic"),
    "a size without end": (exported(program(batch="(" * 1000)), "CodeRefused", "more than arithmetic"),
    "a container that imports": (exported(program(container=TUPLE.replace("tuple", "module"))), "CodeRefused", "builtins.module"),
    "weights as a bomb": (exported(weights=lying(zipped(("archive/data/0", b"x")), 0xFFFFFFF0)), "TooLarge", "unpacked"),
    "weights cut off": (exported(weights=zipped(("archive/data/0", b"x"))[:-9]), "ArchiveBroken", "pack it anew"),
}  # fmt: skip
