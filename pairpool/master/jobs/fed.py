"""The job of a stream that is fed: its items are handed in as they come, and not pulled from an iterator."""

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
    """A stream whose items are handed in by somebody who asks for room before each.

    `feed` and `complete` are for one thread, whoever leads meanwhile.

    Args:
        codec: pickles the items that somebody may change, as they are handed in.
        tell: called, by whoever leads, when there is something to read, or when the job has been cancelled.
    """

    def __init__(
        self,
        function: Function,
        mode: int,
        options: CallOptions,
        spec: StreamSpec,
        codec: Serializer,
        tell: Callable[[], None],
    ) -> None:
        super().__init__(function, mode, Span(()), options, spec)
        self._tell = tell
        self._codec = codec
        self._supply: deque[tuple[bool, Any]] = deque()  # whether an item is pickled, and that or its pickle
        self._made_ns = 0.0
        self._is_complete = False

    # --- items in -------------------------------------------------------------------------------

    def wanted(self, workers: int) -> int:
        """How many items may be handed in now."""
        return self._room(workers) - len(self._supply)

    @property
    def made_ns(self) -> float:
        return self._made_ns

    @property
    def unread(self) -> int:
        """How many items were handed in whose results have not been yielded."""
        return self._taken - self.yielded + len(self._supply)

    @property
    def has_supply(self) -> bool:
        """Whether items wait to go out."""
        return bool(self._supply)

    def feed(self, item: Any, nanoseconds: int) -> None:
        """Hand an item in; it is pickled before this returns, if somebody can change it.

        Args:
            nanoseconds: what the input needed to make it.
        """
        if is_immutable(item):
            self._supply.append((False, item))
        else:
            self._supply.append((True, take_here(self._codec, item, own=True)))
        self._made_ns = (self._made_ns + nanoseconds) / 2

    def complete(self, error: BaseException | None) -> None:
        """No more items will come, because of `error` if that is why; it is raised behind the last result."""
        if not self.cancelled:
            self._input_error = error
        self._is_complete = True  # first: whoever takes the last item looks at it after that
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
            [item if is_pickled else self._codec.dump(item, copy_buffers=False) for is_pickled, item in taken]
        )

    # --- results out ----------------------------------------------------------------------------

    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        super().accept(batch, values, failed)
        self._tell()

    def cancel(self, reason: BaseException) -> None:
        super().cancel(reason)
        self._supply.clear()
        self._tell()
