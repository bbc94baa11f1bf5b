"""What a campaign must leave as it was: this process's descriptors, threads, children; and all marked processes."""

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
from pairpool.stress.tasks import LEFT

__all__ = ["Left", "Snapshot", "descriptor_count", "end_all", "give_back_memory", "leftovers", "resident"]

M_MMAP_THRESHOLD = -3

GRACE = 10.0
"""Seconds that processes and threads have to end."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_memory() -> None:
    """Have glibc return every large block when it is freed (mallopt(3)), so that what is resident is in use.

    Otherwise its threshold follows the largest block freed, and payloads leave holes that look like a leak.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 << 10)
    except AttributeError:
        pass  # another C library


def descriptor_count() -> int:
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
            continue  # the one that lists them
    return found


def _dispositions() -> dict[str, Any]:
    return {f"signal {int(number)}": signal.getsignal(number) for number in sorted(signal.valid_signals())}


@dataclass(frozen=True)
class Snapshot:
    """What there is now."""

    descriptors: Counter[str]
    threads: frozenset[threading.Thread]
    children: frozenset[int]
    dispositions: dict[str, Any]

    @classmethod
    def take(cls) -> Self:
        children = frozenset(process_tree.children_of(os.getpid()))
        return cls(_descriptors(), frozenset(threading.enumerate()), children, _dispositions())


class Left(NamedTuple):
    """A process that is still there.

    Attributes:
        worker: pid of the worker whose task left it behind; 0 if no task did.
    """

    pid: int
    worker: int
    text: str


def _marked(tag: str) -> list[Left]:
    """Living processes of the campaign and zombies of this process, but for this process itself."""
    me = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if not fields or fields[0] in "ZX":
            continue
        traces = _read(f"/proc/{name}/environ") + _read(f"/proc/{name}/maps")
        if tag in traces:
            worker = traces.partition(f"{LEFT}=")[2].partition(";")[0]
            command = _read(f"/proc/{name}/cmdline").replace("\0", " ").strip()
            text = f"process {name} (child of {fields[1]}, state {fields[0]}): {command}"
            found.append(Left(int(name), int(worker) if worker.isdigit() else 0, text))
    return found


def _zombie() -> int:
    """A child of this process that nobody has waited for; 0 if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return 0 if found is None else found.si_pid


def leftovers(before: Snapshot, tag: str, excused: set[int], grace: float = GRACE) -> tuple[list[str], list[Left]]:
    """What is here and was not before, and the processes that nobody but their tasks is to blame for.

    Args:
        tag: what marks the campaign's processes.
        excused: pids; what their tasks have left, and they themselves, may be there. -1 is everybody's.
    """
    deadline = time.monotonic() + grace
    gc.collect()
    for thread in set(threading.enumerate()) - before.threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    guilty, orphans = _processes(tag, excused, deadline)
    found = [one.text for one in guilty]
    for pid in set(process_tree.children_of(os.getpid())) - before.children - {one.pid for one in guilty}:
        found.append(f"child {pid}: {_read(f'/proc/{pid}/stat')[:60]}")
    zombie = _zombie()
    if zombie and zombie not in before.children:
        found.append(f"zombie {zombie}")
    found += [f"thread {thread.name}" for thread in set(threading.enumerate()) - before.threads]
    found += [f"descriptor of {target}" for target in (_descriptors() - before.descriptors).elements()]
    now = _dispositions()
    found += [f"{name} was {old}, is {now[name]}" for name, old in before.dispositions.items() if now[name] != old]
    return found, orphans


def _processes(tag: str, excused: set[int], deadline: float) -> tuple[list[Left], list[Left]]:
    """Marked processes that are not excused, when all that can end have ended; and those that are."""
    while True:
        marked = _marked(tag)
        orphans = [one for one in marked if one.pid in excused or (one.worker and excused & {one.worker, -1})]
        guilty = [one for one in marked if one not in orphans]
        if not guilty or time.monotonic() > deadline:
            return guilty, orphans
        _await_an_end([one.pid for one in guilty], deadline)


def _await_an_end(pids: list[int], deadline: float) -> None:
    poller = select.poll()
    handles = []
    try:
        for pid in pids:
            handles.append(os.pidfd_open(pid))
            poller.register(handles[-1], select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    except ProcessLookupError:
        pass  # one has ended already
    finally:
        for handle in handles:
            os.close(handle)


def end_all(tag: str) -> None:
    """SIGKILL everything that is marked, this process excepted."""
    for one in _marked(tag):
        try:
            pidfd = os.pidfd_open(one.pid)
        except ProcessLookupError:
            continue
        pidfds.send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
