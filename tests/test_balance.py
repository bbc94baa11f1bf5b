"""Work moves to where there is room: out of sockets, and out of a batch that is being run. By barriers, not by clocks.

Two tasks that wait for each other can only both be over if two workers run them at the same time. Here they stand
next to each other behind many short ones, so that they travel in the same batch, or queue behind one another, unless
they are taken apart.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator

import pytest

from pairpool import Pool
from tests import tasks
from tests.support import PATIENCE, Gate
from tests.tasks import Odd

MakePool = Callable[..., Pool]

meeting = multiprocessing.get_context("fork").Barrier(2)
"""Workers inherit it. Made once, for multiprocessing keeps the memory that it is in."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def meet_if_negative(x: int) -> int:
    if x < 0:
        meeting.wait()
    return x


SHORT_THEN_MEETING = [*range(20_000), -1, -2]


def test_a_long_item_does_not_hold_those_behind_it_in_its_batch(pool: Pool) -> None:
    assert pool.map(meet_if_negative, SHORT_THEN_MEETING) == SHORT_THEN_MEETING


def test_neither_do_several(pool: Pool) -> None:
    items = [*SHORT_THEN_MEETING, *range(500), -3, -4, *range(500), -5, -6]
    assert pool.map(meet_if_negative, items) == items


@pytest.mark.parametrize("chunksize", [1, 3])
def test_chunks_that_were_not_read_are_taken_back(pool: Pool, chunksize: int) -> None:
    items = [*range(3 * chunksize * 50), *[-1] * chunksize, *range(chunksize), *[-2] * chunksize]
    assert pool.map(meet_if_negative, items, chunksize=chunksize) == items


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_streams(pool: Pool, method: str) -> None:
    results = getattr(pool, method)(meet_if_negative, iter(SHORT_THEN_MEETING))
    assert sorted(results) == sorted(SHORT_THEN_MEETING)


def test_submitted_calls(pool: Pool) -> None:
    results = [pool.apply_async(meet_if_negative, (x,)) for x in [*range(2_000), -1, -2]]
    assert [result.get() for result in results] == [*range(2_000), -1, -2]


def test_an_item_that_others_wait_for_is_not_kept_back(pool: Pool) -> None:
    """Results of a batch are reported when it turns out to be long, not when its last item ends."""
    stream = pool.imap(meet_if_negative, iter([*range(20_000), -1, -2, *range(100)]))
    for expected in [*range(20_000), -1, -2, *range(100)]:
        assert next(stream) == expected


def write_byte(fd: int) -> int:
    os.write(fd, b".")
    return fd


def test_workers_go_on_while_the_reader_of_a_stream_is_busy() -> None:
    """Without a thread in the caller: what a stream may be ahead waits in the workers' sockets."""
    reader, writer = os.pipe()
    try:
        with Pool(2) as pool:
            stream = pool.imap(write_byte, [writer] * 40)
            arrived = 0
            while arrived < 8:  # two are running at first; nothing is read from the stream
                arrived += len(os.read(reader, 100))
            assert list(stream) == [writer] * 40
    finally:
        os.close(reader)
        os.close(writer)


def call_by_call(pool: Pool, function: Callable[[int], int], items: list[int]) -> list[int]:
    return [pool.apply(function, (item,)) for item in items]


def test_calls_one_by_one_use_any_worker(pool: Pool) -> None:
    assert call_by_call(pool, meet_if_negative, list(range(50))) == list(range(50))


def test_results_before_a_long_call_can_be_had_while_it_runs(
    start_method: str, make_pool: MakePool, gate: Gate
) -> None:
    """Calls that were submitted together may share a batch; a program may need the first to let the last go on."""
    pool = make_pool(1)
    count = 4000
    results = [
        pool.apply_async(tasks.held, (gate.path, x)) if x == count // 2 else pool.apply_async(tasks.refuse_odd, (x,))
        for x in range(count)
    ]
    for x, result in enumerate(results[: count // 2]):
        if x % 2:
            with pytest.raises(Odd, match=f"{x} is odd"):
                result.get(PATIENCE)
        else:
            assert result.get(PATIENCE) == x
    assert not results[count // 2].ready()
    gate.let()
    assert results[count // 2].get(PATIENCE) == count // 2
    assert results[-2].get(PATIENCE) == count - 2


def test_a_stream_shows_what_is_done_before_a_long_item(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    hold = functools.partial(tasks.hold_zero, gate.path)
    numbers = [*range(1, 2000), 0, 5]
    results = pool.imap(hold, numbers)
    assert [results.next(PATIENCE) for _ in range(1999)] == numbers[:1999]
    gate.let()
    assert list(results) == [0, 5]
