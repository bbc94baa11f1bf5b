"""Measure memory: of idle workers, of the program while it streams, and of calls that wait."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from benchmarks import memory
from benchmarks.cases.calls import warm_calls, warm_streams
from benchmarks.model import SLOW_TO_START, Aim, Case, Values
from benchmarks.peers import Peer, opened
from benchmarks.tasks import nap, noop, whoami

MIB = 2**20
BUSY_S = 60.0
"""Seconds that the workers are busy while calls wait. The runner kills them earlier."""


def idle(peer: Peer, _size: int) -> Values:
    """Measure the private MiB of a worker that has run one task."""
    with opened(peer):
        pids = set(peer.submit_all(whoami, [0.2, 0.2]))
        time.sleep(0.3)
        return {"value": sum(map(memory.private, pids)) / len(pids) / MIB}


def _numbers(count: int) -> Iterator[int]:
    yield from range(count)


def generator(peer: Peer, size: int) -> Values:
    """Measure by how many MiB the program grows at most while it streams over a generator."""
    with opened(peer):
        warm_streams(peer)
        gc.collect()
        memory.forget_peak()
        before = memory.resident()
        count = sum(1 for _ in peer.imap_unordered(noop, _numbers(size)))
        assert count == size
        return {"value": (memory.peak() - before) / MIB}


def pending(peer: Peer, size: int) -> Values:
    """Measure the bytes in the program per call that waits behind long ones. The runner kills the pool."""
    peer.open(2)
    warm_calls(peer)
    busy = [peer.submit(nap, BUSY_S) for _ in range(2)]
    gc.collect()
    before = memory.resident()
    waiting = [peer.submit(noop, item) for item in range(size)]
    grown = memory.resident() - before
    assert len(busy) + len(waiting) == size + 2
    return {"value": grown / size}


CASES = (
    Case(
        "idle-memory",
        "private memory of an idle worker",
        "MiB",
        idle,
        group="memory",
        aims=(Aim(1, "multiprocessing"),),
        without=SLOW_TO_START,
    ),
    Case(
        "generator",
        "growth while streaming 10,000,000 items from a generator",
        "MiB",
        generator,
        size=10_000_000,
        group="memory",
        aims=(Aim(16),),
        is_total=True,
        caps={
            **dict.fromkeys(("multiprocessing", "billiard", "mpire", "joblib"), 50_000),
            **dict.fromkeys(("ProcessPoolExecutor", "loky", "pebble"), 10_000),
        },
        without=SLOW_TO_START,
    ),
    Case(
        "pending",
        "memory of a pending call",
        "bytes",
        pending,
        size=1_000_000,
        group="memory",
        aims=(Aim(1, "multiprocessing"),),
        is_left_open=True,
        caps={
            "multiprocessing": 200_000,
            **dict.fromkeys(("ProcessPoolExecutor", "mpire", "pebble", "billiard"), 50_000),
        },
        without={
            "loky": "it leaves semaphores behind when it is killed, and it stores calls as ProcessPoolExecutor does",
            "joblib": "it has no call that returns before the end",
            "ray": "its calls wait in another process",
        },
    ),
)
