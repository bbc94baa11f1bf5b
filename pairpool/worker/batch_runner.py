"""Run the items of a batch, and report what became of each.

    items ─► loop: store the index, call, keep the value ─► pickle the values ─► report
                          │ REPORT_SIGNAL
                          └──► partial report of the items before the one that runs

An item can damage its own outcome only. An exception becomes the outcome of the item. If the process dies, the
scoreboard shows the index of the item, and in `Word.STATE` the step that the worker was in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from operator import length_hint
from typing import Any

from pairpool.linux import children
from pairpool.scoreboard.board import NOTHING, State, Word
from pairpool.transport import segments
from pairpool.transport.failures import Failure, Fault, describe_failure, describe_result
from pairpool.transport.payload import Encoded
from pairpool.transport.protocol import BatchPacket, Flag, Mode
from pairpool.transport.serializer import Serializer
from pairpool.transport.stamps import Stamps
from pairpool.worker.functions import BrokenFunction, FunctionFailed, FunctionTable, StatefulFunction, release
from pairpool.worker.loading import LoadedItems, Missing
from pairpool.worker.loops import ResultKeeper, is_in_task, run_limited, run_short, run_timed
from pairpool.worker.own_process import OwnProcess
from pairpool.worker.reports import Report, ReportSender

__all__ = ["BatchRunner"]

SHORT_FROM_ITEMS = 256
"""Items of a batch from which on each is so short that a look at the limit would cost as much as the item."""

TIMED_UP_TO_ITEMS = 16
"""Items of a batch up to which the start of each is stored. In larger batches items are too short for a clock."""

STAMPED_FROM_NS = 200_000
"""Nanoseconds that a batch has to take for the starts of its items to be worth sending."""


class BatchRunner:
    """Runs one batch after the other.

    Args:
        words: the worker's slot of the scoreboard.
        own: checked when an item raises, because the task may have forked.
    """

    def __init__(
        self,
        words: memoryview,
        serializer: Serializer,
        functions: FunctionTable,
        sender: ReportSender,
        own: OwnProcess,
    ) -> None:
        self._words = words
        self._serializer = serializer
        self._functions = functions
        self._sender = sender
        self._own = own
        self._keeper = ResultKeeper(words, serializer, self._fail_result)
        self._failures: list[Failure] = []
        self._sharing_took_ns = 0
        self._running: tuple[BatchPacket, list[Any]] | None = None
        self._reported = 0  # items of the batch that partial reports have reported
        self._done = self._failed = 0
        self._remaining: Any = None  # the iterator of `run_short`
        self._loop_items: Any = None  # the iterator of the loop that runs

    def run(self, packet: BatchPacket, loaded: LoadedItems, began: int) -> None:
        """Run a batch and report it.

        Args:
            began: when the packet arrived, in monotonic ns.
        """
        words = self._words
        self._failures, self._sharing_took_ns = loaded.failures, loaded.sharing_took_ns
        is_ready = self._is_ready(packet, loaded)
        if packet.flags & Flag.CONFIRM and is_ready and not self._needs_another_try(packet, loaded):
            self._sender.confirm(packet.batch)
        values: list[Any] = []
        is_timed = packet.flags & Flag.TIMED
        words[Word.ITEM] = NOTHING  # now, because a reader must not take the item unpickled last for the one that runs
        if is_timed:
            words[Word.STARTED] = time.monotonic_ns()
        words[Word.STATE] = State.RUNNING
        self._reported = 0
        self._keeper.begin_batch(values, packet.item_count, packet.flags)
        if is_ready:
            self._running = packet, values
            self._run_items(packet, loaded, values)
        self._running = None
        ended = time.monotonic_ns()
        if is_timed:
            words[Word.STARTED] = ended
        words[Word.STATE] = State.SAVING
        words[Word.ITEM] = NOTHING
        self._report(packet, values, began, ended)

    def end_loop_in_child(self) -> None:
        """End the loop after the present item, in a child that the item has forked."""
        self._running = None
        if self._loop_items is not None:
            self._loop_items.__setstate__(sys.maxsize)

    def refuse(self, packet: BatchPacket, error: OSError) -> None:
        """Report all items of a batch as failed, because this process can open no more files."""
        failure = describe_failure(self._serializer, 0, Fault.ROOM, error)
        failures = [failure._replace(offset=offset) for offset in range(packet.item_count)]
        self._sender.send(Report(packet.batch, packet.first, packet.item_count), None, failures)

    def _is_ready(self, packet: BatchPacket, loaded: LoadedItems) -> bool:
        """Whether all functions and segments of a batch are there. If not, the batch returns with nothing done.

        The master can recall the packet with a function or a segment just before this worker reads the batch.
        """
        if segments.take_missing():
            return False
        if packet.mode != Mode.CALL:
            return packet.function in self._functions
        return all(call is Missing or call[0] in self._functions for call in loaded.items)

    def _needs_another_try(self, packet: BatchPacket, loaded: LoadedItems) -> bool:
        """Whether the only item of a batch, or its function, was not unpickled: the master may send it by value."""
        if self._failures:
            return True
        number = loaded.items[0][0] if packet.mode == Mode.CALL else packet.function
        return isinstance(self._functions[number], BrokenFunction)

    # --- the items ------------------------------------------------------------------------------

    def _run_items(self, packet: BatchPacket, loaded: LoadedItems, values: list[Any]) -> None:
        """Run the items in order. Append one value for each; the value of a failed item has no meaning."""
        items, function = loaded.items, self._function_of(packet)
        if loaded.has_missing:
            plain = function
            function = lambda item: None if item is Missing else plain(item)  # noqa: E731
        is_timed = packet.flags & (Flag.TIMED | Flag.STAMPED)
        remaining = self._loop_items = iter(items)
        loop = run_timed if is_timed or packet.item_count <= TIMED_UP_TO_ITEMS else run_limited
        if packet.item_count >= SHORT_FROM_ITEMS and not is_timed:
            self._remaining = remaining
            self._words[Word.BOUND] = packet.first + packet.item_count
            loop = run_short
        while True:
            try:
                loop(function, remaining, self._words, packet.first + len(values), values, self._keeper)
                break
            except BaseException as error:
                self._own.check_process(error)
                taken = len(items) - length_hint(remaining)
                if len(values) == taken:  # a signal handler raised between two items: the error counts for the first
                    values.pop()
                if isinstance(error, FunctionFailed):
                    self._failures.append(error.failure._replace(offset=len(values)))
                else:
                    self._failures.append(describe_failure(self._serializer, len(values), Fault.RAISED, error))
            values.append(self._keeper.nothing)
        self._remaining = self._loop_items = None

    def _function_of(self, packet: BatchPacket) -> Callable[[Any], Any]:
        """Return the function of a batch as a function of one argument."""
        if packet.mode == Mode.CALL:
            return self._call
        function = self._functions[packet.function]
        if type(function) is StatefulFunction and function.is_large:
            began = time.monotonic_ns()
            try:
                function = function.load()
            except BaseException as error:
                function = BrokenFunction(describe_failure(self._serializer, 0, Fault.FUNCTION, error))
            self._sharing_took_ns += time.monotonic_ns() - began
        if packet.mode == Mode.STAR and type(function) is not BrokenFunction:
            return lambda item: function(*tuple(item))
        return function  # type: ignore[no-any-return]

    def _call(self, item: tuple[Any, ...]) -> Any:
        if len(item) == 3:
            number, args, kwds = item
        else:
            number, (args, kwds) = item
        self._words[Word.FUNCTION] = number
        return self._functions[number](*args, **kwds)

    # --- partial reports ------------------------------------------------------------------------

    def on_report_signal(self, _number: int, frame: Any) -> None:
        """Report the finished items of the batch while a later item runs; the handler of `REPORT_SIGNAL`.

        1. Python calls a handler between two steps of the main thread.
        2. If these are steps of the item's own code, no other code works on the values, and they are reported.
        3. Otherwise the handler does nothing, and the master sends the signal again.
        4. The signal can come again while this handler works. `_running` is None meanwhile, so the second call returns.
        """
        running, self._running = self._running, None
        if running is None:
            return
        try:
            if self._remaining is not None and self._words[Word.LIMIT] != NOTHING:
                self._stop_short(running[0])
            if is_in_task(frame):
                self._report_finished(*running)
        finally:
            self._running = running

    def _stop_short(self, packet: BatchPacket) -> None:
        """Begin no further item of `run_short`, and store the index of the first that is not begun."""
        remaining, self._remaining = self._remaining, None
        left = length_hint(remaining)
        remaining.__setstate__(sys.maxsize)
        self._words[Word.BOUND] = packet.first + packet.item_count - left

    def _report_finished(self, packet: BatchPacket, values: list[Any]) -> None:
        """Report the items that have ended since the last report."""
        done, finished = self._reported, values[self._reported :]
        if not finished:
            return
        finished = self._keeper.take(finished)
        item = self._words[Word.ITEM]
        failures = [one._replace(offset=one.offset - done) for one in self._failures if one.offset < len(values)]
        first = packet.first + done
        encoded = self._save(packet, first, finished, failures)
        self._words[Word.ITEM] = item
        report = Report(packet.batch, first, len(finished), is_partial=True)
        try:
            self._sender.send(report, encoded, failures, self._take_stamps(packet, len(finished), 0, 0))
        except (OSError, MemoryError):
            if encoded is not None and encoded.fds is not None:
                encoded.fds.give_back()
            return  # the report at the end of the batch covers these items, too
        self._reported = len(values)
        self._failures = [one for one in self._failures if one.offset >= len(values)]
        self._count(len(finished), len(failures))
        values[done:] = [None] * len(finished)
        _drop(finished, encoded)

    # --- the report -----------------------------------------------------------------------------

    def _count(self, done: int, failed: int) -> None:
        """Show items that have ended. The counts are kept here, because a task can overwrite the scoreboard."""
        self._done += done
        self._failed += failed
        self._words[Word.DONE], self._words[Word.FAILED] = self._done, self._failed

    def _report(self, packet: BatchPacket, values: list[Any], began: int, ended: int) -> None:
        failures, self._failures = self._failures, []
        kept, values = values, self._keeper.take(values)
        self._keeper.begin([])
        if values is not kept:
            kept.clear()  # `_drop` needs the only references, which are in `values`
        first = packet.first + self._reported
        if self._reported:
            del values[: self._reported]
            failures = [one._replace(offset=one.offset - self._reported) for one in failures]
        count = len(values)
        failures = [failure for failure in failures if failure.offset < count]  # later items return without being run
        took = time.monotonic_ns() - began
        encoded = self._save(packet, first, values, failures)
        _drop(values, encoded)
        self._count(count, len(failures))
        children.flush_output()
        report = Report(packet.batch, first, count, took, self._sharing_took_ns // 1000)
        stamps = self._take_stamps(packet, count, began, ended)
        try:
            self._sender.send(report, encoded, failures, stamps)
        except (OSError, MemoryError) as error:
            lost = describe_failure(self._serializer, 0, Fault.RAISED, error)
            self._sender.send(report, None, [lost._replace(offset=offset) for offset in range(count)])

    def _save(self, packet: BatchPacket, first: int, values: list[Any], failures: list[Failure]) -> Encoded | None:
        """Pickle values; the failures of those that cannot be pickled are added to `failures`."""
        if not values:
            return None

        def fail(offset: int, error: BaseException) -> None:
            failures.append(describe_result(self._serializer, offset, error, values[offset]))

        def mark(offset: int) -> None:
            self._words[Word.ITEM] = first + offset

        return self._serializer.encode(
            values, fail, mark=mark, may_go_by_value=bool(packet.flags & Flag.BY_VALUE), are_settled=True
        )

    def _fail_result(self, offset: int, error: BaseException, value: Any) -> None:
        """Note that a value could not be pickled directly after its item had run."""
        self._failures.append(describe_result(self._serializer, offset, error, value))

    def _take_stamps(self, packet: BatchPacket, count: int, began: int, ended: int) -> Stamps | None:
        """Return the starts of the first `count` items that were not reported, if they are worth sending.

        A batch of many short items has no starts. For one item, or for few short ones, the time of the batch is enough.
        """
        if not packet.flags & Flag.STAMPED and began and (count < 2 or ended - began < STAMPED_FROM_NS):
            return None
        starts = self._keeper.take_stamps(count)
        if not count or len(starts) < count:
            return None
        following = self._keeper.stamps
        return Stamps(began or starts[0], starts, following[0] if following else ended or time.monotonic_ns())


def _drop(values: list[Any], encoded: Encoded | None) -> None:
    """Drop values that were pickled. Sockets and files among them are closed with their last references."""
    if encoded is None or encoded.fds is None:
        values.clear()
        return
    release(values)
    for _place, fd in encoded.fds.close_after_send:
        fd.close()
