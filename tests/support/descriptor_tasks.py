"""Tasks that take, use and return sockets, files, pipes and bare descriptors."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, NoReturn

from pairpool import Fd
from tests.support import tasks

__all__ = ["Bag", "Line", "Named", "Refuses"]


@dataclass
class Bag:
    """A socket among other things."""

    name: str
    sockets: dict[str, list[socket.socket]]


class Line(socket.socket):
    """A socket with a state of its own."""

    greeting = "hello"

    def greet(self) -> None:
        self.sendall(self.greeting.encode())


class Named(socket.socket):
    """A socket that travels in its own way."""

    def __reduce__(self) -> Any:
        return str, ("by its own way",)


class Refuses:
    """Cannot be pickled, after what stands before it was."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("not this one")


class RefusesToLoad:
    """Cannot be unpickled, after what stands before it was."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise ValueError("not here")


# --- what goes out ------------------------------------------------------------------------------------


def open_here(_ignored: Any = None) -> int:
    """How many descriptors this worker has open."""
    return len(os.listdir("/proc/self/fd"))


def limit_descriptors(count: int) -> None:
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def sign(sock: socket.socket) -> int:
    """Write this worker's pid, and close."""
    with sock:
        sock.sendall(str(os.getpid()).encode())
    return os.getpid()


def describe(sock: socket.socket) -> tuple[type, int, int, int, float | None]:
    with sock:
        return type(sock), sock.family, sock.type, sock.proto, sock.gettimeout()


def accept_one(listener: socket.socket, word: bytes) -> None:
    with listener:
        connection, _address = listener.accept()
        with connection:
            connection.sendall(word)


def accept_from(listener: socket.socket, word: bytes) -> int:
    """The same, of a listener that the function has."""
    connection, _address = listener.accept()
    with connection:
        connection.sendall(word)
    return os.getpid()


def empty(bag: Bag) -> str:
    for name, sockets in bag.sockets.items():
        for sock in sockets:
            with sock:
                sock.sendall(name.encode())
    return bag.name


def greet(line: Line) -> None:
    with line:
        line.greet()


def sign_fd(fd: Fd) -> int:
    with fd:
        os.write(fd.fileno(), str(os.getpid()).encode())
    return os.getpid()


def write_to(fd: Fd, data: bytes) -> None:
    os.write(fd.fileno(), data)


def count_distinct(fds: list[Fd]) -> int:
    try:
        return len({fd.fileno() for fd in fds})
    finally:
        for fd in fds:
            fd.close()


def ignore(*_things: object) -> None:
    """Leave it to the collector."""


def read_rest(file: IO[Any]) -> Any:
    with file:
        return file.read()


def append(file: IO[Any], data: Any) -> tuple[Any, ...]:
    with file:
        file.write(data)
        return type(file), file.name, file.mode, getattr(file, "encoding", None), getattr(file, "errors", None)


def answer(connection: Connection) -> None:
    with connection:
        connection.send(("from", os.getpid(), connection.recv()))


def hold(reports: str, gate: str, thing: Any) -> Any:
    """Say that it runs, wait, and return what stands there."""
    tasks.tell(reports, str(os.getpid()))
    tasks.wait_for(gate)
    return use(thing)


def use(thing: Any) -> Any:
    if isinstance(thing, socket.socket):
        return sign(thing)
    if isinstance(thing, Fd):
        return sign_fd(thing)
    return thing


def die_of(thing: Any) -> None:
    tasks.kill_self()


# --- what comes back ----------------------------------------------------------------------------------


def socket_with(word: bytes) -> socket.socket:
    """A socket with something to read."""
    here, there = socket.socketpair()
    with here:
        here.sendall(word)
    there.settimeout(7.5)
    return there


def hold_for_socket(reports: str, gate: str, word: bytes) -> socket.socket:
    """`socket_with`, once the gate opens."""
    tasks.tell_and_hold(reports, gate, word)
    return socket_with(word)


def bag_with(word: bytes) -> Bag:
    return Bag("bag", {"one": [socket_with(word), socket_with(word)]})


def file_with(text: str) -> IO[str]:
    file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # it is returned open
    file.write(text)
    file.seek(0)
    return file


def pipe_with(word: Any) -> Connection:
    here, there = Pipe(duplex=False)
    there.send(word)
    there.close()
    return here


def fd_with(word: bytes) -> Fd:
    reading, writing = os.pipe()
    os.write(writing, word)
    os.close(writing)
    return Fd(reading, close=True)


def fds_with(count: int) -> list[Fd]:
    return [fd_with(str(number).encode()) for number in range(count)]


def socket_and(wrong: Callable[[], Any]) -> tuple[socket.socket, Any]:
    return socket_with(b"lost"), wrong()


def closed_socket(_ignored: Any) -> socket.socket:
    with socket.socket() as sock:
        return sock


def lambda_with_socket(word: bytes) -> Callable[[], socket.socket]:
    sock = socket_with(word)
    return lambda: sock
