"""The large objects that the items of one batch name instead of containing them.

A large object travels apart from the items that contain it. In an item such as `(table, table.log)`, the second element
is a part of the first, and has to stay a part of it. So such an item is pickled as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from pairpool.transport.items import Pickled, Pickles
from pairpool.transport.picklers import Beside
from pairpool.transport.repeats import Repeats, mutable_in

__all__ = ["Large"]


class Large:
    """The large objects of one batch.

    Args:
        repeats: what is known of the items of the call.
        pickle_alone: returns an object as it is now, with what is beside its pickle; raises what its pickling raises.

    Attributes:
        parts: the objects that were named so far; an item names them by their places here.
    """

    def __init__(self, repeats: Repeats, pickle_alone: Callable[[Any], tuple[Pickled, Beside]]) -> None:
        self.repeats = repeats
        self.parts = Pickles()
        self._pickle_alone = pickle_alone
        self._numbers: dict[int, int] = {}
        self._besides: list[Beside] = []
        self._inside: dict[int, frozenset[int]] = {}
        self._apart: dict[tuple[int, ...], bool] = {}

    def number(self, thing: object) -> int | None:
        """Return the number of a large object, which is pickled when it is named first; None for other objects."""
        identity = id(thing)
        if identity not in self.repeats.large:
            return None
        number = self._numbers.get(identity)
        if number is None:
            part, beside = self._pickle_alone(thing)
            number = self._numbers[identity] = len(self.parts)
            self.parts.append(part)
            self._besides.append(beside)
        return number

    def may_travel_apart(self, item: Beside) -> bool:
        """Return whether an item and the large objects that it names have no other mutable object in common."""
        outside = mutable_in(item.pickler)
        if outside and not all(outside.isdisjoint(self._inside_of(number)) for number in item.used):
            return False
        return all(self._are_apart(*pair) for pair in itertools.combinations(sorted(item.used), 2))

    def _are_apart(self, *pair: int) -> bool:
        """Whether two large objects have no mutable object in common."""
        if pair not in self._apart:
            one, other = pair
            self._apart[pair] = self._inside_of(one).isdisjoint(self._inside_of(other))
        return self._apart[pair]

    def _inside_of(self, number: int) -> frozenset[int]:
        if number not in self._inside:
            self._inside[number] = mutable_in(self._besides[number].pickler)
        return self._inside[number]
