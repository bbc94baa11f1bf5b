"""Read from the control groups of this process how many cores it may use, and whether the kernel ran out of memory.

Facts of cgroups(7) and of the kernel's cgroup documentation, and the consequences:

- A quota of any group above the process limits it too. So all groups up to the root are read.
- In a container the root of /sys/fs/cgroup is the container's own group, whatever path /proc/self/cgroup names.
- Version 2 has `cpu.max`, `memory.events` and `memory.max`. Version 1 has `cpu.cfs_quota_us`, `memory.oom_control` and
  `memory.limit_in_bytes`. A machine can use both, one for each controller.
- `oom_kill` counts the processes that the kernel has killed. Without a memory group the machine's counter is in
  /proc/vmstat.
"""

from __future__ import annotations

import math
import os
import re

__all__ = ["OomCounter", "cpu_allowance"]


def _memberships() -> list[tuple[str, str]]:
    """Return the controllers and the path of each group of this process. Version 2 names no controllers."""
    try:
        with open("/proc/self/cgroup") as file:
            fields = [line.split(":", 2) for line in file.read().splitlines()]
    except OSError:
        return []
    return [(controllers, path) for _number, controllers, path in fields]


def _quota_of(directory: str) -> float:
    """Return the CPU quota of one cgroup directory in cores; infinity if it has none."""
    try:
        with open(f"{directory}/cpu.max") as file:
            quota, period = file.read().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # not a directory of version 2
    try:
        with open(f"{directory}/cpu.cfs_quota_us") as file:
            allowed = int(file.read())
        with open(f"{directory}/cpu.cfs_period_us") as file:
            return allowed / int(file.read()) if allowed > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")


def _cgroup_quota() -> float:
    """Return the smallest CPU quota of this process's group and all groups above it, in cores."""
    quota = float("inf")
    for controllers, path in _memberships():
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup" if not controllers else f"/sys/fs/cgroup/{controllers}"
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            quota = min(quota, _quota_of("/".join([root, *parts[:depth]])))
    return quota


def cpu_allowance() -> int:
    """Return the number of cores that this process may use: its affinity, limited by its quota, rounded up."""
    return max(1, min(len(os.sched_getaffinity(0)), math.ceil(min(_cgroup_quota(), 1 << 20))))


class OomCounter:
    """Tells whether the kernel has killed a process because memory ran out.

    It reads the counter of this process's memory group. Without such a group it reads the counter of the machine.
    """

    def __init__(self) -> None:
        self._group = _memory_group()
        files = (f"{self._group}/memory.events", f"{self._group}/memory.oom_control")
        self._file = next((path for path in files if os.path.exists(path)), "/proc/vmstat")
        self._seen = _counter(self._file)

    def advanced(self) -> bool:
        """Tell whether the kernel has killed a process since the last call."""
        before, self._seen = self._seen, _counter(self._file)
        return self._seen > before

    def limit(self) -> int | None:
        """Return the memory limit of the group in bytes; None if it has none."""
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                with open(f"{self._group}/{name}") as file:
                    text = file.read().strip()
            except OSError:
                continue
            return int(text) if text.isdigit() and int(text) < 1 << 60 else None
        return None


def _counter(path: str) -> int:
    """Return N from the line `oom_kill N` of a file of counters; 0 if there is no such line."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError:
        return 0
    match = re.search(rb"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _memory_group() -> str:
    """Return the directory of this process's memory group."""
    for controllers, path in _memberships():
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
