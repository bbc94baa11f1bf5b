"""Ctrl-C while a pool is in use: the wait ends, and nothing else is affected."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from pairpool import Executor, WorkerDied
from pairpool.linux import interrupts as guards
from tests.support import tasks
from tests.support.children import in_child
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.signals import Striker
from tests.support.waiting import PATIENCE


def test_no_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each submitted call has its result, whenever the wait for another call was interrupted."""
    monkeypatch.setattr(
        guards, "FORCED_AFTER_S", 60.0
    )  # on a busy machine a turn may well take longer than two strikes
    with Executor(2) as executor, Striker("", 0.003, 2.0, number=signal.SIGINT, raises=KeyboardInterrupt) as striker:
        futures: list[tuple[int, Future[int]]] = []

        def submit() -> None:
            futures.append((len(futures), executor.submit(tasks.square, len(futures))))
            futures[-1][1].result(PATIENCE)

        for _ in range(100):
            striker.strike(submit)
            assert signal.getsignal(signal.SIGINT) == striker.handle
        assert [future.result(PATIENCE) for _, future in futures] == [x * x for x, _ in futures]
        assert sum(worker.replaced for worker in executor.pool.status().workers) == 0


def test_the_callers_own_code_is_interrupted_at_once(make_pool: MakePool) -> None:
    """One Ctrl-C is enough to interrupt an input that blocks."""
    pool = make_pool(2)
    end, other_end = os.pipe()
    ready = threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    call = Path(f"/proc/self/task/{threading.main_thread().native_id}/syscall")
    if not call.exists():
        pytest.skip("this kernel does not tell what a thread waits in")
    reads = re.compile(rf"\d+ 0x{end:x} ")

    def read() -> Iterator[int]:
        yield 1
        ready.set()
        os.read(end, 1)
        yield 2

    def strike() -> None:
        ready.wait(PATIENCE)
        while not reads.match(call.read_text()):
            os.sched_yield()  # a signal just before the read does not interrupt it
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(pool.imap(tasks.square, read()))
    finally:
        thread.join()
        os.close(end)
        os.close(other_end)
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Struck:
    """An object that causes two Ctrl-C while it is pickled."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return Struck, ()


def test_ctrl_c_while_an_argument_is_pickled_is_not_that_items_exception(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "FORCED_AFTER_S", 0.0)
    pool = make_pool(2)
    with pytest.raises(KeyboardInterrupt):
        pool.map(str, [1, Struck(), 3], return_exceptions=True)
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]


def test_a_worker_whose_state_is_unknown_after_an_exception_is_ended(
    make_pool: MakePool, gate: Gate, reports: Reports
) -> None:
    """It is unknown what such a worker was sent. So it is ended, and the error of its task says why."""
    pool = make_pool(1)
    busy = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
    reports.next()
    master = pool._engine

    def strike() -> None:
        master.workers.begin_update(master.workers.members[0])
        master.recover()

    master.inquire(strike)
    with pytest.raises(WorkerDied) as caught:
        busy.get(PATIENCE)
    assert caught.value.reason == "signal SIGKILL, sent by the pool"
    assert "struck the pool while it dealt with this worker" in caught.value.cause
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]


def test_a_handler_of_the_program_is_called(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    """The handler runs inside a wait, and the wait goes on."""
    pool = make_pool(1)
    seen: list[int] = []

    def handle(number: int, _frame: object) -> None:
        seen.append(number)
        gate.let()

    main = threading.main_thread().ident
    assert main is not None

    def strike() -> None:
        reports.take(1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    old = signal.signal(signal.SIGINT, handle)
    try:
        assert pool.apply(tasks.tell_and_hold, (reports.path, gate.path, 5)) == 5
        assert signal.getsignal(signal.SIGINT) is handle
    finally:
        signal.signal(signal.SIGINT, old)
        thread.join()
    assert seen == [signal.SIGINT]


def test_a_child_forked_meanwhile_has_the_handler_of_python(make_pool: MakePool) -> None:
    found: list[object] = []

    def fork() -> Iterator[int]:
        yield 1
        found.append(in_child(lambda: str(signal.getsignal(signal.SIGINT) is signal.default_int_handler)))

    assert list(make_pool(1).imap(tasks.square, fork())) == [1]
    assert found == ["True"]
