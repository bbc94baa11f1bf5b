"""Parents and children: end with the parent, adopt orphans, list and kill children (prctl(2), proc(5))."""

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
    """The C function, looked up once, for a forked child that finds it ready starts the sooner."""
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return function


def _prctl(option: int, value: int) -> None:
    if _libc_prctl()(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that forked this process ends; exit now if it already has (prctl(2))."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant (PR_SET_CHILD_SUBREAPER)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def children_of(pid: int) -> list[int]:
    """The pids of the living children of `pid`, from /proc; an empty list if it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}/stat"):
            return _children_by_scan(pid)
    except ProcessLookupError:
        pass  # the process ended between the listing and the read: it has no children any more
    return found


def _children_by_scan(parent: int) -> list[int]:
    """`children_of` for kernels built without CONFIG_PROC_CHILDREN."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


def kill_children(keep: set[int], patience: float = 5.0) -> None:
    """SIGKILL every child of this process that is not in `keep`, and wait for their ends, at most `patience` seconds.

    Called by a subreaper: what the killed ones leave behind becomes its own child, and goes in the next round.
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
