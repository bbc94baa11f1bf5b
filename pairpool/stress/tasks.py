"""What runs in the workers. Every task first counts its start in a memfd of the master, one byte a task."""

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

__all__ = ["FOREVER", "LEFT", "MARK", "run", "run_item"]

MARK = "PAIRPOOL_STRESS"
"""Environment variable `name:pid:fd` of a campaign: the memfd that counts starts. It also marks all processes."""

LEFT = "pairpool-stress-left"
"""In the environment or the mappings of a process that a task leaves behind: `pairpool-stress-left=WORKER;`."""

FOREVER = 3600.0

_starts: mmap.mmap | None = None
_process = 0


def _set_up() -> mmap.mmap:
    """Once a process: find the memfd, and keep what tasks print away from the terminal."""
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
    """A result that cannot be pickled; its text names the task."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return task_errors.token(self.index)


def run(index: int, kind: int, amount: int, reply: int, payload: bytes | None) -> Any:
    """Run a task. What it returns begins with its index."""
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
    """`run` for `map`."""
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
        time.sleep(FOREVER)
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
        child = subprocess.Popen(["sleep", str(FOREVER)], env=environment, stdin=subprocess.DEVNULL)
        child.returncode = 0  # nobody will wait for it, and nobody shall be warned of that
    else:
        _leave_child()


def _leave_child() -> None:
    """Fork a child that stays; it is known by a mapping, which is there from the moment of the fork."""
    fd = os.memfd_create(f"{LEFT}={os.getpid()};")
    os.ftruncate(fd, mmap.PAGESIZE)
    with mmap.mmap(fd, mmap.PAGESIZE):
        os.close(fd)
        if os.fork() == 0:
            time.sleep(FOREVER)
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
