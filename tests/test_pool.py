"""`Pool`: every method of `multiprocessing.Pool` with its semantics, and the additions, with all start methods."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import itertools
import multiprocessing
import multiprocessing.pool
import os
import pickle
import re
import resource
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairpool import CancelledError, InitializerFailed, Pool
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool, mp_pool, pids_of
from tests.support.processes import all_ended
from tests.support.scripts import python, write_script
from tests.support.tasks import Odd
from tests.support.waiting import PATIENCE

# --- every method, every start method -----------------------------------------------------------------


@pytest.mark.usefixtures("start_method")
class TestEveryMethod:
    def test_apply(self, make_pool: MakePool) -> None:
        pool = make_pool()
        assert pool.apply(tasks.add, (1,)) == 11
        assert pool.apply(tasks.add, (1, 2), {"c": 3}) == 6
        assert pool.apply(tasks.add, args=[1], kwds={"b": 2}) == 3
        assert pool.apply(dict) == {}

    def test_apply_async(self, make_pool: MakePool) -> None:
        pool = make_pool()
        results = [pool.apply_async(tasks.add, (x,), {"b": 1}) for x in range(100)]
        assert [result.get() for result in results] == list(range(1, 101))
        assert all(result.ready() and result.successful() for result in results)

    @pytest.mark.parametrize("chunksize", [None, 1, 7, 1000, 5000])
    def test_map(self, make_pool: MakePool, chunksize: int | None) -> None:
        assert make_pool().map(tasks.square, range(1000), chunksize) == [x * x for x in range(1000)]

    def test_map_async(self, make_pool: MakePool) -> None:
        pool = make_pool()
        first = pool.map_async(tasks.square, range(500))
        second = pool.map_async(tasks.add, range(500), chunksize=3)
        assert second.get() == list(range(10, 510))
        assert first.get() == [x * x for x in range(500)]

    def test_starmap(self, make_pool: MakePool) -> None:
        pool = make_pool()
        pairs = list(zip(range(100), range(100, 200), strict=True))
        assert pool.starmap(tasks.add, pairs) == [a + b for a, b in pairs]
        assert pool.starmap(tasks.add, iter(pairs), chunksize=9) == [a + b for a, b in pairs]
        assert pool.starmap(tasks.add, [[1], (1, 2)]) == [11, 3]

    def test_starmap_async(self, make_pool: MakePool) -> None:
        pairs = [(x, -x) for x in range(100)]
        assert make_pool().starmap_async(tasks.add, pairs).get(PATIENCE) == [0] * 100

    @pytest.mark.parametrize("chunksize", [None, 1, 7, 5000])
    def test_imap(self, make_pool: MakePool, chunksize: int | None) -> None:
        results = make_pool().imap(tasks.square, range(1000), chunksize)
        assert iter(results) is results
        assert next(results) == 0
        assert results.next(timeout=PATIENCE) == 1
        assert list(results) == [x * x for x in range(2, 1000)]
        with pytest.raises(StopIteration):
            next(results)
        with pytest.raises(StopIteration):
            results.next(timeout=0.01)

    @pytest.mark.parametrize("chunksize", [None, 1, 7, 5000])
    def test_imap_unordered(self, make_pool: MakePool, chunksize: int | None) -> None:
        results = make_pool().imap_unordered(tasks.square, range(1000), chunksize)
        assert sorted(results) == [x * x for x in range(1000)]
        with pytest.raises(StopIteration):
            next(results)

    def test_exceptions_come_back(self, make_pool: MakePool) -> None:
        pool = make_pool()
        for call in (
            lambda: pool.apply(tasks.refuse_odd, (1,)),
            lambda: pool.apply_async(tasks.refuse_odd, (1,)).get(),
            lambda: pool.map(tasks.refuse_odd, [0, 1, 2, 3]),
            lambda: pool.map_async(tasks.refuse_odd, [0, 1, 2, 3]).get(),
            lambda: pool.starmap(tasks.refuse_odd, [(0,), (1,)]),
            lambda: pool.starmap_async(tasks.refuse_odd, [(0,), (1,)]).get(),
            lambda: list(pool.imap(tasks.refuse_odd, [0, 1, 2, 3])),
            lambda: list(pool.imap_unordered(tasks.refuse_odd, [0, 1, 2])),
        ):
            with pytest.raises(Odd) as caught:
                call()
            assert caught.value.args == ("1 is odd", 1)
            assert type(caught.value.__cause__) is mp_pool.RemoteTraceback
            assert 'raise Odd(f"{x} is odd", x)' in str(caught.value.__cause__)

    def test_any_callable(self, make_pool: MakePool) -> None:
        pool = make_pool()
        offset = 100

        def closure(x: int) -> int:
            return x + offset

        class Local:
            def __init__(self, x: int) -> None:
                self.x = x

            def plus(self, y: int) -> int:
                return self.x + y

        assert pool.map(lambda x: x + 1, [1, 2]) == [2, 3]
        assert pool.map(closure, [1, 2]) == [101, 102]
        assert pool.map(Local(5).plus, [1, 2]) == [6, 7]
        assert pool.map(functools.partial(tasks.add, 5, c=1), [1, 2]) == [7, 8]
        assert pool.map(str.upper, "ab") == ["A", "B"]
        assert pool.map("{}!".format, "ab") == ["a!", "b!"]
        assert [made.x for made in pool.map(Local, [1, 2])] == [1, 2]
        assert {type(made) for made in pool.map(Local, [1, 2])} == {Local}

    def test_initializer(self, make_pool: MakePool) -> None:
        pool = make_pool(initializer=functools.partial(tasks.remember, a=1))
        assert pool.apply(tasks.recall, ("a",)) == 1
        told = make_pool(initializer=tasks.remember_value, initargs=([1, "two"],))
        assert told.map(tasks.recall, ["value"] * 20) == [[1, "two"]] * 20

    def test_initializer_runs_in_replacements_too(self, make_pool: MakePool) -> None:
        pool = make_pool(1, initializer=tasks.remember_value, initargs=("here",), maxtasksperchild=1)
        before = pool.apply(tasks.process_id)
        assert pool.apply(tasks.recall, ("value",)) == "here"
        assert pool.apply(tasks.process_id) != before

    def test_join_waits_for_initializers(self, make_pool: MakePool, reports: Reports, gate: Gate) -> None:
        pool = make_pool(1, initializer=tasks.tell_hold_and_tell, initargs=(reports.path, gate.path))
        assert reports.next() == "begun"
        pool.close()
        thread = threading.Thread(target=pool.join)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        gate.let()
        thread.join()
        assert reports.next() == "ended"

    def test_initializer_that_raises_fails_the_first_call(self, make_pool: MakePool) -> None:
        pool = make_pool(initializer=tasks.raise_this, initargs=(Odd("broken from the start"),))
        for call in (
            lambda: pool.map(tasks.square, range(10)),
            lambda: pool.apply(tasks.square, (1,)),
            lambda: pool.apply_async(tasks.square, (1,)).get(PATIENCE),
            lambda: list(pool.imap(tasks.square, range(10))),
            lambda: list(pool.imap_unordered(tasks.square, range(10))),
        ):
            with pytest.raises(InitializerFailed, match="broken from the start") as caught:
                call()
            assert "raise error" in str(caught.value)
            assert "in raise_this" in str(caught.value)
        pool.close()
        pool.join()

    @pytest.mark.parametrize("how", ["exit", "segfault"])
    def test_initializer_that_dies_fails_the_first_call(self, make_pool: MakePool, how: str) -> None:
        pool = make_pool(initializer=tasks.DEATHS[how])
        with pytest.raises(InitializerFailed):
            pool.map(tasks.square, range(10))
        with pytest.raises(InitializerFailed):
            pool.map(tasks.square, range(10))

    def test_maxtasksperchild(self, make_pool: MakePool) -> None:
        pool = make_pool(1, maxtasksperchild=2)
        tally = collections.Counter(pool.map(tasks.process_id, range(6), chunksize=1))
        assert sorted(tally.values()) == [2, 2, 2]
        assert len(set(pool.map(tasks.process_id, range(20)))) >= 2

    def test_resize(self, make_pool: MakePool, gate: Gate, reports: Reports) -> None:
        pool = make_pool(2)
        pool.resize(4)
        assert pool.status().processes == 4
        result = pool.map_async(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(4), chunksize=1)
        four = {int(line.split()[0]) for line in reports.take(4)}
        assert len(four) == 4
        pool.resize(1)  # while all workers are busy: they finish what they hold
        gate.let(4)
        assert result.get(PATIENCE) == [0, 1, 2, 3]
        (last,) = set(pool.map(tasks.process_id, range(50), chunksize=1))
        assert last in four
        assert all_ended(four - {last})
        assert pids_of(pool) == [last]
        pool.resize(3)
        assert len(set(pids_of(pool)) - {0}) == 3
        assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]

    def test_close_lets_submitted_calls_end(self, make_pool: MakePool, gate: Gate) -> None:
        pool = make_pool()
        calls = [pool.apply_async(tasks.held, (gate.path, x)) for x in range(6)]
        whole = pool.map_async(functools.partial(tasks.held, gate.path), range(6))
        stream = pool.imap(functools.partial(tasks.held, gate.path), range(6))
        pids = pids_of(pool)
        pool.close()
        gate.let(18)
        pool.join()
        assert all_ended(pids, timeout=0)
        assert [call.get(0) for call in calls] == list(range(6))
        assert whole.get(0) == list(range(6))
        assert list(stream) == list(range(6))

    def test_terminate_ends_pending_calls(self, make_pool: MakePool, gate: Gate) -> None:
        pool = make_pool()
        hold = functools.partial(tasks.held, gate.path)
        call = pool.apply_async(hold, (1,))
        whole = pool.map_async(hold, range(100))
        stream = pool.imap_unordered(hold, range(100))
        pids = pids_of(pool)
        pool.terminate()
        assert all_ended(pids, timeout=0)
        for result in (call, whole):
            result.wait()
            assert result.ready()
            assert not result.successful()
            with pytest.raises(CancelledError):
                result.get()
        with pytest.raises(CancelledError):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
        pool.join()

    def test_a_pool_in_a_task(self, make_pool: MakePool, start_method: str) -> None:
        pool = make_pool()
        found = pool.starmap(tasks.nested, [(start_method, [1, 2, 3]), (start_method, [4, 5])])
        assert found == [[1, 4, 9], [16, 25]]

    def test_a_thread_in_a_task(self, make_pool: MakePool) -> None:
        assert make_pool().map(tasks.run_thread, range(10)) == list(range(0, 20, 2))

    def test_a_worker_is_a_daemonic_process_with_a_name(
        self, make_pool: MakePool, gate: Gate, reports: Reports
    ) -> None:
        pool = make_pool(2)
        ask = functools.partial(tasks.who_am_i, reports.path, gate.path)
        result = pool.map_async(ask, range(2), chunksize=1)
        reports.take(2)
        gate.let(2)
        names, daemon, parents = zip(*result.get(PATIENCE), strict=True)
        assert all(re.fullmatch(r"[A-Z]\w+PoolWorker-\d+", name) for name in names)
        assert len(set(names)) == 2
        assert daemon == (True, True)
        assert parents == (os.getpid(), os.getpid())

    def test_workers_have_different_random_states(self, make_pool: MakePool, gate: Gate, reports: Reports) -> None:
        pool = make_pool(3)
        roll = functools.partial(tasks.tell_pid_and_roll, reports.path, gate.path)
        result = pool.map_async(roll, range(3), chunksize=1)
        reports.take(3)
        gate.let(3)
        pids, numbers = zip(*result.get(PATIENCE), strict=True)
        assert len(set(pids)) == 3
        assert len(set(numbers)) == 3

    def test_no_item_runs_in_the_process_of_its_caller(self, make_pool: MakePool) -> None:
        pool = make_pool(2)
        found = set(pool.map(tasks.process_id, range(100)))
        assert os.getpid() not in found
        assert found <= set(pids_of(pool))


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "direct"])
def test_prints_of_tasks_reach_a_redirected_stdout(start_method: str, tmp_path: Path) -> None:
    script = write_script(
        tmp_path,
        """
        import sys
        from pairpool import Pool

        def say(x):
            print(f"out {x}")
            sys.stderr.write(f"err {x}\\n")  # unbuffered: a line must be one write

        if __name__ == "__main__":
            print("buffered before the fork")
            with Pool(2, start_method=sys.argv[1]) as pool:
                pool.map(say, range(50))
                print("after")
        """,
    )
    done = python(script, start_method)
    assert done.returncode == 0, done.stderr
    expected = ["after", "buffered before the fork", *(f"out {x}" for x in range(50))]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert sorted(done.stderr.splitlines()) == sorted(f"err {x}" for x in range(50))


# --- results ------------------------------------------------------------------------------------------


def test_a_result_before_its_call_has_ended(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool()
    result = pool.apply_async(tasks.held, (gate.path, "value"))
    assert not result.ready()
    with pytest.raises(ValueError, match=r"^<.*AsyncResult object at .*> not ready$"):
        result.successful()
    result.wait(0)
    result.wait(timeout=0.01)
    for timeout in (0, 0.01, -1):
        with pytest.raises(multiprocessing.TimeoutError) as caught:
            result.get(timeout)
        assert caught.value.args == ()
    gate.let()
    result.wait(PATIENCE)
    assert result.ready()
    assert result.successful()
    assert result.get() == result.get(0) == "value"


def test_a_result_that_is_an_exception(make_pool: MakePool) -> None:
    result = make_pool().apply_async(tasks.raise_this, (Odd("text", 1),))
    result.wait(PATIENCE)
    assert result.ready()
    assert not result.successful()
    for _ in range(2):
        with pytest.raises(Odd, match="text") as caught:
            result.get(0)
        assert caught.value.args == ("text", 1)


def test_a_result_has_all_methods_of_a_multiprocessing_result(make_pool: MakePool) -> None:
    public = {name for name in dir(mp_pool.ApplyResult) if not name.startswith("_")}
    result = make_pool().apply_async(tasks.square, (3,))
    assert public <= set(dir(result))
    assert result.get() == 9


def test_a_pool_has_all_methods_of_a_multiprocessing_pool() -> None:
    public = {name for name in dir(mp_pool.Pool) if not name.startswith("_")} - {"Process"}
    assert public <= set(dir(Pool))


def test_imap_waits_for_the_first_and_imap_unordered_does_not(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    hold_zero = functools.partial(tasks.hold_zero, gate.path)
    unordered = pool.imap_unordered(hold_zero, range(10), chunksize=1)
    assert sorted(itertools.islice(unordered, 9)) == list(range(1, 10))
    with pytest.raises(multiprocessing.TimeoutError):
        unordered.next(timeout=0.01)
    gate.let()
    assert list(unordered) == [0]

    ordered = pool.imap(hold_zero, range(10), chunksize=1)
    assert pool.apply(tasks.square, (2,)) == 4  # by then the other worker has ended its first items
    for timeout in (0, 0.01):
        with pytest.raises(multiprocessing.TimeoutError):
            ordered.next(timeout)
    gate.let()
    assert list(ordered) == list(range(10))


def test_a_stream_goes_on_after_an_exception(make_pool: MakePool) -> None:
    results = make_pool().imap(tasks.refuse_odd, range(6))
    found: list[int | str] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            break
        except Odd as error:
            found.append(str(error.args[0]))
    assert found == [0, "1 is odd", 2, "3 is odd", 4, "5 is odd"]


def test_map_raises_only_after_all_items_have_ended(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    result = pool.map_async(functools.partial(tasks.fail_zero_hold_others, gate.path), range(4), chunksize=1)
    result.wait(0.05)
    assert not result.ready()
    gate.let(2)
    result.wait(0.05)
    assert not result.ready()
    gate.let()
    with pytest.raises(Odd, match="zero"):
        result.get(PATIENCE)


def test_map_raises_the_first_of_several_exceptions(make_pool: MakePool) -> None:
    with pytest.raises(Odd, match="1 is odd"):
        make_pool().map(tasks.refuse_odd, range(1000))


def test_return_exceptions(make_pool: MakePool) -> None:
    pool = make_pool()
    singles = [(x,) for x in range(5)]
    calls: list[Callable[[], Iterable[Any]]] = [
        lambda: pool.map(tasks.refuse_odd, range(5), return_exceptions=True),
        lambda: pool.starmap(tasks.refuse_odd, singles, return_exceptions=True),
        lambda: pool.map_async(tasks.refuse_odd, range(5), return_exceptions=True).get(PATIENCE),
        lambda: pool.starmap_async(tasks.refuse_odd, singles, return_exceptions=True).get(PATIENCE),
        lambda: pool.imap(tasks.refuse_odd, range(5), return_exceptions=True),
        lambda: sorted(
            pool.imap_unordered(tasks.refuse_odd, range(5), return_exceptions=True),
            key=lambda x: x.args[1] if isinstance(x, BaseException) else x,
        ),
    ]
    for call in calls:
        shown = [x.args if type(x) is Odd else x for x in call()]
        assert shown == [0, ("1 is odd", 1), 2, ("3 is odd", 3), 4]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("a task's own"), GeneratorExit(), StopIteration(5)])
def test_a_base_exception_of_a_task_belongs_to_its_item(make_pool: MakePool, error: BaseException) -> None:
    pool = make_pool()
    with pytest.raises(type(error)) as caught:
        pool.apply(tasks.raise_this, (error,))
    assert caught.value.args == error.args
    found = pool.map(tasks.raise_any, [error, error], return_exceptions=True)
    assert [(type(one), one.args) for one in found] == [(type(error), error.args)] * 2
    assert pool.map(tasks.square, range(3)) == [0, 1, 4]


def test_no_reference_to_arguments_and_results_is_kept(make_pool: MakePool) -> None:
    pool = make_pool(1)
    things = [tasks.Thing() for _ in range(10)]
    watched = [weakref.ref(thing) for thing in things]
    returned = pool.map(tasks.identity, things)
    watched += [weakref.ref(thing) for thing in returned]
    watched.append(weakref.ref(pool.apply(tasks.identity, (things[0],))))
    watched += [weakref.ref(thing) for thing in pool.imap(tasks.identity, things)]
    things.clear()
    returned.clear()
    gc.collect()
    assert len(watched) == 31
    assert [ref() for ref in watched if ref() is not None] == []
    assert pool.map(tasks.count_things, [None]) == [0]


# --- callbacks ----------------------------------------------------------------------------------------


def test_a_callback_has_run_before_the_result_is_ready(make_pool: MakePool) -> None:
    pool = make_pool()
    for _ in range(50):
        called: list[object] = []
        assert pool.apply_async(tasks.square, (7,), callback=called.append).get(PATIENCE) == 49
        assert called == [49]
        called.clear()
        pool.map_async(tasks.square, [1, 2], callback=called.append).wait(PATIENCE)
        assert called == [[1, 4]]
        called.clear()
        pool.starmap_async(tasks.add, [(1, 2)], callback=called.append).wait(PATIENCE)
        assert called == [[3]]


def test_each_outcome_has_its_callback(make_pool: MakePool) -> None:
    pool = make_pool()
    good: list[object] = []
    bad: list[BaseException] = []
    calls: list[Callable[[], Any]] = [
        lambda: pool.apply_async(tasks.refuse_odd, (1,), {}, good.append, bad.append),
        lambda: pool.map_async(tasks.refuse_odd, [0, 1], None, good.append, bad.append),
        lambda: pool.starmap_async(tasks.refuse_odd, [(0,), (1,)], None, good.append, bad.append),
    ]
    for call in calls:
        call().wait(PATIENCE)
        (error,) = bad
        assert isinstance(error, Odd)
        bad.clear()
    assert good == []
    assert pool.apply_async(tasks.square, (2,), callback=good.append, error_callback=bad.append).get() == 4
    assert pool.map_async(tasks.square, [], callback=good.append, error_callback=bad.append).get() == []
    assert good == [4, []]
    assert bad == []


def test_callbacks_run_although_no_thread_waits(make_pool: MakePool) -> None:
    pool = make_pool()
    called: list[int] = []
    all_there = threading.Event()

    def note(value: int) -> None:
        called.append(value)
        if len(called) == 200:
            all_there.set()

    for x in range(200):
        pool.apply_async(tasks.square, (x,), callback=note)
    assert all_there.wait(PATIENCE)
    assert sorted(called) == [x * x for x in range(200)]


def test_a_callback_that_raises_affects_nothing_else(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool()

    def complain(_value: object) -> None:
        raise Odd("in the callback")

    result = pool.apply_async(tasks.square, (3,), callback=complain)
    assert result.get(PATIENCE) == 9
    assert result.successful()
    failed = pool.apply_async(tasks.refuse_odd, (3,), error_callback=complain)
    with pytest.raises(Odd, match="3 is odd"):
        failed.get(PATIENCE)
    assert pool.map_async(tasks.square, [1, 2], callback=complain).get(PATIENCE) == [1, 4]
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]
    assert caplog.text.count("Odd: in the callback") == 3


def test_a_callback_may_use_the_pool(make_pool: MakePool) -> None:
    pool = make_pool()
    found: list[object] = []
    over = threading.Event()

    def more(value: int) -> None:
        found.append(pool.apply(tasks.add, (value,)))
        found.append(pool.map(tasks.square, range(3)))
        found.append(list(pool.imap(tasks.square, range(3))))
        if value < 1000:
            pool.apply_async(tasks.square, (value,), callback=more)
        else:
            over.set()

    assert pool.apply_async(tasks.square, (2,), callback=more).get(PATIENCE) == 4
    assert over.wait(PATIENCE)
    assert found == [one for value in (4, 16, 256, 65536) for one in (value + 10, [0, 1, 4], [0, 1, 4])]


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_callback_may_end_the_pool(make_pool: MakePool, end: str) -> None:
    pool = make_pool()
    result = pool.apply_async(tasks.square, (2,), callback=lambda _value: getattr(pool, end)())
    assert result.get(PATIENCE) == 4
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(tasks.square, (2,))
    pool.join()


# --- input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        [3, 1, 2],
        (3, 1, 2),
        range(5, 0, -2),
        {3: "c", 1: "a"},
        {3, 1, 2},
        {"a": 1}.items(),
        collections.deque([1, 2]),
        "text",
        b"bytes",
        np.arange(5),
        np.arange(6).reshape(2, 3),
        [np.arange(3), None, {"x": [1]}],
        [],
        (),
        {},
        range(0),
        np.zeros(0),
    ],
    ids=repr,
)
def test_every_kind_of_iterable(make_pool: MakePool, items: Iterable[Any]) -> None:
    pool = make_pool()
    expected = [(type(item), repr(item)) for item in items]

    def seen(results: Iterable[Any]) -> list[tuple[type, str]]:
        return [(type(item), repr(item)) for item in results]

    assert seen(pool.map(tasks.identity, items)) == expected
    assert seen(pool.map(tasks.identity, items, chunksize=2)) == expected
    assert seen(pool.map(tasks.identity, iter(items))) == expected
    assert seen(pool.map_async(tasks.identity, items).get(PATIENCE)) == expected
    assert seen(pool.starmap(tasks.identity, [(item,) for item in items])) == expected
    assert seen(pool.imap(tasks.identity, items)) == expected
    assert sorted(seen(pool.imap_unordered(tasks.identity, items)), key=repr) == sorted(expected, key=repr)


class Lying:
    """An input that claims to have `claimed` items, and has three."""

    def __init__(self, claimed: int) -> None:
        self.claimed = claimed

    def __len__(self) -> int:
        return self.claimed

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


@pytest.mark.parametrize("claimed", [0, 2, 5])
def test_a_wrong_length_does_no_harm(make_pool: MakePool, claimed: int) -> None:
    pool = make_pool()
    assert pool.map(tasks.square, Lying(claimed)) == [1, 4, 9]
    assert list(pool.imap(tasks.square, Lying(claimed))) == [1, 4, 9]


def raising_after(count: int, error: BaseException) -> Iterator[int]:
    yield from range(count)
    raise error


class SizedAndRaising:
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        raise Odd("in the input")


class NotToBeBegun:
    def __iter__(self) -> Iterator[int]:
        raise Odd("in the input")


@pytest.mark.parametrize("chunksize", [None, 1])
@pytest.mark.parametrize("count", [0, 3])
def test_map_over_an_input_that_raises_midway(
    make_pool: MakePool, tmp_path: Path, count: int, chunksize: int | None
) -> None:
    pool = make_pool()
    journal = tmp_path / "journal"
    journal.touch()
    log = functools.partial(tasks.count_and_die, str(journal), frozenset())
    calls: list[Callable[[], object]] = [
        lambda: pool.map(log, raising_after(count, Odd("in the input")), chunksize),
        lambda: pool.map_async(log, raising_after(count, Odd("in the input")), chunksize).get(PATIENCE),
        lambda: pool.map(log, raising_after(count, Odd("in the input")), chunksize, return_exceptions=True),
    ]
    for call in calls:
        journal.write_text("")
        with pytest.raises(Odd, match="in the input") as caught:
            call()
        assert caught.value.__cause__ is None
        assert sorted(journal.read_text().split()) == [str(item) for item in range(count)]
    assert pool.map(tasks.square, [3]) == [9]


@pytest.mark.parametrize("items", [SizedAndRaising(), NotToBeBegun()], ids=["next", "iter"])
def test_an_input_that_raises_from_the_start(make_pool: MakePool, items: Iterable[int]) -> None:
    pool = make_pool()
    calls: list[Callable[[], object]] = [
        lambda: pool.map(tasks.square, items, 1),
        lambda: pool.map_async(tasks.square, items, 1).get(PATIENCE),
        lambda: list(pool.imap(tasks.square, items, 1)),
        lambda: list(pool.imap_unordered(tasks.square, items, 1)),
    ]
    for call in calls:
        with pytest.raises(Odd, match="in the input"):
            call()
    assert pool.map(tasks.square, [3]) == [9]


@pytest.mark.parametrize(
    ("count", "chunksize", "whole"),
    [(0, 1, 0), (3, 1, 3), (7, 2, 6), (7, 4, 4), (7, 100, 0), (7, None, 7)],
    ids=repr,
)
def test_streams_over_an_input_that_raises_midway(
    make_pool: MakePool, count: int, chunksize: int | None, whole: int
) -> None:
    """A chunk that could not be filled does not run, as in CPython's own tests."""
    pool = make_pool(1)
    results = pool.imap(tasks.square, raising_after(count, Odd("in the input")), chunksize)
    assert list(itertools.islice(results, whole)) == [x * x for x in range(whole)]
    with pytest.raises(Odd, match="in the input"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)

    unordered = pool.imap_unordered(tasks.square, raising_after(count, Odd("in the input")), chunksize)
    found: list[int] = []
    with pytest.raises(Odd, match="in the input"):
        found.extend(unordered)
    assert set(found) <= {x * x for x in range(whole)}
    assert pool.map(tasks.square, [3]) == [9]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_a_base_exception_of_the_input_is_not_stored(make_pool: MakePool, error: BaseException) -> None:
    pool = make_pool()
    with pytest.raises(type(error)):
        pool.map(tasks.square, raising_after(3, error))
    with pytest.raises(type(error)):
        list(pool.imap(tasks.square, raising_after(3, error)))
    assert pool.map(tasks.square, [3]) == [9]


def test_an_input_that_uses_the_same_pool(make_pool: MakePool) -> None:
    pool = make_pool()
    chained = pool.imap(tasks.add, pool.imap(tasks.square, pool.imap(tasks.add, range(200))))
    assert list(chained) == [(x + 10) ** 2 + 10 for x in range(200)]

    def calling() -> Iterator[int]:
        for x in range(20):
            yield pool.apply(tasks.square, (x,))
            yield sum(pool.map(tasks.square, range(x)))

    expected = [y for x in range(20) for y in (x * x + 10, sum(z * z for z in range(x)) + 10)]
    assert list(pool.imap(tasks.add, calling())) == expected
    assert pool.map(tasks.add, calling()) == expected
    assert sorted(pool.imap_unordered(tasks.add, calling(), 3)) == sorted(expected)


# --- endless input ------------------------------------------------------------------------------------


class Counted:
    """An endless input that knows how far it was read."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.taken += 1
            yield number


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_an_endless_input_is_read_ahead_within_a_bound(make_pool: MakePool, gate: Gate, method: str) -> None:
    pool = make_pool(2)
    source = Counted()
    results = getattr(pool, method)(functools.partial(tasks.held, gate.path), source)
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.05)
    assert 2 <= source.taken <= 50


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_a_stream_yields_results_although_the_next_item_takes_long(
    make_pool: MakePool, gate: Gate, method: str
) -> None:
    """The results come one at a time with `chunksize=1`, which is the default of multiprocessing."""
    pool = make_pool(1)
    results = getattr(pool, method)(functools.partial(tasks.held, gate.path), range(100), 1)
    for number in range(100):
        gate.let()
        assert results.next(timeout=3) == number


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("buffersize", [1, 2, 7])
def test_buffersize_bounds_how_far_the_input_is_read(make_pool: MakePool, method: str, buffersize: int) -> None:
    pool = make_pool(2)
    source = Counted()
    results = getattr(pool, method)(tasks.identity, source, buffersize=buffersize)
    for yielded in range(1, 300):
        results.next(timeout=PATIENCE)
        assert yielded <= source.taken <= yielded + buffersize
    others = pool.imap(tasks.square, range(100), chunksize=7, buffersize=buffersize)
    assert list(others) == [x * x for x in range(100)]


def test_buffersize_items_run_at_the_same_time(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(3)
    source = Counted()
    results = pool.imap(functools.partial(tasks.tell_and_hold, reports.path, gate.path), source, buffersize=3)
    assert sorted(int(line.split()[1]) for line in reports.take(3)) == [0, 1, 2]
    assert source.taken == 3
    gate.let(6)  # enough also for items that begin when these end
    assert list(itertools.islice(results, 3)) == [0, 1, 2]


def test_an_endless_stream_takes_bounded_memory(tmp_path: Path) -> None:
    script = write_script(
        tmp_path,
        """
        import itertools, resource
        from pairpool import Pool

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        with Pool(2) as pool:
            endless = pool.imap_unordered(abs, itertools.count())
            print(sum(itertools.islice(endless, 10)) >= 45)
            pool.map(abs, range(100_000))
            before = peak()
            for method in (pool.imap, pool.imap_unordered):
                stream = method(len, (bytes(100_000) for _ in itertools.count()))
                assert sum(itertools.islice(stream, 3000)) == 300_000_000
            print(peak() - before)
        """,
    )
    done = python(script)
    assert done.returncode == 0, done.stderr
    right, grown = done.stdout.split()
    assert right == "True"
    assert int(grown) < 60e6


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_a_stream_runs_before_it_is_read(make_pool: MakePool, reports: Reports, method: str) -> None:
    """A stream runs a few batches ahead. It runs to its end when no reader is expected any more."""
    pool = make_pool()
    results = getattr(pool, method)(functools.partial(tasks.tell, reports.path), range(200))
    first = sorted(map(int, reports.take(8)))
    assert first == sorted(set(first))
    pool.close()
    pool.join()
    assert sorted([*first, *map(int, reports.take(192))]) == list(range(200))
    assert list(results) == [None] * 200


def test_a_dropped_stream_ends_the_rest_of_its_call(make_pool: MakePool) -> None:
    pool = make_pool()
    source = Counted()
    results = pool.imap(tasks.square, source)
    assert next(results) == 0
    del results
    gc.collect()
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]
    taken = source.taken
    assert pool.map(tasks.square, range(1000)) == [x * x for x in range(1000)]
    assert source.taken == taken
    pool.close()
    pool.join()


# --- bad arguments, and states in which a call is refused ---------------------------------------------


def error_of(call: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever multiprocessing raises
        call()
    return caught.type, str(caught.value)


REFUSED: dict[str, Callable[[Any], object]] = {
    "chunksize 0 in imap": lambda pool: pool.imap(abs, [1], 0),
    "chunksize 0 in imap_unordered": lambda pool: pool.imap_unordered(abs, [1], 0),
    "join while running": lambda pool: pool.join(),
    "pickle": pickle.dumps,
    "map over a number": lambda pool: pool.map(abs, 5),
    "map_async over a number": lambda pool: pool.map_async(abs, 5),
    "starmap over a number": lambda pool: pool.starmap(abs, None),
}

CALLS: dict[str, Callable[[Any], object]] = {
    "apply": lambda pool: pool.apply(abs, (1,)),
    "apply_async": lambda pool: pool.apply_async(abs, (1,)),
    "map": lambda pool: pool.map(abs, [1]),
    "map_async": lambda pool: pool.map_async(abs, [1]),
    "starmap": lambda pool: pool.starmap(abs, [(1,)]),
    "starmap_async": lambda pool: pool.starmap_async(abs, [(1,)]),
    "imap": lambda pool: pool.imap(abs, [1]),
    "imap_unordered": lambda pool: pool.imap_unordered(abs, [1]),
    "with": lambda pool: pool.__enter__(),
}


def ended_like_multiprocessing(make_pool: MakePool, prepare: str) -> Iterator[Any]:
    """A pool of multiprocessing (of threads, which is the same code) and a pool of pairpool, in the same state."""
    reference = multiprocessing.pool.ThreadPool(1)
    try:
        for pool in (reference, make_pool(1)):
            if prepare:
                getattr(pool, prepare)()
            yield pool
    finally:
        reference.terminate()
        reference.join()


def test_wrong_calls_raise_the_same_errors_as_multiprocessing(make_pool: MakePool) -> None:
    theirs, ours = [
        {what: error_of(lambda: call(pool)) for what, call in REFUSED.items()}  # noqa: B023
        for pool in ended_like_multiprocessing(make_pool, "")
    ]
    assert ours == theirs


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_calls_after_the_end_raise_the_same_errors_as_multiprocessing(make_pool: MakePool, end: str) -> None:
    theirs, ours = [
        {what: error_of(lambda: call(pool)) for what, call in CALLS.items()}  # noqa: B023
        for pool in ended_like_multiprocessing(make_pool, end)
    ]
    assert ours == theirs == dict.fromkeys(CALLS, (ValueError, "Pool not running"))


def test_error_texts_that_programs_may_search_for(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(ValueError, match=r"^Pool is still running$"):
        pool.join()
    with pytest.raises(NotImplementedError, match=r"^pool objects cannot be passed between processes or pickled$"):
        pickle.dumps(pool)
    for number in (0, -1):
        with pytest.raises(ValueError, match=r"^Number of processes must be at least 1$"):
            Pool(number)
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        Pool(1, initializer=5)  # type: ignore[arg-type]
    for tasks_each in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match=r"^maxtasksperchild must be a positive int or None$"):
            Pool(1, maxtasksperchild=tasks_each)  # type: ignore[arg-type]


def test_bad_arguments_are_refused_at_once(make_pool: MakePool) -> None:
    for number in (1.5, "2", [2]):
        with pytest.raises(TypeError, match="processes must be a positive int"):
            Pool(number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start_method must be one of fork, forkserver, direct, not 'spawn'"):
        Pool(1, start_method="spawn")
    pool = make_pool(1)
    methods: list[Callable[..., object]] = [pool.map, pool.map_async, pool.imap, pool.imap_unordered]
    methods += [pool.starmap, pool.starmap_async]
    for bad in (0, -3):
        for method in methods:
            with pytest.raises(ValueError, match=rf"Chunksize must be 1\+, not {bad}"):
                method(abs, [1], bad)
        with pytest.raises(ValueError, match="buffersize must be None or > 0"):
            pool.imap(abs, [1], buffersize=bad)
        with pytest.raises(ValueError, match="Number of processes must be at least 1"):
            pool.resize(bad)
    for method in methods:
        with pytest.raises(TypeError, match=r"^'int' object is not iterable$"):
            method(abs, 5)
    with pytest.raises(TypeError, match="chunksize"):
        pool.map(abs, [1], 1.5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        pool.imap(abs, [1], buffersize=1.5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'int' object is not callable"):
        pool.map(5, [1])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'int' object is not callable"):
        pool.apply(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        pool.imap(None, [1])  # type: ignore[call-overload]
    assert pool.map(abs, [-1]) == [1]


def test_the_default_is_one_worker_per_usable_core() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with Pool() as pool:
            assert pool.status().processes == len(pids_of(pool)) == 1
    finally:
        os.sched_setaffinity(0, allowed)


# --- the end of a pool --------------------------------------------------------------------------------


def test_close_terminate_and_join_in_every_order(make_pool: MakePool) -> None:
    for order in itertools.product(("close", "terminate"), repeat=3):
        pool = make_pool(1)
        assert repr(pool) == "<pairpool.pool.Pool state=RUN pool_size=1>"
        pids = pids_of(pool)
        for end in order:
            getattr(pool, end)()
        state = "TERMINATE" if "terminate" in order else "CLOSE"
        assert f"state={state}" in repr(pool)
        pool.join()
        pool.join()
        pool.terminate()
        pool.close()
        pool.join()
        assert all_ended(pids, timeout=0)


def test_leaving_the_context_terminates(gate: Gate) -> None:
    with Pool(2) as pool:
        pending = pool.map_async(functools.partial(tasks.held, gate.path), range(10))
    with pytest.raises(CancelledError):
        pending.get()
    pool.join()
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pytest.fail("a pool that has ended was entered")


def test_an_exception_in_the_context_is_not_changed() -> None:
    error = Odd("the body's own")
    with pytest.raises(Odd) as caught, Pool(1):
        raise error
    assert caught.value is error
    assert error.__cause__ is error.__context__ is None


def test_a_dropped_pool_warns_and_leaves_nothing() -> None:
    pools = [Pool(1)]
    pids = pids_of(pools[0])
    text = r"^unclosed running multiprocessing pool <.*Pool state=RUN pool_size=1>$"
    with pytest.warns(ResourceWarning, match=text):
        pools.clear()
    assert all_ended(pids)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_pool_ends_although_its_warning_is_an_error() -> None:
    pool = Pool(2)
    pids = pids_of(pool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del pool
        gc.collect()
    assert all_ended(pids)


@pytest.mark.parametrize("step", ["_adopt", "_start", "live"])
def test_a_pool_whose_opening_is_interrupted_leaves_nothing(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler of a signal may raise at any step. A check after the test finds processes and descriptors."""
    original = getattr(Pool, step)

    def interrupted(*args: Any) -> None:
        original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pool(2, live=True)


def test_a_closed_pool_can_be_dropped() -> None:
    pool = Pool(1)
    pids = pids_of(pool)
    pool.close()
    del pool
    gc.collect()
    assert all_ended(pids)


def test_a_call_keeps_its_pool_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool ends with the call, in the thread that drops the last reference: normally that which drives."""
    complaints: list[object] = []
    before = set(threading.enumerate())
    monkeypatch.setattr("sys.excepthook", lambda *error: complaints.append(error))

    def let_go_of_it() -> None:
        pools = [Pool(1)]
        pids = pids_of(pools[0])
        result = pools[0].apply_async(tasks.square, (4,))
        pools.clear()
        assert result.get(PATIENCE) == 16
        assert all_ended(pids)
        for thread in set(threading.enumerate()) - before:
            thread.join(PATIENCE)

    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        let_go_of_it()
    assert complaints == []


def test_terminate_while_another_thread_waits(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    hold = functools.partial(tasks.tell_and_hold, reports.path, gate.path)
    caught: list[BaseException] = []

    def wait(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    calls: list[Callable[[], object]] = [
        lambda: pool.map(hold, range(4)),
        lambda: pool.apply(hold, (9,)),
        lambda: list(pool.imap(hold, range(4))),
    ]
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    threads[0].start()
    reports.next()
    for thread in threads[1:]:
        thread.start()
    pool.terminate()
    for thread in threads:
        thread.join(PATIENCE)
    # a thread that came only after the end gets an error; the first one has certainly waited
    assert len(caught) == 3
    assert {type(error) for error in caught} <= {CancelledError, ValueError}
    assert CancelledError in {type(error) for error in caught}


# --- several pools, several threads -------------------------------------------------------------------


def test_two_pools_at_once(start_method: str, make_pool: MakePool) -> None:
    one, two = make_pool(), make_pool()
    streams = zip(one.imap(tasks.square, range(100)), two.imap(tasks.add, range(100)), strict=True)
    assert list(streams) == [(x * x, x + 10) for x in range(100)]
    assert not set(pids_of(one)) & set(pids_of(two))
    one.terminate()
    one.join()
    assert two.map(tasks.square, range(100)) == [x * x for x in range(100)]


def test_many_threads_share_a_pool(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    begin = threading.Barrier(12)
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        begin.wait()
        results = pool.map(functools.partial(tasks.add, number), range(50))
        results += pool.imap(functools.partial(tasks.add, number), range(50), 1 + number % 3)
        results += [pool.apply(tasks.add, (number, x)) for x in range(10)]
        results += [one.get() for one in [pool.apply_async(tasks.add, (number, x)) for x in range(10)]]
        found[number] = results

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    expected = [*range(50), *range(50), *range(10), *range(10)]
    assert found == {number: [number + x for x in expected] for number in range(12)}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_pool_outlives_the_thread_that_made_it(method: str) -> None:
    made: list[Pool] = []
    thread = threading.Thread(target=lambda: made.append(Pool(2, start_method=method)))
    thread.start()
    thread.join()
    (pool,) = made
    made.clear()
    with pool:
        before = pids_of(pool)
        assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]
        assert pids_of(pool) == before
        pool.resize(3)
        assert len(set(pool.map(tasks.process_id, range(300), chunksize=1)) - set(before)) <= 1
        assert len(pids_of(pool)) == 3


def test_direct_pools_need_the_main_thread() -> None:
    caught: list[BaseException] = []

    def make() -> None:
        try:
            Pool(1, start_method="direct").terminate()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (error,) = caught
    assert isinstance(error, ValueError)
    assert "main thread" in str(error)


def test_synchronous_calls_start_no_thread(make_pool: MakePool) -> None:
    before = threading.enumerate()
    pool = make_pool()
    pool.map(tasks.square, range(100))
    pool.apply(tasks.square, (1,))
    list(pool.imap(tasks.square, range(100)))
    assert threading.enumerate() == before


def test_descriptors_above_1024(make_pool: MakePool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        pool = make_pool()
        assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]
        assert pool.map(len, [bytes(1_000_000)] * 3) == [1_000_000] * 3
        pool.terminate()
        pool.join()
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- status -------------------------------------------------------------------------------------------


def test_status(start_method: str, make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(2, name="the pool of this test")
    status = pool.status()
    assert (status.name, status.pid, status.state) == ("the pool of this test", os.getpid(), "RUN")
    assert (status.start_method, status.processes, status.calls) == (start_method, 2, 0)
    assert [worker.number for worker in status.workers] == [0, 1]
    assert status.uptime > 0

    result = pool.map_async(functools.partial(tasks.tell_and_hold, reports.path, gate.path), range(10, 13), chunksize=1)
    running = {int(line.split()[0]): int(line.split()[1]) - 10 for line in reports.take(2)}
    status = pool.status()
    assert status.busy == 2
    assert status.calls == 1
    assert {worker.pid: worker.item for worker in status.workers} == running
    for worker in status.workers:
        assert worker.state == "running"
        assert "tell_and_hold" in worker.function
        assert 0 < worker.seconds <= PATIENCE
    gate.let(3)
    result.get(PATIENCE)
    pool.map(tasks.refuse_odd, range(4), return_exceptions=True)
    status = pool.status()
    assert sum(worker.done for worker in status.workers) == 7
    assert sum(worker.failed for worker in status.workers) == 2
    pool.close()
    assert pool.status().state == "CLOSE"
    pool.join()
    assert pool.status().workers == ()


def test_status_while_the_first_function_is_loaded(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    """The first item of a new worker has a start time, so it does not look as old as the machine."""
    pool = make_pool(1)
    result = pool.map_async(tasks.LoadsAtTheGate(reports.path, gate.path), [1])
    reports.take(1)
    status = pool.status()
    gate.let()
    assert status.workers[0].state == "loading"
    assert 0 <= status.workers[0].seconds <= status.uptime
    assert result.get(PATIENCE) == [1]


def test_status_is_frozen(make_pool: MakePool) -> None:
    status = make_pool(1).status()
    for thing in (status, status.workers[0]):
        assert dataclasses.is_dataclass(thing)
        name = dataclasses.fields(thing)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 5)


def test_a_stream_goes_on_while_another_thread_leads(make_pool: MakePool, tmp_path: Path) -> None:
    """A reader that has made room wakes the thread that drives the pool, because no event does."""
    with Gate(tmp_path / "gate") as gate:
        pool = make_pool(2)
        held = pool.apply_async(tasks.wait_for, (gate.path,))
        while not pool._engine.loop._lead:  # the driver thread keeps the lead while that task is held
            time.sleep(0.001)
        for _ in range(20):
            for buffersize in (1, 2, 3):
                found = list(pool.imap(tasks.square, range(12), 1, buffersize=buffersize))
                assert found == [x * x for x in range(12)]
        gate.let()
        held.get(PATIENCE)
