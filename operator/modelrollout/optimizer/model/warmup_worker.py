"""``python -m modelrollout.optimizer.model.warmup_worker``: asks a model with zeros, as warm-up
requests of Triton do. Reads a Trial as JSON from standard input, and writes a line of JSON for each
request that it tried.

It is a process of its own because the largest batch may need more memory than the Job has: what it
may use ends before the container's limit does, so that it fails alone. Imports only what it needs.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import onnxruntime

ort: Any = onnxruntime  # it has no types


class Tensor(TypedDict):
    """An input: the name of its numpy type, and the shape of one request."""

    dtype: str
    shape: list[int]


class Trial(TypedDict):
    """``attempts``: forms of the request, of which the first that is answered is taken.
    ``batch_sizes``: in the order in which they are tried; ``batched``: the first dimension is the
    batch. ``bytes``: of memory; None: no limit. ``seconds``: longer than that nothing larger is
    tried.
    """

    model: str
    attempts: list[dict[str, Tensor]]
    batch_sizes: list[int]
    batched: bool
    threads: int
    bytes: int | None
    seconds: float


class Tried(NamedTuple):
    """A request: which form, how many samples, how long, and why it was refused."""

    attempt: int
    batch_size: int
    seconds: float
    refusal: str | None


def _limit_memory(most: int) -> None:
    """Bytes in memory from now on at most. The limit is one of addresses: of those that are taken
    already only what is in memory counts.
    """
    pages = resource.getpagesize()
    addresses, resident = (int(n) * pages for n in Path("/proc/self/statm").read_text().split()[:2])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = addresses + max(0, most - resident)
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(soft, limit), hard))


def _zeros(inputs: dict[str, Tensor], rows: int | None) -> dict[str, Any]:
    """The inputs of one request; with ``rows`` the first dimension has so many."""
    feeds: dict[str, Any] = {}
    for name, tensor in inputs.items():
        shape = tensor["shape"] if rows is None else [rows, *tensor["shape"][1:]]
        text = tensor["dtype"] == "object"
        feeds[name] = np.full(shape, "", object) if text else np.zeros(shape, tensor["dtype"])
    return feeds


def run(trial: Trial, tell: Callable[[Tried], object]) -> None:
    """Tell of each request right after it; the first form of which one is answered is the last."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = trial["threads"], 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it takes more than is needed, to be fast later
    session = ort.InferenceSession(trial["model"], options, providers=["CPUExecutionProvider"])
    for number, inputs in enumerate(trial["attempts"]):
        answered = False
        for size in trial["batch_sizes"]:
            refusal, seconds = None, math.inf
            try:
                feeds = _zeros(inputs, size if trial["batched"] else None)
                begun = time.monotonic()
                session.run(None, feeds)
                seconds, answered = time.monotonic() - begun, True
            except Exception as error:  # any of ONNX Runtime's, and MemoryError
                refusal = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            tell(Tried(number, size, 0.0 if refusal else seconds, refusal))
            if refusal or seconds > trial["seconds"]:
                break
        if answered:
            break


def main() -> None:
    trial: Trial = json.load(sys.stdin)
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # ONNX Runtime prints there, too
    if trial["bytes"] is not None:
        _limit_memory(trial["bytes"])
    run(trial, lambda tried: results.write(f"{json.dumps(tried)}\n"))


if __name__ == "__main__":
    main()
