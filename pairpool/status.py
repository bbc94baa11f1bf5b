"""Snapshots of a pool: frozen, plain, and cheap to make from the status board."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallStatus", "FailureStatus", "PoolStatus", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker.

    Attributes:
        number: its place in the pool, from 0.
        pid: its process id; 0 while it is being made (which `os.kill` takes for the group of the caller).
        state: `starting`, `idle`, `loading`, `running`, `saving`, `sending` or `empty`.
        function: name of the task's function; empty when idle.
        item: index of the running item in its call; None when idle.
        seconds: how long the item (in a batch of many short ones: the batch) has been running.
        done: items finished since this worker began, failed ones included.
        failed: items that raised.
        replaced: how many workers had this place before.
        argument: short repr of the item's argument; empty where it is not known, for items shorter than some ms.
        progress: how much is done, as the task told by `pairpool.progress`; None where it did not.
        total: of how much.
        note: the text that it told with that.
        cpu: per cent of one core that it used lately; None where nobody measured it.
        rss: its resident memory in bytes; None where nobody measured it.
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
    argument: str = ""
    progress: float | None = None
    total: float | None = None
    note: str = ""
    cpu: float | None = None
    rss: int | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it is at work on an item."""
        return self.item is not None

    @property
    def is_starting(self) -> bool:
        """Whether it cannot take work yet."""
        return self.state in ("starting", "empty")


@dataclass(frozen=True, slots=True)
class CallStatus:
    """One call that has not ended.

    Attributes:
        function: name of its function; of several single calls, of the last one's that ended, or empty.
        kind: `map`, `imap` or `apply` (single calls that were made one after the other count as one).
        total: items of its input; None where that is not known.
        done: items that have ended, failed ones included.
        failed: items that ended with an exception.
        seconds: how long ago it was made.
    """

    function: str
    kind: str
    total: int | None
    done: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """One item that failed lately.

    Attributes:
        seconds: how long ago.
        worker: number of the worker that ran it; None if none did.
        function: name of its function.
        item: its index in its call.
        error: type and text of the exception in one line.
    """

    seconds: float
    worker: int | None
    function: str
    item: int
    error: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool at one moment.

    Attributes:
        name: the pool's name.
        pid: process id of the master.
        state: `RUN`, `CLOSE` or `TERMINATE`.
        start_method: `fork`, `forkserver` or `direct`.
        processes: how many workers the pool keeps.
        uptime: seconds since it was opened, until now or until it ended.
        calls: calls that have not ended.
        workers: the workers, by number.
        done: items that have ended since the pool was opened, failed ones included.
        failed: items that ended with an exception.
        pending: items that were handed in and have not ended, as far as inputs were read.
        rates: items that ended in each of the last 60 whole seconds, the latest last.
        running: the calls that have not ended, the oldest first; at most 16.
        failures: the last items that failed, the latest first; at most 8.
        remark: what a reader should know, such as that the master is stopped; else empty.
    """

    name: str
    pid: int
    state: str
    start_method: str
    processes: int
    uptime: float
    calls: int
    workers: tuple[WorkerStatus, ...]
    done: int = 0
    failed: int = 0
    pending: int = 0
    rates: tuple[int, ...] = ()
    running: tuple[CallStatus, ...] = ()
    failures: tuple[FailureStatus, ...] = ()
    remark: str = ""

    @property
    def busy(self) -> int:
        """Workers that are at work on a batch."""
        return sum(worker.is_busy for worker in self.workers)

    @property
    def starting(self) -> int:
        """Workers that cannot take work yet, those that are not there yet included."""
        there = sum(not worker.is_starting for worker in self.workers)
        return max(0, self.processes - there)

    @property
    def idle(self) -> int:
        """Workers that wait for work."""
        return sum(not worker.is_busy and not worker.is_starting for worker in self.workers)

    @property
    def is_over(self) -> bool:
        """Whether the pool has ended."""
        return self.state == "TERMINATE" and not self.workers

    @property
    def cpu(self) -> float | None:
        """Per cent of one core that all workers together used lately; None where nobody measured it."""
        measured = [worker.cpu for worker in self.workers if worker.cpu is not None]
        return sum(measured) if measured else None

    @property
    def rss(self) -> int | None:
        """Resident memory of all workers together, shared pages counted in each; None where nobody measured it."""
        measured = [worker.rss for worker in self.workers if worker.rss is not None]
        return sum(measured) if measured else None
