"""Find the things that a piece of code leaves behind in this process and its descendants.

Take a `Snapshot`, run the code, and call `leftovers`.

    processes    descendants, zombies included, found in /proc by their parents; orphans, found by their `Tag`
    descriptors  /proc/self/fd, compared by target
    mappings     shared memory in /proc/self/maps, which can outlive its descriptor
    threads      threading.enumerate()
    signals      dispositions, as Python knows them, and the signals that the calling thread blocks

Processes and threads end asynchronously. `leftovers` gives them a grace period, and waits on pidfds and joins threads.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["GRACE", "Process", "Snapshot", "Tag", "leftovers"]

GRACE = 5.0
"""Seconds within which processes and threads have to end."""


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it.

    `started`, in ticks since boot, tells it from a later process with the same pid.
    """

    pid: int
    started: int
    parent: int
    state: str
    name: str

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """Return the present state of a process, or None if it is gone."""
        try:
            with open(f"/proc/{pid}/stat", errors="replace") as file:
                line = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # Only the name can contain spaces and brackets.
        before, _, after = line.rpartition(")")
        fields = after.split()
        return cls(pid, int(fields[19]), int(fields[1]), fields[0], before.partition("(")[2])

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started

    def is_unreaped_child(self) -> bool:
        """Return whether the process has ended and this process has to reap it.

        While SIGCHLD is ignored, /proc shows an ended child as a zombie for a moment, too. waitid does not report it.
        """
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    def __str__(self) -> str:
        command = _read(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip() or f"[{self.name}]"
        kind = "zombie" if self.state in "ZX" else "process"
        return f"{kind} {self.pid} (child of {self.parent}): {command}"


class Tag:
    """Mark this process so that all its later descendants carry the mark, even orphans.

    A forked process inherits the mark as a mapping. An executed program inherits it as an environment variable.
    """

    VARIABLE = "PAIRPOOL_TESTS"

    def __init__(self) -> None:
        self.name = f"pairpool-tests-{os.getpid()}-{time.monotonic_ns()}"
        fd = os.memfd_create(self.name)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._mapping = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)
        os.environ[self.VARIABLE] = self.name

    def marks(self, pid: int) -> bool:
        """Return whether the process carries the mark."""
        return f":{self.name} " in _read(f"/proc/{pid}/maps") or self.name in _read(f"/proc/{pid}/environ")


@dataclass(frozen=True)
class Snapshot:
    """The processes, descriptors, mappings, threads and signal settings at one moment."""

    processes: frozenset[tuple[int, int]]
    descriptors: Counter[str]
    mappings: Counter[str]
    threads: frozenset[threading.Thread]
    signals: dict[str, Any]

    @classmethod
    def take(cls) -> Self:
        return cls(
            frozenset(process.identity for process in _all_processes()),
            Counter(_descriptors().values()),
            Counter(_mappings()),
            frozenset(threading.enumerate()),
            _signals(),
        )


def leftovers(before: Snapshot, tag: Tag | None = None, grace: float = GRACE) -> list[str]:
    """Return one line per thing that exists now and did not exist when `before` was taken.

    Without a `tag`, orphans are not found.
    """
    deadline = time.monotonic() + grace
    gc.collect()
    began = _new_threads(before)
    found = [f"thread {thread.name!r}: {thread}" for thread in _await_ends(began, deadline)]
    if began:
        gc.collect()  # free the objects of the threads that have ended
    found += map(str, _new_processes(before, tag, deadline))
    found += _new_descriptors(before.descriptors)
    found += [f"mapping {line}" for line in (Counter(_mappings()) - before.mappings).elements()]
    now = _signals()
    found += [f"{what} was {old} and is {now[what]}" for what, old in before.signals.items() if now[what] != old]
    return found


def _read(path: str) -> str:
    """Read a file of /proc. Return an empty text if its process is gone or belongs to another user."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


# --- processes and threads ----------------------------------------------------------------------------


def _all_processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = Process.read(int(name))
            if process is not None:
                yield process


def _family(known: frozenset[tuple[int, int]], tag: Tag | None) -> list[Process]:
    """Return the descendants of this process and the tagged orphans, except those in `known`."""
    everybody = {process.pid: process for process in _all_processes()}
    me = os.getpid()

    def descends(process: Process | None) -> bool:
        while process is not None and process.pid != me:
            process = everybody.get(process.parent)
        return process is not None

    return [
        process
        for process in everybody.values()
        if process.identity not in known and (descends(process) or (tag is not None and tag.marks(process.pid)))
    ]


def _new_processes(before: Snapshot, tag: Tag | None, deadline: float) -> list[Process]:
    """Wait until all new processes have ended or the deadline passes, and return the remaining processes."""
    me = os.getpid()
    while True:
        found = [
            process
            for process in _family(before.processes, tag)
            if process.state not in "ZX" or process.parent != me or process.is_unreaped_child()
        ]
        living = [process.pid for process in found if process.state not in "ZX"]
        if not living or not _await_an_end(living, deadline):
            return found


def _await_an_end(pids: Iterable[int], deadline: float) -> bool:
    """Wait until one of the processes ends. Return False if the deadline passes first."""
    poller = select.poll()
    handles = []
    try:
        for pid in pids:
            try:
                handles.append(os.pidfd_open(pid))
            except ProcessLookupError:
                return True
            poller.register(handles[-1], select.POLLIN)
        return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        for handle in handles:
            os.close(handle)


def _new_threads(before: Snapshot) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before.threads]


def _await_ends(threads: list[threading.Thread], deadline: float) -> list[threading.Thread]:
    """Join the threads, and return those that run at the deadline."""
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


# --- descriptors, mappings, signals -------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    """Return the target of each open descriptor. The descriptor of the listing itself is not included."""
    targets = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return targets


def _new_descriptors(before: Counter[str]) -> list[str]:
    """Return the surplus descriptors of each target. A file that was closed and opened again is no surplus."""
    now = _descriptors()
    surplus = Counter(now.values()) - before
    found = []
    for number in sorted(now, reverse=True):  # the highest were usually opened last
        if surplus[now[number]] > 0:
            surplus[now[number]] -= 1
            found.append(f"descriptor {number}: {now[number]}")
    return found


def _mappings() -> list[str]:
    """Return the shared mappings of this process. Private mappings belong to the allocator and the loader."""
    found = []
    for line in _read("/proc/self/maps").splitlines():
        span, access, _offset, _device, _inode, *path = line.split(maxsplit=5)
        if access.endswith("s"):
            start, _, end = span.partition("-")
            found.append(f"{int(end, 16) - int(start, 16)} bytes of {path[0] if path else 'anonymous memory'}")
    return found


def _signals() -> dict[str, Any]:
    """Return the disposition of every signal, and the set of signals that the calling thread blocks."""
    known: dict[str, Any] = {}
    for number in sorted(signal.valid_signals()):
        name = getattr(number, "name", f"signal {number}")  # real-time signals are bare numbers
        known[f"the disposition of {name}"] = signal.getsignal(number)
    known["the set of blocked signals"] = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return known
