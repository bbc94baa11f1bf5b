"""The environment that a campaign must leave as it was.

It consists of the descriptors, threads, children and signal dispositions of this process, and of all processes that
carry the mark of the campaign.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pairpool.linux import pidfds, process_tree
from pairpool.scoreboard.stacks import printable
from pairpool.stress.tasks import LEFT

__all__ = [
    "EnvironmentSnapshot",
    "Leftover",
    "descriptor_count",
    "end_all",
    "give_back_memory",
    "leftovers",
    "resident",
]

M_MMAP_THRESHOLD = -3
"""Parameter of mallopt(3)."""

MMAP_THRESHOLD_BYTES = 128 << 10

END_LIMIT_S = 10.0
"""Seconds that processes and threads have to end."""


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_memory() -> None:
    """Let glibc return every large block to the kernel when it is freed, see mallopt(3).

    Otherwise the threshold follows the largest block that was freed, and payloads leave holes that look like a leak.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    except AttributeError:
        pass  # another C library


def descriptor_count() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:
            continue  # the descriptor that lists the directory
    return found


def _dispositions() -> dict[str, Any]:
    return {f"signal {int(number)}": signal.getsignal(number) for number in sorted(signal.valid_signals())}


@dataclass(frozen=True)
class EnvironmentSnapshot:
    """The state of this process at one moment."""

    descriptors: Counter[str]
    threads: frozenset[threading.Thread]
    children: frozenset[int]
    dispositions: dict[str, Any]

    @classmethod
    def take(cls) -> Self:
        """Return the state now."""
        children = frozenset(process_tree.children_of(os.getpid()))
        return cls(_descriptors(), frozenset(threading.enumerate()), children, _dispositions())


class Leftover(NamedTuple):
    """A process that still exists.

    Attributes:
        worker: pid of the worker whose task left the process behind; 0 if no task did.
    """

    pid: int
    worker: int
    text: str


def _marked(tag: str) -> list[Leftover]:
    """Return the living processes that carry the mark of the campaign, except this process.

    The campaign does not change its user. The processes of other users are not looked at, because reading the memory
    of a process can take for ever, and its texts can be anything.
    """
    me, user = os.getpid(), os.geteuid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me or not _is_of(name, user):
            continue
        fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if not fields or fields[0] in "ZX":
            continue
        traces = _read(f"/proc/{name}/environ") + _read(f"/proc/{name}/maps")
        if tag in traces:
            worker = traces.partition(f"{LEFT}=")[2].partition(";")[0]
            command = _read(f"/proc/{name}/cmdline").replace("\0", " ").strip()
            text = f"process {name} (child of {fields[1]}, state {fields[0]}): {printable(command)}"
            found.append(Leftover(int(name), int(worker) if worker.isdigit() else 0, text))
    return found


def _is_of(pid: str, user: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == user
    except FileNotFoundError:
        return False


def _zombie() -> int:
    """Return a child of this process that is a zombie; 0 if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return 0 if found is None else found.si_pid


def leftovers(
    before: EnvironmentSnapshot, tag: str, excused: set[int], grace: float = END_LIMIT_S
) -> tuple[list[str], list[Leftover]]:
    """Return what the campaign has left behind, in words, and the excused processes.

    Args:
        before: the state before the campaign.
        tag: the mark of the campaign.
        excused: pids. These processes may still exist, and the processes that their tasks left behind, too. -1 excuses
            whatever a task has left behind.
        grace: seconds that processes and threads have to end.
    """
    deadline = time.monotonic() + grace
    gc.collect()
    for thread in set(threading.enumerate()) - before.threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    unexcused, orphans = _processes(tag, excused, deadline)
    found = [one.text for one in unexcused]
    for pid in set(process_tree.children_of(os.getpid())) - before.children - {one.pid for one in unexcused}:
        found.append(f"child {pid}: {_read(f'/proc/{pid}/stat')[:60]}")
    zombie = _zombie()
    if zombie and zombie not in before.children:
        found.append(f"zombie {zombie}")
    found += [f"thread {thread.name}" for thread in set(threading.enumerate()) - before.threads]
    found += [f"descriptor of {target}" for target in (_descriptors() - before.descriptors).elements()]
    now = _dispositions()
    found += [f"{name} was {old}, is {now[name]}" for name, old in before.dispositions.items() if now[name] != old]
    return found, orphans


def _processes(tag: str, excused: set[int], deadline: float) -> tuple[list[Leftover], list[Leftover]]:
    """Wait until only excused processes are left, or until the deadline. Return the others, and the excused ones."""
    while True:
        marked = _marked(tag)
        orphans = [one for one in marked if one.pid in excused or (one.worker and excused & {one.worker, -1})]
        unexcused = [one for one in marked if one not in orphans]
        if not unexcused or time.monotonic() > deadline:
            return unexcused, orphans
        _wait_for_any_end([one.pid for one in unexcused], deadline)


def _wait_for_any_end(pids: list[int], deadline: float) -> None:
    poller = select.poll()
    handles = []
    try:
        for pid in pids:
            handles.append(os.pidfd_open(pid))
            poller.register(handles[-1], select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    except ProcessLookupError:
        pass  # a process has ended already
    finally:
        for handle in handles:
            os.close(handle)


def end_all(tag: str) -> None:
    """Kill all processes that carry the mark of the campaign, except this process."""
    for one in _marked(tag):
        try:
            pidfd = os.pidfd_open(one.pid)
        except ProcessLookupError:
            continue
        pidfds.send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
