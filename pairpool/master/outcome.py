"""Read the report of a worker: the value or the error of each item of a batch.

result packet = header + [stamps] + [failures] + values
                          Flag.STAMPED  Flag.FAILURES
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pairpool.linux.interrupts import is_own
from pairpool.transport import fd_passing, received_fds
from pairpool.transport.failures import Failure, Fault, error_for_each, unpack_failures
from pairpool.transport.payload import EACH, Entry, complete_items, load_all, load_item
from pairpool.transport.protocol import Flag, ResultPacket
from pairpool.transport.stamps import Stamps
from pairpool.transport.wire import ProtocolError

__all__ = ["BatchOutcome", "error_of", "read_outcome", "truncated_outcome", "without_first"]


class BatchOutcome(NamedTuple):
    """The outcome of each item of a batch, or of its first items.

    Attributes:
        values: the results; None for an item that failed.
        failed: the errors, by offset in the batch.
        retryable: the failures that another try may avoid: by value, or in a worker with room for the descriptors.
        stamps: the times of the items, if the worker noted them.
    """

    values: list[Any]
    failed: dict[int, BaseException]
    retryable: list[Failure]
    stamps: Stamps | None


def read_outcome(
    packet: ResultPacket, content: memoryview, has_a_reader: Callable[[int], bool] | None = None
) -> BatchOutcome:
    """Unpickle a report.

    Args:
        has_a_reader: for a report with descriptors: returns whether somebody wants the value of the item at this
            offset. The descriptors of other items are closed. For a report without descriptors it is None.

    Raises:
        ProtocolError: the content is not that of a report on this number of items.
    """
    failures: list[Failure] = []
    stamps = None
    if packet.flags & Flag.STAMPED:
        size = Stamps.size(packet.item_count)
        stamps, content = Stamps.unpack(content[:size]), content[size:]
        if not stamps.is_possible(time.monotonic_ns()):
            raise ProtocolError("a report has times that cannot be")
    if packet.flags & Flag.FAILURES:
        failures = unpack_failures(content[: packet.failures_size], packet.item_count)
        content = content[packet.failures_size :]
    values: list[Any] = []
    failed: dict[int, BaseException] = {}
    if not len(content):
        values = [None] * packet.item_count
    elif packet.format != EACH:
        try:
            values = load_all(packet.format, content)
        except BaseException as error:  # too little memory, or numpy is missing in this process
            if not is_own(error):
                raise
            values = [None] * packet.item_count
            failed = dict(enumerate(error_for_each(error, packet.item_count)))
    else:
        entries = complete_items(content, packet.item_count)
        values, failed = _read_each(entries, has_a_reader, has_descriptors=bool(packet.descriptors))
    if type(values) is not list or len(values) != packet.item_count:
        raise ProtocolError(f"a report of {packet.item_count} items has another number of values")
    for failure in failures:
        failed[failure.offset] = error_of(failure)
    retryable = [one for one in failures if one.missing is not None or one.fault == Fault.ROOM]
    return BatchOutcome(values, failed, retryable, stamps)


def _read_each(
    entries: list[Entry], has_a_reader: Callable[[int], bool] | None, *, has_descriptors: bool
) -> tuple[list[Any], dict[int, BaseException]]:
    """Unpickle results that were pickled one by one; return the values, and the errors by offset."""
    values: list[Any] = []
    failed: dict[int, BaseException] = {}
    for offset, (pickled, buffers, place) in enumerate(entries):
        is_read = has_a_reader is None or has_a_reader(offset)
        try:
            if has_descriptors:
                received_fds.begin(place)
            values.append(load_item(pickled, buffers) if pickled and is_read else None)
            if has_a_reader is not None:
                received_fds.settle()
        except BaseException as error:  # SystemExit included: a module may call `exit` when it is imported
            if not is_own(error):
                raise
            received_fds.undo()
            error.add_note("raised while the result of the task was unpickled")
            values.append(None)
            failed[offset] = error
    return values, failed


def truncated_outcome(packet: ResultPacket) -> BatchOutcome:
    """Return the outcome of a report whose descriptors were lost: an error for each item."""
    error = fd_passing.table_is_full("the result of the task could not be received")
    return BatchOutcome([None] * packet.item_count, dict(enumerate(error_for_each(error, packet.item_count))), [], None)


def without_first(outcome: BatchOutcome, count: int) -> BatchOutcome:
    """Return an outcome without its first `count` items."""
    failed = {offset - count: error for offset, error in outcome.failed.items() if offset >= count}
    retryable = [one._replace(offset=one.offset - count) for one in outcome.retryable if one.offset >= count]
    return BatchOutcome(outcome.values[count:], failed, retryable, None)


def error_of(failure: Failure) -> BaseException:
    """Return the exception that a worker described, with the remote traceback as its cause."""
    from pairpool import errors

    error: BaseException | None = None
    reason = f"{failure.kind} cannot be pickled"
    if failure.pickled is not None:
        try:
            error = pickle.loads(failure.pickled)
        except BaseException as problem:
            if not is_own(problem):
                raise
            reason = f"it could not be unpickled: {problem!r}"
    if failure.fault == Fault.RESULT:
        error = errors.encoding_error(failure.kind, failure.text, error)
    if not isinstance(error, BaseException):
        error = errors.encoding_error(reason, f"{failure.kind}: {failure.text}")
    return errors.with_cause(error, errors.remote_cause(failure.remote))
