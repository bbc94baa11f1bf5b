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
    """An object that contains sockets."""

    name: str
    sockets: dict[str, list[socket.socket]]


class Line(socket.socket):
    """A socket of a subclass with its own attributes."""

    greeting = "hello"

    def greet(self) -> None:
        self.sendall(self.greeting.encode())


class Named(socket.socket):
    """A socket of a subclass that defines its own pickling."""

    def __reduce__(self) -> Any:
        return str, ("by its own way",)


class Refuses:
    """An object that raises when it is pickled, after the objects before it were pickled."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("not this one")


class RefusesToLoad:
    """An object that raises when it is unpickled, after the objects before it were unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise ValueError("not here")


# --- arguments ----------------------------------------------------------------------------------------


def open_here(_ignored: Any = None) -> int:
    """Return the number of descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def limit_descriptors(count: int) -> None:
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def sign(sock: socket.socket) -> int:
    """Write this worker's pid to the socket, and close it."""
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
    """Accept one connection of a listener that was pickled with the function, and leave the listener open."""
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
    """Leave the closing to the garbage collector."""


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
    """Report the pid, wait for the gate, and use the argument."""
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


# --- results ------------------------------------------------------------------------------------------


def socket_with(word: bytes) -> socket.socket:
    """Return a socket from which `word` can be read."""
    here, there = socket.socketpair()
    with here:
        here.sendall(word)
    there.settimeout(7.5)
    return there


def hold_for_socket(reports: str, gate: str, word: bytes) -> socket.socket:
    """Report the start, wait for the gate, and return `socket_with(word)`."""
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
