"""`imap` and `imap_unordered` as iterators: what is yielded when, what is taken from the input, and how they end."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from pairpool import IMapIterator, Pool
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.tasks import Odd
from tests.support.waiting import PATIENCE

METHODS = ["imap", "imap_unordered"]


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


class Counting:
    """An input that counts how many items were taken from it."""

    def __init__(self, length: int) -> None:
        self.taken = 0
        self.length = length

    def __iter__(self) -> Iterator[int]:
        for item in range(self.length):
            self.taken += 1
            yield item


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("buffersize", [1, 2, 3, 7, 64])
def test_no_more_is_taken_than_yielded_and_buffersize(pool: Pool, method: str, buffersize: int) -> None:
    source = Counting(600)
    stream = getattr(pool, method)(tasks.refuse_odd, source, buffersize=buffersize)
    assert source.taken <= buffersize
    seen = []
    for done in itertools.count():
        assert source.taken <= done + buffersize
        try:
            seen.append(next(stream))
        except Odd as error:
            seen.append(error.args[1])
        except StopIteration:
            break
        assert source.taken <= done + 1 + buffersize
    assert sorted(seen) == list(range(600))


def test_several_readers_take_no_more_than_yielded_and_buffersize(pool: Pool) -> None:
    source, buffersize, yielded = Counting(3000), 5, itertools.count(1)
    stream = pool.imap(tasks.identity, source, buffersize=buffersize)
    most = 0

    def read() -> None:
        nonlocal most
        for _ in stream:
            ahead = source.taken
            most = max(most, ahead - next(yielded))

    in_threads(read, 3)
    assert source.taken == 3000
    assert most <= buffersize + 3  # each thread may hold one that it has not counted


@pytest.mark.parametrize("method", METHODS)
def test_the_iteration_goes_on_after_an_exception(pool: Pool, method: str) -> None:
    stream = getattr(pool, method)(tasks.refuse_odd, range(2000))
    values, odd = [], []
    while True:
        try:
            values.append(next(stream))
        except Odd as error:
            odd.append(error.args[1])
        except StopIteration:
            break
    assert sorted(values) == list(range(0, 2000, 2))
    assert sorted(odd) == list(range(1, 2000, 2))
    if method == "imap":
        assert (values, odd) == (sorted(values), sorted(odd))


def test_exceptions_as_results(pool: Pool) -> None:
    results: list[Any] = list(pool.imap(tasks.refuse_odd, range(1000), return_exceptions=True))
    assert len(results) == 1000
    assert all(isinstance(one, Odd) and one.args[1] == x if x % 2 else one == x for x, one in enumerate(results))


@pytest.mark.parametrize("method", METHODS)
def test_an_iterator_stays_at_its_end(pool: Pool, method: str) -> None:
    stream = getattr(pool, method)(tasks.square, range(100))
    assert iter(stream) is stream
    assert sorted(stream) == [x * x for x in range(100)]
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(StopIteration):
        stream.next(0.001)


def test_an_empty_input(pool: Pool) -> None:
    assert list(pool.imap(tasks.square, [])) == list(pool.imap(tasks.square, range(0))) == []


def test_functions_that_read_iterators(pool: Pool) -> None:
    stream = pool.imap(tasks.square, itertools.count())
    assert list(itertools.islice(stream, 5)) == [0, 1, 4, 9, 16]
    assert list(zip(stream, "ab", strict=False)) == [(25, "a"), (36, "b")]  # zip loses the third item, as always
    assert next(stream) == 64
    assert 100 in stream
    first, *_ = itertools.islice(stream, 3)
    assert first == 121
    assert next(stream) == 196
    for x, value in zip(range(15, 2000), stream, strict=False):
        assert value == x * x


@pytest.mark.parametrize("method", METHODS)
def test_a_wait_that_is_too_long(make_pool: MakePool, gate: Gate, method: str) -> None:
    pool = make_pool(1)
    stream = getattr(pool, method)(functools.partial(tasks.held, gate.path), range(4))
    for timeout in [0, 0.001, 0.05]:
        with pytest.raises(multiprocessing.TimeoutError):
            stream.next(timeout)
    gate.let()
    assert stream.next(PATIENCE) == 0
    with pytest.raises(multiprocessing.TimeoutError):
        stream.next(0.001)
    gate.let(3)
    assert len(list(stream)) == 3
    with pytest.raises(StopIteration):
        stream.next(0)


def test_a_ready_result_needs_no_time(pool: Pool) -> None:
    stream = pool.imap(tasks.identity, range(2000))
    assert next(stream) == 0
    for _ in pool.imap(tasks.identity, range(2000)):
        pass  # meanwhile the results of the first stream came, too
    assert stream.next(0.5) == 1


# --- several readers ------------------------------------------------------------------------------------


def in_threads(action: Callable[[], None], count: int) -> None:
    """Run it in `count` threads, which switch as often as possible. Raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=guarded) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 4])
def test_threads_share_a_stream(pool: Pool, method: str, count: int) -> None:
    for _ in range(3):
        stream = getattr(pool, method)(tasks.identity, range(4000))
        results: list[int] = []

        def read(stream: Any = stream, results: list[int] = results) -> None:
            results.extend(iter(stream))

        in_threads(read, count)
        assert sorted(results) == list(range(4000))


@pytest.mark.parametrize("method", METHODS)
def test_threads_share_a_stream_with_exceptions(pool: Pool, method: str) -> None:
    for _ in range(5):
        stream = getattr(pool, method)(tasks.refuse_odd, range(1500))
        results: list[int] = []

        def read(stream: Any = stream, results: list[int] = results) -> None:
            while True:
                try:
                    results.append(next(stream))
                except Odd as error:
                    results.append(error.args[1])
                except StopIteration:
                    return

        in_threads(read, 4)
        assert sorted(results) == list(range(1500))


def test_each_reader_has_its_own_timeout(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(1)
    stream = pool.imap(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(2))
    reports.next()
    results: list[Any] = []

    def wait_long() -> None:
        try:
            results.append(next(stream))
        except multiprocessing.TimeoutError as error:
            results.append(error)

    patient = threading.Thread(target=wait_long)
    began = threading.Event()

    def wait_briefly() -> None:
        began.set()
        with pytest.raises(multiprocessing.TimeoutError):
            stream.next(0.3)

    brief = threading.Thread(target=wait_briefly)
    brief.start()
    began.wait()
    patient.start()
    brief.join()
    gate.let(2)
    patient.join()
    assert results == [0]
    assert next(stream) == 1


# --- early ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 500])
def test_dropping_a_half_read_stream(pool: Pool, read: int) -> None:
    source = Counting(10**9)
    stream = pool.imap(tasks.identity, source, buffersize=1000)
    assert list(itertools.islice(stream, read)) == list(range(read))
    if not read:
        stream.cancel()
    del stream
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]
    assert source.taken <= read + 1000


@pytest.mark.parametrize("method", METHODS)
def test_cancelled(pool: Pool, method: str) -> None:
    stream: IMapIterator[int] = getattr(pool, method)(tasks.identity, itertools.count())
    first = list(itertools.islice(stream, 10))
    assert len(first) == 10
    assert stream.cancel()
    with pytest.raises(CancelledError):
        list(stream)
    assert list(stream) == []
    assert not stream.cancel()
    assert pool.apply(tasks.square, (5,)) == 25


def test_an_interrupt_during_a_wait(pool: Pool, reports: Reports, gate: Gate) -> None:
    stream = pool.imap(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(10))
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        reports.take(2)
        while not pool._engine.loop._polling:
            pass  # the main thread does not wait yet
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    thread.join()
    with pytest.raises(CancelledError):
        next(stream)
    assert list(stream) == []
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]


def refuse(x: int) -> int:
    if x == 2:
        raise StopIteration(x)
    return x


def test_a_task_that_raises_stop_iteration_does_not_vanish(pool: Pool) -> None:
    """Later results must not take its place."""
    stream = pool.imap(refuse, range(5))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises((StopIteration, RuntimeError)):
        next(stream)
