"""The pickles of a cluster's batches: one for each item, and one per batch for a large object that items share."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.cluster_call import FILL_LIMIT_S, Batches, CallItems
from pairpool.dask.messages import BatchOrder, CallHead, ItemMode, NodeFunction, NodeLimits, NodeSetup
from pairpool.dask.packing import Packer, repeats, unpack
from pairpool.transport.failures import error_for_each
from pairpool.transport.repeats import LARGE_OBJECT_BYTES, Repeats


def packed(items: list[Any], shared: Repeats | None = None) -> bytes:
    packer = Packer(shared)
    for item in items:
        packer.add(item)
    return packer.packed()


def there(items: list[Any], shared: Repeats | None = None) -> list[Any]:
    """Return the items after they were packed and unpacked. All of them can be loaded."""
    found = unpack(packed(items, shared))
    assert all(is_loaded for is_loaded, _item in found), found
    return [item for _is_loaded, item in found]


class Broken:
    """An object that cannot be loaded."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise LookupError(state["text"])


class Closed:
    """An object that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class Table:
    """A large object that counts how often it is pickled and loaded."""

    pickled = loaded = 0

    def __init__(self) -> None:
        self.content = bytes(LARGE_OBJECT_BYTES)
        self.log: list[int] = []
        self.options = {"a": 1}

    def __getstate__(self) -> dict[str, Any]:
        Table.pickled += 1
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Table.loaded += 1
        vars(self).update(state)


# --- items of their own ---------------------------------------------------------------------------------


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.frozensets(st.integers())
        | st.sets(st.text())
    ),
    max_leaves=10,
)


@given(st.lists(values, max_size=8), st.booleans())
def test_an_item_arrives_as_a_pickle_of_it_would(items: list[Any], is_complete: bool) -> None:
    found = there(items, repeats() if is_complete else None)
    assert repr(found) == repr([pickle.loads(pickle.dumps(item)) for item in items])


@pytest.mark.parametrize("make", [list, dict, set, bytearray, Table, lambda: ([], 1), lambda: {"inner": []}])
def test_an_object_that_is_several_items_becomes_several_objects(make: Callable[[], Any]) -> None:
    one = make()
    first, second, third = there([one, one, one])
    assert len({id(first), id(second), id(third)}) == 3
    if type(one) is tuple:
        assert first[0] is not second[0]
    if type(one) is dict and one:
        assert first["inner"] is not second["inner"]


def test_an_object_that_an_item_contains_twice_stays_one_object() -> None:
    inner: list[int] = []
    [(first, second)] = there([(inner, inner)])
    assert first is second


def test_an_item_is_pickled_as_it_is_when_it_is_added() -> None:
    packer = Packer()
    buffer = [0]
    for number in range(5):
        buffer[0] = number
        packer.add(buffer)
    assert unpack(packer.packed()) == [(True, [number]) for number in range(5)]


def test_immutable_items_take_few_bytes() -> None:
    assert len(packed(list(range(1000)))) < 5000
    text = "x" * 10_000
    assert len(packed([(text, number) for number in range(100)])) < 12_000


def test_functions_that_cannot_be_imported_travel_by_value() -> None:
    offset = 3
    function, in_a_dict = there([lambda x: x + offset, {"f": lambda x: x - offset}])
    assert (function(4), in_a_dict["f"](4)) == (7, 1)


def test_an_item_that_cannot_be_pickled_keeps_its_place() -> None:
    packer = Packer()
    packer.add([1])
    with pytest.raises(TypeError, match="not this one"):
        packer.add([2, Closed()])
    packer.add_missing()
    packer.add([3])
    assert len(packer) == 3
    first, (is_there, error), last = unpack(packer.packed())
    assert (first, is_there, last) == ((True, [1]), False, (True, [3]))
    assert isinstance(error, LookupError)


def test_an_item_that_cannot_be_loaded_fails_alone() -> None:
    found = unpack(packed([1, Broken("one"), {"a": 2}, [Broken("two")], 3]))
    assert [is_loaded for is_loaded, _item in found] == [True, False, True, False, True]
    assert [str(item) for _is_loaded, item in found] == ["1", "one", "{'a': 2}", "two", "3"]


# --- large objects ------------------------------------------------------------------------------------


@pytest.fixture
def table() -> Table:
    Table.pickled = Table.loaded = 0
    return Table()


def test_a_large_object_that_several_items_contain_is_pickled_and_loaded_once_per_batch(table: Table) -> None:
    shared = repeats()
    first = packed([(table, number) for number in range(100)], shared)
    assert len(first) < 3 * LARGE_OBJECT_BYTES
    before = Table.pickled
    second = packed([{"table": table, "number": number} for number in range(100)], shared)
    assert Table.pickled == before + 1
    assert len(second) < 2 * LARGE_OBJECT_BYTES
    found = unpack(second)
    assert Table.loaded == 1
    assert [item["number"] for _is_loaded, item in found] == list(range(100))
    assert {item["table"].content for _is_loaded, item in found} == {table.content}
    assert len({id(item["table"]) for _is_loaded, item in found}) == 1


def test_a_large_item_that_a_batch_has_often_is_pickled_and_loaded_once_more(table: Table) -> None:
    items = packed([table] * 100, repeats())
    assert Table.pickled <= 2
    assert len(items) < 3 * LARGE_OBJECT_BYTES
    assert {item.content for _is_loaded, item in unpack(items)} == {table.content}
    assert Table.loaded == 2


def test_streams_share_nothing(table: Table) -> None:
    found = there([(table, number) for number in range(5)])
    assert len({id(item[0]) for item in found}) == 5


def test_small_objects_are_not_shared() -> None:
    small = {"n": 1}
    found = there([(small, number) for number in range(5)], repeats())
    assert len({id(item[0]) for item in found}) == 5


def test_an_object_is_shared_as_it_is_when_its_batch_is_taken(table: Table) -> None:
    shared = repeats()
    for number in range(4):
        table.log.append(number)
        found = there([(table, 0), (table, 1)], shared)
        assert [item[0].log for item in found] == [list(range(number + 1))] * 2


def test_a_part_of_a_large_object_stays_a_part_of_it(table: Table) -> None:
    items = [(table, number, table.log) for number in range(5)]
    found = there(items, repeats())
    assert all(item[0].log is item[2] for item in found)
    assert len({id(item[2]) for item in found}) == 5


def test_an_object_inside_two_large_objects_stays_one_object() -> None:
    one, other = Table(), Table()
    other.log = one.log
    found = there([(one, other, number) for number in range(5)], repeats())
    assert all(item[0].log is item[1].log for item in found)
    other.log = []
    found = there([(one, other, number) for number in range(5)], repeats())
    assert len({id(item[0]) for item in found}) == 2  # the first item has its own copies; the others share theirs


def test_arrays_that_have_only_their_type_in_common_are_shared() -> None:
    numpy = pytest.importorskip("numpy")
    large = numpy.zeros(LARGE_OBJECT_BYTES)
    items = [(large, numpy.arange(3.0), number) for number in range(50)]
    assert len(packed(items, repeats())) < 3 * large.nbytes
    assert all((item[0] == 0).all() and item[1].sum() == 3 for item in there(items, repeats()))


def test_a_large_object_that_cannot_be_loaded_fails_the_items_that_name_it() -> None:
    broken = Broken("x" * LARGE_OBJECT_BYTES)
    items = [(broken, 0), (broken, 1), (broken, 2), ([], 3)]
    found = unpack(packed(items, repeats()))
    assert [is_loaded for is_loaded, _item in found] == [False, False, False, True]
    assert len({id(error) for _is_loaded, error in found}) == 4


def test_a_large_object_that_can_no_longer_be_pickled_fails_its_items(table: Table) -> None:
    shared = repeats()
    packed([(table, number) for number in range(3)], shared)
    table.options["closed"] = Closed()  # type: ignore[assignment]
    packer = Packer(shared)
    with pytest.raises(TypeError, match="not this one"):
        packer.add((table, 4))
    packer.add(5)
    assert unpack(packer.packed()) == [(True, 5)]


# --- one error of several items -----------------------------------------------------------------------


def test_items_that_fail_for_the_same_reason_have_different_exception_objects() -> None:
    class Tied(Exception):
        def __reduce__(self) -> Any:
            raise TypeError

        def __str__(self) -> str:
            raise RuntimeError

    cause = OSError("gone")
    with pytest.raises(LookupError) as raised:
        raise LookupError("why", [1]) from cause
    first, second = error_for_each(raised.value, 2)
    assert first.__traceback__ is raised.value.__traceback__
    assert first is not second
    assert first.args[1] is not second.args[1]
    assert (repr(first), repr(second)) == ("LookupError('why', [1])",) * 2
    assert first.__cause__ is cause
    _, first, second = error_for_each(Tied(), 3)
    assert first is not second
    assert repr(first) == "RuntimeError('Tied: <unprintable: RuntimeError>')"
    assert error_for_each(ValueError(), 0) == []


# --- batches ------------------------------------------------------------------------------------------


NODES = {"tcp://one:1": 2}


def batches(items: Iterator[Any], chunksize: int | None = None, shared: Repeats | None = None) -> Batches:
    head = CallHead(
        NodeSetup("key", "versions", b""), "call", NodeFunction("f", b"function", False), ItemMode.MAP, NodeLimits()
    )
    sizer = BatchSizer(0.1, chunksize)
    sizer.learn(1, 1e-5)
    sizer.learn(5000, 0.05)
    return Batches(head, CallItems(items), sizer, shared)


def slowly(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def loaded(order: BatchOrder | None) -> list[Any]:
    assert order is not None
    found = [item for is_loaded, item in unpack(order.items) if is_loaded]
    assert order.length >= len(found)
    return found


def test_the_first_items_of_a_slow_input_go_out_soon() -> None:
    taken = batches(slowly(1000, FILL_LIMIT_S / 10))
    began = time.monotonic()
    order, failed = taken.next(NODES, 10_000)
    found = loaded(order)
    assert time.monotonic() - began < 10 * FILL_LIMIT_S
    assert 1 <= len(found) <= 10
    assert found == list(range(len(found)))
    assert not failed
    order, _failed = taken.next(NODES, 10_000)
    assert order is not None
    assert order.first == len(found)


def test_a_very_slow_input_gives_one_item_per_batch() -> None:
    taken = batches(slowly(3, 1.5 * FILL_LIMIT_S))
    assert [loaded(taken.next(NODES, 100)[0]) for _ in range(3)] == [[0], [1], [2]]
    assert taken.next(NODES, 100) == (None, {})
    assert taken.is_exhausted


def test_a_chunksize_is_obeyed_even_if_the_input_is_slow() -> None:
    taken = batches(slowly(12, FILL_LIMIT_S / 5), 10)
    assert loaded(taken.next(NODES, 100)[0]) == list(range(10))
    assert loaded(taken.next(NODES, 100)[0]) == [10, 11]


def test_an_input_that_reuses_its_buffer_is_pickled_item_by_item() -> None:
    def states() -> Iterator[dict[str, Any]]:
        state: dict[str, Any] = {"step": 0, "trace": []}
        for step in range(10):
            state["step"] = step
            state["trace"].append(step)
            yield state

    found = loaded(batches(states()).next(NODES, 100)[0])
    assert found == [{"step": step, "trace": list(range(step + 1))} for step in range(10)]


def test_items_that_cannot_be_pickled_keep_their_places() -> None:
    order, failed = batches(iter([[0], Closed(), [2], Closed()])).next(NODES, 100)
    assert order is not None
    assert order.length == 4
    assert [item for _is_loaded, item in unpack(order.items)][::2] == [[0], [2]]
    assert {offset: str(error) for offset, error in failed.items()} == {1: "not this one", 3: "not this one"}
    assert failed[1] is not failed[3]


def test_the_items_before_an_exception_of_the_input_go_out() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the input ends here")

    taken = batches(broken())
    assert loaded(taken.next(NODES, 100)[0]) == [1, 2]
    assert taken.next(NODES, 100) == (None, {})
    assert str(taken.error) == "the input ends here"
