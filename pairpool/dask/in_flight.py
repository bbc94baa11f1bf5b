"""The batches that are in flight on a cluster: send orders to Dask, receive reports, repeat lost batches.

A batch is lost if its node goes away. Then:

1. Dask gives the task up with `KilledWorker`, `CancelledError` or an `OSError`.
2. `receive` sends the same order again, up to `MAX_NODE_LOSSES` times.
3. After that, each item of the batch fails with Dask's exception, because the items themselves may end the nodes.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from pairpool.dask.messages import BatchOrder, BatchReport
from pairpool.dask.node import run_batch
from pairpool.dask.nodes import SCHEDULER_GONE, Nodes
from pairpool.dask.packing import unpack
from pairpool.transport.failures import error_for_each

__all__ = ["FinishedBatch", "InFlight", "ItemOutcome"]

BATCHES_PER_NODE = 3
"""Batches in flight per node: one runs, one is ready on the node, one is on its way."""

ITEMS_PER_THREAD = 2
"""Items in flight per thread, at least, even if a batch has few items."""

MAX_NODE_LOSSES = 10
"""Times that a batch is sent again after its node went away."""

DASK_SETTINGS = {"distributed.admin.large-graph-warning-threshold": "1 PB"}
"""Dask warns of large batches, with advice that a user of a pool cannot follow."""

_dask_settings_lock = threading.Lock()
"""Held while `DASK_SETTINGS` are in force: `dask.config.set` changes and restores the settings of the process."""

ItemOutcome = tuple[bool, Any]
"""Whether an item has a value, and the value or the exception."""


class SentBatch(NamedTuple):
    """A batch in flight."""

    order: BatchOrder
    losses: int
    """How often the node of this batch has gone away."""


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

    def __len__(self) -> int:
        return len(self._sent)

    def __contains__(self, future: Any) -> bool:
        return future in self._sent

    def has_room(self, nodes: dict[str, int]) -> bool:
        """Return whether more batches are needed to keep these nodes busy."""
        is_short_of_batches = len(self._sent) < BATCHES_PER_NODE * max(1, len(nodes))
        return is_short_of_batches or self._items < ITEMS_PER_THREAD * sum(nodes.values())

    def submit(self, order: BatchOrder, losses: int = 0) -> None:
        """Send a batch."""
        import dask

        allowed = self._nodes.allowed()
        with _dask_settings_lock, dask.config.set(DASK_SETTINGS):
            future = self._client.submit(
                run_batch,
                order,
                key=f"pairpool-{uuid.uuid4().hex}",
                pure=False,
                workers=allowed,
                allow_other_workers=False,
            )
        self._sent[future] = SentBatch(order, losses)
        self._items += order.length
        self._watch(future)

    def receive(self, future: Any) -> FinishedBatch:
        """Return the outcomes of a batch whose future is done. Send a lost batch again.

        Raises `ConnectionError` if the scheduler has gone away.
        """
        order, losses = self._sent.pop(future)
        self._items -= order.length
        try:
            report: BatchReport = future.result()
        except Exception as error:
            return self._on_lost(order, losses, error)
        finally:
            future.release()
        if report.refusal:
            self._nodes.refuse(report.node, report.refusal)
            self.submit(order, losses)
            return FinishedBatch(order, None, True)
        loaded = unpack(report.outcomes)
        outcomes: list[ItemOutcome] = [
            (is_loaded and bool(is_value), outcome)
            for (is_loaded, outcome), is_value in zip(loaded, report.successes, strict=True)
        ]
        return FinishedBatch(order, outcomes, False, report)

    def _on_lost(self, order: BatchOrder, losses: int, error: Exception) -> FinishedBatch:
        """Send a batch again that Dask gave up, or make Dask's exception the outcome of its items."""
        if not self._is_wanted(order):
            return FinishedBatch(order, None, False)
        self.require_scheduler(error)
        from distributed.scheduler import KilledWorker

        if isinstance(error, (KilledWorker, CancelledError, OSError)) and losses < MAX_NODE_LOSSES:
            self.submit(order, losses + 1)
            return FinishedBatch(order, None, True)
        return FinishedBatch(order, [(False, one) for one in error_for_each(error, order.length)], False)

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
        self._items = 0
