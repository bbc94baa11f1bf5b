"""Send and receive packets over a SEQPACKET socketpair: a typed header, a payload, and descriptors.

Facts about the kernel (unix(7), recvmsg(2)), and their consequences:

- A packet arrives whole or not at all, in order, and nothing is lost, so no message is ever half read.
- A packet has at most SO_SNDBUF - 32 bytes: payloads above INLINE_LIMIT travel in shared memory (`payload_shm.py`).
- A receive buffer that is too small cuts the packet off (MSG_TRUNC). Descriptors that do not fit into the buffer or
  into the process's table are lost (MSG_CTRUNC). Both raise an error here.
- A receive buffer from mmap takes memory only for the bytes that were received, and few packets are large.
- Too many descriptors can be under way (ETOOMANYREFS; see `fd_passing.py`): the sender waits as if there were no room.
- An empty packet reads like EOF, so every packet begins with a header.
- O_NONBLOCK belongs to the open file. The master and a worker share that of the worker's end, so nothing here sets it,
  and each call uses MSG_DONTWAIT.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import select
import socket
import time
from collections.abc import Sequence

from pairpool.linux import descriptors
from pairpool.transport import wire
from pairpool.transport.protocol import Packet, encode
from pairpool.transport.wire import MAX_DESCRIPTORS, PACKET_LIMIT, Buffer, ProtocolError

__all__ = ["Channel", "Cut", "Lost"]

SCM_PIDFD = 4
"""The kind of ancillary data that contains a pidfd of the sender (unix(7), SO_PASSPIDFD, Linux 6.5)."""

RESEND_AFTER_S = 0.001
"""Seconds before a packet that the kernel had no room for is sent again."""


class Lost(Exception):
    """The other side is gone, so nothing will arrive on this channel any more."""


class Cut(OSError):
    """A packet has arrived, but its descriptors are lost because this process can open no more files.

    Attributes:
        packet, payload: of the packet.
    """

    def __init__(self, packet: Packet, payload: memoryview) -> None:
        super().__init__(errno.EMFILE, "the descriptors of a packet did not fit: this process may open no more files")
        self.packet = packet
        self.payload = payload


class Channel:
    """One end of a SEQPACKET pair. Two threads must not send, or receive, on the same end at once.

    Example:
        >>> near, far = Channel.pair()
        >>> near.send(TextPacket(), b"I am Father")
        True
        >>> bytes(far.receive()[1])
        b'I am Father'
    """

    __slots__ = ("_buffer", "_pieces", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        if sock.gettimeout() is not None:  # the program has set a timeout for all new sockets (setdefaulttimeout)
            sock.settimeout(None)
        self._buffer: mmap.mmap | None = None
        self._pieces: list[memoryview] = []

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected channels, which exec closes."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if near.fileno() < 3 or far.fileno() < 3:
            ends = [cls.from_fd(descriptors.above_standard(end.detach())) for end in (near, far)]
            return ends[0], ends[1]
        return cls(near), cls(far)

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Return a channel that owns the descriptor from now on."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd))

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, packet: Packet, payload: Buffer = b"", fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """Send one packet. Return False if that would block and `wait` is not set.

        Raises:
            Lost: nobody can read it.
            OSError: ETOOMANYREFS, too many descriptors are under way, and `wait` is not set.
        """
        return self.send_packet([encode(packet), payload] if payload else [encode(packet)], fds, wait=wait)

    def send_packet(self, pieces: Sequence[Buffer], fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """Send the pieces as one packet; see `send`."""
        flags = _SEND if wait else _SEND_NOW
        try:
            if fds:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                self.sock.sendmsg(pieces, ancillary, flags)
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
        """Send once there is room: a task has made the socket non-blocking, or the kernel lacks memory."""
        poller = select.poll()
        poller.register(self.sock.fileno(), select.POLLOUT)
        while True:
            poller.poll()
            time.sleep(RESEND_AFTER_S)
            try:
                if self.send_packet(pieces, fds, wait=False):
                    return True
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise

    def receive(self, *, wait: bool = True) -> tuple[Packet, memoryview, list[int]]:
        """Return the next packet, its payload and its descriptors, which the caller then owns.

        The payload is a view of this channel's buffer: the next call overwrites it.

        Raises:
            Lost: end of file, because the other side has closed its end or died.
            BlockingIOError: no packet is there and `wait` is not set.
            Cut: descriptors of the packet were lost.
            ProtocolError: the other side has sent something that is no packet, or more than fits into one.
        """
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, PACKET_LIMIT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._pieces = [memoryview(self._buffer)]
        how = _RECEIVE if wait else _RECEIVE_NOW
        try:
            size, ancillary, flags, _address = self.sock.recvmsg_into(self._pieces, _FDS_SPACE, how)
        except ConnectionResetError:
            # The kernel reports this once if the other side closed with packets unread. Its packets are still here.
            size, ancillary, flags, _address = self.sock.recvmsg_into(self._pieces, _FDS_SPACE, how)
        except BlockingIOError:
            if not wait:
                raise
            return self._receive_later()
        view = self._pieces[0]
        if not ancillary and not flags & _CUT_OFF:
            if not size:
                raise Lost
            return wire.decode(view, size, 0), view[wire.HEADER_SIZE : size], []
        fds = _descriptors_in(ancillary)
        try:
            if flags & socket.MSG_TRUNC:
                raise ProtocolError(f"a packet did not fit into {PACKET_LIMIT} bytes")
            if flags & socket.MSG_CTRUNC:
                raise Cut(wire.decode(view, size, -1), view[wire.HEADER_SIZE : size])
            return wire.decode(view, size, len(fds)), view[wire.HEADER_SIZE : size], fds
        except Exception:
            for fd in fds:
                os.close(fd)
            raise

    def _receive_later(self) -> tuple[Packet, memoryview, list[int]]:
        """Receive once there is a packet: a task has made the socket non-blocking, or has given it a timeout."""
        poller = select.poll()
        poller.register(self.sock.fileno(), select.POLLIN)
        while True:
            poller.poll()
            try:
                return self.receive(wait=False)
            except BlockingIOError:
                time.sleep(RESEND_AFTER_S)


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors of a packet, and close a pidfd that the kernel has added.

    A task can set options of its socket, which the master's copy of the worker's end shares. Then the kernel adds the
    sender's pid and user to each packet, for example. These are numbers, but not descriptors of this process.
    """
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, SCM_PIDFD):
            numbers = array.array("i", data[: len(data) - len(data) % 4])
            if kind == SCM_PIDFD:
                for fd in numbers:
                    os.close(fd)
            else:
                fds.extend(numbers)
    return fds


_FDS_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
# Plain ints, because an operation on the flags of the socket module takes longer than half a system call.
_SEND = int(socket.MSG_NOSIGNAL)
_SEND_NOW = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC)
_RECEIVE_NOW = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
