"""The queue with workers that wait, in virtual time; its invariants are in
tests/property/test_workqueue.py.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from modelrollout.controller.workqueue import QueueClosed, WorkQueue, run_workers
from modelrollout.testing.virtual_clock import now, run


def queue() -> WorkQueue[str]:
    return WorkQueue(clock=now, uniform=lambda: 0.0)


def test_get_wakes_for_an_add_and_for_a_delayed_add_at_its_time() -> None:
    async def main() -> None:
        q = queue()
        start = now()
        getter = asyncio.create_task(q.get())
        await asyncio.sleep(1)
        q.add_after("late", 50)
        q.add_after("soon", 5)
        assert await getter == "soon"
        assert now() - start == pytest.approx(6)
        assert await q.get() == "late"
        assert now() - start == pytest.approx(51)

    run(main())


def test_a_key_added_while_it_is_worked_on_comes_again_and_never_twice_at_once() -> None:
    async def main() -> None:
        q = queue()
        at_work: list[str] = []
        passes = 0

        async def process(key: str) -> None:
            nonlocal passes
            assert key not in at_work
            at_work.append(key)
            passes += 1
            if passes == 1:
                q.add(key)
                q.add(key)
            await asyncio.sleep(3)
            at_work.remove(key)
            if passes == 2:
                q.close()

        q.add("a")
        await run_workers(q, 4, process)
        assert passes == 2

    run(main())


def test_what_a_pass_raises_is_retried_with_growing_delays() -> None:
    async def main() -> None:
        q = queue()
        times: list[float] = []

        async def process(key: str) -> None:
            times.append(now())
            if len(times) == 5:
                q.close()
                return
            raise RuntimeError("no")

        q.add("a")
        await run_workers(q, 2, process)
        assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([0.5, 1, 2, 4])

    run(main())


def test_retry_after_of_the_server_lengthens_the_back_off() -> None:
    async def main() -> None:
        q = queue()
        assert q.add_rate_limited("a", at_least=7) == 7
        start = now()
        assert await q.get() == "a"
        assert now() - start == pytest.approx(7)

    run(main())


def test_while_paused_nothing_is_handed_out_and_nothing_is_lost() -> None:
    async def main() -> None:
        q = queue()
        q.pause()
        q.add("a")
        q.add_after("b", 2)
        getter = asyncio.create_task(q.get())
        await asyncio.sleep(100)
        assert not getter.done()
        assert q.stalled_for() == 0
        q.resume()
        assert {await getter, await q.get()} == {"a", "b"}

    run(main())


def test_a_cancelled_waiter_passes_its_wake_up_on() -> None:
    async def main() -> None:
        q = queue()
        first, second = asyncio.create_task(q.get()), asyncio.create_task(q.get())
        await asyncio.sleep(1)
        q.add("a")  # wakes the first
        first.cancel()
        assert await asyncio.wait_for(second, 1) == "a"

    run(main())


def test_close_ends_every_waiting_get_and_drain_waits_for_the_work() -> None:
    async def main() -> None:
        q = queue()
        q.add("a")
        key = await q.get()
        waiting = [asyncio.create_task(q.get()) for _ in range(3)]
        await asyncio.sleep(0)
        q.close()
        for task in waiting:
            with pytest.raises(QueueClosed):
                await task
        assert not await q.drain(5)
        asyncio.get_running_loop().call_later(2, q.done, key)
        assert await q.drain(5)
        q.add("b")
        assert len(q) == 0

    run(main())


def test_stalled_for_shows_a_stuck_pass_and_absent_workers_but_no_idleness() -> None:
    async def main() -> None:
        q = queue()
        await asyncio.sleep(1000)
        assert q.stalled_for() == 0
        q.add("a")
        await asyncio.sleep(40)
        assert q.stalled_for() == pytest.approx(40)
        key = await q.get()
        await asyncio.sleep(7)
        assert q.stalled_for() == pytest.approx(7)
        q.done(key)
        assert q.stalled_for() == 0
        q.add_after("b", 10)
        await asyncio.sleep(30)  # no worker takes it: also a stall, from when it was due
        assert q.stalled_for() > 0

    run(main())


def test_done_of_a_key_not_in_work_is_an_error() -> None:
    with pytest.raises(KeyError):
        WorkQueue[str]().done("a")
