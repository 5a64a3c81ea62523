"""How long models take, measured in turns.

The runs of all models alternate on one thread, and what counts is that thread's CPU time: the
latency on a machine with nothing else to do. On a busy one, which a node that runs Jobs is, the
wall clock mostly says how long the thread waited for a core.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.optimizer.model.data import Arrays
from modelrollout.optimizer.model.runtime import ort


def open_single(path: Path) -> Any:
    """A session that computes on the calling thread alone. Raises ONNX Runtime's errors."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_turns(sessions: Sequence[Any], requests: Sequence[Arrays], runs: int) -> NDArray[np.float64]:
    """[sessions, runs] seconds of CPU time; run i asks every session ``requests[i %
    len(requests)]``. A tenth as many runs before warm up.
    """
    seconds = np.zeros((len(sessions), runs))
    for run in range(-(runs // 10) - 1, runs):
        request = requests[run % len(requests)]
        for number, session in enumerate(sessions):
            started = time.thread_time()
            session.run(None, request)
            if run >= 0:
                seconds[number, run] = time.thread_time() - started
    return seconds
