"""Frozen snapshots of a pool, made from its scoreboard."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallStatus", "FailureStatus", "PoolStatus", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker.

    Attributes:
        number: the place of the worker in the pool, from 0.
        pid: process id; 0 while the worker is being forked. (`os.kill` takes 0 for the process group of the caller.)
        state: `starting`, `idle`, `loading`, `running`, `saving`, `sending` or `empty`.
        function: name of the task's function; empty when idle.
        item: index of the running item in its call; None when idle.
        seconds: how long the item (in a batch of many short ones: the batch) has been running.
        done: items that this worker has finished, failed ones included.
        failed: items that raised.
        replaced: how many workers had this place before.
        argument: short repr of the item's argument; empty if it is not known, as for items that take a few ms.
        progress: how much is done, as the task reported with `pairpool.progress`; None without a report.
        total: the value of `progress` at the end, as the task reported it.
        note: the text that the task reported.
        cpu: per cent of one core in the last seconds; None if it was not measured.
        rss: resident memory in bytes; None if it was not measured.
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
        """Whether the worker runs an item."""
        return self.item is not None

    @property
    def is_starting(self) -> bool:
        """Whether the worker cannot take work yet."""
        return self.state in ("starting", "empty")


@dataclass(frozen=True, slots=True)
class CallStatus:
    """One call that has not ended.

    Attributes:
        function: name of the function. For several single calls: of the one that ended last, or empty.
        kind: `map`, `imap` or `apply`. Single calls that were made one after the other count as one call.
        total: items of the input; None if the number is not known.
        done: items that have ended, failed ones included.
        failed: items that ended with an exception.
        seconds: how long ago the call was made.
    """

    function: str
    kind: str
    total: int | None
    done: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """One of the last items that failed.

    Attributes:
        seconds: how long ago the item failed.
        worker: number of the worker that ran it; None if no worker did.
        function: name of the function.
        item: index of the item in its call.
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
        uptime: seconds from the opening of the pool until now, or until its end.
        calls: calls that have not ended.
        workers: the workers, by number.
        done: items that have ended since the pool was opened, failed ones included.
        failed: items that ended with an exception.
        pending: items that have not ended, as far as the pool has read the inputs.
        rates: items that ended in each of the last 60 whole seconds, the latest last.
        running: the calls that have not ended, the oldest first; at most 16.
        failures: the last items that failed, the latest first; at most 8.
        remark: a remark for the reader, such as that the master is stopped; empty if there is none.
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
        """Number of workers that run a batch."""
        return sum(worker.is_busy for worker in self.workers)

    @property
    def starting(self) -> int:
        """Number of workers that cannot take work yet, including those that are not forked yet."""
        there = sum(not worker.is_starting for worker in self.workers)
        return max(0, self.processes - there)

    @property
    def idle(self) -> int:
        """Number of workers that wait for work."""
        return sum(not worker.is_busy and not worker.is_starting for worker in self.workers)

    @property
    def is_over(self) -> bool:
        """Whether the pool has ended."""
        return self.state == "TERMINATE" and not self.workers

    @property
    def cpu(self) -> float | None:
        """Per cent of one core that all workers used together in the last seconds; None if it was not measured."""
        measured = [worker.cpu for worker in self.workers if worker.cpu is not None]
        return sum(measured) if measured else None

    @property
    def rss(self) -> int | None:
        """Resident memory of all workers, with shared pages counted in each; None if it was not measured."""
        measured = [worker.rss for worker in self.workers if worker.rss is not None]
        return sum(measured) if measured else None
