"""Futures of single calls: `concurrent.futures.Future` that the engine fulfils."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool.errors import InitializerFailed, WorkerDied, remote_text
from pairpool.linux.cpython_private import remote_traceback
from pairpool.master import call_errors
from pairpool.master.jobs.base import Job

if TYPE_CHECKING:
    from pairpool.master.engine_api import Engine

__all__ = ["PoolFuture", "for_process_pool"]

R = TypeVar("R")


class PoolFuture(Future[R]):
    """The outcome of a call to come. The pool lives at least as long as the call.

    `cancel()` takes a call back that has not begun, also out of the socket of a worker.
    """

    job: Job | None = None

    def __init__(self, pool: object, engine: Engine, *, as_process_pool: bool) -> None:
        super().__init__()
        self._pool: object | None = pool
        self._engine = engine
        self._as_process_pool = as_process_pool
        self._outcome: tuple[bool, Any] | None = None

    def submitted_to(self, job: Job) -> None:
        """Remember the job that contains the call."""
        self.job = job

    # --- for whoever waits ----------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> R:
        """What the call returned; raises what it raised. Who waits here drives the pool meanwhile.

        Raises:
            TimeoutError: it was not there within `timeout` seconds.
            CancelledError: the call was cancelled, or the pool has ended.
            PoolInherited: this process was forked off the pool's owner, and the call had not ended by then.
        """
        try:
            self._drive(timeout)
            return super().result(0)
        finally:
            self = None  # type: ignore[assignment]  # no cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; waits as `result` does."""
        self._drive(timeout)
        return super().exception(0)

    def _drive(self, timeout: float | None) -> None:
        """Drive the pool until this is done. Raises `TimeoutError` if it is not by then."""
        if self.done():
            return
        self._engine.require_owner()
        if not self._engine.wait(self.done, timeout):
            raise TimeoutError

    def done(self) -> bool:
        """Whether it has ended or was cancelled.

        It takes no lock, which a signal's handler that raises might leave locked.
        """
        return self._state in _ENDED

    def set_result(self, result: R) -> None:
        """By hand: the pool's own outcome comes too late, then."""
        super().set_result(result)
        self._engine.tell_followers()  # a turn tells those who wait

    def set_exception(self, exception: BaseException | None) -> None:
        """By hand."""
        super().set_exception(exception)
        self._engine.tell_followers()

    def cancel(self) -> bool:
        """Take the call back. Returns False if it runs, or has ended."""
        if not self.done():
            self._engine.require_owner()
            self._engine.cancel_call(self, call_errors.cancelled(), kill=False)
            if self._is_to_be_cancelled():  # it is not told yet where another thread drives
                super().cancel()
        return self.cancelled()

    def running(self) -> bool:
        """Whether a worker is at it."""
        if self._outcome is not None or self.done():
            return False
        return self._engine.is_here() and self._engine.runs(self)

    def _is_to_be_cancelled(self) -> bool:
        outcome = self._outcome
        return outcome is not None and not outcome[0] and _is_cancellation(outcome[1])

    # --- for the engine -------------------------------------------------------------------------

    @property
    def has_outcome(self) -> bool:
        """Whether the outcome is known, though perhaps not told yet."""
        return self._outcome is not None

    def set_outcome(self, success: bool, value: Any) -> None:
        """Called by the loop; only the first outcome counts."""
        if self._outcome is None:
            self._outcome = success, value
            self._engine.call_later(self._tell)

    def _tell(self) -> None:
        """Fulfil it, which runs callbacks."""
        assert self._outcome is not None
        success, value = self._outcome
        try:
            if self._is_to_be_cancelled():
                if super().cancel():
                    self.set_running_or_notify_cancel()
            elif self.done():
                return  # somebody has set an outcome by hand
            elif self.set_running_or_notify_cancel():
                if success:
                    super().set_result(value)
                else:
                    super().set_exception(for_process_pool(value) if self._as_process_pool else value)
        finally:
            self._outcome = True, None
            self.job = None
            pool, self._pool = self._pool, None
            self._engine.release_later(pool)


_ENDED = ("CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED")
"""What `concurrent.futures.Future` has as its state then."""


def for_process_pool(error: BaseException) -> BaseException:
    """What a user of `ProcessPoolExecutor` expects in place of an error of pairpool's."""
    if isinstance(error, (WorkerDied, InitializerFailed)):
        from pairpool.results.process_pool_errors import as_broken_process_pool

        return as_broken_process_pool(error)
    cause = error.__cause__
    original = getattr(error, "original", None)  # of a result that cannot be pickled
    if isinstance(original, BaseException):
        error, original.__cause__ = original, cause
    text = remote_text(cause)
    if text is not None:
        error.__cause__ = remote_traceback(text)
    return error


def _is_cancellation(error: BaseException) -> bool:
    """Whether the call was cancelled; a task may raise the same, and then has a remote traceback."""
    return isinstance(error, CancelledError) and error.__cause__ is None
