"""Read from /proc how much memory processes use. All figures are bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil


def _kib_lines(text: str) -> dict[str, int]:
    """Return the lines `Name: 123 kB` in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest[:-3]) * 1024
    return found


def rollup(pid: int) -> dict[str, int]:
    """Return the sums over all mappings of a process, by the kernel's names: Rss, Pss, Private_Dirty and others."""
    return _kib_lines(Path(f"/proc/{pid}/smaps_rollup").read_text())


def private(pid: int) -> int:
    """Return the bytes that no other process shares, which the end of the process would free."""
    sums = rollup(pid)
    return sums["Private_Clean"] + sums["Private_Dirty"]


def proportional(pids: Iterable[int]) -> int:
    """Return the bytes of some processes together. A shared page is divided by the number of its processes."""
    total = 0
    for pid in pids:
        try:
            total += rollup(pid)["Pss"]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def resident() -> int:
    """Return the resident bytes of this process."""
    return _kib_lines(Path("/proc/self/status").read_text())["VmRSS"]


def forget_peak() -> None:
    """Reset `peak`."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most resident bytes of this process since `forget_peak`."""
    return _kib_lines(Path("/proc/self/status").read_text())["VmHWM"]


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd")) - 1
