"""CPU and memory of workers, by psutil: what the board cannot know."""

from __future__ import annotations

import time
from dataclasses import replace

import psutil

from pairpool.status import PoolStatus, WorkerStatus

__all__ = ["Sampler"]

SAMPLE_EVERY_S = 1.0
"""Seconds between two samples, if not told otherwise."""

SAMPLING_CORE_SHARE = 0.01
"""Share of one core that sampling may take; with many workers it is done less often."""

_UNREADABLE = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)


class Sampler:
    """Measures what the workers of one pool use; for one thread.

    Args:
        every: seconds between two samples, or more where that would take too much; 0 for one at each call.

    Example:
        >>> sampler = Sampler()
        >>> status = sampler.fill(pool.status())
    """

    def __init__(self, every: float = SAMPLE_EVERY_S) -> None:
        self._every = every
        self._processes: dict[int, psutil.Process] = {}
        self._found: dict[int, tuple[float | None, int | None]] = {}
        self._next = 0.0

    def fill(self, status: PoolStatus) -> PoolStatus:
        """The same status with `cpu` and `rss` of each worker; sampled anew when it is time, else as of last time.

        CPU is what a worker used since the sample before, so the first sample of each worker has none.
        """
        began = time.monotonic()
        if began >= self._next:
            self._sample({worker.pid for worker in status.workers if worker.pid})
            self._next = began + (
                max(self._every, (time.monotonic() - began) / SAMPLING_CORE_SHARE) if self._every else 0.0
            )
        return replace(status, workers=tuple(self._filled(worker) for worker in status.workers))

    def _filled(self, worker: WorkerStatus) -> WorkerStatus:
        cpu, rss = self._found.get(worker.pid, (None, worker.rss))
        return replace(worker, cpu=cpu, rss=rss)

    def _sample(self, pids: set[int]) -> None:
        for pid in self._processes.keys() - pids:
            del self._processes[pid]
        self._found = {pid: self._measure(pid) for pid in pids}

    def _measure(self, pid: int) -> tuple[float | None, int | None]:
        process = self._processes.get(pid)
        try:
            is_new = process is None
            if process is None:
                process = self._processes[pid] = psutil.Process(pid)
            with process.oneshot():
                cpu = process.cpu_percent()  # since the call before; of the first one it says 0
                return None if is_new else cpu, int(process.memory_info().rss)
        except _UNREADABLE:
            self._processes.pop(pid, None)
            return None, None
