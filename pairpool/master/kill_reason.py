"""The reason for which the pool itself ends a worker."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["Blame", "KillReason", "channel_misused", "work_not_begun", "work_returned"]


class Blame(enum.Enum):
    """The item that fails because its worker was ended."""

    POSITION = "the item at which the scoreboard shows the worker"
    BATCH = "an item of the batch that the worker ran. Each item runs again alone, until it is known which one"
    NOBODY = "none: the worker had not begun an item"


class KillReason(NamedTuple):
    """The reason, and the item that the worker was running then.

    Attributes:
        batch, item: the item that exceeded a limit. With `Blame.BATCH`: the number of the batch, and 0.
        limit_s: the time limit in seconds; 0 if the reason is another one.
    """

    batch: int
    item: int
    limit_s: float
    cause: str
    advice: str
    blame: Blame = Blame.POSITION


def channel_misused(what: str, batch: int) -> KillReason:
    """Return the reason for a worker that sent something that no worker sends.

    Args:
        batch: number of the batch that the worker had begun; 0 for none.
    """
    return KillReason(
        batch,
        0,
        0.0,
        f"its channel was misused: {what}",
        "look for code that writes to, reads from or closes descriptors that it has not opened",
        Blame.BATCH if batch else Blame.NOBODY,
    )


def work_returned() -> KillReason:
    """Return the reason for a worker that returns a batch again and again without running an item."""
    return KillReason(
        0,
        0,
        0.0,
        "it returned its work again and again: a task changed the scoreboard, or lied in a report",
        "look for code that writes to memory that it has not allocated",
        Blame.NOBODY,
    )


def work_not_begun(seconds: float) -> KillReason:
    """Return the reason for a worker that holds a batch and has not begun it."""
    return KillReason(
        0,
        0,
        0.0,
        f"it had been sent work and did not begin it within {seconds:g} s: it was stopped, or its packets were lost",
        "look for a child of a task that reads from the channel of its worker",
        Blame.NOBODY,
    )
