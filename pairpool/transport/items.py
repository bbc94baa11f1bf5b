"""Items that are pickled one by one, as soon as they are taken from the input or returned by a task.

    item ─► immutable?  ─ yes ─► the item itself: nobody can change it, so it may be pickled later with its neighbours
              └ no ─► plain data? ─ yes ─► bytes: its pickle in protocol 3
                         └ no ─► `Pickled`: its pickle, with large buffers beside it

Code of the caller or of a task runs between two items. It may change an object that it has given before, so such an
object is pickled before that code runs again.

Protocol 3 names the place in the memo explicitly (BINPUT); protocols 4 and 5 count. So the opcodes of several pickles
can stand one after the other in one list. Each item uses the memo anew: no object is part of two items. Such a list
loads about as fast as one that was pickled as a whole.
"""

from __future__ import annotations

import itertools
import pickle
import struct
from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from pairpool.transport.numeric import is_plain, is_scalar, is_small_array, reduce_scattered

if TYPE_CHECKING:
    from pairpool.transport.fd_passing import ChildFds, OutgoingFds
    from pairpool.transport.segments import Segment
    from pairpool.transport.wire import Buffer

__all__ = [
    "ATOMS",
    "NONE",
    "TOLD",
    "Failed",
    "Pickled",
    "Pickles",
    "REUSED_UP_TO",
    "PlainPickler",
    "PlainWriter",
    "are_independent",
    "as_one",
    "in_a_call",
    "is_immutable",
    "joined",
    "load_pickled",
    "shown",
    "size_of",
]

ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""Types whose objects never change, and contain nothing."""

PLAIN_KINDS = ATOMS | {list, tuple, dict, set, frozenset, bytearray}
"""Types whose objects are plain data if what they contain is."""

REUSED_UP_TO = 16 * 1024
"""Bytes of a pickle up to which its pickler is used again."""

DEPTH = 4
"""Tuples inside of tuples that are looked at, to tell whether an item is immutable."""

STOP = b"."
NONE = b"\x80\x03N."
"""The pickle of None."""

_CALL = struct.Struct("<3si")


class Refused(Exception):
    """An object was met that is not plain data."""


class PlainPickler(pickle.Pickler):
    """Refuses what is not plain data. The C pickler asks about everything but scalars, strings and containers."""

    def __init__(self, file: Any, protocol: int, buffer_callback: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, protocol, buffer_callback=buffer_callback)
        self._protocol = protocol

    def reducer_override(self, obj: Any) -> Any:
        if is_plain(obj):
            return reduce_scattered(obj, self._protocol) or NotImplemented
        raise Refused


_NOT_PLAIN = (Refused, pickle.PicklingError, RecursionError, MemoryError, TypeError, ValueError, OverflowError)
"""Exceptions of the plain pickler for an object that is not plain data, or that cannot be pickled at all."""


class PlainWriter:
    """Pickles plain data, one object after the other, in protocol 3; not for two threads at once."""

    __slots__ = ("_clear", "_dump", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._renew()

    def _renew(self) -> None:
        """Take a new pickler: `clear_memo` goes through the largest memo that the pickler has had."""
        pickler = PlainPickler(SimpleNamespace(write=self._pieces.append), 3)
        self._dump = pickler.dump
        self._clear = pickler.clear_memo

    def dump(self, thing: Any) -> bytes | None:
        """Return the pickle; None for an object that is not plain data, or that cannot be pickled at all."""
        pieces = self._pieces
        try:
            self._dump(thing)
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)  # large strings are written apart
            pieces.clear()
            if len(data) > REUSED_UP_TO:
                self._renew()
            else:
                self._clear()
        except BaseException as error:  # of a signal's handler, perhaps
            pieces.clear()
            self._renew()
            if isinstance(error, _NOT_PLAIN):
                return None
            raise
        return data


class Pickled:
    """The pickle of one item, as the item was when it was taken.

    Attributes:
        data: the pickle.
        buffers: its out-of-band buffers.
        by_value: whether a function or class in the item travels by value.
        segments: the segments of the handles of `Pool.share` in the item.
        cargo: the descriptors that the pickle names, or the objects that have them.
        shown: the item itself, for errors and views; None if it can be loaded again for them.
        is_sharing: whether the pickle names large objects that other items of its batch name, too.
    """

    __slots__ = ("buffers", "by_value", "cargo", "data", "is_sharing", "segments", "shown")

    def __init__(self, data: bytes, buffers: list[Buffer], *, by_value: bool = False) -> None:
        self.data = data
        self.buffers = buffers
        self.by_value = by_value
        self.segments: tuple[Segment, ...] = ()
        self.cargo: OutgoingFds | ChildFds | None = None
        self.shown: Any = None
        self.is_sharing = False

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Inside of another pickle: what arrives is the item, loaded by itself."""
        if int(protocol) < 5:
            return load_pickled, (self.data, [bytearray(buffer) for buffer in self.buffers])
        return load_pickled, (self.data, [pickle.PickleBuffer(buffer) for buffer in self.buffers])


def load_pickled(data: bytes, buffers: list[Any]) -> Any:
    """Load the item of a `Pickled` that was part of another pickle."""
    return pickle.loads(data, buffers=buffers)


def as_one(part: Part, thing: Any) -> Any:
    """Return a stand-in for an object inside of another pickle; the object itself if it has descriptors."""
    if type(part) is bytes:
        return Pickled(part, [])
    return part if type(part) is Pickled and part.cargo is None else thing


class Failed:
    """Stands for an item that could not be pickled because of `error`; None if the error was reported already."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"<not pickled: {type(self.error).__name__}>"


TOLD = Failed(None)


def size_of(part: Part) -> int:
    """Return the bytes of an item's pickle and its buffers."""
    if type(part) is bytes:
        return len(part)
    if type(part) is not Pickled:
        return 0
    return len(part.data) + sum(map(len, part.buffers)) if part.buffers else len(part.data)


def shown(part: Part) -> Any:
    """Return an item, or a copy of it, for a description. No code of the item's class is run to load the copy."""
    if type(part) is bytes:
        return pickle.loads(part)
    if type(part) is Pickled:
        return part.shown if part.shown is not None else pickle.loads(part.data, buffers=part.buffers)
    return part


Part = bytes | Pickled | Failed
"""An item that was pickled by itself; bytes are the pickle of plain data in protocol 3."""


class Pickles(list[Any]):
    """The items of a batch, each a `Part`; its slices are such lists, too."""

    __slots__ = ()

    @overload
    def __getitem__(self, place: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> Pickles: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        found = super().__getitem__(place)
        return Pickles(found) if isinstance(place, slice) else found


# --- what need not be pickled early -------------------------------------------------------------------


def is_immutable(thing: Any, depth: int = DEPTH) -> bool:
    """Return whether nobody can change an object: an atom, or a tuple or frozenset of such objects, by exact type."""
    kind = type(thing)
    if kind is not tuple and kind is not frozenset:
        return kind in ATOMS or is_scalar(kind)
    for one in thing:  # noqa: SIM110  # a generator takes longer than most tuples do
        if type(one) not in ATOMS and not (depth > 0 and is_immutable(one, depth - 1)):
            return False
    return True


def are_independent(items: Collection[Any]) -> bool:
    """Return whether no object that can change is part of two of these items; False if that cannot be told cheaply.

    Atoms are independent, and so are tuples of atoms, and different lists, dicts, sets and small arrays that hold
    atoms. All loops of this function run in C.
    """
    kinds = set(map(type, items))
    if ATOMS.issuperset(kinds) or all(kind in ATOMS or is_scalar(kind) for kind in kinds):
        return True
    if len(kinds) > 1:
        return False
    (kind,) = kinds
    if kind is tuple or kind is frozenset:
        return ATOMS.issuperset(map(type, itertools.chain.from_iterable(items)))
    if kind is list or kind is set:
        contents: Iterable[Any] = itertools.chain.from_iterable(items)
    elif kind is dict:
        contents = itertools.chain.from_iterable(map(dict.values, items))
    elif kind is bytearray or all(map(is_small_array, items)):
        contents = ()
    else:
        return False
    return ATOMS.issuperset(map(type, contents)) and len(set(map(id, items))) == len(items)


# --- pickles put together -----------------------------------------------------------------------------


def in_a_call(number: int, data: bytes) -> bytes:
    """Return the pickle of `(number, thing)`, made of the pickle of `thing`."""
    return _CALL.pack(b"\x80" + data[1:2] + b"J", number) + data[:-1] + b"\x86."


def joined(pickles: Iterable[bytes]) -> bytes:
    """Return the pickle of a list, made of the pickles of its items in protocol 3."""
    return b"".join([b"\x80\x03(", *[data[:-1] for data in pickles], b"l."])
