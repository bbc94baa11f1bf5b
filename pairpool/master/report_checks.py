"""Check a report against the batch that it is about.

`transport/protocol.py` checks each field of a packet by itself. This module checks what only the master can know: which
batch the worker holds, which items it got, and which of them it has reported.

1. A worker runs its batches in order. So a report is about the first batch that it holds.
2. A report begins at the first item that is not reported. Exception: a signal handler in the task can raise after the
   worker has sent a partial report and before it has noted that. Then these items come a second time.
3. A partial report ends before the end of the batch, because a later item runs.
4. While a worker runs an item, it sends no last report.
5. The last report can end before the end of the batch: at a limit that the master has set. It can be empty if a
   function or a segment had not arrived. A task can cause both by a change of the scoreboard. So the number of empty
   reports is bounded.
"""

from __future__ import annotations

from pairpool.master.jobs.base import Batch
from pairpool.master.worker_handle import WorkerHandle
from pairpool.scoreboard.board import State, Word
from pairpool.transport.protocol import DescriptorsPacket, Flag, ReceivedPacket, ResultPacket
from pairpool.transport.wire import ProtocolError

__all__ = ["WorkReturned", "check_ahead", "check_report", "first_held"]

MAX_RETURNS = 20
"""How often a batch may come back without an item that was run. Functions and segments are sent again each time."""

_NOT_REPORTING = (State.RUNNING, State.KEEPING, State.SAVING)
"""States of a worker that has more to do in its batch. It stores SENDING before the last report of the batch, and the
number of the next batch before it is at work again. So a reader that takes the state first sees no mix of both."""


class WorkReturned(Exception):
    """A worker returns a batch again and again without running an item."""


def check_report(batch: Batch, packet: ResultPacket, words: memoryview) -> None:
    """Check a report on the batch that a worker runs.

    Args:
        words: the worker's slot of the scoreboard.

    Raises:
        ProtocolError: the worker cannot have sent such a report.
        WorkReturned: the batch has come back too often.
    """
    is_partial = packet.flags & Flag.PARTIAL
    if is_partial or packet.first != batch.first or packet.item_count != len(batch.items):
        _check_part(batch, packet)
    if not is_partial and words[Word.STATE] in _NOT_REPORTING and words[Word.BATCH] == batch.number:
        raise ProtocolError("it reported a whole batch while it ran an item of the batch")


def _check_part(batch: Batch, packet: ResultPacket) -> None:
    """Check a report on other items than all of the batch; see `check_report`."""
    end = packet.first + packet.item_count
    if not batch.sent_from <= packet.first <= batch.first <= end <= batch.sent_until:
        raise ProtocolError(
            f"it reported items {packet.first} to {end - 1} of a batch whose items {batch.first} to "
            f"{batch.sent_until - 1} were not reported"
        )
    if packet.flags & Flag.PARTIAL:
        if packet.item_count < 1 or end >= batch.sent_until or end > batch.first + batch.count:
            raise ProtocolError("a partial report covers no item, or all of them")
    elif end == batch.first and batch.returns >= MAX_RETURNS:
        raise WorkReturned


def check_ahead(handle: WorkerHandle, packet: DescriptorsPacket | ReceivedPacket) -> Batch:
    """Return the batch that a packet ahead of a report is about. Raise `ProtocolError` if the worker cannot send it."""
    batch = first_held(handle, packet.batch)
    if isinstance(packet, DescriptorsPacket):
        if packet.function:
            raise ProtocolError("descriptors came for a function")
    elif batch.is_handed_over or batch.count != 1:
        raise ProtocolError("it confirmed a batch that needs no confirmation")
    return batch


def first_held(handle: WorkerHandle, number: int) -> Batch:
    """Return the first batch that a worker holds. Raise `ProtocolError` if that is not the one with this number."""
    if not handle.held or handle.held[0].number != number:
        raise ProtocolError(f"it reported batch {number}, which it does not run")
    return handle.held[0]
