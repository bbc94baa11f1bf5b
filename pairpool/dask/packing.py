"""Pack the items of a batch, or their results, into bytes, so that each item is independent of the others.

    items ─► Packer.add, one by one ─► Packer.packed ─► bytes ─► unpack ─► items

    | kind of item              | how it travels                                                                     |
    | ------------------------- | ---------------------------------------------------------------------------------- |
    | immutable                 | as it is: no task can change it, so several tasks may have the same object         |
    | anything else             | as a pickle of its own: `add` makes it, and `unpack` loads it by itself            |
    | contains a large object   | the same, but the pickle names the large object, which other items contain, too;   |
    | that is repeated          | the large object has one pickle for all of them, and is loaded once                |

An item that cannot be pickled or loaded fails alone.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle

from pairpool.linux.interrupts import is_own
from pairpool.transport.items import PlainWriter, is_immutable
from pairpool.transport.large_parts import LargeParts
from pairpool.transport.numeric import is_array
from pairpool.transport.repeats import LARGE_OBJECT_BYTES, Repeats

__all__ = ["Packer", "repeats", "unpack"]

PLAIN, PICKLED, SHARING, MISSING = range(4)
"""How an item travels: as it is, as a pickle of its own, as a pickle that names large objects, or not at all."""

_CONTAINERS = frozenset({tuple, list, dict})


def _dumps(item: Any, writer: PlainWriter) -> bytes:
    """Return a pickle of an item. Functions and classes that the other side cannot import travel by value.

    Plain data contains no functions or classes, and needs half the time or less without cloudpickle.
    """
    if is_array(item) and item.dtype.isbuiltin == 1:
        return pickle.dumps(item, 5)
    pickled = writer.dump(item) if type(item) in _CONTAINERS else None
    if pickled is None:
        pickled = cloudpickle.dumps(item, 5)
    return pickled


def repeats() -> Repeats:
    """Return the memory of a call for large objects that several of its items contain."""
    return Repeats(lambda thing: len(cloudpickle.dumps(thing, 5)))


class Packer:
    """Pack items one by one.

    Args:
        repeats: the call's memory for large objects, which are pickled once per batch. None to share nothing.
    """

    def __init__(self, repeats: Repeats | None = None) -> None:
        self._kinds = bytearray()
        self._values: list[Any] = []
        self._writer = PlainWriter()
        self._large = None if repeats is None else _LargePickles(repeats, self._writer)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, item: Any) -> None:
        """Pickle an item as it is now. If that raises, the item is not added."""
        if is_immutable(item):
            kind, value = PLAIN, item
        elif self._large is None:
            kind, value = PICKLED, _dumps(item, self._writer)
        else:
            kind, value = self._large.dumps(item)
        self._kinds.append(kind)
        self._values.append(value)

    def add_missing(self) -> None:
        """Keep the place of an item that cannot be pickled: `unpack` returns an exception for it."""
        self._kinds.append(MISSING)
        self._values.append(None)

    def packed(self) -> bytes:
        """Return all items that were added, as bytes."""
        large = [] if self._large is None else self._large.pickles
        return pickle.dumps((bytes(self._kinds), self._values, large), 5)


def unpack(packed: bytes) -> list[tuple[bool, Any]]:
    """Return for each item `(True, item)`, or `(False, exception)` if it cannot be loaded."""
    kinds, values, pickles = pickle.loads(packed)
    large = _LoadedLarge(pickles)
    found: list[tuple[bool, Any]] = []
    for kind, value in zip(kinds, values, strict=True):
        try:
            found.append((True, _load(kind, value, large)))
        except BaseException as error:
            if not is_own(error):
                raise
            found.append((False, error))
    return found


def _load(kind: int, value: Any, large: _LoadedLarge) -> Any:
    if kind == PLAIN:
        return value
    if kind == PICKLED:
        return pickle.loads(value)
    if kind == SHARING:
        return _ItemUnpickler(io.BytesIO(value), large).load()
    raise LookupError("the item could not be pickled, and was not sent")


# --- large objects that several items contain -------------------------------------------------------------


class _LargePickles:
    """Pickle each large object that several items of a batch contain once, and each large item that repeats once.

    A large object travels apart from the items that name it, if `LargeParts` allows it.
    """

    def __init__(self, repeats: Repeats, writer: PlainWriter) -> None:
        self.pickles: list[bytes] = []
        self._repeats = repeats
        self._writer = writer
        self._items: dict[int, Any] = {}  # the items of this batch that have a large pickle, by identity
        self._places: dict[int, int] = {}  # in `pickles`, by identity
        self._parts = LargeParts()

    def dumps(self, item: Any) -> tuple[int, bytes]:
        """Return how an item travels, and its pickle."""
        kind, pickled = self._dumps(item)
        if len(pickled) >= LARGE_OBJECT_BYTES and self._repeats.examine(item):
            kind, pickled = self._dumps(item)
        if kind == PICKLED and len(pickled) >= LARGE_OBJECT_BYTES:
            self._items[id(item)] = item
        return kind, pickled

    def _dumps(self, item: Any) -> tuple[int, bytes]:
        if self._repeats.large or id(item) in self._items:
            pickled = self._dumps_sharing(item)
            if pickled is not None:
                return SHARING, pickled
        return PICKLED, _dumps(item, self._writer)

    def _dumps_sharing(self, item: Any) -> bytes | None:
        """Return a pickle that names the large objects; None if there are none, or if they must not travel apart."""
        file = io.BytesIO()
        pickler = _ItemPickler(file, self)
        try:
            pickler.dump(item)
        except Exception as error:
            if not is_own(error):
                raise
            return None  # if the item itself cannot be pickled, its own pickle raises the exception again
        if not pickler.used or not self._parts.may_travel_apart(pickler, pickler.used):
            return None
        return file.getvalue()

    def place(self, thing: Any) -> int | None:
        """Return the place of a large object in `pickles`; None for any other object."""
        identity = id(thing)
        place = self._places.get(identity)
        if place is None and (identity in self._repeats.large or identity in self._items):
            file = io.BytesIO()
            pickler = cloudpickle.Pickler(file, protocol=5)
            pickler.dump(thing)
            place = self._places[identity] = len(self.pickles)
            self.pickles.append(file.getvalue())
            self._parts.add(pickler)
        return place


class _ItemPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """A cloudpickle pickler that names the large objects by their places."""

    def __init__(self, file: io.BytesIO, large: _LargePickles) -> None:
        super().__init__(file, protocol=5)
        self.used: set[int] = set()
        self._large = large

    def persistent_id(self, obj: Any) -> int | None:
        place = self._large.place(obj)
        if place is not None:
            self.used.add(place)
        return place


class _LoadedLarge:
    """The large objects of a batch. Each is loaded when the first item asks for it."""

    def __init__(self, pickles: list[bytes]) -> None:
        self._pickles = pickles
        self._loaded: dict[int, Any] = {}

    def __getitem__(self, place: int) -> Any:
        if place not in self._loaded:
            self._loaded[place] = pickle.loads(self._pickles[place])
        return self._loaded[place]


class _ItemUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, large: _LoadedLarge) -> None:
        super().__init__(file)
        self._large = large

    def persistent_load(self, pid: Any) -> Any:
        return self._large[pid]
