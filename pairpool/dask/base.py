"""The parts of `ClusterPool` that its calls share: connection, state, and the objects that carry a call.

ClusterPool.map, imap, ... ─► ClusterCall ─► InFlight ─► Dask
ClusterPool.apply, submit  ─► CallBatcher ─► InFlight ─► Dask
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self, Unpack

import cloudpickle

from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.call_batcher import BatchedCall, CallBatcher
from pairpool.dask.cluster_call import Batches, CallItems, ClusterCall
from pairpool.dask.connection import Client, connect
from pairpool.dask.messages import CallContent, CallHead, ItemMode, NodeSetup, versions
from pairpool.dask.node_pools import close_pool
from pairpool.dask.nodes import Nodes
from pairpool.dask.options import NodeOptions, checked, for_nodes
from pairpool.dask.packing import dumps, repeats
from pairpool.dask.results import ClusterResult
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.linux.interrupts import allow_signals, defer_signals, is_own
from pairpool.master.jobs.intake import gather, length_of
from pairpool.options import Limits, RetryOn, check_buffersize, check_chunksize, check_seconds
from pairpool.transport.items import PlainWriter

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.status import PoolStatus
    from pairpool.view.live import LiveView

__all__ = ["ClusterPoolBase"]

BATCH_TARGET_S = 0.1
"""Seconds that a batch should take: about a hundred times what Dask needs per batch."""

_names = itertools.count(1)
_open_pools: weakref.WeakSet[ClusterPoolBase] = weakref.WeakSet()


def _end_all() -> None:
    """End all pools at interpreter exit, before Dask's event loop stops.

    After that, a stream that was not read to its end would wait for the event loop for ever.
    """
    for pool in list(_open_pools):
        if pool._pid == os.getpid():
            pool.terminate()


atexit.register(_end_all)


class ClusterPoolBase:
    """A connection to a cluster, and the calls on it. `ClusterPool` describes the arguments."""

    def __init__(
        self,
        address: str | Client,
        *,
        timeout: float = 10.0,
        name: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        if not isinstance(address, (str, Client)):
            raise TypeError(f"address must be that of a scheduler, as a text, or a distributed.Client, not {address!r}")
        check_seconds(timeout, "timeout")
        self._retry_on: RetryOn = options.get("retry_on", ())
        self._setup = NodeSetup(uuid.uuid4().hex, versions(), cloudpickle.dumps(checked(options)))
        self._owns_client = not isinstance(address, Client)
        self._client = connect(address, timeout) if isinstance(address, str) else address
        self._where = str(address) if isinstance(address, str) else str(self._client.scheduler.address)
        self._stats = ClusterStats(name or f"cluster-{next(_names)}")
        self._lock = threading.Lock()
        self._nodes = Nodes(self._client, self._setup.versions, self._stats)
        self._threads: list[threading.Thread] = []
        self._calls: weakref.WeakSet[ClusterCall] = weakref.WeakSet()
        self._call_batcher = CallBatcher(
            self._client, self._setup, self._stats, BatchSizer(BATCH_TARGET_S), self._nodes
        )
        self._state = "RUN"
        self._pid = os.getpid()
        try:
            self._nodes.check(timeout, self._where)
        except BaseException:
            self._disconnect()
            raise
        _open_pools.add(self)

    @property
    def nodes(self) -> dict[str, int]:
        """The nodes that the pool uses now: the number of workers by address."""
        return self._nodes.present()

    # --- the pool itself ------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """Return a snapshot that has one worker per node. A node reports its counts along with results."""
        if self._state != "TERMINATE":
            self._nodes.present()
        return self._stats.status()

    def live(self, console: Console | None = None) -> LiveView:
        """Show the pool on the terminal until the view is stopped, with one line per node; see `Pool.live`."""
        from pairpool.view.live import LiveView

        view = LiveView(self._stats.status, console)
        view.start()
        return view

    def close(self) -> None:
        """Take no more calls. Calls that were made before run to their ends."""
        if self._state == "RUN":
            self._set_state("CLOSE")

    def join(self) -> None:
        """Wait for the end of all calls that run in the background. Call `close` or `terminate` first."""
        if self._state == "RUN":
            raise ValueError("Pool is still running")
        self._end(cancel=False)

    def terminate(self) -> None:
        """End the pool at once. Calls that have not ended raise `CancelledError`."""
        self.close()
        for call in list(self._calls):
            call.cancel()
        self._end(cancel=True)

    def _end(self, *, cancel: bool) -> None:
        self._call_batcher.close(cancel=cancel)
        for thread in self._threads:
            thread.join()
        if self._state == "TERMINATE":
            return
        self._set_state("TERMINATE")
        try:
            if self._client.status == "running":
                self._client.run(close_pool, self._setup.key, on_error="ignore")
        except (OSError, TimeoutError) as error:
            logging.getLogger("pairpool").info("the cluster could not be told that its pools end: %s", error)
        self._disconnect()

    def _set_state(self, state: str) -> None:
        self._state = state
        self._stats.set_state(state)

    def _disconnect(self) -> None:
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.terminate()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._where} state={self._state}>"

    # --- calls ----------------------------------------------------------------------------------

    def _submit(
        self, result: ClusterResult[Any], func: Callable[..., Any], arguments: tuple[Any, Any], limits: Limits
    ) -> None:
        """Send a single call as it is now. If it cannot be pickled, the exception is its outcome."""
        self._check_call(func)
        # `is_own` below tells an exception of an argument from an exception of a signal handler
        with defer_signals():
            try:
                with allow_signals():
                    content = CallContent(*for_nodes(func, limits, self._retry_on), *dumps(arguments, PlainWriter()))
            except BaseException as error:
                if not is_own(error):
                    raise
                result.settle(False, error)
                return
        self._call_batcher.submit(BatchedCall(_name_of(func), content, result))

    def _check_call(self, func: Callable[..., Any]) -> None:
        if self._state != "RUN":
            raise ValueError("Pool not running")
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: ItemMode,
        chunksize: int | None,
        limits: Limits,
    ) -> ClusterCall:
        """Make a call whose input is complete."""
        self._check_call(func)
        sizer = BatchSizer(BATCH_TARGET_S, check_chunksize(chunksize))
        # the caller of map_async may change a list before its items are pickled, so it is copied
        items, error, _ = gather(iterable, is_left=True)
        source = CallItems(iter(items), len(items), error)
        shared = repeats() if sizer.fixed != 1 else None
        batches = Batches(self._head(func, mode, limits), source, sizer, shared)
        return self._begin(batches, ClusterCallStats(_name_of(func), "map", source.total))

    def _stream(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        buffersize: int | None,
        limits: Limits,
    ) -> ClusterCall:
        """Make a call whose input is read as the results are read."""
        buffersize = check_buffersize(buffersize)
        self._check_call(func)
        sizer = BatchSizer(BATCH_TARGET_S, check_chunksize(chunksize))
        head = self._head(func, ItemMode.MAP, limits)
        source = CallItems(iter(iterable), length_of(iterable))
        return self._begin(
            Batches(head, source, sizer), ClusterCallStats(_name_of(func), "imap", source.total), buffersize
        )

    def _head(self, func: Callable[..., Any], mode: ItemMode, limits: Limits) -> CallHead:
        function, node_limits = for_nodes(func, limits, self._retry_on)
        return CallHead(self._setup, uuid.uuid4().hex, function, mode, node_limits)

    def _begin(self, batches: Batches, stats: ClusterCallStats, buffersize: int | None = None) -> ClusterCall:
        call = ClusterCall(self._client, batches, stats, self._stats, self._nodes, buffersize)
        with self._lock:
            self._calls.add(call)
        return call

    def _in_background(self, result: ClusterResult[Any], run: Callable[[], Any]) -> ClusterResult[Any]:
        """Compute a result in a thread of its own."""
        thread = threading.Thread(target=result.run, args=(run,), name="pairpool-cluster-map", daemon=True)
        with self._lock:
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        thread.start()
        return result


def _name_of(func: Callable[..., Any]) -> str:
    return getattr(func, "__qualname__", None) or type(func).__qualname__
