"""Calls of `AsyncPool` that are awaited, on the event loops of asyncio and of uvloop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import cast

import pytest

from pairpool import AsyncPool, CancelledError, TaskTimeout, WorkerDied
from pairpool.master.asyncio_driver import AsyncioDriver
from pairpool.master.event_loop import EventLoop
from tests.support import tasks
from tests.support.asynchronous import Run, next_of, run_debugged, soon
from tests.support.gates import Gate, Reports
from tests.support.processes import all_ended
from tests.support.waiting import PATIENCE

# --- calls ----------------------------------------------------------------------------------------


def test_calls_and_maps(run: Run) -> None:
    async def items() -> AsyncIterator[tuple[int, int]]:
        for item in range(3):
            await asyncio.sleep(0)
            yield item, 1

    async def main() -> None:
        async with AsyncPool(2) as pool:
            assert await pool.run(tasks.add, 1, b=2, c=3) == 6
            assert await pool.run(lambda: 7) == 7
            assert await pool.map(tasks.square, range(1000)) == [x * x for x in range(1000)]
            assert await pool.map(tasks.square, []) == []
            assert await pool.starmap(tasks.add, items()) == [1, 2, 3]
            kept: list[object] = []
            kept += await pool.map(tasks.refuse_odd, [2, 3], return_exceptions=True)
            assert kept[0] == 2
            assert isinstance(kept[1], tasks.Odd)
            assert "state=RUN pool_size=2" in repr(pool)

    run(main())


def test_no_thread_is_started(run: Run) -> None:
    async def main() -> None:
        before = threading.active_count()
        async with AsyncPool(2) as pool:
            await asyncio.gather(*(pool.run(tasks.square, x) for x in range(100)))
            assert threading.active_count() == before

    run(main())


def test_the_first_calls_of_every_start_method(start_method: str) -> None:
    """Without an initializer, only the call itself makes the event loop drive the pool."""

    async def main() -> None:
        async with AsyncPool(2, start_method=start_method) as pool:
            assert await asyncio.gather(*(pool.run(tasks.square, x) for x in range(100))) == [x * x for x in range(100)]

    run_debugged(main())


def test_every_way_of_starting_workers(start_method: str) -> None:
    async def main() -> None:
        async with AsyncPool(2, start_method=start_method, initializer=tasks.remember_value, initargs=(5,)) as pool:
            assert await asyncio.gather(*(pool.run(tasks.recall, "value") for _ in range(4))) == [5] * 4

    run_debugged(main())


def test_exceptions_come_through(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            with pytest.raises(tasks.Odd, match="3 is odd"):
                await pool.run(tasks.refuse_odd, 3)
            with pytest.raises(tasks.Odd, match="1 is odd"):
                await pool.map(tasks.refuse_odd, range(10))
            with pytest.raises(WorkerDied, match="SIGSEGV"):
                await pool.run(tasks.segfault)
            with pytest.raises(TaskTimeout):
                await pool.with_options(task_timeout=0.05).run(tasks.hold_on, "sleep")
            with pytest.raises(RuntimeError, match="StopIteration"):
                await pool.run(tasks.raise_this, StopIteration(1))
            with pytest.raises(RuntimeError, match="a task raised CancelledError"):
                await pool.run(tasks.raise_this, asyncio.CancelledError())
            with pytest.raises(TypeError, match="not callable"):
                await pool.run(3)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="pickle"):
                await pool.run(tasks.identity, threading.Lock())
            assert await pool.run(tasks.square, 3) == 9

    run(main())


def test_options_of_some_calls(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncPool(2, retries=1) as pool:
            again = pool.with_options(retry_on=ValueError).with_options(retries=2)
            assert await again.run(tasks.fail_first, str(tmp_path / "journal"), "raise", 2, 7) == 7
            with pytest.raises(ValueError, match="retries must be 0 or more"):
                pool.with_options(retries=-1)

    run_debugged(main())


def test_ten_thousand_awaits(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            results = await asyncio.gather(*(pool.run(tasks.square, x) for x in range(10_000)))
            assert results == [x * x for x in range(10_000)]

    run(main())


def test_workers_killed_under_ten_thousand_awaits() -> None:
    """Each death fails at most one call, the one that ran."""

    async def main() -> None:
        async with AsyncPool(3) as pool:
            calls = asyncio.gather(*(pool.run(tasks.busy_for, 0.0002) for _ in range(3_000)), return_exceptions=True)
            killed = 0
            while not calls.done() and killed < 10:
                await asyncio.sleep(0.02)
                victim = pool.status().workers[killed % 3]
                if victim.pid:
                    os.kill(victim.pid, signal.SIGKILL)
                    killed += 1
            results = await calls
            failed = [one for one in results if isinstance(one, BaseException)]
            assert len(results) == 3_000
            assert all(isinstance(one, WorkerDied) for one in failed)
            assert killed > 0
            assert len(failed) <= killed

    run_debugged(main())


def test_the_event_loop_goes_on_under_load() -> None:
    """No turn takes long, however much there is to do. CPU seconds count, because others may use the cores."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            begin = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begin)

    async def main() -> None:
        nonlocal longest
        async with AsyncPool(2) as pool:
            calls = [asyncio.ensure_future(pool.run(tasks.square, x)) for x in range(10_000)]
            await asyncio.sleep(0)  # starts all tasks at once, which the pool does not do
            ticking = asyncio.create_task(tick())
            await asyncio.sleep(0)
            longest = 0.0
            await asyncio.gather(*calls)
            ticking.cancel()

    asyncio.run(main())
    assert 0 < longest < 0.25  # about 5 ms


# --- cancelling -----------------------------------------------------------------------------------


def test_a_cancelled_call_that_runs_is_ended(run: Run, gate: Gate, reports: Reports) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            other = asyncio.create_task(pool.run(tasks.tell_and_hold, reports.path, gate.path, "other"))
            await next_of(reports)
            call = asyncio.create_task(pool.run(tasks.tell_and_hold, reports.path, gate.path, "call"))
            pid = int((await next_of(reports)).split()[0])
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(all_ended, [pid])
            assert await pool.run(tasks.square, 2) == 4  # in the worker that replaces it
            gate.let()
            assert await other == "other"

    run(main())


def test_a_time_limit_of_asyncio_ends_the_task(run: Run, gate: Gate, reports: Reports) -> None:
    async def main() -> None:
        async with AsyncPool(1) as pool:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await pool.run(tasks.tell_and_hold, reports.path, gate.path, 0)
            pid = int((await next_of(reports)).split()[0])
            assert await asyncio.to_thread(all_ended, [pid])
            assert await pool.run(tasks.square, 3) == 9

    run(main())


def test_a_cancelled_call_that_waits_is_not_run(gate: Gate, reports: Reports) -> None:
    async def main() -> None:
        async with AsyncPool(1) as pool:
            first = asyncio.create_task(pool.run(tasks.tell_and_hold, reports.path, gate.path, "first"))
            pid = (await next_of(reports)).split()[0]
            calls = [
                asyncio.create_task(pool.run(tasks.tell_and_hold, reports.path, gate.path, number))
                for number in range(5)
            ]
            await asyncio.sleep(0.01)
            for call in calls[:4]:
                call.cancel()
            await asyncio.wait(calls[:4])
            gate.let(2)
            assert await first == "first"
            assert await calls[4] == 4
            assert await next_of(reports) == f"{pid} 4"  # no other call has run, and no worker was killed

    run_debugged(main())


def test_a_call_that_is_cancelled_at_once_keeps_no_worker(gate: Gate) -> None:
    """This includes a call that its worker has read but not begun. It is ended when it begins."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            for turns in range(40):
                call = asyncio.create_task(pool.run(tasks.held, gate.path, turns))
                for _ in range(turns % 8):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                assert call.cancelled()
                async with asyncio.timeout(PATIENCE):
                    assert await pool.run(tasks.square, turns) == turns * turns

    run_debugged(main())


def test_many_calls_are_cancelled_at_once(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            everything = asyncio.gather(*(pool.run(tasks.held, gate.path, x) for x in range(10_000)))
            await asyncio.sleep(0.05)
            begin = time.monotonic()
            everything.cancel()
            with pytest.raises(asyncio.CancelledError):
                await everything
            assert await pool.map(tasks.square, [1, 2, 3]) == [1, 4, 9]
            assert time.monotonic() - begin < PATIENCE / 4
            await soon(lambda: pool.status().calls == 0)

    asyncio.run(main())  # debug mode takes ten times as long for 10,000 tasks


def test_a_cancelled_map_ends(run: Run, gate: Gate, reports: Reports) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            call = asyncio.create_task(pool.map(tasks.tell_pid_and_wait, [(reports.path, gate.path)] * 10))
            pids = [int(await next_of(reports)) for _ in range(2)]
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(all_ended, pids)
            assert await pool.run(tasks.square, 3) == 9

    run(main())


def test_a_group_that_fails_ends_its_tasks(gate: Gate, reports: Reports) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            pid = 0

            async def group_that_fails() -> None:
                nonlocal pid
                async with asyncio.TaskGroup() as group:
                    group.create_task(pool.run(tasks.tell_and_hold, reports.path, gate.path, 0))
                    pid = int((await next_of(reports)).split()[0])
                    group.create_task(pool.run(tasks.refuse_odd, 1))

            with pytest.raises(ExceptionGroup) as caught:
                await group_that_fails()
            assert [type(one) for one in caught.value.exceptions] == [tasks.Odd]
            assert await asyncio.to_thread(all_ended, [pid])

    run_debugged(main())


# --- beside other ways in -------------------------------------------------------------------------


def test_blocking_calls_in_the_thread_of_the_event_loop_do_not_hang(run: Run, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            calls: list[Awaitable[object]] = [asyncio.create_task(pool.run(tasks.held, gate.path, x)) for x in (0, 1)]
            await soon(lambda: sum(worker.is_busy for worker in pool.status().workers) == 2)
            gate.let(2)
            for _ in range(100):
                pool.status()
                pool.report()
            assert set(pool.stacks()) == {0, 1}
            assert await asyncio.gather(*calls) == [0, 1]

    run(main())


class ShortOfTime:
    """A loop whose descriptor is always readable, and that wants each turn a tenth of a millisecond after the last."""

    ended = False

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.turns = 0

    def set_asyncio(self, call: object) -> None:
        """Ignore the function: no other thread leads this loop."""

    def run_once(self, _deadline: float) -> float:
        self.turns += 1
        return 0.0001


def test_a_turn_that_is_due_at_once_while_another_is_scheduled(run: Run) -> None:
    """An event and a coroutine may both ask for a turn while another turn is scheduled."""

    async def main() -> None:
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _events, context: errors.append(context))
        reading, writing = os.pipe()
        os.write(writing, b".")
        loop = ShortOfTime(reading)
        driver = AsyncioDriver(cast(EventLoop, loop), asyncio.get_running_loop())
        for _ in range(10):
            driver.summon()
            await asyncio.sleep(0)
        await soon(lambda: loop.turns >= 30)
        loop.ended = True
        driver.leave()
        os.close(reading)
        os.close(writing)
        assert errors == []

    run(main())


def test_other_threads_may_ask_for_the_status_meanwhile(run: Run) -> None:
    """These threads leave the lead to the event loop, and do not stop its progress."""

    async def main() -> None:
        async with AsyncPool(2) as pool:
            is_over = threading.Event()

            def watch() -> None:
                while not is_over.is_set():
                    pool.status()
                    pool.report()

            watching = [asyncio.create_task(asyncio.to_thread(watch)) for _ in range(2)]
            try:
                for _ in range(5):
                    assert await asyncio.gather(*(pool.run(tasks.square, x) for x in range(300))) == [
                        x * x for x in range(300)
                    ]
                    for x in range(30):
                        assert await pool.run(tasks.square, x) == x * x
            finally:
                is_over.set()
                await asyncio.gather(*watching)

    run(main())


def test_a_call_that_is_submitted_while_another_thread_leads(run: Run) -> None:
    """Only the end of that thread's lead tells the event loop to go on."""

    async def main() -> None:
        async with AsyncPool(2) as pool:
            leads, is_over = threading.Event(), threading.Event()

            loop = pool._core.inner.engine.loop

            def lead() -> None:
                while not loop._take_lead():
                    os.sched_yield()
                leads.set()
                is_over.wait(PATIENCE)
                loop._leave_lead()

            leading = asyncio.create_task(asyncio.to_thread(lead))
            try:
                await soon(leads.is_set)
                call = asyncio.create_task(pool.run(tasks.square, 2))
                begin = time.process_time()
                done, _ = await asyncio.wait([call], timeout=0.2)
                assert not done
                assert time.process_time() - begin < 0.1  # the event loop does not poll meanwhile
            finally:
                is_over.set()
            async with asyncio.timeout(PATIENCE):
                assert await call == 4
            await leading

    run(main())


def test_resizing_and_sharing(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(1) as pool:
            await pool.resize(3)
            assert sum(1 for worker in pool.status().workers if worker.pid) == 3
            with pool.share(b"x" * 100_000) as shared:
                assert await pool.run(len, shared) == 100_000  # type: ignore[arg-type]

    run(main())


def test_calls_that_are_left_when_the_pool_ends(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncPool(1) as pool:
            calls = [asyncio.create_task(pool.run(tasks.held, gate.path, x)) for x in range(500)]
            await asyncio.sleep(0.01)
        for call in calls:
            with pytest.raises(CancelledError, match="the pool was terminated"):
                await call

    run_debugged(main())
