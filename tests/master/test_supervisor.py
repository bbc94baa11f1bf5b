"""Test pools of many workers. A pool is open when its first workers are ready; the others start while those work."""

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

WORKERS = 40


def use_until_it_fails(pool: Pool) -> None:
    while True:
        pool.map(tasks.square, range(100))


def children() -> set[int]:
    return set(tasks.children())


def test_all_workers_start_and_are_used(start_method: str, make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(WORKERS)
    result = pool.map_async(
        functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(WORKERS), chunksize=1
    )
    pids = {int(line.split()[0]) for line in reports.take(WORKERS)}
    assert len(pids) == WORKERS
    assert {process.pid for process in pool._pool} == pids
    gate.let(WORKERS)
    assert result.get(PATIENCE) == list(range(WORKERS))


def test_the_oldest_worker_gets_the_first_call_and_then_the_last_one_used(
    start_method: str, make_pool: MakePool
) -> None:
    pool = make_pool(3, start_method=start_method)
    first = pool.status().workers[0].pid
    assert [pool.apply(os.getpid) for _ in range(3)] == [first] * 3
    os.kill(first, signal.SIGKILL)
    second = pool.apply(os.getpid)
    assert second == pool.status().workers[1].pid
    assert pool.apply(os.getpid) == second


def test_listing_the_workers_waits_for_all(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(WORKERS)
    assert len({process.pid for process in pool._pool}) == WORKERS


@pytest.mark.parametrize("end", ["close", "terminate", "del", "with"])
def test_an_end_before_all_workers_have_started(start_method: str, end: str) -> None:
    before = children()
    pool = Pool(WORKERS, start_method=start_method)
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


def test_close_runs_calls_to_their_ends_before_all_workers_have_started(start_method: str) -> None:
    pool = Pool(WORKERS, start_method=start_method)
    result = pool.map_async(tasks.square, range(1000))
    pool.close()
    pool.join()
    assert result.get() == [x * x for x in range(1000)]


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_hundreds_of_workers(end: str) -> None:
    pool = Pool(400)
    getattr(pool, end)()
    pool.join()


def test_an_initializer_that_fails_in_a_late_worker(start_method: str, make_pool: MakePool, tmp_path: Path) -> None:
    starts = str(tmp_path / "starts")
    pool = make_pool(WORKERS, initializer=tasks.fail_at, initargs=(starts, [WORKERS - 1]))
    with pytest.raises(InitializerFailed, match=f"start {WORKERS - 1}"):
        use_until_it_fails(pool)


@pytest.mark.parametrize("size", [1, 3, WORKERS + 5])
def test_a_resize_before_all_workers_have_started(start_method: str, make_pool: MakePool, size: int) -> None:
    pool = make_pool(WORKERS)
    pool.resize(size)
    assert len(pool._pool) == size
    assert pool.map(tasks.square, range(500)) == [x * x for x in range(500)]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"], indirect=True)
def test_a_zygote_killed_before_all_workers_have_started(start_method: str, make_pool: MakePool) -> None:
    before = children()
    pool = make_pool(WORKERS)
    (zygote,) = children() - before
    os.kill(zygote, signal.SIGKILL)
    assert len(pool._pool) == WORKERS
    assert pool.map(tasks.square, range(500)) == [x * x for x in range(500)]


def test_workers_killed_before_all_workers_have_started(make_pool: MakePool) -> None:
    pool = make_pool(WORKERS)
    for worker in list(pool._engine.workers.members.values()):
        os.kill(worker.pid, signal.SIGKILL)
    assert pool.map(tasks.square, range(500)) == [x * x for x in range(500)]
    assert len(pool._pool) == WORKERS
