"""The events that a pool reports to its trace: `master/metrics.py` makes them, `view/trace.py` writes them to a file.

All times are monotonic ns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

__all__ = ["LostItem", "RanBatch", "Trace"]


class RanBatch(NamedTuple):
    """A batch that a worker ran to its end.

    Attributes:
        worker: the number of the worker.
        call: the number of the call.
        functions: the name of the function of all items, or one name per item.
        first: the index of the first item in its call.
        began: when the worker received the batch.
        ended: when the last item ended.
        starts: when each item began. An item ends when the next one begins.
        failed: the errors of the failed items, by offset in the batch.
        argument_of: returns a short text of an item's argument, by offset in the batch. It is called for long items
            only, and must not raise.
    """

    worker: int
    call: int
    functions: str | Sequence[str]
    first: int
    began: int
    ended: int
    starts: Sequence[int]
    failed: Mapping[int, str]
    argument_of: Callable[[int], str] | None = None


class LostItem(NamedTuple):
    """An item whose worker died while it ran.

    Attributes:
        worker: the number of the worker.
        call: the number of the call.
        function: the name of the function.
        item: the index of the item in its call.
        began: when the item began.
        ended: when the worker died.
        error: the error of the item.
    """

    worker: int
    call: int
    function: str
    item: int
    began: int
    ended: int
    error: str


class Trace(Protocol):
    """Receives the events of one pool."""

    def worker_began(self, number: int, pid: int, began: int, replaced: int) -> None:
        """Record that a worker started; `replaced` workers had this place before."""

    def worker_ended(self, number: int, pid: int, when: int, reason: str, *, died: bool) -> None:
        """Record that a worker died or was retired."""

    def call_began(self, number: int, kind: str, function: str, total: int | None, when: int) -> None:
        """Record that a call was made."""

    def call_ended(self, number: int, when: int, done: int, failed: int) -> None:
        """Record that all items of a call have ended."""

    def batch(self, run: RanBatch) -> None:
        """Record a batch that a worker has reported."""

    def lost(self, lost: LostItem) -> None:
        """Record an item that ended with its worker."""

    def close(self) -> None:
        """End the trace."""
