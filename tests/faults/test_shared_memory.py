"""Tasks that misuse the memory that they share with the master: they harm themselves only."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairpool import TaskTimeout, WorkerDied
from pairpool.scoreboard.board import BOARD_HEADER_SIZE, POOL_AT, SLOT_SIZE, State, Word
from pairpool.transport import payload_shm
from pairpool.transport.payload_shm import BUSY_OFFSET, PayloadReader
from tests.support.pools import MakePool

LARGE = 300_000
"""Bytes of a payload that travels in shared memory."""


def memfds(pid: int | str, name: str) -> Iterator[str]:
    """Yield the paths of the memfds of a process that have this name."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(path) == f"/memfd:{name} (deleted)":
                yield path
        except FileNotFoundError:
            continue  # the descriptor that lists the directory


def cut_off(pid: int | str, name: str) -> list[str]:
    """Try to make the memfds of a process shorter, and return the errors."""
    errors = []
    for path in memfds(pid, name):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, 0)
        except PermissionError as error:
            errors.append(str(error))
        finally:
            os.close(fd)
    return errors


def large_result(_item: object) -> bytes:
    return bytes(LARGE)


def size_of(data: bytes) -> int:
    return len(data)


@pytest.mark.parametrize("name", ["pairpool-board", "pairpool-payload"])
def test_memory_of_the_pool_cannot_be_cut_off_by_a_task(make_pool: MakePool, start_method: str, name: str) -> None:
    pool = make_pool(2)
    pool.map(large_result, range(4), chunksize=1)
    pool.map(size_of, [bytes(LARGE)] * 4, chunksize=1)
    errors = [error for part in pool.map(cut_off_both, [(os.getpid(), name)] * 4, chunksize=1) for error in part]
    assert errors
    assert all("not permitted" in error for error in errors)
    assert pool.map(size_of, pool.map(large_result, range(4), chunksize=1), chunksize=1) == [LARGE] * 4
    assert pool.status().done >= 20


def cut_off_both(where: tuple[int, str]) -> list[str]:
    master, name = where
    return cut_off("self", name) + cut_off(master, name)


class _NeverFree:
    """In place of the layout of a word: stores nothing."""

    def __init__(self, word: Any) -> None:
        self.unpack_from = word.unpack_from

    def pack_into(self, *_arguments: object) -> None:
        pass


def keep_busy(data: bytes) -> int:
    """Let the payload buffers of the master seem to be unread, now and later."""
    word = payload_shm._WORD
    for one in gc.get_objects():
        if isinstance(one, PayloadReader):
            for mapped in one._maps.values():
                word.pack_into(mapped, BUSY_OFFSET, 1)
    payload_shm._WORD = _NeverFree(word)  # type: ignore[assignment]
    return len(data)


def test_a_worker_that_does_not_free_payloads_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool(1)
    assert pool.map(keep_busy, [bytes(LARGE)] * 20, chunksize=1) == [LARGE] * 20
    assert len(list(memfds("self", "pairpool-payload"))) <= 8
    assert pool.status().workers[0].replaced >= 5


# --- the scoreboard -----------------------------------------------------------------------------------


def board() -> memoryview:
    """In a task, return the memory of the whole scoreboard."""
    frame = sys._getframe()
    while frame.f_back is not None:
        words = frame.f_locals.get("words")
        if isinstance(words, memoryview):
            return memoryview(words.obj)
        frame = frame.f_back
    raise LookupError("this is not a task")


def slot(number: int) -> memoryview:
    start = BOARD_HEADER_SIZE + number * SLOT_SIZE
    return board()[start : start + SLOT_SIZE].cast("Q")


def set_limits(item: int) -> int:
    """Let every worker seem to have the limit 0, so that it begins no item."""
    for number in range(2):
        slot(number)[Word.LIMIT] = 0
    return item


def square(x: int) -> int:
    return x * x


@pytest.mark.parametrize("chunksize", [1, 4])
def test_a_limit_that_a_task_has_stored_does_not_keep_batches_from_being_run(
    make_pool: MakePool, start_method: str, chunksize: int
) -> None:
    pool = make_pool(2)
    assert pool.map(set_limits, range(8), chunksize=chunksize) == list(range(8))
    assert pool.map(square, range(20), chunksize=chunksize) == [x * x for x in range(20)]


def vanish(how: str) -> None:
    """Overwrite all that the scoreboard says about the workers, and end this one."""
    for number in range(2):
        words = slot(number)
        for word in range(len(words)):
            words[word] = 0 if how == "zero" else (1 << 64) - 1
        if how == "function":
            words[Word.STATE], words[Word.FUNCTION] = State.FUNCTION, 1
    os._exit(3)


@pytest.mark.parametrize("how", ["zero", "full", "function"])
def test_an_item_whose_worker_leaves_no_trace_of_it_fails_alone(
    make_pool: MakePool, start_method: str, how: str
) -> None:
    """Neither does the item run for ever, nor do its workers count as workers that ended before they could begin."""
    pool = make_pool(2)
    for _ in range(3):
        result = pool.map_async(vanish, [how] * 2, chunksize=2, return_exceptions=True)
        assert pool.map(square, range(300)) == [x * x for x in range(300)]
        assert [type(error) for error in result.get(30)] == [WorkerDied] * 2
    assert pool.map(square, range(10), chunksize=1) == [x * x for x in range(10)]


def overwrite(seed: int) -> int:
    """Overwrite a part of the scoreboard with noise, and perhaps end."""
    noise = random.Random(seed)
    memory = board()
    kind = noise.choice(["all", "zero", "full", "words"])
    if kind == "words":
        for _ in range(50):
            words = slot(noise.randrange(3))
            value = noise.choice([0, 1, 2, 7, 100, 1 << 63, (1 << 64) - 1, noise.randrange(1 << 64)])
            words[noise.randrange(len(words))] = value
    else:
        size = len(memory) - POOL_AT
        memory[POOL_AT:] = {"all": noise.randbytes(size), "zero": bytes(size), "full": b"\xff" * size}[kind]
    if noise.random() < 0.4:
        os._exit(3)
    return seed


@pytest.mark.parametrize("seed", range(2))
def test_noise_on_the_scoreboard_harms_its_own_items_only(make_pool: MakePool, start_method: str, seed: int) -> None:
    pool = make_pool(3)
    for round_ in range(3):
        seeds = [seed * 1000 + round_ * 10 + number for number in range(8)]
        noisy = pool.map_async(overwrite, seeds, chunksize=1 + round_ % 3, return_exceptions=True)
        calls = [pool.apply_async(square, (x,)) for x in range(20)]
        assert pool.map(square, range(2000)) == [x * x for x in range(2000)]
        assert [call.get(30) for call in calls] == [x * x for x in range(20)]
        for own, outcome in zip(seeds, noisy.get(30), strict=True):
            assert outcome == own or isinstance(outcome, WorkerDied)
        status = pool.status()
        assert (status.pid, status.processes, status.state) == (os.getpid(), 3, "RUN")
        assert status.done == (round_ + 1) * 2028
        pool.report()


def test_the_counters_of_the_master_do_not_come_from_the_scoreboard(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.map(square, range(100))
    before = pool.status()
    pool.apply(fill_header)
    after = pool.status()
    assert (after.name, after.pid, after.state, after.start_method) == (
        before.name,
        os.getpid(),
        "RUN",
        before.start_method,
    )
    assert (after.done, after.failed, after.processes, after.calls) == (101, 0, 2, 0)
    assert [worker.pid for worker in after.workers] == [worker.pid for worker in before.workers]
    assert sum(after.rates) <= 101
    pool.terminate()
    assert (pool.status().done, pool.status().name) == (101, before.name)


def fill_header() -> None:
    """Overwrite what the master shows, and the pids of all workers."""
    board()[:BOARD_HEADER_SIZE] = b"\x07" * BOARD_HEADER_SIZE
    for number in range(2):
        words = slot(number)
        words[Word.PID] = words[Word.REPLACED] = words[Word.RSS] = 7


def claim_a_late_start(path: str) -> None:
    """Let this item seem to have begun in the far future, and never end."""
    for number in range(2):
        slot(number)[Word.STARTED] = 1 << 63
    with open(path):  # a FIFO without a writer
        pass


def test_a_time_limit_does_not_trust_a_start_in_the_future(make_pool: MakePool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pool = make_pool(1, task_timeout=0.2)
    with pytest.raises(TaskTimeout):
        pool.apply(claim_a_late_start, (str(tmp_path / "fifo"),))


def leave_a_forged_stack(_item: object) -> None:
    """Write control characters where the stack of a crash belongs, make the file enormous, and crash."""
    path = next(memfds("self", "pairpool-stacks"))
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"\x1b]0;evil\x07 stack\n  File \x9b1A", 0)
    os.ftruncate(fd, 1 << 50)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_stack_of_a_crash_has_no_control_characters(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(WorkerDied) as caught:
        pool.apply(leave_a_forged_stack, (0,))
    assert "evil" in caught.value.stack
    assert all(char.isprintable() or char == "\n" for char in str(caught.value))
    assert pool.apply(square, (3,)) == 9
