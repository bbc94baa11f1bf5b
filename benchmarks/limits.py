"""Measure the time that the machine needs for the least work of a pool, in the same rounds as the cases."""

from __future__ import annotations

import os
import pickle
import select
import socket
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from benchmarks.model import Limit, Values
from benchmarks.tasks import noop

MIB = 2**20
ITEMS = 300_000
"""Items of the lists that are pickled, and of the loop."""

ROUNDS = 5000
PACKETS = 50_000
PACKET = b"x" * 64


def _with_child(
    child: Callable[[socket.socket], None], parent: Callable[[socket.socket], float], cores: Sequence[int] = ()
) -> float:
    """Run both ends of a pair, with the child's end in its own process. Return the result of the parent's end.

    With `cores`, the parent stays on the first core and the child on the last one.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if cores:
        os.sched_setaffinity(0, cores[:1])
    pid = os.fork()
    if pid == 0:
        if cores:
            os.sched_setaffinity(0, cores[-1:])
        ours.close()
        child(theirs)
        os._exit(0)
    theirs.close()
    found = parent(ours)
    ours.close()
    os.waitpid(pid, 0)
    return found


def _echo(end: socket.socket) -> None:
    while packet := end.recv(4096):
        end.send(packet)


def _answer(end: socket.socket) -> None:
    """Do the least work of a worker: load a task, save a result."""
    while packet := end.recv(4096):
        number, argument = pickle.loads(packet)
        end.send(pickle.dumps((number, noop(argument))))


def _swallow(end: socket.socket) -> None:
    while end.recv(4096):
        pass


def ping_pong_bare() -> Values:
    """Measure microseconds for 64 bytes there and back."""

    def parent(end: socket.socket) -> float:
        start = perf_counter()
        for _ in range(ROUNDS):
            end.send(PACKET)
            end.recv(4096)
        return (perf_counter() - start) / ROUNDS * 1e6

    return {"value": _with_child(_echo, parent)}


def ping_pong(cores: Sequence[int] = ()) -> Values:
    """Measure the same with a pickled task and result, and a master that waits in epoll."""

    def parent(end: socket.socket) -> float:
        epoll = select.epoll()
        epoll.register(end.fileno(), select.EPOLLIN)
        start = perf_counter()
        for number in range(ROUNDS):
            end.send(pickle.dumps((number, number)))
            epoll.poll()
            pickle.loads(end.recv(4096))
        found = (perf_counter() - start) / ROUNDS * 1e6
        epoll.close()
        return found

    return {"value": _with_child(_answer, parent, cores)}


def ping_pong_one_core() -> Values:
    return ping_pong(sorted(os.sched_getaffinity(0))[:1])


def ping_pong_two_cores() -> Values:
    return ping_pong(sorted(os.sched_getaffinity(0)))


def packets() -> Values:
    """Measure microseconds per packet of 64 bytes in one direction, as fast as the other end reads."""

    def parent(end: socket.socket) -> float:
        start = perf_counter()
        for _ in range(PACKETS):
            end.send(PACKET)
        return (perf_counter() - start) / PACKETS * 1e6

    return {"value": _with_child(_swallow, parent)}


def pickle_lists() -> Values:
    """Measure microseconds per item to pickle and unpickle arguments and results of a map, in one process."""
    arguments = list(range(ITEMS))
    start = perf_counter()
    received = pickle.loads(pickle.dumps(arguments, pickle.HIGHEST_PROTOCOL))
    pickle.loads(pickle.dumps(received, pickle.HIGHEST_PROTOCOL))
    return {"value": (perf_counter() - start) / ITEMS * 1e6}


def loop() -> Values:
    """Measure microseconds per task that is called in this process."""
    items = list(range(ITEMS))
    start = perf_counter()
    found = [noop(item) for item in items]
    seconds = perf_counter() - start
    assert len(found) == ITEMS
    return {"value": seconds / ITEMS * 1e6}


def _mean_ms(action: Callable[[], object], times: int = 8) -> Values:
    action()
    start = perf_counter()
    for _ in range(times):
        action()
    return {"value": (perf_counter() - start) / times * 1e3}


def memcpy_warm() -> Values:
    """Measure milliseconds to copy 64 MiB into an array whose pages are in memory."""
    source = np.full(64 * MIB, 7, dtype=np.uint8)
    target = np.empty_like(source)
    return _mean_ms(lambda: np.copyto(target, source))


def memcpy_fresh() -> Values:
    """Measure milliseconds to copy 64 MiB into a new array, whose pages the kernel makes and clears first."""
    source = np.full(64 * MIB, 7, dtype=np.uint8)
    return _mean_ms(source.copy)


def memfd_write() -> Values:
    """Measure milliseconds to write 256 MiB into a new file in memory, once."""
    source = memoryview(b"\7" * (256 * MIB))
    fd = os.memfd_create("limit")
    start = perf_counter()
    written = 0
    while written < len(source):
        written += os.write(fd, source[written:])
    seconds = perf_counter() - start
    os.close(fd)
    return {"value": seconds * 1e3}


LIMITS: dict[str, Limit] = {
    limit.name: limit
    for limit in (
        Limit("ping-pong-bare", "64 bytes there and back over a SEQPACKET pair", "µs", ping_pong_bare),
        Limit("ping-pong", "a pickled call and result over a SEQPACKET pair, epoll in the master", "µs", ping_pong),
        Limit("ping-pong-one-core", "the same, both ends kept on one core", "µs", ping_pong_one_core),
        Limit("ping-pong-two-cores", "the same, each end kept on a core of its own", "µs", ping_pong_two_cores),
        Limit("packets", "64 bytes one way over a SEQPACKET pair", "µs", packets),
        Limit("pickle-lists", "300,000 ints pickled and unpickled, twice", "µs per item", pickle_lists),
        Limit("loop", "[f(x) for x in xs] in one process, 300,000 no-ops", "µs per item", loop),
        Limit("memcpy-warm", "np.copyto of 64 MiB into a warm array", "ms", memcpy_warm),
        Limit("memcpy-fresh", "array.copy() of 64 MiB, fresh pages", "ms", memcpy_fresh),
        Limit("memfd-write", "one write of 256 MiB into a fresh memfd", "ms", memfd_write),
    )
}
