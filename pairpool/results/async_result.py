"""The results of `apply_async`, `map_async` and `starmap_async`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pairpool.linux.interrupts import allow_signals, is_from_handler
from pairpool.master import call_errors
from pairpool.master.jobs.base import Job

if TYPE_CHECKING:
    from pairpool.master.engine import Engine

__all__ = ["AsyncResult", "MapResult"]

R = TypeVar("R")


class AsyncResult(Generic[R]):
    """The future outcome of a call, with the methods of `multiprocessing.pool.AsyncResult`.

    A thread that waits for it drives the pool. The pool lives at least as long as the call.
    """

    job: Job | None = None
    _done = False
    _has_outcome = False
    _success = False
    _value: Any = None

    def __init__(
        self,
        pool: object,
        engine: Engine,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._pool: object | None = pool
        self._engine = engine
        self._callback = callback
        self._error_callback = error_callback

    def submitted_to(self, job: Job) -> None:
        """Remember the job that contains the call."""
        self.job = job

    def _is_done(self) -> bool:
        return self._done

    def ready(self) -> bool:
        """Return whether the call has ended, with a result or an exception."""
        if not self._done:
            self._engine.require_owner()
            self._engine.run_once()
        return self._done

    def successful(self) -> bool:
        """Return whether the call ended without an exception. Raise `ValueError` if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, or for `timeout` seconds."""
        if not self._done:
            self._engine.require_owner()
            try:
                self._engine.wait(self._is_done, timeout)
            except KeyboardInterrupt as interrupt:
                self._cancel(call_errors.left_by(interrupt), kill=True)
                raise

    def cancel(self, *, kill: bool = False) -> bool:
        """Cancel the call if it has not begun. Queued items are taken back, also out of the sockets of workers.

        Args:
            kill: end the call even if it runs.

        Returns:
            Whether the call was cancelled. If so, `get` raises `CancelledError`.
        """
        return not self._done and self._cancel(call_errors.cancelled(), kill=kill)

    def _cancel(self, reason: BaseException, *, kill: bool) -> bool:
        self._engine.require_owner()
        return self._engine.cancel_call(self, reason, kill=kill)

    def get(self, timeout: float | None = None) -> R:
        """Return the result, or raise the exception of the call.

        Raises:
            multiprocessing.TimeoutError: the call did not end within `timeout` seconds.
            WorkerDied: the worker ended while it ran the call.
        """
        self.wait(timeout)
        if not self._done:
            from pairpool.errors import timeout_error

            raise timeout_error()
        if self._success:
            return self._value  # type: ignore[no-any-return]
        try:
            raise self._value
        finally:
            self = None  # type: ignore[assignment]  # because the traceback would make a cycle

    def set_outcome(self, success: bool, value: Any) -> None:
        """Take the outcome; called by the leader. Only the first outcome counts."""
        if self._has_outcome:
            return
        self._has_outcome = True
        self._success, self._value = success, value
        callback = self._callback if success else self._error_callback
        if callback is None:
            self._end()
        else:
            self._engine.call_later(lambda: self._call(callback))

    @property
    def has_outcome(self) -> bool:
        """Whether the outcome is known. Callbacks may still have to run."""
        return self._has_outcome

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            with allow_signals():
                callback(self._value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if is_from_handler(error):
                raise
            import logging

            logging.getLogger("pairpool").exception("a callback of %r raised", self)
        finally:
            self._end()

    def _end(self) -> None:
        self._done = True
        self.job = self._callback = self._error_callback = None
        pool, self._pool = self._pool, None
        self._engine.release_later(pool)


class MapResult(AsyncResult[R]):
    """The future outcome of a map: all results in a list, or the exception of the first item that failed."""
