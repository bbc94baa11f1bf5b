"""Signal handlers of a program's own that raise: a time limit by SIGALRM, `sys.exit` by SIGTERM. Here it is SIGUSR1.

Nothing but what the main thread waits for may come to harm, whenever one strikes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pairpool import AsyncResult, CancelledError, Executor, Pool
from pairpool.linux import interrupts
from pairpool.linux.interrupts import FORCED_AFTER_S, allow_signals, defer_signals, is_in_force
from pairpool.view.live import LiveView
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.signals import Striker, Struck, strike
from tests.support.waiting import PATIENCE


@pytest.fixture
def handler() -> Iterator[Callable[[int, object], None]]:
    def handle(_number: int, _frame: object) -> None:
        raise Struck

    old = signal.signal(signal.SIGUSR1, handle)
    yield handle
    signal.signal(signal.SIGUSR1, old)


def call(pool: Pool) -> None:
    for _ in range(20):
        pool.apply_async(tasks.square, (1,))


def submit(pool: Pool) -> None:
    pool.submit(tasks.square, 1).result(PATIENCE)


def leave(pool: Pool) -> None:
    """Wait in ways that normally end without a result."""
    with contextlib.suppress(multiprocessing.TimeoutError):
        pool.apply_async(time.sleep, (0.002,)).get(0.0005)


USES: dict[str, Callable[[Pool], object]] = {
    "apply": lambda pool: pool.apply(tasks.square, (1,)),
    "apply_async": call,
    "map": lambda pool: pool.map(tasks.square, range(100)),
    "imap": lambda pool: list(pool.imap(tasks.square, range(100))),
    "submit": submit,
    "status": lambda pool: pool.status(),
    "timeout": leave,
}


def _tell(told: threading.Event, _value: int) -> None:
    told.set()


@pytest.mark.parametrize("use", USES)
def test_a_pool_survives_a_signal_at_any_moment(use: str, make_pool: MakePool) -> None:
    """After each signal, some thread drives the pool, although this thread waits for something else."""
    pool = make_pool(2)
    USES[use](pool)
    with Striker(use, 0.002, 0.02) as striker:
        for _ in range(150):
            striker.strike(lambda: USES[use](pool))
            told = threading.Event()
            pool.apply_async(tasks.square, (3,), callback=functools.partial(_tell, told))
            assert told.wait(PATIENCE)
            assert signal.getsignal(signal.SIGUSR1) == striker.handle
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of a pool that has no name yet: see below
def test_opening_is_all_or_nothing(start_method: str) -> None:
    """No process, descriptor or thread is left, whenever the signal comes."""
    pools: list[Pool] = []
    at_most, rounds = (0.4, 10) if start_method == "forkserver" else (0.02, 20)

    def open_and_end() -> None:
        pools.append(Pool(2, start_method=start_method))
        pools.pop().terminate()

    with Striker(start_method, at_most, 2.0) as striker:
        for _ in range(rounds):
            striker.strike(open_and_end)
            while pools:
                pools.pop().terminate()
            gc.collect()  # a pool that was interrupted before it had a name; a check after the test finds what is left


@pytest.mark.usefixtures("handler")
def test_an_interrupted_call_ends_no_other_call(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    """Calls of several threads travel to workers in the same batch."""
    pool = make_pool(1)
    others: list[AsyncResult[int]] = []

    def submit_and_strike() -> None:
        reports.next()
        others.extend(pool.apply_async(tasks.square, (x,)) for x in range(5))
        strike()

    thread = threading.Thread(target=submit_and_strike)
    thread.start()
    with pytest.raises(Struck):
        pool.apply(tasks.tell_and_hold, (reports.path, gate.path, 1))
    thread.join()
    assert [other.get(PATIENCE) for other in others] == [x * x for x in range(5)]


@pytest.mark.usefixtures("handler")
def test_an_interrupted_map_ends_its_own_tasks(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(1)

    def strike_when_it_runs() -> None:
        reports.next()
        strike()

    thread = threading.Thread(target=strike_when_it_runs)
    thread.start()
    with pytest.raises(Struck):
        pool.map(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(10))
    thread.join()
    assert pool.apply(tasks.square, (3,)) == 9  # the only worker is free, or was replaced


def join(_result: object, pool: Pool) -> None:
    pool.close()
    pool.join()


ENDS: dict[str, Callable[[Pool, Callable[[Any], Any]], object]] = {
    "apply": lambda pool, hold: pool.apply(hold, (1,)),
    "map": lambda pool, hold: pool.map(hold, range(10)),
    "imap": lambda pool, hold: list(pool.imap_unordered(hold, range(10))),
    "get": lambda pool, hold: pool.apply_async(hold, (1,)).get(),
    "result": lambda pool, hold: pool.submit(hold, 1).result(),
    "join": lambda pool, hold: join(pool.apply_async(hold, (1,)), pool),
}


@pytest.mark.parametrize("use", ENDS)
def test_a_handler_may_end_the_pool(use: str, make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    """Programs do that at SIGTERM."""
    pool = make_pool(2)

    def handle(_number: int, _frame: object) -> None:
        pool.terminate()
        pool.join()
        raise SystemExit

    def strike_when_it_runs() -> None:
        reports.next()
        strike()

    old = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=strike_when_it_runs)
    thread.start()
    try:
        with pytest.raises(SystemExit):
            ENDS[use](pool, functools.partial(tasks.tell_and_hold, reports.path, gate.path))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, old)
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(tasks.square, (1,))


class Striking:
    """An object that sends the signal to the master when the master unpickles it."""

    def __reduce__(self) -> Any:
        return signal.raise_signal, (int(signal.SIGUSR1),)


def make_striking(_x: int) -> Striking:
    return Striking()


@pytest.mark.usefixtures("handler")
def test_an_exception_of_a_handler_fails_no_result(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "FORCED_AFTER_S", 0.0)  # as if this were the second signal in a long turn
    pool = make_pool(1)
    with pytest.raises(Struck):
        pool.map(make_striking, [1], return_exceptions=True)
    assert pool.map(tasks.square, range(3)) == [0, 1, 4]


@pytest.mark.usefixtures("handler")
def test_a_handler_runs_at_once_inside_a_callback(make_pool: MakePool) -> None:
    """The exception comes from the handler, so it is not logged as an exception of the callback."""
    pool = make_pool(1)
    here = threading.get_ident()
    after: list[object] = []

    def callback(_value: int) -> None:
        if threading.get_ident() == here:  # not in the driver thread
            signal.raise_signal(signal.SIGUSR1)
            after.append(1)

    with pytest.raises(Struck):  # noqa: PT012
        while True:
            pool.apply_async(tasks.square, (2,), callback=callback)
            pool.apply(tasks.square, (3,))
    assert after == []
    assert pool.apply(tasks.square, (3,)) == 9


class Numbers:
    """An input that a signal interrupts once, after more items than are read before there is a reader."""

    def __init__(self) -> None:
        self.count = 0
        self.struck = False

    def __iter__(self) -> Numbers:
        return self

    def __next__(self) -> int:
        if self.count == 3001 and not self.struck:
            self.struck = True
            signal.raise_signal(signal.SIGUSR1)
        if self.count == 4000:
            raise StopIteration
        self.count += 1
        return self.count - 1


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("chunksize", [None, 1, 100])
def test_a_stream_goes_on_where_its_input_was_interrupted(make_pool: MakePool, chunksize: int | None) -> None:
    pool = make_pool(2)
    stream = pool.imap(tasks.square, Numbers(), chunksize=chunksize, buffersize=1000)
    found: list[int] = []
    with pytest.raises(Struck):
        found += stream
    assert len(found) < 4000
    found += stream
    assert found == [x * x for x in range(4000)]


def test_a_wait_goes_on_after_a_handler_that_returns(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    pool = make_pool(1)
    seen: list[tuple[int, str]] = []

    def handle(number: int, frame: Any) -> None:
        seen.append((number, type(frame).__name__))
        gate.let()

    def strike_when_it_runs() -> None:
        reports.next()
        strike()

    old = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=strike_when_it_runs)
    thread.start()
    try:
        assert pool.apply(tasks.tell_and_hold, (reports.path, gate.path, 5)) == 5
    finally:
        signal.signal(signal.SIGUSR1, old)
        thread.join()
    assert seen == [(signal.SIGUSR1, "frame")]


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("leads", [True, False])
def test_a_signal_that_another_thread_took(leads: bool, make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    """Then the wait of the main thread in the kernel is not interrupted. Nor is it by a signal just before it."""
    pool = make_pool(1)
    loop, main = pool._engine.loop, threading.get_ident()
    if not leads:
        pool.apply_async(tasks.square, (1,)).get(PATIENCE)
        pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
        while not loop._lead:  # the driver thread keeps the lead while that task is held
            time.sleep(0.001)

    def take() -> None:
        reports.next()
        while not (loop._lead.get(0) == main and loop._polling if leads else loop._followers):
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Thread(target=take)
    thread.start()
    with pytest.raises(Struck):
        pool.apply(tasks.tell_and_hold, (reports.path, gate.path, 1))
    thread.join()


class Slow:
    """An object whose pickling does not end before a signal comes."""

    def __init__(self, begun: threading.Event) -> None:
        self.begun = begun

    def __reduce__(self) -> Any:
        self.begun.set()
        # A wait without a timeout would miss a signal that arrives just before the system call.
        while not threading.Event().wait(0.05):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_second_signal_interrupts_a_long_turn(number: int, make_pool: MakePool) -> None:
    pool = make_pool(1)
    begun, struck = threading.Event(), threading.Event()

    def handle(_number: int, _frame: object) -> None:
        if not struck.is_set():
            struck.set()
            raise Struck

    def strikes() -> None:
        begun.wait()
        while not struck.wait(FORCED_AFTER_S / 4):
            strike(number)

    old = signal.signal(number, handle)
    thread = threading.Thread(target=strikes)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(Struck):
            pool.map(tasks.identity, [Slow(begun)])  # the items of a map are pickled in a turn
    finally:
        thread.join()
        signal.signal(number, old)
    assert time.monotonic() - began >= FORCED_AFTER_S
    assert pool.apply(tasks.square, (3,)) == 9


@pytest.mark.parametrize("method", ["apply", "apply_async"])
def test_a_handler_runs_at_once_while_an_argument_is_pickled(method: str, make_pool: MakePool) -> None:
    pool = make_pool(1)
    begun = threading.Event()

    def handle(_number: int, _frame: object) -> None:
        raise Struck

    def strike_once() -> None:
        begun.wait()
        strike(signal.SIGUSR1)

    old = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=strike_once)
    thread.start()
    call = pool.apply if method == "apply" else pool.apply_async
    try:
        with pytest.raises(Struck):
            call(tasks.identity, (Slow(begun),))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, old)
    assert pool.apply(tasks.square, (3,)) == 9


def test_a_handler_of_faulthandler_stays_in_place(make_pool: MakePool, tmp_path: Path) -> None:
    called: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _frame: called.append(number))
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, chain=True)
        try:
            assert make_pool(1).map(tasks.square, range(10)) == [x * x for x in range(10)]
            signal.raise_signal(signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, old)
    assert called == [signal.SIGUSR1]
    assert "test_a_handler_of_faulthandler" in (tmp_path / "stacks").read_text()


def test_a_pool_ends_although_it_is_interrupted(start_method: str) -> None:
    """`terminate` is completed."""
    with Striker(start_method, 0.005, 2.0) as striker:
        for _ in range(20):
            pool = Pool(2, start_method=start_method)
            stuck = pool.apply_async(time.sleep, (100,))
            striker.strike(pool.terminate)
            pool.terminate()
            with pytest.raises(CancelledError):
                stuck.get(PATIENCE)


def test_an_executor_loses_no_result() -> None:
    with Executor(2) as executor, Striker("executor", 0.01, 2.0) as striker:
        for _ in range(20):
            futures = [executor.submit(tasks.square, x) for x in range(1000)]
            striker.strike(lambda: [future.result(PATIENCE) for future in futures])  # noqa: B023
            assert [future.result(PATIENCE) for future in futures] == [x * x for x in range(1000)]


@pytest.mark.usefixtures("handler")
def test_deferred_handlers_wait_for_the_outermost_block() -> None:
    done: list[str] = []

    def held() -> None:
        with defer_signals():
            with defer_signals():
                signal.raise_signal(signal.SIGUSR1)
                done.append("inner")
            done.append("outer")

    with pytest.raises(Struck):
        held()
    assert done == ["inner", "outer"]
    assert not is_in_force()


@pytest.mark.usefixtures("handler")
def test_inside_allow_signals_a_block_calls_its_deferred_handlers() -> None:
    done: list[str] = []

    def held() -> None:
        with defer_signals(), allow_signals():
            with defer_signals():
                signal.raise_signal(signal.SIGUSR1)
                done.append("inner")
            done.append("outer")

    with pytest.raises(Struck):
        held()
    assert done == ["inner"]
    assert not is_in_force()


# --- descriptors --------------------------------------------------------------------------------------


@pytest.fixture
def struck_pidfds(handler: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each new descriptor comes with a signal, before a variable has its number. A later check finds leaks."""
    opens = os.pidfd_open

    def open_and_strike(pid: int, flags: int = 0) -> int:
        fd = opens(pid, flags)
        signal.raise_signal(signal.SIGUSR1)
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", open_and_strike)
        yield


@pytest.mark.usefixtures("struck_pidfds")
def test_an_interrupted_opening_leaves_no_descriptor(start_method: str) -> None:
    for _ in range(2):
        with pytest.raises(Struck):
            Pool(2, start_method=start_method)


def test_interrupted_stacks_leave_no_descriptor(make_pool: MakePool, request: pytest.FixtureRequest) -> None:
    pool = make_pool(2)
    request.getfixturevalue("struck_pidfds")
    for _ in range(2):
        with pytest.raises(Struck):
            pool.stacks()


# --- the live view ------------------------------------------------------------------------------------


def views() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pairpool-view"]


@pytest.mark.usefixtures("handler")
def test_a_view_that_is_interrupted_at_its_start(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no view."""
    pool = make_pool(1)
    begin = LiveView._start

    def begin_and_strike(view: LiveView) -> None:
        begin(view)
        signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(LiveView, "_start", begin_and_strike)
        with pytest.raises(Struck):
            pool.live(Console(file=io.StringIO()))
    assert views() == []
    with pool.live(Console(file=io.StringIO())):
        assert len(views()) == 1
        assert pool.apply(tasks.square, (3,)) == 9
    assert views() == []


@pytest.mark.usefixtures("handler")
def test_a_view_that_is_interrupted_while_it_waits_for_output(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view ends nevertheless."""
    view = make_pool(1).live(Console(file=io.StringIO()))
    with monkeypatch.context() as patch:
        patch.setattr(view, "_settle", lambda: signal.raise_signal(signal.SIGUSR1))
        with pytest.raises(Struck):
            view.stop()
    for thread in views():
        thread.join(PATIENCE)
    assert views() == []


class Stuck(io.StringIO):
    """A stream that takes nothing as long as its lock is held."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.begun = threading.Event()

    def write(self, text: str) -> int:
        self.begun.set()
        with self.lock:
            return super().write(text)


@pytest.mark.usefixtures("handler")
def test_a_view_that_is_interrupted_at_its_last_frame(make_pool: MakePool) -> None:
    """The interrupted call does not wait for a terminal that takes nothing. A second call waits for all output."""
    pool = make_pool(1)
    file = Stuck()
    view = pool.live(Console(file=file))

    def strike_when_it_writes() -> None:
        file.begun.wait(PATIENCE)
        strike()

    with file.lock:
        thread = threading.Thread(target=strike_when_it_writes)
        thread.start()
        with pytest.raises(Struck):
            view.stop()
        thread.join()
        assert pool.apply(tasks.square, (3,)) == 9
        assert file.getvalue() == ""
    view.stop()
    assert "idle" in file.getvalue()
    assert views() == []
