"""The outcome of a call on a cluster, as the caller holds it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

__all__ = ["ClusterResult"]

R = TypeVar("R")


class ClusterResult(Future[R]):
    """The outcome of a call to come, with the methods of `AsyncResult` and of `concurrent.futures.Future`."""

    def __init__(
        self,
        cancel: Callable[[], object],
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        super().__init__()
        self._cancel = cancel
        self._callback = callback
        self._error_callback = error_callback
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_settled = False

    def run(self, call: Callable[[], R]) -> None:
        """Have it be the outcome of this; called by the pool, in a thread of its own."""
        if not self.begin():
            return
        try:
            value = call()
        except BaseException as error:
            self.settle(False, error)
        else:
            self.settle(True, value)

    def begin(self) -> bool:
        """Called by the pool when the call goes out. Returns False if it was cancelled before."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                self.set_running_or_notify_cancel()
        return not self.cancelled()

    def settle(self, success: bool, value: Any) -> bool:
        """Called by the pool with the outcome; only the first counts. Returns whether this is it."""
        with self._lock:
            if self._is_settled or self.cancelled():
                return False
            self._is_settled = True
        if success:
            self._call(self._callback, value)
            self.set_result(value)
        else:
            self._call(self._error_callback, value)
            self.set_exception(value)
        return True

    def _call(self, callback: Callable[[Any], object] | None, value: Any) -> None:
        if callback is None:
            return
        try:
            callback(value)
        except BaseException:
            logging.getLogger("pairpool").exception("a callback of %r raised", self)

    def get(self, timeout: float | None = None) -> R:
        """The result, or its exception raised. Raises `multiprocessing.TimeoutError` if it is not there in time."""
        self.wait(timeout)
        if not self.done():
            from pairpool.errors import timeout_error

            raise timeout_error()
        return self.result()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, or for `timeout` seconds."""
        from concurrent.futures import wait

        wait([self], timeout)

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self.done()

    def successful(self) -> bool:
        """Whether the call ended without an exception. Raises `ValueError` if it has not ended."""
        if not self.done():
            raise ValueError(f"{self!r} not ready")
        return not self.cancelled() and self.exception() is None

    def cancel(self) -> bool:
        """End the call: `get` raises `CancelledError`. Returns False if it has ended by itself.

        What runs is ended, too, except a single call that is in one batch with others: that one is only not waited for.
        """
        if super().cancel():  # it had not begun
            self.begin()
        elif not self.settle(False, CancelledError("the call was cancelled")):
            return False
        self._cancel()
        return True
