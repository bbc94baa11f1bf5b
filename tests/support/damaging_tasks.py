"""Tasks that damage the ways of their own output: the socket of log records, and the standard streams."""

from __future__ import annotations

import array
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any

from pairpool.transport.log_records import RecordSender

__all__ = ["DAMAGES", "LOG_DAMAGES", "damage", "print_and_log"]


def _sock() -> socket.socket:
    return next(one._sock for one in logging.getLogger().handlers if isinstance(one, RecordSender))


class Runs:
    """A pickle that runs code in the process that loads it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return sys.exit, ("a pickle has run code",)


def _send_descriptors() -> None:
    reading, writing = os.pipe()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading, writing] * 20))
    _sock().sendmsg([b"with descriptors"], [rights])
    os.close(reading)
    os.close(writing)


def _send_huge() -> None:
    sock = _sock()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sock.send(b'{"msg":"' + b"x" * 300_000)


def _handle(**fields: object) -> None:
    logging.getLogger().handle(logging.makeLogRecord({"name": "tasks", "msg": "odd", "levelno": 40, **fields}))


def _detach_streams() -> None:
    stdout: Any = sys.stdout
    stdout.detach()
    sys.stderr.close()


def _close_streams() -> None:
    os.close(1)
    os.close(2)


LOG_DAMAGES: dict[str, Callable[[], object]] = {
    "garbage": lambda: _sock().send(b"not a record"),
    "a list": lambda: _sock().send(b"[1, 2, 3]"),
    "an unknown tag": lambda: _sock().send(b'{"name":"tasks","msg":"m","levelno":40,"x":{"tag":1}}'),
    "nested lists": lambda: _sock().send(b"[" * 100_000),
    "a pickle that runs code": lambda: _sock().send(pickle.dumps({"msg": Runs()})),
    "no level": lambda: _sock().send(b'{"name":"tasks","msg":"m"}'),
    "an empty packet": lambda: _sock().send(b""),
    "a huge packet": _send_huge,
    "descriptors": _send_descriptors,
    "a number as name": lambda: _handle(name=5),
    "a long name": lambda: _handle(name="a." * 10_000),
}
"""Each sends one packet that is not a record that logging can handle."""

DAMAGES: dict[str, Callable[[], object]] = {
    **LOG_DAMAGES,
    "shutdown": lambda: _sock().shutdown(socket.SHUT_RDWR),
    "shutdown of one direction": lambda: _sock().shutdown(socket.SHUT_WR),
    "the socket closed by its number": lambda: os.close(_sock().fileno()),
    "streams closed by their numbers": _close_streams,
    "streams closed": _detach_streams,
    "a line without an end": lambda: os.write(2, b"x" * 3_000_000),
}


def damage(kind: str) -> int:
    DAMAGES[kind]()
    return os.getpid()


def print_and_log(x: int) -> int:
    print("line", x)
    logging.getLogger("tasks").warning("record %d", x)
    return x * x
