"""Picklers that name what the other side knows, and keep handles, descriptors and large buffers out of the pickle.

A buffer that is read-only in its array would arrive read-only by protocol 5, while users of multiprocessing get a
writable array. Items with such buffers use protocol 4, which copies the buffers into the pickle.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from pairpool.transport import fd_reducers
from pairpool.transport.fd_passing import ChildFds, OutgoingFds
from pairpool.transport.inherited_names import NAMEABLE, InheritedNames
from pairpool.transport.items import Pickled, load_pickled
from pairpool.transport.numeric import reduce_scattered
from pairpool.transport.segments import Segment, Shared, look_up
from pairpool.transport.warm_memory import WarmMemory, process_memory
from pairpool.transport.wire import Buffer

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = [
    "NEEDS_VALUE",
    "OUT_OF_BAND_FROM_BYTES",
    "UNPICKLABLE",
    "FdPickler",
    "LargeNames",
    "NamingPickler",
    "NamingWriter",
    "OutOfBand",
    "ReadOnlyBuffer",
    "SharingPickler",
    "WorkerPickler",
    "dump_to_memory",
    "load_locally",
    "pickled",
]

OUT_OF_BAND_FROM_BYTES = 32 * 1024
"""A buffer of this size and above stays out of the pickle of its item."""

UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
"""Exceptions of the pickle module for an object that it cannot name or reduce."""


class UnknownName(Exception):
    """The pickler met a function or class that the workers do not know by name."""


NEEDS_VALUE = (UnknownName, *UNPICKLABLE)
"""Exceptions of `NamingPickler` for an object that may still travel by value."""


class ReadOnlyBuffer(Exception):
    """The pickler met a buffer that would arrive read-only."""


class LargeNames(Protocol):
    """Know the large objects that several items of a batch contain."""

    def number(self, thing: object) -> int | None:
        """Return the number that names an object, or None for an object that is pickled."""


class OutOfBand:
    """The parts of a payload that are outside the pickle.

    Attributes:
        buffers: the out-of-band buffers.
        segments: the segments of the handles in the pickle.
        fds: the descriptors in the pickle; None if the pickle must not contain any.
        large: knows the large objects that are named instead of pickled; None if there are none.
        named: the numbers of the large objects that were named.
    """

    __slots__ = ("buffers", "fds", "large", "named", "segments")

    def __init__(self, fds: OutgoingFds | ChildFds | None = None, large: LargeNames | None = None) -> None:
        self.buffers: list[Any] = []
        self.segments: list[Segment] = []
        self.fds = fds
        self.large = large
        self.named: set[int] = set()

    def restart(self) -> None:
        """Forget everything, because the object is pickled once more."""
        self.buffers.clear()
        self.segments.clear()
        self.named.clear()
        if self.fds is not None:
            self.fds.cut(0)

    def hand_over(self) -> None:
        """Begin the next item, because the last one has taken the buffers, segments and descriptors."""
        self.buffers.clear()
        self.segments.clear()
        if self.fds:
            self.fds = ChildFds()

    def number(self, thing: object) -> int | None:
        """Return the number that names a large object, or None for an object that is pickled."""
        assert self.large is not None
        number = self.large.number(thing)
        if number is not None:
            self.named.add(number)
        return number


class NamingPickler(pickle.Pickler):
    """The master's pickler. Raise `UnknownName` for an object that has to travel by value.

    A handle of `Pool.share` travels as a reference to its segment, which is noted in `out_of_band.segments`. A socket
    and the like travels as a place in `out_of_band.fds`, if there is one.

    Args:
        file: receives the pickle.
        names: the names that the workers know.
        out_of_band: receives the segments and descriptors.
        keep: a `buffer_callback`, or None to use protocol 4 with all buffers in the pickle.
    """

    def __init__(
        self,
        file: SupportsWrite[bytes],
        names: InheritedNames,
        out_of_band: OutOfBand,
        keep: Callable[[Any], Any] | None,
    ) -> None:
        self._protocol = 4 if keep is None else 5
        super().__init__(file, self._protocol, buffer_callback=keep)
        self._names = names
        self._out_of_band = out_of_band

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Shared:
            return obj.reduce_for_worker(self._out_of_band.segments)
        if type(obj) is Pickled:
            self._out_of_band.segments.extend(obj.segments)
        if isinstance(obj, NAMEABLE):
            if not self._names.names(obj):
                raise UnknownName
        elif issubclass(type(obj), fd_reducers.kinds):  # isinstance takes twice as long
            fds = self._out_of_band.fds
            if fds is not None:
                return fd_reducers.reduce(obj, fds)
        return reduce_scattered(obj, self._protocol) or NotImplemented


class SharingPickler(NamingPickler):
    """Name the large objects that several items of a batch contain."""

    def persistent_id(self, obj: Any) -> int | None:
        return self._out_of_band.number(obj)


class WorkerPickler(pickle.Pickler):
    """The worker's pickler. Without `keep` it uses protocol 4."""

    def __init__(self, file: SupportsWrite[bytes], keep: Callable[[Any], Any] | None) -> None:
        self._protocol = 4 if keep is None else 5
        super().__init__(file, self._protocol, buffer_callback=keep)

    def reducer_override(self, obj: Any) -> Any:
        return reduce_scattered(obj, self._protocol) or NotImplemented


class FdPickler(WorkerPickler):
    """The worker's pickler for results with descriptors: a socket and the like travels as a place in `fds`."""

    def __init__(
        self, file: SupportsWrite[bytes], keep: Callable[[Any], Any] | None, fds: OutgoingFds | ChildFds
    ) -> None:
        super().__init__(file, keep)
        self._fds = fds

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, fd_reducers.kinds):
            return fd_reducers.reduce(obj, self._fds)
        return super().reducer_override(obj)


def _keep_large(buffers: list[Any]) -> Callable[[Any], bool]:
    """Return a `buffer_callback` that keeps large buffers out of the pickle and refuses read-only buffers."""

    def keep(buffer: Any) -> bool:
        with buffer.raw() as raw:
            if raw.readonly:
                raise ReadOnlyBuffer
            if raw.nbytes < OUT_OF_BAND_FROM_BYTES:
                return True
        buffers.append(buffer)
        return False

    return keep


def dump_to_memory(
    out_of_band: OutOfBand, item: Any, make: Callable[[io.BytesIO, Callable[[Any], bool] | None], pickle.Pickler]
) -> tuple[bytes, pickle.Pickler]:
    """Return the pickle of an item and its pickler, with large buffers in `out_of_band`.

    If a buffer is read-only, use protocol 4.

    Args:
        out_of_band: receives the buffers. It must not refer to the pickler: a reference cycle would keep segments open.
        item: the item.
        make: returns a new pickler for a file and a `buffer_callback`.
    """
    for keep in (_keep_large(out_of_band.buffers), None):
        file = io.BytesIO()
        pickler = make(file, keep)
        try:
            pickler.dump(item)
            break
        except ReadOnlyBuffer:
            out_of_band.restart()
    return file.getvalue(), pickler


def pickled(data: bytes, out_of_band: OutOfBand, memory: WarmMemory | None, *, by_value: bool) -> Pickled:
    """Return the pickled item. The contents of `out_of_band` now belong to the item.

    Args:
        memory: makes copies of the large buffers; None if nobody changes the buffers until the item has ended.
    """
    buffers: list[Buffer] = []
    if out_of_band.buffers:
        raws = [buffer.raw() for buffer in out_of_band.buffers]
        buffers = raws if memory is None else [memory.copy(raw) for raw in raws]
    part = Pickled(data, buffers, by_value=by_value, segments=tuple(out_of_band.segments), fds=out_of_band.fds or None)
    if out_of_band.named:
        part.mark_sharing()
    return part


class NamingWriter:
    """Pickle items by name, one after the other, with the same pickler.

    A new pickler takes longer to make than most items take to pickle.

    Args:
        names: the names that the workers know; None in a worker, where the pickler refuses objects with descriptors.
    """

    __slots__ = ("_clear", "_dump", "_out_of_band", "_pieces", "names")

    def __init__(self, names: InheritedNames | None) -> None:
        self.names = names
        self._pieces: list[bytes] = []
        self._out_of_band = out_of_band = OutOfBand(None if names is None else ChildFds())
        file: Any = SimpleNamespace(write=self._pieces.append)
        keep = _keep_large(out_of_band.buffers)
        pickler = WorkerPickler(file, keep) if names is None else NamingPickler(file, names, out_of_band, keep)
        self._dump = pickler.dump
        self._clear = pickler.clear_memo

    def dump(self, item: Any) -> bytes:
        """Return the pickle. If this raises, the writer cannot be used again."""
        pieces = self._pieces
        self._dump(item)
        self._clear()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def finish(self, data: bytes, memory: WarmMemory | None, original: Any) -> Pickled:
        """Return the item that was pickled last.

        Args:
            data: its pickle.
            memory: makes copies of its large buffers; None if they need no copies.
            original: the item itself, if errors and views must not load the pickle.
        """
        out_of_band = self._out_of_band
        if not (out_of_band.buffers or out_of_band.segments or out_of_band.fds):
            return Pickled(data, [], original=original)
        part = pickled(data, out_of_band, memory, by_value=False)
        part.keep_original(original)
        out_of_band.hand_over()
        return part


def load_locally(part: Pickled) -> Any:
    """Load an item in the process that pickled it. Its handles, sockets and files are the original objects."""
    buffers = [process_memory.copy(memoryview(one)) for one in part.buffers]
    return _LocalUnpickler(part.data, buffers, part).load()


class _LocalUnpickler(pickle.Unpickler):
    """Load a pickle of this process, and give the original objects in place of handles, sockets and files."""

    def __init__(self, data: bytes, buffers: list[Any], part: Pickled) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._part = part

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        fds = self._part.fds
        if isinstance(fds, ChildFds) and any(found is builder for builder in fd_reducers.BUILDERS):
            things = fds.things
            return lambda place, *_: things[place]
        if found is load_pickled:
            return lambda data, buffers: _LocalUnpickler(data, buffers, self._part).load()
        if found is look_up:
            return lambda ident: Shared(next(one for one in self._part.segments if one.ident == ident), "object")
        return found
