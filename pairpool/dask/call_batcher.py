"""Send single calls in batches, because Dask needs milliseconds for each of its tasks.

    submit ─► events ─► waiting ─► batch ─► Dask ─► run_batch on a node ─► report ─► the result of each call

One thread does all of this, from the first call on. It waits for events: calls, cancellations, Dask's futures that are
done, and the end.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections import deque
from concurrent.futures import CancelledError
from typing import Any, Protocol

from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.in_flight import InFlight
from pairpool.dask.messages import BatchOrder, CallContent, CallHead, ItemMode, NodeSetup
from pairpool.dask.nodes import Nodes
from pairpool.dask.packing import pack
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.transport.failures import error_for_each

__all__ = ["BatchedCall", "CallBatcher", "ClusterTarget"]

SCHEDULER_CHECK_INTERVAL_S = 1.0
"""Seconds without an event after which the thread checks that the scheduler is still there."""


class ClusterTarget(Protocol):
    """The destination of a call's outcome."""

    def begin(self) -> bool:
        """Note that the call goes out. Return False if it was cancelled."""

    def done(self) -> bool:
        """Return whether nobody waits for an outcome any more."""

    def settle(self, success: bool, value: Any) -> object:
        """Set the outcome. Only the first one counts."""


class BatchedCall:
    """A single call, pickled."""

    __slots__ = ("content", "name", "target")

    def __init__(self, name: str, content: CallContent, target: ClusterTarget) -> None:
        self.name, self.content, self.target = name, content, target


class CallBatcher:
    """The single calls of a cluster's pool.

    Args:
        client: the Dask client of the cluster.
        setup: the pools on the nodes.
        stats: the statistics of the pool.
        sizer: computes the calls per batch.
        nodes: the nodes of the cluster.
    """

    def __init__(
        self,
        client: Any,
        setup: NodeSetup,
        stats: ClusterStats,
        sizer: BatchSizer,
        nodes: Nodes,
    ) -> None:
        self._setup = setup
        self._stats = stats
        self._sizer = sizer
        self._nodes = nodes
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._in_flight = InFlight(client, nodes, self._watch, self._is_wanted)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_cancelled = False
        self._waiting: deque[BatchedCall] = deque()
        self._batches: dict[str, list[BatchedCall]] = {}  # in flight, by `CallHead.call`
        self._call: ClusterCallStats | None = None

    # --- from any thread ------------------------------------------------------------------------

    def submit(self, call: BatchedCall) -> None:
        """Send a call soon. Raises `ValueError` after `close`."""
        with self._lock:
            if self._is_closed:
                raise ValueError("Pool not running")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pairpool-cluster", daemon=True)
                self._thread.start()
        self._events.put(call)

    def on_cancelled(self) -> None:
        """Have the thread look for calls that were cancelled."""
        self._events.put(None)

    def close(self, *, cancel: bool) -> None:
        """Take no more calls, and wait for the end of the earlier ones. With `cancel`, end them at once."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        self._is_cancelled = self._is_cancelled or cancel
        self._events.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                for event in self._next_events():
                    self._on_event(event)
                if self._is_cancelled:
                    raise CancelledError("the pool was terminated")
                self._fill()
            except Exception as error:  # such as: the scheduler has gone away, or no node has the right versions
                self._fail(error)
            has_calls = bool(self._waiting or self._batches)
            if self._call is not None and not has_calls:
                self._stats.close(self._call)
                self._call = None
            if self._is_closed and not has_calls and self._events.empty():
                return

    def _next_events(self) -> list[Any]:
        """Wait for events and return them. While batches are in flight, check the scheduler from time to time."""
        found: list[Any] = []
        try:
            found.append(self._events.get(timeout=SCHEDULER_CHECK_INTERVAL_S if self._batches else None))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            if not found:
                self._in_flight.require_scheduler()
        return found

    def _on_event(self, event: Any) -> None:
        if isinstance(event, BatchedCall):
            self._waiting.append(event)
            self._count(event)
        elif event is None:
            self._cancel_unwanted()
        elif event in self._in_flight:
            self._receive(event)

    def _count(self, call: BatchedCall) -> None:
        """Count a call. In the statistics, all single calls that are open at the same time are one call."""
        if self._call is None:
            self._call = ClusterCallStats(call.name, "apply", None)
            self._stats.open(self._call)
        self._call.take(1, call.name)

    # --- out ------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Send batches until the nodes have enough to do."""
        nodes = self._nodes.present() if self._waiting else {}
        while self._waiting and self._in_flight.has_room(nodes):
            size = min(len(self._waiting), self._sizer.next(len(self._waiting), len(nodes), sum(nodes.values())))
            batch = [call for call in (self._waiting.popleft() for _ in range(size)) if call.target.begin()]
            self._discount(size - len(batch))
            if batch:
                self._send(batch)

    def _send(self, batch: list[BatchedCall]) -> None:
        contents = [call.content for call in batch]
        arguments = pack([one.kind for one in contents], [one.arguments for one in contents])
        calls = tuple((one.function, one.limits) for one in contents)
        head = CallHead(self._setup, uuid.uuid4().hex, calls[0][0], ItemMode.CALL, calls[0][1])
        self._batches[head.call] = batch
        self._in_flight.submit(BatchOrder(head, 0, arguments, len(batch), calls))

    def _watch(self, future: Any) -> None:
        future.add_done_callback(self._events.put)

    def _is_wanted(self, order: BatchOrder) -> bool:
        return any(not call.target.done() for call in self._batches[order.head.call])

    def _cancel_unwanted(self) -> None:
        """Have the nodes end the batches whose calls were all cancelled."""
        for name, batch in self._batches.items():
            if all(call.target.done() for call in batch):
                self._in_flight.cancel(name)

    # --- in -------------------------------------------------------------------------------------

    def _receive(self, future: Any) -> None:
        """Give the outcomes of a batch that is done to its calls."""
        order, outcomes, is_in_flight, report = self._in_flight.receive(future)
        if is_in_flight:
            return
        batch = self._batches.pop(order.head.call)
        if outcomes is None:
            self._discount(len(batch))
            return
        node = ""
        if report is not None:
            node = report.node
            self._sizer.learn(len(batch), report.seconds)
        if self._call is not None:
            self._stats.ran(self._call, node, 0, outcomes, [call.name for call in batch])
        for call, (success, value) in zip(batch, outcomes, strict=True):
            call.target.settle(success, value)

    def _discount(self, count: int) -> None:
        """Remove cancelled calls from the statistics."""
        if self._call is not None:
            self._call.drop(count)

    def _fail(self, error: Exception) -> None:
        """End all calls with this exception."""
        lost = [*(call for batch in self._batches.values() for call in batch), *self._waiting]
        self._batches.clear()
        self._waiting.clear()
        try:
            self._in_flight.cancel()
        except OSError:
            pass  # there is no scheduler to tell
        self._in_flight.clear()
        for call, its_error in zip(lost, error_for_each(error, len(lost)), strict=True):
            if call.target.begin():
                call.target.settle(False, its_error)
