"""The reason for which the pool itself ends a worker."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KillReason"]


class KillReason(NamedTuple):
    """The limit that a worker exceeded, and the item that it was running then."""

    batch: int
    item: int
    limit_s: float
    """The time limit in seconds; 0 if another limit was exceeded."""
    cause: str
    advice: str
