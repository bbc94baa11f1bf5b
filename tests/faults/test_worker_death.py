"""Test the deaths of workers, of the zygote and of the master: nothing else fails, hangs or stays behind."""

from __future__ import annotations

import collections
import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairpool import Pool, WorkerDied
from pairpool.linux import process_tree
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.kernel import KERNEL_TELLS_STATUS
from tests.support.pools import MakePool, pids_of
from tests.support.processes import all_ended, still_running, watching
from tests.support.scripts import python, running, write_script
from tests.support.tasks import DEATH_REASONS, EXITCODES, Odd
from tests.support.waiting import PATIENCE

FRAMES = {"exit": "", "kill": "", "segfault": "in segfault", "abort": "in abort"}


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    with watching([pid]) as handles:
        signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
        assert still_running(handles, PATIENCE) == []


def wait_until(right: Callable[[], bool], pool: Pool) -> None:
    """Run the pool until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not right():
        assert time.monotonic() < deadline
        pool._repopulate_pool()


def is_asleep(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def dead_in(results: list[Any]) -> dict[int, WorkerDied]:
    return {index: result for index, result in enumerate(results) if isinstance(result, WorkerDied)}


def alive_in(results: list[Any]) -> dict[int, Any]:
    return {index: result for index, result in enumerate(results) if not isinstance(result, WorkerDied)}


# --- a worker dies in a task --------------------------------------------------------------------------


@pytest.mark.parametrize("how", tasks.DEATHS)
def test_a_death_fails_one_item(start_method: str, make_pool: MakePool, how: str) -> None:
    pool = make_pool(2)
    before = pids_of(pool)
    found: list[Any] = pool.starmap(tasks.die_at, [(7, how, x) for x in range(20)], return_exceptions=True)
    (error,) = dead_in(found).values()
    assert alive_in(found) == {x: x * 10 for x in range(20) if x != 7}
    assert error is found[7]
    assert error.function.endswith("die_at")
    assert error.index == 7
    assert error.pid in before
    assert before[error.worker] == error.pid
    assert error.exitcode == (EXITCODES[how] if KERNEL_TELLS_STATUS else None)
    assert error.reason == DEATH_REASONS[how] if KERNEL_TELLS_STATUS else "unknown" in error.reason
    assert FRAMES[how] in error.stack
    assert bool(error.stack) == bool(FRAMES[how])
    if error.stack:
        assert "in die_at" in error.stack
    text = str(error)
    for detail in (str(error.pid), error.reason, "item 7", error.function, "only this item failed", error.stack):
        assert detail in text
    wait_until(lambda: len(pids_of(pool)) == 2, pool)
    assert error.pid not in pids_of(pool)
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]


@pytest.mark.parametrize("how", tasks.DEATHS)
def test_a_death_in_every_method(make_pool: MakePool, how: str) -> None:
    pool = make_pool(2)
    die = tasks.DEATHS[how]
    for call in (
        lambda: pool.apply(die),
        lambda: pool.apply_async(die).get(PATIENCE),
        lambda: pool.starmap(die, [()]),
        lambda: pool.map_async(functools.partial(tasks.die_at, 3, how), range(5)).get(PATIENCE),
        lambda: list(pool.imap(functools.partial(tasks.die_at, 3, how), range(5))),
        lambda: list(pool.imap_unordered(functools.partial(tasks.die_at, 3, how), range(5), 2)),
    ):
        with pytest.raises(WorkerDied) as caught:
            call()
        assert caught.value.index in (0, 3)
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]


def test_a_stream_goes_on_after_a_death(make_pool: MakePool) -> None:
    results = make_pool().imap(functools.partial(tasks.die_at, 3, "kill"), range(100))
    assert [next(results) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(WorkerDied) as caught:
        next(results)
    assert caught.value.index == 3
    assert list(results) == [x * 10 for x in range(4, 100)]


def test_an_error_callback_receives_a_death(make_pool: MakePool) -> None:
    heard: list[BaseException] = []
    result = make_pool().apply_async(tasks.kill_self, error_callback=heard.append)
    with pytest.raises(WorkerDied) as caught:
        result.get(PATIENCE)
    assert heard == [caught.value]


def test_calls_in_the_same_batch_as_a_death_succeed(make_pool: MakePool) -> None:
    pool = make_pool(2)
    calls = [pool.apply_async(tasks.die_at, (13, "exit", x)) for x in range(50)]
    for call in calls:
        call.wait(PATIENCE)
    assert [call.successful() for call in calls] == [x != 13 for x in range(50)]
    assert [call.get() for x, call in enumerate(calls) if x != 13] == [x * 10 for x in range(50) if x != 13]


def test_a_death_inside_a_large_batch(start_method: str, make_pool: MakePool) -> None:
    victims = {0, 1, 777, 40_000, 77_777, 99_999}
    pool = make_pool(2)
    found: list[Any] = pool.map(
        functools.partial(tasks.die_in, frozenset(victims)), range(100_000), return_exceptions=True
    )
    dead = dead_in(found)
    assert dead.keys() == victims
    assert {error.index for error in dead.values()} == victims
    assert len({error.pid for error in dead.values()}) == len(victims)
    assert alive_in(found) == {x: x * 10 for x in range(100_000) if x not in victims}


@pytest.mark.parametrize("chunksize", [7, 50, 1000])
def test_a_death_inside_a_fixed_chunk(make_pool: MakePool, chunksize: int) -> None:
    victims = {3, 4, 49, 50, 99}
    pool = make_pool(2)
    found: list[Any] = pool.map(
        functools.partial(tasks.die_in, frozenset(victims)), range(100), chunksize, return_exceptions=True
    )
    assert dead_in(found).keys() == victims
    assert alive_in(found) == {x: x * 10 for x in range(100) if x not in victims}


def test_with_chunksize_one_nothing_runs_twice(start_method: str, make_pool: MakePool, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    victims = frozenset(range(5, 200, 9))
    pool = make_pool(3)
    found: list[Any] = pool.map(
        functools.partial(tasks.count_and_die, str(counter), victims),
        range(200),
        chunksize=1,
        return_exceptions=True,
    )
    assert dead_in(found).keys() == victims
    assert alive_in(found) == {x: x * 10 for x in range(200) if x not in victims}
    assert sorted(map(int, counter.read_text().split())) == list(range(200))


def test_every_item_may_kill_its_worker(make_pool: MakePool) -> None:
    found: list[Any] = make_pool(2).map(
        functools.partial(tasks.die_in, frozenset(range(60))), range(60), return_exceptions=True
    )
    assert dead_in(found).keys() == set(range(60))


def test_processes_that_a_dead_worker_had_forked_end(make_pool: MakePool, reports: Reports) -> None:
    for method in ("fork", "forkserver"):
        pool = make_pool(2, start_method=method)
        result = pool.apply_async(tasks.start_sleeper_and_die, (reports.path,))
        child = int(reports.next())
        with watching([child]) as handles:
            with pytest.raises(WorkerDied):
                result.get(PATIENCE)
            assert still_running(handles, 2.0) == []
        assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]


# --- a worker is killed from outside ------------------------------------------------------------------


def test_exactly_the_killed_items_fail(start_method: str, make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    """200 random items report their worker, and this worker is killed while the item runs. Batches have any size."""
    victims = frozenset(random.sample(range(2000), 200))
    pool = make_pool(4)
    result = pool.map_async(
        functools.partial(tasks.report_and_hold_victims, reports.path, gate.path, victims),
        range(2000),
        return_exceptions=True,
    )
    killed: dict[int, int] = {}
    for _ in victims:
        pid, item = map(int, reports.next().split())
        killed[item] = pid
        kill(pid)
    found: list[Any] = result.get(PATIENCE)
    assert killed.keys() == victims
    assert {index: error.pid for index, error in dead_in(found).items()} == killed
    assert {index: error.index for index, error in dead_in(found).items()} == {index: index for index in victims}
    assert alive_in(found) == {x: x * 10 for x in range(2000) if x not in victims}
    wait_until(lambda: len(pids_of(pool)) == 4, pool)


@pytest.mark.parametrize(("chunksize", "kills"), [(1, 200), (None, 50)])
def test_kills_at_any_moment(make_pool: MakePool, tmp_path: Path, chunksize: int | None, kills: int) -> None:
    """Kill workers at random moments. Exactly the item that a killed worker was running fails, and nothing is lost."""
    journal = tmp_path / "journal"
    pool = make_pool(2)
    count = 40_000
    results = pool.imap(functools.partial(tasks.log_with_pid, str(journal)), range(count), chunksize)
    found: list[Any] = []
    killed: list[int] = []
    done = False
    while not done:
        for _ in range(random.randrange(40)):  # run the pool for a while
            try:
                found.append(next(results))
            except StopIteration:
                done = True
                break
            except WorkerDied as died:
                found.append(died)
        workers = pool.status().workers
        busy = [worker.pid for worker in workers if worker.state == "running" and worker.pid not in killed]
        if not done and busy and len(killed) < kills:
            killed.append(random.choice(busy))
            try:
                os.kill(killed[-1], signal.SIGKILL)
            except ProcessLookupError:
                killed.pop()
        if len(killed) == kills and len(found) > count // 8:
            break
    assert len(killed) == kills
    del results
    dead = dead_in(found)
    assert alive_in(found) == {x: x * 10 for x in range(len(found)) if x not in dead}
    assert {error.index for error in dead.values()} == dead.keys()
    assert len({error.pid for error in dead.values()}) == len(dead)
    assert {error.pid for error in dead.values()} <= set(killed)

    begun = collections.defaultdict(list)
    ended = set()
    for line in journal.read_text().splitlines():
        sign, pid, item = line[0], *map(int, line[2:].split())
        if sign == "+":
            begun[pid].append(item)
        else:
            ended.add((pid, item))
    for pid in set(killed):
        last = begun[pid][-1] if begun[pid] else None
        if last is not None and last < len(found) and (pid, last) not in ended:
            assert found[last] is dead[last]
            assert dead[last].pid == pid
    if chunksize == 1:
        runs = collections.Counter(item for items in begun.values() for item in items)
        assert set(runs.values()) == {1}
        for index, error in dead.items():
            assert begun[error.pid][-1:] == [index] or index not in runs
    assert len(dead) > kills // 2
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]


def test_killed_while_idle(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    for _ in range(5):
        kill(pids_of(pool)[0])
        assert pool.map(tasks.square, range(20)) == [x * x for x in range(20)]
    before = pids_of(pool)
    for pid in before:
        kill(pid)
    assert pool.apply(tasks.square, (5,)) == 25
    assert list(pool.imap(tasks.square, range(20))) == [x * x for x in range(20)]
    assert not set(pids_of(pool)) & set(before)


def test_killed_before_it_read_a_large_argument(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(1)
    data = os.urandom(1 << 20) * 24
    pool.apply(tasks.square, (1,))
    for _ in range(3):
        (pid,) = pids_of(pool)
        os.kill(pid, signal.SIGSTOP)
        result = pool.apply_async(tasks.swap, (data,))
        result.wait(0.02)
        assert not result.ready()
        kill(pid)
        assert result.get(PATIENCE) == data[::-1]
        assert pool.apply(tasks.square, (2,)) == 4


def test_killed_after_it_sent_a_large_result(start_method: str, make_pool: MakePool, reports: Reports) -> None:
    pool = make_pool(1)
    data = os.urandom(1 << 20) * 24
    for _ in range(3):
        pool._repopulate_pool()
        results = pool.imap(functools.partial(tasks.tell_and_swap, reports.path), [data])
        deadline = time.monotonic() + PATIENCE
        pid = int(reports.next())
        while pool.status().workers[0].state != "idle":
            assert time.monotonic() < deadline
        kill(pid)
        assert list(results) == [data[::-1]]


def test_killed_in_the_middle_of_large_transfers(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    blocks = [bytes([number]) * 2_000_000 + b"end" for number in range(60)]
    results = pool.imap(tasks.swap, blocks, 1, return_exceptions=True)
    killed: set[int] = set()
    found: list[Any] = []
    while len(found) < 60:
        found.append(next(results))
        if len(found) % 3 == 1:
            wait_until(lambda: bool(set(pids_of(pool)) - killed), pool)
            pid = random.choice(sorted(set(pids_of(pool)) - killed))
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    dead = dead_in(found)
    assert len(killed) == 20
    assert len({error.pid for error in dead.values()}) == len(dead)
    assert {error.pid for error in dead.values()} <= killed
    assert alive_in(found) == {x: block[::-1] for x, block in enumerate(blocks) if x not in dead}
    assert pool.map(len, blocks[:4]) == [2_000_003] * 4


# --- the zygote dies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_pool_survives_the_death_of_its_zygote(
    make_pool: MakePool, method: str, gate: Gate, reports: Reports
) -> None:
    pool = make_pool(2, start_method=method)
    for _ in range(2):
        workers = pids_of(pool)
        (zygote,) = {parent_of(pid) for pid in workers}
        assert zygote != os.getpid()
        kill(zygote)
        assert pool.map(tasks.square, range(50)) == [x * x for x in range(50)]
        assert all_ended(workers)

    hold = functools.partial(tasks.tell_and_hold, reports.path, gate.path)
    result = pool.map_async(hold, range(6), chunksize=1, return_exceptions=True)
    hit = {int(item): int(pid) for pid, item in (line.split() for line in reports.take(2))}
    (zygote,) = {parent_of(pid) for pid in hit.values()}
    gate_opened = False
    with watching(hit.values()) as handles:
        kill(zygote)
        assert still_running(handles, PATIENCE) == []
        gate.let(6)
        gate_opened = True
    found: list[Any] = result.get(PATIENCE)
    assert gate_opened
    assert {index: error.pid for index, error in dead_in(found).items()} == hit
    assert alive_in(found) == {x: x for x in range(6) if x not in hit}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_spare_zygote_takes_over(make_pool: MakePool, method: str) -> None:
    """The spare is not a fork of the program, which may have threads in the meantime."""
    pool = make_pool(2, start_method=method)
    for _ in range(2):
        (zygote,) = {parent_of(pid) for pid in pids_of(pool)}
        spare = wait_for_spare(pool, zygote)
        kill(zygote)
        assert pool.map(tasks.square, range(50)) == [x * x for x in range(50)]
        assert {parent_of(pid) for pid in pids_of(pool)} == {spare}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_spare_zygote_that_is_gone_is_replaced(make_pool: MakePool, method: str) -> None:
    pool = make_pool(2, start_method=method)
    (zygote,) = {parent_of(pid) for pid in pids_of(pool)}
    first = wait_for_spare(pool, zygote)
    kill(first)
    second = wait_for_spare(pool, zygote)
    assert second != first
    kill(zygote)
    assert pool.map(tasks.square, range(50)) == [x * x for x in range(50)]
    assert {parent_of(pid) for pid in pids_of(pool)} == {second}


def test_deaths_with_the_zygote_do_not_count_against_a_function(
    make_pool: MakePool, gate: Gate, reports: Reports
) -> None:
    """Several workers unpickle a function when the zygote is killed. The function did not end them."""
    pool = make_pool(4, start_method="fork")
    function = tasks.LoadsAtTheGate(reports.path, gate.path)
    result = pool.map_async(function, range(-8, 0), chunksize=1)
    workers = [int(line) for line in reports.take(4)]
    (zygote,) = {parent_of(pid) for pid in workers}
    kill(zygote)
    assert all_ended(workers)
    gate.let(8)
    assert result.get(PATIENCE) == list(range(8, 0, -1))


def wait_for_spare(pool: Pool, zygote: int) -> int:
    """Run calls until the pool has a living spare zygote; return its pid."""
    deadline = time.monotonic() + PATIENCE
    current: Any = pool._engine.supervisor.zygote
    while current._spare is None or current._spare.is_gone:
        assert time.monotonic() < deadline
        pool.map(tasks.square, range(10))
    assert set(process_tree.children_of(zygote)) - set(pids_of(pool)) == {current._spare.pid}
    pid: int = current._spare.pid
    return pid


# --- the master dies ----------------------------------------------------------------------------------

BUSY_MASTER = """
import functools, sys
from pairpool import Pool
from tests.support import tasks

if __name__ == "__main__":
    method, reports, gate = sys.argv[1:]
    pool = Pool(3, start_method=method)
    pool.map(functools.partial(tasks.start_sleeper_and_hold, reports, gate), range(3), chunksize=1)
"""


def test_nothing_outlives_a_killed_master(start_method: str, gate: Gate, reports: Reports, tmp_path: Path) -> None:
    script = write_script(tmp_path, BUSY_MASTER)
    with running(script, start_method, reports.path, gate.path) as master:
        pairs = [tuple(map(int, line.split())) for line in reports.take(3)]
        workers = {worker for worker, _ in pairs}
        sleepers = {sleeper for _, sleeper in pairs}
        zygotes = {parent_of(worker) for worker in workers} - {master.pid}
        assert len(workers) == 3
        assert len(zygotes) == (start_method != "direct")
        with watching(workers | zygotes) as handles, watching(sleepers) as others:
            master.kill()
            left = still_running(handles, 1.0)
            if start_method == "direct":  # there is no zygote that ends the processes that workers leave behind
                for handle in others.values():
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            left += still_running(others, 1.0)
        master.wait()
    assert left == []


# --- the caller's own children ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_exit_statuses_of_the_callers_children(make_pool: MakePool, method: str) -> None:
    pool = make_pool(2, start_method=method)
    assert subprocess.run(["false"]).returncode == 1
    assert pool.map(tasks.status_of_false, range(4)) == [1] * 4
    with pytest.raises(WorkerDied):
        pool.apply(tasks.kill_self)
    assert subprocess.run(["false"]).returncode == 1
    assert pool.map(tasks.status_of_false, range(4)) == [1] * 4


def test_direct_restores_sigchld_at_the_last_close(make_pool: MakePool) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _frame: heard.append(number))
    try:
        mine = signal.getsignal(signal.SIGCHLD)
        one, two = make_pool(1, start_method="direct"), make_pool(1, start_method="direct")
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        assert two.map(tasks.status_of_false, range(2)) == [1, 1]
        one.close()
        one.join()
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        two.terminate()
        assert signal.getsignal(signal.SIGCHLD) is mine
        heard.clear()
        assert subprocess.run(["false"]).returncode == 1
        assert heard == [signal.SIGCHLD]
    finally:
        signal.signal(signal.SIGCHLD, before)


# --- Ctrl-C -------------------------------------------------------------------------------------------

INTERRUPTED = """
import functools, sys
from pairpool import Pool
from tests.support import tasks

if __name__ == "__main__":
    start_method, how, reports, gate = sys.argv[1:]
    hold = functools.partial(tasks.tell_and_hold, reports, gate)
    calls = {
        "map": lambda: pool.map(hold, range(100)),
        "starmap": lambda: pool.starmap(hold, [(x,) for x in range(100)], 1),
        "imap": lambda: list(pool.imap(hold, range(100))),
        "apply": lambda: (pool.apply_async(hold, (1,)), pool.apply(hold, (2,))),
    }
    with Pool(2, start_method=start_method) as pool:
        for _ in range(2):
            try:
                calls[how]()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        print(len(pool._pool))
        if how == "apply":
            with open(gate, "w") as file:
                file.write("..")  # for the calls that were not interrupted
        print(pool.map(tasks.square, range(5)))
        print(list(pool.imap(tasks.square, range(5))))
"""


@pytest.mark.parametrize("how", ["map", "starmap", "imap", "apply"])
def test_ctrl_c_stops_only_the_call_and_prints_nothing(
    start_method: str, how: str, gate: Gate, reports: Reports, tmp_path: Path
) -> None:
    script = write_script(tmp_path, INTERRUPTED)
    with running(script, start_method, how, reports.path, gate.path) as master:
        assert master.stdout is not None
        assert master.stderr is not None
        for _ in range(2):
            reports.take(2 if how != "apply" or _ == 0 else 1)
            deadline = time.monotonic() + PATIENCE
            while not is_asleep(master.pid):  # until the program waits for the results
                assert time.monotonic() < deadline
            os.killpg(master.pid, signal.SIGINT)
            assert master.stdout.readline() == "interrupted\n"
        out, errors = master.stdout.read(), master.stderr.read()
        master.wait(PATIENCE)
    assert errors == ""
    assert out.splitlines() == ["2", "[0, 1, 4, 9, 16]", "[0, 1, 4, 9, 16]"]
    assert master.returncode == 0


# --- a forked child of the master ---------------------------------------------------------------------

FORKING = """
import os, sys
from pairpool import Pool, PoolInherited
from tests.support import tasks

if __name__ == "__main__":
    start_method, leave = sys.argv[1:]
    pool = Pool(2, start_method=start_method)
    stream = pool.imap(tasks.square, range(1000))
    next(stream)
    pid = os.fork()
    if pid == 0:
        told = 0
        for call in (
            lambda: pool.apply(tasks.square, (1,)),
            lambda: pool.map(tasks.square, range(3)),
            lambda: pool.map_async(tasks.square, range(3)),
            lambda: pool.imap(tasks.square, range(3)),
            lambda: [next(stream) for _ in range(1000)],
            lambda: pool.status(),
            lambda: pool.resize(3),
            lambda: pool.close(),
            lambda: pool.terminate(),
        ):
            try:
                call()
            except PoolInherited:
                told += 1
        with Pool(1, start_method=start_method) as own:
            told += sum(own.map(tasks.square, range(5)))
        print("told", told, flush=True)
        if leave == "_exit":
            os._exit(0)
        elif leave == "exit":
            sys.exit(0)
        elif leave == "del":
            del pool, stream
            sys.exit(0)
    if leave != "end" or pid:
        while True:  # direct ignores SIGCHLD, so that there is no exit status
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass
            break
        before = {process.pid for process in pool._pool}
        print(list(stream) == [x * x for x in range(1, 1000)])
        print(pool.map(tasks.square, range(5)))
        print({process.pid for process in pool._pool} == before)
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize("leave", ["_exit", "exit", "del", "end"])
def test_a_forked_child_cannot_use_or_harm_the_pool(start_method: str, leave: str, tmp_path: Path) -> None:
    done = python(write_script(tmp_path, FORKING), start_method, leave)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["told 39", "True", "[0, 1, 4, 9, 16]", "True"]
    assert done.returncode == 0


# --- the interpreter ends with an open pool -----------------------------------------------------------

ENDING = """
import os, sys
from pairpool import Pool
from tests.support import tasks

if __name__ == "__main__":
    start_method, end, work, reports, gate = sys.argv[1:]
    pool = Pool(2, start_method=start_method)
    pids = [process.pid for process in pool._pool]
    pool.map(tasks.square, range(10))
    if work == "busy":
        results = [pool.apply_async(tasks.tell_and_hold, (reports, gate, x)) for x in range(4)]
    print(*pids, flush=True)
    sys.stdin.readline()
    if end == "exit":
        sys.exit(3)
    elif end == "raise":
        raise ValueError("the program's own error")
    elif end == "_exit":
        os._exit(4)
"""

STATUS = {"end": 0, "exit": 3, "raise": 1, "_exit": 4}


@pytest.mark.parametrize("work", ["idle", "busy"])
@pytest.mark.parametrize("end", STATUS)
def test_pools_end_with_the_interpreter(
    start_method: str, end: str, work: str, gate: Gate, reports: Reports, tmp_path: Path
) -> None:
    script = write_script(tmp_path, ENDING)
    arguments = (script, start_method, end, work, reports.path, gate.path)
    # Ignore ResourceWarning, as Python does by default: multiprocessing's pool warns here, too.
    with running(*arguments, warnings="default", stdin=subprocess.PIPE) as master:
        assert master.stdout is not None
        workers = set(map(int, master.stdout.readline().split()))
        if work == "busy":
            reports.take(2)
        with watching(workers | {parent_of(pid) for pid in workers} - {master.pid}) as handles:
            assert len(handles) == 2 + (start_method != "direct")
            out, errors = master.communicate("\n", timeout=PATIENCE)
            assert still_running(handles, 1.0) == []
    assert master.returncode == STATUS[end]
    assert out == ""
    if end == "raise":
        assert errors.splitlines()[-1] == "ValueError: the program's own error"
        assert errors.count("Traceback") == 1
    else:
        assert errors == ""


# --- limits -------------------------------------------------------------------------------------------

LIMITED = """
import errno, os, resource, sys
from pairpool import Pool
from tests.support import tasks

def has():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = file.read().split()
    return sorted(os.listdir("/proc/self/fd")), children

if __name__ == "__main__":
    start_method = sys.argv[1]
    Pool(1, start_method=start_method).terminate()
    before = has()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        Pool(50, start_method=start_method)
    except OSError as error:
        print(error.errno == errno.EMFILE, "RLIMIT_NOFILE" in str(error), "60" in str(error))
    print(has() == before)
    with Pool(2, start_method=start_method) as pool:
        print(pool.map(tasks.square, range(5)))
        try:
            pool.resize(50)
        except OSError as error:
            print(error.errno == errno.EMFILE, "RLIMIT_NOFILE" in str(error))
        print(pool.status().processes, pool.map(tasks.square, range(5)))
        print(pool.map(len, [bytes(1_000_000)] * 10) == [1_000_000] * 10)
    print(has() == before)
"""


def test_too_few_descriptors(start_method: str, tmp_path: Path) -> None:
    done = python(write_script(tmp_path, LIMITED), start_method)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "True True True",
        "True",
        "[0, 1, 4, 9, 16]",
        "True True",
        "2 [0, 1, 4, 9, 16]",
        "True",
        "True",
    ]


CROWDED = """
import ctypes, os, resource, signal, subprocess, sys
import pairpool.pool, pairpool.errors, pairpool.worker.forkserver_main
from pairpool import Pool

NOBODY = 65534

def has():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = file.read().split()
    return sorted(os.listdir("/proc/self/fd")), children, signal.getsignal(signal.SIGCHLD)

def may_fork():
    try:
        pid = os.fork()
    except BlockingIOError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True

if __name__ == "__main__":
    start_method, limit = sys.argv[1], int(sys.argv[2])
    Pool(1, start_method=start_method).terminate()
    if os.getuid() == 0:  # root is not limited
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    before = has()
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    if may_fork():
        print("not limited")
        sys.exit()
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    try:
        Pool(8, start_method=start_method)
    except OSError as error:
        print(type(error).__name__, "RLIMIT_NPROC" in str(error))
    print(has() == before)
"""


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("method", ["fork", "direct"])
def test_too_few_processes(method: str, limit: int, tmp_path: Path) -> None:
    done = python(write_script(tmp_path, CROWDED), method, limit)
    if done.stdout == "not limited\n":
        pytest.skip("RLIMIT_NPROC does not hold this user back here")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["BlockingIOError True", "True"]


# --- nothing is left ----------------------------------------------------------------------------------


def test_many_pools_one_after_the_other_leave_nothing(start_method: str) -> None:
    def has() -> tuple[int, list[int]]:
        return len(os.listdir("/proc/self/fd")), sorted(tasks.children())

    before = has()
    for number in range(10 if start_method == "forkserver" else 50):
        pool = Pool(2, start_method=start_method)
        assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]
        if number % 3 == 1:
            with pytest.raises(Odd):
                pool.apply_async(tasks.raise_this, (Odd(),)).get(PATIENCE)
        pool.terminate() if number % 2 else pool.close()
        pool.join()
        assert has() == before
