"""Capture the output of a worker: its descriptors 1 and 2, and its log records.

    Collector ◄── two pipes and a socket ── their other ends: CaptureFd ── CAPTURE packets ──► worker

Facts about the kernel and C (pipe(7), dup2(2), setvbuf(3)), and their consequences:

- What was written to a pipe stays there when the writer dies. So a line that had left the buffers of a worker is never
  lost.
- Python and C write whole blocks to a pipe, and lines to a terminal: here both are set to write lines.
- Programs that a task starts inherit descriptors 1 and 2, so their output is captured, too.
- A task can close descriptors 1 and 2 and its Python streams. The worker keeps duplicates, and `mend` repairs the
  streams after each batch. So prints of later tasks do not fail.
- A socket that a task has shut down stays so. Then the worker ends after the batch, and another takes its place.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from pairpool.linux import descriptors
from pairpool.transport.protocol import CapturePacket

if TYPE_CHECKING:
    from pairpool.transport.log_records import RecordSender

__all__ = ["LOG", "STDERR", "STDOUT", "STREAMS", "CaptureFd", "finish", "mend", "serve"]

STDOUT, STDERR, LOG = 1, 2, 3
"""The streams that are captured: the values of the field `stream` of a CAPTURE packet."""

STREAMS = {STDOUT: "stdout", STDERR: "stderr"}

_IOLBF = 1
_SETVBUF = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)


class CaptureFd:
    """The worker's end of a pipe or socket, on its way to the worker. The last reference closes it.

    Attributes:
        fd: the descriptor.
        known: whether a packet carries it.
    """

    __slots__ = ("fd", "known")

    def __init__(self, fd: int) -> None:
        self.fd = descriptors.Descriptor(fd)
        self.known = False
        descriptors.own(self.fd)

    def sent(self) -> None:
        """Note that the descriptor was sent."""
        self.known = True

    def free(self) -> None:
        """Do nothing: it was taken back before it was sent."""

    def __del__(self, _disown: Any = descriptors.disown) -> None:
        fd = getattr(self, "fd", None)
        if fd is not None:
            _disown(fd)
            fd.close()


# --- in a worker --------------------------------------------------------------------------------------

_duplicates: dict[int, tuple[descriptors.Descriptor, int]] = {}
"""For each stream that is captured: a duplicate of its descriptor, and the inode of its pipe."""

_sender: RecordSender | None = None


def serve(packet: CapturePacket, fds: list[int], inherited: tuple[Any, Any]) -> None:
    """Send a stream to the descriptor that a packet has brought.

    Args:
        inherited: `sys.stdout` and `sys.stderr` when the worker started. Objects that a task put in their place stay.
    """
    global _sender
    if not fds:
        return  # the descriptor was lost in a recall, so the output stays where it goes now
    fd = fds.pop()
    if packet.stream == LOG:
        from pairpool.transport import log_records

        _sender = log_records.install(descriptors.above_standard(fd), packet.level)
    else:
        _take_stream(packet.stream, fd, inherited[packet.stream - 1])


def finish() -> None:
    """Write what C's buffers still hold, because C treats the end of a worker as a crash and would drop it."""
    if _duplicates:
        ctypes.CDLL(None).fflush(None)


def mend() -> bool:
    """Open the captured streams again that a task has closed; return False if the log socket cannot be mended."""
    for number, (duplicate, inode) in _duplicates.items():
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            _reopen(number, duplicate.fileno(), inode)
        name = STREAMS[number]
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and _is_closed(stream):
            _put_stream(name, _open(number))
    return _sender is None or _sender.is_intact()


def _reopen(number: int, duplicate: int, inode: int) -> None:
    try:
        if os.fstat(duplicate).st_ino == inode:
            os.dup2(duplicate, number)
    except OSError:
        pass  # a task has closed the duplicate, too: prints fail, as they do in any process without streams


def _is_closed(stream: io.TextIOWrapper) -> bool:
    try:
        return stream.closed
    except ValueError:
        return True  # its buffer was detached


def _keep_duplicate(number: int) -> None:
    before = _duplicates.pop(number, None)
    if before is not None:
        descriptors.disown(before[0])
        before[0].close()
    try:
        duplicate = descriptors.Descriptor(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3))
    except OSError:
        duplicate = descriptors.Descriptor(-1)  # there is no room for it, so the stream cannot be mended
    descriptors.own(duplicate)
    _duplicates[number] = duplicate, os.fstat(number).st_ino


def _take_stream(number: int, fd: int, inherited: Any) -> None:
    name = STREAMS[number]
    stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
    own = [one for one in (stream, original) if _is_over(one, number) and _write_by_lines(one)]
    if fd == number:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, number)
        os.close(fd)
    _keep_duplicate(number)
    _write_c_by_lines(name)
    if stream is inherited and stream not in own:
        _put_stream(name, own[-1] if own else _open(number))


def _put_stream(name: str, stream: Any) -> None:
    setattr(sys, name, stream)


def _is_over(stream: Any, number: int) -> bool:
    """Whether an object is Python's own text stream over this descriptor, not one that the program has made."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        return False  # the stream is closed, or writes into memory


def _open(number: int) -> Any:
    return open(number, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _write_by_lines(stream: Any) -> bool:
    """Flush a stream and set it to write lines as UTF-8; return False if it cannot write any more."""
    try:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    except OSError:
        return False  # its old destination is full or closed, so a new stream takes its place
    return True


def _write_c_by_lines(name: str) -> None:
    """Let C write its stream at each end of a line, as to a terminal."""
    library = ctypes.CDLL(None)
    try:
        stream = ctypes.c_void_p.in_dll(library, name)
        setvbuf = _SETVBUF(("setvbuf", library))
    except (ValueError, AttributeError):
        return  # this C library has other names: a crash can lose what C has buffered
    setvbuf(stream, None, _IOLBF, 0)
