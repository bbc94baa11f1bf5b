"""The times at which the items of a batch began, as a worker reports them."""

from __future__ import annotations

import itertools
from array import array
from typing import NamedTuple

__all__ = ["Stamps"]


class Stamps(NamedTuple):
    """When the items of a batch began, in monotonic ns."""

    began: int
    """When the worker received the packet."""
    starts: list[int]
    ended: int
    """When the last item ended."""

    def lengths(self) -> list[int]:
        """Return the nanoseconds that each item took."""
        return [end - start for start, end in itertools.pairwise([*self.starts, self.ended])]

    def is_possible(self, now: int) -> bool:
        """Return whether the first and the last times are in order, and not after `now`."""
        first, last = (self.starts[0], self.starts[-1]) if self.starts else (self.began, self.began)
        return self.began <= first <= last <= self.ended <= now

    def pack(self) -> bytes:
        """Return the stamps as they stand at the beginning of a payload."""
        return array("Q", (self.began, *self.starts, self.ended)).tobytes()

    @classmethod
    def unpack(cls, content: memoryview) -> Stamps:
        """Return the stamps that `pack` wrote."""
        began, *starts, ended = content.cast("Q").tolist()
        return cls(began, starts, ended)

    @staticmethod
    def size(items: int) -> int:
        """Return the bytes that the stamps of `items` items take."""
        return 8 * (items + 2)
