"""Pools found from outside: their owners, their status, and their ends."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pairpool.linux import descriptors, pidfds
from pairpool.scoreboard.board import MAGIC, MEMFD, VERSION
from pairpool.view.find import FoundPool, NoPool, NotPermitted, PoolObserver, SeveralPools, find, pools
from tests.support.gates import Gate
from tests.support.pools import MakePool
from tests.support.processes import all_ended
from tests.support.waiting import PATIENCE
from tests.view.masters import master, own


def names(found: list[FoundPool]) -> set[tuple[int, str]]:
    return {(one.pid, one.name) for one in found}


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True


def test_pools_of_this_process(make_pool: MakePool, start_method: str) -> None:
    mine, other = own("mine"), own("other")
    first, second = make_pool(2, name=mine), make_pool(1, name=other)
    here = [one.name for one in pools() if one.pid == os.getpid()]
    assert here == [mine, other], "one entry a pool, though workers have the board, too"
    first.terminate()
    assert [one.name for one in pools() if one.pid == os.getpid()] == [other]
    with PoolObserver(find(other)) as observer:
        shown, status = observer.status(), second.status()
        assert (shown.name, shown.pid, shown.processes, shown.start_method) == (other, os.getpid(), 1, start_method)
        assert [one.pid for one in shown.workers] == [one.pid for one in status.workers]


def test_pool_of_another_process(start_method: str, gate: Gate) -> None:
    with master(own("far"), 3, method=start_method, gate=gate.path) as far:
        assert (far.pid, own("far")) in names(pools())
        with PoolObserver(find(str(far.pid))) as observer:
            assert eventually(lambda: observer.status().busy == 3)
            status = observer.status()
            assert status.done == 21
            assert status.failed == 1
            assert [one.function for one in status.workers] == ["wait_for"] * 3
            assert status.remark == ""
        assert find(own("far")) == find(f"{far.pid}:{own('far')}") == find(str(far.pid))


def test_workers_and_zygotes_lead_to_their_pool(start_method: str, gate: Gate) -> None:
    with master(own("lead"), 2, method=start_method, gate=gate.path) as lead:
        with PoolObserver(find(own("lead"))) as observer:
            numbers = {one.pid: one.number for one in observer.status().workers}
        for pid in lead.workers():
            found = find(str(pid))
            assert (found.pid, found.name, found.worker) == (lead.pid, own("lead"), numbers.get(pid))
        assert set(numbers) <= set(lead.workers())


def test_stopped_master_is_shown_and_not_disturbed(gate: Gate) -> None:
    with master(own("halt"), gate=gate.path) as halt:
        with PoolObserver(find(own("halt"))) as observer:
            assert eventually(lambda: observer.status().busy == 2)
        with halt.stopped(), PoolObserver(find(own("halt"))) as observer:
            assert eventually(lambda: "stopped" in observer.status().remark)
            status = observer.status()
            assert status.busy == 2
            assert not status.is_over
            assert pidfds.state_of(halt.pid) == "T"
        with PoolObserver(find(own("halt"))) as observer:
            assert eventually(lambda: observer.status().remark == "")
        halt.tell("exit")


def test_killed_master(gate: Gate) -> None:
    with master(own("kill"), gate=gate.path) as kill:
        workers = kill.workers()
        with PoolObserver(find(own("kill"))) as observer:
            assert not observer.status().is_over
            kill.process.kill()
            kill.process.wait()
            assert eventually(lambda: observer.status().is_over)
            status = observer.status()
            assert "the master is gone" in status.remark
            assert status.done == 21
            assert observer.status() is status, "nothing changes any more, its age neither"
        with pytest.raises(NoPool):
            find(own("kill"))
        assert all_ended(workers)


def test_pool_that_ends_though_it_is_looked_at() -> None:
    with master(own("end")) as end:
        workers = end.workers()
        with PoolObserver(find(own("end"))) as observer:
            end.tell("close")
            assert all_ended(workers)
            status = observer.status()
            assert status.is_over
            assert status.remark == ""
            assert status.done == 21
            with pytest.raises(NoPool):
                find(own("end"))
            with pytest.raises(NoPool, match="has no pool"):
                find(str(end.pid))
            end.tell("exit")
            assert observer.status().is_over


def test_master_that_becomes_another_program() -> None:
    with master(own("exec")) as other, PoolObserver(find(own("exec"))) as observer:
        other.tell("exec")
        assert eventually(lambda: observer.status().is_over)
        assert "another program" in observer.status().remark


def test_pool_that_ended_between_two_looks() -> None:
    with master(own("gap")) as gap:
        found = find(own("gap"))
        gap.tell("close")
        with pytest.raises(NoPool, match="has just ended"):
            PoolObserver(found)
        gap.tell("exit")
        with pytest.raises(NoPool, match="has just ended"):
            PoolObserver(found)


def test_same_name_twice(make_pool: MakePool) -> None:
    make_pool(1, name=own("twin"))
    make_pool(1, name=own("sister"))
    with master(own("twin")) as other:
        with pytest.raises(SeveralPools, match=f"{own('twin')!r} means several") as caught:
            find(own("twin"))
        assert names(caught.value.pools) == {(os.getpid(), own("twin")), (other.pid, own("twin"))}
        assert find(f"{other.pid}:{own('twin')}").pid == other.pid
        with pytest.raises(SeveralPools, match=f"process {os.getpid()} means several"):
            find(str(os.getpid()))
        assert find(f"{os.getpid()}:{own('sister')}").name == own("sister")


def test_nothing_of_the_kind(make_pool: MakePool) -> None:
    make_pool(1, name=own("only"))
    with pytest.raises(NoPool, match=rf"no pool is called 'x'; there is: .*{own('only')} \(pid"):
        find("x")
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(NoPool, match=f"there is no process {process.pid}"):
        find(str(process.pid))
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            with pytest.raises(NoPool, match="has no pool, and works for none"):
                find(str(process.pid))
        finally:
            process.kill()


def test_name_of_digits(make_pool: MakePool) -> None:
    digits = f"99999999{os.getpid()}"
    make_pool(1, name=digits)
    assert find(digits).pid == os.getpid()


@contextmanager
def made_up_board(content: bytes) -> Iterator[None]:
    fd = descriptors.memfd(MEMFD, 1 << 16)
    try:
        os.pwrite(fd, content, 0)
        yield
    finally:
        os.close(fd)


def test_board_of_another_version(make_pool: MakePool) -> None:
    with made_up_board(struct.pack("<8sQQQQ", MAGIC, VERSION + 1, 8, os.getpid(), 0)):
        with pytest.raises(NoPool, match=f"a scoreboard of version {VERSION + 1}; this pairpool reads"):
            find(str(os.getpid()))
        [found] = [one for one in pools() if one.pid == os.getpid()]
        assert found.problem
        make_pool(1, name=own("good"))
        assert find(own("good")).problem == ""


def test_no_name_means_a_board_whose_name_cannot_be_read() -> None:
    head = struct.pack("<8sQQQQ", MAGIC, VERSION + 1, 8, os.getpid(), 0)
    with made_up_board(head), made_up_board(head):
        for what in ("", f"{os.getpid()}:"):
            with pytest.raises(NoPool, match="no pool is called"):
                find(what)


@pytest.mark.parametrize("content", [b"", b"PAIR", b"x" * 64])
def test_things_that_are_no_boards(content: bytes) -> None:
    with made_up_board(content), pytest.raises(NoPool, match="has no pool"):
        find(str(os.getpid()))


def test_board_that_is_too_short() -> None:
    head = struct.pack("<8sQQQQ", MAGIC, VERSION, 1 << 20, os.getpid(), 0)
    with made_up_board(head), pytest.raises(NoPool, match="its size can change"):
        find(str(os.getpid()))


def test_children_that_inherited_a_board_have_no_pool_of_their_own(make_pool: MakePool) -> None:
    make_pool(1, name=own("mother"))
    [mother] = [one for one in pools() if one.pid == os.getpid()]
    copy = os.open(f"/proc/self/fd/{mother.fd}", os.O_RDONLY)
    with subprocess.Popen(["sleep", "1000"], pass_fds=[copy]) as process:
        try:
            assert process.pid not in [one.pid for one in pools()]
            assert len([one for one in pools() if one.pid == os.getpid()]) == 1, "two descriptors of one board"
        finally:
            process.kill()
            os.close(copy)


AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from pairpool.view.find import *
assert pools() == [], pools()
try:
    find(sys.argv[1])
except NotPermitted as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_pool_of_another_user(make_pool: MakePool) -> None:
    make_pool(1)
    code = f"import sys; sys.path[:] = {sys.path!r}; import pairpool.view.find\n{AS_NOBODY}"
    ran = subprocess.run([sys.executable, "-c", code, str(os.getpid())], capture_output=True, text=True, check=True)
    assert ran.stdout == (
        f"process {os.getpid()} belongs to another user (0, root): the kernel does not let you look\n"
    ), ran.stderr


def test_observer_leaves_nothing_open(make_pool: MakePool) -> None:
    make_pool(1, name=own("open"))
    before = os.listdir("/proc/self/fd")
    with PoolObserver(find(own("open"))) as observer:
        observer.status()
    assert os.listdir("/proc/self/fd") == before
    assert issubclass(NotPermitted, PermissionError)
