"""How many items go into a batch for a node: arithmetic only."""

from __future__ import annotations

__all__ = ["BatchSizer"]

GROWTH = 4
"""A batch has at most so many times the items of the largest that has come back."""

LEAST = 0.25
"""Share of the target below which the last batches do not go: what Dask needs for each would hold up the end."""

LAZINESS = 0.5
"""Weight of what was known of an item's length before; a batch that took longer counts in full."""


SHORTEST = 1e-5
"""Seconds that an item counts for at least: what it costs on its way, even if it does nothing."""

TASK = 0.002
"""Seconds that Dask's scheduler needs for a task, and the program about as many (docs/scaling.md)."""

IDLE = 2
"""The scheduler is to be idle for one in so many seconds, however many nodes there are."""


class BatchSizer:
    """Sizes batches so that each keeps a node at work for about `target` seconds, and the last ones end together.

    Args:
        target: seconds that a batch should take; more where so many nodes would ask too much of one scheduler.
        fixed: items to a batch, if the caller has said so.
    """

    def __init__(self, target: float, fixed: int | None = None) -> None:
        self.target = target
        self.fixed = fixed
        self._item = 0.0  # seconds that an item takes; 0 while nobody knows
        self._largest = 1

    def learn(self, items: int, seconds: float) -> None:
        """So many items took so many seconds in all, of one worker each."""
        if items < 1:
            return
        self._largest = max(self._largest, items)
        length = max(seconds / items, SHORTEST)
        known = self._item
        self._item = length if not known or length > known else LAZINESS * known + (1 - LAZINESS) * length

    def next(self, remaining: int | None, nodes: int, threads: int) -> int:
        """Items of the next batch; as long as nobody knows how long one takes, one for each thread of a node.

        Args:
            remaining: how many there are yet, where that is known.
            nodes: among how many the rest is shared.
            threads: how many they have, all together.
        """
        if self.fixed is not None:
            return self.fixed
        nodes = max(1, nodes)
        each = max(1, threads) / nodes
        if self._item:
            wanted = max(self.target, IDLE * TASK * nodes) * each / self._item
            size, least = min(wanted, self._largest * GROWTH), LEAST * wanted
        else:
            size, least = each, 1.0
        if remaining is not None:
            size = min(size, max(least, remaining // (2 * nodes)))
        return max(1, int(size))
