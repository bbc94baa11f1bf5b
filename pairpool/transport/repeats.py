"""Large objects that several items of one map contain: they are pickled once per batch, and not once per item.

    [(table, 0), (table, 1), (table, 2)]  ─►  table is pickled once; each item names it

Two levels of an item are looked at. A level consists of the elements of a tuple or list, the values of a dict, or the
attributes of an object. A deeper look would cost more than most pickles.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from pairpool.linux.interrupts import is_own

__all__ = ["LARGE", "Repeats", "mutable_in"]

LARGE = 64 * 1024
"""Bytes of a pickle, buffers included, from which on an object that several items contain is pickled once per batch.

Below, a copy for each item costs less than 20 µs (docs/measured.md), and keeps the items independent of one another.
"""

WIDTH = 64
"""Elements of a container that are looked at."""

KEPT = 1024
"""Objects of earlier items that are remembered: those that repeat do so soon."""

WHOLE_KEPT = 4
"""Items whose pickles are kept because they repeat."""

_SMALL = frozenset({int, float, complex, bool, type(None)})

_NO_CONTENT = frozenset({complex, str, bytes, tuple, frozenset, FunctionType, BuiltinFunctionType, ModuleType})
"""Types of objects in a pickler's memo that nobody changes. The elements of a tuple are in the memo themselves."""


def _parts(thing: Any) -> list[Any]:
    """Return the objects that stand directly in a container or object."""
    kind = type(thing)
    if kind is tuple or kind is list:
        return list(thing[:WIDTH])
    if kind is dict:
        return list(thing.values()) if len(thing) <= WIDTH else []
    attributes = getattr(thing, "__dict__", None)
    if type(attributes) is dict and len(attributes) <= WIDTH and not isinstance(thing, type):
        return list(attributes.values())
    return []


def _candidates(item: Any) -> Iterator[Any]:
    """Objects inside of an item that may be large."""
    for part in _parts(item):
        yield part
        yield from _parts(part)


def _may_be_large(thing: Any) -> bool:
    kind = type(thing)
    if kind is str or kind is bytes:
        return len(thing) >= LARGE
    return kind not in _SMALL


class Repeats:
    """The large objects that several items of one call contain.

    Args:
        size_of: returns the bytes of an object's pickle, buffers included; raises what says that there is none.

    Attributes:
        large: the objects that were found, by identity. They are kept, so that no identity is used again.
        expects_large: whether items of this call had large pickles.
    """

    def __init__(self, size_of: Callable[[Any], int]) -> None:
        self.large: dict[int, Any] = {}
        self.expects_large = False
        self._size_of = size_of
        self._seen: dict[int, Any] = {}
        self._small: dict[int, Any] = {}
        self._items: dict[int, Any] = {}
        self._whole: dict[int, tuple[Any, Any]] = {}

    def find(self, item: Any) -> Any:
        """Return the pickle that was kept for this very item; None if there is none."""
        known = self._whole.get(id(item))
        return None if known is None else known[1]

    def keep(self, item: Any, pickled: Any) -> None:
        """Keep the pickle of a large item that comes for the second time: it may come a thousand times."""
        if id(item) in self._items:
            self._whole[id(item)] = item, pickled
        self._items[id(item)] = item
        for table, most in ((self._whole, WHOLE_KEPT), (self._items, KEPT)):
            while len(table) > most:
                del table[next(iter(table))]

    def look(self, item: Any) -> bool:
        """Look at an item whose pickle is large. Return whether it has one more large object of an earlier item."""
        found = False
        own = {id(part): part for part in _candidates(item) if _may_be_large(part)}
        for identity, part in own.items():
            if identity in self.large or identity in self._small:
                continue
            if identity not in self._seen:
                self._seen[identity] = part
            elif self._is_large(part):
                self.large[identity] = part
                found = True
            else:
                self._small[identity] = part
        for table in (self._seen, self._small):
            while len(table) > KEPT:
                del table[next(iter(table))]
        return found

    def _is_large(self, thing: Any) -> bool:
        try:
            return self._size_of(thing) >= LARGE
        except Exception as error:
            if not is_own(error):
                raise
            return False  # the item that contains it says why it cannot be pickled


def mutable_in(pickler: Any) -> frozenset[int]:
    """Return the identities of the mutable objects in a pickle: those in the memo of its pickler."""
    numpy = sys.modules.get("numpy")
    kinds = (type,) if numpy is None else (type, numpy.dtype, numpy.generic)
    return frozenset(
        identity
        for identity, (_index, thing) in pickler.memo.copy().items()
        if type(thing) not in _NO_CONTENT and not isinstance(thing, kinds)
    )
