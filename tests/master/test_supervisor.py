"""A pool of many workers: it is there when the first of them are, and the others come while those work."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from pairpool import InitializerFailed, Pool
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.processes import all_ended
from tests.support.waiting import PATIENCE

MANY = 40


def use_until_it_fails(pool: Pool) -> None:
    while True:
        pool.map(tasks.square, range(100))


def children() -> set[int]:
    return set(tasks.children())


def test_all_workers_come_and_are_used(start_method: str, make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(MANY)
    result = pool.map_async(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(MANY), chunksize=1)
    pids = {int(line.split()[0]) for line in reports.take(MANY)}
    assert len(pids) == MANY
    assert {process.pid for process in pool._pool} == pids
    gate.let(MANY)
    assert result.get(PATIENCE) == list(range(MANY))


def test_the_first_born_gets_the_first_call_and_the_last_to_have_worked_the_next(
    start_method: str, make_pool: MakePool
) -> None:
    pool = make_pool(3, start_method=start_method)
    first = pool.status().workers[0].pid
    assert [pool.apply(os.getpid) for _ in range(3)] == [first] * 3
    os.kill(first, signal.SIGKILL)
    second = pool.apply(os.getpid)
    assert second == pool.status().workers[1].pid
    assert pool.apply(os.getpid) == second


def test_whoever_lists_the_workers_waits_for_all(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(MANY)
    assert len({process.pid for process in pool._pool}) == MANY


@pytest.mark.parametrize("end", ["close", "terminate", "del", "with"])
def test_an_end_before_all_have_come(start_method: str, end: str) -> None:
    before = children()
    pool = Pool(MANY, start_method=start_method)
    zygote_or_workers = children() - before
    if end == "with":
        with pool:
            pass
    elif end == "del":
        with pytest.warns(ResourceWarning, match="unclosed"):
            del pool
    else:
        getattr(pool, end)()
        pool.join()
    assert all_ended(zygote_or_workers)


def test_calls_that_were_begun_are_run_to_their_ends_when_it_closes(start_method: str) -> None:
    pool = Pool(MANY, start_method=start_method)
    result = pool.map_async(tasks.square, range(1000))
    pool.close()
    pool.join()
    assert result.get() == [x * x for x in range(1000)]


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_hundreds(end: str) -> None:
    pool = Pool(400)
    getattr(pool, end)()
    pool.join()


def test_an_initializer_that_fails_in_a_late_worker(start_method: str, make_pool: MakePool, tmp_path: Path) -> None:
    starts = str(tmp_path / "starts")
    pool = make_pool(MANY, initializer=tasks.fail_at, initargs=(starts, [MANY - 1]))
    with pytest.raises(InitializerFailed, match=f"start {MANY - 1}"):
        use_until_it_fails(pool)


@pytest.mark.parametrize("size", [1, 3, MANY + 5])
def test_another_size_before_all_have_come(start_method: str, make_pool: MakePool, size: int) -> None:
    pool = make_pool(MANY)
    pool.resize(size)
    assert len(pool._pool) == size
    assert pool.map(tasks.square, range(500)) == [x * x for x in range(500)]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"], indirect=True)
def test_the_zygote_is_killed_before_all_have_come(start_method: str, make_pool: MakePool) -> None:
    before = children()
    pool = make_pool(MANY)
    (zygote,) = children() - before
    os.kill(zygote, signal.SIGKILL)
    assert len(pool._pool) == MANY
    assert pool.map(tasks.square, range(500)) == [x * x for x in range(500)]


def test_workers_that_are_killed_before_all_have_come(make_pool: MakePool) -> None:
    pool = make_pool(MANY)
    for member in list(pool._master.crew.members.values()):
        os.kill(member.pid, signal.SIGKILL)
    assert pool.map(tasks.square, range(500)) == [x * x for x in range(500)]
    assert len(pool._pool) == MANY
