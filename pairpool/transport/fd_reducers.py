"""Reducers for objects with a descriptor: sockets, files, connections of multiprocessing.

    object ─► reduce ─► pickle: a builder and the place of the descriptor ─► builder(place, ...) ─► new object
                        descriptor: SCM_RIGHTS, beside the pickle (`fd_passing.py`) ──► received descriptor

An open file has one position and one O_NONBLOCK flag for all descriptors that refer to it. So the sender's object and
the received object share them, as after a fork.

multiprocessing pickles sockets and connections, too, but with a thread that waits until the receiver fetches them. If
the receiver has died, this thread waits for ever. So the reducers of multiprocessing are never used here.
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

from pairpool.transport import received_fds
from pairpool.transport.fd import Fd, arrive
from pairpool.transport.fd_passing import ChildFds, OutgoingFds

__all__ = ["BUILDERS", "kinds", "reduce", "refresh_kinds", "refuse_plain_connections"]

_IOBase: Any = io.IOBase.__mro__[1]
"""The base class of all files in C. It is not an ABC, so that `issubclass` is fast; `io.IOBase` is an ABC."""

kinds: tuple[type, ...] = (Fd, socket.socket, _IOBase)
"""The types that `reduce` accepts. `refresh_kinds` adds types when their modules are loaded."""

_modules_seen = 0
_refuses_connections = False


def refresh_kinds() -> None:
    """Update `kinds` if modules were loaded since the last call."""
    global kinds, _modules_seen
    if len(sys.modules) != _modules_seen:
        _modules_seen = len(sys.modules)
        kinds = (Fd, socket.socket, _IOBase, *_loaded("multiprocessing.connection", "_ConnectionBase"))
        kinds += _loaded("tempfile", "_TemporaryFileWrapper")


def _loaded(module: str, name: str) -> tuple[type, ...]:
    """Return a class of a module in a tuple, or an empty tuple if the module is not loaded."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def refuse_plain_connections() -> None:
    """In a worker, let the plain pickler refuse connections. It would send a number that means nothing elsewhere.

    The plain pickler refuses sockets and files by itself. Refused objects are pickled with `reduce`.
    """
    global _refuses_connections
    if not _refuses_connections and (found := _loaded("multiprocessing.connection", "Connection")):
        _refuses_connections = True
        copyreg.pickle(found[0], _refuse)


def _refuse(thing: object) -> Any:
    raise TypeError(f"cannot pickle {type(thing).__name__!r} object")


def reduce(thing: Any, fds: OutgoingFds | ChildFds) -> Any:
    """Return the reduced form of an object of one of `kinds`, and add its descriptor to `fds`.

    Return `NotImplemented` for an object that is pickled like any other object, or not at all.

    Raises:
        OSError: its descriptor is not open.
        TypeError: it cannot be sent for another reason.
    """
    if isinstance(thing, Fd):
        return thing.travel(fds)
    if isinstance(thing, socket.socket):
        return _reduce_socket(thing, fds)
    if isinstance(thing, _IOBase):
        return _reduce_file(thing, fds)
    if _loaded("tempfile", "_TemporaryFileWrapper") == (type(thing),):
        return _reduce_file(thing.file, fds)  # without the wrapper, because only the sender deletes the file
    return _reduce_connection(thing, fds)


# --- sockets ------------------------------------------------------------------------------------------


def _reduce_socket(sock: socket.socket, fds: OutgoingFds | ChildFds) -> Any:
    kind = type(sock)
    if isinstance(sock, _loaded("ssl", "SSLSocket")):
        raise TypeError(
            "an SSL socket cannot be sent to another process, because its keys and its place in the stream are in the "
            "memory of this process; send the plain socket before the handshake, and wrap it there"
        )
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return NotImplemented  # the class has its own reducer
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, f"{sock!r} cannot be sent: it is closed")
    place = fds.add(sock.fileno(), sock)
    built = _build_socket, (place, kind, int(sock.family), int(sock.type), sock.proto, sock.gettimeout())
    state = getattr(sock, "__dict__", None)
    return (*built, state) if state else built


def _build_socket(
    place: int, kind: type[socket.socket], family: int, type_: int, proto: int, timeout: float | None
) -> socket.socket:
    def make(fd: int) -> socket.socket:
        sock = kind.__new__(kind)
        socket.socket.__init__(sock, family, type_, proto, fd)
        return sock

    sock = received_fds.take(place, make)
    sock.settimeout(timeout)  # even None, because this process may have another default
    return sock


# --- connections of multiprocessing -------------------------------------------------------------------


def _reduce_connection(connection: Any, fds: OutgoingFds | ChildFds) -> Any:
    if connection.closed:
        raise OSError(errno.EBADF, f"{connection!r} cannot be sent: it is closed")
    place = fds.add(connection.fileno(), connection)
    return _build_connection, (place, connection.readable, connection.writable)


def _build_connection(place: int, readable: bool, writable: bool) -> Any:
    from multiprocessing.connection import Connection

    return received_fds.take(place, lambda fd: Connection(fd, readable, writable))


# --- files --------------------------------------------------------------------------------------------

_BUFFERED: dict[type, str] = {
    io.BufferedReader: "BufferedReader",
    io.BufferedWriter: "BufferedWriter",
    io.BufferedRandom: "BufferedRandom",
}


def _reduce_file(file: Any, fds: OutgoingFds | ChildFds) -> Any:
    """Reduce a file of `open`. Buffered output is written first, and input that was read ahead is given back."""
    if file in (sys.stdin, sys.stdout, sys.stderr):
        return NotImplemented  # it travels by name, because a task that prints means the stream of its own process
    text = buffer = None
    raw = file
    if type(raw) is io.TextIOWrapper:
        text, raw = raw, raw.buffer
    if type(raw) in _BUFFERED:
        buffer, raw = raw, raw.raw
    if type(raw) is not io.FileIO or (text is not None and buffer is None):
        return NotImplemented
    if file.closed:
        raise OSError(errno.EBADF, f"{file!r} cannot be sent: it is closed")
    options, cookie = (None, 0) if text is None else _settle_text(text)
    if buffer is not None:
        _settle_buffer(buffer)
    name = None if isinstance(raw.name, int) else raw.name
    place = fds.add(raw.fileno(), file)
    built = _build_file, (place, raw.mode, name, buffer and _BUFFERED[type(buffer)], options, cookie)
    mode = getattr(text, "mode", None)
    return built if mode is None else (*built, {"mode": mode})


def _settle_text(text: io.TextIOWrapper) -> tuple[dict[str, Any], int]:
    """Write buffered text, and set the position of the file below to the position of the text.

    Return the arguments for a new `io.TextIOWrapper`, and the position to seek there. The position is 0 if the state of
    the decoder is that of a new decoder, so that no seek is needed.
    """
    cookie = 0
    if text.readable() and text.seekable():
        cookie = text.tell()  # before the flush, which would hide that `next` has disabled `tell`
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
    return options, cookie


def _settle_buffer(buffer: Any) -> None:
    """Write buffered data, and set the position of the open file to the position of this reader."""
    buffer.flush()
    if buffer.readable() and buffer.seekable():
        position = buffer.tell()
        if buffer.raw.tell() != position:
            buffer.seek(0, os.SEEK_END)  # leave the buffer, because a seek inside it does not reach the file
            buffer.seek(position)
            buffer.flush()


def _build_file(
    place: int, mode: str, name: Any, buffer: str | None, text_options: dict[str, Any] | None, cookie: int
) -> Any:
    file: Any = received_fds.take(place, lambda fd: _open_in_place(fd, mode, name))
    if buffer is not None:
        file = getattr(io, buffer)(file)
    if text_options is not None:
        file = io.TextIOWrapper(file, **text_options)
        if cookie:
            file.seek(cookie)
    return file


def _open_in_place(fd: int, mode: str, name: Any) -> io.FileIO:
    """Return a file for a descriptor, and keep the position of the open file.

    The constructor moves a file for appending to its end, and with it all descriptors that share the position.
    """
    is_moved = "a" in mode and stat.S_ISREG(os.fstat(fd).st_mode)
    position = os.lseek(fd, 0, os.SEEK_CUR) if is_moved else 0
    file = io.FileIO(fd, mode) if name is None else io.FileIO(name, mode, opener=lambda _path, _flags: fd)
    if is_moved:
        os.lseek(fd, position, os.SEEK_SET)
    return file


BUILDERS = frozenset({arrive, _build_socket, _build_connection, _build_file})
"""The functions that pickles of such objects call."""
