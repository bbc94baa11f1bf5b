"""FIFOs by which a test holds tasks and learns what the tasks are doing, without sleeping.

test ── Gate ─────► task    the task reads one byte and goes on (`tasks.wait_for`)
test ◄── Reports ── task    the task writes one line (`tasks.tell`)
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Self

from tests.support.waiting import PATIENCE

__all__ = ["Gate", "Reports"]


class _Fifo:
    """A FIFO that the test keeps open in both directions, so that no open and no read sees its end."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Gate(_Fifo):
    """Hold tasks until the test lets them through.

    Each task reads one byte of the FIFO (`tasks.wait_for`). The test writes the bytes.
    """

    def let(self, count: int = 1) -> None:
        """Let `count` tasks through: the tasks that wait now, or the next that come."""
        os.write(self._fd, b"." * count)


class Reports(_Fifo):
    """Receive the lines that tasks write to a FIFO (`tasks.tell`), in the order of their arrival."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_NONBLOCK)
        self._rest = b""

    def next(self, timeout: float = PATIENCE) -> str:
        """Return the next line.

        Raises:
            TimeoutError: no line arrived within `timeout` seconds.
        """
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
        """Return the next `count` lines."""
        return [self.next() for _ in range(count)]
