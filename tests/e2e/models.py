"""Tiny real models and data sets, good and broken ones."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 16, 4
WEIGHTS = np.random.default_rng(3).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def classifier(weights: NDArray[np.float32], name: str, of: str = "x") -> bytes:
    """``logits = x @ weights`` as ONNX; ``name`` makes the bytes differ, ``of`` is the input's."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", [of, "w"], ["logits"])],
        name,
        [helper.make_tensor_value_info(of, TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


_MODEL_PY = """
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.load(os.path.join(pb_utils.get_model_dir(), "weights.npy"))

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", x @ self.weights)]) for x in inputs]
"""
# The same, which answers with a stream.
_STREAM_PY = (
    _MODEL_PY.partition("        inputs = ")[0]
    + """
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("logits", x @ self.weights)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
)
# Streams an answer for each number in "x" of a request, one every so many seconds: as long as the
# first number says. One thread has all of them, however many there are.
_TICKER_PY = """
import heapq, itertools, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.due, self.order, self.more = [], itertools.count(), threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    def execute(self, requests):
        with self.more:
            for request in requests:
                count, seconds = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().ravel()[:2]
                self.add(time.monotonic(), request.get_response_sender(), 0, int(count), float(seconds))
            self.more.notify()

    def add(self, at, *stream):
        heapq.heappush(self.due, (at, next(self.order), *stream))

    def run(self):
        while True:
            with self.more:
                while not self.due:
                    self.more.wait()
                wait = self.due[0][0] - time.monotonic()
                if wait > 0:
                    self.more.wait(wait)
                    continue
                at, _, sender, number, count, seconds = heapq.heappop(self.due)
            answer = pb_utils.Tensor("logits", np.array([number], np.float32))
            sender.send(pb_utils.InferenceResponse([answer]))
            if number + 1 >= count:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            with self.more:
                self.add(at + seconds, sender, number + 1, count, seconds)

    def finalize(self):
        while self.due:
            time.sleep(0.1)
"""
_TICKER_CONFIG = """
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "logits" data_type: TYPE_FP32 dims: 1 }
model_transaction_policy { decoupled: true }
"""
_CONFIG = f"""
name: "another"
max_batch_size: 64
input {{ name: "x" data_type: TYPE_FP32 dims: {FEATURES} }}
output {{ name: "logits" data_type: TYPE_FP32 dims: {CLASSES} }}
version_policy {{ specific {{ versions: 1 }} }}
"""


def python_model(weights: NDArray[np.float32] | None, *, streams: bool = False) -> bytes:
    """The same model for Triton's Python backend, as an archive of its folder; None: without the
    weights, so that it does not load.
    """
    policy = "model_transaction_policy { decoupled: true }" if streams else ""
    buffer, array = io.BytesIO(), io.BytesIO()
    files: dict[str, str | bytes] = {
        "model/config.pbtxt": _CONFIG + policy,
        "model/1/model.py": _STREAM_PY if streams else _MODEL_PY,
    }
    if weights is not None:
        np.save(array, weights)
        files["model/1/weights.npy"] = array.getvalue()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            # a date of its own: by name alone each holds the time, so that a model which one of two
            # workers has pinned is another one once the second has written it
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def ticker(version: int) -> bytes:
    """A model whose streams last as long as their requests say, as an archive of its folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("config.pbtxt", _TICKER_CONFIG), ("1/model.py", f"# {version}\n{_TICKER_PY}")):
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), content)
    return buffer.getvalue()


def perceptron(hidden: int = 256) -> bytes:
    """The good model with a hidden layer of which most is of no use."""
    rng = np.random.default_rng(4)
    spare = rng.normal(scale=0.3, size=(FEATURES, hidden - 2 * CLASSES))
    into = np.concatenate([WEIGHTS, -WEIGHTS, spare], axis=1).astype(np.float32)
    out = np.concatenate(
        [np.eye(CLASSES), -np.eye(CLASSES), rng.normal(scale=0.003, size=(hidden - 2 * CLASSES, CLASSES))]
    ).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "into"], ["sums"]),
            helper.make_node("Relu", ["sums"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "out"], ["logits"]),
        ],
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(into, "into"), numpy_helper.from_array(out, "out")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def inputs(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``n`` inputs with the classes that the good model gives them."""
    x = np.random.default_rng(seed).normal(size=(n, FEATURES)).astype(np.float32)
    return x, np.argmax(x @ WEIGHTS, axis=1).astype(np.int64)


def write_models(folder: Path) -> list[Path]:
    good = classifier(WEIGHTS, "good")
    files = {
        "good.onnx": good,
        "better.onnx": classifier(WEIGHTS, "better"),
        "third.onnx": classifier(WEIGHTS, "third"),
        "wide.onnx": perceptron(1024),
        "wrong.onnx": classifier(-WEIGHTS, "wrong"),
        "renamed.onnx": classifier(WEIGHTS, "renamed", of="pixels"),
        "renamed-again.onnx": classifier(WEIGHTS, "renamed-again", of="pixels"),
        "truncated.onnx": good[: len(good) // 2],
        "text.onnx": b"this is not a model at all, but it was called one\n" * 20,
        "reviewed-good.zip": python_model(WEIGHTS),
        "reviewed-wrong.zip": python_model(-WEIGHTS),
        "reviewed-broken.zip": python_model(None),
        "reviewed-stream.zip": python_model(WEIGHTS, streams=True),
        # they load, and fail every request
        "reviewed-misfit.zip": python_model(WEIGHTS[:7]),
        "reviewed-misfit-stream.zip": python_model(WEIGHTS[:7], streams=True),
        **{f"ticker-{version}.zip": ticker(version) for version in (1, 2, 3)},
        "engine.plan": b"ftrt" + bytes(1000),
        "pickle.onnx": pickle.dumps({"weights": WEIGHTS}),
    }
    return [_write(folder / name, content) for name, content in files.items()]


def write_data(folder: Path) -> list[Path]:
    x, labels = inputs(600, 5)
    thousands = {"selection": inputs(2000, 41), "heldout": inputs(2000, 42)}
    sets: dict[str, dict[str, NDArray[np.generic]]] = {
        "good.npz": {"x": x, "labels": labels},
        "misfit.npz": {"x": x[:, :7], "labels": labels},
        "unlabelled.npz": {"x": x},
        **{f"{name}.npz": {"x": x, "labels": labels} for name, (x, labels) in thousands.items()},
    }
    for name, arrays in sets.items():
        np.savez(folder / name, **arrays)  # type: ignore[arg-type]
    return [folder / name for name in sets]


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
