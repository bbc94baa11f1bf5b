"""Results as a stream: what `imap` and `imap_unordered` return.

    chain ◄─ _Feed ◄─ list of one batch's results, one after the other
                   ◄─ _Gate, where the stream has to wait or to raise

An iterator whose `__next__` is written in Python costs each item some 150 ns, several times what unpickling it does.
So the stream is an `itertools.chain`, which goes through a batch's results by itself and asks only for the next batch.
A chain ends for good when its source raises, but not when the iterator that it is at does: what may raise is the gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pairpool import kernel
from pairpool.master import blame
from pairpool.master.jobs import Raised, StreamJob

if TYPE_CHECKING:
    from pairpool.master.engine import Master

__all__ = ["IMapIterator"]

R = TypeVar("R")


class _Gate:
    """Keeps the workers busy, waits for the next results, and raises what came in the place of one."""

    def __init__(self, master: Master, job: StreamJob, return_exceptions: bool) -> None:
        self._master = master
        self._job = job
        self._return_exceptions = return_exceptions
        self.timeout: float | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        job = self._job
        self._drive()
        if not job.ready:
            error = job.take_input_error()
            if error is not None:
                raise error
            raise StopIteration
        if type(job.ready[0]) is not Raised:
            raise StopIteration  # the feed has results
        failed = job.hand_out_error()
        if self._return_exceptions:
            return failed
        try:
            raise failed
        finally:
            del failed

    def _drive(self) -> None:
        """Have the workers do more, for there is room for it, and wait if nothing is there."""
        job, master = self._job, self._master
        kernel.require_owner(master.identity)
        try:
            if not job.done:
                master.loop.remind()  # there is room for more, which a leader that sleeps cannot know
            if job.ready:
                master.loop.poke()
                return
            ready = job.done or master.loop.wait(lambda: job.readable, self.timeout, focus=job)
            master.before_leaving()
        except KeyboardInterrupt as interrupt:
            master.cancel(job, blame.left_by(interrupt), kill=True)
            raise
        if not ready:
            from pairpool.errors import timeout_error

            raise timeout_error()


class _Feed:
    """Gives the chain one thing after the other: results that are there, or the gate."""

    def __init__(self, pool: object, master: Master, job: StreamJob, return_exceptions: bool) -> None:
        self._pool: object | None = pool
        self._job = job
        self.gate = _Gate(master, job, return_exceptions)
        self._passed = False
        self.used = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterator[Any]:
        job = self._job
        self.used = True
        if job.left():
            return job.handed  # another thread has taken the chain past it
        self._passed = not self._passed
        if self._passed:
            if job.is_over:
                self._pool = None
                raise StopIteration
            return self.gate
        return job.hand_out()


class IMapIterator(chain[R]):
    """Results as they come (`imap_unordered`) or in the order of the input (`imap`).

    An item's exception is raised in its place, and the iteration can go on after it. Dropping a half-used iterator
    ends the rest of the call; one that was never used lets the call run to its end.
    """

    _feed: _Feed
    _master: Master
    _job: StreamJob

    @classmethod
    def of(cls, pool: object, master: Master, job: StreamJob, *, return_exceptions: bool) -> IMapIterator[Any]:
        """The stream of a job's results; the pool lives as long as it."""
        feed = _Feed(pool, master, job, return_exceptions)
        stream: Any = cls.from_iterable(feed)
        stream._feed, stream._master, stream._job = feed, master, job
        return stream  # type: ignore[no-any-return]

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            StopIteration: there is none any more.
            multiprocessing.TimeoutError: it was not there within `timeout` seconds.
        """
        gate = self._feed.gate
        gate.timeout = timeout
        try:
            return self.__next__()
        finally:
            gate.timeout = None

    def cancel(self, *, kill: bool = False) -> bool:
        """End the rest of the call; with `kill`, also what runs. Returns whether there was something to end."""
        kernel.require_owner(self._master.identity)
        return self._master.cancel(self._job, blame.cancelled(), kill=kill)

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is not None and not job.done and self._master.identity.is_here():
            self._master.abandon(job, half_used=self._feed.used)
