"""The job of a map: all items of a sequence, and one list of results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pairpool.master.functions import Function
from pairpool.master.jobs.base import Batch, Job
from pairpool.master.jobs.batch_size import Sizer
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.intake import Gathered
from pairpool.transport.items import Pickles, is_immutable
from pairpool.transport.payload import Encoded
from pairpool.transport.repeats import Repeats
from pairpool.transport.serializer import Serializer

__all__ = ["MapJob"]


class MapJob(Job):
    """All items of a sequence, and one list of results.

    The items are pickled when their batches go out. A large object that several items contain is sent once per batch,
    unless the caller asks for one item per batch.

    Args:
        gathered: the items. If the input raised after them, its exception is the outcome of the call when the items
            have ended. If the caller goes on before the items are sent, an item that may run again is kept in the form
            in which it was sent first.
        finish: called once with success and value when all items have ended.
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
        super().__init__(function, mode, options, Sizer(options.chunksize, first_results_awaited=False))
        self._items, self._input_error, self._is_left = gathered
        self._repeats: Repeats | None = None
        self._next = 0
        self._length = len(self._items)
        self._results: list[Any] = []
        self._return_exceptions = options.return_exceptions
        self._errors: dict[int, BaseException] = {}
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

    def encode(self, batch: Batch, serializer: Serializer) -> Encoded:
        is_new = not isinstance(batch.items, Pickles)
        if is_new and self._is_left and self.options.retries and not all(map(is_immutable, batch.items)):
            batch.keep_pickles(serializer.dump_each(batch.items))
        if self._repeats is None and self.sizer.chunksize != 1:
            self._repeats = serializer.repeats()
        repeats = None if batch.by_value else self._repeats  # the repeated objects were pickled by name
        return serializer.encode_map(
            batch.items,
            batch.unpicklable.__setitem__,
            by_value=batch.by_value,
            repeats=repeats,
            keep=None if self._is_left else batch.keep_pickles,
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
        """Report the outcome if all items have ended."""
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
