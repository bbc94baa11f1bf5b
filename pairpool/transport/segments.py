"""Segments: sealed memfds that hold one object each, for all workers to map.

    Shared ─► Segment: pickle, buffers, table ── memfd (SCM_RIGHTS) ──► worker: map it; unpickle at the first use

What the kernel does (memfd_create(2), fcntl(2), mmap(2)), and what follows:

- a sealed file can be neither written nor resized any more, by anyone: a segment is the same for every worker, and
  touching it is never a SIGBUS;
- the seal against writing is refused while a shared writable mapping exists: segments are written by pwrite, which
  besides reports a lack of memory as an error;
- a private mapping of a sealed file may be writable: a store copies that page for its process alone;
- a page that is only read is the file's own: it exists once for all processes, and counts as shared.

A file is laid out as the pickle, then each buffer on a page of its own, then the table: the size of the pickle, the
number of buffers, and the offset and size of each.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import pickle
import struct
import sys
import weakref
from typing import Any, Generic, Protocol, TypeVar

from pairpool.linux import descriptors
from pairpool.transport.protocol import SharePacket

__all__ = [
    "SegmentMemory",
    "SegmentFd",
    "Reader",
    "Segment",
    "SegmentClosed",
    "Shared",
    "arrive",
    "closed_error",
    "drop",
    "lacking",
    "lose",
    "restore",
    "take_lacking",
]

T = TypeVar("T")

_PID_SHIFT = 32

_counter = itertools.count(1)


class SegmentClosed(ValueError):
    """A handle of `Pool.share` was used after it, or its pool, was closed."""


# --- in the master ------------------------------------------------------------------------------------


class SegmentMemory:
    """A memfd that is closed with the last reference to this object, and in every forked child."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = descriptors.Descriptor(descriptors.memfd("pairpool-share", 0))
        descriptors.own(self.fd)

    def __del__(self, _disown: Any = descriptors.disown) -> None:
        fd = getattr(self, "fd", None)
        if fd is not None:
            _disown(fd)
            fd.close()


class SegmentFd:
    """A segment's memfd on its way to one worker; open until it was sent, even if the segment is closed before."""

    __slots__ = ("_memory", "known")

    def __init__(self, memory: SegmentMemory) -> None:
        self._memory = memory
        self.known = False

    @property
    def fd(self) -> descriptors.Descriptor:
        return self._memory.fd

    def free(self) -> None:
        """It was taken back before it was sent: nothing to do."""


class Reader(Protocol):
    """Somebody whose workers may know a segment."""

    def forget_segment(self, ident: int) -> None:
        """Have them forget it. From any thread, `__del__` included: neither blocks nor runs other people's code."""


class Segment:
    """One shared object as its master holds it; freed by `close` or with the last reference.

    Attributes:
        ident: its number, unique among all processes that may meet.
        nbytes: size of its file.
        by_value: whether something in it went by value.
        inner: the segments of handles inside of the object, and those inside of them.
    """

    closures = 0
    """How many were closed while there may have been users; while it is 0, nobody need look for closed ones."""

    def __init__(
        self, memory: SegmentMemory, table_at: int, nbytes: int, by_value: bool, inner: tuple[Segment, ...]
    ) -> None:
        self._memory: SegmentMemory | None = memory
        self._table_at = table_at
        self._readers: dict[int, weakref.ref[Reader]] = {}
        self.ident = os.getpid() << _PID_SHIFT | next(_counter)
        self.nbytes = nbytes
        self.by_value = by_value
        self.inner = inner

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it, and not a fork of it."""
        return self.ident >> _PID_SHIFT == os.getpid()

    @property
    def is_closed(self) -> bool:
        return self._memory is None or any(segment._memory is None for segment in self.inner)

    def add_reader(self, reader: weakref.ref[Reader]) -> None:
        """Note who is to be told that the segment is gone.

        The reader itself holds this reference to it. Else a circle of garbage might have the only one, and the
        collector would clear it, which `weakref.ref` may have handed out again meanwhile, for others to hold.
        """
        self._readers[id(reader)] = reader

    def pack(self) -> tuple[SharePacket, SegmentFd]:
        """The packet that brings it to a worker. Raises `SegmentClosed`."""
        memory = self._memory
        if memory is None:
            raise closed_error()
        return SharePacket(self.ident, self._table_at), SegmentFd(memory)

    def close(self) -> None:
        """Free the memory as soon as no task uses it any more."""
        if self._memory is not None and self.is_here:
            Segment.closures += 1
            self._end()

    def _end(self) -> None:
        self._memory = None  # first, so that whoever becomes a reader from now on finds it closed
        for reference in list(self._readers.values()):
            reader = reference()
            if reader is not None:
                reader.forget_segment(self.ident)

    def __del__(self) -> None:
        try:
            if self._memory is not None and self.is_here:
                self._end()
        except Exception:
            pass  # the interpreter is being taken down, and the pool's end frees what is left


class Shared(Generic[T]):
    """The handle of an object that `Pool.share` has put where every worker can map it.

    Use it as an ordinary argument: in a task, it is the object itself. It cannot be pickled by anything else.

    Attributes:
        nbytes: bytes of memory that the object takes, once for all workers.
        closed: whether it, or its pool, was closed.

    Example:
        >>> with Pool() as pool, pool.share(table) as shared:
        ...     pool.starmap(look_up, [(shared, key) for key in keys])
    """

    __slots__ = ("__weakref__", "_kind", "_segment")

    def __init__(self, segment: Segment, kind: str) -> None:
        self._segment = segment
        self._kind = kind

    @property
    def nbytes(self) -> int:
        """Bytes that the object takes in shared memory, once for all workers."""
        return self._segment.nbytes

    @property
    def closed(self) -> bool:
        """Whether the memory has been freed, by `close` or with the pool."""
        return self._segment.is_closed

    @property
    def ident(self) -> int:
        """The number of the object, unique among all pools that may meet."""
        return self._segment.ident

    def close(self) -> None:
        """Free the memory now; tasks that run keep what they have, calls that are still to be sent raise ValueError."""
        self._segment.close()

    def __enter__(self) -> Shared[T]:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def travel(self, segments: list[Segment]) -> tuple[Any, tuple[int]]:
        """What a pickle for a worker says instead of the handle; notes in `segments` what the worker has to know."""
        segment = self._segment
        if not segment.is_here:
            self.__reduce_ex__(5)
        if segment.is_closed:
            raise closed_error()
        segments += (*segment.inner, segment)
        return look_up, (segment.ident,)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError(
            "a handle of Pool.share() is understood by the tasks of pools of the process that made it, and by nothing "
            "else: pass it to such a task as an argument, in a partial or in a closure; for any other pickle use the "
            "object that was shared"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.nbytes:,} bytes"
        return f"<pairpool.Shared {self._kind}, {state}>"


def closed_error() -> SegmentClosed:
    return SegmentClosed("a handle of Pool.share() was used after it, or the pool that made it, was closed")


# --- in a worker --------------------------------------------------------------------------------------


class _Arrived:
    """A segment in a worker: mapped, and unpickled at the first use."""

    __slots__ = ("_error", "_loaded", "_table_at", "_thing", "mapping")

    def __init__(self, fd: int, table_at: int, error: Exception | None = None) -> None:
        self._table_at = table_at
        self._loaded = False
        self._thing: Any = None
        self._error = error
        self.mapping: mmap.mmap | None = None
        if error is not None:
            return
        try:
            self.mapping = _map(fd)
        except (OSError, MemoryError) as error:
            self._error = error

    @property
    def thing(self) -> Any:
        if not self._loaded:
            if self.mapping is None:
                assert self._error is not None
                raise self._error.with_traceback(None)
            self._thing = _load(self.mapping, self._table_at)
            self._loaded = True
        return self._thing


def _map(fd: int) -> mmap.mmap:
    """The whole file, writable for this process alone; from Python 3.13 on without a descriptor of its own."""
    options: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    return mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, **options)


def _load(mapping: mmap.mmap, table_at: int) -> Any:
    view = memoryview(mapping)
    size, count, *places = struct.unpack_from(f"<{(len(view) - table_at) // 8}Q", view, table_at)
    buffers = [view[places[2 * at] : places[2 * at] + places[2 * at + 1]] for at in range(count)]
    return pickle.loads(view[:size], buffers=buffers)


_arrived: dict[int, _Arrived] = {}
_lacking = False


class _Lacking(Exception):
    """A segment or a descriptor is not there: the packet with it was taken back before this worker read it."""


def lacking() -> Exception:
    """What to raise where something is not there that a packet before this one had; notes it for `take_lacking`."""
    global _lacking
    _lacking = True
    return _Lacking()


def lose(packet: SharePacket, error: OSError) -> None:
    """A packet with a segment has come without its memfd: tasks that use it fail with `error`."""
    _arrived[packet.segment] = _Arrived(-1, packet.table_at, error)


def arrive(packet: SharePacket, fds: list[int]) -> None:
    """A packet has brought a segment; its memfd is closed."""
    fd = fds.pop()
    try:
        _arrived[packet.segment] = _Arrived(fd, packet.table_at)
    finally:
        os.close(fd)


def restore(ident: int) -> None:
    """Undo what was written to the buffers of a segment: its mapping is private, and reads the file again."""
    segment = _arrived.get(ident)
    if segment is not None and segment.mapping is not None:
        segment.mapping.madvise(mmap.MADV_DONTNEED)


def drop(ident: int) -> None:
    """Let go of a segment; what tasks still use stays until they let go of it, too."""
    segment = _arrived.pop(ident, None)
    if segment is None or segment.mapping is None:
        return
    rest = weakref.ref(segment.mapping)
    del segment
    if rest() is not None:
        gc.collect()  # the object may be part of a circle of references


def take_lacking() -> bool:
    """Whether something was unpickled since the last call that needs a segment or a descriptor which is not there."""
    global _lacking
    was, _lacking = _lacking, False
    return was


def look_up(ident: int) -> Any:
    """The object in a segment: the same one for all tasks of this worker."""
    segment = _arrived.get(ident)
    if segment is None:
        raise lacking()
    return segment.thing
