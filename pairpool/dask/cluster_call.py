"""A call on a cluster: batches out, reports in, as many under way as keep the nodes busy.

    Batches ─► Traffic ─► Dask ─► run_batch on a node ─► Traffic ─► in order, if that is wanted ─► outcomes

Whoever reads the outcomes drives it: no thread is needed for that, and nothing is taken from the input that nobody
waits for.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import cloudpickle

from pairpool.dask import node
from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.in_flight import InFlight, Outcome
from pairpool.dask.nodes import Nodes
from pairpool.dask.packing import Packer
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.linux.interrupts import allow_signals, defer_signals, is_own
from pairpool.options import Limits
from pairpool.transport.repeats import Repeats

__all__ = ["Batches", "ClusterCall"]

UNREAD = 8
"""Batches for each node that may wait for one before them, where results are wanted in order."""

FILL_SECONDS = 0.1
"""Time after which a batch of a stream goes out with the items that are there, at least one."""


class Batches:
    """The items of a call, batch by batch, pickled.

    Each item is pickled before the input is asked for the next item, because the input may reuse its memory.

    Args:
        function: pickled.
        items: the input.
        total: the number of items, if it is known.
        chunksize: items per batch; None for batches of `target` seconds.
        error: the exception that the input raised after these items, if it did.
        repeats: for an input that is complete: large objects that several items contain are pickled once per batch.
            None for a stream, whose batches end after `FILL_SECONDS` unless there is a `chunksize`.
    """

    def __init__(
        self,
        setup: node.Setup,
        function: bytes,
        mode: int,
        items: Iterator[Any],
        total: int | None,
        limits: Limits,
        target: float,
        chunksize: int | None,
        error: BaseException | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        self._parts = setup, uuid.uuid4().hex, function, mode
        self._items = items
        self._total = total
        self._limits: bytes = cloudpickle.dumps(limits)
        self._repeats = repeats
        self._seconds = FILL_SECONDS if repeats is None and chunksize is None else math.inf
        self.pace = BatchSizer(target, chunksize)
        self.taken = 0
        self.error = error
        self.is_exhausted = False

    def next(self, nodes: dict[str, int], at_most: int) -> tuple[node.BatchOrder | None, dict[int, BaseException]]:
        """Return the next batch, and by offset the exceptions of its items that cannot be pickled.

        The batch is None if there are no more items.
        """
        remaining = None if self._total is None else self._total - self.taken
        size = min(at_most, self.pace.next(remaining, len(nodes), sum(nodes.values())))
        packer, failed = self._take(size)
        if not packer:
            return None, {}
        first, self.taken = self.taken, self.taken + len(packer)
        setup, call, function, mode = self._parts
        order = node.BatchOrder(setup, call, function, mode, first, packer.packed(), len(packer), self._limits)
        return order, failed

    def _take(self, size: int) -> tuple[Packer, dict[int, BaseException]]:
        """Take up to `size` items. Return them, and by offset the exceptions of items that cannot be pickled."""
        packer = Packer(self._repeats)
        failed: dict[int, BaseException] = {}
        with (
            defer_signals(),
            allow_signals(),
        ):  # so that what a signal's handler raises can be told from what an item raises
            self._fill(packer, failed, size)
        return packer, failed

    def _fill(self, packer: Packer, failed: dict[int, BaseException], size: int) -> None:
        ends = time.monotonic() + self._seconds
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
    """A call under way; read by one thread, cancelled by any.

    Args:
        client: of the cluster.
        nodes: of the cluster.
        buffersize: items that may be taken and not yet read; None for some batches a node.
    """

    def __init__(
        self,
        client: Any,
        batches: Batches,
        call: ClusterCallStats,
        books: ClusterStats,
        nodes: Nodes,
        buffersize: int | None,
    ) -> None:
        self._client = client
        self._batches = batches
        self._call = call
        self._books = books
        self._nodes = nodes
        self._arrivals: Any = None
        self._traffic = InFlight(client, nodes, self._watch, lambda _order: not self.is_cancelled)
        self._buffersize = buffersize
        self._ready: deque[list[Outcome]] = deque()  # the outcomes of batches, for the reader
        self._failed: dict[int, dict[int, BaseException]] = {}
        """Of batches under way, by their first items: the exceptions of items that cannot be pickled, by offset."""
        self._read = 0
        self._is_over = False
        self.is_cancelled = False
        self.deadline: float | None = None
        """Of the clock `time.monotonic`: until then the reader waits for the next outcome."""

    def cancel(self) -> bool:
        """End the call. Returns whether there was something to end."""
        if self._is_over:
            return False
        self.is_cancelled = True
        self._traffic.cancel()
        return True

    def outcomes(self, *, ordered: bool) -> Iterator[Outcome | None]:
        """For each item whether it has a value, and that or its exception; None at each `deadline`."""
        from distributed import as_completed

        arrivals = self._arrivals = as_completed(loop=self._client.loop)
        waiting: dict[int, list[Outcome]] = {}
        due = 0
        ready = self._ready
        self._books.open(self._call)
        try:
            self._fill()
            while self._traffic:
                future = self._await(arrivals)
                if future is None:
                    yield None
                    continue
                first, outcomes = self._receive(future)
                if outcomes is not None and ordered:
                    waiting[first] = outcomes
                    while due in waiting:
                        ready.append(waiting.pop(due))
                        due += len(ready[-1])
                elif outcomes is not None:
                    ready.append(outcomes)
                self._fill()
                while ready:
                    for outcome in ready.popleft():
                        self._read += 1
                        yield outcome
                    self._fill()
            if self.is_cancelled:
                raise CancelledError("the call was cancelled")
            if self._batches.error is not None:
                raise self._batches.error
        except RuntimeError as error:
            self._traffic.require_scheduler(error)
            raise
        finally:
            self._is_over = True
            if not self.is_cancelled:
                self._traffic.cancel()
            self._traffic.clear()
            self._books.close(self._call)

    # --- out ------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Send batches until as many are under way as keep the nodes busy.

        The reader must not wait for a slow input while there is something to read: then return after `FILL_SECONDS`.
        """
        if self.is_cancelled:
            return
        ends = time.monotonic() + FILL_SECONDS
        nodes = self._nodes.present()
        many, threads = max(1, len(nodes)), sum(nodes.values())
        while not self._batches.is_exhausted and self._traffic.has_room(nodes):
            unread = self._batches.taken - self._read
            usual = self._batches.pace.next(None, many, threads)
            bound = self._buffersize or (len(self._traffic) + UNREAD * many) * usual
            if unread >= bound and unread:
                return
            order, failed = self._batches.next(nodes, max(1, bound - unread))
            if order is None:
                return
            self._call.taken = self._batches.taken
            if failed:
                self._failed[order.first] = failed
            self._traffic.submit(order)
            if time.monotonic() >= ends and self._has_news():
                return

    def _has_news(self) -> bool:
        """Whether the reader has something to do: outcomes, batches that have ended, or its deadline has passed."""
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        return is_late or bool(self._ready) or bool(self._arrivals.has_ready())

    def _watch(self, future: Any) -> None:
        self._arrivals.add(future)
        if self.is_cancelled:  # by another thread, which did not see this one
            self._client.cancel([future], force=True)

    # --- in -------------------------------------------------------------------------------------

    def _await(self, arrivals: Any) -> Any:
        """The future of a batch that has ended; None if there is none at the deadline."""
        if self.deadline is not None:
            with arrivals.thread_condition:
                if not arrivals.thread_condition.wait_for(arrivals.has_ready, self.deadline - time.monotonic()):
                    return None
        return next(arrivals)

    def _receive(self, future: Any) -> tuple[int, list[Outcome] | None]:
        """The first index and the outcomes of a batch that has ended; None if there are none (see `InFlight`)."""
        order, outcomes, _goes_on, report = self._traffic.receive(future)
        if outcomes is None:
            return order.first, None
        if report is not None:
            self._batches.pace.learn(order.length, report.seconds)
        for offset, error in self._failed.pop(order.first, {}).items():
            outcomes[offset] = False, error
        self._books.ran(self._call, "" if report is None else report.node, order.first, outcomes)
        return order.first, outcomes
