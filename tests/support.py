"""How tests hold tasks back, hear from them, wait for processes to end, and run scripts; all without sleeping."""

from __future__ import annotations

import multiprocessing.pool
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

__all__ = [
    "PATIENCE",
    "ROOT",
    "Gate",
    "Reports",
    "all_ended",
    "mp_pool",
    "python",
    "write_script",
]

ROOT = Path(__file__).parent.parent

PATIENCE = 20.0
"""Seconds after which something that should have happened at once counts as hanging."""

mp_pool: Any = multiprocessing.pool
"""`multiprocessing.pool`, some of whose names its type stubs leave out."""


class Gate:
    """Holds tasks back: each reads one byte of a FIFO (`tasks.wait_for`), and the test puts them there."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def let(self, count: int = 1) -> None:
        """Let `count` tasks through, now or when they come."""
        os.write(self._fd, b"." * count)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reports:
    """Lines that tasks write to a FIFO (`tasks.tell`), in the order in which they come."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""

    def next(self, timeout: float = PATIENCE) -> str:
        """The next line; `TimeoutError` if none comes."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while b"\n" not in self._rest:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"no report within {timeout:g} s")
            self._rest += os.read(self._fd, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def take(self, count: int) -> list[str]:
        return [self.next() for _ in range(count)]

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def watching(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """Hold a pidfd for each process while it is surely there; of those that are gone already, none."""
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                handles[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        yield handles
    finally:
        for handle in handles.values():
            os.close(handle)


def still_running(handles: dict[int, int], timeout: float) -> list[int]:
    """Wait until all processes have ended, and name those that have not after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    left = []
    for pid, handle in handles.items():
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            left.append(pid)
    return left


def all_ended(pids: Iterable[int], timeout: float = PATIENCE) -> bool:
    """Whether these processes have all ended, or do so within `timeout` seconds."""
    with watching(pids) as handles:
        return still_running(handles, timeout) == []


def write_script(directory: Path, source: str, name: str = "script.py") -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(source))
    return path


def environment() -> dict[str, str]:
    """This one's, with this checkout's pairpool, and output buffered as usual."""
    names = os.environ.keys() - {"PYTHONUNBUFFERED", "PYTHONWARNINGS"}
    return {**{name: os.environ[name] for name in names}, "PYTHONPATH": str(ROOT)}


def python(*arguments: object, stdin: str | None = None, timeout: float = 40.0) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end, with warnings as errors and this checkout's pairpool."""
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        env=environment(),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextmanager
def running(*arguments: object, warnings: str = "error", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a session of its own, killed at the end if it is still there."""
    command = [sys.executable, *([] if warnings == "default" else ["-W", warnings]), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, env=environment(), start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
