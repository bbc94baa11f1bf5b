"""The output of tasks: one thread reads what workers write, and hands whole lines to a sink.

    worker ── pipe: stdout ──┐
           ── pipe: stderr ──┤ Collector ── lines ──► sink: sys.stdout and sys.stderr, a callable, a live view
           ── socket: log ───┘           ── records ► the loggers of their names

It is a thread, because a worker that writes a lot must not wait for a master that computes. The thread owns the ends
that it reads; the leader, in whichever thread, adds some for each new worker. When a worker ends, its pipes still hold
what it wrote: they are read to the end of file. A process that escaped from a task may hold a pipe open for ever: at
the pool's end what is there is read, and nothing waited for.
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
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, Protocol

from pairpool.linux import descriptors
from pairpool.output_lines import LineCutter, OutputLine
from pairpool.transport import log_records
from pairpool.transport.capture import LOG, STREAMS, CaptureFd
from pairpool.transport.protocol import CapturePacket
from pairpool.transport.wire import PACKET_LIMIT

__all__ = ["Collector", "Sink", "each_line", "print_lines", "print_tagged"]

Sink = Callable[[list[OutputLine]], object]
"""What is given the lines, in the collector's thread; those of one worker and stream in their order."""

ROOM = 1 << 16
"""Bytes read of a pipe at a time: as many as it holds by default."""

RECORDS = 64
"""Log records of one worker that are taken before it is another's turn."""

SMALLEST_PACKET = 256
"""Bytes of a socket's buffer that a packet takes at least."""

EVENTS = 64


# --- sinks --------------------------------------------------------------------------------------------
#
# A fork copies what waits in a stream's buffer, and both processes write it then. So no fork of this process happens
# between a write of these sinks and its flush.

_writing = threading.RLock()


def _make_lock() -> None:
    global _writing
    _writing = threading.RLock()


os.register_at_fork(
    before=lambda: _writing.acquire(), after_in_parent=lambda: _writing.release(), after_in_child=_make_lock
)


def print_tagged(lines: list[OutputLine]) -> None:
    """Write `[worker 3] text` to this program's `sys.stdout` and `sys.stderr`, whatever these are now."""
    _print([(line.stream, f"[worker {line.worker}] {line.text}\n") for line in lines])


def print_lines(lines: list[OutputLine]) -> None:
    """`print_tagged` without the tag: as if the workers wrote there themselves, by whole lines."""
    _print([(line.stream, f"{line.text}\n") for line in lines])


class _Refused(Exception):
    """A stream of this program takes no more, as its reader has gone or its disk is full; the text says which."""


def _print(lines: list[tuple[str, str]]) -> None:
    refused = ""
    for name, group in groupby(lines, key=lambda line: line[0]):
        stream = getattr(sys, name)
        if stream is None:
            continue
        try:
            with _writing:
                stream.write("".join(text for _name, text in group))
                stream.flush()
        except OSError as error:  # the other stream gets its lines all the same
            refused = f"what tasks write to {name} is lost from here on: {error.strerror}"
    if refused:
        raise _Refused(refused)


def each_line(function: Callable[[OutputLine], object]) -> Sink:
    """A sink that calls `function` with every line; the first exception is raised after all were handed over."""

    def sink(lines: list[OutputLine]) -> None:
        failed: BaseException | None = None
        for line in lines:
            try:
                function(line)
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            raise failed

    return sink


# --- sources ------------------------------------------------------------------------------------------


class _Haul(NamedTuple):
    """What was read and is to be handed on."""

    lines: list[OutputLine]
    records: list[logging.LogRecord]


class _Source(Protocol):
    """The end of a pipe or socket that is read; nothing here waits."""

    def fileno(self) -> int: ...

    def take(self, haul: _Haul) -> bool:
        """Read some of what is there; False at the end of file."""

    def take_all(self, haul: _Haul) -> bool:
        """Read all that is there now, though not what comes meanwhile; False at the end of file."""

    def close(self, haul: _Haul) -> None:
        """Hand over what is left, and let go of the descriptor."""


class _Pipe:
    """One stream of one worker."""

    def __init__(self, fd: int, worker: int, pid: int, stream: str) -> None:
        self._fd = descriptors.Descriptor(fd)
        self._worker = worker
        self._pid = pid
        self._stream = stream
        self._cutter = LineCutter()
        descriptors.own(self._fd)

    def fileno(self) -> int:
        return self._fd.fileno()

    def take(self, haul: _Haul) -> bool:
        try:
            data = os.read(self.fileno(), ROOM)
        except BlockingIOError:
            return True
        self._add(self._cutter.feed(data), haul)
        return bool(data)

    def take_all(self, haul: _Haul) -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(self.fileno(), termios.FIONREAD, waiting)
        rounds = 1 + struct.unpack("i", waiting)[0] // ROOM
        return all(self.take(haul) for _round in range(rounds))

    def _add(self, texts: list[str], haul: _Haul) -> None:
        haul.lines.extend(OutputLine(self._worker, self._pid, self._stream, text) for text in texts)

    def close(self, haul: _Haul) -> None:
        self._add(self._cutter.flush(), haul)
        descriptors.disown(self._fd)
        self._fd.close()


class _Log:
    """The log records of one worker."""

    def __init__(self, sock: socket.socket, worker: int) -> None:
        self._sock = sock
        self._worker = worker
        self._at_most = max(RECORDS, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // SMALLEST_PACKET)
        descriptors.own(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def take(self, haul: _Haul) -> bool:
        return self._receive(RECORDS, haul)

    def take_all(self, haul: _Haul) -> bool:
        return self._receive(self._at_most, haul)

    def _receive(self, at_most: int, haul: _Haul) -> bool:
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
            haul.records.append(log_records.unpack(memoryview(buffer)[:size], self._worker))
        return True

    def close(self, _haul: _Haul) -> None:
        descriptors.disown(self._sock)
        self._sock.close()


def _raise_above(near: int, far: int) -> tuple[int, CaptureFd]:
    """Both ends with numbers above those of the standard streams, the far one as an outlet."""
    try:
        far = descriptors.above_standard(far)
    except BaseException:
        os.close(near)
        raise
    outlet = CaptureFd(far)
    return descriptors.above_standard(near), outlet


# --- the collector ------------------------------------------------------------------------------------


class Collector:
    """Reads the output of a pool's workers, in a thread of its own.

    Args:
        sink: what is given the lines; it may be replaced at any time.
        streams: whether stdout and stderr are taken.
        level: the level from which on log records are taken; None for none.

    Raises `OSError` if the kernel refuses it a descriptor.
    """

    def __init__(self, sink: Sink, *, streams: bool, level: int | None) -> None:
        self.sink = sink
        self.streams = streams
        self.level = level
        self._sources: dict[int, _Source] = {}
        self._asked: deque[threading.Event] = deque()
        self._complained_of: object = None
        self._closing = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # of `_wakeup`, against its end
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
        """Begin to read. Workers that are forked off this very process had better be there already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pairpool-output", daemon=True)
            self._thread.start()

    def attach(self, worker: int, pid: int, *, streams: bool, log: bool) -> list[tuple[CapturePacket, CaptureFd]]:
        """Begin to read what a worker writes; returns the packets that have it written here.

        Raises `OSError` if the kernel refuses a descriptor; what was made before that ends with its outlet.
        """
        packets: list[tuple[CapturePacket, CaptureFd]] = []
        if streams:
            for number, name in STREAMS.items():
                near, outlet = _raise_above(*os.pipe2(os.O_CLOEXEC))
                os.set_blocking(near, False)
                packets.append((CapturePacket(number), outlet))
                self._watch(_Pipe(near, worker, pid, name))
        if log and self.level is not None:
            one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near, outlet = _raise_above(one.detach(), other.detach())
            packets.append((CapturePacket(LOG, self.level), outlet))
            self._watch(_Log(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, near), worker))
        return packets

    def _watch(self, source: _Source) -> None:
        self._sources[source.fileno()] = source
        try:
            self._epoll.register(source.fileno(), select.EPOLLIN)
        except BaseException:
            del self._sources[source.fileno()]
            source.close(_Haul([], []))
            raise

    # --- for everybody --------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until what was written before has been handed to the sink, lines that were not ended excepted."""
        if self._thread is None or self._thread is threading.current_thread():
            return
        done = threading.Event()
        self._asked.append(done)
        self._wake()
        if not self._over.is_set():
            done.wait()

    def close(self) -> None:
        """Hand over all that workers wrote, let go of the descriptors, and wait for the thread to end.

        The workers have ended. Called by the sink, or by a finalizer that strikes there, it returns at once, and the
        thread does the rest.
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
        haul = _Haul([], [])
        asked: list[threading.Event] = []
        for fd, _events in self._epoll.poll(-1, EVENTS):
            if fd == self._wakeup.fileno():
                os.eventfd_read(fd)
                asked = self._take_asked()
                continue
            source = self._sources[fd]
            if not source.take(haul):
                self._drop(source, haul)
        if asked:
            for source in list(self._sources.values()):
                if not source.take_all(haul):
                    self._drop(source, haul)
        self._hand_over(haul)
        for done in asked:
            done.set()

    def _take_asked(self) -> list[threading.Event]:
        return [self._asked.popleft() for _event in range(len(self._asked))]

    def _drop(self, source: _Source, haul: _Haul) -> None:
        del self._sources[source.fileno()]
        self._epoll.unregister(source.fileno())
        source.close(haul)

    def _hand_over(self, haul: _Haul) -> None:
        if haul.lines:
            sink = self.sink
            try:
                sink(haul.lines)
            except BaseException as error:  # without this thread, workers would wait for ever for somebody to read
                self._complain(sink, "the sink of captured output", error)
        for record in haul.records:
            logger = logging.getLogger(record.name)
            try:
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            except BaseException as error:
                self._complain(logger, f"logger {record.name!r}, given a worker's record,", error)

    def _complain(self, culprit: object, what: str, error: BaseException) -> None:
        """Log what went wrong, once as long as it is the same one's fault."""
        if self._complained_of is not culprit:
            self._complained_of = culprit
            log = logging.getLogger("pairpool")
            try:
                if isinstance(error, _Refused):
                    log.warning("%s", error)
                else:
                    log.error("%s raised an exception; output goes on", what, exc_info=error)
            except BaseException:  # of a filter of the program's: this thread is the last that may end by it
                sys.excepthook(*sys.exc_info())

    def _finish(self) -> None:
        if self._over.is_set():
            return
        for source in list(self._sources.values()):
            haul = _Haul([], [])
            source.take_all(haul)
            self._drop(source, haul)
            self._hand_over(haul)
        self._over.set()
        with self._lock:
            descriptors.disown(self._wakeup)
            self._wakeup.close()
        descriptors.disown(self._epoll)
        self._epoll.close()
        for done in self._take_asked():
            done.set()
