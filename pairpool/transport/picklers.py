"""Picklers: by name what the other side knows, with handles, descriptors and large buffers beside the pickle.

A buffer that is read-only in its array would arrive read-only by protocol 5, where multiprocessing's users get a
writable array: such items go in protocol 4, which copies them into the pickle.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from pairpool.transport import fd_reducers, payload_shm
from pairpool.transport.fd_passing import ChildFds, OutgoingFds
from pairpool.transport.inherited_names import NAMEABLE, InheritedNames
from pairpool.transport.items import Pickled, load_pickled
from pairpool.transport.numeric import reduce_scattered
from pairpool.transport.segments import Segment, Shared, look_up
from pairpool.transport.wire import Buffer

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = [
    "OUT_OF_BAND_FROM",
    "UNPICKLABLE",
    "Beside",
    "CarryingPickler",
    "NamingPickler",
    "Numbering",
    "ReadOnlyBuffer",
    "SharingPickler",
    "Writer",
    "dump_plainly",
    "dump_to_memory",
    "load_here",
    "needs_value",
    "pickled",
]

OUT_OF_BAND_FROM = 32 * 1024
"""Bytes from which on a buffer stays out of the pickle of its item."""

UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
"""Exceptions of the pickle module for an object that it cannot name or reduce."""


class Unnamed(Exception):
    """A function or class that the workers do not know by name was met."""


needs_value = (Unnamed, *UNPICKLABLE)
"""Exceptions of `NamingPickler` for an object that may yet travel by value."""


class ReadOnlyBuffer(Exception):
    """A buffer that would arrive read-only was met."""


class Numbering(Protocol):
    """Something that knows the large objects which several items of a batch contain."""

    def number(self, thing: object) -> int | None:
        """The number by which an object is named; None for one that is pickled."""


class Beside:
    """The things beside a pickle.

    Attributes:
        buffers: out-of-band buffers.
        segments: those of handles that it names.
        cargo: where descriptors are noted, if any may be sent.
        large: the large objects that are named instead of pickled.
        used: the numbers of those that were named.
        pickler: the one that made the pickle last; its memo tells what is in it.
    """

    __slots__ = ("buffers", "cargo", "large", "pickler", "segments", "used")

    def __init__(self, cargo: OutgoingFds | ChildFds | None = None, large: Numbering | None = None) -> None:
        self.buffers: list[Any] = []
        self.segments: list[Segment] = []
        self.cargo = cargo
        self.large = large
        self.used: set[int] = set()
        self.pickler: Any = None

    def restart(self) -> None:
        """The object is pickled once more."""
        self.buffers.clear()
        self.segments.clear()
        self.used.clear()
        if self.cargo is not None:
            self.cargo.cut(0)

    def number(self, thing: object) -> int | None:
        """The number by which a large object is named; None for an object that is pickled."""
        assert self.large is not None
        number = self.large.number(thing)
        if number is not None:
            self.used.add(number)
        return number


class NamingPickler(pickle.Pickler):
    """The plain pickler, but stops with `Unnamed` at what has to go by value; without `keep`, in protocol 4.

    Handles of `Pool.share` go as a reference to their segments, which are noted in `segments`; sockets and the like
    go as a place in `cargo`, if there is one.
    """

    def __init__(
        self,
        file: SupportsWrite[bytes],
        birth: InheritedNames,
        keep: Callable[[Any], Any] | None,
        segments: list[Segment],
        cargo: OutgoingFds | ChildFds | None = None,
    ) -> None:
        self._protocol = 4 if keep is None else 5
        super().__init__(file, self._protocol, buffer_callback=keep)
        self._birth = birth
        self._segments = segments
        self.cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Shared:
            return obj.travel(self._segments)
        if type(obj) is Pickled:
            self._segments += obj.segments
        if isinstance(obj, NAMEABLE):
            if not self._birth.names(obj):
                raise Unnamed
        elif issubclass(type(obj), fd_reducers.kinds) and self.cargo is not None:  # isinstance takes twice as long
            return fd_reducers.travel(obj, self.cargo)
        return reduce_scattered(obj, self._protocol) or NotImplemented


class _HomePickler(pickle.Pickler):
    """The plain pickler of a worker; without `keep`, in protocol 4."""

    def __init__(self, file: SupportsWrite[bytes], keep: Callable[[Any], Any] | None) -> None:
        self._protocol = 4 if keep is None else 5
        super().__init__(file, self._protocol, buffer_callback=keep)

    def reducer_override(self, obj: Any) -> Any:
        return reduce_scattered(obj, self._protocol) or NotImplemented


class CarryingPickler(_HomePickler):
    """The plain pickler, but sockets and the like go as a place in `cargo`."""

    def __init__(
        self, file: SupportsWrite[bytes], keep: Callable[[Any], Any] | None, cargo: OutgoingFds | ChildFds
    ) -> None:
        super().__init__(file, keep)
        self._cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, fd_reducers.kinds):
            return fd_reducers.travel(obj, self._cargo)
        return super().reducer_override(obj)


class SharingPickler(NamingPickler):
    """Names the large objects that several items contain."""

    beside: Beside

    def persistent_id(self, obj: Any) -> int | None:
        return self.beside.number(obj)


def _keep_large(buffers: list[Any]) -> Callable[[Any], bool]:
    """A buffer_callback that keeps large buffers out of the pickle, and refuses read-only ones."""

    def keep(buffer: Any) -> bool:
        with buffer.raw() as raw:
            if raw.readonly:
                raise ReadOnlyBuffer
            if raw.nbytes < OUT_OF_BAND_FROM:
                return True
        buffers.append(buffer)
        return False

    return keep


def dump_to_memory(
    beside: Beside, item: Any, make: Callable[[io.BytesIO, Callable[[Any], bool] | None], pickle.Pickler]
) -> bytes:
    """The pickle that a pickler makes, with large buffers beside it; in protocol 4 if one is read-only."""
    for keep in (_keep_large(beside.buffers), None):
        file = io.BytesIO()
        pickler = make(file, keep)
        if beside.large is not None:
            pickler.beside = beside  # type: ignore[attr-defined]
        beside.pickler = pickler
        try:
            pickler.dump(item)
            break
        except ReadOnlyBuffer:
            beside.restart()
    return file.getvalue()


def dump_plainly(item: Any, beside: Beside) -> bytes:
    return dump_to_memory(beside, item, _HomePickler)


def pickled(data: bytes, beside: Beside, own: payload_shm.WarmMemory | None, *, by_value: bool) -> Pickled:
    """Return the item of a pickle. The things beside the pickle now belong to the item.

    Args:
        own: where large buffers are copied to; None if nobody changes them until the item has ended.
    """
    buffers: list[Buffer] = []
    if beside.buffers:
        raws = [buffer.raw() for buffer in beside.buffers]
        buffers = raws if own is None else [own.copy(raw) for raw in raws]
    taken = Pickled(data, buffers, by_value=by_value)
    if beside.segments:
        taken.segments = tuple(beside.segments)
    if beside.cargo:
        taken.cargo = beside.cargo
    taken.is_sharing = bool(beside.used)
    return taken


class Writer:
    """Pickles one item after the other, by name, with the same pickler: to make one takes longer than most items do."""

    __slots__ = ("_beside", "_clear", "_dump", "_pickler", "_pieces", "birth")

    def __init__(self, birth: InheritedNames | None) -> None:
        self.birth = birth
        self._pieces: list[bytes] = []
        self._beside = beside = Beside()
        file: Any = SimpleNamespace(write=self._pieces.append)
        keep = _keep_large(beside.buffers)
        if birth is None:  # what has descriptors is refused
            self._pickler: pickle.Pickler = _HomePickler(file, keep)
        else:
            beside.cargo = ChildFds()
            self._pickler = NamingPickler(file, birth, keep, beside.segments, beside.cargo)
        self._dump = self._pickler.dump
        self._clear = self._pickler.clear_memo

    def dump(self, item: Any) -> bytes:
        """Return the pickle. If this raises, the writer cannot be used again."""
        pieces = self._pieces
        self._dump(item)
        self._clear()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def take(self, data: bytes, own: payload_shm.WarmMemory | None) -> Pickled:
        """Return the item that was pickled last."""
        beside = self._beside
        taken = pickled(data, beside, own, by_value=False)
        beside.buffers.clear()
        beside.segments.clear()
        if taken.cargo is not None:
            beside.cargo = ChildFds()
            self._pickler.cargo = beside.cargo  # type: ignore[attr-defined]
        return taken


def load_here(part: Pickled) -> Any:
    """Load an item that was pickled in this process. Its handles, sockets and files are the original objects."""
    buffers = [payload_shm.memory.copy(memoryview(one)) for one in part.buffers]
    unpickler = _UnpicklerHere(io.BytesIO(part.data), buffers=buffers)
    unpickler.part = part
    return unpickler.load()


class _UnpicklerHere(pickle.Unpickler):
    part: Pickled

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        cargo = self.part.cargo
        if isinstance(cargo, ChildFds) and any(found is builder for builder in fd_reducers.BUILDERS):
            things = cargo.things
            return lambda place, *_: things[place]
        if found is load_pickled:
            return self._load_nested
        if found is look_up:
            return lambda ident: Shared(next(one for one in self.part.segments if one.ident == ident), "object")
        return found

    def _load_nested(self, data: bytes, buffers: list[Any]) -> Any:
        unpickler = _UnpicklerHere(io.BytesIO(data), buffers=buffers)
        unpickler.part = self.part
        return unpickler.load()
