"""``python -m tests.unit.optimizer.network_models FOLDER``: small networks of TensorFlow, Keras and
TFLite, good and hostile, a file each.

They are made in a process of their own: TensorFlow beside JAX and ONNX Runtime is too much for the
tests' process.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

N = 200
_RNG = np.random.default_rng(0)
IMAGES = _RNG.normal(size=(N, 8, 8, 3)).astype(np.float32)
WORDS = _RNG.integers(0, 20, (N, 6)).astype(np.int32)
NUMBERS = _RNG.normal(size=(N, 4)).astype(np.float32)
CLASSES = (IMAGES.mean(axis=(1, 2, 3)) > 0).astype(np.int64)

# By name: format, the inputs that the model takes, its outputs in order.
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "image.keras": ("Keras", {"image": IMAGES}, ["scores"]),
    "image.h5": ("Keras", {"image": IMAGES}, ["scores"]),
    "two-inputs.keras": ("Keras", {"words": WORDS, "numbers": NUMBERS}, ["share", "value"]),
    "image.saved_model.zip": ("TensorFlow", {"image": IMAGES}, ["output_0"]),
    "two-inputs.saved_model.tar.gz": ("TensorFlow", {"words": WORDS, "numbers": NUMBERS}, ["share", "value"]),
    "function.saved_model.zip": ("TensorFlow", {"numbers": NUMBERS}, ["total"]),
    "version-1.saved_model.zip": ("TensorFlow", {"numbers": NUMBERS}, ["total"]),
    "image.tflite": ("TFLite", {"image": IMAGES}, ["output_0"]),
    "fixed.tflite": ("TFLite", {"numbers": NUMBERS}, ["total"]),
}
# To be refused: format, reason, what the message names.
HOSTILE: dict[str, tuple[str, str, str]] = {
    "reads a file.zip": ("TensorFlow", "OperatorRefused", "'ReadFile'"),
    "writes a file.zip": ("TensorFlow", "OperatorRefused", "'WriteFile'"),
    "writes a file at its start.zip": ("TensorFlow", "OperatorRefused", "'WriteFile'"),
    "calls Python.zip": ("TensorFlow", "OperatorRefused", "'PyFunc'"),
    "restores from elsewhere.zip": ("TensorFlow", "OperatorRefused", "name of a file"),
    "an unknown operator.zip": ("TensorFlow", "OperatorRefused", "'Evil'"),
    "a constant of a terabyte.zip": ("TensorFlow", "TensorTooLarge", "elements"),
    "a node that is not there.zip": ("TensorFlow", "ModelInvalid", "lacks node"),
    "no graph for serving.zip": ("TensorFlow", "ModelInvalid", "tag 'serve'"),
    "two signatures.zip": ("TensorFlow", "ServingSignatureMissing", "['one', 'two']"),
    "damaged.zip": ("TensorFlow", "ModelInvalid", "damaged"),
    "no variables.zip": ("TensorFlow", "ModelInvalid", "TensorFlow does not read it"),
    "leads out.zip": ("TensorFlow", "ArchiveUnsafe", "../escaped"),
    "two models.zip": ("TensorFlow", "ArchiveAmbiguous", "2 saved_model.pb"),
    "text.zip": ("TensorFlow", "TypeUnsupported", "string"),
    "lambda.keras": ("Keras", "KerasUntrusted", "Lambda"),
    "lambda.h5": ("Keras", "KerasUntrusted", "Lambda"),
    "own layer.keras": ("Keras", "KerasUntrusted", "Own"),
    "a function of os.keras": ("Keras", "KerasUntrusted", "holds os."),
    "another SavedModel.keras": ("Keras", "KerasUntrusted", "TFSMLayer"),
    "weights linked.keras": ("Keras", "KerasUntrusted", "a link"),
    "weights elsewhere.keras": ("Keras", "KerasUntrusted", "another file"),
    "weights of a terabyte.keras": ("Keras", "TooLarge", "weights"),
    "no JSON.keras": ("Keras", "ModelInvalid", "no whole model"),
    "no weights.h5": ("Keras", "ModelInvalid", "no whole model"),
    "no Input.keras": ("Keras", "ModelInvalid", "Sequential"),
    "leads out.keras": ("Keras", "ArchiveUnsafe", "../escaped"),
    "an operator of TensorFlow.tflite": ("TFLite", "OperatorRefused", "Flex"),
    "noise.tflite": ("TFLite", "ModelInvalid", "TFLite does not read it"),
}
WRITTEN = "/tmp/modelrollout-test-a-model-wrote-this"


def packed(folder: Path, kind: str) -> bytes:
    """The folder as a .zip or .tar.gz, below a folder of its own name."""
    made = io.BytesIO()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for path in files:
                tar.add(path, path.relative_to(folder.parent))
    return made.getvalue()


def _image_model() -> Any:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3), name="image"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(2, activation="softmax", name="scores"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(IMAGES, CLASSES, epochs=10, batch_size=50, verbose=0)
    return model


def _two_inputs() -> Any:
    import keras

    layers = keras.layers
    words, numbers = keras.Input((6,), dtype="int32", name="words"), keras.Input((4,), name="numbers")
    seen = layers.LSTM(5)(layers.Embedding(20, 3)(words))
    normal = layers.LayerNormalization()(numbers * 2.0 + 1.0)
    both = layers.Concatenate()([seen, layers.Dense(6, activation="gelu")(normal)])
    share, value = (
        layers.Dense(3, activation="softmax", name="share")(both),
        layers.Dense(1, name="value")(both),
    )
    return keras.Model({"words": words, "numbers": numbers}, {"share": share, "value": value})


def _total(numbers: Any) -> dict[str, Any]:
    import tensorflow as tf

    return {"total": tf.reduce_sum(numbers * 3.0, axis=1, keepdims=True)}


def _version_1(folder: Path) -> None:
    """A SavedModel as TensorFlow 1 wrote it: a graph, a saver, variables by name."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        numbers = tf1.placeholder(tf.float32, [None, 4], "numbers")
        weights = tf1.get_variable("weights", [4, 1], use_resource=False)
        total = tf.matmul(numbers, weights, name="total")
        session.run(tf1.global_variables_initializer())
        tf1.saved_model.simple_save(session, str(folder), {"numbers": numbers}, {"total": total})


def _hostile_saved_models(work: Path) -> dict[str, bytes]:
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    spec = tf.TensorSpec([None, 4], tf.float32, "numbers")

    def saved(name: str, body: Any, module: Any = None) -> Path:
        target = work / name
        tf.saved_model.save(
            module or tf.Module(), str(target), signatures=tf.function(body, input_signature=[spec])
        )
        return target

    def reads(numbers: Any) -> Any:
        return numbers * tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    def writes(numbers: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(WRITTEN, "x")]):
            return numbers * 2.0

    def calls(numbers: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [numbers], tf.float32), [None, 4])

    def restores(numbers: Any) -> Any:
        return (
            numbers
            * tf.raw_ops.RestoreV2(
                prefix="gs://elsewhere/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
            )[0]
        )

    def scaled(numbers: Any) -> Any:
        return numbers * 2.0

    def changed(change: Any) -> bytes:
        target = saved("changed", scaled)
        message = SavedModel()
        message.ParseFromString((target / "saved_model.pb").read_bytes())
        change(message.meta_graphs[0])
        (target / "saved_model.pb").write_bytes(message.SerializeToString())
        return packed(target, "zip")

    def nodes(graph: Any) -> Any:
        return [
            *graph.graph_def.node,
            *(node for function in graph.graph_def.library.function for node in function.node_def),
        ]

    def unknown(graph: Any) -> None:
        next(node for node in nodes(graph) if node.op == "Mul").op = "Evil"

    def huge(graph: Any) -> None:
        constant = next(
            node
            for node in nodes(graph)
            if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum
        )
        constant.attr["value"].tensor.tensor_shape.dim.add(size=1 << 40)

    def lacking(graph: Any) -> None:
        graph.signature_def["serving_default"].outputs["output_0"].name = "nowhere:0"

    def at_its_start(graph: Any) -> None:
        text = tf.make_tensor_proto(WRITTEN)
        name = graph.graph_def.node.add(name="text", op="Const")
        name.attr["dtype"].type = text.dtype
        name.attr["value"].tensor.CopyFrom(text)
        graph.graph_def.node.add(name="evil", op="WriteFile", input=["text", "text"])
        graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "evil"

    both = tf.Module()
    both.scale = tf.Variable(2.0)
    two = {name: tf.function(scaled, input_signature=[spec]) for name in ("one", "two")}
    tf.saved_model.save(both, str(work / "two"), signatures=two)
    variable = tf.Module()
    variable.scale = tf.Variable([2.0, 1.0, 1.0, 1.0])
    bare = saved("bare", lambda numbers: numbers * variable.scale, variable)
    for path in (bare / "variables").iterdir():
        path.unlink()
    text = tf.function(
        lambda words: tf.identity(words), input_signature=[tf.TensorSpec([None, 4], tf.string, "words")]
    )
    tf.saved_model.save(tf.Module(), str(work / "text"), signatures=text)
    good = packed(saved("good", scaled), "zip")
    return {
        "reads a file.zip": packed(saved("reads", reads), "zip"),
        "writes a file.zip": packed(saved("writes", writes), "zip"),
        "writes a file at its start.zip": changed(at_its_start),
        "calls Python.zip": packed(saved("calls", calls), "zip"),
        "restores from elsewhere.zip": packed(saved("restores", restores), "zip"),
        "an unknown operator.zip": changed(unknown),
        "a constant of a terabyte.zip": changed(huge),
        "a node that is not there.zip": changed(lacking),
        "no graph for serving.zip": changed(lambda graph: graph.meta_info_def.ClearField("tags")),
        "two signatures.zip": packed(work / "two", "zip"),
        "damaged.zip": _with(b"", "saved_model.pb", b"\xff" * 50),
        "no variables.zip": packed(bare, "zip"),
        "leads out.zip": _with(good, "../escaped", b"x"),
        "two models.zip": _with(good, "other/saved_model.pb", b"x"),
        "text.zip": packed(work / "text", "zip"),
    }


def _with(archive: bytes, name: str, content: bytes) -> bytes:
    """The zip archive with one more file, or with this one in place of one of the same name."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        if archive:
            with zipfile.ZipFile(io.BytesIO(archive)) as source:
                for entry in source.infolist():
                    if entry.filename != name:
                        target.writestr(entry, source.read(entry))
        target.writestr(name, content)
    return made.getvalue()


def _hostile_keras(work: Path) -> dict[str, bytes]:
    import h5py
    import keras

    layers = keras.layers

    @keras.saving.register_keras_serializable()
    class Own(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2.0

    def saved(name: str, *parts: Any) -> bytes:
        keras.Sequential(list(parts)).save(work / name)
        return (work / name).read_bytes()

    def weights(fill: Any) -> bytes:
        with h5py.File(work / "weights.h5", "w") as file:
            fill(file)
        return (work / "weights.h5").read_bytes()

    start = layers.Input((4,), name="numbers")
    good = saved("good.keras", start, layers.Dense(2))
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        config = archive.read("config.json")
    return {
        "lambda.keras": saved("lambda.keras", start, layers.Lambda(lambda x: x * 2.0)),
        "lambda.h5": saved("lambda.h5", start, layers.Lambda(lambda x: x * 2.0)),
        "own layer.keras": saved("own.keras", start, Own()),
        "a function of os.keras": _with(
            good, "config.json", config.replace(b'"keras.initializers"', b'"os"')
        ),
        "another SavedModel.keras": _with(good, "config.json", config.replace(b'"Dense"', b'"TFSMLayer"')),
        "weights linked.keras": _with(
            good,
            "model.weights.h5",
            weights(lambda file: file.update({"layers": h5py.ExternalLink("/etc/x.h5", "/")})),
        ),
        "weights elsewhere.keras": _with(
            good,
            "model.weights.h5",
            weights(lambda file: file.create_dataset("a", (4,), "f4", external=[("/etc/passwd", 0, 16)])),
        ),
        "weights of a terabyte.keras": _with(
            good,
            "model.weights.h5",
            weights(lambda file: file.create_dataset("a", (1 << 38,), "f4", chunks=(1024,))),
        ),
        "no JSON.keras": _with(good, "config.json", b"{"),
        "no weights.h5": weights(lambda file: None),
        "no Input.keras": saved("unbuilt.keras", layers.Dense(2)),
        "leads out.keras": _with(good, "../escaped", b"x"),
    }


def _hostile_tflite() -> dict[str, bytes]:
    import tensorflow as tf

    function = tf.function(tf.linalg.inv, input_signature=[tf.TensorSpec([4, 4], tf.float32, "numbers")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    return {
        "an operator of TensorFlow.tflite": converter.convert(),
        "noise.tflite": bytes(4) + b"TFL3" + np.random.default_rng(0).bytes(400),
    }


def main(folder: Path) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        image, two = _image_model(), _two_inputs()
        image.save(work / "image.keras")
        image.save(work / "image.h5")
        two.save(work / "two-inputs.keras")
        made |= {name: (work / name).read_bytes() for name in ("image.keras", "image.h5", "two-inputs.keras")}
        image.export(work / "image", verbose=False)
        two.export(work / "two", verbose=False)
        module = tf.Module()
        module.scale = tf.Variable(2.0)
        spec = tf.TensorSpec([None, 4], tf.float32, "numbers")
        tf.saved_model.save(
            module, str(work / "function"), signatures=tf.function(_total, input_signature=[spec])
        )
        _version_1(work / "version-1")
        made["image.saved_model.zip"] = packed(work / "image", "zip")
        made["two-inputs.saved_model.tar.gz"] = packed(work / "two", "tar.gz")
        made["function.saved_model.zip"] = packed(work / "function", "zip")
        made["version-1.saved_model.zip"] = packed(work / "version-1", "zip")
        made["image.tflite"] = tf.lite.TFLiteConverter.from_saved_model(str(work / "image")).convert()
        fixed = tf.function(
            _total, input_signature=[tf.TensorSpec([1, 4], tf.float32, "numbers")]
        ).get_concrete_function()
        made["fixed.tflite"] = tf.lite.TFLiteConverter.from_concrete_functions([fixed], module).convert()
        made |= _hostile_saved_models(work / "hostile") | _hostile_keras(work) | _hostile_tflite()
    for name, content in made.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
