"""Measure items of many types: pairpool, multiprocessing, and another checkout of pairpool.

    python -m benchmarks.values [--rounds N] [--beside CHECKOUT] [--only CASE ...]

Each run is a fresh process, and the libraries take turns. The program prints the median and the spread of each.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MIB = 1 << 20
OURS, STANDARD, OTHER = "pairpool", "multiprocessing", "other checkout"


Task = Callable[[Any], Any]


class Thing:
    """An object of a user's class."""

    def __init__(self, number: int) -> None:
        self.number = number


def noop(thing: Any) -> Any:
    return thing


def number_of(thing: Any) -> int:
    return int(thing["number"] if type(thing) is dict else thing.number)


def as_dict(number: int) -> dict[str, Any]:
    return {"number": number, "half": number / 2}


def first_of(array: Any) -> float:
    return float(array[0])


def dicts(count: int) -> Iterator[dict[str, Any]]:
    return map(as_dict, range(count))


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def count_of(results: Any) -> int:
    return sum(1 for _ in results)


def call_all(pool: Any, task: Task, items: list[Any]) -> None:
    for result in [pool.apply_async(task, (item,)) for item in items]:
        result.get()


def apply_all(pool: Any, count: int) -> None:
    for number in range(count):
        pool.apply(noop, (number,))


def arrays(count: int) -> list[Any]:
    import numpy as np

    return [np.full(1024, float(number)) for number in range(count)]


def with_table(count: int) -> list[Any]:
    table = {number: str(number) for number in range(100_000)}
    return [(table, number) for number in range(count)]


def entries_in(item: tuple[dict[int, str], int]) -> int:
    return len(item[0])


@functools.cache
def large() -> Any:
    import numpy as np

    return np.ones(64 * MIB // 8)


Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kind of call.

    Args:
        unit: the unit of the cost of an item.
        size: the number of items.
        make: returns the work of a pool with that many items.
        standard: the number of items for multiprocessing, if the full size takes too long; 0 for the full size.
    """

    unit: str
    size: int
    make: Callable[[Any, int], Work]
    standard: int = 0


def mapped(task: Task, make: Callable[[int], Any]) -> Callable[[Any, int], Work]:
    """Return the work of `map` over existing items."""

    def work(pool: Any, size: int) -> Work:
        items = make(size)
        return lambda: pool.map(task, items)

    return work


def streamed(task: Task, make: Callable[[int], Any]) -> Callable[[Any, int], Work]:
    """Return the work of `imap` over an input that is made while it is read."""
    return lambda pool, size: lambda: count_of(pool.imap(task, make(size)))


def called(task: Task, make: Callable[[int], Any]) -> Callable[[Any, int], Work]:
    """Return the work of many calls of `apply_async`, and then their results."""

    def work(pool: Any, size: int) -> Work:
        items = list(make(size))
        return lambda: call_all(pool, task, items)

    return work


CASES: dict[str, Case] = {
    "map, ints": Case("µs", 300_000, mapped(noop, lambda size: list(range(size)))),
    "imap, ints of a range": Case("µs", 100_000, streamed(noop, range), 5_000),
    "imap, ints of a generator": Case("µs", 100_000, streamed(noop, numbers), 5_000),
    "imap, dicts in": Case("µs", 50_000, streamed(number_of, dicts), 5_000),
    "imap, dicts out": Case("µs", 50_000, streamed(as_dict, range), 5_000),
    "map, dicts in": Case("µs", 50_000, mapped(number_of, lambda size: list(dicts(size)))),
    "map, dicts in and out": Case("µs", 50_000, mapped(noop, lambda size: list(dicts(size)))),
    "map, pairs of ints": Case("µs", 100_000, mapped(noop, lambda size: [(number, 1) for number in range(size)])),
    "map, objects in": Case("µs", 20_000, mapped(number_of, lambda size: [Thing(number) for number in range(size)])),
    "map, arrays of 8 KiB in and out": Case("µs", 10_000, mapped(noop, arrays)),
    "imap, arrays of 8 KiB in and out": Case("µs", 5_000, streamed(noop, lambda size: iter(arrays(size))), 1_000),
    "map, one table of 100,000 texts": Case("ms", 1_000, mapped(entries_in, with_table)),
    "apply_async, ints": Case("µs", 5_000, called(noop, range)),
    "apply_async, dicts": Case("µs", 5_000, called(number_of, dicts)),
    "apply, ints": Case("µs", 2_000, lambda pool, size: lambda: apply_all(pool, size)),
    "apply, 64 MiB in": Case("ms", 1, lambda pool, _size: functools.partial(pool.apply, first_of, (large(),))),
    "imap, 64 MiB in": Case("ms", 8, streamed(first_of, lambda size: iter([large()] * size)), 4),
}


def child(case: str, library: str) -> None:
    """Measure in this process, and print the cost of an item: the best of three runs after a first one."""
    if library == STANDARD:
        import multiprocessing

        pool: Any = multiprocessing.get_context("fork").Pool(2)
    else:
        import pairpool

        pool = pairpool.Pool(2)
    chosen = CASES[case]
    count = (library == STANDARD and chosen.standard) or chosen.size
    with pool:
        work = chosen.make(pool, count)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    print(json.dumps(min(times[1:]) / count * (1e6 if chosen.unit == "µs" else 1e3)))


def measure(case: str, library: str, other: Path | None) -> float:
    """Measure in a fresh process."""
    checkout = other if library == OTHER else ROOT
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--child", case, library]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return float(json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))


def main(argv: list[str]) -> None:
    if argv[:1] == ["--child"]:
        child(*argv[1:])
        return
    parser = argparse.ArgumentParser(prog="benchmarks.values", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="a checkout of another version of pairpool")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="CASE", default=list(CASES))
    arguments = parser.parse_args(argv)
    libraries = [OURS, STANDARD] + ([OTHER] if arguments.beside else [])
    for case in arguments.only:
        found: dict[str, list[float]] = {library: [] for library in libraries}
        for number in range(arguments.rounds):
            shift = number % len(libraries)
            for library in libraries[shift:] + libraries[:shift]:
                found[library].append(measure(case, library, arguments.beside))
        ours = statistics.median(found[OURS])
        print(f"{case}, {CASES[case].unit} an item")
        for library, values in found.items():
            median = statistics.median(values)
            spread = f"({min(values):.3f} to {max(values):.3f})"
            print(f"  {library:16} {median:9.3f} {spread:20} ours is {ours / median:.3f} ×")


if __name__ == "__main__":
    main(sys.argv[1:])
