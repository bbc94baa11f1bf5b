"""Objects over descriptors: sockets, files, connections of multiprocessing. What of them travels, and how.

Each is pickled as a function that makes it anew, with the place of its descriptor beside the pickle (`rights.py`). An
open file has one position and one O_NONBLOCK for all who hold it, and so has what arrives: as after a fork.

multiprocessing pickles sockets and connections, too, but by a thread that waits for the receiver to fetch them, and
for ever if that has died. Here it is never asked.
"""

from __future__ import annotations

import codecs
import copyreg
import errno
import io
import os
import socket
import stat
import sys
from typing import Any

from pairpool.transport import fd_passing
from pairpool.transport.fd import Fd, arrive
from pairpool.transport.fd_passing import ChildFds, OutgoingFds

__all__ = ["BUILDERS", "guard", "kinds", "notice", "travel"]

_IOBase: Any = io.IOBase.__mro__[1]
"""The base of all files in C, whose subclasses are told apart in no time; that of `io.IOBase` asks an ABC."""

kinds: tuple[type, ...] = (Fd, socket.socket, _IOBase)
"""What `travel` may know a way for; it grows as modules are loaded."""

_modules_seen = 0
_guarded = False


def notice() -> None:
    """Look whether modules have been loaded meanwhile whose objects have descriptors."""
    global kinds, _modules_seen
    if len(sys.modules) != _modules_seen:
        _modules_seen = len(sys.modules)
        kinds = (Fd, socket.socket, _IOBase, *_known("multiprocessing.connection", "_ConnectionBase"))
        kinds += _known("tempfile", "_TemporaryFileWrapper")


def _known(module: str, name: str) -> tuple[type, ...]:
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def guard() -> None:
    """In a worker: have the plain pickler refuse connections, which it would send as a number that means nothing.

    Sockets and files it refuses by itself, and what it refuses is pickled with `travel`.
    """
    global _guarded
    if not _guarded and (found := _known("multiprocessing.connection", "Connection")):
        _guarded = True
        copyreg.pickle(found[0], _refuse_plainly)


def _refuse_plainly(thing: object) -> Any:
    raise TypeError(f"cannot pickle {type(thing).__name__!r} object")


def travel(thing: Any, cargo: OutgoingFds | ChildFds) -> Any:
    """What a pickle says of an object of one of `kinds`; its descriptor is copied into `cargo`.

    `NotImplemented` for those that are pickled like any other object, or not at all.

    Raises:
        OSError: its descriptor is not open.
        TypeError: it cannot be sent for another reason.
    """
    if isinstance(thing, Fd):
        return thing.travel(cargo)
    if isinstance(thing, socket.socket):
        return _send_socket(thing, cargo)
    if isinstance(thing, _IOBase):
        return _send_file(thing, cargo)
    if _known("tempfile", "_TemporaryFileWrapper") == (type(thing),):
        return _send_file(thing.file, cargo)  # which does not delete it: that stays with the sender
    return _send_connection(thing, cargo)


# --- sockets ------------------------------------------------------------------------------------------


def _send_socket(sock: socket.socket, cargo: OutgoingFds | ChildFds) -> Any:
    kind = type(sock)
    if isinstance(sock, _known("ssl", "SSLSocket")):
        raise TypeError(
            "an SSL socket cannot be sent to another process: its keys and its place in the stream are in this one's "
            "memory; send the plain socket before the handshake, and wrap it there"
        )
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return NotImplemented  # it has a way of its own
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, f"{sock!r} cannot be sent: it is closed")
    place = cargo.add(sock.fileno(), sock)
    made = _receive_socket, (place, kind, int(sock.family), int(sock.type), sock.proto, sock.gettimeout())
    state = getattr(sock, "__dict__", None)
    return (*made, state) if state else made


def _receive_socket(
    place: int, kind: type[socket.socket], family: int, type_: int, proto: int, timeout: float | None
) -> socket.socket:
    def make(fd: int) -> socket.socket:
        sock = kind.__new__(kind)
        socket.socket.__init__(sock, family, type_, proto, fd)
        return sock

    sock = fd_passing.take(place, make)
    sock.settimeout(timeout)  # also where it is None: this process may have another default
    return sock


# --- connections of multiprocessing -------------------------------------------------------------------


def _send_connection(connection: Any, cargo: OutgoingFds | ChildFds) -> Any:
    if connection.closed:
        raise OSError(errno.EBADF, f"{connection!r} cannot be sent: it is closed")
    place = cargo.add(connection.fileno(), connection)
    return _receive_connection, (place, connection.readable, connection.writable)


def _receive_connection(place: int, readable: bool, writable: bool) -> Any:
    from multiprocessing.connection import Connection

    return fd_passing.take(place, lambda fd: Connection(fd, readable, writable))


# --- files --------------------------------------------------------------------------------------------

_BUFFERS: dict[type, str] = {
    io.BufferedReader: "BufferedReader",
    io.BufferedWriter: "BufferedWriter",
    io.BufferedRandom: "BufferedRandom",
}


def _send_file(file: Any, cargo: OutgoingFds | ChildFds) -> Any:
    """A file of `open`: what is buffered is written, what was read ahead is given back, and the descriptor goes."""
    if file in (sys.stdin, sys.stdout, sys.stderr):
        return NotImplemented  # by name: a task that prints means its own process's
    text = buffer = None
    raw = file
    if type(raw) is io.TextIOWrapper:
        text, raw = raw, raw.buffer
    if type(raw) in _BUFFERS:
        buffer, raw = raw, raw.raw
    if type(raw) is not io.FileIO or (text is not None and buffer is None):
        return NotImplemented
    if file.closed:
        raise OSError(errno.EBADF, f"{file!r} cannot be sent: it is closed")
    layers = None if text is None else _describe_text(text)
    if buffer is not None:
        _settle(buffer)
    name = None if isinstance(raw.name, int) else raw.name
    place = cargo.add(raw.fileno(), file)
    return _receive_file, (place, raw.mode, name, buffer and _BUFFERS[type(buffer)], layers)


def _describe_text(text: io.TextIOWrapper) -> tuple[dict[str, Any], Any, int]:
    """How to make the text layer: arguments, mode, and where its decoder is, 0 where the position says it all."""
    cookie = 0
    if text.readable() and text.seekable():
        cookie = text.tell()  # before it is flushed, which hides from it that `next` has gone ahead
        text.seek(cookie)
        if not cookie >> 64 and codecs.getincrementaldecoder(text.encoding)().getstate() == (b"", 0):
            cookie = 0
    text.flush()
    options = {
        "encoding": text.encoding,
        "errors": text.errors,
        "line_buffering": text.line_buffering,
        "write_through": text.write_through,
    }
    return options, getattr(text, "mode", None), cookie


def _settle(buffer: Any) -> None:
    """Write what is buffered, and set the open file's position to where this reader is."""
    buffer.flush()
    if buffer.readable() and buffer.seekable():
        position = buffer.tell()
        if buffer.raw.tell() != position:
            buffer.seek(0, os.SEEK_END)  # out of its buffer, within which no seek reaches the file
            buffer.seek(position)
            buffer.flush()


def _receive_file(
    place: int, mode: str, name: Any, buffer: str | None, layers: tuple[dict[str, Any], Any, int] | None
) -> Any:
    file: Any = fd_passing.take(place, lambda fd: _open_where_it_is(fd, mode))
    if name is not None:
        file.name = name
    if buffer is not None:
        file = getattr(io, buffer)(file)
    if layers is not None:
        options, text_mode, cookie = layers
        file = io.TextIOWrapper(file, **options)
        if text_mode is not None:
            file.mode = text_mode
        if cookie:
            file.seek(cookie)
    return file


def _open_where_it_is(fd: int, mode: str) -> io.FileIO:
    """A file over a descriptor; one for appending goes to its end when it is made, and with it all who share it."""
    is_moved = "a" in mode and stat.S_ISREG(os.fstat(fd).st_mode)
    position = os.lseek(fd, 0, os.SEEK_CUR) if is_moved else 0
    file = io.FileIO(fd, mode)
    if is_moved:
        os.lseek(fd, position, os.SEEK_SET)
    return file


BUILDERS = frozenset({arrive, _receive_socket, _receive_connection, _receive_file})
"""What pickles of such objects call."""
