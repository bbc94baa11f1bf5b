"""Ending calls before they have ended by themselves: what is queued goes nowhere, what runs is killed if so asked."""

from __future__ import annotations

from collections.abc import Iterable

from pairpool.master.jobs.base import Batch, Calls, Job, Target
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.jobs.stream import StreamJob
from pairpool.master.watchdog import Watchdog
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import Word

__all__ = ["Cancellation"]


class Cancellation:
    """Cancels jobs and single calls; used by the leader alone.

    Attributes:
        condemned: batches that a worker has read, with items that are to be ended as soon as it is at one of them.
    """

    def __init__(self, agenda: JobQueue, crew: WorkerSet, overseer: Watchdog) -> None:
        self._agenda = agenda
        self._crew = crew
        self._overseer = overseer
        self.condemned: dict[Batch, WorkerHandle] = {}

    def job(self, job: Job, reason: BaseException, *, kill: bool) -> bool:
        """End a whole job with `reason`; False if it has ended already."""
        if job not in self._agenda.unfinished:
            return False
        self._agenda.cancel(job, reason)
        for member in list(self._crew.members.values()):
            if any(batch.job is job for batch in member.held):
                self._recall(member)
                if kill:
                    self.condemned.update((batch, member) for batch in member.held if batch.job is job)
        self.look()
        return True

    def waiting(self, jobs: Iterable[Calls | StreamJob], reason: BaseException, workers: int) -> None:
        """End the calls and the items of streams that no worker has begun, or is free to begin at once.

        Args:
            workers: how many the pool keeps; those that are still being started are free, too.
        """
        jobs = list(jobs)
        for member in list(self._crew.members.values()):
            if any(batch.job in jobs for batch in member.held):
                self._recall(member)
        free = workers - sum(bool(member.held) for member in self._crew)
        for job in jobs:
            if isinstance(job, Calls):
                free -= self._trim(job, max(0, free), reason)
            else:
                for batch in job.trim(max(0, free), workers, reason):
                    self._agenda.drop(batch, reason)
                free -= len(job.again)
                self._agenda.settle(job)

    def _trim(self, job: Calls, keep: int, reason: BaseException) -> int:
        """End what waits of a job but for so many batches and calls; returns how many are left of those."""
        while len(job.again) > keep:
            self._agenda.drop(job.again.pop(), reason)
        left = len(job.again)
        targets, uses = job.withdraw_from(keep - left)
        left += job.waiting
        self._agenda.release(uses)
        for target in targets:
            target.set_outcome(False, reason)
        self._agenda.settle(job)
        return left

    def _recall(self, member: WorkerHandle) -> None:
        self._agenda.put_back(member.recall())
        self._crew.place(member)

    def call(self, job: Calls, target: Target, reason: BaseException, *, kill: bool) -> bool:
        """End one of several calls; False if it has ended, or runs and is not to be killed."""
        number = job.withdraw(target)
        if number is not None:
            self._agenda.release({number: 1})
            target.set_outcome(False, reason)
            self._agenda.settle(job)
            return True
        batch = next((one for one in job.open.values() if target in (one.targets or ())), None)
        if batch is None:
            return False
        assert batch.targets is not None
        offset = batch.targets.index(target)
        holder = next((member for member in self._crew if batch in member.held), None)
        if holder is not None and not holder.dismissed:
            self._recall(holder)
        if holder is None or batch not in holder.held:
            self._drop(batch, offset, reason)
            return True
        return kill and self._kill(holder, batch, target, reason)

    def calls(self, targets: Iterable[Target], reason: BaseException) -> None:
        """End many single calls, whatever has become of them; what runs is killed.

        In one pass, for those of a large `gather` that fails are all cancelled at once.
        """
        targets = [target for target in targets if not target.has_outcome]
        jobs = {target.job: None for target in targets if isinstance(target.job, Calls)}
        for target in targets:
            target.set_outcome(False, reason)
        for job in jobs:
            job.dropped = reason
            self._agenda.withdraw(job)
            for member in list(self._crew.members.values()):
                if any(batch.job is job and batch.has_settled() for batch in member.held):
                    self._recall(member)
                    self.condemned.update((batch, member) for batch in member.held if batch.has_settled())
            self._agenda.requeue(job)
            self._agenda.settle(job)
        self.look()

    def look(self) -> None:
        """Kill the workers that are at something condemned by now."""
        for batch, member in list(self.condemned.items()):
            if batch not in member.held or member.dismissed or self._end(member, batch):
                del self.condemned[batch]

    def _end(self, member: WorkerHandle, batch: Batch) -> bool:
        if batch.targets is None or all(target.has_outcome for target in batch.targets):
            return self._overseer.kill(member, batch, None)
        item = member.slot.words[Word.ITEM]
        offset = item - batch.first
        is_settled = 0 <= offset < batch.count and batch.targets[offset].has_outcome
        return is_settled and self._overseer.kill(member, batch, item)

    def _drop(self, batch: Batch, offset: int, reason: BaseException) -> None:
        victim = batch.part(offset, offset + 1)
        batch.job.replace(batch, batch.without(offset))
        self._agenda.requeue(batch.job)
        self._agenda.drop(victim, reason)

    def _kill(self, holder: WorkerHandle, batch: Batch, target: Target, reason: BaseException) -> bool:
        """The worker has read the batch: kill it when it runs this very call, or let the outcome go unheard."""
        target.set_outcome(False, reason)
        self.condemned[batch] = holder
        self.look()
        return True
