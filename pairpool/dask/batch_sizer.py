"""Compute how many items go into a batch for a node. Arithmetic only: no clock and no I/O.

1. While no batch has come back, a batch has one item per thread of a node.
2. Then a batch has the items that keep all threads of a node busy for `target` seconds. It has at most `MAX_GROWTH`
   times the items of the largest batch that has come back.
3. Towards the end of an input of known length, batches shrink, so that the last ones end together.
"""

from __future__ import annotations

__all__ = ["BatchSizer"]

MAX_GROWTH = 4
"""A batch has at most this many times the items of the largest batch that has come back."""

LAST_BATCHES_SHARE = 0.25
"""Share of the target below which the last batches do not shrink: Dask's own work per batch would delay the end."""

OLD_WEIGHT = 0.5
"""Weight of the old estimate of an item's duration. A batch that took longer than the estimate counts in full."""

MIN_ITEM_S = 1e-5
"""Least estimate of an item's duration: what its transport costs, even if the item does nothing."""

DASK_TASK_S = 0.002
"""Seconds that Dask's scheduler needs per task; the program needs about as many (docs/scaling.md)."""

SCHEDULER_LOAD_FACTOR = 2
"""Each node's batches take at least this many times the scheduler's time for one batch of every node.

So the scheduler is idle for half of the time, however many nodes there are.
"""


class BatchSizer:
    """Size batches so that each batch keeps a node busy for about `target` seconds, and the last ones end together.

    Args:
        target: seconds that a batch should take. With many nodes a batch takes longer, to spare the scheduler.
        fixed: items per batch, if the caller has fixed it.
    """

    def __init__(self, target: float, fixed: int | None = None) -> None:
        self.target = target
        self.fixed = fixed
        self._item_s = 0.0  # seconds per item; 0 while it is unknown
        self._largest = 1

    def learn(self, items: int, seconds: float) -> None:
        """Learn from a batch that came back. `seconds` is the sum of the run times of its items."""
        if items < 1:
            return
        self._largest = max(self._largest, items)
        item_s = max(seconds / items, MIN_ITEM_S)
        old = self._item_s
        self._item_s = item_s if not old or item_s > old else OLD_WEIGHT * old + (1 - OLD_WEIGHT) * item_s

    def next(self, remaining: int | None, nodes: int, threads: int) -> int:
        """Return the number of items of the next batch.

        Args:
            remaining: items that are left in the input; None if that is unknown.
            nodes: the nodes that share the rest of the input.
            threads: the threads of all these nodes together.
        """
        if self.fixed is not None:
            return self.fixed
        nodes = max(1, nodes)
        threads_per_node = max(1, threads) / nodes
        if self._item_s:
            seconds = max(self.target, SCHEDULER_LOAD_FACTOR * DASK_TASK_S * nodes)
            wanted = seconds * threads_per_node / self._item_s
            size, least = min(wanted, self._largest * MAX_GROWTH), LAST_BATCHES_SHARE * wanted
        else:
            size, least = threads_per_node, 1.0
        if remaining is not None:
            size = min(size, max(least, remaining // (2 * nodes)))
        return max(1, int(size))
