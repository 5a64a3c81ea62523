"""vLLM's model.json: the arguments of its engine. The weights come from the archive, which was
verified, and never from a hub.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from modelrollout import nesting
from modelrollout.contract.common import REPOSITORY
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.reasons import Reason
from modelrollout.triton.layout import VERSION_LINK

FIELD = "spec.model.uri"
LIMIT_BYTES = 64 << 10
DATA_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".tiktoken", ".jinja"})

# with what the names of their files begin
_FOLDERS = {"model": "config.json", "tokenizer": "tokenizer"}
# Arguments that choose sizes and speeds. Every other one may name a class, a plugin or another
# place, and takes the right to run code.
_HARMLESS = frozenset(
    {
        "block_size", "cpu_offload_gb", "disable_log_stats", "dtype", "enable_chunked_prefill",
        "enable_prefix_caching", "enforce_eager",
        "gpu_memory_utilization", "kv_cache_dtype", "limit_mm_per_prompt", "max_logprobs", "max_model_len",
        "max_num_batched_tokens", "max_num_seqs",
        "max_seq_len_to_capture", "pipeline_parallel_size", "quantization", "seed", "served_model_name",
        "swap_space", "task",
        "tensor_parallel_size", "trust_remote_code",
    }
)  # fmt: skip


def resolved(path: Path, names: Collection[str], target: Path, *, code: bool) -> Path:
    """``target``, a model.json whose folders are where they will lie in the server; raises
    JobError: EngineInvalid, WeightsMissing, CodeRefused.
    """
    arguments = _read(path)
    if not code:
        _refuse_code(arguments)
    if "model" not in arguments:
        raise _invalid('it names no model; write for example "model": "weights", a folder of the archive')
    for key in _FOLDERS:
        if key in arguments:
            arguments[key] = f"{REPOSITORY}/{VERSION_LINK}/{_folder(key, arguments[key], names)}"
    target.write_text(json.dumps(arguments, indent=1, sort_keys=True))
    return target


def _invalid(what: str) -> JobError:
    return bad_input(Reason.ENGINE_INVALID, f"{FIELD}: model.json: {what}")


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LIMIT_BYTES:
        raise _invalid(f"it has more than {LIMIT_BYTES} bytes")
    try:
        engine = nesting.parse(path.read_bytes())
    except ValueError:
        engine = None
    if not isinstance(engine, dict):
        raise _invalid("it is no JSON object with the arguments of vLLM's engine")
    return engine


def _refuse_code(arguments: dict[str, Any]) -> None:
    remedy = "leave it out, or say spec.serving.triton.code: Allowed"
    if arguments.get("trust_remote_code", False) is not False:
        raise bad_input(
            Reason.CODE_REFUSED,
            f"{FIELD}: model.json: trust_remote_code runs code that lies with the weights; {remedy}",
        )
    if unknown := sorted(arguments.keys() - _HARMLESS - _FOLDERS.keys()):
        raise bad_input(
            Reason.CODE_REFUSED,
            f"{FIELD}: model.json: {unknown[0][:100]!r} is not known to be harmless; {remedy}",
        )


def _folder(key: str, value: object, names: Collection[str]) -> str:
    """A folder of the archive, as the file says it."""
    path = PurePosixPath(value) if isinstance(value, str) and value else PurePosixPath("/")
    text = path.as_posix()
    inside = "" if text == "." else f"{text}/"
    if (
        path.is_absolute()
        or ".." in path.parts
        or not any(n.startswith(inside + _FOLDERS[key]) for n in names)
    ):
        raise bad_input(
            Reason.WEIGHTS_MISSING,
            f"{FIELD}: model.json: {key} {str(value)[:200]!r} is no folder of the archive with"
            f" {_FOLDERS[key]}; pack the weights, and write its name: nothing is fetched from a hub when the"
            " server starts",
        )
    return text
