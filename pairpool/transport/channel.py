"""Packets over a SEQPACKET socketpair: a typed header, a payload, and descriptors.

What the kernel does (unix(7), recvmsg(2)), and what follows:

- a packet arrives whole or not at all, in order, and nothing is lost: there is no half-read message to cope with;
- a packet may be at most SO_SNDBUF - 32 bytes: payloads above INLINE_LIMIT travel in a lane (`lanes.py`);
- a receive buffer that is too small cuts the packet off (MSG_TRUNC), and descriptors that do not fit, in the buffer
  or in the process's table, are lost (MSG_CTRUNC): both are errors here, never a short read;
- a receive buffer needs memory for what was received and no more, if it comes from mmap: few packets are large;
- there may be too many descriptors under way (ETOOMANYREFS; see `rights.py`): to send waits as if there were no room;
- an empty packet reads like EOF: none is ever sent, for every packet begins with a header;
- O_NONBLOCK belongs to the open file, which the master and a worker share for the worker's end: so nothing here sets
  it, and each call says MSG_DONTWAIT for itself.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from pairpool.linux import descriptors

__all__ = [
    "HEADER",
    "INLINE_LIMIT",
    "MAX_DESCRIPTORS",
    "PACKET_LIMIT",
    "Buffer",
    "Channel",
    "Cut",
    "Header",
    "Kind",
    "Lost",
]

Buffer = bytes | bytearray | memoryview

INLINE_LIMIT = 96 * 1024
BREATH = 0.001
"""Seconds before a packet that the kernel had no room for is sent again."""

PACKET_LIMIT = 212_992
MAX_DESCRIPTORS = 253
"""Descriptors that a packet may carry: SCM_MAX_FD of the kernel."""

HEADER = struct.Struct("<BBBBIQQIIIQIIQ")


class Kind:
    """What a packet is. Control is never in band: a payload cannot be mistaken for one of these."""

    TEXT = 1  # a bare payload, for programs that use a Channel on their own
    SPAWN = 2  # master to zygote: fork a worker for slot `first`
    SPAWNED = 3  # zygote to master: pid in `items`, serial number in `batch`; two ends and a pidfd attached
    SPAWN_FAILED = 4  # zygote to master: errno in `items`, its text as payload
    REAPED = 5  # master to zygote: the worker with the serial number `batch` has ended
    HELLO = 6  # zygote to master: ready; names that its `__main__` has as payload
    START = 7  # master to worker: you are known (as any other packet says), so run the initializer
    READY = 8  # worker to master: the initializer has returned
    INIT_FAILED = 9  # worker to master: the initializer raised; its traceback as payload
    FUNCTION = 10  # master to worker: the function numbered `function`
    FORGET = 11  # master to worker: drop the function numbered `function`
    BATCH = 12  # master to worker: `items` items from index `first` on
    RESULT = 13  # worker to master: what became of a batch
    SPARE = 14  # master to zygote: fork a spare of yourself; and back: its pid in `items`, its end and a pidfd attached
    SHARE = 15  # master to worker: the segment numbered `batch`, its memfd attached, its table at `first`
    UNSHARE = 16  # master to worker: let go of the segment numbered `batch`
    CAPTURE = 17  # master to worker: write output to the attached descriptor; `first` says which, `items` a log's level
    RIGHTS = 18  # `items` descriptors for the packet with this `batch` and `function`; 0 to close what came before
    RECEIVED = 19  # worker to master: about to run `batch`, whose descriptors are to be closed there


class Header(NamedTuple):
    """The fixed part of a packet; which fields mean something depends on the kind."""

    kind: int
    flags: int = 0
    mode: int = 0
    format: int = 0
    function: int = 0
    batch: int = 0
    first: int = 0
    items: int = 0
    split: int = 0  # bytes of the payload's first section
    rights: int = 0  # descriptors that its pickles need, in this packet and in those of kind RIGHTS before it
    nanoseconds: int = 0
    outlets: int = 0  # packets of kind CAPTURE that this one must not overtake
    sharing: int = 0  # of `nanoseconds`, the microseconds that were spent on what several items have in common
    size: int = 0  # bytes of the payload, in the packet or in the lane


class Lost(Exception):
    """The other side is gone: nothing will arrive on this channel any more."""


class Cut(OSError):
    """A packet has arrived, but its descriptors are lost: this process may open no more files.

    Attributes:
        header, payload: of the packet.
    """

    def __init__(self, header: Header, payload: memoryview) -> None:
        super().__init__(errno.EMFILE, "the descriptors of a packet did not fit: this process may open no more files")
        self.header = header
        self.payload = payload


class Channel:
    """One end of a SEQPACKET pair. Not for two threads at once on the same side and direction.

    Example:
        >>> near, far = Channel.pair()
        >>> near.send(Header(Kind.TEXT), b"I am Father")
        True
        >>> bytes(far.receive()[1])
        b'I am Father'
    """

    __slots__ = ("_buffer", "_pieces", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer: mmap.mmap | None = None
        self._pieces: list[memoryview] = []

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected channels, closed on exec."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if near.fileno() < 3 or far.fileno() < 3:
            ends = [cls.from_fd(descriptors.above_standard(end.detach())) for end in (near, far)]
            return ends[0], ends[1]
        return cls(near), cls(far)

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """A channel over a descriptor that it now owns."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd))

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, header: Header, payload: Buffer = b"", fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """Send one packet; False if it would block and `wait` is not set.

        Raises:
            Lost: nobody can read it.
            OSError: ETOOMANYREFS, too many descriptors are under way, and `wait` is not set.
        """
        return self.send_packet(
            [HEADER.pack(*header[:-1], len(payload)), payload] if payload else [HEADER.pack(*header)],
            fds,
            wait=wait,
        )

    def send_reference(self, header: Header, reference: Buffer, fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """`send` for a payload of `header.size` bytes that is elsewhere, and that `reference` names."""
        return self.send_packet([HEADER.pack(*header), reference], fds, wait=wait)

    def send_packet(self, pieces: Sequence[Buffer], fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """`send` for a packet that is already put together."""
        flags = _SEND if wait else _SEND_NOW
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                self.sock.sendmsg(pieces, rights, flags)
            elif len(pieces) == 1:
                self.sock.send(pieces[0], flags)
            else:
                self.sock.sendmsg(pieces, (), flags)
        except BlockingIOError:
            return wait and self._send_later(pieces, fds)
        except (BrokenPipeError, ConnectionResetError):
            raise Lost from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return wait and self._send_later(pieces, fds)
            if error.errno == errno.ETOOMANYREFS and wait:
                return self._send_later(pieces, fds)
            raise
        return True

    def _send_later(self, pieces: Sequence[Buffer], fds: Sequence[int]) -> bool:
        """Send once there is room: somebody has made the socket non-blocking, or the kernel is short of something."""
        poller = select.poll()
        poller.register(self.sock.fileno(), select.POLLOUT)
        while True:
            poller.poll()
            time.sleep(BREATH)
            try:
                if self.send_packet(pieces, fds, wait=False):
                    return True
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise

    def receive(self, *, wait: bool = True) -> tuple[Header, memoryview, list[int]]:
        """The next packet as header, payload and descriptors (now the caller's).

        The payload is a view of this channel's buffer: it is overwritten by the next call.

        Raises:
            Lost: end of file, for the other side has closed or died.
            BlockingIOError: nothing is there and `wait` is not set.
            Cut: its descriptors were lost.
            OSError: the packet was cut off.
        """
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, PACKET_LIMIT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._pieces = [memoryview(self._buffer)]
        how = _RECEIVE if wait else _RECEIVE_NOW
        try:
            size, ancillary, flags, _address = self.sock.recvmsg_into(self._pieces, _RIGHTS_SPACE, how)
        except ConnectionResetError:
            # said once if the other side closed with packets unread; those that it had sent are still here
            size, ancillary, flags, _address = self.sock.recvmsg_into(self._pieces, _RIGHTS_SPACE, how)
        fds: list[int] = []
        if ancillary:
            for _level, _type, data in ancillary:
                fds.extend(array.array("i", data[: len(data) - len(data) % 4]))
        if flags & _CUT_OFF:
            for fd in fds:
                os.close(fd)
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, f"a packet did not fit into {PACKET_LIMIT} bytes")
            view = self._pieces[0]
            raise Cut(Header._make(HEADER.unpack_from(view)), view[HEADER.size : size])
        if not size:
            raise Lost
        view = self._pieces[0]
        return Header._make(HEADER.unpack_from(view)), view[HEADER.size : size], fds


_RIGHTS_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
# plain ints: an operation on the socket module's flags costs more than half a system call
_SEND = int(socket.MSG_NOSIGNAL)
_SEND_NOW = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC)
_RECEIVE_NOW = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
