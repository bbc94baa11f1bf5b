"""Futures of single calls: `concurrent.futures.Future` objects that the engine completes."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool.errors import InitializerFailed, WorkerDied, remote_text, with_cause
from pairpool.linux.cpython_private import remote_traceback
from pairpool.master import call_errors
from pairpool.master.jobs.base import Job

if TYPE_CHECKING:
    from pairpool.master.engine import Engine

__all__ = ["PoolFuture", "for_process_pool"]

R = TypeVar("R")


class PoolFuture(Future[R]):
    """The future outcome of a call. The pool lives at least as long as the call.

    `cancel()` takes back a call that has not begun, also out of the socket of a worker.
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

    # --- for the caller -------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> R:
        """Return the result of the call, or raise its exception. A thread that waits here drives the pool.

        Raises:
            TimeoutError: the call did not end within `timeout` seconds.
            CancelledError: the call was cancelled, or the pool has ended.
            PoolInherited: this process was forked off the pool's owner, and the call had not ended by then.
        """
        try:
            self._drive(timeout)
            return super().result(0)
        finally:
            self = None  # type: ignore[assignment]  # because the traceback would make a cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception of the call, or None. Wait as `result` does."""
        self._drive(timeout)
        return super().exception(0)

    def _drive(self, timeout: float | None) -> None:
        """Drive the pool until the future is done. Raise `TimeoutError` if it is not done within `timeout` seconds."""
        if self.done():
            return
        self._engine.require_owner()
        if not self._engine.wait(self.done, timeout):
            raise TimeoutError

    def done(self) -> bool:
        """Return whether the call has ended or was cancelled.

        This takes no lock, because the handler of a signal that raises might leave the lock locked.
        """
        return self._state in _ENDED

    def set_result(self, result: R) -> None:
        """Set a result by hand. The pool's own outcome is ignored then."""
        super().set_result(result)
        self._engine.tell_followers()  # the next turn wakes the threads that wait

    def set_exception(self, exception: BaseException | None) -> None:
        """Set an exception by hand. The pool's own outcome is ignored then."""
        super().set_exception(exception)
        self._engine.tell_followers()

    def cancel(self) -> bool:
        """Take the call back. Return False if it runs or has ended."""
        if not self.done():
            self._engine.require_owner()
            self._engine.cancel_call(self, call_errors.cancelled(), kill=False)
            if self._is_to_be_cancelled():  # if another thread drives, it has not completed the future yet
                super().cancel()
        return self.cancelled()

    def running(self) -> bool:
        """Return whether a worker runs the call."""
        if self._outcome is not None or self.done():
            return False
        return self._engine.is_here() and self._engine.runs(self)

    def _is_to_be_cancelled(self) -> bool:
        outcome = self._outcome
        return outcome is not None and not outcome[0] and _is_cancellation(outcome[1])

    # --- for the engine -------------------------------------------------------------------------

    @property
    def has_outcome(self) -> bool:
        """Whether the outcome is known. The future may still have to be completed."""
        return self._outcome is not None

    def set_outcome(self, success: bool, value: Any) -> None:
        """Take the outcome; called by the leader. Only the first outcome counts."""
        if self._outcome is None:
            self._outcome = success, value
            self._engine.call_later(self._complete)

    def _complete(self) -> None:
        """Complete the future. This runs callbacks."""
        assert self._outcome is not None
        success, value = self._outcome
        try:
            if self._is_to_be_cancelled():
                if super().cancel():
                    self.set_running_or_notify_cancel()
            elif self.done():
                return  # an outcome was set by hand
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
"""The states of a `concurrent.futures.Future` that is done."""


def for_process_pool(error: BaseException) -> BaseException:
    """Return the exception that users of `ProcessPoolExecutor` expect in place of an error of pairpool."""
    if isinstance(error, (WorkerDied, InitializerFailed)):
        from pairpool.results.process_pool_errors import as_broken_process_pool

        return as_broken_process_pool(error)
    cause = error.__cause__
    original = getattr(error, "original", None)  # the error of a result that cannot be pickled
    if isinstance(original, BaseException):
        error = with_cause(original, cause)
    text = remote_text(cause)
    if text is not None:
        return with_cause(error, remote_traceback(text))
    return error


def _is_cancellation(error: BaseException) -> bool:
    """Return whether the call was cancelled. If a task raised the same exception, it has a remote traceback."""
    return isinstance(error, CancelledError) and error.__cause__ is None
