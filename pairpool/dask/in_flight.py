"""The batches that are in flight on a cluster: send orders to Dask, receive reports, repeat lost batches.

If a node goes away, Dask sends its batches to other nodes. Dask gives a batch up in two ways:

1. With `CancelledError` or an `OSError`, such as `CommClosedError`. The batch goes out again, up to `MAX_NODE_LOSSES`
   times. After that, its items fail with `WorkerDied`.
2. With `KilledWorker`, after several nodes have ended while they had the batch. It may be the batch that ends them, or
   another batch on the same nodes. So the batch becomes a *suspect*:

   a. While there are suspects, no new batch goes out. A suspect goes out when no other batch is in flight.
   b. If Dask gives up a suspect that was alone, one of its items is guilty. Its two halves become suspects.
   c. If this suspect is a single item, the item fails with `WorkerDied`.

   So one guilty item among n costs at most 2 + 2 log2(n) suspects, and all other items have their right values.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, NamedTuple

from pairpool.dask.messages import BatchOrder, BatchReport
from pairpool.dask.node import run_batch
from pairpool.dask.nodes import SCHEDULER_GONE, Nodes
from pairpool.dask.packing import part_of, unpack
from pairpool.errors import WorkerDied
from pairpool.transport.failures import error_for_each, safe

__all__ = ["FinishedBatch", "InFlight", "ItemOutcome"]

BATCHES_PER_NODE = 3
"""Batches in flight per node: one runs, one is ready on the node, one is on its way."""

ITEMS_PER_THREAD = 2
"""Items in flight per thread, at least, even if a batch has few items."""

MAX_NODE_LOSSES = 10
"""Times that a batch is sent again after Dask has lost it."""

DASK_SETTINGS = {"distributed.admin.large-graph-warning-threshold": "1 PB"}
"""Dask warns of large batches, with advice that a user of a pool cannot follow."""

_dask_settings_lock = threading.Lock()
"""Held while `DASK_SETTINGS` are in force: `dask.config.set` changes and restores the settings of the process."""

CAUSE = "the item ends the process of the Dask worker, or takes its memory; or the nodes fail for another reason"
ADVICE = "read the log of the Dask workers"

ItemOutcome = tuple[bool, Any]
"""Whether an item has a value, and the value or the exception."""


class DividedBatch:
    """A suspect whose parts are sent one by one.

    Args:
        order: the batch that the caller has sent.
    """

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.outcomes: list[ItemOutcome | None] = [None] * order.length
        self._left = order.length

    def take(self, start: int, outcomes: list[ItemOutcome]) -> bool:
        """Keep the outcomes of a part. Return whether all items have theirs."""
        self.outcomes[start : start + len(outcomes)] = outcomes
        self._left -= len(outcomes)
        return self._left == 0


class SentBatch(NamedTuple):
    """A batch in flight, or a suspect that waits."""

    order: BatchOrder
    losses: int = 0
    """How often Dask has lost the batch."""
    whole: DividedBatch | None = None
    """For a suspect: the batch of which this is a part."""
    start: int = 0
    """For a suspect: the place of its first item in `whole`."""


class FinishedBatch(NamedTuple):
    """The end of a batch, or the news that it was sent again."""

    order: BatchOrder
    outcomes: list[ItemOutcome] | None
    """None if the batch was sent again, or if nobody wants its outcomes any more."""
    is_in_flight: bool
    """Whether the batch was sent again."""
    report: BatchReport | None = None
    """The report of the node; None if the node sent none."""


class InFlight:
    """The batches of one or several calls. One thread sends and receives; any thread may cancel.

    Args:
        client: the Dask client of the cluster.
        nodes: the nodes of the cluster.
        watch: called with each future of Dask after it was submitted.
        is_wanted: returns whether a lost batch is to be sent again.
    """

    def __init__(
        self,
        client: Any,
        nodes: Nodes,
        watch: Callable[[Any], None],
        is_wanted: Callable[[BatchOrder], bool],
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._watch = watch
        self._is_wanted = is_wanted
        self._sent: dict[Any, SentBatch] = {}  # by Dask's future
        self._items = 0
        self._suspects: deque[SentBatch] = deque()

    def __len__(self) -> int:
        return len(self._sent) + len(self._suspects)

    def __contains__(self, future: Any) -> bool:
        return future in self._sent

    def has_room(self, nodes: dict[str, int]) -> bool:
        """Return whether more batches are needed to keep these nodes busy."""
        if self._suspects or any(sent.whole is not None for sent in self._sent.values()):
            return False
        is_short_of_batches = len(self._sent) < BATCHES_PER_NODE * max(1, len(nodes))
        return is_short_of_batches or self._items < ITEMS_PER_THREAD * sum(nodes.values())

    def submit(self, order: BatchOrder) -> None:
        """Send a batch."""
        self._send(SentBatch(order))

    def _send(self, batch: SentBatch) -> None:
        import dask

        allowed = self._nodes.allowed()
        with _dask_settings_lock, dask.config.set(DASK_SETTINGS):
            future = self._client.submit(
                run_batch,
                batch.order,
                key=f"pairpool-{uuid.uuid4().hex}",
                pure=False,
                workers=allowed,
                allow_other_workers=False,
            )
        self._sent[future] = batch
        self._items += batch.order.length
        self._watch(future)

    def receive(self, future: Any) -> FinishedBatch:
        """Return the outcomes of a batch whose future is done. Send a lost batch again.

        Raises `ConnectionError` if the scheduler has gone away.
        """
        batch = self._sent.pop(future)
        self._items -= batch.order.length
        try:
            report: BatchReport = future.result()
        except Exception as error:
            finished = self._on_lost(batch, error)
        else:
            finished = self._on_report(batch, report)
        finally:
            future.release()
        if self._suspects and not self._sent:
            self._send(self._suspects.popleft())
        return finished

    def _on_report(self, batch: SentBatch, report: BatchReport) -> FinishedBatch:
        if not report.refusal:
            return self._finish(batch, unpack(report.outcomes), report)
        self._nodes.refuse(report.node, report.refusal)
        self._send(batch)
        return FinishedBatch(batch.order, None, True)

    def _finish(
        self, batch: SentBatch, outcomes: list[ItemOutcome], report: BatchReport | None = None
    ) -> FinishedBatch:
        """Return the outcomes of a batch. Keep those of a part until all parts have theirs."""
        if report is not None:
            for is_value, outcome in outcomes:
                if not is_value and not isinstance(outcome, WorkerDied):
                    outcome.add_note(f"on node {report.node}")
        if batch.whole is None:
            return FinishedBatch(batch.order, outcomes, False, report)
        if not batch.whole.take(batch.start, outcomes):
            return FinishedBatch(batch.order, None, True)
        return FinishedBatch(batch.whole.order, batch.whole.outcomes, False)  # type: ignore[arg-type]

    def _on_lost(self, batch: SentBatch, error: Exception) -> FinishedBatch:
        """Send a batch again that Dask gave up, or its parts, or end its items with `WorkerDied`."""
        order = batch.order
        if not self._is_wanted(order):
            self._suspects = deque(one for one in self._suspects if one.whole is not batch.whole)
            return FinishedBatch(order if batch.whole is None else batch.whole.order, None, False)
        self.require_scheduler(error)
        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):
            if batch.whole is not None and order.length == 1:
                return self._finish(batch, _all_died(order, error))
            self._suspect(batch)
            return FinishedBatch(order, None, True)
        if not isinstance(error, (CancelledError, OSError)):
            return self._finish(batch, [(False, one) for one in error_for_each(error, order.length)])
        if batch.losses >= MAX_NODE_LOSSES:
            return self._finish(batch, _all_died(order, error))
        self._send(batch._replace(losses=batch.losses + 1))
        return FinishedBatch(order, None, True)

    def _suspect(self, batch: SentBatch) -> None:
        """Send a batch again when no other batch is in flight: the whole, or its halves if it was a suspect."""
        order, start = batch.order, batch.start
        whole = batch.whole or DividedBatch(order)
        middle = 0 if batch.whole is None else order.length // 2
        for first, stop in ((middle, order.length), (0, middle)):
            if first < stop:
                part = part_of_order(order, first, stop) if middle else order
                self._suspects.appendleft(SentBatch(part, batch.losses, whole, start + first))

    def require_scheduler(self, error: BaseException | None = None) -> None:
        """Raise `ConnectionError`, caused by `error`, if the scheduler has gone away."""
        if self._client.status in ("closing", "closed"):
            raise ConnectionError(SCHEDULER_GONE) from error

    def cancel(self, call: str | None = None) -> None:
        """Have Dask drop the batches of one call, or all batches. The nodes then end what runs of them."""
        futures = [future for future, sent in list(self._sent.items()) if call in (None, sent.order.head.call)]
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)

    def clear(self) -> None:
        """Forget all batches."""
        self._sent.clear()
        self._suspects.clear()
        self._items = 0


def part_of_order(order: BatchOrder, start: int, stop: int) -> BatchOrder:
    """Return a batch of some of the items of another batch."""
    return order._replace(
        first=order.first + start,
        items=part_of(order.items, start, stop),
        length=stop - start,
        calls=order.calls[start:stop],
    )


def _all_died(order: BatchOrder, error: Exception) -> list[ItemOutcome]:
    """Return a `WorkerDied` for each item of a batch that Dask gave up for good."""
    text = f"{type(error).__name__}: {safe(partial(str, error))}"
    reason = f"Dask gave it up, because each Dask worker that had it ended ({text})"
    named = [function.name for function, _limits in order.calls] or [order.head.function.name] * order.length
    return [
        (False, WorkerDied(name, 0 if order.calls else order.first + offset, reason=reason, cause=CAUSE, advice=ADVICE))
        for offset, name in enumerate(named)
    ]
