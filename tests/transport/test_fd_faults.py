"""Descriptors when something fails halfway: none is lost, none is left open, and each item still ends its own way."""

from __future__ import annotations

import errno
import functools
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pairpool import Fd, Pool, WorkerDied
from pairpool.errors import CancelledError
from tests.support import descriptor_tasks as work
from tests.support.descriptor_tasks import open_here
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """This process may open so many more files and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    holes = [os.dup(0)]  # lower numbers that are free would be used first
    while holes[-1] < highest:
        holes.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in holes:
            os.close(fd)


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        return ""  # the one that lists them


def _is_pipe(name: str, before: set[str]) -> bool:
    return _target(name).startswith("pipe:") and _target(name) not in before


class Line:
    """A pipe whose writing end is given away; what comes out tells who had it, and when nobody has it any more."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        self.fd = Fd(writing, close=True)

    def read(self) -> bytes:
        """All that is written, once nobody can write any more."""
        with open(self._reading, "rb") as file:
            return file.read()


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


# --- pickles that fail halfway ------------------------------------------------------------------------


def test_an_item_that_cannot_be_pickled_after_some_were_copied(pool: Pool) -> None:
    null = Fd(os.open("/dev/null", os.O_RDONLY), close=True)
    before = open_here()
    for wrong in ([Fd(null.fileno())] * 1, [Fd(null.fileno()) for _ in range(300)]):
        with pytest.raises(ValueError, match="not this one"):
            pool.apply(work.ignore, (*wrong, work.Refuses()))
        assert open_here() == before
    found = pool.map(work.use, [Fd(null.fileno()), [Fd(null.fileno()), work.Refuses()], 3], return_exceptions=True)
    assert (type(found[1]), found[2]) == (ValueError, 3)
    assert open_here() == before
    null.close()


def test_an_item_that_goes_by_value_after_some_were_copied(pool: Pool) -> None:
    """The first try, by name, is thrown away with its copies."""
    before = pool.apply(work.open_here), open_here()
    line = Line()
    assert pool.apply(lambda fd, value: work.sign_fd(fd) and value(), (line.fd, lambda: 7)) == 7
    assert line.read() == str(pool._pool[0].pid).encode()
    assert (pool.apply(work.open_here), open_here()) == before


def test_an_item_that_cannot_be_unpickled_closes_what_was_made(pool: Pool) -> None:
    before = pool.apply(work.open_here)
    near, far = socket.socketpair()
    for _ in range(3):
        with pytest.raises(ValueError, match="not here"):
            pool.apply(work.ignore, (far, [far, work.RefusesToLoad()]))
    found = pool.map(work.use, [far, [far, work.RefusesToLoad()], 5], 3, return_exceptions=True)
    assert (type(found[1]), found[2]) == (ValueError, 5)
    assert pool.apply(work.open_here) == before
    far.close()
    assert near.recv(100)
    assert near.recv(100) == b""
    near.close()


def test_a_function_that_cannot_be_unpickled_closes_what_was_made(pool: Pool) -> None:
    before = pool.apply(work.open_here)
    null = Fd(os.open("/dev/null", os.O_RDONLY), close=True)
    with pytest.raises(ValueError, match="not here"):
        pool.map(functools.partial(work.ignore, Fd(null.fileno()), work.RefusesToLoad()), range(3))
    null.close()
    assert pool.apply(work.open_here) == before


# --- deaths -------------------------------------------------------------------------------------------


def test_a_death_cuts_only_the_connection_of_that_worker(start_method: str, reports: Reports, gate: Gate) -> None:
    """The worker has one item, and the next ones lie unread in its socket: they are served by its successor."""
    with Pool(1, start_method=start_method) as pool:
        lines = [Line() for _ in range(4)]
        before = open_here() - len(lines)
        task = functools.partial(work.hold, reports.path, gate.path)
        results = pool.imap(task, (line.fd for line in lines), return_exceptions=True)
        first = reports.next()
        os.kill(int(first), 9)
        gate.let(4)
        outcomes = list(results)
        assert isinstance(outcomes[0], WorkerDied)
        second = {str(pid).encode() for pid in outcomes[1:]}
        assert len(second) == 1
        assert [line.read() for line in lines] == [b"", *second, *second, *second]
        # A spare zygote may have come meanwhile, with two descriptors of its own.
        assert open_here() - (before - len(lines)) in ((0,) if start_method == "direct" else (0, 2))


def test_sockets_are_sent_again_when_a_worker_dies(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(2)
    ends = [socket.socketpair() for _ in range(12)]
    task = functools.partial(work.hold, reports.path, gate.path)
    results = pool.map_async(task, [far for _near, far in ends], 1, return_exceptions=True)
    os.kill(int(reports.next()), 9)
    gate.let(12)
    outcomes = results.get()
    assert sum(isinstance(outcome, WorkerDied) for outcome in outcomes) == 1
    for (near, far), outcome in zip(ends, outcomes, strict=True):
        far.close()
        with near:
            assert near.recv(100) == (b"" if isinstance(outcome, WorkerDied) else str(outcome).encode())


def test_an_fd_stays_open_until_its_item_has_ended_if_it_can_be_retried(make_pool: MakePool) -> None:
    pool = make_pool(1)
    line = Line()
    with pytest.raises(WorkerDied, match="2 times"):
        pool.apply(work.die_of, (line.fd,), retries=1)
    assert line.fd.closed
    assert line.read() == b""
    again = Line()
    assert pool.apply(work.sign_fd, (again.fd,), retries=1) == int(again.read())


def test_many_deaths(make_pool: MakePool) -> None:
    pool = make_pool(2)
    before = set(map(_target, os.listdir("/proc/self/fd")))
    lines = [Line() for _ in range(60)]
    outcomes = pool.map(
        lambda pair: work.die_of(pair) if pair[0] % 5 == 0 else work.sign_fd(pair[1]),
        [(place, line.fd) for place, line in enumerate(lines)],
        return_exceptions=True,
    )
    for place, (line, outcome) in enumerate(zip(lines, outcomes, strict=True)):
        assert isinstance(outcome, WorkerDied) == (place % 5 == 0)
        assert line.read() == (b"" if place % 5 == 0 else str(outcome).encode())
    assert not [name for name in os.listdir("/proc/self/fd") if _is_pipe(name, before)]


# --- what nobody waits for ----------------------------------------------------------------------------


def test_a_cancelled_call_closes_its_descriptors(pool: Pool, reports: Reports, gate: Gate) -> None:
    held = pool.apply_async(work.hold, (reports.path, gate.path, 1))
    reports.next()
    queued, line = [], []
    for _ in range(3):
        line.append(Line())
        queued.append(pool.apply_async(work.use, (line[-1].fd,)))
        del line[-1].fd
    for result in queued:
        assert result.cancel()
    assert [one.read() for one in line] == [b""] * 3
    gate.let()
    assert held.get() == 1


def test_a_cancelled_stream_closes_its_descriptors(pool: Pool, reports: Reports, gate: Gate) -> None:
    lines = [Line() for _ in range(5)]
    fds = [line.__dict__.pop("fd") for line in lines]
    results = pool.imap(functools.partial(work.hold, reports.path, gate.path), iter(fds))
    del fds
    pid = reports.next()
    assert results.cancel()
    gate.let()
    assert pool.apply(work.use, (1,)) == 1
    del results
    assert [line.read() for line in lines] == [pid.encode(), b"", b"", b"", b""]


def test_a_terminated_pool_closes_all_descriptors(reports: Reports, gate: Gate) -> None:
    pool = Pool(1)
    lines = [Line() for _ in range(5)]
    fds = [line.__dict__.pop("fd") for line in lines]
    result = pool.map_async(functools.partial(work.hold, reports.path, gate.path), fds, 1)
    del fds
    reports.next()
    pool.terminate()
    with pytest.raises(CancelledError):
        result.get()
    assert [line.read() for line in lines] == [b""] * 5


def test_results_that_are_not_read_are_closed(pool: Pool, reports: Reports, gate: Gate) -> None:
    """The call is cancelled while it runs, and ends all the same."""
    before = open_here()
    task = functools.partial(work.hold_for_socket, reports.path, gate.path)
    for start in (pool.imap, pool.imap_unordered, pool.map_async):
        results = start(task, [b"word"])
        reports.next()
        assert results.cancel()
        gate.let()
    assert pool.apply(work.use, (1,)) == 1
    assert open_here() == before


# --- full tables --------------------------------------------------------------------------------------


def test_a_worker_without_room_for_a_batch(make_pool: MakePool) -> None:
    """The items of a batch that is too much for it are tried alone; one that is too much by itself fails."""
    pool = make_pool(1, initializer=work.limit_descriptors, initargs=(30,))
    null = os.open("/dev/null", os.O_RDONLY)
    items = [[Fd(null)] for _ in range(40)]
    assert pool.map(work.count_distinct, items, 40) == [1] * 40
    for count in (40, 300, 600):
        found: list[Any] = pool.map(
            work.count_distinct, [[Fd(null)], [Fd(null) for _ in range(count)], [Fd(null)]], 1, return_exceptions=True
        )
        assert (found[0], found[2]) == (1, 1)
        assert isinstance(found[1], OSError)
        assert found[1].errno == errno.EMFILE
        assert "RLIMIT_NOFILE is 30" in str(found[1])
    with pytest.raises(OSError, match="RLIMIT_NOFILE is 30"):
        pool.map(functools.partial(work.ignore, [Fd(null) for _ in range(40)]), [1])
    os.close(null)


@pytest.mark.parametrize("count", [20, 300])
def test_a_master_without_room_for_a_result(make_pool: MakePool, count: int) -> None:
    pool = make_pool(1)
    before = open_here()
    assert len(pool.apply(work.fds_with, (1,))) == 1
    with room_for(10):
        with pytest.raises(OSError, match="the result of the task could not be received") as caught:
            pool.apply(work.fds_with, (count,))
        assert caught.value.errno == errno.EMFILE
        assert len(pool.apply(work.fds_with, (5,))) == 5
    assert len(pool.apply(work.fds_with, (count,))) == count
    assert open_here() == before


def test_a_master_without_room_for_recalled_descriptors(pool: Pool, reports: Reports, gate: Gate) -> None:
    """The packets that are taken back lose their descriptors, but none is lost itself: a recall needs no room."""
    near, far = socket.socketpair()
    held = pool.apply_async(work.hold, (reports.path, gate.path, 1))
    reports.next()
    results = pool.imap(work.sign, [far], 1)
    others = pool.imap(work.use, [b"x" * 300_000, b"small"], 1)
    pool._engine.inquire(lambda: None)
    assert len(pool._engine.workers.members[0].held) > 2
    with room_for(0):
        assert results.cancel()
    gate.let()
    assert held.get() == 1
    assert [len(one) for one in others] == [300_000, 5]
    far.close()
    assert near.recv(1) == b""
    near.close()
