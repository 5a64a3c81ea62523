"""config.pbtxt of a model that is served as it is: written from the tensors that spec names, or the
author's own, checked and completed.

The author's file is read with Triton's own schema, and a new one is written. What spec.serving says
is the operator's (name, version, batching); what only the author can know stays (tensors,
parameters, instances). What would load a library, read another file, or need a second model is
refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.text_format import ParseError  # type: ignore[import-untyped]

from modelrollout.contract.common import REPOSITORY
from modelrollout.contract.formats import Served
from modelrollout.contract.tasks import Batching
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.store.artifact import is_name
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS, ONNX
from modelrollout.triton.config import BatchingImpossible, message, parse, pb, printed
from modelrollout.triton.layout import BESIDE, VERSION_LINK
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


_ONNX_PLATFORM = "onnxruntime_onnx"
_MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY/"


@dataclass(frozen=True)
class Config:
    """The file's text, and what clients have to send and get."""

    text: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def written(
    served: Served,
    own: bytes | None,
    batching: Batching,
    instance_kind: str,
    *,
    gpu: bool = True,
    version: str = "",
    names: Collection[str] = (),
) -> Config:
    """The configuration to serve with; ``own``: the author's config.pbtxt, if the archive has one.
    ``gpu``: pods have one; ``version``: the author's folder of it; ``names``: of the served files.

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
        expect_devices(config, gpu=gpu)
        relocate(config, version, names)
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


def expect_author_fields(config: Any, served: Served | None) -> Any:
    """The settings of the author's file; raises JobError for those that an author may not set.
    ``served`` None: the model goes to ONNX Runtime.
    """
    kind = ONNX if served is None else KINDS[served.backend]
    named = "ONNX Runtime" if served is None else served.backend
    for field, want in (
        ("backend", {kind.backend}),
        ("platform", {kind.platform, _ONNX_PLATFORM} if served is None else {kind.platform}),
        ("default_model_filename", {kind.file}),
    ):
        if served is None and field == "default_model_filename":
            continue  # whatever it was called, it is served as MODEL_FILE
        value = getattr(config, field)
        if value and value not in want:
            remedy = (
                f"rename the file to {kind.file}"
                if field == "default_model_filename"
                else "correct one of the two"
            )
            raise bad_input(
                Reason.CONFIG_MISMATCH,
                f"spec.serving.triton.backend: {named}, but config.pbtxt says {field}:"
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


def label_files(config: Any) -> set[str]:
    """Names of the files with the names of classes, relative to the model's folder."""
    return {output.label_filename for output in config.output if output.label_filename}


def expect_devices(config: Any, *, gpu: bool) -> None:
    """Raise ConfigMismatch for instances on GPUs in pods that have none: Triton would not load the
    model.
    """
    if not gpu and any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
        raise bad_input(
            Reason.CONFIG_MISMATCH,
            "spec.serving.resources: no GPU is requested, but config.pbtxt says instance_group: KIND_GPU;"
            " request one (limits: {nvidia.com/gpu: 1}), or write KIND_CPU or KIND_AUTO",
        )


def relocate(config: Any, version: str, names: Collection[str]) -> None:
    """Paths below the model's folder as they are in the server, where the version has another
    number. ``version``: the author's folder of it; ``names``: of the files that are served. Raises
    ConfigMismatch for a path that leads to none of them.
    """
    for key, parameter in config.parameters.items():
        value = parameter.string_value
        if not value.startswith(_MODEL_DIRECTORY):
            continue
        path = value.removeprefix(_MODEL_DIRECTORY)
        inside = path.removeprefix(f"{version}/") if version and path.startswith(f"{version}/") else None
        name = f"{BESIDE}{path}" if inside is None else inside
        if name not in names and not any(known.startswith(f"{name}/") for known in names):
            raise bad_input(
                Reason.CONFIG_MISMATCH,
                f"{FIELD}: config.pbtxt: parameters {key[:100]!r} names {path[:200]!r}, which the archive"
                " does not hold in the model's folder; pack it there",
            )
        if inside is not None:
            parameter.string_value = f"{REPOSITORY}/{VERSION_LINK}/{inside}"


def _paths(config: Any, served: Served | None) -> Iterator[tuple[str, str]]:
    """Fields that make Triton read files, each with the reason against it. Only a model that may
    run code may name some.
    """
    for label in label_files(config):
        if not is_name(f"{BESIDE}{label}"):
            yield (
                "label_filename",
                f"{label[:100]!r} is no file of the model's folder; pack it beside config.pbtxt",
            )
    accelerators = config.optimization.execution_accelerators
    for accelerator in (
        *accelerators.gpu_execution_accelerator,
        *accelerators.cpu_execution_accelerator,
    ):
        if any(c in value for value in accelerator.parameters.values() for c in "/\\"):
            yield "optimization", "an accelerator's parameter names a path, which is not there; leave it out"
    for warmup in config.model_warmup:
        if any(tensor.input_data_file for tensor in warmup.inputs.values()):
            yield "model_warmup", "input_data_file is not served; use zero_data or random_data"
    for name, parameter in config.parameters.items():
        if not (served and served.code) and any(c in parameter.string_value for c in "/\\"):
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
    for sample in config.model_warmup:  # Triton loads no model whose warm-up has a larger batch
        sample.batch_size = min(sample.batch_size, batching.max_batch_size)


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


def author_of(own: bytes, *, gpu: bool) -> Any:
    """The settings that come with an ONNX model; raises JobError: ConfigInvalid, ConfigMismatch,
    ConfigUnsupported.
    """
    author = expect_author_fields(_read(own), None)
    expect_devices(author, gpu=gpu)
    if author.max_batch_size < 0:
        raise _invalid(f"max_batch_size: {author.max_batch_size} is negative")
    for tensors in (author.input, author.output):
        # [1] with an empty reshape is how [n] is served: ours says the same
        if any(t.HasField("reshape") and (t.reshape.shape or list(t.dims) != [1]) for t in tensors):
            raise _unsupported("reshape", "tensors are served in the shapes of the ONNX model; leave it out")
    return author


def batching_of(author: Any, batching: Batching) -> Batching:
    """What spec says, within the author's limit; the author's where spec says nothing. Raises
    BatchingImpossible.
    """
    if batching.max_batch_size:
        _batch(author, batching)
        return batching
    delay = author.dynamic_batching.max_queue_delay_microseconds
    return Batching(max_batch_size=author.max_batch_size, max_queue_delay_us=delay)


def with_author(text: str, author: Any) -> str:
    """The configuration of an ONNX model with the author's settings. Tensors stay those of the
    model. Raises ConfigMismatch for a tensor that the model does not have.
    """
    config = parse(text)
    for what, theirs, ours in (
        ("input", author.input, config.input),
        ("output", author.output, config.output),
    ):
        by_name = {tensor.name: tensor for tensor in ours}
        for tensor in theirs:
            if tensor.name not in by_name:
                raise bad_input(
                    Reason.CONFIG_MISMATCH,
                    f"{FIELD}: config.pbtxt names the {what} {tensor.name[:100]!r}, and the model has"
                    f" {', '.join(sorted(by_name))[:200]}; correct it",
                )
            if what == "output":
                by_name[tensor.name].label_filename = tensor.label_filename
    if config.max_batch_size:
        config.ClearField("dynamic_batching")
        if author.HasField("dynamic_batching"):
            config.dynamic_batching.CopyFrom(author.dynamic_batching)
    for field in ("optimization", "model_transaction_policy", "response_cache", "model_metrics"):
        if author.HasField(field):
            getattr(config, field).CopyFrom(getattr(author, field))
    for field in ("instance_group", "model_warmup", "metric_tags"):
        if given := getattr(author, field):
            config.ClearField(field)
            getattr(config, field).MergeFrom(given)
    for key, parameter in author.parameters.items():
        config.parameters[key].CopyFrom(parameter)
    return printed(config)
