"""Jobs and batches: the items of one call on their way out, and their results on the way back.

    Job ── take ──► Batch ──► dispatcher, worker
    Job ◄─ deliver ─ Batch ◄─ report of the worker, or error
    Job ◄─ put_back ─ Batch    not run: it goes out again

A job is one call. It knows its items and the destination of its results, and it knows nothing about workers. A job
hands out batches with `take` and gets each batch back exactly once: delivered, failed or put back, whole or in parts.

1. A batch stays in `Job.open` from `take` until its outcome is delivered. Therefore no batch can be lost.
2. A batch that is not in `Job.open` is ignored. Therefore a second outcome of the same batch does no harm.
3. A batch that comes back without having been run enters `Job.again`, and goes out before any new batch.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

from pairpool.linux.descriptors import Closable
from pairpool.master.functions import Function
from pairpool.master.jobs.batch_run import BatchRun
from pairpool.master.jobs.batch_size import Sizer
from pairpool.master.jobs.call_options import DEFAULTS, CallOptions
from pairpool.transport.items import Part
from pairpool.transport.payload import Encoded
from pairpool.transport.serializer import Serializer

__all__ = ["Batch", "Job", "SingleCall", "Target"]

_batch_numbers = itertools.count(1)

SingleCall = tuple[int, Any, Any] | tuple[int, Part]
"""The item of a single call: the number of the function and the arguments, pickled unless they are immutable."""

_function_number = itemgetter(0)
"""Return the number of the function, given the item of a single call."""


class Target(Protocol):
    """The destination of the outcome of a single call."""

    job: Job | None

    @property
    def has_outcome(self) -> bool:
        """Return whether an outcome has been set."""

    def set_outcome(self, success: bool, value: Any) -> None:
        """Take the outcome. Only the first outcome counts."""

    def submitted_to(self, job: Job) -> None:
        """Remember the job that contains the call."""


class Batch(BatchRun):
    """Neighbouring items of one job on their way through a worker.

    Attributes:
        targets: for single calls, the destination of each result; otherwise None.
        function: the function that the batch was sent with; None for single calls, whose items name their functions.
        encoded: the pickled items; None after they were sent, and before they are pickled.
        unpicklable: the exceptions of items that could not be pickled, by offset.
        by_value: whether functions and classes travel by value, because a worker did not find one by name.
        send_individually: whether each item must go out in a batch of its own.
        close_after_send: descriptors to close when a worker has taken them over. Such a batch has one item.
        is_handed_over: whether a worker has taken them over.
    """

    __slots__ = (
        "_counted",
        "_uses",
        "by_value",
        "close_after_send",
        "encoded",
        "first",
        "function",
        "is_handed_over",
        "items",
        "job",
        "number",
        "send_individually",
        "targets",
        "unpicklable",
    )

    def __init__(self, job: Job, first: int, items: Sequence[Any], targets: list[Target] | None = None) -> None:
        super().__init__()
        self.number = next(_batch_numbers)
        self.job = job
        self.first = first
        self.items = items
        self.targets = targets
        self.function: Function | None = None
        self.encoded: Encoded | None = None
        self.unpicklable: dict[int, BaseException] = {}
        self.by_value = False
        self.send_individually = False
        self.close_after_send: tuple[Closable, ...] = ()
        self.is_handed_over = False
        self._uses: Counter[int] | None = None
        self._counted = 0
        job.open[self.number] = self

    # --- what the batch contains ----------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self.items)

    def uses(self) -> Counter[int]:
        """Count the single calls of the batch by the number of their function."""
        counter = self._uses
        if counter is None or self._counted != len(self.items):
            counter = self._uses = Counter(map(_function_number, self.items))
            self._counted = len(self.items)
        return counter

    def function_numbers(self) -> list[int]:
        """Return the numbers of the functions that the items need, without duplicates."""
        if self.function is not None:
            return [self.function.number]
        return list(dict.fromkeys(map(_function_number, self.items)))

    def has_settled(self) -> bool:
        """Return whether some of the single calls already have an outcome."""
        return any(target.has_outcome for target in self.targets or ())

    def has_waiting(self, stop: int) -> bool:
        """Return whether a caller waits for one of the first `stop` items."""
        return stop > 0 and (self.targets is None or not all(target.has_outcome for target in self.targets[:stop]))

    # --- on the way out -------------------------------------------------------------------------

    def use_current_function(self) -> None:
        """Take the function of the job, which changes if workers do not find the function by name."""
        self.function = self.job.function

    def encode(self, serializer: Serializer) -> Encoded:
        """Pickle the items, which runs the caller's code. Items that cannot be pickled enter `unpicklable`."""
        self.unpicklable = {}
        encoded = self.encoded = self.job.encode(self, serializer)
        return encoded

    def fit(self, encoded: Encoded) -> Batch | None:
        """Keep the items whose descriptors fit into one packet. Return a new batch with the other items, or None."""
        if encoded.fds is None:
            return None
        rest = self.keep(encoded.fitting) if encoded.fitting >= 0 else None
        self.close_after_send = tuple(mover for _place, mover in encoded.fds.close_after_send)
        return rest

    def forget_encoding(self) -> None:
        """Release the pickles. They are made again if the batch goes out again."""
        self.encoded = None

    def keep_pickles(self, items: Sequence[Any]) -> None:
        """Take the pickles of the items in place of the items, to send the same pickles if the batch comes back."""
        self.items = items

    def replace_functions(self, items: Sequence[Any]) -> None:
        """Take the same single calls with other function numbers."""
        self.items = items
        self._uses = None

    def mark_by_value(self) -> None:
        """Send functions and classes by value from now on."""
        self.by_value = True

    def mark_individual(self) -> None:
        """Send each item in a batch of its own from now on."""
        self.send_individually = True

    def hand_over(self) -> None:
        """Close the descriptors that move to the worker: it is about to run the item, or the item has ended."""
        self.is_handed_over = True
        for mover in self.close_after_send:
            mover.close()

    # --- parts ----------------------------------------------------------------------------------

    def part(self, start: int, stop: int) -> Batch:
        """Return a new batch of the items from offset `start` to `stop`. This batch keeps them until it is closed."""
        batch = Batch(self.job, self.first + start, self.items[start:stop], self.targets and self.targets[start:stop])
        batch._travel_like(self)
        return batch

    def _travel_like(self, whole: Batch) -> None:
        self.by_value = whole.by_value
        self.worker = whole.worker
        self.send_individually = whole.send_individually
        self.close_after_send = whole.close_after_send

    def without(self, offset: int) -> list[Batch]:
        """Return new batches of all items but one."""
        ranges = ((0, offset), (offset + 1, self.count))
        return [self.part(start, stop) for start, stop in ranges if stop > start]

    def split_by_outcome(self) -> list[tuple[bool, Batch]]:
        """Split into new batches of neighbours. Each comes with whether its calls already have an outcome."""
        targets = self.targets or []
        runs = itertools.groupby(range(self.count), lambda offset: targets[offset].has_outcome)
        bounds = [(is_settled, list(offsets)) for is_settled, offsets in runs]
        return [(is_settled, self.part(offsets[0], offsets[-1] + 1)) for is_settled, offsets in bounds]

    def keep(self, stop: int) -> Batch:
        """Reduce this batch to its first `stop` items. Return a new batch with the other items."""
        rest = self.part(stop, self.count)
        self.items = self.items[:stop]
        self.targets = self.targets and self.targets[:stop]
        self.unpicklable = {offset: error for offset, error in self.unpicklable.items() if offset < stop}
        return rest

    def cut(self, count: int) -> Batch:
        """Remove the first `count` items, which the worker has finished. Return a new batch with them."""
        front = self.part(0, count)
        front._sent_like(self, count)
        self.unpicklable = {offset - count: error for offset, error in self.unpicklable.items() if offset >= count}
        self.first += count
        self.items = self.items[count:]
        self.targets = self.targets and self.targets[count:]
        self.reported()
        return front

    def _sent_like(self, whole: Batch, count: int) -> None:
        self.function = whole.function
        self.unpicklable = {offset: error for offset, error in whole.unpicklable.items() if offset < count}


class Job(ABC):
    """One call. Subclasses know the source of the items and the destination of the results.

    Attributes:
        number: identifies the call in the views of its pool.
        began_ns: monotonic nanoseconds at which the call was submitted.
        items_ended: items that have ended, including those that failed.
        items_failed: items that ended with an exception.
        tries: how often an item was run without success, by index. An entry exists only while a retry is due.
        open: batches that were handed out and have no outcome yet, by number.
        again: batches that came back without having been run.
    """

    kind: str
    """The name of this kind of call in views."""

    def __init__(
        self, function: Function | None, mode: int, options: CallOptions = DEFAULTS, sizer: Sizer | None = None
    ) -> None:
        self.function = function
        self.mode = mode
        self.options = options
        self.sizer = Sizer(options.chunksize) if sizer is None else sizer
        self.tries: dict[int, int] = {}
        self.again: deque[Batch] = deque()
        self.open: dict[int, Batch] = {}
        self.cancelled = False
        self.number = self.began_ns = self.items_ended = self.items_failed = 0

    # --- what views show ------------------------------------------------------------------------

    def register(self, number: int, began_ns: int) -> None:
        """Note the number of the call, and when it was submitted (monotonic nanoseconds)."""
        self.number, self.began_ns = number, began_ns

    def count_ended(self, count: int, failed: int) -> None:
        """Count items that have ended. `failed` of them ended with an exception."""
        self.items_ended += count
        self.items_failed += failed

    @property
    @abstractmethod
    def total(self) -> int | None:
        """The number of items; None if it is not known."""

    @property
    @abstractmethod
    def handed_in(self) -> int:
        """The number of items that the job is known to have so far."""

    # --- out ------------------------------------------------------------------------------------

    def take(self, workers: int, at_most: int) -> Batch | None:
        """Return the next batch to send, or None if there is none now. May run the caller's iterator.

        Args:
            workers: the number of workers that share the remaining items.
            at_most: the largest number of items of a batch of automatic size.
        """
        while self.again:
            batch = self.again.popleft()
            if batch.number not in self.open:
                continue
            size = 1 if batch.send_individually else self.size(batch.count, workers, at_most)
            if batch.count > size:
                batch.forget_encoding()
                self.again.appendleft(batch.keep(size))
            return batch
        return None if self.cancelled else self.take_fresh(workers, at_most)

    def size(self, remaining: int | None, workers: int, at_most: int) -> int:
        """Return the number of items of the next batch. An explicit chunksize is obeyed."""
        size = self.sizer.next(remaining, workers)
        return size if self.sizer.chunksize is not None else min(size, at_most)

    @abstractmethod
    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        """Return a batch of items that were not handed out before."""

    def encode(self, batch: Batch, serializer: Serializer) -> Encoded:
        """Pickle a batch, each item by itself. Items that cannot be pickled enter `batch.unpicklable`."""
        return serializer.encode(batch.items, batch.unpicklable.__setitem__, are_settled=True, by_value=batch.by_value)

    @property
    @abstractmethod
    def has_more(self) -> bool:
        """Whether `take` may give another batch, now or later."""

    @abstractmethod
    def has_at_least(self, count: int) -> bool:
        """Return whether at least `count` items are known that were not handed out."""

    @property
    def done(self) -> bool:
        return not self.open and (self.cancelled or not self.has_more)

    # --- back -----------------------------------------------------------------------------------

    def deliver(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Take the outcome of a whole batch: a value per item, or an exception at its offset."""
        if self.open.pop(batch.number, None) is not None and not self.cancelled:
            self.accept(batch, values, failed)

    @abstractmethod
    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Store the values, and the exceptions by offset."""

    def close_empty(self, batch: Batch) -> None:
        """Forget a batch without items: the worker began none of them, and all were put back."""
        self.open.pop(batch.number, None)

    def wants_again(self, batch: Batch, offset: int, error: BaseException) -> bool:
        """Return whether an item that failed is to run again. Counts the try."""
        if not isinstance(error, self.options.retry_on) or self.is_settled(batch, offset):
            return False
        index = batch.first + offset
        tries = self.tries[index] = self.tries.get(index, 0) + 1
        if tries <= self.options.retries:
            return True
        del self.tries[index]
        error.add_note(f"the item was run {tries} times")
        return False

    def is_settled(self, _batch: Batch, _offset: int) -> bool:
        """Return whether no caller waits for this item any more."""
        return self.cancelled

    def has_a_reader(self, batch: Batch, offset: int) -> bool:
        """Return whether the value of an item has a destination."""
        return offset < batch.count and batch.number in self.open and not self.is_settled(batch, offset)

    def put_back(self, batch: Batch) -> None:
        """Take back a batch that was not run. It goes out again before any new batch."""
        if self.cancelled:
            self.open.pop(batch.number, None)
        elif batch.number in self.open:
            batch.clear_limit()
            self.again.append(batch)

    def replace(self, batch: Batch, parts: Sequence[Batch]) -> None:
        """Put parts of a batch back in place of the batch."""
        if self.open.pop(batch.number, None) is None:
            for part in parts:
                self.open.pop(part.number, None)
        else:
            self.again.extend(parts)

    def use_function(self, function: Function) -> None:
        """Run the items with another form of the same function from now on."""
        self.function = function

    def end(self) -> None:  # noqa: B027  # most jobs have nothing to do then
        """End a job that has nothing to do from the start."""

    def cancel(self, reason: BaseException) -> None:
        """End all items that have not ended, with `reason`."""
        self.cancelled = True
        self.open.clear()
        self.again.clear()
