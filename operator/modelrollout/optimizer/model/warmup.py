"""Which warm-up requests a model gets: zeros of one sample, and of the largest batch.

Triton does not load a model that refuses one of its warm-up requests, so only what ONNX Runtime has
answered here, in time, is taken (``warmup_worker``). Zeros are safe where random bits are not: they
are indices of every table, and no NaN. They carry nothing of a user's data into the artifact, only
its shape.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelrollout.optimizer.model.child import bare_environment
from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.files import data_of, is_split
from modelrollout.optimizer.model.limits import memory_limit
from modelrollout.optimizer.model.runtime import cpu_limit
from modelrollout.optimizer.model.warmup_worker import Tensor, Trial, Tried
from modelrollout.triton.config import Warmup
from modelrollout.triton.tensors import NUMPY, TensorSpec

LIMIT_BYTES = 256 << 20  # of the inputs of the largest batch
# Of one request here. A server answers its own before it is ready, on each instance.
LIMIT_SECONDS = 10.0
TRIAL_SECONDS = 120.0  # of all of it, with loading the model
UNKNOWN = (64, 1)  # what a dimension that may have any size is taken for, in this order
_MEMORY_SHARE = 0.9  # of the limit; the rest is for what is not counted
_WORKER_BYTES = 192 << 20  # of memory before it opens a model, with room to spare
_WORD_BYTES = 4  # of an empty word, on the wire


class WarmupImpossibleError(Exception):
    """No warm-up request was answered; the text says why."""


def find_warmup(path: Path, specs: Sequence[TensorSpec], most: int, samples: Arrays | None) -> Warmup:
    """The warm-up requests of a model that is served with ``max_batch_size`` ``most`` (0: without
    batching). ``samples``: data that shows the sizes of its dimensions. Raises
    WarmupImpossibleError.
    """
    batched = most > 0
    forms = [f for f in _forms(specs, samples) if _bytes(specs, f) <= LIMIT_BYTES]
    if not forms:
        raise WarmupImpossibleError(f"the inputs of one request have more than {LIMIT_BYTES} bytes")
    sizes = [1] + [most] * (most > 1 and _bytes(specs, forms[0]) * most <= LIMIT_BYTES)
    memory = _memory_left(path)
    if memory is not None and memory < _WORKER_BYTES:
        raise WarmupImpossibleError(
            "the Job has too little memory to ask the model; raise spec.optimization.resources.limits.memory"
        )
    tried = _tried(path, specs, forms, sizes, batched, memory)
    answered = [t for t in tried if t.refusal is None and t.seconds <= LIMIT_SECONDS]
    if not answered:
        raise WarmupImpossibleError(_why(tried))
    return Warmup(forms[answered[-1].attempt], tuple(t.batch_size for t in answered))


def _forms(specs: Sequence[TensorSpec], samples: Arrays | None) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of one request, by input: those of the samples, or with each of UNKNOWN."""
    if samples is not None:
        known = {s.name: (1, *samples[s.name].shape[1:]) for s in specs}
        return [{s.name: _filled(s.shape, known[s.name]) for s in specs}]
    return [{s.name: _filled(s.shape, (1, *[size] * len(s.shape))) for s in specs} for size in UNKNOWN]


def _filled(shape: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    return tuple(k if d < 0 else d for d, k in zip(shape, known, strict=False))


def _bytes(specs: Sequence[TensorSpec], form: Mapping[str, tuple[int, ...]]) -> int:
    return sum(
        math.prod(form[s.name]) * (_WORD_BYTES if s.datatype == "BYTES" else NUMPY[s.datatype].itemsize)
        for s in specs
    )


def _tried(
    path: Path,
    specs: Sequence[TensorSpec],
    forms: Sequence[Mapping[str, tuple[int, ...]]],
    sizes: Sequence[int],
    batched: bool,
    memory: int | None,
) -> list[Tried]:
    """What the worker could try before it ended, or its time or memory did."""
    trial = Trial(
        model=str(path),
        attempts=[
            {s.name: Tensor(dtype=NUMPY[s.datatype].name, shape=list(form[s.name])) for s in specs}
            for form in forms
        ],
        batch_sizes=list(sizes),
        batched=batched,
        threads=cpu_limit(),
        bytes=memory,
        seconds=LIMIT_SECONDS,
    )
    with tempfile.TemporaryDirectory() as home:
        # each arena takes addresses, which are limited
        environment = bare_environment(home) | {"MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, "-m", "modelrollout.optimizer.model.warmup_worker"]
        try:
            output = subprocess.run(
                command,
                cwd=home,
                env=environment,
                input=json.dumps(trial).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=TRIAL_SECONDS,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired as late:
            output = late.stdout or b""
    return [Tried(*json.loads(line)) for line in output.splitlines() if line.endswith(b"]")]


def _memory_left(path: Path) -> int | None:
    """Bytes that the worker may use beside this process; None: there is no limit. Weights that lie
    beside the graph are mapped, and cost addresses only.
    """
    limit = memory_limit()
    if limit is None:
        return None
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    mapped = data_of(path).stat().st_size if is_split(path) else 0
    return max(0, int(limit * _MEMORY_SHARE) - resident) + mapped


def _why(tried: Sequence[Tried]) -> str:
    if not tried:
        return (
            f"the model cannot be asked within {TRIAL_SECONDS:g} s and the Job's memory; raise"
            " spec.optimization.resources.limits if it matters"
        )
    if tried[0].refusal is None:
        return f"one sample takes {tried[0].seconds:.0f} s here, more than {LIMIT_SECONDS:g}"
    return f"the model does not answer zeros; ONNX Runtime says: {tried[0].refusal}"
