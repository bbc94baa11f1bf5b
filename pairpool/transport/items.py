"""Items that are pickled one by one, as soon as the input yields them or a task returns them.

    item ─► immutable?  ─ yes ─► the item itself: it cannot change, so it can be pickled later, with its neighbours
              └ no ─► plain data? ─ yes ─► bytes: its pickle in protocol 3
                         └ no ─► `Pickled`: its pickle, with large buffers out of band

Code of the caller or of a task runs between two items. This code may change an object that it has given before. So the
object is pickled before that code runs again.

Protocol 3 names each place in the memo explicitly (BINPUT), while protocols 4 and 5 count. So the opcodes of several
pickles can follow one another in one list. Each item uses the memo anew, and no object is part of two items. Such a
list loads about as fast as a list that was pickled as a whole.
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
    "PICKLED_NONE",
    "REPORTED",
    "Failed",
    "Pickled",
    "Pickles",
    "PICKLER_REUSED_UP_TO_BYTES",
    "PlainPickler",
    "PlainWriter",
    "are_independent",
    "standalone",
    "pickled_call",
    "is_immutable",
    "pickled_list",
    "load_pickled",
    "for_display",
    "size_of",
]

ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""Types whose objects never change and contain no other objects."""

PLAIN_KINDS = ATOMS | {list, tuple, dict, set, frozenset, bytearray}
"""Types whose objects are plain data if everything in them is plain data."""

PICKLER_REUSED_UP_TO_BYTES = 16 * 1024
"""A pickler is used again if its last pickle was at most this large."""

TUPLE_LEVELS_EXAMINED = 4
"""Levels of nested tuples and frozensets that `is_immutable` examines."""

PICKLED_NONE = b"\x80\x03N."
"""The pickle of None in protocol 3."""

_CALL_PREFIX = struct.Struct("<3si")


class NotPlainData(Exception):
    """The plain pickler met an object that is not plain data."""


class PlainPickler(pickle.Pickler):
    """Refuse objects that are not plain data. The C pickler asks about all but scalars, strings and containers."""

    def __init__(self, file: Any, protocol: int, buffer_callback: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, protocol, buffer_callback=buffer_callback)
        self._protocol = protocol

    def reducer_override(self, obj: Any) -> Any:
        if is_plain(obj):
            return reduce_scattered(obj, self._protocol) or NotImplemented
        raise NotPlainData


_NOT_PLAIN = (NotPlainData, pickle.PicklingError, RecursionError, MemoryError, TypeError, ValueError, OverflowError)
"""Exceptions of the plain pickler for an object that is not plain data or cannot be pickled at all."""


class PlainWriter:
    """Pickle plain data in protocol 3, one object after the other. Only one thread may use a writer at a time."""

    __slots__ = ("_clear", "_dump", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._renew()

    def _renew(self) -> None:
        """Make a new pickler, because `clear_memo` goes through the largest memo that the old pickler ever had."""
        pickler = PlainPickler(SimpleNamespace(write=self._pieces.append), 3)
        self._dump = pickler.dump
        self._clear = pickler.clear_memo

    def dump(self, thing: Any) -> bytes | None:
        """Return the pickle, or None if the object is not plain data or cannot be pickled at all."""
        pieces = self._pieces
        try:
            self._dump(thing)
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)  # the pickler writes large strings separately
            pieces.clear()
            if len(data) > PICKLER_REUSED_UP_TO_BYTES:
                self._renew()
            else:
                self._clear()
        except BaseException as error:  # perhaps from the handler of a signal
            pieces.clear()
            self._renew()
            if isinstance(error, _NOT_PLAIN):
                return None
            raise
        return data


class Pickled:
    """The pickle of one item, with the value that the item had at that time.

    Attributes:
        data: the pickle.
        buffers: its out-of-band buffers.
        by_value: whether a function or class in the item travels by value.
        segments: the segments of the handles of `Pool.share` in the item.
        fds: the descriptors that the pickle names, or the objects that have them; None if there are none.
        original: the item itself, for errors and views; None if it can be loaded again for them.
        is_sharing: whether the pickle names large objects that other items of its batch name, too.
    """

    __slots__ = ("buffers", "by_value", "data", "fds", "is_sharing", "original", "segments")

    def __init__(
        self,
        data: bytes,
        buffers: list[Buffer],
        *,
        by_value: bool = False,
        segments: tuple[Segment, ...] = (),
        fds: OutgoingFds | ChildFds | None = None,
        original: Any = None,
    ) -> None:
        self.data = data
        self.buffers = buffers
        self.by_value = by_value
        self.segments = segments
        self.fds = fds
        self.original = original
        self.is_sharing = False

    def mark_sharing(self) -> None:
        """Note that the pickle names large objects that other items of its batch name, too."""
        self.is_sharing = True

    def keep_original(self, item: Any) -> None:
        """Keep the item itself for errors and views."""
        self.original = item

    def with_data(self, data: bytes) -> Pickled:
        """Return the same item with another pickle, which names the same buffers, segments and descriptors."""
        return Pickled(data, self.buffers, by_value=self.by_value, segments=self.segments, fds=self.fds)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Reduce to the item: inside another pickle, a `Pickled` arrives as the item, loaded by itself."""
        if int(protocol) < 5:
            return load_pickled, (self.data, [bytearray(buffer) for buffer in self.buffers])
        return load_pickled, (self.data, [pickle.PickleBuffer(buffer) for buffer in self.buffers])


def load_pickled(data: bytes, buffers: list[Any]) -> Any:
    """Load the item of a `Pickled` that was part of another pickle."""
    return pickle.loads(data, buffers=buffers)


def standalone(part: Part, thing: Any) -> Any:
    """Return an object to put inside another pickle, where it arrives as `thing`.

    The object is a `Pickled`. It is `thing` itself if `thing` could not be pickled or has descriptors.
    """
    if type(part) is bytes:
        return Pickled(part, [])
    return part if type(part) is Pickled and part.fds is None else thing


class Failed:
    """Take the place of an item that could not be pickled.

    Attributes:
        error: the reason; None if it was reported already.
    """

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"<not pickled: {type(self.error).__name__}>"


REPORTED = Failed(None)
"""Takes the place of an item whose failure was reported already."""


def size_of(part: Part) -> int:
    """Return the size of an item's pickle and its buffers in bytes."""
    if type(part) is bytes:
        return len(part)
    if type(part) is not Pickled:
        return 0
    return len(part.data) + sum(map(len, part.buffers)) if part.buffers else len(part.data)


def for_display(part: Part) -> Any:
    """Return an item, or a copy of it, to describe it. Loading the copy runs no code of the item's class."""
    if type(part) is bytes:
        return pickle.loads(part)
    if type(part) is Pickled:
        return part.original if part.original is not None else pickle.loads(part.data, buffers=part.buffers)
    return part


Part = bytes | Pickled | Failed
"""An item that was pickled by itself. Bytes are the pickle of plain data in protocol 3."""


class Pickles(list[Any]):
    """The items of a batch, each as a `Part`. A slice of it is a `Pickles`, too."""

    __slots__ = ()

    @overload
    def __getitem__(self, place: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> Pickles: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        found = super().__getitem__(place)
        return Pickles(found) if isinstance(place, slice) else found


# --- objects that need no early pickle ------------------------------------------------------------------


def is_immutable(thing: Any, levels: int = TUPLE_LEVELS_EXAMINED) -> bool:
    """Return whether an object cannot change: an atom, or a tuple or frozenset of such objects, by exact type."""
    kind = type(thing)
    if kind is not tuple and kind is not frozenset:
        return kind in ATOMS or is_scalar(kind)
    for one in thing:  # noqa: SIM110  # a generator costs more than most tuples
        if type(one) not in ATOMS and not (levels > 0 and is_immutable(one, levels - 1)):
            return False
    return True


def are_independent(items: Collection[Any]) -> bool:
    """Return whether no mutable object is part of two of these items. Return False if the check would be expensive.

    Atoms and tuples of atoms are independent. Lists, dicts, sets and small arrays are independent if they are different
    objects and hold only atoms. All loops of this function run in C.
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


# --- pickles made of pickles -----------------------------------------------------------------------------


def pickled_call(number: int, data: bytes) -> bytes:
    """Return the pickle of `(number, thing)`, given the pickle of `thing`."""
    return _CALL_PREFIX.pack(b"\x80" + data[1:2] + b"J", number) + data[:-1] + b"\x86."


def pickled_list(pickles: Iterable[bytes]) -> bytes:
    """Return the pickle of a list, given the pickles of its items in protocol 3."""
    return b"".join([b"\x80\x03(", *[data[:-1] for data in pickles], b"l."])
