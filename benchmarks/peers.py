"""Adapt each library to one interface: `Peer`.

Each adapter uses its library as the documentation of the library does, with the defaults. It imports the library when
it opens a pool. So a process that measures one library has not loaded the others.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Protocol

from benchmarks.model import OURS, STANDARD

Task = Callable[[Any], Any]


class Unsupported(Exception):
    """The library lacks a feature. The text names it."""


class Peer(Protocol):
    """A pool of some library."""

    name: str
    maps_one_by_one: bool
    """Whether `map` sends each item alone unless it gets a chunk size."""

    module: str
    """The module that programs import. `open` imports it, too."""

    def open(self, workers: int) -> None: ...

    def close(self) -> None:
        """End the pool in the usual way, and wait for the workers."""

    def apply(self, task: Task, item: Any) -> Any: ...

    def submit_all(self, task: Task, items: Iterable[Any]) -> list[Any]:
        """Submit a call for each item, and then wait for all results."""

    def submit(self, task: Task, item: Any) -> object:
        """Submit a call, and return a handle that keeps it alive."""

    def map(self, task: Task, items: Sequence[Any], chunksize: int | None = None) -> list[Any]: ...

    def imap(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]: ...

    def imap_unordered(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]: ...


def _chunk(chunksize: int | None, name: str = "chunksize") -> dict[str, int]:
    return {} if chunksize is None else {name: chunksize}


class PoolPeer:
    """`multiprocessing.Pool`, and libraries that have its methods."""

    name = STANDARD
    module = "multiprocessing.pool"
    maps_one_by_one = False
    pool: Any

    def open(self, workers: int) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(workers)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def _maps(self) -> Any:
        """Return the pool that does the maps."""
        return self.pool

    def apply(self, task: Task, item: Any) -> Any:
        return self.pool.apply(task, (item,))

    def submit(self, task: Task, item: Any) -> object:
        return self.pool.apply_async(task, (item,))

    def submit_all(self, task: Task, items: Iterable[Any]) -> list[Any]:
        pending = [self.pool.apply_async(task, (item,)) for item in items]
        return [one.get() for one in pending]

    def map(self, task: Task, items: Sequence[Any], chunksize: int | None = None) -> list[Any]:
        found: list[Any] = self._maps().map(task, items, **_chunk(chunksize))
        return found

    def imap(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self._maps().imap(task, items, **_chunk(chunksize)))

    def imap_unordered(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self._maps().imap_unordered(task, items, **_chunk(chunksize)))


class PairpoolPeer(PoolPeer):
    name = OURS
    module = "pairpool.pool"

    def open(self, workers: int) -> None:
        from pairpool import Pool

        self.pool = Pool(workers)


class BilliardPeer(PoolPeer):
    name = "billiard"
    module = "billiard.pool"

    def open(self, workers: int) -> None:
        import billiard

        self.pool = billiard.Pool(workers)


class MpirePeer(PoolPeer):
    """mpire with `keep_alive`, because otherwise its workers end after each `map`."""

    name = "mpire"
    module = "mpire"

    def open(self, workers: int) -> None:
        from mpire import WorkerPool

        self.pool = WorkerPool(n_jobs=workers, keep_alive=True)

    def close(self) -> None:
        self.pool.stop_and_join()

    def map(self, task: Task, items: Sequence[Any], chunksize: int | None = None) -> list[Any]:
        how = _chunk(chunksize, "chunk_size")
        found: list[Any] = self.pool.map(task, items, concatenate_numpy_output=False, **how)
        return found

    def imap(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self.pool.imap(task, items, **_chunk(chunksize, "chunk_size")))

    def imap_unordered(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self.pool.imap_unordered(task, items, **_chunk(chunksize, "chunk_size")))


class ExecutorPeer:
    """`concurrent.futures.ProcessPoolExecutor` with fork, and libraries that have its methods.

    It has no `imap_unordered`. `as_completed` over submitted calls takes its place.
    """

    name = "ProcessPoolExecutor"
    module = "concurrent.futures.process"
    maps_one_by_one = True
    executor: Any

    def open(self, workers: int) -> None:
        self.executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))

    def close(self) -> None:
        self.executor.shutdown(wait=True)

    def submit(self, task: Task, item: Any) -> Any:
        return self.executor.submit(task, item)

    def apply(self, task: Task, item: Any) -> Any:
        return self.submit(task, item).result()

    def submit_all(self, task: Task, items: Iterable[Any]) -> list[Any]:
        pending = [self.submit(task, item) for item in items]
        return [one.result() for one in pending]

    def map(self, task: Task, items: Sequence[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.executor.map(task, items, **_chunk(chunksize)))

    def imap(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self.executor.map(task, items, **_chunk(chunksize)))

    def imap_unordered(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        if chunksize is not None:
            raise Unsupported("no unordered map with chunks")
        return (done.result() for done in as_completed([self.submit(task, item) for item in items]))


class LokyPeer(ExecutorPeer):
    name = "loky"
    module = "loky"

    def open(self, workers: int) -> None:
        from loky import get_reusable_executor

        self.executor = get_reusable_executor(max_workers=workers)


class PebblePeer(ExecutorPeer):
    name = "pebble"
    module = "pebble"

    def open(self, workers: int) -> None:
        from pebble import ProcessPool

        self.executor = ProcessPool(max_workers=workers, context=multiprocessing.get_context("fork"))

    def close(self) -> None:
        self.executor.close()
        self.executor.join()

    def submit(self, task: Task, item: Any) -> Any:
        return self.executor.schedule(task, args=(item,))

    def imap(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        found: Iterator[Any] = self.executor.map(task, items, **_chunk(chunksize)).result()
        return found

    def map(self, task: Task, items: Sequence[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.imap(task, items, chunksize))


class JoblibPeer:
    """joblib with its default backend, loky. It has one kind of call: a list of calls."""

    name = "joblib"
    module = "joblib"
    maps_one_by_one = False  # joblib sizes its batches by time

    def open(self, workers: int) -> None:
        self._workers = workers

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)

    def _run(self, task: Task, items: Iterable[Any], chunksize: int | None, **how: Any) -> Any:
        from joblib import Parallel, delayed

        call = delayed(task)
        parallel = Parallel(n_jobs=self._workers, **_chunk(chunksize, "batch_size"), **how)
        return parallel(call(item) for item in items)

    def apply(self, task: Task, item: Any) -> Any:
        return self._run(task, [item], None)[0]

    def submit(self, task: Task, item: Any) -> object:
        raise Unsupported("no call without waiting")

    def submit_all(self, task: Task, items: Iterable[Any]) -> list[Any]:
        return self.map(task, list(items))

    def map(self, task: Task, items: Sequence[Any], chunksize: int | None = None) -> list[Any]:
        found: list[Any] = self._run(task, items, chunksize)
        return found

    def imap(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self._run(task, items, chunksize, return_as="generator"))

    def imap_unordered(self, task: Task, items: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        return iter(self._run(task, items, chunksize, return_as="generator_unordered"))


class RayPeer(PoolPeer):
    """Ray on this machine only: remote functions for calls, `ray.util.multiprocessing.Pool` for maps."""

    name = "ray"
    module = "ray"
    _ray: Any
    _remotes: dict[Task, Any]

    def open(self, workers: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # without it, Ray prints a warning
        import ray

        self._ray, self._remotes, self._workers, self.pool = ray, {}, workers, None
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def _maps(self) -> Any:
        if self.pool is None:  # not made earlier, because its actors take the cores from remote functions
            from ray.util.multiprocessing import Pool

            self.pool = Pool(self._workers)
        return self.pool

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool.join()
        self._ray.shutdown()

    def submit(self, task: Task, item: Any) -> Any:
        if task not in self._remotes:
            self._remotes[task] = self._ray.remote(task)
        return self._remotes[task].remote(item)

    def apply(self, task: Task, item: Any) -> Any:
        return self._ray.get(self.submit(task, item))

    def submit_all(self, task: Task, items: Iterable[Any]) -> list[Any]:
        found: list[Any] = self._ray.get([self.submit(task, item) for item in items])
        return found


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        PairpoolPeer,
        PoolPeer,
        ExecutorPeer,
        LokyPeer,
        JoblibPeer,
        MpirePeer,
        PebblePeer,
        BilliardPeer,
        RayPeer,
    )
}

DISTRIBUTIONS = ("loky", "joblib", "mpire", "pebble", "billiard", "ray")
"""The peers that are not in the standard library. Each is a distribution with the same name."""


@contextmanager
def opened(peer: Peer, workers: int = 2) -> Iterator[Peer]:
    """Open a pool, and close it in the usual way. After an error it stays open, because its process ends soon."""
    peer.open(workers)
    yield peer
    peer.close()
