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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import SlicePairs, TaskResult
from modelrollout.contract.tasks import EvaluateTask
from modelrollout.evaluator.request import request_with_retries, wrong_version
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import Progress, say
from modelrollout.optimizer.gate.metrics import count_pairs
from modelrollout.optimizer.model.data import (
    Arrays,
    Data,
    Request,
    are_whole,
    batch_rows,
    match,
    read_archive,
    requests,
)
from modelrollout.optimizer.model.runtime import (
    check_label_range,
    expect_numbers,
    expect_output,
    scores_or_classes,
    signed,
)
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason
from modelrollout.statistics.paired import accuracies, drop_interval, z_of
from modelrollout.triton.client import Answer, GrpcServer, HttpServer, Served, Server

FIELD = "spec.rollout.analysis.golden"
DATA_LIMIT_BYTES = 8 << 30
SLICE_VALUES = 64  # compared of one array: those with most samples
# of the slices in the result: how many, how large together, characters of a name
SLICES, SLICES_BYTES, SLICE_NAME = 16, 900, 40
# single requests that are not timed: a connection's first ones, and a batch size that the server
# has not seen
WARM_UP = 3


class _Party:
    """One server in the experiment: its metadata, its data, and its answers."""

    def __init__(
        self, who: str, task: EvaluateTask, http: HttpServer, number: int | None, arrays: Arrays
    ) -> None:
        self.who, self.model, self.http, self.number = who, task.model, http, number
        self.output = task.output
        self.served: Served = request_with_retries(lambda: http.served(task.model), who)
        if number is not None and str(number) not in self.served.versions:
            raise wrong_version(who, number, *self.served.versions)
        with self._comparable():
            if self.output is not None:
                expect_output(self.served.outputs, self.output, f"{FIELD}.output")
            self.data: Data = match(
                arrays, task.data, self.served.inputs, FIELD, labelled=True, nan=self.served.nan
            )
        self.rows, self.fill = 1, False
        if not are_whole(self.data.inputs, self.served.inputs):
            rows, self.fill = batch_rows(self.served.inputs, task.batch, FIELD)
            self.rows = min(rows, self.served.max_batch) if self.served.max_batch else rows
        self.classes: int | None = None
        assert self.data.labels is not None
        self.signed = signed(self.data.labels)

    @contextmanager
    def _comparable(self) -> Iterator[None]:
        """Data and an output that fit the candidate alone are no fault of it."""
        try:
            yield
        except JobError as error:
            if self.who == "stable" and error.reason.startswith(("Data", "Output")):
                raise bad_input(
                    Reason.STABLE_NOT_COMPARABLE,
                    f"the golden data fits the candidate, but not stable: {error.message}",
                ) from None
            raise

    def answer(self, server: Server, part: Arrays) -> Answer:
        """Send one request and check which version answered."""
        answer = request_with_retries(
            lambda: server.infer(self.model, part, self.served.inputs, self.served.outputs), self.who
        )
        if self.number is not None and answer.version != str(self.number):
            raise wrong_version(self.who, self.number, answer.version)
        return answer

    def classes_of(self, answer: Answer, request: Request) -> NDArray[np.int64]:
        """[samples] classes, in the words of the labels: of two they may be -1 and 1."""
        with self._comparable():
            classes, self.classes = scores_or_classes(
                request.rows(answer.outputs),
                self.served.outputs,
                request.samples,
                f"{FIELD}: {self.who}",
                self.output,
            )
        return 2 * classes - 1 if self.classes == 2 and self.signed else classes


def paired_pass(parties: Sequence[_Party], progress: Progress) -> list[NDArray[np.int64]]:
    """[n] classes of each party: every sample once, the parties in turn, so that both meet the same
    load. Raises JobError, among others DataNotFinite: the last party is the one that is compared
    with, so what it cannot answer is the data's fault.
    """
    by_party: list[list[NDArray[np.int64]]] = [[] for _ in parties]
    todo = [list(requests(party.data.inputs, party.served.inputs, party.rows, FIELD)) for party in parties]
    total = parties[0].data.n
    for turn in range(max(map(len, todo))):
        for party, parts, classes in zip(parties, todo, by_party, strict=True):
            if turn < len(parts):
                request = parts[turn]
                answer = party.answer(party.http, request.arrays)
                if party is parties[-1]:
                    expect_numbers(
                        request, request.rows(answer.outputs), sum(map(len, classes)), f"{FIELD}.uri"
                    )
                classes.append(party.classes_of(answer, request))
        progress.update(sum(map(len, by_party[0])), total)
    return [np.concatenate(classes) for classes in by_party]


def _same(a: Answer, b: Answer, party: _Party, request: Request) -> bool:
    """Whether two answers to one input agree: the same class, or scores that differ by no more than
    a different batch explains.
    """
    if (party.classes_of(a, request) == party.classes_of(b, request)).all():
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
        one = {name: array[row : row + 1] for name, array in party.data.inputs.items()}
        (request,) = requests(one, party.served.inputs, rows, FIELD)
        start = time.perf_counter()
        over_http = party.answer(party.http, request.arrays)
        took = time.perf_counter() - start
        if turn >= min(WARM_UP, len(chosen)):
            seconds.append(took)
            disagreements += not _same(over_http, party.answer(grpc, request.arrays), party, request)
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
        if not (candidate.signed and candidate.classes == 2):
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
