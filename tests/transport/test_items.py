"""Items that are pickled one by one: the plain pickler, and pickles that are made of pickles."""

from __future__ import annotations

import pickle
import signal
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.transport.items import PlainWriter, are_independent, is_immutable, pickled_call, pickled_list
from pairpool.transport.warm_memory import HUGE_PAGES_FROM_BYTES, WarmMemory
from tests.support.signals import Struck

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner)),
    max_leaves=10,
)


def dumped(writer: PlainWriter, thing: Any) -> bytes:
    data = writer.dump(thing)
    assert data is not None
    return data


@given(items=st.lists(PLAIN, min_size=1, max_size=8))
def test_a_list_of_pickles_loads_as_its_items(items: list[Any]) -> None:
    writer = PlainWriter()
    assert pickle.loads(pickled_list([dumped(writer, item) for item in [*items, *items]])) == [*items, *items]


def test_items_of_a_list_of_pickles_have_no_object_in_common() -> None:
    thing: list[dict[str, list[int]]] = [{"a": []}]
    writer = PlainWriter()
    first, second = pickle.loads(pickled_list([dumped(writer, thing), dumped(writer, thing)]))
    first[0]["a"].append(1)
    assert second == [{"a": []}]


def test_an_object_twice_in_one_item_stays_one_object() -> None:
    inner: list[Any] = []
    thing = [inner, inner]
    inner.append(thing)
    _, loaded = pickle.loads(pickled_list([dumped(PlainWriter(), [1]), dumped(PlainWriter(), thing)]))
    assert loaded[0] is loaded[1]
    assert loaded[0][0] is loaded


@given(number=st.integers(0, 2**31 - 1), thing=PLAIN)
def test_a_pickle_of_a_call_has_the_number_first(number: int, thing: Any) -> None:
    for protocol in (3, 4, 5):
        assert pickle.loads(pickled_call(number, pickle.dumps(thing, protocol))) == (number, thing)


ODD = [object(), [object()], len, lambda: 0, {"a": threading.Event()}, Exception()]


@pytest.mark.parametrize("thing", ODD)
def test_other_objects_are_refused_and_leave_nothing_in_the_writer(thing: Any) -> None:
    writer = PlainWriter()
    kept = ["kept"]
    assert writer.dump([kept, thing]) is None
    assert pickle.loads(dumped(writer, [kept])) == [kept]


def test_a_large_object_does_not_make_later_small_ones_slow() -> None:
    """`clear_memo` goes through the largest memo that a pickler ever had, so this pickler is replaced."""
    writer = PlainWriter()
    before = writer._clear
    dumped(writer, ["small"])
    assert writer._clear == before
    dumped(writer, [str(number) for number in range(10_000)])
    assert writer._clear != before


def test_a_pickle_that_a_handler_interrupts_is_not_part_of_the_next_one() -> None:
    def strike(_number: int, _frame: object) -> None:
        raise Struck

    writer = PlainWriter()
    old = signal.signal(signal.SIGALRM, strike)
    try:
        for number in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + number * 1e-7)
                while True:
                    writer.dump([number, {}])
            except Struck:
                assert pickle.loads(dumped(writer, ["new", {}])) == ["new", {}]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


IMMUTABLE = [1, 2.5, 1j, "a", b"a", None, True, (1, ("a", (None,))), frozenset({1}), np.float64(1), (np.int8(1),)]


@pytest.mark.parametrize("thing", IMMUTABLE)
def test_an_immutable_object(thing: Any) -> None:
    assert is_immutable(thing)


class Number(int):
    pass


MUTABLE = [[], {}, (1, [2]), bytearray(), Number(1), (Number(1),), np.zeros(1), range(3), np.void(b"a")]


@pytest.mark.parametrize("thing", MUTABLE)
def test_a_mutable_object(thing: Any) -> None:
    assert not is_immutable(thing)


SHARED: list[Any] = [1]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([1, "a", None], True),
        ([(1, 2), (3, 4)], True),
        ([[1], [2]], True),
        ([{"a": 1}, {"b": 2}], True),
        ([np.zeros(2), np.zeros(2)], True),
        ([np.float64(1), 1], True),
        ([SHARED, SHARED], False),
        ([[SHARED], [2]], False),
        ([(1, SHARED), (2, SHARED)], False),
        ([{"a": SHARED}, {"b": SHARED}], False),
        ([1, [2]], False),
        ([object(), object()], False),
    ],
)
def test_independent_items_may_go_in_one_pickle(items: list[Any], expected: bool) -> None:
    assert are_independent(items) is expected


def test_a_copy_during_the_search_for_memory_uses_fresh_memory() -> None:
    """A finalizer may run during the search, and submit a large array."""
    memory = WarmMemory(1 << 30)
    source = memoryview(bytes(HUGE_PAGES_FROM_BYTES))
    with memory._lock:
        assert bytes(memory.copy(source)) == bytes(source)
