"""Measure the cost of calls whose tasks do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from benchmarks.model import OURS, SLOW_TO_START, Aim, Case, Values
from benchmarks.peers import Peer, opened
from benchmarks.tasks import noop

WARM_CALLS = 200
"""Calls before the clock starts."""

CHUNKS = (10, 100, 1000, 5000)
"""The chunk sizes among which the best one is chosen."""


def warm_calls(peer: Peer) -> None:
    peer.submit_all(noop, range(WARM_CALLS))


def warm_maps(peer: Peer) -> None:
    """Warm up `map`. Each kind of call has its own warm-up, because mpire mixes up different kinds in one pool."""
    peer.map(noop, range(WARM_CALLS))


def warm_streams(peer: Peer, ordered: bool = False) -> None:
    for _ in _stream_of(peer, ordered)(noop, range(WARM_CALLS)):
        pass


def apply(peer: Peer, size: int) -> Values:
    """Measure microseconds from a call to its result."""
    with opened(peer):
        for item in range(min(WARM_CALLS, size)):
            peer.apply(noop, item)
        start = perf_counter()
        for item in range(size):
            peer.apply(noop, item)
        return {"value": (perf_counter() - start) / size * 1e6}


def submit(peer: Peer, size: int) -> Values:
    """Measure microseconds per call, with many calls pending at once."""
    with opened(peer):
        warm_calls(peer)
        start = perf_counter()
        peer.submit_all(noop, range(size))
        return {"value": (perf_counter() - start) / size * 1e6}


def map_chunk(peer: Peer, items: int, workers: int) -> int | None:
    """Return the chunk size for many short items: that of multiprocessing if the library sends items one by one."""
    return max(1, items // (4 * workers)) if peer.maps_one_by_one else None


def map_ints(peer: Peer, size: int) -> Values:
    """Measure microseconds per item."""
    items = list(range(size))
    with opened(peer):
        warm_maps(peer)
        start = perf_counter()
        found = peer.map(noop, items, map_chunk(peer, size, 2))
        seconds = perf_counter() - start
        assert found == items
        return {"value": seconds / size * 1e6}


Stream = Callable[..., Iterator[Any]]


def _seconds_for(stream: Stream, size: int, chunksize: int | None) -> float:
    start = perf_counter()
    count = sum(1 for _ in stream(noop, range(size), chunksize))
    assert count == size
    return perf_counter() - start


def _stream_of(peer: Peer, ordered: bool) -> Stream:
    return peer.imap if ordered else peer.imap_unordered


def streaming(ordered: bool) -> Callable[[Peer, int], Values]:
    """Return a measurement of `imap` or `imap_unordered` with defaults, in microseconds per item."""

    def run(peer: Peer, size: int) -> Values:
        with opened(peer):
            warm_streams(peer, ordered)
            return {"value": _seconds_for(_stream_of(peer, ordered), size, None) / size * 1e6}

    return run


def streaming_by_chunks(ordered: bool) -> Callable[[Peer, int], Values]:
    """Return the same with the best of `CHUNKS` for each library, and the default for pairpool."""

    def run(peer: Peer, size: int) -> Values:
        with opened(peer):
            warm_streams(peer, ordered)
            stream = _stream_of(peer, ordered)
            if peer.name == OURS:  # as many tries as the other libraries have
                return {"value": min(_seconds_for(stream, size, None) for _ in CHUNKS) / size * 1e6}
            seconds, chunksize = min((_seconds_for(stream, size, chunksize), chunksize) for chunksize in CHUNKS)
            return {"value": seconds / size * 1e6, "chunksize": chunksize}

    return run


BEST_CHUNKS = (
    "Each run tries the chunk sizes 10, 100, 1,000 and 5,000. The figure is the best of the four.",
    "pairpool runs four times with its default. Again, the figure is the best of the four.",
)

NO_CHUNKS = {
    "ProcessPoolExecutor": "there is no unordered map with chunks",
    "loky": "there is no unordered map with chunks",
    "pebble": "there is no unordered map with chunks",
    **SLOW_TO_START,
}

CASES = (
    Case(
        "apply",
        "one call and its result, in sequence",
        "µs",
        apply,
        size=3000,
        group="calls",
        aims=(Aim(0.35, "multiprocessing"), Aim(1.5, "limit")),
        limit="ping-pong",
        caps={"joblib": 50, "ray": 500},
    ),
    Case(
        "submit",
        "many calls submitted, then all results",
        "µs per call",
        submit,
        size=5000,
        group="calls",
        aims=(Aim(0.25, "multiprocessing"),),
        limit="packets",
        caps={"ray": 1000},
        remarks=("joblib submits a list of calls, which it divides into batches.",),
    ),
    Case(
        "map",
        "map over 300,000 ints",
        "µs per item",
        map_ints,
        size=300_000,
        group="calls",
        aims=(Aim(0.75, "multiprocessing"), Aim(1.5, "limit")),
        limit="pickle-lists",
        caps={"joblib": 100_000},
        remarks=(
            "ProcessPoolExecutor, loky and pebble use multiprocessing's chunk size. By default they send item by item.",
        ),
    ),
    Case(
        "imap_unordered",
        "imap_unordered, no-ops, defaults",
        "µs per item",
        streaming(ordered=False),
        size=20_000,
        group="calls",
        aims=(Aim(0.03, "multiprocessing"),),
        limit="pickle-lists",
        caps={"ProcessPoolExecutor": 5000, "loky": 5000, "ray": 1000},
        remarks=("ProcessPoolExecutor, loky and pebble use `as_completed` over submitted calls.",),
    ),
    Case(
        "imap",
        "imap, no-ops, defaults",
        "µs per item",
        streaming(ordered=True),
        size=20_000,
        group="calls",
        aims=(Aim(0.03, "multiprocessing"),),
        limit="pickle-lists",
        caps={"ProcessPoolExecutor": 5000, "loky": 5000},
        without=SLOW_TO_START,
    ),
    Case(
        "imap_unordered-chunked",
        "imap_unordered, the others at their best chunk size",
        "µs per item",
        streaming_by_chunks(ordered=False),
        size=20_000,
        group="calls",
        aims=(Aim(0.7, "multiprocessing"),),
        limit="pickle-lists",
        without=NO_CHUNKS,
        remarks=BEST_CHUNKS,
    ),
    Case(
        "imap-chunked",
        "imap, the others at their best chunk size",
        "µs per item",
        streaming_by_chunks(ordered=True),
        size=20_000,
        group="calls",
        aims=(Aim(0.7, "multiprocessing"),),
        limit="pickle-lists",
        without=SLOW_TO_START,
        remarks=BEST_CHUNKS,
    ),
)
