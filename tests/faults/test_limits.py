"""Test the limits of time, memory and retries, and initializers that fail."""

from __future__ import annotations

import math
import os
import pickle
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairpool import InitializerFailed, Pool, TaskTimeout, WorkerDied
from pairpool.linux import cgroup, memory
from pairpool.master import watchdog
from pairpool.transport.failures import REPR_CHARACTERS, short_call, short_repr
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.processes import all_ended
from tests.support.waiting import PATIENCE

LIMIT = 0.25
"""Seconds. Items that must stay within this limit take microseconds."""


# --- time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 7, 40])
def test_only_the_item_over_its_limit_fails(
    start_method: str, make_pool: MakePool, gate: Gate, chunksize: int | None
) -> None:
    pool = make_pool(2)
    found: list[Any] = pool.starmap(
        tasks.hold_zero,
        [(gate.path, item) for item in [3, 2, 1, 0, 1, 2, 3] * 6],
        chunksize,
        task_timeout=LIMIT,
        return_exceptions=True,
    )
    assert any(error.stack for error in found if isinstance(error, TaskTimeout))
    late = {index: error for index, error in enumerate(found) if isinstance(error, BaseException)}
    assert list(late) == list(range(3, 42, 7))
    assert [value for index, value in enumerate(found) if index not in late] == [3, 2, 1, 1, 2, 3] * 6
    for index, error in late.items():
        assert isinstance(error, TaskTimeout)
        assert isinstance(error, TimeoutError)
        assert (error.function, error.index, error.limit, error.doing) == ("hold_zero", index, LIMIT, "running")
        assert error.arguments.endswith(", 0)")
        assert "hold_zero" in error.stack or not error.stack  # the worker has little time to write its stack
        assert "its time limit" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_finished_items_of_an_ended_batch_do_not_run_again(make_pool: MakePool, gate: Gate, tmp_path: Path) -> None:
    pool = make_pool(1, task_timeout=1.0, chunksize=4)
    journal = tmp_path / "journal"

    def work(item: int) -> int:
        tasks.tell(str(journal), item)
        if item == 3:
            tasks.wait_for(gate.path)
        return item

    found: list[Any] = pool.map(work, range(6), return_exceptions=True)
    assert [found[item] for item in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]
    assert sorted(journal.read_text().split()) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("how", ["ignores SIGTERM", "holds the GIL", "is stopped", "blocks all signals"])
def test_a_task_that_resists_its_end_is_ended(start_method: str, make_pool: MakePool, how: str) -> None:
    pool = make_pool(1)
    began = time.monotonic()
    with pytest.raises(TaskTimeout):
        pool.apply(tasks.hold_on, (how,), task_timeout=LIMIT)
    assert LIMIT <= time.monotonic() - began < PATIENCE
    assert pool.apply(tasks.square, (3,)) == 9


def test_the_limit_counts_for_each_item(make_pool: MakePool) -> None:
    pool = make_pool(2)
    lengths = [0.02] * 60  # each takes a fiftieth of the limit, and the whole batch takes longer than it
    assert pool.map(tasks.busy_for, lengths, len(lengths), task_timeout=1.0) == lengths


def test_processes_that_the_task_started_end_with_it(
    start_method: str, make_pool: MakePool, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.start_sleeper_and_hold, (reports.path, gate.path, 0), task_timeout=LIMIT)
    pids = [int(word) for word in re.findall(r"\d+", reports.next())]
    with pytest.raises(TaskTimeout):
        result.get(PATIENCE)
    assert all_ended(pids)


def test_limits_of_the_pool_and_of_calls(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, task_timeout=LIMIT)
    for call in (
        lambda: pool.apply(tasks.wait_for, (gate.path,)),
        lambda: pool.apply_async(tasks.wait_for, (gate.path,)).get(PATIENCE),
        lambda: pool.map(tasks.wait_for, [gate.path]),
        lambda: pool.map_async(tasks.wait_for, [gate.path]).get(PATIENCE),
        lambda: pool.starmap(tasks.hold_zero, [(gate.path, 0)]),
        lambda: pool.starmap_async(tasks.hold_zero, [(gate.path, 0)]).get(PATIENCE),
        lambda: next(pool.imap(tasks.wait_for, [gate.path])),
        lambda: next(pool.imap_unordered(tasks.wait_for, [gate.path])),
    ):
        with pytest.raises(TaskTimeout):
            call()
    assert pool.apply(tasks.busy_for, (LIMIT * 2,), task_timeout=math.inf) == LIMIT * 2


def test_a_limit_holds_while_the_reader_is_busy(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    results = pool.imap(tasks.tell_pid_and_wait, [(reports.path, gate.path)], task_timeout=LIMIT)
    pid = int(reports.next())
    assert all_ended([pid])  # in the meantime no thread asks for the result
    with pytest.raises(TaskTimeout):
        next(results)


def test_calls_with_limits_of_their_own_do_not_share(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    held = pool.apply_async(tasks.wait_for, (gate.path,))
    short = [pool.apply_async(tasks.wait_for, (gate.path,), task_timeout=LIMIT) for _ in range(2)]
    free = [pool.apply_async(tasks.square, (x,)) for x in range(3)]
    gate.let()
    held.get(PATIENCE)
    for result in short:
        with pytest.raises(TaskTimeout):
            result.get(PATIENCE)
    assert [result.get(PATIENCE) for result in free] == [0, 1, 4]


@pytest.mark.parametrize("wrong", [0, -1, math.nan])
def test_invalid_time_limits(wrong: float) -> None:
    with pytest.raises(ValueError, match="task_timeout must be positive"):
        Pool(1, task_timeout=wrong)


def test_arguments_of_the_wrong_kind(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(TypeError, match="task_timeout"):
        pool.map(tasks.square, [1], task_timeout="1")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="retries"):
        pool.map(tasks.square, [1], retries=-1)
    with pytest.raises(TypeError, match="retry_on"):
        pool.map(tasks.square, [1], retries=1, retry_on=(3,))  # type: ignore[arg-type]
    assert pool.map(tasks.square, [2]) == [4]


# --- tries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_items_whose_worker_died_are_retried(
    start_method: str, make_pool: MakePool, tmp_path: Path, chunksize: int | None
) -> None:
    pool = make_pool(2)
    journal = str(tmp_path / "journal")
    done = pool.starmap(tasks.fail_first, [(journal, "exit", 2, x) for x in range(10)], chunksize, retries=2)
    assert done == list(range(10))
    tries = Path(journal).read_text().split()
    if chunksize == 1:
        assert sorted(tries) == sorted([str(x) for x in range(10)] * 3)


def test_retries_are_limited(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2, retries=2)
    journal = str(tmp_path / "journal")
    found: list[Any] = pool.starmap(
        tasks.fail_first, [(journal, "exit", 9 * (x == 3), x) for x in range(6)], 1, return_exceptions=True
    )
    assert isinstance(found[3], WorkerDied)
    assert found[3].__notes__ == ["the item was run 3 times"]
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5]
    assert sorted(Path(journal).read_text().split()) == sorted("0123334 5".replace(" ", ""))


def test_nothing_is_retried_without_a_request(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    journal = tmp_path / "journal"
    for how, error in (("exit", WorkerDied), ("raise", ValueError)):
        with pytest.raises(error):
            pool.starmap(tasks.fail_first, [(str(journal), how, 1, 0)], 1)
        assert journal.read_text() == "0\n"
        journal.unlink()
    with pytest.raises(ValueError, match="try 1"):  # retries= is about deaths, not about exceptions
        pool.starmap(tasks.fail_first, [(str(journal), "raise", 1, 0)], 1, retries=3)
    assert journal.read_text() == "0\n"


def test_exceptions_and_timeouts_named_in_retry_on_are_retried(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    journal = str(tmp_path / "journal")
    todo = [(journal, how, 2, x) for x, how in enumerate(["raise", "hang", "exit"])]
    assert pool.starmap(tasks.fail_first, todo, retries=2, retry_on=(ValueError, TimeoutError), task_timeout=LIMIT) == [
        0,
        1,
        2,
    ]
    call = pool.apply_async(tasks.fail_first, (journal, "raise", 1, 7), retries=1, retry_on=ValueError)
    assert call.get(PATIENCE) == 7


def test_a_cancelled_call_is_not_retried(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.tell_pid_and_wait, ((reports.path, gate.path),), retries=3)
    pid = int(reports.next())
    assert result.cancel(kill=True)
    assert all_ended([pid])
    assert pool.apply(tasks.square, (3,)) == 9
    with pytest.raises(TimeoutError):
        reports.next(0.2)


# --- memory -------------------------------------------------------------------------------------------


def test_a_task_that_uses_too_much_memory_is_ended(start_method: str, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2, memory_limit="64MB")
    found: list[Any] = pool.starmap(
        tasks.use_memory, [(gate.path, size) for size in (1, 200, 1)], 1, return_exceptions=True
    )
    assert found[::2] == [1, 1]
    error = found[1]
    assert isinstance(error, WorkerDied)
    assert re.fullmatch(r"memory_limit: it used [\d.]+ MiB of its own, and the limit is 61.0 MiB", error.cause)
    assert "memory_limit" in str(error)


def test_a_worker_that_keeps_too_much_memory_is_replaced(
    start_method: str, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LIMITED_MEMORY_LOOK_EVERY_S", 1000.0)  # no look while the worker grows
    pool = make_pool(1, memory_limit=32 * 2**20)
    small = pool.apply(tasks.keep_memory, (1,))
    assert pool.apply(tasks.process_id) == small
    large = pool.apply(tasks.keep_memory, (48,))
    assert large == small
    assert pool.apply(tasks.process_id) != large


def test_inherited_memory_is_not_counted(make_pool: MakePool) -> None:
    ballast = b"x" * (128 * 2**20)
    pool = make_pool(1, memory_limit=32 * 2**20)
    first = pool.apply(tasks.process_id)
    assert [pool.apply(tasks.process_id) for _ in range(5)] == [first] * 5
    assert len(ballast) == 128 * 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [(5, 5), ("5", 5), ("2GB", 2 * 10**9), ("2 GiB", 2**31), ("1.5k", 1500), ("3m", 3 * 10**6), ("1 kib", 1024)],
)
def test_sizes_with_units(text: int | str, size: int) -> None:
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("wrong", ["", "GB", "-1", 0, "2 XB", "1e9"])
def test_invalid_memory_limits(wrong: int | str) -> None:
    with pytest.raises(ValueError, match="size"):
        Pool(1, memory_limit=wrong)


def test_the_counter_of_oom_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    monkeypatch.setattr(cgroup, "_memory_group", lambda: str(tmp_path))
    counter = cgroup.OomCounter()
    assert not counter.advanced()
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 4\n")
    assert counter.advanced()
    assert not counter.advanced()
    assert counter.limit() == 1 << 20


# --- causes -------------------------------------------------------------------------------------------

CAUSES: dict[Callable[[], None], str] = {
    tasks.exit_now: "os._exit",
    tasks.segfault: "fault in native code",
    tasks.abort: "native code called abort",
    tasks.kill_self: "killed from outside",
}


@pytest.mark.parametrize("how", CAUSES)
def test_an_error_names_the_likely_cause_and_gives_advice(make_pool: MakePool, how: Callable[[], None]) -> None:
    pool = make_pool(1)
    with pytest.raises(WorkerDied) as caught:
        pool.apply(how)
    error = caught.value
    assert CAUSES[how] in error.cause
    assert error.advice
    assert "\n" not in error.cause + error.advice
    assert f"cause: {error.cause}" in str(error)
    assert f"advice: {error.advice}" in str(error)
    assert error.signal == ("" if (error.exitcode or 0) >= 0 else signal.Signals(-(error.exitcode or 0)).name)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_out_of_memory_kill_is_distinguished_from_other_kills(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    monkeypatch.setattr(cgroup.OomCounter, "advanced", lambda _counter: True)
    with pytest.raises(WorkerDied, match="cause: out of memory: the kernel's OOM killer"):
        pool.apply(tasks.kill_self)
    with pytest.raises(WorkerDied, match=r"cause: os\._exit"):
        pool.apply(tasks.exit_now)


def test_an_error_shows_the_arguments(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(WorkerDied) as caught:
        pool.map(tasks.exit_with, [(3, "x" * 1000, b"y" * 10**6, [1] * 1000)])
    assert len(caught.value.arguments) <= REPR_CHARACTERS
    assert caught.value.arguments.startswith("(3, 'xxx")
    assert "1,000,000 bytes" in caught.value.arguments


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (5, "5"),
        ("a\nb", r"'a\nb'"),
        (b"z" * 25, "<bytes, 25 bytes>"),
        (memoryview(b"12345"), "<memoryview, 5 bytes>"),
        (1 << 5000, "<int of 5001 bits>"),
        ([0] * 10, "[0, 0, 0, 0, ...]"),
    ],
)
def test_short_reprs(thing: Any, text: str) -> None:
    assert short_repr(thing) == text


def test_short_reprs_never_raise_and_are_short() -> None:
    assert "Unprintable" in short_repr(tasks.Unprintable())
    for thing in ("é" * 10**6, dict.fromkeys(range(500), "y" * 500), [[["deep"] * 9] * 9] * 9):
        assert len(short_repr(thing)) <= REPR_CHARACTERS
    assert short_call((1, "two"), {"three": 3}) == "(1, 'two', three=3)"
    assert short_call(range(6)) == "(0, 1, 2, 3, …)"


# --- initializers -------------------------------------------------------------------------------------


def test_an_initializer_that_hangs(start_method: str, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2, initializer=tasks.wait_for, initargs=(gate.path,), start_timeout=0.5)
    for _ in range(2):
        with pytest.raises(InitializerFailed, match=r"had not returned within 0.5 s \(start_timeout\)") as caught:
            pool.map(tasks.square, range(3))
    assert "in wait_for" in str(caught.value)


def test_an_initializer_within_its_time_limit(make_pool: MakePool) -> None:
    pool = make_pool(2, initializer=tasks.busy_for, initargs=(0.1,), start_timeout=PATIENCE)
    assert pool.map(tasks.square, range(3)) == [0, 1, 4]


def test_an_initializer_that_sometimes_fails_in_replacements(
    start_method: str, make_pool: MakePool, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    pool = make_pool(1, initializer=tasks.fail_at, initargs=(str(journal), [1, 2, 4]))
    pids = set()
    for _ in range(3):
        pids.add(pool.apply(tasks.process_id))
        with pytest.raises(WorkerDied):
            pool.apply(tasks.exit_now)
    assert len(pids) == 3
    assert len(journal.read_text()) >= 6  # three starts succeeded, and three failed before them


def test_an_initializer_that_always_fails_in_replacements(
    start_method: str, make_pool: MakePool, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    pool = make_pool(1, initializer=tasks.fail_at, initargs=(str(journal), range(1, 99)))
    assert pool.apply(tasks.square, (3,)) == 9
    with pytest.raises(WorkerDied):
        pool.apply(tasks.exit_now)
    for _ in range(2):
        with pytest.raises(InitializerFailed, match="start 3"):
            pool.apply(tasks.square, (3,))
    assert len(journal.read_text()) == 4


@pytest.mark.parametrize("how", ["raise", "exit", "abort"])
def test_a_failing_initializer_is_not_repeated_at_the_start(
    start_method: str, make_pool: MakePool, tmp_path: Path, how: str
) -> None:
    journal = tmp_path / "journal"
    pool = make_pool(2, initializer=tasks.fail_first, initargs=(str(journal), how, 99, 0))
    for _ in range(2):
        with pytest.raises(InitializerFailed):
            pool.map(tasks.square, range(3))
    assert len(journal.read_text().split()) <= 2


def test_a_worker_killed_in_its_initializer_is_replaced(
    start_method: str, make_pool: MakePool, gate: Gate, reports: Reports
) -> None:
    pool = make_pool(1, initializer=tasks.tell_pid_and_wait, initargs=((reports.path, gate.path),))
    result = pool.apply_async(tasks.square, (3,))
    os.kill(int(reports.next()), signal.SIGKILL)
    reports.next()
    gate.let()
    assert result.get(PATIENCE) == 9
