"""Count what a pool does, for the scoreboard, the report and the trace.

    JobQueue ─── call_began, items_ended, call_ended ─►              ┌─► Scoreboard: counts, calls, failures
    ReportReader batch_began, batch_ran ─────────────────► Metrics ──┼─► PoolStats: `Pool.report()`
    Supervisor ─ worker_requested, worker_arrived ─────►             └─► Trace: `Pool(trace=)`
    Reaper ───── item_lost, worker_left ───────────────►

The leader calls these methods once per batch. For short items it calls none of them once per item.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pairpool.linux import descriptors
from pairpool.master.functions import Functions
from pairpool.master.jobs.base import Batch, Job
from pairpool.master.statistics import PoolStats
from pairpool.scoreboard.board import (
    CALL_KINDS,
    CALLS,
    NOTHING,
    CallRecord,
    FailureRecord,
    PoolWord,
    State,
    Word,
)
from pairpool.scoreboard.master_board import MasterScoreboard
from pairpool.trace_events import LostItem, RanBatch, Trace
from pairpool.transport.failures import safe, short_call, short_repr
from pairpool.transport.items import Pickles, for_display
from pairpool.transport.protocol import Mode, ResultPacket
from pairpool.transport.stamps import Stamps

if TYPE_CHECKING:
    from pairpool.master.workers import WorkerHandle

__all__ = ["Metrics", "arguments_of"]

SHOW_ARGUMENT_AFTER_NS = 10_000_000
"""Time for which an item must have run before its argument is written to the scoreboard."""

SHOW_ARGUMENT_AT_ONCE_NS = 20_000_000
"""Mean duration of a call's items from which the argument of each item is written when the item begins."""

FAILURES_DESCRIBED_PER_BATCH = 4
"""Failures of one batch that are written to the scoreboard."""


def arguments_of(batch: Batch, offset: int) -> str:
    """Return a short text of the item at this offset, or of the arguments of a single call."""
    item, mode = batch.items[offset], batch.job.mode
    if mode == Mode.CALL:
        call = item[1:] if len(item) == 3 else for_display(item[1])
        return short_call(*call) if type(call) is tuple else short_repr(call)
    if isinstance(batch.items, Pickles):
        item = for_display(item)
    return short_call(item) if mode == Mode.STAR and isinstance(item, (tuple, list)) else short_repr(item)


class Metrics:
    """Count what one pool does. Only the leader uses it.

    Args:
        scoreboard: shows the counts.
        functions: knows the names of the functions of single calls.
        trace: receives the events; None for no trace.

    Attributes:
        statistics: the counts of the report.
    """

    def __init__(self, scoreboard: MasterScoreboard, functions: Functions, trace: Trace | None = None) -> None:
        self._scoreboard = scoreboard
        self._own, self._shown = scoreboard.own.pool, scoreboard.pool
        self._functions = functions
        self._store = scoreboard.store
        self.trace = trace
        self.statistics = PoolStats(scoreboard.created)
        self._done = 0
        self._failed = 0
        self._second = 0
        self._second_word = 0
        self._call_numbers = itertools.count(1)

    # --- calls and items ------------------------------------------------------------------------

    def call_began(self, job: Job, others: int) -> None:
        """Count a call that was made while `others` other calls had not ended."""
        job.register(next(self._call_numbers), time.monotonic_ns())
        self._own[PoolWord.CALLS] = self._shown[PoolWord.CALLS] = others + 1
        if not others:
            self.statistics.work_began(job.began_ns)
        if self.trace is not None:
            name = "" if job.function is None else job.function.name
            self.trace.call_began(job.number, job.kind, name, job.total, job.began_ns)

    def items_ended(self, batch: Batch, failed: Mapping[int, BaseException]) -> None:
        """Count the items of a batch, which have all ended; `failed` has the errors by offset."""
        count, own, shown = batch.count, self._own, self._shown
        batch.job.count_ended(count, len(failed))
        self._done += count
        own[PoolWord.DONE] = shown[PoolWord.DONE] = self._done
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._second_word = self._scoreboard.begin_second(second)
        own[self._second_word] = shown[self._second_word] = own[self._second_word] + count
        if failed:
            self._failed += len(failed)
            own[PoolWord.FAILED] = shown[PoolWord.FAILED] = self._failed
            self._count_failures(batch, failed)

    def _count_failures(self, batch: Batch, failed: Mapping[int, BaseException]) -> None:
        """Count failures by function, and describe the last ones on the scoreboard."""
        if batch.job.function is not None:
            self.statistics.function(batch.job.function.name).add_failed(len(failed))
        else:
            for offset in failed:
                self.statistics.function(self.name_of(batch, offset)).add_failed(1)
        now = time.monotonic_ns()
        worker = NOTHING if batch.worker is None else batch.worker
        for offset in sorted(failed)[-FAILURES_DESCRIBED_PER_BATCH:]:
            name = self.name_of(batch, offset)
            record = FailureRecord(now, worker, batch.first + offset, name, _in_one_line(failed[offset]))
            self._scoreboard.add_failure(record)

    def name_of(self, batch: Batch, offset: int) -> str:
        """Return the name of an item's function."""
        if batch.job.function is not None:
            return batch.job.function.name
        return self._function_name(batch.items[offset][0])

    def _function_name(self, number: int) -> str:
        function = self._functions.find(number)
        return "a call" if function is None else function.name

    def call_ended(self, job: Job, others: int) -> None:
        """Note that a call has ended while `others` other calls have not."""
        own, shown = self._own, self._shown
        own[PoolWord.CALLS] = shown[PoolWord.CALLS] = others
        if not others:
            own[PoolWord.LISTED] = shown[PoolWord.LISTED] = 0
            own[PoolWord.PENDING] = shown[PoolWord.PENDING] = 0
            self.statistics.work_ended(time.monotonic_ns())
        if self.trace is not None:
            self.trace.call_ended(job.number, time.monotonic_ns(), job.items_ended, job.items_failed)

    def refresh(self, unfinished: Iterable[Job]) -> None:
        """Write the calls that have not ended to the scoreboard. Called some times per second, and on request."""
        jobs = list(unfinished)
        self._store(PoolWord.CALLS, len(jobs))
        self._store(PoolWord.PENDING, sum(max(0, job.handed_in - job.items_ended) for job in jobs))
        self._store(PoolWord.COUNTED, self._done)
        self._scoreboard.write_calls([self._record(job) for job in jobs[:CALLS]])

    def _record(self, job: Job) -> CallRecord:
        total = job.total
        function = job.function
        if function is not None:
            self._scoreboard.name_function(function.number, function.name)
        return CallRecord(
            0 if function is None else function.number,
            CALL_KINDS.index(job.kind),
            NOTHING if total is None else total,
            job.items_ended,
            job.items_failed,
            job.began_ns,
            job.number,
        )

    # --- batches --------------------------------------------------------------------------------

    def batch_began(self, worker: WorkerHandle, batch: Batch) -> None:
        """Show the argument of the first item of a batch that begins now, if the call's items are long."""
        if batch.job.sizer.item_ns >= SHOW_ARGUMENT_AT_ONCE_NS:
            self._scoreboard.show_argument(worker.number, batch.number, batch.first, arguments_of(batch, 0))

    def describe(self, workers: Iterable[WorkerHandle]) -> None:
        """Show the arguments of items that have run for long. Called some times per second, and on request."""
        now = time.monotonic_ns()
        for worker in workers:
            words = worker.slot.words
            item, number = words[Word.ITEM], words[Word.BATCH]
            if now - words[Word.STARTED] < SHOW_ARGUMENT_AFTER_NS or words[Word.STATE] == State.IDLE:
                continue
            own = worker.slot.own
            if (own[Word.SHOWN_BATCH], own[Word.SHOWN_ITEM]) == (number, item):
                continue
            batch = next((one for one in worker.held if one.number == number), None)
            if batch is not None and 0 <= item - batch.first < batch.count:
                self._scoreboard.show_argument(worker.number, number, item, arguments_of(batch, item - batch.first))

    def batch_ran(
        self,
        worker: WorkerHandle,
        batch: Batch,
        report: ResultPacket,
        stamps: Stamps | None,
        failed: Mapping[int, BaseException],
    ) -> None:
        """Count the items of a report, which are the first ones of a batch or all that were left of it.

        Args:
            report: the packet with the number of items. The last report has the time of the whole batch.
            stamps: when each item began, if the worker noted that.
            failed: the errors, by offset.
        """
        count, nanoseconds = min(report.item_count, batch.count), report.took_ns
        self.statistics.slot(worker.number).add_work(nanoseconds, count)
        if stamps is not None:
            self._count_durations(worker.number, batch, stamps.lengths())
            if self.trace is not None:
                self._trace_batch(self.trace, worker.number, batch, stamps, failed)
        elif count == 1 and nanoseconds:
            self._count_durations(worker.number, batch, [nanoseconds])
        elif count and nanoseconds:
            self._count_whole_batch(worker.number, batch, count, nanoseconds)

    def _count_durations(self, worker: int, batch: Batch, lengths: Sequence[int]) -> None:
        """Count items by function, and note the slowest ones."""
        function = batch.job.function
        for offset, length in enumerate(lengths[: batch.count]):
            name = function.name if function is not None else self.name_of(batch, offset)
            self._count_duration(worker, batch, offset, name, length)

    def _count_duration(self, worker: int, batch: Batch, offset: int, name: str, length: int) -> None:
        self.statistics.function(name).durations.add(length)
        if self.statistics.is_slow(length):
            self.statistics.add_slow(length, name, batch.first + offset, worker, partial(arguments_of, batch, offset))

    def _count_whole_batch(self, worker: int, batch: Batch, count: int, nanoseconds: int) -> None:
        """Count the items of a batch of many, of which only the total time is known.

        All items count as equally long. Exception: the worker handed back the rest of the batch. Then its last item was
        long, and the others count as long as the call's items usually are.
        """
        usual, last = nanoseconds // count, count - 1
        if batch.limit and 0 < batch.job.sizer.item_ns < usual:
            usual = int(batch.job.sizer.item_ns)
            self._count_duration(worker, batch, last, self.name_of(batch, last), nanoseconds - usual * last)
            count = last
        if batch.job.function is not None:
            self.statistics.function(batch.job.function.name).durations.add(usual, count)
        else:
            for number, uses in batch.uses().items():
                self.statistics.function(self._function_name(number)).durations.add(usual, uses)

    def _trace_batch(
        self, trace: Trace, worker: int, batch: Batch, stamps: Stamps, failed: Mapping[int, BaseException]
    ) -> None:
        function, offsets = batch.job.function, range(min(batch.count, len(stamps.starts)))
        name = function.name if function is not None else [self.name_of(batch, offset) for offset in offsets]
        errors = {offset: _in_one_line(error) for offset, error in failed.items() if offset in offsets}
        trace.batch(
            RanBatch(
                worker,
                batch.job.number,
                name,
                batch.first,
                stamps.began,
                stamps.ended,
                stamps.starts[: batch.count],
                errors,
                partial(arguments_of, batch),
            )
        )

    def item_lost(self, worker: WorkerHandle, batch: Batch, error: BaseException) -> None:
        """Count the only item of a batch, which ended with its worker."""
        now = time.monotonic_ns()
        began = min(max(worker.slot.words[Word.STARTED], self.statistics.created), now)  # the task may have stored it
        length = max(1, now - began)
        name = self.name_of(batch, 0)
        self._count_duration(worker.number, batch, 0, name, length)
        if self.trace is not None:
            text = _in_one_line(error)
            self.trace.lost(LostItem(worker.number, batch.job.number, name, batch.first, began, now, text))
        self.statistics.slot(worker.number).add_work(length, 0)

    # --- workers --------------------------------------------------------------------------------

    def set_processes(self, processes: int) -> None:
        """Show the number of workers that the pool keeps from now on."""
        self._store(PoolWord.PROCESSES, processes)

    def worker_requested(self, number: int) -> None:
        """Count the time of a place from the request for a worker on."""
        self._store(PoolWord.PLACES, max(self._own[PoolWord.PLACES], number + 1))
        self.statistics.slot(number).worker_requested(time.monotonic_ns())

    def worker_arrived(self, worker: WorkerHandle) -> None:
        """Record a new worker in the trace."""
        if self.trace is not None:
            replaced = worker.slot.own[Word.REPLACED]
            self.trace.worker_began(worker.number, worker.pid, time.monotonic_ns(), replaced)

    def worker_left(self, worker: WorkerHandle, reason: str) -> None:
        """End the time of a worker that died for this reason; an empty reason means that it was retired."""
        now = time.monotonic_ns()
        ready = worker.slot.words[Word.READY]
        self.statistics.slot(worker.number).worker_left(ready, now, died=bool(reason))
        if self.trace is not None:
            self.trace.worker_ended(worker.number, worker.pid, now, reason or "let go", died=bool(reason))

    # --- the pool -------------------------------------------------------------------------------

    def closing(self) -> None:
        """Show that the pool takes no more calls."""
        self._store(PoolWord.STATE, PoolWord.STATES.index("CLOSE"))

    def close(self) -> None:
        """Show that the pool has ended, and end the trace."""
        now = time.monotonic_ns()
        for number, slot in self.statistics.slots.items():
            slot.worker_left(self._scoreboard.slot(number).words[Word.READY], now, died=False)
        self.statistics.end(now)
        self._store(PoolWord.ENDED, now)
        self._store(PoolWord.STATE, PoolWord.STATES.index("TERMINATE"))
        if self.trace is not None:
            descriptors.disown(self.trace)
            self.trace.close()


def _in_one_line(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    text = safe(lambda: str(error)).strip().partition("\n")[0]
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
