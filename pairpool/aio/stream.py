"""Results as an asynchronous stream: what `AsyncPool.imap` and `imap_unordered` return, and what feeds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pairpool.aio.outcome import raised
from pairpool.master import call_errors
from pairpool.master.asyncio_driver import BUDGET, AsyncioDriver

if TYPE_CHECKING:
    from pairpool.master.engine import Engine
    from pairpool.master.jobs.fed import FedJob

__all__ = ["AsyncStream", "Feed"]

R = TypeVar("R")

IN_A_ROW = 32
"""Results that are there which a reader takes before it looks at how long others have waited for the event loop."""


class Feed:
    """Hands the items of an input in as there is room, and says when there is something to read.

    It does not know the stream, so that one that nobody has any more ends.

    Attributes:
        news: set when there may be something to read.
        is_full: whether it waits for room.
    """

    job: FedJob

    def __init__(self, master: Engine, attendant: AsyncioDriver) -> None:
        self.attendant = attendant
        self.news = asyncio.Event()
        self.is_full = False
        self._master = master
        self._room = asyncio.Event()
        self._left = 0
        self._until = 0.0

    def tell(self) -> None:
        """Results have come, or the job was cancelled; from any thread."""
        self.attendant.tell(self)

    def settle(self) -> None:
        self.news.set()
        if self.job.cancelled or self.job.unbounded:
            self._room.set()

    def look_for_room(self) -> None:
        """Go on, if the reader has made room for a few items, so that they go out together."""
        wanted = self._wanted()
        if wanted > 0 and 4 * wanted >= wanted + self.job.unread:
            self._room.set()

    async def run(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Hand all items in; ends early if the job is cancelled."""
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
            del error  # no cycle through the traceback: it would keep the input open
            self.attendant.summon()
            self.settle()

    async def _run_async(self, items: AsyncIterable[Any]) -> None:
        began = time.monotonic_ns()
        async for item in items:
            self.job.feed(item, time.monotonic_ns() - began)
            self.attendant.summon()
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
        """Take one more item off the room there is; false if no more items are wanted."""
        self._left -= 1
        return (self._left > 0 and time.monotonic() < self._until) or await self._rest()

    async def _rest(self) -> bool:
        """Let others use the event loop, and wait until there is room; False if no more items are wanted."""
        self.attendant.summon()
        await asyncio.sleep(0)
        while (wanted := self._wanted()) <= 0 and not self.job.cancelled:
            self._room.clear()
            self.is_full = True
            try:
                await self._room.wait()
            finally:
                self.is_full = False
        self._left = wanted
        self._until = time.monotonic() + BUDGET
        return not self.job.cancelled

    def _wanted(self) -> int:
        return self.job.wanted(self._master.crew.size)


class AsyncStream(AsyncIterator[R], Generic[R]):
    """Results as they come (`imap_unordered`) or in the order of the input (`imap`): `async for` goes through them.

    An item's exception is raised in its place, and the iteration can go on after it. If the coroutine that waits for a
    result is cancelled, so is the whole call, and its tasks are ended; dropping a stream that is not used up, or
    `aclose`, ends the rest of the call, while the tasks that run go on unheard.
    """

    def __init__(self, pool: object, master: Engine, feed: Feed, task: asyncio.Task[None], keep: bool) -> None:
        self._pool: object | None = pool  # which lives as long as the stream
        self._master = master
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
        if self._in_a_row >= IN_A_ROW:
            await self._give_way()
        while True:
            for value in job.handed:
                if feed.is_full:
                    feed.look_for_room()
                return value  # type: ignore[no-any-return]
            if job.has_results:
                job.hand_out()
                if job.has_supply:
                    feed.attendant.summon()  # there is room for more
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
        """Let others use the event loop, if this reader has had it for some time: it may have thousands of results."""
        self._in_a_row = 0
        if time.monotonic() >= self._since + BUDGET:
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
        """End the rest of the call; with `kill`, also what runs. Nothing is taken from the input after that."""
        if not self._job.done:
            self._cancel(call_errors.cancelled(), kill=kill)
        if not self._task.done():
            await asyncio.wait([self._task])

    def _cancel(self, reason: BaseException, *, kill: bool) -> None:
        job, cancellation = self._job, self._master.cancellation
        self._master.loop.submit(lambda: cancellation.job(job, reason, kill=kill))
        self._task.cancel()

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is None or job.done or not self._master.identity.is_here():
            return
        self._master.abandon(job, half_used=True)
        try:
            self._feed.attendant.events.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            pass  # the event loop has closed, and has cancelled all its tasks before, or never will
