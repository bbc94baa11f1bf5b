"""Reports in: receive the packets of the workers, unpickle the results, and give them to their jobs.

socket of the worker ──► ReportReader ── deliver ──► JobQueue
                               ├── finished workers, counts of reports ──► Supervisor
                               └── counts and times ──► Metrics, Sizer
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections.abc import Callable
from typing import Any

from pairpool.master.functions import Function
from pairpool.master.jobs.base import Batch, Job
from pairpool.master.kill_reason import KillReason, channel_misused, work_returned
from pairpool.master.outcome import BatchOutcome, read_outcome, truncated_outcome, without_first
from pairpool.master.parts import EngineParts
from pairpool.master.report_checks import WorkReturned, check_ahead, check_report, first_held
from pairpool.master.workers import WorkerHandle
from pairpool.scoreboard.board import Word
from pairpool.transport.channel import Cut, Lost
from pairpool.transport.failures import Failure, Fault
from pairpool.transport.protocol import (
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    InitFailedPacket,
    Packet,
    ReadyPacket,
    ReceivedPacket,
    ResultPacket,
)
from pairpool.transport.wire import ProtocolError

__all__ = ["ReportReader"]


PACKETS_PER_TURN = 256
"""Packets of one worker that a turn of the event loop handles at most, so that no worker can keep the master busy."""

PACKETS_AT_DEATH = 100_000
"""The same for a worker that has ended. A child of a task can still send, so the number is not unlimited."""


class ReportReader:
    """Receives the packets of the workers.

    A packet that no worker sends ends its worker (`channel_misused`). Other workers and calls go on.

    Args:
        flush: sends the packets that wait for a worker whose socket has room.

    Attributes:
        reports_handled: reports of whole batches that were handled.
        initializers_returned: workers whose initializer returned.
    """

    def __init__(self, parts: EngineParts, flush: Callable[[WorkerHandle], None]) -> None:
        self._queue = parts.queue
        self._workers = parts.workers
        self._watchdog = parts.watchdog
        self._loop = parts.loop
        self._serializer = parts.serializer
        self._metrics = parts.metrics
        self._flush = flush
        self.reports_handled = 0
        self.initializers_returned = 0

    def on_packets(self, handle: WorkerHandle, events: int) -> None:
        """React to an event of a worker's socket: it has packets, or room for some."""
        if events & select.EPOLLOUT and not handle.eof_sent:
            self._flush(handle)
        if events & ~select.EPOLLOUT:
            self.drain(handle, everything=False)

    def drain(self, handle: WorkerHandle, *, everything: bool) -> None:
        """Process the packets of one worker: as many as it owes, or all that have arrived."""
        workers = self._workers
        for _ in range(PACKETS_AT_DEATH if everything else PACKETS_PER_TURN):
            if handle.eof_sent or handle.is_misused or self._loop.ended:  # another thread may change them
                break
            workers.begin_update(handle)
            received = None
            try:
                received = handle.receive()
                if received is None or not self._on_packet(handle, *received):
                    break
            except Cut as cut:
                self._on_cut(handle, cut.packet)
                continue
            except Lost:
                self._on_misuse(handle, "it was shut down")
            except ProtocolError as error:
                for fd in () if received is None else received[2]:
                    os.close(fd)
                self._on_misuse(handle, str(error))
            except WorkReturned:
                self._end(handle, work_returned())
            workers.end_update()
            if not handle.held and not everything:
                break
        workers.end_update()

    def retire_shut_down(self) -> None:
        """Retire the workers whose channels a task has shut down, so that nothing can be sent to them.

        Such a worker still reports the batch that it runs, which need not be the one to blame.
        """
        shut_down = self._workers.troubles.shut_down
        for handle in [one for one in self._workers if one in shut_down]:
            handle.retire()
            self._queue.put_back(handle.recall())
            self._workers.place(handle)
            if not handle.held:
                self._workers.finish(handle)
        shut_down.clear()

    def _on_misuse(self, handle: WorkerHandle, what: str) -> None:
        """End a worker because a task has misused its channel."""
        head = handle.held[0].number if handle.held else 0
        has_begun = handle.slot.words[Word.BATCH] == head
        self._end(handle, channel_misused(what, head if has_begun else 0))

    def _end(self, handle: WorkerHandle, reason: KillReason) -> None:
        """Read no more of a worker, and kill it. The supervisor acts on its death."""
        handle.stop_reading()
        self._loop.unwatch(handle.channel.fileno())
        self._workers.kill_for(handle, handle.kill_reason or reason)

    def _on_packet(self, handle: WorkerHandle, packet: Packet, payload: memoryview, fds: list[int]) -> bool:
        """Process one packet. Return whether the packets behind it may be read."""
        if type(packet) is ResultPacket:
            held = handle.held
            if not held or held[0].number != packet.batch:
                if handle.inconsistent:
                    return False  # an exception interrupted the engine after an earlier report had been received
                self._put_back_lost(handle, packet.batch)
                first_held(handle, packet.batch)
            batch = held[0]
            check_report(batch, packet, handle.slot.words)
            self._on_result(handle, batch, packet, self._read(handle, packet, payload, fds))
        elif isinstance(packet, DescriptorsPacket):
            check_ahead(handle, packet)
            handle.fd_inbox.keep(packet, fds)
        elif isinstance(packet, DiscardDescriptorsPacket):
            handle.fd_inbox.discard(packet)
        elif isinstance(packet, ReceivedPacket):
            # The descriptors of the item now belong to the worker, which is about to run the item.
            check_ahead(handle, packet).hand_over()
        elif isinstance(packet, ReadyPacket) and not handle.is_ready:
            handle.initializer_returned()
            self.initializers_returned += 1
        elif isinstance(packet, InitFailedPacket) and not handle.is_ready:
            handle.initializer_failed(bytes(payload).decode("utf-8", "replace"))
            return False
        else:
            raise ProtocolError(f"it sent {packet}")
        return True

    def _put_back_lost(self, handle: WorkerHandle, number: int) -> None:
        """Put batches back whose packets were lost, which a report on a later batch shows.

        A child of a task can have read them. The task that the worker runs can also have lied. Then the worker has not
        read the later batch, so the recall takes that back, and the report is refused.
        """
        if handle.holds(number) and handle.slot.words[Word.BATCH] != handle.held[0].number:
            self._queue.put_back(handle.recall())
            if handle.holds(number):
                self._queue.put_back(handle.drop_before(number))

    def _on_cut(self, handle: WorkerHandle, packet: Packet) -> None:
        """Process a packet whose descriptors are lost because this process has no room for them."""
        if isinstance(packet, DescriptorsPacket):
            handle.fd_inbox.lose(packet)
        elif isinstance(packet, ResultPacket):
            handle.retire()  # the worker assumes that the master has a shared memory whose descriptor may be lost
            batch = first_held(handle, packet.batch)
            check_report(batch, packet, handle.slot.words)
            self._on_result(handle, batch, packet, truncated_outcome(packet))

    def _read(self, handle: WorkerHandle, packet: ResultPacket, payload: memoryview, fds: list[int]) -> BatchOutcome:
        outcome = BatchOutcome([], {}, [], None)
        if not packet.descriptors:

            def use(content: memoryview) -> None:
                nonlocal outcome
                outcome = read_outcome(packet, content)

            handle.content(packet, payload, fds, use)
            return outcome

        batch = handle.held[0]

        def use_with_descriptors(content: memoryview) -> None:
            nonlocal outcome
            outcome = read_outcome(packet, content, functools.partial(batch.job.has_a_reader, batch))

        with handle.fd_inbox.gather(packet, fds) as received:
            handle.content(packet, payload, fds, use_with_descriptors)
        return truncated_outcome(packet) if received.is_cut else outcome

    # --- results --------------------------------------------------------------------------------

    def _on_result(self, handle: WorkerHandle, batch: Batch, packet: ResultPacket, outcome: BatchOutcome) -> None:
        if self._loop.ended:
            return  # the caller's own code ended the pool while its result was unpickled
        known = batch.first - packet.first
        if known:  # these items come a second time, see `report_checks.py`
            outcome = without_first(outcome, known)
            packet = packet._replace(item_count=packet.item_count - known)
        values, failed, missing, stamps = outcome
        self._metrics.batch_ran(handle, batch, packet, stamps, failed)
        if packet.flags & Flag.PARTIAL:
            front = batch.cut(packet.item_count)
            failed.update(front.unpicklable)
            self._deliver(front, values, failed, missing)
            return
        self._on_whole_batch(handle, batch, packet, outcome)
        if self._loop.over.is_set():
            return  # a callback ended the pool
        handle.finish_first()
        self._after_result(handle, batch)

    def _on_whole_batch(self, handle: WorkerHandle, batch: Batch, packet: ResultPacket, outcome: BatchOutcome) -> None:
        """Give the last report of a batch to its job. The worker may have stopped at a limit, before the end."""
        values, failed, missing, _stamps = outcome
        job, count = batch.job, packet.item_count
        job.sizer.learn(count, packet.took_ns, 1000 * packet.sharing_took_us)
        job.sizer.learn_bytes(max(1, count), packet.size)
        if count < batch.count:
            self._put_back_rest(batch, count)
        elif count > batch.count:
            del values[batch.count :]
        failed.update(batch.unpicklable)
        if missing and missing[0].fault == Fault.ROOM:
            self._on_no_room_for_fds(handle, batch, values, failed)
        elif batch.count:
            self._deliver(batch, values, failed, missing)
        else:
            job.close_empty(batch)

    def _put_back_rest(self, batch: Batch, count: int) -> None:
        """Put the items back that a worker has not begun. They get a new number, so no late report can mean them."""
        rest = batch.keep(count)
        if not count:
            rest.returned_like(batch)
        self._queue.put_back([rest])

    def _deliver(
        self, batch: Batch, values: list[Any], failed: dict[int, BaseException], missing: list[Failure]
    ) -> None:
        """Give results to their job. Items that need a name which the worker did not find run again by value."""
        if missing and not batch.by_value:
            self._try_by_value(batch, values, failed, missing)
        else:
            self._queue.deliver(batch, values, failed)

    def _after_result(self, handle: WorkerHandle, batch: Batch) -> None:
        self.reports_handled += 1
        if self._queue.functions.crash_counts:
            self._queue.functions.clear_crash_counts(batch.function_numbers())
        if handle.fd_inbox.early:
            handle.fd_inbox.close()
        handle.clear_limit()
        self._workers.unwatch(handle)
        if self._watchdog.is_too_large(handle):
            handle.retire()
        if handle.held:
            self._workers.started(handle, handle.held[0], time.monotonic())
            self._metrics.batch_began(handle, handle.held[0])
        elif handle.retiring:
            self._workers.finish(handle)
        self._workers.place(handle)

    def _on_no_room_for_fds(
        self, handle: WorkerHandle, batch: Batch, values: list[Any], failed: dict[int, BaseException]
    ) -> None:
        """Send each item of a batch by itself, because the worker had no room for the descriptors of all of them.

        The worker is replaced, so that other workers run the items.
        """
        handle.retire()
        if batch.count > 1:
            again = sorted(failed.keys() - batch.unpicklable.keys())
            self._queue.deliver_except(again, batch, values, failed, Batch.mark_individual)
        else:
            self._queue.deliver(batch, values, failed)

    # --- by value after all ---------------------------------------------------------------------

    def _try_by_value(
        self, batch: Batch, values: list[Any], failed: dict[int, BaseException], missing: list[Failure]
    ) -> None:
        """Run items again by value, because the worker did not find something by name."""
        assert self._serializer.names is not None
        for failure in missing:
            self._serializer.names.distrust(failure.missing or "")
        again = sorted({failure.offset for failure in missing} - batch.unpicklable.keys())
        if any(failure.fault == Fault.FUNCTION for failure in missing):
            try:
                self._renew_functions(batch.job, batch)
            except Exception:
                again = []  # the function cannot travel by value either: the error of the worker stands
        self._queue.deliver_except(again, batch, values, failed, Batch.mark_by_value)

    def _renew_functions(self, job: Job, batch: Batch) -> None:
        """Pickle the functions of a batch by value, under new numbers."""
        functions = self._queue.functions
        if job.function is not None:
            if batch.function is job.function:
                job.use_function(functions.again_by_value(job.function))
                job.function.add_uses()
            return
        renewed: dict[int, Function] = {}
        items = list(batch.items)
        for position, (number, *arguments) in enumerate(items):
            old = functions.by_number(number)
            if number not in renewed:
                renewed[number] = functions.again_by_value(old)
            renewed[number].add_uses()
            old.remove_uses()
            items[position] = (renewed[number].number, *arguments)
        batch.replace_functions(items)
