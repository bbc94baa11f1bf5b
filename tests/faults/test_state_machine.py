"""Compare a pool with a model of it in plain Python. hypothesis draws the operations.

The model knows how each item ends, which tasks are held at a gate and by which worker, and how many workers there are.
Its predictions are exact, because no test depends on time: a held task has reported itself, and all others are short.
"""

from __future__ import annotations

import functools
import itertools
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairpool import Pool, WorkerDied
from pairpool.results.async_result import AsyncResult, MapResult
from pairpool.results.iterator import IMapIterator
from pairpool.status import WorkerStatus
from tests.faults.acts import Act, act, act_and_count, act_apart, act_or_hold
from tests.support.gates import Gate, Reports
from tests.support.kernel import KERNEL_TELLS_STATUS
from tests.support.processes import still_running, watching
from tests.support.tasks import DEATH_REASONS, EXITCODES, Odd
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.hang_limit(180)

FLOOD = 64
"""Bytes in an open gate: more than one, because a task runs again if its worker died before the report."""

METHODS = st.sampled_from(["fork"] * 4 + ["direct"] * 4 + ["forkserver"])
SIZES = st.integers(2, 3)
HOWS = st.sampled_from(["return"] * 10 + ["raise", "raise", "exit", "kill", "segfault"])
ITEMS = st.lists(HOWS, max_size=12).map(lambda hows: [(how, index) for index, how in enumerate(hows)])
CHUNKSIZES = st.sampled_from([None, 1, 2, 5, 100])


# --- the model ----------------------------------------------------------------------------------------


@dataclass
class Hold:
    """A call of which one item waits at a gate."""

    key: int
    items: list[Act]
    index: int
    """The index of the held item."""
    result: AsyncResult[Any]
    is_map: bool
    gate: Gate
    heard: list[Any]
    """The values that the callbacks have received."""
    pid: int = 0
    """The pid of the worker that runs the item; 0 until the item has reported it."""
    worker: int = -1


@dataclass
class Pending:
    """A `map_async` of short items whose result was not read yet."""

    items: list[Act]
    result: MapResult[list[Any]]
    heard: list[Any]


@dataclass
class Stream:
    """An iterator that was not read to its end."""

    items: list[Act]
    iterator: IMapIterator[int]
    ordered: bool
    seen: set[int] = field(default_factory=set)


def is_outcome(item: Act, found: object) -> bool:
    """Return whether the item has ended as the model predicts."""
    how, index = item
    if how == "return":
        return type(found) is int and found == index * 10
    if how == "raise":
        return type(found) is Odd and found.args == (index,)
    return is_death(found, index, how)


def is_death(found: object, index: int, how: str, pid: int = 0) -> bool:
    return (
        isinstance(found, WorkerDied)
        and found.index == index
        and found.pid > 0
        and found.pid == (pid or found.pid)
        and found.exitcode == (EXITCODES[how] if KERNEL_TELLS_STATUS else None)
        and (found.reason == DEATH_REASONS[how] or not KERNEL_TELLS_STATUS)
    )


def check_all(items: list[Act], found: list[Any]) -> None:
    """Check that every item has ended as the model predicts."""
    assert len(found) == len(items)
    wrong = [(item, one) for item, one in zip(items, found, strict=True) if not is_outcome(item, one)]
    assert wrong == []
    pids = [one.pid for one in found if isinstance(one, WorkerDied)]
    assert len(set(pids)) == len(pids)


def outcome_of(get: Callable[[], Any]) -> Any:
    """Return the value or the exception of a call."""
    try:
        return get()
    except (Odd, WorkerDied, CancelledError) as error:
        return error


def index_of(found: object) -> int:
    """Return the index of the item that has this outcome."""
    if isinstance(found, WorkerDied):
        return found.index
    if isinstance(found, Odd):
        return int(found.args[0])
    assert isinstance(found, int), repr(found)
    return found // 10


# --- the machine --------------------------------------------------------------------------------------


class PoolMachine(RuleBasedStateMachine):
    """The rules apply operations to the pool, and check the results at once."""

    def __init__(self) -> None:
        super().__init__()
        self._room = tempfile.TemporaryDirectory()
        self.directory = Path(self._room.name)
        self.reports = Reports(self.directory / "reports")
        self.numbers = itertools.count(1)
        self.gates: list[Gate] = []
        self.pool: Pool | None = None
        self.processes = 0
        self.holds: list[Hold] = []
        self.pending: list[Pending] = []
        self.streams: list[Stream] = []

    @initialize(processes=SIZES, method=METHODS)
    def start(self, processes: int, method: str) -> None:
        self.pool = Pool(processes, start_method=method)
        self.processes = processes

    @property
    def live(self) -> Pool:
        assert self.pool is not None
        return self.pool

    # --- what the model knows -------------------------------------------------------------------

    @property
    def running(self) -> list[Hold]:
        return [hold for hold in self.holds if hold.pid]

    @property
    def waiting(self) -> list[Hold]:
        return [hold for hold in self.holds if not hold.pid]

    @property
    def room(self) -> int:
        """The number of workers that stay and that no task holds."""
        return self.processes - sum(hold.worker < self.processes for hold in self.running)

    def can_work(self) -> bool:
        return self.room > 0

    def is_quiet(self) -> bool:
        return not self.pending and not self.streams

    def hear(self) -> None:
        """Wait until every free worker holds a task, or no task waits."""
        for _ in range(min(len(self.waiting), self.room)):
            hold = None
            while hold is None:  # skip the reports of tasks that ran again or were cancelled
                pid, key = map(int, self.reports.next().split())
                hold = next((one for one in self.waiting if one.key == key), None)
            hold.pid = pid
            (hold.worker,) = [worker.number for worker in self.live.status().workers if worker.pid == pid]

    def open_gate(self, hold: Hold) -> None:
        hold.gate.let(FLOOD)

    def forget(self, hold: Hold) -> None:
        self.holds.remove(hold)

    def turn_until(self, right: Callable[[], bool], what: Callable[[], object]) -> None:
        """Run the pool until a condition is true."""
        deadline = time.monotonic() + PATIENCE
        while not right():
            assert time.monotonic() < deadline, what()
            self.live._repopulate_pool()

    # --- blocking calls ------------------------------------------------------------------------

    @precondition(can_work)
    @rule(items=ITEMS, chunksize=CHUNKSIZES, star=st.booleans())
    def map(self, items: list[Act], chunksize: int | None, star: bool) -> None:
        found: list[Any]
        if star:
            found = self.live.starmap(act_apart, items, chunksize, return_exceptions=True)
        else:
            found = self.live.map(act, items, chunksize, return_exceptions=True)
        check_all(items, found)

    @precondition(can_work)
    @rule(items=ITEMS)
    def map_one_by_one(self, items: list[Act]) -> None:
        """With `chunksize=1` every item runs exactly once."""
        journal = self.directory / f"journal-{next(self.numbers)}"
        journal.touch()
        function = functools.partial(act_and_count, str(journal))
        found: list[Any] = self.live.map(function, items, 1, return_exceptions=True)
        check_all(items, found)
        assert sorted(map(int, journal.read_text().split())) == list(range(len(items)))

    @precondition(can_work)
    @rule(items=ITEMS, chunksize=CHUNKSIZES)
    def map_or_raise(self, items: list[Act], chunksize: int | None) -> None:
        found = outcome_of(lambda: self.live.map(act, items, chunksize))
        self._check_map(items, found)

    def _check_map(self, items: list[Act], found: Any) -> None:
        bad = [item for item in items if item[0] != "return"]
        if bad:
            assert any(is_outcome(item, found) for item in bad), (items, found)
        else:
            check_all(items, found)

    @precondition(can_work)
    @rule(how=HOWS)
    def apply(self, how: str) -> None:
        assert is_outcome((how, 0), outcome_of(lambda: self.live.apply(act_apart, (how,), {"index": 0})))

    @precondition(lambda self: self.can_work() and not self.waiting)
    @rule(how=HOWS)
    def apply_async(self, how: str) -> None:
        good: list[Any] = []
        bad: list[Any] = []
        result = self.live.apply_async(act, ((how, 0),), callback=good.append, error_callback=bad.append)
        found = outcome_of(lambda: result.get(PATIENCE))
        assert is_outcome((how, 0), found)
        assert result.ready()
        assert result.successful() == (how == "return")
        assert (good, bad) == (([found], []) if how == "return" else ([], [found]))
        assert not result.cancel(kill=True)

    @precondition(can_work)
    @rule(items=ITEMS, chunksize=CHUNKSIZES, ordered=st.booleans())
    def iterate(self, items: list[Act], chunksize: int | None, ordered: bool) -> None:
        method = self.live.imap if ordered else self.live.imap_unordered
        self._read_rest(Stream(items, method(act, iter(items), chunksize), ordered))

    # --- calls whose results are read later --------------------------------------------------------

    @precondition(lambda self: len(self.pending) < 3)
    @rule(items=ITEMS, chunksize=CHUNKSIZES)
    def map_async(self, items: list[Act], chunksize: int | None) -> None:
        heard: list[Any] = []
        result = self.live.map_async(act, items, chunksize, heard.append, heard.append)
        self.pending.append(Pending(items, result, heard))

    @precondition(lambda self: self.pending and self.can_work())
    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.pending))
        self.pending.remove(one)
        self._check_pending(one)

    def _check_pending(self, one: Pending) -> None:
        found = outcome_of(lambda: one.result.get(PATIENCE))
        self._check_map(one.items, found)
        assert len(one.heard) == 1
        assert one.heard[0] is found

    @precondition(lambda self: len(self.streams) < 2)
    @rule(items=ITEMS, times=st.sampled_from([1, 30]), chunksize=CHUNKSIZES, ordered=st.booleans())
    def open_stream(self, items: list[Act], times: int, chunksize: int | None, ordered: bool) -> None:
        more = [(how if index < len(items) else "return", index) for index, (how, _) in enumerate(items * times)]
        method = self.live.imap if ordered else self.live.imap_unordered
        self.streams.append(Stream(more, method(act, iter(more), chunksize), ordered))

    @precondition(lambda self: self.streams and self.can_work())
    @rule(data=st.data(), count=st.integers(1, 20))
    def read_stream(self, data: st.DataObject, count: int) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        for _ in range(count):
            if not self._read(stream):
                self.streams.remove(stream)
                return

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), how=st.sampled_from(["drop", "cancel", "kill"]))
    def leave_stream(self, data: st.DataObject, how: str) -> None:
        """Drop or cancel a stream. A dropped stream that was never read runs to its end, unlike a half-read one."""
        stream = data.draw(st.sampled_from(self.streams))
        self.streams.remove(stream)
        if how != "drop":
            stream.iterator.cancel(kill=how == "kill")

    def _read(self, stream: Stream, *, may_be_cut: bool = False) -> bool:
        """Read one result. Return False at the end, and check that no result is missing."""
        try:
            found = outcome_of(lambda: stream.iterator.next(PATIENCE))
        except StopIteration:
            assert may_be_cut or stream.seen == set(range(len(stream.items)))
            return False
        if may_be_cut and isinstance(found, CancelledError):
            return True
        index = len(stream.seen) if stream.ordered else index_of(found)
        assert index not in stream.seen
        assert is_outcome(stream.items[index], found), (stream.items[index], found)
        stream.seen.add(index)
        return True

    def _read_rest(self, stream: Stream, *, may_be_cut: bool = False) -> None:
        while self._read(stream, may_be_cut=may_be_cut):
            pass

    # --- tasks that are held --------------------------------------------------------------------

    @precondition(lambda self: not self.waiting)
    @rule()
    def hold_call(self) -> None:
        self._hold([("hold", 0)], 0, None, is_map=False)

    @precondition(lambda self: not self.waiting)
    @rule(items=ITEMS, data=st.data(), chunksize=CHUNKSIZES)
    def hold_map(self, items: list[Act], data: st.DataObject, chunksize: int | None) -> None:
        at = data.draw(st.integers(0, len(items)))
        hows = [how for how, _ in items]
        hows.insert(at, "hold")
        self._hold([(how, index) for index, how in enumerate(hows)], at, chunksize, is_map=True)

    def _hold(self, items: list[Act], index: int, chunksize: int | None, *, is_map: bool) -> None:
        key = next(self.numbers)
        gate = Gate(self.directory / f"gate-{key}")
        self.gates.append(gate)
        heard: list[Any] = []
        function = functools.partial(act_or_hold, self.reports.path, gate.path, key)
        result: AsyncResult[Any]
        if is_map:
            result = self.live.map_async(function, items, chunksize, heard.append, heard.append, return_exceptions=True)
        else:
            result = self.live.apply_async(function, (items[0],), callback=heard.append, error_callback=heard.append)
        self.holds.append(Hold(key, items, index, result, is_map, gate, heard))
        self.hear()

    def _check_hold(self, hold: Hold, is_right: Callable[[Any], bool]) -> None:
        """Check the outcome of the held item with `is_right`, and those of the other items."""
        found = outcome_of(lambda: hold.result.get(PATIENCE))
        assert len(hold.heard) == 1
        assert hold.heard[0] is found
        if not hold.is_map:
            assert is_right(found), found
            return
        assert is_right(found[hold.index]), found
        others = [item for item in hold.items if item[0] != "hold"]
        wrong = [(item, found[item[1]]) for item in others if not is_outcome(item, found[item[1]])]
        assert wrong == []

    def _check_cancelled(self, hold: Hold) -> None:
        found = outcome_of(lambda: hold.result.get(PATIENCE))
        assert isinstance(found, CancelledError), found
        assert len(hold.heard) == 1
        assert hold.heard[0] is found

    def _can_end(self, hold: Hold) -> bool:
        """Return whether the other items of a call can end once its held item is over."""
        return not hold.is_map or self.room > 0 or hold.worker < self.processes

    @precondition(lambda self: any(map(self._can_end, self.running)))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from([one for one in self.running if self._can_end(one)]))
        waiting = self.waiting
        if hold.is_map and waiting and self.room == 0:
            self._cancel_waiting(waiting[0], kill=False)  # its item would take the only free worker
        self.open_gate(hold)
        self._check_hold(hold, lambda found: bool(found == hold.index * 10))
        self.forget(hold)
        self.hear()

    @precondition(lambda self: any(map(self._can_end, self.running)))
    @rule(data=st.data())
    def kill_at_work(self, data: st.DataObject) -> None:
        """Kill a worker at its item. Exactly this item fails."""
        hold = data.draw(st.sampled_from([one for one in self.running if self._can_end(one)]))
        waiting = self.waiting
        if hold.is_map and waiting and self.room == 0:
            self._cancel_waiting(waiting[0], kill=False)
        self._kill(hold.pid)
        self._check_hold(hold, lambda found: is_death(found, hold.index, "kill", hold.pid))
        self.forget(hold)
        self.hear()

    @precondition(lambda self: self.waiting)
    @rule(kill=st.booleans())
    def cancel_waiting(self, kill: bool) -> None:
        self._cancel_waiting(self.waiting[0], kill=kill)

    def _cancel_waiting(self, hold: Hold, *, kill: bool) -> None:
        """Cancel a call that no worker has begun."""
        assert hold.result.cancel(kill=kill)
        self.open_gate(hold)
        self._check_cancelled(hold)
        self.forget(hold)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), kill=st.booleans())
    def cancel_running(self, data: st.DataObject, kill: bool) -> None:
        """Cancel a running call. A single call ends only with `kill`; the waiting items of a map end always."""
        hold = data.draw(st.sampled_from(self.running))
        cancelled = hold.result.cancel(kill=kill)
        assert cancelled == (hold.is_map or kill)
        if not cancelled:
            assert not hold.result.ready()
            return
        self._check_cancelled(hold)
        if kill:
            with watching([hold.pid]) as handles:
                assert still_running(handles, PATIENCE) == []
        self.open_gate(hold)
        self.forget(hold)
        self.hear()

    # --- workers --------------------------------------------------------------------------------

    def _kill(self, pid: int) -> None:
        with watching([pid]) as handles:
            signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
            assert still_running(handles, PATIENCE) == []

    @precondition(is_quiet)
    @rule(data=st.data())
    def kill_idle(self, data: st.DataObject) -> None:
        """Kill idle workers. No call fails."""
        at_work = {hold.pid for hold in self.running}
        idle = [process.pid for process in self.live._pool if process.pid not in at_work]
        if idle:
            for pid in data.draw(st.lists(st.sampled_from(idle), min_size=1, unique=True)):
                with watching([pid]) as handles:
                    for handle in handles.values():
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                    assert still_running(handles, PATIENCE) == []

    @rule(processes=st.integers(1, 4))
    def resize(self, processes: int) -> None:
        self.live.resize(processes)
        self.processes = processes
        self.hear()

    # --- the end, and the next pool -----------------------------------------------------------

    def _check_unusable(self) -> None:
        pool = self.live
        calls: list[Callable[[], object]] = [
            lambda: pool.apply(act, (("return", 0),)),
            lambda: pool.apply_async(act, (("return", 0),)),
            lambda: pool.map(act, []),
            lambda: pool.map_async(act, []),
            lambda: pool.starmap(act_apart, []),
            lambda: pool.starmap_async(act_apart, []),
            lambda: pool.imap(act, []),
            lambda: pool.imap_unordered(act, []),
            lambda: pool.resize(2),
            pool.__enter__,
        ]
        for call in calls:
            with pytest.raises(ValueError, match="Pool not running"):
                call()

    @rule(processes=SIZES, method=METHODS, read_on=st.booleans())
    def close(self, processes: int, method: str, read_on: bool) -> None:
        """Close the pool. All calls run to their ends, also those that are held in the meantime."""
        if not read_on:
            self.streams.clear()
        self.live.close()
        self._check_unusable()
        for hold in self.holds:
            self.open_gate(hold)
        self.live.join()
        for hold in self.holds:
            self._check_hold(hold, lambda found, hold=hold: bool(found == hold.index * 10))  # type: ignore[misc]
        for one in self.pending:
            assert one.result.ready()
            self._check_pending(one)
        for stream in self.streams:
            self._read_rest(stream)
        self._begin_again(processes, method)

    @rule(processes=SIZES, method=METHODS)
    def terminate(self, processes: int, method: str) -> None:
        """Terminate the pool. All calls that have not ended are cancelled."""
        self.live.terminate()
        self._check_unusable()
        self.live.join()
        for hold in self.holds:
            self._check_cancelled(hold)
        for one in self.pending:
            assert one.result.ready()
            if not isinstance(outcome_of(lambda one=one: one.result.get(0)), CancelledError):  # type: ignore[misc]
                self._check_pending(one)
            assert len(one.heard) == 1
        for stream in self.streams:
            self._read_rest(stream, may_be_cut=True)
        self._begin_again(processes, method)

    def _begin_again(self, processes: int, method: str) -> None:
        status = self.live.status()
        assert (status.workers, status.calls) == ((), 0)
        self.holds.clear()
        self.pending.clear()
        self.streams.clear()
        self.start(processes, method)

    # --- the invariant ----------------------------------------------------------------------

    @invariant()
    def workers_add_up(self) -> None:
        if self.pool is not None:
            self.turn_until(self._is_right, lambda: (self.processes, self.holds, self.live.status()))

    def _is_right(self) -> bool:
        status = self.live.status()
        by_pid = {worker.pid: worker for worker in status.workers}
        numbers = [worker.number for worker in status.workers]
        staying = [number for number in numbers if number < self.processes]
        leaving = {number for number in numbers if number >= self.processes}
        return (
            (status.state, status.processes) == ("RUN", self.processes)
            and staying == list(range(self.processes))
            and leaving <= {hold.worker for hold in self.running}
            and len(by_pid) == len(numbers) == len(self.live._pool)
            and len(self.holds) <= status.calls
            and all(self._is_at(by_pid.get(hold.pid), hold) for hold in self.running)
            and not any(hold.result.ready() for hold in self.holds)
        )

    def _is_at(self, worker: WorkerStatus | None, hold: Hold) -> bool:
        """Whether a worker is at a held item. The model does not know the index of a single call in its batch."""
        if worker is None or worker.item is None or worker.number != hold.worker:
            return False
        return worker.item == hold.index or not hold.is_map

    def teardown(self) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()
        self.pool = None
        for things in (self.holds, self.pending, self.streams):
            things.clear()
        for gate in self.gates:
            gate.close()
        self.reports.close()
        self._room.cleanup()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
