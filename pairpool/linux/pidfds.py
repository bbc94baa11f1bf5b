"""Processes behind pidfds: signal them, wait for their end, read their exit status.

Sources: pidfd_open(2), pidfd_send_signal(2), proc(5). `PIDFD_GET_INFO` is in linux/pidfd.h from Linux 6.13 on, and
gives the exit status from Linux 6.15 on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import struct
import time

__all__ = [
    "SIGKILL",
    "abort",
    "describe_status",
    "exit_status",
    "halt",
    "has_ended",
    "kill_group",
    "send_signal",
    "state_of",
    "wait_ended",
    "wait_released",
]

SIGKILL = signal.SIGKILL

_RECHECK_EVERY_S = 50e-6

"""Seconds between two looks at what should happen at once; a sched_yield would wait for all that computes, first."""

PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11

PIDFD_INFO_EXIT = 1 << 3

PIDFD_SIGNAL_THREAD = 1 << 0

PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


def send_signal(pidfd: int, number: int) -> bool:
    """Signal the process behind a pidfd, never another one; False if it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def has_ended(pidfd: int) -> bool:
    """Whether the process behind the pidfd has ended, without waiting."""
    return wait_ended(pidfd, 0.0)


def wait_ended(pidfd: int, timeout: float | None) -> bool:
    """Wait up to `timeout` seconds (None: for ever) for the process behind a pidfd to end."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0.0, timeout * 1000)))


def kill_group(leader: int, pidfd: int) -> None:
    """SIGKILL what is left of a process group whose leader has ended.

    By the leader's pidfd, which never means another group; by its number before Linux 6.9, which cannot do that.
    """
    try:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nothing is left of it, or of ours


def wait_released(pid: int, patience: float = 0.1) -> None:
    """Wait until the kernel has let go of a child that it reaps by itself, at most `patience` seconds.

    A pidfd becomes readable a moment before its process is taken off the list of its parent's children.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(_RECHECK_EVERY_S)


def exit_status(pidfd: int, patience: float = 0.05) -> int | None:
    """The wait status of a process that ended and that nobody waited for; None if this kernel cannot tell.

    The pidfd becomes readable a moment before the kernel has filed the status, hence the `patience` (seconds).
    """
    deadline = time.monotonic() + patience
    while True:
        info = bytearray(64)
        struct.pack_into("<Q", info, 0, PIDFD_INFO_EXIT)
        try:
            fcntl.ioctl(pidfd, PIDFD_GET_INFO, info, True)
        except OSError as error:
            if error.errno != errno.ESRCH:
                return None
        else:
            if struct.unpack_from("<Q", info, 0)[0] & PIDFD_INFO_EXIT:
                return int(struct.unpack_from("<i", info, 60)[0])
        if time.monotonic() > deadline:
            return None
        time.sleep(_RECHECK_EVERY_S)


def halt(pidfd: int, pid: int, patience: float = 0.005) -> bool:
    """Stop a process where it is, to look at it; returns whether it ran before, so that it can be let go on.

    It runs no step of its own code from the return on, or from `patience` seconds after it on where it is inside of
    a system call that takes longer.
    """
    if state_of(pid) in "TtZX":
        return False
    send_signal(pidfd, signal.SIGSTOP)
    deadline = time.monotonic() + patience
    while state_of(pid) not in "TtZX" and time.monotonic() < deadline:
        time.sleep(_RECHECK_EVERY_S)
    return True


def state_of(pid: int) -> str:
    """The state letter of a process's main thread, as in proc(5); `X` if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b")")[2].split()[0][0])
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def abort(pidfd: int, pid: int) -> None:
    """Have a stopped or running process end by SIGABRT, for which faulthandler writes the Python stack; no core."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    except (ProcessLookupError, PermissionError):
        pass  # it is gone, or runs as somebody else: a core file is all that it can cost
    send_signal(pidfd, signal.SIGABRT)
    send_signal(pidfd, signal.SIGCONT)


def describe_status(status: int | None) -> str:
    """A wait status in words: `exit status 3`, `signal SIGSEGV`, or that it is unknown."""
    if status is None:
        return "unknown exit status (the kernel tells it from Linux 6.15 on)"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"
