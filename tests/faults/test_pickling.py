"""Test objects that fail while they are pickled or unpickled, on either side: only their own item fails."""

from __future__ import annotations

import functools
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pairpool import Pool, WorkerDied
from tests.support import tasks
from tests.support.pools import MakePool, mp_pool
from tests.support.tasks import Fragile, FragileError, FragileFunction, Odd
from tests.support.waiting import PATIENCE

VICTIM = 7
COUNT = 20
OTHERS = {x: x * 10 for x in range(COUNT) if x != VICTIM}
DEADLY = {"exit", "segfault"}


def others_in(found: list[Any]) -> dict[int, Any]:
    return {index: result for index, result in enumerate(found) if index != VICTIM}


def check_victim(error: object, how: str) -> None:
    """Check that an error is the raised exception, a `MaybeEncodingError` that names it, or the death it caused."""
    if how in DEADLY:
        assert isinstance(error, WorkerDied)
        assert error.index == VICTIM
        return
    if isinstance(error, mp_pool.MaybeEncodingError):
        expected = "Odd" if how == "raise" else "SystemExit"
        assert expected in str(error) + str(error.__cause__)
    elif how == "raise":
        assert type(error) is Odd
        assert error.args == ("on purpose",)
    else:
        assert type(error) is SystemExit
        assert error.args == (7,)


# --- failures in the worker --------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 10])
@pytest.mark.parametrize("how", tasks.BREAKS)
class TestInTheWorker:
    """One item fails in the worker. All others succeed, in the same batch and in other batches."""

    def test_unpickling_the_argument(self, make_pool: MakePool, how: str, chunksize: int | None) -> None:
        pool = make_pool()
        items: list[int | Fragile] = [*range(COUNT)]
        items[VICTIM] = Fragile(how, "unpickle", os.getpid())
        found: list[Any] = pool.map(tasks.ten_times, items, chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        check_victim(found[VICTIM], how)
        assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]

    def test_pickling_the_result(self, make_pool: MakePool, how: str, chunksize: int | None) -> None:
        pool = make_pool()
        function = functools.partial(tasks.return_fragile_at, VICTIM, (how, "pickle", os.getpid()))
        found: list[Any] = pool.map(function, range(COUNT), chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        check_victim(found[VICTIM], how)
        if how not in DEADLY:
            assert type(found[VICTIM]) is mp_pool.MaybeEncodingError
        assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]

    def test_pickling_the_exception(self, make_pool: MakePool, how: str, chunksize: int | None) -> None:
        pool = make_pool()
        function = functools.partial(tasks.raise_fragile_at, VICTIM, (how, "pickle", os.getpid()))
        found: list[Any] = pool.map(function, range(COUNT), chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        error = found[VICTIM]
        if how in DEADLY:
            check_victim(error, how)
        else:  # the exception is lost, but its type, its text and its place are not
            assert isinstance(error, BaseException)
            assert "FragileError" in f"{error} {error.__cause__}"
            assert "in raise_fragile_at" in str(error.__cause__)
        assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]

    def test_unpickling_the_exception(self, make_pool: MakePool, how: str, chunksize: int | None) -> None:
        """The worker tries to unpickle the exception, so that the failure may happen there, too."""
        pool = make_pool()
        function = functools.partial(tasks.raise_fragile_at, VICTIM, (how, "unpickle", os.getpid()))
        found: list[Any] = pool.map(function, range(COUNT), chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        error = found[VICTIM]
        assert isinstance(error, BaseException)
        assert isinstance(error, WorkerDied) or "FragileError" in f"{type(error)} {error} {error.__cause__}"
        assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]


@pytest.mark.parametrize("how", tasks.BREAKS)
def test_a_function_that_fails_while_it_is_unpickled(start_method: str, make_pool: MakePool, how: str) -> None:
    """Every item of the call fails, and no other call. A function that kills workers is not tried for ever."""
    pool = make_pool()
    fine = pool.map_async(tasks.square, range(100))
    function = FragileFunction(how, "unpickle", os.getpid())
    found: list[Any] = pool.map(function, range(5), return_exceptions=True)
    assert fine.get(PATIENCE) == [x * x for x in range(100)]
    assert len(found) == 5
    for index, error in enumerate(found):
        if how in DEADLY:
            assert type(error) is WorkerDied
            assert error.index == index
            assert "unpickled the function" in str(error)
        else:
            check_victim(error, how)
    with pytest.raises(WorkerDied if how in DEADLY else (Odd, SystemExit)):
        pool.apply(function, (1,))
    with pytest.raises(WorkerDied if how in DEADLY else (Odd, SystemExit)):
        list(pool.imap(function, range(3)))
    assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]


# --- failures in the master ---------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 10])
class TestInTheMaster:
    def test_pickling_the_argument(self, make_pool: MakePool, chunksize: int | None) -> None:
        pool = make_pool()
        items: list[int | Fragile] = [*range(COUNT)]
        items[VICTIM] = Fragile("raise", "pickle", os.getpid(), in_master=True)
        found: list[Any] = pool.map(tasks.ten_times, items, chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        check_victim(found[VICTIM], "raise")
        with pytest.raises(Odd, match="on purpose"):
            pool.apply(tasks.ten_times, (items[VICTIM],))
        stream = pool.imap(tasks.ten_times, items, chunksize, return_exceptions=True)
        assert others_in(list(stream)) == OTHERS

    @pytest.mark.parametrize("how", ["raise", "system_exit"])
    def test_unpickling_the_result(self, make_pool: MakePool, chunksize: int | None, how: str) -> None:
        pool = make_pool()
        spec: Any = (how, "unpickle", os.getpid(), True)
        function = functools.partial(tasks.return_fragile_at, VICTIM, spec)
        found: list[Any] = pool.map(function, range(COUNT), chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        check_victim(found[VICTIM], how)
        future = pool.submit(function, VICTIM)
        check_victim(future.exception(PATIENCE), how)

    @pytest.mark.parametrize("how", ["raise", "system_exit"])
    def test_unpickling_the_exception(self, make_pool: MakePool, chunksize: int | None, how: str) -> None:
        pool = make_pool()
        spec: Any = (how, "unpickle", os.getpid(), True)
        function = functools.partial(tasks.raise_fragile_at, VICTIM, spec)
        found: list[Any] = pool.map(function, range(COUNT), chunksize, return_exceptions=True)
        assert others_in(found) == OTHERS
        error = found[VICTIM]
        assert isinstance(error, Exception)
        assert not isinstance(error, FragileError)
        assert "FragileError" in str(error)
        assert ("on purpose" if how == "raise" else "SystemExit(7)") in str(error)
        assert "in raise_fragile_at" in str(error.__cause__)


def test_a_function_that_cannot_be_pickled(make_pool: MakePool) -> None:
    pool = make_pool()
    broken: list[tuple[Callable[..., Any], type[Exception]]] = [
        (FragileFunction("raise", "pickle", os.getpid(), in_master=True), Odd),
        (functools.partial(tasks.identity, threading.Lock()), TypeError),
    ]
    for function, error in broken:
        with pytest.raises(error):
            pool.map(function, range(3))
        with pytest.raises(error):
            pool.apply(function)
        with pytest.raises(error):
            pool.apply_async(function).get(PATIENCE)
        with pytest.raises(error):
            list(pool.imap(function, range(3)))
    heard: list[BaseException] = []
    pool.apply_async(functools.partial(tasks.identity, threading.Lock()), error_callback=heard.append).wait(PATIENCE)
    assert [type(error) for error in heard] == [TypeError]
    assert pool.map(tasks.square, range(5)) == [x * x for x in range(5)]


# --- objects that cannot be pickled ---------------------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool()
    items: list[Any] = [*range(COUNT)]
    items[VICTIM] = threading.Lock()
    found: list[Any] = pool.map(tasks.ten_times, items, return_exceptions=True)
    assert others_in(found) == OTHERS
    assert type(found[VICTIM]) is TypeError
    assert "cannot pickle '_thread.lock' object" in str(found[VICTIM])
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        pool.apply(tasks.ten_times, (threading.Lock(),))
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        pool.apply_async(tasks.ten_times, (), {"item": threading.Lock()}).get(PATIENCE)


def test_a_result_that_cannot_be_pickled(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool()
    found: list[Any] = pool.map(functools.partial(tasks.return_lock_at, VICTIM), range(COUNT), return_exceptions=True)
    assert others_in(found) == OTHERS
    assert type(found[VICTIM]) is mp_pool.MaybeEncodingError
    heard: list[BaseException] = []
    for _ in range(20):  # as in CPython's own test
        result = pool.apply_async(tasks.return_lambda, (1,), error_callback=heard.append)
        with pytest.raises(mp_pool.MaybeEncodingError) as caught:
            result.get(PATIENCE)
        assert heard == [caught.value]
        heard.clear()
        assert "<lambda>" in caught.value.exc
        assert "<function return_lambda.<locals>.<lambda> at" in caught.value.value
        assert str(caught.value).startswith("Error sending result: '<function return_lambda.<locals>.<lambda> at")
        assert "Reason: " in str(caught.value)


def test_a_lambda_may_return_a_lambda(make_pool: MakePool) -> None:
    """multiprocessing can pickle neither the function nor the result."""
    functions: list[Callable[[], int]] = make_pool().map(lambda x: lambda: x + 1, [5])
    assert [function() for function in functions] == [6]


def test_a_pool_as_argument(make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(NotImplementedError, match="pool objects cannot be passed between processes or pickled"):
        pool.apply(tasks.identity, (pool,))


# --- exceptions of many kinds -------------------------------------------------------------------------


def error_from(pool: Pool, function: Callable[[], object]) -> Any:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # each test checks the exception
        pool.apply(function)
    return caught.value


@pytest.mark.parametrize("function", [tasks.raise_needs_two, tasks.raise_needs_two_positional])
def test_an_exception_with_required_constructor_arguments(make_pool: MakePool, function: Callable[[], object]) -> None:
    error = error_from(make_pool(), function)
    assert type(error) in (tasks.NeedsTwo, tasks.NeedsTwoPositional)
    assert (error.one, error.two) == (1, "zwei")
    assert str(error) == ("1 and zwei" if type(error) is tasks.NeedsTwo else "a text of its own")
    assert f"in {function.__name__}" in str(error.__cause__)


def test_an_exception_with_notes(make_pool: MakePool) -> None:
    error = error_from(make_pool(), tasks.raise_with_notes)
    assert type(error) is Odd
    assert error.__notes__ == ["first note", "second note"]


def test_an_exception_group(make_pool: MakePool) -> None:
    error = error_from(make_pool(), tasks.raise_group)
    assert type(error) is ExceptionGroup
    assert error.message == "outer"
    value, inner = error.exceptions
    assert (type(value), value.args) == (ValueError, ("v",))
    assert (type(inner), inner.message) == (ExceptionGroup, "inner")
    assert [(type(one), one.args) for one in inner.exceptions] == [(KeyError, ("k",)), (Odd, ("o", 1))]
    assert type(error.__cause__) is mp_pool.RemoteTraceback


def test_an_exception_without_text(make_pool: MakePool) -> None:
    error = error_from(make_pool(), tasks.raise_no_text)
    assert type(error) is tasks.NoText
    assert error.args == (5,)
    assert "in raise_no_text" in str(error.__cause__)


def test_an_exception_with_slots(make_pool: MakePool) -> None:
    error = error_from(make_pool(), tasks.raise_slotted)
    assert type(error) is tasks.Slotted
    assert (error.args, error.extra) == ((5,), 5)


def test_an_exception_with_a_large_message(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool()
    for _ in range(3):
        assert error_from(pool, tasks.raise_huge).args == ("x" * (1 << 20),)
    found: list[Any] = pool.map(tasks.raise_any, [Odd("y" * (1 << 20))] * 10, return_exceptions=True)
    assert [error.args for error in found] == [("y" * (1 << 20),)] * 10


class Unloadable:
    """A large result that cannot be unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return refuse_to_load, (self.text,)


def refuse_to_load(text: str) -> None:
    raise Odd(len(text))


def make_unloadable(x: int) -> Unloadable:
    if x == 0:
        raise LookupError("the first one")
    return Unloadable("x" * (1 << 20))


def test_a_pool_ends_while_the_caller_keeps_unpickling_errors(start_method: str, make_pool: MakePool) -> None:
    """The tracebacks keep frames with a view of the shared memory in which the results arrived."""
    pool = make_pool(1)
    found: list[Any] = pool.map(make_unloadable, range(4), chunksize=4, return_exceptions=True)
    assert [type(error) for error in found] == [LookupError, Odd, Odd, Odd]
    assert found[1].__traceback__ is not None
    pool.terminate()
    assert found[1].args == (1 << 20,)


def test_the_causes_of_an_exception_are_shown(make_pool: MakePool) -> None:
    pool = make_pool()
    error = error_from(pool, tasks.raise_from)
    assert error.args == ("the consequence",)
    assert "KeyError: 'missing'" in str(error.__cause__)
    assert "direct cause of the following exception" in str(error.__cause__)
    error = error_from(pool, tasks.raise_deep)
    assert error.args == ("consequence 999",)
    assert type(error.__cause__) is mp_pool.RemoteTraceback


def test_an_exception_with_attributes_that_cannot_be_pickled(make_pool: MakePool) -> None:
    pool = make_pool()
    error = error_from(pool, tasks.raise_with_lambda)
    assert "holds a lambda" in str(error)
    assert "in raise_with_lambda" in str(error.__cause__)
    error = error_from(pool, tasks.raise_with_lock)
    assert isinstance(error, Exception)
    assert "Odd" in f"{type(error)} {error}"
    assert "holds a lock" in str(error)
    assert "in raise_with_lock" in str(error.__cause__)


def test_endless_recursion(make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(RecursionError) as caught:
        pool.apply(tasks.recurse, (1,))
    assert "return recurse(x + 1)" in str(caught.value.__cause__)
    assert pool.apply(tasks.square, (3,)) == 9


def test_the_remote_traceback_is_shown(make_pool: MakePool) -> None:
    """As in CPython's own test: the cause is a RemoteTraceback, and the printed text has the line that raised."""
    with pytest.raises(Odd) as caught:
        make_pool().apply(tasks.refuse_odd, (123,))
    cause: Any = caught.value.__cause__
    assert type(cause) is mp_pool.RemoteTraceback
    line = 'raise Odd(f"{x} is odd", x)'
    assert line in cause.tb
    assert str(cause) == cause.tb
    assert cause.tb.startswith('\n"""\nTraceback (most recent call last):\n')
    assert cause.tb.endswith('"""')
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count(line) == 1
    assert "The above exception was the direct cause of the following exception:" in shown
    assert shown.endswith("Odd: ('123 is odd', 123)\n")


def test_an_error_of_the_input_is_not_remote(make_pool: MakePool) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise Odd("in the input")

    with pytest.raises(Odd, match="in the input") as caught:
        make_pool().map(tasks.square, broken(), 1)
    assert caught.value.__cause__ is None
