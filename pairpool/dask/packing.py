"""Pack the items of a batch, or their results, into bytes, so that each item is independent of the others.

    items ─► Packer.add, one by one ─► Packer.packed ─► bytes ─► unpack ─► items

    | kind of item              | how it travels                                                                     |
    | ------------------------- | ---------------------------------------------------------------------------------- |
    | immutable                 | as it is: no task can change it, so several tasks may have the same object         |
    | other plain data          | as a pickle of its own, which runs no code of any class when it is loaded          |
    | anything else             | as a pickle of its own: `add` makes it, and `unpack` loads it by itself            |
    | contains a large object   | the same, but the pickle names the large object, which other items contain, too;   |
    | that is repeated          | the large object has one pickle for all of them, and is loaded once                |

An item that cannot be pickled or loaded fails alone.

`opened` opens the package, but not the pickles of the items. Only the program and the workers of the pools load these
pickles, because they can end the process that loads them. A Dask worker never does (`opaque`).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cloudpickle

from pairpool.linux.interrupts import is_own
from pairpool.master.outcome import error_of
from pairpool.transport.failures import Failure
from pairpool.transport.items import PlainWriter, is_immutable
from pairpool.transport.large_parts import LargeParts
from pairpool.transport.numeric import is_array
from pairpool.transport.repeats import LARGE_OBJECT_BYTES, Repeats

__all__ = [
    "DATA",
    "FAILED",
    "MISSING",
    "PICKLED",
    "PLAIN",
    "SHARING",
    "ItemUnpickler",
    "Packer",
    "dumps",
    "opened",
    "pack",
    "part_of",
    "repeats",
    "unpack",
]

PLAIN, PICKLED, SHARING, MISSING, DATA, FAILED = range(6)
"""How an item travels:

- `PLAIN`: as it is
- `PICKLED`: as a pickle of its own
- `SHARING`: as a pickle that names large objects, with their places
- `MISSING`: not at all
- `DATA`: as a pickle of plain data
- `FAILED`: instead of a result, a `Failure` or the pickle of an exception, with notes
"""

_CONTAINERS = frozenset({tuple, list, dict})


def dumps(item: Any, writer: PlainWriter) -> tuple[int, bytes]:
    """Return how an item travels, and its pickle. What the other side cannot import travels by value.

    Plain data contains no functions or classes, and needs half the time or less without cloudpickle.
    """
    if is_array(item) and item.dtype.isbuiltin == 1:
        return PICKLED, pickle.dumps(item, 5)
    pickled = writer.dump(item) if type(item) in _CONTAINERS else None
    return (PICKLED, cloudpickle.dumps(item, 5)) if pickled is None else (DATA, pickled)


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
            kind, value = dumps(item, self._writer)
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
        return pack(self._kinds, self._values, large)


def pack(kinds: Iterable[int], values: list[Any], large: Sequence[bytes] = ()) -> bytes:
    """Return items as bytes: how each of them travels, its value or pickle, and the pickles of the large objects."""
    return pickle.dumps((bytes(kinds), values, list(large)), 5)


def opened(packed: bytes) -> tuple[bytes, list[Any], list[bytes]]:
    """Return the arguments of `pack`. No pickle of an item is loaded."""
    return pickle.loads(packed)  # type: ignore[no-any-return]


def part_of(packed: bytes, start: int, stop: int) -> bytes:
    """Return some of the items as bytes."""
    kinds, values, large = opened(packed)
    return pack(kinds[start:stop], values[start:stop], large)


def unpack(packed: bytes) -> list[tuple[bool, Any]]:
    """Return for each item `(True, item)`, or `(False, exception)` if it failed or cannot be loaded."""
    kinds, values, pickles = opened(packed)
    large = _LoadedLarge(pickles)
    found: list[tuple[bool, Any]] = []
    for kind, value in zip(kinds, values, strict=True):
        try:
            found.append((True, _load(kind, value, large)))
        except BaseException as error:
            if not is_own(error):
                raise
            if kind in (PICKLED, DATA):
                error.add_note("raised while the result of the task was unpickled")
            found.append((False, error))
    return found


def _load(kind: int, value: Any, large: _LoadedLarge) -> Any:
    if kind == PLAIN:
        return value
    if kind in (PICKLED, DATA):
        return pickle.loads(value)
    if kind == SHARING:
        return ItemUnpickler(value[0], large).load()
    if kind == FAILED:
        failure, notes = value
        error = pickle.loads(failure) if type(failure) is bytes else error_of(Failure(*failure))
        for note in notes:
            error.add_note(note)
        raise error
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

    def dumps(self, item: Any) -> tuple[int, Any]:
        """Return how an item travels, and its pickle."""
        kind, pickled = self._dumps(item)
        if _size(kind, pickled) >= LARGE_OBJECT_BYTES and self._repeats.examine(item):
            kind, pickled = self._dumps(item)
        if kind != SHARING and len(pickled) >= LARGE_OBJECT_BYTES:
            self._items[id(item)] = item
        return kind, pickled

    def _dumps(self, item: Any) -> tuple[int, Any]:
        if self._repeats.large or id(item) in self._items:
            pickled = self._dumps_sharing(item)
            if pickled is not None:
                return SHARING, pickled
        return dumps(item, self._writer)

    def _dumps_sharing(self, item: Any) -> tuple[bytes, tuple[int, ...]] | None:
        """Return a pickle that names large objects, and their places.

        Return None if there are none, or if they must not travel apart.
        """
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
        return file.getvalue(), tuple(pickler.used)

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


def _size(kind: int, pickled: Any) -> int:
    return len(pickled[0] if kind == SHARING else pickled)


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


class ItemUnpickler(pickle.Unpickler):
    """Load an item that names large objects.

    Args:
        pickled: the pickle of the item.
        large: the large objects, by place.
    """

    def __init__(self, pickled: bytes, large: _LoadedLarge | Mapping[int, Any]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._large = large

    def persistent_load(self, pid: Any) -> Any:
        return self._large[pid]
