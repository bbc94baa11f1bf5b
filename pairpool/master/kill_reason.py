"""The reason for which the pool itself ends a worker."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KillReason", "channel_misused", "work_not_begun", "work_returned"]


class KillReason(NamedTuple):
    """The reason, and what the worker was running then.

    Attributes:
        batch, item: the item that exceeded a limit, or the batch that is to blame; 0 if there is none.
        limit_s: the time limit in seconds; 0 if the reason is another one.
        blames_batch: whether an item of the batch is to blame, and it is not known which one. Each of them then runs
            again alone. If not, the item at which the scoreboard shows the worker is to blame.
    """

    batch: int
    item: int
    limit_s: float
    cause: str
    advice: str
    blames_batch: bool = False


def channel_misused(what: str, batch: int) -> KillReason:
    """Return the reason for a worker that sent something that no worker sends.

    Args:
        batch: number of the batch that the worker had begun; 0 for none.
    """
    cause = f"its channel was misused: {what}"
    advice = "look for code that writes to, reads from or closes descriptors that it has not opened"
    return KillReason(batch, 0, 0.0, cause, advice, blames_batch=batch > 0)


def work_returned() -> KillReason:
    """Return the reason for a worker that returns a batch again and again without running an item."""
    cause = "it returned its work again and again: a task changed the scoreboard, or lied in a report"
    return KillReason(0, 0, 0.0, cause, "look for code that writes to memory that it has not allocated")


def work_not_begun(seconds: float, batch: int) -> KillReason:
    """Return the reason for a worker that holds a batch and has not begun it.

    Args:
        batch: number of the batch whose items are to blame, because one of them has changed the scoreboard; 0 for none.
    """
    cause = f"it had been sent work and did not begin it within {seconds:g} s: it was stopped, or its packets were lost"
    advice = "look for a child of a task that reads from the channel of its worker"
    return KillReason(batch, 0, 0.0, cause, advice, blames_batch=batch > 0)
