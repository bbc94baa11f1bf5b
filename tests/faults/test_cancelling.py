"""Test cancelled calls: queued items do not run, running items end on request, and other calls are not affected."""

from __future__ import annotations

import collections
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pairpool import CancelledError
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.processes import all_ended
from tests.support.waiting import PATIENCE


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    (tmp_path / "journal").touch()
    return tmp_path / "journal"


def written(journal: Path) -> list[int]:
    """Return the items that have begun."""
    lines = [line.split() for line in journal.read_text().splitlines()]
    return sorted(int(item) for sign, _pid, item in lines if sign == "+")


def test_queued_calls_are_not_run(
    start_method: str, make_pool: MakePool, gate: Gate, reports: Reports, journal: Path
) -> None:
    pool = make_pool(1)
    running = pool.apply_async(tasks.tell_pid_and_wait, ((reports.path, gate.path),))
    reports.next()
    queued = [pool.apply_async(tasks.log_with_pid, (str(journal), item)) for item in range(6)]
    assert [result.cancel() for result in queued[::2]] == [True] * 3
    assert not running.cancel()
    gate.let()
    assert running.get(PATIENCE) is None
    assert [result.get(PATIENCE) for result in queued[1::2]] == [10, 30, 50]
    for result in queued[::2]:
        assert result.ready()
        assert not result.successful()
        with pytest.raises(CancelledError):
            result.get(PATIENCE)
        assert not result.cancel()
    assert written(journal) == [1, 3, 5]


def test_a_running_call_is_killed_only_on_request(
    start_method: str, make_pool: MakePool, gate: Gate, reports: Reports
) -> None:
    pool = make_pool(2)
    results = [pool.apply_async(tasks.tell_pid_and_wait, ((reports.path, gate.path),)) for _ in range(2)]
    pids = {int(line) for line in reports.take(2)}
    assert not results[0].cancel()
    assert results[0].cancel(kill=True)
    with pytest.raises(CancelledError):
        results[0].get(PATIENCE)
    gate.let(2)
    assert results[1].get(PATIENCE) is None  # it runs in the other worker
    assert len(pids) == 2
    assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]


def test_processes_that_a_killed_call_had_started_end_with_it(
    start_method: str, make_pool: MakePool, gate: Gate, reports: Reports
) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.start_sleeper_and_hold, (reports.path, gate.path, 0))
    pids = [int(word) for word in reports.next().split()]
    assert result.cancel(kill=True)
    assert pool.apply(tasks.square, (2,)) == 4
    assert all_ended(pids)


@pytest.mark.parametrize("chunksize", [1, 4, None])
def test_cancelling_a_map(
    start_method: str, make_pool: MakePool, gate: Gate, reports: Reports, chunksize: int | None
) -> None:
    pool = make_pool(2)
    hold = functools.partial(tasks.tell_and_hold, reports.path, gate.path)
    errors: list[BaseException] = []
    result = pool.map_async(hold, range(20), chunksize, error_callback=errors.append)
    begun = {int(line.split()[-1]) for line in reports.take(2)}
    assert result.cancel()
    with pytest.raises(CancelledError):
        result.get(PATIENCE)
    assert [type(error) for error in errors] == [CancelledError]
    gate.let(40)  # the two running items may end; no item behind them begins
    assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]
    if chunksize == 1:
        assert len(begun) == 2
        with pytest.raises(TimeoutError):
            reports.next(0.1)


def test_killing_a_map(start_method: str, make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(2)
    hold = functools.partial(tasks.tell_and_hold, reports.path, gate.path)
    result = pool.map_async(hold, range(20), 5)
    pids = [int(line.split()[0]) for line in reports.take(2)]
    assert result.cancel(kill=True)
    with pytest.raises(CancelledError):
        result.get(PATIENCE)
    assert all_ended(pids)
    assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]


def test_killing_one_of_several_calls_in_a_batch(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    pool.map(tasks.square, range(2000))
    results = [pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, item)) for item in range(8)]
    while True:
        item = int(reports.next().split()[-1])
        if item in (2, 5):
            assert results[item].cancel(kill=True)
        else:
            gate.let()
        if item == 7:
            break
    for item, result in enumerate(results):
        if item in (2, 5):
            with pytest.raises(CancelledError):
                result.get(PATIENCE)
        else:
            assert result.get(PATIENCE) == item


def test_finished_calls_of_a_killed_batch_do_not_run_again(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1, chunksize=4)
    pid = pool.apply(os.getpid)
    os.kill(pid, signal.SIGSTOP)  # so that the calls become one batch
    ended = [pool.apply_async(tasks.tell, (reports.path, item)) for item in range(3)]
    running = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 3))
    os.kill(pid, signal.SIGCONT)
    assert reports.take(4) == ["0", "1", "2", f"{pid} 3"]
    assert running.cancel(kill=True)
    for result in ended:
        result.get(PATIENCE)
    assert pool.apply(os.getpid) != pid
    with pytest.raises(TimeoutError):
        reports.next(timeout=0)


def test_killing_a_call_of_a_stopped_worker(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.tell_pid_and_wait, ((reports.path, gate.path),))
    os.kill(int(reports.next()), signal.SIGSTOP)
    assert result.cancel(kill=True)
    assert pool.apply(tasks.square, (2,)) == 4


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_cancelling_the_rest_of_a_stream(
    start_method: str, make_pool: MakePool, journal: Path, kill: bool, ordered: bool
) -> None:
    pool = make_pool(2)
    log = functools.partial(tasks.log_with_pid, str(journal))
    stream: Any = (pool.imap if ordered else pool.imap_unordered)(log, iter(range(10**9)), 1)
    first = [next(stream) for _ in range(5)]
    assert len(set(first)) == 5
    assert stream.cancel(kill=kill)
    with pytest.raises(CancelledError):
        collections.deque(stream, 0)
    assert not stream.cancel()
    assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]
    assert len(written(journal)) < 1000


def test_a_dropped_stream_stops_soon(
    start_method: str, make_pool: MakePool, journal: Path, gate: Gate, reports: Reports
) -> None:
    pool = make_pool(2)
    log = functools.partial(tasks.log_with_pid, str(journal))
    for item in pool.imap(log, iter(range(10**9)), 1):
        if item == 40:
            break
    del item
    assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]
    both = pool.map_async(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(2), 1)
    reports.take(2)  # each worker has finished what it had read
    gate.let(2)
    both.get(PATIENCE)
    count = len(written(journal))
    assert 5 <= count < 1000
    assert pool.map(tasks.square, range(200)) == [x * x for x in range(200)]
    assert len(written(journal)) == count
