"""Keep objects as they are now: the items of an input in the master, and the results of tasks in a worker.

    object ─► atom, or tuple of atoms ─────► kept as it is
              short list or set of atoms ──► a copy is kept
              small array ─────────────────► a copy is kept
              anything else ───────────────► pickled now, as is every object that comes after it

Other code runs before the next object arrives, and this code may change the object. For example, an iterator fills its
buffer again, or a task appends to a list of its module that an earlier task has returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pairpool.transport.items import ATOMS, PICKLED_NONE, Part, Pickles, PlainWriter, is_immutable
from pairpool.transport.numeric import is_scalar, is_small_array, own_array
from pairpool.transport.serializer import Serializer

__all__ = ["Keeper"]

COPYABLE_KINDS = frozenset({tuple, list, set, bytearray})
"""Containers of these types are kept or copied if they are short and hold atoms only. A pickle would take longer."""

COPIED_UP_TO_ELEMENTS = 32
"""Longer containers are pickled, because a check of each element takes about as long as its pickle."""


class Keeper:
    """Keep a list of objects, and protect them against later changes.

    Attributes:
        kept: the entries for the objects. Read them through `take`.
        left_over: an object that `extend` took and could not keep, because the handler of a signal raised meanwhile.
    """

    def __init__(self, serializer: Serializer) -> None:
        self.serializer = serializer
        self.kept: list[Any] = []
        self.left_over: list[Any] = []
        self._is_pickling = False
        self._last = -1
        self._writer = PlainWriter()
        self._refused: type | None = None  # the type of the last object that was not plain data

    def begin(self, kept: list[Any], count: int = 0) -> None:
        """Keep other objects from now on, in the list `kept`.

        Args:
            kept: receives the entries.
            count: the number of objects if no code runs after the last one; then the last one is kept as it is.
        """
        self.kept = kept
        self._is_pickling = False
        self._last = count - 1
        self._refused = None

    @property
    def nothing(self) -> Any:
        """The entry for an object that is missing."""
        return PICKLED_NONE if self._is_pickling else None

    def keep(self, thing: Any) -> tuple[type | None, Any]:
        """Return the entry for an object, and a type whose objects are their own entries.

        The type is None if every object has to be passed to this method. The caller appends the entry:

            if type(thing) is not kind:
                kind, thing = keep(thing)
            kept.append(thing)
        """
        kind = type(thing)
        if not self._is_pickling:
            if kind in ATOMS:
                return kind, thing
            if kind in COPYABLE_KINDS and len(thing) <= COPIED_UP_TO_ELEMENTS:
                for one in thing:
                    if type(one) not in ATOMS:
                        break
                else:
                    return None, thing if kind is tuple else thing.copy()
            if is_scalar(kind):
                return kind, thing
            if len(self.kept) == self._last or is_immutable(thing):
                return None, thing
            if is_small_array(thing):
                return None, own_array(thing)
            self.kept[:] = self.serializer.dump_settled(self.kept)
            self._is_pickling = True
        if kind is not self._refused:
            data = self._writer.dump(thing)
            if data is not None:
                return None, data
            self._refused = kind
        return None, self._pickle(thing)

    def extend(self, things: Iterator[Any]) -> None:
        """Keep all objects of an iterator, each before the next one is taken. Raise the exceptions of the iterator."""
        kept, kind = self.kept, None
        number, thing = len(kept), None
        try:
            for number, thing in enumerate(things, len(kept) + 1):  # noqa: B007  # `number` counts the objects taken
                if type(thing) is kind:
                    kept.append(thing)
                else:
                    kind, entry = self.keep(thing)
                    kept.append(entry)
        except BaseException:
            if len(kept) < number:
                self.left_over.append(thing)
            raise

    def take(self, entries: list[Any]) -> list[Any]:
        """Return some of the entries: as `Pickles`, or as objects that need not be pickled yet."""
        return Pickles(entries) if self._is_pickling else entries

    def _pickle(self, thing: Any) -> Part:
        """Return the pickle of an object that is not plain data. Subclasses handle its errors."""
        return self.serializer.dump_other(thing, copy_buffers=True)
