"""A call with several items on a cluster: batches go out, reports come in, and the nodes stay busy.

    input ─► Batches ─► InFlight ─► Dask ─► run_batch on a node ─► InFlight ─► in input order, if wanted ─► outcomes

The thread that reads the outcomes drives the call. So the call needs no thread of its own, and takes nothing from the
input that nobody waits for.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.in_flight import InFlight, ItemOutcome
from pairpool.dask.messages import BatchOrder, CallHead
from pairpool.dask.nodes import Nodes
from pairpool.dask.packing import Packer
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.linux.interrupts import allow_signals, defer_signals, is_own
from pairpool.transport.repeats import Repeats

__all__ = ["Batches", "CallItems", "ClusterCall"]

UNREAD_BATCHES_PER_NODE = 8
"""Batches per node that may wait for an earlier batch, if results are wanted in order."""

FILL_LIMIT_S = 0.1
"""Seconds after which a batch of a stream goes out with the items that are there, at least one."""


class CallItems(NamedTuple):
    """The input of a call."""

    items: Iterator[Any]
    total: int | None = None
    """The number of items, if it is known."""
    error: BaseException | None = None
    """The exception that the input raised after these items, if it did."""


class Batches:
    """The items of a call, pickled and cut into batches.

    Each item is pickled before the input is asked for the next item, because the input may reuse its memory.

    Args:
        head: the part of the orders that is the same for all batches.
        source: the input.
        sizer: computes the items per batch.
        repeats: for an input that is complete: large objects that several items contain are pickled once per batch.
            None for a stream. A batch of a stream goes out after `FILL_LIMIT_S`, unless the sizes are fixed.

    Attributes:
        taken: the items that were taken from the input.
        error: the exception of the input.
    """

    def __init__(self, head: CallHead, source: CallItems, sizer: BatchSizer, repeats: Repeats | None = None) -> None:
        self._head = head
        self._items = source.items
        self._total = source.total
        self._repeats = repeats
        self._fill_limit_s = FILL_LIMIT_S if repeats is None and sizer.fixed is None else math.inf
        self.sizer = sizer
        self.taken = 0
        self.error = source.error
        self.is_exhausted = False

    def next(self, nodes: dict[str, int], at_most: int) -> tuple[BatchOrder | None, dict[int, BaseException]]:
        """Return the next batch, and by offset the exceptions of its items that cannot be pickled.

        The batch is None if there are no more items.
        """
        remaining = None if self._total is None else self._total - self.taken
        size = min(at_most, self.sizer.next(remaining, len(nodes), sum(nodes.values())))
        packer, failed = self._take(size)
        if not packer:
            return None, {}
        first, self.taken = self.taken, self.taken + len(packer)
        return BatchOrder(self._head, first, packer.packed(), len(packer)), failed

    def _take(self, size: int) -> tuple[Packer, dict[int, BaseException]]:
        """Take up to `size` items. Return them, and by offset the exceptions of items that cannot be pickled."""
        packer = Packer(self._repeats)
        failed: dict[int, BaseException] = {}
        # `is_own` below tells an exception of an item from an exception of a signal handler
        with defer_signals(), allow_signals():
            self._fill(packer, failed, size)
        return packer, failed

    def _fill(self, packer: Packer, failed: dict[int, BaseException], size: int) -> None:
        ends = time.monotonic() + self._fill_limit_s
        while len(packer) < size and not self.is_exhausted:
            try:
                item = next(self._items)
            except StopIteration:
                self.is_exhausted = True
                break
            except Exception as error:
                self.error = error
                self.is_exhausted = True
                break
            try:
                packer.add(item)
            except BaseException as error:
                if not is_own(error):
                    raise
                failed[len(packer)] = error
                packer.add_missing()
            if time.monotonic() >= ends:
                break


class ClusterCall:
    """A call that one thread reads. Any thread may cancel it.

    Args:
        client: the Dask client of the cluster.
        batches: the items.
        call: the statistics of this call.
        stats: the statistics of the pool.
        nodes: the nodes of the cluster.
        buffersize: items that may be taken and not yet read; None for `UNREAD_BATCHES_PER_NODE`.
    """

    def __init__(
        self,
        client: Any,
        batches: Batches,
        call: ClusterCallStats,
        stats: ClusterStats,
        nodes: Nodes,
        buffersize: int | None,
    ) -> None:
        self._client = client
        self._batches = batches
        self._call = call
        self._stats = stats
        self._nodes = nodes
        self._buffersize = buffersize
        self._in_flight = InFlight(client, nodes, self._watch, lambda _order: not self._is_cancelled)
        self._finished: Any = None  # Dask's queue of futures that are done
        self._early: dict[int, list[ItemOutcome]] = {}  # by first item: batches that finished before an earlier batch
        self._next_first = 0
        self._ready: deque[list[ItemOutcome]] = deque()  # the outcomes that the reader may have now
        self._unpickled: dict[int, dict[int, BaseException]] = {}  # by first item of the batch, and by offset
        self._read = 0
        self._is_over = False
        self._is_cancelled = False
        self._deadline_s: float | None = None

    def cancel(self) -> bool:
        """End the call. Return False if it has ended before."""
        if self._is_over:
            return False
        self._is_cancelled = True
        self._in_flight.cancel()
        return True

    def set_deadline(self, seconds: float | None) -> None:
        """Let the reader wait at most until this time of `time.monotonic`; None for any time."""
        self._deadline_s = seconds

    def outcomes(self, *, ordered: bool) -> Iterator[ItemOutcome | None]:
        """Yield for each item whether it has a value, and the value or the exception. Yield None at each deadline."""
        from distributed import as_completed

        self._finished = as_completed(loop=self._client.loop)
        self._stats.open(self._call)
        try:
            self._fill()
            while self._in_flight:
                future = self._wait_for_batch()
                if future is None:
                    yield None
                    continue
                self._receive(future, ordered=ordered)
                self._fill()
                while self._ready:
                    for outcome in self._ready.popleft():
                        self._read += 1
                        yield outcome
                    self._fill()
            if self._is_cancelled:
                raise CancelledError("the call was cancelled")
            if self._batches.error is not None:
                raise self._batches.error
        except RuntimeError as error:
            self._in_flight.require_scheduler(error)
            raise
        finally:
            self._is_over = True
            if not self._is_cancelled:
                self._in_flight.cancel()
            self._in_flight.clear()
            self._stats.close(self._call)

    # --- out ------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Send batches until the nodes have enough to do.

        If the input is slow, return after `FILL_LIMIT_S` as soon as the reader has something to do.
        """
        if self._is_cancelled:
            return
        ends = time.monotonic() + FILL_LIMIT_S
        nodes = self._nodes.present()
        count, threads = max(1, len(nodes)), sum(nodes.values())
        while not self._batches.is_exhausted and self._in_flight.has_room(nodes):
            unread = self._batches.taken - self._read
            usual = self._batches.sizer.next(None, count, threads)
            bound = self._buffersize or (len(self._in_flight) + UNREAD_BATCHES_PER_NODE * count) * usual
            if unread >= bound and unread:
                return
            order, failed = self._batches.next(nodes, max(1, bound - unread))
            if order is None:
                return
            self._call.take(order.length)
            if failed:
                self._unpickled[order.first] = failed
            self._in_flight.submit(order)
            if time.monotonic() >= ends and self._has_news():
                return

    def _has_news(self) -> bool:
        """Return whether the reader has something to do: outcomes, finished batches, or a passed deadline."""
        is_late = self._deadline_s is not None and time.monotonic() >= self._deadline_s
        return is_late or bool(self._ready) or bool(self._finished.has_ready())

    def _watch(self, future: Any) -> None:
        self._finished.add(future)
        if self._is_cancelled:  # `cancel` may have run in another thread before this future was in flight
            self._client.cancel([future], force=True)

    # --- in -------------------------------------------------------------------------------------

    def _wait_for_batch(self) -> Any:
        """Return the future of a batch that is done; None at the deadline."""
        if self._deadline_s is not None:
            condition = self._finished.thread_condition
            with condition:
                if not condition.wait_for(self._finished.has_ready, self._deadline_s - time.monotonic()):
                    return None
        return next(self._finished)

    def _receive(self, future: Any, *, ordered: bool) -> None:
        """Take the outcomes of a batch that is done. Make those ready that the reader may have now."""
        order, outcomes, _is_in_flight, report = self._in_flight.receive(future)
        if outcomes is None:
            return
        if report is not None:
            self._batches.sizer.learn(order.length, report.seconds)
        for offset, error in self._unpickled.pop(order.first, {}).items():
            outcomes[offset] = False, error
        self._stats.ran(self._call, "" if report is None else report.node, order.first, outcomes)
        if not ordered:
            self._ready.append(outcomes)
            return
        self._early[order.first] = outcomes
        while self._next_first in self._early:
            self._ready.append(self._early.pop(self._next_first))
            self._next_first += len(self._ready[-1])
