"""Pickle each large object of a batch once, however many items of the batch contain it.

item ─► same item was pickled before? ─ yes ─► its old pickle
          └ no ─► names large objects, and shares nothing else with them? ─ yes ─► a pickle that names them
                     └ no ─► its own pickle, as a whole
"""

from __future__ import annotations

from typing import Any, Protocol

from pairpool.linux.interrupts import is_own
from pairpool.transport.items import Part, Pickled, Pickles, size_of
from pairpool.transport.large_parts import LargeParts
from pairpool.transport.object_dumper import ObjectDumper
from pairpool.transport.picklers import pickled
from pairpool.transport.repeats import LARGE_OBJECT_BYTES, Repeats

__all__ = ["BatchDumper"]


class ItemDumper(Protocol):
    """Pickle items as a whole."""

    def dump(self, item: Any, *, copy_buffers: bool = True) -> Part:
        """Return the pickle of an item."""


class BatchDumper:
    """Pickle the items of one batch, and name the large objects in them.

    Args:
        repeats: the large objects of the call.
        dumper: pickles single objects.
        whole: pickles items that name no large object.

    Attributes:
        large: the pickles of the large objects that were named so far. An item names them by their indexes here.
    """

    def __init__(self, repeats: Repeats, dumper: ObjectDumper, whole: ItemDumper) -> None:
        self.large = Pickles()
        self._repeats = repeats
        self._dumper = dumper
        self._whole = whole
        self._numbers: dict[int, int] = {}
        self._parts = LargeParts()

    def dump(self, item: Any) -> Part:
        """Return the pickle of an item."""
        repeats = self._repeats
        known: Part | None = repeats.find(item)
        if known is not None:
            return known
        part: Part = (repeats.large and self._dump_sharing(item)) or self._whole.dump(item, copy_buffers=False)
        if size_of(part) >= LARGE_OBJECT_BYTES:
            if repeats.examine(item):
                part = self._dump_sharing(item) or part
            if not (type(part) is Pickled and part.is_sharing):
                repeats.keep(item, part)
        return part

    def number(self, thing: object) -> int | None:
        """Return the number of a large object, or None for other objects. The first call for an object pickles it."""
        identity = id(thing)
        if identity not in self._repeats.large:
            return None
        number = self._numbers.get(identity)
        if number is None:
            out_of_band = self._dumper.out_of_band()
            dumped = self._dumper.dump(thing, out_of_band)
            number = self._numbers[identity] = len(self.large)
            self.large.append(pickled(dumped.data, out_of_band, None, by_value=dumped.by_value))
            self._parts.add(dumped.pickler)
        return number

    def _dump_sharing(self, item: Any) -> Pickled | None:
        """Return a pickle that names large objects. Return None if there are none, or if they must not travel apart."""
        if id(item) in self._repeats.large:
            return None
        out_of_band = self._dumper.out_of_band(self)
        try:
            dumped = self._dumper.dump(item, out_of_band)
            named = out_of_band.named
            if not named or not self._parts.may_travel_apart(dumped.pickler, named):
                return None
        except Exception as error:
            if not is_own(error):
                raise
            return None  # if the item itself cannot be pickled, its own pickle raises this error again
        part = pickled(dumped.data, out_of_band, None, by_value=dumped.by_value)
        part.keep_original(item)
        return part
