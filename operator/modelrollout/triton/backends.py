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
    that of the pod; ``threads``: parameters of config.pbtxt with numbers of threads, each of which
    is that of the node's CPUs where it is left out. ``each``: every instance has so many, otherwise
    all of them together.
    """

    backend: str
    file: str
    platform: str = ""
    instance_kind: str | None = None
    threads: tuple[str, ...] = ()
    each: bool = False


# Where no backend is named: ONNX Runtime serves what was converted or optimized.
ONNX = Kind("onnxruntime", MODEL_FILE, threads=("intra_op_thread_count", "inter_op_thread_count"), each=True)

KINDS: dict[Backend, Kind] = {
    "TensorRT": Kind("tensorrt", "model.plan", "tensorrt_plan"),
    "TorchScript": Kind("pytorch", "model.pt", "pytorch_libtorch", threads=("INTRA_OP_THREAD_COUNT",)),
    "SavedModel": Kind(
        "tensorflow",
        "model.savedmodel",
        "tensorflow_savedmodel",
        threads=("TF_NUM_INTRA_THREADS", "TF_NUM_INTER_THREADS"),
    ),
    # it refuses every other kind
    "OpenVINO": Kind("openvino", "model.xml", instance_kind="KIND_CPU", threads=("INFERENCE_NUM_THREADS",)),
    # its usual names depend on the file's type; it takes any that the configuration names
    "FIL": Kind("fil", "model.trees"),
    "Python": Kind("python", "model.py"),
    "VLLM": Kind("vllm", "model.json", instance_kind="KIND_MODEL"),  # vLLM itself divides the GPUs
}
