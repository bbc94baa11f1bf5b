"""Lanes: memfds that carry what does not fit a packet, kept warm and used again.

Facts, measured on 64 MiB (2 cores, Linux 6.18): a copy into fresh pages of a memfd runs at 0.9 GB/s through a
mapping and at 1.9 by pwrite; into warm pages at 13 through a mapping and at 5.7 by pwrite; out of a mapping into
fresh private memory at 1.4, and at 8 where that memory asked for huge pages. Hence: the first bytes of a lane go in
by pwrite, which also reports a lack of memory as an error where a store would be a SIGBUS; later ones by a plain
copy; and whoever reads copies into memory of its own that asked for huge pages.

A lane belongs to the side that writes it, and has a number. Its memfd travels once; from then on packets name the
number. The first word of the lane is its flag: the writer sets it, the reader clears it once it has copied, and no
message is needed to say that the lane is free. Lanes above ONE_SHOT bytes are not kept.

A worker that idles gives back what is kept warm, and the master need not be awake for that. Of its own lanes it knows
which are free. Of the master's it says so first (RECLAIM), and looks a little later whether the master writes there
(WRITING). The master says that it writes, and then looks whether somebody reclaims: one of the two sees the other,
for a store takes nanoseconds to arrive, and the worker waits for milliseconds.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

from pairpool.linux import descriptors
from pairpool.transport.wire import Buffer

__all__ = ["KEPT", "RECLAIM_AT", "PayloadBuffer", "PayloadReader", "PayloadBuffers", "WarmMemory", "memory"]

DATA_AT = 4096
SMALLEST = 1 << 20
ONE_SHOT = 128 << 20
HUGE_FROM = 4 << 20
KEPT = 128 << 20
"""Bytes of private memory that a worker keeps for the next large arrays while it has work."""

_REFERENCE = struct.Struct("<IIQ")
_FLAG = struct.Struct("<Q")
WRITING_AT, RECLAIM_AT, EMPTIED_AT = 8, 16, 24
"""Words of a lane: the writer is at it; the reader wants to free its memory; how often it has done so."""

SETTLE = 0.002
"""Seconds after which a store has surely reached the other core."""

_KEEP, _DROP = 0, 1
_WRITE_STEP = 1 << 30


class PayloadBuffer:
    """The writing side of one lane."""

    __slots__ = ("_emptied", "_map", "_view", "_warm", "capacity", "fd", "known", "number")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.capacity = max(SMALLEST, 1 << (size - 1).bit_length() if size <= ONE_SHOT else size)
        self.fd = descriptors.Descriptor(descriptors.memfd("pairpool-lane", DATA_AT + self.capacity))
        try:
            self._map = mmap.mmap(self.fd.fd, DATA_AT + self.capacity)
        except BaseException:
            self.fd.close()
            raise
        descriptors.own(self.fd)
        self._view = memoryview(self._map)
        self._warm = 0
        self._emptied = 0
        self.known = False  # the reader has the memfd

    @property
    def one_shot(self) -> bool:
        return self.capacity > ONE_SHOT

    @property
    def busy(self) -> bool:
        return bool(_FLAG.unpack_from(self._map)[0])

    def take(self) -> bool:
        """Begin to write; False if the reader is about to free the memory."""
        _FLAG.pack_into(self._map, WRITING_AT, 1)
        if _FLAG.unpack_from(self._map, RECLAIM_AT)[0]:
            _FLAG.pack_into(self._map, WRITING_AT, 0)
            return False
        emptied = _FLAG.unpack_from(self._map, EMPTIED_AT)[0]
        if emptied != self._emptied:
            self._emptied, self._warm = emptied, 0
        return True

    def empty(self) -> None:
        """Free the memory; for a lane that is not busy."""
        if self._warm:
            self._warm = 0
            _give_back(self._map)

    def free(self) -> None:
        """Take the lane back before it was read."""
        _FLAG.pack_into(self._map, 0, 0)

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Fill the lane with the pieces, one after the other, and set its flag."""
        at = 0
        for piece in pieces:
            if at + len(piece) <= self._warm and type(piece) is not memoryview:
                self._view[DATA_AT + at : DATA_AT + at + len(piece)] = piece
                at += len(piece)
                continue
            with memoryview(piece) as plain, plain.cast("B") as source:
                self._write_at(at, source)
                at += len(source)
        self._warm = max(self._warm, at)
        _FLAG.pack_into(self._map, 0, 1)
        _FLAG.pack_into(self._map, WRITING_AT, 0)

    def _write_at(self, at: int, source: memoryview) -> None:
        warm = max(0, min(len(source), self._warm - at))
        if warm:
            start = DATA_AT + at
            self._view[start : start + warm] = source[:warm]
        while warm < len(source):
            with source[warm : warm + _WRITE_STEP] as step:
                warm += os.pwrite(self.fd.fd, step, DATA_AT + at + warm)

    def reference(self) -> bytes:
        """What a packet says to name this lane."""
        return _REFERENCE.pack(self.number, _DROP if self.one_shot else _KEEP, self.capacity)

    def close(self) -> None:
        descriptors.disown(self.fd)
        self.fd.close()
        self._view.release()
        self._map.close()


class PayloadBuffers:
    """The lanes that one side writes towards one reader."""

    def __init__(self) -> None:
        self._lanes: dict[int, PayloadBuffer] = {}
        self._next = 0

    def put(self, pieces: Sequence[Buffer], size: int) -> PayloadBuffer:
        """Write `size` bytes into a free lane, made or replaced as needed. Raises `OSError` for want of memory."""
        lane = self._free_lane(size)
        try:
            lane.write(pieces)
        except BaseException:
            self._drop(lane)
            raise
        return lane

    def _free_lane(self, size: int) -> PayloadBuffer:
        free = [lane for lane in self._lanes.values() if not lane.busy]
        for lane in [lane for lane in free if lane.one_shot]:
            free.remove(lane)
            self._drop(lane)
        for lane in sorted((lane for lane in free if lane.capacity >= size), key=lambda lane: lane.capacity):
            if lane.take():
                return lane
            free.remove(lane)
        number = self._next
        if free:  # a larger lane takes the place and the number of one that is too small, which bounds what is warm
            number = free[0].number
            self._drop(free[0])
        else:
            self._next += 1
        lane = self._lanes[number] = PayloadBuffer(number, size)
        lane.take()
        return lane

    def _drop(self, lane: PayloadBuffer) -> None:
        del self._lanes[lane.number]
        lane.close()

    def unsent(self, reference: Buffer, *, known: bool) -> None:
        """A packet that named a lane was taken back unread; `known`: whether the reader has the memfd all the same."""
        lane = self._lanes[_REFERENCE.unpack_from(reference)[0]]
        lane.known = known
        lane.free()

    def give_back(self) -> None:
        """Free the memory of all lanes that are not in use."""
        for lane in self._lanes.values():
            if not lane.busy:
                lane.empty()

    @property
    def warm_bytes(self) -> int:
        return sum(lane.capacity for lane in self._lanes.values())

    def close(self) -> None:
        for lane in list(self._lanes.values()):
            self._drop(lane)


class PayloadReader:
    """The lanes that one side reads: maps them as they arrive, and frees each once its content is copied."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def read(self, reference: Buffer, size: int, fds: list[int], use: Callable[[memoryview], None]) -> None:
        """Call `use` with a view of the `size` bytes that `reference` names; the view ends with the call.

        `fds` holds the lane's memfd if it is new here; it is closed.
        """
        number, drop, capacity = _REFERENCE.unpack_from(reference)
        if fds:
            fd = fds.pop()
            self._forget(number)
            try:
                self._maps[number] = mmap.mmap(fd, DATA_AT + capacity)
            finally:
                os.close(fd)
        mapped = self._maps[number]
        try:
            with memoryview(mapped) as whole, whole[DATA_AT : DATA_AT + size] as content:
                use(content)
        finally:
            if drop:
                _give_back(mapped)
            _FLAG.pack_into(mapped, 0, 0)
            if drop:
                self._forget(number)

    @property
    def is_warm(self) -> bool:
        return bool(self._maps)

    def give_back(self) -> None:
        """Free the memory of all lanes that the writer does not write; waits for `SETTLE`."""
        maps = list(self._maps.values())
        for mapped in maps:
            _FLAG.pack_into(mapped, RECLAIM_AT, 1)
        time.sleep(SETTLE)
        for mapped in maps:
            if not (_FLAG.unpack_from(mapped, WRITING_AT)[0] or _FLAG.unpack_from(mapped)[0]):
                _FLAG.pack_into(mapped, EMPTIED_AT, _FLAG.unpack_from(mapped, EMPTIED_AT)[0] + 1)
                _give_back(mapped)
            _FLAG.pack_into(mapped, RECLAIM_AT, 0)

    def _forget(self, number: int) -> None:
        mapped = self._maps.pop(number, None)
        if mapped is None:
            return
        try:
            mapped.close()
        except BufferError:
            pass  # a traceback of an unpickling that failed has a view of it: it goes with that

    def close(self) -> None:
        for number in list(self._maps):
            self._forget(number)


def _give_back(mapped: mmap.mmap) -> None:
    """Free the memory behind a lane, though both sides have it open (madvise(2))."""
    try:
        mapped.madvise(mmap.MADV_REMOVE, DATA_AT)
    except OSError:
        pass  # it goes when the writer closes the lane


class WarmMemory:
    """Private memory for large arrays; what nobody holds any more is used again: fresh pages cost as much as a copy.

    Args:
        at_most: bytes to keep; 0 for none.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._kept: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def copy(self, source: memoryview) -> bytearray | memoryview:
        """The bytes in writable memory that belongs to the caller; large ones in huge pages (madvise(2))."""
        size = len(source)
        if size < HUGE_FROM:
            return bytearray(source)
        if not self._lock.acquire(blocking=False):  # by another thread, or by this one, below a finalizer
            return bytearray(source)
        try:
            target = memoryview(self._find(size) or self._make(size))[:size]
        finally:
            self._lock.release()
        target[:] = source
        return target

    def _find(self, size: int) -> mmap.mmap | None:
        kept = self._kept
        for position in range(len(kept)):
            # held by this list and by the call that counts: no array, and no view of one, is left
            if sys.getrefcount(kept[position]) == 2 and size <= len(kept[position]) <= 2 * size:
                kept.append(kept.pop(position))
                return kept[-1]
        return None

    def _make(self, size: int) -> mmap.mmap:
        while self._kept and sum(map(len, self._kept)) + size > self._at_most:
            del self._kept[0]  # it is freed now, or with the last array in it
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without transparent huge pages: the copy is slower, and right
        if size <= self._at_most:
            self._kept.append(memory)
        return memory

    @property
    def is_warm(self) -> bool:
        return bool(self._kept)

    def give_back(self) -> None:
        """Keep nothing; what is in use is freed with the last array in it."""
        self._kept.clear()


memory = WarmMemory(0)
"""Of this process. A worker, which can give back what it keeps when it idles, keeps some."""
