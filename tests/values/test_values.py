"""Arguments and results have the values of one item at a time: the rule, piece by piece.

Each item is pickled before the caller's code runs again, and each result before the worker runs the next item. Batches,
look-ahead, retries and partial reports change the time of an event, but never a value. `test_property.py` searches for
cases that these tests forget.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

import pytest

pytest.importorskip("numpy")

import numpy as np

from pairpool import AsyncPool, Executor, WorkerDied
from tests.support import tasks
from tests.support.gates import Gate
from tests.support.pools import MakePool
from tests.support.waiting import PATIENCE
from tests.values import programs
from tests.values.kinds import CHANGEABLE, KINDS, Counted, Gauge, Leaving, Trouble, change, describe, gauges
from tests.values.ways import LISTS, STREAMS, WAYS, Faces, Way

FirstRuns: TypeAlias = Callable[[str], programs.FirstRun]

COUNT = 40
"""Items of a call: enough for batches of several items."""

BY_NAME = {way.name: way for way in WAYS}

every_way = pytest.mark.parametrize("way", list(BY_NAME))
every_stream = pytest.mark.parametrize("way", [way.name for way in STREAMS])
every_list = pytest.mark.parametrize("way", [way.name for way in LISTS])
with_errors = pytest.mark.parametrize("way", [way.name for way in WAYS if way.keeps_errors])


@pytest.fixture
def faces() -> Iterator[Faces]:
    with Faces() as faces:
        yield faces


Items: TypeAlias = Callable[[], Iterable[Any]]
"""Returns new items of a call, because a plain loop uses them first, and then the call."""


def run(
    faces: Faces, way: Way, function: Callable[[Any], Any], items: Items, chunksize: int | None = None
) -> tuple[list[Any], list[Any]]:
    """Return the outcomes of a call, and the errors: values that differ from a plain loop's, and shared objects."""
    expected = programs.run_one_by_one(function, items() if way.is_stream else list(items()))
    found = way.call(faces, function, items() if way.is_stream else list(items()), chunksize)
    wrong = programs.wrong_ones(found, expected, is_ordered=way.is_ordered)
    return found, wrong[:3] + programs.shared_ones(found)[:3]


def check(
    faces: Faces, way: str, function: Callable[[Any], Any], items: Items, chunksize: int | None = None
) -> list[Any]:
    """Do `run`, fail if there are errors, and return the outcomes."""
    found, wrong = run(faces, BY_NAME[way], function, items, chunksize)
    assert wrong == []
    return found


def check_kinds(
    faces: Faces, way: str, function: Callable[[Any], Any], items: Callable[[str], Iterable[Any]], kinds: Iterable[str]
) -> dict[str, list[Any]]:
    """Do `check` with items of each kind, and return the outcomes by kind.

    Items of one batch may share a large object that several of them contain, so such calls have batches of one item.
    """
    found, wrong = {}, {}
    for kind in kinds:
        chunksize = 1 if BY_NAME[way].wraps_items and KINDS[kind].is_large else None
        found[kind], wrong[kind] = run(faces, BY_NAME[way], function, functools.partial(items, kind), chunksize)
    assert {kind: some for kind, some in wrong.items() if some} == {}
    return found


def submit_of(faces: Faces, face: str) -> Callable[..., Future[Any]]:
    """Return the `submit` of a face."""
    return faces.pool.submit if face == "Pool" else faces.executor.submit


def refilled(kind: str, count: int = COUNT) -> Iterator[Any]:
    """Yield one object again and again with a new content, as readers of frames and simulations do."""
    thing = KINDS[kind].make(0)
    for number in range(count):
        KINDS[kind].fill(thing, number)
        yield thing


# --- arguments ----------------------------------------------------------------------------------------


class TestArguments:
    @every_way
    def test_a_task_changes_no_argument_of_another_item(self, faces: Faces, way: str) -> None:
        """All items are the same object, and each task changes its argument."""
        check_kinds(faces, way, programs.touch, lambda kind: [KINDS[kind].make(1)] * COUNT, KINDS)

    @every_stream
    def test_an_object_may_have_a_new_content_for_each_item(self, faces: Faces, way: str) -> None:
        check_kinds(faces, way, programs.look, refilled, KINDS)

    @pytest.mark.parametrize("way", [way.name for way in STREAMS if "map" in way.name])
    @pytest.mark.parametrize("chunksize", [1, 7])
    def test_an_object_may_have_a_new_content_within_a_fixed_batch(
        self, faces: Faces, way: str, chunksize: int
    ) -> None:
        check(faces, way, programs.look, lambda: refilled("list"), chunksize)

    @every_stream
    def test_items_may_share_a_growing_part(self, faces: Faces, way: str) -> None:
        def growing() -> Iterator[Any]:
            history: list[int] = []
            for number in range(COUNT):
                history.append(number)
                yield {"number": number, "history": history}

        check(faces, way, programs.look, growing)

    @every_way
    def test_several_items_may_contain_the_same_small_object(self, faces: Faces, way: str) -> None:
        """No task sees the changes of another task to a part that both items contain."""
        part: dict[str, Any] = {"settings": [1, 2], "array": np.zeros(100)}
        check(faces, way, programs.touch, lambda: [(part, number) for number in range(COUNT)])

    @every_way
    def test_items_may_be_views_of_one_array(self, faces: Faces, way: str) -> None:
        base = np.arange(200.0)

        def views() -> list[Any]:
            return [base[number : number + 50 : 2] for number in range(COUNT)]

        check(faces, way, programs.touch, views)
        assert np.array_equal(base, np.arange(200.0))

    @every_stream
    def test_items_may_be_views_of_an_array_with_a_new_content(self, faces: Faces, way: str) -> None:
        """Some of the views are read-only, and some have gaps."""

        def views(size: int) -> Iterator[Any]:
            base = np.zeros(2 * size)
            for number in range(COUNT):
                base[:] = number
                view = base[:size] if number % 3 else base[::2]
                view.flags.writeable = number % 2 == 0
                yield view

        for size in (100, 5_000, 20_000):
            check(faces, way, programs.look, functools.partial(views, size))

    @pytest.mark.parametrize("way", [way.name for way in WAYS if not way.wraps_items])
    def test_every_item_may_be_the_same_large_array(self, faces: Faces, way: str) -> None:
        for size, count in ((9_000, COUNT), (200_000, 20)):
            image = np.ones(size)
            check(faces, way, programs.touch, functools.partial(itertools.repeat, image, count))
            assert image[0] == 1.0

    def test_joblib_gives_each_task_its_own_copy_of_a_shared_array(self, faces: Faces) -> None:
        """The array is above joblib's `max_nbytes`: pairpool writes it once into memory that all workers map."""
        image = np.ones(200_000)
        check(faces, "joblib", programs.touch, lambda: [image] * 20, chunksize=1)

    @every_way
    def test_the_pickle_of_an_item_may_depend_on_a_variable(self, faces: Faces, way: str) -> None:
        gauge = Gauge("input")

        def items() -> Iterator[Any]:
            for number in range(COUNT):
                gauges["input"] = number
                yield gauge

        check(faces, way, programs.look, items)

    @every_way
    def test_items_may_have_a_class_that_travels_by_value(self, faces: Faces, way: str) -> None:
        """The workers do not know a class that is local to a function, so the pickle contains its code."""

        class Local:
            def __init__(self) -> None:
                self.numbers = [0]

        def touch_local(thing: Any) -> Any:
            before = list(thing.numbers)
            thing.numbers.append(1)
            return before

        def items() -> Iterator[Any]:
            thing = Local()
            for number in range(COUNT):
                thing.numbers[0] = number
                yield thing

        found = BY_NAME[way].call(faces, touch_local, items() if BY_NAME[way].is_stream else list(items()), None)
        last = COUNT - 1
        assert sorted(found) == [[number if BY_NAME[way].is_stream else last] for number in range(COUNT)]

    @every_way
    def test_tasks_may_have_different_lengths(self, faces: Faces, way: str) -> None:
        """Items are handed back and go to another worker."""
        thing: dict[str, int] = {}

        def items() -> list[Any]:
            return [([0, 200, 2000][number % 7 % 3], thing) for number in range(COUNT)]

        check(faces, way, programs.touch_for, items)

    def test_every_start_method(self, start_method: str) -> None:
        thing: list[int] = []
        with Faces(start_method) as faces:
            for way in BY_NAME:
                check(faces, way, programs.touch, lambda: refilled("nested"))
                check(faces, way, programs.touch, lambda: [thing] * COUNT)

    @pytest.mark.parametrize(
        "options",
        [{"chunksize": 1}, {"chunksize": 7}, {"maxtasksperchild": 5}, {"task_timeout": 60}, {"retries": 2}],
        ids=str,
    )
    def test_options_of_the_pool(self, options: dict[str, Any]) -> None:
        with Faces(**options) as faces:
            for way in ("Pool.imap", "Pool.apply_async", "AsyncPool.imap"):
                check(faces, way, programs.touch, lambda: refilled("list"))
                check(faces, way, programs.give, lambda: (("list", number) for number in range(COUNT)))


class TestSingleCalls:
    """A task does not see changes that the caller makes to an argument after the call has returned."""

    def test_arguments_and_keywords_are_pickled_before_the_call_returns(self, make_pool: MakePool) -> None:
        pool = make_pool()
        args: list[Any] = [[0], {"number": 0}]
        kwds: dict[str, Any] = {"more": [0], "array": np.zeros(10_000)}
        results = []
        expected = []
        for number in range(COUNT):
            args[0][0] = args[1]["number"] = kwds["more"][0] = number
            kwds["array"][:] = number
            expected += programs.run_one_by_one(lambda both: programs.touch_all(*both[0], **both[1]), [(args, kwds)])
            results.append(pool.apply_async(programs.touch_all, args, kwds))
            args[0].append(1)
            kwds["more"].append(1)
            del args[0][1:], kwds["more"][1:]
        args.clear()
        kwds.clear()
        assert [result.get(PATIENCE) for result in results] == expected

    @pytest.mark.parametrize("face", ["Pool", "Executor"])
    def test_submit_takes_the_value_at_once(self, faces: Faces, face: str) -> None:
        submit = submit_of(faces, face)
        thing: dict[str, Any] = {"number": 0}
        futures = []
        for number in range(COUNT):
            thing["number"] = number
            futures.append(submit(programs.look, thing=thing))
        thing.clear()
        expected = [describe({"number": number}) for number in range(COUNT)]
        assert [future.result(PATIENCE) for future in futures] == expected

    def test_a_call_of_another_thread_takes_the_value_at_once(self, make_pool: MakePool, gate: Gate) -> None:
        """Meanwhile the main thread is the leader, and waits for a task that is held."""
        pool = make_pool()
        held = pool.apply_async(functools.partial(tasks.held, gate.path), (1,))
        results: list[Any] = []

        def call() -> None:
            thing = [0]
            for number in range(COUNT):
                thing[0] = number
                results.append(pool.apply_async(programs.look, (thing,)))
            thing.clear()
            gate.let()

        thread = threading.Thread(target=call)
        thread.start()
        assert held.get(PATIENCE) == 1
        thread.join()
        expected = [describe([number]) for number in range(COUNT)]
        assert [result.get(PATIENCE) for result in results] == expected

    def test_calls_that_wait_for_a_worker_keep_their_values(self, make_pool: MakePool, gate: Gate) -> None:
        """All workers are held until the caller has changed every argument."""
        pool = make_pool(1)
        held = pool.apply_async(functools.partial(tasks.held, gate.path), (1,))
        things = [KINDS[kind].make(1) for kind in CHANGEABLE]
        results = [pool.apply_async(programs.look, (thing,)) for thing in things]
        expected = [describe(thing) for thing in things]
        for thing in things:
            change(thing)
        gate.let()
        assert held.get(PATIENCE) == 1
        assert [result.get(PATIENCE) for result in results] == expected


class TestCallables:
    """A callable with a state is like an argument: `multiprocessing` pickles it with every item, too."""

    @pytest.mark.parametrize("way", [way for way in BY_NAME if "lambda" not in way])
    def test_a_task_changes_no_state_for_another_item(self, faces: Faces, way: str) -> None:
        function = functools.partial(programs.touch_all, {"calls": []}, np.zeros(100))
        expected = programs.run_one_by_one(copy.deepcopy(function), [1])
        found = BY_NAME[way].call(faces, function, [1] * COUNT, None)
        assert programs.wrong_ones(found, expected * COUNT) == []

    @pytest.mark.parametrize("way", ["Pool.apply_async", "Pool.submit", "Executor.submit", "AsyncPool.run"])
    def test_a_call_takes_the_state_at_once(self, faces: Faces, way: str) -> None:
        state = {"number": 0}

        def numbers() -> Iterator[int]:
            for number in range(COUNT):
                state["number"] = number
                yield number

        found = BY_NAME[way].call(faces, functools.partial(number_of, state), numbers(), None)
        assert found == [(number, number) for number in range(COUNT)]


def number_of(state: dict[str, int], item: int) -> tuple[int, int]:
    return state["number"], item


# --- sharing inside an item, and large objects --------------------------------------------------------


class TestSharing:
    @every_way
    def test_an_object_that_an_item_contains_twice_stays_one_object(self, faces: Faces, way: str) -> None:
        def items(kind: str) -> list[Any]:
            return [[thing, thing] for thing in map(KINDS[kind].make, range(10))]

        kinds = [kind for kind in CHANGEABLE if kind != "tuple of list"]  # a tuple has no identity of its own
        found = check_kinds(faces, way, programs.is_shared_inside, items, kinds)
        assert found == dict.fromkeys(kinds, [True] * 10)
        for outcomes in check_kinds(faces, way, programs.echo, items, kinds).values():
            assert all(first is second for first, second in outcomes)

    @every_way
    def test_a_container_may_contain_itself(self, faces: Faces, way: str) -> None:
        def items() -> Iterator[Any]:
            for number in range(10):
                thing: list[Any] = [number]
                thing.append(thing)
                yield thing

        assert check(faces, way, programs.contains_itself, items) == [True] * 10
        for thing in check(faces, way, programs.echo, items):
            assert thing[1] is thing

    def test_two_arguments_of_one_call_may_be_one_object(self, make_pool: MakePool) -> None:
        pool = make_pool()
        for thing in ([1], np.zeros(9), np.zeros(200_000)):
            assert pool.starmap(programs.is_same, [(thing, thing)] * 20) == [True] * 20
            assert pool.apply_async(programs.is_same, (thing,), {"second": thing}).get(PATIENCE)
            assert pool.submit(programs.is_same, thing, thing).result(PATIENCE)

    def test_two_arguments_of_a_joblib_call_may_be_one_object(self, faces: Faces) -> None:
        """The backend looks for large arrays in the arguments, and leaves the other objects as they are."""
        parallel = faces.parallel()
        from joblib import delayed

        array = np.zeros(9)
        itself: list[Any] = [array]
        itself.append(itself)
        for thing in ([1], [array], {"array": array}, itself, array):
            assert parallel(delayed(programs.is_same)(thing, second=thing) for _ in range(3)) == [True] * 3
        assert parallel([delayed(programs.contains_itself)(itself)]) == [True]
        assert parallel([delayed(programs.is_shared_inside)([array, array])]) == [True]

    @pytest.mark.parametrize("method", ["map", "starmap", "map_async", "starmap_async", "AsyncPool.map"])
    def test_a_large_object_inside_many_items_is_pickled_a_few_times(self, faces: Faces, method: str) -> None:
        big = Counted()
        items = [(big, number) for number in range(1000)]
        Counted.times = 0
        if method == "AsyncPool.map":
            found = faces.run(faces.async_pool.map(second_of, items))
        elif method.startswith("star"):
            found = getattr(faces.pool, method)(second, items)
        else:
            found = getattr(faces.pool, method)(second_of, items)
        found = found if isinstance(found, list) else found.get(PATIENCE)
        assert found == list(range(1000))
        assert Counted.times <= 100

    @every_list
    def test_with_chunksize_1_tasks_share_no_large_object(self, faces: Faces, way: str) -> None:
        array = np.zeros(9_000)
        items = [{"array": array, "number": number} for number in range(COUNT)]
        check(faces, way, programs.touch, lambda: items, chunksize=1)

    @every_stream
    def test_streams_and_single_calls_share_no_large_object(self, faces: Faces, way: str) -> None:
        array = np.zeros(9_000)
        check(faces, way, programs.touch, lambda: ((array, number) for number in range(COUNT)))


def second(_big: Any, number: int) -> int:
    return number


def second_of(item: tuple[Any, int]) -> int:
    return item[1]


# --- results ------------------------------------------------------------------------------------------


class TestResults:
    @every_way
    def test_a_kept_object_has_the_value_of_its_item(self, faces: Faces, way: str) -> None:
        """All tasks return the same object of the module, and each task gives it a new content."""
        check_kinds(faces, way, programs.give, lambda kind: [(kind, number) for number in range(COUNT)], KINDS)

    @every_way
    def test_a_kept_object_inside_a_new_container(self, faces: Faces, way: str) -> None:
        kinds = list(KINDS)

        def items() -> list[Any]:
            return [(kinds[number % len(kinds)], number) for number in range(2 * COUNT)]

        for _number, [thing], again in check(faces, way, programs.give_inside, items):
            assert again["again"] is thing

    @every_way
    def test_a_view_of_a_kept_array(self, faces: Faces, way: str) -> None:
        check(faces, way, programs.give_a_view, lambda: range(COUNT))

    @every_way
    def test_a_kept_object_that_no_task_changes_is_a_new_object_in_each_result(self, faces: Faces, way: str) -> None:
        found = check(faces, way, programs.give_constant, lambda: range(COUNT))
        assert programs.changed_by(found, 3) == []

    @every_way
    def test_a_change_to_one_result_changes_no_other_result(self, faces: Faces, way: str) -> None:
        """Each task returns its argument, and all arguments are the same object."""
        things = {kind: KINDS[kind].make(1) for kind in CHANGEABLE}
        found = check_kinds(faces, way, programs.return_twice, lambda kind: [things[kind]] * 20, things)
        for kind, outcomes in found.items():
            assert programs.changed_by(outcomes, 7) == [], kind
            assert describe(things[kind]) == describe(KINDS[kind].make(1))

    def test_every_start_method(self, start_method: str) -> None:
        with Faces(start_method) as faces:
            for way in ("Pool.map", "Pool.imap", "Pool.submit", "Executor.map"):
                check_kinds(faces, way, programs.give, lambda kind: [(kind, number) for number in range(COUNT)], KINDS)


class TestPartialReports:
    """The results before a long item are reported while that item runs. It may have changed the kept object by then."""

    HELD = 100
    """The number of the item that is held. Batches have several items by then."""

    def items(self, kind: str) -> list[tuple[str, int]]:
        return [(kind, number) for number in range(self.HELD + 10)]

    def check(self, found: list[Any], kind: str, *, is_ordered: bool = True) -> list[Any]:
        """Return the errors in the results of a kind."""
        expected = programs.run_one_by_one(programs.give, self.items(kind))
        return programs.wrong_ones(found, expected, is_ordered=is_ordered)[:3] + programs.shared_ones(found)[:3]

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_of_a_stream(self, make_pool: MakePool, gate: Gate, method: str) -> None:
        pool = make_pool(1)
        wrong = {}
        for kind in KINDS:
            function = functools.partial(programs.give_and_hold, gate.path, self.HELD)
            stream = getattr(pool, method)(function, self.items(kind))
            found = [stream.next(PATIENCE) for _ in range(self.HELD)]
            gate.let()
            wrong[kind] = self.check([*found, *stream], kind, is_ordered=method == "imap")
        assert {kind: some for kind, some in wrong.items() if some} == {}

    def test_of_single_calls(self, gate: Gate, make_pool: MakePool) -> None:
        pool = make_pool(1)
        wrong = {}
        for kind in KINDS:
            function = functools.partial(programs.give_and_hold, gate.path, self.HELD)
            results = [pool.apply_async(function, (item,)) for item in self.items(kind)]
            found = [result.get(PATIENCE) for result in results[: self.HELD]]
            gate.let()
            wrong[kind] = self.check(found + [result.get(PATIENCE) for result in results[self.HELD :]], kind)
        assert {kind: some for kind, some in wrong.items() if some} == {}

    def test_of_an_asynchronous_stream(self, gate: Gate) -> None:
        async def main() -> list[Any]:
            found: list[Any] = []
            function = functools.partial(programs.give_and_hold, gate.path, self.HELD)
            async with AsyncPool(1) as pool, asyncio.timeout(PATIENCE):
                async for result in pool.imap(function, self.items("nested")):
                    found.append(result)
                    if len(found) == self.HELD:
                        gate.let()
            return found

        assert self.check(asyncio.run(main()), "nested") == []


# --- exceptions ---------------------------------------------------------------------------------------


class TestExceptions:
    @with_errors
    def test_a_kept_exception_has_the_value_of_its_item(self, faces: Faces, way: str) -> None:
        found = check(faces, way, programs.fail_with_kept, lambda: range(COUNT))
        assert [type(error) for error in found] == [Trouble] * COUNT
        assert programs.changed_by(found, 5) == []

    @with_errors
    def test_an_exception_holds_the_argument(self, faces: Faces, way: str) -> None:
        thing = {"parts": [1]}
        check(faces, way, programs.fail_with_argument, lambda: [thing] * COUNT)

    @with_errors
    def test_results_and_exceptions_in_turn(self, faces: Faces, way: str) -> None:
        check(faces, way, programs.fail_if_odd, lambda: range(COUNT))

    def test_a_function_that_cannot_be_loaded_gives_each_item_its_own_exception(self, make_pool: MakePool) -> None:
        function = tasks.FragileFunction("raise", "unpickle", 0)
        found: list[Any] = make_pool().map(function, range(20), return_exceptions=True)
        assert [type(error) for error in found] == [tasks.Odd] * 20
        assert programs.shared_ones(found) == []


# --- items that run again -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "exit", "kill"])
class TestRetries:
    """The first run changes its own copy and fails. The second run gets the argument as it was first pickled."""

    @pytest.fixture
    def first_run(self, tmp_path: Path, how: str) -> Callable[[str], programs.FirstRun]:
        """Make a function for items of a kind, whose first run fails."""
        return lambda kind: programs.FirstRun(str(tmp_path / f"runs of {kind}"), how)

    def check_calls(self, first_run: FirstRuns, submit: Callable[[programs.FirstRun, Any], Callable[[], Any]]) -> None:
        """Submit a call for each kind, change its argument at once, and compare the argument of the second run."""
        found, expected = {}, {}
        for kind in CHANGEABLE:
            thing, function = KINDS[kind].make(1), first_run(kind)
            expected[kind] = describe(thing), 2
            result = submit(function, thing)
            change(thing)
            found[kind] = result(), function.runs()
        assert found == expected

    def test_of_a_single_call(self, make_pool: MakePool, first_run: FirstRuns) -> None:
        pool = make_pool()

        def submit(function: programs.FirstRun, thing: Any) -> Callable[[], Any]:
            result = pool.apply_async(function, (thing,), retries=1, retry_on=Trouble)
            return lambda: result.get(PATIENCE)

        self.check_calls(first_run, submit)

    @pytest.mark.parametrize("face", ["Pool", "Executor"])
    def test_of_submit(self, first_run: FirstRuns, face: str) -> None:
        with Faces(retries=1, retry_on=Trouble) as faces:

            def submit(function: programs.FirstRun, thing: Any) -> Callable[[], Any]:
                future = submit_of(faces, face)(function, thing)
                return lambda: future.result(PATIENCE)

            self.check_calls(first_run, submit)

    def test_of_an_awaited_call(self, faces: Faces, first_run: FirstRuns) -> None:
        pool = faces.async_pool.with_options(retries=1, retry_on=Trouble)

        async def start(function: programs.FirstRun, thing: Any) -> asyncio.Task[Any]:
            call = asyncio.create_task(pool.run(function, thing))
            await asyncio.sleep(0)  # the call begins in this step of the event loop
            return call

        async def end(call: asyncio.Task[Any]) -> Any:
            return await call

        def submit(function: programs.FirstRun, thing: Any) -> Callable[[], Any]:
            call = faces.run(start(function, thing))
            return lambda: faces.run(end(call))

        self.check_calls(first_run, submit)

    @pytest.mark.parametrize("chunksize", [None, 4])
    def test_of_a_stream(self, make_pool: MakePool, first_run: FirstRuns, chunksize: int | None) -> None:
        """The items behind the one that fails are run after it, with their own values."""
        pool = make_pool()
        wrong = {}
        for kind in CHANGEABLE:
            items = refilled(kind, 12)
            found = list(pool.imap(first_run(kind), items, chunksize, retries=1, retry_on=Trouble))
            wrong[kind] = programs.wrong_ones(found, programs.run_one_by_one(programs.look, refilled(kind, 12)))
        assert {kind: some for kind, some in wrong.items() if some} == {}

    def test_of_a_map(self, make_pool: MakePool, first_run: FirstRuns) -> None:
        pool = make_pool()
        wrong = {}
        for kind in CHANGEABLE:
            things = [KINDS[kind].make(number) for number in range(12)]
            found = pool.map(first_run(kind), things, 4, retries=1, retry_on=Trouble)
            wrong[kind] = programs.wrong_ones(found, programs.run_one_by_one(programs.look, things))
        assert {kind: some for kind, some in wrong.items() if some} == {}


def test_the_other_items_of_a_batch_survive_the_death_of_the_worker(start_method: str, make_pool: MakePool) -> None:
    """They go to another worker as they were first pickled."""
    found: list[Any] = list(make_pool().imap(programs.touch_or_die, refilled("list", 100), 20, return_exceptions=True))
    assert isinstance(found.pop(50), WorkerDied)
    expected = programs.run_one_by_one(programs.look, refilled("list", 100))
    del expected[50]
    assert programs.wrong_ones(found, expected) == []


# --- items that cannot be pickled ---------------------------------------------------------------------


BAD: dict[str, Callable[[], Any]] = {
    "a lock": threading.Lock,
    "a lock inside": lambda: {"part": [threading.Lock()]},
    "a lock beside a large array": lambda: (np.zeros(20_000), threading.Lock()),
    "an exit": Leaving,
    "an exit inside": lambda: [1, {"part": Leaving()}],
}


def is_own_failure(outcome: Any, bad: str) -> bool:
    """Return whether an outcome says why the item could not be pickled."""
    name = "SystemExit" if "exit" in bad else "TypeError"
    return isinstance(outcome, BaseException) and name in f"{type(outcome).__name__} {outcome}"


@pytest.mark.parametrize("bad", list(BAD))
class TestItemsThatCannotBePickled:
    """Such an item fails alone and in its place. The call itself does not raise its exception."""

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "map"])
    def test_in_a_call_of_many(self, make_pool: MakePool, method: str, bad: str) -> None:
        def stream() -> Iterator[Any]:
            thing = [0]
            for number in range(COUNT):
                thing[0] = number
                yield BAD[bad]() if number == 7 else thing

        call = getattr(make_pool(), method)
        expected = [describe([number]) for number in range(COUNT) if number != 7]
        plain = [[number] if number != 7 else BAD[bad]() for number in range(COUNT)]
        for chunksize in (None, 1, 5):
            items = plain if method == "map" else stream()
            found: list[Any] = list(call(programs.touch, items, chunksize, return_exceptions=True))
            [index] = [index for index, one in enumerate(found) if isinstance(one, BaseException)]
            assert is_own_failure(found.pop(index), bad)
            assert (found if method != "imap_unordered" else sorted(found)) == expected
            assert index == 7 or method == "imap_unordered"

    def test_a_stream_raises_the_error_in_its_place_and_goes_on(self, make_pool: MakePool, bad: str) -> None:
        stream = make_pool().imap(programs.look, [1, BAD[bad](), 3])
        assert next(stream) == 1
        with pytest.raises((TypeError, SystemExit)):
            next(stream)
        assert list(stream) == [3]

    @pytest.mark.parametrize("face", ["Pool", "Executor"])
    def test_submit_reports_it_by_the_future(self, faces: Faces, bad: str, face: str) -> None:
        submit = submit_of(faces, face)
        futures = [submit(programs.look, number if number != 3 else BAD[bad]()) for number in range(6)]
        assert is_own_failure(futures.pop(3).exception(PATIENCE), bad)
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 2, 4, 5]

    def test_apply_async_reports_it_by_the_result(self, make_pool: MakePool, bad: str) -> None:
        pool = make_pool()
        heard: list[BaseException] = []
        result = pool.apply_async(programs.look, (BAD[bad](),), error_callback=heard.append)
        good = pool.apply_async(programs.look, (1,))
        in_keywords = pool.apply_async(programs.look, (), {"thing": BAD[bad]()})
        for one in (result, in_keywords):
            with pytest.raises((TypeError, SystemExit)) as caught:
                one.get(PATIENCE)
            assert is_own_failure(caught.value, bad)
        assert good.get(PATIENCE) == 1
        assert [is_own_failure(error, bad) for error in heard] == [True]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_in_an_asynchronous_stream(self, faces: Faces, bad: str, is_async: bool) -> None:
        items = [1, BAD[bad](), 3]

        async def some_items() -> AsyncIterator[Any]:
            for item in items:
                yield item

        async def main() -> list[Any]:
            stream = pool.imap(programs.look, some_items() if is_async else items, return_exceptions=True)
            return [outcome async for outcome in stream]

        pool = faces.async_pool
        first, error, last = faces.run(main())
        assert (first, last) == (1, 3)
        assert is_own_failure(error, bad)

    def test_in_an_executors_map(self, faces: Faces, bad: str) -> None:
        results = faces.executor.map(programs.look, [1, BAD[bad](), 3])
        assert next(results) == 1
        with pytest.raises((TypeError, SystemExit)):
            next(results)
        assert list(faces.executor.map(programs.look, [1, 2])) == [1, 2]


# --- how far a stream reads ahead ---------------------------------------------------------------------


MAX_TAKEN = 200
"""Items that a stream may have taken after ten results: about 0.1 s of items, and some more."""


class Slow:
    """An input that needs a millisecond per item. It counts the taken items, and ends if they are too many."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        while self.taken < 5 * MAX_TAKEN:
            time.sleep(0.001)  # the cost of an item; the test does not wait for it
            self.taken += 1
            yield self.taken

    async def as_async(self) -> AsyncIterator[int]:
        for item in self:
            await asyncio.sleep(0)
            yield item


class TestLookAhead:
    """A stream takes only the items of a slow input that keep the workers busy."""

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_of_a_stream(self, make_pool: MakePool, method: str) -> None:
        pool = make_pool()
        source = Slow()
        list(pool.imap(tasks.identity, range(5000)))  # the pool knows by now how short the tasks are
        stream = getattr(pool, method)(tasks.identity, source)
        for _ in range(10):
            assert 1 <= stream.next(PATIENCE) <= source.taken
        assert source.taken <= MAX_TAKEN
        stream.cancel()

    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize("buffersize", [None, 4])
    def test_of_an_asynchronous_stream(self, faces: Faces, is_async: bool, buffersize: int | None) -> None:
        source = Slow()
        pool = faces.async_pool

        async def main() -> None:
            items: Any = source.as_async() if is_async else source
            stream = pool.imap(tasks.identity, items, buffersize=buffersize)
            for number in range(1, 11):
                assert await anext(stream) == number
                assert source.taken <= (MAX_TAKEN if buffersize is None else number + buffersize)
            await stream.aclose()

        faces.run(main())

    @pytest.mark.parametrize("buffersize", [1, 5, 50])
    def test_of_an_executors_map_with_a_buffer(self, buffersize: int) -> None:
        source = Slow()
        with Executor(2) as executor:
            results = executor.map(tasks.identity, source, buffersize=buffersize)
            for number in range(1, 11):
                assert next(results) == number
                assert source.taken <= number + buffersize
            del results
