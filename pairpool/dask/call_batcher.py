"""Calls made one by one, sent by the batch: Dask needs milliseconds for each task of its own.

    submit ─► news ─► waiting ─► batch ─► Dask ─► run_batch on a node ─► Report ─► each call's result

One thread does all of it, from the first call on. It waits for news: calls, Dask's futures as they end, and the end.
"""

from __future__ import annotations

import pickle
import queue
import threading
import uuid
from collections import deque
from concurrent.futures import CancelledError
from typing import Any, Protocol

from pairpool.dask import node
from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.in_flight import InFlight
from pairpool.dask.nodes import Nodes
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.transport.failures import error_for_each

__all__ = ["BatchedCall", "CallBatcher", "ClusterTarget"]

LOOK = 1.0
"""Seconds without news after which to see whether there is still a scheduler."""


class ClusterTarget(Protocol):
    """Where the outcome of a call goes."""

    def begin(self) -> bool:
        """It goes out; False if it was cancelled."""

    def done(self) -> bool:
        """Whether nobody waits for an outcome any more."""

    def settle(self, success: bool, value: Any) -> object:
        """This is the outcome; only the first counts."""


class BatchedCall:
    """A call, pickled."""

    __slots__ = ("content", "name", "target")

    def __init__(self, name: str, content: node.CallContent, target: ClusterTarget) -> None:
        self.name, self.content, self.target = name, content, target


class CallBatcher:
    """The single calls of a cluster's pool.

    Args:
        client: of the cluster.
        setup: of the pools on its nodes.
        pace: how many calls go into a batch.
        nodes: of the cluster.
    """

    def __init__(
        self,
        client: Any,
        setup: node.Setup,
        books: ClusterStats,
        pace: BatchSizer,
        nodes: Nodes,
    ) -> None:
        self._setup = setup
        self._books = books
        self._pace = pace
        self._nodes = nodes
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._traffic = InFlight(client, nodes, self._watch, self._is_wanted)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_cancelled = False
        self._waiting: deque[BatchedCall] = deque()
        self._batches: dict[str, list[BatchedCall]] = {}  # under way, by `Order.call`
        self._call: ClusterCallStats | None = None

    # --- from any thread ------------------------------------------------------------------------

    def submit(self, single: BatchedCall) -> None:
        """Have a call run. Raises `ValueError` after `close`."""
        with self._lock:
            if self._is_closed:
                raise ValueError("Pool not running")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pairpool-cluster", daemon=True)
                self._thread.start()
        self._news.put(single)

    def look(self) -> None:
        """A call was cancelled."""
        self._news.put(None)

    def close(self, *, cancel: bool) -> None:
        """Take no more calls, and wait until those there have ended; with `cancel`, at once."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        self._is_cancelled = self._is_cancelled or cancel
        self._news.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                for news in self._gather():
                    self._hear(news)
                if self._is_cancelled:
                    raise CancelledError("the pool was terminated")
                self._fill()
            except Exception as error:  # or the scheduler has gone away, or no node fits any more
                self._fail(error)
            if self._call is not None and not (self._waiting or self._batches):
                self._books.close(self._call)
                self._call = None
            if self._is_closed and not (self._waiting or self._batches) and self._news.empty():
                return

    def _gather(self) -> list[Any]:
        """The news there are; waits until there are some, and sees to it that there still can be."""
        found: list[Any] = []
        try:
            found.append(self._news.get(timeout=LOOK if self._batches else None))
            while True:
                found.append(self._news.get_nowait())
        except queue.Empty:
            if not found:
                self._traffic.require_scheduler()
        return found

    def _hear(self, news: Any) -> None:
        if isinstance(news, BatchedCall):
            self._waiting.append(news)
            self._enter(news)
        elif news is None:
            self._drop_unwanted()
        elif news in self._traffic:
            self._receive(news)

    def _enter(self, single: BatchedCall) -> None:
        """In the books, all calls until there are none are one."""
        if self._call is None:
            self._call = ClusterCallStats(single.name, "apply", None)
            self._books.open(self._call)
        elif self._call.function != single.name:
            self._call.function = "calls"
        self._call.taken += 1

    # --- out ------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Send what keeps the nodes busy."""
        nodes = self._nodes.present() if self._waiting else {}
        while self._waiting and self._traffic.has_room(nodes):
            size = min(len(self._waiting), self._pace.next(len(self._waiting), len(nodes), sum(nodes.values())))
            batch = [single for single in (self._waiting.popleft() for _ in range(size)) if single.target.begin()]
            self._cross_out(size - len(batch))
            if batch:
                self._send(batch)

    def _send(self, batch: list[BatchedCall]) -> None:
        content = pickle.dumps([single.content for single in batch])
        order = node.BatchOrder(self._setup, uuid.uuid4().hex, b"", node.CALL, 0, content, len(batch), b"")
        self._batches[order.call] = batch
        self._traffic.submit(order)

    def _watch(self, future: Any) -> None:
        future.add_done_callback(self._news.put)

    def _is_wanted(self, order: node.BatchOrder) -> bool:
        return any(not single.target.done() for single in self._batches[order.call])

    def _drop_unwanted(self) -> None:
        """Have the nodes end batches whose calls were all cancelled."""
        for call, batch in self._batches.items():
            if all(single.target.done() for single in batch):
                self._traffic.cancel(call)

    # --- in -------------------------------------------------------------------------------------

    def _receive(self, future: Any) -> None:
        arrival = self._traffic.receive(future)
        call = arrival.order.call
        batch = self._batches[call]
        if arrival.goes_on:
            return
        del self._batches[call]
        if arrival.outcomes is None:
            self._cross_out(len(batch))
            return
        where = ""
        if arrival.report is not None:
            where = arrival.report.node
            self._pace.learn(len(batch), arrival.report.seconds)
        if self._call is not None:
            self._books.ran(self._call, where, 0, arrival.outcomes, [single.name for single in batch])
        for single, (success, value) in zip(batch, arrival.outcomes, strict=True):
            single.target.settle(success, value)

    def _cross_out(self, count: int) -> None:
        """So many calls were cancelled."""
        if self._call is not None:
            self._call.taken -= count

    def _fail(self, error: Exception) -> None:
        """No call can end any more, for this reason."""
        lost = [*(single for batch in self._batches.values() for single in batch), *self._waiting]
        self._batches.clear()
        self._waiting.clear()
        try:
            self._traffic.cancel()
        except OSError:
            pass  # there is no scheduler that could be told
        self._traffic.clear()
        for single, its_own in zip(lost, error_for_each(error, len(lost)), strict=True):
            if single.target.begin():
                single.target.settle(False, its_own)
