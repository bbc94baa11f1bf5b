"""Kinds of mutable values: how to make, fill, describe and change them. Workers import it, so it needs no pairpool."""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

# --- values -------------------------------------------------------------------------------------------


class Thing:
    """An object with attributes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.parts = [number]


@dataclass
class Record:
    """A dataclass with a mutable field."""

    number: int
    parts: list[int] = field(default_factory=list)


gauges = {"input": 0, "kept": 0}
"""The number that each gauge shows, by name."""


class Reading:
    """The number that a `Gauge` showed when it was pickled."""

    def __init__(self, number: int) -> None:
        self.number = number


class Gauge:
    """An object whose pickle depends on a module-level variable."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return Reading, (gauges[self.name],)


class Trouble(Exception):
    """An exception with an attribute in addition to its arguments."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.details: list[Any] = []


class Leaving:
    """An object that raises SystemExit when it is pickled."""

    def __reduce__(self) -> NoReturn:
        raise SystemExit(7)


class Counted:
    """A mutable object with a large pickle. `times` counts how often it was pickled in this process."""

    times = 0

    def __init__(self) -> None:
        self.content = bytearray(100_000)

    def __reduce__(self) -> Any:
        Counted.times += 1
        return _counted, (bytes(self.content),)


def _counted(content: bytes) -> Counted:
    counted = Counted()
    counted.content[:] = content
    return counted


# --- kinds of values ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of mutable value.

    Args:
        make: returns a new object that shows a number.
        fill: changes an object in place until it shows another number.
        is_large: whether the pickle of an object has 64 KiB or more.
    """

    make: Callable[[int], Any]
    fill: Callable[[Any, int], object]
    is_large: bool = False


def _fill_list(thing: Any, number: int) -> None:
    thing[:] = [number, number + 1]


def _fill_dict(thing: Any, number: int) -> None:
    thing.clear()
    thing["number"] = number


def _fill_set(thing: Any, number: int) -> None:
    thing.clear()
    thing.add(number)


def _fill_bytearray(thing: Any, number: int) -> None:
    thing[:] = b"%d" % number


def _fill_large_bytearray(thing: Any, number: int) -> None:
    thing[:] = bytes([number % 256]) * 100_000


def _fill_array(thing: Any, number: int) -> None:
    thing[...] = number


def _fill_base(thing: Any, number: int) -> None:
    thing.base[...] = number


def _fill_array_of_lists(thing: Any, number: int) -> None:
    for index in range(len(thing)):
        thing[index] = [number]


def _fill_attributes(thing: Any, number: int) -> None:
    vars(thing).clear()
    thing.number = number
    thing.parts = [number]


def _fill_tuple(thing: Any, number: int) -> None:
    thing[0][:] = [number]


def _fill_nested(thing: Any, number: int) -> None:
    """Change the innermost containers and keep all others, as a program does that works on a state."""
    thing["lists"][0][:] = [number]
    thing["lists"][1][:] = [number + 1]
    thing["dict"]["inner"].clear()
    thing["dict"]["inner"]["number"] = number


def _fill_deque(thing: Any, number: int) -> None:
    thing.clear()
    thing.extend([number, number + 1])


def _fill_counter(thing: Any, number: int) -> None:
    thing.clear()
    thing["number"] = number + 1


def _fill_gauge(thing: Any, number: int) -> None:
    gauges[thing.name] = number


def _make_read_only(number: int) -> Any:
    view = np.full(9, float(number)).view()
    view.flags.writeable = False
    return view


def _make_array_of_lists(number: int) -> Any:
    array = np.empty(2, dtype=object)
    _fill_array_of_lists(array, number)
    return array


def _make_gauge(number: int) -> Gauge:
    gauges["input"] = number
    return Gauge("input")


KINDS: dict[str, Kind] = {
    "list": Kind(lambda n: [n, n + 1], _fill_list),
    "dict": Kind(lambda n: {"number": n}, _fill_dict),
    "set": Kind(lambda n: {n}, _fill_set),
    "bytearray": Kind(lambda n: bytearray(b"%d" % n), _fill_bytearray),
    "array": Kind(lambda n: np.full(9, float(n)), _fill_array),
    "array of 40 KB": Kind(lambda n: np.full(5_000, float(n)), _fill_array),
    "array of 80 KB": Kind(lambda n: np.full(10_000, float(n)), _fill_array, is_large=True),
    "bytearray of 100 KB": Kind(lambda n: bytearray([n % 256]) * 100_000, _fill_large_bytearray, is_large=True),
    "read-only array": Kind(_make_read_only, _fill_base),
    "array of lists": Kind(_make_array_of_lists, _fill_array_of_lists),
    "object": Kind(Thing, _fill_attributes),
    "tuple of list": Kind(lambda n: ([n],), _fill_tuple),
    "nested": Kind(lambda n: {"lists": [[n], [n + 1]], "dict": {"inner": {"number": n}}}, _fill_nested),
    "deque": Kind(lambda n: deque([n, n + 1]), _fill_deque),
    "counter": Kind(lambda n: Counter(number=n + 1), _fill_counter),
    "dataclass": Kind(lambda n: Record(n, [n]), _fill_attributes),
    "gauge": Kind(_make_gauge, _fill_gauge),
}

CHANGEABLE = [name for name in KINDS if name not in ("read-only array", "gauge")]
"""Kinds whose objects a task can change."""


# --- looking at values, and changing them -------------------------------------------------------------

_SMALL_ARRAY = 16
_SMALL_BYTES = 64

_PLAIN = (int, float, complex, str, bytes, type(None), np.generic)


def describe(value: Any) -> Any:
    """Return a description of a value that can be compared with `==`.

    It has the types, the contents, and the places where the same mutable object stands again. It has nothing mutable.
    """
    return _describe(value, {})


def _describe(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if type(value) is tuple:
        return ("tuple", *(_describe(one, seen) for one in value))
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    return (type(value).__name__, *_describe_contents(value, seen))


def _describe_contents(value: Any, seen: dict[int, int]) -> Iterator[Any]:
    if isinstance(value, np.ndarray):
        yield from (str(value.dtype), value.shape)
        if value.dtype.hasobject or value.size <= _SMALL_ARRAY:
            yield from (_describe(one, seen) for one in value.ravel().tolist())
        else:
            yield from (value.flat[0].item(), zlib.crc32(value.tobytes()))
    elif isinstance(value, bytearray):
        yield bytes(value) if len(value) <= _SMALL_BYTES else (len(value), value[0], zlib.crc32(value))
    elif isinstance(value, dict):
        yield from ((key, _describe(one, seen)) for key, one in value.items())
    elif isinstance(value, (set, frozenset)):
        yield from sorted((_describe(one, seen) for one in value), key=repr)
    elif isinstance(value, (list, deque)):
        yield from (_describe(one, seen) for one in value)
    else:
        if isinstance(value, BaseException):
            yield _describe(value.args, seen)
        attributes = {name: one for name, one in vars(value).items() if name != "__notes__"}
        yield from ((name, _describe(one, seen)) for name, one in sorted(attributes.items()))


def mutable_parts(value: Any) -> list[Any]:
    """Return each mutable object that can be reached from a value, the value itself included."""
    found: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (*_PLAIN, type)) or id(one) in found:
            continue
        if type(one) is not tuple:
            found[id(one)] = one
        waiting += _contents(one)
    return list(found.values())


def _contents(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return list(value.ravel().tolist()) if value.dtype.hasobject else []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (tuple, list, set, frozenset, deque)):
        return list(value)
    inside = list(value.args) if isinstance(value, BaseException) else []
    return inside + list(getattr(value, "__dict__", {}).values())


def change(value: Any) -> None:
    """Change every mutable object that can be reached from a value."""
    for part in mutable_parts(value):
        _change(part)


def _change(part: Any) -> None:
    if isinstance(part, np.ndarray):
        if part.dtype.hasobject:
            part.flat[-1] = "changed"
        elif part.flags.writeable:
            part += 1
    elif isinstance(part, Counter):
        part["changes"] += 1
    elif isinstance(part, dict):
        part["changes"] = part.get("changes", 0) + 1
    elif isinstance(part, set):
        part.add(("changed", len(part)))
    elif isinstance(part, (list, deque, bytearray)):
        part.append(99)
    else:
        if isinstance(part, BaseException):
            part.args = (*part.args, "changed")
        vars(part)["changes"] = vars(part).get("changes", 0) + 1
