"""Broken and hostile files, made here byte by byte, and what each of them has to end with."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper

from modelrollout.testing.object_store import classifier, labelled, npz, samples

GOOD = classifier().SerializeToString()
X, Y = samples(64)
MODEL, GATE, SIGNED = "spec.model.uri", "spec.optimization.gate.data", "spec.model.signature"


@dataclass(frozen=True)
class Case:
    """The files that a Job meets, and the reason, code and start of the message that it ends
    with.
    """

    name: str
    reason: str
    at: str
    model: bytes = GOOD
    data: bytes | None = None  # held-out
    signature: bytes | None = None
    signed: bool = False
    key: bytes | None = None
    slices: tuple[str, ...] = ()
    code: int = 10
    says: str = ""
    changes: dict[str, Any] = field(default_factory=dict)


# --- models


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """The good model with a change."""
    model = classifier()
    change(model)
    return bytes(model.SerializeToString())


def _node(*args: Any, **kwargs: Any) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.node.append(helper.make_node(*args, **kwargs))


def external(location: str, **more: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def nested(depth: int) -> bytes:
    """Graphs inside graphs, with more levels than protobuf parses: written by hand, from the inside
    out.
    """

    def field_of(number: int, content: bytes) -> bytes:
        size, out = len(content), b""
        while True:
            out += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + out + content

    graph = b""
    for _ in range(depth):
        # Graph.node, Node.attribute, Attribute.g
        graph = field_of(1, field_of(5, field_of(6, graph)))
    return b"\x08\x08" + field_of(7, graph)


def function_of_itself(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Again", ["a"], ["b"], domain="own")]
    model.functions.append(
        helper.make_function(
            "own", "Again", ["a"], ["b"], body, [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
        )
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Again", ["x"], ["z"], domain="own"))


def two_functions(model: onnx.ModelProto) -> None:
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    for name, other in (("Ping", "Pong"), ("Pong", "Ping")):
        model.functions.append(
            helper.make_function(
                "own", name, ["a"], ["b"], [helper.make_node(other, ["a"], ["b"], domain="own")], imports
            )
        )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Ping", ["x"], ["z"], domain="own"))


def default_of_a_function(model: onnx.ModelProto) -> None:
    """A tensor in another file as what a call takes that says nothing of it."""
    inside = helper.make_node("Constant", [], ["b"])
    inside.attribute.append(
        onnx.AttributeProto(name="value", ref_attr_name="weights", type=onnx.AttributeProto.TENSOR)
    )
    default = helper.make_attribute("weights", numpy_helper.from_array(np.zeros(3, np.float32), "elsewhere"))
    default.t.ClearField("raw_data")
    default.t.data_location = TensorProto.EXTERNAL
    default.t.external_data.add(key="location", value="source-0")
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function("own", "Read", [], ["b"], [inside], imports, attribute_protos=[default])
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Read", [], ["z"], domain="own"))


def operator_in_a_default(model: onnx.ModelProto) -> None:
    inside = helper.make_graph(
        [helper.make_node("Run", [], ["c"], domain="evil.ops")],
        "b",
        [],
        [helper.make_tensor_value_info("c", 1, [1])],
    )
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    default = helper.make_attribute("body", inside)
    model.functions.append(
        helper.make_function(
            "own",
            "Go",
            ["a"],
            ["b"],
            [helper.make_node("Neg", ["a"], ["b"])],
            imports,
            attribute_protos=[default],
        )
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Go", ["x"], ["z"], domain="own"))


def in_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph(
        [helper.make_node("Run", [], ["c"], domain="evil.ops")],
        "b",
        [],
        [helper.make_tensor_value_info("c", 1, [1])],
    )
    model.graph.node.append(helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch))


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node.extend([helper.make_node("Neg", ["q"], ["p"]), helper.make_node("Neg", ["p"], ["q"])])


def dims(*sizes: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(sizes)

    return change


def input_of(kind: onnx.TypeProto) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.input[0].type.CopyFrom(kind)


def wide_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 60


def constant_of(shape: list[int]) -> Callable[[onnx.ModelProto], object]:
    """A graph that makes a huge tensor out of a few bytes."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "huge"))
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["ones"]))
        model.graph.node.append(helper.make_node("ReduceSum", ["ones"], ["total"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["scores", "total"], ["more"]))
        model.graph.output[0].name = "more"

    return change


def no_inputs(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        numpy_helper.from_array(np.zeros((1, 4), np.float32), model.graph.input[0].name)
    )
    model.graph.ClearField("input")


def no_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 0


def fails_at_run(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 11], np.int64), "to"))
    model.graph.node.append(helper.make_node("Reshape", ["scores", "to"], ["wrong"]))
    model.graph.output[0].name = "wrong"
    model.graph.output[0].type.tensor_type.ClearField("shape")


def _map_output(model: onnx.ModelProto) -> None:
    inner = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    model.graph.output[0].CopyFrom(helper.make_value_info("scores", helper.make_sequence_type_proto(inner)))


# --- archives


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for info, content in entries:
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content) if content else None)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def lying(content: bytes, size: int) -> bytes:
    """Every entry of a zip says that it is so large, in both of its headers."""
    out = bytearray(content)
    for magic, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = 0
        while (start := out.find(magic, start)) >= 0:
            struct.pack_into("<I", out, start + at, size)
            start += 4
    return bytes(out)


def patched(content: bytes, local: int, central: int, value: int) -> bytes:
    """A two-byte field of every entry, in both of its headers."""
    out = bytearray(content)
    for magic, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        start = 0
        while (start := out.find(magic, start)) >= 0:
            struct.pack_into("<H", out, start + at, value)
            start += 4
    return bytes(out)


# --- data


def npy(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with any header."""
    text = header.encode() + b"\n"
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<H" if version[0] == 1 else "<I", len(text))
        + text
        + content
    )


def with_x(content: bytes) -> bytes:
    """A data set whose array x is this file."""
    return zipped(
        ("x.npy", content),
        (
            "labels.npy",
            npy("{'descr': '<i8', 'fortran_order': False, 'shape': (64,)}", Y.astype("<i8").tobytes()),
        ),
    )


def header_bomb(kind: bytes) -> bytes:
    """A tar whose first header announces 256 MiB that belong to it: little when packed, and read
    into memory whole.
    """
    zeros = gzip.compress(bytes(1 << 24))
    return gzip.compress(entry("long", kind, size=1 << 28).tobuf(tarfile.GNU_FORMAT)) + zeros * 16


def header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


# --- signatures


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


SIGNER, STRANGER = (ec.derive_private_key(number, ec.SECP256R1()) for number in (12345, 54321))


def signature(sha256: str, key: ec.EllipticCurvePrivateKey = SIGNER, **changes: Any) -> bytes:
    """As ``model_signing sign key`` writes it."""
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model.onnx", "digest": {"sha256": "0" * 64}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"resources": [{"name": ".", "algorithm": "sha256", "digest": sha256}]},
    }
    kind = changes.pop("kind", "application/vnd.in-toto+json")
    payload = json.dumps(statement | changes).encode()
    signed = key.sign(
        b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload), ec.ECDSA(hashes.SHA256())
    )
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(signed).decode()}],
    }
    return json.dumps(
        {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope}
    ).encode()


GOOD_SHA = hashlib.sha256(GOOD).hexdigest()


def tampered() -> bytes:
    """A good signature of another file, with the digest of this one written over it."""
    bundle = json.loads(signature("0" * 64))
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(
        b'"digest": "' + b"0" * 64, b'"digest": "' + GOOD_SHA.encode()
    )
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    return json.dumps(bundle).encode()


CASES: tuple[Case, ...] = (
    # what is no model
    Case("empty", "ModelTruncated", MODEL, b""),
    Case("half of a model", "ModelTruncated", MODEL, GOOD[: len(GOOD) // 2]),
    Case("all but one byte", "ModelTruncated", MODEL, GOOD[:-1]),
    Case("length beyond the end", "ModelTruncated", MODEL, b"\x08\x08\x3a\xff\xff\xff\xff\x0f"),
    Case("pickle", "PickleRefused", MODEL, pickle.dumps({"w": 1}), says="export"),
    Case("pickle of protocol 0", "NotOnnx", MODEL, b"cos\nsystem\n(S'touch /tmp/ran'\ntR."),
    Case("PyTorch checkpoint", "PickleRefused", MODEL, zipped(("archive/data.pkl", b"x")), says="PyTorch"),
    Case("HDF5", "FormatNotSet", "spec.model.format", b"\x89HDF\r\n\x1a\n" + bytes(64), says="Keras"),
    Case("SavedModel", "NotOnnx", MODEL, b"\x08\x01\x12\x04abcd", says="SavedModel"),
    Case("TFLite", "FormatNotSet", "spec.model.format", bytes(4) + b"TFL3" + bytes(64), says="TFLite"),
    Case("TorchScript", "FormatNotSet", "spec.model.format",
        zipped(("m/data.pkl", b"x"), ("m/constants.pkl", b"x")), says="PyTorch"),
    Case("exported program", "FormatNotSet", "spec.model.format",
        zipped(("serialized_exported_program.json", b"{}")), says="PyTorch"),
    Case("GGUF", "NotOnnx", MODEL, b"GGUF" + bytes(64), says="GGUF"),
    Case("safetensors", "NotOnnx", MODEL, struct.pack("<Q", 10) + b'{"a":1}   ', says="safetensors"),
    Case("login page", "NotOnnx", MODEL, b"<!DOCTYPE html><html>login</html>", says="page"),
    Case("LFS pointer", "NotOnnx", MODEL, b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        says="LFS"),
    Case("numpy array", "NotOnnx", MODEL, npy(header("(1,)"), bytes(4)), says="numpy"),
    Case("text", "NotOnnx", MODEL, b"hello, this is a text"),
    Case("noise", "NotOnnx", MODEL, np.random.default_rng(0).bytes(4096)),
    Case("no graph", "NotOnnx", MODEL, b"\x08\x08\x12\x04test", says="no graph"),
    Case("graphs 400 deep", "NotOnnx", MODEL, nested(400), says="deeper"),
    Case("another digest", "DigestMismatch", MODEL, changes={"sha256": "0" * 64}),
    # archives
    Case("zip without a model", "NotOnnx", MODEL, zipped(("readme.txt", b"hi"))),
    Case("zip that is cut off", "ArchiveBroken", MODEL, zipped(("m.onnx", GOOD))[:-30]),
    Case("gzip of no tar", "ArchiveBroken", MODEL, gzip.compress(GOOD)),
    Case("tar that is cut off", "ArchiveBroken", MODEL, tarred((entry("m.onnx"), GOOD))[:1500]),
    Case("zip slip", "ArchiveUnsafe", MODEL, zipped(("m.onnx", GOOD), ("../../escaped", b"x")),
        says="../../escaped"),
    Case("zip with an absolute name", "ArchiveUnsafe", MODEL,
        zipped(("m.onnx", GOOD), ("/tmp/escaped", b"x"))),
    Case("zip with a Windows name", "ArchiveUnsafe", MODEL, zipped(("m.onnx", GOOD), ("..\\escaped", b"x"))),
    Case("zip with a link", "ArchiveUnsafe", MODEL, zipped(("m.onnx", GOOD),
        (zip_link("w.bin"), b"/etc/passwd")), says="link"),
    Case("tar slip", "ArchiveUnsafe", MODEL, tarred((entry("m.onnx"), GOOD), (entry("../escaped"), b"x"))),
    Case("tar with a symbolic link", "ArchiveUnsafe", MODEL,
        tarred((entry("m.onnx"), GOOD), (entry("w", tarfile.SYMTYPE, "/etc/passwd"), b""))),
    Case("tar with a hard link", "ArchiveUnsafe", MODEL,
        tarred((entry("m.onnx"), GOOD), (entry("w", tarfile.LNKTYPE, "/etc/passwd"), b""))),
    Case("tar with a device", "ArchiveUnsafe", MODEL, tarred((entry("m.onnx"), GOOD),
        (entry("w", tarfile.CHRTYPE), b""))),
    Case("file and folder at once", "ArchiveUnsafe", MODEL,
        zipped(("m.onnx", GOOD), ("a", b"x"), ("a/b", b"y"))),
    Case("two files of one name", "ArchiveUnsafe", MODEL,
        tarred((entry("m.onnx"), GOOD), (entry("w"), b"1"), (entry("./w"), b"2"))),
    Case("two models, a name is no text", "ArchiveAmbiguous", MODEL,
        tarred((entry("\udcff.onnx"), GOOD), (entry("b.onnx"), GOOD))),
    Case("two models", "ArchiveAmbiguous", MODEL, zipped(("a.onnx", GOOD), ("b.onnx", GOOD))),
    Case("zip bomb", "TooLarge", MODEL, lying(zipped(("m.onnx", GOOD), ("w.bin", b"x")), 0xFFFFFFF0),
        changes={"max_bytes": 3 << 30}),
    Case("tar bomb", "TooLarge", MODEL, gzip.compress(tarred((entry("m.onnx"),
        GOOD))[:-10240] + entry("w.bin", size=1 << 35).tobuf())),
    Case("tar with a name of 256 MiB", "TooLarge", MODEL, header_bomb(tarfile.GNUTYPE_LONGNAME),
        says="header"),
    Case("tar with attributes of 256 MiB", "TooLarge", MODEL, header_bomb(tarfile.XHDTYPE), says="header"),
    Case("10,001 files", "TooLarge", MODEL, zipped(("m.onnx", GOOD),
        *((f"f{i}", b"") for i in range(10_001)))),
    Case("zip with a password", "ArchiveBroken", MODEL, patched(zipped(("m.onnx", GOOD)), 6, 8, 1)),
    Case("zip packed in an unknown way", "ArchiveBroken", MODEL,
        patched(zipped(("m.onnx", GOOD)), 8, 10, 97)),
    Case("zip with a damaged model", "ArchiveBroken", MODEL,
        zipped(("m.onnx", GOOD)).replace(GOOD[:40], bytes(40), 1)),
    # external data
    Case("external data beside a file", "ExternalData", MODEL, changed(external("w.bin"))),
    Case("external data as a function's default", "ExternalData", MODEL, changed(default_of_a_function),
        says="'elsewhere'"),
    Case("an operator in a function's default", "CustomOperator", MODEL, changed(operator_in_a_default),
        says="'Run'"),
    Case("external data that leads out", "ExternalDataUnsafe", MODEL,
        zipped(("m.onnx", changed(external("../../etc/passwd")))), says="../../etc"),
    Case("external data with an absolute name", "ExternalDataUnsafe", MODEL,
        zipped(("m.onnx", changed(external("/etc/passwd"))))),
    Case("external data nowhere", "ExternalDataUnsafe", MODEL, zipped(("m.onnx", changed(external(""))))),
    Case("external data that is not there", "ExternalDataMissing", MODEL,
        zipped(("m.onnx", changed(external("w.bin"))))),
    Case("external data beyond its file", "ExternalDataMissing", MODEL,
        zipped(("m.onnx", changed(external("w", length="9"))), ("w", b"123"))),
    Case("external data before its file", "ExternalDataMissing", MODEL,
        zipped(("m.onnx", changed(external("w", offset="-9"))), ("w", b"123"))),
    Case("external data with words as numbers", "ExternalDataMissing", MODEL,
        zipped(("m.onnx", changed(external("w", offset="x"))), ("w", b"123"))),
    Case("external data too short", "ModelInvalid", MODEL,
        zipped(("m.onnx", changed(external("w"))), ("w", b"123")), says="3 bytes"),
    # models
    Case("custom operator", "CustomOperator", MODEL, changed(_node("Run", ["x"], ["z"], domain="evil.ops")),
        says="'Run' of domain 'evil.ops'"),
    Case("custom operator in a branch", "CustomOperator", MODEL, changed(in_branch), says="evil.ops"),
    Case("operator that reads files", "CustomOperator", MODEL,
        changed(_node("EPContext", ["x"], ["z"], domain="com.microsoft")), says="EPContext"),
    Case("function of itself", "ModelInvalid", MODEL, changed(function_of_itself), says="calls itself"),
    Case("two functions of each other", "ModelInvalid", MODEL, changed(two_functions), says="calls itself"),
    Case("cycle", "ModelInvalid", MODEL, changed(cycle), says="sorted"),
    Case("input from nowhere", "ModelInvalid", MODEL,
        changed(lambda m: m.graph.node[0].input.append("nowhere"))),
    Case("one name twice", "ModelInvalid", MODEL, changed(_node("Neg", ["x"], ["h"]))),
    Case("no opset", "ModelInvalid", MODEL, changed(lambda m: m.ClearField("opset_import"))),
    Case("opset of the future", "ModelRefused", MODEL, changed(lambda m: setattr(m.opset_import[0], "version",
        999))),
    Case("IR of the future", "ModelInvalid", MODEL, changed(lambda m: setattr(m, "ir_version", 999))),
    Case("operator that is none", "ModelInvalid", MODEL, changed(_node("Runn", ["x"], ["z"]))),
    Case("attribute of another type", "ModelInvalid", MODEL,
        changed(_node("Flatten", ["x"], ["z"], axis="one"))),
    Case("tensor of 10^18 elements", "TensorTooLarge", MODEL, changed(dims(10**9, 10**9))),
    Case("tensor of negative size", "TensorTooLarge", MODEL, changed(dims(-4, -64))),
    Case("tensor with other data", "ModelInvalid", MODEL, changed(dims(4, 65))),
    Case("input of 2^60 elements", "TensorTooLarge", MODEL, changed(wide_input)),
    Case("terabytes out of a few bytes", "OutOfMemory", "the Job ran out of memory",
        changed(constant_of([1 << 20, 1 << 20])), labelled(64), code=14),
    Case("map as output", "TypeUnsupported", MODEL, changed(_map_output), says="zipmap"),
    Case("sequence as input", "TypeUnsupported", MODEL,
        changed(input_of(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1]))))),
    Case("complex numbers", "TypeUnsupported", MODEL,
        changed(input_of(helper.make_tensor_type_proto(TensorProto.COMPLEX64, ["n", 4])))),
    Case("no shape", "ShapeUnknown", MODEL,
        changed(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"))),
    Case("no inputs", "ModelInvalid", MODEL, changed(no_inputs), labelled(64), says="no inputs"),
    Case("no outputs", "ModelInvalid", MODEL, changed(lambda m: m.graph.ClearField("output")), labelled(64),
        says="no outputs"),
    Case("batches of no samples", "ModelInvalid", MODEL, changed(no_batch), labelled(64), says="size 0"),
    Case("fails when it runs", "InferenceFailed", GATE, changed(fails_at_run), data=labelled(64)),
    # data sets
    Case("data that is no archive", "DataNotNpz", GATE, data=b"x y\n1 2\n"),
    Case("a table without the input", "DataShapeMismatch", GATE, data=b"x,labels\n1,2\n"),
    Case("a table that ends in a line", "DataNotTable", GATE, data=b"x,labels\n1,2\n3"),
    Case("data that is cut off", "DataNotNpz", GATE, data=labelled(64)[:-40]),
    Case("pickled array", "DataPickleRefused", GATE, data=with_x(npy(header("(64, 4)", "'|O'"),
        pickle.dumps([1])))),
    Case("pickled field of an array", "DataPickleRefused", GATE,
        data=with_x(npy(header("(64,)", "[('a', '|O')]"), bytes(512)))),
    Case("array of 10^18 numbers", "DataNotNpz", GATE, data=with_x(npy(header("(1000000000, 1000000000)"),
        bytes(64))), says="holds 64"),
    Case("array of negative size", "DataNotNpz", GATE, data=with_x(npy(header("(-64, -4)"), bytes(1024)))),
    Case("array that is too short", "DataNotNpz", GATE, data=with_x(npy(header("(64, 4)"), bytes(1000)))),
    Case("header of 3,000 brackets", "DataNotNpz", GATE, data=with_x(npy("(" * 3000 + ")" * 3000))),
    Case("header that is a program", "DataNotNpz", GATE,
        data=with_x(npy("__import__('os').system('touch /tmp/ran')"))),
    Case("header without end", "DataNotNpz", GATE, data=with_x(npy("{" + " " * 60_000))),
    Case("array of another version", "DataNotNpz", GATE,
        data=with_x(npy(header("(64, 4)"), bytes(1024), (9, 0)))),
    Case("damaged array", "DataNotNpz", GATE, data=labelled(64).replace(b"NUMPY\x01\x00", b"NUMPY\x01\x07",
        1)),
    Case("data bomb", "TooLarge", GATE, data=lying(labelled(64), 0xFFFFFFF0)),
    Case("1,025 arrays", "TooLarge", GATE, data=npz(x=X, labels=Y,
        **{f"a{i}": np.zeros(1) for i in range(1025)})),
    Case("data with a password", "DataNotNpz", GATE, data=patched(labelled(64), 6, 8, 1)),
    Case("data packed in an unknown way", "DataNotNpz", GATE, data=patched(labelled(64), 8, 10, 97)),
    Case("no array x", "DataInputMissing", GATE, data=npz(labels=Y, a=X, b=X)),
    Case("no samples", "DataEmpty", GATE, data=npz(x=X[:0], labels=Y[:0])),
    Case("other shape", "DataShapeMismatch", GATE, data=npz(x=X[:, :3], labels=Y)),
    Case("integers for floats", "DataTypeMismatch", GATE, data=npz(x=X.astype(np.int32), labels=Y)),
    Case("array with fields", "DataTypeMismatch", GATE, data=npz(x=np.zeros((64, 4), [("a", "f4")]),
        labels=Y)),
    Case("NaN", "DataNotFinite", GATE, data=npz(x=X * np.nan, labels=Y)),
    Case("no labels", "LabelsMissing", GATE, data=npz(x=X)),
    Case("labels as words", "LabelsNotInteger", GATE, data=npz(x=X, labels=Y.astype(str))),
    Case("labels one-hot", "LabelsShape", GATE, data=npz(x=X, labels=np.eye(3, dtype=np.int64)[Y])),
    Case("fewer labels", "LabelsLength", GATE, data=npz(x=X, labels=Y[:-1])),
    Case("labels out of range", "LabelsOutOfRange", GATE, data=npz(x=X, labels=Y + 7)),
    Case("words of no letters", "DataNotNpz", GATE, data=npz(x=X, labels=Y,
        writer=np.full(64, 0x110000, np.uint32).view("<U1"))),
    Case("words of half letters", "DataNotNpz", GATE, data=npz(x=X, labels=Y,
        writer=np.full(64, 0xD80000, np.uint32).view(">U1")), says="'writer'"),
    Case("no slice", "SliceInvalid", GATE, data=npz(x=X, labels=Y), slices=("writer",)),
    # signatures
    Case("no signature", "SignatureMissing", SIGNED, signed=True),
    Case("signature that is no JSON", "SignatureMalformed", SIGNED, signed=True, signature=b"-----BEGIN"),
    Case("signature of 100,000 brackets", "SignatureMalformed", SIGNED, signed=True,
        signature=b"[" * 100_000),
    Case("signature that is a list", "SignatureMalformed", SIGNED, signed=True, signature=b"[]"),
    Case("signature of a stranger", "SignatureInvalid", SIGNED, signed=True,
        signature=signature(GOOD_SHA, STRANGER)),
    Case("signature that was changed", "SignatureInvalid", SIGNED, signed=True, signature=tampered()),
    Case("signature of another file", "SignatureInvalid", SIGNED, signed=True, signature=signature("0" * 64),
        says="another file"),
    Case("signature of another statement", "SignatureMalformed", SIGNED, signed=True,
        signature=signature(GOOD_SHA, predicateType="https://slsa.dev/v1")),
    Case("signature of another payload", "SignatureMalformed", SIGNED, signed=True,
        signature=signature(GOOD_SHA, kind="text/plain")),
    Case("signature of a folder", "SignatureMalformed", SIGNED, signed=True,
        signature=signature(GOOD_SHA, predicate={"resources": [{}, {}]})),
    Case("signature of 2 MB", "TooLarge", f"{SIGNED}.uri", signed=True, signature=b" " * (2 << 20)),
    Case("no key", "SignerKeyMissing", f"{SIGNED}.keySecretRef", signed=True, key=b""),
    Case("key that is none", "SignerKeyInvalid", f"{SIGNED}.keySecretRef", signed=True,
        key=b"-----BEGIN PUBLIC KEY-----\nAAAA\n"),
)  # fmt: skip
