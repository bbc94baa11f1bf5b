"""The outcome of a call that is awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pairpool.errors import with_cause
from pairpool.master.asyncio_driver import AsyncioDriver

if TYPE_CHECKING:
    from pairpool.master.jobs.base import Job

__all__ = ["Outcome", "raised"]

_CONTROL_FLOW = (StopIteration, StopAsyncIteration, asyncio.CancelledError)
"""Exceptions that `await` and `async for` would take for their own."""


def raised(error: BaseException) -> BaseException:
    """Return the exception of a task, or a RuntimeError with it as cause if `await` would misunderstand it."""
    if not isinstance(error, _CONTROL_FLOW):
        return error
    return with_cause(RuntimeError(f"a task raised {type(error).__name__}"), error)


class Outcome:
    """The outcome of a call. Setting it wakes the coroutine that waits."""

    __slots__ = ("_driver", "_success", "_value", "future", "has_outcome", "job")

    def __init__(self, driver: AsyncioDriver) -> None:
        self.job: Job | None = None
        self.has_outcome = False
        self.future: asyncio.Future[None] = driver.events.create_future()
        self._driver = driver
        self._success = False
        self._value: Any = None

    def submitted_to(self, job: Job) -> None:
        """Remember the job that contains the call."""
        self.job = job

    def set_outcome(self, success: bool, value: Any) -> None:
        """Set the outcome; called by the leader. Only the first outcome counts."""
        if not self.has_outcome:
            self._success, self._value = success, value
            self.has_outcome = True
            self._driver.tell(self)

    def settle(self) -> None:
        """Wake the coroutine; called in the event loop."""
        if not self.future.done():  # done already if it was cancelled
            self.future.set_result(None)

    def get(self) -> Any:
        """Return the result, or raise the exception."""
        if self._success:
            return self._value
        try:
            raise raised(self._value)
        finally:
            del self  # no cycle through the traceback
