"""Find the large objects that several items of one map contain, to pickle each of them once per batch.

    [(table, 0), (table, 1), (table, 2)]  ─►  table is pickled once; each item names it

Two levels of an item are examined. A level consists of the elements of a tuple or list, the values of a dict, or the
attributes of an object. To examine more levels would cost more than most pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pairpool.linux.interrupts import is_own

__all__ = ["LARGE_OBJECT_BYTES", "Repeats"]

LARGE_OBJECT_BYTES = 64 * 1024
"""An object that several items contain is pickled once per batch if its pickle, with buffers, has at least this size.

Below this size, a copy per item costs less than 20 µs (docs/measured.md) and keeps the items independent.
"""

ELEMENTS_EXAMINED = 64
"""Number of elements of a container that are examined."""

OBJECTS_REMEMBERED = 1024
"""Number of objects of earlier items that are remembered. Objects that repeat usually do so soon."""

REPEATED_PICKLES_KEPT = 4
"""Number of items whose pickles are kept because the items repeat."""

_NEVER_LARGE = frozenset({int, float, complex, bool, type(None)})


def _elements(thing: Any) -> list[Any]:
    """Return the objects that a container or object contains directly."""
    kind = type(thing)
    if kind is tuple or kind is list:
        return list(thing[:ELEMENTS_EXAMINED])
    if kind is dict:
        return list(thing.values()) if len(thing) <= ELEMENTS_EXAMINED else []
    attributes = getattr(thing, "__dict__", None)
    if type(attributes) is dict and len(attributes) <= ELEMENTS_EXAMINED and not isinstance(thing, type):
        return list(attributes.values())
    return []


def _candidates(item: Any) -> Iterator[Any]:
    """Yield the objects inside an item that may be large."""
    for element in _elements(item):
        yield element
        yield from _elements(element)


def _may_be_large(thing: Any) -> bool:
    kind = type(thing)
    if kind is str or kind is bytes:
        return len(thing) >= LARGE_OBJECT_BYTES
    return kind not in _NEVER_LARGE


def _forget_oldest(table: dict[int, Any], most: int) -> None:
    while len(table) > most:
        del table[next(iter(table))]


class Repeats:
    """The large objects that several items of one call contain.

    Args:
        size_of: returns the size of an object's pickle and its buffers in bytes; raises if it cannot be pickled.

    Attributes:
        large: the repeated large objects, by identity. The reference keeps each identity from being used again.
        expects_large: whether items of this call had large pickles.
    """

    def __init__(self, size_of: Callable[[Any], int]) -> None:
        self.large: dict[int, Any] = {}
        self.expects_large = False
        self._size_of = size_of
        self._seen: dict[int, Any] = {}
        self._small: dict[int, Any] = {}
        self._items: dict[int, Any] = {}
        self._pickles: dict[int, tuple[Any, Any]] = {}

    def expect_large(self) -> None:
        """Note that an item had a large pickle, so that later batches are pickled item by item at once."""
        self.expects_large = True

    def find(self, item: Any) -> Any:
        """Return the pickle that was kept for this very item, or None."""
        known = self._pickles.get(id(item))
        return None if known is None else known[1]

    def keep(self, item: Any, pickled: Any) -> None:
        """Keep the pickle of a large item from its second occurrence on, because it may occur a thousand times."""
        if id(item) in self._items:
            self._pickles[id(item)] = item, pickled
        self._items[id(item)] = item
        _forget_oldest(self._pickles, REPEATED_PICKLES_KEPT)
        _forget_oldest(self._items, OBJECTS_REMEMBERED)

    def examine(self, item: Any) -> bool:
        """Examine an item whose pickle is large. Return whether it contains a large object of an earlier item."""
        found = False
        own = {id(thing): thing for thing in _candidates(item) if _may_be_large(thing)}
        for identity, thing in own.items():
            if identity in self.large or identity in self._small:
                continue
            if identity not in self._seen:
                self._seen[identity] = thing
            elif self._is_large(thing):
                self.large[identity] = thing
                found = True
            else:
                self._small[identity] = thing
        _forget_oldest(self._seen, OBJECTS_REMEMBERED)
        _forget_oldest(self._small, OBJECTS_REMEMBERED)
        return found

    def _is_large(self, thing: Any) -> bool:
        try:
            return self._size_of(thing) >= LARGE_OBJECT_BYTES
        except Exception as error:
            if not is_own(error):
                raise
            return False  # the pickle of the item that contains it raises the error again
