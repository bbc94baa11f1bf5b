"""Tasks that use values, and a plain loop that predicts the outcome of each task.

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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tests.support import tasks
from tests.values.kinds import KINDS, Gauge, Trouble, change, describe, mutable_parts

# --- tasks --------------------------------------------------------------------------------------------


def look(thing: Any) -> Any:
    """Return a description of the argument."""
    return describe(thing)


def touch(thing: Any) -> Any:
    """Return a description of the argument, and change the argument after that."""
    before = describe(thing)
    change(thing)
    return before


def touch_all(*things: Any, **more: Any) -> Any:
    """Do `touch` with all arguments together."""
    return touch((things, more))


def touch_for(microseconds_and_thing: tuple[int, Any]) -> Any:
    """Do `touch`, and compute for the microseconds in the item."""
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
    """Return a list that contains the argument twice."""
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
    """A task whose first run changes its argument and then fails. The second run describes its argument.

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
    """Do `touch`. A list that shows the number 50 ends the worker."""
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
"""Tasks by name: each does something with its argument."""

GIVES: dict[str, Callable[[tuple[str, int]], Any]] = {"give": give, "give inside": give_inside}
"""Tasks by name: each returns the kept object of a kind."""


def perform(order: tuple[str, str, int, Any]) -> Any:
    """Do the action of an item, which is `(action, kind, number, thing)`."""
    action, kind, number, thing = order
    if action in GIVES:
        return GIVES[action]((kind, number))
    return ACTIONS[action](thing)


# --- programs -----------------------------------------------------------------------------------------

SOURCES = ["new", "same", "refilled"]
SHAPES = ["plain", "in a tuple", "twice", "in a dict", "deep", "in a reused list", "with itself"]


@dataclass(frozen=True)
class Step:
    """One item: its object, and the action of its task.

    Args:
        kind: the key of a kind.
        source: the origin of the object. `"new"` is a new object, `"same"` is the earlier object, and `"refilled"` is
            the earlier object with a new content.
        shape: the place of the object in the item.
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
        steps: one step per item.
        repeat: how often the steps are repeated.
        action: the action of all tasks, whose items are the objects themselves. None if each step has its own action.
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
        """Yield the items. Objects are used again and changed between two items, according to the steps."""
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
    """Return an item that contains an object in a certain place.

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


# --- the expected outcomes ----------------------------------------------------------------------------


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
    """Return the differences between two lists of outcomes: index, found and expected outcome."""
    left, right = [describe(one) for one in found], [describe(one) for one in expected]
    if not is_ordered:
        left.sort(key=repr)
        right.sort(key=repr)
    if len(left) != len(right):
        return [("count", len(left), len(right))]
    return [(index, *pair) for index, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]]


def shared_ones(outcomes: list[Any]) -> list[Any]:
    """Return the mutable objects that outcomes of different items share: pairs of indexes and the type."""
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
                memory.append((start, start + part.nbytes, index))  # an unpickled array has no gaps
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
