"""What calls on a cluster return: a stream of results, or one to come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from pairpool.dask.cluster_call import ClusterCall
from pairpool.errors import timeout_error

__all__ = ["ClusterResult", "ClusterStream"]

R = TypeVar("R")


class ClusterStream(Generic[R]):
    """What `imap` and `imap_unordered` return, with the methods of `IMapIterator`; to be read by one thread.

    An item's exception is raised in its place, and the iteration can go on after it (as a generator's cannot). Items
    go out as it is read; dropping it ends the rest of the call.
    """

    def __init__(self, work: ClusterCall, *, ordered: bool, return_exceptions: bool) -> None:
        self._work = work
        self._outcomes = work.outcomes(ordered=ordered)
        self._return_exceptions = return_exceptions

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            StopIteration: there is none any more.
            multiprocessing.TimeoutError: it was not there within `timeout` seconds.
        """
        self._work.deadline = None if timeout is None else time.monotonic() + timeout
        found = next(self._outcomes)
        if found is None:
            raise timeout_error()
        is_value, outcome = found
        if is_value or self._return_exceptions:
            return outcome  # type: ignore[no-any-return]
        try:
            if isinstance(outcome, StopIteration):  # which would be taken for the end
                raise RuntimeError("a task raised StopIteration") from outcome
            raise outcome
        finally:
            del found, outcome

    def cancel(self, *, kill: bool = False) -> bool:
        """End the rest of the call; `kill` makes no difference. Returns whether there was something to end."""
        return self._work.cancel()


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
        self._was_cancelled = False

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

    def settle(self, success: bool, value: Any, *, is_cancelled: bool = False) -> bool:
        """Called by the pool with the outcome; only the first counts. Returns whether this is it."""
        with self._lock:
            if self._is_settled or self.cancelled():
                return False
            self._is_settled, self._was_cancelled = True, is_cancelled
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

    def cancel(self, *, kill: bool = False) -> bool:
        """End the call: `get` raises `CancelledError`. Returns False if it has ended by itself.

        What runs is ended, too, within seconds, with and without `kill`; except a single call that is in one batch with
        others: that one is only not waited for.
        """
        if super().cancel():  # it had not begun
            self.begin()
        elif not self.settle(False, CancelledError("the call was cancelled"), is_cancelled=True):
            return False
        self._cancel()
        return True

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._was_cancelled or super().cancelled()
