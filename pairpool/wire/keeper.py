"""Keeps things as they are now: items of an input in the master, results of tasks in a worker.

    thing ─► atom or immutable ───────────────► kept as it is
             short container of atoms, or array ► a copy is kept
             anything else ───────────────────► pickled now, and so is everything that comes after it

Between two of them runs code that may change the first: an iterator that fills its buffer again, or a task that returns
a list of its module and appends to it.
"""

from __future__ import annotations

from typing import Any

from pairpool.wire.codec import Codec
from pairpool.wire.items import ATOMS, NONE, Part, Pickles, PlainWriter, flat_copy, is_immutable
from pairpool.wire.numeric import is_small_array, own_array

__all__ = ["Keeper"]


class Keeper:
    """A list of things that cannot change. Subclasses say how those are pickled that are not plain data.

    The loops that call `keep` skip it for things of the type that it returned before, and append to `kept` themselves:

        if type(thing) is not kind:
            kind, thing = keep(thing)
        kept.append(thing)

    Attributes:
        kept: the things; to be read through `take`.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.kept: list[Any] = []
        self._is_pickling = False
        self._last = -1
        self._writer = PlainWriter()
        self._refused: type | None = None  # the type of the last thing that was not plain data

    def begin(self, kept: list[Any], count: int = 0) -> None:
        """Keep other things from now on, in the list `kept`.

        Args:
            count: how many there will be, if nothing runs after the last one that might change it: it is kept as it is.
        """
        self.kept = kept
        self._is_pickling = False
        self._last = count - 1
        self._refused = None

    @property
    def nothing(self) -> Any:
        """What is kept where there is nothing to keep."""
        return NONE if self._is_pickling else None

    def keep(self, thing: Any) -> tuple[type | None, Any]:
        """What is kept of a thing; before it, the type of things that need not come by here from now on, if any."""
        if not self._is_pickling:
            kind = type(thing)
            if kind in ATOMS:
                return kind, thing
            if (kind is tuple and is_immutable(thing)) or len(self.kept) == self._last:
                return None, thing
            copy = flat_copy(thing, kind)
            if copy is not None:
                return None, copy
            if is_small_array(thing):
                return None, own_array(thing)
            if is_immutable(thing):
                return None, thing
            self.kept[:] = self.codec.as_parts(self.kept)
            self._is_pickling = True
        kind = type(thing)
        if kind is not self._refused:
            data = self._writer.dump(thing)
            if data is not None:
                return None, data
            self._refused = kind
        return None, self._pickle(thing)

    def take(self, things: list[Any]) -> list[Any]:
        """Some of the things that were kept: `Pickles`, or things that need not be pickled yet."""
        return Pickles(things) if self._is_pickling else things

    def _pickle(self, thing: Any) -> Part:
        """The part of a thing that is not plain data."""
        return self.codec.take_other(thing, own=True)
