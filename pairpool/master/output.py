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

import logging
import os
import select
import socket
import sys
import threading
from collections import deque

from pairpool.linux import descriptors
from pairpool.master.output_sinks import OutputRefused, Sink
from pairpool.master.output_sources import Captured, LogSource, OutputSource, PipeSource
from pairpool.transport.capture import LOG, STREAMS, CaptureFd
from pairpool.transport.protocol import CapturePacket

__all__ = ["Collector"]

MAX_REPORTS = 100
"""Sources whose exceptions are logged at most. A source is a sink, the name of a logger, or all damaged records."""

EVENTS_PER_TURN = 64
"""Descriptors that one turn of the thread reads at most."""


def _raise_above(near: int, far: int) -> tuple[int, CaptureFd]:
    """Return both ends with numbers above those of the standard streams; the far end is the one for the worker."""
    try:
        far = descriptors.above_standard(far)
    except BaseException:
        os.close(near)
        raise
    writer = CaptureFd(far)
    return descriptors.above_standard(near), writer


class _PassingLogger(logging.Logger):
    """Handles one record whose logger the program does not have, as a logger without settings of its own would.

    Registered loggers live as long as the program. So the names in records of tasks cannot fill its memory.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.parent = logging.root
        while "." in name:
            name = name.rpartition(".")[0]
            known = logging.root.manager.loggerDict.get(name)
            if isinstance(known, logging.Logger):
                self.parent = known
                break


def _logger_of(name: str | None) -> logging.Logger:
    if not name or name == logging.root.name:
        return logging.root
    known = logging.root.manager.loggerDict.get(name)
    return known if isinstance(known, logging.Logger) else _PassingLogger(name)


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
        self._sources: dict[int, OutputSource] = {}
        self._settle_requests: deque[threading.Event] = deque()
        self._reported: set[object] = set()  # the sinks and names of loggers whose exceptions were logged
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
                self._watch(PipeSource(near, worker, pid, name))
        if log and self.level is not None:
            one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near, writer = _raise_above(one.detach(), other.detach())
            packets.append((CapturePacket(LOG, self.level), writer))
            self._watch(LogSource(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, near), worker, pid))
        return packets

    def _watch(self, source: OutputSource) -> None:
        self._sources[source.fileno()] = source
        try:
            self._epoll.register(source.fileno(), select.EPOLLIN)
        except BaseException:
            del self._sources[source.fileno()]
            source.close(Captured([], [], []))
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
        captured = Captured([], [], [])
        asked: list[threading.Event] = []
        for fd, _events in self._epoll.poll(-1, EVENTS_PER_TURN):
            if fd == self._wakeup.fileno():
                os.eventfd_read(fd)
                asked = self._take_settle_requests()
                continue
            self._read(self._sources[fd], captured, everything=False)
        if asked:
            for source in list(self._sources.values()):
                self._read(source, captured, everything=True)
        self._hand_over(captured)
        for done in asked:
            done.set()

    def _read(self, source: OutputSource, captured: Captured, *, everything: bool) -> None:
        """Read from a source, and drop it at its end, or if the kernel refuses to read from it."""
        try:
            goes_on = source.take_all(captured) if everything else source.take(captured)
        except OSError as error:
            goes_on = False
            self._report(type(source), "reading the output of a worker", error)
        except Exception as error:  # there is no memory at the moment
            goes_on = True
            self._report(type(source), "reading the output of a worker", error)
        if not goes_on:
            self._drop(source, captured)

    def _take_settle_requests(self) -> list[threading.Event]:
        return [self._settle_requests.popleft() for _event in range(len(self._settle_requests))]

    def _drop(self, source: OutputSource, captured: Captured) -> None:
        del self._sources[source.fileno()]
        self._epoll.unregister(source.fileno())
        source.close(captured)

    def _hand_over(self, captured: Captured) -> None:
        if captured.lines:
            sink = self.sink
            try:
                sink(captured.lines)
            except BaseException as error:  # if this thread ended, workers would wait for ever for a reader
                self._report(id(sink), "the sink of captured output", error)
        for record in captured.records:
            try:
                logger = _logger_of(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            except BaseException as error:
                self._report(record.name, f"logger {record.name!r}, given a worker's record,", error)
        if captured.bad:
            text = f"log records are dropped, because tasks have damaged them; the first is of {captured.bad[0]}"
            self._report(LogSource, text, None)

    def _report(self, source: object, what: str, error: BaseException | None) -> None:
        """Log an exception of a sink or logger, or a bad record: once for each source."""
        if source in self._reported or len(self._reported) > MAX_REPORTS:
            return
        self._reported.add(source)
        log = logging.getLogger("pairpool")
        try:
            if error is None:
                log.warning("%s", what)
            elif isinstance(error, OutputRefused):
                log.warning("%s", error)
            else:
                log.error("%s raised an exception; output goes on", what, exc_info=error)
        except BaseException:  # raised by a logging filter of the program, which must not end this thread
            try:
                sys.excepthook(*sys.exc_info())
            except BaseException:
                pass  # the hook of the program fails, too: nothing is left that could report it

    def _finish(self) -> None:
        if self._over.is_set():
            return
        for source in list(self._sources.values()):
            captured = Captured([], [], [])
            self._read(source, captured, everything=True)
            if source.fileno() >= 0:
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
