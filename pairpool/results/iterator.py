"""The results of `imap` and `imap_unordered`, as an iterator.

    chain ◄─ _Feed ◄─ list of one batch's results, one after the other
                   ◄─ _Gate, where the stream has to wait or to raise

An iterator whose `__next__` is written in Python costs about 150 ns per item, several times as much as unpickling the
item. So the stream is an `itertools.chain`. It goes through the results of a batch by itself, and asks the feed only
for the next batch. A chain ends for good when its source raises, but not when the iterator that it reads raises. So the
feed never raises: the gate does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pairpool.master import call_errors
from pairpool.master.jobs.stream import StreamJob

if TYPE_CHECKING:
    from pairpool.master.engine import Engine

__all__ = ["IMapIterator"]

R = TypeVar("R")


class _Gate:
    """Keep the workers busy, wait for the next results, and raise an exception in the place of its item."""

    def __init__(self, engine: Engine, job: StreamJob, return_exceptions: bool) -> None:
        self._engine = engine
        self._job = job
        self._return_exceptions = return_exceptions
        self.timeouts: dict[int, float | None] = {}  # by thread that reads
        self.lock = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        job = self._job
        self._drive()
        with self.lock:
            failed = job.hand_out_error()
        if failed is None:
            error = job.take_input_error() if job.is_read else None
            if error is not None:
                raise error
            raise StopIteration  # the feed has results, or the stream has ended
        if self._return_exceptions:
            return failed
        try:
            if isinstance(failed, StopIteration):  # the chain would take it for the end of the gate
                raise RuntimeError("a task raised StopIteration") from failed
            raise failed
        finally:
            del failed

    def _drive(self) -> None:
        """Let the workers do more, because there is room, and wait if no result is there."""
        job, engine, timeout = self._job, self._engine, self.timeouts.get(threading.get_ident())
        engine.require_owner()
        try:
            if not job.done:
                engine.request_turn()  # a leader that sleeps does not know that there is room
            if job.ready:
                engine.run_once()
                return
            ready = job.done or engine.wait(lambda: job.readable, timeout, focus=job)
            engine.keep_before_leaving()
        except KeyboardInterrupt as interrupt:
            engine.cancel(job, call_errors.left_by(interrupt), kill=True)
            raise
        if not ready:
            from pairpool.errors import timeout_error

            raise timeout_error()


class _Feed:
    """Give the chain its next part: the results of a batch if there are some, else the gate."""

    def __init__(self, pool: object, engine: Engine, job: StreamJob, return_exceptions: bool) -> None:
        self._pool: object | None = pool
        self._job = job
        self.gate = _Gate(engine, job, return_exceptions)
        self._passed = False  # whether the chain was at the gate since results were handed out
        self.used = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterator[Any]:
        job = self._job
        self.used = True
        with self.gate.lock:
            if job.left():
                return job.handed  # another thread has taken the chain past it
            if self._passed and job.has_results:
                self._passed = False
                return job.hand_out()
            if job.is_over:
                self._pool = None
                raise StopIteration
            self._passed = True
            return self.gate


class IMapIterator(chain[R]):
    """The results of a call, as they come (`imap_unordered`) or in the order of the input (`imap`).

    An item's exception is raised in its place, and the iteration can go on after it. A StopIteration would end the
    iteration. So it is raised as the cause of a RuntimeError, as in generators (PEP 479). Dropping a half-used iterator
    ends the rest of the call. If the iterator was never used, the call runs to its end.
    """

    _feed: _Feed
    _engine: Engine
    _job: StreamJob

    @classmethod
    def of(cls, pool: object, engine: Engine, job: StreamJob, *, return_exceptions: bool) -> IMapIterator[Any]:
        """Return the stream of a job's results. The pool lives at least as long as the stream."""
        feed = _Feed(pool, engine, job, return_exceptions)
        stream: Any = cls.from_iterable(feed)
        stream._read(feed, engine, job)
        return stream  # type: ignore[no-any-return]

    def _read(self, feed: _Feed, engine: Engine, job: StreamJob) -> None:
        """Complete a new stream, because `from_iterable` calls no `__init__`."""
        self._feed, self._engine, self._job = feed, engine, job

    def next(self, timeout: float | None = None) -> R:
        """Return the next result.

        Raises:
            StopIteration: there are no more results.
            multiprocessing.TimeoutError: the result did not come within `timeout` seconds.
        """
        timeouts, me = self._feed.gate.timeouts, threading.get_ident()
        timeouts[me] = timeout
        try:
            return self.__next__()
        finally:
            del timeouts[me]

    def cancel(self, *, kill: bool = False) -> bool:
        """End the rest of the call; with `kill`, also the tasks that run. Return whether there was something to end."""
        self._engine.require_owner()
        return self._engine.cancel(self._job, call_errors.cancelled(), kill=kill)

    def leave(self) -> None:
        """Cancel the rest of the call for a reader that does not come back. A forked child does nothing."""
        if not self._job.done and self._engine.is_here():
            self.cancel()

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is not None and not job.done and self._engine.is_here():
            self._engine.abandon(job, half_used=self._feed.used)
