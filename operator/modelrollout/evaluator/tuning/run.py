"""The serving configuration for a latency objective, measured on the production Triton beside this
program; the search is ``evaluator.tuning.search``'s.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelrollout.contract.common import ServingConfig
from modelrollout.contract.results import TaskResult, TrialResult, TuneResult
from modelrollout.contract.tasks import TuneTask
from modelrollout.evaluator.tuning.search import CandidateFailed, Load, Trial, climb, space
from modelrollout.jobs.errors import bad_input, retryable
from modelrollout.jobs.log import Progress, say
from modelrollout.optimizer.model.data import (
    DATA_LIMIT_BYTES,
    Arrays,
    batch_rows,
    match,
    read_archive,
)
from modelrollout.optimizer.model.data import requests as requests_of
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason
from modelrollout.triton.client import TritonError
from modelrollout.triton.config import parse, serving_of, with_serving
from modelrollout.triton.layout import CONFIG_FILE
from modelrollout.triton.load import encoded, window
from modelrollout.triton.repository import Repository
from modelrollout.triton.tensors import NUMPY, TensorSpec

FIELD = "spec.serving.tune"
# different ones that are sent in turns, and how large they are together
REQUESTS, REQUESTS_BYTES = 256, 64 << 20
TAIL = 5  # requests beyond the objective that a window must be able to show
SERVER_SECONDS = 300.0  # how long a server that died under a candidate may take to come back
TRIALS, TRIALS_BYTES = 16, 900  # of the others in the result
PROBLEM = 120  # characters
MORE_IN_FLIGHT = 0.8  # of the time limit: what is left is for the last comparison


def _made_up(specs: Sequence[TensorSpec], rows: int) -> Arrays:
    """Inputs of the right form: normal numbers, and zeros for integers, which may be indices.
    Raises JobError where the form is not known.
    """
    unknown = [
        spec for spec in specs if any(d < 0 for d in spec.shape[1:]) or spec.datatype in ("BYTES", "BOOL")
    ]
    if unknown:
        raise bad_input(
            Reason.DATA_NEEDED,
            f"{FIELD}.data: the model's input {unknown[0]} has a size or content that cannot be made up; give"
            " data like that of production",
        )
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.normal(size=(rows, *spec.shape[1:])).astype(NUMPY[spec.datatype]) for spec in specs
    }


def _arrays(task: TuneTask, specs: Sequence[TensorSpec], rows: int, progress: Progress) -> Arrays:
    if task.data is None:
        return _made_up(specs, rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        ObjectStore(task.data.location, f"{task.field}.uri").download(
            path, max_bytes=DATA_LIMIT_BYTES, advance=progress.update
        )
        return match(
            read_archive(path, task.field), task.data, specs, task.field, labelled=False, nan=True
        ).inputs


def requests(task: TuneTask, specs: Sequence[TensorSpec], progress: Progress) -> tuple[list[bytes], int]:
    """(encoded requests, samples in each): one sample a request, or as many as the model's fixed
    first dimension requires.
    """
    rows, _ = batch_rows(specs, 1, FIELD)
    arrays = _arrays(task, specs, rows, progress)
    bodies: list[bytes] = []
    for request in requests_of(arrays, specs, 1, FIELD):
        bodies.append(encoded(task.model, request.arrays, specs))
        if len(bodies) >= REQUESTS or sum(map(len, bodies)) >= REQUESTS_BYTES:
            break
    return bodies, rows


class Bench:
    """Measures configurations of one model, one at a time."""

    def __init__(self, task: TuneTask, config: Any, repository: Repository, progress: Progress) -> None:
        self._task, self._config, self._repository, self._progress = task, config, repository, progress
        self._loaded: ServingConfig | None = None
        self._requests: list[bytes] = []
        self._rows = 1

    def measure(self, serving: ServingConfig, in_flight: int) -> Load:
        """Measure one window. Raises CandidateFailed, or JobError if the candidate is not the
        cause.
        """
        task = self._task
        try:
            self._load(serving)
            seen = window(
                task.http, self._requests, in_flight, task.window_seconds, math.ceil(TAIL / (1 - task.share))
            )
        except TritonError as error:
            self._loaded = None
            raise CandidateFailed(f"{error.kind}: {error}"[:PROBLEM]) from None
        load = Load(in_flight, seen.rate * self._rows, seen.latency(task.share) * 1e3)
        say(
            "measured",
            **serving.model_dump(),
            in_flight=in_flight,
            throughput=round(load.throughput, 1),
            latency_ms=round(load.latency_ms, 3),
        )
        return load

    def _load(self, serving: ServingConfig) -> None:
        if serving == self._loaded:
            return
        self._loaded = None
        self._wait_for_server()
        self._repository.load(self._task.model, with_serving(self._config, serving))
        if not self._requests:
            self._requests, self._rows = requests(
                self._task, self._repository.inputs(self._task.model), self._progress
            )
        self._loaded = serving

    def _wait_for_server(self) -> None:
        end = time.monotonic() + SERVER_SECONDS
        while not self._repository.is_live():
            if time.monotonic() > end:
                raise retryable(
                    Reason.SERVER_UNREACHABLE,
                    "no Triton answers beside this program; see the log of its container",
                )
            time.sleep(1.0)


def tune(task: TuneTask, progress: Progress) -> TaskResult:
    """Run the search; raises JobError. At the time limit the best result so far counts."""
    started = time.monotonic()
    config = parse((Path(task.repository) / task.model / CONFIG_FILE).read_text())
    start = serving_of(config)
    settings = space(task.instances, config.max_batch_size, task.objective_ms)
    trials: list[Trial] = []

    def time_left() -> bool:
        return time.monotonic() - started < task.timeout_seconds * MORE_IN_FLIGHT

    def record(trial: Trial) -> None:
        trials.append(trial)
        progress.update(len(trials), len(trials))

    with Repository(task.http) as repository, progress.stage("search"):
        measure = Bench(task, config, repository, progress).measure
        configured, best = climb(start, settings, measure, task.objective_ms, time_left, record)
    if all(trial.load is None for trial in trials):
        raise bad_input(
            Reason.INFERENCE_FAILED,
            f"{FIELD}: the server failed under every configuration: {trials[0].problem}; see the log of its"
            " container",
        )
    result = TuneResult(
        configured=_result_of(configured),
        chosen=_result_of(best) if best.serving != configured.serving else None,
        candidates=len(trials),
        failed=sum(trial.load is None for trial in trials),
        trials=_others(trials, (configured, best)),
    )
    say("tuned", chosen=result.chosen.model_dump() if result.chosen else None, candidates=result.candidates)
    return TaskResult(tuned=result, message="; ".join(_remarks(task, config, best)))


def _remarks(task: TuneTask, config: Any, best: Trial) -> list[str]:
    remarks = []
    if not best.within:
        remarks.append(
            f"nothing keeps {100 * task.share:g} % of the requests within {task.objective_ms:g} ms, so the"
            " configured settings stay"
        )
    if task.data is None:
        remarks.append(
            f"measured with inputs that were made up; give {FIELD}.data if the model's time depends on its"
            " inputs"
        )
    if not config.max_batch_size:
        remarks.append(
            "spec.serving.batching.maxBatchSize is 0, so requests were not joined; set it to the most samples"
            " that a client may send at once"
        )
    return remarks


def _result_of(trial: Trial) -> TrialResult:
    if trial.load is None:
        return TrialResult(serving=trial.serving, problem=trial.problem)
    return TrialResult(
        serving=trial.serving,
        throughput=round(trial.load.throughput, 1),
        latency_ms=round(trial.load.latency_ms, 2),
        in_flight=trial.load.in_flight,
        within=trial.within,
    )


def _others(trials: Sequence[Trial], shown: Sequence[Trial]) -> tuple[TrialResult, ...]:
    """The best of the trials that are not shown already, as many as there is room for."""
    known = {trial.serving for trial in shown}
    results: list[TrialResult] = []
    room = TRIALS_BYTES
    for trial in sorted((t for t in trials if t.serving not in known), key=lambda t: t.worth, reverse=True)[
        :TRIALS
    ]:
        row = _result_of(trial)
        room -= len(json.dumps(row.model_dump(exclude_defaults=True)))
        if room < 0:
            break
        results.append(row)
    return tuple(results)
