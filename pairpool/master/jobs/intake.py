"""The inputs of streams. Each item is pickled before the code of the input runs again, which may change the item."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from pairpool.linux import interrupts
from pairpool.transport.items import Failed, Part
from pairpool.transport.keeper import Keeper
from pairpool.transport.serializer import Serializer

__all__ = ["Gathered", "Iteration", "Source", "Span", "gather", "length_of", "take_here"]

PULL_FOR_NS = 2_000_000
"""Nanoseconds after which an input is read no further for one batch. The batch then goes out with fewer items."""

MAX_ITEMS_PER_CLOCK_READ = 128
"""Items that are taken between two readings of the clock, at most."""


class Source(Protocol):
    """The input of a stream.

    Attributes:
        is_exhausted: whether there are no more items.
        item_ns: nanoseconds that the input needs to make an item; 0 if they are not known.
    """

    is_exhausted: bool
    item_ns: float

    def pull(self, size: int, *, exactly: bool) -> Sequence[Any]:
        """Return the next items: at most `size`, and fewer if the input is slow, unless `exactly` is true.

        Raise the exception that the input raises. `rest` then returns the items before it.
        """

    def rest(self) -> Sequence[Any]:
        """Return the items that were taken before the input raised. If `rest` is not called, `pull` returns them."""

    def has_at_least(self, count: int) -> bool:
        """Return whether the input is known to have at least `count` more items."""


class Span:
    """Items that exist already and that no code changes: a range, or the items that a `Keeper` has kept."""

    item_ns = 0.0

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._next = 0
        self.is_exhausted = not items

    def pull(self, size: int, *, exactly: bool) -> Sequence[Any]:
        first, self._next = self._next, self._next + size
        self.is_exhausted = self._next >= len(self._items)
        return self._items[first : self._next]

    def rest(self) -> Sequence[Any]:
        return ()

    def has_at_least(self, count: int) -> bool:
        return len(self._items) - self._next >= count


class Iteration:
    """An iterator of the caller."""

    def __init__(self, items: Iterator[Any], serializer: Serializer) -> None:
        self._items = items
        self._keeper = _ItemKeeper(serializer)
        self.is_exhausted = False
        self.item_ns = 0.0

    def pull(self, size: int, *, exactly: bool) -> Sequence[Any]:
        keeper = self._keeper
        kept = keeper.kept
        step = 1
        began = now = time.monotonic_ns()
        start = len(kept)
        while len(kept) < size and not self.is_exhausted:
            wanted = min(step, size - len(kept))
            before = len(kept)
            self._take(wanted)
            self.is_exhausted = len(kept) - before < wanted
            now = time.monotonic_ns()
            if now - began > PULL_FOR_NS and not exactly:
                break
            step = min(2 * step, MAX_ITEMS_PER_CLOCK_READ)
        if len(kept) > start:
            latest = (now - began) / (len(kept) - start)
            self.item_ns = latest if not self.item_ns else (self.item_ns + latest) / 2
        return self.rest()

    def rest(self) -> Sequence[Any]:
        taken = self._keeper.take(self._keeper.kept)
        self._keeper.begin([])
        return taken

    def has_at_least(self, count: int) -> bool:
        return not self.is_exhausted

    def _take(self, count: int) -> None:
        keeper = self._keeper
        items = self._items
        left = keeper.left_over
        if left:  # a signal handler raised while this item was pickled
            items = itertools.chain((left.pop() for _ in range(len(left))), items)
        keeper.extend(itertools.islice(items, count))


class _ItemKeeper(Keeper):
    """Keeps the items of an input. An item that cannot be pickled becomes a `Failed`."""

    def _pickle(self, thing: Any) -> Part:
        try:
            return super()._pickle(thing)
        except BaseException as error:
            if not interrupts.is_own(error):
                raise
            return Failed(error)


def take_here(serializer: Serializer, item: Any, *, own: bool) -> Part:
    """Pickle an item in the caller's thread. If its pickling raises, return a `Failed`.

    Args:
        own: copy large buffers, too, because the caller goes on and may change them.
    """
    data = serializer.dump_plain(item)
    if data is not None:
        return data
    # Signals are deferred here and allowed below, so that an exception of a handler differs from one of the item.
    with interrupts.defer_signals():
        try:
            with interrupts.allow_signals():
                return serializer.dump_other(item, copy_buffers=own)
        except BaseException as error:
            if not interrupts.is_own(error):
                raise
            return Failed(error)


class Gathered(NamedTuple):
    """All items of an input.

    Args:
        items: the items, as a sequence that can be sliced.
        error: what the input raised after them; None if it came to its end.
        is_left: whether the caller goes on before the items are used, and may change them.
    """

    items: Sequence[Any]
    error: BaseException | None = None
    is_left: bool = False


def gather(iterable: Iterable[Any], *, is_left: bool = False) -> Gathered:
    """Read an input to its end. A list that the caller may change meanwhile is copied."""
    if type(iterable) in (tuple, range) or (type(iterable) is list and not is_left):
        return Gathered(iterable, None, is_left)  # type: ignore[arg-type]
    items: list[Any] = []
    iterator = iter(iterable)
    try:
        items.extend(iterator)
    except Exception as error:
        return Gathered(items, error, is_left)
    return Gathered(items, None, is_left)


def length_of(iterable: Iterable[Any]) -> int | None:
    """Return the number of items if the type knows it without running anybody's code; else None."""
    known = type(iterable) in (list, tuple, range, dict, set, frozenset, str, bytes, deque)
    return len(iterable) if known else None  # type: ignore[arg-type]
