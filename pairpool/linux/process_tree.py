"""Tie processes to their parents: end with the parent, adopt orphans, list children, kill all descendants.

Facts of prctl(2) and proc(5), and the consequences:

- PR_SET_PDEATHSIG fires when the *thread* that forked the process ends. It does not fire if the parent has already
  ended. So `die_with_parent` compares the parent afterwards.
- PR_SET_CHILD_SUBREAPER makes a process the parent of its orphaned descendants. So a killed child's own children become
  children of the subreaper, and `kill_children` needs several rounds.
- /proc/PID/task/TID/children needs CONFIG_PROC_CHILDREN. Without it, every /proc/PID/stat is read.
- That file is complete only while no child ends. If one ends during the read, another one can be missing.
- Descendants may fork faster than this process kills them. So all of them are stopped before the first is killed. A
  stopped process does not fork or end, so the lists are complete then.
- A fork that has begun before SIGSTOP arrives still makes a child. So a list counts only after all have stopped.
- A pid may mean another process by the time of the signal. So a pidfd is opened, and the process behind it must still
  be a descendant.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import signal
import time
from collections.abc import Callable, Container, Iterator

from pairpool.linux.pidfds import has_ended, send_signal, wait_ended, wait_stopped

__all__ = [
    "adopt_orphans",
    "children_of",
    "die_with_parent",
    "kill_all_before_exit",
    "kill_children",
    "kill_descendants_of",
]

PR_SET_PDEATHSIG = 1

PR_SET_CHILD_SUBREAPER = 36


QUIET_SCANS = 2
"""Scans in a row that must find no new descendant, because one scan can miss a process."""

STOP_PATIENCE_S = 0.05
"""Seconds to wait for the stops of signalled processes. A process in a long system call stops at the call's end."""

REAPED_WITHIN_S = 0.1
"""Seconds to wait for the kernel to remove killed children. It takes longer only for those that cannot be killed."""

HANDLES_AT_ONCE = 16
"""Pidfds that are open at once while processes are killed."""


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
        if name.isdigit() and _parent_of(int(name)) == parent:
            found.append(int(name))
    return found


# --- the end of all descendants ---------------------------------------------------------------------------


def kill_children(keep: set[int], patience: float = 5.0) -> None:
    """Kill the descendants of this process, but not the children in `keep` and their descendants. Wait for the ends.

    A subreaper calls this. The descendants of killed processes become its children, so the next round finds them.

    1. Stop all. Repeat until nothing new is found.
    2. Kill all that were stopped.
    3. Repeat both until nothing is found, for at most `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while (found := _stop_descendants(os.getpid(), keep, deadline)) and time.monotonic() < deadline:
        _kill(found, os.getpid(), deadline)


def kill_all_before_exit() -> None:
    """Kill all descendants of this process, which is about to exit, and leave no zombie to the process that adopts."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    adopt_orphans()
    kill_children(keep=set())
    deadline = time.monotonic() + REAPED_WITHIN_S
    try:
        while time.monotonic() < deadline:  # for children that had ended before SIGCHLD was ignored
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(50e-6)
    except ChildProcessError:
        pass  # none is left


def kill_descendants_of(pid: int, patience: float = 1.0) -> None:
    """Kill the descendants of another process, which has to be stopped, and wait for their ends.

    This process is no subreaper for them, so a descendant whose parent has ended before is not found.
    """
    deadline = time.monotonic() + patience
    _kill(_stop_descendants(pid, (), deadline), pid, deadline)


def _stop_descendants(root: int, keep: Container[int], deadline: float) -> list[int]:
    """Stop the descendants of a process, except those in `keep`; return them, each parent before its children."""
    stopped: dict[int, None] = {}
    quiet = 0
    while quiet < QUIET_SCANS and time.monotonic() < deadline:
        new = list(_stop_new(root, keep, stopped))
        quiet = 0 if new else quiet + 1
        stopped.update(dict.fromkeys(new))
        until = min(deadline, time.monotonic() + STOP_PATIENCE_S)
        for pid in new:
            wait_stopped(pid, until)
    return list(stopped)


def _stop_new(root: int, keep: Container[int], stopped: Container[int]) -> Iterator[int]:
    """Stop and yield the living descendants that are not in `stopped`. Each is stopped before its children are read."""
    family = {root: None}
    parents = [root]
    for parent in parents:
        for pid in children_of(parent):
            if pid in keep or pid in family:
                continue
            family[pid] = None
            parents.append(pid)
            if pid not in stopped:
                with _handle_of(pid, family) as handle:
                    if handle is not None and _signal(handle, signal.SIGSTOP):
                        yield pid


def _kill(pids: list[int], root: int, deadline: float) -> None:
    """Kill processes that are descendants of `root` or were adopted by it, and wait for their ends.

    Args:
        pids: each parent before its children. Children are killed first, because the parent identifies them.
    """
    family = {root, *pids}
    backwards = pids[::-1]
    for begin in range(0, len(pids), HANDLES_AT_ONCE):
        with contextlib.ExitStack() as stack:
            some = backwards[begin : begin + HANDLES_AT_ONCE]
            handles = [stack.enter_context(_handle_of(pid, family)) for pid in some]
            killed = [handle for handle in handles if handle is not None and _signal(handle, signal.SIGKILL)]
            for handle in killed:
                wait_ended(handle, deadline - time.monotonic())


def _signal(handle: int, number: int) -> bool:
    """Signal a process. Return False if it has ended, or belongs to another user."""
    try:
        return not has_ended(handle) and send_signal(handle, number)
    except PermissionError:
        return False


@contextlib.contextmanager
def _handle_of(pid: int, family: Container[int]) -> Iterator[int | None]:
    """Open a pidfd for the body; None if the process is gone, or if its parent is not in `family`."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL):  # EINVAL: the number is only that of a group any more
            raise
        yield None
        return
    try:
        yield handle if _parent_of(pid) in family else None
    finally:
        os.close(handle)


def _parent_of(pid: int) -> int:
    """Return the pid of a process's parent; 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
