"""Test corner cases that the tests of other pools check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pairpool import Pool, WorkerDied
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.processes import all_ended
from tests.support.scripts import python, running, write_script
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize("how", ["exit", "segfault", "raise"])
def test_an_argument_whose_finalizer_fails(start_method: str, make_pool: MakePool, how: str) -> None:
    """`__del__` of an argument fails after the result was made or sent. Only this item may fail."""
    pool = make_pool(2)
    found: list[Any] = pool.map(
        tasks.take_and_drop, [tasks.BreaksAtItsEnd(how, x) for x in range(6)], 1, return_exceptions=True
    )
    for index, value in enumerate(found):
        assert value == index or (isinstance(value, WorkerDied) and value.index == index and how != "raise")
    assert pool.map(tasks.square, range(20)) == [x * x for x in range(20)]


def test_a_task_that_changes_its_process(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(1)
    here = os.getcwd()
    assert pool.apply(tasks.turn_all_around) == "done"
    assert pool.map(tasks.square, range(20)) == [x * x for x in range(20)]
    with pytest.raises(WorkerDied):
        pool.apply(tasks.exit_now)
    assert pool.map(tasks.square, range(20)) == [x * x for x in range(20)]
    assert os.getcwd() == here


def test_a_task_that_closes_all_descriptors(start_method: str, make_pool: MakePool) -> None:
    """The task closes the worker's channel, too, so that the result cannot be sent. Only this item fails."""
    pool = make_pool(2)
    found: list[Any] = pool.starmap(tasks.close_all_if, [(x == 3, x) for x in range(8)], 1, return_exceptions=True)
    assert isinstance(found[3], WorkerDied)
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5, 6, 7]


def test_large_payloads_in_both_directions_at_once(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    block = bytes(range(256)) * (40 * 4096)
    found = pool.imap_unordered(tasks.swap, (block for _ in range(12)), 1)
    assert sum(one == block[::-1] for one in found) == 12


THREE_DEEP = """
import sys
from pairpool import Pool, WorkerDied
from tests.support import tasks

def deeper(method, depth):
    if depth == 0:
        try:
            with Pool(1, start_method=method) as pool:
                pool.apply(tasks.exit_now)
        except WorkerDied as error:
            return error.exitcode
    with Pool(2, start_method=method) as pool:
        return pool.starmap(deeper, [(method, depth - 1)] * 2)

if __name__ == "__main__":
    print(deeper(sys.argv[1], 2))
"""


def test_pools_in_tasks_of_pools_in_tasks(start_method: str, tmp_path: Path) -> None:
    done = python(write_script(tmp_path, THREE_DEEP), start_method)
    assert (done.stdout, done.stderr) == ("[[3, 3], [3, 3]]\n", "")


def test_a_program_without_standard_streams(start_method: str, tmp_path: Path) -> None:
    source = """
    import os, sys
    os.closerange(0, 3)
    from pairpool import Pool
    from tests.support import tasks
    if __name__ == "__main__":
        with Pool(2, start_method=sys.argv[1]) as pool:
            found = pool.map(tasks.square, range(10))
        os._exit(40 + (found == [x * x for x in range(10)]))
    """
    assert python(write_script(tmp_path, source), start_method).returncode == 41


def test_sigterm_ends_the_master_and_its_workers(
    start_method: str, tmp_path: Path, gate: Gate, reports: Reports
) -> None:
    source = """
    import sys
    from pairpool import Pool
    from tests.support import tasks
    if __name__ == "__main__":
        with Pool(2, start_method=sys.argv[1]) as pool:
            pool.map(tasks.tell_pid_and_wait, [tuple(sys.argv[2:])] * 2, 1)
    """
    with running(write_script(tmp_path, source), start_method, reports.path, gate.path) as master:
        pids = [int(line) for line in reports.take(2)]
        master.send_signal(signal.SIGTERM)
        assert master.wait(PATIENCE) == -signal.SIGTERM
        assert all_ended(pids)


def test_a_pool_used_in_a_finalizer(start_method: str, tmp_path: Path) -> None:
    source = """
    import sys
    from pairpool import Pool
    from tests.support import tasks

    class Owner:
        def __init__(self):
            self.pool = Pool(2, start_method=sys.argv[1])
        def __del__(self):
            print(self.pool.map(tasks.square, range(4)))
            self.pool.terminate()

    if __name__ == "__main__":
        owner = Owner()
        del owner
        again = Owner()
        again.cycle = again
        del again
        import gc
        gc.collect()
    """
    done = python(write_script(tmp_path, source), start_method)
    assert (done.stdout, done.stderr) == ("[0, 1, 4, 9]\n" * 2, "")


def test_a_full_disk_fails_only_the_item(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(OSError, match="No space left"):
        pool.apply(tasks.write_to_full)
    assert pool.apply(tasks.square, (2,)) == 4


def test_a_program_that_a_task_runs_has_the_usual_signals(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(1)
    here = subprocess.run(["grep", "Sig[IB]", "/proc/self/status"], capture_output=True, text=True, check=True)
    masks = dict(line.split(":\t") for line in here.stdout.splitlines())
    inside = dict(line.split(":\t") for line in pool.apply(tasks.signals_of_a_program).splitlines())
    assert inside["SigBlk"] == masks["SigBlk"]
    assert int(inside["SigIgn"], 16) & ~int(masks["SigIgn"], 16) == 0


def test_threads_that_submit_at_once_start_one_driver_thread(make_pool: MakePool) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            pool = make_pool(1)
            barrier = threading.Barrier(8)

            def submit(pool: Pool = pool, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                assert pool.apply_async(tasks.square, (3,)).get(PATIENCE) == 9

            threads = [threading.Thread(target=submit) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(thread.name == "pairpool-driver" for thread in threading.enumerate()) == 1
            pool.terminate()
    finally:
        sys.setswitchinterval(interval)
