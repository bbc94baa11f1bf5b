"""The results of `AsyncPool.imap` and `imap_unordered`, as an asynchronous stream.

input ─► Feed, a task of its own ─► FedJob ─► workers
async for ◄─ AsyncStream ◄───────── FedJob ◄─ workers
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pairpool.aio.outcome import raised
from pairpool.master import call_errors
from pairpool.master.asyncio_driver import TURN_BUDGET_S, AsyncioDriver

if TYPE_CHECKING:
    from pairpool.master.engine import Engine
    from pairpool.master.functions import Function
    from pairpool.master.jobs.call_options import CallOptions
    from pairpool.master.jobs.stream import StreamSpec

__all__ = ["AsyncStream", "Feed"]

R = TypeVar("R")

RESULTS_BETWEEN_CHECKS = 32
"""Results that a reader takes before it checks how long other coroutines have waited for the event loop."""


class Feed:
    """Hand the items of an input to a job as there is room, and say when there is something to read.

    A feed does not know the stream. So a stream that nobody holds any more ends.

    Attributes:
        job: the job of the stream.
        news: set when there may be something to read.
        is_full: whether the feed waits for room.
    """

    def __init__(
        self, engine: Engine, driver: AsyncioDriver, function: Function, options: CallOptions, spec: StreamSpec
    ) -> None:
        self.driver = driver
        self.news = asyncio.Event()
        self.is_full = False
        self._engine = engine
        self._room = asyncio.Event()
        self._left = 0
        self._pause_at = 0.0
        self.job = engine.submit_fed(function, options, spec, self.tell)

    def tell(self) -> None:
        """Wake the reader: results have come, or the job was cancelled. From any thread."""
        self.driver.tell(self)

    def settle(self) -> None:
        """Wake the coroutines that wait; called in the event loop."""
        self.news.set()
        if self.job.cancelled or self.job.unbounded:
            self._room.set()

    def look_for_room(self) -> None:
        """Go on if the reader has made room for several items, so that they are sent together."""
        wanted = self._wanted()
        if wanted > 0 and 4 * wanted >= wanted + self.job.unread:
            self._room.set()

    async def run(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Hand in all items. End early if the job is cancelled."""
        job = self.job
        error: BaseException | None = None
        try:
            await self._rest()
            if isinstance(items, AsyncIterable):
                await self._run_async(items)
            else:
                await self._run_plain(items)
        except BaseException as reason:
            error = reason
            if not isinstance(reason, Exception):
                raise
        finally:
            job.complete(error)
            del error  # a cycle through the traceback would keep the input open
            self.driver.summon()
            self.settle()

    async def _run_async(self, items: AsyncIterable[Any]) -> None:
        began = time.monotonic_ns()
        async for item in items:
            self.job.feed(item, time.monotonic_ns() - began)
            self.driver.summon()
            if not await self._go_on():
                return
            began = time.monotonic_ns()

    async def _run_plain(self, items: Iterable[Any]) -> None:
        began = time.monotonic_ns()
        for item in items:
            self.job.feed(item, time.monotonic_ns() - began)
            if not await self._go_on():
                return
            began = time.monotonic_ns()

    async def _go_on(self) -> bool:
        """Count one item. Return False if no more items are wanted."""
        self._left -= 1
        return (self._left > 0 and time.monotonic() < self._pause_at) or await self._rest()

    async def _rest(self) -> bool:
        """Let other coroutines run, and wait until there is room. Return False if no more items are wanted."""
        self.driver.summon()
        await asyncio.sleep(0)
        while (wanted := self._wanted()) <= 0 and not self.job.cancelled:
            self._room.clear()
            self.is_full = True
            try:
                await self._room.wait()
            finally:
                self.is_full = False
        self._left = wanted
        self._pause_at = time.monotonic() + TURN_BUDGET_S
        return not self.job.cancelled

    def _wanted(self) -> int:
        return self._engine.room_of(self.job)


class AsyncStream(AsyncIterator[R], Generic[R]):
    """The results of a call, as they come (`imap_unordered`) or in the order of the input (`imap`), for `async for`.

    An item's exception is raised in its place, and the iteration can go on after it. If the coroutine that waits for a
    result is cancelled, the whole call is cancelled, and its tasks are ended. Dropping a stream before its end, or
    `aclose`, ends the rest of the call. Tasks that run then go on, but their results are discarded.
    """

    def __init__(self, pool: object, engine: Engine, feed: Feed, task: asyncio.Task[None], keep: bool) -> None:
        self._pool: object | None = pool  # it lives as long as the stream
        self._engine = engine
        self._feed = feed
        self._job = feed.job
        self._task = task
        self._return_exceptions = keep
        self._in_a_row = 0
        self._since = 0.0

    def __aiter__(self) -> AsyncStream[R]:
        return self

    async def __anext__(self) -> R:
        job, feed = self._job, self._feed
        self._in_a_row += 1
        if self._in_a_row >= RESULTS_BETWEEN_CHECKS:
            await self._give_way()
        while True:
            for value in job.handed:
                if feed.is_full:
                    feed.look_for_room()
                return value  # type: ignore[no-any-return]
            if job.has_results:
                job.hand_out()
                if job.has_supply:
                    feed.driver.summon()  # there is room for more
                continue
            error = job.hand_out_error()
            if error is not None:
                return self._tell_error(error)
            if job.is_read:
                self._end()
            if feed.is_full:
                feed.look_for_room()
            await self._wait()

    def _tell_error(self, error: BaseException) -> R:
        if self._return_exceptions:
            return error  # type: ignore[return-value]
        try:
            raise raised(error)
        finally:
            del error

    def _end(self) -> None:
        self._pool = None
        error = self._job.take_input_error()
        if error is None:
            raise StopAsyncIteration
        try:
            raise raised(error)
        finally:
            del error

    async def _wait(self) -> None:
        news = self._feed.news
        news.clear()
        await self._pause(news.wait())

    async def _give_way(self) -> None:
        """Let other coroutines run if this reader has run for some time: it may have thousands of results."""
        self._in_a_row = 0
        if time.monotonic() >= self._since + TURN_BUDGET_S:
            await self._pause(asyncio.sleep(0))

    async def _pause(self, pause: Awaitable[object]) -> None:
        try:
            await pause
        except asyncio.CancelledError as error:
            self._cancel(call_errors.left_by(error), kill=True)
            raise
        self._in_a_row = 0
        self._since = time.monotonic()

    async def aclose(self, *, kill: bool = False) -> None:
        """End the rest of the call; with `kill`, also the tasks that run. No more items are taken from the input."""
        if not self._job.done:
            self._cancel(call_errors.cancelled(), kill=kill)
        if not self._task.done():
            await asyncio.wait([self._task])

    def _cancel(self, reason: BaseException, *, kill: bool) -> None:
        self._engine.cancel_soon(self._job, reason, kill=kill)
        self._task.cancel()

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is None or job.done or not self._engine.is_here():
            return
        self._engine.abandon(job, half_used=True)
        try:
            self._feed.driver.events.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            pass  # the event loop has closed: it has cancelled its tasks already, or never will
