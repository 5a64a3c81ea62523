"""Backends of Triton that a model is served by as it is, with the names that Triton's core knows
them by (its constants.h).
"""

from __future__ import annotations

from dataclasses import dataclass

from modelrollout.contract.formats import Backend
from modelrollout.triton.layout import MODEL_FILE


@dataclass(frozen=True)
class Kind:
    """Triton's words for a backend. ``file`` is a folder for SavedModel; ``instance_kind`` None:
    that of the pod.
    """

    backend: str
    file: str
    platform: str = ""
    instance_kind: str | None = None


# Where no backend is named: ONNX Runtime serves what was converted or optimized.
ONNX = Kind("onnxruntime", MODEL_FILE)

KINDS: dict[Backend, Kind] = {
    "TensorRT": Kind("tensorrt", "model.plan", "tensorrt_plan"),
    "TorchScript": Kind("pytorch", "model.pt", "pytorch_libtorch"),
    "SavedModel": Kind("tensorflow", "model.savedmodel", "tensorflow_savedmodel"),
    # it refuses every other kind
    "OpenVINO": Kind("openvino", "model.xml", instance_kind="KIND_CPU"),
    # its usual names depend on the file's type; it takes any that the configuration names
    "FIL": Kind("fil", "model.trees"),
    "Python": Kind("python", "model.py"),
    "VLLM": Kind("vllm", "model.json", instance_kind="KIND_MODEL"),  # vLLM itself divides the GPUs
}
