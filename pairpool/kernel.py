"""What the kernel offers and `os` does not: pidfds, memfds, prctl, limits, and descriptors that no child keeps.

Sources: man pages pidfd_open(2), pidfd_send_signal(2), prctl(2), memfd_create(2), cgroups(7);
`PIDFD_GET_INFO` is in linux/pidfd.h from 6.13 on, and gives the exit status from 6.15 on.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import errno
import fcntl
import functools
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = [
    "NEEDS",
    "Descriptor",
    "Identity",
    "abort",
    "above_standard",
    "adopt_orphans",
    "children_of",
    "cpu_allowance",
    "describe_status",
    "die_with_parent",
    "disown",
    "exit_status",
    "fork",
    "halt",
    "has_ended",
    "kill_children",
    "kill_group",
    "memfd",
    "own",
    "require_descriptors",
    "require_linux",
    "require_owner",
    "send_signal",
    "state_of",
    "wait_ended",
    "wait_released",
]

NEEDS = "pairpool needs Linux 5.4 or later with pidfd_open and memfd_create"

SIGKILL = signal.SIGKILL

BREATH = 50e-6
"""Seconds between two looks at what should happen at once; a sched_yield would wait for all that computes, first."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
PIDFD_INFO_EXIT = 1 << 3
PIDFD_SIGNAL_THREAD = 1 << 0
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


class Closable(Protocol):
    """Anything that holds a descriptor and knows how to let go of it."""

    def close(self) -> None: ...


class Descriptor:
    """A bare descriptor number with one owner; closing it twice is harmless."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def above_standard(fd: int) -> int:
    """The descriptor, or, if it took the number of a standard stream that is closed, a copy of it in its place.

    What writes to the standard streams must not reach it, nor may a program that is started get another in its place.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


# --- descriptors that no forked child may keep ------------------------------------------------------
#
# CLOEXEC ends with exec; a plain fork keeps every descriptor, and a child that holds a master's end keeps
# EOF from ever coming. So whatever pairpool opens is registered here, and every fork of this process, ours
# or the caller's, closes it in the child.

_owned: dict[int, Closable] = {}


def own(thing: Closable) -> None:
    """Have `thing` closed in every child that this process forks, until `disown`."""
    _owned[id(thing)] = thing


def disown(thing: Closable) -> None:
    """Forget `thing`: it has been closed, or a child is meant to inherit it."""
    _owned.pop(id(thing), None)


def _close_owned_in_child() -> None:
    things = list(_owned.values())
    _owned.clear()
    for thing in things:
        try:
            thing.close()
        except OSError:
            pass  # closed already, by a program that closes all that it inherits: nothing is left to do


os.register_at_fork(after_in_child=_close_owned_in_child)


def fork() -> int:
    """`os.fork`, without the DeprecationWarning of CPython 3.12 for programs with threads.

    The warning is for forks that run the program on; ours runs only pairpool's own loop in the child, and whoever
    has threads that hold locks of their own chooses `start_method="forkserver"`.
    """
    if sys.version_info >= (3, 12) and len(os.listdir("/proc/self/task")) > 1:
        import warnings

        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"pairpool\.kernel$")
    return os.fork()


# --- signals ---------------------------------------------------------------------------------------


_DEFERRED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2}
"""Signals whose handlers are apt to raise."""

set_signal_mask: Callable[[int, Iterable[int]], set[int]] = _signal.pthread_sigmask
"""`signal.pthread_sigmask`, which is a Python function, without that: nothing can strike before the mask is set."""


def hold_signals(numbers: Iterable[int] = _DEFERRED) -> set[int]:
    """Have Ctrl-C and the like come after a few statements, and not within; returns the mask of before.

        before = hold_signals()
        try:
            ...
        finally:
            set_signal_mask(signal.SIG_SETMASK, before)

    A handler that raises can strike where a Python function begins, and behind each call: hence no `with` block, whose
    end would be such a function, and hence the care here. With more threads the kernel may give the signal to another,
    and the handler still runs in the main one: nothing is promised but that no signal stays held back for ever.
    """
    before: set[int] = set_signal_mask(signal.SIG_BLOCK, ())
    try:
        set_signal_mask(signal.SIG_BLOCK, numbers)
    except BaseException:
        set_signal_mask(signal.SIG_SETMASK, before)
        raise
    return before


# --- processes --------------------------------------------------------------------------------------


def require_linux() -> None:
    """Raise `OSError` with one sentence unless this platform has what pairpool stands on."""
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, f"{NEEDS}; this platform is {sys.platform}")
    if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, f"{NEEDS}; this Python was built without them")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise OSError(error.errno, f"{NEEDS}; this kernel refuses pidfd_open ({error.strerror})") from None
        raise


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
        time.sleep(BREATH)


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
        time.sleep(BREATH)


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
        time.sleep(BREATH)
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


# --- memory, limits, cores --------------------------------------------------------------------------


def memfd(name: str, size: int) -> int:
    """An anonymous file of `size` zero bytes that closes on exec (memfd_create(2))."""
    fd = above_standard(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def require_descriptors(count: int, purpose: str) -> None:
    """Raise `OSError` (EMFILE) that names the limit if `count` more descriptors do not fit."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    if used + count > soft:
        raise OSError(
            errno.EMFILE,
            f"{purpose} needs about {count} descriptors, but RLIMIT_NOFILE allows {soft} and {used} are open; "
            f"raise it (ulimit -n {used + count + 64}) or ask for fewer processes",
        )


def _quota_of(directory: str) -> float:
    """The CPU quota of one cgroup directory in cores; infinity where there is none (cgroup v2, then v1)."""
    try:
        with open(f"{directory}/cpu.max") as file:
            quota, period = file.read().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # not a v2 directory: ask v1
    try:
        with open(f"{directory}/cpu.cfs_quota_us") as file:
            allowed = int(file.read())
        with open(f"{directory}/cpu.cfs_period_us") as file:
            return allowed / int(file.read()) if allowed > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")


def _cgroup_quota() -> float:
    """The tightest CPU quota of this process's cgroup and all above it, in cores."""
    quota = float("inf")
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return quota
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup" if not controllers else f"/sys/fs/cgroup/{controllers}"
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            quota = min(quota, _quota_of("/".join([root, *parts[:depth]])))
    return quota


def cpu_allowance() -> int:
    """How many cores this process may use: its affinity, cut by its cgroup's quota, rounded up."""
    return max(1, min(len(os.sched_getaffinity(0)), math.ceil(min(_cgroup_quota(), 1 << 20))))


class Identity:
    """The process that made an object, to tell its forked copies from it."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    def is_here(self) -> bool:
        return os.getpid() == self.pid


def require_owner(identity: Identity) -> None:
    """Raise `PoolInherited` in a process that was forked off the pool's owner."""
    if not identity.is_here():
        from pairpool.errors import PoolInherited

        raise PoolInherited(
            f"this pool belongs to process {identity.pid}; its copy in the forked process {os.getpid()} is inert: "
            "open a pool of its own here"
        )
