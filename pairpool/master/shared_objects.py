"""The objects that the calls of one pool share: written to segments, sent to the workers that need them, forgotten."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TypeVar

from pairpool.master.event_loop import EventLoop
from pairpool.master.jobs.base import Batch
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.transport.protocol import UnsharePacket
from pairpool.transport.segments import Reader, Segment, Shared, closed_error
from pairpool.transport.serializer import Serializer
from pairpool.transport.shared_writer import write_segment

__all__ = ["SharedObjects"]

T = TypeVar("T")


class SharedObjects:
    """The shared objects of one pool."""

    def __init__(self, queue: JobQueue, workers: WorkerSet, loop: EventLoop, serializer: Serializer) -> None:
        self._queue = queue
        self._workers = workers
        self._loop = loop
        self._serializer = serializer
        self._segments: dict[int, weakref.ref[Segment]] = {}
        self._reference: weakref.ref[Reader] = weakref.ref(self)

    def share(self, thing: T) -> Shared[T]:
        """Write an object into a segment of this pool. Callable from any thread.

        Raise the exception of the pickling, and `ValueError` if the pool has ended.
        """
        names = self._serializer.names
        assert names is not None, "a pool knows the names that its workers inherit"
        segment = write_segment(thing, names)
        segment.add_reader(self._reference)
        self._segments[segment.ident] = weakref.ref(segment)
        if self._loop.ended:
            segment.close()
            raise ValueError("Pool not running")
        return Shared(segment, type(thing).__name__)

    def bring(self, handle: WorkerHandle, segments: Sequence[Segment], function: int | None = None) -> None:
        """Send a worker the segments that it does not have.

        Args:
            function: number of the function that needs the segments, if a function does.

        Raises:
            SegmentClosed: another thread has just closed one of them.
            OSError: the kernel cannot pass the descriptor on.
        """
        for segment in segments:
            if segment.ident not in handle.known_segments:
                segment.add_reader(self._reference)
                handle.post_segment(*segment.pack())
            if function is not None:
                handle.known_segments[segment.ident].add(function)

    def refuse_closed(self, batch: Batch) -> bool:
        """Fail items that need a function whose captured handle has been closed. Return whether there were any.

        Items that contain a closed handle themselves fail when they are pickled. Therefore pickles that were made
        before the handle was closed are dropped here.
        """
        if batch.encoded is not None and any(segment.is_closed for segment in batch.encoded.segments):
            batch.forget_encoding()
        closed = {
            function.number
            for function in self._queue.functions_of(batch)
            if any(segment.is_closed for segment in function.encoded.segments)
        }
        if closed:
            self._queue.fail_item_using(closed, batch, lambda _name, _index: closed_error())
        return bool(closed)

    # --- the end of a segment, and of all ---------------------------------------------------------

    def forget_segment(self, ident: int) -> None:
        """Let the workers that have a segment release it, too. Callable from any thread and from `__del__`."""
        self._segments.pop(ident, None)
        if not self._loop.ended:
            self._loop.call_or_submit(lambda: self._post_forget(ident))

    def _post_forget(self, ident: int) -> None:
        for handle in self._workers:
            if handle.known_segments.pop(ident, None) is not None and not handle.eof_sent:
                handle.post(UnsharePacket(ident))
                if handle.wants_room:
                    self._loop.watch_for_room(handle.channel.fileno(), True)

    def close(self) -> None:
        """Close all segments because the pool has ended."""
        for reference in list(self._segments.values()):
            segment = reference()
            if segment is not None:
                segment.close()
        self._segments.clear()
