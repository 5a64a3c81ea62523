"""``spec.serving``: Triton, its pods and how they are tuned."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from modelrollout.api.v1alpha1.model import Data
from modelrollout.api.v1alpha1.placement import AffinityAsWritten, TolerationAsWritten
from modelrollout.api.v1alpha1.pod import Pod
from modelrollout.api.v1alpha1.schema import (
    ApiModel,
    Duration,
    Labels,
    ListMapKey,
    LocalName,
    Name,
    Resources,
    Rule,
    seconds,
)

DataType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "BF16", "BYTES"
]  # fmt: skip
Backend = Literal["TensorRT", "TorchScript", "SavedModel", "OpenVINO", "Python", "VLLM", "FIL"]


class Tensor(ApiModel):
    """An input or output, in the words of the KServe v2 protocol."""

    name: str = Field(min_length=1, max_length=256, description="Its name in the model.")
    data_type: DataType = Field(description="Data type; BYTES are strings.")
    shape: Annotated[list[Annotated[int, Field(ge=-1, le=1 << 31)]], Field(min_length=1, max_length=16)] = (
        Field(description="Shape with the batch first; -1 is a dimension of any size.")
    )


class Triton(ApiModel):
    """The inference server."""

    image: str | None = Field(
        None,
        max_length=512,
        description=(
            "Triton image; left out: the operator's default. It must have the backend, of a version that"
            " reads the file."
        ),
    )
    backend: Backend | None = Field(
        None,
        description=(
            "The file is served as it is by this backend of Triton: TensorRT (.plan), TorchScript (.pt), FIL"
            " (trees of XGBoost, LightGBM and Treelite), and, as archives, SavedModel, OpenVINO, Python"
            " (model.py) and VLLM (model.json with the weights). Left out: ONNX Runtime."
        ),
    )
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=64), ListMapKey("name")] | None = Field(
        None,
        description=(
            "The model's inputs, for a backend (left out: those of config.pbtxt in the archive) and for"
            " TorchScript with model.format: PyTorch, whose file does not name them."
        ),
    )
    outputs: Annotated[list[Tensor], Field(min_length=1, max_length=64), ListMapKey("name")] | None = Field(
        None,
        description=(
            "The model's outputs, for a backend (left out: those of config.pbtxt in the archive) and for"
            " TorchScript with model.format: PyTorch, whose file does not name them."
        ),
    )
    code: Literal["Allowed"] | None = Field(
        None,
        description=(
            "Allowed: the model may carry code that runs in its pods (Python; VLLM with trust_remote_code or"
            " pickled weights). It also takes a RolloutPolicy with the model's place in allowedSources.code."
            " Left out: a model with code is refused."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.inputs) == has(self.outputs)",
            "give inputs and outputs, or neither: then config.pbtxt in the archive has both",
        ),
        Rule(
            "has(self.backend) || !has(self.code)",
            "code belongs to a backend; ONNX Runtime runs none from a model",
        ),
        Rule(
            "!has(self.backend) || self.backend != 'Python' || has(self.code)",
            "backend: Python runs the model's own code: set code: Allowed, and have a RolloutPolicy allow the"
            " place in allowedSources.code",
        ),
        Rule(
            "!has(self.backend) || !has(self.code) || self.backend in ['Python', 'VLLM']",
            "code belongs to the backends Python and VLLM; the others run none from a model",
        ),
        Rule(
            "!has(self.backend) || !(self.backend in ['VLLM', 'FIL']) || !has(self.inputs)",
            "backend: VLLM and FIL have inputs and outputs of their own: leave them out",
        ),
    )


class Batching(ApiModel):
    """Dynamic batching of Triton."""

    max_batch_size: int = Field(
        0, ge=0, le=4096, description="Largest batch; 0: no batching, requests carry the model's own shape."
    )
    max_queue_delay: Duration = Field("0ms", description="How long a request may wait for others.")


class Tune(ApiModel):
    """Choose instances and batches by measuring: the highest throughput within a latency objective,
    on a Triton pod of the new version's own.

    It runs once for a version, before its first pods. It is not part of the version: the revision
    keeps its result.
    """

    objective: Duration = Field(description="Latency of one request at the server, for example 50ms.")
    share: float = Field(
        0.99, ge=0.5, le=0.9999, description="Share of the requests that must be within the objective."
    )
    data: Data | None = Field(
        None,
        description=(
            "Inputs like those of production; labels are not needed. Left out: those of"
            " rollout.analysis.golden, else of optimization.gate, else they are made up."
        ),
    )
    instances: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [1, 2, 4],
        description="Executions of the model side by side in a pod (on each GPU) that may be chosen.",
    )
    timeout: Duration = Field("10m", description="Limit for the search; the best found until then is taken.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "duration(self.objective) > duration('0s')", "objective must be longer than 0, for example 50ms"
        ),
    )


class Drain(ApiModel):
    """How a pod ends without losing a request. A pod that runs keeps what it was rendered with."""

    pre_stop: Duration | None = Field(
        None,
        description=(
            "How long a pod that is to end answers on, while the data plane takes its address away; left out:"
            " as the operator is configured."
        ),
    )
    exit_timeout: Duration | None = Field(
        None,
        description=(
            "How long it then may take to end what it is answering, streams among them; it ends sooner once"
            " nothing is open. Left out: 15m for a model that streams its answers (decoupled), else as the"
            " operator is configured."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.preStop) || (duration(self.preStop) >= duration('1s') && duration(self.preStop) <="
            " duration('10m'))",
            "preStop is from 1s to 10m: a pod that nothing is sent to holds its place for that long",
        ),
        Rule(
            "!has(self.exitTimeout) || (duration(self.exitTimeout) >= duration('1s') &&"
            " duration(self.exitTimeout) <= duration('4h'))",
            "exitTimeout is from 1s to 4h: a pod that ends holds its GPU for that long",
        ),
    )


# some memory, and not none
_Bytes = (
    Annotated[int, Field(ge=1)]
    | Annotated[
        str, StringConstraints(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=32)
    ]
)


class EngineClaim(ApiModel):
    """A PersistentVolumeClaim in the same namespace, of which the pods get a folder of this
    ModelDeployment's own, to write.
    """

    claim_name: Name = Field(
        description="Name of the claim. Pods on all of their nodes must be able to write there."
    )


class EngineCache(ApiModel):
    """Where engines are kept for the pods to come."""

    persistent_volume_claim: EngineClaim


class TensorRT(ApiModel):
    """TensorRT in ONNX Runtime: a server builds engines for its GPU out of the model, which takes
    minutes. Precision is that of the model: see the steps halfPrecision and int8.
    """

    workspace: _Bytes | None = Field(
        None,
        description=(
            "Memory of the GPU that an engine may use for its work, for example 4Gi. Left out: as the backend"
            " has it (1Gi)."
        ),
    )
    cache: EngineCache | None = Field(
        None,
        description=(
            "A volume with the engines, so that a new pod of the same version does not build them again. Left"
            " out: each pod builds its own."
        ),
    )
    build_timeout: Duration = Field(
        "30m", description="How long a pod may take to build engines, beside startupTimeout."
    )


class Accelerator(ApiModel):
    """What computes the model in the place of ONNX Runtime's own kernels."""

    tensor_rt: TensorRT = Field(
        alias="tensorRT",
        description="TensorRT; for a model that ONNX Runtime serves on GPUs of NVIDIA.",
    )


class Serving(ApiModel):
    """How the model is served."""

    triton: Triton = Field(default_factory=Triton)
    replicas: int = Field(2, ge=0, le=1000, description="Pods of the serving revision.")
    resources: Resources = Field(
        description="Resources of a Triton pod, for example limits: {nvidia.com/gpu: 1}."
    )
    node_selector: Labels | None = Field(None, description="Node labels that a pod needs.")
    tolerations: Annotated[list[TolerationAsWritten], Field(max_length=32)] | None = Field(
        None,
        description=(
            "As in a pod; that of the usual taint of GPU nodes is added when a GPU is requested (the chart's"
            " gpus)."
        ),
    )
    affinity: AffinityAsWritten | None = Field(None, description="As in a pod.")
    service_account_name: Name | None = Field(
        None,
        description=(
            "Service account of the pods; left out: the namespace's default one. No token is mounted."
        ),
    )
    image_pull_secrets: Annotated[list[LocalName], Field(max_length=8)] | None = Field(
        None, description="Secrets to pull the images with."
    )
    pod: Pod | None = None
    accelerator: Accelerator | None = None
    batching: Batching = Field(default_factory=Batching)
    tune: Tune | None = None
    surge: Literal["Auto", "Wait", "InPlace"] = Field(
        "Auto",
        description=(
            "The pods of a new revision run beside those of the stable one until it is promoted. Auto: they"
            " are made at once; those that find no GPU are pending, so that an autoscaler brings one. Wait:"
            " they are made once enough GPUs are free, and none is ever pending. InPlace: when they find no"
            " GPU, stable gives up pods for them, down to the floor. No part of the version."
        ),
    )
    floor: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "With surge InPlace: pods that may carry all traffic for a while. Stable keeps that many until"
            " the new revision has all traffic, which it gets once as many of its own are ready. Left out:"
            " half of replicas, at least 1. No part of the version."
        ),
    )
    drain: Drain | None = Field(
        None,
        description=(
            "How its pods end. No part of the version: the next revision has it, and a running one keeps its"
            " own (condition DrainCurrent)."
        ),
    )
    startup_timeout: Duration = Field(
        "10m", description="How long a pod may take to fetch and load the model."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.accelerator) || !has(self.triton) || !has(self.triton.backend)",
            "accelerator.tensorRT is for what ONNX Runtime serves: leave triton.backend or accelerator out",
        ),
        Rule(
            "!has(self.accelerator) || (has(self.resources.limits) && self.resources.limits.exists(n,"
            " n.startsWith('nvidia.com/')))",
            "accelerator.tensorRT needs a GPU of NVIDIA: request one in resources.limits, for example"
            " nvidia.com/gpu: 1",
        ),
    )

    def startup_seconds(self) -> float:
        """How long a pod may take until it is ready."""
        building = seconds(self.accelerator.tensor_rt.build_timeout) if self.accelerator is not None else 0.0
        return seconds(self.startup_timeout) + building
