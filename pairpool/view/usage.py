"""Measure CPU and memory of workers with psutil, because the scoreboard does not have them."""

from __future__ import annotations

import time
from dataclasses import replace

import psutil

from pairpool.status import PoolStatus, WorkerStatus

__all__ = ["Sampler"]

SAMPLE_EVERY_S = 1.0
"""Default time between two samples."""

SAMPLING_CORE_SHARE = 0.01
"""Sampling takes at most this share of one core. With many workers samples are less frequent."""

_UNREADABLE = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)


class Sampler:
    """Measures CPU and memory of the workers of one pool. Only one thread may use it.

    Args:
        every: the time between two samples in seconds. It is longer if sampling would take too much. 0 means a sample
            at each call.

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
        """Return the status with `cpu` and `rss` of each worker. Take a new sample if it is time, else keep the last.

        CPU is the use since the previous sample. So the first sample of each worker has none.
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
                cpu = process.cpu_percent()  # since the previous call; the first call returns 0
                return None if is_new else cpu, int(process.memory_info().rss)
        except _UNREADABLE:
            self._processes.pop(pid, None)
            return None, None
