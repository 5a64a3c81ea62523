"""config.pbtxt of a prepared model.

It carries no ``name``: Triton takes that of the model's folder, so that the stored artifact depends
on its content alone and is shared. The message is built with the server's own schema
(model_config.proto, in tritonclient) and printed, so that a field that Triton does not know cannot
be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from modelrollout.contract.common import ServingConfig
from modelrollout.contract.tasks import Batching
from modelrollout.triton.backends import KINDS, ONNX
from modelrollout.triton.histogram import FAMILY
from modelrollout.triton.layout import MODEL_FILE, WARMUP
from modelrollout.triton.tensors import TensorSpec

pb: Any = model_config_pb2  # generated, without types

# What vLLM's backend tells and does of its own accord only where these ask for it: its engine's
# metrics at Triton's port (since 24.08), and the model unloaded once its engine has died (24.12;
# its documentation: "Triton Metrics", "vLLM Health Check"). Earlier ones ignore them.
VLLM_PARAMETERS = ("REPORT_CUSTOM_METRICS", "ENABLE_VLLM_HEALTH_CHECK")
# A parameter that no backend reads: whoever sends golden data learns from it that NaN is data.
MISSING_VALUES, NAN = "missing_values", "NaN"
# Another: the CPUs that the instances share, for whoever changes the number of instances.
SHARED_CPUS = "shared_cpus"
TENSORRT = "tensorrt"  # ONNX Runtime's backend knows TensorRT by this name


class BatchingImpossible(ValueError):
    """A batch size was requested, but this tensor's first dimension is fixed."""

    def __init__(self, tensor: TensorSpec) -> None:
        super().__init__(str(tensor))
        self.tensor = tensor


@dataclass(frozen=True)
class Warmup:
    """Requests of zeros that every instance answers before Triton says that the model is ready.

    ``shapes``: of one request by input, as the model takes them. ``batch_sizes``: how many requests
    are joined, each size once; without batching 1 alone.
    """

    shapes: Mapping[str, tuple[int, ...]]
    batch_sizes: tuple[int, ...]


def _dims(tensor: TensorSpec, batched: bool) -> tuple[list[int], bool]:
    """Triton's ``dims`` and whether an empty ``reshape`` is needed: dims must not be empty, so [n]
    is served as [n, 1]. A scalar without batching is [1] by itself: Triton refuses a reshape there.
    """
    if not batched:
        return list(tensor.shape) or [1], False
    if not tensor.shape or tensor.shape[0] >= 0:
        raise BatchingImpossible(tensor)
    return list(tensor.shape[1:]) or [1], len(tensor.shape) == 1


def message(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batching: Batching) -> Any:
    """A configuration of tensors and batching alone. With ``max_batch_size`` > 0 Triton adds the
    batch dimension itself; raises BatchingImpossible where there is none.
    """
    config = pb.ModelConfig(max_batch_size=batching.max_batch_size)
    batched = batching.max_batch_size > 0
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for tensor in tensors:
            dims, scalar = _dims(tensor, batched)
            kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
            entry = field.add(name=tensor.name, data_type=pb.DataType.Value(kind), dims=dims)
            if scalar:
                entry.reshape.SetInParent()
    if batched:
        config.dynamic_batching.max_queue_delay_microseconds = batching.max_queue_delay_us
    return config


def render(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    batching: Batching,
    instance_kind: str,
    *,
    nan: bool = False,
) -> str:
    """The file's text for an ONNX model; ``nan``: a missing value (NaN) is data for it. Raises
    BatchingImpossible.
    """
    config = message(inputs, outputs, batching)
    config.backend, config.default_model_filename = "onnxruntime", MODEL_FILE
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.Kind.Value(instance_kind))
    if nan:
        config.parameters[MISSING_VALUES].string_value = NAN
    return printed(config)


def with_warmup(config: Any, warmup: Warmup) -> Any:
    """The configuration with these requests (model_config.proto, ModelWarmup). A model that refuses
    one of them is not loaded at all.

    Text is zeros, too: empty words.
    """
    updated = pb.ModelConfig()
    updated.CopyFrom(config)
    batched = updated.max_batch_size > 0
    for size in warmup.batch_sizes:
        sample = updated.model_warmup.add(name=f"{WARMUP}{size}", batch_size=size, count=1)
        for tensor in updated.input:
            given = sample.inputs[tensor.name]
            given.data_type, given.zero_data = tensor.data_type, True
            given.dims.extend(warmup.shapes[tensor.name][batched:] or [1])  # as in _dims
    return updated


def parse(text: str) -> Any:
    """The message of a config.pbtxt; raises google.protobuf.text_format.ParseError with line and
    column.
    """
    return text_format.Parse(text, pb.ModelConfig())


def serving_of(config: Any) -> ServingConfig:
    """What a config.pbtxt says of the settings that tuning chooses."""
    batching = config.dynamic_batching
    joined = (
        max(batching.preferred_batch_size, default=config.max_batch_size)
        if config.HasField("dynamic_batching")
        else 0
    )
    count = max((group.count for group in config.instance_group), default=1)
    delay = batching.max_queue_delay_microseconds if joined else 0
    return ServingConfig(instances=max(1, count), batch=joined, queue_delay_us=delay)


def with_serving(config: Any, serving: ServingConfig) -> Any:
    """The configuration with these settings. ``max_batch_size`` stays: it is what a client may send
    in one request.

    Batches of a preferred size are formed at once, larger ones never, smaller ones when the delay
    is over (docs of Triton, "Dynamic Batcher").
    """
    updated = pb.ModelConfig()
    updated.CopyFrom(config)
    if not updated.instance_group:
        updated.instance_group.add(kind=pb.ModelInstanceGroup.Kind.Value("KIND_AUTO"))
    for group in updated.instance_group:
        group.count = serving.instances
    updated.ClearField("dynamic_batching")
    if serving.batch and updated.max_batch_size > 0:
        updated.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_us
        if serving.batch < updated.max_batch_size:
            updated.dynamic_batching.preferred_batch_size.append(serving.batch)
            _warm_up_for(updated, serving.batch)
    if SHARED_CPUS in updated.parameters:
        _share_cpus(updated, updated.parameters[SHARED_CPUS].string_value)
    return updated


def with_threads(config: Any, cpus: int) -> Any:
    """The configuration with as many threads as the server has CPUs, unless its author has chosen
    or its backend has no such parameter. Backends take one for each CPU of the node by themselves,
    and the kernel stops all of them once they have used what the container's limit allows.
    """
    updated = pb.ModelConfig()
    updated.CopyFrom(config)
    kind = next((k for k in (ONNX, *KINDS.values()) if k.backend == config.backend), None)
    if kind is None or any(name in config.parameters for name in kind.threads):
        return updated
    for name in kind.threads:
        updated.parameters[name].string_value = str(cpus)
    if kind.each:
        updated.parameters[SHARED_CPUS].string_value = str(cpus)
        _share_cpus(updated, str(cpus))
    return updated


def with_tensorrt(config: Any, workspace_bytes: int | None, engines: str) -> Any:
    """The configuration with TensorRT in ONNX Runtime, whose engines are kept in that folder (the
    README of Triton's backend). Parameters of the author stay beside it.

    None says a precision: it is that of the graph. TensorRT has no flags for it since its version
    11; an author who serves with an earlier one may say precision_mode.
    """
    updated = pb.ModelConfig()
    updated.CopyFrom(config)
    accelerators = updated.optimization.execution_accelerators.gpu_execution_accelerator
    ours = next((a for a in accelerators if a.name == TENSORRT), None)
    if ours is None:
        ours = accelerators.add(name=TENSORRT)
    ours.parameters["trt_engine_cache_enable"] = "1"
    ours.parameters["trt_engine_cache_path"] = engines
    if workspace_bytes is not None:
        ours.parameters["max_workspace_size_bytes"] = str(workspace_bytes)
    return updated


def _share_cpus(config: Any, cpus: str) -> None:
    """Divide the CPUs between the instances, of which each has threads of its own. Other text than
    ours, which an author may have written, divides nothing.
    """
    if not re.fullmatch(r"[0-9]{1,6}", cpus):
        return
    instances = sum(max(1, group.count) for group in config.instance_group)
    for name in ONNX.threads:
        config.parameters[name].string_value = str(max(1, int(cpus) // max(1, instances)))


def with_objectives(config: Any, milliseconds: Iterable[int]) -> Any:
    """The configuration with bounds of Triton's histogram of latencies at these objectives, beside
    those that the author has set (``triton.histogram``).
    """
    updated = pb.ModelConfig()
    updated.CopyFrom(config)
    controls = updated.model_metrics.metric_control
    control = next((c for c in controls if c.metric_identifier.family == FAMILY), None)
    if control is None:
        control = controls.add()
        control.metric_identifier.family = FAMILY
    buckets = control.histogram_options.buckets
    bounds = sorted({*buckets, *(float(m - 1) for m in milliseconds)})
    del buckets[:]
    buckets.extend(bounds)
    return updated


def with_vllm_reports(config: Any) -> Any:
    """The configuration with vLLM's metrics and health check, unless its author has chosen."""
    updated = pb.ModelConfig()
    updated.CopyFrom(config)
    for name in VLLM_PARAMETERS:
        if name not in updated.parameters:
            updated.parameters[name].string_value = "true"
    return updated


def _warm_up_for(config: Any, size: int) -> None:
    """Add this batch size to warm-up requests that are ours; the author's own stay as they are."""
    ours = [sample for sample in config.model_warmup if sample.name.startswith(WARMUP)]
    if ours and size not in {sample.batch_size for sample in ours}:
        added = config.model_warmup.add()
        added.CopyFrom(ours[0])
        added.name, added.batch_size = f"{WARMUP}{size}", size


def printed(config: Any) -> str:
    """The text of a config.pbtxt; equal messages give equal text."""
    return str(text_format.MessageToString(config))
