"""Opening and ending an `AsyncPool`, whatever the event loop does meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import warnings
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from pairpool import AsyncPool, CancelledError, InitializerFailed
from tests.support import tasks
from tests.support.asynchronous import Run, next_of, run_debugged, soon
from tests.support.gates import Gate, Reports
from tests.support.pools import pids_of
from tests.support.processes import all_ended
from tests.support.scripts import python, running, write_script
from tests.support.waiting import PATIENCE


async def ticks_during(work: Awaitable[object]) -> tuple[int, float]:
    """Return how often the event loop ran while this was awaited, and the longest pause."""
    count, longest = 0, 0.0
    task = asyncio.ensure_future(work)
    while not task.done():
        begin = time.monotonic()
        await asyncio.sleep(0.001)
        count, longest = count + 1, max(longest, time.monotonic() - begin)
    await task
    return count, longest


# --- opening --------------------------------------------------------------------------------------


def test_opening_does_not_block_the_event_loop() -> None:
    """A fresh interpreter takes about 200 ms to start."""

    async def main() -> None:
        pool = AsyncPool(2, start_method="forkserver")
        count, _longest = await ticks_during(pool.open())
        assert count > 10
        assert await pool.run(tasks.square, 2) == 4
        await pool.aclose()

    run_debugged(main())


def test_opening_that_is_cancelled_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        pool = AsyncPool(2, start_method="forkserver")
        opening = asyncio.create_task(pool.open())
        await asyncio.sleep(0.005)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        with pytest.raises(ValueError, match="not running"):
            await pool.run(tasks.square, 1)

    run(main())


def test_the_error_of_a_pool_that_is_not_open() -> None:
    pool = AsyncPool(2)
    with pytest.raises(ValueError, match="not open"):
        pool.status()

    async def main() -> None:
        with pytest.raises(ValueError, match="async with AsyncPool"):
            await pool.run(tasks.square, 1)
        with pytest.raises(ValueError, match="not open"):
            pool.imap(tasks.square, [1])
        await pool.aclose()
        async with pool:
            with pytest.raises(ValueError, match="opened once"):
                await pool.open()
            with pytest.raises(ValueError, match="still running"):
                await pool.join()
        for _ in range(2):
            await pool.aclose()
            await pool.join()
        with pytest.raises(ValueError, match="Pool not running"):
            await pool.map(tasks.square, [1])
        assert "state=TERMINATE" in repr(pool)

    run_debugged(main())


def test_bad_arguments_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="at least 1"):
            await AsyncPool(0).open()
        with pytest.raises(TypeError, match="unexpected keyword"):
            await AsyncPool(workers=2).open()  # type: ignore[call-arg]
        async with AsyncPool(1) as pool:
            with pytest.raises(ValueError, match="buffersize"):
                pool.imap(tasks.square, [1], buffersize=0)
            with pytest.raises(ValueError, match="Chunksize"):
                await pool.map(tasks.square, [1], 0)

    run_debugged(main())


def test_an_initializer_that_fails() -> None:
    async def main() -> None:
        with pytest.raises(InitializerFailed):
            async with AsyncPool(2, initializer=tasks.just_raise) as pool:
                await pool.run(tasks.square, 1)

    run_debugged(main())


def test_a_live_view_and_output(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    async def main() -> None:
        async with AsyncPool(1, live=True, capture=lambda line: lines.append(line.text)) as pool:
            await pool.run(print, "from a worker")
        async with AsyncPool(1) as pool:
            with pool.live():
                await pool.run(print, "from another")

    run(main())
    assert lines == ["from a worker"]
    assert "from another" in capfd.readouterr().out


# --- closing --------------------------------------------------------------------------------------


def test_closing_and_joining(run: Run, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            calls = [asyncio.create_task(pool.run(tasks.held, gate.path, x)) for x in range(10)]
            await asyncio.sleep(0.01)
            pool.close()
            with pytest.raises(ValueError, match="not running"):
                await pool.run(tasks.square, 1)
            joining = asyncio.create_task(pool.join())
            await asyncio.sleep(0.05)
            assert not joining.done()
            gate.let(10)
            await joining
            assert await asyncio.gather(*calls) == list(range(10))

    run(main())


def test_ending_does_not_block_the_event_loop(run: Run) -> None:
    """A stopped worker does not exit. It is killed after one second."""

    async def main() -> None:
        pool = AsyncPool(2)
        await pool.open()
        pids = pids_of(pool)
        os.kill(
            await pool.run(os.getpid), signal.SIGSTOP
        )  # a worker that has run a call, because others may not have started
        begin = time.monotonic()
        count, longest = await ticks_during(pool.aclose())
        assert 0.9 < time.monotonic() - begin < 5
        assert count > 100
        assert longest < 0.8
        assert all_ended(pids)

    run(main())


def test_ending_that_is_cancelled_ends_at_once() -> None:
    async def main() -> None:
        pool = AsyncPool(2)
        await pool.open()
        pids = pids_of(pool)
        os.kill(await pool.run(os.getpid), signal.SIGSTOP)
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert all_ended(pids)

    run_debugged(main())


def test_two_coroutines_may_end_the_pool_at_once(gate: Gate) -> None:
    async def main() -> None:
        pool = AsyncPool(2)
        await pool.open()
        call = asyncio.create_task(pool.run(tasks.held, gate.path, 1))
        await asyncio.sleep(0.01)
        await asyncio.gather(pool.aclose(), pool.terminate(), pool.aclose())
        with pytest.raises(CancelledError):
            await call

    run_debugged(main())


@pytest.mark.parametrize("method", ["map", "imap"])
def test_inputs_that_are_being_read_when_the_pool_ends(run: Run, method: str) -> None:
    closed: list[str] = []
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            begun.set()
            await asyncio.Event().wait()
        finally:
            closed.append(method)

    async def use(pool: AsyncPool) -> list[int]:
        if method == "map":
            return await pool.map(tasks.square, endless())
        return [one async for one in pool.imap(tasks.square, endless())]

    async def main() -> None:
        async with AsyncPool(2) as pool:
            call = asyncio.create_task(use(pool))
            assert await pool.run(tasks.square, 2) == 4
            await begun.wait()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(CancelledError, match="the pool was terminated"):
                await call
        assert closed == [method]

    run(main())


def test_an_input_of_map_is_closed_with_its_coroutine(run: Run) -> None:
    closed: list[int] = []

    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.append(1)

    async def main() -> None:
        async with AsyncPool(2) as pool:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await pool.map(tasks.square, endless())
            assert closed == [1]
            assert await pool.run(tasks.square, 2) == 4

    run(main())


# --- event loops that are others, or have closed --------------------------------------------------


def test_another_event_loop_is_refused(run: Run) -> None:
    async def use(pool: AsyncPool) -> None:
        with pytest.raises(RuntimeError, match="opened in another event loop, and can only be used there"):
            await pool.run(tasks.square, 1)
        with pytest.raises(RuntimeError, match="opened in another event loop"):
            await pool.aclose()

    async def main() -> None:
        async with AsyncPool(1) as pool:
            await asyncio.to_thread(asyncio.run, use(pool))
            assert await pool.run(tasks.square, 2) == 4

    run(main())


def test_the_pool_ends_with_its_event_loop(run: Run) -> None:
    pool = AsyncPool(2)
    pids: list[int] = []

    async def main() -> None:
        await pool.open()
        assert await pool.run(tasks.square, 2) == 4
        pids.extend(pids_of(pool))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main())
    assert [one.category for one in caught] == [ResourceWarning]
    assert all_ended(pids)

    async def again() -> None:
        with pytest.raises(ValueError, match="Pool not running"):
            await pool.run(tasks.square, 1)

    run(again())


def test_an_event_loop_that_is_closed_without_its_generators(gate: Gate) -> None:
    """Its asynchronous generators are not closed. So the pool stays until it is ended."""
    pool = AsyncPool(2)
    events = asyncio.new_event_loop()
    events.run_until_complete(pool.open())
    pids = pids_of(pool)
    call = events.create_task(pool.run(tasks.held, gate.path, 1))
    events.run_until_complete(asyncio.sleep(0.01))
    call.cancel()
    events.run_until_complete(asyncio.wait([call]))
    events.close()
    assert pool.status().state == "RUN"

    async def main() -> None:
        with pytest.raises(RuntimeError, match="another event loop, which has closed"):
            await pool.run(tasks.square, 1)
        await pool.aclose()

    asyncio.run(main())
    assert all_ended(pids)


def test_a_pool_that_is_dropped_ends() -> None:
    async def main() -> None:
        pool = AsyncPool(2)
        await pool.open()
        assert await pool.run(tasks.square, 2) == 4
        pids = pids_of(pool)
        with pytest.warns(ResourceWarning, match="unclosed"):
            del pool
        gc.collect()
        assert await asyncio.to_thread(all_ended, pids)

    run_debugged(main())


def test_an_event_loop_in_a_worker(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            assert await pool.run(lambda: asyncio.run(asyncio.sleep(0.001, 5))) == 5

    run(main())


def test_an_idle_pool_takes_no_time() -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            await pool.map(tasks.square, range(10))
            await asyncio.sleep(0.3)
            begin = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - begin < 0.05

    asyncio.run(main())


def test_a_worker_that_dies_while_the_pool_idles_is_replaced(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            victim = pids_of(pool)[0]
            os.kill(victim, signal.SIGKILL)
            await soon(lambda: len(pids_of(pool)) == 2 and victim not in pids_of(pool))

    run(main())


# --- whole programs -------------------------------------------------------------------------------

INTERRUPTED = """
    import asyncio, sys
    from pairpool import AsyncPool
    from tests.support import tasks

    async def main():
        async with AsyncPool(2) as pool:
            print(*(worker.pid for worker in pool.status().workers), flush=True)
            await asyncio.gather(*(pool.run(tasks.tell_and_hold, sys.argv[1], sys.argv[2], x) for x in range(100)))

    asyncio.run(main(), debug=True)
"""


def test_ctrl_c_ends_the_program(tmp_path: Path, gate: Gate, reports: Reports) -> None:
    script = write_script(tmp_path, INTERRUPTED)
    with running(script, reports.path, gate.path) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        reports.take(2)
        process.send_signal(signal.SIGINT)
        _out, errors = process.communicate(timeout=20)
        assert process.returncode == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert "never retrieved" not in errors
        assert all_ended(pids)


QUIET = """
    import asyncio, logging
    from pairpool import AsyncPool
    from tests.support import tasks

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 10.0  # because durations depend on the machine
        async with AsyncPool(2) as pool:
            await asyncio.gather(*(pool.run(tasks.square, x) for x in range(200)))
            async for result in pool.imap(tasks.square, range(1000)):
                if result > 100:
                    break
            try:
                async with asyncio.timeout(0.05):
                    await pool.run(tasks.hold_on, "sleep")
            except TimeoutError:
                print("done")

    logging.basicConfig()
    asyncio.run(main(), debug=True)
"""


def test_a_normal_program_causes_no_warning(tmp_path: Path) -> None:
    done = python("-X", "dev", write_script(tmp_path, QUIET))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_report_after_the_end(reports: Reports, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncPool(1) as pool:
            call = asyncio.create_task(pool.run(tasks.tell_and_hold, reports.path, gate.path, 1))
            await next_of(reports)
            gate.let()
            await call
        assert pool.report().done == 1
        assert pool.status().state == "TERMINATE"

    run_debugged(main())
