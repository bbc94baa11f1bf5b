"""What the calls of one pool share: segments made, brought to the workers that need them, and forgotten."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from pairpool.master.event_loop import EventLoop
from pairpool.master.functions import Function
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
    """The shared objects of one pool, and which of its workers know them."""

    def __init__(self, agenda: JobQueue, crew: WorkerSet, loop: EventLoop, codec: Serializer) -> None:
        self._agenda = agenda
        self._crew = crew
        self._loop = loop
        self._codec = codec
        self._made: dict[int, weakref.ref[Segment]] = {}
        self._reference: weakref.ref[Reader] = weakref.ref(self)

    def share(self, thing: T) -> Shared[T]:
        """Write an object into a segment of this pool; from any thread. Raises what says that it cannot be done."""
        names = self._codec.names
        assert names is not None, "a pool knows the names that its workers inherit"
        segment = write_segment(thing, names)
        segment.add_reader(self._reference)
        self._made[segment.ident] = weakref.ref(segment)
        if self._loop.ended:
            segment.close()
            raise ValueError("Pool not running")
        return Shared(segment, type(thing).__name__)

    def bring(self, member: WorkerHandle, segments: Sequence[Segment], function: int | None = None) -> None:
        """Post the segments that a worker does not know; `function` is the number of the one that needs them.

        Raises:
            SegmentClosed: one was closed by another thread, just now.
            OSError: the kernel cannot pass the descriptor on.
        """
        for segment in segments:
            if segment.ident not in member.segments:
                segment.add_reader(self._reference)
                header, passage = segment.pack()
                member.pass_on(header, passage)
                member.segments[segment.ident] = set()
            if function is not None:
                member.segments[segment.ident].add(function)

    def refuse_closed(self, batch: Batch, functions_of: Callable[[Batch], list[Function]]) -> bool:
        """Fail what needs a function that has captured a handle since closed; the rest comes by again.

        Items that hold such a handle themselves fail when they are pickled, which this sees to.
        """
        if batch.encoded is not None and any(segment.is_closed for segment in batch.encoded.segments):
            batch.encoded = None
        closed = {
            function.number
            for function in functions_of(batch)
            if any(segment.is_closed for segment in function.encoded.segments)
        }
        if not closed:
            return False
        if batch.function is not None:
            self._agenda.fail(batch, closed_error())
            return True
        offset = next(at for at, item in enumerate(batch.items) if item[0] in closed)
        victim = batch.part(offset, offset + 1)
        batch.job.replace(batch, batch.without(offset))
        self._agenda.requeue(batch.job)
        self._agenda.fail(victim, closed_error())
        return True

    # --- the end of a segment, and of all ---------------------------------------------------------

    def forget_segment(self, ident: int) -> None:
        """A segment is gone: have the workers that know it let go of it, too. From any thread, `__del__` included."""
        self._made.pop(ident, None)
        if not self._loop.ended:
            self._loop.call_or_submit(lambda: self._have_forgotten(ident))

    def _have_forgotten(self, ident: int) -> None:
        for member in self._crew:
            if member.segments.pop(ident, None) is not None and not member.dismissed:
                member.post(UnsharePacket(ident))
                if member.wants_room:
                    self._loop.watch_for_room(member.channel.fileno(), True)

    def close(self) -> None:
        """The pool has ended: no handle of it is good any more."""
        for reference in list(self._made.values()):
            segment = reference()
            if segment is not None:
                segment.close()
        self._made.clear()
