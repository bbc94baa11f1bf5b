"""What one `AsyncPool` consists of: a pool, and the event loop that turns it; opened and closed step by step."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from pairpool.aio.outcome import Outcome
from pairpool.aio.stream import AsyncStream, Feed
from pairpool.linux import forking
from pairpool.master import call_errors
from pairpool.master.asyncio_driver import AsyncioDriver
from pairpool.master.engine import GRACE, Engine
from pairpool.master.jobs.base import MapJob
from pairpool.master.jobs.fed import FedJob
from pairpool.master.jobs.intake import Gathered, gather, length_of
from pairpool.master.jobs.stream import StreamSpec
from pairpool.options import CallOptions
from pairpool.pool import CLOSE, RUN, TERMINATE, Pool
from pairpool.transport.protocol import Mode

if TYPE_CHECKING:
    from pairpool.master.functions import Function

__all__ = ["Core", "Inner"]


class Inner(Pool):
    """A pool that is opened and closed by an event loop."""

    def _start(self, master: Engine) -> None:
        master.nursery.begin()

    @property
    def master(self) -> Engine:
        return self._master

    @property
    def state(self) -> str:
        return self._state

    @property
    def calls(self) -> CallOptions:
        """The options of calls that override nothing."""
        return self._calls

    def check_running(self) -> None:
        if self._state != RUN or self._master.loop.ended:
            raise ValueError("Pool not running")

    def function(self, func: Callable[..., Any]) -> Function:
        """The function, ready to travel. Raises what says that it cannot be pickled."""
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")
        return self._master.functions.get(func)

    def begin_close(self) -> None:
        if self._state == RUN:
            self._state = CLOSE
            self._master.begin_close()

    def begin_end(self) -> None:
        """Have everything end; calls raise `CancelledError`."""
        self._state = TERMINATE
        self._master.wind_down()

    def end(self) -> None:
        """Let go of everything; workers that are left are killed."""
        self._state = TERMINATE
        self._master.terminate(grace=0.0)


class Core:
    """A pool and the event loop that turns it; shared by an `AsyncPool` and those that differ from it by options only.

    Args:
        options: of `Pool`.
        live: whether a live view is wanted.
    """

    def __init__(self, options: dict[str, Any], live: bool) -> None:
        self._options = options
        self._live = live
        self._inner: Inner | None = None
        self._dropped: deque[Outcome] = deque()
        self._feeds: dict[asyncio.Task[None], Feed] = {}
        self._readings: set[asyncio.Task[list[Any]]] = set()
        self._guard: AsyncGenerator[None, None] | None = None

    # --- opening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Fork the workers; returns when the first are there."""
        if self._inner is not None:
            raise ValueError("an AsyncPool can be opened once")
        events = asyncio.get_running_loop()
        inner = Inner(**self._options)
        try:
            master = inner.master
            self.attendant = AsyncioDriver(master.loop, events)
            master.at_end.append(self.attendant.leave)
            self._inner = inner
            await self.attendant.until(lambda: master.loop.ended or master.nursery.has_begun)
            inner.check_running()
            master.go()
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
        """The pool, for a call. Raises if it does not run, or not in the event loop that runs now."""
        inner = self.inner
        inner.check_running()
        self._check_event_loop()
        return inner

    def _check_event_loop(self) -> None:
        events = self.attendant.events
        if asyncio.get_running_loop() is not events:
            forking.require_owner(self.inner.master.identity)
            what = "which has closed" if events.is_closed() else "and can only be used there"
            raise RuntimeError(f"this AsyncPool was opened in another event loop, {what}: open one in each")

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, func: Callable[..., Any], args: Any, kwds: Any, options: CallOptions) -> Any:
        inner = self.use()
        outcome = Outcome(self.attendant)
        number = inner.function(func).number
        inner.master.submit_call(outcome, number, args, kwds, options.of_single_calls())
        try:
            await outcome.future
        except BaseException:
            self._dropped.append(outcome)
            inner.master.loop.submit(self._drop)
            raise
        return outcome.get()

    def _drop(self) -> None:
        """End all calls whose coroutines were cancelled, at once; done by whoever leads."""
        dropped = list(self._dropped)
        if dropped:
            self.inner.master.cancellation.calls(dropped, call_errors.cancelled())
            for _ in dropped:
                self._dropped.popleft()

    async def map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        mode: int,
        options: CallOptions,
    ) -> list[Any]:
        inner = self.use()
        if isinstance(iterable, AsyncIterable):
            gathered = Gathered(await self._read(iterable), is_left=True)
            inner = self.use()
        else:
            gathered = gather(iterable, is_left=True)
        outcome = Outcome(self.attendant)
        job = MapJob(inner.function(func), mode, gathered, options, outcome.set_outcome)
        master = inner.master
        master.submit_job(job)
        try:
            await outcome.future
        except BaseException as reason:
            left = call_errors.left_by(reason)
            master.loop.submit(lambda: master.cancellation.job(job, left, kill=True))
            raise
        return outcome.get()  # type: ignore[no-any-return]

    async def _read(self, iterable: AsyncIterable[Any]) -> list[Any]:
        """All items; in a task of its own, which ends with the pool."""

        async def read() -> list[Any]:
            return [item async for item in iterable]

        task = asyncio.create_task(read(), name="pairpool input")
        self._readings.add(task)
        try:
            await asyncio.wait([task])
        except BaseException:
            task.cancel()
            await asyncio.wait([task])  # what it has open is closed
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
        inner = self.use()
        items = iterable if isinstance(iterable, AsyncIterable) else iter(iterable)
        total = None if isinstance(iterable, AsyncIterable) else length_of(iterable)
        feed = Feed(inner.master, self.attendant)
        spec = StreamSpec(ordered, total)
        feed.job = FedJob(inner.function(func), Mode.MAP, options, spec, inner.master.codec, feed.tell)
        inner.master.submit_job(feed.job)
        task = asyncio.create_task(feed.run(items), name="pairpool feed")
        self._feeds[task] = feed
        task.add_done_callback(self._feeds.pop)
        return AsyncStream(inner, inner.master, feed, task, options.return_exceptions)

    async def resize(self, processes: int) -> None:
        resized = self.use().begin_resize(processes)
        await self.attendant.until(resized)

    def describe(self) -> str:
        """The state, in the words of `Pool`."""
        if self._inner is None:
            return "state=INIT pool_size=0"
        return f"state={self._inner.state} pool_size={self._inner.master.size}"

    # --- closing --------------------------------------------------------------------------------

    async def join(self) -> None:
        """Wait until all calls have ended and all workers have exited."""
        inner = self.inner
        if inner.state == RUN:
            raise ValueError("Pool is still running")
        if inner.state == CLOSE:
            self._check_event_loop()
            master = inner.master
            master.loop.submit(master.agenda.expect_no_reader)
            for feed in self._feeds.values():
                master.loop.submit(feed.tell)
            await self.attendant.until(lambda: master.loop.ended or (master.is_idle() and master.is_deserted()))
        await self.terminate()

    async def terminate(self) -> None:
        """End at once, without keeping the event loop from others while workers exit."""
        inner = self._inner
        if inner is None:
            return
        if self.attendant.events.is_closed():
            inner.end()
            return
        self._check_event_loop()
        try:
            inner.begin_end()
            await self._desertion(inner.master)
        finally:
            inner.end()
            if self._guard is not None:
                await self._guard.aclose()

    async def _desertion(self, master: Engine) -> None:
        """Wait until inputs are not read any more and all workers have exited, or have had `GRACE` for it."""
        inputs = [task for task in (*self._feeds, *self._readings) if task is not asyncio.current_task()]
        for task in inputs:
            task.cancel()
        is_late = False

        def be_late() -> None:  # not by the clock: a timer of an event loop may be a little early
            nonlocal is_late
            is_late = True
            self.attendant.summon()

        alarm = self.attendant.events.call_later(GRACE, be_late)
        try:
            await self.attendant.until(lambda: is_late or master.loop.ended or master.is_deserted())
        finally:
            alarm.cancel()
        if inputs:
            await asyncio.wait(inputs)


async def _guard(reference: weakref.ref[Inner]) -> AsyncGenerator[None, None]:
    """Ends the pool when the event loop does: `asyncio.run` closes all asynchronous generators before that."""
    try:
        yield
    finally:
        inner = reference()
        if inner is not None and inner.state != TERMINATE:
            inner.end()
            warnings.warn(f"unclosed running pool {inner!r}", ResourceWarning, source=inner, stacklevel=2)
