"""The results of calls on a cluster: `ClusterStream` for streams, `ClusterResult` for all other calls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any, Generic, TypeVar

from pairpool.dask.cluster_call import ClusterCall
from pairpool.errors import timeout_error

__all__ = ["ClusterResult", "ClusterStream"]

R = TypeVar("R")


class ClusterStream(Generic[R]):
    """The result of `imap` and `imap_unordered`, with the methods of `IMapIterator`. One thread reads it.

    An item's exception is raised in its place. The iteration can continue after it, unlike a generator. Items go out
    while the stream is read. If the stream is dropped, the rest of the call is cancelled.
    """

    def __init__(self, call: ClusterCall, *, ordered: bool, return_exceptions: bool) -> None:
        self._call = call
        self._outcomes = call.outcomes(ordered=ordered)
        self._return_exceptions = return_exceptions

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """Return the next result.

        Raises:
            StopIteration: there are no more results.
            multiprocessing.TimeoutError: the result was not ready within `timeout` seconds.
        """
        self._call.set_deadline(None if timeout is None else time.monotonic() + timeout)
        found = next(self._outcomes)
        if found is None:
            raise timeout_error()
        is_value, outcome = found
        if is_value or self._return_exceptions:
            return outcome  # type: ignore[no-any-return]
        try:
            if isinstance(outcome, StopIteration):  # the reader would take it for the end of the stream
                raise RuntimeError("a task raised StopIteration") from outcome
            raise outcome
        finally:
            del found, outcome

    def cancel(self, *, kill: bool = False) -> bool:
        """End the rest of the call. `kill` has no effect. Return False if the call had ended before."""
        return self._call.cancel()


class ClusterResult(Future[R]):
    """The result of a call, with the methods of `AsyncResult` and of `concurrent.futures.Future`."""

    def __init__(
        self,
        on_cancel: Callable[[], object],
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        super().__init__()
        self._on_cancel = on_cancel
        self._callback = callback
        self._error_callback = error_callback
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_settled = False
        self._was_cancelled = False

    # --- for the pool ---------------------------------------------------------------------------

    def run(self, call: Callable[[], R]) -> None:
        """Run a function and take its outcome. The pool does this in a thread of its own."""
        if not self.begin():
            return
        try:
            value = call()
        except BaseException as error:
            self.settle(False, error)
        else:
            self.settle(True, value)

    def begin(self) -> bool:
        """Note that the call goes out. Return False if it was cancelled before."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                self.set_running_or_notify_cancel()
        return not self.cancelled()

    def settle(self, success: bool, value: Any, *, is_cancelled: bool = False) -> bool:
        """Set the outcome. Only the first one counts; return whether this is the first."""
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

    # --- for the caller -------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> R:
        """Return the result, or raise its exception.

        Raises `multiprocessing.TimeoutError` if the call has not ended within `timeout` seconds.
        """
        self.wait(timeout)
        if not self.done():
            raise timeout_error()
        return self.result()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, but at most `timeout` seconds."""
        wait([self], timeout)

    def ready(self) -> bool:
        """Return whether the call has ended."""
        return self.done()

    def successful(self) -> bool:
        """Return whether the call ended without an exception. Raises `ValueError` if it has not ended."""
        if not self.done():
            raise ValueError(f"{self!r} not ready")
        return not self.cancelled() and self.exception() is None

    def cancel(self, *, kill: bool = False) -> bool:
        """End the call: `get` raises `CancelledError`. Return False if the call had ended before.

        The nodes end the running items within seconds, with and without `kill`. There is one exception: a single call
        that shares its batch with other calls runs on, but nobody waits for it.
        """
        if super().cancel():  # the call had not begun
            self.begin()
        elif not self.settle(False, CancelledError("the call was cancelled"), is_cancelled=True):
            return False
        self._on_cancel()
        return True

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        return self._was_cancelled or super().cancelled()
