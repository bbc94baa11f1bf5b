"""Kinds of values, tasks that use them, and a plain loop that says what each task has to find.

    inputs() ─► item ─► pickled when it is taken ─► task ─► result, pickled when the task has ended

`run_one_by_one` does exactly this, without a pool. Every way to call pairpool must give the same values. Nothing here
imports pairpool: the workers of each start method and of a cluster import this module and need nothing else.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from tests import tasks

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
"""What the gauges show now, by name."""


class Reading:
    """What a `Gauge` showed when it was pickled."""

    def __init__(self, number: int) -> None:
        self.number = number


class Gauge:
    """An object whose pickle depends on a module-level variable."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return Reading, (gauges[self.name],)


class Trouble(Exception):
    """An exception that has an attribute beside its arguments."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.details: list[Any] = []


class Leaving:
    """An object that raises SystemExit when it is pickled."""

    def __reduce__(self) -> NoReturn:
        raise SystemExit(7)


class Counted:
    """A mutable object whose pickle is large; `times` says how often it was pickled in this process."""

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


# --- tasks --------------------------------------------------------------------------------------------


def look(thing: Any) -> Any:
    """Return a description of the argument."""
    return describe(thing)


def touch(thing: Any) -> Any:
    """Return a description of the argument as it came, and change the argument."""
    before = describe(thing)
    change(thing)
    return before


def touch_all(*things: Any, **more: Any) -> Any:
    """Do `touch` with all arguments together."""
    return touch((things, more))


def touch_for(microseconds_and_thing: tuple[int, Any]) -> Any:
    """Change the argument, compute for as long as the item says, and return a description of what came."""
    microseconds, thing = microseconds_and_thing
    before = touch(thing)
    end = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < end:
        pass
    return before


def echo(thing: Any) -> Any:
    """Return the argument."""
    return thing


def change_and_return(thing: Any) -> Any:
    """Change the argument and return it."""
    change(thing)
    return thing


def return_twice(thing: Any) -> Any:
    """Return a list in which the argument stands twice."""
    return [thing, {"again": thing}]


kept: dict[str, Any] = {name: Gauge("kept") if name == "gauge" else kind.make(0) for name, kind in KINDS.items()}
"""An object of each kind that tasks return again and again."""

kept_log: list[Any] = []
kept_error = Trouble()
kept_constant = [1, {"two": [3]}]


def give(kind_and_number: tuple[str, int]) -> Any:
    """Fill the kept object of a kind with a number and return that object."""
    kind, number = kind_and_number
    KINDS[kind].fill(kept[kind], number)
    return kept[kind]


def give_inside(kind_and_number: tuple[str, int]) -> Any:
    """Do `give`, and return the kept object in two places of a new container."""
    thing = give(kind_and_number)
    return kind_and_number[1], [thing], {"again": thing}


def give_constant(_item: Any) -> Any:
    """Return a kept object that no task changes."""
    return kept_constant


def give_a_view(number: int) -> Any:
    """Fill the kept array of 80 KB with a number and return a part of it."""
    kept["array of 80 KB"][:] = number
    return kept["array of 80 KB"][::2]


def give_and_hold(gate: str, held: int, kind_and_number: tuple[str, int]) -> Any:
    """Do `give`; the item with the number `held` then waits for the gate."""
    thing = give(kind_and_number)
    if kind_and_number[1] == held:
        tasks.wait_for(gate)
    return thing


def log(thing: Any) -> Any:
    """Keep a description of the argument in a kept list, and return that list."""
    kept_log[:] = [describe(thing)]
    return kept_log


def fail_with_kept(thing: Any) -> NoReturn:
    """Raise a kept exception again, whose arguments and attributes show the argument."""
    kept_error.args = (describe(thing),)
    kept_error.details[:] = [describe(thing)]
    raise kept_error.with_traceback(None)


def fail_with_argument(thing: Any) -> NoReturn:
    """Raise a new exception that holds the argument, changed."""
    change(thing)
    raise Trouble(thing)


def fail_if_odd(number: int) -> int:
    """Raise the kept exception for odd numbers."""
    if number % 2:
        fail_with_kept(number)
    return number


def is_same(first: Any, second: Any) -> bool:
    """Return whether both arguments are the same object."""
    return first is second


def is_shared_inside(thing: Any) -> bool:
    """Return whether both elements of the argument are the same object."""
    return thing[0] is thing[1]


def contains_itself(thing: Any) -> bool:
    """Return whether the argument is its own last element."""
    return thing[-1] is thing


class FirstRun:
    """A task whose first run changes its argument and then fails; the second run says what it got.

    Args:
        journal: path of a file that each run appends a line to.
        how: `"raise"`, `"exit"` or `"kill"`.
    """

    def __init__(self, journal: str, how: str) -> None:
        self.journal, self.how = journal, how

    def __call__(self, thing: Any) -> Any:
        before = touch(thing)
        tasks.tell(self.journal, os.getpid())
        if self.runs() == 1:
            if self.how == "exit":
                os._exit(3)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Trouble("the first run")
        return before

    def runs(self) -> int:
        """Return how many runs have begun."""
        with open(self.journal) as file:
            return len(file.readlines())


def touch_or_die(thing: Any) -> Any:
    """Do `touch`; a list that shows the number 50 ends the worker."""
    if thing[0] == 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return touch(thing)


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "look": look,
    "touch": touch,
    "echo": echo,
    "change and return": change_and_return,
    "return twice": return_twice,
    "log": log,
    "fail with kept": fail_with_kept,
    "fail with argument": fail_with_argument,
}
"""What a task does with its argument."""

GIVES: dict[str, Callable[[tuple[str, int]], Any]] = {"give": give, "give inside": give_inside}
"""What a task does with the kept object of a kind."""


def perform(order: tuple[str, str, int, Any]) -> Any:
    """Do what an item says: `(action, kind, number, thing)`."""
    action, kind, number, thing = order
    if action in GIVES:
        return GIVES[action]((kind, number))
    return ACTIONS[action](thing)


# --- programs -----------------------------------------------------------------------------------------

SOURCES = ["new", "same", "refilled"]
SHAPES = ["plain", "in a tuple", "twice", "in a dict", "deep", "in a reused list", "with itself"]


@dataclass(frozen=True)
class Step:
    """How one item is made and what its task does.

    Args:
        kind: the key of a kind.
        source: where the object comes from: `"new"`, the `"same"` as before, or that one `"refilled"`.
        shape: how the object stands in the item.
        action: the key of an action.
        is_spoiled: whether the caller changes the object as soon as the item was taken.
    """

    kind: str
    source: str
    shape: str
    action: str
    is_spoiled: bool


@dataclass(frozen=True)
class Program:
    """The items of a call.

    Args:
        steps: one for each item.
        repeat: how often the steps are repeated.
        action: what all tasks do, with items that are the objects themselves; None if each step has its own action.
    """

    steps: tuple[Step, ...]
    repeat: int
    action: str | None

    @property
    def function(self) -> Callable[[Any], Any]:
        """The function to call for each item."""
        return perform if self.action is None else ACTIONS[self.action]

    @property
    def fails(self) -> bool:
        """Whether a task raises an exception."""
        return any(self._action_of(step).startswith("fail") for step in self.steps)

    @property
    def has_large(self) -> bool:
        """Whether an item contains a large object."""
        return any(KINDS[step.kind].is_large for step in self.steps)

    def inputs(self) -> Iterator[Any]:
        """Yield the items; objects are used again and changed between two items, as the steps say."""
        objects: dict[str, Any] = {}
        reused: list[Any] = []
        for number, step in enumerate(self.steps * self.repeat):
            kind = KINDS[step.kind]
            if step.source == "new" or step.kind not in objects:
                objects[step.kind] = kind.make(number)
            elif step.source == "refilled":
                kind.fill(objects[step.kind], number)
            thing = shaped(objects[step.kind], step.shape, reused)
            yield thing if self.action is not None else (step.action, step.kind, number, thing)
            if step.is_spoiled:
                change(thing)

    def _action_of(self, step: Step) -> str:
        return step.action if self.action is None else self.action


def shaped(thing: Any, shape: str, reused: list[Any]) -> Any:
    """Return an item in which an object stands in a certain way.

    Args:
        shape: one of `SHAPES`.
        reused: a list that is used for each item of the shape `"in a reused list"`.
    """
    if shape == "in a tuple":
        return (1, thing)
    if shape == "twice":
        return [thing, thing]
    if shape == "in a dict":
        return {"thing": thing, "again": [thing]}
    if shape == "deep":
        return [({"thing": [thing]},)]
    if shape == "in a reused list":
        reused[:] = [thing]
        return reused
    if shape == "with itself":
        items = [thing]
        items.append(items)
        return items
    return thing


# --- what has to come of it ---------------------------------------------------------------------------


def run_one_by_one(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Run a function in a plain loop, with each item and each result pickled at its time.

    Returns the result of each item, or the exception that it raised.
    """
    outcomes: list[Any] = []
    for item in items:
        argument = pickle.loads(pickle.dumps(item))
        try:
            outcome = function(argument)
        except Exception as error:
            outcome = error
        outcomes.append(pickle.loads(pickle.dumps(outcome)))
    return outcomes


def wrong_ones(found: list[Any], expected: list[Any], *, is_ordered: bool = True) -> list[Any]:
    """Return what differs between two lists of outcomes: index, what was found, and what should have been found."""
    left, right = [describe(one) for one in found], [describe(one) for one in expected]
    if not is_ordered:
        left.sort(key=repr)
        right.sort(key=repr)
    if len(left) != len(right):
        return [("count", len(left), len(right))]
    return [(index, *pair) for index, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]]


def shared_ones(outcomes: list[Any]) -> list[Any]:
    """Return what outcomes of different items have in common: pairs of indexes and the type of a mutable object."""
    owners: dict[int, int] = {}
    found: list[Any] = []
    memory: list[tuple[int, int, int]] = []
    for index, outcome in enumerate(outcomes):
        for part in mutable_parts(outcome):
            owner = owners.setdefault(id(part), index)
            if owner != index:
                found.append((owner, index, type(part).__name__))
            if isinstance(part, np.ndarray) and part.flags.writeable and part.size:
                start = part.__array_interface__["data"][0]
                memory.append((start, start + part.nbytes, index))  # what was unpickled has no gaps
    memory.sort()
    for (_start, end, owner), (start, _end, index) in itertools.pairwise(memory):
        if start < end and owner != index:
            found.append((owner, index, "memory"))
    return found


def changed_by(outcomes: list[Any], victim: int) -> list[int]:
    """Change one outcome and return the indexes of the others that changed with it."""
    before = [describe(one) for one in outcomes]
    change(outcomes[victim])
    return [index for index, one in enumerate(outcomes) if index != victim and describe(one) != before[index]]
