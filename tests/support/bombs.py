"""A task that leaves processes which fork all the time, and a view of them for the test.

The bomb is bounded: at most `MORE_PROCESSES` processes live at once, and each ends after `LIFETIME_S`.
"""

from __future__ import annotations

import os
import resource
import select
import time
from pathlib import Path
from typing import Self

from tests.support.tasks import tell, wait_for
from tests.support.waiting import PATIENCE

__all__ = ["KINDS", "Watch", "leave", "leave_and_hold"]

KINDS = ["tree", "session", "chain"]
"""`tree`: each process forks and stays. `session`: the same in another session. `chain`: each forks and exits."""

LIFETIME_S = 10.0
MORE_PROCESSES = 100
BOMB_USER = 64_321
"""RLIMIT_NPROC does not bind root."""


def _processes_of(uid: int) -> int:
    found = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                found += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return found


def leave(path: str, kind: str) -> int:
    """Start a bomb, and return the pid of this worker. Each process of the bomb writes one byte to a FIFO."""
    if os.fork() == 0:
        try:
            _burn(path, kind)
        finally:
            os._exit(0)
    return os.getpid()


def _burn(path: str, kind: str) -> None:
    end = time.monotonic() + LIFETIME_S
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    if kind == "session":
        os.setsid()
    if os.getuid() == 0:
        os.setuid(BOMB_USER)
    limit = _processes_of(os.getuid()) + MORE_PROCESSES
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    os.write(fd, b".")
    while time.monotonic() < end:
        try:
            if os.fork() == 0:
                os.write(fd, b".")
            elif kind == "chain":
                return
        except OSError:
            pass  # the limit is reached, or the FIFO is full
        time.sleep(0.002)


def leave_and_hold(path: str, kind: str, reports: str, gate: str) -> None:
    tell(reports, leave(path, kind))
    wait_for(gate)


class Watch:
    """The test's end of the FIFO, which every process of a bomb holds open."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def await_forks(self, count: int) -> None:
        """Wait until the bomb has made `count` processes."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while count > 0:
            assert poller.poll(PATIENCE * 1000), "the bomb does not fork"
            count -= len(os.read(self._fd, count))

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether no process of the bomb is left, after at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while True:
            try:
                while os.read(self._fd, 65536):
                    pass
                return True
            except BlockingIOError:
                pass  # some process holds the other end
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poller.poll(left * 1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.has_ended(2 * LIFETIME_S)
        os.close(self._fd)
