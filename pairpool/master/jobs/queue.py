"""The queue of jobs: which jobs have not ended, what goes out next, and to which job an outcome belongs.

add, add_call ──► sendable ── next_batch ──► dispatcher
                  unfinished ◄── deliver, fail, drop, put_back ── dispatcher, supervisor, cancellation
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from pairpool.master.functions import Function, Functions
from pairpool.master.jobs.base import Batch, Job, SingleCall, Target
from pairpool.master.jobs.call_options import DEFAULTS, CallOptions
from pairpool.master.jobs.calls import Calls
from pairpool.master.jobs.stream import StreamJob
from pairpool.master.metrics import Metrics
from pairpool.transport.failures import error_for_each
from pairpool.transport.protocol import Mode

__all__ = ["JobQueue"]


class JobQueue:
    """All jobs that have not ended, in the order in which they were submitted.

    Args:
        functions: the functions that the jobs use.
        metrics: told what begins and what ends.
        forget: called with the numbers of functions that no job uses any more.
        is_input_blocked: tells whether the input of a stream must not be read now.
        on_idle: called when all jobs have ended.

    Attributes:
        sendable: jobs that may have something to send.
        unfinished: these jobs, and those that wait for results.
        broken: the reason why no call can run any more; None while calls can run.
    """

    def __init__(
        self,
        functions: Functions,
        metrics: Metrics,
        forget: Callable[[list[int]], None],
        is_input_blocked: Callable[[object], bool],
        on_idle: Callable[[], object],
    ) -> None:
        self.functions = functions
        self._metrics = metrics
        self._forget = forget
        self._is_input_blocked = is_input_blocked
        self._on_idle = on_idle
        self.sendable: deque[Job] = deque()
        self.unfinished: dict[Job, None] = {}
        self.broken: BaseException | None = None

    # --- in -------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Append a job. If no call can run, the job ends at once."""
        if self.broken is not None:
            job.cancel(self.broken)
            return
        if job in self.unfinished:
            return
        self._metrics.call_began(job, len(self.unfinished))
        self.unfinished[job] = None
        if isinstance(job, StreamJob):
            job.added_to_queue(self._is_input_blocked)
        if job.done:
            job.end()
            self.settle(job)
        else:
            self.sendable.append(job)

    def add_call(self, target: Target, call: SingleCall, options: CallOptions = DEFAULTS) -> None:
        """Append a single call. It joins the calls before it if no other job stands between.

        An exception can interrupt this method. Therefore it can run again for a call that was already added.
        """
        if target.has_outcome:
            return
        job = target.job
        if isinstance(job, Calls):
            if not job.has(target):
                job.add(target, call)
        else:
            last = self.sendable[-1] if self.sendable else None
            fits = isinstance(last, Calls) and (last.options is options or last.options == options)
            job = last if isinstance(last, Calls) and fits else Calls(Mode.CALL, options)
            job.add(target, call)
        if job not in self.unfinished:
            self.add(job)

    # --- out ------------------------------------------------------------------------------------

    @property
    def first(self) -> Job | None:
        """The job whose items go out next."""
        return self.sendable[0] if self.sendable else None

    def streams(self) -> list[StreamJob]:
        """Return the streams that may have something to send, in the order in which they send."""
        return [job for job in self.sendable if isinstance(job, StreamJob)]

    def next_batch(self, workers: int, at_most: int) -> Batch | None:
        """Return the next batch of the first job that has one. May run the callers' iterators.

        Args:
            workers: the number of workers that share the remaining items.
            at_most: the largest number of items of a batch of automatic size.
        """
        for job in list(self.sendable):
            batch = job.take(workers, at_most)
            if batch is not None:
                if not job.has_more and self.sendable and self.sendable[0] is job:
                    self.sendable.popleft()
                return batch
            if not job.has_more:
                if job in self.sendable:
                    self.sendable.remove(job)
                self.settle(job)
        return None

    def put_back(self, batches: Iterable[Batch]) -> None:
        """Take back batches that were not run. Their jobs come first."""
        for batch in batches:
            batch.job.put_back(batch)
            self.requeue(batch.job)

    def requeue(self, job: Job) -> None:
        """Move a job to the front because some of its batches came back."""
        if isinstance(job, Calls) and job.drop_reason is not None:
            self._drop_settled(job, job.drop_reason)
        if job.again and job not in self.sendable:
            self.sendable.appendleft(job)

    def _drop_settled(self, job: Calls, reason: BaseException) -> None:
        """Remove the calls that have an outcome from the batches that wait to go out again."""
        for batch in [one for one in job.again if one.number in job.open and one.has_settled()]:
            parts = batch.split_by_outcome()
            job.replace(batch, [part for is_settled, part in parts if not is_settled])
            for is_settled, part in parts:
                if is_settled:
                    self.fail(part, reason)

    def withdraw(self, job: Calls) -> None:
        """Take back the calls of a job that have an outcome and were not handed out."""
        self.release(job.withdraw_settled())

    def split_off(self, batch: Batch, offset: int) -> Batch:
        """Take one item out of a batch. The other items go out again. Return a batch with the item."""
        item = batch.part(offset, offset + 1)
        batch.job.replace(batch, batch.without(offset))
        self.requeue(batch.job)
        return item

    def functions_of(self, batch: Batch) -> list[Function]:
        """Return the functions that a batch needs."""
        if batch.function is not None:
            return [batch.function]
        return [self.functions.by_number(number) for number in batch.function_numbers()]

    def fail_item_using(
        self, numbers: Container[int], batch: Batch, error_for: Callable[[str, int], BaseException]
    ) -> None:
        """Fail a batch that needs one of the functions with these numbers.

        Of single calls, only the first one that needs such a function fails. The other calls go out again, and the
        dispatcher finds the next one then.

        Args:
            error_for: returns the exception, given the name of the function and the index of the item.
        """
        if batch.function is not None:
            self.fail(batch, error_for(batch.function.name, batch.first))
            return
        offset = next(at for at, item in enumerate(batch.items) if item[0] in numbers)
        call = self.split_off(batch, offset)
        self.fail(call, error_for(self.functions.by_number(call.items[0][0]).name, 0))

    # --- back -----------------------------------------------------------------------------------

    def deliver(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Give the outcome of a batch to its job. Items that failed and have a retry left go out again."""
        job = batch.job
        if failed and job.options.retries and batch.number in job.open:
            again = [offset for offset in sorted(failed) if job.wants_again(batch, offset, failed[offset])]
            if again:
                self.deliver_except(again, batch, values, failed)
                return
        self._give_to_job(batch, values, failed)

    def _give_to_job(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        job = batch.job
        if batch.close_after_send:
            batch.hand_over()
        if batch.number in job.open and not job.cancelled:
            self._metrics.items_ended(batch, failed)
        if job.function is None and batch.number in job.open:
            self.release(batch.uses())
        job.deliver(batch, values, failed)
        if job.tries:
            for index in range(batch.first, batch.first + batch.count):
                job.tries.pop(index, None)
        if not job.open:
            self.settle(job)

    def deliver_except(
        self,
        again: list[int],
        batch: Batch,
        values: list[Any],
        failed: dict[int, BaseException],
        mark: Callable[[Batch], None] | None = None,
    ) -> None:
        """Give the outcome of a batch to its job, except for the items at the offsets `again`, which run once more.

        Args:
            mark: called with the batches of these items before they go out.
        """
        retried = [batch.part(offset, offset + 1) for offset in again]
        ended: list[tuple[Batch, list[Any], dict[int, BaseException]]] = []
        start = 0
        for offset in [*again, batch.count]:
            if offset > start:
                part_failed = {at - start: error for at, error in failed.items() if start <= at < offset}
                ended.append((batch.part(start, offset), values[start:offset], part_failed))
            start = offset + 1
        if mark is not None:
            for part in retried:
                mark(part)
        batch.job.replace(batch, retried)
        self.requeue(batch.job)
        for part, part_values, part_failed in ended:
            self._give_to_job(part, part_values, part_failed)

    def fail(self, batch: Batch, error: BaseException) -> None:
        """End all items of a batch with `error`, each with an exception of its own. Items may have a retry left."""
        self.deliver(batch, [None] * batch.count, dict(enumerate(error_for_each(error, batch.count))))

    def drop(self, batch: Batch, reason: BaseException) -> None:
        """End all items of a batch with `reason`, without a retry, because no caller wants them any more."""
        self._give_to_job(batch, [None] * batch.count, dict.fromkeys(range(batch.count), reason))

    # --- the end --------------------------------------------------------------------------------

    def release(self, uses: Mapping[int, int]) -> None:
        """Note that single calls have ended: how many, by the number of their function."""
        for number, count in uses.items():
            function = self.functions.find(number)
            if function is not None:
                self._forget(self.functions.release(function, count))

    def settle(self, job: Job) -> None:
        """Remove a job if all its items have ended."""
        if job.done and job in self.unfinished:
            del self.unfinished[job]
            self._metrics.call_ended(job, len(self.unfinished))
            if job in self.sendable:
                self.sendable.remove(job)
            if job.function is not None:
                self._forget(self.functions.release(job.function))
            if not self.unfinished:
                self._on_idle()

    def cancel(self, job: Job, reason: BaseException) -> None:
        """End a job with all its items."""
        uses = job.uses() if isinstance(job, Calls) else {}
        job.cancel(reason)
        self.release(uses)
        self.settle(job)

    def refuse_calls(self, reason: BaseException) -> BaseException:
        """End every call that is added from now on. Return the reason, which is the first one that was given."""
        if self.broken is None:
            self.broken = reason
        return self.broken

    def break_down(self, reason: BaseException) -> None:
        """End all present calls with `reason`, and all later calls with the first reason that was given."""
        self.refuse_calls(reason)
        self.cancel_all(reason)

    def cancel_all(self, reason: BaseException) -> None:
        for job in list(self.unfinished):
            self.cancel(job, reason)

    def recover(self, held: set[int]) -> None:
        """After an exception interrupted the engine, put back batches that were lost on their way.

        Such a batch is open, no worker holds it, and it does not wait to go out.

        Args:
            held: the numbers of the batches that workers hold.
        """
        for job in list(self.unfinished):
            waiting = {batch.number for batch in job.again}
            lost = [batch for batch in job.open.values() if batch.number not in held | waiting]
            self.put_back(lost)
            if job.has_more and job not in self.sendable:
                self.sendable.appendleft(job)
            self.settle(job)

    def expect_no_reader(self) -> None:
        """Let streams run ahead of their readers, who come after the end of the pool."""
        for job in self.unfinished:
            if isinstance(job, StreamJob):
                job.expect_no_reader()
