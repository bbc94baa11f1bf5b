"""The options of one call, checked once and passed whole from the public faces to the job.

A pool makes one `CallOptions` from its own options, and every call that asks for nothing else uses that object.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple, TypeAlias

from pairpool.errors import WorkerDied

__all__ = ["DEFAULTS", "CallOptions", "RetryOn", "check_buffersize", "check_chunksize", "check_seconds"]

RetryOn: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...]"


class CallOptions(NamedTuple):
    """The options of one call. Make them with `override`, which checks them.

    Args:
        task_timeout: seconds that one item may run; None for any time.
        retries: how often an item runs again if its worker died, or if it raised one of `retry_on`.
        retry_on: types of exceptions.
        chunksize: items per batch; None for batches that are sized by time.
        buffersize: items of a stream that may be taken and not yet yielded; None for a bound that follows the batches.
        return_exceptions: whether exceptions take the place of results.
    """

    task_timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = ()
    chunksize: int | None = None
    buffersize: int | None = None
    return_exceptions: bool = False

    def override(
        self,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> CallOptions:
        """Return these options with the given ones in their place. None keeps what is there.

        Raises:
            TypeError, ValueError: an option is of the wrong type or out of range.
        """
        if (
            task_timeout is None
            and retries is None
            and retry_on is None
            and chunksize is None
            and buffersize is None
            and not return_exceptions
        ):
            return self
        timeout = check_seconds(task_timeout, "task_timeout")
        timeout = self.task_timeout if timeout is None else timeout
        size, buffer = check_chunksize(chunksize), check_buffersize(buffersize)
        return self._replace(
            task_timeout=None if timeout == math.inf else timeout,
            retries=self.retries if retries is None else _check_retries(retries),
            retry_on=self.retry_on if retry_on is None else _check_retry_on(retry_on),
            chunksize=self.chunksize if size is None else size,
            buffersize=self.buffersize if buffer is None else buffer,
            return_exceptions=self.return_exceptions or bool(return_exceptions),
        )

    def of_single_calls(self) -> CallOptions:
        """Return the options of single calls. They travel in batches by time unless `chunksize` is 1."""
        if self.chunksize in (None, 1):
            return self
        return self._replace(chunksize=None, buffersize=None, return_exceptions=False)


DEFAULTS = CallOptions()


def check_seconds(seconds: float | None, name: str) -> float | None:
    """Return a number of seconds as a float, or None. `name` is what an error calls it."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {seconds!r}")
    if not seconds > 0:
        raise ValueError(f"{name} must be positive, not {seconds!r}")
    return float(seconds)


def check_chunksize(chunksize: int | None) -> int | None:
    """Return a number of items per batch, or None."""
    if chunksize is None:
        return None
    try:
        number = operator.index(chunksize)
    except TypeError:
        raise TypeError(f"chunksize must be an int or None, not {chunksize!r}") from None
    if number < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
    return number


def check_buffersize(buffersize: int | None) -> int | None:
    """Return a number of items, or None. The error texts are those of `concurrent.futures`."""
    if buffersize is None:
        return None
    if not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    return buffersize


def _check_retries(retries: int) -> int:
    number = operator.index(retries)
    if number < 0:
        raise ValueError(f"retries must be 0 or more, not {number}")
    return number


def _check_retry_on(retry_on: RetryOn) -> tuple[type[BaseException], ...]:
    """Return the types as a tuple. `WorkerDied` is always one of them."""
    kinds: tuple[Any, ...] = (WorkerDied, *(retry_on if isinstance(retry_on, tuple) else (retry_on,)))
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise TypeError(f"retry_on must be a type of exceptions or a tuple of such types, not {retry_on!r}")
    return kinds
