"""What a piece of code leaves behind in and under this process: take a `Snapshot`, run it, see `leftovers`.

    processes    descendants, zombies among them, found by their parents in /proc; and orphans, by their `Tag`
    descriptors  /proc/self/fd, by what they refer to
    mappings     shared memory in /proc/self/maps, which can outlive its descriptor
    threads      threading.enumerate()
    signals      dispositions, as Python knows them, and what the calling thread blocks

Ending is asynchronous for processes and threads, so those that are on their way out get a grace period, spent
waiting on pidfds and joining. What is still there after that has been left behind.
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
"""Seconds that processes and threads have to end."""


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; `started` (ticks since boot) tells it from a later one of the same pid."""

    pid: int
    started: int
    parent: int
    state: str
    name: str

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """The process as it is now; None if it is gone."""
        try:
            with open(f"/proc/{pid}/stat", errors="replace") as file:
                line = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name may itself hold spaces and brackets, but nothing after it does.
        before, _, after = line.rpartition(")")
        fields = after.split()
        return cls(pid, int(fields[19]), int(fields[1]), fields[0], before.partition("(")[2])

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started

    def is_unreaped_child(self) -> bool:
        """Whether it ended and waits for this process to reap it.

        The kernel shows a child that nobody has to wait for as a zombie too, for a moment; waitid does not.
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
    """Marks every process that comes from this one, so that orphans, whose parent is init now, are known too.

    A fork inherits a mapping, and what a program executes inherits the environment.
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
        """Whether the process comes from this one."""
        return f":{self.name} " in _read(f"/proc/{pid}/maps") or self.name in _read(f"/proc/{pid}/environ")


@dataclass(frozen=True)
class Snapshot:
    """What there is now, to be compared with later."""

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
    """Name everything that is here and was not when `before` was taken, one line each.

    Without a `tag` only descendants are looked for, and orphans are missed.
    """
    deadline = time.monotonic() + grace
    gc.collect()
    began = _new_threads(before)
    found = [f"thread {thread.name!r}: {thread}" for thread in _await_ends(began, deadline)]
    if began:
        gc.collect()  # what the threads held, now that they have ended
    found += map(str, _new_processes(before, tag, deadline))
    found += _new_descriptors(before.descriptors)
    found += [f"mapping {line}" for line in (Counter(_mappings()) - before.mappings).elements()]
    now = _signals()
    found += [f"{what} was {old} and is {now[what]}" for what, old in before.signals.items() if now[what] != old]
    return found


def _read(path: str) -> str:
    """A file of /proc; empty if its process is gone or another user's."""
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
    """Descendants of this process, and tagged orphans, that are not in `known`."""
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
    """Those that are left when all that can end have ended, or the deadline (time.monotonic) has passed."""
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
    """Wait until one of the processes ends; False if the deadline passes first."""
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
    """Those that are left at the deadline."""
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


# --- descriptors, mappings, signals -------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    """What each open descriptor refers to. The one that lists them is closed by then, and drops out."""
    targets = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return targets


def _new_descriptors(before: Counter[str]) -> list[str]:
    """Compared by target and not by number: to reopen what was open before leaves nothing behind."""
    now = _descriptors()
    surplus = Counter(now.values()) - before
    found = []
    for number in sorted(now, reverse=True):  # the highest were opened last, as a rule
        if surplus[now[number]] > 0:
            surplus[now[number]] -= 1
            found.append(f"descriptor {number}: {now[number]}")
    return found


def _mappings() -> list[str]:
    """Shared mappings of this process as `size path`; private ones are the allocator's and the loader's."""
    found = []
    for line in _read("/proc/self/maps").splitlines():
        span, access, _offset, _device, _inode, *path = line.split(maxsplit=5)
        if access.endswith("s"):
            start, _, end = span.partition("-")
            found.append(f"{int(end, 16) - int(start, 16)} bytes of {path[0] if path else 'anonymous memory'}")
    return found


def _signals() -> dict[str, Any]:
    """Every disposition by the signal's name, and the set that the calling thread blocks."""
    known: dict[str, Any] = {}
    for number in sorted(signal.valid_signals()):
        name = getattr(number, "name", f"signal {number}")  # real-time signals are bare numbers
        known[f"the disposition of {name}"] = signal.getsignal(number)
    known["the set of blocked signals"] = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return known
