"""Broken and hostile files for other backends of Triton, and what each of them has to end with."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from typing import Any

from modelrollout.contract.formats import Served, Tensor
from modelrollout.contract.tasks import Batching
from tests.unit.optimizer.backend_files import (
    CONFIG,
    GRAPH,
    IR,
    MODEL_PY,
    PLAN,
    TORCHSCRIPT,
    engine,
    packed,
    vllm,
)
from tests.unit.optimizer.hostile import MODEL, Case, entry, tarred, zip_link, zipped

TRITON = "spec.serving.triton"
X, Y = (
    Tensor(name="x", data_type="FP32", shape=(-1, 4)),
    Tensor(name="scores", data_type="FP32", shape=(-1, 3)),
)
BILLION = (
    b'<?xml version="1.0"?><!DOCTYPE n [<!ENTITY a "aaaaaaaaaa"><!ENTITY b'
    b' "&a;&a;&a;&a;&a;&a;&a;&a;">]><net>&b;</net>'
)
FOREIGN = b'<?xml version="1.0"?><!DOCTYPE n [<!ENTITY a SYSTEM "file:///etc/passwd">]><net>&a;</net>'


def case(
    name: str,
    reason: str,
    backend: str,
    model: bytes,
    says: str = "",
    at: str = MODEL,
    told: bool = False,
    **changes: Any,
) -> Case:
    """``told``: spec names the tensors; other ``changes`` are of the task or of ``served``."""
    served: dict[str, Any] = {"backend": backend, "code": changes.pop("code", False)}
    if told:
        served |= {"inputs": (X,), "outputs": (Y,)}
    return Case(
        f"{backend}: {name}", reason, at, model, says=says, changes={"served": Served(**served), **changes}
    )


def graph(content: bytes, *more: tuple[str, bytes]) -> bytes:
    return packed("model.savedmodel/saved_model.pb", content, *more)


def openvino(xml: bytes, config: bytes = CONFIG) -> bytes:
    return packed("model.xml", xml, ("m/1/model.bin", bytes(48)), config=config)


def configured(text: bytes, reason: str, says: str, name: str, **more: Any) -> Case:
    return case(
        f"config with {name}",
        reason,
        "TensorRT",
        packed("model.plan", PLAN, config=CONFIG + text),
        says,
        **more,
    )


BACKEND_CASES: tuple[Case, ...] = (
    # files
    case("empty", "ModelTruncated", "TensorRT", b""),
    case("an ONNX file", "BackendFileInvalid", "TensorRT", b"\x08\x08\x12\x07pytorch" + bytes(100), "trtexec",
        told=True),
    case("only its beginning", "BackendFileInvalid", "TensorRT", b"ftrt", told=True),
    case("a header in front", "BackendFileInvalid", "TensorRT", b"\x09\x00\x00\x00" + b'{"a": 1} ' + PLAN,
        "first 13 bytes", told=True),
    case("a header that lies", "BackendFileInvalid", "TensorRT", b"\xff\xff\xff\xff" + b'{"a": 1} ' + PLAN,
        told=True),
    case("a pickle", "PickleRefused", "TensorRT", pickle.dumps({"w": 1}), told=True),
    case("a library beside it", "CodeRefused", "TensorRT",
        packed("model.plan", PLAN, ("m/1/libtriton_tensorrt.so", b"x")), "libtriton_tensorrt.so"),
    case("a library with a number", "CodeRefused", "TensorRT",
        packed("model.plan", PLAN, ("m/1/lib.so.1", b"x")), "lib.so.1"),
    case("a checkpoint", "PickleRefused", "TorchScript", zipped(("m/data.pkl", b"x")), "torch.jit",
        told=True),
    case("an old checkpoint", "PickleRefused", "TorchScript", pickle.dumps({"w": 1}), told=True),
    case("text", "BackendFileInvalid", "TorchScript", b"hello", told=True),
    case("a checkpoint in an archive", "PickleRefused", "TorchScript",
        packed("model.pt", zipped(("m/data.pkl", b"x")))),
    case("model.py instead", "BackendFileMissing", "TorchScript", packed("model.py", MODEL_PY), "model.pt"),
    case("one file", "BackendFileMissing", "SavedModel", GRAPH, "pack", told=True),
    case("no graph", "BackendFileMissing", "SavedModel", packed("model.savedmodel/variables/a", b"x"),
        "saved_model.pb"),
    case("text as graph", "BackendFileInvalid", "SavedModel", graph(b"hello")),
    case("a graph that writes files", "CodeRefused", "SavedModel", graph(GRAPH + b"\x12\x09WriteFile"),
        "WriteFile"),
    case("a graph that runs Python", "CodeRefused", "SavedModel", graph(GRAPH + b"\x12\x06PyFunc"), "PyFunc"),
    case("a library", "CodeRefused", "SavedModel", graph(GRAPH, ("m/1/model.savedmodel/assets/op.so", b"x"))),
    case("no weights", "BackendFileMissing", "OpenVINO", packed("model.xml", IR), "model.bin"),
    case("half of the weights", "BackendFileInvalid", "OpenVINO",
        packed("model.xml", IR, ("m/1/model.bin", bytes(24))), "byte 48"),
    case("half of the network", "BackendFileInvalid", "OpenVINO", openvino(IR[:500]), "XML"),
    case("another document", "BackendFileInvalid", "OpenVINO", openvino(b"<html/>"), "no OpenVINO"),
    case("entities that grow", "BackendFileInvalid", "OpenVINO", openvino(BILLION), "document type"),
    case("a foreign entity", "BackendFileInvalid", "OpenVINO", openvino(FOREIGN), "document type"),
    case("a wild offset", "BackendFileInvalid", "OpenVINO", openvino(IR.replace(b'"0" size', b'"-9" size'))),
    case("names of another model", "TensorUnknown", "OpenVINO", openvino(IR, CONFIG.replace(b'"x"', b'"z"')),
        "'z'", at=TRITON),
    case("without permission", "CodeRefused", "Python", packed("model.py", MODEL_PY), "code: Allowed",
        at=f"{TRITON}.backend"),
    case("no class", "BackendFileInvalid", "Python", packed("model.py", b"import os"), "TritonPythonModel",
        code=True),
    case("remote code", "CodeRefused", "VLLM", vllm(engine(trust_remote_code=True)), "trust_remote_code"),
    case("remote code, in a word", "CodeRefused", "VLLM", vllm(engine(trust_remote_code="yes")),
        "trust_remote_code"),
    case("a class of its own", "CodeRefused", "VLLM", vllm(engine(worker_cls="evil.Worker")), "worker_cls"),
    case("pickled weights", "CodeRefused", "VLLM", vllm(None, ("weights/pytorch_model.bin", b"x")),
        "pytorch_model.bin"),
    case("code beside the weights", "CodeRefused", "VLLM", vllm(None, ("weights/modeling.py", b"x")),
        "modeling.py"),
    case("weights of a hub", "WeightsMissing", "VLLM", vllm(engine(model="facebook/opt-125m")), "hub"),
    case("weights outside", "WeightsMissing", "VLLM", vllm(engine(model="../../etc")), "../../etc"),
    case("weights of the server", "WeightsMissing", "VLLM", vllm(engine(model="/models")), "'/models'"),
    case("weights that are a number", "WeightsMissing", "VLLM", vllm(engine(model=7)), "'7'"),
    case("a tokenizer of a hub", "WeightsMissing", "VLLM", vllm(engine(tokenizer="gpt2")), "tokenizer"),
    case("no model", "EngineInvalid", "VLLM", vllm(b"{}"), "names no model"),
    case("a list", "EngineInvalid", "VLLM", vllm(b"[]"), "JSON object"),
    case("100,000 brackets", "EngineInvalid", "VLLM", vllm(b"[" * 60_000)),
    case("a long engine", "EngineInvalid", "VLLM", vllm(b" " * 100_000)),
    case("batches", "ConfigInvalid", "VLLM", vllm(None, ("config.pbtxt", b"max_batch_size: 8")),
        "max_batch_size"),
    # archives
    case("slip", "ArchiveUnsafe", "TensorRT", packed("model.plan", PLAN, ("../escaped", b"x")), "../escaped"),
    case("link", "ArchiveUnsafe", "OpenVINO", zipped(("model.xml", IR),
        (zip_link("model.bin"), b"/etc/passwd")), "link"),
    case("tar with a link", "ArchiveUnsafe", "TensorRT",
        tarred((entry("model.plan", tarfile.SYMTYPE, "/etc/passwd"), b""))),
    case("bomb", "TooLarge", "TensorRT", gzip.compress(entry("model.plan", size=1 << 40).tobuf()), told=True),
    case("more than is fetched", "TooLarge", "TensorRT", packed("model.plan", PLAN + bytes(9000)),
        max_bytes=9000),
    case("2,001 files", "TooLarge", "SavedModel", zipped(("saved_model.pb", GRAPH),
        *((f"assets/{i}", b"") for i in range(2000))), told=True),
    case("gzip of no tar", "ArchiveBroken", "TensorRT", gzip.compress(PLAN), told=True),
    case("an odd name", "NameRefused", "SavedModel", zipped(("saved_model.pb", GRAPH), ("assets/a b", b"")),
        "assets/a b", told=True),
    case("the report's name", "NameRefused", "VLLM", vllm(None, ("report.json", b"{}")), "report.json"),
    case("nothing of it", "BackendFileMissing", "TensorRT", zipped(("readme.txt", b"hi")), "model.plan",
        told=True),
    case("two versions", "BackendFileAmbiguous", "TensorRT",
        packed("model.plan", PLAN, ("m/2/model.plan", PLAN)), "m/1, m/2"),
    case("two models", "BackendFileAmbiguous", "TensorRT",
        packed("model.plan", PLAN, ("n/config.pbtxt", CONFIG), ("n/1/model.plan", PLAN))),
    case("far from its config", "BackendFileMissing", "TensorRT",
        zipped(("m/config.pbtxt", CONFIG), ("n/model.plan", PLAN)), "beside config.pbtxt"),
    # config.pbtxt
    case("no config", "ConfigMissing", "TensorRT", PLAN, "name inputs and outputs", at=TRITON),
    case("tensors twice", "ConfigAmbiguous", "TensorRT", packed("model.plan", PLAN), at=f"{TRITON}.inputs",
        told=True),
    case("text as config", "ConfigInvalid", "TensorRT", packed("model.plan", PLAN, config=b"hello"),
        "does not read"),
    case("bytes as config", "ConfigInvalid", "TensorRT", packed("model.plan", PLAN, config=b"\xff\xfe"),
        "does not read"),
    case("brackets as config", "ConfigInvalid", "TensorRT",
        packed("model.plan", PLAN, config=b"input {" * 30_000)),
    case("a long config", "ConfigInvalid", "TensorRT", packed("model.plan", PLAN, config=b" " * 300_000),
        "bytes"),
    case("an empty config", "ConfigInvalid", "TensorRT", packed("model.plan", PLAN, config=b""), "no input"),
    configured(b"maximum: 3", "ConfigInvalid", "maximum", "a field that is none"),
    configured(b"max_batch_size: -1", "ConfigInvalid", "negative", "a negative batch"),
    configured(b'input { name: "x" data_type: TYPE_FP32 dims: [1] }', "ConfigInvalid", "each but once",
        "an input twice"),
    configured(b'input { name: "z" dims: [1] }', "ConfigInvalid", "no data_type", "an input without a type"),
    configured(b'input { name: "z" data_type: TYPE_FP32 }', "ConfigInvalid", "dims", "an input without dims"),
    configured(b'input { name: "z" data_type: TYPE_FP32 dims: [-2] }', "ConfigInvalid", "dims", "odd dims"),
    configured(b'backend: "python"', "ConfigMismatch", "'python'", "another backend", at=f"{TRITON}.backend"),
    configured(b'platform: "onnxruntime_onnx"', "ConfigMismatch", "platform", "another platform", at=TRITON),
    configured(b'default_model_filename: "../../x"', "ConfigMismatch", "rename the file", "another file",
        at=TRITON),
    configured(b'runtime: "model.py"', "ConfigUnsupported", "runtime", "a runtime"),
    configured(b"ensemble_scheduling { }", "ConfigUnsupported", "ensemble", "an ensemble"),
    configured(b"sequence_batching { }", "ConfigUnsupported", "sequence", "sequences"),
    configured(b'model_operations { op_library_filename: "/x.so" }', "ConfigUnsupported", "shared library",
        "a library"),
    configured(b'model_repository_agents { agents { name: "a" } }', "ConfigUnsupported", "agents", "agents"),
    configured(b'cc_model_filenames { key: "8.0" value: "a.plan" }', "ConfigUnsupported", "one file",
        "files by GPU"),
    configured(b"instance_group { gpus: [3] }", "ConfigUnsupported", "gpus", "a GPU of its own"),
    configured(b'output { name: "z" label_filename: "../l" }', "ConfigUnsupported", "label_filename",
        "labels"),
    configured(b'parameters { key: "CPU_EXTENSION_PATH" value { string_value: "/x.so" } }',
        "ConfigUnsupported", "CPU_EXTENSION_PATH", "a path"),
    configured(
        b'model_warmup { name: "a" inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 input_data_file: "../x" } } }',  # noqa: E501
        "ConfigUnsupported",
        "input_data_file",
        "a warmup file",
    ),
    configured(
        b"max_batch_size: 4", "BatchingImpossible", "at most 4", "small batches", at="spec.serving.batching",
        batching=Batching(max_batch_size=8)
    ),
    configured(b"", "BatchingImpossible", "maxBatchSize: 0", "no batches", at="spec.serving.batching",
        batching=Batching(max_batch_size=8)),
    case("torch in a zip of TorchScript", "BackendFileInvalid", "TensorRT",
        packed("model.plan", TORCHSCRIPT)),
)  # fmt: skip
