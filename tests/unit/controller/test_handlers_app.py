"""What a pass answers becomes the key's next turn, and what nobody foresaw is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelrollout.controller.process import Operator, counted_conditions
from modelrollout.kube.cache import Key
from modelrollout.kube.errors import Conflict, TooManyRequests
from modelrollout.kube.kinds import MODEL_DEPLOYMENT
from modelrollout.telemetry.metrics import Metrics
from modelrollout.testing.fake_cluster import CONFIG, KEY, Cluster

# --- what a pass answers


class Answers:
    """A reconciler that answers, or raises, the next of these."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)

    async def reconcile(self, key: Key) -> float | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def work(*answers: float | Exception | None) -> Operator:
    """One turn of the key for each answer."""
    operator = Operator(CONFIG, Cluster(), Metrics(), "ml", "me")  # type: ignore[arg-type]
    operator._reconciler = Answers(*answers)  # type: ignore[assignment]

    async def main() -> None:
        for _ in answers:
            await operator._work(KEY)

    asyncio.run(main())
    return operator


def test_again_at_once() -> None:
    assert len(work(0.0)._queue) == 1


@pytest.mark.parametrize("answer", [None, 30.0])
def test_later_or_when_something_happens(answer: float | None) -> None:
    operator = work(answer)
    assert len(operator._queue) == 0 and (KEY in operator._queue._due) is (answer is not None)


@pytest.mark.parametrize("error", [Conflict(409, "Conflict", "x"), TooManyRequests(429, "TooMany", "x", 7.0)])
def test_a_failed_pass_is_tried_again_later_and_later(error: Exception) -> None:
    operator = work(error, error)
    assert operator._queue.failures(KEY) == 2 and KEY in operator._queue._due
    assert len(operator._queue) == 0


def test_a_pass_that_succeeds_forgets_the_failures() -> None:
    assert work(Conflict(409, "Conflict", "x"), None)._queue.failures(KEY) == 0


def test_an_error_that_nobody_foresaw_is_left_to_the_worker() -> None:
    with pytest.raises(ZeroDivisionError):
        work(ZeroDivisionError())


@pytest.mark.parametrize("error", [RecursionError(), KeyError("x"), MemoryError()])
def test_an_error_that_nobody_foresaw_is_told_on_the_object(error: Exception) -> None:
    operator = Operator(CONFIG, Cluster(), Metrics(), "ml", "me")  # type: ignore[arg-type]
    operator._reconciler = Answers(error)  # type: ignore[assignment]
    told: list[tuple[Any, ...]] = []

    async def post(*words: Any) -> None:
        told.append(words)

    operator._events.post = post  # type: ignore[method-assign]
    body = {
        "apiVersion": "x/v1",
        "kind": "ModelDeployment",
        "metadata": {"namespace": KEY[0], "name": KEY[1], "uid": "u", "resourceVersion": "1"},
    }
    operator._cache.observe(MODEL_DEPLOYMENT, {"type": "ADDED", "object": body})
    with pytest.raises(type(error)):
        asyncio.run(operator._work(KEY))
    ((about, kind, reason, text),) = told
    assert (about["metadata"]["uid"], kind, reason) == ("u", "Warning", "PassFailed") and type(
        error
    ).__name__ in text


def test_until_it_leads_the_queue_hands_nothing_out() -> None:
    operator = work(0.0)
    assert operator._queue.paused and operator._queue.get_nowait() is None


def test_conditions_that_somebody_else_wrote_cost_the_metrics_nothing() -> None:
    def of(conditions: Any) -> list[tuple[str, str, str]]:
        return counted_conditions({"metadata": {"namespace": "ml"}, "status": {"conditions": conditions}})

    good = {"type": "Hardened", "status": "False"}
    assert of(
        [
            good,
            {"type": "Mine", "status": "True"},
            {"status": "True"},
            {"type": ["x"], "status": {}},
            "text",
            None,
        ]
    ) == [("ml", "Hardened", "False")]
    assert of(None) == [] and of([{"type": "Mine"}] * 10_000 + [good]) == [], (
        "no more than a few are looked at"
    )
