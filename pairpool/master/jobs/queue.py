"""The agenda: which jobs there are, what goes out next, and where outcomes go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pairpool.master.functions import Functions
from pairpool.master.jobs.base import Batch, Calls, Job, SingleCall, Target
from pairpool.master.jobs.call_options import DEFAULTS, CallOptions
from pairpool.master.jobs.stream import StreamJob
from pairpool.master.metrics import Metrics
from pairpool.transport.failures import error_for_each
from pairpool.transport.protocol import Mode

__all__ = ["JobQueue"]


class JobQueue:
    """All jobs that have not ended, in the order in which they were submitted.

    Args:
        functions: the functions that the jobs use.
        forget: called with numbers of functions that no job uses any more.
        is_in_the_way: whether the input of a stream must not be read now.
        accounts: told what begins and what ends.

    Attributes:
        queue: jobs that may have something to send.
        unfinished: these, and those that wait for results.
        broken: why nothing can be run any more, if so.
        at_rest: called when all jobs have ended.
    """

    def __init__(
        self,
        functions: Functions,
        forget: Callable[[list[int]], None],
        is_in_the_way: Callable[[object], bool],
        accounts: Metrics,
    ) -> None:
        self.functions = functions
        self._accounts = accounts
        self._forget = forget
        self._is_in_the_way = is_in_the_way
        self.queue: deque[Job] = deque()
        self.unfinished: dict[Job, None] = {}
        self.broken: BaseException | None = None
        self.at_rest: Callable[[], object] = _nothing

    # --- in -------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Append a job; if nothing can be run, it ends at once."""
        if self.broken is not None:
            job.cancel(self.broken)
            return
        if job in self.unfinished:
            return
        self._accounts.call_began(job, len(self.unfinished))
        self.unfinished[job] = None
        if isinstance(job, StreamJob):
            job.is_in_the_way = self._is_in_the_way
        if job.done:
            job.end()
            self.settle(job)
        else:
            self.queue.append(job)

    def add_call(self, target: Target, call: SingleCall, options: CallOptions = DEFAULTS) -> None:
        """Append a single call, to those before it if no other job stands between; one that is there already stays."""
        if target.has_outcome:
            return
        job = target.job
        if isinstance(job, Calls):  # an exception has cut this short before
            if not job.has(target):
                job.add(target, call)
        else:
            last = self.queue[-1] if self.queue else None
            fits = isinstance(last, Calls) and last.options == options
            job = last if isinstance(last, Calls) and fits else Calls(Mode.CALL, options)
            job.add(target, call)
        if job not in self.unfinished:
            self.add(job)

    # --- out ------------------------------------------------------------------------------------

    def next_batch(self, workers: int, at_most: int) -> Batch | None:
        """What goes out next, of the first job that has something. May run the caller's iterators.

        Args:
            workers: among how many the rest of an input is shared.
            at_most: items that a batch of automatic size may have.
        """
        for job in list(self.queue):
            batch = job.take(workers, at_most)
            if batch is not None:
                if not job.has_more and self.queue and self.queue[0] is job:
                    self.queue.popleft()
                return batch
            if not job.has_more:
                if job in self.queue:
                    self.queue.remove(job)
                self.settle(job)
        return None

    def put_back(self, batches: Iterable[Batch]) -> None:
        """Take back batches that were not run: they are looked at first."""
        for batch in batches:
            batch.job.put_back(batch)
            self.requeue(batch.job)

    def withdraw(self, job: Calls) -> None:
        """Take back the calls of a job that have an outcome and were not handed out."""
        self.release(job.withdraw_settled())

    def requeue(self, job: Job) -> None:
        """Have a job looked at first, for some of its batches came back."""
        if isinstance(job, Calls) and job.dropped is not None:
            self._sift(job, job.dropped)
        if job.again and job not in self.queue:
            self.queue.appendleft(job)

    def _sift(self, job: Calls, reason: BaseException) -> None:
        """Take calls that have an outcome out of the batches that wait to go out once more."""
        for batch in [one for one in job.again if one.number in job.open and one.has_settled()]:
            parts = batch.split()
            job.replace(batch, [part for is_settled, part in parts if not is_settled])
            for is_settled, part in parts:
                if is_settled:
                    self.fail(part, reason)

    # --- back -----------------------------------------------------------------------------------

    def deliver(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Hand the outcome of a batch to its job."""
        job = batch.job
        if failed and job.options.retries and batch.number in job.open:
            again = [offset for offset in sorted(failed) if job.wants_again(batch, offset, failed[offset])]
            if again:
                self.deliver_but(batch, again, values, failed)
                return
        self._hand_over(batch, values, failed)

    def _hand_over(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        job = batch.job
        if batch.movers:
            batch.hand_over()
        if batch.number in job.open and not job.cancelled:
            self._accounts.items_ended(batch, failed)
        if job.function is None and batch.number in job.open:
            self.release(batch.uses())
        job.deliver(batch, values, failed)
        if job.tries:
            for index in range(batch.first, batch.first + batch.count):
                job.tries.pop(index, None)
        if not job.open:
            self.settle(job)

    def deliver_but(
        self, batch: Batch, again: list[int], values: list[Any], failed: dict[int, BaseException], **marks: bool
    ) -> None:
        """Hand the outcome of a batch to its job, without the items at the offsets `again`: they are run once more.

        Args:
            marks: attributes to set on the batches of these items.
        """
        retried = [batch.part(offset, offset + 1) for offset in again]
        ended: list[tuple[Batch, list[Any], dict[int, BaseException]]] = []
        start = 0
        for offset in [*again, batch.count]:
            if offset > start:
                part_failed = {at - start: error for at, error in failed.items() if start <= at < offset}
                ended.append((batch.part(start, offset), values[start:offset], part_failed))
            start = offset + 1
        for part in retried:
            for name, value in marks.items():
                setattr(part, name, value)
        batch.job.replace(batch, retried)
        self.requeue(batch.job)
        for part, part_values, part_failed in ended:
            self._hand_over(part, part_values, part_failed)

    def fail(self, batch: Batch, error: BaseException) -> None:
        """End all items of a batch with `error`, each with an exception of its own; they may be due another try."""
        self.deliver(batch, [None] * batch.count, dict(enumerate(error_for_each(error, batch.count))))

    def drop(self, batch: Batch, reason: BaseException) -> None:
        """End all items of a batch with `reason`, for nobody wants them any more."""
        self._hand_over(batch, [None] * batch.count, dict.fromkeys(range(batch.count), reason))

    def release(self, uses: Mapping[int, int]) -> None:
        """So many single calls have ended, by the number of their function."""
        for number, count in uses.items():
            function = self.functions.find(number)
            if function is not None:
                self._forget(self.functions.release(function, count))

    def settle(self, job: Job) -> None:
        """Let go of a job if all its items have ended."""
        if job.done and job in self.unfinished:
            del self.unfinished[job]
            self._accounts.call_ended(job, len(self.unfinished))
            if job in self.queue:
                self.queue.remove(job)
            if job.function is not None:
                self._forget(self.functions.release(job.function))
            if not self.unfinished:
                self.at_rest()

    def cancel(self, job: Job, reason: BaseException) -> None:
        """End a job with all its items."""
        uses = job.uses() if isinstance(job, Calls) else {}
        job.cancel(reason)
        self.release(uses)
        self.settle(job)

    def break_down(self, reason: BaseException) -> None:
        """End every call, now and later, with `reason`; later calls with the first reason, if there are several."""
        if self.broken is None:
            self.broken = reason
        self.cancel_all(reason)

    def cancel_all(self, reason: BaseException) -> None:
        for job in list(self.unfinished):
            self.cancel(job, reason)

    def mend(self, held: set[int]) -> None:
        """Put back what neither a worker holds nor waits to go out: an exception struck while it was on its way."""
        for job in list(self.unfinished):
            waiting = {batch.number for batch in job.again}
            lost = [batch for batch in job.open.values() if batch.number not in held | waiting]
            self.put_back(lost)
            if job.has_more and job not in self.queue:
                self.queue.appendleft(job)
            self.settle(job)

    def expect_no_reader(self) -> None:
        """Let streams run ahead of their readers, who come after the end of the pool."""
        for job in self.unfinished:
            if isinstance(job, StreamJob):
                job.unbounded = True


def _nothing() -> None:
    """Nobody wants to know."""
