"""Measure how costs grow: with the number of items, of workers, with the payload and the length of tasks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from time import perf_counter

from benchmarks.cases.arrays import make
from benchmarks.cases.calls import map_chunk, warm_calls, warm_maps, warm_streams
from benchmarks.model import SLOW_TO_START, Curve, Values
from benchmarks.peers import Peer, opened
from benchmarks.tasks import look_at, noop, spin

ENOUGH_S = 0.3
"""Seconds of measuring after which a point is complete. A point has at least one measurement."""

MAX_TIMINGS = 5
"""Measurements of one point, at most."""

TOO_LONG_S = 2.0
"""Seconds after which a curve ends: one point took longer, or the next one is likely to take five times as long."""

TASKS = 2000
"""Tasks that each pool of the curve over workers gets."""

Points = Iterator[tuple[float, Values]]


def _typical(action: Callable[[], object]) -> float:
    """Return the median of some timings, in seconds."""
    found: list[float] = []
    while len(found) < MAX_TIMINGS and sum(found) < ENOUGH_S:
        start = perf_counter()
        action()
        found.append(perf_counter() - start)
    return median(found)


def _ends(seconds: float, growth: float, limit: float = TOO_LONG_S) -> bool:
    """Return whether a curve ends, because the next point takes about `growth` times as long."""
    return seconds > limit or seconds * growth > 5 * limit


def _growth(xs: list[int], index: int) -> float:
    return xs[index + 1] / xs[index] if index + 1 < len(xs) else 1.0


def map_items(peer: Peer, xs: list[int]) -> Points:
    with opened(peer):
        warm_maps(peer)
        for index, count in enumerate(xs):
            items = range(count)
            chunk = map_chunk(peer, count, 2)
            seconds = _typical(lambda items=items, chunk=chunk: peer.map(noop, items, chunk))  # type: ignore[misc]
            yield count, {"value": seconds / count * 1e6}
            if _ends(seconds, _growth(xs, index)):
                break


def stream_items(peer: Peer, xs: list[int]) -> Points:
    def drain(count: int) -> None:
        for _ in peer.imap_unordered(noop, range(count)):
            pass

    with opened(peer):
        warm_streams(peer)
        for index, count in enumerate(xs):
            seconds = _typical(lambda count=count: drain(count))  # type: ignore[misc]
            yield count, {"value": seconds / count * 1e6}
            if _ends(seconds, _growth(xs, index)):
                break


def workers(peer: Peer, xs: list[int]) -> Points:
    """Yield milliseconds to the first result, and microseconds per submitted task."""
    importlib.import_module(peer.module)
    for count in xs:
        if count == 1 and peer.name == "joblib":
            continue  # joblib would run everything in this process
        start = perf_counter()
        peer.open(count)
        peer.apply(noop, 1)
        started = perf_counter() - start
        warm_calls(peer)
        start = perf_counter()
        peer.submit_all(noop, range(TASKS))
        seconds = perf_counter() - start
        peer.close()
        yield count, {"value": started * 1e3, "task": seconds / TASKS * 1e6}
        if _ends(started + seconds, 2):
            break


def payload(peer: Peer, xs: list[int]) -> Points:
    """Yield milliseconds from a call with an array to its small result, by the bytes of the array."""
    with opened(peer):
        warm_calls(peer)
        for index, size in enumerate(xs):
            array = make(size)
            peer.submit_all(look_at, [array] * 2)
            seconds = _typical(lambda array=array: peer.apply(look_at, array))  # type: ignore[misc]
            yield size, {"value": seconds * 1e3}
            if _ends(seconds, _growth(xs, index)):
                break


def efficiency(peer: Peer, xs: list[int]) -> Points:
    """Yield the percentage of two workers' time that tasks had, by the length of the tasks in microseconds."""
    with opened(peer):
        warm_maps(peer)
        for length in xs:
            count = min(20_000, max(20, 400_000 // length))
            lengths = [length / 1e6] * count
            chunk = map_chunk(peer, count, 2) if length < 1000 else None
            seconds = _typical(lambda lengths=lengths, chunk=chunk: peer.map(spin, lengths, chunk))  # type: ignore[misc]
            yield length, {"value": 100 * sum(lengths) / (seconds * 2)}


def _steps(first: int, last: int, factor: int) -> Iterable[int]:
    while first <= last:
        yield first
        first *= factor


FRESH = "a fresh interpreter would start for each worker"
MIB = 2**20

CURVES: dict[str, Curve] = {
    curve.name: curve
    for curve in (
        Curve(
            "map-items",
            "map: cost of an item by the number of items",
            "items",
            "µs per item",
            map_items,
            tuple(_steps(100, 10_000_000, 10)),
            without=SLOW_TO_START,
        ),
        Curve(
            "imap_unordered-items",
            "imap_unordered: cost of an item by the number of items",
            "items",
            "µs per item",
            stream_items,
            tuple(_steps(100, 10_000_000, 10)),
            without=SLOW_TO_START,
        ),
        Curve(
            "workers",
            "a pool by its number of workers",
            "workers",
            "ms to the first result",
            workers,
            tuple(_steps(1, 256, 2)),
            caps={"loky": 32, "joblib": 32},
            without={"ray": FRESH},
        ),
        Curve(
            "payload",
            "an array there, a small result back, by the size of the array",
            "bytes",
            "ms",
            payload,
            (*_steps(1, 256 * MIB, 8), 256 * MIB, 1024 * MIB),
            caps=dict.fromkeys(
                (
                    "multiprocessing",
                    "ProcessPoolExecutor",
                    "loky",
                    "joblib",
                    "mpire",
                    "pebble",
                    "billiard",
                    "ray",
                ),
                256 * MIB,
            ),
        ),
        Curve(
            "efficiency",
            "time spent in tasks by the length of tasks",
            "µs of a task",
            "% of two workers",
            efficiency,
            tuple(_steps(1, 100_000, 10)),
        ),
    )
}
