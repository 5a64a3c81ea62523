"""Keras: .keras, and .h5 of Keras 2 and 3.

A configuration names the classes that Keras makes objects of. Only Keras' own may be named, and
none that carries code or refers to other files. The weights are HDF5, which can refer to other
files too. This module checks both before Keras opens anything.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout import nesting
from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats.source_model import FIELD, FileStart, Format, SourceModel, invalid
from modelrollout.optimizer.formats.tf_graph import no_inputs, served_type, to_onnx
from modelrollout.optimizer.model.archive import UNPACKED_LIMIT_BYTES, check_members, is_archive
from modelrollout.optimizer.model.data import Arrays
from modelrollout.reasons import Reason

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MAX_CONFIG_BYTES = 64 << 20
_MODULES = (
    "keras", "keras.activations", "keras.constraints", "keras.dtype_policies", "keras.initializers",
    "keras.layers", "keras.losses", "keras.metrics",
    "keras.models", "keras.optimizers", "keras.optimizers.schedules", "keras.regularizers",
    "keras.src.models.functional",
    "keras.src.models.sequential",
)  # fmt: skip
_OPERATIONS = "keras.src.ops."  # what x + y of two tensors becomes
# Of Keras' own: code, other frameworks, or files that a name in the configuration leads to.
_REFUSED = frozenset(
    {
        "Lambda",
        "__lambda__",
        "TFSMLayer",
        "TorchModuleWrapper",
        "JaxLayer",
        "FlaxLayer",
        "StringLookup",
        "IntegerLookup",
        "TextVectorization",
    }
)
_PLAIN = frozenset(
    {"__tensor__", "__numpy__", "__tuple__", "__ellipsis__", "__keras_tensor__", "__typespec__"}
)
_RESAVE = "save it again with model.save"


def load(path: Path, folder: Path, _: Declared) -> SourceModel:
    """Raises JobError: KerasUntrusted, ModelInvalid, TooLarge, TypeUnsupported, and those of
    ``check_members``.
    """
    zipped = is_archive(path)
    # Keras recognizes its formats by the suffix
    named = folder / ("source.keras" if zipped else "source.h5")
    named.symlink_to(path)
    if zipped:
        check_members(path)
    for name in _configuration(named, zipped):
        raise _untrusted(name)
    import keras

    model = keras.saving.load_model(named, compile=False, safe_mode=True)
    if not isinstance(model, (keras.Sequential, keras.src.models.functional.Functional)) or not model.built:
        raise invalid(
            "the model does not say what it takes: only Sequential models with an Input and functional"
            " ones do",
            "build it before it is saved",
        )
    return _original(
        keras.Model(model.inputs[0], model.outputs[0]) if isinstance(model, keras.Sequential) else model
    )


def _original(model: Any) -> SourceModel:
    import tensorflow as tf
    from keras import tree

    names = [tensor.name for tensor in model.inputs]
    if not names:
        raise no_inputs()
    outputs = list(model.output_names)
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in model.inputs]
    types = {spec.name: served_type(spec.name, spec.dtype) for spec in signature}

    def answer(*tensors: Any) -> dict[str, Any]:
        arguments = tree.pack_sequence_as(model.input, list(tensors))
        results = tree.flatten(model(arguments, training=False))
        return {name: tf.identity(tensor, name=name) for name, tensor in zip(outputs, results, strict=True)}

    def predict(arrays: Arrays) -> list[NDArray[Any]]:
        answers = answer(*(tf.constant(arrays[name].astype(types[name])) for name in names))
        return [np.asarray(answers[name]) for name in outputs]

    return SourceModel(lambda: to_onnx(answer, signature, outputs), predict)


def _configuration(path: Path, zipped: bool) -> Iterator[str]:
    """What the configuration names that is not trusted; the weights are checked on the way."""
    import h5py

    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                text = _text(archive, CONFIG)
                with archive.open(WEIGHTS) as weights, h5py.File(io.BytesIO(weights.read()), "r") as file:
                    _check_weights(file)
        else:
            with h5py.File(path, "r") as file:
                _check_weights(file)
                text = file.attrs["model_config"]
        configuration = nesting.parse(text)
    except (KeyError, OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise invalid(
            f"the file holds no whole model of Keras ({str(error).strip() or type(error).__name__})"[:300],
            _RESAVE,
        ) from None
    yield from _foreign(configuration)


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAX_CONFIG_BYTES:
        raise bad_input(
            Reason.TOO_LARGE, f"{FIELD}.uri: {name} has more than {MAX_CONFIG_BYTES} bytes; {_RESAVE}"
        )
    return archive.read(name)


def _foreign(value: Any) -> Iterator[str]:
    """Names of classes and functions in a configuration that are not Keras' own, or that are and
    carry code.
    """
    if isinstance(value, list):
        for part in value:
            yield from _foreign(part)
    if not isinstance(value, dict):
        return
    name = value.get("class_name")
    if name is not None:
        module, registered = value.get("module"), value.get("registered_name")
        own = (
            module is None
            or module in _MODULES
            or str(module).startswith(_OPERATIONS)
            or (module, name) == ("builtins", "function")
        )
        if not isinstance(name, str) or name in _REFUSED or not (own or name in _PLAIN):
            yield f"{module}.{name}" if module else str(name)
        elif (
            registered is not None
            and registered not in (name, "function")
            and not str(registered).startswith("keras>")
        ):
            yield str(registered)
    for part in value.values():
        yield from _foreign(part)


def _check_weights(file: Any) -> None:
    """No link out of the file, no data outside of it, no more than the file itself could hold
    unpacked.
    """
    import h5py

    total = 0
    waiting = [file]
    seen = {hash(file.id)}
    while waiting:
        group = waiting.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise _untrusted(f"{name} in the weights, a link to elsewhere")
            entry = group[name]
            if isinstance(entry, h5py.Group):
                if hash(entry.id) not in seen:
                    seen.add(hash(entry.id))
                    waiting.append(entry)
            elif isinstance(entry, h5py.Dataset):
                if entry.external or entry.is_virtual:
                    raise _untrusted(f"{name} in the weights, which lies in another file")
                total += entry.size * entry.dtype.itemsize
                if total > UNPACKED_LIMIT_BYTES:
                    raise bad_input(
                        Reason.TOO_LARGE,
                        f"{FIELD}.uri: the weights say that they have more than {UNPACKED_LIMIT_BYTES} bytes;"
                        f" {_RESAVE}",
                    )


def _untrusted(what: str) -> JobError:
    return bad_input(
        Reason.KERAS_UNTRUSTED,
        f"{FIELD}.uri: the file holds {what[:200]}: only layers and functions of Keras itself are read, none"
        " that carries code or leads to another file; export the model to ONNX where it was trained",
    )


def _sniff(start: FileStart) -> bool:
    names = start.zip_names
    return start.head.startswith(b"\x89HDF\r\n\x1a\n") or (
        b"model.weights.h5" in names and b"config.json" in names
    )


FORMAT = Format("Keras", ("tensorflow", "keras", "tf2onnx"), "a .keras or .h5 file", _sniff, load)
