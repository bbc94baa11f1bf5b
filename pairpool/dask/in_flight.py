"""Batches under way on a cluster: orders out to Dask, reports in, and once more what a node took along."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from pairpool.dask import node
from pairpool.dask.nodes import GONE, Nodes
from pairpool.dask.packing import unpack
from pairpool.transport.failures import error_for_each

__all__ = ["AHEAD", "ITEMS_AHEAD", "FinishedBatch", "Outcome", "InFlight"]

AHEAD = 3
"""Batches under way for each node: one runs, one is there when it ends, one is on its way."""

ITEMS_AHEAD = 2
"""Items under way for each thread at least, however few of them make a batch."""

DEATHS = 10
"""Nodes that may go away under a batch before its items are held to be what ends them."""

NO_ADVICE = {"distributed.admin.large-graph-warning-threshold": "1 PB"}
"""Dask warns of large batches, and recommends what users of a pool cannot do."""

_unheard = threading.Lock()
"""Held while that is set, for it is set for the whole process, and put back as it was."""

Outcome = tuple[bool, Any]
"""Whether an item has a value, and that or its exception."""


class Sent(NamedTuple):
    """A batch under way."""

    order: node.BatchOrder
    deaths: int


class FinishedBatch(NamedTuple):
    """What has come of a batch."""

    order: node.BatchOrder
    outcomes: list[Outcome] | None
    """None if it is under way once more, or nobody wants them any more."""
    goes_on: bool
    """Whether it is under way once more."""
    report: node.BatchReport | None = None
    """The node's own; None if it sent none."""


class InFlight:
    """The batches of a call, or of some; used by one thread, cancelled by any.

    Args:
        client: of the cluster.
        nodes: of the cluster.
        watch: told each future of Dask's as it is submitted.
        is_wanted: whether a batch that a node took along is to go out once more.
    """

    def __init__(
        self,
        client: Any,
        nodes: Nodes,
        watch: Callable[[Any], None],
        is_wanted: Callable[[node.BatchOrder], bool],
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._watch = watch
        self._is_wanted = is_wanted
        self._sent: dict[Any, Sent] = {}  # by Dask's future
        self._items = 0

    def __len__(self) -> int:
        return len(self._sent)

    def __contains__(self, future: Any) -> bool:
        return future in self._sent

    def has_room(self, nodes: dict[str, int]) -> bool:
        """Whether more batches are needed to keep these nodes busy."""
        return len(self._sent) < AHEAD * max(1, len(nodes)) or self._items < ITEMS_AHEAD * sum(nodes.values())

    def submit(self, order: node.BatchOrder, deaths: int = 0) -> None:
        """Send a batch."""
        import dask

        only_on = self._nodes.limits()
        with _unheard, dask.config.set(NO_ADVICE):
            future = self._client.submit(
                node.run_batch,
                order,
                key=f"pairpool-{uuid.uuid4().hex}",
                pure=False,
                workers=only_on,
                allow_other_workers=False,
            )
        self._sent[future] = Sent(order, deaths)
        self._items += order.length
        self._watch(future)

    def receive(self, future: Any) -> FinishedBatch:
        """What has come of a batch that has ended; if a node took it along, it goes out once more.

        Raises `ConnectionError` if there is no scheduler any more.
        """
        order, deaths = self._sent.pop(future)
        self._items -= order.length
        try:
            report: node.BatchReport = future.result()
        except Exception as error:
            return self._on_lost(order, deaths, error)
        finally:
            future.release()
        if report.refusal:
            self._nodes.refuse(report.node, report.refusal)
            self.submit(order, deaths)
            return FinishedBatch(order, None, True)
        loaded = unpack(report.outcomes)
        outcomes: list[Outcome] = [
            (is_loaded and bool(is_value), outcome)
            for (is_loaded, outcome), is_value in zip(loaded, report.successes, strict=True)
        ]
        return FinishedBatch(order, outcomes, False, report)

    def _on_lost(self, order: node.BatchOrder, deaths: int, error: Exception) -> FinishedBatch:
        """Dask gave a batch up: nodes or connections went away under it, or it was cancelled, or is at fault itself."""
        if not self._is_wanted(order):
            return FinishedBatch(order, None, False)
        self.require_scheduler(error)
        from distributed.scheduler import KilledWorker

        if isinstance(error, (KilledWorker, CancelledError, OSError)) and deaths < DEATHS:
            self.submit(order, deaths + 1)
            return FinishedBatch(order, None, True)
        return FinishedBatch(order, [(False, one) for one in error_for_each(error, order.length)], False)

    def require_scheduler(self, error: BaseException | None = None) -> None:
        """Raise `ConnectionError` if there is no scheduler any more, which is then what `error` came of."""
        if self._client.status in ("closing", "closed"):
            raise ConnectionError(GONE) from error

    def cancel(self, call: str | None = None) -> None:
        """Have Dask drop what is under way, of this call alone if one is named; the nodes end it."""
        futures = [future for future, sent in list(self._sent.items()) if call in (None, sent.order.call)]
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)

    def clear(self) -> None:
        """Forget what is under way."""
        self._sent.clear()
        self._items = 0
