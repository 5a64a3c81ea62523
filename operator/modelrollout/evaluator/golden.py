"""Golden data through the served candidate and, where there is one, through stable: one paired
experiment.

Every sample counts once: it is sent over HTTP in batches, to candidate and stable in turn. Some
samples are then sent again, one by one, over HTTP and gRPC, to compare the protocols and to time
single requests. Those answers do not count: the same input again is no new information.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import SlicePairs, TaskResult
from modelrollout.contract.tasks import EvaluateTask
from modelrollout.jobs.errors import JobError, bad_input, retryable
from modelrollout.jobs.log import Progress, say
from modelrollout.optimizer.gate.metrics import count_pairs
from modelrollout.optimizer.model.data import Arrays, Data, batch_rows, batches, match, read_archive
from modelrollout.optimizer.model.runtime import check_label_range, scores_or_classes
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason
from modelrollout.statistics.paired import accuracies, drop_interval, z_of
from modelrollout.triton.client import Answer, GrpcServer, HttpServer, Served, Server, TritonError

FIELD = "spec.rollout.analysis.golden"
DATA_LIMIT_BYTES = 8 << 30
SLICE_VALUES = 64  # compared of one array: those with most samples
# of the slices in the result: how many, how large together, characters of a name
SLICES, SLICES_BYTES, SLICE_NAME = 16, 900, 40
# single requests that are not timed: a connection's first ones, and a batch size that the server
# has not seen
WARM_UP = 3

# of a request while no server answers: one lost pod is no reason to repeat the whole pass
TRIES = 3
_PAUSE_SECONDS = 1.0

T = TypeVar("T")


def _blame(error: TritonError, who: str) -> JobError:
    """A failed request as a reason. A failure of stable never counts against the candidate: the Job
    is retried.
    """
    if who == "stable":
        return retryable(
            Reason.STABLE_FAILED,
            f"stable did not answer the golden data ({error.kind}: {error}); the candidate is not judged"
            " without it",
        )
    if error.kind == "Unreachable":
        return retryable(
            Reason.SERVER_UNREACHABLE,
            f"{who}: no server answers ({error}); are its pods ready, and does a network policy let this"
            " Job in?",
        )
    if error.kind == "Timeout":
        return retryable(
            Reason.SERVER_TIMEOUT,
            f"{who}: {error}; is the server overloaded? A smaller batch or more replicas help",
        )
    if error.kind == "NotServed":
        return retryable(
            Reason.MODEL_NOT_SERVED,
            f"{who}: the server does not serve the model ({error}); see the log of its pods",
        )
    return bad_input(
        Reason.INFERENCE_FAILED,
        f"{who}: the server failed on the golden data: {error}; see the log of its pods",
    )


def _request_with_retries(request: Callable[[], T], who: str) -> T:
    """Send a request, with a few tries while no server answers; raises JobError."""
    for attempt in range(1, TRIES + 1):
        try:
            return request()
        except TritonError as error:
            if error.kind != "Unreachable" or attempt == TRIES:
                raise _blame(error, who) from None
            time.sleep(_PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")  # pragma: no cover


class _Party:
    """One server in the experiment: its metadata, its data, and its answers."""

    def __init__(
        self, who: str, task: EvaluateTask, http: HttpServer, number: int | None, arrays: Arrays
    ) -> None:
        self.who, self.model, self.http, self.number = who, task.model, http, number
        self.served: Served = _request_with_retries(lambda: http.served(task.model), who)
        if number is not None and str(number) not in self.served.versions:
            raise self._wrong_version(", ".join(self.served.versions) or "none")
        try:
            self.data: Data = match(arrays, task.data, self.served.inputs, FIELD, labelled=True)
        except JobError as error:
            if who == "stable" and error.reason.startswith("Data"):
                raise bad_input(
                    Reason.STABLE_NOT_COMPARABLE,
                    f"the golden data fits the candidate, but not stable: {error.message}",
                ) from None
            raise
        rows, self.fill = batch_rows(self.served.inputs, task.batch, FIELD)
        self.rows = min(rows, self.served.max_batch) if self.served.max_batch else rows
        self.classes: int | None = None

    def _wrong_version(self, actual: str) -> JobError:
        return retryable(
            Reason.STABLE_WRONG_VERSION if self.who == "stable" else Reason.WRONG_VERSION,
            f"{self.who}: version {actual} answers instead of {self.number}; the address leads to the wrong"
            " pods, or not yet to the right ones",
        )

    def answer(self, server: Server, part: Arrays) -> Answer:
        """Send one request and check which version answered."""
        answer = _request_with_retries(
            lambda: server.infer(self.model, part, self.served.inputs, self.served.outputs), self.who
        )
        if self.number is not None and answer.version != str(self.number):
            raise self._wrong_version(answer.version or "none")
        return answer

    def classes_of(self, answer: Answer, count: int) -> NDArray[np.int64]:
        """[count] classes."""
        classes, self.classes = scores_or_classes(
            answer.outputs, self.served.outputs, count, f"{FIELD}: {self.who}"
        )
        return classes


def paired_pass(parties: Sequence[_Party], progress: Progress) -> list[NDArray[np.int64]]:
    """[n] classes of each party: every sample once, the parties in turn, so that both meet the same
    load.
    """
    by_party: list[list[NDArray[np.int64]]] = [[] for _ in parties]
    todo = [list(batches(party.data.inputs, party.rows, party.fill)) for party in parties]
    total = parties[0].data.n
    for turn in range(max(map(len, todo))):
        for party, parts, classes in zip(parties, todo, by_party, strict=True):
            if turn < len(parts):
                count, part = parts[turn]
                classes.append(party.classes_of(party.answer(party.http, part), count))
        progress.update(sum(map(len, by_party[0])), total)
    return [np.concatenate(classes) for classes in by_party]


def _same(a: Answer, b: Answer, party: _Party) -> bool:
    """Whether two answers to one input agree: the same class, or scores that differ by no more than
    a different batch explains.
    """
    if (party.classes_of(a, 1) == party.classes_of(b, 1)).all():
        return True
    return all(
        x.dtype.kind == "f" and x.shape == y.shape and np.allclose(x, y, rtol=1e-3, atol=1e-4)
        for x, y in zip(a.outputs, b.outputs, strict=True)
    )


def single_requests(
    party: _Party, grpc: GrpcServer, samples: int, progress: Progress
) -> tuple[list[float], int]:
    """(seconds of each HTTP request with one sample, samples on which the protocols disagree), on
    samples spread over the data.
    """
    n = party.data.n
    chosen = (
        np.unique(np.linspace(0, n - 1, min(samples, n)).astype(np.int64))
        if samples > 0
        else np.empty(0, np.int64)
    )
    seconds: list[float] = []
    disagreements = 0
    rows = party.rows if party.fill else 1
    for turn, row in enumerate([*chosen[:WARM_UP], *chosen]):
        ((_, part),) = batches(
            {name: array[row : row + 1] for name, array in party.data.inputs.items()}, rows, party.fill
        )
        start = time.perf_counter()
        over_http = party.answer(party.http, part)
        took = time.perf_counter() - start
        if turn >= min(WARM_UP, len(chosen)):
            seconds.append(took)
            disagreements += not _same(over_http, party.answer(grpc, part), party)
            progress.update(len(seconds), len(chosen))
    return seconds, disagreements


def percentile_ms(seconds: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile in milliseconds; None of nothing."""
    return round(1000 * sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)], 3) if seconds else None


def slice_pairs(
    data: Data, labels: NDArray[np.int64], stable: NDArray[np.int64], candidate: NDArray[np.int64]
) -> tuple[tuple[SlicePairs, ...], int]:
    """(the slices that lost most, as many as the result has room for; how many were compared)."""
    compared: list[SlicePairs] = []
    for array, values in data.slices.items():
        kinds, counts = np.unique(values, return_counts=True)
        for kind in kinds[np.argsort(-counts, kind="stable")[:SLICE_VALUES]]:
            of_it = values == kind
            pairs = count_pairs(labels[of_it], stable[of_it], candidate[of_it])
            compared.append(
                SlicePairs(
                    f"{array}={kind}"[:SLICE_NAME],
                    pairs.n,
                    pairs.only_candidate_right,
                    pairs.only_baseline_right,
                )
            )
    z = z_of(len(compared))
    compared.sort(key=lambda s: -drop_interval(s.n, s.only_baseline_right, s.only_candidate_right, z)[0])
    reported: list[SlicePairs] = []
    room = SLICES_BYTES
    for worst in compared[:SLICES]:
        room -= len(json.dumps(worst, ensure_ascii=False).encode())
        if room < 0:
            break
        reported.append(worst)
    return tuple(reported), len(compared)


def evaluate(task: EvaluateTask, progress: Progress) -> TaskResult:
    """The experiment; raises JobError. ``latency_*`` are of single-sample HTTP requests to the
    candidate, one at a time.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "golden.npz"
        with progress.stage("data"):
            ObjectStore(task.data.location, f"{FIELD}.uri").download(
                path, max_bytes=DATA_LIMIT_BYTES, advance=progress.update
            )
            arrays = read_archive(path, FIELD)
        with progress.stage("metadata"):
            timeout = task.timeout_seconds
            candidate = _Party(
                "candidate",
                task,
                stack.enter_context(HttpServer(task.candidate_http, timeout)),
                task.candidate_number,
                arrays,
            )
            parties = [candidate]
            if task.stable_http:
                parties.append(
                    _Party(
                        "stable",
                        task,
                        stack.enter_context(HttpServer(task.stable_http, timeout)),
                        task.stable_number,
                        arrays,
                    )
                )
        with progress.stage("paired"):
            answers = paired_pass(parties, progress)
        labels = candidate.data.labels
        assert labels is not None
        check_label_range(labels, candidate.classes, FIELD)
        with progress.stage("protocols"):
            grpc = stack.enter_context(GrpcServer(task.candidate_grpc, timeout))
            seconds, disagreements = single_requests(candidate, grpc, task.parity_samples, progress)
    duplicates = candidate.data.duplicates()
    result = TaskResult(
        samples=candidate.data.n,
        accuracy=float((answers[0] == labels).mean()),
        latency_p50_ms=percentile_ms(seconds, 0.50),
        latency_p99_ms=percentile_ms(seconds, 0.99),
        protocols_agree=disagreements == 0 if seconds else None,
        message=(
            f"{duplicates} of {candidate.data.n} golden samples repeat others: they add no information"
            if duplicates
            else ""
        ),
    )
    if len(answers) > 1:
        paired = count_pairs(labels, answers[1], answers[0])
        interval = drop_interval(paired.n, paired.only_baseline_right, paired.only_candidate_right)
        slices, compared = slice_pairs(candidate.data, labels, answers[1], answers[0])
        result = result.model_copy(
            update={
                "paired": paired,
                "stable_accuracy": accuracies(paired)[0],
                "drop_interval": interval,
                "slices": slices,
                "slices_compared": compared,
            }
        )
    say("evaluated", samples=result.samples, accuracy=result.accuracy, stable_accuracy=result.stable_accuracy)
    if disagreements:
        raise JobError(
            ExitCode.BAD_INPUT,
            Reason.PROTOCOLS_DISAGREE,
            f"candidate: HTTP and gRPC differ on {disagreements} of {len(seconds)} samples; do both addresses"
            " lead to the same pods?",
            result,
        )
    return result
