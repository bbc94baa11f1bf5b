"""Values in odd situations: finalizers, failed reports, retries by value, descriptors beside large objects."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pairpool import Fd
from pairpool.worker.reports import ReportSender
from tests.support import tasks
from tests.support.gates import Gate
from tests.support.pools import MakePool
from tests.support.waiting import PATIENCE


class Emptied:
    """An object that returns a list and empties the list when it is finalized."""

    def __init__(self) -> None:
        self.content = [[1], [2]]

    def __call__(self, _item: int) -> list[list[int]]:
        return self.content

    def __del__(self) -> None:
        self.content.clear()


def content_of(thing: Emptied) -> list[list[int]]:
    return thing.content


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_arguments_live_until_the_result_is_pickled(make_pool: MakePool, chunksize: int | None) -> None:
    pool = make_pool(1)
    assert pool.map(content_of, [Emptied() for _ in range(6)], chunksize) == [[[1], [2]]] * 6
    assert pool.apply(content_of, (Emptied(),)) == [[1], [2]]


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_a_callable_lives_until_the_result_is_pickled(make_pool: MakePool, chunksize: int | None) -> None:
    assert make_pool(1).map(Emptied(), range(6), chunksize) == [[[1], [2]]] * 6


# --- arrays -----------------------------------------------------------------------------------------------


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


def layout_of(thing: Any) -> tuple[bool, bool]:
    array = thing.content if type(thing) is Box else thing[0] if type(thing) is tuple else thing
    return bool(array.flags.c_contiguous), bool(array.flags.f_contiguous)


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: (array,), Box], ids=["alone", "tuple", "object"])
@pytest.mark.parametrize("size", [5, 50], ids=["small", "large"])
def test_the_order_of_an_array_does_not_depend_on_its_batch(make_pool: MakePool, wrap: Any, size: int) -> None:
    pool = make_pool(1)
    scattered = [wrap(np.zeros((4, size, size)).transpose(1, 0, 2)) for _ in range(8)]
    fortran = [wrap(np.asfortranarray(np.zeros((size, size)))) for _ in range(8)]
    for items, expected in ((scattered, (True, False)), (fortran, (False, True))):
        for chunksize in (None, 1, 8):
            assert pool.map(layout_of, items, chunksize) == [expected] * 8
            assert list(pool.imap(layout_of, iter(items), chunksize)) == [expected] * 8
        assert [pool.apply(layout_of, (item,)) for item in items] == [expected] * 8
        found = [pool.map(tasks.identity, items, chunksize) for chunksize in (None, 1, 8)]
        assert {layout_of(one) for results in found for one in results} == {expected}


# --- items that are sent again ----------------------------------------------------------------------------


class Ticket:
    """An object that counts how often it is pickled, and arrives as that count."""

    pickled = 0

    def __reduce__(self) -> Any:
        Ticket.pickled += 1
        return int, (Ticket.pickled,)


def fail_once(path: str, number: int) -> int:
    """Raise an exception for every third number, but only the first time."""
    if number % 3 == 0:
        try:
            os.close(os.open(f"{path}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return number
        raise OSError(number)
    return number


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_items_of_a_map_are_pickled_once_although_they_run_again(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunksize: int | None
) -> None:
    monkeypatch.setattr(Ticket, "pickled", 0)
    task = functools.partial(fail_once, str(tmp_path))
    found = make_pool(2).map(task, [Ticket() for _ in range(12)], chunksize, retries=2, retry_on=OSError)
    assert found == list(range(1, 13))


# --- large objects ----------------------------------------------------------------------------------------

TABLE = {number: f"text {number}" for number in range(20_000)}


def count_and_grow(thing: Any) -> int:
    table = thing[0] if type(thing) is tuple else thing
    table[len(table)] = ""
    return len(table)


def test_an_item_that_is_a_large_object_of_other_items_is_a_separate_copy(make_pool: MakePool) -> None:
    items: list[Any] = [(TABLE, 0), (TABLE, 1), (TABLE, 2), TABLE, TABLE, TABLE]
    assert make_pool(1).map(count_and_grow, items, 6)[3:] == [len(TABLE) + 1] * 3


def length_of(table: Any, fd: Fd, _number: int) -> int:
    return len(table) if fd.fileno() > 2 else 0


def test_items_may_contain_a_descriptor_and_a_large_object(make_pool: MakePool) -> None:
    items = [(TABLE, Fd(os.open(os.devnull, os.O_RDONLY), close=True), number) for number in range(6)]
    result = make_pool(1).starmap_async(length_of, items)
    assert result.get(PATIENCE) == [len(TABLE)] * 6


MADE_UP = """
class Table:
    def __init__(self):
        self.content = {number: f"text {number}" for number in range(20_000)}
"""


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[ModuleType]:
    """Give a module that a fresh interpreter cannot import."""
    path = tmp_path / "made_up_table.py"
    path.write_text(MADE_UP)
    spec = importlib.util.spec_from_file_location("made_up_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["made_up_table"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["made_up_table"]


def size_inside(item: tuple[Any, int]) -> int:
    return len(item[0].content)


@pytest.mark.parametrize("chunksize", [None, 1, 2])
def test_a_large_object_of_an_unknown_module_travels_by_value(
    make_pool: MakePool, made_up: ModuleType, chunksize: int | None
) -> None:
    pool = make_pool(1, start_method="forkserver")
    table = made_up.Table()
    assert pool.map(size_inside, [(table, number) for number in range(8)], chunksize) == [20_000] * 8


class LoadsOnce:
    """A large callable that can be unpickled only once per worker."""

    loaded = 0

    def __init__(self) -> None:
        self.content = np.zeros(20_000)

    def __call__(self, item: int) -> int:
        return item

    def __setstate__(self, state: dict[str, Any]) -> None:
        LoadsOnce.loaded += 1
        if LoadsOnce.loaded > 1:
            raise ValueError("no room")
        self.__dict__.update(state)


def test_a_large_callable_that_does_not_load_fails_its_items_only(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    found: list[Any] = pool.map(LoadsOnce(), range(6), 2, return_exceptions=True)
    assert found[:2] == [0, 1]
    assert all(isinstance(one, ValueError) for one in found[2:])
    assert pool.apply(os.getpid) == pid


STATELESS = {"method of a type": str.upper, "ufunc": np.sqrt, "bound to a str": "a".join}


@pytest.mark.parametrize("function", STATELESS.values(), ids=STATELESS)
def test_callables_without_state_are_loaded_once(make_pool: MakePool, function: Any) -> None:
    pool = make_pool(1)
    known = pool._engine.functions.get(function)
    assert not known.has_state


# --- a report that fails ----------------------------------------------------------------------------------


def refuse_a_report() -> None:
    """Let the first partial report of a worker fail. Runs in the worker."""
    send: Any = ReportSender.send
    is_refused = False

    def send_or_fail(self: Any, reply: Any, *rest: Any) -> None:
        nonlocal is_refused
        if reply.is_partial and not is_refused:
            is_refused = True
            raise OSError("no descriptors can be sent now")
        send(self, reply, *rest)

    ReportSender.send = send_or_fail  # type: ignore[method-assign, assignment]


def file_with(gate: str, number: int) -> Any:
    """Return a file. The last item waits until the reader has the other files."""
    if number == 99:
        tasks.wait_for(gate)
    reader, writer = os.pipe()
    os.write(writer, b"%d" % number)
    os.close(writer)
    return open(reader, "rb", 0)


def test_results_with_descriptors_survive_a_partial_report_that_fails(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, initializer=refuse_a_report)
    stream = pool.imap(functools.partial(file_with, gate.path), iter(range(100)))
    found = []
    for number in range(100):
        if number == 99:
            gate.let()
        with next(stream) as file:
            found.append(file.read())
    assert found == [b"%d" % number for number in range(100)]
