"""Batches out: choose a worker for each batch, pickle the batch and send it.

    JobQueue ── next_batch ──► Dispatcher ── encode ──► Serializer
                                   │
                                   └── functions, segments, batch ──► socket of the worker

Reports come back through `reports.py`. `balancer.py` moves work from busy workers to idle ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pairpool.master import call_errors
from pairpool.master.balancer import Balancer
from pairpool.master.functions import Function
from pairpool.master.jobs.base import Batch, Job
from pairpool.master.jobs.batch_size import LONE_START_NS, MANY_ITEMS, UNBOUNDED
from pairpool.master.jobs.map import MapJob
from pairpool.master.parts import EngineParts
from pairpool.master.shared_objects import SharedObjects
from pairpool.master.worker_channel import WorkerChannel
from pairpool.master.workers import SOON_DONE_WITHIN_S, WorkerHandle
from pairpool.transport.payload import Encoded
from pairpool.transport.protocol import BatchPacket, Flag, FunctionPacket
from pairpool.transport.segments import Segment, SegmentClosed

__all__ = ["FD_RETRY_INTERVAL_S", "Dispatcher"]

FD_RETRY_INTERVAL_S = 0.002
"""Seconds between two tries to send descriptors while too many are in flight: no event tells when some are read."""

BATCHES_AHEAD = 6
"""Batches that a worker may hold for a stream whose reader is busy."""

BATCHES_AHEAD_WHILE_GROWING = 2
"""The same while batches still grow, because the next batch will carry more items in one packet."""

BATCHES_AHEAD_UNREAD = 4
"""The same while batches grow and no caller waits for the first of them."""

LETHAL_CRASHES = 3
"""Workers that may die in a row while they unpickle a function. Then the function counts as the cause."""


class Dispatcher:
    """Sends batches to the workers that have room.

    Args:
        maxtasks: tasks after which a worker is replaced; None for no limit.

    Attributes:
        holds_back: whether work waits although workers are idle, because other workers will soon be done.
    """

    def __init__(
        self, parts: EngineParts, balancer: Balancer, shared_objects: SharedObjects, maxtasks: int | None
    ) -> None:
        self._queue = parts.queue
        self._workers = parts.workers
        self._watchdog = parts.watchdog
        self._loop = parts.loop
        self._serializer = parts.serializer
        self._shared_objects = shared_objects
        self._metrics = parts.metrics
        self._scoreboard = parts.scoreboard
        self._balancer = balancer
        self._maxtasks = maxtasks
        self.holds_back = False
        self._leader_stays = True

    # --- which worker ---------------------------------------------------------------------------

    def dispatch(self, leader_stays: bool) -> None:
        """Send the batches that workers have room for.

        Args:
            leader_stays: whether a thread waits in the loop and sends the rest later. If not, all that fits is sent.
        """
        queue, workers = self._queue, self._workers
        for channel in list(workers.troubles.fd_blocked):
            self.flush(channel)
        self.holds_back = False
        self._leader_stays = leader_stays
        idle = len(workers.members) + 1
        while True:
            while (first := queue.first) is not None and (handle := self._with_room(first)) is not None:
                batch = queue.next_batch(min(workers.size, self._spread(first)), self._allowance(handle))
                if batch is None or not self._send(batch, self._with_room):
                    break
            self._run_ahead()
            if not (0 < len(workers.empty) < idle and queue.unfinished):
                return
            idle = len(workers.empty)  # repeat only if the batches that come back now reach one of the idle workers
            found, is_held_back = self._balancer.recall_for_idle(self._spread)
            self.holds_back = self.holds_back or is_held_back
            if not found:
                return

    def _spread(self, job: Job) -> int:
        if not self._leader_stays:
            return UNBOUNDED
        return job.sizer.spread(self._workers.cores, time.monotonic_ns(), many=job.has_at_least(MANY_ITEMS))

    def _with_room(self, job: Job) -> WorkerHandle | None:
        handle = self._workers.with_room(self._spread(job), time.monotonic())
        self.holds_back = handle is None and bool(self._workers.empty)
        return handle

    def retry_after(self) -> float:
        """Return the seconds after which work that is held back is considered again."""
        first = self._queue.first
        return SOON_DONE_WITHIN_S if first is None or first.sizer.is_known else LONE_START_NS / 1e9

    def _run_ahead(self) -> None:
        """Fill the workers' sockets with batches of streams, as far as a stream may be ahead of its reader.

        A reader that computes between two results does not drive the loop meanwhile. The workers go on with the
        batches in their sockets.
        """
        for job in self._queue.streams():
            while (handle := self._least_loaded(job)) is not None:
                batch = job.take(min(self._workers.size, self._spread(job)), self._allowance(handle))
                if batch is None or not self._send(batch, self._least_loaded):
                    break

    def _least_loaded(self, job: Job) -> WorkerHandle | None:
        ahead = BATCHES_AHEAD
        if job.sizer.grows:
            ahead = BATCHES_AHEAD_WHILE_GROWING if self._leader_stays else BATCHES_AHEAD_UNREAD
        return self._workers.least_loaded(self._spread(job), time.monotonic(), ahead)

    def _allowance(self, handle: WorkerHandle) -> int:
        """Return how many items a worker may still get before it is replaced."""
        return UNBOUNDED if self._maxtasks is None else max(1, self._maxtasks - handle.tasks_sent)

    # --- one batch ------------------------------------------------------------------------------

    def _send(self, batch: Batch, choose: Callable[[Job], WorkerHandle | None]) -> bool:
        """Pickle a batch, which runs the caller's code, and send it to a worker that still has room afterwards.

        Return False if no worker has room. The batch then waits in its job.
        """
        batch.use_current_function()
        if self._refuse_lethal(batch):
            return True
        if Segment.closures and self._shared_objects.refuse_closed(batch):
            return True
        encoded = batch.encoded
        if encoded is None:
            try:
                encoded = batch.encode(self._serializer)
            except Exception as error:
                self._queue.fail(batch, error)
                return True
            rest = batch.fit(encoded)
            if rest is not None:
                self._queue.put_back([rest])
        if len(batch.unpicklable) == batch.count:
            self._queue.deliver(batch, [None] * batch.count, batch.unpicklable)
            return True
        # While descriptors cannot be sent, keep no copies of further descriptors than necessary.
        is_fd_blocked = encoded.fds is not None and bool(self._workers.troubles.fd_blocked)
        handle = None if is_fd_blocked else choose(batch.job)
        if handle is None:
            if isinstance(batch.job, MapJob) and any(type(piece) is memoryview for piece in encoded.pieces):
                batch.forget_encoding()  # it refers to arrays of the caller, which may change before the batch goes out
            self._queue.put_back([batch])
            return False
        self._workers.begin_update(handle)
        self._give(handle, batch, encoded)
        self._workers.end_update()
        return True

    def _refuse_lethal(self, batch: Batch) -> bool:
        """Fail items that need a function which kills every worker that unpickles it. Return whether there were any."""
        crash_counts = self._queue.functions.crash_counts
        if not crash_counts:
            return False
        lethal = {number for number in batch.function_numbers() if crash_counts.get(number, 0) >= LETHAL_CRASHES}
        if lethal:
            self._queue.fail_item_using(lethal, batch, call_errors.lethal_function)
        return bool(lethal)

    def _give(self, handle: WorkerHandle, batch: Batch, encoded: Encoded) -> None:
        functions = self._queue.functions_of(batch)
        if not handle.held:
            self._workers.started(handle, batch, time.monotonic())
            self._metrics.batch_began(handle, batch)
        handle.hold(batch)
        timeout = batch.job.options.task_timeout
        if timeout is not None:
            self._watchdog.expect(timeout / 2)
        try:
            if encoded.segments:
                self._shared_objects.bring(handle, encoded.segments)
            for function in functions:
                if function.number not in handle.known_functions:
                    self._teach(handle, function)
            handle.post(self._packet(batch, encoded, functions), encoded.pieces, encoded.fds)
        except (OSError, SegmentClosed) as error:
            self._take_away(handle, batch, error)
            return
        sizer = batch.job.sizer
        sizer.learn_bytes(batch.count, encoded.size - encoded.shared)
        batch.forget_encoding()
        if self._maxtasks is not None:
            handle.count_sent(1 if sizer.chunksize is not None else batch.count, self._maxtasks)
        if handle.wants_room:
            self._loop.watch_for_room(handle.channel.fileno(), True)
        self._workers.place(handle)

    def _take_away(self, handle: WorkerHandle, batch: Batch, error: OSError | SegmentClosed) -> None:
        """Undo `_give` because the batch could not be sent.

        The kernel has no memory or no descriptor left (`OSError`), or another thread has just closed a segment.
        """
        handle.drop(batch)
        self._workers.unwatch(handle)
        self._workers.place(handle)
        if isinstance(error, OSError):
            self._queue.fail(batch, error)
        else:
            self._queue.put_back([batch])  # next time, `refuse_closed` fails the items that need the segment

    def _packet(self, batch: Batch, encoded: Encoded, functions: list[Function]) -> BatchPacket:
        job = batch.job
        flags = Flag.SPIN if self._workers.has_a_core_free() else 0
        if self._metrics.trace:
            flags |= Flag.STAMPED
        if encoded.by_value or any(function.by_value for function in functions):
            flags |= Flag.BY_VALUE
        if job.options.task_timeout is not None:
            flags |= Flag.TIMED
        if batch.close_after_send and not job.options.retries:
            flags |= Flag.CONFIRM
        return BatchPacket(
            flags=flags,
            mode=job.mode,
            format=encoded.format,
            function=functions[0].number,
            batch=batch.number,
            first=batch.first,
            item_count=batch.count,
            descriptors=0 if encoded.fds is None else len(encoded.fds.fds),
            size=encoded.size,
        )

    # --- functions ------------------------------------------------------------------------------

    def _teach(self, handle: WorkerHandle, function: Function) -> None:
        """Send a function to a worker that does not have it."""
        self._scoreboard.name_function(function.number, function.name)
        encoded = function.encoded
        self._shared_objects.bring(handle, encoded.segments, function.number)
        packet = FunctionPacket(
            flags=Flag.HAS_STATE if function.has_state else 0,
            function=function.number,
            descriptors=0 if encoded.fds is None else len(encoded.fds.fds),
            size=encoded.size,
        )
        handle.post_function(packet, encoded)

    def forget(self, numbers: list[int]) -> None:
        """Let every worker drop functions that no call needs any more."""
        if not numbers:
            return
        for handle in self._workers:
            for number in numbers:
                if number in handle.known_functions and not handle.eof_sent:
                    handle.post_forget(number)

    def flush(self, channel: WorkerChannel) -> None:
        """Send the packets that wait for room in a worker's socket."""
        channel.flush()
        self._loop.watch_for_room(channel.channel.fileno(), channel.wants_room)
