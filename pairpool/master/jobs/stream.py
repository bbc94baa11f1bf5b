"""The job of a stream: items of an input, results for an iterator that somebody reads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

from pairpool.linux.interrupts import allow_signals, is_from_handler
from pairpool.master.functions import Function
from pairpool.master.jobs.base import MANY, Batch, Job
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.intake import Source, Span

__all__ = ["Raised", "StreamJob", "StreamSpec"]


_NOTHING = Span(())


class Raised:
    """An exception among the results of a stream."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """How the results of a stream are read.

    Attributes:
        ordered: whether results come in the order of the input.
        total: the number of items; None if it is not known.
        is_ahead: whether the job runs to its end although the reader takes no results.
        waits_for_reader: whether the job never takes more items than the buffer holds, even after the reader has left:
            the input may be endless.
        frees_results: whether the job keeps no reference to a result that the reader has had. That costs 0.1 µs per
            result.
    """

    ordered: bool
    total: int | None = None
    is_ahead: bool = False
    waits_for_reader: bool = False
    frees_results: bool = False


class StreamJob(Job):
    """Items of an input, results for an iterator; bounded by how far it may be ahead of its reader.

    Args:
        source: where the items come from.
        options: of the call.
        spec: how the results are read.

    Attributes:
        unbounded: whether the job runs on although the reader takes no results.
        waits_for_reader: see `StreamSpec`.
    """

    kind = "imap"

    def __init__(
        self,
        function: Function,
        mode: int,
        source: Source,
        options: CallOptions,
        spec: StreamSpec,
    ) -> None:
        super().__init__(function, mode, options)
        self._total = spec.total
        self._source = source
        self._ordered = spec.ordered
        self._buffersize = options.buffersize
        self._taken = 0
        self._pulling = False
        self._is_adding = False  # whether the last items have left the input, but do not count yet
        self._exhausted = False
        self._input_error: BaseException | None = None
        self._arrived: dict[int, tuple[int, list[list[Any] | Raised]]] = {}
        self._due = 0
        self._discarding = False
        self.is_in_the_way: Callable[[object], bool] = lambda _job: False
        self.unbounded = spec.is_ahead
        self.waits_for_reader = spec.waits_for_reader
        self.ready: deque[list[Any] | Raised] = deque()
        """What can be yielded now: results of one batch, or a failure."""
        self.handed: Iterator[Any] = iter(())
        """The results that the reader is at."""
        self._frees_results = spec.frees_results
        self._at: list[Any] = []  # what they are taken from, in that case
        self._handed_out = 0

    @property
    def total(self) -> int | None:
        return self._taken if self._exhausted else self._total

    @property
    def handed_in(self) -> int:
        return self._taken if self._exhausted or self._total is None else self._total

    @property
    def has_more(self) -> bool:
        return not self._exhausted or bool(self.again)

    @property
    def yielded(self) -> int:
        """How many results the reader has had."""
        return self._handed_out - self.left()

    def left(self) -> int:
        """How many of the results that were handed out the reader has not had."""
        return len(self._at) if self._frees_results else length_hint(self.handed)

    @property
    def has_results(self) -> bool:
        """Whether results come next, and not a failure."""
        return bool(self.ready) and type(self.ready[0]) is not Raised

    def hand_out(self) -> Iterator[Any]:
        """The results of the next batch, or of as much of it as came without a failure."""
        results: Any = self.ready.popleft()
        if self._frees_results:
            self._at = results[::-1]
            self.handed = map(list.pop, itertools.repeat(self._at, len(results)))
        else:
            self.handed = iter(results)
        self._handed_out += len(results)  # after it: meanwhile the reader seems to have had too few, and not too many
        return self.handed

    def hand_out_error(self) -> BaseException | None:
        """The failure that is next, if one is."""
        if not self.ready or self.has_results:
            return None
        raised: Any = self.ready.popleft()
        self._handed_out += 1
        return raised.error  # type: ignore[no-any-return]

    @property
    def is_read(self) -> bool:
        """Whether the reader has had all results, failures included.

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

    def has_at_least(self, count: int) -> bool:
        return not self._exhausted and self._source.has_at_least(count)

    @property
    def made_ns(self) -> float:
        """What the input needs to make an item, in nanoseconds; 0 where that is not known."""
        return self._source.item_ns

    def _room(self, workers: int) -> int:
        if self.unbounded:
            return MANY
        bound = self._buffersize or self.sizer.lookahead(workers, self.made_ns)
        return bound - (self._taken - self.yielded)

    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        if self._pulling or self._exhausted or self.is_in_the_way(self):
            return None
        room = self._room(workers)
        size = self.size(None, workers, at_most)
        if room < 1 or (room < size and self._taken > self.yielded and self._buffersize is None):
            if self._discarding:
                self._end_unread()
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
        """Up to `size` items; the caller's iterator may use the pool, and so come back here."""
        source = self._source
        exactly = self.sizer.chunksize is not None
        self._pulling = True
        try:
            with allow_signals():
                items = source.pull(size, exactly=exactly)
        except BaseException as error:
            if is_from_handler(error) or not isinstance(error, Exception):
                raise  # those who go on reading get the items that were taken before
            self._input_error = error
            items = source.rest()
            if self.sizer.chunksize not in (None, 1):
                items = ()  # as in multiprocessing: a chunk that could not be filled is not run
            self._is_adding = True
            self._exhausted = True
            self._source = _NOTHING
        else:
            self._is_adding = True
            self._exhausted = self._exhausted or source.is_exhausted
        finally:
            self._pulling = False
        return items

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

    def trim(self, keep: int, workers: int, reason: BaseException) -> list[Batch]:
        """Take no more of the input; returns the batches that wait to go out, but for the first few."""
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
        """Take no more of the input; the reader gets `reason` after the results of what was taken."""
        if not self._exhausted:
            self._exhausted = True
            self._source = _NOTHING
            self._input_error = reason

    def _end_unread(self) -> None:
        """The buffer is full, and nobody will read it."""
        self._exhausted = True
        self._source = _NOTHING

    def discard(self) -> None:
        """Run to the end, or as much as the buffer holds, and keep no results: there is no reader."""
        self._discarding = True
        self.unbounded = not self.waits_for_reader
        self._arrived.clear()
        self.ready.clear()

    def take_input_error(self) -> BaseException | None:
        """What the input raised, once; asked for when all results have been yielded."""
        error, self._input_error = self._input_error, None
        return error

    @property
    def readable(self) -> bool:
        """Whether a reader need not wait: a result is there, or none will come any more."""
        return bool(self.ready) or self.done

    def cancel(self, reason: BaseException) -> None:
        super().cancel(reason)
        self._exhausted = True
        self._source = _NOTHING
        self._input_error = reason
        self._arrived.clear()
