"""Segments: sealed memfds that hold one object each. Every worker maps them.

    Shared ─► Segment: pickle, buffers, table ── memfd (SCM_RIGHTS) ──► worker: map it; unpickle at the first use

Facts of the kernel (memfd_create(2), fcntl(2), mmap(2)), and their consequences:

- A sealed file can no longer be written or resized by any process. So a segment is the same for every worker, and an
  access to it never raises SIGBUS.
- The kernel refuses the seal against writing while a shared writable mapping exists. So segments are written by pwrite,
  which also reports a lack of memory as an error.
- A private mapping of a sealed file may be writable. A store copies the page for this process only.
- A page that is only read is the page of the file. It exists once for all processes, and counts as shared.

A file contains the pickle, then each buffer at the start of a page, then the table. The table has the size of the
pickle, the number of buffers, and the offset and size of each buffer.
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
    "fail_to_arrive",
    "forget",
    "missing_error",
    "restore",
    "take_missing",
]

T = TypeVar("T")

_PID_SHIFT = 32
"""Position of the pid in the number of a segment."""

_counter = itertools.count(1)


class SegmentClosed(ValueError):
    """A handle of `Pool.share` was used after the handle or its pool was closed."""


# --- in the master ------------------------------------------------------------------------------------


class SegmentMemory:
    """A memfd. It is closed with the last reference to this object, and in every forked child."""

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
    """The memfd of a segment in a packet for one worker. It stays open until it is sent, even if the segment is closed.

    Attributes:
        known: whether the packet was sent.
    """

    __slots__ = ("_memory", "known")

    def __init__(self, memory: SegmentMemory) -> None:
        self._memory = memory
        self.known = False

    @property
    def fd(self) -> descriptors.Descriptor:
        """The memfd."""
        return self._memory.fd

    def sent(self) -> None:
        """Note that the packet was sent."""
        self.known = True

    def free(self) -> None:
        """Do nothing if the packet is taken back before it was sent, because the segment owns the memfd."""


class Reader(Protocol):
    """A pool whose workers may know a segment."""

    def forget_segment(self, ident: int) -> None:
        """Let the workers forget a segment.

        Any thread may call this, even from `__del__`. So it neither blocks nor runs code of other parties.
        """


class Segment:
    """One shared object in its master. Its memory is freed by `close` or with the last reference.

    Attributes:
        ident: its number, unique among all processes that may exchange segments.
        nbytes: size of its file in bytes.
        by_value: whether a part of the object travels by value.
        inner: the segments of the handles inside the object, and the segments inside these.
        closures: number of segments that were closed explicitly. While it is 0, no task can use a closed segment.
    """

    closures = 0

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
        """Whether this process made the segment, and is not a fork of that process."""
        return self.ident >> _PID_SHIFT == os.getpid()

    @property
    def is_closed(self) -> bool:
        """Whether the segment, or a segment inside it, was closed."""
        return self._memory is None or any(segment._memory is None for segment in self.inner)

    def add_reader(self, reader: weakref.ref[Reader]) -> None:
        """Add a reader, whose workers forget the segment when it ends.

        The reader itself keeps a reference to `reader`, its weak reference. If the only reference were inside a
        garbage cycle, the collector could clear the weak reference while `weakref.ref` hands it out again.
        """
        self._readers[id(reader)] = reader

    def pack(self) -> tuple[SharePacket, SegmentFd]:
        """Return the packet that brings the segment to a worker. Raise `SegmentClosed` if it was closed."""
        memory = self._memory
        if memory is None:
            raise closed_error()
        return SharePacket(self.ident, self._table_at), SegmentFd(memory)

    def close(self) -> None:
        """Free the memory as soon as no task uses it."""
        if self._memory is not None and self.is_here:
            self._count_closure()
            self._end()

    @classmethod
    def _count_closure(cls) -> None:
        cls.closures += 1

    def _end(self) -> None:
        self._memory = None  # first, so that a reader that is added from now on finds the segment closed
        for reference in list(self._readers.values()):
            reader = reference()
            if reader is not None:
                reader.forget_segment(self.ident)

    def __del__(self) -> None:
        try:
            if self._memory is not None and self.is_here:
                self._end()
        except Exception:
            pass  # the interpreter is shutting down, and the end of the pool frees the rest


class Shared(Generic[T]):
    """The handle of an object in memory that every worker can map. `Pool.share` returns it.

    Pass it as an ordinary argument: in a task, it is the object itself. Only pools can pickle it.

    Attributes:
        nbytes: bytes of memory that the object takes, once for all workers.
        closed: whether the handle or its pool was closed.

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
        """Bytes of shared memory that the object takes, once for all workers."""
        return self._segment.nbytes

    @property
    def closed(self) -> bool:
        """Whether the memory has been freed, by `close` or with the pool."""
        return self._segment.is_closed

    @property
    def ident(self) -> int:
        """The number of the object, unique among all pools that may exchange handles."""
        return self._segment.ident

    def close(self) -> None:
        """Free the memory. Running tasks keep the object; calls that were not sent yet raise `ValueError`."""
        self._segment.close()

    def __enter__(self) -> Shared[T]:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def reduce_for_worker(self, segments: list[Segment]) -> tuple[Any, tuple[int]]:
        """Return the reduced form for a worker, and add the segments that the worker needs to `segments`."""
        segment = self._segment
        if not segment.is_here:
            self.__reduce_ex__(5)  # raises TypeError
        if segment.is_closed:
            raise closed_error()
        segments += (*segment.inner, segment)
        return look_up, (segment.ident,)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError(
            "a handle of Pool.share() is only understood by the tasks of pools of the process that made it: pass it to "
            "such a task as an argument, in a partial or in a closure; for any other pickle use the object that was "
            "shared"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.nbytes:,} bytes"
        return f"<pairpool.Shared {self._kind}, {state}>"


def closed_error() -> SegmentClosed:
    """Return the error for the use of a closed handle."""
    return SegmentClosed("a handle of Pool.share() was used after the handle, or the pool that made it, was closed")


# --- in a worker --------------------------------------------------------------------------------------


class _MappedSegment:
    """A segment in a worker: mapped when it arrives, and unpickled at the first use."""

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
        """The object. The first use unpickles it."""
        if not self._loaded:
            if self.mapping is None:
                assert self._error is not None
                raise self._error.with_traceback(None)
            self._thing = _load(self.mapping, self._table_at)
            self._loaded = True
        return self._thing


def _map(fd: int) -> mmap.mmap:
    """Map the whole file, writable for this process only. Since Python 3.13, the mapping needs no own descriptor."""
    options: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    return mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, **options)


def _load(mapping: mmap.mmap, table_at: int) -> Any:
    view = memoryview(mapping)
    size, count, *places = struct.unpack_from(f"<{(len(view) - table_at) // 8}Q", view, table_at)
    buffers = [view[places[2 * at] : places[2 * at] + places[2 * at + 1]] for at in range(count)]
    return pickle.loads(view[:size], buffers=buffers)


_mapped: dict[int, _MappedSegment] = {}
_is_missing = False


class _Missing(Exception):
    """A segment or a descriptor is missing, because the packet with it was taken back before this worker read it."""


def missing_error() -> Exception:
    """Return the exception for an unpickling that needs a missing segment or descriptor. `take_missing` reports it."""
    global _is_missing
    _is_missing = True
    return _Missing()


def fail_to_arrive(packet: SharePacket, error: OSError) -> None:
    """Note that the packet with a segment came without its memfd. Tasks that use the segment fail with `error`."""
    _mapped[packet.segment] = _MappedSegment(-1, packet.table_at, error)


def arrive(packet: SharePacket, fds: list[int]) -> None:
    """Map the segment that a packet has brought, and close its memfd."""
    fd = fds.pop()
    try:
        _mapped[packet.segment] = _MappedSegment(fd, packet.table_at)
    finally:
        os.close(fd)


def restore(ident: int) -> None:
    """Undo all stores to the buffers of a segment. Its mapping is private, and reads the file again."""
    segment = _mapped.get(ident)
    if segment is not None and segment.mapping is not None:
        segment.mapping.madvise(mmap.MADV_DONTNEED)


def forget(ident: int) -> None:
    """Unmap a segment as soon as no task uses it."""
    segment = _mapped.pop(ident, None)
    if segment is None or segment.mapping is None:
        return
    rest = weakref.ref(segment.mapping)
    del segment
    if rest() is not None:
        gc.collect()  # the object may be part of a reference cycle


def take_missing() -> bool:
    """Return whether an unpickling since the last call needed a missing segment or descriptor."""
    global _is_missing
    was, _is_missing = _is_missing, False
    return was


def look_up(ident: int) -> Any:
    """Return the object in a segment. It is the same object for all tasks of this worker."""
    segment = _mapped.get(ident)
    if segment is None:
        raise missing_error()
    return segment.thing
