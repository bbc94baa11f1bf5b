"""Wait for the ends of processes, by pidfd."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.support.waiting import PATIENCE

__all__ = ["all_ended", "still_running", "watching"]


@contextmanager
def watching(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """Open a pidfd for each process that exists, and close all pidfds at the end.

    Call this while the processes are known to run. Afterwards the kernel may give a pid to another process.
    """
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
    """Wait until all processes have ended, and return the pids of those that run after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    left = []
    for pid, handle in handles.items():
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            left.append(pid)
    return left


def all_ended(pids: Iterable[int], timeout: float = PATIENCE) -> bool:
    """Return whether all these processes end within `timeout` seconds."""
    with watching(pids) as handles:
        return still_running(handles, timeout) == []
