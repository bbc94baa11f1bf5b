"""The large objects that the items of one batch name instead of containing them (see `large_parts`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pairpool.transport.items import Pickled, Pickles
from pairpool.transport.large_parts import LargeParts
from pairpool.transport.picklers import Beside
from pairpool.transport.repeats import Repeats

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
        self._besides: list[Beside] = []  # keeps the segments that the parts name
        self._inside = LargeParts()

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
            self._inside.add(beside.pickler)
        return number

    def may_travel_apart(self, item: Beside) -> bool:
        """Return whether an item and the large objects that it names have no other mutable object in common."""
        return self._inside.may_travel_apart(item.pickler, item.used)
