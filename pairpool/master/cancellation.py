"""Ending calls before they have ended by themselves: what is queued goes nowhere, what runs is killed if so asked."""

from __future__ import annotations

from pairpool.master.agenda import Agenda
from pairpool.master.crew import Crew, Member
from pairpool.master.jobs import Batch, Calls, Job, Target
from pairpool.master.overseer import Overseer

__all__ = ["Cancellation"]


class Cancellation:
    """Cancels jobs and single calls; used by the leader alone."""

    def __init__(self, agenda: Agenda, crew: Crew, overseer: Overseer) -> None:
        self._agenda = agenda
        self._crew = crew
        self._overseer = overseer

    def job(self, job: Job, reason: BaseException, *, kill: bool) -> bool:
        """End a whole job with `reason`; False if it has ended already."""
        if job not in self._agenda.unfinished:
            return False
        self._agenda.cancel(job, reason)
        for member in list(self._crew.members.values()):
            if any(batch.job is job for batch in member.held):
                self._recall(member)
                if kill:
                    for batch in [one for one in member.held if one.job is job]:
                        self._overseer.kill(member, batch, None)
        return True

    def waiting(self, job: Calls, reason: BaseException) -> None:
        """End those of several calls that no worker has begun."""
        for member in list(self._crew.members.values()):
            if any(batch.job is job for batch in member.held):
                self._recall(member)
        while job.again:
            self._agenda.fail(job.again.popleft(), reason)
        targets, uses = job.withdraw_all()
        self._agenda.release(uses)
        for target in targets:
            target.set_outcome(False, reason)
        self._agenda.settle(job)

    def _recall(self, member: Member) -> None:
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
        return kill and self._kill(holder, batch, offset, target, reason)

    def _drop(self, batch: Batch, offset: int, reason: BaseException) -> None:
        victim = batch.part(offset, offset + 1)
        batch.job.replace(batch, batch.without(offset))
        self._agenda.requeue(batch.job)
        self._agenda.fail(victim, reason)

    def _kill(self, holder: Member, batch: Batch, offset: int, target: Target, reason: BaseException) -> bool:
        """The worker has read the batch: kill it if it runs this very call, or let the outcome go unheard."""
        self._overseer.kill(holder, batch, batch.first + offset)
        target.set_outcome(False, reason)
        return True
