"""Queries that namespaces wrote themselves. They run in the background, one at a time for each
namespace, and not at all for a while after trouble.

A reading takes the answers that have arrived and waits for the rest only a moment. So no query of a
tenant delays a built-in metric, a worker, or another tenant.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.backoff import Pause, after_trouble
from modelrollout.reasons import Reason

LIMIT_SECONDS = 2.0  # for one query, also passed to Prometheus
PATIENCE_SECONDS = 0.5  # of a reading: an answer that takes longer is for the next one
AT_ONCE = 2  # of all namespaces together
MOST_WAITING = 64  # queries of one namespace
FRESH_SECONDS = 30.0  # an answer serves every reading for so long, and one reading if it is older
RETENTION_SECONDS = 600.0  # an answer that no reading takes
MAX_SERIES = 4  # of an answer: more than one is an error, and its message quotes a few
_TROUBLE = (Reason.PROVIDER_TIMEOUT, Reason.PROVIDER_ERROR)


class OwnQueries:
    """The own queries to one provider. ``run_query`` is synchronous and runs on threads of its own;
    ``provider``: its name, for messages.
    """

    def __init__(
        self,
        provider: str,
        run_query: Callable[[str], Answer | MeasurementProblem],
        *,
        patience: float = PATIENCE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider, self._run_query, self._patience, self._now = provider, run_query, patience, now
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"prometheus-{provider}-own")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # by namespace and key
        self._tasks: defaultdict[str, dict[str, asyncio.Task[None]]] = defaultdict(dict)
        self._answers: defaultdict[str, dict[str, tuple[Answer | MeasurementProblem, float]]] = defaultdict(
            dict
        )
        self._pauses: dict[str, Pause] = {}
        self._swept = now()

    async def query(
        self, namespace: str, queries: Mapping[str, str]
    ) -> dict[str, Answer | MeasurementProblem]:
        """The newest answer to each query, or why there is none yet, by the key that names the
        query from one reading to the next.
        """
        if not queries:
            return {}
        self._sweep()
        idle = not self._tasks[namespace]
        for key, promql in queries.items():
            self._begin(namespace, key, promql)
        begun = [task for key, task in self._tasks[namespace].items() if key in queries]
        if begun and idle:  # the others of this namespace do not wait: it holds one worker at most
            await asyncio.wait(begun, timeout=self._patience)
        return {key: self._known(namespace, key) for key in queries}

    def close(self) -> None:
        """Release the threads; a query that hangs ends by its own time-out."""
        for tasks in self._tasks.values():
            for task in tasks.values():
                task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, namespace: str, key: str, promql: str) -> None:
        tasks = self._tasks[namespace]
        if key in tasks:
            return
        if paused := self._paused(namespace):
            self._answers[namespace][key] = paused, self._now()
        elif len(tasks) < MOST_WAITING:
            before = self._answers[namespace].get(key)
            # no longer
            if (
                before is not None
                and isinstance(before[0], MeasurementProblem)
                and before[0].reason == Reason.QUERIES_PAUSED
            ):
                del self._answers[namespace][key]
            tasks[key] = asyncio.create_task(self._run(namespace, key, promql))

    async def _run(self, namespace: str, key: str, promql: str) -> None:
        try:
            # until the thread is done: a reading that gave up frees nothing
            async with self._turns[namespace]:
                answer: Answer | MeasurementProblem | None = self._paused(namespace)
                if answer is None:
                    answer = await asyncio.get_running_loop().run_in_executor(
                        self._pool, self._run_query, promql
                    )
                if isinstance(answer, MeasurementProblem):
                    if answer.reason in _TROUBLE:
                        self._pauses[namespace] = after_trouble(self._pauses.get(namespace), self._now())
                elif len(answer.series) > MAX_SERIES:
                    answer = Answer(answer.series[:MAX_SERIES])
                self._answers[namespace][key] = answer, self._now()
        finally:
            del self._tasks[namespace][key]

    def _known(self, namespace: str, key: str) -> Answer | MeasurementProblem:
        entry = self._answers[namespace].get(key)
        if entry is not None:
            if abs(self._now() - entry[1]) > FRESH_SECONDS:
                del self._answers[namespace][key]
            return entry[0]
        return MeasurementProblem(
            Reason.QUERY_PENDING,
            f"Prometheus {self._provider} has not answered yet; own queries of namespace {namespace} are"
            " asked one at a time",
        )

    def _paused(self, namespace: str) -> MeasurementProblem | None:
        pause = self._pauses.get(namespace)
        if pause is None or not pause.holds(self._now()):
            return None
        until = datetime.fromtimestamp(pause.until, UTC)
        return MeasurementProblem(
            Reason.QUERIES_PAUSED,
            f"own queries of namespace {namespace} to Prometheus {self._provider} are paused until"
            f" {until:%H:%M:%S} UTC: one was not answered within {LIMIT_SECONDS:g} s; make it cheaper (fewer"
            " series, shorter ranges), or ask the platform team for a template",
        )

    def _sweep(self) -> None:
        """Forget answers that no reading has taken for a while; at most once a minute."""
        now = self._now()
        if abs(now - self._swept) < RETENTION_SECONDS / 10:
            return
        self._swept = now
        self._pauses = {n: p for n, p in self._pauses.items() if not p.forgotten(now)}
        for namespace, answers in list(self._answers.items()):
            for key in [k for k, (_, at) in answers.items() if abs(now - at) > RETENTION_SECONDS]:
                del answers[key]
            if not answers and not self._tasks[namespace]:
                for table in (self._answers, self._tasks, self._turns):
                    table.pop(namespace, None)
