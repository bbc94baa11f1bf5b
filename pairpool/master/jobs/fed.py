"""The job of a stream whose items the caller hands in one by one, instead of an iterator that the engine reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pairpool.master.functions import Function
from pairpool.master.jobs.base import Batch
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.intake import Span, take_here
from pairpool.master.jobs.stream import StreamJob, StreamSpec
from pairpool.transport.items import Pickles, is_immutable
from pairpool.transport.serializer import Serializer

__all__ = ["FedJob"]


class FedJob(StreamJob):
    """A stream whose items the caller hands in. The caller asks for room before each item.

    One thread calls `feed` and `complete`. Another thread may be the leader meanwhile.

    Args:
        serializer: pickles mutable items when they are handed in.
        on_readable: called by the leader when there is something to read, and when the job was cancelled.
    """

    def __init__(
        self,
        function: Function,
        mode: int,
        options: CallOptions,
        spec: StreamSpec,
        serializer: Serializer,
        on_readable: Callable[[], None],
    ) -> None:
        super().__init__(function, mode, Span(()), options, spec)
        self._serializer = serializer
        self._on_readable = on_readable
        self._supply: deque[tuple[bool, Any]] = deque()  # whether an entry is a pickle, and the item or its pickle
        self._item_ns = 0.0
        self._is_complete = False

    # --- items in -------------------------------------------------------------------------------

    def wanted(self, workers: int) -> int:
        """Return how many items may be handed in now."""
        return self._room(workers) - len(self._supply)

    @property
    def input_item_ns(self) -> float:
        return self._item_ns

    @property
    def unread(self) -> int:
        """The number of items that were handed in and whose results were not yielded yet."""
        return self._taken - self.yielded + len(self._supply)

    @property
    def has_supply(self) -> bool:
        """Whether items wait to go out."""
        return bool(self._supply)

    def feed(self, item: Any, nanoseconds: int) -> None:
        """Hand in an item. A mutable item is pickled before this method returns.

        Args:
            nanoseconds: time that the input needed to make the item.
        """
        if is_immutable(item):
            self._supply.append((False, item))
        else:
            self._supply.append((True, take_here(self._serializer, item, own=True)))
        self._item_ns = (self._item_ns + nanoseconds) / 2

    def complete(self, error: BaseException | None) -> None:
        """End the input. If `error` ended it, the reader gets `error` after the last result."""
        if not self.cancelled:
            self._input_error = error
        self._is_complete = True  # before the next line: the leader reads this flag after it took the last item
        if not self._supply:
            self._exhausted = True

    def has_at_least(self, count: int) -> bool:
        return len(self._supply) >= count

    def _pull(self, size: int) -> Sequence[Any]:
        supply = self._supply
        self._is_adding = True  # another thread may call `complete` at any moment
        if self.sizer.chunksize is not None and len(supply) < size and not self._is_complete:
            return ()
        taken = [supply.popleft() for _ in range(min(size, len(supply)))]
        if self._is_complete and not supply:
            self._exhausted = True
        if not any(is_pickled for is_pickled, _item in taken):
            return [item for _is_pickled, item in taken]
        return Pickles(
            [item if is_pickled else self._serializer.dump(item, copy_buffers=False) for is_pickled, item in taken]
        )

    # --- results out ----------------------------------------------------------------------------

    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        super().accept(batch, values, failed)
        self._on_readable()

    def cancel(self, reason: BaseException) -> None:
        super().cancel(reason)
        self._supply.clear()
        self._on_readable()
