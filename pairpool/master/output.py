"""Capture the output of tasks: one thread reads what workers write, and hands whole lines to a sink.

    worker ── pipe: stdout ──┐
           ── pipe: stderr ──┤ Collector ── lines ──► sink: sys.stdout and sys.stderr, a callable, a live view
           ── socket: log ───┘           ── records ► the loggers with the same names

- A thread reads, because a worker that writes a lot must not wait while the master's caller computes.
- The thread owns the ends that it reads. The leader, in any thread, adds the ends of each new worker.
- When a worker ends, its pipes still hold text. The thread reads them to the end of file.
- A process that escaped from a task may keep a pipe open for ever. At the end of the pool the thread reads what is
  there, and does not wait for more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import struct
import sys
import termios
import threading
from collections import deque
from typing import NamedTuple, Protocol

from pairpool.linux import descriptors
from pairpool.master.output_sinks import OutputRefused, Sink
from pairpool.output_lines import LineCutter, OutputLine
from pairpool.transport import log_records
from pairpool.transport.capture import LOG, STREAMS, CaptureFd
from pairpool.transport.protocol import CapturePacket
from pairpool.transport.wire import PACKET_LIMIT

__all__ = ["Collector"]

PIPE_READ_BYTES = 1 << 16
"""Bytes that one read of a pipe takes at most: the default capacity of a pipe."""

LOG_RECORDS_PER_TURN = 64
"""Log records of one worker that are read before the next worker's turn."""

SMALLEST_PACKET_BYTES = 256
"""Bytes that a packet takes at least in the buffer of a socket."""

EVENTS_PER_TURN = 64
"""Descriptors that one turn of the thread reads at most."""


# --- sources ------------------------------------------------------------------------------------------


class _Captured(NamedTuple):
    """Lines and records that were read and not yet handed over."""

    lines: list[OutputLine]
    records: list[logging.LogRecord]


class _Source(Protocol):
    """The end of a pipe or socket that the thread reads. No method waits."""

    def fileno(self) -> int: ...

    def take(self, captured: _Captured) -> bool:
        """Read some of the waiting data. Return False at the end of file."""

    def take_all(self, captured: _Captured) -> bool:
        """Read all data that waits at the time of the call. Return False at the end of file."""

    def close(self, captured: _Captured) -> None:
        """Add the last line, even if it has no end, and close the descriptor."""


class _Pipe:
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

    def take(self, captured: _Captured) -> bool:
        try:
            data = os.read(self.fileno(), PIPE_READ_BYTES)
        except BlockingIOError:
            return True
        self._add(self._cutter.feed(data), captured)
        return bool(data)

    def take_all(self, captured: _Captured) -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(self.fileno(), termios.FIONREAD, waiting)
        rounds = 1 + struct.unpack("i", waiting)[0] // PIPE_READ_BYTES
        return all(self.take(captured) for _round in range(rounds))

    def _add(self, texts: list[str], captured: _Captured) -> None:
        captured.lines.extend(OutputLine(self._worker, self._pid, self._stream, text) for text in texts)

    def close(self, captured: _Captured) -> None:
        self._add(self._cutter.flush(), captured)
        descriptors.disown(self._fd)
        self._fd.close()


class _Log:
    """The socket with the log records of one worker."""

    def __init__(self, sock: socket.socket, worker: int) -> None:
        self._sock = sock
        self._worker = worker
        self._at_most = max(
            LOG_RECORDS_PER_TURN, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // SMALLEST_PACKET_BYTES
        )
        descriptors.own(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def take(self, captured: _Captured) -> bool:
        return self._receive(LOG_RECORDS_PER_TURN, captured)

    def take_all(self, captured: _Captured) -> bool:
        return self._receive(self._at_most, captured)

    def _receive(self, at_most: int, captured: _Captured) -> bool:
        buffer = bytearray(PACKET_LIMIT)
        for _record in range(at_most):
            try:
                size = self._sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not size:
                return False
            captured.records.append(log_records.unpack(memoryview(buffer)[:size], self._worker))
        return True

    def close(self, _haul: _Captured) -> None:
        descriptors.disown(self._sock)
        self._sock.close()


def _raise_above(near: int, far: int) -> tuple[int, CaptureFd]:
    """Return both ends with numbers above those of the standard streams; the far end is the one for the worker."""
    try:
        far = descriptors.above_standard(far)
    except BaseException:
        os.close(near)
        raise
    writer = CaptureFd(far)
    return descriptors.above_standard(near), writer


# --- the collector ------------------------------------------------------------------------------------


class Collector:
    """Read the output of a pool's workers in a thread.

    Args:
        sink: receives the lines. `redirect` replaces it.
        streams: whether stdout and stderr are captured.
        level: the level from which log records are captured; None for none.

    Raises:
        OSError: the kernel refuses a descriptor.
    """

    def __init__(self, sink: Sink, *, streams: bool, level: int | None) -> None:
        self.sink = sink
        self.streams = streams
        self.level = level
        self._sources: dict[int, _Source] = {}
        self._settle_requests: deque[threading.Event] = deque()
        self._reported: object = None  # the sink or logger whose exception was logged last
        self._closing = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # guards `_wakeup` against its close
        self._epoll = select.epoll()
        descriptors.own(self._epoll)
        try:
            self._wakeup = descriptors.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            descriptors.own(self._wakeup)
            self._epoll.register(self._wakeup, select.EPOLLIN)
        except BaseException:
            descriptors.disown(self._epoll)
            self._epoll.close()
            raise

    # --- for the leader -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. Start workers that are forks of this very process before it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pairpool-output", daemon=True)
            self._thread.start()

    def attach(self, worker: int, pid: int, *, streams: bool, log: bool) -> list[tuple[CapturePacket, CaptureFd]]:
        """Begin to read the output of a worker. Return the packets that make the worker write it here.

        Raises:
            OSError: the kernel refuses a descriptor. The thread closes the pipes that were made before, because
                their other ends are closed with this exception.
        """
        packets: list[tuple[CapturePacket, CaptureFd]] = []
        if streams:
            for number, name in STREAMS.items():
                near, writer = _raise_above(*os.pipe2(os.O_CLOEXEC))
                os.set_blocking(near, False)
                packets.append((CapturePacket(number), writer))
                self._watch(_Pipe(near, worker, pid, name))
        if log and self.level is not None:
            one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near, writer = _raise_above(one.detach(), other.detach())
            packets.append((CapturePacket(LOG, self.level), writer))
            self._watch(_Log(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, near), worker))
        return packets

    def _watch(self, source: _Source) -> None:
        self._sources[source.fileno()] = source
        try:
            self._epoll.register(source.fileno(), select.EPOLLIN)
        except BaseException:
            del self._sources[source.fileno()]
            source.close(_Captured([], []))
            raise

    def redirect(self, sink: Sink) -> None:
        """Replace the sink."""
        self.sink = sink

    def capture_streams(self) -> None:
        """Capture stdout and stderr of workers that start from now on, too."""
        self.streams = True

    # --- for all threads --------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until the sink has received all lines that were complete before this call."""
        if self._thread is None or self._thread is threading.current_thread():
            return
        done = threading.Event()
        self._settle_requests.append(done)
        self._wake()
        if not self._over.is_set():
            done.wait()

    def close(self) -> None:
        """Hand over all that workers wrote, close the descriptors, and wait for the end of the thread.

        Call this after the workers have ended. In the collector's thread, which a sink or a finalizer may be in, the
        method returns at once, and the thread does the rest.
        """
        self._closing = True
        if self._thread is None:
            self._finish()
            return
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _wake(self) -> None:
        with self._lock:
            if self._wakeup.fileno() >= 0:
                os.eventfd_write(self._wakeup.fileno(), 1)

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            self._finish()

    def _turn(self) -> None:
        captured = _Captured([], [])
        asked: list[threading.Event] = []
        for fd, _events in self._epoll.poll(-1, EVENTS_PER_TURN):
            if fd == self._wakeup.fileno():
                os.eventfd_read(fd)
                asked = self._take_settle_requests()
                continue
            source = self._sources[fd]
            if not source.take(captured):
                self._drop(source, captured)
        if asked:
            for source in list(self._sources.values()):
                if not source.take_all(captured):
                    self._drop(source, captured)
        self._hand_over(captured)
        for done in asked:
            done.set()

    def _take_settle_requests(self) -> list[threading.Event]:
        return [self._settle_requests.popleft() for _event in range(len(self._settle_requests))]

    def _drop(self, source: _Source, captured: _Captured) -> None:
        del self._sources[source.fileno()]
        self._epoll.unregister(source.fileno())
        source.close(captured)

    def _hand_over(self, captured: _Captured) -> None:
        if captured.lines:
            sink = self.sink
            try:
                sink(captured.lines)
            except BaseException as error:  # if this thread ended, workers would wait for ever for a reader
                self._report(sink, "the sink of captured output", error)
        for record in captured.records:
            logger = logging.getLogger(record.name)
            try:
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            except BaseException as error:
                self._report(logger, f"logger {record.name!r}, given a worker's record,", error)

    def _report(self, source: object, what: str, error: BaseException) -> None:
        """Log an exception of a sink or logger. Log nothing if the last one logged came from the same source."""
        if self._reported is not source:
            self._reported = source
            log = logging.getLogger("pairpool")
            try:
                if isinstance(error, OutputRefused):
                    log.warning("%s", error)
                else:
                    log.error("%s raised an exception; output goes on", what, exc_info=error)
            except BaseException:  # raised by a logging filter of the program, which must not end this thread
                sys.excepthook(*sys.exc_info())

    def _finish(self) -> None:
        if self._over.is_set():
            return
        for source in list(self._sources.values()):
            captured = _Captured([], [])
            source.take_all(captured)
            self._drop(source, captured)
            self._hand_over(captured)
        self._over.set()
        with self._lock:
            descriptors.disown(self._wakeup)
            self._wakeup.close()
        descriptors.disown(self._epoll)
        self._epoll.close()
        for done in self._take_settle_requests():
            done.set()
