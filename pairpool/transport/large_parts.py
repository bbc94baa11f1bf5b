"""Decide whether large objects may travel apart from the items that contain them.

A large object that several items contain has one pickle, and the items name it. In an item such as
`(table, table.log)`, the second element is a part of the first, and has to stay a part of it. So this item is pickled
as a whole. The rule: an item and the large objects that it names may have no mutable object in common.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Set
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

__all__ = ["LargeParts"]

_IMMUTABLE = frozenset({complex, str, bytes, tuple, frozenset, FunctionType, BuiltinFunctionType, ModuleType})
"""Types of objects in a pickler's memo that do not change. The elements of a tuple have their own memo entries."""


class LargeParts:
    """The mutable objects inside the large objects of one batch. A large object has the number of its `add`.

    The memo of a pickler contains the objects of its pickle, and keeps them alive.
    """

    def __init__(self) -> None:
        self._picklers: list[Any] = []
        self._inside: dict[int, frozenset[int]] = {}
        self._apart: dict[tuple[int, int], bool] = {}

    def add(self, pickler: Any) -> None:
        """Add a large object by the pickler that pickled it."""
        self._picklers.append(pickler)

    def may_travel_apart(self, pickler: Any, used: Set[int]) -> bool:
        """Return whether an item may name large objects.

        Args:
            pickler: the pickler that pickled the item.
            used: the numbers of the large objects that the item names.
        """
        outside = _mutable_in(pickler)
        if outside and not all(outside.isdisjoint(self._inside_of(number)) for number in used):
            return False
        return all(self._are_apart(one, other) for one, other in itertools.combinations(sorted(used), 2))

    def _are_apart(self, one: int, other: int) -> bool:
        """Return whether two large objects have no mutable object in common."""
        if (one, other) not in self._apart:
            self._apart[one, other] = self._inside_of(one).isdisjoint(self._inside_of(other))
        return self._apart[one, other]

    def _inside_of(self, number: int) -> frozenset[int]:
        if number not in self._inside:
            self._inside[number] = _mutable_in(self._picklers[number])
        return self._inside[number]


def _mutable_in(pickler: Any) -> frozenset[int]:
    """Return the identities of the mutable objects in the memo of a pickler."""
    numpy = sys.modules.get("numpy")
    immutable = (type,) if numpy is None else (type, numpy.dtype, numpy.generic)
    return frozenset(
        identity
        for identity, (_index, thing) in pickler.memo.copy().items()
        if type(thing) not in _IMMUTABLE and not isinstance(thing, immutable)
    )
