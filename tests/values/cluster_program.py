"""Check the values that `ClusterPool` returns, and print the wrong ones as JSON.

`test_cluster_values.py` runs this program in its own process, because Dask keeps threads. The only argument is the
address of a scheduler.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pairpool.dask import ClusterPool
from tests.values import programs
from tests.values.kinds import KINDS, Counted, Leaving, Trouble, change, describe

TIMEOUT_S = 60.0
COUNT = 40
SOME_KINDS = ["list", "set", "array", "array of 80 KB", "object", "nested", "gauge"]
"""Fewer than for a pool, because each call takes some 20 ms of Dask's time."""

MAX_TAKEN = 200
"""Items that a stream may have taken after ten results, if each item takes a millisecond."""

Function: TypeAlias = Callable[[Any], Any]
Way: TypeAlias = Callable[[ClusterPool, Function, Iterable[Any]], list[Any]]


def _outcome(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (Exception, SystemExit) as error:
        return error


def _apply_async(pool: ClusterPool, function: Function, items: Iterable[Any]) -> list[Any]:
    results = [pool.apply_async(function, (item,)) for item in items]
    return [_outcome(functools.partial(result.get, TIMEOUT_S)) for result in results]


def _submit(pool: ClusterPool, function: Function, items: Iterable[Any]) -> list[Any]:
    futures = [pool.submit(function, item) for item in items]
    return [_outcome(functools.partial(future.result, TIMEOUT_S)) for future in futures]


STREAMS: dict[str, Way] = {
    "imap": lambda pool, function, items: list(pool.imap(function, items, return_exceptions=True)),
    "imap_unordered": lambda pool, function, items: list(pool.imap_unordered(function, items, return_exceptions=True)),
    "imap in batches of 20": lambda pool, function, items: list(pool.imap(function, items, 20, return_exceptions=True)),
    "apply_async": _apply_async,
    "submit": _submit,
}
"""Ways that pickle each item before the caller's code runs again."""

LISTS: dict[str, Way] = {
    "map": lambda pool, function, items: pool.map(function, items, return_exceptions=True),
    "map in batches of 20": lambda pool, function, items: pool.map(function, items, 20, return_exceptions=True),
    "map_async": lambda pool, function, items: pool.map_async(function, items, return_exceptions=True).get(TIMEOUT_S),
}
"""Ways that make a list of the input first."""


def differences(pool: ClusterPool, way: str, function: Function, items: Callable[[], Iterable[Any]]) -> list[str]:
    """Return the errors in the outcomes of a call, as texts."""
    is_stream = way in STREAMS
    expected = programs.run_one_by_one(function, items() if is_stream else list(items()))
    found = {**STREAMS, **LISTS}[way](pool, function, items() if is_stream else list(items()))
    wrong = programs.wrong_ones(found, expected, is_ordered=way != "imap_unordered") + programs.shared_ones(found)
    return [repr(one)[:200] for one in wrong[:3]]


# --- the checks ---------------------------------------------------------------------------------------


def refilled(kind: str) -> Iterator[Any]:
    """Yield one object again and again, with a new content each time."""
    thing = KINDS[kind].make(0)
    for number in range(COUNT):
        KINDS[kind].fill(thing, number)
        yield thing


def same(kind: str) -> list[Any]:
    """Return the same object as every item."""
    return [KINDS[kind].make(1)] * COUNT


def numbered(kind: str) -> list[Any]:
    """Return items for `programs.give`."""
    return [(kind, number) for number in range(COUNT)]


def by_kind(
    pool: ClusterPool, ways: Iterable[str], function: Function, items: Callable[[str], Iterable[Any]]
) -> dict[str, Any]:
    """Return the errors for each way and kind."""
    return {
        f"{way}, {kind}": differences(pool, way, function, functools.partial(items, kind))
        for way in ways
        for kind in SOME_KINDS
    }


def inside(pool: ClusterPool) -> dict[str, Any]:
    """Check objects that an item contains twice, and objects that several items contain."""
    part: dict[str, Any] = {"settings": [1, 2]}
    twice = [[[1]] * 2] * 5
    big = np.zeros(20_000)
    found: dict[str, Any] = {}
    for way in [*STREAMS, *LISTS]:
        found[f"{way}, part"] = differences(pool, way, programs.touch, lambda: [(part, 1)] * COUNT)
        found[f"{way}, twice"] = differences(pool, way, programs.is_shared_inside, lambda: twice)
        found[f"{way}, twice in the result"] = differences(pool, way, programs.return_twice, lambda: twice)
    for way in STREAMS:
        found[f"{way}, large part"] = differences(pool, way, programs.touch, lambda: [(big, 1)] * COUNT)
    return found


def exceptions(pool: ClusterPool) -> dict[str, Any]:
    """Check an exception of the module that all tasks raise, and results between exceptions."""
    ways = [*STREAMS, *LISTS]
    found = {f"{way}, kept": differences(pool, way, programs.fail_with_kept, lambda: range(COUNT)) for way in ways}
    for way in ways:
        found[f"{way}, in turn"] = differences(pool, way, programs.fail_if_odd, lambda: range(COUNT))
    return found


def unpicklable(pool: ClusterPool) -> dict[str, Any]:
    """Check that items which cannot be pickled fail alone."""
    bad: dict[str, Callable[[], Any]] = {"TypeError": threading.Lock, "SystemExit": Leaving}
    found: dict[str, Any] = {}
    for name, make in bad.items():
        for way, call in {**STREAMS, **LISTS}.items():
            try:
                outcomes = call(pool, programs.look, [1, make(), 3])
                errors = [one for one in outcomes if isinstance(one, BaseException)]
                is_right = len(errors) == 1 and name in repr(errors[0]) and sorted(set(outcomes) - {*errors}) == [1, 3]
                found[f"{way}, {name}"] = [] if is_right else [repr(outcomes)]
            except (Exception, SystemExit) as error:
                found[f"{way}, {name}"] = [repr(error)]
    return found


def retries(pool: ClusterPool) -> dict[str, Any]:
    """Check that the second run gets the argument as it was when the call was made."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for how in ("raise", "kill"):
            for kind in ("list", "array of 80 KB", "object"):
                function = programs.FirstRun(str(Path(directory) / f"{how} {kind}"), how)
                thing = KINDS[kind].make(1)
                before = describe(thing)
                result = pool.apply_async(function, (thing,), retries=1, retry_on=Trouble)
                change(thing)
                outcome = _outcome(functools.partial(result.get, TIMEOUT_S)), function.runs()
                found[f"{how}, {kind}"] = [] if outcome == (before, 2) else [repr(outcome)]
    return found


def large(pool: ClusterPool) -> dict[str, Any]:
    """Check that a large object inside many items is pickled only a few times."""
    big = Counted()
    Counted.times = 0
    outcomes = pool.map(_second_of, [(big, number) for number in range(1000)])
    is_right = outcomes == list(range(1000)) and Counted.times <= 100
    return {"map": [] if is_right else [f"pickled {Counted.times} times"]}


def _second_of(item: tuple[Any, int]) -> int:
    return item[1]


def look_ahead(pool: ClusterPool) -> dict[str, Any]:
    """Check that a stream takes few unread items of a slow input."""
    found = {}
    for way in ("imap", "imap_unordered"):
        taken = 0

        def slow() -> Iterator[int]:
            nonlocal taken
            while taken < 5 * MAX_TAKEN:
                time.sleep(0.001)  # the cost of an item
                taken += 1
                yield taken

        stream = getattr(pool, way)(programs.look, slow())
        for _ in range(10):
            next(stream)
        found[way] = [] if taken <= MAX_TAKEN else [f"{taken} items were taken"]
        stream.cancel()
    return found


CHECKS: dict[str, Callable[[ClusterPool], dict[str, Any]]] = {
    "the same object as every item": lambda pool: by_kind(pool, [*STREAMS, *LISTS], programs.touch, same),
    "an object with a new content for each item": lambda pool: by_kind(pool, STREAMS, programs.look, refilled),
    "a kept object as every result": lambda pool: by_kind(pool, [*STREAMS, *LISTS], programs.give, numbered),
    "objects inside items": inside,
    "exceptions": exceptions,
    "items that cannot be pickled": unpicklable,
    "retries": retries,
    "a large object inside many items": large,
    "look-ahead": look_ahead,
}


def main(address: str) -> None:
    """Do all checks in one pool, and print the errors as a line of JSON."""
    found: dict[str, Any] = {}
    with ClusterPool(address, timeout=30) as pool:
        for name, check in CHECKS.items():
            try:
                found[name] = {case: wrong for case, wrong in check(pool).items() if wrong}
            except Exception as error:
                found[name] = {"the check itself": repr(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
