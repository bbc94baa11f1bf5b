"""Jobs: items in, results out. A job is one call; it knows its items and where their results go, and nothing of
workers.

A job hands out batches (`take`) and gets each back exactly once: delivered, or failed, whole or in parts. What
comes back undone is put into `again` and goes out first. A batch stays in `open` from `take` to delivery; that is
what makes it impossible to lose one, and harmless to deliver one twice.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Protocol

from pairpool.linux.descriptors import Closable
from pairpool.master.functions import Function
from pairpool.master.jobs.batch_size import Sizer
from pairpool.master.jobs.call_options import DEFAULTS, CallOptions
from pairpool.master.jobs.intake import Gathered
from pairpool.transport.items import Part, Pickles, is_immutable
from pairpool.transport.payload import Encoded
from pairpool.transport.repeats import Repeats
from pairpool.transport.serializer import Serializer

__all__ = ["MANY", "Batch", "Calls", "Job", "MapJob", "SingleCall", "Target"]

_numbers = itertools.count(1)

SingleCall = tuple[int, Any, Any] | tuple[int, Part]
"""The item of a single call: the function's number, and the arguments, pickled unless nobody can change them."""

_number_of = itemgetter(0)
"""The function's number, of the item of a single call."""


MANY = 1 << 30


class Target(Protocol):
    """Where the outcome of a single call goes."""

    job: Job | None

    @property
    def has_outcome(self) -> bool:
        """Whether an outcome has been set."""

    def set_outcome(self, success: bool, value: Any) -> None:
        """Take the outcome; only the first counts."""

    def submitted_to(self, job: Job) -> None:
        """Remember the job that contains the call."""


class Batch:
    """Neighbouring items of one job on their way through a worker."""

    __slots__ = (
        "_counted",
        "_uses",
        "by_value",
        "encoded",
        "failed",
        "first",
        "function",
        "handed_over",
        "hurried",
        "hurried_since",
        "hurry_at",
        "items",
        "job",
        "limit",
        "limited_at",
        "movers",
        "number",
        "since",
        "solo",
        "targets",
        "worker",
    )

    def __init__(self, job: Job, first: int, items: Sequence[Any], targets: list[Target] | None = None) -> None:
        self.number = next(_numbers)
        self.job = job
        self.first = first
        self.items = items
        self.targets = targets  # for calls: where each result goes
        self.function: Function | None = None
        self.encoded: Encoded | None = None
        self.failed: dict[int, BaseException] = {}
        self.by_value = False
        self.solo = False  # to be sent one item at a time
        self.since = 0.0  # when it became the one that its worker runs
        self.limit = 0  # index before which the worker was told to stop, 0 for none
        self.limited_at = 0.0
        self.hurry_at = 0.0  # when its worker is asked next to report what is finished of it
        self.hurried = 0  # how often it was asked since it reported last
        self.hurried_since = 0.0  # and when first
        self.worker: int | None = None  # number of the worker that it was given to last
        self.movers: tuple[Closable, ...] = ()  # what is to be closed once a worker has it; such a batch is one item
        self.handed_over = False  # and has been
        self._uses: Counter[int] | None = None
        self._counted = 0
        job.open[self.number] = self

    @property
    def count(self) -> int:
        return len(self.items)

    def uses(self) -> Counter[int]:
        """How many of these calls use each function, by its number; for single calls."""
        counter = self._uses
        if counter is None or self._counted != len(self.items):
            counter = self._uses = Counter(map(_number_of, self.items))
            self._counted = len(self.items)
        return counter

    def has_settled(self) -> bool:
        """Whether some of these calls have an outcome already: nobody waits for them any more."""
        return any(target.has_outcome for target in self.targets or ())

    def has_waiting(self, stop: int) -> bool:
        """Whether somebody waits for one of the first `stop` items."""
        return stop > 0 and (self.targets is None or not all(target.has_outcome for target in self.targets[:stop]))

    def split(self) -> list[tuple[bool, Batch]]:
        """New batches of neighbours that have an outcome, and of such that have none, each behind whether they have."""
        targets = self.targets or []
        runs = itertools.groupby(range(self.count), lambda offset: targets[offset].has_outcome)
        bounds = [(is_settled, list(offsets)) for is_settled, offsets in runs]
        return [(is_settled, self.part(offsets[0], offsets[-1] + 1)) for is_settled, offsets in bounds]

    def settle(self, items: Sequence[Any]) -> None:
        """Keep the pickles of the items, to send them once more if the batch comes back."""
        self.items = items

    def renew(self, items: Sequence[Any]) -> None:
        """Take other items in place of these: the same calls, of functions with other numbers."""
        self.items = items
        self._uses = None

    def part(self, start: int, stop: int) -> Batch:
        """A new batch of the items from offset `start` to `stop`; this one still holds them, until it is closed."""
        batch = Batch(self.job, self.first + start, self.items[start:stop], self.targets and self.targets[start:stop])
        batch.by_value = self.by_value
        batch.worker = self.worker
        batch.solo = self.solo
        batch.movers = self.movers
        return batch

    def send_individually(self) -> None:
        """Send each item of this batch in a packet of its own."""
        self.solo = True

    def hand_over(self) -> None:
        """A worker is about to run the item, or that has ended: what was to move there is closed here."""
        self.handed_over = True
        for mover in self.movers:
            mover.close()

    def without(self, offset: int) -> list[Batch]:
        """New batches of all items but one."""
        ranges = ((0, offset), (offset + 1, self.count))
        return [self.part(start, stop) for start, stop in ranges if stop > start]

    def keep(self, stop: int) -> Batch:
        """Cut this batch down to its first `stop` items; returns a new one with the others."""
        rest = self.part(stop, self.count)
        self.items = self.items[:stop]
        self.targets = self.targets and self.targets[:stop]
        self.failed = {offset: error for offset, error in self.failed.items() if offset < stop}
        return rest

    def cut(self, count: int) -> Batch:
        """Cut the first `count` items off; returns a new batch with them."""
        front = self.part(0, count)
        front.function = self.function
        front.failed = {offset: error for offset, error in self.failed.items() if offset < count}
        self.failed = {offset - count: error for offset, error in self.failed.items() if offset >= count}
        self.first += count
        self.items = self.items[count:]
        self.targets = self.targets and self.targets[count:]
        self.hurried = 0
        return front


class Job(ABC):
    """One call. Subclasses say where items come from and where results go.

    Attributes:
        number: among all calls of the pool.
        began: monotonic ns when it was made.
        ended: items that have ended, failed ones included.
        failed: items that ended with an exception.
    """

    kind: str
    """What views call it."""

    def __init__(self, function: Function | None, mode: int, options: CallOptions = DEFAULTS) -> None:
        self.function = function
        self.mode = mode
        self.options = options
        self.tries: dict[int, int] = {}
        """How often items were run in vain, by index; kept while a retry is due."""
        self.sizer = Sizer(options.chunksize)
        self.again: deque[Batch] = deque()
        self.open: dict[int, Batch] = {}
        self.cancelled = False
        self.number = self.began = self.ended = self.failed = 0

    def register(self, number: int, began: int) -> None:
        """Note the number of the call, and when it was made (monotonic ns)."""
        self.number, self.began = number, began

    def count_ended(self, count: int, failed: int) -> None:
        """Count items that have ended, `failed` of them with an exception."""
        self.ended += count
        self.failed += failed

    @property
    @abstractmethod
    def total(self) -> int | None:
        """How many items it has; None where that is not known."""

    @property
    @abstractmethod
    def handed_in(self) -> int:
        """How many items it is known to have until now."""

    def take(self, workers: int, at_most: int) -> Batch | None:
        """The next batch to send, or None if there is none now. May run the caller's own iterator."""
        while self.again:
            batch = self.again.popleft()
            if batch.number not in self.open:
                continue
            size = 1 if batch.solo else self.size(batch.count, workers, at_most)
            if batch.count > size:
                batch.encoded = None
                self.again.appendleft(batch.keep(size))
            return batch
        return None if self.cancelled else self.take_fresh(workers, at_most)

    def size(self, remaining: int | None, workers: int, at_most: int) -> int:
        """How many items the next batch has; an explicit chunksize is obeyed."""
        size = self.sizer.next(remaining, workers)
        return size if self.sizer.chunksize is not None else min(size, at_most)

    @abstractmethod
    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        """A batch of items that were not handed out before."""

    def encode(self, batch: Batch, codec: Serializer) -> Encoded:
        """Pickle a batch, each item as if it were alone; those that cannot be pickled are put into `batch.failed`."""
        return codec.encode(batch.items, batch.failed.__setitem__, are_settled=True, by_value=batch.by_value)

    @property
    @abstractmethod
    def has_more(self) -> bool:
        """Whether `take` may yet give something, now or later."""

    @abstractmethod
    def has_at_least(self, count: int) -> bool:
        """Whether so many items were not handed out, as far as anybody knows."""

    @property
    def done(self) -> bool:
        return not self.open and (self.cancelled or not self.has_more)

    def deliver(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Take the outcome of a whole batch: a value for each item, or an exception under its offset."""
        if self.open.pop(batch.number, None) is not None and not self.cancelled:
            self.accept(batch, values, failed)

    def wants_again(self, batch: Batch, offset: int, error: BaseException) -> bool:
        """Whether an item that failed is to be run again; counts that as a try."""
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
        """Whether nobody waits for this item any more."""
        return self.cancelled

    def has_a_reader(self, batch: Batch, offset: int) -> bool:
        """Whether the value of an item goes anywhere."""
        return offset < batch.count and batch.number in self.open and not self.is_settled(batch, offset)

    @abstractmethod
    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        """Take values in, and errors by offset."""

    def put_back(self, batch: Batch) -> None:
        """Take back a batch that was not run; it goes out again before anything new."""
        if self.cancelled:
            self.open.pop(batch.number, None)
        elif batch.number in self.open:
            batch.limit = 0
            self.again.append(batch)

    def replace(self, batch: Batch, parts: Sequence[Batch]) -> None:
        """Put parts of a batch back in its place."""
        if self.open.pop(batch.number, None) is None:
            for part in parts:
                self.open.pop(part.number, None)
        else:
            self.again.extend(parts)

    def end(self) -> None:  # noqa: B027  # most jobs have nothing to do then
        """Called when the job has nothing to do from the start."""

    def cancel(self, reason: BaseException) -> None:
        """End all that has not ended, with `reason`."""
        self.cancelled = True
        self.open.clear()
        self.again.clear()


class MapJob(Job):
    """All items of a sequence, and one list of results.

    The items are pickled as their batches go out. A large object that several items contain is sent once per batch,
    except where the caller asks for one item per batch.

    Args:
        gathered: the items, and what the input raised after them: that is the call's outcome once they have ended. If
            the caller goes on meanwhile, an item that may run again is kept as it was sent first.
        finish: called once with success and value, when all items have ended.
    """

    kind = "map"

    def __init__(
        self,
        function: Function,
        mode: int,
        gathered: Gathered,
        options: CallOptions,
        finish: Callable[[bool, Any], None],
    ) -> None:
        super().__init__(function, mode, options)
        self._repeats: Repeats | None = None
        self._is_left = gathered.is_left
        self.sizer = Sizer(options.chunksize, hurried=False)
        self._items = gathered.items
        self._next = 0
        self._length = len(gathered.items)
        self._results: list[Any] = []
        self._return_exceptions = options.return_exceptions
        self._errors: dict[int, BaseException] = {}
        self._input_error = gathered.error
        self._finish: Callable[[bool, Any], None] | None = finish

    @property
    def total(self) -> int:
        return self._length

    handed_in = total

    @property
    def has_more(self) -> bool:
        return self._next < self._length or bool(self.again)

    def has_at_least(self, count: int) -> bool:
        return self._length - self._next >= count

    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        remaining = self._length - self._next
        if not remaining:
            return None
        first, size = self._next, min(remaining, self.size(remaining, workers, at_most))
        batch = Batch(self, first, self._items[first : first + size])
        self._next = first + size
        return batch

    def encode(self, batch: Batch, codec: Serializer) -> Encoded:
        is_new = not isinstance(batch.items, Pickles)
        if is_new and self._is_left and self.options.retries and not all(map(is_immutable, batch.items)):
            batch.settle(codec.dump_each(batch.items))
        if self._repeats is None and self.sizer.chunksize != 1:
            self._repeats = codec.repeats()
        repeats = None if batch.by_value else self._repeats  # which has pickles that go by name
        return codec.encode_map(
            batch.items,
            batch.failed.__setitem__,
            by_value=batch.by_value,
            repeats=repeats,
            keep=None if self._is_left else batch.settle,
        )

    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        first = batch.first
        if not self._results:
            self._results = [None] * self._length
        self._results[first : first + len(values)] = values
        for offset, error in failed.items():
            if self._return_exceptions:
                self._results[first + offset] = error
            else:
                self._errors[first + offset] = error
        self.end()

    def end(self) -> None:
        """Hand the outcome over if nothing is left to do."""
        if not self.done or self._finish is None:
            return
        if self._input_error is not None:
            self._end(False, self._input_error)
        elif self._errors:
            self._end(False, self._errors[min(self._errors)])
        else:
            self._end(True, self._results)

    def cancel(self, reason: BaseException) -> None:
        super().cancel(reason)
        if self._finish is not None:
            self._end(False, reason)

    def _end(self, success: bool, value: Any) -> None:
        finish, self._finish = self._finish, None
        self._items = ()
        self._results = []
        self._errors = {}
        assert finish is not None
        finish(success, value)


class Calls(Job):
    """Single calls that were submitted one after the other; each has a result object of its own."""

    kind = "apply"

    def __init__(self, mode: int, options: CallOptions = DEFAULTS) -> None:
        super().__init__(None, mode, options)
        self._waiting: deque[tuple[Target, SingleCall]] = deque()
        self._next = 0
        self.dropped: BaseException | None = None
        """Why some of them have an outcome before they have ended, if so: these are not run again."""

    def drop_settled(self, reason: BaseException) -> None:
        """From now on, end calls that have an outcome with `reason` when they come back undone."""
        self.dropped = reason

    def withdraw(self, target: Target) -> int | None:
        """Take a call back that has not been handed out; returns its function's number, or None if there is no such."""
        for entry in self._waiting:
            if entry[0] is target:
                self._waiting.remove(entry)
                return entry[1][0]
        return None

    def withdraw_from(self, first: int) -> tuple[list[Target], Counter[int]]:
        """Take back calls that wait, but for the first few; returns how many of them use each function, too."""
        taken = [self._waiting.pop() for _ in range(len(self._waiting) - first)]
        return [target for target, _ in reversed(taken)], Counter(item[0] for _, item in taken)

    def has(self, target: Target) -> bool:
        """Whether a call with this target waits or was handed out."""
        return any(one is target for one, _ in self._waiting) or any(
            target in (batch.targets or ()) for batch in self.open.values()
        )

    @property
    def waiting(self) -> int:
        """Calls that have not been handed out."""
        return len(self._waiting)

    def _uses_waiting(self) -> Counter[int]:
        return Counter(item[0] for _target, item in self._waiting)

    def uses(self) -> Counter[int]:
        """How many calls that have not ended use each function, by its number."""
        return sum((batch.uses() for batch in self.open.values()), self._uses_waiting())

    def withdraw_settled(self) -> Counter[int]:
        """Take back all calls that have an outcome and were not handed out; returns how many use each function."""
        settled = Counter(item[0] for target, item in self._waiting if target.has_outcome)
        if settled:
            self._waiting = deque(entry for entry in self._waiting if not entry[0].has_outcome)
        return settled

    def add(self, target: Target, call: SingleCall) -> None:
        """Append a call whose outcome goes to `target`."""
        target.submitted_to(self)
        self._waiting.append((target, call))

    def encode(self, batch: Batch, codec: Serializer) -> Encoded:
        return codec.encode_calls(batch.items, batch.failed.__setitem__, by_value=batch.by_value)

    @property
    def total(self) -> int:
        return self._next + len(self._waiting)

    handed_in = total

    @property
    def has_more(self) -> bool:
        return bool(self._waiting) or bool(self.again)

    def has_at_least(self, count: int) -> bool:
        return len(self._waiting) >= count

    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        waiting = len(self._waiting)
        if not waiting:
            return None
        size = min(waiting, self.size(waiting, workers, at_most))
        taken = [self._waiting.popleft() for _ in range(size)]
        batch = Batch(self, self._next, [item for _, item in taken], [target for target, _ in taken])
        self._next += size
        return batch

    def is_settled(self, batch: Batch, offset: int) -> bool:
        assert batch.targets is not None
        return self.cancelled or batch.targets[offset].has_outcome

    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        assert batch.targets is not None
        for offset, target in enumerate(batch.targets):
            error = failed.get(offset) if failed else None
            if error is None:
                target.set_outcome(True, values[offset])
            else:
                target.set_outcome(False, error)

    def cancel(self, reason: BaseException) -> None:
        targets = [target for batch in self.open.values() for target in batch.targets or ()]
        targets += [target for target, _ in self._waiting]
        super().cancel(reason)
        self._waiting.clear()
        for target in targets:
            target.set_outcome(False, reason)
