"""The pools on a node, in its Dask worker: one pool per client, opened by the client's first batch.

    run_batch ─► NodePools.use ─► NodePool ─► Pool, with one worker per thread of the node
                     ▲
                     └─ janitor: a thread that ends unwanted batches and idle pools

A pool ends in one of two ways:

1. The client ends it (`close_pool`).
2. The client vanishes. Dask then drops the client's tasks. Within two seconds, the janitor cancels each batch whose
   task was dropped. After `IDLE_LIMIT_S` without a batch, the janitor ends the pool.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from pairpool.dask.messages import NodeSetup
from pairpool.pool import Pool

__all__ = ["NodePool", "close_pool", "node_address", "node_threads", "pools"]

JANITOR_INTERVAL_S = 1.0
"""Seconds between two looks of the janitor at the batches and the pools. Dask reports a dropped task to nobody."""

IDLE_LIMIT_S = 60.0
"""Seconds without a batch after which the janitor ends a pool."""

CLOSED_KEYS_KEPT = 64
"""Clients whose end a node remembers, because a batch of such a client may still be on its way into a thread."""


def node_address() -> str:
    """Return the address of the Dask worker whose task this thread runs."""
    from distributed import get_worker

    return str(get_worker().address)


def node_threads() -> int:
    """Return the number of threads of the Dask worker whose task this thread runs."""
    from distributed import get_worker

    return int(get_worker().state.nthreads)


class NodePool:
    """The pool of one client on this node.

    Attributes:
        pool: the pool itself.
        threads: the number of its workers.
    """

    def __init__(self, setup: NodeSetup) -> None:
        from distributed import get_worker

        options = pickle.loads(setup.options)
        self.threads = node_threads()
        self.pool = Pool(self.threads, **options)
        self._users = 0
        self._idle_since_s = time.monotonic()
        self._lock = threading.Lock()
        self._dask_worker = get_worker()
        self._running: dict[str, Callable[..., object]] = {}  # by the key of Dask's task: cancels its batch

    @contextmanager
    def running(self, cancel: Callable[..., object]) -> Iterator[None]:
        """Register a batch for as long as it runs, so that `cancel_unwanted` can cancel it."""
        key = self._dask_worker.get_current_task()
        self._running[key] = cancel
        try:
            yield
        finally:
            del self._running[key]

    def cancel_unwanted(self) -> None:
        """Cancel the batches whose tasks Dask has dropped: no client waits for them."""
        for key, cancel in list(self._running.items()):
            task = self._dask_worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                cancel(kill=True)

    def begin_use(self) -> None:
        """Note that one more batch uses the pool. The caller holds the lock of `NodePools`."""
        self._users += 1

    def end_use(self) -> None:
        """Note that a batch has left the pool. The caller holds the lock of `NodePools`."""
        self._users -= 1
        self._idle_since_s = time.monotonic()

    def is_idle(self) -> bool:
        """Return whether the pool has run no batch for `IDLE_LIMIT_S`."""
        return not self._users and time.monotonic() - self._idle_since_s > IDLE_LIMIT_S


class NodePools:
    """All pools in this process, which may be more than one node: `LocalCluster(processes=False)` has several."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, str], NodePool] = {}  # by the client's key and the node's address
        self._closed_keys: deque[str] = deque(maxlen=CLOSED_KEYS_KEPT)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._janitor: threading.Thread | None = None

    @contextmanager
    def use(self, setup: NodeSetup, node: str) -> Iterator[NodePool]:
        """Give the pool of a client for one batch. Open the pool if there is none.

        Raises `CancelledError` if the client has ended its pools.
        """
        pool = self._acquire(setup, node)
        try:
            yield pool
        finally:
            with self._lock:
                pool.end_use()

    def _acquire(self, setup: NodeSetup, node: str) -> NodePool:
        with self._opening:
            with self._lock:
                known = self._pools.get((setup.key, node))
                if known is not None:
                    known.begin_use()
                    return known
            made = None if setup.key in self._closed_keys else NodePool(setup)
            with self._lock:
                # the client may have ended while the pool opened
                if made is not None and setup.key not in self._closed_keys:
                    made.begin_use()
                    self._pools[setup.key, node] = made
                    self._start_janitor()
                    return made
            if made is not None:
                made.pool.terminate()
            raise CancelledError("the client has ended its pools")

    def close(self, key: str, node: str) -> None:
        """End the pool of a client on a node, and open no other pool for this client."""
        with self._lock:
            self._closed_keys.append(key)
            pool = self._pools.pop((key, node), None)
        if pool is not None:
            pool.pool.terminate()

    def _start_janitor(self) -> None:
        if self._janitor is None:
            self._janitor = threading.Thread(target=self._clean_up, name="pairpool-janitor", daemon=True)
            self._janitor.start()

    def _clean_up(self) -> None:
        """Cancel unwanted batches and end idle pools until there is no pool. Runs in the janitor."""
        while True:
            time.sleep(JANITOR_INTERVAL_S)
            with self._lock:
                idle = [self._pools.pop(place) for place, pool in list(self._pools.items()) if pool.is_idle()]
                in_use = list(self._pools.values())
                if not in_use:
                    self._janitor = None
            for pool in in_use:
                pool.cancel_unwanted()
            for pool in idle:
                pool.pool.terminate()
            if not in_use:
                return


pools = NodePools()


def close_pool(key: str, dask_worker: Any = None) -> None:
    """End the pool of a client on this node. Dask passes the Dask worker."""
    pools.close(key, str(dask_worker.address))
