"""Files as PyTorch 2.6 to 2.15 write them, made here byte by byte: good ones as far as they are
looked at before PyTorch gets them, and hostile ones.
"""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

from tests.unit.optimizer.hostile import lying, zipped

CODE = (
    b"class Net(Module):\n  def forward(self: __torch__.Net,\n    x: Tensor) -> Tensor:\n    return"
    b" torch.relu(x)\n"
)
DATA = b"\x80\x02c__torch__\nNet\nq\x00)\x81}(X\x08\x00\x00\x00trainingq\x01\x89ub."
WEIGHT = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nctorch\nFloatStorage\nccollections\nOrderedDict\n."
CUSTOM = b"\x80\x02c__torch__.torch\nclasses.quantized.LinearPackedParamsBase\n."
SYSTEM = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."


def torchscript(*more: tuple[str, bytes], code: bytes = CODE, data: bytes = DATA) -> bytes:
    constants = pickle.dumps((), 2)
    return zipped(
        ("m/data.pkl", data),
        ("m/code/__torch__.py", code),
        ("m/constants.pkl", constants),
        ("m/version", b"3\n"),
        *more,
    )


def node(target: str, *arguments: Any, **more: Any) -> dict[str, Any]:
    return {
        "target": target,
        "inputs": [{"name": "self", "arg": a} for a in arguments],
        "outputs": [{"as_tensor": {"name": "y"}}],
        **more,
    }


RELU = node("torch.ops.aten.relu.default", {"as_tensor": {"name": "x"}}, metadata={"torch_fn": "os.system"})
TUPLE = (
    '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": null, "context": null,'
    ' "children_spec": []}]}]'
)


def size(expression: str) -> dict[str, Any]:
    return {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}


def program(
    *nodes: dict[str, Any],
    batch: str = "Symbol('s0', positive=True, integer=True)",
    container: str = TUPLE,
    **more: Any,
) -> dict[str, Any]:
    tensors = {name: {"dtype": 7, "sizes": [size(batch), {"as_int": 4}]} for name in ("x", "y")}
    signature = {
        "inputs": [],
        "outputs": [],
        "in_spec": container,
        "out_spec": "",
        "forward_arg_names": ["x"],
    }
    return {
        "graph_module": {
            "graph": {
                "inputs": [],
                "outputs": [],
                "nodes": [dict(one) for one in nodes or (RELU,)],
                "tensor_values": tensors,
                **more,
            },
            "module_call_graph": [{"fqn": "", "signature": signature}],
        },
        "schema_version": {"major": 8, "minor": 2},
    }


def exported(content: Any = None, weights: bytes = b"", version: bytes = b"8.2") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content or program()).encode()
    named = ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt")
    return zipped(
        ("serialized_exported_program.json", text), *((name, weights) for name in named), ("version", version)
    )


def later(*nodes: dict[str, Any]) -> dict[str, Any]:
    return as_later(program(*nodes))


def as_later(actual: dict[str, Any]) -> dict[str, Any]:
    """A program as PyTorch 2.15 writes it, with what its JSON has more."""
    for number, one in enumerate(actual["graph_module"]["graph"]["nodes"]):
        one |= {"is_hop_single_tensor_return": None, "name": f"n_{number}"}
        one["inputs"] = [argument | {"kind": 1} for argument in one["inputs"]]
    actual["graph_module"] |= {"treespec_namedtuple_fields": {}, "metadata": {}}
    return actual | {"schema_version": {"major": 8, "minor": 20}, "guards_code": ["L['x'].size()[0] <= 1024"]}


def tensor(
    *sizes: int, path: str = "weight_0", pickled: bool = False, parameter: bool = True, **meta: Any
) -> dict[str, Any]:
    """What the archive says of a float32 tensor, contiguous where ``strides`` are not given."""
    strides = meta.pop("strides", [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])
    described = {
        "dtype": 7, "requires_grad": parameter, "device": {"type": "cpu", "index": None}, "layout": 7,
        "sizes": [{"as_int": size} for size in sizes], "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": 0},
    }  # fmt: skip
    return {"path_name": path, "is_param": parameter, "use_pickle": pickled, "tensor_meta": described | meta}


OBJECT = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}


def packaged(
    content: Any = None,
    *more: tuple[str, bytes],
    weights: Any = None,
    constants: Any = None,
    without: str = "",
    **changed: bytes,
) -> bytes:
    """An archive as PyTorch 2.9 and later write it. ``weights``, ``constants``: what it says of
    them; ``changed``: other files at its top.
    """
    members = {
        "models/m.json": content if isinstance(content, bytes) else json.dumps(content or later()).encode(),
        "data/sample_inputs/m.pt": SYSTEM,
        "archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n",
    } | changed  # fmt: skip
    for kind, said in (("weights", weights), ("constants", constants)):
        members[f"data/{kind}/m_{kind}_config.json"] = (
            said if isinstance(said, bytes) else json.dumps({"config": said or {}}).encode()
        )
    return zipped(
        *((f"m/{name}", value) for name, value in (members | dict(more)).items() if name != without)
    )


def weighing(described: Any, *more: tuple[str, bytes]) -> bytes:
    """An archive with one weight, which has 48 bytes."""
    return packaged(None, ("data/weights/weight_0", b"\0" * 48), *more, weights={"w": described})


# What each ends with: reason, and what the message names.
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "code when it is read": (torchscript(code=CODE + b"  def __setstate__(self, state: int) -> None:\n    pass\n"), "CodeRefused", "__setstate__"),  # noqa: E501
    "code before forward": (torchscript(code=CODE + b'  __forward_pre_hooks__ = ["f", ]\n'), "CodeRefused",
        "__forward_pre_hooks__"),
    "a class of libtorch in the code": (torchscript(code=b"  w : __torch__.torch.classes.xnnpack.LinearOpContext\n"), "CodeRefused", "torch.classes"),  # noqa: E501
    "an object of libtorch": (torchscript(data=CUSTOM), "CodeRefused",
        "torch.classes.quantized.LinearPackedParamsBase"),
    "a pickle that calls": (torchscript(data=SYSTEM), "CodeRefused", "os.system"),
    "a pickle cut off": (torchscript(data=DATA[:20]), "ModelInvalid", "data.pkl is damaged"),
    "a program without its weights": (zipped(("m/constants.pkl", b"N."), ("m/version", b"3")), "ModelInvalid",
        "no whole program"),
    "TorchScript cut off": (torchscript()[:-9], "ArchiveBroken", "pack it again"),
    "TorchScript that leads out": (torchscript(("m/../../escaped", b"x")), "ArchiveUnsafe", "escaped"),
    "TorchScript as a bomb": (lying(torchscript(), 0xFFFFFFF0), "TooLarge", "unpacked"),
    "no layout of PyTorch": (zipped(("m/archive_format", b"pt2"), ("n/models/m.json", b"{}")), "ModelInvalid",
        "not laid out as torch.export.save"),
    "a schema to come": (exported(version=b"9.0"), "ModelInvalid", "version '9'"),
    "no JSON": (exported(b"{"), "ModelInvalid", "no JSON"),
    "JSON without end": (exported(b"[" * 100_000), "ModelInvalid", "no JSON"),
    "a function of torch": (exported(program(node("torch.load"))), "OperatorRefused", "torch.load"),
    "a function of Python": (exported(program(node("_operator.methodcaller"))), "OperatorRefused",
        "methodcaller"),
    "an operator that reads files": (exported(program(node("torch.ops.aten.from_file.default"))),
        "OperatorRefused", "from_file"),
    "an operator of one's own": (exported(program(node("torch.ops.mine.relu.default"))), "OperatorRefused",
        "mine"),
    "a way around the operators": (exported(program(node("torch.ops.aten.relu.__class__"))),
        "OperatorRefused", "__class__"),
    "an operator as an argument": (exported(program(node("torch.ops.aten.relu.default",
        {"as_operator": "torch.load"}))), "OperatorRefused", "load"),
    "a program inside": (exported(program(node("torch.ops.aten.relu.default", {"as_graph": {"name": "g"}}))),
        "CodeRefused", "inside of"),
    "an object of its own": (exported(program(custom_obj_values={"o": {"name": "o", "class_fqn": "a.B"}})),
        "CodeRefused", "class of its own"),
    "a size that calls": (exported(program(batch="__import__('os').system('true')")), "CodeRefused",
        "more than arithmetic"),
    "a size that looks around": (exported(program(batch="s0.__class__")), "CodeRefused",
        "more than arithmetic"),
    "a symbol that is text": (exported(program(batch="Symbol('open')")), "CodeRefused",
        "more than arithmetic"),
    "a size without end": (exported(program(batch="(" * 1000)), "CodeRefused", "more than arithmetic"),
    "a container that imports": (exported(program(container=TUPLE.replace("tuple", "module"))), "CodeRefused",
        "builtins.module"),
    "weights as a bomb": (exported(weights=lying(zipped(("archive/data/0", b"x")), 0xFFFFFFF0)), "TooLarge",
        "unpacked"),
    "weights cut off": (exported(weights=zipped(("archive/data/0", b"x"))[:-9]), "ArchiveBroken",
        "pack it again"),
    "no JSON, later": (packaged(b"{"), "ModelInvalid", "no JSON"),
    "JSON without end, later": (packaged(b"[" * 100_000), "ModelInvalid", "no JSON"),
    "JSON of something else": (packaged(b'{"schema_version": {"major": 8}, "graph_module": {"graph": 7}}'),
        "ModelInvalid", "not as PyTorch"),
    "a function of torch, later": (packaged(later(node("torch.load"))), "OperatorRefused", "torch.load"),
    "a list of a kind to come": (packaged(later(node("torch.ops.aten.relu.default",
        {"as_int_lists": [[1]]}))), "ModelInvalid", "as_int_lists"),
    "a schema to come, later": (packaged(later() | {"schema_version": {"major": 9, "minor": 0}}),
        "ModelInvalid", "version '9'"),
    "an archive to come": (packaged(archive_version=b"1"), "ModelInvalid", "archive_version '1'"),
    "another machine's bytes": (packaged(byteorder=b"big"), "ModelInvalid", "byteorder 'big'"),
    "another archive": (packaged(archive_format=b"pt3"), "ModelInvalid", "archive_format 'pt3'"),
    "two programs": (packaged(None, ("models/n.json", b"{}")), "ModelInvalid", "2 programs (m, n)"),
    "two archives": (packaged(None, ("../n/models/m.json", b"{}")), "ArchiveUnsafe", "m/../n"),
    "a program that leads out": (packaged(None, ("../../escaped", b"x")), "ArchiveUnsafe", "escaped"),
    "compiled code": (packaged(None, ("data/aotinductor/m/weights_config.json", b"{}")), "CodeRefused",
        "aotinductor"),
    "a library": (packaged(None, ("extra/lib.so", b"\x7fELF")), "CodeRefused", "lib.so"),
    "a kernel": (packaged(None, ("data/constants/k.cubin", b"\x7fELF")), "CodeRefused", "k.cubin"),
    "an object as a constant": (packaged(None, ("data/constants/custom_obj_0", SYSTEM),
        constants={"o": OBJECT}), "CodeRefused", "for an object"),
    "a pickle as a weight": (weighing(tensor(3, pickled=True), ("data/weights/weight_0", SYSTEM)),
        "CodeRefused", "a pickle as tensor 'w'"),
    "a weight outside": (weighing(tensor(3, path="../../models/m.json")), "ArchiveUnsafe",
        "outside of data/weights/"),
    "a weight of the machine": (weighing(tensor(3, path="/etc/passwd")), "ArchiveUnsafe", "'/etc/passwd'"),
    "a weight that is not there": (weighing(tensor(3, path="weight_7")), "ModelInvalid",
        "weight_7, which the archive does not hold"),
    "a weight past its end": (weighing(tensor(13)), "ModelInvalid",
        "ends at byte 52 of data/weights/weight_0, which has 48"),
    "a wider type": (weighing(tensor(12, dtype=8)), "ModelInvalid", "ends at byte 96"),
    "a type to come": (weighing(tensor(12, dtype=29)), "ModelInvalid", "data type 29"),
    "a sparse weight": (weighing(tensor(12, layout=1)), "ModelInvalid", "layout 1"),
    "a weight on a GPU": (weighing(tensor(12, device={"type": "cuda", "index": 0})), "ModelInvalid",
        "on the CPU"),
    "strides past the end": (weighing(tensor(3, 2, strides=[100, 1])), "ModelInvalid", "ends at byte 808"),
    "an offset past the end": (weighing(tensor(3, storage_offset={"as_int": 1 << 40})), "ModelInvalid",
        "ends at byte 4398046511116"),
    "an offset before": (weighing(tensor(3, storage_offset={"as_int": -1})), "ModelInvalid",
        "storage_offset"),
    "a negative size": (weighing(tensor(-3)), "ModelInvalid", "sizes"),
    "a size of any length": (weighing(tensor(3, sizes=[{"as_int": 10**40}])), "ModelInvalid", "sizes"),
    "a size that is computed": (weighing(tensor(3, sizes=[{"as_expr": {"expr_str": "s0"}}])), "ModelInvalid",
        "sizes"),
    "more sizes than strides": (weighing(tensor(3, strides=[])), "ModelInvalid", "1 sizes and 0 strides"),
    "a weight of nothing": (packaged(None, ("data/weights/weight_0", b""), weights={"w": tensor(1 << 40)}),
        "ModelInvalid", "which has 0"),
    "a weight that repeats": (weighing(tensor(1 << 40, strides=[0])), "TooLarge", "repeat"),
    "weights of no JSON": (packaged(weights=b"["), "ModelInvalid", "what it says of its weights"),
    "weights of deep JSON": (packaged(weights=b'{"config":' * 100_000), "ModelInvalid",
        "what it says of its weights"),
    "weights of another": (packaged(None, ("models/n.json", b"{}"), without="models/m.json"), "ModelInvalid",
        "no weights of 'n'"),
    "weights of 2.8 as a bomb": (packaged(None, ("data/weights/m.pt",
        lying(zipped(("archive/data/0", b"x")), 0xFFFFFFF0))), "TooLarge", "unpacked"),
}  # fmt: skip
