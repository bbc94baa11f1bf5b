"""The tasks, which run in the workers. Each task first counts its start in a memfd of the master, one byte per task."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from typing import Any

from pairpool.stress import task_errors
from pairpool.stress.plan import TaskKind, content

__all__ = ["FOREVER_S", "LEFT", "MARK", "run", "run_item"]

MARK = "PAIRPOOL_STRESS"
"""Environment variable of a campaign, `name:pid:fd`: the memfd that counts starts. It also marks all processes."""

LEFT = "pairpool-stress-left"
"""`pairpool-stress-left=PID;` marks a process that a task leaves behind, in its environment or in its mappings.

PID is the worker of the task.
"""

FOREVER_S = 3600.0

_starts: mmap.mmap | None = None
_process = 0


def _set_up() -> mmap.mmap:
    """Map the memfd, and send the output of tasks to /dev/null. Runs once per process."""
    global _starts, _process
    _name, master, fd = os.environ[MARK].split(":")
    own = os.open(f"/proc/{master}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    _starts = mmap.mmap(own, 0)
    os.close(own)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
    _process = os.getpid()
    return _starts


class _Unpicklable:
    """A result that cannot be pickled. Its repr names the task."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return task_errors.token(self.index)


def run(index: int, kind: int, amount: int, reply: int, payload: bytes | None) -> Any:
    """Run a task. The result is its index, or a tuple that begins with its index."""
    starts = _starts if _starts is not None and _process == os.getpid() else _set_up()
    starts[index] = min(255, starts[index] + 1)
    if kind == TaskKind.NOOP:
        return index
    if kind in (TaskKind.CPU, TaskKind.GRIND):
        return index, sum(step * step for step in range(amount))
    if kind == TaskKind.SLEEP:
        time.sleep(amount / 1e6)
        return index
    if kind in (TaskKind.ECHO, TaskKind.BULK):
        seen = None if payload is None else (len(payload), zlib.crc32(payload))
        return index, seen, content(index, 1, reply) if reply else None
    return _run_rare(index, kind, amount)


def run_item(item: tuple[int, int, int, int, bytes | None]) -> Any:
    """Run a task whose arguments are one tuple, as `map` passes them."""
    return run(*item)


def _run_rare(index: int, kind: int, amount: int) -> Any:
    if kind == TaskKind.RAISE:
        raise task_errors.make(index, amount % task_errors.FLAVOURS)
    if kind == TaskKind.BULK_RAISE:
        raise ValueError(task_errors.token(index) + "x" * amount)
    if kind == TaskKind.BAD_RESULT:
        return _Unpicklable(index)
    if kind == TaskKind.PRINT:
        print("task", index, "x" * (amount % 3000))
    elif kind == TaskKind.TIMEOUT:
        time.sleep(FOREVER_S)
    elif kind in (TaskKind.RUN, TaskKind.FORK, TaskKind.LEAVE_PROGRAM, TaskKind.LEAVE_CHILD):
        _make_process(kind, amount)
    else:
        _die(kind, amount)
    return index


def _make_process(kind: int, amount: int) -> None:
    if kind == TaskKind.RUN:
        subprocess.run(["sleep", f"{amount % 10 / 1000}"], check=True, stdin=subprocess.DEVNULL)
    elif kind == TaskKind.FORK:
        pid = os.fork()
        if pid == 0:
            time.sleep(amount % 10 / 1000)
            os._exit(0)
        os.waitpid(pid, 0)
    elif kind == TaskKind.LEAVE_PROGRAM:
        environment = {**os.environ, LEFT: f"{os.getpid()};"}
        _AbandonedProcess(["sleep", str(FOREVER_S)], env=environment, stdin=subprocess.DEVNULL)
    else:
        _leave_child()


class _AbandonedProcess(subprocess.Popen[bytes]):
    """A program that no process waits for. With a return code, `Popen` does not warn of that."""

    def __init__(self, command: list[str], **options: Any) -> None:
        super().__init__(command, **options)
        self.returncode = 0


def _leave_child() -> None:
    """Fork a child that stays. A mapping marks it, because a mapping exists from the moment of the fork."""
    fd = os.memfd_create(f"{LEFT}={os.getpid()};")
    os.ftruncate(fd, mmap.PAGESIZE)
    with mmap.mmap(fd, mmap.PAGESIZE):
        os.close(fd)
        if os.fork() == 0:
            time.sleep(FOREVER_S)
            os._exit(0)


def _die(kind: int, amount: int) -> None:
    sys.stdout.flush()
    if kind == TaskKind.EXIT:
        os._exit(amount % 256)
    elif kind == TaskKind.ABORT:
        os.abort()
    elif kind == TaskKind.SEGFAULT:
        ctypes.string_at(0)
    elif kind == TaskKind.SUICIDE:
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(f"a task of kind {kind} is still there")
