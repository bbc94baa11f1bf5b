"""The job of a stream: the items of an input, and results for an iterator that a thread reads.

    Source ── pull ──► StreamJob ──► batches
    reader ◄─ hand_out ─ ready ◄─ _arrived ◄─ batches      (`_arrived` puts ordered results into order)

The job takes no item that would be too far ahead of its reader, so that memory stays bounded.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any, NamedTuple

from pairpool.linux.interrupts import allow_signals, is_from_handler
from pairpool.master.functions import Function
from pairpool.master.jobs.base import Batch, Job
from pairpool.master.jobs.batch_size import UNBOUNDED
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.intake import Source, Span

__all__ = ["Raised", "StreamJob", "StreamSpec"]


_EMPTY_INPUT = Span(())


class Raised:
    """An exception among the results of a stream."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class StreamSpec(NamedTuple):
    """How the results of a stream are read.

    Args:
        ordered: whether results come in the order of the items.
        total: the number of items; None if it is not known.
        is_ahead: whether the job takes all items at once, because no reader is expected before the end.
        waits_for_reader: whether the job never takes more items than the buffer holds, with a reader or without,
            because the input may be endless.
        frees_results: whether the job keeps no reference to a result that the reader has had. This costs a
            tenth of a microsecond per result.
    """

    ordered: bool
    total: int | None = None
    is_ahead: bool = False
    waits_for_reader: bool = False
    frees_results: bool = False


class StreamJob(Job):
    """The items of an input, and results for an iterator.

    Args:
        source: where the items come from.

    Attributes:
        ready: the results of one batch, or an exception, per entry: what the reader can have now.
        handed: the results that the reader is reading.
    """

    kind = "imap"

    def __init__(self, function: Function, mode: int, source: Source, options: CallOptions, spec: StreamSpec) -> None:
        super().__init__(function, mode, options)
        self._source = source
        self._buffersize = options.buffersize
        self._ordered = spec.ordered
        self._total = spec.total
        self.unbounded = spec.is_ahead
        self.waits_for_reader = spec.waits_for_reader
        self._frees_results = spec.frees_results
        self._taken = 0
        self._pulling = False
        self._is_adding = False  # whether the last items have left the input, but do not count yet
        self._exhausted = False
        self._input_error: BaseException | None = None
        self._arrived: dict[int, tuple[int, list[list[Any] | Raised]]] = {}
        self._due = 0  # index of the first item whose results are not in `ready`, if results are ordered
        self._discarding = False
        self._is_input_blocked: Callable[[object], bool] = lambda _job: False
        self.ready: deque[list[Any] | Raised] = deque()
        self.handed: Iterator[Any] = iter(())
        self._unread: list[Any] = []  # the results of `handed`, last first, if results that were read are dropped
        self._handed_out = 0

    def added_to_queue(self, is_input_blocked: Callable[[object], bool]) -> None:
        """Ask the queue before the input is read: the caller's iterator may be running already."""
        self._is_input_blocked = is_input_blocked

    # --- the reader -----------------------------------------------------------------------------

    @property
    def yielded(self) -> int:
        """The number of results that the reader has had."""
        return self._handed_out - self.left()

    def left(self) -> int:
        """Return how many of the results that were handed out the reader has not had."""
        return len(self._unread) if self._frees_results else length_hint(self.handed)

    @property
    def has_results(self) -> bool:
        """Whether results come next, and not an exception."""
        return bool(self.ready) and type(self.ready[0]) is not Raised

    def hand_out(self) -> Iterator[Any]:
        """Return the results of the next batch, up to the first exception."""
        results: Any = self.ready.popleft()
        if self._frees_results:
            self._unread = results[::-1]
            self.handed = map(list.pop, itertools.repeat(self._unread, len(results)))
        else:
            self.handed = iter(results)
        self._handed_out += len(results)  # last, so that `yielded` is too small meanwhile, and never too large
        return self.handed

    def hand_out_error(self) -> BaseException | None:
        """Return the exception that comes next, or None if results come next."""
        if not self.ready or self.has_results:
            return None
        raised: Any = self.ready.popleft()
        self._handed_out += 1
        return raised.error  # type: ignore[no-any-return]

    @property
    def readable(self) -> bool:
        """Whether a reader need not wait: a result is there, or no more results will come."""
        return bool(self.ready) or self.done

    @property
    def is_read(self) -> bool:
        """Whether the reader has had all results, exceptions included.

        A reader in another thread may look at any moment. So `done` is not enough, for two reasons:

        1. The input is exhausted a moment before its last items are in a batch.
        2. The last batch is delivered a moment before its results can be read. So the results are counted.
        """
        return (
            self.done and not self._is_adding and not self.ready and (self.cancelled or self._handed_out >= self._taken)
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing can be yielded any more."""
        return self.is_read and self._input_error is None

    def take_input_error(self) -> BaseException | None:
        """Return the exception that the input raised, once. The reader asks after it has had all results."""
        error, self._input_error = self._input_error, None
        return error

    def expect_no_reader(self) -> None:
        """Take items without regard to the reader, who comes after the end of the pool."""
        self.unbounded = True

    def discard(self) -> None:
        """Keep no results, because there is no reader. Run to the end, or as far as the buffer reaches."""
        self._discarding = True
        self.unbounded = not self.waits_for_reader
        self._arrived.clear()
        self.ready.clear()

    # --- out ------------------------------------------------------------------------------------

    @property
    def total(self) -> int | None:
        return self._taken if self._exhausted else self._total

    @property
    def handed_in(self) -> int:
        return self._taken if self._exhausted or self._total is None else self._total

    @property
    def has_more(self) -> bool:
        return not self._exhausted or bool(self.again)

    def has_at_least(self, count: int) -> bool:
        return not self._exhausted and self._source.has_at_least(count)

    @property
    def input_item_ns(self) -> float:
        """Nanoseconds that the input needs to make an item; 0 if they are not known."""
        return self._source.item_ns

    def _room(self, workers: int) -> int:
        if self.unbounded:
            return UNBOUNDED
        bound = self._buffersize or self.sizer.lookahead(workers, self.input_item_ns)
        return bound - (self._taken - self.yielded)

    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        if self._pulling or self._exhausted or self._is_input_blocked(self):
            return None
        room = self._room(workers)
        size = self.size(None, workers, at_most)
        if room < 1 or (room < size and self._taken > self.yielded and self._buffersize is None):
            if self._discarding:
                self._close_input()  # the buffer is full, and no reader will empty it
            return None
        try:
            items = self._pull(min(size, max(1, room)))
            if self.cancelled or not items:
                return None
            batch = Batch(self, self._taken, items)
            self._taken += len(items)
            return batch
        finally:
            self._is_adding = False

    def _pull(self, size: int) -> Sequence[Any]:
        """Take up to `size` items. The caller's iterator may use the pool and so call this method again."""
        source = self._source
        exactly = self.sizer.chunksize is not None
        self._pulling = True
        try:
            with allow_signals():
                items = source.pull(size, exactly=exactly)
        except BaseException as error:
            if is_from_handler(error) or not isinstance(error, Exception):
                raise  # if the caller reads on, the items that were taken before are next
            self._input_error = error
            items = source.rest()
            if self.sizer.chunksize not in (None, 1):
                items = ()  # as in multiprocessing: a chunk that could not be filled does not run
            self._is_adding = True
            self._close_input()
        else:
            self._is_adding = True
            self._exhausted = self._exhausted or source.is_exhausted
        finally:
            self._pulling = False
        return items

    def trim(self, keep: int, workers: int, reason: BaseException) -> list[Batch]:
        """Take no more items of the input. Return the batches that wait to go out, except for the first `keep`."""
        while len(self.again) < keep and self.unbounded:
            batch = self.take_fresh(workers, 1)
            if batch is None:
                break
            self.again.append(batch)
        self.end_input(reason)
        waiting = sorted(self.again, key=lambda batch: batch.first)
        self.again = deque(waiting[:keep])
        return waiting[keep:]

    def end_input(self, reason: BaseException) -> None:
        """Take no more items of the input. The reader gets `reason` after the results of the items that were taken."""
        if not self._exhausted:
            self._close_input()
            self._input_error = reason

    def _close_input(self) -> None:
        self._exhausted = True
        self._source = _EMPTY_INPUT

    # --- back -----------------------------------------------------------------------------------

    def has_a_reader(self, batch: Batch, offset: int) -> bool:
        return not self._discarding and super().has_a_reader(batch, offset)

    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        if self._discarding:
            return
        parts: list[list[Any] | Raised] = []
        start = 0
        for offset in sorted(failed):
            parts += [values[start:offset], Raised(failed[offset])]
            start = offset + 1
        parts.append(values[start:] if start else values)
        if self._ordered:
            self._arrived[batch.first] = len(values), parts
            while self._due in self._arrived:
                count, run = self._arrived.pop(self._due)
                self._due += count
                self.ready.extend(part for part in run if part)
        else:
            self.ready.extend(part for part in parts if part)

    def cancel(self, reason: BaseException) -> None:
        super().cancel(reason)
        self._close_input()
        self._input_error = reason
        self._arrived.clear()
