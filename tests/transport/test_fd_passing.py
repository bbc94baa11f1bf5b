"""Sockets, pipes and `Fd` as arguments, in functions and as results: they arrive, and the sender keeps its own."""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection, Pipe
from typing import Any

import pytest

from pairpool import Fd, Pool
from pairpool.transport.fd_passing import BATCH_LIMIT
from tests.support import descriptor_tasks as work
from tests.support.descriptors import socket_pairs
from tests.support.pools import MakePool


def everything(sock: socket.socket) -> bytes:
    """Return what arrives until all writers have closed."""
    return b"".join(iter(lambda: sock.recv(4096), b""))


# --- sockets ------------------------------------------------------------------------------------------


def test_a_socket_arrives_and_the_sender_keeps_its_own(start_method: str) -> None:
    with Pool(1, start_method=start_method) as pool, ExitStack() as opened:
        ((near, far),) = socket_pairs(opened, 1)  # now: workers have all that was open when they were forked
        pid = pool.apply(work.sign, (far,))
        assert near.recv(100) == str(pid).encode()
        far.sendall(b"and I")
        assert near.recv(100) == b"and I"
        far.close()
        assert near.recv(100) == b""  # nobody else has it any more


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
    ],
)
@pytest.mark.parametrize("timeout", [None, 0.0, 2.5])
def test_family_type_and_timeout_of_a_socket_travel(pool: Pool, family: int, kind: int, timeout: float | None) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(timeout)
        found = pool.apply(work.describe, (sock,))
        assert found == (socket.socket, family, sock.type, sock.proto, timeout)
        assert sock.gettimeout() == timeout


def test_the_default_timeout_of_the_receiver_does_not_count() -> None:
    with Pool(1, initializer=socket.setdefaulttimeout, initargs=(3.0,)) as pool, socket.socket() as sock:
        assert pool.apply(work.describe, (sock,))[-1] is None


def test_a_worker_accepts_from_a_listener(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = pool.apply_async(work.accept_one, (listener, b"welcome"))
        with socket.create_connection(listener.getsockname()) as client:
            assert everything(client) == b"welcome"
        result.get()


def test_a_subclass_keeps_its_state(pool: Pool) -> None:
    near, far = socket.socketpair()
    with near, work.Line(fileno=far.detach()) as line:
        line.greeting = "good day"
        pool.apply(work.greet, (line,))
        assert near.recv(100) == b"good day"


def test_a_subclass_with_its_own_reducer_uses_it(pool: Pool) -> None:
    with work.Named() as sock:
        assert pool.apply(work.use, (sock,)) == "by its own way"


def test_sockets_deep_inside_other_objects(pool: Pool) -> None:
    with ExitStack() as opened:
        (a, one), (b, two), (c, three) = socket_pairs(opened, 3)
        assert pool.apply(work.empty, (work.Bag("bag", {"x": [one, two], "y": [three]}),)) == "bag"
        assert [sock.recv(10) for sock in (a, b, c)] == [b"x", b"x", b"y"]


def test_the_same_socket_twice_in_one_item_is_one(pool: Pool) -> None:
    near, far = socket.socketpair()
    with near, far:
        assert pool.apply(lambda one, two: (one is two, one.close())[0], (far, far))


def test_many_items(make_pool: MakePool) -> None:
    """More than a batch takes, over several workers."""
    pool = make_pool(2)
    with ExitStack() as opened:
        ends = socket_pairs(opened, 3 * BATCH_LIMIT)
        pids = pool.map(work.sign, [far for _near, far in ends])
        assert [near.recv(100) for near, _far in ends] == [str(pid).encode() for pid in pids]
    assert set(pids) <= {process.pid for process in pool._pool}


@pytest.mark.parametrize("chunksize", [1, 7, 100])
def test_many_items_in_chunks(pool: Pool, chunksize: int) -> None:
    with ExitStack() as opened:
        ends = socket_pairs(opened, 100)
        assert len(list(pool.imap_unordered(work.sign, (far for _near, far in ends), chunksize))) == 100
        assert all(near.recv(100) for near, _far in ends)


# --- in functions -------------------------------------------------------------------------------------


def test_every_worker_gets_the_listener_of_a_partial(make_pool: MakePool) -> None:
    pool = make_pool(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = pool.map_async(functools.partial(work.accept_from, listener), [b"one", b"two"], 1)
        words = []
        for _ in range(2):
            with socket.create_connection(listener.getsockname()) as client:
                words.append(everything(client))
        assert sorted(words) == [b"one", b"two"]
        assert len(result.get()) == 2


def test_a_socket_in_a_closure(pool: Pool) -> None:
    near, far = socket.socketpair()
    with near, far:
        assert pool.map(lambda word: far.send(word), [b"a", b"b"]) == [1, 1]
        far.close()
        assert everything(near) == b"ab"  # the function is forgotten, and its socket closed, with the call


# --- pipes and Fd -------------------------------------------------------------------------------------


def test_a_connection_of_multiprocessing(pool: Pool) -> None:
    near, far = Pipe()
    with near, far:
        near.send("asked")
        pool.apply(work.answer, (far,))
        word, _pid, asked = near.recv()
        assert (word, asked) == ("from", "asked")
    assert "multiprocessing.resource_sharer" not in sys.modules
    assert threading.active_count() == 1


def test_an_fd_is_borrowed(pool: Pool) -> None:
    reading, writing = os.pipe()
    fd = Fd(writing)
    pid = pool.apply(work.sign_fd, (fd,))
    assert os.read(reading, 100) == str(pid).encode()
    assert (fd.fileno(), fd.closed) == (writing, False)
    fd.close()
    os.close(writing)  # so that was not closed
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_an_fd_is_handed_over_before_its_item_runs(pool: Pool, reports: Any, gate: Any) -> None:
    reading, writing = os.pipe()
    fd = Fd(writing, close=True)
    result = pool.apply_async(work.hold, (reports.path, gate.path, fd))
    pid = reports.next()
    pool._engine.inquire(lambda: None)
    assert fd.closed
    gate.let()
    assert os.read(reading, 100) == pid.encode()
    assert os.read(reading, 100) == b""
    os.close(reading)
    assert str(result.get()) == pid


def test_an_fd_without_references_is_closed() -> None:
    reading, writing = os.pipe()
    Fd(writing, close=True)
    assert os.read(reading, 1) == b""
    with Fd(reading, close=True) as fd:
        assert repr(fd) == f"<pairpool.Fd {reading}, to be closed>"
        number = fd.detach()
    assert repr(fd) == "<pairpool.Fd, closed>"
    fd.close()
    os.close(number)
    with pytest.raises(ValueError, match="closed, detached, or handed over"):
        fd.fileno()


def test_an_fd_is_closed_in_a_forked_child() -> None:
    reading, writing = os.pipe()
    with Fd(writing, close=True), Pool(1):
        pass
    with Pool(1):  # its zygote and its worker were forked while that was open
        fd = Fd(os.open("/dev/null", os.O_RDONLY), close=True)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if fd.closed else 1)
        assert os.waitpid(pid, 0)[1] == 0
        fd.close()
    assert os.read(reading, 1) == b""
    os.close(reading)


@pytest.mark.parametrize("count", [252, 253, 254, 505, 600])
def test_more_descriptors_than_a_packet_takes(pool: Pool, count: int) -> None:
    numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    assert pool.apply(work.count_distinct, ([Fd(number) for number in numbers],)) == count
    for number in numbers:
        os.close(number)


def test_descriptors_beside_a_large_payload(make_pool: MakePool) -> None:
    """A large array, and more descriptors than go with the packet that names its lane."""
    pool = make_pool(1)
    null = os.open("/dev/null", os.O_RDONLY)
    large = os.urandom(3_000_000)
    open_there = []
    for _ in range(3):
        assert pool.apply(lambda data, fds: (data, work.count_distinct(fds)), (large, [Fd(null)] * 1)) == (large, 1)
        found = pool.apply(lambda data, fds: (data, work.count_distinct(fds)), (large, [Fd(null) for _ in range(300)]))
        assert found == (large, 300)
        open_there.append(pool.apply(work.open_here))
    assert len(set(open_there)) == 1  # a mapped lane has a descriptor
    os.close(null)


def test_initializers_get_an_fd(start_method: str) -> None:
    reading, writing = os.pipe()
    with Pool(1, initializer=work.write_to, initargs=(Fd(writing), b"started"), start_method=start_method) as pool:
        pool.apply(work.open_here)
        assert os.read(reading, 100) == b"started"
    os.close(reading)
    os.close(writing)


# --- results ------------------------------------------------------------------------------------------


def test_a_socket_comes_back(start_method: str) -> None:
    with Pool(1, start_method=start_method) as pool:
        before = pool.apply(work.open_here)
        with pool.apply(work.socket_with, (b"word",)) as sock:
            assert (everything(sock), sock.gettimeout()) == (b"word", 7.5)
        for one in pool.imap(work.socket_with, [b"a", b"b", b"c"]):
            with one:
                assert len(everything(one)) == 1
        assert pool.apply(work.open_here) == before


def test_other_things_come_back(pool: Pool) -> None:
    bag = pool.apply(work.bag_with, (b"word",))
    for sock in bag.sockets["one"]:
        with sock:
            assert everything(sock) == b"word"
    with pool.apply(work.file_with, ("zeile",)) as file:
        assert file.read() == "zeile"
    with pool.apply(work.pipe_with, ({"a": 1},)) as connection:
        assert type(connection) is Connection
        assert connection.recv() == {"a": 1}
    with pool.apply(work.fd_with, (b"word",)) as fd:
        assert os.read(fd.fileno(), 100) == b"word"
    with pool.apply(lambda: work.lambda_with_socket(b"word"))() as sock:
        assert everything(sock) == b"word"


@pytest.mark.parametrize("count", [1, 254, 600])
def test_many_come_back(pool: Pool, count: int) -> None:
    fds = pool.apply(work.fds_with, (count,))
    assert [os.read(fd.fileno(), 10) for fd in fds] == [str(number).encode() for number in range(count)]
    del fds


def test_a_result_that_fails_to_be_pickled_closes_what_was_before_it(pool: Pool) -> None:
    with pytest.raises(Exception, match="not this one"):
        pool.apply(work.socket_and, (work.Refuses,))


def test_a_result_that_fails_to_be_unpickled_closes_what_was_before_it(pool: Pool) -> None:
    with pytest.raises(ValueError, match="not here"):
        pool.apply(work.socket_and, (work.RefusesToLoad,))
