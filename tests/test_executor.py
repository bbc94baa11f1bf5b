"""`Executor` in place of `ProcessPoolExecutor`: its promises, and what programs do with executors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from pairpool import Executor, Pool, PoolInherited, WorkerDied, get_executor
from tests.support import tasks
from tests.support.children import in_child
from tests.support.gates import Gate, Reports
from tests.support.scripts import python
from tests.support.waiting import PATIENCE

ROUNDS = 300


_inherited: list[Executor] = []


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


def double(x: int) -> int:
    return 2 * x


def nap(x: int) -> int:
    time.sleep(0.01)
    return x


def die_at_three(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fail(text: str) -> None:
    raise LookupError(text)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("not this one")


class Lingering:
    """An object that can be the target of a weak reference."""


def make_lingering(_x: int) -> Lingering:
    return Lingering()


def cancel_myself() -> None:
    raise CancelledError("by the task itself")


class Door:
    """A door for tasks: each reports that it has arrived, and waits until the test lets it through."""

    def __init__(self, path: Path) -> None:
        self.gate = Gate(path / "gate")
        self.reports = Reports(path / "reports")

    @property
    def paths(self) -> tuple[str, str]:
        return self.gate.path, self.reports.path

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.reports.next()


def come_and_wait(paths: tuple[str, str], x: int) -> int:
    gate, reports = paths
    tasks.tell(reports, str(x))
    tasks.wait_for(gate)
    return x


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.gate.close()
    door.reports.close()


# --- submit -------------------------------------------------------------------------------------------


def test_futures_are_the_standard_ones(executor: Executor) -> None:
    futures = [executor.submit(double, x) for x in range(ROUNDS)]
    assert all(isinstance(future, Future) for future in futures)
    assert wait(futures, PATIENCE).not_done == set()
    assert [future.result() for future in futures] == [2 * x for x in range(ROUNDS)]
    assert sorted(future.result() for future in as_completed(futures)) == [2 * x for x in range(ROUNDS)]


def test_arguments_arrive_unchanged(executor: Executor) -> None:
    assert executor.submit(dict, [("fn", 1)], self=2).result() == {"fn": 1, "self": 2}
    offset = 5
    assert executor.submit(lambda x: x + offset, 1).result() == 6


def test_an_exception_comes_with_its_remote_traceback(executor: Executor) -> None:
    error = executor.submit(fail, "here").exception()
    assert isinstance(error, LookupError)
    assert type(error.__cause__).__name__ == "_RemoteTraceback"
    assert "raise LookupError(text)" in str(error.__cause__)


def test_a_dead_worker_fails_its_own_future_only(executor: Executor) -> None:
    futures = [executor.submit(die_at_three, x) for x in range(8)]
    error = futures[3].exception(PATIENCE)
    assert isinstance(error, WorkerDied)
    assert isinstance(error, BrokenProcessPool)
    assert error.signal == "SIGKILL"
    assert [future.result() for x, future in enumerate(futures) if x != 3] == [0, 1, 2, 4, 5, 6, 7]
    assert pickle.loads(pickle.dumps(error)).args == error.args
    assert executor.submit(double, 4).result() == 8


def test_a_pickling_error_fails_only_its_own_future(executor: Executor) -> None:
    assert isinstance(executor.submit(id, Unpicklable()).exception(), pickle.PicklingError)
    assert isinstance(executor.submit(Unpicklable).exception(), pickle.PicklingError)
    assert isinstance(executor.submit(None, 1).exception(), TypeError)  # type: ignore[arg-type]
    assert executor.submit(double, 1).result() == 2


class Leaving:
    """An object that exits the program when it is unpickled, as modules do that miss what they need."""

    def __reduce__(self) -> Any:
        return sys.exit, ("the master must not",)


def note_and_leave(path: str) -> Leaving:
    with open(path, "a", encoding="ascii") as file:
        file.write("x")
    return Leaving()


def test_a_result_whose_unpickling_exits_fails_only_its_own_call(
    executor: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs"
    executor.submit(double, 1).result()
    future = executor.submit(note_and_leave, str(path))
    assert wait([future]).done == {future}  # the driver thread has driven the pool
    with pytest.raises(SystemExit, match="the master must not"):
        future.result()
    with pytest.raises(SystemExit, match="the master must not"):
        executor.submit(note_and_leave, str(path)).result()
    assert path.read_text() == "xx"
    assert executor.submit(double, 1).result() == 2
    assert capfd.readouterr().err == ""


def test_callbacks_run_and_may_submit(executor: Executor) -> None:
    seen: list[int] = []
    over = threading.Event()

    def again(future: Future[int]) -> None:
        seen.append(future.result())
        if len(seen) < 20:
            executor.submit(double, len(seen)).add_done_callback(again)
        else:
            over.set()

    executor.submit(double, 0).add_done_callback(again)
    assert over.wait(PATIENCE)
    assert seen == [2 * x for x in range(20)]


def test_a_callback_may_wait_for_another_future(executor: Executor) -> None:
    """The callback drives the pool from inside a turn."""
    seen: list[int] = []
    over = threading.Event()

    def wait_for_more(future: Future[int]) -> None:
        seen.append(executor.submit(double, future.result()).result(PATIENCE))
        over.set()

    executor.submit(double, 1).add_done_callback(wait_for_more)
    assert over.wait(PATIENCE)
    assert seen == [4]


@pytest.mark.parametrize("by_hand", [lambda one: one.set_result(5), lambda one: one.set_exception(KeyError(5))])
def test_a_waiting_thread_sees_an_outcome_set_by_hand(executor: Executor, by_hand: Any, door: Door) -> None:
    future = executor.submit(come_and_wait, door.paths, 1)
    door.wait_for(1)
    setter = threading.Timer(0.05, by_hand, [future])
    setter.start()
    outcome = future.exception(PATIENCE) or future.result(0)
    setter.join()
    assert repr(outcome) in ("5", "KeyError(5)")
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_result(6)
    door.gate.let()
    assert executor.submit(double, 1).result(PATIENCE) == 2
    assert repr(future.exception() or future.result()) in ("5", "KeyError(5)")


def test_many_threads_submit(executor: Executor) -> None:
    found: dict[int, list[int]] = {}

    def work(me: int) -> None:
        futures = [executor.submit(double, x + me) for x in range(ROUNDS)]
        found[me] = [future.result() for future in futures]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {me: [2 * (x + me) for x in range(ROUNDS)] for me in range(4)}


# --- cancelling ---------------------------------------------------------------------------------------


def test_a_waiting_call_can_be_cancelled_and_a_running_one_cannot(door: Door) -> None:
    with Executor(1) as executor:
        first = executor.submit(come_and_wait, door.paths, 1)
        others = [executor.submit(double, x) for x in range(5)]
        door.wait_for(1)
        assert first.running()
        assert not first.cancel()
        assert not any(other.running() for other in others)
        assert others[1].cancel()
        assert others[1].cancel()
        assert others[1].cancelled()
        with pytest.raises(CancelledError):
            others[1].result(0)
        door.gate.let(40)
        assert first.result() == 1
        assert not first.running()
        assert [other.result() for x, other in enumerate(others) if x != 1] == [0, 4, 6, 8]
        assert not others[0].cancel()


def test_a_cancelled_call_is_not_retried(door: Door) -> None:
    with Executor(1, retries=2, retry_on=(Exception,), chunksize=1) as executor:
        door.gate.let(1000)
        quick = [executor.submit(come_and_wait, door.paths, 0) for _ in range(1000)]
        slow = [executor.submit(come_and_wait, door.paths, x) for x in range(1, 4)]
        wait(quick)
        door.wait_for(1001)  # the next one waits in the worker's socket
        cancelled = [future.cancel() for future in slow]
        door.gate.let(3)
        assert slow[0].result() == 1
    assert cancelled == [False, True, True]


def test_a_tasks_own_cancelled_error_is_its_exception(executor: Executor) -> None:
    future = executor.submit(cancel_myself)
    assert isinstance(future.exception(), CancelledError)
    assert not future.cancelled()


def test_cancel_is_right_while_other_threads_drive(executor: Executor) -> None:
    over = threading.Event()

    def map_on() -> None:
        while not over.is_set():
            assert next(executor.map(double, [3])) == 6

    threads = [threading.Thread(target=map_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(ROUNDS):
            future = executor.submit(double, 5)
            if future.cancel():
                assert future.cancelled()
            else:
                assert future.result(PATIENCE) == 10
            wait([future], PATIENCE)
            assert future.done()
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("wait_for_it", [False, True])
def test_shutdown_cancels_calls_that_no_worker_has_begun(wait_for_it: bool, door: Door) -> None:
    executor = Executor(1)
    first = executor.submit(come_and_wait, door.paths, 1)
    door.wait_for(1)
    others = [executor.submit(double, x) for x in range(500)]

    def open_then() -> None:
        wait(others)
        door.gate.let()

    opener = threading.Thread(target=open_then)
    opener.start()
    executor.shutdown(wait=wait_for_it, cancel_futures=True)
    opener.join()
    assert all(other.cancelled() for other in others)
    assert first.result(PATIENCE) == 1
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(double, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(double, [1])
    executor.shutdown()
    end_of(first)


@pytest.mark.parametrize("is_warm", [False, True])
def test_shutdown_cancels_no_call_that_a_free_worker_can_take(is_warm: bool) -> None:
    """This holds however early `shutdown` comes. The tests of the standard library ask for it, too."""
    for _ in range(20):
        executor = Executor(2)
        if is_warm:
            wait([executor.submit(double, x) for x in range(10)])
        futures = [executor.submit(nap, x) for x in range(50)]
        executor.shutdown(cancel_futures=True)
        run = [x for x, future in enumerate(futures) if not future.cancelled()]
        assert run[:2] == [0, 1]
        assert run == list(range(len(run)))
        assert len(run) < 10
        assert [futures[x].result(0) for x in run] == run


def end_of(future: Future[Any]) -> None:
    """When a future has ended, another thread ends its pool, too."""
    pool = weakref.ref(future._engine)  # type: ignore[attr-defined]
    del future
    deadline = time.monotonic() + PATIENCE
    while (master := pool()) is not None and not master.loop.over.is_set() and time.monotonic() < deadline:
        del master
        gc.collect()
        time.sleep(0.01)


@pytest.mark.parametrize(
    "terminate", [Executor.terminate_workers, functools.partial(Executor.shutdown, kill_workers=True)]
)
def test_terminate_workers_ends_at_once(terminate: Callable[[Executor], None], door: Door) -> None:
    executor = Executor(2)
    futures = [executor.submit(come_and_wait, door.paths, x) for x in range(10)]
    door.wait_for(2)
    terminate(executor)
    assert all(future.cancelled() for future in futures)


def run_in_a_process_of_its_own(value: int) -> tuple[int, int | None]:
    queue: multiprocessing.SimpleQueue[int] = multiprocessing.SimpleQueue()
    process = multiprocessing.Process(target=queue.put, args=(value,))
    process.start()
    found = queue.get()
    process.join()
    return found, process.exitcode


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_tasks_may_start_processes_with_multiprocessing(method: str) -> None:
    with Executor(1, multiprocessing.get_context(method)) as executor:
        assert executor.submit(run_in_a_process_of_its_own, 5).result() == (5, 0)


# --- map ----------------------------------------------------------------------------------------------


def test_map(executor: Executor) -> None:
    assert list(executor.map(pow, [2, 3, 4], [3, 2, 1, 9])) == [8, 9, 4]
    assert list(executor.map(double, range(ROUNDS), chunksize=7)) == [2 * x for x in range(ROUNDS)]
    assert list(executor.map(double, [])) == []
    with pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
        executor.map(double, [1], chunksize=0)


def test_map_runs_without_being_read(executor: Executor, door: Door) -> None:
    door.gate.let(40)
    results = executor.map(come_and_wait, [door.paths] * 40, range(40))
    door.wait_for(40)
    assert list(results) == list(range(40))


def test_results_of_map_can_be_read_after_shutdown() -> None:
    with Executor(2) as executor:
        results = executor.map(double, range(ROUNDS))
        begun = executor.map(double, range(ROUNDS))
        assert next(begun) == 0
    assert list(results) == [2 * x for x in range(ROUNDS)]
    assert list(begun) == [2 * x for x in range(1, ROUNDS)]


def test_map_ends_with_the_first_exception(executor: Executor) -> None:
    results = executor.map(die_at_three, range(8))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BrokenProcessPool):
        next(results)
    assert list(results) == []


def test_timeout_of_map(executor: Executor, door: Door) -> None:
    assert list(executor.map(double, [1, 2], timeout=PATIENCE)) == [2, 4]
    results = executor.map(come_and_wait, [door.paths] * 3, range(3), timeout=0.1)
    with pytest.raises(TimeoutError):
        next(results)
    door.gate.let(40)


def test_map_takes_no_more_than_its_buffer(executor: Executor) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    results = executor.map(double, numbers(), buffersize=10)
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(taken) <= 16
    for wrong, error in ((0, ValueError), ("4", TypeError)):
        with pytest.raises(error):
            executor.map(double, [1], buffersize=wrong)  # type: ignore[arg-type]


def test_a_map_that_nobody_reads_takes_no_more_than_its_buffer(executor: Executor) -> None:
    numbers = itertools.count()
    executor.map(double, numbers, buffersize=4)
    assert executor.submit(double, 1).result() == 2
    executor.shutdown()
    assert next(numbers) == 4


def test_shutdown_takes_no_more_of_an_input(executor: Executor) -> None:
    with executor:
        waiting = executor.map(double, itertools.count(), buffersize=4)
        assert next(waiting) == 0
    found: list[int] = []
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        found.extend(waiting)
    assert found == [2, 4, 6, 8][: len(found)]
    assert list(waiting) == []


@pytest.mark.parametrize("chunksize", [None, 1, 20])
def test_shutdown_cancels_the_rest_of_a_map(chunksize: int | None, door: Door) -> None:
    executor = Executor(1)
    results = executor.map(come_and_wait, [door.paths] * 100, range(100), chunksize=chunksize)
    unread = executor.map(double, range(100))
    door.wait_for(1)
    executor.shutdown(wait=False, cancel_futures=True)
    door.gate.let(100)
    begun = chunksize or 1
    assert [next(results) for _ in range(begun)] == list(range(begun))
    with pytest.raises(CancelledError):
        next(results)
    with pytest.raises(CancelledError):
        next(unread)


def test_map_keeps_no_result_that_was_read(executor: Executor) -> None:
    for thing in executor.map(make_lingering, range(50)):
        reference = weakref.ref(thing)
        del thing
        assert reference() is None


# --- arguments, beginnings, ends ----------------------------------------------------------------------


def test_arguments_are_checked_as_by_concurrent_futures() -> None:
    for wrong in (0, -3):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            Executor(wrong)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        Executor(1, initializer=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        Executor(1, max_tasks_per_child="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
        Executor(1, max_tasks_per_child=0)
    with pytest.raises(TypeError, match="interpreted as an integer"):
        Executor(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'initialiser'"):
        Executor(1, initialiser=print)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_contexts_of_multiprocessing(method: str) -> None:
    with Executor(1, multiprocessing.get_context(method)) as executor:
        assert executor.submit(double, 3).result() == 6
        assert executor.pool.status().start_method == ("fork" if method == "fork" else "forkserver")


@pytest.mark.parametrize("make", [Executor, get_executor])
@pytest.mark.usefixtures("_no_shared_executor")
def test_arguments_are_checked_before_the_first_call(make: Any) -> None:
    with pytest.raises(TypeError, match=r"Executor\(\) got an unexpected keyword argument 'nonsense'"):
        make(2, nonsense=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'maxtasksperchild'"):
        make(2, maxtasksperchild=1)
    name = "mp_context" if make is Executor else "context"
    with pytest.raises(ValueError, match="'thread'"):
        make(2, **{name: "thread"})
    assert make(2, **{name: "loky"})._options["start_method"] == "forkserver"


def test_nothing_is_forked_before_the_first_call() -> None:
    executor = Executor(2)
    assert executor._processes == {}
    assert executor.submit(os.getpid).result() in executor._processes
    executor.shutdown()


def test_workers_are_replaced() -> None:
    with Executor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(6)]
    assert [pids[0]] * 2 + [pids[2]] * 2 + [pids[4]] * 2 == pids
    assert len(set(pids)) == 3


def refuse() -> None:
    raise LookupError("not here")


def test_an_initializer_that_fails_breaks_the_executor() -> None:
    with Executor(2, initializer=refuse) as executor:
        with pytest.raises(BrokenProcessPool, match="not here"):
            executor.submit(double, 1).result(PATIENCE)
        with pytest.raises(BrokenProcessPool, match="not here"):
            executor.submit(double, 1)


def test_a_forked_child_has_no_executor(executor: Executor, door: Door) -> None:
    ended = executor.submit(double, 1)
    assert ended.result() == 2
    runs = executor.submit(come_and_wait, door.paths, 1)
    door.wait_for(1)

    def use() -> str:
        with pytest.raises(PoolInherited):
            executor.submit(double, 1)
        with pytest.raises(PoolInherited):
            runs.result()
        assert ended.result() == 2
        executor.shutdown()
        return "fine"

    assert in_child(use) == "fine"
    door.gate.let()
    assert runs.result() == 1


def use_inherited(x: int) -> int:
    return _inherited[0].submit(double, x).result()


def shut_inherited(x: int) -> str:
    _inherited[0].shutdown()
    return repr(_inherited[0])


def test_a_task_that_uses_the_executor_it_is_in(executor: Executor) -> None:
    """The workers are forked while the executor's lock is held."""
    _inherited.append(executor)
    try:
        with pytest.raises(PoolInherited):
            executor.submit(use_inherited, 1).result(PATIENCE)
        assert "shut down" in executor.submit(shut_inherited, 1).result(PATIENCE)
        assert executor.submit(double, 1).result(PATIENCE) == 2
    finally:
        _inherited.clear()


def test_in_an_event_loop(executor: Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(executor, double, x) for x in range(ROUNDS))))

    assert asyncio.run(main()) == [2 * x for x in range(ROUNDS)]


def test_pool_submit_returns_the_same_futures() -> None:
    with Pool(2) as pool:
        future = pool.submit(pow, 2, 10)
        assert isinstance(future, Future)
        assert future.result() == 1024
        error = pool.submit(die_at_three, 3).exception()
        assert type(error) is WorkerDied


AT_THE_VERY_END = """
import atexit

@atexit.register
def submit_last():
    for executor in (used, unused):
        try:
            executor.submit(id, None)
        except RuntimeError as error:
            print(error)

from pairpool import Executor

used, unused = Executor(1), Executor(1)
used.submit(id, None).result()
"""


def test_nothing_is_submitted_after_the_end_of_the_program() -> None:
    done = python("-c", AT_THE_VERY_END)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["cannot schedule new futures after interpreter shutdown"] * 2
    assert done.stderr == ""


TEMPORARY = """
import atexit, itertools, os, shutil, tempfile, threading
late = []
atexit.register(lambda: print(late[0].result()))  # called last of all
from pairpool import Executor

def hold(place):
    with open(f"{place}/gate") as gate:
        gate.read()

def let():
    open(f"{place}/gate", "w").close()

def write(name):
    with open(name, "w") as file:
        file.write("x")

def look(future):
    if future.exception() is not None:
        print(repr(future.exception()))

def go_on():
    threading.main_thread().join()
    late.append(executor.submit(pow, 2, 3))

if __name__ == "__main__":
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place)
    atexit.register(lambda: print([future.done() for future in futures]))
    executor = Executor(1)
    endless = executor.map(abs, itertools.count(), buffersize=2)
    next(endless)
    os.mkfifo(f"{place}/gate")
    held = executor.submit(hold, place)
    threading._register_atexit(let)  # runs when the main thread has ended, and before the function of pairpool
    names = [f"{place}/{x}" for x in range(40)]
    futures = [executor.submit(write, name) for name in names]
    for future in futures:
        future.add_done_callback(look)
    executor.map(write, names)
    threading.Thread(target=go_on).start()
"""


def test_submitted_calls_run_before_atexit_removes_what_they_need() -> None:
    done = python("-c", textwrap.dedent(TEMPORARY))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str([True] * 40), "8"]
    assert done.stderr == ""


HALF_READ = """
import itertools, os
from pairpool import Executor

executor = Executor(1)
endless = executor.map(abs, itertools.count(), buffersize=4)
some = executor.map(abs, range(100))
print(next(endless), next(some), flush=True)
if os.fork():
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_half_read_maps_at_the_end_of_the_program() -> None:
    done = python("-c", HALF_READ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 0", "0"]
    assert done.stderr == ""


AT_EXIT = """
import sys
from pairpool import Executor

def late(x):
    print("ran", x, flush=True)

def again(future):
    try:
        executor.submit(late, 3)
    except RuntimeError as error:
        print(error, flush=True)

if __name__ == "__main__":
    executor = Executor(1)
    executor.submit(late, 1)
    executor.submit(late, 2).add_done_callback(again)
    dropped = Executor(1)
    dropped.submit(late, 4)
    del dropped
"""


def test_submitted_calls_run_at_the_end_of_the_program() -> None:
    done = python("-c", textwrap.dedent(AT_EXIT))
    assert done.returncode == 0, done.stderr
    lines = set(done.stdout.splitlines())
    assert {"ran 1", "ran 2", "ran 4"} < lines
    [other] = lines - {"ran 1", "ran 2", "ran 4"}
    assert other in ("cannot schedule new futures after interpreter shutdown", "ran 3")
    assert done.stderr == ""


IN_A_POOL_OF_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util
from pairpool import Pool

def work():
    util.Finalize(None, print, ["bye"], {"flush": True}, exitpriority=1)

def use():
    with Pool(1) as pool:
        pool.apply(work)
        pool.close()
        pool.join()

if __name__ == "__main__":
    with ThreadPoolExecutor(2) as threads:
        threads.submit(use).result()
"""


def test_a_pool_opened_by_a_thread_of_a_pool_of_threads() -> None:
    """In the worker, that thread is the main thread. The end of a `ThreadPoolExecutor` would wait for it."""
    done = python("-W", "default", "-W", "ignore::DeprecationWarning", "-c", IN_A_POOL_OF_THREADS)
    assert (done.stdout, done.stderr, done.returncode) == ("bye\n", "", 0)


# --- one that is used again and again -----------------------------------------------------------------


@pytest.fixture
def _no_shared_executor() -> Iterator[None]:
    yield
    module: Any = sys.modules["pairpool.executor"]
    if module._shared is not None:
        module._shared.shutdown()
    module._shared = None


@pytest.mark.usefixtures("_no_shared_executor")
def test_get_executor_returns_the_same_executor_again() -> None:
    executor = get_executor(2)
    pids = {executor.submit(os.getpid).result() for _ in range(10)}
    assert get_executor(2) is get_executor() is executor
    assert pids <= set(get_executor(3)._processes)
    assert len(executor._processes) == 3
    other = get_executor(2, initializer=os.getpid)
    assert other is not executor
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(double, 1)
    assert get_executor(2, reuse=True) is other
    other.shutdown()
    assert get_executor(2).submit(double, 4).result() == 8
    assert get_executor(2, reuse=False, kill_workers=True).submit(double, 4).result() == 8


def wait_and_tell(gate: str, reports: str) -> None:
    tasks.wait_for(gate)
    tasks.tell(reports, "through")


@pytest.mark.usefixtures("_no_shared_executor")
def test_callbacks_may_use_an_executor_that_is_being_resized(tmp_path: Path) -> None:
    executor = get_executor(2)
    found: queue.SimpleQueue[Future[int]] = queue.SimpleQueue()
    with Gate(tmp_path / "gate") as gate, Reports(tmp_path / "reports") as reports:

        def grow(_future: Future[int]) -> None:
            gate.let()
            reports.next()
            get_executor(6)  # meanwhile the other future gets its result

        def use(_future: Future[None]) -> None:
            found.put(get_executor().submit(double, 4))

        executor.submit(double, 0).result(PATIENCE)
        other = executor.submit(wait_and_tell, gate.path, reports.path)
        other.add_done_callback(use)
        executor.submit(nap, 1).add_done_callback(grow)
        assert found.get(timeout=PATIENCE).result(PATIENCE) == 8


def test_concurrent_futures_is_a_base() -> None:
    assert issubclass(Executor, concurrent.futures.Executor)
