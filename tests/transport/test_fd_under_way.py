"""Descriptors between sender and receiver: packets that are taken back in part, and more than the kernel takes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairpool import Fd, Pool
from pairpool.transport.protocol import DescriptorsPacket, DiscardDescriptorsPacket
from tests.support import descriptor_tasks as work
from tests.support.gates import Gate, Reports
from tests.support.recall import recall_one_packet
from tests.support.scripts import python, write_script


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


# --- packets that were not read -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, 600])
def test_a_worker_without_the_descriptors_of_an_argument(pool: Pool, reports: Reports, gate: Gate, count: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    pool.apply(work.open_here)
    assert list(pool.imap(work.count_distinct, [[Fd(null)]])) == [1]  # so the worker knows the function
    before = pool.apply(work.open_here)
    held = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    results = pool.imap(work.count_distinct, [[Fd(null) for _ in range(count)]])
    assert isinstance(recall_one_packet(pool), DescriptorsPacket)
    gate.let()
    assert list(held) == [1]
    assert list(results) == [count]
    assert pool.apply(work.open_here) == before
    os.close(null)


def test_descriptors_that_came_ahead_of_a_recalled_packet(pool: Pool, reports: Reports, gate: Gate) -> None:
    """The worker has read what went ahead; the packet itself is recalled: then it is told to close those."""
    null = os.open("/dev/null", os.O_RDONLY)
    pool.apply(work.open_here)
    assert list(pool.imap(work.count_distinct, [[Fd(null)]])) == [1]  # so the worker knows the function
    before = pool.apply(work.open_here)
    held = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    results = pool.imap(work.count_distinct, [[Fd(null) for _ in range(600)]])
    (member,) = pool._engine.workers.members.values()
    packet, _payload, fds = member.worker_end.receive(wait=False)
    assert isinstance(packet, DescriptorsPacket)
    assert packet.fd_count == 252
    assert results.cancel()
    assert member.channel.send(packet, fds=fds)  # as if the worker had read it before
    for fd in fds:
        os.close(fd)
    member.post(DiscardDescriptorsPacket(packet.function, packet.batch))
    gate.let()
    assert list(held) == [1]
    assert pool.apply(work.open_here) == before
    os.close(null)


def test_a_worker_without_the_descriptors_of_a_function(pool: Pool, reports: Reports, gate: Gate) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    before = pool.apply(work.open_here)
    held = pool.imap(functools.partial(work.hold, reports.path, gate.path), [1])
    reports.next()
    results = pool.imap(functools.partial(_count_both, [Fd(null) for _ in range(300)]), range(3))
    assert isinstance(recall_one_packet(pool), DescriptorsPacket)
    gate.let()
    assert list(held) == [1]
    assert list(results) == [300, 301, 302]
    assert pool.apply(work.open_here) == before
    os.close(null)


def _count_both(fds: list[Fd], more: int) -> int:
    return len({fd.fileno() for fd in fds}) + more


# --- too many under way -------------------------------------------------------------------------------

MANY_UNDER_WAY = """
import ctypes, os, resource, sys, time
from pairpool import Fd, Pool
from tests.support import descriptor_tasks as work
from tests.support.gates import Gate, Reports
from pathlib import Path

def drop_privileges():
    "Without CAP_SYS_ADMIN and CAP_SYS_RESOURCE the limit holds for root, too (capset(2))."
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for at in range(2):
        data[at] &= ~(1 << 21 | 1 << 24)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())

def nulls():
    "A spare zygote may have come meanwhile, with descriptors of its own."
    return sum(os.path.realpath(f"/proc/self/fd/{name}") == "/dev/null" for name in os.listdir("/proc/self/fd"))

if __name__ == "__main__":
    drop_privileges()
    where = Path(sys.argv[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    null = os.open("/dev/null", os.O_RDONLY)
    with Pool(2) as pool, Gate(where / "gate") as gate, Reports(where / "reports") as reports:
        before = nulls()
        held = [pool.apply_async(work.hold, (reports.path, gate.path, number)) for number in range(2)]
        reports.take(2)
        # a hundred each, to two workers that read nothing: four are more than may be under way
        results = pool.imap(work.count_distinct, ([Fd(null) for _ in range(100)] for _ in range(20)), 1)
        spare = pool.apply_async(work.use, (7,))
        pool._engine.inquire(lambda: None)
        crew = pool._engine.workers
        print(len(crew.troubles.fd_blocked) > 0)
        if sys.argv[2] == "recall":
            print(spare.cancel())
        began = time.process_time()
        time.sleep(0.3)
        print(time.process_time() - began < 0.15)  # nobody spins meanwhile
        gate.let(2)
        print(list(results) == [100] * 20, [one.get() for one in held])
        print(nulls() == before)
"""


@pytest.mark.parametrize("act", ["wait", "recall"])
def test_more_descriptors_under_way_than_the_kernel_takes(tmp_path: Path, act: str) -> None:
    """ETOOMANYREFS is no item's fault: it is sent when others have been read."""
    done = python(write_script(tmp_path, MANY_UNDER_WAY), tmp_path, act)
    assert done.stderr == ""
    expected = ["True", *(["True"] if act == "recall" else []), "True", "True [0, 1]", "True"]
    assert done.stdout.splitlines() == expected
