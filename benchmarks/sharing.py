"""Share one array with all workers, by the means of each library."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks import memory
from benchmarks.peers import Unsupported
from benchmarks.tasks import look_together, meet, weigh_together

if TYPE_CHECKING:
    from benchmarks.tasks import Bytes

WORKERS = 8

REMARKS = (
    "multiprocessing, ProcessPoolExecutor, billiard and pebble have no sharing.",
    "Their 8 workers inherit the array by fork, and the figure includes the fork. An open pool cannot do this.",
    "mpire does the same with `shared_objects`.",
    "joblib maps the array from a file in shared memory. Ray puts it into its store.",
)

WITHOUT = {"loky": "there is no sharing, and workers inherit nothing"}


@dataclass
class _Watch:
    """A clock that starts before the array is shared. The workers exist by then, if the library allows it.

    Attributes:
        alone: seconds until the array was shared; None if sharing is not a step of its own.
        total: seconds until all workers had read the array.
        before: bytes of memory of all processes at the start.
        after: bytes of memory of all processes at the end.
    """

    alone: float | None = None
    total: float = 0.0
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        self.before = memory.proportional(memory.family(os.getpid()))
        self._start = perf_counter()

    def shared(self) -> None:
        self.alone = perf_counter() - self._start

    def done(self, weights: Iterable[int]) -> _Watch:
        """Stop the clock. `weights` are the results of the workers."""
        self.after = max(weights)
        self.total = perf_counter() - self._start
        return self


Look = Callable[["Bytes"], int]
"""The task of each of the 8 workers. It ends when all have done it, and returns bytes of memory, or 0."""

_inherited: Any = None


def _inherit(array: Bytes) -> None:
    global _inherited
    _inherited = array


def _look_at_inherited(look: Look) -> int:
    return look(_inherited)


def _look(array: Bytes, look: Look) -> int:
    return look(array)


def _meet(roll: str) -> None:
    """Load numpy, and wait for all workers."""
    importlib.import_module("numpy")
    meet(roll, WORKERS)


def _pairpool(array: Bytes, roll: str, look: Look) -> _Watch:
    from pairpool import Pool

    with Pool(WORKERS) as pool:
        share = getattr(pool, "share", None)
        if share is None:
            raise Unsupported("this pairpool has no Pool.share")
        pool.map(_meet, [roll] * WORKERS, chunksize=1)
        watch = _Watch()
        with share(array) as shared:
            watch.shared()
            return watch.done(pool.map(partial(_look, shared), [look] * WORKERS, chunksize=1))


def _forked(make: Callable[[Bytes], Any]) -> Callable[[Bytes, str, Look], _Watch]:
    """Return a measurement for pools whose workers inherit the array. `make` or the first call forks them."""

    def run(array: Bytes, _roll: str, look: Look) -> _Watch:
        watch = _Watch()
        with make(array) as pool:
            return watch.done(pool.map(_look_at_inherited, [look] * WORKERS, chunksize=1))

    return run


def _multiprocessing(array: Bytes) -> Any:
    return multiprocessing.get_context("fork").Pool(WORKERS, _inherit, (array,))


def _executor(array: Bytes) -> Any:
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_inherit, initargs=(array,))


def _billiard(array: Bytes) -> Any:
    import billiard

    return billiard.Pool(WORKERS, _inherit, (array,))


def _pebble(array: Bytes, _roll: str, look: Look) -> _Watch:
    from pebble import ProcessPool

    watch = _Watch()
    context = multiprocessing.get_context("fork")
    with ProcessPool(WORKERS, initializer=_inherit, initargs=(array,), context=context) as pool:
        return watch.done(pool.map(_look_at_inherited, [look] * WORKERS).result())


def _mpire(array: Bytes, _roll: str, look: Look) -> _Watch:
    from mpire import WorkerPool

    watch = _Watch()
    with WorkerPool(WORKERS, shared_objects=array) as pool:
        return watch.done(pool.map(_look, [look] * WORKERS, chunk_size=1))


def _joblib(array: Bytes, roll: str, look: Look) -> _Watch:
    from joblib import Parallel, delayed

    with Parallel(n_jobs=WORKERS) as parallel:
        parallel(delayed(_meet)(roll) for _ in range(WORKERS))
        watch = _Watch()
        return watch.done(parallel(delayed(_look)(array, look) for _ in range(WORKERS)))


def _ray(array: Bytes, roll: str, look: Look) -> _Watch:
    import ray

    from benchmarks.peers import RayPeer

    peer = RayPeer()
    peer.open(WORKERS)
    peer.submit_all(_meet, [roll] * WORKERS)
    watch = _Watch()
    reference = ray.put(array)
    watch.shared()
    remote = ray.remote(_look)
    found = watch.done(ray.get([remote.remote(reference, look) for _ in range(WORKERS)]))
    peer.close()
    return found


_WAYS: dict[str, Callable[[Bytes, str, Look], _Watch]] = {
    "pairpool": _pairpool,
    "multiprocessing": _forked(_multiprocessing),
    "ProcessPoolExecutor": _forked(_executor),
    "billiard": _forked(_billiard),
    "pebble": _pebble,
    "mpire": _mpire,
    "joblib": _joblib,
    "ray": _ray,
}


def share(library: str, array: Bytes, weigh: bool) -> _Watch:
    """Share an array with 8 workers. With `weigh`, the memory is measured, and the times mean nothing.

    Raises `Unsupported`.
    """
    with tempfile.TemporaryDirectory() as folder:
        first, second = (os.path.join(folder, name) for name in ("first", "second"))
        look = partial(weigh_together if weigh else look_together, roll=second, workers=WORKERS)
        return _WAYS[library](array, first, partial(look, master=os.getpid()) if weigh else look)
