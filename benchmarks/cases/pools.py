"""Measure the cost of pools: to open, to close, and with many workers."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Callable
from time import perf_counter

from benchmarks import memory
from benchmarks.cases.calls import warm_maps
from benchmarks.model import Aim, Case, Values
from benchmarks.peers import PairpoolPeer, Peer, opened
from benchmarks.tasks import noop

MANY_WORKERS = 1000


def start(workers: int) -> Callable[[Peer, int], Values]:
    """Return a measurement of milliseconds to open a pool, get one result and close the pool.

    The import of the library does not count.
    """

    def run(peer: Peer, _size: int) -> Values:
        importlib.import_module(peer.module)
        begin = perf_counter()
        with opened(peer, workers):
            peer.apply(noop, 1)
        return {"value": (perf_counter() - begin) * 1e3}

    return run


def _open_close(peer: Peer, times: int) -> None:
    for _ in range(times):
        with opened(peer):
            peer.apply(noop, 1)


def open_close(peer: Peer, size: int) -> Values:
    """Measure milliseconds per pool, and by how many descriptors and KiB the program grows in the last four fifths."""
    begin = perf_counter()
    _open_close(peer, size // 5)
    descriptors, resident = memory.descriptors(), memory.resident()
    _open_close(peer, size - size // 5)
    return {
        "value": (perf_counter() - begin) / size * 1e3,
        "descriptors": memory.descriptors() - descriptors,
        "memory": (memory.resident() - resident) / 1024,
    }


def allow_descriptors() -> None:
    """Raise the limit on descriptors, because a thousand workers need more than the usual 1,024."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _map_seconds(peer: Peer, size: int) -> float:
    warm_maps(peer)
    items = list(range(size))
    begin = perf_counter()
    peer.map(noop, items)
    return perf_counter() - begin


def thousand(peer: Peer, size: int) -> Values:
    """Measure a pool of 1,000 workers.

    The figures are seconds until all workers exist, seconds to the first result, microseconds per item of a map, and
    the ratio of the map's time to that of two workers.
    """
    allow_descriptors()
    with opened(peer):
        few = _map_seconds(peer, size)
    begin = perf_counter()
    peer.open(MANY_WORKERS)
    peer.apply(noop, 1)
    first = perf_counter() - begin
    if isinstance(peer, PairpoolPeer):
        peer.pool.resize(MANY_WORKERS)  # `open` waits for the first workers only; `resize` waits for all
    started = perf_counter() - begin
    many = _map_seconds(peer, size)
    peer.close()
    return {"value": started, "first": first, "item": many / size * 1e6, "ratio": many / few}


FRESH_INTERPRETERS = dict.fromkeys(("loky", "joblib", "ray"), "a fresh interpreter would start for each worker")

CASES = (
    Case(
        "start-2",
        "2 workers: open, one result, close",
        "ms",
        start(2),
        group="pools",
        aims=(Aim(1.2, "multiprocessing"),),
    ),
    Case(
        "start-64",
        "64 workers: open, one result, close",
        "ms",
        start(64),
        group="pools",
        aims=(Aim(0.8, "multiprocessing"),),
        without={"ray": FRESH_INTERPRETERS["ray"], "joblib": "its workers are those of loky"},
    ),
    Case(
        "open-close",
        "50 pools of 2 workers, one after the other",
        "ms per pool",
        open_close,
        size=50,
        group="pools",
        aims=(Aim(0, field="descriptors"), Aim(512, field="memory")),
        fields={"descriptors": "descriptors more", "memory": "KiB more"},
        caps={"loky": 10, "joblib": 10, "mpire": 15, "pebble": 15, "billiard": 5},
        without={"ray": "each pool takes seconds"},
        remarks=(
            "Descriptors and memory are those of the program.",
            "They show the growth from the first fifth of the pools to the last fifth.",
        ),
    ),
    Case(
        "thousand",
        "1,000 workers: open, all of them there",
        "s",
        thousand,
        size=100_000,
        group="pools",
        aims=(Aim(2), Aim(2, field="ratio")),
        fields={
            "first": "s to the first result",
            "item": "map of 100,000 no-ops, µs per item",
            "ratio": "× the same map with 2 workers",
        },
        without={
            **FRESH_INTERPRETERS,
            "ProcessPoolExecutor": "not run",
            "mpire": "not run",
            "pebble": "not run",
            "billiard": "not run",
        },
    ),
)
