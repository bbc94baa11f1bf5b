"""Signal processes through pidfds, wait for their end, and read their exit status.

Facts of pidfd_open(2), pidfd_send_signal(2) and linux/pidfd.h, and the consequences:

- A pidfd always means the same process, even if the kernel reuses the pid. So signals go through pidfds.
- A pidfd becomes readable when its process ends, although nobody waits for the process.
- It becomes readable a moment before the kernel stores the exit status, and before the process leaves its parent's
  list of children. So `exit_status` and `wait_released` look again for a short time.
- The ioctl `PIDFD_GET_INFO` exists from Linux 6.13 on. It returns the exit status from Linux 6.15 on.
- `PIDFD_SIGNAL_PROCESS_GROUP` exists from Linux 6.9 on. Older kernels answer EINVAL.
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
    "wait_group_gone",
    "wait_released",
    "wait_stopped",
]

SIGKILL = signal.SIGKILL

_RECHECK_EVERY_S = 50e-6

"""Time between two looks at an event that is about to happen. sched_yield would first wait for all busy processes."""

PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11

PIDFD_INFO_EXIT = 1 << 3

PIDFD_SIGNAL_THREAD = 1 << 0

PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


def send_signal(pidfd: int, number: int) -> bool:
    """Signal the process behind a pidfd. Return False if the process is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def has_ended(pidfd: int) -> bool:
    """Tell whether the process behind a pidfd has ended, without waiting."""
    return wait_ended(pidfd, 0.0)


def wait_ended(pidfd: int, timeout: float | None) -> bool:
    """Wait at most `timeout` seconds (None: for ever) for the end of a process. Return whether it has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0.0, timeout * 1000)))


def kill_group(leader: int, pidfd: int) -> None:
    """Kill the remaining processes of a group whose leader has ended.

    The pidfd of the leader cannot mean another group. Before Linux 6.9 only the number of the group can be
    used.
    """
    try:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # no process of the group is left, or none of this user


def wait_released(pid: int, patience: float = 0.1) -> None:
    """Wait at most `patience` seconds until the kernel has removed a child that it reaps by itself."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(_RECHECK_EVERY_S)


def wait_group_gone(leader: int, deadline: float) -> None:
    """Wait until a group whose processes were killed has none left, or until the deadline."""
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(_RECHECK_EVERY_S)


def exit_status(pidfd: int, patience: float = 0.05) -> int | None:
    """Return the wait status of a process that ended without a wait(2); None if the kernel does not report it.

    Args:
        patience: seconds to wait for the status, because the kernel stores it shortly after the pidfd becomes readable.
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
    """Stop a process, and return whether it ran before, so that the caller can continue it.

    The process runs no code of its own after the return. If it is in a system call that takes longer than `patience`
    seconds, it stops at the end of that call.
    """
    if state_of(pid) in "TtZX":
        return False
    send_signal(pidfd, signal.SIGSTOP)
    wait_stopped(pid, time.monotonic() + patience)
    return True


def wait_stopped(pid: int, deadline: float) -> None:
    """Wait until a process that was sent SIGSTOP has stopped or ended, or until the deadline."""
    while state_of(pid) not in "TtZX" and time.monotonic() < deadline:
        time.sleep(_RECHECK_EVERY_S)


def state_of(pid: int) -> str:
    """Return the state letter of a process's main thread, as in proc(5); `X` if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b")")[2].split()[0][0])
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def abort(pidfd: int, pid: int) -> None:
    """End a process by SIGABRT, for which faulthandler writes the Python stack. Write no core file."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    except (ProcessLookupError, PermissionError):
        pass  # the process is gone, or belongs to another user: at worst it writes a core file
    send_signal(pidfd, signal.SIGABRT)
    send_signal(pidfd, signal.SIGCONT)


def describe_status(status: int | None) -> str:
    """Return a wait status in words: `exit status 3`, `signal SIGSEGV`, or that it is unknown."""
    if status is None:
        return "unknown exit status (the kernel tells it from Linux 6.15 on)"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"
