"""Writing segments: one object's pickle and buffers, straight from its memory into a memfd.

The memory of arrays and the like is written as it is, read-only memory too, and mapped by the workers. So is that of
a few objects that would put it into the pickle, of which every worker has a copy of its own: see `_reduce`.
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
from pairpool.transport.picklers import NamingPickler, needs_value
from pairpool.transport.segments import Segment, SegmentMemory
from pairpool.transport.serializer import Serializer
from pairpool.transport.wire import Buffer

__all__ = ["SegmentWriter", "write_segment"]

OUT_OF_BAND_FROM = 4096
_PAGE = mmap.PAGESIZE
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_WRITE_STEP = 1 << 30


def write_segment(thing: Any, codec: Serializer) -> Segment:
    """A new segment with this object, by name where the workers of `codec` know it, else by value.

    Raises whatever says that it cannot be pickled, and `OSError` or `MemoryError` for want of memory.
    """
    draft = SegmentWriter()
    try:
        by_value = _dump(_AsBytes(thing) if type(thing) is bytes else thing, codec, draft)
        return draft.finish(by_value)
    except BaseException:
        draft.abandon()
        raise


def _dump(thing: Any, codec: Serializer, draft: SegmentWriter) -> bool:
    assert codec.birth is not None, "only a master shares"
    try:
        _ByName(draft, codec.birth, draft.keep, draft.segments).dump(thing)
        return False
    except needs_value:
        draft.restart()
    from pairpool.transport.by_value_pickler import ByValuePickler

    class ByValue(_Apart, ByValuePickler):
        pass

    ByValue(draft, codec.birth, draft.keep, draft.segments).dump(thing)
    return True


class SegmentWriter:
    """A segment while it is written; also the file that its pickle goes to, and the place of its buffers.

    Attributes:
        segments: those that the object names.
    """

    def __init__(self) -> None:
        self._memory = SegmentMemory()
        self._at = 0
        self._buffers: list[Any] = []
        self.segments: list[Segment] = []

    def write(self, data: Buffer) -> int:
        """Append to the pickle."""
        with memoryview(data) as plain, plain.cast("B") as source:
            self._append(source)
            return len(source)

    def keep(self, buffer: Any) -> bool:
        """A `buffer_callback`: keeps buffers that are worth it out of the pickle."""
        with buffer.raw() as raw:
            if raw.nbytes < OUT_OF_BAND_FROM:
                return True
        self._buffers.append(buffer)
        return False

    def restart(self) -> None:
        """Forget what was written."""
        self._at = 0
        self._let_go()
        self.segments.clear()

    def finish(self, by_value: bool) -> Segment:
        """Write the buffers, straight from the object's memory, and the table; seal it all."""
        fd = self._memory.fd.fileno()
        table = [self._at, len(self._buffers)]
        for buffer in self._buffers:
            self._at += -self._at % _PAGE
            with buffer.raw() as raw:
                table += (self._at, raw.nbytes)
                self._append(raw)
        self._let_go()
        table_at = self._at = self._at + -self._at % 8
        with memoryview(struct.pack(f"<{len(table)}Q", *table)) as packed:
            self._append(packed)
        os.ftruncate(fd, self._at)  # a first attempt at the pickle may have been longer
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return Segment(self._memory, table_at, self._at, by_value, tuple(dict.fromkeys(self.segments)))

    def _append(self, source: memoryview) -> None:
        done, fd = 0, self._memory.fd.fileno()
        while done < len(source):
            with source[done : done + _WRITE_STEP] as step:
                written = os.pwrite(fd, step, self._at)
            done += written
            self._at += written

    def _let_go(self) -> None:
        for buffer in self._buffers:
            buffer.release()
        self._buffers.clear()

    def abandon(self) -> None:
        """It did not work out: free everything, whoever may still refer to this."""
        self._let_go()
        self.segments.clear()
        descriptors.disown(self._memory.fd)
        self._memory.fd.close()


class _Apart:
    """For picklers: keeps as much as it can out of the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = _reduce(obj)
        return super().reducer_override(obj) if reduced is None else reduced  # type: ignore[misc]


class _ByName(_Apart, NamingPickler):
    pass


class _AsBytes:
    """Pickles as bytes that are made from a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> Any:
        return bytes, (pickle.PickleBuffer(self._data),)


def _reduce(thing: Any) -> Any:
    """How to pickle an object whose memory would not go out of band by itself; None for all others.

    These are memoryviews, which do not pickle at all, and arrays that are not contiguous, or of dates, or memmaps; the
    last become plain arrays.
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
        array.flags.writeable = thing.flags.writeable
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
