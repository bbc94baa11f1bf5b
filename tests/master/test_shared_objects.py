"""`Pool.share`: the object itself in every task, one copy of it for all workers, and nothing of it left behind."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairpool import Pool
from pairpool.linux.memory import memory_usage_of
from pairpool.transport.protocol import SharePacket
from tests.support import shared_tasks, tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool, mp_pool, pids_of
from tests.support.processes import all_ended
from tests.support.recall import recall_one_packet
from tests.support.scripts import python, write_script
from tests.support.waiting import PATIENCE

MEBIBYTE = 1 << 20
OURS = "memfd:pairpool-share"


@pytest.fixture
def array() -> Any:
    return np.arange(MEBIBYTE // 8, dtype=np.float64)


def open_segments() -> int:
    """Memfds of shared objects that this process holds."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += OURS in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def mappings(pid: int) -> int:
    with open(f"/proc/{pid}/maps") as file:
        return sum(OURS in line for line in file)


def await_mappings(pool: Pool, count: int) -> None:
    """Have the workers do things until each has so many mappings: what was posted to them is read in order."""
    deadline = time.monotonic() + PATIENCE
    while {mappings(pid) for pid in pids_of(pool)} != {count}:
        assert time.monotonic() < deadline, [mappings(pid) for pid in pids_of(pool)]
        pool.map(tasks.square, range(8), 1)


@contextmanager
def in_all_workers(pool: Pool, shared: Any, reports: Reports, gate: Gate) -> Iterator[list[int]]:
    """Have every worker hold a task that has read all of the array; gives the workers' pids."""
    count = len(pids_of(pool))
    result = pool.starmap_async(shared_tasks.hold, [(reports.path, gate.path, shared, x) for x in range(count)], 1)
    try:
        yield sorted(int(line) for line in reports.take(count))
    finally:
        gate.let(count)
    assert len(set(result.get(PATIENCE))) == 1


# --- the object itself --------------------------------------------------------------------------------


def test_every_way_into_a_task(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    shared: Any = pool.share(array)
    expected = float(array.sum())
    assert pool.map(shared_tasks.total, [shared] * 5) == [expected] * 5
    assert pool.starmap(shared_tasks.total, [(shared, x) for x in range(5)]) == [expected] * 5
    assert pool.map(partial(shared_tasks.total, shared), range(5)) == [expected] * 5
    assert pool.map(lambda x: float(shared.sum()) + x, range(3)) == [expected + x for x in range(3)]
    assert pool.apply(shared_tasks.total_within, ({"deep": [shared]},)) == expected
    assert pool.apply_async(shared_tasks.keyword, kwds={"array": shared}).get(PATIENCE) == expected
    assert list(pool.imap(shared_tasks.total, (shared for _ in range(5)))) == [expected] * 5
    assert list(pool.imap_unordered(partial(shared_tasks.total, shared), range(5))) == [expected] * 5


def test_it_is_one_object_for_all_tasks_of_a_worker(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    shared = pool.share(array)
    found = set(pool.starmap(shared_tasks.identity_of, [(shared, x) for x in range(40)], 1))
    found |= set(pool.map(partial(shared_tasks.identity_of, shared), range(40), 1))
    assert len(found) == len({pid for pid, _ in found})
    assert pool.starmap(shared_tasks.same, [(shared, shared)] * 4) == [True] * 4


def test_it_is_unpickled_once_a_worker(make_pool: MakePool) -> None:
    pool = make_pool(2)
    shared = pool.share(shared_tasks.Loads())
    assert {times for _, times in pool.starmap(shared_tasks.count_loads, [(shared, x) for x in range(20)], 1)} == {1}


def test_writing_to_it_is_seen_by_the_worker_alone(
    start_method: str, make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(2)
    shared = pool.share(array)
    with in_all_workers(pool, shared, reports, gate):
        pass
    found = pool.starmap(shared_tasks.increment, [(shared, x) for x in range(30)], 1)
    for pid in {pid for pid, _ in found}:
        of_one = [value for one, value in found if one == pid]
        assert sorted(of_one) == [float(x + 1) for x in range(len(of_one))]
    assert array[0] == 0
    assert pool.share(array).nbytes == shared.nbytes
    with make_pool(1) as other:
        assert other.apply(shared_tasks.increment, (shared,))[1] == 1.0


def test_the_caller_may_change_the_original(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    expected = float(array.sum())
    shared = pool.share(array)
    array[:] = 0
    assert pool.apply(shared_tasks.total, (shared,)) == expected


KINDS: dict[str, Callable[[], Any]] = {
    "C": lambda: np.arange(6000, dtype="<i4").reshape(60, 100),
    "F": lambda: np.asfortranarray(np.arange(6000, dtype="<i4").reshape(60, 100)),
    "transposed": lambda: np.arange(6000, dtype="<i4").reshape(10, 6, 100).transpose(1, 0, 2),
    "sliced": lambda: np.arange(60_000, dtype="<i4").reshape(600, 100)[::10, 1:99:2],
    "backwards": lambda: np.arange(6000.0)[::-1],
    "other byte order": lambda: np.arange(6000, dtype=">f8"),
    "empty": lambda: np.zeros((0, 3)),
    "small": lambda: np.arange(3),
    "no dimension": lambda: np.array(5.0),
    "objects": lambda: np.array([{"a": 1}, None, "text"] * 3000, dtype=object),
    "structured": lambda: np.zeros(3000, dtype=[("a", "<i2"), ("b", "<f8")]),
    "dates": lambda: np.arange("2000-01", "2700-01", dtype="datetime64[M]"),
    "strings": lambda: np.array(["a", "bcd"] * 3000),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writable", [True, False])
def test_arrays_of_every_kind(make_pool: MakePool, kind: str, writable: bool) -> None:
    original = KINDS[kind]()
    original.flags.writeable = writable
    pool = make_pool(1)
    shared = pool.share(original)
    name, shape, form, may_write, _c, _f = pool.apply(shared_tasks.describe, (shared,))
    assert (name, shape, form) == ("ndarray", original.shape, original.dtype.str)
    if original.nbytes >= 4096 and not original.dtype.hasobject:
        assert may_write == writable
        assert shared.nbytes < original.nbytes + 2 * 4096 + 1000
        assert pool.apply(shared_tasks.shared_mappings) == 1
    assert pool.apply(shared_tasks.listed, (shared,)) == original.tolist()


def test_the_order_of_an_array_stays(make_pool: MakePool) -> None:
    pool = make_pool(1)
    fortran = np.asfortranarray(np.ones((60, 100)))
    assert pool.apply(shared_tasks.describe, (pool.share(fortran),))[4:] == (False, True)
    assert pool.apply(shared_tasks.describe, (pool.share(fortran.T),))[4:] == (True, False)


def test_a_memmap_arrives_as_an_array_that_takes_no_memory_of_its_own(make_pool: MakePool, tmp_path: Path) -> None:
    np.save(tmp_path / "saved.npy", np.arange(100_000.0))
    original = np.load(tmp_path / "saved.npy", mmap_mode="r")
    pool = make_pool(1)
    assert pool.apply(shared_tasks.describe, (pool.share(original),))[:4] == ("ndarray", (100_000,), "<f8", False)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 100_000])
def test_bytes(start_method: str, make_pool: MakePool, size: int) -> None:
    pool = make_pool(1)
    data = bytes(index % 251 for index in range(size))
    shared = pool.share(data)
    assert pool.apply(tasks.identity, (shared,)) == data
    assert pool.apply(shared_tasks.length_and_type, (shared,)) == (size, "bytes")
    assert pool.starmap(shared_tasks.same, [(shared, shared)]) == [True]


@pytest.mark.parametrize("readonly", [True, False])
def test_memoryviews(make_pool: MakePool, readonly: bool) -> None:
    pool = make_pool(1)
    data = bytearray(range(200)) * 100
    view = memoryview(bytes(data)) if readonly else memoryview(data)
    assert pool.apply(shared_tasks.of_view, (pool.share(view),)) == ("memoryview", "B", (20_000,), readonly, 45)
    cast = view.cast("i", (50, 100))
    assert pool.apply(shared_tasks.of_view, (pool.share(cast),)) == ("memoryview", "i", (50, 100), readonly, 45)
    stepped = pool.share(view[::2])
    assert pool.apply(shared_tasks.of_view, (stepped,)) == ("memoryview", "B", (10_000,), readonly, 90)
    empty = pool.share(view[:0])
    assert pool.apply(shared_tasks.of_view, (empty,)) == ("memoryview", "B", (0,), readonly, 0)
    data.append(1) if readonly else view.release()


def test_an_object_with_an_array_in_it(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    shared: Any = pool.share(shared_tasks.Box("a box", array))
    assert shared.nbytes >= array.nbytes
    assert pool.map(shared_tasks.total_of_box, [shared] * 4, 1) == [("a box", float(array.sum()))] * 4


def test_a_class_that_the_workers_cannot_know(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)

    class Local:
        def __init__(self, content: Any) -> None:
            self.content = content

        def mean(self) -> float:
            return float(self.content.mean())

    local = Local(array)
    shared: Any = pool.share(local)
    assert pool.map(lambda one: one.mean(), [shared] * 3) == [local.mean()] * 3
    (back,) = pool.map(tasks.identity, [shared])
    assert type(back) is Local  # a result that could not go by name, for it came by value


def test_a_shared_object_in_a_shared_object(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    inner = pool.share(array)
    outer: Any = pool.share({"deep": [inner]})
    assert outer.nbytes < 10_000
    expected = float(array.sum())
    assert pool.map(shared_tasks.total_within, [outer] * 4, 1) == [expected] * 4
    del inner
    assert open_segments() == 2
    assert pool.map(shared_tasks.total_within, [outer] * 4, 1) == [expected] * 4
    del outer
    assert open_segments() == 0
    await_mappings(pool, 0)


def test_an_inner_handle_that_was_closed(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    inner = pool.share(array)
    outer: Any = pool.share({"deep": [inner]})
    inner.close()
    assert outer.closed
    with pytest.raises(ValueError, match="closed"):
        pool.apply(shared_tasks.total_within, (outer,))
    with pytest.raises(ValueError, match="closed"):
        pool.share([inner])


def test_a_function_is_shared_like_anything_else(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    shared = pool.share(lambda x: float(array.sum()) + x)
    assert pool.apply(tasks.identity(lambda function: function(1)), (shared,)) == float(array.sum()) + 1


def test_another_pool_of_this_process(start_method: str, make_pool: MakePool, array: Any) -> None:
    one, other = make_pool(1), make_pool(1)
    shared = one.share(array)
    expected = float(array.sum())
    assert one.apply(shared_tasks.total, (shared,)) == other.apply(shared_tasks.total, (shared,)) == expected
    shared.close()
    await_mappings(one, 0)
    await_mappings(other, 0)


# --- workers that come later --------------------------------------------------------------------------


def test_a_replacement_has_it(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    shared = pool.share(array)
    expected = float(array.sum())
    use = partial(shared_tasks.total, shared)
    assert pool.map(use, range(4), 1) == [expected] * 4
    before = pids_of(pool)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert all_ended(before)
    assert pool.map(use, range(4), 1) == [expected] * 4
    assert pool.map(shared_tasks.total, [shared] * 4, 1) == [expected] * 4
    assert not set(before) & set(pids_of(pool))


def test_workers_added_by_resize_have_it(
    start_method: str, make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    assert pool.apply(shared_tasks.total, (shared,)) == float(array.sum())
    pool.resize(3)
    with in_all_workers(pool, shared, reports, gate) as pids:
        assert pids == sorted(pids_of(pool))
        assert [mappings(pid) for pid in pids] == [1, 1, 1]


def test_a_fresh_worker_for_every_task(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2, maxtasksperchild=1)
    shared = pool.share(array)
    found = pool.starmap(shared_tasks.increment, [(shared, x) for x in range(6)], 1)
    assert len({pid for pid, _ in found}) == 6
    assert {value for _, value in found} == {1.0}


def test_a_task_that_dies_with_it(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1, retries=1)
    shared = pool.share(array)
    with pytest.raises(Exception, match=r"arguments: \(<pairpool.Shared ndarray, 1,0\d\d,\d+ bytes>\)"):
        pool.apply(lambda _array: os._exit(3), (shared,))
    assert pool.apply(shared_tasks.total, (shared,)) == float(array.sum())


# --- one copy -----------------------------------------------------------------------------------------


def proportional(pid: int) -> tuple[int, int]:
    """Bytes of the shared mappings that count for this process, and those of them that are its own (proc(5))."""
    share = own = 0
    inside = False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if "-" in name.split()[0]:
                inside = OURS in line
            elif inside and name == "Pss":
                share += int(rest.split()[0]) * 1024
            elif inside and name == "Anonymous":
                own += int(rest.split()[0]) * 1024
    return share, own


def test_four_workers_have_one_copy_between_them(
    start_method: str, make_pool: MakePool, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(4)
    array = np.ones(32 * MEBIBYTE // 8)
    before = {pid: usage.private for pid in pids_of(pool) if (usage := memory_usage_of(pid))}
    shared = pool.share(array)
    with in_all_workers(pool, shared, reports, gate) as pids:
        found = [proportional(pid) for pid in pids]
        private = {pid: usage.private for pid in pids if (usage := memory_usage_of(pid))}
    assert array.nbytes * 0.9 < sum(share for share, _ in found) < array.nbytes * 1.01
    assert sum(own for _, own in found) <= 4 * 4096
    assert all(private[pid] - before[pid] < 8 * MEBIBYTE for pid in pids)


def test_a_memory_limit_does_not_count_it(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(2, memory_limit="16 MiB")
    shared = pool.share(np.ones(64 * MEBIBYTE // 8))
    before = sorted(pids_of(pool))
    with in_all_workers(pool, shared, reports, gate) as pids:
        assert pids == before
    assert len(set(pool.starmap(shared_tasks.total, [(shared, x) for x in range(6)], 1))) == 1
    assert sorted(pids_of(pool)) == before  # one above the limit is replaced after a result at the latest


def test_following_the_advice_of_the_warning(make_pool: MakePool) -> None:
    """Warnings are errors in these tests."""
    pool = make_pool(1)
    large = np.ones(2 * MEBIBYTE // 8)
    with pytest.warns(UserWarning, match=r"pool\.share"):
        pool.map(lambda x: large.sum() + x, range(2))
    shared: Any = pool.share(large)
    found = pool.map(lambda x: float(shared.sum()) + x, range(2))
    assert found == [large.sum(), large.sum() + 1]


# --- freed --------------------------------------------------------------------------------------------


def test_freed_with_the_handle(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    shared = pool.share(array)
    pool.starmap(shared_tasks.total, [(shared, x) for x in range(8)], 1)
    assert open_segments() == 1
    del shared
    assert open_segments() == 0
    await_mappings(pool, 0)


def test_the_workers_are_told_at_once(make_pool: MakePool, array: Any, reports: Reports, gate: Gate) -> None:
    """Nobody has to use the pool again: the mapping goes while the workers are idle."""
    pool = make_pool(2)
    shared = pool.share(array)
    with in_all_workers(pool, shared, reports, gate) as pids:
        pass
    del shared
    deadline = time.monotonic() + PATIENCE
    while any(mappings(pid) for pid in pids):
        assert time.monotonic() < deadline
        os.sched_yield()


def test_freed_with_the_last_user(make_pool: MakePool, array: Any, reports: Reports, gate: Gate) -> None:
    pool = make_pool(2)
    result = pool.apply_async(shared_tasks.hold, (reports.path, gate.path, pool.share(array)))
    reports.next()
    assert open_segments() == 1
    gate.let()
    assert result.get(PATIENCE) == array.sum()
    del result
    deadline = time.monotonic() + PATIENCE
    while open_segments():  # the driver thread lets go of the call a moment after it has told us
        assert time.monotonic() < deadline
        os.sched_yield()
    await_mappings(pool, 0)


def test_freed_with_the_function_that_captured_it(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    assert pool.map(partial(shared_tasks.total, pool.share(array)), range(4), 1) == [array.sum()] * 4
    assert open_segments() == 0
    await_mappings(pool, 0)


def test_a_block_frees_it(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    with pool.share(array) as shared:
        assert pool.map(shared_tasks.total, [shared] * 4, 1) == [array.sum()] * 4
        assert "closed" not in repr(shared)
    assert shared.closed
    assert repr(shared) == "<pairpool.Shared ndarray, closed>"
    assert open_segments() == 0
    await_mappings(pool, 0)
    shared.close()


def test_closed_while_a_task_uses_it(make_pool: MakePool, array: Any, reports: Reports, gate: Gate) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    result = pool.apply_async(shared_tasks.hold, (reports.path, gate.path, shared))
    reports.next()
    shared.close()
    assert open_segments() == 0
    gate.let()
    assert result.get(PATIENCE) == array.sum()
    await_mappings(pool, 0)


def test_what_a_task_has_kept_stays(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    with pool.share(array) as shared:
        pool.apply(shared_tasks.keep, (shared,))
    assert pool.apply(shared_tasks.use_kept) == array.sum()
    assert pool.apply(shared_tasks.shared_mappings) == 1


def test_a_circle_of_references_is_freed(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    with pool.share(shared_tasks.Circle(array)) as shared:
        assert pool.apply(shared_tasks.same, (shared, shared))
    assert pool.apply(shared_tasks.shared_mappings) == 0


@pytest.mark.parametrize("end", ["terminate", "close", "drop"])
def test_freed_with_the_pool(start_method: str, make_pool: MakePool, array: Any, end: str) -> None:
    pool = Pool(1, start_method=start_method)
    shared, unused = pool.share(array), pool.share(b"unused")
    assert pool.apply(shared_tasks.total, (shared,)) == array.sum()
    assert open_segments() == 2
    if end == "close":
        pool.close()
        assert "closed" not in repr(shared)
        with pytest.raises(ValueError, match=r"^Pool not running$"):
            pool.share(array)
        pool.join()
    elif end == "terminate":
        pool.terminate()
        with pytest.raises(ValueError, match=r"^Pool not running$"):
            pool.share(array)
    else:
        with pytest.warns(ResourceWarning, match="unclosed"):
            del pool
    assert shared.closed
    assert unused.closed
    assert open_segments() == 0


AT_EXIT = """
import pairpool

class Circle:
    def __init__(self, handle):
        self.me, self.handle = self, handle

if __name__ == "__main__":
    closed = pairpool.Pool(1)
    early = closed.share(b"x" * 10_000)
    closed.terminate()
    with pairpool.Pool(1) as pool:
        late, circle = pool.share(b"x" * 10_000), Circle(pool.share(b"y" * 10_000))
        print(pool.apply(len, (late,)), pool.apply(len, (circle.handle,)))
"""


def test_handles_that_are_left_at_the_end_of_the_program(tmp_path: Path) -> None:
    done = python(write_script(tmp_path, AT_EXIT))
    assert (done.stdout, done.stderr, done.returncode) == ("10000 10000\n", "", 0)


def test_calls_still_to_be_sent_fail(make_pool: MakePool, array: Any, reports: Reports, gate: Gate) -> None:
    """Each alone: their neighbours are not touched."""
    pool = make_pool(1, chunksize=1)
    shared = pool.share(array)
    running = pool.apply_async(shared_tasks.hold, (reports.path, gate.path, shared))
    reports.next()
    queued = pool.apply_async(shared_tasks.total, (shared,))
    captured = pool.apply_async(partial(shared_tasks.total, shared))
    plain = pool.apply_async(tasks.square, (7,))
    shared.close()
    gate.let()
    assert running.get(PATIENCE) == array.sum()
    for result in (queued, captured):
        with pytest.raises(ValueError, match="closed"):
            result.get(PATIENCE)
    assert plain.get(PATIENCE) == 49


def test_functions_that_captured_what_was_closed_fail_alone(
    make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    """Calls of different functions in one batch, one of them known to the worker already."""
    pool = make_pool(1)
    shared = pool.share(array)
    use = partial(shared_tasks.total, shared)
    for _ in range(3):
        pool.apply(use)
    running = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
    reports.next()
    calls = [pool.apply_async(use if x % 3 == 1 else tasks.square, (x,)) for x in range(12)]
    shared.close()
    gate.let()
    assert running.get(PATIENCE) == 1
    for x, call in enumerate(calls):
        if x % 3 == 1:
            with pytest.raises(ValueError, match="closed"):
                call.get(PATIENCE)
        else:
            assert call.get(PATIENCE) == x * x


def test_threads_that_share_and_drop(make_pool: MakePool) -> None:
    pool = make_pool(2)
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(45):
                value = float(number * 100 + turn)
                shared = pool.share(np.full(2000, value))
                found = pool.starmap(shared_tasks.total, [(shared, x) for x in range(3)])
                if found != [value * 2000] * 3:
                    wrong.append(found)
                if turn % 3 == 0:
                    shared.close()
                elif turn % 3 == 1:  # left to the collector, which may be at work on others while one is made
                    circle: list[Any] = [shared]
                    circle.append(circle)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert open_segments() == 0
    await_mappings(pool, 0)


# --- packets that were not read -----------------------------------------------------------------------


def test_a_worker_that_lacks_the_segment_of_an_argument(
    make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    items = [(reports.path, gate.path, None if x == 0 else shared, x) for x in range(4)]
    results = pool.imap(partial(shared_tasks.star, shared_tasks.tell_and_total), items, 1)
    reports.next()
    assert isinstance(recall_one_packet(pool), SharePacket)
    gate.let()
    assert list(results) == [0.0, *[array.sum()] * 3]


def test_a_worker_that_lacks_the_segment_of_a_function(
    make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    first = pool.imap(partial(tasks.tell_and_hold, reports.path, gate.path), [1], 1)
    reports.next()
    second = pool.imap(partial(shared_tasks.total, shared), range(3), 1)
    assert isinstance(recall_one_packet(pool), SharePacket)
    gate.let()
    assert list(first) == [1]
    assert list(second) == [array.sum()] * 3


def test_a_call_is_cancelled_before_the_worker_has_read_of_the_segment(
    make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    first = pool.imap(partial(tasks.tell_and_hold, reports.path, gate.path), [1], 1)
    reports.next()
    pool.imap(partial(shared_tasks.total, shared), range(3), 1).cancel()
    second = pool.imap(shared_tasks.total, [shared] * 3, 1)
    gate.let()
    assert list(first) == [1]
    assert list(second) == [array.sum()] * 3
    assert mappings(pids_of(pool)[0]) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_a_segment_that_waits_for_room(
    make_pool: MakePool, array: Any, reports: Reports, gate: Gate, closed: bool
) -> None:
    """Its descriptor stays open until it was sent, even if the handle is closed meanwhile."""
    pool = make_pool(1)
    shared = pool.share(array)
    filling: list[Any] = [b"x" * 90_000] * 3
    items = [(reports.path, gate.path, what, x) for x, what in enumerate([None, *filling, shared])]
    results = pool.imap(partial(shared_tasks.star, shared_tasks.tell_or_measure), items, 1)
    reports.next()
    (member,) = pool._engine.workers.members.values()
    assert member.wants_room
    assert len(member.held) == 5
    if closed:
        shared.close()
        assert open_segments() == 1
    gate.let()
    assert list(results) == [0.0, *[90_000.0] * 3, array.sum()]
    assert open_segments() == (0 if closed else 1)


def test_a_segment_that_waits_for_room_when_the_pool_ends(
    make_pool: MakePool, array: Any, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    filling: list[Any] = [b"x" * 90_000] * 3
    items = [(reports.path, gate.path, what, x) for x, what in enumerate([None, *filling, shared])]
    results = pool.imap(partial(shared_tasks.star, shared_tasks.tell_or_measure), items, 1)
    reports.next()
    del results
    pool.terminate()
    assert open_segments() == 0


# --- what cannot be -----------------------------------------------------------------------------------


def test_what_cannot_be_pickled(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    with pytest.raises(TypeError, match="lock"):
        pool.share([array, threading.Lock()])
    with pytest.raises(tasks.Odd, match="no"):
        pool.share([array, shared_tasks.Refuses()])
    assert open_segments() == 0


def test_what_cannot_be_unpickled_fails_its_own_items(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(2)
    bad, good = pool.share(shared_tasks.Unwilling()), pool.share(array)
    found: list[Any] = pool.map(shared_tasks.kind_of, [good, bad, 3, bad], return_exceptions=True)
    assert [found[0], found[2]] == ["ndarray", "int"]
    for error in (found[1], found[3]):
        assert isinstance(error, LookupError)
        assert str(error) == "'not here'" or "not here" in str(error)
    pids = pids_of(pool)
    with pytest.raises(LookupError, match="not here"):
        pool.map(partial(shared_tasks.kind_of, bad), [1, 2])
    assert pids_of(pool) == pids


def test_no_room_for_it(make_pool: MakePool, array: Any) -> None:
    """RLIMIT_FSIZE bounds memfds, too."""
    pool = make_pool(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 * 16, hard))
    try:
        with pytest.raises(OSError, match="large"):
            pool.share(array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_segments() == 0
    assert pool.apply(shared_tasks.total, (pool.share(array),)) == array.sum()


def test_a_worker_that_cannot_map_it(make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    pid = pool.apply(shared_tasks.limit_address_space)
    with pytest.raises(OSError, match="memory"):
        pool.apply(shared_tasks.total, (pool.share(np.ones(64 * MEBIBYTE // 8)),))
    assert pool.apply(shared_tasks.total, (pool.share(array),)) == array.sum()
    assert pids_of(pool) == [pid]


def test_a_handle_in_an_inherited_global(make_pool: MakePool, array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker sees the handle, which is good for nothing there."""
    monkeypatch.setattr(shared_tasks, "inherited", make_pool(1).share(array))
    pool = make_pool(1)
    assert pool.apply(shared_tasks.kind_of_inherited) == "Shared"
    with pytest.raises(mp_pool.MaybeEncodingError, match=r"understood by the tasks"):
        pool.apply(shared_tasks.return_inherited)


def test_handles_go_to_tasks_alone(start_method: str, make_pool: MakePool, array: Any) -> None:
    pool = make_pool(1)
    shared = pool.share(array)
    with pytest.raises(TypeError, match=r"pass it to such a task as an argument"):
        pickle.dumps(shared)
    with pytest.raises(TypeError, match=r"use the object that was shared"):
        make_pool(1, initializer=print, initargs=(shared,), start_method="forkserver")


def test_a_forked_process_cannot_use_a_handle(make_pool: MakePool, array: Any) -> None:
    shared = make_pool(1).share(array)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "nothing was raised"
        try:
            with Pool(1) as pool:
                pool.apply(shared_tasks.total, (shared,))
        except TypeError as error:
            text = str(error)
        finally:
            del shared
            os.write(write, text.encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert b"understood by the tasks of pools of the process that made it" in file.read()
    os.waitpid(pid, 0)
    assert not shared.closed


def test_the_memory_is_sealed(make_pool: MakePool, array: Any) -> None:
    shared = make_pool(1).share(array)
    memory = shared._segment._memory
    assert memory is not None
    with pytest.raises(PermissionError):
        os.pwrite(memory.fd.fileno(), b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd.fileno(), 0)


def test_what_a_handle_shows(make_pool: MakePool) -> None:
    shared = make_pool(1).share(np.zeros(100_000, np.uint8))
    assert 100_000 <= shared.nbytes <= 100_000 + 3 * 4096
    assert repr(shared) == f"<pairpool.Shared ndarray, {shared.nbytes:,} bytes>"
