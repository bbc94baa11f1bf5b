"""The outcome of a call that is awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pairpool.master.asyncio_driver import AsyncioDriver

if TYPE_CHECKING:
    from pairpool.master.jobs.base import Calls, MapJob

__all__ = ["Outcome", "raised"]

_OF_PYTHON = (StopIteration, StopAsyncIteration, asyncio.CancelledError)
"""What means something to `await` and `async for` that a task did not mean."""


def raised(error: BaseException) -> BaseException:
    """What to raise for a task's exception: itself, or a RuntimeError caused by it where it would be misunderstood."""
    if not isinstance(error, _OF_PYTHON):
        return error
    told = RuntimeError(f"a task raised {type(error).__name__}")
    told.__cause__ = error
    return told


class Outcome:
    """Where the outcome of a call goes, and what wakes the coroutine that waits for it."""

    __slots__ = ("_attendant", "_success", "_value", "future", "has_outcome", "job")

    def __init__(self, attendant: AsyncioDriver) -> None:
        self.job: Calls | MapJob | None = None
        self.has_outcome = False
        self.future: asyncio.Future[None] = attendant.events.create_future()
        self._attendant = attendant
        self._success = False
        self._value: Any = None

    def set_outcome(self, success: bool, value: Any) -> None:
        """Called by whoever leads; only the first outcome counts."""
        if not self.has_outcome:
            self._success, self._value = success, value
            self.has_outcome = True
            self._attendant.tell(self)

    def settle(self) -> None:
        if not self.future.done():  # it was cancelled, if so
            self.future.set_result(None)

    def get(self) -> Any:
        """The result, or the exception raised."""
        if self._success:
            return self._value
        try:
            raise raised(self._value)
        finally:
            del self  # no cycle through the traceback
