"""Descriptors when something fails halfway: none is lost, none is left open, and each item still ends its own way."""

from __future__ import annotations

import errno
import functools
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pairpool import Fd, Pool, WorkerDied
from pairpool.errors import CancelledError
from pairpool.wire.channel import Kind
from tests import descriptor_tasks as work
from tests import tasks
from tests.support import ROOT, Gate, Reports, environment, write_script

MakePool = Callable[..., Pool]


def open_here() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """This process may open so many more files and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes = []
    while True:  # numbers that are free below the highest would be used first
        fd = os.dup(0)
        holes.append(fd)
        if fd > max(map(int, os.listdir("/proc/self/fd"))) - 1:
            break
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in holes:
            os.close(fd)


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


def test_a_worker_dies_and_only_its_own_line_is_cut(start_method: str, reports: Reports, gate: Gate) -> None:
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
        assert open_here() == before - len(lines)


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


def test_an_fd_stays_until_its_item_has_ended_if_that_may_be_retried(make_pool: MakePool) -> None:
    pool = make_pool(1)
    line = Line()
    once = functools.partial(tasks.tell, "/dev/null")
    del once
    with pytest.raises(WorkerDied, match="2 times"):
        pool.apply(work.die_of, (line.fd,), retries=1)
    assert line.fd.closed
    assert line.read() == b""
    again = Line()
    assert pool.apply(work.sign_fd, (again.fd,), retries=1) == int(again.read())


def test_many_deaths(make_pool: MakePool) -> None:
    pool = make_pool(2)
    lines = [Line() for _ in range(60)]
    before = open_here() - 2 * len(lines)
    outcomes = pool.map(
        lambda pair: work.die_of(pair) if pair[0] % 5 == 0 else work.sign_fd(pair[1]),
        [(place, line.fd) for place, line in enumerate(lines)],
        return_exceptions=True,
    )
    for place, (line, outcome) in enumerate(zip(lines, outcomes, strict=True)):
        assert isinstance(outcome, WorkerDied) == (place % 5 == 0)
        assert line.read() == (b"" if place % 5 == 0 else str(outcome).encode())
    assert open_here() == before


# --- what nobody waits for ----------------------------------------------------------------------------


def test_a_cancelled_call_lets_its_descriptors_go(pool: Pool, reports: Reports, gate: Gate) -> None:
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


def test_a_cancelled_stream_lets_its_descriptors_go(pool: Pool, reports: Reports, gate: Gate) -> None:
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


def test_a_pool_that_is_terminated_lets_all_go(reports: Reports, gate: Gate) -> None:
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


def test_results_that_nobody_takes_are_closed(pool: Pool, reports: Reports, gate: Gate) -> None:
    """The call is cancelled while it runs, and ends all the same."""
    before = open_here()
    first = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    second = pool.imap(work.socket_with, [b"word"] * 3, 3)
    gate.let()
    assert next(first) == 1
    second.cancel()
    del second
    dropped = pool.map_async(work.socket_with, [b"word"] * 3)
    dropped.cancel()
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
        found = pool.map(
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


def test_a_master_without_room_for_what_it_takes_back(pool: Pool, reports: Reports, gate: Gate) -> None:
    """The packets that are taken back lose their descriptors, but none is lost itself: a recall needs no room."""
    ends = [socket.socketpair() for _ in range(4)]
    held = pool.apply_async(work.hold, (reports.path, gate.path, 1))
    reports.next()
    results = pool.imap(work.sign, [far for _near, far in ends], 1)
    others = pool.imap(work.use, [b"x" * 300_000] * 2, 1)
    pool._master.inquire(lambda: None)
    assert len(pool._master.crew.members[0].held) > 2
    with room_for(0):
        assert others.cancel()
    gate.let()
    assert held.get() == 1
    pids = list(results)
    for (near, far), pid in zip(ends, pids, strict=True):
        with near, far:
            assert near.recv(100) == str(pid).encode()


# --- packets that were not read -----------------------------------------------------------------------


def take_back_the_next(pool: Pool) -> int:
    """Do what a recall does that gets one packet only, for the worker is faster; returns the packet's kind."""
    (member,) = pool._master.crew.members.values()
    header, payload, fds = member.far.receive(wait=False)
    member._unsend(header, payload, fds, [], [])
    return header.kind


@pytest.mark.parametrize("count", [300, 600])
def test_a_worker_that_lacks_descriptors_of_an_argument(pool: Pool, reports: Reports, gate: Gate, count: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    before = pool.apply(work.open_here)
    held = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    results = pool.imap(work.count_distinct, [[Fd(null) for _ in range(count)]])
    assert take_back_the_next(pool) == Kind.RIGHTS
    gate.let()
    assert list(held) == [1]
    assert list(results) == [count]
    assert pool.apply(work.open_here) == before
    os.close(null)


def test_descriptors_that_came_ahead_of_what_was_taken_back(pool: Pool, reports: Reports, gate: Gate) -> None:
    """The worker has read what went ahead; the packet itself is recalled: then it is told to close those."""
    null = os.open("/dev/null", os.O_RDONLY)
    before = pool.apply(work.open_here)
    held = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    results = pool.imap(work.count_distinct, [[Fd(null) for _ in range(600)]])
    (member,) = pool._master.crew.members.values()
    header, _payload, fds = member.far.receive(wait=False)
    assert (header.kind, header.items) == (Kind.RIGHTS, 252)
    assert results.cancel()
    assert member.channel.send_packet([b"".join([_repack(header)])], fds)  # as if the worker had read it before
    for fd in fds:
        os.close(fd)
    member.post(header._replace(items=0))
    gate.let()
    assert list(held) == [1]
    assert pool.apply(work.open_here) == before
    os.close(null)


def _repack(header: Any) -> bytes:
    from pairpool.wire.channel import HEADER

    return HEADER.pack(*header)


def test_a_worker_that_lacks_descriptors_of_a_function(pool: Pool, reports: Reports, gate: Gate) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    before = pool.apply(work.open_here)
    held = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    results = pool.imap(functools.partial(_count_both, [Fd(null) for _ in range(300)]), range(3))
    assert take_back_the_next(pool) == Kind.RIGHTS
    gate.let()
    assert list(held) == [1]
    assert list(results) == [300, 301, 302]
    assert pool.apply(work.open_here) == before
    os.close(null)


def _count_both(fds: list[Fd], more: int) -> int:
    return len({fd.fileno() for fd in fds}) + more


# --- too many under way -------------------------------------------------------------------------------

MANY_UNDER_WAY = """
import os, resource, socket, sys, time
import functools
from pairpool import Fd, Pool
from tests import descriptor_tasks as work
from tests.support import Gate, Reports
from pathlib import Path

if __name__ == "__main__":
    where = Path(sys.argv[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    null = os.open("/dev/null", os.O_RDONLY)
    with Pool(2) as pool, Gate(where / "gate") as gate, Reports(where / "reports") as reports:
        before = len(os.listdir("/proc/self/fd"))
        held = [pool.apply_async(work.hold, (reports.path, gate.path, number)) for number in range(2)]
        reports.take(2)
        # a hundred each, to two workers that read nothing: four are more than may be under way
        results = pool.imap(work.count_distinct, ([Fd(null) for _ in range(100)] for _ in range(20)), 1)
        spare = pool.apply_async(work.use, (7,))
        pool._master.inquire(lambda: None)
        crew = pool._master.crew
        print(len(crew.starved) > 0)
        if sys.argv[2] == "recall":
            print(spare.cancel())
        began = time.process_time()
        time.sleep(0.3)
        print(time.process_time() - began < 0.15)  # nobody spins meanwhile
        gate.let(2)
        print(list(results) == [100] * 20, [one.get() for one in held])
        print(len(os.listdir("/proc/self/fd")) == before)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, who has that limit")
@pytest.mark.parametrize("act", ["wait", "recall"])
def test_the_kernel_takes_no_more_for_now(tmp_path: Path, act: str) -> None:
    """ETOOMANYREFS, which only others than root get, is no item's fault: it is sent when others have been read."""
    tmp_path.chmod(0o777)
    for parent in [*tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(write_script(tmp_path, MANY_UNDER_WAY)), str(tmp_path), act],
        env={**environment(), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=40,
        user=65534,
        group=65534,
        extra_groups=[],
    )
    assert done.stderr == ""
    expected = ["True", *(["True"] if act == "recall" else []), "True", "True [0, 1]", "True"]
    assert done.stdout.splitlines() == expected
