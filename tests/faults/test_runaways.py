"""Processes that fork all the time end with their worker, with their pool, and with their master."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairpool import TaskTimeout, WorkerDied
from tests.support import bombs
from tests.support.bombs import Watch
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.scripts import running, write_script
from tests.support.waiting import PATIENCE

FORKS = 60
"""Processes that a bomb makes before the test ends it."""

END_WITHIN_S = 3.0
"""Seconds that the end of a pool takes at most. Without a bomb it takes some milliseconds."""


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with Watch(tmp_path / "bomb") as opened:
        yield opened


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize("kind", bombs.KINDS)
@pytest.mark.parametrize("end", ["terminate", "close"])
def test_a_bomb_ends_with_its_pool(make_pool: MakePool, watch: Watch, kind: str, end: str) -> None:
    pool = make_pool(2)
    pool.apply(bombs.leave, (watch.path, kind))
    watch.await_forks(FORKS)
    began = time.monotonic()
    getattr(pool, end)()
    pool.join()
    assert watch.has_ended()
    assert time.monotonic() - began < END_WITHIN_S


@pytest.mark.parametrize("kind", bombs.KINDS)
def test_a_bomb_ends_with_its_worker(
    make_pool: MakePool, start_method: str, watch: Watch, kind: str, reports: Reports, gate: Gate
) -> None:
    if start_method == "direct" and kind == "session":
        pytest.skip("nothing leads from the master to the processes of another session whose worker was killed")
    pool = make_pool(1)
    held = pool.apply_async(bombs.leave_and_hold, (watch.path, kind, reports.path, gate.path))
    pid = int(reports.next())
    watch.await_forks(FORKS)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        held.get(PATIENCE)
    assert watch.has_ended(END_WITHIN_S)
    assert pool.apply(abs, (-3,)) == 3


@pytest.mark.parametrize("kind", bombs.KINDS)
def test_a_bomb_ends_with_a_task_that_is_too_slow(
    make_pool: MakePool, start_method: str, watch: Watch, kind: str, reports: Reports, gate: Gate
) -> None:
    if start_method == "direct" and kind == "session":
        pytest.skip("a process whose parent has ended in another session is not found")
    pool = make_pool(1, task_timeout=0.5)
    with pytest.raises(TaskTimeout):
        pool.apply(bombs.leave_and_hold, (watch.path, kind, reports.path, gate.path))
    assert watch.has_ended(END_WITHIN_S)
    assert pool.apply(abs, (-3,)) == 3


@pytest.mark.parametrize("kind", bombs.KINDS)
def test_a_bomb_ends_with_its_killed_master(tmp_path: Path, watch: Watch, kind: str, start_method: str) -> None:
    if start_method == "direct":
        pytest.skip("no process is left that could end it")
    program = f"""
        from pairpool import Pool
        from tests.support import bombs

        if __name__ == "__main__":
            pool = Pool(1, start_method={start_method!r})
            pool.apply(bombs.leave, ({watch.path!r}, {kind!r}))
            print("left", flush=True)
            input()
    """
    with running(write_script(tmp_path, program), stdin=-1) as master:
        assert master.stdout is not None
        assert master.stdout.readline() == "left\n"
        watch.await_forks(FORKS)
        master.send_signal(signal.SIGKILL)
        assert watch.has_ended(END_WITHIN_S)
