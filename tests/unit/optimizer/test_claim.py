"""Claims: of many Jobs with the same work one does it, and the others wait for it; whoever dies is waited for only so long."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelrollout.api.tasks import ExitCode, GateMetric, PrepareTask, TaskResult
from modelrollout.jobs.errors import JobError, retryable
from modelrollout.jobs.log import Progress
from modelrollout.jobs.programs import run
from modelrollout.optimizer import claim, steps
from modelrollout.optimizer.claim import Claim, Ended, resumed, take
from modelrollout.optimizer.fetch import Store
from tests.unit.optimizer.job_fakes import ObjectStore, object_store
from tests.unit.optimizer.test_prepare import gate_for, task_for
from tests.unit.optimizer.test_prepare import store as store  # the fixture

FOREVER = float("inf")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "DEAD_SECONDS", 3.0)
    monkeypatch.setattr(claim, "POLL_SECONDS", 0.02)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once somebody waits for another's claim."""
    seen = threading.Event()

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            seen.set()
            time.sleep(seconds)

    monkeypatch.setattr(claim, "time", Clock)
    return seen


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as made:
        yield made


@pytest.fixture
def place(server: ObjectStore) -> Store:
    return Store(server.s3("artifacts/ml/key"), "artifacts")


def taken(place: Store, owner: str, give_up: float = FOREVER) -> Claim:
    found = take(place, owner, Progress(), give_up)
    assert found is not None
    return found


def stored(server: ObjectStore, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.objects[f"/artifacts/ml/key/claim-{number}.json"])
    return found


def die(held: Claim) -> None:
    """As a pod that is killed: no beat and no end any more."""
    held._over.set()
    held._thread.join()


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    ended: list[object] = []

    def note() -> None:
        try:
            ended.append(work())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    return thread, ended


def test_of_many_at_once_one_works(place: Store, server: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(take, place, f"ml/job-{n}", Progress(), FOREVER) for n in range(8)]
        while not any(a.done() for a in asked):
            time.sleep(0.01)
        (winner,) = [a.result() for a in asked if a.done()]
        assert winner is not None
        time.sleep(3.5)  # longer than a claim without beats lives
        assert sum(a.done() for a in asked) == 1, "it beats, so nobody gives it up"
        winner.end()
    assert {type(a.exception()) for a in asked} == {type(None), Ended}
    assert stored(server, 1)["ended"] and "/artifacts/ml/key/claim-2.json" not in server.objects


def test_who_dies_is_waited_for_only_so_long(place: Store, server: ObjectStore) -> None:
    first = taken(place, "ml/a")
    thread, ended = in_background(lambda: take(place, "ml/b", Progress(), FOREVER))
    die(first)
    thread.join(timeout=20)
    assert isinstance(ended[0], Claim)
    ended[0].end()
    assert stored(server, 2)["owner"] == "ml/b" and "ended" in stored(server, 2)


def test_a_pod_of_the_same_job_does_not_wait_for_the_one_before_it(place: Store) -> None:
    die(taken(place, "ml/a"))
    begun = time.monotonic()
    taken(place, "ml/a").end()
    assert time.monotonic() - begun < 1.0


def test_failed_work_is_taken_over_by_one_of_those_that_wait(place: Store, waits: threading.Event) -> None:
    first = taken(place, "ml/a")
    thread, ended = in_background(lambda: take(place, "ml/b", Progress(), FOREVER))
    assert waits.wait(20)
    first.end(retryable("StoreUnreachable", "away"))
    thread.join(timeout=20)
    assert isinstance(ended[0], Ended), "look first, then claim"
    taken(place, "ml/b").end()


def test_who_waited_takes_the_gates_verdict_and_who_comes_later_tries_anew(place: Store, waits: threading.Event) -> None:
    verdict = JobError(ExitCode.GATE_FAILED, "AccuracyDrop", "too much", TaskResult(accuracy_before=0.9, accuracy_after=0.5))
    first = taken(place, "ml/a")
    thread, ended = in_background(lambda: take(place, "ml/b", Progress(), FOREVER))
    assert waits.wait(20)
    first.end(verdict)
    thread.join(timeout=20)
    (error,) = ended
    assert isinstance(error, JobError) and (error.code, error.reason) == (ExitCode.GATE_FAILED, "AccuracyDrop")
    assert "ml/a" in error.message and error.result().accuracy_after == 0.5
    taken(place, "ml/b").end()


def test_while_a_users_container_works_the_claim_holds_without_a_beat(place: Store, server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HANDED_SECONDS", 60.0)
    handed = taken(place, "ml/a").hand_over()
    thread, ended = in_background(lambda: take(place, "ml/b", Progress(), FOREVER))
    thread.join(timeout=4.0)
    assert thread.is_alive() and stored(server, 1)["handed"], "longer than others may be silent"
    after = resumed(place, handed)
    end = time.monotonic() + 20
    while "handed" in stored(server, 1):  # from now on its beats count again
        assert time.monotonic() < end
        time.sleep(0.02)
    after.end()
    thread.join(timeout=20)
    assert isinstance(ended[0], Ended)


def test_a_users_container_that_works_longer_is_doubled_and_no_more(place: Store, server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HANDED_SECONDS", 0.3)
    handed = taken(place, "ml/a").hand_over()
    second = taken(place, "ml/b")
    first = resumed(place, handed)
    time.sleep(0.2)
    assert (stored(server, 1)["owner"], stored(server, 2)["owner"]) == ("ml/a", "ml/b")
    thread, ended = in_background(lambda: take(place, "ml/c", Progress(), FOREVER))
    first.end()
    thread.join(timeout=0.5)
    assert thread.is_alive(), "the claim of the highest number counts"
    second.end()
    thread.join(timeout=20)
    assert isinstance(ended[0], Ended)


def test_another_try_of_a_revision_does_not_wait_for_its_container_that_failed(place: Store) -> None:
    taken(place, "ml/a").hand_over()
    begun = time.monotonic()
    taken(place, "ml/a").end()
    assert time.monotonic() - begun < claim.HANDED_SECONDS


def test_patience_ends(place: Store) -> None:
    first = taken(place, "ml/a")
    assert take(place, "ml/b", Progress(), time.monotonic() + 0.3) is None
    first.end()


def test_a_stranger_writes_nonsense(place: Store, server: ObjectStore) -> None:
    for number, content in enumerate((b"{", b"[]", b'{"owner": 1}', b'{"owner": "x", "nonce": "y", "ended": true, "code": 99}', b"x" * 100_000), 1):
        server.objects[f"/artifacts/ml/key/claim-{number}.json"] = content
    taken(place, "ml/a").end()
    assert stored(server, 6)["owner"] == "ml/a"


def test_a_store_without_conditions_or_that_is_away_lets_everybody_work(place: Store, server: ObjectStore) -> None:
    server.conditional = False
    taken(place, "ml/a").end()
    server.statuses["/artifacts/ml/key/claim-1.json"] = (503, b"")
    taken(place, "ml/b").end()


def fleet(store: ObjectStore, number: int, **changes: Any) -> list[TaskResult | JobError]:
    tasks: list[PrepareTask] = [task_for(store, owner=f"ml/job-{n}", **changes) for n in range(number)]

    def outcome(task: PrepareTask) -> TaskResult | JobError:
        try:
            return run(task, Progress())
        except JobError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(outcome, tasks))


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the recipe was really carried out."""
    made: list[int] = []
    real = steps.apply

    def counted(*args: Any, **more: Any) -> Any:
        made.append(1)
        time.sleep(2.0)  # so that all the others ask meanwhile
        return real(*args, **more)

    monkeypatch.setattr(steps, "apply", counted)
    return made


def test_a_fleet_prepares_once(store: ObjectStore, optimized: list[int]) -> None:
    results = fleet(store, 4)
    assert len(optimized) == 1
    assert all(isinstance(r, TaskResult) for r in results)
    assert len({r.artifact_digest for r in results if isinstance(r, TaskResult)}) == 1
    assert sorted(r.reused for r in results if isinstance(r, TaskResult)) == [False, True, True, True]


def test_a_fleet_with_a_bad_recipe_fails_once(store: ObjectStore, optimized: list[int]) -> None:
    results = fleet(store, 4, gate=gate_for(store, GateMetric(min=1.0)))
    assert len(optimized) == 1
    assert {(r.code, r.reason) for r in results if isinstance(r, JobError)} == {(ExitCode.GATE_FAILED, "AccuracyLow")}
    assert all(isinstance(r, JobError) and r.result().metrics for r in results)
