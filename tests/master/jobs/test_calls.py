"""`apply_async` by the thousand: order, threads, cancelling at once, and interrupts between any two steps."""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import CancelledError
from types import FrameType
from typing import Any

import pytest

from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.tasks import Odd
from tests.support.waiting import PATIENCE


def test_calls_begin_in_their_order(make_pool: MakePool, reports: Reports) -> None:
    pool = make_pool(1)
    for x in range(500):
        pool.apply_async(tasks.tell, (reports.path, x))
    assert reports.take(500) == [str(x) for x in range(500)]


def test_a_map_between_calls_keeps_its_place(make_pool: MakePool, reports: Reports) -> None:
    pool = make_pool(1)
    tell = functools.partial(tasks.tell, reports.path)
    for x in range(100):
        pool.apply_async(tell, (x,))
    pool.map_async(tell, range(100, 200))
    for x in range(200, 300):
        pool.apply_async(tell, (x,))
    assert sorted(map(int, reports.take(300))) == list(range(300))


def test_callbacks_come_in_order_and_may_submit(make_pool: MakePool) -> None:
    pool = make_pool(1)
    seen: list[int] = []
    over = threading.Event()

    def again(x: int) -> None:
        seen.append(x)
        if x < 200:
            pool.apply_async(tasks.identity, (x + 1,), callback=again)
        else:
            over.set()

    pool.apply_async(tasks.identity, (0,), callback=again)
    assert over.wait(PATIENCE)
    assert seen == list(range(201))


def test_cancelled_right_after(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(1)
    blocker = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 0))
    reports.next()
    for x in range(200):
        result = pool.apply_async(tasks.tell, (reports.path, x))
        assert result.cancel()
        with pytest.raises(CancelledError):
            result.get(PATIENCE)
    gate.let()
    assert blocker.get(PATIENCE) == 0
    pool.apply(tasks.tell, (reports.path, "last"))
    assert reports.next() == "last"


def test_every_second_cancelled(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(1)
    pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 0))
    reports.next()
    results = [pool.apply_async(tasks.tell, (reports.path, x)) for x in range(400)]
    assert all(result.cancel() for result in results[::2])
    gate.let()
    assert reports.take(200) == [str(x) for x in range(1, 400, 2)]


def test_many_threads_submit(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool()
    outcomes: dict[int, Any] = {}

    def submit(start: int) -> None:
        numbers = range(start, start + 500)
        results = [pool.apply_async(tasks.refuse_odd, (x,)) for x in numbers]
        for x, result in zip(numbers, results, strict=True):
            try:
                outcomes[x] = result.get(PATIENCE)
            except Odd as error:
                outcomes[x] = -error.args[1]

    threads = [threading.Thread(target=submit, args=(start,)) for start in range(0, 3000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {x: -x if x % 2 else x for x in range(3000)}


def test_bursts_beside_maps_and_streams(make_pool: MakePool) -> None:
    pool = make_pool()
    for _ in range(5):
        stream = pool.imap(tasks.square, range(500))
        results = [pool.apply_async(tasks.square, (x,)) for x in range(500)]
        mapped = pool.map_async(tasks.square, range(500))
        expected = [x * x for x in range(500)]
        assert pool.map(tasks.square, range(500)) == expected
        assert [result.get(PATIENCE) for result in results] == expected
        assert mapped.get(PATIENCE) == list(stream) == expected


@pytest.mark.parametrize("place", ["submit", "add_call", "add", "wake"])
def test_an_interrupt_while_calls_are_submitted(make_pool: MakePool, place: str) -> None:
    """Wherever it strikes, what was submitted before and is submitted later has an outcome."""
    pool = make_pool()
    pool._engine.drive_in_background = lambda: None  # type: ignore[method-assign]  # this thread drives

    def strike(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name == place:
            sys.setprofile(None)
            raise KeyboardInterrupt

    results = [pool.apply_async(tasks.square, (x,)) for x in range(5)]
    assert [result.get(PATIENCE) for result in results] == [0, 1, 4, 9, 16]
    interrupted = 0
    sys.setprofile(strike)
    try:
        for x in range(5, 10):
            results.append(pool.apply_async(tasks.square, (x,)))
        pool.map(tasks.square, range(10))
    except KeyboardInterrupt:
        interrupted = 1
    finally:
        sys.setprofile(None)
    assert interrupted or place not in ("submit", "add_call")
    results.append(pool.apply_async(tasks.square, (10,)))
    for result in reversed(results):
        assert result.get(2) in {x * x for x in range(11)}
