"""Snapshots of a pool: frozen, plain, and cheap to make from the status board."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PoolStatus", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker.

    Attributes:
        number: its place in the pool, from 0.
        pid: its process id; 0 while it is being made.
        state: `starting`, `idle`, `loading`, `running`, `saving`, `sending` or `empty`.
        function: name of the task's function; empty when idle.
        item: index of the running item in its call; None when idle.
        seconds: how long the item (in a batch of many short ones: the batch) has been running.
        done: items finished since this worker began, failed ones included.
        failed: items that raised.
        replaced: how many workers had this place before.
    """

    number: int
    pid: int
    state: str
    function: str
    item: int | None
    seconds: float
    done: int
    failed: int
    replaced: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool at one moment.

    Attributes:
        name: the pool's name.
        pid: process id of the master.
        state: `RUN`, `CLOSE` or `TERMINATE`.
        start_method: `fork`, `forkserver` or `direct`.
        processes: how many workers the pool keeps.
        uptime: seconds since it was opened.
        calls: calls that have not ended.
        workers: the workers, by number.
    """

    name: str
    pid: int
    state: str
    start_method: str
    processes: int
    uptime: float
    calls: int
    workers: tuple[WorkerStatus, ...]

    @property
    def busy(self) -> int:
        """Workers that are at work on a batch."""
        return sum(worker.item is not None for worker in self.workers)
