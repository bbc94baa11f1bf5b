"""Results as a stream: what `imap` and `imap_unordered` return.

    chain ◄─ _Feed ◄─ list of one batch's results, one after the other
                   ◄─ _Gate, where the stream has to wait or to raise

An iterator whose `__next__` is written in Python costs each item some 150 ns, several times what unpickling it does.
So the stream is an `itertools.chain`, which goes through a batch's results by itself and asks only for the next batch.
A chain ends for good when its source raises, but not when the iterator that it is at does: what may raise is the gate.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pairpool.master import call_errors
from pairpool.master.jobs.stream import StreamJob

if TYPE_CHECKING:
    from pairpool.master.engine_api import Engine

__all__ = ["IMapIterator"]

R = TypeVar("R")


class _Gate:
    """Keeps the workers busy, waits for the next results, and raises what came in the place of one."""

    def __init__(self, engine: Engine, job: StreamJob, return_exceptions: bool) -> None:
        self._engine = engine
        self._job = job
        self._return_exceptions = return_exceptions
        self.timeouts: dict[int, float | None] = {}  # of the threads that read
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
            raise StopIteration  # the feed has results, or the end
        if self._return_exceptions:
            return failed
        try:
            if isinstance(failed, StopIteration):  # which would be taken for the end of this gate
                raise RuntimeError("a task raised StopIteration") from failed
            raise failed
        finally:
            del failed

    def _drive(self) -> None:
        """Have the workers do more, for there is room for it, and wait if nothing is there."""
        job, engine, timeout = self._job, self._engine, self.timeouts.get(threading.get_ident())
        engine.require_owner()
        try:
            if not job.done:
                engine.request_turn()  # there is room for more, which a leader that sleeps cannot know
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
    """Gives the chain one thing after the other: results that are there, or the gate."""

    def __init__(self, pool: object, engine: Engine, job: StreamJob, return_exceptions: bool) -> None:
        self._pool: object | None = pool
        self._job = job
        self.gate = _Gate(engine, job, return_exceptions)
        self._passed = False  # by the gate, since results were handed out
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
    """Results as they come (`imap_unordered`) or in the order of the input (`imap`).

    An item's exception is raised in its place, and the iteration can go on after it; a StopIteration, which would end
    it, as the cause of a RuntimeError, as in generators (PEP 479). Dropping a half-used iterator ends the rest of the
    call; one that was never used lets the call run to its end.
    """

    _feed: _Feed
    _engine: Engine
    _job: StreamJob

    @classmethod
    def of(cls, pool: object, engine: Engine, job: StreamJob, *, return_exceptions: bool) -> IMapIterator[Any]:
        """The stream of a job's results; the pool lives as long as it."""
        feed = _Feed(pool, engine, job, return_exceptions)
        stream: Any = cls.from_iterable(feed)
        stream._feed, stream._engine, stream._job = feed, engine, job
        return stream  # type: ignore[no-any-return]

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            StopIteration: there is none any more.
            multiprocessing.TimeoutError: it was not there within `timeout` seconds.
        """
        timeouts, me = self._feed.gate.timeouts, threading.get_ident()
        timeouts[me] = timeout
        try:
            return self.__next__()
        finally:
            del timeouts[me]

    def cancel(self, *, kill: bool = False) -> bool:
        """End the rest of the call; with `kill`, also what runs. Returns whether there was something to end."""
        self._engine.require_owner()
        return self._engine.cancel(self._job, call_errors.cancelled(), kill=kill)

    def leave(self) -> None:
        """`cancel` for whoever does not come back, in a forked child or at the very end of the program, too."""
        if not self._job.done and self._engine.is_here():
            self.cancel()

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is not None and not job.done and self._engine.is_here():
            self._engine.abandon(job, half_used=self._feed.used)
