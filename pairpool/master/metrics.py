"""The accounts: what has ended, what failed, how long it took; for the status board, the report and the trace.

    agenda ─ began, ended, settled ─►            ┌─► board (counts, calls, failures): views
    dealer ─ ran ───────────────────► Accounts ──┼─► tally: `Pool.report()`
    nursery ─ asked, ready, buried ──►           └─► trace: `Pool(trace=)`

All of it is told by the leader, once a batch and never once an item where items are short.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
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
    Scoreboard,
    State,
    Word,
)
from pairpool.trace_events import LostItem, RanBatch, Trace
from pairpool.transport.failures import safe, short_call, short_repr
from pairpool.transport.items import Pickles, shown
from pairpool.transport.protocol import Mode, ResultPacket
from pairpool.transport.stamps import Stamps

if TYPE_CHECKING:
    from pairpool.master.workers import WorkerHandle

__all__ = ["Metrics", "arguments_of"]

SHOWN_AFTER_NS = 10_000_000
"""How long an item has to run before its argument is written on the board."""

SHOWN_FROM_NS = 20_000_000
"""How long items of a call have to be for each one's argument to be written as it begins."""

FAILURES_OF_BATCH = 4
"""How many failures of one batch are described."""


def arguments_of(batch: Batch, offset: int) -> str:
    """What an item was, in short."""
    item, mode = batch.items[offset], batch.job.mode
    if mode == Mode.CALL:
        call = item[1:] if len(item) == 3 else shown(item[1])
        return short_call(*call) if type(call) is tuple else short_repr(call)
    if isinstance(batch.items, Pickles):
        item = shown(item)
    return short_call(item) if mode == Mode.STAR and isinstance(item, (tuple, list)) else short_repr(item)


class Metrics:
    """Counts, of one pool; used by the leader alone.

    Args:
        board: where counts are shown.
        functions: knows the names of single calls' functions.
        trace: written along, if there is one.
    """

    def __init__(self, board: Scoreboard, functions: Functions, trace: Trace | None = None) -> None:
        self._board = board
        self._words = board.pool
        self._functions = functions
        self.trace = trace
        self.tally = PoolStats(board.created)
        self._done = 0
        self._failed = 0
        self._second = 0
        self._counter = 0
        self._numbers = itertools.count(1)

    # --- calls and items ------------------------------------------------------------------------

    def began(self, job: Job, others: int) -> None:
        """A call was made, while so many others had not ended."""
        job.number = next(self._numbers)
        job.began = time.monotonic_ns()
        self._words[PoolWord.CALLS] = others + 1
        if not others:
            self.tally.work_began(job.began)
        if self.trace is not None:
            name = "" if job.function is None else job.function.name
            self.trace.call_began(job.number, job.kind, name, job.total, job.began)

    def ended(self, batch: Batch, failed: Mapping[int, BaseException]) -> None:
        """The items of a batch have ended, those at the offsets in `failed` with an exception."""
        job, count, words = batch.job, batch.count, self._words
        job.ended += count
        self._done += count
        words[PoolWord.DONE] = self._done
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._counter = self._board.begin_second(second)
        words[self._counter] += count
        if failed:
            job.failed += len(failed)
            self._failed += len(failed)
            words[PoolWord.FAILED] = self._failed
            self._describe_failures(batch, failed)

    def _describe_failures(self, batch: Batch, failed: Mapping[int, BaseException]) -> None:
        """Write the last of them down, and count them all by function."""
        if batch.job.function is not None:
            self.tally.function(batch.job.function.name).failed += len(failed)
        else:
            for offset in failed:
                self.tally.function(self.name_of(batch, offset)).failed += 1
        now = time.monotonic_ns()
        worker = NOTHING if batch.worker is None else batch.worker
        for offset in sorted(failed)[-FAILURES_OF_BATCH:]:
            name = self.name_of(batch, offset)
            self._board.add_failure(FailureRecord(now, worker, batch.first + offset, name, _in_a_line(failed[offset])))

    def name_of(self, batch: Batch, offset: int) -> str:
        """The name of an item's function."""
        if batch.job.function is not None:
            return batch.job.function.name
        function = self._functions.find(batch.items[offset][0])
        return "a call" if function is None else function.name

    def settled(self, job: Job, others: int) -> None:
        """A call has ended, and so many have not."""
        self._words[PoolWord.CALLS] = others
        if not others:
            self._words[PoolWord.LISTED] = self._words[PoolWord.PENDING] = 0
            self.tally.work_ended(time.monotonic_ns())
        if self.trace is not None:
            self.trace.call_ended(job.number, time.monotonic_ns(), job.ended, job.failed)

    def refresh(self, unfinished: Iterable[Job]) -> None:
        """Write down the calls that have not ended; some times a second, and when somebody asks."""
        jobs = list(unfinished)
        self._words[PoolWord.CALLS] = len(jobs)
        self._words[PoolWord.PENDING] = sum(max(0, job.handed_in - job.ended) for job in jobs)
        self._words[PoolWord.COUNTED] = self._done
        self._board.write_calls([self._record(job) for job in jobs[:CALLS]])

    def _record(self, job: Job) -> CallRecord:
        total = job.total
        function = job.function
        if function is not None:
            self._board.name_function(function.number, function.name)
        return CallRecord(
            0 if function is None else function.number,
            CALL_KINDS.index(job.kind),
            NOTHING if total is None else total,
            job.ended,
            job.failed,
            job.began,
            job.number,
        )

    # --- what ran -------------------------------------------------------------------------------

    def begun(self, member: WorkerHandle, batch: Batch) -> None:
        """A batch is now the one that its worker runs: where items are long, say at once what it is."""
        if batch.job.sizer.item_ns >= SHOWN_FROM_NS:
            self._board.show_argument(member.number, batch.number, batch.first, arguments_of(batch, 0))

    def describe(self, members: Iterable[WorkerHandle]) -> None:
        """Say what runs for long, and was not said yet; some times a second, and when somebody asks."""
        now = time.monotonic_ns()
        for member in members:
            words = member.slot.words
            item, number = words[Word.ITEM], words[Word.BATCH]
            if now - words[Word.STARTED] < SHOWN_AFTER_NS or words[Word.STATE] == State.IDLE:
                continue
            if (words[Word.SHOWN_BATCH], words[Word.SHOWN_ITEM]) == (number, item):
                continue
            batch = next((one for one in member.held if one.number == number), None)
            if batch is not None and 0 <= item - batch.first < batch.count:
                self._board.show_argument(member.number, number, item, arguments_of(batch, item - batch.first))

    def ran(
        self,
        member: WorkerHandle,
        batch: Batch,
        report: ResultPacket,
        stamps: Stamps | None,
        failed: Mapping[int, BaseException],
    ) -> None:
        """A worker has reported the first items of a batch, or the last of those.

        Args:
            report: the packet, with their count, and the time of the whole batch where it is the last one.
            stamps: when each of them was begun, where the worker noted it.
        """
        count, nanoseconds = min(report.item_count, batch.count), report.took_ns
        place = self.tally.place(member.number)
        place.busy += nanoseconds
        place.items += count
        if stamps is not None:
            self._tally(member.number, batch, stamps.lengths())
            if self.trace is not None:
                self._trace_batch(self.trace, member.number, batch, stamps, failed)
        elif count == 1 and nanoseconds:
            self._tally(member.number, batch, [nanoseconds])
        elif count and nanoseconds:
            self._tally_short(member.number, batch, count, nanoseconds)

    def _tally(self, worker: int, batch: Batch, lengths: Sequence[int]) -> None:
        """Count items by function, and note the slowest."""
        tally, function = self.tally, batch.job.function
        for offset, length in enumerate(lengths[: batch.count]):
            name = function.name if function is not None else self.name_of(batch, offset)
            tally.function(name).durations.add(length)
            if tally.is_slow(length):
                tally.add_slow(
                    length,
                    name,
                    batch.first + offset,
                    worker,
                    lambda at=offset: arguments_of(batch, at),  # type: ignore[misc]
                )

    def _tally_short(self, worker: int, batch: Batch, count: int, nanoseconds: int) -> None:
        """Count the items of a batch of many as equals; but one that was cut off was, for its last item was long."""
        usual, last = nanoseconds // count, count - 1
        if batch.limit and 0 < batch.job.sizer.item_ns < usual:
            usual = int(batch.job.sizer.item_ns)
            long = nanoseconds - usual * last
            name = self.name_of(batch, last)
            self.tally.function(name).durations.add(long)
            if self.tally.is_slow(long):
                self.tally.add_slow(long, name, batch.first + last, worker, lambda: arguments_of(batch, last))
            count = last
        if batch.job.function is not None:
            self.tally.function(batch.job.function.name).durations.add(usual, count)
        else:
            for number, uses in batch.uses().items():
                function = self._functions.find(number)
                name = "a call" if function is None else function.name
                self.tally.function(name).durations.add(usual, uses)

    def _trace_batch(
        self, trace: Trace, worker: int, batch: Batch, stamps: Stamps, failed: Mapping[int, BaseException]
    ) -> None:
        function, offsets = batch.job.function, range(min(batch.count, len(stamps.starts)))
        name = function.name if function is not None else [self.name_of(batch, offset) for offset in offsets]
        errors = {offset: _in_a_line(error) for offset, error in failed.items() if offset in offsets}
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
                lambda offset: arguments_of(batch, offset),
            )
        )

    def lost(self, member: WorkerHandle, batch: Batch, error: BaseException) -> None:
        """The only item of a batch ended with its worker."""
        offset = 0
        now = time.monotonic_ns()
        words = member.slot.words
        length = max(1, now - words[Word.STARTED])
        name = self.name_of(batch, offset)
        self.tally.function(name).durations.add(length)
        if self.tally.is_slow(length):
            index = batch.first + offset
            self.tally.add_slow(length, name, index, member.number, lambda: arguments_of(batch, offset))
        if self.trace is not None:
            began = words[Word.STARTED]
            index, text = batch.first + offset, _in_a_line(error)
            self.trace.lost(LostItem(member.number, batch.job.number, name, index, began, now, text))
        self.tally.place(member.number).busy += length

    # --- workers --------------------------------------------------------------------------------

    def keeps(self, processes: int) -> None:
        """The pool keeps so many workers from now on."""
        self._words[PoolWord.PROCESSES] = processes

    def asked(self, number: int) -> None:
        """A worker was asked for in a place."""
        self._words[PoolWord.PLACES] = max(self._words[PoolWord.PLACES], number + 1)
        self.tally.asked(number, time.monotonic_ns())

    def enlisted(self, member: WorkerHandle) -> None:
        """A worker is there."""
        if self.trace is not None:
            words = member.slot.words
            self.trace.worker_began(member.number, member.pid, time.monotonic_ns(), words[Word.REPLACED])

    def left(self, member: WorkerHandle, reason: str) -> None:
        """A worker has ended, or was told to; `reason` says of what it died, and is empty if it was let go."""
        now = time.monotonic_ns()
        self.tally.left(member.number, member.slot.words[Word.READY], now, died=bool(reason))
        if self.trace is not None:
            self.trace.worker_ended(member.number, member.pid, now, reason or "let go", died=bool(reason))

    def closing(self) -> None:
        """The pool takes no more calls."""
        self._words[PoolWord.STATE] = PoolWord.STATES.index("CLOSE")

    def close(self) -> None:
        """The pool has ended."""
        now = time.monotonic_ns()
        for number in self.tally.places:
            self.tally.left(number, self._board.slot(number).words[Word.READY], now, died=False)
        self.tally.work_ended(now)
        self.tally.ended = now
        self._words[PoolWord.ENDED] = now
        self._words[PoolWord.STATE] = PoolWord.STATES.index("TERMINATE")
        if self.trace is not None:
            descriptors.disown(self.trace)
            self.trace.close()


def _in_a_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    text = safe(lambda: str(error)).strip().partition("\n")[0]
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
