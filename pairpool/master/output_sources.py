"""The ends of pipes and sockets from which the collector reads what workers write.

Nothing that a task writes raises here. A packet that is not a log record is dropped and counted. A line without an end
is cut into pieces, so it takes bounded memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import struct
import termios
from typing import NamedTuple, Protocol

from pairpool.linux import descriptors
from pairpool.output_lines import LineCutter, OutputLine
from pairpool.transport import log_records
from pairpool.transport.log_records import BadRecord
from pairpool.transport.wire import PACKET_LIMIT

__all__ = ["Captured", "LogSource", "OutputSource", "PipeSource"]

PIPE_READ_BYTES = 1 << 16
"""Bytes that one read of a pipe takes at most: the default capacity of a pipe."""

LOG_RECORDS_PER_TURN = 64
"""Log records of one worker that are read before the next worker's turn."""

SMALLEST_PACKET_BYTES = 256
"""Bytes that a packet takes at least in the buffer of a socket."""


class Captured(NamedTuple):
    """Lines and records that were read and not yet handed over."""

    lines: list[OutputLine]
    records: list[logging.LogRecord]
    bad: list[str]  # why packets on log sockets were dropped


class OutputSource(Protocol):
    """The end of a pipe or socket that the thread reads. No method waits."""

    def fileno(self) -> int: ...

    def take(self, captured: Captured) -> bool:
        """Read some of the waiting data. Return False at the end of file."""

    def take_all(self, captured: Captured) -> bool:
        """Read all data that waits at the time of the call. Return False at the end of file."""

    def close(self, captured: Captured) -> None:
        """Add the last line, even if it has no end, and close the descriptor."""


class PipeSource:
    """The pipe of one stream of one worker."""

    def __init__(self, fd: int, worker: int, pid: int, stream: str) -> None:
        self._fd = descriptors.Descriptor(fd)
        self._worker = worker
        self._pid = pid
        self._stream = stream
        self._cutter = LineCutter()
        descriptors.own(self._fd)

    def fileno(self) -> int:
        return self._fd.fileno()

    def take(self, captured: Captured) -> bool:
        try:
            data = os.read(self.fileno(), PIPE_READ_BYTES)
        except BlockingIOError:
            return True
        self._add(self._cutter.feed(data), captured)
        return bool(data)

    def take_all(self, captured: Captured) -> bool:
        rounds = 1 + _waiting_bytes(self.fileno()) // PIPE_READ_BYTES
        return all(self.take(captured) for _round in range(rounds))

    def _add(self, texts: list[str], captured: Captured) -> None:
        captured.lines.extend(OutputLine(self._worker, self._pid, self._stream, text) for text in texts)

    def close(self, captured: Captured) -> None:
        self._add(self._cutter.flush(), captured)
        descriptors.disown(self._fd)
        self._fd.close()


class LogSource:
    """The socket with the log records of one worker."""

    def __init__(self, sock: socket.socket, worker: int, pid: int) -> None:
        self._sock = sock
        self._worker = worker
        self._pid = pid
        self._at_most = max(
            LOG_RECORDS_PER_TURN, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // SMALLEST_PACKET_BYTES
        )
        descriptors.own(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def take(self, captured: Captured) -> bool:
        return self._receive(LOG_RECORDS_PER_TURN, captured)

    def take_all(self, captured: Captured) -> bool:
        return self._receive(self._at_most, captured)

    def _receive(self, at_most: int, captured: Captured) -> bool:
        """Read packets. Drop each packet that is not a record, whatever the task has sent.

        - The kernel closes descriptors that come with a packet, because the call gives no room for them.
        - An empty packet reads like the end of file.
        """
        buffer = bytearray(PACKET_LIMIT)
        for _record in range(at_most):
            try:
                size, _ancillary, flags, _address = self._sock.recvmsg_into([buffer], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not size and self._is_at_end():
                return False
            try:
                if flags & socket.MSG_TRUNC:
                    raise BadRecord(f"a packet has more than {PACKET_LIMIT} bytes")
                if not size:
                    raise BadRecord("a packet is empty")
                captured.records.append(log_records.unpack(memoryview(buffer)[:size], self._worker))
            except BadRecord as bad:
                captured.bad.append(f"worker {self._worker} (pid {self._pid}): {bad}")
        return True

    def _is_at_end(self) -> bool:
        """Whether the worker has closed or shut down its end, and nothing waits to be read."""
        poller = select.poll()
        poller.register(self._sock, select.POLLRDHUP)
        return bool(poller.poll(0)) and not _waiting_bytes(self._sock.fileno())

    def close(self, _captured: Captured) -> None:
        descriptors.disown(self._sock)
        self._sock.close()


def _waiting_bytes(fd: int) -> int:
    waiting = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, waiting)
    return int(struct.unpack("i", waiting)[0])
