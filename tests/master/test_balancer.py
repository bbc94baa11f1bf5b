"""Work moves to where there is room: out of sockets, and out of a batch that is being run. By barriers, not by clocks.

Two tasks that wait for each other can only both be over if two workers run them at the same time. Here they stand
next to each other behind many short ones, so that they travel in the same batch, or queue behind one another, unless
they are taken apart.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

import pytest

from pairpool import Pool, WorkerDied
from pairpool.transport.protocol import REPORT_SIGNAL
from pairpool.worker.reports import Report, ReportSender
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.tasks import Odd
from tests.support.waiting import PATIENCE

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


# --- large batches of short items, one of which is long after all -------------------------------------

TINY = 12_000
LONG = 7_000
"""The item that is long; the one behind it lets it go on."""

runs = mmap.mmap(-1, TINY + 16)
"""How often each item has been run; workers inherit it."""

Way = Callable[[Pool, Callable[[int], int]], list[int]]


def count_run(x: int) -> int:
    runs[x] += 1
    return x


def hold_at_gate(gate: str, x: int) -> int:
    count_run(x)
    if x == LONG:
        tasks.wait_for(gate)
    elif x == LONG + 1:
        open_gate(gate)
    return x


def raise_at_gate(gate: str, x: int) -> int:
    if hold_at_gate(gate, x) == LONG or x % 1000 == 1:
        raise Odd(x)
    return x


def nap_until_next(x: int) -> int:
    count_run(x)
    while x == LONG and not runs[LONG + 1]:
        time.sleep(0.02)
    return x


def stay_in_native_code(x: int) -> int:
    count_run(x)
    if x == LONG:
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 100_000)
    return x


def open_gate(gate: str) -> None:
    fd = os.open(gate, os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b".")
    os.close(fd)


@pytest.fixture
def counted() -> None:
    """Nothing has been run yet."""
    runs[:] = bytes(len(runs))


def unpack(function: Callable[[int], int], x: int, _y: int) -> int:
    return function(x)


def by_starmap(pool: Pool, function: Callable[[int], int]) -> list[int]:
    return pool.starmap(functools.partial(unpack, function), [(x, -x) for x in range(TINY)])


WAYS: dict[str, Way] = {
    "list": lambda pool, function: pool.map(function, list(range(TINY))),
    "tuple": lambda pool, function: pool.map(function, tuple(range(TINY))),
    "range": lambda pool, function: pool.map(function, range(TINY)),
    "iterator": lambda pool, function: pool.map(function, iter(range(TINY))),
    "starmap": by_starmap,
    "imap": lambda pool, function: list(pool.imap(function, range(TINY))),
    "imap_unordered": lambda pool, function: sorted(pool.imap_unordered(function, iter(range(TINY)))),
    "map_async": lambda pool, function: pool.map_async(function, range(TINY)).get(),
    "apply_async": lambda pool, function: [
        result.get() for result in [pool.apply_async(function, (x,)) for x in range(TINY)]
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_items_behind_a_long_one_are_run_by_others_and_once(
    make_pool: MakePool, counted: None, gate: Gate, way: str
) -> None:
    assert WAYS[way](make_pool(), functools.partial(hold_at_gate, gate.path)) == list(range(TINY))
    assert runs[:TINY] == b"\1" * TINY


class PickledAtGate:
    """A result whose pickle waits until the next item has been run; it arrives as a number."""

    def __init__(self, gate: str) -> None:
        self.gate = gate

    def __reduce__(self) -> Any:
        tasks.wait_for(self.gate)
        return int, (LONG,)


def give_late(gate: str, x: int) -> Any:
    count_run(x)
    if x == LONG + 1:
        open_gate(gate)
    return PickledAtGate(gate) if x == LONG else x


@pytest.mark.parametrize("way", WAYS)
def test_items_behind_one_whose_result_takes_long_to_pickle_are_run_by_others(
    make_pool: MakePool, counted: None, gate: Gate, way: str
) -> None:
    assert WAYS[way](make_pool(), functools.partial(give_late, gate.path)) == list(range(TINY))
    assert runs[:TINY] == b"\1" * TINY


@pytest.mark.parametrize("function", [nap_until_next, stay_in_native_code])
@pytest.mark.parametrize("way", ["list", "range", "imap"])
def test_items_behind_one_that_sleeps_or_cannot_be_interrupted(
    make_pool: MakePool, counted: None, way: str, function: Callable[[int], int]
) -> None:
    assert WAYS[way](make_pool(), function) == list(range(TINY))
    assert runs[:TINY] == b"\1" * TINY


@pytest.mark.parametrize("kind", [range, list, tuple])
def test_a_long_item_that_raises_fails_alone(make_pool: MakePool, counted: None, gate: Gate, kind: Any) -> None:
    items = range(TINY) if kind is range else kind(range(TINY))
    results: list[Any] = make_pool().map(functools.partial(raise_at_gate, gate.path), items, return_exceptions=True)
    failed = [x for x in items if x == LONG or x % 1000 == 1]
    assert [x for x, result in enumerate(results) if isinstance(result, Odd)] == failed
    assert all(result.args == (x,) if isinstance(result, Odd) else result == x for x, result in enumerate(results))
    assert runs[:TINY] == b"\1" * TINY


def test_many_long_ones(make_pool: MakePool) -> None:
    """Any two let each other go on, in whatever batches they are."""
    items = [x if x % 500 else -1 for x in range(TINY)]
    assert make_pool().map(meet_if_negative, items) == items


@pytest.mark.parametrize("how", ["exit", "kill", "segfault"])
@pytest.mark.parametrize("victim", [0, LONG, TINY - 1])
def test_a_crash_amidst_short_items_is_blamed_on_one(make_pool: MakePool, how: str, victim: int) -> None:
    function = functools.partial(tasks.die_at, victim, how)
    results: list[Any] = make_pool().map(function, range(TINY), return_exceptions=True)
    assert isinstance(results[victim], WorkerDied)
    assert f"[{victim}]" in str(results[victim]) or str(victim) in str(results[victim])
    results[victim] = victim * 10
    assert results == [x * 10 for x in range(TINY)]


@pytest.mark.parametrize("items", [range(500), [*range(500)], tuple(range(500)), range(2**70, 2**70 + 500)], ids=str)
def test_an_iterator_can_be_moved_to_its_end(items: Sequence[int]) -> None:
    """Check what the signal handler of a worker relies on, in this version of Python."""
    iterator: Any = iter(items)
    assert next(iterator) == items[0]
    assert length_hint(iterator) == 499
    iterator.__setstate__(sys.maxsize)
    assert length_hint(iterator) == 0
    assert list(iterator) == []


# --- items that wait for each other, on more workers than cores -----------------------------------------

crowd = multiprocessing.get_context("fork").Barrier(8)


def join_if_negative(x: int) -> int:
    if x < 0:
        crowd.wait()
    return x


EIGHT = [-1] * 8
CROWDS = {
    "at once": [*EIGHT, *range(100)],
    "after tiny ones": [*range(5000), *EIGHT, *range(100)],
    "twice": [*range(500), *EIGHT, *range(500), *EIGHT],
    "scattered": [x if x % 90 else -1 for x in range(8 * 90)],
}


@pytest.mark.parametrize("items", CROWDS.values(), ids=CROWDS)
@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_all_workers_are_used_for_items_that_wait_for_each_other(
    make_pool: MakePool, method: str, items: list[int]
) -> None:
    ahead = {} if method == "map" else {"buffersize": len(items)}  # they may be far from each other
    results = getattr(make_pool(8), method)(join_if_negative, iter(items), **ahead)
    assert sorted(results) == sorted(items)


def test_calls_that_wait_for_each_other(make_pool: MakePool) -> None:
    pool = make_pool(8)
    for items in CROWDS.values():
        results = [pool.apply_async(join_if_negative, (x,)) for x in items]
        assert [result.get(PATIENCE) for result in results] == items


def test_chunks_that_wait_for_each_other(make_pool: MakePool) -> None:
    items = [*range(300), *[-1, 1, 2] * 8, *range(30)]
    assert make_pool(8).map(join_if_negative, items, chunksize=3) == items


def test_those_who_only_look_get_all_workers(make_pool: MakePool) -> None:
    """Nobody waits for the result; a caller asks again and again whether it is there."""
    pool = make_pool(8)
    result = pool.map_async(join_if_negative, CROWDS["after tiny ones"])
    deadline = time.monotonic() + PATIENCE
    while not result.ready():
        assert time.monotonic() < deadline
    assert result.get() == CROWDS["after tiny ones"]


def test_a_stream_that_nobody_reads_uses_all_workers(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(8)
    assert len(pool._pool) == 8
    stream = pool.imap(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(100))
    assert len({line.split()[0] for line in reports.take(8)}) == 8
    gate.let(100)
    assert list(stream) == list(range(100))


def test_several_calls_at_once_share_the_workers(make_pool: MakePool) -> None:
    """Each needs half of them at the same time."""
    pool = make_pool(16)
    items = [*range(200), *EIGHT, *range(50)]
    results = [pool.map_async(join_if_negative, items) for _ in range(4)]
    assert [result.get(PATIENCE) for result in results] == [items] * 4


# --- nobody computes for nothing --------------------------------------------------------------------------


def cpu_time(pid: int) -> float:
    """Seconds that a process has computed, by its clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def test_a_pool_that_idles_or_waits_does_not_compute(
    start_method: str, make_pool: MakePool, reports: Reports, gate: Gate
) -> None:
    pool = make_pool()
    assert pool.map(tasks.square, range(5000)) == [x * x for x in range(5000)]
    pids = [process.pid for process in pool._pool]
    assert [pool.apply(tasks.square, (x,)) for x in range(100)] == [x * x for x in range(100)]
    before = time.process_time() + sum(map(cpu_time, pids))
    threading.Event().wait(0.4)
    long = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 5))
    reports.next()
    long.wait(0.4)
    assert time.process_time() + sum(map(cpu_time, pids)) - before < 0.06
    gate.let()
    assert long.get(PATIENCE) == 5


# --- reports in the midst of a batch ------------------------------------------------------------------


class Insistent:
    """A result during whose pickling the master asks once more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        signal.raise_signal(REPORT_SIGNAL)
        return Insistent, (self.number,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Insistent) and other.number == self.number


def be_asked(x: int) -> Insistent:
    """Every fourth item lets the report of those before it be asked for, as the master does with SIGURG."""
    if x % 4 == 3:
        signal.raise_signal(REPORT_SIGNAL)
    if x % 8 == 1:
        raise Odd(x)
    return Insistent(x)


@pytest.mark.parametrize("chunksize", [8, 300])
def test_a_worker_that_is_asked_while_it_reports_reports_once(pool: Pool, chunksize: int) -> None:
    found: list[object] = []
    found += pool.map(be_asked, range(600), chunksize=chunksize, return_exceptions=True)
    assert [type(one) for one in found] == [Odd if x % 8 == 1 else Insistent for x in range(600)]
    assert all(one == Insistent(x) for x, one in enumerate(found) if x % 8 != 1)


class Alarm(Exception):
    """Raised by a signal handler of a task."""


def raise_after_reports() -> None:
    """Have an exception strike a worker just after each report in the midst of a batch, as a task's own alarm may."""
    send = ReportSender.send

    def _send(self: ReportSender, reply: Report, *rest: Any) -> None:
        send(self, reply, *rest)
        if reply.is_partial:
            raise Alarm

    ReportSender.send = _send  # type: ignore[assignment,method-assign]


def be_asked_or_alarmed(x: int) -> int:
    if x % 4 == 3:
        signal.raise_signal(REPORT_SIGNAL)
    return x


def test_what_an_alarm_in_a_report_hits_is_the_item_alone(make_pool: MakePool) -> None:
    pool = make_pool(1, initializer=raise_after_reports)
    found: list[object] = []
    found += pool.map(be_asked_or_alarmed, range(64), chunksize=16, return_exceptions=True)
    raised = [isinstance(one, Alarm) for one in found]
    assert raised == [x % 4 == 3 for x in range(64)]
    assert [one for one in found if not isinstance(one, Alarm)] == [x for x in range(64) if x % 4 != 3]
