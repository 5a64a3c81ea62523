"""config.pbtxt of a model that is served as it is: written from the tensors that spec names, or the
author's own, checked and completed.

The author's file is read with Triton's own schema, and a new one is written. What spec.serving says
is the operator's (name, version, batching); what only the author can know stays (tensors,
parameters, instances). What would load a library, read another file, or need a second model is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.text_format import ParseError  # type: ignore[import-untyped]

from modelrollout.contract.formats import Served
from modelrollout.contract.tasks import Batching
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS
from modelrollout.triton.config import BatchingImpossible, message, parse, pb, printed
from modelrollout.triton.tensors import TensorSpec

FIELD = "spec.model.uri"
CONFIG_LIMIT_BYTES = 256 << 10
DIMENSION_LIMIT = 1 << 31

_AUTHOR_FIELDS = frozenset(
    {
        "max_batch_size", "input", "output", "batch_input", "batch_output", "optimization",
        "dynamic_batching", "instance_group", "parameters",
        "model_warmup", "model_transaction_policy", "response_cache", "model_metrics", "metric_tags",
    }
)  # fmt: skip
_OURS = frozenset({"name", "platform", "backend", "default_model_filename", "version_policy"})
_REFUSED = {
    "ensemble_scheduling": (
        "an ensemble needs other models, and one is served here; put the steps into one model, or deploy each"
        " for itself"
    ),
    "sequence_batching": (
        "the requests of a sequence must reach one pod, and a canary divides requests; keep the state in the"
        " client"
    ),
    "model_operations": "it loads a shared library; put the operators into the Triton image",
    "model_repository_agents": "agents change the files after they were checked; leave it out",
    "runtime": "it names code to run the model with; leave it out",
    "cc_model_filenames": "one file is served; choose the GPU with spec.serving.nodeSelector",
}
# The inputs and outputs of vLLM's backend (auto_complete_config of its model.py); written out,
# because servers here complete nothing by themselves.
_VLLM_INPUTS = (
    ("text_input", "TYPE_STRING", 1, False),
    ("image", "TYPE_STRING", -1, True),
    ("stream", "TYPE_BOOL", 1, True),
    ("sampling_parameters", "TYPE_STRING", 1, True),
    ("exclude_input_in_output", "TYPE_BOOL", 1, True),
    ("return_finish_reason", "TYPE_BOOL", 1, True),
    ("return_cumulative_logprob", "TYPE_BOOL", 1, True),
    ("return_logprobs", "TYPE_BOOL", 1, True),
    ("return_num_input_tokens", "TYPE_BOOL", 1, True),
    ("return_num_output_tokens", "TYPE_BOOL", 1, True),
)
_VLLM_OUTPUTS = (
    ("text_output", "TYPE_STRING", -1),
    ("finish_reason", "TYPE_STRING", -1),
    ("cumulative_logprob", "TYPE_FP32", -1),
    ("logprobs", "TYPE_STRING", -1),
    ("num_input_tokens", "TYPE_UINT32", 1),
    ("num_output_tokens", "TYPE_UINT32", -1),
)


@dataclass(frozen=True)
class Config:
    """The file's text, and what clients have to send and get."""

    text: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def written(served: Served, own: bytes | None, batching: Batching, instance_kind: str) -> Config:
    """The configuration to serve with; ``own``: the author's config.pbtxt, if the archive has one.

    Raises JobError: ConfigMissing, ConfigAmbiguous, ConfigInvalid, ConfigMismatch,
    ConfigUnsupported, BatchingImpossible.
    """
    kind = KINDS[served.backend]
    if own is not None and served.inputs:
        raise bad_input(
            Reason.CONFIG_AMBIGUOUS,
            "spec.serving.triton.inputs: config.pbtxt in the archive names them, too; leave them out in one"
            " of the two",
        )
    if own is not None:
        config = expect_author_fields(_read(own), served)
        _batch(config, batching)
    elif served.inputs:
        config = _from_spec(served, batching)
    elif served.backend == "VLLM":
        config = pb.ModelConfig()
    else:
        raise bad_input(
            Reason.CONFIG_MISSING,
            "spec.serving.triton: nothing says what the model takes and gives: name inputs and outputs, or"
            " pack its config.pbtxt into the archive",
        )
    if served.backend == "VLLM":
        _complete_vllm(config)
    _check_tensors(config)
    config.backend, config.platform, config.default_model_filename = kind.backend, kind.platform, kind.file
    if not config.instance_group:
        config.instance_group.add(
            count=1, kind=pb.ModelInstanceGroup.Kind.Value(kind.instance_kind or instance_kind)
        )
    return Config(
        printed(config), *(tuple(_specs(config, tensors)) for tensors in (config.input, config.output))
    )


def _from_spec(served: Served, batching: Batching) -> Any:
    inputs, outputs = (
        [TensorSpec(t.name, t.data_type, t.shape) for t in tensors]
        for tensors in (served.inputs, served.outputs)
    )
    try:
        return message(inputs, outputs, batching)
    except BatchingImpossible as error:
        raise bad_input(
            Reason.BATCHING_IMPOSSIBLE,
            f"spec.serving.batching.maxBatchSize: {batching.max_batch_size}, but the first dimension of"
            f" {error.tensor} is fixed; set maxBatchSize: 0, or -1 as that dimension if the model takes any"
            " batch",
        ) from None


def _invalid(what: str) -> JobError:
    return bad_input(Reason.CONFIG_INVALID, f"{FIELD}: config.pbtxt: {what}")


def _read(own: bytes) -> Any:
    if len(own) > CONFIG_LIMIT_BYTES:
        raise _invalid(f"it has {len(own)} bytes, more than {CONFIG_LIMIT_BYTES}")
    try:
        return parse(own.decode())
    except (ParseError, UnicodeDecodeError, RecursionError) as error:
        line = (str(error).splitlines() or [""])[0][:200]
        raise _invalid(f"Triton does not read it: {line}") from None


def expect_author_fields(config: Any, served: Served) -> Any:
    """The settings of the author's file; raises JobError for those that an author may not set."""
    kind = KINDS[served.backend]
    for field, want in (
        ("backend", {kind.backend}),
        ("platform", {kind.platform}),
        ("default_model_filename", {kind.file}),
    ):
        value = getattr(config, field)
        if value and value not in want:
            remedy = (
                f"rename the file to {kind.file}"
                if field == "default_model_filename"
                else "correct one of the two"
            )
            raise bad_input(
                Reason.CONFIG_MISMATCH,
                f"spec.serving.triton.backend: {served.backend}, but config.pbtxt says {field}:"
                f" {value[:100]!r}; {remedy}",
            )
    for descriptor, _ in config.ListFields():
        if descriptor.name not in _AUTHOR_FIELDS | _OURS:
            raise _unsupported(
                descriptor.name, _REFUSED.get(descriptor.name, "it is not known here; leave it out")
            )
    for field, why in _paths(config, served):
        raise _unsupported(field, why)
    for group in config.instance_group:
        if group.gpus or group.secondary_devices or group.host_policy or group.passive:
            raise _unsupported(
                "instance_group",
                "gpus, secondary_devices, host_policy and passive depend on the node, and pods run on any;"
                " leave them out",
            )
    for field in _OURS:
        config.ClearField(field)
    return config


def _unsupported(field: str, why: str) -> JobError:
    return bad_input(Reason.CONFIG_UNSUPPORTED, f"{FIELD}: config.pbtxt: {field}: {why}")


def _paths(config: Any, served: Served) -> Iterator[tuple[str, str]]:
    """Fields that make Triton read files, each with the reason against it. Only a model that may
    run code may name some.
    """
    for output in config.output:
        if output.label_filename:
            yield "label_filename", "the file is not served; leave it out, and name classes in the client"
    for warmup in config.model_warmup:
        if any(tensor.input_data_file for tensor in warmup.inputs.values()):
            yield "model_warmup", "input_data_file is not served; use zero_data or random_data"
    for name, parameter in config.parameters.items():
        if not served.code and any(c in parameter.string_value for c in "/\\"):
            yield (
                f"parameters {name[:100]!r}",
                (
                    "it names a path, from which a library could be loaded; put what is needed into the"
                    " Triton image"
                ),
            )


def _batch(config: Any, batching: Batching) -> None:
    """Apply spec.serving.batching, if set, within the limits of the author's file."""
    most = config.max_batch_size
    if most < 0:
        raise _invalid(f"max_batch_size: {most} is negative")
    if not batching.max_batch_size:
        return
    if batching.max_batch_size > most:
        raise bad_input(
            Reason.BATCHING_IMPOSSIBLE,
            f"spec.serving.batching.maxBatchSize: {batching.max_batch_size}, but config.pbtxt says"
            f" max_batch_size: {most}; {f'ask for at most {most}' if most else 'set maxBatchSize: 0'}, or"
            " make a model that takes larger batches",
        )
    config.max_batch_size = batching.max_batch_size
    config.ClearField("dynamic_batching")
    config.dynamic_batching.max_queue_delay_microseconds = batching.max_queue_delay_us


def _complete_vllm(config: Any) -> None:
    if config.max_batch_size:
        raise _invalid("max_batch_size: vLLM batches by itself; leave it out")
    for name, kind, dim, optional in _VLLM_INPUTS:
        if name not in {tensor.name for tensor in config.input}:
            config.input.add(name=name, data_type=pb.DataType.Value(kind), dims=[dim], optional=optional)
    for name, kind, dim in _VLLM_OUTPUTS:
        if name not in {tensor.name for tensor in config.output}:
            config.output.add(name=name, data_type=pb.DataType.Value(kind), dims=[dim])
    config.model_transaction_policy.decoupled = True  # its backend demands it


def _check_tensors(config: Any) -> None:
    """Both lists, whole: servers here complete nothing."""
    for what, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            raise _invalid(f"it names no {what}; list every {what} with name, data_type and dims")
        seen: set[str] = set()
        for tensor in tensors:
            where = f"{what} {tensor.name[:100]!r}"
            if not tensor.name or tensor.name in seen:
                raise _invalid(f"{where}: names must not be empty, and each but once")
            seen.add(tensor.name)
            if tensor.data_type == pb.TYPE_INVALID or tensor.data_type not in pb.DataType.values():
                raise _invalid(f"{where} has no data_type, for example TYPE_FP32")
            if not tensor.dims or any(d == 0 or not -1 <= d <= DIMENSION_LIMIT for d in tensor.dims):
                raise _invalid(
                    f"{where} has dims {list(tensor.dims)[:16]}; give each as a size, or as -1 for any"
                )


def _specs(config: Any, tensors: Any) -> Iterator[TensorSpec]:
    """Tensors as clients meet them."""
    for tensor in tensors:
        kind = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        batch = (-1,) if config.max_batch_size else ()
        yield TensorSpec(tensor.name, "BYTES" if kind == "STRING" else kind, (*batch, *tensor.dims))
