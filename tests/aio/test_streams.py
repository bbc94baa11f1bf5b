"""`AsyncPool.imap` and `imap_unordered`: inputs are read as far as there is room; results come when ready."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from pairpool import AsyncPool, CancelledError, WorkerDied
from tests.support import tasks
from tests.support.asynchronous import Run, next_of, run_debugged, soon
from tests.support.gates import Gate, Reports
from tests.support.processes import all_ended
from tests.support.waiting import PATIENCE


class Source:
    """An endless asynchronous input that counts how far it was read."""

    def __init__(self, pause: bool = True) -> None:
        self.taken = 0
        self.pause = pause
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            while True:
                if self.pause:
                    await asyncio.sleep(0)
                self.taken += 1
                yield self.taken - 1
        finally:
            self.closed = True


async def items(count: int) -> AsyncIterator[int]:
    for item in range(count):
        if item % 7 == 0:
            await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("chunksize", [None, 1, 7])
@pytest.mark.parametrize("buffersize", [None, 1, 10])
def test_results_in_order(chunksize: int | None, buffersize: int | None) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            for count in (0, 1, 500):
                expected = [x * x for x in range(count)]
                inputs = (range(count), iter(list(range(count))), items(count))
                for each in inputs:
                    stream = pool.imap(tasks.square, each, chunksize, buffersize=buffersize)
                    assert [result async for result in stream] == expected

    run_debugged(main())


def test_results_as_they_are_ready(run: Run, gate: Gate) -> None:
    async def main() -> None:
        from functools import partial

        async with AsyncPool(2) as pool:
            stream = pool.imap_unordered(partial(tasks.hold_zero, gate.path), items(50), 1)
            first = [await anext(stream) for _ in range(49)]
            assert sorted(first) == list(range(1, 50))
            gate.let()
            assert [result async for result in stream] == [0]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run(main())


@pytest.mark.parametrize("pause", [True, False])
def test_an_endless_input_is_read_only_as_far_as_there_is_room(pause: bool) -> None:
    async def main() -> None:
        source = Source(pause)
        async with AsyncPool(2) as pool:
            stream = pool.imap(tasks.square, source, buffersize=10)
            for read in range(100):
                assert await anext(stream) == read * read
                assert source.taken <= read + 1 + 10
            await asyncio.sleep(0.05)
            assert 100 < source.taken <= 110  # it runs ahead, but no further
            await stream.aclose()
            await soon(lambda: source.closed)
            assert source.taken <= 111

    run_debugged(main())


def test_a_plain_endless_input_lets_other_coroutines_run() -> None:
    def endless() -> Iterator[int]:
        item = 0
        while True:
            yield item
            item += 1

    async def main() -> None:
        async with AsyncPool(2) as pool:
            stream = pool.imap_unordered(tasks.square, endless())
            total = 0
            async for _result in stream:
                total += 1
                if total == 20_000:
                    break
            assert await pool.run(tasks.square, 3) == 9

    run_debugged(main())


def test_the_bound_without_a_buffersize_follows_the_batches() -> None:
    async def main() -> None:
        source = Source()
        async with AsyncPool(2) as pool:
            stream = pool.imap(tasks.busy_for, source_of_seconds(source))
            await anext(stream)
            await asyncio.sleep(0.1)
            assert source.taken < 1000
            await stream.aclose()

    async def source_of_seconds(source: Source) -> AsyncIterator[float]:
        async for _ in source:
            yield 0.001

    run_debugged(main())


def test_a_reader_of_many_results_lets_other_coroutines_run(run: Run) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def main() -> None:
        async with AsyncPool(1) as pool:
            results = pool.imap(tasks.square, range(1000), buffersize=1000)
            await soon(lambda: pool.status().done == 1000)  # all results are there
            ticking = asyncio.create_task(tick())
            async for _result in results:
                time.sleep(0.0001)
            ticking.cancel()
            assert ticks >= 20

    run(main())


def test_exceptions_come_in_the_place_of_results(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            stream = pool.imap(tasks.refuse_odd, range(4))
            assert await anext(stream) == 0
            with pytest.raises(tasks.Odd, match="1 is odd"):
                await anext(stream)
            assert await anext(stream) == 2
            with pytest.raises(tasks.Odd, match="3 is odd"):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            kept = [one async for one in pool.imap(tasks.refuse_odd, items(2), return_exceptions=True)]
            assert [type(one) for one in kept] == [int, tasks.Odd]
            errors = [StopIteration(), StopAsyncIteration(), asyncio.CancelledError()]
            stream_of_odd_ones = pool.imap(tasks.raise_any, errors)
            for error in errors:
                with pytest.raises(RuntimeError, match=f"a task raised {type(error).__name__}"):
                    await anext(stream_of_odd_ones)

    run(main())


def test_an_exception_of_the_input_comes_after_the_results(run: Run) -> None:
    async def failing(error: BaseException) -> AsyncIterator[int]:
        yield 1
        yield 2
        raise error

    def failing_plainly() -> Iterator[int]:
        yield 3
        raise tasks.Odd("of the input")

    async def main() -> None:
        async with AsyncPool(2) as pool:
            stream = pool.imap(tasks.square, failing(tasks.Odd("of the input")))
            assert [await anext(stream), await anext(stream)] == [1, 4]
            with pytest.raises(tasks.Odd, match="of the input"):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            stream = pool.imap_unordered(tasks.square, failing_plainly())
            assert await anext(stream) == 9
            with pytest.raises(tasks.Odd, match="of the input"):
                await anext(stream)
            with pytest.raises(RuntimeError, match="CancelledError"):
                assert [one async for one in pool.imap(tasks.square, failing(asyncio.CancelledError()))] == []
            with pytest.raises(TypeError, match="not iterable"):
                pool.imap(tasks.square, 3)  # type: ignore[call-overload]
            with pytest.raises(tasks.Odd):
                await pool.map(tasks.square, failing(tasks.Odd("of the input")))

    run(main())


def test_a_worker_that_dies_fails_one_item(run: Run) -> None:
    async def main() -> None:
        from functools import partial

        async with AsyncPool(2) as pool:
            stream = pool.imap(partial(tasks.die_at, 30, "kill"), items(60), return_exceptions=True)
            results: list[object] = [one async for one in stream]
            assert [x for x, one in enumerate(results) if isinstance(one, WorkerDied)] == [30]
            assert len(results) == 60

    run(main())


def test_a_dropped_stream_ends(gate: Gate) -> None:
    async def main() -> None:
        source = Source()
        async with AsyncPool(2) as pool:
            async for _result in pool.imap(tasks.square, source):
                break
            gc.collect()
            await soon(lambda: source.closed and pool.status().calls == 0)
            unused = pool.imap(tasks.square, source)
            dropped = weakref.ref(unused)
            del unused
            assert dropped() is None
            await soon(lambda: pool.status().calls == 0)

    run_debugged(main())


@pytest.mark.parametrize("closes", [False, True])
def test_the_input_of_a_stream_that_ends_early_is_closed(run: Run, closes: bool) -> None:
    """A generator is closed at that moment, and not by the next garbage collection."""
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    async def main() -> None:
        async with AsyncPool(1) as pool:
            stream = pool.imap(tasks.square, numbers(), buffersize=3)
            assert await anext(stream) == 0
            if closes:
                await stream.aclose()
            del stream
            await soon(lambda: bool(closed))

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_a_closed_stream_ends(gate: Gate, reports: Reports) -> None:
    from functools import partial

    async def main() -> None:
        function = partial(tasks.tell_and_hold, reports.path, gate.path)
        async with AsyncPool(1) as pool:
            async with aclosing(pool.imap(function, range(10), 1)) as stream:
                pid = (await next_of(reports)).split()[0]
            gate.let()
            assert await pool.run(tasks.process_id) == int(pid)  # the running task was not ended
            with pytest.raises(CancelledError):
                await anext(stream)
            stream = pool.imap(function, range(10), 1)
            await next_of(reports)
            await stream.aclose(kill=True)
            assert await asyncio.to_thread(all_ended, [int(pid)])
            assert await pool.run(tasks.process_id) != int(pid)

    run_debugged(main())


def test_a_reader_that_is_cancelled_ends_the_call(run: Run, gate: Gate, reports: Reports) -> None:
    from functools import partial

    async def main() -> None:
        source = Source()
        function = partial(tasks.tell_and_hold, reports.path, gate.path)
        async with AsyncPool(1) as pool:

            async def read() -> None:
                async for _result in pool.imap(function, source, 1):
                    pass

            reading = asyncio.create_task(read())
            pid = int((await next_of(reports)).split()[0])
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await asyncio.to_thread(all_ended, [pid])
            await soon(lambda: source.closed)
            assert await pool.run(tasks.square, 2) == 4

    run(main())


def test_several_streams_side_by_side(run: Run) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:

            async def total(count: int) -> int:
                return sum([one async for one in pool.imap_unordered(tasks.square, items(count), buffersize=5)])

            assert await asyncio.gather(*(total(count) for count in (100, 200, 300))) == [
                sum(x * x for x in range(count)) for count in (100, 200, 300)
            ]

    run(main())


def test_two_readers_of_one_stream() -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            stream = pool.imap_unordered(tasks.square, items(500), buffersize=4)

            async def read() -> list[int]:
                return [one async for one in stream]

            async with asyncio.timeout(PATIENCE):
                both = await asyncio.gather(read(), read())
            assert sorted(both[0] + both[1]) == [x * x for x in range(500)]

    run_debugged(main())


def test_joining_runs_a_stream_to_its_end() -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            stream = pool.imap(tasks.square, items(300), buffersize=2)
            pool.close()
            await pool.join()
            assert [one async for one in stream] == [x * x for x in range(300)]

    run_debugged(main())


def test_a_pool_that_ends_ends_its_streams() -> None:
    async def main() -> None:
        source = Source()
        async with AsyncPool(2) as pool:
            stream = pool.imap(tasks.square, source)
            await anext(stream)
        assert source.closed
        with pytest.raises(CancelledError, match="the pool was terminated"):
            assert [one async for one in stream] == []

    run_debugged(main())
