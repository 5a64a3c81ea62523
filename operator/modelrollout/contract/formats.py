"""Formats that models come in, and backends of Triton that serve some of them as they are."""

from __future__ import annotations

from typing import Literal

from modelrollout.contract.common import ContractModel

SourceFormat = Literal["ONNX", "SKLearn", "XGBoost", "LightGBM", "TensorFlow", "Keras", "TFLite", "PyTorch"]


Flavour = Literal["trees", "tensorflow", "pytorch"]


# The image, of the operator's configuration, that a model of this format is converted in.
FLAVOUR_BY_FORMAT: dict[str, Flavour] = {
    "SKLearn": "trees",
    "XGBoost": "trees",
    "LightGBM": "trees",
    "TensorFlow": "tensorflow",
    "Keras": "tensorflow",
    "TFLite": "tensorflow",
    "PyTorch": "pytorch",
}


Backend = Literal["TensorRT", "TorchScript", "SavedModel", "OpenVINO", "Python", "VLLM", "FIL"]

# The image that a source for this backend is read in; others need none of their own.
FLAVOUR_BY_BACKEND: dict[str, Flavour] = {"FIL": "trees"}


class Tensor(ContractModel):
    """An input or output: Triton data type, and shape with the batch first (-1: any size)."""

    name: str
    data_type: str
    shape: tuple[int, ...]


class Tensors(ContractModel):
    """What a source takes and gives, where its owner says so."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Served(ContractModel):
    """A source that is served as it is by a backend of Triton; without ``inputs`` and ``outputs``
    its own config.pbtxt says them.
    """

    backend: Backend
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    code: bool = False  # whether it may carry code


Rounds = Literal["Best", "All"]


class Declared(ContractModel):
    """What the owner says of a source that is converted, because its file does not; ``double``:
    convert in float64.
    """

    tensors: Tensors | None = None
    rounds: Rounds = "Best"  # All: also those after the best one
    missing: float | None = None
    double: bool = False
