"""Over how many devices a model is divided, as its own configuration says, against those of a pod.

vLLM and TensorRT-LLM start one process for each device and end if there are too few, after minutes
of loading. Whoever says it in another way is not asked: where the number cannot be known, nothing
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modelrollout import nesting
from modelrollout.contract.common import REPOSITORY
from modelrollout.contract.formats import Backend
from modelrollout.jobs.errors import bad_input
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS

FIELD = "spec.serving.resources"
_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
# Arguments of vLLM with which other pods, or other processes, may take part.
_ELSEWHERE = ("distributed_executor_backend", "data_parallel", "nnodes", "node_rank")
_READ_BYTES = 1 << 20
_ENGINE_FILE, _LLM_API_FILE = "config.json", "model.yaml"
_ENGINE_PARAMETERS = ("gpt_model_path", "engine_dir")
_LIBRARY = b"tensorrt_llm"


@dataclass(frozen=True)
class Division:
    """How a model is divided. ``where``: file and sizes, for messages."""

    where: str
    devices: int


def division(backend: Backend, files: Mapping[str, Path], config: Any) -> Division | None:
    """Of the served ``files`` with this config.pbtxt; None: not divided, or it cannot be known."""
    if backend == "VLLM":
        name = KINDS["VLLM"].file
        return _vllm(nesting.parse(files[name].read_bytes()))
    if backend == "Python":
        engines = dict(_engines(files))
        return _chosen(engines, config) if engines else _llm_api(files)
    return None


def compared(found: Division | None, gpus: int | None) -> Iterator[str]:
    """Warnings where a pod has more devices than the model uses; raises JobError: TooFewGPUs.
    ``gpus``: the most that a pod can have; None: not known.
    """
    if found is None or gpus is None or gpus == found.devices:
        return
    if gpus < found.devices:
        raise bad_input(
            Reason.TOO_FEW_GPUS,
            f"{FIELD}: a pod requests {gpus} GPUs, but {found.where} divides the model over {found.devices};"
            f" request {found.devices} in limits, or divide it over fewer",
        )
    yield (
        f"{FIELD}: a pod requests {gpus} GPUs, but {found.where} uses {found.devices}, the others stay idle:"
        " request fewer, or divide the model over all"
    )


def _vllm(arguments: Mapping[str, Any]) -> Division | None:
    if any(key.startswith(_ELSEWHERE) and arguments[key] != "mp" for key in arguments):
        return None
    return _product(KINDS["VLLM"].file, *(arguments.get(size, 1) for size in _SIZES))


def _product(where: str, *sizes: Any) -> Division | None:
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        return None
    tensor, pipeline = sizes
    said = ", ".join(f"{name} {n}" for name, n in zip(_SIZES, sizes, strict=True))
    return Division(f"{where} ({said})", tensor * pipeline)


def _engines(files: Mapping[str, Path]) -> Iterator[tuple[str, Division]]:
    """Engines of TensorRT-LLM by their folders, as ``trtllm-build`` writes them."""
    for name, path in files.items():
        if PurePosixPath(name).name != _ENGINE_FILE or path.stat().st_size > _READ_BYTES:
            continue
        try:
            mapping = nesting.parse(path.read_bytes())["pretrained_config"]["mapping"]
            made = _product(name, mapping["tp_size"], mapping["pp_size"])
        except (ValueError, KeyError, TypeError):
            continue
        if made is not None:
            yield PurePosixPath(name).parent.as_posix(), made


def _chosen(engines: Mapping[str, Division], config: Any) -> Division | None:
    """The engine that config.pbtxt names; without a name the only one."""
    named = [config.parameters[key].string_value for key in _ENGINE_PARAMETERS if key in config.parameters]
    if not named:
        return next(iter(engines.values())) if len(engines) == 1 else None
    inside = [path for path in named if path.startswith((f"{REPOSITORY}/", "$$"))]
    if len(engines) == 1:
        return next(iter(engines.values())) if inside else None
    fitting = [made for folder, made in engines.items() for path in inside if path.endswith(f"/{folder}")]
    return fitting[0] if len(fitting) == 1 else None


def _llm_api(files: Mapping[str, Path]) -> Division | None:
    """Of TensorRT-LLM's LLM API, whose model.py reads model.yaml beside it."""
    options, program = files.get(_LLM_API_FILE), files[KINDS["Python"].file]
    if options is None or options.stat().st_size > _READ_BYTES or _LIBRARY not in program.read_bytes():
        return None
    text = options.read_text(errors="replace")
    if re.search(r"^(orchestrator_type|gpus_per_node)\s*:", text, re.M):
        return None  # its workers may be elsewhere
    sizes: list[int | None] = []
    for name in _SIZES:
        lines = re.findall(rf"^{name}\s*:(.*)$", text, re.M)
        number = re.fullmatch(r"\s*([0-9]{1,4})\s*(#.*)?", lines[0]) if len(lines) == 1 else None
        sizes.append(int(number[1]) if number else None if lines else 1)
    return _product(_LLM_API_FILE, *sizes)
