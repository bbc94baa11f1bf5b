"""Outlets: where a worker's output goes when it is captured.

    Collector ◄── pipe, pipe, socket ── Outlet (SCM_RIGHTS) ──► worker: descriptors 1 and 2, and the root logger

What the kernel and C do (pipe(7), dup2(2), setvbuf(3)), and what follows:

- what was written to a pipe stays there when the writer dies, until it is read: no line of a dead worker is lost that
  had left its buffers;
- a pipe that takes the place of a terminal makes Python and C write in blocks: both are told to write by lines;
- programs that a task starts inherit descriptors 1 and 2, and so what they write is captured, too.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from typing import Any

from pairpool.linux import descriptors
from pairpool.transport.protocol import CapturePacket

__all__ = ["LOG", "STDERR", "STDOUT", "STREAMS", "CaptureFd", "serve", "finish"]

STDOUT, STDERR, LOG = 1, 2, 3
"""What an outlet is for: the field `stream` of its packet."""

STREAMS = {STDOUT: "stdout", STDERR: "stderr"}

_IOLBF = 1


class CaptureFd:
    """The worker's end of a pipe or socket, in the master, on its way to the worker; closed with the last reference.

    Attributes:
        fd: the descriptor.
        known: whether it was sent.
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
        """It was taken back before it was sent: nothing to do."""

    def __del__(self, _disown: Any = descriptors.disown) -> None:
        fd = getattr(self, "fd", None)
        if fd is not None:
            _disown(fd)
            fd.close()


# --- in a worker --------------------------------------------------------------------------------------

_captured = False


def serve(packet: CapturePacket, fds: list[int], inherited: tuple[Any, Any]) -> None:
    """A packet has brought an outlet: have output go there from now on.

    Args:
        inherited: `sys.stdout` and `sys.stderr` as the worker began: what a task has put in their place stays.
    """
    if not fds:
        return  # the master has lost it: output goes where it went before
    fd = fds.pop()
    if packet.stream == LOG:
        from pairpool.transport import log_records

        log_records.install(descriptors.above_standard(fd), packet.level)
    else:
        _take_stream(packet.stream, fd, inherited[packet.stream - 1])


def finish() -> None:
    """The worker ends, in a way that C takes for a crash: write what C's buffers still hold."""
    if _captured:
        ctypes.CDLL(None).fflush(None)


def _take_stream(number: int, fd: int, inherited: Any) -> None:
    global _captured
    name = STREAMS[number]
    stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
    own = [one for one in (stream, original) if _is_over(one, number) and _write_by_lines(one)]
    if fd == number:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, number)
        os.close(fd)
    _captured = True
    _write_c_by_lines(name)
    if stream is inherited and stream not in own:
        setattr(sys, name, own[-1] if own else _open(number))


def _is_over(stream: Any, number: int) -> bool:
    """Whether it is a text stream of Python's own over this descriptor, and nothing that its program has made."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        return False  # it is closed, or writes into memory


def _open(number: int) -> Any:
    return open(number, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _write_by_lines(stream: Any) -> bool:
    """Flush a stream, and set it to write lines as UTF-8; False if it cannot write any more."""
    try:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    except OSError:
        return False  # where it went to so far is full or closed: a new one takes its place
    return True


def _write_c_by_lines(name: str) -> None:
    """Have C's stream written at each end of a line, as on a terminal."""
    library = ctypes.CDLL(None)
    try:
        stream = ctypes.c_void_p.in_dll(library, name)
        setvbuf = library.setvbuf
    except (ValueError, AttributeError):
        return  # a C library that keeps them elsewhere: a crash may lose what C has buffered
    setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
    setvbuf(stream, None, _IOLBF, 0)
