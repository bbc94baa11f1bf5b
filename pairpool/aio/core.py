"""The inside of an `AsyncPool`: a pool, and the event loop that drives it, opened and closed step by step."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any

from pairpool.aio.outcome import Outcome
from pairpool.aio.stream import AsyncStream, Feed
from pairpool.master import call_errors
from pairpool.master.engine import Engine
from pairpool.master.engine_core import EXIT_GRACE_S
from pairpool.master.jobs.intake import Gathered, gather, length_of
from pairpool.master.jobs.stream import StreamSpec
from pairpool.options import CallOptions
from pairpool.pool import CLOSE, RUN, TERMINATE, Pool

__all__ = ["Core", "Inner"]


class Inner(Pool):
    """A pool that an event loop opens and closes."""

    def _start(self) -> None:
        self._engine.begin_start()

    @property
    def engine(self) -> Engine:
        """The engine of the pool."""
        return self._engine

    @property
    def state(self) -> str:
        """One of `RUN`, `CLOSE` and `TERMINATE`."""
        return self._state

    @property
    def calls(self) -> CallOptions:
        """The options of calls that override nothing."""
        return self._calls

    def check_running(self) -> None:
        """Raise `ValueError` if the pool takes no calls."""
        if self._state != RUN or self._engine.has_begun_to_end:
            raise ValueError("Pool not running")

    def begin_close(self) -> None:
        """Take no more calls, without waiting."""
        if self._state == RUN:
            self._state = CLOSE
            self._engine.begin_close()

    def begin_end(self) -> None:
        """Start to end everything; calls raise `CancelledError`."""
        self._state = TERMINATE
        self._engine.wind_down()

    def end(self) -> None:
        """Release everything. Workers that are left are killed."""
        self._state = TERMINATE
        self._engine.terminate(grace=0.0)


class Core:
    """A pool and the event loop that drives it. An `AsyncPool` and its copies with other options share one.

    Args:
        options: of `Pool`.
        live: whether to show a live view.
    """

    def __init__(self, options: dict[str, Any], live: bool) -> None:
        self._options = options
        self._live = live
        self._inner: Inner | None = None
        self._feeds: dict[asyncio.Task[None], Feed] = {}
        self._readings: set[asyncio.Task[list[Any]]] = set()
        self._guard: AsyncGenerator[None, None] | None = None

    # --- opening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Fork the workers. Return when the first ones are there."""
        if self._inner is not None:
            raise ValueError("an AsyncPool can be opened once")
        events = asyncio.get_running_loop()
        inner = Inner(**self._options)
        try:
            engine = inner.engine
            self.driver = engine.drive_from(events)
            self._inner = inner
            await self.driver.until(lambda: engine.has_begun_to_end or engine.has_begun)
            inner.check_running()
            engine.finish_start()
            if self._live:
                inner.live()
            self._guard = _guard(weakref.ref(inner))
            await anext(self._guard)
        except BaseException:
            inner.end()
            raise

    @property
    def inner(self) -> Inner:
        """The pool, which may have ended."""
        if self._inner is None:
            raise ValueError("Pool not open: use `async with AsyncPool() as pool:`, or `await pool.open()` first")
        return self._inner

    def use(self) -> Inner:
        """Return the pool to make a call. Raise if it is not running, or if it belongs to another event loop."""
        inner = self.inner
        inner.check_running()
        self._check_event_loop()
        return inner

    def _check_event_loop(self) -> None:
        events = self.driver.events
        if asyncio.get_running_loop() is not events:
            self.inner.engine.require_owner()
            what = "which has closed" if events.is_closed() else "and can only be used there"
            raise RuntimeError(f"this AsyncPool was opened in another event loop, {what}: open one in each")

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, func: Callable[..., Any], args: Any, kwds: Any, options: CallOptions) -> Any:
        """Return the result of a single call. If the wait is cancelled, so is the call."""
        engine = self.use().engine
        outcome = Outcome(self.driver)
        engine.submit_call(outcome, engine.find_function(func), args, kwds, options.of_single_calls())
        try:
            await outcome.future
        except BaseException:
            engine.drop_call(outcome)
            raise
        return outcome.get()

    async def map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        mode: int,
        options: CallOptions,
    ) -> list[Any]:
        """Return the results of a call for each item. If the wait is cancelled, so is the call."""
        engine = self.use().engine
        if isinstance(iterable, AsyncIterable):
            gathered = Gathered(await self._read(iterable), is_left=True)
            self.use()
        else:
            gathered = gather(iterable, is_left=True)
        outcome = Outcome(self.driver)
        engine.submit_map(outcome, engine.find_function(func), mode, gathered, options)
        try:
            await outcome.future
        except BaseException as reason:
            if outcome.job is not None:
                engine.cancel_soon(outcome.job, call_errors.left_by(reason), kill=True)
            raise
        return outcome.get()  # type: ignore[no-any-return]

    async def _read(self, iterable: AsyncIterable[Any]) -> list[Any]:
        """Return all items. They are read in a task of their own, which ends with the pool."""

        async def read() -> list[Any]:
            return [item async for item in iterable]

        task = asyncio.create_task(read(), name="pairpool input")
        self._readings.add(task)
        try:
            await asyncio.wait([task])
        except BaseException:
            task.cancel()
            await asyncio.wait([task])  # what the input has open is closed
            raise
        finally:
            self._readings.discard(task)
        if task.cancelled() and self.inner.state == TERMINATE:
            raise call_errors.terminated()
        return task.result()

    def stream(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        options: CallOptions,
        *,
        ordered: bool,
    ) -> AsyncStream[Any]:
        """Start a stream, whose input is read from now on."""
        inner = self.use()
        items = iterable if isinstance(iterable, AsyncIterable) else iter(iterable)
        total = None if isinstance(iterable, AsyncIterable) else length_of(iterable)
        feed = Feed(inner.engine, self.driver, inner.engine.find_function(func), options, StreamSpec(ordered, total))
        task = asyncio.create_task(feed.run(items), name="pairpool feed")
        self._feeds[task] = feed
        task.add_done_callback(self._feeds.pop)
        return AsyncStream(inner, inner.engine, feed, task, options.return_exceptions)

    async def resize(self, processes: int) -> None:
        """Keep this many workers. Return when new ones are there."""
        resized = self.use().begin_resize(processes)
        await self.driver.until(resized)

    def describe(self) -> str:
        """Return the state, in the words of `Pool`."""
        if self._inner is None:
            return "state=INIT pool_size=0"
        return f"state={self._inner.state} pool_size={self._inner.engine.size}"

    # --- closing --------------------------------------------------------------------------------

    async def join(self) -> None:
        """Wait until all calls have ended and all workers have exited."""
        inner = self.inner
        if inner.state == RUN:
            raise ValueError("Pool is still running")
        if inner.state == CLOSE:
            self._check_event_loop()
            engine = inner.engine
            engine.expect_no_reader([feed.tell for feed in self._feeds.values()])
            await self.driver.until(
                lambda: engine.has_begun_to_end or (engine.is_idle() and engine.has_no_workers_left())
            )
        await self.terminate()

    async def terminate(self) -> None:
        """End at once, without blocking the event loop while workers exit."""
        inner = self._inner
        if inner is None:
            return
        if self.driver.events.is_closed():
            inner.end()
            return
        self._check_event_loop()
        try:
            inner.begin_end()
            await self._wait_for_exits(inner.engine)
        finally:
            inner.end()
            if self._guard is not None:
                await self._guard.aclose()

    async def _wait_for_exits(self, engine: Engine) -> None:
        """Wait until no input is read any more and all workers have exited, but for `EXIT_GRACE_S` at most."""
        inputs = [task for task in (*self._feeds, *self._readings) if task is not asyncio.current_task()]
        for task in inputs:
            task.cancel()
        is_late = False

        def be_late() -> None:  # not by the clock, because a timer of an event loop may be a little early
            nonlocal is_late
            is_late = True
            self.driver.summon()

        alarm = self.driver.events.call_later(EXIT_GRACE_S, be_late)
        try:
            await self.driver.until(lambda: is_late or engine.has_begun_to_end or engine.has_no_workers_left())
        finally:
            alarm.cancel()
        if inputs:
            await asyncio.wait(inputs)


async def _guard(reference: weakref.ref[Inner]) -> AsyncGenerator[None, None]:
    """End the pool when the event loop ends: `asyncio.run` closes all asynchronous generators before that."""
    try:
        yield
    finally:
        inner = reference()
        if inner is not None and inner.state != TERMINATE:
            inner.end()
            warnings.warn(f"unclosed running pool {inner!r}", ResourceWarning, source=inner, stacklevel=2)
