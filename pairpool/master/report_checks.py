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

__all__ = ["WorkReturned", "check_ahead", "check_report"]

MAX_RETURNS = 20
"""How often a batch may come back without an item that was run. Functions and segments are sent again each time."""

_BUSY = (State.RUNNING, State.KEEPING, State.SAVING)
"""States of a worker that has more to do in its batch. It stores SENDING before the last report of the batch, and the
number of the next batch before it is at work again. So a reader that takes the state first sees no mix of both."""


class WorkReturned(Exception):
    """A worker returns a batch again and again without running an item."""


def check_report(handle: WorkerHandle, packet: ResultPacket) -> Batch:
    """Return the batch that a report is about.

    Raises:
        ProtocolError: the worker cannot have sent such a report.
        WorkReturned: the batch has come back too often.
    """
    batch = _first_held(handle, packet.batch)
    words = handle.slot.words
    known = batch.first - packet.first
    end = packet.first + packet.item_count
    if not batch.sent_from <= packet.first <= batch.first <= end <= batch.sent_until:
        raise ProtocolError(
            f"it reported items {packet.first} to {end - 1} of a batch whose items {batch.first} to "
            f"{batch.sent_until - 1} were not reported"
        )
    if packet.flags & Flag.PARTIAL:
        if packet.item_count < 1 or end >= batch.sent_until or end > batch.first + batch.count:
            raise ProtocolError("a partial report covers no item, or all of them")
    elif words[Word.STATE] in _BUSY and words[Word.BATCH] == batch.number:
        raise ProtocolError("it reported a whole batch while it ran an item of the batch")
    elif packet.item_count == known and batch.returns >= MAX_RETURNS:
        raise WorkReturned
    return batch


def check_ahead(handle: WorkerHandle, packet: DescriptorsPacket | ReceivedPacket) -> Batch:
    """Return the batch that a packet ahead of a report is about. Raise `ProtocolError` if the worker cannot send it."""
    batch = _first_held(handle, packet.batch)
    if isinstance(packet, DescriptorsPacket):
        if packet.function:
            raise ProtocolError("descriptors came for a function")
    elif batch.is_handed_over or batch.count != 1:
        raise ProtocolError("it confirmed a batch that needs no confirmation")
    return batch


def _first_held(handle: WorkerHandle, number: int) -> Batch:
    if not handle.held or handle.held[0].number != number:
        raise ProtocolError(f"it reported batch {number}, which it does not run")
    return handle.held[0]
