"""Tasks that misuse their worker: its channel, its slot of the scoreboard, its process."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from pairpool.scoreboard.board import Word
from pairpool.transport.protocol import (
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    InitFailedPacket,
    Packet,
    ReadyPacket,
    ReceivedPacket,
    ResultPacket,
    StartPacket,
    encode,
)
from pairpool.transport.stamps import Stamps
from pairpool.worker.worker import Worker

__all__ = [
    "DeletedWithFork",
    "ForksWhenLoaded",
    "replace_stdout",
    "BREACHES",
    "breach",
    "close_channel_twice",
    "close_payload_buffer_twice",
    "forge_and_sleep",
    "fork_and_return",
    "fork_natively_and_raise",
    "large_result",
    "renew_start_for_ever",
    "scribble_limit",
    "square_slowly",
    "steal_packets",
    "worker_of_this_task",
]


def worker_of_this_task() -> Worker:
    """Return the worker object, from the frames below the task."""
    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("self"), Worker):
        assert frame.f_back is not None
        frame = frame.f_back
    found: Worker = frame.f_locals["self"]
    return found


def square_slowly(x: int) -> int:
    time.sleep(0.002)
    return x * x


# --- packets --------------------------------------------------------------------------------------------


def _words() -> Any:
    return worker_of_this_task()._words


def _report(payload: bytes = b"", fds: tuple[int, ...] = (), **fields: int) -> None:
    """Send a report about the batch that runs, with these fields changed."""
    words = _words()
    usual = {"flags": 0, "format": 0, "batch": words[Word.BATCH], "first": words[Word.FIRST], "item_count": 1}
    packet = ResultPacket(**{**usual, "size": len(payload), **fields})
    _send(packet, payload, fds)


def _send(packet: Packet, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
    worker_of_this_task()._channel.send_packet([encode(packet), payload], fds)


def _send_all(*packets: Packet) -> None:
    for packet in packets:
        _send(packet)


def _send_bytes(content: bytes) -> None:
    worker_of_this_task()._channel.sock.send(content)


def _values(*values: Any) -> bytes:
    return pickle.dumps(list(values))


def _failures(*entries: Any) -> None:
    content = pickle.dumps(list(entries))
    _report(content, flags=Flag.FAILURES, failures_size=len(content))


def _many_descriptors() -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(252)]
    for _ in range(40):
        _send(DescriptorsPacket(0, _words()[Word.BATCH], 252), b"", tuple(fds))


BREACHES: dict[str, Callable[[], object]] = {
    "random bytes": lambda: _send_bytes(b"\xff" * 200),
    "one byte": lambda: _send_bytes(b"\x0d"),
    "nothing": lambda: _send_bytes(b""),
    "a packet of the master": lambda: _send(StartPacket()),
    "a batch that nobody holds": lambda: _report(_values(1), batch=1 << 40),
    "no batch": lambda: _report(_values(1), batch=0),
    "an item before the batch": lambda: _report(_values(1), first=1 << 40),
    "more items than the batch has": lambda: _report(_values(*range(9)), item_count=9),
    "very many items": lambda: _report(item_count=(1 << 32) - 1),
    "no item": lambda: _report(item_count=0),
    "more values than items": lambda: _report(_values(1, 2)),
    "no list of values": lambda: _report(pickle.dumps(5)),
    "a table that is too long": lambda: _report(b"\xff" * 64, format=1),
    "a table that is cut off": lambda: _report(b"\x01", format=1),
    "a partial report of everything": lambda: _report(_values(1), flags=Flag.PARTIAL),
    "failures that are no pickle": lambda: _report(b"xyz", flags=Flag.FAILURES, failures_size=3),
    "failures that are no tuples": lambda: _failures(1, 2, 3),
    "a failure of another item": lambda: _failures((7, 0, None, "E", "e", "", None)),
    "a failure with odd fields": lambda: _failures((0, 0, "x", 1, 2, 3, 4)),
    "times out of order": lambda: _report(Stamps(9, [5], 1).pack() + _values(1), flags=Flag.STAMPED),
    "times of the future": lambda: _report(Stamps(1, [2], 1 << 63).pack() + _values(1), flags=Flag.STAMPED),
    "a descriptor that is not announced": lambda: _report(_values(1), (0,)),
    "descriptors that are not there": lambda: _report(_values(1), descriptors=3),
    "shared memory that is not there": lambda: _report(b"\0" * 16, flags=Flag.IN_SHM, size=1 << 40),
    "descriptors of another batch": lambda: _send(DescriptorsPacket(0, 1 << 40, 252), b"", (0,) * 252),
    "descriptors of a function": lambda: _send(DescriptorsPacket(1, 0, 252), b"", (0,) * 252),
    "a confirmation that is not due": lambda: _send_all(*[ReceivedPacket(_words()[Word.BATCH])] * 2),
    "the end of the initializer": lambda: _send_all(*[ReadyPacket()] * 3),
    "a failed initializer": lambda: _send_all(ReadyPacket(), InitFailedPacket()),
    "shutdown of both directions": lambda: worker_of_this_task()._channel.sock.shutdown(socket.SHUT_RDWR),
    "shutdown of sending": lambda: worker_of_this_task()._channel.sock.shutdown(socket.SHUT_WR),
}
"""Deeds after which the worker cannot be trusted, by name."""

HARMLESS: dict[str, Callable[[], object]] = {
    "descriptors to discard": lambda: _send(DiscardDescriptorsPacket(0, 7)),
    "very many descriptors": _many_descriptors,
    "shutdown of receiving": lambda: worker_of_this_task()._channel.sock.shutdown(socket.SHUT_RD),
}
"""Deeds that cost the item nothing, or its worker."""


def breach(name: str) -> str:
    """Do the deed, and wait: nothing but a kill ends the task soon."""
    (BREACHES | HARMLESS)[name]()
    if name in BREACHES:
        time.sleep(60)
    return "done"


# --- the process and its memory -------------------------------------------------------------------------


def fork_and_return(x: int, how: str) -> int:
    """Fork. The child returns or raises, as a task does that has forgotten `os._exit`."""
    child = os.fork()
    if child == 0:
        if how == "raise":
            raise RuntimeError("escaped in the child")
        if how == "exit":
            sys.exit(7)
        return -1
    assert os.waitpid(child, 0)[1] == (7 << 8 if how == "exit" else 1 << 8)
    return x * x


def fork_natively_and_raise(x: int) -> int:
    """Fork by the C library, so that Python's hooks do not run in the child."""
    child = ctypes.CDLL(None).fork()
    if child == 0:
        raise RuntimeError("escaped in the child")
    os.waitpid(child, 0)
    return x * x


def close_channel_twice(port: int) -> str:
    """Close the channel's descriptor, and let a connection take its number. A port of 0: only close it."""
    number = worker_of_this_task()._channel.fileno()
    os.close(number)
    if port:
        connection = socket.create_connection(("127.0.0.1", port))
        assert connection.detach() == number
    return "the secret result"


def close_payload_buffer_twice(path: str) -> bytes:
    """Close the memfd of the last large result, let a file take its number, and return another large result."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and "pairpool-payload" in _target_of(number):
            os.close(number)
            assert os.open(path, os.O_RDWR) == number
    return large_result()


def _target_of(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return ""


def large_result() -> bytes:
    return b"\x07" * (1 << 20)


def steal_packets(x: int) -> int:
    """Fork a child that reads the packets of the worker until it is killed with the worker."""
    number = worker_of_this_task()._channel.fileno()
    if ctypes.CDLL(None).fork() == 0:
        stolen = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=number)
        while True:
            try:
                stolen.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
    return x


def forge_and_sleep(word: str, value: int) -> None:
    """Store a value in a word of the worker's slot, and sleep."""
    _words()[getattr(Word, word)] = value
    time.sleep(60)


def renew_start_for_ever() -> None:
    """Store a new start of this item again and again."""
    words = _words()
    while True:
        words[Word.STARTED] = time.monotonic_ns()


def scribble_limit(x: int) -> int:
    """Tell the worker to begin no item any more."""
    _words()[Word.LIMIT] = 0
    return x * x


class DeletedWithFork:
    """An item whose finalizer forks in a worker. The child returns."""

    def __init__(self) -> None:
        self._masters = [os.getpid()]

    def __del__(self) -> None:
        if os.getpid() not in self._masters:
            self._masters.append(os.getpid())
            os.fork()


def replace_stdout(x: int) -> int:
    """Put an object that is no stream in the place of `sys.stdout`."""
    sys.stdout = object()
    return x


class ForksWhenLoaded:
    """An item that forks while it is unpickled, and waits for the end of the child."""

    def __reduce__(self) -> Any:
        return _fork_and_wait, ()


def _fork_and_wait() -> int:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return 5
