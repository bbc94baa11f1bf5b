"""Write segments: the pickle of one object and its buffers, directly from the memory of the object to a memfd.

The memory of arrays and the like is written unchanged, even if it is read-only, and workers map it. `_reduce` does the
same for a few objects whose memory would go into the pickle, of which every worker has its own copy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import struct
import sys
from typing import Any

from pairpool.linux import descriptors
from pairpool.transport.inherited_names import InheritedNames
from pairpool.transport.payload_shm import pwrite_all
from pairpool.transport.picklers import NEEDS_VALUE, NamingPickler, OutOfBand
from pairpool.transport.segments import Segment, SegmentMemory
from pairpool.transport.wire import Buffer

__all__ = ["SegmentWriter", "write_segment"]

PAGE_ALIGNED_FROM_BYTES = 4096
"""A buffer of this size and above has its own pages in the segment."""

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def write_segment(thing: Any, names: InheritedNames) -> Segment:
    """Return a new segment with an object: by name if the workers know its functions and classes, else by value.

    Raise the exception of its pickling.

    Raises:
        OSError: there is not enough memory.
        MemoryError: there is not enough memory.
    """
    writer = SegmentWriter()
    try:
        by_value = _dump(_AsBytes(thing) if type(thing) is bytes else thing, names, writer)
        return writer.finish(by_value)
    except BaseException:
        writer.abandon()
        raise


def _dump(thing: Any, names: InheritedNames, writer: SegmentWriter) -> bool:
    """Write the pickle of an object. Return whether a part of it travels by value."""
    try:
        _ByName(writer, names, writer.out_of_band, writer.keep).dump(thing)
        return False
    except NEEDS_VALUE:
        writer.restart()
    from pairpool.transport.by_value_pickler import ByValuePickler

    class ByValue(_ApartMixin, ByValuePickler):
        pass

    ByValue(writer, names, writer.out_of_band, writer.keep, allows_handles=True).dump(thing)
    return True


class SegmentWriter:
    """Write one segment. The writer is the file for the pickle, and collects the buffers.

    Attributes:
        out_of_band: receives the segments that the object names.
    """

    def __init__(self) -> None:
        self.out_of_band = OutOfBand()
        self._memory = SegmentMemory()
        self._at = 0
        self._buffers: list[Any] = []

    def write(self, data: Buffer) -> int:
        """Append to the pickle. Return the number of bytes."""
        with memoryview(data) as plain, plain.cast("B") as source:
            self._append(source)
            return len(source)

    def keep(self, buffer: Any) -> bool:
        """Keep all but small buffers out of the pickle. This is a `buffer_callback`."""
        with buffer.raw() as raw:
            if raw.nbytes < PAGE_ALIGNED_FROM_BYTES:
                return True
        self._buffers.append(buffer)
        return False

    def restart(self) -> None:
        """Forget everything that was written."""
        self._at = 0
        self._release_buffers()
        self.out_of_band.restart()

    def finish(self, by_value: bool) -> Segment:
        """Write the buffers, directly from the memory of the object, and the table. Seal the file."""
        fd = self._memory.fd.fileno()
        table = [self._at, len(self._buffers)]
        for buffer in self._buffers:
            self._at += -self._at % mmap.PAGESIZE
            with buffer.raw() as raw:
                table += (self._at, raw.nbytes)
                self._append(raw)
        self._release_buffers()
        table_at = self._at = self._at + -self._at % 8
        with memoryview(struct.pack(f"<{len(table)}Q", *table)) as packed:
            self._append(packed)
        os.ftruncate(fd, self._at)  # the pickle of a first attempt may have been longer
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return Segment(self._memory, table_at, self._at, by_value, tuple(dict.fromkeys(self.out_of_band.segments)))

    def _append(self, source: memoryview) -> None:
        pwrite_all(self._memory.fd.fileno(), source, self._at)
        self._at += len(source)

    def _release_buffers(self) -> None:
        for buffer in self._buffers:
            buffer.release()
        self._buffers.clear()

    def abandon(self) -> None:
        """Free everything after a failure, even if another object still refers to this writer."""
        self._release_buffers()
        self.out_of_band.restart()
        descriptors.disown(self._memory.fd)
        self._memory.fd.close()


class _ApartMixin:
    """For picklers: keep as much memory as possible out of the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = _reduce(obj)
        return super().reducer_override(obj) if reduced is None else reduced  # type: ignore[misc]


class _ByName(_ApartMixin, NamingPickler):
    pass


class _AsBytes:
    """Pickle as bytes that are made from a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> Any:
        return bytes, (pickle.PickleBuffer(self._data),)


def _reduce(thing: Any) -> Any:
    """Return the reduced form of an object whose memory would not go out of band by itself. Return None for all others.

    These objects are memoryviews, which cannot be pickled at all, and arrays that are not contiguous, arrays of dates
    and memmaps. A memmap becomes a plain array.
    """
    if type(thing) is memoryview:
        plain: Any = thing if thing.c_contiguous else bytearray(thing.tobytes())
        return _restore_view, (pickle.PickleBuffer(plain), thing.format, thing.shape, thing.readonly)
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or type(thing) not in (numpy.ndarray, numpy.memmap) or thing.dtype.hasobject:
        return None
    array = thing.view(numpy.ndarray)
    if not array.flags.forc:
        array = array.copy()
        array.setflags(write=thing.flags.writeable)
    if array.dtype.kind in "mM":
        return _restore_dates, (array.view(numpy.int64), array.dtype)
    return None if array is thing else array.__reduce_ex__(5)


def _restore_view(memory: Any, form: str, shape: tuple[int, ...], readonly: bool) -> memoryview:
    view = memoryview(memory).cast("B")
    if readonly:
        view = view.toreadonly()
    return view if form == "B" and len(shape) == 1 else view.cast(form, shape)  # type: ignore[call-overload]


def _restore_dates(numbers: Any, dtype: Any) -> Any:
    return numbers.view(dtype)
