"""What the control groups of this process allow and report: cores, and out-of-memory kills (cgroups(7))."""

from __future__ import annotations

import math
import os
import re

__all__ = ["OomCounter", "cpu_allowance"]


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


class OomCounter:
    """Tells whether the kernel has killed something for want of memory since it was last asked.

    It looks at the counter of this process's memory cgroup, and where there is none, at the machine's.
    """

    def __init__(self) -> None:
        self._group = _memory_group()
        files = (f"{self._group}/memory.events", f"{self._group}/memory.oom_control")
        self._file = next((path for path in files if os.path.exists(path)), "/proc/vmstat")
        self._seen = _counter(self._file)

    def advanced(self) -> bool:
        """Whether the counters have moved since the last call."""
        before, self._seen = self._seen, _counter(self._file)
        return self._seen > before

    def limit(self) -> int | None:
        """The memory limit of the cgroup in bytes; None if it has none."""
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                with open(f"{self._group}/{name}") as file:
                    text = file.read().strip()
            except OSError:
                continue
            return int(text) if text.isdigit() and int(text) < 1 << 60 else None
        return None


def _counter(path: str) -> int:
    """The line `oom_kill N` of a file of counters; 0 where there is none."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError:
        return 0
    match = re.search(rb"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _memory_group() -> str:
    """The directory of this process's memory cgroup."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return "/sys/fs/cgroup"
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        root = None
        if not controllers:
            root = "/sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
        if root is not None:
            for candidate in (root + path.rstrip("/"), root):
                if os.path.exists(f"{candidate}/memory.events") or os.path.exists(f"{candidate}/memory.oom_control"):
                    return candidate
    return "/sys/fs/cgroup"
