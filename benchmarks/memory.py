"""How much memory processes use, from /proc; all in bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil


def _kib_lines(text: str) -> dict[str, int]:
    """The lines `Name: 123 kB`, in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest[:-3]) * 1024
    return found


def rollup(pid: int) -> dict[str, int]:
    """The sums over all mappings of a process, by the kernel's names: Rss, Pss, Private_Dirty and others."""
    return _kib_lines(Path(f"/proc/{pid}/smaps_rollup").read_text())


def private(pid: int) -> int:
    """Pages that no other process has: what its end would give back."""
    sums = rollup(pid)
    return sums["Private_Clean"] + sums["Private_Dirty"]


def proportional(pids: Iterable[int]) -> int:
    """What the processes use together, each shared page divided by the number of those that map it."""
    total = 0
    for pid in pids:
        try:
            total += rollup(pid)["Pss"]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def resident() -> int:
    """What this process has in memory now."""
    return _kib_lines(Path("/proc/self/status").read_text())["VmRSS"]


def forget_peak() -> None:
    """Let `peak` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most that this process has had in memory since `forget_peak`."""
    return _kib_lines(Path("/proc/self/status").read_text())["VmHWM"]


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1
