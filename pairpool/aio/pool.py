"""`AsyncPool`: the public class for asyncio. `core.py` does the work."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

from pairpool.aio.core import Core
from pairpool.aio.stream import AsyncStream
from pairpool.options import DEFAULTS, CallOptions, Limits, PoolKeywords, RetryOn
from pairpool.transport.protocol import Mode

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.status import PoolStatus
    from pairpool.transport.segments import Shared
    from pairpool.view.live import LiveView
    from pairpool.view.report import PoolReport

__all__ = ["AsyncPool"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AsyncPool:
    """A pool of worker processes whose calls are awaited, in one event loop (asyncio's or uvloop's).

    There is no thread: the event loop watches the pool's descriptor, and drives the pool for about a millisecond at a
    time. The thread of the event loop pickles arguments, unpickles results and reads plain iterables. Other coroutines
    wait for as long as that takes. Opening a pool blocks the event loop for some milliseconds, too.

    Cancelling a coroutine that waits (`task.cancel()`, `asyncio.timeout`) cancels the task. A queued task is taken
    back. A running task ends together with its worker, which is replaced. Other tasks are not touched.

    Args:
        processes: the number of workers; by default the number of cores that this process may use.
        live: True for a live view of the pool. The view and `capture` use one thread each.
        options: the other options of `Pool`.

    Example:
        >>> async def main() -> int:
        ...     async with AsyncPool(2) as pool:
        ...         return await pool.run(pow, 2, 10)
        >>> asyncio.run(main())
        1024
    """

    def __init__(self, processes: int | None = None, *, live: bool = False, **options: Unpack[PoolKeywords]) -> None:
        capture = options.get("capture") or live
        self._core = Core({"processes": processes, **options, "capture": capture}, live)
        self._limits: Limits = {}

    # --- opening and closing --------------------------------------------------------------------

    async def open(self) -> None:
        """Start the workers, as `async with` does. Raise what `Pool` raises."""
        await self._core.open()

    async def __aenter__(self) -> AsyncPool:
        await self.open()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.terminate()

    def close(self) -> None:
        """Take no more calls. The calls that are there run to their ends, and `join` waits for them."""
        self._core.inner.begin_close()

    async def join(self) -> None:
        """Wait until all calls have ended and all workers have exited. Call `close` first."""
        await self._core.join()

    async def terminate(self) -> None:
        """End at once: running tasks are killed, and calls that have not ended raise `CancelledError`.

        This is `pairpool.CancelledError` (that of `concurrent.futures`), an ordinary exception. It is not
        `asyncio.CancelledError`, which cancels coroutines.
        """
        await self._core.terminate()

    async def aclose(self) -> None:
        """Do as `terminate` does, under the name that `contextlib.aclosing` calls."""
        await self.terminate()

    # --- calls ----------------------------------------------------------------------------------

    def with_options(
        self,
        *,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> AsyncPool:
        """Return the same pool, with other limits for calls. A limit that is None stays as it is.

        Example:
            >>> await pool.with_options(task_timeout=5, retries=2).run(work, item)
        """
        limits: Limits = {"task_timeout": task_timeout, "retries": retries, "retry_on": retry_on}
        DEFAULTS.override(**limits)  # which checks them
        return copy.copy(self)._limited(limits)

    def _limited(self, limits: Limits) -> AsyncPool:
        """Override limits of this very object, which nobody else has yet."""
        given: Any = {name: value for name, value in limits.items() if value is not None}
        self._limits = {**self._limits, **given}
        return self

    def _options(
        self, chunksize: int | None = None, buffersize: int | None = None, return_exceptions: bool = False
    ) -> CallOptions:
        """Return the options of a call."""
        calls = self._core.inner.calls
        if self._limits:
            calls = calls.override(**self._limits)
        return calls.override(None, None, None, chunksize, buffersize, return_exceptions)

    async def run(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `func(*args, **kwargs)`, run in a worker.

        Raises:
            Exception: what the function raises, `WorkerDied` and `TaskTimeout` included.
            ValueError: the pool is not open.
            RuntimeError: the pool was opened in another event loop.
        """
        return await self._core.call(func, args, kwargs, self._options())  # type: ignore[no-any-return]

    @overload
    async def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[R]: ...

    @overload
    async def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: bool,
    ) -> list[R | BaseException]: ...

    async def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[R] | list[R | BaseException]:
        """Return `[func(x) for x in iterable]`, run in the workers. The whole input is read first.

        Args:
            chunksize: items per batch, if you want to fix it; with 1, no item ever runs twice.
            return_exceptions: put exceptions into the list in place of results, instead of raising the first.
        """
        return await self._core.map(func, iterable, Mode.MAP, self._options(chunksize, None, return_exceptions))

    @overload
    async def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[R]: ...

    @overload
    async def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: bool,
    ) -> list[R | BaseException]: ...

    async def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[R] | list[R | BaseException]:
        """Do as `map` does for a function of several arguments. Each item is unpacked: `func(*item)`."""
        return await self._core.map(func, iterable, Mode.STAR, self._options(chunksize, None, return_exceptions))

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
    ) -> AsyncStream[R]: ...

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
    ) -> AsyncStream[R | BaseException]: ...

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> AsyncStream[R] | AsyncStream[R | BaseException]:
        """Return results in the order of the input, as they come, for `async for`. The input may be endless.

        A coroutine of its own reads the input from now on, and only as far as there is room. A plain iterable that
        blocks also blocks the event loop: use an asynchronous one instead.

        Args:
            chunksize: items per batch, if you want to fix it; with 1, no item ever runs twice.
            buffersize: how many items may be taken from the input and not yet yielded. By default these are a few
                batches per worker: as many items as the workers, or the input, need 0.1 s for, and at most 64 MiB. But
                it is at least two items per worker.
            return_exceptions: yield exceptions instead of raising them.
        """
        options = self._options(chunksize, buffersize, return_exceptions)
        return self._core.stream(func, iterable, options, ordered=True)

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
    ) -> AsyncStream[R]: ...

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
    ) -> AsyncStream[R | BaseException]: ...

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> AsyncStream[R] | AsyncStream[R | BaseException]:
        """Do as `imap` does, with results in the order in which they are ready."""
        options = self._options(chunksize, buffersize, return_exceptions)
        return self._core.stream(func, iterable, options, ordered=False)

    # --- the pool itself ------------------------------------------------------------------------

    def share(self, obj: T) -> Shared[T]:
        """Write an object once into memory that all workers map; see `Pool.share`."""
        return self._core.inner.share(obj)

    async def resize(self, processes: int) -> None:
        """Keep this many workers from now on. Return when new ones are there."""
        await self._core.resize(processes)

    def status(self) -> PoolStatus:
        """Return what the pool and each worker are doing, at once and from any thread; see `Pool.status`."""
        return self._core.inner.status()

    def report(self) -> PoolReport:
        """Return what the pool has done and where the time went, at once and from any thread; see `Pool.report`."""
        return self._core.inner.report()

    def stacks(self, timeout: float = 1.0) -> dict[int, str]:
        """Return the Python stack of each worker's task; see `Pool.stacks`.

        This blocks until the workers have answered. `await asyncio.to_thread(pool.stacks)` waits in another thread.
        """
        return self._core.inner.stacks(timeout)

    def live(self, console: Console | None = None) -> LiveView:
        """Show the pool on the terminal until the view is stopped or the pool ends; see `Pool.live`."""
        return self._core.inner.live(console)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._core.describe()}>"
