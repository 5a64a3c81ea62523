"""config.pbtxt of a prepared model.

It carries no ``name``: Triton takes that of the model's folder, so that the stored artifact depends
on its content alone and is shared. The message is built with the server's own schema
(model_config.proto, in tritonclient) and printed, so that a field that Triton does not know cannot
be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from modelrollout.contract.common import ServingConfig
from modelrollout.contract.tasks import Batching
from modelrollout.triton.layout import MODEL_FILE
from modelrollout.triton.tensors import TensorSpec

pb: Any = model_config_pb2  # generated, without types


class BatchingImpossible(ValueError):
    """A batch size was requested, but this tensor's first dimension is fixed."""

    def __init__(self, tensor: TensorSpec) -> None:
        super().__init__(str(tensor))
        self.tensor = tensor


def _dims(tensor: TensorSpec, batched: bool) -> tuple[list[int], bool]:
    """Triton's ``dims`` and whether an empty ``reshape`` is needed: dims must not be empty, so [n]
    is served as [n, 1].
    """
    if not batched:
        return list(tensor.shape) or [1], not tensor.shape
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
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batching: Batching, instance_kind: str
) -> str:
    """The file's text for an ONNX model; raises BatchingImpossible."""
    config = message(inputs, outputs, batching)
    config.backend, config.default_model_filename = "onnxruntime", MODEL_FILE
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.Kind.Value(instance_kind))
    return printed(config)


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
    return updated


def printed(config: Any) -> str:
    """The text of a config.pbtxt; equal messages give equal text."""
    return str(text_format.MessageToString(config))
