"""Payload buffers: memfds for payloads that are too large for a packet, kept warm and used again.

    writer: PayloadBuffers.put ─► memfd ◄── mapped by both sides ──► PayloadReader.read ─► private memory
            packet: number of the buffer (and its memfd, the first time) ──────┘

Facts, measured on 64 MiB (2 cores, Linux 6.18), in GB/s:

    | copy                            | to fresh pages         | to warm pages |
    | ------------------------------- | ---------------------- | ------------- |
    | to a memfd, through a mapping   | 0.9                    | 13            |
    | to a memfd, by pwrite           | 1.9                    | 5.7           |
    | from a mapping to private memory| 1.4; 8 with huge pages |               |

Consequences:

- The first bytes of a buffer are written by pwrite. pwrite also reports a lack of memory as an error, while a store
  through the mapping would raise SIGBUS.
- Later bytes are copied through the mapping, because its pages are warm.
- The reader copies to private memory with huge pages (`warm_memory.py`).

A buffer belongs to the side that writes it, and has a number. Its memfd is sent once; later packets name the number.
The first word of the buffer is its busy flag. The writer sets the flag, and the reader clears it after the copy. So no
message has to say that the buffer is free. Buffers above KEPT_UP_TO_BYTES are used once, and so are all buffers if the
reader has KEPT_BUFFERS others. So the memory that the reader keeps mapped is bounded.

The reader does not trust the writer, which can be a worker with a broken task. It refuses a memfd that can be made
shorter, because an access beyond the end of the file would end the reader by SIGBUS. It checks each field of the
reference. The writer does not trust the words that the reader stores: they decide only which buffer is used next.

An idle worker frees the memory of the buffers in both directions, without the master's help. It knows which of its own
buffers are free. For a buffer of the master, this is the protocol:

1. The worker stores RECLAIM, and waits STORE_VISIBLE_AFTER_S.
2. The master stores WRITING before it writes, and then reads RECLAIM. If RECLAIM is set, it takes another buffer.
3. The worker reads WRITING and the busy flag. Only if both are clear, it frees the memory.

A store reaches the other core within nanoseconds, and the worker waits for milliseconds. So at least one of the two
sees the store of the other.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import struct
import time
from collections.abc import Callable, Sequence

from pairpool.linux import descriptors
from pairpool.transport.wire import Buffer, ProtocolError

__all__ = ["RECLAIM_OFFSET", "PayloadBuffer", "PayloadBuffers", "PayloadReader", "pwrite_all"]

DATA_OFFSET = 4096
"""Offset of the payload in a buffer. The page before it holds the words."""

SMALLEST_CAPACITY_BYTES = 1 << 20

KEPT_UP_TO_BYTES = 128 << 20
"""A buffer with a larger capacity is used once and then freed."""

KEPT_BUFFERS = 32
"""Buffers of one writer that are used more than once. They have the numbers below this one."""

_REFERENCE = struct.Struct("<IIQ")
_WORD = struct.Struct("<Q")
_WORD_MASK = (1 << 64) - 1

BUSY_OFFSET, WRITING_OFFSET, RECLAIM_OFFSET, FREED_COUNT_OFFSET = 0, 8, 16, 24
"""Words of a buffer: it holds an unread payload; the writer uses it; the reader wants to free its memory; how many
times the reader has freed its memory."""

STORE_VISIBLE_AFTER_S = 0.002
"""Seconds after which the other core has certainly seen a store."""

_KEEP, _USE_ONCE = 0, 1

_PWRITE_STEP_BYTES = 1 << 30


def pwrite_all(fd: int, source: memoryview, offset: int) -> None:
    """Write all bytes of `source` to a file from `offset` on. pwrite(2) may write fewer bytes than it is given."""
    done = 0
    while done < len(source):
        with source[done : done + _PWRITE_STEP_BYTES] as step:
            done += os.pwrite(fd, step, offset + done)


class PayloadBuffer:
    """The writing side of one payload buffer.

    Attributes:
        number: names the buffer in packets.
        capacity: bytes of payload that fit.
        fd: the memfd.
        known: whether the reader has the memfd.
        payloads: how many payloads have been written; -1 after the end.
    """

    __slots__ = ("_freed_count", "_map", "_view", "_warm", "capacity", "fd", "known", "number", "payloads")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        capacity = 1 << (size - 1).bit_length() if size <= KEPT_UP_TO_BYTES else size
        self.capacity = max(SMALLEST_CAPACITY_BYTES, capacity)
        self.fd = descriptors.OwnFile(descriptors.fixed_memfd("pairpool-payload", DATA_OFFSET + self.capacity))
        try:
            self._map = mmap.mmap(self.fd.fd, DATA_OFFSET + self.capacity)
        except BaseException:
            self.fd.close()
            raise
        descriptors.own(self.fd)
        self._view = memoryview(self._map)
        self._warm = 0  # bytes from the start whose pages exist
        self._freed_count = 0
        self.known = False
        self.payloads = 0

    @property
    def one_shot(self) -> bool:
        """Whether the buffer is used for one payload only."""
        return self.capacity > KEPT_UP_TO_BYTES or self.number >= KEPT_BUFFERS

    @property
    def busy(self) -> bool:
        """Whether the buffer holds a payload that the reader has not copied yet."""
        return bool(_WORD.unpack_from(self._map, BUSY_OFFSET)[0])

    def begin_writing(self) -> bool:
        """Reserve a free buffer for writing. Return False if the reader is about to free its memory."""
        _WORD.pack_into(self._map, WRITING_OFFSET, 1)
        if _WORD.unpack_from(self._map, RECLAIM_OFFSET)[0]:
            _WORD.pack_into(self._map, WRITING_OFFSET, 0)
            return False
        freed_count = _WORD.unpack_from(self._map, FREED_COUNT_OFFSET)[0]
        if freed_count != self._freed_count:
            self._freed_count, self._warm = freed_count, 0
        return True

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write the pieces one after the other, and set the busy flag."""
        self.payloads += 1
        at = 0
        for piece in pieces:
            if at + len(piece) <= self._warm and type(piece) is not memoryview:
                self._view[DATA_OFFSET + at : DATA_OFFSET + at + len(piece)] = piece
                at += len(piece)
                continue
            with memoryview(piece) as plain, plain.cast("B") as source:
                self._write_at(at, source)
                at += len(source)
        self._warm = max(self._warm, at)
        _WORD.pack_into(self._map, BUSY_OFFSET, 1)
        _WORD.pack_into(self._map, WRITING_OFFSET, 0)

    def _write_at(self, at: int, source: memoryview) -> None:
        """Write one piece: through the mapping as far as the pages are warm, and the rest by pwrite."""
        warm = max(0, min(len(source), self._warm - at))
        start = DATA_OFFSET + at
        if warm:
            self._view[start : start + warm] = source[:warm]
        with source[warm:] as rest:
            pwrite_all(self.fd.fd, rest, start + warm)

    def reference(self) -> bytes:
        """Return the bytes by which a packet names this buffer."""
        return _REFERENCE.pack(self.number, _USE_ONCE if self.one_shot else _KEEP, self.capacity)

    def sent(self) -> None:
        """Note that a packet with the memfd was sent."""
        self.known = True

    def taken_back(self, *, known: bool) -> None:
        """Free the buffer, because the packet that named it was taken back unread.

        Args:
            known: whether the reader has the memfd all the same.
        """
        self.known = known
        self.free()

    def free(self) -> None:
        """Clear the busy flag. The payload is not read."""
        _WORD.pack_into(self._map, BUSY_OFFSET, 0)

    def free_memory(self) -> None:
        """Free the memory of a buffer that is not busy."""
        if self._warm:
            self._warm = 0
            _free_memory(self._map)

    def holds(self, payload: int) -> bool:
        """Return whether the buffer still holds the payload that was the last one when `payloads` had this value."""
        return self.payloads == payload and self.busy

    def close(self) -> None:
        """Close the memfd and the mapping."""
        self.payloads = -1
        descriptors.disown(self.fd)
        self.fd.close()
        self._view.release()
        self._map.close()


class PayloadBuffers:
    """The payload buffers that one side writes for one reader."""

    def __init__(self) -> None:
        self._buffers: dict[int, PayloadBuffer] = {}

    def put(self, pieces: Sequence[Buffer], size: int) -> PayloadBuffer:
        """Write `size` bytes to a free buffer. Create or replace a buffer if needed.

        Raises:
            OSError: there is not enough memory.
        """
        buffer = self._free_buffer(size)
        try:
            buffer.write(pieces)
        except BaseException:
            self._drop(buffer)
            raise
        return buffer

    def _free_buffer(self, size: int) -> PayloadBuffer:
        free = [buffer for buffer in self._buffers.values() if not buffer.busy]
        for buffer in [buffer for buffer in free if buffer.one_shot]:
            free.remove(buffer)
            self._drop(buffer)
        fitting = (buffer for buffer in free if buffer.capacity >= size)
        for buffer in sorted(fitting, key=lambda buffer: buffer.capacity):
            if not buffer.fd.is_ours():  # a task has closed its number, and may have opened another file there
                free.remove(buffer)
                self._drop(buffer)
                continue
            if buffer.begin_writing():
                return buffer
            free.insert(0, buffer)  # replaced below: a reader whose word stays set must not make the buffers pile up
            break
        if free:  # replace a buffer that is too small, under its number: this bounds the memory that is kept warm
            number = free[0].number
            self._drop(free[0])
        else:
            number = next(number for number in itertools.count() if number not in self._buffers)
        buffer = self._buffers[number] = PayloadBuffer(number, size)
        buffer.begin_writing()
        return buffer

    def _drop(self, buffer: PayloadBuffer) -> None:
        del self._buffers[buffer.number]
        buffer.close()

    def taken_back(self, reference: Buffer, *, known: bool) -> None:
        """Free the buffer that `reference` names, because the packet with it was taken back unread.

        Args:
            known: whether the reader has the memfd all the same.
        """
        self._buffers[_REFERENCE.unpack_from(reference)[0]].taken_back(known=known)

    def give_back(self) -> None:
        """Free the memory of all buffers that are not in use."""
        for buffer in self._buffers.values():
            if not buffer.busy:
                buffer.free_memory()

    @property
    def warm_bytes(self) -> int:
        """Sum of the capacities of all buffers."""
        return sum(buffer.capacity for buffer in self._buffers.values())

    def close(self) -> None:
        """Close all buffers."""
        for buffer in list(self._buffers.values()):
            self._drop(buffer)


class PayloadReader:
    """Map the payload buffers that one side reads, and free each one after its payload was copied."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def read(self, reference: Buffer, size: int, fds: list[int], consume: Callable[[memoryview], None]) -> None:
        """Call `consume` with a view of the payload of `size` bytes. The view is released when `consume` returns.

        Args:
            reference: the bytes by which the packet names the buffer.
            fds: holds the memfd if it came with this packet. The memfd is closed.

        Raises:
            ProtocolError: the reference or the memfd is not one that a `PayloadBuffers` sends.
            OSError: this process can open no more files.
        """
        number, use, capacity = _REFERENCE.unpack_from(reference)
        if fds:
            mapped = self._map(number, use, capacity, fds.pop())
        elif number in self._maps and use == _KEEP:
            mapped = self._maps[number]
        else:
            raise ProtocolError(f"a packet names the shared buffer {number}, which has not been sent")
        if not size <= capacity == len(mapped) - DATA_OFFSET:
            there = len(mapped) - DATA_OFFSET
            raise ProtocolError(f"a packet says {size} of {capacity} bytes in a shared buffer of {there} bytes")
        try:
            with memoryview(mapped) as whole, whole[DATA_OFFSET : DATA_OFFSET + size] as content:
                consume(content)
        finally:
            if use == _USE_ONCE:
                _free_memory(mapped)
            _WORD.pack_into(mapped, BUSY_OFFSET, 0)
            if use == _USE_ONCE:
                _unmap(mapped)

    def _map(self, number: int, use: int, capacity: int, fd: int) -> mmap.mmap:
        """Map a buffer that has come with a packet, in place of the one that had its number. Close the memfd."""
        try:
            self._forget(number)
            is_kept = number < KEPT_BUFFERS and capacity <= KEPT_UP_TO_BYTES
            if use != _USE_ONCE and not (use == _KEEP and is_kept):
                raise ProtocolError(f"a packet keeps the shared buffer {number} of {capacity} bytes: more than allowed")
            if descriptors.fixed_size(fd) != DATA_OFFSET + capacity:
                raise ProtocolError(f"the shared buffer {number} can be resized, or it does not have {capacity} bytes")
            try:
                mapped = mmap.mmap(fd, DATA_OFFSET + capacity)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                raise ProtocolError(f"the shared buffer {number} cannot be mapped: {error.strerror}") from None
        finally:
            os.close(fd)
        if use == _KEEP:
            self._maps[number] = mapped
        return mapped

    @property
    def is_warm(self) -> bool:
        """Whether any buffer is mapped."""
        return bool(self._maps)

    def give_back(self) -> None:
        """Free the memory of all buffers that the writer does not use. This takes STORE_VISIBLE_AFTER_S."""
        maps = list(self._maps.values())
        for mapped in maps:
            _WORD.pack_into(mapped, RECLAIM_OFFSET, 1)
        time.sleep(STORE_VISIBLE_AFTER_S)
        for mapped in maps:
            if not (_WORD.unpack_from(mapped, WRITING_OFFSET)[0] or _WORD.unpack_from(mapped, BUSY_OFFSET)[0]):
                freed_count = _WORD.unpack_from(mapped, FREED_COUNT_OFFSET)[0]
                _WORD.pack_into(mapped, FREED_COUNT_OFFSET, freed_count + 1 & _WORD_MASK)
                _free_memory(mapped)
            _WORD.pack_into(mapped, RECLAIM_OFFSET, 0)

    def _forget(self, number: int) -> None:
        mapped = self._maps.pop(number, None)
        if mapped is not None:
            _unmap(mapped)

    def close(self) -> None:
        """Unmap all buffers."""
        for number in list(self._maps):
            self._forget(number)


def _unmap(mapped: mmap.mmap) -> None:
    try:
        mapped.close()
    except BufferError:
        pass  # the traceback of a failed unpickling has a view of the mapping, which is closed with that view


def _free_memory(mapped: mmap.mmap) -> None:
    """Free the memory behind a buffer although both sides have it open (madvise(2))."""
    try:
        mapped.madvise(mmap.MADV_REMOVE, DATA_OFFSET)
    except OSError:
        pass  # the memory is freed when the writer closes the buffer
