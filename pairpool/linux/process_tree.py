"""Tie processes to their parents: end with the parent, adopt orphans, list and kill children.

Facts of prctl(2) and proc(5), and the consequences:

- PR_SET_PDEATHSIG fires when the *thread* that forked the process ends. It does not fire if the parent has already
  ended. So `die_with_parent` compares the parent afterwards.
- PR_SET_CHILD_SUBREAPER makes a process the parent of its orphaned descendants. So a killed child's own children become
  children of the subreaper, and `kill_children` needs several rounds.
- /proc/PID/task/TID/children needs CONFIG_PROC_CHILDREN. Without it, every /proc/PID/stat is read.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
from collections.abc import Callable

from pairpool.linux.pidfds import send_signal, wait_ended

__all__ = ["adopt_orphans", "children_of", "die_with_parent", "kill_children"]

PR_SET_PDEATHSIG = 1

PR_SET_CHILD_SUBREAPER = 36


@functools.cache
def _libc_prctl() -> Callable[..., int]:
    """Return the C function. It is looked up once, because a forked child starts sooner if it inherits the result."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, *[ctypes.c_ulong] * 4, use_errno=True)
    return prototype(("prctl", ctypes.CDLL(None)))


def _prctl(option: int, value: int) -> None:
    if _libc_prctl()(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Have this process killed when the thread that forked it ends. Exit now if the parent has already ended."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def children_of(pid: int) -> list[int]:
    """Return the pids of the living children of `pid`; an empty list if the process is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}/stat"):
            return _children_by_scan(pid)
    except ProcessLookupError:
        pass  # the process ended between the listing and the read, and has no children any more
    return found


def _children_by_scan(parent: int) -> list[int]:
    """Return the same as `children_of`, on kernels without CONFIG_PROC_CHILDREN."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", errors="replace") as file:  # its name may be any bytes
                    fields = file.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


def kill_children(keep: set[int], patience: float = 5.0) -> None:
    """Kill every child of this process that is not in `keep`, and wait at most `patience` seconds for their ends.

    A subreaper calls this. The children of killed processes become its own children, and are killed in the next round.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        handles = []
        for pid in children_of(os.getpid()):
            if pid not in keep:
                try:
                    handles.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    continue
        if not handles:
            return
        for handle in handles:
            send_signal(handle, signal.SIGKILL)
        for handle in handles:
            wait_ended(handle, deadline - time.monotonic())
            os.close(handle)
