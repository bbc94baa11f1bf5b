"""Travel by name and by value, items that fail alone, and arrays that arrive writable."""

from __future__ import annotations

import collections
import copyreg
import datetime
import functools
import importlib
import itertools
import math
import operator
import os
import pickle
import struct
import sys
import textwrap
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.errors import LargeCaptureWarning
from pairpool.master.functions import Functions
from pairpool.transport.channel import Channel
from pairpool.transport.inherited_names import InheritedNames
from pairpool.transport.payload import BULK, EACH, Encoded, each_item, load_item
from pairpool.transport.payload import load_all as load_bulk
from pairpool.transport.payload_shm import PayloadBuffers, PayloadReader
from pairpool.transport.picklers import OUT_OF_BAND_FROM_BYTES
from pairpool.transport.protocol import TextPacket
from pairpool.transport.serializer import Serializer
from tests.support.children import forked

TEXT = TextPacket()

MEBIBYTE = 1 << 20

LARGE = bytes(2 * MEBIBYTE)
"""A global that no function should carry without a warning."""

SMALL = bytes(MEBIBYTE // 2)


class Missing:
    """Take the place of an item that could not be pickled."""


def payload_of(encoded: Encoded) -> memoryview:
    payload = b"".join(encoded.pieces)
    assert len(payload) == encoded.size
    return memoryview(bytearray(payload))


def load_all(encoded: Encoded) -> Any:
    """Return the items as the other side loads them."""
    payload = payload_of(encoded)
    if encoded.format != EACH:
        return load_bulk(encoded.format, payload)
    return [load_item(data, buffers) if data else Missing for data, buffers, _place in each_item(payload)]


def load_function(encoded: Encoded) -> Any:
    (function,) = load_all(encoded)
    return function


def no_failure(offset: int, error: BaseException) -> None:
    raise AssertionError(f"item {offset} cannot be pickled") from error


def there_and_back(*items: Any, serializer: Serializer | None = None) -> list[Any]:
    return list(load_all((serializer or Serializer(InheritedNames())).encode(list(items), no_failure)))


# --- classes and functions to send --------------------------------------------------------------------


class Thing:
    """An instance of an ordinary class."""

    def __init__(self, content: Any = None) -> None:
        self.content = content

    def double(self) -> Any:
        return self.content * 2


class Count(int):
    """A subclass of int, which is no plain data."""


class Row(list[int]):
    pass


class Broken:
    """Raise the given error when pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def known(number: int = 21) -> int:
    return 2 * number


@pytest.fixture
def serializer() -> Serializer:
    return Serializer(InheritedNames())


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return a module `made_up` with a function and a class, which exists before `InheritedNames`."""
    module = types.ModuleType("made_up")
    monkeypatch.setitem(sys.modules, "made_up", module)
    define(module, "old")
    return module


def define(module: types.ModuleType, answer: str) -> None:
    """Run the source of the module, for the first time or again."""
    source = f"""
        def answer():
            return {answer!r}

        class Thing:
            def answer(self):
                return {answer!r}

        def answers_of(things):
            return [thing.answer() for thing in things]
    """
    exec(textwrap.dedent(source), module.__dict__)


@pytest.fixture
def in_main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts functions and classes into `__main__`, as a script defines them."""

    def put(**things: Any) -> None:
        for name, thing in things.items():
            thing.__module__, thing.__qualname__, thing.__name__ = "__main__", name, name
            monkeypatch.setattr(sys.modules["__main__"], name, thing, raising=False)

    return put


def serve(channel: Channel, _slot: int, _serial: int) -> int:
    """Act as a small worker: load a function or items, call each, and send the results."""
    while True:
        packet, payload, _fds = channel.receive()
        assert isinstance(packet, TextPacket)
        if packet.number == BULK:
            things: list[Any] = list(pickle.loads(payload))
        else:
            things = [load_item(data, buffers) for data, buffers, _place in each_item(payload)]
        channel.send(TEXT, pickle.dumps([thing() for thing in things]))


class Twin:
    """A forked process with the state of the program at that time. It calls the objects that it is sent."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def call(self, encoded: Encoded) -> Any:
        self._channel.send(TextPacket(encoded.format), payload_of(encoded))
        return pickle.loads(self._channel.receive()[1])


@pytest.fixture
def twin(made_up: types.ModuleType) -> Iterator[Twin]:
    with forked(serve) as child:
        child.far.close()  # so that its death is seen as end of file
        yield Twin(child.near)


# --- one pickle, or one per item ----------------------------------------------------------------------

MARKED = struct.unpack("<d", b"\x93" * 8)[0]
"""A float whose bytes contain the opcode that names a class."""

PLAIN: dict[str, list[Any]] = {
    "ints": [1, -2, 3 << 100],
    "scalars of all kinds": [1, 2.5, 1j, True, None, "text", b"bytes"],
    "marked floats": [MARKED] * 3,
    "lists": [[1, 2], [], ["x", None]],
    "tuples": [(1, 2), ()],
    "dictionaries": [{"a": 1}, {2: [3]}],
    "sets": [{1, 2}, frozenset({3})],
    "bytearrays": [bytearray(b"abc"), bytearray()],
    "nested": [[{"a": [(1, {2}, b"x", 2.5)]}]],
    "containers behind scalars": [1, "x", [2]],
    "marked floats in containers": [[MARKED], {"a": (MARKED, MARKED)}],
    "texts that look like a pickle": [["\x93\u04d3 c__main__\nThing\n."]],
}

NAMED: dict[str, list[Any]] = {
    "an instance": [Thing(1)],
    "an instance behind scalars": [1, 2, Thing(3)],
    "an instance in a container": [[1, {"a": (Thing(2),)}]],
    "a subclass of int": [Count(3)],
    "a subclass of int behind ints": [1, Count(3)],
    "a subclass of list": [Row([1])],
    "a class": [Thing],
    "a class in a container": [[Thing]],
    "a function": [known],
    "a built-in function in a container": [[len]],
    "a date": [datetime.date(2024, 2, 29)],
    "dates in a tuple": [(datetime.date(2024, 2, 29),)],
    "an ordered dictionary": [collections.OrderedDict(a=1)],
    "an array of objects": [np.array([None, 1])],
    "an array of records": [np.zeros(3, [("a", "i4"), ("b", "f8")])],
    "an array of dates": [np.array(["2024-02-29"], "datetime64[D]")],
    "a masked array": [np.ma.masked_array([1, 2], [False, True])],
    "a large array": [np.zeros(OUT_OF_BAND_FROM_BYTES, "u1")],
}


@pytest.mark.parametrize("items", PLAIN.values(), ids=PLAIN.keys())
def test_plain_data_goes_in_bulk(serializer: Serializer, items: list[Any]) -> None:
    encoded = serializer.encode(items, no_failure)
    assert encoded.format == BULK
    assert not encoded.by_value
    loaded = load_all(encoded)
    assert loaded == items
    assert [type(item) for item in loaded] == [type(item) for item in items]


NUMERIC: dict[str, list[Any]] = {
    "scalars": [np.float64(2.5), np.int8(-1), np.bool_(True), np.complex64(1j)],
    "tiny arrays": [np.arange(3), np.zeros((0, 4)), np.array(7.0)],
    "small arrays": [np.full((10, 20), number, "f4") for number in range(5)],
    "in the order of Fortran": [np.asfortranarray(np.arange(600.0).reshape(20, 30))],
    "the same one twice": [np.arange(1000)] * 2,
    "every other element": [np.zeros(2000)[::2]],
    "a read-only array": [np.broadcast_to(np.zeros(1), 1000)],
    "in containers": [{"a": np.zeros(3)}, (np.ones(500), [np.float32(1)])],
}


@pytest.mark.parametrize("items", NUMERIC.values(), ids=NUMERIC.keys())
def test_small_arrays_and_numpy_scalars_go_in_bulk(serializer: Serializer, items: list[Any]) -> None:
    encoded = serializer.encode(items, no_failure)
    assert encoded.format != EACH
    loaded = load_all(encoded)
    np.testing.assert_equal(loaded, items)
    for before, after in zip(items, loaded, strict=True):
        assert type(after) is type(before)
        if isinstance(before, np.ndarray):
            assert (after.dtype, after.shape, after.flags.fnc) == (before.dtype, before.shape, before.flags.fnc)
            assert after.flags.writeable


@pytest.mark.parametrize("items", NAMED.values(), ids=NAMED.keys())
def test_items_with_classes_or_functions_go_one_by_one(serializer: Serializer, items: list[Any]) -> None:
    encoded = serializer.encode(items, no_failure)
    assert encoded.format == EACH
    assert not encoded.by_value
    assert [type(item) for item in load_all(encoded)] == [type(item) for item in items]


def test_a_range_goes_as_a_range(serializer: Serializer) -> None:
    encoded = serializer.encode(range(10, 10_000_000, 7), no_failure)
    assert encoded.format == BULK
    assert encoded.size < 100
    assert load_all(encoded) == range(10, 10_000_000, 7)


@given(floats=st.lists(st.floats(), min_size=1, max_size=20))
def test_floats_go_in_bulk_whatever_their_bytes_are(floats: list[float]) -> None:
    for items in (floats, [floats], [dict(enumerate(floats))]):
        assert SHARED.encode(items, no_failure).format == BULK


SHARED = Serializer(InheritedNames())
"""For tests of properties, which use many examples."""


@given(
    items=st.lists(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
            lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner)),
            max_leaves=10,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_plain_data_arrives_as_it_was(items: list[Any]) -> None:
    encoded = SHARED.encode(items, no_failure)
    assert encoded.format == BULK
    assert load_all(encoded) == items


def test_an_object_of_a_class_with_an_extension_code_is_not_plain_data(serializer: Serializer) -> None:
    """With copyreg, a pickle names a class by a number, without the opcode for names."""
    copyreg.add_extension(Thing.__module__, "Thing", 240)
    try:
        encoded = serializer.encode([[Thing(1)]], no_failure)
        assert encoded.format == EACH
        assert load_all(encoded)[0][0].content == 1
    finally:
        copyreg.remove_extension(Thing.__module__, "Thing", 240)


def test_items_that_are_the_same_object_arrive_equal(serializer: Serializer) -> None:
    shared = [1, 2]
    assert there_and_back(shared, shared, serializer=serializer) == [[1, 2], [1, 2]]
    thing = Thing(shared)
    assert [one.content for one in there_and_back(thing, thing, serializer=serializer)] == [[1, 2], [1, 2]]


def test_each_item_is_marked_before_it_is_pickled(serializer: Serializer) -> None:
    events: list[Any] = []

    class Recorder:
        def __reduce__(self) -> Any:
            events.append("pickled")
            return (Thing, ())

    serializer.encode([Recorder(), Thing(), Recorder()], no_failure, mark=events.append)
    marks = [event for event in events if event != "pickled"]
    assert marks == [0, 1, 2]
    assert events[0] == 0
    assert events.index(1) < events.index(2)
    assert "pickled" in events[events.index(0) : events.index(1)]
    assert "pickled" in events[events.index(2) :]


# --- arrays -------------------------------------------------------------------------------------------

BIG = OUT_OF_BAND_FROM_BYTES

ARRAYS: dict[str, Any] = {
    "small": np.arange(10),
    "large": np.arange(BIG),
    "Fortran order": np.asfortranarray(np.arange(4.0 * BIG).reshape(4, BIG)),
    "with gaps": np.arange(4 * BIG)[::3],
    "of no dimension": np.array(3.5),
    "empty": np.zeros((0, 3)),
    "of records": np.zeros(BIG, dtype=[("a", "i4"), ("b", "f8")]),
    "of objects": np.array([1, "two", None], dtype=object),
    "big-endian": np.arange(BIG, dtype=">i4"),
}


@pytest.mark.parametrize("original", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_arrive_whole_and_writable(original: Any) -> None:
    for serializer, frozen in itertools.product((Serializer(InheritedNames()), Serializer()), (False, True)):
        array = original.view()
        array.flags.writeable = not frozen
        (loaded,) = there_and_back(array, serializer=serializer)
        # read-only arrays use protocol 4, which always has the byte order of the machine
        assert loaded.dtype == (array.dtype.newbyteorder("=") if frozen else array.dtype)
        assert loaded.shape == array.shape
        assert loaded.flags.writeable
        np.testing.assert_array_equal(loaded, array)
        loaded.fill(0)  # must not change the original, which the next round uses


@pytest.mark.parametrize("frozen", [False, True], ids=["", "read-only"])
def test_arrays_inside_other_objects_arrive_writable(serializer: Serializer, frozen: bool) -> None:
    array = np.arange(BIG)
    array.flags.writeable = not frozen
    thing, pair, known_by_name = there_and_back(
        Thing({"a": [array]}), (array, array), {"a": array, "date": datetime.date(2024, 2, 29)}, serializer=serializer
    )
    for loaded in (thing.content["a"][0], *pair, known_by_name["a"]):
        assert loaded.flags.writeable
        np.testing.assert_array_equal(loaded, array)
    assert pair[0] is pair[1], "as in any pickle"


def test_large_arrays_are_not_copied_into_the_pickle(serializer: Serializer) -> None:
    array = np.arange(BIG)
    encoded = serializer.encode([array], no_failure)
    views = [np.frombuffer(piece, array.dtype) for piece in encoded.pieces if isinstance(piece, memoryview)]
    assert [np.shares_memory(view, array) for view in views] == [True]
    assert sum(len(piece) for piece in encoded.pieces if isinstance(piece, bytes)) < 1000


def test_arrays_do_not_depend_on_the_payload_buffer(serializer: Serializer) -> None:
    payload_buffers, reader = PayloadBuffers(), PayloadReader()
    try:
        arrived: list[Any] = []
        for fill in (1, 2):
            encoded = serializer.encode([np.full(BIG, fill), np.full(10, fill)], no_failure)
            buffer = payload_buffers.put(encoded.pieces, encoded.size)
            fds = [] if buffer.known else [os.dup(buffer.fd.fileno())]
            buffer.sent()
            reader.read(
                buffer.reference(),
                encoded.size,
                fds,
                lambda content: arrived.extend(load_item(*one[:2]) for one in each_item(content)),
            )
            assert buffer.number == 0
    finally:
        payload_buffers.close()
        reader.close()
    assert [(array[0], array[-1]) for array in arrived] == [(1, 1), (1, 1), (2, 2), (2, 2)]


def test_the_arrays_of_a_function_arrive_writable(serializer: Serializer) -> None:
    frozen = np.arange(BIG)
    frozen.flags.writeable = False
    free = np.arange(BIG)
    loaded = load_function(serializer.encode_function(lambda: (frozen, free)))
    for array in loaded():
        assert array.flags.writeable
        np.testing.assert_array_equal(array, free)


# --- items that fail ----------------------------------------------------------------------------------


def encode_some(serializer: Serializer, items: list[Any], **options: Any) -> tuple[dict[int, BaseException], list[Any]]:
    """Return the errors by offset, and the other items as they arrive."""
    failed: dict[int, BaseException] = {}

    def fail(offset: int, error: BaseException) -> None:
        assert offset not in failed, "reported twice"
        failed[offset] = error

    return failed, load_all(serializer.encode(items, fail, **options))


@pytest.mark.parametrize("error", [ValueError("mine"), TypeError("mine"), AttributeError("mine"), MemoryError("mine")])
def test_an_item_that_cannot_be_pickled_fails_alone(serializer: Serializer, error: Exception) -> None:
    failed, loaded = encode_some(serializer, [1, Broken(error), "two", Thing(3), Broken(error)])
    assert failed == {1: error, 4: error}
    assert loaded[0:3:2] == [1, "two"]
    assert loaded[3].content == 3
    assert (loaded[1], loaded[4]) == (Missing, Missing)


@pytest.mark.parametrize("first", [0, [0]], ids=["scalar", "container"])
def test_an_item_that_no_pickler_accepts_fails_alone(serializer: Serializer, first: Any) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    failed, loaded = encode_some(serializer, [first, threading.Lock(), [(letter for letter in "ab")], deep, "good"])
    assert {offset: type(error) for offset, error in failed.items()} == {1: TypeError, 2: TypeError, 3: RecursionError}
    assert loaded == [first, Missing, Missing, Missing, "good"]
    while deep:
        deep = deep.pop()


def test_an_array_before_a_failure_in_the_same_item_leaves_nothing_in_the_payload(serializer: Serializer) -> None:
    error = ValueError("mine")
    failed, loaded = encode_some(serializer, [(np.arange(BIG), Broken(error)), np.arange(BIG)])
    assert failed == {0: error}
    assert loaded[0] is Missing
    np.testing.assert_array_equal(loaded[1], np.arange(BIG))


def test_in_the_master_an_interrupt_is_not_a_failure_of_an_item(serializer: Serializer) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_some(serializer, [Broken(KeyboardInterrupt())])


def test_in_a_worker_every_exception_is_a_failure_of_the_item() -> None:
    error = KeyboardInterrupt()
    failed, loaded = encode_some(Serializer(), [Broken(error), Thing(1)])
    assert failed == {0: error}
    assert loaded[1].content == 1


def test_results_go_by_value_only_if_the_call_did() -> None:
    """multiprocessing refuses to send a lambda back. So does a worker that received nothing by value."""
    failed, _ = encode_some(Serializer(), [lambda: 1], may_go_by_value=False)
    assert list(failed) == [0]
    failed, loaded = encode_some(Serializer(), [lambda: 1], may_go_by_value=True)
    assert failed == {}
    assert loaded[0]() == 1


# --- functions: inherited ones by name, others by value -----------------------------------------------


def _local(number: int) -> Callable[[], int]:
    def inner() -> int:
        return number

    return inner


BY_NAME: dict[str, Any] = {
    "function": known,
    "class": Thing,
    "built-in": len,
    "built-in of a module": math.sqrt,
    "built-in class": int,
    "class of C": collections.OrderedDict,
    "method of a class": Thing.double,
    "bound method": Thing(4).double,
    "bound built-in method": [3, 1].count,
    "class method of a built-in": dict.fromkeys,
    "partial": functools.partial(known, 4),
    "partial of a partial": functools.partial(functools.partial(known), number=4),
    "itemgetter": operator.itemgetter(1),
    "ufunc": np.add,
}

BY_VALUE: dict[str, Any] = {
    "lambda": lambda: 7,
    "closure": _local(7),
    "partial of a lambda": functools.partial(lambda number: number, 7),
    "partial with a lambda": functools.partial(map, lambda number: number),
    "bound method of a local class": type("Local", (), {"seven": lambda self: 7})().seven,
}


@pytest.mark.parametrize("function", BY_NAME.values(), ids=BY_NAME.keys())
def test_an_inherited_function_goes_by_name(serializer: Serializer, function: Any) -> None:
    encoded = serializer.encode_function(function)
    assert not encoded.by_value
    assert encoded.size < 400


@pytest.mark.parametrize("function", BY_VALUE.values(), ids=BY_VALUE.keys())
def test_a_function_without_a_name_goes_by_value(serializer: Serializer, function: Any) -> None:
    encoded = serializer.encode_function(function)
    assert encoded.by_value
    assert callable(load_function(encoded))


@pytest.mark.parametrize("name", ["function", "class", "built-in", "method of a class"])
def test_a_function_by_name_arrives_as_the_same_object(serializer: Serializer, name: str) -> None:
    assert load_function(serializer.encode_function(BY_NAME[name])) is BY_NAME[name]


def test_bound_objects_and_arguments_travel_with_the_function(serializer: Serializer) -> None:
    assert load_function(serializer.encode_function(Thing(4).double))() == 8
    assert load_function(serializer.encode_function(functools.partial(known, 4)))() == 8
    assert load_function(serializer.encode_function(_local(7)))() == 7
    assert load_function(serializer.encode_function(functools.partial(lambda number: number, 7)))() == 7


def test_an_inherited_function_carries_no_globals(in_main: Callable[..., None], twin: Twin) -> None:
    """cloudpickle alone sends the functions of a script with every global that they use."""

    def reads_large() -> int:
        return len(LARGE)

    in_main(reads_large=reads_large)
    encoded = Serializer(InheritedNames()).encode_function(reads_large)
    assert not encoded.by_value
    assert encoded.size < 200


def test_a_function_redefined_later_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    serializer, old = Serializer(InheritedNames()), made_up.answer
    assert twin.call(serializer.encode_function(made_up.answer)) == ["old"]
    define(made_up, "new")
    encoded = serializer.encode_function(made_up.answer)
    assert encoded.by_value
    assert twin.call(encoded) == ["new"]
    assert twin.call(serializer.encode_function(old)) == ["old"], "the old object still means the old function"


def test_a_function_defined_later_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    serializer = Serializer(InheritedNames())
    exec("def later():\n    return 'later'", made_up.__dict__)
    encoded = serializer.encode_function(made_up.later)
    assert encoded.by_value
    assert twin.call(encoded) == ["later"]


def test_a_function_of_main_defined_later_goes_by_value(in_main: Callable[..., None], twin: Twin) -> None:
    serializer = Serializer(InheritedNames())

    def later() -> str:
        return "later"

    in_main(later=later)
    for encoded in (serializer.encode_function(later), serializer.encode([later], no_failure)):
        assert encoded.by_value
        assert twin.call(encoded) == ["later"]


def test_a_partial_of_a_redefined_function_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    serializer = Serializer(InheritedNames())
    define(made_up, "new")
    encoded = serializer.encode_function(functools.partial(made_up.answers_of, [made_up.Thing()]))
    assert encoded.by_value
    assert twin.call(encoded) == [["new"]]


def test_a_method_of_a_redefined_class_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    serializer, old = Serializer(InheritedNames()), made_up.Thing()
    define(made_up, "new")
    for thing, answer in ((made_up.Thing(), "new"), (old, "old")):
        encoded = serializer.encode_function(thing.answer)
        assert encoded.by_value
        assert twin.call(encoded) == [answer]


def test_a_later_module_is_imported_by_the_worker_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serializer = Serializer(InheritedNames())
    (tmp_path / "imported_since.py").write_text("def f():\n    return 'by name'\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("imported_since")
    try:
        encoded = serializer.encode_function(module.f)
        assert not encoded.by_value
        assert load_function(encoded) is module.f
    finally:
        del sys.modules["imported_since"]


def test_a_later_module_without_a_file_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    serializer = Serializer(InheritedNames())
    module = types.ModuleType("from_nowhere")
    monkeypatch.setitem(sys.modules, "from_nowhere", module)
    define(module, "by value")
    encoded = serializer.encode_function(module.answer)
    assert encoded.by_value
    assert load_function(encoded)() == "by value"


def test_a_distrusted_module_is_not_named(made_up: types.ModuleType) -> None:
    names = InheritedNames()
    assert names.names(made_up.answer)
    names.distrust("made_up")
    assert not names.names(made_up.answer)
    assert Serializer(names).encode_function(made_up.answer).by_value
    assert names.names(known)


def test_in_a_fresh_interpreter_main_has_the_reported_names(in_main: Callable[..., None]) -> None:
    def guarded() -> None: ...

    def imported() -> None: ...

    in_main(guarded=guarded, imported=imported)
    names = InheritedNames(frozenset({"imported"}))
    assert names.names(imported)
    assert not names.names(guarded)
    assert names.names(known)


def test_by_value_can_be_requested(serializer: Serializer) -> None:
    encoded = serializer.encode_function(known, by_value=True)
    assert encoded.by_value


# --- classes and items --------------------------------------------------------------------------------


def test_classes_keep_their_identity(serializer: Serializer) -> None:
    thing = Thing(5)
    made, cls = load_function(serializer.encode_function(lambda: (thing, Thing)))()
    assert cls is Thing
    assert type(made) is Thing
    assert isinstance(there_and_back(Thing(1), serializer=serializer)[0], Thing)
    assert there_and_back(Thing, [Thing], serializer=serializer) == [Thing, [Thing]]


def test_a_result_of_a_local_class_arrives_in_the_master() -> None:
    class Local:
        pass

    (made,) = there_and_back(Local(), serializer=Serializer())
    assert type(made).__name__ == "Local"


def test_an_instance_of_a_class_defined_later_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    serializer, old = Serializer(InheritedNames()), made_up.Thing()
    assert twin.call(serializer.encode([old.answer], no_failure)) == ["old"]
    define(made_up, "new")
    for thing, answer in ((made_up.Thing(), "new"), (old, "old")):
        encoded = serializer.encode([functools.partial(operator.methodcaller("answer"), thing)], no_failure)
        assert twin.call(encoded) == [answer]
    (loaded,) = there_and_back(made_up.Thing(), serializer=serializer)
    assert loaded.answer() == "new"
    assert serializer.encode([made_up.Thing()], no_failure).by_value


def test_an_item_that_is_a_redefined_function_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    """The workers have another function of this name, and would call it without an error."""
    serializer = Serializer(InheritedNames())
    define(made_up, "new")
    assert twin.call(serializer.encode([made_up.answer], no_failure)) == ["new"]


def test_an_item_that_holds_a_redefined_function_goes_by_value(made_up: types.ModuleType, twin: Twin) -> None:
    serializer = Serializer(InheritedNames())
    define(made_up, "new")
    call = functools.partial(operator.call, made_up.answer)
    assert twin.call(serializer.encode([call], no_failure)) == ["new"]


def test_a_lambda_in_an_item_goes_by_value(serializer: Serializer, twin: Twin) -> None:
    encoded = serializer.encode([known, lambda: 8], no_failure)
    assert encoded.by_value
    assert twin.call(encoded) == [42, 8]


def test_a_self_contained_pickle_is_by_name_or_by_value(serializer: Serializer) -> None:
    assert pickle.loads(serializer.dump_alone(Thing(3))).content == 3
    assert pickle.loads(serializer.dump_alone([lambda: 4]))[0]() == 4
    with pytest.raises(TypeError, match="lock"):
        serializer.dump_alone(threading.Lock())


# --- functions by number, and the values they carry ---------------------------------------------------


@pytest.fixture
def functions(serializer: Serializer) -> Functions:
    return Functions(serializer)


def warned(functions: Functions, function: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        functions.get(function)
    assert all(one.category is LargeCaptureWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_large_global_is_named(functions: Functions) -> None:
    (message,) = warned(functions, lambda: (LARGE, known))
    assert "global 'LARGE' (2.0 MiB)" in message
    assert "pool.share" in message
    assert "test_a_large_global_is_named.<locals>.<lambda>" in message
    assert "known" not in message


def test_the_globals_of_a_nested_function_are_named(functions: Functions) -> None:
    (message,) = warned(functions, lambda: [(lambda: LARGE)()])
    assert "global 'LARGE' (2.0 MiB)" in message


def _large_closure() -> Any:
    data = np.zeros(2 * MEBIBYTE, np.uint8)
    return lambda: data


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_large_closure(), "captured variable 'data' (2.0 MiB)"),
        (lambda data=LARGE: data, "a default value (2.0 MiB)"),
        (lambda *, data=LARGE: data, "the default of 'data' (2.0 MiB)"),
        (functools.partial(lambda data: data, LARGE), "argument 0 of the partial (2.0 MiB)"),
        (functools.partial(lambda data: data, data=LARGE), "argument 'data' of the partial (2.0 MiB)"),
        (functools.partial(lambda: LARGE), "global 'LARGE' (2.0 MiB)"),
        (type("Local", (Thing,), {})(LARGE).double, "the object that the method is bound to (2.0 MiB)"),
    ],
    ids=["closure", "default", "keyword default", "argument", "keyword argument", "function of a partial", "method"],
)
def test_every_large_captured_value_is_named(functions: Functions, function: Any, expected: str) -> None:
    (message,) = warned(functions, function)
    assert expected in message


def test_a_function_is_warned_about_once(functions: Functions) -> None:
    def carries_large() -> bytes:
        return LARGE

    assert len(warned(functions, carries_large)) == 1
    assert warned(functions, carries_large) == []
    assert len(warned(functions, lambda: LARGE)) == 1


def test_small_captures_and_names_are_not_warned_about(functions: Functions, in_main: Callable[..., None]) -> None:
    assert warned(functions, lambda: SMALL) == []
    assert warned(functions, known) == []
    assert warned(functions, functools.partial(known, 3)) == []


def test_a_plain_function_keeps_its_number(functions: Functions) -> None:
    first = functions.get(known)
    assert functions.release(first) == []
    again = functions.get(known)
    assert again.number == first.number
    assert functions.find(first.number) is first


def test_a_function_by_value_has_a_number_for_each_call(functions: Functions) -> None:
    def local() -> int:
        return 1

    first, second = functions.get(local), functions.get(local)
    assert first.number != second.number
    assert functions.release(first) == [first.number]
    assert functions.find(first.number) is None
    assert functions.find(second.number) is second


def test_a_redefined_function_gets_another_number(made_up: types.ModuleType) -> None:
    functions = Functions(Serializer(InheritedNames()))
    function = made_up.answer
    first = functions.get(function)
    assert not first.by_value
    define(made_up, "new")
    second = functions.get(function)
    assert second.number != first.number
    assert second.by_value
    assert load_function(second.encoded)() == "old"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (known, "known"),
        (Thing.double, "Thing.double"),
        (functools.partial(known, 1), "partial(known)"),
        (functools.partial(functools.partial(known)), "partial(known)"),
        (operator.itemgetter(1), "itemgetter"),
    ],
)
def test_a_function_has_a_readable_name(functions: Functions, function: Any, name: str) -> None:
    assert functions.get(function).name == name
