"""Keeps things as they are now: items of an input in the master, results of tasks in a worker.

    thing ─► atom, or tuple of such ──────► kept as it is
             short list or set of atoms ──► a copy is kept
             small array ─────────────────► a copy is kept
             anything else ───────────────► pickled now, and so is everything that comes after it

Other code runs before the next thing comes, and may change this one: an iterator fills its buffer again, or a task
appends to a list of its module that an earlier task has returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pairpool.transport.items import ATOMS, NONE, Part, Pickles, PlainWriter, is_immutable
from pairpool.transport.numeric import is_scalar, is_small_array, own_array
from pairpool.transport.serializer import Serializer

__all__ = ["Keeper"]

FLAT = frozenset({tuple, list, set, bytearray})
"""Types of containers that are kept or copied if they hold atoms only: a pickle of each would take longer."""

SHORT = 32
"""Elements up to which that is done: to look at each takes about as long as to pickle it."""


class Keeper:
    """A list of things that cannot change. Subclasses say how those are pickled that are not plain data.

    Attributes:
        kept: the things; to be read through `take`.
        left_over: a thing that `extend` took and could not keep, because a signal's handler raised meanwhile.
    """

    def __init__(self, codec: Serializer) -> None:
        self.codec = codec
        self.kept: list[Any] = []
        self.left_over: list[Any] = []
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
        """Return the entry for a thing that is missing."""
        return NONE if self._is_pickling else None

    def keep(self, thing: Any) -> tuple[type | None, Any]:
        """Return `(kind, entry)`: the entry to append to `kept`, and a type whose objects need not be passed to this.

        The type is None if every thing has to be passed to this. The caller appends the entry:

            if type(thing) is not kind:
                kind, thing = keep(thing)
            kept.append(thing)
        """
        kind = type(thing)
        if not self._is_pickling:
            if kind in ATOMS:
                return kind, thing
            if kind in FLAT and len(thing) <= SHORT:
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
            self.kept[:] = self.codec.as_parts(self.kept)
            self._is_pickling = True
        if kind is not self._refused:
            data = self._writer.dump(thing)
            if data is not None:
                return None, data
            self._refused = kind
        return None, self._pickle(thing)

    def extend(self, things: Iterator[Any]) -> None:
        """Keep all things of an iterator, each before the next one is taken. Raise the exceptions of the iterator."""
        kept, kind = self.kept, None
        number, thing = len(kept), None
        try:
            for number, thing in enumerate(things, len(kept) + 1):  # noqa: B007  # the number tells what was taken
                if type(thing) is kind:
                    kept.append(thing)
                else:
                    kind, as_it_is = self.keep(thing)
                    kept.append(as_it_is)
        except BaseException:
            if len(kept) < number:
                self.left_over.append(thing)
            raise

    def take(self, things: list[Any]) -> list[Any]:
        """Return some of the kept things: as `Pickles`, or as things that need not be pickled yet."""
        return Pickles(things) if self._is_pickling else things

    def _pickle(self, thing: Any) -> Part:
        """Return the pickle of a thing that is not plain data."""
        return self.codec.take_other(thing, own=True)
