"""The Python stacks of workers: whatever the task is at, and without a trace in what it returns."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pairpool import Pool
from pairpool.scoreboard.stacks import ALL, IDLE, MAIN, clean, read_stack, read_stacks
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.waiting import PATIENCE

# --- what workers are at ------------------------------------------------------------------------------


def spin(path: str) -> str:
    """Loop without a call until the first byte of a file is set."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 1) as flag:
        while not flag[0]:
            pass
    return "spun"


def spin_beside_threads(path: str) -> str:
    """The same with two threads that do it as well."""
    threads = [threading.Thread(target=spin, args=(path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    spin(path)
    for thread in threads:
        thread.join()
    return "spun thrice"


def add_up(count: int) -> int:
    """Native code that keeps the GIL, for half a second or so."""
    return sum(range(count))


def add_for_ever() -> int:
    return sum(itertools.repeat(0))


def add_beside_thread(path: str) -> int:
    """The same with another thread that waits for the GIL."""
    threading.Thread(target=spin, args=(path,), daemon=True).start()
    return add_for_ever()


def nap(seconds: float) -> float:
    began = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - began


def deadlock(_item: object) -> None:
    """Sleep for ever in native code that no signal brings back to Python."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def wait_in_threads(gate: str) -> list[None]:
    with ThreadPoolExecutor(2) as executor:
        return list(executor.map(tasks.wait_for, [gate] * 2))


def wait_for_program(gate: str) -> int:
    return subprocess.run(["head", "-c", "1", gate], stdout=subprocess.DEVNULL, check=True).returncode


def block_signals(path: str) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, {ALL, MAIN})
    try:
        return spin(path)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {ALL, MAIN})


def close_all(path: str) -> str:
    for path_of in Path("/proc/self/fd").iterdir():
        if path_of.is_symlink() and os.readlink(path_of) == "/memfd:pairpool-stack (deleted)":
            os.close(int(path_of.name))
    return spin(path)


def dive(depth: int, path: str) -> str:
    return dive(depth - 1, path) if depth else spin(path)


class Flag:
    """A file whose first byte ends `spin`."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"\0")
        self.path = str(path)

    def raise_(self) -> None:
        with open(self.path, "r+b") as file:
            file.write(b"1")


@pytest.fixture
def flag(tmp_path: Path) -> Flag:
    return Flag(tmp_path / "flag")


def until(stack: Callable[[], str], pattern: str) -> str:
    """Look until the stack matches: the task may not have got there yet."""
    deadline = time.monotonic() + PATIENCE
    while True:
        text = stack()
        if re.search(pattern, text):
            return text
        assert time.monotonic() < deadline, f"no {pattern!r} in {text!r}"


def of_only(pool: Pool) -> Callable[[], str]:
    return lambda: pool.stacks().get(0, "")


# --- tests --------------------------------------------------------------------------------------------


def test_python_loop(make_pool: MakePool, start_method: str, flag: Flag) -> None:
    pool = make_pool(2)
    result = pool.map_async(spin, [flag.path])
    busy = until(lambda: "\n".join(pool.stacks().values()), f"(?s)in spin.*{IDLE}|{IDLE}.*in spin")
    assert busy.splitlines().count(IDLE) == 1
    frames = [line for line in busy.splitlines() if line != IDLE]
    assert len(frames) == 1, "the frames below the task are not shown"
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]


@pytest.mark.parametrize("call", ["map", "apply", "starmap"])
def test_only_the_task_is_shown(make_pool: MakePool, flag: Flag, call: str) -> None:
    pool = make_pool(1)
    result: Any
    if call == "map":
        result = pool.map_async(spin, [flag.path])
    elif call == "apply":
        result = pool.apply_async(dive, (2, flag.path))
    else:
        result = pool.starmap_async(dive, [(2, flag.path)])
    text = until(of_only(pool), "in spin")
    assert len(text.splitlines()) == (1 if call == "map" else 4)
    assert "pairpool/worker/" not in text
    flag.raise_()
    result.get(PATIENCE)


def test_native_code_that_holds_the_gil(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.apply_async(add_for_ever)
    until(of_only(pool), "in add_for_ever")


def test_native_code_goes_on(make_pool: MakePool) -> None:
    pool = make_pool(1)
    result = pool.map_async(add_up, [40_000_000])
    while not result.ready():
        pool.stacks()
    assert result.get() == [sum(range(40_000_000))]


def test_sleep_goes_on_for_as_long(make_pool: MakePool) -> None:
    pool = make_pool(1)
    result = pool.map_async(nap, [0.5])
    until(of_only(pool), "in nap")
    for _ in range(20):
        assert "in nap" in pool.stacks()[0]
    [slept] = result.get(PATIENCE)
    assert slept >= 0.5


def test_native_code_that_sleeps(make_pool: MakePool, start_method: str) -> None:
    pool = make_pool(1)
    pool.map_async(deadlock, [0])
    until(of_only(pool), r'^  File "[^"]*test_stacks.py", line \d+ in deadlock$')
    for _ in range(3):
        assert pool.stacks()[0].endswith("in deadlock")


def test_threads_that_a_task_waits_for(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    result = pool.map_async(wait_in_threads, [gate.path])
    text = until(of_only(pool), r"(?s)in wait_for\n.*in wait_for\n")
    assert re.match(r"(?s)main thread:\n.*in wait_in_threads\nthread 0x", text)
    gate.let(2)
    assert result.get(PATIENCE) == [[None, None]]


def test_wait_for_a_program(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    result = pool.map_async(wait_for_program, [gate.path])
    text = until(of_only(pool), "subprocess.py")
    assert text.splitlines()[-1].endswith("in wait_for_program")
    gate.let()
    assert result.get(PATIENCE) == [0]


def test_read_from_a_fifo(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    result = pool.starmap_async(tasks.tell_and_hold, [(reports.path, gate.path, 7)])
    reports.next()
    assert "in wait_for" in until(of_only(pool), "in wait_for")
    gate.let()
    assert result.get(PATIENCE) == [7]


def test_builtin_function(make_pool: MakePool) -> None:
    pool = make_pool(1)
    result = pool.map_async(time.sleep, [0.3])
    until(of_only(pool), "in native code")
    assert result.get(PATIENCE) == [None]


def test_idle(make_pool: MakePool, start_method: str) -> None:
    pool = make_pool(2)
    pool.map(tasks.square, range(10))
    deadline = time.monotonic() + PATIENCE
    while set(pool.stacks().values()) != {IDLE}:  # they may be on their way to the wait
        assert time.monotonic() < deadline
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]


def test_threads_of_a_task(make_pool: MakePool, start_method: str, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.map_async(spin_beside_threads, [flag.path])
    text = until(of_only(pool), r"(?s)^main thread:.*in spin_beside.*\nthread 0x.*\nthread 0x")
    for _ in range(100):  # to look at threads that run ends a process, if it is done the wrong way
        text = pool.stacks()[0]
    assert text.startswith("main thread:\n")
    assert text.count("in spin\n") == 3
    assert "_bootstrap" not in text
    assert "show_threads" not in text
    flag.raise_()
    assert result.get(PATIENCE) == ["spun thrice"]


def test_threads_that_cannot_be_shown(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    pool.apply_async(add_beside_thread, (flag.path,))
    text = until(of_only(pool), "cannot be looked at meanwhile: 1")
    assert "in add_beside_thread" in text


def test_depth(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.starmap_async(dive, [(500, flag.path)])
    assert until(of_only(pool), "in spin").count("in dive") > 50
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]


def test_stopped_worker(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.map_async(spin, [flag.path])
    until(of_only(pool), "in spin")
    pid = pool.status().workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(of_only(pool), "stopped")
    finally:
        os.kill(pid, signal.SIGCONT)
    until(of_only(pool), "in spin")
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]


def test_task_that_blocks_the_signal(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.map_async(block_signals, [flag.path])
    until(lambda: pool.stacks(timeout=0.05).get(0, ""), "blocks the signal")
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]
    until(of_only(pool), IDLE)


def test_task_that_closes_descriptors(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.map_async(close_all, [flag.path])
    until(of_only(pool), "closed what it answers with")
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]


def test_killed_meanwhile(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(2)
    result = pool.map_async(spin, [flag.path], return_exceptions=True)
    until(lambda: "\n".join(pool.stacks().values()), "in spin")
    [worker] = [one for one in pool.status().workers if one.is_busy]
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: read_stack(worker.pid), "has ended")
    [error] = result.get(PATIENCE)
    assert type(error).__name__ == "WorkerDied"


def test_other_processes_are_not_signalled() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            assert "starting" in read_stack(process.pid)
            assert process.poll() is None
        finally:
            process.kill()


def test_hundred_stacks_take_no_more_room_than_one(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.map_async(spin, [flag.path])
    until(of_only(pool), "in spin")
    pid = pool.status().workers[0].pid
    file = next(
        path for path in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(path) == "/memfd:pairpool-stack (deleted)"
    )
    size = file.stat().st_size
    assert 0 < size < 10_000
    for _ in range(100):
        assert "in spin" in pool.stacks()[0]
    assert file.stat().st_size == size
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]


def test_several_at_once(make_pool: MakePool, flag: Flag) -> None:
    pool = make_pool(1)
    result = pool.map_async(spin, [flag.path])
    until(of_only(pool), "in spin")
    pid = pool.status().workers[0].pid
    found: list[str] = []
    readers = [threading.Thread(target=lambda: found.append(read_stack(pid, PATIENCE))) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(found) == 8
    assert all(re.fullmatch(r'  File ".*", line \d+ in spin', text) for text in found), found
    flag.raise_()
    assert result.get(PATIENCE) == ["spun"]


def test_stacks_during_many_short_batches(make_pool: MakePool, start_method: str) -> None:
    pool = make_pool(2)
    results = [pool.map_async(tasks.square, range(200_000))]
    for _ in range(10):
        pool.stacks()
        if results[-1].ready():
            results.append(pool.map_async(tasks.square, range(200_000)))
    for result in results:
        assert result.get(PATIENCE) == [x * x for x in range(200_000)]
    assert all(worker.replaced == 0 for worker in pool.status().workers)


def test_a_process_that_has_ended() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert read_stacks([process.pid]) == {process.pid: "(no stack: the worker has ended)"}


# --- cleaning -----------------------------------------------------------------------------------------

DUMP = """\
  File "/x/pairpool/scoreboard/stacks.py", line 80 in show_threads
  File "/home/a/task.py", line 3 in inner
  File "/home/a/task.py", line 9 in task
  File "/x/pairpool/worker/batch_runner.py", line 300 in _call
  File "/x/pairpool/worker/batch_runner.py", line 305 in <lambda>
  File "/x/pairpool/worker/loops.py", line 500 in run_timed
  File "/x/pairpool/worker/batch_runner.py", line 340 in _run_items
  File "/x/pairpool/worker/zygote.py", line 150 in _run_child
"""


def test_clean_drops_frames_that_are_not_of_the_task() -> None:
    title = "Stack (most recent call first):\n"
    frames = '  File "/home/a/task.py", line 3 in inner\n  File "/home/a/task.py", line 9 in task'
    assert clean(title + DUMP) == frames
    thread = (
        'Thread 0x00007f (most recent call first):\n  File "/lib/threading.py", line 1 in wait\n'
        '  File "/lib/threading.py", line 2 in _bootstrap\n\n'
    )
    title = "Current thread 0x00007e (most recent call first):\n"
    assert clean(thread + title + DUMP) == (
        f'main thread:\n{frames}\nthread 0x00007f:\n  File "/lib/threading.py", line 1 in wait'
    )


def test_clean_keeps_unknown_text() -> None:
    frames = '  File "a", line 1 in f\n  ...'
    assert clean(f"Stack (most recent call first):\n{frames}\n") == frames
    assert clean("what is this\n") == "what is this"
    assert clean("") == ""


def test_clean_before_the_loop() -> None:
    text = (
        'Stack (most recent call first):\n  File "/home/a/things.py", line 3 in __setstate__\n'
        '  File "/x/pairpool/transport/serializer.py", line 30 in load_item\n'
        '  File "/x/pairpool/worker/loading.py", line 260 in load\n'
    )
    assert clean(text).splitlines() == text.splitlines()[1:3]
    assert clean('Stack (most\n  File "/x/pairpool/worker/batch_runner.py", line 1 in _save\n').endswith("in _save")
    waiting = (
        'Stack (most\n  File "c.py", line 1 in receive\n'
        '  File "/x/pairpool/worker/packet_source.py", line 1 in next_packet\n'
    )
    assert clean(waiting) == IDLE
