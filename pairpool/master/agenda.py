"""The agenda: which jobs there are, what goes out next, and where outcomes go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from pairpool.master.functions import Functions
from pairpool.master.jobs import Batch, Calls, Job, StreamJob, Target
from pairpool.worker import Mode

__all__ = ["Agenda"]


class Agenda:
    """All jobs that have not ended, in the order in which they were submitted.

    Args:
        functions: the functions that the jobs use.
        forget: called with numbers of functions that no job uses any more.
        is_in_the_way: whether the input of a stream must not be read now.

    Attributes:
        queue: jobs that may have something to send.
        unfinished: these, and those that wait for results.
        broken: why nothing can be run any more, if so.
    """

    def __init__(
        self,
        functions: Functions,
        forget: Callable[[list[int]], None],
        is_in_the_way: Callable[[object], bool],
    ) -> None:
        self.functions = functions
        self._forget = forget
        self._is_in_the_way = is_in_the_way
        self.queue: deque[Job] = deque()
        self.unfinished: dict[Job, None] = {}
        self.broken: BaseException | None = None

    # --- in -------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Append a job; if nothing can be run, it ends at once."""
        if self.broken is not None:
            job.cancel(self.broken)
            return
        self.unfinished[job] = None
        if isinstance(job, StreamJob):
            job.is_in_the_way = self._is_in_the_way
        if job.done:
            job.end()
            self.settle(job)
        else:
            self.queue.append(job)

    def add_call(self, target: Target, number: int, args: Any, kwds: Any) -> None:
        """Append a single call, to those before it if no other job stands between."""
        last = self.queue[-1] if self.queue else None
        if isinstance(last, Calls):
            last.add(target, number, args, kwds)
            return
        job = Calls(Mode.CALL)
        job.add(target, number, args, kwds)
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

    def requeue(self, job: Job) -> None:
        """Have a job looked at first, for some of its batches came back."""
        if job.again and job not in self.queue:
            self.queue.appendleft(job)

    # --- back -----------------------------------------------------------------------------------

    def deliver(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Hand the outcome of a batch to its job."""
        job = batch.job
        if job.function is None and batch.number in job.open:
            for item in batch.items:
                self._release(item[0])
        job.deliver(batch, values, failed)
        if not job.open:
            self.settle(job)

    def fail(self, batch: Batch, error: BaseException) -> None:
        """End all items of a batch with `error`."""
        self.deliver(batch, [None] * batch.count, dict.fromkeys(range(batch.count), error))

    def _release(self, number: int) -> None:
        function = self.functions.find(number)
        if function is not None:
            self._forget(self.functions.release(function))

    def settle(self, job: Job) -> None:
        """Let go of a job if all its items have ended."""
        if job.done and job in self.unfinished:
            del self.unfinished[job]
            if job in self.queue:
                self.queue.remove(job)
            if job.function is not None:
                self._forget(self.functions.release(job.function))

    def cancel(self, job: Job, reason: BaseException) -> None:
        """End a job with all its items."""
        job.cancel(reason)
        self.settle(job)

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
