"""Cancel calls: take back what is queued, and kill the workers that run what is left, if the caller wants that.

1. Items that no worker has read are taken back at once, out of the workers' sockets, too.
2. A batch that a worker has read is a pending kill: the worker is killed as soon as it is at a cancelled item.
   Items of other calls in the same batch finish first.
"""

from __future__ import annotations

from collections.abc import Iterable

from pairpool.master.jobs.base import Batch, Job, Target
from pairpool.master.jobs.calls import Calls
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.jobs.stream import StreamJob
from pairpool.master.watchdog import Watchdog
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import Word

__all__ = ["Cancellation"]


class Cancellation:
    """Cancel jobs and single calls. Only the leader uses it.

    Attributes:
        pending_kills: batches with cancelled items that a worker has read, with that worker.
    """

    def __init__(self, queue: JobQueue, workers: WorkerSet, watchdog: Watchdog) -> None:
        self._queue = queue
        self._workers = workers
        self._watchdog = watchdog
        self.pending_kills: dict[Batch, WorkerHandle] = {}

    def job(self, job: Job, reason: BaseException, *, kill: bool) -> bool:
        """End a whole job with `reason`; return False if the job has already ended.

        Args:
            kill: whether to kill the workers that run items of the job. Otherwise these items run to their end.
        """
        if job not in self._queue.unfinished:
            return False
        self._queue.cancel(job, reason)
        for worker in list(self._workers.members.values()):
            if any(batch.job is job for batch in worker.held):
                self._recall(worker)
                if kill:
                    self.pending_kills.update((batch, worker) for batch in worker.held if batch.job is job)
        self.kill_pending()
        return True

    def waiting(self, jobs: Iterable[Calls | StreamJob], reason: BaseException, processes: int) -> None:
        """End the single calls and the items of streams that wait for a worker.

        A call that a free worker can begin at once does not wait. It is not ended.

        Args:
            processes: how many workers the pool keeps. Those that are still starting are free, too.
        """
        jobs = list(jobs)
        for worker in list(self._workers.members.values()):
            if any(batch.job in jobs for batch in worker.held):
                self._recall(worker)
        free = processes - sum(bool(worker.held) for worker in self._workers)
        for job in jobs:
            if isinstance(job, Calls):
                free -= self._trim(job, max(0, free), reason)
            else:
                for batch in job.trim(max(0, free), processes, reason):
                    self._queue.drop(batch, reason)
                free -= len(job.again)
                self._queue.settle(job)

    def _trim(self, job: Calls, keep: int, reason: BaseException) -> int:
        """End the waiting calls of a job except `keep` batches and calls; return how many of these there are."""
        while len(job.again) > keep:
            self._queue.drop(job.again.pop(), reason)
        left = len(job.again)
        targets, uses = job.withdraw_from(keep - left)
        left += job.waiting
        self._queue.release(uses)
        for target in targets:
            target.set_outcome(False, reason)
        self._queue.settle(job)
        return left

    def _recall(self, worker: WorkerHandle) -> None:
        self._queue.put_back(worker.recall())
        self._workers.place(worker)

    def call(self, job: Calls, target: Target, reason: BaseException, *, kill: bool) -> bool:
        """End one of several single calls; return False if it has ended, or if it runs and `kill` is False."""
        number = job.withdraw(target)
        if number is not None:
            self._queue.release({number: 1})
            target.set_outcome(False, reason)
            self._queue.settle(job)
            return True
        batch = next((one for one in job.open.values() if target in (one.targets or ())), None)
        if batch is None:
            return False
        assert batch.targets is not None
        offset = batch.targets.index(target)
        holder = next((worker for worker in self._workers if batch in worker.held), None)
        if holder is not None and not holder.eof_sent:
            self._recall(holder)
        if holder is None or batch not in holder.held:
            self._drop(batch, offset, reason)
            return True
        return kill and self._kill_later(holder, batch, target, reason)

    def calls(self, targets: Iterable[Target], reason: BaseException) -> None:
        """End many single calls in one pass, those that run included.

        `asyncio.gather` cancels all its calls at once when one of them fails.
        """
        targets = [target for target in targets if not target.has_outcome]
        jobs = {target.job: None for target in targets if isinstance(target.job, Calls)}
        for target in targets:
            target.set_outcome(False, reason)
        for job in jobs:
            job.drop_settled(reason)
            self._queue.withdraw(job)
            for worker in list(self._workers.members.values()):
                if any(batch.job is job and batch.has_settled() for batch in worker.held):
                    self._recall(worker)
                    self.pending_kills.update((batch, worker) for batch in worker.held if batch.has_settled())
            self._queue.requeue(job)
            self._queue.settle(job)
        self.kill_pending()

    def kill_pending(self) -> None:
        """Kill the workers that are now at a cancelled item. The engine calls this until no kill is pending."""
        for batch, worker in list(self.pending_kills.items()):
            if batch not in worker.held or worker.eof_sent or self._kill_if_settled(worker, batch):
                del self.pending_kills[batch]

    def _kill_if_settled(self, worker: WorkerHandle, batch: Batch) -> bool:
        if batch.targets is None or all(target.has_outcome for target in batch.targets):
            return self._watchdog.kill(worker, batch, None)
        item = worker.slot.words[Word.ITEM]
        offset = item - batch.first
        is_settled = 0 <= offset < batch.count and batch.targets[offset].has_outcome
        return is_settled and self._watchdog.kill(worker, batch, item)

    def _drop(self, batch: Batch, offset: int, reason: BaseException) -> None:
        """End the item at this offset of a batch that no worker holds, and queue the other items again."""
        cancelled = batch.part(offset, offset + 1)
        batch.job.replace(batch, batch.without(offset))
        self._queue.requeue(batch.job)
        self._queue.drop(cancelled, reason)

    def _kill_later(self, holder: WorkerHandle, batch: Batch, target: Target, reason: BaseException) -> bool:
        """End a call that a worker has read: set its outcome, and kill the worker when it runs this very call."""
        target.set_outcome(False, reason)
        self.pending_kills[batch] = holder
        self.kill_pending()
        return True
