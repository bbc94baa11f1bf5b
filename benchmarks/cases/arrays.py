"""Measure numpy arrays: as arguments, as results, and shared with all workers."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks import sharing
from benchmarks.cases.calls import map_chunk, warm_maps
from benchmarks.model import Aim, Case, Values
from benchmarks.peers import Peer, opened
from benchmarks.tasks import look_at, noop

if TYPE_CHECKING:
    from benchmarks.tasks import Bytes

MIB = 2**20
LARGE_MIB = 64
"""Size of the arrays that travel one by one."""

WARM_CALLS = 2
"""Calls before the clock starts, one per worker."""


def make(size: int) -> Bytes:
    """Return an array with this number of bytes. Its pages are in memory."""
    import numpy as np  # the cases without arrays must not load numpy

    return np.full(size, 7, dtype=np.uint8)


def array_in(peer: Peer, size: int) -> Values:
    """Measure milliseconds from a call with 64 MiB to its small result, for `size` calls."""
    array = make(LARGE_MIB * MIB)
    with opened(peer):
        peer.submit_all(look_at, [array] * WARM_CALLS)
        start = perf_counter()
        for number in range(size):
            array[0] = number
            assert peer.apply(look_at, array) == number
        return {"value": (perf_counter() - start) / size * 1e3}


def array_both(peer: Peer, size: int) -> Values:
    """Measure milliseconds from a call with 64 MiB to its result, which is the same array."""
    array = make(LARGE_MIB * MIB)
    with opened(peer):
        peer.submit_all(noop, [array] * WARM_CALLS)
        start = perf_counter()
        for number in range(size):
            array[0] = number
            assert peer.apply(noop, array)[0] == number
        return {"value": (perf_counter() - start) / size * 1e3}


def arrays_small(peer: Peer, size: int) -> Values:
    """Measure microseconds per array of 8 KiB, there and back."""
    arrays = [make(8 * 1024) for _ in range(size)]
    with opened(peer):
        warm_maps(peer)
        peer.map(noop, arrays[:100], map_chunk(peer, 100, 2))
        start = perf_counter()
        found = peer.map(noop, arrays, map_chunk(peer, size, 2))
        seconds = perf_counter() - start
        assert len(found) == size
        return {"value": seconds / size * 1e6}


def share(peer: Peer, size: int) -> Values:
    """Measure milliseconds until 8 workers have read a byte of each MiB of an array of `size` MiB."""
    found = sharing.share(peer.name, make(size * MIB), weigh=False)
    values = {"value": found.total * 1e3}
    if found.alone is not None:
        values["alone"] = found.alone * 1e3
    return values


def share_memory(peer: Peer, size: int) -> Values:
    """Measure by how many MiB the memory of all processes together grows."""
    found = sharing.share(peer.name, make(size * MIB), weigh=True)
    return {"value": (found.after - found.before) / MIB}


CASES = (
    Case(
        "array-in",
        "64 MiB array in, a small result",
        "ms",
        array_in,
        size=5,
        group="arrays",
        aims=(Aim(0.08, "multiprocessing"), Aim(3, "limit"), Aim(1, "ray")),
        limit="memcpy-warm",
    ),
    Case(
        "array-both",
        "64 MiB array there and back",
        "ms",
        array_both,
        size=3,
        group="arrays",
        aims=(Aim(0.08, "multiprocessing"), Aim(6, "limit")),
        limit="memcpy-warm",
        remarks=("The result is read-only with Ray, and writable with all others.",),
    ),
    Case(
        "arrays-small",
        "10,000 arrays of 8 KiB there and back",
        "µs per array",
        arrays_small,
        size=10_000,
        group="arrays",
        aims=(Aim(0.4, "multiprocessing"),),
        remarks=("The chunk sizes are those of `map`.",),
    ),
    Case(
        "share",
        "256 MiB shared with 8 workers",
        "ms",
        share,
        size=256,
        group="arrays",
        aims=(Aim(1.3, "limit"),),
        limit="memfd-write",
        fields={"alone": "the sharing alone, ms"},
        without=sharing.WITHOUT,
        remarks=sharing.REMARKS,
    ),
    Case(
        "share-memory",
        "memory for 256 MiB shared with 8 workers",
        "MiB more",
        share_memory,
        size=256,
        group="memory",
        aims=(Aim(1.05 * 256),),
        without=sharing.WITHOUT,
        remarks=(
            "The figure is the proportional set size of the program and all its processes.",
            "The program's own array is not included.",
            "If the workers inherit the array, the memory of the workers counts, too.",
        ),
    ),
)
