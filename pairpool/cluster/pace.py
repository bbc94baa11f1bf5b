"""How many items go into a batch for a node: arithmetic only."""

from __future__ import annotations

__all__ = ["Pace"]

GROWTH = 4
"""A batch has at most so many times the items of the largest before."""

LEAST = 0.25
"""Share of the target below which the last batches do not go: what Dask needs for each would hold up the end."""

LAZINESS = 0.5
"""Weight of what was known of an item's length before; a batch that took longer counts in full."""


class Pace:
    """Sizes batches so that each takes about `target` seconds, and so that the last ones of an input end together.

    Args:
        target: seconds that a batch should take.
        fixed: items to a batch, if the caller has said so.
    """

    def __init__(self, target: float, fixed: int | None = None) -> None:
        self.target = target
        self.fixed = fixed
        self._item = 0.0  # seconds that an item takes; 0 while nobody knows
        self._largest = 1

    def learn(self, items: int, seconds: float) -> None:
        """A batch of so many items took so long."""
        if items < 1:
            return
        length = seconds / items
        known = self._item
        self._item = length if not known or length > known else LAZINESS * known + (1 - LAZINESS) * length

    def next(self, remaining: int | None, threads: int) -> int:
        """Items of the next batch.

        Args:
            remaining: how many there are yet, where that is known.
            threads: among how many threads the rest is shared.
        """
        if self.fixed is not None:
            return self.fixed
        if not self._item:
            return 1
        size = int(min(self._largest * GROWTH, max(1.0, self.target / self._item)))
        if remaining is not None:
            least = int(LEAST * self.target / self._item)
            size = min(size, max(1, least, remaining // (2 * max(1, threads))))
        self._largest = max(self._largest, size)
        return size
